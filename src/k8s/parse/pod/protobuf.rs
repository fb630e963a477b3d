//! A Pod in the API's protocol-buffer form: `k8s.io/api/core/v1/generated.proto`.

use compact_str::CompactString;
use prost::Message;

use super::{Number, ObjectMeta as ApiMeta, PodIp, PodObject, Port, Spec, Status};
use crate::k8s::parse::protobuf::{ApiObject, FromProtobuf, LabelledMeta};

impl ApiObject for PodObject {
    const FROM_PROTOBUF: Option<FromProtobuf<Self>> = Some(|bytes| Pod::decode(bytes).map(PodObject::from));

    fn metadata(&self) -> &ApiMeta {
        &self.metadata
    }
}

#[derive(Clone, PartialEq, Message)]
struct Pod {
    #[prost(message, optional, tag = "1")]
    metadata: Option<LabelledMeta>,
    #[prost(message, optional, tag = "2")]
    spec: Option<PodSpec>,
    #[prost(message, optional, tag = "3")]
    status: Option<PodStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSpec {
    #[prost(message, repeated, tag = "2")]
    containers: Vec<Container>,
    #[prost(string, tag = "10")]
    node_name: String,
    #[prost(bool, tag = "11")]
    host_network: bool,
    #[prost(message, repeated, tag = "20")]
    init_containers: Vec<Container>,
}

#[derive(Clone, PartialEq, Message)]
struct Container {
    #[prost(message, repeated, tag = "6")]
    ports: Vec<ContainerPort>,
    #[prost(string, optional, tag = "24")]
    restart_policy: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerPort {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int32, optional, tag = "3")]
    container_port: Option<i32>,
    #[prost(string, tag = "4")]
    protocol: String,
}

#[derive(Clone, PartialEq, Message)]
struct PodStatus {
    #[prost(string, tag = "1")]
    phase: String,
    #[prost(string, tag = "6")]
    pod_ip: String,
    #[prost(message, repeated, tag = "12")]
    pod_ips: Vec<PodIpMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct PodIpMessage {
    #[prost(string, tag = "1")]
    ip: String,
}

impl From<Pod> for PodObject {
    fn from(pod: Pod) -> PodObject {
        PodObject {
            metadata: pod.metadata.unwrap_or_default().into(),
            spec: pod.spec.map(Spec::from),
            status: pod.status.map(Status::from),
        }
    }
}

impl From<PodSpec> for Spec {
    fn from(spec: PodSpec) -> Spec {
        let containers = |all: Vec<Container>| Some(all.into_iter().map(super::Container::from).collect());
        Spec {
            node_name: short(spec.node_name),
            host_network: Some(spec.host_network),
            containers: containers(spec.containers),
            init_containers: containers(spec.init_containers),
        }
    }
}

impl From<Container> for super::Container {
    fn from(container: Container) -> super::Container {
        let port = |port: ContainerPort| Port {
            name: short(port.name),
            protocol: short(port.protocol),
            container_port: port.container_port.map(|number| Number::Is(number.into())),
        };
        super::Container {
            restart_policy: container.restart_policy.and_then(short),
            ports: Some(container.ports.into_iter().map(port).collect()),
        }
    }
}

impl From<PodStatus> for Status {
    fn from(status: PodStatus) -> Status {
        let address = |one: PodIpMessage| PodIp { ip: short(one.ip) };
        Status {
            phase: short(status.phase),
            pod_ip: short(status.pod_ip),
            pod_ips: Some(status.pod_ips.into_iter().map(address).collect()),
        }
    }
}

fn short(text: String) -> Option<CompactString> {
    Some(text).filter(|text| !text.is_empty()).map(CompactString::from)
}
