use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;

use super::batch::Batch;
use super::element::{self, Description, Verdicts};
use super::expression::{ANONYMOUS, Expression};
use super::rule::{Mark, Side, States};
use super::wire::{HEADER, ITEM, message, rule as rule_attributes};
use super::*;
use crate::kernel::netlink::{Attributes, answers};
use crate::net::{Family, PortRange, Protocol};

fn family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::V4), Just(Family::V6)]
}

fn protocol() -> impl Strategy<Value = Protocol> {
    proptest::sample::select(Protocol::ALL.to_vec())
}

fn side() -> impl Strategy<Value = Side> {
    prop_oneof![Just(Side::Source), Just(Side::Destination)]
}

fn address_of(family: Family) -> BoxedStrategy<IpAddr> {
    match family {
        Family::V4 => any::<[u8; 4]>().prop_map(IpAddr::from).boxed(),
        Family::V6 => any::<[u8; 16]>().prop_map(IpAddr::from).boxed(),
    }
}

fn address() -> impl Strategy<Value = IpAddr> {
    family().prop_flat_map(address_of)
}

fn prefix() -> impl Strategy<Value = IpNet> {
    (address(), 0_u8..=128).prop_map(|(address, length)| {
        let length = length % (Family::from(address).host_bits() + 1);
        IpNet::new(address, length).expect("the length is of the family")
    })
}

fn ports() -> impl Strategy<Value = PortRange> {
    (any::<u16>(), any::<u16>()).prop_map(|(one, other)| PortRange { first: one.min(other), last: one.max(other) })
}

fn name() -> impl Strategy<Value = Name> {
    "[a-z]{1,8}_[a-z0-9/]{0,20}".prop_map(Name::from)
}

fn mark() -> impl Strategy<Value = Mark> {
    let mask = prop_oneof![Just(u32::MAX), any::<u32>()];
    (any::<u32>(), mask).prop_map(|(value, mask)| Mark { value, mask })
}

fn states() -> impl Strategy<Value = States> {
    let all = [States::NEW, States::ESTABLISHED, States::RELATED, States::INVALID, States::UNTRACKED];
    proptest::sample::subsequence(all.to_vec(), 1..=5)
        .prop_map(|some| some.into_iter().reduce(States::or).expect("at least one"))
}

fn lookup() -> impl Strategy<Value = Lookup> {
    prop_oneof![
        (family(), side()).prop_map(|(family, side)| Lookup::Address(family, side)),
        family().prop_map(Lookup::Addresses),
        family().prop_map(Lookup::DestinationService),
        family().prop_map(Lookup::ServiceItself),
        (family(), 1_u8..=128).prop_map(|(family, bits)| Lookup::ServiceSource(family, bits.min(family.host_bits()))),
        family().prop_map(Lookup::OriginalService),
        Just(Lookup::DestinationProtocolPort),
        protocol().prop_map(Lookup::DestinationPort),
        Just(Lookup::Mark),
        Just(Lookup::InputLink),
        Just(Lookup::OutputLink),
        Just(Lookup::InputBridge),
    ]
}

