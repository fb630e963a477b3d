//! Looks at the kernel after every single act of a round, and writes down what must never be seen.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use sluice::kernel::ipset::Entry;
use sluice::kernel::ipvs::{ServiceKey, Virtual};
use sluice::kernel::nftables::{Content, Object as InTable};
use sluice::kernel::route::{RouteKey, TABLE_LOCAL};
use sluice::model::Authority;
use sluice::net::{Family, Protocol};
use sluice::proxy::desired::Desired;
use sluice::proxy::dsr::rules::{is_rule, policy_rule};
use sluice::proxy::marks::{marks_of, port};
use sluice::proxy::names::{CHAIN_GUARD, DSR_TABLE, NFT_GUARD, Set};
use sluice::proxy::source_ranges::restricted_by;
use sluice::proxy::unallocated;
use sluice::proxy::unjudged::Waiting;
use sluice::reconcile::Sorted;

use crate::damage::Hurt;
use crate::support::memory::{Object, State};
use crate::support::packet::{self, End};

/// Check of each step of a round, with the violations found.
#[derive(Clone, Default)]
pub struct Watch(Rc<RefCell<Round>>);

/// States that a round may pass through, and the violations seen in it.
#[derive(Default)]
struct Round {
    before: State,
    authority: Option<Authority>,
    /// Where connections ended before the round.
    ends_before: BTreeMap<ServiceKey, BTreeSet<SocketAddr>>,
    /// Where they shall end.
    ends_after: BTreeMap<ServiceKey, BTreeSet<SocketAddr>>,
    /// Those that work before and shall work after.
    stable: Vec<ServiceKey>,
    /// The same for pods of this node.
    stable_for_pods: Vec<ServiceKey>,
    /// Those that a client outside of all source ranges does not reach before and shall not after.
    closed: Vec<ServiceKey>,
    guarded: bool,
    /// The services that shall have some clients only.
    restricted: BTreeSet<Entry>,
    /// The services that shall be open to other nodes' clients too.
    open: BTreeSet<Entry>,
    /// The addresses of all Services that are known.
    addresses: BTreeSet<Entry>,
    /// Addresses that the device itself needs.
    of_device: BTreeSet<IpAddr>,
    /// Virtual services of others.
    foreign: BTreeSet<ServiceKey>,
    last: BTreeMap<ServiceKey, Virtual>,
    /// Endpoints that have to wait for the firewall, by port, and the ports of the desired marks.
    held_back: Waiting,
    marked: BTreeMap<ServiceKey, ServiceKey>,
    /// Damaged addresses, of which no order can be asked until they are repaired.
    excused: BTreeSet<IpAddr>,
    everything_excused: bool,
    seen: Vec<String>,
    /// The acts of the round, to be told.
    acts: Vec<String>,
    pub checked: u64,
}

