use std::sync::Arc;

use super::super::given::{block, object, pod, pods, pods_in, policy, rule, selector};
use super::*;
use crate::model::{
    Action, ClusterNetworkPolicy, ClusterRule, Host, Namespace, NetworkPolicy, PolicyRule, Subject, Tier,
};
use crate::net::Protocol;

/// Two pods of namespace shop here, with a client and a pod of another namespace elsewhere.
fn world() -> World {
    let mut world = World::empty();
    world.host = Arc::new(Host { node_name: "node1".into(), ..Host::default() });
    let cluster = &mut world.cluster;
    for namespace in ["shop", "other"] {
        cluster.namespaces.insert(namespace.into(), Namespace::default());
    }
    cluster.pods.insert(object("shop/web-1"), pod("10.244.1.7 fd00:10:244:1::7", "app=web", "http/tcp/8080"));
    cluster.pods.insert(object("shop/web-2"), pod("10.244.1.8 fd00:10:244:1::8", "app=web", "http/tcp/8080"));
    for (name, addresses, of) in [
        ("shop/client", "10.244.2.1 fd00:10:244:2::1", "app=client"),
        ("other/a", "10.244.2.2 fd00:10:244:2::2", ""),
        ("other/b", "10.244.2.3", ""),
    ] {
        let mut pod = pod(addresses, of, "");
        pod.node = Some("node2".into());
        cluster.pods.insert(object(name), pod);
    }
    world
}

fn candidates<const N: usize>(policies: [(&str, NetworkPolicy); N], deleted: bool) -> Candidates {
    let policies = policies.map(|(name, policy)| (object(name), Arc::new(policy))).into();
    Candidates { policies: Policies { policies, ..Policies::default() }, deleted }
}

/// A policy for the pods of namespace shop, with rules for ingress.
fn guard(tier: Tier, rules: &[(Action, PolicyRule)]) -> ClusterNetworkPolicy {
    let rule = |(action, matches): &(Action, PolicyRule)| ClusterRule {
        name: "".into(),
        action: *action,
        matches: matches.clone(),
    };
    let subject = Subject { namespaces: selector(""), pods: selector("app=web") };
    ClusterNetworkPolicy { tier, priority: 7, subject, ingress: rules.iter().map(rule).collect(), egress: [].into() }
}

fn compared(world: &World, candidates: &Candidates) -> Compared {
    Compared::of(world, candidates, BOUNDS).expect("a small comparison")
}

fn guarded(world: &World, policy: ClusterNetworkPolicy, deleted: bool) -> Difference {
    let cluster_policies = [("guard".into(), Arc::new(policy))].into();
    let candidates = Candidates { policies: Policies { cluster_policies, ..Policies::default() }, deleted };
    compared(world, &candidates).into_difference(Ok(Refused::default()))
}

fn difference(world: &World, name: &str, policy: NetworkPolicy) -> Difference {
    let candidates = candidates([(name, policy)], false);
    compared(world, &candidates).into_difference(Ok(Refused::default()))
}

#[test]
fn a_policy_that_isolates_says_whom_and_what_closes() {
    let found = text(&difference(
        &world(),
        "shop/web",
        policy("app=web", Some(&[rule(&[pods("app=client")], &["tcp/80"])]), None),
    ));
    let expected = "\
NetworkPolicy shop/web: new
Pods of this node that become isolated: 2
  shop/web-1: ingress
  shop/web-2: ingress
Closes:
  shop/web-1, shop/web-2: ingress from shop/client: tcp 0-79, tcp 81-65535, udp, sctp, other protocols
  shop/web-1, shop/web-2: ingress from all 2 pods of namespace other, shop/web-1, shop/web-2, every other address (0.0.0.0/0), every other address (::/0): everything
Connections that would be refused: none
";
    assert_eq!(found, expected);
}

