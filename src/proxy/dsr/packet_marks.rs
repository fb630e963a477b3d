//! Marks of packets by which virtual services in tunnel mode are found: one for each address, protocol and port.
//!
//! The mark is kube-router's ([`service_mark`]). Where that is taken, or is 0, which the kernel takes for no mark, it is the next one of the same
//! key.
//!
//! Who has a mark that several would have is a function of all keys alone: keys of older Services choose first, then by name of the Service and by
//! key. So all nodes agree, and so does a process that begins anew. A key that comes or goes changes the marks of others only where they
//! collide with it, directly or by what they chose instead.

use std::collections::{BTreeMap, BTreeSet};

use crate::kernel::ipvs::ServiceKey;
use crate::model::ObjectName;
use crate::net::service_mark::service_mark;

pub use crate::net::service_mark::MASK;

/// The mark of packets to an address that is served in tunnel mode at other ports. No virtual service has it.
pub const OTHER_PORTS: u32 = MASK;

/// Number of texts that are tried; behind them comes the next free number.
const TEXTS: u32 = 64;

/// The marks of all keys.
#[derive(Default, Debug)]
pub struct PacketMarks {
    order: BTreeSet<(Seniority, ServiceKey)>,
    keys: BTreeMap<ServiceKey, Allotment>,
    holders: BTreeMap<u32, ServiceKey>,
    /// Number of keys with another mark than their first choice, or none.
    displaced: usize,
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
    /// Returns the mark of a key; `None` if it is not known or all marks are taken.
    pub fn of(&self, key: &ServiceKey) -> Option<u32> {
        self.keys.get(key)?.mark
    }

    /// Returns the key that has a mark.
    pub fn holder(&self, mark: u32) -> Option<ServiceKey> {
        self.holders.get(&mark).copied()
    }

    /// Adds a key with the seniority of its Service, or removes it. Returns the keys whose marks have changed.
    pub fn put(&mut self, key: ServiceKey, seniority: Option<Seniority>) -> Vec<Moved> {
        if self.keys.get(&key).map(|held| &held.seniority) == seniority.as_ref() {
            return Vec::new();
        }
        let before = self.of(&key);
        if let Some(held) = self.keys.remove(&key) {
            self.order.remove(&(held.seniority, key));
            let is_first = before.is_some() && before == first_choice(&key);
            self.displaced -= usize::from(!is_first);
            before.map(|mark| self.holders.remove(&mark));
            if self.displaced > 0 {
                // Somebody may have wanted its mark.
                return self.add_and_choose(key, seniority, before);
            }
        }
        let Some(seniority) = seniority else { return moved(key, before, None).into_iter().collect() };
        match first_choice(&key).filter(|mark| !self.holders.contains_key(mark)) {
            // A mark that nobody has is one that nobody else wanted.
            Some(mark) => {
                self.holders.insert(mark, key);
                self.order.insert((seniority.clone(), key));
                self.keys.insert(key, Allotment { seniority, mark: Some(mark) });
                moved(key, before, Some(mark)).into_iter().collect()
            }
            None => self.add_and_choose(key, Some(seniority), before),
        }
    }

    fn add_and_choose(&mut self, key: ServiceKey, seniority: Option<Seniority>, before: Option<u32>) -> Vec<Moved> {
        let was_there = seniority.is_some();
        if let Some(seniority) = seniority {
            self.order.insert((seniority.clone(), key));
            self.keys.insert(key, Allotment { seniority, mark: before });
        }
        let mut changed = self.choose_all();
        if !was_there {
            changed.extend(moved(key, before, None));
        }
        changed
    }

