//! The order in which objects of direct server return come and go.
//!
//! A virtual service in tunnel mode is the kernel's for a mark of packets. IPVS looks for one by the mark first, then by address, protocol and port; so
//! marks may be given before anything has them, and as long as the virtual service with NAT stands it serves. Its address is local in table 78
//! for marked packets, and must not be in the table `local` meanwhile: the kernel takes no answer from a pod of this node with such a source.
//!
//! | from NAT to a tunnel | from a tunnel to NAT |
//! |---|---|
//! | set elements, rules, rule of routing | |
//! | route in table 78 | virtual service by address |
//! | route in the table `local` goes | virtual service for the mark goes |
//! | virtual service for the mark | route in the table `local` |
//! | virtual service by address goes | route in table 78 goes, then rules and elements |
//!
//! What is known in part only takes nothing away, so it also brings nothing about that would need it: such a Service stays in its mode until all is known.
//!
//! Which marks packets are given is [`packet_marks`](super::packet_marks)' business.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{Kernel, Mirrors};
use crate::kernel::ipset::Entry;
use crate::kernel::ipvs::ServiceKey;
use crate::kernel::nftables::Object;
use crate::kernel::route::RouteKey;
use crate::kernel::rule::{Packets, PolicyRule};
use crate::net::Family;
use crate::proxy::desired::{Desired, keyed};
use crate::proxy::dsr::rules::{self, policy_rule};
use crate::proxy::marks::{Marks, left_by_kube_router};
use crate::proxy::names::{DSR_TABLE, Set};
use crate::proxy::plan::{address_of, local_route_key, marked_route_key};
use crate::reconcile::{Growth, Moment, Reflection};

impl<K: Kernel> Mirrors<K> {
    /// Returns the virtual services for marks that have to wait: one with NAT serves, or may, and the address is still local for all packets.
    pub(super) fn waiting_for_routes(&self, desired: &Desired) -> BTreeSet<ServiceKey> {
        let waits = |port: &ServiceKey| {
            let ServiceKey::Address { address, .. } = *port else { return false };
            let route = local_route_key(address);
            !self.virtuals.lacks(*port..=*port) && !self.routes.lacks(route.clone()..=route)
        };
        desired.marked.iter().filter(|(_, port)| waits(port)).map(|(key, _)| *key).collect()
    }

    /// Returns the addresses that must not become local for all packets yet, because a virtual service for a mark stands there.
    pub(super) fn held_by_tunnels(&self, desired: &Desired) -> BTreeSet<IpAddr> {
        let tunnels = self.tunnels();
        let is_its = |key: &ServiceKey, port: &ServiceKey| desired.marked.get(key).is_none_or(|its| its == port);
        let stands = |port: &&ServiceKey| {
            tunnels.marks_of(port).any(|key| is_its(&key, port) && !self.virtuals.lacks(key..=key))
        };
        tunnels.ports().filter(stands).filter_map(address_of).collect()
    }

    /// Returns the addresses of which a virtual service for a mark is in place.
    pub(super) fn answering_tunnels(&self, desired: &Desired) -> BTreeSet<IpAddr> {
        let stands = |key: &ServiceKey| self.virtuals.seen().is_some_and(|seen| seen.contains_key(key));
        desired.marked.iter().filter(|(key, _)| stands(key)).filter_map(|(_, port)| address_of(port)).collect()
    }

    /// Deletes the routes that are not desired, each when what takes its place stands.
    pub(super) fn shrink_routes(&mut self, desired: &Desired, at: Moment) {
        if self.routes.is_settled() {
            return;
        }
        let marks = Marks::<K> { elements: &self.elements, table: &self.table };
        let (mirrored, policy_rules) = (&self.rules, &self.policy_rules);
        let answering = self.answering_tunnels(desired);
        // All packets to an address get a mark and lead to table 78.
        let is_marked = |address: IpAddr| {
            let family = Family::from(address);
            let mut pieces = desired.rules.keys().filter(|piece| piece.family() == family && rules::is_rule(piece));
            let mut chains = desired.table.keys().take_while(|object| !matches!(object, Object::Element(..)));
            policy_rules.has(&policy_rule(family))
                && marks.has(Set::TunnelAddresses, &Entry::Ip(address))
                && pieces.all(|piece| mirrored.has(piece))
                && chains.all(|object| !rules::is_chain(object) || marks.table.has(object))
        };
        self.routes.shrink_where(&desired.routes, at, |key, seen| {
            let address = key.destination.addr();
            let [local, marked] = [local_route_key(address), marked_route_key(address)];
            match key {
                key if *key == local && desired.routes.contains_key(&marked) => {
                    seen.contains_key(&marked) && is_marked(address)
                }
                key if *key == marked && desired.routes.contains_key(&local) => seen.contains_key(&local),
                // kube-router's, for all addresses: those that are served have one of their own.
                key if key.table == DSR_TABLE.table && key.destination.prefix_len() == 0 => {
                    let marked = desired.routes.keys().filter(|other| other.table == DSR_TABLE.table);
                    let mut served = marked.filter(|other| answering.contains(&other.destination.addr()));
                    served.all(|other| seen.contains_key(other))
                }
                _ => true,
            }
        });
    }

