//! The device that service addresses are local to, on a kernel with `dummy`.

use std::collections::BTreeMap;
use std::sync::Arc;

use sluice::kernel::address::{AddressKey, Addresses, KEEPER};
use sluice::kernel::link::{Link, LinkKind, LinkName, Links};
use sluice::kernel::netlink::{Bus, Listener};
use sluice::kernel::route::{NextHop, Ownership, Route, RouteKey, RouteKind, Routes, TABLE_LOCAL};
use sluice::reconcile::{Growth, Mirror, Moment, Phase, Reflection, Step, Target};

use crate::namespace::{self, attempt, run};

const UP: Link = Link { kind: LinkKind::Dummy, up: true };

fn in_new(test: impl FnOnce() + Send) {
    namespace::in_new(|| {
        let (made, _, error) = attempt("ip link add probe type dummy");
        assert!(made, "this kernel has no module dummy; run this test in the guest of the lab: {error}");
        run("ip link delete probe");
        test();
    });
}

fn ours() -> LinkName {
    LinkName("kube-dummy-if".into())
}

fn local(destination: &str, source: &str) -> (RouteKey, Arc<Route>) {
    let route = Route {
        kind: RouteKind::Local,
        protocol: 2,
        source: source.parse().ok(),
        next_hops: [NextHop { link: ours(), gateway: None, on_link: false }].into(),
    };
    (RouteKey::new(TABLE_LOCAL, destination.parse().expect("a prefix")), Arc::new(route))
}

#[test]
fn the_device_is_made_set_up_repaired_and_deleted() {
    in_new(|| {
        run("ip link add foreign type dummy");
        let name = ours();
        let mut links = Links::open([name.clone()]).expect("sockets");
        assert!(links.read().expect("a reading").is_empty());
        let make = [Step { key: &name, have: None, want: Some(&UP) }];
        assert!(links.apply(Phase::Grow, &make).is_empty());
        assert!(run("ip -d link show kube-dummy-if up").contains("dummy"));
        assert_eq!(links.read().expect("a reading"), BTreeMap::from([(name.clone(), UP)]));
        let failures = links.apply(Phase::Grow, &make);
        assert!(failures.iter().all(|failure| failure.error.is_exists()) && failures.len() == 1, "{failures:?}");
        run("ip link set kube-dummy-if down");
        let down = Link { up: false, ..UP };
        assert_eq!(links.read().expect("a reading"), BTreeMap::from([(name.clone(), down.clone())]));
        assert!(links.apply(Phase::Grow, &[Step { key: &name, have: Some(&down), want: Some(&UP) }]).is_empty());
        assert_eq!(links.read().expect("a reading"), BTreeMap::from([(name.clone(), UP)]));
        let delete = [Step { key: &name, have: Some(&UP), want: None }];
        assert!(links.apply(Phase::Shrink, &delete).is_empty());
        assert!(links.read().expect("a reading").is_empty());
        let failures = links.apply(Phase::Shrink, &delete);
        assert!(failures.iter().all(|failure| failure.error.is_absent()) && failures.len() == 1, "{failures:?}");
        assert!(run("ip link show foreign").contains("foreign"));
    });
}

/// A node with a device and two service addresses on it, whose routes the kernel made by itself.
fn addresses() {
    run("ip link add eth0 type dummy");
    run("ip link set eth0 up");
    run("ip address add 192.0.2.1/24 dev eth0");
    run("ip address add 2001:db8::1/64 dev eth0 nodad");
    run("ip link add kube-dummy-if type dummy");
    run("ip link set kube-dummy-if up");
    run("ip address add 10.96.0.1/32 dev kube-dummy-if scope link");
    run("ip address add fd00:10:96::1/128 dev kube-dummy-if nodad");
}

/// Replaces these routes as kube-router does.
fn replaced_routes() {
    run("ip route replace local 10.96.0.1/32 dev kube-dummy-if table local proto kernel scope host src 192.0.2.1");
    run("ip -6 route replace local fd00:10:96::1/128 dev kube-dummy-if table local proto kernel src 2001:db8::1");
    run("ip -6 route delete local fd00:10:96::1/128 dev kube-dummy-if table local metric 0");
}

/// Our routes instead of these addresses. Fails where one of the routes was away for a moment.
fn take_over() {
    const ROUTE_GROUPS: [u32; 2] = [7, 11];
    const DELETE_ROUTE: u16 = 25;
    let want = BTreeMap::from([local("10.96.0.1/32", "192.0.2.1"), local("fd00:10:96::1/128", "2001:db8::1")]);
    let rule = Ownership::Device { table: TABLE_LOCAL, link: ours() };
    let mut routes = Mirror::new(Routes::open(rule).expect("sockets"));
    let mut addresses = Mirror::new(Addresses::open([ours()]).expect("sockets"));
    let mut listener = Listener::open(Bus::Route, &ROUTE_GROUPS).expect("a listener");
    let at = Moment { now: std::time::Instant::now(), jitter: 0 };
    let keeper = BTreeMap::from([(AddressKey { link: ours(), address: KEEPER }, ())]);
    addresses.grow(&keeper, Growth::Full, at);
    routes.grow(&want, Growth::Full, at);
    routes.shrink(&want, at);
    addresses.shrink(&keeper, at);
    assert!(addresses.trouble().is_none(), "{:?}", addresses.trouble());
    assert!(routes.is_settled() && addresses.is_settled());
    assert_eq!(routes.audit(at).drift, [], "the kernel did nothing by itself");
    let mut gone = 0;
    let count = |answer: &sluice::kernel::netlink::Answer<'_>| {
        const SOURCE: u16 = 7;
        let source = answer.attributes(12).get(SOURCE).and_then(|source| source.address());
        if answer.kind == DELETE_ROUTE && source.is_some() && want.values().any(|route| route.source == source) {
            gone += 1;
        }
    };
    listener.receive(count).expect("notifications");
    assert_eq!(gone, 0, "the routes that we want were never away");
    assert_eq!(routes.target().read().expect("a reading"), want);
    assert!(!run("ip address show dev kube-dummy-if").contains("10.96.0.1"));
    assert!(!run("ip address show dev kube-dummy-if").contains("fd00:10:96::1"));
    assert!(run("ip route get 10.96.0.1").contains("local 10.96.0.1"));
    assert!(run("ip -6 route get fd00:10:96::1").contains("local fd00:10:96::1"));
}

#[test]
fn addresses_of_kube_router_become_routes_of_ours_without_a_gap() {
    in_new(|| {
        addresses();
        replaced_routes();
        take_over();
    });
}

#[test]
fn addresses_with_the_kernels_own_routes_become_routes_of_ours_without_a_gap() {
    in_new(|| {
        addresses();
        take_over();
    });
}

#[test]
fn of_two_routes_to_one_address_the_one_in_use_is_read() {
    in_new(|| {
        addresses();
        run("ip route append local 10.96.0.1/32 dev kube-dummy-if table local src 192.0.2.1");
        assert_eq!(run("ip route show table local 10.96.0.1").lines().count(), 2);
        let rule = Ownership::Device { table: TABLE_LOCAL, link: ours() };
        let found = Routes::open(rule).expect("sockets").read().expect("a reading");
        let (key, kernels_own) = local("10.96.0.1/32", "10.96.0.1");
        assert_eq!(found, BTreeMap::from([(key, kernels_own)]));
    });
}
