//! The container runtime of this host: which pods' sandboxes run, with which addresses, and where their network namespaces are.
//!
//! Kubernetes: Container Runtime Interface, version 1 (gRPC on a unix socket; `proto/container_runtime.proto`). Spoken by
//! containerd from 1.6 on and by CRI-O from 1.20 on. Asked only where a pod's network namespace has to be entered
//! (`pod_tunnels`); nothing is ever changed through it.
//!
//! - `client` asks one runtime: one connection, every call with a time limit, every answer with a bound.
//! - `hosts` asks all runtimes of this host: a socket in a usual place may be that of another one than the kubelet's, like Docker's containerd.
//! - `info` reads the part of an answer that has no fixed form: the JSON under `info`, alike in containerd and CRI-O.
//! - `wire` are the messages.
//!
//! A sandbox is found by the address that it has: that is what endpoints tell, and it says which
//! of several sandboxes of one pod is the living one. Where the pod is known too, only sandboxes of its name are asked for (by the labels that every
//! kubelet gives). What a runtime tells is a place to look at, never a proof: whoever enters
//! a namespace looks whether it has the pod's address (`kernel::namespace`).

pub mod client;
pub mod hosts;
pub mod info;
pub mod wire;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use compact_str::CompactString;

/// Sockets of the runtimes in their usual places, tried in this order where no `--runtime-endpoint` is given.
pub const DEFAULT_SOCKETS: [&str; 6] = [
    "/run/containerd/containerd.sock",
    "/var/run/containerd/containerd.sock",
    "/var/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/k0s/containerd.sock",
    "/var/snap/microk8s/common/run/containerd.sock",
];

/// A pod's sandbox that is ready.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sandbox {
    pub id: CompactString,
    pub pod: PodName,
    /// `metadata.uid` of the pod; of a static pod the kubelet's own.
    pub uid: CompactString,
    /// Addresses of either family; none where the pod shares its node's network.
    pub addresses: Vec<IpAddr>,
    /// The pod shares its node's network (`hostNetwork`).
    pub host_network: bool,
    /// Files that stand for its network namespace, the likeliest first. Any of them may be gone.
    pub places: Vec<PathBuf>,
}

/// The name of a pod.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PodName {
    pub namespace: CompactString,
    pub name: CompactString,
}

/// Which sandboxes are asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Sought {
    All,
    /// Those of pods with these names.
    Of(BTreeSet<PodName>),
}

/// Answer of a runtime.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Found {
    /// Sorted by their ids.
    pub sandboxes: Vec<Sandbox>,
    /// Why some others could not be looked at, as a sentence without its end.
    pub lacking: Option<String>,
}

/// Returns the sockets to try: the one that is configured, else the usual ones.
pub fn sockets(configured: Option<&PathBuf>) -> Vec<PathBuf> {
    configured.map_or_else(|| DEFAULT_SOCKETS.iter().map(PathBuf::from).collect(), |path| vec![path.clone()])
}
