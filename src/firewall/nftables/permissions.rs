//! The permissions of the policies of a class together, sorted by how a packet is recognised: its port, then its peer.
//!
//! Rules of all policies add up, so what they allow for one port is the union of their peers. Nothing is asked in turn that
//! can be looked up: single ports by a hash, ranges by an interval map. Ranges that overlap are cut where one begins or ends;
//! where that would give too many pieces, as with ranges that someone nests on purpose, they are rules in turn.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::net::{PortRange, Protocol};

use super::super::rules::{Match, PortMatch, SetKey};
use super::peers::{Allowed, IN_TURN};

/// The permissions of a class.
#[derive(Default, Debug)]
pub struct Permissions {
    pub singles: BTreeMap<(Protocol, u16), Allowed>,
    pub ranges: BTreeMap<Protocol, Ranges>,
    /// Sets of named ports, with the peers that may use them.
    pub named: BTreeMap<Arc<SetKey>, Allowed>,
    /// All ports of a protocol.
    pub protocols: BTreeMap<Protocol, Allowed>,
    /// Everything, also what has no ports.
    pub any: Allowed,
}

/// Ranges of ports with what is allowed there.
#[derive(PartialEq, Eq, Debug)]
pub enum Ranges {
    /// Sorted; no port is in two of them.
    Disjoint(Vec<(PortRange, Allowed)>),
    /// A port may be in several.
    InTurn(Vec<(PortRange, Allowed)>),
}

/// Number of single ports with the same peers that are elements which lead to them.
const MANY_PORTS: usize = 16;

/// Number of sets in all pieces of ranges together, beyond that of the ranges themselves, up to which ranges are cut.
const PIECES: usize = 64;

impl Permissions {
    /// Returns what any of these matches allows.
    pub fn of<'a>(matches: impl Iterator<Item = &'a Match>) -> Permissions {
        let mut all = Permissions::default();
        let mut ranges: BTreeMap<Protocol, BTreeMap<PortRange, Allowed>> = BTreeMap::new();
        for Match { peer, port } in matches {
            let allowed = match port {
                PortMatch::Any => &mut all.any,
                PortMatch::Protocol(protocol) => all.protocols.entry(*protocol).or_default(),
                PortMatch::Numbers(protocol, numbers) => {
                    for range in numbers {
                        match range.first == range.last {
                            true => all.singles.entry((*protocol, range.first)).or_default().add(peer.as_ref()),
                            false => ranges.entry(*protocol).or_default().entry(*range).or_default().add(peer.as_ref()),
                        }
                    }
                    continue;
                }
                PortMatch::Named(set) => match peer {
                    Some(_) => all.named.entry(set.clone()).or_default(),
                    // A set of addresses and ports is a set of peers by itself.
                    None => {
                        all.any.add(Some(set));
                        continue;
                    }
                },
            };
            allowed.add(peer.as_ref());
        }
        if all.any == Allowed::Everybody {
            return Permissions { any: Allowed::Everybody, ..Permissions::default() };
        }
        let cut = |(protocol, ranges): (Protocol, BTreeMap<PortRange, Allowed>)| (protocol, Ranges::of(ranges));
        all.ranges = ranges.into_iter().map(cut).collect();
        all
    }
}

impl Permissions {
    /// Returns the peers that have a set of single ports of their own: those with the most ports. The kernel checks every element that
    /// leads to a chain whenever it checks the table, which is seconds for tens of thousands, and none of a set that one rule looks up.
    pub fn of_many_ports(&self) -> Vec<&Allowed> {
        let mut counts: BTreeMap<&Allowed, usize> = BTreeMap::new();
        for allowed in self.singles.values().filter(|allowed| **allowed != Allowed::Everybody) {
            *counts.entry(allowed).or_default() += 1;
        }
        let mut many: Vec<(&Allowed, usize)> = counts.into_iter().filter(|(_, count)| *count > MANY_PORTS).collect();
        many.sort_by_key(|(allowed, count)| (Reverse(*count), *allowed));
        many.into_iter().take(IN_TURN).map(|(allowed, _)| allowed).collect()
    }

    /// Returns everything that is allowed somewhere.
    pub fn allowed(&self) -> impl Iterator<Item = &Allowed> {
        let of_ranges = self.ranges.values().flat_map(|ranges| match ranges {
            Ranges::Disjoint(ranges) | Ranges::InTurn(ranges) => ranges.iter().map(|(_, allowed)| allowed),
        });
        let others = self.named.values().chain(self.protocols.values()).chain([&self.any]);
        self.singles.values().chain(of_ranges).chain(others)
    }
}

