//! Other programs' routes that take packets to pods of other nodes away from ours.
//!
//! The kernel uses the longest prefix, of routes to one prefix that of the lowest metric, and of IPv4 routes of one metric the
//! first. A route that refuses (`unreachable`, `blackhole`, `prohibit`) decides like any other. So three kinds of routes
//! prevail over ours to the pod CIDR of a Node:
//!
//! | route | what is done |
//! |---|---|
//! | to the same prefix | it is replaced or deleted: only ours follows the Node |
//! | of the kernel, to the network of a link of this host | it stays, because nothing would put it back; ours stands behind it; trouble |
//! | to a part of the pod CIDR | it stays, because somebody means these addresses; trouble |
//!
//! Routes inside our own pod CIDRs lead to our own pods, even where another Node has a range around them by mistake.

use std::collections::BTreeMap;
use std::fmt;

use ipnet::IpNet;

use crate::kernel::route::{Foreign, RouteKey, TABLE_MAIN};
use crate::net::{Family, Prefixes};

/// A route that prevails over ours to a pod CIDR.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rival {
    pub route: Foreign,
    pub claim: Claim,
}

/// How a rival prevails, and so what is done about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// It leads to the same prefix.
    Same,
    /// The same prefix is the network of a link of this host.
    Link,
    /// It leads to a part of the pod CIDR.
    Part,
}

/// `RTPROT_KERNEL`: routes to the networks of links.
const BY_KERNEL: u8 = 2;

impl fmt::Display for Rival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.claim {
            Claim::Same => "another program's route comes first",
            Claim::Link => "it is also the network of a link of this host",
            // Nothing but another address of the link would end it.
            Claim::Part if self.route.protocol == BY_KERNEL => {
                "the network of a link of this host takes a part of these pods"
            }
            Claim::Part => "another program's route takes a part of these pods; delete it",
        };
        write!(f, "{what}: {}", self.route)
    }
}

/// Returns the rivals of our routes to these pod CIDRs of other nodes, by pod CIDR. `own`: the pod CIDRs of our own node.
pub fn rivals(pod_ranges: &Prefixes, own: &Prefixes, foreign: Vec<Foreign>) -> BTreeMap<IpNet, Vec<Rival>> {
    let mut rivals: BTreeMap<IpNet, Vec<Rival>> = BTreeMap::new();
    for route in foreign {
        if own.around(route.key.destination).is_some() {
            continue;
        }
        let Some(range) = pod_ranges.around(route.key.destination) else { continue };
        if let Some(claim) = claim(range, &route) {
            rivals.entry(range).or_default().push(Rival { route, claim });
        }
    }
    rivals
}

