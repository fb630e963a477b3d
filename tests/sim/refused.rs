//! A kernel that refuses a part of a Service because of what is in it: everything else goes on, of other Services and of the same.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice::config::ProxyConfig;
use sluice::kernel::conntrack::Flows;
use sluice::kernel::ipvs::{ServiceKey, Virtual};
use sluice::model::{
    Authority, EndpointPort, EndpointSlice, Endpoints, ObjectName, Scheduler, Service, ServicePort, World,
};
use sluice::net::{Family, PerFamily, Protocol};
use sluice::proxy::marks::services;
use sluice::proxy::names::Set;
use sluice::proxy::plan::services_on;
use sluice::reconcile::Moment;
use sluice::subsystem::Kinds;

use crate::agent::{Agent, known};
use crate::support::endpoints::{in_one_slice, ready};
use crate::support::memory::{Machine, MemoryKernel, State};
use crate::support::{flags, generate};

const ADDRESS: [u8; 4] = [10, 96, 0, 53];

fn endpoint(last: u8) -> SocketAddr {
    ([10, 244, 1, last], 53).into()
}

fn key() -> ServiceKey {
    ServiceKey::Address { address: ADDRESS.into(), protocol: Protocol::Udp, port: 53 }
}

/// A Service of UDP with this scheduler and these endpoints.
fn world(scheduler: Scheduler, endpoints: &[u8]) -> World {
    let mut world = known(Authority::Complete, &generate::empty_world());
    let (name, port) = (
        ObjectName::new("shop", "dns"),
        ServicePort { name: "".into(), protocol: Protocol::Udp, port: 53, node_port: None },
    );
    let mut service = Service::new(vec![ADDRESS.into()], vec![port]);
    service.annotations.scheduler = scheduler;
    world.cluster.services.insert(name.clone(), service);
    let slice = EndpointSlice {
        family: Family::V4,
        ports: [EndpointPort { name: "".into(), protocol: Protocol::Udp, port: 53 }].into(),
        endpoints: endpoints.iter().map(|last| ready([10, 244, 1, *last], None)).collect(),
    };
    world.cluster.endpoints.insert(name, Endpoints { slices: [("one".into(), Arc::new(slice))].into() });
    world
}

/// The address and the port at which a Service of TCP may be served through tunnels.
const EXTERNAL: ServiceKey = ServiceKey::Address {
    address: std::net::IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 53)),
    protocol: Protocol::Tcp,
    port: 80,
};

/// A Service of TCP with this scheduler and these endpoints at [`EXTERNAL`], which asks for tunnels or does not.
fn world_with_tunnels(authority: Authority, asks: bool, scheduler: Scheduler, endpoints: &[u8]) -> World {
    let mut world = known(authority, &generate::empty_world());
    let (ServiceKey::Address { address, protocol, port }, name) = (EXTERNAL, ObjectName::new("shop", "web")) else {
        panic!("it is an address")
    };
    let ports = vec![ServicePort { name: "".into(), protocol, port, node_port: None }];
    let mut service = Service { external_ips: vec![address], ..Service::new(vec![ADDRESS.into()], ports) };
    (service.annotations.scheduler, service.annotations.dsr) = (scheduler, asks);
    world.cluster.services.insert(name.clone(), service);
    let endpoints = endpoints.iter().map(|last| ready([10, 244, 1, *last], None));
    world.cluster.endpoints.insert(name, in_one_slice(port, endpoints));
    world
}

struct Scene {
    agent: Agent,
    kernel: MemoryKernel,
    config: Arc<ProxyConfig>,
    families: PerFamily<bool>,
    now: Instant,
}

impl Scene {
    fn new(broken: impl FnOnce(&mut Machine)) -> Scene {
        Scene::with(flags::proxy(&[]), broken)
    }

    fn with_tunnels(broken: impl FnOnce(&mut Machine)) -> Scene {
        let (config, families) = flags::proxy(&["--strict-external-ip-validation=false"]);
        Scene::with((Arc::new(ProxyConfig { tunnel_mode: true, ..(*config).clone() }), families), broken)
    }

    fn with((config, families): (Arc<ProxyConfig>, PerFamily<bool>), broken: impl FnOnce(&mut Machine)) -> Scene {
        let kernel = MemoryKernel::new(State::of_others());
        kernel.with(broken);
        Scene { agent: Agent::start(&kernel, &config, families), kernel, config, families, now: Instant::now() }
    }

