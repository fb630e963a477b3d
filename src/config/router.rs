//! Configuration of the router: BGP, routes, tunnels, CNI.
//!
//! Limits come from the wire formats: RFC 4724 (restart
//! time: 12 bits), RFC 9494 (long-lived stale time: 24 bits of seconds), RFC 5880 (detection multiplier: 8 bits; intervals: 32 bits of microseconds), RFC 6996 (private
//! AS numbers), RFC 7607 and 7300 (AS numbers never used).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::drain::DrainConfig;
use super::encapsulation::{Encapsulation, Encryption, Fou, Received, VxlanNetwork};
use super::environment::Environment;
use super::flags::Flags;
use super::key_file::{changes_keys, key_file, key_period};
use super::mesh::{MeshConfig, hold_time};
use super::mistakes::Mistakes;
use super::netfilter::Backend;
use super::peers::{peers, port};
use super::service_ranges::ServiceRanges;
use crate::net::{Bfd, ExternalPeer, Family};

/// The router's part of the configuration, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RouterConfig {
    /// `--netfilter`, as it was decided for this host.
    pub backend: Backend,
    /// `--enable-cni`: the file that is kept up to date; `None` for none. The bridge exists in either case.
    pub cni_file: Option<PathBuf>,
    /// `--netpol-cni`: the socket that the plugin at the end of that file's list is told; `None` for no such plugin.
    pub cni_plugin: Option<PathBuf>,
    /// `--auto-mtu`: the MTU of pods follows from that of the node.
    pub auto_mtu: bool,
    /// `--enable-pod-egress`: packets from pods to the outside leave with the node's address.
    pub pod_egress: bool,
    /// `--enable-overlay`, `--overlay-type`, `--overlay-encap` and its ports, `--overlay-encap-receive`; `None` for no tunnels.
    pub overlay: Option<Overlay>,
    /// `--overlay-encap-port`, whether or not there are such tunnels: a port that is received at, and that is ours also after a change to another kind.
    pub encap_port: u16,
    /// `--state-dir`: the file of this node's private key, where packets between nodes are encrypted.
    pub key_file: Option<PathBuf>,
    /// `--overlay-wireguard-rotate-key`: the age at which that key changes; `None` for never by itself.
    pub key_period: Option<Duration>,
    /// `--nodes-full-mesh`: all nodes have [`cluster_asn`](RouterConfig::cluster_asn); otherwise each has its own.
    pub full_mesh: bool,
    /// `--node-routes`: where routes to pods of other nodes come from.
    pub node_routes: NodeRoutes,
    /// `--enable-ibgp` with [`NodeRoutes::Bgp`]: nodes peer with each other.
    pub internal_peers: bool,
    /// `--enable-ibgp` with [`NodeRoutes::Api`]: nodes that (still) have `bgp` are answered, so that they learn our ranges and wait for nobody. A reflector
    /// answers those alone that learn nothing else from it.
    pub answers_nodes: bool,
    /// `--cluster-asn`; 64512 where it is 0.
    pub cluster_asn: u32,
    pub router_id: RouterId,
    /// `--bgp-port`: the port on which we and the other nodes listen.
    pub port: u16,
    /// `--bgp-holdtime`, in seconds, as offered to external peers.
    pub hold_time: u16,
    /// `--bgp-graceful-restart`; `None` for no part in it.
    pub graceful_restart: Option<GracefulRestart>,
    /// `--peer-router-*`. Where there is any, those of the node's annotations do not count. With
    /// [`passwords_file`](RouterConfig::passwords_file) their passwords are not known yet.
    pub peers: Vec<ExternalPeer>,
    /// `--peer-router-passwords-file`, when it counts: `--peer-router-passwords` is empty.
    pub passwords_file: Option<PathBuf>,
    /// `--peer-router-passwords-dir`: the directory of the files that `passwordfile` in `kube-router.io/peers` may name; `None`:
    /// it may name none.
    pub passwords_dir: Option<PathBuf>,
    /// `--bgp-mesh-password-file`: the file with the password of sessions between nodes; `None` for no password.
    pub mesh_password_file: Option<PathBuf>,
    /// `--bgp-mesh-*`: settings of the sessions between nodes.
    pub mesh: MeshConfig,
    /// `--peer-router-multihop-ttl`: distance in hops of external peers in other systems; `None` for one hop.
    pub multihop: Option<u8>,
    /// `--enable-bfd-mesh`, `--bfd-*`: how the paths to other nodes are watched; `None` for not at all.
    pub bfd_mesh: Option<Bfd>,
    /// `--override-nexthop`: external peers get our address as the next hop.
    pub override_next_hop: bool,
    pub advertise: Advertise,
    pub drain: DrainConfig,
    /// The external addresses that may be announced; those of the service proxy.
    pub ranges: ServiceRanges,
    /// `--gobgp-admin-address`, `--gobgp-admin-port`: addresses of the management API; empty for none.
    pub admin: Vec<SocketAddr>,
    /// `--gobgp-admin-write`: clients may change BGP there.
    pub admin_writes: bool,
    /// `--routes-sync-period`: time between two audits of what is not routes; longer than zero.
    pub sync_period: Duration,
    /// `--injected-routes-sync-period`: time between two audits of routes; longer than zero.
    pub routes_sync_period: Duration,
    /// `--disable-source-dest-check`.
    pub disable_source_dest_check: bool,
}

