//! What ClusterNetworkPolicies deny stays denied where they are not known, or not known to select a pod no longer; what those of the
//! Admin tier pass on stays passed on, because NetworkPolicies may refuse what another policy of the tier would accept.
//!
//! The rules of the address's former chain are asked first, in a chain of their own: those that lead to such a denial as they were, those that
//! pass packets on and those that accept, so far as they come before one of a policy that is not known, as [`passed`](super::passed) says. Then comes what is
//! desired for the address. Denials of policies that are known are not asked there: they may have changed.
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

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::kernel::nftables::{Chain, Content, Key, Name, Object, Rule, Verdict};

use super::super::desired::{Lost, Table, elements_of};
use super::super::names::{self, ChainKind};
use super::super::refused::is_closed;
use super::{Kept, maps, named, passed, target};

/// The tables that are compared.
#[derive(Clone, Copy)]
struct View<'a> {
    /// Objects of policies that are not known, if any.
    lost: Option<&'a Lost>,
    seen: &'a Table,
    desired: &'a Table,
}

/// A rule of a former chain, as it is kept.
struct Decision {
    rule: Rule,
    /// The objects that it leads to, as they were found.
    objects: BTreeSet<Object>,
    /// The chains that are made for it.
    chains: Vec<(Object, Content)>,
}

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
            let (Some(before), now) = (target(Some(verdict)), target(desired.get(element))) else { continue };
            let is_unjudged = now.is_none_or(|now| names::kind(now) == Some(ChainKind::Tier));
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

/// Returns the rules of a former chain up to the last one of a policy that is not known, as they are kept.
fn decisions(before: &Name, now: Option<&Name>, view: View<'_>) -> Vec<Decision> {
    let View { lost, seen, desired } = view;
    let known: BTreeSet<Object> = match (lost, now) {
        (None, Some(now)) => reached([Object::Chain(now.clone())], desired),
        _ => BTreeSet::new(),
    };
    let is_lost = |object: &Object| match object {
        Object::Chain(chain) if is_of_policy(chain) => match lost {
            Some(lost) => lost.chains.holds(chain.as_str()) && !desired.contains_key(object),
            None => !known.contains(object),
        },
        _ => false,
    };
    // The chain of a tier that was closed in place of what the kernel refused may have denied anything; that of a class denied
    // nothing by ClusterNetworkPolicies.
    let was_closed = now != Some(before) && is_of_tier(before);
    let (mut decisions, mut end): (Vec<Decision>, usize) = (Vec::new(), 0);
    for rule in asked(before, seen) {
        let objects = reached(leads_to(rule), seen);
        if let Some(policy) = passed::by(rule, seen) {
            let chain = Object::Chain(policy.clone());
            let is_its = is_lost(&chain);
            let objects = reached(named(rule).into_iter().chain([chain]), seen);
            let (kept, chains) = passed::passing(rule, policy, now, desired);
            decisions.push(Decision { rule: kept, objects, chains });
            end = if is_its { decisions.len() } else { end };
            if rule.matches().is_empty() {
                break;
            }
        } else if objects.iter().any(is_lost) || was_closed && is_closed(rule) {
            decisions.push(Decision { rule: rule.clone(), objects, chains: Vec::new() });
            end = decisions.len();
        } else {
            let accepted = passed::accepted(rule, seen);
            // Behind what accepts everything nothing is asked.
            if accepted.iter().any(Vec::is_empty) {
                break;
            }
            let accepting = accepted.into_iter().map(|matches| passed::accepting(matches, now));
            let decision = |rule: Rule| Decision { objects: reached(named(&rule), seen), rule, chains: Vec::new() };
            decisions.extend(accepting.map(decision));
        }
    }
    decisions.truncate(end);
    decisions
}

/// Returns the rules that a packet meets in a chain and where that goes on, each once. What such a chain goes on with does not come
/// back, so it has to be asked rule by rule where anything is to be asked behind it.
fn asked<'a>(chain: &'a Name, table: &'a Table) -> Vec<&'a Rule> {
    let (mut rules, mut met, mut chains) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    let mut next = Some(chain);
    while let Some(Content::Chain(found)) = next.and_then(|name| table.get(&Object::Chain(name.clone()))) {
        next = None;
        for rule in &found.rules {
            match goes_on(rule).filter(|_| passed::by(rule, table).is_none()) {
                // Nothing behind it is asked.
                Some(to) => {
                    next = chains.insert(to).then_some(to);
                    break;
                }
                None if met.insert(rule) => rules.push(rule),
                None => {}
            }
        }
    }
    rules
}

