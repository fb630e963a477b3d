//! How far the kernel is behind the cluster while rounds leave a part of a change to the next one.

use std::time::Instant;

/// Changes of which a part waits for a later round.
#[derive(Default, Debug)]
pub(super) struct Behind {
    /// Since when the first of them is known.
    since: Option<Instant>,
    /// Time of the last round, which the next one follows at once.
    pub last_round: Option<Instant>,
}

/// Outcome of a round, for whoever waits for a change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Left {
    /// It changed anything in the kernel.
    pub changed: bool,
    /// A part of what it began with waits.
    pub puts_off: bool,
    /// Something waits.
    pub goes_on: bool,
}

impl Behind {
    /// Returns since when the changes were known that are in the kernel with this round. `seen`: those that it began with.
    pub fn done_since(&mut self, seen: Option<Instant>, Left { changed, puts_off, goes_on }: Left) -> Option<Instant> {
        let (waiting, done) = if puts_off { (seen, None) } else { (None, seen.filter(|_| changed)) };
        self.since = self.since.into_iter().chain(waiting).min();
        let since = if goes_on { None } else { self.since.take() };
        since.into_iter().chain(done).min()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_large_change_is_done_with_its_last_part_and_a_small_one_that_comes_meanwhile_at_once() {
        let large = Instant::now();
        let small = large + Duration::from_secs(1);
        let mut behind = Behind::default();
        let goes_on = Left { changed: true, puts_off: false, goes_on: true };
        let (puts_off, ends) = (Left { puts_off: true, ..goes_on }, Left { goes_on: false, ..goes_on });
        assert_eq!(behind.done_since(Some(large), puts_off), None);
        assert_eq!(behind.done_since(None, goes_on), None);
        assert_eq!(behind.done_since(Some(small), goes_on), Some(small));
        assert_eq!(behind.done_since(Some(small), puts_off), None, "another large one");
        assert_eq!(behind.done_since(None, ends), Some(large));
        assert_eq!(behind.done_since(None, ends), None);
        assert_eq!(behind.done_since(Some(small), ends), Some(small));
    }

    #[test]
    fn a_large_change_whose_last_part_was_done_between_two_turns_counts_and_one_that_changes_nothing_does_not() {
        let large = Instant::now();
        let small = Some(large + Duration::from_secs(1));
        let nothing = Left { changed: false, puts_off: false, goes_on: false };
        let mut behind = Behind::default();
        assert_eq!(behind.done_since(small, nothing), None);
        assert_eq!(behind.done_since(Some(large), Left { changed: true, puts_off: true, goes_on: true }), None);
        assert_eq!(behind.done_since(small, Left { goes_on: true, ..nothing }), None);
        assert_eq!(behind.done_since(None, nothing), Some(large));
    }
}
