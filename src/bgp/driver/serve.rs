//! Listening sockets: their addresses and passwords.
//!
//! Each address has a socket of its own; those of IPv6 accept no IPv4. Listening that fails is retried, at first soon
//! and then every 30 seconds. Passwords of neighbours are keys on all sockets of their address family, and a neighbour
//! whose key a socket has not accepted is not admitted over it. Which keys there are is in `keys`.
//!
//! A key does not judge what a connection has received before. So a socket has its keys before it listens; and where one that listens gets
//! the key of an address, the connections that wait are accepted at once, and those from there are closed: they have come without it. A key that takes the
//! place of another one comes before that goes; where there is no room for both its addresses count as those without.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use tokio::net::{TcpListener, TcpStream};

use super::super::transport::Password;
use super::apply::{Happened, Wait, Waits};
use super::keys::{Keys, Passwords, key_of, keys};
use super::news::{Event, News, Subject};
use crate::kernel::{Error, tcp};
use crate::reconcile::{Backoff, Moment};

/// All listening addresses.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    all: BTreeMap<SocketAddr, Listener>,
    /// All neighbours.
    passwords: Passwords,
    /// Neighbours whose password some socket has not accepted.
    refused: BTreeSet<IpAddr>,
    /// Time to try their passwords again.
    keying: Backoff,
    /// Connections that had waited when a socket got keys, and need none.
    accepted: Vec<Accepted>,
}

/// A connection that was accepted: on which address, and from where.
pub(super) type Accepted = (SocketAddr, TcpStream, SocketAddr);

#[derive(Debug, Default)]
struct Listener {
    socket: Option<Arc<TcpListener>>,
    /// Pending accept.
    accepting: Option<Wait>,
    /// Keys installed on the socket.
    keys: Keys,
    backoff: Backoff,
    /// A failure has been reported.
    troubled: bool,
}

impl Listeners {
    /// Sets the listening addresses.
    pub fn set(&mut self, wanted: BTreeSet<SocketAddr>) {
        self.all.retain(|address, _| wanted.contains(address));
        for address in wanted {
            self.all.entry(address).or_default();
        }
    }

    /// Sets all neighbours, with their passwords; returns those that had another one before.
    pub fn set_passwords(&mut self, passwords: Passwords, at: Moment, news: &mut News) -> Passwords {
        if self.passwords == passwords {
            return Passwords::new();
        }
        let before = std::mem::replace(&mut self.passwords, passwords);
        self.key_all(at, news);
        let differs =
            |(address, now): &(&IpAddr, &Option<Password>)| before.get(address).is_some_and(|old| old != *now);
        self.passwords.iter().filter(differs).map(|(address, now)| (*address, now.clone())).collect()
    }

    /// Returns whether this socket admits a neighbour only with its password, or the neighbour has none.
    pub fn has_key(&self, on: SocketAddr, of: IpAddr) -> bool {
        let Some(Some(wanted)) = self.passwords.get(&of) else { return true };
        self.all.get(&on).is_some_and(|listener| key_of(&listener.keys, of) == Some(wanted))
    }

    /// Time of the next retry.
    pub fn deadline(&self) -> Option<Instant> {
        self.all.values().filter_map(|listener| listener.backoff.retry_at()).chain(self.keying.retry_at()).min()
    }

    /// Opens sockets that are not open, and accepts connections.
    pub fn open(&mut self, waits: &Waits, at: Moment, news: &mut News) {
        let mut opened = false;
        for (address, listener) in &mut self.all {
            if listener.accepting.is_some() || listener.backoff.retry_at().is_some_and(|retry| retry > at.now) {
                continue;
            }
            match listener.listen(*address, &self.passwords) {
                Ok(new) => {
                    opened |= new;
                    listener.backoff.tried();
                    listener.accept(waits, *address);
                    // A retry after a failed accept has succeeded only when it accepts a connection.
                    if new {
                        listener.works(*address, news);
                    }
                }
                Err(error) => listener.failed(*address, error, at, news),
            }
        }
        if opened || self.keying.retry_at().is_some_and(|retry| retry <= at.now) {
            self.key_all(at, news);
        }
    }

