//! An EndpointSlice in the API's protocol-buffer form: `k8s.io/api/discovery/v1/generated.proto`.

use compact_str::CompactString;
use prost::Message;

use super::{
    ConditionsObject, EndpointObject, EndpointSliceObject, HintsObject, Named, Number, ObjectMeta as ApiMeta, Port,
};
use crate::k8s::parse::protobuf::{ApiObject, FromProtobuf, ObjectMeta, text};

impl ApiObject for EndpointSliceObject {
    const FROM_PROTOBUF: Option<FromProtobuf<Self>> =
        Some(|bytes| EndpointSlice::decode(bytes).map(EndpointSliceObject::from));

    fn metadata(&self) -> &ApiMeta {
        &self.metadata
    }
}

#[derive(Clone, PartialEq, Message)]
struct EndpointSlice {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
    #[prost(message, repeated, tag = "2")]
    endpoints: Vec<Endpoint>,
    #[prost(message, repeated, tag = "3")]
    ports: Vec<EndpointPort>,
    #[prost(string, optional, tag = "4")]
    address_type: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Endpoint {
    #[prost(string, repeated, tag = "1")]
    addresses: Vec<String>,
    #[prost(message, optional, tag = "2")]
    conditions: Option<EndpointConditions>,
    #[prost(string, optional, tag = "6")]
    node_name: Option<String>,
    #[prost(message, optional, tag = "8")]
    hints: Option<EndpointHints>,
}

#[derive(Clone, PartialEq, Message)]
struct EndpointHints {
    #[prost(message, repeated, tag = "1")]
    for_zones: Vec<ForTopology>,
    #[prost(message, repeated, tag = "2")]
    for_nodes: Vec<ForTopology>,
}

/// A `ForZone` or a `ForNode`: they have the same form.
#[derive(Clone, PartialEq, Message)]
struct ForTopology {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct EndpointConditions {
    #[prost(bool, optional, tag = "1")]
    ready: Option<bool>,
    #[prost(bool, optional, tag = "2")]
    serving: Option<bool>,
    #[prost(bool, optional, tag = "3")]
    terminating: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
struct EndpointPort {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(string, optional, tag = "2")]
    protocol: Option<String>,
    #[prost(int32, optional, tag = "3")]
    port: Option<i32>,
}

impl From<EndpointSlice> for EndpointSliceObject {
    fn from(slice: EndpointSlice) -> EndpointSliceObject {
        EndpointSliceObject {
            metadata: slice.metadata.unwrap_or_default().into(),
            address_type: text(slice.address_type),
            endpoints: Some(slice.endpoints.into_iter().map(EndpointObject::from).collect()),
            ports: Some(slice.ports.into_iter().map(Port::from).collect()),
        }
    }
}

impl From<Endpoint> for EndpointObject {
    fn from(endpoint: Endpoint) -> EndpointObject {
        let conditions = endpoint.conditions.map(|written| ConditionsObject {
            ready: written.ready,
            serving: written.serving,
            terminating: written.terminating,
        });
        EndpointObject {
            addresses: Some(endpoint.addresses.into_iter().map(CompactString::from).collect()),
            conditions,
            node_name: endpoint.node_name.map(CompactString::from),
            hints: endpoint.hints.map(HintsObject::from),
        }
    }
}

impl From<EndpointHints> for HintsObject {
    fn from(hints: EndpointHints) -> HintsObject {
        let named = |list: Vec<ForTopology>| {
            Some(list.into_iter().map(|one| Named { name: one.name.map(CompactString::from) }).collect())
        };
        HintsObject { for_zones: named(hints.for_zones), for_nodes: named(hints.for_nodes) }
    }
}

impl From<EndpointPort> for Port {
    fn from(port: EndpointPort) -> Port {
        Port {
            name: port.name.map(CompactString::from),
            protocol: port.protocol,
            port: port.port.map(|number| Number::Is(number.into())),
        }
    }
}
