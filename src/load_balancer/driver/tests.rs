//! The allocator with an API server that refuses, delays and forgets: the election on its own thread, tenures, rights that are missing.

use std::thread::{self, JoinHandle};

use serde_json::{Value, json};
use tokio::runtime::Builder;
use tokio::sync::oneshot;

use super::*;
use crate::k8s::client::client;
use crate::k8s::events::TIMING as EVENTS_TIMING;
use crate::k8s::watch::tests::api_server::{ApiServer, Faults, SERVICES};
use crate::load_balancer::election::TIMING;
use crate::load_balancer::in_memory;
use crate::load_balancer::notice::Problem;
use crate::load_balancer::outbox::MOST_WAITING;
use crate::model::{Authority, Node, NodeAddress, NodeAddressKind};
use crate::net::Family;
use crate::observe::health::Health;
use crate::observe::metrics::Registry;

const LEASES: &str = "/apis/coordination.k8s.io/v1/leases";
const LEASE: &str = "kube-system/kube-router-lballoc";
/// Short enough for tests.
const QUICK: Timing = Timing {
    valid: Duration::from_millis(1500),
    usable: Duration::from_millis(1000),
    retry: Duration::from_millis(150),
    look: Duration::from_millis(200),
    longest: Duration::from_millis(400),
};

/// An agent on a thread of its own, as in the program.
struct Agent {
    stop: watch::Sender<bool>,
    /// Has the agent's thread do nothing for so long.
    hold_up: mpsc::Sender<Duration>,
    thread: Option<JoinHandle<()>>,
    health: Health,
    registry: Registry,
}

impl Agent {
    /// Starts one that knows all Nodes, of which there is none.
    async fn start(server: &ApiServer) -> Agent {
        Agent::with(server, in_memory::tests::config(), watch::channel(all_nodes(&[])).1).await
    }

    async fn with(server: &ApiServer, config: LoadBalancerConfig, world: watch::Receiver<World>) -> Agent {
        let master = Some(format!("http://{}", server.address).parse().expect("a URL"));
        let access = Access { kubeconfig: None, master };
        let (stop, stopped) = watch::channel(false);
        let (hold_up, mut held_up) = mpsc::channel::<Duration>(1);
        let (health, registry) = (Health::default(), Registry::new("1", "1"));
        let (begun, has_begun) = oneshot::channel();
        let (of_agent, metrics) = (health.clone(), Metrics::register(&registry).expect("names are registered once"));
        let run = async move {
            let client = client(&access).await.expect("nothing is needed");
            let driver = Driver {
                config,
                access,
                api: Api::new(client.clone(), "kube-system".to_owned()),
                events: Events::spawn(client.clone(), "node-1".to_owned(), EVENTS_TIMING),
                client,
                pulse: of_agent.register("address allocator", Duration::from_secs(60), Instant::now()),
                note: of_agent.note("address allocator"),
                lease_note: of_agent.note("election of the address allocator"),
                metrics,
                world,
                timing: QUICK,
            };
            tokio::spawn(async move {
                while let Some(time) = held_up.recv().await {
                    thread::sleep(time);
                }
            });
            let _ = begun.send(());
            driver.run(stopped).await;
        };
        let thread = thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(run);
        });
        has_begun.await.expect("it begins");
        Agent { stop, hold_up, thread: Some(thread), health, registry }
    }

    fn leads(&self) -> bool {
        self.registry.text().lines().any(|line| line.starts_with("sluice_load_balancer_leader") && line.ends_with(" 1"))
    }

    /// All notes of health in one text.
    fn notes(&self) -> String {
        self.health.notes().iter().map(|note| format!("{note:?}\n")).collect()
    }

    async fn end(mut self) {
        self.stop.send_replace(true);
        let thread = self.thread.take().expect("it ends once");
        tokio::task::spawn_blocking(move || thread.join()).await.expect("a thread").expect("it ends in order");
    }
}

/// A World with Nodes of these addresses.
fn all_nodes(addresses: &[&str]) -> World {
    let mut world = World::empty();
    world.authority.router = Authority::Complete;
    for text in addresses {
        let address = NodeAddress { kind: NodeAddressKind::Internal, address: text.parse().expect("an address") };
        world.cluster.nodes.insert((*text).into(), Node { addresses: vec![address], ..Node::default() });
    }
    world
}

fn service(namespace: &str, name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": namespace, "uid": format!("uid-{name}")},
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}})
}

