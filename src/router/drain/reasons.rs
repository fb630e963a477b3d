//! Reasons for which a node drains: its label, its taints, and the shutdown of its host.

use std::fmt;

use crate::config::{DrainConfig, DrainLabel};
use crate::model::{Node, Taint};

/// Reason for which a node drains.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reason {
    /// The label that keeps a node out of external load balancers.
    Label,
    Taint(Taint),
    /// The host shuts down.
    Shutdown,
}

/// The label of the own Node that starts a drain.
pub(super) const LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// The labels of a Node of the control plane: today's, and the one of kubeadm before 1.24.
const CONTROL_PLANE: [&str; 2] = ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Label => write!(f, "the Node has the label {LABEL}"),
            Reason::Taint(taint) => write!(f, "the Node has the taint {taint}"),
            Reason::Shutdown => f.write_str("the host shuts down, says its kubelet"),
        }
    }
}

/// Returns why a node drains; `None` where it does not.
pub(super) fn reason(node: &Node, config: &DrainConfig) -> Option<Reason> {
    if node.is_shutting_down {
        return Some(Reason::Shutdown);
    }
    let has = |label: &str| node.labels.value(label).is_some();
    let label_counts = match config.label {
        DrainLabel::Auto => !CONTROL_PLANE.into_iter().any(has),
        DrainLabel::Always => true,
        DrainLabel::Never => false,
    };
    if label_counts && has(LABEL) {
        return Some(Reason::Label);
    }
    let names =
        |taint: &&Taint| config.taints.iter().any(|pattern| pattern.names(&taint.key, &taint.value, &taint.effect));
    node.taints.iter().find(names).cloned().map(Reason::Taint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TaintPattern;

    #[test]
    fn the_label_and_the_named_taints_are_reasons_and_a_cordon_is_none() {
        let taint = |text: &str| text.parse::<Taint>().expect("a taint");
        let pattern = |text: &str| TaintPattern::parse(text).expect("a pattern");
        let node = |labels: &[(&str, &str)], taints: &[&str]| Node {
            labels: labels.iter().copied().collect(),
            taints: taints.iter().map(|text| taint(text)).collect(),
            ..Node::default()
        };
        let naming = |taints: &[TaintPattern]| DrainConfig { taints: taints.to_vec(), ..DrainConfig::default() };
        let none = naming(&[]);
        let named = naming(&[pattern("example.com/leaving:NoExecute"), pattern("pool=old")]);
        let cordon = "node.kubernetes.io/unschedulable:NoSchedule";
        let all = [(LABEL, "")];
        assert_eq!(reason(&node(&all, &[]), &none), Some(Reason::Label));
        assert_eq!(reason(&node(&[("pool", "old")], &[cordon]), &named), None);
        for (taints, drains) in [
            (["example.com/leaving=now:NoExecute"], true),
            (["example.com/leaving:NoExecute"], true),
            (["example.com/leaving:NoSchedule"], false),
            (["pool=old:NoSchedule"], true),
            (["pool=new:NoSchedule"], false),
        ] {
            assert_eq!(reason(&node(&[], &taints), &named).is_some(), drains, "{taints:?}");
            assert_eq!(reason(&node(&[], &taints), &none), None, "no taint is named by default");
        }
    }

    #[test]
    fn the_label_that_installers_put_on_every_control_plane_node_counts_there_only_where_the_flag_says_so() {
        use DrainLabel::{Always, Auto, Never};
        let [today, of_old] = CONTROL_PLANE;
        for (labels, draining) in [
            (&[][..], &[][..]),
            (&[today], &[]),
            (&[LABEL], &[Auto, Always]),
            (&[LABEL, today], &[Always]),
            (&[LABEL, of_old], &[Always]),
            (&[LABEL, today, of_old], &[Always]),
        ] {
            let labels = labels.iter().map(|label| (*label, "")).collect();
            let taints = vec!["pool=old:NoSchedule".parse::<Taint>().expect("a taint")];
            let (plain, tainted) = (Node { labels, ..Node::default() }, Node { taints, ..Node::default() });
            let tainted = Node { labels: plain.labels.clone(), ..tainted };
            for label in [Auto, Always, Never] {
                let config = DrainConfig { label, ..DrainConfig::default() };
                let expected = draining.contains(&label).then_some(Reason::Label);
                assert_eq!(reason(&plain, &config), expected, "{:?} with {label:?}", plain.labels);
                let named = TaintPattern::parse("pool").expect("a pattern");
                let config = DrainConfig { taints: vec![named], ..config };
                assert!(reason(&tainted, &config).is_some(), "a taint counts on every node");
            }
        }
    }
}
