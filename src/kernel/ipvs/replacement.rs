//! The commands by which the destinations of a virtual service are replaced, in an order in which one that serves is always there.
//!
//! Kernel: each command counts for the next packet, and a packet that begins a connection is refused while no destination has a weight, or while the scheduler leads it to one
//! with weight 0 (`ip_vs_leave`). So those that come with a weight and those that get more are first, then others lose weight, and at last those go that are no longer wanted. The
//! virtual service itself is changed before all of them, or after all of them where it stops falling back. (Another scheduler refuses connections in any order: `ip_vs_edit_service` takes the
//! former one off first.)

use super::wire::Command;
use super::{Destination, Destinations, Service, flags};

/// Gives the commands; none for what is as wanted. `had`: the destinations that the kernel has, `None` where the virtual service is new. `first`: the number of the wanted one to begin with.
pub fn replace(
    had: Option<&Destinations>,
    want: &Destinations,
    first: usize,
    mut give: impl FnMut(Command, &Destination),
) {
    let mut later = Vec::new();
    for one in want.iter_from(first) {
        match had.and_then(|had| had.find(one.address)) {
            None if one.weight == 0 => later.push((Command::NewDestination, one)),
            None => give(Command::NewDestination, &one),
            Some(old) if loses_weight(&old, &one) => later.push((Command::SetDestination, one)),
            Some(old) if old != one => give(Command::SetDestination, &one),
            Some(_) => {}
        }
    }
    later.iter().for_each(|(command, one)| give(*command, one));
    let gone = had.into_iter().flat_map(Destinations::iter).filter(|old| want.find(old.address).is_none());
    gone.for_each(|one| give(Command::DeleteDestination, &one));
}

/// Returns whether a destination is to get fewer connections than it gets now.
pub fn loses_weight(old: &Destination, new: &Destination) -> bool {
    new.weight < old.weight
}

/// Returns whether a virtual service stops leading clients of destinations with weight 0 elsewhere. Kernel: `sh` and `mh` do so with their first flag (`ip_vs_sh_get_fallback`, `ip_vs_mh_get_fallback`).
pub fn stops_falling_back(have: &Service, want: &Service) -> bool {
    have.scheduler == want.scheduler && have.flags & !want.flags & flags::SCHEDULER_1 != 0
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::Forwarding;
    use super::*;

    fn destinations(given: &BTreeMap<u8, u32>) -> Destinations {
        let one = |(host, weight): (&u8, &u32)| Destination {
            address: ([10, 244, 1, *host], 80).into(),
            weight: *weight,
            forwarding: Forwarding::Nat,
        };
        given.iter().map(one).collect()
    }

    fn serves(destinations: &Destinations) -> bool {
        destinations.iter().any(|one| one.weight > 0)
    }

    /// The kernel's destinations after each command.
    fn states(had: &Destinations, want: &Destinations, first: usize) -> Vec<Destinations> {
        let mut kernel: BTreeMap<_, _> = had.iter().map(|one| (one.address, one)).collect();
        let mut states = Vec::new();
        replace(Some(had), want, first, |command, one| {
            let before = kernel.get(&one.address).copied();
            match command {
                Command::NewDestination => assert_eq!(before, None, "it exists"),
                Command::SetDestination => assert!(before.is_some_and(|it| it != *one), "{one:?} is as it was"),
                Command::DeleteDestination => assert!(before.is_some(), "it does not exist"),
                other => panic!("{other:?} is not about a destination"),
            }
            match command {
                Command::DeleteDestination => kernel.remove(&one.address),
                _ => kernel.insert(one.address, *one),
            };
            states.push(kernel.values().copied().collect());
        });
        states
    }

    #[test]
    fn the_last_ready_endpoint_gets_no_weight_0_before_the_one_that_replaces_it_is_there() {
        let had = destinations(&[(1, 1)].into());
        for want in [[(1, 0), (2, 1)], [(1, 0), (0, 1)]] {
            let want = destinations(&want.into());
            for first in 0..2 {
                let states = states(&had, &want, first);
                assert_eq!(states.len(), 2);
                assert!(states.iter().all(serves), "{states:?}");
                assert_eq!(states.last(), Some(&want));
            }
        }
    }

    proptest! {
        #[test]
        fn clients_are_served_after_each_command_where_they_are_before_and_after(
            had in prop::collection::btree_map(0_u8..8, 0_u32..2, 0..8),
            want in prop::collection::btree_map(0_u8..8, 0_u32..2, 0..8),
            chance in 0_usize..8,
        ) {
            let (had, want) = (destinations(&had), destinations(&want));
            let first = chance.checked_rem(want.len()).unwrap_or_default();
            let states = states(&had, &want, first);
            prop_assert!(!serves(&had) || !serves(&want) || states.iter().all(serves), "{states:?}");
            prop_assert_eq!(states.last().unwrap_or(&had), &want);
        }
    }
}