/// Returns the chain with which every packet goes on that meets a rule, where that is a whole chain of an address.
fn goes_on(rule: &Rule) -> Option<&Name> {
    let is_whole = |chain: &&Name| is_of_tier(chain) || names::kind(chain) == Some(ChainKind::Shared);
    match rule.verdict() {
        Some(Verdict::Goto(to)) if rule.matches().is_empty() => Some(to).filter(is_whole),
        _ => None,
    }
}

/// Returns whether a chain is that of a tier, or asks one behind what is kept.
fn is_of_tier(chain: &Name) -> bool {
    matches!(names::kind(chain), Some(ChainKind::Tier | ChainKind::Kept))
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

/// Returns whether a chain is one of a single policy, to which packets go about which it decides.
fn is_of_policy(chain: &Name) -> bool {
    matches!(names::kind(chain), Some(ChainKind::Denied | ChainKind::Passed))
}

/// Returns the objects that a rule names.
fn leads_to(rule: &Rule) -> BTreeSet<Object> {
    let mut objects = named(rule);
    match rule.verdict() {
        Some(Verdict::Jump(to) | Verdict::Goto(to)) => drop(objects.insert(Object::Chain(to.clone()))),
        Some(Verdict::Map { map, .. }) => drop(objects.insert(Object::Set(map.clone()))),
        _ => {}
    }
    objects
}

/// Returns these objects and all that they lead to.
fn reached(from: impl IntoIterator<Item = Object>, table: &Table) -> BTreeSet<Object> {
    let (mut all, mut left) = (BTreeSet::new(), Vec::from_iter(from));
    while let Some(object) = left.pop() {
        if all.contains(&object) {
            continue;
        }
        match table.get(&object) {
            Some(Content::Chain(chain)) => left.extend(chain.rules.iter().flat_map(leads_to)),
            Some(Content::Verdict(verdict)) => {
                if let Verdict::Jump(to) | Verdict::Goto(to) = &**verdict {
                    left.push(Object::Chain(to.clone()));
                }
            }
            _ => {}
        }
        if let Object::Set(set) = &object {
            left.extend(elements_of(table, set).map(|(element, _)| element.clone()));
        }
        all.insert(object);
    }
    all
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::super::super::given::{labels, object, pod, pods_in, policy, selector};
    use super::super::super::super::plan::Plan;
    use super::super::super::desired::Desired;
    use super::super::super::lowering::Lowering;
    use super::*;
    use crate::config::{FirewallConfig, ServiceRanges};
    use crate::firewall::rules::Direction;
    use crate::kernel::nftables::rule::Side;
    use crate::kernel::nftables::{Lookup, Match};
    use crate::model::{
        Action, Authority, ClusterNetworkPolicy, ClusterRule, Host, Namespace, Peers, PolicyRule, Ports, Selector,
        Subject, Tier, UnreadPolicies, World,
    };
    use crate::net::{Family, PerFamily};

    /// A world with these policies, each of which denies `db` to pods of its own name.
    fn world(tier: Tier, policies: &[&str]) -> World {
        let mut world = World::empty();
        world.host = Arc::new(Host { node_name: "node1".into(), ..Host::default() });
        world.cluster.namespaces.insert("shop".into(), Namespace { labels: labels(""), isolated: false });
        for (last, name) in [(7, "web"), (8, "db"), (9, "other")] {
            let addresses = format!("10.244.1.{last} fd00:10:244:1::{last}");
            world.cluster.pods.insert(object(&format!("shop/{name}")), pod(&addresses, &format!("app={name}"), ""));
        }
        for (priority, name) in (1..).zip(policies) {
            let deny = rule_of(Action::Deny, name);
            let subject = Subject { namespaces: Selector::everything(), pods: selector("app=db") };
            let of = ClusterNetworkPolicy { tier, priority, subject, ingress: [deny].into(), egress: [].into() };
            world.cluster.cluster_policies.insert((*name).into(), of);
        }
        world
    }

    /// A rule about pods of this name.
    fn rule_of(action: Action, name: &str) -> ClusterRule {
        let peers = Peers::Of([pods_in("", &format!("app={name}"))].into());
        ClusterRule { name: "".into(), action, matches: PolicyRule { peers, ports: Ports::Any } }
    }

    /// Gives a policy other rules.
    fn set_rules(world: &mut World, policy: &str, rules: &[(Action, &str)]) {
        let before = world.cluster.cluster_policies.get(&policy.into()).expect("it is there");
        let ingress = rules.iter().map(|(action, name)| rule_of(*action, name)).collect();
        let policy_now = ClusterNetworkPolicy { ingress, ..(**before).clone() };
        world.cluster.cluster_policies.insert(policy.into(), policy_now);
    }

    fn desired(world: &World) -> Desired {
        let config = FirewallConfig {
            backend: crate::config::Backend::default(),
            sync_period: Duration::from_secs(300),
            default_deny: false,
            flush_established: false,
            ranges: ServiceRanges {
                strict: true,
                cluster_ips: Vec::new(),
                external_ips: Vec::new(),
                load_balancer_ips: Vec::new(),
            },
            knows_services: false,
            tunnel_mode: false,
            service_node_port_range: 30000..=32767,
        };
        let mut lowering = Lowering::new(Arc::new(config), PerFamily { v4: true, v6: true });
        let mut plan = Plan::new();
        let changed = plan.update(world);
        lowering.update(plan.rules(), world, &changed);
        lowering.desired().clone()
    }

    fn map(tier: Tier, family: Family) -> Name {
        match tier {
            Tier::Admin => names::admin(Direction::Ingress, family),
            Tier::Baseline => names::isolated(Direction::Ingress, family),
        }
    }

    fn is_denied(chain: &Name) -> bool {
        names::kind(chain) == Some(ChainKind::Denied)
    }

    /// The policies whose denials the chain of `db` leads to, by the first letters of their names, as it is kept.
    fn denied(tier: Tier, table: &Table) -> Vec<String> {
        let mut found = Vec::new();
        for (family, address) in [(Family::V4, "10.244.1.8"), (Family::V6, "fd00:10:244:1::8")] {
            let key = Key::Address(address.parse().expect("an address"));
            let all = reached([Object::Element(map(tier, family), key)], table);
            let chains = all.iter().filter_map(|object| match object {
                Object::Chain(chain) if is_denied(chain) && table.contains_key(object) => {
                    chain.as_str().split('_').nth(2).map(str::to_owned)
                }
                _ => None,
            });
            found.extend(chains);
        }
        found
    }

    fn twice(names: &[&str]) -> Vec<String> {
        [names, names].concat().iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_a_policy_denied_that_is_not_known_is_asked_before_those_that_are() {
        for tier in [Tier::Admin, Tier::Baseline] {
            let seen = desired(&world(tier, &["web"])).table;
            let mut now = world(tier, &["other"]);
            let without = desired(&now);
            assert!(Kept::of(&seen, &without, Authority::Complete).is_empty(), "all are known");
            now.unread = UnreadPolicies::Named(Arc::new(["web".into()].into()));
            let lost = desired(&now);
            for (desired, authority) in [(&lost, Authority::Complete), (&without, Authority::Partial)] {
                let kept = Kept::of(&seen, desired, authority);
                let over = kept.over(&desired.table);
                assert_eq!(denied(tier, &over), twice(&["other", "web"]), "{tier:?} {authority:?}");
                assert!(Kept::of(&over, desired, authority) == kept, "the next round finds what this one has made");
            }
            now.unread = UnreadPolicies::Named(Arc::new(["strange".into()].into()));
            assert!(Kept::of(&seen, &desired(&now), Authority::Complete).is_empty(), "it never denied anything");
            now.cluster.pods.remove(&object("shop/db"));
            now.unread = UnreadPolicies::Any;
            assert!(Kept::of(&seen, &desired(&now), Authority::Complete).is_empty(), "the pod is gone");
        }
    }

    #[test]
    fn a_policy_that_is_new_takes_effect_although_the_cluster_is_known_in_part() {
        for tier in [Tier::Admin, Tier::Baseline] {
            let seen = desired(&world(tier, &["web"])).table;
            let desired = desired(&world(tier, &["web", "other"]));
            let over = Kept::of(&seen, &desired, Authority::Partial).over(&desired.table);
            assert_eq!(denied(tier, &over), twice(&["other", "web"]), "{tier:?}");
        }
    }

    #[test]
    fn a_pod_that_nothing_else_judges_stays_denied_what_a_policy_denied_that_cannot_be_read() {
        let seen = desired(&world(Tier::Admin, &["web"])).table;
        let mut now = world(Tier::Admin, &[]);
        now.unread = UnreadPolicies::Any;
        let desired = desired(&now);
        let over = Kept::of(&seen, &desired, Authority::Complete).over(&desired.table);
        assert_eq!(denied(Tier::Admin, &over), twice(&["web"]));
    }

    #[test]
    fn network_policies_prevail_over_a_baseline_that_is_not_known() {
        let seen = desired(&world(Tier::Baseline, &["web"])).table;
        let mut now = world(Tier::Baseline, &[]);
        now.cluster.policies.insert(object("shop/db"), policy("app=db", Some(&[]), None));
        now.unread = UnreadPolicies::Any;
        let desired = desired(&now);
        assert!(Kept::of(&seen, &desired, Authority::Complete).is_empty());
    }

    /// The end of a packet's way through a chain.
    enum End {
        Accepted,
        /// In this chain.
        Refused(Name),
    }

    /// The end of the way of a packet from this address through a chain; `None` where it returns.
    fn end(table: &Table, chain: &Name, source: IpAddr) -> Option<End> {
        let Some(Content::Chain(found)) = table.get(&Object::Chain(chain.clone())) else {
            panic!("{chain} is missing")
        };
        let holds = |one: &Match| match one {
            Match::InSet { lookup: Lookup::Address(_, Side::Source), set, negated: false } => {
                table.contains_key(&Object::Element(set.clone(), Key::Address(source)))
            }
            // The packet is a valid one.
            Match::State { .. } => false,
            other => panic!("{other:?}"),
        };
        if is_denied(chain) {
            return Some(End::Refused(chain.clone()));
        }
        for rule in found.rules.iter().filter(|rule| rule.matches().iter().all(holds)) {
            match rule.verdict() {
                Some(Verdict::Goto(to)) => return end(table, to, source),
                Some(Verdict::Accept) => return Some(End::Accepted),
                Some(Verdict::Return) => return None,
                Some(Verdict::Jump(to)) => {
                    if let Some(end) = end(table, to, source) {
                        return Some(end);
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        None
    }

    /// The end of the way of a packet to `db` from the pod with these last digits.
    fn end_at_db(tier: Tier, table: &Table, (family, net): (Family, &str), last: u8) -> Option<End> {
        let address = |last: u8| -> IpAddr { format!("{net}{last}").parse().expect("an address") };
        let element = Object::Element(map(tier, family), Key::Address(address(8)));
        end(table, target(table.get(&element)).expect("it is judged"), address(last))
    }

    const NETS: [(Family, &str); 2] = [(Family::V4, "10.244.1."), (Family::V6, "fd00:10:244:1::")];

    /// Returns whether the Admin tier leaves a packet to `db` from the pod with these last digits to NetworkPolicies.
    fn is_passed_on(table: &Table, last: u8) -> bool {
        let ends = NETS.map(|net| end_at_db(Tier::Admin, table, net, last));
        assert_eq!(ends[0].is_none(), ends[1].is_none(), "both families");
        ends[0].is_none()
    }

    /// The policies that refuse `db` the packets of the pod with these last digits, in IPv4 and IPv6.
    fn refused_by(tier: Tier, table: &Table, last: u8) -> Vec<String> {
        let of_policy = |end: Option<End>| match end {
            Some(End::Refused(chain)) => chain.as_str().split('_').nth(2).map(str::to_owned),
            Some(End::Accepted) | None => None,
        };
        NETS.into_iter().filter_map(|net| of_policy(end_at_db(tier, table, net, last))).collect()
    }

    #[test]
    fn what_is_new_is_asked_however_often_policies_were_lost_before() {
        for tier in [Tier::Admin, Tier::Baseline] {
            for authority in [Authority::Partial, Authority::Complete] {
                let mut seen = desired(&world(tier, &["web", "other"])).table;
                for (now, unread) in [("other", &["web"][..]), ("db", &["web", "other"])] {
                    let mut world = world(tier, &[now]);
                    let unread = unread.iter().map(|name| (*name).into()).collect();
                    world.unread = UnreadPolicies::Named(Arc::new(unread));
                    let desired = desired(&world);
                    let kept = Kept::of(&seen, &desired, authority);
                    seen = kept.over(&desired.table);
                    assert!(
                        Kept::of(&seen, &desired, authority) == kept,
                        "the next round finds what this one has made"
                    );
                }
                for (last, name) in [(7, "web"), (8, "db"), (9, "other")] {
                    assert_eq!(refused_by(tier, &seen, last), twice(&[name]), "{tier:?} {authority:?}");
                }
            }
        }
    }

    #[test]
    fn a_class_that_was_closed_does_not_stay_so_for_want_of_a_cluster_network_policy() {
        let mut now = world(Tier::Baseline, &["web"]);
        now.cluster.policies.insert(object("shop/db"), policy("app=db", Some(&[]), None));
        let mut seen = desired(&now).table;
        let element =
            Object::Element(map(Tier::Baseline, Family::V4), Key::Address("10.244.1.8".parse().expect("one")));
        let class = target(seen.get(&element)).expect("it is isolated").clone();
        let closed = Rule::new([], Verdict::Reject).commented(super::super::super::refused::CLOSED);
        seen.insert(Object::Chain(class), Content::Chain(Chain { base: None, rules: vec![closed] }.into()));
        now.cluster.policies = Default::default();
        now.unread = UnreadPolicies::Named(Arc::new(["strange".into()].into()));
        assert!(Kept::of(&seen, &desired(&now), Authority::Complete).is_empty());
    }

    #[test]
    fn addresses_that_left_a_set_which_is_desired_leave_it() {
        let mut now = world(Tier::Admin, &["web"]);
        // Another policy denies the same pods.
        let same = now.cluster.cluster_policies.get(&"web".into()).expect("it is there").clone();
        now.cluster.cluster_policies.insert_shared("same".into(), same);
        let seen = desired(&now).table;
        now.cluster.cluster_policies.remove(&"web".into());
        now.cluster.pods.insert(object("shop/web"), pod("10.244.1.17", "app=web", ""));
        now.unread = UnreadPolicies::Any;
        let desired = desired(&now);
        let kept = Kept::of(&seen, &desired, Authority::Complete);
        let left = Key::Address("10.244.1.7".parse().expect("an address"));
        let stays = |object: &&Object| match object {
            Object::Element(set, key) => *key == left && desired.table.contains_key(&Object::Set(set.clone())),
            _ => false,
        };
        assert!(!kept.is_empty());
        assert_eq!(kept.objects().find(stays), None);
    }

    #[test]
    fn what_a_policy_accepted_before_it_denied_the_rest_is_not_denied_for_want_of_the_policy() {
        for tier in [Tier::Admin, Tier::Baseline] {
            let mut complete = world(tier, &["web"]);
            set_rules(&mut complete, "web", &[(Action::Accept, "web"), (Action::Deny, "web"), (Action::Deny, "db")]);
            let seen = desired(&complete).table;
            let mut now = world(tier, &["other"]);
            let part = desired(&now);
            now.unread = UnreadPolicies::Named(Arc::new(["web".into()].into()));
            let lost = desired(&now);
            for (desired, authority) in [(&lost, Authority::Complete), (&part, Authority::Partial)] {
                let kept = Kept::of(&seen, desired, authority);
                let over = kept.over(&desired.table);
                for (last, policies) in [(7, vec![]), (8, twice(&["web"])), (9, twice(&["other"]))] {
                    assert_eq!(refused_by(tier, &over, last), policies, "{tier:?} {authority:?} {last}");
                }
                assert!(Kept::of(&over, desired, authority) == kept, "the next round finds what this one has made");
            }
        }
    }

    #[test]
    fn what_a_policy_passed_on_is_not_accepted_for_want_of_the_policy() {
        let with = |policies: &[&str], unread: &[&str]| {
            let mut world = world(Tier::Admin, &["web", "db", "other"]);
            set_rules(&mut world, "web", &[(Action::Pass, "web")]);
            set_rules(&mut world, "db", &[(Action::Accept, "web"), (Action::Accept, "other")]);
            for name in ["web", "db", "other"] {
                if !policies.contains(&name) {
                    world.cluster.cluster_policies.remove(&name.into());
                }
            }
            if !unread.is_empty() {
                world.unread = UnreadPolicies::Named(Arc::new(unread.iter().map(|name| (*name).into()).collect()));
            }
            desired(&world)
        };
        let seen = with(&["web", "db"], &[]).table;
        assert!(is_passed_on(&seen, 7) && !is_passed_on(&seen, 9));
        for authority in [Authority::Partial, Authority::Complete] {
            let unread: &[&str] = if authority == Authority::Complete { &["web"] } else { &[] };
            let mut over = seen.clone();
            // The tier changes meanwhile, and denies what was passed on.
            let in_part = if authority == Authority::Partial { twice(&["other"]) } else { vec![] };
            for (policies, refused) in [(&["db"][..], vec![]), (&["other"], twice(&["other"])), (&["db"], in_part)] {
                let desired = with(policies, unread);
                assert!(!is_passed_on(&desired.table, 7) || policies == ["other"]);
                let kept = Kept::of(&over, &desired, authority);
                over = kept.over(&desired.table);
                assert!(is_passed_on(&over, 7), "{policies:?} {authority:?}");
                assert_eq!(refused_by(Tier::Admin, &over, 9), refused, "{policies:?} {authority:?}");
                assert!(Kept::of(&over, &desired, authority) == kept, "the next round finds what this one has made");
            }
            let all = with(&["web", "db", "other"], &[]);
            assert!(Kept::of(&over, &all, authority).is_empty(), "all are known");
        }
    }
}
