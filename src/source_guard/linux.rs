//! The source guard's table on Linux.

use std::net::IpAddr;

use crate::kernel::Error;
use crate::kernel::link::{self, LinkKind};
use crate::kernel::nftables::{OwnTable, abandoned, probe_bridge};
use crate::model::{AttachmentId, LinkAddress};

use super::apply::{Kernel, PodLink, Targets};
use super::ports::{GuardedPort, Ports};
use super::table::{NAME, TABLE, contents};

/// Kernel of the network namespace in which it was opened.
pub struct Linux;

/// Kinds of links that one pod alone sends by.
const OF_PODS: [&str; 2] = ["veth", "tun"];

/// Opens the table in the network namespace of the calling thread.
///
/// # Errors
/// If the kernel refuses netlink sockets, or has no nf_tables for bridges that can do all of it.
pub fn open() -> Result<Targets<Linux>, Error> {
    let trial = GuardedPort {
        id: AttachmentId { container: "trial".into(), interface: "eth0".into() },
        network: "".into(),
        link: "trial".into(),
        link_address: LinkAddress([2, 0, 0, 0, 0, 1]),
        addresses: [IpAddr::from([192, 0, 2, 1])].into(),
    };
    probe_bridge(&contents(&Ports::restored(vec![trial])))?;
    Ok(Targets { kernel: Linux, table: OwnTable::open_bridge(TABLE, NAME)? })
}

/// Removes the table where there is one; returns why it could not be removed.
pub fn remove() -> Option<String> {
    abandoned::remove_bridge(TABLE, NAME)
}

impl Kernel for Linux {
    type Table = OwnTable;

    fn pod_links(&mut self) -> Result<Vec<PodLink>, String> {
        let all = link::all().map_err(|error| error.to_string())?;
        let of_pods = |kind: &LinkKind| matches!(kind, LinkKind::Other(kind) if OF_PODS.contains(&kind.as_str()));
        let pod_link =
            |device: link::Device| PodLink { is_port: device.port && of_pods(&device.kind), name: device.name.0 };
        Ok(all.into_iter().map(pod_link).collect())
    }
}
