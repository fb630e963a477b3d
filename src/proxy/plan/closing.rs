//! Virtual services that stay open until routers have been told (`closing`).

use std::net::IpAddr;

use crate::kernel::ipvs::{ServiceKey, Virtual};
use crate::model::Table;

use super::{Plan, address_of};
use crate::proxy::closing::serves;
use crate::proxy::desired::ProxyChanges;
use crate::proxy::part::Wanted;

impl Plan {
    /// Sets the addresses that routers may still send traffic for.
    pub fn set_believed(&mut self, believed: Table<IpAddr, ()>) -> ProxyChanges {
        self.believed = believed;
        let mut changed = ProxyChanges::default();
        let told = |key: &ServiceKey| address_of(key).is_none_or(|address| self.believed.get(&address).is_none());
        let over: Vec<ServiceKey> = self.closing.keys().filter(told).collect();
        self.close(over, &mut changed);
        self.follow_restrictions(&mut changed);
        changed
    }

    /// Returns whether a virtual service stays open, because routers may still send traffic for its address.
    pub(super) fn is_to_stay(&self, key: ServiceKey, wanted: Option<&Wanted>) -> bool {
        let is_believed = address_of(&key).is_some_and(|address| self.believed.get(&address).is_some());
        let will_serve = wanted.is_some_and(|it| serves(&it.virtual_service) && !it.clients.inside_only);
        is_believed && !will_serve && self.desired.virtual_of(&key).is_some_and(|found| self.serves_others(&key, found))
    }

    /// Returns whether a virtual service takes new connections from outside this node.
    fn serves_others(&self, key: &ServiceKey, found: &Virtual) -> bool {
        serves(found) && !self.restrictions.is_inside_only(key)
    }

    /// Closes at once if another port of the address is served here: the address is not withdrawn, so no wait.
    pub(super) fn close_what_others_keep_open(&mut self, changed: &mut ProxyChanges) {
        let is_served = |key: &ServiceKey| {
            let others = address_of(key).map(|address| self.desired.virtuals_on(address));
            others
                .into_iter()
                .flatten()
                .any(|(other, found)| self.serves_others(&other, found) && !self.closing.contains(&other))
        };
        let served: Vec<ServiceKey> = self.closing.keys().filter(is_served).collect();
        self.close(served, changed);
    }

    /// Updates virtual services to their desired state.
    pub(super) fn close(&mut self, keys: Vec<ServiceKey>, changed: &mut ProxyChanges) {
        for key in keys {
            self.closing.end(&key);
            self.compose(key, changed);
        }
    }
}
