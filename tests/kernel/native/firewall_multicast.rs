//! Multicast and broadcast between the pods of one bridge: frames between the ports of a bridge,
//! of both families, with IPv6 for pods and without.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sluice::model::ObjectName;

use super::firewall::{GATEWAY, PODS, app, egress, ingress};
use super::firewall_link_local::{Bridged, scope_of, with_each};
use super::frame::{BROADCAST, Frame, LinkAddress, group_address};
use super::places::inside;
use crate::namespace::{run, shell};

const PORT: u16 = 5353;
const DHCP_SERVER: u16 = 67;
const PATIENCE: Duration = Duration::from_millis(60);

const GROUPS_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(224, 0, 0, 251), Ipv4Addr::new(239, 1, 2, 3)];
/// Of a link, a site, and everywhere (RFC 4291 2.7).
const GROUPS_V6: [Ipv6Addr; 3] = [group(0xff02), group(0xff05), group(0xff0e)];
/// Everybody of IPv4 on a link, by three names, the second of which is that of the bridge's network.
const EVERYBODY: [Ipv4Addr; 3] = [Ipv4Addr::BROADCAST, Ipv4Addr::new(10, 244, 1, 255), Ipv4Addr::UNSPECIFIED];

const fn group(first: u16) -> Ipv6Addr {
    Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0xfb)
}

/// The ears of pods and of the node.
pub struct Listeners(Vec<(&'static str, File, Vec<UdpSocket>)>);

impl Listeners {
    pub fn of(bridged: &Bridged) -> Listeners {
        let all = bridged.ends.iter().map(|(name, _, namespace, _)| {
            let device = if *name == "node" { "kube-bridge" } else { "eth0" };
            let sockets = inside(namespace, || listen(device));
            (*name, namespace.try_clone().expect("a descriptor can be copied"), sockets)
        });
        Listeners(all.collect())
    }

    /// Sends a frame from one of the pods; returns who has got it.
    fn hear(&self, from: &str, frame: &Frame) -> Vec<&'static str> {
        static TOKENS: AtomicU32 = AtomicU32::new(1);
        let token = TOKENS.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let frame = Frame { payload: token.into(), ..frame.clone() };
        let (_, namespace, _) = self.0.iter().find(|(name, ..)| *name == from).expect("it is there");
        inside(namespace, || frame.send(scope_of(if from == "node" { "kube-bridge" } else { "eth0" })));
        let mut heard = Vec::new();
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            for (name, _, sockets) in &self.0 {
                for socket in sockets {
                    let mut bytes = [0; 64];
                    while let Ok((length, _)) = socket.recv_from(&mut bytes) {
                        if bytes.get(..length) == Some(&token) {
                            heard.push(*name);
                        }
                    }
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        heard.sort_unstable();
        heard
    }

    pub fn assert_heard(&self, said: &str, (from, frame): (&str, &Frame), expected: &[&str]) {
        // Packets that should arrive are sent again: the machine may be busy.
        let mut heard = self.hear(from, frame);
        for _ in 0..40 {
            if heard.len() < expected.len() {
                heard = self.hear(from, frame);
            }
        }
        let saved = || shell("iptables-save -t filter; ip6tables-save -t filter");
        assert_eq!(heard, expected, "{said}: {from} to {}\n{}", frame.destination, saved());
    }
}

fn listen(device: &str) -> Vec<UdpSocket> {
    let scope = scope_of(device);
    let of_v4 = [PORT, DHCP_SERVER].map(|port| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).expect("the port is free");
        let own = run(&format!("ip -4 -o addr show dev {device}"));
        let own = own.split_whitespace().nth(3).and_then(|own| own.split('/').next()).expect("an address");
        for group in GROUPS_V4 {
            socket.join_multicast_v4(&group, &own.parse().expect("an address")).expect("a group can be joined");
        }
        socket
    });
    let of_v6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT + 1)).expect("the port is free");
    for group in GROUPS_V6 {
        of_v6.join_multicast_v6(&group, scope).expect("a group can be joined");
    }
    let all = of_v4.into_iter().chain([of_v6]);
    all.inspect(|socket| socket.set_nonblocking(true).expect("a socket need not wait")).collect()
}

