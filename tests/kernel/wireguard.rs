//! Devices of the type `wireguard`, their peers, and the whole program with `--overlay-encap=wireguard`: for a kernel that has the module.

#![allow(clippy::indexing_slicing, reason = "a test that panics has failed, which is how a test says so")]
#![allow(unsafe_code, reason = "rustix has no protocol number of a packet socket that means all")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use sluice::kernel::link::LinkName;
use sluice::kernel::netlink::in_namespace;
use sluice::kernel::wireguard::{Devices, Peer, PeerKey, Peers, Wireguard};
use sluice::net::{PublicKey, Secret};
use sluice::reconcile::{Phase, Step, Target};

use crate::namespace::{attempt, in_new, own_run, run};
use crate::native::router::{Cluster, passes};

#[path = "wireguard/rotation.rs"]
mod rotation;

const LINK: &str = "sluice-wg0";
const DEVICE: Wireguard = Wireguard { port: 51820, mtu: Some(1420), up: true, has_key: true, is_numbered: true };

fn name() -> LinkName {
    LinkName(LINK.into())
}

fn devices(key: u8) -> Devices {
    let mut devices = Devices::open(|name| name == LINK, true).expect("sockets");
    devices.set_keys(BTreeMap::from([(name(), vec![Secret::private_key([key; 32])])]));
    devices
}

fn peers() -> Peers {
    Peers::open([name()]).expect("sockets")
}

fn key(of: PublicKey) -> PeerKey {
    PeerKey { link: name(), key: of }
}

fn peer(endpoint: &str, allowed: &str) -> Peer {
    let mut allowed: Vec<IpNet> = allowed.split_whitespace().map(|range| range.parse().expect("a prefix")).collect();
    allowed.sort_unstable();
    Peer {
        endpoint: Some(endpoint.parse().expect("an endpoint")),
        allowed: Arc::from(allowed),
        keepalive: 0,
        is_plain: true,
    }
}

fn step<T: Target>(target: &mut T, key: &T::Key, have: Option<&T::Value>, want: Option<&T::Value>)
where
    T::Error: std::fmt::Debug,
{
    let phase = if want.is_some() { Phase::Grow } else { Phase::Shrink };
    let failures = target.apply(phase, &[Step { key, have, want }]);
    assert!(failures.is_empty(), "{failures:?}");
}

fn any_key(number: u16) -> PublicKey {
    let mut bytes = [0x11; 32];
    bytes[..2].copy_from_slice(&number.to_be_bytes());
    PublicKey::new(&bytes).expect("a key")
}

#[test]
fn devices_and_peers_read_back_as_they_were_written_and_others_stay() {
    in_new(|| {
        run("ip link add wg0 type wireguard");
        let (mut devices, mut peers) = (devices(7), peers());
        assert_eq!(devices.read().expect("a list"), BTreeMap::new(), "another program's device is not ours");
        step(&mut devices, &name(), None, Some(&DEVICE));
        assert_eq!(devices.read().expect("a list"), BTreeMap::from([(name(), DEVICE)]));
        // RFC 7748: the public key of a private one of such bytes, as `wg pubkey` prints it.
        let own = devices.public_keys()[&name()];
        let mut again = Devices::open(|name| name == LINK, true).expect("sockets");
        again.set_keys(BTreeMap::from([(name(), vec![Secret::private_key([8; 32])])]));
        let other = Wireguard { has_key: false, ..DEVICE };
        assert_eq!(again.read().expect("a list"), BTreeMap::from([(name(), other)]), "it has another key");
        assert!(again.public_keys().is_empty());
        step(&mut again, &name(), Some(&other), Some(&Wireguard { port: 51821, mtu: Some(1400), ..DEVICE }));
        assert_ne!(again.public_keys()[&name()], own);
        assert_eq!(again.read().expect("a list")[&name()], Wireguard { port: 51821, mtu: Some(1400), ..DEVICE });

        let first = peer("192.0.2.2:51820", "10.244.2.0/24 192.0.2.2/32 fd00:10:244:2::/64 2001:db8::2/128");
        let second = peer("[2001:db8::3]:51820", "10.244.3.0/24");
        step(&mut peers, &key(any_key(1)), None, Some(&first));
        step(&mut peers, &key(any_key(2)), None, Some(&second));
        let both = BTreeMap::from([(key(any_key(1)), first.clone()), (key(any_key(2)), second.clone())]);
        assert_eq!(peers.read().expect("a list"), both);

        // A range that another peer is given goes from the one that had it; the endpoint changes with it.
        let more = peer("192.0.2.3:51820", "10.244.2.0/24 10.244.3.0/24");
        step(&mut peers, &key(any_key(2)), Some(&second), Some(&more));
        let read = peers.read().expect("a list");
        assert_eq!(read[&key(any_key(2))], more);
        assert_eq!(read[&key(any_key(1))].allowed.len(), 3);
        step(&mut peers, &key(any_key(1)), Some(&first), None);
        assert_eq!(peers.read().expect("a list"), BTreeMap::from([(key(any_key(2)), more)]));

        step(&mut devices, &name(), Some(&DEVICE), None);
        assert!(!run("ip link show").contains(LINK) && run("ip link show").contains("wg0"));
        assert_eq!(peers.read().expect("a list"), BTreeMap::new());
    });
}

