//! Policies of which more would come than the kernel is given: of their blocks, or of their peers and ports together.
//!
//! Who may write one policy may write some 60,000 exceptions into it. As ranges they are as many elements. As prefixes, which are all that an ipset knows, each of them may be 112
//! elements of IPv6 that lie far apart, or 17 of IPv4: gigabytes on each node with a pod that the policy selects. So the elements of one policy have a bound.
//! Above it the blocks of a NetworkPolicy match nothing, each like a peer that cannot be read, and its other peers stay. A rule of a ClusterNetworkPolicy that names networks fails
//! closed, as the API has it for what cannot be enforced: Accept matches nothing, Deny and Pass deny everything.
//!
//! Blocks that several rules of a policy have alike are one set, and count once. The addresses of Nodes, which are peers too, do not count: who writes a
//! policy does not decide how many there are.
//!
//! A rule is the product of its peers and its ports, and an object has room for ten thousand of either. So the combinations of one policy have a bound too,
//! as written: ports by number share a rule of the kernel only some at a time. Beside that each port name of egress has a set of its own for each peer, whose definition
//! names the selector or the blocks again: what is named so has the bound of elements. Above one of them no rule of a NetworkPolicy matches anything, and all rules of a
//! ClusterNetworkPolicy are closed as above. The same where its peers are too many different sets of addresses.

use std::collections::{BTreeSet, HashSet};

use ipnet::IpNet;

use crate::config::Backend;
use crate::model::{Cause, Namespaces, Operator, Peer, Peers, PolicyPort, PolicyRule, Ports, Selector, ServiceProblem};
use crate::net::Family;

use super::rules::Block;
use super::{ip_block, named_port};

/// Most elements of all blocks of one policy: some 30,000 single addresses of IPv4 cut out of everything as prefixes, and far more than an object of the API has room for as ranges.
/// In memory they are some 100 MB with iptables.
const MOST: usize = 524_288;
/// Most combinations of a peer with a port in the rules of one policy. Each is a rule of the kernel at most.
const MOST_COMBINATIONS: usize = 32_768;
/// Most combinations of a peer with a port's name in the rules of one policy with iptables, where each may be a set of each family, also without an element: 16 kB of the kernel, and one
/// of the 65,472 sets that all programs of a node can have together. nftables has one set for all of them.
const MOST_NAMED: usize = 2_048;
/// Most different sets of addresses that the peers of one policy are: each selector of pods is one, and the blocks of a rule are one. Each may be a set of each family, with either backend: of those of ipset a node can have 65,472, of 16 kB each, and nf_tables finds one by
/// going through all of a table, for each rule that names one.
const MOST_SETS: usize = 2_048;

/// The part of a policy that is more than the kernel is given.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Excess {
    /// The elements of its blocks.
    Blocks,
    /// The combinations of its peers and ports.
    Combinations,
    /// The different sets of addresses that its peers are.
    Sets,
}

/// How many elements the blocks of one policy may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bound {
    backend: Backend,
    most: usize,
}

impl Default for Bound {
    fn default() -> Bound {
        Bound::of(Backend::default())
    }
}

impl Bound {
    /// Returns the bound for a backend.
    pub const fn of(backend: Backend) -> Bound {
        Bound::new(backend, MOST)
    }

    /// `most`: the most elements that are taken, both families together.
    pub const fn new(backend: Backend, most: usize) -> Bound {
        Bound { backend, most }
    }

