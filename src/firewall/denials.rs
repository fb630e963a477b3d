//! The Services that pods of this node are refused because of an endpoint on this node itself ([`host_endpoints`](super::host_endpoints)),
//! kept up to date at the cost of what changed.

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
    /// The host endpoints that pods have been evaluated for.
    evaluated: BTreeSet<HostEndpoint>,
    /// Of pods that are denied any.
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
        // A peer at an address of this host is odd, and decides about endpoints there all the same.
        let peers_turn = changed.elements.iter().any(|(_, element)| self.endpoints.is_local(element.address(), config));
        let asked: BTreeSet<ObjectName> = if self.note_endpoints(&told.endpoints) || peers_turn {
            self.by_pod.keys().chain(rules.pods.keys()).cloned().collect()
        } else {
            let policies = || changed.policies.iter().filter(|key| key.direction == Direction::Egress);
            let is_isolated_by_one = |pod: &LocalPod| match &pod.egress {
                Isolation::Open => false,
                Isolation::Isolated { policies: its, .. } => {
                    policies().any(|key| its.binary_search(&key.policy).is_ok())
                }
            };
            let is_selected =
                |pod: &LocalPod| changed.cluster_policies.iter().any(|key| pod.cluster_policies.contains(key));
            let is_isolated_by_one = |pod: &LocalPod| is_isolated_by_one(pod) || is_selected(pod);
            let isolated = rules.pods.iter().filter(|(_, pod)| is_isolated_by_one(pod)).map(|(name, _)| name);
            changed.pods.iter().chain(isolated).cloned().collect()
        };
        for name in asked {
            let pod = rules.pods.get(&name).filter(|pod| pod.is_judged(Direction::Egress));
            let denied =
                |pod| self.endpoints.all().filter(|one| is_denied(rules, (&name, pod), one)).copied().collect();
            let denied: BTreeSet<HostEndpoint> = pod.map(denied).unwrap_or_default();
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

    /// Notes which of these endpoints exist; returns whether any came or went.
    fn note_endpoints(&mut self, changed: &BTreeSet<HostEndpoint>) -> bool {
        let mut differs = false;
        for endpoint in changed {
            differs |= match self.endpoints.entrances(endpoint).next() {
                Some(_) => self.evaluated.insert(*endpoint),
                None => self.evaluated.remove(endpoint),
            };
        }
        differs
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
