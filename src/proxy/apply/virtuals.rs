//! The order in which virtual services, the routes that make their addresses local, and the rules that mark packets come and go.

use std::borrow::Cow;
use std::cell::LazyCell;
use std::net::IpAddr;

use super::elements::{drops_clients, has_element};
use super::packet_marks::{Tunnels, is_of_marks};
use super::standing::is_enforced;
use super::{Kernel, Mirrors};
use crate::kernel::iptables::Piece;
use crate::kernel::ipvs::{ServiceKey, Virtual};
use crate::kernel::route::{RouteKey, TABLE_LOCAL};
use crate::net::PerFamily;
use crate::packed::BlockMap;
use crate::proxy::desired::Desired;
use crate::proxy::dsr::rules::is_rule;
use crate::proxy::marks::{Marks, restriction};
use crate::proxy::names::Set;
use crate::proxy::plan::{local_route_key, marked_route_key, services_on};
use crate::reconcile::{Growth, MayGrow, Mirror, Moment, Reflection};

impl<K: Kernel> Mirrors<K> {
    /// Creates a virtual service once its element marks it as ours, of these alone. What the kernel refuses of one because of what is in it is left out.
    pub(super) fn grow_virtuals(
        &mut self,
        desired: &Desired,
        growth: Growth,
        at: Moment,
        among: impl Fn(&ServiceKey) -> bool,
    ) -> Vec<ServiceKey> {
        let mut changed = self.grow_virtuals_whole(desired, growth, at, &among);
        // A destination of a new one is refused after its scheduler.
        for _ in 0..2 {
            if !self.note_refused(desired, at, |key| *key) {
                break;
            }
            changed.extend(self.grow_virtuals_whole(desired, growth, at, &among));
        }
        changed
    }

    fn grow_virtuals_whole(
        &mut self,
        desired: &Desired,
        growth: Growth,
        at: Moment,
        among: impl Fn(&ServiceKey) -> bool,
    ) -> Vec<ServiceKey> {
        if !self.learn_virtuals(desired, at) {
            return Vec::new();
        }
        // Also what others changed: clients of a service that they deleted have flows that are not translated.
        self.virtuals.unsettled().into_iter().flatten().for_each(|key| self.udp.mark(*key));
        if let Some(seen) = self.virtuals.seen() {
            self.udp.note_before(seen, self.virtuals.postponed());
        }
        let for_now = self.virtuals_for_now(desired);
        let mut waiting = self.waiting_for_routes(desired);
        let mut anothers = self.given_to_others(desired);
        if self.lacks_rules {
            anothers.extend(desired.marked.keys());
        }
        waiting.extend(&anothers);
        if !self.knows_given_marks() {
            // They may be given to others.
            waiting.extend(desired.marked.keys());
        }
        let tunnels = if desired.marked.is_empty() { Tunnels::default() } else { self.tunnels() };
        let marks = Marks::<K> { elements: &self.elements, table: &self.table };
        let all = marks.are_settled() && self.rules.is_settled();
        let rules = &self.rules;
        let is_closed = |port: &ServiceKey| is_closed(&marks, rules, desired, port);
        let is_ours = |key: &ServiceKey, port: &ServiceKey| {
            // One for a mark that packets are not given nobody could tell from another program's while it is empty.
            let is_known = key == port || (marks.has_tunnel(port) && tunnels.gives_any(port));
            marks.has_service(port) && is_known && is_closed(port)
        };
        let may_come = |key: &ServiceKey| {
            let is_ours = || desired.port_of(key).is_some_and(|port| is_ours(key, &port));
            among(key) && !waiting.contains(key) && (all || is_ours())
        };
        // One that is open still gets no new destination.
        let is_open = |key: &ServiceKey| desired.port_of(key).is_some_and(|port| !is_closed(&port));
        let may_change = |key: &ServiceKey| among(key) && !anothers.contains(key) && (all || !is_open(key));
        let may = MayGrow { come: may_come, change: may_change };
        let changed = self.virtuals.grow_those(&for_now, growth, at, may);
        self.mark_held_back(desired);
        changed
    }

    /// Returns whether a port is closed to all but those who shall come in.
    pub(super) fn is_closed(&self, desired: &Desired, port: &ServiceKey) -> bool {
        is_closed(&self.marks(), &self.rules, desired, port)
    }

