//! The marks that say what is ours and what the guard lets in, as last seen in the kernel: the elements of our sets, in the
//! backend that is used.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use crate::kernel::ipset::{ElementKey, Entry};
use crate::kernel::ipvs::ServiceKey;
use crate::kernel::nftables::{Content, Key, Object};
use crate::kernel::rule::{Packets, PolicyRule};
use crate::net::Family;
use crate::net::service_mark::MASK;
use crate::packed::BlockMap;
use crate::reconcile::{Mirror, Reflection, Target};

use super::apply::Kernel;
use super::dsr::packet_marks::likely;
use super::names::{DSR_TABLE, EMPTY_TABLE, Set};

/// A mirror that shares the memory of what is desired.
pub type InBlocks<T> = Mirror<T, BlockMap<<T as Target>::Key, <T as Target>::Value>>;

/// The elements of both backends; only one of them has any.
pub struct Marks<'a, K: Kernel> {
    pub elements: &'a InBlocks<K::Elements>,
    pub table: &'a InBlocks<K::Table>,
}

impl<'a, K: Kernel> Marks<'a, K> {
    /// Returns whether the elements have been read.
    pub fn are_known(&self) -> bool {
        self.elements.seen().is_some() && self.table.seen().is_some()
    }

    /// Returns whether all elements are known to be as desired.
    pub fn are_settled(&self) -> bool {
        self.elements.is_settled() && self.table.is_settled()
    }

    /// Returns whether the guard lets an address, protocol and port in, which marks its virtual service as ours. What is no such key needs no
    /// element.
    pub fn has_service(&self, key: &ServiceKey) -> bool {
        restriction(key).is_none_or(|entry| self.has(Set::ServicePorts, &entry))
    }

    /// Returns whether an address, protocol and port is in the set of ports in tunnel mode, which marks virtual services for its marks as ours.
    pub fn has_tunnel(&self, key: &ServiceKey) -> bool {
        restriction(key).is_none_or(|entry| self.has(Set::TunnelPorts, &entry))
    }

    /// Returns the ports in tunnel mode that the kernel has in its set or in its [map](Self::in_map), or may have, by address, protocol and port.
    pub fn tunnel_ports(&self, in_map: &BTreeMap<ServiceKey, u32>) -> BTreeSet<ServiceKey> {
        let mut found: BTreeSet<ServiceKey> = in_map.keys().copied().collect();
        // With nftables there are none.
        let has_sets = self.elements.seen().is_some_and(|seen| !seen.is_empty());
        for family in Family::BOTH.into_iter().filter(|_| has_sets) {
            let set = Set::TunnelPorts.name(family);
            let first = ElementKey { set: set.clone(), entry: FIRST };
            let elements = self.elements.seen().into_iter().flat_map(|seen| seen.range(first.clone()..));
            let its = elements.map(|(key, ())| key).take_while(|key| key.set == set);
            found.extend(its.filter_map(|key| port(&key.entry)));
        }
        // Those that are in doubt, and all that were known where nothing is now.
        let elements = if self.elements.seen().is_none() { Some(self.elements.known_keys()) } else { None };
        let objects = if self.table.seen().is_none() { Some(self.table.known_keys()) } else { None };
        let elements = elements.into_iter().flatten().chain(self.elements.doubts()).filter_map(Set::of_element);
        let objects = objects.into_iter().flatten().chain(self.table.doubts()).filter_map(Set::of_object);
        let places = elements.chain(objects).filter(|(set, _)| *set == Set::TunnelPorts);
        found.extend(places.filter_map(|(_, entry)| port(&entry)));
        found
    }

    /// Returns the marks that the map of our table of nf_tables gives to packets, by address, protocol and port.
    pub fn in_map(&self) -> BTreeMap<ServiceKey, u32> {
        let mut found = BTreeMap::new();
        for family in Family::BOTH {
            let map = Set::TunnelPorts.in_table(family);
            let first = Object::Element(map.clone(), Key::Address(IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
            let objects = self.table.seen().into_iter().flat_map(|seen| seen.range(first.clone()..));
            for (object, content) in objects {
                let Object::Element(name, key) = object else { break };
                if *name != map {
                    break;
                }
                found.extend(given_mark(key, content));
            }
        }
        found
    }

    /// Returns whether the guard knows a service address.
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.has(Set::ServiceAddresses, &Entry::Ip(address))
    }

    /// Returns the virtual services that are marked as ours.
    pub fn services(&self) -> impl Iterator<Item = ServiceKey> + use<'a, K> {
        let elements = self.elements.seen().into_iter().flat_map(|seen| seen.keys()).filter_map(Set::of_element);
        let objects = self.table.seen().into_iter().flat_map(|seen| seen.keys()).filter_map(Set::of_object);
        elements.chain(objects).flat_map(services)
    }