/// The address in a Service's status.
fn address(server: &ApiServer, name: &str) -> Option<String> {
    let service = server.get(SERVICES, name)?;
    Some(service.pointer("/status/loadBalancer/ingress/0/ip")?.as_str()?.to_owned())
}

fn lease_version(server: &ApiServer) -> Option<String> {
    Some(server.get(LEASES, LEASE)?["metadata"]["resourceVersion"].as_str()?.to_owned())
}

fn holder(server: &ApiServer) -> Option<String> {
    Some(server.get(LEASES, LEASE)?["spec"]["holderIdentity"].as_str()?.to_owned())
}

fn lists(server: &ApiServer) -> usize {
    server
        .take_requests()
        .iter()
        .filter(|request| request.starts_with("/api/v1/services?") && !request.contains("watch="))
        .count()
}

async fn soon(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(20), "not so: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn the_lease_is_renewed_while_the_allocator_is_held_up_and_given_up_at_the_end() {
    let server = ApiServer::start().await;
    server.put(SERVICES, service("shop", "a"));
    let agent = Agent::start(&server).await;
    soon("an address is given", || address(&server, "shop/a").as_deref() == Some("203.0.113.1")).await;
    agent.hold_up.send(QUICK.valid * 2).await.expect("it runs");
    sleep(Duration::from_millis(300)).await;
    let before = lease_version(&server);
    sleep(QUICK.valid).await;
    assert_ne!(lease_version(&server), before, "it is renewed meanwhile");
    agent.end().await;
    assert_eq!(holder(&server).as_deref(), Some(""), "nobody has to wait for it");
}

#[tokio::test]
async fn a_tenure_that_was_lost_and_won_again_while_the_allocator_was_held_up_begins_with_a_new_list() {
    let server = ApiServer::start().await;
    server.put(SERVICES, service("shop", "a"));
    let agent = Agent::start(&server).await;
    soon("an address is given", || address(&server, "shop/a").is_some()).await;
    lists(&server);
    // Longer than the tenure lasts without a renewal, and it is won again before the allocator looks.
    agent.hold_up.send(QUICK.usable * 3).await.expect("it runs");
    sleep(Duration::from_millis(100)).await;
    server.set_faults(Faults { forbid: Some("/leases/"), ..Faults::default() });
    sleep(QUICK.usable + Duration::from_millis(500)).await;
    server.set_faults(Faults::default());
    sleep(Duration::from_millis(800)).await;
    assert!(holder(&server).is_some_and(|holder| holder.starts_with("node-1_")), "it holds the Lease again");
    assert_eq!(lists(&server), 0, "and is held up yet");
    let mut count = 0;
    soon("Services are listed anew", || {
        count += lists(&server);
        count > 0
    })
    .await;
    server.put(SERVICES, service("shop", "b"));
    soon("it goes on", || address(&server, "shop/b").as_deref() == Some("203.0.113.2")).await;
    assert_eq!(address(&server, "shop/a").as_deref(), Some("203.0.113.1"));
    agent.end().await;
}

#[tokio::test]
async fn a_namespace_whose_statuses_may_not_be_written_is_named_and_tried_slowly_and_holds_up_nobody() {
    let server = ApiServer::start().await;
    server.set_faults(Faults { forbid: Some("/namespaces/bank/services/"), ..Faults::default() });
    for number in 0..3 {
        server.put(SERVICES, service("bank", &format!("a{number}")));
        server.put(SERVICES, service("shop", &format!("b{number}")));
    }
    let agent = Agent::start(&server).await;
    soon("the others have theirs", || (0..3).all(|n| address(&server, &format!("shop/b{n}")).is_some())).await;
    soon("it is named", || agent.notes().contains("the address of Service bank/a")).await;
    let is_about_bank = |request: &String| request.contains("/namespaces/bank/services/");
    server.take_requests();
    sleep(Duration::from_millis(2500)).await;
    let tried = server.take_requests().into_iter().filter(is_about_bank).count();
    assert!((1..=3).contains(&tried), "one a second: {tried}");
    // One is gone and two may be written: nothing is left to be named.
    server.delete(SERVICES, "bank/a1");
    server.set_faults(Faults::default());
    soon("they have theirs too", || ["bank/a0", "bank/a2"].iter().all(|name| address(&server, name).is_some())).await;
    soon("nothing is named any more", || agent.notes().is_empty()).await;
    agent.end().await;
}

