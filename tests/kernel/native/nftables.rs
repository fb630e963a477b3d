//! A table of ours in the real kernel: written by us and read with `nft`, which also has to be able to load what it printed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use sluice::kernel::nftables::rule::{Mark, Side, States};
use sluice::kernel::nftables::{
    Base, BaseKind, Chain, Content, Fields, Hook, Key, Kind, Lookup, Match, Name, Object, OwnTable, Rule, SetSpec,
    Statement, Verdict,
};
use sluice::net::{Family, PortRange, Protocol};
use sluice::reconcile::{Growth, Mirror, Reflection};

use super::moment;
use crate::namespace::{in_new, run, shell};

pub const TABLE: &str = "sluice_test";

pub type Contents = BTreeMap<Object, Content>;

pub fn mirror() -> Mirror<OwnTable> {
    Mirror::new(OwnTable::open(TABLE).expect("a socket"))
}

/// Brings the table into this state, and sees that it was done without trouble.
pub fn settle(mirror: &mut Mirror<OwnTable>, want: &Contents) {
    mirror.mark_all();
    mirror.transact(want, Growth::Full, true, moment());
    assert!(mirror.is_settled(), "{:?}", mirror.trouble());
}

/// Ends the process that has the table, so to speak. A program that is being started by another test holds its socket a bit longer.
pub fn end(mirror: Mirror<OwnTable>) {
    drop(mirror);
    for _ in 0..500 {
        if !run("nft list table inet sluice_test").contains("flags owner") {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("the table still has an owner");
}

pub fn name(text: &str) -> Name {
    Name::from(text)
}

pub fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub fn prefix(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

pub fn ports(first: u16, last: u16) -> PortRange {
    PortRange { first, last }
}

pub fn set(fields: Fields, kind: Kind, intervals: bool) -> Content {
    Content::Set(SetSpec { fields, kind, intervals })
}

pub fn base(kind: BaseKind, hook: Hook, priority: i32) -> Option<Base> {
    Some(Base { kind, hook, priority })
}

pub fn chain(base: Option<Base>, rules: Vec<Rule>) -> Content {
    Content::Chain(Arc::new(Chain { base, rules }))
}

/// One set of each type, each with elements where ranges could go wrong.
fn sets() -> Contents {
    let mut contents = Contents::new();
    let mut put = |text: &str, spec: Content, elements: Vec<(Key, Content)>| {
        contents.insert(Object::Set(name(text)), spec);
        let elements = elements.into_iter().map(|(key, content)| (Object::Element(name(text), key), content));
        contents.extend(elements);
    };
    let plain = |keys: Vec<Key>| keys.into_iter().map(|key| (key, Content::Element)).collect();
    let to = |verdict: Verdict| Content::Verdict(Arc::new(verdict));
    for (family, one, other) in [(Family::V4, "10.0.0.1", "10.0.0.2"), (Family::V6, "fd00::1", "fd00::2")] {
        let (one, other) = (address(one), address(other));
        let number = if family == Family::V4 { 4 } else { 6 };
        let called = |text: &str| format!("{text}_{number}");
        put(
            &called("addresses"),
            set(Fields::Address(family), Kind::Set, false),
            plain(vec![Key::Address(one), Key::Address(other)]),
        );
        put(&called("itself"), set(Fields::Addresses(family), Kind::Set, false), plain(vec![Key::Itself(one)]));
        let services = Protocol::ALL.map(|protocol| Key::Service(one, protocol, 443));
        put(&called("services"), set(Fields::Service(family), Kind::Set, false), plain(services.to_vec()));
        let sources = [one, other].map(|source| Key::ServiceSource(Box::new((one, Protocol::Sctp, 443, source))));
        put(&called("sources"), set(Fields::ServiceSource(family), Kind::Set, false), plain(sources.to_vec()));
        put(
            &called("pods"),
            set(Fields::Address(family), Kind::Verdicts, false),
            vec![(Key::Address(one), to(Verdict::Jump(name("in_class")))), (Key::Address(other), to(Verdict::Drop))],
        );
        put(
            &called("marks"),
            set(Fields::Service(family), Kind::Marks, false),
            vec![(Key::Service(one, Protocol::Tcp, 80), Content::Mark(0x3bb0))],
        );
    }
    let blocks = ["10.0.0.0/8", "11.0.0.0/8", "12.0.0.0/32", "0.0.0.0/8", "255.255.255.0/24"];
    let mut blocks: Vec<Key> = blocks.into_iter().map(|block| Key::Prefix(prefix(block))).collect();
    blocks.push(Key::range(address("172.16.0.3"), address("172.16.0.17")));
    put("blocks_4", set(Fields::Address(Family::V4), Kind::Set, true), plain(blocks));
    put(
        "blocks_6",
        set(Fields::Address(Family::V6), Kind::Set, true),
        plain(vec![Key::Prefix(prefix("fd00::/64")), Key::Prefix(prefix("ffff::/16"))]),
    );
    put("all_4", set(Fields::Address(Family::V4), Kind::Set, true), plain(vec![Key::Prefix(prefix("0.0.0.0/0"))]));
    put("all_6", set(Fields::Address(Family::V6), Kind::Set, true), plain(vec![Key::Prefix(prefix("::/0"))]));
    let number = |protocol, port| Key::ProtocolPort(protocol, port);
    put(
        "ports_exact",
        set(Fields::ProtocolPort, Kind::Verdicts, false),
        vec![
            (number(Protocol::Tcp, 80), to(Verdict::Accept)),
            (number(Protocol::Udp, 53), to(Verdict::Goto(name("in_class")))),
            (number(Protocol::Sctp, 9), to(Verdict::Return)),
        ],
    );
    put(
        "ports_ranges",
        set(Fields::Port, Kind::Verdicts, true),
        vec![
            (Key::Ports(ports(0, 80)), to(Verdict::Accept)),
            (Key::Ports(ports(81, 81)), to(Verdict::Drop)),
            (Key::Ports(ports(8000, 65535)), to(Verdict::Jump(name("in_class")))),
        ],
    );
    put("given_1", set(Fields::Mark, Kind::Set, false), plain(vec![Key::Mark(0x3bb0), Key::Mark(1)]));
    put("links_1", set(Fields::Link, Kind::Set, false), plain(vec![Key::Link(name("eth0"))]));
    contents
}

/// Every rule that can be said in a chain that filters, and what `nft` prints of it.
#[expect(clippy::too_many_lines, reason = "a list of cases")]
fn rules() -> Vec<(Rule, &'static str)> {
    let one = |one: Match, text: &'static str| (Rule::new([one], Verdict::Accept), text);
    let set = |lookup: Lookup, of: &str, negated: bool| Match::InSet { lookup, set: name(of), negated };
    let with = |statement: Statement, text: &'static str| (Rule::with([], [statement], None), text);
    let end = |verdict: Verdict, text: &'static str| (Rule::new([], verdict), text);
    let range = |text: &str, of: Side, negated: bool| Match::Address { of, range: prefix(text), negated };
    let mark = |value, mask| Mark { value, mask };
    vec![
        one(Match::Family(Family::V6), "meta nfproto ipv6 accept"),
        one(range("10.0.0.1/32", Side::Source, false), "ip saddr 10.0.0.1 accept"),
        one(range("10.0.0.0/8", Side::Destination, true), "ip daddr != 10.0.0.0/8 accept"),
        one(range("10.32.0.0/11", Side::Source, false), "ip saddr 10.32.0.0/11 accept"),
        one(range("0.0.0.0/0", Side::Source, false), "ip saddr 0.0.0.0/0 accept"),
        one(range("fd00::/61", Side::Destination, false), "ip6 daddr fd00::/61 accept"),
        one(range("fd00::1/128", Side::Source, true), "ip6 saddr != fd00::1 accept"),
        one(set(Lookup::Address(Family::V4, Side::Source), "addresses_4", false), "ip saddr @addresses_4 accept"),
        one(set(Lookup::Address(Family::V6, Side::Destination), "blocks_6", true), "ip6 daddr != @blocks_6 accept"),
        one(set(Lookup::Addresses(Family::V4), "itself_4", false), "ip saddr . ip daddr @itself_4 accept"),
        one(set(Lookup::Addresses(Family::V6), "itself_6", false), "ip6 saddr . ip6 daddr @itself_6 accept"),
        one(
            set(Lookup::DestinationService(Family::V4), "services_4", false),
            "ip daddr . meta l4proto . th dport @services_4 accept",
        ),
        one(
            set(Lookup::ServiceSource(Family::V4, 24), "sources_4", false),
            "ip daddr . meta l4proto . th dport . ip saddr & 255.255.255.0 @sources_4 accept",
        ),
        one(
            set(Lookup::ServiceSource(Family::V6, 64), "sources_6", false),
            "ip6 daddr . meta l4proto . th dport . ip6 saddr & ffff:ffff:ffff:ffff:: @sources_6 accept",
        ),
        one(
            set(Lookup::ServiceItself(Family::V4), "sources_4", false),
            "ip daddr . meta l4proto . th dport . ip daddr @sources_4 accept",
        ),
        one(
            set(Lookup::ServiceItself(Family::V6), "sources_6", true),
            "ip6 daddr . meta l4proto . th dport . ip6 daddr != @sources_6 accept",
        ),
        one(
            set(Lookup::DestinationService(Family::V6), "services_6", true),
            "ip6 daddr . meta l4proto . th dport != @services_6 accept",
        ),
        (
            Rule::new(
                [Match::Protocol(Protocol::Tcp), set(Lookup::OriginalService(Family::V4), "services_4", false)],
                Verdict::Accept,
            ),
            "meta l4proto tcp ct original ip daddr . meta l4proto . ct original proto-dst @services_4 accept",
        ),
        (
            Rule::new(
                [Match::Protocol(Protocol::Udp), set(Lookup::OriginalService(Family::V6), "services_6", false)],
                Verdict::Accept,
            ),
            "meta l4proto udp ct original ip6 daddr . meta l4proto . ct original proto-dst @services_6 accept",
        ),
        one(set(Lookup::Mark, "given_1", false), "meta mark @given_1 accept"),
        one(set(Lookup::InputLink, "links_1", false), "iifname @links_1 accept"),
        one(set(Lookup::OutputLink, "links_1", true), "oifname != @links_1 accept"),
        one(Match::HostAddress { of: Side::Source, negated: false }, "fib saddr type local accept"),
        one(Match::HostAddress { of: Side::Destination, negated: true }, "fib daddr type != local accept"),
        one(Match::ToMany, "fib daddr type { broadcast, multicast } accept"),
        one(Match::Protocol(Protocol::Sctp), "meta l4proto sctp accept"),
        one(Match::Icmp(Family::V4), "meta l4proto icmp accept"),
        one(Match::Icmp(Family::V6), "meta l4proto ipv6-icmp accept"),
        one(Match::IcmpKind { family: Family::V4, number: 8 }, "icmp type echo-request accept"),
        one(Match::IcmpKind { family: Family::V6, number: 135 }, "icmpv6 type nd-neighbor-solicit accept"),
        one(Match::DestinationPort { protocol: Protocol::Tcp, range: ports(80, 80) }, "tcp dport 80 accept"),
        one(Match::DestinationPort { protocol: Protocol::Sctp, range: ports(1, 65535) }, "sctp dport 1-65535 accept"),
        one(Match::Encapsulated(Family::V4), "meta l4proto ipencap accept"),
        one(Match::Encapsulated(Family::V6), "meta l4proto ipv6 accept"),
        one(Match::Authenticated { negated: false }, "meta l4proto ah accept"),
        one(Match::Authenticated { negated: true }, "meta l4proto != ah accept"),
        one(Match::VxlanNumber(7), "meta l4proto udp @th,96,24 0x7 accept"),
        one(Match::Opening, "tcp flags syn / syn,rst accept"),
        one(Match::Answer, "ct direction reply accept"),
        one(
            Match::State { states: States::ESTABLISHED.or(States::RELATED), negated: false },
            "ct state established,related accept",
        ),
        one(Match::State { states: States::INVALID, negated: false }, "ct state invalid accept"),
        one(
            Match::State { states: States::NEW.or(States::UNTRACKED), negated: true },
            "ct state ! new,untracked accept",
        ),
        one(Match::Mark { mark: mark(0x10, u32::MAX), negated: false }, "meta mark 0x00000010 accept"),
        one(Match::Mark { mark: mark(0x10, 0x30), negated: true }, "meta mark & 0x00000030 != 0x00000010 accept"),
        one(
            Match::ConnectionMark { mark: mark(0x10, 0x10), negated: false },
            "ct mark & 0x00000010 == 0x00000010 accept",
        ),
        one(Match::InputLink { name: "eth0".into(), negated: false }, "iifname \"eth0\" accept"),
        one(Match::OutputLink { name: "kube-bridge".into(), negated: true }, "oifname != \"kube-bridge\" accept"),
        one(Match::Limit { per_minute: 10, burst: 10 }, "limit rate 10/minute burst 10 packets accept"),
        with(Statement::Count(name("in/ns/policy")), "counter name \"in/ns/policy\""),
        with(Statement::Log { group: 100, prefix: "in/ns/policy ".into() }, "log prefix \"in/ns/policy \" group 100"),
        with(Statement::SetMark(mark(0x10, u32::MAX)), "meta mark set 0x00000010"),
        with(Statement::SetMark(mark(0x10, 0x30)), "meta mark set meta mark & 0xffffffdf | 0x00000010"),
        (
            Rule::with([Match::Opening], [Statement::SetMss(1440)], None),
            "tcp flags syn / syn,rst tcp option maxseg size set 1440",
        ),
        with(
            Statement::MarkFrom { lookup: Lookup::DestinationService(Family::V4), map: name("marks_4") },
            "meta mark set ip daddr . meta l4proto . th dport map @marks_4",
        ),
        end(
            Verdict::Map { lookup: Lookup::Address(Family::V4, Side::Destination), map: name("pods_4") },
            "ip daddr vmap @pods_4",
        ),
        end(
            Verdict::Map { lookup: Lookup::DestinationProtocolPort, map: name("ports_exact") },
            "meta l4proto . th dport vmap @ports_exact",
        ),
        end(
            Verdict::Map { lookup: Lookup::DestinationPort(Protocol::Tcp), map: name("ports_ranges") },
            "tcp dport vmap @ports_ranges",
        ),
        end(Verdict::Return, "return"),
        end(Verdict::Reject, "reject"),
        (Rule::new([range("10.0.0.1/32", Side::Source, false)], Verdict::Reject), "ip saddr 10.0.0.1 reject"),
        end(Verdict::Jump(name("in_class")), "jump in_class"),
        end(Verdict::Goto(name("in_class")), "goto in_class"),
        (Rule::new([], Verdict::Drop).commented("a \"comment\""), "drop comment \"a 'comment'\""),
        (
            Rule::with(
                [
                    Match::Family(Family::V4),
                    range("10.0.0.0/8", Side::Source, false),
                    Match::DestinationPort { protocol: Protocol::Tcp, range: ports(80, 80) },
                    set(Lookup::Address(Family::V4, Side::Destination), "addresses_4", false),
                    Match::Limit { per_minute: 60, burst: 5 },
                ],
                [Statement::Count(name("in/ns/policy")), Statement::Log { group: 100, prefix: "x".into() }],
                Some(Verdict::Reject),
            ),
            "meta nfproto ipv4 ip saddr 10.0.0.0/8 tcp dport 80 ip daddr @addresses_4 limit rate 60/minute \
             counter name \"in/ns/policy\" log prefix \"x\" group 100 reject",
        ),
    ]
}

fn nat() -> Vec<(Rule, &'static str)> {
    let end = |verdict: Verdict, text: &'static str| (Rule::new([], verdict), text);
    vec![
        end(Verdict::Masquerade { random_ports: false }, "masquerade"),
        end(Verdict::Masquerade { random_ports: true }, "masquerade fully-random"),
        end(Verdict::SourceNat { to: address("192.0.2.1"), random_ports: true }, "snat ip to 192.0.2.1 fully-random"),
        end(Verdict::SourceNat { to: address("fd00::1"), random_ports: false }, "snat ip6 to fd00::1"),
    ]
}

fn everything() -> (Contents, Vec<&'static str>) {
    let mut contents = sets();
    contents.insert(Object::Counter(name("in/ns/policy")), Content::Counter);
    contents.insert(Object::Chain(name("in_class")), chain(None, Vec::new()));
    let (rules, texts): (Vec<Rule>, Vec<&str>) = rules().into_iter().unzip();
    let (nat, others): (Vec<Rule>, Vec<&str>) = nat().into_iter().unzip();
    contents.insert(Object::Chain(name("b_input")), chain(base(BaseKind::Filter, Hook::Input, -10), rules));
    contents.insert(Object::Chain(name("b_post")), chain(base(BaseKind::Nat, Hook::Postrouting, 101), nat));
    contents.insert(Object::Chain(name("b_route")), chain(base(BaseKind::Route, Hook::Output, -150), Vec::new()));
    contents.insert(Object::Chain(name("b_pre")), chain(base(BaseKind::Filter, Hook::Prerouting, -150), Vec::new()));
    contents.insert(Object::Chain(name("b_forward")), chain(base(BaseKind::Filter, Hook::Forward, -9), Vec::new()));
    (contents, texts.into_iter().chain(others).collect())
}

#[test]
fn whatever_can_be_said_is_printed_by_nft_loaded_by_it_and_read_back() {
    in_new(|| {
        let (want, texts) = everything();
        let mut ours = mirror();
        settle(&mut ours, &want);
        let owned = ours.peek().is_owned();
        let printed = run("nft list ruleset");
        println!("{printed}");
        for text in texts {
            let is_line = |line: &str| line.trim() == text;
            assert!(printed.lines().any(is_line), "{text}\n is not in\n{printed}");
        }
        let parts = [
            "type ipv4_addr . inet_proto . inet_service\n",
            "type ipv6_addr . ipv6_addr\n",
            "type inet_proto . inet_service : verdict\n",
            "type ipv4_addr . inet_proto . inet_service : mark\n",
            "type ifname\n",
            "0-80 : accept",
            "81 : drop",
            "8000-65535 : jump in_class",
            "255.255.255.0/24",
            "172.16.0.3-172.16.0.17",
            "0.0.0.0/8",
            "ffff::/16",
            "0.0.0.0/0",
            "::/0",
            "udp . 53 : goto in_class",
            "10.0.0.1 . tcp . 80 : 0x00003bb0",
            "10.0.0.1 . 10.0.0.1",
            "type filter hook input priority filter - 10; policy accept;",
            "type nat hook postrouting priority srcnat + 1; policy accept;",
            "type route hook output priority mangle; policy accept;",
        ];
        for part in parts {
            assert!(printed.contains(part), "{part}\n is not in\n{printed}");
        }
        shell("nft -j list ruleset > /dev/null");
        end(ours);
        // Another process finds all of it as it is, and does not do anything.
        let mut again = mirror();
        settle(&mut again, &want);
        let seen = again.seen().expect("it was read");
        for (key, value) in &want {
            assert_eq!(seen.get(key), Some(value), "{key}");
        }
        assert_eq!((seen.len(), again.steps_done()), (want.len(), 0));
        assert_eq!(again.peek().is_owned(), owned);
        end(again);
        // The listing of `nft` can be loaded by `nft` and gives the same listing.
        let file = tempfile::NamedTempFile::new().expect("a file");
        let list = || run("nft list ruleset").replace("flags \n", "");
        let before = list();
        std::fs::write(file.path(), &before).expect("it can be written");
        run("nft flush ruleset");
        run(&format!("nft -f {}", file.path().display()));
        // It says with which ICMP it rejects where it knows the family, and leaves out what goes without saying.
        let lines = |text: &str| -> Vec<String> {
            let text = text.replace(" with icmp port-unreachable", "").replace("meta nfproto ipv4 ip ", "ip ");
            text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
        };
        assert_eq!(lines(&list()), lines(&before));
        let mut loaded = mirror();
        settle(&mut loaded, &want);
        settle(&mut loaded, &Contents::new());
        assert_eq!(run("nft list ruleset"), "");
    });
}

#[test]
fn a_kernel_that_does_not_say_whether_there_is_a_table_is_not_taken_for_one_without() {
    use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
    in_new(|| {
        assert!(!sluice::kernel::nftables::has_inet_table("sluice_router").expect("it is answered"));
        let none = CapabilitySet::empty();
        // Of this thread alone.
        set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
            .expect("less is allowed");
        let refused = sluice::router::linux::open_for_cleanup(None).err().expect("nobody may look");
        assert!(refused.to_string().contains("look for table"), "{refused}");
    });
}
