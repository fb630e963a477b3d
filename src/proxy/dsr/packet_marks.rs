//! Marks of packets by which virtual services in tunnel mode are found: one for each address, protocol and port.
//!
//! The mark is kube-router's ([`service_mark`]). Where that is taken, or is 0, which the kernel takes for no mark, it is the next one of the same
//! key.
//!
//! Who has a mark keeps it as long as its port is in tunnel mode. Which mark a port asks for first everybody can calculate, so if age decided, whoever may create
//! Services could take the mark of another one, and end its connections, as often as they like. A start goes on with the marks that packets are given
//! ([`PacketMarks::adopt`]), also to ports of which no Service is known yet. A mark says something on its own node alone, so nodes need not agree.
//!
//! There are 16,382 marks, and a namespace has [`MOST_OF_A_NAMESPACE`] of them at most. Keys without one wait, those of older Services first.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use crate::kernel::ipvs::ServiceKey;
use crate::model::{NamespaceName, ObjectName};
use crate::net::service_mark::service_mark;

pub use crate::net::service_mark::MASK;

/// The mark of packets to an address that is served in tunnel mode at other ports. No virtual service has it.
pub const OTHER_PORTS: u32 = MASK;

/// Number of all marks.
const MARKS: usize = OTHER_PORTS as usize - 1;

/// Number of marks that the Services of one namespace may have.
pub const MOST_OF_A_NAMESPACE: usize = 1024;

/// Number of texts that are tried; behind them comes the next free number.
const TEXTS: u32 = 64;

/// The marks of all keys.
#[derive(Default, Debug)]
pub struct PacketMarks {
    keys: BTreeMap<ServiceKey, Allotment>,
    holders: BTreeMap<u32, ServiceKey>,
    /// Keys without a mark, by the namespace whose share they would be of. No empty sets.
    waiting: BTreeMap<NamespaceName, BTreeSet<(Seniority, ServiceKey)>>,
    /// Number of marks of each namespace.
    shares: BTreeMap<NamespaceName, usize>,
    /// The marks that packets to other keys are given: these hold them until everything is known.
    reserved: BTreeMap<ServiceKey, u32>,
}

/// When a Service was created, in seconds since 1970, and its name.
pub type Seniority = (i64, ObjectName);

#[derive(PartialEq, Eq, Debug)]
struct Allotment {
    seniority: Seniority,
    mark: Option<u32>,
}

/// A key whose mark has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moved {
    pub key: ServiceKey,
    pub before: Option<u32>,
    pub after: Option<u32>,
}

impl PacketMarks {
    /// Returns the mark of a key; `None` if it is not known, its namespace has as many as it may, or all are taken.
    pub fn of(&self, key: &ServiceKey) -> Option<u32> {
        self.keys.get(key)?.mark
    }

    /// Returns the key that has a mark.
    pub fn holder(&self, mark: u32) -> Option<ServiceKey> {
        self.holders.get(&mark).copied()
    }

    /// Returns whether any key has no mark.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Returns whether any of these keys is to have a mark, whether it has one or waits.
    pub fn asks_among(&self, keys: RangeInclusive<ServiceKey>) -> bool {
        self.keys.range(keys).next().is_some()
    }

    /// Returns the first and the last key that is to have a mark.
    pub fn ends(&self) -> [Option<&ServiceKey>; 2] {
        [self.keys.first_key_value(), self.keys.last_key_value()].map(|end| end.map(|(key, _)| key))
    }

    /// Returns whether a namespace has as many marks as it may.
    pub fn is_full(&self, namespace: &NamespaceName) -> bool {
        self.shares.get(namespace).is_some_and(|share| *share >= MOST_OF_A_NAMESPACE)
    }

    /// Returns whether a namespace has as many marks as it may if all that are kept for keys that are not known were its own.
    fn may_become_full(&self, namespace: &NamespaceName) -> bool {
        self.shares.get(namespace).copied().unwrap_or(0) + self.reserved.len() >= MOST_OF_A_NAMESPACE
    }

