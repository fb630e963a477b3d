//! Objects of this host's kernel, by Nodes, by the families that are on, and by how much is known.

use super::*;

#[test]
fn pods_and_addresses_of_all_nodes_are_in_the_sets_also_of_nodes_without_pods() {
    let mut world = three_nodes();
    world.cluster.nodes.insert("node-4".into(), node("192.0.2.4", ""));
    let plan = planned(&[], &world);
    let elements = elements(&plan);
    for element in [
        "kube-router-pod-subnets 10.244.1.0/24",
        "kube-router-pod-subnets 10.244.3.0/24",
        "kube-router-node-ips 192.0.2.1",
        "kube-router-node-ips 192.0.2.4",
        "inet6:kube-router-pod-subnets fd00:10:244:2::/64",
        "inet6:kube-router-node-ips 2001:db8:3::3",
    ] {
        assert!(elements.contains(&element.to_owned()), "{element} is not in {elements:?}");
    }
    assert_eq!(elements.len(), 13);
    assert_eq!(plan.desired().sets.len(), 4);
}

#[test]
fn nothing_is_wanted_of_what_is_not_known() {
    let mut world = three_nodes();
    world.authority.router = Authority::Nothing;
    let mut plan = planned(&[], &world);
    let desired = plan.desired();
    assert!(desired.speaker.is_none() && desired.peers.is_empty() && desired.elements.is_empty());
    assert!(desired.sets.is_empty() && desired.rules.is_empty() && desired.cni.is_none());
    assert_eq!(problems(&plan), NOTHING, "nothing is wrong, it is only early");
    world.authority.router = Authority::Complete;
    world.authority.proxy = Authority::Nothing;
    plan.update(&world);
    assert!(plan.desired().speaker.is_none(), "what is announced first is taken for all");
    assert_eq!(elements(&plan).len(), 12);
    world.authority.proxy = Authority::Complete;
    assert!(plan.update(&world).speaker);
    assert_eq!(peers(&plan).len(), 2);
}

#[test]
fn what_the_host_needs_follows_from_its_node() {
    let mut world = three_nodes();
    let plan = planned(&[], &world);
    let cni = plan.desired().cni.clone().expect("it is kept");
    assert_eq!(cni.ranges, [prefix("10.244.1.0/24"), prefix("fd00:10:244:1::/64")]);
    assert_eq!((cni.mtu, plan.desired().bridge.map(|bridge| bridge.mtu)), (Some(1500), Some(Some(1500))));
    let rules: Vec<String> = plan.desired().source_rules.keys().map(ToString::to_string).collect();
    assert_eq!(rules, ["from 10.244.1.0/24 lookup 77", "from fd00:10:244:1::/64 lookup 77"]);
    assert!(plan.desired().receive_ports.is_empty());
    assert_eq!(plan.desired().rules.len(), 8, "two chains and two jumps in each family");
    let fou = planned(&["--overlay-encap=fou"], &world);
    let ports: Vec<String> = fou.desired().receive_ports.keys().map(ToString::to_string).collect();
    assert_eq!(ports, ["port 5555 IPv4", "port 5555 IPv6"]);
    let plain = planned(&["--enable-overlay=false", "--enable-pod-egress=false", "--enable-cni=false"], &world);
    assert!(plain.desired().source_rules.is_empty() && plain.desired().cni.is_none());
    assert_eq!(plain.desired().rules.len(), 4);
    assert!(plain.desired().bridge.is_some(), "pods need it all the same");
    world.cluster.nodes.insert("node-1".into(), node("192.0.2.1 2001:db8::1", "10.244.9.0/24"));
    let mut moved = plan;
    let changed = moved.update(&world);
    assert!(changed.cni && changed.source_rules.len() == 3, "rules of earlier ranges go");
}

#[test]
fn rules_of_former_ranges_stay_where_packets_are_encrypted_until_there_is_a_range_of_the_family() {
    let encrypted = ["--overlay-encap=wireguard"];
    let kept = |words: &[&str], families: PerFamily<bool>, ranges: &str| {
        let mut world = three_nodes();
        world.cluster.nodes.insert("node-1".into(), node("192.0.2.1 2001:db8::1", ranges));
        let mut plan = Plan::new(Shared::new(config(words)), families);
        plan.update(&world);
        let PerFamily { v4, v6 } = plan.desired().keeps_source_rules;
        (v4, v6)
    };
    let ranges = "10.244.1.0/24 fd00:10:244:1::/64";
    assert_eq!(kept(&encrypted, BOTH, ranges), (false, false));
    assert_eq!(kept(&encrypted, BOTH, "10.244.1.0/24"), (false, true));
    assert_eq!(kept(&encrypted, BOTH, ""), (true, true));
    assert_eq!(kept(&encrypted, PerFamily { v4: true, v6: false }, ""), (true, false));
    assert_eq!(kept(&["--overlay-encap-receive=wireguard"], BOTH, ""), (false, false), "what is sent is readable");
    let mut world = three_nodes();
    world.cluster.nodes.remove(&"node-1".into());
    assert_eq!(planned(&encrypted, &world).desired().keeps_source_rules, BOTH);
}

#[test]
fn a_family_that_is_off_does_not_exist() {
    let config = config(&[]);
    let mut plan = Plan::new(Shared::new(config), PerFamily { v4: true, v6: false });
    plan.update(&three_nodes());
    let desired = plan.desired();
    assert!(desired.announcements.keys().all(|prefix| prefix.addr().is_ipv4()));
    assert!(desired.peers.values().all(|wanted| !wanted.settings.families.v6));
    assert_eq!((desired.sets.len(), desired.rules.len(), elements(&plan).len()), (2, 4, 6));
    assert_eq!(plan.unreached(at_first(), |_, _| false).count, 2);
}

#[test]
fn clusters_of_ipv6_alone_work_the_same_way() {
    let six = |number: u8| node(&format!("2001:db8::{number}"), &format!("fd00:10:244:{number}::/64"));
    let world = world(host("2001:db8::1/64"), &[("node-1", six(1)), ("node-2", six(2))]);
    let config = config(&["--enable-ipv4=false", "--enable-ipv6"]);
    let mut plan = Plan::new(Shared::new(config), PerFamily { v4: false, v6: true });
    plan.update(&world);
    assert_eq!((peers(&plan), problems(&plan)), (vec!["2001:db8::2".to_owned()], vec![]));
    assert_eq!(announcements(&plan), ["fd00:10:244:1::/64 2001:db8::1"]);
    let id = plan.desired().speaker.as_ref().map(|speaker| speaker.own.identifier);
    assert!(id.is_some_and(|id| !id.is_unspecified()), "a node without IPv4 has an identifier all the same");
}

#[test]
fn of_the_addresses_of_a_node_eight_keep_the_addresses_of_pods() {
    let many: String = (1..100).map(|number| format!(" 198.51.100.{number}")).collect();
    let mut world = three_nodes();
    world.cluster.nodes.insert("node-9".into(), node(&format!("192.0.2.9{many}"), ""));
    let plan = planned(&[], &world);
    assert_eq!(elements(&plan).iter().filter(|text| text.contains("198.51.100.")).count(), 7);
    assert_eq!(plan.masquerade(address("198.51.100.7")), Masquerade::ToNode);
    assert_eq!(plan.masquerade(address("198.51.100.8")), Masquerade::ToOutside);
    // What our own Node lists is ours.
    let mut world = three_nodes();
    world.cluster.nodes.insert("node-1".into(), node(&format!("192.0.2.1{many}"), ""));
    assert_eq!(planned(&[], &world).masquerade(address("198.51.100.99")), Masquerade::ToNode);
}
