//! A Node, from the API's form to ours.
//!
//! Kubernetes: core/v1 Node, `metadata.creationTimestamp`, `status.addresses`, `status.conditions` (whether the network is unavailable, whether the node is ready), `spec.podCIDR`, `spec.podCIDRs`, the two annotations
//! that win over the spec, the one with addresses for routing, `spec.providerID`, the labels, and those about BGP. A Node changes every few seconds (its status carries heartbeats and images);
//! none of that is read, so it is equal to its predecessor and no change to anybody.

mod protobuf;

use std::collections::BTreeMap;
use std::net::IpAddr;

use compact_str::CompactString;
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::address::unicast_address;
use super::metadata::object_meta;
use crate::k8s::annotations::keys::NODE_ADDRESS;
use crate::k8s::annotations::keys::{NODE_POD_CIDR, NODE_POD_CIDRS};
use crate::k8s::annotations::{self, routing};
use crate::k8s::warning::{Warning, Warnings};
use crate::model::{Node, NodeAddress, NodeAddressKind, Routing, Taint};
use crate::net::{Family, PerFamily};

/// Words of a kubelet on a host that shuts down, in the message of the condition `Ready`.
pub const SHUTTING_DOWN: &str = "node is shutting down";

/// Parses a Node.
pub fn node(object: &NodeObject) -> (CompactString, Option<Node>, Vec<Warning>) {
    let mut warnings = Warnings::default();
    let name = CompactString::from(object.metadata.name.as_deref().unwrap_or_default());
    if name.is_empty() {
        warnings.odd("metadata.name", "absent; the object is left out");
        return (name, None, warnings.take());
    }
    let none = BTreeMap::new();
    let annotations = object.metadata.annotations.as_ref().unwrap_or(&none);
    let (pod_cidrs, spec_pod_cidrs) = pod_cidrs(object, &mut warnings);
    let mut node = Node {
        created: object.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        addresses: addresses(object, &mut warnings),
        pod_cidrs,
        spec_pod_cidrs,
        network_unavailable: network_unavailable(object),
        should_announce: should_announce(object),
        is_shutting_down: is_shutting_down(object),
        ec2_instance: ec2_instance(object),
        zone: zone(object),
        labels: object.metadata.labels.iter().flatten().collect(),
        taints: taints(object),
        wireguard_key: annotations::wireguard_key(annotations, &mut warnings),
        wireguard_next_key: annotations::wireguard_next_key(annotations, &mut warnings),
        routing: Some(Box::new(routing(annotations, &mut warnings))).filter(|routing| **routing != Routing::default()),
    };
    node.set_detected(detected(annotations, &mut warnings));
    (name, Some(node), warnings.take())
}

/// The fields of a Node that are read.
#[derive(Deserialize, Clone, Debug)]
pub struct NodeObject {
    #[serde(deserialize_with = "object_meta")]
    pub metadata: ObjectMeta,
    spec: Option<Spec>,
    status: Option<Status>,
}

#[derive(Deserialize, Clone, Debug)]
struct Spec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
    #[serde(rename = "providerID")]
    provider_id: Option<String>,
    taints: Option<Vec<TaintObject>>,
}

#[derive(Deserialize, Clone, Debug)]
struct TaintObject {
    key: Option<String>,
    value: Option<String>,
    effect: Option<String>,
}

#[derive(Deserialize, Clone, Debug)]
struct Status {
    addresses: Option<Vec<Address>>,
    conditions: Option<Vec<Condition>>,
}

#[derive(Deserialize, Clone, Debug)]
struct Condition {
    #[serde(rename = "type")]
    kind: Option<String>,
    status: Option<String>,
    message: Option<String>,
}

#[derive(Deserialize, Clone, Debug)]
struct Address {
    #[serde(rename = "type")]
    kind: Option<String>,
    address: Option<String>,
}

