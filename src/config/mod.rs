//! The configuration: from the command line, checked before anything is bound or written.
//!
//! Three steps: words → [`Flags`] (what was typed) → [`Config`] (what is meant). Subsystems see only their own
//! part of `Config`, which holds values of the right type and no "not checked yet".
//!
//! Every flag of kube-router 2.11 is checked, also those of subsystems that are switched off, so that a mistake in a
//! manifest is found now and not on the day the subsystem is switched on. Flags that are accepted and do nothing are
//! logged at the start, each with its reason ([`Config::notices`]).
//!
//! Nothing here reads the environment, a file or the clock; the few values needed come as [`Environment`].

mod ask;
mod command_line;
mod completion;
mod duration;
mod drain;
mod encapsulation;
mod environment;
mod firewall;
mod flags;
mod key_file;
mod load_balancer;
mod mesh;
mod mistakes;
mod netfilter;
mod node_annotations;
mod notices;
mod observe;
mod peers;
mod proxy;
mod refusal;
mod router;
mod service_ranges;
mod usage;
mod value;

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;

pub use ask::{Ask, Output};
pub use command_line::{Request, TOOLCHAIN, VERSION, request};
pub use drain::{DrainConfig, DrainLabel, TaintPattern};
pub use duration::GoDuration;
pub use encapsulation::{Encapsulation, Encryption, Fou, Received, VxlanNetwork};
pub use environment::Environment;
pub use firewall::FirewallConfig;
pub use flags::Flags;
pub use key_file::KEY_FILE;
pub use load_balancer::LoadBalancerConfig;
pub use mesh::MeshConfig;
pub use mistakes::Mistakes;
pub use netfilter::{Backend, Netfilter, Variant};
pub use observe::{MetricsConfig, ObserveConfig};
pub use proxy::ProxyConfig;
pub use refusal::Refusal;
pub use router::{Advertise, DEFAULT_CNI_FILE, GracefulRestart, NodeRoutes, Overlay, Reach, RouterConfig, RouterId};
pub use service_ranges::{Disallowed, ServiceRanges};
pub use usage::usage;

use crate::net::{AddressDetection, NodeAnnotations, PerFamily, Protocol, server_url};

/// Where container runtimes look for CNI plugins unless they are told of another directory.
const PLUGIN_DIRECTORY: &str = "/opt/cni/bin";

/// A checked configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// The name of this host's Node object: `--hostname-override`, else `NODE_NAME`, else the host name.
    pub node_name: String,
    /// Source of the cluster's objects.
    pub source: Source,
    /// `--state-dir`: directory of the last known state; `None` keeps none.
    pub state_dir: Option<PathBuf>,
    /// `--socket`: path at which this host's root may query the program; `None` for none.
    pub socket: Option<PathBuf>,
    /// `--netpol-cni`: path at which the CNI plugin announces pods that start, beside [`socket`](Config::socket); `None` for none.
    pub cni_socket: Option<PathBuf>,
    /// `--netpol-source-guard`: ports of pods are guarded; only with [`cni_socket`](Config::cni_socket).
    pub source_guard: bool,
    /// The directory of CNI files that container runtimes read: that of `KUBE_ROUTER_CNI_CONF_FILE`, whether or not that file is kept.
    pub cni_directory: PathBuf,
    /// The directory of the host's CNI plugins, in which `--cleanup-config` finds ours: `HOST_BIN_PATH`, else `/opt/cni/bin`.
    pub plugin_directory: PathBuf,
    /// `--enable-direct-server-return`: Services with the annotation are served through tunnels.
    pub direct_server_return: bool,
    /// `--overlay-encap=wireguard`: packets between nodes are encrypted, by this process or another one of the node.
    pub encrypts: bool,
    /// `--runtime-endpoint`: the container runtime's socket; `None` tries the usual ones.
    pub runtime_endpoint: Option<PathBuf>,
    /// `--cache-sync-timeout`: time limit for the first complete view; longer than zero.
    pub cache_sync_timeout: Duration,
    /// `--enable-ipv4`, `--enable-ipv6`; at least one is true.
    pub families: PerFamily<bool>,
    /// `--netfilter`; what it comes to on this host is decided at the start ([`Config::decided`]).
    pub netfilter: Netfilter,
    /// `--node-ip-autodetect`, where the router runs; `None` for the InternalIP of the Node.
    pub node_address: Option<AddressDetection>,
    /// `--node-pod-cidr-annotations`, `--rr-server-nodes`: what is believed of Nodes.
    pub node_annotations: NodeAnnotations,
    /// The service proxy, when it runs or is cleaned up.
    pub proxy: Option<ProxyConfig>,
    /// The firewall, when it runs or is cleaned up.
    pub firewall: Option<FirewallConfig>,
    /// The router, when it runs or is cleaned up.
    pub router: Option<RouterConfig>,
    /// `--run-loadbalancer`: the allocator of load balancer addresses, when it runs.
    pub load_balancer: Option<LoadBalancerConfig>,
    pub observe: ObserveConfig,
    /// `-v`: 0 and higher.
    pub verbosity: u8,
    pub log_format: LogFormat,
    /// Take something of ours out of the kernel and end.
    pub cleanup: Option<Cleanup>,
    /// Flags that were accepted but mean nothing, one sentence each, to be logged at the start.
    pub notices: Vec<String>,
}

