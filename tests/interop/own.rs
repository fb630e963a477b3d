//! Sessions between speakers of ours alone: when both dial at once, when one of them dies, when many come at once, and who is
//! let in.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use sluice::bgp::driver::{Event, Refusal, Subject};
use sluice::bgp::message::{self, Attributes, Message, Notification, Reason};
use sluice::bgp::session::State;
use sluice::bgp::speaker::{Fact, Neighbour, Order};
use sluice::bgp::transport::{Password, TimeToLive};
use sluice::net::{Family, PerFamily};

use crate::cell::{Cell, Daemon, OURS};
use crate::ground::{Host, Topology, eventually, with_hosts};
use crate::namespace::run;
use crate::ours::{Ours, plain, wanted};
use crate::raw::{IN, Raw};

/// The cell that the routes of such sessions are described by; who the others are does not count.
fn inside() -> Cell {
    Cell::inside(Daemon::Bird)
}

/// Two of them, connected, with their routes.
fn pair(hosts: &[Host], cell: &Cell) -> [Ours; 2] {
    let speakers = [0, 1].map(|number| Ours::start(&hosts[number], cell.asns[0], false));
    speakers[1].announce(cell, &hosts[1]);
    speakers[0].want(wanted(cell, &hosts[0], &hosts[1]));
    speakers[1].want(wanted(cell, &hosts[1], &hosts[0]));
    eventually("what the first has", &cell.they_have(&hosts[1]), || speakers[0].table());
    speakers
}

#[test]
fn two_that_dial_each_other_at_the_same_moment_have_one_session_and_keep_it() {
    with_hosts(2, Topology::Link, |hosts| {
        let [one, other] = [0, 1].map(|number| Ours::start(&hosts[number], 65001, false));
        for _ in 0..20 {
            std::thread::scope(|scope| {
                scope.spawn(|| one.want(plain(&hosts[0], &hosts[1])));
                scope.spawn(|| other.want(plain(&hosts[1], &hosts[0])));
            });
            let sessions = || {
                [(&one, &hosts[1]), (&other, &hosts[0])].map(|(ours, peer)| {
                    let session = |neighbour: &Neighbour| (neighbour.peer().session(), neighbour.flops());
                    ours.of(peer.address(Family::V4), session)
                })
            };
            // The one that has its session first may have it on the connection that the other side has just decided against.
            // Once both have one, they mean the same, and nothing takes its place.
            let mut before = sessions();
            eventually("that both have a session that stays", &true, || {
                let both = before.iter().all(|(session, flops)| session.is_some() && *flops <= 1);
                let earlier = std::mem::replace(&mut before, sessions());
                both && earlier == before
            });
            for (ours, peer) in [(&one, &hosts[1]), (&other, &hosts[0])] {
                let address = peer.address(Family::V4);
                ours.order(vec![Order::Remove(address, Notification::new(Reason::DECONFIGURED))]);
            }
        }
    });
}

#[test]
fn the_kernel_watches_the_connection_of_a_session_whose_neighbour_wants_no_hold_time() {
    with_hosts(2, Topology::Link, |hosts| {
        for (hold_time, is_watched) in [(0, true), (90, false)] {
            let [one, other] = [0, 1].map(|number| Ours::start(&hosts[number], 65001, false));
            one.want(plain(&hosts[0], &hosts[1]));
            let mut theirs = plain(&hosts[1], &hosts[0]);
            theirs.settings.hold_time = hold_time;
            other.want(theirs);
            one.is_up(hosts[1].address(Family::V4));
            let sockets = || hosts[0].ask(&["ss", "-tnoH", "state", "established"]).expect("ss is here");
            eventually("whether it is watched", &is_watched, || sockets().contains("timer:(keepalive"));
        }
    });
}

