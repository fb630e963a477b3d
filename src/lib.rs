//! Sluice: a node network agent for Kubernetes. `docs/architecture.md` is the map.

pub mod net;
pub mod config;
pub mod model;
pub mod reconcile;
pub mod k8s;
pub mod kernel;
pub mod world;
