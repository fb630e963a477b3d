//! `--node-ip-autodetect` by whole agents: nodes with two links, whose Nodes have the InternalIP of the wrong one.

use std::thread;
use std::time::{Duration, Instant};

use super::{Cluster, annotated};
use crate::namespace::{in_new, run};

/// Addresses of a node on a second network.
fn behind(host: usize) -> [String; 2] {
    [format!("198.51.100.{host}/24 dev eth1"), format!("2001:db8:1::{host}/64 dev eth1 nodad")]
}

fn connect_again(cluster: &Cluster, number: usize) {
    let name = cluster.name(number);
    run(&format!("ip link add back{number} type veth peer name eth1 netns {name}"));
    run(&format!("ip link set back{number} master back up"));
    // With the first address of a network the kernel deletes the others, unless it is told otherwise.
    for setting in ["net.ipv6.conf.eth1.accept_dad=0", "net.ipv4.conf.eth1.promote_secondaries=1"] {
        run(&format!("ip netns exec {name} sysctl -qw {setting}"));
    }
    run(&format!("ip -n {name} link set eth1 up"));
    for address in behind(number) {
        run(&format!("ip -n {name} address add {address}"));
    }
}

fn told(number: usize, host: usize) -> String {
    annotated(number, &[("kube-router.io/node-address", &format!("198.51.100.{host},2001:db8:1::{host}"))])
}

/// The routes to the pods of a node by its addresses on the second network.
fn ways(number: usize, host: usize) -> [String; 2] {
    [format!("10.244.{number}.0/24 via 198.51.100.{host}"), format!("fd00:10:244:{number}::/64 via 2001:db8:1::{host}")]
}

fn until(cluster: &Cluster, number: usize, wanted: &[String; 2]) {
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    cluster.until(number, &wanted);
}

/// Both ends of the established sessions of a node, without ports.
fn sessions(cluster: &Cluster, number: usize) -> Vec<(String, String)> {
    let name = cluster.name(number);
    let established = ["tcp", "tcp6"].map(|file| run(&format!("ip netns exec {name} cat /proc/net/{file}"))).concat();
    let end = |text: &str| text.split_once(':').map(|(address, _)| address.to_owned()).unwrap_or_default();
    let session = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words.get(3) == Some(&"01")).then(|| (end(words[1]), end(words[2])))
    };
    established.lines().filter_map(session).collect()
}

/// An address as `/proc/net/tcp` writes it.
fn written(host: u8) -> String {
    format!("{:08X}", u32::from_le_bytes([198, 51, 100, host]))
}

fn until_session(cluster: &Cluster, ours: u8, theirs: u8) {
    let deadline = Instant::now() + Duration::from_secs(30);
    let wanted = (written(ours), written(theirs));
    while !sessions(cluster, 1).contains(&wanted) {
        assert!(Instant::now() < deadline, "{:?}, not {wanted:?}\n{}", sessions(cluster, 1), cluster.log(1));
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn routes_and_sessions_go_over_the_link_that_is_asked_for_and_follow_its_addresses() {
    in_new(|| {
        let mut cluster = Cluster::new(2);
        run("ip link add back type bridge");
        run("ip link set back up");
        for number in 1..=2 {
            connect_again(&cluster, number);
        }
        cluster.flags.insert(1, vec!["--node-ip-autodetect=interface=eth1".to_owned()]);
        cluster.flags.insert(2, vec!["--node-ip-autodetect=cidr=198.51.100.0/24,2001:db8:1::/64".to_owned()]);
        cluster.write(&[told(1, 1), told(2, 2)]);
        cluster.start(1);
        cluster.start(2);
        until(&cluster, 1, &ways(2, 2));
        until(&cluster, 2, &ways(1, 1));
        until_session(&cluster, 1, 2);
        let name = cluster.name(1);
        for pod in ["10.244.2.5", "fd00:10:244:2::5"] {
            let way = run(&format!("ip -n {name} route get {pod}"));
            assert!(way.contains("dev eth1"), "{way}");
        }
        cluster.without_losing_a_packet(1, 2, |_| thread::sleep(Duration::from_millis(300)));

        // Node 2 gets other addresses on that link; whoever writes the manifests follows.
        let name = cluster.name(2);
        for address in behind(12) {
            run(&format!("ip -n {name} address add {address}"));
        }
        for address in behind(2) {
            run(&format!("ip -n {name} address delete {}", address.trim_end_matches(" nodad")));
        }
        cluster.until_said(2, "address=198.51.100.12 ", 1);
        cluster.until_said(2, "address=2001:db8:1::12 ", 1);
        cluster.write(&[told(1, 1), told(2, 12)]);
        until(&cluster, 1, &ways(2, 12));
        until(&cluster, 2, &ways(1, 1));
        until_session(&cluster, 1, 12);

        // With the link its addresses stay known and in use while they are there, which is trouble.
        run(&format!("ip -n {name} link set eth1 down"));
        cluster.until_said(2, "198.51.100.12, which it found before, stays in use while the host has it", 1);
        run(&format!("ip -n {name} link set eth1 up"));
        run(&format!("ip -n {name} address replace 2001:db8:1::12/64 dev eth1 nodad"));
        until(&cluster, 1, &ways(2, 12));
        until(&cluster, 2, &ways(1, 1));

        // Without the flag and the annotation the InternalIP counts again.
        for number in 1..=2 {
            cluster.terminate(number);
        }
        cluster.flags.clear();
        cluster.write(&[super::node(1), super::node(2)]);
        cluster.start(1);
        cluster.start(2);
        cluster.until(1, &super::OF_2);
        cluster.until(2, &super::OF_1);
    });
}

#[test]
fn the_source_towards_a_destination_follows_the_routes_of_the_host() {
    in_new(|| {
        let mut cluster = Cluster::new(1);
        run("ip link add back type bridge");
        run("ip link set back up");
        connect_again(&cluster, 1);
        let name = cluster.name(1);
        let route = |network: &str, link: &str| {
            let via = if link == "eth0" { "192.0.2.254" } else { "198.51.100.254" };
            run(&format!("ip -n {name} route replace {network} via {via}"));
        };
        route("203.0.113.0/24", "eth1");
        cluster.flags.insert(1, vec!["--node-ip-autodetect=can-reach=203.0.113.1,2001:db8:1::254".to_owned()]);
        cluster.start(1);
        cluster.until_said(1, "address=198.51.100.1 ", 1);
        cluster.until_said(1, "address=2001:db8:1::1 ", 1);
        route("203.0.113.0/24", "eth0");
        cluster.until_said(1, "address=192.0.2.1 ", 1);
        // The link goes, and what it had is gone with it: the InternalIP is used.
        run(&format!("ip -n {name} link delete eth1"));
        cluster.until_said(1, "finds no IPv6 address of this host; other nodes route to the InternalIP", 1);
    });
}
