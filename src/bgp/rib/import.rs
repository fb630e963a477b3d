//! Import of a received route: whether it may be used at all, and what import policy makes of it.
//!
//! RFC 4271 9.1.2 and 6.3 (loops, next hops, the first AS), RFC 4456 8 (loops among reflectors).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;

use super::super::message::Attributes;
use super::super::policy::{Applicable, Line, Outcome};
use super::Rules;
use super::best_path::{Kind, Source};
use super::intern::Interned;
use crate::net::LinkLocal;
use crate::net::link_local::is_unplaced;

/// Reason for which a received route is not used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// AS_PATH contains our AS number.
    AsLoop(u32),
    /// ORIGINATOR_ID is our BGP identifier.
    OriginatorLoop(Ipv4Addr),
    /// CLUSTER_LIST contains our cluster ID.
    ClusterLoop(Ipv4Addr),
    /// The next hop is an address of this host.
    OwnNextHop(IpAddr),
    /// The next hop is unspecified, multicast, broadcast, loopback, or of an unknown link.
    InvalidNextHop(IpAddr),
    /// AS_PATH of an EBGP neighbour does not begin with this AS number, or is empty where any is accepted.
    FirstAs(Option<u32>),
    /// Import policy rejects it in this line.
    Policy(Line),
}

/// Returns attributes as received from a neighbour, with a next hop that says on which link it is. A neighbour with a link-local address is on a link with its next
/// hops: of the two addresses of RFC 2545 the link-local one counts, which needs no other route. What others send has no link, whatever is in its bits.
pub(super) fn placed(attributes: Attributes, neighbour: IpAddr) -> Attributes {
    let Some(neighbour) = LinkLocal::within(neighbour) else { return unplaced(attributes) };
    let received = match attributes.next_hop {
        IpAddr::V6(next_hop) if next_hop.is_unicast_link_local() => Some(next_hop),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    };
    let Some(next_hop) = attributes.rare().link_local.or(received) else { return attributes };
    let on_link = LinkLocal::new(next_hop, neighbour.link());
    // With other bits in the place of zeros it is nobody's.
    let next_hop = on_link.map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), LinkLocal::combined);
    attributes.with_next_hop(next_hop)
}

/// Returns attributes whose next hop is on no link that is known, if it is a link-local one.
pub(super) fn unplaced(attributes: Attributes) -> Attributes {
    match LinkLocal::within(attributes.next_hop) {
        Some(on_link) => attributes.with_next_hop(IpAddr::V6(on_link.address())),
        None => attributes,
    }
}

/// Applies import policy to a route; the error is the line that rejects it.
pub(super) fn imported(
    rules: &Rules,
    applicable: &Applicable,
    (prefix, received): (IpNet, &Arc<Attributes>),
    interned: &mut Interned,
) -> Result<Arc<Attributes>, Line> {
    match rules.policies.import.verdict(applicable, prefix, received, None) {
        (Outcome::Rejected, line) => Err(line),
        (Outcome::Unchanged, _) => Ok(received.clone()),
        (Outcome::Changed(changed), _) => Ok(interned.intern(changed)),
    }
}

/// Returns why a route may not be used at all, whatever the policy: it is a loop, or its next hop is no other router.
pub(super) fn unusable(rules: &Rules, source: &Source, attributes: &Attributes) -> Option<Refusal> {
    let own = &rules.own;
    let rare = attributes.rare();
    // RFC 4271 9.1.2; RFC 4456 8.
    if attributes.as_path.contains(own.asn) {
        return Some(Refusal::AsLoop(own.asn));
    }
    if rare.originator == Some(own.identifier) {
        return Some(Refusal::OriginatorLoop(own.identifier));
    }
    if rare.clusters.contains(&own.cluster) {
        return Some(Refusal::ClusterLoop(own.cluster));
    }
    // RFC 4271 6.3: the next hop is a local address, or invalid.
    let next_hop = attributes.next_hop;
    if rules.addresses.contains(&next_hop) {
        return Some(Refusal::OwnNextHop(next_hop));
    }
    // Between speakers on one host, as in tests, loopback addresses are valid.
    let loopback = next_hop.is_loopback() && !source.address.is_loopback();
    let nowhere = next_hop.is_unspecified() || next_hop.is_multicast() || loopback;
    // Those of a neighbour on a link are on that link ([`placed`]).
    let on_some_link = is_unplaced(next_hop);
    let broadcast = matches!(next_hop, IpAddr::V4(next_hop) if next_hop.is_broadcast());
    if nowhere || on_some_link || broadcast {
        return Some(Refusal::InvalidNextHop(next_hop));
    }
    // An EBGP neighbour that does not prepend its own AS number hides the source of the route.
    let first = attributes.as_path.neighbour();
    let headless =
        source.kind == Kind::External && (first.is_none() || source.first.is_some() && first != source.first);
    headless.then_some(Refusal::FirstAs(source.first))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn on_link(text: &str, link: u32) -> IpAddr {
        LinkLocal::new(text.parse().unwrap(), link).unwrap().combined()
    }

    /// The next hop that counts, of one or two that a neighbour sends.
    fn check(neighbour: IpAddr, next_hop: &str, link_local: Option<&str>, expected: IpAddr) {
        let mut attributes = Attributes::local(address(next_hop));
        attributes.change_rare(|rare| rare.link_local = link_local.map(|text| text.parse().unwrap()));
        assert_eq!(placed(attributes, neighbour).next_hop, expected, "{neighbour} {next_hop} {link_local:?}");
    }

    #[test]
    fn a_neighbour_on_a_link_is_on_it_with_its_next_hops() {
        let neighbour = on_link("fe80::2", 7);
        // As BIRD, FRR, and both with a global address write it.
        for (next_hop, link_local) in
            [("fe80::2", None), ("fe80::2", Some("fe80::2")), ("::", Some("fe80::2")), ("2001:db8::2", Some("fe80::2"))]
        {
            check(neighbour, next_hop, link_local, neighbour);
        }
        check(neighbour, "fe80::3", None, on_link("fe80::3", 7));
        for other in ["2001:db8::2", "192.0.2.2", "::"] {
            check(neighbour, other, None, address(other));
        }
        let nobody = address("::");
        check(neighbour, "fe80:0:9::2", None, nobody);
        check(neighbour, "2001:db8::2", Some("fe80:0:9::2"), nobody);
    }

    #[test]
    fn what_others_send_is_on_no_link() {
        for neighbour in [address("192.0.2.2"), address("2001:db8::2")] {
            check(neighbour, "fe80:0:9::2", None, address("fe80::2"));
            check(neighbour, "fe80::2", None, address("fe80::2"));
            check(neighbour, "2001:db8::2", Some("fe80::2"), address("2001:db8::2"));
        }
    }
}
