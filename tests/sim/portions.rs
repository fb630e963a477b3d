//! Destinations of many Services change at once, and one of another Service meanwhile.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Instant;

use sluice::kernel::ipset::Entry;
use sluice::kernel::ipvs::{ServiceKey, Virtual};
use sluice::model::{
    Authority, Conditions, Endpoint, LoadBalancerAddress, Node, ObjectName, Service, ServicePort, ServiceType,
    TrafficPolicy, World,
};
use sluice::net::Protocol;
use sluice::proxy::apply::ProxyRound;
use sluice::proxy::health_check::pending::Pending;
use sluice::proxy::names::Set;
use sluice::reconcile::Moment;

use crate::BACKENDS;
use crate::agent::{Agent, known};
use crate::support::endpoints::{in_one_slice, ready};
use crate::support::memory::{MemoryKernel, Object, State};
use crate::support::{flags, generate};

const SERVICES: u8 = 40;
const ENDPOINTS: u8 = 4;
/// Commands in a portion, a tenth of those that all Services take.
const PORTION: usize = (SERVICES as usize) * (ENDPOINTS as usize) * 2 / 10;
/// The Service whose single change must not wait.
const OTHER: u8 = 200;

fn name(number: u8) -> ObjectName {
    ObjectName::new("shop", &format!("s{number}"))
}

fn address(number: u8) -> IpAddr {
    [10, 96, 1, number].into()
}

/// Puts a Service into a World whose endpoints are those of this turn.
fn put(world: &mut World, number: u8, turn: u8) {
    let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None };
    world.cluster.services.insert(name(number), Service::new(vec![address(number)], vec![port]));
    let endpoints = (1..=ENDPOINTS).map(|host| ready([10, 244, number, turn * ENDPOINTS + host], Some("node1")));
    world.cluster.endpoints.insert(name(number), in_one_slice(80, endpoints));
}

/// Each Service with endpoints of this turn.
fn all_of(turn: u8) -> World {
    let mut world = known(Authority::Complete, &generate::empty_world());
    (0..SERVICES).chain([OTHER]).for_each(|number| put(&mut world, number, turn));
    world
}

/// A program that has done everything, on a kernel, and the virtual services that its acts were about.
struct Scene {
    agent: Agent,
    kernel: MemoryKernel,
    acts: Rc<RefCell<Vec<ServiceKey>>>,
    now: Instant,
}

impl Scene {
    fn new(backend: &str) -> Scene {
        let (config, families) = flags::proxy(&["--strict-external-ip-validation=false", backend]);
        let kernel = MemoryKernel::new(State::of_others());
        let mut agent = Agent::start(&kernel, &config, families);
        agent.portion = Some(PORTION);
        let acts = Rc::<RefCell<Vec<ServiceKey>>>::default();
        let noted = acts.clone();
        kernel.with(|machine| {
            machine.observer = Some(Box::new(move |_, object| {
                if let Object::Virtual(key) = object {
                    noted.borrow_mut().push(*key);
                }
            }));
        });
        let mut scene = Scene { agent, kernel, acts, now: Instant::now() };
        scene.take(&all_of(0));
        scene.round();
        scene.round();
        assert!(scene.agent.mirrors.is_settled() && !scene.agent.mirrors.goes_on());
        scene
    }

    fn take(&mut self, world: &World) {
        self.agent.take_world(world, self.now);
    }

    /// Makes a round; returns the virtual services that it was about, each as often as it changed.
    fn round(&mut self) -> Vec<ServiceKey> {
        self.acts.borrow_mut().clear();
        self.agent.round(Moment { now: self.now, jitter: 0 });
        self.acts.borrow().clone()
    }

    /// Makes a round of all that is new in a World, and as many as it takes after it.
    fn settle(&mut self, world: &World) {
        self.take(world);
        self.round();
        while self.agent.mirrors.goes_on() {
            self.round();
        }
        assert!(self.agent.mirrors.is_settled());
        assert_eq!(self.virtuals(), wanted(&self.agent));
    }

    /// Makes a round, which leaves the program's account of it.
    fn account_of_round(&mut self) -> ProxyRound {
        self.agent.round(Moment { now: self.now, jitter: 0 })
    }

