//! From any state of a table to any other, each time in one transaction; large sets; real packets.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use sluice::kernel::nftables::rule::{Mark, Side, States};
use sluice::kernel::nftables::{
    BaseKind, Content, CounterReader, Fields, Hook, Key, Kind, Lookup, Match, Object, Rule, Statement, Verdict,
};
use sluice::net::{Family, Protocol};
use sluice::reconcile::{Growth, Reflection, Target};

use super::moment;
use super::nftables::{Contents, TABLE, address, base, chain, mirror, name, ports, prefix, set, settle};
use crate::namespace::{in_new, run};

/// How many packets the counters have counted that begin so.
fn counts(prefix: &str) -> BTreeMap<String, u64> {
    let counts = CounterReader::open(TABLE).expect("a socket").counts(prefix).expect("they can be read");
    counts.into_iter().map(|(name, count)| (name.to_string(), count.packets)).collect()
}

fn jump(to: &str) -> Rule {
    Rule::new([], Verdict::Jump(name(to)))
}

fn to(verdict: Verdict) -> Content {
    Content::Verdict(Arc::new(verdict))
}

fn in_set(set: &str, lookup: Lookup) -> Match {
    Match::InSet { lookup, set: name(set), negated: false }
}

fn element(set: &str, key: Key, content: Content) -> (Object, Content) {
    (Object::Element(name(set), key), content)
}

/// States that differ in everything that may change.
fn states() -> Vec<Contents> {
    let source = Lookup::Address(Family::V4, Side::Source);
    let input =
        |priority, rules| (Object::Chain(name("b_input")), chain(base(BaseKind::Filter, Hook::Input, priority), rules));
    let pods = |family| (Object::Set(name("pods_x")), set(Fields::Address(family), Kind::Verdicts, false));
    let dispatch =
        |family| Rule::new([], Verdict::Map { lookup: Lookup::Address(family, Side::Source), map: name("pods_x") });
    let blocks = || (Object::Set(name("blocks_4")), set(Fields::Address(Family::V4), Kind::Set, true));
    let block = |text: &str| element("blocks_4", Key::Prefix(prefix(text)), Content::Element);
    let pod = |text: &str, verdict| element("pods_x", Key::Address(address(text)), to(verdict));
    let one = |text: &str, rules| (Object::Chain(name(text)), chain(None, rules));
    let counted = Rule::with([Match::ToMany], [Statement::Count(name("in/x"))], None);
    vec![
        Contents::new(),
        // Chains that name each other, by a rule and by an element.
        Contents::from([
            input(0, vec![dispatch(Family::V4)]),
            pods(Family::V4),
            pod("10.0.0.1", Verdict::Jump(name("in_1"))),
            pod("10.0.0.2", Verdict::Jump(name("in_2"))),
            one("in_1", vec![jump("in_2")]),
            one("in_2", vec![Rule::new([], Verdict::Drop)]),
        ]),
        // The other way around, and an element with another verdict.
        Contents::from([
            input(0, vec![dispatch(Family::V4), jump("in_2")]),
            pods(Family::V4),
            pod("10.0.0.1", Verdict::Drop),
            one("in_2", vec![jump("in_1")]),
            one("in_1", vec![Rule::new([], Verdict::Drop)]),
        ]),
        // The map is of another type, and the chain stands elsewhere.
        Contents::from([input(-7, vec![dispatch(Family::V6)]), pods(Family::V6), pod("fd00::1", Verdict::Accept)]),
        // Ranges that touch; a counter; a rule with an anonymous set.
        Contents::from([
            (Object::Counter(name("in/x")), Content::Counter),
            input(0, vec![counted.clone(), Rule::new([in_set("blocks_4", source)], Verdict::Drop)]),
            blocks(),
            block("10.0.0.0/9"),
            block("10.128.0.0/9"),
            block("255.0.0.0/8"),
        ]),
        // The same addresses in other ranges.
        Contents::from([
            (Object::Counter(name("in/x")), Content::Counter),
            input(0, vec![counted, Rule::new([in_set("blocks_4", source)], Verdict::Drop)]),
            blocks(),
            block("10.0.0.0/8"),
            element("blocks_4", Key::range(address("254.0.0.9"), address("255.0.0.9")), Content::Element),
        ]),
        Contents::from([blocks(), block("0.0.0.0/0"), one("in_1", Vec::new())]),
    ]
}

