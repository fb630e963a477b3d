//! Parts of virtual services that this kernel refuses because of what is in them: a scheduler whose module the host lacks, an endpoint that is a
//! broadcast address of the host.
//!
//! Anybody who may write a Service can name one, so it must harm that Service alone: it is left out of what the kernel is given, the rest goes on as if
//! it were not asked for, and it is no trouble of the node but a problem of the Service. It is tried again at times, because a module may be loaded later: for each
//! scheduler one virtual service, because the kernel runs `modprobe` each time, and the others when it is there. Of all together some hundreds at a time, in turn.
//! The scheduler that Services have without asking for one is another matter: a node without it serves nobody, which is trouble as any failure is.
//!
//! Where the kernel has the virtual service, it keeps the scheduler that it has; where it has not, it gets the one that Services have without asking. So there is
//! a virtual service wherever the guard lets packets in, and none of them comes to a program of the host. It has its endpoints: a try gives them to one without any
//! (the kernel takes the rest of what is refused in part), and a process without memory cannot tell a stand-in from one that keeps its scheduler.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Instant;

use super::{Connected, Kernel, Mirrors};
use crate::kernel::ipvs::{Part, RefusedPart, SchedulerName, Service, ServiceKey, Virtual, flags};
use crate::model::Scheduler;
use crate::packed::BlockMap;
use crate::proxy::desired::Desired;
use crate::proxy::scheduler;
use crate::reconcile::{Backoff, Moment};

/// The refused parts, by the keys of the kernel.
#[derive(Default, Debug)]
pub(super) struct RefusedParts {
    all: BTreeMap<ServiceKey, Refused>,
    /// Those that this round tries again, and of which nothing was refused in it.
    tried: BTreeMap<ServiceKey, Refused>,
    /// The last one that had its turn.
    last: Option<ServiceKey>,
    /// The virtual services that are tried for their scheduler, which the kernel has not had, in this round.
    asked: BTreeMap<SchedulerName, ServiceKey>,
    /// Schedulers that the kernel had refused, and has taken since.
    present: BTreeSet<SchedulerName>,
    backoff: Backoff,
}

/// Parts of one virtual service that the kernel refuses.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Refused {
    pub scheduler: Option<SchedulerName>,
    pub destinations: BTreeSet<SocketAddr>,
}

/// Number of virtual services that are tried again in one round.
const TRIED: usize = 256;

/// The bits that schedulers read.
const OF_SCHEDULERS: u32 = flags::SCHEDULER_1 | flags::SCHEDULER_2 | flags::SCHEDULER_3;

impl<K: Kernel> Mirrors<K> {
    /// Returns the virtual services of which the kernel refuses something, by address, protocol and port.
    pub fn refused_parts<'a>(&'a self, desired: &'a Desired) -> impl Iterator<Item = (ServiceKey, &'a Refused)> {
        self.refused.all.iter().filter_map(|(key, refused)| Some((desired.port_of(key)?, refused)))
    }

    /// Returns whether what was refused is to be tried again.
    pub fn is_refused_due(&self, at: Moment) -> bool {
        self.refused_retry_at().is_some_and(|due| due <= at.now)
    }

    /// Has the next round try again what was refused.
    pub fn retry_refused(&mut self, now: Instant) {
        self.refused.backoff.hasten(now);
    }

    pub(super) fn refused_retry_at(&self) -> Option<Instant> {
        self.refused.backoff.retry_at()
    }

    /// Has this round try again what was refused, where that is due. What is not desired any more is forgotten.
    pub(super) fn try_refused(&mut self, desired: &Desired, at: Moment) {
        self.refused.all.retain(|key, refused| desired.virtuals.get(key).is_some_and(|wanted| refused.is_of(wanted)));
        if !self.is_refused_due(at) {
            return;
        }
        self.refused.backoff.tried();
        self.refused.begin_tries();
        for key in self.refused.tried.keys() {
            self.virtuals.mark(*key);
            self.udp.mark(*key);
        }
    }

    /// Notes what the kernel has refused since the last call. Returns whether anything is to be done anew without it. `successor`: what is desired in place of
    /// a virtual service that stays for a while, or the same.
    pub(super) fn note_refused(
        &mut self,
        desired: &Desired,
        at: Moment,
        successor: impl Fn(&ServiceKey) -> ServiceKey,
    ) -> bool {
        let mut is_any = false;
        for RefusedPart { key, part } in self.virtuals.target().take_refused() {
            let (key, refused) = (successor(&key), Refused::of(part));
            let is_wanted = desired.virtuals.get(&key).is_some_and(|wanted| refused.clone().is_of(wanted));
            if is_wanted && !refused.is_everybodys() {
                self.refused.tried.remove(&key);
                self.refused.present.retain(|name| refused.scheduler != Some(*name));
                self.refused.all.entry(key).or_default().join(refused);
                is_any = true;
            }
        }
        if is_any {
            self.refused.try_later(at);
            self.virtuals.try_at_once();
        }
        is_any
    }

    /// Ends the tries where nothing is refused any more. What could not be tried in this round is still refused: nothing could be read, say, or nothing that exists may change.
    pub(super) fn end_refused(&mut self, desired: &Desired, at: Moment) {
        let tried = std::mem::take(&mut self.refused.tried);
        let asked = std::mem::take(&mut self.refused.asked);
        let were_any = !tried.is_empty();
        let (taken, left): (BTreeMap<_, _>, BTreeMap<_, _>) =
            tried.into_iter().partition(|(key, refused)| self.has_taken(desired, key, refused));
        // Also where the kernel takes the scheduler and refuses an endpoint of the same Service.
        let has_come = |(name, key): (SchedulerName, ServiceKey)| {
            let refused = Refused::of(Part::Scheduler(name));
            self.has_taken(desired, &key, &refused).then_some(name)
        };
        let present: Vec<SchedulerName> = asked.into_iter().filter_map(has_come).collect();
        let goes_on = !taken.is_empty() || !present.is_empty();
        self.refused.all.extend(left);
        self.refused.present.extend(present);
        if self.refused.all.is_empty() {
            self.refused = RefusedParts::default();
        } else if goes_on {
            // It may take the others at once, too.
            self.refused.backoff.succeeded();
            self.refused.try_later(at);
            self.refused.backoff.hasten(at.now);
        } else if were_any {
            self.refused.try_later(at);
        }
    }

    /// Returns whether the kernel was seen to have what it refused, where it is to be or in what is there before.
    fn has_taken(&self, desired: &Desired, key: &ServiceKey, refused: &Refused) -> bool {
        let Some(seen) = self.virtuals.seen() else { return false };
        let former = || seen.get(&self.former_of(desired, &desired.port_of(key)?)?.0);
        seen.get(key).or_else(former).is_some_and(|found| refused.is_all_in(found))
    }

    /// Returns the desired virtual services without what the kernel refuses. Virtual services have to be known.
    pub(super) fn virtuals_it_takes<'a>(&self, desired: &'a Desired) -> Cow<'a, BlockMap<ServiceKey, Virtual>> {
        let mut virtuals = Cow::Borrowed(&desired.virtuals);
        for (key, refused) in &self.refused.all {
            let Some(wanted) = desired.virtuals.get(key) else { continue };
            let seen = self.virtuals.seen().and_then(|seen| seen.get(key));
            virtuals.to_mut().insert(*key, refused.left_of(wanted, seen));
        }
        virtuals
    }
}

