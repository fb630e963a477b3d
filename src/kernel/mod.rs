//! The only code that talks to Linux. Each file's header says which kernel objects are ours and how a
//! process without memory knows them.
//!
//! `netlink` is the wire under all of them; `ipvs`, `ipset`, `link`, `address`, `route`, `iptables` and
//! `sysctl` are families of objects (`reconcile::Target`); `conntrack` and `module` are acts;
//! `monitor` tells what others changed.

mod error;
mod name;
mod own;
mod program;

pub mod address;
pub mod conntrack;
pub mod ipset;
pub mod iptables;
pub mod ipvs;
pub mod link;
pub mod module;
pub mod monitor;
pub mod netlink;
pub mod route;
pub mod sysctl;

pub use error::{Cause, Error};
pub use name::Name;
