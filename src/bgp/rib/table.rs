//! Routing table: routes of all neighbours, and the best to each prefix.
//!
//! RFC 4271 3.2: Adj-RIB-In and Loc-RIB are one table here, with all routes to a prefix in one place, the best first. A
//! route is stored as received, even when it is not used (import policy, a loop), so that policy can change without a
//! route refresh. Beside the table are the dirty prefixes, whose best route has changed, each with its previous best
//! route, until they are processed.
//!
//! The map is sorted: the more specific prefixes of a prefix are one range of it, and a walk over it can pause and
//! resume. A route takes about 60 bytes besides its attributes, which are shared.

mod selection;
mod stale;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::super::message::Attributes;
use super::super::policy::Difference;
use super::best_path::{self, Candidate, Source};
use super::long_sets::LongSets;
use super::paths::Paths;
use crate::net::{Family, PerFamily};
use crate::packed::PrefixMap;

pub use selection::Selection;

/// Source of a route: a neighbour, or ourselves.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerId(pub u32);

impl PeerId {
    /// Locally originated.
    pub const LOCAL: PeerId = PeerId(0);
    /// Locally originated by an operator at run time. A route wanted by both stays when one withdraws it.
    pub const OPERATOR: PeerId = PeerId(1);
    /// Source address of an operator's routes in import policy. No neighbour has it.
    pub const OPERATOR_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::BROADCAST);
    /// First neighbour.
    pub const FIRST: PeerId = PeerId(2);

    /// Returns whether the source is local.
    pub fn is_local(self) -> bool {
        self < PeerId::FIRST
    }
}

/// Route of one source.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Path {
    pub source: PeerId,
    arrival: Arrival,
    /// Attributes as received.
    pub received: Arc<Attributes>,
    /// Attributes after import policy; `None` when the route is not used.
    pub used: Option<Arc<Attributes>>,
}

/// Time of receipt in seconds since the creation of the table, and in the highest bit whether the route is stale:
/// packed, because a table has many of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Arrival(u32);

/// Best route to a prefix.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Best {
    pub source: PeerId,
    pub attributes: Arc<Attributes>,
}

/// Number of routes received from a neighbour, of those in use, and of those that are stale.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Count {
    pub received: u32,
    pub used: u32,
    pub stale: u32,
}

/// Routing table.
#[derive(Debug)]
pub struct Table {
    begun: Instant,
    /// Seconds since then.
    clock: u32,
    paths: PrefixMap<Paths>,
    sources: BTreeMap<PeerId, Source>,
    counts: BTreeMap<PeerId, PerFamily<Count>>,
    /// Only of neighbours that have sent any.
    long_sets: BTreeMap<PeerId, LongSets>,
    /// Unreachable next hops: routes through them are not selected.
    unreachable: BTreeSet<IpAddr>,
    /// Maximum number of next hops for multipath; 1 disables it.
    sharing: usize,
    /// Changed prefixes with their previous best routes.
    dirty: BTreeMap<IpNet, Option<Best>>,
}

impl Path {
    /// Returns whether the route is stale: retained over a restart of its neighbour, or known before a refresh, and not received again.
    pub fn is_stale(&self) -> bool {
        self.arrival.0 & STALE != 0
    }
}

/// Stale bit of an arrival.
const STALE: u32 = 1 << 31;

impl Table {
    /// Builds an empty table.
    pub fn new(now: Instant) -> Table {
        Table {
            begun: now,
            clock: 0,
            paths: PrefixMap::default(),
            sources: BTreeMap::new(),
            counts: BTreeMap::new(),
            long_sets: BTreeMap::new(),
            unreachable: BTreeSet::new(),
            sharing: 1,
            dirty: BTreeMap::new(),
        }
    }

    /// Sets the time of receipt of the routes that follow.
    pub fn set_time(&mut self, now: Instant) {
        self.clock = (now.saturating_duration_since(self.begun).as_secs() as u32) & !STALE;
    }

    /// Time since the route was received, or last changed.
    pub fn age(&self, path: &Path) -> Duration {
        Duration::from_secs(u64::from(self.clock.saturating_sub(path.arrival.0 & !STALE)))
    }

    /// Sets the maximum number of next hops for multipath.
    pub fn share(&mut self, most: usize) {
        self.sharing = most;
    }

    /// Packs the table, which neighbours fill in the order of prefixes.
    pub fn pack(&mut self) {
        self.paths.pack();
    }

    /// Sets the properties of a neighbour before its routes are received.
    pub fn set_source(&mut self, id: PeerId, source: Source) {
        self.sources.insert(id, source);
    }

    pub fn source(&self, id: PeerId) -> Option<&Source> {
        self.sources.get(&id)
    }

