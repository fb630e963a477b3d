//! Denials of ClusterNetworkPolicies stay in force where these are not known, or not known to select a pod no longer; what those of the
//! Admin tier pass on stays passed on, because NetworkPolicies may refuse what another policy of the tier would accept.
//!
//! The rules of the address's former chain are asked first, in a chain of their own: those that lead to such a denial as they were, those that
//! pass packets on and those that accept, so far as they come before one of a policy that is not known, as [`passed`](super::passed) says ([`decisions`]). Then comes what is
//! desired for the address. Denials of policies that are known are not asked there: they may have changed. An element that drops, in place of one that the kernel
//! refused in an earlier run, stays: it may have led to any denial.
//!
//! ```text
//! map admin_ingress4 { 10.244.1.7 : jump kept_… }
//! chain kept_… {
//!     ip saddr @pods_… goto admin_in_other_…                          what the former tier accepted first
//!     ip saddr @denied_pods_… goto denied_in_guard_…                  as it was found
//!     ip saddr @pods_… goto kept_…                                    what it passed on
//!     goto admin_in_other_…                                           as it is desired
//! }
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::kernel::nftables::{Chain, Content, Key, Name, Object, Rule, Verdict};

use super::super::desired::{Lost, Table, elements_of};
use super::super::names::{self, ChainKind};
use super::decisions::{View, decisions, is_of_tier};
use super::{Kept, maps, target};

impl Kept {
    /// Keeps what tiers denied to addresses, where it is not desired. `lost`: only of policies that are not known, and for pods that
    /// are.
    pub(super) fn keep_tiers(&mut self, lost: Option<&Lost>, seen: &Table, desired: &Table) {
        let (view, mut made) = (View { lost, seen, desired }, BTreeMap::new());
        for map in maps(names::admin) {
            self.keep_tiers_of(&map, false, view, &mut made);
        }
        for map in maps(names::isolated) {
            self.keep_tiers_of(&map, true, view, &mut made);
        }
    }

    /// The same of one map. NetworkPolicies prevail over the tier `behind` them.
    fn keep_tiers_of(
        &mut self,
        map: &Name,
        behind: bool,
        view: View<'_>,
        made: &mut BTreeMap<(Name, Option<Name>), Option<Name>>,
    ) {
        let View { lost, seen, desired } = view;
        for (element, verdict) in elements_of(seen, map) {
            let now = target(desired.get(element));
            let is_unjudged = now.is_none_or(|now| names::kind(now) == Some(ChainKind::Tier));
            if *verdict == Content::Verdict(Verdict::Drop.into()) {
                let concerns = lost.map_or(now.is_some(), |lost| is_pod(element, lost));
                if concerns && (!behind || is_unjudged) {
                    self.0.insert(element.clone(), verdict.clone());
                }
                continue;
            }
            let Some(before) = target(Some(verdict)) else { continue };
            let concerns = match lost {
                Some(lost) => is_pod(element, lost),
                // Without a desired verdict the former one stays as it is.
                None => now.is_some_and(|now| now != before && names::kind(now) != Some(ChainKind::Shared)),
            };
            if !concerns || behind && !is_unjudged {
                continue;
            }
            if lost.is_none() && !is_of_tier(before) {
                // An isolated pod stays isolated, where the Baseline tier would judge it otherwise.
                if behind {
                    self.0.insert(element.clone(), verdict.clone());
                }
                continue;
            }
            let key = (before.clone(), now.cloned());
            let chain = made.entry(key).or_insert_with(|| self.keep_decisions(before, now, view));
            if let Some(chain) = chain {
                self.0.insert(element.clone(), Content::Verdict(Verdict::Jump(chain.clone()).into()));
            }
        }
    }

    /// Keeps what a chain denied or passed on and that of now does not; returns the chain that asks both, if there is anything.
    fn keep_decisions(&mut self, before: &Name, now: Option<&Name>, view: View<'_>) -> Option<Name> {
        let View { lost, seen, desired } = view;
        let decisions = decisions(before, now, view);
        if decisions.is_empty() {
            return None;
        }
        // Where the pods are known, so are the addresses in the sets that are desired.
        let is_known = |object: &Object| match object {
            Object::Element(set, _) => lost.is_some() && desired.contains_key(&Object::Set(set.clone())),
            _ => false,
        };
        let objects = decisions.iter().flat_map(|decision| &decision.objects);
        for object in objects.filter(|object| !desired.contains_key(*object) && !is_known(object)) {
            if let Some(content) = seen.get(object) {
                self.0.insert(object.clone(), content.clone());
            }
        }
        self.0.extend(decisions.iter().flat_map(|decision| decision.chains.iter().cloned()));
        let mut rules: Vec<Rule> = decisions.into_iter().map(|decision| decision.rule).collect();
        let texts: Vec<String> = rules.iter().map(|rule| format!("{rule:?}")).collect();
        let name = names::kept(&texts, now);
        rules.extend(now.map(|now| Rule::new([], Verdict::Goto(now.clone()))));
        self.0.insert(Object::Chain(name.clone()), Content::Chain(Arc::new(Chain { base: None, rules })));
        Some(name)
    }
}

/// Returns whether an element is about the address of a pod of this node.
fn is_pod(element: &Object, lost: &Lost) -> bool {
    let address = |key: &Key| match key {
        Key::Address(address) => Some(*address),
        _ => None,
    };
    let Object::Element(_, key) = element else { return false };
    address(key).is_some_and(|address: IpAddr| lost.addresses.contains(&address))
}

#[cfg(test)]
mod tests;
