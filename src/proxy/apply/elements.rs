//! The order in which elements and the objects of our table come and go: each before what it marks as ours, lets in or closes, and
//! after it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Kernel, Mirrors};
use crate::kernel::ipset::Entry;
use crate::kernel::iptables::Piece;
use crate::kernel::ipvs::{ServiceKey, Virtual};
use crate::kernel::nftables::Object;
use crate::kernel::route::{Route, RouteKey};
use crate::proxy::clients::{set_of_chain, set_of_rule};
use crate::proxy::desired::Desired;
use crate::proxy::marks::InBlocks;
use crate::proxy::names::{NFT_GUARD, Set};
use crate::proxy::plan::{address_of, local_route_key, services_on};
use crate::proxy::source_ranges;
use crate::reconcile::{Growth, Moment, Target};

impl<K: Kernel> Mirrors<K> {
    /// Creates the elements that existing kernel objects need: those of existing virtual services, and of addresses in
    /// the set of service ports. Nothing else of a Service is created without its element. The guard comes if it may.
    pub(super) fn grow_needed_elements(&mut self, desired: &Desired, may_guard: bool, at: Moment) {
        if self.marks().are_settled() || !self.elements.learn(at) || !self.table.learn(at) {
            return;
        }
        let listed: BTreeSet<IpAddr> = self.marks().services().filter_map(|key| address_of(&key)).collect();
        let known = self.elements.seen().into_iter().flat_map(|seen| seen.keys()).filter_map(Set::of_element);
        let known = known.chain(self.table.seen().into_iter().flat_map(|seen| seen.keys()).filter_map(Set::of_object));
        let restricted: BTreeSet<Entry> =
            known.filter(|(set, _)| *set == Set::Restricted).map(|(_, entry)| entry).collect();
        let virtuals = &self.virtuals;
        let marked: BTreeSet<ServiceKey> = self.marks().services().collect();
        let stands = |entry: &Entry| {
            let Entry::IpPort(address, protocol, port) = *entry else { return false };
            let key = ServiceKey::Address { address, protocol, port };
            // One without its own element has lost it to another program, and perhaps these too.
            virtuals.has(&key) && marked.contains(&key)
        };
        let is_new = |entry: &Entry| !restricted.contains(entry) && !stands(entry);
        let is_needed = |place: (Set, Entry)| match place {
            // What the kernel knows of clients is newer.
            (Set::Restricted, entry) => is_new(&entry),
            (Set::InsideOnly, entry) => !stands(&entry),
            (Set::AllowedSources, entry) => source_ranges::restricted_by(&entry).is_none_or(|entry| is_new(&entry)),
            (Set::ServicePorts, Entry::IpPort(address, protocol, port)) => {
                virtuals.has(&ServiceKey::Address { address, protocol, port })
            }
            (Set::ServiceAddresses, Entry::Ip(address)) => {
                let exists = virtuals.seen().is_some_and(|seen| seen.range(services_on(address)).next().is_some());
                exists || listed.contains(&address)
            }
            _ => true,
        };
        let missing = Growth::OnlyMissing;
        self.elements.grow_where(&desired.elements, missing, at, |key| Set::of_element(key).is_none_or(is_needed));
        self.table.grow_where(&desired.table, missing, at, |object| {
            (may_guard || !is_guard(object)) && Set::of_object(object).is_none_or(is_needed)
        });
    }

    /// Grows our table. A chain that drops what is outside of source ranges keeps the ranges that it has (`Content::grown`).
    pub(super) fn grow_table(&mut self, desired: &Desired, may_guard: bool, growth: Growth, at: Moment) {
        self.table.grow_where(&desired.table, growth, at, |object| may_guard || !is_guard(object));
    }

    /// Deletes source ranges that a known Service no longer names, while not everything is known, and lets clients outside in
    /// where such a Service has a local endpoint and the kernel no others.
    pub(super) fn shrink_known_clients(&mut self, desired: &Desired, at: Moment) {
        let (virtuals, routes) = (&self.virtuals, &self.routes);
        let is_known = |place: &(Set, Entry)| match *place {
            (Set::AllowedSources, ref entry) => {
                source_ranges::restricted_by(entry).is_some_and(|entry| has_element(desired, Set::Restricted, &entry))
            }
            (Set::InsideOnly, Entry::IpPort(address, protocol, port)) => {
                let key = ServiceKey::Address { address, protocol, port };
                desired.virtuals.contains_key(&key) && marks_nothing(place, desired, virtuals, routes)
            }
            _ => false,
        };
        self.elements.delete_among(&desired.elements, at, |key| Set::of_element(key).as_ref().is_some_and(is_known));
        self.table.delete_among(&desired.table, at, |object| Set::of_object(object).as_ref().is_some_and(is_known));
    }

