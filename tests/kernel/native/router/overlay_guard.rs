//! Who can send into the tunnels of `vxlan`: datagrams of nodes, hosts, pods and containers, with either packet filter, also while no agent runs.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use sluice::kernel::vxlan::link_address;
use sluice::net::{Family, LinkAddress};

use super::super::frame::{Frame, send};
use super::{Cluster, until};
use crate::namespace::{attempt, in_new, run, shell};

const PORT: u16 = 4789;
/// Where what came out of a tunnel is read.
const INSIDE: u16 = 7777;
/// The number and the link address of somebody else's device on node 2.
const OF_OTHERS: (u32, [u8; 6]) = (4096, [0x02, 0, 0, 0, 0x40, 0x96]);

/// A datagram to the port of tunnels with this text inside.
#[derive(Clone, Copy)]
struct Datagram {
    text: &'static str,
    from: Sender,
    /// The node whose pod gets what is inside.
    to: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Sender {
    /// A process of the node itself.
    Node(usize),
    /// The same, to another address of the node.
    Elsewhere,
    /// A host on the link that is no node; with our number, or for the device of others.
    Stranger,
    StrangerForOthers,
    /// A pod of node 1.
    Pod,
    /// The same with the address of node 3 as its source.
    Forging,
    /// A container of node 1, which the host masquerades.
    Container,
}

const OF_NODES: [Datagram; 2] = [
    Datagram { text: "node 1", from: Sender::Node(1), to: 2 },
    Datagram { text: "node 2", from: Sender::Node(2), to: 1 },
];
const OF_OTHER_DEVICE: Datagram = Datagram { text: "other device", from: Sender::StrangerForOthers, to: 2 };
const REFUSED: [Datagram; 6] = [
    Datagram { text: "stranger", from: Sender::Stranger, to: 2 },
    Datagram { text: "elsewhere", from: Sender::Elsewhere, to: 2 },
    Datagram { text: "pod", from: Sender::Pod, to: 2 },
    Datagram { text: "pod to its node", from: Sender::Pod, to: 1 },
    Datagram { text: "forging pod", from: Sender::Forging, to: 2 },
    Datagram { text: "container", from: Sender::Container, to: 2 },
];

impl Datagram {
    /// The device of others is of IPv4.
    fn is_of(&self, family: Family) -> bool {
        self.from != Sender::StrangerForOthers || family == Family::V4
    }
}

fn node(family: Family, number: usize) -> IpAddr {
    let text = if family == Family::V4 { format!("192.0.2.{number}") } else { format!("2001:db8::{number}") };
    text.parse().expect("an address")
}

fn pod(family: Family, number: usize, host: usize) -> IpAddr {
    let v4 = family == Family::V4;
    let text = if v4 { format!("10.244.{number}.{host}") } else { format!("fd00:10:244:{number}::{host}") };
    text.parse().expect("an address")
}

/// Does something in a namespace by its name.
pub fn within<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> T {
    let namespace = fs::File::open(format!("/run/netns/{name}")).expect("the namespace");
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            let network = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(namespace.as_fd(), network).expect("root may move");
            work()
        });
        inside.join().expect("it works")
    })
}

/// Two nodes with tunnels between them, a third one that is known alone, and everybody else.
struct Scene {
    cluster: Cluster,
    pod: String,
    container: String,
    stranger: String,
    receivers: Vec<UdpSocket>,
}

