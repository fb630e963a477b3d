//! Tunnels that take packets of nodes of which no route is learned yet.

use super::*;
use crate::router::names::{TUNNEL_TABLE, is_tunnel};

/// The ends of the tunnels of a plan at other nodes.
fn ends(plan: &Plan) -> Vec<String> {
    let mut ends: Vec<IpAddr> = plan.routes().tunnels().values().map(|tunnel| tunnel.remote).collect();
    ends.sort();
    ends.iter().map(ToString::to_string).collect()
}

#[test]
fn packets_of_a_node_are_taken_by_ipip_and_fou_before_one_of_its_routes_is_learned_and_none_is_sent_there() {
    for (words, taken) in [
        (&[][..], &["10.0.0.3", "2001:db8:3::3"][..]),
        (&["--overlay-encap=fou"], &["10.0.0.3", "2001:db8:3::3"]),
        (&["--overlay-type=full"], &["10.0.0.3", "192.0.2.2", "2001:db8::2", "2001:db8:3::3"]),
        (&["--overlay-encap=vxlan", "--overlay-encap-receive=ipip"], &["10.0.0.3", "2001:db8:3::3"]),
        (&["--overlay-encap=vxlan"], &[]),
        // A wall decides there which Node is believed.
        (&["--overlay-encap=wireguard", "--overlay-encap-receive=ipip"], &[]),
        (&["--enable-overlay=false"], &[]),
    ] {
        let plan = planned(words, &three_nodes());
        assert_eq!(ends(&plan), taken, "{words:?}");
        let mut hops = plan.routes().routes().values().flat_map(|route| &*route.next_hops);
        assert!(!hops.any(|hop| is_tunnel(&hop.link.0)), "{words:?}");
    }
}

/// Nodes of a network whose routers alone tell all routes have no tunnels, and would have one for each node of it.
#[test]
fn packets_are_taken_of_nodes_with_which_routes_are_exchanged_and_of_no_others() {
    let of = |words: &[&str], own: Reflection, third: Reflection| {
        let mut world = three_nodes();
        for (name, reflection) in [("node-1", own), ("node-3", third)] {
            change_node(&mut world, name, |routing| (routing.reflection, routing.asn) = (reflection, Some(64512)));
        }
        ends(&planned(words, &world)).len()
    };
    let (none, server, client) =
        (Reflection::None, Reflection::Server([0, 0, 0, 7].into()), Reflection::Client([0, 0, 0, 7].into()));
    assert_eq!(of(&[], none, none), 2);
    assert_eq!((of(&["--enable-ibgp=false"], none, none), of(&["--enable-ibgp=false"], client, client)), (0, 0));
    assert_eq!(of(&["--enable-ibgp=false", "--node-routes=api"], none, none), 2);
    assert_eq!(of(&["--nodes-full-mesh=false"], none, none), 2, "nodes of one system do");
    assert_eq!(of(&[], none, client), 2, "its reflectors tell us");
    // A kubelet may name any host as its own; who has no password there tells us nothing.
    let password = "--bgp-mesh-password-file=/run/secrets/mesh";
    assert_eq!((of(&[password], none, none), of(&[password], client, client)), (0, 0));
    assert_eq!(of(&[password, "--node-routes=api"], none, none), 2, "Node objects are believed there");
    assert_eq!(of(&[], server, client), 2);
    assert_eq!(of(&[], client, client), 2, "by way of the reflectors of both");
    let mut world = three_nodes();
    change_node(&mut world, "node-1", |routing| routing.asn = Some(64512));
    change_node(&mut world, "node-3", |routing| routing.asn = Some(64513));
    let mut plan = planned(&["--nodes-full-mesh=false"], &world);
    assert_eq!(ends(&plan), NOTHING);
    change_node(&mut world, "node-3", |routing| routing.reflection = client);
    plan.update(&world);
    assert_eq!(ends(&plan), NOTHING, "reflectors are of one system");
    change_node(&mut world, "node-3", |routing| routing.asn = Some(64512));
    plan.update(&world);
    assert_eq!(ends(&plan).len(), 2, "it follows the annotations");
}

#[test]
fn a_tunnel_stays_when_the_last_route_through_it_is_withdrawn_and_the_route_of_pods_to_the_node_does_not() {
    let mut plan = planned(&[], &three_nodes());
    let before = ends(&plan);
    plan.learn(&[learned("10.244.3.0/24", "10.0.0.3")]);
    let to_node = RouteKey::new(TUNNEL_TABLE, prefix("10.0.0.3/32"));
    assert!(plan.routes().routes().get(&to_node).is_some());
    let withdrawn = RouteChange { prefix: prefix("10.244.3.0/24"), best: None, next_hops: Vec::new() };
    let changed = plan.learn(&[withdrawn]);
    assert_eq!((plan.routes().routes().len(), changed.tunnels.len()), (0, 0));
    assert_eq!(ends(&plan), before);
}

#[test]
fn tunnels_come_and_go_with_their_nodes_and_follow_our_own_place() {
    let mut world = three_nodes();
    let third = (**world.cluster.nodes.get(&"node-3".into()).expect("it is there")).clone();
    let mut plan = planned(&[], &world);
    world.cluster.nodes.remove(&"node-3".into());
    assert_eq!((plan.update(&world).tunnels.len(), ends(&plan).len()), (2, 0));
    world.cluster.nodes.insert("node-3".into(), third);
    assert_eq!((plan.update(&world).tunnels.len(), ends(&plan).len()), (2, 2));
    let back_on_link = world.host.clone();
    world.host = Shared::new(host("192.0.2.1/24 2001:db8::1/64 10.0.0.1/8"));
    plan.update(&world);
    assert_eq!(ends(&plan), ["2001:db8:3::3"], "over IPv4 it is on our link");
    world.host = back_on_link;
    plan.update(&world);
    assert_eq!(ends(&plan).len(), 2);
    // An address of node-3 that our Node lists and drops again.
    let own = (**world.cluster.nodes.get(&"node-1".into()).expect("it is there")).clone();
    let mut both = own.clone();
    both.addresses.extend(node("2001:db8:3::3", "").addresses);
    world.cluster.nodes.insert("node-1".into(), both);
    plan.update(&world);
    assert_eq!(ends(&plan), ["10.0.0.3"]);
    world.cluster.nodes.insert("node-1".into(), own);
    plan.update(&world);
    assert_eq!(ends(&plan).len(), 2);
    // An address that is ours is no other node's, whoever names it.
    world.host = Shared::new(host("192.0.2.1/24 2001:db8::1/64 10.0.0.3/32"));
    world.cluster.nodes.insert("node-1".into(), node("192.0.2.1 2001:db8::1 10.0.0.3", "10.244.1.0/24"));
    plan.update(&world);
    assert_eq!(ends(&plan), NOTHING, "nor does anything come over IPv6 without pods of it");
}