    /// Lets all keys choose in their order.
    fn choose_all(&mut self) -> Vec<Moved> {
        self.holders.clear();
        self.displaced = 0;
        let mut changed = Vec::new();
        for (_, key) in &self.order {
            let chosen = choice(key, &self.holders);
            self.displaced += usize::from(chosen.is_none() || chosen != first_choice(key));
            chosen.map(|mark| self.holders.insert(mark, *key));
            if let Some(held) = self.keys.get_mut(key) {
                let before = std::mem::replace(&mut held.mark, chosen);
                changed.extend(moved(*key, before, chosen));
            }
        }
        changed
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

/// Returns the mark of a key that nobody has a claim to.
fn first_choice(key: &ServiceKey) -> Option<u32> {
    Some(hashed(key, 0)).filter(|mark| is_mark(*mark))
}

fn choice(key: &ServiceKey, taken: &BTreeMap<u32, ServiceKey>) -> Option<u32> {
    let is_free = |mark: &u32| is_mark(*mark) && !taken.contains_key(mark);
    let by_text = || (0..TEXTS).map(|index| hashed(key, index)).find(is_free);
    let first = hashed(key, 0);
    let next = || (1..=MASK).map(|behind| (first + behind) & MASK).find(is_free);
    by_text().or_else(next)
}

fn is_mark(mark: u32) -> bool {
    mark != 0 && mark != OTHER_PORTS
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
    fn no_virtual_service_has_mark_0() {
        let mut marks = PacketMarks::default();
        let unlucky = key("10.255.14.19", Protocol::Tcp, 80);
        assert_eq!(hashed(&unlucky, 0), 0);
        marks.put(unlucky, service(0, "web"));
        assert_eq!(marks.of(&unlucky), Some(hashed(&unlucky, 1)));
        assert!(likely(&unlucky).all(|mark| mark != 0));
    }

    #[test]
    fn of_two_keys_with_one_mark_the_older_services_has_it_whichever_came_first() {
        let [one, other] = COLLIDING.map(|(address, protocol, port)| key(address, protocol, port));
        for order in [[one, other], [other, one]] {
            let mut marks = PacketMarks::default();
            for it in order {
                marks.put(it, service(if it == one { 1 } else { 2 }, "web"));
            }
            assert_eq!([marks.of(&one), marks.of(&other)], [Some(15688), Some(842)]);
            assert_eq!(marks.put(one, None).len(), 2, "the other has its first choice again");
            assert_eq!([marks.of(&one), marks.of(&other)], [None, Some(15688)]);
        }
    }

    #[test]
    fn when_all_marks_are_taken_the_youngest_key_has_none() {
        let mut marks = PacketMarks::default();
        let addresses =
            (0..MASK - 1).map(|number| key(&format!("10.1.{}.{}", number >> 8, number & 255), Protocol::Tcp, 80));
        let all: Vec<ServiceKey> = addresses.collect();
        // Each refused first choice lets all choose again; so the order is made at once.
        for key in &all {
            marks.order.insert((service(1, "web").expect("one"), *key));
            marks.keys.insert(*key, Allotment { seniority: service(1, "web").expect("one"), mark: None });
        }
        marks.choose_all();
        assert_eq!(marks.holders.len(), all.len(), "each has one of its own");
        assert!(marks.holders.keys().all(|mark| is_mark(*mark)));
        let last = key("10.2.0.1", Protocol::Tcp, 80);
        marks.put(last, service(2, "late"));
        assert_eq!(marks.of(&last), None);
        marks.put(*all.first().expect("many"), None);
        assert!(marks.of(&last).is_some());
    }

    proptest! {
        #[test]
        fn whatever_came_before_marks_are_a_function_of_the_keys(
            events in proptest::collection::vec((0_usize..6, proptest::option::of(0_i64..3)), 0..30),
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
            let (mut marks, mut known) = (PacketMarks::default(), BTreeMap::new());
            for (index, created) in events {
                let (key, name) = (keys[index], format!("s{}", index % 2));
                let before: BTreeMap<ServiceKey, Option<u32>> = keys.iter().map(|key| (*key, marks.of(key))).collect();
                let told = marks.put(key, created.and_then(|created| service(created, &name)));
                match created {
                    Some(created) => drop(known.insert(key, (created, name))),
                    None => drop(known.remove(&key)),
                }
                let mut anew = PacketMarks::default();
                for (key, (created, name)) in known.iter().rev() {
                    anew.put(*key, service(*created, name));
                }
                for key in &keys {
                    prop_assert_eq!(marks.of(key), anew.of(key));
                    let moved = told.iter().find(|moved| moved.key == *key);
                    let after = marks.of(key);
                    prop_assert_eq!(before[key] != after, moved.is_some());
                    prop_assert!(moved.is_none_or(|moved| (moved.before, moved.after) == (before[key], after)));
                    prop_assert!(after.is_none_or(|mark| marks.holder(mark) == Some(*key)));
                }
                prop_assert_eq!(marks.holders.len(), known.len());
            }
        }
    }
}
