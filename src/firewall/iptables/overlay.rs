//! Deviations from the desired rules while not all of them can be applied.
//!
//! Two reasons to deviate from what the policies require, and in both nothing opens:
//!
//! - The kernel refuses a chain, because a module is missing, say, or a set that the chain uses could not be created. A
//!   policy's chain is left out, and with it the jumps to it: the pods that the policy isolates stay isolated, and what
//!   only this policy would allow is refused. Where the policy may deny, as one of the cluster may, all that it would have been
//!   asked about is dropped. A pod's chain is tried in forms that need fewer modules, down to one that
//!   drops everything; a chain of bridges without its logging. What is left out is retried with growing delays.
//! - The cluster is not known completely ([`Authority::Partial`](crate::model::Authority)): absence proves nothing, so
//!   pods that are judged stay judged, although they are no longer known, and so do those that a ClusterNetworkPolicy judges which
//!   is not known any more, or does not select them any more. Where only such policies are not known ([`Lost`](super::desired::Lost)),
//!   what they deny stays denied, and all else is as desired.

mod cluster_policies;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::kernel::ipset::SetName;
use crate::kernel::iptables::{Match, Piece, Rule, Rules};
use crate::net::Family;
use crate::reconcile::{Backoff, Moment};

use super::desired::Desired;
use super::dispatch;
use super::host_endpoints::{MissingSets, Unsure, without_sets};
use super::lowering::elements_of;
use super::names::{CHAIN_HOST_ENDPOINTS, ChainKind, DISPATCH, kind, kind_of};
use super::pod_chain::{self, PodChainForm};

/// The chains that the kernel has refused, with the times of their retries.
#[derive(Default)]
pub struct Refusals(BTreeMap<Piece, Refused>);

/// One refused chain.
pub struct Refused {
    pub reason: String,
    pub since: Instant,
    form: PodChainForm,
    backoff: Backoff,
}

/// The rules that are currently left out or reduced.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Overlay {
    /// Policy chains that are left out, with the jumps to them.
    omitted: BTreeSet<Piece>,
    /// Pod chains that exist in a reduced form.
    reduced: BTreeMap<Piece, PodChainForm>,
    /// Jumps of dispatch chains that are kept although they are not desired.
    kept: BTreeMap<Piece, Vec<Rule>>,
    /// Jumps of pod chains to chains of ClusterNetworkPolicies that are not known.
    asked: BTreeMap<Piece, Vec<Rule>>,
    /// Chains that kept jumps lead to and that are not desired.
    kept_chains: BTreeMap<Piece, Rules>,
    /// Sets that do not exist, where pods are refused Services by them.
    missing: MissingSets,
}

/// Number of consecutive failures that one refusal counts as: the next try is some seconds away.
const FAILURES_AT_ONCE: u32 = 7;

impl Refusals {
    /// Records that the kernel has refused a chain. Returns false for a chain without a fallback.
    pub fn note(&mut self, piece: &Piece, reason: String, at: Moment) -> bool {
        if !has_stand_in(piece) {
            return false;
        }
        let fresh =
            Refused { reason: String::new(), since: at.now, form: PodChainForm::Unlogged, backoff: Backoff::default() };
        let known = self.0.contains_key(piece);
        let refused = self.0.entry(piece.clone()).or_insert(fresh);
        // A refused reduced form is not the whole chain that waits for its retry.
        let was_reduced = known && refused.backoff.retry_at().is_some();
        if was_reduced && is_of_bridges(piece) {
            return false;
        }
        if was_reduced {
            refused.form = PodChainForm::Closed;
        }
        refused.reason = reason;
        // The reduced form applies until then, and failures of the kernel seldom pass within that time.
        let times = if known { 1 } else { FAILURES_AT_ONCE };
        (0..times).for_each(|_| refused.backoff.failed(at.now, at.jitter));
        true
    }

    /// Makes the next try of each chain due now.
    pub fn hasten(&mut self, now: Instant) {
        self.0.values_mut().for_each(|refused| refused.backoff.hasten(now));
    }