#[test]
fn what_another_policy_allows_more_is_all_that_opens() {
    let mut world = world();
    world.cluster.policies.insert(object("shop/web"), policy("app=web", Some(&[]), Some(&[])));
    let allows = rule(&[pods_in("", ""), block("192.0.2.0/24 192.0.2.128/25")], &["tcp/443", "udp/53-54"]);
    let found = difference(&world, "shop/out", policy("app=web", None, Some(&[allows])));
    assert_eq!(found.isolation, []);
    let [change] = found.pairs.changes.as_slice() else { panic!("{found:?}") };
    let all: Vec<_> =
        change.peers.namespaces.iter().map(|one| (one.namespace.as_str(), one.all, one.is_whole)).collect();
    assert_eq!(all, [("other", 2, true), ("shop", 3, true)]);
    assert_eq!(change.peers.ranges, ["192.0.2.0/25".parse().unwrap()]);
    assert_eq!((change.opens, change.ports.to_string()), (true, "tcp 443, udp 53-54".to_owned()));
}

#[test]
fn a_named_port_is_told_by_the_numbers_of_its_pods() {
    let mut world = world();
    let mut odd = pod("10.244.1.9", "app=web", "http/tcp/80");
    odd.node = Some("node1".into());
    world.cluster.pods.insert(object("shop/web-3"), odd);
    world.cluster.policies.insert(object("shop/web"), policy("app=web", Some(&[]), None));
    let found =
        difference(&world, "shop/in", policy("app=web", Some(&[rule(&[pods("app=client")], &["tcp/http"])]), None));
    let opened: Vec<(Vec<String>, String)> = found
        .pairs
        .changes
        .iter()
        .map(|change| (change.pods.iter().map(ObjectName::to_string).collect(), change.ports.to_string()))
        .collect();
    let expected = [(vec!["shop/web-1", "shop/web-2"], "tcp 8080"), (vec!["shop/web-3"], "tcp 80")];
    let expected: Vec<_> = expected
        .map(|(pods, ports)| (pods.into_iter().map(str::to_owned).collect::<Vec<_>>(), ports.to_owned()))
        .into();
    assert_eq!(opened, expected);
}

#[test]
fn a_named_port_of_egress_is_told_by_the_numbers_of_the_peers() {
    let mut world = world();
    world.cluster.policies.insert(object("shop/web"), policy("app=web", None, Some(&[])));
    let found = difference(&world, "shop/out", policy("app=web", None, Some(&[rule(&[], &["tcp/http"])])));
    let [change] = found.pairs.changes.as_slice() else { panic!("{found:?}") };
    assert_eq!((change.opens, change.ports.to_string()), (true, "tcp 8080".to_owned()));
    assert_eq!(change.peers.namespaces[0].pods, ["web-1", "web-2"]);
}

#[test]
fn a_policy_that_is_deleted_opens_what_it_closed() {
    let mut world = world();
    let deny = policy("app=web", Some(&[]), None);
    world.cluster.policies.insert(object("shop/web"), deny.clone());
    let candidates = |deleted| candidates([("shop/web", deny.clone()), ("shop/none", deny.clone())], deleted);
    let found = compared(&world, &candidates(true)).into_difference(Err("the kernel is silent".to_owned()));
    let words = found.policies.iter().map(|(name, change)| (name.to_string(), *change)).collect::<Vec<_>>();
    let expected = [("shop/none", PolicyChange::Absent), ("shop/web", PolicyChange::Deleted)];
    assert_eq!(words, expected.map(|(name, change)| (name.to_owned(), change)));
    assert!(found.isolation.len() == 2 && found.isolation.iter().all(|change| !change.isolated));
    assert!(found.pairs.changes.iter().all(|change| change.opens && change.ports.to_string() == "everything"));
    let text = text(&found);
    assert!(text.contains("Opens:\n") && text.ends_with("Connections: not known, the kernel is silent\n"), "{text}");
    let same = compared(&world, &candidates(false)).into_difference(Ok(Refused::default()));
    assert!(same.pairs.changes.is_empty() && same.policies[1].1 == PolicyChange::Same, "{same:?}");
}

#[test]
fn a_policy_for_pods_of_other_nodes_changes_nothing_here() {
    let found = difference(&world(), "other/deny", policy("", Some(&[]), Some(&[])));
    let expected = "NetworkPolicy other/deny: new\nNothing changes for the pods of this node.\nConnections that would be refused: none\n";
    assert_eq!(text(&found), expected);
}