/// Source of the cluster's objects.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// The Kubernetes API. With neither, the service account of the pod we run in.
    Api {
        /// `--kubeconfig`.
        kubeconfig: Option<PathBuf>,
        /// `--master`: the API server, in place of the one that the kubeconfig or the pod names.
        master: Option<Uri>,
    },
    /// `--manifests`: a directory of YAML and JSON files.
    Manifests(PathBuf),
}

/// The form of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    Text,
    Json,
}

/// The socket of `--netpol-cni`, beside the one of `--socket`.
pub const CNI_SOCKET: &str = "cni.sock";

impl Config {
    /// Checks the flags in this environment; returns their meaning or all mistakes in them.
    ///
    /// `verbosity` is the checked value of `-v` (see [`Request::Run`]).
    ///
    /// # Errors
    /// All mistakes in the flags, one sentence each.
    pub fn from_flags(flags: &Flags, verbosity: u8, environment: &Environment) -> Result<Config, Mistakes> {
        let mut mistakes = Mistakes::default();
        let config = Config::meant(flags, verbosity, environment, &mut mistakes);
        if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }
    }

    /// Returns the meaning of the flags. Mistakes are added to `mistakes`, and a stand-in takes the place of each.
    pub fn meant(flags: &Flags, verbosity: u8, environment: &Environment, mistakes: &mut Mistakes) -> Config {
        let families = PerFamily { v4: flags.enable_ipv4, v6: flags.enable_ipv6 };
        if !families.v4 && !families.v6 {
            mistakes.add(
                "--enable-ipv4 and --enable-ipv6 are both off: start with at least one of them, \
                 for example --enable-ipv4=true."
                    .to_owned(),
            );
        }
        let netfilter = Netfilter::from_flags(flags, mistakes);
        let mut proxy = ProxyConfig::from_flags(flags, families, mistakes);
        let firewall = FirewallConfig::from_flags(flags, &proxy, mistakes);
        let mut router = RouterConfig::from_flags(flags, environment, &proxy.ranges, mistakes);
        if let Some(overlay) = router.overlay.filter(|_| flags.run_router) {
            proxy.overlay_overhead = PerFamily::from_fn(|family| overlay.overhead(family));
        }
        // Also where another process of this node is the router.
        proxy.overlay_ports = router.overlay.map_or_else(Vec::new, Overlay::open_ports);
        (proxy.bgp_ports, proxy.bfd_ports) = (router.bgp_ports(), router.bfd_ports());
        let of_bfd = proxy.bfd_ports.iter().filter(|_| router.bfd_mesh.is_some()).map(|port| (Protocol::Udp, *port));
        proxy.speakers = proxy.bgp_ports.iter().map(|port| (Protocol::Tcp, *port)).chain(of_bfd).collect();
        let cni_socket = cni_socket(flags, mistakes);
        if cni_socket.is_some() && flags.run_router {
            router.cni_plugin = cni_plugin(&router, environment, cni_socket.as_deref(), mistakes);
        }
        let encrypts = router.overlay.is_some_and(|overlay| overlay.encapsulation.wireguard().is_some());
        let cleanup = Cleanup::from_flags(flags, mistakes);
        let node_name = node_name(flags, environment, cleanup.is_none(), mistakes);
        let load_balancer = LoadBalancerConfig::from_flags(flags, environment, &proxy.ranges, &node_name, mistakes);
        let config = Config {
            node_name,
            source: source(flags, mistakes),
            socket: (!flags.socket.is_empty()).then(|| PathBuf::from(&flags.socket)),
            source_guard: source_guard(flags, cni_socket.is_some(), mistakes),
            cni_socket,
            cni_directory: router::cni_file(environment).parent().map(Path::to_owned).unwrap_or_default(),
            plugin_directory: environment.host_bin_path.clone().unwrap_or_else(|| PathBuf::from(PLUGIN_DIRECTORY)),
            state_dir: (!flags.state_dir.is_empty()).then(|| PathBuf::from(&flags.state_dir)),
            cache_sync_timeout: mistakes.longer_than_zero("cache-sync-timeout", flags.cache_sync_timeout, "1m"),
            families,
            netfilter,
            node_address: node_address(flags, mistakes).filter(|_| flags.run_router && !flags.cleanup_config),
            node_annotations: node_annotations::node_annotations(flags, mistakes),
            // A cleanup is about everything that an earlier run may have left.
            proxy: (flags.run_service_proxy || flags.cleanup_config || flags.cleanup_kube_proxy).then_some(proxy),
            firewall: (flags.run_firewall || flags.cleanup_config).then_some(firewall),
            router: (flags.run_router || flags.cleanup_config).then_some(router),
            load_balancer: (flags.run_loadbalancer && !flags.cleanup_config).then_some(load_balancer),
            direct_server_return: flags.enable_direct_server_return,
            encrypts,
            runtime_endpoint: runtime_endpoint(&flags.runtime_endpoint, mistakes),
            observe: ObserveConfig::from_flags(flags, mistakes),
            verbosity,
            log_format: mistakes.one_of(
                "log-format",
                &flags.log_format,
                ("text", LogFormat::Text),
                ("json", LogFormat::Json),
            ),
            cleanup,
            notices: notices::notices(flags, mistakes),
        };
        match netfilter {
            Netfilter::Nftables => config.decided(Backend::Nftables),
            Netfilter::Auto | Netfilter::Iptables => config,
        }
    }

    /// The same configuration with the backend that its subsystems use on this host ([`Netfilter::backend`]).
    #[must_use]
    pub fn decided(mut self, backend: Backend) -> Config {
        self.proxy.iter_mut().for_each(|proxy| proxy.backend = backend);
        self.firewall.iter_mut().for_each(|firewall| firewall.backend = backend);
        self.router.iter_mut().for_each(|router| router.backend = backend);
        self
    }

    /// Returns whether Services with the annotation for direct server return are served through tunnels, as far as flags decide: not with the source guard, which drops
    /// what a pod sends with a service address, and not where packets between nodes are encrypted. WireGuard drops what comes from a peer with another source than the
    /// peer's own addresses and pods, and an answer to a pod of another node, or to such a node, has a service address, which no peer has alone.
    pub fn serves_through_tunnels(&self) -> bool {
        self.direct_server_return && !self.source_guard && !self.encrypts
    }

    /// Returns the name of the packet filter that the subsystems use; `none` where nothing that needs one runs.
    pub fn packet_filter(&self) -> &'static str {
        let backends = [
            self.proxy.as_ref().map(|proxy| proxy.backend),
            self.firewall.as_ref().map(|firewall| firewall.backend),
            self.router.as_ref().map(|router| router.backend),
        ];
        match backends.into_iter().flatten().next() {
            Some(Backend::Nftables) => "nftables",
            Some(Backend::Iptables) => "iptables",
            None => "none",
        }
    }

    /// Describes the configuration for a report of a problem: every value by its name, and no secret. Passwords are of a type that shows nothing
    /// (`net::Secret`); of the API server's URL what stands before its host is left out.
    pub fn told(&self) -> String {
        let mut told = self.clone();
        if let Source::Api { master: Some(master), .. } = &mut told.source {
            *master = without_user(master);
        }
        format!("{told:#?}")
    }

    /// Returns whether nothing is asked for at all: neither a subsystem nor a cleanup.
    pub fn runs_nothing(&self) -> bool {
        self.proxy.is_none()
            && self.firewall.is_none()
            && self.router.is_none()
            && self.load_balancer.is_none()
            && self.cleanup.is_none()
    }
}

