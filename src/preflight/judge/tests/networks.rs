//! Findings about addresses and networks of the host, and the ranges of pods and Services.

use super::*;
use crate::model::{Reflection, Routing};
use crate::net::PerFamily;

#[test]
fn networks_of_the_host_in_the_ranges_of_pods_and_services_are_named() {
    let network = |link: &'static str, address: &'static str| {
        move |facts: &mut Facts| facts.network.addresses.push(host_address(link, address))
    };
    check(
        &[],
        network("eth1", "10.244.1.7/16"),
        Level::Fatal,
        &["pod range 10.244.1.0/24", "10.244.0.0/16 of the device eth1"],
    );
    check(&[], network("cni0", "10.244.1.1/24"), Level::Fatal, &["ip address delete 10.244.1.1/24 dev cni0"]);
    check_ok(&[], network("kube-bridge", "10.244.1.1/24"), "no network of this host is in 10.244.1.0/24, 10.96.0.0/12");
    check_ok(&PROXY, network("eth1", "10.244.1.7/16"), "no network of this host");
    check(
        &[],
        network("eth1", "10.100.0.7/24"),
        Level::Degraded,
        &["range of Services 10.96.0.0/12", "10.100.0.0/24 of the device eth1"],
    );
    check_ok(&ROUTER, network("eth1", "10.100.0.7/24"), "no network of this host");
    let route = |to: &'static str| {
        move |facts: &mut Facts| {
            let (to, text) = (to.parse().expect("a range"), format!("{to} via 192.0.2.9 dev eth0"));
            facts.network.routes.push(FoundRoute { to, links: vec!["eth0".to_owned()], text });
        }
    };
    check(&[], route("10.244.1.128/25"), Level::Degraded, &["route leads into it: 10.244.1.128/25 via 192.0.2.9"]);
    check(&[], route("10.97.0.0/16"), Level::Degraded, &["range of Services"]);
    check_ok(&[], route("10.0.0.0/8"), "no network of this host");
    let overlapping = |facts: &mut Facts| {
        let node = api(facts).node.as_mut().expect("it is known");
        node.pod_cidrs = vec!["10.98.1.0/24".parse().expect("a range")];
    };
    check(&[], overlapping, Level::Fatal, &["10.96.0.0/12", "10.98.1.0/24", "overlap"]);
}

#[test]
fn ranges_that_an_annotation_names_and_a_flag_leaves_out_are_named() {
    let unbelieved = |facts: &mut Facts| api(facts).unbelieved = vec!["10.245.1.0/24".parse().expect("a range")];
    let flag = "--node-pod-cidr-annotations=false";
    check(&[flag], unbelieved, Level::Degraded, &["10.245.1.0/24", flag, "pods anew", "leave the flag out"]);
    let without = |facts: &mut Facts| api(facts).node.as_mut().expect("it is known").pod_cidrs.clear();
    check(&[flag], without, Level::Fatal, &["no IPv4 range", "leave --node-pod-cidr-annotations=false out"]);
}

