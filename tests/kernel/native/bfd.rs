//! BFD beside others who send to its ports: a neighbour's packets find their place whatever a pod sends, also when the way to the neighbour changes.
//!
//! `node` has two links, `eth0` and `eth1`, to `router`, and `pod0` to `pod`; the neighbour is 192.0.2.2 and 2001:db8::2 of `router`.
#![expect(unsafe_code, reason = "rustix does not know UDP_SEGMENT")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sluice::bfd::driver::{self, Handle, Report};
use sluice::bfd::sessions::Ignored;
use sluice::bfd::{Key, Path, Request, Settings, State, Status, Wanted};
use sluice::kernel::udp::{self, Batch, Expected};
use tokio::sync::mpsc::Receiver;

use super::places;
use crate::namespace::{attempt, in_new, path, run, shell};

/// More than the queue of a socket holds.
const MANY: usize = 8000;
/// Packets of the neighbour among them.
const NEIGHBOURS: usize = 400;
/// Time between two packets of a session.
const TIME: Duration = Duration::from_millis(300);

/// Namespaces `router` and `pod` beside the node's, in a directory of names of this test alone.
fn with_others(name: &str, test: impl FnOnce(&Others) + Send) {
    in_new(|| {
        let others = Others { names: ["router", "pod"].map(|one| format!("bfd-{name}-{one}")) };
        std::fs::create_dir_all("/run/netns").expect("a directory of names");
        let [router, pod] = &others.names;
        run(&format!("ip netns add {router}"));
        run(&format!("ip netns add {pod}"));
        for (here, there, namespace) in [("eth0", "eth0", router), ("eth1", "eth1", router), ("pod0", "eth0", pod)] {
            run(&format!("ip link add {here} type veth peer name {there} netns {namespace}"));
        }
        others.set_up();
        run("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv6.conf.all.accept_dad=0");
        for (pod_side, node_side) in [("10.244.1.2/32", "169.254.1.1/32"), ("fd00:10:244:1::2/128", "fe80::1/64")] {
            run(&format!("ip -n {pod} addr add {pod_side} dev eth0 nodad"));
            run(&format!("ip addr add {node_side} dev pod0 nodad"));
        }
        run("ip route add 10.244.1.2/32 dev pod0");
        run("ip -6 route add fd00:10:244:1::2/128 dev pod0");
        run(&format!("ip -n {pod} route add default dev eth0"));
        run(&format!("ip -n {pod} -6 route add default via fe80::1 dev eth0"));
        test(&others);
    });
}

struct Others {
    names: [String; 2],
}

impl Drop for Others {
    fn drop(&mut self) {
        self.names.iter().for_each(|name| drop(attempt(&format!("ip netns del {name}"))));
    }
}

impl Others {
    /// Addresses and links, also where the latter have been made anew.
    fn set_up(&self) {
        let [router, pod] = &self.names;
        let (ours, theirs) = ("192.0.2.1/24 2001:db8::1/64", "192.0.2.2/24 2001:db8::2/64");
        for (addresses, namespace) in [(ours, None), (theirs, Some(router))] {
            let ip = namespace.map_or("ip".to_owned(), |name| format!("ip -n {name}"));
            for address in addresses.split(' ') {
                run(&format!("{ip} addr replace {address} dev eth0 nodad"));
            }
            run(&format!("{ip} link set lo up"));
            ["eth0", "eth1"].iter().for_each(|link| drop(run(&format!("{ip} link set {link} up"))));
        }
        run("ip link set pod0 up");
        run(&format!("ip -n {pod} link set eth0 up"));
    }

    /// Does something in one of the namespaces, on a thread that ends there.
    fn inside<T: Send>(&self, name: &str, act: impl FnOnce() -> T + Send) -> T {
        let full = self.names.iter().find(|one| one.ends_with(name)).expect("it is one of them");
        let namespace = File::open(format!("/run/netns/{full}")).expect("it is there");
        places::inside(&namespace, act)
    }
}

fn addresses(is_v4: bool) -> (IpAddr, IpAddr) {
    let (us, them) = if is_v4 { ("192.0.2.1", "192.0.2.2") } else { ("2001:db8::1", "2001:db8::2") };
    (us.parse().expect("an address"), them.parse().expect("an address"))
}

fn index(link: &str) -> u32 {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev_mcast").expect("links");
    let line = text.lines().find(|line| line.split_whitespace().nth(1) == Some(link)).expect("it is there");
    line.split_whitespace().next().and_then(|index| index.parse().ok()).expect("a number")
}

