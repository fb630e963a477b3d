//! Routes, on a device that any kernel has.

use std::collections::BTreeMap;
use std::sync::Arc;

use sluice::kernel::link::LinkName;
use sluice::kernel::netlink::{Bus, Listener};
use sluice::kernel::route::{
    NextHop, Ownership, Protocol, Route, RouteKey, RouteKind, Routes, TABLE_LOCAL, TABLE_MAIN,
};
use sluice::proxy::linux::route_ownership;
use sluice::reconcile::{Failure, Phase, Step, Target};

use crate::namespace::{in_new, run};

const PROTOCOL_KERNEL: u8 = 2;
const PROTOCOL_OURS: u8 = 17;

/// A device `ours` with node addresses on the other end of its wire.
fn devices() {
    run("ip link add ours type veth peer name theirs");
    run("ip link set ours up");
    run("ip link set theirs up");
    run("ip address add 192.0.2.1/24 dev theirs");
    run("ip address add 2001:db8::1/64 dev theirs nodad");
}

fn local_routes() -> Routes {
    Routes::open(Ownership::Device { table: TABLE_LOCAL, link: LinkName("ours".into()) }).expect("sockets")
}

fn local(destination: &str, source: Option<&str>) -> (RouteKey, Arc<Route>) {
    let route = Route {
        kind: RouteKind::Local,
        protocol: PROTOCOL_KERNEL,
        source: source.map(|source| source.parse().expect("an address")),
        next_hops: [NextHop { link: LinkName("ours".into()), gateway: None, on_link: false }].into(),
    };
    (RouteKey::new(TABLE_LOCAL, destination.parse().expect("a prefix")), Arc::new(route))
}

fn examples() -> BTreeMap<RouteKey, Arc<Route>> {
    BTreeMap::from([
        local("10.96.0.1/32", Some("192.0.2.1")),
        local("10.96.0.2/32", None),
        local("fd00:10:96::1/128", Some("2001:db8::1")),
        local("fd00:10:96::2/128", None),
    ])
}

fn add(routes: &mut Routes, wanted: &BTreeMap<RouteKey, Arc<Route>>) -> Vec<Failure<sluice::kernel::Error>> {
    let steps: Vec<_> = wanted.iter().map(|(key, want)| Step { key, have: None, want: Some(want) }).collect();
    routes.apply(Phase::Grow, &steps)
}

fn delete(routes: &mut Routes, wanted: &BTreeMap<RouteKey, Arc<Route>>) -> Vec<Failure<sluice::kernel::Error>> {
    let steps: Vec<_> = wanted.iter().map(|(key, have)| Step { key, have: Some(have), want: None }).collect();
    routes.apply(Phase::Shrink, &steps)
}

#[test]
fn what_we_write_ip_reads() {
    in_new(|| {
        devices();
        let mut routes = local_routes();
        let examples = examples();
        let failures = add(&mut routes, &examples);
        assert!(failures.is_empty(), "{failures:?}");
        assert_eq!(routes.read().expect("a reading"), examples);
        let shown = run("ip -4 route show table local dev ours");
        let lines: Vec<&str> = shown.lines().map(str::trim).collect();
        assert_eq!(
            lines,
            ["local 10.96.0.1 proto kernel scope host src 192.0.2.1", "local 10.96.0.2 proto kernel scope host",]
        );
        let shown = run("ip -6 route show table local dev ours");
        assert!(shown.contains("local fd00:10:96::1 proto kernel src 2001:db8::1 metric 1024"), "{shown}");
        assert!(run("ip route get 10.96.0.1").contains("local 10.96.0.1 dev lo"), "the address is this host's");
        let failures = delete(&mut routes, &examples);
        assert!(failures.is_empty(), "{failures:?}");
        assert!(routes.read().expect("a reading").is_empty());
    });
}

