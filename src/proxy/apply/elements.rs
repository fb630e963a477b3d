//! The order in which elements and the objects of our table come and go: each before what it marks as ours, lets in or closes, and
//! after it.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::packet_marks::{HeldMarks, Tunnels, port_of_mark};
use super::{Kernel, Mirrors};
use crate::kernel::ipset::Entry;
use crate::kernel::iptables::Piece;
use crate::kernel::ipvs::{ServiceKey, Virtual};
use crate::kernel::nftables::{Content, Object};
use crate::kernel::route::{Route, RouteKey};
use crate::net::Family;
use crate::packed::BlockMap;
use crate::proxy::clients::{set_of_chain, set_of_rule};
use crate::proxy::desired::Desired;
use crate::proxy::dsr::rules::{is_chain, of_given_mark};
use crate::proxy::marks::{InBlocks, port};
use crate::proxy::names::{NFT_GUARD, NFT_SOURCES, Set};
use crate::proxy::plan::{address_of, local_route_key, marked_route_key, services_on};
use crate::proxy::{source_ranges, unallocated};
use crate::reconcile::{Growth, MayGrow, Moment, Reflection, Target};

/// The objects of our table that wait for others.
#[derive(Clone, Copy)]
pub(super) struct TableLimits<'a> {
    /// The guard need not wait.
    pub may_guard: bool,
    /// The ports that nothing may mark packets to yet.
    pub held: &'a HeldMarks,
}

impl TableLimits<'_> {
    fn may_come(self, object: &Object) -> bool {
        (self.may_guard || !is_guard(object)) && self.may_change(object)
    }

    fn may_change(self, object: &Object) -> bool {
        may_mark(object, self.held) && !unallocated::is_chain(object)
    }
}

impl<K: Kernel> Mirrors<K> {
    /// Creates the elements that existing kernel objects need: those of existing virtual services, and of addresses in
    /// the set of service ports. Nothing else of a Service is created without its element. The guard comes if it may, and so do the marks of packets.
    pub(super) fn grow_needed_elements(&mut self, desired: &Desired, limits: TableLimits<'_>, at: Moment) {
        if self.marks().are_settled() || !self.elements.learn(at) || !self.table.learn(at) {
            return;
        }
        let listed: BTreeSet<IpAddr> = self.marks().services().filter_map(|key| address_of(&key)).collect();
        let known = self.elements.seen().into_iter().flat_map(|seen| seen.keys()).filter_map(Set::of_element);
        let known = known.chain(self.table.seen().into_iter().flat_map(|seen| seen.keys()).filter_map(Set::of_object));
        let restricted: BTreeSet<Entry> =
            known.filter(|(set, _)| *set == Set::Restricted).map(|(_, entry)| entry).collect();
        let (virtuals, routes) = (&self.virtuals, &self.routes);
        let marked: BTreeSet<ServiceKey> = self.marks().services().collect();
        let exists = |port: &ServiceKey| virtuals.has(port) || virtuals.has(&desired.kernel_key(port));
        // One without its own element has lost it to another program, and perhaps these too.
        let stands = |entry: &Entry| port(entry).is_some_and(|port| exists(&port) && marked.contains(&port));
        let is_new = |entry: &Entry| !restricted.contains(entry) && !stands(entry);
        let is_needed = |place: (Set, Entry)| match place {
            // What the kernel knows of clients is newer.
            (Set::Restricted, entry) => is_new(&entry),
            (Set::InsideOnly, entry) => !stands(&entry),
            (Set::AllowedSources, entry) => source_ranges::restricted_by(&entry).is_none_or(|entry| is_new(&entry)),
            (Set::ServicePorts, entry) => port(&entry).is_some_and(|port| exists(&port)),
            (Set::TunnelPorts, entry) => port(&entry).is_some_and(|port| virtuals.has(&desired.kernel_key(&port))),
            (Set::TunnelAddresses, Entry::Ip(address)) => {
                routes.has(&marked_route_key(address)) || any_marked(desired, virtuals, address)
            }
            (Set::ServiceAddresses, Entry::Ip(address)) => {
                let exists = virtuals.seen().is_some_and(|seen| seen.range(services_on(address)).next().is_some());
                exists || any_marked(desired, virtuals, address) || listed.contains(&address)
            }
            _ => true,
        };
        let missing = Growth::OnlyMissing;
        self.elements.grow_where(&desired.elements, missing, at, |key| Set::of_element(key).is_none_or(is_needed));
        let deleted = self.deleted_source_chains(desired);
        self.table.grow_where(&with_chains(&desired.table, &deleted), missing, at, |object| {
            limits.may_come(object) && Set::of_object(object).is_none_or(is_needed)
        });
        deleted.into_iter().for_each(|(chain, _)| self.table.mark(chain));
    }

