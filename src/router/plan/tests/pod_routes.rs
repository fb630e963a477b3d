//! Routes and tunnels to the pods of other nodes, and pod ranges that have none.

use super::*;

#[test]
fn learned_routes_and_their_tunnels_follow_the_nodes() {
    let mut world = three_nodes();
    let mut plan = planned(&[], &world);
    let unreached = |plan: &mut Plan| plan.unreached(at_first(), |_, _| false);
    assert_eq!(unreached(&mut plan).count, 4);
    let changed = plan.learn(&[learned("10.244.2.0/24", "192.0.2.2"), learned("10.244.3.0/24", "10.0.0.3")]);
    assert_eq!((changed.routes.len(), changed.tunnels.len()), (3, 0), "the tunnel is there since the Node is");
    let missing = "no route yet to pods: fd00:10:244:2::/64 of Node node-2, fd00:10:244:3::/64 of Node node-3";
    let found = unreached(&mut plan);
    assert_eq!((found.missing.as_deref(), found.trouble), (Some(missing), None));
    world.cluster.nodes.remove(&"node-3".into());
    let changed = plan.update(&world);
    assert_eq!((changed.routes.len(), changed.tunnels.len()), (2, 2));
    assert_eq!(plan.routes().tunnels().len(), 0, "no tunnel leads to what is no node any more");
}

#[test]
fn a_host_that_moves_looks_at_all_its_routes_again() {
    let mut world = three_nodes();
    let mut plan = planned(&[], &world);
    plan.learn(&[learned("10.244.3.0/24", "10.0.0.3")]);
    assert_eq!(plan.routes().tunnels().len(), 2);
    world.host = Shared::new(host("192.0.2.1/24 2001:db8::1/64 10.0.0.1/24"));
    plan.update(&world);
    let ends: Vec<IpAddr> = plan.routes().tunnels().values().map(|tunnel| tunnel.remote).collect();
    assert_eq!(ends, [address("2001:db8:3::3")], "over IPv4 it is on our link now");
    assert_eq!(plan.routes().routes().len(), 1);
}

#[test]
fn a_pod_range_that_stays_without_a_route_is_trouble_with_its_reason_and_a_node_that_is_down_is_none() {
    let mut world = three_nodes();
    change_node(&mut world, "node-1", |routing| routing.import_reject = vec![prefix("10.244.3.0/24")]);
    world.cluster.nodes.insert("node-2".into(), node("192.0.2.2 2001:db8::2", "10.0.0.0/24 fd00:10:244:2::/64"));
    let mut plan = planned(&[], &world);
    let down = plan.unreached(at_first(), |_, _| false);
    let refused = "pods cannot be reached: 10.0.0.0/24 of Node node-2 (it contains 10.0.0.3, an address of Node node-3), \
                   10.244.3.0/24 of Node node-3 (kube-router.io/node.bgp.customimportreject of this node names 10.244.3.0/24)";
    let awaited = "no route yet to pods: fd00:10:244:2::/64 of Node node-2, fd00:10:244:3::/64 of Node node-3";
    assert_eq!((down.count, down.trouble.as_deref(), down.missing.as_deref()), (4, Some(refused), Some(awaited)));
    plan.look_at_peer(address("192.0.2.2"));
    let silent = plan.unreached(at_first(), |peer, family| peer == address("192.0.2.2") && family == Family::V6);
    let said = format!(
        "{}, fd00:10:244:2::/64 of Node node-2 (it does not announce it), {}",
        refused.split_once("), ").map_or("", |(first, _)| first).to_owned() + ")",
        refused.split_once("), ").map_or("", |(_, second)| second)
    );
    assert_eq!(silent.trouble, Some(said));
    assert_eq!(
        problems(&plan),
        [
            "Node node-2: routes to its pod range 10.0.0.0/24 are refused, its pods cannot be reached: it contains 10.0.0.3, an \
             address of Node node-3",
            "Node node-3: routes to its pod range 10.244.3.0/24 are refused, its pods cannot be reached: \
             kube-router.io/node.bgp.customimportreject of this node names 10.244.3.0/24",
        ]
    );
    let mut alone = planned(&["--enable-ibgp=false"], &world);
    assert_eq!(alone.unreached(at_first(), |_, _| true), Unreached::default());
    assert_eq!(problems(&alone), NOTHING);
}