#[test]
fn a_device_that_shall_check_sources_loosely_is_made_so_and_another_one_is_as_the_host_has_it() {
    in_new(|| {
        run("sysctl -qw net.ipv4.conf.default.rp_filter=1");
        let filter = || run(&format!("sysctl -n net.ipv4.conf.{LINK}.rp_filter"));
        let mut strict = devices(8);
        step(&mut strict, &name(), None, Some(&DEVICE));
        assert_eq!(filter().trim(), "1");
        step(&mut strict, &name(), Some(&DEVICE), None);
        let mut loose = devices(8).with_loose(|name| name == LINK);
        step(&mut loose, &name(), None, Some(&DEVICE));
        assert_eq!(filter().trim(), "2");
        run(&format!("sysctl -qw net.ipv4.conf.{LINK}.rp_filter=1"));
        step(&mut loose, &name(), Some(&Wireguard { up: false, ..DEVICE }), Some(&DEVICE));
        assert_eq!(filter().trim(), "2");
        let addresses = || run(&format!("ip -4 -o address show dev {LINK}"));
        assert!(addresses().contains("127.0.0.8/32 scope host"), "{}", addresses());
        run(&format!("ip address delete 127.0.0.8/32 dev {LINK}"));
        let have = loose.read().expect("a list").remove(&name()).expect("it is there");
        assert_eq!(have, Wireguard { is_numbered: false, ..DEVICE });
        step(&mut loose, &name(), Some(&have), Some(&DEVICE));
        assert_eq!(loose.read().expect("a list").remove(&name()), Some(DEVICE));
        assert!(addresses().contains("127.0.0.8/32 scope host"), "{}", addresses());
    });
}

#[test]
fn thousands_of_peers_and_one_with_thousands_of_ranges_read_back() {
    in_new(|| {
        let (mut devices, mut peers) = (devices(7), peers());
        step(&mut devices, &name(), None, Some(&DEVICE));
        let range =
            |number: u32| IpNet::new(IpAddr::from((0x0a00_0000 + number * 16).to_be_bytes()), 28).expect("a prefix");
        let of = |number: u16| {
            let ranges = if number == 0 { 0..3000 } else { 3000 + u32::from(number)..3001 + u32::from(number) };
            let allowed: Vec<IpNet> = ranges.map(range).collect();
            let endpoint = Some("192.0.2.2:51820".parse().expect("an endpoint"));
            (key(any_key(number)), Peer { endpoint, allowed: Arc::from(allowed), keepalive: 0, is_plain: true })
        };
        let wanted: BTreeMap<PeerKey, Peer> = (0..3000).map(of).collect();
        let steps: Vec<_> = wanted.iter().map(|(key, want)| Step { key, have: None, want: Some(want) }).collect();
        assert!(peers.apply(Phase::Grow, &steps).is_empty());
        let read = peers.read().expect("a list");
        assert_eq!(read.len(), wanted.len());
        assert!(read == wanted, "a difference");
    });
}

