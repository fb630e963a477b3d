//! The order in which a virtual service has its destinations, where all nodes have to have the same.
//!
//! Kernel: the scheduler `mh` fills its table in the order of the list of destinations, in which a new one is the first. So that a client whose
//! packets come to another node finds the same destination there, the list is in the order of addresses everywhere: where a new one belongs behind
//! others, these are taken out and put back in the same go, one after the other. A packet of a connection that comes meanwhile is scheduled again, to the same destination
//! by the same table; which is so in tunnel mode alone, where nothing is translated and `net.ipv4.vs.sloppy_tcp` is on. With NAT it would end the
//! connection, and there another node cannot take it over anyway.
//!
//! A destination keeps its place in the table with weight 0, but gets none where it comes with it: so it comes with weight 1, and has its own right behind, or, where it served before,
//! when all others are there (`replacement`).
//!
//! One that is out for a moment may lose the connections that it has at this node: with `net.ipv4.vs.expire_nodest_conn` the kernel forgets those of destinations that are gone, from a work queue that
//! runs at the next tick. With weight 0 they do not come back, because the table leads elsewhere. So nothing is taken out that is in its place.
//!
//! Where the only one that serves is to be put in front of others, nobody serves while it is out.
//!
//! The kernel lists destinations in this order, but what is read of them is sorted. So the order is noted when they are read, or put in order, by a step that has not failed ([`Ordered`]): where it is another one, in which
//! another program added them, the first change puts all in order. Until there is one nothing happens.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};

use super::replacement::loses_weight;
use super::target::find;
use super::wire::Command;
use super::{Destination, Forwarding, ServiceKey, Virtual};
use crate::reconcile::Step;

/// The virtual services whose destinations are known to be in the order of addresses, each with a hash of those that it was left with: one that another
/// program took out and put back with another weight is elsewhere in the list.
#[derive(Default)]
pub struct Ordered {
    left: BTreeMap<ServiceKey, u64>,
    hasher: RandomState,
}

impl Ordered {
    /// Returns whether the destinations of a virtual service that the kernel has are known to be in order, as one alone always is. `have`: `None` where it is new.
    pub fn has(&self, key: &ServiceKey, have: Option<&Virtual>) -> bool {
        have.is_none_or(|have| have.destinations.len() < 2 || self.left.get(key) == Some(&self.hash(have)))
    }

    /// Notes what was read of a virtual service, and whether the kernel listed its destinations in the order of addresses.
    ///
    /// Whatever its scheduler: the kernel may lack `mh`, and another one stands in for it. But there a destination with weight 0 may have come with it.
    pub fn found(&mut self, key: &ServiceKey, found: &Virtual, is_in_order: bool) {
        let is_certain = || is_one(found) || found.destinations.iter().all(|destination| destination.weight > 0);
        if is_in_order && found.destinations.len() > 1 && is_tunnels(found) && is_certain() {
            self.left.insert(*key, self.hash(found));
        } else {
            self.left.remove(key);
        }
    }

