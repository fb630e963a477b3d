//! Direct server return with real packets: a client outside, this node as director, and a pod of this node in which tunnels end. Rules, routes and
//! virtual services are those that the service proxy makes of them, of either packet filter.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use sluice::config::{Config, Environment, Mistakes, ProxyConfig, Request, request};
use sluice::kernel::iptables::{Flavour, Leftovers, Ownership, Piece, Programs, Rules, Table, Tables};
use sluice::kernel::ipvs::{Destination, Forwarding, Service, ServiceKey, Services, Virtual};
use sluice::kernel::link::LinkName;
use sluice::kernel::nftables::{Content, Key, Object, OwnTable};
use sluice::kernel::route::{NextHop, Route, RouteKey, RouteKind, Routes, TABLE_LOCAL};
use sluice::kernel::rule::{PolicyRule, PolicyRules};
use sluice::kernel::{Name, module};
use sluice::model::Service as ClusterService;
use sluice::model::{
    Authority, Conditions, Endpoint, EndpointPort, EndpointSlice, Endpoints, Host, HostAddress, HostLink, Node,
    NodeAddress, NodeAddressKind, ObjectName, ProxyAnnotations, Scheduler, ServicePort, ServiceType, World,
};
use sluice::net::{Family, PerFamily, Protocol};
use sluice::proxy::apply::Mirrors;
use sluice::proxy::dsr::packet_marks::PacketMarks;
use sluice::proxy::dsr::rules::{given_mark, in_table, policy_rule, rules, segment_size};
use sluice::proxy::linux::{Linux, route_ownership};
use sluice::proxy::marks::is_rule_of_ours;
use sluice::proxy::names::{DEVICE, DSR_TABLE, Set, TABLE};
use sluice::proxy::plan::Plan;
use sluice::reconcile::{Growth, Mirror, Moment, Phase, Reflection, Step, Target};
use sluice::subsystem::Kinds;

use crate::ipvs::in_use;
use crate::namespace::{attempt, in_new, own_run, run};
use crate::native::places::inside;

#[path = "dsr/clients.rs"]
mod clients;
#[path = "dsr/errors.rs"]
mod errors;
#[path = "dsr/large.rs"]
mod large;
#[path = "dsr/ways.rs"]
mod ways;

/// A packet filter that a node may have.
#[derive(Clone, Copy, Debug)]
enum Filter {
    Nftables,
    Iptables(Flavour),
}

const FILTERS: [Filter; 3] = [Filter::Nftables, Filter::Iptables(Flavour::Legacy), Filter::Iptables(Flavour::NfTables)];

/// Served in tunnel mode, and with NAT to another port of the pod.
const PORT: u16 = 8080;
const NAT_PORT: u16 = 80;
const PATIENCE: Duration = Duration::from_secs(3);

struct Scene {
    family: Family,
    client: File,
    /// Servers in the pod: at the service's address, and at the pod's own.
    servers: [TcpListener; 2],
    node: IpAddr,
    service: IpAddr,
    pod_address: IpAddr,
}

/// Addresses of one family: prefix length of links; the node towards the client, the client; the node towards the pod, the pod; the Service.
type Addresses = (&'static str, [&'static str; 5]);
const V4: Addresses = ("24", ["192.0.2.1", "192.0.2.10", "10.244.1.1", "10.244.1.9", "203.0.113.7"]);
const V6: Addresses =
    ("64", ["2001:db8::1", "2001:db8::10", "fd00:10:244:1::1", "fd00:10:244:1::9", "2001:db8:113::7"]);