    fn put(&mut self, scheduler: Scheduler, endpoints: &[u8]) {
        self.take(&world(scheduler, endpoints));
    }

    fn take(&mut self, world: &World) {
        self.agent.take_world(world, self.now);
        self.round();
    }

    /// Lets time pass until something is tried again.
    fn try_again(&mut self) {
        self.now = self.agent.mirrors.retry_at().expect("it is tried again");
        self.round();
    }

    fn round(&mut self) {
        self.agent.round(Moment { now: self.now, jitter: 0 });
    }

    /// The scheduler and the endpoints that the kernel has.
    fn served(&self) -> Option<(String, Vec<SocketAddr>)> {
        self.served_by(&key())
    }

    fn served_by(&self, key: &ServiceKey) -> Option<(String, Vec<SocketAddr>)> {
        let found = self.kernel.state().virtuals.get(key).cloned();
        let of = |Virtual { service, destinations }| {
            (service.scheduler.to_string(), destinations.iter().map(|it| it.address).collect())
        };
        found.map(of)
    }

    fn has(&self, scheduler: &str, endpoints: &[u8]) {
        assert_eq!(self.served(), Some((scheduler.to_owned(), endpoints.iter().map(|last| endpoint(*last)).collect())));
    }

    fn troubles(&self) -> Vec<String> {
        let kinds = self.agent.mirrors.reflections();
        kinds.iter().filter_map(|kind| kind.trouble()).map(|trouble| trouble.error.clone()).collect()
    }
}

#[test]
fn endpoints_come_and_go_beside_one_that_the_kernel_refuses_and_flows_to_those_that_went_are_forgotten() {
    let mut scene = Scene::new(|machine| machine.refused_destinations = [endpoint(255)].into());
    scene.put(Scheduler::Rr, &[5, 255]);
    scene.has("rr", &[5]);
    assert!(scene.agent.mirrors.is_settled(), "{:?}", scene.troubles());
    let flow = Flows { protocol: Protocol::Udp, original_destination: (ADDRESS, 53).into(), reply_source: endpoint(5) };
    scene.kernel.with(|machine| machine.state.flows = [flow].into());
    scene.put(Scheduler::Rr, &[6, 255]);
    scene.has("rr", &[6]);
    assert!(scene.kernel.state().flows.is_empty() && scene.agent.mirrors.is_settled());
    assert_eq!(scene.troubles(), [""; 0]);
    // It is tried again, ever later, and taken when the kernel takes it.
    let begun = scene.now;
    for _ in 0..12 {
        scene.now = scene.agent.mirrors.retry_at().expect("it is tried again");
        scene.round();
        scene.has("rr", &[6]);
        assert!(scene.troubles().is_empty() && scene.agent.mirrors.is_settled());
    }
    assert!(scene.now - begun > Duration::from_secs(60));
    scene.kernel.with(|machine| machine.refused_destinations.clear());
    scene.now = scene.agent.mirrors.retry_at().expect("it is tried again");
    scene.round();
    scene.has("rr", &[6, 255]);
    assert_eq!(scene.agent.mirrors.retry_at(), None);
}

#[test]
fn a_scheduler_that_the_kernel_has_not_leaves_a_service_with_its_former_one_and_is_used_when_it_is_there() {
    let mut scene = Scene::new(|machine| machine.lacking_schedulers = ["mh".into()].into());
    scene.put(Scheduler::Rr, &[5]);
    scene.put(Scheduler::Mh, &[6]);
    scene.has("rr", &[6]);
    assert_eq!(scene.troubles(), [""; 0]);
    // Another one is tried at once.
    scene.put(Scheduler::Wrr, &[6, 7]);
    scene.has("wrr", &[6, 7]);
    assert!(scene.agent.mirrors.is_settled() && scene.agent.mirrors.retry_at().is_none());
    scene.put(Scheduler::Mh, &[7]);
    scene.kernel.with(|machine| machine.lacking_schedulers.clear());
    scene.now = scene.agent.mirrors.retry_at().expect("it is tried again");
    scene.round();
    scene.has("mh", &[7]);
}

#[test]
fn a_new_service_whose_scheduler_the_kernel_has_not_has_the_usual_one_until_it_is_there_and_is_no_trouble() {
    let mut scene = Scene::new(|machine| machine.lacking_schedulers = ["mh".into()].into());
    // The second run finds it so.
    for _ in 0..2 {
        scene.agent = Agent::start(&scene.kernel, &scene.config, scene.families);
        scene.put(Scheduler::Mh, &[5, 6]);
        for _ in 0..4 {
            scene.has("rr", &[5, 6]);
            assert!(scene.troubles().is_empty() && scene.agent.mirrors.is_settled());
            scene.try_again();
        }
    }
    scene.kernel.with(|machine| machine.lacking_schedulers.clear());
    scene.try_again();
    scene.has("mh", &[5, 6]);
    assert!(scene.agent.mirrors.is_settled() && scene.agent.mirrors.retry_at().is_none());
}

