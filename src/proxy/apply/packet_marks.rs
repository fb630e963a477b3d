//! The marks that packets are given, and the order in which they become others.
//!
//! Where a mark becomes another port's, its virtual service is deleted before packets to that port get the mark: nobody's connections go to
//! another Service's endpoints for any moment. Packets to a port with another mark get that when its virtual service stands. Each port waits by itself ([`HeldMarks`]):
//! what cannot be brought about for one concerns those alone that want its mark.
//!
//! A virtual service for a mark is ours if packets to a port of the set of ports in tunnel mode are given the mark, or may have been: a process may have ended
//! between giving a port another mark and deleting the virtual service for the former one.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Kernel, Mirrors};
use crate::kernel::iptables::{Piece, Rule, Rules};
use crate::kernel::ipvs::{ServiceKey, Virtual};
use crate::kernel::nftables::{Content, Object};
use crate::model::Authority;
use crate::net::Family;
use crate::packed::BlockMap;
use crate::proxy::desired::{Desired, keyed};
use crate::proxy::dsr::rules::{self, marking_chain, unmarking_chain};
use crate::proxy::marks::{MarkedElsewhere, Marks, marks_of, port, restriction};
use crate::proxy::names::Set;
use crate::proxy::plan::{address_of, services_on};
use crate::proxy::unallocated;
use crate::reconcile::{Growth, Mirror, Moment};

/// The ports in tunnel mode, as last seen in the kernel, by address, protocol and port.
#[derive(Default)]
pub(super) struct Tunnels {
    ports: BTreeSet<ServiceKey>,
    /// The marks that packets to them get.
    given: BTreeMap<ServiceKey, u32>,
    /// The marks that rules give which kube-router left, beside those.
    left: BTreeMap<ServiceKey, u32>,
    /// The marks that the other backend gives, until it is replaced.
    elsewhere: BTreeMap<ServiceKey, u32>,
    /// The ports that may have a mark, found out once where anybody asks.
    by_mark: OnceCell<BTreeMap<ServiceKey, Vec<ServiceKey>>>,
}

/// The ports whose packets keep the mark that they have, or get none yet.
pub(super) enum HeldMarks {
    All,
    These(BTreeSet<ServiceKey>),
}

impl HeldMarks {
    pub(super) fn has(&self, port: &ServiceKey) -> bool {
        match self {
            HeldMarks::All => true,
            HeldMarks::These(ports) => ports.contains(port),
        }
    }

    pub(super) fn is_any(&self) -> bool {
        !matches!(self, HeldMarks::These(ports) if ports.is_empty())
    }
}

impl Tunnels {
    /// Returns them by the elements, the rules and what the other backend marks.
    pub(super) fn seen<K: Kernel>(
        marks: &Marks<'_, K>,
        rules: &Mirror<K::Rules>,
        elsewhere: Option<&MarkedElsewhere>,
    ) -> Tunnels {
        let mut given = marks.in_map();
        let mut ports = marks.tunnel_ports(&given);
        let rules = rules.seen();
        let chains = Family::BOTH.into_iter().filter_map(|family| rules?.get(&marking_chain(family)));
        given.extend(chains.flat_map(rules::marks_of));
        let left = rules.into_iter().flat_map(|rules| rules.keys()).filter_map(rules::left_mark).collect();
        let mut given_elsewhere = BTreeMap::new();
        if let Some(MarkedElsewhere { tunnels, given, .. }) = elsewhere {
            ports.extend(tunnels);
            given_elsewhere.extend(given);
        }
        Tunnels { ports, given, left, elsewhere: given_elsewhere, by_mark: OnceCell::new() }
    }

    /// Returns the ports that may have this mark, of those that the kernel's set has.
    fn of_mark(&self, mark: &ServiceKey) -> &[ServiceKey] {
        let by_mark = self.by_mark.get_or_init(|| {
            let mut by_mark: BTreeMap<ServiceKey, Vec<ServiceKey>> = BTreeMap::new();
            for port in &self.ports {
                self.marks_of(port).for_each(|mark| by_mark.entry(mark).or_default().push(*port));
            }
            by_mark
        });
        by_mark.get(mark).map(Vec::as_slice).unwrap_or_default()
    }

    /// Returns the virtual services for the marks that a port may have: those that it may have been given, and the one that it has. Some may come twice.
    pub(super) fn marks_of(&self, port: &ServiceKey) -> impl Iterator<Item = ServiceKey> + use<> {
        let given = [self.given.get(port), self.elsewhere.get(port)].map(|mark| mark.copied());
        let port = *port;
        marks_of(&port).chain(given.into_iter().flatten().map(move |mark| keyed(&port, Some(mark))))
    }