/// All frames that came or went by any device of this namespace while something was done.
fn frames_of(what: impl FnOnce()) -> Vec<Vec<u8>> {
    // ETH_P_ALL, in network byte order.
    let all = i32::from(0x0003_u16.to_be());
    // SAFETY: a new descriptor that nobody else has.
    let socket = unsafe {
        let number = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, all);
        assert!(number >= 0, "a packet socket needs root");
        OwnedFd::from_raw_fd(number)
    };
    rustix::net::sockopt::set_socket_timeout(
        &socket,
        rustix::net::sockopt::Timeout::Recv,
        Some(Duration::from_millis(50)),
    )
    .expect("a time limit");
    let over = AtomicBool::new(false);
    let mut frames = Vec::new();
    thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let mut frames = Vec::new();
            let mut buffer = vec![0; 4096];
            while !over.load(Ordering::Relaxed) {
                if let Ok((length, _)) = rustix::net::recv(&socket, &mut buffer[..], rustix::net::RecvFlags::empty()) {
                    frames.push(buffer[..length].to_vec());
                }
            }
            frames
        });
        what();
        thread::sleep(Duration::from_millis(100));
        over.store(true, Ordering::Relaxed);
        frames = receiver.join().expect("frames");
    });
    frames
}

/// UDP from or to this port, in IPv4 or IPv6 without options.
fn is_to_port(frame: &[u8], port: u16) -> bool {
    let ports = match frame.get(12..14) {
        Some([0x08, 0x00]) if frame.get(23) == Some(&17) => frame.get(34..38),
        Some([0x86, 0xdd]) if frame.get(20) == Some(&17) => frame.get(54..58),
        _ => None,
    };
    ports.is_some_and(|ports| ports[2..] == port.to_be_bytes())
}

#[test]
fn packets_of_the_largest_size_pass_encrypted_over_either_family() {
    in_new(|| {
        own_run();
        run("mkdir -p /run/netns");
        run("ip netns add far");
        run("ip -n far link set lo up");
        run("ip link add eth0 type veth peer name eth0 netns far");
        for (ip, number) in [("ip", 1), ("ip -n far", 2)] {
            run(&format!("{ip} link set eth0 up"));
            run(&format!("{ip} address add 192.0.2.{number}/24 dev eth0"));
            run(&format!("{ip} address add 2001:db8::{number}/64 dev eth0 nodad"));
            run(&format!("{ip} address add 10.244.{number}.1/32 dev lo"));
            run(&format!("{ip} address add fd00:10:244:{number}::1/128 dev lo nodad"));
        }
        let far = Path::new("/run/netns/far");
        for (here, there, mtu) in [("192.0.2.1", "192.0.2.2", 1440), ("[2001:db8::1]", "[2001:db8::2]", 1420)] {
            let device = Wireguard { mtu: Some(mtu), ..DEVICE };
            let (mut near_devices, mut near_peers) = (devices(1), peers());
            let (mut far_devices, mut far_peers) = in_namespace(far, || (devices(2), peers())).expect("a namespace");
            step(&mut near_devices, &name(), None, Some(&device));
            step(&mut far_devices, &name(), None, Some(&device));
            let (near_key, far_key) = (near_devices.public_keys()[&name()], far_devices.public_keys()[&name()]);
            let to_far = peer(&format!("{there}:51820"), "10.244.2.0/24 fd00:10:244:2::/64");
            let to_near = peer(&format!("{here}:51820"), "10.244.1.0/24 fd00:10:244:1::/64");
            step(&mut near_peers, &key(far_key), None, Some(&to_far));
            step(&mut far_peers, &key(near_key), None, Some(&to_near));
            run(&format!("ip route add 10.244.2.0/24 dev {LINK} src 10.244.1.1"));
            run(&format!("ip route add fd00:10:244:2::/64 dev {LINK} src fd00:10:244:1::1"));
            run(&format!("ip -n far route add 10.244.1.0/24 dev {LINK} src 10.244.2.1"));
            run(&format!("ip -n far route add fd00:10:244:1::/64 dev {LINK} src fd00:10:244:2::1"));
            let seen = frames_of(|| {
                for (to, headers) in [("10.244.2.1", 28), ("fd00:10:244:2::1", 48)] {
                    let largest = mtu - headers;
                    let said = attempt(&format!("ping -c 3 -i 0.2 -W 5 -M do -p 5eC4e7A3 -s {largest} {to}"));
                    assert!(said.0, "{there} {to}: {said:?}");
                    let too_large = format!("ping -c 1 -W 2 -M do -s {} {to}", largest + 1);
                    assert!(!attempt(&too_large).0, "{there} {to}: more than {mtu} bytes");
                }
            });
            assert_eq!(near_peers.read().expect("a list"), BTreeMap::from([(key(far_key), to_far)]));
            let outer: Vec<&Vec<u8>> = seen.iter().filter(|frame| is_to_port(frame, 51820)).collect();
            assert!(outer.len() >= 12, "{} of {} frames", outer.len(), seen.len());
            let longest = outer.iter().map(|frame| frame.len()).max();
            assert_eq!(longest, Some(1514), "a frame of a link of 1,500 bytes is used whole, and not more");
            let pattern = [0x5e, 0xc4, 0xe7, 0xa3].repeat(4);
            let readable = outer.iter().any(|frame| frame.windows(pattern.len()).any(|bytes| bytes == pattern));
            assert!(!readable, "what is inside can be read");
            // An address that no peer has is refused, and nothing leaves.
            run(&format!("ip route add 10.244.9.0/24 dev {LINK}"));
            assert!(!attempt("ping -c 1 -W 2 10.244.9.1").0);
            step(&mut near_devices, &name(), Some(&device), None);
            step(&mut far_devices, &name(), Some(&device), None);
        }
    });
}