/// Scope of a cleanup.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cleanup {
    /// `--cleanup-config`: everything of ours, and our files.
    Everything,
    /// `--cleanup-nftables`: our tables of nf_tables. What kube-router has as well stays.
    Tables,
    /// `--cleanup-kube-proxy`: what kube-proxy left, and nothing of ours.
    KubeProxy,
}

impl Cleanup {
    fn from_flags(flags: &Flags, mistakes: &mut Mistakes) -> Option<Cleanup> {
        if flags.cleanup_kube_proxy && (flags.cleanup_config || flags.cleanup_nftables) {
            mistakes.add(
                "--cleanup-kube-proxy removes what kube-proxy left, and --cleanup-config and --cleanup-nftables what this \
                 program made: run them one after the other."
                    .to_owned(),
            );
        }
        let asked = [
            (flags.cleanup_config, Cleanup::Everything),
            (flags.cleanup_nftables, Cleanup::Tables),
            (flags.cleanup_kube_proxy, Cleanup::KubeProxy),
        ];
        asked.into_iter().find(|(is_asked, _)| *is_asked).map(|(_, cleanup)| cleanup)
    }
}

/// The node's name, in lower case and without blanks around it, as the kubelet registers it. `is_needed`: not where things are removed from a host alone.
fn node_name(flags: &Flags, environment: &Environment, is_needed: bool, mistakes: &mut Mistakes) -> String {
    let variable = environment.node_name.as_deref().unwrap_or_default();
    let (origin, typed) = if !flags.hostname_override.is_empty() {
        ("--hostname-override", flags.hostname_override.as_str())
    } else if !variable.is_empty() {
        ("NODE_NAME", variable)
    } else {
        ("the name of this host", environment.host_name.as_str())
    };
    let name = typed.trim().to_ascii_lowercase();
    if is_needed && !is_node_name(&name) {
        mistakes.add(format!(
            "{origin} cannot be a node's name, which has letters, digits, - and . only: \
             set --hostname-override to the name of this node; it is {typed:?}."
        ));
    }
    name
}

