//! An EndpointSlice, from the API's form to ours.
//!
//! Kubernetes: `discovery.k8s.io/v1` EndpointSlice.
//!
//! Absent for a node agent: slices of headless Services (label `service.kubernetes.io/headless`), slices of
//! address type FQDN, and slices that belong to no Service. The Service is named by the label
//! `kubernetes.io/service-name`, else by a single owner, else by `generateName`.
//!
//! Conditions that are absent mean what the API says they mean: a slice written by hand has none, and its
//! endpoints are ready. Hints count by what they name: a hint without a name is none.

mod protobuf;

use std::sync::Arc;

use compact_str::CompactString;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::address::unicast_address;
use super::metadata::{object_meta, object_name};
use super::number::Number;
use super::pool::Pool;
use super::service::protocol;
use crate::k8s::SliceOf;
use crate::k8s::warning::{Warning, Warnings};
use crate::model::{Conditions, Endpoint, EndpointList, EndpointPort, EndpointSlice, Hints, ObjectName};
use crate::net::Family;

/// Parses an EndpointSlice with the name of its Service; `None` where no node agent needs it.
pub fn endpoint_slice(object: &EndpointSliceObject, pool: &mut Pool) -> (ObjectName, Option<SliceOf>, Vec<Warning>) {
    let mut warnings = Warnings::default();
    let name = object_name(&object.metadata);
    let slice = slice_of(object, pool, &mut warnings);
    (name, slice, warnings.take())
}

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const HEADLESS: &str = "service.kubernetes.io/headless";

/// The fields of an EndpointSlice that are read.
#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSliceObject {
    #[serde(deserialize_with = "object_meta")]
    pub metadata: ObjectMeta,
    address_type: Option<String>,
    endpoints: Option<Vec<EndpointObject>>,
    ports: Option<Vec<Port>>,
}

#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
struct EndpointObject {
    addresses: Option<Vec<CompactString>>,
    conditions: Option<ConditionsObject>,
    node_name: Option<CompactString>,
    hints: Option<HintsObject>,
}

#[derive(Deserialize, Default, Clone, Debug)]
#[serde(rename_all = "camelCase")]
struct HintsObject {
    for_zones: Option<Vec<Named>>,
    for_nodes: Option<Vec<Named>>,
}

#[derive(Deserialize, Clone, Debug)]
struct Named {
    name: Option<CompactString>,
}

#[derive(Deserialize, Default, Clone, Copy, Debug)]
struct ConditionsObject {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Deserialize, Clone, Debug)]
struct Port {
    name: Option<CompactString>,
    protocol: Option<String>,
    port: Option<Number>,
}

fn slice_of(object: &EndpointSliceObject, pool: &mut Pool, warnings: &mut Warnings) -> Option<SliceOf> {
    let meta = &object.metadata;
    if meta.labels.as_ref().is_some_and(|labels| labels.contains_key(HEADLESS)) {
        return None;
    }
    if meta.name.as_deref().unwrap_or_default().is_empty() {
        warnings.odd("metadata.name", "absent; the slice is left out");
        return None;
    }
    let family = match object.address_type.as_deref() {
        Some("IPv4") => Family::V4,
        Some("IPv6") => Family::V6,
        Some("FQDN") => return None,
        other => {
            let written = other.unwrap_or("nothing");
            warnings.odd("addressType", format_args!("{written} is not known; the slice is left out"));
            return None;
        }
    };
    let Some(service) = service_name(meta) else {
        warnings.odd("metadata.labels", format_args!("{SERVICE_NAME} is absent; the slice is left out"));
        return None;
    };
    let ports = pool.endpoint_ports(ports(object, warnings));
    let endpoints = endpoints(object, family, pool, warnings);
    if ports.is_empty() && !endpoints.is_empty() {
        warnings.odd("ports", "none usable, so nothing can be sent to the endpoints of this slice");
    }
    Some(SliceOf { service, slice: Arc::new(EndpointSlice { family, ports, endpoints }) })
}

