//! BFD of ours over real sockets: with the daemons of BIRD and FRR, and between two speakers of ours.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sluice::bfd::driver::{self, Handle, Report};
use sluice::bfd::packet::Packet;
use sluice::bfd::sessions::{Arrival, Ignored, Output, Sessions};
use sluice::bfd::{Diagnostic, Key, Path, Request, Settings, State, Status, Wanted};
use sluice::bgp::driver::Event;
use sluice::bgp::session::{Cause, State as BgpState};
use sluice::bgp::speaker::{Fact, Liveness, WantedNeighbour};
use sluice::bgp::transport::Transport;
use sluice::net::{Family, PerFamily};

use crate::cell::{Cell, Daemon};
use crate::ground::{Host, Topology, eventually, look, with_hosts};
use crate::namespace::run;
use crate::ours::{Ours, wanted};
use crate::raw::{OUT, Raw};

const TIME: Duration = Duration::from_millis(100);
const SETTINGS: Settings = Settings { multiplier: 3, send: TIME, receive: TIME };

fn session(path: Path) -> Wanted {
    Wanted { settings: SETTINGS, port: path.port(), hops: None }
}

fn request(wanted: Wanted) -> Request {
    Request { wanted, number: 1 }
}

/// BFD of ours alone, with the newest status of each session.
struct Watcher {
    handle: Option<Handle>,
    told: Arc<Mutex<BTreeMap<Key, Status>>>,
    /// All other reports.
    rest: Arc<Mutex<Vec<Report>>>,
}

impl Watcher {
    fn start(host: &Host) -> Watcher {
        let (handle, mut reports) = host.inside(driver::spawn).expect("a thread");
        let told = Arc::new(Mutex::new(BTreeMap::new()));
        let rest = Arc::new(Mutex::new(Vec::new()));
        let (telling, reporting) = (told.clone(), rest.clone());
        std::thread::spawn(move || {
            while let Some(report) = reports.blocking_recv() {
                match report {
                    Report::Changed(key, status) => drop(telling.lock().expect("it lives").insert(key, status)),
                    rest => {
                        eprintln!("--- BFD: {rest:?}");
                        reporting.lock().expect("it lives").push(rest);
                    }
                }
            }
        });
        Watcher { handle: Some(handle), told, rest }
    }

    fn want(&self, keys: &[Key]) {
        let wanted = keys.iter().map(|key| (*key, request(session(key.path)))).collect();
        self.handle.as_ref().expect("it runs").want(wanted);
    }

    fn status(&self, key: Key) -> Option<Status> {
        self.told.lock().expect("it lives").get(&key).copied()
    }

    /// Number of packets that were ignored for a reason.
    fn ignored(&self, reason: Ignored) -> u64 {
        let count = |report: &Report| match report {
            Report::Ignored(counts) => counts.get(&reason).copied().unwrap_or_default(),
            _ => 0,
        };
        self.rest.lock().expect("it lives").iter().map(count).sum()
    }

    /// Whether packets can be sent to an address, as it was told each time.
    fn unsent(&self, to: IpAddr) -> Vec<bool> {
        let one = |report: &Report| match report {
            Report::Unsent(address, error) if address.ip() == to => Some(error.is_none()),
            _ => None,
        };
        self.rest.lock().expect("it lives").iter().filter_map(one).collect()
    }

    fn state(&self, key: Key) -> State {
        self.status(key).map_or(State::Down, |status| status.state)
    }
}

fn key(us: &Host, them: &Host, family: Family, path: Path) -> Key {
    Key { remote: them.address(family), local: us.address(family), path }
}

/// A daemon that ends with the test.
struct Daemons(Vec<Child>);

