//! Destinations that keep their connections: which begin to drain, and when one is over.
//!
//! An endpoint that is still in a slice of its Service but takes no new connections (it became unready, hints or a policy name others
//! now) is alive: its connections go on until they end, whatever the flags, as they do with kube-proxy. One that has left its slices is gone, and
//! keeps them for `--ipvs-graceful-period`, with `--ipvs-graceful-termination` alone.

use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::time::Instant;

use crate::kernel::ipvs::{Destination, Destinations, Forwarding, ServiceKey, Virtual};
use crate::model::{Endpoints, ObjectName, Scheduler};
use crate::net::Protocol;
use crate::packed::BlockMap;

use super::{ClaimedPart, Plan, can_drain};
use crate::proxy::desired::ProxyChanges;
use crate::proxy::drain::Stay;
use crate::proxy::endpoints::DRAINING;
use crate::proxy::scheduler;

/// The endpoints in slices of a Service, in any condition, by TCP port: the ports of each slice, and its addresses, sorted.
pub(super) struct Listed(Vec<(Vec<u16>, Vec<IpAddr>)>);

/// The part of a Service, before a change and after it.
pub(super) struct PartChange<'a> {
    pub name: &'a ObjectName,
    pub old: &'a ClaimedPart,
    pub new: &'a ClaimedPart,
}

impl Listed {
    pub(super) fn of(endpoints: Option<&Endpoints>) -> Listed {
        let slices = endpoints.into_iter().flat_map(|its| its.slices.values());
        let of_slice = slices.map(|slice| {
            let ports = slice.ports.iter().filter(|port| port.protocol == Protocol::Tcp).map(|port| port.port);
            let mut addresses = Vec::with_capacity(slice.endpoints.len());
            addresses.extend(slice.endpoints.listed().map(|endpoint| endpoint.address));
            addresses.sort_unstable();
            (ports.collect(), addresses)
        });
        Listed(of_slice.collect())
    }

    fn contains(&self, destination: SocketAddr) -> bool {
        let is_in = |(ports, addresses): &(Vec<u16>, Vec<IpAddr>)| {
            ports.contains(&destination.port()) && addresses.binary_search(&destination.ip()).is_ok()
        };
        self.0.iter().any(is_in)
    }
}

impl Plan {
    /// Adopts destinations that an earlier run left in the kernel: those no longer desired drain from now on, as if
    /// they had just been removed.
    pub fn adopt(&mut self, seen: &BlockMap<ServiceKey, Virtual>, now: Instant) -> ProxyChanges {
        let mut changed = ProxyChanges::default();
        for (kernel_key, existing) in seen.iter() {
            let port = self.desired.port_of(kernel_key).filter(|port| self.desired.kernel_key(port) == *kernel_key);
            let Some(key) = port else { continue };
            let (Some(claim), Some(name)) = (self.claim(&key), self.owner(&key)) else { continue };
            let wanted = &claim.wanted.virtual_service.destinations;
            let left = left(&existing.destinations, wanted);
            if !left.is_empty() {
                let listed = Listed::of(self.world.cluster.endpoints.get(name).map(|its| &**its));
                self.drain(key, &left, &&listed, now);
                self.compose(key, &mut changed);
            }
        }
        changed
    }

    /// Returns the virtual services whose draining destinations may have no connections left, if it is time to check.
    pub fn to_look_at(&mut self, now: Instant) -> Vec<ServiceKey> {
        self.draining.to_look_at(now)
    }

    /// Removes draining destinations of a virtual service early: they have no connections left. Others stay.
    pub fn release(&mut self, key: ServiceKey, idle: &[SocketAddr]) -> ProxyChanges {
        let mut changed = ProxyChanges::default();
        idle.iter().for_each(|destination| self.draining.end(key, *destination));
        self.compose(key, &mut changed);
        changed
    }

    /// Starts draining destinations that a Service's newest part no longer names.
    pub(super) fn note_left(
        &mut self,
        key: ServiceKey,
        PartChange { name, old, new }: PartChange<'_>,
        listed: &impl Deref<Target = Listed>,
        now: Instant,
    ) {
        let (Some(before), Some(after)) = (old.claim(&key), new.claim(&key)) else { return };
        if self.owner(&key) != Some(name) {
            return;
        }
        let [before, after] = [before, after].map(|claim| &claim.wanted.virtual_service.destinations);
        let left = left(before, after);
        if !left.is_empty() {
            self.drain(key, &left, listed, now);
        }
    }

