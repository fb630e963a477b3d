//! Whether others have given IPVS commands, for which the kernel sends no notification.
//!
//! Kernel: everything that changes virtual services and destinations goes through one of two functions, for generic netlink and for the older
//! socket options (net/netfilter/ipvs/ip_vs_ctl.c, Linux 3.10 and later). How often each is called is counted
//! ([`CallCounter`]), for all network namespaces together. More calls than our own commands mean that somebody else gave some,
//! here or in another namespace: that cannot be told apart.
//!
//! A call is counted when it begins, so what it changes may be seen a moment later. Commands of ours that the kernel refused are
//! taken for somebody's: not every refused command reaches the function.
//!
//! A counter that stands still proves nothing by itself: probes are lost with the module, and others can disarm them all. So a counter is trusted
//! only where it counted a command that cannot change anything, at the opening and every minute since, and while the module is the same one.
//! For less than that minute a probe that somebody disarms and arms again hides what was done meanwhile.
//!
//! Anybody's call counts, also one that the kernel refuses: it asks for privileges inside these functions, and what is called behind that is many
//! functions, which compilers build into others. So any process, in a container without privileges too, can have us look.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tracing::info;

use crate::kernel::Error;
use crate::kernel::call_counter::CallCounter;

/// Count of commands that others gave to IPVS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Counted {
    /// Somebody may have given one since the last call.
    Some,
    /// Nobody has.
    None,
    /// The counters are being opened.
    NotYet,
    /// They are not counted, and why.
    Not(String),
}

/// The counters, and the commands of this process. Opens nothing before it is asked.
#[derive(Debug)]
pub struct Commands {
    open: Option<Open>,
    /// Opening takes long, so another thread does it.
    opening: Option<JoinHandle<Opened>>,
    /// Time of the next attempt to open the counters, and the time between the next two that fail.
    open_at: Option<Instant>,
    pause: Duration,
    /// Why they are not open.
    reason: String,
}

type Opened = Result<Counters, Error>;

#[derive(Debug)]
struct Counters {
    calls: CallCounter,
    /// A file of the loaded module, which cannot be read any more when that is unloaded; `None` where it is compiled in.
    module: Option<File>,
}

#[derive(Debug)]
struct Open {
    counters: Counters,
    tally: Tally,
    /// Time of the next command that only has to be counted.
    knock_at: Instant,
}

/// Calls counted up to the last reading, and the commands of ours since then; by interface.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Tally {
    seen: [u64; 2],
    own: [u64; 2],
}

/// The functions of generic netlink and of socket options.
const FUNCTIONS: [&std::ffi::CStr; 2] = [c"ip_vs_genl_set_cmd", c"do_ip_vs_set_ctl"];
const MODULE: &str = "/sys/module/ip_vs/refcnt";
/// Least time from one opening to the next, and time between two commands that only have to be counted.
const MINUTE: Duration = Duration::from_secs(60);
/// Longest time between two attempts where the counters never work.
const HOUR: Duration = Duration::from_secs(3600);

impl Commands {
    /// Notes that the kernel carried out so many commands of this process, by netlink.
    pub fn gave(&mut self, commands: usize) {
        if let Some(open) = &mut self.open {
            open.tally.own[0] += commands as u64;
        }
    }

    /// Returns whether others have given commands since the last call, which is some seconds ago. The first time the counters can be read, and
    /// whenever they had to be opened again, they may have. `knock` gives a command through each interface, which cannot change anything.
    pub fn count(&mut self, now: Instant, mut knock: impl FnMut()) -> Counted {
        if let Some(open) = &mut self.open {
            match open.others(now, &mut knock) {
                Ok(true) => return Counted::Some,
                Ok(false) => return Counted::None,
                Err(reason) => (self.open, self.reason) = (None, reason),
            }
        }
        match self.opening.take() {
            Some(opening) if opening.is_finished() => return self.opened(opening, now, &mut knock),
            Some(opening) => self.opening = Some(opening),
            None if self.open_at.is_some_and(|at| now < at) => return Counted::Not(self.reason.clone()),
            None => {
                // The module comes when it is spoken to.
                knock();
                match thread::Builder::new().name("kprobe".to_owned()).spawn(open) {
                    Ok(opening) => (self.opening, self.open_at) = (Some(opening), Some(now + MINUTE)),
                    Err(error) => return self.failed(error.to_string(), now),
                }
            }
        }
        Counted::NotYet
    }