#[test]
fn only_the_pod_ranges_of_nodes_about_which_something_is_new_are_looked_at() {
    let mut world = three_nodes();
    for number in 10..110 {
        let ranges = format!("10.244.{number}.0/24 fd00:10:244:{number}::/64");
        world.cluster.nodes.insert(format!("node-{number}").into(), node(&format!("192.0.2.{number}"), &ranges));
    }
    let mut plan = planned(&[], &world);
    let looks = |plan: &mut Plan| {
        let before = plan.pod_ranges_looked_at();
        let count = plan.unreached(at_first(), |peer, _| peer == address("192.0.2.12")).count;
        (plan.pod_ranges_looked_at() - before, count)
    };
    assert_eq!(looks(&mut plan), (103, 204), "all at first, our own among them");
    assert_eq!(looks(&mut plan), (0, 204));
    plan.learn(&[learned("10.244.10.0/24", "192.0.2.10"), learned("203.0.113.0/24", "192.0.2.2")]);
    assert_eq!(looks(&mut plan), (1, 203));
    plan.learn(&[RouteChange { prefix: prefix("10.244.10.0/24"), best: None, next_hops: Vec::new() }]);
    assert_eq!(looks(&mut plan), (1, 204));
    plan.look_at_peer(address("192.0.2.12"));
    assert_eq!(looks(&mut plan), (1, 204));
    world.cluster.services.insert(ObjectName::new("default", "web"), service(&["10.96.0.1"]));
    plan.update(&world);
    assert_eq!(looks(&mut plan), (0, 204));
    world.cluster.nodes.insert("node-11".into(), node("192.0.2.11", "10.244.11.0/24"));
    world.cluster.nodes.remove(&"node-20".into());
    plan.update(&world);
    assert_eq!(looks(&mut plan), (2, 201));
}

#[test]
fn who_lists_the_address_of_another_node_takes_neither_its_tunnel_nor_its_session() {
    for (victim, range, own_ones) in
        [("10.0.0.3", "10.244.3.0/24", "192.0.2.9"), ("2001:db8:3::3", "fd00:10:244:3::/64", "2001:db8::9")]
    {
        let nodes = |name: &'static str, claimed: String, created| {
            let claiming = Node { created, ..node(&claimed, "10.244.9.0/24") };
            let claiming = with(claiming, |routing| routing.reflection = Reflection::Client([0, 0, 0, 1].into()));
            let own = node("192.0.2.1 2001:db8::1", "10.244.1.0/24");
            let own = with(own, |routing| routing.reflection = Reflection::Server([0, 0, 0, 1].into()));
            let third = Node { created: 10, ..node(victim, range) };
            [("node-1", own), ("node-3", third), (name, claiming)]
        };
        for name in ["node-0", "node-9"] {
            let host = host("192.0.2.1/24 2001:db8::1/64");
            // Behind its own address, however old it is; and in front, where it is younger.
            for (claimed, created) in [(format!("{own_ones} {victim}"), 1), (victim.to_owned(), 20)] {
                let world = world(host.clone(), &nodes(name, claimed, created));
                let plan = planned(&["--overlay-type=full", "--node-routes=api"], &world);
                let next_hop = plan.routes().routes().get(&RouteKey::new(TABLE_MAIN, prefix(range))).cloned();
                let link = next_hop.expect("its pods are reached").next_hops[0].link.clone();
                assert_eq!(plan.routes().tunnels()[&link].remote, address(victim), "{name} {created}");
                assert!(!planned(&[], &world).desired().peers[&address(victim)].client, "{name} {created}");
            }
        }
    }
}
