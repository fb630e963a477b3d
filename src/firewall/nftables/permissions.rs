//! What the policies of a class allow together, sorted by how a packet is recognised: its port, then its peer.
//!
//! Rules of all policies add up, so what they allow for one port is the union of their peers. Nothing is asked in turn that
//! can be looked up: single ports by a hash, ranges by an interval map. Ranges that overlap are cut where one begins or ends;
//! where that would give too many pieces, as with ranges that someone nests on purpose, they are rules in turn.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::net::{PortRange, Protocol};

use super::super::rules::{Match, PortMatch, SetKey};
use super::peers::Allowed;

/// What a class allows.
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
    // The first port of each piece, and the one behind the last piece.
    let begins: BTreeSet<u32> =
        ranges.keys().flat_map(|range| [u32::from(range.first), u32::from(range.last) + 1]).collect();
    let ends = begins.iter().skip(1).map(|end| end - 1);
    let mut next = ranges.iter().peekable();
    let mut around: Vec<(&PortRange, &Allowed)> = Vec::new();
    let (mut cut, mut weight): (Vec<(PortRange, Allowed)>, usize) = (Vec::new(), 0);
    for (first, last) in begins.iter().copied().zip(ends) {
        let (Ok(first), Ok(last)) = (u16::try_from(first), u16::try_from(last)) else { continue };
        around.retain(|(range, _)| range.last >= last);
        around.extend(std::iter::from_fn(|| next.next_if(|(range, _)| range.first == first)));
        let mut allowed = Allowed::default();
        for (_, more) in &around {
            allowed.join(more);
            if allowed.weight() + weight > limit {
                return None;
            }
        }
        match cut.last_mut() {
            _ if around.is_empty() => {}
            Some((before, same)) if before.last.checked_add(1) == Some(first) && *same == allowed => before.last = last,
            _ => {
                weight += allowed.weight();
                cut.push((PortRange { first, last }, allowed));
            }
        }
    }
    Some(cut)
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn who_allows_everything_needs_nothing_else() {
        let port = |peer, port| Match { peer, port };
        let numbers = PortMatch::Numbers(Protocol::Tcp, [PortRange { first: 80, last: 80 }].into());
        let matches = [port(Some(peer(1)), numbers), port(None, PortMatch::Any)];
        let all = Permissions::of(matches.iter());
        assert!(all.any == Allowed::Everybody && all.singles.is_empty());
    }
}