/// The Node of a number, with the key that its agent has said.
pub fn node(cluster: &Cluster, number: usize) -> String {
    let log = cluster.log(number);
    let mut said = log.lines().filter(|line| line.contains("Public key of this node for WireGuard"));
    let key =
        said.next_back().and_then(|line| line.split("key=").nth(1)).map(|key| key.trim().trim_matches('"').to_owned());
    let annotation = key.map(|key| format!(", annotations: {{kube-router.io/wireguard-public-key: '{key}'}}"));
    format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: node-{number}{}}}\n\
         spec: {{podCIDRs: [10.244.{number}.0/24, 'fd00:10:244:{number}::/64']}}\n\
         status: {{addresses: [{{type: InternalIP, address: 192.0.2.{number}}}, \
         {{type: InternalIP, address: '2001:db8::{number}'}}]}}\n",
        annotation.unwrap_or_default()
    )
}

pub fn until(what: &str, cluster: &Cluster, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}\n{}\n{}", cluster.log(1), cluster.log(2));
        thread::sleep(Duration::from_millis(50));
    }
}

pub fn peers_of(cluster: &Cluster, number: usize) -> BTreeMap<PeerKey, Peer> {
    let namespace = format!("/run/netns/{}", cluster.name(number));
    in_namespace(Path::new(&namespace), || peers().read().expect("a list")).expect("a namespace")
}

/// Two nodes whose agents have made their keys, beside a device of somebody else.
fn started(source: &str) -> Cluster {
    let mut cluster = Cluster::new(2);
    let flags = [
        "--enable-overlay",
        "--overlay-type=full",
        "--overlay-encap=wireguard",
        "--routes-sync-period=2s",
        "--injected-routes-sync-period=2s",
    ];
    for number in 1..=2 {
        let of_node = flags.into_iter().map(str::to_owned).chain([format!("--node-routes={source}")]);
        cluster.flags.insert(number, of_node.collect());
        let name = cluster.name(number);
        run(&format!("ip -n {name} link add wg0 type wireguard"));
        // What no other route leads to, or refuses, would leave by these.
        run(&format!("ip -n {name} route add default via 192.0.2.254"));
        run(&format!("ip -n {name} -6 route add default via 2001:db8::fe"));
        cluster.start(number);
    }
    for number in 1..=2 {
        cluster.until_said(number, "Public key of this node for WireGuard", 1);
    }
    cluster
}

/// Packets of a pod of the first node to the second node itself, as `ip route get` takes them.
const OF_PODS_TO_NODE: [&str; 2] = ["192.0.2.2 from 10.244.1.5", "2001:db8::2 from fd00:10:244:1::5"];

