//! Denials of ClusterNetworkPolicies stay in force where these are not known, or not known to select a pod no longer, and what they pass on stays passed on.

use std::collections::BTreeMap;

use crate::kernel::iptables::{Piece, Rule, Rules};
use crate::net::Family;

use super::super::desired::Lost;
use super::super::dispatch;
use super::super::names::{ChainKind, DISPATCH, kind};
use super::super::pod_chain;
use super::{Overlay, is_pod};

impl Overlay {
    /// Keeps the existing jumps of pod chains to chains of ClusterNetworkPolicies that are not desired. `lost`: only to those of
    /// policies that are not known, and for pods that are.
    pub fn keep_cluster_policies(
        &mut self,
        lost: Option<&Lost>,
        rules: &BTreeMap<Piece, Rules>,
        seen: &BTreeMap<Piece, Rules>,
    ) {
        for (piece, wanted) in rules.iter().filter(|(piece, _)| is_pod(piece)) {
            let asked = lost_jumps(lost, piece, wanted, rules, seen);
            if !asked.is_empty() {
                self.keep_chains(&asked, piece.family(), rules, seen);
                self.asked.insert(piece.clone(), asked);
            }
        }
        if let Some(lost) = lost {
            Family::BOTH.into_iter().for_each(|family| self.keep_pods(lost, family, rules, seen));
        }
    }

    /// Keeps chains of pods that only policies which are not known judge.
    fn keep_pods(
        &mut self,
        lost: &Lost,
        family: Family,
        rules: &BTreeMap<Piece, Rules>,
        seen: &BTreeMap<Piece, Rules>,
    ) {
        for piece in DISPATCH.map(|name| dispatch::chain(family, name)) {
            let (true, Some(found)) = (rules.contains_key(&piece), seen.get(&piece)) else { continue };
            for rule in &found.0 {
                let Some(to) = pod_chain::jump(rule).filter(|to| lost.pods.contains(*to)) else { continue };
                let chain = dispatch::chain(family, to);
                if rules.contains_key(&chain) {
                    continue;
                }
                let empty = Rules(Vec::new());
                let asked = lost_jumps(Some(lost), &chain, &empty, rules, seen);
                if asked.is_empty() {
                    continue;
                }
                self.keep_chains(&asked, family, rules, seen);
                self.kept_chains.insert(chain, pod_chain::behind(&asked, &empty, family));
                self.kept.entry(piece.clone()).or_default().push(rule.clone());
            }
        }
    }

    /// Keeps what these jumps lead to, where it is not desired.
    fn keep_chains(
        &mut self,
        jumps: &[Rule],
        family: Family,
        rules: &BTreeMap<Piece, Rules>,
        seen: &BTreeMap<Piece, Rules>,
    ) {
        let chains = jumps.iter().filter_map(pod_chain::jump).map(|to| dispatch::chain(family, to));
        let deciding = dispatch::deciding(family).map(|(chain, _)| chain);
        for chain in chains.chain(deciding).filter(|chain| !rules.contains_key(chain)) {
            if let Some(found) = seen.get(&chain) {
                self.kept_chains.insert(chain, found.clone());
            }
        }
    }
}

