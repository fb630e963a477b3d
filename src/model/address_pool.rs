//! Pools of addresses for Services of type LoadBalancer, as the ConfigMap `kube-router-lb-pools` names them.

use std::collections::BTreeMap;

use compact_str::CompactString;

use super::selector::Selector;
use crate::net::AddressRange;

/// A pool of addresses, and which Services it is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AddressPool {
    pub name: CompactString,
    /// Of either family, as written.
    pub ranges: Vec<AddressRange>,
    /// Namespaces of the Services; empty for all.
    pub namespaces: Vec<CompactString>,
    /// Labels of the Services.
    pub selector: Selector,
    /// `spec.loadBalancerClass` of the Services, which begins with `kube-router/`; `None` for those of no class of their own.
    pub class: Option<CompactString>,
    /// Services that ask neither for the pool nor for an address of it are given one.
    pub is_automatic: bool,
}

/// All pools of the ConfigMap, by name. Nothing in one that cannot be read is known.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct AddressPools {
    pub pools: BTreeMap<CompactString, AddressPool>,
    /// Pools that cannot be read: the field, and why, as a sentence.
    pub unreadable: BTreeMap<CompactString, String>,
}

impl AddressPools {
    /// The same pools, of which those that cannot be read are as they were before. Returns also whether some remain unread.
    #[must_use]
    pub fn or_last_good(mut self, before: &AddressPools) -> (AddressPools, bool) {
        let mut is_unknown = false;
        for name in self.unreadable.keys() {
            match before.pools.get(name) {
                Some(pool) => drop(self.pools.insert(name.clone(), pool.clone())),
                None => is_unknown = true,
            }
        }
        (self, is_unknown)
    }
}
