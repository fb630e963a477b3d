//! What the service proxy wants of the kernel: one sorted map for each family of objects.

use std::collections::BTreeMap;

use crate::kernel::address::AddressKey;
use crate::kernel::ipset::{ElementKey, SetName, SetSpec};
use crate::kernel::iptables::{Piece, Rules};
use crate::kernel::ipvs::{ServiceKey, Virtual};
use crate::kernel::link::{Link, LinkName};
use crate::kernel::route::{Route, RouteKey};
use crate::kernel::sysctl::{Setting, Wanted};
use crate::model::ObjectName;

use super::external_ip::Refused;

/// What the kernel shall hold, family by family.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Desired {
    /// What settings shall be, as rules: some depend on what they are.
    pub settings: BTreeMap<Setting, Wanted>,
    pub links: BTreeMap<LinkName, Link>,
    pub addresses: BTreeMap<AddressKey, ()>,
    pub sets: BTreeMap<SetName, SetSpec>,
    pub elements: BTreeMap<ElementKey, ()>,
    pub rules: BTreeMap<Piece, Rules>,
    pub virtuals: BTreeMap<ServiceKey, Virtual>,
    pub routes: BTreeMap<RouteKey, Route>,
}

/// Which keys of [`Desired`] changed, in any order; a key may stand there twice.
#[derive(Default, Debug)]
pub struct Changed {
    pub settings: bool,
    pub sets: Vec<SetName>,
    pub elements: Vec<ElementKey>,
    pub rules: Vec<Piece>,
    pub virtuals: Vec<ServiceKey>,
    pub routes: Vec<RouteKey>,
    /// A virtual service that stays as it is may belong to another Service now.
    pub owners: bool,
    /// How many Services were computed anew.
    pub parts_computed: usize,
    /// What an administrator should know about, one sentence each.
    pub notes: Vec<String>,
    /// Addresses that a Service is not served at, which was not so before.
    pub refused: Vec<(ObjectName, Refused)>,
}

impl Changed {
    pub fn is_empty(&self) -> bool {
        !self.settings
            && self.sets.is_empty()
            && self.elements.is_empty()
            && self.rules.is_empty()
            && self.virtuals.is_empty()
            && self.routes.is_empty()
    }
}
