//! Ways as they follow from a plan, and what the kernel's lookup makes of them.

use serde_json::Value;

use super::*;
use crate::kernel::link::LinkName;
use crate::model::{Labels, NodeAddress, NodeAddressKind};
use crate::net::PerFamily;
use crate::router::explain::RouteInKernel;
use crate::router::given::{address, config, host, node, prefix, world};

const BOTH: PerFamily<bool> = PerFamily { v4: true, v6: true };

/// `node-1` of three: `node-2` is on its link, `node-3` elsewhere. Their routes come from Node objects.
fn plan(words: &[&str]) -> Plan {
    let words = [&["--node-routes=api", "--enable-ipv6"][..], words].concat();
    let mut plan = Plan::new(Arc::new(config(&words)), BOTH);
    plan.update(&world(
        host("192.0.2.1/24 2001:db8::1/64"),
        &[
            ("node-1", node("192.0.2.1 2001:db8::1", "10.244.1.0/24 fd00:10:244:1::/64")),
            ("node-2", node("192.0.2.2 2001:db8::2", "10.244.2.0/24 fd00:10:244:2::/64")),
            ("node-3", node("198.51.100.3 2001:db8:3::3", "10.244.3.0/24 fd00:10:244:3::/64")),
        ],
    ));
    plan
}

/// The way that a plan means, with a kernel that has it.
fn meant(plan: &Plan, to: &str) -> Way {
    let to = address(to);
    let planned = |(key, route): (RouteKey, Arc<Route>)| Planned {
        tunnels: route
            .next_hops
            .iter()
            .map(|hop| plan.tunnel_of(key.destination, hop).map(|ends| Tunnel { ends, is_in_place: Some(true) }))
            .collect(),
        kernel: InKernel {
            route: RouteInKernel::InPlace(route.clone()),
            next_hops: plan.ways_to(key.destination),
            given_by: plan.given_by(key.destination),
            in_the_way: Vec::new(),
        },
        key,
        route,
    };
    let route = plan.route_to(to, false);
    let of_pods = plan.route_to(to, true).filter(|other| Some(other) != route.as_ref());
    let owner = plan.owner_of(to);
    let planned_of_pods = of_pods.map(planned);
    let planned = route.map(planned);
    let kernel = taken(planned.as_ref());
    let why_none = why_none(plan, &owner, to, planned.as_ref());
    let (node_mtus, pods_mtu) = plan.mtus();
    Way {
        address: to,
        owner,
        is_served: false,
        kernel_of_pods: Ok(Some(taken(planned_of_pods.as_ref().or(planned.as_ref())))),
        planned,
        planned_of_pods,
        why_none,
        own_pods: plan.own_range(Family::from(to)),
        node_mtus,
        pods_mtu,
        masquerade: plan.masquerade(to),
        kernel: Ok(kernel),
    }
}

/// The lookup of a kernel that has just this route, and else a default route.
fn taken(planned: Option<&Planned>) -> Taken {
    let hop = planned.and_then(|planned| planned.route.next_hops.first());
    let mtu = planned.and_then(|planned| planned.tunnels.iter().flatten().next()?.ends.mtu);
    let default = || (RouteKey::new(TABLE_MAIN, prefix("0.0.0.0/0")), 3);
    Taken {
        fate: Fate::Forwarded,
        decided_by: Some(planned.map_or_else(default, |planned| (planned.key.clone(), planned.route.protocol))),
        link: Some(hop.map_or_else(|| LinkName("eth0".into()), |hop| hop.link.clone())),
        link_mtu: Some(mtu.unwrap_or(1500)),
        gateway: hop.map_or_else(|| Some(address("192.0.2.254")), |hop| hop.gateway),
        source: planned.map_or(Some(address("192.0.2.1")), |planned| planned.route.source),
        path_mtu: None,
    }
}

fn said(way: &Way) -> String {
    lines(way).join("\n")
}

fn lines(way: &Way) -> Vec<String> {
    text::lines(way, &Origin::default())
}

#[test]
fn a_pod_behind_a_node_on_the_link_has_a_gateway_and_no_tunnel_in_either_family() {
    let plan = plan(&[]);
    let expected = "\
route: 10.244.2.0/24 via 192.0.2.2 dev eth0
from: the object of Node node-2 (--node-routes=api)
in the kernel: in place
MTU: 1500 bytes: eth0 has it
masqueraded, from pods: no: 10.244.2.0/24 are pods of the cluster
kernel, packets of this node: via 192.0.2.2 dev eth0, by 10.244.2.0/24 of sluice
kernel, packets of pods: the same";
    assert_eq!(said(&meant(&plan, "10.244.2.7")), expected);
    let six = said(&meant(&plan, "fd00:10:244:2::7"));
    assert!(
        six.starts_with("route: fd00:10:244:2::/64 via 2001:db8::2 dev eth0\nfrom: the object of Node node-2"),
        "{six}"
    );
    assert!(six.contains("masqueraded, from pods: no: fd00:10:244:2::/64 are pods of the cluster"), "{six}");
}

