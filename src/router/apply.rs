//! Applies a `Desired` router to the kernel.
//!
//! Order of growing; each needs those before it:
//! 1. settings, the bridge;
//! 2. sets, their elements, the rules that use the sets: pods keep their addresses among each other from the start;
//! 3. receive ports of tunnels, tunnels; devices of `vxlan` that are guarded, and of `wireguard`, what they know of other nodes;
//! 4. routes;
//! 5. rules that select the tunnel table: an empty table has no effect, so no packet is misrouted before.
//!
//! Shrinking goes the other way. Routes that this run has not learned are not deleted before learned routes are complete: routes of an earlier run serve until
//! then, but for those by which packets would leave unencrypted that shall not (in a change to `wireguard` those through the tunnels of before serve as well).
//! The bridge stays: pods may be attached to it.

mod asked;
mod filter;
mod handed_over;
mod overlay;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use compact_str::CompactString;
use ipnet::IpNet;

use crate::kernel::bridge::Bridge;
use crate::kernel::ipset::{ElementKey, SetName, SetSpec};
use crate::kernel::iptables::{Piece, Rules};
use crate::kernel::link::LinkName;
use crate::kernel::nftables::passages::InHostChain;
use crate::kernel::nftables::{Content, Object};
use crate::kernel::route::{Route, RouteKey, TABLE_MAIN, Taken};
use crate::kernel::rule::RuleKey;
use crate::kernel::sysctl::Ruled;
use crate::kernel::tunnel::{ReceivePort, Tunnel};
use crate::kernel::vxlan::{Entry, EntryKey, Vxlan};
use crate::kernel::wireguard::{Contact, Peer, PeerKey, Wireguard};
use crate::model::Authority;
use crate::net::{PerFamily, PublicKey};
use crate::packed::BlockMap;
use crate::reconcile::{Growth, MayGrow, Moment, Reflection, Target};
use crate::subsystem::{Kinds, kinds};

use super::desired::{Desired, RouterChanges};
use super::former_routers::former_routers;
use super::forward::AnswersBy;
use super::names::{BRIDGE, Set};
use super::problem::{About, Problem};
use super::reachable::Lead;
use super::rivals::Rival;
use super::routes::Routes;

/// Maximum number of rivals named at once: each is a log message and an Event.
const RIVALS: usize = 10;

/// The kinds of kernel objects that the router manages. Implemented on Linux (`linux`) and in memory for tests.
pub trait Kernel {
    type Settings: Ruled;
    type Bridges: Target<Key = LinkName, Value = Bridge>;
    type Sets: Target<Key = SetName, Value = SetSpec>;
    type Elements: Target<Key = ElementKey, Value = ()>;
    type Rules: Target<Key = Piece, Value = Rules>;
    type Table: Target<Key = Object, Value = Content>;
    type Passages: InHostChain;
    type ReceivePorts: Target<Key = ReceivePort, Value = ()> + OwnsPorts;
    type Tunnels: Target<Key = LinkName, Value = Tunnel>;
    type OverlayDevices: Target<Key = LinkName, Value = Vxlan>;
    type OverlayEntries: Target<Key = EntryKey, Value = Entry>;
    type WireguardDevices: Target<Key = LinkName, Value = Wireguard> + HasKeys;
    type WireguardPeers: Target<Key = PeerKey, Value = Peer> + HasSessions;
    type Routes: Target<Key = RouteKey, Value = Arc<Route>> + PodRoutes;
    type SourceRules: Target<Key = RuleKey, Value = ()>;

    /// Returns whether the bridge has no pods attached, as far as that can be known.
    fn bridge_is_free(&mut self) -> bool;

    /// Returns how the kernel would route packets to a next hop.
    fn leads_to(&mut self, _next_hop: IpAddr) -> Lead {
        Lead::Unknown
    }

    /// Returns the way that the kernel gives to a packet of this node now, or to one of a pod of this node, whose address and range are
    /// named; `None` where no link leads to that range.
    ///
    /// # Errors
    /// It cannot be looked up: why, as a sentence without its end.
    fn way_to(&mut self, _to: IpAddr, _pod: Option<(IpAddr, IpNet)>) -> Result<Option<Taken>, String> {
        Err("there is no kernel to ask".to_owned())
    }

