//! The loop of the firewall, from a World to a kernel in memory that fails, is slow to be known, or is flushed: what is in
//! force meanwhile, and what health, metrics and log say. With both backends, but for what is about the objects of one.

#[path = "driver/audits.rs"]
mod audits;
#[path = "driver/in_force.rs"]
mod in_force;
#[path = "driver/judging.rs"]
mod judging;
#[path = "driver/oversized.rs"]
mod oversized;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use compact_str::CompactString;
use sluice::config::{Backend, FirewallConfig, ServiceRanges};
use sluice::firewall::driver::{Driver, FirewallContext};
use sluice::firewall::established::ENDED;
use sluice::firewall::explain::DIFF;
use sluice::firewall::flows::{Flows, Log as PacketLog};
use sluice::firewall::iptables::{Iptables, names};
use sluice::firewall::judging::Judging;
use sluice::firewall::metrics::Metrics;
use sluice::firewall::nftables::Nftables;
use sluice::firewall::oversized_policies::OversizedPolicies;
use sluice::firewall::starting_pod::StartingPod;
use sluice::k8s::manifests;
use sluice::kernel::Error;
use sluice::kernel::conntrack::{Connection, ConnectionFilter, TrackedConnection, Transport};
use sluice::kernel::monitor::Changes;
use sluice::kernel::nflog::OpenError;
use sluice::kernel::nftables::Object;
use sluice::model::{Authorities, Authority, EventClock, HostLink, Node, PolicyProblems, World};
use sluice::net::{Family, PerFamily, Protocol};
use sluice::observe::health::Health;
use sluice::observe::local::{Answer, AnswerFormat, Question};
use sluice::observe::metrics::Registry;
use sluice::reconcile::Account;
use sluice::subsystem::Inputs;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::LocalSet;

use super::cases::{Case, HERE, pods, port, rule};
use super::support::memory::{MemoryKernel, State};
use super::table_walk::Machine;

use in_force::InForce;

const BOTH: PerFamily<bool> = PerFamily { v4: true, v6: true };
const BACKENDS: [Backend; 2] = [Backend::Iptables, Backend::Nftables];

/// A running loop: what it is fed with, and where it tells how it stands.
struct Running {
    kernel: MemoryKernel,
    /// The table of the nftables backend; empty with the other one.
    table: Machine,
    world: watch::Sender<World>,
    changes: watch::Sender<Changes>,
    stop: watch::Sender<bool>,
    health: Health,
    registry: Registry,
    log: Log,
    config: Arc<FirewallConfig>,
    families: PerFamily<bool>,
    /// Where pods that start are announced, while it runs.
    starting: Arc<Mutex<Option<mpsc::Sender<StartingPod>>>>,
    /// Where the newest loop takes questions.
    asking: RefCell<Option<mpsc::Sender<Question>>>,
    /// The same for audits.
    auditing: RefCell<Option<mpsc::Sender<Question>>>,
    flows: Tracking,
    /// The number of the World that is judged.
    judged: watch::Sender<u64>,
    /// The problems of policies with too many blocks.
    oversized: watch::Sender<PolicyProblems>,
}

/// Captured log.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

#[test]
fn a_policy_is_compared_before_it_is_applied_and_the_kernel_stays_as_it_is() {
    with_each(false, async |running| {
        let file = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: none, namespace: shop}, spec: {podSelector: {}}}";
        assert_eq!(running.compared(file).await, Err("nothing is known of the cluster yet".to_owned()));
        running.settles(&shop()).await;
        let before = running.in_force();
        let answer = running.compared(file).await.expect("the file is sound");
        assert!(
            answer.starts_with(
                "NetworkPolicy shop/none: new\nPods of this node that become isolated: 1\n  shop/db: ingress\n"
            ),
            "{answer}"
        );
        assert!(
            answer.contains("Closes:\n") && answer.ends_with("Connections that would be refused: none\n"),
            "{answer}"
        );
        let odd = running.compared(&file.replace("podSelector", "podSelecter")).await.expect_err("a misspelt field");
        assert!(odd.contains("spec.podSelecter") && odd.lines().count() == 1, "{odd}");
        let none = file.replace("{podSelector: {}}", "{podSelector: {}, policyTypes: [Sideways]}");
        let odd = running.compared(&none).await.expect_err("a type that does not exist");
        assert!(odd.ends_with("\"Sideways\" is not known; the policy cannot be read"), "{odd}");
        assert_eq!(running.in_force(), before);
    });
}

