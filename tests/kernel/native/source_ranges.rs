//! Source ranges with real packets, in both backends: to an address of the host, where IPVS would stand behind these rules.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt};
use sluice::config::Backend;
use sluice::kernel::Name;
use sluice::kernel::ipset::{ElementKey, Elements, Entry, SetName, SetSpec, Sets};
use sluice::kernel::iptables::{Families, Flavour, Leftovers, Ownership, Piece, Programs, Rules, Table, Tables};
use sluice::kernel::ipvs::ServiceKey;
use sluice::kernel::nftables::{Content, Object, OwnTable};
use sluice::net::{Family, PerFamily, Protocol};
use sluice::proxy::clients::{Clients, Restrictions};
use sluice::proxy::guard;
use sluice::proxy::names::{CHAIN_SOURCES, Set, TABLE};
use sluice::proxy::source_ranges::serve::reader;
use sluice::proxy::source_ranges::{in_table, rules};
use sluice::reconcile::{Growth, Mirror, Reflection, Target};

use super::moment;
use super::places::inside;
use crate::namespace::{in_new, own_run, run};

const PORT: u16 = 8080;
const OTHER_PORT: u16 = 8081;
const PATIENCE: Duration = Duration::from_millis(400);

/// A host with one service address of each family, a client in its source ranges and one outside of them.
struct Scene {
    inside: File,
    outside: File,
}

fn service(family: Family) -> IpAddr {
    if family == Family::V4 { "198.51.100.20" } else { "2001:db8:51::20" }.parse().expect("an address")
}

fn range(family: Family) -> IpNet {
    if family == Family::V4 { "203.0.113.0/24" } else { "2001:db8:113::/64" }.parse().expect("a range")
}

impl Scene {
    fn new() -> Scene {
        own_run();
        std::fs::create_dir_all("/run/netns").expect("a directory of names");
        for family in Family::BOTH {
            let bits = if family == Family::V6 { "/128 nodad" } else { "/32" };
            run(&format!("ip addr add {}{bits} dev lo", service(family)));
        }
        let [inside, outside] = [113, 114].map(|net| {
            let name = format!("client{net}");
            run(&format!("ip netns add {name}"));
            run(&format!("ip link add to-{net} type veth peer name eth0 netns {name}"));
            for (prefix, bits) in [(format!("203.0.{net}"), "24"), (format!("2001:db8:{net}:"), "64 nodad")] {
                let separator = if prefix.contains(':') { ":" } else { "." };
                run(&format!("ip addr add {prefix}{separator}1/{bits} dev to-{net}"));
                run(&format!("ip -n {name} addr add {prefix}{separator}10/{bits} dev eth0"));
            }
            run(&format!("ip link set to-{net} up"));
            run(&format!("ip -n {name} link set eth0 up"));
            run(&format!("ip -n {name} route add 198.51.100.20 via 203.0.{net}.1"));
            run(&format!("ip -n {name} route add 2001:db8:51::20 via 2001:db8:{net}::1"));
            File::open(format!("/run/netns/{name}")).expect("the new namespace")
        });
        Scene { inside, outside }
    }

    /// Which of the two clients, and the host itself, get a connection through, and which of them a datagram.
    fn reach_once(&self, family: Family, port: u16, turn: u8) -> [[bool; 3]; 2] {
        let to = SocketAddr::new(service(family), port);
        let datagrams = bound(|| UdpSocket::bind(to));
        datagrams.set_read_timeout(Some(PATIENCE)).expect("a time");
        let ask = |who: u8| {
            let connects = TcpStream::connect_timeout(&to, PATIENCE).is_ok();
            let any = if family == Family::V4 { "0.0.0.0:0" } else { "[::]:0" };
            let _ = UdpSocket::bind(any).and_then(|socket| socket.send_to(&[turn, who], to));
            connects
        };
        let answers = [inside(&self.inside, || ask(0)), inside(&self.outside, || ask(1)), ask(2)];
        let (mut arrived, mut bytes) = ([false; 3], [0; 4]);
        for _ in 0..3 {
            let is_heard = datagrams.recv_from(&mut bytes).is_ok();
            let [its_turn, who, ..] = bytes;
            if let Some(arrived) = arrived.get_mut(usize::from(who)).filter(|_| is_heard && its_turn == turn) {
                *arrived = true;
            }
        }
        [answers, arrived]
    }

