//! Virtual services as a kind of kernel objects: ours are read, compared and changed.

mod looks;
mod refusals;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::BuildHasher;
use std::net::SocketAddr;

use foldhash::quality::RandomState;

use self::refusals::{Act, explain};
use super::commands::Commands;
use super::glance::{self, Glancer};
use super::listing::Listing;
use super::order::{self, Ordered};
use super::ownership::{Ours, Ownership, Whose, of_predicate};
use super::replacement;
use super::wire::{self, Command};
use super::{
    Connections, Destination, Destinations, Forwarding, Observed, ObservedDestination, Service, ServiceKey, Stats,
    Timeouts, Virtual,
};
use crate::kernel::netlink::{Answer, Fault, GenericSocket, Messages, failed_steps};
use crate::kernel::{Cause, Error};
use crate::reconcile::{Failure, Glance, Phase, Sorted, Step, Target};

pub use self::refusals::{Part, RefusedPart};

/// The virtual services of one network namespace that are ours.
pub struct Services {
    socket: GenericSocket,
    for_destinations: GenericSocket,
    whose: Ownership,
    /// A kernel without IPVS has no services, and that is no failure.
    may_be_missing: bool,
    messages: Messages,
    spread: RandomState,
    glancer: Glancer,
    commands: Commands,
    /// The last glance could not see everything.
    missed: bool,
    /// All IPv6 services, as a file lists them, until they have been compared.
    listing: Option<Listing>,
    ordered: Ordered,
    /// Parts that were refused since somebody asked.
    refused: Vec<RefusedPart>,
}

/// Name of the kind, in the log, in answers to users, and as the component of notes.
pub const VIRTUAL_SERVICES: &str = "virtual services";

/// Each service costs a request and a dump, some ten system calls.
const AUDIT_PORTION: usize = 64;

/// Bytes written before they are sent: many sends' worth, and little memory however many services there are.
const AT_ONCE_BYTES: usize = 1 << 20;

impl Services {
    /// Opens sockets in the network namespace of the calling thread. The module `ip_vs` is loaded by the kernel
    /// when the first request is made.
    ///
    /// # Errors
    /// The kernel refuses a netlink socket.
    pub fn open(ours: Ours) -> Result<Services, Error> {
        let socket = GenericSocket::open(wire::FAMILY)?;
        let for_destinations = GenericSocket::open(wire::FAMILY)?.with_short_dumps();
        let spread = RandomState::default();
        Ok(Services {
            socket,
            for_destinations,
            whose: of_predicate(ours),
            may_be_missing: false,
            messages: Messages::new(),
            spread,
            glancer: Glancer::open(),
            commands: Commands::default(),
            missed: false,
            listing: None,
            ordered: Ordered::default(),
            refused: Vec::new(),
        })
    }

    /// For cleanup: a kernel without IPVS holds no services, which is no error.
    pub fn accept_missing_ipvs(&mut self) {
        self.may_be_missing = true;
    }

    /// Replaces the rule by which services are recognised. What it denies is neither read nor returned.
    pub fn set_ours(&mut self, ours: Ours) {
        self.set_ownership(of_predicate(ours));
    }

    /// Like [`set_ours`](Self::set_ours), where the content decides about some.
    pub fn set_ownership(&mut self, whose: Ownership) {
        self.glancer.ownership_changes();
        self.whose = whose;
    }

    /// Returns the counters of all services that are ours, in the kernel's order.
    ///
    /// # Errors
    /// The kernel has no IPVS or did not list its services, or an answer was malformed.
    pub fn stats(&mut self) -> Result<Vec<(ServiceKey, Stats)>, Error> {
        let whose = &self.whose;
        wire::name_service(fresh(&mut self.messages), Command::ListServices, None);
        self.socket
            .dump(&mut self.messages, |answer| wire::stats(answer).filter(|(key, _)| whose(key) == Whose::Ours))
            .map_err(|fault| Error::new("read counters of virtual services", "", fault.into()))
    }

    /// Returns the connections that the destinations of a service have now; none where the service does not exist.
    ///
    /// # Errors
    /// The kernel has no IPVS or did not list the destinations, or an answer was malformed.
    pub fn connections(&mut self, key: &ServiceKey) -> Result<Vec<(Destination, Connections)>, Error> {
        self.list_destinations(key)
    }