impl RefusedParts {
    /// Moves those that this round tries to `tried`.
    fn begin_tries(&mut self) {
        let had_its_turn = |key: &ServiceKey| self.last.is_some_and(|last| *key <= last);
        let (others, first) = (self.all.iter(), self.all.iter().filter(|(key, _)| !had_its_turn(key)));
        let in_turn = first.chain(others.filter(|(key, _)| had_its_turn(key)));
        let mut asked = BTreeMap::new();
        let mut is_tried = |key: &ServiceKey, refused: &Refused| {
            let Some(name) = refused.scheduler.filter(|name| !self.present.contains(name)) else { return true };
            *asked.entry(name).or_insert(*key) == *key
        };
        let keys = in_turn.filter(|(key, refused)| is_tried(key, refused)).map(|(key, _)| *key).take(TRIED);
        let keys: Vec<ServiceKey> = keys.collect();
        self.last = keys.last().copied();
        self.asked = asked;
        self.tried = keys.into_iter().filter_map(|key| self.all.remove_entry(&key)).collect();
    }

    fn try_later(&mut self, at: Moment) {
        if self.backoff.is_due(at.now) {
            self.backoff.failed(at.now, at.jitter);
        }
    }

    /// Returns a virtual service without what the kernel refuses of it, or of the one that is to take its place (`key`). `seen`: as the kernel has it.
    pub(super) fn left_of(&self, key: &ServiceKey, wanted: Virtual, seen: Option<&Virtual>) -> Virtual {
        match self.all.get(key) {
            Some(refused) => refused.left_of(&wanted, seen),
            None => wanted,
        }
    }
}

impl Refused {
    fn of(part: Part) -> Refused {
        match part {
            Part::Scheduler(name) => Refused { scheduler: Some(name), ..Refused::default() },
            Part::Destination(address) => Refused { destinations: [address].into(), ..Refused::default() },
        }
    }

    fn join(&mut self, other: Refused) {
        self.scheduler = other.scheduler.or(self.scheduler);
        self.destinations.extend(other.destinations);
    }

    /// Keeps what a virtual service still asks for; returns whether that is anything.
    fn is_of(&mut self, wanted: &Virtual) -> bool {
        self.scheduler = self.scheduler.filter(|name| wanted.service.scheduler == *name);
        self.destinations.retain(|address| wanted.destinations.find(*address).is_some());
        self.scheduler.is_some() || !self.destinations.is_empty()
    }

    fn is_all_in(&self, found: &Virtual) -> bool {
        self.scheduler.is_none_or(|name| found.service.scheduler == name)
            && self.destinations.iter().all(|address| found.destinations.find(*address).is_some())
    }

    /// Returns whether it is what Services have without asking for it.
    fn is_everybodys(&self) -> bool {
        self.scheduler.is_some_and(|name| name == Scheduler::default().name())
    }

