//! The loops of the service proxy and the router, from a World to a kernel in memory, with the real channels between.

#[path = "driver/asked.rs"]
mod asked;

#[path = "driver/first_change.rs"]
mod first_change;

#[path = "driver/health.rs"]
mod health;

#[path = "driver/large_change.rs"]
mod large_change;

#[path = "driver/memory.rs"]
mod memory;

#[path = "driver/problems.rs"]
mod problems;

#[path = "driver/refused.rs"]
mod refused;

#[path = "driver/router.rs"]
mod router;

#[path = "driver/tunnels.rs"]
mod tunnels;

#[path = "support/mod.rs"]
mod support;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice::config::ProxyConfig;
use sluice::kernel::ipset::{ElementKey, Entry};
use sluice::kernel::ipvs::{Destination, Forwarding, Service as VirtualService, ServiceKey, Virtual};
use sluice::kernel::monitor::Changes;
use sluice::kernel::sysctl::Setting;
use sluice::model::{
    Authority, Conditions, Endpoint, EndpointPort, EndpointSlice, Endpoints, EventClock, HostLink, ObjectName, Service,
    ServicePort, ServiceProblems, ServiceType, Table, TrafficPolicy, World,
};
use sluice::net::{Family, PerFamily, Protocol};
use sluice::observe::health::Health;
use sluice::observe::local::Question;
use sluice::observe::metrics::Registry;
use sluice::proxy::driver::{Driver, ProxyContext};
use sluice::proxy::dsr::TunnelEnds;
use sluice::proxy::external_ip::NAMED;
use sluice::proxy::health_check::HealthChecks;
use sluice::proxy::metrics::Metrics;
use sluice::proxy::owners::Owned;
use sluice::proxy::plan::{Plan, local_route_key, services_on};
use sluice::proxy::source_ranges::serve::{Counters, OutsideSources};
use sluice::proxy::unjudged::driver::FirewallWaits;
use sluice::reconcile::Account;
use sluice::subsystem::Inputs;
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;

use support::endpoints::{in_one_slice, ready};
use support::logged::logged;
use support::memory::{MemoryKernel, State};
use support::random::Random;
use support::{flags, generate};

const KERNEL: (u32, u32) = (6, 1);
const FLAGS: [&str; 2] = ["--enable-ipv6", "--service-cluster-ip-range=10.96.0.0/12,fd00:10:96::/112"];

/// A running loop: what it is fed with, and the kernel that it works on.
struct Running {
    kernel: MemoryKernel,
    world: watch::Sender<World>,
    clock: Arc<EventClock>,
    changes: watch::Sender<Changes>,
    believed: watch::Sender<Table<IpAddr, ()>>,
    tunnel_ends: watch::Sender<Arc<TunnelEnds>>,
    owners: watch::Receiver<Owned>,
    health_checks: watch::Receiver<HealthChecks>,
    problems: watch::Receiver<ServiceProblems>,
    ask: mpsc::Sender<Question>,
    ask_audit: mpsc::Sender<Question>,
    health: Health,
    registry: Registry,
    stop: watch::Sender<bool>,
}

#[test]
fn every_world_reaches_the_kernel_and_not_only_the_first() {
    with_running(async |running| {
        let mut random = Random::new(7);
        let mut world = generate::empty_world();
        for _ in 0..30 {
            generate::change(&mut world, &mut random);
            running.world.send_replace(world.clone());
            running.settles(&world).await;
        }
    });
}

#[test]
fn what_somebody_takes_away_comes_back_when_the_kernel_tells_of_it() {
    with_running(async |running| {
        let world = generate::world(&mut Random::new(11), 60);
        running.world.send_replace(world.clone());
        running.settles(&world).await;
        let before = running.kernel.state();
        running.kernel.with(|machine| {
            machine.state.links.clear();
            machine.state.addresses.clear();
            machine.state.routes.clear();
        });
        running.changes.send_replace(Changes { ours: 1, local_routes: 1, ..Changes::default() });
        running.until("the device and its routes are back", |state| state.routes == before.routes).await;
    });
}

#[test]
fn settings_of_a_link_that_comes_later_are_made_when_it_comes() {
    with_running(async |running| {
        let mut world = served();
        running.world.send_replace(world.clone());
        running.settles(&world).await;
        let filter = Setting("net/ipv4/conf/kube-bridge/rp_filter".into());
        running.kernel.with(|machine| machine.state.settings.insert(filter.clone(), "1".into()));
        let mut host = (*world.host).clone();
        host.links.push(HostLink { name: "kube-bridge".into(), mtu: 1500, bridge: true });
        world.host = Arc::new(host);
        running.world.send_replace(world);
        running.until("it is loose", |state| state.settings.get(&filter).is_some_and(|value| value == "2")).await;
    });
}

