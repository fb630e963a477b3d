//! Import and export policy: which routes are accepted or advertised, and how they are modified.
//!
//! Statements are evaluated in order; the first one whose conditions all hold and that has a decision is final. A
//! statement without a decision only modifies the route, and evaluation continues. Otherwise the policy's default
//! applies. Names of policies, sets and statements are kept as given: they are displayed, and users' scripts search for
//! them.
//!
//! On import the neighbour is the source of the route, on export its receiver. Our own routes have no source neighbour,
//! so that a condition on neighbours never holds for their import. An empty set contains nothing. (In GoBGP an empty
//! neighbour set contains all, which leaks routes to unintended neighbours.)

mod as_path;
mod sets;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::message::{Attributes, Community, ExtendedCommunity, LargeCommunity};

pub use as_path::{AsPathPattern, AsPathSet, NoPattern};
pub use sets::{CommunitySet, ExtendedCommunitySet, LargeCommunitySet, Lengths, NeighbourSet, OwnPrefixes, PrefixSet};

/// Policy of one direction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    pub name: String,
    pub statements: Vec<Statement>,
    /// Default for routes without a deciding statement.
    pub otherwise: Decision,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    Accept,
    Reject,
}

/// Conditions, and the actions where they hold.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Statement {
    pub name: String,
    pub prefixes: Option<Condition<PrefixSet>>,
    pub neighbours: Option<Condition<NeighbourSet>>,
    /// The prefix is one of those that the neighbour itself may bring.
    pub own_prefixes: Option<Arc<OwnPrefixes>>,
    pub as_paths: Option<Condition<AsPathSet>>,
    pub communities: Option<Condition<CommunitySet>>,
    pub extended: Option<Condition<ExtendedCommunitySet>>,
    pub large: Option<Condition<LargeCommunitySet>>,
    /// Modifications; applied also by a statement without a decision.
    pub changes: Vec<Change>,
    pub decision: Option<Decision>,
}

/// Reference to a set, and how it has to match.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Condition<S> {
    pub set: Arc<S>,
    pub matching: Matching,
}

/// Match type of a set. A route has one prefix and one neighbour, so that *any* and *all* differ for paths and
/// communities only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Matching {
    Any,
    All,
    /// No member of the set matches.
    Not,
}

/// Modification of a route.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    AddCommunities(Vec<Community>),
    RemoveCommunities(Vec<Community>),
    ReplaceCommunities(Vec<Community>),
    AddLargeCommunities(Vec<LargeCommunity>),
    /// Prepends to the path, which on export to another AS begins with our own number.
    Prepend {
        asn: u32,
        times: u8,
    },
    /// Our own address, if there is one that the neighbour can use.
    NextHopSelf,
    NextHop(IpAddr),
    LocalPref(u32),
    Med(Option<u32>),
}

/// Result of applying a policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    Rejected,
    Unchanged,
    Changed(Attributes),
}

/// Line of a policy that decides about a route.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Line {
    /// Statement, by its index.
    Statement(u16),
    /// No statement decided.
    Default,
}

/// Prefixes for which two policies may differ, towards a neighbour to which the same statements apply.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Difference {
    Anywhere,
    /// Only prefixes inside of these.
    Inside(BTreeSet<IpNet>),
}

/// A policy, and its difference from the one before.
pub struct ChangedPolicy {
    pub policy: Arc<Policy>,
    pub difference: Difference,
}

/// Statements of a policy that can apply to one neighbour, by index. Neighbours with equal ones are treated alike.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Applicable {
    statements: Arc<[u16]>,
    /// The neighbour, where one of them asks for its own prefixes.
    neighbour: Option<IpAddr>,
}

impl Policy {
    /// Builds a policy without statements.
    pub fn all(otherwise: Decision) -> Policy {
        Policy { name: String::new(), statements: Vec::new(), otherwise }
    }

