//! Sessions of BGP: with whom, how, and which changes leave them as they are.

use super::*;

#[test]
fn a_node_peers_with_all_others_and_announces_its_pods() {
    let plan = planned(&[], &three_nodes());
    assert_eq!(peers(&plan), ["10.0.0.3", "192.0.2.2"]);
    assert_eq!(announcements(&plan), ["10.244.1.0/24 192.0.2.1", "fd00:10:244:1::/64 2001:db8::1"]);
    let speaker = plan.desired().speaker.clone().expect("there is one");
    assert_eq!((speaker.own.asn, speaker.own.identifier.to_string()), (64512, "192.0.2.1".to_owned()));
    assert_eq!(speaker.own.cluster, speaker.own.identifier);
    let listen: Vec<String> = speaker.listen.iter().map(ToString::to_string).collect();
    assert_eq!(listen, ["192.0.2.1:179", "[2001:db8::1]:179"]);
    assert_eq!(problems(&plan), NOTHING);
}

#[test]
fn a_speaker_is_told_what_may_pass_and_what_is_ours_before_it_meets_anybody() {
    let words = ["--peer-router-ips=203.0.113.1", "--peer-router-asns=65001"];
    let plan = planned(&words, &three_nodes());
    let kinds: Vec<&str> = plan
        .desired()
        .all_orders()
        .iter()
        .map(|order| match order {
            Order::Policies(_) => "policies",
            Order::Originate(..) => "ours",
            Order::Want(_) => "neighbour",
            _ => "something else",
        })
        .collect();
    assert_eq!(kinds, ["policies", "ours", "ours", "neighbour", "neighbour", "neighbour"]);
}

#[test]
fn a_new_node_is_known_at_once_and_costs_only_itself() {
    let mut world = three_nodes();
    let mut plan = planned(&[], &world);
    world.cluster.nodes.insert("node-4".into(), node("192.0.2.4", "10.244.4.0/24"));
    let changed = plan.update(&world);
    assert_eq!((changed.nodes_computed, changed.services_computed), (1, 0));
    assert_eq!(changed.peers, [address("192.0.2.4")].into());
    assert_eq!(changed.elements.len(), 2);
    assert!(changed.policies && !changed.speaker && changed.announcements.is_empty());
    world.cluster.nodes.remove(&"node-4".into());
    let changed = plan.update(&world);
    assert_eq!(changed.peers, [address("192.0.2.4")].into());
    let orders = plan.desired().orders(&changed);
    assert!(orders.iter().any(|order| matches!(order, Order::Remove(one, _) if *one == address("192.0.2.4"))));
}

#[test]
fn annotations_are_taken_live() {
    let mut world = three_nodes();
    let mut plan = planned(&[], &world);
    change_node(&mut world, "node-1", |routing| routing.communities = vec![7]);
    let changed = plan.update(&world);
    assert!(!changed.speaker && changed.peers.is_empty());
    change_node(&mut world, "node-2", |routing| routing.reflection = Reflection::Client([0, 0, 0, 1].into()));
    assert_eq!(plan.update(&world).peers, [address("192.0.2.2")].into());
    assert_eq!(peers(&plan), ["10.0.0.3"], "a client of a reflector that we are not");
    change_node(&mut world, "node-1", |routing| routing.reflection = Reflection::Server([0, 0, 0, 1].into()));
    let changed = plan.update(&world);
    assert!(changed.speaker, "a reflector is another speaker, because its cluster is");
    assert!(plan.desired().peers.get(&address("192.0.2.2")).is_some_and(|wanted| wanted.client));
    assert_eq!(plan.desired().speaker.as_ref().map(|it| it.own.cluster.to_string()).as_deref(), Some("0.0.0.1"));
    for name in ["node-1", "node-2"] {
        change_node(&mut world, name, |routing| {
            routing.reflection = match name {
                "node-1" => Reflection::Server([0, 0, 0, 0].into()),
                _ => Reflection::Client([0, 0, 0, 0].into()),
            };
        });
    }
    assert!(plan.update(&world).speaker);
    assert!(plan.desired().peers.get(&address("192.0.2.2")).is_some_and(|wanted| wanted.client));
    let own = plan.desired().speaker.as_ref().map(|it| it.own).expect("a speaker");
    assert_eq!(own.cluster, own.identifier, "a cluster of 0 is that of the router");
    change_node(&mut world, "node-1", |routing| routing.local_addresses = vec![address("192.0.2.1")]);
    let changed = plan.update(&world);
    assert!(changed.listen && !changed.speaker, "where it listens can change while sessions stand");
}

