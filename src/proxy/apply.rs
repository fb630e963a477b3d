//! Applies a `Desired` service proxy to the kernel.
//!
//! Order of growing; each needs those before it:
//!
//! 1. the device with one address that keeps its routes alive, settings;
//! 2. sets, their elements, the rules that name the sets: a new service port is let in before it answers,
//!    so nobody who was answered once is refused a moment later;
//! 3. virtual services with their destinations;
//! 4. local routes: an address becomes ours when everything behind it stands;
//! 5. rules that refuse the addresses of no Service, once the addresses of all of them are in their set.
//!
//! Shrinking goes the other way. What fails stops nothing but what depends on it: that waits, because the kernel
//! refuses it, or, where the kernel does not know of the dependence, because we do not ask for it.
//!
//! The kernel's own set of service ports says which virtual services are ours: an element is written before its virtual
//! service and removed after it, so a process without memory finds all of ours and never one of another program.
//! Desired ones are ours in any case.
//!
//! Sets, elements and rules are those of iptables and ipset, or all of them are one kind, [`table`](Mirrors): only one of the
//! two is used and desired, and the latter changes in one transaction. What a run with the other one left stays in force, and says which virtual services are ours, until
//! all that replaces it is in place ([`Kernel::remove_abandoned`]).

mod backlog;
mod dsr;
mod elements;
mod flows;
mod former_mode;
mod looks;
mod once;
mod ownership;
mod packet_marks;
mod refused;
mod standing;
mod unallocated;
mod unjudged;
mod virtuals;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;

use crate::kernel::Error;
use crate::kernel::address::AddressKey;
use crate::kernel::bridge::Hairpin;
use crate::kernel::conntrack::{Flows, Remaining};
use crate::kernel::ipset::{ElementKey, SetName, SetSpec};
use crate::kernel::iptables::{Piece, Rules};
use crate::kernel::ipvs::{Counted, Destination, Observed, Ownership, RefusedPart, ServiceKey, Virtual};
use crate::kernel::link::{Link, LinkName};
use crate::kernel::nftables::passages::InHostChain;
use crate::kernel::nftables::{Content, Object};
use crate::kernel::route::{Route, RouteKey};
use crate::kernel::rule::PolicyRule;
use crate::kernel::sysctl::{self, Ruled};
use crate::model::Authority;
use crate::net::PerFamily;
use crate::packed::BlockMap;
use crate::reconcile::{Course, Found, Growth, Moment, Reflection, Target};
use crate::subsystem::{Kinds, kinds};

use self::backlog::Backlog;
pub use self::backlog::PORTION;
use self::elements::{TableLimits, drops_clients};
pub use self::refused::Refused;
use self::refused::RefusedParts;
pub use self::standing::{Beside, Lack};
use super::desired::{Desired, ProxyChanges};
use super::endpoints::DRAINING;
use super::marks::{MarkedElsewhere, Marks};
use super::names::Set;
use super::udp_flows::{Forgetting, UdpFlows};
use super::unjudged::Waiting;

/// The kinds of kernel objects that the service proxy manages. Implemented on Linux (`linux`) and in memory for the simulation.
pub trait Kernel {
    type Links: Target<Key = LinkName, Value = Link>;
    type Settings: Ruled;
    type HairpinPorts: Target<Key = LinkName, Value = Hairpin>;
    type Sets: Target<Key = SetName, Value = SetSpec>;
    type Elements: Target<Key = ElementKey, Value = ()>;
    type Rules: Target<Key = Piece, Value = Rules>;
    type Table: Target<Key = Object, Value = Content>;
    type Passages: InHostChain;
    type Virtuals: Target<Key = ServiceKey, Value = Virtual> + Owned + Connected;
    type PolicyRules: Target<Key = PolicyRule, Value = ()>;
    type Routes: Target<Key = RouteKey, Value = Arc<Route>>;
    type Addresses: Target<Key = AddressKey, Value = ()>;

    /// Deletes conntrack entries. Returns how many were deleted.
    ///
    /// # Errors
    /// The entries of some flows may remain.
    fn forget_flows(&mut self, flows: &[Flows]) -> Result<usize, Remaining>;

    /// Returns what a run with the other backend marked as ours.
    ///
    /// # Errors
    /// The kernel did not list it.
    fn marked_by_other_backend(&mut self) -> Result<MarkedElsewhere, Error>;

    /// Returns whether something of ours is where it no longer belongs: [`remove_abandoned`](Kernel::remove_abandoned) says where. What cannot be read is not.
    fn has_abandoned(&mut self) -> bool {
        false
    }

