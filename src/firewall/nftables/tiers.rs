//! The chain of a tier: all pods of this node that the same ClusterNetworkPolicies of one tier select in one direction.
//!
//! ```text
//! map admin_ingress4 { 10.244.1.7 : jump admin_in_2_policies_… }     looked up before the map of isolated addresses
//! map ingress4 { 10.244.1.7 : jump baseline_in_floor_… }             of a pod that no NetworkPolicy isolates
//! chain admin_in_2_policies_… {
//!     ct state invalid drop
//!     meta l4proto . th dport vmap @admin_in_2_policies_…_0_ports_…   rules in a row that accept
//!     ip saddr @denied_pods_… goto denied_in_guard_…                  rules in a row of one policy that deny
//!     ip saddr @pods_… goto passed_in_guard_…                         a rule that passes packets on
//! }
//! chain denied_in_guard_… {
//!     limit rate 10/minute burst 10 packets log prefix "denied_in_guard_…" group 100
//!     counter name denied_in_guard_… reject                           comment "denied by guard (Admin tier)"
//! }
//! chain passed_in_guard_… {
//! }
//! ```
//!
//! Of rules in order the first that matches decides. Rules in a row with the same action have no order among themselves, so
//! they are looked up together, as the policies of a class are: a packet costs a few lookups each time that the action changes,
//! whatever the number of rules. A rule that denies belongs to its policy, which counts what it refuses. Rules that pass packets on
//! are asked in turn, and lead to a chain without rules, by which a process without memory knows whose they are ([`kept`](super::kept)).
//!
//! What connection tracking cannot assign is dropped where any policy of a pod may refuse something, as with iptables: such a packet is
//! looked up in the second map first, so that the class of an isolated pod drops it before an Admin tier accepts it.
//!
//! `accept` ends the base chain of this direction. What is passed on, or what no rule matches, goes back to the base chain and so
//! to the next map: the class of an isolated pod, or the Baseline tier of another one.
//!
//! For an address that several pods claim there is one chain for each of them ([`each_tier`]), in which rules are in turn, a
//! permission is a `return`, and what is passed on goes to the class or to the other tier of the same pod. Behind its last rule, where no packet comes, are those that
//! name the policies that pass packets on.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::kernel::nftables::{Content, Name, Object, Rule, Verdict};
use crate::model::{Action, ObjectName, Tier};
use crate::net::PerFamily;

use super::super::rules::{ClusterPolicyKey, ClusterRule, Direction, LocalPod, Match, RuleSet};
use super::class::{self, Class};
use super::names;
use super::parts::{Lowered, Part};
use super::peers::{Outcome, PeerOutcome};
use super::permissions::Permissions;

/// The ClusterNetworkPolicies of one tier that select the same pods in one direction.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct TierPolicies {
    pub tier: Tier,
    pub direction: Direction,
    /// In the order of evaluation, at least one.
    pub policies: Box<[ClusterPolicyKey]>,
}

/// The judges of a pod in one direction.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Judged {
    pub direction: Direction,
    /// Comes first.
    pub admin: Option<Arc<TierPolicies>>,
    pub rest: Option<Rest>,
}

/// The judges of the packets of a pod about which the Admin tier does not decide.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Rest {
    /// The NetworkPolicies that isolate it.
    Class(Arc<Class>),
    /// The Baseline tier, of a pod that is not isolated.
    Baseline(Arc<TierPolicies>),
}

/// A tier, asked on behalf of an address that several pods claim, and what is asked behind it for the same pod.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct EachTier {
    pub tier: Arc<TierPolicies>,
    pub rest: Option<Rest>,
}

/// Rules in a row with the same consequence.
struct Run<'a> {
    decision: Decision<'a>,
    matches: Vec<&'a Match>,
}

