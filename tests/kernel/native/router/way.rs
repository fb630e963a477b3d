//! `sluice route`: what whole agents answer beside what the kernel does, in both families, with and without tunnels.

use std::net::IpAddr;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde_json::Value;
use sluice::kernel::route::{Fate, Lookup};

use super::{Cluster, OF_2};
use crate::namespace::{in_new, run};

/// Runs `sluice route`; its exit code, and all that it printed.
fn printed(cluster: &Cluster, what: &str, output: &str) -> (i32, String) {
    let socket = format!("--socket={}", cluster.file("socket", 1).display());
    let asked = Command::new(env!("CARGO_BIN_EXE_sluice")).args(["route", what, "-o", output, &socket]).output();
    let asked = asked.expect("the program");
    let text = String::from_utf8_lossy(&asked.stdout).into_owned() + &String::from_utf8_lossy(&asked.stderr);
    (asked.status.code().unwrap_or(-1), text)
}

/// The answer about one address.
fn way(cluster: &Cluster, to: &str) -> Value {
    let (code, text) = printed(cluster, to, "json");
    assert_eq!(code, 0, "{text}\n{}", cluster.log(1));
    let mut answer: Value = serde_json::from_str(&text).expect("JSON");
    let ways = answer["way"]["ways"].as_array_mut().expect("ways");
    assert_eq!(ways.len(), 1, "{text}");
    ways.remove(0)
}

/// Asks until something is so: a mirror is read, and a device of the bridge has a carrier, a moment later.
fn until(cluster: &Cluster, to: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let way = way(cluster, to);
        if is_so(&way) {
            return way;
        }
        assert!(Instant::now() < deadline, "{to} is not so: {what}\n{way:#}\n{}", cluster.log(1));
        thread::sleep(Duration::from_millis(50));
    }
}

fn word<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn has_no_differences(way: &Value) -> bool {
    way["differences"].as_array().is_some_and(Vec::is_empty)
}

/// Two nodes with these flags, of which the first can be asked and has a pod on its bridge.
fn cluster(flags: &[&str]) -> Cluster {
    let mut cluster = Cluster::new(2);
    for number in 1..=2 {
        let socket = format!("--socket={}", cluster.file("socket", number).display());
        let flags = flags.iter().map(|flag| (*flag).to_owned()).chain([socket]).collect();
        cluster.flags.insert(number, flags);
        cluster.start(number);
    }
    cluster
}

const PODS: [(&str, &str, &str); 2] =
    [("10.244.2.5", "10.244.2.0/24", "192.0.2.2"), ("fd00:10:244:2::5", "fd00:10:244:2::/64", "2001:db8::2")];

#[test]
fn the_way_to_pods_of_a_neighbour_is_the_kernels_and_another_programs_route_is_named() {
    in_new(|| {
        let cluster = cluster(&[]);
        cluster.until(1, &OF_2);
        let node = cluster.name(1);
        let _pod = cluster.attach_pod(1);
        for (to, range, gateway) in PODS {
            let is_all = |way: &Value| has_no_differences(way) && word(way, "/kernel/ofPods/fate") == "forwarded";
            let way = until(&cluster, to, "both lookups agree with the plan", is_all);
            assert_eq!((word(&way, "/owner"), word(&way, "/node")), ("podsOfNode", "node-2"));
            assert_eq!((word(&way, "/podRange"), word(&way, "/route/prefix")), (range, range));
            assert!(word(&way, "/route/from/0").contains("(Node node-2): best; accepted by import policy"), "{way:#}");
            assert_eq!(word(&way, "/route/kernel/standing"), "inPlace");
            assert_eq!(word(&way, "/route/nextHops/0/gateway"), gateway);
            for whose in ["ofNode", "ofPods"] {
                let taken = &way["kernel"][whose];
                assert_eq!((word(taken, "/gateway"), word(taken, "/link")), (gateway, "eth0"), "{whose}: {way:#}");
                assert_eq!((word(taken, "/prefix"), taken["protocol"].as_u64()), (range, Some(17)), "{whose}");
            }
            assert_eq!(way["mtu"]["bytes"], 1500);
            assert_eq!(way["masqueraded"]["fromPods"], false);
        }

        // Another program's narrower route takes packets away from ours, and nobody but the kernel knows of it.
        run(&format!("ip -n {node} route add 10.244.2.0/25 via 192.0.2.99 proto static"));
        run(&format!("ip -n {node} -6 route add fd00:10:244:2::/80 via 2001:db8::99 proto static"));
        for (to, range, _) in PODS {
            let way = way(&cluster, to);
            let difference = word(&way, "/differences/0");
            assert!(difference.starts_with("packets of this node: the route "), "{way:#}");
            assert!(difference.ends_with(&format!("of an administrator (static) decides, and not {range}")), "{way:#}");
            let (_, text) = printed(&cluster, to, "text");
            assert!(text.contains("\n  differs from the plan: packets of this node: the route "), "{text}");
        }
    });
}

