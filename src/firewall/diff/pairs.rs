//! Pairs of a pod of this node with other pods and ranges, and the ports at which they open or close.
//!
//! Pods of this node that the same policies judge are alike, and so are peers that the same sets hold: one of each is traced
//! through both rule sets (`verdict`), so nothing here knows what a rule means. The work is bounded: what is beyond the bound is not
//! looked at, and the answer says so.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use compact_str::CompactString;
use ipnet::IpNet;

use crate::model::{ObjectName, Pod, World};
use crate::net::{Family, Protocol};

use super::super::plan::RuleSetChanges;
use super::super::rules::{
    ClusterPolicyKey, Direction, Element, Isolation, LocalPod, PolicyKey, PortRange, Rule, RuleSet, SetKey,
};
use super::super::verdict::{Packet, of_pod};
use super::ports::{Alike, Edges, Ports};
use super::ranges::{AddressRange, cut, joined};

/// All pairs that change.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Pairs {
    pub changes: Vec<PairChange>,
    /// The bound was reached, so there may be more.
    pub is_cut: bool,
}

/// Pairs that change alike.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PairChange {
    pub direction: Direction,
    pub opens: bool,
    /// The family in which the pairs change, where their pods have both; ranges are always of their own.
    pub only: Option<Family>,
    /// Pods of this node, sorted.
    pub pods: Vec<ObjectName>,
    pub ports: Ports,
    pub peers: Peers,
}

/// The other ends of pairs.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Peers {
    pub namespaces: Vec<NamespacePods>,
    /// Addresses that are no pod's; the first [`RANGES`].
    pub ranges: Vec<IpNet>,
    pub all_ranges: usize,
}

/// Pods of one namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamespacePods {
    pub namespace: CompactString,
    /// The first [`NAMES`].
    pub pods: Vec<CompactString>,
    pub all: usize,
    /// They are all running pods of the namespace.
    pub is_whole: bool,
}

/// The running pods of the cluster.
pub struct PodNames {
    pods: Vec<(ObjectName, Arc<Pod>)>,
    by_address: HashMap<IpAddr, u32>,
    of_namespace: HashMap<CompactString, usize>,
}

/// The most pods of a namespace and ranges that are listed.
pub const NAMES: usize = 20;
pub const RANGES: usize = 50;
/// A budget of some seconds.
pub const BUDGET: u64 = 10_000_000;
/// Looking up one address costs about so much less than asking one policy.
const LOOKUPS: usize = 8;
/// Number of matches that cost a trace as much as a policy does.
const MATCHES_LIKE_A_POLICY: u64 = 8;
/// The most addresses of a range that are tried for one that is no pod's.
const TRIES: u128 = 64;

impl PodNames {
    pub fn of(world: &World) -> PodNames {
        let running = world.cluster.pods.iter().filter(|(_, pod)| pod.takes_part());
        let pods: Vec<(ObjectName, Arc<Pod>)> = running.map(|(name, pod)| (name.clone(), pod.clone())).collect();
        let (mut by_address, mut of_namespace) = (HashMap::new(), HashMap::new());
        for (number, (name, pod)) in (0..).zip(&pods) {
            by_address.extend(pod.addresses.iter().map(|address| (*address, number)));
            *of_namespace.entry((*name.namespace).clone()).or_default() += 1;
        }
        PodNames { pods, by_address, of_namespace }
    }

    /// Returns the pod with this address.
    pub fn at(&self, address: IpAddr) -> Option<&ObjectName> {
        let number = usize::try_from(*self.by_address.get(&address)?).ok()?;
        self.pods.get(number).map(|(name, _)| name)
    }
}

/// Returns the pairs that differ between two rule sets, the second of which came about by these changes. `budget`: the most
/// packets that are traced, each counted with the policies that are asked.
pub fn pairs(before: &RuleSet, after: &RuleSet, changed: &RuleSetChanges, names: &PodNames, budget: u64) -> Pairs {
    let mut comparison =
        Comparison { rules: (before, after), names, left: budget, is_cut: false, found: BTreeMap::new() };
    for direction in Direction::BOTH {
        for (_, pods) in alike_pods(before, after, changed, direction) {
            comparison.compare(&pods, direction);
            if comparison.is_cut {
                return comparison.pairs(Some((direction, pods)));
            }
        }
    }
    comparison.pairs(None)
}