#[test]
fn another_address_of_ours_leaves_the_sessions_as_they_are() {
    let mut world = three_nodes();
    let mut plan = planned(&[], &world);
    let mut node = (**world.cluster.nodes.get(&"node-1".into()).expect("it is there")).clone();
    let more = crate::model::NodeAddress { address: address("198.51.100.1"), ..node.addresses[0] };
    node.addresses.push(more);
    world.cluster.nodes.insert("node-1".into(), node);
    let changed = plan.update(&world);
    assert!(changed.addresses && !changed.speaker && !changed.listen && changed.peers.is_empty(), "{changed:?}");
    let orders = plan.desired().orders(&changed);
    assert!(matches!(&orders[0], Order::OwnAddresses(all) if all.contains(&address("198.51.100.1"))), "{orders:?}");
}

#[test]
fn the_kind_of_a_bfd_session_outlives_the_networks_of_a_link_that_is_down() {
    let words = ["--peer-router-ips=203.0.113.1,192.0.2.254", "--peer-router-asns=64512,64512", "--enable-bfd"];
    let mut world = three_nodes();
    let mut plan = planned(&words, &world);
    let kinds = |plan: &Plan| {
        let peers = &plan.desired().peers;
        ["203.0.113.1", "192.0.2.254"].map(|text| peers[&address(text)].liveness.expect("it is watched").path)
    };
    let before = kinds(&plan);
    assert_eq!(before, [Path::Multihop, Path::SingleHop]);
    let host_of = |addresses: &str| Shared::new(Host { node_name: world.host.node_name.clone(), ..host(addresses) });
    let (down, up) = (host_of("192.0.2.1/32"), world.host.clone());
    assert!(down.on_link.is_empty(), "addresses of IPv4 stay where a link is set down");
    for (host, kinds_then) in [(down.clone(), before), (up, before)] {
        world.host = host;
        plan.update(&world);
        assert_eq!(kinds(&plan), kinds_then);
    }
    world.host = down;
    let fresh = planned(&words, &world);
    assert_eq!(kinds(&fresh), [Path::SingleHop; 2], "without an earlier session they may be on the link");
}

#[test]
fn a_node_without_a_number_has_no_sessions_and_all_the_rest() {
    let mut world = three_nodes();
    change_node(&mut world, "node-2", |routing| routing.asn = Some(65001));
    let words = ["--nodes-full-mesh=false"];
    let mut plan = planned(&words, &world);
    assert_eq!((plan.desired().speaker.is_none(), peers(&plan).len()), (true, 0));
    assert!(!plan.desired().elements.is_empty() && !plan.desired().rules.is_empty());
    assert!(plan.desired().cni.is_some() && plan.desired().bridge.is_some());
    let [problem] = problems(&plan).try_into().expect("one problem");
    assert!(problem.contains("kube-router.io/node.asn is absent or no number"), "{problem}");
    change_node(&mut world, "node-1", |routing| routing.asn = Some(65001));
    let changed = plan.update(&world);
    assert!(changed.speaker && changed.problems);
    assert_eq!((peers(&plan), problems(&plan)), (vec!["192.0.2.2".to_owned()], vec![]));
}

#[test]
fn what_an_administrator_says_of_a_neighbour_comes_before_what_follows_from_its_node() {
    let plan = planned(&["--peer-router-ips=192.0.2.2", "--peer-router-asns=65001"], &three_nodes());
    assert_eq!(plan.desired().peers[&address("192.0.2.2")].settings.asn, Some(65001));
}

#[test]
fn prepending_needs_no_new_sessions() {
    let mut world = three_nodes();
    let mut plan = planned(&["--peer-router-ips=203.0.113.1", "--peer-router-asns=65001"], &world);
    change_node(&mut world, "node-1", |routing| routing.prepend = Some(Prepend { asn: 65000, times: 2 }));
    let changed = plan.update(&world);
    assert!(changed.policies && changed.peers.is_empty() && changed.announcements.is_empty());
}

/// Whether import policy of a plan takes a route from a neighbour.
fn takes(plan: &Plan, neighbour: &str, route: &str) -> bool {
    let import = &plan.desired().policies.as_ref().expect("the cluster is known").import;
    let applicable = import.applicable(Some(address(neighbour)));
    let attributes = Attributes::local(address(neighbour));
    import.outcome(&applicable, prefix(route), &attributes, None) != crate::bgp::policy::Outcome::Rejected
}

