//! The form in which the last known state is written down.
//!
//! The file outlives the program that wrote it, so its form is a promise: the types here are made for it and
//! change only together with [`VERSION`]. It begins with a magic text, the version of the form, the length of
//! the body and a checksum over all of that and the body; the body is `postcard`.
//!
//! Form 3 is form 2 and behind it what the router needs ([`routed`]). Form 2 is form 1, which knew what the service proxy
//! needs, and behind it what the firewall needs ([`policed`]). Earlier forms are still read: a program that takes the place of an older one while the API is away must know what that one knew.
//!
//! Pure: bytes in, cluster out, and the reverse.

mod policed;
mod routed;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use compact_str::CompactString;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use self::policed::PolicedRecord;
use self::routed::RoutedRecord;
use super::Known;
use crate::k8s::Kind;
use crate::model::{
    AnnounceAnnotations, Cluster, Conditions, Endpoint, EndpointPort, EndpointSlice, Endpoints, LoadBalancerAddress,
    Node, NodeAddress, NodeAddressKind, ObjectName, ProxyAnnotations, Scheduler, SchedulerFlags, Service, ServicePort,
    ServiceType, TrafficPolicy,
};
use crate::net::{Family, Protocol};

/// Why bytes are not a cluster.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum Unusable {
    #[error("it is not a file of this program")]
    Foreign,
    #[error("it was written in form {0}, and this program knows forms up to {VERSION}")]
    OtherVersion(u32),
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
}

/// The bytes of a file that holds what is known.
pub fn encode(known: &Known) -> Vec<u8> {
    let records = (ClusterRecord::of(&known.cluster), PolicedRecord::of(known), RoutedRecord::of(known));
    let body = postcard::to_stdvec(&records).expect("plain data in memory can be written down");
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
    let checksum = crc32(crc32(CRC_START, &bytes), &body) ^ CRC_START;
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

/// What the bytes of a file hold.
pub fn decode(bytes: &[u8]) -> Result<Known, Unusable> {
    let (start, rest) = bytes.split_at_checked(HEADER - 4).ok_or_else(|| too_short(bytes))?;
    let (magic, numbers) = start.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(Unusable::Foreign);
    }
    let (version, length) = numbers.split_at(4);
    let version = u32::from_le_bytes(version.try_into().expect("four bytes were split off"));
    if !(PROXIED_ONLY..=VERSION).contains(&version) {
        return Err(Unusable::OtherVersion(version));
    }
    let length = u64::from_le_bytes(length.try_into().expect("eight bytes are left"));
    let (checksum, body) = rest.split_at_checked(4).ok_or_else(|| too_short(bytes))?;
    if body.len() as u64 != length {
        return Err(Unusable::Damaged("its length is not what it says"));
    }
    if (crc32(crc32(CRC_START, start), body) ^ CRC_START).to_le_bytes() != checksum {
        return Err(Unusable::Damaged("its checksum is wrong"));
    }
    let senseless = |_| Unusable::Damaged("its body makes no sense");
    let unknown = || Unusable::Damaged("it names something unknown");
    let (record, rest): (ClusterRecord, _) = postcard::take_from_bytes(body).map_err(senseless)?;
    let cluster = record.cluster().ok_or_else(unknown)?;
    let mut known = Known { cluster, kinds: OF_PROXIED_ONLY.to_vec(), all_nodes: false };
    let mut rest = rest;
    if version >= WITH_POLICED {
        let record: PolicedRecord;
        (record, rest) = postcard::take_from_bytes(rest).map_err(senseless)?;
        record.complete(&mut known).ok_or_else(unknown)?;
    }
    if version >= WITH_ROUTED {
        let record: RoutedRecord;
        (record, rest) = postcard::take_from_bytes(rest).map_err(senseless)?;
        record.complete(&mut known).ok_or_else(unknown)?;
    }
    if rest.is_empty() { Ok(known) } else { Err(Unusable::Damaged("there is something behind its end")) }
}

/// The form that this program writes.
const VERSION: u32 = WITH_ROUTED;

/// The first form, and the kinds of which it knew all.
const PROXIED_ONLY: u32 = 1;
const WITH_POLICED: u32 = 2;
const WITH_ROUTED: u32 = 3;
const OF_PROXIED_ONLY: [Kind; 3] = [Kind::Service, Kind::EndpointSlice, Kind::Node];

const MAGIC: &[u8; 8] = b"sluice\n\x1a";

/// Magic, version, length, checksum. Two files with equal headers hold the same cluster.
pub const HEADER: usize = MAGIC.len() + 4 + 8 + 4;