impl Drop for Daemons {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// All kinds of sessions, told to a daemon, which sees them as `theirs` says: whether each is up.
fn with_daemon(
    topology: Topology,
    start: impl Fn(&Host, &[Key]) -> Daemons + Sync + Send,
    theirs: impl Fn(&Host, &Key) -> Option<bool> + Sync + Send,
) {
    let path = if topology == Topology::Link { Path::SingleHop } else { Path::Multihop };
    with_hosts(2, topology, |hosts| {
        let [us, them] = [&hosts[0], &hosts[1]];
        let keys = Family::BOTH.map(|family| key(us, them, family, path));
        let daemons = start(them, &keys);
        let watcher = Watcher::start(us);
        watcher.want(&keys);
        let both = |state| {
            eventually("our sessions", &[state; 2], || keys.map(|key| watcher.state(key)));
            eventually("theirs", &[Some(state == State::Up); 2], || keys.map(|key| theirs(them, &key)));
        };
        both(State::Up);
        // Longer than any detection time: nothing flaps.
        std::thread::sleep(10 * TIME);
        assert_eq!(
            keys.map(|key| watcher.status(key).map(|status| (status.state, status.failures))),
            [Some((State::Up, 0)); 2]
        );
        let cut = Instant::now();
        run("ip link set to-2 down");
        eventually("our sessions", &[State::Down; 2], || keys.map(|key| watcher.state(key)));
        let noticed = cut.elapsed();
        assert!(noticed < Duration::from_secs(5), "{noticed:?}");
        eprintln!("{path:?}: noticed after {noticed:?}");
        let why = keys.map(|key| watcher.status(key).expect("it is known"));
        assert!(why.iter().all(|why| why.diagnostic == Diagnostic::TIME_EXPIRED && why.failures == 1), "{why:?}");
        run("ip link set to-2 up");
        if topology == Topology::Router {
            run("ip route replace 192.0.2.2/32 dev to-2");
            run("ip addr replace 2001:db8::ff/128 dev to-2 nodad");
            run("ip route replace 2001:db8::2/128 dev to-2");
        }
        both(State::Up);
        // One session ends on our side, and the daemon hears so at once; the other goes on.
        watcher.want(&keys[1..]);
        eventually("theirs", &[Some(false), Some(true)], || keys.map(|key| theirs(them, &key)));
        assert_eq!(watcher.state(keys[1]), State::Up);
        drop(daemons);
    });
}

fn bird(host: &Host, keys: &[Key]) -> Daemons {
    let mut text = format!(
        "log stderr all;\nrouter id {};\nprotocol device {{ scan time 1; }}\nprotocol bfd {{\n\
         interface \"*\" {{ interval 100 ms; idle tx interval 1 s; multiplier 3; }};\n\
         multihop {{ interval 100 ms; idle tx interval 1 s; multiplier 3; }};\n",
        host.address(Family::V4)
    );
    for key in keys {
        text += &match key.path {
            Path::SingleHop => format!("neighbor {} dev \"eth0\";\n", key.local),
            Path::Multihop => format!("neighbor {} local {} multihop on;\n", key.local, key.remote),
        };
    }
    text += "}\n";
    std::fs::write(host.file("bird.conf"), text).expect("a file of configuration");
    let started = Daemons(vec![host.start(&["bird", "-f", "-c", "bird.conf", "-s", "bird.ctl"], "log")]);
    let asked = ["birdc", "-s", "bird.ctl", "show", "status"];
    let answers = look(|| host.ask(&asked)).is_some();
    assert!(answers, "{}", std::fs::read_to_string(host.file("log")).unwrap_or_default());
    started
}

fn bird_has(host: &Host, key: &Key) -> Option<bool> {
    let text = host.ask(&["birdc", "-s", "bird.ctl", "show", "bfd", "sessions"])?;
    let local = key.local.to_string();
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(&local))?;
    Some(line.split_whitespace().any(|word| word == "Up"))
}

fn frr(host: &Host, keys: &[Key]) -> Daemons {
    let directory = host.directory().display().to_string();
    // Both give up root's rights, and have their sockets here.
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o777)).expect("a directory of ours");
    let mut text = String::from("hostname theirs\nlog stdout\nbfd\n");
    for key in keys {
        let hops = if key.path == Path::Multihop { "multihop " } else { "" };
        text += &format!(
            " peer {} {hops}local-address {}\n  detect-multiplier 3\n  receive-interval 100\n  transmit-interval 100\n",
            key.local, key.remote
        );
        text += "  no shutdown\n exit\n";
    }
    std::fs::write(host.file("bfdd.conf"), text).expect("a file of configuration");
    std::fs::write(host.file("zebra.conf"), "hostname theirs\nlog stdout\n").expect("a file of configuration");
    let file = |name: &str| host.file(name).display().to_string();
    let start = |daemon: &str, more: &[&str]| {
        let program = format!("/usr/lib/frr/{daemon}");
        let (config, pid, zebra) = (file(&format!("{daemon}.conf")), file(&format!("{daemon}.pid")), file("zserv.api"));
        let mut words = vec![program.as_str(), "-P", "0", "--log", "stdout", "-f", &config, "-i", &pid];
        words.extend(["-z", &zebra, "--vty_socket", &directory]);
        words.extend(more);
        host.start(&words, "log")
    };
    let zebra = start("zebra", &[]);
    assert!(look(|| host.file("zserv.api").exists().then_some(())).is_some(), "zebra does not answer");
    let bfdd = start("bfdd", &["--bfdctl", &file("bfdd.sock")]);
    let started = Daemons(vec![zebra, bfdd]);
    let answers = look(|| frr_peers(host)).is_some();
    assert!(answers, "{}", std::fs::read_to_string(host.file("log")).unwrap_or_default());
    started
}

