//! A Service, from the API's form to ours.
//!
//! Kubernetes: core/v1 Service, `spec` and `status.loadBalancer`.
//!
//! Absent for a node agent: headless Services (`clusterIP: None`, or the label
//! `service.kubernetes.io/headless`), type ExternalName, and Services whose label
//! `service.kubernetes.io/service-proxy-name` names another proxy.
//!
//! Addresses under `status.loadBalancer` count only for type LoadBalancer: whoever may write the status of
//! another Service must not be given an address by it.

mod protobuf;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::address::{unicast_address, unicast_addresses};
use super::metadata::{object_meta, object_name};
use super::number::Number;
use crate::k8s::annotations::{SERVICE_SOURCE_RANGES, announce_annotations, proxy_annotations};
use crate::k8s::warning::{Warning, Warnings};
use crate::model::{LoadBalancerAddress, ObjectName, Service, ServicePort, ServiceType, TrafficPolicy};
use crate::net::Protocol;

/// Parses a Service; `None` where no node agent serves it.
pub fn service(object: &ServiceObject) -> (ObjectName, Option<Service>, Vec<Warning>) {
    let mut warnings = Warnings::default();
    let name = object_name(&object.metadata);
    let service = if is_ours(object) { served(object, &mut warnings) } else { None };
    (name, service, warnings.take())
}

/// The label that hands a Service to one proxy, and the name under which this program serves.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
const OUR_PROXY_NAME: &str = "kube-router";
const HEADLESS: &str = "service.kubernetes.io/headless";

/// `sessionAffinityConfig.clientIP.timeoutSeconds` where absent: three hours, as in the API.
const AFFINITY_SECONDS: u32 = 10_800;
const AFFINITY_SECONDS_MAX: i64 = 86_400;

/// The fields of a Service that are read.
#[derive(Deserialize, Clone, Debug)]
pub struct ServiceObject {
    #[serde(deserialize_with = "object_meta")]
    pub metadata: ObjectMeta,
    spec: Option<Spec>,
    status: Option<Status>,
}

#[derive(Deserialize, Default, Clone, Debug)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    #[serde(rename = "externalIPs")]
    external_ips: Option<Vec<String>>,
    load_balancer_source_ranges: Option<Vec<String>>,
    ports: Option<Vec<Port>>,
    session_affinity: Option<String>,
    session_affinity_config: Option<AffinityConfig>,
    internal_traffic_policy: Option<String>,
    external_traffic_policy: Option<String>,
    health_check_node_port: Option<Number>,
}

#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
struct Port {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<Number>,
    node_port: Option<Number>,
}

#[derive(Deserialize, Clone, Debug)]
struct AffinityConfig {
    #[serde(rename = "clientIP")]
    client_ip: Option<ClientIpConfig>,
}

#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
struct ClientIpConfig {
    timeout_seconds: Option<Number>,
}

#[derive(Deserialize, Default, Clone, Debug)]
#[serde(rename_all = "camelCase")]
struct Status {
    load_balancer: Option<LoadBalancer>,
}

#[derive(Deserialize, Default, Clone, Debug)]
struct LoadBalancer {
    ingress: Option<Vec<Ingress>>,
}

#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
struct Ingress {
    ip: Option<String>,
    ip_mode: Option<String>,
}

fn is_ours(object: &ServiceObject) -> bool {
    let Some(labels) = &object.metadata.labels else { return true };
    !labels.contains_key(HEADLESS) && labels.get(PROXY_NAME).is_none_or(|proxy| proxy == OUR_PROXY_NAME)
}

