//! Writes of the allocator: one for each Service whose status is not as decided, and what follows from their outcomes.
//!
//! A write is begun once for each decision. One that failed, and one that somebody else undid, is tried again later and later.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use compact_str::CompactString;

use super::allocator::{Allocator, Entry, FIRST_PAUSE, LAST_PAUSE, MENDED, Rank};
use super::decide::{class_of, has_exclusive_class};
use super::queue::Lane;
use crate::model::{BalancedService, ObjectName};

/// A write of the addresses in the status of one Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Write {
    pub service: ObjectName,
    /// The resourceVersion that the write is for: it must have no effect on any other.
    pub version: CompactString,
    pub addresses: Vec<IpAddr>,
    /// Those of them that are given by the decision; the others are another allocator's, and stay.
    pub given: Vec<IpAddr>,
}

/// The outcome of a write.
#[derive(Clone, PartialEq, Debug)]
pub enum Outcome {
    /// It has taken effect, and the Service is so now.
    Written(Arc<BalancedService>),
    /// It was not tried, because the Service is another version by now.
    Newer(Arc<BalancedService>),
    /// The API server had another version (409) or none (404), or refused; it has no effect. That a Service is gone, the watch and the list say.
    Refused,
    /// The right to write it is missing (403).
    Forbidden,
    /// No answer: it may have taken effect, or do so yet.
    Unknown,
}

/// For so long after its end a write without an answer may still take effect: the API server gives up a request after the time that it
/// names, which is shorter.
pub const LINGER: Duration = Duration::from_secs(10);

impl Allocator {
    /// Writes that are due, at most so many, where nothing is known to forbid them. Each has an outcome to be reported by [`Allocator::finish`].
    pub fn next_writes(&mut self, now: Instant, most: usize) -> Vec<Write> {
        let mut writes = Vec::new();
        while writes.len() < most {
            let Some(rank) = self.is_ready().then(|| self.due.pop(Lane::Fast, now)).flatten() else { break };
            writes.extend(self.begin(&rank));
        }
        writes
    }

    /// A write that is due in a namespace in which the last one was forbidden.
    pub fn next_slow_write(&mut self, now: Instant) -> Option<Write> {
        while self.is_ready() {
            let rank = self.due.pop(Lane::Slow, now)?;
            if let Some(write) = self.begin(&rank) {
                return Some(write);
            }
        }
        None
    }

    /// Begins the write of a Service that was due, unless its status is right by now.
    fn begin(&mut self, (_, name): &Rank) -> Option<Write> {
        self.services.get_mut(name)?.due = None;
        let addresses = self.services.get(name).and_then(|entry| self.desired(entry))?;
        self.change(name, |entry| {
            entry.in_flight = Some(entry.service.version.clone());
            let is_new: Vec<IpAddr> =
                addresses.iter().filter(|address| !entry.sent.contains(address)).copied().collect();
            entry.sent.extend(is_new);
        });
        let entry = self.services.get(name)?;
        let given = addresses.iter().filter(|address| entry.given.contains(address)).copied().collect();
        let version = entry.service.version.clone();
        Some(Write { version, service: name.clone(), addresses, given })
    }

    /// Notes the outcome of a write. Of one for a Service that was made anew meanwhile under its name, only what was seen of that counts.
    pub fn finish(&mut self, write: &Write, outcome: Outcome, now: Instant) {
        let name = &write.service;
        let in_flight = self.services.get_mut(name).map(|entry| &mut entry.in_flight);
        let is_its_own =
            in_flight.is_some_and(|version| version.take_if(|version| *version == write.version).is_some());
        match outcome {
            Outcome::Forbidden => self.due.forbid(&name.namespace),
            Outcome::Written(_) => self.due.allow(&name.namespace),
            _ => {}
        }
        match outcome {
            Outcome::Written(service) | Outcome::Newer(service) if !is_its_own => {
                // Of a Service that was seen to be gone nothing is taken from an answer that is late: one made anew is seen by the watch.
                if self.services.contains_key(name) {
                    self.observe(name.clone(), service, now);
                }
            }
            Outcome::Refused | Outcome::Forbidden | Outcome::Unknown if !is_its_own => return,
            Outcome::Written(service) => {
                if let Some(entry) = self.services.get_mut(name) {
                    // Whoever undoes it does so sooner.
                    let stood = |written: Instant| now.saturating_duration_since(written) > 2 * LAST_PAUSE;
                    let is_undone = |(written, addresses): &(Instant, Vec<IpAddr>)| {
                        *addresses == write.addresses && !stood(*written)
                    };
                    if !entry.written.as_ref().is_some_and(is_undone) {
                        entry.pause = FIRST_PAUSE;
                    }
                    (entry.written, entry.failed) = (Some((now, write.addresses.clone())), None);
                }
                self.observe(name.clone(), service, now);
            }
            Outcome::Newer(service) => {
                self.observe(name.clone(), service, now);
                // The API server has an older version than is known: its store was set back. It would be asked again without end.
                if self.services.get(name).is_some_and(|entry| entry.service.version == write.version) {
                    self.has_had_no_effect(write, now);
                }
            }
            Outcome::Refused | Outcome::Forbidden => self.has_had_no_effect(write, now),
            Outcome::Unknown => {
                self.put_off(write, now);
                self.expire_at(name, now + LINGER);
            }
        }
        self.schedule(name, now);
    }

