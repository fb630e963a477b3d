//! Direct server return: Services whose marks collide, and which change between NAT and tunnels, with a program that is killed before every step.

use std::sync::Arc;

use sluice::config::ProxyConfig;
use sluice::kernel::ipvs::{Destination, Forwarding, Service as VirtualProperties, ServiceKey, Virtual};
use sluice::kernel::rule::{Packets, PolicyRule};
use sluice::model::{
    Authority, Conditions, Endpoint, EndpointPort, EndpointSlice, Endpoints, ObjectName, ProxyAnnotations, Service,
    ServicePort, ServiceType, World,
};
use sluice::net::{Family, Protocol};
use sluice::proxy::marks::marks_of;
use sluice::proxy::names::EMPTY_TABLE;
use sluice::subsystem::Kinds;

use crate::agent::{Agent, known};
use crate::support::memory::Faults;
use crate::support::{flags, packet};
use crate::walk::Walk;

/// An address of which two ports have one mark.
const ADDRESS: &str = "147.160.180.44";
/// The older Service, and the younger one, which has to give way.
const OLDER: Given = Given { name: "older", created: 1, protocol: Protocol::Tcp, port: 8080, endpoint: "10.244.0.7" };
const YOUNGER: Given = Given { name: "younger", created: 2, protocol: Protocol::Udp, port: 80, endpoint: "10.244.1.8" };

#[derive(Clone, Copy)]
struct Given {
    name: &'static str,
    created: i64,
    protocol: Protocol,
    port: u16,
    endpoint: &'static str,
}

impl Given {
    /// The virtual service of its external address with NAT.
    fn key(self) -> ServiceKey {
        let address = ADDRESS.parse().expect("an address");
        ServiceKey::Address { address, protocol: self.protocol, port: self.port }
    }
}

/// How a Service is served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Tunnel,
    Nat,
}

use Mode::{Nat, Tunnel};

/// The modes of the two, one after the other; `None` is no Service.
const STORY: [[Option<Mode>; 2]; 11] = [
    [None, None],
    [None, Some(Tunnel)],
    [Some(Tunnel), Some(Tunnel)],
    [Some(Nat), Some(Tunnel)],
    [Some(Nat), Some(Nat)],
    [Some(Tunnel), Some(Nat)],
    [Some(Tunnel), Some(Tunnel)],
    [None, Some(Tunnel)],
    [None, Some(Nat)],
    [Some(Tunnel), None],
    [None, None],
];

impl Walk {
    /// From each of these worlds to the next, with a kill before every step, and a next run that knows everything, or at first a part.
    pub fn changes_between_nat_and_tunnels(&mut self, backend: &str) {
        self.configure(backend);
        let mut kills = 0;
        for pair in STORY.windows(2) {
            let [before, after] = [pair[0], pair[1]].map(|modes| world(&self.world, modes));
            self.begin(&before);
            let held = self.kernel.state();
            for steps in 0.. {
                self.kernel.with(|machine| machine.state = held.clone());
                self.begin(&before);
                self.start_from(known(Authority::Complete, &after));
                self.kernel.with(|machine| machine.faults = Faults { alive_for: Some(steps), ..Faults::none() });
                self.round();
                let is_alive = self.kernel.with(|machine| machine.faults.alive_for != Some(0));
                self.kernel.with(|machine| machine.faults = Faults::none());
                kills += 1;
                self.agent = Agent::start(&self.kernel, &self.config, self.families);
                if steps % 2 == 1 {
                    self.start_from(known(Authority::Partial, &after));
                    self.settle();
                }
                self.start_from(known(Authority::Complete, &after));
                self.settle();
                if is_alive {
                    break;
                }
            }
        }
        assert!(kills > 50, "{kills} kills");
    }

    /// Somebody else's virtual services have marks that a port in tunnel mode may have.
    pub fn leaves_those_of_others_with_likely_marks(&mut self, backend: &str) {
        self.configure(backend);
        let [_, others @ ..] = &*marks_of(&OLDER.key()).collect::<Vec<_>>() else { panic!("it may have some") };
        assert!(!others.is_empty());
        others.iter().for_each(|key| self.somebody_makes(*key));
        let [with, without] = [Some(Tunnel), None].map(|mode| world(&self.world, [mode, None]));
        for (authority, world) in [
            (Authority::Complete, &with),
            (Authority::Remembered, &with),
            (Authority::Partial, &with),
            (Authority::Partial, &without),
            (Authority::Complete, &with),
            (Authority::Complete, &without),
        ] {
            self.agent = Agent::start(&self.kernel, &self.config, self.families);
            self.start_from(known(authority, world));
            self.settle();
            self.audit();
            self.settle();
        }
    }