fn too_short(bytes: &[u8]) -> Unusable {
    if MAGIC.starts_with(bytes.get(..MAGIC.len().min(bytes.len())).unwrap_or_default()) || bytes.starts_with(MAGIC) {
        Unusable::Damaged("it is too short")
    } else {
        Unusable::Foreign
    }
}

#[derive(Serialize, Deserialize)]
struct ClusterRecord {
    /// Node names, each once; endpoints refer to them by number.
    node_names: Vec<CompactString>,
    services: Vec<(NameRecord, ServiceRecord)>,
    slices: Vec<SliceRecord>,
    nodes: Vec<NodeRecord>,
}

#[derive(Serialize, Deserialize)]
struct NameRecord(CompactString, CompactString);

#[derive(Serialize, Deserialize)]
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

#[derive(Serialize, Deserialize)]
struct PortRecord {
    name: CompactString,
    protocol: u8,
    port: u16,
    /// The node port, 0 where there is none; always 0 for a slice.
    node_port: u16,
}

#[derive(Serialize, Deserialize)]
struct SliceRecord {
    service: NameRecord,
    name: CompactString,
    is_v6: bool,
    ports: Vec<PortRecord>,
    endpoints: Vec<EndpointRecord>,
}

#[derive(Serialize, Deserialize)]
struct EndpointRecord {
    address: IpAddr,
    /// The place of the node's name in `node_names`, counted from 1; 0 without a node.
    node: u32,
    /// 1 ready, 2 serving, 4 terminating.
    conditions: u8,
}

#[derive(Serialize, Deserialize)]
struct NodeRecord {
    name: CompactString,
    /// True for an internal address.
    addresses: Vec<(bool, IpAddr)>,
    pod_cidrs: Vec<(IpAddr, u8)>,
}

impl ClusterRecord {
    fn of(cluster: &Cluster) -> ClusterRecord {
        let mut names = Names::default();
        let slices = cluster
            .endpoints
            .iter()
            .flat_map(|(service, endpoints)| endpoints.slices.iter().map(move |(name, slice)| (service, name, slice)))
            .map(|(service, name, slice)| SliceRecord::of(service, name, slice, &mut names))
            .collect();
        ClusterRecord {
            slices,
            node_names: names.in_order,
            services: cluster
                .services
                .iter()
                .map(|(name, service)| (NameRecord::of(name), ServiceRecord::of(service)))
                .collect(),
            nodes: cluster.nodes.iter().map(|(name, node)| NodeRecord::of(name, node)).collect(),
        }
    }

    fn cluster(self) -> Option<Cluster> {
        let mut cluster = Cluster::default();
        for (name, service) in self.services {
            cluster.services.insert(name.name(), service.service()?);
        }
        let names: Vec<Arc<str>> = self.node_names.iter().map(|name| Arc::from(name.as_str())).collect();
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

#[derive(Default)]
struct Names {
    in_order: Vec<CompactString>,
    places: HashMap<Arc<str>, u32>,
}

impl Names {
    fn place(&mut self, name: &Arc<str>) -> u32 {
        if let Some(place) = self.places.get(name) {
            return *place;
        }
        self.in_order.push(CompactString::from(&**name));
        let place = u32::try_from(self.in_order.len()).expect("there are fewer nodes than numbers");
        self.places.insert(name.clone(), place);
        place
    }
}

impl NameRecord {
    fn of(name: &ObjectName) -> NameRecord {
        NameRecord(name.namespace.clone(), name.name.clone())
    }

    fn name(self) -> ObjectName {
        ObjectName { namespace: self.0, name: self.1 }
    }
}

impl ServiceRecord {
    fn of(service: &Service) -> ServiceRecord {
        let flags = service.annotations.scheduler_flags;
        ServiceRecord {
            kind: match service.kind {
                ServiceType::ClusterIp => 0,
                ServiceType::NodePort => 1,
                ServiceType::LoadBalancer => 2,
            },
            cluster_ips: service.cluster_ips.clone(),
            external_ips: service.external_ips.clone(),
            load_balancer: service.load_balancer.iter().map(|it| (it.address, it.through_balancer)).collect(),
            ports: service.ports.iter().map(PortRecord::of_service).collect(),
            affinity_seconds: service.affinity_seconds,
            internal_local: service.internal_traffic_policy == TrafficPolicy::Local,
            external_local: service.external_traffic_policy == TrafficPolicy::Local,
            health_check_node_port: service.health_check_node_port,
            scheduler: service.annotations.scheduler.name().into(),
            scheduler_flags: (flags.flag_1, flags.flag_2, flags.flag_3),
            annotated_local: service.annotations.local,
            skip_load_balancer_ips: service.annotations.skip_load_balancer_ips,
            created: service.created,
        }
    }

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
            health_check_node_port: self.health_check_node_port,
            annotations: ProxyAnnotations {
                scheduler: Scheduler::from_name(&self.scheduler)?,
                scheduler_flags: SchedulerFlags { flag_1, flag_2, flag_3 },
                local: self.annotated_local,
                skip_load_balancer_ips: self.skip_load_balancer_ips,
            },
            announce: AnnounceAnnotations::default(),
            created: self.created,
        })
    }
}

