//! The ConfigMap of the pools as it is known, and for how long it stays in force when it cannot be read or is gone. Without I/O.
//!
//! A ConfigMap that is replaced by deleting and creating it is gone for a moment, and a role that is being edited forbids what it will
//! allow: neither may take the addresses of Services away.

use std::time::{Duration, Instant};

use crate::k8s::allocation::follow::PoolsSeen;
use crate::k8s::parse::address_pools::POOLS;
use crate::model::AddressPools;

/// The pools of one leadership.
#[derive(Clone, Default, Debug)]
pub struct KnownPools {
    /// `None`: nothing is known yet.
    pools: Option<AddressPools>,
    /// A pool has no version that can be read.
    is_unknown: bool,
    /// This process has read the ConfigMap, under an earlier leadership perhaps, and has not seen since that there is none.
    has_read: bool,
    absent_since: Option<Instant>,
    forbidden_since: Option<Instant>,
}

/// For so long the pools of a ConfigMap that is gone stay in force.
pub const GRACE: Duration = Duration::from_secs(300);
/// For so long the right has to be missing before a ConfigMap that was never read counts as not there. A server that has just started
/// forbids what it will allow.
const FORBIDDEN_FOR_GOOD: Duration = Duration::from_secs(60);

impl KnownPools {
    /// Another leadership begins: pools may have changed since the last one.
    pub fn begin(&mut self) {
        *self = KnownPools { has_read: self.has_read, ..KnownPools::default() };
    }

    /// Notes what was seen. Returns whether something changed.
    pub fn see(&mut self, seen: PoolsSeen, now: Instant) -> bool {
        let before = self.clone();
        match seen {
            PoolsSeen::Is(read) => {
                let (pools, is_unknown) = read.or_last_good(self.pools.as_ref().unwrap_or(&AddressPools::default()));
                *self = KnownPools { pools: Some(pools), is_unknown, has_read: true, ..KnownPools::default() };
            }
            PoolsSeen::Absent => {
                self.forbidden_since = None;
                if self.pools.as_ref().is_some_and(|pools| *pools != AddressPools::default()) {
                    self.absent_since.get_or_insert(now);
                } else {
                    (self.pools, self.has_read) = (Some(AddressPools::default()), false);
                }
            }
            PoolsSeen::Forbidden => {
                self.absent_since = None;
                self.forbidden_since.get_or_insert(now);
            }
        }
        self.tick(now);
        self.differs(&before)
    }

    /// Lets time pass. Returns whether something changed.
    pub fn tick(&mut self, now: Instant) -> bool {
        let is_over = |since: Option<Instant>, time| since.is_some_and(|since| now >= since + time);
        let is_gone = is_over(self.absent_since, GRACE);
        let is_never_there =
            self.pools.is_none() && !self.has_read && is_over(self.forbidden_since, FORBIDDEN_FOR_GOOD);
        if is_gone || is_never_there {
            (self.pools, self.is_unknown, self.absent_since) = (Some(AddressPools::default()), false, None);
            self.has_read = false;
        }
        is_gone || is_never_there
    }

    /// The pools as last read, those that cannot be read included; `None` while nothing is known.
    pub fn last(&self) -> Option<&AddressPools> {
        self.pools.as_ref()
    }

    /// Returns whether a pool has no version that can be read, so that nothing may be decided.
    pub fn is_unknown(&self) -> bool {
        self.is_unknown
    }

    /// Why the pools are not those of the ConfigMap as it is.
    pub fn note(&self) -> Option<String> {
        if self.absent_since.is_some() {
            let minutes = GRACE.as_secs() / 60;
            let rest = if self.is_unknown { "no address is given or taken away" } else { "its pools stay in force" };
            return Some(format!("the ConfigMap {POOLS} is gone; {rest} for {minutes} minutes"));
        }
        self.forbidden_since.filter(|_| self.has_read).map(|_| {
            let rest = match self.pools {
                Some(_) => "its pools stay as they were",
                None => "no address is given or taken away",
            };
            format!("the right to read the ConfigMap {POOLS} is missing (403); {rest}")
        })
    }

