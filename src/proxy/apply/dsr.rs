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
//! Where a mark becomes another port's, its virtual service is deleted before packets to that port get the mark: nobody's connections go to
//! another Service's endpoints for any moment. Packets to a port with another mark get that when its virtual service stands.
//!
//! A virtual service for a mark is ours if the set of ports in tunnel mode has a port that may have this mark, whatever it has now
//! ([`marks_of`]): a process may have ended between giving it another mark and deleting the virtual service for the former one.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{Kernel, Mirrors};
use crate::kernel::ipset::Entry;
use crate::kernel::iptables::Piece;
use crate::kernel::ipvs::{ServiceKey, Virtual};
use crate::kernel::nftables::Object;
use crate::kernel::route::RouteKey;
use crate::kernel::rule::{Packets, PolicyRule};
use crate::net::Family;
use crate::packed::BlockMap;
use crate::proxy::desired::{Desired, keyed};
use crate::proxy::dsr::rules::{self, marks_of as marks_of_chain, policy_rule};
use crate::proxy::marks::{Marks, left_by_kube_router, marks_of, port};
use crate::proxy::names::{DSR_TABLE, Set};
use crate::proxy::plan::{address_of, local_route_key, marked_route_key, services_on};
use crate::reconcile::{Growth, Moment, Reflection};

/// The ports in tunnel mode, as last seen in the kernel, by address, protocol and port.
#[derive(Default)]
pub(super) struct Tunnels {
    ports: BTreeSet<ServiceKey>,
    /// The marks that packets to them get.
    given: BTreeMap<ServiceKey, u32>,
    /// The ports that may have a mark, found out once where anybody asks.
    by_mark: OnceCell<BTreeMap<ServiceKey, Vec<ServiceKey>>>,
}

impl Tunnels {
    /// Returns the ports that may have this mark, of those that the kernel's set has.
    fn of_mark(&self, mark: &ServiceKey) -> &[ServiceKey] {
        let by_mark = self.by_mark.get_or_init(|| {
            let mut by_mark: BTreeMap<ServiceKey, Vec<ServiceKey>> = BTreeMap::new();
            for port in &self.ports {
                marks_of(port).for_each(|mark| by_mark.entry(mark).or_default().push(*port));
            }
            by_mark
        });
        by_mark.get(mark).map(Vec::as_slice).unwrap_or_default()
    }

    /// Returns whether packets to a port get the mark that they shall.
    pub(super) fn gives(&self, port: &ServiceKey, desired: &Desired) -> bool {
        desired.marks.get(port).is_some_and(|mark| self.given.get(port) == Some(mark))
    }

    /// Returns whether a surplus virtual service may go as far as marks are concerned: of those that are seen another one serves its port, or none
    /// shall.
    pub(super) fn lets_go(&self, desired: &Desired, seen: &BlockMap<ServiceKey, Virtual>, key: &ServiceKey) -> bool {
        let is_served = |port: &ServiceKey| match desired.kernel_key(port) {
            key if !desired.virtuals.contains_key(&key) => true,
            key @ ServiceKey::Mark { .. } => seen.contains_key(&key) && self.gives(port, desired),
            key @ ServiceKey::Address { .. } => seen.contains_key(&key),
        };
        match key {
            ServiceKey::Address { .. } => !desired.marks.contains_key(key) || is_served(key),
            ServiceKey::Mark { .. } => self.of_mark(key).iter().all(is_served),
        }
    }

    /// Returns the addresses of a virtual service: its own, or those of the ports that may have its mark.
    pub(super) fn addresses_of(&self, key: &ServiceKey) -> BTreeSet<IpAddr> {
        match key {
            ServiceKey::Address { .. } => address_of(key).into_iter().collect(),
            ServiceKey::Mark { .. } => self.of_mark(key).iter().filter_map(address_of).collect(),
        }
    }