/// Returns the address that a pod's, or the node's, device has on the link.
pub fn link_address(name: &str) -> LinkAddress {
    let last = PODS.iter().position(|(pod, ..)| *pod == name).map_or(0xff, |place| place as u8 + 1);
    [0x02, 0, 0, 0, 1, last]
}

/// Returns a packet from a pod to this address, in the frame that its kernel would put it into.
pub fn frame(from: &str, to: IpAddr) -> Frame {
    let (_, v4, v6) = PODS.into_iter().chain([GATEWAY]).find(|(name, ..)| *name == from).expect("it is there");
    let (source, port) = if to.is_ipv4() { (v4, PORT) } else { (v6, PORT + 1) };
    Frame {
        from: link_address(from),
        to: group_address(to),
        tags: Vec::new(),
        source: SocketAddr::new(source.parse().expect("an address"), 1024),
        destination: SocketAddr::new(to, port),
        payload: Vec::new(),
    }
}

/// Returns a packet from one pod to another.
pub fn unicast(from: &str, to: &str) -> Frame {
    let (_, v4, _) = PODS.into_iter().find(|(name, ..)| *name == to).expect("it is there");
    Frame { to: link_address(to), ..frame(from, v4.parse().expect("an address")) }
}

fn everybody() -> impl Iterator<Item = IpAddr> {
    let v4 = GROUPS_V4.into_iter().chain([Ipv4Addr::BROADCAST, EVERYBODY[1]]).map(IpAddr::from);
    v4.chain(GROUPS_V6.map(IpAddr::from))
}

#[test]
fn what_is_sent_to_many_reaches_no_pod_while_one_is_isolated_for_ingress() {
    with_each(|bridged| {
        let listeners = Listeners::of(bridged);
        let policies = &mut bridged.world.cluster.policies;
        policies.insert(ObjectName::new("shop", "shut"), egress(app("web"), &[]));
        bridged.settle();
        for to in everybody().filter(|to| *to != IpAddr::from(GROUPS_V6[0])) {
            // Whose packet it is says its source, and no pod asks who may send to it.
            let all = ["node", "plain", "web"];
            listeners.assert_heard("isolated for egress", ("db", &frame("db", to)), &all);
        }
        bridged.world.cluster.policies.insert(ObjectName::new("shop", "in"), ingress(app("web"), &[]));
        bridged.settle();
        for to in everybody() {
            // Packets to the node are judged by who sends them; those of the link of IPv6 are closed there, too.
            let heard: &[&str] = if to == IpAddr::from(GROUPS_V6[0]) { &[] } else { &["node"] };
            listeners.assert_heard("isolated for ingress", ("db", &frame("db", to)), heard);
        }
        assert_forged_frames_reach_nobody(&listeners);
        listeners.assert_heard("one to one", ("db", &unicast("db", "plain")), &["plain"]);
        listeners.assert_heard("one to one", ("db", &unicast("db", "web")), &[]);
        let discover = Frame {
            source: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 68),
            destination: SocketAddr::new(Ipv4Addr::BROADCAST.into(), DHCP_SERVER),
            ..frame("db", Ipv4Addr::BROADCAST.into())
        };
        assert!(listeners.hear("db", &discover).contains(&"plain"), "who has no address yet finds a DHCP server");
        for policy in ["shut", "in"] {
            bridged.world.cluster.policies.remove(&ObjectName::new("shop", policy));
        }
        bridged.settle();
        for to in everybody() {
            listeners.assert_heard("without policies", ("db", &frame("db", to)), &["node", "plain", "web"]);
        }
        let saved = bridged.enforcer.filter.saved();
        assert!(!saved.contains("MULTICAST") && !saved.contains("jump to_many"), "nothing is left over: {saved}");
    });
}

