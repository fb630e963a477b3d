use proptest::prelude::*;

use super::*;

fn range() -> impl Strategy<Value = IpNet> {
    let of =
        |address: IpAddr, most: u8| (0..=most).prop_map(move |length| IpNet::new(address, length).unwrap().trunc());
    prop_oneof![
        any::<[u8; 4]>().prop_flat_map(move |bytes| of(IpAddr::from(bytes), 32)),
        any::<[u8; 16]>().prop_flat_map(move |bytes| of(IpAddr::from(bytes), 128)),
    ]
}

fn side() -> impl Strategy<Value = Side> {
    prop_oneof![Just(Side::Source), Just(Side::Destination)]
}

fn family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::V4), Just(Family::V6)]
}

fn mark() -> impl Strategy<Value = Mark> {
    any::<(u32, u32)>().prop_map(|(value, mask)| Mark { value, mask })
}

fn ports() -> impl Strategy<Value = Box<[PortRange]>> {
    let range = any::<(u16, u16)>().prop_map(|(one, other)| PortRange { first: one.min(other), last: one.max(other) });
    proptest::collection::vec(range, 1..6).prop_map(Vec::into_boxed_slice)
}

fn a_match() -> impl Strategy<Value = Match> {
    let name = || "[a-z][a-z0-9:-]{0,12}";
    prop_oneof![
        (range(), any::<bool>()).prop_map(|(range, negated)| Match::Source { range, negated }),
        (range(), any::<bool>()).prop_map(|(range, negated)| Match::Destination { range, negated }),
        name().prop_map(|link| Match::InputLink(link.into())),
        name().prop_map(|link| Match::OutputLink(link.into())),
        (0..3_usize).prop_map(|at| Match::Protocol(IpProtocol::Transport(Protocol::ALL[at]))),
        family().prop_map(|family| Match::Protocol(IpProtocol::Icmp(family))),
        family().prop_map(|family| Match::Protocol(IpProtocol::Encapsulated(family))),
        Just(Match::Unauthenticated),
        "[ -~]{0,20}".prop_map(|said| Match::Comment(said.into())),
        (name(), side(), any::<bool>(), any::<bool>()).prop_map(|(set, side, ports, negated)| {
            let of = if ports { SetSides::DestinationPort } else { SetSides::Address(side) };
            Match::Set { set: SetName(set.into()), of, negated }
        }),
        (1_u8..32, any::<bool>()).prop_map(|(states, negated)| Match::State { states: States(states), negated }),
        Just(Match::Answer),
        (mark(), any::<bool>()).prop_map(|(mark, negated)| Match::Mark { mark, negated }),
        (mark(), any::<bool>()).prop_map(|(mark, negated)| Match::ConnectionMark { mark, negated }),
        any::<(u32, u32)>().prop_map(|(per_minute, burst)| Match::Limit { per_minute, burst }),
        ports().prop_map(Match::Ports),
        (side(), any::<bool>()).prop_map(|(of, negated)| Match::HostAddress { of, negated }),
        (family(), any::<u8>()).prop_map(|(family, number)| Match::IcmpKind { family, number }),
        any::<bool>().prop_map(|prints_ipvs| Match::ByIpvs { prints_ipvs }),
    ]
}

fn verdict() -> impl Strategy<Value = Verdict> {
    let chain = || "KUBE-[A-Z0-9-]{1,20}".prop_map(CompactString::from);
    prop_oneof![
        Just(Verdict::Accept),
        Just(Verdict::Drop),
        Just(Verdict::Return),
        family().prop_map(Verdict::Reject),
        mark().prop_map(Verdict::SetMark),
        any::<u16>().prop_map(|group| Verdict::Log { group }),
        any::<bool>().prop_map(|random_ports| Verdict::Masquerade { random_ports }),
        (range(), any::<bool>()).prop_map(|(to, random_ports)| Verdict::SourceNat { to: to.addr(), random_ports }),
        chain().prop_map(Verdict::Jump),
        chain().prop_map(Verdict::Goto),
    ]
}