    /// Returns whether the kernel's set has this port.
    pub(super) fn on_port(&self, port: &ServiceKey) -> bool {
        self.ports.contains(port)
    }

    /// Returns the ports of an address.
    pub(super) fn on(&self, address: IpAddr) -> impl Iterator<Item = &ServiceKey> {
        self.ports.range(services_on(address))
    }
}

impl<K: Kernel> Mirrors<K> {
    /// Returns the ports in tunnel mode, as last seen.
    pub(super) fn tunnels(&self) -> Tunnels {
        let marks = Marks::<K> { elements: &self.elements, table: &self.table };
        let mut given = marks.in_map();
        let chains =
            Family::BOTH.into_iter().filter_map(|family| self.rules.seen()?.get(&rules::marking_chain(family)));
        given.extend(chains.flat_map(marks_of_chain));
        Tunnels { ports: marks.tunnel_ports(), given, by_mark: OnceCell::new() }
    }

    /// Prepares for packets to get other marks than they have. Returns whether they may. Takes a mark from another port only if everything is known.
    pub(super) fn prepare_marks(&mut self, desired: &Desired, (growth, is_all): (Growth, bool), at: Moment) -> bool {
        if desired.marks.is_empty() {
            return true;
        }
        let is_read = self.elements.learn(at) && self.table.learn(at) && self.rules.learn(at);
        if !is_read || !self.learn_virtuals(desired, at) {
            return false;
        }
        // What serves these ports next stands before their packets get another mark, or none.
        let given = self.tunnels().given;
        let becomes = |(port, mark): (&ServiceKey, &u32)| {
            let (before, after) = (keyed(port, Some(*mark)), desired.kernel_key(port));
            (before != after && desired.virtuals.contains_key(&after)).then_some((before, after))
        };
        let changes: BTreeMap<ServiceKey, ServiceKey> = given.iter().filter_map(becomes).collect();
        let next: BTreeSet<ServiceKey> = changes.values().copied().collect();
        if !next.is_empty() {
            self.grow_virtuals(desired, growth, at, |key| next.contains(key));
        }
        let given_to_others = self.given_to_others(desired);
        if !given_to_others.is_empty() {
            let is_served = |key: &ServiceKey| {
                changes.get(key).is_none_or(|after| self.virtuals.has(after) || given_to_others.contains(after))
            };
            let may_go = |key: &ServiceKey| self.virtuals.lacks(*key..=*key) || is_served(key);
            let may_take = is_all && given_to_others.iter().all(may_go);
            if !may_take || !self.delete_marked(desired, &given_to_others, at) {
                return false;
            }
        }
        let comes_before = |key: &&ServiceKey| matches!(key, ServiceKey::Mark { .. }) && !given_to_others.contains(key);
        next.iter().filter(comes_before).all(|key| self.virtuals.has(key))
    }

    /// Returns the desired virtual services for marks that packets to another port get: they must not come, or change, before these get another one.
    pub(super) fn given_to_others(&self, desired: &Desired) -> BTreeSet<ServiceKey> {
        if desired.marks.is_empty() {
            return BTreeSet::new();
        }
        let is_anothers = |(port, mark): (&ServiceKey, &u32)| {
            let key = keyed(port, Some(*mark));
            desired.marked.get(&key).is_some_and(|its| its != port).then_some(key)
        };
        self.tunnels().given.iter().filter_map(is_anothers).collect()
    }

