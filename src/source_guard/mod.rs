//! The source guard (`--netpol-source-guard`): what a pod sends by its port of a bridge passes only with the link address and the addresses
//! that the CNI plugins gave the pod.
//!
//! A pod with a raw socket can send with another pod's address, answer ARP requests and neighbour solicitations for it, and make
//! connection tracking take packets for answers that are none. No policy sees that: policies judge by addresses. Ports and addresses that no
//! pod can forge are known to the CNI plugins alone (a bridge learns both from the pods), so they come with the call of the
//! container runtime (`cni`, `--netpol-cni`).
//!
//! Reading order: [`ports`] is the collection of guarded ports, with what ends them; [`table`] is what the kernel is to have for them, a
//! table of nf_tables of the family `bridge`, the same whatever the packet filter of the firewall; [`apply`] brings it about ([`linux`]),
//! [`driver`] is its part of the loop (`subsystem`). [`ports_file`] keeps the collection over restarts, [`serve`] counts what is dropped.
//!
//! It decides about nothing but this host's own ports, so it waits for no cluster: an outage of the API changes nothing.

pub mod apply;
pub mod driver;
pub mod linux;
pub mod metrics;
pub mod ports;
pub mod ports_file;
pub mod serve;
pub mod table;
