//! Destinations of many Services change at once, and one of another Service meanwhile.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use sluice::kernel::ipvs::{ServiceKey, Virtual};
use sluice::model::{
    Authority, Conditions, Endpoint, EndpointPort, EndpointSlice, Endpoints, ObjectName, Service, ServicePort, World,
};
use sluice::net::{Family, Protocol};
use sluice::reconcile::Moment;

use crate::BACKENDS;
use crate::agent::{Agent, known};
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
    let endpoint = |host| Endpoint {
        address: [10, 244, number, turn * ENDPOINTS + host].into(),
        node: Some("node1".into()),
        conditions: Conditions::READY,
        hints: None,
    };
    let slice = EndpointSlice {
        family: Family::V4,
        ports: vec![EndpointPort { name: "".into(), protocol: Protocol::Tcp, port: 80 }].into(),
        endpoints: (1..=ENDPOINTS).map(endpoint).collect(),
    };
    world.cluster.endpoints.insert(name(number), Endpoints { slices: [("one".into(), Arc::new(slice))].into() });
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
