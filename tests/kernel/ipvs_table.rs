//! The service proxy's table of nf_tables beside virtual services of IPVS: packets of a client outside, by way of this node, to a pod of
//! another one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use sluice::kernel::ipset::{Entry, IpPortNet};
use sluice::kernel::nftables::{Content, Object, OwnTable};
use sluice::net::{Family, PerFamily, Protocol};
use sluice::proxy::local_node::LocalNode;
use sluice::proxy::names::{Set, TABLE};
use sluice::proxy::{guard, hidden_ports, masquerade};
use sluice::reconcile::{Growth, Mirror, Moment, Reflection};

use crate::ipvs::in_use;
use crate::namespace::{attempt, in_new, own_run, run};
use crate::native::places::inside;

/// The node between a client and the node of a pod, which knows no way to the client.
struct Scene {
    family: Family,
    client: File,
    /// Where the pod's server listens.
    endpoint: TcpListener,
    outer: IpAddr,
    inner: IpAddr,
    service: IpAddr,
}

/// Addresses of one family: prefix length of links; the node towards the client, the client; the node towards the other node, that
/// node, its pod; the Service.
type Plan = (&'static str, [&'static str; 6]);
const V4: Plan = ("24", ["203.0.113.1", "203.0.113.10", "192.0.2.1", "192.0.2.2", "10.244.2.9", "10.96.0.10"]);
const V6: Plan =
    ("64", ["2001:db8:113::1", "2001:db8:113::10", "2001:db8::1", "2001:db8::2", "fd00:10:244:2::9", "fd00:10:96::10"]);
const NODE_PORT: u16 = 30080;
const HOST_PORT: u16 = 7777;