#[test]
fn what_somebody_does_to_services_and_elements_is_undone_within_seconds_although_nobody_tells_of_it() {
    with_running(async |running| {
        let world = served();
        running.world.send_replace(world.clone());
        running.settles(&world).await;
        let before = running.kernel.state();
        running.kernel.with(|machine| {
            let (_, first) = machine.state.virtuals.iter_mut().next().expect("there are two");
            first.destinations = first.destinations.iter().map(|it| Destination { weight: 7, ..it }).collect();
            machine.state.virtuals.pop_last();
            let (gone, ()) = machine.state.elements.pop_last().expect("there are some");
            let exchanged = ElementKey { entry: Entry::IpPort([10, 96, 0, 77].into(), Protocol::Tcp, 80), ..gone };
            machine.state.elements.insert(exchanged, ());
        });
        let begun = Instant::now();
        let is_whole = |state: &State| state.virtuals == before.virtuals && state.elements == before.elements;
        while !is_whole(&running.kernel.state()) && begun.elapsed() < Duration::from_secs(60) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(is_whole(&running.kernel.state()), "only the audit, after minutes, would see it");
    });
}

#[test]
fn where_the_kernel_counts_commands_services_are_compared_when_somebody_gave_one_and_not_before() {
    with_running(async |running| {
        running.kernel.with(|machine| machine.others_commands = Some(false));
        let world = served();
        running.world.send_replace(world.clone());
        running.settles(&world).await;
        // The first reading of the count.
        tokio::time::sleep(Duration::from_secs(6)).await;
        let before = running.kernel.state();
        running.kernel.with(|machine| {
            let (_, first) = machine.state.virtuals.iter_mut().next().expect("there are two");
            first.destinations = first.destinations.iter().map(|it| Destination { weight: 7, ..it }).collect();
            machine.state.virtuals.pop_last();
        });
        let damaged = running.kernel.state();
        tokio::time::sleep(Duration::from_secs(15)).await;
        assert!(running.kernel.state().virtuals == damaged.virtuals, "no command, no look");
        running.kernel.with(|machine| machine.others_commands = Some(true));
        let begun = Instant::now();
        while running.kernel.state().virtuals != before.virtuals && begun.elapsed() < Duration::from_secs(15) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(running.kernel.state().virtuals == before.virtuals, "both are repaired, by one pass");
    });
}

#[test]
fn refused_addresses_are_counted_and_of_thousands_only_a_few_are_named() {
    let (config, families) = flags::proxy(&FLAGS);
    let mut plan = Plan::new(config, families, KERNEL);
    let world = served();
    let (first, service) = world.cluster.services.iter().next().expect("there are two");
    let (none, first) = (Vec::new(), first.clone());
    let service = Service { external_ips: none, load_balancer: Vec::new(), ..(**service).clone() };
    let mut world = generate::empty_world();
    for number in 0..3000_u32 {
        let external_ips = vec![IpAddr::from((0xcb00_7100 + number).to_be_bytes())];
        let service = Service { external_ips, cluster_ips: Vec::new(), ..service.clone() };
        world.cluster.services.insert(ObjectName::new("shop", &number.to_string()), service);
    }
    let news = |plan: &mut Plan, world: &World| {
        let refused = plan.update(world, Instant::now()).refused;
        (refused.named.len(), refused.others)
    };
    assert_eq!(news(&mut plan, &world), (NAMED, 3000 - NAMED));
    assert_eq!(plan.refused(), 3000);
    let external_ips = vec!["203.0.113.1".parse().expect("an address"), "203.0.113.2".parse().expect("an address")];
    world.cluster.services.insert(first.clone(), Service { external_ips, ..service.clone() });
    assert_eq!(news(&mut plan, &world), (2, 0), "one by one they are all named");
    assert_eq!(plan.refused(), 3002);
    world.cluster.services.insert(first.clone(), Service { created: service.created + 1, ..service });
    assert_eq!(news(&mut plan, &world), (0, 0));
    world.cluster.services.remove(&ObjectName::new("shop", "7"));
    assert_eq!(news(&mut plan, &world), (0, 0));
    assert_eq!(plan.refused(), 2999);
}

