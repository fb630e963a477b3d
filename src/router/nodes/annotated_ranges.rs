//! Pod ranges that Nodes name by annotation alone, and that overlap those which the control plane gave to other Nodes.
//!
//! Kubernetes: a kubelet may write the annotation `kube-router.io/pod-cidrs` of its own Node, and cannot change a `spec.podCIDRs` that has ranges. So a range of an
//! annotation is not its Node's where any part of it was given to another Node and is in use there: it would take that one's pods from all others, wholly
//! where it is equal or narrower, and while that node is away where it is wider. What is given and not in use, because an annotation names others in
//! its place, may be anybody's.

use std::collections::{BTreeMap, BTreeSet};

use compact_str::CompactString;
use ipnet::IpNet;

use super::{NodeChanges, Nodes, Part};
use crate::model::Node;
use crate::net::Family;
use crate::router::identity::Identity;

/// Pod ranges that annotations alone name, of all nodes.
#[derive(Default, Debug)]
pub(super) struct AnnotatedRanges {
    /// All of them, refused or not, and the nodes that name each.
    named: BTreeMap<IpNet, BTreeSet<CompactString>>,
    /// Those that are not their nodes'.
    refused: BTreeMap<CompactString, Vec<Refused>>,
    /// The ranges of our own node that were given to it.
    given_to_us: Vec<IpNet>,
}

/// A range that is not its node's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    pub range: IpNet,
    /// The range that it overlaps, and the Node to which that was given.
    pub given: IpNet,
    pub to: CompactString,
}

/// The ranges of a Node.
#[derive(Default)]
pub(super) struct Judged {
    /// Those that are its own.
    pub ranges: Vec<IpNet>,
    /// Of all that it names, those that an annotation alone names.
    pub annotated: Box<[IpNet]>,
    refused: Vec<Refused>,
    is_own: bool,
}

impl Nodes {
    /// Judges the ranges of a node, of which none is left where it is gone. Those of our own node are its own, whatever others think of them.
    pub(super) fn judge_ranges(&self, name: &CompactString, node: Option<&Node>, own: &Identity) -> Judged {
        let is_own = *name == own.name;
        let mut judged = Judged { is_own, ..Judged::default() };
        let mut annotated = Vec::new();
        let named = node.into_iter().flat_map(Node::sources_of_pod_cidrs);
        for (range, is_given) in named.filter(|(range, _)| *own.families.of(Family::from(*range))) {
            let refused = if is_given { None } else { self.given_to_another(name, range, own) };
            annotated.extend((!is_given).then_some(range));
            judged.ranges.extend((is_own || refused.is_none()).then_some(range));
            judged.refused.extend(refused.map(|(given, to)| Refused { range, given, to }));
        }
        judged.annotated = annotated.into();
        judged
    }

    /// Returns a range that overlaps this one, and the other Node that was given it and uses it.
    fn given_to_another(&self, name: &CompactString, range: IpNet, own: &Identity) -> Option<(IpNet, CompactString)> {
        let overlaps = |given: &&IpNet| range.contains(*given) || given.contains(&range);
        if *name != own.name
            && let Some(ours) = self.annotated.given_to_us.iter().find(overlaps)
        {
            return Some((*ours, own.name.clone()));
        }
        let around = (0..range.prefix_len()).rev().filter_map(|length| IpNet::new(range.addr(), length).ok());
        let inside = self.ranges.within(range, Family::host_prefix(range.broadcast())).copied();
        inside.chain(around.map(|wider| wider.trunc())).find_map(|given| {
            let is_its = |owner: &&CompactString| {
                *owner != name && self.parts.get(*owner).is_some_and(|part| !part.annotated.contains(&given))
            };
            Some((given, self.ranges.owners(&given).find(is_its)?.clone()))
        })
    }

    /// Notes what a node names, and which other nodes have to be judged again because what was given to this one is otherwise than before.
    pub(super) fn note_annotated(
        &mut self,
        name: &CompactString,
        old: &Part,
        judged: Judged,
        changed: &mut NodeChanges,
    ) {
        let annotated = &mut self.annotated;
        for range in &old.annotated {
            if let Some(names) = annotated.named.get_mut(range) {
                names.remove(name);
            }
            if annotated.named.get(range).is_some_and(BTreeSet::is_empty) {
                annotated.named.remove(range);
            }
        }
        for range in &judged.annotated {
            annotated.named.entry(*range).or_default().insert(name.clone());
        }
        let given = |ranges: &[IpNet], annotated: &[IpNet]| -> BTreeSet<IpNet> {
            ranges.iter().filter(|range| !annotated.contains(range)).copied().collect()
        };
        let now = given(&judged.ranges, &judged.annotated);
        let before = match judged.is_own {
            true => std::mem::replace(&mut annotated.given_to_us, now.iter().copied().collect()).into_iter().collect(),
            false => given(&old.ranges, &old.annotated),
        };
        let differing = before.symmetric_difference(&now);
        changed.again =
            differing.flat_map(|given| annotated.naming(*given)).filter(|other| *other != name).cloned().collect();
        changed.policies |= annotated.refused.get(name).map_or(&[][..], Vec::as_slice) != judged.refused;
        match judged.refused.is_empty() {
            true => drop(annotated.refused.remove(name)),
            false => drop(annotated.refused.insert(name.clone(), judged.refused)),
        }
    }

    /// Returns the pod ranges that are not their nodes', in the order of nodes.
    pub fn refused_annotated(&self) -> impl Iterator<Item = (&CompactString, &Refused)> {
        self.annotated.refused.iter().flat_map(|(name, all)| all.iter().map(move |refused| (name, refused)))
    }
}

impl AnnotatedRanges {
    /// Returns the nodes that name a range which overlaps this one.
    fn naming(&self, given: IpNet) -> impl Iterator<Item = &CompactString> {
        let around = (0..given.prefix_len()).filter_map(move |length| IpNet::new(given.addr(), length).ok());
        let around = around.filter(|_| !self.named.is_empty()).filter_map(|wider| self.named.get(&wider.trunc()));
        let inside = self.named.range(given..=Family::host_prefix(given.broadcast()));
        inside.map(|(_, names)| names).chain(around).flatten()
    }
}
