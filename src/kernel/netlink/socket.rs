//! Sockets: acts and dumps on one pair, notifications on another.

use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recvfrom, sendto, sockopt};
use rustix::net::{SocketAddrAny, getsockname, socket_with};

use super::answer::{Answer, INTERRUPTED, answers, kind};
use super::bus::Bus;
use super::fault::{Fault, Refusal, until_empty};
use super::filter;
use super::message::{Messages, flag};
use super::option;
use super::receive_buffer::ReceiveBuffer;
use crate::kernel::{Error, own};

/// Buffers of this size hold the errors of any portion. The kernel doubles the figure for its bookkeeping.
const BUFFER_BYTES: usize = 4 << 20;
/// A notification takes about a kilobyte; somebody's bulk change must not overrun a listener easily.
const LISTENER_BYTES: usize = 16 << 20;
/// A send is one kernel buffer, and larger ones were measured to be slower.
const PORTION_BYTES: usize = 64 << 10;
/// The kernel answers within the send call; whatever takes this long was lost.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// A dump that is disturbed this often is given up.
const DUMP_TRIES: u32 = 30;
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// Offered room for datagrams of a dump of few objects. The kernel makes them as large as the largest room that a socket has ever offered, 32 KiB at most
/// (`netlink_dump`), twice for each dump, and many kernels fill new memory with zeros (`init_on_alloc`). This much and its bookkeeping are 8 KiB together;
/// on no kernel a dump's datagram is made longer than what is offered (`NLMSG_GOODSIZE`).
const SHORT_BYTES: usize = (8 << 10) - 320;
/// More datagrams than any dump has.
const MOST_STALE: usize = 1 << 20;

/// How much a dump may cost.
#[derive(Clone, Copy, Debug)]
pub struct DumpBounds {
    /// A dump that is disturbed this often is given up.
    pub tries: u32,
    /// Objects of one dump, whether anybody wants them or not.
    pub most: usize,
}

/// A pair of sockets of one network namespace: one for acts, one for dumps.
#[derive(Debug)]
pub struct Socket {
    acts: Wire,
    dumps: Wire,
    bounds: DumpBounds,
}

/// A socket that receives notifications.
#[derive(Debug)]
pub struct Listener {
    wire: Wire,
}

#[derive(Debug)]
struct Wire {
    socket: OwnedFd,
    own: own::Port,
    sequence: u32,
    /// So many bytes can be sent at once.
    room: usize,
    /// So many bytes of the buffer are offered for a datagram.
    offered: usize,
}

impl Socket {
    /// Opens both sockets in the network namespace of the calling thread, where they stay.
    ///
    /// # Errors
    /// A socket cannot be opened.
    pub fn open(bus: Bus) -> Result<Socket, Error> {
        let open = || {
            Wire::open(bus, &[], BUFFER_BYTES).map_err(|errno| Error::errno("open netlink socket", bus.name(), errno))
        };
        let bounds = DumpBounds { tries: DUMP_TRIES, most: usize::MAX };
        Ok(Socket { acts: open()?, dumps: open()?, bounds })
    }

    /// Bounds its dumps, where somebody else decides how many objects there are and how often they change.
    pub fn with_bounds(self, bounds: DumpBounds) -> Socket {
        Socket { bounds, ..self }
    }

    /// Makes its dumps cheap where each has a few objects, and dear where it has thousands: the kernel goes over those that it has told again for each datagram.
    /// What somebody else changes between two datagrams may be told twice or not at all, as with long ones, sooner.
    pub fn with_short_dumps(mut self) -> Socket {
        self.dumps.offered = SHORT_BYTES;
        self
    }

    /// The port by which the kernel knows who acts: what belongs to this socket carries it.
    pub fn port(&self) -> u32 {
        self.acts.own.number()
    }

    /// The number of the network namespace, which no other one has had since the boot; `None` before Linux 5.14.
    pub fn namespace_cookie(&self) -> Option<u64> {
        self.acts.own.namespace()
    }

