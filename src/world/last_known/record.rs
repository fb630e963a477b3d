//! The format of the last known state on disk.
//!
//! The file outlives the program that wrote it, in both directions: after an upgrade a newer program reads it, after a rollback
//! an older one. It begins with a magic text, the version of the form, the length of the body and a checksum over all of
//! that and the body. The body is a protobuf message, [`ClusterRecord`], so fields go by number:
//!
//! - A new field takes a number that was never used, here and nowhere else. A program that does not know it skips it; a
//!   file that does not have it says 0, empty or absent, which has to mean what programs without the field did.
//! - A number never changes its meaning, and one that is given up is not used again.
//! - What an earlier program must not take for less than it is (a selector that became narrower, say) is written in a new
//!   field in place of the old one. [`VERSION`] changes only where even that does not do.
//!
//! An object that has a value which this program does not know is left out, and its kind is then not known in full, so
//! that nothing is done on the word of the rest ([`Known::kinds`]).
//!
//! Forms 1 to 3, which knew their fields by their order, are still read ([`ordered`]).
//!
//! Pure: bytes in, cluster out, and the reverse.

mod lists;
mod node;
mod ordered;
mod packed;
mod pod;
mod policy;
mod service;

use std::collections::HashMap;
use std::sync::Arc;

use prost::Message;

use self::lists::{Collected, Lists, ListsRecord};
use self::node::NodeRecord;
use self::packed::Packed;
use self::pod::{NamespaceRecord, PodsRecord};
use self::policy::{ClusterPolicyRecord, PolicyRecord};
use self::service::{ServiceRecord, SliceRecord};
use super::Known;
use crate::k8s::Kind;
use crate::model::{Cluster, Endpoints, ObjectName, Pod, ServiceCidr, Table};

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

/// Encodes the known state as the bytes of a file.
pub fn encode(known: &Known) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    write_body(known, &mut bytes);
    let (header, body) = bytes.split_at_mut(HEADER);
    let start = [&MAGIC[..], &VERSION.to_le_bytes(), &(body.len() as u64).to_le_bytes()].concat();
    let checksum = crc32(crc32(CRC_START, &start), body) ^ CRC_START;
    header.copy_from_slice(&[&start[..], &checksum.to_le_bytes()].concat());
    bytes
}

/// Decodes the bytes of a file.
///
/// # Errors
/// The bytes are not those of a file that this program, or an earlier one, wrote completely.
pub fn decode(bytes: &[u8]) -> Result<Known, Unusable> {
    let (start, rest) = bytes.split_at_checked(HEADER - 4).ok_or_else(|| too_short(bytes))?;
    let (magic, numbers) = start.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(Unusable::Foreign);
    }
    let (version, length) = numbers.split_at(4);
    let version = u32::from_le_bytes(version.try_into().expect("four bytes were split off"));
    if !(1..=VERSION).contains(&version) {
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
    if version < VERSION {
        let known = ordered::decode(version, body)?;
        return Ok(Known { kinds: with_later_kinds(known.kinds), ..known });
    }
    let record = ClusterRecord::decode(body).map_err(|_| Unusable::Damaged("its body makes no sense"))?;
    Ok(record.known())
}

/// The version that this program writes.
const VERSION: u32 = 4;

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

/// The known state as a message.
#[derive(Clone, PartialEq, Message)]
struct ClusterRecord {
    /// The kinds of which everything is written down: 1 Service, 2 EndpointSlice, 3 Node, 4 Pod, 5 Namespace, 6 NetworkPolicy,
    /// 7 ClusterNetworkPolicy, 8 ServiceCIDR.
    #[prost(uint32, repeated, tag = "1")]
    kinds: Vec<u32>,
    /// The nodes are all that there were.
    #[prost(bool, tag = "2")]
    all_nodes: bool,
    #[prost(message, repeated, tag = "3")]
    services: Vec<ServiceRecord>,
    #[prost(message, repeated, tag = "4")]
    slices: Vec<SliceRecord>,
    #[prost(message, repeated, tag = "5")]
    nodes: Vec<NodeRecord>,
    #[prost(message, repeated, tag = "6")]
    pods: Vec<PodsRecord>,
    #[prost(message, repeated, tag = "7")]
    namespaces: Vec<NamespaceRecord>,
    #[prost(message, repeated, tag = "8")]
    policies: Vec<PolicyRecord>,
    #[prost(message, optional, tag = "9")]
    lists: Option<ListsRecord>,
    #[prost(message, repeated, tag = "10")]
    cluster_policies: Vec<ClusterPolicyRecord>,
    #[prost(message, repeated, tag = "11")]
    service_cidrs: Vec<ServiceCidrRecord>,
}

/// The ranges of one ServiceCIDR.
#[derive(Clone, PartialEq, Message)]
struct ServiceCidrRecord {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bytes = "vec", tag = "2")]
    ranges: Vec<u8>,
}

