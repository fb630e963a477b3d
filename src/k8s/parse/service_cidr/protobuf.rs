//! A ServiceCIDR in the API's protocol-buffer form: `k8s.io/api/networking/v1/generated.proto`.

use prost::Message;

use super::{ObjectMeta as ApiMeta, ServiceCidrObject, Spec as ApiSpec};
use crate::k8s::parse::protobuf::{ApiObject, FromProtobuf, ObjectMeta};

impl ApiObject for ServiceCidrObject {
    const FROM_PROTOBUF: Option<FromProtobuf<Self>> =
        Some(|bytes| ServiceCidr::decode(bytes).map(ServiceCidrObject::from));

    fn metadata(&self) -> &ApiMeta {
        &self.metadata
    }
}

#[derive(Clone, PartialEq, Message)]
struct ServiceCidr {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
    #[prost(message, optional, tag = "2")]
    spec: Option<Spec>,
}

#[derive(Clone, PartialEq, Message)]
struct Spec {
    #[prost(string, repeated, tag = "1")]
    cidrs: Vec<String>,
}

impl From<ServiceCidr> for ServiceCidrObject {
    fn from(object: ServiceCidr) -> ServiceCidrObject {
        let spec = object.spec.map(|spec| ApiSpec { cidrs: spec.cidrs });
        ServiceCidrObject { metadata: object.metadata.unwrap_or_default().into(), spec }
    }
}
