//! Which pods get a client's connections, and which way their answers go: through no director, past the host's own rules, and never out of a pod whose
//! own address it is.
#![allow(clippy::indexing_slicing, reason = "a test that panics has failed, which is how a test says so")]

use std::collections::BTreeSet;
use std::io::ErrorKind;

use super::*;
use crate::namespace::shell;
use crate::native::frame::Capture;
use sluice::model::TrafficPolicy;

/// On the first director of a link with clients, directors and pods.
fn on_each_lan(test: impl Fn(&Lan, (Family, IpAddr)) + Send + Sync) {
    beside_each_lan(|lan, scene| inside(&lan.directors[0], || test(lan, scene)));
}

/// Where such a link was made, in a namespace that is none of its hosts.
pub(super) fn beside_each_lan(test: impl Fn(&Lan, (Family, IpAddr)) + Send + Sync) {
    for module in ["ip_vs", "ip_vs_rr", "ip_vs_sh", "ip_vs_mh", "dummy", "ipip", "ip6_tunnel", "nf_conntrack"] {
        run(&format!("modprobe {module}"));
    }
    for family in Family::BOTH {
        let _in_use = in_use();
        in_new(|| {
            own_run();
            let (_, [.., service]) = if family == Family::V6 { V6 } else { V4 };
            let service: IpAddr = service.parse().expect("an address");
            let lan = Lan::new(family, service);
            Lan::lead_to(family, service, DIRECTORS[0]);
            test(&lan, (family, service));
        });
    }
}

pub(super) fn director(family: Family) -> Agent {
    let node = on_lan(family, DIRECTORS[0]).parse().expect("an address");
    Agent::on((family, node), "eth0", "--netfilter=nftables")
}

fn endpoint(family: Family, pod: usize, node: &str) -> Endpoint {
    Endpoint {
        address: on_lan(family, FIRST_POD + pod).parse().expect("an address"),
        node: Some(node.into()),
        conditions: Conditions::READY,
        hints: None,
    }
}

/// All pods, on the director's node.
fn all(family: Family) -> Vec<Endpoint> {
    (0..PODS).map(|pod| endpoint(family, pod, "node1")).collect()
}

/// The pods that this client's connections come to, of so many.
fn pods_of(lan: &Lan, client: usize, service: IpAddr, connections: usize) -> Vec<usize> {
    let connected = |_| (0..5).find_map(|_| lan.connect(client, service)).expect("it is served");
    (0..connections).map(connected).map(|(.., pod)| pod).collect()
}

fn different(pods: &[usize]) -> BTreeSet<usize> {
    pods.iter().copied().collect()
}

#[test]
fn round_robin_has_all_pods_in_turn_and_source_hashing_one_for_each_client() {
    on_each_lan(|lan, (family, service)| {
        let mut agent = director(family);
        agent.serve_as((family, service), all(family), |_| {});
        assert_eq!(different(&pods_of(lan, 0, service, PODS * 2)), (0..PODS).collect(), "{family}");
        agent.serve_as((family, service), all(family), |service| service.annotations.scheduler = Scheduler::Sh);
        let of_clients: Vec<Vec<usize>> = (0..CLIENTS).map(|client| pods_of(lan, client, service, 3)).collect();
        assert!(of_clients.iter().all(|pods| different(pods).len() == 1), "{family}: {of_clients:?}");
        assert!(different(&of_clients.concat()).len() > 1, "{family}: {of_clients:?}");
    });
}

#[test]
fn a_client_with_session_affinity_keeps_its_pod() {
    on_each_lan(|lan, (family, service)| {
        let mut agent = director(family);
        agent.serve_as((family, service), all(family), |service| service.affinity_seconds = Some(60));
        let of_clients: Vec<Vec<usize>> = (0..CLIENTS).map(|client| pods_of(lan, client, service, 3)).collect();
        assert!(of_clients.iter().all(|pods| different(pods).len() == 1), "{family}: {of_clients:?}");
        assert!(different(&of_clients.concat()).len() > 1, "{family}: {of_clients:?}");
    });
}

#[test]
fn with_the_local_traffic_policy_pods_of_the_directors_own_node_alone_get_connections() {
    on_each_lan(|lan, (family, service)| {
        let mut agent = director(family);
        let nodes = ["node1", "node2", "node1", "node2"];
        let endpoints = nodes.into_iter().enumerate().map(|(pod, node)| endpoint(family, pod, node)).collect();
        let local = |service: &mut ClusterService| service.external_traffic_policy = TrafficPolicy::Local;
        agent.serve_as((family, service), endpoints, local);
        assert_eq!(different(&pods_of(lan, 0, service, PODS * 2)), [0, 2].into(), "{family}");
    });
}

