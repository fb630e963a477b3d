//! A Node in the API's protocol-buffer form: `k8s.io/api/core/v1/generated.proto`.

use prost::Message;

use super::{Address, Condition, NodeObject, ObjectMeta as ApiMeta, Spec, Status, TaintObject};
use crate::k8s::parse::protobuf::{ApiObject, FromProtobuf, ObjectMeta, text};

impl ApiObject for NodeObject {
    const FROM_PROTOBUF: Option<FromProtobuf<Self>> = Some(|bytes| Node::decode(bytes).map(NodeObject::from));

    fn metadata(&self) -> &ApiMeta {
        &self.metadata
    }
}

#[derive(Clone, PartialEq, Message)]
struct Node {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
    #[prost(message, optional, tag = "2")]
    spec: Option<NodeSpec>,
    #[prost(message, optional, tag = "3")]
    status: Option<NodeStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct NodeSpec {
    #[prost(string, optional, tag = "1")]
    pod_cidr: Option<String>,
    #[prost(string, optional, tag = "3")]
    provider_id: Option<String>,
    #[prost(message, repeated, tag = "5")]
    taints: Vec<NodeTaint>,
    #[prost(string, repeated, tag = "7")]
    pod_cidrs: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct NodeTaint {
    #[prost(string, optional, tag = "1")]
    key: Option<String>,
    #[prost(string, optional, tag = "2")]
    value: Option<String>,
    #[prost(string, optional, tag = "3")]
    effect: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct NodeStatus {
    #[prost(message, repeated, tag = "4")]
    conditions: Vec<NodeCondition>,
    #[prost(message, repeated, tag = "5")]
    addresses: Vec<NodeAddress>,
}

#[derive(Clone, PartialEq, Message)]
struct NodeCondition {
    #[prost(string, optional, tag = "1")]
    kind: Option<String>,
    #[prost(string, optional, tag = "2")]
    status: Option<String>,
    #[prost(string, optional, tag = "6")]
    message: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct NodeAddress {
    #[prost(string, optional, tag = "1")]
    kind: Option<String>,
    #[prost(string, optional, tag = "2")]
    address: Option<String>,
}

impl From<Node> for NodeObject {
    fn from(node: Node) -> NodeObject {
        let address = |one: NodeAddress| Address { kind: one.kind, address: one.address };
        let taint =
            |one: NodeTaint| TaintObject { key: text(one.key), value: text(one.value), effect: text(one.effect) };
        let condition = |one: NodeCondition| Condition { kind: one.kind, status: one.status, message: one.message };
        NodeObject {
            metadata: node.metadata.unwrap_or_default().into(),
            spec: node.spec.map(|spec| Spec {
                pod_cidr: text(spec.pod_cidr),
                pod_cidrs: Some(spec.pod_cidrs),
                provider_id: spec.provider_id,
                taints: Some(spec.taints.into_iter().map(taint).collect::<Vec<_>>())
                    .filter(|taints| !taints.is_empty()),
            }),
            status: node.status.map(|status| Status {
                addresses: Some(status.addresses.into_iter().map(address).collect()),
                conditions: Some(status.conditions.into_iter().map(condition).collect()),
            }),
        }
    }
}
