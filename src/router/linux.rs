//! The router's kinds of kernel objects on Linux, and which of them are ours.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use tracing::{debug, info, warn};

use crate::config::RouterConfig;
use crate::kernel::bridge::Bridges;
use crate::kernel::ipset::{Elements, SetName, Sets};
use crate::kernel::iptables::{self, Families, Leftovers, Ownership, Table, Tables};
use crate::kernel::link::LinkName;
use crate::kernel::route::{self, Leading, Lookup, Protocol, Route, RouteKey, RouteKind, Routes, TABLE_MAIN};
use crate::kernel::rule::SourceRules;
use crate::kernel::sysctl::Settings;
use crate::kernel::tunnel::{ReceivePorts, Tunnels};
use crate::kernel::{Error, Name, module};
use crate::net::{Family, PerFamily};
use crate::reconcile::{Failure, Phase, Step, Target};

use super::apply::{Kernel, PodRoutes, Targets, set_names};
use super::names::{BRIDGE, CHAIN_EGRESS, CHAIN_PODS, PROTOCOL, TUNNEL_PROTOCOL, TUNNEL_TABLE, is_tunnel};
use super::reachable::Lead;
use super::settings;

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
/// and programs depend on the thread.
///
/// # Errors
/// If the kernel refuses netlink sockets.
pub fn open(config: &RouterConfig, families: PerFamily<bool>) -> Result<Targets<Linux>, Error> {
    for error in module::load(&settings::modules(config, families)) {
        warn!(%error, "Loading a kernel module failed");
    }
    opened(config.overlay.and_then(|overlay| overlay.udp_port), config.auto_mtu)
}

/// Like [`open`], without loading anything. `port`: the value of [`Overlay::udp_port`](crate::config::Overlay), if any.
///
/// # Errors
/// As [`open`].
pub fn open_for_cleanup(port: Option<u16>) -> Result<Targets<Linux>, Error> {
    opened(port, false)
}

/// Returns the receive ports that are ours: the configured or default one, and those that tunnels of ours send to,
/// because an earlier run may have used another one.
fn receive_ports(port: Option<u16>, tunnels: &mut Tunnels) -> Result<BTreeSet<u16>, Error> {
    let there = tunnels.read()?;
    Ok(there.values().filter_map(|tunnel| tunnel.udp_port).chain([port.unwrap_or(USUAL_PORT)]).collect())
}