    /// Returns how a chain of the host can know answers.
    fn answers_by(&self) -> AnswersBy {
        AnswersBy::State
    }

    /// Returns how many neighbours on links the kernel finds out at most; `None` where that cannot be read.
    fn neighbour_limits(&self) -> PerFamily<Option<usize>> {
        PerFamily::default()
    }

    /// Returns whether a run with the other backend left anything.
    fn has_other_backend(&mut self) -> bool;

    /// Returns whether something of ours is where it no longer belongs: [`remove_abandoned`](Kernel::remove_abandoned) says where. What cannot be read is not.
    fn has_abandoned(&mut self) -> bool {
        false
    }

    /// Removes objects of ours from where they no longer belong: rules in the tables of the iptables variant that the
    /// host has given up, and everything of the other backend. Called once their replacements are in place. Returns why
    /// something could not be removed; `None` after a part of the removal: the next one is to follow soon, and what else there is to do goes first.
    fn remove_abandoned(&mut self) -> Option<Vec<String>>;
}

/// Ports of which it may turn out that they are ours.
pub trait OwnsPorts: Target {
    /// Counts the ports of these numbers as ours, too; returns whether one of them did not.
    fn own(&mut self, ports: &BTreeSet<u16>) -> bool;
}

/// Devices with private keys, of which the kernel makes the public ones.
pub trait HasKeys: Target {
    /// Returns the public key of a device that has its private one.
    fn public_key(&self, link: &LinkName) -> Option<PublicKey>;

    /// Returns the public one of the key that follows the first one, once the second device was seen to have it.
    fn next_key(&self) -> Option<PublicKey>;

    /// Returns whether there is a key that follows the first one.
    fn has_next(&self) -> bool;

    /// Returns whether the second device was seen to have that key.
    fn is_changing(&self) -> bool;

    /// Returns the time since the first key was made; `None` where that is not known.
    fn key_age(&self) -> Option<Duration>;

    /// Makes the key that follows the first one, where there is none, for the second device, which is not there yet.
    ///
    /// # Errors
    /// It cannot be written, or nobody knows whether it was; the files are read again before they are used.
    fn make_next(&mut self) -> Result<(), Self::Error>;

    /// Has the key that follows take the place of the first one.
    ///
    /// # Errors
    /// It cannot be written, or nobody knows whether it was; the files are read again before they are used.
    fn take_next(&mut self) -> Result<(), Self::Error>;
}

/// Other nodes on devices of `wireguard`.
pub trait HasSessions: Target {
    /// Returns the state of the sessions with all of them, and how much was sent to them.
    ///
    /// # Errors
    /// The kernel does not tell.
    fn contacts(&mut self) -> Result<BTreeMap<PeerKey, Contact>, Self::Error>;
}

/// Routes; those to pods of known nodes precede other programs' routes to the same range (flannel's, static ones).
pub trait PodRoutes: Target {
    /// Records whether another node has this pod CIDR.
    fn note_pod_range(&mut self, range: IpNet, is_there: bool);

    /// Records the pod CIDRs of our own node: routes to their pods are no rivals, whatever range another node has.
    fn note_own_ranges(&mut self, _ranges: &[IpNet]) {}

    /// Returns other programs' routes, and routes of links, that take packets away from ours and are not ours to delete, each with
    /// the pod CIDR of the Node that it is about.
    fn staying(&self) -> Vec<(IpNet, &Rival)> {
        Vec::new()
    }

    /// Returns whether another program's route may decide about a pod CIDR.
    fn is_contested(&mut self, range: IpNet) -> bool;
}

kinds! {
    /// Last seen state of the kernel, kind by kind, in the order of growing.
    pub struct Mirrors {
        settings: Settings,
        bridges: Bridges after Routes,
        sets: Sets,
        elements: Elements,
        rules: Rules after Rules,
        table: Table after Rules,
        passages: Passages after Rules,
        receive_ports: ReceivePorts,
        tunnels: Tunnels after Routes,
        overlay_devices: OverlayDevices after Routes,
        overlay_entries: OverlayEntries after Routes,
        wireguard_devices: WireguardDevices after Routes,
        wireguard_peers: WireguardPeers after Routes,
        routes: Routes in BlockMap after Routes,
        source_rules: SourceRules after RoutingRules,
    }
    with {
        /// Routes that this run has learned and given up since learned routes were last complete.
        withdrawn: BTreeSet<RouteKey>,
        had_sets: Option<bool>,
        /// A run with the other backend left rules that are still there; `None` until that was looked for.
        takes_over: Option<bool>,
    }
}

