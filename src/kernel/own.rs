//! Which notifications are echoes of our own acts.
//!
//! A notification carries the port of the socket whose request caused it. Every socket of ours is listed here
//! while it is open, and the last programs that we started, whose sockets have their process number as port.
//! Without this list every change of ours would look like somebody's, and be followed by a reading.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::netlink::Bus;

static PORTS: Mutex<BTreeSet<(Bus, u32)>> = Mutex::new(BTreeSet::new());
static PROGRAMS: Mutex<VecDeque<u32>> = Mutex::new(VecDeque::new());

/// Programs are few and short; their notifications are read at once.
const MOST_PROGRAMS: usize = 16;

/// The port of an open socket of ours.
#[derive(Debug)]
pub(super) struct Port {
    bus: Bus,
    number: u32,
}

impl Port {
    pub fn new(bus: Bus, number: u32) -> Port {
        lock(&PORTS).insert((bus, number));
        Port { bus, number }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        lock(&PORTS).remove(&(self.bus, self.number));
    }
}

/// Notes that we started this program.
pub(super) fn note_program(process: u32) {
    let mut programs = lock(&PROGRAMS);
    programs.push_back(process);
    if programs.len() > MOST_PROGRAMS {
        programs.pop_front();
    }
}

/// True when a notification with this port was caused by us.
pub(super) fn is_own(bus: Bus, port: u32) -> bool {
    lock(&PORTS).contains(&(bus, port)) || (bus == Bus::Netfilter && lock(&PROGRAMS).contains(&port))
}

/// A panic elsewhere leaves these lists whole.
fn lock<T>(list: &Mutex<T>) -> MutexGuard<'_, T> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}