    /// Returns what is left of a virtual service. `seen`: as the kernel has it.
    fn left_of(&self, wanted: &Virtual, seen: Option<&Virtual>) -> Virtual {
        let destinations = wanted.destinations.iter().filter(|it| !self.destinations.contains(&it.address)).collect();
        let mut left = Virtual { service: wanted.service.clone(), destinations };
        if self.scheduler.is_some() {
            let (kept, flags) = match seen {
                Some(Virtual { service: Service { scheduler, flags, .. }, .. }) => (*scheduler, *flags),
                None => (Scheduler::default().name().into(), 0),
            };
            let its = (flags & OF_SCHEDULERS) | scheduler::draining_flags(&kept, left.destinations.iter());
            left.service =
                Service { scheduler: kept, flags: (left.service.flags & !OF_SCHEDULERS) | its, ..left.service };
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::ipvs::{Destination, Forwarding};
    use crate::net::Protocol;

    fn endpoint(last: u8) -> SocketAddr {
        ([10, 244, 1, last], 80).into()
    }

    fn of(scheduler: &str, flags: u32, endpoints: &[u8]) -> Virtual {
        let destination = |last: &u8| Destination { address: endpoint(*last), weight: 1, forwarding: Forwarding::Nat };
        let service = Service { scheduler: scheduler.into(), flags, persistence_seconds: 60 };
        Virtual { service, destinations: endpoints.iter().map(destination).collect() }
    }

    #[test]
    fn a_virtual_service_keeps_its_scheduler_and_gets_all_else_where_the_new_one_is_refused() {
        let refused = Refused::of(Part::Scheduler("mh".into()));
        let wanted = of("mh", flags::PERSISTENT | flags::SCHEDULER_2, &[1, 2]);
        assert_eq!(refused.left_of(&wanted, Some(&of("wlc", 0, &[3]))), of("wlc", flags::PERSISTENT, &[1, 2]));
    }

    #[test]
    fn a_new_virtual_service_has_the_scheduler_that_nobody_asks_for_where_its_own_is_refused() {
        let refused = Refused::of(Part::Scheduler("mh".into()));
        let wanted = of("mh", flags::PERSISTENT | flags::SCHEDULER_1 | flags::SCHEDULER_2, &[1, 2]);
        assert_eq!(refused.left_of(&wanted, None), of("rr", flags::PERSISTENT, &[1, 2]));
    }

    #[test]
    fn refused_destinations_are_left_out_and_forgotten_with_the_endpoints() {
        let mut refused = Refused::of(Part::Destination(endpoint(255)));
        assert_eq!(refused.left_of(&of("rr", 0, &[1, 255]), None), of("rr", 0, &[1]));
        assert!(refused.is_of(&of("rr", 0, &[1, 255])) && !refused.is_of(&of("rr", 0, &[1])));
    }

    #[test]
    fn one_virtual_service_of_each_scheduler_is_tried_and_the_others_when_the_kernel_has_it() {
        let key = |port| ServiceKey::Address { address: [10, 96, 0, 1].into(), protocol: Protocol::Tcp, port };
        let of_scheduler = |name: &str| Refused::of(Part::Scheduler(name.into()));
        let mut parts = RefusedParts::default();
        parts.all.extend((0..600).map(|port| (key(port), of_scheduler(if port % 2 == 0 { "mh" } else { "ovf" }))));
        parts.all.extend((600..1000).map(|port| (key(port), Refused::of(Part::Destination(endpoint(255))))));
        let turn = |parts: &mut RefusedParts| {
            parts.begin_tries();
            let tried = std::mem::take(&mut parts.tried);
            assert!(tried.len() <= TRIED);
            parts.all.extend(tried.clone());
            tried
        };
        let of = |tried: &BTreeMap<ServiceKey, Refused>, name: &str| {
            tried.values().filter(|it| it.scheduler == Some(name.into())).count()
        };
        // Endpoints have their turns: in two rounds each of them is tried.
        let rounds = [turn(&mut parts), turn(&mut parts)];
        assert!(rounds.iter().all(|tried| [of(tried, "mh"), of(tried, "ovf")] == [1, 1]));
        let keys: BTreeSet<ServiceKey> = rounds.iter().flat_map(BTreeMap::keys).copied().collect();
        assert_eq!(keys.len(), 2 + 400);
        // And in three all that are served by what is there.
        parts.present.insert("mh".into());
        let rounds = [turn(&mut parts), turn(&mut parts), turn(&mut parts)];
        assert!(rounds.iter().all(|tried| of(tried, "ovf") <= 1));
        let keys: BTreeSet<ServiceKey> = rounds.iter().flat_map(BTreeMap::keys).copied().collect();
        assert!(keys.len() >= 300 + 400, "{}", keys.len());
        assert_eq!(parts.all.len(), 1000);
    }

    #[test]
    fn the_scheduler_that_nobody_asks_for_is_no_part_that_may_be_left_out() {
        assert!(Refused::of(Part::Scheduler("rr".into())).is_everybodys());
        assert!(!Refused::of(Part::Scheduler("ovf".into())).is_everybodys());
    }
}
