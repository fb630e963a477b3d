//! Which addresses a Service is to have, with everybody else as they are.
//!
//! - An address that it has, in its status or by an earlier decision, stays while it fits: a restart and another leader move nothing.
//! - Of two that have one address and may not share it, one loses it at once: who has it in the status wins over who was only to have
//!   it, then the older Service, then the first by name. Every leader decides alike.
//! - What others wrote into the status of a Service without a class, an address of no pool, stays, and stands for its family. Who wrote it is known of writes of this
//!   process, and else from the API server, where no entry of others was beside it.
//! - A new address is free, or all who use it agree to share it. An address is in use while it is decided for a Service, in its
//!   status, in its `externalIPs`, or may still get into the status by a write that was begun.

use std::net::IpAddr;

use super::allocator::{Allocator, Entry};
use super::notice::{Loss, Problem};
use super::pools::{Pools, Recipient};
use super::waiting::Wait;
use crate::model::{BalancedService, ObjectName};
use crate::net::Family;

/// The addresses that a Service is to have.
#[derive(Default, Debug)]
pub struct Decision {
    pub given: Vec<IpAddr>,
    pub problems: Vec<Problem>,
    /// Addresses and pools with which it would have more.
    pub waits: Vec<Wait>,
}

/// Maximum number of Services on one address, and of addresses that are looked at for one that is to be shared: each change of a Service has all who
/// share its address looked at again, so without a bound one tenant with one key could keep everybody waiting.
pub(super) const MOST_SHARED: usize = 64;

/// The class of Services that are ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class<'a> {
    /// `kube-router`, or none and `--loadbalancer-default-class`.
    General,
    /// One that begins with `kube-router/`: only pools that name it are for it.
    Own(&'a str),
}

/// Returns the class of a Service that is ours; `None` for one that is others'.
pub fn class_of(service: &BalancedService, takes_default: bool) -> Option<Class<'_>> {
    let class = service.class.as_deref().unwrap_or("default");
    match class {
        _ if !service.is_balancer => None,
        "kube-router" => Some(Class::General),
        "default" => takes_default.then_some(Class::General),
        other => other.starts_with("kube-router/").then_some(Class::Own(other)),
    }
}

/// Returns whether the class of a Service of ours says that no other allocator gives it addresses.
pub fn has_exclusive_class(service: &BalancedService) -> bool {
    service.class.as_deref().is_some_and(|class| class != "default")
}

/// One Service, and its surroundings.
struct Case<'a> {
    all: &'a Allocator,
    pools: &'a Pools,
    name: &'a ObjectName,
    entry: &'a Entry,
    class: Option<&'a str>,
}

/// Decides about one Service. `offered`: an address that it might come to share, to be looked at before others.
pub fn decide(all: &Allocator, pools: &Pools, name: &ObjectName, entry: &Entry, offered: Option<IpAddr>) -> Decision {
    let service = &entry.service;
    let Some(case) = Case::of(all, pools, name, entry) else { return Decision::default() };
    let mut decision = Decision::default();
    if let Some(text) = &service.request.mistake {
        decision.problems.push(Problem::Mistake(text.clone()));
    }
    if let Some(pool) = service.request.pool.as_ref().filter(|pool| !pools.is_known(pool)) {
        decision.problems.push(Problem::UnknownPool(pool.clone()));
    }
    let asked = service.request.addresses.v4.into_iter().chain(service.request.addresses.v6);
    let of_no_family = asked.filter(|address| !service.families.contains(&Family::from(*address)));
    decision.problems.extend(of_no_family.map(Problem::OtherFamily));
    let mut of_others = 0;
    for family in &service.families {
        let kept = case.kept(*family);
        let is_in_status = kept.is_some_and(|address| service.status.contains(&address));
        match kept {
            // Also in the place of an address that was only to be given: two allocators would write over each other for ever.
            _ if !is_in_status && case.has_of_others(*family) => of_others += 1,
            Some(address) => {
                decision.problems.extend(pools.is_of_node(address).then_some(Problem::HasOfNode(address)));
                decision.given.push(address);
            }
            // Nothing new is given to a request that cannot be understood.
            None if service.request.mistake.is_none() => {
                let offered = offered.filter(|address| Family::from(*address) == *family);
                case.choose(*family, offered, &mut decision);
            }
            None => {}
        }
    }
    if service.needs_all_families && decision.given.len() + of_others < service.families.len() {
        decision.given.clear();
    }
    // Who prefers two families is content with one.
    if !service.needs_all_families && (!decision.given.is_empty() || of_others > 0) {
        decision.problems.retain(|problem| !matches!(problem, Problem::NoPool(_)));
    }
    decision
}

