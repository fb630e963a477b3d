//! The loop of the router, from a World to what it says to a neighbour.

use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::Value;
use sluice::bgp::message::{self, Framing, Message};
use sluice::config::{Backend, RouterConfig};
use sluice::kernel::address::AddressKey;
use sluice::kernel::link::LinkName;
use sluice::model::{
    DetectedAddresses, Host, HostLink, Labels, Node, NodeAddress, NodeAddressKind, OnLink, OwnAnnotation, Pod,
    Reflection, Report, Routing,
};
use sluice::net::PerFamily;
use sluice::observe::local::{AnswerFormat, Question};
use sluice::router::drain::ClientLook;
use sluice::router::{driver, explain, metrics};

use sluice::router::plan::Plan as RouterPlan;
use tokio::sync::oneshot;

use super::*;

#[path = "retained.rs"]
mod retained;

#[path = "rotation.rs"]
mod rotation;

const OURS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const THEIRS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// The router of a node with one neighbour, which is this test.
struct Setup {
    neighbour: TcpListener,
    flags: Vec<String>,
    /// The CNI file that the router keeps.
    cni_file: Option<PathBuf>,
    backend: Backend,
    world: World,
    services_refused_at: watch::Receiver<Option<Instant>>,
    /// What is found of clients outside of the cluster; `None` where nobody looks.
    clients: Option<Clients>,
}

#[derive(Clone, Default)]
struct Clients {
    /// One has a connection.
    has_one: Arc<AtomicBool>,
    /// A search comes to no end.
    is_long: bool,
    searches: Arc<AtomicUsize>,
}

impl Setup {
    fn new(backend: Backend) -> Setup {
        let neighbour = TcpListener::bind((THEIRS, 0)).expect("loopback has a free port");
        let port = neighbour.local_addr().expect("it is bound").port();
        let port = format!("--bgp-port={port}");
        let words = ["sluice", "--enable-ipv6", "--enable-cni=false", &port];
        let node = |address: Ipv4Addr, range: &str| Node {
            addresses: vec![NodeAddress { kind: NodeAddressKind::Internal, address: address.into() }],
            pod_cidrs: vec![range.parse().expect("a range")],
            ..Node::default()
        };
        let mut world = generate::empty_world();
        (world.authority.proxy, world.authority.router) = (Authority::Complete, Authority::Complete);
        let links = vec![HostLink { name: "eth0".into(), mtu: 1500, bridge: false }];
        world.host = Arc::new(Host { links, ..generate::host(false) });
        world.cluster.nodes.insert(world.host.node_name.clone(), node(OURS, "10.244.1.0/24"));
        world.cluster.nodes.insert("node2".into(), node(THEIRS, "10.244.2.0/24"));
        let flags = words.map(str::to_owned).into();
        let services_refused_at = watch::channel(None).1;
        Setup { neighbour, flags, cni_file: None, backend, world, services_refused_at, clients: None }
    }

    fn config(&self) -> (Arc<RouterConfig>, PerFamily<bool>) {
        let words: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        let config = flags::meant(&words).decided(self.backend);
        let router = config.router.expect("the router is not switched off");
        (Arc::new(RouterConfig { cni_file: self.cni_file.clone(), ..router }), config.families)
    }

    /// What an earlier run leaves in the kernel.
    fn left(&self) -> State {
        let (config, families) = self.config();
        let mut plan = RouterPlan::new(config, families);
        plan.update(&self.world);
        let desired = plan.desired();
        State { sets: desired.sets.clone(), router_table: desired.table.clone(), ..State::default() }
    }

    /// Runs the router on a kernel while `test` looks at it.
    fn run<T>(&self, state: State, test: impl AsyncFnOnce(Seen) -> T) -> T {
        let kernel = MemoryKernel::new(state);
        let (config, families) = self.config();
        let (registry, health) = (Registry::new("test", "test"), Health::default());
        let pulse = |name| health.register(name, Duration::from_secs(60), Instant::now());
        let (world, world_in) = watch::channel(self.world.clone());
        let (_changes, disturbances) = watch::channel(Changes::default());
        let (stop, stopped) = watch::channel(false);
        let (ask, audits) = mpsc::channel(1);
        let (report, reports) = watch::channel(Report::default());
        let ((ask_bgp, questions), (inquire, inquiries)) = (mpsc::channel(1), mpsc::channel(1));
        let (access, speaker) = watch::channel(None);
        let inputs = Inputs {
            world: world_in,
            clock: Arc::new(EventClock::new(Instant::now())),
            disturbances,
            pulse: pulse("router"),
            account: Account::register(&registry, "sluice_router").expect("names are registered once"),
            audits,
        };
        let context = driver::RouterContext {
            speaker_pulse: pulse("BGP speaker"),
            report,
            metrics: metrics::Metrics::register(&registry).expect("names are registered once"),
            notes: health.note("router"),
            access,
            served: watch::channel(true).1,
            nodes_are_read: watch::channel(true).1,
            services_refused_at: self.services_refused_at.clone(),
            believed: watch::channel(Table::default()).0,
            clients: self.clients.clone().map(looking),
            inquiries,
        };
        let tell = context.report.clone();
        let driver = driver::Driver::new(config, families, kernel.router_targets_of(self.backend), context);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        LocalSet::new().block_on(&runtime, async {
            let task = tokio::task::spawn_local(driver.run(inputs, stopped));
            let answering = explain::serve::Answering { questions, speaker, router: inquire, world: world.subscribe() };
            tokio::task::spawn_local(explain::serve::run(answering));
            let seen = Seen { world, tell, health: health.clone(), reports, kernel: kernel.clone(), ask, ask_bgp };
            let found = test(seen).await;
            stop.send_replace(true);
            task.await.expect("the loop ends when it is told to");
            found
        })
    }

