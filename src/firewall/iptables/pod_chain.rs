//! A pod's chain in one direction: enter the chain of each policy that isolates the pod, and refuse what none allows.
//!
//! ```text
//! -A KUBE-POD-FW-… … -m conntrack --ctstate INVALID -j DROP
//! -A KUBE-POD-FW-… … -j MARK --set-xmark 0x0/0x10000
//! -A KUBE-POD-FW-… … -m mark ! --mark 0x10000/0x10000 -j KUBE-NWPLCY-…        for each policy
//! -A KUBE-POD-FW-… … -m mark ! --mark 0x10000/0x10000 -m limit … -j NFLOG --nflog-group 100
//! -A KUBE-POD-FW-… … -m mark ! --mark 0x10000/0x10000 -j REJECT …
//! -A KUBE-POD-FW-… … -j MARK --set-xmark 0x0/0x10000
//! ```
//!
//! Where ClusterNetworkPolicies select the pod, their chains are entered before and behind those of policies. The first of
//! them that decides marks the packet: accepted with the one bit, passed on with another, denied with both.
//!
//! ```text
//! -A KUBE-POD-FW-… … -m mark --mark 0x0/0x30000 -j KUBE-NWPLCY-0…             for each one of the Admin tier
//! -A KUBE-POD-FW-… … -m mark --mark 0x30000/0x30000 -m limit … -j NFLOG --nflog-group 100
//! -A KUBE-POD-FW-… … -m mark --mark 0x30000/0x30000 -j REJECT …
//! -A KUBE-POD-FW-… … -j MARK --set-xmark 0x0/0x20000
//! …                                                                           the rules for policies, of an isolated pod
//! -A KUBE-POD-FW-… … -m mark --mark 0x0/0x30000 -j KUBE-NWPLCY-0…             for each one of the Baseline tier, of any other
//! …                                                                           and NFLOG and REJECT as above
//! ```
//!
//! Packets that pass return to the dispatch chain, which enters the chain of the pod at the other end too. The mark is
//! cleared before and after: marks of other programs never count as allowed.
//!
//! Each direction has a chain of its own, so that a permission of one direction never serves the other. Packets in
//! conntrack state INVALID are dropped silently, but only here, and only where a policy may refuse something: they do not concern
//! pods without isolation.

use compact_str::CompactString;

use crate::kernel::iptables::rule::States;
use crate::kernel::iptables::{Match, Rule, Rules, Verdict};
use crate::model::ObjectName;
use crate::net::Family;

use super::super::rules::{ClusterPolicyKey, Direction, PolicyKey};
use super::comment::comment;
use super::names::{self, ChainKind, MARK};

/// Form of a pod's chain that the kernel accepts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum PodChainForm {
    /// The complete chain.
    Whole,
    /// Without NFLOG of refused packets, for a kernel without `xt_NFLOG`.
    Unlogged,
    /// Everything that the chain judges is dropped: this kernel cannot take the pod's rules.
    Closed,
}

/// Returns the rules of a pod's chain isolated by the policies of these rules ([`asks`]); with none, nothing passes.
pub fn rules(pod: &ObjectName, direction: Direction, asking: impl Iterator<Item = Rule>, family: Family) -> Rules {
    tiered(
        pod,
        direction,
        EnteringRules { policies: Some(asking.collect()), drops_invalid: true, ..EnteringRules::default() },
        family,
    )
}

/// The rules that enter the chains of policies.
#[derive(Default)]
pub struct EnteringRules {
    pub admin: Vec<Rule>,
    /// Of NetworkPolicies; `None` for a pod that is not isolated.
    pub policies: Option<Vec<Rule>>,
    pub baseline: Vec<Rule>,
    /// Any of these policies may refuse something: what connection tracking cannot assign is dropped.
    pub drops_invalid: bool,
}

