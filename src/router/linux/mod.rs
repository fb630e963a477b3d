//! The router's families of kernel objects on Linux, and which of them are ours.

use std::collections::BTreeSet;
use std::net::IpAddr;

use tracing::{debug, info, warn};

use crate::config::RouterConfig;
use crate::kernel::bridge::Bridges;
use crate::kernel::ipset::{Elements, SetName, Sets};
use crate::kernel::iptables::{self, Families, Leftovers, Ownership, Table, Tables};
use crate::kernel::link::LinkName;
use crate::kernel::route::{self, Leading, Lookup, Protocol, Routes, TABLE_MAIN};
use crate::kernel::rule::SourceRules;
use crate::kernel::sysctl::Settings;
use crate::kernel::tunnel::{ReceivePorts, Tunnels};
use crate::kernel::{Error, Name, module};
use crate::net::PerFamily;
use crate::reconcile::Target;

use super::apply::{Kernel, Targets, set_names};
use super::names::{BRIDGE, CHAIN_EGRESS, CHAIN_PODS, PROTOCOL, TUNNEL_PROTOCOL, TUNNEL_TABLE, is_tunnel};
use super::reachable::Lead;
use super::settings;

/// The kernel of the network namespace that it was opened in.
pub struct Linux {
    /// Programs of the tables that the host no longer uses, where they still hold something of ours.
    abandoned: Families,
    lookup: Lookup,
}

/// The set that stands in for another one while that is replaced.
const TEMPORARY_SET: &str = "sluice-router-tmp";
/// The port of tunnels inside UDP where nothing says otherwise (`--overlay-encap-port`).
const USUAL_PORT: u16 = 5555;

/// Opens everything in the network namespace of the calling thread, which has to be the one that uses it: settings and
/// programs follow the thread.
///
/// # Errors
/// Where the kernel has no netlink sockets for us.
pub fn open(config: &RouterConfig, families: PerFamily<bool>) -> Result<Targets<Linux>, Error> {
    for error in module::load(&settings::modules(config, families)) {
        warn!(%error, "A kernel module could not be loaded");
    }
    opened(config.overlay.and_then(|overlay| overlay.udp_port), config.auto_mtu)
}

/// Like [`open`], without loading anything. `port`: what [`Overlay::udp_port`](crate::config::Overlay) says, if anything.
///
/// # Errors
/// As [`open`].
pub fn open_for_cleanup(port: Option<u16>) -> Result<Targets<Linux>, Error> {
    opened(port, false)
}

/// The receiving ports that are ours: the one that is wanted or usual, and those that tunnels of ours send to, because an
/// earlier run may have wanted another one.
fn receive_ports(port: Option<u16>, tunnels: &mut Tunnels) -> Result<BTreeSet<u16>, Error> {
    let there = tunnels.read()?;
    Ok(there.values().filter_map(|tunnel| tunnel.udp_port).chain([port.unwrap_or(USUAL_PORT)]).collect())
}

fn opened(port: Option<u16>, compares_mtu: bool) -> Result<Targets<Linux>, Error> {
    let mut tunnels = Tunnels::open(is_tunnel, compares_mtu)?;
    let detected = iptables::detect(&ownership());
    for reason in &detected.disabled {
        warn!(%reason, "Rules of one family cannot be kept");
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
        routes: Routes::open(route::Ownership::Protocols(learned_routes().to_vec()))?,
        source_rules: SourceRules::open([TUNNEL_TABLE])?,
    })
}

/// Where the routes are that are made of what was learned.
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
    type Routes = Routes;
    type SourceRules = SourceRules;

    fn bridge_is_free(&mut self) -> bool {
        let ports = Bridges::open(LinkName(BRIDGE.into()), false).and_then(|mut bridges| bridges.has_ports());
        ports.is_ok_and(|has_ports| !has_ports)
    }

    fn leads_to(&mut self, next_hop: IpAddr) -> Lead {
        match self.lookup.leading(next_hop) {
            Ok(Some(Leading::Nowhere)) => Lead::Nowhere,
            // What we made of what was learned proves nothing.
            Ok(Some(Leading::Somewhere { protocol: PROTOCOL, .. }) | None) => Lead::Unknown,
            Ok(Some(Leading::Somewhere { direct: true, .. })) => Lead::Direct,
            Ok(Some(Leading::Somewhere { direct: false, .. })) => Lead::Onwards,
            Err(error) => {
                debug!(%error, "The kernel did not say where a next hop is");
                Lead::Unknown
            }
        }
    }

    fn remove_abandoned(&mut self) -> Vec<String> {
        let abandoned = std::mem::take(&mut self.abandoned);
        if abandoned == Families::default() {
            return Vec::new();
        }
        info!("Removing rules of the router from the tables that this host no longer uses");
        iptables::abandoned::remove(abandoned, ownership()).into_iter().collect()
    }
}

fn ownership() -> Ownership {
    Ownership {
        chains: vec![(Table::Filter, Name::Exact(CHAIN_PODS.into())), (Table::Nat, Name::Exact(CHAIN_EGRESS.into()))],
        leftovers: Leftovers::Router,
    }
}
