//! Services and their endpoint slices on disk.

use compact_str::CompactString;
use ipnet::IpNet;

use super::lists::{Collected, Lists, protocol};
use super::packed::{Packed, addresses, column, only_address, put_address, ranges, rows};
use crate::model::{
    AnnounceAnnotations, Conditions, Endpoint, EndpointPort, EndpointSlice, Listed, LoadBalancerAddress, ObjectName,
    ProxyAnnotations, Scheduler, SchedulerFlags, Service, ServicePort, ServiceType, TrafficPolicy,
};
use crate::net::{Family, Protocol};

#[derive(Clone, PartialEq, prost::Message)]
pub struct ServiceRecord {
    #[prost(string, tag = "1")]
    namespace: String,
    #[prost(string, tag = "2")]
    name: String,
    /// 0 ClusterIP, 1 NodePort, 2 LoadBalancer.
    #[prost(uint32, tag = "3")]
    kind: u32,
    #[prost(bytes = "vec", tag = "4")]
    cluster_ips: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    external_ips: Vec<u8>,
    #[prost(message, repeated, tag = "6")]
    load_balancer: Vec<LoadBalancerRecord>,
    #[prost(message, repeated, tag = "7")]
    ports: Vec<PortRecord>,
    #[prost(uint32, optional, tag = "8")]
    affinity_seconds: Option<u32>,
    #[prost(bool, tag = "9")]
    internal_local: bool,
    #[prost(bool, tag = "10")]
    external_local: bool,
    #[prost(uint32, optional, tag = "11")]
    health_check_node_port: Option<u32>,
    /// By its name; empty for `rr`.
    #[prost(string, tag = "12")]
    scheduler: String,
    #[prost(bool, tag = "13")]
    scheduler_flag_1: bool,
    #[prost(bool, tag = "14")]
    scheduler_flag_2: bool,
    #[prost(bool, tag = "15")]
    scheduler_flag_3: bool,
    #[prost(bool, tag = "16")]
    annotated_local: bool,
    #[prost(bool, tag = "17")]
    skip_load_balancer_ips: bool,
    #[prost(int64, tag = "18")]
    created: i64,
    #[prost(bool, optional, tag = "19")]
    announce_cluster_ips: Option<bool>,
    #[prost(bool, optional, tag = "20")]
    announce_external_ips: Option<bool>,
    #[prost(bool, optional, tag = "21")]
    announce_load_balancer_ips: Option<bool>,
    #[prost(message, optional, tag = "22")]
    source_ranges: Option<RangesRecord>,
    #[prost(bool, tag = "23")]
    dsr: bool,
}

/// Ranges, of which there may be none.
#[derive(Clone, PartialEq, prost::Message)]
struct RangesRecord {
    #[prost(bytes = "vec", tag = "1")]
    ranges: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LoadBalancerRecord {
    #[prost(bytes = "vec", tag = "1")]
    address: Vec<u8>,
    #[prost(bool, tag = "2")]
    through_balancer: bool,
}

/// A port of a Service or of a slice.
#[derive(Clone, PartialEq, prost::Message)]
struct PortRecord {
    #[prost(string, tag = "1")]
    name: String,
    /// As in the IP header (IANA).
    #[prost(uint32, tag = "2")]
    protocol: u32,
    #[prost(uint32, tag = "3")]
    port: u32,
    /// 0 where there is none; always 0 for a slice.
    #[prost(uint32, tag = "4")]
    node_port: u32,
}

/// A slice. Its endpoints are a table: addresses, nodes and conditions are its columns.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SliceRecord {
    #[prost(string, tag = "1")]
    namespace: String,
    #[prost(string, tag = "2")]
    service: String,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(bool, tag = "4")]
    is_v6: bool,
    #[prost(message, repeated, tag = "5")]
    ports: Vec<PortRecord>,
    #[prost(bytes = "vec", tag = "6")]
    addresses: Vec<u8>,
    #[prost(uint32, repeated, tag = "7")]
    nodes: Vec<u32>,
    /// Exceptional conditions: 1 not ready, 2 not serving, 4 terminating.
    #[prost(uint32, repeated, tag = "8")]
    conditions: Vec<u32>,
    #[prost(uint32, repeated, tag = "9")]
    hints: Vec<u32>,
}

