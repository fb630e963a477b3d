//! A Node, from the API's form to ours.
//!
//! Kubernetes: core/v1 Node, `status.addresses`, `spec.podCIDR`, `spec.podCIDRs`, and the two annotations
//! that win over the spec. A Node changes every few seconds (its status carries heartbeats and images);
//! none of that is read, so it is equal to its predecessor and no change to anybody.

use compact_str::CompactString;
use ipnet::IpNet;
use k8s_openapi::api::core::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::Deserialize;

use super::{Warning, Warnings, object_meta, unicast_address};
use crate::k8s::annotations;
use crate::model::{Node, NodeAddress, NodeAddressKind};

/// The Node that an API object describes.
pub fn node(object: &NodeObject) -> (CompactString, Option<Node>, Vec<Warning>) {
    let mut warnings = Warnings::default();
    let name = CompactString::from(object.metadata.name.as_deref().unwrap_or_default());
    if name.is_empty() {
        warnings.odd("metadata.name", "absent; the object is left out");
        return (name, None, warnings.take());
    }
    let node = Node { addresses: addresses(object, &mut warnings), pod_cidrs: pod_cidrs(object, &mut warnings) };
    (name, Some(node), warnings.take())
}

/// The fields of a Node that are read.
#[derive(Resource, Deserialize, Clone, Debug)]
#[resource(inherit = "api::Node")]
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
}

#[derive(Deserialize, Clone, Debug)]
struct Status {
    addresses: Option<Vec<Address>>,
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
    addresses
}

fn pod_cidrs(object: &NodeObject, warnings: &mut Warnings) -> Vec<IpNet> {
    let given = object.metadata.annotations.as_ref().map(|all| annotations::pod_cidrs(all, warnings));
    if let Some(ranges) = given.filter(|ranges| !ranges.is_empty()) {
        return ranges;
    }
    let mut ranges = Vec::new();
    let Some(spec) = &object.spec else { return ranges };
    let written = spec.pod_cidr.iter().chain(spec.pod_cidrs.iter().flatten());
    for text in written.filter(|text| !text.is_empty()) {
        match text.parse::<IpNet>() {
            Ok(range) if ranges.contains(&range.trunc()) => {}
            Ok(range) => ranges.push(range.trunc()),
            Err(_) => warnings.odd("spec.podCIDRs", format_args!("{text:?} is not a CIDR; it is left out")),
        }
    }
    ranges
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
    fn both_fields_of_the_spec_give_one_list_masked_to_the_prefix() {
        let (node, _) = parsed(
            "{metadata: {name: a}, spec: {podCIDR: 10.244.1.7/24, podCIDRs: [10.244.1.0/24, 'fd00:10:244:1::/64']}}",
        );
        let ranges: Vec<String> = node.pod_cidrs.iter().map(IpNet::to_string).collect();
        assert_eq!(ranges, ["10.244.1.0/24", "fd00:10:244:1::/64"]);
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