    /// Ends the delay of chains whose retry is due: they are desired whole again at the next change of rules.
    pub fn fall_due(&mut self, now: Instant) {
        for refused in self.0.values_mut() {
            if refused.backoff.is_due(now) {
                refused.backoff.tried();
            }
        }
    }

    /// Returns the chains to be left out now: refused, and not yet due for a retry.
    pub fn overlay(&mut self, now: Instant) -> Overlay {
        self.fall_due(now);
        let mut overlay = Overlay::default();
        for (piece, refused) in &self.0 {
            if refused.backoff.retry_at().is_none() {
                continue;
            }
            if is_policy(piece) {
                overlay.omitted.insert(piece.clone());
            } else {
                overlay.reduced.insert(piece.clone(), refused.form);
            }
        }
        overlay
    }

    /// Forgets chains that are no longer desired or now exist. Returns how many were forgotten.
    pub fn settle(&mut self, want: &BTreeMap<Piece, Rules>, seen: Option<&BTreeMap<Piece, Rules>>) -> usize {
        let before = self.0.len();
        self.0.retain(|piece, _| match want.get(piece) {
            None => false,
            Some(rules) => seen.is_none_or(|seen| seen.get(piece) != Some(rules)),
        });
        before - self.0.len()
    }

    pub fn all(&self) -> &BTreeMap<Piece, Refused> {
        &self.0
    }

    /// Returns when the next retry is due.
    pub fn retry_at(&self) -> Option<Instant> {
        self.0.values().filter_map(|refused| refused.backoff.retry_at()).min()
    }
}

impl Overlay {
    /// Leaves out the policy chains that use one of these sets, which do not exist. Refusals of Services name the elements of
    /// theirs one by one: leaving out a rule would open a path.
    pub fn omit_those_naming(&mut self, missing: &BTreeSet<SetName>, desired: &Desired) {
        if missing.is_empty() {
            return;
        }
        let names = |rule: &Rule| rule.sets().any(|set| missing.contains(set));
        let naming = desired.rules.iter().filter(|(_, rules)| rules.0.iter().any(names));
        self.omitted.extend(naming.filter(|(piece, _)| is_policy(piece)).map(|(piece, _)| piece.clone()));
        let elements = |set| desired.elements.range(elements_of(set)).map(|(key, ())| key.entry.clone()).collect();
        let closing = missing.iter().filter(|set| desired.closing.contains(*set));
        self.missing = closing.map(|set| (set.clone(), elements(set))).collect();
    }

    /// Keeps the existing jumps of dispatch chains to pod chains that are not desired, and what closes link-local
    /// traffic.
    pub fn keep_jumps(&mut self, rules: &BTreeMap<Piece, Rules>, seen: &BTreeMap<Piece, Rules>) {
        for family in Family::BOTH {
            for name in DISPATCH.into_iter().chain([CHAIN_HOST_ENDPOINTS]) {
                let piece = dispatch::chain(family, name);
                let (Some(wanted), Some(found)) = (rules.get(&piece), seen.get(&piece)) else { continue };
                let is_jump = |rule: &&Rule| {
                    let is_kept = |to: &str| matches!(kind(to), Some(ChainKind::Pod | ChainKind::Bridge));
                    let to = pod_chain::jump(rule).filter(|to| is_kept(to));
                    to.is_some_and(|to| seen.contains_key(&dispatch::chain(family, to)))
                };
                let jumps: Vec<Rule> =
                    found.0.iter().filter(is_jump).filter(|rule| !wanted.0.contains(rule)).cloned().collect();
                if !jumps.is_empty() {
                    self.kept.insert(piece, jumps);
                }
            }
        }
    }