/// Appends the body. Messages that stand one behind the other are one message, so no more than one record is in memory at a time.
fn write_body(known: &Known, bytes: &mut Vec<u8>) {
    let Known { cluster, kinds, all_nodes } = known;
    let Cluster { services, endpoints, nodes, pods, namespaces, policies, cluster_policies, service_cidrs } = cluster;
    let mut collected = Collected::default();
    let mut write = |record: ClusterRecord| record.encode(bytes).expect("a vector has room for everything");
    let kinds = kinds.iter().map(|kind| number_of(*kind)).collect();
    write(ClusterRecord { kinds, all_nodes: *all_nodes, ..ClusterRecord::default() });
    for (name, service) in services.iter() {
        write(ClusterRecord { services: vec![ServiceRecord::of(name, service)], ..ClusterRecord::default() });
    }
    for (service, endpoints) in endpoints.iter() {
        let Endpoints { slices } = &**endpoints;
        for (name, slice) in slices.iter() {
            let slices = vec![SliceRecord::of(service, name, slice, &mut collected)];
            write(ClusterRecord { slices, ..ClusterRecord::default() });
        }
    }
    for (name, node) in nodes.iter() {
        write(ClusterRecord { nodes: vec![NodeRecord::of(name, node, &mut collected)], ..ClusterRecord::default() });
    }
    let sorted: Vec<(&ObjectName, &Pod)> = pods.iter().map(|(name, pod)| (name, &**pod)).collect();
    for of_one in sorted.chunk_by(|(one, _), (other, _)| one.namespace == other.namespace) {
        write(ClusterRecord { pods: vec![PodsRecord::of(of_one, &mut collected)], ..ClusterRecord::default() });
    }
    for (name, namespace) in namespaces.iter() {
        let namespaces = vec![NamespaceRecord::of(name, namespace, &mut collected)];
        write(ClusterRecord { namespaces, ..ClusterRecord::default() });
    }
    for (name, policy) in policies.iter() {
        write(ClusterRecord { policies: vec![PolicyRecord::of(name, policy)], ..ClusterRecord::default() });
    }
    for (name, policy) in cluster_policies.iter() {
        let cluster_policies = vec![ClusterPolicyRecord::of(name, policy)];
        write(ClusterRecord { cluster_policies, ..ClusterRecord::default() });
    }
    for (name, of) in service_cidrs.iter() {
        let service_cidrs = vec![ServiceCidrRecord { name: name.to_string(), ranges: packed::ranges(&of.ranges) }];
        write(ClusterRecord { service_cidrs, ..ClusterRecord::default() });
    }
    write(ClusterRecord { lists: Some(collected.record()), ..ClusterRecord::default() });
}

impl ClusterRecord {
    fn known(self) -> Known {
        let lists = Lists::of(&self.lists.unwrap_or_default());
        let mut cluster = Cluster::default();
        // A kind with an invalid object is not known in full.
        let mut unclear: Vec<Kind> = Vec::new();
        let mut note = |kind, understood: Option<()>| {
            if understood.is_none() {
                unclear.push(kind);
            }
        };
        for record in self.services {
            note(Kind::Service, put(&mut cluster.services, record.service()));
        }
        let mut endpoints: HashMap<ObjectName, Endpoints> = HashMap::new();
        for record in self.slices {
            let read = record.slice(&lists).map(|(service, name, slice)| {
                endpoints.entry(service).or_default().slices.insert(name, Arc::new(slice));
            });
            note(Kind::EndpointSlice, read);
        }
        for (service, endpoints) in endpoints {
            cluster.endpoints.insert(service, endpoints);
        }
        for record in self.nodes {
            note(Kind::Node, put(&mut cluster.nodes, record.node(&lists)));
        }
        for record in self.pods {
            let read = record.pods(&lists, |name, pod| {
                cluster.pods.insert(name, pod);
            });
            note(Kind::Pod, read);
        }
        for record in self.namespaces {
            note(Kind::Namespace, put(&mut cluster.namespaces, record.namespace(&lists)));
        }
        for record in self.policies {
            note(Kind::NetworkPolicy, put(&mut cluster.policies, record.policy()));
        }
        for record in self.cluster_policies {
            note(Kind::ClusterNetworkPolicy, put(&mut cluster.cluster_policies, record.policy()));
        }
        for ServiceCidrRecord { name, ranges } in self.service_cidrs {
            let row = Packed::new(&ranges).all_ranges().map(|all| (name.into(), ServiceCidr { ranges: all.into() }));
            note(Kind::ServiceCidr, put(&mut cluster.service_cidrs, row));
        }
        let known_in_full = |kind: &Kind| !unclear.contains(kind);
        // A kind that this program does not know is none that it needs.
        let kinds = self.kinds.into_iter().filter_map(kind_of);
        let kinds = with_later_kinds(kinds.collect()).into_iter().filter(known_in_full).collect();
        Known { cluster, kinds, all_nodes: self.all_nodes && known_in_full(&Kind::Node) }
    }
}

/// Returns the kinds that a file holds in full, with those that its program did not know and so had none in force of: where
/// there were no ClusterNetworkPolicies to it, NetworkPolicies are all policies; and the ranges of cluster IPs were those of the flag.
fn with_later_kinds(mut kinds: Vec<Kind>) -> Vec<Kind> {
    if kinds.contains(&Kind::NetworkPolicy) && !kinds.contains(&Kind::ClusterNetworkPolicy) {
        kinds.push(Kind::ClusterNetworkPolicy);
    }
    if !kinds.is_empty() && !kinds.contains(&Kind::ServiceCidr) {
        kinds.push(Kind::ServiceCidr);
    }
    kinds
}

/// Adds a valid row.
fn put<K: Ord + Clone, V: PartialEq>(table: &mut Table<K, V>, row: Option<(K, V)>) -> Option<()> {
    let (key, value) = row?;
    table.insert(key, value);
    Some(())
}

fn number_of(kind: Kind) -> u32 {
    match kind {
        Kind::Service => 1,
        Kind::EndpointSlice => 2,
        Kind::Node => 3,
        Kind::Pod => 4,
        Kind::Namespace => 5,
        Kind::NetworkPolicy => 6,
        Kind::ClusterNetworkPolicy => 7,
        Kind::ServiceCidr => 8,
    }
}

fn kind_of(number: u32) -> Option<Kind> {
    Kind::ALL.into_iter().find(|kind| number_of(*kind) == number)
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