/// Returns why an address of the status leaves a Service about which is decided; `None` for a Service that is others'.
pub fn loss(all: &Allocator, pools: &Pools, name: &ObjectName, entry: &Entry, address: IpAddr) -> Option<Loss> {
    let case = Case::of(all, pools, name, entry)?;
    let (service, family) = (&entry.service, Family::from(address));
    let asked = service.request.addresses.of(family).filter(|_| service.request.mistake.is_none());
    Some(match () {
        () if !service.families.contains(&family) => Loss::OtherFamily,
        () if asked.is_some_and(|asked| asked != address) => Loss::OtherRequest,
        () if !pools.may_keep(address, case.recipient()) => Loss::OfNoPool,
        () if case.is_lost(address) => Loss::OtherOwner,
        () if service.needs_all_families && entry.given.is_empty() => Loss::Incomplete,
        () => Loss::Surplus,
    })
}

/// Returns whether a decision about a Service that asks for an address might be another one, now that somebody has room beside those who use it.
pub fn may_have(all: &Allocator, pools: &Pools, name: &ObjectName, entry: &Entry, address: IpAddr) -> bool {
    let is_told_otherwise = entry.problems.contains(&Problem::Crowded(address));
    is_told_otherwise || Case::of(all, pools, name, entry).is_some_and(|case| case.is_to_be_had(address))
}

/// Returns whether a Service might come to share an address with all who use it.
pub fn may_come_to_share(all: &Allocator, pools: &Pools, name: &ObjectName, entry: &Entry, address: IpAddr) -> bool {
    Case::of(all, pools, name, entry)
        .is_some_and(|case| case.is_offered(address) && pools.may_give(address) && case.is_to_be_had(address))
}

impl<'a> Case<'a> {
    /// `None` for a Service that is others'.
    fn of(all: &'a Allocator, pools: &'a Pools, name: &'a ObjectName, entry: &'a Entry) -> Option<Case<'a>> {
        let class = match class_of(&entry.service, all.takes_default())? {
            Class::General => None,
            Class::Own(class) => Some(class),
        };
        Some(Case { all, pools, name, entry, class })
    }
}

