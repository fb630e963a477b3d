//! Import of a received route: whether it may be used at all, and what import policy makes of it.
//!
//! RFC 4271 9.1.2 and 6.3 (loops, next hops, the first AS), RFC 4456 8 (loops among reflectors).

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;

use super::super::message::Attributes;
use super::super::policy::{Applicable, Line, Outcome};
use super::Rules;
use super::best_path::{Kind, Source};
use super::intern::Interned;

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
    // The link is unknown: neighbours are not reached over link-local addresses here.
    let on_some_link = matches!(next_hop, IpAddr::V6(next_hop) if next_hop.is_unicast_link_local());
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