#[test]
fn any_state_follows_any_other_in_one_transaction() {
    in_new(|| {
        let states = states();
        for (from, one) in states.iter().enumerate() {
            for (to, other) in states.iter().enumerate() {
                let mut ours = mirror();
                settle(&mut ours, one);
                settle(&mut ours, other);
                let read = ours.target().read().expect("the table can be read");
                assert_eq!(read, *other, "from {from} to {to}");
                let steps = ours.steps_done();
                settle(&mut ours, other);
                assert_eq!(ours.steps_done(), steps);
                settle(&mut ours, &Contents::new());
                assert_eq!(run("nft list ruleset"), "", "from {from} to {to}");
            }
        }
    });
}

#[test]
fn a_round_that_may_not_shrink_deletes_nothing() {
    in_new(|| {
        let states = states();
        let mut ours = mirror();
        settle(&mut ours, &states[1]);
        let mut want = Contents::from([(Object::Counter(name("in/y")), Content::Counter)]);
        ours.mark_all();
        ours.transact(&want, Growth::Full, false, moment());
        assert_eq!(ours.seen().map(|seen| seen.len()), Some(states[1].len() + 1));
        want.clear();
        settle(&mut ours, &want);
        assert_eq!(run("nft list ruleset"), "");
    });
}

#[test]
fn fifty_thousand_elements_are_written_and_read_back() {
    in_new(|| {
        let pods = (0..50_000_u32).map(|number| IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + number * 2)));
        let pods = pods.map(|pod| element("peers_4", Key::Address(pod), Content::Element));
        let blocks = (0..10_000_u32).map(|number| Ipv4Addr::from_bits(0x2000_0000 + number * 256));
        let blocks = blocks.map(|block| {
            let range = ipnet::IpNet::new(block.into(), 24 + (u32::from(block) >> 8 & 1) as u8).expect("a length");
            element("blocks_4", Key::Prefix(range), Content::Element)
        });
        let mut want: Contents = pods.chain(blocks).collect();
        want.insert(Object::Set(name("peers_4")), set(Fields::Address(Family::V4), Kind::Set, false));
        want.insert(Object::Set(name("blocks_4")), set(Fields::Address(Family::V4), Kind::Set, true));
        let source = Lookup::Address(Family::V4, Side::Source);
        let rules = vec![Rule::new([in_set("peers_4", source), in_set("blocks_4", source)], Verdict::Drop)];
        want.insert(Object::Chain(name("b_input")), chain(base(BaseKind::Filter, Hook::Input, 0), rules));
        let mut ours = mirror();
        settle(&mut ours, &want);
        assert_eq!(ours.target().read().expect("it can be read"), want);
        // Every second one goes, and some come that are not new sets' any more: more than one message holds.
        let mut number = 0;
        want.retain(|object, _| {
            number += 1;
            number % 2 == 0 || !matches!(object, Object::Element(..))
        });
        let more = (0..20_000_u32).map(|number| IpAddr::V4(Ipv4Addr::from_bits(0x0b00_0000 + number)));
        want.extend(more.map(|pod| element("peers_4", Key::Address(pod), Content::Element)));
        settle(&mut ours, &want);
        assert_eq!(ours.target().read().expect("it can be read"), want);
        settle(&mut ours, &Contents::new());
        assert_eq!(run("nft list ruleset"), "");
    });
}

#[test]
fn a_transaction_may_be_larger_than_what_a_socket_usually_sends() {
    in_new(|| {
        let peers = (Object::Set(name("peers_6")), set(Fields::Addresses(Family::V6), Kind::Set, false));
        let mut want = Contents::from([peers]);
        let mut ours = mirror();
        settle(&mut ours, &want);
        let pods = (0..180_000_u128).map(|number| IpAddr::from(Ipv6Addr::from_bits((0xfd << 120) + number)));
        want.extend(pods.map(|pod| element("peers_6", Key::Itself(pod), Content::Element)));
        settle(&mut ours, &want);
        assert_eq!(ours.target().read().expect("it can be read").len(), want.len());
    });
}