    /// Returns whether the kernel holds an element.
    pub fn has(&self, set: Set, entry: &Entry) -> bool {
        self.table.has(&set.object(entry)) || self.elements.has(&set.element(entry.clone()))
    }
}

/// Everything that the other backend marks as ours.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct MarkedElsewhere {
    pub services: Vec<ServiceKey>,
    /// Its ports in tunnel mode, by address, protocol and port.
    pub tunnels: BTreeSet<ServiceKey>,
    /// The marks that it gives to packets, by address, protocol and port.
    pub given: BTreeMap<ServiceKey, u32>,
}

impl MarkedElsewhere {
    /// Returns what elements mark as ours, where packets are given these marks.
    pub fn by(places: Vec<(Set, Entry)>, given: BTreeMap<ServiceKey, u32>) -> MarkedElsewhere {
        let tunnels = places.iter().filter(|(set, _)| *set == Set::TunnelPorts).filter_map(|(_, entry)| port(entry));
        MarkedElsewhere { tunnels: tunnels.collect(), given, services: places.into_iter().flat_map(services).collect() }
    }
}

/// Returns the marks that the maps of a table like ours give to packets, by address, protocol and port.
pub fn given_in_table<'a>(objects: impl IntoIterator<Item = (&'a Object, &'a Content)>) -> BTreeMap<ServiceKey, u32> {
    let given = |(object, content): (&Object, &Content)| match object {
        Object::Element(_, key) => given_mark(key, content),
        _ => None,
    };
    objects.into_iter().filter_map(given).collect()
}

/// Returns the mark that an element of a map gives to packets, and their address, protocol and port.
fn given_mark(key: &Key, content: &Content) -> Option<(ServiceKey, u32)> {
    match (key, content) {
        (Key::Service(address, protocol, port), Content::Mark(mark)) => {
            Some((ServiceKey::Address { address: *address, protocol: *protocol, port: *port }, *mark))
        }
        _ => None,
    }
}

/// Returns the element by which a virtual service has some clients only.
pub fn restriction(key: &ServiceKey) -> Option<Entry> {
    match *key {
        ServiceKey::Address { address, protocol, port } => Some(Entry::IpPort(address, protocol, port)),
        ServiceKey::Mark { .. } => None,
    }
}

/// Returns the virtual services that an element marks as ours: that of its address, protocol and port, or those for the marks that these may have in
/// tunnel mode. All of them, because a process that ended may have been about to give them another one.
pub fn services((set, entry): (Set, Entry)) -> Vec<ServiceKey> {
    match set {
        Set::ServicePorts => port(&entry).into_iter().collect(),
        Set::TunnelPorts => port(&entry).iter().flat_map(marks_of).collect(),
        _ => Vec::new(),
    }
}

/// Returns the virtual services for the marks that an address, protocol and port may have, as far as it tells itself: it has another one where others
/// had these ([`packet_marks`](super::dsr::packet_marks)).
pub fn marks_of(port: &ServiceKey) -> impl Iterator<Item = ServiceKey> + use<> {
    let family = port.family();
    likely(port).map(move |mark| ServiceKey::Mark { mark, family })
}

/// Returns the address, protocol and port of an element.
pub fn port(entry: &Entry) -> Option<ServiceKey> {
    match *entry {
        Entry::IpPort(address, protocol, port) => Some(ServiceKey::Address { address, protocol, port }),
        _ => None,
    }
}

/// Of all elements of a set the first.
const FIRST: Entry = Entry::Ip(IpAddr::V4(Ipv4Addr::UNSPECIFIED));

/// Returns whether a rule of routing is one that kube-router writes for direct server return, or that is ours: by its place and by what it asks.
pub fn is_rule_of_ours(rule: &PolicyRule) -> bool {
    match rule.packets {
        // To table 78 it is what kube-router makes of the mark 0.
        Packets::All => rule.place == DSR_TABLE || rule.place == EMPTY_TABLE,
        Packets::Marked { value, mask } => rule.place == DSR_TABLE && (1..=MASK).contains(&value) && mask == u32::MAX,
        Packets::NotMarked { value, mask } => rule.place == DSR_TABLE && (value, mask) == (0, MASK),
    }
}

/// Returns the virtual service of direct server return that kube-router made a rule of routing for. It never deletes such a rule.
pub fn left_by_kube_router(rule: &PolicyRule) -> Option<ServiceKey> {
    match rule.packets {
        // 0 is no mark: kube-router made no virtual service of it, whatever it believed.
        Packets::Marked { value: mark @ 1..=MASK, mask: u32::MAX } if rule.place == DSR_TABLE => {
            Some(ServiceKey::Mark { mark, family: rule.family })
        }
        _ => None,
    }
}