    /// Makes a service address local once it is in the guard's set and a virtual service exists for it.
    pub(super) fn grow_routes(&mut self, desired: &Desired, growth: Growth, at: Moment) {
        if self.routes.is_settled() {
            return;
        }
        let (held, answering) = (self.held_by_tunnels(desired), self.answering_tunnels(desired));
        let (marks, virtuals) = (Marks::<K> { elements: &self.elements, table: &self.table }, &self.virtuals);
        let all = marks.are_settled() && virtuals.is_settled();
        self.routes.grow_where(&desired.routes, growth, at, |key| {
            if all {
                return true;
            }
            let address = key.destination.addr();
            let by_address = || virtuals.seen().is_some_and(|seen| seen.range(services_on(address)).next().is_some());
            let is_held = key.table == TABLE_LOCAL && held.contains(&address);
            let is_the_devices = desired.addresses.keys().any(|key| key.address.addr() == address);
            let answers = answering.contains(&address) || by_address();
            is_the_devices || (!is_held && answers && marks.has_address(address))
        });
    }

    /// Deletes the last virtual service of an address after its local route.
    pub(super) fn shrink_virtuals(&mut self, desired: &Desired, at: Moment) -> Vec<ServiceKey> {
        if self.virtuals.is_settled() || !self.learn_virtuals(desired, at) {
            return Vec::new();
        }
        let for_now = self.virtuals_for_now(desired);
        // Asked where a virtual service goes, which a change of endpoints does not make.
        let marks = Marks::<K> { elements: &self.elements, table: &self.table };
        let tunnels = LazyCell::new(|| Tunnels::seen(&marks, &self.rules, self.marked_elsewhere.as_ref()));
        let (routes, keeps_marked) = (&self.routes, self.lacks_rules);
        let is_known = |key: &ServiceKey| !keeps_marked || matches!(key, ServiceKey::Address { .. });
        let backlog = &self.backlog;
        let may_lessen = |key: &ServiceKey| is_known(key) && !backlog.keeps_former(key);
        let may_go = |key: &ServiceKey, seen: &BlockMap<ServiceKey, Virtual>| {
            let is_free = |address: IpAddr| {
                let mut others = desired.virtuals_on(address).map(|(port, _)| desired.kernel_key(&port));
                let lacks = |route: RouteKey| routes.lacks(route.clone()..=route);
                lacks(local_route_key(address)) && lacks(marked_route_key(address))
                    || others.any(|key| seen.contains_key(&key))
            };
            is_known(key) && tunnels.lets_go(desired, seen, key) && tunnels.addresses_of(key).into_iter().all(is_free)
        };
        let gone = self.virtuals.shrink_those(&for_now, at, may_go, may_lessen);
        self.mark_held_back(desired);
        gone
    }

    /// Deletes rules, those that mark packets after the routes that these find.
    pub(super) fn shrink_rules(&mut self, desired: &Desired, at: Moment) {
        if self.rules.is_settled() {
            return;
        }
        let still_marked = self.still_marked(desired);
        let lacks_routes = PerFamily::from_fn(|family| self.lacks_marked_routes(family));
        let may_unmark = |family| !still_marked.iter().any(|port| port.family() == family);
        let finds_none =
            |piece: &Piece| *lacks_routes.of(piece.family()) && (may_unmark(piece.family()) || !is_of_marks(piece));
        let may_go = |piece: &Piece| !drops_clients(piece) && (!is_rule(piece) || finds_none(piece));
        let rules = self.rules_without_marks(desired, &still_marked);
        self.rules.shrink_those(&*rules, at, |piece, _| may_go(piece), |_| true);
        if let Cow::Owned(rules) = &rules {
            rules.keys().filter(|piece| is_of_marks(piece)).for_each(|chain| self.rules.mark(chain.clone()));
        }
    }
}

/// One that has some clients only is open to nobody else for no moment.
fn is_closed<K: Kernel>(marks: &Marks<'_, K>, rules: &Mirror<K::Rules>, desired: &Desired, port: &ServiceKey) -> bool {
    let Some(entry) = restriction(port) else { return true };
    let mut closing = Set::CLOSING.into_iter().filter(|set| has_element(desired, *set, &entry));
    closing.all(|set| is_enforced(marks, rules, desired, set, &entry))
}
