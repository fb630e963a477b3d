//! The packet filter: its growing and shrinking, and how long it guards the ports of `fou`.
//!
//! Rules are what tells a process that comes later at which port of an earlier run packets are received still: where tunnels go on to another port, or there are none,
//! nothing else does. So the ports that rules guard are ours before rules change, and each is guarded, beside the one that is wanted, until it is deleted.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::{Kernel, Mirrors, OwnsPorts};
use crate::kernel::ipset::SetName;
use crate::kernel::iptables::{Piece, Rules};
use crate::kernel::nftables::{Content, Key, Name, Object};
use crate::model::Authority;
use crate::net::Family;
use crate::reconcile::{Growth, Moment, Reflection};
use crate::router::desired::Desired;
use crate::router::overlay_guard;

/// The packet filter as desired, with the guards of former ports of `fou` besides.
struct Guarding<'a> {
    rules: Cow<'a, BTreeMap<Piece, Rules>>,
    table: Cow<'a, BTreeMap<Object, Content>>,
    /// Those that hold more than is desired.
    pieces: Vec<Piece>,
    objects: Vec<Object>,
}

impl<'a> Guarding<'a> {
    fn new(desired: &'a Desired, ports: &BTreeSet<u16>) -> Guarding<'a> {
        let rules = overlay_guard::guarding_also(ports, &desired.rules);
        let table = overlay_guard::guarding_also_in_table(ports, &desired.table);
        Guarding {
            pieces: rules.keys().cloned().collect(),
            objects: table.keys().cloned().collect(),
            rules: with(&desired.rules, rules),
            table: with(&desired.table, table),
        }
    }
}

fn with<K: Ord + Clone, V: Clone>(wanted: &BTreeMap<K, V>, others: BTreeMap<K, V>) -> Cow<'_, BTreeMap<K, V>> {
    if others.is_empty() {
        return Cow::Borrowed(wanted);
    }
    let mut all = wanted.clone();
    all.extend(others);
    Cow::Owned(all)
}

impl<K: Kernel> Mirrors<K> {
    /// Grows sets, elements and rules. Returns whether something guards former ports of `fou` besides.
    pub(super) fn grow_filter(&mut self, desired: &Desired, authority: Authority, growth: Growth, at: Moment) -> bool {
        if !self.sets.grow(&desired.sets, growth, at).is_empty() {
            // A recreated set may have lost its elements.
            self.elements.forget();
        }
        self.elements.grow(&desired.elements, growth, at);
        self.own_guarded_ports(at);
        let guarding = Guarding::new(desired, &self.former_ports(desired));
        // Rules that know only some of the nodes would hide pods from the others, and the other backend's rules know all.
        let may_translate = authority == Authority::Complete || !self.takes_over();
        if may_translate {
            self.rules.grow(&guarding.rules, growth, at);
        }
        self.grow_table(&guarding.table, growth, may_translate, at);
        self.mark_more(&guarding);
        !guarding.pieces.is_empty() || !guarding.objects.is_empty()
    }

    /// Grows our table; a range waits for those that it overlaps and that shall go, because ranges of a set must be apart: they
    /// change places in the transaction that shrinks. `may_translate`: base chains may come.
    fn grow_table(&mut self, wanted: &BTreeMap<Object, Content>, growth: Growth, may_translate: bool, at: Moment) {
        if self.table.is_settled() || !self.table.learn(at) {
            return;
        }
        let range = |object: &Object| match object {
            Object::Element(set, Key::Prefix(range)) => Some((set.clone(), *range)),
            _ => None,
        };
        let going: Vec<_> = self.table.differing(wanted).surplus.iter().filter_map(range).collect();
        self.table.grow_where(wanted, growth, at, |object| {
            let overlaps = |(set, range): (Name, IpNet)| {
                let is_met = |other: &IpNet| other.contains(&range) || range.contains(other);
                going.iter().any(|(of, other)| *of == set && is_met(other))
            };
            (may_translate || !is_base(wanted, object)) && !range(object).is_some_and(overlaps)
        });
    }

