//! Devices of the type `wireguard`, and the other nodes that they encrypt to.
//!
//! Kernel: the device by rtnetlink; its key, port and peers by the generic netlink family `wireguard` (include/uapi/linux/wireguard.h). The
//! kernel does all cryptography: we give it a private key, and read the public one that follows from it.
//!
//! ```text
//! ip link add sluice-wg0 type wireguard
//! wg set sluice-wg0 listen-port 51820 private-key FILE
//! wg set sluice-wg0 peer KEY endpoint 192.0.2.2:51820 allowed-ips 10.244.2.0/24,192.0.2.2/32
//! ip address add 127.0.0.8/32 dev sluice-wg0 scope host
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
//! - A peer whose allowed IPs are replaced has none for a moment, in which its packets are refused: so where nothing goes they are only added to.
//! - A device that gets another private key gives up all its sessions.
//! - The kernel says nothing of what others change here: an audit finds it.

mod device;
mod endpoints;
mod peers;
mod wire;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

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
    /// It has the address without which sources are filtered strictly ([`address::STAND_IN`](super::address::STAND_IN)). Always true of what is wanted.
    pub is_numbered: bool,
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
    /// Where packets to it are sent; `None` leaves that to the kernel: to where its last packet came from, or nowhere before there was one.
    pub endpoint: Option<SocketAddr>,
    /// Destinations of packets to it, and sources of packets from it; sorted, without host bits. Shared by copies.
    pub allowed: Arc<[IpNet]>,
    /// Packets keep the session with it alive at these intervals, in seconds; 0 for none.
    pub keepalive: u16,
    /// It has no preshared key. Always true of what is wanted.
    pub is_plain: bool,
}

/// How long ago the keys between a device and another node were last agreed upon; no time passes where nobody sends.
///
/// The kernel (include/net, drivers/net/wireguard/messages.h) agrees anew after 120 s in which packets were sent (`REKEY_AFTER_TIME`), 165 s at the latest
/// in which they only came, and uses nothing that is older than 180 s (`REJECT_AFTER_TIME`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Session {
    /// Both ends can send and receive.
    Live,
    /// It may be, or the clock was set meanwhile.
    Uncertain,
    /// No packet can be on its way in it, and none was sent for a while.
    Over,
}

/// Traffic to another node on a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Contact {
    pub session: Session,
    /// When the last handshake was, since 1970; zero for never.
    pub handshake: Duration,
    /// Bytes that were sent to it since the peer was made, handshakes among them.
    pub sent: u64,
}

impl Session {
    /// Returns the state of a session that began, and was looked at, at these times since 1970; it never began at 0.
    pub fn at(last_handshake: Duration, now: Duration) -> Session {
        const USED: Duration = Duration::from_secs(180);
        // A handshake that is late is tried every five seconds (`REKEY_TIMEOUT`).
        const OVER: Duration = Duration::from_secs(200);
        match now.checked_sub(last_handshake) {
            _ if last_handshake.is_zero() => Session::Over,
            Some(age) if age < USED => Session::Live,
            Some(age) if age >= OVER => Session::Over,
            Some(_) | None => Session::Uncertain,
        }
    }
}

impl fmt::Display for PeerKey {
    /// The key and the device: `KEY dev sluice-wg0`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", self.key, self.link)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_over_when_no_packet_can_be_sent_in_it_and_nothing_is_known_of_the_future() {
        let now = Duration::from_secs(100_000);
        for (ago, expected) in
            [(0, Session::Live), (179, Session::Live), (180, Session::Uncertain), (200, Session::Over)]
        {
            assert_eq!(Session::at(now - Duration::from_secs(ago), now), expected, "{ago}");
        }
        assert_eq!(Session::at(now + Duration::from_secs(1), now), Session::Uncertain, "the clock was set back");
        assert_eq!(Session::at(Duration::ZERO, now), Session::Over, "there was none");
    }
}