#[test]
fn a_policy_that_newly_denies_a_connection_ends_it_where_that_is_asked_for() {
    for flush_established in [true, false] {
        let config = FirewallConfig { flush_established, ..config(false) };
        with_each_of(config, async |running| {
            let to_web = |source| tcp(source, "10.244.0.1", "10.244.0.1");
            let left = || running.left();
            running.tracks([to_web("10.244.0.2"), to_web("203.0.113.1")]);
            running.settles(&shop()).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert_eq!(left(), 2, "a start ends nothing, not even what policies deny");
            let nobody = [rule(&[pods("app=nobody")], &[])];
            let world = Case(shop()).policy("shop/more", "app=db", [Some(&nobody), None]).0;
            running.settles(&world).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert_eq!(left(), 2, "a policy of another pod");
            let other_port = [rule(&[pods("app=db")], &[port("tcp/81")])];
            running.settles(&Case(world).policy("shop/web", "app=web", [Some(&other_port), None]).0).await;
            if flush_established {
                running.until_told(|text| text.contains("sluice_firewall_ended_connections_total 2")).await;
                assert_eq!(left(), 0);
            } else {
                tokio::time::sleep(Duration::from_millis(300)).await;
                assert_eq!(left(), 2);
            }
        });
    }
}

#[test]
fn what_a_start_learns_after_what_it_remembered_ends_no_connection() {
    let config = FirewallConfig { flush_established: true, ..config(false) };
    with_each_of(config, async |running| {
        running.tracks([tcp("10.244.0.2", "10.244.0.1", "10.244.0.1")]);
        for authority in [Authority::Remembered, Authority::Partial] {
            let authority = Authorities { firewall: authority, ..Authorities::default() };
            running.settles(&World { authority, ..shop() }).await;
        }
        let other_port = [rule(&[pods("app=db")], &[port("tcp/81")])];
        let changed_meanwhile = Case(shop()).policy("shop/web", "app=web", [Some(&other_port), None]).0;
        running.settles(&changed_meanwhile).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(running.left(), 1);
        let nobody = [rule(&[pods("app=nobody")], &[])];
        running.settles(&Case(changed_meanwhile).policy("shop/web", "app=web", [Some(&nobody), None]).0).await;
        running.until_told(|text| text.contains("sluice_firewall_ended_connections_total 1")).await;
    });
}

#[test]
fn a_flow_to_an_address_of_a_service_that_is_not_translated_goes_on() {
    let cluster_ips = vec!["10.96.0.0/12".parse().expect("a range")];
    let ranges = ServiceRanges { cluster_ips, ..ServiceRanges::default() };
    let config = FirewallConfig { flush_established: true, ranges, ..config(false) };
    with_each_of(config, async |running| {
        let untranslated = tcp("10.244.0.2", "10.96.0.10", "10.96.0.10");
        running.tracks([untranslated.clone(), tcp("10.244.0.2", "10.96.0.11", "10.244.0.1")]);
        running.settles(&shop()).await;
        running.settles(&Case(shop()).policy("shop/db", "app=db", [None, Some(&[])]).0).await;
        running.until_told(|text| text.contains("sluice_firewall_ended_connections_total 1")).await;
        assert_eq!(running.left(), 1);
        assert_eq!(running.flows.going_on(), [untranslated]);
    });
}

#[test]
fn what_others_flushed_comes_back_when_the_kernel_tells_of_it() {
    with_each(false, async |running| {
        running.settles(&shop()).await;
        let before = running.in_force();
        running.flush();
        assert_ne!(running.in_force(), before);
        running.changes.send_replace(Changes { rules: 1, ..Changes::default() });
        running.until("the rules are back", || running.in_force() == before).await;
        running.until_told(|text| text.contains("sluice_firewall_drift_total{drift=\"missing\",kind=\"rules\"}")).await;
        assert!(running.log.lines("Drift detected").len() > 4);
    });
}