/// What waits for the address of the receiver's link fills the queue of the sender.
fn send(socket: &UdpSocket, byte: u8) {
    let until = Instant::now() + Duration::from_secs(10);
    while let Err(error) = socket.send(&[byte; 24]) {
        assert!(error.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < until, "it is sent: {error}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A socket there. The last one is still open for a moment where a program was being started as it was closed.
fn listening(on: SocketAddr, is_single_hop: bool) -> UdpSocket {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        match udp::receiving(on, is_single_hop) {
            Err(error) if error.is_port_taken() && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(20));
            }
            other => return other.expect("a socket"),
        }
    }
}

/// Sends datagrams of a pod and, among them, those of the neighbour; returns how many of either a socket has received that nobody reads meanwhile, and how many the kernel has dropped.
fn received(others: &Others, path: Path, is_v4: bool, is_filtered: bool) -> (usize, usize, usize) {
    let (us, them) = addresses(is_v4);
    let on = SocketAddr::new(us, path.port());
    let socket = listening(on, path == Path::SingleHop);
    if is_filtered {
        let links = (path == Path::SingleHop).then(|| BTreeSet::from([index("eth0")]));
        udp::expect(&socket, &Expected { sources: BTreeSet::from([them]), links, least_ttl: 0 })
            .expect("the kernel takes it");
    }
    let pod: IpAddr = if is_v4 { "10.244.1.2" } else { "fd00:10:244:1::2" }.parse().expect("an address");
    let sender =
        |name, from| others.inside(name, move || udp::sending(SocketAddr::new(from, 0), on).expect("a socket"));
    let (neighbour, flood) = (sender("router", them), sender("pod", pod));
    for number in 0..MANY {
        send(&flood, 7);
        if number % (MANY / NEIGHBOURS) == 0 {
            send(&neighbour, 1);
        }
    }
    // What is sent over a pair of devices arrives on its way back from the system call, or later, where the processor has much to do.
    let until = Instant::now() + Duration::from_secs(20);
    let mut before = None;
    loop {
        std::thread::sleep(Duration::from_millis(300));
        let now = udp::dropped(&socket).expect("it tells") as usize;
        let has_all = if is_filtered { now >= MANY } else { before == Some(now) };
        if has_all || Instant::now() >= until {
            break;
        }
        before = Some(now);
    }
    let (mut batch, mut heard) = (Batch::default(), (0, 0, 0));
    loop {
        let more = batch.read(&socket);
        let known = batch.datagrams().filter(|one| one.from == them).count();
        heard = (heard.0 + known, heard.1 + batch.count() - known, 0);
        if !more {
            heard.2 = udp::dropped(&socket).expect("it tells") as usize;
            return heard;
        }
    }
}

#[test]
fn datagrams_of_a_pod_take_no_place_from_those_of_a_neighbour() {
    with_others("queue", |others| {
        for path in [Path::SingleHop, Path::Multihop] {
            for is_v4 in [true, false] {
                let (known, foreign, dropped) = received(others, path, is_v4, true);
                assert_eq!((known, foreign, dropped), (NEIGHBOURS, 0, MANY), "{path:?} {is_v4}");
                let (known, foreign, dropped) = received(others, path, is_v4, false);
                eprintln!("{path:?}, without a filter: {known} of {NEIGHBOURS} and {foreign} of {MANY} received");
                assert!(known < NEIGHBOURS && dropped > 0, "the pod sends enough: {known} {dropped}");
            }
        }
    });
}

#[test]
fn a_datagram_that_passed_more_routers_than_it_may_have_does_not_reach_the_socket_and_of_others_the_ttl_is_told() {
    in_new(|| {
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let socket = udp::receiving(local.parse().expect("an address"), false).expect("a socket");
            let to = socket.local_addr().expect("it has one");
            udp::tell_ttl(&socket).expect("the kernel does");
            let sources = BTreeSet::from([to.ip()]);
            udp::expect(&socket, &Expected { sources, links: None, least_ttl: 254 }).expect("the kernel takes it");
            let sender = udp::sending(SocketAddr::new(to.ip(), 0), to).expect("a socket");
            for ttl in [255, 253, 64, 254] {
                match to {
                    SocketAddr::V4(_) => rustix::net::sockopt::set_ip_ttl(&sender, ttl),
                    SocketAddr::V6(_) => rustix::net::sockopt::set_ipv6_unicast_hops(&sender, Some(ttl as u8)),
                }
                .expect("any TTL will do");
                sender.send(b"?").expect("it is sent");
            }
            let mut batch = Batch::default();
            batch.read(&socket);
            let heard: Vec<Option<u8>> = batch.datagrams().map(|one| one.ttl).collect();
            assert_eq!((heard, udp::dropped(&socket)), (vec![Some(255), Some(254)], Ok(2)), "{local}");
        }
    });
}