impl Scene {
    fn new(family: Family) -> Scene {
        let is_v6 = family == Family::V6;
        let (length, [node, client, gateway, pod, service]) = if is_v6 { V6 } else { V4 };
        let name = |text: &str| format!("{text}{}", if is_v6 { 6 } else { 4 });
        for (setting, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/vs/conntrack", "1"),
            // As the service proxy leaves it where a distribution has 1.
            ("ipv4/conf/all/rp_filter", "2"),
        ] {
            fs::write(format!("/proc/sys/net/{setting}"), value).expect("a setting of the namespace");
        }
        fs::create_dir_all("/run/netns").expect("a directory of names");
        for (there, here, far) in [("client", node, client), ("pod", gateway, pod)] {
            let there = name(there);
            run(&format!("ip netns add {there}"));
            run(&format!("ip link add to-{there} type veth peer name eth0 netns {there}"));
            let bits = if is_v6 { format!("{length} nodad") } else { length.to_owned() };
            run(&format!("ip addr add {here}/{bits} dev to-{there}"));
            run(&format!("ip link set to-{there} up"));
            run(&format!("ip -n {there} addr add {far}/{bits} dev eth0"));
            run(&format!("ip -n {there} link set eth0 up"));
            run(&format!("ip -n {there} link set lo up"));
            run(&format!("ip -n {there} route add default via {here}"));
        }
        run(&format!("ip route add default via {client}"));
        run(&format!("ip link add {DEVICE} type dummy"));
        run(&format!("ip link set {DEVICE} up"));
        let there = name("pod");
        let tunnel = match family {
            Family::V4 => format!("type ipip local {pod}"),
            Family::V6 => format!("type ip6tnl mode ip6ip6 local {pod} remote :: encaplimit none"),
        };
        run(&format!("ip -n {there} link add tunnel {tunnel}"));
        run(&format!("ip -n {there} link set tunnel up"));
        run(&format!("ip -n {there} addr add {service} dev tunnel {}", if is_v6 { "nodad" } else { "" }));
        let open = |there: &str| File::open(format!("/run/netns/{there}")).expect("the new namespace");
        let parse = |text: &str| text.parse::<IpAddr>().expect("an address");
        let pod_place = open(&there);
        let servers = inside(&pod_place, || {
            for device in ["all", "eth0", "tunnel"] {
                fs::write(format!("/proc/sys/net/ipv4/conf/{device}/rp_filter"), "0").expect("a setting of the pod");
            }
            [(service, PORT), (pod, PORT + 1)].map(|(at, port)| {
                let server = TcpListener::bind((at, port)).expect("the port is free");
                server.set_nonblocking(true).expect("a listener need not wait");
                server
            })
        });
        Scene {
            family,
            client: open(&name("client")),
            servers,
            node: parse(node),
            service: parse(service),
            pod_address: parse(pod),
        }
    }

    fn key(&self) -> ServiceKey {
        ServiceKey::Address { address: self.service, protocol: Protocol::Tcp, port: PORT }
    }

    fn mark(&self) -> u32 {
        let mut marks = PacketMarks::default();
        marks.put(self.key(), Some((0, ObjectName::new("shop", "web"))));
        marks.of(&self.key()).expect("marks are free")
    }

    /// Adds the rules of the packet filter. What is returned keeps them.
    fn filter(&self, filter: Filter) -> Box<dyn std::any::Any> {
        let size = segment_size(self.family, 1500);
        match filter {
            Filter::Nftables => {
                let sizes = PerFamily::from_fn(|family| (family == self.family).then_some(size));
                let mut desired: BTreeMap<Object, Content> = in_table(sizes);
                desired.insert(given_mark(self.mark()), Content::Element);
                let (addresses, map) =
                    (Set::TunnelAddresses.in_table(self.family), Set::TunnelPorts.in_table(self.family));
                desired.insert(Object::Element(addresses, Key::Address(self.service)), Content::Element);
                let key = Key::Service(self.service, Protocol::Tcp, PORT);
                desired.insert(Object::Element(map, key), Content::Mark(self.mark()));
                let mut table = Mirror::new(OwnTable::open(TABLE).expect("the kernel can be reached"));
                table.mark_all();
                table.grow(&desired, Growth::Full, at());
                assert!(table.is_settled(), "{:?}", table.trouble());
                Box::new(table)
            }
            Filter::Iptables(flavour) => {
                let six = if self.family == Family::V6 { "family inet6" } else { "" };
                let set = Set::TunnelAddresses.name(self.family);
                run(&format!("ipset create {set} hash:ip {six}"));
                run(&format!("ipset add {set} {}", self.service));
                let chains = vec![(Table::Mangle, Name::Prefix("KUBE-ROUTER-DSR".into()))];
                let ours = Ownership { chains, leftovers: Leftovers::Proxy };
                let programs =
                    PerFamily::from_fn(|family| (family == self.family).then_some(Programs { flavour, plain: false }));
                let mut tables = Mirror::new(Tables::new(programs, ours));
                let desired: BTreeMap<Piece, Rules> = rules(self.family, [(&self.key(), self.mark())], size);
                tables.mark_all();
                tables.grow(&desired, Growth::Full, at());
                assert!(tables.is_settled(), "{:?}", tables.trouble());
                tables.forget();
                tables.grow(&desired, Growth::Full, at());
                assert_eq!(tables.steps_done(), desired.len() as u64, "it is read as it was written");
                Box::new(tables)
            }
        }
    }