impl Scene {
    fn new(family: Family) -> Scene {
        let (length, [outer, client, inner, other, pod, service]) = if family == Family::V4 { V4 } else { V6 };
        let name = |text: &str| format!("{text}{}", if family == Family::V6 { 6 } else { 4 });
        for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv4/vs/conntrack"] {
            fs::write(format!("/proc/sys/net/{setting}"), "1").expect("a setting of the namespace");
        }
        fs::create_dir_all("/run/netns").expect("a directory of names");
        for (there, here, far) in [("client", outer, client), ("other", inner, other)] {
            let there = name(there);
            run(&format!("ip netns add {there}"));
            run(&format!("ip link add to-{there} type veth peer name eth0 netns {there}"));
            let bits = if family == Family::V6 { format!("{length} nodad") } else { length.to_owned() };
            run(&format!("ip addr add {here}/{bits} dev to-{there}"));
            run(&format!("ip link set to-{there} up"));
            run(&format!("ip -n {there} addr add {far}/{bits} dev eth0"));
            run(&format!("ip -n {there} link set eth0 up"));
            run(&format!("ip -n {there} link set lo up"));
        }
        run(&format!("ip -n {} addr add {pod} dev lo", name("other")));
        run(&format!("ip route add {pod} via {other}"));
        run(&format!("ip route add local {service} dev lo table local"));
        run(&format!("ip -n {} route add {service} via {outer}", name("client")));
        let open = |there: &str| File::open(format!("/run/netns/{there}")).expect("the new namespace");
        let parse = |text: &str| text.parse::<IpAddr>().expect("an address");
        let endpoint = inside(&open(&name("other")), || TcpListener::bind((pod, 8080)).expect("the port is free"));
        endpoint.set_nonblocking(true).expect("a listener need not wait");
        for (address, port) in [(service, 80), (outer, NODE_PORT)] {
            let virtual_service = SocketAddr::new(parse(address), port);
            run(&format!("ipvsadm -A -t {virtual_service} -s rr"));
            run(&format!("ipvsadm -a -t {virtual_service} -r {} -m", SocketAddr::new(parse(pod), 8080)));
        }
        Scene {
            family,
            client: open(&name("client")),
            endpoint,
            outer: parse(outer),
            inner: parse(inner),
            service: parse(service),
        }
    }

    /// Returns the table that the service proxy desires on this node.
    fn desired(&self) -> BTreeMap<Object, Content> {
        let mut node =
            LocalNode { families: PerFamily::from_fn(|family| family == self.family), ..LocalNode::default() };
        *node.address.of_mut(self.family) = Some(self.inner);
        let mut desired: BTreeMap<Object, Content> =
            Set::BASIC.into_iter().map(|set| guard::table_set(set, self.family)).collect();
        desired.extend(guard::table_chains(&[self.family], &[(Protocol::Tcp, 179), (Protocol::Udp, 4784)]));
        desired.extend(masquerade::table_chains(&node, false, &[179]));
        desired.extend(hidden_ports::in_table(&[self.family]));
        let own = [self.outer, self.inner].map(|address| Set::LocalAddresses.object(&Entry::Ip(address)));
        let served = [(self.service, 80), (self.outer, NODE_PORT)];
        let addresses = served.map(|(address, _)| Set::ServiceAddresses.object(&Entry::Ip(address)));
        let ports =
            served.map(|(address, port)| Set::ServicePorts.object(&Entry::IpPort(address, Protocol::Tcp, port)));
        desired.extend(own.into_iter().chain(addresses).chain(ports).map(|object| (object, Content::Element)));
        desired
    }

    /// Connects from the client. Returns the source address that the pod sees, where a connection comes about.
    fn asks(&self, to: IpAddr, port: u16) -> Result<Option<IpAddr>, ErrorKind> {
        self.asks_of(&self.endpoint, to, port)
    }

    /// The same of another server in the pod.
    fn asks_of(&self, server: &TcpListener, to: IpAddr, port: u16) -> Result<Option<IpAddr>, ErrorKind> {
        self.asks_from(&self.client, server, to, port)
    }

    /// The same from another place.
    fn asks_from(&self, from: &File, server: &TcpListener, to: IpAddr, port: u16) -> Result<Option<IpAddr>, ErrorKind> {
        let connected = inside(from, || {
            TcpStream::connect_timeout(&SocketAddr::new(to, port), Duration::from_secs(3)).map_err(|error| error.kind())
        })?;
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until {
            if let Ok((_, seen)) = server.accept() {
                drop(connected);
                return Ok(Some(seen.ip()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(None)
    }
}

fn with_each_family(test: impl Fn(&Scene) + Send + Sync) {
    Family::BOTH.into_iter().for_each(|family| with_family(family, &test));
}

fn with_family(family: Family, test: impl Fn(&Scene) + Send + Sync) {
    let (loaded, _, error) = attempt("modprobe ip_vs");
    assert!(loaded, "this kernel has no module ip_vs; run this test in the guest of the lab: {error}");
    let _in_use = in_use();
    in_new(|| {
        own_run();
        test(&Scene::new(family));
    });
}

fn at() -> Moment {
    Moment { now: Instant::now(), jitter: 0 }
}

#[test]
fn connections_of_ipvs_have_the_nodes_address_by_the_table_alone() {
    with_each_family(|scene| {
        for (to, port) in [(scene.service, 80), (scene.outer, NODE_PORT)] {
            // The pod's node has no way back to the client.
            assert!(scene.asks(to, port).is_err(), "{to} {port}: answered before anything masquerades");
        }
        let mut table = Mirror::new(OwnTable::open(TABLE).expect("the kernel can be reached"));
        let desired = scene.desired();
        table.grow(&desired, Growth::Full, at());
        assert!(table.is_settled(), "{:?}", table.trouble());
        for (to, port) in [(scene.service, 80), (scene.outer, NODE_PORT)] {
            assert_eq!(scene.asks(to, port), Ok(Some(scene.inner)), "{to} {port}\n{}", run("nft list ruleset"));
        }
    });
}

/// A Service may name any address and port as its endpoint, another node's speaker among them, which knows its neighbours by their addresses.
#[test]
fn a_client_of_a_service_that_leads_to_a_speaker_of_bgp_keeps_its_own_address() {
    with_each_family(|scene| {
        let mut table = Mirror::new(OwnTable::open(TABLE).expect("the kernel can be reached"));
        table.grow(&scene.desired(), Growth::Full, at());
        assert!(table.is_settled(), "{:?}", table.trouble());
        let (_, [_, client, inner, _, pod, _]) = if scene.family == Family::V4 { V4 } else { V6 };
        let other = format!("other{}", if scene.family == Family::V6 { 6 } else { 4 });
        let there = File::open(format!("/run/netns/{other}")).expect("the other node");
        let speaker = inside(&there, || TcpListener::bind((pod, 179)).expect("the port is free"));
        speaker.set_nonblocking(true).expect("a listener need not wait");
        let pod: IpAddr = pod.parse().expect("an address");
        let service = SocketAddr::new(scene.service, 80);
        run(&format!("ipvsadm -d -t {service} -r {}", SocketAddr::new(pod, 8080)));
        run(&format!("ipvsadm -a -t {service} -r {} -m", SocketAddr::new(pod, 179)));
        assert!(scene.asks_of(&speaker, scene.service, 80).is_err(), "its node has no way back to the client");
        // With one it sees who asks.
        run(&format!("ip -n {other} route add {client} via {inner}"));
        let seen = scene.asks_of(&speaker, scene.service, 80);
        assert_eq!(seen, Ok(client.parse().ok()), "{}", run("nft list ruleset"));
        assert_eq!(scene.asks(scene.outer, NODE_PORT), Ok(Some(scene.inner)), "others are masqueraded");
        // A slice may say of the other node's address that it is an endpoint here: a connection that has it as its source, as what that node masquerades has,
        // would be one of an endpoint that reaches itself.
        let of_itself = IpPortNet { address: pod, protocol: Protocol::Tcp, port: 179, range: pod.into() };
        let itself = Entry::IpPortNet(Box::new(of_itself));
        let mut desired = scene.desired();
        desired.insert(Set::Hairpin.object(&itself), Content::Element);
        table.mark(Set::Hairpin.object(&itself));
        table.grow(&desired, Growth::Full, at());
        assert!(table.is_settled(), "{:?}", table.trouble());
        run(&format!("ip -n {other} route add {} via {inner} src {pod}", scene.service));
        let seen = scene.asks_from(&there, &speaker, scene.service, 80);
        assert!(seen.is_err(), "a speaker that is asked in its own name sees {seen:?}\n{}", run("nft list ruleset"));
    });
}

/// IPVS takes for an answer what an endpoint sends to the client of one of its connections, whoever began, and gives it the node's address: with another node's
/// speaker as client the endpoint would speak with it as this node.
#[test]
fn nobody_reaches_a_service_from_the_port_of_a_speaker_so_no_endpoint_sends_there_as_the_node() {
    with_each_family(|scene| {
        let (_, [outer, client, inner, _, pod, _]) = if scene.family == Family::V4 { V4 } else { V6 };
        let name = |text: &str| format!("{text}{}", if scene.family == Family::V6 { 6 } else { 4 });
        run(&format!("ip -n {} route add {client} via {inner}", name("other")));
        let parse = |text: &str| text.parse::<IpAddr>().expect("an address");
        let there = File::open(format!("/run/netns/{}", name("other"))).expect("the other node");
        let bound = |place: &File, at: SocketAddr| {
            let socket = inside(place, || UdpSocket::bind(at).expect("the port is free"));
            socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a socket");
            socket
        };
        let (speaker, endpoint) = (SocketAddr::new(parse(client), 4784), SocketAddr::new(parse(pod), 8080));
        let service = SocketAddr::new(scene.outer, NODE_PORT);
        run(&format!("ipvsadm -A -u {service} -s rr"));
        run(&format!("ipvsadm -a -u {service} -r {endpoint} -m"));
        let (speaker, pod) = (bound(&scene.client, speaker), bound(&there, endpoint));
        // Whom the speaker hears when the endpoint sends to it, after a datagram has gone from the speaker's port to the Service.
        let heard = |asks_first: bool| {
            if asks_first {
                speaker.send_to(b"asks", service).expect("it is sent");
                let _ = pod.recv_from(&mut [0; 8]);
            }
            pod.send_to(b"speaks", speaker.local_addr().expect("it is bound")).expect("it is sent");
            speaker.recv_from(&mut [0; 8]).map(|(_, seen)| seen).ok()
        };
        let asks = |port: u16| {
            let code = format!(
                "import socket; socket.create_connection((\"{outer}\", {NODE_PORT}), 3, (\"{client}\", {port}))"
            );
            let mut python = Command::new("ip");
            python.args(["netns", "exec", &name("client"), "python3", "-c", &code]);
            python.output().expect("start ip").status.success()
        };
        assert_eq!(heard(false), Some(endpoint));
        let mut desired = scene.desired();
        let known = Set::ServicePorts.object(&Entry::IpPort(scene.outer, Protocol::Udp, NODE_PORT));
        desired.insert(known, Content::Element);
        let mut table = Mirror::new(OwnTable::open(TABLE).expect("the kernel can be reached"));
        table.grow(&desired, Growth::Full, at());
        assert!(table.is_settled(), "{:?}", table.trouble());
        assert_eq!(heard(true), Some(endpoint), "{}", run("ipvsadm -Lcn"));
        assert!(!asks(179) && asks(1790), "{}", run("nft list ruleset"));
        // Since Linux 6.9 nobody but its owner deletes it.
        drop(table);
        run("nft delete table inet sluice_proxy");
        assert!(asks(179), "without the guard");
        assert_eq!(heard(true), Some(service), "without the guard it has the node's address");
    });
}

/// A SYN as a pod may send it that has raw sockets: behind an Authentication Header of 24 bytes (RFC 4302 2), or behind destination options that end at byte
/// 65,536 of the packet, in fragments (RFC 8200 4.6).
const HIDDEN_SYN: &str = r#"
import socket, struct, sys
source, own, target, port, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5]
syn = struct.pack("!HHIIBBHHH", own, port, 1, 0, 5 << 4, 2, 65535, 0, 0)
pseudo = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, target) + struct.pack("!II", len(syn), 6)
total = sum(struct.unpack(f"!{len(pseudo + syn) // 2}H", pseudo + syn))
total = (total & 0xffff) + (total >> 16)
syn = syn[:16] + struct.pack("!H", ~(total + (total >> 16)) & 0xffff) + syn[18:]
def options(following, length):
    pads = length - 2
    padded = b"".join(struct.pack("!BB", 1, min(255, pads - at - 2)) + bytes(min(255, pads - at - 2)) for at in range(0, pads, 257))
    return struct.pack("!BB", following, length // 8 - 1) + padded
if kind == "ah":
    number, packets = 51, [struct.pack("!BBHII12x", 6, 4, 0, 256, 1) + syn]
else:
    whole = options(60, 2048) * 31 + options(6, 2008) + syn
    pieces = [(at, whole[at:at + 1400]) for at in range(0, len(whole), 1400)]
    number, packets = 44, [struct.pack("!BBHI", 60, 0, at | (at + 1400 < len(whole)), own) + piece for at, piece in pieces]
sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, number)
sock.bind((source, 0))
for packet in packets:
    sock.sendto(packet, (target, 0))
"#;

#[test]
fn nobody_reaches_a_service_whose_port_headers_hide_from_all_rules() {
    with_family(Family::V6, |scene| {
        let (_, [outer, client, ..]) = V6;
        let service = scene.service.to_string();
        // Whether IPVS has a connection of such a segment.
        let is_served = |kind: &str, own: u16, target: &str, port: u16| {
            let [from, to] = [own, port].map(|port| port.to_string());
            let mut python = Command::new("ip");
            python.args(["netns", "exec", "client6", "python3", "-c", HIDDEN_SYN, client, &from, target, &to, kind]);
            let done = python.output().expect("start ip");
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            let until = Instant::now() + Duration::from_secs(2);
            let is_known = || run("ipvsadm -Lcn").contains(&format!("[{client}]:{own} "));
            while !is_known() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(20));
            }
            is_known()
        };
        let by_authentication = [("ah", 179, outer, NODE_PORT), ("ah", 180, &service, 80)];
        let by_length = [("long", 181, outer, NODE_PORT)];
        let mut table = Mirror::new(OwnTable::open(TABLE).expect("the kernel can be reached"));
        // `--ipvs-permit-all=false` leaves the guard out.
        let speakers = by_length.map(|(_, own, ..)| (Protocol::Tcp, own));
        let guards = guard::table_chains(&[Family::V6], &speakers);
        let mut desired = scene.desired();
        desired.retain(|object, _| !guards.contains_key(object));
        table.grow(&desired, Growth::Full, at());
        assert!(table.is_settled(), "{:?}", table.trouble());
        assert_eq!(scene.asks(scene.outer, NODE_PORT), Ok(Some(scene.inner)), "others are served");
        let listed = || format!("{}\n{}", run("ipvsadm -Lcn"), run("nft list ruleset"));
        for (kind, own, target, port) in by_authentication {
            assert!(!is_served(kind, own, target, port), "{kind} {target}\n{}", listed());
        }
        let counted = run("nft list counter inet sluice_proxy hidden_ports_dropped");
        assert!(counted.contains("packets 2 "), "{counted}");
        // Of the port of a speaker: before Linux 6.2 nf_tables sees it all the same, and the guard drops it.
        guards.keys().for_each(|object| table.mark(object.clone()));
        desired.extend(guards);
        table.grow(&desired, Growth::Full, at());
        assert!(table.is_settled(), "{:?}", table.trouble());
        for (kind, own, target, port) in by_length {
            assert!(!is_served(kind, own, target, port), "{kind} {target}\n{}", listed());
        }
        // Since Linux 6.9 nobody but its owner deletes it.
        drop(table);
        run("nft delete table inet sluice_proxy");
        for (kind, own, target, port) in by_authentication.into_iter().chain(by_length) {
            assert!(is_served(kind, own, target, port), "IPVS sees the port: {kind} {target}\n{}", run("ipvsadm -Lcn"));
        }
    });
}