/// Each match, and whether it holds for a UDP packet from the host to itself, to port 5000: of IPv4, of IPv6.
fn cases() -> Vec<(Match, bool, bool)> {
    let range = |text: &str, of, negated| Match::Address { of, range: prefix(text), negated };
    let set = |text: &str, lookup, negated| Match::InSet { lookup, set: name(text), negated };
    let mark = |value, mask, negated| Match::Mark { mark: Mark { value, mask }, negated };
    let new = Match::State { states: States::NEW, negated: false };
    let port = |protocol, first, last| Match::DestinationPort { protocol, range: ports(first, last) };
    let link = |text: &str, negated| Match::OutputLink { name: text.into(), negated };
    let host = |of, negated| Match::HostAddress { of, negated };
    vec![
        (Match::Family(Family::V4), true, false),
        (Match::Family(Family::V6), false, true),
        (range("127.0.0.1/32", Side::Source, false), true, false),
        (range("127.0.0.0/8", Side::Destination, false), true, false),
        (range("127.128.0.0/9", Side::Destination, false), false, false),
        (range("127.128.0.0/9", Side::Destination, true), true, false),
        (range("0.0.0.0/0", Side::Destination, false), true, false),
        (range("::1/128", Side::Source, false), false, true),
        (range("::/61", Side::Destination, false), false, true),
        (range("::/0", Side::Destination, true), false, false),
        (set("peers_4", Lookup::Address(Family::V4, Side::Source), false), true, false),
        (set("peers_4", Lookup::Address(Family::V4, Side::Source), true), false, false),
        (set("itself_6", Lookup::Addresses(Family::V6), false), false, true),
        (set("services_4", Lookup::DestinationService(Family::V4), false), true, false),
        (set("services_4", Lookup::DestinationService(Family::V4), true), false, false),
        (set("services_6", Lookup::OriginalService(Family::V6), false), false, true),
        (set("services_4", Lookup::OriginalService(Family::V4), false), true, false),
        (set("links_1", Lookup::OutputLink, false), true, true),
        (set("links_1", Lookup::OutputLink, true), false, false),
        (set("ports_1", Lookup::DestinationProtocolPort, false), true, true),
        (set("ranges_1", Lookup::DestinationPort(Protocol::Udp), false), true, true),
        (set("ranges_1", Lookup::DestinationPort(Protocol::Tcp), false), false, false),
        (host(Side::Source, false), true, true),
        (host(Side::Destination, true), false, false),
        (Match::ToMany, false, false),
        (Match::Protocol(Protocol::Udp), true, true),
        (Match::Protocol(Protocol::Tcp), false, false),
        (Match::IcmpKind { family: Family::V4, number: 8 }, false, false),
        (port(Protocol::Udp, 5000, 5000), true, true),
        (port(Protocol::Udp, 256, 5000), true, true),
        (port(Protocol::Udp, 5001, 65535), false, false),
        (port(Protocol::Tcp, 1, 65535), false, false),
        (new, true, true),
        (Match::State { states: States::ESTABLISHED.or(States::RELATED), negated: true }, true, true),
        (Match::State { states: States::NEW.or(States::INVALID), negated: true }, false, false),
        (mark(0, u32::MAX, false), true, true),
        (mark(0x10, 0x30, true), true, true),
        (mark(0x10, 0x30, false), false, false),
        (link("lo", false), true, true),
        (link("l", false), false, false),
        (link("lo", true), false, false),
        (Match::Limit { per_minute: 60, burst: 5 }, true, true),
    ]
}

/// Counts in a chain for every case, in the order of the cases.
fn counting(cases: &[(Match, bool, bool)]) -> Contents {
    let sample = |family| if family == Family::V4 { address("127.0.0.1") } else { address("::1") };
    let mut contents = Contents::new();
    let mut put = |text: &str, fields, intervals, key| {
        contents.insert(Object::Set(name(text)), set(fields, Kind::Set, intervals));
        contents.extend([element(text, key, Content::Element)]);
    };
    put("peers_4", Fields::Address(Family::V4), false, Key::Address(sample(Family::V4)));
    put("itself_6", Fields::Addresses(Family::V6), false, Key::Itself(sample(Family::V6)));
    for (text, family) in [("services_4", Family::V4), ("services_6", Family::V6)] {
        put(text, Fields::Service(family), false, Key::Service(sample(family), Protocol::Udp, 5000));
    }
    put("links_1", Fields::Link, false, Key::Link(name("lo")));
    put("ports_1", Fields::ProtocolPort, false, Key::ProtocolPort(Protocol::Udp, 5000));
    put("ranges_1", Fields::Port, true, Key::Ports(ports(256, 5000)));
    let mut rules = Vec::new();
    for (number, (one, ..)) in cases.iter().enumerate() {
        let counter = name(&format!("case/{number:03}"));
        contents.insert(Object::Counter(counter.clone()), Content::Counter);
        rules.push(Rule::with([one.clone()], [Statement::Count(counter)], None));
    }
    contents.insert(Object::Chain(name("b_output")), chain(base(BaseKind::Filter, Hook::Output, 0), rules));
    contents
}