/// Tunnels between nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Overlay {
    pub reach: Reach,
    /// By which packets are sent, and received.
    pub encapsulation: Encapsulation,
    /// Those by which packets are received alone.
    pub received: Received,
}

impl Overlay {
    /// Returns all kinds of tunnels in which packets are received, that by which they are sent first.
    pub fn kinds(self) -> impl Iterator<Item = Encapsulation> {
        std::iter::once(self.encapsulation).chain(self.received.kinds())
    }

    /// Returns the kind of the devices of which there is one for each node; `None` where there are none. They take what comes by `ipip` and by `fou`, whichever
    /// they send by.
    pub fn device_of_each_node(self) -> Option<Encapsulation> {
        self.kinds().find(|kind| matches!(kind, Encapsulation::Ipip | Encapsulation::Fou(_)))
    }

    /// Returns the tunnels inside UDP, where packets are received by them.
    pub fn fou(self) -> Option<Fou> {
        self.kinds().find_map(Encapsulation::fou)
    }

    /// Returns the network of the nodes, where packets are received by it.
    pub fn vxlan(self) -> Option<VxlanNetwork> {
        self.kinds().find_map(Encapsulation::vxlan)
    }

    /// Returns the UDP ports at which the kernel takes packets from whoever sends them.
    pub fn open_ports(self) -> Vec<u16> {
        let fou = self.fou().map(|fou| fou.port);
        fou.into_iter().chain(self.vxlan().map(|network| network.port)).collect()
    }

    /// Returns how packets are decrypted, where encrypted ones are received.
    pub fn wireguard(self) -> Option<Encryption> {
        self.kinds().find_map(Encapsulation::wireguard)
    }

    /// Returns the largest number of bytes that one of the kinds adds to a packet on its way to an address of this family: another node may send by that.
    pub fn overhead(self, outer: Family) -> u32 {
        self.kinds().map(|kind| kind.overhead(outer)).max().unwrap_or_default()
    }
}

/// The nodes between which there are tunnels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// Those that are not on one link.
    Subnet,
    /// All.
    Full,
}

/// `--node-routes`: where routes to pods of other nodes come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeRoutes {
    /// The nodes announce their pod CIDRs to each other.
    Bgp,
    /// The Node objects alone: there are no sessions between nodes.
    Api,
}