impl Watch {
    /// A round begins.
    pub fn begin(&self, state: &State, foreign: &State, desired: &Desired, authority: Authority) {
        let mut round = self.0.borrow_mut();
        round.before = state.clone();
        round.authority = Some(authority);
        round.of_device = desired.addresses.keys().map(|key| key.address.addr()).collect();
        round.foreign = foreign.virtuals.keys().copied().collect();
        round.last = state.virtuals.clone();
        let elements = desired.elements.keys().filter_map(Set::of_element);
        let all = elements.chain(desired.table.keys().filter_map(Set::of_object));
        let all: Vec<(Set, Entry)> = all.collect();
        let of = |wanted: Set| all.iter().filter(move |(set, _)| *set == wanted).map(|(_, entry)| entry.clone());
        round.restricted = of(Set::Restricted).collect();
        round.open = of(Set::ServicePorts).collect();
        round.addresses = of(Set::ServiceAddresses).collect();
        let inside: BTreeSet<Entry> = of(Set::InsideOnly).collect();
        round.open.retain(|entry| !inside.contains(entry));
        round.guarded = desired.rules.keys().any(|piece| piece.to_string().contains(CHAIN_GUARD))
            || desired.table.contains_key(&InTable::Chain(NFT_GUARD.into()));
        let after = State {
            virtuals: tree(&desired.virtuals),
            elements: tree(&desired.elements),
            rules: desired.rules.clone(),
            proxy_table: tree(&desired.table),
            policy_rules: foreign
                .policy_rules
                .keys()
                .chain(desired.policy_rules.keys())
                .map(|rule| (*rule, ()))
                .collect(),
            routes: foreign.routes.iter().chain(desired.routes.iter()).map(|(k, r)| (k.clone(), r.clone())).collect(),
            ..State::default()
        };
        let keys: BTreeSet<ServiceKey> = packet::ports(state).into_iter().chain(packet::ports(&after)).collect();
        let is_open = |state: &State, key| matches!(packet::end_of_stranger(state, key), End::Backends(_));
        // What others serve is closed by nobody's source ranges, but may be by a guard that was damaged.
        let ours = keys.into_iter().filter(|key| !round.foreign.contains(key));
        // Only where source ranges close it: an address without a route is another matter.
        let is_dropped = |state: &State, key| packet::end_of_stranger(state, key) == End::Dropped;
        let closed = |key: &ServiceKey| !is_open(state, *key) && !is_open(&after, *key);
        let by_ranges = |key: &ServiceKey| is_dropped(state, *key) || is_dropped(&after, *key);
        round.closed = ours.filter(|key| closed(key) && by_ranges(key)).collect();
        let serves_pods = |state: &State, key| matches!(packet::end_of_pod(state, key), End::Backends(_));
        let of_both =
            packet::ports(state).into_iter().filter(|key| serves_pods(state, *key) && serves_pods(&after, *key));
        round.stable_for_pods = of_both.collect();
        round.ends_before = ends(state);
        round.ends_after = ends(&after);
        let before: BTreeSet<ServiceKey> = round.ends_before.keys().copied().collect();
        round.stable = round.ends_after.keys().filter(|key| before.contains(key)).copied().collect();
        // A mark that becomes another Service's is nobody's for a moment.
        let mark = |state: &State, key| packet::mark(state, key).filter(|it| state.virtuals.contains_key(it));
        let is_remarked = |key: &ServiceKey| match (mark(state, *key), mark(&after, *key)) {
            (Some(before), Some(_)) => desired.marked.get(&before).is_some_and(|its| its != key),
            _ => false,
        };
        round.stable.retain(|key| !is_remarked(key));
        round.stable_for_pods.retain(|key| !is_remarked(key));
        for (port, ends) in unfound(state, desired) {
            round.ends_before.entry(port).or_insert(ends);
        }
    }

    /// The same, with the endpoints that have to wait for the firewall.
    pub fn hold_back(&self, held_back: Waiting, marked: &BTreeMap<ServiceKey, ServiceKey>) {
        let mut round = self.0.borrow_mut();
        (round.held_back, round.marked) = (held_back, marked.clone());
        // Endpoints that left are judged by no firewall, so nobody takes connections where all that come in their place have to wait.
        let refuse: BTreeSet<ServiceKey> =
            round.held_back.keys().filter(|port| round.is_refused_for_now(port)).copied().collect();
        round.stable.retain(|port| !refuse.contains(port));
        round.stable_for_pods.retain(|port| !refuse.contains(port));
    }

    /// Something of ours was damaged by others.
    pub fn excuse(&self, hurt: &Hurt) {
        let mut round = self.0.borrow_mut();
        match hurt {
            Hurt::Address(address) => {
                round.excused.insert(*address);
            }
            Hurt::Everything => round.everything_excused = true,
        }
    }

    /// All damage is repaired.
    pub fn all_repaired(&self) {
        let mut round = self.0.borrow_mut();
        round.excused.clear();
        round.everything_excused = false;
    }

    /// Whether something is damaged and not yet repaired.
    pub fn is_damaged(&self) -> bool {
        let round = self.0.borrow();
        round.everything_excused || !round.excused.is_empty()
    }

