//! Flows of UDP that connection tracking remembers, and what becomes of them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use sluice::kernel::conntrack::Flows;
use sluice::kernel::ipvs::ServiceKey;
use sluice::model::{
    Authority, Conditions, Endpoint, EndpointPort, EndpointSlice, Endpoints, ObjectName, Service, ServicePort,
    ServiceType, TrafficPolicy,
};
use sluice::net::{Family, Protocol};

use crate::agent::Agent;
use crate::support::random::Random;
use crate::support::{flags, generate};
use crate::walk::Walk;

/// How long connection tracking may fail before nobody tries any more: no flow without traffic lives longer.
const LONGEST: Duration = Duration::from_secs(200);

impl Walk {
    /// Clients have sent to the addresses of a Service before it had an endpoint, some before there was such a Service.
    pub fn flows_that_began_too_early_are_forgotten(&mut self, authority: Authority) {
        self.serve_udp();
        let early: Vec<Flows> = self.agent.desired().virtuals.keys().copied().filter_map(unserved).collect();
        assert!(
            early.len() >= 8,
            "cluster, node port, external and load balancer addresses of both families: {early:?}"
        );
        self.put_endpoints(&[]);
        self.settle();
        self.kernel.with(|machine| machine.state.flows = early.iter().copied().collect());
        self.world.authority.proxy = authority;
        self.put_endpoints(&[5]);
        self.settle();
        assert!(self.kernel.state().flows.is_empty(), "a flow that nobody answers is still tracked");
        if authority != Authority::Complete {
            return;
        }

        let served: Vec<Flows> = early.iter().map(|flow| Flows { reply_source: backend(flow, 5), ..*flow }).collect();
        self.kernel.with(|machine| machine.state.flows = served.iter().copied().collect());
        self.put_endpoints(&[5, 6]);
        self.settle();
        assert_eq!(self.kernel.state().flows.len(), served.len(), "a second endpoint disturbs nobody");

        self.kernel.with(|machine| {
            for Flows { protocol, original_destination, .. } in &early {
                let (address, port) = (original_destination.ip(), original_destination.port());
                machine.state.virtuals.remove(&ServiceKey::Address { address, protocol: *protocol, port });
            }
            machine.state.flows = early.iter().copied().collect();
        });
        self.damaged();
        self.settle();
        assert!(
            self.kernel.state().flows.is_empty(),
            "a flow of the time when others had deleted its virtual services is still tracked"
        );

        let services = std::mem::take(&mut self.world.cluster.services);
        self.start_from(self.world.clone());
        self.settle();
        self.kernel.with(|machine| machine.state.flows = early.iter().copied().collect());
        self.world.cluster.services = services;
        self.start_from(self.world.clone());
        self.settle();
        assert!(self.kernel.state().flows.is_empty(), "a flow that is older than its Service is still tracked");
    }

    /// An earlier run was killed after it had given a Service its first endpoint, and before it forgot the flows.
    pub fn flows_that_an_earlier_run_did_not_forget_are_forgotten(&mut self) {
        self.serve_udp();
        let early: Vec<Flows> = self.agent.desired().virtuals.keys().copied().filter_map(unserved).collect();
        self.kernel.with(|machine| machine.state.flows = early.iter().copied().collect());
        self.agent = Agent::start(&self.kernel, &self.config, self.families);
        self.start_from(self.world.clone());
        self.settle();
        assert!(self.kernel.state().flows.is_empty(), "a flow that nobody answers is still tracked");
    }

    /// Connection tracking cannot be changed on this host, whatever is tried.
    pub fn flows_that_cannot_be_forgotten_are_given_up(&mut self) {
        self.serve_udp();
        self.put_endpoints(&[6]);
        self.kernel.with(|machine| machine.conntrack_fails = true);
        let begun = self.clock.now;
        let (mut failures, mut given_up) = (0, 0);
        for _ in 0..1000 {
            let flows = self.round().unwrap_or_default();
            failures += usize::from(flows.failure.is_some());
            given_up += flows.given_up.len();
            let Some(next) = self.agent.mirrors.retry_at() else { break };
            self.clock.pass_until(Some(next));
        }
        assert!(self.agent.mirrors.is_settled(), "it is tried for ever");
        assert!(self.clock.now - begun <= LONGEST, "{:?}", self.clock.now - begun);
        assert!((3..12).contains(&failures), "{failures} tries");
        assert!(given_up >= 8, "{given_up} kinds of flows are given up, and said to be");

        self.kernel.with(|machine| machine.conntrack_fails = false);
        self.put_endpoints(&[7]);
        self.settle();
    }

    /// A Service of UDP with cluster, external and load balancer addresses and a node port, in both families.
    fn serve_udp(&mut self) {
        (self.config, self.families) = flags::proxy(&["--strict-external-ip-validation=false", "--enable-ipv6=true"]);
        self.agent = Agent::start(&self.kernel, &self.config, self.families);
        self.world.authority.proxy = Authority::Complete;
        let addresses = |texts: [&str; 2]| texts.map(|text| text.parse().expect("an address")).to_vec();
        let balancer = addresses(["203.0.113.8", "2001:db8:113::8"]);
        let service = Service {
            kind: ServiceType::LoadBalancer,
            cluster_ips: addresses(["10.96.0.53", "fd00:10:96::53"]),
            external_ips: addresses(["203.0.113.7", "2001:db8:113::7"]),
            load_balancer: balancer.into_iter().map(balanced).collect(),
            ports: [ServicePort { name: "".into(), protocol: Protocol::Udp, port: 53, node_port: Some(30_053) }].into(),
            affinity_seconds: None,
            internal_traffic_policy: TrafficPolicy::Cluster,
            external_traffic_policy: TrafficPolicy::Cluster,
            annotations: Default::default(),
            ..generate::service(&mut Random::new(1))
        };
        self.world.cluster.services.insert(name(), service);
        self.put_endpoints(&[5]);
        self.settle();
    }

    fn put_endpoints(&mut self, numbers: &[u8]) {
        let slice = |family| {
            let endpoint = |number: &u8| Endpoint {
                address: endpoint_address(family, *number),
                node: None,
                conditions: Conditions::READY,
                hints: None,
            };
            let ports = [EndpointPort { name: "".into(), protocol: Protocol::Udp, port: 5353 }].into();
            Arc::new(EndpointSlice { family, ports, endpoints: numbers.iter().map(endpoint).collect() })
        };
        let slices = Family::BOTH.map(|family| (family.to_string().as_str().into(), slice(family)));
        self.world.cluster.endpoints.insert(name(), Endpoints { slices: slices.into_iter().collect() });
        self.start_from(self.world.clone());
    }
}

fn name() -> ObjectName {
    ObjectName::new("default", "dns")
}

fn balanced(address: IpAddr) -> sluice::model::LoadBalancerAddress {
    sluice::model::LoadBalancerAddress { address, through_balancer: false }
}

fn endpoint_address(family: Family, number: u8) -> IpAddr {
    match family {
        Family::V4 => [10, 244, 1, number].into(),
        Family::V6 => format!("fd00:10:244:1::{number:x}").parse().expect("an address"),
    }
}

/// A flow to a service address that was never translated: nobody there answers.
fn unserved(key: ServiceKey) -> Option<Flows> {
    let ServiceKey::Address { address, protocol, port } = key else { return None };
    let destination = SocketAddr::new(address, port);
    Some(Flows { protocol, original_destination: destination, reply_source: destination })
}

fn backend(flow: &Flows, number: u8) -> SocketAddr {
    SocketAddr::new(endpoint_address(Family::from(flow.original_destination.ip()), number), 5353)
}
