//! All routes: what came from each neighbour, and which is the best to each prefix.
//!
//! RFC 4271 3.2: Adj-RIB-In and Loc-RIB are one table here, with all routes to a prefix in one place, the best first.
//! A route is kept as it came, also when it is not used (import policy, a loop), so that policy can change without asking
//! the neighbour again. Beside the table stand the prefixes whose best route has changed, each with what it was before,
//! until somebody takes them.
//!
//! The map is sorted: what lies inside of a prefix is one range of it, and a walk over it can stop and go on later. A route
//! takes about 100 bytes besides its attributes, which it shares.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::super::message::Attributes;
use super::super::policy::Difference;
use super::best_path::{self, Candidate, Source};
use super::long_sets::LongSets;
use crate::net::{Family, PerFamily};

/// Where a route comes from: a neighbour, or ourselves.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerId(pub u32);

impl PeerId {
    /// Ourselves.
    pub const LOCAL: PeerId = PeerId(0);
    /// Ourselves too, for somebody who asks for it while we run. What is wanted by both stays when one wants it no more.
    pub const OPERATOR: PeerId = PeerId(1);
    /// The address that import policy sees in an operator's routes. No neighbour has it.
    pub const OPERATOR_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::BROADCAST);
    /// The first neighbour.
    pub const FIRST: PeerId = PeerId(2);

    /// Whether it is no neighbour.
    pub fn is_local(self) -> bool {
        self < PeerId::FIRST
    }
}

/// One route.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Path {
    pub source: PeerId,
    arrival: Arrival,
    /// As it came.
    pub received: Arc<Attributes>,
    /// As it is used; `None` when it is not.
    pub used: Option<Arc<Attributes>>,
}

/// When a route came, in seconds since the table was begun; and whether it is stale, in the highest bit, because a table has
/// many of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Arrival(u32);

/// The best route to a prefix.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Best {
    pub source: PeerId,
    pub attributes: Arc<Attributes>,
}

/// How many routes a neighbour has brought, and how many of them are used.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Count {
    pub received: u32,
    pub used: u32,
}

/// The table.
#[derive(Debug)]
pub struct Table {
    begun: Instant,
    /// Since then, in seconds.
    clock: u32,
    paths: BTreeMap<IpNet, Vec<Path>>,
    sources: BTreeMap<PeerId, Source>,
    counts: BTreeMap<PeerId, PerFamily<Count>>,
    /// Of neighbours that have sent any.
    long_sets: BTreeMap<PeerId, LongSets>,
    /// Next hops that cannot be reached: routes through them are not chosen.
    unreachable: BTreeSet<IpAddr>,
    /// Among how many next hops traffic is shared at the most; 1 for no sharing.
    sharing: usize,
    /// What has changed, and what was the best before.
    dirty: BTreeMap<IpNet, Option<Best>>,
}

impl Path {
    /// It is kept over a restart of its neighbour, and has not come again.
    pub fn is_stale(&self) -> bool {
        self.arrival.0 & STALE != 0
    }
}

/// In an arrival.
const STALE: u32 = 1 << 31;

impl Table {
    /// An empty table.
    pub fn new(now: Instant) -> Table {
        Table {
            begun: now,
            clock: 0,
            paths: BTreeMap::new(),
            sources: BTreeMap::new(),
            counts: BTreeMap::new(),
            long_sets: BTreeMap::new(),
            unreachable: BTreeSet::new(),
            sharing: 1,
            dirty: BTreeMap::new(),
        }
    }

    /// It is so late: routes that come now came now.
    pub fn set_time(&mut self, now: Instant) {
        self.clock = (now.saturating_duration_since(self.begun).as_secs() as u32) & !STALE;
    }

    /// How long a route has been there as it is.
    pub fn age(&self, path: &Path) -> Duration {
        Duration::from_secs(u64::from(self.clock.saturating_sub(path.arrival.0 & !STALE)))
    }

    /// Sets among how many next hops traffic is shared at the most.
    pub fn share(&mut self, most: usize) {
        self.sharing = most;
    }

    /// Says what counts of a neighbour before its routes come.
    pub fn set_source(&mut self, id: PeerId, source: Source) {
        self.sources.insert(id, source);
    }

    pub fn source(&self, id: PeerId) -> Option<&Source> {
        self.sources.get(&id)
    }

    /// All that routes may come from.
    pub fn sources(&self) -> Vec<(PeerId, Source)> {
        self.sources.iter().map(|(id, source)| (*id, *source)).collect()
    }

    /// A neighbour is no more; it has no routes.
    pub fn forget_source(&mut self, id: PeerId) {
        self.sources.remove(&id);
    }