    /// Deletes virtual services that are desired, but with another port's endpoints. Returns whether all are gone.
    fn delete_marked(&mut self, desired: &Desired, anothers: &BTreeSet<ServiceKey>, at: Moment) -> bool {
        let mut without = desired.virtuals.clone();
        for key in anothers {
            without.remove(key);
            self.virtuals.mark(*key);
        }
        self.virtuals.delete_among(&without, at, |key| anothers.contains(key));
        anothers.iter().for_each(|key| self.virtuals.mark(*key));
        if !anothers.iter().all(|key| self.virtuals.lacks(*key..=*key)) {
            return false;
        }
        // Our table has the former ports of these marks as elements, which would go behind the new ones.
        let given = self.tunnels().given;
        let had = |port: &ServiceKey| given.get(port).is_some_and(|mark| anothers.contains(&keyed(port, Some(*mark))));
        let is_former = |object: &Object| match Set::of_object(object) {
            Some((Set::TunnelPorts, entry)) => port(&entry).is_some_and(|port| had(&port)),
            _ => false,
        };
        self.table.delete_among(&desired.table, at, is_former);
        let seen = self.table.seen();
        seen.is_some_and(|seen| !seen.keys().any(|object| is_former(object) && !desired.table.contains_key(object)))
    }

    /// Returns the virtual services for marks that have to wait: one with NAT serves, and the address is still local for all packets.
    pub(super) fn waiting_for_routes(&self, desired: &Desired) -> BTreeSet<ServiceKey> {
        let waits = |port: &ServiceKey| {
            let ServiceKey::Address { address, .. } = *port else { return false };
            let route = local_route_key(address);
            self.virtuals.has(port) && !self.routes.lacks(route.clone()..=route)
        };
        desired.marked.iter().filter(|(_, port)| waits(port)).map(|(key, _)| *key).collect()
    }

    /// Returns the addresses that must not become local for all packets yet, because a virtual service for a mark stands there.
    pub(super) fn held_by_tunnels(&self, desired: &Desired) -> BTreeSet<IpAddr> {
        let tunnels = self.tunnels();
        let stands = |port: &&ServiceKey| self.has_marked(desired, port);
        tunnels.ports.iter().filter(stands).filter_map(address_of).collect()
    }

    /// Returns whether a virtual service for a mark of this port may be there.
    fn has_marked(&self, desired: &Desired, port: &ServiceKey) -> bool {
        let is_its = |key: &ServiceKey| desired.marked.get(key).is_none_or(|its| its == port);
        marks_of(port).filter(is_its).any(|key| !self.virtuals.lacks(key..=key))
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
                // kube-router's, for all addresses.
                key if key.table == DSR_TABLE.table && key.destination.prefix_len() == 0 => {
                    let mut marked = desired.routes.keys().filter(|other| other.table == DSR_TABLE.table);
                    marked.all(|other| seen.contains_key(other))
                }
                _ => true,
            }
        });
    }

    /// Returns whether packets may stop to get marks that no port has any more: what serves these ports now stands.
    pub(super) fn may_unmark(&self, desired: &Desired) -> bool {
        let given = self.tunnels().given;
        let mut ports = given.keys().filter(|port| !desired.marks.contains_key(port));
        ports.all(|port| !desired.virtuals.contains_key(port) || self.virtuals.has(port))
    }

    /// Returns whether no route of a family is left that marked packets find.
    pub(super) fn lacks_marked_routes(&self, family: Family) -> bool {
        let (first, last): (IpAddr, IpAddr) = match family {
            Family::V4 => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::BROADCAST.into()),
            Family::V6 => (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::from_bits(u128::MAX).into()),
        };
        let key = |destination, metric| RouteKey { table: DSR_TABLE.table, destination, metric };
        let everything = IpNet::new(first, 0).unwrap_or_else(|_| IpNet::from(first));
        self.routes.lacks(key(everything, 0)..=key(Family::host_prefix(last), u32::MAX))
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

/// Returns whether a piece of rules gives packets the marks of ports.
pub(super) fn is_marking(piece: &Piece) -> bool {
    rules::is_rule(piece) && *piece == rules::marking_chain(piece.family())
}

/// Returns whether an object of our table gives packets the mark of a port.
pub(super) fn is_mark(object: &Object) -> bool {
    matches!(Set::of_object(object), Some((Set::TunnelPorts, _)))
}
