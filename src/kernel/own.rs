//! Recognising notifications that our own changes caused.
//!
//! A notification carries the port of the socket whose request caused it. Every socket of ours is listed here
//! while it is open, and the last programs that we started, whose sockets have their process number as port.
//! Without this list every change of ours would look like somebody's, and be followed by a reading. Notifications of our own routes, of which
//! there may be thousands at once, the monitor does not even receive.
//!
//! Numbers of ports belong to a network namespace, and sockets in pods' namespaces are listed too: a number counts as often as it is open. The first socket
//! of a process in a namespace has the process's number in its own PID namespace for a port, so in the host's namespace another container's may have the
//! number that ours has in a pod's: what is not even received is that of ports in the listener's own.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::process::Child;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::netlink::Bus;

/// How many sockets are open with a number, by the cookie of their network namespace; `None` before Linux 5.14, where none is told.
type Open = BTreeMap<Option<u64>, usize>;

static PORTS: Mutex<BTreeMap<(Bus, u32), Open>> = Mutex::new(BTreeMap::new());
static PROGRAMS: Mutex<VecDeque<u32>> = Mutex::new(VecDeque::new());

/// Programs are few and short, and their notifications are read at once; some room for a thread that has to wait for a
/// processor.
const MOST_PROGRAMS: usize = 64;

/// The port of an open socket of ours.
#[derive(Debug)]
pub(super) struct Port {
    bus: Bus,
    number: u32,
    namespace: Option<u64>,
}

impl Port {
    /// `namespace`: the cookie of the socket's network namespace.
    pub fn new(bus: Bus, number: u32, namespace: Option<u64>) -> Port {
        *lock(&PORTS).entry((bus, number)).or_default().entry(namespace).or_default() += 1;
        Port { bus, number, namespace }
    }

    pub fn number(&self) -> u32 {
        self.number
    }

    pub fn namespace(&self) -> Option<u64> {
        self.namespace
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        let mut ports = lock(&PORTS);
        let Some(open) = ports.get_mut(&(self.bus, self.number)) else { return };
        if let Some(count) = open.get_mut(&self.namespace) {
            *count -= 1;
            open.retain(|_, count| *count > 0);
        }
        if open.is_empty() {
            ports.remove(&(self.bus, self.number));
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

/// Returns the ports of all open sockets of ours on a bus in a network namespace, by its cookie, in order.
pub(super) fn ports(bus: Bus, namespace: Option<u64>) -> Vec<u32> {
    let ports = lock(&PORTS);
    let here = ports.iter().filter(|((of, _), open)| *of == bus && open.contains_key(&namespace));
    here.map(|((_, port), _)| *port).collect()
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
        let host = Port::new(Bus::Route, NUMBER, Some(1));
        drop(Port::new(Bus::Route, NUMBER, Some(2)));
        assert!(is_own(Bus::Route, NUMBER), "the host's is open still");
        drop(host);
        assert!(!is_own(Bus::Route, NUMBER));
    }

    #[test]
    fn a_number_that_is_open_in_a_pods_namespace_alone_may_be_somebody_elses_in_the_hosts() {
        const NUMBER: u32 = u32::MAX - 8;
        let _pod = Port::new(Bus::Route, NUMBER, Some(u64::MAX - 2));
        assert!(ports(Bus::Route, Some(u64::MAX - 2)).contains(&NUMBER));
        assert!(!ports(Bus::Route, Some(u64::MAX - 1)).contains(&NUMBER));
    }
}
