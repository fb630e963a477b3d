//! Sockets that receive: one for each local address and kind of path, each with a filter of those who are expected there.
//!
//! The queue of a socket is all its neighbours' together. So the kernel drops what others send before it takes a place there: a pod that sends
//! as fast as it can costs no neighbour a packet.

use std::net::{IpAddr, UdpSocket};
use std::time::Instant;

use super::RETRY;
use crate::bfd::Path;
use crate::bfd::sessions::Neighbours;
use crate::kernel::Error;
use crate::kernel::udp::{self, Expected};
use crate::net::link_local::to_socket;

/// A socket that receives, or that is still to be had.
#[derive(Debug)]
pub(super) struct Receiver {
    socket: Option<UdpSocket>,
    /// Those whom its filter lets through; `None` while it has none.
    heard: Option<Neighbours>,
    /// Next try, while socket or filter are missing.
    retry_at: Instant,
    /// It is known to be in trouble.
    is_told: bool,
    /// Number of dropped datagrams as the kernel has last told.
    dropped: u32,
}

impl Receiver {
    /// Builds one whose socket is to be opened.
    pub(super) fn new(now: Instant) -> Receiver {
        Receiver { socket: None, heard: None, retry_at: now, is_told: false, dropped: 0 }
    }

    /// Its socket, once there is one.
    pub(super) fn socket(&self) -> Option<&UdpSocket> {
        self.socket.as_ref()
    }

    /// Time of the next try for what is missing, or to tell that nothing is; `None` where neither is to be done.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        (self.is_lacking() || self.is_told).then_some(self.retry_at)
    }

    fn is_lacking(&self) -> bool {
        self.socket.is_none() || self.heard.is_none()
    }

    /// Returns whether others know it to be in trouble.
    pub(super) fn is_told(&self) -> bool {
        self.is_told
    }

    /// Tells others how a try went, where that is another thing than they know. What they do not take is told again with the next try.
    pub(super) fn tell(&mut self, done: Result<(), Error>, deliver: impl FnOnce(Option<Error>) -> bool) {
        let is_trouble = done.is_err();
        if is_trouble != self.is_told && deliver(done.err()) {
            self.is_told = is_trouble;
        }
    }

    /// Opens the socket where there is none, and has it hear these neighbours; `None` while another try is not due, and where nothing is to be done or told.
    ///
    /// # Errors
    /// The kernel refuses either, which is tried again then.
    pub(super) fn hear(
        &mut self,
        now: Instant,
        on: IpAddr,
        path: Path,
        neighbours: Neighbours,
    ) -> Option<Result<(), Error>> {
        let is_early = self.retry_at > now;
        if self.heard.as_ref() == Some(&neighbours) {
            if is_early || !self.is_told {
                return None;
            }
            self.retry_at = now + RETRY;
            return Some(Ok(()));
        }
        if is_early && self.is_lacking() {
            return None;
        }
        let done = self.try_to_hear(on, path, neighbours);
        if done.is_err() || self.is_told {
            self.retry_at = now + RETRY;
        }
        Some(done)
    }

    fn try_to_hear(&mut self, on: IpAddr, path: Path, neighbours: Neighbours) -> Result<(), Error> {
        let socket = match &self.socket {
            Some(socket) => socket,
            None => self.socket.insert(udp::receiving(to_socket(on, path.port()), path == Path::SingleHop)?),
        };
        self.heard = None;
        // A datagram does not say by which link the address of its source is meant.
        let sources = neighbours.remotes.iter().map(|remote| to_socket(*remote, 0).ip()).collect();
        let links = (path == Path::SingleHop).then(|| neighbours.links.clone());
        if neighbours.least_ttl.is_some() {
            udp::tell_ttl(socket)?;
        }
        udp::expect(socket, &Expected { sources, links, least_ttl: neighbours.least_ttl.unwrap_or_default() })?;
        self.heard = Some(neighbours);
        Ok(())
    }

    /// Returns how many datagrams the kernel has dropped since the last question.
    pub(super) fn newly_dropped(&mut self) -> u32 {
        let Some(Ok(dropped)) = self.socket.as_ref().map(udp::dropped) else { return 0 };
        dropped.wrapping_sub(std::mem::replace(&mut self.dropped, dropped))
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn the_end_of_a_trouble_is_told_until_it_is_taken() {
        let now = Instant::now();
        let on: IpAddr = "127.0.0.1".parse().expect("an address");
        let mut receiver = Receiver::new(now);
        receiver.tell(Err(Error::errno("bind", "a port", Errno::ADDRINUSE)), |trouble| trouble.is_some());
        assert!(receiver.is_told());
        // It has all that it needs; nobody takes the report.
        let neighbours = Neighbours::default();
        receiver.socket = Some(UdpSocket::bind((on, 0)).expect("a port"));
        receiver.heard = Some(neighbours.clone());
        let hear = |receiver: &mut Receiver, at| receiver.hear(at, on, Path::Multihop, neighbours.clone());
        let done = hear(&mut receiver, now).expect("the end is told");
        receiver.tell(done, |_| false);
        assert!(receiver.is_told() && hear(&mut receiver, now).is_none(), "not at once again");
        assert_eq!(receiver.retry_at(), Some(now + RETRY));
        let done = hear(&mut receiver, now + RETRY).expect("it is told again");
        receiver.tell(done, |trouble| trouble.is_none());
        assert!(!receiver.is_told() && hear(&mut receiver, now + RETRY * 2).is_none());
        assert_eq!(receiver.retry_at(), None);
    }
}