#[test]
fn addresses_of_the_node_of_its_pods_outside_and_of_services_are_told_with_the_router_alone() {
    in_new(|| {
        let cluster = cluster(&[]);
        cluster.until(1, &OF_2);
        let node = cluster.name(1);
        let _pod = cluster.attach_pod(1);
        for own in ["192.0.2.1", "2001:db8::1"] {
            let way = way(&cluster, own);
            assert_eq!((word(&way, "/owner"), word(&way, "/kernel/ofNode/fate")), ("thisNode", "local"), "{way:#}");
            assert!(has_no_differences(&way), "{way:#}");
        }
        for (own, range) in [("10.244.1.9", "10.244.1.0/24"), ("fd00:10:244:1::9", "fd00:10:244:1::/64")] {
            let is_there = |way: &Value| word(way, "/kernel/ofNode/link") == "kube-bridge";
            let way = until(&cluster, own, "the bridge leads there", is_there);
            assert_eq!((word(&way, "/owner"), word(&way, "/podRange")), ("ownPods", range));
            assert!(way["route"].is_null() && has_no_differences(&way), "{way:#}");
        }
        // Without a default route nothing leads outside.
        for (outside, gateway) in [("203.0.113.7", "192.0.2.254"), ("2001:db8:113::7", "2001:db8::fe")] {
            let refused = way(&cluster, outside);
            assert_eq!((word(&refused, "/owner"), word(&refused, "/kernel/ofNode/fate")), ("other", "refused"));
            run(&format!("ip -n {node} route add default via {gateway}"));
            let way = way(&cluster, outside);
            assert_eq!(
                (word(&way, "/kernel/ofNode/gateway"), word(&way, "/kernel/ofPods/gateway")),
                (gateway, gateway)
            );
            assert_eq!((&way["masqueraded"]["fromPods"], has_no_differences(&way)), (&Value::Bool(true), true));
        }
        // The router knows no Services: where nobody serves it, a Service's address is one like others.
        let (code, text) = printed(&cluster, "10.96.0.9", "json");
        let answer: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(
            (code, &answer["service"], word(&answer, "/way/ways/0/owner")),
            (0, &Value::Null, "other"),
            "{text}"
        );
        for (word, why) in [
            ("shop/web", "there is no pod shop/web that this node knows: pods are known only where the firewall runs"),
            ("10.244.2.0/24", "there is no pod 10.244.2.0/24"),
            ("web", "\"web\" must be NAMESPACE/POD or an address"),
        ] {
            let (code, text) = printed(&cluster, word, "text");
            assert_eq!(code, 1, "{text}");
            assert!(text.contains(why), "{text}");
        }
    });
}

#[test]
fn a_tunnel_is_told_with_its_ends_and_the_size_that_the_kernel_lets_through() {
    in_new(|| {
        let cluster = cluster(&["--enable-overlay", "--overlay-type=full", "--overlay-encap=vxlan"]);
        // With the bridge.
        cluster.until_said(1, "First sync of the router finished", 1);
        let _pod = cluster.attach_pod(1);
        for ((to, range, remote), (local, fits, link)) in
            PODS.into_iter().zip([("192.0.2.1", 1450, "sluice-vxlan4"), ("2001:db8::1", 1430, "sluice-vxlan6")])
        {
            let is_all = |way: &Value| {
                !way["route"].is_null() && has_no_differences(way) && word(way, "/kernel/ofPods/fate") == "forwarded"
            };
            let way = until(&cluster, to, "the tunnel is there, and the kernel uses it", is_all);
            assert_eq!(word(&way, "/route/prefix"), range);
            let tunnel = &way["route"]["nextHops"][0]["tunnel"];
            let ends = (word(tunnel, "/local"), word(tunnel, "/remote"), word(tunnel, "/encapsulation"));
            assert_eq!(ends, (local, remote, "vxlan"), "{way:#}");
            assert_eq!((&tunnel["inPlace"], tunnel["mtu"].as_u64()), (&Value::Bool(true), Some(fits)));
            assert_eq!((word(&way, "/kernel/ofNode/link"), word(&way, "/kernel/ofNode/source")), (link, local));
            assert_eq!((&way["mtu"]["bytes"], way["kernel"]["ofNode"]["linkMtu"].as_u64()), (&fits.into(), Some(fits)));
        }
        // Pods answer the other node itself through the tunnel, by a rule; this node's own packets go over the link.
        for (remote, link) in [("192.0.2.2", "sluice-vxlan4"), ("2001:db8::2", "sluice-vxlan6")] {
            let is_all = |way: &Value| has_no_differences(way) && word(way, "/kernel/ofPods/link") == link;
            let way = until(&cluster, remote, "pods take the tunnel", is_all);
            assert_eq!((word(&way, "/owner"), word(&way, "/kernel/ofNode/link")), ("node", "eth0"), "{way:#}");
            assert_eq!(way["routeOfPods"]["table"], 77);
        }
    });
}