#[test]
fn a_pod_behind_a_node_elsewhere_has_a_tunnel_with_its_ends_its_cost_and_the_size_that_fits() {
    for (words, to, tunnel, mtu) in [
        (&[][..], "10.244.3.7", "ipip from 192.0.2.1 to 198.51.100.3, which adds 20 bytes", (1480, "ipip over IPv4")),
        (
            &[],
            "fd00:10:244:3::7",
            "ipip from 2001:db8::1 to 2001:db8:3::3, which adds 40 bytes",
            (1460, "ipip over IPv6"),
        ),
        (
            &["--overlay-encap=fou"],
            "10.244.3.7",
            "fou, UDP port 5555 from 192.0.2.1 to 198.51.100.3, which adds 32 bytes",
            (1468, "fou over IPv4"),
        ),
        (
            &["--overlay-encap=vxlan"],
            "10.244.3.7",
            "vxlan, UDP port 4789 from 192.0.2.1 to 198.51.100.3, which adds 50 bytes",
            (1450, "vxlan over IPv4"),
        ),
        (
            &["--overlay-encap=vxlan"],
            "fd00:10:244:3::7",
            "vxlan, UDP port 4789 from 2001:db8::1 to 2001:db8:3::3, which adds 70 bytes",
            (1430, "vxlan over IPv6"),
        ),
    ] {
        let way = meant(&plan(words), to);
        let text = said(&way);
        assert!(text.contains(tunnel), "{text}");
        let (fits, kind) = mtu;
        let line = format!("MTU: {fits} bytes: ");
        let why = format!("has it: 1500 of this node's link less {} of {kind}; pods may send 1500", 1500 - fits);
        assert!(text.contains(&line) && text.contains(&why), "{text}");
        assert!(text.contains("source address: "), "{text}");
        assert_eq!(differences(&way), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn with_tunnels_to_all_nodes_pods_answer_a_node_by_another_table() {
    let way = meant(&plan(&["--overlay-type=full"]), "192.0.2.2");
    assert_eq!(way.owner, Owner::Node("node-2".into()));
    assert_eq!(way.planned, None);
    let of_pods = way.planned_of_pods.as_ref().expect("pods have another route");
    assert_eq!((of_pods.key.table, of_pods.tunnels.iter().flatten().count()), (TUNNEL_TABLE, 1));
    let text = said(&way);
    assert!(text.contains("route of packets of pods: 192.0.2.2/32 table 77 dev tun-"), "{text}");
    assert!(text.contains("masqueraded, from pods: no: it is an address of a node"), "{text}");
    assert!(text.contains("\nMTU: 1500 bytes: eth0 has it\n"), "{text}");
    let of_pods = "\nMTU of packets of pods: 1480 bytes: ";
    assert!(text.contains(of_pods) && text.contains("1500 of this node's link less 20 of ipip over IPv4\n"), "{text}");
    assert!(text.contains("route: none of ours: the kernel's own decide"), "{text}");
    assert_eq!(differences(&way), Vec::<String>::new(), "{text}");
}

#[test]
fn without_tunnels_a_node_elsewhere_is_named_as_the_reason() {
    let way = meant(&plan(&["--enable-overlay=false"]), "10.244.3.7");
    let text = said(&way);
    assert!(text.starts_with("route: none, although there should be one\n"), "{text}");
    let why = "no route: 10.244.3.0/24 was learned and is not used: the node 198.51.100.3 is on no link of this host, and there are \
               no tunnels (--enable-overlay)";
    assert!(text.contains(why), "{text}");
}

#[test]
fn a_range_that_is_refused_is_said_with_the_reason() {
    let mut plan = Plan::new(Arc::new(config(&[])), PerFamily { v4: true, v6: false });
    plan.update(&world(
        host("192.0.2.1/24"),
        &[
            ("node-1", node("192.0.2.1", "10.244.1.0/24")),
            ("node-2", node("192.0.2.2", "10.244.1.128/25")),
            ("node-3", node("192.0.2.3", "10.244.3.0/24")),
        ],
    ));
    let text = said(&meant(&plan, "10.244.1.130"));
    let why = "no route: 10.244.1.128/25 of Node node-2: it overlaps 10.244.1.0/24, a pod range of this node";
    assert!(text.contains(why), "{text}");
    // Nothing was learned yet of the other one.
    let text = said(&meant(&plan, "10.244.3.7"));
    assert!(text.contains("although there should be one") && text.contains("no neighbour has announced it"), "{text}");
}

#[test]
fn an_address_of_this_node_that_the_host_does_not_have_is_not_expected_to_be_delivered_here() {
    let mut plan = Plan::new(Arc::new(config(&["--node-routes=api", "--enable-ipv6"])), BOTH);
    let mut own = node("192.0.2.1 2001:db8::1 192.0.2.77", "10.244.1.0/24 fd00:10:244:1::/64");
    let external = |text| NodeAddress { kind: NodeAddressKind::External, address: address(text) };
    own.addresses.extend(["203.0.113.9", "2001:db8:9::9"].map(external));
    plan.update(&world(host("192.0.2.1/24 2001:db8::1/64"), &[("node-1", own)]));
    assert_eq!(meant(&plan, "192.0.2.77").owner, Owner::ThisNode, "an InternalIP that is on no link is a mistake");
    for to in ["203.0.113.9", "2001:db8:9::9"] {
        let way = meant(&plan, to);
        assert_eq!(way.owner, Owner::ThisNodeOutside);
        assert_eq!(
            lines(&way).first().map(String::as_str),
            Some("route: none of ours: the kernel's own decide"),
            "{to}"
        );
        assert_eq!(differences(&way), Vec::<String>::new());
        let served = Way { is_served: true, ..way };
        assert_eq!(text::owner(&served), "an address of Services, delivered on this node");
    }
}

#[test]
fn addresses_of_this_node_of_its_pods_and_of_others_are_told_apart() {
    let plan = plan(&[]);
    for (to, owner, line) in [
        ("192.0.2.1", Owner::ThisNode, "route: delivered on this node"),
        ("2001:db8::1", Owner::ThisNode, "route: delivered on this node"),
        (
            "10.244.1.7",
            Owner::OwnPods(prefix("10.244.1.0/24")),
            "route: none of ours is needed: the CNI plugin's links lead there",
        ),
        ("198.51.100.3", Owner::Node("node-3".into()), "route: none of ours: the kernel's own decide"),
        ("203.0.113.7", Owner::Other, "route: none of ours: the kernel's own decide"),
        ("2001:db8:99::7", Owner::Other, "route: none of ours: the kernel's own decide"),
    ] {
        let way = meant(&plan, to);
        assert_eq!(way.owner, owner);
        assert_eq!(lines(&way).first().map(String::as_str), Some(line), "{to}");
    }
    // Where node ports are served it is this node's address all the same.
    for (to, owner) in
        [("192.0.2.1", "an address of this node"), ("10.96.0.9", "an address of Services, delivered on this node")]
    {
        let served = Way { is_served: true, ..meant(&plan, to) };
        assert_eq!(text::owner(&served), owner);
        assert_eq!(lines(&served).first().map(String::as_str), Some("route: delivered on this node"));
        let wrong = "packets of this node: they are not delivered here, as they are to be";
        assert!(differences(&served).contains(&wrong.to_owned()), "the kernel forwards them");
    }
    assert_eq!(meant(&plan, "203.0.113.7").masquerade, Masquerade::ToOutside);
    assert_eq!(meant(&plan, "2001:db8:99::7").masquerade, Masquerade::ToOutside);
    let off = self::plan(&["--enable-pod-egress=false"]);
    assert_eq!(meant(&off, "203.0.113.7").masquerade, Masquerade::Off);
}

#[test]
fn where_the_kernel_goes_another_way_it_is_said_whose_route_decides() {
    let plan = plan(&[]);
    let good = meant(&plan, "10.244.2.7");
    assert_eq!(differences(&good), Vec::<String>::new());
    let kernel = |change: &dyn Fn(&mut Taken)| {
        let mut way = good.clone();
        let mut taken = way.kernel.clone().expect("it was looked up");
        change(&mut taken);
        (way.kernel, way.kernel_of_pods) = (Ok(taken), Ok(None));
        differences(&way)
    };
    let narrower = kernel(&|taken| {
        taken.decided_by = Some((RouteKey::new(TABLE_MAIN, prefix("10.244.2.0/25")), 4));
    });
    assert_eq!(
        narrower,
        ["packets of this node: the route 10.244.2.0/25 of an administrator (static) decides, and not 10.244.2.0/24"]
    );
    let elsewhere = kernel(&|taken| taken.gateway = Some(address("192.0.2.99")));
    assert_eq!(elsewhere, ["packets of this node: they go via 192.0.2.99 dev eth0, and not via 192.0.2.2 dev eth0"]);
    assert_eq!(kernel(&|taken| taken.fate = Fate::Refused), ["packets of this node: the kernel refuses them"]);
    assert_eq!(kernel(&|taken| taken.fate = Fate::Local), ["packets of this node: the kernel delivers them here"]);

    let mut own = meant(&plan, "192.0.2.1");
    own.kernel_of_pods = Ok(None);
    let wrong = differences(&own);
    assert_eq!(wrong, ["packets of this node: they are not delivered here, as they are to be"]);
    if let Ok(taken) = &mut own.kernel {
        taken.fate = Fate::Local;
    }
    assert_eq!(differences(&own), Vec::<String>::new());
}

/// A route of ours to more than the range of the address.
fn by_wider_route(plan: &Plan, to: &str, wider: &str) -> Way {
    let mut way = meant(plan, to);
    let mut planned = meant(plan, "10.244.2.7").planned.expect("it has a route");
    planned.key = RouteKey::new(TABLE_MAIN, prefix(wider));
    way.why_none = why_none(plan, &way.owner, way.address, Some(&planned));
    (way.kernel, way.kernel_of_pods) = (Ok(taken(Some(&planned))), Ok(None));
    way.planned = Some(planned);
    way
}

#[test]
fn beside_a_wider_route_it_is_said_why_a_pod_range_has_none_of_its_own() {
    let without = plan(&["--enable-overlay=false"]);
    let way = by_wider_route(&without, "10.244.3.7", "10.244.0.0/16");
    let text = said(&way);
    assert!(text.starts_with("route: 10.244.0.0/16 via 192.0.2.2 dev eth0\n"), "{text}");
    assert!(text.contains("no narrower route: 10.244.3.0/24 was learned and is not used: the node"), "{text}");
    let ways = Ways { authority: Authority::Complete, pod: None, ways: vec![(way, Origin::default())] };
    let answer: Value = serde_json::from_str(&json(&ways)).expect("JSON");
    assert_eq!(answer["ways"][0]["noRoute"].as_array().map(Vec::len), Some(1));
    // The range itself is enough, and nobody else's address has to have a route.
    assert_eq!(by_wider_route(&without, "10.244.3.7", "10.244.3.0/24").why_none, Vec::<String>::new());
    for to in ["203.0.113.7", "10.244.1.7"] {
        assert_eq!(by_wider_route(&without, to, "0.0.0.0/0").why_none, Vec::<String>::new(), "{to}");
    }
}

#[test]
fn a_network_of_a_link_inside_of_a_wider_route_is_no_difference_and_one_of_other_pods_is() {
    let plan = plan(&[]);
    let with_link = |to: &str, wider: &str, link: &str, by: u8| {
        let mut way = by_wider_route(&plan, to, wider);
        let link = (RouteKey::new(TABLE_MAIN, prefix(link)), by);
        let Ok(taken) = &mut way.kernel else { panic!("it was looked up") };
        (taken.decided_by, taken.gateway, taken.link) = (Some(link), None, Some(LinkName("kube-bridge".into())));
        differences(&way)
    };
    assert_eq!(with_link("10.244.1.7", "10.244.0.0/16", "10.244.1.0/24", 2), Vec::<String>::new());
    assert_eq!(with_link("192.0.2.77", "192.0.0.0/16", "192.0.2.0/24", 2), Vec::<String>::new());
    for differing in [
        with_link("10.244.1.7", "10.244.0.0/16", "10.244.1.0/24", 4),
        with_link("10.244.1.7", "10.244.1.0/24", "10.244.1.0/24", 2),
        with_link("10.244.3.7", "10.244.0.0/16", "10.244.3.0/24", 2),
    ] {
        assert_eq!(differing.len(), 1, "{differing:?}");
    }
}

#[test]
fn packets_that_do_not_leave_are_not_masqueraded() {
    let plan = plan(&[]);
    let with_fate = |to: &str, fate| {
        let mut way = meant(&plan, to);
        for taken in [way.kernel.as_mut().ok(), way.kernel_of_pods.as_mut().ok().and_then(Option::as_mut)] {
            taken.expect("it was looked up").fate = fate;
        }
        text::masquerade(&way)
    };
    let here = Some((false, "it is delivered here".to_owned()));
    assert_eq!(with_fate("203.0.113.7", Fate::Local), here);
    assert_eq!(with_fate("192.0.2.1", Fate::Forwarded), here);
    assert_eq!(with_fate("203.0.113.7", Fate::Refused), None);
    assert_eq!(with_fate("203.0.113.7", Fate::RefusedOrMartian), None);
    assert!(with_fate("203.0.113.7", Fate::Forwarded).is_some_and(|(is, _)| is));
}

#[test]
fn a_way_that_cannot_be_looked_up_and_a_smaller_path_are_said() {
    let plan = plan(&[]);
    let mut way = meant(&plan, "10.244.3.7");
    way.kernel = Err("no permission".to_owned());
    way.kernel_of_pods = Err("no permission".to_owned());
    let text = said(&way);
    assert!(text.contains("kernel: cannot be asked: no permission"), "{text}");
    assert!(text.contains("MTU: 1480 bytes: the tunnel is to have it: 1500 of this node's link less 20"), "{text}");
    let mut way = meant(&plan, "10.244.3.7");
    if let Ok(taken) = &mut way.kernel {
        taken.path_mtu = Some(1400);
    }
    assert!(said(&way).contains("MTU: 1400 bytes: the kernel has been told so of the path"), "{}", said(&way));
}

#[test]
fn json_has_the_same_and_each_line_of_the_text() {
    let plan = plan(&[]);
    let way = meant(&plan, "10.244.3.7");
    let text = lines(&way);
    let ways = Ways { authority: Authority::Complete, pod: None, ways: vec![(way, Origin::default())] };
    let answer: Value = serde_json::from_str(&json(&ways)).expect("JSON");
    let way = &answer["ways"][0];
    assert_eq!((way["owner"].as_str(), way["node"].as_str()), (Some("podsOfNode"), Some("node-3")));
    assert_eq!(way["route"]["prefix"], "10.244.3.0/24");
    let tunnel = &way["route"]["nextHops"][0]["tunnel"];
    assert_eq!((tunnel["encapsulation"].as_str(), tunnel["overhead"].as_u64()), (Some("ipip"), Some(20)));
    assert_eq!((tunnel["remote"].as_str(), tunnel["mtu"].as_u64()), (Some("198.51.100.3"), Some(1480)));
    assert_eq!(way["mtu"]["bytes"], 1480);
    assert_eq!(way["masqueraded"]["fromPods"], false);
    assert_eq!(way["kernel"]["ofNode"]["fate"], "forwarded");
    assert_eq!(way["text"].as_array().map(Vec::len), Some(text.len()));
}

#[test]
fn a_pod_is_found_by_its_name_and_what_cannot_be_asked_gets_a_sentence() {
    let mut pods: Table<ObjectName, Pod> = Table::default();
    let parse = |word: &str| Destination::parse(word);
    let refused = |word: &str, pods: &Table<ObjectName, Pod>| {
        parse(word).and_then(|asked| asked.addresses(pods)).expect_err("there is none").to_string()
    };
    assert!(refused("shop/web", &pods).contains("pods are known only where the firewall runs"));
    let pod = |addresses: &[&str], finished| Pod {
        uid: None,
        labels: Labels::default(),
        addresses: addresses.iter().map(|text| address(text)).collect(),
        node: Some("node-2".into()),
        host_network: false,
        finished,
        ports: [].into_iter().collect(),
    };
    pods.insert(ObjectName::new("shop", "web"), pod(&["10.244.2.7", "fd00:10:244:2::7"], false));
    pods.insert(ObjectName::new("shop", "new"), pod(&[], false));
    pods.insert(ObjectName::new("shop", "done"), pod(&["10.244.2.9"], true));
    let (found, addresses) = parse("shop/web").and_then(|asked| asked.addresses(&pods)).expect("it is there");
    assert_eq!((found.map(|(name, _)| name.to_string()).as_deref(), addresses.len()), (Some("shop/web"), 2));
    assert_eq!(refused("shop/none", &pods), "there is no pod shop/none");
    assert!(refused("shop/new", &pods).contains("has no address yet"));
    assert!(refused("shop/done", &pods).contains("has finished"));
    for odd in ["", "web", "/", "shop/", "10.244.2.0/24", "a/b/c"] {
        let error = parse(odd).map(|asked| asked.addresses(&pods).map(|_| ()));
        assert!(!matches!(error, Ok(Ok(()))), "{odd}");
    }
    for (word, expected) in
        [("10.244.2.7", "10.244.2.7"), ("[fd00::7]", "fd00::7"), ("::ffff:10.244.2.7", "10.244.2.7")]
    {
        assert_eq!(parse(word), Ok(Destination::Address(address(expected))));
    }
}