    fn virtual_services(&self) {
        let held = |address: SocketAddr, forwarding| Virtual {
            service: Service { scheduler: "mh".into(), flags: 0, persistence_seconds: 0 },
            destinations: [Destination { address, weight: 1, forwarding }].into(),
        };
        let marked = ServiceKey::Mark { mark: self.mark(), family: self.family };
        let with_nat = ServiceKey::Address { address: self.service, protocol: Protocol::Tcp, port: NAT_PORT };
        let wanted = [
            (marked, held((self.pod_address, PORT).into(), Forwarding::Tunnel)),
            (with_nat, held((self.pod_address, PORT + 1).into(), Forwarding::Nat)),
        ];
        let mut services = Services::open(Box::new(|_| true)).expect("sockets");
        let mut mirror_of: BTreeMap<ServiceKey, Virtual> = BTreeMap::new();
        mirror_of.extend(wanted);
        let steps: Vec<_> = mirror_of.iter().map(|(key, want)| Step { key, have: None, want: Some(want) }).collect();
        let failed = services.apply(Phase::Grow, &steps);
        assert!(failed.is_empty(), "{failed:?}");
        assert_eq!(services.read().expect("a reading"), mirror_of);
    }

    fn routing(&self) {
        let rule: BTreeMap<PolicyRule, ()> = BTreeMap::from([(policy_rule(self.family), ())]);
        let mut rules = Mirror::new(PolicyRules::open(is_rule_of_ours).expect("a socket"));
        rules.mark_all();
        rules.grow(&rule, Growth::Full, at());
        assert!(rules.is_settled(), "{:?}", rules.trouble());
        self.make_local(DSR_TABLE.table);
    }

    fn make_local(&self, table: u32) {
        let route = Route {
            kind: RouteKind::Local,
            protocol: 2,
            source: Some(self.node),
            next_hops: [NextHop { link: LinkName(DEVICE.into()), gateway: None, on_link: false }].into(),
        };
        let key = RouteKey::new(table, IpNet::from(self.service));
        let mut routes = Mirror::new(Routes::open(route_ownership()).expect("sockets"));
        routes.mark_all();
        routes.grow(&BTreeMap::from([(key, Arc::new(route))]), Growth::Full, at());
        assert!(routes.trouble().is_none(), "{:?}", routes.trouble());
    }

