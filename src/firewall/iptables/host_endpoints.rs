//! The rules by which pods are refused Services with an endpoint on this node (the other
//! [`host_endpoints`](super::super::host_endpoints) explains them).
//!
//! In the kernel, for a pod that may not reach the host endpoint 192.0.2.11:6443 of the Service at 10.96.0.1:443, before
//! the exemptions of Services in the chain for INPUT:
//!
//! ```text
//! ipset    KUBE-DST-…                    hash:ip,port    10.96.0.1,tcp:443  192.0.2.11,tcp:30443
//! iptables -A KUBE-ROUTER-INPUT … -m conntrack ! --ctstate INVALID,RELATED,ESTABLISHED -j KUBE-NWPLCY-HOST-ENDPOINTS
//! iptables -A KUBE-NWPLCY-HOST-ENDPOINTS -s 10.244.1.8/32 … -j KUBE-POD-FW-…        one for each pod
//! iptables -A KUBE-POD-FW-… … -m set --match-set KUBE-DST-… dst,dst -m limit … -j NFLOG --nflog-group 100
//! iptables -A KUBE-POD-FW-… … -m set --match-set KUBE-DST-… dst,dst -j REJECT …     two for each endpoint
//! ```
//!
//! Where the kernel does not take such a set, its elements become matches of the rules ([`without_sets`]).
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
use crate::kernel::iptables::rule::{IpProtocol, SetSides, States};
use crate::kernel::iptables::{Match, Rule, Rules, Verdict};
use crate::model::{Authority, ObjectName, World};
use crate::net::{Family, PortRange};

use super::super::host_endpoints::{HostEndpoint, HostEndpoints, is_denied};
use super::super::plan;
use super::super::rules::{Direction, Isolation, LocalPod, RuleSet};
use super::comment::comment;
use super::names::{self, CHAIN_HOST_ENDPOINTS};
use super::pod_chain::{LOG, LOG_LIMIT};

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
        let is_denied_any =
            |denied: &BTreeSet<HostEndpoint>| denied.iter().any(|one| Family::from(one.address) == family);
        for (name, _) in self.by_pod.iter().filter(|(_, denied)| is_denied_any(denied)) {
            let Some(pod) = rules.pods.get(name) else { continue };
            let chain = names::refusal_chain(name);
            for address in pod.addresses.iter().filter(|address| Family::from(**address) == family) {
                let source = Match::Source { range: Family::host_prefix(*address), negated: false };
                let said = comment(&format!("{name} egress to Services"));
                all.push(Rule::new([source, said], Verdict::Jump(chain.clone())));
            }
        }
        Rules(all)
    }

    /// Returns the chain that rejects what a pod sends to Services; `None` if it is denied nothing in this family.
    pub fn refusal(&self, pod: &ObjectName, family: Family) -> Option<Rules> {
        let denied = self.by_pod.get(pod)?.iter().filter(|one| Family::from(one.address) == family);
        let rules: Vec<Rule> = denied.flat_map(|endpoint| refusal(pod, endpoint, family)).collect();
        (!rules.is_empty()).then_some(Rules(rules))
    }
}

/// Returns the rule for INPUT that enters the chain for new connections.
pub fn jump() -> Rule {
    let known = States::INVALID.or(States::RELATED).or(States::ESTABLISHED);
    let said = comment("Services with endpoints on this node that policies deny");
    Rule::new([said, Match::State { states: known, negated: true }], Verdict::Jump(CHAIN_HOST_ENDPOINTS.into()))
}

/// Returns the pods whose rules of an earlier run stay; `None` where Services are known completely, or never will be, because
/// neither the service proxy nor the router runs: what nothing keeps up to date goes.
pub fn unsure(rules: &RuleSet, world: &World, config: &FirewallConfig) -> Option<Unsure> {
    let isolated = rules.pods.iter().filter(|(_, pod)| pod.egress != Isolation::Open);
    (config.knows_services && world.authority.proxy != Authority::Complete)
        .then(|| isolated.map(|(name, pod)| (names::refusal_chain(name), pod.addresses.clone())).collect())
}

fn refusal(pod: &ObjectName, endpoint: &HostEndpoint, family: Family) -> [Rule; 2] {
    let said = |what: &str| comment(&format!("{pod} egress to {endpoint} {what}"));
    let to = Match::in_set(&names::entrances(endpoint), SetSides::DestinationPort);
    [
        Rule::new([said("log-drop"), to.clone(), LOG_LIMIT], LOG),
        Rule::new([said("reject"), to], Verdict::Reject(family)),
    ]
}

/// Sets that do not exist, with the elements that they should have.
pub type MissingSets = BTreeMap<SetName, Box<[Entry]>>;

/// Returns the same refusals without these sets: a rule for each element in place of one for the set.
pub fn without_sets(rules: &Rules, missing: &MissingSets) -> Rules {
    let one_by_one = |rule: &Rule| -> Vec<Rule> {
        let Some(entries) = rule.sets().find_map(|set| missing.get(set)) else { return vec![rule.clone()] };
        let rest = || rule.matches().iter().filter(|one| !matches!(one, Match::Set { .. })).cloned();
        let for_entry = |entry: &Entry| {
            let Entry::IpPort(address, protocol, port) = *entry else { return None };
            let to = Match::Destination { range: Family::host_prefix(address), negated: false };
            let ports = Match::Ports([PortRange { first: port, last: port }].into());
            let protocol = Match::Protocol(IpProtocol::Transport(protocol));
            let matches: Vec<Match> = [to, protocol].into_iter().chain(rest()).chain([ports]).collect();
            Some(Rule::new(matches, rule.verdict()?.clone()))
        };
        entries.iter().filter_map(for_entry).collect()
    };
    Rules(rules.0.iter().flat_map(one_by_one).collect())
}