fn served(object: &ServiceObject, warnings: &mut Warnings) -> Option<Service> {
    let absent = Spec::default();
    let spec = object.spec.as_ref().unwrap_or(&absent);
    if object.metadata.name.as_deref().unwrap_or_default().is_empty() {
        warnings.odd("metadata.name", "absent; the object is left out");
        return None;
    }
    let kind = service_type(spec, warnings)?;
    let written = || spec.cluster_ip.iter().chain(spec.cluster_ips.iter().flatten()).map(String::as_str);
    if written().any(|address| address.eq_ignore_ascii_case("None")) {
        return None;
    }
    let cluster_ips = unicast_addresses("spec.clusterIPs", written().filter(|text| !text.is_empty()), warnings);
    if cluster_ips.is_empty() {
        warnings.odd(
            "spec.clusterIP",
            "no usable address, so the Service is left out; an API server allocates one, a manifest must name it",
        );
        return None;
    }
    let annotations = object.metadata.annotations.as_ref();
    Some(Service {
        kind,
        cluster_ips,
        external_ips: unicast_addresses(
            "spec.externalIPs",
            spec.external_ips.iter().flatten().map(String::as_str),
            warnings,
        ),
        load_balancer: load_balancer(object, kind, warnings),
        source_ranges: source_ranges(object, spec, kind, warnings),
        ports: ports(spec, kind, warnings).into(),
        affinity_seconds: affinity_seconds(spec, warnings),
        internal_traffic_policy: policy("spec.internalTrafficPolicy", &spec.internal_traffic_policy, warnings),
        external_traffic_policy: policy("spec.externalTrafficPolicy", &spec.external_traffic_policy, warnings),
        health_check_node_port: health_check_node_port(spec, warnings),
        annotations: annotations.map(|all| proxy_annotations(all, warnings)).unwrap_or_default(),
        announce: annotations.map(|all| announce_annotations(all, warnings)).unwrap_or_default(),
        created: object.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
    })
}

/// `None` for ExternalName, which is an alias in DNS and nothing to a node.
fn service_type(spec: &Spec, warnings: &mut Warnings) -> Option<ServiceType> {
    match spec.kind.as_deref().unwrap_or_default() {
        "" | "ClusterIP" => Some(ServiceType::ClusterIp),
        "NodePort" => Some(ServiceType::NodePort),
        "LoadBalancer" => Some(ServiceType::LoadBalancer),
        "ExternalName" => None,
        other => {
            warnings.odd("spec.type", format_args!("{other:?} is not known; it is taken for ClusterIP"));
            Some(ServiceType::ClusterIp)
        }
    }
}

fn ports(spec: &Spec, kind: ServiceType, warnings: &mut Warnings) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::new();
    for (index, entry) in spec.ports.iter().flatten().enumerate() {
        let field = |name: &str| format!("spec.ports[{index}].{name}");
        let Some(number) = entry.port.as_ref().and_then(Number::port) else {
            let written = entry.port.as_ref().map_or_else(|| "nothing".to_owned(), Number::to_string);
            warnings.odd(field("port"), format_args!("{written} is not a port; this port is left out"));
            continue;
        };
        let Some(protocol) = protocol(entry.protocol.as_deref()) else {
            let written = entry.protocol.as_deref().unwrap_or_default();
            warnings.odd(field("protocol"), format_args!("{written:?} is not known; this port is left out"));
            continue;
        };
        let name = entry.name.as_deref().unwrap_or_default();
        if ports.iter().any(|earlier| earlier.port == number && earlier.protocol == protocol) {
            warnings.odd(field("port"), format_args!("{protocol} {number} stands there twice; the first one counts"));
            continue;
        }
        if ports.iter().any(|earlier| earlier.name == name) {
            warnings.odd(field("name"), format_args!("{name:?} stands there twice; the first one counts"));
            continue;
        }
        let mut node_port = node_port(entry, kind, &field("nodePort"), warnings);
        if node_port.is_some_and(|it| ports.iter().any(|p| p.node_port == Some(it) && p.protocol == protocol)) {
            warnings.odd(field("nodePort"), "stands there twice for one protocol; the first one counts");
            node_port = None;
        }
        ports.push(ServicePort { name: name.into(), protocol, port: number, node_port });
    }
    ports
}

fn node_port(entry: &Port, kind: ServiceType, field: &str, warnings: &mut Warnings) -> Option<u16> {
    let written = entry.node_port.as_ref().filter(|number| !number.is_zero())?;
    if kind == ServiceType::ClusterIp {
        warnings.odd(field.to_owned(), "a Service of type ClusterIP has no node ports; it is ignored");
        return None;
    }
    let port = written.port();
    if port.is_none() {
        warnings.odd(field.to_owned(), format_args!("{written} is not a port; it is ignored"));
    }
    port
}

/// The protocol of a port; TCP where absent, `None` where not known.
pub(super) fn protocol(written: Option<&str>) -> Option<Protocol> {
    written.filter(|text| !text.is_empty()).map_or(Some(Protocol::Tcp), Protocol::from_api)
}