/// The ports of [`ADDRESS`] that the guard lets in: whether each has a virtual service.
fn let_in(state: &State) -> Vec<bool> {
    let elements = state.elements.keys().filter_map(Set::of_element);
    let elements = elements.chain(state.proxy_table.keys().filter_map(Set::of_object));
    let ports = elements.flat_map(services).filter(|key| services_on(ADDRESS.into()).contains(key));
    ports.map(|key| state.virtuals.contains_key(&key)).collect()
}

#[test]
fn every_port_that_the_guard_lets_in_has_a_virtual_service_also_where_the_kernel_refuses_its_scheduler() {
    let mut scene = Scene::new(|machine| machine.lacking_schedulers = ["mh".into()].into());
    let has_ports = |scene: &mut Scene, scheduler, numbers: &[u16]| {
        let mut world = world(scheduler, &[5]);
        let name = ObjectName::new("shop", "dns");
        let port = |number: &u16| ServicePort {
            name: number.to_string().as_str().into(),
            protocol: Protocol::Tcp,
            port: *number,
            node_port: None,
        };
        let mut service = (**world.cluster.services.get(&name).expect("it is there")).clone();
        service.ports = numbers.iter().map(port).collect();
        world.cluster.services.insert(name, service);
        scene.take(&world);
    };
    has_ports(&mut scene, Scheduler::Rr, &[80]);
    assert_eq!(let_in(&scene.kernel.state()), [true]);
    // The address is local because of the first port, and a program of the host may listen at the second one.
    has_ports(&mut scene, Scheduler::Mh, &[80, 10250]);
    assert_eq!(let_in(&scene.kernel.state()), [true, true]);
    // Somebody takes all of them away.
    scene.kernel.with(|machine| machine.state.virtuals.clear());
    scene.agent.audit(Moment { now: scene.now, jitter: 0 });
    scene.round();
    assert_eq!(let_in(&scene.kernel.state()), [true, true]);
}

#[test]
fn what_cannot_be_tried_again_for_now_is_still_refused_and_tried_ever_later() {
    let mut scene = Scene::new(|machine| {
        machine.lacking_schedulers = ["mh".into()].into();
        machine.refused_destinations = [endpoint(255)].into();
    });
    let wanted = world(Scheduler::Mh, &[5, 255]);
    scene.take(&wanted);
    let refused = |scene: &Scene| {
        scene.agent.mirrors.refused_parts(scene.agent.desired()).map(|(_, it)| it.clone()).collect::<Vec<_>>()
    };
    let found = refused(&scene);
    assert_eq!((found.len(), scene.troubles()), (1, Vec::new()));
    // Virtual services cannot be read.
    let begun = scene.now;
    scene.kernel.with(|machine| {
        machine.unreadable = Some("virtual services");
        machine.lacking_schedulers.clear();
        machine.refused_destinations.clear();
    });
    scene.agent.audit(Moment { now: scene.now, jitter: 0 });
    while scene.now - begun < Duration::from_secs(60) {
        scene.try_again();
        assert_eq!(refused(&scene), found);
    }
    // What is known is a memory, so that nothing that is there is changed.
    scene.kernel.with(|machine| machine.unreadable = None);
    scene.now += Duration::from_secs(60);
    scene.take(&known(Authority::Remembered, &wanted));
    for _ in 0..3 {
        scene.try_again();
        assert_eq!((refused(&scene), scene.troubles()), (found.clone(), Vec::new()));
    }
    scene.take(&wanted);
    scene.try_again();
    scene.has("mh", &[5, 255]);
    assert_eq!(refused(&scene), []);
    assert_eq!(scene.agent.mirrors.retry_at(), None);
}

#[test]
fn a_repair_tries_at_once_what_was_refused() {
    let mut scene = Scene::new(|machine| machine.lacking_schedulers = ["mh".into()].into());
    scene.put(Scheduler::Mh, &[5]);
    (0..6).for_each(|_| scene.try_again());
    scene.kernel.with(|machine| machine.lacking_schedulers.clear());
    scene.round();
    scene.has("rr", &[5]);
    scene.agent.mirrors.retry_refused(scene.now);
    scene.round();
    scene.has("mh", &[5]);
    assert_eq!(scene.agent.mirrors.retry_at(), None);
}

