//! The router's kinds of kernel objects on Linux, and which of them are ours.

mod learned;

use std::collections::BTreeSet;
use std::net::IpAddr;

use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::config::RouterConfig;
use crate::kernel::bridge::Bridges;
use crate::kernel::ipset::{Elements, SetName, Sets};
use crate::kernel::iptables::{self, Families, Leftovers, Ownership, Table, Tables};
use crate::kernel::link::LinkName;
use crate::kernel::route::{Leading, Lookup, Protocol, TABLE_MAIN};
use crate::kernel::rule::SourceRules;
use crate::kernel::sysctl::Settings;
use crate::kernel::tunnel::{ReceivePorts, Tunnels};
use crate::kernel::{Error, Name, module};
use crate::net::{PerFamily, Prefixes};
use crate::reconcile::Target;

use super::apply::{Kernel, Targets, set_names};
use super::names::{BRIDGE, CHAIN_EGRESS, CHAIN_PODS, PROTOCOL, TUNNEL_PROTOCOL, TUNNEL_TABLE, is_tunnel};
use super::reachable::Lead;
use super::settings;

pub use learned::Learned;

/// Kernel of the network namespace in which it was opened.
pub struct Linux {
    /// Programs of the iptables variant that the host no longer uses, where its tables still hold rules of ours.
    abandoned: Families,
    lookup: Lookup,
}

/// Temporary set, used while another one is replaced.
const TEMPORARY_SET: &str = "sluice-router-tmp";
/// The default port of tunnels inside UDP (`--overlay-encap-port`).
const USUAL_PORT: u16 = 5555;

/// Opens all kinds in the network namespace of the calling thread, which has to be the thread that uses them: settings
/// and programs depend on the thread. `pod_ranges` is told the pod CIDRs of other nodes, for the monitor.
///
/// # Errors
/// If the kernel refuses netlink sockets.
pub fn open(
    config: &RouterConfig,
    families: PerFamily<bool>,
    pod_ranges: watch::Sender<Prefixes>,
) -> Result<Targets<Linux>, Error> {
    for error in module::load(&settings::modules(config, families)) {
        warn!(%error, "Loading a kernel module failed");
    }
    opened(config.overlay.and_then(|overlay| overlay.udp_port), config.auto_mtu, pod_ranges)
}

/// Like [`open`], without loading anything. `port`: the value of [`Overlay::udp_port`](crate::config::Overlay), if any.
///
/// # Errors
/// As [`open`].
pub fn open_for_cleanup(port: Option<u16>) -> Result<Targets<Linux>, Error> {
    opened(port, false, watch::Sender::default())
}

/// Returns the receive ports that are ours: the configured or default one, and those that tunnels of ours send to,
/// because an earlier run may have used another one.
fn receive_ports(port: Option<u16>, tunnels: &mut Tunnels) -> Result<BTreeSet<u16>, Error> {
    let there = tunnels.read()?;
    Ok(there.values().filter_map(|tunnel| tunnel.udp_port).chain([port.unwrap_or(USUAL_PORT)]).collect())
}

fn opened(port: Option<u16>, compares_mtu: bool, pod_ranges: watch::Sender<Prefixes>) -> Result<Targets<Linux>, Error> {
    let mut tunnels = Tunnels::open(is_tunnel, compares_mtu)?;
    let detected = iptables::detect(&ownership());
    for reason in &detected.disabled {
        warn!(%reason, "iptables is not usable for this address family");
    }
    let names: Vec<Name> = set_names().into_iter().map(|name| Name::Exact((*name.0).into())).collect();
    let mut with_temporary = names.clone();
    with_temporary.push(Name::Exact(TEMPORARY_SET.into()));
    Ok(Targets {
        kernel: Linux { abandoned: detected.abandoned, lookup: Lookup::open()? },
        settings: Settings::new([]),
        bridges: Bridges::open(LinkName(BRIDGE.into()), compares_mtu)?,
        sets: Sets::open(with_temporary, SetName(TEMPORARY_SET.into()))?,
        elements: Elements::open(names)?,
        rules: Tables::detected(detected, ownership()),
        receive_ports: ReceivePorts::open(receive_ports(port, &mut tunnels)?)?,
        tunnels,
        routes: Learned::open(pod_ranges)?,
        source_rules: SourceRules::open([TUNNEL_TABLE])?,
    })
}

/// Returns the protocols of routes made from learned routes.
pub fn learned_routes() -> [Protocol; 2] {
    [Protocol { table: TABLE_MAIN, protocol: PROTOCOL }, Protocol { table: TUNNEL_TABLE, protocol: TUNNEL_PROTOCOL }]
}

impl Kernel for Linux {
    type Settings = Settings;
    type Bridges = Bridges;
    type Sets = Sets;
    type Elements = Elements;
    type Rules = Tables;
    type ReceivePorts = ReceivePorts;
    type Tunnels = Tunnels;
    type Routes = Learned;
    type SourceRules = SourceRules;

    fn bridge_is_free(&mut self) -> bool {
        let ports = Bridges::open(LinkName(BRIDGE.into()), false).and_then(|mut bridges| bridges.has_ports());
        ports.is_ok_and(|has_ports| !has_ports)
    }

    fn leads_to(&mut self, next_hop: IpAddr) -> Lead {
        match self.lookup.leading(next_hop) {
            Ok(Some(Leading::Nowhere)) => Lead::Nowhere,
            // Our own routes made from learned routes prove nothing.
            Ok(Some(Leading::Somewhere { protocol: PROTOCOL, .. }) | None) => Lead::Unknown,
            Ok(Some(Leading::Somewhere { direct: true, .. })) => Lead::Direct,
            Ok(Some(Leading::Somewhere { direct: false, .. })) => Lead::Onwards,
            Err(error) => {
                debug!(%error, "Route lookup of a next hop failed");
                Lead::Unknown
            }
        }
    }

    fn remove_abandoned(&mut self) -> Vec<String> {
        let abandoned = std::mem::take(&mut self.abandoned);
        if abandoned == Families::default() {
            return Vec::new();
        }
        info!("Removing router rules from the other iptables backend");
        iptables::abandoned::remove(abandoned, ownership()).into_iter().collect()
    }
}

fn ownership() -> Ownership {
    Ownership {
        chains: vec![(Table::Filter, Name::Exact(CHAIN_PODS.into())), (Table::Nat, Name::Exact(CHAIN_EGRESS.into()))],
        leftovers: Leftovers::Router,
    }
}