/// Returns the rules of a pod's chain.
pub fn tiered(pod: &ObjectName, direction: Direction, asked: EnteringRules, family: Family) -> Rules {
    let said = |what: &str| comment(&format!("{pod} {} {what}", direction.name()));
    let EnteringRules { admin, policies, baseline, drops_invalid } = asked;
    let baseline = if policies.is_none() { baseline } else { Vec::new() };
    let has_tiers = !admin.is_empty() || !baseline.is_empty();
    let bits = if has_tiers { names::UNDECIDED } else { names::CLEARED };
    let cleared = Rule::new([said("mark")], Verdict::SetMark(bits));
    let invalid = Match::State { states: States::INVALID, negated: false };
    let refusing = |marked: &Match| {
        let log = Rule::new([marked.clone(), said("log-drop"), LOG_LIMIT], LOG);
        [log, Rule::new([marked.clone(), said("reject")], Verdict::Reject(family))]
    };
    let drop_invalid = drops_invalid.then(|| Rule::new([said("invalid"), invalid], Verdict::Drop));
    let mut rules: Vec<Rule> = drop_invalid.into_iter().chain([cleared.clone()]).collect();
    if !admin.is_empty() {
        rules.extend(admin);
        rules.extend(refusing(&DENIED));
        rules.push(Rule::new([said("next tier")], Verdict::SetMark(names::NOT_PASSED)));
    }
    if let Some(policies) = policies {
        rules.extend(policies);
        rules.extend(refusing(&UNMARKED));
    }
    if !baseline.is_empty() {
        rules.extend(baseline);
        rules.extend(refusing(&DENIED));
    }
    rules.push(cleared);
    Rules(rules)
}

/// Logs a refused packet, to the group that kube-router uses.
pub const LOG: Verdict = Verdict::Log { group: 100 };
/// Limits how many are logged.
pub const LOG_LIMIT: Match = Match::Limit { per_minute: 10, burst: 10 };

/// Matches if no policy has allowed the packet yet.
const UNMARKED: Match = Match::Mark { mark: MARK, negated: true };
/// Matches if a ClusterNetworkPolicy has denied the packet, or if none has decided yet.
const DENIED: Match = Match::Mark { mark: names::DENIED, negated: false };
/// Matches unless a ClusterNetworkPolicy has passed the packet on.
const NOT_PASSED_ON: Match = Match::Mark { mark: names::PASSED, negated: true };
const UNDECIDED: Match = Match::Mark { mark: names::UNDECIDED, negated: false };

/// Returns the rule by which a pod's chain enters a policy's chain: the same for every pod that it isolates.
pub fn asks(policy: &PolicyKey) -> Rule {
    let said = comment(&format!("{} {}", policy.policy, policy.direction.name()));
    Rule::new([UNMARKED, said], Verdict::Jump(names::policy_chain(policy)))
}

/// Returns the rule by which a pod's chain enters the chain of a ClusterNetworkPolicy.
pub fn asks_cluster(policy: &ClusterPolicyKey) -> Rule {
    let said = comment(&format!("{} {}", policy.policy, policy.direction.name()));
    Rule::new([UNDECIDED, said], Verdict::Jump(names::cluster_policy_chain(policy)))
}