    /// One act has just been done.
    pub fn acted(&self, state: &State, object: &Object) {
        let mut round = self.0.borrow_mut();
        round.checked += 1;
        let exists = round.exists(state, object);
        round.acts.push(format!("{}{object}", if exists { "+" } else { "-" }));
        let leads =
            |family: &Family| state.policy_rules.contains_key(&policy_rule(*family)) && has_default(state, *family);
        if let Some(family) = Family::BOTH.iter().find(|family| leads(family)) {
            round.seen.push(format!("packets of {family} that others mark end here, after {object}"));
        }
        if !round.everything_excused {
            let mut seen = round.wrong_order(state, object);
            seen.extend(round.shrinking(state, object));
            seen.extend(round.unreachable(state, object));
            seen.extend(round.used_too_early(state, object));
            round.seen.extend(seen);
        }
        if let Object::Virtual(key) = object {
            match state.virtuals.get(key) {
                Some(found) => round.last.insert(*key, found.clone()),
                None => round.last.remove(key),
            };
        }
    }

    pub fn take_acts(&self) -> Vec<String> {
        std::mem::take(&mut self.0.borrow_mut().acts)
    }

    pub fn take_seen(&self) -> Vec<String> {
        std::mem::take(&mut self.0.borrow_mut().seen)
    }

    pub fn checked(&self) -> u64 {
        self.0.borrow().checked
    }
}

impl Round {
    /// A thing without what it needs.
    fn wrong_order(&self, state: &State, object: &Object) -> Vec<String> {
        let mut seen = Vec::new();
        match object {
            Object::Virtual(key) => {
                let ServiceKey::Address { address, protocol, port } = *key else { return self.marked(state, key) };
                if self.excused.contains(&address) {
                    return seen;
                }
                let exists = state.virtuals.contains_key(key);
                if exists && !has_port_element(state, address, protocol, port) {
                    seen.push(format!("{key} stands without its element"));
                }
                if !exists && self.last.contains_key(key) && self.is_routed_to_nothing(state, address) {
                    seen.push(format!("{key} went, and its address is still routed to this host"));
                }
            }
            Object::Route(key)
                if [TABLE_LOCAL, DSR_TABLE.table].contains(&key.table) && state.routes.contains_key(key) =>
            {
                let address = key.destination.addr();
                if self.excused.contains(&address) || self.of_device.contains(&address) {
                    return seen;
                }
                if !self.before.routes.contains_key(key) && self.is_routed_to_nothing(state, address) {
                    seen.push(format!("route {key} stands before its virtual service"));
                }
                if self.guarded && !has_address_element(state, address) {
                    seen.push(format!("route {key} stands, and the guard does not know its address"));
                }
            }
            Object::Rule(piece) if unallocated::is_rule(piece) && state.rules.contains_key(piece) => {
                seen.extend(self.refuses_too_early(state, object));
            }
            Object::InTable(key) if unallocated::is_chain(key) && state.proxy_table.contains_key(key) => {
                seen.extend(self.refuses_too_early(state, object));
            }
            Object::Element(key) if !state.elements.contains_key(key) => {
                seen.extend(Set::of_element(key).and_then(|place| self.element_gone(state, place)));
            }
            Object::InTable(key) if !state.proxy_table.contains_key(key) => {
                seen.extend(Set::of_object(key).and_then(|place| self.element_gone(state, place)));
            }
            _ => {}
        }
        seen
    }

    /// Cluster IPs that no Service has begin to be refused, and some may have one.
    fn refuses_too_early(&self, state: &State, object: &Object) -> Option<String> {
        let is_narrower = match object {
            Object::Rule(piece) => {
                let before = self.before.rules.get(piece).map_or(&[][..], |rules| &rules.0);
                state.rules.get(piece).is_some_and(|now| now.0.iter().all(|rule| before.contains(rule)))
            }
            Object::InTable(chain) => match (self.before.proxy_table.get(chain), state.proxy_table.get(chain)) {
                (Some(Content::Chain(before)), Some(Content::Chain(now))) => {
                    now.rules.iter().all(|rule| before.rules.contains(rule))
                }
                _ => false,
            },
            _ => false,
        };
        if is_narrower {
            return None;
        }
        if self.authority != Some(Authority::Complete) {
            return Some(format!("{object} came, and there may be Services that are not known"));
        }
        let lacks = |entry: &&Entry| match entry {
            Entry::Ip(address) => !self.excused.contains(address) && !has_address_element(state, *address),
            _ => false,
        };
        self.addresses.iter().find(lacks).map(|entry| format!("{object} came, and would refuse {entry}"))
    }

