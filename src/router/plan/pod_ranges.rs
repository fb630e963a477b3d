//! Pod CIDRs of other nodes: those for which routes are accepted, and those without a route.
//!
//! Kubernetes: `Node.spec.podCIDRs`. A neighbour's route to such a range is accepted before the networks of our links
//! are checked (a node of 10.0.0.1/8 accepts 10.244.2.0/24). A range that is refused nevertheless has a [`Refusal`]:
//! its pods stay unreachable from here, which is reported. A node that is down announces nothing: that is no fault.
//! A node that is `Ready` and runs Linux ([`Node::should_announce`](crate::model::Node)) is late once its range has had no
//! route for as long as a restart may take: its agent does not run, or cannot have a session with ours. That is trouble here where at
//! least half of such nodes are late, because then it is this node that is cut off; one broken node must not make all others unready.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use compact_str::CompactString;
use ipnet::IpNet;

use super::Plan;
use crate::config::Overlay;
use crate::net::Family;
use crate::router::identity::Identity;
use crate::router::mesh::Obstacle;
use crate::router::nodes::Nodes;
use crate::router::problem::{About, Problem};

mod overlaps;

pub(super) use overlaps::is_believable;
use overlaps::overlaps;

/// Reason why no route to a pod CIDR of another node is accepted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// It equals, or lies in, this pod CIDR of our own.
    OwnPods(IpNet),
    /// It equals or lies in a prefix of `kube-router.io/node.bgp.customimportreject` of our own Node.
    Annotation(IpNet),
    /// It is part of a default route.
    DefaultRoute,
    /// It contains this address of another node.
    NodeAddress { address: IpAddr, node: CompactString },
    /// With encrypted tunnels: it overlaps this pod CIDR of a node with another key.
    Overlap { range: IpNet, node: CompactString },
}

/// Pod CIDRs of other nodes without a route here.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Unreached {
    pub count: usize,
    /// Lasting ones, as text: of two nodes, refused, without a path, of a node that cannot be a peer, or not announced by
    /// a node that has sent everything; and late ones, where this node is cut off.
    pub trouble: Option<String>,
    /// Those that their nodes have not announced yet, as text: the nodes are down, or starting.
    pub missing: Option<String>,
    /// Those that ready nodes have not announced although they had time enough, as text, where others have.
    pub late: Option<String>,
}

/// Circumstances of a look at the pod CIDRs of other nodes.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances {
    pub now: Instant,
    /// Since when the ranges have been without a route that have none at the first look.
    pub since: Instant,
    /// Nodes can be read: their conditions are the present ones.
    pub nodes_are_read: bool,
}

/// Time for which a node that should announce its pod CIDRs may leave them without a route: that of a restart. It is longer than
/// the 40 or 50 s (`--node-monitor-grace-period` of kube-controller-manager) after which a dead node is no longer `Ready`.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Maximum number of named ranges.
const NAMED: usize = 5;
/// Maximum number of problems of one kind: each is a log message and an Event.
const PROBLEMS: usize = 10;

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::OwnPods(range) => write!(f, "it overlaps {range}, a pod range of this node"),
            Refusal::Annotation(prefix) => {
                write!(f, "kube-router.io/node.bgp.customimportreject of this node names {prefix}")
            }
            Refusal::DefaultRoute => f.write_str("it is so wide that it is part of a default route"),
            Refusal::NodeAddress { address, node } => write!(f, "it contains {address}, an address of Node {node}"),
            Refusal::Overlap { range, node } => {
                write!(f, "it overlaps {range} of Node {node}, and packets are encrypted to one node alone")
            }
        }
    }
}

/// State of all pod CIDRs of other nodes, kept up to date at the cost of what changed.
#[derive(Default, Debug)]
pub(super) struct PodRanges {
    /// Those for which no route is accepted.
    refused: BTreeMap<IpNet, Refusal>,
    /// Those that several nodes claim, where encrypted packets are received.
    disputed: BTreeSet<IpNet>,
    /// Those that stay without a route.
    lasting: Ranges<Reason>,
    /// Those that their nodes have not announced yet.
    missing: Ranges<()>,
    /// Since when nodes that should announce them have left pod CIDRs without a route.
    expected: Ranges<Instant>,
    /// Expected ranges that have been without a route for too long.
    late: Ranges<()>,
    /// The next expected range becomes late then, or later.
    due: Option<Instant>,
    /// The nodes' conditions were the present ones at the last look; `None` before the first one.
    nodes_are_read: Option<bool>,
    /// Nodes whose pod CIDRs have to be looked at again.
    stale: BTreeSet<CompactString>,
    /// Pod ranges without a route, calculated from all of the above.
    unreached: Unreached,
    looked_at: u64,
}