/// A route to a prefix, as desired and as last seen in the kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RouteInKernel {
    /// None is desired, and none is there.
    Absent,
    InPlace(Arc<Route>),
    /// It is about to be created or changed.
    Waiting {
        desired: Arc<Route>,
        seen: Option<Arc<Route>>,
    },
    /// The kernel refused the last change of some routes, this one among them. The error is that of the first one.
    Failed {
        desired: Arc<Route>,
        error: Arc<str>,
    },
    /// None is desired; one of an earlier run, or one that is about to go, is still there.
    Kept(Arc<Route>),
    /// The kernel's routes are not known.
    Unread(Arc<str>),
}

/// Limits on what a round may change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leave {
    /// Completeness of what is known of the cluster.
    pub authority: Authority,
    /// Learned routes are complete: routes that are not among them may be deleted.
    pub routes_are_complete: bool,
}

impl Leave {
    /// Returns how objects of the cluster may grow; `None` where nothing is known of it.
    fn growth(self) -> Option<Growth> {
        match self.authority {
            Authority::Nothing => None,
            Authority::Remembered => Some(Growth::OnlyMissing),
            Authority::Partial | Authority::Complete => Some(Growth::Full),
        }
    }
}

/// Result of one round.
#[derive(Clone, Copy, Default, Debug)]
pub struct RouterRound {
    /// Steps of all kinds together.
    pub steps: u64,
    /// Number of routes added or replaced, and of routes deleted.
    pub routes_grown: usize,
    pub routes_gone: usize,
}

impl<K: Kernel> Mirrors<K> {
    pub fn new(targets: Targets<K>) -> Mirrors<K> {
        Mirrors::of(targets)
    }

    /// Marks desired objects as changed.
    pub fn mark(&mut self, changed: &RouterChanges) {
        if changed.settings {
            self.settings.forget();
        }
        if changed.bridge {
            self.bridges.mark_all();
        }
        changed.sets.iter().for_each(|key| self.sets.mark(key.clone()));
        changed.elements.iter().for_each(|key| self.elements.mark(key.clone()));
        changed.rules.iter().for_each(|key| self.rules.mark(key.clone()));
        changed.table.iter().for_each(|key| self.table.mark(key.clone()));
        changed.passages.iter().for_each(|key| self.passages.mark(*key));
        changed.receive_ports.iter().for_each(|key| self.receive_ports.mark(*key));
        changed.tunnels.iter().for_each(|key| self.tunnels.mark(key.clone()));
        changed.overlay_devices.iter().for_each(|key| self.overlay_devices.mark(key.clone()));
        changed.overlay_entries.iter().for_each(|key| self.overlay_entries.mark(key.clone()));
        changed.wireguard_devices.iter().for_each(|key| self.wireguard_devices.mark(key.clone()));
        changed.wireguard_peers.iter().for_each(|key| self.wireguard_peers.mark(key.clone()));
        for (range, is_there) in &changed.pod_ranges {
            self.routes.target().note_pod_range(*range, *is_there);
            // A route that is there already prevails, or takes its place, only now that it is known to lead to pods.
            if *is_there && self.routes.seen().is_some() && self.routes.target().is_contested(*range) {
                self.routes.doubt(RouteKey::new(TABLE_MAIN, *range));
            }
        }
        for key in &changed.routes {
            self.withdrawn.remove(key);
            self.routes.mark(key.clone());
        }
        let may_be_there = |key: &&RouteKey| !self.routes.lacks((*key).clone()..=(*key).clone());
        self.withdrawn.extend(changed.withdrawn.iter().filter(may_be_there).cloned());
        if !changed.source_rules.is_empty() {
            // Others may have been kept that long (`Desired::keeps_source_rules`), of an earlier run too, which the plan does not know. There are few.
            self.source_rules.mark_all();
        }
    }

