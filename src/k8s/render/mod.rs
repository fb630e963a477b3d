//! Objects of the API for values of the model: `parse` the other way, for a report of a problem.
//!
//! An object has the fields that decide, and nothing else: parsing it gives the value that it was made of, and no
//! secret is in it. The password of a neighbour stands there as one that is not known (`net::Password::Unknown`).
//! Every value is taken apart by its fields, so that a field which is added to the model and not written here does not compile.
//!
//! Pure. What of a value only an odd object can be parsed to (a rule that matches nothing because its peers are not understood) is written as
//! such an object.

mod node;
mod pod;
mod policy;
mod service;

use std::fmt;

use serde_json::{Map, Value, json};

use super::object::Kind;
use crate::model::{Cluster, Endpoints, ObjectName};

/// Some objects of one kind.
#[derive(Debug)]
pub struct Page {
    /// Objects as JSON, one a line.
    pub text: String,
    /// The place of the first object of the next page; `None` behind the last one.
    pub next: Option<usize>,
}

/// Returns the objects of a kind from a place on, until they take `most` bytes; at least one where there is any.
pub fn page(cluster: &Cluster, kind: Kind, from: usize, most: usize) -> Page {
    let Cluster { services, endpoints, nodes, pods, namespaces, policies, cluster_policies, service_cidrs } = cluster;
    let rows = Rows { from, most };
    match kind {
        Kind::Service => rows.page(services.iter(), |(name, value)| service::service(name, value)),
        Kind::EndpointSlice => {
            let all = endpoints.iter().flat_map(|(service, endpoints)| {
                let Endpoints { slices } = &**endpoints;
                slices.iter().map(move |(name, slice)| (service, name, slice))
            });
            rows.page(all, |(service, name, slice)| service::slice(service, name, slice))
        }
        Kind::Node => rows.page(nodes.iter(), |(name, value)| node::node(name, value)),
        Kind::Pod => rows.page(pods.iter(), |(name, value)| pod::pod(name, value)),
        Kind::Namespace => rows.page(namespaces.iter(), |(name, value)| pod::namespace(name, value)),
        Kind::NetworkPolicy => rows.page(policies.iter(), |(name, value)| policy::network_policy(name, value)),
        Kind::ClusterNetworkPolicy => {
            rows.page(cluster_policies.iter(), |(name, value)| policy::cluster_policy(name, value))
        }
        Kind::ServiceCidr => rows.page(service_cidrs.iter(), |(name, value)| service::service_cidr(name, value)),
    }
}

/// The rows that are wanted.
struct Rows {
    from: usize,
    most: usize,
}

impl Rows {
    /// Makes objects of the rows of a page; of those before it none is made.
    fn page<T>(&self, rows: impl Iterator<Item = T>, object: impl Fn(T) -> Value) -> Page {
        let mut text = String::new();
        for (place, row) in rows.enumerate().skip(self.from) {
            if text.len() >= self.most {
                return Page { text, next: Some(place) };
            }
            text.push_str(&object(row).to_string());
            text.push('\n');
        }
        Page { text, next: None }
    }
}

/// An object of this kind with this metadata.
fn object(kind: Kind, metadata: Fields, rest: Fields) -> Value {
    let mut object = Fields::default();
    object.put("apiVersion", kind.api_version()).put("kind", kind.name()).put("metadata", metadata.value());
    object.0.extend(rest.0);
    object.value()
}

/// `metadata` of an object of a namespace.
fn named(name: &ObjectName) -> Fields {
    let mut metadata = Fields::default();
    metadata.put("namespace", name.namespace.as_str()).put("name", name.name.as_str());
    metadata
}

/// Fields of an object that is being made.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, key: &str, value: impl Into<Value>) -> &mut Fields {
        self.0.insert(key.to_owned(), value.into());
        self
    }

    /// Puts a value that may be absent.
    fn put_some(&mut self, key: &str, value: Option<impl Into<Value>>) -> &mut Fields {
        if let Some(value) = value {
            self.put(key, value);
        }
        self
    }

    /// Puts a list or an object unless it is empty.
    fn put_filled(&mut self, key: &str, value: Value) -> &mut Fields {
        let is_empty = match &value {
            Value::Array(all) => all.is_empty(),
            Value::Object(all) => all.is_empty(),
            _ => false,
        };
        if is_empty { self } else { self.put(key, value) }
    }

    fn value(self) -> Value {
        Value::Object(self.0)
    }
}

/// A list of things as they are written.
fn texts<T: fmt::Display>(all: impl IntoIterator<Item = T>) -> Value {
    all.into_iter().map(|one| Value::String(one.to_string())).collect()
}

/// A list of `{key: name}`.
fn names<'a>(key: &str, all: impl IntoIterator<Item = &'a str>) -> Value {
    all.into_iter().map(|name| json!({ key: name })).collect()
}

#[cfg(test)]
mod tests;