    /// Statements whose condition on neighbours holds for this one, or for our own routes.
    pub fn applicable(&self, neighbour: Option<IpAddr>) -> Applicable {
        let holds = |statement: &Statement| match (&statement.neighbours, neighbour) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(condition), Some(neighbour)) => {
                condition.set.contains(neighbour) == (condition.matching != Matching::Not)
            }
        };
        let places = self.statements.iter().zip(0_u16..).filter(|(statement, _)| holds(statement));
        let is_told_apart = places.clone().any(|(statement, _)| statement.own_prefixes.is_some());
        let statements = places.map(|(_, place)| place).collect();
        Applicable { statements, neighbour: neighbour.filter(|_| is_told_apart) }
    }

    /// Returns where a newer policy may differ from this one. Prefix sets change often, and few routes lie inside of
    /// the changed prefixes.
    pub fn difference(&self, newer: &Policy) -> Difference {
        let mut inside = BTreeSet::new();
        if self.otherwise != newer.otherwise || self.statements.len() != newer.statements.len() {
            return Difference::Anywhere;
        }
        for (old, new) in self.statements.iter().zip(&newer.statements) {
            let plain = |statement: &Statement| {
                let own_prefixes = statement.own_prefixes.as_ref().map(|_| Arc::default());
                Statement { prefixes: None, neighbours: None, own_prefixes, ..statement.clone() }
            };
            if let (Some(old), Some(new)) = (&old.own_prefixes, &new.own_prefixes) {
                inside.extend(old.difference(new));
            }
            match (&old.prefixes, &new.prefixes) {
                _ if plain(old) != plain(new) => return Difference::Anywhere,
                (None, None) => {}
                (Some(old), Some(new)) if old.matching == new.matching => inside.extend(old.set.difference(&new.set)),
                _ => return Difference::Anywhere,
            }
        }
        Difference::Inside(inside)
    }

    /// Applies the policy to a route. `own` is our address towards the neighbour, for modifications that need it.
    pub fn outcome(
        &self,
        applicable: &Applicable,
        prefix: IpNet,
        attributes: &Attributes,
        own: Option<IpAddr>,
    ) -> Outcome {
        self.verdict(applicable, prefix, attributes, own).0
    }

    /// The same, and the line that decided.
    pub fn verdict(
        &self,
        applicable: &Applicable,
        prefix: IpNet,
        attributes: &Attributes,
        own: Option<IpAddr>,
    ) -> (Outcome, Line) {
        let mut changed: Option<Attributes> = None;
        for place in applicable.statements.iter() {
            let Some(statement) = self.statements.get(usize::from(*place)) else { continue };
            if !statement.holds(applicable.neighbour, prefix, changed.as_ref().unwrap_or(attributes)) {
                continue;
            }
            if statement.decision == Some(Decision::Reject) {
                return (Outcome::Rejected, Line::Statement(*place));
            }
            for change in &statement.changes {
                change.make(changed.get_or_insert_with(|| attributes.clone()), own);
            }
            if statement.decision == Some(Decision::Accept) {
                return (changed.map_or(Outcome::Unchanged, Outcome::Changed), Line::Statement(*place));
            }
        }
        let outcome = match self.otherwise {
            Decision::Reject => Outcome::Rejected,
            Decision::Accept => changed.map_or(Outcome::Unchanged, Outcome::Changed),
        };
        (outcome, Line::Default)
    }

    /// Statement of a line; `None` for the default.
    pub fn statement(&self, line: Line) -> Option<&Statement> {
        match line {
            Line::Statement(place) => self.statements.get(usize::from(place)),
            Line::Default => None,
        }
    }
}

impl Statement {
    /// Returns whether the conditions hold; the one on neighbours has been evaluated before.
    fn holds(&self, neighbour: Option<IpAddr>, prefix: IpNet, attributes: &Attributes) -> bool {
        let prefixes = self
            .prefixes
            .as_ref()
            .is_none_or(|condition| condition.set.contains(prefix) == (condition.matching != Matching::Not));
        let is_own = |all: &Arc<OwnPrefixes>| neighbour.is_some_and(|neighbour| all.contains(neighbour, prefix));
        let path = |pattern: &AsPathPattern| pattern.matches(&attributes.as_path);
        let community = |one: &Community| attributes.has(*one);
        let extended = |one: &ExtendedCommunity| attributes.rare().extended.binary_search(one).is_ok();
        let large = |one: &LargeCommunity| attributes.rare().large.binary_search(one).is_ok();
        prefixes
            && self.own_prefixes.as_ref().is_none_or(is_own)
            && self.as_paths.as_ref().is_none_or(|it| it.matching.holds(&it.set.patterns, path))
            && self.communities.as_ref().is_none_or(|it| it.matching.holds(&it.set.communities, community))
            && self.extended.as_ref().is_none_or(|it| it.matching.holds(&it.set.communities, extended))
            && self.large.as_ref().is_none_or(|it| it.matching.holds(&it.set.communities, large))
    }
}

impl Matching {
    /// Returns whether a set matches a multi-valued attribute. An empty set has no members.
    fn holds<T>(self, set: &BTreeSet<T>, has: impl Fn(&T) -> bool) -> bool {
        match self {
            Matching::Any => set.iter().any(has),
            Matching::All => !set.is_empty() && set.iter().all(has),
            Matching::Not => !set.iter().any(has),
        }
    }
}