/// Pieces of rules, of ours and of others, in any order.
fn any_text() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        "[-!\"\\\\a-zA-Z0-9 /.:]{0,8}",
        Just("-m comment --comment \"a \\\" -j b\"".to_owned()),
        Just("-m comment --comment -j".to_owned()),
        Just("-m set ! --match-set A src".to_owned()),
        Just("-m tcp --dport 80".to_owned()),
        Just("! -s 10.0.0.0/8".to_owned()),
        Just("-s 10.0.0.1".to_owned()),
        Just("-j LOG --log-prefix \"-j X\"".to_owned()),
        Just("-g KUBE-A".to_owned()),
        Just("-m".to_owned()),
        Just("-j".to_owned()),
    ];
    proptest::collection::vec(word, 0..6).prop_map(|words| words.join(" "))
}

proptest! {
    #[test]
    fn a_rule_that_is_written_reads_back_as_itself(
        matches in proptest::collection::vec(a_match(), 0..5),
        verdict in proptest::option::of(verdict()),
    ) {
        let rule = Rule::of(matches.into(), verdict);
        prop_assert_eq!(&Rule::from(rule.to_string()), &rule);
        prop_assert!(!ends_in_quotes(&rule.to_string()));
    }

    #[test]
    fn any_text_that_is_read_is_written_as_it_was(text in any_text()) {
        prop_assert_eq!(Rule::from(text.as_str()).to_string(), text);
    }
}

#[test]
fn what_is_not_known_stays_as_it_was_printed_and_the_rest_is_understood() {
    let rule = Rule::from("-s 10.0.0.1/32 -m physdev --physdev-is-bridged -m tcp ! --dport 80 -j KUBE-A");
    let [Match::Source { negated: false, .. }, Match::Foreign(bridged), Match::Foreign(port)] = rule.matches() else {
        panic!("{:?}", rule.matches())
    };
    assert_eq!((&*bridged.0, &*port.0), ("-m physdev --physdev-is-bridged", "-m tcp ! --dport 80"));
    assert_eq!(rule.chain().map(CompactString::as_str), Some("KUBE-A"));
    // The same addresses in another spelling are another text.
    assert!(matches!(Rule::from("-s 10.0.0.1 -j DROP").matches(), [Match::Foreign(_)]));
}

#[test]
fn a_packet_in_a_packet_is_one_protocol_under_all_names_that_hosts_have_for_it() {
    for (written, names) in [("-p 4 -j KUBE-A", ["ipencap", "ipv4"]), ("-p 41 -j KUBE-A", ["ipv6", "41"])] {
        let rule = Rule::from(written);
        assert!(matches!(rule.matches(), [Match::Protocol(IpProtocol::Encapsulated(_))]));
        for name in names {
            let printed = Rule::from(format!("-p {name} -j KUBE-A"));
            assert_eq!((&printed, printed.to_string()), (&rule, written.to_owned()));
        }
        assert!(matches!(Rule::from("! -p ipencap -j KUBE-A").matches(), [Match::Foreign(_)]));
    }
}

#[test]
fn a_target_inside_a_comment_is_none() {
    let chain = |text: &str| Rule::from(text).chain().map(ToString::to_string);
    assert_eq!(chain("-m comment --comment \"-j A\" -j B"), Some("B".into()));
    assert_eq!(chain("-m comment --comment -j -g C"), Some("C".into()));
    assert_eq!(chain("-m comment --comment \"a \\\" -j A\" -j LOG --log-prefix \"-j D\""), None);
    assert_eq!(chain("-s 10.244.0.0/16"), None);
    let log = Rule::from("-j LOG --log-prefix \"-j D\"");
    assert!(matches!(log.verdict(), Some(Verdict::Foreign { target, .. }) if target == "LOG"));
}

#[test]
fn rules_of_one_shape_differ_in_values_only() {
    let shape = |text: &str| Rule::from(text).shape();
    assert_eq!(shape("-s 10.0.0.0/8 -j KUBE-A"), shape("-s fd00::/8 -j KUBE-B"));
    for other in ["! -s 10.0.0.0/8 -j KUBE-A", "-d 10.0.0.0/8 -j KUBE-A", "-s 10.0.0.0/8 -g KUBE-A", "-s 10.0.0.0/8"] {
        assert_ne!(shape("-s 10.0.0.0/8 -j KUBE-A"), shape(other), "{other}");
    }
}

#[test]
fn a_match_is_no_larger_than_three_words() {
    assert!(size_of::<Match>() <= 24 && size_of::<Rule>() == 8, "{}", size_of::<Match>());
}