#[test]
fn an_endpoint_that_comes_back_while_it_drains_stays_when_its_time_would_be_over() {
    let (config, families) = flags::proxy(&["--ipvs-graceful-termination=true", "--ipvs-graceful-period=30s"]);
    let mut plan = Plan::new(config, families, KERNEL);
    let (mut world, begun) = (served(), Instant::now());
    let (name, service) = world.cluster.services.iter().next().expect("there are two");
    let (name, service) = (name.clone(), Service { annotations: Default::default(), ..(**service).clone() });
    world.cluster.services.insert(name.clone(), service);
    plan.update(&world, begun);
    let before = plan.desired().virtuals.clone();
    let endpoints = world.cluster.endpoints.remove(&name).expect("it has one");
    plan.update(&world, begun + Duration::from_secs(1));
    assert!(plan.draining() > 0 && plan.desired().virtuals != before);
    world.cluster.endpoints.insert_shared(name, endpoints);
    plan.update(&world, begun + Duration::from_secs(2));
    assert_eq!((plan.draining(), plan.desired().virtuals == before), (0, true));
    plan.expire(begun + Duration::from_secs(60));
    assert!(plan.desired().virtuals == before, "nobody's time is over");
}

#[test]
fn an_external_address_that_is_not_served_is_logged_once_with_the_reason() {
    let (log, _guard) = logged();
    with_running(async |running| {
        let mut world = served();
        let (name, service) =
            world.cluster.services.iter().next().map(|(n, s)| (n.clone(), s.clone())).expect("there are two");
        let external_ips = vec!["127.0.0.9".parse().expect("an address")];
        world.cluster.services.insert(name.clone(), Service { external_ips, ..(*service).clone() });
        running.world.send_replace(world.clone());
        running.settles(&world).await;
        let more = Service {
            created: service.created + 1,
            ..(**world.cluster.services.get(&name).expect("it is there")).clone()
        };
        world.cluster.services.insert(name.clone(), more);
        running.world.send_replace(world.clone());
        running.settles(&world).await;
        let said = log.text();
        let about = |line: &&str| line.contains("External address is not served") && line.contains("127.0.0.9");
        let lines: Vec<&str> = said.lines().filter(about).collect();
        let [line] = lines[..] else { panic!("{said}") };
        assert!(
            line.contains("address=127.0.0.9") && line.contains(&name.to_string()) && line.contains("reason="),
            "{line}"
        );
    });
}

#[test]
fn an_address_is_closed_when_routers_have_been_told_and_not_before() {
    with_running(async |running| {
        let world = served();
        running.world.send_replace(world.clone());
        running.settles(&world).await;
        running.believe(true);
        running.world.send_replace(generate::empty_world());
        // Steps that do not depend on the withdrawal are performed at once.
        running.until("the other Service is gone", |state| !state.holds(OTHER)).await;
        assert!(running.kernel.state().holds(ADDRESS), "it is served until routers know");
        running.believe(false);
        running.until("the address is closed", |state| !state.holds(ADDRESS)).await;
        running.settles(&generate::empty_world()).await;
    });
}

#[test]
fn an_address_is_closed_in_the_end_when_nobody_ever_says_that_routers_know() {
    with_running(async |running| {
        let world = served();
        running.world.send_replace(world.clone());
        running.settles(&world).await;
        running.believe(true);
        running.world.send_replace(generate::empty_world());
        running.settles(&generate::empty_world()).await;
    });
}

#[test]
fn flows_that_cannot_be_forgotten_do_not_keep_what_an_earlier_run_left_elsewhere() {
    with_running(async |running| {
        let mut world = served();
        let (name, service) = world.cluster.services.iter().next().expect("there are two");
        let (name, mut service) = (name.clone(), (**service).clone());
        service.ports = [ServicePort { protocol: Protocol::Udp, port: 53, name: "".into(), node_port: None }].into();
        world.cluster.services.insert(name, service);
        let address = ADDRESS.parse().expect("an address");
        let key = ServiceKey::Address { address, protocol: Protocol::Udp, port: 53 };
        let gone = "10.244.1.9:53".parse().expect("a socket address");
        let destination = Destination { address: gone, weight: 1, forwarding: Forwarding::Nat };
        let service = VirtualService { scheduler: "rr".into(), flags: 0, persistence_seconds: 0 };
        let left = Virtual { service, destinations: [destination].into() };
        running.kernel.with(|machine| {
            machine.conntrack_fails = true;
            machine.state.addresses = State::of_others().addresses;
            machine.state.virtuals.insert(key, left);
        });
        running.world.send_replace(world.clone());
        running.settles(&world).await;
        let removed = || running.kernel.with(|machine| machine.abandoned_removed);
        running.until("tables that the host no longer uses are cleared", |_| removed() == 1).await;
    });
}