#[test]
fn where_the_kernel_takes_one_scheduler_again_all_services_that_ask_for_it_get_it_within_moments() {
    let mut scene = Scene::new(|machine| machine.lacking_schedulers = ["mh".into(), "ovf".into()].into());
    let mut world = known(Authority::Complete, &generate::empty_world());
    let key = |n: u16| ServiceKey::Address {
        address: [10, 97, (n >> 8) as u8, n as u8].into(),
        protocol: Protocol::Tcp,
        port: 80,
    };
    for n in 0..600 {
        let ServiceKey::Address { address, protocol, port } = key(n) else { panic!("it is an address") };
        let ports = vec![ServicePort { name: "".into(), protocol, port, node_port: None }];
        let mut service = Service::new(vec![address], ports);
        service.annotations.scheduler = if n % 10 == 0 { Scheduler::Ovf } else { Scheduler::Mh };
        let name = ObjectName::new("shop", &format!("s{n}"));
        world.cluster.services.insert(name.clone(), service);
        world.cluster.endpoints.insert(name, in_one_slice(80, [ready([10, 244, 1, 5], None)]));
    }
    scene.take(&world);
    let with = |scene: &Scene, scheduler: &str| {
        (0..600).filter(|n| scene.served_by(&key(*n)).is_some_and(|(found, _)| found == scheduler)).count()
    };
    assert_eq!((with(&scene, "rr"), scene.troubles()), (600, Vec::new()));
    (0..6).for_each(|_| scene.try_again());
    assert_eq!(with(&scene, "rr"), 600);
    scene.kernel.with(|machine| machine.lacking_schedulers = ["ovf".into()].into());
    scene.try_again();
    let begun = scene.now;
    while with(&scene, "mh") < 540 {
        scene.try_again();
    }
    assert!(scene.now - begun < Duration::from_secs(1), "{:?}", scene.now - begun);
    assert_eq!((with(&scene, "rr"), scene.troubles()), (60, Vec::new()));
    scene.kernel.with(|machine| machine.lacking_schedulers.clear());
    while scene.agent.mirrors.retry_at().is_some() {
        scene.try_again();
    }
    assert_eq!(with(&scene, "ovf"), 60);
}

#[test]
fn a_kernel_without_the_scheduler_that_nobody_asked_for_is_trouble() {
    let mut scene = Scene::new(|machine| machine.lacking_schedulers = ["rr".into()].into());
    scene.put(Scheduler::Rr, &[5]);
    assert!(scene.served().is_none() && !scene.troubles().is_empty());
}

/// What serves [`EXTERNAL`], with NAT or through a tunnel.
fn served_at_all(scene: &Scene) -> Option<(String, Vec<SocketAddr>)> {
    let tunnel = scene.agent.desired().kernel_key(&EXTERNAL);
    [tunnel, EXTERNAL].iter().find_map(|key| scene.served_by(key))
}

#[test]
fn a_service_that_waits_for_its_tunnel_keeps_its_scheduler_where_the_kernel_has_not_the_new_one() {
    for authority in [Authority::Partial, Authority::Complete] {
        let mut scene = Scene::with_tunnels(|machine| machine.lacking_schedulers = ["mh".into()].into());
        scene.take(&world_with_tunnels(Authority::Complete, false, Scheduler::Rr, &[5]));
        scene.take(&world_with_tunnels(authority, true, Scheduler::Mh, &[5, 6]));
        let with =
            |scheduler: &str| Some((scheduler.to_owned(), [5, 6].map(|last| ([10, 244, 1, last], 80).into()).into()));
        let begun = scene.now;
        for _ in 0..12 {
            assert_eq!((served_at_all(&scene), scene.troubles()), (with("rr"), Vec::new()), "{authority:?}");
            scene.try_again();
        }
        assert!(scene.now - begun > Duration::from_secs(60), "{authority:?}: it is tried ever later");
        scene.kernel.with(|machine| machine.lacking_schedulers.clear());
        // One of its addresses is tried first, and the others at once where that is taken.
        scene.try_again();
        while scene.agent.mirrors.retry_at().is_some_and(|at| at <= scene.now) {
            scene.try_again();
        }
        assert_eq!((served_at_all(&scene), scene.troubles()), (with("mh"), Vec::new()), "{authority:?}");
    }
}