#[test]
fn what_ip_writes_we_read_and_nothing_of_others() {
    in_new(|| {
        devices();
        run("ip route add local 10.96.0.1 dev ours table local proto kernel src 192.0.2.1");
        run("ip route add local 10.96.0.2 dev ours table local proto kernel");
        run("ip -6 route add local fd00:10:96::1 dev ours table local proto kernel src 2001:db8::1");
        run("ip -6 route add local fd00:10:96::2 dev ours table local proto kernel");
        run("ip route add local 10.96.0.9 dev theirs table local");
        run("ip route add 10.96.0.9 dev ours table main");
        run("ip route add 10.96.0.9 dev ours table 78");
        let mut routes = local_routes();
        assert_eq!(routes.read().expect("a reading"), examples());
        let others = || {
            let all = run("ip -4 route show table all") + &run("ip -6 route show table all");
            // The kernel adds the routes of IPv6 addresses by itself, some time after the addresses.
            let late = ["fe80::", "local 2001:db8::1"];
            let ours = |line: &&str| {
                let mut passed_over = ["10.96.0.1", "10.96.0.2", "fd00:10:96::"].into_iter().chain(late);
                passed_over.all(|one| !line.contains(one))
            };
            all.lines().filter(ours).map(str::to_owned).collect::<Vec<_>>()
        };
        let before = others();
        let failures = delete(&mut routes, &examples());
        assert!(failures.is_empty(), "{failures:?}");
        assert!(routes.keys().expect("keys").is_empty());
        assert_eq!(others(), before);
    });
}

#[test]
fn an_address_that_another_device_has_as_well_stays_local_when_that_device_goes() {
    in_new(|| {
        devices();
        run("ip addr add 10.96.0.1/32 dev theirs");
        run("ip -6 addr add fd00:10:96::1/128 dev theirs nodad");
        let mut routes = local_routes();
        let wanted =
            BTreeMap::from([local("10.96.0.1/32", Some("192.0.2.1")), local("fd00:10:96::1/128", Some("2001:db8::1"))]);
        let failures = add(&mut routes, &wanted);
        assert!(failures.is_empty(), "{failures:?}");
        assert_eq!(routes.read().expect("a reading"), wanted);
        let first = run("ip -4 route show table local 10.96.0.1");
        assert!(first.contains("dev theirs") && first.contains("dev ours"), "{first}");
        let failures = add(&mut routes, &wanted);
        assert_eq!(failures.len(), 2, "both are there: {failures:?}");
        run("ip addr del 10.96.0.1/32 dev theirs");
        run("ip -6 addr del fd00:10:96::1/128 dev theirs");
        assert_eq!(routes.read().expect("a reading"), wanted);
        assert!(run("ip route get 10.96.0.1").contains("local 10.96.0.1 dev lo"), "the address is this host's");
        let failures = delete(&mut routes, &wanted);
        assert!(failures.is_empty(), "{failures:?}");
    });
}

#[test]
fn a_route_that_changes_behind_another_devices_leaves_that_alone_and_itself_once() {
    in_new(|| {
        devices();
        run("ip addr add 192.0.2.7/24 dev lo");
        run("ip addr add 10.96.0.1/32 dev theirs");
        let mut routes = local_routes();
        let wanted = |source| BTreeMap::from([local("10.96.0.1/32", Some(source))]);
        assert!(add(&mut routes, &wanted("192.0.2.1")).is_empty());
        let theirs = || run("ip -4 route show table local 10.96.0.1 dev theirs");
        let before = theirs();
        assert!(before.contains("10.96.0.1"), "{before}");
        for (from, to) in [("192.0.2.1", "192.0.2.7"), ("192.0.2.7", "192.0.2.1"), ("192.0.2.1", "192.0.2.7")] {
            let (have, want) = (wanted(from), wanted(to));
            let (Some((key, have)), Some(want)) = (have.iter().next(), want.values().next()) else { unreachable!() };
            let failures = routes.apply(Phase::Grow, &[Step { key, have: Some(have), want: Some(want) }]);
            assert!(failures.is_empty(), "{failures:?}");
            assert_eq!(theirs(), before);
            let ours = run("ip -4 route show table local 10.96.0.1 dev ours");
            assert_eq!(ours.lines().count(), 1, "{ours}");
            assert!(ours.contains(&format!("src {to}")), "{ours}");
        }
        // A process that ended in between has left both.
        run("ip route append local 10.96.0.1 dev ours table local proto kernel src 192.0.2.1");
        let (have, want) = (wanted("192.0.2.7"), wanted("192.0.2.1"));
        let (Some((key, have)), Some(want)) = (have.iter().next(), want.values().next()) else { unreachable!() };
        let failures = routes.apply(Phase::Grow, &[Step { key, have: Some(have), want: Some(want) }]);
        assert!(failures.is_empty(), "{failures:?}");
        assert_eq!(routes.read().expect("a reading"), wanted("192.0.2.1"));
        assert_eq!(run("ip -4 route show table local 10.96.0.1 dev ours").lines().count(), 1);
        // Somebody deleted the former one, which had a source, or none.
        for (key, have) in [local("10.96.0.1/32", Some("192.0.2.1")), local("10.96.0.1/32", None)] {
            run("ip route del local 10.96.0.1 dev ours table local");
            let want = wanted("192.0.2.7");
            let Some(want) = want.values().next() else { unreachable!() };
            let failures = routes.apply(Phase::Grow, &[Step { key: &key, have: Some(&have), want: Some(want) }]);
            assert!(failures.is_empty(), "{failures:?}");
            assert_eq!(routes.read().expect("a reading"), wanted("192.0.2.7"));
        }
    });
}