#[test]
fn a_service_that_takes_over_an_address_as_it_is_has_its_counters() {
    with_running(async |running| {
        let mut world = served();
        running.world.send_replace(world.clone());
        running.settles(&world).await;
        let (name, service) = world.cluster.services.iter().next().expect("there are two");
        let (name, service) = (name.clone(), service.clone());
        let endpoints = world.cluster.endpoints.get(&name).expect("it has one").clone();
        let heir = ObjectName::new(&name.namespace, "heir");
        world.cluster.services.remove(&name);
        world.cluster.endpoints.remove(&name);
        world.cluster.services.insert_shared(heir.clone(), service);
        world.cluster.endpoints.insert_shared(heir.clone(), endpoints);
        running.world.send_replace(world.clone());
        let has_any =
            |service: &ObjectName| running.owners.borrow().owners.iter().any(|(_, owner)| owner.name == *service);
        running.until("its counters bear its name", |_| has_any(&heir) && !has_any(&name)).await;
    });
}

#[test]
fn health_checks_follow_the_cluster_also_one_that_is_only_remembered() {
    with_running(async |running| {
        let mut world = served();
        world.authority.proxy = Authority::Remembered;
        let name = world.cluster.services.iter().next().expect("there are two").0.clone();
        let here = world.host.node_name.clone();
        let mut endpoints = (**world.cluster.endpoints.get(&name).expect("it has one")).clone();
        let mut slice = (**endpoints.slices.values().next().expect("one slice")).clone();
        let on_node = |endpoint| Endpoint { node: Some(here.as_str().into()), ..endpoint };
        slice.endpoints = slice.endpoints.iter().map(on_node).collect();
        endpoints.slices.insert("one".into(), Arc::new(slice));
        world.cluster.endpoints.insert(name.clone(), endpoints);
        let mut put = async |policy, port, expected: Option<(u16, usize)>| {
            let service = (**world.cluster.services.get(&name).expect("it is there")).clone();
            let kind = ServiceType::LoadBalancer;
            let service =
                Service { kind, external_traffic_policy: policy, health_check_node_port: Some(port), ..service };
            world.cluster.services.insert(name.clone(), service);
            running.world.send_replace(world.clone());
            let told = || {
                let checks = running.health_checks.borrow();
                checks.checks.iter().map(|(port, check)| (*port, check.local_endpoints)).collect::<Vec<_>>()
            };
            let expected: Vec<(u16, usize)> = expected.into_iter().collect();
            running.until(&format!("health checks are {expected:?}"), |_| told() == expected).await;
        };
        put(TrafficPolicy::Local, 30_777, Some((30_777, 1))).await;
        put(TrafficPolicy::Local, 30_778, Some((30_778, 1))).await;
        put(TrafficPolicy::Cluster, 30_778, None).await;
        put(TrafficPolicy::Local, 30_777, Some((30_777, 1))).await;
        assert!(!running.health_checks.borrow().addresses.is_empty(), "there is somewhere to listen");
    });
}

const ADDRESS: &str = "10.96.0.1";
const OTHER: &str = "10.96.0.2";

/// Two Services with an endpoint each.
fn served() -> World {
    let mut world = generate::empty_world();
    for (name, address) in [("one", ADDRESS), ("other", OTHER)] {
        let service = service_at(address.parse().expect("an address"));
        put(&mut world, ObjectName::new("default", name), service, [10, 244, 1, 5]);
    }
    world
}

/// A Service with one port at this cluster IP.
fn service_at(address: IpAddr) -> Service {
    let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None };
    Service {
        kind: ServiceType::ClusterIp,
        ports: [port].into(),
        cluster_ips: vec![address],
        internal_traffic_policy: TrafficPolicy::Cluster,
        ..generate::service(&mut Random::new(1))
    }
}

/// Puts a Service with this endpoint into a World.
fn put(world: &mut World, name: ObjectName, service: Service, endpoint: [u8; 4]) {
    world.cluster.services.insert(name.clone(), service);
    world.cluster.endpoints.insert(name, in_one_slice(8080, [ready(endpoint, None)]));
}

