//! Claims of Nodes to what is another one's: they take nothing away, and cut nobody off.

use std::time::Instant;

use super::*;
use crate::router::given::annotated;
use crate::router::plan::Circumstances;

const NETWORKS: [(&str, &str); 2] = [("198.51.100.0/24", "192.0.2.2"), ("2001:db8:f::/64", "2001:db8::2")];

fn has_wall(plan: &Plan, range: &str) -> bool {
    walls(plan).contains(&format!("{range} Unreachable"))
}

#[test]
fn what_is_learned_by_an_address_that_several_nodes_claim_leads_to_none_of_them() {
    for ((network, hop), name) in NETWORKS.into_iter().flat_map(|one| [(one, "node-0"), (one, "node-9")]) {
        // It is the first address of its family of both.
        let other = || (name, with_key(9, hop, "10.244.9.0/24"));
        let mut plan = plan_of(&ENCRYPTED[..2], &[own(), second(), other()]);
        learn(&mut plan, network, &[hop]);
        assert_eq!(main_route(&plan, network), None, "{name}");
        assert!(!peers(&plan).concat().contains(network), "{name}: {:?}", peers(&plan));
        // And what was learned before.
        let mut plan = plan_of(&ENCRYPTED[..2], &[own(), second()]);
        learn(&mut plan, network, &[hop]);
        assert_eq!((main_route(&plan, network), has_wall(&plan, network)), (through_tunnel(), false));
        plan.update(&with(&[own(), second(), other()]));
        assert_eq!((main_route(&plan, network), has_wall(&plan, network)), (None, true), "{name}");
        assert!(!peers(&plan).concat().contains(network), "{name}: {:?}", peers(&plan));
        plan.update(&with(&[own(), second()]));
        assert_eq!((main_route(&plan, network), has_wall(&plan, network)), (through_tunnel(), false));
        assert!(peers(&plan)[0].contains(network));
    }
}

#[test]
fn who_lists_the_address_of_another_node_behind_its_own_changes_nothing_for_that_node() {
    for ((network, hop), name) in NETWORKS.into_iter().flat_map(|one| [(one, "node-0"), (one, "node-9")]) {
        let other = created(-1, (name, with_key(9, &format!("192.0.2.9 2001:db8::9 {hop}"), "10.244.9.0/24")));
        let mut plan = plan_of(&ENCRYPTED[..2], &[own(), second()]);
        learn(&mut plan, network, &[hop]);
        let before = peers(&plan);
        plan.update(&with(&[own(), second(), other]));
        assert_eq!((main_route(&plan, network), has_wall(&plan, network)), (through_tunnel(), false), "{name}");
        assert_eq!(peers(&plan)[0], before[0], "{name}");
        assert!(!peers(&plan)[1].contains(hop), "{name}: {:?}", peers(&plan));
        let said: Vec<String> = plan.desired().problems.iter().map(ToString::to_string).collect();
        assert_eq!(said, [format!("Node {name}: it lists {hop}, which stays the address of Node node-2")]);
    }
}

#[test]
fn a_wide_range_of_an_annotation_puts_no_wall_in_front_of_what_was_given_to_another_node() {
    // Clouds list the address of the bridge.
    let bridged = with_key(2, "192.0.2.2 2001:db8::2 10.244.2.1 fd00:10:244:2::1", "10.244.2.0/24 fd00:10:244:2::/64");
    let wide = annotated(with_key(7, "192.0.2.7 2001:db8::7", "10.244.2.0/23 fd00:10:244:2::/63"), "");
    let plan = plan_of(&ENCRYPTED, &[own(), ("node-2", bridged), ("node-7", wide)]);
    for (range, first) in [("10.244.2.0/24", "10.244.2."), ("fd00:10:244:2::/64", "fd00:10:244:2:")] {
        assert_eq!(main_route(&plan, range), through_tunnel(), "{range}");
        assert!(peers(&plan)[0].contains(range) && has_wall(&plan, range), "{:?}", peers(&plan));
        let wider = if first.contains('.') { "10.244.2.0/23 " } else { "fd00:10:244:2::/63 " };
        let inside = walls(&plan).into_iter().filter(|wall| wall.starts_with(first) && !wall.starts_with(wider));
        assert_eq!(inside.collect::<Vec<_>>(), [format!("{range} Unreachable")]);
    }
}

