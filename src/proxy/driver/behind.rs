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

impl Behind {
    /// Returns since when the changes were known that are in the kernel with this round. `seen`: those that it began with; `puts_off`: a part of
    /// them waits; `goes_on`: something waits.
    pub fn done_since(&mut self, seen: Option<Instant>, puts_off: bool, goes_on: bool) -> Option<Instant> {
        let (waiting, done) = if puts_off { (seen, None) } else { (None, seen) };
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
        assert_eq!(behind.done_since(Some(large), true, true), None);
        assert_eq!(behind.done_since(None, false, true), None);
        assert_eq!(behind.done_since(Some(small), false, true), Some(small));
        assert_eq!(behind.done_since(Some(small), true, true), None, "another large one");
        assert_eq!(behind.done_since(None, false, false), Some(large));
        assert_eq!(behind.done_since(None, false, false), None);
        assert_eq!(behind.done_since(Some(small), false, false), Some(small));
    }
}