fn load_balancer(object: &ServiceObject, kind: ServiceType, warnings: &mut Warnings) -> Vec<LoadBalancerAddress> {
    let mut addresses: Vec<LoadBalancerAddress> = Vec::new();
    if kind != ServiceType::LoadBalancer {
        return addresses;
    }
    let balancer = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    for entry in balancer.and_then(|balancer| balancer.ingress.as_ref()).into_iter().flatten() {
        let Some(text) = entry.ip.as_deref().filter(|text| !text.is_empty()) else { continue };
        let address = match unicast_address(text) {
            Ok(address) => address,
            Err(why) => {
                warnings.odd("status.loadBalancer.ingress[].ip", format_args!("{why}; it is left out"));
                continue;
            }
        };
        if addresses.iter().any(|earlier| earlier.address == address) {
            continue;
        }
        // A mode that is not known is not ours to serve: that is how the API wants new modes treated.
        let through_balancer = match entry.ip_mode.as_deref().unwrap_or("VIP") {
            "VIP" | "" => false,
            "Proxy" => true,
            other => {
                let text = format_args!("{other:?} is not known; {address} is left to the load balancer");
                warnings.odd("status.loadBalancer.ingress[].ipMode", text);
                true
            }
        };
        addresses.push(LoadBalancerAddress { address, through_balancer });
    }
    addresses
}

/// The ranges of the spec win over those of the annotation. A list in which nothing makes sense lets nobody in.
fn source_ranges(
    object: &ServiceObject,
    spec: &Spec,
    kind: ServiceType,
    warnings: &mut Warnings,
) -> Option<Box<[IpNet]>> {
    if kind != ServiceType::LoadBalancer {
        return None;
    }
    let of_spec = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    let annotation = object.metadata.annotations.as_ref().and_then(|all| all.get(SERVICE_SOURCE_RANGES));
    let (field, written): (_, Vec<&str>) = match annotation {
        _ if !of_spec.is_empty() => {
            ("spec.loadBalancerSourceRanges", of_spec.iter().map(|range| range.trim()).collect())
        }
        Some(list) if !list.trim().is_empty() => (SERVICE_SOURCE_RANGES, list.split(',').map(str::trim).collect()),
        _ => return None,
    };
    let mut ranges = Vec::new();
    for text in written {
        match text.parse::<IpNet>() {
            Ok(range) => ranges.push(range.trunc()),
            Err(_) => warnings.odd(field, format_args!("{text:?} is not a CIDR; no client is let in for it")),
        }
    }
    ranges.sort();
    ranges.dedup();
    Some(ranges.into())
}

fn affinity_seconds(spec: &Spec, warnings: &mut Warnings) -> Option<u32> {
    match spec.session_affinity.as_deref().unwrap_or_default() {
        "ClientIP" => {}
        "" | "None" => return None,
        other => {
            warnings.odd("spec.sessionAffinity", format_args!("{other:?} is not known; there is no affinity"));
            return None;
        }
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let Some(written) = config.and_then(|config| config.timeout_seconds.as_ref()) else {
        return Some(AFFINITY_SECONDS);
    };
    match written {
        Number::Is(seconds @ 1..=AFFINITY_SECONDS_MAX) => u32::try_from(*seconds).ok(),
        _ => {
            let text = format_args!("{written} is not in 1..{AFFINITY_SECONDS_MAX}; {AFFINITY_SECONDS} is used");
            warnings.odd("spec.sessionAffinityConfig.clientIP.timeoutSeconds", text);
            Some(AFFINITY_SECONDS)
        }
    }
}

fn policy(field: &'static str, written: &Option<String>, warnings: &mut Warnings) -> TrafficPolicy {
    match written.as_deref().unwrap_or_default() {
        "Local" => TrafficPolicy::Local,
        "" | "Cluster" => TrafficPolicy::Cluster,
        other => {
            warnings.odd(field, format_args!("{other:?} is not known; it is taken for Cluster"));
            TrafficPolicy::Cluster
        }
    }
}

fn health_check_node_port(spec: &Spec, warnings: &mut Warnings) -> Option<u16> {
    let written = spec.health_check_node_port.as_ref().filter(|number| !number.is_zero())?;
    let port = written.port();
    if port.is_none() {
        warnings.odd("spec.healthCheckNodePort", format_args!("{written} is not a port; it is ignored"));
    }
    port
}

#[cfg(test)]
mod tests;
