//! Messages common to all objects in the API's protocol-buffer form.
//!
//! Kubernetes: `k8s.io/apimachinery` `pkg/apis/meta/v1/generated.proto`. The numbers of the fields are the whole contract; a field
//! that is not named here is skipped unread, which is why policies are not read in this form: a field that a later API
//! adds to a rule has to be seen (`network_policy.rs`).
//!
//! In this form a text that is absent and an empty one are the same where the API's Go type is a plain string.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as api;
use k8s_openapi::jiff::Timestamp;
use prost::{DecodeError, Message};
use serde::de::DeserializeOwned;

/// Reads an object without its envelope.
pub type FromProtobuf<K> = fn(&[u8]) -> Result<K, DecodeError>;

/// An object of one kind in the API's form, narrowed to the fields that are read.
pub trait ApiObject: DeserializeOwned {
    /// Reads the protocol-buffer form; `None` for a kind that is read as JSON alone.
    const FROM_PROTOBUF: Option<FromProtobuf<Self>>;

    fn metadata(&self) -> &api::ObjectMeta;
}

/// `meta.v1.ObjectMeta`.
#[derive(Clone, PartialEq, Message)]
pub struct ObjectMeta {
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    #[prost(string, optional, tag = "2")]
    pub generate_name: Option<String>,
    #[prost(string, optional, tag = "3")]
    pub namespace: Option<String>,
    #[prost(string, optional, tag = "6")]
    pub resource_version: Option<String>,
    #[prost(message, optional, tag = "8")]
    pub creation_timestamp: Option<Time>,
    #[prost(btree_map = "string, string", tag = "11")]
    pub labels: BTreeMap<String, String>,
    #[prost(btree_map = "string, string", tag = "12")]
    pub annotations: BTreeMap<String, String>,
    #[prost(message, repeated, tag = "13")]
    pub owner_references: Vec<OwnerReference>,
}

/// `meta.v1.Time`: seconds since 1970.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Time {
    #[prost(int64, tag = "1")]
    pub seconds: i64,
}

/// `meta.v1.OwnerReference`.
#[derive(Clone, PartialEq, Message)]
pub struct OwnerReference {
    #[prost(string, tag = "3")]
    pub name: String,
}

/// `meta.v1.ObjectMeta` of an object of whose metadata only name, UID and labels count.
#[derive(Clone, PartialEq, Message)]
pub struct LabelledMeta {
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    #[prost(string, optional, tag = "3")]
    pub namespace: Option<String>,
    #[prost(string, optional, tag = "5")]
    pub uid: Option<String>,
    #[prost(string, optional, tag = "6")]
    pub resource_version: Option<String>,
    #[prost(btree_map = "string, string", tag = "11")]
    pub labels: BTreeMap<String, String>,
    #[prost(message, repeated, tag = "12")]
    pub annotations: Vec<AnnotationKey>,
}

/// An annotation without its value.
#[derive(Clone, PartialEq, Message)]
pub struct AnnotationKey {
    #[prost(string, tag = "1")]
    pub key: String,
}

/// The annotation by which the kubelet marks a mirror pod, whose UID is not the one by which it calls the static pod.
const MIRROR: &str = "kubernetes.io/config.mirror";

impl From<ObjectMeta> for api::ObjectMeta {
    fn from(meta: ObjectMeta) -> api::ObjectMeta {
        let owners = meta.owner_references.into_iter();
        api::ObjectMeta {
            name: text(meta.name),
            namespace: text(meta.namespace),
            generate_name: text(meta.generate_name),
            resource_version: text(meta.resource_version),
            creation_timestamp: meta
                .creation_timestamp
                .filter(|time| time.seconds != 0)
                .and_then(|time| Timestamp::from_second(time.seconds).ok())
                .map(api::Time),
            labels: Some(meta.labels),
            annotations: Some(meta.annotations),
            owner_references: Some(
                owners
                    .map(|owner| api::OwnerReference { name: owner.name, ..api::OwnerReference::default() })
                    .collect(),
            ),
            ..api::ObjectMeta::default()
        }
    }
}

impl From<LabelledMeta> for api::ObjectMeta {
    fn from(meta: LabelledMeta) -> api::ObjectMeta {
        api::ObjectMeta {
            name: text(meta.name),
            namespace: text(meta.namespace),
            uid: text(meta.uid).filter(|_| !meta.annotations.iter().any(|annotation| annotation.key == MIRROR)),
            resource_version: text(meta.resource_version),
            labels: Some(meta.labels),
            ..api::ObjectMeta::default()
        }
    }
}

/// A text that is not empty.
pub fn text(written: Option<String>) -> Option<String> {
    written.filter(|text| !text.is_empty())
}
