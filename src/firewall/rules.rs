//! The compiled form of all NetworkPolicies that concern this node: one typed rule set, independent of any backend.
//!
//! How a packet is judged: for each direction separately, each pod of this node at that end of the packet (the source
//! for egress, the destination for ingress) has to allow it. A pod allows it if it is [`Isolation::Open`] in this
//! direction, or if any [`Match`] of any rule of any policy that isolates it matches. Policies, rules and matches are
//! unordered, and nothing here denies: what is not allowed is dropped.
//!
//! ClusterNetworkPolicies are evaluated around that, in order ([`LocalPod::cluster_policies`], [`RuleSet::cluster_policies`]).
//! Of the policies of the Admin tier that select the pod, sorted by priority and then by name, the first rule that matches
//! decides: Accept and Deny finally, Pass for NetworkPolicies. These decide finally if the pod is isolated; if it is
//! [`Isolation::Open`], the Baseline tier is evaluated likewise, and what no rule decides passes.
//!
//! Names are those of the API objects: a policy and a direction identify a list of rules, a rule's index in the list is
//! its index in `spec.ingress[]` or `spec.egress[]`. A set is identified by its definition ([`SetKey`]), so policies
//! with the same selector share one set; its contents follow the cluster, the rules do not.
//!
//! Only what concerns this node is here: pods of other nodes appear only as elements of sets, policies that select no
//! pod of this node do not appear.
//!
//! An address that several running pods claim (a pod was replaced, and its old object is not gone yet) has only the
//! rights that all of them have: a set holds it only if each of them belongs there, and each pod of this node that
//! claims it has to allow its packets. See `claims`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use compact_str::CompactString;
use ipnet::IpNet;

use crate::model::{Action, ObjectName, PodUid, Selector, Tier};
use crate::net::{Family, PerFamily, Protocol};

use super::ip_block::{self, Span};
use super::local_pods::LocalPods;

pub use crate::net::PortRange;

/// All rules to be enforced on this node.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct RuleSet {
    /// Pods of this node that policies can apply to: running, with addresses of their own. Pods without isolation are
    /// included.
    pub pods: LocalPods,
    /// The rules of each policy that isolates a pod of this node, for each direction in which it does.
    pub policies: BTreeMap<PolicyKey, Arc<[Rule]>>,
    /// The rules of each ClusterNetworkPolicy that selects a pod of this node, in order, for each direction in which it has
    /// any. Sorted as they are evaluated.
    pub cluster_policies: BTreeMap<ClusterPolicyKey, Arc<[ClusterRule]>>,
    /// The sets that rules use, and no others. An empty set matches nothing.
    pub sets: BTreeMap<Arc<SetKey>, Contents>,
}

/// Relative to the isolated pod: ingress is traffic to it, egress is traffic from it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Direction {
    Ingress,
    Egress,
}

/// A pod of this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalPod {
    /// Which of the pods that have this name one after the other; no packet is judged by it.
    pub uid: Option<PodUid>,
    /// As in the API's order; of either family, at least one.
    pub addresses: Box<[IpAddr]>,
    pub ingress: Isolation,
    pub egress: Isolation,
    /// The ClusterNetworkPolicies that select the pod, in the directions in which they have rules; sorted.
    pub cluster_policies: Box<[ClusterPolicyKey]>,
}

/// Isolation of a pod in one direction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Isolation {
    /// No policy selects the pod for this direction: all traffic is allowed.
    Open,
    /// Only traffic that one of these policies allows passes.
    Isolated {
        /// Sorted. Empty if only the namespace's annotation isolates: then no traffic is allowed.
        policies: Box<[ObjectName]>,
        /// The namespace's annotation asks for isolation too. Only ever true for ingress.
        by_namespace: bool,
    },
}

/// One direction of one policy.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PolicyKey {
    pub policy: ObjectName,
    pub direction: Direction,
}

/// One direction of one ClusterNetworkPolicy. The order is that of evaluation: by tier, priority and name. The API leaves open
/// which of two policies of the same priority comes first.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClusterPolicyKey {
    pub tier: Tier,
    /// The lowest comes first.
    pub priority: u16,
    pub policy: CompactString,
    pub direction: Direction,
}