impl Ranges {
    fn of(ranges: BTreeMap<PortRange, Allowed>) -> Ranges {
        let limit = PIECES + 2 * ranges.values().map(Allowed::weight).sum::<usize>();
        match pieces(&ranges, limit) {
            Some(pieces) => Ranges::Disjoint(pieces),
            None => Ranges::InTurn(ranges.into_iter().collect()),
        }
    }
}

/// Returns the ranges, cut where one begins or ends; `None` if the pieces have more sets than the limit.
fn pieces(ranges: &BTreeMap<PortRange, Allowed>, limit: usize) -> Option<Vec<(PortRange, Allowed)>> {
    // Where each range begins, and the port behind its end.
    let mut bounds: BTreeMap<u32, Vec<(&Allowed, bool)>> = BTreeMap::new();
    for (range, allowed) in ranges {
        bounds.entry(u32::from(range.first)).or_default().push((allowed, true));
        bounds.entry(u32::from(range.last) + 1).or_default().push((allowed, false));
    }
    let ends = bounds.keys().skip(1).map(|end| end - 1).collect::<Vec<_>>();
    let (mut around, mut cut, mut weight) = (Around::default(), Vec::<(PortRange, Allowed)>::new(), 0);
    for ((first, turning), last) in bounds.into_iter().zip(ends) {
        turning.into_iter().for_each(|(allowed, begins)| around.turn(allowed, begins));
        let (Ok(first), Ok(last)) = (u16::try_from(first), u16::try_from(last)) else { continue };
        if around.ranges == 0 {
            continue;
        }
        match cut.last_mut() {
            Some((before, same)) if before.last.checked_add(1) == Some(first) && around.is_still(same) => {
                before.last = last;
            }
            _ => {
                let allowed = around.allowed(limit.checked_sub(weight)?)?;
                weight += allowed.weight();
                cut.push((PortRange { first, last }, allowed));
            }
        }
    }
    Some(cut)
}

/// The ranges around a port, counted, so that one that begins or ends costs its own sets and not those of all.
#[derive(Default)]
struct Around<'a> {
    ranges: usize,
    everybody: usize,
    sets: BTreeMap<&'a Arc<SetKey>, usize>,
    /// The sets that came or went since a piece was made.
    turned: BTreeSet<&'a Arc<SetKey>>,
}

impl<'a> Around<'a> {
    /// Counts a range that begins, or one that ended.
    fn turn(&mut self, allowed: &'a Allowed, begins: bool) {
        let moved = |count: usize| if begins { count + 1 } else { count.saturating_sub(1) };
        self.ranges = moved(self.ranges);
        let sets = match allowed {
            Allowed::Everybody => {
                self.everybody = moved(self.everybody);
                return;
            }
            Allowed::Peers(sets) => sets,
        };
        for set in sets {
            let before = self.sets.get(set).copied().unwrap_or_default();
            let now = moved(before);
            match now {
                0 => drop(self.sets.remove(set)),
                now => drop(self.sets.insert(set, now)),
            }
            if (before == 0) != (now == 0) && !self.turned.remove(set) {
                self.turned.insert(set);
            }
        }
    }

    /// Returns whether what is allowed here equals what was allowed in the last piece.
    fn is_still(&self, last: &Allowed) -> bool {
        match last {
            Allowed::Everybody => self.everybody > 0,
            Allowed::Peers(_) => self.everybody == 0 && self.turned.is_empty(),
        }
    }

