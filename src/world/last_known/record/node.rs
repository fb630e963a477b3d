//! Nodes on disk, with their annotations about BGP.
//!
//! Passwords are not written: the file only records that there is one, and a neighbour with a password waits until it
//! is read from the API again.

use std::net::{IpAddr, Ipv4Addr};

use compact_str::CompactString;

use super::lists::{Collected, Lists};
use super::packed::{Packed, addresses, column, only_address, ranges, rows};
use super::service::optional_port;
use crate::model::{Node, NodeAddress, NodeAddressKind, Prepend, Reflection, Routing};
use crate::net::{Bfd, ExternalPeer, Password};

#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeRecord {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bytes = "vec", tag = "2")]
    addresses: Vec<u8>,
    /// One number for each address: 0 internal, 1 external.
    #[prost(uint32, repeated, tag = "3")]
    address_kinds: Vec<u32>,
    #[prost(bytes = "vec", tag = "4")]
    pod_cidrs: Vec<u8>,
    #[prost(message, optional, tag = "5")]
    routing: Option<RoutingRecord>,
    /// Empty where there is none.
    #[prost(string, tag = "6")]
    zone: String,
    /// A place in the list of labels.
    #[prost(uint32, tag = "7")]
    labels: u32,
    /// Each as `key=value:Effect`.
    #[prost(string, repeated, tag = "8")]
    taints: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RoutingRecord {
    #[prost(uint32, optional, tag = "1")]
    asn: Option<u32>,
    /// 0 none, 1 server, 2 client.
    #[prost(uint32, tag = "2")]
    reflection: u32,
    /// The cluster of the reflection.
    #[prost(fixed32, tag = "3")]
    cluster: u32,
    #[prost(message, optional, tag = "4")]
    prepend: Option<PrependRecord>,
    #[prost(uint32, repeated, tag = "5")]
    communities: Vec<u32>,
    #[prost(bytes = "vec", tag = "6")]
    import_reject: Vec<u8>,
    #[prost(message, repeated, tag = "7")]
    peers: Vec<PeerRecord>,
    #[prost(bytes = "vec", tag = "8")]
    local_addresses: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PrependRecord {
    #[prost(uint32, tag = "1")]
    asn: u32,
    #[prost(uint32, tag = "2")]
    times: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PeerRecord {
    #[prost(bytes = "vec", tag = "1")]
    address: Vec<u8>,
    #[prost(uint32, tag = "2")]
    asn: u32,
    #[prost(uint32, optional, tag = "3")]
    port: Option<u32>,
    #[prost(bool, tag = "4")]
    has_password: bool,
    /// Empty where it is the node's own.
    #[prost(bytes = "vec", tag = "5")]
    local: Vec<u8>,
    #[prost(message, optional, tag = "6")]
    bfd: Option<BfdRecord>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct BfdRecord {
    #[prost(uint32, tag = "1")]
    port: u32,
    #[prost(uint32, tag = "2")]
    multiplier: u32,
    #[prost(uint32, tag = "3")]
    send: u32,
    #[prost(uint32, tag = "4")]
    receive: u32,
}

impl NodeRecord {
    pub fn of<'a>(name: &CompactString, node: &'a Node, collected: &mut Collected<'a>) -> NodeRecord {
        // Here it is decided of each field whether it is written. The present conditions and the provider are known from the API alone.
        let Node {
            addresses: known,
            pod_cidrs,
            network_unavailable: _,
            should_announce: _,
            is_on_aws: _,
            zone,
            labels,
            taints,
            routing,
        } = node;
        NodeRecord {
            name: name.to_string(),
            addresses: addresses(known.iter().map(|known| &known.address)),
            address_kinds: column(known.iter().map(|known| match known.kind {
                NodeAddressKind::Internal => 0,
                NodeAddressKind::External => 1,
            })),
            pod_cidrs: ranges(pod_cidrs),
            routing: routing.as_deref().map(RoutingRecord::of),
            zone: zone.as_deref().unwrap_or_default().to_owned(),
            labels: collected.labels(labels),
            taints: taints.iter().map(ToString::to_string).collect(),
        }
    }

    pub fn node(self, lists: &Lists) -> Option<(CompactString, Node)> {
        let known = |(address, kind): (IpAddr, u32)| {
            let kind = match kind {
                0 => NodeAddressKind::Internal,
                1 => NodeAddressKind::External,
                _ => return None,
            };
            Some(NodeAddress { kind, address })
        };
        let addresses = Packed::new(&self.addresses).all()?;
        let node = Node {
            addresses: addresses.into_iter().zip(rows(self.address_kinds)).map(known).collect::<Option<_>>()?,
            pod_cidrs: Packed::new(&self.pod_cidrs).all_ranges()?,
            zone: Some(CompactString::from(self.zone)).filter(|zone| !zone.is_empty()),
            labels: lists.labels(self.labels)?,
            taints: self.taints.iter().filter_map(|text| text.parse().ok()).collect(),
            routing: match self.routing {
                Some(record) => Some(Box::new(record.routing()?)),
                None => None,
            },
            ..Node::default()
        };
        Some((self.name.into(), node))
    }
}

impl RoutingRecord {
    fn of(routing: &Routing) -> RoutingRecord {
        let Routing { asn, reflection, prepend, communities, import_reject, peers, local_addresses } = routing;
        let (reflection, cluster) = match *reflection {
            Reflection::None => (0, 0),
            Reflection::Server(cluster) => (1, cluster.to_bits()),
            Reflection::Client(cluster) => (2, cluster.to_bits()),
        };
        RoutingRecord {
            asn: *asn,
            reflection,
            cluster,
            prepend: prepend.map(|Prepend { asn, times }| PrependRecord { asn, times: u32::from(times) }),
            communities: communities.clone(),
            import_reject: ranges(import_reject),
            peers: peers.iter().map(PeerRecord::of).collect(),
            local_addresses: addresses(local_addresses),
        }
    }

    fn routing(self) -> Option<Routing> {
        let cluster = Ipv4Addr::from_bits(self.cluster);
        let prepend = |PrependRecord { asn, times }| Some(Prepend { asn, times: u8::try_from(times).ok()? });
        Some(Routing {
            asn: self.asn,
            reflection: match self.reflection {
                0 => Reflection::None,
                1 => Reflection::Server(cluster),
                2 => Reflection::Client(cluster),
                _ => return None,
            },
            prepend: match self.prepend {
                Some(record) => Some(prepend(record)?),
                None => None,
            },
            communities: self.communities,
            import_reject: Packed::new(&self.import_reject).all_ranges()?,
            peers: self.peers.iter().map(PeerRecord::peer).collect::<Option<_>>()?,
            local_addresses: Packed::new(&self.local_addresses).all()?,
        })
    }
}

impl PeerRecord {
    fn of(peer: &ExternalPeer) -> PeerRecord {
        let ExternalPeer { address, asn, port, password, local, bfd } = peer;
        PeerRecord {
            address: addresses([address]),
            asn: *asn,
            port: port.map(u32::from),
            has_password: *password != Password::None,
            local: addresses(local),
            bfd: bfd.map(BfdRecord::of),
        }
    }

    fn peer(&self) -> Option<ExternalPeer> {
        Some(ExternalPeer {
            address: only_address(&self.address)?,
            asn: self.asn,
            port: optional_port(self.port)?,
            password: if self.has_password { Password::Unknown } else { Password::None },
            local: if self.local.is_empty() { None } else { Some(only_address(&self.local)?) },
            bfd: match &self.bfd {
                Some(bfd) => Some(bfd.bfd()?),
                None => None,
            },
        })
    }
}

impl BfdRecord {
    fn of(bfd: Bfd) -> BfdRecord {
        let Bfd { port, multiplier, send, receive } = bfd;
        BfdRecord { port: port.into(), multiplier: multiplier.into(), send, receive }
    }

    fn bfd(&self) -> Option<Bfd> {
        let BfdRecord { port, multiplier, send, receive } = *self;
        let sound = multiplier > 0 && send > 0 && receive > 0;
        let (port, multiplier) = (u16::try_from(port).ok()?, u8::try_from(multiplier).ok()?);
        sound.then_some(Bfd { port, multiplier, send, receive })
    }
}