/// One entry of `ingress[]` or `egress[]` of a ClusterNetworkPolicy: what becomes of the packets that it matches.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterRule {
    /// As its author calls it; may be empty.
    pub name: CompactString,
    pub action: Action,
    pub rule: Rule,
    /// Only of a rule that passes: what it does not match although some of the pods do that claim an address, because others do
    /// not. Such packets are denied, here in the order: no other rule is to be followed on behalf of the wrong pod.
    pub contested: Rule,
}

/// One entry of `ingress[]` or `egress[]`: it allows packets that any of its matches matches; without matches, nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    pub matches: Box<[Match]>,
}

/// One condition on a packet; both parts have to match.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Match {
    /// The address at the other end (the source for ingress, the destination for egress) is in this set;
    /// `None` for any address of either family.
    pub peer: Option<Arc<SetKey>>,
    pub port: PortMatch,
}

/// A condition on protocol and destination port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PortMatch {
    /// Every protocol, including those without ports.
    Any,
    /// Every port of this protocol.
    Protocol(Protocol),
    /// The destination port lies in one of these ranges: sorted, neither overlapping nor touching, at least one.
    Numbers(Protocol, Box<[PortRange]>),
    /// The destination address and port are an element of this set, a [`SetKey::NamedPort`], whose protocol is the
    /// packet's.
    Named(Arc<SetKey>),
}

/// The definition of a set. Equal definitions are one set, whichever rules use it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum SetKey {
    /// The addresses of the selected pods: elements are [`Element::Address`].
    Pods(Selection),
    /// The addresses of these blocks, without their exceptions: [`Contents::ranges`]. Sorted, without duplicates, at least one.
    Blocks(Box<[Block]>),
    /// The destinations of a port name: elements are [`Element::Port`], pods' addresses with the number that the pod
    /// gives to the name in this protocol.
    NamedPort { pods: PortOwners, name: CompactString, protocol: Protocol },
    /// The same for rules that deny, of which one matches an address if any of the pods that claim it does: elements are
    /// those of the other set, and those that it lacks because not all claimants agree. Only of pods and named ports.
    Denied(Box<SetKey>),
}

/// The pods that one `podSelector` and `namespaceSelector` select.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Selection {
    pub namespaces: Scope,
    pub pods: Selector,
}

/// The namespaces that a [`Selection`] selects.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Scope {
    /// The namespace of this name.
    Named(CompactString),
    Selected(Selector),
}

/// An `ipBlock`. Host bits are zero; `except` is sorted, and each entry lies inside `cidr`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Block {
    pub cidr: IpNet,
    pub except: Box<[IpNet]>,
}

/// The pods whose named ports a set holds.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PortOwners {
    /// Pods of this node. Ingress rules are only evaluated for packets to the pod that they isolate, so all of them
    /// share one set for each name.
    Local,
    /// All pods of the cluster.
    All,
    /// The pods that a peer selects.
    Selected(Selection),
    /// Pods whose address lies in one of these ranges; as in [`Contents::ranges`].
    Inside(PerFamily<Arc<[Span]>>),
}

/// The elements of a set, or its ranges of addresses, by family.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Contents {
    /// Of every set but [`SetKey::Blocks`].
    pub elements: PerFamily<BTreeSet<Element>>,
    /// Of [`SetKey::Blocks`]: sorted, neither overlapping nor touching.
    pub ranges: PerFamily<Box<[Span]>>,
}

/// One element of a set. All elements of a set have the same variant, which follows from the set's key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Element {
    Address(IpAddr),
    Port(IpAddr, u16),
}

impl RuleSet {
    /// Returns whether any policy refuses packets of a pod in this direction, as opposed to policies that only accept or pass
    /// them on.
    pub fn may_refuse(&self, pod: &LocalPod, direction: Direction) -> bool {
        self.is_isolated_or(pod, direction, |rule| rule.action == Action::Deny)
    }

