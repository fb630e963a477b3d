//! Nodes, and what their annotations say about routing.

use compact_str::CompactString;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::pod::labels_of;
use super::{Fields, object, texts};
use crate::k8s::annotations::keys::{
    NODE_ADDRESS, NODE_ASN, NODE_BGP_LOCAL_ADDRESSES, NODE_COMMUNITIES, NODE_IMPORT_REJECT, NODE_PEERS, NODE_POD_CIDRS,
    NODE_PREPEND_AS, NODE_PREPEND_REPEAT, NODE_REFLECTOR_CLIENT, NODE_REFLECTOR_SERVER, NODE_WIREGUARD_KEY,
    NODE_WIREGUARD_NEXT_KEY,
};
use crate::k8s::object::Kind;
use crate::k8s::parse::node::SHUTTING_DOWN;
use crate::model::{Node, NodeAddress, NodeAddressKind, Prepend, Reflection, Routing, Taint};
use crate::net::{Bfd, Distance, ExternalPeer, Password, PerFamily, Remote, RemoteAs};

pub(super) fn node(name: &CompactString, node: &Node) -> Value {
    let Node {
        created,
        addresses,
        pod_cidrs,
        spec_pod_cidrs,
        network_unavailable,
        should_announce,
        is_shutting_down,
        // Who starts with a bundle is elsewhere, and asks no cloud for what that instance needs.
        ec2_instance: _,
        // It stands among the labels.
        zone: _,
        labels,
        taints,
        routing,
        wireguard_key,
        wireguard_next_key,
    } = node;
    let (mut metadata, mut spec) = (Fields::default(), Fields::default());
    metadata.put("name", name.as_str()).put_filled("labels", labels_of(labels));
    if *created != 0 {
        metadata.put_some("creationTimestamp", Timestamp::from_second(*created).ok().map(|time| time.to_string()));
    }
    let mut annotations = routing.as_deref().map(annotations).unwrap_or_default();
    annotations.put_some(NODE_WIREGUARD_KEY, wireguard_key.map(|key| key.to_string()));
    annotations.put_some(NODE_WIREGUARD_NEXT_KEY, wireguard_next_key.map(|key| key.to_string()));
    annotations.put_some(NODE_ADDRESS, detected(addresses));
    let annotated = spec_pod_cidrs.as_ref().map(|_| pod_cidrs.iter().map(ToString::to_string).collect::<Vec<_>>());
    annotations.put_some(NODE_POD_CIDRS, annotated.map(|ranges| ranges.join(",")));
    metadata.put_filled("annotations", annotations.value());
    spec.put_filled("podCIDRs", texts(spec_pod_cidrs.as_deref().unwrap_or(pod_cidrs)));
    spec.put_filled("taints", taints.iter().map(taint).collect());
    let conditions = [("NetworkUnavailable", *network_unavailable), ("Ready", *should_announce)];
    let conditions = conditions.into_iter().filter(|(_, is_true)| *is_true);
    let mut conditions: Vec<Value> = conditions.map(|(kind, _)| json!({ "type": kind, "status": "True" })).collect();
    if *is_shutting_down {
        conditions.push(json!({ "type": "Ready", "status": "False", "message": SHUTTING_DOWN }));
    }
    let mut status = Fields::default();
    status.put_filled("addresses", addresses.iter().filter_map(address).collect());
    status.put_filled("conditions", conditions.into());
    let mut rest = Fields::default();
    rest.put_filled("spec", spec.value()).put_filled("status", status.value());
    object(Kind::Node, metadata, rest)
}

/// One that was detected is in an annotation.
fn address(of: &NodeAddress) -> Option<Value> {
    let NodeAddress { kind, address } = of;
    let kind = match kind {
        NodeAddressKind::Internal => "InternalIP",
        NodeAddressKind::External => "ExternalIP",
        NodeAddressKind::Detected => return None,
    };
    Some(json!({ "type": kind, "address": address }))
}

