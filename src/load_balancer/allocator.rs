//! Who has which address: decisions from one view of all Services, and the writes that bring them into the statuses. Without I/O.
//!
//! Observations, outcomes of writes and the time go in; writes and notices come out. A write is for one version of a Service and takes
//! effect for that version alone, so what was decided from an older one never does. Until the outcome is known, the addresses of the
//! write count as in use, and where it never becomes known, until the API server must have given it up.
//!
//! Work follows the change: an observation concerns its Service, those that have an address in common with it, and those that
//! wait for what it lets go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use compact_str::CompactString;

use super::decide::{Decision, class_of, decide, has_exclusive_class, loss};
use super::notice::{Matter, Notice, Problem};
use super::pools::{PoolUse, Pools};
use super::queue::Queue;
use super::waiting::Wait;
use crate::config::ServiceRanges;
use crate::model::{BalancedService, ObjectName};
use crate::net::Family;

/// All Services, and who has which address.
pub struct Allocator {
    /// `--loadbalancer-default-class`.
    takes_default: bool,
    /// Says which entries of `externalIPs` count.
    ranges: ServiceRanges,
    /// `None`: the pools are not known completely, so nothing is decided.
    pub(super) pools: Option<Pools>,
    is_listed: bool,
    pub(super) services: BTreeMap<ObjectName, Entry>,
    users: BTreeMap<IpAddr, BTreeSet<ObjectName>>,
    /// Number of Services that have an address with a sharing key, by namespace and key.
    shared: BTreeMap<(CompactString, CompactString), BTreeMap<IpAddr, usize>>,
    pub(super) waiting: BTreeMap<Wait, BTreeSet<Rank>>,
    undecided: BTreeSet<Rank>,
    /// Addresses that came free, or whose users are others or have changed, and pools with an address that came free: to be offered.
    freed: BTreeSet<Wait>,
    pub(super) due: Queue,
    pub(super) expiring: BTreeSet<(Instant, ObjectName)>,
    notices: Vec<Notice>,
    /// Problems that Services had and have no more.
    over: Vec<(ObjectName, Problem)>,
    wanting: usize,
    /// Number of decisions about one Service.
    #[cfg(test)]
    pub(super) decisions: std::cell::Cell<usize>,
}

/// One Service.
#[derive(Debug)]
pub struct Entry {
    pub(super) service: Arc<BalancedService>,
    /// As decided.
    pub(super) given: Vec<IpAddr>,
    /// Addresses of writes for this version that may still take effect.
    pub(super) sent: Vec<IpAddr>,
    /// Addresses for which it stands among their users.
    counted: BTreeSet<IpAddr>,
    /// The version that the write which is on its way is for.
    pub(super) in_flight: Option<CompactString>,
    /// Addresses of the status that were given and are to leave it, also where it is another allocator's now.
    pub(super) to_clear: Vec<IpAddr>,
    /// When writes without a known outcome cannot take effect any more.
    pub(super) expires: Option<Instant>,
    pub(super) due: Option<Instant>,
    pub(super) pause: Duration,
    /// Addresses of the status that a write of ours brought there, also one without an answer.
    brought: Vec<IpAddr>,
    /// The last write that took effect.
    pub(super) written: Option<(Instant, Vec<IpAddr>)>,
    /// When the last write that failed was over, and the version and addresses that it was for.
    pub(super) failed: Option<(Instant, CompactString, Vec<IpAddr>)>,
    /// Addresses of the status that are to leave it, as told.
    taken: Vec<IpAddr>,
    pub(super) problems: Vec<Problem>,
    /// Annotations that are misspelt, as told.
    remarks: Vec<String>,
    pub(super) waits: Vec<Wait>,
}

/// The order in which Services are decided about: by age, then by name.
pub type Rank = (i64, ObjectName);

/// The first pause before a failed write is tried again, or one that others undid; it doubles up to the last.
pub(super) const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The part of a pause, one in so many, after which a write is tried again of which something has changed.
pub(super) const MENDED: u32 = 16;
pub(super) const LAST_PAUSE: Duration = Duration::from_secs(300);