    /// Takes the connections that had waited when a socket got keys.
    pub fn take_accepted(&mut self) -> Vec<Accepted> {
        std::mem::take(&mut self.accepted)
    }

    /// Handles the completion of an accept.
    pub fn accepted(&mut self, on: SocketAddr, waits: &Waits, news: &mut News) {
        if let Some(listener) = self.all.get_mut(&on) {
            listener.backoff.succeeded();
            listener.works(on, news);
            listener.accept(waits, on);
        }
    }

    /// Handles a failure to accept, such as too many open files, that lasts for a while.
    pub fn failed(&mut self, on: SocketAddr, error: &std::io::Error, at: Moment, news: &mut News) {
        if let Some(listener) = self.all.get_mut(&on) {
            let errno = rustix::io::Errno::from_io_error(error).unwrap_or(rustix::io::Errno::IO);
            listener.failed(on, Error::errno("accept connections on", on.to_string(), errno), at, news);
        }
    }

    /// Returns whether an address is listened on.
    pub fn contains(&self, on: SocketAddr) -> bool {
        self.all.contains_key(&on)
    }

    /// Records that a connection has not taken the password of its neighbour.
    pub fn refused(&mut self, neighbour: IpAddr, error: Error, at: Moment, news: &mut News) {
        if self.refused.insert(neighbour) {
            news.push(Event::Trouble(Subject::Password(neighbour), Some(error)));
        }
        self.keying.failed(at.now, at.jitter);
    }

    fn key_all(&mut self, at: Moment, news: &mut News) {
        let mut failed: BTreeMap<IpAddr, Error> = BTreeMap::new();
        let mut is_incomplete = false;
        for (address, listener) in &mut self.all {
            let Some(socket) = listener.socket.clone() else { continue };
            let (keys, mut before) = (keys(&self.passwords, *address), listener.keys.clone());
            let (refused, bare) = listener.key(&keys, &self.passwords, |of, key| tcp::set_key(&socket, of, key));
            before.retain(|prefix, _| !bare.contains(prefix));
            if listener.keys.keys().any(|prefix| !before.contains_key(prefix)) {
                self.accepted.extend(listener.take_waiting(*address, &before));
            }
            is_incomplete |= !refused.is_empty();
            failed.extend(listener.without_key(&refused, &self.passwords));
        }
        match is_incomplete {
            true => self.keying.failed(at.now, at.jitter),
            false => self.keying.succeeded(),
        }
        for (neighbour, error) in &failed {
            if self.refused.insert(*neighbour) {
                news.push(Event::Trouble(Subject::Password(*neighbour), Some(error.clone())));
            }
        }
        self.refused.retain(|neighbour| {
            let still = failed.contains_key(neighbour);
            if !still {
                news.push(Event::Trouble(Subject::Password(*neighbour), None));
            }
            still
        });
    }
}

impl Listener {
    /// Opens the socket unless it is open; returns whether it is new.
    fn listen(&mut self, on: SocketAddr, passwords: &Passwords) -> Result<bool, Error> {
        if self.socket.is_some() {
            return Ok(false);
        }
        let socket = tcp::bound(on)?;
        self.keys = Keys::new();
        // What the kernel refuses is tried again, and told, when the socket listens.
        let _ = self.key(&keys(passwords, on), passwords, |of, key| tcp::set_key(&socket, of, key));
        tcp::listen(&socket, on)?;
        let socket = TcpListener::from_std(socket).map_err(|error| failed_wait(on, &error))?;
        self.socket = Some(Arc::new(socket));
        Ok(true)
    }

