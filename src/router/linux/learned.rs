//! Routes made from learned routes, and how those to pods prevail over other programs' routes.
//!
//! Ours by their protocol, like all others. In the main table another program's route may lead to the same pods: flannel's, or
//! a manually added one. One to the pod CIDR of a known Node makes way (`router/rivals.rs`); to any other destination it stays,
//! and where it occupies the key of ours, ours is refused. A rival that is not ours to delete and beside which ours is written is
//! no failed step: it is told by [`PodRoutes::staying`]. So is the IPv4 network of a link that equals a pod CIDR: ours stands
//! behind it, and takes over when it goes.
//!
//! Of IPv4 routes with one key the kernel replaces the first. So a rival in the place of ours goes before ours changes, and where it
//! stays, ours is not replaced: the new route is added behind, then the old one is deleted.
//!
//! One listing of the main table finds all rivals. A change of few routes asks the kernel for the deciding route of each, and
//! lists the table only where that is not ours.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use tokio::sync::watch;
use tracing::{debug, warn};

use super::learned_routes;
use crate::kernel::route::{Lookup, Ownership, Route, RouteKey, RouteKind, Routes, TABLE_MAIN};
use crate::kernel::{Cause, Error};
use crate::net::Prefixes;
use crate::reconcile::{Failure, Phase, Step, Target};
use crate::router::apply::PodRoutes;
use crate::router::names::PROTOCOL;
use crate::router::rivals::{Claim, Rival, rivals};

/// Routes made from learned routes.
pub struct Learned {
    routes: Routes,
    lookup: Lookup,
    /// The pod CIDRs of other nodes. The monitor listens for other programs' routes to them.
    pod_ranges: watch::Sender<Prefixes>,
    /// The pod CIDRs of our own node.
    own_ranges: Prefixes,
    /// The rivals found by the last listing that are still there, by pod CIDR.
    rivals: BTreeMap<IpNet, Vec<Rival>>,
    /// Replaced routes that have been logged, by pod CIDR.
    said: BTreeMap<IpNet, BTreeSet<String>>,
}

/// `RTN_UNSPEC`: the kind of a route of ours that does not decide, as read. So it differs from the desired one.
const OUTDONE: RouteKind = RouteKind::Other(0);
/// Maximum number of routes whose deciding route is looked up; for more the table is listed.
const LOOKED_UP: usize = 64;
/// Maximum number of replaced routes logged for one pod CIDR.
const SAID: usize = 16;

impl Learned {
    /// Opens sockets in the network namespace of the calling thread. `pod_ranges` is kept up to date.
    pub(super) fn open(pod_ranges: watch::Sender<Prefixes>) -> Result<Learned, Error> {
        Ok(Learned {
            routes: Routes::open(Ownership::Protocols(learned_routes().to_vec()))?,
            lookup: Lookup::open()?,
            pod_ranges,
            own_ranges: Prefixes::default(),
            rivals: BTreeMap::new(),
            said: BTreeMap::new(),
        })
    }

    fn is_to_pods(&self, key: &RouteKey) -> bool {
        *key == RouteKey::new(TABLE_MAIN, key.destination) && self.pod_ranges.borrow().contains(key.destination)
    }

    /// Returns whether this route of ours decides about the first address of its destination.
    fn decides(&mut self, key: &RouteKey) -> bool {
        let found = self.lookup.deciding(key.destination.network());
        matches!(found, Ok(Some((found, PROTOCOL))) if found == *key)
    }

    /// Deletes rivals in the place of our IPv4 routes to pods among the steps that are to change. Returns the steps in whose place the
    /// network of a link stays.
    fn make_way(&mut self, phase: Phase, steps: &[Step<'_, RouteKey, Arc<Route>>]) -> BTreeSet<usize> {
        let changes = |step: &Step<'_, RouteKey, Arc<Route>>| {
            let differs = step.have.zip(step.want).is_some_and(|(have, want)| !is_in_place(have, want));
            differs && step.key.destination.addr().is_ipv4() && self.is_to_pods(step.key)
        };
        let changing: Vec<(usize, &RouteKey)> =
            steps.iter().enumerate().filter(|(_, step)| changes(step)).map(|(index, step)| (index, step.key)).collect();
        let is_doubtful = |learned: &mut Learned, key: &RouteKey| !learned.has_rival_in(key) && !learned.decides(key);
        let lists = changing.len() > LOOKED_UP || changing.iter().any(|(_, key)| is_doubtful(self, key));
        if lists && let Err(error) = self.read() {
            debug!(%error, "Listing routes failed");
        }
        let mut stay = BTreeSet::new();
        for (index, key) in changing {
            let (in_place, others): (Vec<Rival>, Vec<Rival>) = self
                .rivals
                .remove(&key.destination)
                .unwrap_or_default()
                .into_iter()
                .partition(|rival| rival.route.key == *key);
            let (mut left, error) = self.delete(phase, in_place);
            if let Some(error) = error {
                debug!(error, "Deleting a route failed");
            }
            if left.iter().any(|rival| rival.claim == Claim::Link) {
                stay.insert(index);
            }
            left.extend(others);
            if !left.is_empty() {
                self.rivals.insert(key.destination, left);
            }
        }
        stay
    }