/// The properties that make pods of this node alike in one direction: their families, their policies, and the numbers of their named ports.
type Likeness = ([bool; 2], [Judges; 2], Vec<(Arc<SetKey>, Vec<u16>)>);

/// The policies of a pod in one direction.
#[derive(PartialEq)]
struct Judges {
    isolation: Isolation,
    cluster: Vec<ClusterPolicyKey>,
}

impl Judges {
    fn of(pod: &LocalPod, direction: Direction) -> Judges {
        let cluster = pod.cluster_policies.iter().filter(|key| key.direction == direction);
        Judges { isolation: pod.isolation(direction).clone(), cluster: cluster.cloned().collect() }
    }

    /// Returns whether these changes are about one of the policies.
    fn have_changed(&self, changed: &RuleSetChanges, direction: Direction) -> bool {
        policies(&self.isolation, direction).any(|key| changed.policies.contains(&key))
            || self.cluster.iter().any(|key| changed.cluster_policies.contains(key))
    }

    fn number(&self) -> u64 {
        (policies(&self.isolation, Direction::Ingress).count() + self.cluster.len()) as u64
    }
}

/// Returns the pods whose policies change in a direction, alike ones together.
fn alike_pods<'a>(
    before: &'a RuleSet,
    after: &'a RuleSet,
    changed: &RuleSetChanges,
    direction: Direction,
) -> Vec<(Likeness, Vec<&'a ObjectName>)> {
    let mut groups: Vec<(Likeness, Vec<&ObjectName>)> = Vec::new();
    for (name, new) in &after.pods {
        let Some(old) = before.pods.get(name) else { continue };
        let [was, is] = [old, new].map(|pod| Judges::of(pod, direction));
        if was == is && !is.have_changed(changed, direction) {
            continue;
        }
        let families = families(&new.addresses);
        let named = [(before, old), (after, new)]
            .into_iter()
            .flat_map(|(rules, pod)| sets(rules, pod, direction).into_iter().map(move |set| (rules, set)));
        let numbers = named.filter(|_| direction == Direction::Ingress).filter_map(|(rules, set)| {
            set.protocol()?;
            let numbers = new.addresses.iter().flat_map(|address| numbers(rules, &set, *address)).collect();
            Some((set, numbers))
        });
        let likeness: Likeness = (families, [was, is], numbers.collect());
        match groups.iter_mut().find(|(known, _)| *known == likeness) {
            Some((_, pods)) => pods.push(name),
            None => groups.push((likeness, vec![name])),
        }
    }
    groups
}

/// The comparison so far.
struct Comparison<'a> {
    rules: (&'a RuleSet, &'a RuleSet),
    names: &'a PodNames,
    /// The rest of the budget.
    left: u64,
    /// The budget is used up.
    is_cut: bool,
    found: BTreeMap<Found<'a>, Ends>,
}

/// Pairs that change alike: the direction, whether they open, the pods of this node, the ports.
type Found<'a> = (Direction, bool, Vec<&'a ObjectName>, Ports);

/// Peers by their number in [`PodNames`], with the families in which they change, IPv4 first; and ranges.
#[derive(Default)]
struct Ends {
    pods: BTreeMap<u32, [bool; 2]>,
    ranges: BTreeSet<AddressRange>,
}

/// A pod of this node that stands for all that are alike.
#[derive(Clone, Copy)]
struct One<'a> {
    name: &'a ObjectName,
    pods: [&'a LocalPod; 2],
    address: IpAddr,
    direction: Direction,
}

