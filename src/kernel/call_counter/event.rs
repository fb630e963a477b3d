//! One event of perf_event_open(2): a kprobe at the beginning of a kernel function.
#![expect(unsafe_code, reason = "perf_event_open has no safe wrapper")]

use std::ffi::{CStr, c_int, c_long};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

use super::super::{Cause, Error};
use super::{COUNT, processors};

/// An event to open.
#[derive(Clone, Copy)]
pub struct Event<'a> {
    /// Number of the PMU ([`kind`]).
    pub kind: u32,
    pub function: &'a CStr,
    pub processor: c_int,
    /// The event with which it counts and is read.
    pub leader: Option<BorrowedFd<'a>>,
    /// It counts nothing itself; the probe is there all the same.
    pub is_disabled: bool,
}

const TYPE: &str = "/sys/bus/event_source/devices/kprobe/type";

/// `struct perf_event_attr` up to `PERF_ATTR_SIZE_VER1`, all that every kernel with this PMU knows.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint_kind: u32,
    /// `config1`: the address of the function's name.
    function: u64,
    /// `config2`: the offset in the function.
    offset: u64,
}

/// `PERF_FORMAT_TOTAL_TIME_ENABLED`, `PERF_FORMAT_TOTAL_TIME_RUNNING` and `PERF_FORMAT_GROUP`.
const READ_FORMAT: u64 = 1 | 2 | 8;
/// The bit `disabled`, the first of a bit field.
const DISABLED: u64 = if cfg!(target_endian = "big") { 1 << 63 } else { 1 };
/// `PERF_FLAG_FD_CLOEXEC`
const CLOSE_ON_EXEC: c_long = 8;
const NO_PROCESS: c_long = -1;
const NO_GROUP: RawFd = -1;

/// Returns the number of the PMU `kprobe`.
///
/// # Errors
/// `ENOENT` where this kernel has none.
pub fn kind() -> Result<u32, Error> {
    let number = processors::read(TYPE)?.trim().parse::<u32>();
    number.map_err(|_| Error::new("read", TYPE, Cause::Malformed("no number")))
}

impl Event<'_> {
    /// Opens it.
    ///
    /// # Errors
    /// `ENOENT` where the kernel has no such function now; `EACCES` or `EPERM` where it refuses; `ENODEV` where it has no such processor.
    pub fn open(self) -> Result<OwnedFd, Error> {
        let attributes = Attributes {
            kind: self.kind,
            size: u32::try_from(size_of::<Attributes>()).unwrap_or_default(),
            read_format: READ_FORMAT,
            flags: if self.is_disabled { DISABLED } else { 0 },
            function: self.function.as_ptr() as u64,
            ..Attributes::default()
        };
        let group = self.leader.map_or(NO_GROUP, |leader| leader.as_raw_fd());
        // SAFETY: the kernel reads the attributes, as long as they say they are, and the name that they point to, which ends with a zero; both
        // outlive the call. A descriptor that it returns is open and nobody else's.
        let event = unsafe {
            let number = libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attributes,
                NO_PROCESS,
                c_long::from(self.processor),
                c_long::from(group),
                CLOSE_ON_EXEC,
            );
            RawFd::try_from(number).ok().filter(|number| *number >= 0).map(|number| OwnedFd::from_raw_fd(number))
        };
        event.ok_or_else(|| Error::errno(COUNT, self.function.to_string_lossy(), last_errno()))
    }
}

/// The error of the system call that this thread has just made.
pub fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_attributes_are_as_long_as_the_kernel_expects() {
        assert_eq!(size_of::<Attributes>(), 72);
        assert_eq!(std::mem::offset_of!(Attributes, flags), 40);
        assert_eq!(std::mem::offset_of!(Attributes, function), 56);
    }
}
