//! A speaker of ours under load: large tables, a thousand neighbours, one that takes nothing, and no open files left.

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use sluice::bgp::driver::{Event, Subject};
use sluice::bgp::message::{self, Attributes, Capabilities, Community, Dialect, Open, Packing};
use sluice::bgp::rib::PeerId;
use sluice::bgp::speaker::{Order, Speaker, WantedNeighbour};
use sluice::net::{Family, PerFamily};

use crate::ground::{Host, Topology, eventually, with_hosts};
use crate::ours::{Ours, plain};

/// Set in the process that has few open files.
const FEW: &str = "INTEROP_FEW_OPEN_FILES";

/// A prefix of a host, of which it may have as many as this has bits.
fn prefix(host: u8, number: u32) -> IpNet {
    let network = Ipv4Addr::from(0x0a00_0000 + (u32::from(host) << 20) + number * 16);
    Ipv4Net::new(network, 28).expect("a length").into()
}

fn originate(host: &Host, number: u32) -> Order {
    let IpAddr::V4(address) = host.address(Family::V4) else { unreachable!("it is IPv4") };
    let mut attributes = Attributes::local(address.into());
    attributes.med = Some(number / 5);
    attributes.add_communities(&[Community(number % 500)]);
    Order::Originate(prefix(address.octets()[3], number), Box::new(attributes))
}

/// How many routes of others a speaker has.
fn foreign(speaker: &mut Speaker) -> usize {
    let table = speaker.rib().table();
    let all = Family::BOTH.into_iter().flat_map(|family| table.walk(family, None));
    all.filter(|(prefix, _)| table.best(*prefix).is_some_and(|best| best.source != PeerId::LOCAL)).count()
}

#[test]
fn large_tables_in_both_directions_arrive_whole() {
    const COUNT: u32 = 20_000;
    with_hosts(2, Topology::Link, |hosts| {
        let speakers = [0, 1].map(|number: usize| Ours::start(&hosts[number], 65001, false));
        for (ours, (host, peer)) in speakers.iter().zip([(&hosts[0], &hosts[1]), (&hosts[1], &hosts[0])]) {
            ours.order((0..COUNT).map(|number| originate(host, number)).collect());
            ours.want(plain(host, peer));
        }
        for (number, ours) in speakers.iter().enumerate() {
            eventually("that all routes are there", &(COUNT as usize), || ours.ask(foreign));
            let theirs = 2 - number as u8;
            let last = ours.ask(move |speaker| speaker.rib().table().best(prefix(theirs, COUNT - 1)));
            assert_eq!(last.and_then(|best| best.attributes.med), Some((COUNT - 1) / 5));
            eventually("what the kernel is told", &(COUNT as usize), || ours.programmed().len());
        }
        let flops = |ours: &Ours, peer: &Host| ours.of(peer.address(Family::V4), |neighbour| neighbour.flops());
        assert!(flops(&speakers[0], &hosts[1]) <= 1 && flops(&speakers[1], &hosts[0]) <= 1);
    });
}

#[test]
fn a_thousand_neighbours_that_dial_at_once_are_all_heard() {
    const COUNT: u16 = 1000;
    with_hosts(2, Topology::Link, |hosts| {
        let [us, them] = hosts else { unreachable!("there are two") };
        let number = |one: u16| Ipv4Addr::from(0xc612_0000 + u32::from(one) + 1);
        let script: String = (0..COUNT).map(|one| format!("addr add {}/32 dev eth0\n", number(one))).collect();
        std::fs::write(them.file("addresses"), script).expect("a file");
        them.ask(&["ip", "-batch", "addresses"]).expect("addresses can be added");
        us.ask(&["ip", "route", "add", "198.18.0.0/15", "dev", "eth0"]).expect("a route can be added");
        let hub = Ours::start(us, 65001, false);
        let wanted = |one: u16| {
            let mut wanted = plain(us, them);
            wanted.address = number(one).into();
            wanted.settings.passive = true;
            Order::Want(Arc::new(wanted))
        };
        hub.order((0..COUNT).map(wanted).collect());
        let to = SocketAddr::new(us.address(Family::V4), 179);
        // All connect before the first of them says anything, and all speak before anything is read.
        let mut streams: Vec<TcpStream> = them.inside(|| (0..COUNT).map(|one| dialled(number(one), to)).collect());
        for (one, stream) in (0..COUNT).zip(&mut streams) {
            stream.write_all(&hello(number(one))).expect("it is taken");
            stream.write_all(&two_routes(one, number(one))).expect("it is taken");
        }
        eventually("the routes of all", &(2 * usize::from(COUNT)), || hub.ask(foreign));
        eventually("what the kernel is told", &(2 * usize::from(COUNT)), || hub.programmed().len());
        assert!(!hub.heard().iter().any(|event| matches!(event, Event::Refused(_) | Event::Trouble(..))));
        let flops = hub.ask(|speaker| speaker.neighbours().map(|(_, neighbour)| neighbour.flops()).sum::<u32>());
        assert_eq!(flops, 0, "all of them stay");
    });
}

