//! Fixtures for tests of the router: configurations, nodes and Services in few words.

use std::ffi::OsString;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::config::{Config, Environment, Mistakes, Request, RouterConfig, request};
use crate::model::{
    Authority, Host, HostAddress, HostLink, Node, NodeAddress, NodeAddressKind, OnLink, Routing, World,
};
use crate::net::{Family, PerFamily};

/// The configuration with these flags.
pub fn config(words: &[&str]) -> RouterConfig {
    let words: Vec<OsString> = ["sluice"].iter().chain(words).map(OsString::from).collect();
    let asked = request(&words).unwrap_or_else(|refusal| panic!("{}", refusal.text));
    let Request::Run { flags, verbosity } = asked else { panic!("these words ask for a text, not for a run") };
    let environment = Environment { host_name: "node-1".to_owned(), ..Environment::default() };
    let mut mistakes = Mistakes::default();
    let config = Config::meant(&flags, verbosity, &environment, &mut mistakes);
    assert!(mistakes.is_empty(), "{mistakes}");
    config.router.expect("the router is not switched off")
}

pub fn address(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|_| panic!("{text} is no address"))
}

pub fn prefix(text: &str) -> IpNet {
    text.parse().unwrap_or_else(|_| panic!("{text} is no prefix"))
}

/// A node with these internal addresses and pod ranges, both separated by blanks.
pub fn node(addresses: &str, ranges: &str) -> Node {
    let internal = |text| NodeAddress { kind: NodeAddressKind::Internal, address: address(text) };
    Node {
        addresses: addresses.split_whitespace().map(internal).collect(),
        pod_cidrs: ranges.split_whitespace().map(prefix).collect(),
        ..Node::default()
    }
}

/// The same whose pod ranges an annotation names, and whose spec has these.
pub fn annotated(node: Node, spec: &str) -> Node {
    Node { spec_pod_cidrs: Some(spec.split_whitespace().map(prefix).collect()), ..node }
}

/// The same with these addresses detected, one of each family at most.
pub fn detected(mut node: Node, addresses: &str) -> Node {
    let all: Vec<IpAddr> = addresses.split_whitespace().map(address).collect();
    let of_family = |family| all.iter().copied().find(|address| Family::from(*address) == family);
    node.set_detected(PerFamily::from_fn(of_family));
    node
}

/// The same with annotations.
pub fn with(node: Node, change: impl FnOnce(&mut Routing)) -> Node {
    let mut routing = node.routing().clone();
    change(&mut routing);
    Node { routing: Some(Box::new(routing)), ..node }
}

/// The host of `node-1` with these addresses, as in `192.0.2.1/24`, on `eth0`.
pub fn host(addresses: &str) -> Host {
    let given: Vec<IpNet> = addresses.split_whitespace().map(prefix).collect();
    let own = |one: &IpNet| HostAddress { address: one.addr(), link: "eth0".into(), global: true };
    let mut on_link: Vec<OnLink> = given
        .iter()
        .filter(|one| one.prefix_len() < one.max_prefix_len())
        .map(|one| OnLink { prefix: one.trunc(), link: "eth0".into() })
        .collect();
    on_link.sort();
    Host {
        node_name: "node-1".into(),
        addresses: given.iter().map(own).collect(),
        on_link,
        links: vec![HostLink { name: "eth0".into(), mtu: 1500, bridge: false }],
        ..Host::default()
    }
}

/// A completely known World: this host and these nodes.
pub fn world(host: Host, nodes: &[(&str, Node)]) -> World {
    let mut world = World::empty();
    world.host = Arc::new(host);
    world.authority.proxy = Authority::Complete;
    world.authority.router = Authority::Complete;
    for (name, node) in nodes {
        world.cluster.nodes.insert((*name).into(), node.clone());
    }
    world
}

/// Three nodes: two of IPv4 and IPv6 on one link, a third one elsewhere.
pub fn three_nodes() -> World {
    world(
        host("192.0.2.1/24 2001:db8::1/64"),
        &[
            ("node-1", node("192.0.2.1 2001:db8::1", "10.244.1.0/24 fd00:10:244:1::/64")),
            ("node-2", node("192.0.2.2 2001:db8::2", "10.244.2.0/24 fd00:10:244:2::/64")),
            ("node-3", node("10.0.0.3 2001:db8:3::3", "10.244.3.0/24 fd00:10:244:3::/64")),
        ],
    )
}
