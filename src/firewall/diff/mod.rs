//! Compares the rule set with the one that it would become if policies of a file were applied, or deleted.
//!
//! `sluice policy diff -f FILE`: which pods of this node become isolated or open, which pairs of them with other pods and
//! with ranges of addresses open and close, and at which ports ([`pairs`]), and which of the connections that are tracked now would be
//! refused ([`serve`] reads those). Nothing is changed.
//!
//! Both rule sets are compiled from the same World, so the comparison does not depend on what the kernel has. Each direction is
//! compared by itself: between two pods both of them have to allow a packet, and on two nodes each answers for its own
//! end. All of it is pure but for [`serve`], which runs it on a thread of its own.

pub mod pairs;
pub mod ports;
pub mod ranges;
pub mod serve;
mod json;
mod text;

use std::sync::Arc;

use crate::config::Backend;
use crate::kernel::conntrack::Connection;
use crate::model::{ObjectName, Policies, Table, World};

use super::oversized::Bound;
use super::plan::Plan;
use super::policy_name::PolicyName;
use super::rules::{Direction, Isolation, RuleSet};
use super::verdict::{Decision, Verdict};

use self::pairs::{Pairs, PodNames};

pub use json::json;
pub use text::text;

/// The question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidates {
    pub policies: Policies,
    /// The policies would be deleted, not applied.
    pub deleted: bool,
}

/// The rule set now and as it would be.
pub struct Compared {
    pub before: RuleSet,
    pub after: RuleSet,
    pub names: PodNames,
    policies: Vec<(PolicyName, PolicyChange)>,
    isolation: Vec<IsolationChange>,
    pairs: Pairs,
}

/// The changes that would come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    pub policies: Vec<(PolicyName, PolicyChange)>,
    /// Sorted by pod.
    pub isolation: Vec<IsolationChange>,
    pub pairs: Pairs,
    /// Connections that would be refused; an error is a sentence without its end.
    pub connections: Result<Refused, String>,
}

/// The change of a policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PolicyChange {
    New,
    Changed,
    Same,
    Deleted,
    /// To be deleted, and not there.
    Absent,
}

/// A pod of this node that becomes isolated or open in one direction.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct IsolationChange {
    pub pod: ObjectName,
    pub direction: Direction,
    pub isolated: bool,
}

/// Connections that are allowed now and would be refused.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Refused {
    /// The first [`CONNECTIONS`], each with who its ends are and the decision that refuses it.
    pub first: Vec<RefusedConnection>,
    pub all: usize,
}

/// A connection that would be refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RefusedConnection {
    pub connection: Connection,
    pub from: Option<ObjectName>,
    pub to: Option<ObjectName>,
    pub decision: Decision,
}

/// The most connections that are listed.
pub const CONNECTIONS: usize = 1000;

/// Bounds of the work and the memory of a comparison.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// As of [`pairs::pairs`].
    pub budget: u64,
    /// The most policies of a file: each costs an entry for each pod of this node that it selects.
    pub policies: usize,
    /// The most elements of the sets that the policies need and nobody else uses: of some 150 bytes, while they are sorted.
    pub elements: usize,
    /// For the blocks of one policy, as where the rules are in force.
    pub blocks: Bound,
}

/// Some seconds, and some 300 MiB beside the rule set of now.
pub const BOUNDS: Bounds =
    Bounds { budget: pairs::BUDGET, policies: 5_000, elements: 2_000_000, blocks: Bound::of(Backend::Iptables) };

impl Compared {
    /// Compiles both rule sets and compares them.
    ///
    /// # Errors
    /// The policies need more than the bounds; a sentence without its end.
    pub fn of(world: &World, candidates: &Candidates, bounds: Bounds) -> Result<Compared, String> {
        let all = candidates.policies.policies.len() + candidates.policies.cluster_policies.len();
        if all > bounds.policies {
            let most = bounds.policies;
            return Err(format!(
                "the file has {all} policies and at most {most} can be compared at once; ask about a part of them"
            ));
        }
        let mut plan = Plan::with_bound(bounds.blocks);
        plan.update(world);
        let before = plan.rules().clone();
        let mut newer = world.clone();
        let Candidates { policies: Policies { policies, cluster_policies }, deleted } = candidates;
        let mut changes = Vec::new();
        for (name, policy) in cluster_policies {
            let change = put(&mut newer.cluster.cluster_policies, (name, policy), *deleted);
            changes.push((PolicyName::Cluster(name.clone()), change));
        }
        for (name, policy) in policies {
            let change = put(&mut newer.cluster.policies, (name, policy), *deleted);
            changes.push((PolicyName::Namespaced(name.clone()), change));
        }
        plan.set_room(bounds.elements);
        let changed = plan.update(&newer);
        if changed.is_cut {
            let most = bounds.elements;
            return Err(format!("the policies need sets of more than {most} elements; ask about a part of them"));
        }
        let after = plan.into_rules();
        let names = PodNames::of(world);
        let pairs = pairs::pairs(&before, &after, &changed, &names, bounds.budget);
        let isolation = isolation(&before, &after);
        Ok(Compared { before, after, names, policies: changes, isolation, pairs })
    }

    /// Returns the decision that would refuse a connection that passes now; each verdict is this node's.
    pub fn newly_refused(before: Option<Verdict>, after: Option<Verdict>) -> Option<Decision> {
        if !before?.passes() {
            return None;
        }
        let Verdict { egress, ingress } = after?;
        [egress, ingress].into_iter().find(|decision| !decision.passes())
    }

    pub fn into_difference(self, connections: Result<Refused, String>) -> Difference {
        let Compared { policies, isolation, pairs, .. } = self;
        Difference { policies, isolation, pairs, connections }
    }
}

/// Puts a policy into its table, or takes it out; returns what that changes.
fn put<K: Ord + Clone, V: PartialEq>(
    table: &mut Table<K, V>,
    (name, policy): (&K, &Arc<V>),
    deleted: bool,
) -> PolicyChange {
    let change = match (table.get(name), deleted) {
        (None, true) => PolicyChange::Absent,
        (Some(_), true) => PolicyChange::Deleted,
        (None, false) => PolicyChange::New,
        (Some(known), false) if **known == **policy => PolicyChange::Same,
        (Some(_), false) => PolicyChange::Changed,
    };
    match deleted {
        true => drop(table.remove(name)),
        false => drop(table.insert_shared(name.clone(), policy.clone())),
    }
    change
}

fn isolation(before: &RuleSet, after: &RuleSet) -> Vec<IsolationChange> {
    let mut changes = Vec::new();
    for (pod, local) in &after.pods {
        for direction in Direction::BOTH {
            let is_isolated = |isolation: &Isolation| *isolation != Isolation::Open;
            let was = before.pods.get(pod).is_some_and(|before| is_isolated(before.isolation(direction)));
            let isolated = is_isolated(local.isolation(direction));
            if was != isolated {
                changes.push(IsolationChange { pod: pod.clone(), direction, isolated });
            }
        }
    }
    changes
}

#[cfg(test)]
mod tests;