fn frr_peers(host: &Host) -> Option<serde_json::Value> {
    let directory = host.directory().display().to_string();
    let text = host.ask(&["vtysh", "--vty_socket", &directory, "-d", "bfdd", "-c", "show bfd peers json"])?;
    serde_json::from_str(&text).ok()
}

fn frr_has(host: &Host, key: &Key) -> Option<bool> {
    let peers = frr_peers(host)?;
    let local = key.local.to_string();
    let peer = peers.as_array()?.iter().find(|peer| peer["peer"] == local.as_str())?;
    Some(peer["status"] == "up")
}

#[test]
fn bird_finds_us_and_loses_us_on_a_link() {
    with_daemon(Topology::Link, bird, bird_has);
}

#[test]
fn bird_finds_us_and_loses_us_behind_a_router() {
    with_daemon(Topology::Router, bird, bird_has);
}

#[test]
fn frr_finds_us_and_loses_us_on_a_link() {
    with_daemon(Topology::Link, frr, frr_has);
}

#[test]
fn frr_finds_us_and_loses_us_behind_a_router() {
    with_daemon(Topology::Router, frr, frr_has);
}

/// UDP ports on which somebody listens here, as the kernel lists them.
fn udp_ports(host: &Host) -> Vec<u16> {
    let text = host.ask(&["ss", "-H", "-l", "-u", "-n"]).expect("ss answers");
    let port = |line: &str| line.split_whitespace().nth(3)?.rsplit(':').next()?.parse().ok();
    text.lines().filter_map(port).collect()
}

#[test]
fn nothing_listens_unless_somebody_is_watched() {
    with_hosts(2, Topology::Link, |hosts| {
        let ours = Ours::start(&hosts[0], 65001, false);
        let cell = Cell::with(Daemon::Bird);
        let peer = || wanted(&cell, &hosts[0], &hosts[1]);
        ours.want(peer());
        assert_eq!(udp_ports(&hosts[0]), Vec::<u16>::new());
        ours.want(watched(peer()));
        eventually("that BFD listens", &vec![3784], || udp_ports(&hosts[0]));
        ours.want(peer());
        eventually("that nobody listens", &Vec::<u16>::new(), || udp_ports(&hosts[0]));
    });
}

fn watched(wanted: WantedNeighbour) -> WantedNeighbour {
    let path = Path::SingleHop;
    WantedNeighbour { liveness: Some(Liveness { path, wanted: session(path) }), ..wanted }
}

#[test]
fn a_session_of_ours_ends_with_its_path_and_comes_back_with_it() {
    with_hosts(2, Topology::Link, |hosts| {
        // Graceful restart would keep the routes for ten minutes, and the hold time is four.
        let cell = Cell { graceful: true, ..Cell::with(Daemon::Bird) };
        let theirs = Cell { asns: [cell.asns[1], cell.asns[0]], ..cell.clone() };
        let one = Ours::start(&hosts[0], cell.asns[0], false);
        let other = Ours::start(&hosts[1], cell.asns[1], false);
        one.want(watched(wanted(&cell, &hosts[0], &hosts[1])));
        other.want(watched(wanted(&theirs, &hosts[1], &hosts[0])));
        let address = hosts[1].address(Family::V4);
        one.is_up(address);
        one.learns("that the path is up", |fact| matches!(fact, Fact::PathUp).then_some(()));
        let cut = Instant::now();
        run("ip link set to-2 nomaster");
        let kept = one.learns("the end", |fact| match fact {
            Fact::Down { kept, cause: Cause::Sent(said) } => Some((*kept, said.to_string())),
            _ => None,
        });
        eprintln!("the session ended after {:?}", cut.elapsed());
        assert!(cut.elapsed() < Duration::from_secs(5), "the hold time is longer");
        assert_eq!(kept, (PerFamily::default(), "6/10 BFD down".to_owned()));
        run("ip link set to-2 master br0");
        one.is_up(address);
        // It ends without a word of BGP, and BFD says that this is no failure.
        drop(other);
        eventually("the end of BFD", &Some(State::Down), || {
            one.of(address, |neighbour| neighbour.path().map(|status| status.state))
        });
        assert_eq!(one.of(address, |neighbour| neighbour.path().map(|status| status.failures)), Some(1));
    });
}

