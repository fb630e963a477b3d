//! Answers questions about Services, between two turns of the proxy's loop.
//!
//! One Service's virtual services are read from the kernel for the answer, with their counters: a few system calls each. For all
//! Services nothing is read: the answer says what was last seen, which looks every few seconds keep true.

use crate::observe::health::Health;
use crate::observe::local::{self, Answer, AnswerFormat};

use super::super::apply::{Kernel, Mirrors};
use super::super::plan::Plan;
use super::{Explanation, KernelState, Question, explanation, json, text};

/// The question that the service proxy answers, by its path on the local socket.
pub const SERVICES: &str = "/svc";

/// The components whose notes say how old what is known of the cluster may be.
const SOURCES: [&str; 3] = ["API server", "manifests", "last known state"];

/// Answers one question.
///
/// # Errors
/// Why there is no answer, as a sentence without its end.
pub fn answer<K: Kernel>(question: &local::Question, plan: &Plan, mirrors: &mut Mirrors<K>, health: &Health) -> Answer {
    let asked = Question::parse(question.about.get("what").map_or("", String::as_str));
    let asked = asked.map_err(|why| why.to_string())?;
    let notes = health.notes().into_iter().filter(|note| SOURCES.contains(&note.component));
    let notes = notes.map(|note| note.to_string()).collect();
    let mut explanation = explanation(plan, &asked, notes).map_err(|why| why.to_string())?;
    match asked {
        Question::All => compare(&mut explanation, mirrors),
        Question::Service(_) | Question::Address(..) => observe(&mut explanation, mirrors),
    }
    Ok(match question.form {
        AnswerFormat::Text => text(&explanation, &asked),
        AnswerFormat::Json => format!("{:#}\n", json(&explanation)),
    })
}

/// Takes in what was last seen of the kernel.
fn compare<K: Kernel>(explanation: &mut Explanation, mirrors: &Mirrors<K>) {
    let doubtful = mirrors.doubtful_virtuals();
    for (key, served) in explanation.served_mut() {
        match mirrors.seen_virtuals().map(|seen| seen.get(&key)) {
            None => served.kernel = KernelState::Unread("it cannot be read".to_owned()),
            // The kernel may have it all the same.
            Some(None) if doubtful.contains(&key) => {
                served.kernel = KernelState::Unread("its last change failed".to_owned());
            }
            Some(seen) => served.compare(seen),
        }
    }
}

/// Reads the kernel.
fn observe<K: Kernel>(explanation: &mut Explanation, mirrors: &mut Mirrors<K>) {
    for (key, served) in explanation.served_mut() {
        match mirrors.observe(&key) {
            Ok(observed) => served.observe(observed),
            Err(error) => served.kernel = KernelState::Unread(error.to_string()),
        }
    }
}