    /// Runs the router on a kernel; returns of each family whether its first OPEN says that forwarding state was preserved.
    fn preserved(&self, state: State) -> PerFamily<Option<bool>> {
        let neighbour = self.neighbour.try_clone().expect("a socket can be shared");
        self.run(state, async |_| {
            let heard = tokio::task::spawn_blocking(move || first_message(neighbour.accept().expect("it dials").0));
            let heard = tokio::time::timeout(Duration::from_secs(30), heard).await.expect("it dials");
            let Message::Open(open) = heard.expect("it says something") else { panic!("the first message is OPEN") };
            open.capabilities.restart.expect("nodes restart gracefully").families
        })
    }
}

/// What a running router is told, and what others see of it.
struct Seen {
    world: watch::Sender<World>,
    health: Health,
    reports: watch::Receiver<Report>,
    kernel: MemoryKernel,
    /// Takes questions of `sluice audit`.
    ask: mpsc::Sender<Question>,
    /// Takes questions of `sluice bgp`.
    ask_bgp: mpsc::Sender<Question>,
    /// The report, for what others than the router say in it.
    tell: watch::Sender<Report>,
}

impl Seen {
    /// The first reason with this text why the router is not ready.
    fn trouble(&self, text: &str) -> Option<String> {
        let mut reasons = self.health.unready(Instant::now()).into_iter().map(|reason| reason.to_string());
        reasons.find(|reason| reason.contains(text))
    }

    /// The objects that an audit finds missing.
    async fn missing(&self, repair: bool) -> Vec<String> {
        let about = [("repair".to_owned(), repair.to_string())].into();
        let (answer, answered) = oneshot::channel();
        let question = Question { path: "/audit/router", about, form: AnswerFormat::Json, answer };
        self.ask.send(question).await.expect("the loop runs");
        let text = answered.await.expect("the loop answers").expect("something is known");
        let answer: Value = serde_json::from_str(&text).expect("JSON");
        let all = |it: &Value, what| it.get(what).and_then(Value::as_array).cloned().unwrap_or_default();
        let differences = all(&answer, "kinds").into_iter().flat_map(|kind| all(&kind, "differences"));
        let word = |it: &Value, what| it.get(what).and_then(Value::as_str).expect("a word").to_owned();
        let objects = differences.map(|it| {
            assert_eq!(word(&it, "state"), "missing", "{text}");
            word(&it, "object")
        });
        objects.collect()
    }

    /// Asks about BGP.
    async fn bgp(&self, path: &'static str, what: &str) -> Result<Value, String> {
        let about = [("what".to_owned(), what.to_owned())].into();
        let (answer, answered) = oneshot::channel();
        let question = Question { path, about, form: AnswerFormat::Json, answer };
        self.ask_bgp.send(question).await.expect("somebody answers");
        let text = answered.await.expect("there is an answer")?;
        Ok(serde_json::from_str(&text).expect("JSON"))
    }