/// As `watched`, with times that leave a process that is started again the time to be back before its end is noticed.
fn slowly_watched(wanted: WantedNeighbour) -> WantedNeighbour {
    let time = Duration::from_millis(600);
    let wanted_session =
        Wanted { settings: Settings { multiplier: 3, send: time, receive: time }, port: 3784, hops: None };
    let liveness = Liveness { path: Path::SingleHop, wanted: wanted_session };
    WantedNeighbour { liveness: Some(liveness), ..wanted }
}

#[test]
fn an_agent_that_crashes_and_is_back_at_once_finds_its_routes_where_they_were() {
    with_hosts(2, Topology::Link, |hosts| {
        let cell = Cell { graceful: true, ..Cell::with(Daemon::Bird) };
        let theirs = Cell { asns: [cell.asns[1], cell.asns[0]], ..cell.clone() };
        let other = Ours::start(&hosts[1], cell.asns[1], false);
        other.want(slowly_watched(wanted(&theirs, &hosts[1], &hosts[0])));
        let address = hosts[0].address(Family::V4);
        let ups = || {
            let heard = other.heard();
            heard.iter().filter(|event| matches!(event, Event::Fact(_, Fact::PathUp))).count()
        };
        let one = Ours::start(&hosts[0], cell.asns[0], false);
        one.announce(&cell, &hosts[0]);
        one.want(slowly_watched(wanted(&cell, &hosts[0], &hosts[1])));
        other.is_up(address);
        eventually("that the path is up", &1, ups);
        eventually("its routes", &true, || !other.programmed().is_empty());
        let (routes, gone) = (other.programmed(), other.withdrawals());
        // A process that is killed does not say that its BFD ends.
        let nft = |text: &str| hosts[0].ask(&["nft", text]).expect("nft obeys");
        nft("add table inet mute; add chain inet mute out { type filter hook output priority 0; }; \
             add rule inet mute out udp dport 3784 drop");
        one.kill();
        nft("delete table inet mute");
        let one = Ours::start(&hosts[0], cell.asns[0], true);
        one.announce(&cell, &hosts[0]);
        one.want(slowly_watched(wanted(&cell, &hosts[0], &hosts[1])));
        other.is_up(address);
        other.learns("that BFD was with the process before", |fact| {
            matches!(fact, Fact::PathOutlived(_) | Fact::PathFailed(_)).then_some(())
        });
        eventually("that the path is up again", &2, ups);
        let ends = other.heard().iter().filter(|event| matches!(event, Event::Fact(_, Fact::Down { .. }))).count();
        assert_eq!((ends, other.state(address)), (1, BgpState::Established), "the crash itself");
        assert_eq!((other.programmed(), other.withdrawals()), (routes, gone), "no route was ever away");
        drop(one);
    });
}

/// BFD of a neighbour that is no speaker of ours, in steps: its session, and what it hears.
struct Neighbour {
    sessions: Sessions,
    receives: UdpSocket,
    sends: UdpSocket,
    key: Key,
}

impl Neighbour {
    fn new(us: &Host, them: &Host) -> Neighbour {
        let key = key(us, them, Family::V4, Path::SingleHop);
        let mut sessions = Sessions::new(1);
        let requests = BTreeMap::from([(key, request(session(Path::SingleHop)))]);
        sessions.want(Instant::now(), &requests);
        sessions.set_link(&key, Some(1));
        let bound = |port| us.inside(|| UdpSocket::bind(SocketAddr::new(key.local, port)).expect("a socket"));
        let (receives, sends) = (bound(3784), bound(0));
        sends.set_ttl(255).expect("a TTL");
        receives.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout");
        Neighbour { sessions, receives, sends, key }
    }

