//! Learned routes in their number, and beside those of others.

#![allow(clippy::indexing_slicing, reason = "a test that panics has failed, which is how a test says so")]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use sluice::kernel::Error;
use sluice::kernel::link::LinkName;
use sluice::kernel::route::{NextHop, Route, RouteKey, RouteKind, TABLE_MAIN};
use sluice::reconcile::{Failure, Growth, Mirror, Phase, Reflection, Step, Target};
use sluice::router::apply::PodRoutes;
use sluice::router::linux::{Learned, open_for_cleanup};
use sluice::router::rivals::Claim;

use super::moment;
use crate::namespace::{in_new, run};

/// Learned routes that note how many of them are described to the kernel at once.
struct Noted {
    routes: Learned,
    at_once: Vec<usize>,
}

impl Target for Noted {
    type Key = RouteKey;
    type Value = Arc<Route>;
    type Error = Error;

    fn name(&self) -> &'static str {
        self.routes.name()
    }

    fn read(&mut self) -> Result<BTreeMap<RouteKey, Arc<Route>>, Error> {
        self.routes.read()
    }

    fn portion(&self) -> usize {
        self.routes.portion()
    }

    fn apply(&mut self, phase: Phase, steps: &[Step<'_, RouteKey, Arc<Route>>]) -> Vec<Failure<Error>> {
        self.at_once.push(steps.len());
        self.routes.apply(phase, steps)
    }
}

#[test]
fn twenty_thousand_learned_routes_go_into_the_kernel_and_out_of_it_in_three_portions() {
    in_new(|| {
        run("ip link add ours type veth peer name theirs");
        run("ip link set theirs up");
        run("ip link set ours up");
        run("ip address add 192.0.2.1/24 dev ours");
        let hop = NextHop {
            link: LinkName("ours".into()),
            gateway: Some(Ipv4Addr::new(192, 0, 2, 2).into()),
            on_link: false,
        };
        let route = Route { kind: RouteKind::Unicast, protocol: 17, source: None, next_hops: [hop].into() };
        let route = Arc::new(route);
        let prefix = |number: u32| Ipv4Net::new(Ipv4Addr::from(0x0b00_0000 + number * 256), 24).expect("a prefix");
        let wanted: BTreeMap<RouteKey, Arc<Route>> =
            (0..20_000).map(|number| (RouteKey::new(TABLE_MAIN, prefix(number).into()), route.clone())).collect();
        let routes = open_for_cleanup(None).expect("sockets").routes;
        let mut mirror = Mirror::new(Noted { routes, at_once: Vec::new() });
        assert_eq!(mirror.grow(&wanted, Growth::Full, moment()).len(), 20_000);
        assert_eq!(mirror.target().at_once, [8192, 8192, 3616]);
        assert_eq!(run("ip route show proto 17").lines().count(), 20_000);
        assert_eq!(mirror.shrink(&BTreeMap::new(), moment()).len(), 0, "nothing of it is said to be wanted otherwise");
        mirror.mark_all();
        assert_eq!(mirror.shrink(&BTreeMap::new(), moment()).len(), 20_000);
        assert_eq!(mirror.target().at_once, [8192, 8192, 3616, 8192, 8192, 3616]);
        assert_eq!(run("ip route show proto 17"), "");
    });
}

/// Two devices, of which `ours` is on the nodes' network.
fn devices() {
    run("ip link add ours type veth peer name theirs");
    run("ip link set theirs up");
    run("ip link set ours up");
    run("ip address add 192.0.2.1/24 dev ours");
    run("ip address add 2001:db8::1/64 dev ours nodad");
}

/// The routes to the pods of a node, which has this number in both families.
fn to_pods(host: u16) -> BTreeMap<RouteKey, Arc<Route>> {
    let gateways = [format!("192.0.2.{host}"), format!("2001:db8::{host}")];
    let routes = ["10.244.2.0/24", "fd00:10:244:2::/64"].iter().zip(gateways).map(|(range, gateway)| {
        let hop = NextHop { link: LinkName("ours".into()), gateway: gateway.parse().ok(), on_link: false };
        let route = Route { kind: RouteKind::Unicast, protocol: 17, source: None, next_hops: [hop].into() };
        (RouteKey::new(TABLE_MAIN, range.parse().expect("a prefix")), Arc::new(route))
    });
    routes.collect()
}

