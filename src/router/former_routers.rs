//! Routers on links over which routes of an earlier run lead: the neighbours of before a restart, as the kernel remembers them.
//!
//! A neighbour that is configured by interface has no address in any configuration. Where several routers advertise themselves on its link, the one that is heard first after a
//! restart may be another one than before; a session with it would replace all routes over the link (`link_neighbours`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use compact_str::CompactString;

use crate::kernel::route::Route;

/// Returns the link-local gateway that these routes have on each of the links; `None` of a link over which no route leads to one. A link has one neighbour, so where routes
/// have several gateways there, somebody else's among them, the most frequent one is it.
pub fn former_routers<'a>(
    routes: impl Iterator<Item = &'a Route>,
    links: &BTreeSet<CompactString>,
) -> BTreeMap<CompactString, Option<Ipv6Addr>> {
    let mut counts: BTreeMap<&CompactString, BTreeMap<Ipv6Addr, usize>> = BTreeMap::new();
    for hop in routes.flat_map(|route| route.next_hops.iter()) {
        if let (Some(IpAddr::V6(gateway)), Some(link)) = (hop.gateway, links.get(&hop.link.0))
            && gateway.is_unicast_link_local()
        {
            *counts.entry(link).or_default().entry(gateway).or_default() += 1;
        }
    }
    let most = |link: &CompactString| {
        let counts = counts.get(link)?;
        counts.iter().max_by_key(|(_, count)| **count).map(|(gateway, _)| *gateway)
    };
    links.iter().map(|link| (link.clone(), most(link))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::link::LinkName;
    use crate::kernel::route::{NextHop, RouteKind};

    fn route(hops: &[(&str, Option<&str>)]) -> Route {
        let hop = |(link, gateway): &(&str, Option<&str>)| NextHop {
            link: LinkName((*link).into()),
            gateway: gateway.map(|text| text.parse().expect("an address")),
            on_link: false,
        };
        Route { kind: RouteKind::Unicast, protocol: 17, source: None, next_hops: hops.iter().map(hop).collect() }
    }

    #[test]
    fn the_router_of_before_is_the_link_local_gateway_of_most_routes_over_the_link() {
        let routes = [
            route(&[("eth1", Some("fe80::9"))]),
            route(&[("eth1", Some("fe80::2")), ("eth2", Some("fe80::2"))]),
            route(&[("eth1", Some("fe80::2"))]),
            // Those to pods of nodes, through tunnels, and over links that nobody wants.
            route(&[("eth1", Some("192.0.2.9")), ("eth1", Some("2001:db8::9"))]),
            route(&[("tun-100203", None)]),
            route(&[("eth0", Some("fe80::7"))]),
        ];
        let links: BTreeSet<CompactString> = ["eth1", "eth2", "eth3"].map(CompactString::from).into();
        let router = || Some("fe80::2".parse().expect("an address"));
        let expected = [("eth1".into(), router()), ("eth2".into(), router()), ("eth3".into(), None)];
        assert_eq!(former_routers(routes.iter(), &links), expected.into());
    }
}