/// Reason why a pod CIDR stays without a route.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Reason {
    /// This Node has it, too: its routes lead to one of the two, or to both in turn.
    Shared(CompactString),
    NoWay,
    /// Its node should be a peer and cannot be.
    NoCommonFamily,
    Refused(Refusal),
    NotAnnounced,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Shared(other) => write!(f, "Node {other} has it, too"),
            Reason::NoCommonFamily => f.write_str("it has no address of a family that this node uses"),
            Reason::NoWay => f.write_str("no way to the next hop of its route"),
            Reason::Refused(why) => why.fmt(f),
            Reason::NotAnnounced => f.write_str("it does not announce it"),
        }
    }
}

impl PodRanges {
    /// Determines for which pod CIDRs no route is accepted. Returns those for which that is otherwise than before.
    pub(super) fn refuse(&mut self, own: &Identity, nodes: &Nodes, overlay: Option<Overlay>) -> Vec<IpNet> {
        let (sent, received) =
            overlay.map_or((None, None), |overlay| (overlay.encapsulation.wireguard(), overlay.wireguard()));
        let overlaps = if received.is_some() { overlaps(own, nodes) } else { BTreeMap::new() };
        let disputed: BTreeSet<IpNet> = overlaps.keys().copied().collect();
        let refused = refused(own, nodes, if sent.is_some() { overlaps } else { BTreeMap::new() });
        let otherwise = self.disputed.symmetric_difference(&disputed).copied().collect::<Vec<_>>();
        self.disputed = disputed;
        let older = std::mem::replace(&mut self.refused, refused);
        let differs = |range: &&IpNet| older.get(*range) != self.refused.get(*range);
        let different = older.keys().chain(self.refused.keys()).filter(differs).copied().chain(otherwise);
        let different: Vec<IpNet> = different.collect();
        for range in &different {
            self.stale.extend(nodes.with_range(range).cloned());
        }
        different
    }

    /// Returns whether nobody may send encrypted packets with addresses of a pod CIDR: it is refused, or several nodes claim it, whether or not packets to it
    /// are encrypted.
    pub(super) fn is_disputed(&self, range: &IpNet) -> bool {
        self.refused.contains_key(range) || self.disputed.contains(range)
    }

    pub(super) fn is_refused(&self, range: &IpNet) -> bool {
        self.refused.contains_key(range)
    }

    /// Returns why no route to a pod CIDR is accepted.
    pub(super) fn refusal(&self, range: &IpNet) -> Option<&Refusal> {
        self.refused.get(range)
    }

    /// Returns why a pod CIDR has no route, as the last look at its node has found out.
    pub(super) fn why_unreached(&self, node: &CompactString, range: IpNet) -> Option<String> {
        let refused = || self.refused.get(&range).map(|why| Reason::Refused(why.clone()).to_string());
        let lasting = self.lasting.of(node, range).map(ToString::to_string).or_else(refused);
        let seconds = PATIENCE.as_secs();
        let late = self.late.of(node, range);
        let late = || late.map(|()| format!("it has not announced it for {seconds} s although it is Ready"));
        let missing = || self.missing.of(node, range).map(|()| "it has not announced it yet".to_owned());
        lasting.or_else(late).or_else(missing)
    }

    /// Has the pod CIDRs of a node looked at again, and those of nodes that share one with it. Called before and after a
    /// change of the node.
    pub(super) fn mark(&mut self, node: &CompactString, nodes: &Nodes) {
        self.stale.insert(node.clone());
        self.mark_routes(nodes.ranges_of(node).iter().copied(), nodes);
    }

    /// Has the pod CIDRs to which routes have changed looked at again.
    pub(super) fn mark_routes(&mut self, prefixes: impl Iterator<Item = IpNet>, nodes: &Nodes) {
        prefixes.for_each(|prefix| self.stale.extend(nodes.with_range(&prefix).cloned()));
    }
}