/// `--router-id`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RouterId {
    /// The node's own IPv4 address.
    Address,
    /// A hash of the node's address.
    Generate,
    Is(Ipv4Addr),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GracefulRestart {
    /// `--bgp-graceful-restart-time`, in whole seconds, at least one: time for which peers keep our routes.
    pub seconds: u16,
    /// `--bgp-graceful-restart-deferral-time`: time for which the choice of routes may wait for peers.
    pub deferral: Duration,
    /// `--bgp-llgr-time`, in whole seconds: time for which external peers keep our routes after that, and we keep theirs (RFC 9494); 0 for
    /// none.
    pub long_lived: u32,
    /// `--bgp-graceful-restart-notification`: external peers keep our routes also after a notification or silence (RFC 8538).
    pub notifications: bool,
}

/// Prefixes announced to external peers, unless the annotations of a Service override it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Advertise {
    /// `--advertise-pod-cidr`.
    pub pod_cidrs: bool,
    /// `--advertise-cluster-ip`.
    pub cluster_ips: bool,
    /// `--advertise-external-ip`.
    pub external_ips: bool,
    /// `--advertise-loadbalancer-ip`.
    pub load_balancer_ips: bool,
}

/// RFC 9494 3: 24 bits of seconds.
const LLGR_LONGEST: u32 = (1 << 24) - 1;
const DEFAULT_CLUSTER_ASN: u32 = 64512;
/// The CNI file of an agent for which none is named.
pub const DEFAULT_CNI_FILE: &str = "/etc/cni/net.d/10-kuberouter.conf";

/// The CNI file of this host, whether or not it is kept.
pub(super) fn cni_file(environment: &Environment) -> PathBuf {
    let found = environment.cni_file.as_ref().or(environment.cni_list.as_ref());
    found.cloned().unwrap_or_else(|| PathBuf::from(DEFAULT_CNI_FILE))
}

impl RouterConfig {
    /// Returns the TCP ports at which nodes and routers outside speak BGP, in order: the well-known one (RFC 4271) and those of flags.
    pub fn bgp_ports(&self) -> Vec<u16> {
        let of_routers = self.peers.iter().filter_map(|peer| peer.port);
        let all: BTreeSet<u16> = [179, self.port].into_iter().chain(of_routers).collect();
        all.into_iter().collect()
    }

    /// Returns the UDP ports at which a neighbour several hops away is heard by BFD, in order: the well-known one (RFC 5883 5) and that of a flag. That for neighbours on a link is none.
    pub fn bfd_ports(&self) -> Vec<u16> {
        let watched = self.peers.iter().filter_map(|peer| peer.bfd).chain(self.bfd_mesh);
        let other = watched.map(|bfd| bfd.port).filter(|port| *port != Bfd::PORT);
        let all: BTreeSet<u16> = other.chain([Bfd::MULTIHOP_PORT]).collect();
        all.into_iter().collect()
    }

    /// Returns whether this node has sessions with all others, unless annotations make it a client of reflectors.
    pub fn speaks_with_all_nodes(&self) -> bool {
        self.internal_peers && self.full_mesh
    }

    /// Replaces the ranges of Services where they differ; returns whether they did.
    pub fn follow(config: &mut Arc<RouterConfig>, ranges: ServiceRanges) -> bool {
        let differs = config.ranges != ranges;
        if differs {
            *config = Arc::new(RouterConfig { ranges, ..(**config).clone() });
        }
        differs
    }