#[tokio::test]
async fn a_failure_is_named_no_longer_when_its_service_is_gone() {
    let server = ApiServer::start().await;
    server.set_faults(Faults { forbid: Some("/namespaces/bank/services/"), ..Faults::default() });
    server.put(SERVICES, service("bank", "a"));
    let agent = Agent::start(&server).await;
    soon("it is named", || agent.notes().contains("the address of Service bank/a cannot be written")).await;
    server.delete(SERVICES, "bank/a");
    soon("it is gone", || agent.notes().is_empty()).await;
    agent.end().await;
}

#[tokio::test]
async fn a_404_that_is_not_the_api_servers_own_takes_no_address_away_and_is_named() {
    let server = ApiServer::start().await;
    server.put(SERVICES, service("shop", "a"));
    let agent = Agent::start(&server).await;
    soon("an address is given", || address(&server, "shop/a").as_deref() == Some("203.0.113.1")).await;
    let proxy = Faults { forbid: Some("/namespaces/shop/services/a"), forbid_as: Some(404), ..Faults::default() };
    server.set_faults(proxy);
    let mut moved = server.get(SERVICES, "shop/a").expect("it exists");
    moved["spec"]["loadBalancerIP"] = json!("203.0.113.5");
    server.put(SERVICES, moved);
    soon("it is named", || agent.notes().contains("the address of Service shop/a cannot be written")).await;
    server.put(SERVICES, service("shop", "b"));
    soon("the other one has another", || address(&server, "shop/b").as_deref() == Some("203.0.113.2")).await;
    server.set_faults(Faults::default());
    soon("it is written after all", || address(&server, "shop/a").as_deref() == Some("203.0.113.5")).await;
    soon("nothing is named any more", || agent.notes().is_empty()).await;
    agent.end().await;
}

#[tokio::test]
async fn lists_that_are_refused_are_noted_with_the_newest_reason_until_they_are_not() {
    let server = ApiServer::start().await;
    server.set_faults(Faults { forbid: Some(SERVICES), ..Faults::default() });
    server.put(SERVICES, service("shop", "a"));
    let agent = Agent::start(&server).await;
    soon("it is noted", || agent.notes().contains("services cannot be listed for load balancer addresses")).await;
    assert!(agent.leads() && address(&server, "shop/a").is_none());
    server.set_faults(Faults { forbid: Some(SERVICES), forbid_as: Some(500), ..Faults::default() });
    soon("for another reason", || agent.notes().contains("500")).await;
    server.set_faults(Faults::default());
    soon("it is over", || agent.notes().is_empty() && address(&server, "shop/a").is_some()).await;
    agent.end().await;
}

#[tokio::test]
async fn a_lease_that_cannot_be_written_is_noted_and_nothing_is_given_until_it_can() {
    let server = ApiServer::start().await;
    server.set_faults(Faults { forbid: Some("/leases"), ..Faults::default() });
    server.put(SERVICES, service("shop", "a"));
    let agent = Agent::start(&server).await;
    soon("it is noted", || agent.notes().contains("the Lease kube-router-lballoc cannot be read or written")).await;
    assert!(!agent.leads() && address(&server, "shop/a").is_none());
    server.set_faults(Faults::default());
    soon("it is over", || address(&server, "shop/a").is_some() && agent.notes().is_empty()).await;
    agent.end().await;
}

#[tokio::test]
async fn a_write_without_an_answer_is_not_repeated_and_its_address_is_nobody_elses() {
    let server = ApiServer::start().await;
    server.set_faults(Faults { silent: Some("/services/a/status"), ..Faults::default() });
    server.put(SERVICES, service("shop", "a"));
    let agent = Agent::start(&server).await;
    soon("it has taken effect", || address(&server, "shop/a").is_some()).await;
    server.put(SERVICES, service("shop", "b"));
    soon("the other one has another", || address(&server, "shop/b").as_deref() == Some("203.0.113.2")).await;
    server.take_written();
    sleep(Duration::from_secs(6)).await;
    let written = server.take_written();
    assert!(written.iter().all(|path| !path.ends_with("/status")), "{written:?}");
    server.set_faults(Faults::default());
    agent.end().await;
}

#[tokio::test]
async fn while_answers_are_late_an_end_waits_for_the_writes_that_are_on_their_way() {
    let server = ApiServer::start().await;
    let late = Duration::from_millis(700);
    server.set_faults(Faults { late: Some(("/services/a/status", late)), ..Faults::default() });
    server.put(SERVICES, service("shop", "a"));
    let agent = Agent::start(&server).await;
    soon("it is on its way", || server.take_written().iter().any(|path| path.ends_with("/status"))).await;
    let begun = Instant::now();
    agent.end().await;
    assert!(begun.elapsed() > late / 2, "the Lease is not given up before");
    assert_eq!(holder(&server).as_deref(), Some(""));
    assert!(address(&server, "shop/a").is_some());
}