fn opened(port: Option<u16>, compares_mtu: bool) -> Result<Targets<Linux>, Error> {
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
        routes: Learned::open()?,
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

/// Routes made from learned routes.
///
/// Ours by their protocol, like all others. In the main table another program's route may occupy the key of one of
/// ours: flannel's, or a manually added one. If it leads to a pod CIDR of a known node ours replaces it, because only
/// ours follows the node; otherwise it stays, and ours is refused. An IPv6 route of a lower metric does not share the
/// key and wins all the same: it is deleted once ours is in place.
pub struct Learned {
    routes: Routes,
    lookup: Lookup,
    pod_ranges: BTreeSet<IpNet>,
    /// Ranges for which this has been logged.
    said: BTreeSet<IpNet>,
}

/// Maximum number of other programs' routes to one range deleted at a time.
const DELETED: usize = 4;
/// `RTPROT_KERNEL`: routes to the networks of links.
const BY_KERNEL: u8 = 2;

impl Learned {
    fn open() -> Result<Learned, Error> {
        Ok(Learned {
            routes: Routes::open(route::Ownership::Protocols(learned_routes().to_vec()))?,
            lookup: Lookup::open()?,
            pod_ranges: BTreeSet::new(),
            said: BTreeSet::new(),
        })
    }

    fn is_to_pods(&self, key: &RouteKey) -> bool {
        key.table == TABLE_MAIN && self.pod_ranges.contains(&key.destination)
    }

    /// Returns another program's route that wins over ours for an IPv6 pod CIDR, and its protocol.
    fn preferred(&mut self, key: &RouteKey) -> Option<(RouteKey, u8)> {
        if Family::from(key.destination) != Family::V6 || !self.is_to_pods(key) {
            return None;
        }
        // A failed lookup is repeated by the next audit.
        let found = self.lookup.deciding(key.destination.network()).ok().flatten();
        let is_others = |by: u8| by != PROTOCOL && by != BY_KERNEL;
        let is_same = |found: &RouteKey| found.destination == key.destination && found.table == TABLE_MAIN;
        found.filter(|(found, by)| is_same(found) && is_others(*by))
    }

    /// Whether the range is the network of a link of this host, to which the kernel itself has made the route. Unknown counts
    /// as yes.
    fn is_of_a_link(&mut self, key: &RouteKey) -> bool {
        // Older kernels answer for the first address of a network with its broadcast route, and one may be the host's own.
        key.destination.hosts().take(3).any(|address| match self.lookup.deciding(address) {
            Ok(found) => found.is_some_and(|(found, by)| found.destination == key.destination && by == BY_KERNEL),
            Err(_) => true,
        })
    }

    /// Replaces other programs' routes to pods by ours.
    fn replace(&mut self, phase: Phase, steps: &[Step<'_, RouteKey, Route>], failures: &mut Vec<Failure<Error>>) {
        let is_taken = |failure: &Failure<Error>| {
            let step = steps.get(failure.step).filter(|_| failure.error.is_exists());
            step.is_some_and(|step| step.have.is_none() && self.is_to_pods(step.key))
        };
        let (taken, rest): (Vec<_>, Vec<_>) = std::mem::take(failures).into_iter().partition(is_taken);
        *failures = rest;
        for failure in taken {
            let step = failure.step;
            let Some(Step { key, want, .. }) = steps.get(step) else { continue };
            // Nothing would put the route of a link back when ours goes.
            if self.is_of_a_link(key) {
                failures.push(failure);
                continue;
            }
            // ip route replace
            let again = self.routes.apply(phase, &[Step { key, have: *want, want: *want }]);
            if again.is_empty() {
                self.say(key.destination, None);
            }
            failures.extend(again.into_iter().map(|failure| Failure { step, ..failure }));
        }
    }

    fn delete_preferred(&mut self, phase: Phase, key: &RouteKey) {
        for _ in 0..DELETED {
            let Some((preferred, protocol)) = self.preferred(key) else { return };
            let route = Route { kind: RouteKind::Unicast, protocol, source: None, next_hops: [].into() };
            let failures = self.routes.apply(phase, &[Step { key: &preferred, have: Some(&route), want: None }]);
            if !failures.is_empty() {
                return;
            }
            self.say(key.destination, Some(protocol));
        }
    }

    fn say(&mut self, range: IpNet, protocol: Option<u8>) {
        if self.said.insert(range) {
            warn!(%range, protocol, "Foreign route to the pod CIDR of a Node replaced");
        }
    }
}

impl PodRoutes for Learned {
    fn note_pod_range(&mut self, range: IpNet, is_there: bool) {
        match is_there {
            true => self.pod_ranges.insert(range),
            false => self.said.remove(&range) | self.pod_ranges.remove(&range),
        };
    }
}

impl Target for Learned {
    type Key = RouteKey;
    type Value = Route;
    type Error = Error;

    fn name(&self) -> &'static str {
        self.routes.name()
    }

    fn read(&mut self) -> Result<BTreeMap<RouteKey, Route>, Error> {
        let mut found = self.routes.read()?;
        // A route of ours that does not win counts as absent: it is added again, and the winning one is deleted.
        found.retain(|key, _| self.preferred(key).is_none());
        Ok(found)
    }

    fn portion(&self) -> usize {
        self.routes.portion()
    }

    fn apply(&mut self, phase: Phase, steps: &[Step<'_, RouteKey, Route>]) -> Vec<Failure<Error>> {
        let mut failures = self.routes.apply(phase, steps);
        if !failures.is_empty() {
            self.replace(phase, steps, &mut failures);
        }
        let failed: BTreeSet<usize> = failures.iter().map(|failure| failure.step).collect();
        for (index, step) in steps.iter().enumerate().filter(|(_, step)| step.want.is_some()) {
            if self.is_to_pods(step.key) && !failed.contains(&index) {
                self.delete_preferred(phase, step.key);
            }
        }
        failures
    }
}

fn ownership() -> Ownership {
    Ownership {
        chains: vec![(Table::Filter, Name::Exact(CHAIN_PODS.into())), (Table::Nat, Name::Exact(CHAIN_EGRESS.into()))],
        leftovers: Leftovers::Router,
    }
}
