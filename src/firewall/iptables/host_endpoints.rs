//! The rules by which pods are refused Services with an endpoint on this node (the other
//! [`host_endpoints`](super::super::host_endpoints) explains them).
//!
//! In the kernel, for a pod that may not reach the host endpoint 192.0.2.11:6443 of the Service at 10.96.0.1:443, before
//! the exemptions of Services in the chain for INPUT:
//!
//! ```text
//! ipset    KUBE-DST-…                    hash:ip,port    10.96.0.1,tcp:443  192.0.2.11,tcp:30443
//! iptables -A KUBE-ROUTER-INPUT … -m conntrack ! --ctstate INVALID,RELATED,ESTABLISHED -j KUBE-NWPLCY-HOST-ENDPOINTS
//! iptables -A KUBE-NWPLCY-HOST-ENDPOINTS -s 10.244.1.8/32 … -m set --match-set KUBE-DST-… dst,dst -j KUBE-POD-FW-…
//! iptables -A KUBE-POD-FW-… … -m limit … -j NFLOG --nflog-group 100
//! iptables -A KUBE-POD-FW-… … -j REJECT …
//! ```
//!
//! What policies say is in the rules, which change in one transaction with those of the policies; what Services say is in
//! the sets. So a policy opens or closes such a path at once with all others, and a Service that changes costs elements.
//! These elements close paths where all others open them: they are added before everything else of a round, and
//! deleted when the rules are in place (`order`, `apply`).
//!
//! While Services are not known completely, rules of an earlier run stay for pods that are isolated still
//! ([`Unsure`], `overlay`): absence proves nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use compact_str::CompactString;

use crate::config::FirewallConfig;
use crate::kernel::ipset::{ElementKey, Entry, SetName};
use crate::kernel::iptables::rule::{SetSides, States};
use crate::kernel::iptables::{Match, Rule, Rules, Verdict};
use crate::model::{Authority, ObjectName, World};
use crate::net::Family;

use super::super::host_endpoints::{HostEndpoint, HostEndpoints, is_denied};
use super::super::plan;
use super::super::rules::{Direction, Isolation, LocalPod, RuleSet};
use super::comment::comment;
use super::names::{self, CHAIN_HOST_ENDPOINTS};

/// The pods whose rules of an earlier run stay: the chains that reject what they send, with the pods' addresses.
pub type Unsure = BTreeMap<CompactString, Box<[IpAddr]>>;

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
        let peers_turn = changed.elements.iter().any(|(_, element)| self.endpoints.is_own(element.address()));
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
            let isolated = rules.pods.iter().filter(|(_, pod)| is_isolated_by_one(pod)).map(|(name, _)| name);
            changed.pods.iter().chain(isolated).cloned().collect()
        };
        for name in asked {
            let pod = rules.pods.get(&name).filter(|pod| pod.egress != Isolation::Open);
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

    /// Returns the elements of the set of an endpoint; `None` if nobody is denied it.
    pub fn elements(&self, endpoint: &HostEndpoint, set: &SetName) -> Option<BTreeSet<ElementKey>> {
        self.uses.get(endpoint)?;
        let entry = |address, port| Entry::IpPort(address, endpoint.protocol, port);
        let entrances = self.endpoints.entrances(endpoint);
        Some(entrances.map(|one| ElementKey { set: set.clone(), entry: entry(one.address, one.port) }).collect())
    }

    /// Returns the chain that dispatches what is refused.
    pub fn dispatch(&self, rules: &RuleSet, family: Family) -> Rules {
        let mut all = Vec::new();
        for (name, denied) in &self.by_pod {
            let Some(pod) = rules.pods.get(name) else { continue };
            let chain = names::refusal_chain(name);
            for address in pod.addresses.iter().filter(|address| Family::from(**address) == family) {
                let source = Match::Source { range: Family::host_prefix(*address), negated: false };
                for endpoint in denied.iter().filter(|one| Family::from(one.address) == family) {
                    let said = comment(&format!("{name} egress to {endpoint}"));
                    let to = Match::in_set(&names::entrances(endpoint), SetSides::DestinationPort);
                    all.push(Rule::new([source.clone(), said, to], Verdict::Jump(chain.clone())));
                }
            }
        }
        Rules(all)
    }

    /// Returns the chain that rejects what a pod sends to Services; `None` if it is denied nothing in this family.
    pub fn refusal(&self, pod: &ObjectName, family: Family) -> Option<Rules> {
        let mut denied = self.by_pod.get(pod)?.iter();
        denied.any(|one| Family::from(one.address) == family).then(|| refusal(pod, family))
    }
}

/// Returns the rule for INPUT that enters the chain for new connections.
pub fn jump() -> Rule {
    let known = States::INVALID.or(States::RELATED).or(States::ESTABLISHED);
    let said = comment("Services with endpoints on this node that policies deny");
    Rule::new([said, Match::State { states: known, negated: true }], Verdict::Jump(CHAIN_HOST_ENDPOINTS.into()))
}

/// Returns the pods whose rules of an earlier run stay; `None` where Services are known completely.
pub fn unsure(rules: &RuleSet, world: &World) -> Option<Unsure> {
    let isolated = rules.pods.iter().filter(|(_, pod)| pod.egress != Isolation::Open);
    (world.authority.proxy != Authority::Complete)
        .then(|| isolated.map(|(name, pod)| (names::refusal_chain(name), pod.addresses.clone())).collect())
}

fn refusal(pod: &ObjectName, family: Family) -> Rules {
    let said = |what: &str| comment(&format!("{pod} egress {what}"));
    let limit = Match::Limit { per_minute: 10, burst: 10 };
    Rules(vec![
        Rule::new([said("log-drop"), limit], Verdict::Log { group: 100 }),
        Rule::new([said("reject")], Verdict::Reject(family)),
    ])
}
