//! Pods whose own chains change together with their membership in the sets of other pods' policies.
//!
//! A pod of this node gets other labels, or another pod gets its address. By its chains it may do less now, by the sets
//! of other pods' policies more (or the reverse): traffic refused at one end is now refused at the other. Elements and
//! rules cannot be changed atomically, so one after the other would open such a path for a moment, and for long if the
//! second change fails.
//!
//! So there are three acts. First the pod's chains allow only what both the old and the new ones allow ([`stricter`]):
//! the old rules followed by the new ones, each of which refuse. Then its set memberships change. Then its chains
//! become as desired. A path is at no time open unless it was or is to be, nor closed unless it was or is to be.
//!
//! When this order applies, and which others exist: `order`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use compact_str::CompactString;

use crate::kernel::ipset::ElementKey;
use crate::kernel::iptables::{Match, Piece, Rule, Rules};
use crate::net::Family;

use super::names::{ChainKind, DISPATCH, kind};
use super::{dispatch, pod_chain};

/// All rules of ours.
pub type AllRules = BTreeMap<Piece, Rules>;

/// Changes that have to wait until the chains of the affected pods are stricter.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Turning {
    pub addresses: BTreeSet<IpAddr>,
    /// Elements to be added to or deleted from sets that rules use, before and after.
    pub elements: BTreeSet<ElementKey>,
}

impl Turning {
    /// Returns whether chains of this family become stricter.
    pub fn concerns(&self, family: Family) -> bool {
        self.addresses.iter().any(|address| Family::from(*address) == family)
    }

    /// Returns the desired rules with pod chains in which the old rules precede the new ones. A chain that the kernel
    /// refuses stays as desired: its fallback is strict.
    pub fn stricter(&self, seen: &AllRules, wanted: &AllRules, is_refused: impl Fn(&Piece) -> bool) -> AllRules {
        let mut stricter = wanted.clone();
        for family in Family::BOTH {
            let chains =
                |rules| chains_of(rules, family).into_iter().filter(|(address, _)| self.addresses.contains(address));
            let names: BTreeSet<CompactString> =
                chains(seen).chain(chains(wanted)).flat_map(|(_, names)| names).map(CompactString::from).collect();
            for name in names {
                let piece = dispatch::chain(family, &name);
                let Some(old) = seen.get(&piece).filter(|_| !is_refused(&piece)) else { continue };
                let both = match wanted.get(&piece) {
                    Some(new) if !old.0.ends_with(&new.0) => Rules(old.0.iter().chain(&new.0).cloned().collect()),
                    // They follow each other already, or the pod is no longer isolated.
                    _ => old.clone(),
                };
                keep_policies(&mut stricter, &both, seen, family);
                // A chain in doubt cannot be jumped to; entering one policy less is stricter still.
                let both = pod_chain::without(&both, |to| {
                    is_policy(to) && !stricter.contains_key(&dispatch::chain(family, to))
                });
                stricter.insert(piece, both);
            }
            self.keep_jumps(&mut stricter, seen, family);
        }
        stricter
    }

    /// Restores the jumps to chains of these pods that are no longer desired, before the last rule, which accepts.
    fn keep_jumps(&self, rules: &mut AllRules, seen: &AllRules, family: Family) {
        for name in DISPATCH {
            let piece = dispatch::chain(family, name);
            let (Some(old), Some(new)) = (seen.get(&piece), rules.get(&piece)) else { continue };
            let concerns = |rule: &&Rule| {
                jump_of(rule).is_some_and(|(to, own)| {
                    own.iter().any(|one| self.addresses.contains(one))
                        && rules.contains_key(&dispatch::chain(family, to))
                })
            };
            let kept: Vec<Rule> = old.0.iter().filter(concerns).filter(|rule| !new.0.contains(rule)).cloned().collect();
            let Some(new) = rules.get_mut(&piece) else { continue };
            let place = new.0.len().saturating_sub(1);
            new.0.splice(place..place, kept);
        }
    }
}

/// Keeps the chains of policies that these rules jump to.
fn keep_policies(kept: &mut AllRules, rules: &Rules, seen: &AllRules, family: Family) {
    let jumps = rules.0.iter().filter_map(pod_chain::jump);
    let policies = jumps.filter(|to| is_policy(to));
    for piece in policies.map(|to| dispatch::chain(family, to)) {
        if let (Some(old), false) = (seen.get(&piece), kept.contains_key(&piece)) {
            kept.insert(piece, old.clone());
        }
    }
}

