//! The router's kinds of kernel objects on Linux, and which of them are ours.

mod key_files;
mod keyring;
mod learned;
mod wireguard;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::config::{Backend, Encapsulation, Overlay, RouterConfig};
use crate::kernel::bridge::Bridges;
use crate::kernel::file_system::passing;
use crate::kernel::ipset::{Elements, SetName, Sets};
use crate::kernel::iptables::abandoned::{OtherVariant, Removal};
use crate::kernel::iptables::{self, Leftovers, Ownership, Tables};
use crate::kernel::link::LinkName;
use crate::kernel::nftables::passages::{HostChain, Passages};
use crate::kernel::nftables::{self, OwnTable, TableFamily};
use crate::kernel::route::{Leading, Lookup, Protocol, TABLE_MAIN, Taken};
use crate::kernel::rule::SourceRules;
use crate::kernel::sysctl::Settings;
use crate::kernel::tunnel::{ReceivePorts, Tunnel, Tunnels};
use crate::kernel::vxlan::{Devices, Entries};
use crate::kernel::wireguard::Peers;
use crate::kernel::{Error, Name, module};
use crate::net::{Family, PerFamily, Prefixes};
use crate::reconcile::{Optional, Target};

use super::apply::{Kernel, OwnsPorts, Targets, set_names};
use super::forward::{AnswersBy, COMMENTS};
use super::names::{
    BRIDGE, CHAINS, PROTOCOL, TABLE, TUNNEL_PROTOCOL, TUNNEL_TABLE, WIREGUARD, WIREGUARD_SECOND, is_tunnel, is_vxlan,
    vxlan,
};
use super::neighbour_limit;
use super::reachable::Lead;
use super::settings;

pub use key_files::remove_key;
pub use learned::Learned;
pub use wireguard::KeyedDevices;

/// Kernel of the network namespace in which it was opened.
pub struct Linux {
    /// The backend that is used; `None` for both.
    used: Option<Backend>,
    other_variant: OtherVariant,
    lookup: Lookup,
    answers_by: AnswersBy,
    /// The removal of what a run with iptables left.
    removal: Removal,
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
    if let Some(overlay) = config.overlay {
        notice_received(overlay);
    }
    if let Some(directory) = config.key_file.as_deref().and_then(Path::parent) {
        notice_passing_key(directory);
    }
    let targets = opened(Some(config.backend), &configured_ports(config), config.auto_mtu, pod_ranges)?;
    let wireguard_devices = KeyedDevices::open(config.key_file.clone(), config.auto_mtu)?;
    Ok(Targets { wireguard_devices, ..targets })
}

/// Says once by which other kinds of tunnels packets are received.
fn notice_received(overlay: Overlay) {
    let sent = overlay.encapsulation.name();
    let received = overlay.received.kinds().map(Encapsulation::name).collect::<Vec<_>>().join(",");
    if received.is_empty() {
        return;
    }
    info!(sent, received, "Packets of nodes that send by other tunnels are received, too (--overlay-encap-receive)");
    if overlay.encapsulation.wireguard().is_some() {
        warn!(
            received,
            "These packets of pods arrive without encryption until --overlay-encap-receive is gone from all nodes"
        );
    }
}

/// Says once that the private key will not last, where its directory does not: the first sign would be packets that are lost with an upgrade of the agent.
fn notice_passing_key(directory: &Path) {
    let Some(reason) = passing(directory) else { return };
    warn!(
        directory = %directory.display(),
        %reason,
        "The directory of this node's private key for WireGuard does not last; the agent makes another key each time that it is gone, and packets from and to this node are lost until all nodes know that one: mount a directory of the host (--state-dir)"
    );
}

/// Like [`open`], without loading anything. `config`: that of the router, if there is any.
///
/// # Errors
/// As [`open`].
pub fn open_for_cleanup(config: Option<&RouterConfig>) -> Result<Targets<Linux>, Error> {
    let ports = config.map_or_else(|| vec![USUAL_PORT], configured_ports);
    opened(None, &ports, false, watch::Sender::default())
}

/// Returns the receive ports that are ours by the flags: the configured one also where no tunnel sends to it any more, because in a change to `ipip` the tunnels
/// send otherwise before the port goes. The default one is that of an earlier run where no port is wanted; where another one is, somebody may have chosen that
/// because the default one is another program's.
fn configured_ports(config: &RouterConfig) -> Vec<u16> {
    match config.overlay.and_then(Overlay::fou) {
        Some(fou) => vec![fou.port],
        None => vec![config.encap_port, USUAL_PORT],
    }
}