impl Scene {
    fn new(netfilter: &str) -> Scene {
        let mut cluster = Cluster::new(3);
        for number in 1..=2 {
            let flags = ["--enable-overlay", "--overlay-type=full", "--overlay-encap=vxlan", "--node-routes=api"];
            let flags = flags.into_iter().map(str::to_owned).chain([format!("--netfilter={netfilter}")]);
            cluster.flags.insert(number, flags.collect());
            cluster.start(number);
        }
        let name = cluster.name(2);
        let (id, [.., high, low]) = OF_OTHERS;
        run(&format!("ip -n {name} link add others type vxlan id {id} dstport {PORT} local 192.0.2.2 nolearning"));
        run(&format!("ip -n {name} link set others address 02:00:00:00:{high:02x}:{low:02x} up"));
        run(&format!("ip -n {name} address add 192.0.2.102/24 dev eth0"));
        run(&format!("ip -n {name} address add 2001:db8::102/64 dev eth0 nodad"));
        let mut scene =
            Scene { cluster, pod: String::new(), container: String::new(), stranger: String::new(), receivers: vec![] };
        scene.until_ready();
        scene.pod = scene.cluster.attach_pod(1);
        scene.stranger = scene.host("stranger", &["192.0.2.77/24", "2001:db8::77/64"], None);
        scene.container = scene.host("container", &["172.17.0.2/24", "fd17::2/64"], Some(1));
        for number in 1..=2 {
            // So that nothing but our rules stops a forged source.
            for link in ["all", "eth0", "kube-bridge", "sluice-vxlan4"] {
                let setting = format!("net.ipv4.conf.{link}.rp_filter=0");
                run(&format!("ip netns exec {} sysctl -qw {setting}", scene.cluster.name(number)));
            }
            let listen = |family| {
                let socket = UdpSocket::bind((pod(family, number, 5), INSIDE)).expect("a socket");
                socket.set_nonblocking(true).expect("it is a socket");
                socket
            };
            scene.receivers.extend(within(&scene.cluster.name(number), || Family::BOTH.map(listen)));
        }
        scene
    }

    /// A namespace with one link: to the wire of the nodes, or to a node that masquerades it.
    fn host(&self, kind: &str, addresses: &[&str; 2], behind: Option<usize>) -> String {
        let name = format!("{}{kind}", self.cluster.prefix);
        run(&format!("ip netns add {name}"));
        let node = behind.map(|number| self.cluster.name(number));
        let there = node.as_ref().map_or_else(|| "ip".to_owned(), |node| format!("ip -n {node}"));
        run(&format!("{there} link add {kind} type veth peer name eth0 netns {name}"));
        run(&format!("{there} link set {kind} up"));
        run(&format!("ip -n {name} link set eth0 up"));
        for address in addresses {
            run(&format!("ip -n {name} address add {address} dev eth0 nodad"));
        }
        let Some(node) = node else {
            run(&format!("ip link set {kind} master wire"));
            return name;
        };
        run(&format!("ip -n {node} address add 172.17.0.1/24 dev {kind}"));
        run(&format!("ip -n {node} address add fd17::1/64 dev {kind} nodad"));
        run(&format!("ip -n {name} route add default via 172.17.0.1"));
        run(&format!("ip -n {name} route add default via fd17::1"));
        let table = "table inet of_others { chain post { type nat hook postrouting priority 100; \
                     ip saddr 172.17.0.0/24 masquerade; ip6 saddr fd17::/64 masquerade; }; }";
        shell(&format!("echo '{table}' | ip netns exec {node} nft -f -"));
        name
    }

    fn until_ready(&self) {
        let answers = |family: &str, to: &str| {
            attempt(&format!("ip netns exec {} ping {family} -c 1 -W 1 {to}", self.cluster.name(1))).0
        };
        let pods = || answers("-4", "10.244.2.5") && answers("-6", "fd00:10:244:2::5");
        until(pods, "nodes reach each other's pods");
    }

    fn namespace(&self, from: Sender) -> String {
        match from {
            Sender::Node(number) => self.cluster.name(number),
            Sender::Elsewhere => self.cluster.name(1),
            Sender::Stranger | Sender::StrangerForOthers => self.stranger.clone(),
            Sender::Pod | Sender::Forging => self.pod.clone(),
            Sender::Container => self.container.clone(),
        }
    }

