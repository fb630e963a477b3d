//! A cluster that changes from one encapsulation to another, node by node (`--overlay-encap-receive`): for a kernel with `ipip`, `fou`, `vxlan` and `wireguard`.

use crate::namespace::{attempt, in_new, run};
use crate::native::router::Cluster;
use crate::wireguard::{node, peers_of, until};

const SYNCED: &str = "First sync of the router finished";
/// Destinations among the pods of each of the two nodes.
const PODS: [[&str; 2]; 2] = [["10.244.1.5", "fd00:10:244:1::5"], ["10.244.2.5", "fd00:10:244:2::5"]];

/// The beginning of the names of devices that routes lead through.
fn device(kind: &str) -> &'static str {
    match kind {
        "vxlan" => "dev sluice-vxlan",
        "wireguard" => "dev sluice-wg0",
        _ => "dev tun-",
    }
}

fn flags(sent: &str, received: &str, source: &str) -> Vec<String> {
    let fixed = ["--enable-overlay", "--overlay-type=full", "--routes-sync-period=2s"].map(str::to_owned);
    let encapsulation = [format!("--overlay-encap={sent}"), format!("--overlay-encap-receive={received}")];
    fixed.into_iter().chain(encapsulation).chain([format!("--node-routes={source}")]).collect()
}

/// Waits until the routes of a node to the pods of the other one lead through a kind of tunnels.
fn until_sent_by(cluster: &Cluster, number: usize, kind: &str) {
    let name = cluster.name(number);
    until(&format!("node {number} by {kind}"), cluster, || {
        let is_led = |pod: &&str| attempt(&format!("ip -n {name} route get {pod}")).1.contains(device(kind));
        let has_port = kind != "fou" || run(&format!("ip -n {name} -d link show")).contains("encap gue");
        PODS.get(2 - number).into_iter().flatten().all(is_led) && has_port
    });
}

/// Pods of node 2 reach those of node 1 in both families, however each node sends.
fn reach(cluster: &Cluster, what: &str) {
    for pod in PODS[0] {
        let name = cluster.name(2);
        let found = attempt(&format!("ip netns exec {name} ping -c 3 -i 0.2 -W 2 {pod}")).1;
        let shown = |number: usize| {
            let inside = format!("ip netns exec {}", cluster.name(number));
            let of = |command: &str| attempt(&format!("{inside} {command}")).1;
            let looks = [
                "sysctl -ar \\.rp_filter",
                "nstat -az TcpExtIPReversePathFilter",
                "ip route show table all",
                "ip -d -s link",
            ];
            looks.map(of).join("\n")
        };
        assert!(found.contains(" 0% packet loss"), "{what}: {found}\n{}\n{}", shown(1), shown(2));
    }
}

/// Starts the agent of a node with other flags in the place of the one before.
fn step(cluster: &mut Cluster, number: usize, [sent, received, source]: [&str; 3]) {
    let before = cluster.log(number).matches(SYNCED).count();
    cluster.flags.insert(number, flags(sent, received, source));
    cluster.kill(number);
    cluster.start(number);
    cluster.until_said(number, SYNCED, before + 1);
    until_sent_by(cluster, number, sent);
}

/// Both nodes know each other's keys.
fn tell_keys(cluster: &Cluster) {
    for number in 1..=2 {
        cluster.until_said(number, "Public key of this node for WireGuard", 1);
    }
    cluster.write(&[node(cluster, 1), node(cluster, 2)]);
    until("peers", cluster, || (1..=2).all(|number| peers_of(cluster, number).len() == 1));
}

fn changes(from: &str, to: &str, source: &str) {
    let mut cluster = Cluster::new(2);
    for number in 1..=2 {
        let name = cluster.name(number);
        // Strict filtering on all links that will be, and on all others of one node, as hosts have it; the other one is as direct server return leaves it.
        run(&format!(
            "ip netns exec {name} sysctl -qw net.ipv4.conf.default.rp_filter=1 net.ipv4.conf.all.rp_filter={number}"
        ));
        cluster.flags.insert(number, flags(from, "", source));
        cluster.start(number);
    }
    if from == "wireguard" {
        tell_keys(&cluster);
    }
    (1..=2).for_each(|number| until_sent_by(&cluster, number, from));
    (1..=2).for_each(|number| cluster.until_said(number, SYNCED, 1));
    until("pods", &cluster, || {
        let name = cluster.name(1);
        let reaches = |pod: &&str| attempt(&format!("ip netns exec {name} ping -c 1 -W 1 {pod}")).0;
        PODS[1].iter().all(reaches)
    });
    cluster.without_losing_one_of([2, 1], "0.1", |cluster| {
        for number in 1..=2 {
            step(cluster, number, [from, to, source]);
        }
        if to == "wireguard" {
            tell_keys(cluster);
        }
        // A restart finds everything in place.
        step(cluster, 1, [from, to, source]);
        let log = cluster.log(1);
        let last = log.lines().rfind(|line| line.contains(SYNCED)).expect("it has said so");
        assert!(last.contains("steps=0"), "{log}");
        let links = |cluster: &Cluster| {
            let listed = run(&format!("ip -n {} -o link show", cluster.name(1)));
            let ours = listed.lines().filter(|line| line.contains("tun-") || line.contains("sluice-"));
            ours.filter_map(|line| line.split(['@', '<']).next()).map(str::to_owned).collect::<Vec<_>>()
        };
        let before = links(cluster);
        for number in 1..=2 {
            step(cluster, number, [to, from, source]);
            reach(cluster, &format!("nodes up to {number} send by {to}"));
        }
        assert_eq!(links(cluster), before, "no device is made anew");
        for number in 1..=2 {
            step(cluster, number, [to, "", source]);
        }
    });
    let name = cluster.name(1);
    until("the former devices are gone", &cluster, || {
        let links = run(&format!("ip -n {name} link show"));
        let is_there = |kind: &str| links.contains(device(kind).trim_start_matches("dev "));
        is_there(to) && (device(from) == device(to) || !is_there(from))
    });
    cluster.terminate(1);
    let said = cluster.clean_up(1);
    let links = run(&format!("ip -n {name} link show"));
    assert!(!links.contains("tun-") && !links.contains("sluice-"), "{links}\n{said}");
}

