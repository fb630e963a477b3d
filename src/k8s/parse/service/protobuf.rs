//! A Service in the API's protocol-buffer form: `k8s.io/api/core/v1/generated.proto`.

use prost::Message;

use super::ObjectMeta as ApiMeta;
use super::{AffinityConfig, ClientIpConfig, Ingress, LoadBalancer, Number, Port, ServiceObject, Spec, Status};
use crate::k8s::parse::protobuf::{ApiObject, FromProtobuf, ObjectMeta, text};

impl ApiObject for ServiceObject {
    const FROM_PROTOBUF: Option<FromProtobuf<Self>> = Some(|bytes| Service::decode(bytes).map(ServiceObject::from));

    fn metadata(&self) -> &ApiMeta {
        &self.metadata
    }
}

#[derive(Clone, PartialEq, Message)]
struct Service {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
    #[prost(message, optional, tag = "2")]
    spec: Option<ServiceSpec>,
    #[prost(message, optional, tag = "3")]
    status: Option<ServiceStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct ServiceSpec {
    #[prost(message, repeated, tag = "1")]
    ports: Vec<ServicePort>,
    #[prost(string, optional, tag = "3")]
    cluster_ip: Option<String>,
    #[prost(string, optional, tag = "4")]
    kind: Option<String>,
    #[prost(string, repeated, tag = "5")]
    external_ips: Vec<String>,
    #[prost(string, optional, tag = "7")]
    session_affinity: Option<String>,
    #[prost(string, repeated, tag = "9")]
    load_balancer_source_ranges: Vec<String>,
    #[prost(string, optional, tag = "11")]
    external_traffic_policy: Option<String>,
    #[prost(int32, tag = "12")]
    health_check_node_port: i32,
    #[prost(message, optional, tag = "14")]
    session_affinity_config: Option<SessionAffinityConfig>,
    #[prost(string, repeated, tag = "18")]
    cluster_ips: Vec<String>,
    #[prost(string, optional, tag = "22")]
    internal_traffic_policy: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct ServicePort {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(string, optional, tag = "2")]
    protocol: Option<String>,
    #[prost(int32, optional, tag = "3")]
    port: Option<i32>,
    #[prost(int32, tag = "5")]
    node_port: i32,
}

#[derive(Clone, PartialEq, Message)]
struct SessionAffinityConfig {
    #[prost(message, optional, tag = "1")]
    client_ip: Option<ClientIp>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct ClientIp {
    #[prost(int32, optional, tag = "1")]
    timeout_seconds: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct ServiceStatus {
    #[prost(message, optional, tag = "1")]
    load_balancer: Option<LoadBalancerStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct LoadBalancerStatus {
    #[prost(message, repeated, tag = "1")]
    ingress: Vec<LoadBalancerIngress>,
}

#[derive(Clone, PartialEq, Message)]
struct LoadBalancerIngress {
    #[prost(string, optional, tag = "1")]
    ip: Option<String>,
    #[prost(string, optional, tag = "3")]
    ip_mode: Option<String>,
}

impl From<Service> for ServiceObject {
    fn from(service: Service) -> ServiceObject {
        ServiceObject {
            metadata: service.metadata.unwrap_or_default().into(),
            spec: service.spec.map(Spec::from),
            status: service.status.map(Status::from),
        }
    }
}

impl From<ServiceSpec> for Spec {
    fn from(spec: ServiceSpec) -> Spec {
        let timeout = |config: ClientIp| ClientIpConfig { timeout_seconds: config.timeout_seconds.map(number) };
        Spec {
            kind: text(spec.kind),
            cluster_ip: text(spec.cluster_ip),
            cluster_ips: Some(spec.cluster_ips),
            external_ips: Some(spec.external_ips),
            load_balancer_source_ranges: Some(spec.load_balancer_source_ranges),
            ports: Some(spec.ports.into_iter().map(Port::from).collect()),
            session_affinity: text(spec.session_affinity),
            session_affinity_config: spec
                .session_affinity_config
                .map(|config| AffinityConfig { client_ip: config.client_ip.map(timeout) }),
            internal_traffic_policy: text(spec.internal_traffic_policy),
            external_traffic_policy: text(spec.external_traffic_policy),
            health_check_node_port: Some(number(spec.health_check_node_port)),
        }
    }
}

impl From<ServicePort> for Port {
    fn from(port: ServicePort) -> Port {
        Port {
            name: port.name,
            protocol: port.protocol,
            port: port.port.map(number),
            node_port: Some(number(port.node_port)),
        }
    }
}

impl From<ServiceStatus> for Status {
    fn from(status: ServiceStatus) -> Status {
        let ingress = |one: LoadBalancerIngress| Ingress { ip: one.ip, ip_mode: one.ip_mode };
        let balancer = |balancer: LoadBalancerStatus| LoadBalancer {
            ingress: Some(balancer.ingress.into_iter().map(ingress).collect()),
        };
        Status { load_balancer: status.load_balancer.map(balancer) }
    }
}

fn number(written: i32) -> Number {
    Number::Is(written.into())
}