    fn drain(&mut self, key: ServiceKey, left: &[Destination], listed: &impl Deref<Target = Listed>, now: Instant) {
        let scheduler = self.owner(&key).and_then(|name| self.parts.get(name)).map(|held| held.scheduler);
        let is_tunnelled = self.claim(&key).is_some_and(|claim| claim.wanted.is_tunnelled);
        if !can_drain(scheduler, &key, is_tunnelled) {
            return;
        }
        for destination in left {
            let is_listed = listed.contains(destination.address);
            if let Some(stay) = if is_listed { Some(Stay::WhileListed) } else { self.after_leaving(now) } {
                self.draining.begin(key, destination.address, now, stay);
            }
        }
    }

    /// Returns whether a destination of a virtual service is an endpoint that its Service may use: ready, or terminating and serving.
    pub fn may_serve(&self, key: &ServiceKey, destination: SocketAddr) -> bool {
        let claimed = self.claim(key).map(|claim| &claim.wanted.virtual_service.destinations);
        claimed.into_iter().flat_map(|its| its.iter()).any(|it| it.address == destination)
    }

    /// How long a destination stays whose endpoint has left its slices; `None`: it goes at once.
    fn after_leaving(&self, now: Instant) -> Option<Stay> {
        self.config.graceful_termination.then(|| Stay::Until(now + self.config.graceful_period))
    }

    /// Ends the stay of destinations whose endpoints have left the slices of this Service since they began to drain, but not of
    /// those that are there again. Asks for what is listed only where something drains.
    pub(super) fn note_listed(
        &mut self,
        name: &ObjectName,
        listed: &impl Deref<Target = Listed>,
        now: Instant,
        changed: &mut ProxyChanges,
    ) {
        let Some(part) = self.parts.get(name).filter(|_| !self.draining.is_empty()).cloned() else { return };
        for key in part.claims.iter().map(|claim| claim.key) {
            let stays: Vec<(SocketAddr, Stay)> = self.draining.stays_of(key).collect();
            if stays.is_empty() || self.owner(&key) != Some(name) {
                continue;
            }
            for (destination, stay) in stays {
                match (stay, listed.contains(destination)) {
                    (Stay::WhileListed, false) => self.end_stay(key, destination, now),
                    (Stay::Until(_), true) => self.draining.begin(key, destination, now, Stay::WhileListed),
                    (Stay::WhileListed, true) | (Stay::Until(_), false) => {}
                }
            }
            self.compose(key, changed);
        }
    }

    /// Ends the stay of destinations of a virtual service that another Service gets.
    pub(super) fn note_new_owner(&mut self, key: ServiceKey, now: Instant) {
        let stays: Vec<(SocketAddr, Stay)> = self.draining.stays_of(key).collect();
        for (destination, _) in stays.into_iter().filter(|(_, stay)| *stay == Stay::WhileListed) {
            self.end_stay(key, destination, now);
        }
    }

    fn end_stay(&mut self, key: ServiceKey, destination: SocketAddr, now: Instant) {
        match self.after_leaving(now) {
            Some(stay) => self.draining.begin(key, destination, now, stay),
            None => self.draining.end(key, destination),
        }
    }

    /// Adds the draining destinations, and forgets those that are desired again.
    pub(super) fn with_draining(&mut self, key: ServiceKey, wanted: Virtual, is_tunnelled: bool) -> Virtual {
        if self.draining.is_empty() {
            return wanted;
        }
        let draining: Vec<_> = self.draining.of(key).collect();
        if draining.is_empty() {
            return wanted;
        }
        if !can_drain(Scheduler::from_name(&wanted.service.scheduler), &key, is_tunnelled) {
            // They began to drain under another scheduler.
            self.draining.end_service(key);
            return wanted;
        }
        let mut destinations = wanted.destinations.to_vec();
        for address in draining {
            if wanted.destinations.find(address).is_some() {
                self.draining.end(key, address);
            } else {
                destinations.push(Destination { address, weight: DRAINING, forwarding: Forwarding::Nat });
            }
        }
        destinations.sort();
        let mut service = wanted.service;
        service.flags |= scheduler::draining_flags(&service.scheduler, destinations.iter().copied());
        Virtual { service, destinations: destinations.into() }
    }
}

/// Returns the destinations that are not among those that come after them. A Service may have thousands.
fn left(before: &Destinations, after: &Destinations) -> Vec<Destination> {
    before.iter().filter(|one| after.find(one.address).is_none()).collect()
}