    /// Returns the virtual services for marks that packets are given, by rules of either backend.
    pub(super) fn given_keys(&self, of: impl Fn(&ServiceKey) -> bool) -> impl Iterator<Item = ServiceKey> {
        let given = self.given.iter().chain(&self.elsewhere).filter(move |(port, _)| of(port));
        given.map(|(port, mark)| keyed(port, Some(*mark)))
    }

    /// Returns the virtual services for marks that ports may have been given.
    pub(super) fn likely_keys(&self, of: impl Fn(&ServiceKey) -> bool) -> impl Iterator<Item = ServiceKey> {
        self.ports.iter().filter(move |port| of(port)).flat_map(marks_of)
    }

    /// Returns the marks that packets to ports are given.
    pub(super) fn given(&self) -> &BTreeMap<ServiceKey, u32> {
        &self.given
    }

    /// The same, with those of rules that kube-router left; some ports come twice.
    fn given_by_anybody(&self) -> impl Iterator<Item = (&ServiceKey, &u32)> {
        self.left.iter().chain(&self.given)
    }

    /// Returns whether packets to a port get any mark, by rules of ours, of the other backend, or of kube-router.
    pub(super) fn gives_any(&self, port: &ServiceKey) -> bool {
        [&self.given, &self.elsewhere, &self.left].into_iter().any(|marks| marks.contains_key(port))
    }

