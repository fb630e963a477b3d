//! Pod ranges that Nodes name by annotation alone, and that lie in those which the control plane gave to other Nodes.
//!
//! Kubernetes: a kubelet may write the annotation `kube-router.io/pod-cidrs` of its own Node, and cannot change a `spec.podCIDRs` that has ranges
//! (`ValidateNodeUpdate`). So a range of an annotation is not its Node's where it lies in one that was given to another Node and is in use there: it would take that one's pods from all
//! others. What is given and not in use, because an annotation names others in its place, may be anybody's; and a wider range leaves to narrower ones what is theirs.
//!
//! A kubelet may write a spec that is empty. Where the control plane gives no ranges, the spec of any Node may be its kubelet's word, and counts for no more than an
//! annotation. That it gives some is seen by our own Node, which nobody else writes ([`Identity::is_given_ranges`]).

use std::collections::{BTreeMap, BTreeSet};

use compact_str::CompactString;
use ipnet::IpNet;

use super::{NodeChanges, Nodes, Part};
use crate::model::Node;
use crate::net::Family;
use crate::router::claims::Claims;
use crate::router::identity::Identity;

/// Pod ranges that annotations alone name, of all nodes.
#[derive(Default, Debug)]
pub(super) struct AnnotatedRanges {
    /// All of them, refused or not, and the nodes that name each.
    named: Claims<IpNet, CompactString, ()>,
    /// Ranges that were given to other nodes, inside of wider ones of annotations.
    given_inside: Claims<IpNet, CompactString, ()>,
    /// Those that are not their nodes'.
    refused: BTreeMap<CompactString, Vec<Refused>>,
    /// The ranges of our own node that were given to it.
    given_to_us: Vec<IpNet>,
}

/// A range that is not its node's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    pub range: IpNet,
    /// The range that it lies in, and the Node to which that was given.
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
    /// Those of its spec that are parts of them.
    pub given_inside: Box<[IpNet]>,
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
        let inside = node.into_iter().flat_map(Node::pod_cidrs_given_inside);
        judged.given_inside = inside.filter(|range| *own.families.of(Family::from(*range))).collect();
        judged
    }

    /// Returns a range around this one, or equal to it, and the other Node that was given it and uses it.
    fn given_to_another(&self, name: &CompactString, range: IpNet, own: &Identity) -> Option<(IpNet, CompactString)> {
        // What others may refuse of ours is said whatever our own spec has.
        if !own.is_given_ranges && *name != own.name {
            return None;
        }
        let ours = self.annotated.given_to_us.iter().find(|given| *name != own.name && given.contains(&range));
        if let Some(ours) = ours {
            return Some((*ours, own.name.clone()));
        }
        around(range).find_map(|given| Some((given, self.given_owners(&given).find(|owner| *owner != name)?.clone())))
    }

    /// Returns the other nodes that were given this pod CIDR and use it, as far as the spec says.
    fn given_owners<'a>(&'a self, range: &'a IpNet) -> impl Iterator<Item = &'a CompactString> {
        let is_given =
            move |owner: &&CompactString| self.parts.get(*owner).is_some_and(|part| !part.annotated.contains(range));
        self.ranges.owners(range).filter(is_given).chain(self.annotated.given_inside.owners(range))
    }

    /// Returns whether the control plane gave a pod CIDR to another node, which uses it.
    pub fn is_given(&self, range: IpNet, own: &Identity) -> bool {
        own.is_given_ranges && self.given_owners(&range).next().is_some()
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
        for range in super::different(&old.annotated, &judged.annotated) {
            annotated.named.put(range, name, judged.annotated.contains(range).then_some(()));
        }
        for range in super::different(&old.given_inside, &judged.given_inside).filter(|_| !judged.is_own) {
            let is_there = judged.given_inside.contains(range).then_some(());
            annotated.given_inside.put(range, name, is_there);
        }
        let given = |ranges: &[IpNet], annotated: &[IpNet], inside: &[IpNet]| -> BTreeSet<IpNet> {
            ranges.iter().filter(|range| !annotated.contains(range)).chain(inside).copied().collect()
        };
        let now = given(&judged.ranges, &judged.annotated, &judged.given_inside);
        let before = match judged.is_own {
            true => std::mem::replace(&mut annotated.given_to_us, now.iter().copied().collect()).into_iter().collect(),
            false => given(&old.ranges, &old.annotated, &old.given_inside),
        };
        let differing = before.symmetric_difference(&now);
        let others = differing.flat_map(|given| annotated.naming_within(*given)).filter(|other| *other != name);
        changed.again = others.cloned().collect();
        changed.policies |= annotated.refused.get(name).map_or(&[][..], Vec::as_slice) != judged.refused;
        match judged.refused.is_empty() {
            true => drop(annotated.refused.remove(name)),
            false => drop(annotated.refused.insert(name.clone(), judged.refused)),
        }
    }

    /// Returns the nodes with pod ranges that are not theirs, and these, in the order of nodes.
    pub fn refused_annotated(&self) -> &BTreeMap<CompactString, Vec<Refused>> {
        &self.annotated.refused
    }
}

impl AnnotatedRanges {
    /// Packs what a World brings in order.
    pub(super) fn pack(&mut self) {
        self.named.pack();
        self.given_inside.pack();
    }

    /// Returns the nodes that name a range in this one.
    fn naming_within(&self, given: IpNet) -> impl Iterator<Item = &CompactString> {
        let inside = self.named.within(given, Family::host_prefix(given.broadcast()));
        inside.flat_map(|range| self.named.owners(range))
    }
}

/// Returns a range and all around it, the narrowest first.
pub(super) fn around(range: IpNet) -> impl Iterator<Item = IpNet> {
    (0..=range.prefix_len())
        .rev()
        .filter_map(move |length| IpNet::new(range.addr(), length).ok())
        .map(|one| one.trunc())
}
