use super::super::super::message::Attributes;
use super::*;

const PEER: PeerId = PeerId(7);

fn prefix(number: u32) -> IpNet {
    ipnet::Ipv4Net::new((0x0a00_0000 + (number << 8)).into(), 24).expect("a length").into()
}

/// A change from the route of one neighbour, or none, to that of another.
fn change(number: u32, old: Option<PeerId>, new: Option<PeerId>) -> Change {
    let attributes = Arc::new(Attributes::local([192, 0, 2, 1].into()));
    let shown = |source| Shown { source, attributes: attributes.clone() };
    Change { prefix: prefix(number), old: old.map(shown), new: new.map(shown) }
}

#[test]
fn a_prefix_that_came_and_went_while_a_neighbour_had_no_room_is_not_queued_for_it() {
    let other = PeerId(8);
    let mut behind = Behind::default();
    for number in 0..1_000 {
        behind.note(PEER, &change(number, None, Some(other)), false);
        behind.note(PEER, &change(number, Some(other), Some(PeerId(9))), false);
        // What a neighbour has announced itself is not told to it.
        behind.note(PEER, &change(number, Some(PeerId(9)), Some(PEER)), false);
        behind.note(PEER, &change(number, Some(PEER), Some(PEER)), false);
        behind.note(PEER, &change(number, Some(PEER), None), false);
    }
    assert!(behind.is_over(), "{} prefixes", behind.changed.len());
    behind.note(PEER, &change(1, Some(other), None), false);
    behind.note(PEER, &change(1, None, Some(other)), false);
    behind.note(PEER, &change(1, Some(other), None), false);
    assert_eq!(behind.changed, [(prefix(1), true)].into(), "the neighbour has it from before");
}