/// Returns the pod CIDRs of other nodes for which no route is accepted.
fn refused(own: &Identity, nodes: &Nodes, mut overlaps: BTreeMap<IpNet, Refusal>) -> BTreeMap<IpNet, Refusal> {
    let mut refusal = |range: IpNet| {
        let holds = |outer: &IpNet| outer.contains(&range);
        if let Some(ours) = own.all_pod_cidrs().find(holds) {
            return Some(Refusal::OwnPods(ours));
        }
        if let Some(rejected) = own.routing.import_reject.iter().copied().find(holds) {
            return Some(Refusal::Annotation(rejected));
        }
        if range.prefix_len() < Family::from(range).narrowest_default() {
            return Some(Refusal::DefaultRoute);
        }
        let address = nodes.address_of_another_in(range);
        let address = address.map(|(address, node)| Refusal::NodeAddress { address, node: node.clone() });
        address.or_else(|| overlaps.remove(&range))
    };
    nodes.ranges().into_iter().filter_map(|range| Some((range, refusal(range)?))).collect()
}

impl Plan {
    /// Returns the pod CIDRs of other nodes without a route; none if nodes do not peer with each other. `has_sent_all`:
    /// whether a neighbour with a session has sent all its routes of a family (End-of-RIB, RFC 4724 2). It is asked about
    /// nodes of which something has changed ([`Plan::look_at_peer`]).
    pub fn unreached(&mut self, around: Circumstances, has_sent_all: impl Fn(IpAddr, Family) -> bool) -> Unreached {
        if !self.expects_pods() {
            return self.unreached_without_speaker();
        }
        let stale = self.take_stale_ranges(around);
        if stale.is_empty() {
            return self.pod_ranges.unreached.clone();
        }
        let is_first = self.pod_ranges.nodes_are_read.replace(around.nodes_are_read).is_none();
        let since = if is_first { around.since } else { around.now };
        for node in stale {
            self.look_at_ranges(&node, Circumstances { since, ..around }, &has_sent_all);
        }
        let is_cut_off = self.is_cut_off();
        let PodRanges { lasting, missing, late, .. } = &self.pod_ranges;
        let lasting_text = lasting.text(|node, range, reason| format!("{range} of Node {node} ({reason})"));
        let named = |node: &CompactString, range: IpNet, (): &()| {
            let address = self.lacks_address(node, range).map(|family| format!("it has no {family} address"));
            match address.or_else(|| self.lacks_peer(node, range).map(str::to_owned)) {
                Some(why) => format!("{range} of Node {node} ({why})"),
                None => format!("{range} of Node {node}"),
            }
        };
        let (missing_text, late_text) = (missing.text(named), late.text(named));
        let late_text = late_text.map(|text| {
            let seconds = PATIENCE.as_secs();
            format!("no route to pods for {seconds} s although their nodes are Ready: {text}")
        });
        let (cut_off, late_text) = if is_cut_off { (late_text, None) } else { (None, late_text) };
        let lasting_text = lasting_text.map(|text| format!("pods cannot be reached: {text}"));
        let troubles: Vec<String> = lasting_text.into_iter().chain(cut_off).collect();
        self.pod_ranges.unreached = Unreached {
            count: lasting.count + missing.count + late.count,
            trouble: Some(troubles.join("; ")).filter(|text| !text.is_empty()),
            missing: missing_text.map(|text| format!("no route yet to pods: {text}")),
            late: late_text,
        };
        self.pod_ranges.unreached.clone()
    }

    /// Returns whether at least half of the nodes that should announce their pod CIDRs to us are late.
    fn is_cut_off(&self) -> bool {
        let late = self.pod_ranges.late.by_node.len();
        let all = || self.known.nodes.iter().filter(|(name, _)| self.should_announce(name)).count();
        late > 0 && 2 * late >= all()
    }

    /// Returns whether a node should announce pod CIDRs to us.
    pub(super) fn should_announce(&self, node: &CompactString) -> bool {
        let is_meant = self.takes_node_objects() || self.nodes.peer(node).is_some();
        is_meant && self.is_ready_for_pods(node)
    }

