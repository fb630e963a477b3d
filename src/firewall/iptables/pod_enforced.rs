//! Checks whether the kernel judges one pod's packets as the rule set says: what a pod that starts waits for.
//!
//! Only that pod's objects count: its addresses in the set of local pods, the jumps to its chains, these chains, those of the
//! policies that isolate it and of the ClusterNetworkPolicies that select it, the sets that they use, and the fixed chains. What the kernel refuses does not count
//! (`overlay`): it closes more than is desired, and may be refused for ever. Neither do elements that it does not take, where
//! they only open a path. What is desired of other pods may be late or fail, but for what their rules hold of the addresses of one that starts, where it lets the pod
//! do more than it may ([`favouring`]): whoever had the address before may have been allowed, or not denied, what this pod is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::kernel::ipset::{ElementKey, Entry, SetName};
use crate::kernel::iptables::{Piece, Rule, Rules};
use crate::model::ObjectName;
use crate::net::Family;
use crate::reconcile::Differing;

use super::super::rules::{Direction, Isolation, PolicyKey, RuleSet};
use super::desired::Desired;
use super::dispatch::{self, chain};
use super::enforced::Seen;
use super::names::{
    self, CHAIN_COMMON, CHAIN_DEFAULT, CHAIN_FORWARD, CHAIN_HOST_ENDPOINTS, CHAIN_INPUT, CHAIN_LINK_LOCAL,
    CHAIN_MULTICAST, CHAIN_OUTPUT, CHAIN_TAIL, ChainKind,
};
use super::overlay::Overlay;
use super::pod_chain;

/// State of the kernel, and what is currently not applied to it.
pub struct Applied<'a> {
    pub seen: Seen<'a>,
    pub overlay: &'a Overlay,
    /// By what the elements differ from the desired ones, apart from those in doubt. Costs what differs, however many there are.
    pub differing: Differing<ElementKey>,
    /// Elements that could not be added when that was tried the last time.
    pub failing: BTreeSet<&'a ElementKey>,
    /// Elements that may be in the kernel or not: the last attempt to change them failed.
    pub doubts: BTreeSet<&'a ElementKey>,
    /// The cluster is known in part, so that elements stay although they are not desired.
    pub keeps_surplus: bool,
}

/// Returns what the kernel lacks of this pod's rules, as a sentence without its end; the first of several.
///
/// # Errors
/// That sentence.
pub fn pod_enforced(
    rules: &RuleSet,
    name: &ObjectName,
    desired: &Desired,
    applied: &Applied<'_>,
) -> Result<(), String> {
    let Some(pod) = rules.pods.get(name) else { return Err(format!("{name} is no pod of this node")) };
    let (Some(seen_rules), Some(seen_elements)) = (applied.seen.rules, applied.seen.elements) else {
        return Err("what the kernel holds is not known at the moment".to_owned());
    };
    // A family that is off has no rules.
    let is_on = |family: Family| desired.rules.contains_key(&chain(family, CHAIN_TAIL));
    for family in Family::BOTH.into_iter().filter(|family| is_on(*family)) {
        let addresses: Vec<IpAddr> =
            pod.addresses.iter().copied().filter(|address| Family::from(*address) == family).collect();
        if addresses.is_empty() {
            continue;
        }
        let set = names::local_pods(family);
        let is_open = |address: &&IpAddr| {
            !seen_elements.contains_key(&ElementKey { set: set.clone(), entry: Entry::Ip(**address) })
        };
        if let Some(address) = addresses.iter().find(is_open) {
            return Err(format!("set {set} does not hold {address}"));
        }
        // All pods that have one of its addresses have to allow its packets.
        let pods: BTreeSet<&ObjectName> =
            addresses.iter().flat_map(|address| rules.local_pods_at(*address)).map(|(name, _)| name).collect();
        let own = Own::of(rules, &pods, family);
        let mut sets: BTreeSet<&SetName> = BTreeSet::new();
        for piece in own.pieces(desired) {
            let Some(wanted) = desired.rules.get(&piece) else { continue };
            let Some(for_now) = applied.overlay.over_piece(&piece, wanted) else { continue };
            if seen_rules.get(&piece).map(|rules| own.of_pods(rules)) != Some(own.of_pods(&for_now)) {
                return Err(format!("{piece} is not as it must be"));
            }
            sets.extend(own.of_pods(wanted).into_iter().flat_map(Rule::sets));
        }
        sets.remove(set);
        for set in sets {
            if !has_elements(set, desired, applied) {
                return Err(format!("set {set} does not hold what it must"));
            }
        }
    }
    let addresses: BTreeSet<IpAddr> = pod.addresses.iter().copied().collect();
    let favouring = favouring(&addresses, desired, applied, seen_rules);
    favouring.map_or(Ok(()), |element| Err(format!("{element} is still that of another pod")))
}