#[test]
fn one_that_dies_without_a_word_and_comes_back_is_spoken_with_again() {
    with_hosts(2, Topology::Link, |hosts| {
        let cell = inside();
        let [one, other] = pair(hosts, &cell);
        // The link goes first, so that nobody hears of the end.
        run("ip link set to-2 nomaster");
        other.kill();
        run("ip link set to-2 master br0");
        let other = Ours::start(&hosts[1], 65001, false);
        let mut changed = cell.clone();
        changed.families.v6 = false;
        other.announce(&changed, &hosts[1]);
        other.want(wanted(&cell, &hosts[1], &hosts[0]));
        eventually("what the first has", &changed.they_have(&hosts[1]), || one.table());
    });
}

#[test]
fn two_hundred_that_dial_at_once_all_have_a_session() {
    const COUNT: u8 = 200;
    with_hosts(2, Topology::Link, |hosts| {
        let number = |number: u8| IpAddr::V4(Ipv4Addr::new(192, 0, 2, number + 10));
        let them = &hosts[1];
        let script: String = (0..COUNT).map(|one| format!("addr add {}/24 dev eth0\n", number(one))).collect();
        std::fs::write(them.file("addresses"), script).expect("a file");
        them.ask(&["ip", "-batch", "addresses"]).expect("addresses can be added");
        let hub = Ours::start(&hosts[0], 65001, false);
        let template = plain(&hosts[0], &hosts[1]);
        let spoke = |one: u8| {
            let mut wanted = template.clone();
            wanted.address = number(one);
            wanted.settings.passive = true;
            Order::Want(Arc::new(wanted))
        };
        hub.order((0..COUNT).map(spoke).collect());
        // Each dials from its own address, and has a route of its own.
        let spokes: Vec<Ours> = (0..COUNT).map(|one| Ours::spoke(them, number(one))).collect();
        for (one, ours) in (0..COUNT).zip(&spokes) {
            let mut wanted = plain(them, &hosts[0]);
            let IpAddr::V4(identifier) = number(one) else { unreachable!("it is IPv4") };
            wanted.settings.local.identifier = identifier;
            wanted.transport.local = Some(number(one));
            let prefix = format!("10.244.{one}.0/24").parse().expect("a prefix");
            let route = Order::Originate(prefix, Box::new(Attributes::local(number(one))));
            ours.order(vec![route, Order::Want(Arc::new(wanted))]);
        }
        let expected = (0..COUNT).map(|one| format!("10.244.{one}.0/24 via {}", number(one))).collect();
        eventually("what the hub has", &expected, || hub.table());
        let flops = hub.ask(|speaker| speaker.neighbours().map(|(_, neighbour)| neighbour.flops()).sum::<u32>());
        assert_eq!(flops, 0, "no session had to be made twice");
        assert!(hub.heard().iter().all(|event| !matches!(event, Event::Refused(_))));
    });
}

#[test]
fn strangers_are_closed_at_once_and_counted() {
    with_hosts(2, Topology::Link, |hosts| {
        let ours = Ours::start(&hosts[0], 65001, false);
        let to = SocketAddr::new(hosts[0].address(Family::V4), 179);
        eventually("that it is listened on", &true, || hosts[1].inside(|| TcpStream::connect(to).is_ok()));
        let ended = |_| hosts[1].inside(|| ends(TcpStream::connect(to).expect("it is listened on")));
        assert!((0..20).all(ended));
        let stranger = hosts[1].address(Family::V4);
        let refused = ours.hears("the first of them", |event| match event {
            Event::Refused(refused) => refused.first().copied(),
            _ => None,
        });
        assert_eq!((refused.from, refused.because), (stranger, Refusal::Stranger));
        let told = ours.heard().iter().filter(|event| matches!(event, Event::Refused(_))).count();
        assert_eq!(told, 1, "the others are told of later, together");
    });
}