#[test]
fn what_fails_is_told_once_and_done_when_the_kernel_takes_it_and_the_other_family_goes_on_where_it_can() {
    with_each(false, async |running| {
        running.settles(&shop()).await;
        running.until_ready().await;
        let before = running.in_force();
        running.breaks(true);
        let world = Case(shop()).policy("shop/web", "app=web", [Some(&[]), Some(&[])]).0;
        running.world.send_replace(world.clone());
        let wanted = running.desired(&world);
        running.until_unready("network policies", "rules: ").await;
        match (&before, &wanted) {
            (InForce::Chains(_), wanted) => {
                let v4 = wanted.of(Family::V4);
                running.until("IPv4 is as wanted", || running.in_force().of(Family::V4) == v4).await;
                assert_ne!(running.in_force(), *wanted, "IPv6 fails");
            }
            // Both families are one transaction.
            (InForce::Table(_), _) => assert_eq!(running.in_force(), before),
        }
        running.until_told(|text| text.contains("sluice_firewall_failing{kind=\"rules\"} ")).await;
        running.until_told(|text| !text.contains("sluice_firewall_failing{kind=\"rules\"} 0")).await;
        running.beats(5).await;
        assert!(running.health.stuck(Instant::now()).is_empty(), "a failure kills nobody");
        assert_eq!(running.log.lines("Kernel update failed").len(), 1, "{}", running.log.text());
        running.breaks(false);
        running.until("both are as wanted", || running.in_force() == wanted).await;
        running.until_ready().await;
        running.until_told(|text| text.contains("sluice_firewall_failing{kind=\"rules\"} 0")).await;
        assert_eq!(running.log.lines("Kernel update recovered").len(), 1);
    });
}

#[test]
fn a_chain_that_the_kernel_refuses_is_told_once_and_the_rest_is_in_force() {
    with(Backend::Iptables, async |running| {
        let refused = policy_of_web();
        running.refuses(true);
        running.world.send_replace(shop());
        running.until_unready("network policies", &format!("refused: IPv4 filter {refused}: this kernel lacks")).await;
        running.until_told(|text| text.contains("sluice_firewall_refused_chains 2")).await;
        running.beats(5).await;
        assert_eq!(running.log.lines("Kernel rejected a chain").len(), 2, "once for each family");
        assert!(running.in_force().isolates(), "the pod stays isolated");
    });
}

#[test]
fn an_object_of_nftables_that_the_kernel_refuses_is_told_with_what_it_closes() {
    with(Backend::Nftables, async |running| {
        let machine = &running.table;
        running.world.send_replace(shop());
        running.until_ready().await;
        running.refuses(true);
        let more = [rule(&[pods("app=other")], &[])];
        running.world.send_replace(Case(shop()).policy("shop/db", "app=db", [Some(&more), None]).0);
        running.until_unready("network policies", "refused: set pods_shop_").await;
        running
            .until_unready("network policies", "this kernel lacks something; closed in its place: in_shop_db_")
            .await;
        running.until_told(|text| text.contains("sluice_firewall_refused_chains 2")).await;
        running.beats(5).await;
        let lines = running.log.lines("Kernel rejected an object of nf_tables; pods whose policies need it are closed");
        assert_eq!(lines.len(), 2, "once for each family: {}", running.log.text());
        assert_eq!(running.log.lines("Kernel rejected a chain").len(), 0);
        // A base chain has nothing in its place.
        machine.refuse(Some(std::rc::Rc::new(
            |object, _| matches!(object, Object::Chain(name) if name.as_str() == "forward_egress"),
        )));
        // Without an isolated pod it closes no bridges.
        let mut open = shop();
        open.cluster.policies = Default::default();
        running.world.send_replace(open);
        running.until_unready("network policies", "lacks something; no change of network policies is in force").await;
        machine.refuse(None);
        running.until_ready().await;
        assert!(running.log.lines("Object is no longer rejected by the kernel").len() >= 2);
    });
}

