//! Fixtures for tests, in few words: pods, labels, selectors, policies.

use std::net::IpAddr;
use std::time::Duration;

use crate::config::{Backend, FirewallConfig, ServiceRanges};
use crate::model::{
    Labels, NamedPort, Namespaces, NetworkPolicy, ObjectName, Operator, Peer, Peers, Pod, PolicyPort, PolicyRule,
    PortMatch, Ports, Requirement, Selector,
};
use crate::net::Protocol;

/// `shop/web`.
pub fn object(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').unwrap();
    ObjectName::new(namespace, name)
}

/// `app=web tier=front`.
pub fn labels(text: &str) -> Labels {
    text.split_whitespace().map(|pair| pair.split_once('=').unwrap()).collect()
}

/// `app=web` (one of several values: `app=web,db`), `app!=web`, `app`, `!app`; all hold together.
pub fn selector(text: &str) -> Selector {
    let requirement = |word: &str| {
        let values = |text: &str| text.split(',').map(Into::into).collect();
        let (key, operator) = match (word.split_once("!="), word.split_once('='), word.strip_prefix('!')) {
            (Some((key, text)), ..) => (key, Operator::NotIn(values(text))),
            (None, Some((key, text)), _) => (key, Operator::In(values(text))),
            (None, None, Some(key)) => (key, Operator::DoesNotExist),
            (None, None, None) => (word, Operator::Exists),
        };
        Requirement { key: key.into(), operator }
    };
    text.split_whitespace().map(requirement).collect()
}

/// A running pod of `node1`, with named ports as in `http/tcp/80`.
pub fn pod(addresses: &str, of: &str, ports: &str) -> Pod {
    Pod {
        uid: None,
        labels: labels(of),
        addresses: addresses.split_whitespace().map(address).collect(),
        node: Some("node1".into()),
        host_network: false,
        finished: false,
        ports: ports.split_whitespace().map(named_port).collect(),
    }
}

pub fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn rule(peers: &[Peer], ports: &[&str]) -> PolicyRule {
    PolicyRule {
        peers: if peers.is_empty() { Peers::Any } else { Peers::Of(peers.into()) },
        ports: if ports.is_empty() { Ports::Any } else { Ports::Of(ports.iter().map(|text| port(text)).collect()) },
    }
}

pub fn pods(of: &str) -> Peer {
    Peer::Pods { namespaces: Namespaces::Own, pods: selector(of) }
}

pub fn pods_in(namespaces: &str, of: &str) -> Peer {
    Peer::Pods { namespaces: Namespaces::Selected(selector(namespaces)), pods: selector(of) }
}

/// `10.0.0.0/8 10.1.0.0/16`: the second is a hole in the first.
pub fn block(text: &str) -> Peer {
    let mut prefixes = text.split_whitespace().map(|text| text.parse().unwrap());
    Peer::Block { cidr: prefixes.next().unwrap(), except: prefixes.collect() }
}

pub fn policy(of: &str, ingress: Option<&[PolicyRule]>, egress: Option<&[PolicyRule]>) -> NetworkPolicy {
    NetworkPolicy { pods: selector(of), ingress: ingress.map(Into::into), egress: egress.map(Into::into) }
}

/// `tcp/80`, `tcp/80-90`, `tcp/http`, `tcp/*`.
pub fn port(text: &str) -> PolicyPort {
    let (protocol, number) = text.split_once('/').unwrap();
    let (first, last) = number.split_once('-').unwrap_or((number, number));
    let number = match (first.parse(), last.parse()) {
        (Ok(first), Ok(last)) => PortMatch::Range { first, last },
        _ if number == "*" => PortMatch::Any,
        _ => PortMatch::Named(number.into()),
    };
    PolicyPort { protocol: protocol_of(protocol), number }
}

fn named_port(text: &str) -> NamedPort {
    let words: Vec<&str> = text.split('/').collect();
    NamedPort { name: words[0].into(), protocol: protocol_of(words[1]), number: words[2].parse().unwrap() }
}

fn protocol_of(text: &str) -> Protocol {
    Protocol::from_api(&text.to_uppercase()).unwrap()
}

/// A firewall that takes no Service into account, with nothing switched on.
pub fn config() -> FirewallConfig {
    FirewallConfig {
        backend: Backend::default(),
        sync_period: Duration::from_secs(300),
        default_deny: false,
        flush_established: false,
        ranges: ServiceRanges {
            strict: true,
            cluster_ips: Vec::new(),
            external_ips: Vec::new(),
            load_balancer_ips: Vec::new(),
        },
        knows_services: false,
        tunnel_mode: false,
        service_node_port_range: 30000..=32767,
    }
}