#[test]
fn a_neighbour_that_comes_to_another_address_is_not_let_in() {
    with_hosts(2, Topology::Link, |hosts| {
        hosts[0].ask(&["ip", "addr", "add", "192.0.2.77/24", "dev", "eth0"]).expect("an address can be added");
        let ours = Ours::start(&hosts[0], 65001, false);
        let another = SocketAddr::new("192.0.2.77".parse().expect("an address"), 179);
        ours.listen(&[another]);
        ours.want(plain(&hosts[0], &hosts[1]));
        eventually("that it is listened on", &true, || hosts[1].inside(|| TcpStream::connect(another).is_ok()));
        ours.hears("why", |event| match event {
            Event::Refused(refused) => refused.iter().any(|one| one.because == Refusal::OtherAddress).then_some(()),
            _ => None,
        });
    });
}

#[test]
fn a_neighbour_that_says_nothing_has_few_connections_and_keeps_nobody_out() {
    with_hosts(3, Topology::Link, |hosts| {
        let ours = Ours::start(&hosts[0], 65001, false);
        let mut silent = plain(&hosts[0], &hosts[1]);
        silent.settings.passive = true;
        ours.want(silent);
        let to = SocketAddr::new(hosts[0].address(Family::V4), 179);
        let held: Vec<TcpStream> =
            hosts[1].inside(|| (0..50).map(|_| TcpStream::connect(to).expect("it is listened on")).collect());
        let open = || held.iter().filter(|stream| !has_ended(stream)).count();
        eventually("that most are closed", &true, || open() <= 1);
        ours.want(plain(&hosts[0], &hosts[2]));
        let other = Ours::start(&hosts[2], 65001, false);
        other.want(plain(&hosts[2], &hosts[0]));
        ours.is_up(hosts[2].address(Family::V4));
    });
}

#[test]
fn a_port_that_is_in_use_is_told_once_and_taken_when_it_is_free() {
    with_hosts(2, Topology::Link, |hosts| {
        let on = SocketAddr::new(hosts[0].address(Family::V4), 179);
        let occupant = hosts[0].inside(|| TcpListener::bind(on).expect("it is free"));
        let ours = Ours::start(&hosts[0], 65001, false);
        let troubles = |ours: &Ours| -> Vec<bool> {
            let heard = ours.heard();
            let of = |event: &Event| match event {
                Event::Trouble(Subject::Listening(one), error) if *one == on => Some(error.is_some()),
                _ => None,
            };
            heard.iter().filter_map(of).collect()
        };
        eventually("that it is told", &vec![true], || troubles(&ours));
        // It is tried several times meanwhile.
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(troubles(&ours), [true]);
        drop(occupant);
        eventually("that it is listened on", &vec![true, false], || troubles(&ours));
        assert!(hosts[1].inside(|| TcpStream::connect(on).is_ok()));
    });
}

#[test]
fn addresses_to_listen_on_come_and_go_and_need_not_be_there_yet() {
    with_hosts(2, Topology::Link, |hosts| {
        let ours = Ours::start(&hosts[0], 65001, false);
        let [first, later] = ["192.0.2.1", "192.0.2.88"].map(|text| format!("{text}:179").parse().expect("an address"));
        let answers =
            |to: SocketAddr| hosts[1].inside(|| TcpStream::connect_timeout(&to, Duration::from_millis(500)).is_ok());
        eventually("that it is listened on", &true, || answers(first));
        ours.listen(&[later]);
        eventually("that it is not any more", &false, || answers(first));
        hosts[0].ask(&["ip", "addr", "add", "192.0.2.88/24", "dev", "eth0"]).expect("an address can be added");
        eventually("that the new one is", &true, || answers(later));
    });
}