    /// Grows our table. A chain that drops what is outside of source ranges keeps the ranges that it has (`Content::grown`).
    pub(super) fn grow_table(&mut self, desired: &Desired, limits: TableLimits<'_>, growth: Growth, at: Moment) {
        let deleted = self.deleted_source_chains(desired);
        let want = with_chains(&desired.table, &deleted);
        let come = |object: &Object| limits.may_come(object);
        let change = |object: &Object| limits.may_change(object);
        self.table.grow_those(&want, growth, at, MayGrow { come, change });
        deleted.into_iter().for_each(|(chain, _)| self.table.mark(chain));
    }

    /// Returns the chains that drop what is outside of source ranges and that somebody has deleted, with the lengths of all sets that exist: elements of these may be of
    /// Services that are not known. What such a chain has beyond what is desired goes when all of them are.
    fn deleted_source_chains(&self, desired: &Desired) -> Vec<(Object, Content)> {
        let Some(seen) = self.table.seen().filter(|_| !self.table.is_settled()) else { return Vec::new() };
        let sets = || {
            seen.keys().map_while(|object| match object {
                // Elements come last.
                Object::Element(..) => None,
                Object::Set(name) => Some(Some(name.clone())),
                _ => Some(None),
            })
        };
        let of_family = |family: Family| {
            let chain = Object::Chain((*NFT_SOURCES.of(family)).into());
            let wanted = desired.table.get(&chain).filter(|_| !seen.contains_key(&chain))?;
            Some((chain, source_ranges::with_lengths(wanted, family, sets().flatten())?))
        };
        Family::BOTH.into_iter().filter_map(of_family).collect()
    }

    /// Deletes source ranges that a known Service no longer names, while not everything is known, and lets clients outside in
    /// where such a Service has a local endpoint and the kernel no others.
    pub(super) fn shrink_known_clients(&mut self, desired: &Desired, at: Moment) {
        let tunnels = self.tunnels();
        let standing = Standing { desired, virtuals: &self.virtuals, routes: &self.routes, tunnels: &tunnels };
        let is_known = |place: &(Set, Entry)| match *place {
            (Set::AllowedSources, ref entry) => {
                source_ranges::restricted_by(entry).is_some_and(|entry| has_element(desired, Set::Restricted, &entry))
            }
            (Set::InsideOnly, ref entry) => {
                let is_desired = port(entry).is_some_and(|port| desired.virtual_of(&port).is_some());
                is_desired && standing.marks_nothing(place)
            }
            _ => false,
        };
        self.elements.delete_among(&desired.elements, at, |key| Set::of_element(key).as_ref().is_some_and(is_known));
        self.table.delete_among(&desired.table, at, |object| Set::of_object(object).as_ref().is_some_and(is_known));
    }