    /// Whether those reach the port who may, and no others. A busy machine may be slow, so who may is given several tries.
    fn is_open_for(&self, family: Family, port: u16, expected: [bool; 3]) -> bool {
        for turn in 0..10 {
            let found = self.reach_once(family, port, turn);
            if found == [expected; 2] {
                return true;
            }
            if found.iter().any(|way| way.iter().zip(expected).any(|(open, may)| *open && !may)) {
                return false;
            }
        }
        false
    }
}

/// Binds a socket to a port of which the former socket is closed. A program that another test starts at this moment has a copy of that until it runs.
fn bound<S>(bind: impl Fn() -> io::Result<S>) -> S {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        match bind() {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(20));
            }
            socket => break socket.expect("the port is free"),
        }
    }
}

/// What the kernel holds of either backend.
enum Held {
    Iptables {
        sets: Box<Mirror<Sets>>,
        elements: Box<Mirror<Elements>>,
        rules: Box<Mirror<Tables>>,
        programs: Families,
    },
    Nftables(Box<Mirror<OwnTable>>),
}

impl Held {
    fn all() -> Vec<fn() -> Held> {
        vec![|| Held::iptables(Flavour::Legacy), || Held::iptables(Flavour::NfTables), Held::nftables]
    }

    fn nftables() -> Held {
        Held::Nftables(Box::new(Mirror::new(OwnTable::open(TABLE).expect("the kernel can be reached"))))
    }

    fn iptables(flavour: Flavour) -> Held {
        let names = || -> Vec<Name> {
            let all = Family::BOTH.into_iter().flat_map(|family| Set::ALL.map(|set| set.name(family)));
            all.map(|name| Name::Exact((*name.0).into())).collect()
        };
        let chains = vec![(Table::Mangle, Name::Exact(CHAIN_SOURCES.into()))];
        let ours = Ownership { chains, leftovers: Leftovers::Proxy };
        let programs = PerFamily::from_fn(|_| Some(Programs { flavour, plain: false }));
        Held::Iptables {
            sets: Box::new(Mirror::new(
                Sets::open(names(), SetName("sluice-test-temporary".into())).expect("a socket"),
            )),
            elements: Box::new(Mirror::new(Elements::open(names()).expect("a socket"))),
            rules: Box::new(Mirror::new(Tables::new(programs, ours))),
            programs,
        }
    }

    /// Brings the kernel to these restrictions.
    fn settle(&mut self, restrictions: &Restrictions, elements: &[(Set, Entry)]) {
        let shape = restrictions.shape();
        match self {
            Held::Nftables(table) => {
                let mut wanted: BTreeMap<Object, Content> = in_table(&shape, &Family::BOTH);
                wanted.extend(Family::BOTH.map(|family| guard::table_set(Set::LocalAddresses, family)));
                wanted.extend(elements.iter().map(|(set, entry)| (set.object(entry), Content::Element)));
                keep(table, &wanted);
            }
            Held::Iptables { sets, elements: held, rules: of_kernel, .. } => {
                let used = || Family::BOTH.into_iter().filter(|family| *shape.ranged.of(*family));
                let those = [Set::Restricted, Set::AllowedSources, Set::LocalAddresses];
                let specs: BTreeMap<SetName, SetSpec> = used()
                    .flat_map(|family| those.map(|set| (set.name(family), guard::set_spec(set, family, 1))))
                    .collect();
                let pieces: BTreeMap<Piece, Rules> = used().flat_map(rules).collect();
                let entries: BTreeMap<ElementKey, ()> =
                    elements.iter().map(|(set, entry)| (set.element(entry.clone()), ())).collect();
                sets.mark_all();
                sets.grow(&specs, Growth::Full, moment());
                of_kernel.mark_all();
                of_kernel.grow(&pieces, Growth::Full, moment());
                keep(held, &entries);
                keep(of_kernel, &pieces);
                keep(sets, &specs);
            }
        }
    }
}

