//! Namespaces in which the API server refuses Events, and when it is asked again. Without I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::About;

/// The namespaces in which nothing may be created, and when to ask again.
#[derive(Default, Debug)]
pub struct Closed {
    namespaces: BTreeMap<String, Instant>,
    /// None may be: the right is missing.
    all: Option<Instant>,
    /// Namespaces without the right that are known to refuse, since the last Event that was accepted.
    without_right: BTreeSet<String>,
    /// When that was.
    accepted_at: Option<Instant>,
}

/// Most namespaces that are known to refuse.
const MOST_CLOSED: usize = 256;

/// The part of a refusal that is worth a line in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Worth {
    Nothing,
    /// The first one.
    Namespace,
    /// From now on all are closed.
    All,
}

impl Closed {
    /// Returns until when nothing is to be asked about a namespace.
    pub fn until(&self, namespace: &str, now: Instant) -> Option<Instant> {
        let closed = self.all.into_iter().chain(self.namespaces.get(namespace).copied()).max();
        closed.filter(|until| *until > now)
    }

    /// Notes a refusal. A quota or an admission webhook (not `is_for_want_of_right`) is about one namespace alone. Two namespaces without the right are all, unless an
    /// Event was accepted no longer ago than nothing is asked about these: rights may be given by the namespace. The Node's own Event without it is all.
    pub fn note(&mut self, about: &About, is_for_want_of_right: bool, now: Instant, until: Instant) -> Worth {
        let was_known = !self.namespaces.is_empty() || self.all.is_some();
        let was_closed = self.all.is_some_and(|until| until > now);
        self.namespaces.retain(|_, until| *until > now);
        if self.namespaces.is_empty() {
            self.without_right.clear();
        }
        self.without_right.retain(|namespace| self.namespaces.contains_key(namespace));
        if self.namespaces.len() < MOST_CLOSED {
            self.namespaces.insert(about.namespace().to_owned(), until);
        }
        if is_for_want_of_right && self.without_right.len() < MOST_CLOSED {
            self.without_right.insert(about.namespace().to_owned());
        }
        let is_accepted = self.accepted_at.is_some_and(|accepted| accepted + (until - now) > now);
        let are_all = self.without_right.len() > 1 && !is_accepted || matches!(about, About::Node(_));
        if is_for_want_of_right && are_all {
            self.all = Some(until);
        }
        match was_known {
            _ if !was_closed && self.all == Some(until) => Worth::All,
            true => Worth::Nothing,
            false => Worth::Namespace,
        }
    }

    /// Notes that an Event was accepted. Returns whether all were closed.
    pub fn accepted(&mut self, namespace: &str, now: Instant) -> bool {
        self.namespaces.remove(namespace);
        self.accepted_at = Some(now);
        self.without_right.clear();
        self.all.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::ObjectName;

    fn about(namespace: &str) -> About {
        About::Service(ObjectName::new(namespace, "web"), None)
    }

    #[test]
    fn namespaces_with_a_quota_or_a_webhook_that_refuses_close_no_other() {
        let now = Instant::now();
        let until = now + Duration::from_secs(3600);
        let mut closed = Closed::default();
        assert_eq!(closed.note(&about("full"), false, now, until), Worth::Namespace);
        assert_eq!(closed.note(&about("denied"), false, now, until), Worth::Nothing);
        assert_eq!(closed.note(&About::Node("node-1".into()), false, now, until), Worth::Nothing);
        let is_closed = ["full", "denied", "default", "shop"].map(|namespace| closed.until(namespace, now).is_some());
        assert_eq!(is_closed, [true, true, true, false]);
    }

    #[test]
    fn where_one_namespace_accepts_events_those_without_the_right_close_no_other() {
        let now = Instant::now();
        let until = now + Duration::from_secs(3600);
        let mut closed = Closed::default();
        closed.note(&about("one"), true, now, until);
        assert!(!closed.accepted("shop", now));
        for namespace in ["two", "three"] {
            closed.note(&about(namespace), true, now, until);
        }
        assert_eq!((closed.until("shop", now), closed.until("three", now)), (None, Some(until)));
        // An hour later none may be: two say so.
        let later = until + Duration::from_secs(3600);
        closed.note(&about("one"), true, until, later);
        assert_eq!(closed.note(&about("two"), true, until, later), Worth::All);
        assert_eq!(closed.until("shop", until), Some(later));
        assert!(closed.accepted("shop", until) && closed.until("shop", until).is_none());
    }

    #[test]
    fn a_namespace_that_refuses_for_ever_keeps_no_missing_right_from_closing_all() {
        let (now, hour) = (Instant::now(), Duration::from_secs(3600));
        let mut closed = Closed::default();
        closed.note(&about("full"), false, now, now + hour);
        closed.accepted("shop", now);
        // It refuses again while the others are known to, and all the time.
        for half in 1..10 {
            let at = now + half * hour / 2;
            closed.note(&about("full"), false, at, at + hour);
        }
        let at = now + 5 * hour;
        closed.note(&about("shop"), true, at, at + hour);
        assert_eq!(closed.note(&about("default"), true, at, at + hour), Worth::All);
    }

    #[test]
    fn a_missing_right_in_one_namespace_closes_that_one_and_in_two_all() {
        let now = Instant::now();
        let until = now + Duration::from_secs(3600);
        let mut closed = Closed::default();
        assert_eq!(closed.note(&about("full"), true, now, until), Worth::Namespace, "it is logged");
        assert_eq!((closed.until("full", now), closed.until("shop", now)), (Some(until), None));
        assert_eq!(closed.until("full", until), None, "an hour later it is asked again");
        assert_eq!(closed.note(&about("shop"), true, now, until), Worth::All, "and so is this");
        assert_eq!(closed.note(&about("shop"), true, now, until), Worth::Nothing);
        assert_eq!(closed.until("other", now), Some(until));
        let mut closed = Closed::default();
        closed.note(&About::Node("node-1".into()), true, now, until);
        assert_eq!(closed.until("shop", now), Some(until));
        for number in 0..1000 {
            closed.note(&about(&number.to_string()), true, now, until);
        }
        assert!(closed.namespaces.len() <= MOST_CLOSED && closed.without_right.len() <= MOST_CLOSED);
    }
}
