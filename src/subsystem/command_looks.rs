//! Looks that follow commands which others gave to the kernel and which it only counts (`kernel::ipvs::Counted`).
//!
//! Every [`READING`] the count is read. Where others gave commands, everything that these may have changed is looked at, a moment
//! later: a command is counted when it begins. That is one pass, portion after portion without pauses, because nothing is
//! gained by half of it. Passes that somebody causes all the time cost no more than other looks: one part in [`PART`] of a core, over
//! [`CREDIT`], and [`BETWEEN_PASSES`] are between two of them; while one waits, glances go on. While nothing is counted nothing is looked at.

use std::time::{Duration, Instant};

use super::patrol::{Look, PART};

/// Count of commands of others to objects without notifications.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OthersCommands {
    /// The kernel does not count them: they are found by looking at intervals.
    NotCounted,
    /// None since the last call.
    None,
    /// There may have been some since the last call.
    Given,
}

/// Time between two readings of the count.
const READING: Duration = Duration::from_secs(5);
/// Time for which commands have been counted before anybody looks for what they did. The kernel carries out a command within
/// microseconds, but for one that waits for a processor or for IPVS's lock; and who gives several is done meanwhile.
const SETTLE: Duration = Duration::from_secs(1);
/// Least time from one pass to the next.
const BETWEEN_PASSES: Duration = Duration::from_secs(10);
/// Time without passes that is saved up, and what there is of it at the start: who changes something now and then does not wait, also where a
/// pass takes half a second.
const CREDIT: Duration = Duration::from_secs(3600);
/// Time between two portions, in which changes go first.
const BETWEEN_PORTIONS: Duration = Duration::from_millis(5);

/// Times of the next reading and of the next look.
#[derive(Debug)]
pub struct CommandLooks {
    /// `None` where there is nothing to count.
    read_at: Option<Instant>,
    are_counted: bool,
    /// Time of the next portion; `None` while no pass is due or under way.
    look_at: Option<Instant>,
    is_under_way: bool,
    /// Commands were counted during the pass, or it has not seen everything.
    again: bool,
    found_drift: bool,
    /// No pass begins before.
    free_at: Instant,
    /// The time that pays for all passes so far.
    paid_at: Instant,
}

impl CommandLooks {
    /// `reads`: there is something to count. The first reading comes after a moment: what is known has just been read.
    pub fn new(now: Instant, reads: bool) -> CommandLooks {
        CommandLooks {
            read_at: reads.then_some(now + READING),
            are_counted: false,
            look_at: None,
            is_under_way: false,
            again: false,
            found_drift: false,
            free_at: now,
            paid_at: now.checked_sub(CREDIT).unwrap_or(now),
        }
    }

    /// Has readings count from now, when everything has been read or written. A pass that waits or is under way follows all the same: a command
    /// may have been counted before that, and been carried out after it.
    pub fn begin_anew(&mut self, now: Instant) {
        let (waits, are_counted) = (self.look_at.is_some(), self.are_counted);
        *self = CommandLooks { are_counted, ..CommandLooks::new(now, self.read_at.is_some()) };
        if waits {
            self.plan(now);
        }
    }