#[test]
fn a_bridge_of_pods_whose_packets_no_rule_sees_is_trouble_until_they_are_seen() {
    with_each(false, async |running| {
        running.kernel.with(|machine| machine.state.lacks_bridge_filter = true);
        running.settles(&shop()).await;
        running.until_ready().await;
        let mut world = shop();
        let mut host = (*world.host).clone();
        host.links = vec![HostLink { name: "kube-bridge".into(), mtu: 1500, bridge: true }];
        world.host = Arc::new(host);
        running.world.send_replace(world);
        running.until_unready("network policies", "settings: change net/bridge/bridge-nf-call-ip6tables").await;
        running.until_told(|text| text.contains("sluice_firewall_failing{kind=\"settings\"} 1")).await;
        running.kernel.with(|machine| machine.state.lacks_bridge_filter = false);
        running.until_ready().await;
    });
}

#[test]
fn rules_of_an_earlier_run_in_another_place_go_although_a_setting_is_refused_for_ever() {
    with_each(false, async |running| {
        running.kernel.with(|machine| machine.state.lacks_bridge_filter = true);
        let mut world = shop();
        let mut host = (*world.host).clone();
        host.links = vec![HostLink { name: "kube-bridge".into(), mtu: 1500, bridge: true }];
        world.host = Arc::new(host);
        world.authority.proxy = Authority::Complete;
        running.world.send_replace(world);
        running.until_unready("network policies", "settings: change net/bridge/bridge-nf-call-ip6tables").await;
        running.beats(5).await;
        assert_eq!(running.kernel.with(|machine| machine.abandoned_removed), 1);
    });
}

/// They refuse Services with endpoints on this node, which is known of no Service yet.
#[test]
fn rules_of_the_other_backend_stay_until_services_are_known() {
    for authority in [Authority::Nothing, Authority::Remembered, Authority::Partial] {
        with_each(false, async |running| {
            let mut world = shop();
            world.authority.proxy = authority;
            running.settles(&world).await;
            running.until_ready().await;
            running.beats(3).await;
            assert_eq!(running.kernel.with(|machine| machine.abandoned_removed), 0, "{authority:?}");
            world.authority.proxy = Authority::Complete;
            running.world.send_replace(world);
            running.until("they are removed", || running.kernel.with(|machine| machine.abandoned_removed) == 1).await;
        });
    }
}

#[test]
fn pods_are_isolated_where_nobody_wants_ipv6_and_its_rules_cannot_be_written() {
    for backend in BACKENDS {
        let running = Running::new(FirewallConfig { backend, ..config(false) }, PerFamily { v4: true, v6: false });
        // Before it asks the kernel what it can do.
        running.breaks_v6();
        run_to_its_end(running, async |running| {
            let world = Case(shop()).policy("shop/web", "app=web", [Some(&[]), Some(&[])]).0;
            running.world.send_replace(world);
            running.until_ready().await;
            let in_force = running.in_force();
            assert!(in_force.isolates(), "pods are isolated");
            assert_eq!(in_force.of(Family::V4), in_force, "nothing of IPv6 is there");
        });
    }
}

#[test]
fn a_pod_that_starts_is_let_go_when_the_kernel_judges_it_and_not_before() {
    with_each(false, async |running| {
        running.settles(&shop()).await;
        let late = |world: World| Case(world).pod("shop/late", HERE, ["10.244.0.9 fd00:10:244::9", "app=late", ""]).0;
        let denied = |world: World| Case(world).policy("shop/late", "app=late", [Some(&[]), Some(&[])]).0;
        let outcome = running.announces("shop/late", &["10.244.0.9", "fd00:10:244::9"]).await;
        running.until_missing(&outcome, "does not tell yet that shop/late runs on this node").await;
        running.breaks(true);
        running.world.send_replace(denied(late(shop())));
        let lacking = match running.config.backend {
            Backend::Iptables => "does not hold fd00:10:244::9",
            Backend::Nftables => "is not as it must be",
        };
        running.until_missing(&outcome, lacking).await;
        running.breaks(false);
        running.until_let_go(&outcome).await;
        assert_eq!(running.in_force(), running.desired(&denied(late(shop()))));
        // A pod that is in force already waits for nothing, also where the kernel refuses what another one needs.
        running.refuses_late();
        let web = [rule(&[pods("app=web")], &[])];
        running.world.send_replace(Case(late(shop())).policy("shop/late", "app=late", [Some(&web), Some(&[])]).0);
        running.until_unready("network policies", "refused: ").await;
        let outcome = running.announces("shop/web", &["10.244.0.1", "fd00:10:244::1"]).await;
        running.until_let_go(&outcome).await;
    });
}