    /// A virtual service for a mark came or went.
    fn marked(&self, state: &State, key: &ServiceKey) -> Vec<String> {
        let exists = state.virtuals.contains_key(key);
        let its: Vec<ServiceKey> =
            packet::ports(state).into_iter().filter(|port| marks_of(port).any(|it| it == *key)).collect();
        let mut seen = Vec::new();
        if exists && !self.before.virtuals.contains_key(key) && its.is_empty() {
            seen.push(format!("{key} stands without its element"));
        }
        for port in its.iter().filter(|port| !self.is_excused(port)) {
            let ServiceKey::Address { address, .. } = *port else { continue };
            if !exists && self.last.contains_key(key) && self.is_routed_to_nothing(state, address) {
                seen.push(format!("{key} went, and {address} is still routed to this host"));
            }
        }
        seen
    }

    /// An element went that something needs, and that the other backend has not either.
    fn element_gone(&self, state: &State, place: (Set, Entry)) -> Option<String> {
        match place {
            (Set::ServicePorts, Entry::IpPort(address, protocol, port)) => {
                let service = ServiceKey::Address { address, protocol, port };
                let stands = state.virtuals.contains_key(&service) && !self.excused.contains(&address);
                let is_lost = stands && !has_port_element(state, address, protocol, port);
                is_lost.then(|| format!("the element of {service} went before it"))
            }
            (Set::TunnelPorts, entry) => {
                let port = port(&entry)?;
                let stands = marks_of(&port).find(|key| state.virtuals.contains_key(key) && self.is_lost(state, key));
                let stands = stands.filter(|_| !self.is_excused(&port))?;
                Some(format!("the element of {port} went before {stands}"))
            }
            (Set::TunnelAddresses, Entry::Ip(address)) => {
                let is_marked = our_route_in(state, address, DSR_TABLE.table) && !self.excused.contains(&address);
                let is_lost = is_marked && !has(state, Set::TunnelAddresses, Entry::Ip(address));
                is_lost.then(|| format!("{address} has a route for marked packets, and they get no mark"))
            }
            (Set::ServiceAddresses, Entry::Ip(address)) => {
                let used =
                    !self.excused.contains(&address) && (self.has_virtual(state, address) || our_route(state, address));
                let is_lost = used && !has_address_element(state, address);
                is_lost.then(|| format!("{address} is in use and left the set of service addresses"))
            }
            _ => None,
        }
    }

    fn exists(&self, state: &State, object: &Object) -> bool {
        match object {
            Object::Link(key) => state.links.contains_key(key),
            Object::Setting(key) => state.settings.contains_key(key),
            Object::Set(key) => state.sets.contains_key(key),
            Object::Element(key) => state.elements.contains_key(key),
            Object::Rule(key) => state.rules.contains_key(key),
            Object::InTable(key) => state.proxy_table.contains_key(key),
            Object::Virtual(key) => state.virtuals.contains_key(key),
            Object::Route(key) => state.routes.contains_key(key),
            Object::PolicyRule(key) => state.policy_rules.contains_key(key),
            Object::Address(key) => state.addresses.contains_key(key),
            Object::Passage(key) => state.passages.contains_key(key),
            Object::HairpinPorts(key) => state.hairpin_ports.contains_key(key),
            Object::Bridge(_)
            | Object::Tunnel(_)
            | Object::OverlayDevice(_)
            | Object::OverlayEntry(_)
            | Object::WireguardDevice(_)
            | Object::WireguardPeer(_)
            | Object::ReceivePort(_)
            | Object::SourceRule(_) => {
                unreachable!("the service proxy has none of these")
            }
        }
    }