impl Change {
    fn make(&self, attributes: &mut Attributes, own: Option<IpAddr>) {
        match self {
            Change::AddCommunities(added) => attributes.add_communities(added),
            Change::RemoveCommunities(removed) => {
                let left = attributes.communities.iter().filter(|one| !removed.contains(one));
                attributes.communities = left.copied().collect();
            }
            Change::ReplaceCommunities(all) => {
                attributes.communities = Box::default();
                attributes.add_communities(all);
            }
            Change::AddLargeCommunities(added) => attributes.change_rare(|rare| {
                let all: BTreeSet<LargeCommunity> = rare.large.iter().chain(added).copied().collect();
                rare.large = all.into_iter().collect();
            }),
            Change::Prepend { asn, times } => {
                attributes.as_path = attributes.as_path.prepended(*asn, usize::from(*times));
            }
            Change::NextHopSelf => {
                if let Some(own) = own {
                    *attributes = attributes.with_next_hop(own);
                }
            }
            Change::NextHop(next_hop) => *attributes = attributes.with_next_hop(*next_hop),
            Change::LocalPref(local_pref) => attributes.local_pref = Some(*local_pref),
            Change::Med(med) => attributes.med = *med,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bgp::message::AsPath;

    fn prefix(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn set(entries: &[(&str, u8, u8)]) -> Option<Condition<PrefixSet>> {
        let mut set = PrefixSet::new("set");
        for (text, least, most) in entries {
            set.insert(prefix(text), Lengths { least: *least, most: *most });
        }
        Some(Condition { set: Arc::new(set), matching: Matching::Any })
    }

    fn neighbours(all: &[&str]) -> Option<Condition<NeighbourSet>> {
        let prefixes = all.iter().map(|text| prefix(text)).collect();
        let set = Arc::new(NeighbourSet { name: "neighbours".into(), prefixes });
        Some(Condition { set, matching: Matching::Any })
    }

    fn policy(statements: Vec<Statement>, otherwise: Decision) -> Policy {
        Policy { name: "policy".into(), statements, otherwise }
    }

    fn accept() -> Statement {
        Statement { decision: Some(Decision::Accept), ..Statement::default() }
    }

    fn reject() -> Statement {
        Statement { decision: Some(Decision::Reject), ..Statement::default() }
    }

    fn route() -> Attributes {
        Attributes::local(address("203.0.113.1"))
    }

    fn outcome(policy: &Policy, neighbour: Option<&str>, text: &str, attributes: &Attributes) -> Outcome {
        let applicable = policy.applicable(neighbour.map(address));
        policy.outcome(&applicable, prefix(text), attributes, Some(address("192.0.2.1")))
    }

    #[test]
    fn the_first_statement_that_holds_decides() {
        let first = Statement { prefixes: set(&[("10.1.0.0/16", 16, 32)]), ..reject() };
        let second = Statement { prefixes: set(&[("10.0.0.0/8", 8, 32)]), ..accept() };
        let policy = policy(vec![first, second], Decision::Reject);
        assert_eq!(outcome(&policy, None, "10.1.2.0/24", &route()), Outcome::Rejected);
        assert_eq!(outcome(&policy, None, "10.2.2.0/24", &route()), Outcome::Unchanged);
        assert_eq!(outcome(&policy, None, "11.0.0.0/24", &route()), Outcome::Rejected, "the default");
    }

    #[test]
    fn neighbours_are_told_apart_and_an_empty_set_contains_nobody() {
        let inside = Statement { neighbours: neighbours(&["192.0.2.0/24", "2001:db8:2::/64"]), ..accept() };
        let nobody = Statement { neighbours: neighbours(&[]), ..accept() };
        let policy = policy(vec![nobody, inside], Decision::Reject);
        let of = |neighbour| outcome(&policy, neighbour, "10.244.1.0/24", &route());
        assert_eq!(of(Some("192.0.2.7")), Outcome::Unchanged);
        assert_eq!(of(Some("2001:db8:2::7")), Outcome::Unchanged);
        assert_eq!(of(Some("203.0.113.7")), Outcome::Rejected);
        assert_eq!(of(None), Outcome::Rejected, "a route of our own comes from no neighbour");
        let two = policy.applicable(Some(address("192.0.2.1")));
        assert_eq!(two, policy.applicable(Some(address("192.0.2.2"))), "they share their work");
    }

    #[test]
    fn what_a_statement_changes_stays_changed_for_those_behind_it() {
        let mark = Statement {
            changes: vec![
                Change::AddCommunities(vec![Community(7)]),
                Change::Prepend { asn: 65009, times: 2 },
                Change::NextHopSelf,
                Change::Med(Some(5)),
                Change::LocalPref(200),
                Change::AddLargeCommunities(vec![LargeCommunity([1, 2, 3])]),
            ],
            ..Statement::default()
        };
        let communities = BTreeSet::from([Community(7)]);
        let marked = Statement {
            communities: Some(Condition {
                set: Arc::new(CommunitySet { name: "marked".into(), communities }),
                matching: Matching::All,
            }),
            ..accept()
        };
        let policy = policy(vec![mark, marked], Decision::Reject);
        let route = Attributes { as_path: AsPath::sequence(&[65001]), ..route() };
        let Outcome::Changed(changed) = outcome(&policy, None, "10.244.1.0/24", &route) else { panic!() };
        assert_eq!(changed.as_path.to_string(), "65009 65009 65001");
        assert_eq!(changed.next_hop, address("192.0.2.1"));
        assert_eq!((changed.med, changed.local_pref), (Some(5), Some(200)));
        assert_eq!(changed.rare().large.as_ref(), [LargeCommunity([1, 2, 3])]);
    }

    #[test]
    fn the_line_that_decides_is_named_and_one_that_only_changes_is_none() {
        let to = |text: &str, decision| Statement {
            prefixes: set(&[(text, 0, 128)]),
            decision,
            changes: vec![Change::Med(Some(5))],
            ..Statement::default()
        };
        let of = |entries: &[(&str, Option<Decision>)], otherwise| {
            policy(entries.iter().map(|(text, decision)| to(text, *decision)).collect(), otherwise)
        };
        let (accept, reject) = (Some(Decision::Accept), Some(Decision::Reject));
        let changed = || Outcome::Changed(Attributes { med: Some(5), ..route() });
        for (outer, inner) in [("10.0.0.0/8", "10.244.0.0/16"), ("fd00::/8", "fd00:10:244::/48")] {
            let policy = of(&[(outer, None), (inner, reject), (outer, accept)], Decision::Reject);
            let verdict = |text: &str| policy.verdict(&policy.applicable(None), prefix(text), &route(), None);
            assert_eq!(verdict(inner), (Outcome::Rejected, Line::Statement(1)));
            assert_eq!(verdict(outer), (changed(), Line::Statement(2)));
            assert_eq!(verdict("198.51.100.0/24"), (Outcome::Rejected, Line::Default));
            let policy = of(&[(outer, None)], Decision::Accept);
            let verdict = policy.verdict(&policy.applicable(None), prefix(inner), &route(), None);
            assert_eq!(verdict, (changed(), Line::Default));
        }
    }

    #[test]
    fn paths_and_all_kinds_of_communities_are_conditions() {
        let mut route = Attributes { as_path: AsPath::sequence(&[65001, 65002]), ..route() };
        route.change_rare(|rare| {
            rare.extended = [ExtendedCommunity(7)].into();
            rare.large = [LargeCommunity([1, 2, 3])].into();
        });
        fn any<S>(set: S) -> Option<Condition<S>> {
            Some(Condition { set: Arc::new(set), matching: Matching::Any })
        }
        let path = |text: &str| {
            let patterns = [text.parse().unwrap()].into();
            Statement { as_paths: any(AsPathSet { name: "paths".into(), patterns }), ..accept() }
        };
        let extended = |number| {
            let communities = [ExtendedCommunity(number)].into();
            Statement { extended: any(ExtendedCommunitySet { name: "extended".into(), communities }), ..accept() }
        };
        let large = |number| {
            let communities = [LargeCommunity([1, 2, number])].into();
            Statement { large: any(LargeCommunitySet { name: "large".into(), communities }), ..accept() }
        };
        for (statement, holds) in [
            (path("^65001_"), true),
            (path("^65002_"), false),
            (extended(7), true),
            (extended(8), false),
            (large(3), true),
            (large(4), false),
        ] {
            let policy = policy(vec![statement], Decision::Reject);
            let passes = outcome(&policy, None, "10.244.1.0/24", &route) != Outcome::Rejected;
            assert_eq!(passes, holds, "{policy:?}");
        }
    }

    #[test]
    fn communities_are_matched_replaced_and_taken_away() {
        let condition = |matching| {
            let communities = BTreeSet::from([Community(1), Community(2)]);
            Condition { set: Arc::new(CommunitySet { name: "set".into(), communities }), matching }
        };
        let mut some = route();
        some.add_communities(&[Community(1)]);
        let mut both = some.clone();
        both.add_communities(&[Community(2)]);
        let statement = |matching| Statement { communities: Some(condition(matching)), ..Statement::default() };
        let holds = |matching| {
            let holds = |route: &Attributes| statement(matching).holds(None, prefix("10.244.1.0/24"), route);
            [route(), some.clone(), both.clone()].each_ref().map(holds)
        };
        assert_eq!(holds(Matching::Any), [false, true, true]);
        assert_eq!(holds(Matching::All), [false, false, true]);
        assert_eq!(holds(Matching::Not), [true, false, false]);
        Change::RemoveCommunities(vec![Community(1)]).make(&mut both, None);
        assert_eq!(both.communities.as_ref(), [Community(2)]);
        Change::ReplaceCommunities(vec![Community(9)]).make(&mut both, None);
        assert_eq!(both.communities.as_ref(), [Community(9)]);
    }
}
