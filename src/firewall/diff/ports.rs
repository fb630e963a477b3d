//! Traffic at which a pair opens or closes: protocols with ranges of ports.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::net::Protocol;

use super::super::rules::{PortMatch, PortRange};
use super::super::verdict::Traffic;

/// A set of packets by protocol and destination port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Ports {
    /// Sorted, neither overlapping nor touching; without protocols that have none.
    pub ranges: BTreeMap<Protocol, Vec<PortRange>>,
    /// Protocols without ports.
    pub others: bool,
}

/// The ports at which rules may decide differently: between two of them all ports are alike.
#[derive(Clone, Debug)]
pub struct Edges(BTreeMap<Protocol, BTreeSet<u16>>);

/// Ports that are alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Alike {
    Ports(Protocol, PortRange),
    /// Protocols without ports.
    Others,
}

/// All ports of a protocol are alike.
impl Default for Edges {
    fn default() -> Edges {
        Edges(Protocol::ALL.map(|protocol| (protocol, BTreeSet::from([0]))).into())
    }
}

impl Edges {
    /// Adds those of a rule's condition. A named port is added by its numbers.
    pub fn add(&mut self, port: &PortMatch) {
        if let PortMatch::Numbers(protocol, ranges) = port {
            ranges.iter().for_each(|range| self.add_range(*protocol, *range));
        }
    }

    pub fn add_range(&mut self, protocol: Protocol, PortRange { first, last }: PortRange) {
        let edges = self.0.entry(protocol).or_default();
        edges.insert(first);
        edges.extend(last.checked_add(1));
    }

    /// Returns all packets, as few groups of alike ones.
    pub fn alike(&self) -> impl Iterator<Item = Alike> {
        let ports = self.0.iter().flat_map(|(protocol, edges)| {
            let ends = edges.iter().skip(1).map(|next| next - 1).chain([u16::MAX]);
            edges.iter().zip(ends).map(|(first, last)| Alike::Ports(*protocol, PortRange { first: *first, last }))
        });
        ports.chain([Alike::Others])
    }
}

impl Alike {
    /// Returns one of these packets.
    pub fn traffic(self) -> Traffic {
        match self {
            Alike::Ports(protocol, range) => Traffic::Port { protocol, port: range.first },
            // A type that nobody uses: only a rule for every protocol matches it.
            Alike::Others => Traffic::Icmp { kind: u8::MAX },
        }
    }
}

impl Ports {
    /// Adds ports behind all that were added before of their protocol.
    pub fn add(&mut self, alike: Alike) {
        match alike {
            Alike::Others => self.others = true,
            Alike::Ports(protocol, range) => {
                let ranges = self.ranges.entry(protocol).or_default();
                match ranges.last_mut() {
                    Some(before) if before.last.checked_add(1) == Some(range.first) => before.last = range.last,
                    _ => ranges.push(range),
                }
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty() && !self.others
    }

    fn is_everything(&self) -> bool {
        let whole = |ranges: &Vec<PortRange>| is_whole(ranges);
        self.others && self.ranges.len() == Protocol::ALL.len() && self.ranges.values().all(whole)
    }
}

impl fmt::Display for Ports {
    /// As in `tcp 80, tcp 8080-8090, udp, other protocols`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_everything() {
            return f.write_str("everything");
        }
        let mut words = Vec::new();
        for (protocol, ranges) in &self.ranges {
            if is_whole(ranges) {
                words.push(protocol.to_string());
                continue;
            }
            words.extend(ranges.iter().map(|range| match (range.first, range.last) {
                (first, last) if first == last => format!("{protocol} {first}"),
                (first, last) => format!("{protocol} {first}-{last}"),
            }));
        }
        words.extend(self.others.then(|| "other protocols".to_owned()));
        f.write_str(&words.join(", "))
    }
}

fn is_whole(ranges: &[PortRange]) -> bool {
    matches!(ranges, [PortRange { first: 0, last: u16::MAX }])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u16, last: u16) -> PortRange {
        PortRange { first, last }
    }

    fn kept(edges: &Edges, keeps: impl Fn(Traffic) -> bool) -> String {
        let mut ports = Ports::default();
        edges.alike().filter(|alike| keeps(alike.traffic())).for_each(|alike| ports.add(alike));
        ports.to_string()
    }

    #[test]
    fn ports_between_two_edges_are_alike_and_neighbours_are_joined() {
        let mut edges = Edges::default();
        edges.add(&PortMatch::Numbers(Protocol::Tcp, [range(80, 90), range(443, 443), range(65535, 65535)].into()));
        edges.add_range(Protocol::Tcp, range(85, 85));
        assert_eq!(kept(&edges, |_| true), "everything");
        let is_tcp_in = |traffic: Traffic, first, last| matches!(traffic, Traffic::Port { protocol: Protocol::Tcp, port } if (first..=last).contains(&port));
        assert_eq!(kept(&edges, |traffic| is_tcp_in(traffic, 80, 90)), "tcp 80-90");
        assert_eq!(
            kept(&edges, |traffic| !is_tcp_in(traffic, 85, 85)),
            "tcp 0-84, tcp 86-65535, udp, sctp, other protocols"
        );
        assert_eq!(kept(&edges, |traffic| is_tcp_in(traffic, 443, 443)), "tcp 443");
        assert_eq!(kept(&edges, |traffic| matches!(traffic, Traffic::Icmp { .. })), "other protocols");
    }
}
