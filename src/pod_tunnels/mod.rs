//! The pod's side of direct server return (`kube-router.io/service.dsr: tunnel`): a tunnel device inside each local endpoint's
//! network namespace that has the service addresses, so that the pod answers the client itself.
//!
//! - `compare`: what a namespace has and what it should have → changes, in order. Pure.
//! - `machine`: which pod is looked for, set up, looked at and taken down, and when. Pure.
//! - `sweep`: when all namespaces are looked through for what an earlier run left. Pure.
//! - `places`: where the namespaces of pods may be, from all who know. Pure.
//! - `search`: where pods are now, of the runtime and of the usual directories.
//! - `driver`: all of it at work, on a thread of its own, with the container runtime asked beside it.
//! - `apply`: does what `compare` says in one namespace, and looks whether it is the right one.
//!
//! Which pods: those whose addresses are endpoints, on this node, of Services with direct server return. Each address of a pod
//! is looked after by itself; a dual-stack pod has two devices that know nothing of each other.
//!
//! Kernel: `kernel::pod_tunnel` says which objects are ours and how a process without memory knows them. There is no record of
//! the pods that were set up: whatever is ours in a pod is found by its name and taken over or removed.
//!
//! A namespace is the pod's if a device of it has the pod's address. That is looked at inside, every time, whoever said where
//! the namespace is: a sandbox that was made anew, a process number or a path that is another's now never get what is not theirs.

pub mod apply;
pub mod compare;
pub mod driver;
pub mod machine;
pub mod metrics;
pub mod places;
pub mod search;
pub mod sweep;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Service addresses that local pods answer for, by the pod's address.
pub type WantedTunnels = BTreeMap<IpAddr, BTreeSet<IpAddr>>;