    /// Deletes an element after the object that it marks.
    pub(super) fn shrink_elements(&mut self, desired: &Desired, at: Moment) {
        if self.elements.is_settled() {
            return;
        }
        let tunnels = self.tunnels();
        let standing = Standing { desired, virtuals: &self.virtuals, routes: &self.routes, tunnels: &tunnels };
        self.elements.shrink_where(&desired.elements, at, |key, _| {
            Set::of_element(key).is_none_or(|place| standing.marks_nothing(&place))
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
        let may_go = |piece: &Piece| {
            let Some(name) = set_of_rule(piece).map(|set| set.name(piece.family())) else { return false };
            elements.seen().is_some() && !elements.known_keys().any(|key| key.set == name)
        };
        self.rules.shrink_those(&desired.rules, at, |piece, _| may_go(piece), |_| false);
    }

    /// The same in our table, where the rules go with the elements; its sets go once they are empty.
    pub(super) fn shrink_table(&mut self, desired: &Desired, at: Moment) {
        if self.table.is_settled() {
            return;
        }
        let tunnels = self.tunnels();
        let lacks_routes = Family::BOTH.into_iter().all(|family| self.lacks_marked_routes(family));
        let standing = Standing { desired, virtuals: &self.virtuals, routes: &self.routes, tunnels: &tunnels };
        let may_go = |object: &Object, _: &BlockMap<Object, Content>| match object {
            Object::Set(_) | Object::Counter(_) => false,
            object if set_of_chain(object).is_some() => false,
            object if is_chain(object) => lacks_routes,
            object if of_given_mark(object).is_some() => false,
            object => Set::of_object(object).is_none_or(|place| standing.marks_nothing(&place)),
        };
        let enters = |object: &Object| matches!(set_of_chain(object), Some((_, None)));
        self.table.shrink_those(&desired.table, at, may_go, |object| !enters(object));
        self.shrink_entrances(desired, at);
        self.shrink_given_marks(desired, at);
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
            // One of both families that goes too still jumps to it.
            let is_entered =
                |other: &Object| set_of_chain(other) == Some((its, None)) && !desired.table.contains_key(other);
            let family = family.filter(|_| !seen.keys().chain(&doubtful).any(is_entered));
            let restricts = |object: &Object| {
                let place = Set::of_object(object);
                place.is_some_and(|(set, entry)| set == its && family.is_none_or(|family| family == entry.family()))
            };
            !seen.keys().chain(&doubtful).any(restricts)
        });
        self.table.shrink_where(&desired.table, at, |object, seen| {
            let (Object::Set(name) | Object::Counter(name)) = object else { return false };
            // A chain that goes too still names it.
            let names_sets = |other: &Object| set_of_chain(other).is_some() || is_chain(other);
            let is_named = |other: &Object| names_sets(other) && !desired.table.contains_key(other);
            !seen.keys().chain(&doubtful).any(is_named)
                && !seen.keys().any(|other| matches!(other, Object::Element(set, _) if set == name))
        });
    }

    /// Has packets that IPVS sends on keep marks that no packet is given any more, and that no virtual service has.
    fn shrink_given_marks(&mut self, desired: &Desired, at: Moment) {
        let tunnels = self.tunnels();
        let given: BTreeSet<u32> = tunnels.given().values().copied().collect();
        let (virtuals, is_known) = (&self.virtuals, self.knows_given_marks());
        let may_go = |mark: u32| {
            let mut keys = Family::BOTH.into_iter().map(|family| ServiceKey::Mark { mark, family });
            is_known && !given.contains(&mark) && keys.all(|key| virtuals.lacks(key..=key))
        };
        self.table.shrink_where(&desired.table, at, |object, _| of_given_mark(object).is_some_and(may_go));
    }

    /// Has packets no longer enter chains that drop clients of a family in which no Service is restricted any more.
    fn shrink_entrances(&mut self, desired: &Desired, at: Moment) {
        let known = self.table.seen().into_iter().flat_map(|seen| seen.keys()).chain(self.table.doubts());
        let surplus = known.filter(|object| !desired.table.contains_key(object)).filter_map(Set::of_object);
        let restricting: BTreeSet<Set> = surplus.map(|(set, _)| set).collect();
        let may_lessen =
            |object: &Object| matches!(set_of_chain(object), Some((its, None)) if !restricting.contains(&its));
        self.table.shrink_those(&desired.table, at, |_, _| false, may_lessen);
    }
}