    /// Returns a virtual service as it is now, with its counters and those of its destinations, whoever made it; `None` where it does not
    /// exist.
    ///
    /// # Errors
    /// The kernel has no IPVS or did not describe the service, or an answer was malformed.
    pub fn observe(&mut self, key: &ServiceKey) -> Result<Option<Observed>, Error> {
        wire::name_service(fresh(&mut self.messages), Command::ListServices, Some(key));
        let described =
            |answer: &Answer<'_>| Some((wire::service(answer)?, wire::stats(answer).map(|(_, stats)| stats)));
        let told = match self.socket.request(&mut self.messages, described) {
            Ok(told) => told,
            Err(Fault::Refused(refusal)) if refusal.errno == libc::ESRCH => Vec::new(),
            Err(fault) => return Err(Error::new("read virtual service", key.to_string(), fault.into())),
        };
        let Some(((_, service), stats)) = told.into_iter().find(|((told, _), _)| told == key) else { return Ok(None) };
        wire::name_service(fresh(&mut self.messages), Command::ListDestinations, Some(key));
        let listed = self.for_destinations.dump(&mut self.messages, |answer| {
            let (destination, connections) = wire::destination(answer, key.family())?;
            Some(ObservedDestination { destination, connections, stats: wire::destination_stats(answer) })
        });
        let mut destinations =
            listed.map_err(|fault| Error::new("list destinations of", key.to_string(), fault.into()))?;
        destinations.sort_unstable();
        Ok(Some(Observed { service, stats: stats.unwrap_or_default(), destinations }))
    }

    /// Returns the timeouts of the network namespace.
    ///
    /// # Errors
    /// The kernel has no IPVS, or its answer was malformed.
    pub fn timeouts(&mut self) -> Result<Timeouts, Error> {
        const OPERATION: &str = "read IPVS timeouts";
        wire::ask_for_timeouts(fresh(&mut self.messages));
        let told = self
            .socket
            .request(&mut self.messages, wire::timeouts)
            .map_err(|fault| Error::new(OPERATION, "", fault.into()))?;
        told.first().copied().ok_or_else(|| Error::new(OPERATION, "", Cause::Malformed("no timeouts told")))
    }

    /// Sets those timeouts that are not 0 and not already so; returns whether anything was written.
    ///
    /// # Errors
    /// The kernel has no IPVS or refused the timeouts, or an answer was malformed.
    pub fn set_timeouts(&mut self, want: Timeouts) -> Result<bool, Error> {
        let have = self.timeouts()?;
        let needed = |want: u32, have: u32| if want == have { 0 } else { want };
        let change = Timeouts {
            tcp: needed(want.tcp, have.tcp),
            tcp_fin: needed(want.tcp_fin, have.tcp_fin),
            udp: needed(want.udp, have.udp),
        };
        if change == Timeouts::default() {
            return Ok(false);
        }
        wire::set_timeouts(fresh(&mut self.messages), &change);
        self.socket
            .request(&mut self.messages, |_| Some(()))
            .map_err(|fault| Error::new("set IPVS timeouts", "", fault.into()))?;
        Ok(true)
    }

    /// Returns the parts of virtual services that the kernel has refused because of what is in them, since the last call.
    pub fn take_refused(&mut self) -> Vec<RefusedPart> {
        std::mem::take(&mut self.refused)
    }