    /// Returns whether another program's route is known to be in the place of ours.
    fn has_rival_in(&self, key: &RouteKey) -> bool {
        self.rivals.get(&key.destination).is_some_and(|rivals| rivals.iter().any(|rival| rival.route.key == *key))
    }

    /// Changes a route of ours behind that of a link.
    fn change_behind(&mut self, phase: Phase, step: &Step<'_, RouteKey, Arc<Route>>) -> Result<(), Error> {
        let (Some(have), Some(want)) = (step.have, step.want) else { return Ok(()) };
        self.routes.append(step.key, want)?;
        if have.next_hops == want.next_hops {
            return Ok(());
        }
        // The old one is the first of ours.
        let step = Step { key: step.key, have: step.have, want: None };
        match self.routes.apply(phase, &[step]).pop() {
            Some(failure) if !failure.error.is_absent() => Err(failure.error),
            _ => Ok(()),
        }
    }

    /// Makes way for our routes to pods among the steps. Those have failed that could not be written, or beside which a route
    /// stays that had to go.
    fn prevail(
        &mut self,
        phase: Phase,
        steps: &[Step<'_, RouteKey, Arc<Route>>],
        failures: &mut BTreeMap<usize, Error>,
    ) {
        let to_pods = steps.iter().enumerate().filter(|(index, step)| {
            step.want.is_some() && self.is_to_pods(step.key) && failures.get(index).is_none_or(Error::is_exists)
        });
        let to_pods: Vec<(usize, &Step<'_, RouteKey, Arc<Route>>)> = to_pods.collect();
        let is_doubtful = |learned: &mut Learned, (index, step): &(usize, &Step<'_, RouteKey, Arc<Route>>)| {
            let is_known = learned.rivals.contains_key(&step.key.destination);
            !is_known && (failures.contains_key(index) || !learned.decides(step.key))
        };
        let lists = to_pods.len() > LOOKED_UP || to_pods.iter().any(|one| is_doubtful(self, one));
        if lists && let Err(error) = self.read() {
            // The next audit lists it.
            debug!(%error, "Listing routes failed");
        }
        for (index, step) in to_pods {
            let rivals = self.rivals.remove(&step.key.destination).unwrap_or_default();
            let outdone = |why: String| Error::new("use route", step.key.to_string(), Cause::Rival(why));
            let (left, error) = match failures.remove(&index) {
                None => self.delete(phase, rivals),
                Some(error) => match self.replace(phase, step, rivals) {
                    Ok(others) => self.delete(phase, others),
                    Err(all) => {
                        let why = all.first().map(|rival| outdone(rival.to_string()));
                        failures.insert(index, why.unwrap_or(error));
                        (all, None)
                    }
                },
            };
            failures.extend(error.map(|why| (index, outdone(why))));
            if !left.is_empty() {
                self.rivals.insert(step.key.destination, left);
            }
        }
    }

    /// Puts a route of ours in the place of another program's with the same key, or behind the IPv4 network of a link. Returns the
    /// rivals that remain; as an error, all of them where ours cannot be written.
    fn replace(
        &mut self,
        phase: Phase,
        step: &Step<'_, RouteKey, Arc<Route>>,
        rivals: Vec<Rival>,
    ) -> Result<Vec<Rival>, Vec<Rival>> {
        let (in_place, others): (Vec<Rival>, Vec<Rival>) =
            rivals.into_iter().partition(|rival| rival.route.key == *step.key);
        // Nothing would put the route of a link back when ours goes.
        let is_of_a_link = in_place.iter().any(|rival| rival.claim == Claim::Link);
        let all = |in_place: Vec<Rival>| in_place.into_iter().chain(others.clone()).collect::<Vec<Rival>>();
        if let (true, Some(want)) = (is_of_a_link, step.want.filter(|_| step.key.destination.addr().is_ipv4())) {
            return match self.routes.append(step.key, want) {
                Ok(()) => Ok(all(in_place)),
                Err(_) => Err(all(in_place)),
            };
        }
        // ip route replace
        let replaces = Step { key: step.key, have: step.want, want: step.want };
        if is_of_a_link || !self.routes.apply(phase, &[replaces]).is_empty() {
            return Err(all(in_place));
        }
        // Without a listing nothing more is known of it.
        let replaced = in_place.first().map_or_else(|| step.key.to_string(), |rival| rival.route.to_string());
        self.say(step.key.destination, replaced);
        Ok(others)
    }

    /// Deletes those rivals that make way. Returns the others, and why the first of those that should have gone stays.
    fn delete(&mut self, phase: Phase, rivals: Vec<Rival>) -> (Vec<Rival>, Option<String>) {
        let (mut left, mut error) = (Vec::new(), None);
        for rival in rivals {
            if rival.claim != Claim::Same {
                left.push(rival);
                continue;
            }
            let route =
                Route { kind: rival.route.kind, protocol: rival.route.protocol, source: None, next_hops: [].into() }
                    .into();
            let step = Step { key: &rival.route.key, have: Some(&route), want: None };
            match self.routes.apply(phase, &[step]).pop() {
                Some(failure) if !failure.error.is_absent() => {
                    error.get_or_insert_with(|| format!("{rival}, and stays: {}", failure.error));
                    left.push(rival);
                }
                _ => self.say(rival.route.key.destination, rival.route.to_string()),
            }
        }
        (left, error)
    }

    /// Logs once that a route was replaced or deleted, with all that is needed to put it back.
    fn say(&mut self, range: IpNet, route: String) {
        let said = self.said.entry(range).or_default();
        if said.len() < SAID && !said.contains(&route) {
            warn!(route, "Foreign route to the pod CIDR of a Node replaced");
            said.insert(route);
        }
    }
}

impl PodRoutes for Learned {
    fn note_pod_range(&mut self, range: IpNet, is_there: bool) {
        self.pod_ranges.send_modify(|ranges| {
            let _ = if is_there { ranges.insert(range) } else { ranges.remove(range) };
        });
        if !is_there {
            self.rivals.remove(&range);
            self.said.remove(&range);
        }
    }

    fn note_own_ranges(&mut self, ranges: &[IpNet]) {
        self.own_ranges = Prefixes::default();
        for range in ranges {
            self.own_ranges.insert(*range);
        }
        let own = &self.own_ranges;
        self.rivals.retain(|_, rivals| {
            rivals.retain(|rival| own.around(rival.route.key.destination).is_none());
            !rivals.is_empty()
        });
    }

    fn staying(&self) -> Vec<(IpNet, &Rival)> {
        let all = self.rivals.iter().flat_map(|(range, rivals)| rivals.iter().map(|rival| (*range, rival)));
        all.filter(|(_, rival)| rival.claim != Claim::Same).collect()
    }

    fn is_contested(&mut self, range: IpNet) -> bool {
        match self.lookup.deciding(range.network()) {
            Ok(Some((found, protocol))) => protocol != PROTOCOL && range.contains(&found.destination),
            // A route that refuses is not named.
            Ok(None) | Err(_) => true,
        }
    }
}

impl Target for Learned {
    type Key = RouteKey;
    type Value = Arc<Route>;
    type Error = Error;

    fn name(&self) -> &'static str {
        self.routes.name()
    }

    fn read(&mut self) -> Result<BTreeMap<RouteKey, Arc<Route>>, Error> {
        let ranges = self.pod_ranges.borrow();
        if ranges.is_empty() {
            self.rivals.clear();
            return self.routes.read();
        }
        let (mut found, foreign) = self.routes.read_beside(&|destination| ranges.around(destination).is_some())?;
        self.rivals = rivals(&ranges, &self.own_ranges, foreign);
        // Beside the others nothing remains to be done.
        let has_to_go = |rivals: &Vec<Rival>| rivals.iter().any(|rival| rival.claim == Claim::Same);
        for (range, _) in self.rivals.iter().filter(|(_, rivals)| has_to_go(rivals)) {
            if let Some(route) = found.get_mut(&RouteKey::new(TABLE_MAIN, *range)) {
                Arc::make_mut(route).kind = OUTDONE;
            }
        }
        Ok(found)
    }

    fn portion(&self) -> usize {
        self.routes.portion()
    }

    fn apply(&mut self, phase: Phase, steps: &[Step<'_, RouteKey, Arc<Route>>]) -> Vec<Failure<Error>> {
        let behind = self.make_way(phase, steps);
        // A route that only has to prevail need not be written again.
        let is_there = |step: &Step<'_, RouteKey, Arc<Route>>| {
            step.have.zip(step.want).is_some_and(|(have, want)| have.kind == OUTDONE && is_in_place(have, want))
        };
        let is_written =
            |(index, step): &(usize, &Step<'_, RouteKey, Arc<Route>>)| !is_there(step) && !behind.contains(index);
        let (places, written): (Vec<usize>, Vec<Step<'_, RouteKey, Arc<Route>>>) = steps
            .iter()
            .enumerate()
            .filter(is_written)
            .map(|(place, step)| (place, Step { key: step.key, have: step.have, want: step.want }))
            .unzip();
        let failures = self.routes.apply(phase, &written).into_iter();
        let place = |failure: Failure<Error>| Some((*places.get(failure.step)?, failure.error));
        let mut failures: BTreeMap<usize, Error> = failures.filter_map(place).collect();
        for index in behind {
            let changed = steps.get(index).map_or(Ok(()), |step| self.change_behind(phase, step));
            failures.extend(changed.err().map(|error| (index, error)));
        }
        self.prevail(phase, steps, &mut failures);
        failures.into_iter().map(|(step, error)| Failure { step, error }).collect()
    }
}

/// Returns whether a route is as desired but for its kind, which says whether it decides.
fn is_in_place(have: &Arc<Route>, want: &Arc<Route>) -> bool {
    **want == Route { kind: want.kind, ..Route::clone(have) }
}
