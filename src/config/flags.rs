//! Every flag, exactly as typed: its name, its type, its default and its line in the usage text.
//!
//! The names, types and defaults are those of kube-router 2.11 (79 flags), two that its earliest versions had,
//! and those of our own; a manifest written for it starts this program unchanged. Nothing is checked here beyond
//! what the type of a flag says; what the values mean together is `Config`.
//!
//! A flag's type in the usage text follows from the type of its field (`usage::type_name`).

use std::fmt;

use clap::Parser;

use super::duration::GoDuration;
use super::value::{Addresses, Strings, Uints};

/// The command line, parsed. Lists hold one entry for each use of the flag; no entry means "not given".
#[derive(Parser, Clone, Debug)]
#[command(name = "sluice", disable_help_flag = true, disable_version_flag = true, args_override_self = true)]
pub struct Flags {
    // The process: where its input comes from and where it can be asked.
    /// Path of the kubeconfig file that says how to reach the API server and as whom
    #[arg(long, default_value = "")]
    pub kubeconfig: String,
    /// URL of the API server; overrides the one in the kubeconfig file
    #[arg(long, default_value = "")]
    pub master: String,
    /// Directory of YAML and JSON files, or a bundle of sluice bundle, to read the cluster's objects from, instead of the API server
    #[arg(long, default_value = "")]
    pub manifests: String,
    /// Directory that keeps the last known state of the cluster for a start without the API server; empty keeps none
    #[arg(long, default_value = DEFAULT_STATE_DIR)]
    pub state_dir: String,
    /// Unix socket on which this host's root may ask, with sluice policy, svc and audit; empty means none
    #[arg(long, default_value = DEFAULT_SOCKET)]
    pub socket: String,
    /// Name of this node; without it the variable NODE_NAME, then the host name
    #[arg(long, default_value = "")]
    pub hostname_override: String,
    /// How long the first complete view of the cluster may take before the log names what is missing; must be longer than 0s
    #[arg(long, default_value = "1m0s")]
    pub cache_sync_timeout: GoDuration,
    /// Remove everything this program has ever put into the kernel of this host, and its files, then end
    #[arg(long)]
    pub cleanup_config: bool,
    /// Remove this program's tables of nf_tables and nothing else, then end: when a kube-router has taken over from it
    #[arg(long)]
    pub cleanup_nftables: bool,
    /// Remove what a kube-proxy that has ended left in the kernel of this host, and nothing of this program, then end
    #[arg(long)]
    pub cleanup_kube_proxy: bool,
    /// Address on which /healthz and /readyz answer; empty means all addresses
    #[arg(long, default_value = "")]
    pub health_addr: String,
    /// Port on which /healthz and /readyz answer; 0 means none
    #[arg(long, default_value = "20244")]
    pub health_port: u16,
    /// Address on which metrics are served; empty means all addresses
    #[arg(long, default_value = "")]
    pub metrics_addr: String,
    /// Path at which metrics are served
    #[arg(long, default_value = "/metrics")]
    pub metrics_path: String,
    /// Port on which metrics are served; 0 means none
    #[arg(long, default_value = "0")]
    pub metrics_port: u16,
    /// Serve profiles of the running process
    #[arg(long)]
    pub enable_pprof: bool,
    /// Form of the log: text (one line with a klog header) or json
    #[arg(long, default_value = "text")]
    pub log_format: String,
    /// How much is logged: 0 starts, stops and failures, 1 and 2 every round of work, 3 and more everything
    #[arg(short = 'v', long = "v", default_value = "0")]
    pub verbosity: String,
    /// Print this text
    #[arg(short = 'h', long)]
    pub help: bool,
    /// Print the version
    #[arg(short = 'V', long)]
    pub version: bool,

    // What runs, and for which address families.
    /// Run the router: pod networking and BGP
    #[arg(long, default_value = "true")]
    pub run_router: bool,
    /// Run the firewall: network policies
    #[arg(long, default_value = "true")]
    pub run_firewall: bool,
    /// Run the service proxy: Services become IPVS virtual services
    #[arg(long, default_value = "true")]
    pub run_service_proxy: bool,
    /// Run the load balancer allocator: addresses for Services of type LoadBalancer
    #[arg(long)]
    pub run_loadbalancer: bool,
    /// Work on IPv4; the node must have an IPv4 address
    #[arg(long, default_value = "true")]
    pub enable_ipv4: bool,
    /// Work on IPv6; the node must have an IPv6 address
    #[arg(long)]
    pub enable_ipv6: bool,

    /// Packet filter of all of them: nftables, iptables, or auto, which is nftables where the kernel can do all of it and no legacy iptables is in use
    #[arg(long, default_value = "auto")]
    pub netfilter: String,