    /// Deletes an element after the object that it marks.
    pub(super) fn shrink_elements(&mut self, desired: &Desired, at: Moment) {
        let (virtuals, routes) = (&self.virtuals, &self.routes);
        self.elements.shrink_where(&desired.elements, at, |key, _| {
            Set::of_element(key).is_none_or(|place| marks_nothing(&place, desired, virtuals, routes))
        });
        // One whose deletion failed may be there still.
        let doubtful: BTreeSet<_> = self.elements.doubts().cloned().collect();
        self.elements.shrink_where(&desired.elements, at, |key, seen| {
            let still_restricts = |entry: Entry| {
                let key = Set::Restricted.element(entry);
                (seen.contains_key(&key) || doubtful.contains(&key)) && !desired.elements.contains_key(&key)
            };
            source_ranges::restricted_by(&key.entry).is_some_and(|entry| !still_restricts(entry))
        });
    }

    /// Deletes the rules that drop clients once no element says of which service.
    pub(super) fn shrink_source_rules(&mut self, desired: &Desired, at: Moment) {
        let elements = &self.elements;
        self.rules.shrink_where(&desired.rules, at, |piece, _| {
            let Some(name) = set_of_rule(piece).map(|set| set.name(piece.family())) else { return false };
            elements.seen().is_some() && !elements.known_keys().any(|key| key.set == name)
        });
    }

    /// The same in our table, where the rules go with the elements; its sets go once they are empty.
    pub(super) fn shrink_table(&mut self, desired: &Desired, at: Moment) {
        let (virtuals, routes) = (&self.virtuals, &self.routes);
        self.table.shrink_where(&desired.table, at, |object, _| match object {
            Object::Set(_) => false,
            object if set_of_chain(object).is_some() => false,
            object => Set::of_object(object).is_none_or(|place| marks_nothing(&place, desired, virtuals, routes)),
        });
        let doubtful: BTreeSet<_> = self.table.doubts().cloned().collect();
        self.table.shrink_where(&desired.table, at, |object, seen| {
            let still_restricts = |entry: Entry| {
                let object = Set::Restricted.object(&entry);
                (seen.contains_key(&object) || doubtful.contains(&object)) && !desired.table.contains_key(&object)
            };
            let of_ranges = Set::of_object(object).and_then(|(_, entry)| source_ranges::restricted_by(&entry));
            of_ranges.is_some_and(|entry| !still_restricts(entry))
        });
        self.table.shrink_where(&desired.table, at, |object, seen| {
            // The chain of one family goes with its restricted services, whatever is restricted in the other.
            let Some((its, family)) = set_of_chain(object) else { return false };
            let restricts = |object: &Object| {
                let place = Set::of_object(object);
                place.is_some_and(|(set, entry)| set == its && family.is_none_or(|family| family == entry.family()))
            };
            !seen.keys().chain(&doubtful).any(restricts)
        });
        self.table.shrink_where(&desired.table, at, |object, seen| {
            let Object::Set(name) = object else { return false };
            !seen.keys().any(|other| matches!(other, Object::Element(set, _) if set == name))
        });
    }
}

fn is_guard(object: &Object) -> bool {
    matches!(object, Object::Chain(name) if name.as_str() == NFT_GUARD)
}

/// Returns whether rules drop some clients of Services.
pub(super) fn drops_clients(piece: &Piece) -> bool {
    set_of_rule(piece).is_some()
}

/// Returns whether an element is desired, in either backend.
pub(super) fn has_element(desired: &Desired, set: Set, entry: &Entry) -> bool {
    desired.table.contains_key(&set.object(entry)) || desired.elements.contains_key(&set.element(entry.clone()))
}

/// Returns whether an element may go: the kernel has nothing that it marks as ours, lets in, or closes. Source ranges go later.
fn marks_nothing<V, R>(
    (set, entry): &(Set, Entry),
    desired: &Desired,
    virtuals: &InBlocks<V>,
    routes: &InBlocks<R>,
) -> bool
where
    V: Target<Key = ServiceKey, Value = Virtual>,
    R: Target<Key = RouteKey, Value = Arc<Route>>,
{
    match (*set, entry) {
        (Set::ServicePorts, &Entry::IpPort(address, protocol, port)) => {
            let service = ServiceKey::Address { address, protocol, port };
            virtuals.lacks(service..=service)
        }
        (Set::ServiceAddresses, &Entry::Ip(address)) => {
            let route = local_route_key(address);
            virtuals.lacks(services_on(address)) && routes.lacks(route.clone()..=route)
        }
        (Set::Restricted | Set::InsideOnly, &Entry::IpPort(address, protocol, port)) => {
            let service = ServiceKey::Address { address, protocol, port };
            // One that still has the endpoints of the restricted Service would open them.
            let wanted = desired.virtuals.get(&service);
            let is_another = || {
                virtuals.seen().and_then(|seen| seen.get(&service)) == wanted
                    && virtuals.doubts().all(|key| *key != service)
            };
            virtuals.lacks(service..=service) || wanted.is_some() && is_another()
        }
        (Set::AllowedSources, _) => false,
        _ => true,
    }
}