    /// Notes that these steps were performed, but for those with the `failed` indexes: nobody knows how far such a one has come.
    pub fn note(&mut self, steps: &[Step<'_, ServiceKey, Virtual>], failed: &BTreeSet<usize>) {
        for (index, step) in steps.iter().enumerate() {
            let left = step.want.filter(|want| !failed.contains(&index) && is_one(want));
            match left.map(|left| self.hash(left)) {
                Some(left) => drop(self.left.insert(*step.key, left)),
                None => drop(self.left.remove(step.key)),
            }
        }
    }

    fn hash(&self, service: &Virtual) -> u64 {
        let all: Vec<Destination> = service.destinations.to_vec();
        self.hasher.hash_one(all)
    }
}

/// Returns whether a virtual service is to have its destinations in one order on all nodes.
pub fn is_one(want: &Virtual) -> bool {
    want.service.scheduler == "mh" && is_tunnels(want)
}

fn is_tunnels(service: &Virtual) -> bool {
    service.destinations.iter().all(|destination| destination.forwarding == Forwarding::Tunnel)
}

/// Returns the changes by which these destinations, of which the kernel has those, come to be the wanted ones in the order of addresses. Both are sorted.
/// `is_kept`: those that the kernel has are in that order. The service has never more than one destination less than before. Those that serve now lose their
/// weight, and then others go, when all that replace them are there.
pub fn changes(have: &[Destination], want: &[Destination], is_kept: bool) -> Vec<(Command, Destination)> {
    let is_new = |destination: &&Destination| find(have, destination.address).is_none();
    // All up to this one are put in front of it, where each comes that is added.
    let last = want.iter().rev().find(|destination| !is_kept || is_new(destination));
    let is_placed = |destination: &Destination| last.is_some_and(|last| destination.address <= last.address);
    let (mut changes, mut falling) = (Vec::new(), Vec::new());
    for destination in want.iter().rev() {
        let old = find(have, destination.address);
        let mut now = old.copied();
        if is_placed(destination) {
            changes.extend(old.map(|old| (Command::DeleteDestination, *old)));
            let comes = Destination { weight: destination.weight.max(1), ..*destination };
            changes.push((Command::NewDestination, comes));
            now = Some(comes);
        }
        if now != Some(*destination) {
            let falls = old.is_some_and(|old| loses_weight(old, destination));
            let place = if falls { &mut falling } else { &mut changes };
            place.push((Command::SetDestination, *destination));
        }
    }
    let gone = have.iter().filter(|old| find(want, old.address).is_none());
    changes.extend(falling);
    changes.extend(gone.map(|old| (Command::DeleteDestination, *old)));
    changes
}

#[cfg(test)]
mod tests {
    use super::super::Service;
    use super::*;
    use crate::net::Family;

    fn list(given: &[(u8, u32)]) -> Vec<Destination> {
        let one = |(host, weight): &(u8, u32)| Destination {
            address: ([10, 244, 1, *host], 80).into(),
            weight: *weight,
            forwarding: Forwarding::Tunnel,
        };
        given.iter().map(one).collect()
    }

    /// The changes as text, and the kernel's list after them, the first in front. `held`: its list before them.
    fn told(held: &[(u8, u32)], want: &[(u8, u32)], is_kept: bool) -> (String, Vec<(u8, u32)>) {
        let host = |it: &Destination| match it.address.ip() {
            std::net::IpAddr::V4(address) => address.octets()[3],
            std::net::IpAddr::V6(_) => 0,
        };
        let mut have = list(held);
        have.sort();
        let mut kernel: Vec<(u8, u32)> = held.to_vec();
        let mut texts = Vec::new();
        for (command, it) in changes(&have, &list(want), is_kept) {
            let place = kernel.iter().position(|(known, _)| *known == host(&it));
            let sign = match (command, place) {
                (Command::NewDestination, None) => {
                    kernel.insert(0, (host(&it), it.weight));
                    "+"
                }
                (Command::SetDestination, Some(place)) => {
                    kernel[place].1 = it.weight;
                    "="
                }
                (Command::DeleteDestination, Some(place)) => {
                    kernel.remove(place);
                    "-"
                }
                other => panic!("the kernel refuses {other:?}"),
            };
            assert!(kernel.len() + 1 >= held.len(), "only one is out at a time");
            texts.push(format!("{sign}{}w{}", host(&it), it.weight));
        }
        (texts.join(" "), kernel)
    }