    /// Adds a key with the seniority of its Service, or removes it. Returns the keys whose marks have changed.
    pub fn put(&mut self, key: ServiceKey, seniority: Option<Seniority>) -> Vec<Moved> {
        let known = self.keys.get(&key);
        if known.map(|held| &held.seniority) == seniority.as_ref() {
            return Vec::new();
        }
        let Some(seniority) = seniority else { return self.remove(key) };
        let mark = known.and_then(|held| held.mark);
        if known.is_some() {
            self.take_back(key);
        }
        self.keys.insert(key, Allotment { seniority: seniority.clone(), mark: None });
        self.wait(seniority, key);
        if let Some(mark) = mark {
            self.give(key, mark);
            return self.next_chooses().into_iter().collect();
        }
        self.choose(key).into_iter().collect()
    }

    fn remove(&mut self, key: ServiceKey) -> Vec<Moved> {
        let mark = self.take_back(key);
        self.keys.remove(&key);
        moved(key, mark, None).into_iter().chain(mark.and_then(|_| self.next_chooses())).collect()
    }

    /// Lets all keys have the marks that packets to them are given, and others choose anew. Marks of keys that are not known stay theirs until
    /// [`release`](PacketMarks::release). Returns the keys whose marks have changed.
    pub fn adopt(&mut self, given: &BTreeMap<ServiceKey, u32>) -> Vec<Moved> {
        let before: Vec<(ServiceKey, Option<u32>)> = self.keys.iter().map(|(key, held)| (*key, held.mark)).collect();
        for (key, _) in &before {
            self.take_back(*key);
            if let Some(seniority) = self.keys.get(key).map(|held| held.seniority.clone()) {
                self.wait(seniority, *key);
            }
        }
        self.holders.clear();
        self.reserved.clear();
        for (key, mark) in given.iter().filter(|(_, mark)| is_mark(**mark)) {
            if !self.holders.contains_key(mark) {
                self.holders.insert(*mark, *key);
                self.reserved.insert(*key, *mark);
            }
        }
        let mut all: Vec<(Seniority, ServiceKey)> = self.waiting.values().flatten().cloned().collect();
        all.sort();
        for (_, key) in all {
            self.choose(key);
        }
        before.into_iter().filter_map(|(key, before)| moved(key, before, self.of(&key))).collect()
    }

    /// Gives back the marks of keys that are not known: everything is. Returns the keys whose marks have changed.
    pub fn release(&mut self) -> Vec<Moved> {
        for mark in std::mem::take(&mut self.reserved).into_values() {
            self.holders.remove(&mark);
        }
        std::iter::from_fn(|| self.next_chooses()).collect()
    }

    /// Lets the first key that waits and may have a mark choose one. Costs a look at each namespace that waits, and nothing while no mark is free.
    fn next_chooses(&mut self) -> Option<Moved> {
        if self.holders.len() >= MARKS {
            return None;
        }
        let may_choose = self.waiting.iter().filter(|(namespace, _)| !self.may_become_full(namespace));
        let (_, key) = may_choose.filter_map(|(_, its)| its.first()).min()?;
        self.choose(*key)
    }

    fn wait(&mut self, seniority: Seniority, key: ServiceKey) {
        self.waiting.entry(seniority.1.namespace.clone()).or_default().insert((seniority, key));
    }

    fn end_wait(&mut self, seniority: Seniority, key: ServiceKey) {
        let namespace = seniority.1.namespace.clone();
        let Some(its) = self.waiting.get_mut(&namespace) else { return };
        its.remove(&(seniority, key));
        if its.is_empty() {
            self.waiting.remove(&namespace);
        }
    }

    /// Gives a key that waits a mark: the one that packets to it are given, or one that is free, if it may have that.
    fn choose(&mut self, key: ServiceKey) -> Option<Moved> {
        let namespace = &self.keys.get(&key)?.seniority.1.namespace;
        let may_choose = !self.may_become_full(namespace) && self.holders.len() < MARKS;
        let free = || may_choose.then(|| choice(&key, &self.holders)).flatten();
        let mark = self.reserved.get(&key).copied().or_else(free)?;
        self.reserved.remove(&key);
        self.give(key, mark);
        moved(key, None, Some(mark))
    }