#[test]
fn every_match_means_for_a_packet_what_it_says() {
    in_new(|| {
        let cases = cases();
        for (to, is_v4) in [("127.0.0.1:5000", true), ("[::1]:5000", false)] {
            let to: SocketAddr = to.parse().expect("an address");
            let receiver = UdpSocket::bind(to).expect("a socket");
            let sender = UdpSocket::bind(SocketAddr::new(to.ip(), 0)).expect("a socket");
            let mut ours = mirror();
            settle(&mut ours, &counting(&cases));
            sender.send_to(b"x", to).expect("it is sent");
            receiver.recv(&mut [0; 8]).expect("it is received");
            let counts = counts("case/");
            for (number, (one, of_v4, of_v6)) in cases.iter().enumerate() {
                let expected = u64::from(if is_v4 { *of_v4 } else { *of_v6 });
                assert_eq!(counts[&format!("case/{number:03}")], expected, "{one:?} for a packet to {to}");
            }
            settle(&mut ours, &Contents::new());
        }
    });
}

#[test]
fn every_verdict_does_with_a_packet_what_it_says() {
    in_new(|| {
        let receiver = UdpSocket::bind("127.0.0.1:5000").expect("a socket");
        receiver.set_read_timeout(Some(std::time::Duration::from_secs(1))).expect("a timeout");
        let arrives = |verdict: Verdict| {
            let mut ours = mirror();
            let lookup = Lookup::DestinationPort(Protocol::Udp);
            let dispatch = Rule::new([], Verdict::Map { lookup, map: name("ports_1") });
            let to_port = Match::DestinationPort { protocol: Protocol::Udp, range: ports(5000, 5000) };
            let input = vec![dispatch, Rule::new([to_port], Verdict::Drop)];
            let want = Contents::from([
                (Object::Set(name("ports_1")), set(Fields::Port, Kind::Verdicts, true)),
                element("ports_1", Key::Ports(ports(4000, 6000)), to(Verdict::Jump(name("in_1")))),
                (Object::Chain(name("in_1")), chain(None, vec![Rule::new([], verdict)])),
                (Object::Chain(name("b_input")), chain(base(BaseKind::Filter, Hook::Input, 0), input)),
            ]);
            settle(&mut ours, &want);
            let sender = UdpSocket::bind("127.0.0.1:0").expect("a socket");
            sender.connect("127.0.0.1:5000").expect("a destination");
            sender.send(b"x").expect("it is sent");
            let arrived = receiver.recv(&mut [0; 8]).is_ok();
            sender.set_nonblocking(true).expect("it does not wait");
            let answer = sender.recv(&mut [0; 8]).expect_err("nobody answers").kind();
            settle(&mut ours, &Contents::new());
            (arrived, answer == std::io::ErrorKind::ConnectionRefused)
        };
        assert_eq!(arrives(Verdict::Accept), (true, false));
        assert_eq!(arrives(Verdict::Drop), (false, false));
        assert_eq!(arrives(Verdict::Reject), (false, true));
        assert_eq!(arrives(Verdict::Return), (false, false), "the chain that dispatched goes on, and drops");
    });
}

