//! Nodes that the kernel could not tell apart: with one link address for `vxlan`, or with one name for the tunnels to them.

use super::*;
use crate::kernel::vxlan::link_address;
use crate::net::LinkAddress;
use crate::router::link_addresses::LinkAddresses;
use crate::router::names::{other_tunnel, tunnel};
use crate::router::routes::NoWay;
use crate::router::tunnel_names::TunnelNames;

const VXLAN: &str = "--overlay-encap=vxlan";

/// All addresses of one network have one, and others the usual ones.
fn one_link_address(of: IpAddr) -> LinkAddress {
    if of.to_string().starts_with("2001:db8:3:") { LinkAddress([6; 6]) } else { link_address(of) }
}

/// A plan of this World, with routes to pods of the nodes at 2001:db8:3::3 and 2001:db8:3::4.
fn of_link_addresses(of: fn(IpAddr) -> LinkAddress, world: &World) -> Plan {
    let mut plan = plan(&[VXLAN]);
    plan.nodes.tell_tunnels_by(TunnelNames::default(), LinkAddresses::told_by(of));
    plan.update(world);
    plan.learn(&[learned("fd00:10:244:3::/64", "2001:db8:3::3"), learned("fd00:10:244:4::/64", "2001:db8:3::4")]);
    plan
}

/// Three nodes, with the third one created at 5, and one that comes before them by its name and was created at 9.
fn victim_and_attacker() -> World {
    let mut world = three_nodes();
    let third = node("10.0.0.3 2001:db8:3::3", "10.244.3.0/24 fd00:10:244:3::/64");
    world.cluster.nodes.insert("node-3".into(), Node { created: 5, ..third });
    let attacker = node("10.0.0.4 2001:db8:3::4", "10.244.4.0/24 fd00:10:244:4::/64");
    world.cluster.nodes.insert("node-0".into(), Node { created: 9, ..attacker });
    world
}

/// The remote addresses of all entries.
fn remotes(plan: &Plan) -> Vec<String> {
    plan.routes().entries().keys().map(|entry| entry.remote.to_string()).collect()
}

fn why_no_way(plan: &Plan, range: &str) -> Option<NoWay> {
    plan.ways_to(prefix(range)).first().and_then(|(_, why)| *why)
}

fn told(plan: &Plan, about: &str) -> Vec<String> {
    problems(plan).into_iter().filter(|problem| problem.contains(about)).collect()
}

#[test]
fn of_two_nodes_with_one_link_address_the_older_one_has_it_and_the_other_one_when_that_goes() {
    let mut world = victim_and_attacker();
    let mut plan = of_link_addresses(one_link_address, &world);
    assert_eq!(remotes(&plan), ["2001:db8:3::3"]);
    assert_eq!(why_no_way(&plan, "fd00:10:244:4::/64"), Some(NoWay::LikeAnother));
    assert_eq!(why_no_way(&plan, "fd00:10:244:3::/64"), None);
    let text = "Node node-0: its address 2001:db8:3::4 has the link address of 2001:db8:3::3 for vxlan, which comes first; \
                no tunnel leads to it";
    assert_eq!(told(&plan, "link address"), [text]);
    let third = (**world.cluster.nodes.get(&"node-3".into()).expect("it is there")).clone();
    world.cluster.nodes.remove(&"node-3".into());
    let changed = plan.update(&world);
    assert_eq!((changed.nodes_computed, changed.overlay_entries.len()), (1, 2));
    assert_eq!((remotes(&plan), told(&plan, "link address")), (vec!["2001:db8:3::4".to_owned()], vec![]));
    // It comes back, and was created before the other one.
    world.cluster.nodes.insert("node-3".into(), third);
    assert_eq!(plan.update(&world).overlay_entries.len(), 2);
    assert_eq!((remotes(&plan), told(&plan, "link address").len()), (vec!["2001:db8:3::3".to_owned()], 1));
    assert_eq!(remotes(&of_link_addresses(one_link_address, &world)), remotes(&plan));
}