fn detected(addresses: &[NodeAddress]) -> Option<String> {
    let detected = addresses.iter().filter(|one| one.kind == NodeAddressKind::Detected);
    let texts: Vec<String> = detected.map(|one| one.address.to_string()).collect();
    (!texts.is_empty()).then(|| texts.join(","))
}

fn taint(taint: &Taint) -> Value {
    let Taint { key, value, effect } = taint;
    json!({ "key": key.as_str(), "value": value.as_str(), "effect": effect.as_str() })
}

fn annotations(routing: &Routing) -> Fields {
    // Peers that count in the place of what cannot be read are written as they are.
    let Routing { asn, reflection, prepend, communities, import_reject, peers, unread_peers: _, local_addresses } =
        routing;
    let mut written = Fields::default();
    written.put_some(NODE_ASN, asn.map(|asn| asn.to_string()));
    match reflection {
        Reflection::None => {}
        Reflection::Server(id) => drop(written.put(NODE_REFLECTOR_SERVER, id.to_string())),
        Reflection::Client(id) => drop(written.put(NODE_REFLECTOR_CLIENT, id.to_string())),
    }
    if let Some(Prepend { asn, times }) = prepend {
        written.put(NODE_PREPEND_AS, asn.to_string()).put(NODE_PREPEND_REPEAT, times.to_string());
    }
    let mut list = |key: &str, items: Vec<String>| {
        written.put_some(key, (!items.is_empty()).then(|| items.join(",")));
    };
    list(NODE_COMMUNITIES, communities.iter().map(ToString::to_string).collect());
    list(NODE_IMPORT_REJECT, import_reject.iter().map(ToString::to_string).collect());
    list(NODE_BGP_LOCAL_ADDRESSES, local_addresses.iter().map(ToString::to_string).collect());
    if !peers.is_empty() {
        // YAML, as the annotation is, has JSON in it.
        written.put(NODE_PEERS, peers.iter().map(peer).collect::<Value>().to_string());
    }
    written
}

fn peer(peer: &ExternalPeer) -> Value {
    let ExternalPeer {
        remote,
        asn,
        port,
        password,
        local,
        bfd,
        hold_time,
        distance,
        long_lived,
        prefix_limits,
        next_hop_self,
    } = peer;
    let mut fields = Fields::default();
    match remote {
        Remote::Address(address) => drop(fields.put("remoteip", address.to_string())),
        Remote::Link(name) => drop(fields.put("interface", name.as_str())),
    }
    match asn {
        RemoteAs::Number(number) => drop(fields.put("remoteasn", *number)),
        RemoteAs::External => drop(fields.put("remoteasn", "external")),
    }
    fields.put_some("port", *port);
    fields.put_some("localip", local.map(|address| address.to_string()));
    match password {
        Password::None => {}
        Password::Key(_) | Password::Unknown => drop(fields.put("password_unknown", true)),
        Password::File(name) => drop(fields.put("passwordfile", name.as_str())),
    }
    fields.put_some("holdtime", *hold_time).put_some("llgrtime", *long_lived).put_some("nexthopself", *next_hop_self);
    match *distance {
        Distance::Usual => {}
        Distance::Multihop(ttl) => drop(fields.put("multihop", ttl)),
        Distance::Secured(hops) => drop(fields.put("ttlsecurity", hops)),
    }
    let mut limits = Fields::default();
    limits.put_some("ipv4", prefix_limits.v4).put_some("ipv6", prefix_limits.v6);
    if *prefix_limits != PerFamily::default() {
        fields.put("maxprefixes", limits.value());
    }
    if let Some(Bfd { port, multiplier, send, receive }) = bfd {
        fields.put(
            "bfd",
            json!({
                "enabled": true,
                "port": port,
                "detection_multiplier": multiplier,
                "desired_min_tx_interval": send,
                "required_min_rx_interval": receive,
            }),
        );
    }
    fields.value()
}
