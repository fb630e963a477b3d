//! Options of netlink sockets, which no safe interface sets or reads.
#![expect(unsafe_code, reason = "rustix has no safe wrapper for options of SOL_NETLINK and SO_NETNS_COOKIE")]

use std::ffi::c_int;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// Join the multicast group whose number is the value.
pub const ADD_MEMBERSHIP: c_int = libc::NETLINK_ADD_MEMBERSHIP;
/// Leave it.
pub const DROP_MEMBERSHIP: c_int = libc::NETLINK_DROP_MEMBERSHIP;
/// Errors do not carry the request back.
pub const CAP_ACK: c_int = libc::NETLINK_CAP_ACK;
/// Errors carry the extended acknowledgement's text.
pub const EXT_ACK: c_int = libc::NETLINK_EXT_ACK;
/// Dump requests are checked, and their filters obeyed.
pub const GET_STRICT_CHK: c_int = libc::NETLINK_GET_STRICT_CHK;

/// Sets one option of a netlink socket.
///
/// # Errors
/// The kernel does not know the option.
pub fn set(socket: BorrowedFd<'_>, option: c_int, value: c_int) -> Result<(), Errno> {
    let length = libc::socklen_t::try_from(size_of::<c_int>()).expect("the size of an int is small");
    // SAFETY: the descriptor is open for the call's duration (it is borrowed), and the pointer and the length
    // describe one live `c_int`, which the kernel only reads.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_NETLINK, option, (&raw const value).cast(), length) };
    if result == 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL))
}

/// Returns the number of the socket's network namespace, which no other one has had since the boot.
///
/// # Errors
/// The kernel does not know the option (before 5.14).
pub fn namespace_cookie(socket: BorrowedFd<'_>) -> Result<u64, Errno> {
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).expect("the size of a number is small");
    // SAFETY: the descriptor is open for the call's duration (it is borrowed), and the pointer and the length
    // describe one live `u64`, into which any bytes may be written.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        return Ok(cookie);
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL))
}
