//! Which pods of this node have to answer for which service addresses, kept up to date at the cost of what changed.
//!
//! Only Services with direct server return cost anything: as long as there is none, changes of Services are looked through for the
//! annotation, and nothing else is followed. After any history the result is that of the newest World alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::{PodAddresses, tunnels};
use crate::config::{ProxyConfig, ServiceRanges};
use crate::model::{Endpoints, ObjectName, World};
use crate::net::PerFamily;
use crate::proxy::local_node::LocalNode;
use crate::proxy::other_nodes::OtherNodes;
use crate::proxy::part::PartInputs;

/// A Service that a pod has to answer for, its addresses, and when it was created, in seconds since 1970.
pub type Asking<'a> = (&'a ObjectName, &'a BTreeSet<IpAddr>, i64);

/// The tunnels that end in pods of this node, of all Services.
pub struct LocalPods {
    config: Arc<ProxyConfig>,
    /// The ranges of the flags.
    flags: ServiceRanges,
    families: PerFamily<bool>,
    world: World,
    node: LocalNode,
    others: OtherNodes,
    /// Every Service with direct server return, also those without a pod here.
    services: BTreeMap<ObjectName, PodAddresses>,
    /// The Services of each pod.
    by_pod: BTreeMap<IpAddr, BTreeSet<ObjectName>>,
}

impl LocalPods {
    pub fn new(config: Arc<ProxyConfig>, families: PerFamily<bool>) -> LocalPods {
        LocalPods {
            flags: config.ranges.clone(),
            config,
            families,
            world: World::empty(),
            node: LocalNode::default(),
            others: OtherNodes::default(),
            services: BTreeMap::new(),
            by_pod: BTreeMap::new(),
        }
    }

    /// Follows a newer World; returns whether anything is other than before.
    pub fn follow(&mut self, world: &World) -> bool {
        let older = std::mem::replace(&mut self.world, world.clone());
        let (services, endpoints) = (&world.cluster.services, &world.cluster.endpoints);
        let changed = services.changes_since(&older.cluster.services).map(|change| change.key());
        let is_meant = |name: &&ObjectName| services.get(*name).is_some_and(|service| service.annotations.dsr);
        let changed = changed.filter(|name| self.services.contains_key(*name) || is_meant(name));
        let mut dirty: BTreeSet<ObjectName> = changed.cloned().collect();
        if self.services.is_empty() && dirty.is_empty() {
            return false;
        }
        if self.services.is_empty() {
            // What they depend on was not followed.
            (self.node, self.others) = (LocalNode::default(), OtherNodes::default());
            self.follow_common(&World::empty(), world);
        } else if self.follow_common(&older, world) {
            dirty.extend(self.services.keys().cloned());
        } else {
            let changed = endpoints.changes_since(&older.cluster.endpoints).map(|change| change.key());
            dirty.extend(changed.filter(|name| self.services.contains_key(*name)).cloned());
        }
        let mut differs = false;
        for name in dirty {
            differs |= self.compute(name);
        }
        differs
    }

    /// Follows what all Services depend on; returns whether it has changed.
    fn follow_common(&mut self, older: &World, world: &World) -> bool {
        let node = LocalNode { zone: None, ..LocalNode::new(world, self.families) };
        let moved = !self.others.update([older, world], [&self.node, &node]).is_empty();
        let known = self.others.note_known(world);
        let ranges = self.flags.in_cluster(world.cluster.service_ranges());
        let ranges_move = ProxyConfig::follow(&mut self.config, ranges);
        let is_other = std::mem::replace(&mut self.node, node) != self.node;
        moved || known || ranges_move || is_other
    }

    fn compute(&mut self, name: ObjectName) -> bool {
        let cluster = &self.world.cluster;
        let Some(service) = cluster.services.get(&name).filter(|service| service.annotations.dsr) else {
            let former = self.services.remove(&name).unwrap_or_default();
            self.index(&name, [&former, &PodAddresses::new()]);
            return !former.is_empty();
        };
        // Those that are not set up are tried again.
        let inputs = PartInputs { node: &self.node, others: &self.others, config: &self.config, untunnelled: None };
        let none = Endpoints::default();
        let its = cluster.endpoints.get(&name).map_or(&none, |endpoints| endpoints);
        let pods = tunnels::pod_addresses(service, its, inputs);
        let former = self.services.insert(name.clone(), pods.clone()).unwrap_or_default();
        self.index(&name, [&former, &pods]);
        former != pods
    }

    /// Notes that a Service has other pods than before.
    fn index(&mut self, name: &ObjectName, [former, newest]: [&PodAddresses; 2]) {
        for pod in former.keys().filter(|pod| !newest.contains_key(*pod)) {
            if let Some(its) = self.by_pod.get_mut(pod) {
                its.remove(name);
                if its.is_empty() {
                    self.by_pod.remove(pod);
                }
            }
        }
        for pod in newest.keys().filter(|pod| !former.contains_key(*pod)) {
            self.by_pod.entry(*pod).or_default().insert(name.clone());
        }
    }

    /// Returns the tunnels of each Service with direct server return, also of those that have none.
    pub fn services(&self) -> impl Iterator<Item = (&ObjectName, &PodAddresses)> {
        self.services.iter()
    }

    /// Returns whether a Service has the annotation.
    pub fn asks(&self, service: &ObjectName) -> bool {
        self.services.contains_key(service)
    }

    /// Returns the ranges of service addresses, as of the newest World.
    pub fn ranges(&self) -> &ServiceRanges {
        &self.config.ranges
    }

    /// Returns the tunnels of all Services.
    pub fn all(&self) -> PodAddresses {
        let mut all = PodAddresses::new();
        for (pod, addresses) in self.services.values().flatten() {
            all.entry(*pod).or_default().extend(addresses);
        }
        all
    }

    /// Returns the Services that a pod has to answer for.
    pub fn of_pod(&self, pod: IpAddr) -> impl Iterator<Item = Asking<'_>> {
        let services = self.by_pod.get(&pod).into_iter().flatten();
        services.filter_map(move |name| self.of_service(name, pod))
    }

    /// Returns what a Service asks of a pod; `None` where it asks nothing.
    pub fn of_service<'a>(&'a self, name: &'a ObjectName, pod: IpAddr) -> Option<Asking<'a>> {
        let addresses = self.services.get(name)?.get(&pod)?;
        let created = self.world.cluster.services.get(name).map_or(0, |service| service.created);
        Some((name, addresses, created))
    }
}

#[cfg(test)]
mod tests;
