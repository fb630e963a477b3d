//! The sets that conditions refer to: prefixes, neighbours and communities, with the names that users look for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::super::message::{Community, ExtendedCommunity, LargeCommunity};
use crate::net::Family;

/// Prefixes, each with the matching lengths of its more specific prefixes.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct PrefixSet {
    pub name: String,
    ranges: BTreeMap<IpNet, Vec<Lengths>>,
    /// Prefix lengths of the entries, so that a few lookups find all that contain a prefix.
    lengths: BTreeSet<(Family, u8)>,
}

/// Range of prefix lengths, inclusive.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Lengths {
    pub least: u8,
    pub most: u8,
}

/// Neighbours, as prefixes of their addresses.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct NeighbourSet {
    pub name: String,
    pub prefixes: BTreeSet<IpNet>,
}

/// Prefixes that each of some neighbours may bring. One lookup says it, however many neighbours there are, where a statement for each neighbour would cost as many
/// comparisons. The API of the GoBGP client knows no such set and shows none.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct OwnPrefixes(BTreeSet<(IpAddr, IpNet)>);

#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct CommunitySet {
    pub name: String,
    pub communities: BTreeSet<Community>,
}

#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ExtendedCommunitySet {
    pub name: String,
    pub communities: BTreeSet<ExtendedCommunity>,
}

#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct LargeCommunitySet {
    pub name: String,
    pub communities: BTreeSet<LargeCommunity>,
}

impl PrefixSet {
    pub fn new(name: &str) -> PrefixSet {
        PrefixSet { name: name.to_owned(), ..PrefixSet::default() }
    }

    /// Adds the prefixes inside of a prefix that have one of these lengths.
    pub fn insert(&mut self, prefix: IpNet, lengths: Lengths) {
        let prefix = prefix.trunc();
        let ranges = self.ranges.entry(prefix).or_default();
        if !ranges.contains(&lengths) {
            ranges.push(lengths);
            ranges.sort_unstable();
        }
        self.lengths.insert((Family::from(prefix), prefix.prefix_len()));
    }

    /// Adds one prefix without more specific ones.
    pub fn insert_exactly(&mut self, prefix: IpNet) {
        let length = prefix.prefix_len();
        self.insert(prefix, Lengths { least: length, most: length });
    }

    pub fn contains(&self, prefix: IpNet) -> bool {
        let length = prefix.prefix_len();
        let family = Family::from(prefix);
        self.lengths.range((family, 0)..=(family, length)).any(|(_, outer)| {
            let covering = IpNet::new(prefix.addr(), *outer).ok().map(|covering| covering.trunc());
            let ranges = covering.and_then(|covering| self.ranges.get(&covering));
            ranges.into_iter().flatten().any(|range| (range.least..=range.most).contains(&length))
        })
    }

    /// Prefixes of entries that only one of two sets has.
    pub(super) fn difference<'a>(&'a self, other: &'a PrefixSet) -> impl Iterator<Item = IpNet> {
        let only = |one: &'a PrefixSet, other: &'a PrefixSet| {
            let differs = |(prefix, ranges): &(&IpNet, &Vec<Lengths>)| other.ranges.get(*prefix) != Some(*ranges);
            one.ranges.iter().filter(differs).map(|(prefix, _)| *prefix)
        };
        only(self, other).chain(only(other, self))
    }

    /// All entries, by prefix.
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, Lengths)> + '_ {
        self.ranges.iter().flat_map(|(prefix, ranges)| ranges.iter().map(|range| (*prefix, *range)))
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

impl NeighbourSet {
    pub fn contains(&self, address: IpAddr) -> bool {
        /// Above this number of prefixes, a lookup for each possible length is faster than a scan.
        const FEW: usize = 64;
        // Most prefixes are single addresses.
        let covers =
            |length: u8| IpNet::new(address, length).is_ok_and(|covering| self.prefixes.contains(&covering.trunc()));
        let bits = Family::from(address).host_bits();
        match self.prefixes.len() {
            0..=FEW => self.prefixes.iter().any(|prefix| prefix.contains(&address)),
            _ => (0..=bits).rev().any(covers),
        }
    }
}

impl FromIterator<(IpAddr, IpNet)> for OwnPrefixes {
    fn from_iter<I: IntoIterator<Item = (IpAddr, IpNet)>>(all: I) -> OwnPrefixes {
        OwnPrefixes(all.into_iter().map(|(neighbour, prefix)| (neighbour, prefix.trunc())).collect())
    }
}

impl OwnPrefixes {
    pub fn contains(&self, neighbour: IpAddr, prefix: IpNet) -> bool {
        self.0.contains(&(neighbour, prefix))
    }

    /// Prefixes that some neighbour may bring by only one of two sets.
    pub(super) fn difference<'a>(&'a self, other: &'a OwnPrefixes) -> impl Iterator<Item = IpNet> {
        self.0.symmetric_difference(&other.0).map(|(_, prefix)| *prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_prefix_is_in_a_set_when_an_entry_contains_it_with_its_length() {
        let mut set = PrefixSet::new("set");
        for (text, least, most) in [("10.0.0.0/8", 16, 24), ("10.1.0.0/16", 30, 32), ("fd00::/8", 8, 128)] {
            set.insert(prefix(text), Lengths { least, most });
        }
        for (text, inside) in [
            ("10.0.0.0/8", false),
            ("10.9.0.0/16", true),
            ("10.9.9.0/24", true),
            ("10.9.9.0/25", false),
            ("10.1.2.3/32", true),
            ("10.2.2.3/32", false),
            ("11.0.0.0/16", false),
            ("fd00:10:244::/56", true),
            ("2001:db8::/32", false),
        ] {
            assert_eq!(set.contains(prefix(text)), inside, "{text}");
        }
        let mut default = PrefixSet::new("default");
        default.insert_exactly(prefix("0.0.0.0/0"));
        assert!(default.contains(prefix("0.0.0.0/0")) && !default.contains(prefix("10.0.0.0/8")));
        assert!(!default.contains(prefix("::/0")), "the families are apart");
    }

    #[test]
    fn a_large_set_of_neighbours_answers_like_a_small_one() {
        let few = NeighbourSet { name: "few".into(), prefixes: ["192.0.2.0/24", "2001:db8::7/128"].map(prefix).into() };
        let mut many = few.clone();
        many.prefixes.extend((0..200).map(|number| prefix(&format!("203.0.113.{number}/32"))));
        for set in [&few, &many] {
            for (text, inside) in
                [("192.0.2.9", true), ("192.0.3.9", false), ("2001:db8::7", true), ("2001:db8::8", false)]
            {
                assert_eq!(set.contains(address(text)), inside, "{text} in {}", set.name);
            }
        }
        assert!(many.contains(address("203.0.113.199")) && !many.contains(address("203.0.113.200")));
    }
}