    /// Sends the messages and returns those that the kernel refused; every other one was carried out. A
    /// refused message does not stop those behind it. After a [`Fault`] nothing is known about any.
    ///
    /// # Errors
    /// The socket failed, or an answer was malformed.
    pub fn batch(&mut self, messages: &mut Messages) -> Result<Vec<Refusal>, Fault> {
        let mut refusals = Vec::new();
        let mut first = 0;
        while first < messages.len() {
            let next = messages.portion(first, PORTION_BYTES);
            self.acts.perform(messages, first..next, &mut refusals)?;
            first = next;
        }
        Ok(refusals)
    }

    /// Sends messages that take effect together or not at all, with the marks of their subsystem around them.
    ///
    /// # Errors
    /// The kernel refused one of the messages, and so all, or the socket failed.
    pub fn transaction(&mut self, messages: &mut Messages) -> Result<(), Fault> {
        let refusals = self.transact(messages)?;
        refusals.into_iter().next().map_or(Ok(()), |refusal| Err(Fault::Refused(refusal)))
    }

    /// Sends messages that take effect together or not at all, with the marks of their subsystem around them. Returns those that
    /// the kernel refused; if there is one, nothing was done. A refusal of the first mark is one of the whole.
    ///
    /// Waits for the acknowledgement of the message before the last: not every kernel acknowledges the marks.
    ///
    /// # Errors
    /// The socket failed, or the answer did not come.
    pub fn transact(&mut self, messages: &mut Messages) -> Result<Vec<Refusal>, Fault> {
        let count = messages.len();
        let last = count.checked_sub(2).expect("a transaction has messages between its marks");
        messages.reflag(last, flag::ACK, 0);
        self.acts.make_room(messages.bytes().len())?;
        let first = self.acts.post(messages, 0..count)?;
        let mut refusals = Vec::new();
        self.acts.collect(|answer| {
            let offset = usize::try_from(answer.sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
            let Some(refusal) = answer.refusal().filter(|_| offset < count) else {
                return ControlFlow::Continue(());
            };
            if refusal.errno != 0 {
                refusals.push(Refusal { message: offset, ..refusal });
            }
            // Behind a refusal of the whole nothing more may come.
            if offset == last || refusals.last().is_some_and(|refusal| refusal.message == 0) {
                return ControlFlow::Break(Ok(()));
            }
            ControlFlow::Continue(())
        })?;
        Ok(refusals)
    }

    /// Sends messages that the kernel does not answer unless it refuses them; it has handled them when this returns.
    ///
    /// # Errors
    /// The socket failed.
    pub fn post_unanswered(&mut self, messages: &mut Messages) -> Result<(), Fault> {
        let count = messages.len();
        self.acts.post(messages, 0..count).map(drop)
    }

    /// Sends one message that is not a dump, and returns what `parse` makes of its answers.
    ///
    /// # Errors
    /// The kernel refused the message, the socket failed, or an answer was malformed.
    pub fn request<T>(
        &mut self,
        message: &mut Messages,
        mut parse: impl FnMut(&Answer<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Fault> {
        assert_eq!(message.len(), 1, "a request is one message");
        message.reflag(0, flag::ACK, 0);
        let sequence = self.acts.post(message, 0..1)?;
        let mut found = Vec::new();
        self.acts.collect(|answer| {
            if answer.sequence != sequence {
                return ControlFlow::Continue(());
            }
            match answer.refusal() {
                Some(Refusal { errno: 0, .. }) => ControlFlow::Break(Ok(())),
                Some(refusal) => ControlFlow::Break(Err(Fault::Refused(refusal))),
                None => {
                    found.extend(parse(answer));
                    ControlFlow::Continue(())
                }
            }
        })?;
        Ok(found)
    }

    /// Asks for all objects that match the message, and returns what `parse` makes of them. A dump that was
    /// disturbed by a change is repeated from the beginning, some thirty times, or as often as the bounds say.
    ///
    /// # Errors
    /// The kernel refused the message, the socket failed, an answer was malformed, changes disturbed every attempt, or there are more objects than the bounds allow.
    pub fn dump<T>(
        &mut self,
        message: &mut Messages,
        mut parse: impl FnMut(&Answer<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Fault> {
        assert_eq!(message.len(), 1, "a dump is one message");
        message.reflag(0, flag::DUMP, flag::ACK);
        for attempt in 0..self.bounds.tries {
            match self.dumps.dump_once(message, self.bounds.most, &mut parse) {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => thread::sleep(Duration::from_millis(1 << attempt.min(7)).min(LONGEST_PAUSE)),
                // A datagram was longer than the buffer; now it fits.
                Err(Fault::Lost) if attempt == 0 => self.dumps.drain(),
                // An earlier dump was given up midway and still holds the socket.
                Err(fault) if fault.errno() == Some(Errno::BUSY.raw_os_error()) && attempt == 0 => self.dumps.drain(),
                Err(fault) => return Err(fault),
            }
        }
        Err(Fault::Unsteady)
    }
}

impl Listener {
    /// Opens a socket in the network namespace of the calling thread and joins the groups, by number.
    ///
    /// # Errors
    /// The socket cannot be opened, or a group cannot be joined.
    pub fn open(bus: Bus, groups: &[u32]) -> Result<Listener, Error> {
        let wire = Wire::open(bus, groups, LISTENER_BYTES)
            .map_err(|errno| Error::errno("listen for changes of", bus.name(), errno))?;
        Ok(Listener { wire })
    }

    /// As [`Socket::namespace_cookie`].
    pub fn namespace_cookie(&self) -> Option<u64> {
        self.wire.own.namespace()
    }

    /// Has the kernel drop notifications of these types that these ports have caused, before they wake anybody. Another call replaces this one;
    /// ports that do not fit into the filter are heard.
    ///
    /// # Errors
    /// The kernel refuses the filter.
    pub fn ignore(&mut self, types: &[u16], ports: &[u32]) -> Result<(), Errno> {
        filter::attach(self.as_fd(), &filter::ignoring(types, ports))
    }

    /// Sends messages that set up what this socket receives, and returns those that the kernel refused.
    ///
    /// # Errors
    /// The socket failed, or an answer was malformed.
    pub fn configure(&mut self, messages: &mut Messages) -> Result<Vec<Refusal>, Fault> {
        let mut refusals = Vec::new();
        self.wire.perform(messages, 0..messages.len(), &mut refusals)?;
        Ok(refusals)
    }

    /// Passes every notification that has arrived to `each`, without waiting. [`Fault::Lost`] means that the kernel sent more than the socket could hold: it
    /// says so once, and drops what comes until the socket is empty (`netlink_rcv_wake` of Linux).
    ///
    /// # Errors
    /// Notifications were lost, or the socket failed.
    pub fn receive(&mut self, mut each: impl FnMut(&Answer<'_>)) -> Result<(), Fault> {
        until_empty(|| self.receive_one(&mut each))
    }

    /// Passes the notifications of one datagram to `each`, without waiting; returns whether one had arrived.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub fn receive_one(&mut self, mut each: impl FnMut(&Answer<'_>)) -> Result<bool, Fault> {
        let mut buffer = ReceiveBuffer::lend();
        let Some(datagram) = self.wire.receive(&mut buffer, RecvFlags::DONTWAIT)? else { return Ok(false) };
        answers(datagram).for_each(|answer| each(&answer));
        Ok(true)
    }
}

impl AsFd for Socket {
    /// For requests that are not messages (`ioctl`), in the socket's network namespace.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.acts.socket.as_fd()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wire.socket.as_fd()
    }
}

impl Wire {
    fn open(bus: Bus, groups: &[u32], receive_bytes: usize) -> Result<Wire, Errno> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, bus.protocol())?;
        // Forcing needs CAP_NET_ADMIN; without it the system's limit applies.
        if sockopt::set_socket_send_buffer_size_force(&socket, BUFFER_BYTES).is_err() {
            sockopt::set_socket_send_buffer_size(&socket, BUFFER_BYTES)?;
        }
        if sockopt::set_socket_recv_buffer_size_force(&socket, receive_bytes).is_err() {
            sockopt::set_socket_recv_buffer_size(&socket, receive_bytes)?;
        }
        option::set(socket.as_fd(), option::EXT_ACK, 1)?;
        option::set(socket.as_fd(), option::CAP_ACK, 1)?;
        option::set(socket.as_fd(), option::GET_STRICT_CHK, 1)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_WITHIN))?;
        bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        for group in groups {
            let group = i32::try_from(*group).map_err(|_| Errno::INVAL)?;
            option::set(socket.as_fd(), option::ADD_MEMBERSHIP, group)?;
        }
        let address = SocketAddrNetlink::try_from(getsockname(&socket)?)?;
        let own = own::Port::new(bus, address.pid(), option::namespace_cookie(socket.as_fd()).ok());
        Ok(Wire { socket, own, sequence: 0, room: BUFFER_BYTES, offered: usize::MAX })
    }