/// A table of frames that fails holds up nobody whom no policy isolates.
#[test]
fn an_isolated_pod_that_starts_waits_for_what_drops_frames_and_others_do_not() {
    with_each(false, async |running| {
        running.kernel.with(|machine| machine.frames_fail = true);
        running.settles(&shop()).await;
        let isolated = running.announces("shop/web", &["10.244.0.1", "fd00:10:244::1"]).await;
        running.until_missing(&isolated, "which drops frames, is not as it must be: change bridge rules: ").await;
        let open = running.announces("shop/db", &["10.244.0.2", "fd00:10:244::2"]).await;
        running.until_let_go(&open).await;
        running.until_missing(&isolated, "which drops frames, is not as it must be").await;
        running.kernel.with(|machine| machine.frames_fail = false);
        running.until_let_go(&isolated).await;
    });
}

#[test]
fn what_drops_frames_comes_although_the_kernel_is_newer_than_a_remembered_cluster() {
    with_each(false, async |running| {
        running.settles(&shop()).await;
        let tables = |running: &Running| running.kernel.with(|machine| machine.frames.clone());
        running.until("both tables are there", || tables(running).values().all(|table| !table.is_empty())).await;
        let before = tables(running);
        let removed = running.kernel.with(|machine| std::mem::take(&mut machine.frames));
        let acts = running.acts();
        assert_eq!(removed.len(), 2);
        let again = running.parts();
        run(&again, async |again| {
            let remembered = Authorities { firewall: Authority::Remembered, ..Authorities::default() };
            again.world.send_replace(World { authority: remembered, ..shop() });
            again.until("both are there again", || tables(again) == before).await;
            assert_eq!(again.acts(), acts, "nothing else is written");
        })
        .await;
    });
}

#[test]
fn addresses_are_closed_before_pods_and_policies_are_known() {
    with_each(true, async |running| {
        let world = World {
            authority: Authorities { firewall: Authority::Nothing, ..Authorities::default() },
            ..Case::new().0
        };
        running.world.send_replace(with_node(world));
        running.until("unknown addresses are closed", || running.in_force().closes_both()).await;
        running.beats(3).await;
        assert!(!running.health.unready(Instant::now()).is_empty(), "nothing is said of policies yet");
        // A pod that comes then is known to the set, and the range stays closed when the Node goes.
        let known = with_node(shop());
        running.settles(&known).await;
        running.until_ready().await;
        let mut gone = known.clone();
        gone.cluster.nodes.remove(&HERE.into());
        gone = Case(gone).pod("shop/late", HERE, ["10.244.0.9 fd00:10:244::9", "app=late", ""]).0;
        running.world.send_replace(gone);
        running.until("the World behind it is in force", || running.has_element("10.244.0.9")).await;
        assert!(running.in_force().closes_both(), "a Node that goes opens nothing");
    });
}

#[test]
fn what_an_earlier_run_left_is_not_closed_before_its_pods_are_known() {
    with_each(true, async |running| {
        running.settles(&with_node(shop())).await;
        let acts = running.acts();
        let again = running.parts();
        run(&again, async |again| {
            let world = World {
                authority: Authorities { firewall: Authority::Nothing, ..Authorities::default() },
                ..with_node(Case::new().0)
            };
            again.world.send_replace(world);
            again.beats(3).await;
            assert_eq!(again.acts(), acts, "nothing is written");
        })
        .await;
    });
}