    /// Returns whether packets to a port get the mark that they shall.
    fn gives(&self, port: &ServiceKey, desired: &Desired) -> bool {
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

    /// Returns all ports that the kernel's set has.
    pub(super) fn ports(&self) -> impl Iterator<Item = &ServiceKey> {
        self.ports.iter()
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

/// The ports that packets with a mark which another port is to have are for, by the virtual service for that mark.
type Takers = BTreeMap<ServiceKey, BTreeSet<ServiceKey>>;

impl<K: Kernel> Mirrors<K> {
    /// Returns the ports in tunnel mode, as last seen.
    pub(super) fn tunnels(&self) -> Tunnels {
        Tunnels::seen(&self.marks(), &self.rules, self.marked_elsewhere.as_ref())
    }

    /// Returns whether it is known which marks packets are given.
    pub(super) fn knows_given_marks(&self) -> bool {
        let is_seen = self.elements.seen().is_some() && self.table.seen().is_some() && self.rules.seen().is_some();
        let is_doubtful =
            || self.table.doubts().any(|object| port_of_mark(object).is_some()) || self.rules.doubts().any(is_marking);
        is_seen && !is_doubtful()
    }

    /// Returns the marks that packets to ports are given, by rules of ours, of the other backend, or of kube-router; `None` while they cannot be read.
    pub fn given_marks(&mut self, at: Moment) -> Option<BTreeMap<ServiceKey, u32>> {
        let is_read = self.elements.learn(at) && self.table.learn(at) && self.rules.learn(at);
        let _ = self.takes_over(at);
        let mut given = self.marked_elsewhere.as_ref().filter(|_| is_read)?.given.clone();
        let tunnels = self.tunnels();
        given.extend(tunnels.left);
        given.extend(tunnels.given);
        Some(given)
    }

    /// Returns the ports that are to have marks and of which a virtual service by address stands; `None` where these cannot be read.
    pub fn marked_with_nat(&mut self, desired: &Desired, at: Moment) -> Option<Vec<ServiceKey>> {
        if desired.marks.is_empty() {
            return Some(Vec::new());
        }
        if !self.learn_virtuals(desired, at) {
            return None;
        }
        let stands = |port: &&ServiceKey| !self.virtuals.lacks(**port..=**port);
        Some(desired.marks.keys().filter(stands).copied().collect())
    }

    /// Returns whether rules of the other packet filter give marks to packets.
    pub fn marks_elsewhere(&self) -> bool {
        self.marked_elsewhere.as_ref().is_some_and(|marked| !marked.given.is_empty())
    }

    /// Returns whether packets to a port get the mark that they shall.
    pub(super) fn gives_mark(&self, port: &ServiceKey, desired: &Desired) -> bool {
        let (Some(mark), Some(entry)) = (desired.marks.get(port), restriction(port)) else { return false };
        let in_table = self.table.seen().and_then(|seen| seen.get(&Set::TunnelPorts.object(&entry)));
        let chain = || self.rules.seen()?.get(&marking_chain(port.family()));
        let in_chain =
            || rules::of_port(port, *mark).is_some_and(|rule| chain().is_some_and(|its| its.0.contains(&rule)));
        in_table == Some(&Content::Mark(*mark)) || in_chain()
    }

    /// Prepares for packets to get other marks than they have. Returns the ports whose packets must not yet. Takes a mark from another port only if everything
    /// is known.
    pub(super) fn held_marks(
        &mut self,
        desired: &Desired,
        growth: Growth,
        authority: Authority,
        at: Moment,
    ) -> HeldMarks {
        if desired.marks.is_empty() {
            return HeldMarks::These(BTreeSet::new());
        }
        let is_read = self.elements.learn(at) && self.table.learn(at) && self.rules.learn(at);
        if !is_read || !self.knows_given_marks() || !self.learn_virtuals(desired, at) {
            return HeldMarks::All;
        }
        // What serves these ports next stands before their packets get another mark, or none.
        let tunnels = self.tunnels();
        let becomes = |(port, mark): (&ServiceKey, &u32)| {
            let (before, after) = (keyed(port, Some(*mark)), desired.kernel_key(port));
            (before != after && desired.virtuals.contains_key(&after)).then_some((*port, after))
        };
        let changes: BTreeMap<ServiceKey, ServiceKey> = tunnels.given_by_anybody().filter_map(becomes).collect();
        let takers = takers(desired, &tunnels);
        let next: BTreeSet<ServiceKey> = changes.values().copied().collect();
        if !next.is_empty() {
            self.grow_virtuals(desired, growth, at, |key| next.contains(key));
        }
        let lacks_next = |(port, after): (&ServiceKey, &ServiceKey)| {
            (!takers.contains_key(after) && !self.virtuals.has(after)).then_some(*port)
        };
        let mut held: BTreeSet<ServiceKey> = changes.iter().filter_map(lacks_next).collect();
        if authority != Authority::Complete {
            held.extend(takers.keys().filter_map(|mark| desired.marked.get(mark)));
        }
        let free = free_marks(desired, &takers, &mut held);
        if !free.is_empty() {
            let kept = self.delete_marked(desired, &free, &takers, at);
            held.extend(kept.iter().filter_map(|mark| desired.marked.get(mark)));
            free_marks(desired, &takers, &mut held);
        }
        HeldMarks::These(held)
    }

    /// Returns the desired virtual services for marks that packets to another port get: they must not come, or change, before these get another one.
    pub(super) fn given_to_others(&self, desired: &Desired) -> BTreeSet<ServiceKey> {
        if desired.marks.is_empty() { BTreeSet::new() } else { takers(desired, &self.tunnels()).into_keys().collect() }
    }

    /// Deletes virtual services that are desired, but with another port's endpoints. Returns those that may still be found by packets to that.
    fn delete_marked(
        &mut self,
        desired: &Desired,
        free: &BTreeSet<ServiceKey>,
        takers: &Takers,
        at: Moment,
    ) -> BTreeSet<ServiceKey> {
        let mut without = desired.virtuals.clone();
        for key in free {
            without.remove(key);
            self.virtuals.mark(*key);
        }
        self.virtuals.delete_among(&without, at, |key| free.contains(key));
        free.iter().for_each(|key| self.virtuals.mark(*key));
        let (gone, mut kept): (BTreeSet<ServiceKey>, BTreeSet<ServiceKey>) =
            free.iter().copied().partition(|key| self.virtuals.lacks(*key..=*key));
        // Our table has the former ports of these marks as elements, which would go behind the new ones.
        let formers: BTreeMap<ServiceKey, ServiceKey> = gone
            .iter()
            .filter_map(|mark| Some((*mark, takers.get(mark)?)))
            .flat_map(|(mark, formers)| formers.iter().map(move |port| (*port, mark)))
            .collect();
        let mark_of = |object: &Object| formers.get(&port_of_mark(object)?).copied();
        self.table.delete_among(&desired.table, at, |object| mark_of(object).is_some());
        let stays = |object: &Object| mark_of(object).filter(|_| !desired.table.contains_key(object));
        match self.table.seen() {
            Some(seen) => kept.extend(formers.keys().filter_map(|port| {
                let object = Set::TunnelPorts.object(&restriction(port)?);
                seen.get(&object).and_then(|_| stays(&object))
            })),
            None => kept.extend(gone),
        }
        kept
    }

    /// Brings the rules about; those that mark packets to ports that are held stay as they are.
    pub(super) fn grow_rules(&mut self, desired: &Desired, held: &HeldMarks, growth: Growth, at: Moment) {
        let rules = match held {
            HeldMarks::These(ports) => self.rules_for_now(desired, ports),
            HeldMarks::All => Cow::Borrowed(&desired.rules),
        };
        let may_mark = |piece: &Piece| !matches!(held, HeldMarks::All) || !rules::is_rule(piece);
        let may_come = |piece: &Piece| may_mark(piece) && !unallocated::is_rule(piece);
        self.rules.grow_among(&*rules, growth, at, may_come);
        if let Cow::Owned(rules) = &rules {
            rules.keys().filter(|piece| is_of_marks(piece)).for_each(|chain| self.rules.mark(chain.clone()));
        }
    }

    /// Returns the desired rules, but that these ports keep the marks that they have.
    pub(super) fn rules_without_marks<'a>(
        &self,
        desired: &'a Desired,
        still_marked: &BTreeSet<ServiceKey>,
    ) -> Cow<'a, BTreeMap<Piece, Rules>> {
        let mut rules = Cow::Borrowed(&desired.rules);
        for chain in Family::BOTH.map(marking_chain) {
            let seen = self.rules.seen().and_then(|seen| seen.get(&chain));
            let Some(seen) = seen else { continue };
            let of_rule = |rule: &Rule| rules::marks_of(&Rules(vec![rule.clone()])).next().map(|(port, _)| port);
            let stays = |port: ServiceKey| still_marked.contains(&port) || desired.marks.contains_key(&port);
            if still_marked.iter().any(|port| port.family() == chain.family()) {
                let kept = seen.0.iter().filter(|rule| of_rule(rule).is_none_or(stays)).cloned();
                let kept = Rules(kept.collect());
                let sent = rules::unmarking(rules::marks_of(&kept).map(|(_, mark)| mark));
                rules.to_mut().extend([(unmarking_chain(chain.family()), sent), (chain, kept)]);
            }
        }
        rules
    }

    fn rules_for_now<'a>(&self, desired: &'a Desired, held: &BTreeSet<ServiceKey>) -> Cow<'a, BTreeMap<Piece, Rules>> {
        if held.is_empty() || Family::BOTH.iter().all(|family| !desired.rules.contains_key(&marking_chain(*family))) {
            return Cow::Borrowed(&desired.rules);
        }
        let given = self.tunnels().given;
        let mark_of =
            |port: &ServiceKey, mark: u32| if held.contains(port) { given.get(port).copied() } else { Some(mark) };
        let mut rules = desired.rules.clone();
        for family in Family::BOTH {
            let of_family = desired.marks.iter().filter(|(port, _)| port.family() == family);
            let marks = of_family.filter_map(|(port, mark)| Some((port, mark_of(port, *mark)?)));
            let marks: Vec<(&ServiceKey, u32)> = marks.collect();
            if let Some(chain) = rules.get_mut(&unmarking_chain(family)) {
                *chain = rules::unmarking(marks.iter().map(|(_, mark)| *mark));
            }
            if let Some(chain) = rules.get_mut(&marking_chain(family)) {
                *chain = rules::marking(marks);
            }
        }
        Cow::Owned(rules)
    }
}

