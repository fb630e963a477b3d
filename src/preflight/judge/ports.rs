//! Ports: addresses that the agent listens on, and others that listen there already.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::addresses::{is_of_host, node};
use crate::bfd::Path;
use crate::config::{Config, RouterConfig, VxlanNetwork};
use crate::kernel::address::HostAddress;
use crate::kernel::listening_port::Transport;
use crate::net::{ExternalPeer, Family};
use crate::preflight::facts::Facts;
use crate::preflight::{Finding, Level};
use crate::router::external_peers::watched_path;
use crate::router::names::{TUNNELS, WIREGUARD_SECOND, is_vxlan, is_wireguard};

/// All addresses of both families.
const EVERYWHERE: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// The name of kube-router's process, and of an agent's in our image. Its DaemonSet is updated to ours, and listens on the same ports.
const KUBE_ROUTER: &str = "kube-router";

/// A port that the agent listens on.
struct Port {
    flag: &'static str,
    transport: Transport,
    at: SocketAddr,
    /// It stands for the addresses of this node alone.
    is_of_node: bool,
    level: Level,
    why: &'static str,
}

impl Port {
    /// Returns whether a listener there is in the way of this one.
    fn meets(&self, (transport, at): &(Transport, SocketAddr)) -> bool {
        let covers = |one: IpAddr, other: IpAddr| one.is_unspecified() && (one.is_ipv6() || other.is_ipv4());
        let (ours, theirs) = (self.at.ip().to_canonical(), at.ip());
        // A speaker listens at addresses of its node, which are never those.
        let is_elsewhere = self.is_of_node && theirs.is_loopback();
        (*transport, at.port()) == (self.transport, self.at.port())
            && !is_elsewhere
            && (ours == theirs || covers(ours, theirs) || covers(theirs, ours))
    }

    /// How bad a listener there is: one of all addresses of IPv6 may or may not have those of IPv4 too.
    fn level_of(&self, (_, at): &(Transport, SocketAddr)) -> Level {
        let is_unsure = at.ip() == EVERYWHERE && self.at.ip().to_canonical().is_ipv4();
        if is_unsure { self.level.min(Level::Degraded) } else { self.level }
    }

    fn text(&self) -> String {
        if self.at.ip().is_unspecified() { self.at.port().to_string() } else { self.at.to_string() }
    }
}

/// Judges the ports that the agent listens on.
pub fn judge(facts: &Facts, config: &Config) -> Vec<Finding> {
    let ports = ports(facts, config);
    let mut findings: Vec<Finding> = ports.iter().filter_map(|port| of_no_address(port, facts)).collect();
    let all: Vec<&Port> = ports.iter().collect();
    let is_of_agent = |one: &(Transport, SocketAddr)| match &facts.network.of_agent {
        Some(its) => its.contains(one),
        // Of which process a port is, is not seen from here.
        None => facts.process.agent_answers || facts.network.processes.contains(KUBE_ROUTER),
    };
    let (mut of_agent, mut taken) = (Vec::new(), Vec::new());
    for port in &ports {
        let met = facts.network.listening.iter().filter(|one| port.meets(one));
        let (its, others): (Vec<_>, Vec<_>) = met.partition(|one| is_of_agent(one));
        taken.extend(others.into_iter().map(|one| port.level_of(one)).max().map(|level| of_others(port, level)));
        of_agent.extend((!its.is_empty()).then_some(port));
    }
    if taken.is_empty() {
        findings.push(Finding::ok("ports", untaken(facts, &all, &of_agent)));
    }
    findings.extend(taken);
    findings
}

fn untaken(facts: &Facts, all: &[&Port], of_agent: &[&Port]) -> String {
    let names = |ports: &[&Port]| ports.iter().map(|port| port.text()).collect::<Vec<_>>().join(", ");
    match &facts.network.of_agent {
        _ if of_agent.is_empty() => format!("nobody listens on {}", names(all)),
        Some(_) => format!("nobody but the agent that runs on this host listens on {}", names(all)),
        None if !facts.process.agent_answers => format!(
            "{KUBE_ROUTER} runs on this host, and somebody listens on {}: whether that is {KUBE_ROUTER}, which ends before the agent of the same DaemonSet starts, is not seen from here (ss -lnp says it)",
            names(of_agent)
        ),
        None => format!(
            "an agent runs on this host already, and somebody listens on {}: whether that is the agent is not seen from here (ss -lnp says it)",
            names(of_agent)
        ),
    }
}

fn of_others(port: &Port, level: Level) -> Finding {
    let what = format!("another program listens on port {} ({})", port.text(), port.flag);
    let todo = match port.flag.starts_with("--enable") {
        true => format!("end that program (ss -lnp names it), or start without {}", port.flag),
        false => format!("end that program (ss -lnp names it), or choose another port by {}", port.flag),
    };
    Finding::bad(level, "ports", [what, port.why.to_owned(), todo])
}

/// A listener's address that this host has not, where the kernel lets nobody bind to it.
fn of_no_address(port: &Port, facts: &Facts) -> Option<Finding> {
    let address = port.at.ip().to_canonical();
    let is_there = address.is_unspecified() || address.is_loopback() || is_of_host(facts, address);
    // Addresses that could not be read are a finding of their own.
    if is_there || !facts.network.unread.is_empty() || *facts.network.binds_elsewhere.of(Family::from(address)) {
        return None;
    }
    let flag = port.flag.replace("-port", if port.flag.contains("admin") { "-address" } else { "-addr" });
    let what = format!("no device of this host has the address {address} ({flag})");
    let todo = format!("name an address of this host by {flag}");
    Some(Finding::bad(port.level, "ports", [what, port.why.to_owned(), todo]))
}