    /// Returns when the next reading or look is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.read_at.into_iter().chain(self.look_at).min()
    }

    /// Returns whether a glance would see nothing new: commands are counted, and everything was looked at since the last ones. While a pass
    /// waits, for what earlier ones cost, glances go on: anybody may give commands that change nothing, and so make passes wait.
    pub fn glances_rest(&self) -> bool {
        self.are_counted && self.look_at.is_none()
    }

    /// Returns whether the count has to be read now.
    pub fn must_read(&self, now: Instant) -> bool {
        self.read_at.is_some_and(|at| at <= now)
    }

    /// Records a reading.
    pub fn heard(&mut self, now: Instant, commands: OthersCommands) {
        self.read_at = Some(now + READING);
        self.are_counted = commands != OthersCommands::NotCounted;
        match commands {
            OthersCommands::None => {}
            // Looks at intervals take over.
            OthersCommands::NotCounted => (self.look_at, self.is_under_way, self.again) = (None, false, false),
            OthersCommands::Given if self.is_under_way => self.again = true,
            OthersCommands::Given => self.plan(now),
        }
    }

    /// Returns whether a look is due: `Some(true)` for the first of a pass.
    pub fn next(&mut self, now: Instant) -> Option<bool> {
        self.look_at.filter(|at| *at <= now)?;
        let begins = !std::mem::replace(&mut self.is_under_way, true);
        if begins {
            (self.again, self.found_drift) = (false, false);
        }
        Some(begins)
    }

    /// Records that a look of this pass could not see everything: another pass follows.
    pub fn missed(&mut self) {
        self.again = true;
    }

    /// Records a look. One that found something may have taken long for reading that; the first of a pass delays none.
    pub fn looked(&mut self, now: Instant, look: Look) {
        let is_first_drift = look.found_drift && !std::mem::replace(&mut self.found_drift, true);
        if !is_first_drift {
            let price = look.took.saturating_mul(PART);
            // Saturates at the beginning of the clock.
            let oldest = now.checked_sub(CREDIT).unwrap_or(self.paid_at);
            self.paid_at = self.paid_at.max(oldest) + price;
        }
        self.look_at = Some(now + BETWEEN_PORTIONS);
        if look.finished {
            (self.look_at, self.is_under_way) = (None, false);
            self.free_at = now + BETWEEN_PASSES;
            if self.again {
                self.plan(now);
            }
        }
    }

    fn plan(&mut self, now: Instant) {
        self.look_at = Some((now + SETTLE).max(self.free_at).max(self.paid_at));
    }
}

#[cfg(test)]
mod tests {
    use super::OthersCommands::{Given, None as Nothing, NotCounted};
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn looked(took: Duration, finished: bool) -> Look {
        Look { took, found_drift: false, finished }
    }

    /// Runs for a time with passes of so many portions of such a length, while `given` says whether others have given commands between two
    /// readings. Returns the beginnings of passes since the start, and the time spent.
    fn run(
        lasts: Duration,
        portions: u32,
        took: Duration,
        given: impl Fn(Duration) -> bool,
    ) -> (Vec<Duration>, Duration) {
        let start = Instant::now();
        let (mut looks, mut at, mut portion) = (CommandLooks::new(start, true), start, 0);
        let (mut began, mut spent) = (Vec::new(), Duration::ZERO);
        while at < start + lasts {
            if looks.must_read(at) {
                looks.heard(at, if given(at - start) { Given } else { Nothing });
            }
            if let Some(begins) = looks.next(at) {
                if begins {
                    began.push(at - start);
                    portion = 0;
                }
                portion += 1;
                spent += took;
                looks.looked(at, looked(took, portion == portions));
            }
            let next = looks.deadline().expect("it reads for ever");
            assert!(next > at, "what is done has another time");
            at = next;
        }
        (began, spent)
    }

    #[test]
    fn what_begins_anew_looks_after_the_commands_that_were_counted_before() {
        let start = Instant::now();
        for given in [Given, Nothing] {
            let mut looks = CommandLooks::new(start, true);
            looks.heard(start + 5 * SECOND, given);
            looks.begin_anew(start + 7 * SECOND);
            assert_eq!(looks.glances_rest(), given == Nothing);
            let next = if given == Given { 8 } else { 12 };
            assert_eq!(looks.deadline(), Some(start + next * SECOND), "{given:?}");
        }
    }

    #[test]
    fn what_others_did_once_is_looked_at_as_a_whole_within_seven_seconds_and_once() {
        let (began, _) = run(600 * SECOND, 30, Duration::from_millis(2), |at| at.as_secs() == 300);
        let [began] = began[..] else { panic!("{began:?}") };
        assert_eq!(began, 301 * SECOND);
    }

    #[test]
    fn who_does_nothing_causes_no_look() {
        assert_eq!(run(3600 * SECOND, 1, SECOND, |_| false).1, Duration::ZERO);
    }