    /// Takes in a route: as it came, and as it is used.
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
        let paths = self.paths.entry(prefix).or_default();
        let known = paths.iter_mut().find(|known| known.source == source);
        let used = path.used.is_some();
        let before = match known {
            Some(known) if known.received == path.received && known.used == path.used => {
                // It has come again, unless policy alone has looked at it.
                known.arrival.0 &= !STALE | path.arrival.0;
                return;
            }
            Some(known) => Some((known.received.clone(), known.used.is_some())),
            None => None,
        };
        let received = path.received.clone();
        self.change(prefix, |paths| match paths.iter_mut().find(|known| known.source == source) {
            Some(known) => *known = path,
            None => {
                // Most prefixes have few routes: no place is kept for more.
                paths.reserve_exact(1);
                paths.push(path);
            }
        });
        let count = self.counts.entry(source).or_default().of_mut(Family::from(prefix));
        count.received += u32::from(before.is_none());
        let was_used = before.as_ref().is_some_and(|(_, used)| *used);
        count.used = count.used + u32::from(used) - u32::from(was_used);
        self.weigh(source, Some(&received), before.as_ref().map(|(received, _)| received));
    }

    /// Takes a route away. A neighbour may withdraw what it never announced.
    pub fn withdraw(&mut self, prefix: IpNet, source: PeerId) {
        let known = self.paths.get(&prefix).and_then(|paths| paths.iter().find(|path| path.source == source));
        let Some((received, used)) = known.map(|path| (path.received.clone(), path.used.is_some())) else { return };
        self.change(prefix, |paths| paths.retain(|path| path.source != source));
        let count = self.counts.entry(source).or_default().of_mut(Family::from(prefix));
        count.received -= 1;
        count.used -= u32::from(used);
        self.weigh(source, None, Some(&received));
    }

    /// One set of attributes has come with a route of a neighbour, and another one has gone.
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

    /// How many bytes the long sets of attributes of a neighbour's routes take, each set counted once.
    pub fn long_attributes(&self, source: PeerId) -> usize {
        self.long_sets.get(&source).map_or(0, LongSets::bytes)
    }

    /// Takes away all routes of a neighbour, of these families, that fulfil a condition.
    pub fn withdraw_all(&mut self, source: PeerId, families: PerFamily<bool>, which: impl Fn(&Path) -> bool) {
        for prefix in self.prefixes_of(source, families, which) {
            self.withdraw(prefix, source);
        }
        if self.count(source) == PerFamily::default() {
            self.counts.remove(&source);
        }
    }

    /// Marks all routes of a neighbour: they have not come again yet.
    pub fn mark_stale(&mut self, source: PeerId, families: PerFamily<bool>) {
        for (family, marked) in Family::BOTH.map(|family| (family, *families.of(family))) {
            if marked && self.count(source).of(family).received > 0 {
                let of_family = self.paths.range_mut(bounds(family)).flat_map(|(_, paths)| paths);
                of_family.filter(|path| path.source == source).for_each(|path| path.arrival.0 |= STALE);
            }
        }
    }

    /// Decides again which routes of a neighbour are used, as far as `scope` goes: `used` answers it for each route.
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

    /// Says which next hops cannot be reached; all others can. One walk over the table, however many of them change.
    pub fn set_unreachable(&mut self, unreachable: BTreeSet<IpAddr>) {
        let before = std::mem::replace(&mut self.unreachable, unreachable);
        let changed: BTreeSet<IpAddr> = before.symmetric_difference(&self.unreachable).copied().collect();
        if changed.is_empty() {
            return;
        }
        let through = |path: &Path| path.used.as_ref().is_some_and(|used| changed.contains(&used.next_hop));
        let affected = self.paths.iter().filter(|(_, paths)| paths.iter().any(through));
        // The best stood first as long as its next hop could be reached.
        let affected: Vec<(IpNet, Option<Best>)> =
            affected.map(|(prefix, paths)| (*prefix, best_of(paths, &before))).collect();
        for (prefix, best) in affected {
            self.dirty.entry(prefix).or_insert(best);
            self.change(prefix, |_| {});
        }
    }

    /// Changes the routes to a prefix, and puts the best first.
    fn change(&mut self, prefix: IpNet, change: impl FnOnce(&mut Vec<Path>)) {
        let Some(paths) = self.paths.get_mut(&prefix) else { return };
        let before = best_of(paths, &self.unreachable);
        change(paths);
        put_best_first(paths, &self.sources, &self.unreachable);
        let after = best_of(paths, &self.unreachable);
        if paths.is_empty() {
            self.paths.remove(&prefix);
        }
        // Where traffic is shared those that share it may be others, though the best has stayed.
        if before != after || self.sharing > 1 {
            self.dirty.entry(prefix).or_insert(before);
        }
    }

    /// The best route to a prefix.
    pub fn best(&self, prefix: IpNet) -> Option<Best> {
        best_of(self.paths.get(&prefix)?, &self.unreachable)
    }

    /// All routes to a prefix, the best first if there is one.
    pub fn paths(&self, prefix: IpNet) -> &[Path] {
        self.paths.get(&prefix).map(Vec::as_slice).unwrap_or_default()
    }

    pub fn path(&self, prefix: IpNet, source: PeerId) -> Option<&Path> {
        self.paths(prefix).iter().find(|path| path.source == source)
    }

    /// The next hops among which traffic is shared, the best first.
    pub fn next_hops(&self, prefix: IpNet) -> Vec<IpAddr> {
        let paths = self.paths(prefix);
        let Some(best) = best_of(paths, &self.unreachable) else { return Vec::new() };
        let mut next_hops = vec![best.attributes.next_hop];
        if self.sharing > 1 && paths.len() > 1 {
            let candidates = candidates(paths, &self.sources, &self.unreachable);
            let places = best_path::equals(&candidates.all, 0);
            for place in places {
                let next_hop = candidates.all.get(place).map(|candidate| candidate.attributes.next_hop);
                next_hops.extend(next_hop.filter(|next_hop| !next_hops.contains(next_hop)));
            }
            next_hops.truncate(self.sharing);
        }
        next_hops
    }

    /// Prefixes of a family with their routes, from behind this one on.
    pub fn walk(&self, family: Family, after: Option<IpNet>) -> impl Iterator<Item = (IpNet, &[Path])> {
        let (first, last) = bounds(family);
        let start = after.map_or(first, Bound::Excluded);
        self.paths.range((start, last)).map(|(prefix, paths)| (*prefix, paths.as_slice()))
    }

    /// Takes at most so many of the prefixes that have changed, each with what was the best before.
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

    /// How many prefixes there are.
    pub fn len(&self) -> usize {
        self.paths.len()
    }

    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// All prefixes that lie inside of any of these.
    pub fn inside(&self, outer: &BTreeSet<IpNet>) -> BTreeSet<IpNet> {
        let below = |outer: &IpNet| {
            let from = *outer;
            self.paths.range(from..).map(|(prefix, _)| *prefix).take_while(move |prefix| from.contains(prefix))
        };
        outer.iter().flat_map(below).collect()
    }

    fn prefixes_of(&self, source: PeerId, families: PerFamily<bool>, which: impl Fn(&Path) -> bool) -> Vec<IpNet> {
        let counts = self.count(source);
        let wanted = |family: &Family| *families.of(*family) && counts.of(*family).received > 0;
        let mut prefixes = Vec::new();
        for family in Family::BOTH.into_iter().filter(wanted) {
            let of_family = self.paths.range(bounds(family));
            let has = |paths: &[Path]| paths.iter().any(|path| path.source == source && which(path));
            prefixes.extend(of_family.filter(|(_, paths)| has(paths)).map(|(prefix, _)| *prefix));
        }
        prefixes
    }
}