#[test]
fn a_loop_that_has_nothing_left_to_do_sleeps() {
    with_each(true, async |running| {
        running.settles(&with_node(shop())).await;
        // The addresses of pods are added last, behind the change of the rules.
        let more = Case(with_node(shop())).pod("shop/late", HERE, ["10.244.0.9 fd00:10:244::9", "app=web", ""]).0;
        running.settles(&more).await;
        running.until_ready().await;
        let before = busy_ticks();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let spent = busy_ticks() - before;
        assert!(spent < 50, "{spent} hundredths of a second at rest");
    });
}

/// The processor's time that this thread has had, in hundredths of a second (proc_pid_stat(5): `utime` and `stime`).
fn busy_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("every thread has one");
    let (_, behind_name) = stat.rsplit_once(") ").expect("the name of the program");
    let ticks = behind_name.split(' ').skip(11).take(2);
    ticks.map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
}

fn shop() -> World {
    let case = Case::new()
        .namespace("shop", "")
        .pod("shop/web", HERE, ["10.244.0.1 fd00:10:244::1", "app=web", ""])
        .pod("shop/db", HERE, ["10.244.0.2 fd00:10:244::2", "app=db", ""])
        .policy("shop/web", "app=web", [Some(&[rule(&[pods("app=db")], &[])]), None]);
    World { authority: Authorities { firewall: Authority::Complete, ..Authorities::default() }, ..case.0 }
}

fn with_node(mut world: World) -> World {
    let pod_cidrs = ["10.244.0.0/24", "fd00:10:244::/64"].map(|range| range.parse().expect("a range")).into();
    world.cluster.nodes.insert(HERE.into(), Node { pod_cidrs, ..Node::default() });
    world
}

/// Runs the loop with each backend, on an empty kernel for as long as the test does.
fn with_each(default_deny: bool, test: impl AsyncFn(&Running)) {
    with_each_of(config(default_deny), test);
}

fn with_each_of(config: FirewallConfig, test: impl AsyncFn(&Running)) {
    for backend in BACKENDS {
        eprintln!("with {backend:?}");
        run_to_its_end(Running::new(FirewallConfig { backend, ..config.clone() }, BOTH), &test);
    }
}

/// Runs it with one backend, where a test is about the objects of that one.
fn with(backend: Backend, test: impl AsyncFnOnce(&Running)) {
    run_to_its_end(Running::new(FirewallConfig { backend, ..config(false) }, BOTH), test);
}

fn config(default_deny: bool) -> FirewallConfig {
    FirewallConfig {
        backend: Backend::default(),
        sync_period: Duration::from_secs(300),
        default_deny,
        flush_established: false,
        ranges: ServiceRanges::default(),
        knows_services: true,
        tunnel_mode: true,
        service_node_port_range: 30000..=32767,
    }
}

fn run_to_its_end(running: Running, test: impl AsyncFnOnce(&Running)) {
    let log = running.log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || log.clone()).finish();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    tracing::subscriber::with_default(subscriber, || runtime.block_on(LocalSet::new().run_until(run(&running, test))));
}

