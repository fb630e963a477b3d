//! Hosts and pods around a node, as network namespaces with a device each, and connections between them.

#![allow(clippy::indexing_slicing, reason = "a test that panics has failed, which is how a test says so")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

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
}

/// How a stream of new connections fared.
#[derive(Clone, Copy, Default, Debug)]
pub struct Tally {
    pub tried: usize,
    pub passed: usize,
}

const PORTS: [u16; 2] = [80, 81];
/// Longer than any packet needs here: a device hands it on at once. A refusal by IPv6 that comes as fast, while the
/// connection is still being asked for, is not heard by TCP, so that what is refused is waited for.
const PATIENCE: Duration = Duration::from_millis(120);

impl Place {
    pub fn new(name: &str, v4: &str, v6: &str) -> Place {
        Place { name: name.to_owned(), addresses: [v4, v6].map(|text| text.parse().expect("an address")) }
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
            let (tcp, udp) = inside(&namespace, listen);
            let served = Served { addresses: place.addresses, namespace: Some(namespace), tcp, udp };
            all.insert(place.name, served);
        }
        let (name, v4, v6) = gateway;
        let (tcp, udp) = listen();
        let addresses = [v4, v6].map(|text| text.parse().expect("an address"));
        all.insert(name.to_owned(), Served { addresses, namespace: None, tcp, udp });
        Places { node, all }
    }

    pub fn address(&self, name: &str, family: Family) -> IpAddr {
        let [v4, v6] = self.all[name].addresses;
        if family == Family::V4 { v4 } else { v6 }
    }

    /// Whether a new connection, or a packet of UDP, arrives.
    pub fn reaches(&self, family: Family, (from, to): (&str, &str), protocol: Protocol, port: u16) -> bool {
        self.reach_from(family, from, &[(to, protocol, port)])[0]
    }

    /// The same for many from one place, one after the other: to go there takes longer than to try.
    pub fn reach_from(&self, family: Family, from: &str, tries: &[(&str, Protocol, u16)]) -> Vec<bool> {
        let source = SocketAddr::new(self.address(from, family), 0);
        let namespace = self.all[from].namespace.as_ref().unwrap_or(&self.node);
        inside(namespace, || {
            let reaches = |(to, protocol, port): &(&str, Protocol, u16)| {
                let target = &self.all[*to];
                let to = SocketAddr::new(self.address(to, family), *port);
                match protocol {
                    Protocol::Tcp => connects(to, &target.tcp[port]),
                    Protocol::Udp => {
                        send(source, to);
                        arrives(&target.udp[port])
                    }
                    Protocol::Sctp => panic!("no listener speaks SCTP"),
                }
            };
            tries.iter().map(reaches).collect()
        })
    }

    /// Opens connections on two paths, one after the other, for as long as something else is done.
    pub fn while_streaming(&self, one: (&str, &str), other: (&str, &str), act: impl FnOnce()) -> (Tally, Tally) {
        let done = AtomicBool::new(false);
        let stream = |(from, to_name): (&str, &str)| {
            let to = SocketAddr::new(self.address(to_name, Family::V4), 80);
            let listener = &self.all[to_name].tcp[&80];
            let namespace = self.all[from].namespace.as_ref().unwrap_or(&self.node);
            inside(namespace, || {
                let mut tally = Tally::default();
                while !done.load(Ordering::Relaxed) {
                    tally.tried += 1;
                    tally.passed += usize::from(connects(to, listener));
                }
                tally
            })
        };
        std::thread::scope(|scope| {
            let one = scope.spawn(|| stream(one));
            let other = scope.spawn(|| stream(other));
            act();
            done.store(true, Ordering::Relaxed);
            (one.join().expect("a stream ends"), other.join().expect("a stream ends"))
        })
    }
}

fn connect(place: &Place, (_, v4, v6): (&str, &str, &str)) {
    let Place { name, addresses: [own4, own6] } = place;
    run(&format!("ip netns add {name}"));
    run(&format!("ip link add to-{name} type veth peer name eth0 netns {name}"));
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
}

fn listen() -> (BTreeMap<u16, TcpListener>, BTreeMap<u16, UdpSocket>) {
    let tcp = PORTS.map(|port| {
        let listener = TcpListener::bind(format!("[::]:{port}")).expect("the port is free");
        listener.set_nonblocking(true).expect("a listener need not wait");
        (port, listener)
    });
    let udp = PORTS.map(|port| (port, UdpSocket::bind(format!("[::]:{port}")).expect("the port is free")));
    (tcp.into(), udp.into())
}

/// Does something in another network namespace.
fn inside<R: Send>(namespace: &File, act: impl FnOnce() -> R + Send) -> R {
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
fn connects(to: SocketAddr, listener: &TcpListener) -> bool {
    let connected = TcpStream::connect_timeout(&to, PATIENCE);
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

fn send(from: SocketAddr, to: SocketAddr) {
    let socket = UdpSocket::bind(from).expect("an address of this place");
    socket.send_to(b"a packet", to).expect("it can be sent");
}

/// Whether a packet has come. Nobody waits long: between namespaces a packet arrives while it is being sent.
fn arrives(listener: &UdpSocket) -> bool {
    listener.set_read_timeout(Some(Duration::from_millis(15))).expect("a timeout");
    let mut packet = [0; 64];
    match listener.recv(&mut packet) {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::Interrupted => arrives(listener),
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
            false
        }
    }
}
