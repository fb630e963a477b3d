//! A pod's chain in one direction: ask each policy that isolates the pod, and refuse what none of them allows.
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
//! What passes returns to the dispatch chain, where the chain of the pod at the other end is asked too. The mark is
//! cleared before and after: what others marked never counts as allowed.
//!
//! Each direction has a chain of its own, so that what one direction allows never serves the other. Packets that belong
//! to no connection and could not begin one are dropped silently, but only here: they say nothing about pods that
//! nothing isolates.

use compact_str::{CompactString, format_compact};

use crate::kernel::iptables::Rules;
use crate::model::ObjectName;
use crate::net::Family;

use super::comment::comment;
use super::names::{self, MARK};
use super::rules::{Direction, PolicyKey};

/// What of a pod's chain the kernel can have.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Form {
    /// All of it.
    Whole,
    /// Without the copies of refused packets, for a kernel without `xt_NFLOG`.
    Unlogged,
    /// Everything is dropped: what a pod's policies say cannot be put into this kernel.
    Closed,
}

/// The rules of a pod's chain, where these policies isolate it; with none of them, nothing passes.
pub fn rules(pod: &ObjectName, direction: Direction, policies: &[ObjectName], family: Family) -> Rules {
    let said = |what: &str| comment(&format!("{pod} {} {what}", direction.name()));
    let unmarked = format!("-m mark ! --mark {MARK}");
    let cleared = format_compact!("{} -j MARK --set-xmark 0x0/0x10000", said("mark"));
    let mut rules =
        vec![format_compact!("{} -m conntrack --ctstate INVALID -j DROP", said("invalid")), cleared.clone()];
    for policy in policies {
        let chain = names::policy_chain(&PolicyKey { policy: policy.clone(), direction });
        let said = comment(&format!("{policy} {}", direction.name()));
        rules.push(format_compact!("{unmarked} {said} -j {chain}"));
    }
    rules.push(format_compact!(
        "{unmarked} {} -m limit --limit 10/min --limit-burst 10 -j NFLOG --nflog-group 100",
        said("log-drop")
    ));
    rules.push(format_compact!("{unmarked} {} -j REJECT --reject-with {}", said("reject"), unreachable(family)));
    rules.push(cleared);
    Rules(rules)
}

/// The same chain in a form that asks for less.
pub fn reduced(rules: &Rules, form: Form) -> Rules {
    match form {
        Form::Whole => rules.clone(),
        Form::Unlogged => Rules(rules.0.iter().filter(|rule| !rule.contains(" -j NFLOG ")).cloned().collect()),
        Form::Closed => Rules(vec!["-j DROP".into()]),
    }
}

/// The same chain without its jumps to these chains, which do not exist.
pub fn without(rules: &Rules, is_missing: impl Fn(&str) -> bool) -> Rules {
    let stays = |rule: &&CompactString| jump(rule).is_none_or(|chain| !is_missing(chain));
    Rules(rules.0.iter().filter(stays).cloned().collect())
}

/// The chain that a rule of ours jumps to.
pub fn jump(rule: &str) -> Option<&str> {
    let (_, chain) = rule.rsplit_once(" -j ")?;
    (!chain.contains(' ')).then_some(chain)
}

/// How refused packets are answered.
pub fn unreachable(family: Family) -> &'static str {
    match family {
        Family::V4 => "icmp-port-unreachable",
        Family::V6 => "icmp6-port-unreachable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(policies: &[&str]) -> Rules {
        let policies: Vec<ObjectName> = policies.iter().map(|policy| ObjectName::new("shop", policy)).collect();
        rules(&ObjectName::new("shop", "web-1"), Direction::Ingress, &policies, Family::V4)
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
        assert_eq!(chain(&["web"]).0, expected);
    }

    #[test]
    fn a_reduced_chain_refuses_no_less() {
        let whole = chain(&["web", "db"]);
        let unlogged = reduced(&whole, Form::Unlogged);
        assert_eq!(unlogged.0.len(), whole.0.len() - 1);
        assert!(!unlogged.0.iter().any(|rule| rule.contains("NFLOG")));
        assert_eq!(reduced(&whole, Form::Closed).0, ["-j DROP"]);
        let db =
            names::policy_chain(&PolicyKey { policy: ObjectName::new("shop", "db"), direction: Direction::Ingress });
        assert_eq!(without(&whole, |chain| chain == db), chain(&["web"]));
    }
}