impl Allocator {
    /// Knows nothing yet.
    pub fn new(takes_default: bool, ranges: ServiceRanges) -> Allocator {
        Allocator {
            takes_default,
            ranges,
            pools: None,
            is_listed: false,
            services: BTreeMap::new(),
            users: BTreeMap::new(),
            shared: BTreeMap::new(),
            waiting: BTreeMap::new(),
            undecided: BTreeSet::new(),
            freed: BTreeSet::new(),
            due: Queue::default(),
            expiring: BTreeSet::new(),
            notices: Vec::new(),
            over: Vec::new(),
            wanting: 0,
            #[cfg(test)]
            decisions: Default::default(),
        }
    }

    /// Replaces the pools; `None` while they are not known completely.
    pub fn set_pools(&mut self, pools: Option<Pools>, now: Instant) {
        self.pools = pools;
        if let Some(pools) = &mut self.pools {
            self.users.keys().for_each(|address| pools.take(*address));
        }
        self.waiting.clear();
        self.freed.clear();
        self.undecided.extend(self.services.iter().map(|(name, entry)| entry.rank(name)));
        self.services.values_mut().for_each(|entry| entry.waits.clear());
        self.settle(now);
    }

    /// Replaces all Services by a list, at this resourceVersion of the list.
    pub fn list(&mut self, all: Vec<(ObjectName, Arc<BalancedService>)>, version: &str, now: Instant) {
        let named: BTreeSet<ObjectName> = all.iter().map(|(name, _)| name.clone()).collect();
        let gone: Vec<ObjectName> = self.services.keys().filter(|name| !named.contains(*name)).cloned().collect();
        gone.iter().for_each(|name| self.forget(name, version));
        all.into_iter().for_each(|(name, service)| self.take_in(name, service, now));
        self.is_listed = true;
        self.settle(now);
    }

    /// Updates one Service and gives what follows.
    pub fn observe(&mut self, name: ObjectName, service: Arc<BalancedService>, now: Instant) {
        self.take_in(name, service, now);
        self.settle(now);
    }

    /// Notes that a Service was gone at this resourceVersion.
    pub fn gone(&mut self, name: &ObjectName, version: &str, now: Instant) {
        self.forget(name, version);
        self.settle(now);
    }

    /// Returns what there is to tell since the last call.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// Returns the problems that are over since the last call.
    pub fn take_over(&mut self) -> Vec<(ObjectName, Problem)> {
        let over = std::mem::take(&mut self.over);
        over.into_iter().filter(|(service, problem)| !self.has_problem(service, problem)).collect()
    }

    /// Returns whether a Service has a problem now.
    pub fn has_problem(&self, service: &ObjectName, problem: &Problem) -> bool {
        self.services.get(service).is_some_and(|entry| entry.problems.contains(problem))
    }

    /// The use of the pools.
    pub fn pool_uses(&self) -> Vec<PoolUse> {
        self.pools.iter().flat_map(Pools::uses).collect()
    }

    /// Number of Services that lack an address.
    pub fn wanting(&self) -> usize {
        self.wanting
    }

    pub(super) fn takes_default(&self) -> bool {
        self.takes_default
    }

    /// Returns whether there is a complete view to decide from.
    pub(super) fn is_ready(&self) -> bool {
        self.pools.is_some() && self.is_listed
    }

    pub(super) fn users(&self, address: IpAddr) -> impl Iterator<Item = (&ObjectName, &Entry)> {
        let names = self.users.get(&address).into_iter().flatten();
        names.filter_map(|name| Some((name, self.services.get(name)?)))
    }

    pub(super) fn is_undecided(&self, name: &ObjectName, entry: &Entry) -> bool {
        self.undecided.contains(&entry.rank(name))
    }

    /// The addresses that Services of the same namespace have with the same sharing key.
    pub(super) fn shared_addresses(
        &self,
        name: &ObjectName,
        service: &BalancedService,
    ) -> impl Iterator<Item = IpAddr> {
        let key = service.sharing_key.as_ref().map(|key| ((*name.namespace).clone(), key.clone()));
        key.and_then(|key| self.shared.get(&key)).into_iter().flatten().map(|(address, _)| *address)
    }

    pub(super) fn is_of_pools(&self, address: IpAddr) -> bool {
        self.pools.as_ref().is_some_and(|pools| pools.name_address(address))
    }