    /// Waits a moment for a packet, and answers; returns the state that the packet tells.
    fn turn(&mut self) -> Option<State> {
        let mut datagram = [0; 64];
        let read = self.receives.recv(&mut datagram).ok();
        let now = Instant::now();
        let said = read.and_then(|length| {
            let datagram = &datagram[..length];
            let (from, to) = (self.key.remote, self.key.local);
            let arrival = Arrival { from, to, path: Path::SingleHop, ttl: Some(255), link: Some(1), datagram };
            let _ = self.sessions.receive(now, arrival);
            Some(Packet::decode(datagram).ok()?.state)
        });
        self.sessions.tick(now);
        for output in self.sessions.outputs() {
            if let Output::Send(_, packet) = output {
                let _ = self.sends.send_to(&packet.encode(), SocketAddr::new(self.key.remote, 3784));
            }
        }
        said
    }
}

#[test]
fn a_process_that_ends_closes_its_connections_before_it_says_that_bfd_ends() {
    with_hosts(2, Topology::Link, |hosts| {
        let cell = Cell { graceful: true, ..Cell::with(Daemon::Bird) };
        let ours = Ours::start(&hosts[0], cell.asns[0], false);
        let peer = wanted(&cell, &hosts[0], &hosts[1]);
        let transport = Transport { local: peer.transport.local, ..Transport::default() };
        ours.want(WantedNeighbour { transport, ..watched(peer) });
        let mut neighbour = Neighbour::new(&hosts[1], &hosts[0]);
        let mut session = Raw::session(&hosts[1], &hosts[0], OUT);
        while neighbour.turn() != Some(State::Up) {}
        let ending = std::thread::spawn(move || ours.kill());
        while neighbour.turn() != Some(State::AdminDown) {}
        assert!(session.is_closed(), "some neighbours take the end of BFD for a reason to forget all routes");
        ending.join().expect("it ends");
    });
}

#[test]
fn a_pod_cannot_speak_for_a_router_on_the_link() {
    with_hosts(2, Topology::Link, |hosts| {
        let watcher = Watcher::start(&hosts[0]);
        let router = key(&hosts[0], &hosts[1], Family::V4, Path::SingleHop);
        watcher.want(&[router]);
        let sh = |text: &str| hosts[0].ask(&["sh", "-c", text]).expect("it is done");
        run("ip netns add pod");
        run("ip link add pod0 netns host-1 type veth peer name eth0 netns pod");
        sh("ip link set pod0 up; for each in all pod0; do echo 0 > /proc/sys/net/ipv4/conf/$each/rp_filter; done");
        run("ip -n pod addr add 192.0.2.2/32 dev eth0");
        run("ip -n pod link set eth0 up");
        run("ip -n pod route add 192.0.2.1/32 dev eth0");
        // Who has all rights in a pod may send with any address and TTL: Down, from somebody who does not know us yet.
        let packet =
            r"\x20\x40\x03\x18\x00\x00\x00\x63\x00\x00\x00\x00\x00\x0f\x42\x40\x00\x0f\x42\x40\x00\x00\x00\x00";
        let send = format!("echo 255 > /proc/sys/net/ipv4/ip_default_ttl; printf '{packet}' > /dev/udp/192.0.2.1/3784");
        let arrives = || {
            let sent = std::process::Command::new("ip").args(["netns", "exec", "pod", "bash", "-c", &send]).status();
            assert!(sent.expect("it runs").success());
            watcher.ignored(Ignored::Dropped) > 0
        };
        eventually("that they arrive", &true, arrives);
        assert_eq!(watcher.state(router), State::Down);
        // The router itself is heard.
        let other = Watcher::start(&hosts[1]);
        other.want(&[key(&hosts[1], &hosts[0], Family::V4, Path::SingleHop)]);
        eventually("the router", &State::Up, || watcher.state(router));
    });
}

#[test]
fn what_is_not_sent_and_what_is_not_taken_is_told() {
    with_hosts(2, Topology::Link, |hosts| {
        let keys = Family::BOTH.map(|family| key(&hosts[0], &hosts[1], family, Path::SingleHop));
        let watcher = Watcher::start(&hosts[0]);
        let nft = |text: &str| hosts[0].ask(&["nft", text]).expect("nft obeys");
        nft("add table inet mute; add chain inet mute out { type filter hook output priority 0; }; \
             add rule inet mute out udp dport 3784 drop");
        watcher.want(&keys);
        let told = || keys.map(|key| watcher.unsent(key.remote));
        eventually("that nothing can be sent", &[vec![false], vec![false]], told);
        nft("delete table inet mute");
        eventually("that it can again", &[vec![false, true], vec![false, true]], told);
        // One datagram may be lost on a machine that is busy.
        let is_dropped = || {
            hosts[1].inside(|| {
                let socket = UdpSocket::bind(SocketAddr::new(keys[0].remote, 0)).expect("a socket");
                socket.send_to(b"?", SocketAddr::new(keys[0].local, 3784)).expect("it is sent");
            });
            watcher.ignored(Ignored::Dropped) > 0
        };
        eventually("that it was dropped", &true, is_dropped);
    });
}