impl PortRecord {
    fn of_service(port: &ServicePort) -> PortRecord {
        PortRecord {
            name: port.name.clone(),
            protocol: port.protocol.number(),
            port: port.port,
            node_port: port.node_port.unwrap_or(0),
        }
    }

    fn service_port(self) -> Option<ServicePort> {
        Some(ServicePort {
            name: self.name,
            protocol: Protocol::from_number(self.protocol)?,
            port: self.port,
            node_port: Some(self.node_port).filter(|port| *port != 0),
        })
    }

    fn of_endpoint(port: &EndpointPort) -> PortRecord {
        PortRecord { name: port.name.clone(), protocol: port.protocol.number(), port: port.port, node_port: 0 }
    }

    fn endpoint_port(self) -> Option<EndpointPort> {
        Some(EndpointPort { name: self.name, protocol: Protocol::from_number(self.protocol)?, port: self.port })
    }
}

impl SliceRecord {
    fn of(service: &ObjectName, name: &CompactString, slice: &EndpointSlice, names: &mut Names) -> SliceRecord {
        let endpoints = slice.endpoints.iter().map(|endpoint| EndpointRecord {
            address: endpoint.address,
            node: endpoint.node.as_ref().map_or(0, |name| names.place(name)),
            conditions: u8::from(endpoint.conditions.ready)
                | u8::from(endpoint.conditions.serving) << 1
                | u8::from(endpoint.conditions.terminating) << 2,
        });
        SliceRecord {
            service: NameRecord::of(service),
            name: name.clone(),
            is_v6: slice.family == Family::V6,
            ports: slice.ports.iter().map(PortRecord::of_endpoint).collect(),
            endpoints: endpoints.collect(),
        }
    }

    fn slice(self, names: &[Arc<str>]) -> Option<(ObjectName, CompactString, EndpointSlice)> {
        let mut endpoints = Vec::with_capacity(self.endpoints.len());
        for record in self.endpoints {
            let node = match record.node.checked_sub(1) {
                Some(place) => Some(names.get(usize::try_from(place).ok()?)?.clone()),
                None => None,
            };
            let is = |bit| record.conditions & bit != 0;
            let conditions = Conditions { ready: is(1), serving: is(2), terminating: is(4) };
            endpoints.push(Endpoint { address: record.address, node, conditions });
        }
        let slice = EndpointSlice {
            family: if self.is_v6 { Family::V6 } else { Family::V4 },
            ports: self.ports.into_iter().map(PortRecord::endpoint_port).collect::<Option<_>>()?,
            endpoints: endpoints.into_boxed_slice(),
        };
        Some((self.service.name(), self.name, slice))
    }
}

impl NodeRecord {
    fn of(name: &CompactString, node: &Node) -> NodeRecord {
        let is_internal = |address: &NodeAddress| address.kind == NodeAddressKind::Internal;
        NodeRecord {
            name: name.clone(),
            addresses: node.addresses.iter().map(|address| (is_internal(address), address.address)).collect(),
            pod_cidrs: node.pod_cidrs.iter().map(|range| (range.addr(), range.prefix_len())).collect(),
        }
    }

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
            // What is the case now says only the API.
            network_unavailable: false,
            is_on_aws: false,
            routing: None,
        };
        Some((self.name, node))
    }
}

const CRC_START: u32 = u32::MAX;

/// CRC-32 of IEEE 802.3, reflected, as `cksum -a crc32b` computes it; `state` goes from call to call.
fn crc32(state: u32, bytes: &[u8]) -> u32 {
    #[expect(clippy::indexing_slicing, reason = "computed when the program is compiled, where a panic is an error")]
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut value = index as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 { (value >> 1) ^ 0xedb8_8320 } else { value >> 1 };
                bit += 1;
            }
            table[index] = value;
            index += 1;
        }
        table
    };
    bytes.iter().fold(state, |state, byte| {
        let index = usize::from((state as u8) ^ byte);
        TABLE.get(index).copied().expect("a byte is below 256") ^ (state >> 8)
    })
}

#[cfg(test)]
mod tests;