#[test]
fn passwords_come_change_and_go_with_their_neighbour() {
    with_hosts(2, Topology::Link, |hosts| {
        let cell = Cell { families: PerFamily { v4: true, v6: false }, ..inside() };
        let [one, other] = pair(hosts, &cell);
        for password in [Some("sesame"), Some("simsim"), None] {
            let changed = Cell { passwords: [password; 2], ..cell.clone() };
            for (ours, host, peer) in [(&one, &hosts[0], &hosts[1]), (&other, &hosts[1], &hosts[0])] {
                let wanted = wanted(&changed, host, peer);
                assert_eq!(wanted.transport.password, password.map(|text| Password::new(text).expect("a password")));
                ours.want(wanted);
            }
            eventually("that the session stands with it", &true, || {
                [(&one, &hosts[1]), (&other, &hosts[0])]
                    .iter()
                    .all(|(ours, peer)| ours.state(peer.address(Family::V4)) == State::Established)
                    && !one.table().is_empty()
            });
        }
    });
}

#[test]
fn who_is_farther_away_than_it_may_be_is_not_heard_whoever_dials() {
    with_hosts(2, Topology::Link, |hosts| {
        let cell = inside();
        for passive in [[false, true], [true, false]] {
            let speakers = [0, 1].map(|number: usize| Ours::start(&hosts[number], 65001, false));
            let want = |time_to_live: [TimeToLive; 2]| {
                for (number, ours) in speakers.iter().enumerate() {
                    let mut wanted = wanted(&cell, &hosts[number], &hosts[1 - number]);
                    wanted.transport.time_to_live = time_to_live[number];
                    wanted.settings.passive = passive[number];
                    ours.want(wanted);
                }
            };
            let them = hosts[1].address(Family::V4);
            let before = hosts[0].counter("TCPMinTTLDrop");
            want([TimeToLive::Secured { hops: 1 }, TimeToLive::Hops(64)]);
            if passive[0] {
                // The first segments were there before the connection had an option of its own.
                speakers[0].hears("that it is refused", |event| match event {
                    Event::Refused(refused) => refused.iter().any(|one| one.because == Refusal::TooFar).then_some(()),
                    _ => None,
                });
            } else {
                eventually("that the kernel drops it", &true, || hosts[0].counter("TCPMinTTLDrop") > before + 1);
            }
            assert_ne!(speakers[0].state(them), State::Established);
            want([TimeToLive::Secured { hops: 1 }; 2]);
            // The peer did not receive the last NOTIFICATION either, and would wait minutes for an OPEN.
            speakers[0].order(vec![Order::Restart(them, Notification::new(Reason::RESET))]);
            speakers[0].is_up(them);
        }
    });
}

#[test]
fn a_neighbour_outside_is_not_reached_over_a_router_unless_that_is_wanted() {
    with_hosts(2, Topology::Router, |hosts| {
        let speakers = [0, 1].map(|number: usize| Ours::start(&hosts[number], 65001, false));
        let them = hosts[1].address(Family::V4);
        let want = |hops: u8| {
            for (number, ours) in speakers.iter().enumerate() {
                let mut wanted = plain(&hosts[number], &hosts[1 - number]);
                wanted.transport.time_to_live = TimeToLive::Hops(hops);
                ours.want(wanted);
            }
        };
        want(1);
        let error = speakers[0].hears("that it is not reached", |event| match event {
            Event::Trouble(Subject::Dialling(address), Some(error)) if *address == them => Some(error.to_string()),
            _ => None,
        });
        assert!(error.starts_with("connect to 192.0.2.2:179"), "{error}");
        want(2);
        speakers[0].is_up(them);
    });
}

#[test]
fn one_that_cannot_be_dialled_is_told_once() {
    with_hosts(2, Topology::Link, |hosts| {
        let ours = Ours::start(&hosts[0], 65001, false);
        ours.want(plain(&hosts[0], &hosts[1]));
        let them = hosts[1].address(Family::V4);
        let troubles = |ours: &Ours| -> Vec<bool> {
            let heard = ours.heard();
            let of = |event: &Event| match event {
                Event::Trouble(Subject::Dialling(one), error) if *one == them => Some(error.is_some()),
                _ => None,
            };
            heard.iter().filter_map(of).collect()
        };
        eventually("that it is told", &vec![true], || troubles(&ours));
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(troubles(&ours), [true], "and dialled again meanwhile");
        let other = Ours::start(&hosts[1], 65001, false);
        other.want(plain(&hosts[1], &hosts[0]));
        ours.is_up(them);
        eventually("that it is over", &vec![true, false], || troubles(&ours));
    });
}

