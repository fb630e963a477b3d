//! Pod CIDRs of other nodes: those for which routes are accepted, and those without a route.
//!
//! Kubernetes: `Node.spec.podCIDRs`. A neighbour's route to such a range is accepted before the networks of our links
//! are checked (a node of 10.0.0.1/8 accepts 10.244.2.0/24). A range that is refused nevertheless has a [`Refusal`]:
//! its pods stay unreachable from here, which is reported. A node that is down announces nothing: that is no fault.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use compact_str::CompactString;
use ipnet::IpNet;

use super::Plan;
use crate::net::Family;
use crate::router::identity::Identity;
use crate::router::nodes::Nodes;
use crate::router::policy::narrowest_default;
use crate::router::problem::{About, Problem};

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
}

/// Pod CIDRs of other nodes without a route here.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Unreached {
    pub count: usize,
    /// Lasting ones, as text: refused, without a path, or not announced by a node that has sent everything.
    pub trouble: Option<String>,
    /// Those that their nodes have not announced yet, as text: the nodes are down, or starting.
    pub missing: Option<String>,
}

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
        }
    }
}

/// Returns the pod CIDRs of other nodes for which no route is accepted.
pub fn refused(own: &Identity, nodes: &Nodes) -> BTreeMap<IpNet, Refusal> {
    let refusal = |range: IpNet| {
        let holds = |outer: &IpNet| outer.contains(&range);
        if let Some(ours) = own.all_pod_cidrs().find(holds) {
            return Some(Refusal::OwnPods(ours));
        }
        if let Some(rejected) = own.routing.import_reject.iter().copied().find(holds) {
            return Some(Refusal::Annotation(rejected));
        }
        if range.prefix_len() < narrowest_default(Family::from(range)) {
            return Some(Refusal::DefaultRoute);
        }
        let (address, node) = nodes.address_of_another_in(range)?;
        Some(Refusal::NodeAddress { address, node: node.clone() })
    };
    nodes.ranges().into_iter().filter_map(|range| Some((range, refusal(range)?))).collect()
}

impl Plan {
    /// Returns the pod CIDRs of other nodes without a route; none if nodes do not peer with each other. `has_sent_all`:
    /// whether a neighbour with a session has sent all its routes of a family (End-of-RIB, RFC 4724 2).
    pub fn unreached(&self, has_sent_all: impl Fn(IpAddr, Family) -> bool) -> Unreached {
        let mut unreached = Unreached::default();
        if !self.expects_pods() {
            return unreached;
        }
        let (mut lasting, mut missing) = (Named::default(), Named::default());
        for (node, range) in self.nodes.ranges_by_node() {
            if self.routes.has(range) {
                // Without tunnels the network between nodes may have a route.
                if self.config.overlay.is_some() && !self.routes.has_way(range) {
                    lasting.add(|| format!("{range} of Node {node} (no way to the next hop of its route)"));
                }
            } else if let Some(why) = self.refused.get(&range) {
                lasting.add(|| format!("{range} of Node {node} ({why})"));
            } else if self.nodes.peer(node).is_some_and(|peer| has_sent_all(peer, Family::from(range))) {
                lasting.add(|| format!("{range} of Node {node} (it does not announce it)"));
            } else {
                missing.add(|| format!("{range} of Node {node}"));
            }
        }
        unreached.count = lasting.count + missing.count;
        unreached.trouble = lasting.text().map(|text| format!("pods cannot be reached: {text}"));
        unreached.missing = missing.text().map(|text| format!("no route yet to pods: {text}"));
        unreached
    }

    fn expects_pods(&self) -> bool {
        self.config.internal_peers && self.desired.speaker.is_some()
    }

    /// Returns the problems of other nodes' pod CIDRs.
    pub(super) fn problems_of_ranges(&self) -> Vec<Problem> {
        if !self.expects_pods() || self.refused.is_empty() {
            return Vec::new();
        }
        let refused = self.nodes.ranges_by_node().filter_map(|(node, range)| {
            let why = self.refused.get(&range)?;
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

/// A list of items of which the first ones are named.
#[derive(Default)]
struct Named {
    count: usize,
    first: Vec<String>,
}

impl Named {
    fn add(&mut self, name: impl FnOnce() -> String) {
        self.count += 1;
        if self.first.len() < NAMED {
            self.first.push(name());
        }
    }

    fn text(&self) -> Option<String> {
        let more = self.count - self.first.len();
        let more = if more > 0 { format!(", and {more} more") } else { String::new() };
        (self.count > 0).then(|| format!("{}{more}", self.first.join(", ")))
    }
}