/// Runs the loop on an empty kernel for as long as the test does.
fn with_running(test: impl AsyncFnOnce(&Running)) {
    with_flags(&FLAGS, test);
}

/// Like [`with_running`], with these flags. Returns the proxy as it was at the end.
fn with_flags(given: &[&str], test: impl AsyncFnOnce(&Running)) -> Driver<MemoryKernel> {
    with_config(flags::proxy(given), None, test)
}

/// The same, with the number of the World that the firewall of this process has judged.
fn with_config(
    (config, families): (Arc<ProxyConfig>, PerFamily<bool>),
    judged: Option<watch::Receiver<u64>>,
    test: impl AsyncFnOnce(&Running),
) -> Driver<MemoryKernel> {
    let kernel = MemoryKernel::new(State::default());
    let (world, world_in) = watch::channel(World::empty());
    let (changes, disturbances) = watch::channel(Changes::default());
    let (stop, stopped) = watch::channel(false);
    let (believed, believed_in) = watch::channel(Table::default());
    let (tunnel_ends, tunnel_ends_in) = watch::channel(Arc::default());
    let (owners, owners_in) = watch::channel(Owned::default());
    let (health_checks, health_checks_in) = watch::channel(HealthChecks::default());
    let (problems, problems_in) = watch::channel(ServiceProblems::default());
    let (ask, questions) = mpsc::channel(1);
    let (ask_audit, audits) = mpsc::channel(1);
    let (registry, health) = (Registry::new("test", "test"), Health::default());
    let clock = Arc::new(EventClock::new(Instant::now()));
    let inputs = Inputs {
        world: world_in,
        clock: clock.clone(),
        disturbances,
        pulse: health.register("service proxy", Duration::from_secs(60), Instant::now()),
        account: Account::register(&registry, "sluice_proxy").expect("names are registered once"),
        audits,
    };
    let (ranged, families_ranged) = watch::channel(PerFamily::default());
    let counted = |_| Counters { packets: PerFamily { v4: Some(12), v6: Some(7) }, error: None };
    let outside = OutsideSources::new(families_ranged, Box::new(counted)).expect("a name");
    registry.register(Box::new(outside.clone())).expect("names are registered once");
    let context = ProxyContext {
        believed: believed_in,
        served: watch::channel(false).0,
        owners,
        health_checks,
        problems,
        problems_of_others: Vec::new(),
        metrics: Metrics::register(&registry).expect("names are registered once"),
        questions,
        health: health.clone(),
        firewall: FirewallWaits::new(judged, health.note("tunnels")),
        tunnel_ends: tunnel_ends_in,
        ranged,
        outside,
    };
    let driver = Driver::new(config, families, KERNEL, kernel.targets(), context);
    let (owners, health_checks) = (owners_in, health_checks_in);
    let running = Running {
        kernel,
        world,
        clock,
        changes,
        believed,
        tunnel_ends,
        owners,
        health_checks,
        problems: problems_in,
        ask,
        ask_audit,
        health,
        registry,
        stop,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        let task = tokio::task::spawn_local(sluice::subsystem::run(driver, inputs, stopped));
        test(&running).await;
        running.stop.send_replace(true);
        task.await.expect("the loop ends when it is told to")
    })
}

/// Kernel objects of a service address.
trait Holds {
    fn holds(&self, address: &str) -> bool;
}

impl Holds for State {
    fn holds(&self, address: &str) -> bool {
        let address: IpAddr = address.parse().expect("an address");
        let service = services_on(address);
        self.routes.contains_key(&local_route_key(address)) || self.virtuals.range(service).next().is_some()
    }
}

impl Running {
    /// Routers believe in an address, or nobody does in any.
    fn believe(&self, one: bool) {
        let mut believed = Table::default();
        if one {
            believed.insert(ADDRESS.parse().expect("an address"), ());
        }
        self.believed.send_replace(believed);
    }

    /// Waits until the kernel has exactly the virtual services that a fresh start would make of this World.
    async fn settles(&self, world: &World) {
        let (config, families) = flags::proxy(&FLAGS);
        let mut plan = Plan::new(config, families, KERNEL);
        plan.update(world, Instant::now());
        let wanted = &plan.desired().virtuals;
        self.until("the kernel holds the newest World", |state| state.virtuals.iter().eq(wanted.iter())).await;
    }

    async fn until(&self, what: &str, holds: impl Fn(&State) -> bool) {
        for _ in 0..2000 {
            if holds(&self.kernel.state()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("never: {what}");
    }
}