    /// Returns the ports that have no mark any more, and whose packets must go on to get the one that they had: what serves them now does not stand, or the virtual service
    /// for that mark is not gone, which is known as ours by it.
    pub(super) fn still_marked(&self, desired: &Desired) -> BTreeSet<ServiceKey> {
        let tunnels = self.tunnels();
        let surplus = tunnels.given().iter().filter(|(port, _)| !desired.marks.contains_key(port));
        let stays = |(port, mark): &(&ServiceKey, &u32)| {
            let key = keyed(port, Some(**mark));
            let is_gone = desired.virtuals.contains_key(&key) || self.virtuals.lacks(key..=key);
            !is_gone || (desired.virtuals.contains_key(port) && !self.virtuals.has(port))
        };
        surplus.filter(stays).map(|(port, _)| *port).collect()
    }

    /// Makes rules of routing that lead to the table of addresses in tunnel mode: where that has no route for all addresses any more, as kube-router's, by which
    /// packets that others mark with these bits would end here.
    pub(super) fn grow_policy_rules(&mut self, desired: &Desired, growth: Growth, at: Moment) {
        if self.policy_rules.is_settled() || !self.routes.learn(at) {
            return;
        }
        let lacks_default = Family::BOTH.map(|family| {
            let [first, last] = [0, u32::MAX].map(|metric| key_of_all(family, metric));
            (family, self.routes.lacks(first..=last))
        });
        let may_come = |rule: &PolicyRule| lacks_default.contains(&(rule.family, true));
        self.policy_rules.grow_where(&desired.policy_rules, growth, at, may_come);
    }

    /// Returns whether packets with the mark of a port are led to the table of addresses in tunnel mode, by our rule or one that kube-router left.
    pub(super) fn leads_marked(&self, port: &ServiceKey, desired: &Desired) -> bool {
        let key = desired.kernel_key(port);
        let is_its = |rule: &PolicyRule| left_by_kube_router(rule) == Some(key);
        self.policy_rules.has(&policy_rule(port.family()))
            || self.policy_rules.seen().is_some_and(|seen| seen.keys().any(is_its))
    }

    /// Returns whether no route of a family is left that marked packets find.
    pub(super) fn lacks_marked_routes(&self, family: Family) -> bool {
        let last: IpAddr = match family {
            Family::V4 => Ipv4Addr::BROADCAST.into(),
            Family::V6 => Ipv6Addr::from_bits(u128::MAX).into(),
        };
        let last = RouteKey { metric: u32::MAX, ..marked_route_key(last) };
        self.routes.lacks(key_of_all(family, 0)..=last)
    }

    /// Deletes a rule of kube-router after the virtual service that it says is ours and when ours is there, and ours after the routes that it leads to.
    pub(super) fn shrink_policy_rules(&mut self, desired: &Desired, at: Moment) {
        if self.policy_rules.is_settled() {
            return;
        }
        let no_routes = Family::BOTH.map(|family| (family, self.lacks_marked_routes(family)));
        let lacks_routes = |rule: &PolicyRule| no_routes.contains(&(rule.family, true));
        let virtuals = &self.virtuals;
        self.policy_rules.shrink_where(&desired.policy_rules, at, |rule, seen| match rule.packets {
            Packets::NotMarked { .. } => lacks_routes(rule),
            Packets::All | Packets::Marked { .. } => {
                let is_ours_there = desired.policy_rules.keys().all(|ours| seen.contains_key(ours));
                let marked = left_by_kube_router(rule);
                let is_free = marked.is_none_or(|key| virtuals.lacks(key..=key) || desired.virtuals.contains_key(&key));
                is_ours_there && is_free
            }
        });
    }
}

/// Returns the key of a route in the table of addresses in tunnel mode that is for all addresses of a family.
fn key_of_all(family: Family, metric: u32) -> RouteKey {
    let first: IpAddr = match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    let destination = IpNet::new(first, 0).unwrap_or_else(|_| IpNet::from(first));
    RouteKey { table: DSR_TABLE.table, destination, metric }
}
