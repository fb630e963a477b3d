//! Tenures of the Lease, by number: one that was lost and won again is another one, however short the time between. Without I/O.

use std::time::Instant;

/// The right to begin writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tenure {
    pub number: u64,
    /// No write is begun later.
    pub until: Instant,
}

/// The tenures of one candidate.
#[derive(Debug, Default)]
pub struct Tenures {
    number: u64,
    until: Option<Instant>,
}

impl Tenures {
    /// Returns the present tenure, by the time until which writes may be begun now: another one where there was none a moment ago,
    /// and where the time of the last one had run out before it was prolonged.
    pub fn follow(&mut self, until: Option<Instant>, now: Instant) -> Option<Tenure> {
        let is_new = until.is_some() && until != self.until && self.until.is_none_or(|last| last <= now);
        self.number += u64::from(is_new);
        self.until = until;
        until.map(|until| Tenure { number: self.number, until })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_tenure_goes_on_while_it_is_prolonged_in_time_and_is_another_one_after_any_gap() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut tenures = Tenures::default();
        let mut number = |until, now| tenures.follow(until, now).map(|tenure| tenure.number);
        assert_eq!(number(None, at(0)), None);
        assert_eq!(number(Some(at(10)), at(1)), Some(1));
        assert_eq!(number(Some(at(12)), at(3)), Some(1), "prolonged");
        assert_eq!(number(Some(at(12)), at(13)), Some(1), "over, and not prolonged");
        assert_eq!(number(Some(at(24)), at(14)), Some(2), "somebody else may have had it");
        assert_eq!(number(None, at(15)), None);
        assert_eq!(number(Some(at(26)), at(16)), Some(3), "somebody else had it");
    }
}