    /// Accepts the connections that wait, and closes those from addresses that had no key before and have one now. A socket whose connections
    /// cannot be accepted is closed with them, and opened again.
    fn take_waiting(&mut self, on: SocketAddr, before: &Keys) -> Vec<Accepted> {
        let mut accepted = Vec::new();
        while let Some(socket) = &self.socket {
            match tcp::waiting(socket) {
                Ok(None) => break,
                Ok(Some((stream, from))) => {
                    let of = crate::net::link_local::of_socket(from);
                    let came_without = key_of(before, of).is_none() && key_of(&self.keys, of).is_some();
                    if let (false, Ok(stream)) = (came_without, TcpStream::from_std(stream)) {
                        accepted.push((on, stream, from));
                    }
                }
                Err(_) => (self.socket, self.accepting) = (None, None),
            }
        }
        accepted
    }

    fn accept(&mut self, waits: &Waits, on: SocketAddr) {
        self.accepting = self.socket.clone().map(|socket| {
            Wait::new(waits, async move {
                let accepted = socket.accept().await;
                Happened::Accepted(on, accepted)
            })
        });
    }

    fn works(&mut self, on: SocketAddr, news: &mut News) {
        if std::mem::take(&mut self.troubled) {
            news.push(Event::Trouble(Subject::Listening(on), None));
        }
    }

    fn failed(&mut self, on: SocketAddr, error: Error, at: Moment, news: &mut News) {
        self.accepting = None;
        self.backoff.failed(at.now, at.jitter);
        if !std::mem::replace(&mut self.troubled, true) {
            news.push(Event::Trouble(Subject::Listening(on), Some(error)));
        }
    }

    /// Installs keys on the socket and then removes others: of two the longer prefix counts, so that no address is without one in between. Returns those that could not be
    /// set or removed, and those that were removed before all new ones were there, because the kernel may have no room for both.
    fn key(
        &mut self,
        keys: &Keys,
        passwords: &Passwords,
        set: impl Fn(IpNet, Option<&[u8]>) -> Result<(), Error>,
    ) -> (BTreeMap<IpNet, Error>, BTreeSet<IpNet>) {
        let (mut failed, own) = self.put(keys, passwords, &set);
        let (mut bare, mut staying) = (BTreeSet::new(), BTreeMap::new());
        let is_other = |known: &&IpNet| !keys.contains_key(known) && !own.contains(known);
        let others: Vec<IpNet> = self.keys.keys().filter(is_other).copied().collect();
        for prefix in others {
            match set(prefix, None) {
                Ok(()) => {
                    self.keys.remove(&prefix);
                    bare.insert(prefix);
                }
                Err(error) => drop(staying.insert(prefix, error)),
            }
        }
        if failed.is_empty() {
            bare.clear();
        } else if !bare.is_empty() {
            (failed, _) = self.put(keys, passwords, &set);
        }
        failed.extend(staying);
        (failed, bare)
    }

    /// Installs keys on the socket; returns those that could not be set. Where the kernel refuses the key of a prefix, as before Linux 4.13, the neighbours in it get
    /// keys of their own, as far as there is room; where that is enough for all of them these are returned as well.
    fn put(
        &mut self,
        keys: &Keys,
        passwords: &Passwords,
        set: impl Fn(IpNet, Option<&[u8]>) -> Result<(), Error>,
    ) -> (BTreeMap<IpNet, Error>, BTreeSet<IpNet>) {
        let (mut failed, mut own_keys) = (BTreeMap::new(), BTreeSet::new());
        let is_own = |prefix: &IpNet| prefix.prefix_len() == prefix.max_prefix_len();
        for (prefix, password) in keys {
            if self.keys.get(prefix) == Some(password) {
                continue;
            }
            let Err(error) = set(*prefix, Some(password.key())) else {
                self.keys.insert(*prefix, password.clone());
                continue;
            };
            failed.insert(*prefix, error);
            let own = |neighbour: &IpAddr| IpNet::from(*neighbour);
            let inside = passwords.iter().filter(|(_, wanted)| wanted.as_ref() == Some(password));
            let inside = inside.map(|(neighbour, _)| own(neighbour));
            let inside: BTreeSet<IpNet> = inside.filter(|own| !is_own(prefix) && prefix.contains(own)).collect();
            let has_room = |neighbour: &&IpNet| set(**neighbour, Some(password.key())).is_ok();
            let done: BTreeSet<IpNet> = inside.iter().take_while(has_room).copied().collect();
            self.keys.extend(done.iter().map(|neighbour| (*neighbour, password.clone())));
            if done == inside {
                own_keys.extend(done);
            }
        }
        (failed, own_keys)
    }