    fn differs(&self, before: &KnownPools) -> bool {
        self.pools != before.pools || self.is_unknown != before.is_unknown || self.note() != before.note()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{AddressPool, Selector};
    use crate::net::AddressRange;

    fn gold() -> AddressPools {
        let pool = AddressPool {
            name: "gold".into(),
            ranges: vec![AddressRange::parse("203.0.113.0/28").expect("a range")],
            namespaces: Vec::new(),
            selector: Selector::everything(),
            class: None,
            is_automatic: true,
        };
        AddressPools { pools: [("gold".into(), pool)].into_iter().collect(), ..AddressPools::default() }
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn pools_that_were_read_stay_while_the_right_to_read_them_is_missing() {
        let begun = Instant::now();
        let mut known = KnownPools::default();
        assert!(known.see(PoolsSeen::Is(gold()), begun));
        for after in [0, 61, 3600] {
            known.see(PoolsSeen::Forbidden, begun + seconds(after));
            assert_eq!(known.last(), Some(&gold()), "{after} s");
            assert!(known.note().is_some_and(|note| note.contains("403") && note.contains("stay as they were")));
        }
        assert!(known.see(PoolsSeen::Is(gold()), begun + seconds(3601)));
        assert_eq!(known.note(), None);
        known.begin();
        known.see(PoolsSeen::Forbidden, begun);
        known.see(PoolsSeen::Forbidden, begun + seconds(3600));
        assert_eq!(known.last(), None, "of the next leadership nothing is known, and nothing is decided");
        assert!(known.note().is_some_and(|note| note.contains("no address is given or taken away")));
    }

    #[test]
    fn a_configmap_that_was_never_read_counts_as_absent_only_after_a_minute_without_the_right() {
        let begun = Instant::now();
        let mut known = KnownPools::default();
        known.see(PoolsSeen::Forbidden, begun);
        known.see(PoolsSeen::Forbidden, begun + seconds(59));
        assert_eq!(known.last(), None);
        assert!(known.tick(begun + seconds(60)));
        assert_eq!((known.last(), known.note()), (Some(&AddressPools::default()), None));
        known.see(PoolsSeen::Is(gold()), begun + seconds(90));
        assert_eq!(known.last(), Some(&gold()));
    }

    #[test]
    fn a_configmap_that_was_seen_to_be_gone_is_waited_for_no_longer_than_one_that_was_never_read() {
        let begun = Instant::now();
        let mut known = KnownPools::default();
        known.see(PoolsSeen::Is(gold()), begun);
        known.see(PoolsSeen::Absent, begun);
        known.tick(begun + GRACE);
        known.begin();
        known.see(PoolsSeen::Forbidden, begun + GRACE);
        assert!(known.tick(begun + GRACE + FORBIDDEN_FOR_GOOD));
        assert_eq!((known.last(), known.note()), (Some(&AddressPools::default()), None));
        known.see(PoolsSeen::Is(gold()), begun + GRACE * 2);
        known.begin();
        known.see(PoolsSeen::Absent, begun + GRACE * 2);
        known.begin();
        known.see(PoolsSeen::Forbidden, begun + GRACE * 2);
        assert!(known.tick(begun + GRACE * 2 + FORBIDDEN_FOR_GOOD), "the leadership before saw that it was gone");
    }

    #[test]
    fn the_pools_of_a_configmap_that_is_gone_stay_for_minutes() {
        let begun = Instant::now();
        let mut known = KnownPools::default();
        known.see(PoolsSeen::Is(gold()), begun);
        assert!(known.see(PoolsSeen::Absent, begun), "a note begins");
        assert_eq!(known.last(), Some(&gold()));
        known.see(PoolsSeen::Is(gold()), begun + seconds(5));
        assert_eq!(known.note(), None);
        known.see(PoolsSeen::Absent, begun + seconds(10));
        assert!(!known.tick(begun + seconds(10) + GRACE - seconds(1)));
        assert_eq!(known.last(), Some(&gold()));
        assert!(known.tick(begun + seconds(10) + GRACE));
        assert_eq!((known.last(), known.note()), (Some(&AddressPools::default()), None));
    }

    #[test]
    fn without_a_configmap_nothing_is_waited_for_and_a_new_leadership_knows_nothing_of_an_earlier_one() {
        let begun = Instant::now();
        let mut known = KnownPools::default();
        assert!(known.see(PoolsSeen::Absent, begun));
        assert_eq!((known.last(), known.note()), (Some(&AddressPools::default()), None));
        known.see(PoolsSeen::Is(gold()), begun);
        known.begin();
        let unreadable =
            AddressPools { unreadable: [("gold".into(), "odd".into())].into_iter().collect(), ..Default::default() };
        known.see(PoolsSeen::Is(unreadable), begun);
        assert!(known.is_unknown(), "gold as it was an hour ago is no longer gold");
        // It may be deleted to be created again as it should be: until then nothing is taken away.
        known.see(PoolsSeen::Absent, begun);
        assert!(known.is_unknown());
        assert!(known.note().is_some_and(|note| note.ends_with("no address is given or taken away for 5 minutes")));
        known.tick(begun + GRACE);
        assert!(!known.is_unknown() && known.note().is_none());
    }
}