/// Returns the jumps of a pod's existing chain to those of ClusterNetworkPolicies that its desired one lacks.
fn lost_jumps(
    lost: Option<&Lost>,
    piece: &Piece,
    wanted: &Rules,
    rules: &BTreeMap<Piece, Rules>,
    seen: &BTreeMap<Piece, Rules>,
) -> Vec<Rule> {
    let is_wanted = |to| wanted.0.iter().any(|rule| pod_chain::jump(rule) == Some(to));
    let mut jumps: Vec<Rule> = Vec::new();
    for rule in seen.get(piece).into_iter().flat_map(|found| &found.0) {
        let Some(to) = pod_chain::jump(rule).filter(|to| kind(to) == Some(ChainKind::ClusterPolicy)) else { continue };
        let chain = dispatch::chain(piece.family(), to);
        let is_lost = lost.is_none_or(|lost| lost.chains.holds(to) && !rules.contains_key(&chain));
        if is_lost && seen.contains_key(&chain) && !is_wanted(to) && !jumps.contains(rule) {
            jumps.push(rule.clone());
        }
    }
    jumps
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::firewall::iptables::names::{self, CHAIN_FORWARD};
    use crate::firewall::lost::LostChains;
    use crate::firewall::rules::{ClusterPolicyKey, Direction};
    use crate::model::{ObjectName, Tier, UnreadPolicies};

    fn pod() -> Piece {
        dispatch::chain(Family::V4, &names::pod_chain(&ObjectName::new("shop", "web-1"), Direction::Ingress))
    }

    fn key(policy: &str) -> ClusterPolicyKey {
        ClusterPolicyKey { tier: Tier::Admin, priority: 7, policy: policy.into(), direction: Direction::Ingress }
    }

    fn guard() -> Piece {
        dispatch::chain(Family::V4, &names::cluster_policy_chain(&key("guard")))
    }

    fn pod_rules(policies: &[&str]) -> Rules {
        let admin = policies.iter().map(|policy| pod_chain::asks_cluster(&key(policy))).collect();
        let asked = pod_chain::EnteringRules { admin, policies: Some(vec![]), ..pod_chain::EnteringRules::default() };
        pod_chain::tiered(&ObjectName::new("shop", "web-1"), Direction::Ingress, asked, Family::V4)
    }

    fn denying() -> Rules {
        Rules(vec!["-j KUBE-NWPLCY-DENY".into()])
    }

    fn lost(policies: &[&str]) -> Lost {
        let names: BTreeSet<_> = policies.iter().map(|name| (*name).into()).collect();
        let chains = LostChains::of(&UnreadPolicies::Named(names.into()), |key| [names::cluster_policy_chain(key)]);
        let pods = Direction::BOTH.map(|direction| names::pod_chain(&ObjectName::new("shop", "web-1"), direction));
        Lost { chains: chains.expect("some are lost"), pods: pods.into() }
    }

    #[test]
    fn a_policy_that_other_pods_still_have_goes_on_denying_where_absence_proves_nothing() {
        let want: BTreeMap<Piece, Rules> = [(pod(), pod_rules(&[])), (guard(), denying())].into();
        let seen: BTreeMap<Piece, Rules> = [(pod(), pod_rules(&["guard"])), (guard(), denying())].into();
        let mut overlay = Overlay::default();
        overlay.keep_cluster_policies(None, &want, &seen);
        let over = overlay.over(&want);
        let jump = [pod_chain::asks_cluster(&key("guard"))];
        assert_eq!(over[&pod()], pod_chain::behind(&jump, &want[&pod()], Family::V4));
        assert_eq!(over[&guard()], want[&guard()]);
    }

    #[test]
    fn only_what_policies_deny_that_cannot_be_read_stays_where_all_others_are_known() {
        let old = dispatch::chain(Family::V4, &names::cluster_policy_chain(&key("old")));
        let want: BTreeMap<Piece, Rules> = [(pod(), pod_rules(&[]))].into();
        let rules = pod_rules(&["guard", "old"]);
        let seen: BTreeMap<Piece, Rules> = [(pod(), rules), (guard(), denying()), (old.clone(), denying())].into();
        let mut overlay = Overlay::default();
        overlay.keep_cluster_policies(Some(&lost(&["guard"])), &want, &seen);
        let over = overlay.over(&want);
        let jump = [pod_chain::asks_cluster(&key("guard"))];
        assert_eq!(over[&pod()], pod_chain::behind(&jump, &want[&pod()], Family::V4));
        assert!(over.contains_key(&guard()) && !over.contains_key(&old));
    }

    #[test]
    fn a_pod_that_nothing_else_judges_stays_judged_by_a_policy_that_cannot_be_read_while_it_is_there() {
        let forward = dispatch::chain(Family::V4, CHAIN_FORWARD);
        let rules = |texts: &[&str]| Rules(texts.iter().map(|text| Rule::from(*text)).collect());
        let tail = "-j KUBE-NWPLCY-TAIL";
        let to_pod =
            format!("-d 10.244.1.7/32 -j {}", names::pod_chain(&ObjectName::new("shop", "web-1"), Direction::Ingress));
        let want: BTreeMap<Piece, Rules> = [(forward.clone(), rules(&[tail]))].into();
        let seen = [(forward.clone(), rules(&[&to_pod, tail])), (pod(), pod_rules(&["guard"])), (guard(), denying())];
        let seen: BTreeMap<Piece, Rules> = seen.into();
        let mut overlay = Overlay::default();
        let lost = lost(&["guard"]);
        overlay.keep_cluster_policies(Some(&lost), &want, &seen);
        let over = overlay.over(&want);
        assert_eq!(over[&forward], rules(&[&to_pod, tail]));
        assert!(over.contains_key(&guard()) && over[&pod()].0.iter().any(pod_chain::refuses_for_cluster));
        let mut again = Overlay::default();
        again.keep_cluster_policies(Some(&lost), &want, &over);
        assert_eq!(again, overlay, "the next round finds what this one has made");
        let mut without = Overlay::default();
        without.keep_cluster_policies(Some(&Lost { pods: BTreeSet::new(), ..lost }), &want, &seen);
        assert!(without.is_empty(), "the pod is gone");
    }

    #[test]
    fn a_cluster_policy_that_nobody_knows_any_more_goes_on_denying_where_absence_proves_nothing() {
        let key =
            ClusterPolicyKey { tier: Tier::Admin, priority: 7, policy: "guard".into(), direction: Direction::Ingress };
        let guard = dispatch::chain(Family::V4, &names::cluster_policy_chain(&key));
        let admin = vec![pod_chain::asks_cluster(&key)];
        let asked =
            |admin| pod_chain::EnteringRules { admin, policies: Some(vec![]), ..pod_chain::EnteringRules::default() };
        let name = ObjectName::new("shop", "web-1");
        let pod_rules = |admin| pod_chain::tiered(&name, Direction::Ingress, asked(admin), Family::V4);
        let want: BTreeMap<Piece, Rules> = [(pod(), pod_rules(vec![]))].into();
        let mut seen: BTreeMap<Piece, Rules> = [(pod(), pod_rules(admin.clone()))].into();
        let mut overlay = Overlay::default();
        overlay.keep_cluster_policies(None, &want, &seen);
        assert!(overlay.is_empty(), "its chain is gone");
        seen.insert(guard.clone(), Rules(vec!["-j KUBE-NWPLCY-DENY".into()]));
        overlay.keep_cluster_policies(None, &want, &seen);
        let over = overlay.over(&want);
        assert_eq!(over.get(&guard), seen.get(&guard));
        let chain = &over[&pod()].0;
        assert!(chain.starts_with(&pod_chain::behind(&admin, &Rules(vec![]), Family::V4).0), "{chain:?}");
        assert!(chain.ends_with(&want[&pod()].0));
        // The next round finds what this one has made.
        let mut again = Overlay::default();
        again.keep_cluster_policies(None, &want, &over);
        assert_eq!(again, overlay);
        // Once it is known again, or known to be gone, it is as desired.
        let mut known = Overlay::default();
        known.keep_cluster_policies(None, &seen, &seen);
        assert!(known.is_empty());
    }
}