#[test]
fn more_pairs_than_can_be_looked_at_are_cut_and_that_is_said() {
    let candidates = candidates([("shop/web", policy("app=web", Some(&[]), Some(&[])))], false);
    let within = |budget| {
        let compared = Compared::of(&world(), &candidates, Bounds { budget, ..BOUNDS }).expect("a small comparison");
        compared.into_difference(Ok(Refused::default()))
    };
    let (whole, cut) = (within(BOUNDS.budget), within(20));
    assert!(!whole.pairs.is_cut && cut.pairs.is_cut);
    assert_ne!(cut.pairs.changes, whole.pairs.changes);
    assert!(cut.pairs.changes.iter().all(|change| change.only.is_none()), "IPv6 has not been looked at: {cut:?}");
    assert!(text(&cut).contains("There may be more") && !text(&whole).contains("There may be more"));
}

#[test]
fn a_cluster_policy_closes_and_opens_by_its_rules_in_order() {
    let to_client = rule(&[pods_in("", "app=client")], &["tcp/80"]);
    let policy = guard(Tier::Admin, &[(Action::Pass, to_client), (Action::Deny, rule(&[pods_in("", "")], &[]))]);
    let found = guarded(&world(), policy.clone(), false);
    let expected = "\
ClusterNetworkPolicy guard: new
Closes:
  shop/web-1, shop/web-2: ingress from shop/client: tcp 0-79, tcp 81-65535, udp, sctp, other protocols
  shop/web-1, shop/web-2: ingress from all 2 pods of namespace other, shop/web-1, shop/web-2: everything
Connections that would be refused: none
";
    assert_eq!(text(&found), expected);
    let mut world = world();
    world.cluster.cluster_policies.insert("guard".into(), policy.clone());
    let same = guarded(&world, policy.clone(), false);
    assert!(same.pairs.changes.is_empty() && same.policies[0].1 == PolicyChange::Same, "{same:?}");
    let opened = text(&guarded(&world, policy, true));
    assert!(opened.starts_with("ClusterNetworkPolicy guard: deleted\nOpens:\n"), "{opened}");
}

/// Peers are told apart by the sets of policies that the file does not name, too.
#[test]
fn a_policy_of_a_namespace_changes_only_what_no_cluster_policy_decides() {
    let mut world = world();
    let client = rule(&[pods_in("", "app=client")], &[]);
    world.cluster.cluster_policies.insert("guard".into(), guard(Tier::Admin, &[(Action::Accept, client)]));
    let found = difference(&world, "shop/web", policy("app=web", Some(&[]), None));
    let [change] = found.pairs.changes.as_slice() else { panic!("{found:?}") };
    assert!(!change.opens && change.ports.to_string() == "everything");
    let namespaces: Vec<_> =
        change.peers.namespaces.iter().map(|one| (one.namespace.as_str(), one.pods.len(), one.is_whole)).collect();
    assert_eq!(namespaces, [("other", 2, true), ("shop", 2, false)], "not the client");
    let denies = guard(Tier::Baseline, &[(Action::Deny, rule(&[], &[]))]);
    world.cluster.cluster_policies.insert("guard".into(), denies);
    let same = difference(&world, "shop/web", policy("app=web", Some(&[]), None));
    assert!(same.pairs.changes.is_empty() && same.isolation.len() == 2, "{same:?}");
}

