//! The socket for Router Solicitations and Router Advertisements (RFC 4861), and what a link looks like to who sends them.
//!
//! raw(7), ipv6(7), socket(7): ICMPv6 of one link (`SO_BINDTODEVICE`: what pods send on others takes no place in its buffer) with a filter of these two types
//! (`ICMP6_FILTER`, RFC 3542 3.2), `IPV6_RECVHOPLIMIT`, `IPV6_RECVPKTINFO`. The kernel calculates and checks the checksum (RFC 3542 3.1). What is sent has a hop limit of 255, and does not come back to this host. The kernel itself takes part in router discovery as `accept_ra` says,
//! beside this and without regard to it.
//!
//! Nothing of this outlives the process: sockets go with it, and so do the memberships in groups.
#![expect(unsafe_code, reason = "neither the standard library nor rustix knows the filter of ICMPv6")]

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with, sockopt};

use super::link::{self, LinkName};
use super::{Error, udp};

/// A raw socket for router discovery on one link.
#[derive(Debug)]
pub struct RouterDiscovery(OwnedFd);

/// A link, as far as router discovery is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkState {
    pub index: u32,
    pub up: bool,
    pub carrier: bool,
    /// The link-local address that packets get that leave over it; `None` while there is none that may be used.
    pub own: Option<Ipv6Addr>,
}

/// `ff02::2`.
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// `ICMP6_FILTER`.
const FILTER: libc::c_int = 1;
/// Hop limit of what no router may have passed on.
const HOPS: libc::c_int = 255;
/// The discard port, for a question that sends nothing.
const DISCARD: u16 = 9;

impl RouterDiscovery {
    /// Opens a socket for these types of ICMPv6 on the link of this name alone, without waiting.
    ///
    /// # Errors
    /// The right is missing (`CAP_NET_RAW`), the kernel lacks IPv6, or the link has gone.
    pub fn open(link: &str, kinds: &[u8]) -> Result<RouterDiscovery, Error> {
        let open = || -> rustix::io::Result<OwnedFd> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::INET6, SocketType::RAW, flags, Some(ipproto::ICMPV6))?;
            // Link and filter are there before anything is read.
            set(&socket, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, link.as_bytes())?;
            set(&socket, libc::IPPROTO_ICMPV6, FILTER, &filter(kinds))?;
            set(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, &1_i32.to_ne_bytes())?;
            set(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, &1_i32.to_ne_bytes())?;
            set(&socket, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS, &HOPS.to_ne_bytes())?;
            set(&socket, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP, &0_i32.to_ne_bytes())?;
            Ok(socket)
        };
        let opened = open().map(RouterDiscovery);
        opened.map_err(|errno| Error::errno("listen for", format!("router advertisements on {link}"), errno))
    }

    /// Hears solicitations on its link, which has this index: they go to all routers.
    ///
    /// # Errors
    /// The link has gone.
    pub fn join(&self, link: u32) -> Result<(), Error> {
        match sockopt::set_ipv6_add_membership(&self.0, &ALL_ROUTERS, link) {
            Ok(()) | Err(Errno::ADDRINUSE) => Ok(()),
            Err(errno) => Err(Error::errno("join the routers on", format!("link {link}"), errno)),
        }
    }

    /// Sends a packet over its link, which has this index; the kernel puts the checksum in.
    ///
    /// # Errors
    /// The link is down or has gone.
    pub fn send(&self, to: Ipv6Addr, link: u32, bytes: &[u8]) -> Result<(), Error> {
        let destination = SocketAddrV6::new(to, 0, 0, link);
        match sendto(&self.0, bytes, SendFlags::DONTWAIT, &destination) {
            Ok(_) => Ok(()),
            Err(errno) => Err(Error::errno("send to", format!("{to} on link {link}"), errno)),
        }
    }

    /// Reads packets that wait, without waiting for any; returns whether there may be more.
    pub fn read(&self, batch: &mut udp::Batch) -> bool {
        batch.read(&self.0)
    }
}

impl AsFd for RouterDiscovery {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A link of this host; `None` where there is none of this name.
///
/// # Errors
/// The kernel does not answer.
pub fn link_state(name: &str) -> Result<Option<LinkState>, Error> {
    let Some(device) = link::named(&LinkName(name.into()))? else { return Ok(None) };
    let own = own_address(device.index);
    Ok(Some(LinkState { index: device.index, up: device.up, carrier: device.carrier, own }))
}

/// The source address of a packet to all nodes on a link, as the kernel chooses it: one that is being looked for duplicates of is none yet. Nothing is sent.
fn own_address(link: u32) -> Option<Ipv6Addr> {
    let socket = UdpSocket::bind(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0)).ok()?;
    socket.connect(SocketAddrV6::new(ALL_NODES, DISCARD, 0, link)).ok()?;
    match socket.local_addr().ok()? {
        SocketAddr::V6(own) => Some(*own.ip()).filter(Ipv6Addr::is_unicast_link_local),
        SocketAddr::V4(_) => None,
    }
}

/// `struct icmp6_filter`: a bit for each type that does not pass.
fn filter(kinds: &[u8]) -> [u8; 32] {
    let mut words = [u32::MAX; 8];
    for kind in kinds {
        if let Some(word) = words.get_mut(usize::from(kind >> 5)) {
            *word &= !(1 << (kind & 31));
        }
    }
    let mut bytes = [0; 32];
    bytes.chunks_exact_mut(4).zip(words).for_each(|(to, word)| to.copy_from_slice(&word.to_ne_bytes()));
    bytes
}

fn set(socket: &OwnedFd, level: libc::c_int, name: libc::c_int, value: &[u8]) -> rustix::io::Result<()> {
    // SAFETY: the descriptor is open as long as it is borrowed, and the kernel reads no more than the length that is given, which is
    // that of the value.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), value.len() as libc::socklen_t)
    };
    if result == 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_lets_nothing_else_pass() {
        let filter = filter(&[133, 134]);
        let passes = |kind: u8| filter[usize::from(kind / 32) * 4..][..4] != u32::MAX.to_ne_bytes();
        assert!((0..=255).filter(|kind| passes(*kind)).eq(128..=159), "they are in one word");
        assert_eq!(filter[16..20], (!(0b11_u32 << 5)).to_ne_bytes());
    }
}