    /// All sources of routes.
    pub fn sources(&self) -> Vec<(PeerId, Source)> {
        self.sources.iter().map(|(id, source)| (*id, *source)).collect()
    }

    /// Forgets a removed neighbour, which has no routes.
    pub fn forget_source(&mut self, id: PeerId) {
        self.sources.remove(&id);
    }

    /// Stores a route with its attributes as received and as used.
    pub fn announce(
        &mut self,
        prefix: IpNet,
        source: PeerId,
        received: Arc<Attributes>,
        used: Option<Arc<Attributes>>,
    ) {
        self.take_in(prefix, Path { source, arrival: Arrival(self.clock), received, used });
    }

    fn take_in(&mut self, prefix: IpNet, path: Path) {
        let source = path.source;
        let Some(paths) = self.paths.or_default(prefix) else { return };
        let known = paths.as_mut_slice().iter_mut().find(|known| known.source == source);
        let (used, is_stale) = (path.used.is_some(), path.is_stale());
        let was_stale = known.as_ref().is_some_and(|known| known.is_stale());
        let before = match known {
            Some(known) if known.received == path.received && known.used == path.used => {
                // A route received again is no longer stale; reapplying policy alone leaves the mark.
                known.arrival.0 &= !STALE | path.arrival.0;
                if was_stale && !is_stale {
                    self.counts.entry(source).or_default().of_mut(Family::from(prefix)).stale -= 1;
                }
                return;
            }
            Some(known) => Some((known.received.clone(), known.used.is_some())),
            None => None,
        };
        let received = path.received.clone();
        self.change(prefix, |paths| paths.put(path));
        let count = self.counts.entry(source).or_default().of_mut(Family::from(prefix));
        count.received += u32::from(before.is_none());
        let was_used = before.as_ref().is_some_and(|(_, used)| *used);
        count.used = count.used + u32::from(used) - u32::from(was_used);
        count.stale = count.stale + u32::from(is_stale) - u32::from(was_stale);
        self.weigh(source, Some(&received), before.as_ref().map(|(received, _)| received));
    }

    /// Removes a route. A neighbour may withdraw what it never announced.
    pub fn withdraw(&mut self, prefix: IpNet, source: PeerId) {
        let Some(known) = self.path(prefix, source) else { return };
        let (received, used, is_stale) = (known.received.clone(), known.used.is_some(), known.is_stale());
        self.change(prefix, |paths| paths.remove(source));
        let count = self.counts.entry(source).or_default().of_mut(Family::from(prefix));
        count.received -= 1;
        count.used -= u32::from(used);
        count.stale -= u32::from(is_stale);
        self.weigh(source, None, Some(&received));
    }

    /// Counts a new set of attributes of a neighbour's route, and discounts the old one.
    fn weigh(&mut self, source: PeerId, new: Option<&Arc<Attributes>>, old: Option<&Arc<Attributes>>) {
        if source.is_local() || new.map(Arc::as_ptr) == old.map(Arc::as_ptr) {
            return;
        }
        let sets = self.long_sets.entry(source).or_default();
        new.into_iter().for_each(|new| sets.add(new));
        old.into_iter().for_each(|old| sets.remove(old));
        if sets.is_empty() {
            self.long_sets.remove(&source);
        }
    }

    /// Size of the long attribute sets of a neighbour's routes in bytes, each set counted once.
    pub fn long_attributes(&self, source: PeerId) -> usize {
        self.long_sets.get(&source).map_or(0, LongSets::bytes)
    }

    /// Neighbour whose routes have the largest sets of attributes in total, each set shared evenly by the routes that refer
    /// to it. `None` where the sets of our own routes alone exceed `most` bytes: no neighbour is at fault.
    pub fn heaviest(&self, most: usize) -> Option<PeerId> {
        // Every set is interned: that reference is no route's. Shares are in 1/2^20 bytes, as many routes may share a set.
        let share = |set: &Arc<Attributes>| {
            let routes = Arc::strong_count(set).saturating_sub(1).max(1);
            ((set.weight() as u64) << 20) / routes as u64
        };
        let (mut own, mut weights) = (0, BTreeMap::<PeerId, u64>::new());
        for path in self.paths.values().flat_map(Paths::as_slice) {
            let of_source = if path.source.is_local() { &mut own } else { weights.entry(path.source).or_default() };
            *of_source += share(&path.received) + path.used.as_ref().map_or(0, share);
        }
        if own >> 20 > most as u64 {
            return None;
        }
        weights.into_iter().max_by_key(|(_, weight)| *weight).map(|(source, _)| source)
    }