    /// Sends what is planned so far and empties the plan.
    fn send(&mut self, plan: &mut Plan, steps: &[Step<'_, ServiceKey, Virtual>]) -> Vec<Failure<Error>> {
        let result = self.socket.batch(&mut plan.messages).map(|mut refusals| {
            self.commands.gave(plan.owners.len().saturating_sub(refusals.len()));
            for refusal in &mut refusals {
                let owner = plan.owners.get(refusal.message).and_then(|step| steps.get(*step));
                let refused = explain(refusal, &plan.acts).zip(owner);
                self.refused.extend(refused.map(|(part, step)| RefusedPart { key: *step.key, part }));
            }
            refusals
        });
        let failures = failed_steps(result, &plan.owners, |index, cause| {
            let step = steps.get(index).expect("a failure belongs to a step");
            let operation = match (step.have, step.want) {
                (None, _) => "add virtual service",
                (_, None) => "delete virtual service",
                _ => "change virtual service",
            };
            Error::new(operation, step.key.to_string(), cause)
        });
        plan.messages.clear();
        plan.owners.clear();
        plan.acts.clear();
        failures
    }

    fn list_destinations(&mut self, key: &ServiceKey) -> Result<Vec<(Destination, Connections)>, Error> {
        wire::name_service(fresh(&mut self.messages), Command::ListDestinations, Some(key));
        self.for_destinations
            .dump(&mut self.messages, |answer| wire::destination(answer, key.family()))
            .map_err(|fault| Error::new("list destinations of", key.to_string(), fault.into()))
    }

    /// Reads the destinations of a service, and notes in what order the kernel has them.
    fn with_destinations(&mut self, key: &ServiceKey, service: Service) -> Result<Virtual, Error> {
        let mut listed: Vec<Destination> =
            self.list_destinations(key)?.into_iter().map(|(destination, _)| destination).collect();
        let is_in_order = listed.is_sorted_by_key(|destination| destination.address);
        listed.sort_unstable();
        let found = Virtual { service, destinations: listed.into() };
        self.ordered.found(key, &found, is_in_order);
        Ok(found)
    }
}

impl Target for Services {
    type Key = ServiceKey;
    type Value = Virtual;
    type Error = Error;

    fn name(&self) -> &'static str {
        VIRTUAL_SERVICES
    }

    fn read(&mut self) -> Result<BTreeMap<ServiceKey, Virtual>, Error> {
        self.glancer.compare_anew();
        let of_all = |fault: Fault| Error::new("list virtual services", "", fault.into());
        if self.may_be_missing && !self.socket.exists().map_err(of_all)? {
            return Ok(BTreeMap::new());
        }
        let may_be_ours = |key: &ServiceKey| (self.whose)(key) != Whose::SomebodyElses;
        wire::name_service(fresh(&mut self.messages), Command::ListServices, None);
        let services = self
            .socket
            .dump(&mut self.messages, |answer| wire::service(answer).filter(|(key, _)| may_be_ours(key)))
            .map_err(of_all)?;
        let mut found = BTreeMap::new();
        for (key, service) in services {
            found.insert(key, self.with_destinations(&key, service)?);
        }
        found.retain(|key, found| (self.whose)(key).is_ours(found));
        Ok(found)
    }

    fn read_some(&mut self, keys: &[ServiceKey]) -> Result<BTreeMap<ServiceKey, Virtual>, Error> {
        self.glancer.compare_anew();
        let mut found = BTreeMap::new();
        let may_be_ours = |key: &&ServiceKey| (self.whose)(key) != Whose::SomebodyElses;
        for key in keys.iter().filter(may_be_ours).copied().collect::<Vec<_>>() {
            wire::name_service(fresh(&mut self.messages), Command::ListServices, Some(&key));
            let service = match self.socket.request(&mut self.messages, wire::service) {
                Ok(told) => told.into_iter().find(|(told, _)| *told == key).map(|(_, service)| service),
                Err(Fault::Refused(refusal)) if refusal.errno == libc::ESRCH => None,
                Err(fault) => return Err(Error::new("read virtual service", key.to_string(), fault.into())),
            };
            if let Some(service) = service {
                found.insert(key, self.with_destinations(&key, service)?);
            }
        }
        found.retain(|key, found| (self.whose)(key).is_ours(found));
        Ok(found)
    }

    fn keys(&mut self) -> Result<BTreeSet<ServiceKey>, Error> {
        let may_be_ours = |key: &ServiceKey| (self.whose)(key) != Whose::SomebodyElses;
        wire::name_service(fresh(&mut self.messages), Command::ListServices, None);
        let listed = self
            .socket
            .dump(&mut self.messages, |answer| wire::service_key(answer).filter(may_be_ours))
            .map_err(|fault| Error::new("list virtual services", "", fault.into()))?;
        let mut keys: BTreeSet<ServiceKey> = listed.into_iter().collect();
        let by_content = keys.iter().filter(|key| (self.whose)(key).depends_on_content());
        let by_content: Vec<ServiceKey> = by_content.copied().collect();
        let found = self.read_some(&by_content)?;
        keys.retain(|key| !by_content.contains(key) || found.contains_key(key));
        Ok(keys)
    }

