//! Problems of nodes, in words for administrators: what several claim, and what stands in the way of a session.

use std::net::IpAddr;

use compact_str::CompactString;

use super::Nodes;
use super::annotated_ranges::Refused;
use crate::model::COUNTED_ADDRESSES;
use crate::net::Family;
use crate::router::identity::Identity;
use crate::router::mesh::Obstacle;
use crate::router::problem::{About, Problem};

/// Maximum number of problems of one kind that Nodes can have by their addresses alone: each is a log message and an Event.
pub(super) const NAMED: usize = 10;

impl Nodes {
    /// Returns the problems of nodes, at the cost of those that have one.
    pub fn problems(&self, own: &Identity) -> Vec<Problem> {
        let about = |name: &CompactString, text: String| Problem::new(About::Node(name.clone()), text);
        // What all nodes lack is one problem.
        let of_one = self.obstacles.iter().filter(|(_, obstacle)| **obstacle != Obstacle::NoPassword);
        let impossible = of_one.map(|(name, obstacle)| about(name, obstacle.to_string()));
        let mut problems: Vec<Problem> = impossible.collect();
        for (address, owners) in self.peering.contested() {
            let mut names = owners.iter().map(|claimant| &claimant.node);
            let Some(first) = names.next() else { continue };
            let text = format!("its address {address} is that of Node {first} too, which comes first");
            problems.extend(names.map(|name| about(name, text.clone())));
        }
        for (address, owners) in self.addresses.contested().take(NAMED) {
            let Some(first) = owners.first().filter(|first| !first.is_behind) else { continue };
            let text = format!("it lists {address}, which stays the address of Node {}", first.node);
            let listing = owners.iter().filter(|claimant| claimant.is_behind).take(NAMED);
            problems.extend(listing.map(|claimant| about(&claimant.node, text.clone())));
            // An InternalIP that many have does no harm where others speak with them by another address.
            let beaten = owners.iter().skip(1).filter(|claimant| !claimant.is_behind);
            let beaten = beaten.filter(|claimant| self.is_spoken_with(&claimant.node, *address)).take(NAMED);
            let text = format!("its address {address} is that of Node {} too, which comes first", first.node);
            problems.extend(beaten.map(|claimant| about(&claimant.node, text.clone())));
        }
        let text =
            format!("it lists more than {COUNTED_ADDRESSES} addresses; the others count as outside of the cluster");
        problems.extend(self.lavish.iter().take(NAMED).map(|name| about(name, text.clone())));
        problems.extend(self.problems_of_annotated_ranges(own));
        problems.extend(self.problems_of_tunnels());
        for (range, owners) in self.ranges.contested() {
            let mut names = owners.iter();
            let Some(first) = names.next() else { continue };
            problems.extend(names.map(|name| {
                about(
                    name,
                    format!("its pod range {range} is that of Node {first} too; pods of one of them cannot be reached"),
                )
            }));
        }
        for (_, owners) in self.keys.contested() {
            let mut names = owners.iter().map(|claimant| &claimant.node);
            let Some(first) = names.next() else { continue };
            let text = format!(
                "its WireGuard key is that of Node {first} too; both count as one machine, at the address of Node {first}"
            );
            problems.extend(names.map(|name| about(name, text.clone())));
        }
        for name in own.router_id.iter().flat_map(|id| self.identifiers.owners(id)).filter(|name| **name != own.name) {
            let text = "its BGP identifier is that of this node, so there is no session: give one of them another one by \
                        --router-id";
            problems.push(about(name, text.to_owned()));
        }
        problems
    }

    /// Returns one problem for each Node with pod ranges that are not its own, ours first.
    fn problems_of_annotated_ranges(&self, own: &Identity) -> impl Iterator<Item = Problem> {
        let (ours, others): (Vec<_>, Vec<_>) =
            self.refused_annotated().iter().partition(|(name, _)| **name == own.name);
        let more = others.len().saturating_sub(NAMED);
        let whose = |all: &[Refused]| {
            let Refused { range, given, to } = all.first()?;
            let more = if all.len() > 1 { format!(" (and {} more)", all.len() - 1) } else { String::new() };
            Some(format!(
                "pod range {range}{more}, of an annotation, lies in {given}, which the control plane gave to Node {to}"
            ))
        };
        let of_us = |all: &[Refused]| {
            let family = Family::from(all.first()?.range);
            Some(Problem::new(
                About::Family(family),
                format!("{}; other nodes may not take it for that of this node", whose(all)?),
            ))
        };
        let of_other = |name: &CompactString, all: &[Refused]| {
            Some(Problem::new(
                About::Node(name.clone()),
                format!("its {}; it is not taken for that of this Node", whose(all)?),
            ))
        };
        let ours: Vec<Problem> = ours.into_iter().filter_map(|(_, all)| of_us(all)).collect();
        let others: Vec<Problem> =
            others.into_iter().take(NAMED).filter_map(|(name, all)| of_other(name, all)).collect();
        let text = || format!("{more} more have pod ranges of annotations that lie in those of others");
        let more = (more > 0).then(|| Problem::new(About::OtherNodes, text()));
        ours.into_iter().chain(others).chain(more)
    }

    /// Returns whether others speak with a node by this address.
    fn is_spoken_with(&self, node: &CompactString, address: IpAddr) -> bool {
        *self.both_of(node).of(Family::from(address)) == Some(address)
    }
}