    /// Makes the send buffer large enough for so many bytes at once.
    fn make_room(&mut self, bytes: usize) -> Result<(), Fault> {
        if bytes > self.room {
            sockopt::set_socket_send_buffer_size_force(&self.socket, bytes).map_err(Fault::System)?;
            self.room = bytes;
        }
        Ok(())
    }

    /// Numbers the messages and sends them at once; returns the number of the first.
    fn post(&mut self, messages: &mut Messages, range: std::ops::Range<usize>) -> Result<u32, Fault> {
        let first = self.sequence.wrapping_add(1);
        for index in range.clone() {
            self.sequence = self.sequence.wrapping_add(1);
            messages.number(index, self.sequence);
        }
        let bytes = messages.range(range.start, range.end);
        loop {
            match sendto(&self.socket, bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0)) {
                Ok(sent) if sent == bytes.len() => return Ok(first),
                Ok(_) => return Err(Fault::Malformed("a part of the messages was sent")),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Fault::System(errno)),
            }
        }
    }

    /// Sends some messages, the last one with an acknowledgement, and waits for that.
    fn perform(
        &mut self,
        messages: &mut Messages,
        range: std::ops::Range<usize>,
        refusals: &mut Vec<Refusal>,
    ) -> Result<(), Fault> {
        let count = range.len();
        messages.reflag(range.end - 1, flag::ACK, 0);
        let first = self.post(messages, range.clone())?;
        self.collect(|answer| {
            let Ok(offset) = usize::try_from(answer.sequence.wrapping_sub(first)) else {
                return ControlFlow::Continue(());
            };
            let Some(refusal) = answer.refusal().filter(|_| offset < count) else {
                return ControlFlow::Continue(());
            };
            if refusal.errno != 0 {
                refusals.push(Refusal { message: range.start + offset, ..refusal });
            }
            if offset + 1 == count { ControlFlow::Break(Ok(())) } else { ControlFlow::Continue(()) }
        })
    }

    /// One try of a dump; `None` when it was disturbed.
    fn dump_once<T>(
        &mut self,
        message: &mut Messages,
        most: usize,
        parse: &mut impl FnMut(&Answer<'_>) -> Option<T>,
    ) -> Result<Option<Vec<T>>, Fault> {
        let sequence = self.post(message, 0..1)?;
        let mut found = Vec::new();
        let (mut disturbed, mut count) = (false, 0_usize);
        self.collect(|answer| {
            if answer.sequence != sequence {
                return ControlFlow::Continue(());
            }
            disturbed |= answer.flags & INTERRUPTED != 0;
            match answer.kind {
                kind::DONE => ControlFlow::Break(end_of_dump(answer)),
                kind::ERROR => ControlFlow::Break(match answer.refusal() {
                    Some(Refusal { errno: 0, .. }) => Ok(()),
                    Some(refusal) => Err(Fault::Refused(refusal)),
                    None => Err(Fault::Malformed("a short error message")),
                }),
                kind::NOOP | kind::OVERRUN => ControlFlow::Continue(()),
                // The rest is not waited for.
                _ if count >= most => ControlFlow::Break(Err(Fault::TooMany(most))),
                _ => {
                    count += 1;
                    found.extend(parse(answer));
                    ControlFlow::Continue(())
                }
            }
        })?;
        Ok((!disturbed).then_some(found))
    }

    /// Passes answers to `each` until it has seen the last.
    fn collect(&mut self, mut each: impl FnMut(&Answer<'_>) -> ControlFlow<Result<(), Fault>>) -> Result<(), Fault> {
        let mut buffer = ReceiveBuffer::lend();
        loop {
            let datagram = self.receive(&mut buffer, RecvFlags::empty())?.ok_or(Fault::Lost)?;
            for answer in answers(datagram) {
                if let ControlFlow::Break(result) = each(&answer) {
                    return result;
                }
            }
        }
    }

    /// The next datagram from the kernel, whole; `None` when the time is over, or with `DONTWAIT` when there
    /// is none now. One that is longer than the buffer is lost, and the buffer grows for the next try.
    fn receive<'b>(&mut self, buffer: &'b mut ReceiveBuffer, flags: RecvFlags) -> Result<Option<&'b [u8]>, Fault> {
        let offered = buffer.room(self.offered).len();
        let length = loop {
            match recvfrom(&self.socket, buffer.room(offered), flags | RecvFlags::TRUNC) {
                // Any process may write to a netlink socket whose port it knows: only the kernel's messages count.
                Ok((_, length, from)) if is_kernel(from.as_ref()) => break length,
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::NOBUFS) => return Err(Fault::Lost),
                Err(errno) => return Err(Fault::System(errno)),
            }
        };
        if length > offered {
            buffer.grow(length);
            self.offered = usize::MAX;
            return Err(Fault::Lost);
        }
        Ok(buffer.bytes().get(..length))
    }

    /// Reads what earlier requests left behind, which also brings a dump in progress to its end.
    fn drain(&mut self) {
        let mut buffer = ReceiveBuffer::lend();
        for _ in 0..MOST_STALE {
            if !matches!(self.receive(&mut buffer, RecvFlags::DONTWAIT), Ok(Some(_)) | Err(Fault::Lost)) {
                return;
            }
        }
    }
}

fn is_kernel(from: Option<&SocketAddrAny>) -> bool {
    from.and_then(|from| SocketAddrNetlink::try_from(from.clone()).ok()).is_some_and(|from| from.pid() == 0)
}

/// The closing message carries 0 or a negative error number.
fn end_of_dump(answer: &Answer<'_>) -> Result<(), Fault> {
    let code = answer.header::<4>().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    if code >= 0 {
        return Ok(());
    }
    Err(Fault::Refused(Refusal { message: 0, errno: code.wrapping_neg(), text: None, request: Vec::new() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET_ROUTE: u16 = 26;

    #[test]
    fn the_kernel_makes_no_datagram_of_a_short_dump_longer_than_what_is_offered() {
        let mut socket = Socket::open(Bus::Route).expect("a socket").with_short_dumps();
        let mut message = Messages::new();
        message.begin(GET_ROUTE, 0).header(&[0; 12]);
        socket.dump(&mut message, |_| Some(())).expect("routes are listed");
        assert_eq!(socket.dumps.offered, SHORT_BYTES, "a longer one is asked for again");
    }
}