    /// Reads and checks the router's flags, which is done even when it does not run. The ranges of Services are those of the
    /// service proxy, whose flags are read before.
    pub(super) fn from_flags(
        flags: &Flags,
        environment: &Environment,
        ranges: &ServiceRanges,
        mistakes: &mut Mistakes,
    ) -> RouterConfig {
        let has_passwords = flags.peer_router_passwords.iter().any(|list| !list.0.is_empty());
        let passwords_file = (!has_passwords && !flags.peer_router_passwords_file.is_empty())
            .then(|| PathBuf::from(&flags.peer_router_passwords_file));
        let sync_period = mistakes.longer_than_zero("routes-sync-period", flags.routes_sync_period, "5m");
        let routes = ("injected-routes-sync-period", flags.injected_routes_sync_period);
        let bfd = bfd(flags, mistakes);
        let node_routes = node_routes(flags, mistakes);
        let overlay = overlay(flags, mistakes);
        RouterConfig {
            backend: Backend::default(),
            // A cleanup is about what an earlier run may have left, with other flags.
            cni_file: (flags.enable_cni || flags.cleanup_config).then(|| cni_file(environment)),
            cni_plugin: None,
            auto_mtu: flags.auto_mtu,
            pod_egress: flags.enable_pod_egress,
            sync_period,
            routes_sync_period: mistakes.longer_than_zero(routes.0, routes.1, "1m"),
            overlay,
            encap_port: flags.overlay_encap_port,
            key_file: key_file(flags, overlay.and_then(decrypting_flag), mistakes),
            key_period: key_period(flags, mistakes),
            full_mesh: flags.nodes_full_mesh,
            node_routes,
            internal_peers: flags.enable_ibgp && node_routes == NodeRoutes::Bgp,
            answers_nodes: flags.enable_ibgp && node_routes == NodeRoutes::Api,
            cluster_asn: cluster_asn(flags.cluster_asn, mistakes),
            router_id: router_id(&flags.router_id, mistakes),
            port: port("bgp-port", flags.bgp_port.into(), mistakes),
            hold_time: hold_time("bgp-holdtime", flags.bgp_holdtime, mistakes),
            graceful_restart: graceful_restart(flags, mistakes),
            admin: admin(flags, mistakes),
            admin_writes: flags.gobgp_admin_write,
            peers: peers(flags, bfd, passwords_file.is_some(), mistakes),
            passwords_file,
            passwords_dir: place("peer-router-passwords-dir", &flags.peer_router_passwords_dir, mistakes),
            mesh_password_file: place("bgp-mesh-password-file", &flags.bgp_mesh_password_file, mistakes),
            mesh: MeshConfig::from_flags(flags, mistakes),
            multihop: Some(flags.peer_router_multihop_ttl).filter(|ttl| *ttl >= 2),
            bfd_mesh: Some(bfd).filter(|_| flags.enable_bfd_mesh),
            override_next_hop: flags.override_nexthop,
            advertise: Advertise {
                pod_cidrs: flags.advertise_pod_cidr,
                cluster_ips: flags.advertise_cluster_ip,
                external_ips: flags.advertise_external_ip,
                load_balancer_ips: flags.advertise_loadbalancer_ip,
            },
            drain: DrainConfig::from_flags(flags, mistakes),
            ranges: ranges.clone(),
            disable_source_dest_check: flags.disable_source_dest_check,
        }
    }
}

/// A path, which must not depend on where the process was started; `None` for an empty one.
fn place(flag: &str, typed: &str, mistakes: &mut Mistakes) -> Option<PathBuf> {
    let path = Some(typed).filter(|typed| !typed.is_empty()).map(PathBuf::from)?;
    if !path.is_absolute() {
        mistakes.add(format!("--{flag} must be an absolute path, one that begins with /; it is {typed:?}."));
    }
    Some(path)
}

fn overlay(flags: &Flags, mistakes: &mut Mistakes) -> Option<Overlay> {
    let (subnet, full) = (("subnet", Reach::Subnet), ("full", Reach::Full));
    let reach = mistakes.one_of("overlay-type", &flags.overlay_type, subnet, full);
    let fou = Encapsulation::Fou(Fou { port: flags.overlay_encap_port });
    let vxlan = VxlanNetwork { port: flags.overlay_vxlan_port, id: flags.overlay_vxlan_id };
    let wireguard = Encryption { port: flags.overlay_wireguard_port };
    let kinds = [Encapsulation::Ipip, fou, Encapsulation::Vxlan(vxlan), Encapsulation::Wireguard(wireguard)];
    let encapsulation = kinds.into_iter().find(|kind| kind.name() == flags.overlay_encap).unwrap_or_else(|| {
        let typed = &flags.overlay_encap;
        mistakes.add(format!("--overlay-encap must be ipip, fou, vxlan or wireguard; it is {typed:?}."));
        Encapsulation::Ipip
    });
    mistakes.number_within("overlay-encap-port", flags.overlay_encap_port.into(), 1024..=65535);
    mistakes.number_within("overlay-vxlan-port", flags.overlay_vxlan_port.into(), 1024..=65535);
    mistakes.number_within("overlay-vxlan-id", flags.overlay_vxlan_id.into(), 1..=(1 << 24) - 1);
    mistakes.number_within("overlay-wireguard-port", flags.overlay_wireguard_port.into(), 1024..=65535);
    let received = received(flags, kinds, encapsulation, mistakes);
    flags.enable_overlay.then_some(Overlay { reach, encapsulation, received })
}

