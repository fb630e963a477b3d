//! Objects that an earlier run put in force for ClusterNetworkPolicies that are not known ([`UnreadPolicies`]).
//!
//! Names of chains follow from policies alone, so what belongs to one that cannot be read is found by its name, and all that
//! belongs to others may go.

use std::collections::BTreeSet;

use compact_str::CompactString;

use crate::model::{ClusterNetworkPolicy, Tier, UnreadPolicies};

use super::rules::{ClusterPolicyKey, Direction};

/// The chains of these policies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LostChains {
    /// All that are not desired.
    Any,
    Named(BTreeSet<CompactString>),
}

impl LostChains {
    /// Returns the chains that these policies may have; `chains` gives those of a policy.
    pub fn of<C: IntoIterator<Item = CompactString>>(
        unread: &UnreadPolicies,
        chains: impl Fn(&ClusterPolicyKey) -> C,
    ) -> Option<LostChains> {
        match unread {
            UnreadPolicies::None => None,
            UnreadPolicies::Any => Some(LostChains::Any),
            UnreadPolicies::Named(names) => {
                Some(LostChains::Named(names.iter().flat_map(keys).flat_map(|key| chains(&key)).collect()))
            }
        }
    }

    pub fn holds(&self, chain: &str) -> bool {
        match self {
            LostChains::Any => true,
            LostChains::Named(chains) => chains.contains(chain),
        }
    }
}

/// Returns what a policy of this name may be.
fn keys(name: &CompactString) -> impl Iterator<Item = ClusterPolicyKey> {
    let tiers = [Tier::Admin, Tier::Baseline].into_iter();
    let kinds = tiers.flat_map(|tier| Direction::BOTH.map(|direction| (tier, direction)));
    kinds.flat_map(move |(tier, direction)| {
        let of = move |priority| ClusterPolicyKey { tier, priority, policy: name.clone(), direction };
        (0..=ClusterNetworkPolicy::LAST_PRIORITY).map(of)
    })
}
