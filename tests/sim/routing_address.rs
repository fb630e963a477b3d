//! The address by which other nodes route to this one changes while connections are masqueraded with it, and the program ends and starts with it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use sluice::kernel::address::AddressKey;
use sluice::kernel::iptables::Piece;
use sluice::kernel::link::LinkName;
use sluice::kernel::nftables::{Content, Object as InTable};
use sluice::model::{
    Authority, Host, HostAddress, Node, NodeAddress, NodeAddressKind, ObjectName, Service, ServicePort, World,
};
use sluice::net::{Family, PerFamily, Protocol};
use sluice::proxy::apply::Mirrors;
use sluice::proxy::plan::{Plan, local_route_key};
use sluice::reconcile::Moment;

use crate::BACKENDS;
use crate::support::flags;
use crate::support::memory::{HOST_V4, HOST_V6, MemoryKernel, Object, Observer, State};

const SERVICES: [&str; 2] = ["10.96.0.9", "fd00:10:96::9"];
const ROUTED: [&str; 2] = ["198.51.100.1", "2001:db8:1::1"];
const OTHERS: [&str; 2] = ["198.51.100.77", "2001:db8:1::77"];

fn at(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A Node that is routed by these addresses, with one Service that has a node port.
fn world(routed: Option<[&str; 2]>) -> World {
    let mut world = World::empty();
    let own = [("eth0", HOST_V4), ("eth0", HOST_V6)].into_iter();
    let of_back = [ROUTED, OTHERS].into_iter().flatten().map(|text| ("eth1", at(text)));
    let on = |(link, address): (&str, IpAddr)| HostAddress { address, link: link.into(), global: true };
    let mut addresses: Vec<HostAddress> = own.chain(of_back).map(on).collect();
    addresses.sort();
    world.host = Arc::new(Host { node_name: "node1".into(), addresses, ..Host::default() });
    let internal = |address| NodeAddress { kind: NodeAddressKind::Internal, address };
    let mut node = Node { addresses: vec![internal(HOST_V4), internal(HOST_V6)], ..Node::default() };
    node.set_detected(routed.map(|[v4, v6]| PerFamily { v4: Some(at(v4)), v6: Some(at(v6)) }).unwrap_or_default());
    world.cluster.nodes.insert("node1".into(), node);
    let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: Some(30080) };
    let service = Service::new(SERVICES.iter().map(|address| at(address)).collect(), vec![port]);
    world.cluster.services.insert(ObjectName::new("default", "web"), service);
    world
}

/// Masquerading rules of a family as text, with either packet filter.
fn masquerading(state: &State, family: Family) -> String {
    let chain = |piece: &Piece| matches!(piece, Piece::Chain { family: its, chain, .. } if *its == family && chain == "KUBE-ROUTER-SNAT");
    let rules = state.rules.iter().filter(|(piece, _)| chain(piece)).map(|(_, rules)| format!("{rules:?}"));
    let name = if family == Family::V4 { "translated4" } else { "translated6" };
    let in_table = match state.proxy_table.get(&InTable::Chain(name.into())) {
        Some(Content::Chain(chain)) => Some(format!("{:?}", chain.rules)),
        _ => None,
    };
    rules.chain(in_table).collect()
}

/// Asserts the source of what is masqueraded, and of the host's own packets to Services.
fn assert_source(state: &State, [v4, v6]: [IpAddr; 2]) {
    for (family, service, source) in [(Family::V4, SERVICES[0], v4), (Family::V6, SERVICES[1], v6)] {
        let route = state.routes.get(&local_route_key(at(service))).expect("it is local");
        assert_eq!(route.source, Some(source), "{service}");
        let rules = masquerading(state, family);
        assert!(rules.contains(&source.to_string()), "{rules}");
        let stale = [ROUTED, OTHERS].into_iter().flatten().find(|one| at(one) != source && rules.contains(one));
        assert_eq!(stale, None, "{rules}");
    }
}

#[test]
fn another_address_for_routing_replaces_rules_and_routes_in_place_and_a_start_finds_them_as_they_are() {
    for backend in BACKENDS {
        let mut state = State::of_others();
        for address in ROUTED.into_iter().chain(OTHERS).map(at) {
            let key = AddressKey { link: LinkName("eth1".into()), address: Family::host_prefix(address) };
            state.addresses.insert(key, ());
        }
        let kernel = MemoryKernel::new(state);
        let (config, families) = flags::proxy(&["--enable-ipv6=true", backend]);
        let mut moment = Moment { now: Instant::now(), jitter: 0 };
        let start = || {
            (Plan::new(config.clone(), families, (6, 1)), Mirrors::new(kernel.targets_of(config.backend), Vec::new()))
        };
        let (mut plan, mut mirrors) = start();
        let mut is_first = true;
        let internal = [HOST_V4, HOST_V6];
        let steps =
            [(None, internal), (Some(ROUTED), ROUTED.map(at)), (Some(OTHERS), OTHERS.map(at)), (None, internal)];
        for (routed, source) in steps {
            let changed = plan.update(&world(routed), moment.now);
            mirrors.mark(&changed);
            assert!(is_first || changed.virtuals.is_empty(), "{backend}: node ports stay where they are");
            kernel.with(|machine| {
                // After every single act there are a route and rules.
                machine.observer = (!is_first).then(|| {
                    let looks = |state: &State, _: &Object| {
                        let has_route = |service: &str| state.routes.contains_key(&local_route_key(at(service)));
                        assert!(SERVICES.into_iter().all(has_route), "a service address is not local for a while");
                        let translates = |family: &Family| !masquerading(state, *family).is_empty();
                        assert!(Family::BOTH.iter().all(translates), "nothing is masqueraded for a while");
                    };
                    Box::new(looks) as Observer
                });
            });
            mirrors.round(plan.desired(), Authority::Complete, moment);
            assert!(mirrors.is_settled(), "{backend}");
            assert_source(&kernel.state(), source);
            // The program ends and starts: it finds what there is, and changes nothing.
            let acts = kernel.with(|machine| machine.acts);
            (plan, mirrors) = start();
            plan.update(&world(routed), moment.now);
            mirrors.round(plan.desired(), Authority::Complete, moment);
            assert!(mirrors.is_settled(), "{backend}");
            assert_eq!(kernel.with(|machine| machine.acts), acts, "{backend}: {routed:?}");
            is_first = false;
            moment.now += std::time::Duration::from_secs(1);
        }
    }
}
