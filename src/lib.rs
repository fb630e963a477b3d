//! Sluice: a node network agent for Kubernetes. `docs/architecture.md` is the map.

pub mod net;
pub mod packed;
pub mod config;
pub mod observe;
pub mod model;
pub mod reconcile;
pub mod kernel;
pub mod k8s;
pub mod world;
pub mod bgp;
pub mod subsystem;
pub mod container_runtime;
pub mod pod_tunnels;
pub mod proxy;
pub mod firewall;
pub mod source_guard;
pub mod gobgp;
pub mod load_balancer;
pub mod router;
pub mod cleanup;
pub mod status;
pub mod ask;
pub mod cni;
pub mod app;