#[test]
fn a_pod_that_terminates_keeps_its_connections_and_gets_no_others() {
    on_each_lan(|lan, (family, service)| {
        let mut agent = director(family);
        agent.serve_as((family, service), all(family), |_| {});
        let mut open: Vec<_> =
            (0..PODS * 2).map(|_| (0..5).find_map(|_| lan.connect(0, service)).expect("it is served")).collect();
        open.iter_mut().for_each(|one| exchange(one).expect("it is served"));
        let mut endpoints = all(family);
        endpoints[1].conditions = Conditions { ready: false, serving: true, terminating: true };
        agent.serve_as((family, service), endpoints.clone(), |_| {});
        assert_eq!(different(&pods_of(lan, 0, service, PODS * 2)), [0, 2, 3].into(), "{family}: new connections");
        for one in &mut open {
            let pod = one.2;
            exchange(one).unwrap_or_else(|error| panic!("{family}: an open connection to pod {pod}: {error}"));
        }
        // Where nobody else is left it serves on.
        endpoints
            .iter_mut()
            .for_each(|one| one.conditions = Conditions { ready: false, serving: false, terminating: true });
        endpoints[1].conditions = Conditions { ready: false, serving: true, terminating: true };
        agent.serve_as((family, service), endpoints, |_| {});
        assert_eq!(different(&pods_of(lan, 0, service, 2)), [1].into(), "{family}: the last one that serves");
    });
}

#[test]
fn when_a_director_is_lost_connections_to_a_pod_that_terminates_end_and_all_others_go_on() {
    on_each_lan(|lan, (family, service)| {
        let put = |endpoints: &[Endpoint]| {
            for (director, place) in DIRECTORS.into_iter().zip(&lan.directors) {
                let node = on_lan(family, director).parse().expect("an address");
                inside(place, || {
                    let mh = |service: &mut ClusterService| service.annotations.scheduler = Scheduler::Mh;
                    let mut agent = Agent::on((family, node), "eth0", "--netfilter=nftables");
                    agent.serve_as((family, service), endpoints.to_vec(), mh);
                });
            }
        };
        let mut endpoints = all(family);
        put(&endpoints);
        let mut open: Vec<_> = (0..CLIENTS * 2)
            .map(|number| (0..5).find_map(|_| lan.connect(number % CLIENTS, service)).expect("it is served"))
            .collect();
        let terminating = open[0].2;
        assert!(open.iter().any(|one| one.2 != terminating), "{family}: all clients have one pod");
        endpoints[terminating].conditions = Conditions { ready: false, serving: true, terminating: true };
        put(&endpoints);
        for one in &mut open {
            let (pod, served) = (one.2, exchange(one));
            let ends = [one.0.local_addr(), one.1.local_addr()];
            let known = || {
                let shown = |place: &File, what: &str| inside(place, || shell(what));
                let place = |number: usize| File::open(format!("/run/netns/h{number}")).expect("a host");
                let neighbours = "ip neigh show; ss -tnie; true";
                let at_director = shown(
                    &lan.directors[0],
                    "ipvsadm -Lnc; ipvsadm -Ln --stats; ip neigh show; nft list ruleset; ip route show table all; ip -6 route show table all; nstat -az | grep -v ' 0 '; true",
                );
                format!(
                    "{ends:?}\ndirector:\n{at_director}\nclients:\n{}\npod:\n{}",
                    (0..CLIENTS).map(|client| shown(&lan.clients[client], neighbours)).collect::<String>(),
                    shown(&place(FIRST_POD + pod), neighbours)
                )
            };
            assert!(
                served.is_ok(),
                "{family}: pod {pod}, {terminating} terminates, its director knows it: {served:?}\n{}",
                known()
            );
        }
        assert!(!different(&pods_of(lan, 0, service, 2)).contains(&terminating), "{family}: a new one of its client");
        Lan::lead_to(family, service, DIRECTORS[1]);
        for one in &mut open {
            // Whoever is to end need not be waited for as long.
            let patience = if one.2 == terminating { Duration::from_secs(1) } else { PATIENCE * 3 };
            let (pod, gone_on) = (one.2, exchange_within(one, patience));
            assert_eq!(
                gone_on.is_ok(),
                pod != terminating,
                "{family}: pod {pod}, {terminating} terminates: {gone_on:?}"
            );
        }
    });
}

