//! Nodes and flags that make no sense: each mistake is named and stops nothing else.

use super::*;

#[test]
fn each_thing_that_is_wrong_is_said_in_one_sentence_and_stops_nothing_else() {
    let good = three_nodes();
    let check = |words: &[&str], change: fn(&mut World), sentence: &str, count: usize| {
        let mut world = good.clone();
        change(&mut world);
        let plan = planned(words, &world);
        let found = problems(&plan);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with(sentence), "{found:?}");
        assert_eq!(plan.desired().peers.len(), count, "{sentence}");
    };
    let external = ["--peer-router-ips=203.0.113.1,203.0.113.1", "--peer-router-asns=65001,65002"];
    check(&external, |_| {}, "external peer 203.0.113.1: it is named twice; the first one counts", 3);
    let file = ["--peer-router-ips=203.0.113.1", "--peer-router-asns=65001", "--peer-router-passwords-file=/p"];
    check(&file, |_| {}, "external peer 203.0.113.1: its password is not known (yet)", 2);
    let nowhere = |world: &mut World| {
        world.cluster.nodes.insert("node-4".into(), node("", "10.244.4.0/24"));
    };
    check(&[], nowhere, "Node node-4: it has no usable InternalIP or ExternalIP", 2);
    let twice = |world: &mut World| {
        world.cluster.nodes.insert("node-4".into(), node("192.0.2.2", ""));
    };
    check(&[], twice, "Node node-4: its address 192.0.2.2 is that of Node node-2 too", 2);
    let podless = |world: &mut World| {
        world.cluster.nodes.insert("node-1".into(), node("192.0.2.1 2001:db8::1", "10.244.1.0/24"));
    };
    check(&[], podless, "IPv6: the Node has no pod range of it", 2);
    let gone = |world: &mut World| {
        world.cluster.nodes.remove(&"node-1".into());
    };
    check(&[], gone, "BGP: the Node node-1 has no usable InternalIP or ExternalIP", 0);
}

#[test]
fn a_node_whose_identifier_is_ours_is_named() {
    let mut world = three_nodes();
    let addresses = "2001:db8::77 192.0.2.1";
    world.cluster.nodes.insert("node-4".into(), node(addresses, ""));
    let found = problems(&planned(&[], &world));
    assert!(
        found.iter().any(|text| text.starts_with("Node node-4: its BGP identifier is that of this node")),
        "{found:?}"
    );
}

#[test]
fn a_node_that_has_our_address_is_no_neighbour_in_either_family() {
    for addresses in ["192.0.2.1", "2001:db8::1"] {
        let mut world = three_nodes();
        world.cluster.nodes.insert("node-2".into(), node(addresses, "10.244.2.0/24"));
        let plan = planned(&[], &world);
        assert_eq!(peers(&plan), ["10.0.0.3"], "{addresses}");
        let found = problems(&plan);
        assert!(
            found.contains(&"Node node-2: its address is that of this node, so there is no session with it".to_owned()),
            "{found:?}"
        );
    }
}

#[test]
fn two_nodes_with_one_pod_range_are_named() {
    let mut world = three_nodes();
    world.cluster.nodes.insert("node-3".into(), node("10.0.0.3", "10.244.2.0/24 10.244.1.0/24"));
    let plan = planned(&[], &world);
    assert_eq!(
        problems(&plan),
        [
            "Node node-3: its pod range 10.244.2.0/24 is that of Node node-2 too; pods of one of them cannot be reached",
            "Node node-3: routes to its pod range 10.244.1.0/24 are refused, its pods cannot be reached: it overlaps 10.244.1.0/24, a \
             pod range of this node",
        ]
    );
}
