//! Named ports: a name in a policy stands for the number that the destination pod gives it.
//!
//! Kubernetes: `NetworkPolicyPort.port` as text, and `containers[].ports[] { name, containerPort, protocol }`. Name and
//! protocol are resolved for each destination pod: one pod's `http` may be 80 and another's 8080. A pod without such a
//! name in this protocol is not reached; a name that no pod has opens nothing.
//!
//! The destination of ingress is the isolated pod itself; that of egress is a peer: a selected pod, a pod inside one of
//! the blocks, or, without `to`, any pod of the cluster. Either way the answer is a set of addresses with numbers
//! (`hash:ip,port`), so rules stay as they are while pods come and go.

use std::net::IpAddr;

use compact_str::CompactString;

use crate::model::{Pod, PolicyPort, PortMatch as PolicyPortMatch};
use crate::net::{Family, PerFamily, Protocol};

use super::ip_block;
use super::rules::{Block, Element, PortOwners, Selection, SetKey};

/// Returns the port names in `ports[]`.
pub fn names(ports: &[PolicyPort]) -> impl Iterator<Item = (&CompactString, Protocol)> {
    ports.iter().filter_map(|port| match &port.number {
        PolicyPortMatch::Named(name) => Some((name, port.protocol)),
        PolicyPortMatch::Any | PolicyPortMatch::Range { .. } => None,
    })
}

/// Returns the destinations of an egress rule that uses a port name with these peers.
pub fn owners(peer: Option<&SetKey>) -> PortOwners {
    match peer {
        None => PortOwners::All,
        Some(SetKey::Pods(selection)) => PortOwners::Selected(selection.clone()),
        Some(SetKey::Blocks(blocks)) => inside(blocks),
        Some(SetKey::NamedPort { pods, .. }) => pods.clone(),
        Some(SetKey::Denied(set)) => owners(Some(set)),
    }
}

/// Returns the pods inside these blocks. Each pod of the cluster with the name is looked for in them, so they are spans, in which that is quick.
pub fn inside(blocks: &[Block]) -> PortOwners {
    PortOwners::Inside(PerFamily::from_fn(|family| ip_block::spans(blocks, family).into()))
}

/// Returns whether a pod with this address is among these, where `is_selected` evaluates selectors. Does not check that
/// the pod is of this node.
pub fn is_among(owners: &PortOwners, address: IpAddr, is_selected: impl FnOnce(&Selection) -> bool) -> bool {
    match owners {
        PortOwners::Local | PortOwners::All => true,
        PortOwners::Selected(selection) => is_selected(selection),
        PortOwners::Inside(ranges) => ip_block::any_holds(ranges.of(Family::from(address)), address),
    }
}

/// Returns the numbers of a port name at one address of a pod; usually one, mostly none.
pub fn elements<'a>(
    pod: &'a Pod,
    address: IpAddr,
    name: &'a str,
    protocol: Protocol,
) -> impl Iterator<Item = Element> + 'a {
    pod.port_numbers(name, protocol).map(move |number| Element::Port(address, number))
}

#[cfg(test)]
mod tests {
    use super::super::given::{address, pod, port, selector};
    use super::super::rules::Scope;
    use super::*;

    fn numbers(ports: &str, name: &str, protocol: Protocol) -> Vec<Element> {
        elements(&pod("10.244.1.1", "", ports), address("10.244.1.1"), name, protocol).collect()
    }

    #[test]
    fn a_name_belongs_to_its_protocol() {
        let ports = "dns/tcp/53 dns/udp/5353";
        assert_eq!(numbers(ports, "dns", Protocol::Udp), [Element::Port(address("10.244.1.1"), 5353)]);
        assert_eq!(numbers(ports, "dns", Protocol::Sctp), []);
    }

    #[test]
    fn a_name_that_nobody_has_stands_for_nothing() {
        assert_eq!(numbers("http/tcp/80", "https", Protocol::Tcp), []);
    }

    #[test]
    fn numbers_are_no_names() {
        let ports = [port("tcp/80"), port("tcp/http"), port("udp/*"), port("udp/dns")];
        let found: Vec<(String, Protocol)> =
            names(&ports).map(|(name, protocol)| (name.to_string(), protocol)).collect();
        assert_eq!(found, [("http".to_owned(), Protocol::Tcp), ("dns".to_owned(), Protocol::Udp)]);
    }

    #[test]
    fn the_destinations_of_egress_are_its_peers() {
        let selection = Selection { namespaces: Scope::Named("shop".into()), pods: selector("app=web") };
        assert_eq!(owners(None), PortOwners::All);
        assert_eq!(owners(Some(&SetKey::Pods(selection.clone()))), PortOwners::Selected(selection.clone()));
        let blocks: Box<[_]> =
            Box::new([ip_block::block("10.0.0.0/8".parse().unwrap(), &["10.1.0.0/16".parse().unwrap()])]);
        assert_eq!(owners(Some(&SetKey::Blocks(blocks.clone()))), inside(&blocks));
        let is_among = |text| is_among(&inside(&blocks), address(text), |_| true);
        assert!(is_among("10.0.0.1") && !is_among("10.1.0.1") && !is_among("192.0.2.1"));
    }
}