    fn opened(&mut self, opening: JoinHandle<Opened>, now: Instant, knock: &mut impl FnMut()) -> Counted {
        let opened = opening.join().map_err(|_| "the thread that opens the counters ended".to_owned());
        match opened.and_then(|opened| Open::new(opened.map_err(|error| error.to_string())?, now, knock)) {
            Ok(open) => {
                (self.open, self.pause) = (Some(open), MINUTE);
                Counted::Some
            }
            Err(reason) => self.failed(reason, now),
        }
    }

    fn failed(&mut self, reason: String, now: Instant) -> Counted {
        self.open_at = Some(now + self.pause);
        self.pause = (self.pause * 2).min(HOUR);
        self.reason.clone_from(&reason);
        Counted::Not(reason)
    }
}

impl Open {
    fn new(counters: Counters, now: Instant, knock: &mut impl FnMut()) -> Result<Open, String> {
        let mut open = Open { counters, tally: Tally::default(), knock_at: now };
        open.others(now, knock).map(|_| open)
    }

    fn others(&mut self, now: Instant, knock: &mut impl FnMut()) -> Result<bool, String> {
        if now >= self.knock_at {
            self.knock_at = now + MINUTE;
            knock();
            self.tally.own.iter_mut().for_each(|own| *own += 1);
        }
        let is_gone = |module: &File| module.read_at(&mut [0; 32], 0).is_err();
        if self.counters.module.as_ref().is_some_and(is_gone) {
            return Err("the kernel module ip_vs was unloaded".to_owned());
        }
        let counted = self.counters.calls.read().map_err(|error| error.to_string())?;
        let counted: [u64; 2] =
            counted.try_into().map_err(|_| "the kernel does not count every function".to_owned())?;
        self.tally.others(counted).ok_or_else(|| "the kernel does not count every call of its functions".to_owned())
    }
}

impl Default for Commands {
    fn default() -> Commands {
        Commands { open: None, opening: None, open_at: None, pause: MINUTE, reason: String::new() }
    }
}

fn open() -> Opened {
    // Before the probes: what is unloaded in between is found to be gone.
    let module = File::open(MODULE).ok();
    let calls = CallCounter::open(&FUNCTIONS)?;
    if let Some(reason) = calls.fallback() {
        info!(%reason, "IPVS commands are counted by a probe for each processor, not by a BPF program");
    }
    Ok(Counters { calls, module })
}

impl Tally {
    /// Returns whether more was counted than we gave; `None` where it was less, so that the counter cannot be trusted.
    fn others(&mut self, counted: [u64; 2]) -> Option<bool> {
        let mut others = false;
        for ((seen, own), counted) in self.seen.iter_mut().zip(&mut self.own).zip(counted) {
            let expected = *seen + std::mem::take(own);
            if counted < expected {
                return None;
            }
            others |= counted > expected;
            *seen = counted;
        }
        Some(others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_beyond_our_own_are_somebodys_and_are_told_once() {
        let mut tally = Tally::default();
        assert_eq!(tally.others([0, 0]), Some(false), "nobody has done anything");
        tally.own = [1000, 0];
        assert_eq!(tally.others([1000, 0]), Some(false), "all of them were ours");
        assert_eq!(tally.others([1001, 0]), Some(true), "one by netlink");
        assert_eq!(tally.others([1001, 0]), Some(false));
        tally.own = [7, 0];
        assert_eq!(tally.others([1008, 2]), Some(true), "two by socket options, beside ours");
        assert_eq!(tally.others([1008, 2]), Some(false));
    }

    #[test]
    fn a_command_of_ours_that_was_not_counted_makes_the_counter_worthless() {
        let mut tally = Tally { seen: [5, 5], own: [1, 1] };
        assert_eq!(tally.others([5, 6]), None);
        let mut tally = Tally { seen: [5, 5], own: [1, 1] };
        assert_eq!(tally.others([9, 5]), None, "whatever others have done by the other interface");
    }

    #[test]
    fn a_kernel_that_refuses_is_asked_again_a_minute_later_and_then_ever_more_rarely() {
        // Nobody's command is counted here: the functions are not there, or the knocks do not reach them.
        let (mut commands, begun) = (Commands::default(), Instant::now());
        let (mut knocks, mut asked_at) = (0, Vec::new());
        for minute in 0..600 {
            let (before, now) = (knocks, begun + minute * MINUTE);
            let mut answer = Counted::NotYet;
            while answer == Counted::NotYet {
                answer = commands.count(now, || knocks += 1);
                thread::yield_now();
            }
            assert!(matches!(answer, Counted::Not(_)), "{answer:?}");
            if knocks > before {
                asked_at.push(minute);
            }
        }
        assert_eq!(asked_at, [0, 1, 3, 7, 15, 31, 63, 123, 183, 243, 303, 363, 423, 483, 543]);
    }
}
