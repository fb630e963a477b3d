//! Rounds end before a large change of destinations is done, so that other changes need not wait for it.
//!
//! Where a World changes the destinations of many virtual services, a round does so much of it and no more; the next round follows at once, with what
//! is new by then. The order of a whole round stays: new destinations of all virtual services first, and then the former ones go. A Service is never
//! parted, and whatever else a World changes (virtual services that come or go, elements, routes, rules) is done whole.
//!
//! - What was marked since the last round comes first, and is done at once where it is little. What is too much waits.
//! - What gets more source ranges does not wait either: the clients of a Service that takes over an address must not come to the former one's endpoints.
//! - What shall no longer be closed to clients outside does not wait, however much that is: it is announced already, and its clients are dropped until the
//!   destinations of the closed Service are gone. That it is closed is told by elements: while they are not known (a reading has failed, a set was made anew) it waits as
//!   all else does, and is done in the round after the one that has read them.
//! - All that waits becomes one batch when the one before is done. Its rounds add destinations while any are to come, and then take the former ones away. To
//!   take these away with each round would cost more: the kernel keeps deleted destinations for two minutes, and looks through all of
//!   them for each new one (`ip_vs_trash_get_dest`). And a batch that took in what comes meanwhile might never come to its second half.
//!
//! What is marked again while it waits is new; where it has grown and waits to shrink, both are done with its turn. What a batch has come to and could not do (the kernel refused, or an element is missing) stays as any other change
//! that failed: a batch ends, whatever happens.
//!
//! Rounds are whole until the first sync, which says that all is done; while not all of the cluster is known; with virtual services in tunnel mode, which come and
//! go with each other; and while what another packet filter has in force is taken over.

use std::collections::BTreeSet;

use super::elements::has_element;
use super::{Kernel, Mirrors, ProxyRound};
use crate::kernel::ipset::Entry;
use crate::kernel::ipvs::{Service, ServiceKey, Virtual, flags};
use crate::model::Authority;
use crate::proxy::desired::Desired;
use crate::proxy::marks::port;
use crate::proxy::names::Set;
use crate::proxy::source_ranges;
use crate::reconcile::Moment;

/// Commands about destinations that a round gives for what is new, and as many for a batch. Each takes the kernel some microseconds.
pub const PORTION: usize = 256;

/// The virtual services whose turn is to come.
#[derive(Default, Debug)]
pub(super) struct Backlog {
    /// Commands in one portion; `None` while rounds are whole.
    portion: Option<usize>,
    /// Marked since the last round.
    new: BTreeSet<ServiceKey>,
    /// To become a batch.
    waiting: BTreeSet<ServiceKey>,
    /// The virtual services of the batch that have still to get their new destinations.
    growing: BTreeSet<ServiceKey>,
    /// Those that have them, and have still to lose their former ones.
    shrinking: BTreeSet<ServiceKey>,
    /// Those that get their new destinations in this round, and keep the former ones.
    keeping: BTreeSet<ServiceKey>,
}

/// Number of commands about destinations that one change takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Commands {
    /// To add one, to change its weight, or to change flags of the virtual service.
    grow: usize,
    /// To delete one.
    shrink: usize,
}

impl Backlog {
    /// Notes virtual services that are desired differently.
    pub fn mark(&mut self, keys: &[ServiceKey]) {
        if self.portion.is_some() {
            self.new.extend(keys);
        }
    }

    /// Returns whether the former destinations of a virtual service stay in this round.
    pub fn keeps_former(&self, key: &ServiceKey) -> bool {
        self.keeping.contains(key)
    }
}

impl<K: Kernel> Mirrors<K> {
    /// Runs one round: grows as far as `authority` allows, then shrinks where that is allowed. Of many changes of destinations it leaves some to the
    /// next round where it may ([`bound_rounds`](Self::bound_rounds)).
    pub fn round(&mut self, desired: &Desired, authority: Authority, at: Moment) -> ProxyRound {
        self.try_refused(desired, at);
        let puts_off = self.begin_portion(desired, authority);
        let round = self.grow_and_shrink(desired, authority, at);
        self.end_portion(desired);
        self.end_refused(desired, at);
        ProxyRound { puts_off, ..round }
    }

    /// Has rounds give so many commands about destinations, for what is new and for what waits, or all of them.
    pub fn bound_rounds(&mut self, portion: Option<usize>) {
        self.backlog.portion = portion;
    }

    /// Returns whether the last round left something to the next one, which is to follow at once.
    pub fn goes_on(&self) -> bool {
        !self.virtuals.postponed().is_empty()
    }

    /// Chooses what this round compares. Returns whether some of what is new waits.
    fn begin_portion(&mut self, desired: &Desired, authority: Authority) -> bool {
        let new = std::mem::take(&mut self.backlog.new);
        let is_ordinary = authority == Authority::Complete
            && desired.marks.is_empty()
            && self.held_back.is_empty()
            && self.marked_elsewhere.as_ref().is_some_and(|marked| marked.services.is_empty());
        let Some(portion) = self.backlog.portion.filter(|_| is_ordinary) else {
            self.virtuals.take_up_all();
            return false;
        };
        let opening = self.opening(desired);
        opening.iter().for_each(|key| {
            self.virtuals.take_up(key);
        });
        let puts_off = self.put_off(desired, new, &opening, portion);
        self.take_portion(desired, portion);
        puts_off
    }

