//! The kinds of ICMP and ICMPv6 that no policy stops.
//!
//! Kubernetes says nothing of ICMP: policies speak of TCP, UDP and SCTP. As in kube-router, what networks need to work
//! and people need to find faults always passes, in both directions: echo requests, the two errors, and for IPv6
//! neighbour discovery and, as RFC 4890 demands, packet-too-big, which in IPv4 is a kind of destination-unreachable. So a
//! ping never says whether a policy stops a path.
//!
//! Numbers: RFC 792, RFC 4443, RFC 4861 (IANA, "ICMP Type Numbers"). Errors of other kinds belong to a connection and
//! pass because of it.

use crate::net::Family;

/// A kind that always passes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kind {
    pub number: u8,
    /// As iptables writes it.
    pub name: &'static str,
}

/// The kinds that always pass in this family, in the order of their rules.
pub fn always_pass(family: Family) -> &'static [Kind] {
    match family {
        Family::V4 => &[
            Kind { number: 8, name: "echo-request" },
            Kind { number: 3, name: "destination-unreachable" },
            Kind { number: 11, name: "time-exceeded" },
        ],
        Family::V6 => &[
            Kind { number: 128, name: "echo-request" },
            Kind { number: 1, name: "destination-unreachable" },
            Kind { number: 2, name: "packet-too-big" },
            Kind { number: 3, name: "time-exceeded" },
            Kind { number: 135, name: "neighbour-solicitation" },
            Kind { number: 136, name: "neighbour-advertisement" },
            Kind { number: 129, name: "echo-reply" },
        ],
    }
}

/// Neighbour discovery (RFC 4861: solicitations and advertisements of routers and neighbours, redirects) and multicast
/// listener discovery (RFC 2710, RFC 3810): the kinds of ICMPv6 without which no IPv6 works on a link.
pub const OF_LINKS: [Kind; 9] = [
    Kind { number: 130, name: "multicast-listener-query" },
    Kind { number: 131, name: "multicast-listener-report" },
    Kind { number: 132, name: "multicast-listener-done" },
    Kind { number: 133, name: "router-solicitation" },
    Kind { number: 134, name: "router-advertisement" },
    Kind { number: 135, name: "neighbour-solicitation" },
    Kind { number: 136, name: "neighbour-advertisement" },
    Kind { number: 137, name: "redirect" },
    Kind { number: 143, name: "multicast-listener-report-v2" },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbour_discovery_passes_where_it_exists() {
        let passes = |family, number| always_pass(family).iter().any(|kind| kind.number == number);
        assert!(passes(Family::V6, 135) && passes(Family::V6, 136));
        assert!(!passes(Family::V4, 135) && !passes(Family::V4, 136));
        assert!(passes(Family::V4, 8) && !passes(Family::V6, 8));
    }
}