    /// Returns the neighbours that these refused keys were for, and that have no other, each with the reason.
    fn without_key(&self, refused: &BTreeMap<IpNet, Error>, passwords: &Passwords) -> BTreeMap<IpAddr, Error> {
        let mut without = BTreeMap::new();
        for (prefix, error) in refused {
            let inside = passwords.iter().filter(|(neighbour, _)| prefix.contains(*neighbour));
            let lacking = inside.filter(|(neighbour, wanted)| key_of(&self.keys, **neighbour) != wanted.as_ref());
            without.extend(lacking.map(|(neighbour, _)| (*neighbour, error.clone())));
        }
        without
    }
}

fn failed_wait(on: SocketAddr, error: &std::io::Error) -> Error {
    let errno = rustix::io::Errno::from_io_error(error).unwrap_or(rustix::io::Errno::IO);
    Error::errno("wait for", on.to_string(), errno)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::time::Duration;

    use super::*;
    use rustix::io::Errno;

    #[tokio::test]
    async fn what_waits_when_its_address_gets_a_key_is_closed_and_what_needs_none_is_accepted() {
        let (mut listeners, mut news, waits) = (Listeners::default(), News::default(), Waits::new());
        let at = Moment { now: Instant::now(), jitter: 0 };
        let on: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        listeners.set([on].into());
        listeners.open(&waits, at, &mut news);
        let socket = listeners.all.get(&on).and_then(|listener| listener.socket.clone()).expect("it listens");
        let to = socket.local_addr().expect("it is bound");
        let dial = |from: &str| {
            let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None);
            let socket = socket.expect("a socket");
            let from: IpAddr = from.parse().expect("an address");
            rustix::net::bind(&socket, &SocketAddr::new(from, 0)).expect("it is on the loopback");
            rustix::net::connect(&socket, &to).expect("somebody listens");
            let mut stream = std::net::TcpStream::from(socket);
            stream.write_all(b"OPEN").expect("it is connected");
            stream
        };
        let (mut unsigned, _plain) = (dial("127.0.0.3"), dial("127.0.0.4"));
        let passwords = |password| {
            Passwords::from([
                ("127.0.0.3".parse().expect("an address"), password),
                ("127.0.0.4".parse().expect("an address"), None),
            ])
        };
        listeners.set_passwords(passwords(Password::new("hush").ok()), at, &mut news);
        let accepted = listeners.take_accepted();
        let from: Vec<String> = accepted.iter().map(|(_, _, from)| from.ip().to_string()).collect();
        assert_eq!(from, ["127.0.0.4"], "what the other one has sent is not read");
        unsigned.set_read_timeout(Some(Duration::from_secs(10))).expect("a time");
        let end = unsigned.read(&mut [0; 1]).map_err(|error| error.kind());
        assert!(matches!(end, Ok(0) | Err(std::io::ErrorKind::ConnectionReset)), "{end:?}");
        // Another password is no reason: what waits has come with the one before.
        let _later = dial("127.0.0.4");
        listeners.set_passwords(passwords(Password::new("quiet").ok()), at, &mut news);
        assert!(listeners.take_accepted().is_empty());
    }

    #[tokio::test]
    async fn where_the_key_of_a_prefix_is_refused_its_neighbours_have_their_own_or_are_named() {
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("an address");
        let mut listener = Listener { socket: Some(Arc::new(socket)), ..Listener::default() };
        let password = Password::new("hush").expect("a password");
        let node = |number: u8| IpAddr::from([192, 0, 2, number]);
        let passwords: Passwords = (0..100).map(|number| (node(number), Some(password.clone()))).collect();
        let keys = keys(&passwords, ([192, 0, 2, 250], 179).into());
        assert_eq!(keys.len(), 1, "one for all");
        let refuse = |of: IpNet| Error::errno("set the password of", of.to_string(), Errno::NOPROTOOPT);
        let is_own = |of: IpNet| of.prefix_len() == 32;
        let (refused, _) = listener.key(&keys, &passwords, |of, _| is_own(of).then_some(()).ok_or(refuse(of)));
        assert_eq!((refused.len(), listener.keys.len()), (1, 100));
        assert!(listener.without_key(&refused, &passwords).is_empty());
        let (refused, _) = listener.key(&keys, &passwords, |of, key| match key {
            Some(_) if !is_own(of) || of.addr() >= node(70) => Err(refuse(of)),
            _ => Ok(()),
        });
        let without = listener.without_key(&refused, &passwords);
        assert_eq!(without.keys().copied().collect::<Vec<_>>(), (70..100).map(node).collect::<Vec<_>>());
        let (refused, _) = listener.key(&keys, &passwords, |_, _| Ok(()));
        assert_eq!((refused.len(), listener.keys.len()), (0, 1));
        assert!(listener.without_key(&refused, &passwords).is_empty());
    }

    #[test]
    fn a_neighbour_is_never_without_a_key_while_prefixes_are_regrouped_unless_there_is_no_room_for_both() {
        use std::cell::RefCell;
        let password = Password::new("hush").expect("a password");
        let node = |number: u8| IpAddr::from([192, 0, 2, number]);
        let of = |below: u8, more: Option<u8>| -> Passwords {
            (0..below).chain(more).map(|number| (node(number), Some(password.clone()))).collect()
        };
        let socket: SocketAddr = ([192, 0, 2, 250], 179).into();
        // A key of its own for each, one for the lower half, and one for all.
        let steps = [of(64, None), of(100, None), of(100, Some(200)), of(100, None), of(3, None)];
        for room in [1000, 64] {
            let (mut listener, there) = (Listener::default(), RefCell::new(Keys::new()));
            let mut had_none = BTreeSet::new();
            for (step, passwords) in steps.iter().enumerate() {
                let (keys, before) = (keys(passwords, socket), listener.keys.clone());
                let stays = |address: &&IpAddr| key_of(&before, **address).is_some();
                let stay: Vec<IpAddr> = passwords.keys().filter(stays).copied().collect();
                let missed = RefCell::new(BTreeSet::new());
                let (refused, bare) = listener.key(&keys, passwords, |prefix, key| {
                    let mut there = there.borrow_mut();
                    match key {
                        Some(_) if !there.contains_key(&prefix) && there.len() >= room => {
                            return Err(Error::errno("set the password of", prefix.to_string(), Errno::NOMEM));
                        }
                        Some(_) => drop(there.insert(prefix, password.clone())),
                        None => drop(there.remove(&prefix)),
                    }
                    missed.borrow_mut().extend(stay.iter().filter(|one| key_of(&there, **one).is_none()));
                    Ok(())
                });
                assert_eq!((refused.len(), &listener.keys), (0, &keys), "{room}, {step}");
                assert_eq!(*there.borrow(), keys, "{room}, {step}");
                let is_bare = |one: &&IpAddr| !bare.iter().any(|prefix| prefix.contains(*one));
                assert_eq!(missed.borrow().iter().find(is_bare), None, "{room}, {step}");
                had_none.extend(missed.into_inner());
            }
            assert_eq!(had_none.is_empty(), room == 1000, "the room was too small for both, or was not");
        }
    }
}