    fn send(&self, family: Family, datagram: Datagram) {
        let Datagram { text, from, to } = datagram;
        let LinkAddress(address) = link_address(node(family, to));
        let (id, address) = if from == Sender::StrangerForOthers { OF_OTHERS } else { (1, address) };
        let inside = Frame {
            from: [0x02, 0, 0, 0, 0, 9],
            to: address,
            tags: Vec::new(),
            source: SocketAddr::new(pod(family, 1, 77), INSIDE),
            destination: SocketAddr::new(pod(family, to, 5), INSIDE),
            payload: format!("{family} {text}").into_bytes(),
        };
        let payload = [&[0x08, 0, 0, 0][..], &(id << 8).to_be_bytes(), &inside.bytes()].concat();
        let target = node(family, if from == Sender::Elsewhere { 102 } else { to });
        let (name, target) = (self.namespace(from), SocketAddr::new(target, PORT));
        if from == Sender::Forging {
            let link = |within: &str, link: &str| run(&format!("ip -n {within} -o link show {link}"));
            let bridge = link(&self.cluster.name(1), "kube-bridge");
            let bridge = bridge.split_once("link/ether ").expect("its address").1;
            let octet = |text: &str| u8::from_str_radix(text, 16).expect("a number");
            let octets: Vec<u8> = bridge.split([':', ' ']).take(6).map(octet).collect();
            let device = link(&name, "eth0").split(':').next().and_then(|number| number.parse().ok());
            let source = SocketAddr::new(node(family, 3), 40_000);
            let to = octets.try_into().expect("six");
            let frame =
                Frame { from: [0x02, 0, 0, 0, 0, 8], to, tags: Vec::new(), source, destination: target, payload };
            return within(&name, || send(device.expect("a number"), &frame.bytes()));
        }
        within(&name, || {
            let any: IpAddr = if family == Family::V4 { [0; 4].into() } else { [0; 16].into() };
            // A node has more than one address, and tunnels begin at the one of its Node object.
            let own = if let Sender::Node(number) = from { node(family, number) } else { any };
            let socket = UdpSocket::bind((own, 0)).expect("a socket");
            socket.send_to(&payload, target).expect("it goes out");
        });
    }

    /// What came out of the tunnels since the last time.
    fn arrived(&self) -> BTreeSet<String> {
        let mut texts = BTreeSet::new();
        for socket in &self.receivers {
            let mut bytes = [0; 100];
            while let Ok(length) = socket.recv(&mut bytes) {
                texts.insert(String::from_utf8_lossy(&bytes[..length]).into_owned());
            }
        }
        texts
    }

    /// Sends all of these until those have arrived; returns whatever has.
    fn exchange(&self, sent: &[Datagram], awaited: &[Datagram]) -> BTreeSet<String> {
        let texts = |some: &[Datagram]| -> BTreeSet<String> {
            let of = |family| {
                some.iter().filter(move |one| one.is_of(family)).map(move |one| format!("{family} {}", one.text))
            };
            Family::BOTH.into_iter().flat_map(of).collect()
        };
        let (awaited, deadline) = (texts(awaited), Instant::now() + Duration::from_secs(30));
        let mut arrived = self.arrived();
        arrived.clear();
        loop {
            for family in Family::BOTH {
                sent.iter().filter(|one| one.is_of(family)).for_each(|one| self.send(family, *one));
            }
            // What is not awaited is under way for much less.
            thread::sleep(Duration::from_millis(100));
            arrived.extend(self.arrived());
            if arrived.is_superset(&awaited) {
                return arrived;
            }
            let missing: Vec<_> = awaited.difference(&arrived).collect();
            assert!(Instant::now() < deadline, "{missing:?}\n{}", self.cluster.log(2));
        }
    }

