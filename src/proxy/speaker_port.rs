//! No Service leads to the speakers of BGP and BFD with the address of a node.
//!
//! A neighbour is who has its address. Somebody who may write EndpointSlices could have a client outside speak as this node, where what it sends is masqueraded
//! on its way (`masquerade`), and by two Services in a row as another one: the first leads to a node port of the second, which leads to the speaker of that
//! very node. So connections to the ports of BGP are not masqueraded, endpoints at them that are this node get nothing, and neither does any endpoint at a port of BFD with
//! neighbours farther away, to which one packet is enough. (At the port for neighbours on a link one is heard that no router has forwarded, IPVS neither: RFC 5881 5.)
//!
//! Nor does a Service take such a port of an address of this node, as a node port or as an address from outside that is a node's: IPVS takes what comes before the speaker
//! does, and neighbours that dial would speak with the Service's endpoint.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use crate::config::ProxyConfig;
use crate::model::{EndpointSlice, Endpoints, ServicePort};
use crate::net::{Bfd, Family, Protocol};

use super::endpoints::numbers;
use super::local_node::LocalNode;

/// Returns whether an endpoint gets nothing, because a speaker may be there that knows its neighbours by their addresses.
pub fn is_it(node: &LocalNode, config: &ProxyConfig, protocol: Protocol, address: IpAddr, port: u16) -> bool {
    let family = Family::from(address);
    let is_this_node = || [node.address, node.routing_address].iter().any(|own| *own.of(family) == Some(address));
    // A connection is not masqueraded, so no other node's speaker takes it for this node's; of BFD one packet is enough, wherever it goes.
    ports(config, protocol).contains(&port) && (protocol == Protocol::Udp || is_this_node())
}

/// The ports at which neighbours are known by their addresses, from however far away.
fn ports(config: &ProxyConfig, protocol: Protocol) -> &[u16] {
    match protocol {
        Protocol::Tcp => &config.bgp_ports,
        Protocol::Udp => &config.bfd_ports,
        Protocol::Sctp => &[],
    }
}

/// Returns whether an address and port that a Service would be served at are those of this node's own speakers.
pub fn is_own(node: &LocalNode, config: &ProxyConfig, protocol: Protocol, address: IpAddr, port: u16) -> bool {
    let is_of_links = (protocol, port) == (Protocol::Udp, Bfd::PORT);
    (is_of_links || ports(config, protocol).contains(&port)) && node.is_own(address)
}

/// Returns the endpoints for one port of a Service: without the slices that have one of these.
pub fn without<'a>(
    endpoints: Cow<'a, Endpoints>,
    port: &ServicePort,
    node: &LocalNode,
    config: &ProxyConfig,
) -> Cow<'a, Endpoints> {
    let leads_there = |slice: &Arc<EndpointSlice>| {
        numbers(slice, port).any(|number| {
            // Looked at for each port of each Service: almost none has such a number.
            let is_asked = ports(config, number.protocol).contains(&number.port);
            let is_one = |address| is_it(node, config, number.protocol, address, number.port);
            is_asked && slice.endpoints.listed().any(|endpoint| is_one(endpoint.address))
        })
    };
    if !endpoints.slices.values().any(leads_there) {
        return endpoints;
    }
    let others = endpoints.slices.iter().filter(|(_, slice)| !leads_there(slice));
    Cow::Owned(Endpoints { slices: others.map(|(name, slice)| (name.clone(), slice.clone())).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Environment, Mistakes, Request, request};
    use crate::model::{Conditions, Endpoint, EndpointPort};
    use crate::net::PerFamily;

    #[test]
    fn an_endpoint_that_is_this_nodes_speaker_gets_nothing_and_neither_does_one_at_the_port_of_bfd() {
        let words: Vec<std::ffi::OsString> = ["sluice", "--bgp-port=1179"].iter().map(Into::into).collect();
        let Ok(Request::Run { flags, verbosity }) = request(&words) else { panic!("these words ask for a run") };
        let config = Config::meant(&flags, verbosity, &Environment::default(), &mut Mistakes::default());
        let config = config.proxy.expect("it runs");
        let at = |text: &str| text.parse::<IpAddr>().expect("an address");
        let node = LocalNode {
            address: PerFamily { v4: Some(at("192.0.2.1")), v6: Some(at("2001:db8::1")) },
            routing_address: PerFamily { v4: Some(at("198.51.100.1")), v6: None },
            ..LocalNode::default()
        };
        let left = |address: &str, protocol, number| {
            let port = ServicePort { name: "x".into(), protocol, port: 80, node_port: None };
            let endpoint = |address: &str| Endpoint {
                address: at(address),
                node: None,
                conditions: Conditions::READY,
                hints: None,
            };
            let slice = |address: &str, number| {
                let ports = [EndpointPort { name: "x".into(), protocol, port: number }].into();
                let endpoints = [endpoint(address)].into_iter().collect();
                Arc::new(EndpointSlice { family: Family::from(at(address)), ports, endpoints })
            };
            let slices = [("a".into(), slice(address, number)), ("b".into(), slice("10.244.1.7", 8080))].into();
            let endpoints = Endpoints { slices };
            without(Cow::Borrowed(&endpoints), &port, &node, &config).slices.values().count() == 2
        };
        for own in ["192.0.2.1", "2001:db8::1", "198.51.100.1"] {
            assert!(!left(own, Protocol::Tcp, 179) && !left(own, Protocol::Tcp, 1179), "{own}");
            assert!(left(own, Protocol::Tcp, 180) && left(own, Protocol::Udp, 179) && left(own, Protocol::Sctp, 179));
        }
        for other in ["192.0.2.2", "2001:db8::2", "10.244.1.9"] {
            assert!(left(other, Protocol::Tcp, 179), "{other}: it is reached with the client's own address");
            assert!(!left(other, Protocol::Udp, 4784) && left(other, Protocol::Udp, 3784), "{other}");
        }
    }
}