    /// Keeps the existing refusals of Services for these pods, which are isolated still.
    pub fn keep_refusals(&mut self, unsure: &Unsure, rules: &BTreeMap<Piece, Rules>, seen: &BTreeMap<Piece, Rules>) {
        for family in Family::BOTH {
            let piece = dispatch::chain(family, CHAIN_HOST_ENDPOINTS);
            let (Some(wanted), Some(found)) = (rules.get(&piece), seen.get(&piece)) else { continue };
            for rule in &found.0 {
                let Some(to) = pod_chain::jump(rule) else { continue };
                let chain = dispatch::chain(family, to);
                let is_its = |one: &Match| match one {
                    Match::Source { range, .. } => unsure.get(to).is_some_and(|pod| pod.contains(&range.addr())),
                    _ => false,
                };
                let Some(rejecting) = seen.get(&chain).filter(|_| rule.matches().iter().any(is_its)) else { continue };
                if !wanted.0.contains(rule) {
                    let kept = self.kept.entry(piece.clone()).or_default();
                    if !kept.contains(rule) {
                        kept.push(rule.clone());
                    }
                }
                let Some(now) = rules.get(&chain) else {
                    self.kept_chains.insert(chain, rejecting.clone());
                    continue;
                };
                let more: Vec<Rule> = rejecting.0.iter().filter(|rule| !now.0.contains(rule)).cloned().collect();
                if !more.is_empty() {
                    self.kept.insert(chain, more);
                }
            }
        }
    }

    /// Returns whether a chain is not desired and kept.
    pub fn keeps(&self, piece: &Piece) -> bool {
        self.kept_chains.contains_key(piece)
    }

    /// Returns the sets that kept rules use.
    pub fn sets_of_kept(&self) -> BTreeSet<SetName> {
        let chains = self.kept_chains.values().flat_map(|rules| &rules.0);
        self.kept.values().flatten().chain(chains).flat_map(Rule::sets).cloned().collect()
    }

    pub fn is_empty(&self) -> bool {
        *self == Overlay::default()
    }

    /// Returns the rules desired for the time being.
    pub fn over(&self, rules: &BTreeMap<Piece, Rules>) -> BTreeMap<Piece, Rules> {
        let wanted = rules.iter().filter(|(piece, _)| !self.omitted.contains(piece));
        let wanted = wanted.map(|(piece, rules)| (piece.clone(), self.over_one(piece, rules)));
        let kept = self.kept_chains.iter().map(|(piece, rules)| (piece.clone(), rules.clone()));
        wanted.chain(kept).collect()
    }

    /// Returns the same of one chain or jump; `None` where it is left out.
    pub fn over_piece<'a>(&self, piece: &Piece, rules: &'a Rules) -> Option<Cow<'a, Rules>> {
        if self.is_empty() {
            return Some(Cow::Borrowed(rules));
        }
        (!self.omitted.contains(piece)).then(|| Cow::Owned(self.over_one(piece, rules)))
    }

    fn over_one(&self, piece: &Piece, rules: &Rules) -> Rules {
        if is_pod(piece) || is_of_bridges(piece) {
            let form = self.reduced.get(piece).copied().unwrap_or(PodChainForm::Whole);
            let asked = self.asked.get(piece).map(|asked| pod_chain::behind(asked, rules, piece.family()));
            let kept = self.kept.get(piece).into_iter().flatten();
            let rules = without_sets(
                &Rules(asked.as_ref().unwrap_or(rules).0.iter().chain(kept).cloned().collect()),
                &self.missing,
            );
            let reduced = pod_chain::reduced(&rules, form);
            let family = piece.family();
            return pod_chain::without(&reduced, |chain| self.omitted.contains(&dispatch::chain(family, chain)));
        }
        let Some(kept) = self.kept.get(piece) else { return rules.clone() };
        // Bridges are closed before anything is accepted, pods judged before the last rule: the jump to the tail, which accepts.
        let (of_bridges, of_pods): (Vec<_>, Vec<_>) = kept.iter().partition(|rule| dispatch::is_of_bridge(rule));
        let (last, others) = rules.0.split_last().map_or((None, &[][..]), |(last, others)| (Some(last), others));
        Rules(of_bridges.into_iter().chain(others).chain(of_pods).chain(last).cloned().collect())
    }
}

