//! Connections: dialling, reading, writing and closing them.
//!
//! Each connection has a number that is never reused. Socket readiness is a set of futures, each of which completes
//! when one socket becomes readable or writable; dropping its [`Wait`] cancels it.
//!
//! A session at rest sends and receives KEEPALIVEs alone. Those received need no answer, so that a connection at rest is
//! not reported as readable before more than a KEEPALIVE has arrived, and is read whenever we send one ourselves, which
//! is several times within the hold time. Any other message is longer, and wakes us as ever.
//!
//! A closed connection has a few seconds to flush its output and for the peer to read it: closing a socket that has
//! unread input makes the peer discard what it has not read yet, which is often a NOTIFICATION.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{AbortHandle, Abortable, Aborted};
use futures_util::stream::FuturesUnordered;
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::net::{TcpSocket, TcpStream};

use super::super::message::SHORTEST;
use super::super::session::LinkId;
use super::super::transport::{TimeToLive, Transport};
use super::outbox::Outbox;
use crate::kernel::tcp::{self, Hops};
use crate::kernel::{Cause, Error};
use crate::net::link_local::to_socket;

/// Completion of a pending socket operation.
pub(super) enum Happened {
    Readable(LinkId),
    Writable(LinkId),
    Dialled(IpAddr, Result<TcpStream, Error>),
    Accepted(SocketAddr, io::Result<(TcpStream, SocketAddr)>),
}

/// Pending socket operations.
pub(super) type Waits = FuturesUnordered<Pin<Box<dyn Future<Output = Result<Happened, Aborted>>>>>;

/// Handle of a pending operation; dropping it cancels the operation.
#[derive(Debug)]
pub(super) struct Wait(AbortHandle);

/// Result of reading from a connection.
pub(super) enum Reading {
    /// Number of bytes read into the beginning of the buffer.
    Bytes(usize),
    /// End of the stream.
    End,
    /// No data, or data that is discarded.
    Nothing,
}

/// All connections.
#[derive(Debug, Default)]
pub(super) struct Links {
    links: BTreeMap<LinkId, Link>,
    dials: BTreeMap<IpAddr, Wait>,
    last: u64,
    /// Connections with unsent output that may be writable.
    unsent: BTreeSet<LinkId>,
    /// Connections being closed, by deadline.
    closing: BTreeSet<(Instant, LinkId)>,
}

#[derive(Debug)]
struct Link {
    address: IpAddr,
    stream: Arc<TcpStream>,
    outbox: Outbox,
    /// Pending readability; always present.
    reading: Wait,
    /// Pending writability, after a write would have blocked.
    writing: Option<Wait>,
    /// Latest end of a connection that is being closed.
    closing: Option<Instant>,
    /// A KEEPALIVE alone does not make it readable.
    resting: bool,
}

/// Time limit for closing a connection.
const FAREWELL: Duration = Duration::from_secs(3);
/// Time limit for a dial: slightly less than the session machine waits, so that the reason of a failure is known.
const DIAL: Duration = Duration::from_secs(9);
/// Number of bytes written to a connection before the next one's turn.
const PORTION: usize = 256 << 10;

