//! The router: connects pods on all nodes, and announces pods and Services to the outside.
//!
//! Kubernetes: Nodes with their annotations, Services and EndpointSlices. This module decides about BGP peers (`bgp`
//! runs the sessions), announcements, and the kernel routes of learned routes. All of it is pure calculation.
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
//! Reading order: [`identity`] is our own node ([`router_id`]); [`mesh`] and [`external_peers`] determine the peers, with [`password_files`] and [`former_routers`];
//! [`advertise`] the announcements for Services, [`drain`] when they go with the node, [`cut_off`] when they wait for the ways to other nodes, and [`withdrawals`] those that peers may still believe in; [`policy`]
//! the import and export policies; [`routes`] turns learned routes into kernel routes and tunnels, [`rivals`] are
//! other programs' routes that prevail over those, [`reachable`] tracks their next hops, and [`neighbour_limit`] is how many the kernel finds out; [`node_sets`], [`pod_egress`], [`forward`], [`overlay_guard`], [`settings`], [`mtu`] and [`cni`] are the host's
//! other needs. [`nodes`] is the contribution of all nodes ([`claims`]); [`plan`] keeps everything up to date,
//! [`desired`] is its result, and [`problem`] what keeps parts of it from working; [`explain`] answers users' questions about all of it. [`plugin_entry`] keeps CNI files without
//! an entry that nobody answers. [`names`] pins the names of kernel
//! objects on running nodes.

pub mod names;
pub mod desired;
pub mod problem;
pub mod identity;
pub mod rotation;
pub mod unanswered;
pub mod router_id;
pub mod mesh;
pub mod external_peers;
pub mod password_files;
pub mod former_routers;
mod awaited_services;
mod liveness;
pub mod neighbour_limit;
pub mod advertise;
pub mod policy;
pub mod routes;
pub mod rivals;
pub mod reachable;
pub mod mtu;
pub mod node_sets;
pub mod tunnel_names;
pub mod link_addresses;
pub mod pod_egress;
pub mod forward;
pub mod overlay_guard;
pub mod settings;
pub mod cni;
pub mod claims;
pub mod nodes;
pub mod plan;
pub mod apply;
pub mod linux;
pub mod sessions;
pub mod drain;
pub mod cut_off;
pub mod withdrawals;
pub mod told;
pub mod host_files;
pub mod plugin_entry;
pub mod metrics;
pub mod serve;
pub mod explain;
pub mod driver;

#[cfg(test)]
mod given;