    /// Updates one Service without deciding anything.
    fn take_in(&mut self, name: ObjectName, mut service: Arc<BalancedService>, now: Instant) {
        // What nodes do not serve takes no address out of a pool: anybody may write it.
        if service.external_ips.iter().any(|address| !self.ranges.allow_external_ip(*address)) {
            Arc::make_mut(&mut service).external_ips.retain(|address| self.ranges.allow_external_ip(*address));
        }
        let known = self.services.get(&name);
        if known.is_some_and(|entry| is_older(&service.version, &entry.service.version) || entry.service == service) {
            return;
        }
        let is_another = |entry: &Entry| entry.service.uid != service.uid || entry.service.created != service.created;
        if known.is_some_and(is_another) {
            // Another Service of the same name.
            self.drop_entry(&name);
        }
        self.tell_given(&name, &service, now);
        self.services.entry(name.clone()).or_insert_with(|| Entry::new(service.clone()));
        let mut is_new_version = false;
        self.change(&name, |entry| {
            is_new_version = entry.service.version != service.version;
            let before = std::mem::replace(&mut entry.service, service);
            let status = &entry.service.status;
            if is_new_version {
                let is_brought = |it: &IpAddr| status.contains(it) && !before.status.contains(it);
                entry.brought.extend(entry.sent.drain(..).filter(is_brought));
            }
            entry.brought.retain(|address| status.contains(address));
            entry.to_clear.retain(|address| status.contains(address));
        });
        if is_new_version {
            self.stop_expiring(&name);
        }
        let Some(entry) = self.services.get(&name) else { return };
        self.undecided.insert(entry.rank(&name));
        // Whoever has one of these addresses too may have lost it, and whoever waits for one may have it. What changes of `externalIPs` moves nobody, and what
        // goes of them is offered by itself: anybody may write them, as many as there is room for.
        for address in entry.has() {
            let has_too = self.users(address).filter(|(_, other)| other.has().contains(&address));
            let users: Vec<Rank> = has_too.map(|(name, entry)| entry.rank(name)).collect();
            self.undecided.extend(users);
            self.freed.insert(Wait::Address(address));
        }
    }

    /// Forgets a Service, unless it is known in a newer version.
    pub(super) fn forget(&mut self, name: &ObjectName, version: &str) {
        let known = self.services.get(name);
        if known.is_some_and(|entry| !is_older(version, &entry.service.version)) {
            self.drop_entry(name);
        }
    }

    fn drop_entry(&mut self, name: &ObjectName) {
        let Some(entry) = self.services.get(name) else { return };
        let (rank, before) = (entry.rank(name), entry.counted.clone());
        self.wanting -= usize::from(entry.problems.iter().any(Problem::is_lack));
        self.over.extend(entry.problems.iter().map(|problem| (name.clone(), problem.clone())));
        self.count_shared(name, false);
        self.set_waits(name, Vec::new());
        self.unschedule(name);
        self.stop_expiring(name);
        self.undecided.remove(&rank);
        self.services.remove(name);
        self.reindex(name, &before, &BTreeSet::new());
    }

    /// Changes an entry, and keeps up to date who uses which address.
    pub(super) fn change(&mut self, name: &ObjectName, change: impl FnOnce(&mut Entry)) {
        self.count_shared(name, false);
        let Some(entry) = self.services.get_mut(name) else { return };
        let (before, former) = (std::mem::take(&mut entry.counted), entry.given.clone());
        change(entry);
        let after = entry.uses();
        entry.counted.clone_from(&after);
        if entry.service.sharing_key.is_some() {
            let new = entry.given.iter().filter(|address| !former.contains(address));
            self.freed.extend(new.copied().map(Wait::Address));
        }
        self.count_shared(name, true);
        self.reindex(name, &before, &after);
    }

    fn reindex(&mut self, name: &ObjectName, before: &BTreeSet<IpAddr>, after: &BTreeSet<IpAddr>) {
        for address in before.difference(after) {
            self.freed.insert(Wait::Address(*address));
            let Some(users) = self.users.get_mut(address) else { continue };
            users.remove(name);
            if users.is_empty() {
                self.users.remove(address);
                if let Some(pools) = &mut self.pools {
                    pools.put_back(*address);
                    self.freed.extend(pools.pool_of(*address).map(|pool| Wait::Pool(pool, Family::from(*address))));
                }
            }
        }
        for address in after.difference(before) {
            let users = self.users.entry(*address).or_default();
            if let (true, Some(pools)) = (users.is_empty(), &mut self.pools) {
                pools.take(*address);
            }
            users.insert(name.clone());
        }
    }

