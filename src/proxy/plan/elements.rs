//! The sets of service addresses and ports, and their elements, in the backend that is used.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Bound;

use crate::config::Backend;
use crate::kernel::ipset::{Entry, IpPortNet};
use crate::kernel::ipvs::ServiceKey;
use crate::kernel::nftables::{Content, Key, Object};
use crate::net::Family;

use super::{ClaimedPart, Plan, different_keys};
use crate::proxy::clients::{Clients, Shape};
use crate::proxy::desired::ProxyChanges;
use crate::proxy::guard;
use crate::proxy::names::Set;
use crate::proxy::part::OwnEndpoint;

impl Plan {
    pub(super) fn put_element(&mut self, set: Set, entry: Entry, present: bool, changed: &mut ProxyChanges) {
        let desired = &mut self.desired;
        if self.config.backend == Backend::Nftables {
            let object = set.object(&entry);
            let differs = match present {
                true => desired.table.insert(object.clone(), Content::Element).is_none(),
                false => desired.table.remove(&object).is_some(),
            };
            changed.table.extend(differs.then_some(object));
            return;
        }
        let family = entry.family();
        let key = set.element(entry);
        let differs = match present {
            true => desired.elements.insert(key.clone(), ()).is_none(),
            false => desired.elements.remove(&key).is_some(),
        };
        if differs {
            let size = self.sizes.entry((set, family)).or_default();
            *size = if present { *size + 1 } else { size.saturating_sub(1) };
            changed.elements.push(key);
        }
    }

    /// Notes the endpoints on this node that a Service had and has.
    pub(super) fn count_own_endpoints(&mut self, [old, new]: [Option<&ClaimedPart>; 2], changed: &mut ProxyChanges) {
        let of = |part: Option<&ClaimedPart>| part.map(|part| part.own_endpoints.clone()).unwrap_or_default();
        let is_empty = |part: Option<&ClaimedPart>| part.is_none_or(|part| part.own_endpoints.is_empty());
        if is_empty(old) && is_empty(new) {
            return;
        }
        let (old, new) = (of(old), of(new));
        for endpoint in new.iter().filter(|endpoint| old.binary_search(endpoint).is_err()) {
            let count = self.own_endpoints.entry(*endpoint).or_default();
            *count += 1;
            if *count == 1 {
                self.put_element(Set::Hairpin, itself(endpoint), true, changed);
            }
        }
        for endpoint in old.iter().filter(|endpoint| new.binary_search(endpoint).is_err()) {
            let Some(count) = self.own_endpoints.get_mut(endpoint) else { continue };
            *count -= 1;
            if *count == 0 {
                self.own_endpoints.remove(endpoint);
                self.put_element(Set::Hairpin, itself(endpoint), false, changed);
            }
        }
    }

    /// Sets the clients of a virtual service.
    pub(super) fn restrict(&mut self, key: ServiceKey, clients: Clients, changed: &mut ProxyChanges) {
        for (set, entry, present) in self.restrictions.set(key, clients) {
            self.put_element(set, entry, present, changed);
        }
    }

    /// Updates sets and rules when the first virtual service of a family is restricted, or the last no longer.
    pub(super) fn follow_restrictions(&mut self, changed: &mut ProxyChanges) {
        let shape = Shape { tunnels: self.tunnelled_families(), ..self.restrictions.shape() };
        let tunnels_changed = self.tunnels_have_changed();
        if shape == self.shape && !tunnels_changed {
            return;
        }
        let families = |shape: &Shape| (shape.ranged, shape.inside, shape.tunnels);
        let has_other_families = families(&shape) != families(&self.shape);
        self.shape = shape;
        match self.config.backend {
            Backend::Iptables if has_other_families || tunnels_changed => {
                self.replace_rules(changed);
                self.resize_sets(changed);
            }
            Backend::Iptables => {}
            Backend::Nftables => self.replace_chains(changed),
        }
        self.replace_policy_rules(changed);
        self.replace_settings(changed);
    }

    /// Returns the desired addresses of the host, of both families.
    pub(super) fn listed_own_addresses(&self) -> Vec<Entry> {
        let names = Family::BOTH.map(|family| Set::LocalAddresses.name(family));
        let elements = self.desired.elements.keys().filter(|key| names.contains(&key.set)).map(|key| key.entry.clone());
        let in_table = Family::BOTH.into_iter().flat_map(|family| {
            let name = Set::LocalAddresses.in_table(family);
            let first = Object::Element(name, Key::Address(IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
            let from = self.desired.table.range((Bound::Included(first), Bound::Unbounded));
            from.map_while(|(object, _)| Set::of_object(object))
                .take_while(move |(set, entry)| *set == Set::LocalAddresses && entry.family() == family)
        });
        elements.chain(in_table.map(|(_, entry)| entry)).collect()
    }

    /// Keeps the sets of ipset large enough for their desired elements. Those of nf_tables have no size.
    pub(super) fn resize_sets(&mut self, changed: &mut ProxyChanges) {
        if self.config.backend == Backend::Nftables {
            return;
        }
        let mut sets = BTreeMap::new();
        for family in self.node.enabled_families() {
            for set in Set::ALL.into_iter().filter(|set| self.shape.uses(*set, family)) {
                let size = self.sizes.get(&(set, family)).copied().unwrap_or_default();
                sets.insert(set.name(family), guard::set_spec(set, family, size));
            }
        }
        changed.sets.extend(different_keys(&self.desired.sets, &sets));
        self.desired.sets = sets;
    }
}

/// The element by which an endpoint is known as the client of itself.
fn itself((endpoint, protocol): &OwnEndpoint) -> Entry {
    let (address, protocol, port) = (endpoint.ip(), *protocol, endpoint.port());
    Entry::IpPortNet(Box::new(IpPortNet { address, protocol, port, range: Family::host_prefix(address) }))
}
