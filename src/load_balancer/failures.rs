//! Services whose last write failed, and why: what the log says of it once, and health as long as it is so. Without I/O.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::model::ObjectName;

/// Services whose last write failed.
#[derive(Debug, Default)]
pub struct Failures {
    of: BTreeMap<ObjectName, Failure>,
    /// When a failure was last worth a line in the log.
    told: Option<Instant>,
}

#[derive(Debug)]
struct Failure {
    reason: String,
    /// The log has it.
    is_told: bool,
}

/// Where very many fail, a line is written so often.
const LINES: Duration = Duration::from_secs(10);

impl Failures {
    /// Notes that a write failed. Returns whether that is worth a line in the log: each Service's first failure is, but not very many at a time.
    pub fn failed(&mut self, service: &ObjectName, reason: String, now: Instant) -> bool {
        let is_known = self.of.get(service).is_some_and(|known| known.reason == reason && known.is_told);
        let is_only = self.of.keys().all(|one| one == service);
        let is_worth_it = !is_known && self.told.is_none_or(|told| now >= told + LINES || is_only);
        self.of.insert(service.clone(), Failure { reason, is_told: is_known || is_worth_it });
        if is_worth_it {
            self.told = Some(now);
        }
        is_worth_it
    }

    /// Notes that nothing is wrong with a Service any more. Returns whether it was the last one.
    pub fn over(&mut self, service: &ObjectName) -> bool {
        self.of.remove(service).is_some() && self.of.is_empty()
    }

    pub fn has(&self, service: &ObjectName) -> bool {
        self.of.contains_key(service)
    }

    /// The Services, to be looked through.
    pub fn services(&self) -> impl Iterator<Item = &ObjectName> {
        self.of.keys()
    }

    /// The failures as one sentence.
    pub fn note(&self) -> Option<String> {
        let (service, Failure { reason, .. }) = self.of.first_key_value()?;
        let others = match self.of.len() - 1 {
            0 => String::new(),
            1 => "; nor can that of another Service".to_owned(),
            count => format!("; nor can those of {count} other Services"),
        };
        Some(format!("the address of Service {service} cannot be written: {reason}{others}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_named_until_it_is_over_for_its_service_whatever_becomes_of_others() {
        let now = Instant::now();
        let [a, b] = ["a", "b"].map(|name| ObjectName::new("shop", name));
        let mut failures = Failures::default();
        assert!(failures.failed(&a, "no right".to_owned(), now));
        assert!(!failures.failed(&a, "no right".to_owned(), now), "as before");
        assert!(!failures.failed(&b, "no right".to_owned(), now), "very many at a time");
        assert!(failures.failed(&b, "no right".to_owned(), now + LINES), "which was not told yet");
        let now = now + LINES;
        assert!(failures.failed(&b, "no answer".to_owned(), now + LINES), "a later one is told too");
        let note = failures.note().expect("there is one");
        assert!(
            note.contains("Service shop/a") && note.ends_with("no right; nor can that of another Service"),
            "{note}"
        );
        assert!(!failures.over(&a) && failures.note().is_some_and(|note| note.contains("shop/b")));
        assert!(!failures.over(&a), "it is none any more");
        assert!(failures.over(&b) && failures.note().is_none());
        assert!(failures.failed(&a, "no right".to_owned(), now + LINES), "another time, and the only one");
    }
}
