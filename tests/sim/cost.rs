//! Costs of a change by the number of Services that it does not concern.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use sluice::config::ProxyConfig;
use sluice::model::{
    Authority, Endpoints, ObjectName, ProxyAnnotations, Service, ServicePort, ServiceType, TrafficPolicy,
};
use sluice::net::Protocol;
use sluice::proxy::health_check::pending::Pending;
use sluice::reconcile::Moment;

use crate::agent::{Agent, known};
use crate::support::endpoints::{in_one_slice, ready};
use crate::support::memory::{MemoryKernel, State};
use crate::support::{flags, generate};

/// Returns the shortest time of the processor that a round took in which one of so many Services goes. With `tunnel_mode` some other Services have
/// direct server return.
pub fn of_a_service_that_goes(count: u32, tunnel_mode: bool) -> Duration {
    let (config, families) = flags::proxy(&["--strict-external-ip-validation=false", "--netfilter=iptables"]);
    let config = Arc::new(ProxyConfig { tunnel_mode, ..(*config).clone() });
    let kernel = MemoryKernel::new(State::of_others());
    let mut agent = Agent::start(&kernel, &config, families);
    let mut world = known(Authority::Complete, &generate::empty_world());
    for number in 0..count {
        let name = name(number);
        world.cluster.services.insert(name.clone(), service(number, tunnel_mode && number < 10));
        world.cluster.endpoints.insert(name, endpoints(number));
    }
    let at = Moment { now: Instant::now(), jitter: 0 };
    agent.take_world(&world, at.now);
    // A kernel in memory counts the elements of a set for each that comes.
    kernel.with(|machine| {
        machine.state.sets = agent.desired().sets.clone();
        machine.state.elements = agent.desired().elements.iter().map(|(key, ())| (key.clone(), ())).collect();
    });
    agent = Agent::start(&kernel, &config, families);
    agent.take_world(&world, at.now);
    let settle = |agent: &mut Agent| {
        let begin = clock_gettime(ClockId::ThreadCPUTime);
        agent.round(at);
        let end = clock_gettime(ClockId::ThreadCPUTime);
        assert!(agent.mirrors.is_settled());
        Duration::try_from(end - begin).expect("time passes")
    };
    settle(&mut agent);
    let mut times = (0..20).map(|number| {
        world.cluster.services.remove(&name(100 + number));
        world.cluster.endpoints.remove(&name(100 + number));
        agent.take_world(&world, at.now);
        let took = settle(&mut agent);
        assert_eq!(agent.desired().virtuals.len(), kernel.state().virtuals.len() - State::of_others().virtuals.len());
        took
    });
    times.by_ref().min().expect("there are some")
}

/// Returns the shortest time of the processor that it took to calculate a Service of so many endpoints anew when one of them goes or comes.
pub fn of_an_endpoint_among(count: u32) -> Duration {
    let (config, families) = flags::proxy(&["--netfilter=nftables"]);
    let kernel = MemoryKernel::new(State::of_others());
    let mut agent = Agent::start(&kernel, &config, families);
    let mut world = known(Authority::Complete, &generate::empty_world());
    world.cluster.services.insert(name(0), service(0, false));
    let times = (0..12).map(|turn| {
        let all = (0..count - turn % 2).map(|number| {
            let [_, high, middle, low] = number.to_be_bytes();
            ready([10, 128 + high, middle, low], Some("node1"))
        });
        world.cluster.endpoints.insert(name(0), in_one_slice(80, all));
        let begin = clock_gettime(ClockId::ThreadCPUTime);
        agent.take_world(&world, Instant::now());
        let end = clock_gettime(ClockId::ThreadCPUTime);
        Duration::try_from(end - begin).expect("time passes")
    });
    times.skip(2).min().expect("there are some")
}

/// Returns the shortest time of the processor that a look at the health check of one Service took while so many others wait for their turn in a large
/// change.
pub fn of_a_look_at_health_checks(waiting: u32) -> Duration {
    let (config, families) = flags::proxy(&["--netfilter=nftables"]);
    let kernel = MemoryKernel::new(State::of_others());
    let mut agent = Agent::start(&kernel, &config, families);
    agent.portion = Some(1);
    let at = Moment { now: Instant::now(), jitter: 0 };
    let mut world = known(Authority::Complete, &generate::empty_world());
    let balanced = Service {
        kind: ServiceType::LoadBalancer,
        external_traffic_policy: TrafficPolicy::Local,
        health_check_node_port: Some(30_777),
        ports: vec![ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: Some(30_080) }].into(),
        ..service(0, false)
    };
    for turn in 0..2 {
        for number in 0..=waiting {
            let its = if number == 0 { balanced.clone() } else { service(number, false) };
            world.cluster.services.insert(name(number), its);
            world.cluster.endpoints.insert(name(number), endpoints(number + turn * (1 + waiting)));
        }
        agent.take_world(&world, at.now);
        agent.round(at);
        // Rounds are bounded once all was done.
        agent.round(at);
    }
    assert!(agent.mirrors.goes_on(), "they wait");
    let mut pending = Pending::default();
    pending.follow(&agent.plan, &mut agent.mirrors, at.now);
    let looks = (0..20).map(|_| {
        let begin = clock_gettime(ClockId::ThreadCPUTime);
        pending.follow(&agent.plan, &mut agent.mirrors, at.now);
        let end = clock_gettime(ClockId::ThreadCPUTime);
        Duration::try_from(end - begin).expect("time passes")
    });
    looks.min().expect("there are some")
}

fn name(number: u32) -> ObjectName {
    ObjectName::new("shop", &format!("s{number}"))
}

fn service(number: u32, dsr: bool) -> Service {
    let [.., high, low] = number.to_be_bytes();
    Service {
        kind: ServiceType::ClusterIp,
        cluster_ips: vec![[10, 96, high, low].into()],
        external_ips: if dsr { vec![[203, 0, 113, low].into()] } else { Vec::new() },
        load_balancer: Vec::new(),
        source_ranges: None,
        ports: vec![ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None }].into(),
        affinity_seconds: None,
        internal_traffic_policy: Default::default(),
        external_traffic_policy: Default::default(),
        health_check_node_port: None,
        annotations: ProxyAnnotations { dsr, ..ProxyAnnotations::default() },
        announce: Default::default(),
        created: 0,
    }
}

fn endpoints(number: u32) -> Endpoints {
    let [.., high, low] = number.to_be_bytes();
    in_one_slice(80, [ready([10, 244, high, low], Some("node1"))])
}