fn received(flags: &Flags, kinds: [Encapsulation; 4], sent: Encapsulation, mistakes: &mut Mistakes) -> Received {
    let typed = || flags.overlay_encap_receive.iter().flat_map(|list| &list.0).map(|text| text.trim());
    for wrong in typed().filter(|typed| kinds.iter().all(|kind| kind.name() != *typed)) {
        mistakes.add(format!(
            "--overlay-encap-receive must be ipip, fou, vxlan or wireguard, with commas between them; {wrong:?} is none."
        ));
    }
    if typed().any(|typed| typed == sent.name()) {
        mistakes.add(format!(
            "--overlay-encap-receive names what is received besides --overlay-encap, which is {} already.",
            sent.name()
        ));
    }
    if !flags.enable_overlay && typed().next().is_some() {
        mistakes.add(
            "--overlay-encap-receive is about tunnels between nodes, which --enable-overlay=false switches off."
                .to_owned(),
        );
    }
    let is_typed = |kind: &Encapsulation| typed().any(|typed| typed == kind.name());
    let received = Received::besides(sent, kinds.into_iter().filter(is_typed));
    let used = || std::iter::once(sent).chain(received.kinds());
    let ports: Vec<u16> = used().filter_map(Encapsulation::port).collect();
    if let Some(port) = ports.iter().find(|port| ports.iter().filter(|other| other == port).count() > 1) {
        mistakes.add(format!(
            "--overlay-encap and --overlay-encap-receive need a UDP port for each kind of tunnels; {port} is that of two."
        ));
    }
    let second = used().find_map(Encapsulation::wireguard).filter(|_| changes_keys(flags)).map(Encryption::second_port);
    if let Some(port) = second.filter(|port| ports.contains(port)) {
        mistakes.add(format!(
            "--overlay-wireguard-rotate-key has nodes receive at the port beside that of wireguard too; {port} is that of other tunnels."
        ));
    }
    received
}

/// Returns the flag by which packets of other nodes are decrypted.
fn decrypting_flag(overlay: Overlay) -> Option<&'static str> {
    let sends = overlay.encapsulation.wireguard().is_some();
    overlay.wireguard().map(|_| if sends { "overlay-encap" } else { "overlay-encap-receive" })
}

fn node_routes(flags: &Flags, mistakes: &mut Mistakes) -> NodeRoutes {
    mistakes.one_of("node-routes", &flags.node_routes, ("bgp", NodeRoutes::Bgp), ("api", NodeRoutes::Api))
}

fn cluster_asn(typed: u64, mistakes: &mut Mistakes) -> u32 {
    if typed == 0 {
        return DEFAULT_CLUSTER_ASN;
    }
    if !PRIVATE_ASNS.iter().any(|range| range.contains(&typed)) {
        mistakes.add(format!(
            "--cluster-asn must be a private AS number, 64512-65535 or 4200000000-4294967294, or 0; it is {typed}."
        ));
    }
    u32::try_from(typed).unwrap_or(DEFAULT_CLUSTER_ASN)
}