#[test]
fn a_service_address_answers_at_its_ports_alone_and_the_hosts_own_at_all() {
    with_each_family(|scene| {
        let _host = TcpListener::bind(("::", HOST_PORT)).expect("the port is free");
        assert_eq!(scene.asks(scene.service, HOST_PORT), Ok(None), "without a guard the host answers");
        let mut table = Mirror::new(OwnTable::open(TABLE).expect("the kernel can be reached"));
        let mut desired = scene.desired();
        table.grow(&desired, Growth::Full, at());
        assert!(table.is_settled(), "{:?}", table.trouble());
        for port in [HOST_PORT, 81] {
            assert_eq!(scene.asks(scene.service, port), Err(ErrorKind::ConnectionRefused), "{port}");
        }
        assert_eq!(scene.asks(scene.outer, HOST_PORT), Ok(None), "the host's other ports are its own business");
        assert_eq!(scene.asks(scene.service, 80), Ok(Some(scene.inner)));
        // A port that is a Service's no longer is refused, although IPVS has it still.
        let port = Set::ServicePorts.object(&Entry::IpPort(scene.service, Protocol::Tcp, 80));
        desired.remove(&port);
        table.mark(port);
        table.shrink(&desired, at());
        assert!(table.is_settled(), "{:?}", table.trouble());
        assert_eq!(scene.asks(scene.service, 80), Err(ErrorKind::ConnectionRefused));
    });
}