#[test]
fn the_delays_of_tests_are_in_the_order_of_the_real_ones() {
    for timing in [QUICK, TIMING] {
        assert!(timing.retry < timing.usable && timing.usable < timing.valid && timing.retry <= timing.longest);
    }
}

#[tokio::test]
async fn nothing_is_given_before_all_nodes_are_known_and_nothing_that_is_a_nodes() {
    let server = ApiServer::start().await;
    server.put(SERVICES, service("shop", "a"));
    let (known, world) = watch::channel(World::empty());
    let agent = Agent::with(&server, in_memory::tests::config(), world).await;
    soon("it is noted", || agent.notes().contains("the Nodes, whose addresses no Service may have, are not known"))
        .await;
    assert!(agent.leads() && address(&server, "shop/a").is_none());
    known.send_replace(all_nodes(&["203.0.113.1", "203.0.113.3"]));
    soon("an address is given", || address(&server, "shop/a").as_deref() == Some("203.0.113.2")).await;
    soon("nothing is noted any more", || agent.notes().is_empty()).await;
    server.put(SERVICES, service("shop", "b"));
    soon("past the other Node", || address(&server, "shop/b").as_deref() == Some("203.0.113.4")).await;
    known.send_replace(all_nodes(&["203.0.113.5"]));
    server.put(SERVICES, service("shop", "c"));
    soon("of a Node that is gone", || address(&server, "shop/c").as_deref() == Some("203.0.113.1")).await;
    agent.end().await;
}

#[tokio::test]
async fn services_are_listed_anew_after_every_sync_period_and_not_before() {
    let server = ApiServer::start().await;
    server.put(SERVICES, service("shop", "a"));
    for (period, wanted) in [(Duration::from_millis(400), 1..=5), (Duration::from_secs(60), 0..=0)] {
        let config = LoadBalancerConfig { sync_period: period, ..in_memory::tests::config() };
        let agent = Agent::with(&server, config, watch::channel(all_nodes(&[])).1).await;
        soon("it leads and knows them", || agent.leads() && address(&server, "shop/a").is_some()).await;
        sleep(Duration::from_millis(200)).await;
        lists(&server);
        sleep(Duration::from_millis(2000)).await;
        let count = lists(&server);
        assert!(wanted.contains(&count), "{period:?}: {count}");
        agent.end().await;
    }
}

#[tokio::test]
async fn warnings_are_told_before_thousands_of_addresses_that_are_given() {
    let server = ApiServer::start().await;
    let timing = crate::k8s::events::Timing { burst: 0, refill: Duration::from_millis(5), ..EVENTS_TIMING };
    let master = Some(format!("http://{}", server.address).parse().expect("a URL"));
    let client = client(&Access { kubeconfig: None, master }).await.expect("nothing is needed");
    let outbox = watch::Sender::new(Outbox::default());
    let notice = |namespace: &str, name: &str, matter| Notice {
        service: ObjectName::new(namespace, name),
        uid: "uid".into(),
        at: Instant::now(),
        matter,
    };
    let given = Matter::Given { address: "203.0.113.1".parse().expect("an address"), pool: "default".into() };
    outbox.send_modify(|outbox| {
        (0..MOST_WAITING * 2).for_each(|number| outbox.push(notice("shop", &format!("web{number}"), given.clone())));
    });
    let lacking = notice("lacking", "web", Matter::Wanting(Problem::Exhausted(Family::V4)));
    outbox.send_modify(|outbox| outbox.push(lacking.clone()));
    let telling = tokio::spawn(tell(Events::spawn(client, "node-1".to_owned(), timing), outbox.clone()));
    let mut told = Vec::new();
    soon("some Events are there", || {
        told.extend(server.take_written());
        told.len() > 3
    })
    .await;
    // What comes later is told too.
    outbox.send_modify(|outbox| outbox.push(Notice { service: ObjectName::new("later", "web"), ..lacking }));
    soon("it is told", || {
        told.extend(server.take_written());
        told.iter().any(|path| path.contains("/namespaces/later/events"))
    })
    .await;
    telling.abort();
    let is_about =
        |namespace: &str| told.iter().position(|path| path.contains(&format!("/namespaces/{namespace}/events")));
    assert_eq!((is_about("lacking"), is_about("shop")), (Some(0), Some(1)), "{told:?}");
}
