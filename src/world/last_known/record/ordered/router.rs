//! The router's part of form 3: annotations of Nodes and Services about BGP.
//!
//! Most Nodes and Services have none and are not named here. Of a password the file only records that there is one.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use compact_str::CompactString;
use ipnet::IpNet;
use serde::Deserialize;

use super::{Known, NameRecord};
use crate::model::{AnnounceAnnotations, Prepend, Reflection, Routing, UnreadPeers};
use crate::net::{ExternalPeer, Password};

#[derive(Deserialize)]
pub struct RouterRecord {
    all_nodes: bool,
    nodes: Vec<(CompactString, RoutingRecord)>,
    /// Cluster, external and load balancer addresses: 0 unsaid, 1 not announced, 2 announced.
    services: Vec<(NameRecord, [u8; 3])>,
}

#[derive(Deserialize)]
struct RoutingRecord {
    asn: Option<u32>,
    /// 1 server, 2 client; and the cluster.
    reflection: Option<(u8, Ipv4Addr)>,
    prepend: Option<(u32, u8)>,
    communities: Vec<u32>,
    import_reject: Vec<(IpAddr, u8)>,
    peers: Vec<PeerRecord>,
    local_addresses: Vec<IpAddr>,
}

#[derive(Deserialize)]
struct PeerRecord {
    address: IpAddr,
    asn: u32,
    port: Option<u16>,
    has_password: bool,
    local: Option<IpAddr>,
}

impl RouterRecord {
    /// Adds what is written here; `None` where it is invalid.
    pub fn complete(self, known: &mut Known) -> Option<()> {
        known.all_nodes = self.all_nodes;
        for (name, record) in self.nodes {
            let mut node = (**known.cluster.nodes.get(&name)?).clone();
            node.routing = Some(Box::new(record.routing()?));
            known.cluster.nodes.insert_shared(name, Arc::new(node));
        }
        for (name, record) in self.services {
            let name = name.name();
            let mut service = (**known.cluster.services.get(&name)?).clone();
            service.announce = announce(record)?;
            known.cluster.services.insert_shared(name, Arc::new(service));
        }
        Some(())
    }
}

fn announce(record: [u8; 3]) -> Option<AnnounceAnnotations> {
    let said = |number| match number {
        0 => Some(None),
        1 => Some(Some(false)),
        2 => Some(Some(true)),
        _ => None,
    };
    let [cluster_ips, external_ips, load_balancer_ips] = record;
    Some(AnnounceAnnotations {
        cluster_ips: said(cluster_ips)?,
        external_ips: said(external_ips)?,
        load_balancer_ips: said(load_balancer_ips)?,
    })
}

impl RoutingRecord {
    fn routing(self) -> Option<Routing> {
        let range = |(address, length)| IpNet::new(address, length).ok();
        Some(Routing {
            asn: self.asn,
            reflection: match self.reflection {
                None => Reflection::None,
                Some((1, cluster)) => Reflection::Server(cluster),
                Some((2, cluster)) => Reflection::Client(cluster),
                Some(_) => return None,
            },
            prepend: self.prepend.map(|(asn, times)| Prepend { asn, times }),
            communities: self.communities,
            import_reject: self.import_reject.into_iter().map(range).collect::<Option<_>>()?,
            peers: self.peers.into_iter().map(PeerRecord::peer).collect(),
            unread_peers: UnreadPeers::None,
            local_addresses: self.local_addresses,
        })
    }
}

impl PeerRecord {
    fn peer(self) -> ExternalPeer {
        let PeerRecord { address, asn, port, has_password, local } = self;
        let password = if has_password { Password::Unknown } else { Password::None };
        ExternalPeer { port, password, local, ..ExternalPeer::new(address, asn) }
    }
}
