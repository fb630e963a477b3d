//! Desired state of the bridge that pods are on.
//!
//! Kernel: a device of type `bridge` with the kernel's defaults, set up (`ip link add kube-bridge type bridge`). It is ours by
//! its name, and never deleted while pods are on it. Its addresses belong to the CNI plugin, which gives it the gateway's.

mod groups;
mod hairpin;
mod target;

pub use groups::{GroupLearning, NoGroupLearning, OfBridges};
pub use hairpin::{Hairpin, HairpinPorts, tells_of_port_without_hairpin};
pub use target::Bridges;

/// The bridge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bridge {
    /// MTU in bytes; `None` leaves it unchanged.
    pub mtu: Option<u32>,
    pub up: bool,
}