fn one_match() -> impl Strategy<Value = Match> {
    let link = || "[a-z]{1,10}[0-9.]{0,5}";
    prop_oneof![
        family().prop_map(Match::Family),
        (side(), prefix(), any::<bool>()).prop_map(|(of, range, negated)| Match::Address { of, range, negated }),
        (lookup(), name(), any::<bool>()).prop_map(|(lookup, set, negated)| Match::InSet { lookup, set, negated }),
        (side(), any::<bool>()).prop_map(|(of, negated)| Match::HostAddress { of, negated }),
        Just(Match::ToMany),
        Just(Match::ToBridgeGroup),
        Just(Match::Opening),
        any::<u32>().prop_map(Match::VxlanNumber),
        Just(Match::Answer),
        protocol().prop_map(Match::Protocol),
        family().prop_map(Match::Encapsulated),
        any::<bool>().prop_map(|negated| Match::Authenticated { negated }),
        (family(), any::<u8>()).prop_map(|(family, number)| Match::IcmpKind { family, number }),
        (protocol(), any::<u16>()).prop_map(|(protocol, port)| Match::SourcePort { protocol, port }),
        (protocol(), ports()).prop_map(|(protocol, range)| Match::DestinationPort { protocol, range }),
        (states(), any::<bool>()).prop_map(|(states, negated)| Match::State { states, negated }),
        (mark(), any::<bool>()).prop_map(|(mark, negated)| Match::Mark { mark, negated }),
        (mark(), any::<bool>()).prop_map(|(mark, negated)| Match::ConnectionMark { mark, negated }),
        (link(), any::<bool>()).prop_map(|(name, negated)| Match::InputLink { name: name.into(), negated }),
        (link(), any::<bool>()).prop_map(|(name, negated)| Match::OutputLink { name: name.into(), negated }),
        (any::<u16>(), any::<bool>()).prop_map(|(number, negated)| Match::EtherType { number, negated }),
        (any::<u32>(), any::<u32>()).prop_map(|(per_minute, burst)| Match::Limit { per_minute, burst }),
    ]
}

/// The family and the protocol that a match needs.
fn needs(one: &Match) -> (Option<Family>, Option<u8>) {
    let of_lookup = |lookup: &Lookup| match lookup {
        Lookup::Address(family, _)
        | Lookup::Addresses(family)
        | Lookup::DestinationService(family)
        | Lookup::ServiceItself(family)
        | Lookup::ServiceSource(family, _)
        | Lookup::OriginalService(family) => (Some(*family), None),
        Lookup::DestinationPort(protocol) => (None, Some(protocol.number())),
        _ => (None, None),
    };
    match one {
        Match::Family(family) => (Some(*family), None),
        Match::Address { range, .. } => (Some(Family::from(*range)), None),
        Match::InSet { lookup, .. } => of_lookup(lookup),
        Match::Protocol(protocol) | Match::SourcePort { protocol, .. } | Match::DestinationPort { protocol, .. } => {
            (None, Some(protocol.number()))
        }
        Match::Opening => (None, Some(Protocol::Tcp.number())),
        Match::VxlanNumber(_) => (None, Some(Protocol::Udp.number())),
        Match::Encapsulated(family) => (None, Some(super::encode::encapsulation(*family))),
        Match::Authenticated { negated: false } => (None, Some(super::encode::AUTHENTICATION)),
        Match::IcmpKind { family, .. } => (Some(*family), Some(super::encode::icmp(*family))),
        _ => (None, None),
    }
}

/// Matches that a packet can meet all of: one family and one protocol.
fn matches() -> impl Strategy<Value = Vec<Match>> {
    proptest::collection::vec(one_match(), 0..6).prop_map(|matches| {
        let mut kept: Vec<Match> = Vec::new();
        let (mut family, mut protocol) = (None, None);
        for one in matches {
            let (of, with) = needs(&one);
            let fits = (family.is_none() || of.is_none() || family == of)
                && (protocol.is_none() || with.is_none() || protocol == with);
            if fits {
                family = family.or(of);
                protocol = protocol.or(with);
                kept.push(one);
            }
        }
        kept
    })
}

fn statements() -> impl Strategy<Value = Vec<Statement>> {
    let one = prop_oneof![
        name().prop_map(Statement::Count),
        (any::<u16>(), "[a-z/ ]{0,140}").prop_map(|(group, prefix)| Statement::Log { group, prefix: prefix.into() }),
        mark().prop_map(Statement::SetMark),
        any::<u16>().prop_map(Statement::SetMss),
        Just(Statement::Untrack),
        (lookup(), name()).prop_map(|(lookup, map)| Statement::MarkFrom { lookup, map }),
    ];
    // Fields of one family and one protocol: what is looked up comes alone.
    proptest::collection::vec(one, 0..3).prop_map(|statements| {
        let mut has_lookup = false;
        let is_lookup = |one: &Statement| matches!(one, Statement::MarkFrom { .. });
        statements.into_iter().filter(|one| !is_lookup(one) || !std::mem::replace(&mut has_lookup, true)).collect()
    })
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        Just(Verdict::Accept),
        Just(Verdict::Drop),
        Just(Verdict::Return),
        Just(Verdict::Reject),
        name().prop_map(Verdict::Jump),
        name().prop_map(Verdict::Goto),
        (lookup(), name()).prop_map(|(lookup, map)| Verdict::Map { lookup, map }),
        any::<bool>().prop_map(|random_ports| Verdict::Masquerade { random_ports }),
        (address(), any::<bool>()).prop_map(|(to, random_ports)| Verdict::SourceNat { to, random_ports }),
    ]
}