#[test]
fn a_changed_route_is_replaced_without_a_moment_of_absence() {
    const GROUPS: [u32; 2] = [7, 11];
    const NEW_ROUTE: u16 = 24;
    const DELETED_ROUTE: u16 = 25;
    const REPLACED: u16 = 0x100;
    in_new(|| {
        devices();
        let mut routes = local_routes();
        let old = BTreeMap::from([local("10.96.0.1/32", None), local("fd00:10:96::1/128", None)]);
        let new =
            BTreeMap::from([local("10.96.0.1/32", Some("192.0.2.1")), local("fd00:10:96::1/128", Some("2001:db8::1"))]);
        assert!(add(&mut routes, &old).is_empty());
        let mut listener = Listener::open(Bus::Route, &GROUPS).expect("a listener");
        let change: Vec<_> = old
            .iter()
            .zip(new.values())
            .map(|((key, have), want)| Step { key, have: Some(have), want: Some(want) })
            .collect();
        assert!(routes.apply(Phase::Grow, &change).is_empty());
        let mut heard = Vec::new();
        listener.receive(|answer| heard.push((answer.kind, answer.flags & REPLACED))).expect("notifications");
        // Of IPv4 the new one is there before the former one goes: what the kernel would replace may be another device's.
        assert_eq!(heard, [(NEW_ROUTE, 0), (NEW_ROUTE, REPLACED), (DELETED_ROUTE, 0)]);
        assert_eq!(routes.read().expect("a reading"), new);
    });
}

#[test]
fn a_step_that_meets_drift_fails_alone() {
    in_new(|| {
        devices();
        let mut routes = local_routes();
        run("ip route add local 10.96.0.1 dev theirs table local");
        run("ip -6 route add local fd00:10:96::1 dev theirs table local");
        let failures = add(&mut routes, &examples());
        // The first one is behind theirs.
        assert_eq!(failures.iter().map(|failure| failure.step).collect::<Vec<_>>(), [2]);
        assert!(failures.iter().all(|failure| failure.error.is_exists()), "{failures:?}");
        run("ip route del local 10.96.0.2 table local");
        let failures = delete(&mut routes, &examples());
        assert_eq!(failures.iter().map(|failure| failure.step).collect::<Vec<_>>(), [1, 2]);
        assert!(failures.iter().all(|failure| failure.error.is_absent()), "{failures:?}");
        assert!(run("ip route show table local dev theirs").contains("10.96.0.1"), "somebody else's stays");
    });
}

#[test]
fn routes_of_a_protocol_keep_their_gateways_tables_and_several_ways() {
    in_new(|| {
        devices();
        run("ip address add 192.0.2.2/24 dev ours");
        run("ip address add 2001:db8::2/64 dev ours nodad");
        for table in [TABLE_MAIN, 1000] {
            let ownership = Ownership::Protocols(vec![Protocol { table, protocol: PROTOCOL_OURS }]);
            let mut routes = Routes::open(ownership).expect("sockets");
            assert!(routes.read().expect("a missing table is an empty one").is_empty());
            let wanted: BTreeMap<RouteKey, Arc<Route>> = [
                ("10.244.1.0/24", vec!["192.0.2.9"]),
                ("10.244.2.0/24", vec!["192.0.2.9", "192.0.2.10"]),
                ("10.244.3.0/24", vec!["2001:db8::9"]),
                ("10.244.4.0/24", vec!["198.51.100.9"]),
                ("10.244.5.0/24", vec!["198.51.100.9", "192.0.2.10"]),
                ("fd00:10:244:1::/64", vec!["2001:db8::9"]),
                ("fd00:10:244:2::/64", vec!["2001:db8::9", "2001:db8::10"]),
            ]
            .map(|(destination, gateways)| {
                let hop = |gateway: &str| NextHop {
                    link: LinkName("ours".into()),
                    gateway: gateway.parse().ok(),
                    on_link: gateway.starts_with("198.51.100"),
                };
                let next_hops = gateways.into_iter().map(hop).collect();
                let route = Route { kind: RouteKind::Unicast, protocol: PROTOCOL_OURS, source: None, next_hops };
                (RouteKey::new(table, destination.parse().expect("a prefix")), Arc::new(route))
            })
            .into();
            run(&format!("ip route add 10.244.9.0/24 via 192.0.2.9 table {table} proto 18"));
            let failures = add(&mut routes, &wanted);
            assert!(failures.is_empty(), "{failures:?}");
            assert_eq!(routes.read().expect("a reading"), wanted);
            let shown = run(&format!("ip route show table {table} proto 17"));
            assert!(shown.contains("10.244.1.0/24 via 192.0.2.9 dev ours"), "{shown}");
            assert!(shown.contains("10.244.3.0/24 via inet6 2001:db8::9 dev ours"), "{shown}");
            assert!(shown.contains("10.244.4.0/24 via 198.51.100.9 dev ours onlink"), "{shown}");
            let failures = delete(&mut routes, &wanted);
            assert!(failures.is_empty(), "{failures:?}");
            assert!(run(&format!("ip route show table {table}")).contains("10.244.9.0/24"));
        }
    });
}

