//! Desired kernel state of the service proxy: one sorted map for each kind of objects. Sets, elements and rules are those of
//! iptables, and empty where `table` is not: with nftables all of them are one kind. Kinds that grow with the number of Services stand
//! in maps in blocks, which the mirrors share.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::kernel::address::AddressKey;
use crate::kernel::bridge::Hairpin;
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
use super::plan::services_on;
use super::unallocated::Judged;

/// Desired kernel objects, kind by kind.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Desired {
    /// Desired settings, as rules: some depend on the current value.
    pub settings: BTreeMap<Setting, WantedSetting>,
    pub links: BTreeMap<LinkName, Link>,
    /// Bridges whose pods are to reach themselves through their Services.
    pub hairpin_ports: BTreeMap<LinkName, Hairpin>,
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
    /// The marks of packets of the virtual services in tunnel mode, by address, protocol and port. Not a kind: the kernel knows those virtual
    /// services by their marks.
    pub marks: BTreeMap<ServiceKey, u32>,
    /// The same the other way round: the address, protocol and port of each virtual service for a mark.
    pub marked: BTreeMap<ServiceKey, ServiceKey>,
}

impl Desired {
    /// Returns the kernel's key of the virtual service of an address, protocol and port.
    pub fn kernel_key(&self, key: &ServiceKey) -> ServiceKey {
        keyed(key, self.marks.get(key).copied())
    }

    /// Returns the address, protocol and port of a virtual service of the kernel; `None` for a mark that is not desired.
    pub fn port_of(&self, kernel_key: &ServiceKey) -> Option<ServiceKey> {
        match kernel_key {
            ServiceKey::Address { .. } => Some(*kernel_key),
            ServiceKey::Mark { .. } => self.marked.get(kernel_key).copied(),
        }
    }

    /// Returns the virtual service of an address, protocol and port, in tunnel mode or not.
    pub fn virtual_of(&self, key: &ServiceKey) -> Option<&Virtual> {
        self.virtuals.get(&self.kernel_key(key))
    }

    /// Returns the virtual services of an address, by address, protocol and port, those in tunnel mode last.
    pub fn virtuals_on(&self, address: IpAddr) -> impl Iterator<Item = (ServiceKey, &Virtual)> {
        let by_address = self.virtuals.range(services_on(address)).map(|(key, found)| (*key, found));
        let marked = self.marks.range(services_on(address)).map(|(key, _)| *key);
        by_address.chain(marked.filter_map(|key| Some((key, self.virtual_of(&key)?))))
    }

    /// Fills blocks that many single changes have left half empty.
    pub fn pack(&mut self) {
        self.elements.pack();
        self.table.pack();
        self.virtuals.pack();
        self.routes.pack();
    }
}

/// Returns the kernel's key of a virtual service that has this mark, or none.
pub fn keyed(key: &ServiceKey, mark: Option<u32>) -> ServiceKey {
    mark.map_or(*key, |mark| ServiceKey::Mark { mark, family: key.family() })
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
    /// The ranges of cluster IPs whose free addresses are refused, where they are others than before.
    pub ranges: Option<Judged>,
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
