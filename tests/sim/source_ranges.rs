//! Source ranges of load balancer addresses, where not everything is known.

use std::net::SocketAddr;
use std::sync::Arc;

use sluice::kernel::ipvs::ServiceKey;
use sluice::kernel::nftables::Object;
use sluice::model::{
    Authority, Conditions, Endpoint, EndpointPort, EndpointSlice, Endpoints, LoadBalancerAddress, ObjectName, Service,
    ServicePort, ServiceType,
};
use sluice::net::{Family, Protocol};
use sluice::proxy::names::{NFT_SOURCES, NFT_SOURCES_IN, NFT_SOURCES_OUT};

use crate::agent::{Agent, known};
use crate::support::packet::{self, End};
use crate::support::{flags, generate};
use crate::walk::Walk;

const KNOWN: &str = "203.0.113.50";
const UNKNOWN: &str = "203.0.113.51";
const OF_THE_OTHER_FAMILY: &str = "2001:db8:113::50";
const FLAGS: [&str; 2] = ["--strict-external-ip-validation=false", "--enable-ipv6=true"];

impl Walk {
    /// A range is taken away from a Service that is known, while another one cannot be read.
    pub fn takes_a_range_away_while_not_everything_is_known(&mut self, backend: &str) {
        self.serve(backend, &[(KNOWN, "198.51.100.0/24")]);
        assert!(self.is_reached_by("198.51.100.7", KNOWN));
        self.put(KNOWN, Some("192.0.2.128/25"));
        self.start_from(known(Authority::Partial, &self.world));
        self.settle();
        assert!(!self.is_reached_by("198.51.100.7", KNOWN), "the range was taken away");
        assert!(self.is_reached_by("192.0.2.129", KNOWN), "the range came");
    }

    /// After a restart one of the Services cannot be read: the clients of both come in.
    pub fn keeps_the_ranges_of_a_service_that_cannot_be_read(&mut self, backend: &str) {
        self.serve(backend, &[(KNOWN, "198.51.100.0/24"), (UNKNOWN, "192.0.2.128/25")]);
        let mut part = known(Authority::Partial, &self.world);
        part.cluster.services.remove(&name(UNKNOWN));
        self.agent = Agent::start(&self.kernel, &self.config, self.families);
        self.start_from(part);
        self.settle();
        assert!(self.is_reached_by("198.51.100.7", KNOWN), "a known client");
        assert!(self.is_reached_by("192.0.2.129", UNKNOWN), "a client of the Service that cannot be read");
        assert!(!self.is_reached_by("192.0.2.1", UNKNOWN), "no client of it");
        self.start_from(known(Authority::Complete, &self.world));
        self.settle();
        self.world.cluster.services.remove(&name(UNKNOWN));
        self.start_from(known(Authority::Complete, &self.world));
        self.settle();
    }

    /// Somebody deletes the chain that lets clients in, while a Service cannot be read: its clients come in again as well.
    pub fn puts_back_the_lengths_of_a_service_that_cannot_be_read(&mut self) {
        for authority in [Authority::Partial, Authority::Remembered] {
            self.serve("--netfilter=nftables", &[(KNOWN, "198.51.100.0/24"), (UNKNOWN, "192.0.2.128/25")]);
            let mut part = known(authority, &self.world);
            part.cluster.services.remove(&name(UNKNOWN));
            self.agent = Agent::start(&self.kernel, &self.config, self.families);
            self.start_from(part);
            self.settle();
            self.kernel.with(|machine| {
                // The kernel lets no chain go that another one leads to.
                for chain in [NFT_SOURCES_IN, NFT_SOURCES_OUT, *NFT_SOURCES.of(Family::V4)] {
                    let was_there = machine.state.proxy_table.remove(&Object::Chain(chain.into())).is_some();
                    assert!(was_there, "{chain} was there");
                }
            });
            self.damaged();
            self.audit();
            self.settle();
            assert!(self.is_reached_by("198.51.100.7", KNOWN), "{authority:?}: a known client");
            assert!(self.is_reached_by("192.0.2.129", UNKNOWN), "{authority:?}: a client of the unknown Service");
            assert!(!self.is_reached_by("192.0.2.1", UNKNOWN), "{authority:?}: no client of it");
            self.start_from(known(Authority::Complete, &self.world));
            self.settle();
        }
        // What only the unknown one needed goes with it.
        self.world.cluster.services.remove(&name(UNKNOWN));
        self.start_from(known(Authority::Complete, &self.world));
        self.settle();
    }