    /// Counts a Service among those that have addresses with its sharing key, or no longer.
    fn count_shared(&mut self, name: &ObjectName, is_there: bool) {
        let Some(entry) = self.services.get(name) else { return };
        let Some(key) = &entry.service.sharing_key else { return };
        if class_of(&entry.service, self.takes_default).is_none() {
            return;
        }
        let key = ((*name.namespace).clone(), key.clone());
        for address in &entry.given {
            let of_key = self.shared.entry(key.clone()).or_default();
            let count = of_key.entry(*address).or_default();
            *count = if is_there { *count + 1 } else { count.saturating_sub(1) };
            if *count == 0 {
                of_key.remove(address);
            }
        }
        if self.shared.get(&key).is_some_and(BTreeMap::is_empty) {
            self.shared.remove(&key);
        }
    }

    /// Decides about everybody about whom there is something to decide.
    pub(super) fn settle(&mut self, now: Instant) {
        if !self.is_ready() {
            return;
        }
        loop {
            if let Some((_, name)) = self.undecided.pop_first() {
                self.decide_one(&name, None, now);
            } else if let Some(wait) = self.freed.pop_first() {
                self.offer(&wait, now);
            } else {
                return;
            }
        }
    }

    /// Decides about one Service; `offered`: an address that it might come to share.
    pub(super) fn decide_one(&mut self, name: &ObjectName, offered: Option<IpAddr>, now: Instant) {
        let (Some(pools), Some(entry)) = (&self.pools, self.services.get(name)) else { return };
        #[cfg(test)]
        self.decisions.set(self.decisions.get() + 1);
        let Decision { given, problems, waits } = decide(self, pools, name, entry, offered);
        let is_new = |problem: &&Problem| !entry.problems.contains(problem);
        let notice = |matter| Notice { service: name.clone(), uid: entry.service.uid.clone(), at: now, matter };
        let is_ours = class_of(&entry.service, self.takes_default).is_some();
        let remarks = if is_ours { entry.service.misspelt.clone() } else { Vec::new() };
        let is_odd = remarks.iter().any(|remark| !entry.remarks.contains(remark));
        let odd = is_odd.then(|| Matter::Misspelt(remarks.join("; ")));
        let wanting = problems.iter().filter(is_new).cloned().map(Matter::Wanting);
        let notices: Vec<Notice> = wanting.chain(odd).map(notice).collect();
        let over = entry.problems.iter().filter(|problem| !problems.contains(problem));
        self.over.extend(over.map(|problem| (name.clone(), problem.clone())));
        self.wanting -= usize::from(entry.problems.iter().any(Problem::is_lack));
        self.wanting += usize::from(problems.iter().any(Problem::is_lack));
        self.notices.extend(notices);
        // Whoever is no load balancer has addresses of pools from the time when it was one, and whoever is another allocator's has those that were written here from
        // the time when it was not. A Service without a class keeps them where those are no longer taken for ours: whoever is to give it others says so.
        let may_be_left = is_ours || !entry.service.is_balancer || has_exclusive_class(&entry.service);
        let is_left = |address: &&IpAddr| {
            entry.service.is_given_here && may_be_left || !entry.service.is_balancer && pools.name_address(**address)
        };
        let left = entry.service.status.iter().filter(is_left).copied().collect();
        self.change(name, |entry| {
            entry.give(given, left);
            (entry.problems, entry.remarks) = (problems, remarks);
        });
        self.set_waits(name, waits);
        self.tell_taken(name, now);
        self.schedule(name, now);
    }

