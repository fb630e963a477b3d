//! The service proxy: Services become IPVS virtual services.
//!
//! Kubernetes: Service and EndpointSlice. A packet to a service address is balanced by the kernel (IPVS, with
//! destination NAT) over the endpoints of the Service; this module decides what the kernel shall hold and
//! keeps it so. Nothing here sees a packet.
//!
//! In the kernel, for a Service `10.96.0.9:80` with endpoints `10.244.1.7:8080` and `10.244.2.8:8080`:
//!
//! ```text
//! ipvsadm:  TCP 10.96.0.9:80 rr → 10.244.1.7:8080 Masq 1, 10.244.2.8:8080 Masq 1
//! ip route: local 10.96.0.9 dev kube-dummy-if table local src NODE
//! ipset:    kube-router-svip 10.96.0.9, kube-router-svip-prt 10.96.0.9,tcp:80
//! iptables: INPUT → KUBE-ROUTER-SERVICES (the guard), POSTROUTING → KUBE-ROUTER-SNAT (masquerading)
//! ```
//!
//! With `--netfilter=nftables` the last two are one table, `inet sluice_proxy`: its sets and chains have names of their own
//! ([`names`]) and mean the same. The plan desires one or the other; everything else knows elements by what they are for.
//!
//! Reading order: [`part`] is what one Service asks for, with one file for each feature that decides about it
//! ([`endpoints`], [`traffic_policy`], [`topology`], [`session_affinity`], [`scheduler`], [`node_port`], [`external_ip`], [`health_check`], [`source_ranges`], [`inside`], [`overlay_port`], [`speaker_port`], [`dsr`]);
//! [`plan`] keeps the union of all parts, [`desired`], one for each key ([`owners`]), with what all Services
//! share ([`guard`], [`unallocated`], [`hidden_ports`], [`host_input`], [`clients`],
//! [`masquerade`], [`settings`], [`local_node`], [`other_nodes`]) and what is on its way out ([`drain`], [`closing`], [`udp_flows`]) or waits for the firewall ([`unjudged`]); [`apply`] brings it
//! into the kernel; [`explain`] answers users, and [`problems`] is what they are told without asking; [`driver`] is the proxy's part of the loop (`subsystem`). [`names`] pins what running nodes call these things.

pub mod names;
pub mod desired;
pub mod part;
pub mod endpoints;
pub mod traffic_policy;
pub mod topology;
pub mod session_affinity;
pub mod scheduler;
pub mod node_port;
pub mod external_ip;
pub mod health_check;
pub mod source_ranges;
pub mod inside;
pub mod overlay_port;
pub mod dsr;
pub mod problems;
pub mod clients;
pub mod plan;
pub mod owners;
pub mod local_node;
pub mod other_nodes;
pub mod guard;
pub mod unallocated;
pub mod hidden_ports;
pub mod host_input;
pub mod masquerade;
pub mod settings;
pub mod drain;
pub mod closing;
pub mod udp_flows;
pub mod unjudged;
pub mod marks;
pub mod apply;
pub mod linux;
pub mod explain;
pub mod driver;
pub mod metrics;
pub mod serve;
mod speaker_port;
