//! Policies and their sets, as clients display them.
//!
//! Our speaker has one policy for each direction, whose statements contain their sets. Clients know sets and statements
//! by name, each once. A set that no statement refers to does not exist here.

use std::collections::BTreeMap;

use super::version::Version;
use super::wire::messages::{
    Actions, AsPrependAction, CommunityAction, Conditions, DefinedSet, LocalPrefAction, MatchSet, MedAction,
    NexthopAction, Policy as PolicyMessage, PolicyAssignment, Prefix, Statement as StatementMessage,
};
use crate::bgp::policy::{Change, Condition, Decision, Matching, Policy, Statement};
use crate::bgp::rib::Policies;

/// Policy directions, numbered alike in both versions.
pub const IMPORT: i32 = 1;
pub const EXPORT: i32 = 2;

/// Set types, as places.
const PREFIXES: i32 = 0;
const NEIGHBOURS: i32 = 1;
const AS_PATHS: i32 = 3;
const COMMUNITIES: i32 = 4;
const EXTENDED_COMMUNITIES: i32 = 5;
const LARGE_COMMUNITIES: i32 = 6;

const ACCEPT: i32 = 1;
const REJECT: i32 = 2;

/// Policy in force for a direction; `None` for an invalid direction.
pub fn assignment(version: Version, policies: &Policies, direction: i32) -> Option<PolicyAssignment> {
    let policy = match direction {
        IMPORT => &policies.import,
        EXPORT => &policies.export,
        _ => return None,
    };
    Some(PolicyAssignment {
        name: "global".to_owned(),
        direction,
        policies: named(policy).map(|policy| message(version, policy)).into_iter().collect(),
        default_action: action(Some(policy.otherwise)),
    })
}

/// Both policies.
pub fn policies(version: Version, policies: &Policies) -> Vec<PolicyMessage> {
    let both = [&policies.import, &policies.export];
    both.into_iter().filter_map(|policy| named(policy)).map(|policy| message(version, policy)).collect()
}

/// A policy that has only a default has no name either.
fn named(policy: &Policy) -> Option<&Policy> {
    (!policy.name.is_empty() || !policy.statements.is_empty()).then_some(policy)
}

fn message(version: Version, policy: &Policy) -> PolicyMessage {
    let statements = policy.statements.iter().map(|one| statement(version, one)).collect();
    PolicyMessage { name: policy.name.clone(), statements }
}

/// All statements, by name.
pub fn statements(version: Version, policies: &Policies) -> BTreeMap<String, StatementMessage> {
    let all = policies.import.statements.iter().chain(&policies.export.statements);
    all.map(|one| (one.name.clone(), statement(version, one))).collect()
}

fn statement(version: Version, of: &Statement) -> StatementMessage {
    let conditions = Conditions {
        prefix_set: matched(version, &of.prefixes, |set| &set.name),
        neighbor_set: matched(version, &of.neighbours, |set| &set.name),
        as_path_set: matched(version, &of.as_paths, |set| &set.name),
        community_set: matched(version, &of.communities, |set| &set.name),
        ext_community_set: matched(version, &of.extended, |set| &set.name),
        large_community_set: matched(version, &of.large, |set| &set.name),
        // No RPKI condition: with this value alone clients of both versions print none.
        rpki_result: -1,
    };
    StatementMessage {
        name: of.name.clone(),
        conditions: Some(conditions),
        actions: Some(actions(version, &of.changes, of.decision)),
    }
}