    /// Removes objects of ours from where they no longer belong: rules in the tables of the iptables variant that the
    /// host has given up, and everything of the other backend. Called once their replacements are in place. Returns why
    /// something could not be removed; `None` after a part of the removal: the next one is to follow soon, and what else there is to do goes first.
    fn remove_abandoned(&mut self) -> Option<Vec<String>>;
}

/// A kind of kernel objects without a mark of their own: the owner has to say which are ours.
pub trait Owned {
    fn set_ownership(&mut self, whose: Ownership);
}

/// A kind of kernel objects that carry connections.
pub trait Connected: Target<Key = ServiceKey, Value = Virtual> {
    /// Returns the number of connections of each destination of a virtual service, in any state.
    ///
    /// # Errors
    /// The kernel did not list them.
    fn connections(&mut self, key: &ServiceKey) -> Result<Vec<(Destination, u64)>, Self::Error>;

    /// Returns a virtual service as it is now, with its counters; `None` where it does not exist.
    ///
    /// # Errors
    /// The kernel did not describe it.
    fn observe(&mut self, key: &ServiceKey) -> Result<Option<Observed>, Self::Error>;

    /// Returns the parts of virtual services that were refused because of what is in them, since the last call.
    fn take_refused(&mut self) -> Vec<RefusedPart>;

    /// Prepares a portion of comparing all IPv6 services at once. Returns whether that can be done now; `None` where reading each costs no more.
    fn list_some(&mut self) -> Option<bool> {
        None
    }

    /// Returns whether the last glance could not see everything.
    fn has_missed(&mut self) -> bool {
        false
    }

    /// Returns whether others have given commands to virtual services since the last call.
    fn others_commands(&mut self, _now: Instant) -> Counted {
        Counted::Not("this kernel does not count them".to_owned())
    }

    /// Forgets what earlier looks found, so that the next ones see what is there now.
    fn look_anew(&mut self) {}
}

kinds! {
    /// Last seen state of the kernel, kind by kind, in the order of growing.
    pub struct Mirrors {
        links: Links after Ours,
        addresses: Addresses after Ours,
        settings: Settings,
        hairpin_ports: HairpinPorts,
        sets: Sets,
        rules: Rules after Rules,
        elements: Elements in BlockMap,
        table: Table in BlockMap after Rules,
        passages: Passages after Rules,
        policy_rules: PolicyRules after RoutingRules,
        virtuals: Virtuals in BlockMap,
        routes: Routes in BlockMap after LocalRoutes,
    }
    with {
        excluded: Vec<IpNet>,
        /// Virtual services of addresses that another program has as well, when all of ours go.
        spared: BTreeSet<ServiceKey>,
        /// Destinations of tunnels that wait for the firewall.
        held_back: Waiting,
        /// Virtual services were read while nobody knew which marks rules give to packets.
        lacks_rules: bool,
        /// Progress of looking at virtual services.
        looks: PerFamily<Course<ServiceKey>>,
        /// The look that follows others' commands has come to IPv6 services.
        looks_at_ipv6: bool,
        udp: UdpFlows,
        /// Everything that the other backend marks as ours; `None` until that could be read.
        marked_elsewhere: Option<MarkedElsewhere>,
        /// The virtual services for marks that were last seen as ours: what a failed step leaves of one is ours, too.
        seen_marks: BTreeSet<ServiceKey>,
        /// True if a remembered cluster is applied; `None` until the kernel could be read.
        uses_memory: Option<bool>,
        /// Parts of virtual services that the kernel refuses because of what is in them.
        refused: RefusedParts,
        /// Changes of destinations that wait for their turn.
        backlog: Backlog,
        /// Number of changes of desired virtual services.
        marks: u64,
        /// State of marks, elements and virtual services for which ownership was last passed on.
        told_for: Option<(u64, u64, u64)>,
    }
}

/// Result of one round.
#[derive(Default, Debug)]
pub struct ProxyRound {
    /// Virtual services created, changed or deleted.
    pub virtuals: usize,
    /// Steps of all kinds together.
    pub steps: u64,
    /// Result of deleting stale UDP conntrack entries, where it was tried.
    pub flows: Option<Forgetting>,
    /// Some of what was marked since the last round waits for its turn.
    pub puts_off: bool,
}

impl<K: Kernel> Mirrors<K> {
    pub fn new(targets: Targets<K>, excluded: Vec<IpNet>) -> Mirrors<K> {
        Mirrors { excluded, ..Mirrors::of(targets) }
    }

