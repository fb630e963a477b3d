//! Learned routes in their number, and beside those of others.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use sluice::kernel::Error;
use sluice::kernel::link::LinkName;
use sluice::kernel::route::{NextHop, Route, RouteKey, RouteKind, TABLE_MAIN};
use sluice::reconcile::{Failure, Growth, Mirror, Phase, Reflection, Step, Target};
use sluice::router::apply::PodRoutes;
use sluice::router::linux::{Learned, open_for_cleanup};

use super::moment;
use crate::namespace::{in_new, run};

/// Learned routes that note how many of them are described to the kernel at once.
struct Noted {
    routes: Learned,
    at_once: Vec<usize>,
}

impl Target for Noted {
    type Key = RouteKey;
    type Value = Route;
    type Error = Error;

    fn name(&self) -> &'static str {
        self.routes.name()
    }

    fn read(&mut self) -> Result<BTreeMap<RouteKey, Route>, Error> {
        self.routes.read()
    }

    fn portion(&self) -> usize {
        self.routes.portion()
    }

    fn apply(&mut self, phase: Phase, steps: &[Step<'_, RouteKey, Route>]) -> Vec<Failure<Error>> {
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
        let hop = NextHop { link: LinkName("ours".into()), gateway: Some(Ipv4Addr::new(192, 0, 2, 2).into()) };
        let route = Route { kind: RouteKind::Unicast, protocol: 17, source: None, next_hops: [hop].into() };
        let prefix = |number: u32| Ipv4Net::new(Ipv4Addr::from(0x0b00_0000 + number * 256), 24).expect("a prefix");
        let wanted: BTreeMap<RouteKey, Route> =
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

/// Routes of others that stay beside ours to all pods of a node.
const BESIDE: [&str; 3] = [
    "ip route add 10.244.2.7/32 via 192.0.2.77",
    "ip -6 route add unreachable fd00:10:244:2::40/122",
    "ip -6 address add fd00:10:244:2::77/64 dev ours nodad",
];

#[test]
fn a_route_that_is_written_is_known_and_changes_at_once_where_others_take_a_part_of_its_pods() {
    in_new(|| {
        run("ip link add ours type veth peer name theirs");
        run("ip link set theirs up");
        run("ip link set ours up");
        run("ip address add 192.0.2.1/24 dev ours");
        run("ip address add 2001:db8::1/64 dev ours nodad");
        BESIDE.iter().for_each(|command| drop(run(command)));
        let wanted = |host: u16| -> BTreeMap<RouteKey, Route> {
            let gateways = [format!("192.0.2.{host}"), format!("2001:db8::{host}")];
            let routes = ["10.244.2.0/24", "fd00:10:244:2::/64"].iter().zip(gateways).map(|(range, gateway)| {
                let hop = NextHop { link: LinkName("ours".into()), gateway: gateway.parse().ok() };
                let route = Route { kind: RouteKind::Unicast, protocol: 17, source: None, next_hops: [hop].into() };
                (RouteKey::new(TABLE_MAIN, range.parse().expect("a prefix")), route)
            });
            routes.collect()
        };
        let mut mirror = Mirror::new(open_for_cleanup(None).expect("sockets").routes);
        wanted(2).keys().for_each(|key| mirror.target().note_pod_range(key.destination, true));
        for host in [2, 3] {
            mirror.mark_all();
            mirror.grow(&wanted(host), Growth::Full, moment());
            assert!(!mirror.is_in_doubt() && mirror.trouble().is_none(), "{:?}", mirror.trouble());
            assert_eq!(mirror.seen(), Some(&wanted(host)));
        }
        assert_eq!(mirror.audit(moment()).drift, []);
        assert_eq!(run("ip route show 10.244.2.7").lines().count(), 1);
    });
}
