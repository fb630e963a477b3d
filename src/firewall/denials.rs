//! The Services that pods of this node are refused because of an endpoint on this node itself, or behind a tunnel
//! ([`host_endpoints`](super::host_endpoints)), kept up to date at the cost of what changed.
//!
//! One denied endpoint closes all addresses of its Service to the pod. So of several that have the same addresses the first in order
//! stands for all: a pod that may reach none of a thousand endpoints has two rules, and not two thousand.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::FirewallConfig;
use crate::model::{ObjectName, World};

use super::host_endpoints::{HostEndpoint, HostEndpoints, is_denied};
use super::plan;
use super::rules::{Direction, Isolation, LocalPod, RuleSet};
use super::service_addresses::Entrance;

/// The host endpoints that each pod of this node is denied, kept up to date.
#[derive(Default)]
pub struct Denials {
    endpoints: HostEndpoints,
    /// Of pods that are denied any: those that close an entrance which none before them closes.
    by_pod: BTreeMap<ObjectName, BTreeSet<HostEndpoint>>,
    /// Number of pods that are denied each endpoint.
    uses: BTreeMap<HostEndpoint, usize>,
}

/// Changes of [`Denials`].
#[derive(Default, Debug)]
pub struct DenialChanges {
    /// Endpoints whose sets came, went, or differ.
    pub endpoints: BTreeSet<HostEndpoint>,
    /// Pods that are denied other endpoints than before.
    pub pods: BTreeSet<ObjectName>,
}

impl Denials {
    /// Returns all host endpoints, denied or not.
    pub fn endpoints(&self) -> &HostEndpoints {
        &self.endpoints
    }

    /// Updates from changes of the rule set and of the World.
    pub fn update(
        &mut self,
        rules: &RuleSet,
        world: &World,
        changed: &plan::RuleSetChanges,
        config: &FirewallConfig,
    ) -> DenialChanges {
        let mut told = DenialChanges { endpoints: self.endpoints.update(world, config), pods: BTreeSet::new() };
        let mut turned = told.endpoints.clone();
        for address in changed.elements.iter().map(|(_, element)| element.address()) {
            turned.extend(self.endpoints.at_address(address));
        }
        let policies = || changed.policies.iter().filter(|key| key.direction == Direction::Egress);
        let is_isolated_by_one = |pod: &LocalPod| match &pod.egress {
            Isolation::Open => false,
            Isolation::Isolated { policies: its, .. } => policies().any(|key| its.binary_search(&key.policy).is_ok()),
        };
        let is_selected =
            |pod: &LocalPod| changed.cluster_policies.iter().any(|key| pod.cluster_policies.contains(key));
        let is_asked = |name: &ObjectName, pod: &LocalPod| {
            is_isolated_by_one(pod) || is_selected(pod) || self.is_turned((name, pod), &turned, rules)
        };
        let asked = rules.pods.iter().filter(|(name, pod)| is_asked(name, pod)).map(|(name, _)| name);
        let gone = self.by_pod.keys().filter(|name| !rules.pods.contains_key(*name));
        let asked: BTreeSet<ObjectName> = changed.pods.iter().chain(asked).chain(gone).cloned().collect();
        for name in asked {
            let pod = rules.pods.get(&name).filter(|pod| pod.is_judged(Direction::Egress));
            let denied = pod.map(|pod| self.denied(rules, (&name, pod))).unwrap_or_default();
            let before = match denied.is_empty() {
                true => self.by_pod.remove(&name),
                false => self.by_pod.insert(name.clone(), denied.clone()),
            }
            .unwrap_or_default();
            if before != denied {
                self.count(&before, &denied, &mut told.endpoints);
                told.pods.insert(name);
            }
        }
        told
    }

    /// Returns the endpoints that stand for all that a pod is denied.
    fn denied(&self, rules: &RuleSet, pod: (&ObjectName, &LocalPod)) -> BTreeSet<HostEndpoint> {
        let (mut denied, mut closed) = (BTreeSet::new(), BTreeSet::new());
        for endpoint in self.endpoints.all() {
            let entrances = || self.endpoints.entrances(endpoint).map(|one| (endpoint.protocol, *one));
            if entrances().any(|one| !closed.contains(&one)) && is_denied(rules, pod, endpoint) {
                closed.extend(entrances());
                denied.insert(*endpoint);
            }
        }
        denied
    }

    /// Returns whether endpoints that have changed, or the policies' view of them, may change what stands for all that a pod is denied.
    fn is_turned(&self, pod: (&ObjectName, &LocalPod), turned: &BTreeSet<HostEndpoint>, rules: &RuleSet) -> bool {
        let none = BTreeSet::new();
        let denied = self.by_pod.get(pod.0).unwrap_or(&none);
        let is_judged = pod.1.is_judged(Direction::Egress);
        turned.iter().any(|endpoint| {
            let before = || denied.range(..*endpoint).filter(|one| one.protocol == endpoint.protocol);
            let closed = |entrance| before().any(|one| self.endpoints.entrances(one).any(|other| other == entrance));
            let adds = || self.endpoints.entrances(endpoint).any(|entrance| !closed(entrance));
            denied.contains(endpoint) || (is_judged && adds() && is_denied(rules, pod, endpoint))
        })
    }

    /// Counts the pods of each endpoint; an endpoint that got its first or lost its last one is changed.
    fn count(
        &mut self,
        before: &BTreeSet<HostEndpoint>,
        after: &BTreeSet<HostEndpoint>,
        changed: &mut BTreeSet<HostEndpoint>,
    ) {
        for endpoint in after.difference(before) {
            let count = self.uses.entry(*endpoint).or_default();
            *count += 1;
            if *count == 1 {
                changed.insert(*endpoint);
            }
        }
        for endpoint in before.difference(after) {
            let Some(count) = self.uses.get_mut(endpoint) else { continue };
            *count -= 1;
            if *count == 0 {
                self.uses.remove(endpoint);
                changed.insert(*endpoint);
            }
        }
    }

    /// Returns the pods that are denied any endpoint, sorted.
    pub fn pods(&self) -> impl Iterator<Item = &ObjectName> {
        self.by_pod.keys()
    }

    /// Returns the endpoints that a pod is denied, sorted.
    pub fn of(&self, pod: &ObjectName) -> impl Iterator<Item = &HostEndpoint> {
        self.by_pod.get(pod).into_iter().flatten()
    }

    /// Returns whether any pod is denied an endpoint.
    pub fn is_denied_to_any(&self, endpoint: &HostEndpoint) -> bool {
        self.uses.contains_key(endpoint)
    }

    /// Returns the entrances of the Services of an endpoint.
    pub fn entrances(&self, endpoint: &HostEndpoint) -> impl Iterator<Item = &Entrance> {
        self.endpoints.entrances(endpoint)
    }
}
