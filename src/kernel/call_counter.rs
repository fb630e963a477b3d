//! Counting calls of kernel functions, on all processors and by everybody.
//!
//! Kernel: perf_event_open(2) with the PMU `kprobe` (`/sys/bus/event_source/devices/kprobe`, Linux 4.17 with `CONFIG_KPROBE_EVENTS`): a
//! probe at the beginning of a function, which belongs to its descriptor and goes with it, also when the process is killed. It only counts:
//! nothing is sampled, recorded or changed. It needs `CAP_PERFMON` (before Linux 5.8 `CAP_SYS_ADMIN`), and is refused where the kernel is locked down
//! for confidentiality and by the system call filters of most containers that are not privileged.
//!
//! Limits and surprises:
//! - An event counts on one processor. Each that is online has a group of events, one for each function; reading a group is one
//!   system call, for which that processor is interrupted.
//! - A counter may stand still for ever without a word: when its processor went offline, also where that has come back, and when the
//!   module with the function was unloaded. The first is an error when the counter is read; the second the caller has to find out.
//! - Closing waits for the kernel's readers (RCU) at each event, some tens of milliseconds. So a thread of its own does that; at the end of
//!   the process the kernel does, before the process is gone.
//! - Nothing is opened where processors are set apart (`isolcpus`, `nohz_full`): reading would interrupt them.
#![expect(unsafe_code, reason = "perf_event_open has no safe wrapper")]

use std::ffi::{CStr, c_int, c_long};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::thread;

use rustix::io::Errno;

use super::{Cause, Error};

/// Counters of some kernel functions. They count from their opening on.
#[derive(Debug)]
pub struct CallCounter {
    /// The processors that were online at the opening, as the kernel writes them.
    online: String,
    groups: Vec<Group>,
    functions: usize,
}

/// The counters of one processor.
#[derive(Debug)]
struct Group {
    leader: OwnedFd,
    /// Counted with the leader, in the order of the functions behind the first.
    _others: Vec<OwnedFd>,
    /// Nanoseconds for which they had counted when they were last read.
    running: u64,
}

const TYPE: &str = "/sys/bus/event_source/devices/kprobe/type";
const ONLINE: &str = "/sys/devices/system/cpu/online";
/// The processors that do nothing but what they are told, for different reasons: the kernel's scheduler and its tick stay away from them.
const APART: [&str; 2] = ["/sys/devices/system/cpu/isolated", "/sys/devices/system/cpu/nohz_full"];

/// With more processors closing would hold up the end of the process for too long: seconds, where an event takes 85 ms as in an emulated guest.
const MOST_PROCESSORS: usize = 16;

/// `SYSFS_MAGIC`
const SYSFS: rustix::fs::FsWord = 0x6265_6572;

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
/// `PERF_FLAG_FD_CLOEXEC`
const CLOSE_ON_EXEC: c_long = 8;
const NO_PROCESS: c_long = -1;
const NO_GROUP: RawFd = -1;

const COUNT: &str = "count calls of kernel function";

impl CallCounter {
    /// Opens counters of these functions: 0 and counting.
    ///
    /// # Errors
    /// `ENOENT` where the kernel has no such function now, or no such PMU; `EACCES` or `EPERM` where it refuses; and where there are too many
    /// processors, some that are set apart, or no list of all of them.
    pub fn open(functions: &[&CStr]) -> Result<CallCounter, Error> {
        let kind =
            read(TYPE)?.trim().parse::<u32>().map_err(|_| Error::new("read", TYPE, Cause::Malformed("no number")))?;
        let online = read(ONLINE)?;
        let processors =
            processors(&online).ok_or_else(|| Error::new("read", ONLINE, Cause::Malformed("no list of processors")))?;
        // A kernel without such processors may lack the files.
        let apart = APART.map(|path| read(path).unwrap_or_default());
        if let Some(reason) = refusal(processors.len(), &apart) {
            return Err(Error::new(COUNT, "", Cause::Errno(Errno::NOTSUP, Some(reason))));
        }
        let open = |processor| Group::open(kind, processor, functions);
        let groups = processors.into_iter().map(open).collect::<Result<Vec<Group>, Error>>()?;
        Ok(CallCounter { online, groups, functions: functions.len() })
    }

    /// Returns the number of calls of each function since the opening, on all processors together.
    ///
    /// # Errors
    /// A processor has come or gone since the opening: calls may be missing, now and later.
    pub fn read(&mut self) -> Result<Vec<u64>, Error> {
        let has_changed = || Error::new(COUNT, "", Cause::Malformed("processors have come or gone"));
        if read(ONLINE)? != self.online {
            return Err(has_changed());
        }
        let mut sums = vec![0_u64; self.functions];
        for group in &mut self.groups {
            let counts = group.read(self.functions)?.ok_or_else(has_changed)?;
            for (sum, count) in sums.iter_mut().zip(counts) {
                *sum = sum.wrapping_add(count);
            }
        }
        Ok(sums)
    }
}

impl Drop for CallCounter {
    /// Closes without waiting.
    fn drop(&mut self) {
        let groups = std::mem::take(&mut self.groups);
        // Without another thread they are closed here.
        let _ = thread::Builder::new().name("kprobe".to_owned()).spawn(move || drop(groups));
    }
}

