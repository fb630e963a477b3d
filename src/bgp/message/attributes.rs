//! The attributes of a route, in the form in which everything inside speaks of them.
//!
//! RFC 4271 5; communities RFC 1997, extended RFC 4360, large RFC 8092; reflection RFC 4456. A set of attributes is read
//! once, is shared by all routes that came with it, and is never changed: who needs another one copies it. What few routes
//! have is kept apart, so that the others do not pay for it: a set takes 80 bytes and its path.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::as_path::AsPath;

/// Where the route began (ORIGIN). The smaller is preferred.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub enum Origin {
    #[default]
    Igp,
    Egp,
    Incomplete,
}

/// One set of attributes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Attributes {
    pub origin: Origin,
    pub as_path: AsPath,
    /// From NEXT_HOP, or from MP_REACH_NLRI; it may be of another family than the prefix (RFC 8950).
    pub next_hop: IpAddr,
    /// MULTI_EXIT_DISC.
    pub med: Option<u32>,
    pub local_pref: Option<u32>,
    /// COMMUNITIES, sorted, without repetitions.
    pub communities: Box<[Community]>,
    /// Changed by `change_rare` alone, so that equal sets are equal. Visible here, so that a set can be made from another one.
    pub(in crate::bgp) rare: Option<Box<Rare>>,
}

/// What few routes have.
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug)]
pub struct Rare {
    pub atomic_aggregate: bool,
    pub aggregator: Option<Aggregator>,
    /// ORIGINATOR_ID: the router in our autonomous system that a reflected route began at.
    pub originator: Option<Ipv4Addr>,
    /// CLUSTER_LIST: the reflectors it came through, the nearest first.
    pub clusters: Box<[Ipv4Addr]>,
    /// EXTENDED COMMUNITIES, sorted, without repetitions.
    pub extended: Box<[ExtendedCommunity]>,
    /// LARGE COMMUNITIES, sorted, without repetitions.
    pub large: Box<[LargeCommunity]>,
    /// The second next hop of RFC 2545, for a neighbour on the same link.
    pub link_local: Option<Ipv6Addr>,
    /// Optional transitive attributes that we do not know and pass on, sorted by their number.
    pub unknown: Box<[Unknown]>,
}

/// A router that made one route of several.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Aggregator {
    pub asn: u32,
    pub router: Ipv4Addr,
}

/// A community of RFC 1997, written `65001:100`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Community(pub u32);

/// An extended community, as its eight bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ExtendedCommunity(pub u64);

/// A large community, written `65001:1:2`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LargeCommunity(pub [u32; 3]);

/// An attribute that we do not know.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Unknown {
    pub number: u8,
    /// Without the bit for the length's width; always with the one that says that somebody did not know it.
    pub flags: u8,
    pub value: Box<[u8]>,
}

impl Community {
    pub const GRACEFUL_SHUTDOWN: Community = Community(0xffff_0000);
    pub const NO_EXPORT: Community = Community(0xffff_ff01);
    pub const NO_ADVERTISE: Community = Community(0xffff_ff02);
    pub const NO_EXPORT_SUBCONFED: Community = Community(0xffff_ff03);
}

impl ExtendedCommunity {
    /// Whether it goes beyond our autonomous system (RFC 4360 2: the second bit says that it does not).
    pub fn is_transitive(self) -> bool {
        self.0 & (1 << 62) == 0
    }
}

/// What a route without any of it has.
static NOTHING: std::sync::LazyLock<Rare> = std::sync::LazyLock::new(Rare::default);

impl Attributes {
    /// A route of our own: it began here, and nothing else is said of it.
    pub fn local(next_hop: IpAddr) -> Attributes {
        Attributes {
            origin: Origin::Igp,
            as_path: AsPath::default(),
            next_hop,
            med: None,
            local_pref: None,
            communities: Box::default(),
            rare: None,
        }
    }

    /// About how many bytes the set takes.
    pub(in crate::bgp) fn weight(&self) -> usize {
        let lists = |rare: &Rare| {
            let unknown: usize = rare.unknown.iter().map(|unknown| 24 + unknown.value.len()).sum();
            128 + 4 * rare.clusters.len() + 8 * rare.extended.len() + 12 * rare.large.len() + unknown
        };
        96 + self.as_path.bytes().len() + 4 * self.communities.len() + self.rare.as_deref().map_or(0, lists)
    }

