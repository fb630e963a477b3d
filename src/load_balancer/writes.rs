//! Writes of the allocator: one for each Service whose status is not as decided, and what follows from their outcomes.
//!
//! A write is begun once for each decision. One that failed, and one that somebody else undid, is tried again later and later.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use compact_str::CompactString;

use super::allocator::{Allocator, Entry, FIRST_PAUSE, LAST_PAUSE};
use super::decide::{class_of, has_exclusive_class};
use crate::model::{BalancedService, ObjectName};

/// A write of the addresses in the status of one Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Write {
    pub service: ObjectName,
    /// The resourceVersion that the write is for: it must have no effect on any other.
    pub version: CompactString,
    pub addresses: Vec<IpAddr>,
}

/// The outcome of a write.
#[derive(Clone, PartialEq, Debug)]
pub enum Outcome {
    /// It has taken effect, and the Service is so now.
    Written(Arc<BalancedService>),
    /// It was not tried, because the Service is another version by now.
    Newer(Arc<BalancedService>),
    /// There is no such Service.
    Gone,
    /// The API server had another version (409), or refused; it has no effect.
    Refused,
    /// No answer: it may have taken effect, or do so yet.
    Unknown,
}

/// For so long after its end a write without an answer may still take effect: the API server gives up a request after the time that it
/// names, which is shorter.
pub const LINGER: Duration = Duration::from_secs(10);

impl Allocator {
    /// Writes that are due, at most so many. Each has an outcome to be reported by [`Allocator::finish`].
    pub fn next_writes(&mut self, now: Instant, most: usize) -> Vec<Write> {
        let mut writes = Vec::new();
        while self.is_ready() && writes.len() < most {
            let Some((due, _)) = self.due.first() else { break };
            if *due > now {
                break;
            }
            let Some((_, (_, name))) = self.due.pop_first() else { break };
            if let Some(entry) = self.services.get_mut(&name) {
                entry.due = None;
            }
            let desired = self.services.get(&name).and_then(|entry| self.desired(entry));
            let Some(addresses) = desired else { continue };
            self.change(&name, |entry| {
                entry.is_in_flight = true;
                let is_new: Vec<IpAddr> =
                    addresses.iter().filter(|address| !entry.sent.contains(address)).copied().collect();
                entry.sent.extend(is_new);
            });
            let Some(entry) = self.services.get(&name) else { continue };
            writes.push(Write { version: entry.service.version.clone(), service: name, addresses });
        }
        writes
    }

    /// Notes the outcome of a write.
    pub fn finish(&mut self, write: &Write, outcome: Outcome, now: Instant) {
        let name = &write.service;
        if let Some(entry) = self.services.get_mut(name) {
            entry.is_in_flight = false;
        }
        match outcome {
            Outcome::Written(service) => {
                if let Some(entry) = self.services.get_mut(name) {
                    if entry.written.as_ref().is_none_or(|(_, addresses)| *addresses != write.addresses) {
                        entry.pause = FIRST_PAUSE;
                    }
                    entry.written = Some((now, write.addresses.clone()));
                }
                self.observe(name.clone(), service, now);
            }
            Outcome::Newer(service) => self.observe(name.clone(), service, now),
            Outcome::Gone => self.gone(name, &write.version, now),
            Outcome::Refused => {
                self.put_off(name, now);
                // Of an earlier one for the same version the outcome may be unknown yet.
                self.change(name, |entry| {
                    if entry.expires.is_none() {
                        entry.sent.clear();
                    }
                });
                self.settle(now);
            }
            Outcome::Unknown => {
                self.put_off(name, now);
                self.expire_at(name, now + LINGER);
            }
        }
        self.schedule(name, now);
    }

    /// Forgets writes that cannot take effect any more.
    pub fn tick(&mut self, now: Instant) {
        while self.expiring.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, name)) = self.expiring.pop_first() else { break };
            self.change(&name, |entry| {
                entry.expires = None;
                if !entry.is_in_flight {
                    entry.sent.clear();
                }
            });
        }
        self.settle(now);
    }

    /// The next time at which there is something to do without anything happening.
    pub fn next_time(&self) -> Option<Instant> {
        let due = self.due.first().map(|(at, _)| *at).filter(|_| self.is_ready());
        due.into_iter().chain(self.expiring.first().map(|(at, _)| *at)).min()
    }

    /// Returns whether any write is on its way.
    pub fn is_writing(&self) -> bool {
        self.services.values().any(|entry| entry.is_in_flight)
    }

    /// Plans the write of a Service whose status is not as decided, or none.
    pub(super) fn schedule(&mut self, name: &ObjectName, now: Instant) {
        let Some(entry) = self.services.get(name) else { return };
        if entry.is_in_flight {
            return;
        }
        let Some(desired) = self.desired(entry) else { return self.unschedule(name) };
        let rank = entry.rank(name);
        let Some(entry) = self.services.get_mut(name).filter(|entry| entry.due.is_none()) else { return };
        // What was written before and is there no more was undone by somebody.
        let undone = entry.written.as_ref().filter(|(_, addresses)| *addresses == desired);
        let at = match undone {
            None => now,
            Some((written, _)) => {
                let at = now.max(*written + entry.pause);
                entry.pause = (entry.pause * 2).min(LAST_PAUSE);
                at
            }
        };
        entry.due = Some(at);
        self.due.insert((at, rank));
    }

    pub(super) fn unschedule(&mut self, name: &ObjectName) {
        let Some(entry) = self.services.get_mut(name) else { return };
        let rank = entry.rank(name);
        if let Some(at) = entry.due.take() {
            self.due.remove(&(at, rank));
        }
    }

    /// Plans a write that failed for later.
    fn put_off(&mut self, name: &ObjectName, now: Instant) {
        self.unschedule(name);
        let Some(entry) = self.services.get_mut(name) else { return };
        let at = now + entry.pause;
        entry.pause = (entry.pause * 2).min(LAST_PAUSE);
        entry.due = Some(at);
        let rank = entry.rank(name);
        self.due.insert((at, rank));
    }

    fn expire_at(&mut self, name: &ObjectName, at: Instant) {
        self.stop_expiring(name);
        if let Some(entry) = self.services.get_mut(name) {
            entry.expires = Some(at);
            self.expiring.insert((at, name.clone()));
        }
    }

    pub(super) fn stop_expiring(&mut self, name: &ObjectName) {
        let expires = self.services.get_mut(name).and_then(|entry| entry.expires.take());
        if let Some(at) = expires {
            self.expiring.remove(&(at, name.clone()));
        }
    }

    /// The addresses that a status should have; `None` where it has them, or is no concern of ours.
    fn desired(&self, entry: &Entry) -> Option<Vec<IpAddr>> {
        let service = &entry.service;
        let is_ours = class_of(service, self.takes_default()).is_some();
        let others = service.status.iter().filter(|address| !self.is_of_pools(**address)).copied();
        let desired: Vec<IpAddr> = match (is_ours, service.is_balancer) {
            (true, _) if has_exclusive_class(service) => entry.given.clone(),
            // Without a class it may be another allocator's too.
            (true, _) => {
                let others = others.filter(|address| !entry.given.contains(address));
                entry.given.iter().copied().chain(others).collect()
            }
            // Of another class: what it has is another allocator's.
            (false, true) => return None,
            // It is no load balancer any more.
            (false, false) => others.collect(),
        };
        let has = |address: &IpAddr| service.status.contains(address);
        let is_right = desired.len() == service.status.len() && desired.iter().all(has);
        (!is_right).then_some(desired)
    }
}
