//! Walls of prefixes that were learned and have lost their tunnels.

use super::*;

#[test]
fn what_was_lost_is_refused_around_nodes_and_not_in_front_of_any_narrower_route() {
    let home = format!("{HOST} 198.51.100.1/24 2001:db8:7:1::1/64");
    for (network, hop, address_there, outside) in [
        ("198.51.96.0/20", "192.0.2.2", "198.51.100.7", "198.51.97.7"),
        ("2001:db8:7::/48", "2001:db8::2", "2001:db8:7:1::7", "2001:db8:7:2::7"),
    ] {
        // An address of a node in the network of a link of ours.
        let mut world = with(&[own(), second()]);
        world.host = Arc::new(host(&home));
        let mut plan = Plan::new(Arc::new(config(&ENCRYPTED[..2])), PerFamily { v4: true, v6: true });
        plan.update(&world);
        learn(&mut plan, network, &[hop]);
        assert_eq!(main_route(&plan, network), through_tunnel(), "{network}");
        let there = ("node-7", with_key(7, &format!("10.9.0.7 {address_there}"), ""));
        world = with(&[own(), second(), there]);
        world.host = Arc::new(host(&home));
        plan.update(&world);
        assert_eq!(main_route(&plan, network), None, "{network}");
        assert!(is_walled(&plan, outside), "{network}: {:?}", walls(&plan));
        let part =
            |number: u8| address_there.strip_suffix('7').map(|net| format!("{net}{number}")).expect("it ends so");
        assert!(!is_walled(&plan, &part(99)), "what the link leads to: {:?}", walls(&plan));
    }
    for (network, hop, pods, bridge, outside) in [
        ("10.250.0.0/16", "192.0.2.2", "10.250.7.0/24", "10.250.7.1", "10.250.9.9"),
        ("fd00:10:250::/48", "2001:db8::2", "fd00:10:250:7::/64", "fd00:10:250:7::1", "fd00:10:250:9::9"),
    ] {
        // A node that lists an address among its own pods, and ours with one among ours.
        let theirs = ("node-7", with_key(7, &format!("10.9.0.7 2001:db8:9::7 {bridge}"), pods));
        let ours = ("node-1", with_key(1, &format!("192.0.2.1 2001:db8::1 {bridge}"), pods));
        for (nodes, is_theirs) in [(vec![own(), second(), theirs], true), (vec![ours, second()], false)] {
            let mut plan = plan_of(&ENCRYPTED[..2], &[own(), second()]);
            learn(&mut plan, network, &[hop]);
            assert_eq!(main_route(&plan, network), through_tunnel(), "{network}");
            plan.update(&with(&nodes));
            assert_eq!(main_route(&plan, network), None, "{network}");
            let expected: Vec<String> = if is_theirs {
                [network, pods].map(|range| format!("{range} Unreachable")).into()
            } else {
                // Our own address is in it: it is believed as little as pods would be.
                vec![]
            };
            let mut in_it = walls(&plan);
            let (stem, _) = network.rsplit_once(if network.contains("::") { "::" } else { "0.0/" }).expect("a network");
            in_it.retain(|text| text.starts_with(stem));
            assert_eq!((in_it, is_walled(&plan, outside)), (expected, is_theirs), "{network}");
        }
    }
}

#[test]
fn what_was_lost_is_not_refused_once_our_own_address_is_inside() {
    for (network, hop, ours) in
        [("203.0.113.0/24", "192.0.2.2", "203.0.113.7"), ("2001:db8:f::/64", "2001:db8::2", "2001:db8:f::7")]
    {
        let mut plan = plan_of(&ENCRYPTED[..2], &[own(), second()]);
        learn(&mut plan, network, &[hop]);
        assert_eq!(main_route(&plan, network), through_tunnel());
        let moved = ("node-1", with_key(1, &format!("192.0.2.1 2001:db8::1 {ours}"), "10.244.1.0/24"));
        plan.update(&with(&[moved, second()]));
        assert_eq!(main_route(&plan, network), None, "{network}");
        let in_it: Vec<String> = walls(&plan).into_iter().filter(|text| text.starts_with(&network[..9])).collect();
        assert_eq!(in_it, Vec::<String>::new());
        // And it is again when that has gone.
        plan.update(&with(&[own(), second(), ("node-7", with_key(7, "10.9.0.7", network))]));
        assert!(walls(&plan).contains(&format!("{network} Unreachable")), "{:?}", walls(&plan));
    }
}

#[test]
fn what_was_lost_is_not_refused_in_front_of_a_narrower_route_to_another_router_in_either_order_until_that_goes() {
    for ((network, hop, elsewhere), (narrower, router), (node, beside)) in [
        (("10.16.0.0/12", "192.0.2.2", "10.17.0.1"), ("10.20.0.0/16", "192.0.2.254"), ("10.20.0.7", "10.20.0.9")),
        (
            ("2001:db8:70::/44", "2001:db8::2", "2001:db8:71::1"),
            ("2001:db8:74::/48", "2001:db8::fe"),
            ("2001:db8:74::7", "2001:db8:74::9"),
        ),
    ] {
        for is_first in [true, false] {
            let mut plan = plan_of(&ENCRYPTED[..2], &[own(), second()]);
            learn(&mut plan, network, &[hop]);
            assert_eq!(main_route(&plan, network), through_tunnel(), "{network}");
            if is_first {
                learn(&mut plan, narrower, &[router]);
            }
            plan.update(&with(&[own(), second(), ("node-7", with_key(7, &format!("10.9.0.7 {node}"), ""))]));
            assert_eq!(main_route(&plan, network), None, "{network}");
            assert!(is_walled(&plan, elsewhere), "{network}: {:?}", walls(&plan));
            if !is_first {
                assert!(is_walled(&plan, beside), "{network}: {:?}", walls(&plan));
                learn(&mut plan, narrower, &[router]);
            }
            assert!(main_route(&plan, narrower).is_some(), "{narrower}");
            assert!(!is_walled(&plan, beside), "what the router leads to: {:?}", walls(&plan));
            assert!(is_walled(&plan, elsewhere), "{network}: {:?}", walls(&plan));
            learn(&mut plan, narrower, &[]);
            assert!(is_walled(&plan, beside), "{narrower} has gone: {:?}", walls(&plan));
        }
    }
}