#[test]
fn one_way_becomes_several_and_several_become_others_in_place() {
    const GROUPS: [u32; 2] = [7, 11];
    const DELETE_ROUTE: u16 = 25;
    in_new(|| {
        devices();
        run("ip address add 192.0.2.2/24 dev ours");
        run("ip address add 2001:db8::2/64 dev ours nodad");
        let ownership = Ownership::Protocols(vec![Protocol { table: TABLE_MAIN, protocol: PROTOCOL_OURS }]);
        let mut routes = Routes::open(ownership).expect("sockets");
        let to = |ways: &[u8]| -> BTreeMap<RouteKey, Arc<Route>> {
            let hop = |address: String| NextHop {
                link: LinkName("ours".into()),
                gateway: address.parse().ok(),
                on_link: false,
            };
            let route = |next_hops| {
                Arc::new(Route { kind: RouteKind::Unicast, protocol: PROTOCOL_OURS, source: None, next_hops })
            };
            let four = ways.iter().map(|way| hop(format!("192.0.2.{way}"))).collect();
            let six = ways.iter().map(|way| hop(format!("2001:db8::{way}"))).collect();
            let key = |prefix: &str| RouteKey::new(TABLE_MAIN, prefix.parse().expect("a prefix"));
            [(key("10.244.1.0/24"), route(four)), (key("fd00:10:244:1::/64"), route(six))].into()
        };
        let mut have = to(&[9]);
        assert!(add(&mut routes, &have).is_empty());
        let mut listener = Listener::open(Bus::Route, &GROUPS).expect("a listener");
        for ways in [&[9, 10][..], &[10, 11, 12], &[9, 13], &[13], &[9, 10, 11], &[12]] {
            let want = to(ways);
            let change: Vec<_> = have
                .iter()
                .zip(want.values())
                .map(|((key, have), want)| Step { key, have: Some(have), want: Some(want) })
                .collect();
            let failures = routes.apply(Phase::Grow, &change);
            assert!(failures.is_empty(), "to {ways:?}: {failures:?}");
            assert_eq!(routes.read().expect("a reading"), want, "{ways:?}");
            let mut deleted = 0;
            listener.receive(|answer| deleted += u32::from(answer.kind == DELETE_ROUTE)).expect("notifications");
            assert_eq!(deleted, 0, "nothing is away for a moment, to {ways:?}");
            have = want;
        }
    });
}

#[test]
fn ten_thousand_routes_come_and_go() {
    in_new(|| {
        devices();
        let mut routes = local_routes();
        let pair = |n: u32| {
            [local(&format!("10.96.{}.{}/32", n / 256, n % 256), None), local(&format!("fd00:10:96::{n:x}/128"), None)]
        };
        let wanted: BTreeMap<RouteKey, Arc<Route>> = (1..=5000).flat_map(pair).collect();
        assert!(add(&mut routes, &wanted).is_empty());
        assert_eq!(routes.read().expect("a reading"), wanted);
        assert!(delete(&mut routes, &wanted).is_empty());
        assert!(routes.read().expect("a reading").is_empty());
    });
}

