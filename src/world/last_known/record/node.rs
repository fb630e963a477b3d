//! Nodes on disk, with their annotations about BGP.
//!
//! Passwords are not written: the file only records that there is one, and a neighbour with a password waits until it
//! is read from the API again.

use std::net::{IpAddr, Ipv4Addr};

use compact_str::CompactString;

use super::lists::{Collected, Lists};
use super::packed::{Packed, addresses, column, only_address, ranges, rows};
use super::service::optional_port;
use crate::model::{Node, NodeAddress, NodeAddressKind, Prepend, Reflection, Routing, UnreadPeers};
use crate::net::{Bfd, Distance, ExternalPeer, Family, Password, PerFamily, PublicKey, Remote, RemoteAs};

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
    /// Empty where there is none.
    #[prost(bytes = "vec", tag = "9")]
    wireguard_key: Vec<u8>,
    /// Seconds since 1970; 0 where that is not known.
    #[prost(int64, tag = "10")]
    created: i64,
    /// One of each family at most.
    #[prost(bytes = "vec", tag = "11")]
    detected: Vec<u8>,
    /// Empty where there is none.
    #[prost(bytes = "vec", tag = "12")]
    wireguard_next_key: Vec<u8>,
    /// Those of the spec, where annotations name others.
    #[prost(bytes = "vec", optional, tag = "13")]
    spec_pod_cidrs: Option<Vec<u8>>,
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
    /// Empty where the peer is behind a link.
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
    #[prost(uint32, optional, tag = "7")]
    hold_time: Option<u32>,
    /// Of multihop.
    #[prost(uint32, optional, tag = "8")]
    ttl: Option<u32>,
    /// Of GTSM.
    #[prost(uint32, optional, tag = "9")]
    hops: Option<u32>,
    #[prost(uint32, optional, tag = "10")]
    most_v4: Option<u32>,
    #[prost(uint32, optional, tag = "11")]
    most_v6: Option<u32>,
    #[prost(bool, optional, tag = "12")]
    next_hop_self: Option<bool>,
    /// Name of the file with its password; empty where it is in none.
    #[prost(string, tag = "13")]
    password_file: String,
    #[prost(uint32, optional, tag = "14")]
    long_lived: Option<u32>,
    /// Name of the link on which the peer advertises itself; empty where it has an address. A program without this field takes such a
    /// record for one that makes no sense.
    #[prost(string, tag = "15")]
    link: String,
    /// Its AS number is any but ours; `asn` is 0 then.
    #[prost(bool, tag = "16")]
    is_any_external: bool,
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
            created,
            addresses: known,
            pod_cidrs,
            spec_pod_cidrs,
            network_unavailable: _,
            should_announce: _,
            is_shutting_down: _,
            ec2_instance: _,
            zone,
            labels,
            taints,
            wireguard_key,
            wireguard_next_key,
            routing,
        } = node;
        let number = |known: &'a NodeAddress| match known.kind {
            NodeAddressKind::Internal => Some((&known.address, 0)),
            NodeAddressKind::External => Some((&known.address, 1)),
            NodeAddressKind::Detected => None,
        };
        let detected = known.iter().filter(|known| known.kind == NodeAddressKind::Detected);
        NodeRecord {
            name: name.to_string(),
            created: *created,
            addresses: addresses(known.iter().filter_map(number).map(|(address, _)| address)),
            address_kinds: column(known.iter().filter_map(number).map(|(_, kind)| kind)),
            detected: addresses(detected.map(|known| &known.address)),
            pod_cidrs: ranges(pod_cidrs),
            spec_pod_cidrs: spec_pod_cidrs.as_deref().map(ranges),
            routing: routing.as_deref().map(RoutingRecord::of),
            zone: zone.as_deref().unwrap_or_default().to_owned(),
            labels: collected.labels(labels),
            taints: taints.iter().map(ToString::to_string).collect(),
            wireguard_key: wireguard_key.map(|key| key.bytes().to_vec()).unwrap_or_default(),
            wireguard_next_key: wireguard_next_key.map(|key| key.bytes().to_vec()).unwrap_or_default(),
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
        let mut detected = PerFamily::default();
        for address in Packed::new(&self.detected).all()? {
            *detected.of_mut(Family::from(address)) = Some(address);
        }
        let mut node = Node {
            created: self.created,
            addresses: addresses.into_iter().zip(rows(self.address_kinds)).map(known).collect::<Option<_>>()?,
            pod_cidrs: Packed::new(&self.pod_cidrs).all_ranges()?,
            spec_pod_cidrs: match &self.spec_pod_cidrs {
                Some(ranges) => Some(Packed::new(ranges).all_ranges()?.into()),
                None => None,
            },
            zone: Some(CompactString::from(self.zone)).filter(|zone| !zone.is_empty()),
            labels: lists.labels(self.labels)?,
            taints: self.taints.iter().filter_map(|text| text.parse().ok()).collect(),
            wireguard_key: PublicKey::new(&self.wireguard_key),
            wireguard_next_key: PublicKey::new(&self.wireguard_next_key),
            routing: match self.routing {
                Some(record) => Some(Box::new(record.routing()?)),
                None => None,
            },
            ..Node::default()
        };
        node.set_detected(detected);
        Some((self.name.into(), node))
    }
}

