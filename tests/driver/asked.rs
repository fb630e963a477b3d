//! Questions about Services, over the socket, to a running loop.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sluice::ask::{Answered, post};
use sluice::config::{Ask, Output};
use sluice::model::{LoadBalancerAddress, ProxyAnnotations, Scheduler};
use sluice::observe::local::{self, JSON};
use sluice::proxy::explain::serve::{AT, SERVICES};

use super::*;

const HERE: &str = "node1";

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// An endpoint in a slice: its address, its node, and ready, serving, terminating.
type Given<'a> = (&'a str, &'a str, [bool; 3]);

const READY: [bool; 3] = [true, true, false];
const LEAVING: [bool; 3] = [false, true, true];
const NOT_READY: [bool; 3] = [false, false, false];

fn slice(given: &[Given<'_>]) -> EndpointSlice {
    let endpoint = |(text, node, [ready, serving, terminating]): &Given<'_>| Endpoint {
        address: address(text),
        node: Some((*node).into()),
        conditions: Conditions { ready: *ready, serving: *serving, terminating: *terminating },
        hints: None,
    };
    let (first, ..) = given.first().expect("there is one");
    EndpointSlice {
        family: Family::from(address(first)),
        ports: [EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }].into(),
        endpoints: given.iter().map(endpoint).collect(),
    }
}

/// `shop/web` has everything that a Service may have, and `shop/thief` claims one of its addresses.
pub(crate) fn shop() -> World {
    let mut world = generate::empty_world();
    let port = ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: Some(30_080) };
    let web = Service {
        kind: ServiceType::LoadBalancer,
        external_ips: vec![address("203.0.113.7")],
        load_balancer: vec![LoadBalancerAddress { address: address("203.0.113.8"), through_balancer: true }],
        affinity_seconds: Some(60),
        external_traffic_policy: TrafficPolicy::Local,
        health_check_node_port: Some(30_777),
        annotations: ProxyAnnotations { scheduler: Scheduler::Lc, ..ProxyAnnotations::default() },
        ..Service::new(vec![address("10.96.0.9"), address("fd00:10:96::9")], vec![port.clone()])
    };
    let thief = Service {
        created: 10,
        ..Service::new(vec![address("10.96.0.9")], vec![ServicePort { node_port: None, ..port }])
    };
    let name = |name: &str| ObjectName::new("shop", name);
    world.cluster.services.insert(name("web"), web);
    world.cluster.services.insert(name("thief"), thief);
    let ipv4 = slice(&[
        ("10.244.1.7", HERE, READY),
        ("10.244.2.8", "node2", READY),
        ("10.244.2.9", "node2", NOT_READY),
        ("10.244.1.10", HERE, LEAVING),
    ]);
    let ipv6 = slice(&[("fd00:10:244:2::8", "node2", READY)]);
    let slices = [("four".into(), Arc::new(ipv4)), ("six".into(), Arc::new(ipv6))];
    world.cluster.endpoints.insert(name("web"), Endpoints { slices: slices.into() });
    world
}

/// Runs the loop and the socket for users.
pub fn with_socket(test: impl AsyncFnOnce(PathBuf, &Running)) {
    with_socket_of(&FLAGS, test);
}

/// The same, with these flags.
fn with_socket_of(flags: &[&str], test: impl AsyncFnOnce(PathBuf, &Running)) {
    with_config(flags::proxy(flags), None, async |running| {
        // Routes have the node's address as their source.
        running.kernel.with(|machine| machine.state.addresses = State::of_others().addresses);
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("sluice.sock");
        let listener = local::bind(&socket).expect("the socket is made");
        let of_services = [SERVICES, AT].map(|path| (path, running.ask.clone()));
        let answerers = of_services.into_iter().chain([("/audit/proxy", running.ask_audit.clone())]).collect();
        let serving = tokio::task::spawn(local::serve(listener, answerers, 8));
        test(socket, running).await;
        serving.abort();
    });
}

pub async fn asked(socket: &Path, what: &str, accept: Option<&'static str>) -> (u16, String) {
    let about = std::collections::BTreeMap::from([("what", what)]);
    let (status, text) = post(socket, SERVICES, &about, accept).await.expect("it is answered");
    (status.as_u16(), text)
}

