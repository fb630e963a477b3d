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

pub mod endpoint_slice;
pub mod namespace;
pub mod network_policy;
pub mod node;
pub mod pod;
pub mod protobuf;
pub mod selector;
pub mod service;

mod metadata;
mod number;
mod pool;

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Kind, Object, ObjectId};
use crate::model::ObjectName;

pub use metadata::{labelled_meta, object_meta};
pub use number::Number;
pub use pool::Pool;
pub use protobuf::ApiObject;

/// A warning about a field of an object.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Warning {
    /// The field as the API names it, or the key of an annotation.
    pub field: Cow<'static, str>,
    pub text: String,
    pub scope: Scope,
}

/// What a warning is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Scope {
    /// The value of the field, in this object.
    Object,
    /// The field itself, in whatever object: it has no effect in this version.
    Field,
}

/// The warnings of one object, collected while it is parsed.
#[derive(Default, Debug)]
pub struct Warnings(Vec<Warning>);

/// Number of warnings kept of one object. An object with a thousand bad ports is one mistake.
const WARNINGS_KEPT: usize = 8;

impl Warnings {
    /// Records that a field is invalid, and how it is treated.
    pub fn odd(&mut self, field: impl Into<Cow<'static, str>>, text: impl fmt::Display) {
        self.push(field.into(), text, Scope::Object);
    }

    /// Records that a field has no effect in this version, whatever its value.
    pub fn without_effect(&mut self, field: impl Into<Cow<'static, str>>, text: impl fmt::Display) {
        self.push(field.into(), text, Scope::Field);
    }

    fn push(&mut self, field: Cow<'static, str>, text: impl fmt::Display, scope: Scope) {
        if self.0.len() < WARNINGS_KEPT {
            self.0.push(Warning { field, text: text.to_string(), scope });
        }
    }

    pub fn take(self) -> Vec<Warning> {
        self.0
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.text)
    }
}

/// Parses a Service, from either source.
pub fn service_object(object: &service::ServiceObject, _: &mut Pool) -> (Object, Vec<Warning>) {
    let (name, service, warnings) = service::service(object);
    (Object::Service(name, service.map(Arc::new)), warnings)
}

/// Parses an EndpointSlice, from either source.
pub fn endpoint_slice_object(object: &endpoint_slice::EndpointSliceObject, pool: &mut Pool) -> (Object, Vec<Warning>) {
    let (name, slice, warnings) = endpoint_slice::endpoint_slice(object, pool);
    (Object::EndpointSlice(name, slice), warnings)
}

/// Parses a Node, from either source.
pub fn node_object(object: &node::NodeObject, _: &mut Pool) -> (Object, Vec<Warning>) {
    let (name, node, warnings) = node::node(object);
    (Object::Node(name, node.map(Arc::new)), warnings)
}

/// Parses a Pod, from either source.
pub fn pod_object(object: &pod::PodObject, pool: &mut Pool) -> (Object, Vec<Warning>) {
    let (name, pod, warnings) = pod::pod(object, pool);
    (Object::Pod(name, pod.map(Arc::new)), warnings)
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

/// The name of a namespaced object; a manifest without a namespace means `default`, as for `kubectl`.
fn object_name(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> ObjectName {
    let namespace = meta.namespace.as_deref().filter(|namespace| !namespace.is_empty()).unwrap_or("default");
    ObjectName::new(namespace, meta.name.as_deref().unwrap_or_default())
}

/// Returns an address that a Service or an endpoint may have, or why it may not. The API refuses the same ones:
/// traffic to them never leaves the host, or reaches more than one receiver.
fn unicast_address(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr = text.trim().parse().map_err(|_| format!("{text:?} is not an IP address"))?;
    let unusable = match address {
        IpAddr::V4(v4) => {
            v4.is_unspecified() || v4.is_loopback() || v4.is_multicast() || v4.is_link_local() || v4.is_broadcast()
        }
        IpAddr::V6(v6) => {
            v6.is_unspecified()
                || v6.is_loopback()
                || v6.is_multicast()
                || v6.is_unicast_link_local()
                || v6.to_ipv4_mapped().is_some()
        }
    };
    if unusable { Err(format!("{text} is not a unicast address of a cluster")) } else { Ok(address) }
}

/// The addresses of a list, without duplicates, in its order.
fn unicast_addresses<'a>(
    field: &'static str,
    texts: impl Iterator<Item = &'a str>,
    warnings: &mut Warnings,
) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for text in texts {
        match unicast_address(text) {
            Ok(address) if addresses.contains(&address) => {}
            Ok(address) => addresses.push(address),
            Err(why) => warnings.odd(field, format_args!("{why}; it is left out")),
        }
    }
    addresses
}