    /// The same, for a cleanup that leaves these virtual services, which stand at addresses and not for marks.
    pub fn sparing(self, spared: BTreeSet<ServiceKey>) -> Mirrors<K> {
        Mirrors { spared, ..self }
    }

    /// Reads the ports of bridges again: one that has come is no damage, and lacks what it has not been given yet.
    pub fn look_at_ports(&mut self) {
        self.hairpin_ports.forget();
    }

    /// Marks desired objects as changed.
    pub fn mark(&mut self, changed: &ProxyChanges) {
        if changed.settings {
            self.settings.forget();
        }
        changed.sets.iter().for_each(|key| self.sets.mark(key.clone()));
        changed.elements.iter().for_each(|key| self.elements.mark(key.clone()));
        changed.rules.iter().for_each(|key| self.rules.mark(key.clone()));
        changed.table.iter().for_each(|key| self.table.mark(key.clone()));
        changed.passages.iter().for_each(|key| self.passages.mark(*key));
        changed.virtuals.iter().for_each(|key| self.virtuals.mark(*key));
        self.backlog.mark(&changed.virtuals);
        changed.policy_rules.iter().for_each(|key| self.policy_rules.mark(*key));
        changed.routes.iter().for_each(|key| self.routes.mark(key.clone()));
        changed.virtuals.iter().for_each(|key| self.udp.mark(*key));
        self.marks += u64::from(!changed.virtuals.is_empty());
    }

    /// Grows as far as `authority` allows, then shrinks where that is allowed.
    fn grow_and_shrink(&mut self, desired: &Desired, authority: Authority, at: Moment) -> ProxyRound {
        let growth = match authority {
            Authority::Nothing => return ProxyRound::default(),
            Authority::Remembered => Growth::OnlyMissing,
            Authority::Partial | Authority::Complete => Growth::Full,
        };
        let before = self.steps_done();
        // The device does not depend on the cluster: if it is down it is set up, whatever is known.
        let is_there = self.links.is_settled();
        if !self.links.grow(&desired.links, Growth::Full, at).is_empty() || !is_there {
            // A device has settings of its own, which come with it, also by a step that failed and was done all the same.
            self.settings.forget();
        }
        self.addresses.grow(&desired.addresses, growth, at);
        sysctl::keep(&mut self.settings, &desired.settings, at);
        self.hairpin_ports.grow(&desired.hairpin_ports, Growth::Full, at);
        if !self.sets.grow(&desired.sets, growth, at).is_empty() {
            // A recreated set may have lost its elements.
            self.elements.forget();
        }
        let held = self.held_marks(desired, growth, authority, at);
        let takes_over = self.takes_over(at);
        if takes_over {
            // Nothing of a Service is opened before what closes it stands.
            self.rules.grow_among(&desired.rules, growth, at, drops_clients);
        } else {
            self.grow_rules(desired, &held, growth, at);
        }
        // A guard that knows only some of the ports would refuse what the other backend's guard lets in.
        let may_guard = !takes_over || authority == Authority::Complete;
        let takes_all = authority != Authority::Remembered || self.uses_memory(desired, at);
        if takes_all {
            if takes_over {
                // The guard of this backend may stand since before the other one ran: it refuses all ports of an address that it does
                // not know.
                let set_of = |key: &ElementKey| Set::of_element(key).map(|(set, _)| set);
                let is_other = |key: &ElementKey| set_of(key) != Some(Set::ServiceAddresses);
                self.elements.grow_where(&desired.elements, growth, at, is_other);
            }
            self.elements.grow(&desired.elements, growth, at);
            self.grow_table(desired, TableLimits { may_guard, held: &held }, growth, at);
        } else {
            self.grow_needed_elements(desired, TableLimits { may_guard, held: &held }, at);
        }
        self.passages.grow_in_host_chain(&desired.passages, growth, at);
        let has_elements = || self.elements.missing(&desired.elements, |_| true) == 0;
        let may_rule = !takes_over || may_guard && has_elements();
        if takes_over && may_rule {
            self.grow_rules(desired, &held, growth, at);
        }
        self.grow_policy_rules(desired, growth, at);
        let mut changed: BTreeSet<ServiceKey> = self.grow_virtuals(desired, growth, at, |_| true).into_iter().collect();
        if held.is_any() && may_rule {
            let held = self.held_marks(desired, growth, authority, at);
            self.grow_rules(desired, &held, growth, at);
            match takes_all {
                true => self.grow_table(desired, TableLimits { may_guard, held: &held }, growth, at),
                false => self.grow_needed_elements(desired, TableLimits { may_guard, held: &held }, at),
            }
        }
        self.grow_routes(desired, growth, at);
        self.refuse_unallocated(desired, authority, at);

        if authority == Authority::Complete {
            changed.extend(self.shrink_all(desired, growth, at));
        } else if authority == Authority::Partial {
            self.shrink_known_clients(desired, at);
        }
        changed.extend(self.follow_as_before(desired, authority, at));
        self.note_marks();
        let flows = self.forget_flows(desired, at);
        self.tell_ownership_after_many_changes(desired);
        ProxyRound { virtuals: changed.len(), steps: self.steps_done() - before, flows, puts_off: false }
    }