#[test]
fn an_endpoint_at_the_port_of_tunnels_between_nodes_is_out_and_said_to_be() {
    let flags: Vec<&str> = FLAGS.into_iter().chain(["--overlay-encap=vxlan"]).collect();
    with_socket_of(&flags, async |socket, running| {
        let mut world = shop();
        let name = ObjectName::new("shop", "lead");
        let port = |name: &str, port| ServicePort { name: name.into(), protocol: Protocol::Udp, port, node_port: None };
        let ports = vec![port("in", 53), port("near", 54)];
        world.cluster.services.insert(name.clone(), Service::new(vec![address("10.96.0.11")], ports));
        let number = |name: &str, port| EndpointPort { name: name.into(), protocol: Protocol::Udp, port };
        let ports = [number("in", 4789), number("near", 4790)].into();
        let lead = EndpointSlice { ports, ..slice(&[("10.96.0.9", HERE, READY)]) };
        world.cluster.endpoints.insert(name, Endpoints { slices: [("lead".into(), Arc::new(lead))].into() });
        running.world.send_replace(world);
        let key = ServiceKey::Address { address: address("10.96.0.11"), protocol: Protocol::Udp, port: 54 };
        running.until("the virtual service is there", |state| state.virtuals.contains_key(&key)).await;
        let (_, text) = asked(&socket, "shop/lead", None).await;
        assert!(text.contains("10.96.0.9:4790 on node1: in;"), "{text}");
        assert!(text.contains("10.96.0.9:4789 on node1: out: its port is that of tunnels between nodes"), "{text}");
    });
}

#[test]
fn a_service_is_answered_with_every_address_and_every_endpoint_and_the_reasons() {
    with_socket(async |socket, running| {
        running.world.send_replace(shop());
        running.settles(&shop()).await;
        let (status, text) = asked(&socket, "shop/web", None).await;
        let expected = "\
Service shop/web: LoadBalancer, scheduler lc, affinity ClientIP 60 s, internal traffic Cluster, external traffic Local
  health check port 30777: ready endpoints on this node: 1
  tcp 10.96.0.9:80 (cluster IP, port http): in place; 0 active and 0 inactive connections
    10.244.1.7:8080 on node1: in; 0 active and 0 inactive connections
    10.244.1.10:8080 on node1: draining: terminating, takes no new connections; 0 active and 0 inactive connections
    10.244.2.8:8080 on node2: in; 0 active and 0 inactive connections
    10.244.2.9:8080 on node2: out: not ready
  tcp [fd00:10:96::9]:80 (cluster IP, port http): in place; 0 active and 0 inactive connections
    [fd00:10:244:2::8]:8080 on node2: in; 0 active and 0 inactive connections
  tcp 203.0.113.7:80 (external IP, port http): not served: --service-external-ip-range is not set
  tcp 203.0.113.8:80 (load balancer, port http): not served: its load balancer has ipMode Proxy, so traffic must pass it
  tcp 192.0.2.1:30080 (node port, port http): in place; 0 active and 0 inactive connections
    10.244.1.7:8080 on node1: in; 0 active and 0 inactive connections
    10.244.1.10:8080 on node1: draining: terminating, takes no new connections; 0 active and 0 inactive connections
    10.244.2.8:8080 on node2: out: on another node, and the traffic policy is Local
    10.244.2.9:8080 on node2: out: not ready
  tcp [2001:db8:2::1]:30080 (node port, port http): not served: the traffic policy is Local, and no usable endpoint is on this node
";
        assert_eq!((status, text.as_str()), (200, expected));
        let (_, text) = asked(&socket, "shop/thief", None).await;
        let lost =
            "  tcp 10.96.0.9:80 (cluster IP, port http): not served: Service shop/web claims it too and comes first\n";
        assert!(text.ends_with(lost), "{text}");
    });
}