    fn glance(&mut self, seen: &impl Sorted<ServiceKey, Virtual>) -> Glance<ServiceKey> {
        let of_ipv4 = self.glancer.unlike_ipv4(seen, |key| (self.whose)(key) == Whose::Ours);
        self.missed = of_ipv4.is_none();
        let mut suspects = of_ipv4.unwrap_or_default();
        if self.glancer.must_list_ipv6(seen) {
            match self.keys() {
                Ok(listed) => suspects.extend(glance::unlike_ipv6(seen, &listed)),
                Err(_) => {
                    self.glancer.forget();
                    self.missed = true;
                }
            }
        }
        if suspects.is_empty() { Glance::Alike } else { Glance::These(suspects) }
    }

    /// Looks at the destinations alone where the older interface answers, for IPv4: at the other properties a glance looks. Of IPv6
    /// services that the file has listed, flags are left to audits.
    fn unlike(
        &mut self,
        seen: &impl Sorted<ServiceKey, Virtual>,
        keys: &[ServiceKey],
    ) -> Result<Vec<ServiceKey>, Error> {
        let (mut unlike, mut unanswered) = (Vec::new(), Vec::new());
        for key in keys {
            match seen.value(key).and_then(|known| self.glancer.has(key, &known.destinations)) {
                Some(true) => {}
                Some(false) => unlike.push(*key),
                None => unanswered.push(*key),
            }
        }
        let is_listed = |key: &ServiceKey| matches!(key, ServiceKey::Address { address, .. } if address.is_ipv6());
        // A look at services of IPv4 alone leaves a listing that is half read.
        let listing = if unanswered.iter().any(is_listed) { self.listing.take() } else { None };
        if let Some(listing) = listing {
            let (listed, others): (Vec<ServiceKey>, Vec<ServiceKey>) = unanswered.into_iter().partition(is_listed);
            unlike.extend(listing.unlike(listed.iter().map(|key| (key, seen.value(key)))));
            unanswered = others;
        }
        if !unanswered.is_empty() {
            let found = self.read_some(&unanswered)?;
            unlike.extend(unanswered.into_iter().filter(|key| found.get(key) != seen.value(key)));
        }
        Ok(unlike)
    }

    /// The older interface compares destinations of IPv4 services for a twentieth of reading them, all but kinds of tunnels; the glance
    /// at the beginning, or a later one, compared everything else of these services. Where it could not, all are read.
    fn to_audit(&mut self, seen: &impl Sorted<ServiceKey, Virtual>, keys: &[ServiceKey]) -> Vec<ServiceKey> {
        let is_alike = |key: &ServiceKey| {
            let known = &seen.value(key)?.destinations;
            (known.are_all(Forwarding::Nat) && !self.missed).then(|| self.glancer.has(key, known)).flatten()
        };
        keys.iter().filter(|key| is_alike(key) != Some(true)).copied().collect()
    }

    fn audit_portion(&self) -> usize {
        AUDIT_PORTION
    }

    /// Messages of a service stand together, in the order of [`replacement`]. An object that exists already,
    /// or is gone already, fails its step: the last seen state is wrong, so the kernel is read again.
    fn apply(&mut self, _phase: Phase, steps: &[Step<'_, ServiceKey, Virtual>]) -> Vec<Failure<Error>> {
        let mut plan = Plan {
            messages: std::mem::take(fresh(&mut self.messages)),
            owners: Vec::new(),
            acts: Vec::new(),
            spread: self.spread,
        };
        let mut failures = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            plan.add(index, step, self.ordered.has(step.key, step.have));
            if plan.messages.bytes().len() > AT_ONCE_BYTES {
                failures.extend(self.send(&mut plan, steps));
            }
        }
        failures.extend(self.send(&mut plan, steps));
        self.messages = plan.messages;
        self.ordered.note(steps, &failures.iter().map(|failure| failure.step).collect());
        if failures.is_empty() {
            steps.iter().for_each(|step| self.glancer.changed(step.key, step.have, step.want));
        } else {
            self.glancer.compare_anew();
        }
        failures
    }