    /// Returns whether packets of a pod that connection tracking cannot assign are dropped: where any rule may deny something, also one
    /// that passes packets on and denies what only some of the pods at an address match.
    pub fn drops_invalid(&self, pod: &LocalPod, direction: Direction) -> bool {
        self.is_isolated_or(pod, direction, ClusterRule::may_deny)
    }

    fn is_isolated_or(&self, pod: &LocalPod, direction: Direction, is_one: impl Fn(&ClusterRule) -> bool) -> bool {
        let mut policies = pod.cluster_policies.iter().filter(|key| key.direction == direction);
        *pod.isolation(direction) != Isolation::Open
            || policies.any(|key| self.cluster_policies.get(key).is_some_and(|rules| rules.iter().any(&is_one)))
    }

    /// Returns the pods of this node that have this address: one, or several for a moment.
    pub fn local_pods_at(&self, address: IpAddr) -> impl Iterator<Item = (&ObjectName, &LocalPod)> {
        self.pods.at(address)
    }
}

impl ClusterRule {
    /// Returns whether the rule may deny a packet.
    pub fn may_deny(&self) -> bool {
        self.action == Action::Deny || !self.contested.matches.is_empty()
    }
}

impl Direction {
    pub const BOTH: [Direction; 2] = [Direction::Ingress, Direction::Egress];

    /// Returns the value in the API's `policyTypes`, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        }
    }
}

impl LocalPod {
    pub fn isolation(&self, direction: Direction) -> &Isolation {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    /// Returns the ClusterNetworkPolicies of one tier that have rules for one direction, in the order of evaluation.
    pub fn tier(&self, tier: Tier, direction: Direction) -> impl Iterator<Item = &ClusterPolicyKey> {
        self.cluster_policies.iter().filter(move |key| key.tier == tier && key.direction == direction)
    }

    /// Returns whether any policy may refuse packets of this direction: if none can, everything passes.
    pub fn is_judged(&self, direction: Direction) -> bool {
        *self.isolation(direction) != Isolation::Open
            || self.cluster_policies.iter().any(|key| key.direction == direction)
    }

    /// Returns the isolation in one direction, mutable.
    pub fn isolation_mut(&mut self, direction: Direction) -> &mut Isolation {
        match direction {
            Direction::Ingress => &mut self.ingress,
            Direction::Egress => &mut self.egress,
        }
    }
}

impl Rule {
    /// Returns the sets that the rule uses; may contain duplicates.
    pub fn sets(&self) -> impl Iterator<Item = &Arc<SetKey>> {
        self.matches.iter().flat_map(|one| {
            let named = match &one.port {
                PortMatch::Named(set) => Some(set),
                PortMatch::Any | PortMatch::Protocol(_) | PortMatch::Numbers(..) => None,
            };
            one.peer.iter().chain(named)
        })
    }
}

impl ClusterRule {
    /// Returns the sets that the rule uses; may contain duplicates.
    pub fn sets(&self) -> impl Iterator<Item = &Arc<SetKey>> {
        self.rule.sets().chain(self.contested.sets())
    }
}

impl SetKey {
    /// Returns the set that a [`SetKey::Denied`] is about; every other set itself.
    pub fn plain(&self) -> &SetKey {
        match self {
            SetKey::Denied(set) => set.plain(),
            SetKey::Pods(_) | SetKey::Blocks(_) | SetKey::NamedPort { .. } => self,
        }
    }

    /// Returns whether an element of the set closes paths, where those of others open them.
    pub fn closes(&self) -> bool {
        matches!(self, SetKey::Denied(_))
    }

    /// Returns the protocol of a set of named ports.
    pub fn protocol(&self) -> Option<Protocol> {
        match self {
            SetKey::NamedPort { protocol, .. } => Some(*protocol),
            SetKey::Denied(set) => set.protocol(),
            SetKey::Pods(_) | SetKey::Blocks(_) => None,
        }
    }

