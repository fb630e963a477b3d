//! The only code that talks to Linux. Each file's header says which kernel objects are ours and how a
//! process without memory knows them.
//!
//! `netlink` is the wire under all of them; `ipvs`, `ipset`, `link`, `address`, `route`, `iptables`, `nftables` and
//! `sysctl` are kinds of objects (`reconcile::Target`); `conntrack` and `module` are operations; `nflog` reads logged packets;
//! `bridge`, `rule`, `tunnel`, `vxlan` and `wireguard` hold the desired state of such objects; `monitor` reports changes by others; `tcp`
//! opens sockets for routing protocols, `router_discovery` one for routers on links, `udp` those of BFD; `socket_filter` has the instructions of which filters of sockets are made; `namespace` enters the networks of pods, `pod_tunnel` is what is made in them; `record_list` is a list in a small file beside our sockets; `call_counter` counts calls of kernel functions; `processor` is the time that work has taken, `memory` gives back what the allocator keeps; `listening_port` tells on which ports somebody listens, `file_system` whether what is written lasts.

mod error;
mod name;
mod own;
mod program;
mod socket_filter;

pub mod address;
pub mod bridge;
pub mod call_counter;
pub mod conntrack;
pub mod file_system;
pub mod ipset;
pub mod iptables;
pub mod ipvs;
pub mod link;
pub mod listening_port;
pub mod memory;
pub mod module;
pub mod monitor;
pub mod namespace;
pub mod netlink;
pub mod nflog;
pub mod nftables;
pub mod pod_tunnel;
pub mod processor;
pub mod record_list;
pub mod route;
pub mod router_discovery;
pub mod rule;
pub mod sysctl;
pub mod tcp;
pub mod tunnel;
pub mod udp;
pub mod vxlan;
pub mod wireguard;

/// Name of the kind of rules, in iptables and in tables of ours of nf_tables: in the log, in answers to users, in metrics.
pub const RULES: &str = "rules";

pub use error::{Cause, Error};
pub use name::Name;
pub use program::is_program;