#[test]
fn of_a_node_with_thousands_of_addresses_eight_get_routes_of_pods_and_that_is_said() {
    for (first, prefix) in [("192.0.2.9", "198.51.100."), ("2001:db8::9", "2001:db8:f::")] {
        let more: String = (1..200).map(|number| format!(" {prefix}{number}")).collect();
        let plan = plan_of(&ENCRYPTED, &[own(), ("node-9", with_key(9, &format!("{first}{more}"), ""))]);
        // A route and a wall behind it for each.
        assert_eq!(of_pods(&plan).len(), 2 * 8);
        assert_eq!(peers(&plan)[0].split(' ').count(), 2 + 8, "{:?}", peers(&plan));
        let said: Vec<String> = plan.desired().problems.iter().map(ToString::to_string).collect();
        assert_eq!(said, ["Node node-9: it lists more than 8 addresses; the others count as outside of the cluster"]);
    }
}

#[test]
fn a_range_with_the_addresses_of_many_nodes_in_it_has_no_wall_and_that_is_said_until_they_are_fewer() {
    for (prefix, range) in [("10.9.0.", "10.9.0.0/24"), ("2001:db8:9::", "2001:db8:9::/64")] {
        let of = |number: u8| -> (&'static str, Node) {
            (format!("node-{number}").leak(), with_key(number, &format!("{prefix}{number}"), ""))
        };
        let claiming = ("node-9", with_key(9, "192.0.2.9", range));
        let nodes = |many: u8| -> Vec<(&str, Node)> {
            [own(), claiming.clone()].into_iter().chain((100..100 + many).map(of)).collect()
        };
        let said = |plan: &Plan| {
            let mut problems = plan.desired().problems.iter().map(ToString::to_string);
            problems.any(|text| text.contains(&format!("pod range {range}: the addresses of too many nodes are in it")))
        };
        let mut plan = plan_of(&ENCRYPTED, &nodes(32));
        assert!(is_walled(&plan, &format!("{prefix}7")) && !said(&plan));
        assert!(walls(&plan).len() <= 32 * usize::from(super::prefix(range).max_prefix_len()), "{range}");
        plan.update(&with(&nodes(33)));
        assert_eq!((walls(&plan), said(&plan)), (vec![], true), "{range}");
        plan.update(&with(&nodes(32)));
        assert!(is_walled(&plan, &format!("{prefix}7")) && !said(&plan));
    }
}

#[test]
fn no_wall_stands_in_front_of_the_route_of_a_router_that_shares_a_network_with_a_node_that_is_lost() {
    for (network, hop, router, inside) in [
        ("198.51.100.0/24", "192.0.2.2", "192.0.2.254", "198.51.100.7"),
        ("2001:db8:f::/64", "2001:db8::2", "2001:db8::fe", "2001:db8:f::7"),
    ] {
        // An address of a node is in it, so the walls would be in parts.
        let seven = || ("node-7", with_key(7, &format!("10.9.0.7 {inside}"), ""));
        let mut plan = plan_of(&ENCRYPTED[..2], &[own(), second()]);
        learn(&mut plan, network, &[hop, router]);
        plan.update(&with(&[own(), second(), seven()]));
        assert_eq!(main_route(&plan, network), Some(vec![format!("eth0 via {router}")]));
        assert_eq!(walls(&plan), walls(&plan_of(&ENCRYPTED[..2], &[own(), second(), seven()])), "{network}");
        // Without the router nothing leads there, and what led through the tunnel is refused.
        learn(&mut plan, network, &[hop]);
        assert_eq!(main_route(&plan, network), None);
        let address = address(inside);
        let around = walls(&plan).iter().filter(|text| text.starts_with(&network[..8])).count();
        assert!(around > 1, "{address}: {:?}", walls(&plan));
        learn(&mut plan, network, &[hop, router]);
        assert_eq!(walls(&plan), walls(&plan_of(&ENCRYPTED[..2], &[own(), second(), seven()])), "{network}");
    }
}