fn keep<T: Target>(mirror: &mut Mirror<T>, wanted: &BTreeMap<T::Key, T::Value>) {
    mirror.mark_all();
    mirror.grow(wanted, Growth::Full, moment());
    mirror.shrink(wanted, moment());
    assert!(mirror.is_settled(), "{:?}", mirror.trouble());
}

/// Sets the ranges of the service of each family.
fn restrict(held: &mut Held, restrictions: &mut Restrictions, elements: &mut Vec<(Set, Entry)>, ranges: Option<bool>) {
    for family in Family::BOTH {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let key = ServiceKey::Address { address: service(family), protocol, port: PORT };
            let sources = ranges.map(|given| if given { vec![range(family)] } else { Vec::new() }.into());
            for (set, entry, is_there) in restrictions.set(key, Clients { sources, inside_only: false }) {
                match is_there {
                    true => elements.push((set, entry)),
                    false => elements.retain(|(its, other)| (*its, other) != (set, &entry)),
                }
            }
        }
    }
    held.settle(restrictions, elements);
}

#[test]
fn clients_outside_of_source_ranges_are_dropped_in_every_backend_and_connections_end_with_their_range() {
    for backend in Held::all() {
        in_new(|| {
            let scene = Scene::new();
            let listening = |family, port| bound(|| TcpListener::bind((service(family), port)));
            let listeners = Family::BOTH.map(|family| (family, listening(family, PORT), listening(family, OTHER_PORT)));
            let (mut restrictions, mut elements) = (Restrictions::default(), Vec::new());
            let mut held = backend();
            for (family, ..) in &listeners {
                // New links may take a moment.
                let all_reach = scene.is_open_for(*family, PORT, [true; 3]);
                assert!(all_reach, "{family}: nothing is restricted");
            }
            restrict(&mut held, &mut restrictions, &mut elements, Some(true));
            let mut again = backend();
            again.settle(&restrictions, &elements);
            assert_eq!(again.steps(), 0, "a second process finds everything as it is");
            let mut connections = Vec::new();
            for (family, listener, _) in &listeners {
                assert!(scene.is_open_for(*family, PORT, [true, false, false]), "{family}");
                let dropped = held.dropped();
                assert!(
                    *dropped.of(*family) >= 4,
                    "{family}: two packets each of the client outside and of the host: {dropped:?}"
                );
                assert!(scene.is_open_for(*family, OTHER_PORT, [true; 3]), "{family}: another port of the address");
                // Connections of the other family that were open before are closed at this time, and their last packets are dropped.
                assert_eq!(held.dropped().of(*family), dropped.of(*family), "{family}: who may come is not counted");
                let to = SocketAddr::new(service(*family), PORT);
                let client = inside(&scene.inside, || TcpStream::connect(to).expect("it is in the range"));
                let served = std::iter::from_fn(|| listener.accept().ok())
                    .map(|(stream, _)| stream)
                    .find(|stream| stream.peer_addr().ok() == client.local_addr().ok());
                connections.push((client, served.expect("it was accepted")));
            }
            for (client, served) in &mut connections {
                served.set_read_timeout(Some(Duration::from_secs(10))).expect("a time");
                client.write_all(b"x").expect("it is open");
                assert_eq!(served.read(&mut [0; 4]).ok(), Some(1));
                served.set_read_timeout(Some(PATIENCE)).expect("a time");
            }
            restrict(&mut held, &mut restrictions, &mut elements, Some(false));
            for (client, served) in &mut connections {
                client.write_all(b"x").expect("the client does not know yet");
                assert!(served.read(&mut [0; 4]).is_err(), "the range is gone, and its connection goes on");
            }
            for (family, ..) in &listeners {
                assert!(scene.is_open_for(*family, PORT, [false; 3]), "{family}: no range is left");
            }
            restrict(&mut held, &mut restrictions, &mut elements, None);
            for (family, ..) in &listeners {
                assert!(scene.is_open_for(*family, PORT, [true; 3]), "{family}: nothing is restricted any more");
            }
        });
    }
}