    /// Somebody else's virtual service has the mark that a port in tunnel mode is to have: it stays, which is trouble, until it is gone.
    pub fn waits_for_a_mark_that_somebody_else_has(&mut self, backend: &str, authority: Authority) {
        self.configure(backend);
        let key = marks_of(&OLDER.key()).next().expect("it may have some");
        self.somebody_makes(key);
        self.start_from(known(authority, &world(&self.world, [Some(Tunnel), None])));
        for _ in 0..5 {
            self.damaged();
            self.round();
            self.clock.pass_until(self.agent.mirrors.retry_at());
        }
        assert!(self.agent.mirrors.reflections().iter().any(|kind| kind.trouble().is_some()));
        self.kernel.with(|machine| {
            machine.foreign.virtuals.remove(&key);
            machine.state.virtuals.remove(&key);
        });
        self.settle();
        assert_eq!(self.kernel.state().virtuals.get(&key), self.agent.desired().virtuals.get(&key));
    }

    /// The last known state has a Service more than the kernel, an older one that is to have the mark of the other.
    pub fn remembers_another_owner_of_a_mark(&mut self, backend: &str) {
        self.configure(backend);
        let [before, remembered] = [None, Some(Tunnel)].map(|older| world(&self.world, [older, Some(Tunnel)]));
        self.begin(&before);
        let given = packet::mark(&self.kernel.state(), YOUNGER.key());
        assert!(given.is_some());
        self.agent = Agent::start(&self.kernel, &self.config, self.families);
        self.start_from(known(Authority::Remembered, &remembered));
        self.settle();
        let [older, younger] = [OLDER, YOUNGER].map(|it| packet::mark(&self.kernel.state(), it.key()));
        assert_eq!(younger, given);
        assert_ne!(older, given, "packets go to endpoints of another Service");
    }

    /// A rule of routing that kube-router left stays while not everything is known.
    pub fn rules_of_routing_concern_nobody_without_a_tunnel(&mut self, backend: &str) {
        self.configure(backend);
        let rule = PolicyRule { family: Family::V4, place: EMPTY_TABLE, packets: Packets::All };
        self.kernel.with(|machine| machine.state.policy_rules.insert(rule, ()));
        self.start_from(known(Authority::Partial, &world(&self.world, [Some(Nat), None])));
        self.settle();
        assert!(self.kernel.state().policy_rules.contains_key(&rule));
        assert_eq!(self.agent.mirrors.unsettled_virtuals(self.agent.plan.desired()), Some(Vec::new()));
    }

    fn configure(&mut self, backend: &str) {
        let (config, families) = flags::proxy(&["--strict-external-ip-validation=false", backend]);
        self.config = Arc::new(ProxyConfig { tunnel_mode: true, ..(*config).clone() });
        self.families = families;
        self.agent = Agent::start(&self.kernel, &self.config, self.families);
    }

    fn somebody_makes(&mut self, key: ServiceKey) {
        let service = VirtualProperties { scheduler: "rr".into(), flags: 0, persistence_seconds: 0 };
        let address = "203.0.113.50:9999".parse().expect("a socket address");
        let destinations = [Destination { address, weight: 5, forwarding: Forwarding::Nat }].into();
        let made = Virtual { service, destinations };
        self.kernel.with(|machine| {
            machine.foreign.virtuals.insert(key, made.clone());
            machine.state.virtuals.insert(key, made);
        });
    }

    fn begin(&mut self, world: &World) {
        self.agent = Agent::start(&self.kernel, &self.config, self.families);
        self.start_from(known(Authority::Complete, world));
        self.settle();
    }
}

fn world(empty: &World, modes: [Option<Mode>; 2]) -> World {
    let mut world = empty.clone();
    for (given, mode) in [OLDER, YOUNGER].into_iter().zip(modes) {
        let Some(mode) = mode else { continue };
        let name = ObjectName::new("shop", given.name);
        world.cluster.services.insert(name.clone(), service(given, mode));
        world.cluster.endpoints.insert(name, endpoints(given));
    }
    world
}

fn service(given: Given, mode: Mode) -> Service {
    Service {
        kind: ServiceType::ClusterIp,
        cluster_ips: vec![if given.created == 1 { [10, 96, 0, 1] } else { [10, 96, 0, 2] }.into()],
        external_ips: vec![ADDRESS.parse().expect("an address")],
        load_balancer: Vec::new(),
        source_ranges: None,
        ports: vec![ServicePort { name: "".into(), protocol: given.protocol, port: given.port, node_port: None }]
            .into(),
        affinity_seconds: None,
        internal_traffic_policy: Default::default(),
        external_traffic_policy: Default::default(),
        health_check_node_port: None,
        annotations: ProxyAnnotations { dsr: mode == Tunnel, ..ProxyAnnotations::default() },
        announce: Default::default(),
        created: given.created,
    }
}

fn endpoints(given: Given) -> Endpoints {
    let endpoint = Endpoint {
        address: given.endpoint.parse().expect("an address"),
        node: Some("node1".into()),
        conditions: Conditions::READY,
        hints: None,
    };
    let slice = EndpointSlice {
        family: Family::V4,
        ports: vec![EndpointPort { name: "".into(), protocol: given.protocol, port: given.port }].into(),
        endpoints: [endpoint].into_iter().collect(),
    };
    Endpoints { slices: [("one".into(), Arc::new(slice))].into() }
}