/// Returns whether a Node may have this name (RFC 1123, a subdomain).
fn is_node_name(name: &str) -> bool {
    let letters = name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'));
    let ends = |c: char| c.is_ascii_alphanumeric();
    letters && name.len() <= 253 && name.starts_with(ends) && name.ends_with(ends)
}

/// The method by which addresses of this node are detected; `None` without one.
fn node_address(flags: &Flags, mistakes: &mut Mistakes) -> Option<AddressDetection> {
    let typed = Some(flags.node_ip_autodetect.trim()).filter(|typed| !typed.is_empty())?;
    let method = typed.parse().map_err(|why| mistakes.add(format!("--node-ip-autodetect: {why}.")));
    method.ok()
}

/// The socket of `--netpol-cni`, beside the one of `--socket`. A cleanup announces nothing.
fn cni_socket(flags: &Flags, mistakes: &mut Mistakes) -> Option<PathBuf> {
    if !flags.netpol_cni || !flags.run_firewall || flags.cleanup_config {
        return None;
    }
    if flags.socket.is_empty() {
        mistakes.add(
            "--netpol-cni needs a socket beside that of --socket, which is empty: leave --socket at its default, \
             /run/sluice/sluice.sock."
                .to_owned(),
        );
    }
    Some(PathBuf::from(&flags.socket).with_file_name(CNI_SOCKET))
}