fn ports(facts: &Facts, config: &Config) -> Vec<Port> {
    let tcp = |flag, at, level, why| Port { flag, transport: Transport::Tcp, at, is_of_node: false, level, why };
    let ends = "the agent ends at its start where it cannot listen there";
    let mut ports = Vec::new();
    ports.extend(config.observe.health.map(|at| tcp("--health-port", at, Level::Fatal, ends)));
    ports.extend(config.observe.metrics.as_ref().map(|one| tcp("--metrics-port", one.address, Level::Fatal, ends)));
    if let Some(router) = &config.router {
        let why = "neighbours that connect to this node reach another BGP speaker; the agent goes on trying";
        let speaker = tcp("--bgp-port", SocketAddr::new(EVERYWHERE, router.port), Level::Degraded, why);
        ports.push(Port { is_of_node: true, ..speaker });
        let why = "clients of gobgp reach another program; the agent goes on trying";
        ports.extend(router.admin.iter().map(|at| tcp("--gobgp-admin-port", *at, Level::Degraded, why)));
        ports.extend(overlay_ports(facts, router));
        ports.extend(bfd_ports(facts, router));
    }
    ports
}

/// The ports at which packets of other nodes arrive. Where there are tunnels of an earlier run it is the kernel itself that listens, for them.
fn overlay_ports(facts: &Facts, router: &RouterConfig) -> Vec<Port> {
    let Some(overlay) = router.overlay else { return Vec::new() };
    let has = |is_ours: fn(&str) -> bool| facts.network.links.iter().any(|link| is_ours(link));
    let udp = |flag, port, why| Port {
        flag,
        transport: Transport::Udp,
        at: SocketAddr::new(EVERYWHERE, port),
        is_of_node: false,
        level: Level::Degraded,
        why,
    };
    let fou = overlay.fou().filter(|_| !has(|link| link.starts_with(TUNNELS)));
    let fou = fou.map(|fou| udp("--overlay-encap-port", fou.port, "the kernel cannot receive tunnels on this port"));
    // Devices of others may have the same port: the kernel listens once for all of them.
    let is_kernels = |network: &VxlanNetwork| facts.network.vxlan.values().any(|device| device.port == network.port);
    let vxlan = overlay.vxlan().filter(|network| !has(is_vxlan) && !is_kernels(network));
    let why = "the kernel cannot receive packets of other nodes on this port";
    let vxlan = vxlan.map(|network| udp("--overlay-vxlan-port", network.port, why));
    let wireguard = overlay.wireguard().filter(|_| !has(is_wireguard));
    let wireguard = wireguard.map(|encryption| udp("--overlay-wireguard-port", encryption.port, why));
    let changes = router.key_period.is_some() && !has(|link| link == WIREGUARD_SECOND);
    let second = overlay.wireguard().filter(|_| changes);
    let why = "nodes receive there as well while the key of one changes, which waits for this node";
    let second = second.map(|encryption| udp("--overlay-wireguard-port", encryption.second_port(), why));
    fou.into_iter().chain(vxlan).chain(wireguard).chain(second).collect()
}

/// The ports on which packets of BFD are received (RFC 5881 4, RFC 5883 5), which no flag changes.
fn bfd_ports(facts: &Facts, router: &RouterConfig) -> Vec<Port> {
    let node = node(facts);
    let asn = if router.full_mesh { Some(router.cluster_asn) } else { node.and_then(|node| node.routing().asn) };
    let of_node = |address: IpAddr| node.is_some_and(|node| node.addresses.iter().any(|one| one.address == address));
    let is_near = |address: IpAddr| {
        let of_family = |one: &&HostAddress| Family::from(one.address) == Family::from(address);
        let its = facts.network.addresses.iter().filter(of_family).filter(|one| of_node(one.address.addr()));
        let mut networks = its.map(|one| one.address).filter(|one| one.prefix_len() < one.max_prefix_len()).peekable();
        // Where no network is known a peer in our AS counts as near.
        networks.peek().is_none() || networks.any(|network| network.contains(&address))
    };
    let watched = |peer: &ExternalPeer| watched_path(peer, peer.remote.address().is_some_and(is_near), asn, router);
    let of_peers: Vec<Path> = router.peers.iter().filter_map(watched).collect();
    let needed = [Path::SingleHop, Path::Multihop].map(|path| (path, of_peers.contains(&path)));
    let port = |path: Path, flag| Port {
        flag,
        transport: Transport::Udp,
        at: SocketAddr::new(EVERYWHERE, path.port()),
        is_of_node: true,
        level: Level::Degraded,
        why: "packets of BFD arrive there: its sessions with neighbours stay down, and BGP goes on without; the agent goes on trying",
    };
    let is_needed = |(path, of_peers)| match (of_peers, router.bfd_mesh.is_some()) {
        (true, _) => Some(port(path, "--enable-bfd")),
        (false, true) => Some(port(path, "--enable-bfd-mesh")),
        (false, false) => None,
    };
    needed.into_iter().filter_map(is_needed).collect()
}
