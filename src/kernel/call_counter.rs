//! Counting calls of kernel functions, on all processors and by everybody.
//!
//! Kernel: perf_event_open(2) with the PMU `kprobe` (`/sys/bus/event_source/devices/kprobe`, Linux 4.17 with `CONFIG_KPROBE_EVENTS`): a
//! probe at the beginning of a function, which belongs to its descriptor and goes with it, also when the process is killed. It only counts:
//! nothing is sampled, recorded or changed. It needs `CAP_PERFMON` (before Linux 5.8 `CAP_SYS_ADMIN`), and is refused where the kernel is locked down
//! for confidentiality and by the system call filters of most containers that are not privileged.
//!
//! There are two ways to count by it ([`Way`]). A BPF program at the probe ([`program`]) is one event for each function, whatever the number of
//! processors, and interrupts none. Where the kernel refuses the program, each processor has events of its own ([`per_processor`]), which is for
//! few processors alone.
//!
//! Limits and surprises:
//! - A counter may stand still for ever without a word when the module with the function was unloaded: the caller has to find out.
//! - Closing waits for the kernel's readers (RCU) at each event, some tens of milliseconds. So a thread of its own does that; at the end of
//!   the process the kernel does, before the process is gone.

mod event;
mod per_processor;
mod processors;
mod program;

use std::ffi::CStr;
use std::thread;

use per_processor::EventsPerProcessor;
use program::Programs;

use super::{Cause, Error};

/// Counters of some kernel functions. They count from their opening on.
#[derive(Debug)]
pub struct CallCounter {
    /// `None` once they are being closed.
    opened: Option<Opened>,
    fallback: Option<String>,
}

/// How calls are counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// By a BPF program at each function, which runs on whatever processor the function is called.
    Program,
    /// By an event for each function and processor.
    EventsPerProcessor,
}

#[derive(Debug)]
enum Opened {
    Program(Programs),
    EventsPerProcessor(EventsPerProcessor),
}

const COUNT: &str = "count calls of kernel function";

impl CallCounter {
    /// Opens counters of these functions: 0 and counting. By BPF programs, and by events for each processor where these cannot be had.
    ///
    /// # Errors
    /// `ENOENT` where the kernel has no such function now, or no such PMU; `EACCES` or `EPERM` where it refuses; and, where it refuses the programs
    /// alone, if there are too many processors, some that are set apart, or no list of all of them.
    pub fn open(functions: &[&CStr]) -> Result<CallCounter, Error> {
        let refused = match CallCounter::open_by(Way::Program, functions) {
            Ok(counter) => return Ok(counter),
            // The other way would not find it either.
            Err(absent) if absent.is_absent() => return Err(absent),
            Err(refused) => refused,
        };
        match CallCounter::open_by(Way::EventsPerProcessor, functions) {
            Ok(mut counter) => {
                counter.fallback = Some(refused.to_string());
                Ok(counter)
            }
            // The reason is about the other way alone.
            Err(Error { operation, object, cause: Cause::Errno(errno, Some(reason)) }) => {
                let reason = format!("{reason}; BPF programs are refused: {refused}");
                Err(Error::new(operation, object, Cause::Errno(errno, Some(reason))))
            }
            Err(error) => Err(error),
        }
    }

    /// Opens counters that count in this way.
    ///
    /// # Errors
    /// As of [`open`](Self::open), and where the kernel refuses this way.
    pub fn open_by(way: Way, functions: &[&CStr]) -> Result<CallCounter, Error> {
        let opened = match way {
            Way::Program => Opened::Program(Programs::open(functions)?),
            Way::EventsPerProcessor => Opened::EventsPerProcessor(EventsPerProcessor::open(functions)?),
        };
        Ok(CallCounter { opened: Some(opened), fallback: None })
    }

    /// Returns why each processor has events of its own though a program was tried first.
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }

    /// Returns the number of calls of each function since the opening, on all processors together.
    ///
    /// # Errors
    /// With events for each processor: one has come or gone since the opening, so that calls may be missing, now and later.
    pub fn read(&mut self) -> Result<Vec<u64>, Error> {
        match self.opened.as_mut().expect("it is open until it is dropped") {
            Opened::Program(programs) => programs.read(),
            Opened::EventsPerProcessor(events) => events.read(),
        }
    }
}

impl Drop for CallCounter {
    /// Closes without waiting.
    fn drop(&mut self) {
        let opened = self.opened.take();
        // Without another thread they are closed here.
        let _ = thread::Builder::new().name("kprobe".to_owned()).spawn(move || drop(opened));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_refuses_says_why() {
        let error = CallCounter::open(&[c"there_is_no_such_function"]).expect_err("no kernel has it");
        assert!(matches!(error.cause, Cause::Errno(_, _)), "{error}");
    }
}