/// Consequence of a rule of a tier.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Decision<'a> {
    Accept,
    Deny(&'a ClusterPolicyKey),
    Pass(&'a ClusterPolicyKey),
}

impl TierPolicies {
    fn of(pod: &LocalPod, tier: Tier, direction: Direction) -> Option<Arc<TierPolicies>> {
        let policies: Box<[ClusterPolicyKey]> = pod.tier(tier, direction).cloned().collect();
        (!policies.is_empty()).then(|| Arc::new(TierPolicies { tier, direction, policies }))
    }

    /// Returns the rules in order, those in a row with the same consequence together.
    fn runs<'a>(&'a self, rules: &'a RuleSet) -> Vec<Run<'a>> {
        let mut runs: Vec<Run<'a>> = Vec::new();
        let mut add = |decision, matches: &'a [Match]| match runs.last_mut() {
            _ if matches.is_empty() => {}
            Some(last) if last.decision == decision => last.matches.extend(matches),
            _ => runs.push(Run { decision, matches: matches.iter().collect() }),
        };
        for key in &self.policies {
            for rule in rules.cluster_policies.get(key).into_iter().flat_map(|rules| &**rules) {
                let decision = match rule.action {
                    Action::Accept => Decision::Accept,
                    Action::Deny => Decision::Deny(key),
                    Action::Pass => Decision::Pass(key),
                };
                add(decision, &rule.rule.matches);
                add(Decision::Deny(key), &rule.contested.matches);
            }
        }
        runs
    }
}

impl Judged {
    /// Returns what judges a pod; `None` for one that nothing does.
    pub fn of(direction: Direction, name: &ObjectName, pod: &LocalPod) -> Option<Judged> {
        let class = Class::of(direction, name, pod.isolation(direction)).map(Arc::new).map(Rest::Class);
        let rest = class.or_else(|| TierPolicies::of(pod, Tier::Baseline, direction).map(Rest::Baseline));
        let admin = TierPolicies::of(pod, Tier::Admin, direction);
        (admin.is_some() || rest.is_some()).then_some(Judged { direction, admin, rest })
    }

    /// Returns the part that is asked for one of several pods with an address, with its chain.
    pub fn each(&self) -> Option<(Name, Part)> {
        match (&self.admin, &self.rest) {
            (Some(tier), rest) => Some(EachTier { tier: tier.clone(), rest: rest.clone() }.part()),
            (None, rest) => rest.as_ref().map(Rest::each),
        }
    }
}

impl Rest {
    /// Returns the part that judges an address of one pod, with its chain.
    pub fn part(&self) -> (Name, Part) {
        match self {
            Rest::Class(class) => (names::class(class), Part::Class(class.clone())),
            Rest::Baseline(tier) => (names::tier(tier), Part::Tier(tier.clone())),
        }
    }

    /// Returns the part that is asked for one of several pods with an address, with its chain.
    pub fn each(&self) -> (Name, Part) {
        match self {
            Rest::Class(class) => (names::each(class), Part::Each(class.clone())),
            Rest::Baseline(tier) => EachTier { tier: tier.clone(), rest: None }.part(),
        }
    }
}

impl EachTier {
    fn part(self) -> (Name, Part) {
        (names::each_tier(&self), Part::EachTier(Arc::new(self)))
    }
}

/// Returns the chain of a tier with its maps.
pub fn tier(tier: &TierPolicies, rules: &RuleSet, families: PerFamily<bool>) -> Lowered {
    let name = names::tier(tier);
    let runs = tier.runs(rules);
    let (mut lowered, mut chain) = (Lowered::default(), Vec::from_iter(invalid(tier, rules)));
    for (place, Run { decision, matches }) in runs.into_iter().enumerate() {
        let outcome = match decision {
            Decision::Accept => Outcome::Accept,
            Decision::Deny(policy) => Outcome::Deny(policy.clone()),
            Decision::Pass(policy) => {
                let looked_up = |one| class::looked_up(one, tier.direction, families, &mut lowered);
                let each: Vec<Vec<_>> = matches.into_iter().flat_map(looked_up).collect();
                if !each.is_empty() {
                    let verdict = passing(policy, &mut lowered);
                    chain.extend(each.into_iter().map(|matches| Rule::new(matches, verdict.clone())));
                }
                continue;
            }
        };
        let permissions = Permissions::of(matches.into_iter());
        let run = names::run(&name, place);
        let found = PeerOutcome { direction: tier.direction, outcome: &outcome };
        chain.extend(permissions.rules(&run, found, families, &mut lowered));
    }
    lowered.chain(name, chain);
    lowered
}