fn router_id(typed: &str, mistakes: &mut Mistakes) -> RouterId {
    match (typed, typed.parse::<Ipv4Addr>()) {
        ("", _) => RouterId::Address,
        ("generate", _) => RouterId::Generate,
        // RFC 6286 2.1: any but zero.
        (_, Ok(id)) if !id.is_unspecified() => RouterId::Is(id),
        _ => {
            mistakes.add(format!(
                "--router-id must have the form of an IPv4 address, for example 192.0.2.10, or be \"generate\"; it is {typed:?}."
            ));
            RouterId::Address
        }
    }
}

fn graceful_restart(flags: &Flags, mistakes: &mut Mistakes) -> Option<GracefulRestart> {
    let (seconds, shortest) = (Duration::from_secs, Duration::from_nanos(1));
    let (time, deferral) = (flags.bgp_graceful_restart_time, flags.bgp_graceful_restart_deferral_time);
    mistakes.duration_within("bgp-graceful-restart-time", time, shortest..=seconds(4095));
    mistakes.duration_within("bgp-graceful-restart-deferral-time", deferral, shortest..=seconds(18 * 3600));
    let time = time.positive_or_zero().and_then(|time| u16::try_from(time.as_secs()).ok()).unwrap_or_default();
    let deferral = deferral.positive_or_zero().unwrap_or_default();
    let long_lived = flags.bgp_llgr_time;
    mistakes.duration_within("bgp-llgr-time", long_lived, Duration::ZERO..=seconds(LLGR_LONGEST.into()));
    // Part of a second is a second: 0 would mean never.
    let whole = |time: Duration| u32::try_from(time.as_secs()).ok().map(|seconds| seconds.max(1));
    let long_lived = long_lived.positive_or_zero().filter(|time| !time.is_zero()).and_then(whole).unwrap_or_default();
    if long_lived > 0 && !flags.bgp_graceful_restart {
        mistakes.add(
            "--bgp-llgr-time goes on where graceful restart ends, so it needs --bgp-graceful-restart; that is off."
                .to_owned(),
        );
    }
    // On the wire 0 would mean that nothing is kept.
    flags.bgp_graceful_restart.then_some(GracefulRestart {
        seconds: time.max(1),
        deferral,
        long_lived,
        notifications: flags.bgp_graceful_restart_notification,
    })
}

/// Returns the addresses of the management API: the given one, and the loopback too, where its client looks first.
fn admin(flags: &Flags, mistakes: &mut Mistakes) -> Vec<SocketAddr> {
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let typed = flags.gobgp_admin_address.as_str();
    let address = match typed {
        "" | "localhost" => loopback,
        _ => typed.parse().unwrap_or_else(|_| {
            mistakes
                .add(format!("--gobgp-admin-address must be an IP address, for example 127.0.0.1; it is {typed:?}."));
            loopback
        }),
    };
    let with_loopback = !address.is_loopback() && !address.is_unspecified();
    let all = std::iter::once(address).chain(with_loopback.then_some(loopback));
    let port = flags.gobgp_admin_port;
    all.filter(|_| port != 0).map(|address| SocketAddr::new(address, port)).collect()
}

const PRIVATE_ASNS: [RangeInclusive<u64>; 2] = [64512..=65535, 4_200_000_000..=4_294_967_294];

fn bfd(flags: &Flags, mistakes: &mut Mistakes) -> Bfd {
    let mut number = |flag: &str, typed: u32, range: RangeInclusive<u64>| {
        mistakes.number_within(flag, typed.into(), range);
        typed
    };
    let port = number("bfd-port", flags.bfd_port, Bfd::PORTS);
    let multiplier = number("bfd-detection-multiplier", flags.bfd_detection_multiplier, Bfd::MULTIPLIERS);
    Bfd {
        port: u16::try_from(port).unwrap_or_default(),
        multiplier: u8::try_from(multiplier).unwrap_or_default(),
        send: number("bfd-desired-min-tx-interval", flags.bfd_desired_min_tx_interval, Bfd::MILLISECONDS),
        receive: number("bfd-required-min-rx-interval", flags.bfd_required_min_rx_interval, Bfd::MILLISECONDS),
    }
}