    // Network policies, and the ranges that Services live in.
    /// Time between two audits of the network policies in the kernel; must be longer than 0s
    #[arg(long, default_value = "5m0s")]
    pub iptables_sync_period: GoDuration,
    /// Refuse new connections of this node's pods until their rules are in the kernel
    #[arg(long)]
    pub netpol_default_deny: bool,
    /// Hold back each starting pod until its rules are in the kernel: adds the plugin sluice-cni to the CNI file
    #[arg(long)]
    pub netpol_cni: bool,
    /// Drop what a pod on a bridge sends with addresses that it was not given; needs --netpol-cni
    #[arg(long)]
    pub netpol_source_guard: bool,
    /// End connections of this node's pods that a changed policy denies
    #[arg(long)]
    pub netpol_flush_established: bool,
    /// The same as --netfilter=nftables
    #[arg(long)]
    pub use_nftables_for_netpol: bool,
    /// One or two ranges that cluster IPs of Services come from (default [10.96.0.0/12])
    #[arg(long)]
    pub service_cluster_ip_range: Vec<Strings>,
    /// Ranges that external IPs of Services may come from
    #[arg(long)]
    pub service_external_ip_range: Vec<Strings>,
    /// Ranges that load balancer IPs of Services may come from
    #[arg(long)]
    pub loadbalancer_ip_range: Vec<Strings>,
    /// First and last node port, with - or : between them
    #[arg(long, default_value = "30000-32767")]
    pub service_node_port_range: String,

    // Service proxy.
    /// Time between two audits of the service proxy's objects in the kernel; must be longer than 0s
    #[arg(long, default_value = "5m0s")]
    pub ipvs_sync_period: GoDuration,
    /// Let connections to an endpoint that goes away end by themselves before it is removed
    #[arg(long)]
    pub ipvs_graceful_termination: bool,
    /// How long an endpoint that goes away is kept when its pod does not say
    #[arg(long, default_value = "30s")]
    pub ipvs_graceful_period: GoDuration,
    /// Let service addresses answer on the ports of their Services and refuse every other port
    #[arg(long, default_value = "true")]
    pub ipvs_permit_all: bool,
    /// Ranges whose IPVS virtual services are never removed
    #[arg(long)]
    pub excluded_cidrs: Vec<Strings>,
    /// Let a pod reach itself through its own Service, for every Service
    #[arg(long)]
    pub hairpin_mode: bool,
    /// Give all traffic to Services the address of this node as its source
    #[arg(long)]
    pub masquerade_all: bool,
    /// Answer on node ports at every address of this host instead of only the node's own
    #[arg(long)]
    pub nodeport_bindon_all_ip: bool,
    /// Serve Services with the annotation service.dsr through tunnels that end in their pods
    #[arg(long)]
    pub enable_direct_server_return: bool,
    /// Socket of the container runtime, for direct server return, for example unix:///run/containerd/containerd.sock; else the usual places
    #[arg(long, default_value = "")]
    pub runtime_endpoint: String,
    /// Serve external and load balancer IPs only from their ranges and never from the ranges of cluster IPs
    #[arg(long, default_value = "true")]
    pub strict_external_ip_validation: bool,
    /// Time after which IPVS forgets an idle TCP connection; 0s keeps the kernel's
    #[arg(long, default_value = "0s")]
    pub service_tcp_timeout: GoDuration,
    /// Time after which IPVS forgets a TCP connection that was closed; 0s keeps the kernel's
    #[arg(long, default_value = "0s")]
    pub service_tcpfin_timeout: GoDuration,
    /// Time after which IPVS forgets an idle UDP flow; 0s keeps the kernel's
    #[arg(long, default_value = "0s")]
    pub service_udp_timeout: GoDuration,