/// The first path, if it can be chosen.
fn best_of(paths: &[Path], unreachable: &BTreeSet<IpAddr>) -> Option<Best> {
    let first = paths.first()?;
    let used = first.used.as_ref().filter(|used| !unreachable.contains(&used.next_hop))?;
    Some(Best { source: first.source, attributes: used.clone() })
}

/// The routes that can be chosen, and where each stands among all.
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

/// The range of a family: IPv4 stands before IPv6.
fn bounds(family: Family) -> (Bound<IpNet>, Bound<IpNet>) {
    let first_of_v6 = IpNet::V6(ipnet::Ipv6Net::default());
    match family {
        Family::V4 => (Bound::Unbounded, Bound::Excluded(first_of_v6)),
        Family::V6 => (Bound::Included(first_of_v6), Bound::Unbounded),
    }
}

#[cfg(test)]
impl Table {
    /// What must always be true.
    pub fn check(&self) {
        let mut counts: BTreeMap<PeerId, PerFamily<Count>> = BTreeMap::new();
        for (prefix, paths) in &self.paths {
            assert!(!paths.is_empty(), "{prefix} has no routes");
            let used = |path: &Path| path.used.as_ref().is_some_and(|used| !self.unreachable.contains(&used.next_hop));
            assert!(paths.iter().all(|path| !used(path)) || used(&paths[0]), "the best stands first");
            for path in paths {
                let count = counts.entry(path.source).or_default().of_mut(Family::from(*prefix));
                count.received += 1;
                count.used += u32::from(path.used.is_some());
                assert_eq!(paths.iter().filter(|other| other.source == path.source).count(), 1);
            }
        }
        for (source, count) in &self.counts {
            assert_eq!(counts.remove(source).unwrap_or_default(), *count, "{source:?}");
        }
        assert_eq!(counts, BTreeMap::new());
    }
}