#[test]
fn a_mark_is_set_by_bits_and_from_a_map() {
    in_new(|| {
        let to: SocketAddr = "127.0.0.1:5000".parse().expect("an address");
        let mark = |value, mask| Mark { value, mask };
        let set_mark = |one| Rule::with([], [Statement::SetMark(one)], None);
        let service = Lookup::DestinationService(Family::V4);
        let seen = |value| {
            let matches = [Match::Mark { mark: mark(value, u32::MAX), negated: false }];
            Rule::with(matches, [Statement::Count(name(&format!("seen/{value:x}")))], None)
        };
        let rules = vec![
            set_mark(mark(0x0f, u32::MAX)),
            seen(0x0f),
            set_mark(mark(0x30, 0x33)),
            seen(0x3c),
            Rule::with([], [Statement::MarkFrom { lookup: service, map: name("marks_4") }], None),
            seen(0x3bb0),
        ];
        let mut want = Contents::from([
            (Object::Set(name("marks_4")), set(Fields::Service(Family::V4), Kind::Marks, false)),
            element("marks_4", Key::Service(to.ip(), Protocol::Udp, 5000), Content::Mark(0x3bb0)),
            (Object::Chain(name("b_output")), chain(base(BaseKind::Route, Hook::Output, -150), rules)),
        ]);
        for value in ["f", "3c", "3bb0"] {
            want.insert(Object::Counter(name(&format!("seen/{value}"))), Content::Counter);
        }
        let mut ours = mirror();
        settle(&mut ours, &want);
        let _receiver = UdpSocket::bind(to).expect("a socket");
        let sender = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        sender.send_to(b"x", to).expect("it is sent");
        let counts = counts("");
        assert_eq!(counts.values().copied().collect::<Vec<_>>(), [1, 1, 1], "{counts:?}");
    });
}

#[test]
fn what_goes_to_many_and_each_kind_of_icmp_message_is_told() {
    in_new(|| {
        run("ip route add 224.0.0.0/4 dev lo");
        run("ip -6 route add ff00::/8 dev lo table local");
        let kind = |family, number| (Match::IcmpKind { family, number }, 1);
        // Each match, and how many of the packets below it holds for.
        let cases = [
            // The kernel gives no IPv6 address these types.
            (Match::ToMany, 2),
            kind(Family::V4, 8),
            kind(Family::V4, 0),
            kind(Family::V6, 128),
            kind(Family::V6, 129),
            (Match::IcmpKind { family: Family::V4, number: 128 }, 0),
            (Match::IcmpKind { family: Family::V6, number: 8 }, 0),
            (Match::Icmp(Family::V4), 2),
            (Match::Icmp(Family::V6), 2),
        ];
        let mut ours = mirror();
        settle(&mut ours, &counting(&cases.clone().map(|(one, _)| (one, true, true))));
        let _receiver = UdpSocket::bind("127.0.0.1:5000").expect("a socket");
        for to in ["127.255.255.255:5000", "224.0.0.1:5000", "127.0.0.1:5000"] {
            let sender = UdpSocket::bind("127.0.0.1:0").expect("a socket");
            sender.set_broadcast(true).expect("it may");
            sender.send_to(b"x", to).expect("it is sent");
        }
        let sender = UdpSocket::bind("[::1]:0").expect("a socket");
        sender.send_to(b"x", "[ff05::1]:5000").expect("it is sent");
        run("ping -c 1 -W 5 127.0.0.1");
        run("ping -c 1 -W 5 ::1");
        let counts = counts("case/");
        for (number, (one, expected)) in cases.iter().enumerate() {
            assert_eq!(counts[&format!("case/{number:03}")], *expected, "{one:?}");
        }
    });
}

/// The elements of new sets come in several transactions, of which a later one is refused.
#[test]
fn what_was_written_before_a_portion_that_is_refused_is_known() {
    in_new(|| {
        let pods = (0..20_000_u32).map(|number| IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + number)));
        let mut want: Contents = pods.map(|pod| element("peers_4", Key::Address(pod), Content::Element)).collect();
        want.insert(Object::Set(name("peers_4")), set(Fields::Address(Family::V4), Kind::Set, false));
        want.insert(Object::Set(name("ranges_4")), set(Fields::Address(Family::V4), Kind::Set, true));
        want.extend([element("ranges_4", Key::Prefix(prefix("10.0.0.0/8")), Content::Element)]);
        let (within, _) = element("ranges_4", Key::Prefix(prefix("10.1.0.0/16")), Content::Element);
        want.insert(within.clone(), Content::Element);
        let mut ours = mirror();
        ours.mark_all();
        ours.transact(&want, Growth::Full, true, moment());
        assert_eq!(ours.target().take_refused().into_keys().collect::<Vec<_>>(), [Object::Set(name("ranges_4"))]);
        assert!(run("nft list set inet sluice_test peers_4").contains("10.0.0.9"), "the first portion was taken");
        // What was at fault among the elements is told when they are tried again.
        ours.try_at_once();
        ours.transact(&want, Growth::Full, true, moment());
        assert_eq!(ours.target().take_refused().into_keys().collect::<Vec<_>>(), std::slice::from_ref(&within));
        want.remove(&within);
        ours.try_at_once();
        settle(&mut ours, &want);
        assert_eq!(ours.target().read().expect("it can be read"), want);
        settle(&mut ours, &Contents::new());
        assert_eq!(run("nft list ruleset"), "");
    });
}

