//! Former decisions of a tier that let a packet go on: what it accepted is asked of the tier as it is known, and what it passed on is judged by what
//! comes behind the tier, unless the tier as it is known denies it.
//!
//! ```text
//! chain kept_… {
//!     tcp dport 80 ip saddr @pods_… return                            accepted by the tier as it is desired
//!     ip saddr @denied_pods_… goto denied_in_other_…                  denied by it
//!     goto passed_in_guard_…                                          whose packets these are
//! }
//! ```
//!
//! The rules of the desired tier are in turn there, because a packet that one of them accepts is not to be accepted yet, and nothing but a `return`
//! leads from the chain to the next map of the base chain.
//!
//! An address that several pods claim is in no next map: each of them is asked in the desired chain, and so in this one, which accepts at its end what all of them allow.
//! The last rule only says whose packets these are.
//!
//! ```text
//! chain kept_… {
//!     jump kept_…                                                     as each_admin_…, but what the tier accepts is asked of the pod's class
//!     jump each_in_shop_web_…                                         another pod's class
//!     accept
//!     goto passed_in_guard_…
//! }
//! ```

use std::sync::Arc;

use crate::kernel::nftables::{Chain, Content, Key, Lookup, Match, Name, Object, Rule, Verdict};
use crate::net::PortRange;

use super::super::desired::{Table, elements_of};
use super::super::names::{self, ChainKind};

/// Conditions and the verdict on what they match.
type Leaf = (Vec<Match>, Verdict);

/// Returns the rule that goes on passing on what a rule matches for a policy, with the chains that it leads to. `now`: the desired chain of the address; without one
/// nothing accepts the packet before those who are asked next.
pub(super) fn passing(
    rule: &Rule,
    policy: &Name,
    now: Option<&Name>,
    desired: &Table,
) -> (Rule, Vec<(Object, Content)>) {
    let to_policy = |matches: &[Match]| Rule::new(matches, Verdict::Goto(policy.clone()));
    let mut chains = Vec::new();
    let mut rules: Vec<Rule> = match now.map(|now| (now, names::kind(now))) {
        Some((now, Some(ChainKind::Tier))) => leaves_of(now, desired).into_iter().map(not_accepting).collect(),
        // It asks every pod of the address itself. A packet that returned from here would be accepted: nothing is behind such a chain.
        Some((now, Some(ChainKind::Shared))) => {
            rules_of(now, desired).iter().map(|rule| passing_to_each(rule, policy, desired, &mut chains)).collect()
        }
        _ => return (to_policy(rule.matches()), chains),
    };
    let name = kept(&rules, policy);
    rules.push(to_policy(&[]));
    chains.push(chain(name.clone(), rules));
    (Rule::new(rule.matches(), Verdict::Goto(name)), chains)
}

/// Returns the rule that asks one of the pods that claim an address, in which what its Admin tier accepts is left to what it has behind the tier. Of which
/// of the pods the policy decided is not known.
fn passing_to_each(rule: &Rule, policy: &Name, desired: &Table, chains: &mut Vec<(Object, Content)>) -> Rule {
    let Some(Verdict::Jump(each)) = rule.verdict() else { return rule.clone() };
    let found = rules_of(each, desired);
    let goes_on = |rule: &&Rule| match rule.verdict() {
        Some(Verdict::Goto(to)) => rule.matches().is_empty() && names::kind(to) == Some(ChainKind::Each),
        _ => false,
    };
    let Some(rest) = found.iter().find(goes_on).and_then(Rule::verdict) else { return rule.clone() };
    let to_rest = |rule: &Rule| match rule.verdict() {
        Some(Verdict::Return) => Rule::new(rule.matches(), rest.clone()),
        _ => rule.clone(),
    };
    let rules: Vec<Rule> = found.iter().map(to_rest).collect();
    let name = kept(&rules, policy);
    chains.push(chain(name.clone(), rules));
    Rule::new(rule.matches(), Verdict::Jump(name))
}

fn kept(rules: &[Rule], policy: &Name) -> Name {
    let texts: Vec<String> = rules.iter().map(|rule| format!("{rule:?}")).collect();
    names::kept(&texts, Some(policy))
}

fn chain(name: Name, rules: Vec<Rule>) -> (Object, Content) {
    (Object::Chain(name), Content::Chain(Arc::new(Chain { base: None, rules })))
}

