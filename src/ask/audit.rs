//! Differences between the kernel and the desired state, as the subsystems answered: the text that is printed of them, and the exit code.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::config::Output;

/// The subsystems and the paths of their answers.
pub const SUBSYSTEMS: [(&str, &str); 4] = [
    ("proxy", "/audit/proxy"),
    ("firewall", "/audit/firewall"),
    ("router", "/audit/router"),
    ("source guard", "/audit/source-guard"),
];

/// The answers of all subsystems.
#[derive(Debug)]
pub struct Audited {
    pub before: Vec<Subsystem>,
    /// Differences that remain after a repair; `None` where none was asked for.
    pub after: Option<Vec<Subsystem>>,
}

/// The answer of one subsystem.
#[derive(Serialize, Deserialize, Debug)]
pub struct Subsystem {
    #[serde(default)]
    subsystem: String,
    /// How far the cluster is known.
    known: String,
    kinds: Vec<Kind>,
    /// Why it did not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize, Deserialize, Debug)]
struct Kind {
    kind: String,
    compared: usize,
    waiting: usize,
    unreadable: Option<String>,
    differences: Vec<Difference>,
    more: usize,
}

#[derive(Serialize, Deserialize, Debug)]
struct Difference {
    object: String,
    state: String,
    desired: Option<String>,
    seen: Option<String>,
    error: Option<String>,
}

impl Subsystem {
    /// Parses the answer of the subsystem of this name.
    ///
    /// # Errors
    /// It is not of this form.
    pub fn parse(name: &str, text: &str) -> Result<Subsystem, serde_json::Error> {
        let answer: Subsystem = serde_json::from_str(text)?;
        Ok(Subsystem { subsystem: name.to_owned(), ..answer })
    }

    /// Returns the state of a subsystem that did not answer, for the reason given.
    pub fn unanswered(name: &str, error: String) -> Subsystem {
        let (subsystem, known) = (name.to_owned(), "nothing".to_owned());
        Subsystem { subsystem, known, kinds: Vec::new(), error: Some(error) }
    }

    fn differs(&self) -> bool {
        self.kinds.iter().any(|kind| !kind.differences.is_empty() || kind.more > 0)
    }