/// Whether somebody outside of the ranges answers a connection, and a datagram, that the host sends from the service's address and port.
fn host_is_answered(scene: &Scene, family: Family) -> [bool; 2] {
    let (near, any) = (SocketAddr::new(service(family), PORT), if family == Family::V4 { "0.0.0.0" } else { "::" });
    let far: IpAddr =
        if family == Family::V4 { "203.0.114.10" } else { "2001:db8:114::10" }.parse().expect("an address");
    let far = SocketAddr::new(far, OTHER_PORT);
    let here = SocketAddr::new(any.parse().expect("an address"), OTHER_PORT);
    let (_listener, echo) =
        inside(&scene.outside, || (bound(|| TcpListener::bind(here)), bound(|| UdpSocket::bind(here))));
    let datagrams = bound(|| UdpSocket::bind(near));
    datagrams.set_read_timeout(Some(PATIENCE)).expect("a time");
    echo.set_read_timeout(Some(PATIENCE)).expect("a time");
    // New links may take a moment, and so may a busy machine.
    let arrives = (0..25).any(|_| {
        datagrams.send_to(b"?", far).expect("there is a route");
        echo.recv_from(&mut [0; 4]).is_ok_and(|(_, asked)| echo.send_to(b"!", asked).is_ok())
    });
    assert!(arrives, "{family}: what the host sends is not restricted");
    let hears = datagrams.recv_from(&mut [0; 4]).is_ok();
    let domain = if family == Family::V4 { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(domain, SocketType::STREAM, SocketFlags::CLOEXEC, None).expect("a socket");
    sockopt::set_socket_reuseaddr(&socket, true).expect("an option");
    bound(|| Ok(bind(&socket, &near)?));
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(PATIENCE)).expect("a time");
    [connect(&socket, &far).is_ok(), hears]
}

/// A load balancer address that is the host's own: what the host itself asks from a port of the Service is answered. An address that is not its own is no end of its
/// connections, so nobody who is not in the ranges may say that he answers.
#[test]
fn answers_to_the_host_itself_pass_where_the_address_is_its_own() {
    for backend in Held::all() {
        in_new(|| {
            let scene = Scene::new();
            let (mut restrictions, mut elements) = (Restrictions::default(), Vec::new());
            let mut held = backend();
            restrict(&mut held, &mut restrictions, &mut elements, Some(true));
            for family in Family::BOTH {
                assert_eq!(
                    host_is_answered(&scene, family),
                    [false; 2],
                    "{family}: the address counts as a Service's alone"
                );
            }
            elements.extend(Family::BOTH.map(|family| (Set::LocalAddresses, Entry::Ip(service(family)))));
            held.settle(&restrictions, &elements);
            for family in Family::BOTH {
                assert_eq!(host_is_answered(&scene, family), [true; 2], "{family}: the address is the host's own");
                let _listener = bound(|| TcpListener::bind((service(family), PORT)));
                assert!(scene.is_open_for(family, PORT, [true, false, false]), "{family}: and others stay out");
            }
            let mut again = backend();
            again.settle(&restrictions, &elements);
            assert_eq!(again.steps(), 0, "a second process finds everything as it is");
        });
    }
}

impl Held {
    /// The packets that source ranges have dropped, as the agent reads them.
    fn dropped(&self) -> PerFamily<u64> {
        let (backend, programs) = match self {
            Held::Iptables { programs, .. } => (Backend::Iptables, *programs),
            Held::Nftables(_) => (Backend::Nftables, PerFamily::default()),
        };
        let mut read = reader(backend, Arc::new(OnceLock::from(programs)));
        let counters = read(PerFamily { v4: true, v6: true });
        assert_eq!(counters.error.map(|error| error.to_string()), None);
        PerFamily::from_fn(|family| counters.packets.of(family).unwrap_or_default())
    }

    fn steps(&self) -> u64 {
        match self {
            Held::Iptables { sets, elements, rules, .. } => {
                sets.steps_done() + elements.steps_done() + rules.steps_done()
            }
            Held::Nftables(table) => table.steps_done(),
        }
    }
}