    fn grown(have: &Virtual, want: &Virtual) -> Virtual {
        let (mut service, destinations) = (want.service.clone(), have.destinations.joined_with(&want.destinations));
        // A destination of weight 0 that has still to go refuses the clients that `sh` and `mh` lead to it, unless they may fall back.
        if replacement::stops_falling_back(&have.service, &service) && destinations.iter().any(|one| one.weight == 0) {
            service.flags |= super::flags::SCHEDULER_1;
        }
        Virtual { service, destinations }
    }

    fn describe(value: &Virtual) -> String {
        value.to_string()
    }

    fn filled(have: &Virtual, want: &Virtual) -> Option<Virtual> {
        let is_empty = have.destinations.is_empty() && !want.destinations.is_empty();
        is_empty.then(|| Virtual { service: have.service.clone(), destinations: want.destinations.clone() })
    }
}

/// The messages of a round.
struct Plan {
    messages: Messages,
    /// The step of each message.
    owners: Vec<usize>,
    /// Action of each message.
    acts: Vec<Act>,
    /// Randomness, different in every process.
    spread: RandomState,
}

/// A virtual service that the kernel has.
struct Former<'a> {
    service: &'a Virtual,
    /// Its destinations are known to be in order.
    is_ordered: bool,
}

impl Plan {
    /// `is_ordered`: the destinations that the kernel has are known to be in order.
    fn add(&mut self, index: usize, step: &Step<'_, ServiceKey, Virtual>, is_ordered: bool) {
        match (step.have, step.want) {
            (_, None) => {
                wire::name_service(&mut self.messages, Command::DeleteService, Some(step.key));
                self.note(index, Act::Delete);
            }
            (None, Some(want)) => {
                self.describe(index, Command::NewService, step.key, want);
                self.change_destinations(index, step.key, None, want);
            }
            (Some(have), Some(want)) => {
                let is_last = replacement::stops_falling_back(&have.service, &want.service);
                if have.service != want.service && !is_last {
                    self.describe(index, Command::SetService, step.key, want);
                }
                self.change_destinations(index, step.key, Some(Former { service: have, is_ordered }), want);
                if is_last {
                    self.describe(index, Command::SetService, step.key, want);
                }
            }
        }
    }

    /// Returns the index to begin at among this many destinations of a service.
    fn start(&self, key: &ServiceKey, count: usize) -> usize {
        let chance = usize::try_from(self.spread.hash_one(key) >> 33).unwrap_or_default();
        chance.checked_rem(count).unwrap_or_default()
    }

    fn describe(&mut self, index: usize, command: Command, key: &ServiceKey, want: &Virtual) {
        wire::describe_service(&mut self.messages, command, key, &want.service);
        self.note(index, Act::Describe(want.service.scheduler));
    }

    /// New destinations come before old ones lose their weight or go. They come in an order that begins at another place on each
    /// node: a scheduler that goes around begins with the first, and all nodes' first clients would go to one. `former`: `None` where
    /// the service is new.
    fn change_destinations(&mut self, index: usize, key: &ServiceKey, former: Option<Former<'_>>, want: &Virtual) {
        let (wanted, had) = (&want.destinations, former.as_ref().map(|former| &former.service.destinations));
        if order::is_one(want) {
            let is_ordered = former.as_ref().is_none_or(|former| former.is_ordered);
            let had = had.map(Destinations::to_vec).unwrap_or_default();
            let changes = order::changes(&had, &wanted.to_vec(), is_ordered);
            changes.into_iter().for_each(|(command, destination)| self.change_one(index, command, key, &destination));
        } else {
            let first = self.start(key, wanted.len());
            replacement::replace(had, wanted, first, |command, destination| {
                self.change_one(index, command, key, destination);
            });
        }
    }

    fn change_one(&mut self, index: usize, command: Command, key: &ServiceKey, destination: &Destination) {
        wire::describe_destination(&mut self.messages, command, key, destination);
        self.note(index, Act::Destination(destination.address));
    }

    fn note(&mut self, index: usize, act: Act) {
        self.owners.push(index);
        self.acts.push(act);
    }
}

/// The destination with this address, of those sorted by address.
pub(super) fn find(destinations: &[Destination], address: SocketAddr) -> Option<&Destination> {
    let index = destinations.binary_search_by_key(&address, |destination| destination.address).ok()?;
    destinations.get(index)
}

fn fresh(messages: &mut Messages) -> &mut Messages {
    messages.clear();
    messages
}

#[cfg(test)]
mod tests;
