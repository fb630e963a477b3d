//! Counting calls by an event for each function and processor: where the kernel refuses BPF programs.
//!
//! Kernel: an event counts on one processor. Each that is online has a group of events, one for each function; reading a group is one
//! system call, for which that processor is interrupted.
//!
//! Limits and surprises:
//! - A counter stands still for ever without a word when its processor went offline, also where that has come back. That is an error when the
//!   counter is read.
//! - Closing waits at each event, so it takes longer with each processor, and there is a limit to their number.
//! - Nothing is opened where processors are set apart (`isolcpus`, `nohz_full`): reading would interrupt them.

use std::ffi::{CStr, c_int};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;

use super::super::{Cause, Error};
use super::COUNT;
use super::event::{self, Event};
use super::processors::{self, ONLINE, processors};

/// The counters of all processors.
#[derive(Debug)]
pub struct EventsPerProcessor {
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

/// With more processors closing would hold up the end of the process for too long: seconds, where an event takes 85 ms as in an emulated guest.
const MOST_PROCESSORS: usize = 16;

impl EventsPerProcessor {
    /// Opens counters of these functions: 0 and counting.
    ///
    /// # Errors
    /// `ENOENT` where the kernel has no such function now, or no such PMU; `EACCES` or `EPERM` where it refuses; and where there are too many
    /// processors, some that are set apart, or no list of all of them.
    pub fn open(functions: &[&CStr]) -> Result<EventsPerProcessor, Error> {
        let kind = event::kind()?;
        let online = processors::read(ONLINE)?;
        let processors =
            processors(&online).ok_or_else(|| Error::new("read", ONLINE, Cause::Malformed("no list of processors")))?;
        if let Some(reason) = refusal(processors.len(), &processors::apart()) {
            return Err(Error::new(COUNT, "", Cause::Errno(Errno::NOTSUP, Some(reason))));
        }
        let open = |processor| Group::open(kind, processor, functions);
        let groups = processors.into_iter().map(open).collect::<Result<Vec<Group>, Error>>()?;
        Ok(EventsPerProcessor { online, groups, functions: functions.len() })
    }

    /// Returns the number of calls of each function since the opening, on all processors together.
    ///
    /// # Errors
    /// A processor has come or gone since the opening: calls may be missing, now and later.
    pub fn read(&mut self) -> Result<Vec<u64>, Error> {
        let has_changed = || Error::new(COUNT, "", Cause::Malformed("processors have come or gone"));
        if processors::read(ONLINE)? != self.online {
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

impl Group {
    fn open(kind: u32, processor: c_int, functions: &[&CStr]) -> Result<Group, Error> {
        let (first, others) = functions.split_first().expect("there are functions to count");
        let leader = Event { kind, function: first, processor, leader: None, is_disabled: false }.open()?;
        let of_group = |function: &&CStr| {
            Event { kind, function, processor, leader: Some(leader.as_fd()), is_disabled: false }.open()
        };
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

/// Returns why so many processors, with these lists of those that are set apart, are not watched.
fn refusal(processors: usize, apart: &[String]) -> Option<String> {
    if processors > MOST_PROCESSORS {
        return Some(format!(
            "there are {processors} processors, and {MOST_PROCESSORS} at most have events of their own"
        ));
    }
    let apart = apart.iter().map(|list| list.trim()).find(|list| self::processors(list).is_some())?;
    Some(format!("processors {apart} are set apart (isolcpus, nohz_full) and not to be interrupted"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_that_are_set_apart_are_not_interrupted() {
        let apart = |isolated: &str, without_tick: &str| refusal(4, &[isolated.to_owned(), without_tick.to_owned()]);
        assert_eq!(apart("\n", "\n"), None);
        assert_eq!(apart("\n", "(null)\n"), None, "as some kernels write that there are none");
        assert!(apart("2-3\n", "\n").is_some_and(|reason| reason.contains("2-3")));
        assert!(apart("\n", "1\n").is_some_and(|reason| reason.contains("processors 1 ")));
        assert!(refusal(MOST_PROCESSORS + 1, &[]).is_some());
    }
}