    /// Forgets what the last write of a Service asked for, and tries it again later.
    fn has_had_no_effect(&mut self, write: &Write, now: Instant) {
        self.put_off(write, now);
        // Of an earlier one for the same version the outcome may be unknown yet.
        self.change(&write.service, |entry| {
            if entry.expires.is_none() {
                entry.sent.clear();
            }
        });
        self.settle(now);
    }

    /// Forgets writes that cannot take effect any more.
    pub fn tick(&mut self, now: Instant) {
        while self.expiring.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, name)) = self.expiring.pop_first() else { break };
            self.change(&name, |entry| {
                entry.expires = None;
                if entry.in_flight.is_none() {
                    entry.sent.clear();
                }
            });
        }
        self.settle(now);
    }

    /// The next time at which there is something to do without anything happening.
    pub fn next_time(&self) -> Option<Instant> {
        let due = self.due.first(Lane::Fast).filter(|_| self.is_ready());
        due.into_iter().chain(self.expiring.first().map(|(at, _)| *at)).min()
    }

    /// The next time at which [`Allocator::next_slow_write`] has something.
    pub fn next_slow_time(&self) -> Option<Instant> {
        self.due.first(Lane::Slow).filter(|_| self.is_ready())
    }

    /// Returns whether the status of a Service is still to be written.
    pub fn is_to_be_written(&self, name: &ObjectName) -> bool {
        self.services.get(name).is_some_and(|entry| self.desired(entry).is_some())
    }

    /// Returns whether any write is on its way.
    pub fn is_writing(&self) -> bool {
        self.services.values().any(|entry| entry.in_flight.is_some())
    }

    /// Plans the write of a Service whose status is not as decided, or none.
    pub(super) fn schedule(&mut self, name: &ObjectName, now: Instant) {
        let Some(entry) = self.services.get(name) else { return };
        if entry.in_flight.is_some() {
            return;
        }
        let Some(desired) = self.desired(entry) else { return self.unschedule(name) };
        self.bring_forward(name, &desired, now);
        let Some(entry) = self.services.get(name) else { return };
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
        self.due.insert(at, rank);
    }

    pub(super) fn unschedule(&mut self, name: &ObjectName) {
        let Some(entry) = self.services.get_mut(name) else { return };
        let rank = entry.rank(name);
        if let Some(at) = entry.due.take() {
            self.due.remove(at, rank);
        }
    }

    /// Plans a write that failed for later.
    fn put_off(&mut self, write: &Write, now: Instant) {
        let name = &write.service;
        self.unschedule(name);
        let Some(entry) = self.services.get_mut(name) else { return };
        let at = now + entry.pause;
        entry.pause = (entry.pause * 2).min(LAST_PAUSE);
        entry.due = Some(at);
        entry.failed = Some((now, write.version.clone(), write.addresses.clone()));
        let rank = entry.rank(name);
        self.due.insert(at, rank);
    }

    /// Has a write that failed tried again soon where the Service has changed since, or is to have other addresses: that may have mended it. Its pauses stay as
    /// long as they have become, and it waits for a part of one: a Service may change each second, and what is wrong with its write stay.
    fn bring_forward(&mut self, name: &ObjectName, desired: &[IpAddr], now: Instant) {
        let Some(entry) = self.services.get(name) else { return };
        let Some((at, version, addresses)) = &entry.failed else { return };
        let at = now.max(*at + FIRST_PAUSE.max(entry.pause / MENDED));
        let is_as_it_was = *version == entry.service.version && addresses == desired;
        if is_as_it_was || entry.due.is_none_or(|due| due <= at) {
            return;
        }
        let rank = entry.rank(name);
        self.unschedule(name);
        let Some(entry) = self.services.get_mut(name) else { return };
        (entry.due, entry.failed) = (Some(at), None);
        self.due.insert(at, rank);
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
    pub(super) fn desired(&self, entry: &Entry) -> Option<Vec<IpAddr>> {
        let service = &entry.service;
        let is_ours = class_of(service, self.takes_default()).is_some();
        let is_to_stay = |address: &&IpAddr| !entry.to_clear.contains(address);
        let others =
            service.status.iter().filter(|address| is_to_stay(address) && !self.is_of_pools(**address)).copied();
        let desired: Vec<IpAddr> = match (is_ours, service.is_balancer) {
            (true, _) if has_exclusive_class(service) => entry.given.clone(),
            // Without a class it may be another allocator's too.
            (true, _) => {
                let others = others.filter(|address| !entry.given.contains(address));
                entry.given.iter().copied().chain(others).collect()
            }
            // Of another class: what it has is another allocator's, but for what it was given before it got that class.
            (false, true) => service.status.iter().filter(is_to_stay).copied().collect(),
            // It is no load balancer any more.
            (false, false) => others.collect(),
        };
        let has = |address: &IpAddr| service.status.contains(address);
        let is_unserved = is_ours && entry.given.iter().any(|address| service.not_served.contains(address));
        let is_right = desired.len() == service.status.len() && desired.iter().all(has) && !is_unserved;
        (!is_right).then_some(desired)
    }
}
