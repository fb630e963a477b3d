//! The second device, where several machines say that one key of it is theirs.

use super::*;
use crate::kernel::wireguard::Session;

fn of_second() -> Node {
    Node { wireguard_next_key: Some(key(7)), ..created(10, second()).1 }
}

/// A node that was there before, whose annotations are copies.
fn copies() -> [Node; 2] {
    let node = |number, ranges: &str| Node { created: 1, ..with_key(number, "192.0.2.9", ranges) };
    [Node { wireguard_next_key: Some(key(7)), ..node(9, "10.244.9.0/24") }, node(7, "10.244.9.0/24")]
}

fn at_second(plan: &Plan, number: u8) -> Option<String> {
    let peer =
        plan.desired().wireguard_peers.get(&PeerKey { link: LinkName("sluice-wg1".into()), key: key(number) })?;
    let allowed: Vec<String> = peer.allowed.iter().map(ToString::to_string).collect();
    Some(format!("{} {}", peer.keepalive, allowed.join(" ")))
}

fn endpoint_at_second(plan: &Plan) -> Option<String> {
    let key = PeerKey { link: LinkName("sluice-wg1".into()), key: key(7) };
    let peer = plan.desired().wireguard_peers.get(&key).expect("there is a peer");
    peer.endpoint.map(|endpoint| endpoint.to_string())
}

fn has_sessions(plan: &mut Plan) {
    let live = [("sluice-wg0", 2), ("sluice-wg1", 7)];
    let live = live.map(|(link, number)| (PeerKey { link: LinkName(link.into()), key: key(number) }, Session::Live));
    plan.set_sessions(BTreeMap::from(live));
}

fn plan_with(nodes: &[(&str, Node)]) -> Plan {
    let mut plan = plan_of(&ENCRYPTED, nodes);
    plan.set_own_keys(OwnKeys { first: Some(key(1)), second: Some(key(1)), ..OwnKeys::default() });
    plan.set_sessions(BTreeMap::new());
    plan
}

const OF_SECOND: &str = "192.0.2.2/32 2001:db8::2/128 fd00:10:244:2::/64";

#[test]
fn who_copies_the_next_key_of_a_younger_node_takes_none_of_its_packets() {
    for copy in copies() {
        let mut plan = plan_with(&[own(), ("node-2", of_second()), ("node-9", copy.clone())]);
        let both = format!("5 10.244.2.0/24 10.244.9.0/24 192.0.2.2/32 192.0.2.9/32 {}", &OF_SECOND[13..]);
        assert_eq!(at_second(&plan, 7).as_ref(), Some(&both), "what comes by the key is taken, whose ever it is");
        has_sessions(&mut plan);
        assert_eq!(main_route(&plan, "10.244.2.0/24"), through_tunnel(), "whose session it is nobody knows");
        assert_eq!(plan.disputed().collect::<Vec<_>>(), ["node-2", "node-9"]);
        // What the copy has changes, and it goes.
        let other = Node { pod_cidrs: with_key(9, "", "10.244.8.0/24").pod_cidrs, ..copy };
        plan.update(&with(&[own(), ("node-2", of_second()), ("node-9", other)]));
        assert_eq!(at_second(&plan, 7), Some(both.replace(".9.0/24", ".8.0/24")));
        plan.update(&with(&[own(), ("node-2", of_second())]));
        assert_eq!(at_second(&plan, 7), Some(format!("5 10.244.2.0/24 {OF_SECOND}")));
        assert_eq!(main_route(&plan, "10.244.2.0/24"), Some(vec!["sluice-wg1".to_owned()]));
        assert_eq!(plan.disputed().count(), 0);
    }
}

#[test]
fn a_copy_of_a_next_key_that_is_used_turns_nobody_back() {
    for copy in copies() {
        let mut plan = plan_with(&[own(), ("node-2", of_second())]);
        has_sessions(&mut plan);
        assert_eq!(main_route(&plan, "10.244.2.0/24"), Some(vec!["sluice-wg1".to_owned()]));
        plan.update(&with(&[own(), ("node-2", of_second()), ("node-9", copy)]));
        assert_eq!(main_route(&plan, "10.244.2.0/24"), Some(vec!["sluice-wg1".to_owned()]));
        assert!(at_second(&plan, 7).is_some_and(|peer| peer.contains("10.244.2.0/24")));
    }
}

#[test]
fn what_several_machines_say_is_theirs_is_sent_to_where_its_packets_come_from_also_after_a_restart() {
    for copy in copies() {
        let nodes = [own(), ("node-2", of_second()), ("node-9", copy)];
        let mut plan = plan_of(&ENCRYPTED, &nodes);
        plan.set_own_keys(OwnKeys { first: Some(key(1)), second: Some(key(1)), ..OwnKeys::default() });
        has_sessions(&mut plan);
        assert_eq!(
            main_route(&plan, "10.244.2.0/24"),
            Some(vec!["sluice-wg1".to_owned()]),
            "it may have been so before"
        );
        assert_eq!(endpoint_at_second(&plan), None, "no Node says where its holder is");
        plan.update(&with(&nodes[..2]));
        assert_eq!(endpoint_at_second(&plan).as_deref(), Some("192.0.2.2:51821"));
        plan.update(&with(&nodes));
        assert_eq!(endpoint_at_second(&plan), None);
    }
}