    /// Makes a round; returns how many destinations came and went.
    fn exchanged(&mut self) -> usize {
        let before = destinations(&self.virtuals());
        self.round();
        before.symmetric_difference(&destinations(&self.virtuals())).count()
    }

    /// Makes rounds until one leaves nothing; returns how many.
    fn finish(&mut self) -> usize {
        let mut rounds = 0;
        while self.agent.mirrors.goes_on() {
            let acts = self.round();
            let most = PORTION / usize::from(ENDPOINTS) + 1;
            assert!(!acts.is_empty() && acts.len() <= most, "{} virtual services changed in a round", acts.len());
            rounds += 1;
        }
        assert!(self.agent.mirrors.is_settled());
        assert_eq!(self.virtuals(), wanted(&self.agent));
        rounds
    }

    fn virtuals(&self) -> BTreeMap<ServiceKey, Virtual> {
        let others = State::of_others().virtuals;
        self.kernel.state().virtuals.into_iter().filter(|(key, _)| !others.contains_key(key)).collect()
    }

    /// The numbers of destinations that the Services have which change all at once.
    fn sizes(&self) -> BTreeSet<usize> {
        let found = self.virtuals().into_iter().filter(|(key, _)| *key != key_of(OTHER));
        found.map(|(_, it)| it.destinations.len()).collect()
    }
}

fn key_of(number: u8) -> ServiceKey {
    ServiceKey::Address { address: address(number), protocol: Protocol::Tcp, port: 80 }
}

fn destinations(virtuals: &BTreeMap<ServiceKey, Virtual>) -> BTreeSet<(ServiceKey, SocketAddr)> {
    let of =
        |(key, it): (&ServiceKey, &Virtual)| it.destinations.iter().map(|it| (*key, it.address)).collect::<Vec<_>>();
    virtuals.iter().flat_map(of).collect()
}

fn wanted(agent: &Agent) -> BTreeMap<ServiceKey, Virtual> {
    agent.desired().virtuals.iter().map(|(key, it)| (*key, it.clone())).collect()
}

#[test]
fn a_small_change_is_done_between_two_portions_of_a_large_one_as_a_whole() {
    for backend in BACKENDS {
        let mut scene = Scene::new(backend);
        let mut world = all_of(1);
        put(&mut world, OTHER, 0);
        scene.take(&world);
        scene.round();
        assert!(scene.agent.mirrors.goes_on(), "it takes more than a portion");
        put(&mut world, OTHER, 1);
        scene.take(&world);
        let acts = scene.round();
        assert_eq!(acts.iter().filter(|key| **key == key_of(OTHER)).count(), 2, "it grew and shrank");
        assert_eq!(scene.virtuals().get(&key_of(OTHER)), wanted(&scene.agent).get(&key_of(OTHER)));
        assert!(acts.len() < usize::from(SERVICES) / 2, "{} of the others came before it", acts.len());
        assert!(scene.agent.mirrors.goes_on(), "the large one is not done yet");
        assert!(scene.finish() > 4);
    }
}

#[test]
fn no_destination_of_a_batch_goes_before_all_of_it_have_their_new_ones() {
    for backend in BACKENDS {
        let mut scene = Scene::new(backend);
        scene.take(&all_of(1));
        scene.round();
        let [before, both] = [usize::from(ENDPOINTS), 2 * usize::from(ENDPOINTS)];
        // What fits into the first portion is done at once.
        let done = |scene: &Scene| {
            let desired = wanted(&scene.agent);
            scene.virtuals().iter().filter(|(key, it)| desired.get(*key) == Some(*it)).count()
        };
        let at_once = done(&scene);
        assert!((1..=PORTION / both + 1).contains(&at_once), "{at_once}");
        while done(&scene) == at_once {
            assert!(scene.sizes().is_subset(&BTreeSet::from([before, both])));
            scene.round();
        }
        let desired = wanted(&scene.agent);
        let has_all = |(key, it): (&ServiceKey, &Virtual)| {
            desired
                .get(key)
                .is_some_and(|want| want.destinations.iter().all(|one| it.destinations.find(one.address).is_some()))
        };
        assert!(scene.virtuals().iter().all(has_all), "a former one went first");
        scene.finish();
    }
}