/// Returns the receive ports that are ours: those by the flags, and those that tunnels of ours send to, because an earlier run may have used another one. Rules tell more, when
/// they are read first (`apply::filter`).
fn receive_ports(configured: &[u16], there: &BTreeMap<LinkName, Tunnel>) -> BTreeSet<u16> {
    there.values().filter_map(|tunnel| tunnel.udp_port).chain(configured.iter().copied()).collect()
}

/// Opens all kinds, of the packet filter those of one backend or of both.
fn opened(
    used: Option<Backend>,
    ports: &[u16],
    compares_mtu: bool,
    pod_ranges: watch::Sender<Prefixes>,
) -> Result<Targets<Linux>, Error> {
    let mut tunnels = Tunnels::open(is_tunnel, compares_mtu)?;
    let left = Ownership { leftovers: Leftovers::RouterEgress, ..ownership() };
    let removal = Removal::of(left, with_temporary());
    let answers_by = if used == Some(Backend::Nftables) { answers_by() } else { AnswersBy::State };
    let other_variant = OtherVariant::of(&iptables::Detected::default(), ownership());
    let uses = |backend| used.is_none_or(|used| used == backend);
    let mut targets = Targets {
        kernel: Linux { used, other_variant, lookup: Lookup::open()?, answers_by, removal },
        settings: Settings::new([]),
        bridges: Bridges::open(LinkName(BRIDGE.into()), compares_mtu)?,
        sets: Optional::unused("sets"),
        elements: Optional::unused("set elements"),
        rules: Optional::unused("iptables rules"),
        table: Optional::unused("nf_tables rules"),
        passages: Optional::unused(HostChain::Forward.kind()),
        receive_ports: ReceivePorts::open(receive_ports(ports, &tunnels.read()?))?,
        tunnels,
        overlay_devices: Devices::open(is_vxlan, compares_mtu)?,
        overlay_entries: Entries::open(Family::BOTH.map(vxlan))?,
        wireguard_devices: KeyedDevices::open(None, compares_mtu)?,
        wireguard_peers: Peers::open([WIREGUARD, WIREGUARD_SECOND].map(|name| LinkName(name.into())))?,
        routes: Learned::open(pod_ranges)?,
        source_rules: SourceRules::open([TUNNEL_TABLE])?,
    };
    // To clean up it is opened only where there is one, because opening needs a kernel that has nf_tables.
    if uses(Backend::Nftables) && (used.is_some() || nftables::has_inet_table(TABLE)?) {
        targets.table = Optional::used(OwnTable::open(TABLE)?);
    }
    if uses(Backend::Nftables) {
        targets.passages = Optional::used(Passages::open(HostChain::Forward, &COMMENTS)?);
    }
    if uses(Backend::Iptables) {
        let detected = iptables::detect(&ownership());
        for reason in &detected.disabled {
            warn!(%reason, "No iptables rules for this address family");
        }
        targets.kernel.other_variant = OtherVariant::of(&detected, ownership());
        let mut sets = Sets::open(with_temporary(), SetName(TEMPORARY_SET.into()))?;
        let mut elements = Elements::open(names())?;
        if used.is_none() {
            sets.accept_missing_ipset();
            elements.accept_missing_ipset();
        }
        targets.sets = Optional::used(sets);
        targets.elements = Optional::used(elements);
        targets.rules = Optional::used(Tables::detected(detected, ownership()));
    }
    Ok(targets)
}

impl OwnsPorts for ReceivePorts {
    fn own(&mut self, ports: &BTreeSet<u16>) -> bool {
        ReceivePorts::own(self, ports)
    }
}

/// Both families have the same module.
fn answers_by() -> AnswersBy {
    match nftables::passages::has_connection_match(Family::V4) {
        Ok(false) => {
            info!("The kernel has no xt_conntrack: answers of pods pass the host's chain FORWARD by a mark");
            AnswersBy::Mark
        }
        Ok(true) => AnswersBy::State,
        Err(error) => {
            warn!(%error, "Trying xt_conntrack failed");
            AnswersBy::State
        }
    }
}

fn names() -> Vec<Name> {
    set_names().into_iter().map(|name| Name::Exact((*name.0).into())).collect()
}

fn with_temporary() -> Vec<Name> {
    let mut names = names();
    names.push(Name::Exact(TEMPORARY_SET.into()));
    names
}

/// Returns the protocols of routes made from learned routes.
pub fn learned_routes() -> [Protocol; 2] {
    [Protocol { table: TABLE_MAIN, protocol: PROTOCOL }, Protocol { table: TUNNEL_TABLE, protocol: TUNNEL_PROTOCOL }]
}