    /// Whether it is a source range that a known Service no longer names.
    fn is_taken_away(&self, object: &Object) -> bool {
        let place = match object {
            Object::Element(key) => Set::of_element(key),
            Object::InTable(key) => Set::of_object(key),
            _ => None,
        };
        if let Some((Set::InsideOnly, entry)) = &place {
            return self.authority == Some(Authority::Partial) && self.open.contains(entry);
        }
        let service = place.filter(|(set, _)| *set == Set::AllowedSources);
        let service = service.and_then(|(_, entry)| restricted_by(&entry));
        self.authority == Some(Authority::Partial) && service.is_some_and(|entry| self.restricted.contains(&entry))
    }

    /// A loss that the authority does not allow.
    fn shrinking(&self, state: &State, object: &Object) -> Option<String> {
        let ceases_to_refuse = match object {
            Object::Rule(piece) => unallocated::is_rule(piece),
            Object::InTable(object) => unallocated::is_chain(object),
            _ => false,
        };
        let may_cease = ceases_to_refuse && self.authority != Some(Authority::Nothing);
        if self.authority == Some(Authority::Complete) || may_cease || self.is_taken_away(object) {
            return None;
        }
        let remembered = self.authority == Some(Authority::Remembered);
        let (is, was) = match object {
            Object::Setting(_) => return None,
            Object::Link(key) => (state.links.contains_key(key), false),
            Object::Set(key) => (state.sets.contains_key(key), self.before.sets.contains_key(key)),
            Object::Element(key) => (state.elements.contains_key(key), self.before.elements.contains_key(key)),
            Object::Rule(key) => (state.rules.contains_key(key), self.before.rules.contains_key(key)),
            Object::InTable(key) => (state.proxy_table.contains_key(key), self.before.proxy_table.contains_key(key)),
            Object::Route(key) => (state.routes.contains_key(key), self.before.routes.contains_key(key)),
            Object::PolicyRule(key) => (state.policy_rules.contains_key(key), false),
            Object::Address(key) => (state.addresses.contains_key(key), self.before.addresses.contains_key(key)),
            Object::Passage(key) => (state.passages.contains_key(key), self.before.passages.contains_key(key)),
            Object::HairpinPorts(key) => (state.hairpin_ports.contains_key(key), false),
            Object::Bridge(_)
            | Object::Tunnel(_)
            | Object::OverlayDevice(_)
            | Object::OverlayEntry(_)
            | Object::WireguardDevice(_)
            | Object::WireguardPeer(_)
            | Object::ReceivePort(_)
            | Object::SourceRule(_) => {
                unreachable!("the service proxy has none of these")
            }
            Object::Virtual(key) => {
                if let (Some(old), Some(new)) = (self.last.get(key), state.virtuals.get(key)) {
                    let kept = |d: &SocketAddr| new.destinations.iter().any(|new| new.address == *d);
                    let lost = old.destinations.iter().map(|d| d.address).find(|address| !kept(address));
                    if let Some(lost) = lost {
                        return Some(format!("{key} lost {lost} although not everything is known"));
                    }
                }
                // One that serves nobody has nothing to lose, and may get destinations; nothing else of it changes.
                let now = state.virtuals.get(key);
                let is_other = |held: &Virtual| {
                    !held.destinations.is_empty() || now.is_some_and(|now| now.service != held.service)
                };
                (now.is_some(), self.before.virtuals.get(key).is_some_and(is_other))
            }
        };
        if !is {
            return Some(format!("{object} went although not everything is known"));
        }
        (was && remembered).then(|| format!("{object} changed on the word of a remembered cluster"))
    }