#[test]
fn large_changes_that_come_one_after_the_other_are_all_done() {
    let mut scene = Scene::new(BACKENDS[1]);
    for turn in 1..20 {
        scene.take(&all_of(turn));
        scene.round();
        let newest = wanted(&scene.agent);
        let of_former = |it: &Virtual| it.destinations.len() > 3 * usize::from(ENDPOINTS);
        assert!(!scene.virtuals().values().any(of_former), "former ones pile up");
        assert_eq!(newest.len(), scene.virtuals().len());
    }
    scene.finish();
}

#[test]
fn what_the_kernel_refuses_of_a_batch_ends_no_later_than_anything_else_that_fails() {
    let mut scene = Scene::new(BACKENDS[1]);
    let broken = key_of(SERVICES - 1);
    scene.kernel.with(|machine| machine.broken_object = Some(Object::Virtual(broken)));
    scene.take(&all_of(1));
    let mut rounds = 0;
    while rounds == 0 || scene.agent.mirrors.goes_on() {
        scene.round();
        rounds += 1;
        assert!(rounds < 100, "it goes on for ever");
    }
    assert!(!scene.agent.mirrors.is_settled());
    let others = |all: BTreeMap<ServiceKey, Virtual>| all.into_iter().filter(|(key, _)| *key != broken).collect();
    let [is, shall_be]: [BTreeMap<ServiceKey, Virtual>; 2] = [others(scene.virtuals()), others(wanted(&scene.agent))];
    assert_eq!(is, shall_be);
    scene.kernel.with(|machine| machine.broken_object = None);
    scene.now = scene.agent.mirrors.retry_at().expect("it is tried again");
    scene.round();
    assert_eq!(scene.virtuals(), wanted(&scene.agent));
}

#[test]
fn what_waits_is_done_whole_when_the_cluster_is_only_known_in_part() {
    let mut scene = Scene::new(BACKENDS[0]);
    scene.take(&all_of(1));
    scene.round();
    assert!(scene.agent.mirrors.goes_on());
    scene.take(&known(Authority::Partial, &all_of(1)));
    scene.round();
    assert!(!scene.agent.mirrors.goes_on());
    assert_eq!(scene.sizes(), BTreeSet::from([usize::from(ENDPOINTS), 2 * usize::from(ENDPOINTS)]), "nothing shrinks");
    scene.take(&all_of(1));
    scene.round();
    assert_eq!(scene.virtuals(), wanted(&scene.agent));
}

#[test]
fn what_is_marked_again_after_it_has_grown_is_done_whole_and_counts_as_such() {
    for backend in BACKENDS {
        let mut scene = Scene::new(backend);
        scene.take(&all_of(1));
        scene.round();
        let has_grown = |scene: &Scene| scene.sizes().is_subset(&BTreeSet::from([4, 8])) && scene.sizes().contains(&8);
        let all_have = |scene: &Scene| {
            let found = destinations(&scene.virtuals());
            destinations(&wanted(&scene.agent)).is_subset(&found)
        };
        while !all_have(&scene) {
            scene.round();
        }
        assert!(scene.agent.mirrors.goes_on() && has_grown(&scene), "the former ones have still to go");
        scene.take(&all_of(2));
        scene.round();
        // One Service more than a portion, with four endpoints to come and eight to go.
        let most = PORTION + 3 * usize::from(ENDPOINTS);
        while scene.agent.mirrors.goes_on() {
            let exchanged = scene.exchanged();
            assert!(exchanged < most, "{exchanged} destinations came and went in a round");
        }
        assert_eq!(scene.virtuals(), wanted(&scene.agent));
    }
}

#[test]
fn a_large_change_of_what_waits_already_waits_too() {
    let mut scene = Scene::new(BACKENDS[0]);
    for turn in 1..8 {
        scene.take(&all_of(turn));
        assert!(scene.account_of_round().puts_off, "turn {turn}");
    }
    assert!(!scene.account_of_round().puts_off, "nothing is new");
    scene.finish();
}