impl Case<'_> {
    fn service(&self) -> &BalancedService {
        &self.entry.service
    }

    fn recipient(&self) -> Recipient<'_> {
        Recipient { name: self.name, service: self.service(), class: self.class }
    }

    fn admits(&self, address: IpAddr) -> bool {
        let pool = self.pools.pool_of(address);
        pool.is_some_and(|pool| self.pools.admits(pool, self.recipient()))
    }

    /// Returns whether an address is of a pool from which the Service is given addresses that it does not name.
    fn is_offered(&self, address: IpAddr) -> bool {
        let pool = self.pools.pool_of(address);
        pool.is_some_and(|pool| self.pools.is_offered(pool, self.recipient()))
    }

    /// The address of a family that the Service has and that still fits. What stands, or stood after a write of this tenure and was undone, comes before what
    /// was only decided: where the cause of a move is gone before it is written, or was in an older list of Services, nothing moves.
    fn kept(&self, family: Family) -> Option<IpAddr> {
        let request = &self.service().request;
        // A request that cannot be understood takes nothing away.
        let asked = request.addresses.of(family).filter(|_| request.mistake.is_none());
        let (given, status) = (&self.entry.given, &self.service().status);
        let written = self.entry.written.as_ref().map_or(&[][..], |(_, addresses)| addresses);
        let stands = given.iter().filter(|address| status.contains(address) || written.contains(address));
        let has = stands.chain(status).chain(given).copied();
        let mut of_family = has.filter(|address| Family::from(*address) == family);
        of_family.find(|address| {
            asked.is_none_or(|asked| asked == *address)
                && self.pools.may_keep(*address, self.recipient())
                && !self.is_lost(*address)
        })
    }

    /// Returns whether the status has an address of a family that another allocator gave.
    fn has_of_others(&self, family: Family) -> bool {
        let asked = self.service().request.addresses.of(family);
        let mut of_family = self.service().status.iter().filter(|address| Family::from(**address) == family);
        !has_exclusive_class(self.service())
            && of_family.any(|it| {
                let is_from_here = self.service().is_given_here || self.entry.is_from_here(*it);
                let is_others = !self.pools.name_address(*it) && !is_from_here;
                is_others && asked.is_none_or(|asked| asked == *it)
            })
    }

    /// Returns whether an address that the Service has is somebody else's rather than its own.
    fn is_lost(&self, address: IpAddr) -> bool {
        let rank = |name: &ObjectName, entry: &Entry| {
            (!entry.service.status.contains(&address), entry.service.created, name.clone())
        };
        let mine = rank(self.name, self.entry);
        let is_in_my_status = !mine.0;
        self.others(address).any(|(name, other)| {
            if self.may_share(name, other) {
                return false;
            }
            if !is_in_my_status && other.has_or_gets(address) {
                return true;
            }
            let is_in_its_status = other.service.status.contains(&address);
            let claims = other.given.contains(&address) || is_in_its_status && self.all.is_undecided(name, other);
            let is_ours = class_of(&other.service, self.all.takes_default()).is_some();
            is_ours && claims && rank(name, other) < mine
        })
    }

    /// The other users of an address.
    fn others(&self, address: IpAddr) -> impl Iterator<Item = (&ObjectName, &Entry)> {
        self.all.users(address).filter(|(name, _)| *name != self.name)
    }

    fn may_share(&self, name: &ObjectName, other: &Entry) -> bool {
        name.namespace == self.name.namespace
            && class_of(&other.service, self.all.takes_default()).is_some()
            && self.service().can_share_with(&other.service)
    }

    /// Returns whether nobody uses the address who would not share it.
    fn is_to_be_had(&self, address: IpAddr) -> bool {
        // Whether there is room is asked first: many may wait for an address that has none.
        self.has_room(address)
            && self
                .others(address)
                .all(|(name, other)| self.may_share(name, other) && !other.service.external_ips.contains(&address))
    }

    /// Returns whether another Service may still have an address too.
    fn has_room(&self, address: IpAddr) -> bool {
        self.others(address).take(MOST_SHARED).count() < MOST_SHARED
    }

    /// Chooses a new address of a family.
    fn choose(&self, family: Family, offered: Option<IpAddr>, decision: &mut Decision) {
        if let Some(asked) = *self.service().request.addresses.of(family) {
            let problem = match () {
                () if !self.admits(asked) => Problem::Outside(asked),
                () if self.pools.is_of_node(asked) => Problem::OfNode(asked),
                () if !self.pools.may_give(asked) => Problem::Edge(asked),
                () if !self.has_room(asked) => Problem::Crowded(asked),
                () if !self.is_to_be_had(asked) => Problem::Taken(asked),
                () => return decision.given.push(asked),
            };
            decision.waits.push(Wait::Address(asked));
            return decision.problems.push(problem);
        }
        if let Some(address) = self.shared(family, offered, decision) {
            return decision.given.push(address);
        }
        let mut has_pool = false;
        for pool in self.pools.offers(self.recipient()) {
            if let Some(address) = self.pools.first_free(pool, family) {
                return decision.given.push(address);
            }
            has_pool |= self.pools.has_family(pool, family);
            decision.waits.push(Wait::Pool(pool, family));
        }
        let key = self.service().sharing_key.clone();
        decision.waits.extend(key.map(|key| Wait::Shared((*self.name.namespace).clone(), key, family)));
        let is_unknown = decision.problems.iter().any(|problem| matches!(problem, Problem::UnknownPool(_)));
        if !is_unknown {
            decision.problems.push(if has_pool { Problem::Exhausted(family) } else { Problem::NoPool(family) });
        }
    }

    /// An address of a family that Services with the same sharing key have, and that the Service may have too. One that only a Node keeps from it is told.
    fn shared(&self, family: Family, offered: Option<IpAddr>, decision: &mut Decision) -> Option<IpAddr> {
        let shared = self.all.shared_addresses(self.name, self.service());
        let of_family = shared.filter(|address| Family::from(*address) == family).take(MOST_SHARED);
        let mut fits = offered
            .into_iter()
            .chain(of_family)
            .filter(|address| self.is_offered(*address) && self.is_to_be_had(*address));
        let mut of_node = None;
        let found = fits.find(|address| {
            let is_of_node = self.pools.is_of_node(*address);
            of_node = of_node.or(is_of_node.then_some(*address));
            !is_of_node && self.pools.may_give(*address)
        });
        if found.is_none() {
            decision.problems.extend(of_node.map(Problem::SharedOfNode));
        }
        found
    }
}
