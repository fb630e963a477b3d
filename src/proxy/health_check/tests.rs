//! Claims and counts of health checks, and requests over loopback.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use compact_str::CompactString;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::serve::{Inputs, next_round, port_is_in_use, run};
use super::*;
use crate::model::{Cause, Conditions, Endpoint, EndpointList, EndpointPort, EndpointSlice, ServiceProblems};
use crate::net::Protocol;
use crate::observe::health::Health;
use crate::reconcile::Backoff;

const LEAVING: Conditions = Conditions { ready: false, serving: true, terminating: true };
const COMPONENT: &str = "service proxy";

fn name(text: &str) -> ObjectName {
    ObjectName::new("shop", text)
}

fn node() -> LocalNode {
    LocalNode { name: "node1".into(), families: crate::net::PerFamily { v4: true, v6: true }, ..LocalNode::default() }
}

fn balanced(port: u16) -> Service {
    Service {
        kind: ServiceType::LoadBalancer,
        external_traffic_policy: TrafficPolicy::Local,
        health_check_node_port: Some(port),
        ..Service::new(vec!["10.96.0.9".parse().expect("an address")], Vec::new())
    }
}

/// One slice for each list of endpoints: address, node, condition.
fn endpoints(slices: &[&[(&str, &str, Conditions)]]) -> Endpoints {
    let slice = |given: &&[(&str, &str, Conditions)]| {
        let endpoint = |(address, node, conditions): &(&str, &str, Conditions)| Endpoint {
            address: address.parse().expect("an address"),
            node: Some((*node).into()),
            conditions: *conditions,
            hints: None,
        };
        let endpoints: EndpointList = given.iter().map(endpoint).collect();
        let family = endpoints.iter().next().map_or(Family::V4, |first| Family::from(first.address));
        Arc::new(EndpointSlice { family, ports: Default::default(), endpoints })
    };
    let named = slices.iter().enumerate().map(|(number, given)| (format!("web-{number}").into(), slice(given)));
    Endpoints { slices: named.collect() }
}

#[test]
fn a_pod_without_a_tunnel_does_not_count_beside_others_and_counts_where_there_are_none() {
    let ready = Conditions::READY;
    let pods: &[_] = &[("10.244.0.1", "node1", ready), ("10.244.0.2", "node1", ready), ("10.244.1.3", "node2", ready)];
    for (lacking, expected) in [(&[][..], 2), (&[1], 1), (&[1, 2], 2)] {
        let lacking: BTreeSet<IpAddr> = lacking.iter().map(|last| IpAddr::from([10, 244, 0, *last])).collect();
        let check = wanted(&name("web"), &balanced(30_777), &endpoints(&[pods]), &node(), Some(&lacking));
        assert_eq!(check.map(|check| check.local_endpoints), Some(expected), "without {lacking:?}");
    }
}

#[test]
fn ready_endpoints_on_this_node_count_once_whatever_slices_and_families_they_are_in() {
    let ready = Conditions::READY;
    let count = |slices: &[&[(&str, &str, Conditions)]]| {
        wanted(&name("web"), &balanced(30_777), &endpoints(slices), &node(), None).map(|check| check.local_endpoints)
    };
    assert_eq!(count(&[]), Some(0));
    let v4: &[_] = &[("10.244.0.1", "node1", ready), ("10.244.0.2", "node1", LEAVING), ("10.244.1.3", "node2", ready)];
    assert_eq!(count(&[v4]), Some(1));
    let v6: &[_] = &[("fd00::1", "node1", ready), ("fd00::2", "node1", ready)];
    assert_eq!(count(&[v4, v6, &[("10.244.0.1", "node1", ready)]]), Some(2), "the family with more of them");
    let many: Vec<String> = (0..300).map(|number| format!("10.244.{}.{}", number / 200, 1 + number % 200)).collect();
    let many: Vec<(&str, &str, Conditions)> = many.iter().map(|address| (address.as_str(), "node1", ready)).collect();
    assert_eq!(count(&[&many]), Some(300));
}

