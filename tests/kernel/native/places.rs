//! Hosts and pods around a node, as network namespaces with a device each, and connections between them.

#![allow(clippy::indexing_slicing, reason = "a test that panics has failed, which is how a test says so")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, ipproto, recv, sendto, socket_with, sockopt,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sluice::net::{Family, Protocol};

use crate::namespace::run;

/// One of them.
pub struct Place {
    name: String,
    addresses: [IpAddr; 2],
}

/// All of them, and the node between them, which is the namespace of the calling thread.
pub struct Places {
    node: File,
    all: BTreeMap<String, Served>,
}

struct Served {
    addresses: [IpAddr; 2],
    namespace: Option<File>,
    tcp: BTreeMap<u16, TcpListener>,
    udp: BTreeMap<u16, UdpSocket>,
    /// Whatever SCTP comes, for each family: the kernel need not speak it.
    sctp: [OwnedFd; 2],
}

/// A way to try: `(family, from, to, protocol, port)`.
pub type Try<'a> = (Family, &'a str, &'a str, Protocol, u16);

/// How a stream of new connections fared.
#[derive(Clone, Copy, Default, Debug)]
pub struct Tally {
    pub tried: usize,
    pub passed: usize,
}

/// Of the node's end of a link, and of the other.
const LINK_ADDRESSES: [&str; 2] = ["02:00:00:00:00:01", "02:00:00:00:00:02"];
const PORTS: [u16; 2] = [80, 81];
/// Longer than any packet needs here: a device hands it on at once. A refusal by IPv6 that comes as fast, while the
/// connection is still being asked for, is not heard by TCP, so that what is refused is waited for.
const PATIENCE: Duration = Duration::from_millis(120);
/// For what shall never be refused, on a machine that others keep busy. TCP asks again only after a second, so a packet that is lost once still counts.
const UNDISTURBED: Duration = Duration::from_millis(900);