/// Returns whether this piece has a fallback when the kernel refuses it.
pub fn has_stand_in(piece: &Piece) -> bool {
    is_policy(piece) || is_pod(piece) || is_of_bridges(piece)
}

fn is_of_bridges(piece: &Piece) -> bool {
    kind_of(piece) == Some(ChainKind::Bridge)
}

fn is_policy(piece: &Piece) -> bool {
    matches!(kind_of(piece), Some(ChainKind::Policy | ChainKind::ClusterPolicy))
}

fn is_pod(piece: &Piece) -> bool {
    kind_of(piece) == Some(ChainKind::Pod)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::firewall::iptables::names::{CHAIN_FORWARD, CHAIN_TAIL};
    use crate::firewall::iptables::{link_local, multicast, names, policy_chain};
    use crate::firewall::rules::{Direction, PolicyKey, SetKey};
    use crate::kernel::ipset::{ElementKey, Entry};
    use crate::model::ObjectName;
    use crate::net::Protocol;

    fn pod() -> Piece {
        dispatch::chain(Family::V4, &names::pod_chain(&ObjectName::new("shop", "web-1"), Direction::Ingress))
    }

    fn policy(name: &str) -> (PolicyKey, Piece) {
        let key = PolicyKey { policy: ObjectName::new("shop", name), direction: Direction::Ingress };
        let chain = names::policy_chain(&key);
        (key, dispatch::chain(Family::V4, &chain))
    }

    fn pod_rules(policies: &[&str]) -> Rules {
        let asking = policies.iter().map(|name| pod_chain::asks(&policy(name).0));
        pod_chain::rules(&ObjectName::new("shop", "web-1"), Direction::Ingress, asking, Family::V4)
    }

    fn wanted() -> BTreeMap<Piece, Rules> {
        let named = |set: &SetKey| names::set(set).v4.clone();
        let empty = |(key, piece)| (piece, policy_chain::rules(&key, &[], Family::V4, &named));
        let mut rules: BTreeMap<Piece, Rules> = ["a", "b"].map(policy).map(empty).into();
        rules.insert(pod(), pod_rules(&["a", "b"]));
        rules
    }

    #[test]
    fn a_refused_policy_allows_nothing_and_its_pods_stay_isolated() {
        let at = Moment { now: Instant::now(), jitter: 0 };
        let mut refusals = Refusals::default();
        assert!(refusals.note(&policy("b").1, "no module".into(), at));
        let over = refusals.overlay(at.now).over(&wanted());
        assert_eq!(over.get(&pod()), Some(&pod_rules(&["a"])));
        assert!(!over.contains_key(&policy("b").1));
        // A chain that is due is retried as a whole.
        let later = at.now + Duration::from_secs(60);
        assert!(refusals.overlay(later).is_empty());
    }

    #[test]
    fn a_refused_pod_is_closed_by_ever_less() {
        let at = Moment { now: Instant::now(), jitter: 0 };
        let mut refusals = Refusals::default();
        let form = |refusals: &mut Refusals| {
            assert!(refusals.note(&pod(), "no module".into(), at));
            refusals.overlay(at.now).over(&wanted()).remove(&pod())
        };
        let whole = pod_rules(&["a", "b"]);
        assert_eq!(form(&mut refusals), Some(pod_chain::reduced(&whole, PodChainForm::Unlogged)));
        assert_eq!(form(&mut refusals), Some(pod_chain::reduced(&whole, PodChainForm::Closed)));
        let later = Moment { now: at.now + Duration::from_secs(60), jitter: 0 };
        assert!(refusals.overlay(later.now).is_empty(), "the whole is tried again");
        assert!(refusals.note(&pod(), "no module".into(), later));
        let still = refusals.overlay(later.now).over(&wanted()).remove(&pod());
        assert_eq!(still, Some(pod_chain::reduced(&whole, PodChainForm::Closed)), "and what held before holds again");
    }

    #[test]
    fn a_chain_of_bridges_goes_on_closing_where_the_kernel_cannot_log() {
        let at = Moment { now: Instant::now(), jitter: 0 };
        let bridges = ["kube-bridge".into()];
        for (piece, rules) in [link_local::rules(&bridges), multicast::rules(&bridges, Family::V4)] {
            let whole = rules.expect("something is closed");
            let mut refusals = Refusals::default();
            assert!(refusals.note(&piece, "no module".into(), at));
            let over = refusals.overlay(at.now).over(&[(piece.clone(), whole.clone())].into()).remove(&piece);
            assert_eq!(over, Some(pod_chain::reduced(&whole, PodChainForm::Unlogged)));
            assert!(over.is_some_and(|rules| rules.0.len() < whole.0.len()));
            assert!(!refusals.note(&piece, "no module".into(), at), "it has no other form");
        }
    }

    #[test]
    fn chains_that_nobody_can_replace_are_nobodys_refusal() {
        let at = Moment { now: Instant::now(), jitter: 0 };
        assert!(!Refusals::default().note(&dispatch::chain(Family::V4, CHAIN_FORWARD), "no".into(), at));
        assert!(!Refusals::default().note(&dispatch::chain(Family::V4, CHAIN_TAIL), "no".into(), at));
    }

    #[test]
    fn what_names_a_missing_set_is_left_out() {
        let (_, piece) = policy("a");
        let mut rules = wanted();
        rules.insert(piece.clone(), Rules(vec!["-m set --match-set KUBE-SRC-A src -g KUBE-NWPLCY-DEFAULT".into()]));
        let desired = Desired { rules: rules.clone(), ..Desired::default() };
        let mut overlay = Overlay::default();
        overlay.omit_those_naming(&[SetName("KUBE-SRC-B".into())].into(), &desired);
        assert!(overlay.is_empty());
        overlay.omit_those_naming(&[SetName("KUBE-SRC-A".into())].into(), &desired);
        assert_eq!(overlay.over(&rules).get(&pod()), Some(&pod_rules(&["b"])));
    }

    /// A pod that is denied a Service by a set of this name, and the set's one element.
    fn refusing() -> (Piece, SetName, Desired) {
        let set = SetName("KUBE-DST-A".into());
        let piece = dispatch::chain(Family::V4, &names::refusal_chain(&ObjectName::new("shop", "web-1")));
        let refusal = "-m set --match-set KUBE-DST-A dst,dst -j REJECT --reject-with icmp-port-unreachable";
        let entry = Entry::IpPort([10, 96, 0, 1].into(), Protocol::Tcp, 443);
        let desired = Desired {
            rules: [(piece.clone(), Rules(vec![refusal.into()]))].into(),
            elements: [(ElementKey { set: set.clone(), entry }, ())].into_iter().collect(),
            closing: [set.clone()].into(),
            ..Desired::default()
        };
        (piece, set, desired)
    }

    #[test]
    fn a_service_stays_refused_although_the_kernel_does_not_take_its_set() {
        let (piece, set, desired) = refusing();
        let mut overlay = Overlay::default();
        overlay.omit_those_naming(&[set].into(), &desired);
        let over = overlay.over(&desired.rules).remove(&piece).expect("the chain is there");
        let expected = "-d 10.96.0.1/32 -p tcp -m multiport --dports 443 -j REJECT --reject-with icmp-port-unreachable";
        assert_eq!(over.0.iter().map(Rule::to_string).collect::<Vec<_>>(), [expected]);
    }

    #[test]
    fn a_refusal_of_services_that_the_kernel_refuses_closes_no_more_than_these() {
        let at = Moment { now: Instant::now(), jitter: 0 };
        let (piece, _, desired) = refusing();
        let mut refusals = Refusals::default();
        assert!(refusals.note(&piece, "no module".into(), at) && !refusals.overlay(at.now).is_empty());
        assert!(refusals.note(&piece, "no module".into(), at));
        let over = refusals.overlay(at.now).over(&desired.rules).remove(&piece);
        assert_eq!(over, Some(Rules(vec!["-m set --match-set KUBE-DST-A dst,dst -j DROP".into()])));
    }

    #[test]
    fn refusals_of_an_earlier_run_stay_beside_those_that_are_known_already() {
        let (piece, _, desired) = refusing();
        let entrance = dispatch::chain(Family::V4, CHAIN_HOST_ENDPOINTS);
        let chain = names::refusal_chain(&ObjectName::new("shop", "web-1"));
        let jump = Rules(vec![format!("-s 10.244.1.7/32 -j {chain}").as_str().into()]);
        let mut wanted = desired.rules;
        wanted.insert(entrance.clone(), jump.clone());
        let other = "-m set --match-set KUBE-DST-B dst,dst -j REJECT --reject-with icmp-port-unreachable";
        let seen = [(entrance, jump), (piece.clone(), Rules(vec![other.into()]))].into();
        let mut overlay = Overlay::default();
        overlay.keep_refusals(&[(chain, [[10, 244, 1, 7].into()].into())].into(), &wanted, &seen);
        let rules = overlay.over(&wanted).remove(&piece).expect("the chain is there");
        assert_eq!(rules.0.len(), 2);
        assert_eq!(rules.0.last().map(Rule::to_string).as_deref(), Some(other));
        assert_eq!(overlay.sets_of_kept(), [SetName("KUBE-DST-B".into())].into());
    }

    #[test]
    fn pods_that_nobody_knows_any_more_stay_judged_where_absence_proves_nothing() {
        let forward = dispatch::chain(Family::V4, CHAIN_FORWARD);
        let jump = "-s 10.244.1.7/32 ! -d 10.244.1.7/32 -j KUBE-POD-FW-OLD";
        let tail = "-j KUBE-NWPLCY-TAIL";
        let rules = |texts: &[&str]| Rules(texts.iter().map(|text| Rule::from(*text)).collect());
        let want: BTreeMap<Piece, Rules> = [(forward.clone(), rules(&[tail]))].into();
        let mut seen: BTreeMap<Piece, Rules> = [(forward.clone(), rules(&[jump, tail]))].into();
        let mut overlay = Overlay::default();
        overlay.keep_jumps(&want, &seen);
        assert!(overlay.is_empty(), "its chain is gone");
        seen.insert(dispatch::chain(Family::V4, "KUBE-POD-FW-OLD"), rules(&["-j DROP"]));
        overlay.keep_jumps(&want, &seen);
        assert_eq!(overlay.over(&want).get(&forward), Some(&rules(&[jump, tail])));
    }

    #[test]
    fn what_closes_bridges_stays_before_what_accepts() {
        let input = dispatch::chain(Family::V6, "KUBE-ROUTER-INPUT");
        let of_bridge = "-i kube-bridge -j KUBE-NWPLCY-LINK-LOCAL";
        let service = "-d fd00:10:96::/108 -j RETURN";
        let jump = "-s fd00:10:244::7/128 -j KUBE-POD-FW-OLD";
        let tail = "-j KUBE-NWPLCY-TAIL";
        let rules = |texts: &[&str]| Rules(texts.iter().map(|text| Rule::from(*text)).collect());
        let want: BTreeMap<Piece, Rules> = [(input.clone(), rules(&[service, tail]))].into();
        let mut seen: BTreeMap<Piece, Rules> = [(input.clone(), rules(&[of_bridge, service, jump, tail]))].into();
        for chain in ["KUBE-POD-FW-OLD", "KUBE-NWPLCY-LINK-LOCAL"] {
            seen.insert(dispatch::chain(Family::V6, chain), rules(&["-j DROP"]));
        }
        let mut overlay = Overlay::default();
        overlay.keep_jumps(&want, &seen);
        assert_eq!(overlay.over(&want).get(&input), Some(&rules(&[of_bridge, service, jump, tail])));
    }
}