impl ServiceRecord {
    pub fn of(name: &ObjectName, service: &Service) -> ServiceRecord {
        let Service {
            kind,
            cluster_ips,
            external_ips,
            load_balancer,
            source_ranges,
            ports,
            affinity_seconds,
            internal_traffic_policy,
            external_traffic_policy,
            health_check_node_port,
            annotations: ProxyAnnotations { scheduler, scheduler_flags, local, skip_load_balancer_ips, dsr },
            announce: AnnounceAnnotations { cluster_ips: of_cluster, external_ips: of_external, load_balancer_ips },
            created,
        } = service;
        let SchedulerFlags { flag_1, flag_2, flag_3 } = *scheduler_flags;
        ServiceRecord {
            namespace: name.namespace.to_string(),
            name: name.name.to_string(),
            kind: match kind {
                ServiceType::ClusterIp => 0,
                ServiceType::NodePort => 1,
                ServiceType::LoadBalancer => 2,
            },
            cluster_ips: addresses(cluster_ips),
            external_ips: addresses(external_ips),
            load_balancer: load_balancer.iter().map(LoadBalancerRecord::of).collect(),
            ports: ports.iter().map(PortRecord::of_service).collect(),
            affinity_seconds: *affinity_seconds,
            internal_local: *internal_traffic_policy == TrafficPolicy::Local,
            external_local: *external_traffic_policy == TrafficPolicy::Local,
            health_check_node_port: health_check_node_port.map(u32::from),
            scheduler: if *scheduler == Scheduler::Rr { String::new() } else { scheduler.name().to_owned() },
            scheduler_flag_1: flag_1,
            scheduler_flag_2: flag_2,
            scheduler_flag_3: flag_3,
            annotated_local: *local,
            skip_load_balancer_ips: *skip_load_balancer_ips,
            created: *created,
            announce_cluster_ips: *of_cluster,
            announce_external_ips: *of_external,
            announce_load_balancer_ips: *load_balancer_ips,
            source_ranges: source_ranges.as_deref().map(RangesRecord::of),
            dsr: *dsr,
        }
    }

    pub fn service(self) -> Option<(ObjectName, Service)> {
        let policy = |is_local| if is_local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
        let (flag_1, flag_2, flag_3) = (self.scheduler_flag_1, self.scheduler_flag_2, self.scheduler_flag_3);
        let service = Service {
            kind: match self.kind {
                0 => ServiceType::ClusterIp,
                1 => ServiceType::NodePort,
                2 => ServiceType::LoadBalancer,
                _ => return None,
            },
            cluster_ips: Packed::new(&self.cluster_ips).all()?,
            external_ips: Packed::new(&self.external_ips).all()?,
            load_balancer: self.load_balancer.iter().map(LoadBalancerRecord::address).collect::<Option<_>>()?,
            source_ranges: match &self.source_ranges {
                Some(record) => Some(record.ranges()?),
                None => None,
            },
            ports: self.ports.iter().map(PortRecord::service_port).collect::<Option<_>>()?,
            affinity_seconds: self.affinity_seconds,
            internal_traffic_policy: policy(self.internal_local),
            external_traffic_policy: policy(self.external_local),
            health_check_node_port: optional_port(self.health_check_node_port)?,
            annotations: ProxyAnnotations {
                scheduler: match self.scheduler.as_str() {
                    "" => Scheduler::Rr,
                    name => Scheduler::from_name(name)?,
                },
                scheduler_flags: SchedulerFlags { flag_1, flag_2, flag_3 },
                local: self.annotated_local,
                skip_load_balancer_ips: self.skip_load_balancer_ips,
                dsr: self.dsr,
            },
            announce: AnnounceAnnotations {
                cluster_ips: self.announce_cluster_ips,
                external_ips: self.announce_external_ips,
                load_balancer_ips: self.announce_load_balancer_ips,
            },
            created: self.created,
        };
        Some((ObjectName::new(&self.namespace, &self.name), service))
    }
}

impl RangesRecord {
    fn of(given: &[IpNet]) -> RangesRecord {
        RangesRecord { ranges: ranges(given) }
    }