    /// Deletes rules, sets and elements. What guards a device of `vxlan`, or a port of `fou`, stays as long as that: a process that comes later knows the port by it.
    /// `guarded_more`: when this round grew, something guarded former ports besides.
    pub(super) fn shrink_filter(&mut self, desired: &Desired, guarded_more: bool, growth: Growth, at: Moment) {
        let is_guarded = self.receives_formerly(desired);
        let guarding = Guarding::new(desired, &self.former_ports(desired));
        if guarded_more {
            // The last one of these ports may have gone in this round.
            self.rules.grow(&guarding.rules, growth, at);
        }
        self.rules.shrink_where(&guarding.rules, at, |piece, _| !is_guarded || !overlay_guard::is_piece(piece));
        self.shrink_sets(desired, at);
        let may_go = |object: &Object| !is_guarded || !overlay_guard::needs(object);
        self.table.transact_where(&guarding.table, growth, at, may_go);
        self.mark_more(&guarding);
    }

    /// Deletes elements if no rule uses their set any more, or if the set stays; deletes sets once they are empty.
    fn shrink_sets(&mut self, desired: &Desired, at: Moment) {
        let rules_are_settled = self.rules.is_settled();
        self.elements
            .shrink_where(&desired.elements, at, |key, _| rules_are_settled || desired.sets.contains_key(&key.set));
        let elements = &self.elements;
        let is_empty = |set: &SetName| {
            elements.is_settled() && elements.seen().is_some_and(|seen| seen.keys().all(|key| key.set != *set))
        };
        self.sets.shrink_where(&desired.sets, at, |set, _| rules_are_settled && is_empty(set));
    }

    /// Counts the ports of `fou` that our rules guard as ours: an earlier run had them. To be called before rules change; where these cannot be read they do not.
    fn own_guarded_ports(&mut self, at: Moment) {
        self.rules.learn(at);
        self.table.learn(at);
        let guarded = self.guarded_ports();
        if self.receive_ports.target().own(&guarded) && self.receive_ports.seen().is_some() {
            self.receive_ports.forget();
        }
        self.receive_ports.learn(at);
    }

    /// Opens ports of `fou` that are guarded. With a remembered cluster rules that are there keep their former content, and so the port that they guard.
    pub(super) fn open_receive_ports(&mut self, desired: &Desired, growth: Growth, at: Moment) {
        let guarded = self.guarded_receive_ports();
        self.receive_ports
            .grow_among(&desired.receive_ports, growth, at, |key| guarded.contains(&(key.family, key.port)));
    }

    /// Returns the ports of `fou` that rules in the kernel guard in each way, as last seen.
    pub(super) fn guarded_receive_ports(&self) -> BTreeSet<(Family, u16)> {
        let by_rules = self.rules.seen().map(overlay_guard::guarded_fully).unwrap_or_default();
        let by_table = self.table.seen().map(overlay_guard::guarded_fully_in_table).unwrap_or_default();
        by_rules.into_iter().chain(by_table).collect()
    }

    /// Returns the ports of `fou` that rules in the kernel guard, as last seen.
    fn guarded_ports(&self) -> BTreeSet<u16> {
        let by_rules = self.rules.seen().map(overlay_guard::guarded_ports).unwrap_or_default();
        let by_table = self.table.seen().map(overlay_guard::guarded_ports_of_table).unwrap_or_default();
        by_rules.into_iter().chain(by_table).collect()
    }

    /// Returns the ports of `fou` at which packets are, or may be, received although none are wanted there any more.
    fn former_ports(&self, desired: &Desired) -> BTreeSet<u16> {
        let there = self.receive_ports.known_keys().map(|key| key.port);
        // While nobody tells which there are, each that is guarded may be.
        let guarded = if self.receive_ports.seen().is_none() { self.guarded_ports() } else { BTreeSet::new() };
        let is_former = |port: &u16| !desired.receive_ports.keys().any(|wanted| wanted.port == *port);
        there.chain(guarded).filter(is_former).collect()
    }

    /// Has what guards former ports compared again, which is not as desired.
    fn mark_more(&mut self, guarding: &Guarding<'_>) {
        guarding.pieces.iter().for_each(|piece| self.rules.mark(piece.clone()));
        guarding.objects.iter().for_each(|object| self.table.mark(object.clone()));
    }
}

fn is_base(wanted: &BTreeMap<Object, Content>, object: &Object) -> bool {
    matches!(wanted.get(object), Some(Content::Chain(chain)) if chain.base.is_some())
}
