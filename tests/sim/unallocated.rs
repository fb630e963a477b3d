//! Cluster IPs that no Service has, where not everything is known, and where ranges change.

use std::net::IpAddr;
use std::sync::Arc;

use sluice::config::Backend;
use sluice::kernel::ipset::Entry;
use sluice::kernel::iptables::Piece;
use sluice::kernel::ipvs::ServiceKey;
use sluice::kernel::nftables::Content;
use sluice::model::{
    Authority, Conditions, Endpoint, EndpointPort, EndpointSlice, Endpoints, Host, HostAddress, Node, NodeAddress,
    NodeAddressKind, ObjectName, Service, ServiceCidr, ServicePort, World,
};
use sluice::net::{Family, Protocol};
use sluice::proxy::names::Set;
use sluice::proxy::unallocated::{is_chain, is_rule};
use sluice::subsystem::Kinds;

use crate::agent::{Agent, known};
use crate::support::memory::{HOST_V4, HOST_V6, Object as Thing};
use crate::support::packet::{self, End};
use crate::support::{flags, generate};
use crate::walk::Walk;

/// A free address of each family, and one of a range that comes later.
const FREE: [&str; 2] = ["10.96.0.200", "fd00:10:96::c8"];
const LATER: [&str; 2] = ["10.0.0.200", "fd00:10:97::c8"];
/// The addresses of Services.
const FIRST: [&str; 2] = ["10.96.0.9", "fd00:10:96::9"];
const SECOND: [&str; 2] = ["10.96.0.10", "fd00:10:96::a"];
const TYPED: &str = "--service-cluster-ip-range=10.96.0.0/12,fd00:10:96::/108";

impl Walk {
    /// Free addresses are refused from the moment at which all Services are known, and not by what is remembered or known in part.
    pub fn refuses_free_cluster_ips_when_all_services_are_known(&mut self, backend: &str) {
        self.configured(&["--enable-ipv6=true", TYPED, backend]);
        self.put_at(&FIRST);
        for authority in [Authority::Nothing, Authority::Remembered, Authority::Partial] {
            self.agent = Agent::start(&self.kernel, &self.config, self.families);
            self.start_from(known(authority, &self.world));
            self.settle();
            FREE.iter().for_each(|free| assert_eq!(self.end_of(free), End::Elsewhere, "{authority:?}: {free}"));
        }
        self.know_all();
        FREE.iter().for_each(|free| assert_eq!(self.end_of(free), End::Refused, "{free}"));
        LATER.iter().for_each(|other| assert_eq!(self.end_of(other), End::Elsewhere, "{other} is in no range"));
        self.served(&FIRST);
        // What stands stays while less is known, and a Service that comes is served all the same.
        self.agent = Agent::start(&self.kernel, &self.config, self.families);
        self.put_at(&SECOND);
        self.start_from(known(Authority::Partial, &self.world));
        self.settle();
        FREE.iter().for_each(|free| assert_eq!(self.end_of(free), End::Refused, "{free}"));
        self.served(&SECOND);
    }

    /// The ranges are those of the ServiceCIDR objects, as they come and go; a new one counts when all Services are known.
    pub fn follows_the_ranges_of_cluster_ips(&mut self, backend: &str) {
        self.configured(&["--enable-ipv6=true", backend]);
        self.put_at(&FIRST);
        self.know_all();
        FREE.iter().for_each(|free| assert_eq!(self.end_of(free), End::Elsewhere, "{free}: nobody named its range"));
        self.put_range("kubernetes", &["10.96.0.0/12", "fd00:10:96::/108"]);
        self.know_all();
        FREE.iter().for_each(|free| assert_eq!(self.end_of(free), End::Refused, "{free}"));
        self.put_range("more", &["10.0.0.0/16", "fd00:10:97::/112"]);
        self.start_from(known(Authority::Partial, &self.world));
        self.settle();
        LATER.iter().for_each(|free| assert_eq!(self.end_of(free), End::Elsewhere, "{free} may be a Service's"));
        self.know_all();
        LATER.iter().chain(&FREE).for_each(|free| assert_eq!(self.end_of(free), End::Refused, "{free}"));
        self.world.cluster.service_cidrs.remove(&"more".into());
        // It goes at once, although not everything is known.
        self.start_from(known(Authority::Partial, &self.world));
        self.settle();
        LATER.iter().for_each(|other| assert_eq!(self.end_of(other), End::Elsewhere, "{other}: the range is gone"));
        FREE.iter().for_each(|free| assert_eq!(self.end_of(free), End::Refused, "{free}"));
        self.know_all();
        LATER.iter().for_each(|other| assert_eq!(self.end_of(other), End::Elsewhere, "{other}: the range is gone"));
        FREE.iter().for_each(|free| assert_eq!(self.end_of(free), End::Refused, "{free}"));
        self.served(&FIRST);
        // Somebody else has addresses in the range: a Node.
        let address = NodeAddress { kind: NodeAddressKind::Internal, address: at("10.100.1.5") };
        self.world.cluster.nodes.insert("other".into(), Node { addresses: vec![address], ..Node::default() });
        self.start_from(known(Authority::Partial, &self.world));
        self.settle();
        assert_eq!(self.end_of(FREE[0]), End::Elsewhere, "the range is left out");
        assert_eq!(self.end_of(FREE[1]), End::Refused, "that of IPv6 is not");
        self.world.cluster.nodes.remove(&"other".into());
        self.world.cluster.services.remove(&name(&FIRST));
        self.know_all();
        FIRST
            .iter()
            .for_each(|former| assert_eq!(self.end_of(former), End::Refused, "{former} has no Service any more"));
    }

