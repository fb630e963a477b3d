use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::wire::{self, command, outer};
use super::*;
use crate::kernel::netlink::{Answer, Messages, answers};

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from(bits))),
        any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from(bits))),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)];
    prop_oneof![
        address().prop_map(Entry::Ip),
        (address(), protocol.clone(), any::<u16>())
            .prop_map(|(address, protocol, port)| Entry::IpPort(address, protocol, port)),
        (address(), protocol, any::<u16>(), 1_u8..=128).prop_map(|(address, protocol, port, length)| {
            let length = length.min(Family::from(address).host_bits());
            let range = IpNet::new(address, length).expect("the length fits").trunc();
            Entry::IpPortNet(Box::new(IpPortNet { address, protocol, port, range }))
        }),
        (address(), 0_u8..=128).prop_map(|(address, length)| {
            let length = length.min(Family::from(address).host_bits());
            Entry::Net(IpNet::new(address, length).expect("the length fits").trunc())
        }),
    ]
}

/// The kernel answers with the attributes in which it is asked.
fn answer_of(messages: &Messages) -> Vec<u8> {
    messages.range(0, messages.len()).to_vec()
}

fn first(bytes: &[u8]) -> Answer<'_> {
    answers(bytes).next().expect("one message was built")
}

proptest! {
    #[test]
    fn elements_read_back_as_they_were_written(entries in proptest::collection::vec(entry(), 0..50)) {
        let mut messages = Messages::new();
        wire::begin(&mut messages, command::ADD, "kube-router-svip").nest(outer::ELEMENTS);
        for entry in &entries {
            wire::element(&mut messages, entry, 1);
        }
        messages.end();
        let bytes = answer_of(&messages);
        prop_assert_eq!(wire::entries(&first(&bytes)), entries);
        prop_assert_eq!(wire::set_name(&first(&bytes)), Some(SetName("kube-router-svip".into())));
        prop_assert_eq!(wire::set_spec(&first(&bytes)), None);
    }

    #[test]
    fn no_element_is_larger_than_the_room_it_is_given(entry in entry()) {
        let mut messages = Messages::new();
        wire::begin(&mut messages, command::ADD, "");
        let before = answer_of(&messages).len();
        wire::element(&mut messages, &entry, u32::MAX);
        prop_assert!(answer_of(&messages).len() - before <= wire::LARGEST_ELEMENT);
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let answer = Answer { kind: command::LIST, flags: 0, sequence: 1, port: 0, payload: &bytes };
        let _ = (wire::set_name(&answer), wire::set_spec(&answer), wire::entries(&answer));
        let _ = (wire::highest_revision(&answer), wire::line_at_fault(&bytes));
    }
}

#[test]
fn a_set_reads_back_as_it_is_made() {
    for kind in [SetKind::HashIp, SetKind::HashIpPort, SetKind::HashNet] {
        for (family, timeout) in [(Family::V4, true), (Family::V6, false)] {
            let spec = SetSpec { kind, family, max_elements: 131_072, timeout };
            let mut messages = Messages::new();
            wire::create(&mut messages, &SetName("KUBE-SRC-1".into()), spec, 6);
            assert_eq!(wire::set_spec(&first(&answer_of(&messages))), Some(spec));
        }
    }
}

#[test]
fn only_everything_has_two_parts() {
    let net = |text: &str| Entry::Net(text.parse().expect("a prefix"));
    assert_eq!(net("0.0.0.0/0").parts().collect::<Vec<_>>(), [net("0.0.0.0/1"), net("128.0.0.0/1")]);
    assert_eq!(net("::/0").parts().collect::<Vec<_>>(), [net("::/1"), net("8000::/1")]);
    assert_eq!(net("10.244.0.0/16").parts().collect::<Vec<_>>(), [net("10.244.0.0/16")]);
}