    /// Returns whether a node is `Ready` and has pod CIDRs, whoever is to announce them.
    pub(super) fn is_ready_for_pods(&self, node: &CompactString) -> bool {
        let is_ready = self.known.nodes.get(node).is_some_and(|node| node.should_announce);
        is_ready && !self.nodes.ranges_of(node).is_empty()
    }

    /// Returns whether a learned route leads to more than this range.
    fn has_wider_route(&self, range: IpNet) -> bool {
        let mut wider = (0..range.prefix_len()).filter_map(|length| IpNet::new(range.addr(), length).ok());
        wider.any(|wider| self.routes.has(wider.trunc()))
    }

    /// Takes the nodes whose pod CIDRs have to be looked at, as something of them has changed or time is over.
    fn take_stale_ranges(&mut self, around: Circumstances) -> BTreeSet<CompactString> {
        let ranges = &mut self.pod_ranges;
        let mut stale = std::mem::take(&mut ranges.stale);
        if ranges.nodes_are_read.is_some_and(|were_read| were_read != around.nodes_are_read) {
            stale.extend(ranges.late.nodes().chain(ranges.missing.nodes()));
        }
        if ranges.due.is_some_and(|due| due <= around.now) {
            stale.extend(ranges.expected.nodes());
            // Each of them that is still expected sets it again.
            ranges.due = None;
        }
        stale
    }

    fn look_at_ranges(
        &mut self,
        node: &CompactString,
        around: Circumstances,
        has_sent_all: &impl Fn(IpAddr, Family) -> bool,
    ) {
        // While nodes cannot be read a dead one stays `Ready`, and the one with the API server may be just that; and the control
        // plane needs time to look at all of them when it is back.
        let is_expected = around.nodes_are_read && self.should_announce(node);
        let (mut lasting, mut missing, mut expected, mut late) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for range in self.nodes.ranges_of(node).iter().copied() {
            match self.reason(node, range, has_sent_all) {
                Ok(()) => {}
                Err(Some(reason)) => lasting.push((range, reason)),
                Err(None) if is_expected && !self.has_wider_route(range) => {
                    let since = self.pod_ranges.expected.of(node, range).copied().unwrap_or(around.since);
                    expected.push((range, since));
                    match since + PATIENCE <= around.now {
                        true => late.push((range, ())),
                        false => missing.push((range, ())),
                    }
                }
                Err(None) => missing.push((range, ())),
            }
        }
        let ranges = &mut self.pod_ranges;
        let due = expected.iter().map(|(_, since)| *since + PATIENCE).filter(|due| *due > around.now);
        ranges.due = due.chain(ranges.due).min();
        ranges.looked_at += 1;
        ranges.lasting.put(node, lasting);
        ranges.missing.put(node, missing);
        ranges.late.put(node, late);
        ranges.expected.put(node, expected);
    }

    /// Has the pod CIDRs of the node behind a neighbour looked at again, after a change of what it has sent.
    pub fn look_at_peer(&mut self, peer: IpAddr) {
        self.pod_ranges.stale.extend(self.nodes.with_address(&peer).cloned());
    }

    /// Has all pod CIDRs looked at again: no neighbour has sent anything to a new speaker.
    pub fn look_at_all_peers(&mut self) {
        self.pod_ranges.stale.extend(self.nodes.ranges_by_node().map(|(node, _)| node.clone()));
    }

    /// Returns how often the pod CIDRs of a node were looked at.
    pub fn pod_ranges_looked_at(&self) -> u64 {
        self.pod_ranges.looked_at
    }

    /// Returns as an error that a pod CIDR has no route, with the reason where that lasts.
    fn reason(
        &self,
        node: &CompactString,
        range: IpNet,
        has_sent_all: &impl Fn(IpAddr, Family) -> bool,
    ) -> Result<(), Option<Reason>> {
        if let Some(other) = self.nodes.rival(node, &range) {
            return Err(Some(Reason::Shared(other.clone())));
        }
        if self.routes.has(range) {
            // Without tunnels the network between nodes may have a route.
            let is_lost = self.config.overlay.is_some() && !self.routes.has_way(range);
            if is_lost {
                return Err(Some(Reason::NoWay));
            }
            return if self.lacks_peer(node, range).is_some() { Err(None) } else { Ok(()) };
        }
        if let Some(why) = self.pod_ranges.refused.get(&range) {
            return Err(Some(Reason::Refused(why.clone())));
        }
        if self.nodes.obstacle(node) == Some(Obstacle::NoCommonFamily) {
            return Err(Some(Reason::NoCommonFamily));
        }
        let has_sent_all = self.nodes.peer(node).is_some_and(|peer| has_sent_all(peer, Family::from(range)));
        Err(has_sent_all.then_some(Reason::NotAnnounced))
    }