    /// A range goes although the cluster is only remembered: this host has an address in it, or the flag names another one.
    pub fn ceases_to_refuse_while_the_cluster_is_remembered(&mut self, backend: &str) {
        let words = ["--enable-ipv6=true", TYPED, backend];
        self.configured(&words);
        self.put_at(&FIRST);
        self.know_all();
        FREE.iter().for_each(|free| assert_eq!(self.end_of(free), End::Refused, "{free}"));
        self.agent = Agent::start(&self.kernel, &self.config, self.families);
        self.start_from(known(Authority::Remembered, &self.world));
        self.settle();
        FREE.iter().for_each(|free| assert_eq!(self.end_of(free), End::Refused, "{free}"));
        self.world.host = host_at(Some("10.97.0.1")).into();
        self.start_from(known(Authority::Remembered, &self.world));
        self.settle();
        assert_eq!(self.end_of(FREE[0]), End::Elsewhere, "the host itself is in this range");
        assert_eq!(self.end_of(FREE[1]), End::Refused, "and not in that of IPv6");
        self.configured(&["--enable-ipv6=true", "--service-cluster-ip-range=10.0.0.0/16", backend]);
        self.start_from(known(Authority::Remembered, &self.world));
        self.settle();
        FREE.iter().chain(&LATER).for_each(|free| assert_eq!(self.end_of(free), End::Elsewhere, "{free}"));
        self.served(&FIRST);
    }

    /// Ranges and Services come and go, others come to have addresses in the ranges, what the kernel does may fail, an element may be refused for good,
    /// and the program may start again at any moment with more or less knowledge.
    pub fn goes_between_ranges(&mut self, steps: usize, backend: &str) {
        self.configured(&["--enable-ipv6=true", backend]);
        // Else the node would be known by whatever address it has.
        let internal = |address| NodeAddress { kind: NodeAddressKind::Internal, address };
        let own = Node { addresses: [HOST_V4, HOST_V6].map(internal).into(), ..Node::default() };
        self.world.cluster.nodes.insert("node1".into(), own);
        let mut remembered = self.world.clone();
        let mut authority = Authority::Complete;
        for _ in 0..steps {
            match self.random.below(20) {
                0..=4 => self.put_range_by_chance(),
                5..=8 => self.put_service_by_chance(),
                9 => {
                    let address = self.random.chance(50).then_some("10.97.0.1");
                    self.world.host = host_at(address).into();
                    self.tell(format!("the host has {address:?}"));
                }
                10 => self.put_node_by_chance(),
                11 => {
                    let refused = self.random.chance(60).then(|| self.address_element(FIRST[0]));
                    self.refuse(refused);
                }
                12..=13 => {
                    let all = [Authority::Nothing, Authority::Remembered, Authority::Partial, Authority::Complete];
                    authority = *self.random.pick(&all);
                    let typed = if self.random.chance(30) { vec![TYPED] } else { Vec::new() };
                    let host = self.world.host.clone();
                    self.configured(&[&["--enable-ipv6=true", backend][..], &typed].concat());
                    self.world.host = host;
                    self.tell(format!("the program starts again as {authority:?}, with {typed:?}"));
                }
                14 => remembered = self.world.clone(),
                15 => authority = authority.max(Authority::Partial),
                16..=17 => authority = Authority::Complete,
                _ => {}
            }
            let cluster = if authority == Authority::Remembered { &remembered.cluster } else { &self.world.cluster };
            let world = World { cluster: cluster.clone(), ..self.world.clone() };
            self.start_from(known(authority, &world));
            self.work();
            self.rest();
            self.refuses_nothing_else();
        }
        self.refuse(None);
        self.know_all();
    }

    fn put_range_by_chance(&mut self) {
        let name = *self.random.pick(&["kubernetes", "more"]);
        if self.random.chance(40) {
            self.world.cluster.service_cidrs.remove(&name.into());
            self.tell(format!("no ServiceCIDR {name}"));
            return;
        }
        let pool = ["10.96.0.0/12", "10.0.0.0/16", "fd00:10:96::/108", "fd00:10:97::/112"];
        let ranges = [*self.random.pick(&pool), *self.random.pick(&pool)];
        self.tell(format!("ServiceCIDR {name} is {ranges:?}"));
        self.put_range(name, &ranges);
    }

