//! The firewall: NetworkPolicies and ClusterNetworkPolicies become rules and sets.
//!
//! Kubernetes: NetworkPolicy (`networking.k8s.io/v1`), Pod, Namespace. A pod that no policy selects accepts and sends
//! everything; one that policies select accepts (ingress) or sends (egress) only what one of them allows. This module
//! decides what that means for the pods of this node.
//!
//! Reading order: [`rules`] is the compiled form, independent of any backend, in which [`local_pods`] are found by their addresses; [`compile`] makes the rules of one
//! policy, with one file for each feature that decides about them: [`selection`] (pods and namespaces by labels),
//! [`ip_block`] (address ranges with exceptions), [`oversized`] (policies with too much for the kernel, of which [`oversized_policies`] tells), [`node_peers`] (Nodes by labels), [`port_number`], [`named_port`]; [`isolation`] decides whether a pod
//! is restricted at all (default deny). [`plan`] keeps the rule set up to date: [`claims`] lists the pods of an
//! address, [`membership`] the elements of a set there, [`index`] the selectors to evaluate for a pod, [`fill`] the
//! contents of a new set. [`verdict`] traces a packet through the rule set and so defines its meaning, and [`explain`]
//! presents that to users. [`diff`] compares the rule set with the one that other policies would make; [`refused`] names
//! the packets that rules log; [`flows`] is how the kernel's connections and its log are read; [`established`] ends
//! connections that a policy newly denies.
//!
//! [`link_local`] and [`multicast`] are about addresses that policies cannot name, on the [`bridges`] of pods, and [`frames`] about frames there
//! that no rule sees; [`own_source`] about packets with this host's address that it has not sent;
//! [`host_endpoints`] is about Services whose endpoints are on this node itself ([`service_addresses`] says at which addresses they are reached), and [`denials`] says which pods are refused them.
//! [`lost`] is about ClusterNetworkPolicies that are not known and may be in force.
//! [`closed_ranges`] are those of `--netpol-default-deny`, [`identity`] is what names in the kernel are derived from, [`policy_name`] what users are told, [`settings`] is
//! what rules need to see packets. [`backend`] is the interface to the kernel, [`drop_sums`] what both make of its counters; [`iptables`] has chains and sets, [`nftables`] a table.
//! [`starting`] is about pods that start only when their rules are in force, [`judging`] about tunnels that wait for theirs. [`driver`] is the firewall's part of the loop
//! (`subsystem`);
//! [`serve`] exports the refused packets.

pub mod rules;
pub mod local_pods;
pub mod compile;
pub mod isolation;
pub mod judging;
pub mod selection;
pub mod ip_block;
pub mod oversized;
pub mod oversized_policies;
pub mod node_peers;
pub mod port_number;
pub mod named_port;
pub mod plan;
pub mod claims;
pub mod membership;
pub mod index;
pub mod fill;
pub mod verdict;
pub mod explain;
pub mod flows;
pub mod diff;
pub mod refused;
pub mod established;
pub mod bridges;
pub mod frames;
pub mod link_local;
pub mod multicast;
pub mod own_source;
pub mod host_endpoints;
pub mod service_addresses;
mod starting;
pub mod starting_pod;
pub mod denials;
pub mod lost;
pub mod closed_ranges;
pub mod identity;
pub mod policy_name;
pub mod settings;
pub mod backend;
pub mod drop_sums;
pub mod iptables;
pub mod nftables;
pub mod driver;
pub mod metrics;
pub mod serve;
#[cfg(test)]
mod given;