#[test]
fn an_element_that_the_kernel_refuses_keeps_no_other_out_where_objects_only_grow() {
    in_new(|| {
        let service = |port: u16| Key::Service([10, 96, 0, 1].into(), Protocol::Tcp, port);
        let mut want: Contents = (1..500).map(|port| element("ports4", service(port), Content::Element)).collect();
        want.insert(Object::Set(name("ports4")), set(Fields::Service(Family::V4), Kind::Set, false));
        want.insert(Object::Set(name("ranges_4")), set(Fields::Address(Family::V4), Kind::Set, true));
        want.extend([element("ranges_4", Key::Prefix(prefix("10.0.0.0/8")), Content::Element)]);
        let (within, _) = element("ranges_4", Key::Prefix(prefix("10.1.0.0/16")), Content::Element);
        want.insert(within.clone(), Content::Element);
        let known = Rule::new([in_set("ports4", Lookup::DestinationService(Family::V4))], Verdict::Accept);
        want.insert(Object::Chain(name("guard")), chain(None, vec![known]));
        let mut ours = mirror();
        ours.mark_all();
        ours.grow(&want, Growth::Full, moment());
        assert_eq!(ours.failing_to_grow().collect::<Vec<_>>(), [&within], "{:?}", ours.trouble());
        let mut others = want.clone();
        others.remove(&within);
        assert_eq!(ours.target().read().expect("it can be read"), others, "everything else is in force, in one round");
        // What comes later is not held up by it either.
        let (later, content) = element("ports4", service(500), Content::Element);
        want.insert(later.clone(), content.clone());
        others.insert(later.clone(), content);
        ours.mark(later);
        ours.try_at_once();
        ours.grow(&want, Growth::Full, moment());
        assert_eq!(ours.target().read().expect("it can be read"), others);
    });
}

/// However many are refused for one reason, wherever they stand: at the end of everything, and in two sets of which one is filled before the rest.
#[test]
fn many_elements_that_the_kernel_refuses_for_one_reason_keep_no_other_out() {
    for many in [3, 40] {
        in_new(|| {
            let service = |port: u16| Key::Service([10, 96, 0, 1].into(), Protocol::Tcp, port);
            let mut want: Contents = (1..6000).map(|port| element("ports4", service(port), Content::Element)).collect();
            want.insert(Object::Set(name("ports4")), set(Fields::Service(Family::V4), Kind::Set, false));
            let mut refused = Vec::new();
            for text in ["ranges_4", "zones_4"] {
                want.insert(Object::Set(name(text)), set(Fields::Address(Family::V4), Kind::Set, true));
                want.extend([element(text, Key::Prefix(prefix("10.0.0.0/8")), Content::Element)]);
                let within = |number| Object::Element(name(text), Key::Prefix(prefix(&format!("10.{number}.0.0/16"))));
                refused.extend((1..=many).map(within));
            }
            let known = Rule::new([in_set("ports4", Lookup::DestinationService(Family::V4))], Verdict::Accept);
            want.insert(Object::Chain(name("guard")), chain(None, vec![known]));
            let others = want.clone();
            want.extend(refused.iter().map(|object| (object.clone(), Content::Element)));
            let mut ours = mirror();
            ours.mark_all();
            ours.grow(&want, Growth::Full, moment());
            let failing: Vec<&Object> = ours.failing_to_grow().collect();
            assert_eq!(failing, refused.iter().collect::<Vec<_>>(), "{:?}", ours.trouble());
            assert_eq!(ours.target().read().expect("it can be read"), others, "everything else is in force");
            // The next round tries them again, and what comes with them is in force all the same.
            let (later, content) = element("ports4", service(6000), Content::Element);
            want.insert(later.clone(), content);
            ours.mark_all();
            ours.try_at_once();
            ours.grow(&want, Growth::Full, moment());
            assert!(ours.target().read().expect("it can be read").contains_key(&later));
        });
    }
}