async fn run(running: &Running, test: impl AsyncFnOnce(&Running)) {
    let (owners, _owners_in) = watch::channel(Arc::default());
    let (asking, questions) = mpsc::channel(1);
    running.asking.replace(Some(asking));
    let (auditing, audits) = mpsc::channel(1);
    running.auditing.replace(Some(auditing));
    let (announce, starting) = mpsc::channel(16);
    *running.starting.lock().expect("nobody panicked here") = Some(announce);
    let inputs = Inputs {
        world: running.world.subscribe(),
        clock: Arc::new(EventClock::new(Instant::now())),
        disturbances: running.changes.subscribe(),
        pulse: running.health.register("network policies", Duration::from_secs(60), Instant::now()),
        account: Account::register(&running.registry, "sluice_firewall").expect("names are registered once"),
        audits,
    };
    let metrics = Metrics::register(&running.registry).expect("names are registered once");
    let flows = Arc::new(running.flows.clone());
    let note = running.health.note("firewall");
    let judging = Judging::new(running.judged.clone());
    let oversized = OversizedPolicies::new(running.oversized.clone());
    let read_policies = manifests::policies;
    let context = FirewallContext { questions, starting, metrics, flows, read_policies, note, judging, oversized };
    let (config, families, stop) = (running.config.clone(), running.families, running.stop.subscribe());
    let task = match config.backend {
        Backend::Nftables => {
            let (owners, _) = watch::channel(Arc::default());
            let backend = Nftables::new(config.clone(), families, running.table.targets(&running.kernel), owners);
            tokio::task::spawn_local(Driver::new(families, backend, context).run(inputs, stop))
        }
        Backend::Iptables => {
            let backend = Iptables::new(config.clone(), families, running.kernel.firewall_targets(), owners);
            tokio::task::spawn_local(Driver::new(families, backend, context).run(inputs, stop))
        }
    };
    test(running).await;
    running.stop.send_replace(true);
    task.await.expect("the loop ends when it is told to");
}

/// A connection to port 80, as it is tracked.
fn tcp(source: &str, destination: &str, replier: &str) -> TrackedConnection {
    let [source, destination, replier] = [source, destination, replier].map(|text| text.parse().expect("an address"));
    let transport = Transport::Ports { protocol: Protocol::Tcp, source: 40000, destination: 80, replier: 80 };
    TrackedConnection::new(Connection { source, destination, replier, transport }, [].into())
}

/// A kernel that tracks these connections.
#[derive(Clone, Default)]
struct Tracking(Arc<Mutex<Vec<TrackedConnection>>>);

impl Flows for Tracking {
    fn connections(
        &self,
        family: Family,
        marked: Option<u32>,
        wanted: ConnectionFilter<'_>,
    ) -> Result<Vec<TrackedConnection>, Error> {
        let all = self.0.lock().expect("nobody panics");
        let of_family = |one: &&TrackedConnection| Family::from(one.connection.source) == family;
        let has_mark = |one: &&TrackedConnection| marked.is_none_or(|bits| one.mark & bits == bits);
        let listed = all.iter().filter(of_family).filter(has_mark);
        Ok(listed.filter(|one| wanted(&one.connection, one.mark)).cloned().collect())
    }

    fn mark(&self, those: &[TrackedConnection], ended: bool) -> Result<usize, Error> {
        let mut all = self.0.lock().expect("nobody panics");
        for one in all.iter_mut().filter(|one| those.contains(one)) {
            one.mark = if ended { ENDED } else { 0 };
        }
        Ok(those.len())
    }

    fn open_log(&self) -> Result<Box<dyn PacketLog>, OpenError> {
        Err(OpenError::Taken(100))
    }
}

impl Tracking {
    fn going_on(&self) -> Vec<TrackedConnection> {
        let all = self.0.lock().expect("nobody panics");
        all.iter().filter(|one| one.mark == 0).cloned().collect()
    }
}

/// The chain of iptables for what the policy shop/web lets in.
fn policy_of_web() -> CompactString {
    names::policy_chain(&sluice::firewall::rules::PolicyKey {
        policy: sluice::model::ObjectName::new("shop", "web"),
        direction: sluice::firewall::rules::Direction::Ingress,
    })
}

impl Running {
    /// Has the kernel refuse a part of the rules, or take all again: the chain of shop/web with iptables, the sets of its peers with nftables.
    fn refuses(&self, refuses: bool) {
        let is_set = |object: &Object| matches!(object, Object::Set(set) if set.as_str().starts_with("pods_shop_"));
        self.table.refuse(refuses.then(|| std::rc::Rc::new(move |object: &Object, _: &_| is_set(object)) as _));
        self.kernel.with(|machine| machine.unloadable = refuses.then(policy_of_web).into_iter().collect());
    }

