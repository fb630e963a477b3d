//! Devices of the type `wireguard`, and the other nodes that they encrypt to.
//!
//! Kernel: the device by rtnetlink; its key, port and peers by the generic netlink family `wireguard` (include/uapi/linux/wireguard.h). The
//! kernel does all cryptography: we give it a private key, and read the public one that follows from it.
//!
//! ```text
//! ip link add sluice-wg0 type wireguard
//! wg set sluice-wg0 listen-port 51820 private-key FILE
//! wg set sluice-wg0 peer KEY endpoint 192.0.2.2:51820 allowed-ips 10.244.2.0/24,192.0.2.2/32
//! ip link set sluice-wg0 mtu 1420 up
//! ```
//!
//! Ours: the devices whose names their owner lists, and all peers on them.
//!
//! Limits and surprises:
//! - One device carries both address families, inside and outside. It has no gateways: which peer gets a packet, and from which one a packet with
//!   some source address is taken, follows from allowed IPs alone, of which each belongs to one peer of a device: who is given one takes
//!   it from whoever had it.
//! - A packet to an address that no peer has, or whose peer cannot be reached, is answered with "host unreachable": nothing leaves unencrypted.
//! - The kernel sends to where the last authenticated packet of a peer came from, whatever endpoint was set (`endpoints.rs`).
//! - A peer with our own public key is silently left out by the kernel.
//! - The kernel says nothing of what others change here: an audit finds it.

mod device;
mod endpoints;
mod peers;
mod wire;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::link::LinkName;
use crate::net::PublicKey;

pub use device::Devices;
pub use peers::Peers;

/// A device. Its name is its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wireguard {
    /// The UDP port at which it receives.
    pub port: u16,
    /// MTU inside, in bytes; `None` leaves it to the kernel.
    pub mtu: Option<u32>,
    pub up: bool,
    /// It has the private key that it shall have, and no mark on what it sends. Always true of what is wanted.
    pub has_key: bool,
}

/// Another node on a device.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerKey {
    pub link: LinkName,
    pub key: PublicKey,
}

/// Everything else about another node on a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Where packets to it are sent; `None` of one that is only heard.
    pub endpoint: Option<SocketAddr>,
    /// Destinations of packets to it, and sources of packets from it; sorted, without host bits. Shared by copies.
    pub allowed: Arc<[IpNet]>,
    /// It has no preshared key, and no packets keep the path open. Always true of what is wanted.
    pub is_plain: bool,
}

impl fmt::Display for PeerKey {
    /// The key and the device: `KEY dev sluice-wg0`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", self.key, self.link)
    }
}