#[test]
fn who_may_bring_what_follows_the_annotations_about_reflectors_while_sessions_stand() {
    let cluster = [0, 0, 0, 1].into();
    let mut world = three_nodes();
    change_node(&mut world, "node-1", |routing| routing.reflection = Reflection::Client(cluster));
    let mut plan = planned(&[], &world);
    for (part, is_believed) in [
        (Reflection::Server(cluster), true),
        (Reflection::None, false),
        (Reflection::Server(cluster), true),
        (Reflection::Client(cluster), false),
    ] {
        change_node(&mut world, "node-2", |routing| routing.reflection = part);
        let changed = plan.update(&world);
        assert!(changed.policies && !changed.speaker, "{part:?}");
        for route in ["10.244.3.0/24", "fd00:10:244:3::/64", "198.18.7.1/32", "2001:db8:7::7/128"] {
            assert_eq!(takes(&plan, "192.0.2.2", route), is_believed, "{route} of {part:?}");
        }
    }
    change_node(&mut world, "node-2", |routing| routing.reflection = Reflection::Server(cluster));
    change_node(&mut world, "node-1", |routing| routing.reflection = Reflection::None);
    plan.update(&world);
    assert!(!takes(&plan, "192.0.2.2", "198.18.7.1/32"), "we are no client any more");
    // A node that is neither client nor reflector learns of clients by their reflectors, as soon as they are clients.
    assert!(!takes(&plan, "192.0.2.2", "10.244.3.0/24"));
    change_node(&mut world, "node-3", |routing| routing.reflection = Reflection::Client(cluster));
    assert!(plan.update(&world).policies);
    assert!(takes(&plan, "192.0.2.2", "10.244.3.0/24") && takes(&plan, "192.0.2.2", "fd00:10:244:3::/64"));
    assert!(!takes(&plan, "192.0.2.2", "198.18.7.1/32"));
}

#[test]
fn a_range_is_taken_from_the_node_that_has_it_as_soon_as_its_node_says_so_and_no_longer() {
    let mut world = three_nodes();
    let mut plan = planned(&[], &world);
    let ranges = |number: u8| format!("10.244.{number}.0/24 fd00:10:244:{number}::/64");
    let neighbours = ["192.0.2.2", "10.0.0.3"];
    let taken = |plan: &Plan, number: u8| {
        neighbours.map(|from| ranges(number).split_whitespace().all(|range| takes(plan, from, range)))
    };
    assert_eq!(taken(&plan, 4), [false, false]);
    world.cluster.nodes.insert("node-2".into(), node("192.0.2.2 2001:db8::2", &ranges(4)));
    assert!(plan.update(&world).policies);
    assert_eq!(taken(&plan, 4), [true, false]);
    assert_eq!(taken(&plan, 2), [false, false], "it is nobody's now");
    // Nodes change their ranges with each other: the set of all ranges stays the same.
    world.cluster.nodes.insert("node-2".into(), node("192.0.2.2 2001:db8::2", &ranges(3)));
    world.cluster.nodes.insert("node-3".into(), node("10.0.0.3 2001:db8:3::3", &ranges(4)));
    assert!(plan.update(&world).policies);
    assert_eq!((taken(&plan, 3), taken(&plan, 4)), ([true, false], [false, true]));
}

#[test]
fn of_two_nodes_at_one_address_both_bring_their_ranges_and_one_without_a_session_makes_no_ordinary_node_of_a_reflector()
{
    let cluster = [0, 0, 0, 1].into();
    let mut world = three_nodes();
    change_node(&mut world, "node-1", |routing| routing.reflection = Reflection::Client(cluster));
    change_node(&mut world, "node-2", |routing| routing.reflection = Reflection::Server(cluster));
    // A machine that was renamed has both Nodes for a while; and the kubelet of any node may say that it has the address of a reflector.
    let renamed = node("192.0.2.2 2001:db8::2", "10.244.4.0/24 fd00:10:244:4::/64");
    world.cluster.nodes.insert("node-4".into(), Node { created: 7, ..renamed });
    let mut plan = planned(&[], &world);
    let reflector = (**world.cluster.nodes.get(&"node-2".into()).expect("it is there")).clone();
    for created in [5, 9] {
        world.cluster.nodes.insert("node-2".into(), Node { created, ..reflector.clone() });
        plan.update(&world);
        for route in ["10.244.2.0/24", "fd00:10:244:4::/64", "10.244.3.0/24", "198.18.7.1/32", "2001:db8:7::7/128"] {
            assert!(takes(&plan, "192.0.2.2", route), "{route}, created at {created}");
        }
    }
    change_node(&mut world, "node-2", |routing| routing.reflection = Reflection::None);
    plan.update(&world);
    assert!(!takes(&plan, "192.0.2.2", "10.244.3.0/24") && !takes(&plan, "192.0.2.2", "198.18.7.1/32"));
}