    /// Returns what the ranges allow together, for a new piece; `None` if that is more sets than the limit.
    fn allowed(&mut self, limit: usize) -> Option<Allowed> {
        self.turned.clear();
        let count = if self.everybody > 0 { 1 } else { self.sets.len().max(1) };
        (count <= limit).then(|| match self.everybody {
            0 => Allowed::Peers(self.sets.keys().map(|set| Arc::clone(set)).collect()),
            _ => Allowed::Everybody,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn peer(number: usize) -> Arc<SetKey> {
        let block = super::super::super::ip_block::block(format!("10.0.{number}.0/24").parse().unwrap(), &[]);
        Arc::new(SetKey::Blocks([block].into()))
    }

    /// Ranges, each with the numbers of the peers that are allowed there.
    fn ranges(all: &[(u16, u16, &[usize])]) -> BTreeMap<PortRange, Allowed> {
        let allowed = |peers: &[usize]| Allowed::Peers(peers.iter().map(|number| peer(*number)).collect());
        all.iter().map(|(first, last, peers)| (PortRange { first: *first, last: *last }, allowed(peers))).collect()
    }

    fn check(given: &[(u16, u16, &[usize])], expected: &[(u16, u16, &[usize])]) {
        assert_eq!(Ranges::of(ranges(given)), Ranges::Disjoint(ranges(expected).into_iter().collect()));
    }

    #[test]
    fn ranges_are_cut_where_one_begins_or_ends() {
        check(&[(80, 90, &[1]), (100, 110, &[1])], &[(80, 90, &[1]), (100, 110, &[1])]);
        check(&[(80, 90, &[1]), (85, 95, &[2])], &[(80, 84, &[1]), (85, 90, &[1, 2]), (91, 95, &[2])]);
        check(&[(0, 65535, &[1]), (80, 90, &[2])], &[(0, 79, &[1]), (80, 90, &[1, 2]), (91, 65535, &[1])]);
        check(&[(80, 90, &[1, 2]), (80, 85, &[2])], &[(80, 90, &[1, 2])]);
        check(&[(80, 90, &[1]), (91, 95, &[1])], &[(80, 95, &[1])]);
    }

    #[test]
    fn ranges_in_each_other_do_not_grow_without_bound() {
        let nested: Vec<(u16, u16, Vec<usize>)> = (0..200).map(|n| (n, 10_000 - n, vec![usize::from(n)])).collect();
        let nested: Vec<_> = nested.iter().map(|(first, last, peers)| (*first, *last, &**peers)).collect();
        assert!(matches!(Ranges::of(ranges(&nested)), Ranges::InTurn(all) if all.len() == 200));
        let beside: Vec<(u16, u16, Vec<usize>)> =
            (0..200).map(|n| (n * 10, n * 10 + 5, vec![usize::from(n)])).collect();
        let beside: Vec<_> = beside.iter().map(|(first, last, peers)| (*first, *last, &**peers)).collect();
        check(&beside, &beside);
    }

    /// The same, port by port.
    fn pieces_port_by_port(ranges: &BTreeMap<PortRange, Allowed>, limit: usize) -> Option<Vec<(PortRange, Allowed)>> {
        let mut cut: Vec<(PortRange, Allowed)> = Vec::new();
        for port in 0..=u16::MAX {
            let mut around = ranges.iter().filter(|(range, _)| (range.first..=range.last).contains(&port)).peekable();
            if around.peek().is_none() {
                continue;
            }
            let mut allowed = Allowed::default();
            around.for_each(|(_, more)| allowed.join(more));
            match cut.last_mut() {
                Some((before, same)) if before.last.checked_add(1) == Some(port) && *same == allowed => {
                    before.last = port;
                }
                _ => cut.push((PortRange { first: port, last: port }, allowed)),
            }
        }
        (cut.iter().map(|(_, allowed)| allowed.weight()).sum::<usize>() <= limit).then_some(cut)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn pieces_are_those_of_each_port(
            drawn in vec((0..60_u16, 0..30_u16, vec(0..5_usize, 0..4), any::<bool>()), 0..12),
            high in any::<bool>(),
            limit in 0..40_usize,
        ) {
            let offset = if high { u16::MAX - 60 } else { 0 };
            let mut all = BTreeMap::new();
            for (first, length, peers, everybody) in drawn {
                let first = first + offset;
                let range = PortRange { first, last: first.saturating_add(length) };
                let allowed = match everybody && peers.is_empty() {
                    true => Allowed::Everybody,
                    false => Allowed::Peers(peers.into_iter().map(peer).collect()),
                };
                all.entry(range).or_insert_with(Allowed::default).join(&allowed);
            }
            prop_assert_eq!(pieces(&all, limit), pieces_port_by_port(&all, limit));
        }
    }

    /// Each range is counted when it begins and when it ends, and not for each piece inside it.
    #[test]
    fn nested_ranges_with_the_same_peers_are_one_piece() {
        let nested: Vec<(u16, u16, &[usize])> = (0..20_000).map(|n| (n, 60_000 - n, &[1_usize][..])).collect();
        let one = ranges(&[(0, 60_000, &[1])]).into_iter().collect();
        assert!(Ranges::of(ranges(&nested)) == Ranges::Disjoint(one));
    }

    #[test]
    fn who_allows_everything_needs_nothing_else() {
        let port = |peer, port| Match { peer, port };
        let numbers = PortMatch::Numbers(Protocol::Tcp, [PortRange { first: 80, last: 80 }].into());
        let matches = [port(Some(peer(1)), numbers), port(None, PortMatch::Any)];
        let all = Permissions::of(matches.iter());
        assert!(all.any == Allowed::Everybody && all.singles.is_empty());
    }
}