    /// Connects from a place to a port of the Service and sends a word. Returns the client that the pod sees and at which of its addresses, if it
    /// answers.
    fn asks(&self, from: Option<&File>, port: u16) -> Option<(IpAddr, IpAddr)> {
        let to = SocketAddr::new(self.service, port);
        let connect = || TcpStream::connect_timeout(&to, PATIENCE);
        let mut stream = match from {
            Some(place) => inside(place, connect),
            None => connect(),
        }
        .inspect_err(|error| println!("no connection to {to}: {error}"))
        .ok()?;
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            for server in &self.servers {
                let Some((mut accepted, client)) = accept_of(server, &stream) else { continue };
                let here = accepted.local_addr().expect("it is connected").ip();
                accepted.write_all(b"hello").expect("it can be sent");
                let mut word = [0; 5];
                stream.set_read_timeout(Some(PATIENCE)).expect("a time");
                let heard = stream.read_exact(&mut word);
                heard.inspect_err(|error| println!("no answer from {to}, accepted at {here}: {error}")).ok()?;
                return Some((client.ip(), here));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        println!("no server has accepted the connection to {to}");
        None
    }

    /// Like `asks`, where an answer is expected, on a machine that may have something else to do.
    fn asks_until_answered(&self, from: Option<&File>, port: u16) -> Option<(IpAddr, IpAddr)> {
        (0..20).find_map(|_| self.asks(from, port))
    }

    fn client_address(&self) -> IpAddr {
        let (_, [_, client, ..]) = if self.family == Family::V6 { V6 } else { V4 };
        client.parse().expect("an address")
    }
}

/// Accepts the connection of this client, whose port a tunnel leaves as it is, if the server has it. Such as were given up may be made all the
/// same, later: taken for the next one, the first of them would have each that follows fail.
fn accept_of(server: &TcpListener, client: &TcpStream) -> Option<(TcpStream, SocketAddr)> {
    let port = client.local_addr().expect("it is connected").port();
    loop {
        let (accepted, peer) = server.accept().ok()?;
        if peer.port() == port {
            return Some((accepted, peer));
        }
    }
}

fn at() -> Moment {
    Moment { now: Instant::now(), jitter: 0 }
}

fn with_each(test: impl Fn(&Scene, Filter) + Send + Sync) {
    for filter in FILTERS {
        with_families(|scene| test(scene, filter));
    }
}

fn with_families(test: impl Fn(&Scene) + Send + Sync) {
    for module in ["ip_vs", "ip_vs_mh", "dummy", "ipip", "ip6_tunnel"] {
        let (loaded, _, error) = attempt(&format!("modprobe {module}"));
        assert!(loaded, "this kernel has no module {module}; run this test in the guest of the lab: {error}");
    }
    let failed = module::load(&["xt_TCPMSS", "xt_set"]);
    assert!(failed.is_empty(), "{failed:?}");
    for family in Family::BOTH {
        let _in_use = in_use();
        in_new(|| {
            own_run();
            test(&Scene::new(family));
        });
    }
}

#[test]
fn a_client_outside_is_served_by_a_pod_of_this_node_that_answers_with_the_services_address() {
    with_each(|scene, filter| {
        let _held = scene.filter(filter);
        scene.virtual_services();
        assert_eq!(scene.asks(Some(&scene.client), PORT), None, "{filter:?}: nothing makes the address local yet");
        scene.routing();
        let (client, service) = (scene.client_address(), scene.service);
        assert_eq!(
            scene.asks_until_answered(Some(&scene.client), PORT),
            Some((client, service)),
            "{filter:?} {}",
            scene.family
        );
        let through = run("ipvsadm -Ln --stats");
        assert!(through.contains(&format!("FWM  {}", scene.mark())), "{through}");
        assert_eq!(
            scene.asks_until_answered(None, PORT).map(|(_, here)| here),
            Some(service),
            "{filter:?}: the node itself"
        );
        // A port that is served with NAT, at the same address.
        let with_nat = scene.asks_until_answered(Some(&scene.client), NAT_PORT);
        assert_eq!(with_nat, Some((client, scene.pod_address)), "{filter:?}: with NAT");
        let with_nat = scene.asks_until_answered(None, NAT_PORT).map(|(_, here)| here);
        assert_eq!(with_nat, Some(scene.pod_address), "{filter:?}: with NAT from the node itself");
    });
}

#[test]
fn an_ipv4_address_that_is_a_local_route_of_the_host_gets_no_answers_from_its_pods() {
    with_each(|scene, filter| {
        let _held = scene.filter(filter);
        scene.virtual_services();
        scene.routing();
        // As other service addresses are.
        scene.make_local(TABLE_LOCAL);
        let answered = scene.asks(Some(&scene.client), PORT).is_some();
        assert_eq!(answered, scene.family == Family::V6, "{filter:?} {}: a martian", scene.family);
    });
}

#[test]
fn packets_that_others_mark_go_on_as_if_there_were_no_table() {
    with_each(|scene, filter| {
        let _held = scene.filter(filter);
        scene.virtual_services();
        scene.routing();
        let six = if scene.family == Family::V6 { "-6" } else { "-4" };
        let way = |mark: &str| {
            let shown = run(&format!("ip {six} route get {} mark {mark}", scene.pod_address));
            shown.replace(" mark 1 ", " ").replace(" mark 0x1 ", " ")
        };
        assert_eq!(way("0x1"), way("0"), "the way to another address");
        assert!(run(&format!("ip {six} route get {} mark 0x1", scene.service)).starts_with("local"));
        assert!(!run(&format!("ip {six} route get {} mark 0x4000", scene.service)).starts_with("local"));
    });
}

#[test]
fn what_the_node_sends_elsewhere_with_the_mark_of_a_service_gets_there() {
    with_each(|scene, filter| {
        scene.virtual_services();
        scene.routing();
        // So an overlay sends a packet that IPVS has translated: its datagram has the mark that the packet inside has.
        let (client, port) = (scene.client_address(), 4789);
        run("nft add table inet overlay");
        run("nft add chain inet overlay out { type route hook output priority -200 ; }");
        run(&format!("nft add rule inet overlay out udp dport {port} meta mark set {}", scene.mark()));
        let overlay = inside(&scene.client, || UdpSocket::bind((client, port)).expect("the port is free"));
        // Each from a port of its own: IPVS makes an entry of a connection, which takes later ones without any mark.
        let arrives = |patience| {
            let sender = UdpSocket::bind((scene.node, 0)).expect("there are ports");
            sender.send_to(b"packet", (client, port)).expect("it can be sent");
            overlay.set_read_timeout(Some(patience)).expect("a time");
            overlay.recv_from(&mut [0; 16]).is_ok()
        };
        assert!(!arrives(Duration::from_millis(200)), "IPVS takes it for the Service's: this test can fail");
        let _held = scene.filter(filter);
        assert!(arrives(PATIENCE), "{filter:?} {}", scene.family);
        assert_eq!(
            scene.asks_until_answered(Some(&scene.client), PORT),
            Some((client, scene.service)),
            "{filter:?} {}: what goes to the Service keeps it",
            scene.family
        );
    });
}

/// The service proxy's own way, from a World to the kernel.
struct Agent {
    plan: Plan,
    mirrors: Mirrors<Linux>,
    world: World,
}

impl Agent {
    fn new(scene: &Scene, backend: &str) -> Agent {
        let link = format!("to-client{}", if scene.family == Family::V6 { 6 } else { 4 });
        Agent::on((scene.family, scene.node), &link, backend)
    }