impl RoutingRecord {
    fn of(routing: &Routing) -> RoutingRecord {
        // Those that count are the last good ones of a later run.
        let Routing { asn, reflection, prepend, communities, import_reject, peers, unread_peers: _, local_addresses } =
            routing;
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
            unread_peers: UnreadPeers::None,
            local_addresses: Packed::new(&self.local_addresses).all()?,
        })
    }
}

impl PeerRecord {
    fn of(peer: &ExternalPeer) -> PeerRecord {
        let ExternalPeer {
            remote,
            asn,
            port,
            password,
            local,
            bfd,
            hold_time,
            distance,
            long_lived,
            prefix_limits,
            next_hop_self,
        } = peer;
        let (ttl, hops) = match *distance {
            Distance::Usual => (None, None),
            Distance::Multihop(ttl) => (Some(ttl.into()), None),
            Distance::Secured(hops) => (None, Some(hops.into())),
        };
        PeerRecord {
            address: addresses(&remote.address()),
            link: match remote {
                Remote::Link(name) => name.to_string(),
                Remote::Address(_) => String::new(),
            },
            asn: match asn {
                RemoteAs::Number(number) => *number,
                RemoteAs::External => 0,
            },
            is_any_external: *asn == RemoteAs::External,
            port: port.map(u32::from),
            has_password: *password != Password::None,
            local: addresses(local),
            bfd: bfd.map(BfdRecord::of),
            hold_time: hold_time.map(u32::from),
            ttl,
            hops,
            long_lived: *long_lived,
            most_v4: prefix_limits.v4,
            most_v6: prefix_limits.v6,
            next_hop_self: *next_hop_self,
            password_file: match password {
                Password::File(name) => name.to_string(),
                Password::None | Password::Key(_) | Password::Unknown => String::new(),
            },
        }
    }

    fn peer(&self) -> Option<ExternalPeer> {
        let distance = match (self.ttl, self.hops) {
            (None, None) => Distance::Usual,
            (Some(ttl), None) => Distance::Multihop(u8::try_from(ttl).ok()?),
            (None, Some(hops)) => Distance::Secured(u8::try_from(hops).ok()?),
            (Some(_), Some(_)) => return None,
        };
        Some(ExternalPeer {
            remote: match self.link.as_str() {
                "" => Remote::Address(only_address(&self.address)?),
                name => Remote::link(name)?,
            },
            asn: if self.is_any_external { RemoteAs::External } else { RemoteAs::Number(self.asn) },
            port: optional_port(self.port)?,
            password: match (self.has_password, self.password_file.as_str()) {
                (false, _) => Password::None,
                (true, "") => Password::Unknown,
                (true, name) => Password::File(name.into()),
            },
            local: if self.local.is_empty() { None } else { Some(only_address(&self.local)?) },
            bfd: match &self.bfd {
                Some(bfd) => Some(bfd.bfd()?),
                None => None,
            },
            hold_time: match self.hold_time {
                Some(seconds) => Some(u16::try_from(seconds).ok()?),
                None => None,
            },
            distance,
            long_lived: self.long_lived,
            prefix_limits: PerFamily { v4: self.most_v4, v6: self.most_v6 },
            next_hop_self: self.next_hop_self,
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