    fn new(config: FirewallConfig, families: PerFamily<bool>) -> Running {
        Running {
            kernel: MemoryKernel::new(State::default()),
            table: Machine::empty(1),
            world: watch::channel(World::empty()).0,
            changes: watch::channel(Changes::default()).0,
            stop: watch::channel(false).0,
            health: Health::default(),
            registry: Registry::new("test", "test"),
            log: Log::default(),
            config: Arc::new(config),
            families,
            starting: Arc::default(),
            asking: RefCell::default(),
            auditing: RefCell::default(),
            flows: Tracking::default(),
            judged: watch::channel(0).0,
            oversized: watch::channel(PolicyProblems::default()).0,
        }
    }

    fn tracks(&self, connections: impl IntoIterator<Item = TrackedConnection>) {
        self.flows.0.lock().expect("nobody panics").extend(connections);
    }

    /// The number of connections that go on.
    fn left(&self) -> usize {
        self.flows.going_on().len()
    }

    /// Asks the loop about a manifest file.
    async fn compared(&self, file: &str) -> Answer {
        let (answer, answered) = oneshot::channel();
        let about = BTreeMap::from([("file".to_owned(), file.to_owned())]);
        let question = Question { path: DIFF, about, form: AnswerFormat::Text, answer };
        let asking = self.asking.borrow().clone().expect("the loop runs");
        asking.send(question).await.expect("the loop runs");
        answered.await.expect("the loop answers")
    }

    /// The same kernel for another run of the program.
    fn parts(&self) -> Running {
        let (kernel, table, log) = (self.kernel.clone(), self.table.clone(), self.log.clone());
        Running { kernel, table, log, ..Running::new((*self.config).clone(), self.families) }
    }

    /// Announces a pod that starts; gives what it is told.
    async fn announces(&self, pod: &str, addresses: &[&str]) -> watch::Receiver<Result<(), String>> {
        let (outcome, told) = watch::channel(Err("nothing was said".to_owned()));
        let (namespace, name) = pod.split_once('/').expect("a namespace and a name");
        let addresses = addresses.iter().map(|text| text.parse().expect("an address")).collect();
        let name = sluice::model::ObjectName::new(namespace, name);
        let announce = self.starting.lock().expect("nobody panicked here").clone().expect("it runs");
        announce.send(StartingPod { name, uid: None, addresses, runs: false, outcome }).await.expect("it runs");
        told
    }

    async fn until_missing(&self, told: &watch::Receiver<Result<(), String>>, words: &str) {
        let misses = || told.borrow().as_ref().is_err_and(|why| why.contains(words));
        self.until(&format!("{words:?} is missing: {:?}", told.borrow()), misses).await;
    }

    async fn until_let_go(&self, told: &watch::Receiver<Result<(), String>>) {
        self.until("it may start", || told.borrow().is_ok()).await;
    }

    async fn settles(&self, world: &World) {
        self.world.send_replace(world.clone());
        let wanted = self.desired(world);
        self.until("the kernel holds the newest World", || self.in_force() == wanted).await;
    }

    async fn until_ready(&self) {
        self.until("it is ready", || self.health.unready(Instant::now()).is_empty()).await;
    }

    async fn until_unready(&self, component: &str, words: &str) {
        let tells = || {
            let reasons = self.health.unready(Instant::now());
            reasons.iter().any(|reason| reason.component == component && reason.text.contains(words))
        };
        self.until(&format!("{component} says {words:?}: {:?}", self.health.unready(Instant::now())), tells).await;
    }

    /// Waits for words in the metrics.
    async fn until_told(&self, holds: impl Fn(&str) -> bool) {
        self.until("the metrics say so", || holds(&self.registry.text())).await;
    }

    /// Lets the loop turn, told that others changed rules each time.
    async fn beats(&self, times: u64) {
        for _ in 0..times {
            self.world.send_modify(|_| {});
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
    }

    async fn until(&self, what: &str, holds: impl Fn() -> bool) {
        for _ in 0..2000 {
            if holds() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("never: {what}; {:?}\n{}", self.health.unready(Instant::now()), self.log.text());
    }
}

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("nobody panicked here")).into_owned()
    }

    fn lines(&self, words: &str) -> Vec<String> {
        self.text().lines().filter(|line| line.contains(words)).map(str::to_owned).collect()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("nobody panicked here").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
