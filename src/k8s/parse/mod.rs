//! Conversion of Kubernetes' objects to ours.
//!
//! One file for each kind: a narrow type that names only the fields we use (what else the object holds is
//! skipped while it is read), and a pure function from it to a value of `model` and [`Warning`]s. The same
//! narrow type reads the API's JSON and a manifest's YAML, and `<kind>/protobuf.rs` fills it from the API's protocol
//! buffers; the API's defaults are applied here, because a manifest comes without them.
//!
//! An invalid item (an address that does not parse, a port above 65535) is left out with a
//! warning, and the rest of the object stays. An object that cannot be used at all is treated as absent; but a
//! policy that cannot be understood is no policy that is gone ([`Object::Unreadable`]).

pub mod address_pools;
pub mod address_requests;
pub mod balanced_service;
pub mod cluster_network_policy;
pub mod endpoint_slice;
pub mod namespace;
pub mod network_policy;
pub mod node;
pub mod pod;
pub mod protobuf;
pub mod selector;
pub mod service;
pub mod service_cidr;

mod address;
mod metadata;
mod number;
mod pool;

use std::sync::Arc;

use super::object::{Kind, Object, ObjectId};
use super::warning::Warning;
use crate::model::{ObjectName, Service};

pub use metadata::object_name;
pub use pool::Pool;
pub use protobuf::ApiObject;

/// Parses a Service, from either source.
pub fn service_object(object: &service::ServiceObject, pool: &mut Pool) -> (Object, Vec<Warning>) {
    let (name, service, warnings) = service::service(object);
    let service = service.map(|service| Arc::new(Service { ports: pool.service_ports(service.ports), ..service }));
    (Object::Service(pool.object(name), service), warnings)
}

/// Parses an EndpointSlice, from either source.
pub fn endpoint_slice_object(object: &endpoint_slice::EndpointSliceObject, pool: &mut Pool) -> (Object, Vec<Warning>) {
    let (name, slice, warnings) = endpoint_slice::endpoint_slice(object, pool);
    (Object::EndpointSlice(pool.object(name), slice.map(Box::new)), warnings)
}

/// Parses a Node, from either source.
pub fn node_object(object: &node::NodeObject, _: &mut Pool) -> (Object, Vec<Warning>) {
    let (name, node, warnings) = node::node(object);
    (Object::Node(name, node.map(Arc::new)), warnings)
}

/// Parses a Pod, from either source.
pub fn pod_object(object: &pod::PodObject, pool: &mut Pool) -> (Object, Vec<Warning>) {
    let (name, pod, warnings) = pod::pod(object, pool);
    (Object::Pod(pool.object(name), pod.map(Arc::new)), warnings)
}

/// Parses a Namespace, from either source.
pub fn namespace_object(object: &namespace::NamespaceObject, pool: &mut Pool) -> (Object, Vec<Warning>) {
    let (name, namespace, warnings) = namespace::namespace(object, pool);
    (Object::Namespace(name, namespace.map(Arc::new)), warnings)
}

/// Parses a NetworkPolicy, from either source.
pub fn network_policy_object(object: &network_policy::NetworkPolicyObject, _: &mut Pool) -> (Object, Vec<Warning>) {
    let (name, policy, warnings) = network_policy::network_policy(object);
    let object = match policy {
        Some(policy) => Object::NetworkPolicy(name, Some(Arc::new(policy))),
        None => Object::Unreadable(ObjectId { kind: Kind::NetworkPolicy, name }),
    };
    (object, warnings)
}

/// Parses a ClusterNetworkPolicy, from either source.
pub fn cluster_network_policy_object(
    object: &cluster_network_policy::ClusterNetworkPolicyObject,
    _: &mut Pool,
) -> (Object, Vec<Warning>) {
    let (name, policy, warnings) = cluster_network_policy::cluster_network_policy(object);
    let object = match policy {
        Some(policy) => Object::ClusterNetworkPolicy(name, Some(Arc::new(policy))),
        None => Object::Unreadable(ObjectId { kind: Kind::ClusterNetworkPolicy, name: ObjectName::new("", &name) }),
    };
    (object, warnings)
}

/// Parses a ServiceCIDR, from either source.
pub fn service_cidr_object(object: &service_cidr::ServiceCidrObject, _: &mut Pool) -> (Object, Vec<Warning>) {
    let (name, ranges, warnings) = service_cidr::service_cidr(object);
    (Object::ServiceCidr(name, ranges.map(Arc::new)), warnings)
}