    /// A connection that worked before and shall work after, and does not now; or one to a place that neither knows.
    fn unreachable(&self, state: &State, object: &Object) -> Vec<String> {
        let mut seen = Vec::new();
        for key in self.stable.iter().filter(|key| !self.is_excused(key)) {
            if !matches!(packet::end(state, *key), End::Backends(_)) {
                seen.push(format!("connections to {key} end at {:?}, after {object}", packet::end(state, *key)));
            }
        }
        for key in self.closed.iter().filter(|key| !self.is_excused(key)) {
            if let End::Backends(ends) = packet::end_of_stranger(state, *key) {
                seen.push(format!("connections to {key} from anywhere end at {ends:?}, after {object}"));
            }
        }
        for key in self.stable_for_pods.iter().filter(|key| !self.is_excused(key)) {
            let end = packet::end_of_pod(state, *key);
            if !matches!(end, End::Backends(_)) {
                seen.push(format!("connections of pods to {key} end at {end:?}, after {object}"));
            }
        }
        // What others serve, a guard that was damaged may have closed until it goes.
        for key in services_of(state, object).iter().filter(|key| !self.foreign.contains(key)) {
            let End::Backends(now) = packet::end(state, *key) else { continue };
            let known = |backend: &SocketAddr| {
                let among = |ends: &BTreeMap<ServiceKey, BTreeSet<SocketAddr>>| {
                    ends.get(key).is_some_and(|ends| ends.contains(backend))
                };
                among(&self.ends_before) || among(&self.ends_after)
            };
            if let Some(stranger) = now.iter().find(|backend| !known(backend)).filter(|_| !self.is_excused(key)) {
                seen.push(format!("connections to {key} may end at {stranger}, which nobody asked for"));
            }
        }
        seen
    }

    /// Whether a port in tunnel mode, that was served so before, has lost all its endpoints and gets others, none of which was judged.
    fn is_refused_for_now(&self, port: &ServiceKey) -> bool {
        let (Some(held), Some(before), Some(after)) =
            (self.held_back.get(port), self.ends_before.get(port), self.ends_after.get(port))
        else {
            return false;
        };
        let was_tunnel = packet::mark(&self.before, *port).is_some_and(|mark| self.before.virtuals.contains_key(&mark));
        let have_left = before.iter().all(|end| !after.contains(end) && !held.judged.contains(end));
        was_tunnel && have_left && after.iter().all(|end| held.waiting.contains(end))
    }

    /// An endpoint begins to get connections through a tunnel and has to wait.
    fn used_too_early(&self, state: &State, object: &Object) -> Option<String> {
        let Object::Virtual(key @ ServiceKey::Mark { .. }) = object else { return None };
        let takes = |held: Option<&Virtual>| -> BTreeSet<SocketAddr> {
            let destinations = held.into_iter().flat_map(|held| held.destinations.iter());
            destinations.filter(|destination| destination.weight > 0).map(|destination| destination.address).collect()
        };
        let (before, now) = (takes(self.last.get(key)), takes(state.virtuals.get(key)));
        let is_its =
            |port: &&ServiceKey| self.marked.get(key) == Some(*port) || packet::mark(state, **port) == Some(*key);
        let ports = self.held_back.keys().filter(is_its).filter(|port| !self.is_excused(port));
        let mut held = ports.filter_map(|port| self.held_back.get(port)).flat_map(|held| &held.waiting);
        let early = held.find(|address| now.contains(address) && !before.contains(address))?;
        Some(format!("{early} gets connections through {key}, and the firewall has not judged it"))
    }

    fn has_virtual(&self, state: &State, address: IpAddr) -> bool {
        let on_it = |key: &ServiceKey| matches!(key, ServiceKey::Address { address: its, .. } if *its == address);
        let stands = |port: &ServiceKey| {
            state.virtuals.contains_key(port) || marks_of(port).any(|key| state.virtuals.contains_key(&key))
        };
        packet::ports(state).iter().any(|port| on_it(port) && stands(port) && !self.foreign.contains(port))
    }

    fn is_routed_to_nothing(&self, state: &State, address: IpAddr) -> bool {
        our_route(state, address) && !self.has_virtual(state, address)
    }

    /// Whether no port is left by which a virtual service for a mark is known to be ours.
    fn is_lost(&self, state: &State, key: &ServiceKey) -> bool {
        !self.foreign.contains(key) && !packet::ports(state).iter().any(|port| marks_of(port).any(|its| its == *key))
    }