#[test]
fn one_that_takes_nothing_keeps_nobody_waiting_and_costs_no_more_than_its_room() {
    const ROUTES: u32 = 10_000;
    with_hosts(3, Topology::Link, |hosts| {
        let [us, silent, other] = hosts else { unreachable!("there are three") };
        // The kernel takes little for it.
        let little = || std::fs::write("/proc/sys/net/ipv4/tcp_wmem", "4096 8192 8192");
        us.inside(little).expect("a setting of the namespace");
        let hub = Ours::start(us, 65001, false);
        let listener = |peer: &Host| -> WantedNeighbour {
            let mut wanted = plain(us, peer);
            wanted.settings.passive = true;
            wanted.settings.hold_time = 0;
            wanted
        };
        hub.want(listener(silent));
        let IpAddr::V4(number) = silent.address(Family::V4) else { unreachable!("it is IPv4") };
        let mut stream = silent.inside(|| dialled(number, SocketAddr::new(us.address(Family::V4), 179)));
        stream.write_all(&hello(number)).expect("it is taken");
        hub.is_up(number.into());
        hub.want(listener(other));
        let friend = Ours::start(other, 65001, false);
        friend.want(plain(other, us));
        hub.is_up(other.address(Family::V4));
        for turn in 0..20 {
            let change = |number| {
                let Order::Originate(prefix, mut attributes) = originate(us, number) else { unreachable!("it is") };
                attributes.med = Some(turn * 1000 + number % 7);
                Order::Originate(prefix, attributes)
            };
            hub.order((0..ROUTES).map(change).collect());
            let last = prefix(1, ROUTES - 1);
            let med = move |speaker: &mut Speaker| speaker.rib().table().best(last)?.attributes.med;
            eventually("the newest route", &Some(turn * 1000 + (ROUTES - 1) % 7), || friend.ask(med));
        }
        let waiting = hub.ask(move |speaker| {
            let id = speaker.neighbour(number.into()).expect("it is wanted").id();
            (speaker.rib().on_the_way(id), speaker.rib().is_told(id))
        });
        // A piece more than its room of one MiB, whatever changes.
        assert!(!waiting.1 && waiting.0 < (1 << 20) + (128 << 10), "{waiting:?}");
    });
}

#[test]
fn without_open_files_nobody_is_let_in_until_there_are_some_again() {
    if std::env::var_os(FEW).is_some() {
        return with_few_open_files();
    }
    // Only a process of its own can be short of them.
    let this = std::env::current_exe().expect("the program is a file");
    let name = "load::without_open_files_nobody_is_let_in_until_there_are_some_again";
    let script = format!("ulimit -n 100; exec {} --exact {name} --nocapture", this.display());
    let output = Command::new("sh").arg("-c").arg(script).env(FEW, "1").output().expect("start sh");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

fn with_few_open_files() {
    with_hosts(2, Topology::Link, |hosts| {
        let ours = Ours::start(&hosts[0], 65001, false);
        let on = SocketAddr::new(hosts[0].address(Family::V4), 179);
        let troubles = |ours: &Ours| -> Vec<bool> {
            let heard = ours.heard();
            let of = |event: &Event| match event {
                Event::Trouble(Subject::Listening(one), error) if *one == on => Some(error.is_some()),
                _ => None,
            };
            heard.iter().filter_map(of).collect()
        };
        // It comes when there is a file that tells it so: a file that is renamed needs no open one.
        let wait = "until [ -e go ]; do sleep 0.1; done; exec 3<>/dev/tcp/192.0.2.1/179; cat <&3; touch ended";
        std::fs::write(hosts[1].file("ready"), "").expect("a file");
        let mut stranger = hosts[1].start(&["bash", "-c", wait], "stranger");
        let mut files = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            files.push(file);
        }
        std::fs::rename(hosts[1].file("ready"), hosts[1].file("go")).expect("it can be renamed");
        eventually("that it is told", &vec![true], || troubles(&ours));
        drop(files);
        eventually("that it is over", &vec![true, false], || troubles(&ours));
        eventually("that the stranger is closed", &true, || hosts[1].file("ended").exists());
        stranger.wait().expect("it ends");
    });
}

/// A connection from one of many addresses.
fn dialled(from: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    bind(&socket, &SocketAddr::new(from.into(), 0)).expect("an address of this host");
    // It is tried again where the queue of the other side is full; that takes a second.
    connect(&socket, &to).unwrap_or_else(|error| panic!("{from}: {error}"));
    TcpStream::from(socket)
}

/// An OPEN, and what confirms that of the other side before it has come.
fn hello(identifier: Ipv4Addr) -> Vec<u8> {
    let capabilities = Capabilities {
        families: PerFamily { v4: true, v6: true },
        multiprotocol: true,
        asn: Some(65001),
        ..Capabilities::default()
    };
    let open = Open { asn: 65001, hold_time: 90, identifier, capabilities };
    [message::open(&open), message::keepalive()].concat()
}

fn two_routes(one: u16, address: Ipv4Addr) -> Vec<u8> {
    let families = PerFamily { v4: true, v6: true };
    let dialect =
        Dialect { internal: true, four_octets: true, families, extended_next_hop: false, extended_message: false };
    let mut packing = Packing::new(dialect);
    let four = Ipv4Net::new(Ipv4Addr::from(0x0a00_0000 + (u32::from(one) << 8)), 24).expect("a length");
    let [next, own] = [0x2001_0db8_u128 << 96, 0xfd00_0010_0244_u128 << 80];
    let six = Ipv6Net::new(Ipv6Addr::from(own | (u128::from(one) << 64)), 64).expect("a length");
    assert!(packing.announce(Family::V4, &Attributes::local(address.into()), &[four.into()]));
    let next = Ipv6Addr::from(next | (u128::from(one) + 0x1000));
    assert!(packing.announce(Family::V6, &Attributes::local(next.into()), &[six.into()]));
    packing.finish().0
}