#[test]
fn an_address_is_answered_for_all_services_that_ask_for_it_and_nothing_else_of_them() {
    with_socket(async |socket, running| {
        running.world.send_replace(shop());
        running.settles(&shop()).await;
        for what in ["10.96.0.9", "10.96.0.9:80"] {
            let (_, text) = asked(&socket, what, Some(JSON)).await;
            let answer: Value = serde_json::from_str(&text).expect("JSON");
            let services = answer["services"].as_array().expect("a list");
            let of = |service: &Value| {
                let places = service["addresses"].as_array().expect("a list");
                let standings = places.iter().map(|it| format!("{} {}", it["address"], it["standing"]));
                (service["name"].as_str().expect("a name").to_owned(), standings.collect::<Vec<_>>())
            };
            let expected = [
                ("thief".to_owned(), vec![r#""10.96.0.9" "lost""#.to_owned()]),
                ("web".to_owned(), vec![r#""10.96.0.9" "served""#.to_owned()]),
            ];
            assert_eq!(services.iter().map(of).collect::<Vec<_>>(), expected, "{what}: {text}");
        }
        let (_, text) = asked(&socket, "[fd00:10:96::9]:80", None).await;
        assert_eq!(text.matches("(cluster IP").count(), 1, "{text}");
        assert!(text.contains("[fd00:10:244:2::8]:8080"), "{text}");
        let (_, text) = asked(&socket, "192.0.2.1:30080", None).await;
        assert!(text.contains("tcp 192.0.2.1:30080 (node port") && !text.contains("10.96.0.9"), "{text}");
        for (what, expected) in [
            ("10.96.0.10", "no Service asks for the address 10.96.0.10"),
            ("10.96.0.9:81", "no Service asks for 10.96.0.9:81 with this port"),
            ("shop/nothing", "no Service shop/nothing with a cluster IP is known here"),
            ("shop", "\"shop\" must be NAMESPACE/NAME"),
        ] {
            let (status, text) = asked(&socket, what, None).await;
            assert!(status == 422 && text.starts_with(expected), "{what}: {status} {text}");
        }
    });
}

#[test]
fn who_asks_about_a_service_with_source_ranges_is_told_how_many_packets_were_dropped_on_the_node() {
    let flags = [FLAGS[0], FLAGS[1], "--strict-external-ip-validation=false"];
    with_socket_of(&flags, async |socket, running| {
        let mut world = shop();
        let name = ObjectName::new("shop", "web");
        let mut web = (**world.cluster.services.get(&name).expect("it is there")).clone();
        web.external_ips = Vec::new();
        web.load_balancer = vec![LoadBalancerAddress { address: address("203.0.113.8"), through_balancer: false }];
        web.source_ranges = Some(["198.51.100.0/24".parse().expect("a range")].into());
        world.cluster.services.insert(name, web);
        running.world.send_replace(world);
        let key = ServiceKey::Address { address: address("203.0.113.8"), protocol: Protocol::Tcp, port: 80 };
        running.until("the address is served", |state| state.virtuals.contains_key(&key)).await;
        let line = "  clients outside of source ranges: 12 packets of IPv4 and 0 of IPv6 dropped on this node, at all Services together\n";
        let (_, text) = asked(&socket, "shop/web", None).await;
        assert!(text.contains(line), "{text}");
        let (_, text) = asked(&socket, "10.96.0.9", None).await;
        assert!(!text.contains("outside of source ranges"), "this address is open to everybody: {text}");
        let (_, text) = asked(&socket, "", Some(JSON)).await;
        let answer: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(answer["outsideSourceRangesPackets"]["ipv4"], 12, "{text}");
        let metric = "sluice_proxy_outside_source_ranges_packets_total{family=\"IPv4\"} 12\n";
        assert!(running.registry.text().contains(metric));
    });
}

#[test]
fn what_the_kernel_has_is_read_for_the_answer_and_not_changed() {
    with_socket(async |socket, running| {
        running.world.send_replace(shop());
        running.settles(&shop()).await;
        let key = |text: &str| {
            let at: SocketAddr = text.parse().expect("an address and a port");
            ServiceKey::Address { address: at.ip(), protocol: Protocol::Tcp, port: at.port() }
        };
        let busy = (key("10.96.0.9:80"), "10.244.1.10:8080".parse().expect("an address and a port"));
        running.kernel.with(|machine| {
            machine.busy.insert(busy);
            machine.state.virtuals.remove(&key("[fd00:10:96::9]:80")).expect("it is there");
            let changed = machine.state.virtuals.get_mut(&key("192.0.2.1:30080")).expect("it is there");
            let stray = "10.244.3.3:8080".parse().expect("an address and a port");
            changed.destinations =
                [Destination { address: stray, weight: 1, forwarding: Forwarding::Nat }].into_iter().collect();
        });
        let before = running.kernel.state();
        let (_, text) = asked(&socket, "shop/web", None).await;
        for line in [
            "  tcp 10.96.0.9:80 (cluster IP, port http): in place; 1 active and 0 inactive connections\n",
            "    10.244.1.10:8080 on node1: draining: terminating, takes no new connections; 1 active and 0 inactive connections\n",
            "  tcp [fd00:10:96::9]:80 (cluster IP, port http): missing in the kernel\n",
            "  tcp 192.0.2.1:30080 (node port, port http): different in the kernel, which has lc, persistent 60 s: 10.244.3.3:8080 weight 1; 0 active and 0 inactive connections\n",
            "    10.244.1.7:8080 on node1: in; missing in the kernel\n",
            "    10.244.3.3:8080: in the kernel, and not desired; 0 active and 0 inactive connections\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert_eq!(running.kernel.state().virtuals, before.virtuals, "a question changes nothing");
    });
}

#[test]
fn what_is_missing_beside_a_virtual_service_is_named() {
    with_socket(async |socket, running| {
        running.world.send_replace(shop());
        running.settles(&shop()).await;
        let (_, text) = asked(&socket, "10.96.0.9", None).await;
        assert!(text.contains("10.96.0.9:80 (cluster IP, port http): in place;"), "{text}");
        running.kernel.with(|machine| {
            machine.state.routes.retain(|key, _| key.destination.addr() != address("10.96.0.9"));
            machine.faults.steps = 100;
        });
        running.changes.send_replace(Changes { local_routes: 1, ..Changes::default() });
        let mut text = String::new();
        for _ in 0..500 {
            text = asked(&socket, "10.96.0.9", None).await.1;
            if text.contains("not in place") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let line = "    not in place: the local route of the address is missing\n";
        assert!(text.contains(line) && text.contains(": the virtual service is in place;"), "{text}");
        let (_, table) = asked(&socket, "", None).await;
        assert!(table.contains("in place in part"), "{table}");
        running.kernel.with(|machine| machine.faults.steps = 0);
    });
}

#[test]
fn all_services_are_a_table_that_says_how_far_the_cluster_is_known() {
    with_socket(async |socket, running| {
        let (status, text) = asked(&socket, "", None).await;
        assert_eq!((status, text.as_str()), (422, "nothing is known of the cluster yet\n"));
        let mut world = shop();
        world.authority.proxy = Authority::Remembered;
        running.world.send_replace(world.clone());
        running.settles(&world).await;
        running.health.note("API server").set(vec!["Service not read since yesterday".to_owned()]);
        running.health.note("node").set(vec!["something else".to_owned()]);
        let (_, text) = asked(&socket, "", None).await;
        let expected = "\
known of the cluster: remembered: from the last known state of an earlier run, which changes nothing that exists
API server: Service not read since yesterday
SERVICE     TYPE          ADDRESSES                                        ENDPOINTS  STATE
shop/thief  ClusterIP     10.96.0.9                                        0/0        1 lost to another Service
shop/web    LoadBalancer  10.96.0.9,fd00:10:96::9,203.0.113.7,203.0.113.8  3/5        3 in place, 1 refused, 1 without a local endpoint
";
        assert_eq!(text, expected);
        let (_, text) = asked(&socket, "", Some(JSON)).await;
        let answer: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((&answer["known"], answer["services"].as_array().map(Vec::len)), (&"remembered".into(), Some(2)));
    });
}

/// What `sluice audit` prints, and its exit code.
pub async fn audit(socket: &Path, repair: bool) -> (String, u8) {
    let ask = Ask::Audit { repair, output: Output::Text, socket: socket.to_owned() };
    let Answered { text, exit_code } =
        tokio::task::spawn_blocking(move || sluice::ask::run(&ask)).await.expect("it ends").expect("it is answered");
    (text, exit_code)
}

#[test]
fn an_audit_names_what_differs_of_each_kind_and_puts_it_back_only_when_asked_for() {
    with_socket(async |socket, running| {
        running.world.send_replace(shop());
        running.settles(&shop()).await;
        running.until("all is in place", |_| running.health.unready(Instant::now()).is_empty()).await;
        assert_eq!(audit(&socket, false).await, (String::new(), 0));
        let whole = running.kernel.state();
        running.kernel.with(|machine| {
            machine.state.virtuals.pop_last().expect("there are some");
            machine.state.elements.pop_first().expect("there are some");
            machine.state.routes.pop_last().expect("there are some");
        });
        let damaged = running.kernel.state();
        let (text, exit_code) = audit(&socket, false).await;
        for kind in ["virtual services", "set elements", "routes"] {
            let of_kind = text.lines().filter(|line| line.starts_with(&format!("proxy: {kind}: ")));
            assert_eq!(of_kind.filter(|line| line.ends_with(": missing")).count(), 1, "{kind}: {text}");
        }
        assert_eq!(exit_code, 1);
        assert_eq!(running.kernel.state(), damaged, "a question changes nothing");
        let (text, exit_code) = audit(&socket, true).await;
        assert_eq!((text.matches(": missing; repaired\n").count(), exit_code), (3, 0), "{text}");
        assert_eq!(running.kernel.state(), whole);
        assert_eq!(audit(&socket, true).await, (String::new(), 0), "nothing is left to repair");
    });
}

#[test]
fn a_bundle_lists_what_the_kernel_has_of_each_kind_damage_included() {
    with_socket(async |socket, running| {
        running.world.send_replace(shop());
        running.settles(&shop()).await;
        running.until("all is in place", |_| running.health.unready(Instant::now()).is_empty()).await;
        let (gone, _) = running.kernel.with(|machine| machine.state.virtuals.pop_last().expect("there are some"));
        let state = running.kernel.state();
        let file = socket.with_file_name("bundle.tar");
        let ask = Ask::Bundle { file: Some(file.clone()), socket: socket.clone() };
        let asked = tokio::task::spawn_blocking(move || sluice::ask::run(&ask)).await.expect("it ends");
        let Answered { text, .. } = asked.expect("it is written");
        assert!(!text.contains("proxy"), "nothing of it failed: {text}");
        assert_eq!(running.kernel.state(), state, "a question changes nothing");
        let part = |name: &str| {
            let mut archive = tar::Archive::new(std::fs::File::open(&file).expect("it is there"));
            let mut entries = archive.entries().expect("an archive").map(|entry| entry.expect("a whole one"));
            let mut entry = entries.find(|entry| entry.path().expect("a path").ends_with(name)).expect("the part");
            std::io::read_to_string(&mut entry).expect("text")
        };
        let kernel = part("kernel/proxy.txt");
        for key in state.virtuals.keys() {
            assert_eq!(
                kernel.lines().filter(|line| line.starts_with(&format!("{key}: "))).count(),
                1,
                "{key}: {kernel}"
            );
        }
        assert!(!kernel.contains(&format!("{gone}: ")) && kernel.contains("== routes\n"), "{kernel}");
        let audit: Value = serde_json::from_str(&part("audit/proxy.json")).expect("JSON");
        let kinds = audit["kinds"].as_array().expect("a list");
        let services = kinds.iter().find(|kind| kind["kind"] == "virtual services").expect("they are a kind");
        assert_eq!(services["differences"][0]["object"], gone.to_string());
        assert!(part("services.txt").contains("shop/web"));
    });
}

fn name(name: &str) -> ObjectName {
    ObjectName::new("shop", name)
}

#[test]
fn an_address_that_many_services_share_is_answered_for_the_one_with_the_port() {
    with_socket(async |socket, running| {
        let mut world = generate::empty_world();
        for number in 0..60_u16 {
            let port =
                ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8000 + number, node_port: None };
            let service = Service {
                external_ips: vec![address("203.0.113.7")],
                ..Service::new(vec![address(&format!("10.96.1.{number}"))], vec![port])
            };
            world.cluster.services.insert(name(&format!("s{number:02}")), service);
        }
        running.world.send_replace(world.clone());
        running.settles(&world).await;
        let (status, text) = asked(&socket, "203.0.113.7:8055", None).await;
        assert!(status == 200 && text.starts_with("Service shop/s55: "), "{status} {text}");
        assert!(!text.contains("more Services"), "{text}");
        let (_, text) = asked(&socket, "203.0.113.7", None).await;
        assert!(text.ends_with("10 more Services ask for it\n"), "{text}");
    });
}

#[test]
fn of_a_service_with_many_ports_some_are_named_and_the_rest_is_counted() {
    with_socket(async |socket, running| {
        let mut world = generate::empty_world();
        let port = |number: u16| ServicePort {
            name: format!("p{number}").as_str().into(),
            protocol: Protocol::Tcp,
            port: number,
            node_port: None,
        };
        let service = Service::new(vec![address("10.96.0.9")], (1..=300).map(port).collect());
        world.cluster.services.insert(name("web"), service);
        running.world.send_replace(world.clone());
        running.settles(&world).await;
        let (_, text) = asked(&socket, "shop/web", None).await;
        assert_eq!(text.matches("(cluster IP").count(), 256);
        assert!(text.ends_with("  44 more addresses with their ports\n"), "{text}");
        let (_, text) = asked(&socket, "10.96.0.9:299", None).await;
        assert!(text.contains("tcp 10.96.0.9:299 (cluster IP, port p299): in place"), "{text}");
    });
}

#[test]
fn an_endpoint_that_the_port_does_not_fit_and_one_without_a_node_have_their_reasons() {
    with_socket(async |socket, running| {
        let mut world = shop();
        let mut nowhere = slice(&[("10.244.3.5", HERE, READY)]);
        nowhere.endpoints = nowhere.endpoints.iter().map(|endpoint| Endpoint { node: None, ..endpoint }).collect();
        let mut other = slice(&[("10.244.3.6", HERE, READY), ("10.244.1.7", HERE, READY)]);
        other.ports = other.ports.iter().map(|port| EndpointPort { name: "metrics".into(), ..port.clone() }).collect();
        let here = slice(&[("10.244.1.7", HERE, READY)]);
        let slices = [("a".into(), Arc::new(nowhere)), ("b".into(), Arc::new(other)), ("c".into(), Arc::new(here))];
        world.cluster.endpoints.insert(name("web"), Endpoints { slices: slices.into() });
        running.world.send_replace(world.clone());
        running.settles(&world).await;
        let (_, text) = asked(&socket, "192.0.2.1:30080", None).await;
        let expected = "    \
10.244.1.7:8080 on node1: in; 0 active and 0 inactive connections
    10.244.3.5:8080: out: its slice names no node, and the traffic policy is Local
    out: 1 endpoints without a tcp port named http
";
        assert!(text.ends_with(expected), "{text}");
    });
}

#[test]
fn the_table_does_not_say_missing_of_a_virtual_service_whose_change_failed() {
    with_socket(async |socket, running| {
        let mut world = shop();
        running.world.send_replace(world.clone());
        running.settles(&world).await;
        running.kernel.with(|machine| (machine.faults.steps, machine.faults.reads) = (100, 100));
        let web = world.cluster.services.get(&name("web")).expect("it is there");
        let changed = Service { affinity_seconds: None, ..(**web).clone() };
        world.cluster.services.insert(name("web"), changed);
        running.world.send_replace(world);
        for _ in 0..400 {
            let (_, text) = asked(&socket, "", None).await;
            assert!(!text.contains("missing"), "{text}");
            if text.contains("3 not read yet") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("never: the table says that the virtual services are not read");
    });
}

#[test]
fn an_address_has_its_services_or_is_a_free_cluster_ip_that_is_refused_and_anything_else_is_neither() {
    with_socket(async |socket, running| {
        running.world.send_replace(shop());
        running.settles(&shop()).await;
        let at = async |what: &str| {
            let about = std::collections::BTreeMap::from([("what", what)]);
            let (status, text) = post(&socket, AT, &about, Some(JSON)).await.expect("it is answered");
            (status.as_u16(), serde_json::from_str::<Value>(&text).unwrap_or(Value::String(text)))
        };
        let (_, served) = at("10.96.0.9").await;
        assert_eq!(served["explained"]["services"].as_array().map(Vec::len), Some(2), "{served:#}");
        let (_, free) = at("10.96.7.7").await;
        assert_eq!(free["clusterIPRange"]["range"], "10.96.0.0/12", "{free:#}");
        assert_eq!((&free["explained"], &free["clusterIPRange"]["refused"]), (&Value::Null, &Value::Bool(true)));
        let (_, other) = at("198.51.100.7").await;
        assert_eq!((&other["explained"], &other["clusterIPRange"]), (&Value::Null, &Value::Null));
        let (status, why) = at("shop/web").await;
        assert_eq!(status, 422, "{why}");

        // The whole of it, as a user asks: nobody else runs here.
        let asked = async |what: &str| {
            let ask = Ask::Route { what: what.to_owned(), output: Output::Text, socket: socket.clone() };
            let answered = tokio::task::spawn_blocking(move || sluice::ask::run(&ask)).await.expect("it ends");
            answered.map(|Answered { text, exit_code }| (text, exit_code)).map_err(|error| error.to_string())
        };
        let (text, code) = asked("10.96.0.9").await.expect("an answer");
        assert_eq!(code, 0);
        assert!(
            text.contains("Service shop/web\n  tcp port 80 (clusterIP): 2 endpoints take new connections\n"),
            "{text}"
        );
        assert!(text.contains("runs no router (--run-router)"), "{text}");
        let (text, _) = asked("10.96.7.7").await.expect("an answer");
        assert!(text.contains("new connections to it are refused on this node"), "{text}");
        assert!(asked("shop/web").await.is_err(), "the service proxy knows no pods");
    });
}