/// Learned routes that know the pod CIDRs of the node.
fn learned() -> Mirror<Learned> {
    let mut mirror = Mirror::new(open_for_cleanup(None).expect("sockets").routes);
    to_pods(2).keys().for_each(|key| mirror.target().note_pod_range(key.destination, true));
    mirror
}

/// The IPv4 routes to the pods, in the kernel's order.
fn listed() -> Vec<String> {
    run("ip route show 10.244.2.0/24").lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn the_network_of_a_link_that_equals_a_pod_range_is_named_and_holds_up_nothing() {
    in_new(|| {
        devices();
        run("ip link add other type veth peer name another");
        run("ip link set another up");
        run("ip link set other up");
        run("ip address add 10.244.2.1/24 dev other");
        let mut mirror = learned();
        let mut of_link = Vec::new();
        for host in [2, 3] {
            mirror.mark_all();
            mirror.grow(&to_pods(host), Growth::Full, moment());
            assert!(!mirror.is_in_doubt() && mirror.trouble().is_none(), "{:?}", mirror.trouble());
            assert_eq!(mirror.seen(), Some(&to_pods(host)));
            let staying = mirror.target().staying();
            assert!(staying.len() == 1 && staying[0].1.claim == Claim::Link, "{staying:?}");
            let listed = listed();
            assert!(
                listed.len() == 2 && listed[1].starts_with(&format!("10.244.2.0/24 via 192.0.2.{host} ")),
                "{listed:?}"
            );
            of_link.push(listed[0].clone());
        }
        assert!(
            of_link[0].starts_with("10.244.2.0/24 dev other proto kernel") && of_link[0] == of_link[1],
            "{of_link:?}"
        );
        assert_eq!(mirror.audit(moment()).drift, []);
        run("ip link delete other");
        assert!(listed().len() == 1 && listed()[0].contains("via 192.0.2.3"), "ours takes over: {:?}", listed());
        let mut restarted = learned();
        restarted.mark_all();
        assert!(restarted.grow(&to_pods(3), Growth::Full, moment()).is_empty(), "it is adopted");
        assert!(restarted.target().staying().is_empty());
    });
}

#[test]
fn an_older_route_of_ours_does_not_stay_behind_where_a_route_of_others_came_first() {
    in_new(|| {
        devices();
        let mut mirror = learned();
        mirror.grow(&to_pods(2), Growth::Full, moment());
        run("ip route prepend 10.244.2.0/24 via 192.0.2.77 proto static");
        mirror.mark_all();
        mirror.grow(&to_pods(3), Growth::Full, moment());
        assert!(!mirror.is_in_doubt() && mirror.trouble().is_none(), "{:?}", mirror.trouble());
        assert!(listed().len() == 1 && listed()[0].contains("via 192.0.2.3"), "{:?}", listed());
    });
}

/// Routes of others that stay beside ours to all pods of a node.
const BESIDE: [&str; 3] = [
    "ip route add 10.244.2.7/32 via 192.0.2.77",
    "ip -6 route add unreachable fd00:10:244:2::40/122",
    "ip -6 address add fd00:10:244:2::77/64 dev ours nodad",
];

#[test]
fn a_route_that_is_written_is_known_and_changes_at_once_where_others_take_a_part_of_its_pods() {
    in_new(|| {
        devices();
        BESIDE.iter().for_each(|command| drop(run(command)));
        let mut mirror = learned();
        for host in [2, 3] {
            mirror.mark_all();
            mirror.grow(&to_pods(host), Growth::Full, moment());
            assert!(!mirror.is_in_doubt() && mirror.trouble().is_none(), "{:?}", mirror.trouble());
            assert_eq!(mirror.seen(), Some(&to_pods(host)));
        }
        assert_eq!(mirror.audit(moment()).drift, []);
        assert_eq!(run("ip route show 10.244.2.7").lines().count(), 1);
    });
}