/// Every pair that differs by its verdict, and no other, is among the changes.
#[test]
fn the_changes_are_those_of_tracing_each_packet() {
    use super::super::verdict::{Packet, Traffic, of_pod};
    let mut world = world();
    let before = [rule(&[pods("app=client"), block("10.244.2.0/30")], &["tcp/80-90", "udp/53"])];
    world.cluster.policies.insert(object("shop/web"), policy("app=web", Some(&before), None));
    let after = [rule(&[pods_in("", "")], &["tcp/85"]), rule(&[block("10.244.2.2/32"), block("203.0.113.0/24")], &[])];
    let candidates = candidates([("shop/web", policy("app=web", Some(&after), Some(&[])))], false);
    let compared = compared(&world, &candidates);
    let (old, new) = (compared.before.clone(), compared.after.clone());
    let found = compared.into_difference(Ok(Refused::default()));
    let web = object("shop/web-1");
    for (name, other) in world.cluster.pods.iter().filter(|(name, _)| **name != web) {
        for direction in Direction::BOTH {
            for port in [1, 79, 80, 84, 85, 86, 90, 91, 8080] {
                let (own, peer) = (world.cluster.pods.get(&web).unwrap().addresses[0], other.addresses[0]);
                let (source, destination) = if direction == Direction::Ingress { (peer, own) } else { (own, peer) };
                let traffic = Traffic::Port { protocol: Protocol::Tcp, port };
                let packet = Packet { source, destination, traffic, from_this_node: false };
                let [was, is] =
                    [&old, &new].map(|rules| of_pod(rules, &packet, (&web, &rules.pods[&web]), direction).passes());
                let is_among = |opens| {
                    found.pairs.changes.iter().any(|change| {
                        let of_peer =
                            change.peers.namespaces.iter().any(|one| {
                                one.namespace == *name.namespace && one.pods.contains(&name.name.to_compact())
                            });
                        let ranges = change.ports.ranges.get(&Protocol::Tcp);
                        let at_port =
                            ranges.is_some_and(|all| all.iter().any(|one| (one.first..=one.last).contains(&port)));
                        change.opens == opens
                            && change.only != Some(crate::net::Family::V6)
                            && change.direction == direction
                            && change.pods.contains(&web)
                            && of_peer
                            && at_port
                    })
                };
                assert_eq!((is_among(true), is_among(false)), (!was && is, was && !is), "{name} {direction:?} {port}");
            }
        }
    }
}

#[test]
fn policies_that_need_larger_sets_than_the_bound_are_refused_before_the_sets_are_made() {
    let shop_and_other = rule(&[pods_in("", "")], &[]);
    let one = policy("app=web", Some(&[shop_and_other]), None);
    // The five pods of both namespaces have nine addresses.
    for (elements, fits) in [(9, true), (8, false)] {
        let asked = candidates([("shop/web", one.clone())], false);
        let answer = Compared::of(&world(), &asked, Bounds { elements, ..BOUNDS });
        assert_eq!(answer.is_ok(), fits, "{elements}");
    }
    let holes = policy("app=web", Some(&[rule(&[block("10.0.0.0/8 10.1.0.0/16 10.2.0.0/16")], &[])]), None);
    let refused = Compared::of(&world(), &candidates([("shop/web", holes)], false), Bounds { elements: 2, ..BOUNDS });
    let expected = "the policies need sets of more than 2 elements; ask about a part of them";
    assert_eq!(refused.err().as_deref(), Some(expected));
}

#[test]
fn a_trace_costs_by_the_matches_of_the_policies_and_not_by_their_number_alone() {
    let cost = |rules: usize| {
        let rules: Vec<PolicyRule> = (0..rules).map(|number| rule(&[], &[&format!("tcp/{}", 1000 + number)])).collect();
        let one = policy("app=web", Some(&rules), None);
        let compared = compared(&world(), &candidates([("shop/web", one)], false));
        super::pairs::cost(&compared.after, &compared.after.pods[&object("shop/web-1")], Direction::Ingress)
    };
    let (few, many) = (cost(1), cost(2_000));
    assert!(many > 100 * few, "{few} {many}");
}

#[test]
fn sets_that_policies_in_force_use_already_do_not_count() {
    let everybody = rule(&[pods_in("", "")], &[]);
    let one = policy("app=web", Some(&[everybody]), None);
    let mut world = world();
    world.cluster.policies.insert(object("shop/first"), one.clone());
    let answer = Compared::of(&world, &candidates([("shop/web", one)], false), Bounds { elements: 0, ..BOUNDS });
    assert!(answer.is_ok(), "{:?}", answer.err());
}

#[test]
fn more_policies_than_the_bound_are_refused() {
    let deny = policy("", Some(&[]), Some(&[]));
    let asked = candidates([("shop/a", deny.clone()), ("shop/b", deny)], false);
    let refused = Compared::of(&world(), &asked, Bounds { policies: 1, ..BOUNDS });
    let expected = "the file has 2 policies and at most 1 can be compared at once; ask about a part of them";
    assert_eq!(refused.err().as_deref(), Some(expected));
}