/// A link with routes behind it, and a bridge with the network of pods.
fn two_links() {
    run("ip link add one type veth peer name far");
    run("ip link add pods type bridge");
    run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.pods.accept_dad=0");
    run("ip link add pod type veth peer name inside");
    for command in [
        "link set lo up",
        "link set one up mtu 1400",
        "link set far up",
        "link set pods up",
        "link set pod master pods up",
        "link set inside up",
        "address add 192.0.2.1/24 dev one",
        "address add 2001:db8::1/64 dev one nodad",
        "address add 10.244.1.1/24 dev pods",
        "address add fd00:10:244:1::1/64 dev pods nodad",
        "route add 203.0.113.0/25 via 192.0.2.9 mtu 1300 proto 17",
        "route add blackhole 203.0.113.128/26",
        "-6 route add 2001:db8:113::/64 via 2001:db8::9 mtu 1300 proto 17",
        "-6 route add unreachable 2001:db8:113:2::/64",
    ] {
        run(&format!("ip {command}"));
    }
}

#[test]
fn a_lookup_names_the_link_the_route_and_the_size_of_a_packet_of_the_host_and_of_one_that_it_forwards() {
    in_new(|| {
        two_links();
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let mut lookup = Lookup::open().expect("a socket");
        for (to, gateway, source, prefix, pod, range) in [
            ("203.0.113.1", "192.0.2.9", "192.0.2.1", "203.0.113.0/25", "10.244.1.7", "10.244.1.0/24"),
            (
                "2001:db8:113::1",
                "2001:db8::9",
                "2001:db8::1",
                "2001:db8:113::/64",
                "fd00:10:244:1::7",
                "fd00:10:244:1::/64",
            ),
        ] {
            let range: IpNet = range.parse().expect("a range");
            // The kernel takes a moment to notice that there is a carrier.
            let deadline = Instant::now() + Duration::from_secs(10);
            let leads = |lookup: &mut Lookup| {
                let own = lookup.taken(address(to)).is_ok_and(|taken| taken.fate == Fate::Forwarded);
                let of_pod = lookup.taken_from_network(address(to), (address(pod), range));
                own && matches!(of_pod, Ok(Some(taken)) if taken.fate == Fate::Forwarded)
            };
            while !leads(&mut lookup) {
                assert!(Instant::now() < deadline, "{to}: the kernel has no way");
                thread::sleep(Duration::from_millis(20));
            }
            let taken = lookup.taken(address(to)).expect("the kernel answers");
            let (key, protocol) = taken.decided_by.clone().expect("a route decided");
            assert_eq!((key.destination.to_string().as_str(), protocol), (prefix, 17));
            assert_eq!(
                (taken.fate, taken.gateway, taken.source),
                (Fate::Forwarded, Some(address(gateway)), Some(address(source)))
            );
            assert_eq!((taken.link_mtu, taken.path_mtu), (Some(1400), Some(1300)), "{taken:?}");
            let of_pod = lookup.taken_from_network(address(to), (address(pod), range)).expect("the kernel answers");
            let of_pod = of_pod.expect("the bridge leads to the pods");
            assert_eq!((of_pod.fate, of_pod.link, of_pod.gateway), (Fate::Forwarded, taken.link, taken.gateway));
            let nobodys = ("10.9.0.0/16", "fd00:9::/64");
            let nobodys: IpNet = if to.contains(':') { nobodys.1 } else { nobodys.0 }.parse().expect("a range");
            let other = lookup.taken_from_network(address(to), (nobodys.addr(), nobodys)).expect("the kernel answers");
            assert_eq!(other, None, "no link leads there");
        }
        for (to, fate) in [
            ("203.0.113.129", Fate::Refused),
            ("198.51.100.1", Fate::Refused),
            ("2001:db8:113:2::1", Fate::Refused),
            ("2001:db8:ffff::1", Fate::Refused),
            ("192.0.2.1", Fate::Local),
            ("2001:db8::1", Fate::Local),
        ] {
            assert_eq!(lookup.taken(address(to)).expect("the kernel answers").fate, fate, "{to}");
        }
    });
}