/// Returns the desired table with these chains in place of its own.
fn with_chains<'a>(
    table: &'a BlockMap<Object, Content>,
    chains: &[(Object, Content)],
) -> Cow<'a, BlockMap<Object, Content>> {
    let mut want = Cow::Borrowed(table);
    for (object, chain) in chains {
        want.to_mut().insert(object.clone(), chain.clone());
    }
    want
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

/// Returns whether an object of our table may mark packets now. While it is not known which marks packets are given the chains wait too: they mark all packets to
/// an address in tunnel mode for its other ports, over what the other backend's rules gave them.
fn may_mark(object: &Object, held: &HeldMarks) -> bool {
    match port_of_mark(object) {
        Some(port) => !held.has(&port),
        None => !matches!(held, HeldMarks::All) || !is_chain(object),
    }
}

/// Returns whether a virtual service for a mark stands at an address.
fn any_marked<V: Target<Key = ServiceKey, Value = Virtual>>(
    desired: &Desired,
    virtuals: &InBlocks<V>,
    address: IpAddr,
) -> bool {
    desired.marks.range(services_on(address)).any(|(port, _)| virtuals.has(&desired.kernel_key(port)))
}

/// The objects that elements depend on.
struct Standing<'a, V: Target, R: Target> {
    desired: &'a Desired,
    virtuals: &'a InBlocks<V>,
    routes: &'a InBlocks<R>,
    tunnels: &'a Tunnels,
}

impl<V, R> Standing<'_, V, R>
where
    V: Target<Key = ServiceKey, Value = Virtual>,
    R: Target<Key = RouteKey, Value = Arc<Route>>,
{
    /// Returns whether an element may go: the kernel has nothing that it marks as ours, lets in, or closes. Source ranges go later.
    fn marks_nothing(&self, (set, entry): &(Set, Entry)) -> bool {
        let (virtuals, routes) = (self.virtuals, self.routes);
        let lacks_route = |route: RouteKey| routes.lacks(route.clone()..=route);
        match (*set, entry) {
            (Set::ServicePorts, entry) => port(entry).is_none_or(|port| self.possible(&port).is_empty()),
            (Set::TunnelPorts, entry) => {
                let is_marked = |key: &ServiceKey| matches!(key, ServiceKey::Mark { .. });
                port(entry).is_none_or(|port| !self.possible(&port).iter().any(is_marked))
            }
            (Set::ServiceAddresses, &Entry::Ip(address)) => {
                let is_marked = |port: &ServiceKey| !self.possible(port).is_empty();
                virtuals.lacks(services_on(address))
                    && !self.tunnels.on(address).any(is_marked)
                    && lacks_route(local_route_key(address))
                    && lacks_route(marked_route_key(address))
            }
            (Set::TunnelAddresses, &Entry::Ip(address)) => lacks_route(marked_route_key(address)),
            (Set::Restricted | Set::InsideOnly, entry) => port(entry).is_none_or(|port| {
                // One that still has the endpoints of the restricted Service would open them.
                let wanted = self.desired.virtual_of(&port);
                let is_another = |key: &ServiceKey| {
                    let is_desired = *key == self.desired.kernel_key(&port);
                    let is_as_desired = virtuals.seen().and_then(|seen| seen.get(key)) == wanted;
                    is_desired && is_as_desired && !virtuals.is_doubtful(key)
                };
                self.possible(&port).iter().all(|key| wanted.is_some() && is_another(key))
            }),
            (Set::AllowedSources, _) => false,
            _ => true,
        }
    }

    /// Returns the virtual services of a port that may be there: that of its address, and those for its marks.
    fn possible(&self, port: &ServiceKey) -> Vec<ServiceKey> {
        let is_its = |key: &ServiceKey| self.desired.marked.get(key).is_none_or(|its| its == port);
        let marked =
            self.tunnels.on_port(port).then(|| self.tunnels.marks_of(port)).into_iter().flatten().filter(is_its);
        [*port].into_iter().chain(marked).filter(|key| !self.virtuals.lacks(*key..=*key)).collect()
    }
}
