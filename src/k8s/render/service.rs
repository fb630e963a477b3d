//! Services, their endpoints and the ranges of their addresses.

use compact_str::CompactString;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::{Fields, named, names, object, texts};
use crate::k8s::annotations::SERVICE_SOURCE_RANGES;
use crate::k8s::annotations::keys::{
    SERVICE_ADVERTISE_CLUSTER_IP, SERVICE_ADVERTISE_EXTERNAL_IP, SERVICE_ADVERTISE_LOAD_BALANCER_IP, SERVICE_DSR,
    SERVICE_LOCAL, SERVICE_SCHEDFLAGS, SERVICE_SCHEDULER, SERVICE_SKIP_LB_IPS,
};
use crate::k8s::object::Kind;
use crate::model::{
    AnnounceAnnotations, Conditions, EndpointPort, EndpointSlice, Hints, Listed, LoadBalancerAddress, ObjectName,
    ProxyAnnotations, Scheduler, SchedulerFlags, Service, ServiceCidr, ServicePort, ServiceType, TrafficPolicy,
};
use crate::net::Family;

pub(super) fn service(name: &ObjectName, service: &Service) -> Value {
    let Service {
        kind,
        cluster_ips,
        external_ips,
        load_balancer,
        source_ranges,
        ports,
        affinity_seconds,
        internal_traffic_policy,
        external_traffic_policy,
        health_check_node_port,
        annotations,
        announce,
        created,
    } = service;
    let (mut metadata, mut spec, mut rest) = (named(name), Fields::default(), Fields::default());
    let mut written = annotations_of(annotations, announce);
    match source_ranges.as_deref() {
        // Ranges of which none is understood: nobody is a client.
        Some([]) => drop(written.put(SERVICE_SOURCE_RANGES, "none")),
        Some(ranges) => drop(spec.put("loadBalancerSourceRanges", texts(ranges))),
        None => {}
    }
    metadata.put_filled("annotations", written.value());
    if *created != 0 {
        metadata.put_some("creationTimestamp", Timestamp::from_second(*created).ok().map(|time| time.to_string()));
    }
    spec.put("type", type_name(*kind))
        .put("clusterIPs", texts(cluster_ips))
        .put_filled("externalIPs", texts(external_ips))
        .put("ports", ports.iter().map(port).collect::<Value>())
        .put("internalTrafficPolicy", policy_name(*internal_traffic_policy))
        .put("externalTrafficPolicy", policy_name(*external_traffic_policy))
        .put_some("healthCheckNodePort", *health_check_node_port);
    if let Some(seconds) = affinity_seconds {
        spec.put("sessionAffinity", "ClientIP");
        spec.put("sessionAffinityConfig", json!({ "clientIP": { "timeoutSeconds": seconds } }));
    }
    rest.put("spec", spec.value());
    if !load_balancer.is_empty() {
        let ingress: Value = load_balancer.iter().map(ingress).collect();
        rest.put("status", json!({ "loadBalancer": { "ingress": ingress } }));
    }
    object(Kind::Service, metadata, rest)
}

fn type_name(kind: ServiceType) -> &'static str {
    match kind {
        ServiceType::ClusterIp => "ClusterIP",
        ServiceType::NodePort => "NodePort",
        ServiceType::LoadBalancer => "LoadBalancer",
    }
}

fn policy_name(policy: TrafficPolicy) -> &'static str {
    match policy {
        TrafficPolicy::Cluster => "Cluster",
        TrafficPolicy::Local => "Local",
    }
}

fn port(port: &ServicePort) -> Value {
    let ServicePort { name, protocol, port, node_port } = port;
    let mut fields = Fields::default();
    fields.put("name", name.as_str()).put("protocol", protocol.api_name()).put("port", *port);
    fields.put_some("nodePort", *node_port);
    fields.value()
}

