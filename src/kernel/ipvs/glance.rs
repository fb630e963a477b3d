//! Cheap detection of changes of virtual services by others.
//!
//! IPv4: the older interface reports every property of every service and its number of destinations, in one system
//! call. IPv6: the kernel counts each service of the host, of any family and namespace, as a user of its module
//! (`/sys/module/ip_vs/refcnt`). Only when that number has changed by something else than what is seen of ours are
//! services listed. It is not there where IPVS is built in: then they are listed each time.
//!
//! Not seen at a glance: a destination that was exchanged for another or changed, and those of IPv6 services. The older
//! interface also compares the destinations of one IPv4 service, for a small part of what listing them costs.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Bound;

use foldhash::quality::RandomState;
use rustix::io::Errno;

use super::old_interface::{OldInterface, Summary, part};
use super::{Destinations, ServiceKey, Virtual};
use crate::net::Family;
use crate::reconcile::Sorted;

/// State between two glances.
#[derive(Debug)]
pub struct Glancer {
    /// Absent where no socket of IPv4 can be opened.
    old: Option<OldInterface>,
    /// The users of the module that are not ours, when services were listed last.
    others: Option<u64>,
    spread: RandomState,
    /// Fingerprint that the IPv4 services have if they are what is seen: of a listing in which nothing differed, and of what we have changed since.
    alike: Option<u64>,
    /// There were services of others in that listing.
    has_others: bool,
}

/// No kernel has so many services.
const NEVER: u64 = u64::MAX;
const USERS: &str = "/sys/module/ip_vs/refcnt";

impl Glancer {
    /// Opens a socket in the network namespace of the calling thread.
    pub fn open() -> Glancer {
        Glancer {
            old: OldInterface::open().ok(),
            others: None,
            spread: RandomState::default(),
            alike: None,
            has_others: false,
        }
    }

    /// The IPv4 services that differ from what was seen. `None` where the kernel does not answer. A listing in which nothing differed before, or that differs
    /// from such a one by what we have changed, is not compared: at 10,000 Services that would take longer than a change may wait.
    pub fn unlike_ipv4(
        &mut self,
        seen: &impl Sorted<ServiceKey, Virtual>,
        ours: impl Fn(&ServiceKey) -> bool,
    ) -> Option<Vec<ServiceKey>> {
        let listing = self.old.as_ref()?.services().ok()?;
        let fingerprint = listing.fingerprint(&self.spread);
        if self.alike == Some(fingerprint) {
            return Some(Vec::new());
        }
        let summaries = listing.summaries();
        let count = summaries.len();
        let (suspects, known) = unlike(summaries, seen, ours);
        self.alike = suspects.is_empty().then_some(fingerprint);
        self.has_others = count != known;
        Some(suspects)
    }

    /// Takes note of what we have changed in a service, without any failure.
    pub fn changed(&mut self, key: &ServiceKey, former: Option<&Virtual>, present: Option<&Virtual>) {
        let part = |described: Option<&Virtual>| described.map_or(0, |described| part(key, described, &self.spread));
        self.alike = self.alike.map(|alike| alike.wrapping_sub(part(former)).wrapping_add(part(present)));
    }

    /// Has the next glance compare everything if there may be services that were others' and are ours now. Those that are seen stay ours.
    pub fn ownership_changes(&mut self) {
        if self.has_others {
            self.alike = None;
        }
    }

    /// Has the next glance compare everything: what is seen may be something else now.
    pub fn compare_anew(&mut self) {
        self.alike = None;
    }

    /// Returns whether a service has exactly these destinations. `None` where the older interface does not answer that.
    pub fn has(&self, key: &ServiceKey, known: &Destinations) -> Option<bool> {
        if key.family() != Family::V4 || !known.are_ipv4() {
            return None;
        }
        match self.old.as_ref()?.has(key, known) {
            Ok(has) => Some(has),
            Err(Errno::SRCH) => Some(false),
            Err(_) => None,
        }
    }

    /// Returns whether IPv6 services have to be listed: there are some, and the number of services on this host has
    /// changed by something else than those that are seen to be ours, since the last call.
    pub fn must_list_ipv6(&mut self, seen: &impl Sorted<ServiceKey, Virtual>) -> bool {
        let mut from_ipv6 = seen.between((Bound::Included(ServiceKey::first_of_ipv6()), Bound::Unbounded));
        if !from_ipv6.any(|(key, _)| key.family() == Family::V6) {
            return false;
        }
        let users = fs::read_to_string(USERS).ok().and_then(|text| text.trim().parse::<u64>().ok());
        let others = users.map(|users| users.wrapping_sub(seen.count() as u64));
        // The first seen state has just been read.
        let same = others.is_some() && self.others.is_none_or(|last| Some(last) == others);
        self.others = others;
        !same
    }

    /// Gives a command that the kernel refuses, to see that it is counted.
    pub fn knock(&self) {
        if let Some(old) = &self.old {
            old.knock();
        }
    }

    /// Has services listed the next time, whatever their number.
    pub fn forget(&mut self) {
        self.others = Some(NEVER);
    }
}

/// Returns the services that differ, and how many of those found are ours.
fn unlike(
    mut found: Vec<Summary>,
    seen: &impl Sorted<ServiceKey, Virtual>,
    ours: impl Fn(&ServiceKey) -> bool,
) -> (Vec<ServiceKey>, usize) {
    found.retain(|summary| ours(&summary.key));
    found.sort_unstable_by_key(|summary| summary.key);
    let count = found.len();
    let mut found = found.into_iter().peekable();
    let mut suspects = Vec::new();
    for (key, known) in seen.entries().filter(|(key, _)| key.family() == Family::V4) {
        while let Some(unknown) = found.next_if(|summary| summary.key < *key) {
            suspects.push(unknown.key);
        }
        let is_same = found.next_if(|summary| summary.key == *key).is_some_and(|summary| {
            summary.service == known.service && summary.destinations == known.destinations.len()
        });
        suspects.extend((!is_same).then_some(*key));
    }
    suspects.extend(found.map(|summary| summary.key));
    (suspects, count)
}

/// The IPv6 services that are only seen, or only listed.
pub fn unlike_ipv6(seen: &impl Sorted<ServiceKey, Virtual>, listed: &BTreeSet<ServiceKey>) -> Vec<ServiceKey> {
    let is_ipv6 = |key: &&ServiceKey| key.family() == Family::V6;
    let gone = seen.entries().map(|(key, _)| key).filter(is_ipv6).filter(|key| !listed.contains(key));
    let new = listed.iter().filter(is_ipv6).filter(|key| seen.value(key).is_none());
    gone.chain(new).copied().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_kernel_that_does_not_answer_has_shown_nothing() {
        let mut glancer = Glancer { old: None, ..Glancer::open() };
        assert_eq!(glancer.unlike_ipv4(&BTreeMap::new(), |_| true), None);
    }
}
