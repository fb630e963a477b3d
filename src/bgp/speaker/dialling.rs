//! Pace of dials to neighbours that do not answer.
//!
//! Thousands of nodes may be down for long, and dialling each of them every half a minute would cost a good part of a
//! processor. All of them together are dialled at most ten times a second: the more there are, the longer each waits. New
//! neighbours, and those lost less than half a minute ago, are dialled without regard to the others, and so are
//! neighbours that do not dial us.
//!
//! A node that comes back dials us at once, so that it does not wait for our turn. Where the network was cut, both sides
//! wait. So one half of the dials goes to all alike, and the other half to those that were lost last: each of them waits no longer
//! than half the time that it has been silent, or two seconds for it and each one lost after it, whichever is longer. With `n` of
//! them these are at most half the sum of `1/1 + 1/2 + … + 1/n` dials a second, five for 10,000. And each neighbour that answers after a
//! long silence makes us dial some others at once, half of them with addresses near to its own, which may be in the same
//! rack: if these answer as well, all are back within seconds; if not, it has cost a few dials.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Bound;
use std::time::{Duration, Instant};

/// Neighbours that dial us as well and do not answer.
#[derive(Debug, Default)]
pub(super) struct Unanswering {
    all: BTreeMap<IpAddr, Instant>,
    /// The same, with the time since when each is silent: the one lost last comes last.
    by_silence: BTreeSet<(Instant, IpAddr)>,
    /// Those to dial ahead of their time.
    ahead: BTreeSet<IpAddr>,
    /// The last one of these that had its turn.
    last: Option<IpAddr>,
}

/// Average time between two dials of the half that goes to all alike.
const BETWEEN: Duration = Duration::from_millis(200);
/// Time between two dials of the one lost last; the next one before it waits twice as long, and so on.
const LOST_LAST: Duration = Duration::from_secs(2);
/// Time without a session from which on it is a long silence.
const SILENCE: Duration = Duration::from_secs(30);
/// Number of neighbours dialled for one that has answered after a long silence: next to it on either side in the order of
/// addresses, and in turn.
const NEAR: usize = 4;
const IN_TURN: usize = 8;

impl Unanswering {
    /// Records that a neighbour does not answer, and since when; `None`: it answers, or nobody dials it.
    pub fn note(&mut self, address: IpAddr, silent_since: Option<Instant>) {
        let before = match silent_since {
            Some(since) => self.all.insert(address, since),
            None => self.all.remove(&address),
        };
        if before != silent_since {
            before.map(|before| self.by_silence.remove(&(before, address)));
            self.by_silence.extend(silent_since.map(|since| (since, address)));
        }
    }

    /// Records that the session of a neighbour is established. `ended`: the end of the one before.
    pub fn answered(&mut self, address: IpAddr, ended: Option<Instant>, now: Instant) {
        // One that comes and goes says nothing about the others.
        let long = ended.is_none_or(|ended| now.saturating_duration_since(ended) >= SILENCE);
        let was_silent = self.all.contains_key(&address);
        self.note(address, None);
        if was_silent && long {
            let above = self.all.range((Bound::Excluded(address), Bound::Unbounded)).take(NEAR);
            let below = self.all.range(..address).rev().take(NEAR);
            self.ahead.extend(above.chain(below).map(|(address, _)| *address));
            (0..IN_TURN).for_each(|_| self.take_turn());
        }
    }

    /// Minimum time between two dials of one of them that has been silent since then.
    pub fn spread(&self, silent_since: Instant, now: Instant) -> Duration {
        let alike = BETWEEN * u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        let silence = now.saturating_duration_since(silent_since);
        // Those lost at the same time have the same place. They are counted as far as it matters.
        let most = 1 + self.all.len() / 10;
        let since = (silent_since, IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let place = self.by_silence.range(since..).take(most).count().max(1);
        let lost_last = LOST_LAST * u32::try_from(place).unwrap_or(u32::MAX);
        alike.min(lost_last.max(silence / 2))
    }

    /// Next neighbour to dial ahead of its time.
    pub fn next(&mut self) -> Option<IpAddr> {
        self.ahead.pop_first()
    }

    fn take_turn(&mut self) {
        let after = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let mut in_turn = self.all.range((after, Bound::Unbounded)).chain(&self.all).map(|(address, _)| *address);
        if let Some(next) = in_turn.find(|address| !self.ahead.contains(address)) {
            self.last = Some(next);
            self.ahead.insert(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        IpAddr::V4((0xc000_0200 + number).into())
    }

    #[test]
    fn who_answers_lets_others_be_dialled_in_turn() {
        let (mut unanswering, now) = (Unanswering::default(), Instant::now());
        (0..40).for_each(|number| unanswering.note(address(number), Some(now)));
        assert_eq!(unanswering.next(), None, "nobody has answered");
        unanswering.answered(address(5), None, now);
        let turns = |unanswering: &mut Unanswering| std::iter::from_fn(|| unanswering.next()).collect::<Vec<_>>();
        let first: Vec<IpAddr> = (0..17).filter(|number| *number != 5).map(address).collect();
        assert_eq!(turns(&mut unanswering), first);
        unanswering.answered(address(5), None, now);
        assert!(turns(&mut unanswering).is_empty(), "it has answered before");
        unanswering.answered(address(7), Some(now - Duration::from_secs(29)), now);
        assert!(turns(&mut unanswering).is_empty(), "it was away for a moment only");
        unanswering.answered(address(6), Some(now - Duration::from_secs(30)), now);
        let next: Vec<IpAddr> = [1, 2, 3, 4].into_iter().chain(8..12).chain(17..25).map(address).collect();
        assert_eq!(turns(&mut unanswering), next, "those next to it, and the next in turn");
    }

    #[test]
    fn the_more_do_not_answer_the_longer_each_waits() {
        let (mut unanswering, now) = (Unanswering::default(), Instant::now());
        let spread = |unanswering: &Unanswering, silence: u64| {
            let since = now + Duration::from_secs(2000) - Duration::from_secs(silence);
            unanswering.spread(since, now + Duration::from_secs(2000)).as_secs()
        };
        assert_eq!(spread(&unanswering, 2000), 0);
        (0..5000).for_each(|number| unanswering.note(address(number), Some(now)));
        assert_eq!(spread(&unanswering, 2000), 1000);
        let later = now + Duration::from_secs(1820);
        (6000..6010).for_each(|number| unanswering.note(address(number), Some(later)));
        assert_eq!(spread(&unanswering, 180), 90, "those lost last do not wait for the others");
        (6010..6200).for_each(|number| unanswering.note(address(number), Some(later)));
        assert_eq!(spread(&unanswering, 180), 400, "but for each other");
        (0..7000).for_each(|number| unanswering.note(address(number), None));
        assert_eq!(spread(&unanswering, 2000), 0);
        assert!(unanswering.by_silence.is_empty());
    }
}