fn is_policy(chain: &str) -> bool {
    matches!(kind(chain), Some(ChainKind::Policy | ChainKind::ClusterPolicy))
}

/// Returns the pod chains that judge each address.
pub fn chains_of(rules: &AllRules, family: Family) -> BTreeMap<IpAddr, BTreeSet<&str>> {
    let mut chains: BTreeMap<IpAddr, BTreeSet<&str>> = BTreeMap::new();
    let all = DISPATCH.into_iter().filter_map(|name| rules.get(&dispatch::chain(family, name)));
    for (chain, addresses) in all.flat_map(|rules| &rules.0).filter_map(jump_of) {
        for address in addresses {
            chains.entry(address).or_default().insert(chain);
        }
    }
    chains
}

/// Returns the pod's chain that a dispatch rule jumps to, and the addresses of that pod which it matches.
pub fn jump_of(rule: &Rule) -> Option<(&str, Vec<IpAddr>)> {
    let chain = pod_chain::jump(rule).filter(|chain| kind(chain) == Some(ChainKind::Pod))?;
    let named = |one: &Match| match one {
        Match::Source { range, .. } | Match::Destination { range, .. } => Some(range.addr()),
        _ => None,
    };
    let mut addresses: Vec<IpAddr> = rule.matches().iter().filter_map(named).collect();
    addresses.dedup();
    Some((chain, addresses))
}

#[cfg(test)]
mod tests {
    use super::super::names::CHAIN_FORWARD;
    use super::*;

    fn rules(chains: &[(&str, &[&str])]) -> AllRules {
        let rule = |rules: &[&str]| Rules(rules.iter().map(|rule| Rule::from(*rule)).collect());
        chains.iter().map(|(name, rules)| (dispatch::chain(Family::V4, name), rule(rules))).collect()
    }

    fn turning() -> Turning {
        Turning { addresses: [[10, 244, 1, 1].into()].into(), elements: BTreeSet::new() }
    }

    const A: &str = "-s 10.244.1.1/32 ! -d 10.244.1.1/32 -m comment --comment \"shop/a -s egress\" -j KUBE-POD-FW-A";
    const PEERS: (&str, &[&str]) = ("KUBE-NWPLCY-PEERS", &["-m set --match-set PEERS src -g KUBE-NWPLCY-DEFAULT"]);

    #[test]
    fn a_pod_that_is_free_and_no_peer_any_more_is_free_last() {
        let seen = rules(&[
            (CHAIN_FORWARD, &[A, "-j TAIL"]),
            PEERS,
            ("KUBE-POD-FW-A", &["-m mark -j KUBE-NWPLCY-OLD", "-j REJECT"]),
            ("KUBE-NWPLCY-OLD", &["-j RETURN"]),
        ]);
        let wanted = rules(&[(CHAIN_FORWARD, &["-j TAIL"]), PEERS]);
        let stricter = turning().stricter(&seen, &wanted, |_| false);
        assert_eq!(stricter, seen, "what was is stricter, with all that it needs");
    }

    #[test]
    fn old_rules_stand_before_new_ones_and_only_once() {
        let of = |policy: &str, rule: &str| {
            let pod: (&str, &[&str]) = ("KUBE-POD-FW-A", &[rule, "-j REJECT"]);
            rules(&[(CHAIN_FORWARD, &[A, "-j TAIL"]), PEERS, pod, (policy, &["-j RETURN"])])
        };
        let old = of("KUBE-NWPLCY-OLD", "-j KUBE-NWPLCY-OLD");
        let new = of("KUBE-NWPLCY-NEW", "-j KUBE-NWPLCY-NEW");
        let both = turning().stricter(&old, &new, |_| false);
        let chain = dispatch::chain(Family::V4, "KUBE-POD-FW-A");
        let expected = ["-j KUBE-NWPLCY-OLD", "-j REJECT", "-j KUBE-NWPLCY-NEW", "-j REJECT"];
        assert_eq!(both[&chain].0, expected.map(Rule::from));
        assert_eq!(turning().stricter(&both, &new, |_| false)[&chain], both[&chain]);
    }
}