/// Returns an element by which the kernel may allow one of these addresses more than it may, in whatever set: one that is too much where it opens, one that is missing
/// where it closes. A set that no rule names allows nothing, nor do the chains of policies that nobody enters or that are kept of ClusterNetworkPolicies that cannot be read: of these only what they
/// refuse counts (`pod_chain::behind`), and their sets stay as they are for as long as it takes.
fn favouring<'a>(
    addresses: &BTreeSet<IpAddr>,
    desired: &Desired,
    applied: &'a Applied<'_>,
    seen_rules: &BTreeMap<Piece, Rules>,
) -> Option<&'a ElementKey> {
    let Applied { differing, failing, doubts, keeps_surplus, .. } = applied;
    let is_there = |key: &ElementKey| applied.seen.elements.is_some_and(|seen| seen.contains_key(key));
    let is_entered = |piece: &Piece| {
        let enters = |rule: &Rule| pod_chain::jump(rule).is_some_and(|to| chain(piece.family(), to) == *piece);
        let mut others = seen_rules.iter().filter(|(other, _)| other.family() == piece.family());
        others.any(|(_, rules)| rules.0.iter().any(enters))
    };
    let may_open = |piece: &Piece| match names::kind_of(piece) {
        Some(ChainKind::Policy | ChainKind::ClusterPolicy) => !applied.overlay.keeps(piece) && is_entered(piece),
        _ => true,
    };
    let is_named = |key: &ElementKey| {
        let names_it = |rule: &Rule| rule.sets().any(|set| *set == key.set);
        let mut naming = seen_rules.iter().filter(|(_, rules)| rules.0.iter().any(names_it));
        desired.sets.contains_key(&key.set) || naming.any(|(piece, _)| may_open(piece))
    };
    let is_concerned = |key: &&ElementKey| {
        let is_its = match &key.entry {
            Entry::Ip(address) | Entry::IpPort(address, ..) => addresses.contains(address),
            _ => false,
        };
        is_its && key.set != *names::local_pods(key.entry.family())
    };
    let all = || differing.missing.iter().chain(failing.iter().copied()).chain(doubts.iter().copied());
    let lacks = |key: &&ElementKey| {
        desired.closes(key) && desired.elements.contains_key(*key) && (!is_there(key) || doubts.contains(*key))
    };
    let may_be_left = |key: &&ElementKey| !desired.elements.contains_key(*key) && !desired.closes(key) && is_named(key);
    let surplus = differing.surplus.iter().filter(|_| !keeps_surplus);
    let left = || surplus.chain(doubts.iter().copied()).filter(is_concerned).find(may_be_left);
    all().filter(is_concerned).find(lacks).or_else(left)
}

/// The chains of pods that share an address.
struct Own {
    family: Family,
    /// Those of the pods, in both directions, and of what they are refused of Services.
    of_pods: BTreeSet<String>,
    of_policies: BTreeSet<String>,
}

impl Own {
    fn of(rules: &RuleSet, pods: &BTreeSet<&ObjectName>, family: Family) -> Own {
        let mut own = Own { family, of_pods: BTreeSet::new(), of_policies: BTreeSet::new() };
        for (name, pod) in pods.iter().filter_map(|name| rules.pods.get_key_value(*name)) {
            own.of_pods.insert(names::refusal_chain(name).to_string());
            for direction in Direction::BOTH {
                own.of_pods.insert(names::pod_chain(name, direction).to_string());
                let of_cluster = pod.cluster_policies.iter().map(names::cluster_policy_chain);
                own.of_policies.extend(of_cluster.map(|chain| chain.to_string()));
                let Isolation::Isolated { policies, .. } = pod.isolation(direction) else { continue };
                let chain = |policy: &ObjectName| names::policy_chain(&PolicyKey { policy: policy.clone(), direction });
                own.of_policies.extend(policies.iter().map(|policy| chain(policy).to_string()));
            }
        }
        own
    }

    /// Returns all chains and jumps that their packets meet.
    fn pieces(&self, desired: &Desired) -> Vec<Piece> {
        let fixed = [
            CHAIN_INPUT,
            CHAIN_FORWARD,
            CHAIN_OUTPUT,
            CHAIN_COMMON,
            CHAIN_DEFAULT,
            CHAIN_HOST_ENDPOINTS,
            CHAIN_LINK_LOCAL,
            CHAIN_MULTICAST,
            CHAIN_TAIL,
        ];
        let own = self.of_pods.iter().chain(&self.of_policies).map(String::as_str);
        let chains = fixed.into_iter().chain(own).map(|name| chain(self.family, name));
        let jumps = dispatch::entrances(self.family).map(|(jump, ..)| jump);
        let deciding = dispatch::deciding(self.family).map(|(chain, _)| chain);
        chains.chain(jumps).chain(deciding).filter(|piece| desired.rules.contains_key(piece)).collect()
    }

    /// Returns the rules of a chain without the jumps to chains of other pods.
    fn of_pods<'a>(&self, rules: &'a Rules) -> Vec<&'a Rule> {
        let is_others = |rule: &&Rule| {
            let to = pod_chain::jump(rule).filter(|to| names::kind(to) == Some(ChainKind::Pod));
            to.is_some_and(|to| !self.of_pods.contains(to.as_str()))
        };
        rules.0.iter().filter(|rule| !is_others(rule)).collect()
    }
}

/// Returns whether a set holds what it must, but for what the kernel does not take and what closes more than is desired.
fn has_elements(set: &SetName, desired: &Desired, applied: &Applied<'_>) -> bool {
    let Some(seen) = applied.seen.elements else { return false };
    let Applied { differing, failing, doubts, .. } = applied;
    let is_of_set = |key: &&ElementKey| key.set == *set;
    let mut missing = differing.missing.iter().filter(is_of_set);
    if desired.closing.contains(set) || desired.denied.contains(set) {
        let mut failing = failing.iter().copied().filter(is_of_set);
        let is_missing = |key: &ElementKey| desired.elements.contains_key(key) && !seen.contains_key(key);
        return missing.next().is_none() && !failing.any(is_missing);
    }
    // One that had to be deleted and could not be opens a path until it is read back or deleted.
    let is_left = |key: &&ElementKey| key.set == *set && !desired.elements.contains_key(*key);
    if doubts.iter().copied().any(|key| is_left(&key)) {
        return false;
    }
    let mut surplus = differing.surplus.iter().filter(is_of_set);
    missing.all(|key| failing.contains(key)) && (applied.keeps_surplus || surplus.next().is_none())
}

#[cfg(test)]
mod tests;