    /// Returns whether an earlier run has left routes in the kernel; false while that cannot be read.
    pub fn has_routes(&mut self, at: Moment) -> bool {
        self.routes.learn(at) && self.routes.seen().is_some_and(|seen| !seen.is_empty())
    }

    /// Returns the routers on these links over which routes of an earlier run lead; nothing while routes cannot be read.
    pub fn former_routers(
        &mut self,
        links: &BTreeSet<CompactString>,
        at: Moment,
    ) -> BTreeMap<CompactString, Option<Ipv6Addr>> {
        self.routes.learn(at);
        let seen = self.routes.seen();
        seen.map(|seen| former_routers(seen.iter().map(|(_, route)| &**route), links)).unwrap_or_default()
    }

    /// Returns whether an earlier run had left sets in the kernel, which a reboot deletes. Fixed once it is known.
    pub fn had_sets(&mut self, at: Moment) -> bool {
        if self.had_sets.is_none() && self.sets.learn(at) && self.table.learn(at) {
            let (sets, table) = (self.sets.seen(), self.table.seen());
            let is_there = sets.zip(table).map(|(sets, table)| !sets.is_empty() || !table.is_empty());
            self.had_sets = is_there.map(|is_there| is_there || self.kernel.has_other_backend());
        }
        // Unknown counts as false: keeping too little costs a moment, keeping too much sends packets nowhere.
        self.had_sets.unwrap_or(false)
    }

    /// Returns whether no earlier run has left anything in the kernel; false where that cannot be read.
    pub fn begins_anew(&mut self, at: Moment) -> bool {
        let without_routes = self.routes.learn(at) && self.routes.seen().is_some_and(|seen| seen.is_empty());
        let had_sets = self.had_sets(at);
        without_routes && !had_sets && self.had_sets.is_some()
    }

    /// Keeps the routes that are as desired in memory once.
    pub fn share_routes(&mut self, learned: &Routes) {
        self.routes.share(learned.routes());
    }

    /// Returns the number of desired main table routes that the kernel lacks.
    pub fn missing_routes(&self, learned: &Routes) -> usize {
        self.routes.missing(learned.routes(), |key| key.table == TABLE_MAIN)
    }

    /// Returns the number of desired routes of all tables that the kernel has.
    pub fn present_routes(&self, learned: &Routes) -> usize {
        let desired = learned.routes();
        desired.len().saturating_sub(self.routes.missing(desired, |_| true))
    }

    /// Records the pod CIDRs of our own node.
    pub fn note_own_ranges(&mut self, ranges: &[IpNet]) {
        self.routes.target().note_own_ranges(ranges);
    }

    /// Returns the rivals of desired routes that are not ours to delete, as problems; at most ten and one that says that there
    /// are more.
    pub fn rivals(&self, learned: &Routes) -> Vec<Problem> {
        let has_route = |range: IpNet| learned.routes().contains_key(&RouteKey::new(TABLE_MAIN, range));
        let staying = self.routes.peek().staying().into_iter().filter(|(range, _)| has_route(*range));
        let problem = |(range, rival): (IpNet, &Rival)| Problem::new(About::PodRange(range), rival.to_string());
        let mut problems: Vec<Problem> = staying.take(RIVALS + 1).map(problem).collect();
        if problems.len() > RIVALS {
            problems.truncate(RIVALS);
            problems.push(Problem::new(About::OtherNodes, "more routes of others take packets to their pods away"));
        }
        problems
    }

