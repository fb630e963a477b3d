//! Options of netlink sockets, which no safe interface sets.
#![expect(unsafe_code, reason = "setsockopt with SOL_NETLINK has no safe wrapper in rustix")]

use std::ffi::c_int;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// Join the multicast group whose number is the value.
pub const ADD_MEMBERSHIP: c_int = libc::NETLINK_ADD_MEMBERSHIP;
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