    fn is_unknown(&self) -> bool {
        self.error.is_some() || self.kinds.iter().any(|kind| kind.unreadable.is_some())
    }
}

impl Audited {
    /// 0 nothing differs, 1 something does, 2 something could not be read and nothing else differs. With a repair: afterwards.
    pub fn exit_code(&self) -> u8 {
        let last = self.after.as_ref().unwrap_or(&self.before);
        match (last.iter().any(Subsystem::differs), last.iter().any(Subsystem::is_unknown)) {
            (true, _) => 1,
            (false, true) => 2,
            (false, false) => 0,
        }
    }
}

/// Formats the answers; as text nothing where nothing differs.
pub fn printed(audited: &Audited, output: Output) -> String {
    let Audited { before, after } = audited;
    if output == Output::Json {
        let answer = match after {
            Some(after) => json!({ "subsystems": before, "afterRepair": after }),
            None => json!({ "subsystems": before }),
        };
        return format!("{answer:#}\n");
    }
    let mut text = String::new();
    let last = after.as_ref().unwrap_or(before);
    for (subsystem, kind) in kinds(before) {
        for difference in &kind.differences {
            let outcome = after.as_ref().and_then(|after| outcome(after, subsystem, kind, difference));
            text.push_str(&line(subsystem, kind, difference, outcome.as_ref()));
        }
        text.push_str(&rest(subsystem, kind));
    }
    for Subsystem { subsystem, error, .. } in last {
        text.extend(error.iter().map(|why| format!("{subsystem}: no answer: {why}\n")));
    }
    let Some(after) = after else { return text };
    let known = objects(before);
    for (subsystem, kind) in kinds(after) {
        let new = |difference: &&Difference| !known.contains(&(subsystem, &kind.kind, &difference.object));
        let remains = Some(&Outcome::Remains);
        text.extend(kind.differences.iter().filter(new).map(|difference| line(subsystem, kind, difference, remains)));
        let was_read = |(name, before): (&str, &Kind)| {
            name == subsystem && before.kind == kind.kind && before.unreadable.is_none()
        };
        if let Some(why) = kind.unreadable.as_ref().filter(|_| kinds(before).any(was_read)) {
            text.push_str(&format!("{subsystem}: {}: cannot be read after the repair: {why}\n", kind.kind));
        }
        if kind.more > 0 {
            text.push_str(&format!("{subsystem}: {}: {} more objects still differ\n", kind.kind, kind.more));
        }
    }
    text
}

fn kinds(subsystems: &[Subsystem]) -> impl Iterator<Item = (&str, &Kind)> {
    subsystems.iter().flat_map(|subsystem| subsystem.kinds.iter().map(|kind| (subsystem.subsystem.as_str(), kind)))
}

fn objects(subsystems: &[Subsystem]) -> BTreeSet<(&str, &String, &String)> {
    let of_kind = |(subsystem, kind)| {
        let Kind { kind, differences, .. }: &Kind = kind;
        differences.iter().map(move |difference| (subsystem, kind, &difference.object))
    };
    kinds(subsystems).flat_map(of_kind).collect()
}

/// Outcome of the repair of a difference.
enum Outcome {
    Repaired,
    /// Nobody has tried, or somebody else has done it again.
    Remains,
    /// The kernel refused it, for this reason.
    Refused(String),
    /// The kind could not be read again.
    Unknown,
}

/// Returns what came of a difference; `None` where the subsystem gave no second answer.
fn outcome(after: &[Subsystem], name: &str, kind: &Kind, difference: &Difference) -> Option<Outcome> {
    let subsystem = after.iter().find(|it| it.subsystem == name && it.error.is_none())?;
    let again = subsystem.kinds.iter().find(|again| again.kind == kind.kind)?;
    let remains = again.differences.iter().find(|again| again.object == difference.object);
    let is_full = again.more > 0;
    Some(match remains {
        Some(Difference { error: Some(error), .. }) => Outcome::Refused(error.clone()),
        Some(_) => Outcome::Remains,
        None if again.unreadable.is_some() || is_full => Outcome::Unknown,
        None => Outcome::Repaired,
    })
}

/// One difference, with what came of it after a repair.
fn line(subsystem: &str, kind: &Kind, difference: &Difference, outcome: Option<&Outcome>) -> String {
    let Difference { object, state, desired, seen, error } = difference;
    let word = match (state.as_str(), error) {
        ("failed", Some(error)) => format!("the last change failed: {error}"),
        (state, _) => state.to_owned(),
    };
    let outcome = match outcome {
        None => String::new(),
        Some(Outcome::Remains) => "; still so after the repair".to_owned(),
        Some(Outcome::Repaired) => "; repaired".to_owned(),
        Some(Outcome::Refused(error)) => format!("; the repair was refused: {error}"),
        Some(Outcome::Unknown) => "; whether it was repaired is not known".to_owned(),
    };
    let mut text = format!("{subsystem}: {}: {object}: {word}{outcome}\n", kind.kind);
    for (what, value) in [("desired", desired), ("in the kernel", seen)] {
        // Of many objects there is nothing to say but that they are there.
        if let Some(value) = value.as_ref().filter(|value| *value != "present") {
            text.push_str(&format!("  {what}: {value}\n"));
        }
    }
    text
}

fn rest(subsystem: &str, kind: &Kind) -> String {
    let mut text = String::new();
    if kind.more > 0 {
        text.push_str(&format!("{subsystem}: {}: {} more objects differ\n", kind.kind, kind.more));
    }
    if let Some(why) = &kind.unreadable {
        text.push_str(&format!("{subsystem}: {}: cannot be read: {why}\n", kind.kind));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subsystem(differences: &[(&str, &str)], unreadable: Option<&str>) -> Subsystem {
        let difference = |(object, state): &(&str, &str)| {
            let error = (*state == "failed").then_some("refused");
            serde_json::json!({ "object": object, "state": state, "desired": "rr", "seen": null, "error": error })
        };
        let differences: Vec<_> = differences.iter().map(difference).collect();
        let kind = serde_json::json!({
            "kind": "virtual services", "compared": 3, "waiting": 0, "unreadable": unreadable, "differences": differences, "more": 0,
        });
        let text = serde_json::json!({ "known": "complete", "kinds": [kind] }).to_string();
        Subsystem::parse("proxy", &text).expect("it is of this form")
    }

    #[test]
    fn nothing_is_printed_where_nothing_differs_and_the_exit_code_says_so() {
        let audited = Audited { before: vec![subsystem(&[], None)], after: None };
        assert_eq!((printed(&audited, Output::Text), audited.exit_code()), (String::new(), 0));
        let unknown = Audited { before: vec![subsystem(&[], Some("not permitted"))], after: None };
        let text = "proxy: virtual services: cannot be read: not permitted\n".to_owned();
        assert_eq!((printed(&unknown, Output::Text), unknown.exit_code()), (text, 2));
        let both = Audited { before: vec![subsystem(&[("a", "missing")], Some("not permitted"))], after: None };
        assert_eq!(both.exit_code(), 1);
    }

    #[test]
    fn a_repair_says_of_each_difference_what_came_of_it() {
        let audited = Audited {
            before: vec![subsystem(&[("a", "missing"), ("b", "failed")], None)],
            after: Some(vec![subsystem(&[("b", "failed"), ("c", "missing")], None)]),
        };
        let text = "\
proxy: virtual services: a: missing; repaired
  desired: rr
proxy: virtual services: b: the last change failed: refused; the repair was refused: refused
  desired: rr
proxy: virtual services: c: missing; still so after the repair
  desired: rr
";
        assert_eq!((printed(&audited, Output::Text).as_str(), audited.exit_code()), (text, 1));
        let done = Audited { after: Some(vec![subsystem(&[], None)]), ..audited };
        assert_eq!(done.exit_code(), 0);
    }

    #[test]
    fn a_repair_that_is_refused_or_cannot_be_looked_at_is_not_said_to_be_done() {
        let before = || vec![subsystem(&[("a", "missing")], None)];
        let refused = Audited { before: before(), after: Some(vec![subsystem(&[("a", "failed")], None)]) };
        let text = "proxy: virtual services: a: missing; the repair was refused: refused\n  desired: rr\n";
        assert_eq!((printed(&refused, Output::Text).as_str(), refused.exit_code()), (text, 1));
        let unread = Audited { before: before(), after: Some(vec![subsystem(&[], Some("not permitted"))]) };
        let text = "\
proxy: virtual services: a: missing; whether it was repaired is not known
  desired: rr
proxy: virtual services: cannot be read after the repair: not permitted
";
        assert_eq!((printed(&unread, Output::Text).as_str(), unread.exit_code()), (text, 2));
    }
}
