//! Packets at the port of `fou`: the kernel unpacks any protocol that they name, and delivers it behind the chains of INPUT. For a kernel with `fou`.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use sluice::net::Family;

use crate::namespace::{attempt, in_new, run, shell};
use crate::native::router::Cluster;
use crate::native::router::overlay_guard::within;

const TUNNELS: u16 = 5555;
/// Closed to everybody by the firewall of the host.
const CLOSED: u16 = 9999;

fn node(family: Family, number: usize) -> IpAddr {
    let text = if family == Family::V4 { format!("192.0.2.{number}") } else { format!("2001:db8::{number}") };
    text.parse().expect("an address")
}

fn gateway(family: Family) -> IpAddr {
    let text = if family == Family::V4 { "10.244.1.1" } else { "fd00:10:244:1::1" };
    text.parse().expect("an address")
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// GUE without options (version 0) around a datagram of UDP, whose checksum counts the outer addresses.
fn wrapped(from: IpAddr, to: IpAddr, text: &str) -> Vec<u8> {
    let length = 8 + text.len() as u16;
    let header = |checksum: u16| [40_000_u16, CLOSED, length, checksum].map(u16::to_be_bytes).concat();
    let pseudo = [octets(from), octets(to), vec![0, 17], length.to_be_bytes().to_vec()].concat();
    let all = [pseudo, header(0), text.as_bytes().to_vec(), vec![0; text.len() % 2]].concat();
    let sum: u32 = all.as_chunks().0.iter().map(|pair| u32::from(u16::from_be_bytes(*pair))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !(((folded & 0xffff) + (folded >> 16)) as u16);
    [vec![0, 17, 0, 0], header(checksum), text.as_bytes().to_vec()].concat()
}

struct Scene {
    cluster: Cluster,
    stranger: String,
    pod: String,
    receivers: Vec<UdpSocket>,
}

impl Scene {
    fn new(netfilter: &str) -> Scene {
        let mut cluster = Cluster::new(2);
        for number in 1..=2 {
            let fixed = ["--enable-overlay", "--overlay-type=full", "--overlay-encap=fou", "--node-routes=api"];
            let flags = fixed.map(str::to_owned).into_iter().chain([format!("--netfilter={netfilter}")]);
            cluster.flags.insert(number, flags.collect());
            cluster.start(number);
        }
        let answers = |pod: &&str| attempt(&format!("ip netns exec {} ping -c 1 -W 2 {pod}", cluster.name(1))).0;
        crate::wireguard::until("pods", &cluster, || ["10.244.2.5", "fd00:10:244:2::5"].iter().all(answers));
        let pod = cluster.attach_pod(1);
        let stranger = cluster.name(1).replace("n1", "stranger");
        run(&format!("ip netns add {stranger}"));
        run(&format!("ip link add stranger type veth peer name eth0 netns {stranger}"));
        run("ip link set stranger master wire up");
        run(&format!("ip -n {stranger} link set eth0 up"));
        for address in ["192.0.2.77/24", "2001:db8::77/64"] {
            run(&format!("ip -n {stranger} address add {address} dev eth0 nodad"));
        }
        let closed = format!(
            "table inet of_host {{ chain in {{ type filter hook input priority 0; udp dport {CLOSED} drop; }}; }}"
        );
        let mut receivers = Vec::new();
        for number in 1..=2 {
            let name = cluster.name(number);
            shell(&format!("echo '{closed}' | ip netns exec {name} nft -f -"));
            // So that nothing but our rules stops a pod's source.
            for link in ["all", "eth0", "kube-bridge"] {
                run(&format!("ip netns exec {name} sysctl -qw net.ipv4.conf.{link}.rp_filter=0"));
            }
            let listen = |family| {
                let any: IpAddr = if family == Family::V4 { [0; 4].into() } else { [0; 16].into() };
                let socket = UdpSocket::bind((any, CLOSED)).expect("a socket");
                socket.set_nonblocking(true).expect("it is a socket");
                socket
            };
            // One of IPv6 alone would take both families.
            receivers.push(within(&name, || listen(Family::V6)));
        }
        Scene { cluster, stranger, pod, receivers }
    }

    /// Sends one datagram of each family to the closed port, by itself or inside GUE.
    fn send(&self, who: &str, to: fn(Family) -> IpAddr, is_wrapped: bool, text: &str) {
        let name = match who {
            "node" => self.cluster.name(1),
            "pod" => self.pod.clone(),
            _ => self.stranger.clone(),
        };
        within(&name, || {
            for family in Family::BOTH {
                let any: IpAddr = if family == Family::V4 { [0; 4].into() } else { [0; 16].into() };
                let bound = if who == "node" { node(family, 1) } else { any };
                let socket = UdpSocket::bind((bound, 0)).expect("a socket");
                let text = format!("{family} {text}");
                let target = SocketAddr::new(to(family), if is_wrapped { TUNNELS } else { CLOSED });
                socket.connect(target).expect("there is a way");
                let own = socket.local_addr().expect("it is bound").ip();
                let sent = if is_wrapped { wrapped(own, to(family), &text) } else { text.into_bytes() };
                // What nobody listens to is refused, which the next one is told.
                let _ = socket.send(&sent);
            }
        });
    }

    /// The rules of node 2.
    fn rules(&self) -> String {
        let name = self.cluster.name(2);
        let saved = |program: &str| attempt(&format!("ip netns exec {name} {program}")).1;
        ["iptables-nft-save -t mangle", "iptables-legacy-save -t mangle", "nft list table inet sluice_router"]
            .map(saved)
            .join("\n")
    }

    /// Sends everything until what is awaited has arrived; returns all that has.
    fn exchange(&self, awaited: &[&str]) -> BTreeSet<String> {
        let awaited: BTreeSet<String> = Family::BOTH
            .into_iter()
            .flat_map(|family| awaited.iter().map(move |text| format!("{family} {text}")))
            .collect();
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut arrived = BTreeSet::new();
        loop {
            self.send("stranger", |family| node(family, 2), false, "plain");
            self.send("stranger", |family| node(family, 2), true, "stranger");
            self.send("pod", |family| node(family, 2), true, "pod");
            self.send("pod", gateway, true, "pod to its gateway");
            self.send("node", |family| node(family, 2), true, "node");
            thread::sleep(Duration::from_millis(300));
            for socket in &self.receivers {
                let mut bytes = [0; 100];
                while let Ok(length) = socket.recv(&mut bytes) {
                    arrived.insert(String::from_utf8_lossy(bytes.get(..length).unwrap_or_default()).into_owned());
                }
            }
            if arrived.is_superset(&awaited) {
                return arrived;
            }
            let missing: Vec<_> = awaited.difference(&arrived).collect();
            assert!(Instant::now() < deadline, "{missing:?} of {arrived:?}\n{}", self.cluster.log(2));
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        for name in [&self.pod, &self.stranger] {
            drop(attempt(&format!("ip netns delete {name}")));
        }
    }
}

fn nobody_but_nodes_has_packets_unpacked(netfilter: &str) {
    in_new(|| {
        run("modprobe -a fou fou6");
        let mut scene = Scene::new(netfilter);
        for _ in 0..2 {
            let arrived = scene.exchange(&["node"]);
            let is_refused = arrived.iter().all(|text| text.ends_with(" node"));
            assert!(is_refused, "{netfilter}: {arrived:?}\n{}", scene.rules());
        }
        // The same packets reach the closed port where there are no rules of ours.
        for number in 1..=2 {
            scene.cluster.kill(number);
            let within = format!("ip netns exec {}", scene.cluster.name(number));
            match netfilter {
                "nftables" => drop(run(&format!("{within} nft delete table inet sluice_router"))),
                _ => ["iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"]
                    .into_iter()
                    .for_each(|program| drop(attempt(&format!("{within} {program} -t mangle -F")))),
            }
        }
        let arrived = scene.exchange(&["node", "stranger", "pod", "pod to its gateway"]);
        assert!(!arrived.iter().any(|text| text.ends_with(" plain")), "the host's firewall closes it: {arrived:?}");
    });
}

#[test]
fn with_nftables_nobody_but_nodes_has_packets_unpacked_at_the_port_of_fou() {
    nobody_but_nodes_has_packets_unpacked("nftables");
}

#[test]
fn with_iptables_nobody_but_nodes_has_packets_unpacked_at_the_port_of_fou() {
    nobody_but_nodes_has_packets_unpacked("iptables");
}
