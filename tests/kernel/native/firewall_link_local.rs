//! Packets between pods of one bridge with IPv6 link-local addresses, which no policy can name: real packets between
//! the ports of a bridge, with IPv6 for pods and without.

use std::fs::File;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, UdpSocket};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};
use sluice::firewall::plan::Plan;
use sluice::model::{ObjectName, World};
use sluice::net::PerFamily;

use super::enforcer::{Enforcer, Filter};
use super::firewall::{PODS, app, config, egress, ingress, put_pod, world};
use super::firewall_multicast::link_address;
use super::frame::{Frame, LinkAddress};
use super::moment;
use super::places::inside;
use crate::namespace::{attempt, in_new, own_run, run};

/// Pods on the bridge, and the node, with the last word of their link-local addresses.
const ENDS: [(&str, u16); 4] = [("web", 0x10), ("db", 0x11), ("plain", 0x12), ("node", 0x1)];
const PORT: u16 = 80;
const PATIENCE: Duration = Duration::from_millis(400);

/// A node whose pods are on one bridge.
pub struct Bridged {
    pub ends: Vec<(&'static str, u16, File, TcpListener)>,
    pub world: World,
    plan: Plan,
    pub enforcer: Enforcer,
}

/// Where a connection goes from and to.
#[derive(Clone, Copy, Debug)]
enum By {
    /// Both ends use the addresses of their links.
    Link,
    /// The address of its link towards a global one.
    LinkToGlobal,
    Global,
}

pub fn with_each(test: impl Fn(&mut Bridged) + Send + Sync) {
    for (filter, v6) in Filter::ALL.into_iter().flat_map(|filter| [true, false].map(|v6| (filter, v6))) {
        in_new(|| {
            own_run();
            test(&mut Bridged::new(filter, v6));
        });
    }
}

impl Bridged {
    /// `v6`: policies speak of IPv6, as with `--enable-ipv6`.
    fn new(filter: Filter, v6: bool) -> Bridged {
        std::fs::write("/proc/sys/net/ipv6/icmp/ratelimit", "0").expect("a setting of the namespace");
        run("ip link add kube-bridge type bridge mcast_snooping 0");
        quiet("kube-bridge");
        run("ip link set kube-bridge up");
        run("ip addr add 10.244.1.1/24 dev kube-bridge");
        run("ip -6 addr add fe80::1/64 dev kube-bridge nodad");
        run("ip -6 addr add fd00:10:244:1::1/64 dev kube-bridge nodad");
        let ends = ENDS.map(|(name, last)| {
            if name != "node" {
                run(&format!("ip netns add {name}"));
                run(&format!("ip link add to-{name} type veth peer name eth0 netns {name}"));
                run(&format!("ip link set to-{name} master kube-bridge up"));
                let within = |words: &str| run(&format!("ip -n {name} {words}"));
                within("link set lo up");
                within(&format!("link set eth0 address {} up", spelled(link_address(name))));
                let own = PODS.iter().find(|(pod, ..)| *pod == name).map(|(_, v4, _)| v4).expect("it is a pod");
                within(&format!("addr add {own}/24 dev eth0"));
                within(&format!("-6 addr add fe80::{last:x}/64 dev eth0 nodad"));
                within(&format!("-6 addr add fd00:10:244:1::{last:x}/64 dev eth0 nodad"));
            }
            let path = if name == "node" { crate::namespace::path() } else { format!("/run/netns/{name}").into() };
            let namespace = File::open(path).expect("the namespace");
            let listener = inside(&namespace, || TcpListener::bind(format!("[::]:{PORT}")).expect("the port is free"));
            listener.set_nonblocking(true).expect("a listener need not wait");
            (name, last, namespace, listener)
        });
        let mut bridged = Bridged {
            ends: ends.into(),
            world: world(),
            plan: Plan::new(),
            enforcer: Enforcer::new(filter, config(false), PerFamily { v4: true, v6 }),
        };
        if !v6 {
            // The cluster does not know of any IPv6.
            for (name, v4, _) in PODS {
                put_pod(&mut bridged.world, name, &[v4], &[("app", name)]);
            }
        }
        bridged
    }

    fn round(&mut self) {
        let changed = self.plan.update(&self.world);
        self.enforcer.update(self.plan.rules(), &self.world, &changed);
        self.enforcer.round(moment());
    }

    /// Metrics of refused packets in the exposition format.
    pub fn refused(&mut self) -> String {
        self.enforcer.refused(self.plan.rules())
    }

    fn trouble(&mut self) -> Option<String> {
        self.enforcer.troubles().into_iter().next()
    }