    /// One of the node with this address at this link.
    fn on((family, node): (Family, IpAddr), link: &str, backend: &str) -> Agent {
        let words = ["sluice", "--strict-external-ip-validation=false", "--enable-ipv6=true", backend];
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        let Ok(Request::Run { flags, verbosity }) = request(&words) else { panic!("these words ask for a run") };
        let config = Config::meant(&flags, verbosity, &Environment::default(), &mut Mistakes::default());
        let config = Arc::new(ProxyConfig { tunnel_mode: true, ..config.proxy.expect("it runs") });
        let mut world = World::empty();
        let addresses = vec![HostAddress { address: node, link: link.into(), global: true }];
        let links = vec![HostLink { name: link.into(), mtu: 1500, bridge: false }];
        world.host = Arc::new(Host { node_name: "node1".into(), addresses, links, ..Host::default() });
        let own = NodeAddress { kind: NodeAddressKind::Internal, address: node };
        let pods = if family == Family::V6 { "fd00:10:244:1::/64" } else { "10.244.1.0/24" };
        let pod_cidrs = vec![pods.parse().expect("a range")];
        world.cluster.nodes.insert("node1".into(), Node { addresses: vec![own], pod_cidrs, ..Node::default() });
        (world.authority.proxy, world.authority.router) = (Authority::Complete, Authority::Complete);
        let (targets, _) = sluice::proxy::linux::open(&config).expect("the kernel can be reached");
        let families = PerFamily::from_fn(|its| its == family);
        Agent { plan: Plan::new(config, families, (6, 1)), mirrors: Mirrors::new(targets, Vec::new()), world }
    }

