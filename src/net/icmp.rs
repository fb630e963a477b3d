//! Types of ICMP and ICMPv6 messages in our rules: those that are never stopped, and those that a link needs.
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
}

/// Neighbour discovery (RFC 4861) and multicast listener discovery (RFC 2710, RFC 3810): the kinds of ICMPv6 without which no
/// IPv6 works on a link. Not those that only routers send, advertisements and redirects (RFC 6105): a pod that sends them
/// gives other pods addresses that no policy knows, or takes their packets to itself.
pub const OF_LINKS: [(Kind, u8); 7] = [
    (Kind::ListenerQuery, 130),
    (Kind::ListenerReport, 131),
    (Kind::ListenerDone, 132),
    (Kind::RouterSolicitation, 133),
    (Kind::NeighbourSolicitation, 135),
    (Kind::NeighbourAdvertisement, 136),
    (Kind::ListenerReportV2, 143),
];

/// The kinds that always pass in this family with their numbers, in the order of their rules.
pub fn always_pass(family: Family) -> &'static [(Kind, u8)] {
    match family {
        Family::V4 => &[(Kind::EchoRequest, 8), (Kind::DestinationUnreachable, 3), (Kind::TimeExceeded, 11)],
        Family::V6 => &[
            (Kind::EchoRequest, 128),
            (Kind::DestinationUnreachable, 1),
            (Kind::PacketTooBig, 2),
            (Kind::TimeExceeded, 3),
            (Kind::NeighbourSolicitation, 135),
            (Kind::NeighbourAdvertisement, 136),
            (Kind::EchoReply, 129),
        ],
    }
}

impl Kind {
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbour_discovery_passes_where_it_exists() {
        let passes = |family, number| always_pass(family).iter().any(|(_, one)| *one == number);
        assert!(passes(Family::V6, 135) && passes(Family::V6, 136));
        assert!(!passes(Family::V4, 135) && !passes(Family::V4, 136));
        assert!(passes(Family::V4, 8) && !passes(Family::V6, 8));
    }
}
