//! Endpoints as most tests of Services have them: ready ones of one family in one slice.

use std::net::IpAddr;
use std::sync::Arc;

use sluice::model::{Conditions, Endpoint, EndpointPort, EndpointSlice, Endpoints};
use sluice::net::{Family, Protocol};

/// A ready endpoint, on this node where one is given.
pub fn ready(address: impl Into<IpAddr>, node: Option<&str>) -> Endpoint {
    Endpoint { address: address.into(), node: node.map(Into::into), conditions: Conditions::READY, hints: None }
}

/// A slice of these IPv4 endpoints, with one TCP port without a name.
pub fn in_one_slice(port: u16, endpoints: impl IntoIterator<Item = Endpoint>) -> Endpoints {
    let slice = EndpointSlice {
        family: Family::V4,
        ports: [EndpointPort { name: "".into(), protocol: Protocol::Tcp, port }].into(),
        endpoints: endpoints.into_iter().collect(),
    };
    Endpoints { slices: [("one".into(), Arc::new(slice))].into() }
}