impl Place {
    pub fn new(name: &str, v4: &str, v6: &str) -> Place {
        Place { name: name.to_owned(), addresses: [v4, v6].map(|text| text.parse().expect("an address")) }
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Places {
    /// Makes them in the namespace of the calling thread; `gateway` is the name of the node and its addresses.
    pub fn new(places: Vec<Place>, gateway: (&str, &str, &str)) -> Places {
        let node = File::open(crate::namespace::path()).expect("the namespace of this thread");
        // Every refused packet is to be answered at once, however many there are.
        let settings = [
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/icmp_ratelimit", "0"),
            ("ipv6/icmp/ratelimit", "0"),
        ];
        for (path, value) in settings {
            std::fs::write(format!("/proc/sys/net/{path}"), value).expect("a setting of the namespace");
        }
        let mut all = BTreeMap::new();
        for place in places {
            connect(&place, gateway);
            let namespace = File::open(format!("/run/netns/{}", place.name)).expect("the new namespace");
            let (tcp, udp, sctp) = inside(&namespace, listen);
            let served = Served { addresses: place.addresses, namespace: Some(namespace), tcp, udp, sctp };
            all.insert(place.name, served);
        }
        let (name, v4, v6) = gateway;
        let (tcp, udp, sctp) = listen();
        let addresses = [v4, v6].map(|text| text.parse().expect("an address"));
        all.insert(name.to_owned(), Served { addresses, namespace: None, tcp, udp, sctp });
        Places { node, all }
    }

    pub fn address(&self, name: &str, family: Family) -> IpAddr {
        let [v4, v6] = self.all[name].addresses;
        if family == Family::V4 { v4 } else { v6 }
    }

    /// Whether a new connection, or a packet of another protocol, arrives.
    pub fn reaches(&self, family: Family, (from, to): (&str, &str), protocol: Protocol, port: u16) -> bool {
        self.reach(&[(family, from, to, protocol, port)])[0]
    }

    /// Whether a packet of ICMP, or ICMPv6, of this kind arrives. It is about no connection that there ever was.
    pub fn reaches_with_icmp(&self, family: Family, (from, to): (&str, &str), kind: u8) -> bool {
        let (source, target) = (self.address(from, family), self.address(to, family));
        let mark: [u8; 4] = std::process::id().wrapping_mul(u32::from(kind) + 1).to_be_bytes();
        let mut packet = vec![kind, 0, 0, 0];
        packet.extend(mark.repeat(12));
        if family == Family::V4 {
            let sum = internet_checksum(&packet).to_be_bytes();
            packet[2..4].copy_from_slice(&sum);
        }
        let listening = self.at(to, || raw_icmp(target));
        self.at(from, || {
            let socket = raw_icmp(source);
            sendto(&socket, &packet, SendFlags::empty(), &SocketAddr::new(target, 0)).expect("it can be sent");
        });
        let until = Instant::now() + PATIENCE;
        let mut bytes = [0; 256];
        while Instant::now() < until {
            match recv(&listening, bytes.as_mut_slice(), RecvFlags::DONTWAIT) {
                // A raw IPv4 socket receives the packet with its IP header.
                Ok((_, length)) if bytes[..length].windows(48).any(|found| *found == packet[4..52]) => return true,
                Ok(_) => {}
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
        false
    }

    /// Does something in the namespace of one of them.
    fn at<R: Send>(&self, name: &str, act: impl FnOnce() -> R + Send) -> R {
        inside(self.all[name].namespace.as_ref().unwrap_or(&self.node), act)
    }

    /// Those of many ways that are not as expected: open, closed, or either; and whether they are open. What should be open
    /// is tried again before it counts as closed, because on a busy machine packets take their time.
    pub fn wrong<'a>(&self, tries: &[Try<'a>], expected: &[Option<bool>]) -> Vec<(Try<'a>, bool)> {
        let found = self.reach(tries);
        let differs = |(index, open): &(usize, &bool)| expected[*index].is_some_and(|expected| expected != **open);
        let (open, mut closed): (Vec<_>, Vec<_>) = found
            .iter()
            .enumerate()
            .filter(differs)
            .map(|(index, open)| (tries[index], *open))
            .partition(|(_, open)| *open);
        for times in [2, 4, 8, 16] {
            if closed.is_empty() {
                break;
            }
            let again: Vec<Try<'_>> = closed.iter().map(|(way, _)| *way).collect();
            let mut reached = self.reach_within(&again, times).into_iter();
            closed.retain(|_| reached.next() == Some(false));
        }
        open.into_iter().chain(closed).collect()
    }

    /// Whether many ways are open, all tried at the same time: what is refused has to be waited for.
    pub fn reach(&self, tries: &[Try<'_>]) -> Vec<bool> {
        self.reach_within(tries, 1)
    }

    /// The same with so many times the usual patience.
    fn reach_within(&self, tries: &[Try<'_>], times: u32) -> Vec<bool> {
        static TOKENS: AtomicU32 = AtomicU32::new(1);
        let first = TOKENS.fetch_add(u32::try_from(tries.len()).expect("few"), Ordering::Relaxed);
        let begun = Instant::now();
        let mut asked: Vec<(usize, OwnedFd)> = std::thread::scope(|scope| {
            let places: BTreeSet<&str> = tries.iter().map(|(_, from, ..)| *from).collect();
            let senders: Vec<_> = places
                .into_iter()
                .map(|place| scope.spawn(move || self.send_all(place, (0..).zip(first..).zip(tries))))
                .collect();
            senders.into_iter().flat_map(|sender| sender.join().expect("it comes to an end")).collect()
        });
        let mut reached = vec![false; tries.len()];
        while !asked.is_empty() && begun.elapsed() < PATIENCE * times {
            for index in answered(&mut asked) {
                reached[index] = true;
            }
        }
        std::thread::sleep((FLIGHT * times).saturating_sub(begun.elapsed()));
        for (name, place) in &self.all {
            place.tcp.values().for_each(|listener| while listener.accept().is_ok() {});
            for token in place.arrived() {
                let index = usize::try_from(token.wrapping_sub(first)).expect("a number");
                // Packets of an earlier trial may arrive late and name no current one.
                if let Some((.., to, _, _)) = tries.get(index) {
                    assert_eq!(to, name, "a packet went astray");
                    reached[index] = true;
                }
            }
        }
        reached
    }

    /// Begins the tries that go out from one place. Returns connections that are being made.
    fn send_all<'a>(
        &self,
        place: &str,
        tries: impl Iterator<Item = ((usize, u32), &'a Try<'a>)> + Send,
    ) -> Vec<(usize, OwnedFd)> {
        let namespace = self.all[place].namespace.as_ref().unwrap_or(&self.node);
        inside(namespace, || {
            let mut asked = Vec::new();
            for ((index, token), (family, from, to, protocol, port)) in tries {
                if *from != place {
                    continue;
                }
                let source = SocketAddr::new(self.address(from, *family), 0);
                let target = SocketAddr::new(self.address(to, *family), *port);
                match protocol {
                    Protocol::Tcp => asked.extend(connecting(source, target).map(|socket| (index, socket))),
                    Protocol::Udp => send_udp(source, target, token),
                    Protocol::Sctp => send_sctp(source, target, token),
                }
            }
            asked
        })
    }

    /// Sends packets of UDP on a path, one after the other, for as long as something else is done, and waits so long for each of them to
    /// arrive. Nobody answers, so policies judge every packet.
    pub fn while_sending(
        &self,
        family: Family,
        (from, to): (&str, &str),
        patience: Duration,
        act: impl FnOnce(),
    ) -> Tally {
        let done = AtomicBool::new(false);
        let [source, target] =
            [(from, 0), (to, 80)].map(|(name, port)| SocketAddr::new(self.address(name, family), port));
        let listener = &self.all[to].udp[&80];
        let stream = || {
            self.at(from, || {
                let socket = UdpSocket::bind(source).expect("an address of this place");
                let mut tally = Tally::default();
                while !done.load(Ordering::Relaxed) {
                    tally.tried += 1;
                    socket.send_to(&[0; 4], target).expect("it can be sent");
                    tally.passed += arrived_within(listener, patience);
                }
                tally
            })
        };
        std::thread::scope(|scope| {
            let stream = scope.spawn(stream);
            act();
            done.store(true, Ordering::Relaxed);
            stream.join().expect("a stream ends")
        })
    }

    /// Opens connections on two paths, one after the other, for as long as something else is done. The first path is expected to be open.
    pub fn while_streaming(
        &self,
        family: Family,
        (one, other): ((&str, &str), (&str, &str)),
        act: impl FnOnce(),
    ) -> (Tally, Tally) {
        let done = AtomicBool::new(false);
        let stream = |(from, to_name): (&str, &str), patience: Duration| {
            let to = SocketAddr::new(self.address(to_name, family), 80);
            let listener = &self.all[to_name].tcp[&80];
            let namespace = self.all[from].namespace.as_ref().unwrap_or(&self.node);
            inside(namespace, || {
                let mut tally = Tally::default();
                while !done.load(Ordering::Relaxed) {
                    tally.tried += 1;
                    tally.passed += usize::from(connects(to, listener, patience));
                }
                tally
            })
        };
        std::thread::scope(|scope| {
            let one = scope.spawn(|| stream(one, UNDISTURBED));
            let other = scope.spawn(|| stream(other, PATIENCE));
            act();
            done.store(true, Ordering::Relaxed);
            (one.join().expect("a stream ends"), other.join().expect("a stream ends"))
        })
    }
}

/// Number of packets that have arrived, as soon as there is one, or after so long.
fn arrived_within(listener: &UdpSocket, patience: Duration) -> usize {
    let (begun, mut packet) = (Instant::now(), [0; 16]);
    loop {
        let count = std::iter::from_fn(|| listener.recv_from(&mut packet).ok()).count();
        if count > 0 || begun.elapsed() >= patience {
            return count;
        }
        std::thread::yield_now();
    }
}

fn connect(place: &Place, (_, v4, v6): (&str, &str, &str)) {
    let Place { name, addresses: [own4, own6] } = place;
    run(&format!("ip netns add {name}"));
    let [near, far] = LINK_ADDRESSES;
    run(&format!("ip link add to-{name} address {near} type veth peer name eth0 address {far} netns {name}"));
    for (device, setting) in [(format!("to-{name}"), "accept_dad"), (format!("to-{name}"), "accept_ra")] {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{device}/{setting}"), "0").expect("a setting of a device");
    }
    run(&format!("ip link set to-{name} up"));
    run(&format!("ip addr add {v4}/32 dev to-{name}"));
    run(&format!("ip -6 addr add {v6}/128 dev to-{name} nodad"));
    run(&format!("ip route add {own4}/32 dev to-{name}"));
    run(&format!("ip -6 route add {own6}/128 dev to-{name}"));
    let within = |words: String| run(&format!("ip -n {name} {words}"));
    within("link set lo up".into());
    within("link set eth0 up".into());
    within(format!("addr add {own4}/32 dev eth0"));
    within(format!("-6 addr add {own6}/128 dev eth0 nodad"));
    within(format!("route add {v4}/32 dev eth0"));
    within(format!("route add default via {v4} dev eth0 src {own4}"));
    within(format!("-6 route add {v6}/128 dev eth0"));
    within(format!("-6 route add default via {v6} dev eth0 src {own6}"));
    // Whom an address belongs to is said, not asked: all namespaces of a machine share one small table of answers.
    for (own, gateway) in [(own4.to_string(), v4), (own6.to_string(), v6)] {
        run(&format!("ip neigh add {own} lladdr {far} dev to-{name} nud permanent"));
        within(format!("neigh add {gateway} lladdr {near} dev eth0 nud permanent"));
    }
}

type Listeners = (BTreeMap<u16, TcpListener>, BTreeMap<u16, UdpSocket>, [OwnedFd; 2]);

fn listen() -> Listeners {
    let tcp = PORTS.map(|port| {
        let listener = TcpListener::bind(format!("[::]:{port}")).expect("the port is free");
        listener.set_nonblocking(true).expect("a listener need not wait");
        (port, listener)
    });
    let udp = PORTS.map(|port| {
        let socket = UdpSocket::bind(format!("[::]:{port}")).expect("the port is free");
        socket.set_nonblocking(true).expect("a socket need not wait");
        (port, socket)
    });
    (tcp.into(), udp.into(), [AddressFamily::INET, AddressFamily::INET6].map(raw_sctp))
}

impl Served {
    /// The tokens of the packets that have come.
    fn arrived(&self) -> Vec<u32> {
        let mut tokens = Vec::new();
        let mut packet = [0; 256];
        for socket in self.udp.values() {
            while let Ok((length, _)) = socket.recv_from(&mut packet) {
                tokens.extend(packet[..length].first_chunk().map(|token| u32::from_be_bytes(*token)));
            }
        }
        for (socket, header) in self.sctp.iter().zip([20, 0]) {
            while let Ok((_, length)) = recv(socket, &mut packet[..], RecvFlags::empty()) {
                // Behind the common header (12 bytes) and that of the chunk (4): the initiate tag.
                let token = packet[..length].get(header + 16..header + 20).and_then(<[u8]>::first_chunk);
                tokens.extend(token.map(|token| u32::from_be_bytes(*token)));
            }
        }
        tokens
    }
}

/// Those of the connections that are made by now; those that failed are dropped.
fn answered(asked: &mut Vec<(usize, OwnedFd)>) -> Vec<usize> {
    let mut waiting: Vec<PollFd<'_>> = asked.iter().map(|(_, socket)| PollFd::new(socket, PollFlags::OUT)).collect();
    let pause = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
    poll(&mut waiting, Some(&pause)).expect("sockets can be waited for");
    let told: Vec<bool> = waiting.iter().map(|fd| !fd.revents().is_empty()).collect();
    let mut made = Vec::new();
    let mut told = told.into_iter();
    asked.retain(|(index, socket)| {
        if told.next() != Some(true) {
            return true;
        }
        match sockopt::socket_error(socket).expect("a socket has an outcome") {
            Ok(()) => made.push(*index),
            Err(error) => assert!(REFUSALS.contains(&error), "{error}"),
        }
        false
    });
    made
}

const REFUSALS: [Errno; 4] = [Errno::CONNREFUSED, Errno::HOSTUNREACH, Errno::TIMEDOUT, Errno::ACCESS];
/// How long packets without an answer may be on their way.
const FLIGHT: Duration = Duration::from_millis(20);

/// A connection that is asked for; `None` where it is refused at once. It ends by a reset, so nothing of it stays.
pub fn connecting(source: SocketAddr, target: SocketAddr) -> Option<OwnedFd> {
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK, None).expect("a socket");
    sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).expect("a socket can be told so");
    bind(&socket, &source).expect("an address of this place");
    match rustix::net::connect(&socket, &target) {
        Ok(()) | Err(Errno::INPROGRESS) => Some(socket),
        Err(error) => {
            assert!(REFUSALS.contains(&error), "{target}: {error}");
            None
        }
    }
}

fn send_udp(source: SocketAddr, target: SocketAddr, token: u32) {
    let socket = UdpSocket::bind(source).expect("an address of this place");
    socket.send_to(&token.to_be_bytes(), target).expect("it can be sent");
}

fn raw_sctp(family: AddressFamily) -> OwnedFd {
    socket_with(family, SocketType::RAW, SocketFlags::NONBLOCK, Some(ipproto::SCTP)).expect("a raw socket needs root")
}

/// The first packet of an association (RFC 9260, INIT), with the token as its initiate tag.
fn send_sctp(source: SocketAddr, mut target: SocketAddr, token: u32) {
    let socket = raw_sctp(if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 });
    bind(&socket, &source).expect("an address of this place");
    let own_port = 32768 + (token % 28_000) as u16;
    let mut packet = Vec::new();
    packet.extend([own_port.to_be_bytes(), target.port().to_be_bytes()].concat());
    packet.extend([0; 8]);
    packet.extend([1, 0, 0, 20]);
    packet.extend(token.to_be_bytes());
    packet.extend([0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let sum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&sum);
    target.set_port(0);
    sendto(&socket, &packet, SendFlags::empty(), &target).expect("it can be sent");
}

fn raw_icmp(address: IpAddr) -> OwnedFd {
    let (family, protocol) = match address {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
    };
    let socket = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol)).expect("root may do so");
    bind(&socket, &SocketAddr::new(address, 0)).expect("the address is here");
    socket
}

/// RFC 1071.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !(((folded & 0xffff) + (folded >> 16)) as u16)
}

fn crc32c(bytes: &[u8]) -> u32 {
    let round = |sum: u32| if sum & 1 == 1 { (sum >> 1) ^ 0x82F6_3B78 } else { sum >> 1 };
    !bytes.iter().fold(!0, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), |sum, _| round(sum)))
}

/// Does something in another network namespace.
pub fn inside<R: Send>(namespace: &File, act: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            use std::os::fd::AsFd;
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may move");
            act()
        });
        thread.join().expect("it comes to an end")
    })
}

/// Whether a connection is made. The kernel does that, as long as somebody takes those that are.
fn connects(to: SocketAddr, listener: &TcpListener, patience: Duration) -> bool {
    let connected = TcpStream::connect_timeout(&to, patience);
    while listener.accept().is_ok() {}
    match connected {
        Ok(_) => true,
        Err(error) => {
            let refused = [ErrorKind::ConnectionRefused, ErrorKind::TimedOut, ErrorKind::HostUnreachable];
            assert!(refused.contains(&error.kind()), "{to}: {error}");
            false
        }
    }
}