#[test]
fn what_is_learned_again_of_a_node_that_is_gone_stays_refused_until_it_was_withdrawn() {
    for (network, hop) in NETWORKS {
        let mut plan = plan_of(&ENCRYPTED[..2], &[own(), second()]);
        learn(&mut plan, network, &[hop]);
        plan.update(&with(&[own()]));
        for _ in 0..2 {
            // The speaker has not heard of it yet.
            learn(&mut plan, network, &[hop]);
            assert_eq!((main_route(&plan, network), has_wall(&plan, network)), (None, true));
        }
        learn(&mut plan, network, &[]);
        learn(&mut plan, network, &[hop]);
        assert_eq!(main_route(&plan, network), Some(vec![format!("eth0 via {hop}")]));
        assert!(!has_wall(&plan, network));
    }
}

#[test]
fn without_an_address_of_our_own_the_same_is_refused_as_with_one() {
    // A mistake: an address of this host is in it.
    let six = || ("node-6", with_key(6, "192.0.2.6", "192.0.2.0/30"));
    let nameless = ("node-1", with_key(1, "", ""));
    for own in [None, Some(nameless)] {
        let nodes: Vec<(&str, Node)> = own.into_iter().chain([second(), third(), six()]).collect();
        let plan = plan_of(&ENCRYPTED, &nodes);
        assert_eq!(
            walls(&plan),
            ["10.244.2.0/24", "10.244.3.0/24", "fd00:10:244:2::/64"].map(|one| format!("{one} Unreachable"))
        );
        let refused = ["10.0.0.3/32", "192.0.2.2/32", "192.0.2.6/32", "2001:db8::2/128"];
        assert_eq!(of_pods(&plan), refused.map(|one| format!("{one} refused")), "there is no device");
        let plan = plan_of(&[ENCRYPTED[0], ENCRYPTED[2]], &nodes);
        assert_eq!(
            (walls(&plan), of_pods(&plan)),
            (vec!["10.244.3.0/24 Unreachable".to_owned()], vec!["10.0.0.3/32 refused".to_owned()])
        );
    }
}

#[test]
fn a_machine_with_two_nodes_has_the_pods_of_both() {
    let renamed = |ranges| ("node-7", with_key(2, "192.0.2.2 2001:db8::2", ranges));
    let mut plan = plan_of(&ENCRYPTED, &[own(), second(), renamed("10.244.7.0/24 fd00:10:244:7::/64")]);
    let both = "2 192.0.2.2:51820 10.244.2.0/24 10.244.7.0/24 192.0.2.2/32 2001:db8::2/128 fd00:10:244:2::/64 fd00:10:244:7::/64";
    assert_eq!(peers(&plan), [both]);
    for range in ["10.244.2.0/24", "10.244.7.0/24", "fd00:10:244:7::/64"] {
        assert_eq!(main_route(&plan, range), through_tunnel(), "{range}");
    }
    let now = Instant::now();
    let unreached = plan.unreached(Circumstances { now, since: now, nodes_are_read: true }, |_, _| true);
    assert_eq!(unreached.count, 0, "{unreached:?}");
    let changed = plan.update(&with(&[own(), second(), renamed("10.244.7.0/24")]));
    assert_eq!(changed.wireguard_peers.len(), 1);
    assert_eq!(peers(&plan), [both.replace(" fd00:10:244:7::/64", "")]);
    plan.update(&with(&[own(), renamed("10.244.7.0/24")]));
    assert_eq!(peers(&plan), ["2 192.0.2.2:51820 10.244.7.0/24 192.0.2.2/32 2001:db8::2/128"]);
}