    /// Returns what of these rules, which are all those of one policy, is more.
    pub fn excess<'a>(self, rules: impl Iterator<Item = &'a PolicyRule> + Clone) -> Option<Excess> {
        let combined: Combined = rules.clone().map(Combined::of).sum();
        let named = if self.backend == Backend::Iptables { combined.named } else { 0 };
        if combined.combinations > MOST_COMBINATIONS || combined.named_again > MOST || named > MOST_NAMED {
            return Some(Excess::Combinations);
        }
        if has_many_sets(rules.clone()) {
            return Some(Excess::Sets);
        }
        self.is_exceeded_by(rules).then_some(Excess::Blocks)
    }

    /// Returns whether the blocks of these rules are more. They are counted without being kept.
    fn is_exceeded_by<'a>(self, rules: impl Iterator<Item = &'a PolicyRule> + Clone) -> bool {
        let of_bits = |bits: usize| match self.backend {
            Backend::Iptables => bits,
            Backend::Nftables => 1,
        };
        let at_most = rules.clone().flat_map(written);
        let at_most = at_most.map(|(cidr, except)| 1 + except.len() * of_bits(cidr.max_prefix_len().into()));
        if at_most.sum::<usize>() <= self.most {
            return false;
        }
        let sets: BTreeSet<Vec<Block>> = rules.map(blocks).collect();
        let mut elements = sets.iter().flat_map(|blocks| {
            Family::BOTH.into_iter().flat_map(move |family| {
                let is_range = self.backend == Backend::Nftables && ip_block::has_holes(blocks, family);
                ip_block::spans(blocks, family).into_iter().flat_map(move |span| {
                    let count = if is_range { 1 } else { usize::MAX };
                    span.prefixes(family).take(count)
                })
            })
        });
        elements.nth(self.most).is_some()
    }

    /// Returns what is told of a policy that exceeds the bound. `is_of_cluster`: a ClusterNetworkPolicy.
    pub fn problem(self, excess: Excess, is_of_cluster: bool) -> ServiceProblem {
        let text = match excess {
            Excess::Blocks => self.of_blocks(is_of_cluster),
            Excess::Combinations => {
                let sets = match self.backend {
                    Backend::Iptables => format!(" (with port names more than {MOST_NAMED}, which are sets each)"),
                    Backend::Nftables => String::new(),
                };
                let rules = outcome(is_of_cluster);
                format!(
                    "spec: peers times ports of all rules are more than {MOST_COMBINATIONS}{sets}, or port names times what their peers list more than {MOST}; {rules}"
                )
            }
            Excess::Sets => {
                let rules = outcome(is_of_cluster);
                format!(
                    "spec: the peers of all rules are more than {MOST_SETS} different sets of addresses (each selector of pods is one, the ipBlocks of a rule are one); {rules}"
                )
            }
        };
        // Nodes with another packet filter may take it.
        ServiceProblem::new(Cause::PolicyHere, "spec", text)
    }

    fn of_blocks(self, is_of_cluster: bool) -> String {
        let (blocks, elements) = match is_of_cluster {
            true => ("networks", "its rules with networks accept nothing, or deny everything"),
            false => ("ipBlocks", "these match nothing"),
        };
        let unit = match self.backend {
            Backend::Iptables => "prefixes, which are what ipset has for ranges of addresses",
            Backend::Nftables => "ranges of addresses",
        };
        let most = self.most;
        format!("spec: all {blocks} together are more than {most} {unit}; {elements}")
    }
}

/// Returns what becomes of the rules of a policy of which all are too much.
fn outcome(is_of_cluster: bool) -> &'static str {
    match is_of_cluster {
        true => "its rules accept nothing, or deny everything",
        false => "its rules match nothing",
    }
}

impl Excess {
    /// Returns whether a rule of a policy that exceeds the bound so is closed, if a ClusterNetworkPolicy has it.
    pub fn closes(self, rule: &PolicyRule) -> bool {
        match self {
            Excess::Blocks => has_blocks(rule),
            Excess::Combinations | Excess::Sets => true,
        }
    }

    /// Returns what there is too much of, for people.
    pub fn words(self) -> &'static str {
        match self {
            Excess::Blocks => "address ranges",
            Excess::Combinations => "combinations of peers and ports",
            Excess::Sets => "sets of addresses",
        }
    }
}

/// The counts of the peers and ports of rules when they are combined.
#[derive(Clone, Copy, Default)]
struct Combined {
    combinations: usize,
    /// Number of combinations with a port that has a name.
    named: usize,
    /// Number of things that the definitions of the sets of port names would repeat: values of selectors, blocks and exceptions.
    named_again: usize,
}

impl Combined {
    fn of(rule: &PolicyRule) -> Combined {
        let ports: &[PolicyPort] = match &rule.ports {
            Ports::Of(ports) => ports,
            Ports::Any => return Combined { combinations: peers(rule), ..Combined::default() },
        };
        let names = named_port::names(ports).count();
        Combined {
            combinations: peers(rule).saturating_mul(ports.len()),
            named: peers(rule).saturating_mul(names),
            named_again: listed(rule).saturating_mul(names),
        }
    }
}

impl std::iter::Sum for Combined {
    fn sum<I: Iterator<Item = Combined>>(all: I) -> Combined {
        all.fold(Combined::default(), |sum, one| Combined {
            combinations: sum.combinations.saturating_add(one.combinations),
            named: sum.named.saturating_add(one.named),
            named_again: sum.named_again.saturating_add(one.named_again),
        })
    }
}

/// Returns whether the peers are more different sets of addresses than are taken.
fn has_many_sets<'a>(rules: impl Iterator<Item = &'a PolicyRule> + Clone) -> bool {
    let selectors = rules.clone().flat_map(named_peers).filter(|peer| matches!(peer, Peer::Pods { .. }));
    let with_blocks = rules.filter(|rule| has_blocks(rule));
    if selectors.clone().count() + with_blocks.clone().count() <= MOST_SETS {
        return false;
    }
    let selectors: HashSet<&Peer> = selectors.collect();
    let of_blocks: BTreeSet<Vec<Block>> = with_blocks.map(blocks).collect();
    selectors.len() + of_blocks.len() > MOST_SETS
}

