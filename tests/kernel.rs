//! Each kernel family on the real kernel, in network namespaces of its own: written through us and read
//! with the kernel's own tools, and the reverse.
//!
//! `native` needs namespaces, root, and what any kernel has. `dummy`, `dsr`, `ipvs`, `frames`, `cleanup_kube_proxy`, `left_by_kube_proxy`, `tunnel`, `overlay_change`, `overlay_port` and `wireguard` need modules; they fail
//! with a sentence where the module is missing, and are run in the guest of the lab then.
//!
//! Addresses: pods 10.244.0.0/16, services 10.96.0.0/12, nodes 192.0.2.0/24, outside 203.0.113.0/24, and their
//! twins fd00:10:244::/56, fd00:10:96::/108, 2001:db8::/32.

#[path = "kernel/namespace.rs"]
mod namespace;
#[path = "kernel/running.rs"]
mod running;
#[path = "kernel/containerd.rs"]
mod containerd;
#[path = "kernel/native/mod.rs"]
mod native;
#[path = "kernel/ipvs.rs"]
mod ipvs;
#[path = "kernel/call_counter.rs"]
mod call_counter;
#[path = "kernel/ipvs_commands.rs"]
mod ipvs_commands;
#[path = "kernel/ipvs_rules.rs"]
mod ipvs_rules;
#[path = "kernel/ipvs_table.rs"]
mod ipvs_table;
#[path = "kernel/direct_server_return.rs"]
mod direct_server_return;
#[path = "kernel/dsr.rs"]
mod dsr;
#[path = "kernel/detected_address.rs"]
mod detected_address;
#[path = "kernel/wireguard.rs"]
mod wireguard;
#[path = "kernel/overlay_change.rs"]
mod overlay_change;
#[path = "kernel/overlay_port.rs"]
mod overlay_port;
#[path = "kernel/tunnel.rs"]
mod tunnel;
#[path = "kernel/pod_tunnel.rs"]
mod pod_tunnel;
#[path = "kernel/pod_sandbox.rs"]
mod pod_sandbox;
#[path = "kernel/frames.rs"]
mod frames;
#[path = "kernel/dummy.rs"]
mod dummy;
#[path = "kernel/cleanup_kube_proxy.rs"]
mod cleanup_kube_proxy;
#[path = "kernel/left_by_kube_proxy.rs"]
mod left_by_kube_proxy;