    pub fn settle(&mut self) {
        self.round();
        // Chains without a jump to them are deleted a little later.
        std::thread::sleep(Duration::from_millis(250));
        self.enforcer.round(moment());
        assert!(self.enforcer.is_settled(), "{:?}", self.trouble());
    }

    fn reaches(&self, from: &str, to: &str, by: By) -> bool {
        let end = |name: &str| self.ends.iter().find(|(its, ..)| *its == name).expect("it is there");
        let ((_, source, namespace, _), (_, target, _, listener)) = (end(from), end(to));
        let device = if from == "node" { "kube-bridge" } else { "eth0" };
        let link = |last: u16| Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, last);
        let global = |last: u16| Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, last);
        let (source, target) = match by {
            By::Link => (link(*source), link(*target)),
            By::LinkToGlobal => (link(*source), global(*target)),
            By::Global => (global(*source), global(*target)),
        };
        let reached = inside(namespace, || connects((source, target), scope_of(device)));
        while listener.accept().is_ok() {}
        reached
    }

    fn assert_paths(&self, said: &str, by: By, paths: &[((&str, &str), bool)]) {
        for ((from, to), open) in paths {
            // Connections that should succeed are retried: the machine may be busy.
            let reached = self.reaches(from, to, by) || *open && self.reaches(from, to, by);
            assert_eq!(reached, *open, "{said}: {from} to {to} by {by:?}\n{}", self.enforcer.filter.saved());
        }
    }
}

/// The number of a device in the namespace of the calling thread.
pub fn scope_of(device: &str) -> u32 {
    let shown = run(&format!("ip -o link show dev {device}"));
    shown.split(':').next().and_then(|index| index.trim().parse().ok()).expect("a number")
}

fn connects((source, target): (Ipv6Addr, Ipv6Addr), scope: u32) -> bool {
    let socket = socket_with(AddressFamily::INET6, SocketType::STREAM, SocketFlags::NONBLOCK, None).expect("a socket");
    sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).expect("a socket can be told so");
    bind(&socket, &SocketAddr::V6(SocketAddrV6::new(source, 0, 0, scope))).expect("an address of this place");
    match rustix::net::connect(&socket, &SocketAddr::V6(SocketAddrV6::new(target, PORT, 0, scope))) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(error) => panic!("{source} {target}: {error}"),
    }
    let mut waiting = [PollFd::new(&socket, PollFlags::OUT)];
    let patience = Timespec { tv_sec: 0, tv_nsec: i64::try_from(PATIENCE.as_nanos()).expect("it is short") };
    poll(&mut waiting, Some(&patience)).expect("a socket can be waited for") > 0
        && sockopt::socket_error(&socket).expect("a socket has an outcome").is_ok()
}

fn spelled(address: LinkAddress) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

fn quiet(device: &str) {
    for setting in ["accept_dad", "accept_ra"] {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{device}/{setting}"), "0").expect("a setting of a device");
    }
}

#[test]
fn link_local_addresses_lead_past_no_policy_and_the_link_goes_on_working() {
    with_each(|bridged| {
        bridged.settle();
        let all = [("web", "db"), ("db", "web"), ("plain", "db"), ("web", "node"), ("node", "web")];
        let open = all.map(|path| (path, true));
        bridged.assert_paths("without policies", By::Link, &open);
        bridged.world.cluster.policies.insert(ObjectName::new("shop", "shut"), egress(app("web"), &[]));
        bridged.world.cluster.policies.insert(ObjectName::new("shop", "in"), ingress(app("web"), &[]));
        bridged.settle();
        let closed = all.map(|path| (path, path.0 == "node"));
        bridged.assert_paths("web is isolated", By::Link, &closed);
        let paths = [("db", "web"), ("web", "db"), ("web", "node")].map(|path| (path, false));
        bridged.assert_paths("web is isolated", By::LinkToGlobal, &paths);
        // Neighbours are asked for anew, and answer.
        for name in ["db", "plain"] {
            run(&format!("ip -n {name} neigh flush dev eth0"));
        }
        bridged.assert_paths("others are not", By::Global, &[(("plain", "db"), true), (("node", "db"), true)]);
        for policy in ["shut", "in"] {
            bridged.world.cluster.policies.remove(&ObjectName::new("shop", policy));
        }
        bridged.settle();
        bridged.assert_paths("without policies again", By::Link, &open);
        let saved = bridged.enforcer.filter.saved();
        assert!(!saved.contains("LINK-LOCAL") && !saved.contains("jump link_local"), "nothing is left over: {saved}");
    });
}