    fn put_service_by_chance(&mut self) {
        let addresses = *self.random.pick(&[FIRST, SECOND, ["10.0.0.9", "fd00:10:97::9"]]);
        if self.random.chance(50) {
            self.put_at(&addresses);
        } else {
            self.world.cluster.services.remove(&name(&addresses));
        }
        self.tell(format!("the Service at {addresses:?} comes or goes"));
    }

    fn put_node_by_chance(&mut self) {
        let address = *self.random.pick(&[None, Some("10.100.1.5"), Some("fd00:10:97::5")]);
        let internal = |text| NodeAddress { kind: NodeAddressKind::Internal, address: at(text) };
        let addresses = address.into_iter().map(internal).collect();
        self.world.cluster.nodes.insert("other".into(), Node { addresses, ..Node::default() });
        self.tell(format!("another Node has {address:?}"));
    }

    /// Has everything tried again that failed by chance.
    fn rest(&mut self) {
        for _ in 0..8 {
            self.clock.pass_until(self.agent.mirrors.retry_at());
            self.round();
        }
    }

    /// Asserts that no rule in the kernel refuses more than what is to be refused, as far as is known now.
    fn refuses_nothing_else(&self) {
        if self.agent.authority == Authority::Nothing {
            return;
        }
        let is_refused = self.kernel.with(|machine| machine.broken_object.is_some());
        let troubles = self.agent.mirrors.reflections().into_iter().filter_map(|kind| kind.trouble().cloned());
        let troubles: Vec<_> = troubles.collect();
        assert!(is_refused || troubles.is_empty(), "nothing fails, and there is trouble: {troubles:#?}");
        let (state, desired) = (self.kernel.state(), self.agent.desired());
        // A chain that nobody enters refuses nothing.
        let entrances = |piece: &Piece| is_rule(piece) && matches!(piece, Piece::Jump { .. });
        for (piece, rules) in state.rules.iter().filter(|(piece, _)| entrances(piece)) {
            let is_desired = |rule| desired.rules.get(piece).is_some_and(|its| its.0.contains(rule));
            assert!(rules.0.iter().all(is_desired), "{piece}: {rules:?}");
        }
        for (object, content) in state.proxy_table.iter().filter(|(object, _)| is_chain(object)) {
            let (Content::Chain(chain), Some(Content::Chain(desired))) = (content, desired.table.get(object)) else {
                panic!("{object} is not to be there");
            };
            assert!(chain.rules.iter().all(|rule| desired.rules.contains(rule)), "{object}: {chain:?}");
        }
    }

    /// The element by which the guard knows an address.
    fn address_element(&self, address: &str) -> Thing {
        let entry = Entry::Ip(at(address));
        match self.config.backend {
            Backend::Iptables => Thing::Element(Set::ServiceAddresses.element(entry)),
            Backend::Nftables => Thing::InTable(Set::ServiceAddresses.object(&entry)),
        }
    }

    fn configured(&mut self, words: &[&str]) {
        (self.config, self.families) = flags::proxy(words);
        self.agent = Agent::start(&self.kernel, &self.config, self.families);
        self.world.host = generate::host(false).into();
    }

    fn know_all(&mut self) {
        self.start_from(known(Authority::Complete, &self.world));
        self.settle();
    }

    fn put_range(&mut self, name: &str, ranges: &[&str]) {
        let ranges = ranges.iter().map(|range| range.parse().expect("a range")).collect();
        self.world.cluster.service_cidrs.insert(name.into(), ServiceCidr { ranges });
    }

    fn put_at(&mut self, addresses: &[&str; 2]) {
        let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None };
        let slices = Family::BOTH.into_iter().zip(["10.244.1.5", "fd00:10:244:1::5"]).map(|(family, pod)| {
            let endpoint = Endpoint { address: at(pod), node: None, conditions: Conditions::READY, hints: None };
            let ports = [EndpointPort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }].into();
            (pod.into(), Arc::new(EndpointSlice { family, ports, endpoints: [endpoint].into() }))
        });
        let service = Service::new(addresses.iter().map(|address| at(address)).collect(), vec![port]);
        self.world.cluster.endpoints.insert(name(addresses), Endpoints { slices: slices.collect() });
        self.world.cluster.services.insert(name(addresses), service);
    }

    fn served(&self, addresses: &[&str; 2]) {
        let is_served = |address: &&str| matches!(self.end_of(address), End::Backends(_));
        assert!(addresses.iter().all(is_served), "{addresses:?}");
    }

    /// The end of a new connection from outside.
    fn end_of(&self, address: &str) -> End {
        let key = ServiceKey::Address { address: at(address), protocol: Protocol::Tcp, port: 80 };
        packet::end(&self.kernel.state(), key)
    }
}

/// A host that may have an address of its own in a range of cluster IPs.
fn host_at(address: Option<&str>) -> Host {
    let mut host = generate::host(false);
    let own = |text| HostAddress { address: at(text), link: "eth0".into(), global: true };
    host.addresses.extend(address.map(own));
    host.addresses.sort();
    host
}

fn at(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn name(addresses: &[&str; 2]) -> ObjectName {
    ObjectName::new("default", &format!("at-{}", addresses[0]))
}