/// Returns the number of peers of a rule; all blocks and Nodes are one.
fn peers(rule: &PolicyRule) -> usize {
    let Peers::Of(all) = &rule.peers else { return 1 };
    let selected = all.iter().filter(|peer| matches!(peer, Peer::Pods { .. })).count();
    selected + usize::from(selected < all.len())
}

/// Returns the number of values, blocks and exceptions that the peers of a rule list.
fn listed(rule: &PolicyRule) -> usize {
    let of_peer = |peer: &Peer| match peer {
        Peer::Block { except, .. } => 1 + except.len(),
        Peer::Pods { namespaces: Namespaces::Own, pods } => values(pods),
        Peer::Pods { namespaces: Namespaces::Selected(namespaces), pods } => values(namespaces) + values(pods),
        // How many these are follows from the cluster.
        Peer::Nodes(_) => 0,
    };
    named_peers(rule).iter().map(of_peer).sum()
}

fn values(selector: &Selector) -> usize {
    let of_requirement = |operator: &Operator| match operator {
        Operator::In(values) | Operator::NotIn(values) => 1 + values.len(),
        Operator::Exists | Operator::DoesNotExist => 1,
    };
    selector.requirements.iter().map(|requirement| of_requirement(&requirement.operator)).sum()
}

/// Returns whether a rule has blocks among its peers.
fn has_blocks(rule: &PolicyRule) -> bool {
    written(rule).next().is_some()
}

/// Returns the peers that a rule names.
fn named_peers(rule: &PolicyRule) -> &[Peer] {
    match &rule.peers {
        Peers::Of(peers) => peers,
        Peers::Any => &[],
    }
}

fn written(rule: &PolicyRule) -> impl Iterator<Item = (IpNet, &[IpNet])> {
    named_peers(rule).iter().filter_map(|peer| match peer {
        Peer::Block { cidr, except } => Some((*cidr, &**except)),
        Peer::Pods { .. } | Peer::Nodes(_) => None,
    })
}

fn blocks(rule: &PolicyRule) -> Vec<Block> {
    let mut blocks: Vec<Block> = written(rule).map(|(cidr, except)| ip_block::block(cidr, except)).collect();
    blocks.sort();
    blocks.dedup();
    blocks
}

#[cfg(test)]
mod tests {
    use super::super::given::{block, pods, rule};
    use super::*;

    /// So many single addresses cut out of everything, far apart.
    fn everything_but(holes: u128) -> Peer {
        let hole = |number: u128| IpNet::new((number << 96 | 1 << 48).to_be_bytes().into(), 128).unwrap();
        Peer::Block { cidr: "::/0".parse().unwrap(), except: (1..=holes).map(hole).collect() }
    }

    fn exceeds(bound: Bound, rules: &[PolicyRule]) -> bool {
        bound.excess(rules.iter()) == Some(Excess::Blocks)
    }

    #[test]
    fn a_hole_is_one_range_or_as_many_prefixes_as_it_takes() {
        let rules = [rule(&[everything_but(3), pods("app=web")], &[])];
        let spans = ip_block::spans(&blocks(&rules[0]), Family::V6);
        let prefixes = spans.iter().flat_map(|span| span.prefixes(Family::V6)).count();
        assert!(spans.len() == 4 && prefixes > 300, "{prefixes}");
        for (backend, count) in [(Backend::Nftables, 4), (Backend::Iptables, prefixes)] {
            assert!(!exceeds(Bound::new(backend, count), &rules), "{backend:?}");
            assert!(exceeds(Bound::new(backend, count - 1), &rules), "{backend:?}");
        }
    }

    #[test]
    fn the_longest_list_that_an_object_has_room_for_is_taken_as_ranges_and_refused_as_prefixes_at_once() {
        let rules = [rule(&[everything_but(60_000)], &[])];
        assert!(!exceeds(Bound::of(Backend::Nftables), &rules));
        assert!(exceeds(Bound::of(Backend::Iptables), &rules));
    }

    #[test]
    fn long_lists_of_blocks_without_holes_are_taken() {
        let block = |number: u32| Peer::Block {
            cidr: IpNet::new(std::net::Ipv4Addr::from(number * 512).into(), 24).unwrap(),
            except: [].into(),
        };
        let rules = [rule(&(0..100_000).map(block).collect::<Vec<_>>(), &[])];
        for backend in [Backend::Nftables, Backend::Iptables] {
            assert!(!exceeds(Bound::of(backend), &rules));
            assert!(exceeds(Bound::new(backend, 99_999), &rules), "each is one");
        }
    }