#[test]
fn endpoints_count_whatever_their_port_is_called_and_whichever_slice_came_first() {
    let ready = Conditions::READY;
    let all = endpoints(&[&[("10.244.1.3", "node2", ready)], &[("10.244.0.1", "node1", ready)], &[]]);
    let with_port = |(number, (name, slice)): (usize, (&CompactString, &Arc<EndpointSlice>))| {
        let port = EndpointPort { name: format!("port-{number}").into(), protocol: Protocol::Tcp, port: 8080 };
        (name.clone(), Arc::new(EndpointSlice { ports: vec![port].into(), ..(**slice).clone() }))
    };
    let named = Endpoints { slices: all.slices.iter().enumerate().map(with_port).collect() };
    let check = wanted(&name("web"), &balanced(30_777), &named, &node(), None);
    assert_eq!(check.map(|check| check.local_endpoints), Some(1));
}

#[test]
fn only_a_load_balancer_with_the_local_policy_is_asked() {
    let ask =
        |service: Service| wanted(&name("web"), &service, &Endpoints::default(), &node(), None).map(|check| check.port);
    assert_eq!(ask(balanced(30_777)), Some(30_777));
    assert_eq!(ask(Service { kind: ServiceType::NodePort, ..balanced(30_777) }), None);
    assert_eq!(ask(Service { external_traffic_policy: TrafficPolicy::Cluster, ..balanced(30_777) }), None);
    assert_eq!(ask(Service { health_check_node_port: None, ..balanced(1) }), None);
}

#[test]
fn a_port_belongs_to_the_oldest_service_and_goes_to_the_next_with_it() {
    let check = |service: &str, created, local_endpoints| HealthCheck {
        service: name(service),
        created,
        port: 30_777,
        local_endpoints,
    };
    let (mut ports, mut notes) = (HealthCheckPorts::default(), Vec::new());
    let owner = |ports: &HealthCheckPorts| ports.all().get(&30_777).map(|check| check.service.name.to_string());
    assert!(ports.update(&name("young"), Some(check("young", 9, 1)), &mut notes));
    assert!(!ports.update(&name("young"), Some(check("young", 9, 1)), &mut notes));
    assert!(ports.update(&name("old"), Some(check("old", 1, 2)), &mut notes));
    assert_eq!((owner(&ports).as_deref(), notes.len()), (Some("old"), 1));
    assert!(!ports.update(&name("young"), Some(check("young", 9, 5)), &mut notes), "nobody is told of it");
    assert!(ports.update(&name("old"), None, &mut notes));
    assert_eq!((owner(&ports).as_deref(), notes.len()), (Some("young"), 1));
    assert!(ports.update(&name("young"), Some(HealthCheck { port: 30_778, ..check("young", 9, 5) }), &mut notes));
    assert_eq!(ports.all().iter().map(|(port, _)| *port).collect::<Vec<_>>(), [30_778]);
    assert!(ports.update(&name("young"), None, &mut notes) && ports.all().is_empty());
    assert!(!ports.update(&name("young"), None, &mut notes));
}

/// Listeners on loopback, with what they are told and the health that they ask.
struct Ground {
    wanted: watch::Sender<HealthChecks>,
    problems: watch::Receiver<ServiceProblems>,
    health: Health,
    checks: HealthChecks,
}

impl Ground {
    fn new() -> Ground {
        let health = Health::default();
        let checks = HealthChecks {
            addresses: ["127.0.0.1", "::1"].map(|text| text.parse().expect("an address")).into(),
            ..HealthChecks::default()
        };
        let (wanted, inputs) = watch::channel(checks.clone());
        let (out, problems) = watch::channel(ServiceProblems::default());
        tokio::spawn(run(Inputs { wanted: inputs, problems: out, health: health.clone(), component: COMPONENT }));
        Ground { wanted, problems, health, checks }
    }

    fn put(&mut self, service: &str, port: u16, local_endpoints: usize) {
        let check = HealthCheck { service: name(service), created: 0, port, local_endpoints };
        self.checks.checks.insert(port, check);
        self.wanted.send_replace(self.checks.clone());
    }

    fn remove(&mut self, port: u16) {
        self.checks.checks.remove(&port);
        self.wanted.send_replace(self.checks.clone());
    }
}

