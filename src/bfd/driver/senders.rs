//! Sockets that send: one for each session, with a source port of its own (RFC 5881 4), connected, so that the kernel looks for the
//! way once.

use std::collections::hash_map::Entry;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use crate::bfd::discriminators::ByDiscriminator;
use crate::bfd::packet::Packet;
use crate::kernel::Error;
use crate::kernel::udp;
use crate::net::link_local::to_socket;

/// Source ports (RFC 5881 4).
const FIRST_PORT: u16 = 49152;
const PORTS: u16 = u16::MAX - FIRST_PORT;
/// Number of ports that are tried, as some are in use.
const TRIES: u16 = 64;
/// So often a packet is sent where errors are told of earlier ones.
const TRIES_TO_SEND: usize = 3;
/// Number of packets in a row that could not be sent, from which on it is told: a neighbour that is away costs every other one.
const UNSENT: u32 = 5;

/// Sockets of all sessions, by our discriminators.
pub(super) struct Senders {
    sockets: ByDiscriminator<Sender>,
    ports: Ports,
}

/// Next source port.
struct Ports {
    /// Last one, counted from the first one that is allowed.
    last: u16,
}

struct Sender {
    socket: Option<UdpSocket>,
    local: IpAddr,
    to: SocketAddr,
    /// Number of packets in a row that could not be sent.
    unsent: u32,
    /// It is known to be in trouble.
    is_told: bool,
}

/// News of packets to an address.
pub(super) struct News<'a> {
    pub(super) to: SocketAddr,
    /// Why they cannot be sent; `None` when they can again.
    pub(super) error: Option<Error>,
    is_told: &'a mut bool,
}

impl News<'_> {
    /// Notes that it was told: it is told no more until it changes.
    pub(super) fn delivered(self) {
        *self.is_told = !*self.is_told;
    }
}

impl Senders {
    /// Builds none. `chance` says with which of the source ports it begins.
    pub(super) fn new(chance: u64) -> Senders {
        let last = (chance % u64::from(PORTS)) as u16;
        Senders { sockets: ByDiscriminator::default(), ports: Ports { last } }
    }

    /// Sends a packet of a session, or loses it where there is no way, which is told when it lasts. `ends`: our address, and where it is
    /// sent to, asked for with the first packet.
    pub(super) fn send(
        &mut self,
        id: u32,
        packet: &Packet,
        ends: impl FnOnce() -> Option<(IpAddr, SocketAddr)>,
    ) -> Option<News<'_>> {
        let sender = match self.sockets.entry(id) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(vacant) => {
                let (local, to) = ends()?;
                vacant.insert(Sender { socket: None, local, to, unsent: 0, is_told: false })
            }
        };
        let sent = sender.send(&mut self.ports, packet);
        sender.unsent = if sent.is_ok() { 0 } else { sender.unsent.saturating_add(1) };
        let error = match sent {
            Ok(()) if sender.is_told => None,
            Err(error) if sender.unsent >= UNSENT && !sender.is_told => Some(error),
            Ok(()) | Err(_) => return None,
        };
        Some(News { to: sender.to, error, is_told: &mut sender.is_told })
    }

    /// Closes the sockets of sessions whose packets go elsewhere now. Returns where packets were sent to, of those of which it was told that they could not be.
    pub(super) fn keep(&mut self, mut goes_to: impl FnMut(u32, SocketAddr) -> bool) -> Vec<SocketAddr> {
        let gone = self.sockets.extract_if(|id, sender| !goes_to(*id, sender.to));
        gone.filter(|(_, sender)| sender.is_told).map(|(_, sender)| sender.to).collect()
    }

    /// Closes the socket of a session. Returns where packets were sent to, if it was told that they could not be.
    pub(super) fn close(&mut self, id: u32) -> Option<SocketAddr> {
        self.sockets.remove(&id).filter(|sender| sender.is_told).map(|sender| sender.to)
    }
}

impl Sender {
    fn send(&mut self, ports: &mut Ports, packet: &Packet) -> Result<(), Error> {
        let socket = match &self.socket {
            Some(socket) => socket,
            // The next packet tries again where there is none.
            None => self.socket.insert(ports.open(self.local, self.to)?),
        };
        let bytes = packet.encode();
        let mut sent = send(socket, &bytes, SendFlags::empty());
        // What somebody said of an earlier packet by ICMP is told now, in place of sending: a neighbour that did not listen has refused it, and anybody who can send
        // as a host can claim that packets are prohibited, or too big.
        for _ in 1..TRIES_TO_SEND {
            if sent.is_ok() {
                break;
            }
            sent = send(socket, &bytes, SendFlags::empty());
        }
        match sent {
            Ok(_) | Err(Errno::CONNREFUSED) => Ok(()),
            Err(errno) => Err(Error::errno("send UDP to", self.to.to_string(), errno)),
        }
    }
}

impl Ports {
    fn open(&mut self, local: IpAddr, to: SocketAddr) -> Result<UdpSocket, Error> {
        let mut tries = 0;
        loop {
            tries += 1;
            self.last = (self.last + 1) % PORTS;
            match udp::sending(to_socket(local, FIRST_PORT + self.last), to) {
                Err(error) if error.is_port_taken() && tries < TRIES => {}
                opened => return opened,
            }
        }
    }
}