    /// The shrinking half of a round. Returns the virtual services that were changed or deleted.
    fn shrink_all(&mut self, desired: &Desired, growth: Growth, at: Moment) -> Vec<ServiceKey> {
        // A change of endpoints waits for nothing.
        let may_have_waited = !(self.routes.is_settled() && self.policy_rules.is_settled() && desired.marks.is_empty());
        self.shrink_routes(desired, at);
        if !self.policy_rules.is_settled() {
            // Ours waits until kube-router's route for all addresses is gone, and routes wait for it.
            self.grow_policy_rules(desired, growth, at);
            self.shrink_routes(desired, at);
        }
        // Those that waited for a route to go.
        let mut changed = if may_have_waited { self.grow_virtuals(desired, growth, at, |_| true) } else { Vec::new() };
        changed.extend(self.shrink_virtuals(desired, at));
        self.grow_routes(desired, growth, at);
        self.shrink_routes(desired, at);
        self.shrink_policy_rules(desired, at);
        self.shrink_rules(desired, at);
        if !self.virtuals.is_settled() && !desired.marks.is_empty() {
            // Those that waited for rules of kube-router, which gave their marks to others.
            changed.extend(self.grow_virtuals(desired, growth, at, |_| true));
            self.grow_routes(desired, growth, at);
        }
        self.shrink_elements(desired, at);
        self.shrink_source_rules(desired, at);
        self.passages.shrink(&desired.passages, at);
        self.shrink_table(desired, at);
        self.shrink_sets(desired, at);
        self.shrink_addresses(desired, at);
        self.hairpin_ports.shrink(&desired.hairpin_ports, at);
        self.links.shrink(&desired.links, at);
        changed
    }

    /// Returns whether the packet filter is as desired, and no virtual service is left, or may be, that only the other backend's elements mark as
    /// ours: whoever removes these could not know it any more. What else fails must not keep the other backend's guard in force: it refuses ports that it does not know.
    pub fn has_replaced_abandoned(&self, desired: &Desired) -> bool {
        let is_filtering = self.sets.is_settled()
            && self.elements.is_settled()
            && self.rules.is_settled()
            && self.table.is_settled()
            && self.passages.is_settled();
        // Asked again for each part of the removal; all virtual services are gone through only where the other backend marks any.
        let marks_none = self.marked_elsewhere.as_ref().is_some_and(|marked| *marked == MarkedElsewhere::default());
        let are_wanted = || marks_none || self.virtuals.known_keys().all(|key| desired.virtuals.contains_key(key));
        is_filtering && self.virtuals.seen().is_some() && are_wanted()
    }

    pub fn has_abandoned(&mut self) -> bool {
        self.kernel.has_abandoned()
    }

    /// Removes objects of earlier runs from where they no longer belong.
    pub fn remove_abandoned(&mut self) -> Option<Vec<String>> {
        // What was marked there and is ours is marked here too.
        self.marked_elsewhere = Some(MarkedElsewhere::default());
        self.kernel.remove_abandoned()
    }

    /// Returns the last seen virtual services; reads them where they are not known. `None` while they cannot be read.
    pub fn existing_virtuals(&mut self, desired: &Desired, at: Moment) -> Option<&BlockMap<ServiceKey, Virtual>> {
        self.elements.learn(at);
        self.table.learn(at);
        self.learn_virtuals(desired, at);
        if let Some(seen) = self.virtuals.seen() {
            // Virtual services of an earlier run may never be desired in this one, but still have flows.
            self.udp.adopt(seen);
        }
        self.virtuals.seen().filter(|_| !self.lacks_rules)
    }

    /// Returns the destinations of a virtual service with weight 0 and no connections left. Empty where the kernel does
    /// not report connections.
    pub fn idle(&mut self, desired: &Desired, key: &ServiceKey) -> Vec<SocketAddr> {
        let found = self.virtuals.target().connections(&desired.kernel_key(key)).unwrap_or_default();
        let idle = found.into_iter().filter(|(destination, count)| *count == 0 && destination.weight == DRAINING);
        idle.map(|(destination, _)| destination.address).collect()
    }