fn addresses(object: &NodeObject, warnings: &mut Warnings) -> Vec<NodeAddress> {
    let mut addresses = Vec::new();
    let written = object.status.as_ref().and_then(|status| status.addresses.as_ref());
    for entry in written.into_iter().flatten() {
        let kind = match entry.kind.as_deref() {
            Some("InternalIP") => NodeAddressKind::Internal,
            Some("ExternalIP") => NodeAddressKind::External,
            _ => continue,
        };
        match unicast_address(entry.address.as_deref().unwrap_or_default()) {
            Ok(address) => {
                let address = NodeAddress { kind, address };
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            Err(why) => warnings.odd("status.addresses", format_args!("{why}; it is left out")),
        }
    }
    addresses.shrink_to_fit();
    addresses
}

/// Returns the addresses that the node's agent has found, of which the same is asked as of those in its status.
fn detected(annotations: &BTreeMap<String, String>, warnings: &mut Warnings) -> PerFamily<Option<IpAddr>> {
    let mut found: PerFamily<Option<IpAddr>> = PerFamily::default();
    let written = annotations.get(NODE_ADDRESS).into_iter().flat_map(|list| list.split(','));
    for text in written.map(str::trim).filter(|text| !text.is_empty()) {
        match unicast_address(text) {
            Ok(address) => {
                let family = Family::from(address);
                let first = found.of_mut(family).get_or_insert(address);
                if *first != address {
                    warnings.odd(NODE_ADDRESS, format_args!("{address} is a second {family} address; it is left out"));
                }
            }
            Err(why) => warnings.odd(NODE_ADDRESS, format_args!("{why}; it is left out")),
        }
    }
    found
}

fn network_unavailable(object: &NodeObject) -> bool {
    has_condition(object, "NetworkUnavailable", |status| matches!(status, "True" | "Unknown"))
}

fn should_announce(object: &NodeObject) -> bool {
    let is_other = |labels: &BTreeMap<String, String>| labels.get(SYSTEM).is_some_and(|system| system != "linux");
    has_condition(object, "Ready", |status| status == "True") && !object.metadata.labels.as_ref().is_some_and(is_other)
}

/// The kubelet (`shutdownGracePeriod`) is told by systemd-logind, and says so to the API server at once: in the message of the condition `Ready`, beside
/// what else may be wrong, and nowhere else.
fn is_shutting_down(object: &NodeObject) -> bool {
    let is_not_ready = |condition: &&Condition| condition.status.as_deref() == Some("False");
    let ready = conditions(object, "Ready").find(is_not_ready);
    ready.and_then(|condition| condition.message.as_deref()).is_some_and(|message| message.contains(SHUTTING_DOWN))
}

/// Returns whether a condition of this type is there and has a status that fits.
fn has_condition(object: &NodeObject, kind: &str, fits: impl Fn(&str) -> bool) -> bool {
    conditions(object, kind).any(|condition| condition.status.as_deref().is_some_and(&fits))
}

/// Returns the conditions of a type, of which there is one at most.
fn conditions<'a>(object: &'a NodeObject, kind: &str) -> impl Iterator<Item = &'a Condition> {
    let conditions = object.status.iter().flat_map(|status| &status.conditions).flatten();
    conditions.filter(move |condition| condition.kind.as_deref() == Some(kind))
}

/// The last part of `aws:///eu-central-1a/i-0123456789abcdef0`. Machines of other kinds that AWS has (Fargate) have other names there.
fn ec2_instance(object: &NodeObject) -> Option<Box<str>> {
    let provider = object.spec.as_ref()?.provider_id.as_deref()?.strip_prefix("aws://")?;
    let name = provider.rsplit('/').next()?;
    let digits = name.strip_prefix("i-")?;
    let is_id = (8..=32).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then(|| name.into())
}

fn zone(object: &NodeObject) -> Option<CompactString> {
    let label = object.metadata.labels.as_ref()?.get(ZONE)?;
    Some(CompactString::from(label.as_str())).filter(|zone| !zone.is_empty())
}