/// The source of a packet of IP in an Ethernet frame, where that is what it is.
fn source(frame: &[u8]) -> Option<IpAddr> {
    let bytes = |first: usize, length: usize| frame.get(first..first + length);
    match bytes(12, 2)? {
        [0x08, 0x00] => Some(IpAddr::from(<[u8; 4]>::try_from(bytes(26, 4)?).ok()?)),
        [0x86, 0xdd] => Some(IpAddr::from(<[u8; 16]>::try_from(bytes(22, 16)?).ok()?)),
        _ => None,
    }
}

#[test]
fn answers_leave_the_pod_with_the_services_address_and_no_director_sees_one() {
    on_each_lan(|lan, (family, service)| {
        let mut agent = director(family);
        agent.serve_as((family, service), vec![endpoint(family, 0, "node1")], |_| {});
        let pod = File::open(format!("/run/netns/h{FIRST_POD}")).expect("the pod");
        let at_pod = inside(&pod, Capture::open);
        let at_director = Capture::open();
        let mut connected = (0..5).find_map(|_| lan.connect(0, service)).expect("it is served");
        for _ in 0..5 {
            exchange(&mut connected).expect("it is served");
        }
        let from = |capture: &Capture| -> Vec<IpAddr> {
            std::iter::from_fn(|| capture.next()).filter_map(|frame| source(&frame)).collect()
        };
        let (left, passed) = (from(&at_pod), from(&at_director));
        let answers = left.iter().filter(|source| **source == service).count();
        assert!(answers >= 6, "{family}: {answers} answers of the pod: {left:?}");
        let client: IpAddr = on_lan(family, FIRST_CLIENT).parse().expect("an address");
        assert!(passed.contains(&client), "{family}: the director has the client's packets: {passed:?}");
        assert!(!passed.contains(&service), "{family}: no answer passes it: {passed:?}");
    });
}

/// A host of the lan that is the node of a pod, behind which the pod is: this namespace. Director and clients are others of the lan.
pub(super) struct NodeOfPod {
    pub server: TcpListener,
}

impl NodeOfPod {
    pub fn new(family: Family, service: IpAddr) -> (NodeOfPod, IpAddr) {
        let (bits, six, gateway, pod, mode) = match family {
            Family::V4 => ("24", "-4", "10.244.2.1", "10.244.2.9", "ipip local 10.244.2.9"),
            Family::V6 => (
                "64 nodad",
                "-6",
                "fd00:10:244:2::1",
                "fd00:10:244:2::9",
                "ip6tnl mode ip6ip6 local fd00:10:244:2::9 remote :: encaplimit none",
            ),
        };
        for (setting, value) in
            [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1"), ("ipv4/conf/all/rp_filter", "0")]
        {
            fs::write(format!("/proc/sys/net/{setting}"), value).expect("a setting of the namespace");
        }
        // The lan's bridge is in this namespace too: what clients send to a director is not to pass the host's rules here.
        for setting in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
            // Without the module none passes.
            let _ = fs::write(format!("/proc/sys/net/bridge/{setting}"), "0");
        }
        let node = on_lan(family, 200);
        run(&format!("ip addr add {node}/{bits} dev lan"));
        run("ip netns add behind");
        run("ip link add to-behind type veth peer name eth0 netns behind");
        run(&format!("ip addr add {gateway}/{bits} dev to-behind"));
        run("ip link set to-behind up");
        run("ip -n behind link set lo up");
        run("ip -n behind link set eth0 up");
        run(&format!("ip -n behind addr add {pod}/{bits} dev eth0"));
        run(&format!("ip -n behind {six} route add default via {gateway}"));
        run(&format!("ip -n behind link add tunnel type {mode}"));
        run("ip -n behind link set tunnel up");
        run(&format!("ip -n behind addr add {service} dev tunnel {}", if family == Family::V6 { "nodad" } else { "" }));
        let network = if family == Family::V6 { "fd00:10:244:2::/64" } else { "10.244.2.0/24" };
        run(&format!("ip -n h{} {six} route add {network} via {node}", DIRECTORS[0]));
        let place = File::open("/run/netns/behind").expect("the new namespace");
        let server = inside(&place, || {
            for device in ["all", "eth0", "tunnel"] {
                fs::write(format!("/proc/sys/net/ipv4/conf/{device}/rp_filter"), "0").expect("a setting of the pod");
            }
            let server = TcpListener::bind((service, PORT)).expect("the port is free");
            server.set_nonblocking(true).expect("a listener need not wait");
            server
        });
        (NodeOfPod { server }, pod.parse().expect("an address"))
    }

