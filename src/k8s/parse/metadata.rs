//! `metadata`, as little of it as we use.
//!
//! An object's metadata is often larger than the object (managed fields, annotations of other programs).
//! Fields not named here are skipped in the pass that reads them and never occupy memory.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta, OwnerReference, Time};
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::model::ObjectName;

/// The name of a namespaced object; a manifest without a namespace means `default`, as for `kubectl`.
pub fn object_name(meta: &ObjectMeta) -> ObjectName {
    let namespace = meta.namespace.as_deref().filter(|namespace| !namespace.is_empty()).unwrap_or("default");
    ObjectName::new(namespace, meta.name.as_deref().unwrap_or_default())
}

/// Reads `metadata` into the client library's own type, leaving out all that we do not use.
///
/// # Errors
/// A field is not of its type in the API.
pub fn object_meta<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let narrow = Option::<NarrowMeta>::deserialize(deserializer)?.unwrap_or_default();
    let owners = narrow.owner_references.unwrap_or_default().into_iter();
    Ok(ObjectMeta {
        name: narrow.name,
        namespace: narrow.namespace,
        uid: narrow.uid,
        generate_name: narrow.generate_name,
        resource_version: narrow.resource_version,
        creation_timestamp: narrow.creation_timestamp.and_then(|text| text.parse().ok()).map(Time),
        labels: narrow.labels.map(without_nulls),
        annotations: narrow.annotations.map(without_nulls),
        owner_references: Some(
            owners.map(|owner| OwnerReference { name: owner.name, ..OwnerReference::default() }).collect(),
        ),
        ..ObjectMeta::default()
    })
}

/// Like [`object_meta`], without owners, and with those of `managedFields` who wrote the addresses of a Service's status, by their names alone.
///
/// # Errors
/// A field is not of its type in the API.
pub fn meta_with_givers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let read = Option::<GivenMeta>::deserialize(deserializer)?.unwrap_or_default();
    let gives = |entry: &&Value| entry.pointer("/fieldsV1/f:status/f:loadBalancer/f:ingress").is_some();
    let name = |entry: &Value| entry.get("manager").and_then(Value::as_str).map(ToOwned::to_owned);
    let all = read.managed_fields.as_ref().and_then(Value::as_array).into_iter().flatten();
    let givers =
        all.filter(gives).map(|entry| ManagedFieldsEntry { manager: name(entry), ..ManagedFieldsEntry::default() });
    Ok(ObjectMeta {
        managed_fields: Some(givers.collect()),
        name: read.name,
        namespace: read.namespace,
        uid: read.uid,
        resource_version: read.resource_version,
        creation_timestamp: read.creation_timestamp.and_then(|text| text.parse().ok()).map(Time),
        labels: read.labels.map(without_nulls),
        annotations: read.annotations.map(without_nulls),
        ..ObjectMeta::default()
    })
}

/// Like [`object_meta`], for objects of whose metadata only name, UID and labels count. A pod's annotations are often larger
/// than all the rest of it. A mirror pod has no UID: the kubelet calls a static pod by the one of its manifest, which is another.
///
/// # Errors
/// A field is not of its type in the API.
pub fn labelled_meta<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let narrow = Option::<LabelledMeta>::deserialize(deserializer)?.unwrap_or_default();
    Ok(ObjectMeta {
        name: narrow.name,
        namespace: narrow.namespace,
        uid: narrow.uid.filter(|_| narrow.annotations.is_none_or(|annotations| annotations.mirror.is_none())),
        resource_version: narrow.resource_version,
        labels: narrow.labels.map(without_nulls),
        ..ObjectMeta::default()
    })
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct GivenMeta {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    creation_timestamp: Option<String>,
    labels: Option<BTreeMap<String, Option<String>>>,
    annotations: Option<BTreeMap<String, Option<String>>>,
    /// Of any form: what is odd there says nothing.
    managed_fields: Option<Value>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct LabelledMeta {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    labels: Option<BTreeMap<String, Option<String>>>,
    annotations: Option<MirrorAnnotation>,
}

/// The annotation by which the kubelet marks a mirror pod; others are skipped.
#[derive(Deserialize)]
struct MirrorAnnotation {
    #[serde(rename = "kubernetes.io/config.mirror")]
    mirror: Option<IgnoredAny>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct NarrowMeta {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    generate_name: Option<String>,
    resource_version: Option<String>,
    creation_timestamp: Option<String>,
    labels: Option<BTreeMap<String, Option<String>>>,
    annotations: Option<BTreeMap<String, Option<String>>>,
    owner_references: Option<Vec<NarrowOwner>>,
}

#[derive(Deserialize)]
struct NarrowOwner {
    #[serde(default)]
    name: String,
}

/// A key whose value is `null` is there, and empty: a manifest may say `kube-router.io/service.skiplbips:`.
fn without_nulls(map: BTreeMap<String, Option<String>>) -> BTreeMap<String, String> {
    map.into_iter().map(|(key, value)| (key, value.unwrap_or_default())).collect()
}