/// An older Node that says that node-2's first key is its own, with this next key; 0 for none.
fn copy_of_first(next: u8, addresses: &str, ranges: &str) -> (&'static str, Node) {
    let node = Node { created: 1, ..with_key(2, addresses, ranges) };
    ("node-9", Node { wireguard_next_key: PublicKey::new(&[next; 32]).filter(|_| next > 0), ..node })
}

fn has_live(plan: &mut Plan, live: &[(&str, u8)]) {
    let session =
        |(link, number): &(&str, u8)| (PeerKey { link: LinkName((*link).into()), key: key(*number) }, Session::Live);
    plan.set_sessions(live.iter().map(session).collect());
}

#[test]
fn a_copy_of_the_first_key_of_a_node_whose_key_changes_cuts_nobody_off() {
    let mut plan = plan_with(&[own(), ("node-2", of_second())]);
    has_sessions(&mut plan);
    let by_second = Some(vec!["sluice-wg1".to_owned()]);
    assert_eq!(main_route(&plan, "10.244.2.0/24"), by_second);
    plan.update(&with(&[own(), ("node-2", of_second()), copy_of_first(0, "192.0.2.9", "10.244.9.0/24")]));
    assert_eq!(at_second(&plan, 7), Some(format!("5 10.244.2.0/24 {OF_SECOND}")));
    assert_eq!(endpoint_at_second(&plan).as_deref(), Some("192.0.2.2:51821"));
    assert_eq!(main_route(&plan, "10.244.2.0/24"), by_second);
    assert_eq!(main_route(&plan, "10.244.9.0/24"), through_tunnel(), "nobody has that key at the second device");
    let by_first: Vec<bool> = plan.by_first_key().map(|(_, has_next)| has_next).collect();
    assert_eq!(by_first, [true], "the session by the first key is that of the same machine");
}

#[test]
fn who_copies_the_first_key_of_a_younger_node_gets_none_of_its_packets_by_a_next_key_of_its_own() {
    let younger = || created(10, second());
    for ranges in
        ["10.244.9.0/24", "10.244.9.0/24 10.244.2.0/24", "10.244.9.0/24 10.244.2.0/25", "10.244.9.0/24 10.244.2.0/23"]
    {
        for addresses in ["192.0.2.9", "192.0.2.9 192.0.2.2"] {
            let copy = copy_of_first(9, addresses, ranges);
            let mut plan = plan_with(&[own(), younger(), copy]);
            has_live(&mut plan, &[("sluice-wg0", 2), ("sluice-wg1", 2), ("sluice-wg1", 9)]);
            let its = at_second(&plan, 9).expect("it is a peer");
            assert!(its.contains("10.244.9.0/24") && its.contains("192.0.2.9/32"), "{its}");
            assert!(!its.contains("10.244.2.") && !its.contains("192.0.2.2/32"), "{ranges}, {addresses}: {its}");
        }
    }
    let mut plan = plan_with(&[own(), younger(), copy_of_first(9, "192.0.2.9", "10.244.9.0/24")]);
    has_live(&mut plan, &[("sluice-wg0", 2), ("sluice-wg1", 9)]);
    assert_eq!(main_route(&plan, "10.244.2.0/24"), through_tunnel());
    assert_eq!(main_route(&plan, "10.244.9.0/24"), Some(vec!["sluice-wg1".to_owned()]));
}