#[test]
fn a_session_at_rest_stays_and_hears_what_is_said_then() {
    with_hosts(2, Topology::Link, |hosts| {
        let cell = inside();
        let [one, other] = [0, 1].map(|number| Ours::start(&hosts[number], cell.asns[0], false));
        let mut quick = [wanted(&cell, &hosts[0], &hosts[1]), wanted(&cell, &hosts[1], &hosts[0])];
        quick.iter_mut().for_each(|wanted| wanted.settings.hold_time = 3);
        let [first, second] = quick;
        one.want(first);
        other.want(second);
        let them = hosts[1].address(Family::V4);
        one.is_up(them);
        let session =
            |ours: &Ours| ours.of(them, |neighbour| (neighbour.peer().session(), neighbour.peer().received()[4]));
        let (begun, _) = session(&one);
        let unread = || one_unread(&hosts[0]);
        eventually("that a KEEPALIVE stays unread", &true, || {
            unread() && {
                std::thread::sleep(Duration::from_millis(100));
                unread()
            }
        });
        // Long enough for the hold timer to expire several times.
        eventually("that keepalives are read", &true, || session(&one).1 > 12);
        assert_eq!(session(&one).0, begun, "the same session");
        other.announce(&cell, &hosts[1]);
        eventually("what the first has", &cell.they_have(&hosts[1]), || one.table());
        // Nobody hears of the end.
        run("ip link set to-2 nomaster");
        other.kill();
        eventually("that the silence is noticed", &true, || session(&one).0.is_none());
    });
}

/// Whether a KEEPALIVE alone lies in the socket of a connection of this host.
fn one_unread(host: &Host) -> bool {
    // The state, and the lengths of both queues (proc_net_tcp.rst of the kernel).
    let text = host.inside(|| std::fs::read_to_string("/proc/thread-self/net/tcp")).expect("connections");
    let fields = |line: &str| line.split_whitespace().skip(3).take(2).map(str::to_owned).collect::<Vec<_>>();
    text.lines().map(fields).any(|fields| fields[0] == "01" && fields[1].ends_with(":00000013"))
}

#[test]
fn a_neighbour_that_says_a_keepalive_late_but_in_time_keeps_its_session() {
    with_hosts(2, Topology::Link, |hosts| {
        const HOLD: u16 = 30;
        let ours = Ours::start(&hosts[0], 65001, false);
        let mut wanted = plain(&hosts[0], &hosts[1]);
        (wanted.settings.hold_time, wanted.settings.passive) = (HOLD, true);
        ours.want(wanted);
        let mut raw = Raw::session(&hosts[1], &hosts[0], IN);
        let them = hosts[1].address(Family::V4);
        let begun = ours.of(them, |neighbour| neighbour.peer().session());
        // Ours come after a quarter to a third of the hold time.
        let keepalive = |raw: &mut Raw| while raw.hear().expect("the session stands") != Message::Keepalive {};
        for _ in 0..3 {
            keepalive(&mut raw);
            raw.say(&message::keepalive());
        }
        for _ in 0..2 {
            keepalive(&mut raw);
            // The next one of ours finds what is said now, the one after it nothing.
            std::thread::sleep(Duration::from_secs(u64::from(HOLD)) / 10);
            raw.say(&message::keepalive());
            (0..3).for_each(|_| keepalive(&mut raw));
            raw.say(&message::keepalive());
        }
        keepalive(&mut raw);
        assert_eq!(ours.of(them, |neighbour| neighbour.peer().session()), begun, "the same session");
    });
}