#[test]
fn a_node_with_an_address_of_the_other_family_has_the_ways_through_the_tunnel_to_it_anew() {
    let mut world = victim_and_attacker();
    let mut plan = of_link_addresses(one_link_address, &world);
    // The next hop is the node's other address.
    plan.learn(&[learned("fd00:10:244:4::/64", "10.0.0.4")]);
    assert_eq!(why_no_way(&plan, "fd00:10:244:4::/64"), Some(NoWay::LikeAnother));
    world.cluster.nodes.remove(&"node-3".into());
    plan.update(&world);
    assert_eq!(remotes(&plan), ["2001:db8:3::4"]);
    assert!(plan.routes().has_way(prefix("fd00:10:244:4::/64")));
}

#[test]
fn an_address_that_a_node_lists_among_others_takes_no_link_address_however_old_the_node_is() {
    let mut world = victim_and_attacker();
    let attacker = node("10.0.0.4 2001:db8:9::9 2001:db8:3::4", "10.244.4.0/24 fd00:10:244:4::/64");
    world.cluster.nodes.insert("node-0".into(), Node { created: 1, ..attacker });
    let plan = of_link_addresses(one_link_address, &world);
    assert_eq!(remotes(&plan), ["2001:db8:3::3", "2001:db8:9::9"], "the tunnel to it ends at its first one");
}

#[test]
fn nobody_has_the_link_address_of_our_own_device() {
    let plan = of_link_addresses(|_| LinkAddress([6; 6]), &victim_and_attacker());
    assert_eq!(remotes(&plan), NOTHING);
    assert_eq!(told(&plan, "the link address of 2001:db8::1 for vxlan").len(), 3);
}

/// The names of 10.0.0.5 are the usual ones of two others.
fn usual(of: IpAddr) -> LinkName {
    tunnel(if of == address("10.0.0.5") { address("10.0.0.4") } else { of })
}

fn other(of: IpAddr) -> LinkName {
    if of == address("10.0.0.5") { tunnel(address("10.0.0.3")) } else { other_tunnel(of) }
}

#[test]
fn a_node_both_of_whose_names_are_taken_has_no_tunnel_until_one_is_free() {
    let mut world = three_nodes();
    for (name, addresses, ranges, created) in [
        ("node-3", "10.0.0.3", "10.244.3.0/24", 5),
        ("node-4", "10.0.0.4", "10.244.4.0/24", 6),
        ("node-5", "10.0.0.5", "10.244.5.0/24", 7),
    ] {
        world.cluster.nodes.insert(name.into(), Node { created, ..node(addresses, ranges) });
    }
    let mut plan = plan(&[]);
    plan.nodes.tell_tunnels_by(TunnelNames::told_by(usual, other), LinkAddresses::default());
    plan.update(&world);
    plan.learn(&[learned("10.244.3.0/24", "10.0.0.3"), learned("10.244.5.0/24", "10.0.0.5")]);
    let ends = |plan: &Plan| {
        let mut ends: Vec<IpAddr> = plan.routes().tunnels().values().map(|tunnel| tunnel.remote).collect();
        ends.sort();
        ends
    };
    let [third, fourth, fifth] = ["10.0.0.3", "10.0.0.4", "10.0.0.5"].map(address);
    assert_eq!(ends(&plan), [third, fourth]);
    assert_eq!(plan.routes().tunnels().get(&tunnel(third)).map(|tunnel| tunnel.remote), Some(third));
    assert_eq!(why_no_way(&plan, "10.244.5.0/24"), Some(NoWay::LikeAnother));
    let text = "Node node-5: both names of the tunnel to its address 10.0.0.5 are those of tunnels to other nodes; \
                there is none to it";
    assert_eq!(told(&plan, "both names"), [text]);
    let gone = (**world.cluster.nodes.get(&"node-4".into()).expect("it is there")).clone();
    world.cluster.nodes.remove(&"node-4".into());
    plan.update(&world);
    assert_eq!((ends(&plan), told(&plan, "both names")), (vec![third, fifth], vec![]));
    assert_eq!(why_no_way(&plan, "10.244.5.0/24"), None);
    world.cluster.nodes.insert("node-4".into(), gone);
    plan.update(&world);
    assert_eq!(ends(&plan), [third, fourth, fifth], "it has another name now and takes none away");
    assert_eq!(plan.routes().tunnels().get(&other_tunnel(fourth)).map(|tunnel| tunnel.remote), Some(fourth));
}