fn a_rule() -> impl Strategy<Value = Rule> {
    (matches(), statements(), proptest::option::of(verdict()), proptest::option::of(".{0,140}")).prop_map(
        |(matches, statements, verdict, comment)| {
            let rule = Rule::with(matches, statements, verdict);
            match comment {
                Some(comment) => rule.commented(&comment),
                None => rule,
            }
        },
    )
}

/// The rules that are read from the messages that write them.
fn written(rules: &[Rule]) -> Vec<Rule> {
    let mut batch = Batch::new("table_1", None);
    rules.iter().for_each(|rule| batch.add_rule(&Name::from("chain_1"), rule));
    let mut sets = super::read::Sets::default();
    sets.many.insert(ANONYMOUS.to_owned());
    let messages = batch.messages.bytes().to_vec();
    let rules = answers(&messages).filter(|answer| answer.kind == message::NEW_RULE);
    rules.map(|answer| super::read::read_rule(&answer.attributes(HEADER), &sets)).collect()
}

/// A family and protocol that matches need, and those that a lookup behind them needs, are one.
fn is_sound(rule: &Rule) -> bool {
    let (mut families, mut protocols) = (BTreeSet::new(), BTreeSet::new());
    let mut note = |one: &Match| {
        let (family, protocol) = needs(one);
        families.extend(family);
        protocols.extend(protocol);
    };
    rule.matches().iter().for_each(&mut note);
    let in_set = |lookup: Lookup| Match::InSet { lookup, set: Name::from("x"), negated: false };
    for statement in rule.statements() {
        if let Statement::MarkFrom { lookup, .. } = statement {
            note(&in_set(*lookup));
        }
    }
    if let Some(Verdict::Map { lookup, .. }) = rule.verdict() {
        note(&in_set(*lookup));
    }
    families.len() <= 1 && protocols.len() <= 1
}

fn spec_and_keys() -> impl Strategy<Value = (SetSpec, Vec<Key>)> {
    let of = |fields, intervals| SetSpec { fields, kind: Kind::Set, intervals };
    let several = |key: BoxedStrategy<Key>| proptest::collection::vec(key, 0..20);
    family().prop_flat_map(move |family| {
        let address = move || address_of(family);
        prop_oneof![
            several(address().prop_map(Key::Address).boxed())
                .prop_map(move |keys| (of(Fields::Address(family), false), keys)),
            several(address().prop_map(Key::Itself).boxed())
                .prop_map(move |keys| (of(Fields::Addresses(family), false), keys)),
            several((address(), protocol(), any::<u16>()).prop_map(|(a, p, n)| Key::Service(a, p, n)).boxed())
                .prop_map(move |keys| (of(Fields::Service(family), false), keys)),
            several(
                (address(), protocol(), any::<u16>(), address())
                    .prop_map(|(a, p, n, source)| Key::ServiceSource(Box::new((a, p, n, source))))
                    .boxed()
            )
            .prop_map(move |keys| (of(Fields::ServiceSource(family), false), keys)),
            several((protocol(), any::<u16>()).prop_map(|(p, n)| Key::ProtocolPort(p, n)).boxed())
                .prop_map(move |keys| (of(Fields::ProtocolPort, false), keys)),
            several(any::<u32>().prop_map(Key::Mark).boxed()).prop_map(move |keys| (of(Fields::Mark, false), keys)),
            several("[a-z]{1,15}".prop_map(|name| Key::Link(name.into())).boxed())
                .prop_map(move |keys| (of(Fields::Link, false), keys)),
            proptest::collection::btree_set(any::<u16>(), 0..20).prop_map(move |cuts| {
                let cuts: Vec<u16> = cuts.into_iter().collect();
                // Every second space between the cuts, and sometimes the next one as well.
                let spaces = cuts.windows(2).filter_map(|pair| {
                    let [first, next] = pair else { return None };
                    let range = PortRange { first: *first, last: next - 1 };
                    (first % 3 != 0).then_some(Key::Ports(range))
                });
                let last = cuts.last().map(|first| Key::Ports(PortRange { first: *first, last: u16::MAX }));
                (of(Fields::Port, true), spaces.chain(last).collect())
            }),
            proptest::collection::btree_set(address(), 0..20).prop_map(move |cuts| {
                let cuts: Vec<IpAddr> = cuts.into_iter().collect();
                let spaces = cuts.chunks_exact(2).map(|pair| match pair {
                    [first, last] => Key::range(*first, *last),
                    _ => unreachable!("chunks of two"),
                });
                (of(Fields::Address(family), true), spaces.collect())
            }),
        ]
    })
}