    fn give(&mut self, key: ServiceKey, mark: u32) {
        let Some(held) = self.keys.get_mut(&key) else { return };
        held.mark = Some(mark);
        let seniority = held.seniority.clone();
        *self.shares.entry(seniority.1.namespace.clone()).or_default() += 1;
        self.holders.insert(mark, key);
        self.end_wait(seniority, key);
    }

    /// Takes its mark, or its place among those that wait, from a key. Returns the mark.
    fn take_back(&mut self, key: ServiceKey) -> Option<u32> {
        let held = self.keys.get_mut(&key)?;
        let Some(mark) = held.mark.take() else {
            let seniority = held.seniority.clone();
            self.end_wait(seniority, key);
            return None;
        };
        let namespace = &held.seniority.1.namespace;
        if let Some(share) = self.shares.get_mut(namespace) {
            *share -= 1;
            if *share == 0 {
                self.shares.remove(namespace);
            }
        }
        self.holders.remove(&mark);
        Some(mark)
    }
}

fn moved(key: ServiceKey, before: Option<u32>, after: Option<u32>) -> Option<Moved> {
    (before != after).then_some(Moved { key, before, after })
}

/// Returns the marks that a key may have been given by a process that knew other keys: the first few. By these a process without memory knows
/// the virtual services of a key.
pub fn likely(key: &ServiceKey) -> impl Iterator<Item = u32> + use<> {
    const LIKELY: u32 = 4;
    let key = *key;
    (0..LIKELY).map(move |index| hashed(&key, index)).filter(|mark| is_mark(*mark))
}

fn choice(key: &ServiceKey, taken: &BTreeMap<u32, ServiceKey>) -> Option<u32> {
    let is_free = |mark: &u32| is_mark(*mark) && !taken.contains_key(mark);
    let by_text = || (0..TEXTS).map(|index| hashed(key, index)).find(is_free);
    let first = hashed(key, 0);
    let next = || (1..=MASK).map(|behind| (first + behind) & MASK).find(is_free);
    by_text().or_else(next)
}

fn is_mark(mark: u32) -> bool {
    (1..OTHER_PORTS).contains(&mark)
}

