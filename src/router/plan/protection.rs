//! Owners of pod CIDRs and addresses as Node objects tell them, for routes and peers of `wireguard`.
//!
//! A range, or an address, of which Nodes with different keys say that it is theirs belongs to none of them: who may write one Node could have the
//! packets of another one otherwise. Nodes with one key are one machine, because only that machine can read what is sent to the key.

use std::collections::BTreeSet;
use std::net::IpAddr;

use compact_str::CompactString;
use ipnet::IpNet;

use super::pod_ranges::{Refusal, is_believable};
use super::{Family, Plan};
use crate::config::Reach;
use crate::net::PerFamily;
use crate::router::routes::{Place, Protection};

/// Maximum number of addresses that the walls of a range leave out: each takes as many routes as the range has bits, and a range that somebody claims may
/// have the addresses of thousands of nodes in it.
const LEFT_OUT: usize = 32;

/// A range has the addresses of more nodes in it than walls leave out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct TooManyHoles;

impl Plan {
    /// Calls a function with what routes depend on besides the learned ones. Nothing of the routes themselves is among it.
    pub(super) fn in_place<R>(&self, look: impl FnOnce(Place<'_>) -> R) -> R {
        let other = |address: IpAddr| self.nodes.other(&self.own.name, address);
        look(Place {
            own: &self.own,
            config: &self.config,
            on_link: &self.on_link,
            node: &other,
            addresses: &|| self.nodes.addresses(),
            exchanges: &|address| self.nodes.exchanges_routes_at(address),
            tunnel_name: &|address| self.nodes.tunnel_name(address),
            is_nameless: &|address| self.nodes.is_nameless(address),
            has_anothers_link_address: &|address| self.nodes.has_anothers_link_address(address),
            internal: &|end| self.nodes.internal_beside(&self.own.name, end),
            contested: &|end| self.nodes.is_contested(end),
            protection: &|prefix, next_hop| self.protection(prefix, next_hop),
            device: &|remote| self.device_to(remote),
        })
    }

    fn protection(&self, prefix: IpNet, next_hop: IpAddr) -> Protection {
        if !self.encrypts() {
            return Protection::None;
        }
        if let Some(range) = self.pods_around(prefix) {
            let node = self.holder_with(range, next_hop);
            return Protection::Pods { node, encrypted: self.is_encrypted(range) };
        }
        if self.nodes.has(next_hop) && self.holder_of(&next_hop).is_none() {
            return Protection::Contested;
        }
        if self.is_around_others(prefix) { Protection::Around } else { Protection::None }
    }

    /// Returns whether pods or addresses of nodes, or pods of ours, are inside of a prefix.
    pub(super) fn is_around_others(&self, prefix: IpNet) -> bool {
        self.nodes.any_in(prefix) || self.own.all_pod_cidrs().any(|ours| prefix.contains(&ours))
    }

    /// Returns the addresses of the node that has a pod CIDR and this address. On a link the next hop alone decides who reads the packets, and a key
    /// can be copied: there all Nodes with the pod CIDR have to have the address.
    fn holder_with(&self, range: IpNet, address: IpAddr) -> Option<PerFamily<Option<IpAddr>>> {
        let is_ours = self.nodes.with_address(&address).any(|node| *node == self.own.name);
        if is_ours || self.pod_ranges.is_refused(&range) {
            return None;
        }
        let has_it = |node: &CompactString| self.nodes.addresses_of(node).contains(&address);
        let both = self.nodes.both_of(self.nodes.with_range(&range).find(|node| has_it(node))?);
        let of_family = |both: PerFamily<Option<IpAddr>>| *both.of(Family::from(range));
        let is_alike = |node: &CompactString| has_it(node) && of_family(self.nodes.both_of(node)) == of_family(both);
        let is_its = self.is_encrypted(range) || self.nodes.with_range(&range).all(is_alike);
        is_its.then_some(both)
    }

    /// Returns the narrowest pod CIDR of other nodes that contains a prefix or equals it.
    pub(super) fn pods_around(&self, prefix: IpNet) -> Option<IpNet> {
        self.wireguard.ranges.around(prefix).filter(|range| self.is_believable(*range))
    }

    fn is_believable(&self, range: IpNet) -> bool {
        is_believable(range, &self.own)
    }

    /// Returns whether an address lies in a pod CIDR of another machine than this node's.
    pub(super) fn is_in_pods_of_others(&self, node: &CompactString, address: IpNet) -> bool {
        let ranges = &self.wireguard.ranges;
        let wider = |range: &IpNet| range.supernet().and_then(|wider| ranges.around(wider));
        let mut around =
            std::iter::successors(ranges.around(address), wider).filter(|range| self.is_believable(*range));
        around.any(|range| self.nodes.another(node, self.nodes.with_range(&range)).is_some())
    }

    /// Returns the prefixes that together are a range without the addresses of nodes in it: packets to these are no packets to pods, and hosts need
    /// them to reach each other and the API server, whoever claims the range. An address of a node in its own range, if that is not refused, leads where the
    /// range does (clouds list that of the bridge), and a hole for it would put the parts around it in front of the range's route.
    ///
    /// A prefix that was learned and has lost its tunnel is wider than others' networks: its parts refuse nothing that a route to a narrower one leads to.
    ///
    /// # Errors
    /// There are too many addresses.
    pub(super) fn without_nodes(&self, range: IpNet) -> Result<BTreeSet<IpNet>, TooManyHoles> {
        let is_encrypted = self.is_encrypted(range);
        let has = |pods: IpNet, node: &CompactString| {
            !self.pod_ranges.is_refused(&pods)
                && self.nodes.with_range(&pods).any(|holder| self.nodes.are_one(holder, node))
        };
        let is_its_own = |(address, node): &(IpAddr, &CompactString)| {
            let inner = || self.pods_inside(range, Family::host_prefix(*address));
            has(range, node) || inner().is_some_and(|inner| inner.map_or(!is_encrypted, |pods| has(pods, node)))
        };
        let mut holes: BTreeSet<IpAddr> = BTreeSet::new();
        for (address, _) in self.nodes.with_address_in(range).filter(|one| !is_its_own(one)) {
            holes.insert(address);
            if holes.len() > LEFT_OUT {
                return Err(TooManyHoles);
            }
        }
        let mut parts = BTreeSet::new();
        // Parts of a default route would precede that of this host.
        let precedes = range.prefix_len() < Family::from(range).narrowest_default();
        // And parts of a network would precede the route of a router that has it as well.
        let precedes = precedes || !is_encrypted && self.routes.has_way(range);
        if holes.is_empty() || !precedes {
            split(range, &holes, &mut parts);
        }
        if !is_encrypted && !holes.is_empty() {
            // Pods have walls of their own.
            let is_linked = |part: &IpNet| self.networks_in(range).any(|network| network.contains(part));
            // A part is narrower than that route, so that it would precede it, whatever its metric.
            let is_routed = |part: &IpNet| {
                let wider = std::iter::successors(part.supernet(), IpNet::supernet);
                wider
                    .take_while(|wider| wider.prefix_len() > range.prefix_len())
                    .any(|wider| self.routes.has_way(wider))
            };
            parts.retain(|part| !is_linked(part) && !is_routed(part) && self.pods_inside(range, *part).is_none());
        }
        Ok(parts)
    }

    /// Returns the narrowest pod CIDR around a part of a prefix that is narrower than that prefix: `Some(None)` for one of ours.
    fn pods_inside(&self, range: IpNet, part: IpNet) -> Option<Option<IpNet>> {
        let is_inside = |pods: &IpNet| range.contains(pods) && *pods != range;
        if self.own.all_pod_cidrs().any(|ours| ours.contains(&part) && is_inside(&ours)) {
            return Some(None);
        }
        self.pods_around(part).filter(is_inside).map(Some)
    }

    /// Returns the networks of our links that are a prefix, or parts of it.
    fn networks_in(&self, range: IpNet) -> impl Iterator<Item = IpNet> {
        let networks = self.on_link.iter().map(|network| network.prefix);
        networks.filter(move |network| range.contains(network))
    }

    /// Returns whether a prefix was learned, and led to a node through a tunnel that it has lost: packets to it shall not leave unencrypted either.
    pub(super) fn is_refused(&self, prefix: IpNet) -> bool {
        self.routes.has_lost(prefix) && self.may_have_wall(prefix)
    }

    /// Returns whether walls may be in a range: it is no mistake.
    fn may_have_wall(&self, range: IpNet) -> bool {
        let is_on = self.encrypts() && *self.own.families.of(Family::from(range));
        // Without our own Node the addresses of this host tell which range is a mistake, or our own.
        let has_ours = || self.own.primary.is_none() && self.here.iter().any(|ours| range.contains(ours));
        is_on && !has_ours() && self.is_believable(range)
    }

    /// Returns whether packets to a pod CIDR of other nodes shall never leave unencrypted.
    pub(super) fn is_encrypted(&self, range: IpNet) -> bool {
        self.may_have_wall(range)
            && !matches!(self.pod_ranges.refusal(&range), Some(Refusal::OwnPods(_)))
            && self.nodes.with_range(&range).any(|node| self.is_apart(node, Family::from(range)))
    }

    /// Returns whether packets of a family to a node's pods shall go through a tunnel. Of a node without an address nobody knows where it is.
    fn is_apart(&self, node: &CompactString, family: Family) -> bool {
        let both = self.nodes.both_of(node);
        let address = both.of(family).or_else(|| both.iter().find_map(|(_, address)| *address));
        address.is_none_or(|address| self.is_behind_tunnel(address))
    }

    fn is_behind_tunnel(&self, address: IpAddr) -> bool {
        let is_on_link = || self.on_link.iter().any(|network| network.prefix.contains(&address));
        self.config.overlay.is_some_and(|overlay| overlay.reach == Reach::Full || !is_on_link())
    }

    /// Returns whether packets of our pods to an address of another node itself shall never leave unencrypted.
    pub(super) fn is_encrypted_node(&self, address: IpAddr) -> bool {
        let is_on = self.encrypts() && *self.own.families.of(Family::from(address));
        is_on
            && self.nodes.has(address)
            && !self.is_here(&address)
            && !self.own.all_pod_cidrs().any(|ours| ours.contains(&address))
            && self.is_behind_tunnel(address)
    }

    /// Returns the node whose an address is; `None` where several say so that are not one machine. A Node that lists it among others does not count
    /// where it is the first address of another one.
    pub(super) fn holder_of(&self, address: &IpAddr) -> Option<&CompactString> {
        let mut owners = self.nodes.with_claim_to(address);
        let first = owners.next()?;
        owners.all(|other| self.nodes.are_one(first, other)).then_some(first)
    }

    pub(super) fn is_here(&self, address: &IpAddr) -> bool {
        self.own.all.contains(address) || self.here.contains(address)
    }
}

/// Adds the prefixes that together are a range without some addresses.
fn split(range: IpNet, holes: &BTreeSet<IpAddr>, parts: &mut BTreeSet<IpNet>) {
    if holes.range(range.network()..=range.broadcast()).next().is_none() {
        parts.insert(range);
    } else if let Ok(halves) = range.subnets(range.prefix_len() + 1) {
        halves.for_each(|half| split(half, holes, parts));
    }
}
