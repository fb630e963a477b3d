//! Types of ICMP and ICMPv6 messages in our rules: those that are never stopped, those that a link needs, and those that only
//! routers send.
//!
//! Kubernetes says nothing of ICMP: policies speak of TCP, UDP and SCTP, Services of their ports. As in kube-router, what
//! networks need to work and people need to find faults always passes, in both directions: echo requests, the two errors,
//! and for IPv6 neighbour discovery and, as RFC 4890 demands, packet-too-big, which in IPv4 is a kind of
//! destination-unreachable. So a ping never says whether a policy stops a path.
//!
//! Numbers: RFC 792, RFC 4443, RFC 4861 (IANA, "ICMP Type Numbers"). Errors of other kinds belong to a connection and
//! pass because of it.

use super::Family;

/// A kind of message.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    EchoRequest,
    EchoReply,
    DestinationUnreachable,
    TimeExceeded,
    /// Of IPv6 only, as those below.
    PacketTooBig,
    NeighbourSolicitation,
    NeighbourAdvertisement,
    RouterSolicitation,
    ListenerQuery,
    ListenerReport,
    ListenerDone,
    ListenerReportV2,
    RouterAdvertisement,
    Redirect,
}

/// Neighbour discovery (RFC 4861) and multicast listener discovery (RFC 2710, RFC 3810): the kinds of ICMPv6 without which no
/// IPv6 works on a link. Not those that only routers send, advertisements and redirects (RFC 6105): a pod that sends them
/// gives other pods addresses that no policy knows, or takes their packets to itself.
pub const OF_LINKS: [Kind; 7] = [
    Kind::ListenerQuery,
    Kind::ListenerReport,
    Kind::ListenerDone,
    Kind::RouterSolicitation,
    Kind::NeighbourSolicitation,
    Kind::NeighbourAdvertisement,
    Kind::ListenerReportV2,
];

/// The kinds that always pass in this family, in the order of their rules.
pub fn always_pass(family: Family) -> &'static [Kind] {
    match family {
        Family::V4 => &[Kind::EchoRequest, Kind::DestinationUnreachable, Kind::TimeExceeded],
        Family::V6 => &[
            Kind::EchoRequest,
            Kind::DestinationUnreachable,
            Kind::PacketTooBig,
            Kind::TimeExceeded,
            Kind::NeighbourSolicitation,
            Kind::NeighbourAdvertisement,
            Kind::EchoReply,
        ],
    }
}

impl Kind {
    /// Returns the type of these messages in a family; that of ICMPv6 for a kind of IPv6 only, whatever the family.
    pub fn number(self, family: Family) -> u8 {
        match (self, family) {
            (Kind::EchoReply, Family::V4) => 0,
            (Kind::DestinationUnreachable, Family::V4) => 3,
            (Kind::EchoRequest, Family::V4) => 8,
            (Kind::TimeExceeded, Family::V4) => 11,
            (Kind::DestinationUnreachable, Family::V6) => 1,
            (Kind::PacketTooBig, _) => 2,
            (Kind::TimeExceeded, Family::V6) => 3,
            (Kind::EchoRequest, Family::V6) => 128,
            (Kind::EchoReply, Family::V6) => 129,
            (Kind::ListenerQuery, _) => 130,
            (Kind::ListenerReport, _) => 131,
            (Kind::ListenerDone, _) => 132,
            (Kind::RouterSolicitation, _) => 133,
            (Kind::RouterAdvertisement, _) => 134,
            (Kind::NeighbourSolicitation, _) => 135,
            (Kind::NeighbourAdvertisement, _) => 136,
            (Kind::Redirect, _) => 137,
            (Kind::ListenerReportV2, _) => 143,
        }
    }

    /// As iptables calls it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::EchoRequest => "echo-request",
            Kind::EchoReply => "echo-reply",
            Kind::DestinationUnreachable => "destination-unreachable",
            Kind::TimeExceeded => "time-exceeded",
            Kind::PacketTooBig => "packet-too-big",
            Kind::NeighbourSolicitation => "neighbour-solicitation",
            Kind::NeighbourAdvertisement => "neighbour-advertisement",
            Kind::RouterSolicitation => "router-solicitation",
            Kind::ListenerQuery => "multicast-listener-query",
            Kind::ListenerReport => "multicast-listener-report",
            Kind::ListenerDone => "multicast-listener-done",
            Kind::ListenerReportV2 => "multicast-listener-report-v2",
            Kind::RouterAdvertisement => "router-advertisement",
            Kind::Redirect => "redirect",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbour_discovery_passes_where_it_exists() {
        let passing = |family| -> Vec<u8> { always_pass(family).iter().map(|kind| kind.number(family)).collect() };
        assert_eq!(passing(Family::V4), [8, 3, 11]);
        assert_eq!(passing(Family::V6), [128, 1, 2, 3, 135, 136, 129]);
    }

    #[test]
    fn a_link_needs_nothing_that_only_routers_send() {
        let of_links = OF_LINKS.map(|kind| kind.number(Family::V6));
        assert_eq!(of_links, [130, 131, 132, 133, 135, 136, 143]);
        assert_eq!([Kind::RouterAdvertisement, Kind::Redirect].map(|kind| kind.number(Family::V6)), [134, 137]);
    }
}