fn matched<S>(version: Version, condition: &Option<Condition<S>>, name: impl Fn(&S) -> &String) -> Option<MatchSet> {
    let condition = condition.as_ref()?;
    let place = match condition.matching {
        Matching::Any => 0,
        Matching::All => 1,
        Matching::Not => 2,
    };
    Some(MatchSet { r#type: version.number(place), name: name(&condition.set).clone() })
}

fn action(decision: Option<Decision>) -> i32 {
    match decision {
        None => 0,
        Some(Decision::Accept) => ACCEPT,
        Some(Decision::Reject) => REJECT,
    }
}

fn actions(version: Version, changes: &[Change], decision: Option<Decision>) -> Actions {
    const ADD: i32 = 0;
    const REMOVE: i32 = 1;
    const REPLACE: i32 = 2;
    const REPLACE_MED: i32 = 1;
    fn texts<T: ToString>(all: &[T]) -> Vec<String> {
        all.iter().map(ToString::to_string).collect()
    }
    let communities = |place, communities| Some(CommunityAction { r#type: version.number(place), communities });
    let mut made = Actions { route_action: action(decision), ..Actions::default() };
    for change in changes {
        match change {
            Change::AddCommunities(all) => made.community = communities(ADD, texts(all)),
            Change::RemoveCommunities(all) => made.community = communities(REMOVE, texts(all)),
            Change::ReplaceCommunities(all) => made.community = communities(REPLACE, texts(all)),
            Change::AddLargeCommunities(all) => made.large_community = communities(ADD, texts(all)),
            Change::Prepend { asn, times } => {
                made.as_prepend = Some(AsPrependAction { asn: *asn, repeat: (*times).into() });
            }
            Change::NextHopSelf => made.nexthop = Some(NexthopAction { address: String::new(), self_: true }),
            Change::NextHop(address) => {
                made.nexthop = Some(NexthopAction { address: address.to_string(), self_: false });
            }
            Change::LocalPref(value) => made.local_pref = Some(LocalPrefAction { value: *value }),
            Change::Med(med) => {
                let value = med.unwrap_or_default().into();
                made.med = Some(MedAction { r#type: version.number(REPLACE_MED), value });
            }
        }
    }
    made
}

/// All sets of a type, by name; `None` for an invalid type.
pub fn sets(version: Version, policies: &Policies, kind: i32) -> Option<BTreeMap<String, DefinedSet>> {
    let place = version.place(kind)?;
    let all = policies.import.statements.iter().chain(&policies.export.statements);
    let sets = all.filter_map(|statement| set(place, statement));
    let number = |set: DefinedSet| (set.name.clone(), DefinedSet { defined_type: kind, ..set });
    (PREFIXES..=LARGE_COMMUNITIES + 1).contains(&place).then(|| sets.map(number).collect())
}

/// Set of a type that a statement refers to.
fn set(place: i32, statement: &Statement) -> Option<DefinedSet> {
    let listed = |name: &str, list: Vec<String>| DefinedSet { name: name.to_owned(), list, ..DefinedSet::default() };
    Some(match place {
        PREFIXES => {
            let set = &statement.prefixes.as_ref()?.set;
            let prefixes = set.iter().map(|(prefix, lengths)| Prefix {
                ip_prefix: prefix.to_string(),
                mask_length_min: lengths.least.into(),
                mask_length_max: lengths.most.into(),
            });
            DefinedSet { name: set.name.clone(), prefixes: prefixes.collect(), ..DefinedSet::default() }
        }
        NEIGHBOURS => {
            let set = &statement.neighbours.as_ref()?.set;
            listed(&set.name, set.prefixes.iter().map(ToString::to_string).collect())
        }
        AS_PATHS => {
            let set = &statement.as_paths.as_ref()?.set;
            listed(&set.name, set.patterns.iter().map(ToString::to_string).collect())
        }
        COMMUNITIES => {
            let set = &statement.communities.as_ref()?.set;
            listed(&set.name, set.communities.iter().map(ToString::to_string).collect())
        }
        EXTENDED_COMMUNITIES => {
            let set = &statement.extended.as_ref()?.set;
            listed(&set.name, set.communities.iter().map(|one| format!("0x{:016x}", one.0)).collect())
        }
        LARGE_COMMUNITIES => {
            let set = &statement.large.as_ref()?.set;
            listed(&set.name, set.communities.iter().map(ToString::to_string).collect())
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::bgp::message::Community;
    use crate::bgp::policy::{Lengths, NeighbourSet, PrefixSet};

    fn both() -> Policies {
        let mut pods = PrefixSet::new("pods");
        pods.insert("10.244.0.0/16".parse().unwrap(), Lengths { least: 16, most: 24 });
        let neighbours = NeighbourSet { name: "nodes".into(), prefixes: ["2001:db8::1/128".parse().unwrap()].into() };
        let statement = Statement {
            name: "podsnodes".into(),
            prefixes: Some(Condition { set: Arc::new(pods), matching: Matching::Any }),
            neighbours: Some(Condition { set: Arc::new(neighbours), matching: Matching::Not }),
            changes: vec![
                Change::Prepend { asn: 65009, times: 2 },
                Change::NextHopSelf,
                Change::AddCommunities(vec![Community(65001 << 16 | 7)]),
                Change::Med(Some(9)),
            ],
            decision: Some(Decision::Accept),
            ..Statement::default()
        };
        let export = Policy { name: "out".into(), statements: vec![statement], otherwise: Decision::Reject };
        Policies { import: Arc::new(Policy::all(Decision::Accept)), export: Arc::new(export) }
    }

    #[test]
    fn what_a_statement_looks_for_and_does_is_told() {
        let all = policies(Version::V3, &both());
        assert_eq!(all.iter().map(|policy| policy.name.as_str()).collect::<Vec<_>>(), ["out"]);
        let statement = &all[0].statements[0];
        let conditions = statement.conditions.as_ref().unwrap();
        assert_eq!(conditions.prefix_set, Some(MatchSet { r#type: 0, name: "pods".into() }));
        assert_eq!(conditions.neighbor_set, Some(MatchSet { r#type: 2, name: "nodes".into() }));
        assert_eq!(conditions.rpki_result, -1);
        let actions = statement.actions.as_ref().unwrap();
        assert_eq!(actions.route_action, ACCEPT);
        assert_eq!(actions.as_prepend, Some(AsPrependAction { asn: 65009, repeat: 2 }));
        assert_eq!(actions.nexthop, Some(NexthopAction { address: String::new(), self_: true }));
        assert_eq!(actions.community.as_ref().unwrap().communities, ["65001:7"]);
        assert_eq!(actions.med, Some(MedAction { r#type: 1, value: 9 }));
    }

    #[test]
    fn a_policy_is_assigned_with_its_default_and_a_bare_default_has_none() {
        let import = assignment(Version::V4, &both(), IMPORT).unwrap();
        assert_eq!((import.policies.len(), import.default_action), (0, ACCEPT));
        let export = assignment(Version::V4, &both(), EXPORT).unwrap();
        assert_eq!((export.policies.len(), export.default_action), (1, REJECT));
        assert_eq!(assignment(Version::V4, &both(), 0), None);
    }

    #[test]
    fn sets_are_found_by_their_kind_as_each_version_numbers_it() {
        let names = |version, kind| sets(version, &both(), kind).map(|sets| sets.into_keys().collect::<Vec<_>>());
        assert_eq!(names(Version::V3, 0), Some(vec!["pods".to_owned()]));
        assert_eq!(names(Version::V4, 1), Some(vec!["pods".to_owned()]));
        assert_eq!(names(Version::V4, 2), Some(vec!["nodes".to_owned()]));
        assert_eq!(names(Version::V4, 0), None, "it says nothing");
        assert_eq!(names(Version::V3, 4), Some(vec![]));
        let pods = &sets(Version::V3, &both(), 0).unwrap()["pods"];
        let prefix = Prefix { ip_prefix: "10.244.0.0/16".into(), mask_length_min: 16, mask_length_max: 24 };
        assert_eq!(pods.prefixes, [prefix]);
    }
}
