//! Forms 1 to 3 of the last known state, which knew their fields by their order: read, and no longer written.
//!
//! A program that takes the place of an older one while the API is away must know what that one knew. The body is
//! `postcard`. Form 1 knew what the service proxy needs. Behind it form 2 has what the firewall needs ([`firewall`]), and form 3
//! behind that what the router needs ([`router`]). Nothing here changes any more.

mod firewall;
mod router;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use compact_str::CompactString;
use ipnet::IpNet;
use serde::Deserialize;

use self::firewall::FirewallRecord;
use self::router::RouterRecord;
use super::{Known, Unusable};
use crate::k8s::Kind;
use crate::model::{
    AnnounceAnnotations, Cluster, Conditions, Endpoint, EndpointPort, EndpointSlice, Endpoints, LoadBalancerAddress,
    Node, NodeAddress, NodeAddressKind, ObjectName, ProxyAnnotations, Scheduler, SchedulerFlags, Service, ServicePort,
    ServiceType, Shared, TrafficPolicy,
};
use crate::net::{Family, Protocol};

/// Decodes the body of a file of one of these forms.
///
/// # Errors
/// The body is truncated, or has a value that this form does not know.
pub fn decode(version: u32, body: &[u8]) -> Result<Known, Unusable> {
    let senseless = |_| Unusable::Damaged("its body makes no sense");
    let unknown = || Unusable::Damaged("it names something unknown");
    let (record, mut rest): (ClusterRecord, _) = postcard::take_from_bytes(body).map_err(senseless)?;
    let cluster = record.cluster().ok_or_else(unknown)?;
    let mut known = Known { cluster, kinds: OF_FORM_1.to_vec(), all_nodes: false };
    if version >= WITH_FIREWALL {
        let record: FirewallRecord;
        (record, rest) = postcard::take_from_bytes(rest).map_err(senseless)?;
        record.complete(&mut known).ok_or_else(unknown)?;
    }
    if version >= WITH_ROUTER {
        let record: RouterRecord;
        (record, rest) = postcard::take_from_bytes(rest).map_err(senseless)?;
        record.complete(&mut known).ok_or_else(unknown)?;
    }
    if rest.is_empty() { Ok(known) } else { Err(Unusable::Damaged("there is something behind its end")) }
}

/// The kinds of which form 1 knew all.
const OF_FORM_1: [Kind; 3] = [Kind::Service, Kind::EndpointSlice, Kind::Node];
const WITH_FIREWALL: u32 = 2;
const WITH_ROUTER: u32 = 3;

#[derive(Deserialize)]
struct ClusterRecord {
    /// Node names, each once; endpoints refer to them by number.
    node_names: Vec<CompactString>,
    services: Vec<(NameRecord, ServiceRecord)>,
    slices: Vec<SliceRecord>,
    nodes: Vec<NodeRecord>,
}

#[derive(Deserialize)]
struct NameRecord(CompactString, CompactString);

#[derive(Deserialize)]
struct ServiceRecord {
    kind: u8,
    cluster_ips: Vec<IpAddr>,
    external_ips: Vec<IpAddr>,
    load_balancer: Vec<(IpAddr, bool)>,
    ports: Vec<PortRecord>,
    affinity_seconds: Option<u32>,
    internal_local: bool,
    external_local: bool,
    health_check_node_port: Option<u16>,
    scheduler: CompactString,
    scheduler_flags: (bool, bool, bool),
    annotated_local: bool,
    skip_load_balancer_ips: bool,
    created: i64,
}

#[derive(Deserialize)]
struct PortRecord {
    name: CompactString,
    protocol: u8,
    port: u16,
    /// The node port, 0 where there is none; always 0 for a slice.
    node_port: u16,
}

#[derive(Deserialize)]
struct SliceRecord {
    service: NameRecord,
    name: CompactString,
    is_v6: bool,
    ports: Vec<PortRecord>,
    endpoints: Vec<EndpointRecord>,
}

#[derive(Deserialize)]
struct EndpointRecord {
    address: IpAddr,
    /// The place of the node's name in `node_names`, counted from 1; 0 without a node.
    node: u32,
    /// 1 ready, 2 serving, 4 terminating.
    conditions: u8,
}

#[derive(Deserialize)]
struct NodeRecord {
    name: CompactString,
    /// True for an internal address.
    addresses: Vec<(bool, IpAddr)>,
    pod_cidrs: Vec<(IpAddr, u8)>,
}