    /// Waits until something is so.
    async fn until(&self, what: &str, is_so: impl Fn(&Seen) -> bool) {
        let begun = Instant::now();
        while !is_so(self) {
            let now = (self.health.unready(Instant::now()), self.reports.borrow().clone());
            assert!(begun.elapsed() < Duration::from_secs(60), "not so: {what}; {now:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn first_message(mut stream: TcpStream) -> Message {
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    let (mut framing, mut buffer) = (Framing::default(), [0; 4096]);
    loop {
        if let Some(frame) = framing.next(false).expect("we write what can be read") {
            return message::decode(frame, None).expect("we write what can be read");
        }
        let read = stream.read(&mut buffer).expect("something is said");
        assert!(read > 0, "it says something before it ends");
        framing.push(buffer.get(..read).expect("as much as there is room for"));
    }
}

#[test]
fn after_a_boot_neighbours_are_told_that_nothing_is_forwarded_and_after_a_restart_that_it_is() {
    let said = |preserved| PerFamily { v4: Some(preserved), v6: None };
    for backend in [Backend::Iptables, Backend::Nftables] {
        // Each with a neighbour of its own, to which no earlier one has a connection.
        let preserved = |state| Setup::new(backend).preserved(state);
        assert_eq!(preserved(State::default()), said(false), "{backend:?}: a boot leaves nothing");
        assert_eq!(preserved(State::of_others()), said(false), "{backend:?}: what others have is not ours");
        let left = Setup::new(backend).left();
        assert_ne!(left, State::default(), "{backend:?}");
        assert_eq!(preserved(left), said(true), "{backend:?}");
        let other = if backend == Backend::Iptables { Backend::Nftables } else { Backend::Iptables };
        let left = Setup::new(other).left();
        assert_eq!(preserved(left), said(true), "{backend:?}: a run with the other backend has left it");
    }
}

/// The time after which a router dials that does not know Services; `None`: it does not within `patience`.
async fn dials_within(neighbour: &TcpListener, patience: Duration) -> Option<Duration> {
    let (begun, neighbour) = (Instant::now(), neighbour.try_clone().expect("a socket can be shared"));
    neighbour.set_nonblocking(true).expect("a socket can be asked");
    while begun.elapsed() < patience {
        if neighbour.accept().is_ok() {
            return Some(begun.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    None
}

#[test]
fn a_router_that_starts_for_the_first_time_begins_bgp_although_services_are_refused() {
    for backend in [Backend::Iptables, Backend::Nftables] {
        let mut setup = Setup::new(backend);
        setup.flags.push("--bgp-graceful-restart".to_owned());
        setup.world.authority.proxy = Authority::Nothing;
        let (_forbidden, refused) = watch::channel(Some(Instant::now()));
        setup.services_refused_at = refused;
        let neighbour = setup.neighbour.try_clone().expect("a socket can be shared");
        setup.run(State::default(), async |seen| {
            seen.until("it is said why there are no sessions", |seen| seen.trouble("BGP has not begun").is_some())
                .await;
            assert!(dials_within(&neighbour, Duration::from_secs(30)).await.is_some(), "pods would be cut off");
            let note =
                |seen: &Seen| seen.health.notes().iter().any(|note| note.text.contains("no addresses of Services"));
            seen.until("it is noted", |seen| note(seen) && seen.trouble("BGP has not begun").is_none()).await;
            seen.world.send_modify(|world| world.authority.proxy = Authority::Complete);
            seen.until("Services are known at last", |seen| !note(seen)).await;
        });
    }
}

#[test]
fn a_router_that_restarts_gracefully_waits_for_services_that_neighbours_keep_and_less_where_they_are_refused() {
    let mut setup = Setup::new(Backend::Nftables);
    let outside = ["--bgp-graceful-restart", "--peer-router-ips=127.0.0.3", "--peer-router-asns=65001"];
    setup.flags.extend(outside.map(str::to_owned));
    let left = setup.left();
    setup.world.authority.proxy = Authority::Nothing;
    let neighbour = setup.neighbour.try_clone().expect("a socket can be shared");
    setup.run(left.clone(), async |seen| {
        assert_eq!(dials_within(&neighbour, Duration::from_secs(5)).await, None, "they would withdraw them");
        seen.world.send_modify(|world| world.authority.proxy = Authority::Complete);
        assert!(dials_within(&neighbour, Duration::from_secs(30)).await.is_some());
    });
    let (forbidden, refused) = watch::channel(None);
    setup.services_refused_at = refused;
    setup.run(left, async |_| {
        assert_eq!(dials_within(&neighbour, Duration::from_secs(3)).await, None);
        let first = Instant::now();
        forbidden.send_replace(Some(first));
        assert_eq!(dials_within(&neighbour, Duration::from_secs(15)).await, None, "it may have refused for a moment");
        forbidden.send_replace(Some(first + Duration::from_secs(15)));
        assert!(dials_within(&neighbour, Duration::from_secs(30)).await.is_some(), "it begins without them");
    });
}

#[test]
fn a_cni_file_of_others_that_sorts_first_is_reported_and_keeps_the_node_from_being_ready() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut setup = Setup::new(Backend::Nftables);
    setup.cni_file = Some(directory.path().join("10-kuberouter.conflist"));
    let other = directory.path().join("05-flannel.conflist");
    std::fs::write(&other, r#"{"name":"cbr0","plugins":[{"type":"flannel"}]}"#).expect("writable");
    setup.run(State::default(), async |seen| {
        let text = "05-flannel.conflist sorts before it";
        seen.until("it is trouble", |seen| seen.trouble(text).is_some()).await;
        let told = |seen: &Seen| seen.reports.borrow().problems.iter().any(|problem| problem.contains(text));
        seen.until("an Event tells of it", told).await;
        std::fs::remove_file(&other).expect("it is there");
        // The directory is looked at again when the file changes, and at each audit.
        let node = |world: &mut World| {
            let name = world.host.node_name.clone();
            let ranges = vec!["10.244.9.0/24".parse().expect("a range")];
            let node = world.cluster.nodes.get(&name).expect("this node").clone();
            world.cluster.nodes.insert(name, Node { pod_cidrs: ranges, ..(*node).clone() })
        };
        seen.world.send_modify(|world| {
            node(world);
        });
        seen.until("it is over", |seen| seen.trouble(text).is_none() && !told(seen)).await;
    });
}

#[test]
fn a_pod_range_that_two_nodes_have_keeps_the_node_from_being_ready_until_one_has_another() {
    let setup = Setup::new(Backend::Nftables);
    let node = |address: Ipv4Addr, range: &str| Node {
        addresses: vec![NodeAddress { kind: NodeAddressKind::Internal, address: address.into() }],
        pod_cidrs: vec![range.parse().expect("a range")],
        ..Node::default()
    };
    setup.run(State::default(), async |seen| {
        let third = Ipv4Addr::new(127, 0, 0, 3);
        let text = "10.244.2.0/24 of Node node3 (Node node2 has it, too)";
        let put = |range| {
            seen.world.send_modify(|world| {
                world.cluster.nodes.insert("node3".into(), node(third, range));
            })
        };
        put("10.244.2.0/24");
        seen.until("it is trouble", |seen| seen.trouble(text).is_some()).await;
        put("10.244.3.0/24");
        seen.until("it is over", |seen| seen.trouble("has it, too").is_none()).await;
    });
}

/// Gives a Node this AS number by its annotation, or none.
fn numbered(world: &mut World, name: &str, asn: Option<u32>) {
    let node = world.cluster.nodes.get(&name.into()).expect("it is there").clone();
    let routing = Some(Box::new(Routing { asn, ..node.routing().clone() }));
    world.cluster.nodes.insert(name.into(), Node { routing, ..(*node).clone() });
}

#[test]
fn a_node_that_loses_its_as_number_is_not_ready_because_it_learns_no_routes_to_pods_any_more() {
    let mut setup = Setup::new(Backend::Nftables);
    setup.flags[2] = "--nodes-full-mesh=false".to_owned();
    numbered(&mut setup.world, "node2", Some(64512));
    let own = setup.world.host.node_name.clone();
    numbered(&mut setup.world, &own, Some(64512));
    setup.run(State::default(), async |seen| {
        let text = "BGP does not run, so no routes to 1 pod ranges of other nodes can be learned";
        let put = |asn| seen.world.send_modify(|world| numbered(world, &own, asn));
        // What neighbours have not announced yet is named once the first sync is over.
        let missing = |seen: &Seen| seen.trouble("10.244.2.0/24 of Node node2").is_some();
        seen.until("the first sync is over", missing).await;
        assert_eq!(seen.trouble(text), None);
        put(None);
        seen.until("it is trouble", |seen| seen.trouble(text).is_some()).await;
        put(Some(64512));
        seen.until("it is over", |seen| seen.trouble(text).is_none()).await;
    });
}

#[test]
fn an_audit_of_the_router_names_what_is_missing_and_puts_it_back_only_when_asked_for() {
    let setup = Setup::new(Backend::Nftables);
    setup.run(State::default(), async |seen| {
        seen.until("the table is there", |seen| !seen.kernel.state().router_table.is_empty()).await;
        while !seen.missing(false).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let whole = seen.kernel.state().router_table;
        let mut named = false;
        // The loop looks by itself too, and may put it back first.
        for _ in 0..20 {
            let gone = seen.kernel.with(|machine| {
                let (object, _) = machine.state.router_table.pop_last().expect("it has objects");
                object.to_string()
            });
            let found = seen.missing(false).await;
            let is_still_gone = seen.kernel.state().router_table != whole;
            assert!(found.is_empty() || found == [gone.clone()], "{found:?}, and not {gone}");
            named |= is_still_gone && !found.is_empty();
            seen.missing(true).await;
            seen.until("it is back", |seen| seen.kernel.state().router_table == whole).await;
            if named {
                break;
            }
        }
        assert!(named, "a question never named what was missing and left it alone");
        assert_eq!(seen.missing(false).await, Vec::<String>::new());
    });
}

#[test]
fn neighbours_and_routes_are_told_also_before_any_session_and_without_a_speaker() {
    let mut setup = Setup::new(Backend::Nftables);
    setup.flags[2] = "--nodes-full-mesh=false".to_owned();
    numbered(&mut setup.world, "node2", Some(64512));
    let own = setup.world.host.node_name.clone();
    let word = |value: &Value, pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    setup.run(State::default(), async |seen| {
        // The World is taken, and the speaker starts, a moment later.
        let ask = async |path, what, pointer: &str| {
            let begun = Instant::now();
            loop {
                let answer = seen.bgp(path, what).await;
                match &answer {
                    Ok(answer) if answer.pointer(pointer).is_some() => return answer.clone(),
                    other => assert!(begun.elapsed() < Duration::from_secs(60), "{what}: {other:?}"),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let without = ask("/bgp/peers", "", "/problems/0").await;
        assert_eq!((&without["speaker"], without["neighbours"].as_array().map(Vec::len)), (&Value::Null, Some(0)));
        let why = word(&without, "/problems/0/problem").unwrap_or_default();
        assert!(why.contains("kube-router.io/node.asn"), "{without}");
        let refused = seen.bgp("/bgp/routes", "").await.expect_err("no speaker runs");
        assert!(refused.starts_with("BGP does not run on this node: BGP: "), "{refused}");

        seen.world.send_modify(|world| numbered(world, &own, Some(64512)));
        let route = ask("/bgp/routes", "10.244.1.0/24", "/prefixes/0").await;
        assert_eq!(word(&route, "/prefixes/0/paths/0/from").as_deref(), Some("this node"), "{route}");
        assert_eq!(word(&route, "/prefixes/0/paths/0/standing").as_deref(), Some("best"), "{route}");
        let why = word(&route, "/prefixes/0/kernel/reasons/0");
        assert_eq!(why.as_deref(), Some("no route: the prefix is this node's own"));
        let peers = ask("/bgp/peers", "", "/neighbours/0").await;
        let neighbour = &peers["neighbours"][0];
        assert_eq!(word(neighbour, "/address").as_deref(), Some("127.0.0.2"), "{peers}");
        assert_eq!(word(neighbour, "/source").as_deref(), Some("Node node2"));
        assert_eq!(neighbour["hasBeenEstablished"], false);
        let unknown = seen.bgp("/bgp/routes", "198.51.100.7").await.expect_err("there is none");
        assert!(unknown.starts_with("BGP knows no such route; it knows 1 prefixes"), "{unknown}");
        let odd = seen.bgp("/bgp/routes", "shop/web").await.expect_err("a Service is no prefix");
        assert!(odd.starts_with("\"shop/web\" is no prefix"), "{odd}");
    });
}

const LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// Puts the label of load balancers on a Node, or takes it away.
fn label(world: &mut World, name: &str, is_there: bool) {
    let node = world.cluster.nodes.get(&name.into()).expect("it is there").clone();
    let labels = is_there.then_some((LABEL, "")).into_iter().collect();
    world.cluster.nodes.insert(name.into(), Node { labels, ..(*node).clone() });
}

#[test]
fn a_node_that_drains_reports_each_step_of_it_and_one_that_starts_so_the_last_one_alone() {
    let word = |seen: &Seen| seen.reports.borrow().news.as_ref().map(|(number, news)| (*number, news.word));
    let mut setup = Setup::new(Backend::Nftables);
    setup.flags.push("--drain-delay=300ms".to_owned());
    let own = setup.world.host.node_name.clone();
    let put = |seen: &Seen, is_there| seen.world.send_modify(|world| label(world, &own, is_there));
    setup.run(State::default(), async |seen| {
        seen.until("the first sync is over", |seen| seen.trouble("10.244.2.0/24 of Node node2").is_some()).await;
        assert_eq!(word(&seen), None);
        put(&seen, true);
        seen.until("it is leaving", |seen| word(seen) == Some((0, "ServiceAddressesLeaving"))).await;
        seen.until("it has left", |seen| word(seen) == Some((1, "ServiceAddressesWithdrawn"))).await;
        let answer = seen.bgp("/bgp/peers", "").await.expect("an answer");
        assert_eq!(answer["serviceAddresses"], "withdrawn");
        put(&seen, false);
        seen.until("it is back", |seen| word(seen) == Some((2, "ServiceAddressesAnnounced"))).await;
    });
    label(&mut setup.world, &own, true);
    setup.run(State::default(), async |seen| {
        seen.until("nothing was announced", |seen| word(seen) == Some((0, "ServiceAddressesWithdrawn"))).await;
    });
}

#[test]
fn a_node_drains_for_a_taint_that_is_named_and_for_a_shutdown_and_not_for_a_cordon() {
    let word = |seen: &Seen| seen.reports.borrow().news.as_ref().map(|(_, news)| news.word);
    let mut setup = Setup::new(Backend::Nftables);
    setup.flags.extend(["--drain-delay=0s", "--drain-taints=example.com/leaving"].map(str::to_owned));
    let own = setup.world.host.node_name.clone();
    let usual = (**setup.world.cluster.nodes.get(&own).expect("it is there")).clone();
    let tainted = |text: &str| Node { taints: vec![text.parse().expect("a taint")], ..usual.clone() };
    let put = |seen: &Seen, node: &Node| {
        seen.world.send_modify(|world| {
            world.cluster.nodes.insert(own.clone(), node.clone());
        });
    };
    setup.run(State::default(), async |seen| {
        seen.until("the first sync is over", |seen| seen.trouble("10.244.2.0/24 of Node node2").is_some()).await;
        put(&seen, &tainted("node.kubernetes.io/unschedulable:NoSchedule"));
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(word(&seen), None, "a cordon");
        put(&seen, &tainted("example.com/leaving=now:NoExecute"));
        seen.until("it has left", |seen| word(seen) == Some("ServiceAddressesWithdrawn")).await;
        put(&seen, &usual);
        seen.until("it is back", |seen| word(seen) == Some("ServiceAddressesAnnounced")).await;
        put(&seen, &Node { is_shutting_down: true, ..usual.clone() });
        seen.until("it has left", |seen| word(seen) == Some("ServiceAddressesWithdrawn")).await;
        let answer = seen.bgp("/bgp/peers", "").await.expect("an answer");
        assert_eq!(answer["serviceAddresses"], "withdrawn");
    });
}

/// Looks among a client outside, while there is one, and pods and nodes.
fn looking(clients: Clients) -> ClientLook {
    ClientLook::new(move || {
        clients.searches.fetch_add(1, Ordering::SeqCst);
        let Clients { has_one, is_long, .. } = clients.clone();
        Box::new(move |is_outside| {
            let inside = ["127.0.0.2", "10.244.1.7", "10.244.2.7"].map(|text| text.parse().expect("an address"));
            let outside = "198.51.100.7".parse().expect("an address");
            let found = inside.into_iter().any(is_outside) || has_one.load(Ordering::SeqCst) && is_outside(outside);
            Ok((!is_long).then_some(found))
        })
    })
}

#[test]
fn a_drain_does_not_go_on_with_the_search_for_clients_of_one_that_was_cancelled() {
    let word = |seen: &Seen| seen.reports.borrow().news.as_ref().map(|(_, news)| news.word);
    let mut setup = Setup::new(Backend::Nftables);
    setup.flags.push("--drain-delay=0s".to_owned());
    let clients = Clients { is_long: true, ..Clients::default() };
    setup.clients = Some(clients.clone());
    let own = setup.world.host.node_name.clone();
    let put = |seen: &Seen, is_there| seen.world.send_modify(|world| label(world, &own, is_there));
    let searches = || clients.searches.load(Ordering::SeqCst);
    label(&mut setup.world, &own, true);
    setup.run(State::default(), async |seen| {
        seen.until("a search is in progress", |_| searches() == 1).await;
        put(&seen, false);
        seen.until("it is back", |seen| word(seen) == Some("ServiceAddressesAnnounced")).await;
        put(&seen, true);
        seen.until("it has left", |seen| word(seen) == Some("ServiceAddressesWithdrawn")).await;
        seen.until("another search is in progress", |_| searches() == 2).await;
    });
}

#[test]
fn a_node_that_drains_says_when_no_client_outside_has_a_connection_any_more() {
    let word = |seen: &Seen| seen.reports.borrow().news.as_ref().map(|(number, news)| (*number, news.word));
    let mut setup = Setup::new(Backend::Nftables);
    let has_client = Arc::new(AtomicBool::new(true));
    setup.clients = Some(Clients { has_one: has_client.clone(), ..Clients::default() });
    let own = setup.world.host.node_name.clone();
    label(&mut setup.world, &own, true);
    setup.run(State::default(), async |seen| {
        seen.until("nothing was announced", |seen| word(seen) == Some((0, "ServiceAddressesWithdrawn"))).await;
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert_eq!(word(&seen), Some((0, "ServiceAddressesWithdrawn")), "there is a client");
        has_client.store(false, Ordering::SeqCst);
        seen.until("there is none", |seen| word(seen) == Some((1, "NoConnectionsFromOutside"))).await;
    });
}

#[test]
fn a_node_that_drains_without_service_addresses_says_that_there_are_none() {
    let mut setup = Setup::new(Backend::Nftables);
    let own = setup.world.host.node_name.clone();
    label(&mut setup.world, &own, true);
    setup.run(State::default(), async |seen| {
        let note = "it has no service addresses to announce";
        seen.until("it is noted", |seen| seen.health.notes().iter().any(|text| text.to_string().contains(note))).await;
    });
}

#[test]
fn a_router_outside_with_which_there_can_be_no_session_is_noted_by_a_node_that_is_ready() {
    let mut setup = Setup::new(Backend::Nftables);
    setup.flags.extend(["--peer-router-ips=127.0.0.1".to_owned(), "--peer-router-asns=65001".to_owned()]);
    setup.run(State::default(), async |seen| {
        let note = "127.0.0.1: it is an address of this node";
        seen.until("it is noted", |seen| seen.health.notes().iter().any(|text| text.to_string().contains(note))).await;
    });
}

#[test]
fn with_node_objects_and_without_an_as_number_tunnels_go_routes_are_told_and_nothing_is_missing() {
    let mut setup = Setup::new(Backend::Nftables);
    setup.flags[2] = "--nodes-full-mesh=false".to_owned();
    setup.flags.push("--node-routes=api".to_owned());
    setup.flags.push("--overlay-type=full".to_owned());
    let own = AddressKey { link: LinkName("eth0".into()), address: "127.0.0.1/8".parse().expect("an address") };
    let state = State { addresses: [(own, ())].into(), ..State::default() };
    setup.run(state, async |seen| {
        let counts = |seen: &Seen| (seen.kernel.state().routes.len(), seen.kernel.state().tunnels.len());
        seen.until("route and tunnel are there", |seen| counts(seen) == (2, 1)).await;
        let answer = seen.bgp("/bgp/routes", "10.244.2.7").await.expect("there is an answer without a speaker");
        assert_eq!(answer["prefixes"][0]["givenByNodes"][0], "node2");
        let peers = seen.bgp("/bgp/peers", "").await.expect("an answer");
        assert_eq!(peers["problems"].as_array().map(Vec::len), Some(0), "{peers}");
        seen.world.send_modify(|world| drop(world.cluster.nodes.remove(&"node2".into())));
        seen.until("route and tunnel are gone with their Node", |seen| counts(seen) == (0, 0)).await;
        let refused = seen.bgp("/bgp/routes", "").await.expect_err("there is none");
        assert_eq!(refused, "BGP does not run on this node");
    });
}

#[test]
fn the_way_to_a_pod_is_told_with_its_tunnel_before_and_after_the_kernel_has_it_and_a_pod_by_its_name() {
    let mut setup = Setup::new(Backend::Nftables);
    setup.flags.push("--node-routes=api".to_owned());
    setup.flags.push("--overlay-type=full".to_owned());
    let pod = Pod {
        uid: None,
        labels: Labels::default(),
        addresses: [IpAddr::from([10, 244, 2, 7])].into(),
        node: Some("node2".into()),
        host_network: false,
        finished: false,
        ports: [].into_iter().collect(),
    };
    setup.world.cluster.pods.insert(ObjectName::new("shop", "web"), pod);
    let own = AddressKey { link: LinkName("eth0".into()), address: "127.0.0.1/8".parse().expect("an address") };
    let state = State { addresses: [(own, ())].into(), ..State::default() };
    setup.run(state, async |seen| {
        let word = |value: &Value, pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let begun = Instant::now();
        let answer = loop {
            let answer = seen.bgp("/route", "shop/web").await.expect("the pod is known");
            if word(&answer, "/ways/0/route/kernel/standing").as_deref() == Some("inPlace") {
                break answer;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{answer:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert_eq!(
            (word(&answer, "/pod/node").as_deref(), answer["ways"].as_array().map(Vec::len)),
            (Some("node2"), Some(1))
        );
        let way = &answer["ways"][0];
        assert_eq!(
            (word(way, "/owner").as_deref(), word(way, "/node").as_deref()),
            (Some("podsOfNode"), Some("node2"))
        );
        assert_eq!(way["route"]["givenByNodes"][0], "node2");
        let tunnel = &way["route"]["nextHops"][0]["tunnel"];
        assert_eq!((&tunnel["local"], &tunnel["remote"]), (&"127.0.0.1".into(), &"127.0.0.2".into()));
        assert_eq!((&tunnel["inPlace"], &tunnel["overhead"]), (&true.into(), &20.into()));
        assert_eq!(way["differences"].as_array().map(Vec::len), Some(0), "{way:#}");

        let own = seen.bgp("/route", "127.0.0.1").await.expect("an answer");
        assert_eq!(word(&own, "/ways/0/owner").as_deref(), Some("thisNode"));
        let none = seen.bgp("/route", "shop/none").await.expect_err("there is none");
        assert_eq!(none, "there is no pod shop/none");
        let odd = seen.bgp("/route", "10.244.2.0/24").await.expect_err("a prefix is no address");
        assert_eq!(odd, "there is no pod 10.244.2.0/24");

        // What somebody has taken away is missing in the kernel's lookup at once, whatever was last seen.
        seen.kernel.with(|machine| machine.state.routes.clear());
        let answer = seen.bgp("/route", "10.244.2.7").await.expect("an answer");
        let difference = word(&answer, "/ways/0/differences/0");
        assert_eq!(difference.as_deref(), Some("packets of this node: the kernel refuses them"), "{answer:#}");
    });
}

#[test]
fn routes_that_node_objects_give_are_in_the_kernel_without_any_neighbour_and_are_told() {
    let mut setup = Setup::new(Backend::Nftables);
    setup.flags.push("--node-routes=api".to_owned());
    setup.flags.push("--overlay-type=full".to_owned());
    let own = AddressKey { link: LinkName("eth0".into()), address: "127.0.0.1/8".parse().expect("an address") };
    let state = State { addresses: [(own, ())].into(), ..State::default() };
    setup.run(state, async |seen| {
        let range: ipnet::IpNet = "10.244.2.0/24".parse().expect("a range");
        let has_route = |seen: &Seen| seen.kernel.state().routes.keys().any(|key| key.destination == range);
        seen.until("the route is there", has_route).await;
        let begun = Instant::now();
        let answer = loop {
            match seen.bgp("/bgp/routes", "10.244.2.7").await {
                Ok(answer) => break answer,
                Err(why) => assert!(begun.elapsed() < Duration::from_secs(60), "{why}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert_eq!(answer["prefixes"][0]["givenByNodes"][0], "node2");
        let peers = seen.bgp("/bgp/peers", "").await.expect("an answer");
        assert_eq!((&peers["nodeRoutes"], peers["neighbours"].as_array().map(Vec::len)), (&"api".into(), Some(0)));
        seen.world.send_modify(|world| drop(world.cluster.nodes.remove(&"node2".into())));
        seen.until("the route is gone with its Node", |seen| !has_route(seen)).await;
    });
}

#[test]
fn tunnels_follow_the_addresses_that_are_detected_and_it_is_trouble_where_none_is_found_or_told() {
    let mut setup = Setup::new(Backend::Nftables);
    setup.flags.push("--node-routes=api".to_owned());
    setup.flags.push("--overlay-type=full".to_owned());
    let at = |text: &str| text.parse::<IpAddr>().expect("an address");
    let own = |address: &str| AddressKey {
        link: LinkName("eth0".into()),
        address: format!("{address}/8").parse().expect("an address"),
    };
    let addresses = ["127.0.0.1", "127.0.1.1", "127.0.1.7"].map(|address| (own(address), ())).into();
    let ours = setup.world.host.node_name.clone();
    setup.run(State { addresses, ..State::default() }, async |seen| {
        let ends = |seen: &Seen| -> Vec<String> {
            let tunnels = seen.kernel.state().tunnels;
            tunnels.values().map(|tunnel| format!("{} {}", tunnel.local, tunnel.remote)).collect()
        };
        let detect = |name: &str, address: Option<&str>| {
            seen.world.send_modify(|world| {
                let mut node = (**world.cluster.nodes.get(&name.into()).expect("it is there")).clone();
                node.set_detected(PerFamily { v4: address.map(at), v6: None });
                world.cluster.nodes.insert(name.into(), node);
            });
        };
        seen.until("the first tunnel", |seen| ends(seen) == ["127.0.0.1 127.0.0.2"]).await;
        detect(&ours, Some("127.0.1.1"));
        seen.until("ours is another one", |seen| ends(seen) == ["127.0.1.1 127.0.0.2"]).await;
        detect("node2", Some("127.0.1.2"));
        seen.until("theirs is another one", |seen| ends(seen) == ["127.0.1.1 127.0.1.2"]).await;
        detect(&ours, Some("127.0.1.7"));
        seen.until("ours follows", |seen| ends(seen) == ["127.0.1.7 127.0.1.2"]).await;
        detect("node2", None);
        seen.until("the InternalIP counts again", |seen| ends(seen) == ["127.0.1.7 127.0.0.2"]).await;

        let problem = "--node-ip-autodetect=interface=eth1 finds no IPv4 address";
        let lack = |problem: Option<&str>| {
            let problems = PerFamily { v4: problem.map(str::to_owned), v6: None };
            let detected = DetectedAddresses { problems, ..DetectedAddresses::default() };
            seen.world.send_modify(|world| Arc::make_mut(&mut world.host).detected = Some(detected));
        };
        lack(Some(problem));
        seen.until("it is trouble", |seen| seen.trouble(problem).is_some()).await;
        let is_told = |seen: &Seen| seen.reports.borrow().problems.iter().any(|text| text.contains(problem));
        seen.until("it is an Event", is_told).await;
        lack(None);
        seen.until("it is over", |seen| seen.trouble(problem).is_none() && !is_told(seen)).await;

        let untold = "the annotation kube-router.io/node-address of its Node is not 127.0.1.7";
        let annotation = |seen| OwnAnnotation { wanted: Some("127.0.1.7".to_owned()), seen };
        let key = "kube-router.io/node-address";
        seen.tell.send_modify(|report| drop(report.annotations.insert(key, annotation(None))));
        seen.until("others do not know it", |seen| seen.trouble(untold).is_some()).await;
        let known = annotation(Some("127.0.1.7".to_owned()));
        seen.tell.send_modify(|report| drop(report.annotations.insert(key, known)));
        seen.until("they do", |seen| seen.trouble(untold).is_none()).await;
    });
}

#[test]
fn as_many_nodes_on_links_as_the_kernel_finds_out_neighbours_are_a_problem_until_it_may_find_out_more() {
    let mut setup = Setup::new(Backend::Nftables);
    let network = OnLink { prefix: "127.0.0.0/24".parse().expect("a network"), link: "eth0".into() };
    Arc::make_mut(&mut setup.world.host).on_link = vec![network];
    let node = |address: Ipv4Addr| Node {
        addresses: vec![NodeAddress { kind: NodeAddressKind::Internal, address: address.into() }],
        ..Node::default()
    };
    let elsewhere = [("node3", Ipv4Addr::new(127, 0, 1, 3)), ("node4", Ipv4Addr::new(127, 0, 1, 4))];
    for (name, address) in elsewhere {
        setup.world.cluster.nodes.insert(name.into(), node(address));
    }
    setup.run(State::default(), async |seen| {
        let limit = |limit| seen.kernel.with(|machine| machine.neighbour_limits.v4 = Some(limit));
        let looks = |seen: &Seen| seen.kernel.with(|machine| machine.neighbour_limits_read);
        let is_told = |seen: &Seen| {
            let problem = "are on links of this host, and its kernel finds out";
            seen.reports.borrow().problems.iter().any(|text| text.contains(problem))
        };
        limit(2);
        // The first look may come before the first World.
        seen.until("it has looked at three nodes of which one is on a link", |seen| looks(seen) >= 3).await;
        assert!(!is_told(&seen), "those elsewhere do not count");
        let one_more = node(Ipv4Addr::new(127, 0, 0, 4));
        seen.world.send_modify(|world| _ = world.cluster.nodes.insert("node5".into(), one_more));
        seen.until("an Event says so", is_told).await;
        assert_eq!(seen.trouble("are on links"), None, "the agent does all that it can");

        let with_role = |reflection| Node {
            routing: Some(Box::new(Routing { reflection, ..Routing::default() })),
            ..node(Ipv4Addr::new(127, 0, 0, 4))
        };
        let client = with_role(Reflection::Client([127, 0, 0, 9].into()));
        seen.world.send_modify(|world| _ = world.cluster.nodes.insert("node5".into(), client));
        seen.until("there is no session with a client of reflectors", |seen| !is_told(seen)).await;
        let of_none = with_role(Reflection::None);
        seen.world.send_modify(|world| _ = world.cluster.nodes.insert("node5".into(), of_none));
        seen.until("there is one again", is_told).await;
        limit(8);
        seen.until("it is resolved", |seen| !is_told(seen)).await;
    });
}