/// Threads of this process that have this name.
fn threads(name: &str) -> BTreeSet<String> {
    let all = std::fs::read_dir("/proc/self/task").expect("threads").flatten();
    let named = |id: &String| {
        let path = format!("/proc/self/task/{id}/comm");
        std::fs::read_to_string(path).is_ok_and(|comm| comm.trim() == name)
    };
    all.map(|one| one.file_name().to_string_lossy().into_owned()).filter(named).collect()
}

/// Time that a thread has had a processor, and how often it went to sleep.
fn used(thread: &str) -> (Duration, u64) {
    let file = |name: &str| std::fs::read_to_string(format!("/proc/self/task/{thread}/{name}")).expect("it lives");
    let time = file("schedstat").split(' ').next().and_then(|time| time.parse().ok()).expect("a number");
    let status = file("status");
    let sleeps = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    (Duration::from_nanos(time), sleeps.and_then(|sleeps| sleeps.trim().parse().ok()).expect("a number"))
}

#[test]
fn a_thousand_sessions_share_few_wakes_and_none_of_them_flaps() {
    const BLOCKS: u8 = 4;
    const IN_A_BLOCK: u8 = 250;
    const SECONDS: u64 = 6;
    sluice::kernel::tcp::raise_open_files().expect("root may");
    with_hosts(2, Topology::Link, |hosts| {
        let theirs = || (0..BLOCKS).flat_map(|block| (1..=IN_A_BLOCK).map(move |last| [198, 18, block, last]));
        let us = IpAddr::from([198, 18, 200, 1]);
        let lines = theirs().map(|[a, b, c, d]| format!("addr add {a}.{b}.{c}.{d}/16 dev eth0\n")).collect::<String>();
        std::fs::write(hosts[1].file("addresses"), lines).expect("a file");
        hosts[1].ask(&["ip", "-batch", "addresses"]).expect("addresses");
        hosts[0].ask(&["ip", "addr", "add", "198.18.200.1/16", "dev", "eth0"]).expect("an address");
        let time = Duration::from_millis(300);
        let settings = Settings { multiplier: 3, send: time, receive: time };
        let all = |turned: bool| -> BTreeMap<Key, Request> {
            let key = |them: [u8; 4]| {
                let them = IpAddr::from(them);
                let (remote, local) = if turned { (us, them) } else { (them, us) };
                Key { remote, local, path: Path::SingleHop }
            };
            theirs().map(|them| (key(them), request(Wanted { settings, port: 3784, hops: None }))).collect()
        };
        let before = threads("bfd");
        let one = Watcher::start(&hosts[0]);
        let thread = look(|| threads("bfd").difference(&before).next().cloned()).expect("its thread");
        let other = Watcher::start(&hosts[1]);
        one.handle.as_ref().expect("it runs").want(all(false));
        other.handle.as_ref().expect("it runs").want(all(true));
        let up = || all(false).keys().filter(|key| one.state(**key) == State::Up).count();
        let count = usize::from(BLOCKS) * usize::from(IN_A_BLOCK);
        eventually("all sessions", &count, up);
        let failures = || [&one, &other].map(Watcher::failures);
        std::thread::sleep(Duration::from_secs(2));
        let (failed, began) = (failures(), used(&thread));
        std::thread::sleep(Duration::from_secs(SECONDS));
        let ended = used(&thread);
        assert_eq!((failures(), up()), (failed, count), "nothing flaps");
        let (time, sleeps) = (ended.0 - began.0, ended.1 - began.1);
        eprintln!("1,000 sessions at 300 ms: {time:?} of a processor and {sleeps} sleeps in {SECONDS} s");
        assert!(sleeps < 80 * SECONDS, "a packet wakes nobody: {sleeps}");
    });
}

impl Watcher {
    fn failures(&self) -> u64 {
        self.told.lock().expect("it lives").values().map(|status| status.failures).sum()
    }
}
