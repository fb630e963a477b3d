//! The source guard's tables on Linux.

use std::collections::BTreeMap;
use std::net::IpAddr;

use compact_str::CompactString;

use crate::kernel::Error;
use crate::kernel::bridge::GroupLearning;
use crate::kernel::link::{self, LinkKind};
use crate::kernel::nftables::{OwnTable, TableFamily, abandoned, probe_arp, probe_bridge, probe_inet};
use crate::model::{AttachmentId, LinkAddress};

use super::apply::{Kernel, PodLink, Targets};
use super::ports::{GuardedPort, Ports};
use super::table::{ARP_NAME, BY_PORT_NAME, NAME, TABLE, contents};

/// Kernel of the network namespace in which it was opened.
pub struct Linux;

/// Kinds of links that one pod alone sends by.
const OF_PODS: [&str; 2] = ["veth", "tun"];

const BRIDGE: &str = "bridge";

/// Opens the tables in the network namespace of the calling thread.
///
/// # Errors
/// If the kernel refuses netlink sockets, or has no nf_tables for bridges, hosts and ARP that can do all of it: the error names the family.
pub fn open() -> Result<Targets<Linux>, Error> {
    let trial = GuardedPort {
        id: AttachmentId { container: "trial".into(), interface: "eth0".into() },
        network: "".into(),
        link: "trial".into(),
        link_address: LinkAddress([2, 0, 0, 0, 0, 1]),
        addresses: [IpAddr::from([192, 0, 2, 1])].into(),
    };
    let trial = contents(&Ports::restored(vec![trial]), |_| true);
    probe_bridge(&trial.frames)?;
    probe_inet(&trial.by_port)?;
    probe_arp(&trial.arp)?;
    Ok(Targets {
        kernel: Linux,
        table: OwnTable::open_bridge(TABLE, NAME)?,
        by_port: OwnTable::open_as(TABLE, BY_PORT_NAME)?,
        arp: OwnTable::open_arp(TABLE, ARP_NAME)?,
        learning: GroupLearning::open()?,
    })
}

/// Removes the tables that are there; returns why one could not be removed.
pub fn remove() -> Option<String> {
    let [frames, by_port, arp] =
        [TableFamily::Bridge, TableFamily::Inet, TableFamily::Arp].map(|family| abandoned::remove(family, TABLE));
    frames.or(by_port).or(arp)
}

impl Kernel for Linux {
    type Table = OwnTable;
    type Learning = GroupLearning;

    fn pod_links(&mut self) -> Result<Vec<PodLink>, String> {
        let all = link::all().map_err(|error| error.to_string())?;
        let is_of_pod = |kind: &LinkKind| matches!(kind, LinkKind::Other(kind) if OF_PODS.contains(&kind.as_str()));
        let is_bridge = |kind: &LinkKind| matches!(kind, LinkKind::Other(kind) if kind == BRIDGE);
        let bridges: BTreeMap<u32, CompactString> =
            all.iter().filter(|one| is_bridge(&one.kind)).map(|one| (one.index, one.name.0.clone())).collect();
        let bridge = |device: &link::Device| bridges.get(&device.master?).filter(|_| is_of_pod(&device.kind)).cloned();
        Ok(all.iter().map(|device| PodLink { bridge: bridge(device), name: device.name.0.clone() }).collect())
    }
}
