//! A Namespace in the API's protocol-buffer form: `k8s.io/api/core/v1/generated.proto`.

use prost::Message;

use super::{NamespaceObject, ObjectMeta as ApiMeta};
use crate::k8s::parse::protobuf::{ApiObject, FromProtobuf, ObjectMeta};

impl ApiObject for NamespaceObject {
    const FROM_PROTOBUF: Option<FromProtobuf<Self>> = Some(|bytes| Namespace::decode(bytes).map(NamespaceObject::from));

    fn metadata(&self) -> &ApiMeta {
        &self.metadata
    }
}

#[derive(Clone, PartialEq, Message)]
struct Namespace {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
}

impl From<Namespace> for NamespaceObject {
    fn from(namespace: Namespace) -> NamespaceObject {
        NamespaceObject { metadata: namespace.metadata.unwrap_or_default().into() }
    }
}
