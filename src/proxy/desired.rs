//! Desired kernel state of the service proxy: one sorted map for each kind of objects. Sets, elements and rules are those of
//! iptables, and empty where `table` is not: with nftables all of them are one kind. Kinds that grow with the number of Services stand
//! in maps in blocks, which the mirrors share.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::kernel::address::AddressKey;
use crate::kernel::ipset::{ElementKey, SetName, SetSpec};
use crate::kernel::iptables::{Piece, Rules};
use crate::kernel::ipvs::{ServiceKey, Virtual};
use crate::kernel::link::{Link, LinkName};
use crate::kernel::nftables::passages::{Passage, Passing};
use crate::kernel::nftables::{Content, Object};
use crate::kernel::route::{Route, RouteKey};
use crate::kernel::rule::PolicyRule;
use crate::kernel::sysctl::{Setting, WantedSetting};
use crate::packed::BlockMap;

use super::external_ip::NewlyRefused;

/// Desired kernel objects, kind by kind.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Desired {
    /// Desired settings, as rules: some depend on the current value.
    pub settings: BTreeMap<Setting, WantedSetting>,
    pub links: BTreeMap<LinkName, Link>,
    pub addresses: BTreeMap<AddressKey, ()>,
    pub sets: BTreeMap<SetName, SetSpec>,
    pub elements: BlockMap<ElementKey, ()>,
    pub rules: BTreeMap<Piece, Rules>,
    /// Everything in our table of nf_tables.
    pub table: BlockMap<Object, Content>,
    /// Rules in the host's own chain `INPUT`; where it has none, none of them is needed.
    pub passages: BTreeMap<Passage, Passing>,
    pub virtuals: BlockMap<ServiceKey, Virtual>,
    /// Rules that send packets with marks of ours to a table of routes.
    pub policy_rules: BTreeMap<PolicyRule, ()>,
    pub routes: BlockMap<RouteKey, Arc<Route>>,
}

impl Desired {
    /// Fills blocks that many single changes have left half empty.
    pub fn pack(&mut self) {
        self.elements.pack();
        self.table.pack();
        self.virtuals.pack();
        self.routes.pack();
    }
}

/// Changed keys of [`Desired`], in any order; a key may occur twice.
#[derive(Default, Debug)]
pub struct ProxyChanges {
    /// The rules differ, or links came, whose settings did not exist before.
    pub settings: bool,
    pub sets: Vec<SetName>,
    pub elements: Vec<ElementKey>,
    pub rules: Vec<Piece>,
    pub table: Vec<Object>,
    pub passages: Vec<Passage>,
    pub virtuals: Vec<ServiceKey>,
    pub policy_rules: Vec<PolicyRule>,
    pub routes: Vec<RouteKey>,
    /// The owner of a virtual service may have changed although the virtual service itself has not.
    pub owners: bool,
    /// Health checks of Services, or the addresses that they listen on, may have changed.
    pub health_checks: bool,
    /// The problems of a Service have changed.
    pub problems: bool,
    /// Number of Services recomputed.
    pub parts_computed: usize,
    /// Messages for the administrator, one sentence each.
    pub notes: Vec<String>,
    /// Addresses of Services that are newly refused.
    pub refused: NewlyRefused,
}

impl ProxyChanges {
    pub fn is_empty(&self) -> bool {
        !self.settings
            && self.sets.is_empty()
            && self.elements.is_empty()
            && self.rules.is_empty()
            && self.table.is_empty()
            && self.passages.is_empty()
            && self.virtuals.is_empty()
            && self.policy_rules.is_empty()
            && self.routes.is_empty()
    }
}
