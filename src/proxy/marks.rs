//! The marks that say what is ours and what the guard lets in, as last seen in the kernel: the elements of our sets, in the
//! backend that is used.

use std::net::IpAddr;

use crate::kernel::ipset::Entry;
use crate::kernel::ipvs::ServiceKey;
use crate::kernel::rule::{Packets, PolicyRule};
use crate::net::service_mark::MASK;
use crate::packed::BlockMap;
use crate::reconcile::{Mirror, Reflection, Target};

use super::apply::Kernel;
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

    /// Returns whether a virtual service is marked as ours. One for a mark of packets needs no element.
    pub fn has_service(&self, key: &ServiceKey) -> bool {
        let ServiceKey::Address { address, protocol, port } = *key else { return true };
        self.has(Set::ServicePorts, &Entry::IpPort(address, protocol, port))
    }

    /// Returns whether the guard knows a service address.
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.has(Set::ServiceAddresses, &Entry::Ip(address))
    }

    /// Returns the virtual services that are marked as ours.
    pub fn services(&self) -> impl Iterator<Item = ServiceKey> + use<'a, K> {
        let elements = self.elements.seen().into_iter().flat_map(|seen| seen.keys()).filter_map(Set::of_element);
        let objects = self.table.seen().into_iter().flat_map(|seen| seen.keys()).filter_map(Set::of_object);
        elements.chain(objects).filter_map(service)
    }

    /// Returns whether the kernel holds an element.
    pub fn has(&self, set: Set, entry: &Entry) -> bool {
        self.table.has(&set.object(entry)) || self.elements.has(&set.element(entry.clone()))
    }
}

/// Returns the element by which a virtual service has some clients only.
pub fn restriction(key: &ServiceKey) -> Option<Entry> {
    match *key {
        ServiceKey::Address { address, protocol, port } => Some(Entry::IpPort(address, protocol, port)),
        ServiceKey::Mark { .. } => None,
    }
}

/// Returns the virtual service that an element marks.
pub fn service(place: (Set, Entry)) -> Option<ServiceKey> {
    match place {
        (Set::ServicePorts, Entry::IpPort(address, protocol, port)) => {
            Some(ServiceKey::Address { address, protocol, port })
        }
        _ => None,
    }
}

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