#[test]
fn as_many_nodes_on_links_as_the_kernel_finds_out_neighbours_are_named_with_the_setting() {
    let limit = |facts: &mut Facts, family: &str, limit: &str| {
        let found = FoundSetting { value: limit.to_owned(), unwritable: None };
        facts.kernel.settings.insert(Setting(format!("net/{family}/neigh/default/gc_thresh3").into()), found);
    };
    let nodes = |count: u16, of_ipv4: &'static str| {
        move |facts: &mut Facts| {
            facts.network.addresses.push(host_address("eth1", "172.16.0.1/16"));
            let all = (1..=count).map(|i| IpAddr::from([172, 16, 1 + (i >> 8) as u8, i as u8]));
            api(facts).nodes = Ok(all.collect());
            limit(facts, "ipv4", of_ipv4);
        }
    };
    let setting = "raise net.ipv4.neigh.default.gc_thresh3";
    check(&[], nodes(1024, "1024"), Level::Degraded, &["neighbours of IPv4", "1024 other nodes", setting]);
    check_ok(&[], nodes(1023, "1024"), "no network of this host");
    check_ok(&[], nodes(1024, "8192"), "no network of this host");
    check_ok(&PROXY, nodes(1024, "1024"), "no network of this host");
    // Only nodes whose pods speak with each other are found out there.
    check_ok(&["--node-routes=api"], nodes(1024, "1024"), setting);
    let with_reflectors = |facts: &mut Facts| {
        nodes(1024, "1024")(facts);
        let role = Routing { reflection: Reflection::Client([192, 0, 2, 1].into()), ..Routing::default() };
        api(facts).node.as_mut().expect("it is known").routing = Some(Box::new(role));
    };
    check_ok(&[], with_reflectors, setting);
    let behind_a_router = |facts: &mut Facts| {
        nodes(1024, "1024")(facts);
        facts.network.addresses.pop();
    };
    check_ok(&[], behind_a_router, "no network of this host");
    let by_a_link_that_is_down = |facts: &mut Facts| {
        nodes(1024, "1024")(facts);
        facts.network.addresses.last_mut().expect("that of eth1").up = false;
    };
    check_ok(&[], by_a_link_that_is_down, "no network of this host");
    // Of nodes with both families the list has one.
    let of_both = |length: u8| {
        move |facts: &mut Facts| {
            nodes(1024, "8192")(facts);
            let address = "2001:db8::1".parse().expect("an address");
            facts.network.addresses.push(host_address("eth0", &format!("{address}/{length}")));
            let node = api(facts).node.as_mut().expect("it is known");
            node.addresses.push(NodeAddress { kind: NodeAddressKind::Internal, address });
            node.pod_cidrs.push("2001:db8:1::/64".parse().expect("a range"));
            limit(facts, "ipv6", "1024");
        }
    };
    let perhaps = "if other nodes have IPv6 addresses as well: 1024 other nodes";
    check_ok(&["--enable-ipv6"], of_both(64), perhaps);
    check_ok(&["--enable-ipv6"], of_both(128), "no network of this host");
    let half_of_each = |facts: &mut Facts| {
        of_both(64)(facts);
        let of_ipv6 = (1..=512_u16).map(|i| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 1, i]));
        let of_ipv4 = (1..=512_u16).map(|i| IpAddr::from([172, 16, 1 + (i >> 8) as u8, i as u8]));
        api(facts).nodes = Ok(of_ipv4.chain(of_ipv6).collect());
    };
    check_ok(&["--enable-ipv6"], half_of_each, perhaps);
    let unread = |facts: &mut Facts| api(facts).nodes = Err(Unknown::Unreachable("no answer within 10 s".to_owned()));
    check_ok(&[], unread, "nodes on links of this host is not known: no answer within 10 s");
}

#[test]
fn nodes_are_asked_for_where_links_of_the_node_have_room_for_as_many_as_the_kernel_finds_out() {
    let may = |addresses: &[(&str, &str)], limit: Option<usize>| {
        let link_local = HostAddress { scope: Scope::Link, ..host_address("eth0", "fe80::1/64") };
        let beside = [link_local, host_address("docker0", "172.17.0.1/8")];
        let of_links = addresses.iter().map(|(link, address)| host_address(link, address));
        let network = NetworkFacts { addresses: of_links.chain(beside).collect(), ..NetworkFacts::default() };
        let first = network.addresses.first().expect("one").address.addr();
        let others = network.addresses.iter().map(|one| one.address.addr()).filter(|ip| *ip != first && ip.is_ipv4());
        let its = others.filter(|ip| !ip.to_string().starts_with("172.")).chain([first]);
        let its = its.map(|address| NodeAddress { kind: NodeAddressKind::Internal, address });
        let node = Node { addresses: its.collect(), ..Node::default() };
        addresses::may_be_crowded(&network, &node, PerFamily { v4: limit, v6: limit })
    };
    assert!(may(&[("eth0", "192.0.2.1/22")], Some(1024)));
    assert!(!may(&[("eth0", "192.0.2.1/23")], Some(1024)), "link-local and container networks do not count");
    assert!(may(&[("eth0", "192.0.2.1/23"), ("eth1", "198.51.100.1/23")], Some(1024)), "together they have");
    assert!(!may(&[("eth0", "192.0.2.1/23"), ("eth1", "192.0.3.1/23")], Some(1024)), "it is one network");
    assert!(may(&[("eth0", "2001:db8::1/64")], Some(1024)) && may(&[("eth0", "2001:db8::1/1")], Some(1024)));
    assert!(!may(&[("eth0", "192.0.2.1/32")], Some(2)) && !may(&[("eth0", "2001:db8::1/120")], Some(1024)));
    assert!(!may(&[("eth0", "192.0.2.1/8")], None), "it cannot be read in this network namespace");
}

