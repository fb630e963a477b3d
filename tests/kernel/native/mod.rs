//! Tests that any Linux with namespaces runs.

mod address;
mod agent;
mod agent_memory;
mod bfd;
mod bridge;
mod bundle;
mod cleanup;
mod cleanup_kube_proxy;
mod conntrack;
mod enforcer;
pub mod firewall;
mod firewall_conformance;
mod firewall_crash;
mod firewall_established;
mod firewall_failures;
mod firewall_host_endpoints;
pub mod firewall_link_local;
pub mod firewall_multicast;
mod firewall_own_source;
mod first_packet;
mod firewall_table_failures;
mod firewall_turns;
mod firewall_listings;
mod firewall_others;
mod firewall_refused;
mod firewall_removal;
pub mod frame;
mod hairpin_ports;
mod host_chains;
mod ipset;
mod iptables;
mod learned;
mod link;
mod monitor;
mod netlink;
pub mod places;
mod pod_namespace;
mod route;
mod nftables;
mod nftables_changes;
mod nftables_listener;
mod nftables_owner;
mod nftables_takeover;
mod nftables_turns;
mod next_hop;
mod passages;
mod preflight;
pub mod router;
mod router_discovery;
mod rule;
mod source_dest_check;
mod source_ranges;
mod sandboxes;
mod source_guard;
mod sysctl;
mod unallocated;
mod vxlan;

/// A moment for a round: now, without jitter.
fn moment() -> sluice::reconcile::Moment {
    sluice::reconcile::Moment { now: std::time::Instant::now(), jitter: 0 }
}