    /// Removes all routes of a neighbour, of these address families, that satisfy a condition.
    pub fn withdraw_all(&mut self, source: PeerId, families: PerFamily<bool>, which: impl Fn(&Path) -> bool) {
        for prefix in self.prefixes_of(source, families, which) {
            self.withdraw(prefix, source);
        }
        if self.count(source) == PerFamily::default() {
            self.counts.remove(&source);
        }
    }

    /// Determines again which routes of a neighbour inside of `scope` are used: `used` is called for each route.
    pub fn reconsider(
        &mut self,
        source: PeerId,
        scope: &Difference,
        mut used: impl FnMut(IpNet, &Arc<Attributes>) -> Option<Arc<Attributes>>,
    ) {
        let prefixes = match scope {
            Difference::Anywhere => self.prefixes_of(source, PerFamily { v4: true, v6: true }, |_| true),
            Difference::Inside(outer) => self.inside(outer).into_iter().collect(),
        };
        for prefix in prefixes {
            let path =
                self.path(prefix, source).map(|path| Path { used: used(prefix, &path.received), ..path.clone() });
            if let Some(path) = path {
                self.take_in(prefix, path);
            }
        }
    }

    /// Sets the unreachable next hops; all others are reachable. One walk over the table, however many of them change.
    pub fn set_unreachable(&mut self, unreachable: BTreeSet<IpAddr>) {
        let before = std::mem::replace(&mut self.unreachable, unreachable);
        let changed: BTreeSet<IpAddr> = before.symmetric_difference(&self.unreachable).copied().collect();
        if changed.is_empty() {
            return;
        }
        let through = |path: &Path| path.used.as_ref().is_some_and(|used| changed.contains(&used.next_hop));
        let affected = self.paths.iter().filter(|(_, paths)| paths.as_slice().iter().any(through));
        // The best route is first as long as its next hop is reachable.
        let affected: Vec<(IpNet, Option<Best>)> =
            affected.map(|(prefix, paths)| (prefix, best_of(paths.as_slice(), &before))).collect();
        for (prefix, best) in affected {
            self.dirty.entry(prefix).or_insert(best);
            self.change(prefix, |_| {});
        }
    }

    /// Changes the routes to a prefix, and moves the best to the front.
    fn change(&mut self, prefix: IpNet, change: impl FnOnce(&mut Paths)) {
        let Some(paths) = self.paths.value_mut(&prefix) else { return };
        let before = best_of(paths.as_slice(), &self.unreachable);
        change(paths);
        put_best_first(paths.as_mut_slice(), &self.sources, &self.unreachable);
        let after = best_of(paths.as_slice(), &self.unreachable);
        if paths.as_slice().is_empty() {
            self.paths.remove(&prefix);
        }
        // The multipath set may have changed, although the best route is the same.
        if before != after || self.sharing > 1 {
            self.dirty.entry(prefix).or_insert(before);
        }
    }

    /// Best route to a prefix.
    pub fn best(&self, prefix: IpNet) -> Option<Best> {
        best_of(self.paths(prefix), &self.unreachable)
    }

    /// All routes to a prefix, the best first if there is one.
    pub fn paths(&self, prefix: IpNet) -> &[Path] {
        self.paths.get(&prefix).map(Paths::as_slice).unwrap_or_default()
    }

    pub fn path(&self, prefix: IpNet, source: PeerId) -> Option<&Path> {
        self.paths(prefix).iter().find(|path| path.source == source)
    }

    /// Next hops of the multipath set, the best first.
    pub fn next_hops(&self, prefix: IpNet) -> Vec<IpAddr> {
        let paths = self.paths(prefix);
        let Some(best) = best_of(paths, &self.unreachable) else { return Vec::new() };
        let mut next_hops = vec![best.attributes.next_hop];
        if self.sharing > 1 && paths.len() > 1 {
            let candidates = candidates(paths, &self.sources, &self.unreachable);
            let places = best_path::equals(&candidates.all);
            for place in places {
                let next_hop = candidates.all.get(place).map(|candidate| candidate.attributes.next_hop);
                next_hops.extend(next_hop.filter(|next_hop| !next_hops.contains(next_hop)));
            }
            next_hops.truncate(self.sharing);
        }
        next_hops
    }

    /// Prefixes of an address family with their routes, from behind `after` on.
    pub fn walk(&self, family: Family, after: Option<IpNet>) -> impl Iterator<Item = (IpNet, &[Path])> {
        self.paths.of_family(family, after).map(|(prefix, paths)| (prefix, paths.as_slice()))
    }

    /// Prefixes of an address family whose best route is our own.
    pub fn own(&self, family: Family) -> impl Iterator<Item = IpNet> {
        let is_own = |paths: &[Path]| best_of(paths, &self.unreachable).is_some_and(|best| best.source.is_local());
        self.walk(family, None).filter(move |(_, paths)| is_own(paths)).map(|(prefix, _)| prefix)
    }