    /// The same with another next hop; the one on the link went with the old one.
    pub fn with_next_hop(&self, next_hop: IpAddr) -> Attributes {
        let mut changed = Attributes { next_hop, ..self.clone() };
        if self.rare.is_some() {
            changed.change_rare(|rare| rare.link_local = None);
        }
        changed
    }

    /// What few routes have.
    pub fn rare(&self) -> &Rare {
        self.rare.as_deref().unwrap_or(&NOTHING)
    }

    /// Changes what few routes have. A set that is left without any is equal to one that never had it.
    pub fn change_rare(&mut self, change: impl FnOnce(&mut Rare)) {
        let mut rare = self.rare.take().unwrap_or_default();
        change(&mut rare);
        self.rare = (*rare != *NOTHING).then_some(rare);
    }

    /// The local preference for the choice of the best; without one it is 100, as everywhere.
    pub fn preference(&self) -> u32 {
        const DEFAULT: u32 = 100;
        self.local_pref.unwrap_or(DEFAULT)
    }

    pub fn has(&self, community: Community) -> bool {
        self.communities.binary_search(&community).is_ok()
    }

    /// Adds communities; those that are there stay as they are.
    pub fn add_communities(&mut self, added: &[Community]) {
        self.communities = sorted(self.communities.iter().copied().chain(added.iter().copied()));
    }

    /// How many bytes it occupies, roughly, when it is kept.
    pub fn footprint(&self) -> usize {
        let rare = self.rare.as_deref().map_or(0, |rare| {
            let unknown = rare.unknown.iter().map(|one| size_of::<Unknown>() + one.value.len()).sum::<usize>();
            size_of::<Rare>() + 4 * rare.clusters.len() + 8 * rare.extended.len() + 12 * rare.large.len() + unknown
        });
        size_of::<Attributes>() + self.as_path.bytes().len() + 4 * self.communities.len() + rare
    }
}

/// Sorted, without repetitions.
pub(super) fn sorted<T: Ord>(all: impl Iterator<Item = T>) -> Box<[T]> {
    let mut all: Vec<T> = all.collect();
    all.sort_unstable();
    all.dedup();
    all.into()
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::Igp => "igp",
            Origin::Egp => "egp",
            Origin::Incomplete => "incomplete",
        })
    }
}

impl fmt::Display for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0 >> 16, self.0 & 0xffff)
    }
}

impl fmt::Display for LargeCommunity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LargeCommunity([administrator, first, second]) = self;
        write!(f, "{administrator}:{first}:{second}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_that_lost_what_was_rare_equals_one_that_never_had_it() {
        let plain = Attributes::local("192.0.2.1".parse().unwrap());
        let mut changed = plain.clone();
        changed.change_rare(|rare| rare.atomic_aggregate = true);
        assert_ne!(plain, changed);
        changed.change_rare(|rare| rare.atomic_aggregate = false);
        assert_eq!(plain, changed);
    }

    #[test]
    fn a_set_is_small() {
        assert!(size_of::<Attributes>() <= 80, "{}", size_of::<Attributes>());
    }

    #[test]
    fn communities_are_kept_sorted_and_once() {
        let mut attributes = Attributes::local("192.0.2.1".parse().unwrap());
        attributes.add_communities(&[Community::NO_EXPORT, Community(65001 << 16 | 7)]);
        attributes.add_communities(&[Community(1), Community::NO_EXPORT]);
        let words: Vec<String> = attributes.communities.iter().map(Community::to_string).collect();
        assert_eq!(words, ["0:1", "65001:7", "65535:65281"]);
        assert!(attributes.has(Community::NO_EXPORT) && !attributes.has(Community::NO_ADVERTISE));
    }

    #[test]
    fn the_bit_of_an_extended_community_says_how_far_it_goes() {
        assert!(ExtendedCommunity(0x0002_fde9_0000_0001).is_transitive());
        assert!(!ExtendedCommunity(0x4004_fde9_0000_0001).is_transitive());
    }
}
