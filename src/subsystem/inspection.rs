//! Questions of users for what differs from the kernel, and for an audit at once.
//!
//! A question is answered portion by portion, with pauses in which changes go first, as an audit is: at ten thousand
//! Services reading everything takes seconds. Several questions that wait are answered by one reading. Nothing follows from it.
//!
//! With `list` the answer is the objects themselves, as the program reads them, for a report of a problem: up to [`LISTED`] bytes of each kind.
//!
//! Repairing is the audit that comes anyway, made due at once: who asks for it is answered at the end of the first whole one.

use std::time::Instant;

use serde_json::{Value, json};

use super::Kinds;
use crate::model::Authority;
use crate::observe::local::Question;
use crate::reconcile::{DESCRIBED, Difference, DifferenceState, Inspected, Room};

/// Most bytes of the objects of one kind in an answer.
const LISTED: usize = 8 << 20;

/// Why there is no answer before anything is known.
pub const NOTHING_KNOWN: &str = "nothing is known of the cluster yet";

/// A difference that is left out of what is desired because the kernel refuses it, with the name of its kind.
pub type LeftOut = (&'static str, Difference);

/// The questions that wait, and the reading for those that do not wait any more.
#[derive(Default)]
pub struct Inspection {
    waiting: Vec<Question>,
    running: Option<Reading>,
    due: Option<Instant>,
}

/// A reading of all kinds.
struct Reading {
    askers: Vec<Question>,
    /// Somebody asks for the objects themselves.
    lists: bool,
    kinds: Vec<(&'static str, Inspected)>,
}

/// The questions for an audit at once.
#[derive(Default)]
pub struct Repairs {
    waiting: Vec<Question>,
    /// Answered at the end of the audit that is under way: it began after them.
    in_this_audit: Vec<Question>,
    found: usize,
}

impl Inspection {
    /// Queues a question.
    pub fn ask(&mut self, question: Question, now: Instant) {
        self.waiting.push(question);
        self.due.get_or_insert(now);
    }

    /// Returns when the next portion is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.due
    }

    /// Looks at the next portion; the next one is due at `next`. At the end it returns what to answer.
    pub fn look(&mut self, kinds: &mut impl Kinds, next: Instant) -> Option<Looked> {
        let begin = |askers: Vec<Question>| Reading { lists: askers.iter().any(lists), askers, kinds: Vec::new() };
        let mut reading = self.running.take().unwrap_or_else(|| begin(std::mem::take(&mut self.waiting)));
        let mut looked = None;
        if reading.read_some(kinds) {
            looked = Some(Looked(reading));
        } else {
            self.running = Some(reading);
        }
        self.due = (self.running.is_some() || !self.waiting.is_empty()).then_some(next);
        looked
    }
}

/// A finished reading, for those who asked.
pub struct Looked(Reading);

impl Looked {
    /// Answers. `left_out`: as [`Subsystem::left_out`](super::Subsystem::left_out).
    pub fn answer(mut self, left_out: Vec<LeftOut>, authority: Authority) {
        self.0.add(left_out);
        self.0.answer(authority);
    }
}

impl Reading {
    /// Reads the next portion; returns whether it was the last of the last kind.
    fn read_some(&mut self, kinds: &mut impl Kinds) -> bool {
        let mut kinds = kinds.kinds();
        let place = match self.kinds.last() {
            None => 0,
            Some((_, last)) if last.finished => self.kinds.len(),
            Some(_) => self.kinds.len() - 1,
        };
        let count = kinds.len();
        let Some(kind) = kinds.get_mut(place) else { return true };
        if self.kinds.len() == place {
            kind.mirror.begin_inspection();
            self.kinds.push((kind.mirror.name(), Inspected::default()));
        }
        let Some((_, whole)) = self.kinds.last_mut() else { return true };
        let room = Room {
            differences: DESCRIBED.saturating_sub(whole.differences.len()),
            objects: self.lists.then_some(LISTED.saturating_sub(whole.objects.len())),
        };
        let portion = kind.mirror.inspect(room);
        whole.differences.extend(portion.differences);
        whole.more += portion.more;
        whole.objects.push_str(&portion.objects);
        whole.unlisted += portion.unlisted;
        whole.compared += portion.compared;
        whole.waiting += portion.waiting;
        whole.unreadable = portion.unreadable.or(whole.unreadable.take());
        whole.finished = portion.finished;
        whole.finished && place + 1 == count
    }

    /// Adds what is left out of what is desired, as far as there is room.
    fn add(&mut self, left_out: Vec<LeftOut>) {
        for (name, difference) in left_out {
            let Some((_, inspected)) = self.kinds.iter_mut().find(|(kind, _)| *kind == name) else { continue };
            if inspected.differences.len() < DESCRIBED {
                inspected.differences.push(difference);
            } else {
                inspected.more += 1;
            }
        }
    }

    fn answer(self, authority: Authority) {
        let known = match authority {
            Authority::Complete => "complete",
            Authority::Partial => "partial",
            Authority::Remembered => "remembered",
            Authority::Nothing => "nothing",
        };
        let kinds: Vec<Value> = self.kinds.iter().map(|(name, inspected)| of_kind(name, inspected)).collect();
        let answer = json!({ "known": known, "kinds": kinds });
        for asker in self.askers {
            let answer = match authority {
                Authority::Nothing => Err(NOTHING_KNOWN.to_owned()),
                _ if lists(&asker) => Ok(self.kinds.iter().map(|(name, kind)| listed(name, kind)).collect()),
                _ => Ok(format!("{answer:#}\n")),
            };
            // The requester may have gone away.
            let _ = asker.answer.send(answer);
        }
    }
}

impl Repairs {
    /// Queues a question for an audit.
    pub fn ask(&mut self, question: Question) {
        self.waiting.push(question);
    }

    /// Called before each portion of an audit. `is_first`: an audit of everything begins with it.
    pub fn begin(&mut self, is_first: bool) {
        if is_first {
            self.in_this_audit.append(&mut self.waiting);
            self.found = 0;
        }
    }

    /// Called after each portion. Returns whether another audit is to begin at once.
    pub fn end(&mut self, found: usize, finished: bool) -> bool {
        self.found += found;
        if finished {
            for asker in self.in_this_audit.drain(..) {
                let _ = asker.answer.send(Ok(format!("{}\n", json!({ "found": self.found }))));
            }
        }
        finished && !self.waiting.is_empty()
    }
}

/// Returns whether somebody asks for the objects in the kernel, and not for what differs.
fn lists(question: &Question) -> bool {
    question.about.get("list").is_some_and(|word| word == "true")
}

/// The objects of a kind.
fn listed(name: &str, inspected: &Inspected) -> String {
    let Inspected { objects, unlisted, unreadable, .. } = inspected;
    let mut text = format!("== {name}\n{objects}");
    if *unlisted > 0 {
        text.push_str(&format!("({unlisted} more)\n"));
    }
    text.extend(unreadable.iter().map(|why| format!("(cannot be read: {why})\n")));
    text
}

fn of_kind(name: &str, inspected: &Inspected) -> Value {
    let Inspected { differences, more, compared, waiting, unreadable, .. } = inspected;
    json!({
        "kind": name,
        "compared": compared,
        "waiting": waiting,
        "unreadable": unreadable,
        "differences": differences.iter().map(of_difference).collect::<Vec<_>>(),
        "more": more,
    })
}

fn of_difference(difference: &Difference) -> Value {
    let Difference { object, state, desired, seen } = difference;
    let (word, error) = match state {
        DifferenceState::Missing => ("missing", None),
        DifferenceState::Different => ("different", None),
        DifferenceState::Unexpected => ("unexpected", None),
        DifferenceState::Failed(error) => ("failed", Some(error)),
    };
    json!({ "object": object, "state": word, "desired": desired, "seen": seen, "error": error })
}