/// Returns the mark of a key at this attempt; 0, which is none, for a key that is a mark itself.
fn hashed(key: &ServiceKey, attempt: u32) -> u32 {
    match *key {
        ServiceKey::Address { address, protocol, port } => service_mark(address, protocol, port, attempt),
        ServiceKey::Mark { .. } => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::net::Protocol;

    fn key(address: &str, protocol: Protocol, port: u16) -> ServiceKey {
        ServiceKey::Address { address: address.parse().expect("an address"), protocol, port }
    }

    fn service(created: i64, name: &str) -> Option<Seniority> {
        Some((created, ObjectName::new("shop", name)))
    }

    fn waiting(marks: &PacketMarks) -> usize {
        marks.waiting.values().map(BTreeSet::len).sum()
    }

    /// Two keys with one first choice.
    const COLLIDING: [(&str, Protocol, u16); 2] =
        [("147.160.180.44", Protocol::Tcp, 8080), ("147.160.180.44", Protocol::Udp, 80)];

    #[test]
    fn marks_are_those_of_running_nodes() {
        let mut marks = PacketMarks::default();
        for (address, port, expected) in [("10.0.0.1", 80, 13766), ("2001:db8::1", 443, 9129)] {
            let key = key(address, Protocol::Tcp, port);
            assert_eq!(marks.put(key, service(0, "web")), [Moved { key, before: None, after: Some(expected) }]);
            assert_eq!((marks.of(&key), marks.holder(expected)), (Some(expected), Some(key)));
        }
    }

    #[test]
    fn a_start_takes_no_mark_away_where_a_namespace_has_all_that_it_may() {
        let port = |number: usize| key("203.0.113.1", Protocol::Tcp, 1000 + number as u16);
        let name = |number: usize| format!("s-{number:04}");
        let mut before = PacketMarks::default();
        // The holders have later names than the one that waits.
        for number in (1..=MOST_OF_A_NAMESPACE).chain([0]) {
            before.put(port(number), service(0, &name(number)));
        }
        assert_eq!((before.of(&port(0)), waiting(&before)), (None, 1));
        let given = (1..=MOST_OF_A_NAMESPACE).filter_map(|number| Some((port(number), before.of(&port(number))?)));
        let given: BTreeMap<ServiceKey, u32> = given.collect();

        let mut after = PacketMarks::default();
        after.adopt(&given);
        for number in 0..=MOST_OF_A_NAMESPACE {
            after.put(port(number), service(0, &name(number)));
        }
        after.release();
        assert!(given.iter().all(|(key, mark)| after.of(key) == Some(*mark)), "who has a mark keeps it");
        assert_eq!(after.of(&port(0)), None);
    }

    #[test]
    fn no_virtual_service_has_mark_0() {
        let mut marks = PacketMarks::default();
        let unlucky = key("10.255.14.19", Protocol::Tcp, 80);
        assert_eq!(hashed(&unlucky, 0), 0);
        marks.put(unlucky, service(0, "web"));
        assert_eq!(marks.of(&unlucky), Some(hashed(&unlucky, 1)));
        assert!(likely(&unlucky).all(|mark| mark != 0));
    }

    #[test]
    fn of_two_keys_with_one_mark_the_first_keeps_it_however_old_the_other_is() {
        let [one, other] = COLLIDING.map(|(address, protocol, port)| key(address, protocol, port));
        for created in [0, 9] {
            let mut marks = PacketMarks::default();
            marks.put(one, service(5, "web"));
            assert_eq!(
                marks.put(other, service(created, "late")),
                [Moved { key: other, before: None, after: Some(842) }]
            );
            assert_eq!([marks.of(&one), marks.of(&other)], [Some(15688), Some(842)]);
            assert_eq!(marks.put(other, service(created, "renamed")), [], "another Service gets the port");
            assert_eq!(marks.put(one, None).len(), 1);
            assert_eq!(
                [marks.of(&one), marks.of(&other)],
                [None, Some(842)],
                "a mark that is free takes nobody's away"
            );
        }
    }

    #[test]
    fn a_start_goes_on_with_the_marks_that_packets_are_given() {
        let [one, other] = COLLIDING.map(|(address, protocol, port)| key(address, protocol, port));
        let unknown = key("10.0.0.1", Protocol::Tcp, 80);
        let given = BTreeMap::from([(one, 842), (unknown, 15688)]);
        for is_known in [false, true] {
            let mut marks = PacketMarks::default();
            if is_known {
                marks.put(one, service(1, "web"));
                assert_eq!(marks.adopt(&given), [Moved { key: one, before: Some(15688), after: Some(842) }]);
            } else {
                assert_eq!(marks.adopt(&given), []);
                marks.put(one, service(1, "web"));
            }
            marks.put(other, service(0, "older"));
            let third = marks.of(&other).expect("marks are free");
            assert!(![842, 15688].contains(&third), "its first choices are others', one of which is not known yet");
            assert_eq!(marks.release(), []);
            assert_eq!([marks.of(&one), marks.of(&other)], [Some(842), Some(third)]);
            assert_eq!(marks.holder(15688), None, "everything is known");
        }
        let mut marks = PacketMarks::default();
        marks.adopt(&BTreeMap::from([(one, 77), (other, 77), (unknown, MASK)]));
        [one, other, unknown].into_iter().for_each(|key| drop(marks.put(key, service(1, "web"))));
        assert_eq!(
            [marks.of(&one), marks.of(&other)],
            [Some(77), Some(15688)],
            "two with one mark, by somebody else's doing"
        );
        assert_eq!(marks.of(&unknown), Some(13766));
    }

    #[test]
    fn a_namespace_has_its_share_of_marks_and_no_more() {
        let (mut marks, most) = (PacketMarks::default(), MOST_OF_A_NAMESPACE);
        let all: Vec<ServiceKey> = (0..most + 2)
            .map(|number| key(&format!("10.1.{}.{}", number >> 8, number & 255), Protocol::Tcp, 80))
            .collect();
        for (number, key) in all.iter().enumerate() {
            // Of the two that are too many the second is older.
            marks.put(*key, service(if number == most + 1 { 1 } else { 2 }, "greedy"));
        }
        assert_eq!((marks.holders.len(), waiting(&marks)), (most, 2));
        let other = key("10.2.0.1", Protocol::Tcp, 80);
        marks.put(other, Some((9, ObjectName::new("other", "web"))));
        assert!(marks.of(&other).is_some(), "another namespace has room");
        marks.put(other, None);
        assert_eq!(waiting(&marks), 2, "that is not theirs");
        marks.put(all[0], None);
        assert_eq!([marks.of(&all[most]), marks.of(&all[most + 1])].map(|mark| mark.is_some()), [false, true]);
    }

    #[test]
    fn when_all_marks_are_taken_a_key_has_none_until_one_is_free() {
        let mut marks = PacketMarks::default();
        let addresses =
            (0..MASK - 1).map(|number| key(&format!("10.1.{}.{}", number >> 8, number & 255), Protocol::Tcp, 80));
        let all: Vec<ServiceKey> = addresses.collect();
        for (number, key) in all.iter().enumerate() {
            marks.put(*key, Some((1, ObjectName::new(&format!("shop-{}", number / MOST_OF_A_NAMESPACE), "web"))));
        }
        assert_eq!(marks.holders.len(), all.len(), "each has one of its own");
        assert!(marks.holders.keys().all(|mark| is_mark(*mark)));
        let last = key("10.2.0.1", Protocol::Tcp, 80);
        assert_eq!(marks.put(last, service(2, "late")), []);
        assert_eq!(marks.of(&last), None);
        marks.put(*all.first().expect("many"), None);
        assert!(marks.of(&last).is_some());
    }

    proptest! {
        #[test]
        fn whatever_comes_and_goes_nobody_loses_a_mark_and_each_has_one_of_its_own(
            events in proptest::collection::vec((0_usize..6, proptest::option::of(0_i64..3), 0_u32..9), 0..30),
        ) {
            let [one, other] = COLLIDING.map(|(address, protocol, port)| key(address, protocol, port));
            let keys = [
                one,
                other,
                key("10.255.14.19", Protocol::Tcp, 80),
                key("10.0.0.1", Protocol::Tcp, 80),
                key("2001:db8::1", Protocol::Tcp, 443),
                key("10.0.0.2", Protocol::Sctp, 9),
            ];
            let mut marks = PacketMarks::default();
            let mut known: BTreeSet<ServiceKey> = BTreeSet::new();
            for (index, created, chance) in events {
                let (key, name) = (keys[index], format!("s{}", index % 2));
                let before: BTreeMap<ServiceKey, Option<u32>> = keys.iter().map(|key| (*key, marks.of(key))).collect();
                let told = match chance {
                    0 => {
                        // A start, at which packets are given what they were.
                        let given = before.iter().filter_map(|(key, mark)| Some((*key, (*mark)?))).collect();
                        marks.adopt(&given)
                    }
                    1 => marks.release(),
                    _ => {
                        if created.is_some() { known.insert(key) } else { known.remove(&key) };
                        marks.put(key, created.and_then(|created| service(created, &name)))
                    }
                };
                for key in &keys {
                    let after = marks.of(key);
                    prop_assert_eq!(after.is_some(), known.contains(key));
                    prop_assert!(before[key].is_none() || after.is_none() || before[key] == after);
                    let moved = told.iter().find(|moved| moved.key == *key);
                    prop_assert_eq!(before[key] != after, moved.is_some());
                    prop_assert!(moved.is_none_or(|moved| (moved.before, moved.after) == (before[key], after)));
                    prop_assert!(after.is_none_or(|mark| marks.holder(mark) == Some(*key)));
                }
                prop_assert_eq!(marks.holders.len(), known.len());
                prop_assert_eq!(marks.shares.values().sum::<usize>(), known.len());
            }
        }
    }
}