/// Returns the rule for what connection tracking cannot assign: dropped where the tier may refuse something. A packet in this state is
/// looked up in the map of the Baseline tier and of classes first ([`base`](super::base)), so a Baseline tier that refuses nothing
/// returns it, and the Admin tier still decides. The class of an isolated pod drops it itself.
fn invalid(tier: &TierPolicies, rules: &RuleSet) -> Option<Rule> {
    let mut policies = tier.policies.iter().filter_map(|policy| rules.cluster_policies.get(policy));
    if policies.any(|rules| rules.iter().any(ClusterRule::may_deny)) {
        return Some(class::invalid());
    }
    (tier.tier == Tier::Baseline).then(|| Rule::new([class::IS_INVALID], Verdict::Return))
}

/// Returns the chain that asks a tier whether it refuses a packet, and returns if it does not.
pub fn each_tier(each: &EachTier, rules: &RuleSet, families: PerFamily<bool>) -> Lowered {
    let EachTier { tier, rest } = each;
    let runs = tier.runs(rules);
    let (mut lowered, mut chain) = (Lowered::default(), Vec::from_iter(invalid(tier, rules)));
    let rest = rest.as_ref().map(|rest| {
        let (name, part) = rest.each();
        lowered.needs.insert(part);
        // Before the tier accepts it: what is asked behind it may drop such a packet.
        if chain.is_empty() {
            chain.push(Rule::new([class::IS_INVALID], Verdict::Jump(name.clone())));
        }
        Verdict::Goto(name)
    });
    let mut passing_on = BTreeSet::new();
    for Run { decision, matches } in runs {
        let looked_up = |one| class::looked_up(one, tier.direction, families, &mut lowered);
        let each: Vec<Vec<_>> = matches.into_iter().flat_map(looked_up).collect();
        if each.is_empty() {
            continue;
        }
        let verdict = match decision {
            Decision::Accept => Verdict::Return,
            Decision::Deny(policy) => Outcome::Deny(policy.clone()).verdict(&mut lowered.needs),
            Decision::Pass(policy) => {
                passing_on.extend(rest.is_some().then_some(policy));
                rest.clone().unwrap_or(Verdict::Return)
            }
        };
        chain.extend(each.into_iter().map(|matches| Rule::new(matches, verdict.clone())));
    }
    chain.extend(rest.map(|rest| Rule::new([], rest)));
    // No packet gets there: these say by whom packets are passed on, for a process without memory.
    chain.extend(passing_on.into_iter().map(|policy| Rule::new([], passing(policy, &mut lowered))));
    lowered.chain(names::each_tier(each), chain);
    lowered
}

/// Returns the verdict on what a policy passes on. Nothing is behind the Baseline tier.
fn passing(policy: &ClusterPolicyKey, lowered: &mut Lowered) -> Verdict {
    match policy.tier {
        Tier::Admin => {
            lowered.needs.insert(Part::Passed(policy.clone()));
            Verdict::Goto(names::passed(policy))
        }
        Tier::Baseline => Verdict::Return,
    }
}

/// Returns the chain to which a policy's packets go that it passes on. Without rules it returns to the base chain.
pub fn passed(policy: &ClusterPolicyKey) -> Lowered {
    let mut lowered = Lowered::default();
    lowered.chain(names::passed(policy), Vec::new());
    lowered
}

/// Returns the chain that refuses what a policy denies, with its counter.
pub fn denied(policy: &ClusterPolicyKey) -> Lowered {
    let (name, mut lowered) = (names::denied(policy), Lowered::default());
    let said = format!("denied by {} ({} tier)", policy.policy, policy.tier.name());
    lowered.objects.insert(Object::Counter(name.clone()), Content::Counter);
    let refusing = class::refusal(&name, &[], &said).to_vec();
    lowered.chain(name, refusing);
    lowered
}