/// The other node is deleted while a pod sends to its pods, and comes back.
fn nothing_is_readable_while_a_node_is_deleted(cluster: &Cluster) {
    let name = cluster.name(1);
    let (first, second) = (node(cluster, 1), node(cluster, 2));
    let seen = frames_of(|| {
        let pings = [("10.244.1.5", "10.244.2.5"), ("fd00:10:244:1::5", "fd00:10:244:2::5")].map(|(from, to)| {
            let ping = format!("ip netns exec {name} ping -c 100 -i 0.05 -W 1 -p 5eC4e7A3 -s 200 -I {from} {to}");
            thread::spawn(move || attempt(&ping))
        });
        thread::sleep(Duration::from_millis(500));
        cluster.write(std::slice::from_ref(&first));
        pings.into_iter().for_each(|ping| drop(ping.join()));
    });
    let pattern = [0x5e, 0xc4, 0xe7, 0xa3].repeat(4);
    let readable = seen.iter().filter(|frame| frame.windows(pattern.len()).any(|bytes| bytes == pattern)).count();
    assert_eq!(readable, 0, "of {} frames: what is inside can be read", seen.len());
    cluster.write(&[first, second]);
    until("pods", cluster, || passes(cluster, "-4", 1420) && passes(cluster, "-6", 1420));
}

/// A peer and the device that somebody deletes come back; meanwhile nothing leaves by another way.
fn repairs_what_others_take(cluster: &Cluster) {
    let name = cluster.name(1);
    // A peer that somebody removes is back with the next audit.
    let there = peers_of(cluster, 1);
    assert_eq!(there.len(), 1, "{there:?}");
    let namespace = format!("/run/netns/{name}");
    in_namespace(Path::new(&namespace), || {
        let mut peers = peers();
        for (key, peer) in &there {
            step(&mut peers, key, Some(peer), None);
        }
    })
    .expect("a namespace");
    until("the peer", cluster, || peers_of(cluster, 1) == there);
    until("pods", cluster, || passes(cluster, "-4", 1420) && passes(cluster, "-6", 1420));
    // So is the device; meanwhile nothing leaves by another way.
    run(&format!("ip -n {name} link delete {LINK}"));
    until("the device", cluster, || passes(cluster, "-4", 1420) && passes(cluster, "-6", 1420));
}