fn in_guest(test: impl FnOnce() + Send) {
    in_new(|| {
        let (made, _, error) = attempt("ip link add probe type ipip local 192.0.2.1 remote 192.0.2.9");
        assert!(made, "this kernel has no module ipip; run this test in the guest of the lab: {error}");
        run("ip link delete probe");
        run("modprobe -a ip6_tunnel fou fou6 vxlan wireguard");
        test();
    });
}

#[test]
fn from_ipip_to_vxlan_no_packet_is_lost() {
    in_guest(|| changes("ipip", "vxlan", "bgp"));
}

#[test]
fn from_ipip_to_fou_no_packet_is_lost() {
    in_guest(|| changes("ipip", "fou", "api"));
}

#[test]
fn from_vxlan_to_wireguard_no_packet_is_lost() {
    in_guest(|| changes("vxlan", "wireguard", "bgp"));
}

#[test]
fn from_wireguard_to_fou_no_packet_is_lost() {
    in_guest(|| changes("wireguard", "fou", "api"));
}

/// As where two agents start one after the other beside another network, whose routes are there still: one of them has the other's routes, which has none yet.
#[test]
fn what_comes_through_a_tunnel_is_taken_before_any_route_of_its_node_is_learned() {
    in_guest(|| {
        let mut cluster = Cluster::new(2);
        let [first, second] = [1, 2].map(|number| cluster.name(number));
        for name in [&first, &second] {
            run(&format!("ip netns exec {name} sysctl -qw net.ipv4.conf.all.rp_filter=2"));
        }
        for command in [
            "link add t4 type ipip local 192.0.2.2 remote 192.0.2.1",
            "link add t6 type ip6tnl mode any local 2001:db8::2 remote 2001:db8::1 encaplimit none",
            "link set t4 up",
            "link set t6 up",
            "route add 10.244.1.0/24 dev t4",
            "route add fd00:10:244:1::/64 dev t6",
        ] {
            run(&format!("ip -n {second} {command}"));
        }
        run(&format!("ip -n {first} route add 10.244.2.0/24 via 192.0.2.2"));
        run(&format!("ip -n {first} route add fd00:10:244:2::/64 via 2001:db8::2"));
        let tunnels = || {
            let listed = run(&format!("ip -n {first} -o link show up"));
            let names = listed.lines().filter_map(|line| line.split('@').next()).filter(|name| name.contains("tun-"));
            names.map(str::to_owned).collect::<Vec<String>>()
        };
        let reached = |cluster: &Cluster| {
            for (from, to) in PODS[1].iter().zip(PODS[0]) {
                let said = attempt(&format!("ip netns exec {second} ping -c 3 -i 0.2 -W 2 -I {from} {to}")).1;
                let shown = || attempt(&format!("ip -n {first} -d -s link")).1;
                assert!(said.contains(" 0% packet loss"), "{said}\n{}\n{}", shown(), cluster.log(1));
            }
        };
        cluster.flags.insert(1, flags("ipip", "", "bgp"));
        cluster.start(1);
        until("its ends of the tunnels", &cluster, || tunnels().len() == 2);
        reached(&cluster);
        let before = tunnels();
        cluster.kill(1);
        cluster.start(1);
        cluster.until_said(1, "Authority changed", 2);
        reached(&cluster);
        assert_eq!(tunnels(), before, "none is made anew");
        let of = |family: &str, table: &str| attempt(&format!("ip -n {first} {family} route show table {table}")).1;
        for routes in ["-4", "-6"].into_iter().flat_map(|family| ["main", "77"].map(|table| of(family, table))) {
            let global = |line: &&str| line.contains("tun-") && !line.starts_with("fe80::");
            assert_eq!(routes.lines().find(global), None, "nothing is sent there");
        }
    });
}