proptest! {
    #[test]
    fn a_rule_reads_back_as_it_was_written(rule in a_rule().prop_filter("one family, one protocol", is_sound)) {
        let read = written(std::slice::from_ref(&rule));
        prop_assert_eq!(read, vec![rule]);
    }

    #[test]
    fn a_rule_in_which_one_byte_was_changed_is_another(
        rule in a_rule().prop_filter("one family, one protocol", is_sound),
        at in any::<proptest::sample::Index>(),
        bit in 0_u8..8,
    ) {
        let expressions = super::encode::expressions(&rule);
        prop_assume!(!expressions.is_empty());
        let mut messages = crate::kernel::netlink::Messages::new();
        messages.begin(0, 0).nest(rule_attributes::EXPRESSIONS);
        expressions.iter().for_each(|one| one.write(&mut messages, 1));
        messages.end();
        let mut bytes = messages.bytes().get(16..).expect("a header").to_vec();
        let at = at.index(bytes.len());
        *bytes.get_mut(at).expect("within") ^= 1 << bit;
        let is_many = |name: &str| name == ANONYMOUS;
        let items = Attributes::new(&bytes).get(rule_attributes::EXPRESSIONS).map(|all| all.attributes());
        let changed: Vec<Expression> = items.into_iter().flatten()
            .map(|item| Expression::read(&item.attributes(), &is_many)).collect();
        let read = super::decode::rule(&changed, None);
        // A change of what has no meaning (a flag of an attribute) is none.
        prop_assert!(read.is_none() || (changed == expressions) == (read == super::decode::rule(&expressions, None)));
    }

    #[test]
    fn no_bytes_make_the_reader_of_expressions_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let expressions: Vec<Expression> =
            Attributes::new(&bytes).map(|item| Expression::read(&item.attributes(), &|_| true)).collect();
        let _ = super::decode::rule(&expressions, Some("x"));
        let mut verdicts = Verdicts::default();
        for kind in [Kind::Set, Kind::Verdicts, Kind::Marks] {
            let found = Attributes::new(&bytes).filter_map(|item| element::read(&item.attributes(), kind, &mut verdicts));
            let found: Vec<_> = found.collect();
            for intervals in [false, true] {
                let spec = SetSpec { fields: Fields::Service(Family::V6), kind, intervals };
                let _ = element::elements(spec, found.clone());
            }
        }
    }

    #[test]
    fn elements_read_back_as_they_were_written((spec, keys) in spec_and_keys()) {
        let want: BTreeSet<Key> = keys.into_iter().collect();
        let mut batch = Batch::new("table_1", None);
        let elements = want.iter().map(|key| (key, &Content::Element));
        prop_assert_eq!(batch.add_elements(&Name::from("set_1"), spec, elements), Vec::<&Key>::new());
        let bytes = batch.messages.bytes().to_vec();
        let mut verdicts = Verdicts::default();
        let mut found = Vec::new();
        for answer in answers(&bytes).filter(|answer| answer.kind == message::NEW_ELEMENT) {
            let items = answer.attributes(HEADER).get(super::wire::element::ELEMENTS).expect("elements").attributes();
            let items = items.filter(|item| item.kind == ITEM);
            found.extend(items.filter_map(|item| element::read(&item.attributes(), spec.kind, &mut verdicts)));
        }
        found.reverse();
        let read: BTreeMap<Key, Content> = element::elements(spec, found).into_iter().collect();
        prop_assert_eq!(read.keys().cloned().collect::<BTreeSet<Key>>(), want);
    }
}

