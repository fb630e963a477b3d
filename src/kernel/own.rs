//! Recognising notifications that our own changes caused.
//!
//! A notification carries the port of the socket whose request caused it. Every socket of ours is listed here
//! while it is open, and the last programs that we started, whose sockets have their process number as port.
//! Without this list every change of ours would look like somebody's, and be followed by a reading. Notifications of our own routes, of which
//! there may be thousands at once, the monitor does not even receive.
//!
//! Numbers of ports belong to a network namespace, and sockets in pods' namespaces are listed too: a number counts as often as it is open.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::process::Child;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::netlink::Bus;

static PORTS: Mutex<BTreeMap<(Bus, u32), usize>> = Mutex::new(BTreeMap::new());
static PROGRAMS: Mutex<VecDeque<u32>> = Mutex::new(VecDeque::new());

/// Programs are few and short, and their notifications are read at once; some room for a thread that has to wait for a
/// processor.
const MOST_PROGRAMS: usize = 64;

/// The port of an open socket of ours.
#[derive(Debug)]
pub(super) struct Port {
    bus: Bus,
    number: u32,
}

impl Port {
    pub fn new(bus: Bus, number: u32) -> Port {
        *lock(&PORTS).entry((bus, number)).or_default() += 1;
        Port { bus, number }
    }

    pub fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        let mut ports = lock(&PORTS);
        if let Some(open) = ports.get_mut(&(self.bus, self.number)) {
            *open -= 1;
            if *open == 0 {
                ports.remove(&(self.bus, self.number));
            }
        }
    }
}

/// Starts a program and notes it as ours. Whoever asks meanwhile waits, so that no program is taken for somebody's because
/// it was quicker than we are.
pub(super) fn start_program(start: impl FnOnce() -> io::Result<Child>) -> io::Result<Child> {
    let mut programs = lock(&PROGRAMS);
    let child = start()?;
    programs.push_back(child.id());
    if programs.len() > MOST_PROGRAMS {
        programs.pop_front();
    }
    Ok(child)
}

/// Returns whether we caused a notification with this port.
pub(super) fn is_own(bus: Bus, port: u32) -> bool {
    lock(&PORTS).contains_key(&(bus, port)) || (bus == Bus::Netfilter && lock(&PROGRAMS).contains(&port))
}

/// Returns the ports of all open sockets of ours on a bus, in order.
pub(super) fn ports(bus: Bus) -> Vec<u32> {
    lock(&PORTS).keys().filter(|(of, _)| *of == bus).map(|(_, port)| *port).collect()
}

/// A panic elsewhere leaves these lists whole.
fn lock<T>(list: &Mutex<T>) -> MutexGuard<'_, T> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_open_in_two_namespaces_is_ours_until_both_are_closed() {
        const NUMBER: u32 = u32::MAX - 7;
        let host = Port::new(Bus::Route, NUMBER);
        drop(Port::new(Bus::Route, NUMBER));
        assert!(is_own(Bus::Route, NUMBER), "the host's is open still");
        drop(host);
        assert!(!is_own(Bus::Route, NUMBER));
    }
}