    /// Returns the virtual services that are to be open to clients outside to whom they are closed, to all or to those of some ranges; none while elements are
    /// not known.
    fn opening(&self, desired: &Desired) -> BTreeSet<ServiceKey> {
        let elements = self.elements.unsettled().into_iter().flatten().filter_map(Set::of_element);
        let objects = self.table.unsettled().into_iter().flatten().filter_map(Set::of_object);
        let opened = |(set, entry): (Set, Entry)| match set {
            Set::AllowedSources if has_element(desired, set, &entry) => port(&source_ranges::restricted_by(&entry)?),
            _ if Set::CLOSING.contains(&set) && !has_element(desired, set, &entry) => port(&entry),
            _ => None,
        };
        let ports = elements.chain(objects).filter_map(opened);
        ports.map(|port| desired.kernel_key(&port)).collect()
    }

    /// Has what is new wait, but for one portion and what is opened. Returns whether any of it waits.
    fn put_off(
        &mut self,
        desired: &Desired,
        new: BTreeSet<ServiceKey>,
        opening: &BTreeSet<ServiceKey>,
        portion: usize,
    ) -> bool {
        let mut given = 0;
        let mut puts_off = false;
        for key in new {
            let Some(Commands { grow, shrink }) = self.commands(desired, &key) else { continue };
            // The first one is done whatever it takes.
            if given == 0 || given + grow + shrink <= portion || opening.contains(&key) {
                given += grow + shrink;
            } else if self.virtuals.postpone(&key, &desired.virtuals) {
                // It may be there since an earlier change.
                self.backlog.waiting.insert(key);
                puts_off = true;
            }
        }
        puts_off
    }

    /// Takes up the next portion of the batch, or of a new one.
    fn take_portion(&mut self, desired: &Desired, portion: usize) {
        if self.backlog.growing.is_empty() && self.backlog.shrinking.is_empty() {
            self.backlog.growing = std::mem::take(&mut self.backlog.waiting);
        }
        let grows = !self.backlog.growing.is_empty();
        let mut given = 0;
        while given < portion {
            let batch = if grows { &mut self.backlog.growing } else { &mut self.backlog.shrinking };
            let Some(key) = batch.pop_first() else { break };
            // One that was marked again is not of the batch any more.
            if !self.virtuals.take_up(&key) {
                continue;
            }
            // One that waits to shrink may have been marked since it grew: it grows once more.
            let commands = self.commands(desired, &key);
            given += commands.map_or(1, |it| if grows { it.grow } else { it.grow + it.shrink }).max(1);
            if grows {
                self.backlog.keeping.insert(key);
            }
        }
    }

    /// Has the virtual services that have got their new destinations wait until all of the batch have.
    fn end_portion(&mut self, desired: &Desired) {
        for key in std::mem::take(&mut self.backlog.keeping) {
            if self.virtuals.postpone(&key, &desired.virtuals) {
                self.backlog.shrinking.insert(key);
            }
        }
    }

    /// Returns the commands that a virtual service takes of which the destinations alone are desired differently.
    fn commands(&self, desired: &Desired, key: &ServiceKey) -> Option<Commands> {
        let (have, want) = (self.virtuals.seen()?.get(key)?, desired.virtuals.get(key)?);
        commands(have, want)
    }
}

/// `None` where the virtual service itself is to be another one, beside the flag that comes and goes with destinations that drain (`scheduler`).
fn commands(have: &Virtual, want: &Virtual) -> Option<Commands> {
    let without = |service: &Service| Service { flags: service.flags & !flags::SCHEDULER_1, ..service.clone() };
    if without(&have.service) != without(&want.service) {
        return None;
    }
    let of_flags = usize::from(have.service != want.service);
    let (have, want) = (&have.destinations, &want.destinations);
    let grow = want.iter().filter(|it| have.find(it.address) != Some(*it)).count();
    let shrink = have.iter().filter(|it| want.find(it.address).is_none()).count();
    Some(Commands { grow: grow + of_flags, shrink })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::ipvs::{Destination, Forwarding};

    #[test]
    fn destinations_that_come_or_have_another_weight_are_counted_and_so_are_those_that_go() {
        let counted = |have: &[(u8, u32)], want: &[(u8, u32)]| commands(&of(have), &of(want));
        let some = |grow, shrink| Some(Commands { grow, shrink });
        assert_eq!(counted(&[(1, 1), (2, 1)], &[(1, 1), (2, 1)]), some(0, 0));
        assert_eq!(counted(&[(1, 1), (2, 1)], &[(2, 0), (3, 1)]), some(2, 1));
        assert_eq!(counted(&[], &[(1, 1)]), some(1, 0));
        assert_eq!(counted(&[(1, 1), (2, 1)], &[]), some(0, 2));
    }

    #[test]
    fn the_flag_that_comes_and_goes_with_draining_is_one_command_and_another_virtual_service_is_none_that_waits() {
        let with = |scheduler: &str, flags| Virtual {
            service: Service { scheduler: scheduler.into(), flags, persistence_seconds: 0 },
            ..of(&[(1, 1)])
        };
        let (plain, falls_back) = (with("sh", flags::SCHEDULER_2), with("sh", flags::SCHEDULER_1 | flags::SCHEDULER_2));
        assert_eq!(commands(&plain, &falls_back), Some(Commands { grow: 1, shrink: 0 }));
        assert_eq!(commands(&falls_back, &plain), Some(Commands { grow: 1, shrink: 0 }));
        assert_eq!(commands(&plain, &with("sh", 0)), None);
        assert_eq!(commands(&plain, &with("mh", flags::SCHEDULER_2)), None);
    }

    fn of(hosts: &[(u8, u32)]) -> Virtual {
        let destination = |(host, weight): &(u8, u32)| Destination {
            address: ([10, 244, 1, *host], 80).into(),
            weight: *weight,
            forwarding: Forwarding::Nat,
        };
        let service = Service { scheduler: "rr".into(), flags: 0, persistence_seconds: 0 };
        Virtual { service, destinations: hosts.iter().map(destination).collect() }
    }
}
