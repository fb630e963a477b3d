//! Path attributes of a route, in their internal representation.
//!
//! RFC 4271 5; communities RFC 1997, extended RFC 4360, large RFC 8092; reflection RFC 4456. A set of attributes is
//! decoded once, shared by all routes of its UPDATE, and never changed: changes are made to a copy. Rare attributes are
//! stored separately, so that other routes do not pay for them: a set takes 80 bytes and its path.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::as_path::AsPath;

/// ORIGIN. The smaller is preferred.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub enum Origin {
    #[default]
    Igp,
    Egp,
    Incomplete,
}

/// Set of path attributes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Attributes {
    pub origin: Origin,
    pub as_path: AsPath,
    /// NEXT_HOP, or the next hop of MP_REACH_NLRI, which may be of another address family than the prefix (RFC 8950).
    pub next_hop: IpAddr,
    /// MULTI_EXIT_DISC.
    pub med: Option<u32>,
    pub local_pref: Option<u32>,
    /// COMMUNITIES, sorted, without duplicates.
    pub communities: Box<[Community]>,
    /// Changed by `change_rare` alone, so that equal sets compare equal. Visible here for struct update syntax.
    pub(in crate::bgp) rare: Option<Box<Rare>>,
}

/// Attributes that few routes have.
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug)]
pub struct Rare {
    pub atomic_aggregate: bool,
    pub aggregator: Option<Aggregator>,
    /// ORIGINATOR_ID: the router in our AS that originated a reflected route.
    pub originator: Option<Ipv4Addr>,
    /// CLUSTER_LIST: the route reflectors traversed, the nearest first.
    pub clusters: Box<[Ipv4Addr]>,
    /// EXTENDED COMMUNITIES, sorted, without duplicates.
    pub extended: Box<[ExtendedCommunity]>,
    /// LARGE_COMMUNITY, sorted, without duplicates.
    pub large: Box<[LargeCommunity]>,
    /// Link-local next hop of RFC 2545, for a peer on the same link.
    pub link_local: Option<Ipv6Addr>,
    /// Unrecognized optional transitive attributes, which are passed on, sorted by type code.
    pub unknown: Box<[Unknown]>,
}

/// AGGREGATOR: the router that aggregated the route.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Aggregator {
    pub asn: u32,
    pub router: Ipv4Addr,
}

/// Community of RFC 1997, written `65001:100`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Community(pub u32);

/// Extended community, as its eight bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ExtendedCommunity(pub u64);

/// Large community, written `65001:1:2`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LargeCommunity(pub [u32; 3]);

/// Unrecognized attribute.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Unknown {
    pub number: u8,
    /// Without the Extended Length bit; always with the Partial bit.
    pub flags: u8,
    pub value: Box<[u8]>,
}

impl Community {
    pub const GRACEFUL_SHUTDOWN: Community = Community(0xffff_0000);
    /// RFC 9494: retained over a long-lived graceful restart; any other route is better.
    pub const LLGR_STALE: Community = Community(0xffff_0006);
    /// RFC 9494: not to be retained so.
    pub const NO_LLGR: Community = Community(0xffff_0007);
    pub const NO_EXPORT: Community = Community(0xffff_ff01);
    pub const NO_ADVERTISE: Community = Community(0xffff_ff02);
    pub const NO_EXPORT_SUBCONFED: Community = Community(0xffff_ff03);
}

impl ExtendedCommunity {
    /// Returns whether the community crosses AS boundaries (RFC 4360 2: the second bit is the non-transitive bit).
    pub fn is_transitive(self) -> bool {
        self.0 & (1 << 62) == 0
    }
}

/// Rare attributes of a route that has none.
static NOTHING: std::sync::LazyLock<Rare> = std::sync::LazyLock::new(Rare::default);

impl Attributes {
    /// Attributes of a locally originated route: ORIGIN IGP, an empty path, and nothing optional.
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

    /// Approximate size of the set, in bytes.
    pub(in crate::bgp) fn weight(&self) -> usize {
        let lists = |rare: &Rare| {
            let unknown: usize = rare.unknown.iter().map(|unknown| 24 + unknown.value.len()).sum();
            128 + 4 * rare.clusters.len() + 8 * rare.extended.len() + 12 * rare.large.len() + unknown
        };
        96 + self.as_path.bytes().len() + 4 * self.communities.len() + self.rare.as_deref().map_or(0, lists)
    }

    /// Returns a copy with another next hop, and without the link-local one of the old next hop.
    pub fn with_next_hop(&self, next_hop: IpAddr) -> Attributes {
        let mut changed = Attributes { next_hop, ..self.clone() };
        if self.rare.is_some() {
            changed.change_rare(|rare| rare.link_local = None);
        }
        changed
    }

    /// Attributes that few routes have.
    pub fn rare(&self) -> &Rare {
        self.rare.as_deref().unwrap_or(&NOTHING)
    }

    /// Changes rare attributes. A set that is left without any equals one that never had them.
    pub fn change_rare(&mut self, change: impl FnOnce(&mut Rare)) {
        let mut rare = self.rare.take().unwrap_or_default();
        change(&mut rare);
        self.rare = (*rare != *NOTHING).then_some(rare);
    }

    /// LOCAL_PREF for best-path selection; 100, the customary default, when absent.
    pub fn preference(&self) -> u32 {
        const DEFAULT: u32 = 100;
        self.local_pref.unwrap_or(DEFAULT)
    }

    pub fn has(&self, community: Community) -> bool {
        self.communities.binary_search(&community).is_ok()
    }

    /// Adds communities to those present.
    pub fn add_communities(&mut self, added: &[Community]) {
        self.communities = sorted(self.communities.iter().copied().chain(added.iter().copied()));
    }

    /// Approximate memory that the stored set occupies, in bytes.
    pub fn footprint(&self) -> usize {
        let rare = self.rare.as_deref().map_or(0, |rare| {
            let unknown = rare.unknown.iter().map(|one| size_of::<Unknown>() + one.value.len()).sum::<usize>();
            size_of::<Rare>() + 4 * rare.clusters.len() + 8 * rare.extended.len() + 12 * rare.large.len() + unknown
        });
        size_of::<Attributes>() + self.as_path.bytes().len() + 4 * self.communities.len() + rare
    }
}

/// Sorts, and removes duplicates.
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
