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
//! Packets that pass return to the dispatch chain, which enters the chain of the pod at the other end too. The mark is
//! cleared before and after: marks of other programs never count as allowed.
//!
//! Each direction has a chain of its own, so that a permission of one direction never serves the other. Packets in
//! conntrack state INVALID are dropped silently, but only here: they do not concern pods without isolation.

use compact_str::CompactString;

use crate::kernel::iptables::rule::States;
use crate::kernel::iptables::{Match, Rule, Rules, Verdict};
use crate::model::ObjectName;
use crate::net::Family;

use super::super::rules::{Direction, PolicyKey};
use super::comment::comment;
use super::names::{self, MARK};

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
    let said = |what: &str| comment(&format!("{pod} {} {what}", direction.name()));
    let cleared = Rule::new([said("mark")], Verdict::SetMark(names::CLEARED));
    let invalid = Match::State { states: States::INVALID, negated: false };
    let mut rules = vec![Rule::new([said("invalid"), invalid], Verdict::Drop), cleared.clone()];
    rules.extend(asking);
    rules.push(Rule::new([UNMARKED, said("log-drop"), LOG_LIMIT], LOG));
    rules.push(Rule::new([UNMARKED, said("reject")], Verdict::Reject(family)));
    rules.push(cleared);
    Rules(rules)
}

/// Logs a refused packet, to the group that kube-router uses.
pub const LOG: Verdict = Verdict::Log { group: 100 };
/// Limits how many are logged.
pub const LOG_LIMIT: Match = Match::Limit { per_minute: 10, burst: 10 };

/// Matches if no policy has allowed the packet yet.
const UNMARKED: Match = Match::Mark { mark: MARK, negated: true };

/// Returns the rule by which a pod's chain enters a policy's chain: the same for every pod that it isolates.
pub fn asks(policy: &PolicyKey) -> Rule {
    let said = comment(&format!("{} {}", policy.policy, policy.direction.name()));
    Rule::new([UNMARKED, said], Verdict::Jump(names::policy_chain(policy)))
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

/// Returns the same chain without its jumps to these chains, which do not exist.
pub fn without(rules: &Rules, is_missing: impl Fn(&str) -> bool) -> Rules {
    let stays = |rule: &&Rule| jump(rule).is_none_or(|chain| !is_missing(chain));
    Rules(rules.0.iter().filter(stays).cloned().collect())
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
}