#[test]
fn what_a_copy_of_the_first_key_claims_of_its_node_goes_by_the_first_device_and_that_change_waits() {
    let younger = |next: u8| ("node-2", Node { wireguard_next_key: PublicKey::new(&[next; 32]), ..of_second() });
    let without = || ("node-2", created(10, second()).1);
    let changing = OwnKeys { first: Some(key(1)), second: Some(key(6)), has_next: true, is_changing: true };
    let ours_stays = OwnKeys { first: Some(key(1)), second: Some(key(1)), ..OwnKeys::default() };
    for (addresses, ranges) in [
        ("192.0.2.2", "10.244.9.0/24"),
        ("192.0.2.9 192.0.2.2", "10.244.9.0/24"),
        ("192.0.2.9", "10.244.9.0/24 10.244.2.128/25"),
    ] {
        for (node, number, keys) in [(without(), 2, ours_stays), (without(), 2, changing), (younger(7), 7, ours_stays)]
        {
            let case = format!("{addresses}, {ranges}, {number}, {}", keys.is_changing);
            let words = &ENCRYPTED[..2];
            let mut plan = plan_of(words, &[own(), node.clone()]);
            plan.set_own_keys(keys);
            let networks = [("10.244.2.0/24", "192.0.2.2"), ("198.51.100.0/24", "192.0.2.2")];
            networks.iter().for_each(|(network, hop)| drop(learn(&mut plan, network, &[hop])));
            let all = [("sluice-wg0", 2), ("sluice-wg1", number), ("sluice-wg1", 9)];
            has_live(&mut plan, &all);
            plan.update(&with(&[own(), node, copy_of_first(9, addresses, ranges)]));
            let its = at_second(&plan, 9).expect("it is a peer");
            assert!(!its.contains("198.51.100.") && !its.contains("192.0.2.2/32"), "{case}: {its}");
            for (network, _) in networks {
                assert_eq!(main_route(&plan, network), through_tunnel(), "{case}");
            }
            assert_eq!(of_pods(&plan).first().map(String::as_str), Some("192.0.2.2/32 sluice-wg0"), "{case}");
            let first = plan.desired().wireguard_peers.get(&PeerKey { link: LinkName(WIREGUARD.into()), key: key(2) });
            let first = first.expect("it is a peer");
            assert!(
                first.allowed.contains(&prefix("192.0.2.2/32")) && first.allowed.contains(&prefix("198.51.100.0/24"))
            );
            // Its machine does not take another key while packets are sent by this one.
            let is_kept = keys.is_changing || number == 7;
            assert!(!is_kept || first.keepalive > 0, "{case}");
        }
    }
}

#[test]
fn a_change_waits_without_loss_while_the_node_of_a_former_machine_has_the_same_address() {
    let former = |address: &str| ("node-9", Node { created: 1, ..with_key(9, address, "10.244.9.0/24") });
    let mut plan = plan_with(&[own(), ("node-2", of_second()), former("192.0.2.2")]);
    has_sessions(&mut plan);
    assert_eq!(main_route(&plan, "10.244.2.0/24"), through_tunnel());
    let first = |plan: &Plan| {
        let key = PeerKey { link: LinkName(WIREGUARD.into()), key: key(2) };
        plan.desired().wireguard_peers.get(&key).map(|peer| peer.keepalive)
    };
    assert_eq!(first(&plan), Some(5), "its machine is shown that the session is used");
    plan.update(&with(&[own(), ("node-2", of_second()), former("192.0.2.9")]));
    assert_eq!(main_route(&plan, "10.244.2.0/24"), Some(vec!["sluice-wg1".to_owned()]));
    assert_eq!(first(&plan), Some(0));
}

#[test]
fn a_node_whose_own_key_is_copied_with_what_it_has_sends_nothing_by_the_second_device() {
    let copy = |ranges: &str| {
        let node = created(1, ("node-9", with_key(1, "192.0.2.9", ranges))).1;
        ("node-9", Node { wireguard_next_key: Some(key(9)), ..node })
    };
    for (ranges, expected) in [("10.244.9.0/24", "sluice-wg1"), ("10.244.9.0/24 10.244.1.0/24", WIREGUARD)] {
        let mut plan = plan_with(&[own(), ("node-2", of_second()), copy(ranges)]);
        has_sessions(&mut plan);
        assert_eq!(main_route(&plan, "10.244.2.0/24"), Some(vec![expected.to_owned()]), "others take none of it there");
    }
}

#[test]
fn a_change_waits_for_a_node_without_a_next_key_also_where_a_copy_of_its_first_key_has_one() {
    for addresses in ["192.0.2.9", "192.0.2.2"] {
        let mut plan = plan_with(&[own(), created(10, second()), copy_of_first(9, addresses, "10.244.9.0/24")]);
        plan.set_own_keys(OwnKeys { first: Some(key(1)), second: Some(key(6)), has_next: true, is_changing: true });
        has_live(&mut plan, &[("sluice-wg0", 2), ("sluice-wg1", 9)]);
        let first = plan.desired().wireguard_peers.get(&PeerKey { link: LinkName(WIREGUARD.into()), key: key(2) });
        assert_eq!(first.map(|peer| peer.keepalive), Some(5), "{addresses}: its agent may not run");
    }
}

#[test]
fn a_node_whose_first_key_is_another_ones_gets_its_peer_when_the_second_device_comes() {
    // There is no way to the older one, so neither has a peer on the first device.
    let (unreached, younger) = (copy_of_first(0, "192.0.2.1", "10.244.9.0/24"), created(10, second()));
    let changing = || ("node-3", Node { wireguard_next_key: Some(key(8)), ..third().1 });
    let mut plan = plan_of(&ENCRYPTED, &[own(), younger.clone(), unreached.clone(), third()]);
    assert_eq!(at_second(&plan, 2), None);
    plan.update(&with(&[own(), younger.clone(), unreached.clone(), changing()]));
    let at_once = plan_of(&ENCRYPTED, &[own(), younger, unreached, changing()]);
    assert!(at_second(&plan, 2).is_some_and(|peer| peer.contains("10.244.2.0/24")), "{:?}", peers(&plan));
    assert_eq!(plan.desired().wireguard_peers, at_once.desired().wireguard_peers);
}