    fn is_excused(&self, key: &ServiceKey) -> bool {
        matches!(key, ServiceKey::Address { address, .. } if self.excused.contains(address))
    }
}

/// The ports whose connections may end elsewhere by a change of this object.
fn services_of(state: &State, object: &Object) -> Vec<ServiceKey> {
    let place = match object {
        Object::Virtual(key @ ServiceKey::Mark { .. }) => {
            return packet::ports(state).into_iter().filter(|port| marks_of(port).any(|its| its == *key)).collect();
        }
        Object::Virtual(key) => return vec![*key],
        Object::Rule(piece) if is_rule(piece) => return packet::ports(state).into_iter().collect(),
        Object::Element(key) => Set::of_element(key),
        Object::InTable(key) => Set::of_object(key),
        _ => None,
    };
    match place {
        Some((Set::InsideOnly | Set::TunnelPorts | Set::TunnelAddresses, entry)) => port(&entry).into_iter().collect(),
        _ => Vec::new(),
    }
}

/// Where connections to each virtual service end that has backends.
fn ends(state: &State) -> BTreeMap<ServiceKey, BTreeSet<SocketAddr>> {
    let served = packet::ports(state).into_iter().filter_map(|key| match packet::end(state, key) {
        End::Backends(backends) => Some((key, backends)),
        _ => None,
    });
    served.collect()
}

/// What virtual services for marks have that no packet finds yet, because an earlier run ended before its packets were marked: of ports that
/// alone may have their marks.
fn unfound(state: &State, desired: &Desired) -> Vec<(ServiceKey, BTreeSet<SocketAddr>)> {
    let mut sharers: BTreeMap<ServiceKey, usize> = BTreeMap::new();
    if !desired.marks.is_empty() {
        packet::ports(state).iter().flat_map(marks_of).for_each(|mark| *sharers.entry(mark).or_default() += 1);
    }
    let of_port = |port: &ServiceKey| {
        let mark = desired.kernel_key(port);
        let found = state.virtuals.get(&mark).filter(|_| sharers.get(&mark) == Some(&1))?;
        Some((*port, found.destinations.iter().map(|destination| destination.address).collect()))
    };
    desired.marks.keys().filter_map(of_port).collect()
}

fn has_port_element(state: &State, address: IpAddr, protocol: Protocol, port: u16) -> bool {
    has(state, Set::ServicePorts, Entry::IpPort(address, protocol, port))
}

fn has_address_element(state: &State, address: IpAddr) -> bool {
    has(state, Set::ServiceAddresses, Entry::Ip(address))
}

/// Whether the set of either backend has this element.
fn has(state: &State, set: Set, entry: Entry) -> bool {
    state.proxy_table.contains_key(&set.object(&entry)) || state.elements.contains_key(&set.element(entry))
}

/// Whether the table of addresses in tunnel mode makes all of a family local, as kube-router's does.
fn has_default(state: &State, family: Family) -> bool {
    let is_its = |key: &RouteKey| key.table == DSR_TABLE.table && Family::from(key.destination) == family;
    state.routes.keys().any(|key| is_its(key) && key.destination.prefix_len() == 0)
}

fn our_route(state: &State, address: IpAddr) -> bool {
    [TABLE_LOCAL, DSR_TABLE.table].into_iter().any(|table| our_route_in(state, address, table))
}

fn our_route_in(state: &State, address: IpAddr, table: u32) -> bool {
    let is_ours = |key: &RouteKey| key.table == table && key.destination == Family::host_prefix(address);
    state.routes.iter().any(|(key, route)| {
        is_ours(key) && route.next_hops.iter().any(|hop| hop.link.0 == sluice::proxy::names::DEVICE)
    })
}

/// As the kernel in memory keeps it.
fn tree<K: Ord + Clone, V: Clone>(map: &impl Sorted<K, V>) -> BTreeMap<K, V> {
    map.entries().map(|(key, value)| (key.clone(), value.clone())).collect()
}