    /// The last known state was written before ranges changed, and the program starts while the cluster cannot be reached.
    pub fn remembers_older_ranges(&mut self, backend: &str) {
        self.serve(backend, &[(KNOWN, "198.51.100.0/24"), (UNKNOWN, "192.0.2.128/25")]);
        let remembered = known(Authority::Remembered, &self.world);
        self.put(KNOWN, Some("203.0.113.128/25"));
        self.put(UNKNOWN, None);
        self.start_from(self.world.clone());
        self.settle();
        self.agent = Agent::start(&self.kernel, &self.config, self.families);
        self.start_from(remembered);
        self.settle();
        assert!(!self.is_reached_by("198.51.100.7", KNOWN), "a range that was taken away comes back");
        assert!(self.is_reached_by("203.0.113.129", KNOWN));
        assert!(self.is_reached_by("198.51.100.7", UNKNOWN), "a restriction that was taken away comes back");
    }

    /// The other backend was used until now, and not everything is known: a Service that gets source ranges gets them.
    pub fn restricts_while_it_takes_over(&mut self, [before, after]: [&str; 2]) {
        self.serve(before, &[(KNOWN, "198.51.100.0/24")]);
        self.put(UNKNOWN, Some("192.0.2.128/25"));
        let [strict, six] = FLAGS;
        (self.config, self.families) = flags::proxy(&[strict, six, after]);
        self.agent = Agent::start(&self.kernel, &self.config, self.families);
        self.start_from(known(Authority::Partial, &self.world));
        self.settle();
        assert!(self.is_reached_by("192.0.2.129", UNKNOWN), "it is not served");
        assert!(!self.is_reached_by("198.51.100.7", UNKNOWN), "it is open");
    }

    /// IPv6 is switched off while a Service of each family has source ranges: at no moment is the other one open.
    pub fn closes_a_family_that_is_switched_off_to_its_end(&mut self, backend: &str) {
        self.serve(backend, &[(KNOWN, "198.51.100.0/24"), (OF_THE_OTHER_FAMILY, "2001:db8:100::/48")]);
        assert_eq!(packet::end_of_stranger(&self.kernel.state(), key(OF_THE_OTHER_FAMILY)), End::Dropped);
        let [strict, _] = FLAGS;
        (self.config, self.families) = flags::proxy(&[strict, backend]);
        self.agent = Agent::start(&self.kernel, &self.config, self.families);
        for authority in [Authority::Partial, Authority::Complete] {
            self.start_from(known(authority, &self.world));
            self.settle();
        }
        assert_eq!(packet::end_of_stranger(&self.kernel.state(), key(OF_THE_OTHER_FAMILY)), End::Elsewhere);
        assert_eq!(packet::end_of_stranger(&self.kernel.state(), key(KNOWN)), End::Dropped);
    }

    fn serve(&mut self, backend: &str, services: &[(&str, &str)]) {
        let [strict, six] = FLAGS;
        (self.config, self.families) = flags::proxy(&[strict, six, backend]);
        self.agent = Agent::start(&self.kernel, &self.config, self.families);
        self.world.host = generate::host(false).into();
        self.world.authority.proxy = Authority::Complete;
        services.iter().for_each(|(address, range)| self.put(address, Some(range)));
        self.start_from(self.world.clone());
        self.settle();
    }

    fn put(&mut self, address: &str, range: Option<&str>) {
        let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None };
        let balancer = LoadBalancerAddress { address: address.parse().expect("an address"), through_balancer: false };
        let family = Family::from(balancer.address);
        let service = Service {
            kind: ServiceType::LoadBalancer,
            load_balancer: vec![balancer],
            source_ranges: range.map(|range| [range.parse().expect("a range")].into()),
            ..Service::new(Vec::new(), vec![port])
        };
        let pod = if family == Family::V4 { "10.244.1.5" } else { "fd00:10:244:1::5" };
        let endpoint = Endpoint {
            address: pod.parse().expect("an address"),
            node: None,
            conditions: Conditions::READY,
            hints: None,
        };
        let slice = EndpointSlice {
            family,
            ports: [EndpointPort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }].into(),
            endpoints: [endpoint].into(),
        };
        let endpoints = Endpoints { slices: [("one".into(), Arc::new(slice))].into_iter().collect() };
        self.world.cluster.services.insert(name(address), service);
        self.world.cluster.endpoints.insert(name(address), endpoints);
    }

    fn is_reached_by(&self, client: &str, address: &str) -> bool {
        let end = packet::end_from(&self.kernel.state(), key(address), client.parse().expect("an address"));
        matches!(end, End::Backends(found) if found.contains(&SocketAddr::from(([10, 244, 1, 5], 8080))))
    }
}

fn key(address: &str) -> ServiceKey {
    ServiceKey::Address { address: address.parse().expect("an address"), protocol: Protocol::Tcp, port: 80 }
}

fn name(address: &str) -> ObjectName {
    ObjectName::new("default", address)
}