fn ingress(entry: &LoadBalancerAddress) -> Value {
    let LoadBalancerAddress { address, through_balancer } = entry;
    json!({ "ip": address, "ipMode": if *through_balancer { "Proxy" } else { "VIP" } })
}

fn annotations_of(proxy: &ProxyAnnotations, announce: &AnnounceAnnotations) -> Fields {
    let ProxyAnnotations { scheduler, scheduler_flags, local, skip_load_balancer_ips, dsr } = proxy;
    let AnnounceAnnotations { cluster_ips, external_ips, load_balancer_ips } = announce;
    let SchedulerFlags { flag_1, flag_2, flag_3 } = scheduler_flags;
    let mut written = Fields::default();
    if *scheduler != Scheduler::default() {
        written.put(SERVICE_SCHEDULER, scheduler.name());
    }
    let flags = [(*flag_1, "flag-1"), (*flag_2, "flag-2"), (*flag_3, "flag-3")];
    let flags: Vec<&str> = flags.into_iter().filter(|(is_set, _)| *is_set).map(|(_, name)| name).collect();
    if !flags.is_empty() {
        written.put(SERVICE_SCHEDFLAGS, flags.join(","));
    }
    for (is_set, key, value) in [
        (*local, SERVICE_LOCAL, "true"),
        (*skip_load_balancer_ips, SERVICE_SKIP_LB_IPS, ""),
        (*dsr, SERVICE_DSR, "tunnel"),
    ] {
        written.put_some(key, is_set.then_some(value));
    }
    for (said, key) in [
        (cluster_ips, SERVICE_ADVERTISE_CLUSTER_IP),
        (external_ips, SERVICE_ADVERTISE_EXTERNAL_IP),
        (load_balancer_ips, SERVICE_ADVERTISE_LOAD_BALANCER_IP),
    ] {
        written.put_some(key, said.map(|said| said.to_string()));
    }
    written
}

pub(super) fn slice(service: &ObjectName, name: &CompactString, slice: &EndpointSlice) -> Value {
    let EndpointSlice { family, ports, endpoints } = slice;
    let mut metadata = Fields::default();
    metadata.put("namespace", service.namespace.as_str()).put("name", name.as_str());
    metadata.put("labels", json!({ "kubernetes.io/service-name": service.name.as_str() }));
    let mut rest = Fields::default();
    rest.put(
        "addressType",
        match family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        },
    );
    rest.put("ports", ports.iter().map(endpoint_port).collect::<Value>());
    rest.put("endpoints", endpoints.listed().map(endpoint).collect::<Value>());
    object(Kind::EndpointSlice, metadata, rest)
}

fn endpoint_port(port: &EndpointPort) -> Value {
    let EndpointPort { name, protocol, port } = port;
    json!({ "name": name.as_str(), "protocol": protocol.api_name(), "port": port })
}

fn endpoint(endpoint: Listed<'_>) -> Value {
    let Listed { address, node, conditions: Conditions { ready, serving, terminating }, hints } = endpoint;
    let mut fields = Fields::default();
    fields.put("addresses", texts([address]));
    fields.put("conditions", json!({ "ready": ready, "serving": serving, "terminating": terminating }));
    fields.put_some("nodeName", node.map(|node| node.to_string()));
    if let Some(hints) = hints {
        let Hints { zones, nodes } = &**hints;
        let mut written = Fields::default();
        written.put_filled("forZones", names("name", zones.iter().map(CompactString::as_str)));
        written.put_filled("forNodes", names("name", nodes.iter().map(CompactString::as_str)));
        fields.put("hints", written.value());
    }
    fields.value()
}

pub(super) fn service_cidr(name: &CompactString, of: &ServiceCidr) -> Value {
    let ServiceCidr { ranges } = of;
    let (mut metadata, mut rest) = (Fields::default(), Fields::default());
    metadata.put("name", name.as_str());
    rest.put("spec", json!({ "cidrs": texts(ranges) }));
    object(Kind::ServiceCidr, metadata, rest)
}