    /// Tells of addresses that are to leave the status of a Service that goes on to get addresses.
    fn tell_taken(&mut self, name: &ObjectName, now: Instant) {
        let (Some(pools), Some(entry)) = (&self.pools, self.services.get(name)) else { return };
        let stays = self.desired(entry);
        let leaves = |address: &&IpAddr| stays.as_ref().is_some_and(|stays| !stays.contains(address));
        let taken: Vec<IpAddr> = entry.service.status.iter().filter(leaves).copied().collect();
        let uid = entry.service.uid.clone();
        let notice = |(address, loss)| Notice {
            service: name.clone(),
            uid: uid.clone(),
            at: now,
            matter: Matter::TakenAway(address, loss),
        };
        let new = taken.iter().filter(|address| !entry.taken.contains(address));
        let losses = new.filter_map(|address| Some((*address, loss(self, pools, name, entry, *address)?)));
        let notices: Vec<Notice> = losses.map(notice).collect();
        self.notices.extend(notices);
        if let Some(entry) = self.services.get_mut(name) {
            entry.taken = taken;
        }
    }

    /// Tells of addresses that a write of ours has brought into the status.
    fn tell_given(&mut self, name: &ObjectName, service: &BalancedService, now: Instant) {
        let Some(entry) = self.services.get(name) else { return };
        let is_new = |address: &&IpAddr| entry.sent.contains(address) && !entry.service.status.contains(address);
        let pool = |address: IpAddr| {
            let pools = self.pools.as_ref()?;
            Some(pools.name(pools.pool_of(address)?).into())
        };
        let notices = service.status.iter().filter(is_new).map(|address| Notice {
            service: name.clone(),
            uid: service.uid.clone(),
            at: now,
            matter: Matter::Given { address: *address, pool: pool(*address).unwrap_or_default() },
        });
        let notices: Vec<Notice> = notices.collect();
        self.notices.extend(notices);
    }
}

impl Entry {
    fn new(service: Arc<BalancedService>) -> Entry {
        Entry {
            service,
            given: Vec::new(),
            sent: Vec::new(),
            counted: BTreeSet::new(),
            in_flight: None,
            to_clear: Vec::new(),
            expires: None,
            due: None,
            pause: FIRST_PAUSE,
            brought: Vec::new(),
            written: None,
            failed: None,
            taken: Vec::new(),
            problems: Vec::new(),
            remarks: Vec::new(),
            waits: Vec::new(),
        }
    }

    /// Returns whether an address of the status was brought there by a write that is known, or is to leave it. What was only found there may be another
    /// allocator's.
    pub(super) fn is_from_here(&self, address: IpAddr) -> bool {
        let is_written = self.written.as_ref().is_some_and(|(_, addresses)| addresses.contains(&address));
        let is_ours = is_written || self.brought.contains(&address);
        is_ours && self.given.contains(&address) || self.to_clear.contains(&address)
    }

    /// Notes what is decided. Addresses that a write brought into the status and that are given no longer are to leave it, as are those that
    /// are `left` there.
    fn give(&mut self, given: Vec<IpAddr>, left: Vec<IpAddr>) {
        let former: Vec<IpAddr> = self.given.iter().copied().filter(|address| self.is_from_here(*address)).collect();
        self.given = given;
        self.to_clear.extend(former.into_iter().chain(left).chain(self.brought.iter().copied()));
        self.to_clear.retain(|address| self.service.status.contains(address) && !self.given.contains(address));
        self.to_clear.sort_unstable();
        self.to_clear.dedup();
    }

    pub(super) fn rank(&self, name: &ObjectName) -> Rank {
        (self.service.created, name.clone())
    }

    /// Every address that the Service uses: what it has or may still get, and its `externalIPs`.
    fn uses(&self) -> BTreeSet<IpAddr> {
        let externals = self.service.external_ips.iter().copied();
        self.has().into_iter().chain(externals).collect()
    }

    /// Every address that the Service has or may still get from an allocator.
    fn has(&self) -> BTreeSet<IpAddr> {
        [&self.given, &self.sent, &self.service.status].into_iter().flatten().copied().collect()
    }

    /// Returns whether an address is in the status, or may get there by a write that was begun.
    pub(super) fn has_or_gets(&self, address: IpAddr) -> bool {
        self.service.status.contains(&address) || self.sent.contains(&address)
    }
}

/// Returns whether the first of two resourceVersions is the older one. They are numbers of one sequence (KEP-5504); of what is none
/// the later observation counts.
fn is_older(one: &str, other: &str) -> bool {
    match (one.parse::<u64>(), other.parse::<u64>()) {
        (Ok(one), Ok(other)) => one < other,
        _ => false,
    }
}