#[test]
fn pods_reach_each_other_encrypted_and_a_restart_a_removed_peer_a_deleted_device_and_a_cleanup_do_what_they_should() {
    for source in ["bgp", "api"] {
        in_new(|| {
            let mut cluster = started(source);
            let name = cluster.name(1);
            // Before the keys are known nothing leaves, by no other way either.
            let get = |address: &str| attempt(&format!("ip -n {name} route get {address}"));
            until("no way around the tunnel", &cluster, || {
                let pods = ["10.244.2.5", "fd00:10:244:2::5"];
                pods.iter().chain(&OF_PODS_TO_NODE).all(|to| {
                    let (ok, said, _) = get(to);
                    !ok || said.contains(LINK)
                })
            });
            assert!(!passes(&cluster, "-4", 100) && !passes(&cluster, "-6", 100), "{}", cluster.log(1));
            cluster.write(&[node(&cluster, 1), node(&cluster, 2)]);
            // The nodes are of both families: the larger overhead counts.
            until("pods", &cluster, || passes(&cluster, "-4", 1420) && passes(&cluster, "-6", 1420));
            assert!(!passes(&cluster, "-4", 1421) && !passes(&cluster, "-6", 1421));
            // The host itself and a pod of the other node.
            run(&format!("ip netns exec {name} ping -c 1 -W 5 10.244.2.5"));
            run(&format!("ip netns exec {name} ping -c 1 -W 5 fd00:10:244:2::5"));
            let readable = frames_of(|| {
                let to = "ping -c 3 -i 0.2 -W 5 -p 5eC4e7A3 -s 200";
                run(&format!("ip netns exec {name} {to} -I 10.244.1.5 10.244.2.5"));
                run(&format!("ip netns exec {name} {to} -I fd00:10:244:1::5 fd00:10:244:2::5"));
                // Of a pod to the other node itself.
                run(&format!("ip netns exec {name} {to} -I 10.244.1.5 192.0.2.2"));
                run(&format!("ip netns exec {name} {to} -I fd00:10:244:1::5 2001:db8::2"));
            });
            let pattern = [0x5e, 0xc4, 0xe7, 0xa3].repeat(4);
            let has_pattern = |frame: &Vec<u8>| frame.windows(pattern.len()).any(|bytes| bytes == pattern);
            assert!(
                readable.iter().filter(|frame| is_to_port(frame, 51820)).count() >= 24,
                "{} frames",
                readable.len()
            );
            assert!(!readable.iter().any(has_pattern), "{source}: what is inside can be read");

            let synced = "First sync of the router finished";
            cluster.until_said(1, synced, 1);
            // The emulated guest has its hands full with what it encrypts.
            cluster.without_losing_one_of([2, 1], "0.2", |cluster| {
                cluster.kill(1);
                thread::sleep(Duration::from_millis(300));
                cluster.start(1);
                cluster.until_said(1, synced, 2);
                let log = cluster.log(1);
                let mut syncs = log.lines().filter(|line| line.contains(synced)).skip(1);
                assert!(syncs.all(|line| line.contains("steps=0")), "{source}: {log}");
            });

            repairs_what_others_take(&cluster);
            nothing_is_readable_while_a_node_is_deleted(&cluster);

            cluster.terminate(1);
            // Without the agent and its device packets are refused, not sent in the clear.
            run(&format!("ip -n {name} link delete {LINK}"));
            assert!(!get("10.244.2.5").0 && !get("fd00:10:244:2::5").0, "{:?}", get("10.244.2.5"));
            assert!(OF_PODS_TO_NODE.iter().all(|to| !get(to).0), "{:?}", OF_PODS_TO_NODE.map(get));
            for (family, range) in [("-4", "10.244.2.0/24"), ("-6", "fd00:10:244:2::/64")] {
                let walls = run(&format!("ip -n {name} {family} route show {range}"));
                assert!(walls.contains(&format!("unreachable {range}")), "{source}: {walls}");
            }
            let said = cluster.clean_up(1);
            let routes = run(&format!("ip -n {name} route show proto 17"))
                + &run(&format!("ip -n {name} -6 route show proto 17"));
            assert_eq!(routes, "", "{said}");
            for family in ["-4", "-6"] {
                // A table that was never there is an error of the program.
                assert_eq!(attempt(&format!("ip -n {name} {family} route show table 77")).1, "", "{said}");
            }
            let links = run(&format!("ip -n {name} link show"));
            assert!(!links.contains(LINK) && links.contains("wg0"), "{links}\n{said}");
            assert!(!cluster.file("state", 1).join("wireguard.key").exists(), "{said}");
        });
    }
}

/// The host of the other node takes no datagrams at the port, as behind a firewall that nobody has opened.
#[test]
fn a_node_that_does_not_answer_is_named_until_it_does() {
    in_new(|| {
        let cluster = started("api");
        let (name, other) = (cluster.name(1), cluster.name(2));
        let nft = |words: &str| run(&format!("ip netns exec {other} nft {words}"));
        nft("add table inet closed");
        nft("add chain inet closed input { type filter hook input priority 0 ; }");
        nft("add rule inet closed input udp dport 51820 drop");
        let nodes = [node(&cluster, 1), node(&cluster, 2)];
        let ready = "status: {conditions: [{type: Ready, status: 'True'}], ";
        cluster.write(&nodes.map(|node| node.replace("status: {", ready)));
        let sent = format!("ip netns exec {name} ping -c 400 -i 0.5 -W 1 -I 10.244.1.5 10.244.2.5");
        let mut words = sent.split(' ');
        let mut ping = std::process::Command::new(words.next().expect("a program"))
            .args(words)
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("a program");
        cluster.until_said(1, "Nodes do not answer over WireGuard", 1);
        let log = cluster.log(1);
        assert!(log.contains("Node node-2: no answer over WireGuard") && log.contains("UDP port 51820"), "{log}");
        nft("delete table inet closed");
        cluster.until_said(1, "All nodes answer over WireGuard again", 1);
        ping.kill().and_then(|()| ping.wait()).expect("it ran");
        assert!(passes(&cluster, "-4", 1420) && passes(&cluster, "-6", 1420));
    });
}