#[test]
fn every_set_of_ours_is_known_by_its_description() {
    for kind in [Kind::Set, Kind::Verdicts, Kind::Marks] {
        for fields in
            [Fields::Address(Family::V4), Fields::Service(Family::V6), Fields::Port, Fields::Mark, Fields::Link]
        {
            for intervals in [false, true] {
                let spec = SetSpec { fields, kind, intervals };
                assert_eq!(Description::of(spec).spec(), Some(spec));
                let constant = Description { flags: Description::of(spec).flags | 2, ..Description::of(spec) };
                assert_eq!(constant.spec(), None);
                let limited = Description { size: Some(65_536), ..Description::of(spec) };
                assert_eq!(limited.spec(), None, "it refuses elements when it is full");
            }
        }
    }
}

#[test]
fn what_the_kernel_would_change_is_changed_before() {
    let link = |name: &str| Rule::new([Match::InputLink { name: name.into(), negated: false }], Verdict::Accept);
    let limit = |burst| Rule::new([Match::Limit { per_minute: 1, burst }], Verdict::Accept);
    assert_eq!(link("a-name-too-long-for-links"), link("a-name-too-long"));
    assert_eq!(written(&[link("a-name-too-long\u{e9}")]), [link("a-name-too-long")]);
    assert_eq!(written(&[link("a-name-too-lon\u{e9}")]), [link("a-name-too-lon")]);
    assert_eq!(limit(0), limit(5));
    assert_eq!(Key::prefix("10.0.0.1/8".parse().expect("a prefix")).to_string(), "10.0.0.0/8");
}

#[test]
fn what_a_match_needs_is_compared_once_and_what_is_said_is_kept() {
    let range = |text: &str| text.parse().expect("a prefix");
    let address = |text: &str, of| Match::Address { of, range: range(text), negated: false };
    let count = |matches: Vec<Match>| super::encode::expressions(&Rule::new(matches, Verdict::Accept)).len();
    let one = count(vec![address("10.0.0.1/32", Side::Source)]);
    let two = count(vec![address("10.0.0.1/32", Side::Source), address("10.0.0.2/32", Side::Destination)]);
    assert_eq!((one, two), (5, 7));
    let said = Rule::new([Match::Family(Family::V4), address("10.0.0.1/32", Side::Source)], Verdict::Accept);
    assert_eq!(written(std::slice::from_ref(&said)), [said]);
}

#[test]
fn a_range_that_is_a_prefix_is_called_so() {
    let key = |first: &str, last: &str| Key::range(first.parse().expect("one"), last.parse().expect("one")).to_string();
    assert_eq!(key("10.0.0.0", "10.255.255.255"), "10.0.0.0/8");
    assert_eq!(key("10.0.0.1", "10.0.0.1"), "10.0.0.1/32");
    assert_eq!(key("10.0.0.1", "10.0.0.2"), "10.0.0.1-10.0.0.2");
    assert_eq!(key("0.0.0.0", "255.255.255.255"), "0.0.0.0/0");
    assert_eq!(key("fd00::", "fd00::ffff"), "fd00::/112");
}

/// There are hundreds of thousands of elements, each of them twice: as it is desired and as it was seen.
#[test]
fn an_element_takes_little_memory() {
    assert!(size_of::<Object>() <= 32 && size_of::<(Object, Content)>() <= 48, "{}", size_of::<(Object, Content)>());
}
