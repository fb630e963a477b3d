//! Which Services may put their addresses into which pods of this node.
//!
//! EndpointSlices are written by whoever may write in a namespace, and may name any address and any node. An address inside a pod is not only where
//! packets arrive: the pod's own packets to it do not leave the pod any more. So a Service has the pods of its own namespace alone. The Pod objects say
//! which those are, because the kubelet writes their addresses; a pod of another namespace that has had the address, and is not gone yet, closes it to both.
//!
//! Of its addresses a Service has those of which it may have a port: where it is certain that others have all of them
//! ([`ServiceAddresses::is_of_another`]), as the service proxy decides, the address stays out.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::config::ServiceRanges;
use crate::firewall::service_addresses::{Entrance, ServiceAddresses};
use crate::model::{ObjectName, Service, Table, World};
use crate::pod_tunnels::WantedTunnels;
use crate::pod_tunnels::places::{KnownPod, KnownPods};
use crate::proxy::dsr::local_pods::LocalPods;

/// Reason why a pod that a Service names gets none of its addresses.
pub const STRANGER: &str = "no pod of the Service's namespace on this node has this address";

/// The addresses that pods get.
#[derive(Default)]
pub struct Allowed {
    pub tunnels: WantedTunnels,
    /// The Services that name an address which is no pod of theirs.
    pub strangers: BTreeSet<(ObjectName, IpAddr)>,
}

/// Who has which address and port, followed while anybody asks.
#[derive(Default)]
pub struct Owners {
    seen: Table<ObjectName, Service>,
    ranges: ServiceRanges,
    addresses: ServiceAddresses,
    is_followed: bool,
}

impl Owners {
    /// Follows the Services while that is needed. Returns those that may have other ports at their addresses than before.
    pub fn follow(
        &mut self,
        services: &Table<ObjectName, Service>,
        ranges: &ServiceRanges,
        is_needed: bool,
    ) -> BTreeSet<ObjectName> {
        if !is_needed {
            if self.is_followed {
                *self = Owners::default();
            }
            return BTreeSet::new();
        }
        if self.ranges != *ranges {
            *self = Owners { ranges: ranges.clone(), ..Owners::default() };
        }
        let changes = self.addresses.update((&self.seen, services), ranges);
        self.seen = services.clone();
        self.is_followed = true;
        changes.dirty
    }

    /// Returns whether a Service may have any of its ports at an address.
    fn may_have(&self, name: &ObjectName, service: &Service, address: IpAddr) -> bool {
        let is_of_another =
            |port: u16, protocol| self.addresses.is_of_another(name, Entrance { address, port }, protocol);
        service.ports.iter().any(|port| !is_of_another(port.port, port.protocol))
    }
}

/// Returns the addresses that pods of this node get, of all that Services ask for. `known`: the pods at these addresses.
pub fn allowed(pods: &LocalPods, known: &KnownPods, owners: &Owners, world: &World) -> Allowed {
    let mut allowed = Allowed::default();
    for (name, its) in pods.services() {
        let Some(service) = world.cluster.services.get(name) else { continue };
        let is_its = |pods: &BTreeSet<KnownPod>| pods.iter().all(|pod| pod.name.namespace == name.namespace);
        for (pod, addresses) in its {
            if !known.get(pod).is_some_and(is_its) {
                allowed.strangers.insert((name.clone(), *pod));
                continue;
            }
            let its: BTreeSet<IpAddr> =
                addresses.iter().copied().filter(|address| owners.may_have(name, service, *address)).collect();
            if !its.is_empty() {
                allowed.tunnels.entry(*pod).or_default().extend(its);
            }
        }
    }
    allowed
}
