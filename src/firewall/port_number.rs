//! `port` and `endPort`: the destination ports that a rule names by number.
//!
//! Kubernetes: `NetworkPolicyPort { protocol, port, endPort }`. The entries of `ports[]` are alternatives, so entries
//! of one protocol become one condition: every port if one entry names the protocol alone, else the numbers of all of
//! them, merged where they overlap or touch. An entry that names a port (`named_port`) is separate.

use crate::model::{PolicyPort, PortMatch as PolicyPortMatch};
use crate::net::Protocol;

use super::rules::{PortMatch, PortRange};

/// Returns the conditions on ports by number; at most one for each protocol, in the order of [`Protocol::ALL`].
pub fn by_number(ports: &[PolicyPort]) -> Vec<PortMatch> {
    Protocol::ALL.into_iter().filter_map(|protocol| of_protocol(ports, protocol)).collect()
}

fn of_protocol(ports: &[PolicyPort], protocol: Protocol) -> Option<PortMatch> {
    let mut ranges = Vec::new();
    for port in ports.iter().filter(|port| port.protocol == protocol) {
        match port.number {
            PolicyPortMatch::Any => return Some(PortMatch::Protocol(protocol)),
            PolicyPortMatch::Range { first, last } => ranges.push(PortRange { first, last }),
            PolicyPortMatch::Named(_) => {}
        }
    }
    let ranges = joined(ranges);
    (!ranges.is_empty()).then(|| PortMatch::Numbers(protocol, ranges.into()))
}

/// Returns the same ports in the fewest ranges; a range that ends before it begins is empty.
fn joined(mut ranges: Vec<PortRange>) -> Vec<PortRange> {
    ranges.retain(|range| range.first <= range.last);
    ranges.sort();
    let mut joined: Vec<PortRange> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(before) if range.first <= before.last.saturating_add(1) => before.last = before.last.max(range.last),
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(ports: &[(Protocol, PolicyPortMatch)], expected: &[PortMatch]) {
        let ports: Vec<PolicyPort> =
            ports.iter().map(|(protocol, number)| PolicyPort { protocol: *protocol, number: number.clone() }).collect();
        assert_eq!(by_number(&ports), expected);
    }

    fn range(first: u16, last: u16) -> PolicyPortMatch {
        PolicyPortMatch::Range { first, last }
    }

    fn numbers(protocol: Protocol, ranges: &[(u16, u16)]) -> PortMatch {
        PortMatch::Numbers(
            protocol,
            ranges.iter().map(|(first, last)| PortRange { first: *first, last: *last }).collect(),
        )
    }

    #[test]
    fn ports_that_touch_become_one_range() {
        let ports = [(Protocol::Tcp, range(443, 443)), (Protocol::Tcp, range(81, 90)), (Protocol::Tcp, range(80, 80))];
        check(&ports, &[numbers(Protocol::Tcp, &[(80, 90), (443, 443)])]);
        check(
            &[(Protocol::Tcp, range(65535, 65535)), (Protocol::Tcp, range(0, 65535))],
            &[numbers(Protocol::Tcp, &[(0, 65535)])],
        );
    }

    #[test]
    fn a_protocol_alone_is_every_port_of_it() {
        check(
            &[(Protocol::Sctp, range(80, 80)), (Protocol::Sctp, PolicyPortMatch::Any)],
            &[PortMatch::Protocol(Protocol::Sctp)],
        );
    }

    #[test]
    fn protocols_stand_apart() {
        let ports = [(Protocol::Udp, range(53, 53)), (Protocol::Tcp, range(53, 53))];
        check(&ports, &[numbers(Protocol::Tcp, &[(53, 53)]), numbers(Protocol::Udp, &[(53, 53)])]);
    }

    #[test]
    fn an_end_before_the_beginning_is_no_port() {
        check(&[(Protocol::Tcp, range(90, 80))], &[]);
    }

    #[test]
    fn a_name_is_no_number() {
        check(&[(Protocol::Tcp, PolicyPortMatch::Named("http".into()))], &[]);
    }
}