impl ClusterRecord {
    fn cluster(self) -> Option<Cluster> {
        let mut cluster = Cluster::default();
        for (name, service) in self.services {
            cluster.services.insert(name.name(), service.service()?);
        }
        let names: Vec<Shared<str>> = self.node_names.iter().map(|name| name.as_str().into()).collect();
        let mut endpoints: HashMap<ObjectName, Endpoints> = HashMap::new();
        for record in self.slices {
            let (service, name, slice) = record.slice(&names)?;
            endpoints.entry(service).or_default().slices.insert(name, Arc::new(slice));
        }
        for (name, endpoints) in endpoints {
            cluster.endpoints.insert(name, endpoints);
        }
        for record in self.nodes {
            let (name, node) = record.node()?;
            cluster.nodes.insert(name, node);
        }
        Some(cluster)
    }
}

impl NameRecord {
    fn name(self) -> ObjectName {
        ObjectName::new(&self.0, &self.1)
    }
}

impl ServiceRecord {
    fn service(self) -> Option<Service> {
        let policy = |is_local| if is_local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
        let (flag_1, flag_2, flag_3) = self.scheduler_flags;
        Some(Service {
            kind: match self.kind {
                0 => ServiceType::ClusterIp,
                1 => ServiceType::NodePort,
                2 => ServiceType::LoadBalancer,
                _ => return None,
            },
            cluster_ips: self.cluster_ips,
            external_ips: self.external_ips,
            load_balancer: self
                .load_balancer
                .into_iter()
                .map(|(address, through_balancer)| LoadBalancerAddress { address, through_balancer })
                .collect(),
            ports: self.ports.into_iter().map(PortRecord::service_port).collect::<Option<_>>()?,
            affinity_seconds: self.affinity_seconds,
            internal_traffic_policy: policy(self.internal_local),
            external_traffic_policy: policy(self.external_local),
            source_ranges: None,
            health_check_node_port: self.health_check_node_port,
            annotations: ProxyAnnotations {
                scheduler: Scheduler::from_name(&self.scheduler)?,
                scheduler_flags: SchedulerFlags { flag_1, flag_2, flag_3 },
                local: self.annotated_local,
                skip_load_balancer_ips: self.skip_load_balancer_ips,
                dsr: false,
            },
            announce: AnnounceAnnotations::default(),
            created: self.created,
        })
    }
}

impl PortRecord {
    fn service_port(self) -> Option<ServicePort> {
        Some(ServicePort {
            name: self.name,
            protocol: Protocol::from_number(self.protocol)?,
            port: self.port,
            node_port: Some(self.node_port).filter(|port| *port != 0),
        })
    }

    fn endpoint_port(self) -> Option<EndpointPort> {
        Some(EndpointPort { name: self.name, protocol: Protocol::from_number(self.protocol)?, port: self.port })
    }
}

impl SliceRecord {
    fn slice(self, names: &[Shared<str>]) -> Option<(ObjectName, CompactString, EndpointSlice)> {
        let mut endpoints = Vec::with_capacity(self.endpoints.len());
        for record in self.endpoints {
            let node = match record.node.checked_sub(1) {
                Some(place) => Some(names.get(usize::try_from(place).ok()?)?.clone()),
                None => None,
            };
            let is = |bit| record.conditions & bit != 0;
            let conditions = Conditions { ready: is(1), serving: is(2), terminating: is(4) };
            endpoints.push(Endpoint { address: record.address, node, conditions, hints: None });
        }
        let slice = EndpointSlice {
            family: if self.is_v6 { Family::V6 } else { Family::V4 },
            ports: self.ports.into_iter().map(PortRecord::endpoint_port).collect::<Option<_>>()?,
            endpoints: endpoints.into(),
        };
        Some((self.service.name(), self.name, slice))
    }
}

impl NodeRecord {
    fn node(self) -> Option<(CompactString, Node)> {
        let kind = |internal| if internal { NodeAddressKind::Internal } else { NodeAddressKind::External };
        let node = Node {
            addresses: self
                .addresses
                .into_iter()
                .map(|(internal, address)| NodeAddress { kind: kind(internal), address })
                .collect(),
            pod_cidrs: self
                .pod_cidrs
                .into_iter()
                .map(|(address, length)| IpNet::new(address, length).ok())
                .collect::<Option<_>>()?,
            // The present condition is known from the API alone; the rest was not kept then.
            ..Node::default()
        };
        Some((self.name, node))
    }
}