    fn serves(&self, lan: &Lan, service: IpAddr) -> bool {
        let connected =
            inside(&lan.clients[0], || TcpStream::connect_timeout(&(service, PORT).into(), PATIENCE)).is_ok();
        while self.server.accept().is_ok() {}
        connected
    }
}

#[test]
fn a_host_that_drops_what_conntrack_calls_invalid_drops_answers_whose_question_came_to_another_node() {
    beside_each_lan(|lan, (family, service)| {
        let (node, pod) = NodeOfPod::new(family, service);
        let of_pod = Endpoint { address: pod, node: Some("node2".into()), conditions: Conditions::READY, hints: None };
        inside(&lan.directors[0], || director(family).serve_as((family, service), vec![of_pod], |_| {}));
        let served = || (0..5).any(|_| node.serves(lan, service));
        assert!(served(), "{family}: without such a rule");
        run("nft add table inet host");
        run("nft add chain inet host forward { type filter hook forward priority 0 ; }");
        run("nft add rule inet host forward ct state invalid counter drop");
        assert!(!node.serves(lan, service), "{family}: the host knows no connection that the answer is of");
        let counted = run("nft list chain inet host forward");
        assert!(!counted.contains("packets 0 "), "{family}: {counted}");
        // As the guide says.
        let six = if family == Family::V6 { "ip6" } else { "ip" };
        run(&format!("nft insert rule inet host forward {six} saddr {service} accept"));
        assert!(served(), "{family}: with what the pods answer accepted before");
    });
}

/// As on hosts of a distribution that has every device filter strictly, and the setting of all of them at 0.
#[test]
fn a_pod_behind_a_link_that_filters_strictly_answers_and_where_no_link_does_nothing_is_filtered() {
    with_families(|scene| {
        let six = if scene.family == Family::V6 { 6 } else { 4 };
        let path = |device: &str| format!("/proc/sys/net/ipv4/conf/{device}/rp_filter");
        let put = |device: &str, value| fs::write(path(device), value).expect("a setting of the namespace");
        for device in fs::read_dir("/proc/sys/net/ipv4/conf").expect("settings").flatten() {
            put(&device.file_name().to_string_lossy(), "0");
        }
        let all = || fs::read_to_string(path("all")).expect("it is there").trim().to_owned();
        Agent::new(scene, "--netfilter=nftables").serve(scene);
        assert_eq!(all(), "0", "{}: nothing is strict", scene.family);
        put("default", "1");
        put(&format!("to-pod{six}"), "1");
        let mut agent = Agent::new(scene, "--netfilter=nftables");
        agent.serve(scene);
        let answered = scene.asks_until_answered(Some(&scene.client), PORT);
        assert_eq!(answered, Some((scene.client_address(), scene.service)), "{}", scene.family);
        assert_eq!(all(), if six == 4 { "2" } else { "0" }, "{}", scene.family);
        let of_link = fs::read_to_string(path(&format!("to-pod{six}"))).expect("it is there");
        assert_eq!(of_link.trim(), "1", "the link keeps its own");
        if six == 4 {
            put("all", "0");
            assert_eq!(scene.asks(Some(&scene.client), PORT), None, "nothing drops such an answer");
        }
    });
}

#[test]
fn a_pod_that_answers_for_an_address_does_not_reach_a_port_of_it_that_is_served_with_nat() {
    with_families(|scene| {
        let mut agent = Agent::new(scene, "--netfilter=nftables");
        agent.serve(scene);
        let with_nat = scene.asks_until_answered(Some(&scene.client), NAT_PORT);
        assert_eq!(with_nat, Some((scene.client_address(), scene.pod_address)), "{}: clients outside do", scene.family);
        let name = if scene.family == Family::V6 { "pod6" } else { "pod4" };
        let pod = File::open(format!("/run/netns/{name}")).expect("the pod");
        let connect = |port| TcpStream::connect_timeout(&(scene.service, port).into(), PATIENCE);
        let refused = inside(&pod, || connect(NAT_PORT)).expect_err("nothing in the pod listens there");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{}", scene.family);
        assert!(inside(&pod, || connect(PORT)).is_ok(), "{}: its own port", scene.family);
    });
}