    /// A rule with so many peers and so many ports, each named if `is_named`.
    fn combined(peers: usize, ports: usize, is_named: bool) -> PolicyRule {
        let peers: Vec<Peer> = (0..peers).map(|number| pods(&format!("app=a{number}"))).collect();
        let ports: Vec<String> = (0..ports)
            .map(|number| if is_named { format!("tcp/a{number}") } else { format!("tcp/{number}") })
            .collect();
        rule(&peers, &ports.iter().map(String::as_str).collect::<Vec<_>>())
    }

    #[test]
    fn peers_times_ports_of_all_rules_have_a_bound_whether_named_or_not() {
        let bound = Bound::of(Backend::Nftables);
        for is_named in [false, true] {
            let [taken, more] = [(128, 256), (128, 257)].map(|(peers, ports)| combined(peers, ports, is_named));
            assert_eq!(bound.excess([&taken].into_iter()), None);
            assert_eq!(bound.excess([&more].into_iter()), Some(Excess::Combinations));
            let one = combined(1, 1, is_named);
            assert_eq!(bound.excess([&taken, &one].into_iter()), Some(Excess::Combinations), "of all rules");
        }
        let blocks: Vec<Peer> = (0..200).map(|number| block(&format!("10.0.{number}.0/24"))).collect();
        let ports: Vec<String> = (0..300).map(|number| format!("tcp/a{number}")).collect();
        let rule = rule(&blocks, &ports.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(bound.excess([&rule].into_iter()), None, "all blocks are one peer");
    }

    #[test]
    fn port_names_times_peers_are_sets_with_iptables_and_have_a_bound_of_their_own() {
        let bound = Bound::of(Backend::Iptables);
        let [taken, more] = [(16, 128), (16, 129)].map(|(peers, ports)| combined(peers, ports, true));
        assert_eq!(bound.excess([&taken].into_iter()), None);
        assert_eq!(bound.excess([&more].into_iter()), Some(Excess::Combinations));
        assert_eq!(bound.excess([&taken, &combined(1, 1, true)].into_iter()), Some(Excess::Combinations));
        assert_eq!(bound.excess([&combined(128, 256, false)].into_iter()), None, "numbers are no sets");
        assert!(bound.problem(Excess::Combinations, false).text.contains("2048"));
    }

    #[test]
    fn different_peers_are_sets_with_either_backend_and_have_a_bound() {
        let all = |count: usize| combined(count, 0, false);
        for backend in [Backend::Iptables, Backend::Nftables] {
            let bound = Bound::of(backend);
            assert_eq!(bound.excess([&all(2048)].into_iter()), None);
            assert_eq!(bound.excess([&all(2049)].into_iter()), Some(Excess::Sets));
            assert_eq!(
                bound.excess([&all(2048), &all(2048)].into_iter()),
                None,
                "the same selectors are the same sets"
            );
            let other = rule(&[pods("app=other")], &["tcp/1"]);
            assert_eq!(bound.excess([&all(2048), &other].into_iter()), Some(Excess::Sets), "of all rules");
            let of_blocks = |number: u32| rule(&[block(&format!("10.{}.{}.0/24", number / 256, number % 256))], &[]);
            let [many, more]: [Vec<PolicyRule>; 2] = [2048, 2049].map(|count| (0..count).map(of_blocks).collect());
            assert_eq!(bound.excess(many.iter().chain(&many)), None, "the blocks of a rule are one");
            assert_eq!(bound.excess(more.iter()), Some(Excess::Sets));
            let text = bound.problem(Excess::Sets, true).text;
            assert!(text.contains("2048") && text.contains("deny everything"), "{text}");
        }
    }

    #[test]
    fn each_node_tells_of_what_its_own_packet_filter_does_not_take() {
        for excess in [Excess::Blocks, Excess::Combinations, Excess::Sets] {
            assert!(Bound::default().problem(excess, false).cause.is_of_one_node(), "{excess:?}");
        }
    }

    #[test]
    fn what_each_port_name_would_name_again_has_a_bound() {
        let names = |count: usize| (0..count).map(|number| format!("tcp/a{number}")).collect::<Vec<_>>();
        let values: Vec<String> = (0..60_000).map(|number| format!("v{number}")).collect();
        let long = pods(&format!("app={}", values.join(",")));
        for peer in [everything_but(60_000), long] {
            let excess = |count: usize| {
                let names = names(count);
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                Bound::of(Backend::Nftables).excess([&rule(std::slice::from_ref(&peer), &names)].into_iter())
            };
            assert_eq!([excess(8), excess(9)], [None, Some(Excess::Combinations)]);
        }
    }

    #[test]
    fn what_several_rules_have_alike_counts_once() {
        let [one, same] = [(); 2].map(|()| rule(&[everything_but(3)], &[]));
        let other = rule(&[everything_but(2)], &[]);
        assert!(!exceeds(Bound::new(Backend::Nftables, 4), &[one.clone(), same]));
        assert!(exceeds(Bound::new(Backend::Nftables, 4), &[one, other]));
    }
}
