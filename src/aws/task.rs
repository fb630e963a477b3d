//! When the check of which instance is switched off, and what is told of it: a machine without I/O.

use std::time::{Duration, Instant};

use compact_str::CompactString;

use super::failure::Failure;

/// The task, between two attempts.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Task {
    /// The instance of the own Node; `None` while none is named.
    instance: Option<CompactString>,
    state: State,
    attempts: u32,
    /// The sentence that was told.
    told: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum State {
    /// Nothing is to be done: no instance, or it is done.
    #[default]
    Rests,
    /// From this time on; `None` at once.
    Due(Option<Instant>),
}

/// News to be told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// The check is off.
    Done,
    /// It is not, for another reason than was told before.
    Failed(String),
    /// It is not, for the same reason.
    FailedAgain,
}

impl Task {
    /// Takes the instance that the own Node names. Returns whether notes about an earlier one are out of date.
    pub fn name(&mut self, instance: Option<&CompactString>) -> bool {
        if self.instance.as_ref() == instance {
            return false;
        }
        let state = if instance.is_some() { State::Due(None) } else { State::Rests };
        *self = Task { instance: instance.cloned(), state, attempts: 0, told: None };
        true
    }

    /// Returns the instance to switch the check off for now.
    pub fn due(&self, now: Instant) -> Option<&CompactString> {
        match self.state {
            State::Due(at) if at.is_none_or(|at| at <= now) => self.instance.as_ref(),
            State::Due(_) | State::Rests => None,
        }
    }

    /// Returns when the next attempt is due.
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Due(at) => at,
            State::Rests => None,
        }
    }

    /// Takes the outcome of an attempt for the present instance.
    pub fn outcome(&mut self, outcome: Result<(), Failure>, now: Instant) -> Notice {
        let failure = match outcome {
            Ok(()) => {
                (self.state, self.told) = (State::Rests, None);
                return Notice::Done;
            }
            Err(failure) => failure,
        };
        self.attempts = self.attempts.saturating_add(1);
        self.state = State::Due(Some(now + self.pause(&failure)));
        let sentence = failure.to_string();
        if self.told.as_ref() == Some(&sentence) {
            return Notice::FailedAgain;
        }
        self.told = Some(sentence.clone());
        Notice::Failed(sentence)
    }

    /// Nodes of a cluster that start together ask EC2 at different times: by the last digits of their instances' IDs.
    fn pause(&self, failure: &Failure) -> Duration {
        let last = self.instance.iter().flat_map(|id| id.bytes().rev().take(4));
        let spread = last.fold(0_u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
        failure.pause(self.attempts, spread)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silent() -> Failure {
        Failure::NoAnswer { endpoint: "https://ec2".to_owned(), reason: "timed out".to_owned() }
    }

    #[test]
    fn an_instance_is_done_once_and_nothing_is_asked_without_one() {
        let now = Instant::now();
        let mut task = Task::default();
        assert!(!task.name(None) && task.due(now).is_none() && task.deadline().is_none());
        assert!(task.name(Some(&"i-1".into())) && !task.name(Some(&"i-1".into())));
        assert_eq!(task.due(now).map(CompactString::as_str), Some("i-1"));
        assert_eq!(task.outcome(Ok(()), now), Notice::Done);
        let later = now + Duration::from_secs(86_400);
        assert!(task.due(later).is_none() && task.deadline().is_none(), "once for each start");
        assert!(!task.name(Some(&"i-1".into())) && task.due(later).is_none());
        // A Node that comes back as another machine.
        assert!(task.name(Some(&"i-2".into())));
        assert_eq!(task.due(later).map(CompactString::as_str), Some("i-2"));
        assert!(task.name(None) && task.due(later).is_none());
    }

    #[test]
    fn a_failure_is_told_once_and_tried_again_later_and_later() {
        let mut now = Instant::now();
        let mut task = Task::default();
        task.name(Some(&"i-1".into()));
        assert!(matches!(task.outcome(Err(silent()), now), Notice::Failed(_)));
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let at = task.deadline().expect("it is tried again");
            pauses.push(at - now);
            assert!(task.due(now).is_none() && task.due(at).is_some());
            now = at;
            assert_eq!(task.outcome(Err(silent()), now), Notice::FailedAgain);
        }
        assert!(pauses.is_sorted() && pauses.first() != pauses.last(), "{pauses:?}");
        assert!(matches!(task.outcome(Err(Failure::NoRole), now), Notice::Failed(_)), "another reason is news");
        assert_eq!(task.outcome(Ok(()), now), Notice::Done);
        assert!(task.deadline().is_none());
    }
}