fn claim(range: IpNet, route: &Foreign) -> Option<Claim> {
    if route.key.destination != range {
        return Some(Claim::Part);
    }
    let ours = RouteKey::new(TABLE_MAIN, range);
    let shares_place = route.key.metric == ours.metric && (route.is_first || Family::from(range) == Family::V6);
    let prevails = route.key.metric < ours.metric || shares_place;
    prevails.then_some(if route.protocol == BY_KERNEL { Claim::Link } else { Claim::Same })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::route::RouteKind;

    const STATIC: u8 = 4;

    fn prefix(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    /// `unreachable`: what decides does not depend on where a route leads.
    fn foreign(destination: &str, metric: u32, protocol: u8, is_first: bool) -> Foreign {
        let key = RouteKey { table: TABLE_MAIN, destination: prefix(destination), metric };
        Foreign { key, kind: RouteKind::Unreachable, protocol, next_hops: [].into(), is_first }
    }

    #[test]
    fn the_longest_prefix_prevails_then_the_lowest_metric_then_the_first() {
        let mut ranges = Prefixes::default();
        ["10.244.2.0/24", "fd00:10:244:2::/64"].iter().for_each(|range| assert!(ranges.insert(prefix(range))));
        for (destination, metric, protocol, is_first, claim) in [
            ("10.244.2.0/24", 0, STATIC, true, Some(Claim::Same)),
            ("10.244.2.0/24", 0, STATIC, false, None),
            ("10.244.2.0/24", 50, STATIC, true, None),
            ("10.244.2.0/24", 0, BY_KERNEL, true, Some(Claim::Link)),
            ("10.244.2.0/24", 100, BY_KERNEL, true, None),
            ("10.244.2.7/32", 1000, STATIC, true, Some(Claim::Part)),
            ("10.244.2.128/25", 0, BY_KERNEL, true, Some(Claim::Part)),
            ("10.244.0.0/16", 0, STATIC, true, None),
            ("10.244.3.0/24", 0, STATIC, true, None),
            ("fd00:10:244:2::/64", 50, STATIC, true, Some(Claim::Same)),
            ("fd00:10:244:2::/64", 1024, STATIC, false, Some(Claim::Same)),
            ("fd00:10:244:2::/64", 1025, STATIC, true, None),
            ("fd00:10:244:2::/64", 256, BY_KERNEL, true, Some(Claim::Link)),
            ("fd00:10:244:2::40/122", 1024, STATIC, true, Some(Claim::Part)),
        ] {
            let found = rivals(&ranges, &Prefixes::default(), vec![foreign(destination, metric, protocol, is_first)]);
            let found: Vec<Claim> = found.into_values().flatten().map(|rival| rival.claim).collect();
            assert_eq!(found, Vec::from_iter(claim), "{destination} metric {metric} proto {protocol} {is_first}");
        }
    }
    #[test]
    fn a_route_to_our_own_pods_is_no_rival_where_another_node_has_a_range_around_them() {
        let mut ranges = Prefixes::default();
        ["10.244.0.0/16", "fd00:10:244::/48"].iter().for_each(|range| assert!(ranges.insert(prefix(range))));
        let mut own = Prefixes::default();
        ["10.244.1.0/24", "fd00:10:244:1::/64"].iter().for_each(|range| assert!(own.insert(prefix(range))));
        for (destination, is_rival) in [
            ("10.244.1.0/24", false),
            ("10.244.1.7/32", false),
            ("10.244.2.0/24", true),
            ("fd00:10:244:1::/64", false),
            ("fd00:10:244:2::/64", true),
        ] {
            let found = rivals(&ranges, &own, vec![foreign(destination, 256, BY_KERNEL, true)]);
            assert_eq!(!found.is_empty(), is_rival, "{destination}");
        }
    }

    #[test]
    fn a_rival_is_named_as_ip_route_takes_it_and_no_route_of_a_link_is_to_be_deleted() {
        let hop = |gateway: Option<&str>| crate::kernel::route::NextHop {
            link: crate::kernel::link::LinkName("eth0".into()),
            gateway: gateway.and_then(|gateway| gateway.parse().ok()),
            on_link: false,
        };
        let mut route = foreign("10.244.2.128/25", 50, STATIC, true);
        let said = |route: &Foreign| Rival { route: route.clone(), claim: Claim::Part }.to_string();
        assert!(said(&route).ends_with("delete it: unreachable 10.244.2.128/25 proto 4 metric 50"), "{}", said(&route));
        route.kind = RouteKind::Unicast;
        route.next_hops = [hop(Some("192.0.2.7")), hop(Some("fe80::7"))].into();
        let both = "proto 4 metric 50 nexthop via 192.0.2.7 dev eth0 nexthop via inet6 fe80::7 dev eth0";
        assert!(said(&route).ends_with(both), "{}", said(&route));
        route.protocol = BY_KERNEL;
        route.next_hops = [hop(None)].into();
        assert!(
            said(&route).ends_with("of these pods: 10.244.2.128/25 proto 2 metric 50 dev eth0"),
            "{}",
            said(&route)
        );
    }
}
