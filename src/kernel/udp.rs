//! UDP sockets that tell how many routers a datagram has passed and over which link it has come, and read many datagrams at once.
//!
//! udp(7), ip(7), ipv6(7): `IP_RECVTTL` and `IPV6_RECVHOPLIMIT`, `IP_PKTINFO` and `IPV6_RECVPKTINFO`, `IP_FREEBIND`, recvmmsg(2); class of service CS6 as with `tcp`.
//!
//! Nothing of this outlives the process: sockets go with it. A socket that receives does not share its port (no `SO_REUSEADDR`): who
//! else has it is told.
#![expect(unsafe_code, reason = "neither the standard library nor rustix knows recvmmsg")]

mod expected;

use std::mem::{size_of, zeroed};
use std::net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, ipproto, socket_with, sockopt};

pub use self::expected::{Expected, MOST, expect};
use super::Error;
use crate::net::link_local::of_socket;

/// Class selector 6, *network control*.
const CLASS: u8 = 0xc0;
/// Datagrams that may wait while nobody reads: some hundred milliseconds of thousands of neighbours.
const WAITING: usize = 1 << 20;
/// Number of datagrams read at once.
const AT_ONCE: usize = 64;
/// Number of bytes read of a datagram; the rest is lost.
const LONGEST: usize = 64;
/// `SK_MEMINFO_DROPS`, the place of a number in what `SO_MEMINFO` tells.
const DROPS: usize = 8;
/// Space for the control messages of one datagram.
const CONTROL: usize = 16;

/// Datagram with its source, and its TTL (hop limit) and the index of the link over which it has come where the kernel has told them.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    pub from: IpAddr,
    pub ttl: Option<u8>,
    pub link: Option<u32>,
    pub bytes: &'a [u8],
}

/// Space for datagrams that are read at once, of UDP or of another protocol.
#[derive(Debug)]
pub struct Batch {
    slots: Box<[Slot]>,
    filled: usize,
}

/// Space for one datagram. The address is a `sockaddr` of either family.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
struct Slot {
    address: [u8; 32],
    control: [u64; CONTROL],
    bytes: [u8; LONGEST],
    length: usize,
    control_length: usize,
}

/// Opens a socket that receives on this address, without waiting. An address that is not there yet will do. `tells_way`: TTL and link of
/// each datagram are told, which costs the kernel time for each.
///
/// # Errors
/// The port is in use, or the kernel lacks the family.
pub fn receiving(on: SocketAddr, tells_way: bool) -> Result<UdpSocket, Error> {
    let opened = || -> rustix::io::Result<OwnedFd> {
        let socket = open(on.ip())?;
        match on {
            _ if !tells_way => {}
            SocketAddr::V4(_) => {
                set(&socket, libc::IPPROTO_IP, libc::IP_RECVTTL, 1)?;
                set(&socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
            }
            SocketAddr::V6(_) => {
                set(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 1)?;
                set(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
            }
        }
        // The kernel's own limit holds where we may not exceed it.
        if sockopt::set_socket_recv_buffer_size_force(&socket, WAITING).is_err() {
            sockopt::set_socket_recv_buffer_size(&socket, WAITING)?;
        }
        bind(&socket, &on)?;
        Ok(socket)
    };
    opened().map(UdpSocket::from).map_err(|errno| Error::errno("listen on UDP", on.to_string(), errno))
}

/// Has the TTL (hop limit) of each datagram told from now on.
///
/// # Errors
/// The kernel refuses.
pub fn tell_ttl(socket: &UdpSocket) -> Result<(), Error> {
    let asked = |errno| Error::errno("ask for the TTL of datagrams", "a UDP socket", errno);
    let on = socket.local_addr().map_err(|error| asked(Errno::from_io_error(&error).unwrap_or(Errno::INVAL)))?;
    let (level, name) = match on {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_RECVTTL),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT),
    };
    set(socket, level, name, 1).map_err(asked)
}

/// Opens a socket that sends from one address and port to another, with the highest TTL.
///
/// # Errors
/// The port is in use ([`Error::is_port_taken`]), or there is no way to the destination.
pub fn sending(from: SocketAddr, to: SocketAddr) -> Result<UdpSocket, Error> {
    let opened = || -> rustix::io::Result<OwnedFd> {
        let socket = open(to.ip())?;
        match to {
            SocketAddr::V4(_) => {
                sockopt::set_ip_ttl(&socket, u32::from(u8::MAX))?;
                sockopt::set_ip_tos(&socket, CLASS)?;
            }
            SocketAddr::V6(_) => {
                sockopt::set_ipv6_unicast_hops(&socket, Some(u8::MAX))?;
                sockopt::set_ipv6_tclass(&socket, u32::from(CLASS))?;
            }
        }
        bind(&socket, &from)?;
        connect(&socket, &to)?;
        Ok(socket)
    };
    opened().map(UdpSocket::from).map_err(|errno| Error::errno("send UDP to", to.to_string(), errno))
}