    /// Audits the next portion of desired objects. Returns the drift found, and whether the audit of all kinds is finished.
    pub fn audit(&mut self, desired: &Desired, at: Moment) -> (Vec<Found>, bool) {
        self.tell_new_ownership(desired);
        self.audit_portion(at)
    }

    /// Returns when the next retry of a failed step is due.
    pub fn retry_at(&self) -> Option<Instant> {
        [self.first_retry(), self.udp.retry_at(), self.refused_retry_at()].into_iter().flatten().min()
    }

    /// Returns whether all kinds are known to be as desired and no conntrack entries are left to be deleted.
    pub fn is_settled(&self) -> bool {
        self.udp.is_settled() && self.is_as_wanted()
    }

    /// Returns whether the other backend has virtual services in force, as far as can be known. While it cannot be read, nobody
    /// knows which virtual services are ours: that is trouble of these, and it is tried again as they are.
    fn takes_over(&mut self, at: Moment) -> bool {
        if self.marked_elsewhere.is_none() && self.virtuals.would_read(at) {
            match self.kernel.marked_by_other_backend() {
                Ok(marked) => self.marked_elsewhere = Some(marked),
                Err(error) => self.virtuals.cannot_learn(error.to_string(), at),
            }
        }
        self.marked_elsewhere.as_ref().is_none_or(|marked| !marked.services.is_empty())
    }

    /// Returns false while it is not known which virtual services are ours, or their state.
    fn learn_virtuals(&mut self, desired: &Desired, at: Moment) -> bool {
        if self.lacks_rules && self.rules.seen().is_some() {
            // An empty one was taken for another program's.
            self.virtuals.forget();
            self.lacks_rules = false;
        }
        if self.virtuals.would_read(at) {
            self.policy_rules.learn(at);
            self.rules.learn(at);
            let _ = self.takes_over(at);
            if self.marked_elsewhere.is_none() {
                return false;
            }
            if !self.marks().are_known() || self.policy_rules.seen().is_none() {
                self.virtuals.wait_for_others();
                return false;
            }
            // Where rules give marks to packets, these say which virtual services for marks are ours: those are left alone until then.
            self.lacks_rules = self.rules.seen().is_none() && self.tunnels().ports().next().is_some();
            self.tell_ownership(desired);
        }
        let was_unknown = self.virtuals.seen().is_none();
        let is_known = self.virtuals.learn(at);
        if let Some(seen) = self.virtuals.seen().filter(|_| was_unknown) {
            self.udp.mark_differing(seen, &desired.virtuals);
        }
        is_known
    }

    fn marks(&self) -> Marks<'_, K> {
        Marks { elements: &self.elements, table: &self.table }
    }

    /// Looks again for the host's own chains: they may have come since.
    pub fn look_for_host_chains(&mut self) {
        self.passages.mark_all();
    }

    /// Deletes a set once it is empty, because deleting it deletes its elements.
    fn shrink_sets(&mut self, desired: &Desired, at: Moment) {
        let elements = &self.elements;
        let is_empty = |set: &SetName| elements.seen().is_some() && !elements.known_keys().any(|key| key.set == *set);
        self.sets.shrink_where(&desired.sets, at, |set, _| is_empty(set));
    }

    /// Returns whether a remembered cluster is applied as a whole: only if the kernel holds no virtual service of ours,
    /// as after a boot. Otherwise the kernel's state is newer than the file, and is read from the set of service ports:
    /// an element is written before its virtual service and deleted after it. A virtual service whose element is there
    /// was not deleted by us, and is restored with all that it needs; one without an element was deleted after the file
    /// was written.
    fn uses_memory(&mut self, desired: &Desired, at: Moment) -> bool {
        if self.uses_memory.is_none() {
            self.uses_memory = self.existing_virtuals(desired, at).map(BlockMap::is_empty);
        }
        self.uses_memory.unwrap_or(false)
    }

    /// Deletes the addresses that kube-router gives the device, one for every service: our local routes replace them at
    /// a fraction of the cost for the kernel. Deleting an address may make the kernel delete a local route too, so the
    /// rest is read again.
    fn shrink_addresses(&mut self, desired: &Desired, at: Moment) {
        if self.addresses.shrink(&desired.addresses, at).is_empty() {
            return;
        }
        self.routes.forget();
        self.routes.grow(&desired.routes, Growth::Full, at);
        self.routes.shrink(&desired.routes, at);
    }
}
