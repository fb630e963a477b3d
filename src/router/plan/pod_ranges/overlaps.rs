//! Pod CIDRs that several nodes claim, wholly or in part.
//!
//! Without encryption the longest prefix has the packets, as everywhere. With it nobody may have what another node says is its own: a narrower range
//! inside of another one takes its pods, and a wider one around it lets its node send as these pods.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::Refusal;
use crate::net::Family;
use crate::router::identity::Identity;
use crate::router::nodes::Nodes;

/// Returns the pod CIDRs of other nodes that overlap one of another machine, or contain one of our own.
pub(super) fn overlaps(own: &Identity, nodes: &Nodes) -> BTreeMap<IpNet, Refusal> {
    let mut refused = BTreeMap::new();
    // The ranges around the present one: of ranges with one first address the widest comes first.
    let mut around: Vec<IpNet> = Vec::new();
    // One that nobody believes is nobody's, and says nothing about others.
    for range in nodes.ranges().into_iter().filter(|range| is_believable(*range, own)) {
        while around.last().is_some_and(|outer| !outer.contains(&range)) {
            around.pop();
        }
        let Some(first) = nodes.with_range(&range).next() else { continue };
        if let Some(ours) = own.all_pod_cidrs().find(|ours| range.contains(ours)) {
            refused.entry(range).or_insert(Refusal::Overlap { range: ours, node: own.name.clone() });
        }
        for outer in around.iter().chain([&range]) {
            let Some(other) = nodes.another(first, nodes.with_range(outer)) else { continue };
            // What the control plane gave stays its node's, whatever an annotation names around it.
            let (is_inner_given, is_outer_given) = (nodes.is_given(range, own), nodes.is_given(*outer, own));
            if is_outer_given || !is_inner_given {
                refused.entry(range).or_insert(Refusal::Overlap { range: *outer, node: other.clone() });
            }
            if is_inner_given || !is_outer_given {
                refused.entry(*outer).or_insert(Refusal::Overlap { range, node: first.clone() });
            }
        }
        around.push(range);
    }
    refused
}

/// Returns whether a Node may mean its pods by a range. A part of a default route, and one that has our address in it, are mistakes. What other Nodes say
/// counts for nothing here: they could take away what protects these pods.
pub(in crate::router::plan) fn is_believable(range: IpNet, own: &Identity) -> bool {
    range.prefix_len() >= Family::from(range).narrowest_default() && !own.all.iter().any(|own| range.contains(own))
}