    #[test]
    fn whatever_order_they_come_in_the_kernels_list_is_in_that_of_addresses() {
        for (have, want, changes) in [
            (&[][..], &[(1, 1), (2, 1), (3, 1)][..], "+3w1 +2w1 +1w1"),
            (&[(2, 1), (3, 1)], &[(1, 1), (2, 1), (3, 1)], "+1w1"),
            (&[(1, 1), (3, 1)], &[(1, 1), (2, 1), (3, 1)], "+2w1 -1w1 +1w1"),
            (&[(1, 1), (2, 1)], &[(1, 1), (2, 1), (3, 1)], "+3w1 -2w1 +2w1 -1w1 +1w1"),
            (&[(2, 1)], &[(1, 1), (2, 1), (3, 1)], "+3w1 -2w1 +2w1 +1w1"),
            (&[(1, 1), (2, 0)], &[(1, 1), (2, 0), (3, 1)], "+3w1 -2w0 +2w1 =2w0 -1w1 +1w1"),
            (&[(1, 1), (2, 1)], &[(1, 0), (2, 1)], "=1w0"),
            (&[(2, 1)], &[(1, 1), (2, 0)], "+1w1 =2w0"),
            (&[(2, 1)], &[(1, 1), (2, 0), (3, 0)], "+3w1 =3w0 -2w1 +2w1 +1w1 =2w0"),
            (&[(1, 1), (2, 0)], &[(2, 1)], "=2w1 -1w1"),
            (&[], &[(1, 0)], "+1w1 =1w0"),
            (&[(1, 1)], &[(1, 1)], ""),
        ] {
            assert_eq!(told(have, want, true), (changes.to_owned(), want.to_vec()), "{have:?} to {want:?}");
        }
    }

    #[test]
    fn those_that_came_under_another_scheduler_are_all_put_in_order() {
        let want = [(1, 1), (2, 1), (3, 1)];
        for have in [&[(3, 1), (1, 1), (2, 1)][..], &[(2, 1), (1, 1)]] {
            assert_eq!(told(have, &want, false).1, want, "{have:?}");
        }
    }

    #[test]
    fn the_order_is_known_of_what_this_process_has_put_in_order_until_a_step_fails() {
        let key = ServiceKey::Mark { mark: 7, family: Family::V6 };
        let service = |scheduler: &str| Service { scheduler: scheduler.into(), flags: 0, persistence_seconds: 0 };
        let of = |scheduler, hosts| Virtual { service: service(scheduler), destinations: list(hosts).into() };
        let [one, two] = [of("mh", &[(1, 1)]), of("mh", &[(1, 1), (2, 1)])];
        let (three, plain) = (of("mh", &[(1, 1), (2, 1), (3, 1)]), of("rr", &[(1, 1), (2, 1)]));
        let mut ordered = Ordered::default();
        let mut known = |have: Option<&Virtual>, want, performed| {
            let before = ordered.has(&key, have);
            let failed = if performed { [].into() } else { [0].into() };
            ordered.note(&[Step { key: &key, have, want }], &failed);
            before
        };
        assert!(!known(Some(&two), Some(&three), true), "a former run made it");
        assert!(known(Some(&three), Some(&two), false));
        assert!(!known(Some(&two), Some(&three), true), "nobody knows how far the failed step came");
        assert!(known(Some(&three), Some(&plain), true));
        assert!(!known(Some(&plain), Some(&two), true), "another scheduler takes any order");
        assert!(known(Some(&two), Some(&plain), true) && known(Some(&one), Some(&two), true), "one alone is in order");
        assert!(known(Some(&one), None, true));
        assert!(known(None, Some(&one), true), "it is new");
        assert!(known(Some(&one), Some(&two), true));
    }

    /// Destinations that are taken out lose those connections that the table no longer leads to them.
    #[test]
    fn nothing_is_taken_out_where_a_former_run_left_the_destinations_in_order() {
        let key = ServiceKey::Mark { mark: 7, family: Family::V6 };
        let service = Service { scheduler: "mh".into(), flags: 0, persistence_seconds: 0 };
        let have = Virtual { service, destinations: list(&[(1, 1), (2, 1), (3, 1)]).into() };
        let terminating = list(&[(1, 1), (2, 0), (3, 1)]);
        for (is_in_order, taken_out) in [(true, 0), (false, 3)] {
            let mut ordered = Ordered::default();
            ordered.found(&key, &have, true);
            ordered.found(&key, &have, is_in_order);
            let changes = changes(&have.destinations.to_vec(), &terminating, ordered.has(&key, Some(&have)));
            let out = changes.iter().filter(|(command, _)| *command == Command::DeleteDestination).count();
            assert_eq!(out, taken_out, "in order: {is_in_order}");
        }
    }