#[test]
fn a_route_through_a_missing_device_fails_alone() {
    in_new(|| {
        devices();
        let mut wanted = examples();
        if let Some(mut first) = wanted.first_entry() {
            Arc::make_mut(first.get_mut()).next_hops =
                [NextHop { link: LinkName("absent".into()), gateway: None, on_link: false }].into();
        }
        let mut routes = local_routes();
        let failures = add(&mut routes, &wanted);
        let [failure] = failures.as_slice() else { panic!("one step fails: {failures:?}") };
        assert!(failure.step == 0 && failure.error.to_string().contains("no device absent"), "{}", failure.error);
        assert_eq!(routes.keys().expect("keys").len(), 3);
        run("ip link delete ours");
        assert!(routes.read().expect("a reading").is_empty());
    });
}

#[test]
fn what_kube_router_leaves_in_the_table_of_direct_server_return_is_ours_and_goes() {
    in_new(|| {
        devices();
        run("ip link set lo up");
        for family in ["-4", "-6"] {
            run(&format!("ip {family} route add local default dev lo table 78"));
        }
        run("ip route add 198.51.100.0/24 dev theirs table 78");
        run("ip route add local 203.0.113.0/24 dev lo table 78");
        let mut routes = Routes::open(route_ownership()).expect("sockets");
        let found = routes.read().expect("they can be read");
        let shown: Vec<String> = found.keys().map(ToString::to_string).collect();
        assert_eq!(shown, ["0.0.0.0/0 table 78 metric 0", "::/0 table 78 metric 1024"]);
        assert!(delete(&mut routes, &found).is_empty());
        assert!(routes.read().expect("they can be read").is_empty());
        let left = run("ip route show table 78");
        let left: Vec<&str> = left.lines().map(str::trim).collect();
        assert_eq!(left, ["198.51.100.0/24 dev theirs scope link", "local 203.0.113.0/24 dev lo scope host"]);
    });
}

#[test]
fn routes_of_both_families_by_a_link_local_gateway_are_as_ip_writes_them() {
    in_new(|| {
        // A link without any other address.
        run("ip link add ours type veth peer name theirs");
        run("ip link set ours up");
        run("ip link set theirs up");
        let ownership = Ownership::Protocols(vec![Protocol { table: TABLE_MAIN, protocol: PROTOCOL_OURS }]);
        let mut routes = Routes::open(ownership).expect("sockets");
        let gateway = |last: u16| Some(std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, last).into());
        let by = |destination: &str, gateways: &[u16]| {
            let hop = |last: &u16| NextHop { link: LinkName("ours".into()), gateway: gateway(*last), on_link: false };
            let route = Route {
                kind: RouteKind::Unicast,
                protocol: PROTOCOL_OURS,
                source: None,
                next_hops: gateways.iter().map(hop).collect(),
            };
            (RouteKey::new(TABLE_MAIN, destination.parse().expect("a prefix")), Arc::new(route))
        };
        let one = BTreeMap::from([by("203.0.113.0/25", &[2]), by("2001:db8:113::/48", &[2])]);
        let several = BTreeMap::from([by("203.0.113.128/25", &[2, 3]), by("2001:db8:114::/48", &[2, 3])]);
        let all: BTreeMap<_, _> = one.clone().into_iter().chain(several).collect();
        let failures = add(&mut routes, &all);
        assert!(failures.is_empty(), "{failures:?}");
        assert_eq!(routes.read().expect("a reading"), all);
        let shown = run("ip route show 203.0.113.0/25");
        assert!(shown.starts_with("203.0.113.0/25 via inet6 fe80::2 dev ours proto 17"), "{shown}");
        let shown = run("ip -6 route show 2001:db8:113::/48");
        assert!(shown.starts_with("2001:db8:113::/48 via fe80::2 dev ours proto 17"), "{shown}");
        assert_eq!(run("ip route show 203.0.113.128/25").matches("via inet6 fe80::").count(), 2);
        // The router gets another address.
        let moved = BTreeMap::from([by("203.0.113.0/25", &[4]), by("2001:db8:113::/48", &[4])]);
        let steps: Vec<_> = one
            .iter()
            .zip(moved.values())
            .map(|((key, have), want)| Step { key, have: Some(have), want: Some(want) })
            .collect();
        assert!(routes.apply(Phase::Grow, &steps).is_empty());
        assert!(run("ip route show 203.0.113.0/25").contains("via inet6 fe80::4 dev ours"));
        let all = routes.read().expect("a reading");
        assert!(delete(&mut routes, &all).is_empty());
        assert!(routes.read().expect("a reading").is_empty());
    });
}
