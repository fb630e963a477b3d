//! The rules by which pods are refused Services with an endpoint on this node (the other
//! [`host_endpoints`](super::super::host_endpoints) explains them).
//!
//! In the kernel, for a pod that may not reach the host endpoint 192.0.2.11:6443 of the Service at 10.96.0.1:443, before
//! the exemptions of Services in the chain for INPUT:
//!
//! ```text
//! ipset    KUBE-DST-…                    hash:ip,port    10.96.0.1,tcp:443  192.0.2.11,tcp:30443
//! iptables -A KUBE-ROUTER-INPUT … -m conntrack ! --ctstate RELATED,ESTABLISHED -j KUBE-NWPLCY-HOST-ENDPOINTS
//! iptables -A KUBE-ROUTER-INPUT … -m mark ! --mark 0x0/0x3fff -m mark ! --mark 0x3fff/0x3fff -j KUBE-NWPLCY-HOST-ENDPOINTS    direct server return
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
use crate::kernel::iptables::rule::{IpProtocol, Mark, SetSides, States};
use crate::kernel::iptables::{Match, Rule, Rules, Verdict};
use crate::model::{Authority, ObjectName, World};
use crate::net::service_mark::MASK;
use crate::net::{Family, PortRange};

use super::super::denials::Denials;
use super::super::host_endpoints::HostEndpoint;
use super::super::rules::{Direction, RuleSet};
use super::super::service_addresses::Entrance;
use super::comment::comment;
use super::names::{self, CHAIN_HOST_ENDPOINTS};
use super::pod_chain::{LOG, LOG_LIMIT};

/// The pods whose rules of an earlier run stay: the chains that reject what they send, with the pods' addresses.
pub type Unsure = BTreeMap<CompactString, Box<[IpAddr]>>;

/// Returns the elements of the set of an endpoint; `None` if nobody is denied it.
pub fn elements(denials: &Denials, endpoint: &HostEndpoint, set: &SetName) -> Option<BTreeSet<ElementKey>> {
    let entry = |address, port| Entry::IpPort(address, endpoint.protocol, port);
    let key = |one: &Entrance| ElementKey { set: set.clone(), entry: entry(one.address, one.port) };
    denials.is_denied_to_any(endpoint).then(|| denials.entrances(endpoint).map(key).collect())
}

/// Returns the chain that dispatches what is refused.
pub fn dispatch(denials: &Denials, rules: &RuleSet, family: Family) -> Rules {
    let mut all = Vec::new();
    let is_denied_any = |name: &&ObjectName| denials.of(name).any(|one| Family::from(one.address) == family);
    for name in denials.pods().filter(is_denied_any) {
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
pub fn refusal(denials: &Denials, pod: &ObjectName, family: Family) -> Option<Rules> {
    let denied = denials.of(pod).filter(|one| Family::from(one.address) == family);
    let rules: Vec<Rule> = denied.flat_map(|endpoint| rejecting(pod, endpoint, family)).collect();
    (!rules.is_empty()).then_some(Rules(rules))
}

/// Returns the rule for INPUT that enters the chain for new connections.
pub fn jump() -> Rule {
    // What connection tracking cannot assign is refused as well: the addresses of Services are accepted before that is dropped.
    let known = States::RELATED.or(States::ESTABLISHED);
    let said = comment("Services with endpoints on this node that policies deny");
    Rule::new([said, Match::State { states: known, negated: true }], Verdict::Jump(CHAIN_HOST_ENDPOINTS.into()))
}

/// Returns the rule for INPUT that enters the chain for all packets with the mark of a port in tunnel mode: IPVS may send the next packet of a connection to another
/// endpoint, and no rule sees it behind that.
pub fn jump_in_tunnel_mode() -> Rule {
    let said = comment("ports in tunnel mode with endpoints that policies deny");
    let marked = [0, MASK].map(|value| Match::Mark { mark: Mark { value, mask: MASK }, negated: true });
    let matches: Vec<Match> = [said].into_iter().chain(marked).collect();
    Rule::new(matches, Verdict::Jump(CHAIN_HOST_ENDPOINTS.into()))
}

/// Returns the pods whose rules of an earlier run stay; `None` where Services are known completely, or never will be, because
/// neither the service proxy nor the router runs: what nothing keeps up to date goes.
pub fn unsure(rules: &RuleSet, world: &World, config: &FirewallConfig) -> Option<Unsure> {
    let isolated = rules.pods.iter().filter(|(_, pod)| pod.is_judged(Direction::Egress));
    (config.knows_services && world.authority.proxy != Authority::Complete)
        .then(|| isolated.map(|(name, pod)| (names::refusal_chain(name), pod.addresses.clone())).collect())
}

fn rejecting(pod: &ObjectName, endpoint: &HostEndpoint, family: Family) -> [Rule; 2] {
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
