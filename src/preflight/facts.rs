//! The facts of a host and its cluster that are judged before a start, as plain data.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;

use crate::config::Variant;
use crate::k8s::access::{Allowed, Right, Unknown};
use crate::kernel::address::HostAddress;
use crate::kernel::file_system::Passing;
use crate::kernel::listening_port::Transport;
use crate::kernel::module::ModuleState;
use crate::kernel::module::forbidden::Forbidden;
use crate::kernel::nftables::foreign::DroppingChain;
use crate::kernel::sysctl::Setting;
use crate::kernel::vxlan::Vxlan;
use crate::model::Node;
use crate::net::PerFamily;

/// Everything that was found.
#[derive(Clone, Debug)]
pub struct Facts {
    pub kernel: KernelFacts,
    pub process: ProcessFacts,
    pub packet_filter: PacketFilterFacts,
    pub network: NetworkFacts,
    pub files: FileFacts,
    pub cluster: ClusterFacts,
}

/// The running kernel.
#[derive(Clone, Default, Debug)]
pub struct KernelFacts {
    /// `uname -r`.
    pub release: String,
    /// `/proc/version`: how the kernel was built, and at its end `uname -v`. That alone where the file is not there.
    pub version: String,
    /// Those that are asked for.
    pub modules: BTreeMap<&'static str, ModuleState>,
    /// Why no module can be loaded here, as a sentence without its end.
    pub cannot_load: Option<String>,
    /// That is so for everybody, the kernel's own requests too (`kernel.modules_disabled`, or a kernel without modules).
    pub is_sealed: bool,
    /// Modules that the host forbids.
    pub forbidden: Forbidden,
    /// Those of the settings that are asked for that exist.
    pub settings: BTreeMap<Setting, FoundSetting>,
    /// Settings of all devices that have the value which the agent replaces, or beside which a device has it.
    pub replaced_for_devices: BTreeSet<Setting>,
}

/// A kernel setting.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FoundSetting {
    pub value: String,
    /// Why it cannot be written, if it can not.
    pub unwritable: Option<String>,
}

/// The process that asks, which is started as the agent will be.
#[derive(Clone, Default, Debug)]
pub struct ProcessFacts {
    pub is_root: bool,
    /// `CAP_NET_ADMIN`.
    pub may_change_network: bool,
    /// `CAP_SYS_ADMIN`.
    pub may_enter_namespaces: bool,
    /// Those of the programs that are asked for that are installed.
    pub programs: BTreeSet<&'static str>,
    /// An agent answers on the socket of `--socket`.
    pub agent_answers: bool,
}

/// Packet filters, and rules of others.
#[derive(Clone, Debug)]
pub struct PacketFilterFacts {
    pub nftables: Trial,
    /// The variant of iptables that the host uses; `None` where its programs are missing.
    pub variant: Option<Variant>,
    /// There are tables of legacy iptables that no installed program reads.
    pub has_unreadable_tables: bool,
    /// Chains of others that drop what none of their rules accepts.
    pub dropping: Vec<DroppingChain>,
    /// Names of all tables of nf_tables with chains.
    pub tables: BTreeSet<String>,
    /// Names of all chains, of nf_tables and legacy iptables.
    pub chains: BTreeSet<String>,
    /// Why chains of others could not be read, as a sentence without its end.
    pub unread: Option<String>,
}

/// Abilities of nf_tables in this kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Trial {
    Works,
    /// The kernel's words.
    Refused(String),
    /// Trying would load modules, which would be a change.
    NotTried,
}