/// A taint without a key is none.
fn taints(object: &NodeObject) -> Vec<Taint> {
    let written = object.spec.iter().flat_map(|spec| &spec.taints).flatten();
    let taint = |one: &TaintObject| {
        let text = |field: &Option<String>| CompactString::from(field.as_deref().unwrap_or_default());
        let (key, value, effect) = (text(&one.key), text(&one.value), text(&one.effect));
        (!key.is_empty()).then_some(Taint { key, value, effect })
    };
    let mut taints: Vec<Taint> = written.filter_map(taint).collect();
    taints.shrink_to_fit();
    taints
}

const ZONE: &str = "topology.kubernetes.io/zone";
const SYSTEM: &str = "kubernetes.io/os";

/// Returns the ranges that count, and those of the spec where they are others.
fn pod_cidrs(object: &NodeObject, warnings: &mut Warnings) -> (Vec<IpNet>, Option<Box<[IpNet]>>) {
    let none = BTreeMap::new();
    let annotations = object.metadata.annotations.as_ref().unwrap_or(&none);
    let spec = object.spec.iter().flat_map(|spec| spec.pod_cidr.iter().chain(spec.pod_cidrs.iter().flatten()));
    let spec = spec.map(String::as_str).filter(|text| !text.is_empty()).map(|text| ("spec.podCIDRs", text));
    let spec = annotations::pod_ranges::read(spec, warnings);
    let mut annotated = annotations::pod_cidrs(annotations, NODE_POD_CIDRS, warnings);
    let former = annotations::pod_cidrs(annotations, NODE_POD_CIDR, warnings);
    if annotated.is_empty() && spec.is_empty() {
        annotated = former;
    }
    match annotated.is_empty() || annotated == spec {
        true => (spec, None),
        false => (annotated, Some(spec.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(yaml: &str) -> (Node, Vec<String>) {
        let object: NodeObject = serde_saphyr::from_str(yaml).expect("the test's YAML is sound");
        let (_, node, warnings) = node(&object);
        (node.expect("the test's Node has a name"), warnings.iter().map(Warning::to_string).collect())
    }

    #[test]
    fn addresses_of_both_kinds_are_kept_in_the_apis_order() {
        let (node, warnings) = parsed(
            "{metadata: {name: node-1}, status: {addresses: [{type: Hostname, address: node-1}, \
             {type: ExternalIP, address: 203.0.113.1}, {type: InternalIP, address: 192.0.2.1}, \
             {type: InternalIP, address: '2001:db8::1'}, {type: InternalIP, address: nonsense}]}}",
        );
        let addresses: Vec<String> = node.addresses.iter().map(|a| a.address.to_string()).collect();
        assert_eq!(addresses, ["203.0.113.1", "192.0.2.1", "2001:db8::1"]);
        assert_eq!(warnings, ["status.addresses: \"nonsense\" is not an IP address; it is left out"]);
    }

    #[test]
    fn addresses_of_the_annotation_come_last_and_are_asked_what_others_are() {
        let of = |value: &str| {
            let (node, warnings) = parsed(&format!(
                "{{metadata: {{name: a, annotations: {{kube-router.io/node-address: '{value}'}}}}, \
                 status: {{addresses: [{{type: InternalIP, address: 192.0.2.1}}]}}}}"
            ));
            let kinds: Vec<String> =
                node.addresses.iter().map(|one| format!("{:?} {}", one.kind, one.address)).collect();
            (kinds.join(" "), warnings.join(" "))
        };
        let internal = "Internal 192.0.2.1";
        let both = format!("{internal} Detected 198.51.100.1 Detected 2001:db8::1");
        assert_eq!(of("2001:db8::1, 198.51.100.1"), (both, String::new()), "IPv4 first");
        assert_eq!(of("192.0.2.1").0, format!("{internal} Detected 192.0.2.1"));
        assert_eq!(of(""), (internal.to_owned(), String::new()));
        let key = "kube-router.io/node-address";
        for (value, why) in [
            ("eth1", "\"eth1\" is not an IP address"),
            ("127.0.0.1", "127.0.0.1 is not a unicast address of a cluster"),
            ("fe80::1", "fe80::1 is not a unicast address of a cluster"),
            ("169.254.1.1", "169.254.1.1 is not a unicast address of a cluster"),
            ("224.0.0.9", "224.0.0.9 is not a unicast address of a cluster"),
            ("::ffff:192.0.2.7", "::ffff:192.0.2.7 is not a unicast address of a cluster"),
        ] {
            assert_eq!(of(value), (internal.to_owned(), format!("{key}: {why}; it is left out")));
        }
        let second = format!("{key}: 198.51.100.2 is a second IPv4 address; it is left out");
        assert_eq!(of("198.51.100.1,198.51.100.2"), (format!("{internal} Detected 198.51.100.1"), second));
    }

    #[test]
    fn both_fields_of_the_spec_give_one_list_masked_to_the_prefix() {
        let (node, _) = parsed(
            "{metadata: {name: a}, spec: {podCIDR: 10.244.1.7/24, podCIDRs: [10.244.1.0/24, 'fd00:10:244:1::/64']}}",
        );
        let ranges: Vec<String> = node.pod_cidrs.iter().map(IpNet::to_string).collect();
        assert_eq!(ranges, ["10.244.1.0/24", "fd00:10:244:1::/64"]);
    }

    #[test]
    fn a_node_should_announce_its_pods_while_it_is_ready_and_runs_linux_and_a_heartbeat_changes_nothing() {
        let of = |labels: &str, status: &str, heartbeat: u32| {
            parsed(&format!(
                "{{metadata: {{name: a, labels: {{{labels}}}}}, status: {{conditions: [{{type: MemoryPressure, status: 'True'}}, \
                 {{type: Ready, status: '{status}', lastHeartbeatTime: '2026-01-01T00:00:{heartbeat}Z'}}]}}}}"
            ))
            .0
        };
        assert!(of("", "True", 10).should_announce && of("kubernetes.io/os: linux", "True", 10).should_announce);
        for (labels, status) in [("", "False"), ("", "Unknown"), ("kubernetes.io/os: windows", "True")] {
            assert!(!of(labels, status, 10).should_announce, "{labels} {status}");
        }
        assert!(!parsed("{metadata: {name: a}}").0.should_announce, "a directory of manifests does not say");
        assert_eq!(of("", "True", 10), of("", "True", 20));
    }

    #[test]
    fn a_host_shuts_down_where_its_kubelet_says_so_and_not_where_it_is_merely_not_ready() {
        let of = |status: &str, message: &str| {
            let condition =
                format!("{{type: Ready, status: '{status}', reason: KubeletNotReady, message: '{message}'}}");
            parsed(&format!("{{metadata: {{name: a}}, status: {{conditions: [{condition}]}}}}")).0.is_shutting_down
        };
        assert!(of("False", "node is shutting down"));
        assert!(of("False", "[container runtime is down, node is shutting down]"));
        for (status, message) in [
            ("False", "container runtime is down"),
            ("False", ""),
            ("True", "node is shutting down"),
            ("Unknown", "Kubelet stopped posting node status."),
        ] {
            assert!(!of(status, message), "{status} {message}");
        }
        assert!(!parsed("{metadata: {name: a}}").0.is_shutting_down);
    }

    #[test]
    fn of_all_conditions_only_an_unavailable_network_takes_pods_away() {
        let of = |conditions: &str| {
            parsed(&format!("{{metadata: {{name: a}}, status: {{conditions: {conditions}}}}}")).0.network_unavailable
        };
        let heartbeat = "{type: Ready, status: 'True', lastHeartbeatTime: '2026-01-01T00:00:00Z'}";
        assert!(of(&format!("[{heartbeat}, {{type: NetworkUnavailable, status: 'True'}}]")));
        assert!(of("[{type: NetworkUnavailable, status: Unknown}]"));
        for other in ["[]", "[{type: NetworkUnavailable, status: 'False'}]", "[{type: NetworkUnavailable}]"] {
            assert!(!of(other), "{other}");
        }
        assert!(!of(&format!("[{heartbeat}]")));
    }

    #[test]
    fn an_instance_of_ec2_is_known_by_its_provider_and_no_other_machine_is() {
        let of = |provider: &str| {
            parsed(&format!("{{metadata: {{name: a}}, spec: {{providerID: '{provider}'}}}}")).0.ec2_instance
        };
        for id in ["i-0123456789abcdef0", "i-01234567"] {
            assert_eq!(of(&format!("aws:///eu-central-1a/{id}")).as_deref(), Some(id));
        }
        for other in [
            "",
            "gce://project/zone/node",
            "gce://i-0123456789abcdef0",
            "aws:///eu-central-1a/0123/fargate-ip-192-0-2-1.eu-central-1.compute.internal",
            "aws:///eu-central-1a/i-",
            "aws:///eu-central-1a/i-01234567&x=y",
            "aws:///eu-central-1a/i-0123456g",
            "i-0123456789abcdef0",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
        assert_eq!(parsed("{metadata: {name: a}}").0.ec2_instance, None);
    }

    #[test]
    fn the_zone_is_that_of_the_well_known_label() {
        let of = |labels: &str| parsed(&format!("{{metadata: {{name: a, labels: {labels}}}}}")).0.zone;
        assert_eq!(of("{topology.kubernetes.io/zone: eu-1a, kubernetes.io/hostname: a}").as_deref(), Some("eu-1a"));
        for other in ["{topology.kubernetes.io/zone: ''}", "{failure-domain.beta.kubernetes.io/zone: eu-1a}", "{}"] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn taints_are_kept_and_one_without_a_key_is_none() {
        let (node, warnings) = parsed(
            "{metadata: {name: a}, spec: {taints: [{key: example.com/leaving, value: now, effect: NoExecute, timeAdded: '2026-01-01T00:00:00Z'}, \
             {key: node.kubernetes.io/unschedulable, effect: NoSchedule}, {effect: NoSchedule}]}}",
        );
        let taints: Vec<String> = node.taints.iter().map(Taint::to_string).collect();
        assert_eq!(taints, ["example.com/leaving=now:NoExecute", "node.kubernetes.io/unschedulable:NoSchedule"]);
        assert!(warnings.is_empty());
    }

    #[test]
    fn labels_are_kept_for_policies_that_select_nodes() {
        let (node, warnings) = parsed("{metadata: {name: a, labels: {pool: gpu, node-role.kubernetes.io/worker: ''}}}");
        let all: Vec<_> = node.labels.iter().collect();
        assert_eq!((all, warnings.len()), (vec![("node-role.kubernetes.io/worker", ""), ("pool", "gpu")], 0));
    }

    #[test]
    fn annotations_win_over_the_spec_unless_nothing_of_them_is_a_range() {
        let yaml = |value: &str| {
            format!(
                "{{metadata: {{name: a, annotations: {{kube-router.io/pod-cidrs: '{value}'}}}}, \
                 spec: {{podCIDRs: [10.244.9.0/24]}}}}"
            )
        };
        let (node, warnings) = parsed(&yaml("10.244.1.0/24, fd00:10:244:1::/64,bad"));
        assert_eq!((node.pod_cidrs.len(), warnings.len()), (2, 1));
        let (node, _) = parsed(&yaml("bad"));
        assert_eq!(node.pod_cidrs[0].to_string(), "10.244.9.0/24");
    }
}