const NODE_PORT: u16 = 30_080;

/// Gives the Service whose turn comes last in a portion a health check, this external policy and these endpoints, on this node or on another one.
fn balance(mut world: World, policy: TrafficPolicy, endpoints: &[(&str, u8, Conditions)]) -> World {
    let pod_cidrs = vec!["10.244.0.0/16".parse().expect("a range")];
    world.cluster.nodes.insert("node1".into(), Node { pod_cidrs, ..Node::default() });
    let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: Some(NODE_PORT) };
    let service = Service {
        kind: ServiceType::LoadBalancer,
        external_traffic_policy: policy,
        health_check_node_port: (policy == TrafficPolicy::Local).then_some(30_777),
        ..Service::new(vec![address(OTHER)], vec![port])
    };
    world.cluster.services.insert(name(OTHER), service);
    let endpoints = endpoints.iter().map(|(node, host, conditions)| Endpoint {
        conditions: *conditions,
        ..ready([10, 244, OTHER, *host], Some(node))
    });
    world.cluster.endpoints.insert(name(OTHER), in_one_slice(80, endpoints));
    world
}

impl Scene {
    /// Returns whether the virtual services of the node port are as they are to be.
    fn has_balanced(&self) -> bool {
        let is_its = |key: &ServiceKey| matches!(key, ServiceKey::Address { port: NODE_PORT, .. });
        let of =
            |all: BTreeMap<ServiceKey, Virtual>| all.into_iter().filter(|(key, _)| is_its(key)).collect::<Vec<_>>();
        let found = of(self.virtuals());
        assert!(!found.is_empty());
        found == of(wanted(&self.agent))
    }

    /// Returns whether clients outside are dropped at the node port.
    fn keeps_out(&self) -> bool {
        let state = self.kernel.state();
        let elements = state.elements.keys().filter_map(Set::of_element);
        let mut places = elements.chain(state.proxy_table.keys().filter_map(Set::of_object));
        places.any(|(set, entry)| set == Set::InsideOnly && matches!(entry, Entry::IpPort(_, _, NODE_PORT)))
    }

    fn is_pending(&mut self, pending: &mut Pending) -> bool {
        pending.follow(&self.agent.plan, &mut self.agent.mirrors, self.now);
        !pending.services().is_empty()
    }
}

const LEAVING: Conditions = Conditions { ready: false, serving: true, terminating: true };

#[test]
fn a_service_that_waits_passes_a_health_check_that_begins_then_by_its_former_endpoints() {
    for backend in BACKENDS {
        let mut scene = Scene::new(backend);
        scene.settle(&balance(all_of(0), TrafficPolicy::Local, &[("node1", 1, Conditions::READY)]));
        let both = [("node1", 1, LEAVING), ("node1", 2, Conditions::READY)];
        scene.take(&balance(all_of(1), TrafficPolicy::Local, &both));
        scene.round();
        assert!(!scene.has_balanced(), "its turn is to come");
        // Each check begins as pending.
        assert!(!scene.is_pending(&mut Pending::default()), "the former endpoint takes connections");
        scene.finish();
    }
}

#[test]
fn a_service_whose_former_endpoints_serve_while_it_waits_passes_its_health_check() {
    for backend in BACKENDS {
        let (mut scene, mut pending) = (Scene::new(backend), Pending::default());
        scene.settle(&balance(all_of(0), TrafficPolicy::Local, &[("node1", 1, Conditions::READY)]));
        assert!(!scene.is_pending(&mut pending));
        let both = [("node1", 1, LEAVING), ("node1", 2, Conditions::READY)];
        scene.take(&balance(all_of(1), TrafficPolicy::Local, &both));
        scene.round();
        assert!(!scene.has_balanced(), "its turn is to come");
        while scene.agent.mirrors.goes_on() {
            assert!(!scene.is_pending(&mut pending), "the former endpoint takes connections all the time");
            scene.round();
        }
        assert!(scene.has_balanced() && !scene.is_pending(&mut pending));
        // One that has no endpoint that takes connections is pending, whatever waits.
        scene.settle(&balance(all_of(2), TrafficPolicy::Local, &[]));
        assert!(!scene.is_pending(&mut pending), "there is nothing to serve");
        scene.take(&balance(all_of(3), TrafficPolicy::Local, &[("node1", 3, Conditions::READY)]));
        let round = scene.account_of_round();
        assert!(round.puts_off && !scene.has_balanced());
        assert!(scene.is_pending(&mut pending));
        scene.finish();
        assert!(!scene.is_pending(&mut pending));
    }
}