/// Returns how many datagrams the kernel has dropped that came to this socket, since it was opened: others than expected ([`expect`]), damaged ones, and those for which
/// there was no space. It counts modulo 2^32.
///
/// # Errors
/// The kernel does not tell (before Linux 4.12).
pub fn dropped(socket: &UdpSocket) -> Result<u32, Errno> {
    let mut numbers = [0_u32; DROPS + 1];
    let mut size = size_of_val(&numbers) as libc::socklen_t;
    // SAFETY: the descriptor is open as long as it is borrowed, and the kernel writes no more than the size that is given, which is that of the numbers.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            numbers.as_mut_ptr().cast(),
            &raw mut size,
        )
    };
    if result == 0 { Ok(numbers.last().copied().unwrap_or_default()) } else { Err(last_errno()) }
}

fn open(family_of: IpAddr) -> rustix::io::Result<OwnedFd> {
    let family = if family_of.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::DGRAM, flags, Some(ipproto::UDP))?;
    if family_of.is_ipv4() {
        sockopt::set_ip_freebind(&socket, true)?;
    } else {
        sockopt::set_ipv6_v6only(&socket, true)?;
        sockopt::set_ipv6_freebind(&socket, true)?;
    }
    Ok(socket)
}

fn set(socket: &impl AsRawFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> rustix::io::Result<()> {
    let value = value.to_ne_bytes();
    // SAFETY: the descriptor is open as long as it is borrowed, and the kernel reads no more than the length that is given, which is
    // that of the value.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), value.len() as libc::socklen_t)
    };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

impl Default for Batch {
    fn default() -> Batch {
        let slot = Slot { address: [0; 32], control: [0; CONTROL], bytes: [0; LONGEST], length: 0, control_length: 0 };
        Batch { slots: vec![slot; AT_ONCE].into(), filled: 0 }
    }
}

impl Batch {
    /// Reads datagrams that wait, without waiting for any; returns whether there may be more.
    pub fn read(&mut self, from: impl AsFd) -> bool {
        self.filled = 0;
        // SAFETY: both are plain C structures, for which zeros are valid: null pointers and lengths of 0.
        let mut headers: [libc::mmsghdr; AT_ONCE] = unsafe { zeroed() };
        // SAFETY: as above.
        let mut spaces: [libc::iovec; AT_ONCE] = unsafe { zeroed() };
        for ((slot, header), space) in self.slots.iter_mut().zip(&mut headers).zip(&mut spaces) {
            space.iov_base = slot.bytes.as_mut_ptr().cast();
            space.iov_len = LONGEST;
            let header = &mut header.msg_hdr;
            header.msg_name = slot.address.as_mut_ptr().cast();
            header.msg_namelen = slot.address.len() as libc::socklen_t;
            header.msg_iov = space;
            header.msg_iovlen = 1;
            header.msg_control = slot.control.as_mut_ptr().cast();
            header.msg_controllen = size_of::<[u64; CONTROL]>();
        }
        // SAFETY: all pointers are to parts of `spaces` and `self.slots`, which live longer than the call and have the lengths that are
        // given with them.
        let read = unsafe {
            libc::recvmmsg(
                from.as_fd().as_raw_fd(),
                headers.as_mut_ptr(),
                AT_ONCE as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        // An error concerns this call alone; a socket without datagrams is one, too.
        let read = usize::try_from(read).unwrap_or(0);
        for (slot, header) in self.slots.iter_mut().zip(&headers).take(read) {
            slot.length = (header.msg_len as usize).min(LONGEST);
            slot.control_length = header.msg_hdr.msg_controllen.min(size_of::<[u64; CONTROL]>());
        }
        self.filled = read;
        read == AT_ONCE
    }

    /// Number of datagrams that the last [`Batch::read`] has read.
    pub fn count(&self) -> usize {
        self.filled
    }

    /// Datagrams of the last [`Batch::read`].
    pub fn datagrams(&self) -> impl Iterator<Item = Datagram<'_>> {
        self.slots.iter().take(self.filled).filter_map(Slot::datagram)
    }
}

impl Slot {
    fn datagram(&self) -> Option<Datagram<'_>> {
        let [f0, f1, _, _, rest @ ..] = self.address;
        let family = libc::c_int::from(u16::from_ne_bytes([f0, f1]));
        let from = match family {
            libc::AF_INET => {
                let octets: [u8; 4] = *rest.first_chunk()?;
                IpAddr::from(octets)
            }
            libc::AF_INET6 => {
                // Behind the flow label.
                let octets: [u8; 16] = *rest.get(4..)?.first_chunk()?;
                let scope: [u8; 4] = *rest.get(20..)?.first_chunk()?;
                of_socket(SocketAddrV6::new(octets.into(), 0, 0, u32::from_ne_bytes(scope)).into())
            }
            _ => return None,
        };
        let (ttl, link) = self.control();
        Some(Datagram { from, ttl, link, bytes: self.bytes.get(..self.length)? })
    }

    /// Reads TTL and link from the control messages (cmsg(3)): each has a length that counts the header, level, type, and its data, and is
    /// aligned to 8 bytes.
    fn control(&self) -> (Option<u8>, Option<u32>) {
        if self.control_length == 0 {
            return (None, None);
        }
        let mut bytes = [0; size_of::<[u64; CONTROL]>()];
        bytes.chunks_exact_mut(8).zip(&self.control).for_each(|(to, word)| to.copy_from_slice(&word.to_ne_bytes()));
        let (mut ttl, mut link) = (None, None);
        let mut rest = bytes.get(..self.control_length).unwrap_or_default();
        while let Some(first) = rest.first_chunk() {
            let length = usize::from_ne_bytes(*first);
            let number = |at: usize| Some(libc::c_int::from_ne_bytes(*rest.get(at..length)?.first_chunk()?));
            match (number(8), number(12)) {
                (Some(libc::IPPROTO_IP), Some(libc::IP_TTL))
                | (Some(libc::IPPROTO_IPV6), Some(libc::IPV6_HOPLIMIT)) => {
                    ttl = number(16).and_then(|ttl| u8::try_from(ttl).ok());
                }
                // `struct in_pktinfo` begins with the link, and in `struct in6_pktinfo` it is behind the address.
                (Some(libc::IPPROTO_IP), Some(libc::IP_PKTINFO)) => link = number(16),
                (Some(libc::IPPROTO_IPV6), Some(libc::IPV6_PKTINFO)) => link = number(32),
                (Some(_), Some(_)) => {}
                (None, _) | (_, None) => break,
            }
            rest = rest.get(length.next_multiple_of(8)..).unwrap_or_default();
        }
        (ttl, link.and_then(|link| u32::try_from(link).ok()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(local: &str) {
        let receiver = receiving(SocketAddr::new(local.parse().unwrap(), 0), true).unwrap();
        let to = receiver.local_addr().unwrap();
        let sender = sending(SocketAddr::new(to.ip(), 0), to).unwrap();
        let mut batch = Batch::default();
        assert!(!batch.read(&receiver));
        assert_eq!(batch.datagrams().count(), 0);
        sender.send(b"first").unwrap();
        sender.send(&[7; 100]).unwrap();
        let common = UdpSocket::bind(SocketAddr::new(to.ip(), 0)).unwrap();
        common.send_to(b"", to).unwrap();
        assert!(!batch.read(&receiver));
        let loopback = std::fs::read_to_string("/sys/class/net/lo/ifindex").unwrap().trim().parse().ok();
        assert!(batch.datagrams().all(|one| one.link == loopback), "it came over no link that carries packets");
        let read: Vec<_> = batch.datagrams().map(|one| (one.from, one.ttl, one.bytes.to_vec())).collect();
        let usual = read[2].1.expect("it is told");
        assert!(usual < 255, "{usual}");
        let ip = to.ip();
        assert_eq!(read, [(ip, Some(255), b"first".to_vec()), (ip, Some(255), vec![7; 64]), (ip, Some(usual), vec![])]);
        (0..AT_ONCE + 3).for_each(|_| assert_eq!(sender.send(b"x").unwrap(), 1));
        assert!(batch.read(&receiver));
        assert!(!batch.read(&receiver));
        assert_eq!(batch.datagrams().count(), 3);
    }

    #[test]
    fn datagrams_are_read_at_once_with_source_and_ttl() {
        check("127.0.0.1");
        check("::1");
    }

    #[test]
    fn a_port_that_somebody_has_is_refused() {
        let first = receiving("127.0.0.1:0".parse().unwrap(), true).unwrap();
        assert!(receiving(first.local_addr().unwrap(), true).is_err_and(|error| error.is_port_taken()));
    }
}
