//! A Pod, from the API's form to ours.
//!
//! Kubernetes: core/v1 Pod. Read are name, UID and labels; `spec.nodeName`, `spec.hostNetwork`, the named ports of
//! `spec.containers` and of those `spec.initContainers` that go on running (`restartPolicy: Always`, sidecars);
//! `status.phase`, `status.podIP`, `status.podIPs`.
//!
//! A large cluster has many pods and a pod's status changes often, so everything else is skipped in the pass that reads
//! it, and what many pods have in common is in memory once. A pod of which nothing changed that is read is equal to its
//! predecessor and no change to anybody.
//!
//! A pod that is not scheduled, has no address or has finished is a value too: `model::Pod` says what follows from it.

mod protobuf;

use std::net::IpAddr;

use compact_str::CompactString;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::metadata::{labelled_meta, object_name};
use super::number::Number;
use super::pool::Pool;
use super::service::protocol;
use crate::k8s::warning::{Warning, Warnings};
use crate::model::{NamedPort, ObjectName, Pod, PodAddresses, PodUid};

/// Parses a Pod.
pub fn pod(object: &PodObject, pool: &mut Pool) -> (ObjectName, Option<Pod>, Vec<Warning>) {
    let mut warnings = Warnings::default();
    let name = object_name(&object.metadata);
    if name.name.is_empty() {
        warnings.odd("metadata.name", "absent; the object is left out");
        return (name, None, warnings.take());
    }
    let (no_spec, no_status) = (Spec::default(), Status::default());
    let spec = object.spec.as_ref().unwrap_or(&no_spec);
    let status = object.status.as_ref().unwrap_or(&no_status);
    let pod = Pod {
        uid: object.metadata.uid.as_deref().and_then(PodUid::of),
        labels: pool.labels(object.metadata.labels.iter().flatten().collect()),
        addresses: addresses(status, &mut warnings),
        node: spec.node_name.as_deref().filter(|name| !name.is_empty()).map(|name| pool.node(name)),
        host_network: spec.host_network.unwrap_or(false),
        finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
        ports: pool.ports(&named_ports(spec, &mut warnings)),
    };
    (name, Some(pod), warnings.take())
}

/// The fields of a Pod that are read.
#[derive(Deserialize, Clone, Debug)]
pub struct PodObject {
    #[serde(deserialize_with = "labelled_meta")]
    pub metadata: ObjectMeta,
    spec: Option<Spec>,
    status: Option<Status>,
}

#[derive(Deserialize, Default, Clone, Debug)]
#[serde(rename_all = "camelCase")]
struct Spec {
    node_name: Option<CompactString>,
    host_network: Option<bool>,
    containers: Option<Vec<Container>>,
    init_containers: Option<Vec<Container>>,
}

#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
struct Container {
    restart_policy: Option<CompactString>,
    ports: Option<Vec<Port>>,
}

#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
struct Port {
    name: Option<CompactString>,
    protocol: Option<CompactString>,
    container_port: Option<Number>,
}

#[derive(Deserialize, Default, Clone, Debug)]
struct Status {
    phase: Option<CompactString>,
    #[serde(rename = "podIP")]
    pod_ip: Option<CompactString>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIp>>,
}

#[derive(Deserialize, Clone, Debug)]
struct PodIp {
    ip: Option<CompactString>,
}

fn addresses(status: &Status, warnings: &mut Warnings) -> PodAddresses {
    let further = status.pod_ips.iter().flatten().filter_map(|entry| entry.ip.as_deref());
    let mut addresses = Vec::with_capacity(2);
    for text in status.pod_ip.as_deref().into_iter().chain(further).filter(|text| !text.is_empty()) {
        match pod_address(text) {
            Some(address) if addresses.contains(&address) => {}
            Some(address) => addresses.push(address),
            None => warnings.odd("status.podIPs", format_args!("{text:?} is not a pod's address; it is left out")),
        }
    }
    addresses.into()
}

/// Unlike an endpoint a pod may have a link-local address: leaving it out would leave the pod without protection.
fn pod_address(text: &str) -> Option<IpAddr> {
    let address = text.trim().parse::<IpAddr>().ok()?.to_canonical();
    (!address.is_unspecified() && !address.is_loopback() && !address.is_multicast()).then_some(address)
}

fn named_ports(spec: &Spec, warnings: &mut Warnings) -> Vec<NamedPort> {
    let stays = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.init_containers.iter().flatten().filter(stays);
    let mut ports = Vec::new();
    for entry in spec.containers.iter().flatten().chain(sidecars).flat_map(|container| container.ports.iter().flatten())
    {
        let Some(name) = entry.name.as_ref().filter(|name| !name.is_empty()) else { continue };
        let field = "spec.containers[].ports[]";
        let Some(number) = entry.container_port.as_ref().and_then(Number::port) else {
            let written = entry.container_port.as_ref().map_or_else(|| "nothing".to_owned(), Number::to_string);
            warnings.odd(field, format_args!("{name}: {written} is not a port; this port is left out"));
            continue;
        };
        let Some(protocol) = protocol(entry.protocol.as_deref()) else {
            let written = entry.protocol.as_deref().unwrap_or_default();
            warnings.odd(field, format_args!("{name}: {written:?} is not a protocol; this port is left out"));
            continue;
        };
        ports.push(NamedPort { name: name.clone(), protocol, number });
    }
    ports.sort();
    ports.dedup();
    ports
}

#[cfg(test)]
mod tests;