fn service_name(meta: &ObjectMeta) -> Option<CompactString> {
    let label = meta.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME)).map(String::as_str);
    let owner = match meta.owner_references.as_deref() {
        Some([only]) => Some(only.name.as_str()),
        _ => None,
    };
    let generated = meta.generate_name.as_deref().map(|name| name.trim_end_matches('-'));
    [label, owner, generated].into_iter().flatten().find(|name| !name.is_empty()).map(CompactString::from)
}

fn ports(object: &EndpointSliceObject, warnings: &mut Warnings) -> Vec<EndpointPort> {
    let mut ports: Vec<EndpointPort> = Vec::new();
    for (index, entry) in object.ports.iter().flatten().enumerate() {
        let field = |name: &str| format!("ports[{index}].{name}");
        let Some(port) = entry.port.as_ref().and_then(Number::port) else {
            let written = entry.port.as_ref().map_or_else(|| "nothing".to_owned(), Number::to_string);
            warnings.odd(field("port"), format_args!("{written} is not a port; this port is left out"));
            continue;
        };
        let Some(protocol) = protocol(entry.protocol.as_deref()) else {
            let written = entry.protocol.as_deref().unwrap_or_default();
            warnings.odd(field("protocol"), format_args!("{written:?} is not known; this port is left out"));
            continue;
        };
        let name = entry.name.clone().unwrap_or_default();
        if let Some(earlier) = ports.iter().find(|earlier| earlier.name == name && earlier.protocol == protocol) {
            if earlier.port != port {
                warnings.odd(field("name"), format_args!("{name:?} stands there twice; the first one counts"));
            }
            continue;
        }
        ports.push(EndpointPort { name, protocol, port });
    }
    ports
}

fn endpoints(object: &EndpointSliceObject, family: Family, pool: &mut Pool, warnings: &mut Warnings) -> EndpointList {
    let mut endpoints = Vec::with_capacity(object.endpoints.as_ref().map_or(0, Vec::len));
    for (index, entry) in object.endpoints.iter().flatten().enumerate() {
        let field = || format!("endpoints[{index}].addresses");
        let Some(text) = entry.addresses.as_ref().and_then(|addresses| addresses.first()) else {
            warnings.odd(field(), "empty; the endpoint is left out");
            continue;
        };
        match unicast_address(text) {
            Ok(address) if Family::from(address) == family => endpoints.push(Endpoint {
                address,
                node: entry.node_name.as_deref().filter(|name| !name.is_empty()).map(|name| pool.node(name)),
                conditions: conditions(entry.conditions.unwrap_or_default()),
                hints: entry.hints.as_ref().and_then(|written| hints(written, index, pool, warnings)),
            }),
            Ok(address) => {
                warnings.odd(field(), format_args!("{address} is not an {family} address; the endpoint is left out"));
            }
            Err(why) => warnings.odd(field(), format_args!("{why}; the endpoint is left out")),
        }
    }
    endpoints.into()
}

fn conditions(written: ConditionsObject) -> Conditions {
    let ready = written.ready.unwrap_or(true);
    Conditions { ready, serving: written.serving.unwrap_or(true), terminating: written.terminating.unwrap_or(false) }
}

fn hints(written: &HintsObject, index: usize, pool: &mut Pool, warnings: &mut Warnings) -> Option<Arc<Hints>> {
    let mut names = |list: &Option<Vec<Named>>, field: &str| -> Box<[CompactString]> {
        let names = list.iter().flatten().map(|entry| entry.name.clone().unwrap_or_default());
        let (named, nameless): (Vec<_>, Vec<_>) = names.partition(|name| !name.is_empty());
        if !nameless.is_empty() {
            warnings.odd(format!("endpoints[{index}].hints.{field}"), "a hint has no name; it is left out");
        }
        named.into_boxed_slice()
    };
    let hints = Hints { zones: names(&written.for_zones, "forZones"), nodes: names(&written.for_nodes, "forNodes") };
    (hints != Hints::default()).then(|| pool.hints(hints))
}

#[cfg(test)]
mod tests;