#[test]
fn devices_by_which_pods_of_this_node_are_attached_are_no_conflict() {
    let conf = r#"{"type":"bridge","bridge":"cni0"}"#;
    let route = |to: &str, link: &str| FoundRoute {
        to: to.parse().expect("a range"),
        links: vec![link.to_owned()],
        text: format!("{to} dev {link}"),
    };
    let of_bridge = |facts: &mut Facts| {
        facts.files.cni_text = Some(Ok(conf.to_owned()));
        facts.network.addresses.push(host_address("cni0", "10.244.1.1/24"));
        facts.network.routes.push(route("10.244.1.0/25", "cni0"));
    };
    check_ok(&[], of_bridge, "no network of this host is in 10.244.1.0/24");
    let of_another_bridge = |facts: &mut Facts| {
        of_bridge(facts);
        facts.network.addresses.push(host_address("docker0", "10.244.1.1/24"));
    };
    check(&[], of_another_bridge, Level::Fatal, &["10.244.1.0/24 of the device docker0"]);
    let of_pairs = |facts: &mut Facts| {
        facts.files.cni_text = Some(Ok(r#"{"type":"ptp"}"#.to_owned()));
        facts.network.pairs = ["veth1", "eth0"].map(str::to_owned).into();
        facts.network.addresses.push(host_address("veth1", "10.244.1.1/32"));
        facts.network.routes.push(route("10.244.1.5/32", "veth1"));
    };
    check_ok(&[], of_pairs, "no network of this host is in 10.244.1.0/24");
    // The host may be a container, whose own device is one end of a pair.
    let of_container = |facts: &mut Facts| {
        of_pairs(facts);
        facts.network.addresses.push(host_address("eth0", "10.244.1.9/24"));
    };
    check(&[], of_container, Level::Fatal, &["10.244.1.0/24 of the device eth0"]);
}

/// As `daemonset/generic-kuberouter-only-advertise-routes.yaml` has it.
const ANNOUNCES: [&str; 6] = [
    "--run-firewall=false",
    "--run-service-proxy=false",
    "--enable-cni=false",
    "--enable-ibgp=false",
    "--enable-overlay=false",
    "--advertise-pod-cidr=false",
];

#[test]
fn a_router_that_only_announces_leaves_pods_and_their_ranges_to_another_network() {
    let pods_of_others = |facts: &mut Facts| {
        facts.network.links.extend(["cni0", "flannel.1"].map(str::to_owned));
        facts.network.addresses.push(host_address("cni0", "10.244.1.1/24"));
        facts.network.addresses.push(host_address("flannel.1", "10.244.1.0/32"));
        facts.network.routes.push(FoundRoute {
            to: "10.244.1.7/32".parse().expect("a range"),
            links: vec!["lxc1".to_owned()],
            text: "10.244.1.7/32 dev lxc1".to_owned(),
        });
    };
    check_ok(&ANNOUNCES, pods_of_others, "no subsystem that runs here does the same");
    let host_in_range = |facts: &mut Facts| facts.network.addresses.push(host_address("eth1", "10.244.1.7/16"));
    check(&ANNOUNCES, host_in_range, Level::Fatal, &["10.244.0.0/16 of the device eth1"]);
    let routes = [&ANNOUNCES[..3], &["--node-routes=api"]].concat();
    check(
        &routes,
        pods_of_others,
        Level::Degraded,
        &["routes to pods of other nodes", "--node-routes=bgp --enable-ibgp=false"],
    );
    check(
        &ANNOUNCES[..3],
        pods_of_others,
        Level::Degraded,
        &["routes to pods of other nodes", "start with --enable-ibgp=false"],
    );
    let without_range = |facts: &mut Facts| api(facts).node.as_mut().expect("it is known").pod_cidrs.clear();
    check_ok(&ANNOUNCES, without_range, "it has the addresses and ranges that are needed");
    check(&ANNOUNCES[..5], without_range, Level::Degraded, &["no IPv4 range for pods", "--advertise-pod-cidr"]);
    check(&ROUTER, without_range, Level::Fatal, &["no IPv4 range for pods", "its pods get no IPv4 address"]);
}

#[test]
fn a_network_around_the_range_of_pods_is_no_conflict_but_where_the_hosts_own_address_lies_in_it() {
    let network =
        |address: &'static str| move |facts: &mut Facts| facts.network.addresses.push(host_address("eth1", address));
    let said = "the network 10.0.0.0/8 of the device eth1 overlaps it: hosts there with addresses of this range are not reached from this node";
    check_ok(&ROUTER, network("10.1.2.3/8"), said);
    check(&ROUTER, network("10.244.1.3/8"), Level::Fatal, &["10.0.0.0/8 of the device eth1"]);
    check(&ROUTER, network("10.244.1.129/25"), Level::Fatal, &["10.244.1.128/25 of the device eth1"]);
}

#[test]
fn addresses_of_services_on_devices_that_carry_nothing_else_are_no_networks_of_the_host() {
    let of_services = |facts: &mut Facts| {
        let addresses = ["10.96.0.1/32", "10.96.0.10/32", "2001:db8:96::1/128"];
        facts.network.addresses.extend(addresses.map(|address| host_address("kube-ipvs0", address)));
        facts.network.addresses.push(host_address("nodelocaldns", "10.96.0.10/32"));
    };
    check_ok(&[], of_services, "no network of this host is in 10.244.1.0/24, 10.96.0.0/12");
    let found = found(&["--enable-ipv6"], of_services);
    assert!(found.iter().any(|one| one.what.contains("no device of this host has a global IPv6 address")), "{found:?}");
}

#[test]
fn a_family_needs_an_address_and_a_range() {
    let found = found(&["--enable-ipv6"], |_| {});
    let fatal: Vec<&str> = found.iter().filter(|one| one.level == Level::Fatal).map(|one| one.what.as_str()).collect();
    assert_eq!(fatal.len(), 2, "{fatal:?}");
    assert!(fatal.iter().any(|what| what.contains("no device of this host has a global IPv6 address")), "{fatal:?}");
    assert!(fatal.iter().any(|what| what.contains("it has no IPv6 range for pods")), "{fatal:?}");
}

#[test]
fn the_addresses_that_would_be_detected_are_named_and_those_that_would_not_are_too() {
    let with_back = |facts: &mut Facts| {
        facts.network.addresses.push(host_address("eth1", "198.51.100.1/24"));
        facts.network.sources.v4 = Some([198, 51, 100, 1].into());
    };
    let found = "other nodes route to 198.51.100.1 (--node-ip-autodetect=cidr=198.51.100.0/24)";
    check_ok(&["--node-ip-autodetect=cidr=198.51.100.0/24"], with_back, found);
    let found = "other nodes route to 198.51.100.1 (--node-ip-autodetect=can-reach=203.0.113.1)";
    check_ok(&["--node-ip-autodetect=can-reach=203.0.113.1"], with_back, found);
    let lacking = [
        "--node-ip-autodetect=interface=eth7 finds no IPv4 address",
        "other nodes route to the InternalIP of its Node",
    ];
    check(&["--node-ip-autodetect=interface=eth7"], with_back, Level::Degraded, &lacking);
}
