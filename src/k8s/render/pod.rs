//! Pods and Namespaces.

use compact_str::CompactString;
use serde_json::{Value, json};

use super::{Fields, named, names, object};
use crate::k8s::annotations::keys::NAMESPACE_ISOLATION;
use crate::k8s::object::Kind;
use crate::model::{Labels, NamedPort, Namespace, ObjectName, Pod};

pub(super) fn pod(name: &ObjectName, pod: &Pod) -> Value {
    let Pod { uid, labels, addresses, node, host_network, finished, ports } = pod;
    let (mut metadata, mut spec, mut status) = (named(name), Fields::default(), Fields::default());
    metadata.put_filled("labels", labels_of(labels));
    // A UID that folds to the same number.
    metadata.put_some("uid", uid.map(|uid| format!("{}-0000-0000-0000-000000000000", digits(uid.number()))));
    spec.put_some("nodeName", node.as_ref().map(|node| node.to_string()));
    spec.put_some("hostNetwork", host_network.then_some(true));
    if !ports.is_empty() {
        spec.put("containers", json!([{ "ports": ports.iter().map(port).collect::<Value>() }]));
    }
    status.put("phase", if *finished { "Succeeded" } else { "Running" });
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    status.put_filled("podIPs", names("ip", addresses.iter().map(String::as_str)));
    let mut rest = Fields::default();
    rest.put("spec", spec.value()).put("status", status.value());
    object(Kind::Pod, metadata, rest)
}

/// The eight digits that `PodUid::of` reads as this number: the lowest four bits come first.
fn digits(number: u32) -> String {
    (0..8).map(|place| format!("{:x}", number >> (place * 4) & 0xf)).collect()
}

fn port(port: &NamedPort) -> Value {
    let NamedPort { name, protocol, number } = port;
    json!({ "name": name.as_str(), "protocol": protocol.api_name(), "containerPort": number })
}

pub(super) fn labels_of(labels: &Labels) -> Value {
    Value::Object(labels.iter().map(|(key, value)| (key.to_owned(), value.into())).collect())
}

pub(super) fn namespace(name: &CompactString, namespace: &Namespace) -> Value {
    let Namespace { labels, isolated } = namespace;
    let mut metadata = Fields::default();
    metadata.put("name", name.as_str()).put_filled("labels", labels_of(labels));
    if *isolated {
        metadata.put("annotations", json!({ NAMESPACE_ISOLATION: ISOLATED }));
    }
    object(Kind::Namespace, metadata, Fields::default())
}

const ISOLATED: &str = r#"{"ingress":{"isolation":"DefaultDeny"}}"#;