    /// Returns whether the set can have elements of a family at all; otherwise a backend has no set there.
    pub fn is_of(&self, family: Family) -> bool {
        let among = |blocks: &[Block]| blocks.iter().any(|block| Family::from(block.cidr) == family);
        match self {
            SetKey::Blocks(blocks) => among(blocks),
            SetKey::NamedPort { pods: PortOwners::Inside(ranges), .. } => !ranges.of(family).is_empty(),
            SetKey::Denied(set) => set.is_of(family),
            SetKey::Pods(_) | SetKey::NamedPort { .. } => true,
        }
    }
}

impl Contents {
    /// Returns what these blocks hold.
    pub fn of_blocks(blocks: &[Block]) -> Contents {
        let ranges = PerFamily::from_fn(|family| ip_block::spans(blocks, family).into());
        Contents { ranges, ..Contents::default() }
    }

    /// Returns whether an address belongs to a set of addresses or blocks.
    pub fn holds_address(&self, address: IpAddr) -> bool {
        let family = Family::from(address);
        ip_block::any_holds(self.ranges.of(family), address)
            || self.elements.of(family).contains(&Element::Address(address))
    }

    /// Returns whether an address and a port are an element of a set of named ports.
    pub fn holds_port(&self, address: IpAddr, port: u16) -> bool {
        self.elements.of(Family::from(address)).contains(&Element::Port(address, port))
    }

    /// Returns the number of elements and ranges of both families together.
    pub fn len(&self) -> usize {
        let elements: usize = self.elements.iter().map(|(_, elements)| elements.len()).sum();
        elements + self.ranges.iter().map(|(_, ranges)| ranges.len()).sum::<usize>()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Element {
    pub fn family(&self) -> Family {
        match self {
            Element::Address(address) | Element::Port(address, _) => Family::from(*address),
        }
    }

    /// Returns the address.
    pub fn address(&self) -> IpAddr {
        match self {
            Element::Address(address) | Element::Port(address, _) => *address,
        }
    }
}

impl FromIterator<Element> for Contents {
    fn from_iter<I: IntoIterator<Item = Element>>(elements: I) -> Contents {
        let (v4, v6): (Vec<Element>, Vec<Element>) =
            elements.into_iter().partition(|element| element.family() == Family::V4);
        // Collecting sorted elements packs them densely, which inserting one by one does not.
        let elements = PerFamily { v4: v4.into_iter().collect(), v6: v6.into_iter().collect() };
        Contents { elements, ..Contents::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(prefixes: &[&str]) -> Contents {
        let block = |prefix: &&str| ip_block::block(prefix.parse().unwrap(), &[]);
        Contents::of_blocks(&prefixes.iter().map(block).collect::<Vec<_>>())
    }

    fn holds(contents: &Contents, address: &str) -> bool {
        contents.holds_address(address.parse().unwrap())
    }

    #[test]
    fn an_address_belongs_to_the_prefix_around_it() {
        let contents = contents(&["203.0.113.0/30", "203.0.113.8/32", "2001:db8:113::/64"]);
        assert!(holds(&contents, "203.0.113.0") && holds(&contents, "203.0.113.3"));
        assert!(!holds(&contents, "203.0.113.4") && !holds(&contents, "203.0.113.7"));
        assert!(holds(&contents, "203.0.113.8") && !holds(&contents, "203.0.113.9"));
        assert!(holds(&contents, "2001:db8:113::ffff") && !holds(&contents, "2001:db8:114::"));
    }

    #[test]
    fn everything_of_one_family_says_nothing_of_the_other() {
        let contents = contents(&["0.0.0.0/0"]);
        assert!(holds(&contents, "0.0.0.0") && holds(&contents, "255.255.255.255"));
        assert!(!holds(&contents, "::") && !holds(&contents, "64:ff9b::1"));
    }

    #[test]
    fn a_port_belongs_to_its_address_only() {
        let address: IpAddr = "10.244.1.7".parse().unwrap();
        let contents: Contents = [Element::Port(address, 8080)].into_iter().collect();
        assert!(contents.holds_port(address, 8080) && !contents.holds_port(address, 8081));
        assert!(!contents.holds_port("10.244.1.8".parse().unwrap(), 8080));
        assert!(!contents.holds_address(address), "a set of named ports is no set of addresses");
    }
}
