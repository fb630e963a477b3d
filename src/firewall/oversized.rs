//! Policies whose blocks are more than the kernel is given.
//!
//! Who may write one policy may write some 60,000 exceptions into it. As ranges they are as many elements. As prefixes, which are all that an ipset knows, each of them may be 112
//! elements of IPv6 that lie far apart, or 17 of IPv4: gigabytes on each node with a pod that the policy selects. So the elements of one policy have a bound.
//! Above it the blocks of a NetworkPolicy match nothing, each like a peer that cannot be read, and its other peers stay. A rule of a ClusterNetworkPolicy that names networks fails
//! closed, as the API has it for what cannot be enforced: Accept matches nothing, Deny and Pass deny everything.
//!
//! Blocks that several rules of a policy have alike are one set, and count once. The addresses of Nodes, which are peers too, do not count: who writes a
//! policy does not decide how many there are.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::config::Backend;
use crate::model::{Cause, Peer, Peers, PolicyRule, ServiceProblem};
use crate::net::Family;

use super::ip_block;
use super::rules::Block;

/// Most elements of all blocks of one policy: some 30,000 single addresses of IPv4 cut out of everything as prefixes, and far more than an object of the API has room for as ranges.
/// In memory they are some 100 MB with iptables.
const MOST: usize = 524_288;

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

    /// Returns whether the blocks of these rules, which are all those of one policy, are more. They are counted without being kept.
    pub fn is_exceeded_by<'a>(self, rules: impl Iterator<Item = &'a PolicyRule> + Clone) -> bool {
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
    pub fn problem(self, is_of_cluster: bool) -> ServiceProblem {
        let (blocks, elements) = match is_of_cluster {
            true => ("networks", "its rules with networks accept nothing, or deny everything"),
            false => ("ipBlocks", "these match nothing"),
        };
        let unit = match self.backend {
            Backend::Iptables => "prefixes, which are what ipset has for ranges of addresses",
            Backend::Nftables => "ranges of addresses",
        };
        let most = self.most;
        let text = format!("spec: all {blocks} together are more than {most} {unit}; {elements}");
        ServiceProblem::new(Cause::Policy, "spec", text)
    }
}

/// Returns whether a rule has blocks among its peers.
pub fn has_blocks(rule: &PolicyRule) -> bool {
    written(rule).next().is_some()
}

fn written(rule: &PolicyRule) -> impl Iterator<Item = (IpNet, &[IpNet])> {
    let peers = match &rule.peers {
        Peers::Of(peers) => &**peers,
        Peers::Any => &[],
    };
    peers.iter().filter_map(|peer| match peer {
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
    use super::super::given::{pods, rule};
    use super::*;

    /// So many single addresses cut out of everything, far apart.
    fn everything_but(holes: u128) -> Peer {
        let hole = |number: u128| IpNet::new((number << 96 | 1 << 48).to_be_bytes().into(), 128).unwrap();
        Peer::Block { cidr: "::/0".parse().unwrap(), except: (1..=holes).map(hole).collect() }
    }

    fn exceeds(bound: Bound, rules: &[PolicyRule]) -> bool {
        bound.is_exceeded_by(rules.iter())
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

    #[test]
    fn what_several_rules_have_alike_counts_once() {
        let [one, same] = [(); 2].map(|()| rule(&[everything_but(3)], &[]));
        let other = rule(&[everything_but(2)], &[]);
        assert!(!exceeds(Bound::new(Backend::Nftables, 4), &[one.clone(), same]));
        assert!(exceeds(Bound::new(Backend::Nftables, 4), &[one, other]));
    }
}