fn rules_of<'a>(chain: &Name, table: &'a Table) -> &'a [Rule] {
    match table.get(&Object::Chain(chain.clone())) {
        Some(Content::Chain(chain)) => &chain.rules,
        _ => &[],
    }
}

/// Returns the chain of the policy that passes on what a rule matches; `None` for a rule that does something else.
pub(super) fn by<'a>(rule: &'a Rule, table: &'a Table) -> Option<&'a Name> {
    let Some(Verdict::Goto(to)) = rule.verdict() else { return None };
    match names::kind(to) {
        Some(ChainKind::Passed) => Some(to),
        // As it was kept before.
        Some(ChainKind::Kept) => match table.get(&Object::Chain(to.clone())) {
            Some(Content::Chain(chain)) => match chain.rules.last()?.verdict() {
                Some(Verdict::Goto(policy)) if names::kind(policy) == Some(ChainKind::Passed) => Some(policy),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    }
}

/// Returns the conditions of what a rule of a tier accepts, or of what was kept as accepted ([`accepting`]); each alone is enough.
pub(super) fn accepted(rule: &Rule, table: &Table) -> Vec<Vec<Match>> {
    // One of several pods that claim an address has no objection; the next one is asked.
    if matches!(rule.verdict(), Some(Verdict::Jump(to)) if names::kind(to) == Some(ChainKind::Each)) {
        return Vec::new();
    }
    let accepts = |(matches, verdict): &Leaf| match verdict {
        Verdict::Accept | Verdict::Return => true,
        Verdict::Goto(to) => {
            matches!(names::kind(to), Some(ChainKind::Tier | ChainKind::Shared)) && !matches.is_empty()
        }
        _ => false,
    };
    leaves(rule, table).into_iter().filter(accepts).map(|(matches, _)| matches).collect()
}

/// Returns the rule that has the desired tier decide about what the former one accepted.
pub(super) fn accepting(matches: Vec<Match>, now: Option<&Name>) -> Rule {
    Rule::new(matches, now.map_or(Verdict::Return, |now| Verdict::Goto(now.clone())))
}

fn not_accepting((matches, verdict): Leaf) -> Rule {
    let verdict = if verdict == Verdict::Accept { Verdict::Return } else { verdict };
    Rule::new(matches, verdict)
}

fn leaves_of(chain: &Name, table: &Table) -> Vec<Leaf> {
    rules_of(chain, table).iter().flat_map(|rule| leaves(rule, table)).collect()
}

/// Returns a rule of a tier as conditions with verdicts, in their order, that need neither maps nor chains of peers.
fn leaves(rule: &Rule, table: &Table) -> Vec<Leaf> {
    let Some(verdict) = rule.verdict() else { return Vec::new() };
    spread(verdict, table)
        .into_iter()
        // Peers come before ports, as everywhere.
        .map(|(matches, verdict)| (matches.into_iter().chain(rule.matches().iter().cloned()).collect(), verdict))
        .collect()
}

fn spread(verdict: &Verdict, table: &Table) -> Vec<Leaf> {
    match verdict {
        Verdict::Jump(peers) => leaves_of(peers, table),
        Verdict::Map { lookup, map } => {
            let of_element = |(object, content): (&Object, &Content)| {
                let (Object::Element(_, key), Content::Verdict(verdict)) = (object, content) else { return Vec::new() };
                let leaves = spread(verdict, table);
                let with_port = |(mut matches, verdict): Leaf| match to_port(*lookup, key) {
                    Some(port) => {
                        matches.push(port);
                        (matches, verdict)
                    }
                    // Tiers look up ports alone. Nothing gets past what is not understood.
                    None => (matches, Verdict::Drop),
                };
                leaves.into_iter().map(with_port).collect()
            };
            elements_of(table, map).flat_map(of_element).collect()
        }
        verdict => vec![(Vec::new(), verdict.clone())],
    }
}

/// Returns the condition for which the element of a map of ports is found.
fn to_port(lookup: Lookup, key: &Key) -> Option<Match> {
    match (lookup, key) {
        (Lookup::DestinationProtocolPort, Key::ProtocolPort(protocol, port)) => {
            let range = PortRange { first: *port, last: *port };
            Some(Match::DestinationPort { protocol: *protocol, range })
        }
        (Lookup::DestinationPort(protocol), Key::Ports(range)) => {
            Some(Match::DestinationPort { protocol, range: *range })
        }
        _ => None,
    }
}
