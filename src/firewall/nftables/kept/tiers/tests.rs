use super::super::super::super::given::{config, labels, object, pod, pods_in, policy, selector};
use super::super::super::super::plan::Plan;
use super::super::super::desired::Desired;
use super::super::super::lowering::Lowering;
use super::super::decisions::reached;
use super::*;
use crate::firewall::rules::Direction;
use crate::kernel::nftables::rule::Side;
use crate::kernel::nftables::{Lookup, Match, Statement};
use crate::model::{
    Action, Authority, ClusterNetworkPolicy, ClusterRule, Host, Namespace, Peers, PolicyRule, Ports, Selector, Subject,
    Tier, UnreadPolicies, World,
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
    let mut lowering = Lowering::new(Arc::new(config()), PerFamily { v4: true, v6: true });
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
    let Some(Content::Chain(found)) = table.get(&Object::Chain(chain.clone())) else { panic!("{chain} is missing") };
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
            Some(Verdict::Reject | Verdict::Drop) => return Some(End::Refused(chain.clone())),
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
                assert!(Kept::of(&seen, &desired, authority) == kept, "the next round finds what this one has made");
            }
            for (last, name) in [(7, "web"), (8, "db"), (9, "other")] {
                assert_eq!(refused_by(tier, &seen, last), twice(&[name]), "{tier:?} {authority:?}");
            }
        }
    }
}

/// Closes a chain in place of what the kernel refuses.
fn close(table: &mut Table, chain: &Name, rule: Rule) {
    table.insert(Object::Chain(chain.clone()), Content::Chain(Chain { base: None, rules: vec![rule] }.into()));
}

#[test]
fn a_tier_that_was_closed_stays_so_whatever_words_its_rule_has() {
    type Closing = fn(&Name) -> Rule;
    let counted: Closing = |chain| Rule::with([], [Statement::Count(chain.clone())], Some(Verdict::Reject));
    let forms: [(Closing, &str); 3] = [
        // As earlier releases wrote it.
        (|_| Rule::new([], Verdict::Reject), "closed: the kernel refuses a part of it"),
        (|_| Rule::new([], Verdict::Drop), "in other words"),
        (counted, ""),
    ];
    for (tier, (closing, words)) in
        [Tier::Admin, Tier::Baseline].into_iter().flat_map(|tier| forms.map(|form| (tier, form)))
    {
        let mut seen = desired(&world(tier, &["web"])).table;
        for (family, net) in NETS {
            let address = format!("{net}8").parse().expect("an address");
            let element = Object::Element(map(tier, family), Key::Address(address));
            let chain = target(seen.get(&element)).expect("it is judged").clone();
            seen.insert(Object::Counter(chain.clone()), Content::Counter);
            close(&mut seen, &chain, closing(&chain).commented(words));
        }
        let mut now = world(tier, &["other"]);
        now.unread = UnreadPolicies::Named(Arc::new(["web".into()].into()));
        let desired = desired(&now);
        let kept = Kept::of(&seen, &desired, Authority::Complete);
        let over = kept.over(&desired.table);
        for (net, last) in NETS.into_iter().flat_map(|net| [7, 8, 9].map(|last| (net, last))) {
            let end = end_at_db(tier, &over, net, last);
            assert!(matches!(end, Some(End::Refused(_))), "{tier:?} {words:?} {net:?} {last}");
        }
        assert!(Kept::of(&over, &desired, Authority::Complete) == kept, "the next round finds what this one has made");
    }
}

/// The element of `db` in a map.
fn element_of_db(map: Name, net: &str) -> Object {
    Object::Element(map, Key::Address(format!("{net}8").parse().expect("an address")))
}

#[test]
fn an_address_of_several_pods_that_was_closed_stays_so_while_a_policy_is_not_known() {
    for tier in [Tier::Admin, Tier::Baseline] {
        let mut complete = world(tier, &["web"]);
        // Another pod claims the address of `db`, and is judged otherwise.
        complete.cluster.pods.insert(object("shop/twin"), pod("10.244.1.8 fd00:10:244:1::8", "app=twin", ""));
        complete.cluster.policies.insert(object("shop/twin"), policy("app=twin", Some(&[]), None));
        let mut seen = desired(&complete).table;
        for (family, net) in NETS {
            let chain = target(seen.get(&element_of_db(map(Tier::Admin, family), net))).expect("it is judged").clone();
            assert_eq!(names::kind(&chain), Some(ChainKind::Shared));
            close(&mut seen, &chain, Rule::new([], Verdict::Reject));
        }
        let mut now = world(tier, &["other"]);
        now.unread = UnreadPolicies::Named(Arc::new(["web".into()].into()));
        let lost = desired(&now);
        let kept = Kept::of(&seen, &lost, Authority::Complete);
        let over = kept.over(&lost.table);
        for (net, last) in NETS.into_iter().flat_map(|net| [7, 8, 9].map(|last| (net, last))) {
            let is_judged = over.contains_key(&element_of_db(map(Tier::Admin, net.0), net.1));
            assert!(is_judged, "{tier:?} {net:?}: the Admin tier is asked first, and nothing is left of what closed");
            let end = end_at_db(Tier::Admin, &over, net, last);
            assert!(matches!(end, Some(End::Refused(_))), "{tier:?} {net:?} {last}");
        }
        assert!(Kept::of(&over, &lost, Authority::Complete) == kept, "the next round finds what this one has made");
        now.unread = UnreadPolicies::default();
        assert!(Kept::of(&over, &desired(&now), Authority::Complete).is_empty(), "all are known");
    }
}

#[test]
fn an_address_that_drops_everything_goes_on_while_a_policy_or_the_cluster_is_not_known() {
    for tier in [Tier::Admin, Tier::Baseline] {
        let mut seen = desired(&world(tier, &["web"])).table;
        let elements = NETS.map(|(family, net)| element_of_db(map(tier, family), net));
        let drops = Content::Verdict(Verdict::Drop.into());
        for element in &elements {
            seen.insert(element.clone(), drops.clone()).expect("it was judged");
        }
        let mut now = world(tier, &["other"]);
        let part = desired(&now);
        assert!(Kept::of(&seen, &part, Authority::Complete).is_empty(), "all are known");
        now.unread = UnreadPolicies::Named(Arc::new(["web".into()].into()));
        for (desired, authority) in [(&desired(&now), Authority::Complete), (&part, Authority::Partial)] {
            let kept = Kept::of(&seen, desired, authority);
            let over = kept.over(&desired.table);
            for element in &elements {
                assert_eq!(over.get(element), Some(&drops), "{tier:?} {authority:?}");
            }
            assert!(Kept::of(&over, desired, authority) == kept, "the next round finds what this one has made");
        }
        // A pod that policies isolate is not judged by a Baseline tier.
        now.cluster.policies.insert(object("shop/db"), policy("app=db", Some(&[]), None));
        let is_kept = !Kept::of(&seen, &desired(&now), Authority::Complete).is_empty();
        assert_eq!(is_kept, tier == Tier::Admin);
    }
}

#[test]
fn a_class_that_was_closed_does_not_stay_so_for_want_of_a_cluster_network_policy() {
    let mut now = world(Tier::Baseline, &["web"]);
    now.cluster.policies.insert(object("shop/db"), policy("app=db", Some(&[]), None));
    let mut seen = desired(&now).table;
    let element = Object::Element(map(Tier::Baseline, Family::V4), Key::Address("10.244.1.8".parse().expect("one")));
    let class = target(seen.get(&element)).expect("it is isolated").clone();
    close(&mut seen, &class, Rule::new([], Verdict::Reject));
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