    fn expects_pods(&self) -> bool {
        self.takes_node_objects() || self.config.internal_peers && self.desired.speaker.is_some()
    }

    /// Returns the pod CIDRs of other nodes to which no route can be learned because our own node keeps the speaker from running:
    /// none before the nodes are known. Routes of before stay, and nodes that come are not reached.
    pub fn unreached_without_speaker(&self) -> Unreached {
        let is_meant = self.config.internal_peers && self.may_speak();
        let count = if is_meant && self.desired.speaker.is_none() { self.nodes.ranges_by_node().count() } else { 0 };
        if count == 0 {
            return Unreached::default();
        }
        let own = self.own.problems(&self.config).into_iter().find(|problem| problem.about == About::Speaker);
        let why = own.map_or_else(|| "this node has no BGP identifier".to_owned(), |problem| problem.text);
        let trouble =
            format!("BGP does not run, so no routes to {count} pod ranges of other nodes can be learned: {why}");
        Unreached { count, trouble: Some(trouble), ..Unreached::default() }
    }

    /// Returns the problems of other nodes' pod CIDRs.
    pub(super) fn problems_of_ranges(&self) -> Vec<Problem> {
        let refused = &self.pod_ranges.refused;
        if !self.expects_pods() || refused.is_empty() {
            return Vec::new();
        }
        let refused = self.nodes.ranges_by_node().filter_map(|(node, range)| {
            let why = refused.get(&range)?;
            let text = format!("routes to its pod range {range} are refused, its pods cannot be reached: {why}");
            Some(Problem::new(About::Node(node.clone()), text))
        });
        let mut problems: Vec<Problem> = refused.take(PROBLEMS + 1).collect();
        if problems.len() > PROBLEMS {
            let text = "routes to pod ranges of more nodes are refused; /readyz says how many";
            problems.truncate(PROBLEMS);
            problems.push(Problem::new(About::OtherNodes, text));
        }
        problems
    }
}

/// Pod CIDRs by node, each with something about it, and their number.
#[derive(Debug)]
struct Ranges<T> {
    by_node: BTreeMap<CompactString, Vec<(IpNet, T)>>,
    count: usize,
}

impl<T> Default for Ranges<T> {
    fn default() -> Ranges<T> {
        Ranges { by_node: BTreeMap::new(), count: 0 }
    }
}

impl<T> Ranges<T> {
    /// Replaces those of one node.
    fn put(&mut self, node: &CompactString, ranges: Vec<(IpNet, T)>) {
        self.count += ranges.len();
        let before = match ranges.is_empty() {
            true => self.by_node.remove(node),
            false => self.by_node.insert(node.clone(), ranges),
        };
        self.count -= before.map_or(0, |before| before.len());
    }

    /// Returns what there is about one of them.
    fn of(&self, node: &CompactString, range: IpNet) -> Option<&T> {
        self.by_node.get(node)?.iter().find(|(one, _)| *one == range).map(|(_, about)| about)
    }

    fn nodes(&self) -> impl Iterator<Item = CompactString> {
        self.by_node.keys().cloned()
    }

    /// Names the first ones and counts the others; `None` if there are none.
    fn text(&self, name: impl Fn(&CompactString, IpNet, &T) -> String) -> Option<String> {
        let all = self
            .by_node
            .iter()
            .flat_map(|(node, ranges)| ranges.iter().map(move |(range, about)| (node, range, about)));
        let first: Vec<String> = all.take(NAMED).map(|(node, range, about)| name(node, *range, about)).collect();
        let more = self.count - first.len();
        let more = if more > 0 { format!(", and {more} more") } else { String::new() };
        (self.count > 0).then(|| format!("{}{more}", first.join(", ")))
    }
}

#[cfg(test)]
mod tests;