    // Router.
    /// Time between two audits of peers, announcements and policies; must be longer than 0s
    #[arg(long, default_value = "5m0s")]
    pub routes_sync_period: GoDuration,
    /// Time between two audits of the routes in the kernel; must be longer than 0s
    #[arg(long, default_value = "1m0s")]
    pub injected_routes_sync_period: GoDuration,
    /// Write the node's pod ranges and the MTU into the CNI file
    #[arg(long, default_value = "true")]
    pub enable_cni: bool,
    /// Find and set the largest possible MTU for pods
    #[arg(long, default_value = "true")]
    pub auto_mtu: bool,
    /// Give traffic from pods to the outside the address of this node as its source
    #[arg(long, default_value = "true")]
    pub enable_pod_egress: bool,
    /// Tunnel traffic between pods of different nodes where it is needed
    #[arg(long, default_value = "true")]
    pub enable_overlay: bool,
    /// Where tunnels are used: subnet (between nodes of different subnets) or full (between all nodes)
    #[arg(long, default_value = "subnet")]
    pub overlay_type: String,
    /// Kind of tunnel: ipip, fou or vxlan (both over UDP), or wireguard (encrypted)
    #[arg(long, default_value = "ipip")]
    pub overlay_encap: String,
    /// Other kinds of tunnels in which packets of nodes are taken, to change from one to another node by node
    #[arg(long)]
    pub overlay_encap_receive: Vec<Strings>,
    /// UDP port of fou tunnels, 1024 or higher
    #[arg(long, default_value = "5555")]
    pub overlay_encap_port: u16,
    /// UDP port of vxlan, 1024 or higher
    #[arg(long, default_value = "4789")]
    pub overlay_vxlan_port: u16,
    /// Number of the vxlan network (VNI), 1 to 16777215
    #[arg(long, default_value = "1")]
    pub overlay_vxlan_id: u32,
    /// UDP port of wireguard, 1024 or higher
    #[arg(long, default_value = "51820")]
    pub overlay_wireguard_port: u16,
    /// Age at which a node changes its wireguard key, without losing a packet; 0 for never
    #[arg(long, default_value = "0s")]
    pub overlay_wireguard_rotate_key: GoDuration,
    /// On AWS, switch off the source and destination check of this instance, which drops packets of pods
    #[arg(long, default_value = "true")]
    pub disable_source_dest_check: bool,
    /// AS number of all nodes: 64512-65535 or 4200000000-4294967294; 0 means 64512
    #[arg(long, default_value = "0")]
    pub cluster_asn: u64,
    /// Peer with every other node
    #[arg(long, default_value = "true")]
    pub nodes_full_mesh: bool,
    /// Where routes to pods of other nodes come from: bgp (sessions between nodes) or api (the Node objects alone)
    #[arg(long, default_value = "bgp")]
    pub node_routes: String,
    /// Whether annotations of Nodes name pod ranges in place of those in their spec; kubelets may write them
    #[arg(long, default_value = "true")]
    pub node_pod_cidr_annotations: bool,
    /// Names of the Nodes that may be route reflectors; without it each that has the annotation kube-router.io/rr.server, which kubelets may write
    #[arg(long)]
    pub rr_server_nodes: Vec<Strings>,
    /// How this node finds the addresses by which others route to it: can-reach=ADDRESS, interface=REGEX, skip-interface=REGEX or cidr=LIST; empty means the InternalIP of its Node
    #[arg(long, default_value = "")]
    pub node_ip_autodetect: String,
    /// Peer with nodes of the same AS
    #[arg(long, default_value = "true")]
    pub enable_ibgp: bool,
    /// BGP identifier, in the form of an IPv4 address, or "generate" to make one of the node's address
    #[arg(long, default_value = "")]
    pub router_id: String,
    /// TCP port of BGP, here and on the other nodes
    #[arg(long, default_value = "179")]
    pub bgp_port: u32,
    /// BGP hold time, 3s to 65535s
    #[arg(long, default_value = "1m30s")]
    pub bgp_holdtime: GoDuration,
    /// BGP hold time between nodes, 3s to 65535s
    #[arg(long, default_value = "1m30s")]
    pub bgp_mesh_holdtime: GoDuration,
    /// How many prefixes of a family a node takes from another one, up to 100000000
    #[arg(long, default_value = "2000000")]
    pub bgp_mesh_max_prefixes: u32,
    /// Path of a file with the password of sessions between nodes in base64; as long as it is empty they have none
    #[arg(long, default_value = "")]
    pub bgp_mesh_password_file: String,
    /// How many hops away another node may be, 1 to 254, for GTSM between nodes (RFC 5082); all nodes must have it; 0 means none
    #[arg(long, default_value = "0")]
    pub bgp_mesh_ttl_security: u8,
    /// Let peers keep our routes while this program restarts
    #[arg(long)]
    pub bgp_graceful_restart: bool,
    /// How long peers keep our routes during a restart, up to 4095s
    #[arg(long, default_value = "1m30s")]
    pub bgp_graceful_restart_time: GoDuration,
    /// How long the choice of routes waits for all peers after a restart, up to 18h
    #[arg(long, default_value = "6m0s")]
    pub bgp_graceful_restart_deferral_time: GoDuration,
    /// Let external peers keep our routes also when the session ends by a notification or by silence (RFC 8538)
    #[arg(long)]
    pub bgp_graceful_restart_notification: bool,
    /// How long external peers keep our routes after the restart time, and we keep theirs, as the last resort (RFC 9494); 0s means not at all
    #[arg(long, default_value = "0s")]
    pub bgp_llgr_time: GoDuration,
    /// Address of the management API of the BGP speaker
    #[arg(long, default_value = "127.0.0.1")]
    pub gobgp_admin_address: String,
    /// Port of the management API of the BGP speaker; 0 means none
    #[arg(long, default_value = "50051")]
    pub gobgp_admin_port: u16,
    /// Let clients change BGP on the port of the management API, and not only on the unix socket gobgp.sock
    #[arg(long)]
    pub gobgp_admin_write: bool,
    /// Announce routes to external peers with this node as the next hop
    #[arg(long)]
    pub override_nexthop: bool,
    /// Addresses of external BGP peers of every node
    #[arg(long)]
    pub peer_router_ips: Vec<Addresses>,
    /// AS numbers of the external peers, one for each address
    #[arg(long)]
    pub peer_router_asns: Vec<Uints>,
    /// Interfaces behind which external BGP peers are that advertise themselves there, as NAME or NAME=external for any other AS, or NAME=NUMBER
    #[arg(long)]
    pub peer_router_interfaces: Vec<Strings>,
    /// TCP ports of the external peers, one for each address or none at all
    #[arg(long)]
    pub peer_router_ports: Vec<Uints>,
    /// Passwords of the external peers in base64, one for each address (blank for none) or none at all
    #[arg(long)]
    pub peer_router_passwords: Vec<Strings>,
    /// Path of a file with the passwords of the external peers, as --peer-router-passwords has them
    #[arg(long, default_value = "")]
    pub peer_router_passwords_file: String,
    /// Directory of the files with passwords that passwordfile in the annotation kube-router.io/peers may name; without it none is read
    #[arg(long, default_value = "")]
    pub peer_router_passwords_dir: String,
    /// How many hops away external peers may be; from 2 on
    #[arg(long, default_value = "0")]
    pub peer_router_multihop_ttl: u8,
    /// Announce the pod ranges of this node
    #[arg(long, default_value = "true")]
    pub advertise_pod_cidr: bool,
    /// Announce the cluster IPs of Services
    #[arg(long)]
    pub advertise_cluster_ip: bool,
    /// Announce the external IPs of Services
    #[arg(long)]
    pub advertise_external_ip: bool,
    /// Announce the load balancer IPs of Services
    #[arg(long)]
    pub advertise_loadbalancer_ip: bool,
    /// Taints of this node that withdraw its service addresses, as key, key=value or key:effect
    #[arg(long)]
    pub drain_taints: Vec<Strings>,
    /// Whether the label exclude-from-external-load-balancers withdraws this node's service addresses: always, never, or auto, which is not on a control-plane node
    #[arg(long, default_value = "auto")]
    pub drain_label: String,
    /// How long addresses are announced with GRACEFUL_SHUTDOWN before they are withdrawn, up to 1h
    #[arg(long, default_value = "10s")]
    pub drain_delay: GoDuration,
    /// Watch the paths to external peers with BFD
    #[arg(long)]
    pub enable_bfd: bool,
    /// Watch the paths to other nodes with BFD
    #[arg(long)]
    pub enable_bfd_mesh: bool,
    /// UDP port of external peers for BFD; 3784 means 4784 for peers that may be several hops away
    #[arg(long, default_value = "3784")]
    pub bfd_port: u32,
    /// How many BFD packets may be missing before a path counts as down, 1 to 255
    #[arg(long, default_value = "3")]
    pub bfd_detection_multiplier: u32,
    /// Shortest time between two BFD packets we send, in milliseconds, up to 4294967
    #[arg(long, default_value = "1000")]
    pub bfd_desired_min_tx_interval: u32,
    /// Shortest time between two BFD packets we accept, in milliseconds, up to 4294967
    #[arg(long, default_value = "1000")]
    pub bfd_required_min_rx_interval: u32,

    // Load balancer allocator.
    /// Also give addresses to Services without a load balancer class
    #[arg(long, default_value = "true")]
    pub loadbalancer_default_class: bool,
    /// Time between two audits of the addresses given out; must be 1s or longer
    #[arg(long, default_value = "1m0s")]
    pub loadbalancer_sync_period: GoDuration,

    // Of the earliest versions of kube-router.
    /// Accepted for old manifests; without effect, because each node's pod ranges are read from its Node object
    #[arg(long, default_value = "")]
    pub cluster_cidr: String,
    /// Accepted for old manifests; without effect, because changes arrive as they happen
    #[arg(long)]
    pub config_sync_period: Option<GoDuration>,

    /// Words that belong to no flag.
    #[arg(hide = true)]
    pub words: Vec<String>,
}

const DEFAULT_STATE_DIR: &str = "/var/lib/sluice";
pub(super) const DEFAULT_SOCKET: &str = "/run/sluice/sluice.sock";

/// Default of `--service-cluster-ip-range`: the range kubeadm gives a cluster.
pub const DEFAULT_CLUSTER_IP_RANGE: &str = "10.96.0.0/12";

impl fmt::Display for Strings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}
