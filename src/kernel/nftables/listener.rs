//! Listening for changes of nf_tables, without having large changes of our own described.
//!
//! While anybody listens, the kernel writes a message for each element, rule and set of a transaction: a fifth of the time that one with tens of thousands of elements
//! takes, for messages that are passed over because they are our own. So all listeners of this process leave the group for as long as such a transaction takes.
//! Whether others changed something meanwhile the number of the generation tells, to which each transaction in a network namespace adds one; listeners then
//! report [`Fault::Lost`], as after an overrun. Changes before and behind it are heard as ever, some of them twice. What programs of iptables change that we run
//! ourselves counts as others'.
//!
//! The kernel adds to the generation before it tells of the change, and both before the next transaction begins. So between the reading of the number and leaving
//! there is a transaction without anything, which waits for one that is under way.
//!
//! Kernel: the group `NFNLGRP_NFTABLES`; `NFT_MSG_GETGEN`; the cookie of a network namespace (`SO_NETNS_COOKIE`, since 5.14: before, every change is described).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, read, write};

use super::read::generation;
use super::wire::{self, message};
use crate::kernel::Error;
use crate::kernel::netlink::{Answer, Bus, Fault, Group, Listener, Messages, Refusal, Socket};

/// Hears of all changes of nf_tables in one network namespace but those that [`transact`] does not let the kernel describe.
#[derive(Debug)]
pub struct RuleListener {
    listener: Listener,
    membership: Arc<Membership>,
}

/// The place of a listener in the group.
#[derive(Debug)]
struct Membership {
    group: Group,
    /// Of its network namespace; `None` where the kernel has none.
    cookie: Option<u64>,
    /// It could not join again.
    is_outside: AtomicBool,
    /// Can be read when something was missed.
    missed: OwnedFd,
}

const GROUP: i32 = 7;
/// From this size on a transaction is worth four more requests: some 500 elements, or 200 rules.
const LARGE_BYTES: usize = 32 << 10;
const TRIES: usize = 3;

static MEMBERSHIPS: Mutex<Vec<Weak<Membership>>> = Mutex::new(Vec::new());
/// The kernel performs one transaction in a network namespace after the other, so to wait here costs little: the loading of modules, for which the kernel lets others
/// go first. With it every step of the generation that is not ours is one of others.
static TURN: Mutex<()> = Mutex::new(());

impl RuleListener {
    /// Listens from now on, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The socket cannot be opened, or the group cannot be joined.
    pub fn open() -> Result<RuleListener, Error> {
        let failed = |errno| Error::errno("listen for changes of", "nf_tables", errno);
        let listener = Listener::open(Bus::Netfilter, &[])?;
        let (group, cookie) = (Group::of(&listener, GROUP).map_err(failed)?, listener.namespace_cookie());
        let missed = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(failed)?;
        let membership = Arc::new(Membership { group, cookie, is_outside: AtomicBool::new(false), missed });
        let mut memberships = lock(&MEMBERSHIPS);
        memberships.retain(|one| one.strong_count() > 0);
        memberships.push(Arc::downgrade(&membership));
        membership.join().map_err(failed)?;
        Ok(RuleListener { listener, membership })
    }

    /// Passes every notification that has arrived to `each`, without waiting.
    ///
    /// # Errors
    /// [`Fault::Lost`]: others may have changed anything, of which nothing is told. Or the socket failed.
    pub fn receive(&mut self, each: impl FnMut(&Answer<'_>)) -> Result<(), Fault> {
        let has_missed = self.membership.take_missed();
        let heard = self.listener.receive(each);
        if has_missed { Err(Fault::Lost) } else { heard }
    }

    /// Can be read when [`receive`](Self::receive) will report that something was missed; the listener itself when there are notifications.
    pub fn missed(&self) -> BorrowedFd<'_> {
        self.membership.missed.as_fd()
    }
}

impl AsFd for RuleListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Membership {
    fn leave(&self) {
        // Who stays hears more than is needed.
        let _ = self.group.leave();
    }

    fn join(&self) -> Result<(), Errno> {
        let joined = self.group.join();
        if self.is_outside.swap(joined.is_err(), Ordering::SeqCst) || joined.is_err() {
            self.miss();
        }
        joined
    }

    fn miss(&self) {
        // It can only fail where it can be read already.
        let _ = write(&self.missed, &1_u64.to_ne_bytes());
    }

    /// Who is outside misses everything until he is back.
    fn take_missed(&self) -> bool {
        if self.is_outside.load(Ordering::SeqCst) {
            let _ = self.join();
        }
        read(&self.missed, &mut [0; 8]).is_ok()
    }
}

/// Performs a transaction ([`Socket::transact`]), a large one without having it described to the listeners of this process. `is_known`: nothing of it may have been
/// done before, so that the kernel does something. Of one that changes nothing the number of the generation would not tell.
///
/// # Errors
/// As [`Socket::transact`].
pub(super) fn transact(socket: &mut Socket, messages: &mut Messages, is_known: bool) -> Result<Vec<Refusal>, Fault> {
    let _turn = lock(&TURN);
    let is_large = is_known && messages.bytes().len() >= LARGE_BYTES;
    let members = if is_large { listeners_beside(socket) } else { Vec::new() };
    let before = if members.is_empty() { None } else { settled_generation(socket) };
    let Some(before) = before else { return socket.transact(messages) };
    members.iter().for_each(|member| member.leave());
    let result = socket.transact(messages);
    // Who cannot join has missed something, and tries again.
    for member in &members {
        let _ = member.join();
    }
    let is_expected = match &result {
        // It is never 0.
        Ok(refusals) if refusals.is_empty() => generation(socket) == Ok(before.wrapping_add(1).max(1)),
        Ok(_) => generation(socket) == Ok(before),
        // Whether it was done is not known, and the socket may answer late.
        Err(_) => false,
    };
    if !is_expected {
        members.iter().for_each(|member| member.miss());
    }
    result
}

/// The generation, when the kernel has told of all changes that belong to it. `None` where it does not say, or others change something all the time.
fn settled_generation(socket: &mut Socket) -> Option<u32> {
    for _ in 0..TRIES {
        let before = generation(socket).ok()?;
        let mut nothing = Messages::new();
        wire::mark(&mut nothing, message::BATCH_BEGIN);
        wire::mark(&mut nothing, message::BATCH_END);
        socket.post_unanswered(&mut nothing).ok()?;
        if generation(socket) == Ok(before) {
            return Some(before);
        }
    }
    None
}

/// Like [`transact`], where a refusal of one message is one of all.
///
/// # Errors
/// As [`Socket::transaction`].
pub(super) fn transaction(socket: &mut Socket, messages: &mut Messages) -> Result<(), Fault> {
    let refusals = transact(socket, messages, true)?;
    refusals.into_iter().next().map_or(Ok(()), |refusal| Err(Fault::Refused(refusal)))
}

/// The listeners of this process in the network namespace of the socket.
fn listeners_beside(socket: &Socket) -> Vec<Arc<Membership>> {
    let Some(cookie) = socket.namespace_cookie() else { return Vec::new() };
    let memberships = lock(&MEMBERSHIPS);
    memberships.iter().filter_map(Weak::upgrade).filter(|member| member.cookie == Some(cookie)).collect()
}

/// A panic elsewhere leaves these whole.
fn lock<T>(list: &Mutex<T>) -> MutexGuard<'_, T> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}