#[test]
fn no_wall_covers_an_address_of_another_node_whoever_claims_what_is_around_it() {
    for (victim, claimed, inside) in [
        ("10.0.0.3", "10.0.0.3/32", None),
        ("10.0.0.3", "10.0.0.0/24", Some("10.0.0.77")),
        ("2001:db8:3::3", "2001:db8:3::3/128", None),
        ("2001:db8:3::3", "2001:db8:3::/64", Some("2001:db8:3::77")),
    ] {
        for source in ["--node-routes=api", "--node-routes=bgp"] {
            let words = [ENCRYPTED[0], ENCRYPTED[1], source];
            let third = ("node-3", with_key(3, victim, "10.244.3.0/24"));
            let claiming = ("node-6", with_key(6, "192.0.2.6", claimed));
            let mut plan = plan_of(&words, &[own(), third.clone(), claiming.clone()]);
            assert!(!is_walled(&plan, victim), "{claimed}: {:?}", walls(&plan));
            assert!(inside.is_none_or(|inside| is_walled(&plan, inside)), "{claimed}: {:?}", walls(&plan));
            // Whoever was there first.
            plan.update(&with(&[own(), claiming.clone()]));
            assert!(has_wall(&plan, claimed), "{:?}", walls(&plan));
            plan.update(&with(&[own(), third, claiming]));
            assert!(!is_walled(&plan, victim), "{claimed}: {:?}", walls(&plan));
        }
    }
}

#[test]
fn nodes_that_list_addresses_in_pods_of_another_one_take_neither_its_wall_nor_its_packets() {
    for (range, one, other, host, inside) in [
        ("10.244.2.0/24", "10.244.2.8", "10.244.2.9", "/32", "10.244.2.77"),
        ("fd00:10:244:2::/64", "fd00:10:244:2::8", "fd00:10:244:2::9", "/128", "fd00:10:244:2::77"),
    ] {
        // The second of them claims the address as its pods as well.
        for claimed in [String::new(), format!("{other}{host}")] {
            let six = ("node-6", with_key(6, &format!("192.0.2.6 {one}"), ""));
            let seven = ("node-7", with_key(7, &format!("192.0.2.7 {other}"), &claimed));
            let plan = plan_of(&ENCRYPTED, &[own(), second(), six, seven]);
            assert!(is_walled(&plan, inside), "{range}: {:?}", walls(&plan));
            assert_eq!(main_route(&plan, range), None, "{range}");
            let all = peers(&plan).concat();
            assert!(!all.contains(one) && !all.contains(other), "{:?}", peers(&plan));
        }
    }
}

#[test]
fn on_a_link_who_copies_the_key_and_the_range_of_a_node_gets_no_packets_of_its_pods() {
    for (range, right, wrong) in
        [("10.244.2.0/24", "192.0.2.2", "192.0.2.6"), ("fd00:10:244:2::/64", "2001:db8::2", "2001:db8::6")]
    {
        let copy = |name, addresses| (name, with_key(2, addresses, "10.244.2.0/24 fd00:10:244:2::/64"));
        for name in ["node-0", "node-6"] {
            let mut plan = plan_of(&ENCRYPTED[..1], &[own(), second(), copy(name, "192.0.2.6 2001:db8::6")]);
            for hops in [&[wrong][..], &[wrong, right]] {
                learn(&mut plan, range, hops);
                assert_eq!(main_route(&plan, range), None, "{name} {hops:?}");
            }
            // One machine under two names has the same addresses.
            plan.update(&with(&[own(), second(), copy(name, "192.0.2.2 2001:db8::2")]));
            assert_eq!(main_route(&plan, range), Some(vec![format!("eth0 via {right}")]), "{name}");
        }
    }
}