    /// Runs one round: grows as far as that is allowed, then shrinks.
    pub fn round(&mut self, desired: &Desired, learned: &Routes, leave: Leave, at: Moment) -> RouterRound {
        let Some(growth) = leave.growth() else { return RouterRound::default() };
        let before = self.steps_done();
        let _ = self.had_sets(at);
        self.keep_settings(desired, at);
        let bridges = desired.bridge.map(|bridge| (LinkName(BRIDGE.into()), bridge)).into_iter().collect();
        self.bridges.grow(&bridges, growth, at);
        let guards_more = self.grow_filter(desired, leave.authority, growth, at);
        self.passages.grow_in_host_chain(&desired.passages, growth, at);
        self.open_receive_ports(desired, growth, at);
        // Learned routes are current, however old the remembered cluster is. Those that Node objects give are as old as it is.
        let mut came = self.grow_tunnels(learned, leave, at);
        came.extend(self.grow_overlay(desired, learned, at));
        came.extend(self.grow_wireguard(desired, learned, leave, at));
        self.keep_settings_of(&came, desired, at);
        let past_walls = self.past_walls(learned, at);
        let may_change =
            |key: &RouteKey| growth == Growth::Full || !learned.is_given(key.destination) || past_walls.contains(key);
        let may = MayGrow { come: |_: &RouteKey| true, change: may_change };
        let routes_grown = self.routes.grow_those(learned.routes(), Growth::Full, at, may).len();
        let source_rules = self.with_kept_rules(desired, at);
        self.source_rules.grow(&source_rules, growth, at);

        let going = self.without_received(past_walls, desired, leave);
        let mut gone = self.routes.delete_among(learned.routes(), at, |key| going.contains(key));
        if leave.authority == Authority::Complete {
            self.source_rules.shrink(&source_rules, at);
            // A learned route that is no longer desired was withdrawn: deleting it need not wait for peers.
            let (all, withdrawn) = (leave.routes_are_complete, &self.withdrawn);
            gone.extend(self.routes.shrink_where(learned.routes(), at, |key, _| all || withdrawn.contains(key)));
            for key in &gone {
                self.withdrawn.remove(key);
            }
            self.shrink_wireguard(desired, leave, at);
            if all {
                self.withdrawn.clear();
                self.shrink_tunnels(desired, learned, at);
                self.receive_ports.shrink(&desired.receive_ports, at);
            }
            self.shrink_filter(desired, guards_more, growth, at);
            self.passages.shrink(&desired.passages, at);
        }
        RouterRound { steps: self.steps_done() - before, routes_grown, routes_gone: gone.len() }
    }

    /// Deletes the bridge if no pods are attached: only done by cleanup.
    pub fn remove_bridge(&mut self, at: Moment) {
        if self.kernel.bridge_is_free() {
            self.bridges.mark_all();
            self.bridges.shrink(&BTreeMap::new(), at);
        }
    }

    /// Returns how many neighbours on links the kernel finds out at most; `None` where that cannot be read.
    pub fn neighbour_limits(&self) -> PerFamily<Option<usize>> {
        self.kernel.neighbour_limits()
    }

    /// Returns how the kernel would route packets to a next hop.
    pub fn leads_to(&mut self, next_hop: IpAddr) -> Lead {
        self.kernel.leads_to(next_hop)
    }

    /// Returns whether the packet filter is as desired. Routes and tunnels that fail are no reason to keep rules twice.
    pub fn has_replaced_abandoned(&self) -> bool {
        let rules: [&dyn Reflection; 5] = [&self.sets, &self.elements, &self.rules, &self.table, &self.passages];
        rules.into_iter().all(|kind| kind.is_settled())
    }

    /// Returns whether a run with the other backend left anything that is still there.
    fn takes_over(&mut self) -> bool {
        match self.takes_over {
            Some(takes_over) => takes_over,
            None => *self.takes_over.insert(self.kernel.has_other_backend()),
        }
    }

    pub fn has_abandoned(&mut self) -> bool {
        self.kernel.has_abandoned()
    }

    /// Removes objects of earlier runs from where they no longer belong.
    pub fn remove_abandoned(&mut self) -> Option<Vec<String>> {
        self.takes_over = Some(false);
        self.kernel.remove_abandoned()
    }

    /// Returns when the next retry of a failed step is due.
    pub fn retry_at(&self) -> Option<Instant> {
        self.first_retry()
    }

    /// Returns whether all kinds are known to be as desired.
    pub fn is_settled(&self) -> bool {
        self.reflections().into_iter().all(|family| family.is_settled())
    }

    /// Looks again for the host's own chains: they may have come since.
    pub fn look_for_host_chains(&mut self) {
        self.passages.mark_all();
    }
}

/// Returns the names of all sets of the router.
pub fn set_names() -> Vec<SetName> {
    let both = |set: Set| crate::net::Family::BOTH.map(|family| set.name(family));
    Set::ALL.into_iter().flat_map(both).collect()
}