/// Whether ports of pods are guarded. Only the CNI step knows ports and addresses that no pod can forge.
fn source_guard(flags: &Flags, has_cni: bool, mistakes: &mut Mistakes) -> bool {
    if flags.netpol_source_guard && !flags.netpol_cni {
        mistakes.add(
            "--netpol-source-guard needs --netpol-cni, by which the agent hears of the ports and addresses of pods: add --netpol-cni, \
             or remove --netpol-source-guard."
                .to_owned(),
        );
    }
    flags.netpol_source_guard && has_cni
}

/// The socket that the CNI file names, where this program writes that file: a list, because the plugin follows others. It is to be named, so that
/// the same flags are right, or wrong, on all nodes, whatever an earlier run has left there.
fn cni_plugin(
    router: &RouterConfig,
    environment: &Environment,
    socket: Option<&Path>,
    mistakes: &mut Mistakes,
) -> Option<PathBuf> {
    router.cni_file.as_ref()?;
    let file = environment.cni_file.as_deref().unwrap_or(Path::new(DEFAULT_CNI_FILE));
    if !file.extension().is_some_and(|end| end.eq_ignore_ascii_case("conflist")) {
        mistakes.add(format!(
            "--netpol-cni needs a CNI file that is a list of plugins: set the variable KUBE_ROUTER_CNI_CONF_FILE to a name \
             that ends in .conflist; it is {:?}.",
            file.display().to_string()
        ));
    }
    socket.map(Path::to_owned)
}

fn source(flags: &Flags, mistakes: &mut Mistakes) -> Source {
    if !flags.manifests.is_empty() {
        for (flag, typed) in [("kubeconfig", &flags.kubeconfig), ("master", &flags.master)] {
            if !typed.is_empty() {
                mistakes.add(format!(
                    "--manifests and --{flag} are both given: objects come from files or from the API, so remove one."
                ));
            }
        }
        return Source::Manifests(PathBuf::from(&flags.manifests));
    }
    Source::Api {
        kubeconfig: (!flags.kubeconfig.is_empty()).then(|| PathBuf::from(&flags.kubeconfig)),
        master: master(&flags.master, mistakes),
    }
}

/// The API server's URL. Without a scheme it is reached by TLS.
fn master(typed: &str, mistakes: &mut Mistakes) -> Option<Uri> {
    if typed.is_empty() {
        return None;
    }
    let url = server_url::completed(typed, true).ok();
    if url.is_none() {
        // The sentence may end up in a log.
        let shown = server_url::shown(typed);
        mistakes.add(format!("--master must be a URL like https://192.0.2.10:6443; it is {shown:?}."));
    }
    url
}

/// The server of a URL, without a user's name and password, and without a query.
fn without_user(master: &Uri) -> Uri {
    let host = master.authority().map(|all| all.as_str().rsplit_once('@').map_or(all.as_str(), |(_, host)| host));
    let server = Uri::builder().scheme(master.scheme_str().unwrap_or("https")).path_and_query(master.path());
    server.authority(host.unwrap_or_default()).build().unwrap_or_default()
}

fn runtime_endpoint(typed: &str, mistakes: &mut Mistakes) -> Option<PathBuf> {
    let path = typed.strip_prefix("unix://").unwrap_or_default();
    if !typed.is_empty() && !path.starts_with('/') {
        mistakes.add(format!(
            "--runtime-endpoint must be a socket like unix:///run/containerd/containerd.sock; it is {typed:?}."
        ));
    }
    (!path.is_empty()).then(|| PathBuf::from(path))
}

#[cfg(test)]
mod tests;