#[test]
fn as_many_sources_as_fit_can_be_replaced_by_others_with_the_space_of_an_old_kernel() {
    in_new(|| {
        // A namespace of kernels before 6.9 has no such setting: that of the host holds, which is not ours to change.
        let (is_set, ..) = attempt("sysctl -qw net.core.optmem_max=20480");
        eprintln!("optmem_max is that of an old kernel: {is_set}");
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let socket = udp::receiving(local.parse().expect("an address"), true).expect("a socket");
            let to = socket.local_addr().expect("it has one");
            let source = |number: u32| match to {
                SocketAddr::V4(_) => IpAddr::from((0xc612_0000 + number).to_be_bytes()),
                SocketAddr::V6(_) => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, number as u16]),
            };
            for round in 0..3 {
                let others: BTreeSet<IpAddr> = (round..round + udp::MOST as u32).map(source).collect();
                let links = Some(BTreeSet::from([1]));
                udp::expect(&socket, &Expected { sources: others, links, least_ttl: 0 }).expect("there is space");
                let sender = udp::sending(SocketAddr::new(to.ip(), 0), to).expect("a socket");
                sender.send(b"?").expect("it is sent");
                assert_eq!(udp::dropped(&socket).expect("it tells"), round + 1, "it is nobody's");
            }
        }
    });
}

/// BFD of ours, with what it has told.
struct Watcher {
    handle: Option<Handle>,
    reports: Receiver<Report>,
    told: BTreeMap<Key, Status>,
    unsent: Vec<(IpAddr, bool)>,
    dropped: u64,
}

impl Watcher {
    fn start((handle, reports): (Handle, Receiver<Report>)) -> Watcher {
        Watcher { handle: Some(handle), reports, told: BTreeMap::new(), unsent: Vec::new(), dropped: 0 }
    }

    fn want(&self, keys: &[Key], time: Duration) {
        let settings = Settings { multiplier: 3, send: time, receive: time };
        let one =
            |key: &Key| (*key, Request { wanted: Wanted { settings, port: key.path.port(), hops: None }, number: 1 });
        self.handle.as_ref().expect("it runs").want(keys.iter().map(one).collect());
    }

    fn read(&mut self) {
        while let Ok(report) = self.reports.try_recv() {
            match report {
                Report::Changed(key, status) => drop(self.told.insert(key, status)),
                Report::Unsent(to, error) => self.unsent.push((to.ip(), error.is_none())),
                Report::Ignored(counts) => self.dropped += counts.get(&Ignored::Dropped).copied().unwrap_or_default(),
                Report::Trouble(on, error) => panic!("{on}: {error:?}"),
            }
        }
    }

    /// Waits until this is so.
    fn until(&mut self, what: &str, is_so: impl Fn(&Watcher) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !is_so(self) {
            assert!(Instant::now() < deadline, "{what} after 20 s: {:?} {:?}", self.told, self.unsent);
            std::thread::sleep(Duration::from_millis(5));
            self.read();
        }
    }

    fn are_up(&self, keys: &[Key]) -> bool {
        keys.iter().all(|key| self.told.get(key).is_some_and(|status| status.state == State::Up))
    }

    fn failures(&self) -> u64 {
        self.told.values().map(|status| status.failures).sum()
    }
}

/// A session of each kind and family, as the node and as the router has it.
fn keys() -> (Vec<Key>, Vec<Key>) {
    let kinds = [(Path::SingleHop, true), (Path::SingleHop, false), (Path::Multihop, true), (Path::Multihop, false)];
    let both = kinds.map(|(path, is_v4)| {
        let (us, them) = addresses(is_v4);
        (Key { remote: them, local: us, path }, Key { remote: us, local: them, path })
    });
    both.into_iter().unzip()
}

/// Both ends, with all sessions up.
fn both(others: &Others) -> (Watcher, Watcher, Vec<Key>) {
    let (ours, theirs) = keys();
    let mut node = Watcher::start(driver::spawn().expect("a thread"));
    let router = Watcher::start(others.inside("router", || driver::spawn().expect("a thread")));
    node.want(&ours, TIME);
    router.want(&theirs, TIME);
    node.until("all are up", |node| node.are_up(&ours));
    (node, router, ours)
}