/// Addresses, routes, ports and programs of this host.
#[derive(Clone, Default, Debug)]
pub struct NetworkFacts {
    pub addresses: Vec<HostAddress>,
    /// Source addresses towards the destinations of `--node-ip-autodetect=can-reach`.
    pub sources: PerFamily<Option<IpAddr>>,
    /// Names of all devices.
    pub links: BTreeSet<String>,
    /// Names of those of kind veth.
    pub pairs: BTreeSet<String>,
    /// Devices of the type `vxlan`, by their names.
    pub vxlan: BTreeMap<String, Vxlan>,
    /// Others' routes in the main table, without the default routes.
    pub routes: Vec<FoundRoute>,
    /// Whether sockets may be bound to addresses that this host has not (`ip_nonlocal_bind`).
    pub binds_elsewhere: PerFamily<bool>,
    /// Addresses and ports on which somebody listens.
    pub listening: BTreeSet<(Transport, SocketAddr)>,
    /// Those on which the process listens that answers on the socket of `--socket`; `None` where that is not seen from here.
    pub of_agent: Option<BTreeSet<(Transport, SocketAddr)>>,
    /// Number of virtual services of IPVS.
    pub virtual_services: usize,
    /// Names of running programs (`/proc/PID/comm`), as far as this process sees them.
    pub processes: BTreeSet<String>,
    /// Why some of it could not be read, a sentence each, without its end.
    pub unread: Vec<String>,
}

/// Another program's route.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FoundRoute {
    pub to: IpNet,
    /// Names of the devices of its next hops.
    pub links: Vec<String>,
    /// As `ip route` takes it.
    pub text: String,
}

/// Files and directories.
#[derive(Clone, Default, Debug)]
pub struct FileFacts {
    pub directories: Vec<Directory>,
    /// The text of the router's CNI file, `None` where there is none, or why it cannot be read.
    pub cni_text: Option<Result<String, String>>,
    /// The CNI file that container runtimes use in place of ours.
    pub preferred_cni_file: Option<PathBuf>,
    /// That one is the other form of the agent's own.
    pub is_older_form: bool,
    /// There is a socket at `--runtime-endpoint`.
    pub has_runtime_socket: bool,
    /// Places of passwords of BGP that cannot be read, with the reason.
    pub unread_passwords: Vec<(Passwords, String)>,
}

/// Passwords of BGP sessions outside of flags and annotations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Passwords {
    /// `--peer-router-passwords-file`.
    Peers,
    /// `--peer-router-passwords-dir`.
    PeersInDirectory,
    /// `--bgp-mesh-password-file`.
    Nodes,
}

/// A directory that is to be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Directory {
    pub purpose: Purpose,
    pub path: PathBuf,
    /// Why it cannot be written, or made.
    pub obstacle: Option<String>,
    /// Why files in it do not last; `None` where they do, as far as is known.
    pub passing: Option<Passing>,
}

/// Use of a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// `--state-dir`.
    State,
    /// That of `--socket`.
    Sockets,
    /// That of the CNI file.
    Cni,
}

/// The source of the cluster.
#[derive(Clone, Debug)]
pub enum ClusterFacts {
    /// A directory of manifests, or why it cannot be read.
    Manifests(Result<PathBuf, String>),
    /// There is no way to the API server, as a sentence.
    NoAccess(String),
    /// The API server does not answer, or does not accept the credentials.
    Unanswered(Unknown),
    Answered(Box<ApiFacts>),
}

/// The API server's answers.
#[derive(Clone, Debug)]
pub struct ApiFacts {
    pub version: Option<String>,
    /// As far as it is believed.
    pub node: Result<Node, Unknown>,
    /// Pod ranges that annotations of the Node name, and that a flag leaves out.
    pub unbelieved: Vec<IpNet>,
    pub rights: Vec<AskedRight>,
    /// The first address of each Node; empty where no link can have as many as the kernel finds out neighbours, so that nobody asked.
    pub nodes: Result<Vec<IpAddr>, Unknown>,
    /// Cluster IPs of the API server's own Service.
    pub own_cluster_ips: Result<Vec<IpAddr>, Unknown>,
    /// Ranges of cluster IPs that the cluster names (ServiceCIDR objects, which a server may not have).
    pub service_ranges: Result<Vec<IpNet>, Unknown>,
}

impl ApiFacts {
    /// Returns whether the server refuses everything that was asked, also what every account may ask about itself.
    pub fn tells_nothing(&self) -> bool {
        let is_untold = |asked: &AskedRight| matches!(asked.allowed, Allowed::NotSaid(_));
        self.version.is_none() && matches!(self.node, Err(Unknown::Forbidden(_))) && self.rights.iter().all(is_untold)
    }
}

/// A right that was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AskedRight {
    pub right: Right,
    pub allowed: Allowed,
    /// The server has such objects, as far as that was asked.
    pub is_served: bool,
}
