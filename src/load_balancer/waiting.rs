//! Services that wait for something, and to whom it is offered when there is something left of it.
//!
//! A Service that lacks an address waits for the one that it asks for, or for the pools that are for it and, with a sharing key, for an address
//! that others of that key have. Whatever may have brought such an address about is offered: one that came free, one of a Service that was
//! given it, and those of a Service that has changed.

use std::net::IpAddr;
use std::ops::Bound;
use std::time::Instant;

use compact_str::CompactString;

use super::allocator::{Allocator, Rank};
use super::decide::{MOST_SHARED, may_come_to_share, may_have};
use super::pools::PoolId;
use crate::model::ObjectName;
use crate::net::Family;

/// An address or a pool that a Service waits for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Wait {
    Address(IpAddr),
    Pool(PoolId, Family),
    /// An address of Services of a namespace with a sharing key.
    Shared(CompactString, CompactString, Family),
}

impl Allocator {
    /// Lets those who wait for something try again, the oldest first, while there is something left of it.
    pub(super) fn offer(&mut self, wait: &Wait, now: Instant) {
        let mut last: Option<Rank> = None;
        let is_left = loop {
            if !self.is_left(wait) {
                break false;
            }
            // Very many may wait for an address that others share with each other.
            let may_be_otherwise = |(_, name): &Rank| {
                let Wait::Address(address) = wait else { return true };
                let known = self.pools.as_ref().zip(self.services.get(name));
                known.is_some_and(|(pools, entry)| may_have(self, pools, name, entry, *address))
            };
            let Some(rank) = self.next_waiting(wait, last.as_ref(), may_be_otherwise) else { break true };
            self.decide_one(&rank.1, None, now);
            last = Some(rank);
        };
        if let Wait::Address(address) = wait {
            if !is_left {
                self.offer_to_users(*address, now);
            }
            self.offer_to_share(*address, now);
        }
    }

    fn is_left(&self, wait: &Wait) -> bool {
        match wait {
            Wait::Pool(pool, family) => {
                self.pools.as_ref().is_some_and(|pools| pools.first_free(*pool, *family).is_some())
            }
            Wait::Address(address) => self.has_room(*address),
            // It is offered with the address.
            Wait::Shared(..) => false,
        }
    }

    /// The first one behind the last that waits for something and to whom it might be given.
    fn next_waiting(&self, wait: &Wait, last: Option<&Rank>, is_worth_it: impl Fn(&Rank) -> bool) -> Option<Rank> {
        let ranks = self.waiting.get(wait)?;
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        ranks.range((from, Bound::Unbounded)).find(|rank| is_worth_it(rank)).cloned()
    }

    /// Returns whether a Service that does not use an address might have it: very many may wait for one that is never to be had.
    fn has_room(&self, address: IpAddr) -> bool {
        let mut users = self.users(address).take(MOST_SHARED);
        let all_share = users.all(|(_, entry)| entry.service.sharing_key.is_some());
        all_share && self.users(address).take(MOST_SHARED).count() < MOST_SHARED
    }

    /// Lets those try again who use an address already and wait for it, because of others.
    fn offer_to_users(&mut self, address: IpAddr, now: Instant) {
        let Some(waiting) = self.waiting.get(&Wait::Address(address)) else { return };
        // Each of more than that has too many beside itself.
        if self.users(address).take(MOST_SHARED + 1).count() > MOST_SHARED {
            return;
        }
        let users = self.users(address).map(|(name, entry)| entry.rank(name));
        let both: Vec<Rank> = users.filter(|rank| waiting.contains(rank)).collect();
        both.iter().for_each(|rank| self.decide_one(&rank.1, None, now));
    }

    /// Lets those try again who wait for an address with the sharing key of its users. Very many may wait who cannot have it: they are only compared
    /// with its users.
    fn offer_to_share(&mut self, address: IpAddr, now: Instant) {
        let users_key = |(name, entry): (&ObjectName, &super::allocator::Entry)| {
            let key = entry.service.sharing_key.clone()?;
            Some(Wait::Shared((*name.namespace).clone(), key, Family::from(address)))
        };
        let Some(wait) = self.users(address).next().and_then(users_key) else { return };
        let mut last: Option<Rank> = None;
        while self.has_room(address) {
            let may_share = |(_, name): &Rank| {
                let known = self.pools.as_ref().zip(self.services.get(name));
                known.is_some_and(|(pools, entry)| may_come_to_share(self, pools, name, entry, address))
            };
            let Some(rank) = self.next_waiting(&wait, last.as_ref(), may_share) else { return };
            self.decide_one(&rank.1, Some(address), now);
            last = Some(rank);
        }
    }

    pub(super) fn set_waits(&mut self, name: &ObjectName, waits: Vec<Wait>) {
        let Some(entry) = self.services.get_mut(name) else { return };
        let rank = entry.rank(name);
        for wait in std::mem::replace(&mut entry.waits, waits.clone()) {
            if let Some(ranks) = self.waiting.get_mut(&wait) {
                ranks.remove(&rank);
                if ranks.is_empty() {
                    self.waiting.remove(&wait);
                }
            }
        }
        for wait in waits {
            self.waiting.entry(wait).or_default().insert(rank.clone());
        }
    }
}