    #[test]
    fn somebody_who_gives_commands_all_the_time_costs_no_more_than_other_looks() {
        let hour = 3600 * SECOND;
        let (began, spent) = run(hour, 20, Duration::from_millis(5), |_| true);
        assert!(spent <= (hour + CREDIT) / PART + Duration::from_millis(100), "{spent:?}");
        assert!(began.len() >= 36, "{} passes of 100 ms: one in 100 s", began.len());
        let (began, spent) = run(hour, 1, Duration::from_millis(1), |_| true);
        let long = Duration::from_millis(200);
        let (_, spent_in_long_ones) = run(hour, 10, long, |_| true);
        assert!(spent_in_long_ones <= (hour + CREDIT) / PART + 10 * long, "{spent_in_long_ones:?}");
        assert!(began.len() >= 239 && spent < hour / PART, "{} passes: a cheap one in 10 to 15 s", began.len());
    }

    #[test]
    fn changes_now_and_then_are_looked_at_within_fifteen_seconds_however_large_the_pass() {
        let given = |at: Duration| at.as_secs().is_multiple_of(600);
        let (began, _) = run(3600 * SECOND, 10, Duration::from_millis(50), given);
        assert_eq!(began.len(), 5, "{began:?}");
        assert!(began.iter().all(|began| began.as_secs() % 600 <= 10), "{began:?}");
        let six_in_a_row = |at: Duration| at.as_secs().is_multiple_of(20) && at.as_secs() <= 120;
        let (began, _) = run(3600 * SECOND, 10, Duration::from_millis(50), six_in_a_row);
        assert_eq!(began.len(), 6, "{began:?}");
        assert!(began.iter().all(|began| began.as_secs() % 20 <= 10), "{began:?}");
    }

    #[test]
    fn commands_during_a_pass_cause_another_one() {
        let start = Instant::now();
        let mut looks = CommandLooks::new(start, true);
        let at = |seconds| start + seconds * SECOND;
        looks.heard(at(5), Given);
        assert_eq!(looks.next(at(5)), None, "the command may still be under way");
        assert_eq!(looks.next(at(6)), Some(true));
        looks.looked(at(6), looked(Duration::ZERO, false));
        looks.heard(at(10), Given);
        assert_eq!(looks.next(at(10)), Some(false), "the pass goes on");
        looks.looked(at(10), looked(Duration::ZERO, true));
        assert_eq!(looks.next(at(19)), None);
        assert_eq!(looks.next(at(20)), Some(true), "and then everything again");
        looks.looked(at(20), looked(Duration::ZERO, true));
        assert_eq!(looks.next(at(3600)), None);
    }

    #[test]
    fn reading_what_was_found_delays_no_later_pass() {
        let start = Instant::now();
        let mut looks = CommandLooks::new(start, true);
        looks.heard(start, Given);
        assert_eq!(looks.next(start + SECOND), Some(true));
        looks.looked(start + SECOND, Look { took: 600 * SECOND, found_drift: true, finished: true });
        looks.heard(start + 2 * SECOND, Given);
        assert_eq!(looks.next(start + 11 * SECOND), Some(true));
    }

    #[test]
    fn while_a_pass_waits_for_what_earlier_ones_cost_glances_go_on() {
        let start = Instant::now();
        let mut looks = CommandLooks::new(start, true);
        assert!(!looks.glances_rest(), "nothing is counted yet");
        looks.heard(start, Nothing);
        assert!(looks.glances_rest());
        looks.heard(start, Given);
        assert_eq!(looks.next(start + SECOND), Some(true));
        looks.looked(start + SECOND, looked(2 * CREDIT / PART, true));
        assert!(looks.glances_rest(), "all was looked at");
        looks.heard(start + 2 * SECOND, Given);
        assert_eq!(looks.next(start + CREDIT / 2), None);
        assert!(!looks.glances_rest());
        looks.heard(start + 10 * SECOND, Nothing);
        assert!(!looks.glances_rest(), "what those before did has not been looked at");
    }

    #[test]
    fn a_count_that_cannot_be_trusted_ends_the_pass() {
        let start = Instant::now();
        let mut looks = CommandLooks::new(start, true);
        looks.heard(start, Given);
        looks.heard(start, NotCounted);
        assert_eq!(looks.next(start + 60 * SECOND), None, "looks at intervals see everything");
        looks.heard(start + 60 * SECOND, Given);
        assert_eq!(looks.next(start + 61 * SECOND), Some(true));
    }

    #[test]
    fn where_there_is_nothing_to_count_nobody_wakes() {
        assert_eq!(CommandLooks::new(Instant::now(), false).deadline(), None);
    }
}