    fn ranges(&self) -> Option<Box<[IpNet]>> {
        Some(Packed::new(&self.ranges).all_ranges()?.into())
    }
}

impl LoadBalancerRecord {
    fn of(address: &LoadBalancerAddress) -> LoadBalancerRecord {
        let LoadBalancerAddress { address, through_balancer } = address;
        LoadBalancerRecord { address: addresses([address]), through_balancer: *through_balancer }
    }

    fn address(&self) -> Option<LoadBalancerAddress> {
        let address = only_address(&self.address)?;
        Some(LoadBalancerAddress { address, through_balancer: self.through_balancer })
    }
}

impl PortRecord {
    fn of(name: &CompactString, protocol: Protocol, port: u16, node_port: u16) -> PortRecord {
        PortRecord {
            name: name.to_string(),
            protocol: u32::from(protocol.number()),
            port: u32::from(port),
            node_port: u32::from(node_port),
        }
    }

    fn of_service(port: &ServicePort) -> PortRecord {
        let ServicePort { name, protocol, port, node_port } = port;
        PortRecord::of(name, *protocol, *port, node_port.unwrap_or(0))
    }

    fn of_endpoint(port: &EndpointPort) -> PortRecord {
        let EndpointPort { name, protocol, port } = port;
        PortRecord::of(name, *protocol, *port, 0)
    }

    fn service_port(&self) -> Option<ServicePort> {
        let EndpointPort { name, protocol, port } = self.endpoint_port()?;
        let node_port = u16::try_from(self.node_port).ok()?;
        Some(ServicePort { name, protocol, port, node_port: Some(node_port).filter(|port| *port != 0) })
    }

    fn endpoint_port(&self) -> Option<EndpointPort> {
        let port = u16::try_from(self.port).ok()?;
        Some(EndpointPort { name: self.name.as_str().into(), protocol: protocol(self.protocol)?, port })
    }
}

/// A port that may be absent; `None` where the number is none of a port.
pub fn optional_port(number: Option<u32>) -> Option<Option<u16>> {
    number.map(u16::try_from).transpose().ok()
}

impl SliceRecord {
    pub fn of<'a>(
        service: &ObjectName,
        name: &CompactString,
        slice: &'a EndpointSlice,
        collected: &mut Collected<'a>,
    ) -> SliceRecord {
        let EndpointSlice { family, ports, endpoints } = slice;
        let (mut addresses, mut nodes, mut conditions, mut hints) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for Listed { address, node, conditions: is, hints: its } in endpoints.listed() {
            put_address(&mut addresses, &address);
            nodes.push(collected.node(node));
            conditions.push(u32::from(!is.ready) | u32::from(!is.serving) << 1 | u32::from(is.terminating) << 2);
            hints.push(collected.hints(its));
        }
        SliceRecord {
            namespace: service.namespace.to_string(),
            service: service.name.to_string(),
            name: name.to_string(),
            is_v6: *family == Family::V6,
            ports: ports.iter().map(PortRecord::of_endpoint).collect(),
            addresses,
            nodes: column(nodes),
            conditions: column(conditions),
            hints: column(hints),
        }
    }

    /// The slice, with the name of its Service and its own.
    pub fn slice(self, lists: &Lists) -> Option<(ObjectName, CompactString, EndpointSlice)> {
        let addresses = Packed::new(&self.addresses).all()?;
        let columns = rows(self.nodes).zip(rows(self.conditions)).zip(rows(self.hints));
        let endpoints = addresses.into_iter().zip(columns).map(|(address, ((node, conditions), hints))| {
            let is_not = |bit| conditions & bit != 0;
            let conditions = Conditions { ready: !is_not(1), serving: !is_not(2), terminating: is_not(4) };
            Some(Endpoint { address, node: lists.node(node)?, conditions, hints: lists.hints(hints)? })
        });
        let slice = EndpointSlice {
            family: if self.is_v6 { Family::V6 } else { Family::V4 },
            endpoints: endpoints.collect::<Option<_>>()?,
            ports: self.ports.iter().map(PortRecord::endpoint_port).collect::<Option<_>>()?,
        };
        let service = ObjectName::new(&self.namespace, &self.service);
        Some((service, self.name.into(), slice))
    }
}