/// Returns the same chain behind what these rules enter: chains of ClusterNetworkPolicies of which only what they deny and what they pass on counts. The Admin tier of the
/// chain comes before them too, as to what it denies: behind them it is not asked about what they pass on, because it might accept that.
pub fn behind(asking: &[Rule], rules: &Rules, family: Family) -> Rules {
    let said = |what: &str| comment(&format!("unknown cluster policies {what}"));
    let cleared = |matches: Option<Match>| {
        let matches: Box<[Match]> = matches.into_iter().chain([said("mark")]).collect();
        Rule::new(matches, Verdict::SetMark(names::UNDECIDED))
    };
    let refusing = || {
        [
            Rule::new([DENIED, said("log-drop"), LOG_LIMIT], LOG),
            Rule::new([DENIED, said("reject")], Verdict::Reject(family)),
        ]
    };
    let next_tier = rules.0.iter().position(|rule| rule.verdict() == Some(&Verdict::SetMark(names::NOT_PASSED)));
    let Some(next_tier) = next_tier else {
        let before = [cleared(None)].into_iter().chain(asking.iter().cloned()).chain(refusing()).chain([cleared(None)]);
        return Rules(before.chain(rules.0.iter().cloned()).collect());
    };
    let (admin, others) = rules.0.split_at(next_tier);
    let is_cleared = |rule: &&Rule| rule.verdict() == Some(&Verdict::SetMark(names::UNDECIDED));
    let is_asking = |rule: &&Rule| jump(rule).is_some();
    let known = [cleared(None)].into_iter().chain(admin.iter().filter(is_asking).cloned()).chain(refusing());
    let unknown = [cleared(None)].into_iter().chain(asking.iter().cloned()).chain(refusing());
    let unknown = unknown.chain([cleared(Some(NOT_PASSED_ON))]);
    // The mark of what is passed on stays over the place where the chain clears it.
    let admin = admin.iter().filter(|rule| !is_cleared(rule)).cloned();
    Rules(known.chain(unknown).chain(admin).chain(others.iter().cloned()).collect())
}

/// Returns whether a rule refuses on behalf of a ClusterNetworkPolicy.
pub fn refuses_for_cluster(rule: &Rule) -> bool {
    rule.matches().contains(&DENIED)
}

/// Returns the same chain in a reduced form.
pub fn reduced(rules: &Rules, form: PodChainForm) -> Rules {
    let logs = |rule: &Rule| matches!(rule.verdict(), Some(Verdict::Log { .. }));
    match form {
        PodChainForm::Whole => rules.clone(),
        PodChainForm::Unlogged => Rules(rules.0.iter().filter(|rule| !logs(rule)).cloned().collect()),
        PodChainForm::Closed => closed(rules),
    }
}

/// Returns what drops everything that the chain judges. One that refuses Services judges these alone.
fn closed(rules: &Rules) -> Rules {
    let is_for_some = |one: &&Match| matches!(one, Match::Set { .. } | Match::Destination { .. } | Match::Ports(_));
    let needed = |rule: &Rule| -> Vec<Match> {
        let is_needed = |one: &&Match| is_for_some(one) || matches!(one, Match::Protocol(_));
        rule.matches().iter().filter(is_needed).cloned().collect()
    };
    let refuses = |rule: &&Rule| matches!(rule.verdict(), Some(Verdict::Reject(_)));
    let of_services = rules.0.iter().filter(refuses).filter(|rule| rule.matches().iter().any(|one| is_for_some(&one)));
    let drops: Vec<Rule> = of_services.map(|rule| Rule::new(needed(rule), Verdict::Drop)).collect();
    if drops.is_empty() { Rules(vec![Rule::new([], Verdict::Drop)]) } else { Rules(drops) }
}

/// Returns the same chain without its jumps to these chains, which do not exist. Where one of a ClusterNetworkPolicy is
/// missing, which might deny, nothing gets past its place.
pub fn without(rules: &Rules, is_missing: impl Fn(&str) -> bool) -> Rules {
    let stays = |rule: &Rule| {
        let Some(chain) = jump(rule).filter(|chain| is_missing(chain)) else { return Some(rule.clone()) };
        let may_deny = names::kind(chain) == Some(ChainKind::ClusterPolicy);
        may_deny.then(|| Rule::new(rule.matches(), Verdict::Drop))
    };
    Rules(rules.0.iter().filter_map(stays).collect())
}

