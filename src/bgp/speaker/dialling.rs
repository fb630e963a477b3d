//! Pace of dials to neighbours that do not answer.
//!
//! Thousands of nodes may be down for long, and dialling each of them every half a minute would cost a good part of a
//! processor. All of them together are dialled ten times a second: the more there are, the longer each waits. New
//! neighbours, and those lost less than half a minute ago, are dialled without regard to the others, and so are
//! neighbours that do not dial us.
//!
//! A node that comes back dials us at once, so that it does not wait for our turn. Where the network was cut, both sides
//! wait. So each neighbour that answers after a long silence makes us dial some others at once: if these answer as well,
//! all are back within seconds; if not, it has cost a few dials.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::Bound;
use std::time::{Duration, Instant};

/// Neighbours that dial us as well and do not answer.
#[derive(Debug, Default)]
pub(super) struct Unanswering {
    all: BTreeSet<IpAddr>,
    /// The last one dialled ahead of its time.
    last: Option<IpAddr>,
    /// Number of dials to make ahead of their time.
    credit: usize,
}

/// Average time between two dials, whoever is dialled.
const BETWEEN: Duration = Duration::from_millis(100);
/// Time without a session from which on it is a long silence.
const SILENCE: Duration = Duration::from_secs(30);
/// Number of dials for a neighbour that has answered after a long silence.
const OTHERS: usize = 16;

impl Unanswering {
    /// Records whether a neighbour does not answer.
    pub fn note(&mut self, address: IpAddr, unanswering: bool) {
        if unanswering {
            self.all.insert(address);
        } else {
            self.all.remove(&address);
        }
    }

    /// Records that the session of a neighbour is established. `ended`: the end of the one before.
    pub fn answered(&mut self, address: IpAddr, ended: Option<Instant>, now: Instant) {
        // One that comes and goes says nothing about the others.
        let long = ended.is_none_or(|ended| now.saturating_duration_since(ended) >= SILENCE);
        if self.all.remove(&address) && long {
            self.credit = (self.credit + OTHERS).min(self.all.len());
        }
    }

    /// Minimum time between two dials of each of them.
    pub fn spread(&self) -> Duration {
        BETWEEN * u32::try_from(self.all.len()).unwrap_or(u32::MAX)
    }

    /// Next neighbour to dial ahead of its time, each in turn.
    pub fn next(&mut self) -> Option<IpAddr> {
        self.credit = self.credit.checked_sub(1)?;
        let after = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.all.range((after, Bound::Unbounded)).next().or_else(|| self.all.first());
        self.last = next.copied();
        self.last
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
        (0..40).for_each(|number| unanswering.note(address(number), true));
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
        assert_eq!(turns(&mut unanswering).first(), Some(&address(17)), "the next ones");
    }

    #[test]
    fn the_more_do_not_answer_the_longer_each_waits() {
        let mut unanswering = Unanswering::default();
        assert_eq!(unanswering.spread(), Duration::ZERO);
        (0..5000).for_each(|number| unanswering.note(address(number), true));
        assert_eq!(unanswering.spread(), Duration::from_secs(500));
        (0..5000).for_each(|number| unanswering.note(address(number), false));
        assert_eq!(unanswering.spread(), Duration::ZERO);
    }
}