    #[test]
    fn nothing_is_taken_out_again_and_again_where_another_scheduler_stands_in_for_a_refused_one() {
        let key = ServiceKey::Mark { mark: 7, family: Family::V6 };
        let of = |scheduler: &str, forwarding| {
            let service = Service { scheduler: scheduler.into(), flags: 0, persistence_seconds: 0 };
            let destinations = list(&[(1, 1), (2, 1)]).into_iter().map(|it| Destination { forwarding, ..it });
            Virtual { service, destinations: destinations.collect() }
        };
        let (stands_in, wanted) = (of("rr", Forwarding::Tunnel), of("mh", Forwarding::Tunnel));
        let mut ordered = Ordered::default();
        ordered.note(&[Step { key: &key, have: Some(&stands_in), want: Some(&wanted) }], &[0].into());
        assert!(!ordered.has(&key, Some(&stands_in)), "the step was refused");
        ordered.found(&key, &stands_in, true);
        assert!(ordered.has(&key, Some(&stands_in)));
        let by_nat = of("rr", Forwarding::Nat);
        ordered.found(&key, &by_nat, true);
        assert!(!ordered.has(&key, Some(&by_nat)), "their order matters to nobody");
        let terminating = Virtual { destinations: list(&[(1, 0), (2, 1)]).into(), ..stands_in };
        ordered.found(&key, &terminating, true);
        assert!(!ordered.has(&key, Some(&terminating)), "who came with weight 0 has no place in the table of mh");
    }

    #[test]
    fn a_step_that_fails_leaves_the_order_of_the_others_known() {
        let keys = [7, 8].map(|mark| ServiceKey::Mark { mark, family: Family::V4 });
        let service = Service { scheduler: "mh".into(), flags: 0, persistence_seconds: 0 };
        let made = Virtual { service, destinations: list(&[(1, 1), (2, 1)]).into() };
        let mut ordered = Ordered::default();
        let steps: Vec<_> = keys.iter().map(|key| Step { key, have: None, want: Some(&made) }).collect();
        ordered.note(&steps, &[1].into());
        assert_eq!(keys.map(|key| ordered.has(&key, Some(&made))), [true, false]);
    }

    #[test]
    fn the_order_is_not_known_any_more_where_another_program_has_changed_a_destination() {
        let key = ServiceKey::Mark { mark: 7, family: Family::V4 };
        let service = Service { scheduler: "mh".into(), flags: 0, persistence_seconds: 0 };
        let of =
            |weight| Virtual { service: service.clone(), destinations: list(&[(1, 1), (2, 1), (3, weight)]).into() };
        let mut ordered = Ordered::default();
        ordered.note(&[Step { key: &key, have: None, want: Some(&of(1)) }], &[].into());
        assert!(ordered.has(&key, Some(&of(1))) && !ordered.has(&key, Some(&of(5))));
    }

    #[test]
    fn it_matters_to_mh_in_tunnel_mode_alone() {
        let with = |scheduler: &str, forwarding| {
            let service = Service { scheduler: scheduler.into(), flags: 0, persistence_seconds: 0 };
            let those = list(&[(1, 1)]).into_iter().map(|it| Destination { forwarding, ..it });
            is_one(&Virtual { service, destinations: those.collect() })
        };
        let of = [("mh", Forwarding::Tunnel), ("mh", Forwarding::Nat), ("rr", Forwarding::Tunnel)];
        assert_eq!(of.map(|(scheduler, forwarding)| with(scheduler, forwarding)), [true, false, false]);
    }
}