/// Sends as fast as it can, many datagrams with one call, until it is told to stop; returns their number.
fn flood(to: SocketAddr, stop: &AtomicBool, sent: &AtomicU64) {
    const SEGMENTS: usize = 60;
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).expect("a socket");
    socket.connect(to).expect("there is a route");
    send_in_segments(&socket, 24);
    let bytes = [7; 24 * SEGMENTS];
    while !stop.load(Ordering::Relaxed) {
        if socket.send(&bytes).is_ok() {
            sent.fetch_add(SEGMENTS as u64, Ordering::Relaxed);
        }
    }
}

#[test]
fn a_pod_that_floods_the_ports_of_bfd_ends_no_session() {
    with_others("flood", |others| {
        let (mut node, _router, ours) = both(others);
        let before = node.failures();
        let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for key in &ours {
                let to = SocketAddr::new(key.local, key.path.port());
                let (stop, sent) = (&stop, &sent);
                scope.spawn(move || others.inside("pod", || flood(to, stop, sent)));
            }
            std::thread::sleep(Duration::from_secs(6));
            stop.store(true, Ordering::Relaxed);
        });
        node.read();
        let (sent, failures) = (sent.into_inner(), node.failures() - before);
        eprintln!("{sent} datagrams in 6 s, {failures} failures");
        assert_eq!(failures, 0, "{:?}", node.told);
        assert!(node.are_up(&ours));
        node.until("what the kernel has dropped", |node| node.dropped > 0);
    });
}

#[test]
fn a_neighbour_that_is_found_over_another_link_is_heard_there() {
    with_others("moves", |others| {
        let (mut node, _router, ours) = both(others);
        let [router, _] = &others.names;
        // Its addresses move to another link, and with them the routes to it.
        let before = node.failures();
        shell(&format!(
            "set -e; ip addr add fe80::11/64 dev eth1 nodad; ip -n {router} addr add fe80::12/64 dev eth1 nodad; \
             ip -n {router} addr add 192.0.2.2/32 dev eth1; ip -n {router} addr add 2001:db8::2/128 dev eth1 nodad; \
             ip -n {router} route replace 192.0.2.1/32 dev eth1 src 192.0.2.2; \
             ip -n {router} -6 route replace 2001:db8::1/128 via fe80::11 dev eth1; \
             ip route replace 192.0.2.2/32 dev eth1; ip -6 route replace 2001:db8::2/128 via fe80::12 dev eth1"
        ));
        std::thread::sleep(4 * TIME);
        node.read();
        eprintln!("failures with routes that move: {}", node.failures() - before);
        node.until("all are up over eth1", |node| node.are_up(&ours));
        // The link is made anew, under another index.
        let old = index("eth0");
        run("ip link del eth1");
        run("ip link del eth0");
        node.until("it is noticed", |node| ours.iter().all(|key| node.told[key].state == State::Down));
        let file = path();
        for link in ["eth0", "eth1"] {
            run(&format!("ip -n {router} link add {link} type veth peer name {link} netns {}", file.display()));
        }
        others.set_up();
        assert_ne!(index("eth0"), old);
        node.until("all are up over the new link", |node| node.are_up(&ours));
    });
}

#[test]
fn the_end_of_a_neighbour_ends_what_is_told_of_its_packets() {
    in_new(|| {
        // There is no route to anybody.
        let key =
            |last: u8| Key { remote: [203, 0, 113, last].into(), local: [127, 0, 0, 1].into(), path: Path::Multihop };
        let mut watcher = Watcher::start(driver::spawn().expect("a thread"));
        watcher.want(&[key(1), key(2)], TIME);
        watcher.until("both are in trouble", |one| {
            [key(1), key(2)].iter().all(|key| one.unsent.contains(&(key.remote, false)))
        });
        watcher.want(&[key(2)], TIME);
        watcher.until("the trouble has ended", |one| one.unsent.contains(&(key(1).remote, true)));
        assert!(!watcher.unsent.contains(&(key(2).remote, true)), "{:?}", watcher.unsent);
    });
}

/// Has a socket send what it is given in datagrams of this size (udp(7), `UDP_SEGMENT`).
fn send_in_segments(socket: &UdpSocket, size: libc::c_int) {
    let length = size_of_val(&size) as libc::socklen_t;
    // SAFETY: the descriptor is open as long as it is borrowed, and the kernel reads no more than the length that is given, which is that of the number.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, (&raw const size).cast(), length)
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}