#[test]
fn a_look_at_a_session_at_rest_that_finds_nothing_does_not_end_its_rest() {
    with_hosts(2, Topology::Link, |hosts| {
        const HOLD: u16 = 30;
        let ours = Ours::start(&hosts[0], 65001, false);
        let mut wanted = plain(&hosts[0], &hosts[1]);
        (wanted.settings.hold_time, wanted.settings.passive) = (HOLD, true);
        ours.want(wanted);
        let mut raw = Raw::session(&hosts[1], &hosts[0], IN);
        // Each of ours, after a quarter to a third of the hold time, is followed by a look.
        let keepalive = |raw: &mut Raw| while raw.hear().expect("the session stands") != Message::Keepalive {};
        for _ in 0..4 {
            keepalive(&mut raw);
            raw.say(&message::keepalive());
        }
        let late = || std::thread::sleep(Duration::from_secs(u64::from(HOLD)) / 5);
        keepalive(&mut raw);
        late();
        raw.say(&message::keepalive());
        eventually("that it rests before", &true, || one_unread(&hosts[0]));
        keepalive(&mut raw);
        keepalive(&mut raw);
        // This look has found nothing, less than half the hold time after the last KEEPALIVE.
        std::thread::sleep(Duration::from_millis(100));
        raw.say(&message::keepalive());
        std::thread::sleep(Duration::from_millis(300));
        eventually("that what comes now waits for the next look", &true, || one_unread(&hosts[0]));
    });
}

#[test]
fn what_is_said_last_arrives_though_the_other_side_is_flooding_us() {
    with_hosts(2, Topology::Link, |hosts| {
        let [one, other] = [0, 1].map(|number| Ours::start(&hosts[number], 65001, false));
        let route = |number: u32| {
            let prefix =
                ipnet::IpNet::new(IpAddr::V4(Ipv4Addr::from(0x0af4_0000 + number * 16)), 28).expect("a prefix");
            let mut attributes = Attributes::local(hosts[1].address(Family::V4));
            attributes.med = Some(number);
            Order::Originate(prefix, Box::new(attributes))
        };
        other.order((0..4096).map(route).collect());
        let mut few = plain(&hosts[0], &hosts[1]);
        few.most.v4 = Some(10);
        one.want(few);
        other.want(plain(&hosts[1], &hosts[0]));
        let said = other.learns("why the session ends", crate::ours::received);
        assert_eq!(said.reason, Reason::MAXIMUM_PREFIXES);
        one.learns("that there were too many", |fact| matches!(fact, Fact::TooMany { .. }).then_some(()));
    });
}

/// Whether the other side ends a connection, without a word.
fn ends(mut stream: TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    match stream.read(&mut [0; 64]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

/// Whether it has done so; what it has said is read over.
fn has_ended(mut stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).expect("it need not wait");
    loop {
        match stream.read(&mut [0; 64]) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != ErrorKind::WouldBlock,
        }
    }
}

#[test]
fn what_is_said_to_be_written_arrives_whatever_happens_afterwards() {
    with_hosts(2, Topology::Link, |hosts| {
        let cell = Cell { graceful: true, ..inside() };
        let other = Ours::start(&hosts[1], 65001, false);
        other.want(wanted(&cell, &hosts[1], &hosts[0]));
        for _ in 0..5 {
            let one = Ours::start(&hosts[0], 65001, false);
            one.announce(&cell, &hosts[0]);
            one.want(wanted(&cell, &hosts[0], &hosts[1]));
            let all = cell.they_have(&hosts[0]);
            eventually("what the other has", &all, || other.table());
            let gone: IpNet = OURS.v4[0].parse().expect("a prefix");
            one.order_and_write(vec![Order::Retract(gone)]);
            one.kill();
            // A neighbour that restarts keeps its routes: what is not there any more was withdrawn.
            let is_gone = |line: &String| line.starts_with(&gone.to_string());
            eventually("that it is gone", &false, || other.table().iter().any(is_gone));
            assert_eq!(other.table().len(), all.len() - 1, "the others stay");
        }
    });
}
