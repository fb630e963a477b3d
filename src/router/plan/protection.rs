//! Owners of pod CIDRs and addresses as Node objects tell them, for routes and peers of `wireguard`.
//!
//! A range, or an address, of which Nodes with different keys say that it is theirs belongs to none of them: who may write one Node could have the
//! packets of another one otherwise. Nodes with one key are one machine, because only that machine can read what is sent to the key.

use std::net::IpAddr;

use compact_str::CompactString;
use ipnet::IpNet;

use super::pod_ranges::{Refusal, is_believable};
use super::{Family, Plan};
use crate::config::Reach;
use crate::net::PerFamily;
use crate::router::routes::{Place, Protection};

impl Plan {
    /// Calls a function with what routes depend on besides the learned ones. Nothing of the routes themselves is among it.
    pub(super) fn in_place<R>(&self, look: impl FnOnce(Place<'_>) -> R) -> R {
        let other = |address: IpAddr| self.nodes.other(&self.own.name, address);
        look(Place {
            own: &self.own,
            config: &self.config,
            on_link: &self.on_link,
            node: &other,
            first_alike: &|address| self.nodes.named_alike(address).find(|alike| other(*alike).is_some()),
            protection: &|prefix, next_hop| self.protection(prefix, next_hop),
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
        let is_around = self.nodes.any_in(prefix) || self.own.all_pod_cidrs().any(|ours| prefix.contains(&ours));
        if is_around { Protection::Around } else { Protection::None }
    }

    /// Returns the addresses of the node that has a pod CIDR and this address.
    fn holder_with(&self, range: IpNet, address: IpAddr) -> Option<PerFamily<Option<IpAddr>>> {
        let is_ours = self.nodes.with_address(&address).any(|node| *node == self.own.name);
        if is_ours || self.pod_ranges.is_refused(&range) {
            return None;
        }
        let holder = self.nodes.with_range(&range).find(|node| self.nodes.addresses_of(node).contains(&address));
        holder.map(|node| self.nodes.both_of(node))
    }

    /// Returns the narrowest pod CIDR of other nodes that contains a prefix or equals it.
    pub(super) fn pods_around(&self, prefix: IpNet) -> Option<IpNet> {
        self.wireguard.ranges.around(prefix).filter(|range| self.is_believable(*range))
    }

    fn is_believable(&self, range: IpNet) -> bool {
        is_believable(range, &self.own, &self.nodes)
    }

    /// Returns whether packets to a pod CIDR of other nodes shall never leave unencrypted.
    pub(super) fn is_encrypted(&self, range: IpNet) -> bool {
        let family = Family::from(range);
        let is_on = self.encrypts() && self.own.primary.is_some() && *self.own.families.of(family);
        is_on
            && !matches!(self.pod_ranges.refusal(&range), Some(Refusal::OwnPods(_)))
            && self.is_believable(range)
            && self.nodes.with_range(&range).any(|node| self.is_apart(node, family))
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
        let is_on = self.encrypts() && self.own.primary.is_some() && *self.own.families.of(Family::from(address));
        is_on
            && self.nodes.has(address)
            && !self.is_here(&address)
            && !self.own.all_pod_cidrs().any(|ours| ours.contains(&address))
            && self.is_behind_tunnel(address)
    }

    /// Returns the node whose an address is; `None` where several say so that are not one machine.
    pub(super) fn holder_of(&self, address: &IpAddr) -> Option<&CompactString> {
        let mut owners = self.nodes.with_address(address);
        let first = owners.next()?;
        owners.all(|other| self.nodes.are_one(first, other)).then_some(first)
    }

    pub(super) fn is_here(&self, address: &IpAddr) -> bool {
        self.own.all.contains(address) || self.here.contains(address)
    }
}