impl<'a> Comparison<'a> {
    fn compare(&mut self, pods: &[&'a ObjectName], direction: Direction) {
        let (before, after) = self.rules;
        let Some(name) = pods.first().copied() else { return };
        let (Some(old), Some(new)) = (before.pods.get(name), after.pods.get(name)) else { return };
        let sets = [(before, old), (after, new)].map(|(rules, pod)| (rules, sets(rules, pod, direction)));
        let cost = [(before, old), (after, new)].iter().map(|(rules, pod)| cost(rules, pod, direction)).sum();
        for family in Family::BOTH {
            let Some(address) = address_of(new, family) else { continue };
            let one = One { name, pods: [old, new], address, direction };
            let edges = self.edges(one);
            for (class, peers) in self.classes(&sets, family) {
                let Some(peer) = peers.first().and_then(|number| self.address(*number, family)) else { continue };
                let Some(turned) = self.turned(one, peer, with_ports(edges.clone(), &class), cost) else { return };
                for (opens, ports) in turned.into_iter().filter(|(_, ports)| !ports.is_empty()) {
                    let ends = self.found.entry((direction, opens, pods.to_vec(), ports)).or_default();
                    for number in &peers {
                        let [v4, v6] = ends.pods.entry(*number).or_default();
                        *(if family == Family::V4 { v4 } else { v6 }) = true;
                    }
                }
            }
            for range in self.ranges(&sets, family) {
                let mut tried = range.first_addresses(TRIES);
                let Some(peer) = tried.find(|address| self.names.at(*address).is_none()) else { continue };
                let Some(turned) = self.turned(one, peer, edges.clone(), cost) else { return };
                for (opens, ports) in turned.into_iter().filter(|(_, ports)| !ports.is_empty()) {
                    self.found.entry((direction, opens, pods.to_vec(), ports)).or_default().ranges.insert(range);
                }
            }
        }
    }

    /// Returns the ports at which a pair opens (true) and closes; `None` if the budget is used up.
    fn turned(&mut self, one: One<'_>, peer: IpAddr, edges: Edges, cost: u64) -> Option<[(bool, Ports); 2]> {
        let (mut opened, mut closed) = (Ports::default(), Ports::default());
        let ((before, after), [old, new]) = (self.rules, one.pods);
        for alike in edges.alike() {
            if !self.spend(cost) {
                return None;
            }
            match [(before, old), (after, new)].map(|(rules, pod)| passes(rules, pod, one, peer, alike)) {
                [false, true] => opened.add(alike),
                [true, false] => closed.add(alike),
                _ => {}
            }
        }
        Some([(true, opened), (false, closed)])
    }

    /// Takes this off the budget; returns whether it was there.
    fn spend(&mut self, cost: u64) -> bool {
        let left = self.left.checked_sub(cost);
        self.is_cut |= left.is_none();
        self.left = left.unwrap_or_default();
        left.is_some()
    }

    /// Returns the edges of all rules of both rule sets that concern a pod, but for the named ports of its peers.
    fn edges(&self, one: One<'_>) -> Edges {
        let mut edges = Edges::default();
        let ((before, after), [old, new]) = (self.rules, one.pods);
        for (rules, pod) in [(before, old), (after, new)] {
            let matches = rules_of(rules, pod, one.direction).flat_map(|rule| &rule.matches);
            matches.for_each(|one| edges.add(&one.port));
            if one.direction == Direction::Ingress {
                for set in sets(rules, pod, one.direction) {
                    add_numbers(&mut edges, &set, numbers(rules, &set, one.address));
                }
            }
        }
        edges
    }

    /// Returns the pods with an address in a family, by the sets of both rule sets that hold it, with their ports there.
    fn classes(&mut self, sets: &[(&RuleSet, BTreeSet<Arc<SetKey>>)], family: Family) -> Vec<(Class, Vec<u32>)> {
        let mut held: HashMap<IpAddr, Class> = HashMap::new();
        let mut blocks = Vec::new();
        for (number, (rules, set)) in
            (0..).zip(sets.iter().flat_map(|(rules, sets)| sets.iter().map(move |set| (rules, set))))
        {
            let Some(contents) = rules.sets.get(set) else { continue };
            if matches!(**set, SetKey::Blocks(_)) {
                blocks.push((number, contents));
                continue;
            }
            for element in contents.elements.of(family) {
                let port = match element {
                    Element::Port(_, port) => set.protocol().map(|protocol| (protocol, *port)),
                    Element::Address(_) => None,
                };
                held.entry(element.address()).or_default().push((number, port));
            }
        }
        let lookups = self.names.pods.len() * (1 + blocks.len());
        if !self.spend((lookups / LOOKUPS) as u64) {
            return Vec::new();
        }
        let mut classes: HashMap<Class, Vec<u32>> = HashMap::new();
        for (number, (_, pod)) in (0..).zip(&self.names.pods) {
            let Some(address) = pod.addresses.iter().find(|address| Family::from(**address) == family) else {
                continue;
            };
            let mut class = held.get(address).cloned().unwrap_or_default();
            class.extend(
                blocks.iter().filter(|(_, block)| block.holds_address(*address)).map(|(number, _)| (*number, None)),
            );
            classes.entry(class).or_default().push(number);
        }
        let mut classes: Vec<(Class, Vec<u32>)> = classes.into_iter().collect();
        classes.sort();
        classes
    }

    fn ranges(&self, sets: &[(&RuleSet, BTreeSet<Arc<SetKey>>)], family: Family) -> Vec<AddressRange> {
        let contents = sets.iter().flat_map(|(rules, sets)| sets.iter().filter_map(|set| rules.sets.get(set)));
        cut(family, contents.flat_map(|contents| contents.ranges.of(family)).copied())
    }

    fn address(&self, number: u32, family: Family) -> Option<IpAddr> {
        let (_, pod) = self.names.pods.get(usize::try_from(number).ok()?)?;
        pod.addresses.iter().copied().find(|address| Family::from(*address) == family)
    }

    /// Returns the pairs. Those of the pods that were being looked at when the budget was used up are not told by families: one
    /// of them may be missing.
    fn pairs(self, cut_at: Option<(Direction, Vec<&'a ObjectName>)>) -> Pairs {
        let Comparison { rules: (_, after), names, is_cut, found, .. } = self;
        let mut changes = Vec::new();
        for ((direction, opens, pods, ports), ends) in found {
            let is_cut = cut_at.as_ref().is_some_and(|(side, at)| *side == direction && *at == pods);
            let here = pods.first().and_then(|pod| after.pods.get(*pod)).filter(|_| !is_cut);
            let families = here.map_or([false; 2], |pod| families(&pod.addresses));
            let pods: Vec<ObjectName> = pods.into_iter().cloned().collect();
            for (only, ends) in by_family(names, families, ends) {
                let (pods, ports) = (pods.clone(), ports.clone());
                changes.push(PairChange { direction, opens, only, pods, ports, peers: summary(names, ends) });
            }
        }
        Pairs { changes, is_cut }
    }
}

/// Returns the ends that change in every family that they have in common with pods of these families, and those that change in
/// one of both.
fn by_family(names: &PodNames, families_here: [bool; 2], ends: Ends) -> BTreeMap<Option<Family>, Ends> {
    let mut apart: BTreeMap<Option<Family>, Ends> = BTreeMap::new();
    for (number, turned) in ends.pods {
        let addresses =
            usize::try_from(number).ok().and_then(|place| names.pods.get(place)).map(|(_, pod)| &pod.addresses);
        let has_both = families_here == [true; 2] && addresses.is_some_and(|all| families(all) == [true; 2]);
        let only = match turned {
            [true, false] if has_both => Some(Family::V4),
            [false, true] if has_both => Some(Family::V6),
            _ => None,
        };
        apart.entry(only).or_default().pods.insert(number, turned);
    }
    if !ends.ranges.is_empty() {
        apart.entry(None).or_default().ranges = ends.ranges;
    }
    apart
}

/// Returns the families of addresses, IPv4 first.
fn families(addresses: &[IpAddr]) -> [bool; 2] {
    Family::BOTH.map(|family| addresses.iter().any(|address| Family::from(*address) == family))
}

/// The sets that hold a peer, by number, each with the port that it has there by name.
type Class = Vec<(u32, Option<(Protocol, u16)>)>;

fn with_ports(mut edges: Edges, class: &Class) -> Edges {
    for (protocol, port) in class.iter().filter_map(|(_, port)| *port) {
        edges.add_range(protocol, PortRange { first: port, last: port });
    }
    edges
}

fn add_numbers(edges: &mut Edges, set: &SetKey, numbers: Vec<u16>) {
    for port in numbers {
        if let Some(protocol) = set.protocol() {
            edges.add_range(protocol, PortRange { first: port, last: port });
        }
    }
}

fn passes(rules: &RuleSet, pod: &LocalPod, one: One<'_>, peer: IpAddr, alike: Alike) -> bool {
    let (source, destination) = match one.direction {
        Direction::Ingress => (peer, one.address),
        Direction::Egress => (one.address, peer),
    };
    let packet = Packet { source, destination, traffic: alike.traffic(), from_this_node: false };
    of_pod(rules, &packet, (one.name, pod), one.direction).passes()
}

fn policies(isolation: &Isolation, direction: Direction) -> impl Iterator<Item = PolicyKey> {
    let policies = match isolation {
        Isolation::Open => &[][..],
        Isolation::Isolated { policies, .. } => policies,
    };
    policies.iter().map(move |policy| PolicyKey { policy: policy.clone(), direction })
}

/// Returns the rules of a pod's policies in one direction.
fn rules_of<'a>(rules: &'a RuleSet, pod: &'a LocalPod, direction: Direction) -> impl Iterator<Item = &'a Rule> {
    let of_policies = policies(pod.isolation(direction), direction).filter_map(|key| rules.policies.get(&key));
    let cluster = pod.cluster_policies.iter().filter(move |key| key.direction == direction);
    let of_cluster = cluster.filter_map(|key| rules.cluster_policies.get(key)).flat_map(|list| list.iter());
    of_policies.flat_map(|list| list.iter()).chain(of_cluster.flat_map(|one| [&one.rule, &one.contested]))
}

/// Returns the sets that the rules of a pod's policies use.
fn sets(rules: &RuleSet, pod: &LocalPod, direction: Direction) -> BTreeSet<Arc<SetKey>> {
    rules_of(rules, pod, direction).flat_map(|rule| rule.sets()).cloned().collect()
}

/// Returns what a trace through the rules of a pod costs: each policy, and each of its matches a small part of that.
pub(super) fn cost(rules: &RuleSet, pod: &LocalPod, direction: Direction) -> u64 {
    let matches: usize = rules_of(rules, pod, direction).map(|rule| rule.matches.len()).sum();
    let matches = u64::try_from(matches).unwrap_or(u64::MAX);
    Judges::of(pod, direction).number() + 1 + matches / MATCHES_LIKE_A_POLICY
}

/// Returns the ports that a set of named ports has at an address.
fn numbers(rules: &RuleSet, set: &SetKey, address: IpAddr) -> Vec<u16> {
    let contents = rules.sets.get(set).filter(|_| set.protocol().is_some());
    let elements = contents.into_iter().flat_map(|contents| {
        contents.elements.of(Family::from(address)).range(Element::Port(address, 0)..=Element::Port(address, u16::MAX))
    });
    let port = |element: &Element| match element {
        Element::Port(_, port) => Some(*port),
        Element::Address(_) => None,
    };
    elements.filter_map(port).collect()
}

fn address_of(pod: &LocalPod, family: Family) -> Option<IpAddr> {
    pod.addresses.iter().copied().find(|address| Family::from(*address) == family)
}

fn summary(names: &PodNames, ends: Ends) -> Peers {
    let mut namespaces: BTreeMap<&CompactString, NamespacePods> = BTreeMap::new();
    for (name, _) in ends.pods.keys().filter_map(|number| names.pods.get(usize::try_from(*number).ok()?)) {
        let of_namespace = namespaces.entry(&name.namespace).or_insert_with(|| NamespacePods {
            namespace: (*name.namespace).clone(),
            pods: Vec::new(),
            all: 0,
            is_whole: false,
        });
        of_namespace.all += 1;
        if of_namespace.pods.len() < NAMES {
            of_namespace.pods.push(name.name.to_compact());
        }
    }
    for (name, of_namespace) in &mut namespaces {
        of_namespace.is_whole = names.of_namespace.get(*name) == Some(&of_namespace.all);
    }
    let mut ranges: Vec<IpNet> = joined(ends.ranges).into_iter().flat_map(AddressRange::prefixes).collect();
    let all_ranges = ranges.len();
    ranges.truncate(RANGES);
    Peers { namespaces: namespaces.into_values().collect(), ranges, all_ranges }
}
