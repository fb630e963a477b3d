//! Connections: dialling them, what is read from and written to them, and how they end.
//!
//! Each connection has a number that is never used again. What waits for sockets is a set of futures, each of which comes to its
//! end when one socket can be read or written; dropping its [`Wait`] makes it go.
//!
//! A connection that is closed has a few seconds for what was to be sent, and for the other side to read it: a socket that is closed
//! while there is something to be read tells the other side to throw away what it has not read, which is often a NOTIFICATION.

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

use super::super::session::LinkId;
use super::super::transport::{TimeToLive, Transport};
use super::outbox::Outbox;
use crate::kernel::tcp::{self, Hops};
use crate::kernel::{Cause, Error};

/// Something that was waited for.
pub(super) enum Happened {
    Readable(LinkId),
    Writable(LinkId),
    Dialled(IpAddr, Result<TcpStream, Error>),
    Accepted(SocketAddr, io::Result<(TcpStream, SocketAddr)>),
}

/// Everything that is waited for.
pub(super) type Waits = FuturesUnordered<Pin<Box<dyn Future<Output = Result<Happened, Aborted>>>>>;

/// Something is waited for as long as this is kept.
#[derive(Debug)]
pub(super) struct Wait(AbortHandle);

/// What a connection has brought.
pub(super) enum Reading {
    /// So many bytes, which are at the beginning of the buffer.
    Bytes(usize),
    /// It has ended.
    End,
    /// Nothing, or nothing that anybody wants.
    Nothing,
}

/// All connections.
#[derive(Debug, Default)]
pub(super) struct Links {
    links: BTreeMap<LinkId, Link>,
    dials: BTreeMap<IpAddr, Wait>,
    last: u64,
    /// Those that have something to send and may be able to.
    unsent: BTreeSet<LinkId>,
    /// Those that are being closed, and until when.
    closing: BTreeSet<(Instant, LinkId)>,
}

#[derive(Debug)]
struct Link {
    address: IpAddr,
    stream: Arc<TcpStream>,
    outbox: Outbox,
    /// It is waited for until it can be read, always.
    reading: Wait,
    /// It is waited for until it can be written, when it could not.
    writing: Option<Wait>,
    /// It is being closed, and until then at the longest.
    closing: Option<Instant>,
}

/// How long a connection may take to end.
const FAREWELL: Duration = Duration::from_secs(3);
/// How long a dial may take: a little less than the session machine waits for it, so that the reason is known.
const DIAL: Duration = Duration::from_secs(9);
/// How much is written to a connection before it is another one's turn.
const PORTION: usize = 256 << 10;

impl Wait {
    /// Waits for something, among everything else.
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
    /// Dials a neighbour; the answer comes as [`Happened::Dialled`].
    pub fn dial(&mut self, waits: &Waits, address: IpAddr, transport: &Transport) {
        let to = SocketAddr::new(address, transport.port);
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

    /// A dial is over, or is not wanted any more.
    pub fn end_dial(&mut self, address: IpAddr) {
        self.dials.remove(&address);
    }

    /// Takes a connection, and gives it its number.
    pub fn add(&mut self, waits: &Waits, address: IpAddr, stream: TcpStream) -> LinkId {
        self.last += 1;
        let link = LinkId(self.last);
        let stream = Arc::new(stream);
        let reading = until_readable(waits, link, stream.clone());
        self.links
            .insert(link, Link { address, stream, outbox: Outbox::default(), reading, writing: None, closing: None });
        link
    }

    /// How many connections with a neighbour there are, those counted that are ending.
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

    /// Closes, after everything has been sent.
    pub fn close(&mut self, link: LinkId, now: Instant) {
        let Some(one) = self.links.get_mut(&link) else { return };
        if one.closing.is_none() {
            one.closing = Some(now + FAREWELL);
            self.closing.insert((now + FAREWELL, link));
            self.unsent.insert(link);
        }
    }

    /// Where the end of each connection's bytes is now, of those that have not sent all.
    pub fn ends(&self) -> Vec<(LinkId, u64)> {
        let unsent = self.links.iter().filter(|(_, one)| !one.outbox.is_empty());
        unsent.map(|(link, one)| (*link, one.outbox.end())).collect()
    }

    /// Whether a connection has sent everything up to an earlier end, or is gone.
    pub fn is_past(&self, link: LinkId, end: u64) -> bool {
        self.links.get(&link).is_none_or(|one| one.outbox.is_past(end))
    }

    /// Something is to be sent by those whose turn has not come.
    pub fn is_busy(&self) -> bool {
        !self.unsent.is_empty()
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.closing.first().map(|(at, _)| *at)
    }

    /// Ends connections that take too long to do so themselves.
    pub fn expire(&mut self, now: Instant) {
        while let Some((at, link)) = self.closing.first().copied()
            && at <= now
        {
            self.drop_link(link);
        }
    }

    /// Reads what has come, once; and waits for more.
    pub fn read(&mut self, waits: &Waits, link: LinkId, buffer: &mut [u8]) -> Reading {
        let Some(one) = self.links.get_mut(&link) else { return Reading::Nothing };
        let closing = one.closing.is_some();
        match one.stream.try_read(buffer) {
            Ok(0) => self.drop_link(link),
            Err(error) if !is_temporary(&error) => self.drop_link(link),
            read => {
                if read.as_ref().is_ok_and(|bytes| *bytes < buffer.len()) {
                    // There was no more. To say so spares a second look, which would find nothing.
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

    /// A connection can be written again.
    pub fn writable(&mut self, link: LinkId) {
        if let Some(one) = self.links.get_mut(&link) {
            one.writing = None;
            self.unsent.insert(link);
        }
    }

    /// Sends what there is, as far as the sockets take it; returns how much each has taken.
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
                // The other side reads to the end, and ends too; until then what it still sends is thrown away.
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

impl Link {
    /// Writes a portion; returns how many bytes the socket has taken.
    fn write(&mut self) -> usize {
        let mut taken = 0;
        while !self.outbox.is_empty() && taken < PORTION {
            match self.stream.try_write_vectored(&self.outbox.slices()) {
                Ok(bytes) => {
                    self.outbox.advance(bytes);
                    taken += bytes;
                }
                Err(error) if is_temporary(&error) => break,
                // The other side is gone. What it has said before is still to be read, and then the end shows there.
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
        // What is wrong shows when it is read.
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

/// The kernel's words for it.
pub(super) fn hops(time_to_live: TimeToLive) -> Hops {
    Hops { sent: time_to_live.sent(), least: time_to_live.least() }
}