#[test]
fn a_service_that_gets_its_first_endpoint_on_this_node_in_a_large_change_is_open_after_one_round() {
    for backend in BACKENDS {
        let (mut scene, mut pending) = (Scene::new(backend), Pending::default());
        scene.settle(&balance(all_of(0), TrafficPolicy::Local, &[("node2", 1, Conditions::READY)]));
        assert!(scene.keeps_out(), "no endpoint is on this node");
        scene.take(&balance(all_of(1), TrafficPolicy::Local, &[("node1", 2, Conditions::READY)]));
        scene.round();
        assert!(scene.agent.mirrors.goes_on(), "the others have still to be done");
        assert!(!scene.keeps_out() && scene.has_balanced() && !scene.is_pending(&mut pending));
        scene.finish();
    }
}

#[test]
fn a_service_that_waits_is_opened_at_once_when_its_endpoints_need_no_longer_be_on_this_node() {
    for backend in BACKENDS {
        let mut scene = Scene::new(backend);
        scene.settle(&balance(all_of(0), TrafficPolicy::Local, &[("node2", 1, Conditions::READY)]));
        let other = [("node2", 2, Conditions::READY)];
        scene.take(&balance(all_of(1), TrafficPolicy::Local, &other));
        scene.round();
        assert!(scene.keeps_out() && !scene.has_balanced(), "its turn is to come");
        scene.take(&balance(all_of(1), TrafficPolicy::Cluster, &other));
        scene.round();
        assert!(scene.agent.mirrors.goes_on(), "the others have still to be done");
        assert!(!scene.keeps_out() && scene.has_balanced());
        scene.finish();
    }
}

/// A Service of this age with a load balancer address that another one may have too, and one endpoint.
fn put_restricted(world: &mut World, number: u8, range: &str) {
    let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None };
    let service = Service {
        kind: ServiceType::LoadBalancer,
        load_balancer: vec![LoadBalancerAddress { address: SHARED, through_balancer: false }],
        source_ranges: Some([range.parse().expect("a range")].into()),
        created: number.into(),
        ..Service::new(vec![address(number)], vec![port])
    };
    world.cluster.services.insert(name(number), service);
    world.cluster.endpoints.insert(name(number), in_one_slice(80, [ready([10, 244, number, 1], None)]));
}

/// Its turn comes last.
const SHARED: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 50));

#[test]
fn clients_of_a_service_that_takes_over_an_address_in_a_large_change_do_not_come_to_the_former_ones_endpoints() {
    for backend in BACKENDS {
        let mut scene = Scene::new(backend);
        let shared = |turn: u8, first: bool| {
            let mut world = all_of(turn);
            if first {
                put_restricted(&mut world, 210, "10.0.0.0/8");
            }
            put_restricted(&mut world, 211, "198.51.100.0/24");
            world
        };
        let key = ServiceKey::Address { address: SHARED, protocol: Protocol::Tcp, port: 80 };
        let served_by = |scene: &Scene| scene.virtuals().get(&key).map(|it| it.destinations.to_vec());
        scene.settle(&shared(0, true));
        let former = served_by(&scene);
        assert!(former.is_some());
        scene.take(&shared(1, false));
        scene.round();
        assert!(scene.agent.mirrors.goes_on(), "the others have still to be done");
        assert!(served_by(&scene).is_some() && served_by(&scene) != former, "{backend}");
        let [its, ours] = [served_by(&scene), wanted(&scene.agent).get(&key).map(|it| it.destinations.to_vec())];
        assert_eq!(its, ours);
        scene.finish();
    }
}