/// `db` and `plain` work together to reach `web`, which is isolated.
fn assert_forged_frames_reach_nobody(listeners: &Listeners) {
    let to_web = |to: Ipv4Addr| Frame { to: link_address("web"), ..frame("db", to.into()) };
    for to in GROUPS_V4.into_iter().chain(EVERYBODY) {
        listeners.assert_heard("in a frame for one", ("db", &to_web(to)), &[]);
    }
    let zero = Frame { to: BROADCAST, ..frame("db", Ipv4Addr::UNSPECIFIED.into()) };
    let zero = Frame { source: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 1024), ..zero };
    assert!(!listeners.hear("db", &zero).contains(&"web"), "from nobody to nobody is for everybody");
    // An answer in advance, as if from the group: what follows belongs to a connection.
    let [group, _] = GROUPS_V4;
    let answer = Frame {
        source: SocketAddr::new(group.into(), PORT),
        destination: SocketAddr::new(frame("plain", group.into()).source.ip(), 1024),
        ..unicast("db", "plain")
    };
    listeners.hear("db", &answer);
    listeners.assert_heard("as a reply", ("plain", &frame("plain", group.into())), &["node"]);
}

/// A tag of VLAN 0 says nothing of a VLAN, and whoever gets the frame takes it as untagged.
#[test]
fn a_tag_of_no_vlan_leads_past_no_policy() {
    with_each(|bridged| {
        std::fs::write("/proc/sys/net/bridge/bridge-nf-filter-vlan-tagged", "0").expect("a setting of the namespace");
        let mut host = (*bridged.world.host).clone();
        host.links = vec![sluice::model::HostLink { name: "kube-bridge".into(), mtu: 1500, bridge: true }];
        bridged.world.host = std::sync::Arc::new(host);
        let listeners = Listeners::of(bridged);
        let tagged = |frame: Frame| Frame { tags: vec![0], ..frame };
        bridged.settle();
        listeners.assert_heard("without policies", ("db", &tagged(unicast("db", "web"))), &["web"]);
        bridged.world.cluster.policies.insert(ObjectName::new("shop", "in"), ingress(app("web"), &[]));
        bridged.settle();
        let group = IpAddr::from(GROUPS_V4[0]);
        for frame in [unicast("db", "web"), Frame { to: link_address("web"), ..frame("db", group) }] {
            listeners.assert_heard("tagged", ("db", &tagged(frame)), &[]);
        }
        listeners.assert_heard("others", ("db", &tagged(unicast("db", "plain"))), &["plain"]);
    });
}

#[test]
fn what_is_dropped_on_bridges_is_logged_and_counted() {
    with_each(|bridged| {
        let listeners = Listeners::of(bridged);
        bridged.world.cluster.policies.insert(ObjectName::new("shop", "in"), ingress(app("web"), &[]));
        bridged.settle();
        listeners.hear("db", &frame("db", GROUPS_V4[0].into()));
        let link_local = Frame {
            source: "[fe80::11]:1024".parse().expect("an address"),
            ..Frame { to: link_address("web"), ..frame("db", "fe80::10".parse().expect("an address")) }
        };
        listeners.hear("db", &link_local);
        let text = bridged.refused();
        for reason in ["link-local", "multicast"] {
            let name = format!("sluice_firewall_bridge_dropped_packets_total{{reason=\"{reason}\"}} ");
            let count =
                text.lines().find_map(|line| line.strip_prefix(&name)).and_then(|count| count.parse::<u64>().ok());
            assert!(count > Some(0), "{reason}: {text}");
        }
        let saved = bridged.enforcer.filter.saved();
        let is_there = |words: [&str; 2]| words.iter().all(|word| saved.contains(word));
        assert!(
            is_there(["-A KUBE-NWPLCY-MULTICAST", "NFLOG"]) || is_there(["chain to_many", "log prefix"]),
            "{saved}"
        );
    });
}