/// Removes the table of nf_tables where there is one; returns why it could not be removed.
pub fn remove_table() -> Option<String> {
    nftables::abandoned::remove(TableFamily::Inet, TABLE)
}

impl Kernel for Linux {
    type Settings = Settings;
    type Bridges = Bridges;
    type Sets = Optional<Sets>;
    type Elements = Optional<Elements>;
    type Rules = Optional<Tables>;
    type Table = Optional<OwnTable>;
    type Passages = Optional<Passages>;
    type ReceivePorts = ReceivePorts;
    type Tunnels = Tunnels;
    type OverlayDevices = Devices;
    type OverlayEntries = Entries;
    type WireguardDevices = KeyedDevices;
    type WireguardPeers = Peers;
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

    fn way_to(&mut self, to: IpAddr, pod: Option<(IpAddr, IpNet)>) -> Result<Option<Taken>, String> {
        let taken = match pod {
            None => self.lookup.taken(to).map(Some),
            Some(pod) => self.lookup.taken_from_network(to, pod),
        };
        taken.map_err(|error| error.to_string())
    }

    fn answers_by(&self) -> AnswersBy {
        self.answers_by
    }

    fn neighbour_limits(&self) -> PerFamily<Option<usize>> {
        neighbour_limit::limits()
    }

    fn has_other_backend(&mut self) -> bool {
        match self.used {
            // Unknown counts as false, as for the sets.
            Some(Backend::Iptables) => nftables::has_inet_table(TABLE).is_ok_and(|is_there| is_there),
            Some(Backend::Nftables) => {
                let there = Sets::open(names(), SetName(TEMPORARY_SET.into())).and_then(|mut sets| sets.read());
                there.is_ok_and(|sets| !sets.is_empty())
            }
            None => false,
        }
    }

    fn has_abandoned(&mut self) -> bool {
        match self.used {
            Some(Backend::Nftables) => self.removal.finds_any(),
            Some(Backend::Iptables) => self.has_other_backend() || self.other_variant.is_there(),
            None => false,
        }
    }

    fn remove_abandoned(&mut self) -> Option<Vec<String>> {
        if self.used == Some(Backend::Nftables) {
            return self.removal.step();
        }
        let mut failed = Vec::new();
        if self.used.is_some() {
            // Those of nf_tables go with the rules already; where the host has legacy iptables nobody else looks at them.
            failed.extend(nftables::passages::remove(HostChain::Forward, &COMMENTS));
            failed.extend(remove_table());
        }
        failed.extend(self.other_variant.remove());
        Some(failed)
    }
}

pub fn ownership() -> Ownership {
    Ownership {
        chains: CHAINS.map(|(table, chain)| (table, Name::Exact(chain.into()))).into(),
        leftovers: Leftovers::Router,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::given::config;

    #[test]
    fn a_port_that_was_received_at_is_still_ours_when_all_tunnels_send_otherwise_and_no_kind_needs_it() {
        let tunnel = |udp_port| {
            let end = IpAddr::from([192, 0, 2, 1]);
            let (has_options, is_numbered) = (true, true);
            Tunnel { local: end, remote: end, udp_port, ttl: 0, mtu: None, up: true, has_options, is_numbered }
        };
        let there = |udp_port| BTreeMap::from([(LinkName("tun-1".into()), tunnel(udp_port))]);
        let ports = |words: &[&str], udp_port| receive_ports(&configured_ports(&config(words)), &there(udp_port));
        let third_rollout = ["--overlay-encap=ipip", "--overlay-encap-port=6000"];
        assert_eq!(ports(&third_rollout, None), [USUAL_PORT, 6000].into());
        assert_eq!(ports(&third_rollout, Some(7000)), [USUAL_PORT, 6000, 7000].into());
        assert_eq!(ports(&["--enable-overlay=false", "--overlay-encap-port=6000"], None), [USUAL_PORT, 6000].into());
    }

    #[test]
    fn the_usual_port_is_another_programs_where_we_were_told_to_receive_at_another_one() {
        let none = BTreeMap::new();
        let ports = |words: &[&str]| receive_ports(&configured_ports(&config(words)), &none);
        for also in [&[][..], &["--overlay-encap=vxlan", "--overlay-encap-receive=fou"]] {
            let words = [&["--overlay-encap=fou", "--overlay-encap-port=6000"], also].concat();
            assert_eq!(ports(&words), [6000].into(), "{words:?}");
        }
        assert_eq!(ports(&["--overlay-encap=fou"]), [USUAL_PORT].into());
    }
}
