//! The router: pods on all nodes reach each other, and the outside learns where pods and Services live.
//!
//! Kubernetes: Nodes with their annotations, Services and EndpointSlices. This module decides who we talk BGP with (`bgp` does the
//! talking), what we announce, and what the kernel shall make of what was learned. Here it is all calculation.
//!
//! For a node `node-1` (192.0.2.1, pods 10.244.1.0/24) of three, with `node-2` on its link and `node-3` elsewhere:
//!
//! ```text
//! BGP:      192.0.2.2 and 10.0.0.3, both AS 64512; 10.244.1.0/24 next hop 192.0.2.1
//! ip route: 10.244.2.0/24 via 192.0.2.2 dev eth0 proto 17
//!           10.244.3.0/24 dev tun-… src 192.0.2.1 proto 17;  10.0.0.3 dev tun-… table 77;  rule: from 10.244.1.0/24 lookup 77
//! ipset:    kube-router-pod-subnets, kube-router-node-ips
//! iptables: FORWARD → KUBE-ROUTER-PODS (pods pass), POSTROUTING → KUBE-ROUTER-EGRESS (the node's address for the outside)
//! CNI:      ranges [[10.244.1.0/24]], mtu 1500;  kube-bridge
//! ```
//!
//! Reading order: [`identity`] is our own node ([`router_id`]); [`mesh`] and [`external_peers`] say who we talk to;
//! [`advertise`] what we announce for Services, and [`withdrawals`] what others may still believe of that; [`policy`] what may pass; [`routes`] how learned routes become the kernel's, with
//! tunnels, and [`reachable`] which of their next hops count; [`node_sets`], [`pod_egress`], [`forward`], [`settings`], [`mtu`] and [`cni`] what the host needs besides.
//! [`nodes`] is what all nodes bring ([`claims`]); [`plan`] keeps everything up to date, [`desired`] is what comes of it, and
//! [`problem`] what keeps parts of it from working. [`names`] pins what running nodes call these things.

pub mod names;
pub mod desired;
pub mod problem;
pub mod identity;
pub mod router_id;
pub mod mesh;
pub mod external_peers;
pub mod advertise;
pub mod policy;
pub mod routes;
mod shared_lists;
pub mod reachable;
pub mod mtu;
pub mod node_sets;
pub mod pod_egress;
pub mod forward;
pub mod settings;
pub mod cni;
pub mod claims;
pub mod nodes;
pub mod plan;
pub mod apply;
pub mod linux;
pub mod sessions;
pub mod withdrawals;
pub mod told;
pub mod host_files;
pub mod metrics;
pub mod driver;

#[cfg(test)]
mod given;