impl Group {
    fn open(kind: u32, processor: c_int, functions: &[&CStr]) -> Result<Group, Error> {
        let (first, others) = functions.split_first().expect("there are functions to count");
        let leader = open_event(kind, first, (processor, NO_GROUP))?;
        let of_group = |function: &&CStr| open_event(kind, function, (processor, leader.as_raw_fd()));
        let others = others.iter().map(of_group).collect::<Result<Vec<OwnedFd>, Error>>()?;
        Ok(Group { leader, _others: others, running: 0 })
    }

    /// Returns what each event has counted; `None` where they no longer count.
    fn read(&mut self, functions: usize) -> Result<Option<Vec<u64>>, Error> {
        // The number of events, the nanoseconds for which the group was enabled and has counted, and the counts.
        let mut answer = vec![0; (3 + functions) * size_of::<u64>()];
        let length = rustix::io::read(&self.leader, &mut answer).map_err(|errno| Error::errno(COUNT, "", errno))?;
        let mut numbers = answer.get(..length).unwrap_or_default().chunks_exact(size_of::<u64>());
        let mut next = || Some(u64::from_ne_bytes(*numbers.next()?.first_chunk()?));
        let running = (next(), next(), next()).2;
        let counts: Vec<u64> = std::iter::from_fn(next).collect();
        let counts_still = running.is_some_and(|running| running > self.running) && counts.len() == functions;
        self.running = running.unwrap_or(self.running);
        Ok(counts_still.then_some(counts))
    }
}

/// Opens one event, on a processor and in the group of another event.
fn open_event(kind: u32, function: &CStr, (processor, group): (c_int, RawFd)) -> Result<OwnedFd, Error> {
    let size = u32::try_from(size_of::<Attributes>()).unwrap_or_default();
    let name = function.as_ptr() as u64;
    let attributes = Attributes { kind, size, read_format: READ_FORMAT, function: name, ..Attributes::default() };
    // SAFETY: the kernel reads the attributes, as long as they say they are, and the name that they point to, which ends with a zero; both
    // outlive the call. A descriptor that it returns is open and nobody else's.
    let event = unsafe {
        let number = libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            NO_PROCESS,
            c_long::from(processor),
            c_long::from(group),
            CLOSE_ON_EXEC,
        );
        RawFd::try_from(number).ok().filter(|number| *number >= 0).map(|number| OwnedFd::from_raw_fd(number))
    };
    event.ok_or_else(|| {
        let errno = Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL);
        Error::errno(COUNT, function.to_string_lossy(), errno)
    })
}

/// Reads a file of the kernel's own. In some containers another file system stands over one of them, which tells of the container's processors
/// alone.
fn read(path: &'static str) -> Result<String, Error> {
    let failed =
        |error: std::io::Error| Error::errno("read", path, Errno::from_io_error(&error).unwrap_or(Errno::INVAL));
    let mut file = File::open(path).map_err(failed)?;
    if !is_of_sysfs(&file) {
        return Err(Error::new("read", path, Cause::Malformed("the file is not the kernel's own")));
    }
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

fn is_of_sysfs(file: &File) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|told| told.f_type == SYSFS)
}

/// Returns why so many processors, with these lists of those that are set apart, are not watched.
fn refusal(processors: usize, apart: &[String]) -> Option<String> {
    if processors > MOST_PROCESSORS {
        return Some(format!("there are {processors} processors, and {MOST_PROCESSORS} at most are watched"));
    }
    let apart = apart.iter().map(|list| list.trim()).find(|list| self::processors(list).is_some())?;
    Some(format!("processors {apart} are set apart (isolcpus, nohz_full) and not to be interrupted"))
}

/// Reads a list of processors: `0-3,8,10-11`.
fn processors(list: &str) -> Option<Vec<c_int>> {
    let mut all = Vec::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        all.extend((first..=last).map(c_int::from));
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_processors_is_read_as_the_kernel_writes_it() {
        assert_eq!(processors("0\n"), Some(vec![0]));
        assert_eq!(processors("0-2,8,10-11\n"), Some(vec![0, 1, 2, 8, 10, 11]));
        assert_eq!(processors(""), None);
        assert_eq!(processors("0-"), None);
        assert_eq!(processors("0-70000"), None);
    }

    #[test]
    fn processors_that_are_set_apart_are_not_interrupted() {
        let apart = |isolated: &str, without_tick: &str| refusal(4, &[isolated.to_owned(), without_tick.to_owned()]);
        assert_eq!(apart("\n", "\n"), None);
        assert_eq!(apart("\n", "(null)\n"), None, "as some kernels write that there are none");
        assert!(apart("2-3\n", "\n").is_some_and(|reason| reason.contains("2-3")));
        assert!(apart("\n", "1\n").is_some_and(|reason| reason.contains("processors 1 ")));
        assert!(refusal(MOST_PROCESSORS + 1, &[]).is_some());
    }

    #[test]
    fn a_file_that_stands_over_the_kernels_own_is_told_apart() {
        let file = |path: &str| File::open(path).expect("it is there");
        assert!(is_of_sysfs(&file(ONLINE)));
        assert!(!is_of_sysfs(&file("/proc/self/stat")));
        assert!(!is_of_sysfs(&file("/dev/null")));
    }

    #[test]
    fn the_attributes_are_as_long_as_the_kernel_expects() {
        assert_eq!(size_of::<Attributes>(), 72);
        assert_eq!(std::mem::offset_of!(Attributes, function), 56);
    }

    #[test]
    fn a_kernel_that_refuses_says_why() {
        let error = CallCounter::open(&[c"there_is_no_such_function"]).expect_err("no kernel has it");
        assert!(matches!(error.cause, Cause::Errno(_, _)), "{error}");
    }
}