/// Returns the chain that a rule jumps to.
pub fn jump(rule: &Rule) -> Option<&CompactString> {
    match rule.verdict()? {
        Verdict::Jump(chain) => Some(chain),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Action, Tier};

    fn chain(policies: &[&str]) -> Rules {
        let key = |policy: &&str| PolicyKey { policy: ObjectName::new("shop", policy), direction: Direction::Ingress };
        let asking = policies.iter().map(|policy| asks(&key(policy)));
        rules(&ObjectName::new("shop", "web-1"), Direction::Ingress, asking, Family::V4)
    }

    #[test]
    fn every_policy_is_asked_until_one_allows() {
        let policy = PolicyKey { policy: ObjectName::new("shop", "web"), direction: Direction::Ingress };
        let jump = names::policy_chain(&policy);
        let expected = [
            "-m comment --comment \"shop/web-1 ingress invalid\" -m conntrack --ctstate INVALID -j DROP",
            "-m comment --comment \"shop/web-1 ingress mark\" -j MARK --set-xmark 0x0/0x10000",
            &format!("-m mark ! --mark 0x10000/0x10000 -m comment --comment \"shop/web ingress\" -j {jump}"),
            "-m mark ! --mark 0x10000/0x10000 -m comment --comment \"shop/web-1 ingress log-drop\" -m limit --limit 10/min --limit-burst 10 -j NFLOG --nflog-group 100",
            "-m mark ! --mark 0x10000/0x10000 -m comment --comment \"shop/web-1 ingress reject\" -j REJECT --reject-with icmp-port-unreachable",
            "-m comment --comment \"shop/web-1 ingress mark\" -j MARK --set-xmark 0x0/0x10000",
        ];
        assert_eq!(chain(&["web"]).0.iter().map(Rule::to_string).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_reduced_chain_refuses_no_less() {
        let whole = chain(&["web", "db"]);
        let unlogged = reduced(&whole, PodChainForm::Unlogged);
        assert_eq!(unlogged.0.len(), whole.0.len() - 1);
        assert!(!unlogged.0.iter().any(|rule| rule.to_string().contains("NFLOG")));
        assert_eq!(reduced(&whole, PodChainForm::Closed).0, [Rule::from("-j DROP")]);
        let db =
            names::policy_chain(&PolicyKey { policy: ObjectName::new("shop", "db"), direction: Direction::Ingress });
        assert_eq!(without(&whole, |chain| chain == db), chain(&["web"]));
    }

    fn cluster_key(tier: Tier) -> ClusterPolicyKey {
        let policy = tier.name().to_lowercase().into();
        ClusterPolicyKey { tier, priority: 7, policy, direction: Direction::Ingress }
    }

    fn tiered_chain(policies: Option<&[&str]>) -> Rules {
        let asks_policy =
            |policy: &&str| asks(&PolicyKey { policy: ObjectName::new("shop", policy), direction: Direction::Ingress });
        let asked = EnteringRules {
            admin: vec![asks_cluster(&cluster_key(Tier::Admin))],
            policies: policies.map(|policies| policies.iter().map(asks_policy).collect()),
            baseline: vec![asks_cluster(&cluster_key(Tier::Baseline))],
            drops_invalid: true,
        };
        tiered(&ObjectName::new("shop", "web-1"), Direction::Ingress, asked, Family::V4)
    }

    #[test]
    fn tiers_are_asked_around_the_policies_and_the_second_one_only_without_them() {
        let steps = |rules: &Rules| -> Vec<String> {
            let of = |to: &str| {
                let keys = [Tier::Admin, Tier::Baseline].map(cluster_key);
                let cluster = keys.iter().find(|key| names::cluster_policy_chain(key) == to);
                cluster.map_or("policy".to_owned(), |key| key.policy.to_string())
            };
            let step = |rule: &Rule| match rule.verdict()? {
                Verdict::Jump(to) => Some(of(to)),
                Verdict::Reject(_) if refuses_for_cluster(rule) => Some("denied".to_owned()),
                Verdict::Reject(_) => Some("not allowed".to_owned()),
                Verdict::SetMark(mark) => Some(format!("{:x}/{:x}", mark.value, mark.mask)),
                _ => None,
            };
            rules.0.iter().filter_map(step).collect()
        };
        let admin = ["0/30000", "admin", "denied", "0/20000"];
        let expected = [&admin[..], &["policy", "not allowed", "0/30000"]].concat();
        assert_eq!(steps(&tiered_chain(Some(&["web"]))), expected);
        assert_eq!(steps(&tiered_chain(None)), [&admin[..], &["baseline", "denied", "0/30000"]].concat());
    }

    #[test]
    fn nothing_gets_past_a_missing_policy_that_may_deny() {
        let whole = tiered_chain(None);
        let admin = names::cluster_policy_chain(&cluster_key(Tier::Admin));
        let left = without(&whole, |chain| chain == admin);
        assert_eq!(left.0.len(), whole.0.len());
        let changed: Vec<_> = left.0.iter().filter(|rule| !whole.0.contains(rule)).map(Rule::to_string).collect();
        assert_eq!(changed, ["-m mark --mark 0x0/0x30000 -m comment --comment \"admin ingress\" -j DROP"]);
    }

    /// Whether a packet passes a chain, by the decisions of the chains that it enters.
    fn passes(rules: &Rules, decides: impl Fn(&str) -> Option<Action>) -> bool {
        let mut marked = 0;
        for rule in &rules.0 {
            let holds = |one: &Match| match one {
                Match::Mark { mark, negated } => (marked & mark.mask == mark.value) != *negated,
                // The packet is a valid one.
                Match::State { .. } => false,
                Match::Comment(_) | Match::Limit { .. } => true,
                other => panic!("{other:?}"),
            };
            if !rule.matches().iter().all(holds) {
                continue;
            }
            match rule.verdict() {
                Some(Verdict::SetMark(mark)) => marked = marked & !mark.mask | mark.value,
                Some(Verdict::Jump(to)) => match decides(to) {
                    Some(Action::Accept) => marked |= MARK.value,
                    Some(Action::Deny) => marked |= names::DENIED.value,
                    Some(Action::Pass) => marked |= names::PASSED.value,
                    None => {}
                },
                Some(Verdict::Reject(_)) => return false,
                Some(Verdict::Log { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
        true
    }

    #[test]
    fn what_a_policy_passed_on_that_is_not_known_is_not_accepted_by_the_rest_of_its_tier() {
        let unknown = ClusterPolicyKey { policy: "unknown".into(), ..cluster_key(Tier::Admin) };
        let chain_of = names::cluster_policy_chain;
        let passes_by = |policies: Option<&[&str]>, unknown_does, admin_does, baseline_does| {
            let chain = behind(&[asks_cluster(&unknown)], &tiered_chain(policies), Family::V4);
            passes(&chain, |to| match to {
                to if chain_of(&unknown) == to => unknown_does,
                to if chain_of(&cluster_key(Tier::Admin)) == to => admin_does,
                to if chain_of(&cluster_key(Tier::Baseline)) == to => baseline_does,
                _ => None,
            })
        };
        let (accept, deny, pass) = (Some(Action::Accept), Some(Action::Deny), Some(Action::Pass));
        let isolated: Option<&[&str]> = Some(&["web"]);
        for (policies, unknown_does, admin_does, baseline_does, expected) in [
            (isolated, None, accept, None, true),
            (isolated, pass, accept, None, false),
            (None, pass, accept, None, true),
            (None, pass, accept, deny, false),
            (None, None, pass, deny, false),
            (None, pass, deny, None, false),
            (isolated, deny, accept, None, false),
            // What it accepted is as desired now.
            (isolated, accept, None, None, false),
            (isolated, accept, accept, None, true),
        ] {
            let found = passes_by(policies, unknown_does, admin_does, baseline_does);
            assert_eq!(found, expected, "{policies:?} {unknown_does:?} {admin_does:?} {baseline_does:?}");
        }
    }
}