    /// Nodes reach each other, and of all others nobody does but whoever is named.
    fn assert_guarded(&self, others: &[Datagram], when: &str) {
        let passing = [&OF_NODES[..], others].concat();
        let sent = [&REFUSED[..], &[OF_OTHER_DEVICE], &OF_NODES].concat();
        for _ in 0..2 {
            let arrived = self.exchange(&sent, &passing);
            let refused = arrived.iter().filter(|text| !passing.iter().any(|one| text.ends_with(one.text)));
            assert_eq!(refused.collect::<Vec<_>>(), Vec::<&String>::new(), "{when}");
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        for name in [&self.pod, &self.container, &self.stranger] {
            drop(attempt(&format!("ip netns delete {name}")));
        }
    }
}

/// What there is of ours for tunnels: chains, and devices.
fn left(scene: &Scene) -> Vec<String> {
    let name = scene.cluster.name(1);
    let mut text = String::new();
    for program in ["iptables-nft-save", "ip6tables-nft-save", "nft list ruleset"] {
        text += &run(&format!("ip netns exec {name} {program}"));
    }
    for program in ["iptables-legacy-save", "ip6tables-legacy-save"] {
        text += &attempt(&format!("ip netns exec {name} {program}")).1;
    }
    text += &run(&format!("ip -n {name} -o link show"));
    let is_ours = |line: &&str| ["OVERLAY", "overlay_", "sluice-vxlan"].iter().any(|word| line.contains(word));
    text.lines().filter(is_ours).map(str::to_owned).collect()
}

/// The connections of tunnels that node 2 tracks, but for those of the device of others.
fn tracked(scene: &Scene) -> Vec<String> {
    let listed = run(&format!("ip netns exec {} cat /proc/net/nf_conntrack", scene.cluster.name(2)));
    let is_tunnels = |line: &&str| line.contains(&format!("dport={PORT} ")) && !line.contains("192.0.2.77");
    listed.lines().filter(is_tunnels).map(str::to_owned).collect()
}

/// As an administrator would, who wants to know what the rules are for.
fn delete_rules(scene: &Scene, netfilter: &str) {
    for number in 1..=2 {
        let within = format!("ip netns exec {}", scene.cluster.name(number));
        if netfilter == "nftables" {
            run(&format!("{within} nft delete table inet sluice_router"));
            continue;
        }
        for program in ["iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"] {
            drop(attempt(&format!("{within} {program} -t mangle -F")));
        }
    }
}

#[test]
fn nobody_but_nodes_sends_into_tunnels_of_vxlan_also_while_no_agent_runs() {
    for netfilter in ["nftables", "iptables"] {
        in_new(|| {
            let mut scene = Scene::new(netfilter);
            // With iptables the whole port is for nodes.
            let others = if netfilter == "nftables" { &[OF_OTHER_DEVICE][..] } else { &[] };
            scene.assert_guarded(others, netfilter);
            assert_eq!(tracked(&scene).is_empty(), netfilter == "nftables", "{:?}", tracked(&scene));
            (1..=2).for_each(|number| scene.cluster.kill(number));
            scene.assert_guarded(others, "no agent runs");
            // The same datagrams arrive where there are no rules: it is they that stop them.
            delete_rules(&scene, netfilter);
            let all = [&REFUSED[..], &[OF_OTHER_DEVICE], &OF_NODES].concat();
            scene.exchange(&all, &all);
            (1..=2).for_each(|number| scene.cluster.start(number));
            for number in 1..=2 {
                scene.cluster.until_said(number, "First sync of the router finished", 2);
            }
            scene.assert_guarded(others, "they run again");

            // The rules go with the devices.
            scene.cluster.kill(1);
            let flags = scene.cluster.flags.get_mut(&1).expect("there are some");
            flags.push("--enable-overlay=false".to_owned());
            scene.cluster.start(1);
            until(|| left(&scene).is_empty(), "nothing for vxlan is left");
            scene.cluster.kill(1);
            drop(scene.cluster.flags.get_mut(&1).and_then(Vec::pop));
            scene.cluster.start(1);
            let devices = || left(&scene).iter().filter(|line| line.contains(": sluice-vxlan")).count();
            until(|| devices() == 2, "the devices are back");
            scene.cluster.terminate(1);
            let said = scene.cluster.clean_up(1);
            assert_eq!(left(&scene), Vec::<String>::new(), "{said}");
        });
    }
}