    /// Serves one Service with two ports at the address: one through a tunnel, one whose endpoints have another port.
    fn serve(&mut self, scene: &Scene) {
        self.serve_with((scene.family, scene.service), &[scene.pod_address]);
    }

    fn serve_with(&mut self, (family, address): (Family, IpAddr), pods: &[IpAddr]) {
        let endpoint = |address: &IpAddr| Endpoint {
            address: *address,
            node: Some("node1".into()),
            conditions: Conditions::READY,
            hints: None,
        };
        let mh = |service: &mut ClusterService| service.annotations.scheduler = Scheduler::Mh;
        self.serve_as((family, address), pods.iter().map(endpoint).collect(), mh);
    }

    /// As [`serve`](Agent::serve), with these endpoints and another Service than one with round robin, where `change` says so.
    fn serve_as(
        &mut self,
        (family, address): (Family, IpAddr),
        endpoints: Vec<Endpoint>,
        change: impl FnOnce(&mut ClusterService),
    ) {
        let port = |name: &str, port| ServicePort { name: name.into(), protocol: Protocol::Tcp, port, node_port: None };
        let of_pod = |name: &str, port| EndpointPort { name: name.into(), protocol: Protocol::Tcp, port };
        let name = ObjectName::new("shop", "web");
        let cluster_ip: IpAddr = if family == Family::V6 { "fd00:10:96::9" } else { "10.96.0.9" }.parse().expect("one");
        let mut service = ClusterService {
            kind: ServiceType::ClusterIp,
            cluster_ips: vec![cluster_ip],
            external_ips: vec![address],
            load_balancer: Vec::new(),
            source_ranges: None,
            ports: vec![port("tunnel", PORT), port("nat", NAT_PORT)].into(),
            affinity_seconds: None,
            internal_traffic_policy: Default::default(),
            external_traffic_policy: Default::default(),
            health_check_node_port: None,
            annotations: ProxyAnnotations { dsr: true, ..ProxyAnnotations::default() },
            announce: Default::default(),
            created: 0,
        };
        change(&mut service);
        self.world.cluster.services.insert(name.clone(), service);
        let slice = EndpointSlice {
            family,
            ports: vec![of_pod("tunnel", PORT), of_pod("nat", PORT + 1)].into(),
            endpoints: endpoints.into_iter().collect(),
        };
        self.world.cluster.endpoints.insert(name, Endpoints { slices: [("one".into(), Arc::new(slice))].into() });
        self.settle();
    }