/// Returns the desired virtual services for marks that packets to other ports are given, and these ports.
fn takers(desired: &Desired, tunnels: &Tunnels) -> Takers {
    let mut found = Takers::new();
    for (port, mark) in tunnels.given_by_anybody() {
        let key = keyed(port, Some(*mark));
        if desired.marked.get(&key).is_some_and(|its| its != port) {
            found.entry(key).or_default().insert(*port);
        }
    }
    found
}

/// Holds the ports that would take a mark from one that is held. Returns the marks that may be taken.
fn free_marks(desired: &Desired, takers: &Takers, held: &mut BTreeSet<ServiceKey>) -> BTreeSet<ServiceKey> {
    loop {
        let is_held = |formers: &BTreeSet<ServiceKey>| formers.iter().any(|port| held.contains(port));
        let waiting = takers.iter().filter(|(_, formers)| is_held(formers));
        let waiting: Vec<ServiceKey> = waiting.filter_map(|(mark, _)| desired.marked.get(mark)).copied().collect();
        let before = held.len();
        held.extend(waiting);
        if held.len() == before {
            let may_take = |mark: &&ServiceKey| desired.marked.get(mark).is_some_and(|port| !held.contains(port));
            return takers.keys().filter(may_take).copied().collect();
        }
    }
}

/// Returns whether a piece of rules gives packets the marks of ports.
pub(super) fn is_marking(piece: &Piece) -> bool {
    rules::is_rule(piece) && *piece == marking_chain(piece.family())
}

/// Returns whether a piece of rules names the marks of ports: it gives them, or takes them away.
pub(super) fn is_of_marks(piece: &Piece) -> bool {
    is_marking(piece) || *piece == unmarking_chain(piece.family())
}

/// Returns the port of an object of our table that gives packets its mark.
pub(super) fn port_of_mark(object: &Object) -> Option<ServiceKey> {
    match Set::of_object(object) {
        Some((Set::TunnelPorts, entry)) => port(&entry),
        _ => None,
    }
}