impl Wait {
    /// Adds a future to the pending operations.
    pub fn new(waits: &Waits, until: impl Future<Output = Happened> + 'static) -> Wait {
        let (handle, registration) = AbortHandle::new_pair();
        waits.push(Box::pin(Abortable::new(until, registration)));
        Wait(handle)
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Links {
    /// Dials a neighbour; the result arrives as [`Happened::Dialled`].
    pub fn dial(&mut self, waits: &Waits, address: IpAddr, transport: &Transport) {
        let to = to_socket(address, transport.port);
        let key = transport.password.as_ref().map(|password| password.key());
        let socket = tcp::dialling(address, transport.local, hops(transport.time_to_live), key);
        let wait = Wait::new(waits, async move {
            let connected = match socket {
                Ok(socket) => tokio::time::timeout(DIAL, TcpSocket::from_std_stream(socket).connect(to)).await,
                Err(error) => return Happened::Dialled(address, Err(error)),
            };
            let cause = match connected {
                Ok(Ok(stream)) => return Happened::Dialled(address, Ok(stream)),
                Ok(Err(error)) => Cause::Errno(Errno::from_io_error(&error).unwrap_or(Errno::IO), None),
                Err(_) => Cause::Timeout,
            };
            Happened::Dialled(address, Err(Error::new("connect to", to.to_string(), cause)))
        });
        self.dials.insert(address, wait);
    }

    /// Forgets a dial that has completed or is abandoned.
    pub fn end_dial(&mut self, address: IpAddr) {
        self.dials.remove(&address);
    }

    /// Adds a connection and returns its number.
    pub fn add(&mut self, waits: &Waits, address: IpAddr, stream: TcpStream) -> LinkId {
        self.last += 1;
        let link = LinkId(self.last);
        let stream = Arc::new(stream);
        let reading = until_readable(waits, link, stream.clone());
        self.links.insert(
            link,
            Link { address, stream, outbox: Outbox::default(), reading, writing: None, closing: None, resting: false },
        );
        link
    }

    /// Sets the key of all connections with a neighbour: those that stand go on with it, as soon as both ends have it. Those that are
    /// closing keep theirs, so that the last message is heard. Returns those that do not take it, and why.
    pub fn set_key(&self, address: IpAddr, key: Option<&[u8]>) -> Vec<(LinkId, Error)> {
        let standing = self.links.iter().filter(|(_, link)| link.address == address && link.closing.is_none());
        let refusal = |(link, one): (&LinkId, &Link)| {
            tcp::set_key(&*one.stream, address.into(), key).err().map(|error| (*link, error))
        };
        standing.filter_map(refusal).collect()
    }

    /// Has the kernel watch the connections with a neighbour, where the session itself does not: it has no KEEPALIVEs.
    pub fn watch(&self, address: IpAddr) {
        for link in self.links.values().filter(|link| link.address == address) {
            // Sockets of TCP take it; without it such a session is as it was agreed.
            let _ = tcp::watch(&*link.stream);
        }
    }

    /// Number of connections with a neighbour, including those that are closing.
    pub fn count(&self, address: IpAddr) -> usize {
        self.links.values().filter(|link| link.address == address).count()
    }

    pub fn send(&mut self, link: LinkId, bytes: Arc<[u8]>) {
        if let Some(one) = self.links.get_mut(&link)
            && one.closing.is_none()
        {
            one.outbox.push(bytes);
            self.unsent.insert(link);
        }
    }

    /// Closes a connection after its output has been sent.
    pub fn close(&mut self, link: LinkId, now: Instant) {
        let Some(one) = self.links.get_mut(&link) else { return };
        if one.closing.is_none() {
            one.closing = Some(now + FAREWELL);
            self.closing.insert((now + FAREWELL, link));
            self.unsent.insert(link);
        }
    }

    /// Current end of the output of each connection with unsent bytes.
    pub fn ends(&self) -> Vec<(LinkId, u64)> {
        let unsent = self.links.iter().filter(|(_, one)| !one.outbox.is_empty());
        unsent.map(|(link, one)| (*link, one.outbox.end())).collect()
    }

    /// Returns whether a connection has sent everything up to an earlier end, or is gone.
    pub fn is_past(&self, link: LinkId, end: u64) -> bool {
        self.links.get(&link).is_none_or(|one| one.outbox.is_past(end))
    }

    /// Returns whether connections with output wait for their turn.
    pub fn is_busy(&self) -> bool {
        !self.unsent.is_empty()
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.closing.first().map(|(at, _)| *at)
    }

    /// Drops connections whose time for closing is over.
    pub fn expire(&mut self, now: Instant) {
        while let Some((at, link)) = self.closing.first().copied()
            && at <= now
        {
            self.drop_link(link);
        }
    }

    /// Reads once from a connection and waits for more.
    pub fn read(&mut self, waits: &Waits, link: LinkId, buffer: &mut [u8]) -> Reading {
        let Some(one) = self.links.get_mut(&link) else { return Reading::Nothing };
        let closing = one.closing.is_some();
        match one.stream.try_read(buffer) {
            Ok(0) => self.drop_link(link),
            Err(error) if !is_temporary(&error) => self.drop_link(link),
            read => {
                if read.as_ref().is_ok_and(|bytes| *bytes < buffer.len()) {
                    // A short read means that the socket is empty; reporting it as not ready saves a second, futile
                    // read.
                    let nothing = || Err::<(), _>(io::Error::from(ErrorKind::WouldBlock));
                    let _ = one.stream.try_io(Interest::READABLE, nothing);
                }
                one.reading = until_readable(waits, link, one.stream.clone());
                return match read {
                    Ok(bytes) if !closing => Reading::Bytes(bytes),
                    Ok(_) | Err(_) => Reading::Nothing,
                };
            }
        }
        if closing { Reading::Nothing } else { Reading::End }
    }

    /// Returns whether a KEEPALIVE alone does not make a connection readable.
    pub fn is_resting(&self, link: LinkId) -> bool {
        self.links.get(&link).is_some_and(|one| one.resting)
    }

    /// From now on, a connection becomes readable when more than a KEEPALIVE has arrived, or with anything.
    pub fn set_resting(&mut self, link: LinkId, resting: bool) {
        let least = if resting { SHORTEST as u32 + 1 } else { 1 };
        if let Some(one) = self.links.get_mut(&link)
            && one.resting != resting
            && tcp::wake_at(&*one.stream, least).is_ok()
        {
            one.resting = resting;
        }
    }

    /// Reads what a resting connection has received without becoming readable; returns the number of bytes. `None` when there is nothing.
    pub fn read_resting(&mut self, link: LinkId, buffer: &mut [u8]) -> Option<usize> {
        let one = self.links.get(&link).filter(|one| one.resting && one.closing.is_none())?;
        // The runtime would not read: it has not been told of anything readable.
        let (bytes, _) = rustix::net::recv(&*one.stream, buffer, rustix::net::RecvFlags::DONTWAIT).ok()?;
        (bytes > 0).then_some(bytes)
    }

    /// Returns the time since a connection has received anything, read or not.
    pub fn since_received(&self, link: LinkId) -> Option<Duration> {
        tcp::since_received(&*self.links.get(&link)?.stream).ok()
    }

    /// Marks a connection as writable again.
    pub fn writable(&mut self, link: LinkId) {
        if let Some(one) = self.links.get_mut(&link) {
            one.writing = None;
            self.unsent.insert(link);
        }
    }

    /// Writes pending output as far as the sockets accept it; returns the number of bytes that each has accepted.
    pub fn write(&mut self, waits: &Waits) -> Vec<(LinkId, usize)> {
        let mut taken = Vec::new();
        for link in std::mem::take(&mut self.unsent) {
            let Some(one) = self.links.get_mut(&link).filter(|one| one.writing.is_none()) else { continue };
            let bytes = one.write();
            if bytes > 0 && one.closing.is_none() {
                taken.push((link, bytes));
            }
            if !one.outbox.is_empty() {
                one.writing = Some(until_writable(waits, link, one.stream.clone()));
            } else if one.closing.is_some() {
                // The peer reads to the end and closes, too; until then its input is discarded.
                let _ = rustix::net::shutdown(&*one.stream, rustix::net::Shutdown::Write);
            }
        }
        taken
    }

    fn drop_link(&mut self, link: LinkId) {
        self.unsent.remove(&link);
        if let Some(Link { closing: Some(at), .. }) = self.links.remove(&link) {
            self.closing.remove(&(at, link));
        }
    }
}

impl Drop for Links {
    /// Ends all connections at once, also those that a program which is being started at this moment holds as well until it has become another one.
    fn drop(&mut self) {
        for one in self.links.values() {
            // One that the neighbour has ended needs no end.
            let _ = rustix::net::shutdown(&*one.stream, rustix::net::Shutdown::Both);
        }
    }
}

impl Link {
    /// Writes one portion; returns the number of bytes that the socket has accepted.
    fn write(&mut self) -> usize {
        let mut taken = 0;
        while !self.outbox.is_empty() && taken < PORTION {
            match self.stream.try_write_vectored(&self.outbox.slices()) {
                Ok(bytes) => {
                    self.outbox.advance(bytes);
                    taken += bytes;
                }
                Err(error) if is_temporary(&error) => break,
                // The peer is gone. Its earlier input is still to be read; the end of the stream shows there.
                Err(_) => self.outbox.clear(),
            }
        }
        taken
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn until_readable(waits: &Waits, link: LinkId, stream: Arc<TcpStream>) -> Wait {
    Wait::new(waits, async move {
        // Errors surface in the following read.
        let _ = stream.readable().await;
        Happened::Readable(link)
    })
}

fn until_writable(waits: &Waits, link: LinkId, stream: Arc<TcpStream>) -> Wait {
    Wait::new(waits, async move {
        let _ = stream.writable().await;
        Happened::Writable(link)
    })
}

/// Converts to the kernel's options.
pub(super) fn hops(time_to_live: TimeToLive) -> Hops {
    Hops { sent: time_to_live.sent(), least: time_to_live.least() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_all_ends_a_connection_that_somebody_else_holds_as_well() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("an address");
        let stream = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("a connection");
        let (mut theirs, _) = listener.accept().await.expect("a connection");
        // As a child has it before it runs another program.
        let held = rustix::io::dup(&stream).expect("a descriptor");
        let (mut links, waits) = (Links::default(), Waits::new());
        links.add(&waits, IpAddr::from([127, 0, 0, 1]), stream);
        drop((links, waits));
        let mut buffer = [0; 8];
        let read = tokio::io::AsyncReadExt::read(&mut theirs, &mut buffer);
        let read = tokio::time::timeout(Duration::from_secs(5), read).await.expect("it has ended");
        assert_eq!(read.expect("no error"), 0);
        drop(held);
    }

    #[tokio::test]
    async fn a_connection_that_is_closing_keeps_its_key() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("an address");
        let stream = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("a connection");
        let (mut links, waits) = (Links::default(), Waits::new());
        // No connection takes the key of a neighbour of another family.
        let neighbour: IpAddr = "2001:db8::1".parse().expect("an address");
        let link = links.add(&waits, neighbour, stream);
        let refusing = |links: &Links| {
            links.set_key(neighbour, Some(b"key")).into_iter().map(|(link, _)| link).collect::<Vec<_>>()
        };
        assert_eq!(refusing(&links), [link]);
        links.close(link, Instant::now());
        assert_eq!(refusing(&links), []);
    }
}