    fn settle(&mut self) {
        let changed = self.plan.update(&self.world, Instant::now());
        self.mirrors.mark(&changed);
        for _ in 0..5 {
            self.mirrors.round(self.plan.desired(), Authority::Complete, at());
        }
        let kinds = self.mirrors.reflections();
        let unsettled: Vec<_> =
            kinds.iter().filter(|kind| !kind.is_settled()).map(|kind| (kind.name(), kind.trouble())).collect();
        assert!(unsettled.is_empty(), "{unsettled:?}");
    }
}

#[test]
fn the_service_proxy_serves_through_a_tunnel_and_leaves_nothing_of_it() {
    for backend in ["--netfilter=nftables", "--netfilter=iptables"] {
        with_families(|scene| {
            let mut agent = Agent::new(scene, backend);
            agent.serve(scene);
            let (client, service) = (scene.client_address(), scene.service);
            let through_tunnel = scene.asks(Some(&scene.client), PORT);
            assert_eq!(
                through_tunnel,
                Some((client, service)),
                "{backend} {}: {}",
                scene.family,
                run("ipvsadm -Ln --stats")
            );
            let with_nat = scene.asks(Some(&scene.client), NAT_PORT);
            assert_eq!(with_nat, Some((client, scene.pod_address)), "{backend} {}: with NAT", scene.family);
            assert_eq!(scene.asks(None, PORT).map(|(_, here)| here), Some(service), "{backend}: the node itself");
            let listed = run("ipvsadm -Ln --stats");
            assert!(listed.contains(&format!("FWM  {}", scene.mark())), "{listed}");
            // A process without memory finds all of it.
            let world = agent.world.clone();
            drop(agent);
            let mut next = Agent { world, ..Agent::new(scene, backend) };
            next.settle();
            assert_eq!(next.mirrors.steps_done(), 0, "{backend} {}: a restart changes nothing", scene.family);
            next.world.cluster.services.remove(&ObjectName::new("shop", "web"));
            next.settle();
            let six = if scene.family == Family::V6 { "-6" } else { "-4" };
            let left = [
                run(&format!("ip {six} rule show")),
                run(&format!("ip {six} route show table all")),
                run("ipvsadm -Ln"),
            ];
            assert!(
                !left[0].contains("lookup 78") && !left[1].contains("table 78") && !left[2].contains("FWM"),
                "{left:?}"
            );
        });
    }
}

/// A link with clients, two directors and pods, each of which answers clients itself.
struct Lan {
    directors: [File; 2],
    clients: Vec<File>,
    servers: Vec<TcpListener>,
}

/// `mh` chooses by the client's address alone.
const CLIENTS: usize = 8;
const PODS: usize = 4;

/// What a host of the link has as its last number.
const FIRST_CLIENT: usize = 9;
const DIRECTORS: [usize; 2] = [1, 2];
const FIRST_POD: usize = 20;

fn on_lan(family: Family, number: usize) -> String {
    if family == Family::V6 { format!("fd00:10:244:1::{number}") } else { format!("10.244.1.{number}") }
}

impl Lan {
    fn new(family: Family, service: IpAddr) -> Lan {
        let (bits, mode) = match family {
            Family::V4 => ("24", "ipip"),
            Family::V6 => ("64 nodad", "ip6tnl mode ip6ip6"),
        };
        fs::create_dir_all("/run/netns").expect("a directory of names");
        run("ip link add lan type bridge");
        run("ip link set lan up");
        let host = |number: usize| {
            let (there, address) = (format!("h{number}"), on_lan(family, number));
            run(&format!("ip netns add {there}"));
            run(&format!("ip link add to-{there} master lan type veth peer name eth0 netns {there}"));
            run(&format!("ip link set to-{there} up"));
            run(&format!("ip -n {there} link set lo up"));
            run(&format!("ip -n {there} link set eth0 up"));
            run(&format!("ip -n {there} addr add {address}/{bits} dev eth0"));
            File::open(format!("/run/netns/{there}")).expect("the new namespace")
        };
        let clients = (FIRST_CLIENT..FIRST_CLIENT + CLIENTS).map(host).collect();
        let directors = DIRECTORS.map(|number| {
            let place = host(number);
            let there = format!("h{number}");
            inside(&place, || {
                for (setting, value) in
                    [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1"), ("ipv4/conf/all/rp_filter", "2")]
                {
                    fs::write(format!("/proc/sys/net/{setting}"), value).expect("a setting of the namespace");
                }
            });
            run(&format!("ip -n {there} link add {DEVICE} type dummy"));
            run(&format!("ip -n {there} link set {DEVICE} up"));
            place
        });
        let servers = (FIRST_POD..FIRST_POD + PODS).map(|number| {
            let place = host(number);
            let (there, pod) = (format!("h{number}"), on_lan(family, number));
            let local = if family == Family::V6 {
                format!("local {pod} remote :: encaplimit none")
            } else {
                format!("local {pod}")
            };
            run(&format!("ip -n {there} link add tunnel type {mode} {local}"));
            run(&format!("ip -n {there} link set tunnel up"));
            run(&format!(
                "ip -n {there} addr add {service} dev tunnel {}",
                if family == Family::V6 { "nodad" } else { "" }
            ));
            inside(&place, || {
                for device in ["all", "eth0", "tunnel"] {
                    fs::write(format!("/proc/sys/net/ipv4/conf/{device}/rp_filter"), "0")
                        .expect("a setting of the pod");
                }
                let server = TcpListener::bind((service, PORT)).expect("the port is free");
                server.set_nonblocking(true).expect("a listener need not wait");
                server
            })
        });
        Lan { servers: servers.collect(), directors, clients }
    }

    /// Has the clients send what is for the Service to a director, as a router outside would.
    fn lead_to(family: Family, service: IpAddr, director: usize) {
        let six = if family == Family::V6 { "-6" } else { "-4" };
        let via = on_lan(family, director);
        for client in FIRST_CLIENT..FIRST_CLIENT + CLIENTS {
            run(&format!("ip -n h{client} {six} route replace {service} via {via} dev eth0"));
        }
    }

    /// Opens a connection of this client; returns both of its ends, and which pod has the other one.
    fn connect(&self, client: usize, service: IpAddr) -> Option<(TcpStream, TcpStream, usize)> {
        let to = SocketAddr::new(service, PORT);
        let stream = inside(self.clients.get(client)?, || TcpStream::connect_timeout(&to, PATIENCE)).ok()?;
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            for (pod, server) in self.servers.iter().enumerate() {
                if let Some((accepted, _)) = accept_of(server, &stream) {
                    accepted.set_nonblocking(false).expect("it may wait");
                    return Some((stream, accepted, pod));
                }
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        None
    }
}

/// Sends a word over a connection and back.
fn exchange(connection: &mut (TcpStream, TcpStream, usize)) -> std::io::Result<()> {
    exchange_within(connection, PATIENCE * 3)
}

fn exchange_within((client, server, _): &mut (TcpStream, TcpStream, usize), patience: Duration) -> std::io::Result<()> {
    let mut word = [0; 5];
    [&*client, &*server].into_iter().try_for_each(|end| end.set_read_timeout(Some(patience)))?;
    client.write_all(b"hello")?;
    server.read_exact(&mut word)?;
    server.write_all(b"world")?;
    client.read_exact(&mut word)
}

/// A director is lost, and another node that has never seen its connections takes over.
#[test]
fn established_connections_live_on_when_another_director_takes_over() {
    for module in ["ip_vs", "ip_vs_mh", "dummy", "ipip", "ip6_tunnel"] {
        run(&format!("modprobe {module}"));
    }
    for family in Family::BOTH {
        let _in_use = in_use();
        in_new(|| {
            own_run();
            let (_, [.., service]) = if family == Family::V6 { V6 } else { V4 };
            let service: IpAddr = service.parse().expect("an address");
            let lan = Lan::new(family, service);
            let pods: Vec<IpAddr> = (FIRST_POD..FIRST_POD + PODS)
                .map(|number| on_lan(family, number).parse().expect("an address"))
                .collect();
            // Their endpoints come in another order.
            for (director, place) in DIRECTORS.into_iter().zip(&lan.directors) {
                let node = on_lan(family, director).parse().expect("an address");
                let pods: Vec<IpAddr> = if director == 1 { pods.clone() } else { pods.iter().rev().copied().collect() };
                inside(place, || {
                    let mut agent = Agent::on((family, node), "eth0", "--netfilter=nftables");
                    for count in 1..=pods.len() {
                        agent.serve_with((family, service), &pods[..count]);
                    }
                });
            }
            Lan::lead_to(family, service, 1);
            let mut all: Vec<_> = (0..24)
                .map(|number| (0..5).find_map(|_| lan.connect(number % CLIENTS, service)).expect("it is served"))
                .collect();
            for one in &mut all {
                exchange(one).expect("the first director serves");
            }
            let used: std::collections::BTreeSet<usize> = all.iter().map(|(.., pod)| *pod).collect();
            assert!(used.len() > 1, "{family}: all clients have one pod");
            run("ip link set to-h1 down");
            Lan::lead_to(family, service, 2);
            let lost: Vec<String> =
                all.iter_mut().filter_map(|one| exchange(one).err()).map(|error| error.to_string()).collect();
            assert!(lost.is_empty(), "{family}: {} of 24 connections are lost: {lost:?}", lost.len());
            let mut new = (0..5).find_map(|_| lan.connect(0, service)).expect("new ones are served as well");
            exchange(&mut new).expect("the second director serves");
        });
    }
}