    /// Takes up to `most` changed prefixes, each with its previous best route.
    pub fn take_dirty(&mut self, most: usize) -> BTreeMap<IpNet, Option<Best>> {
        if self.dirty.len() <= most {
            return std::mem::take(&mut self.dirty);
        }
        let Some(rest) = self.dirty.keys().nth(most).copied() else { return BTreeMap::new() };
        let later = self.dirty.split_off(&rest);
        std::mem::replace(&mut self.dirty, later)
    }

    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    pub fn count(&self, source: PeerId) -> PerFamily<Count> {
        self.counts.get(&source).copied().unwrap_or_default()
    }

    /// Number of prefixes.
    pub fn len(&self) -> usize {
        self.paths.len()
    }

    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// All prefixes inside of any of these.
    pub fn inside(&self, outer: &BTreeSet<IpNet>) -> BTreeSet<IpNet> {
        let below = |outer: &IpNet| {
            let from = *outer;
            self.paths.at_and_behind(from).map(|(prefix, _)| prefix).take_while(move |prefix| from.contains(prefix))
        };
        outer.iter().flat_map(below).collect()
    }

    fn prefixes_of(&self, source: PeerId, families: PerFamily<bool>, which: impl Fn(&Path) -> bool) -> Vec<IpNet> {
        let counts = self.count(source);
        let wanted = |family: &Family| *families.of(*family) && counts.of(*family).received > 0;
        let mut prefixes = Vec::new();
        for family in Family::BOTH.into_iter().filter(wanted) {
            let of_family = self.paths.of_family(family, None);
            let has = |paths: &Paths| paths.as_slice().iter().any(|path| path.source == source && which(path));
            prefixes.extend(of_family.filter(|(_, paths)| has(paths)).map(|(prefix, _)| prefix));
        }
        prefixes
    }
}

/// First path, if it is eligible.
fn best_of(paths: &[Path], unreachable: &BTreeSet<IpAddr>) -> Option<Best> {
    let first = paths.first()?;
    let used = first.used.as_ref().filter(|used| !unreachable.contains(&used.next_hop))?;
    Some(Best { source: first.source, attributes: used.clone() })
}

/// Eligible routes, and the index of each among all.
struct Candidates<'a> {
    all: Vec<Candidate<'a>>,
    places: Vec<usize>,
}

fn candidates<'a>(
    paths: &'a [Path],
    sources: &'a BTreeMap<PeerId, Source>,
    unreachable: &BTreeSet<IpAddr>,
) -> Candidates<'a> {
    let mut candidates = Candidates { all: Vec::with_capacity(paths.len()), places: Vec::with_capacity(paths.len()) };
    for (place, path) in paths.iter().enumerate() {
        let used = path.used.as_deref().filter(|used| !unreachable.contains(&used.next_hop));
        if let (Some(attributes), Some(source)) = (used, sources.get(&path.source)) {
            candidates.all.push(Candidate { attributes, source });
            candidates.places.push(place);
        }
    }
    candidates
}

fn put_best_first(paths: &mut [Path], sources: &BTreeMap<PeerId, Source>, unreachable: &BTreeSet<IpAddr>) {
    if paths.len() < 2 {
        return;
    }
    let candidates = candidates(paths, sources, unreachable);
    let best = best_path::best(&candidates.all).and_then(|place| candidates.places.get(place).copied());
    if let Some(best) = best.filter(|best| *best < paths.len()) {
        paths.swap(0, best);
    }
}

#[cfg(test)]
impl Table {
    /// Checks the invariants.
    pub fn check(&self) {
        let mut counts: BTreeMap<PeerId, PerFamily<Count>> = BTreeMap::new();
        for (prefix, paths) in self.paths.iter() {
            let paths = paths.as_slice();
            assert!(!paths.is_empty(), "{prefix} has no routes");
            let used = |path: &Path| path.used.as_ref().is_some_and(|used| !self.unreachable.contains(&used.next_hop));
            assert!(paths.iter().all(|path| !used(path)) || used(&paths[0]), "the best stands first");
            for path in paths {
                let count = counts.entry(path.source).or_default().of_mut(Family::from(prefix));
                count.received += 1;
                count.used += u32::from(path.used.is_some());
                count.stale += u32::from(path.is_stale());
                assert_eq!(paths.iter().filter(|other| other.source == path.source).count(), 1);
            }
        }
        for (source, count) in &self.counts {
            assert_eq!(counts.remove(source).unwrap_or_default(), *count, "{source:?}");
        }
        assert_eq!(counts, BTreeMap::new());
    }
}