/// A bridge does not forward frames to some groups (IEEE 802.1Q 8.6.3), and the host takes a packet in them as one that came by the pod's own
/// link: no rule about the bridge sees it.
#[test]
fn frames_to_groups_that_bridges_keep_to_themselves_lead_past_no_policy() {
    with_each(|bridged| {
        let socket = UdpSocket::bind("[::]:0").expect("a port is free");
        socket.set_read_timeout(Some(Duration::from_millis(40))).expect("a socket can be told so");
        let port = socket.local_addr().expect("it is bound").port();
        let web = bridged.ends.iter().find(|(name, ..)| *name == "web").expect("it is there").2.try_clone();
        let web = web.expect("a file can be opened twice");
        let taken = |last: u8, (source, target): (&str, &str)| {
            let frame = Frame {
                from: link_address("web"),
                to: [0x01, 0x80, 0xc2, 0, 0, last],
                tags: Vec::new(),
                source: SocketAddr::new(source.parse().expect("an address"), 1024),
                destination: SocketAddr::new(target.parse().expect("an address"), port),
                payload: b"past".to_vec(),
            };
            inside(&web, || frame.send(scope_of("eth0")));
            socket.recv(&mut [0; 64]).is_ok()
        };
        let paths = [("fe80::10", "fd00:10:244:1::1"), ("fe80::10", "ff02::1"), ("fd00:10:244:1::10", "ff02::1")];
        let all = || [2, 3, 0x0e].into_iter().flat_map(|last| paths.map(|path| (last, path)));
        for (last, path) in all() {
            assert!((0..5).any(|_| taken(last, path)), "without policies: {path:?} by {last}");
        }
        bridged.world.cluster.policies.insert(ObjectName::new("shop", "shut"), egress(app("web"), &[]));
        bridged.settle();
        for (last, path) in all() {
            assert!(!taken(last, path), "web is isolated: {path:?} by {last}");
        }
        let text = bridged.refused();
        let line = "sluice_firewall_bridge_dropped_packets_total{reason=\"bridge-group\"} ";
        let count = text.lines().find_map(|one| one.strip_prefix(line)).and_then(|count| count.parse::<u64>().ok());
        assert!(count >= Some(9), "{text}");
        bridged.world.cluster.policies.remove(&ObjectName::new("shop", "shut"));
        bridged.settle();
        assert!(!attempt("nft list table inet sluice_frames").0, "nothing is left over");
    });
}

#[test]
fn a_bridge_of_another_plugin_is_known_by_the_addresses_of_its_pods() {
    for filter in Filter::ALL {
        in_new(|| {
            own_run();
            let mut bridged = Bridged::new(filter, false);
            run("ip link set kube-bridge down");
            run("ip link set kube-bridge name cni0");
            run("ip link set cni0 up");
            let mut host = (*bridged.world.host).clone();
            let prefix = "10.244.1.0/24".parse().expect("a prefix");
            host.on_link = vec![sluice::model::OnLink { prefix, link: "cni0".into() }];
            host.links = vec![sluice::model::HostLink { name: "cni0".into(), mtu: 1500, bridge: true }];
            bridged.world.host = std::sync::Arc::new(host);
            bridged.world.cluster.policies.insert(ObjectName::new("shop", "shut"), egress(app("web"), &[]));
            bridged.settle();
            bridged.assert_paths("web is isolated", By::Link, &[(("web", "db"), false)]);
        });
    }
}

#[test]
fn a_kernel_that_shows_the_rules_nothing_of_bridges_is_trouble_where_pods_are_on_one() {
    for filter in Filter::ALL {
        in_new(|| {
            own_run();
            // As where the module is missing.
            run("mount -t tmpfs none /proc/sys/net/bridge");
            let mut bridged = Bridged::new(filter, false);
            bridged.settle();
            let mut host = (*bridged.world.host).clone();
            host.links = vec![sluice::model::HostLink { name: "kube-bridge".into(), mtu: 1500, bridge: true }];
            bridged.world.host = std::sync::Arc::new(host);
            bridged.round();
            let trouble = bridged.trouble().expect("pods of one bridge pass all policies");
            assert!(trouble.contains("br_netfilter"), "{trouble}");
            run("umount /proc/sys/net/bridge");
            let later = bridged.enforcer.retry_at().expect("it is looked for again");
            bridged.enforcer.round(sluice::reconcile::Moment { now: later, jitter: 0 });
            assert_eq!(bridged.trouble(), None);
            assert_eq!(run("cat /proc/sys/net/bridge/bridge-nf-call-iptables").trim(), "1");
        });
    }
}