/// A port that is free on loopback.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("a bound socket has an address").port()
}

/// The answer to one request; `None` where nobody listens.
async fn ask(address: &str, port: u16, request: &str) -> Option<String> {
    let address = SocketAddr::new(address.parse().expect("an address"), port);
    let mut stream = TcpStream::connect(address).await.ok()?;
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

const GET: &str = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";

/// Waits until the answer at both addresses begins like this; empty for nobody who listens.
async fn becomes(port: u16, start: &str) -> String {
    for _ in 0..1000 {
        let answers = [ask("127.0.0.1", port, GET).await, ask("::1", port, GET).await];
        let fits = |answer: &Option<String>| match answer {
            Some(text) => !start.is_empty() && text.starts_with(start),
            None => start.is_empty(),
        };
        if answers.iter().all(fits) {
            return answers.into_iter().flatten().next().unwrap_or_default();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("port {port} does not become {start:?}")
}

#[tokio::test]
async fn the_answer_is_kube_proxys_byte_for_byte_and_follows_the_endpoints() {
    let (mut ground, port) = (Ground::new(), free_port());
    let proxy = ground.health.register(COMPONENT, Duration::from_secs(3600), Instant::now());
    ground.put("web", port, 2);
    let answer = becomes(port, "HTTP/1.1 200 OK\r\n").await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
    for header in
        ["content-type: application/json", "x-content-type-options: nosniff", "x-load-balancing-endpoint-weight: 2"]
    {
        assert!(head.lines().any(|line| line == header), "{header}: {head}");
    }
    let expected = "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\
                    \t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}";
    assert_eq!(body, expected);
    for request in
        ["GET / HTTP/1.1\r\nHost: x\r\n\r\n", "POST /any HTTP/1.1\r\nHost: x\r\n\r\n", "HEAD / HTTP/1.0\r\n\r\n"]
    {
        let answer = ask("127.0.0.1", port, request).await.expect("somebody listens");
        assert!(answer.contains(" 200 OK\r\n"), "any path and method: {answer}");
    }
    ground.put("web", port, 300);
    let answer = ask("127.0.0.1", port, GET).await.expect("somebody listens");
    let counts = ["x-load-balancing-endpoint-weight: 300", "\"localEndpoints\": 300"];
    assert!(counts.iter().all(|count| answer.contains(count)), "more than a signed byte has: {answer}");
    ground.put("web", port, 0);
    let answer = becomes(port, "HTTP/1.1 503 Service Unavailable\r\n").await;
    assert!(
        answer.contains("\"localEndpoints\": 0") && answer.contains("x-load-balancing-endpoint-weight: 0"),
        "{answer}"
    );
    ground.put("other", port, 1);
    assert!(becomes(port, "HTTP/1.1 200").await.contains("\"name\": \"other\""), "a port that went to another Service");
    ground.remove(port);
    becomes(port, "").await;
    drop(proxy);
}

#[tokio::test]
async fn a_proxy_that_stands_still_says_so() {
    let (mut ground, port) = (Ground::new(), free_port());
    let long_ago = Instant::now().checked_sub(Duration::from_secs(2)).expect("the clock has run for two seconds");
    let proxy = ground.health.register(COMPONENT, Duration::from_secs(1), long_ago);
    ground.put("web", port, 1);
    let answer = becomes(port, "HTTP/1.1 503").await;
    assert!(answer.contains("\"localEndpoints\": 1") && answer.contains("\"serviceProxyHealthy\": false"), "{answer}");
    proxy.beat(Instant::now() + Duration::from_secs(3600));
    becomes(port, "HTTP/1.1 200").await;
}

#[tokio::test]
async fn a_service_that_the_kernel_has_not_got_answers_503_with_its_endpoints() {
    let (mut ground, port) = (Ground::new(), free_port());
    ground.checks.pending = Arc::new([name("web")].into());
    ground.put("web", port, 2);
    let answer = becomes(port, "HTTP/1.1 503").await;
    assert!(answer.contains("\"localEndpoints\": 2") && answer.contains("\"serviceProxyHealthy\": false"), "{answer}");
    ground.checks.pending = Arc::new([name("other")].into());
    ground.put("web", port, 2);
    becomes(port, "HTTP/1.1 200").await;
}

#[tokio::test]
async fn a_port_in_use_is_noted_and_served_when_it_is_free() {
    let mut ground = Ground::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let port = taken.local_addr().expect("a bound socket has an address").port();
    ground.put("web", port, 1);
    let notes = || ground.health.notes().iter().map(ToString::to_string).collect::<Vec<_>>();
    while notes().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let [note] = &notes()[..] else { panic!("one note: {:?}", notes()) };
    assert!(note.contains(&format!("port {port} of shop/web")) && note.contains("127.0.0.1"), "{note}");
    let problems = || ground.problems.borrow().get(&name("web")).map(|problems| problems.to_vec()).unwrap_or_default();
    let first = problems();
    assert_eq!(first.iter().map(|problem| problem.cause).collect::<Vec<_>>(), [Cause::HealthCheckPort]);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(problems(), first, "it was tried again meanwhile, and is one problem");
    drop(taken);
    becomes(port, "HTTP/1.1 200").await;
    assert_eq!(notes(), Vec::<String>::new());
    assert_eq!(problems(), []);
}

#[test]
fn a_port_that_another_program_has_for_long_is_tried_each_second() {
    let (mut backoff, mut now) = (Backoff::default(), Instant::now());
    for tries in 0..100 {
        port_is_in_use(&mut backoff, 32000, now);
        let next = backoff.retry_at().expect("there is another try");
        assert!(next > now && next <= now + Duration::from_secs(1), "after {tries}: {:?}", next - now);
        now = next;
    }
}

#[test]
fn thousands_of_ports_in_use_are_tried_in_a_few_rounds_each_second() {
    let start = Instant::now();
    let mut ports: Vec<(u16, Backoff)> = (30_000..32_000).map(|port| (port, Backoff::default())).collect();
    ports.iter_mut().for_each(|(port, backoff)| port_is_in_use(backoff, *port, start));
    let (mut tried_at, mut rounds) = (None, Vec::new());
    while let Some(now) = next_round(ports.iter().filter_map(|(_, backoff)| backoff.retry_at()), tried_at)
        && now < start + Duration::from_secs(10)
    {
        for (port, backoff) in ports.iter_mut().filter(|(_, backoff)| backoff.is_due(now)) {
            port_is_in_use(backoff, *port, now);
        }
        tried_at = Some(now);
        rounds.push(now);
    }
    assert!((10..=100).contains(&rounds.len()), "{} rounds in ten seconds", rounds.len());
    assert_eq!(next_round(std::iter::empty(), tried_at), None);
}

#[tokio::test]
async fn a_port_that_comes_free_at_one_address_after_the_other_is_one_problem_with_one_text() {
    let mut ground = Ground::new();
    let v4 = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let port = v4.local_addr().expect("a bound socket has an address").port();
    let v6 = std::net::TcpListener::bind(("::1", port)).expect("the same port of the other family is free");
    ground.put("web", port, 1);
    let problems = || ground.problems.borrow().get(&name("web")).map(|problems| problems.to_vec()).unwrap_or_default();
    let notes = || ground.health.notes().len();
    while notes() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let first = problems();
    assert_eq!(first.iter().map(|problem| problem.subject.as_str()).collect::<Vec<_>>(), [format!("port {port}")]);
    drop(v4);
    while notes() == 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(problems(), first, "the other address is still in use");
    drop(v6);
    becomes(port, "HTTP/1.1 200").await;
    assert_eq!(problems(), []);
}

#[tokio::test]
async fn clients_that_say_nothing_keep_nobody_from_an_answer() {
    let (mut ground, port) = (Ground::new(), free_port());
    ground.put("web", port, 1);
    becomes(port, "HTTP/1.1 200").await;
    let address = SocketAddr::new("127.0.0.1".parse().expect("an address"), port);
    let mut silent = Vec::new();
    // More than there are places for connections.
    for _ in 0..300 {
        silent.push(TcpStream::connect(address).await.expect("the listener accepts"));
    }
    becomes(port, "HTTP/1.1 200").await;
}
