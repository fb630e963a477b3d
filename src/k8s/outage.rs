//! Outages of the cluster's source: kinds, time and cause; for the log, for health and for metrics.
//!
//! An outage takes nothing away: what is known stays in force. So it is a note of `/readyz`, which does not make the program
//! unready, and a person sees there which kinds of objects are stale and since when.
//!
//! Log: an unreachable source is logged once, however many kinds it concerns; a refusal is logged for each kind,
//! because each is another rule of RBAC.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use k8s_openapi::jiff::Timestamp;
use prometheus::{IntCounterVec, IntGaugeVec, Opts};
use tokio::sync::watch;
use tracing::{info, warn};

use super::Kind;
use crate::observe::health::{Health, Note};
use crate::observe::metrics::Registry;

/// The outages of one source. Clones are the same.
#[derive(Clone)]
pub struct Outages(Arc<Shared>);

/// Kinds on which announcements of Services depend.
const OF_SERVICES: [Kind; 2] = [Kind::Service, Kind::EndpointSlice];

struct Shared {
    open: Mutex<BTreeMap<Kind, Outage>>,
    note: Option<Note>,
    /// Told whether Nodes can be read.
    nodes_are_read: watch::Sender<bool>,
    /// Told of each refusal of Services or EndpointSlices for want of a right, and of their end.
    services_refused_at: watch::Sender<Option<Instant>>,
    /// Told since when something cannot be read.
    unread_since: watch::Sender<Option<Instant>>,
    failing: IntGaugeVec,
    failures: IntCounterVec,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Outage {
    /// For people who look at the log of that time.
    since: Timestamp,
    /// For its age: the clock may be set meanwhile.
    begun: Instant,
    cause: Cause,
}

/// Cause of an outage.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Cause {
    /// The server cannot be reached, or does not answer in time, or breaks off.
    Unreachable,
    /// The server rejects the credentials (401): they have expired, say.
    Unauthorized,
    /// The user may not read these objects (403): a rule of RBAC is missing.
    Forbidden,
    /// The server refuses for another reason.
    Refused,
    /// The directory of manifests cannot be read.
    Directory,
}

impl Cause {
    /// The cause for this status of a response (as in HTTP).
    pub fn of_status(code: u16) -> Cause {
        match code {
            401 => Cause::Unauthorized,
            403 => Cause::Forbidden,
            _ => Cause::Refused,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Cause::Unreachable => "unreachable",
            Cause::Unauthorized => "unauthorized",
            Cause::Forbidden => "forbidden",
            Cause::Refused => "refused",
            Cause::Directory => "directory",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cause::Unreachable => "the server cannot be reached",
            Cause::Unauthorized => "the server does not accept the credentials (401)",
            Cause::Forbidden => "the credentials have no right to read it (403)",
            Cause::Refused => "the server refuses; the log says why",
            Cause::Directory => "the directory cannot be read",
        })
    }
}

impl Outages {
    /// Outages that only the log reports.
    ///
    /// # Errors
    /// A metric's name is not valid, which each is.
    pub fn new() -> Result<Outages, prometheus::Error> {
        let failing =
            Opts::new("sluice_source_failing", "1 while objects of this kind cannot be read from the cluster");
        let failures = Opts::new("sluice_source_failures_total", "Failures to read objects of this kind, by reason");
        Ok(Outages(Arc::new(Shared {
            open: Mutex::default(),
            note: None,
            nodes_are_read: watch::Sender::new(true),
            services_refused_at: watch::Sender::new(None),
            unread_since: watch::Sender::new(None),
            failing: IntGaugeVec::new(failing, &["kind"])?,
            failures: IntCounterVec::new(failures, &["kind", "reason"])?,
        })))
    }

    /// Outages of the source of this name, for kinds that are read of it.
    ///
    /// # Errors
    /// A name is registered already.
    pub fn register(
        source: &'static str,
        kinds: impl IntoIterator<Item = Kind>,
        registry: &Registry,
        health: &Health,
    ) -> Result<Outages, prometheus::Error> {
        let Outages(shared) = Outages::new()?;
        let (failing, failures) = (shared.failing.clone(), shared.failures.clone());
        registry.register(Box::new(failing.clone()))?;
        registry.register(Box::new(failures.clone()))?;
        kinds.into_iter().for_each(|kind| failing.with_label_values(&[kind.name()]).set(0));
        Ok(Outages(Arc::new(Shared {
            open: Mutex::default(),
            note: Some(health.note(source)),
            nodes_are_read: watch::Sender::new(true),
            services_refused_at: watch::Sender::new(None),
            unread_since: watch::Sender::new(None),
            failing,
            failures,
        })))
    }

    /// Records that objects of a kind could not be read; returns whether this is the first kind of an outage.
    pub fn fails(&self, kind: Kind, cause: Cause, error: &str) -> bool {
        let shared = &self.0;
        shared.failures.with_label_values(&[kind.name(), cause.label()]).inc();
        let mut open = self.open();
        let is_first = open.is_empty();
        let before = open.get(&kind).copied();
        let is_said = match cause {
            Cause::Unreachable | Cause::Directory => open.values().any(|other| other.cause == cause),
            _ => before.is_some_and(|before| before.cause == cause),
        };
        let first = || Outage { since: Timestamp::now(), begun: Instant::now(), cause };
        open.insert(kind, Outage { cause, ..before.unwrap_or_else(first) });
        shared.failing.with_label_values(&[kind.name()]).set(1);
        shared.tell(&open);
        drop(open);
        if cause == Cause::Forbidden && OF_SERVICES.contains(&kind) {
            shared.services_refused_at.send_replace(Some(Instant::now()));
        }
        if !is_said && cause != Cause::Directory {
            warn!(%kind, error, "Kubernetes API watch failed; last known state stays in force");
        }
        is_first
    }

    /// Records that objects of a kind can be read.
    pub fn works(&self, kind: Kind) {
        let shared = &self.0;
        let mut open = self.open();
        let Some(ended) = open.remove(&kind) else { return };
        shared.failing.with_label_values(&[kind.name()]).set(0);
        shared.tell(&open);
        let is_last = open.is_empty();
        drop(open);
        if is_last && ended.cause != Cause::Directory {
            info!("Kubernetes API watch recovered");
        }
    }

    /// Returns whether Nodes can be read, now and from now on.
    pub fn nodes_are_read(&self) -> watch::Receiver<bool> {
        self.0.nodes_are_read.subscribe()
    }

    /// Returns when Services or their EndpointSlices were refused last for want of a right, now and from now on; `None` while there is one.
    pub fn services_refused_at(&self) -> watch::Receiver<Option<Instant>> {
        self.0.services_refused_at.subscribe()
    }

    /// Returns since when something cannot be read, now and from now on; `None` while everything is.
    pub fn unread_since(&self) -> watch::Receiver<Option<Instant>> {
        self.0.unread_since.subscribe()
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<Kind, Outage>> {
        // Each change is one insertion or removal, so a thread that panicked here has left nothing half done.
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn tell(&self, open: &BTreeMap<Kind, Outage>) {
        if let Some(note) = &self.note {
            note.set(sentences(open));
        }
        self.nodes_are_read.send_replace(!open.contains_key(&Kind::Node));
        let is_forbidden = |kind| open.get(kind).is_some_and(|outage| outage.cause == Cause::Forbidden);
        if !OF_SERVICES.iter().any(is_forbidden) {
            self.services_refused_at.send_if_modified(|before| before.take().is_some());
        }
        self.unread_since.send_replace(open.values().map(|outage| outage.begun).min());
    }
}

/// One sentence for each cause.
fn sentences(open: &BTreeMap<Kind, Outage>) -> Vec<String> {
    let mut by_cause: BTreeMap<Cause, (Vec<&str>, Timestamp)> = BTreeMap::new();
    for (kind, Outage { since, cause, .. }) in open {
        let (kinds, earliest) = by_cause.entry(*cause).or_insert((Vec::new(), *since));
        kinds.push(kind.name());
        *earliest = (*earliest).min(*since);
    }
    let sentence = |(cause, (kinds, since)): (Cause, (Vec<&str>, Timestamp))| {
        format!("{} not read since {since:.0}: {cause}; what is known stays in force", kinds.join(", "))
    };
    by_cause.into_iter().map(sentence).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn lines(health: &Health) -> Vec<String> {
        health.notes().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_cause_has_a_sentence_with_its_kinds_and_the_earliest_time() {
        let at = |seconds: i64| Timestamp::from_second(seconds).expect("a time");
        let outage = |seconds: i64, cause: Cause| Outage { since: at(seconds), begun: Instant::now(), cause };
        let open = [
            (Kind::Service, outage(60, Cause::Unreachable)),
            (Kind::Node, outage(30, Cause::Unreachable)),
            (Kind::Pod, outage(90, Cause::Forbidden)),
        ];
        assert_eq!(
            sentences(&open.into()),
            [
                "Service, Node not read since 1970-01-01T00:00:30Z: the server cannot be reached; \
                 what is known stays in force",
                "Pod not read since 1970-01-01T00:01:30Z: the credentials have no right to read it (403); \
                 what is known stays in force",
            ]
        );
    }

    #[test]
    fn an_outage_is_a_note_and_a_metric_until_every_kind_can_be_read_again() {
        let (health, registry) = (Health::default(), Registry::new("1", "x"));
        let kinds = [Kind::Service, Kind::Node];
        let outages = Outages::register("API server", kinds, &registry, &health).expect("names are registered once");
        assert!(registry.text().contains("sluice_source_failing{kind=\"Node\"} 0\n"));
        let nodes_are_read = outages.nodes_are_read();
        assert!(outages.fails(Kind::Service, Cause::Unreachable, "refused"));
        assert!(*nodes_are_read.borrow());
        assert!(!outages.fails(Kind::Node, Cause::Unauthorized, "expired"));
        assert_eq!(lines(&health).len(), 2, "{:?}", lines(&health));
        let text = registry.text();
        assert!(text.contains("sluice_source_failing{kind=\"Service\"} 1\n"), "{text}");
        assert!(text.contains("sluice_source_failures_total{kind=\"Node\",reason=\"unauthorized\"} 1\n"), "{text}");
        outages.works(Kind::Service);
        assert!(!*nodes_are_read.borrow());
        assert!(lines(&health)[0].starts_with("API server: Node not read since "), "{:?}", lines(&health));
        outages.works(Kind::Node);
        assert!(*nodes_are_read.borrow());
        assert_eq!(lines(&health), Vec::<String>::new());
        assert!(registry.text().contains("sluice_source_failing{kind=\"Node\"} 0\n"));
    }

    #[test]
    fn an_outage_that_began_before_the_clock_was_set_is_as_old_as_it_is() {
        let outages = Outages::new().expect("names are valid");
        let unread_since = outages.unread_since();
        let in_1970 = |seconds: i64| Timestamp::from_second(seconds).expect("a time");
        let begun = Instant::now();
        let later = begun + Duration::from_secs(90);
        let outage = |since, begun| Outage { since, begun, cause: Cause::Unreachable };
        // The clock went back between the two.
        let open = [(Kind::Service, outage(in_1970(60), begun)), (Kind::Node, outage(in_1970(30), later))];
        outages.0.tell(&open.into());
        assert_eq!(*unread_since.borrow(), Some(begun));
        outages.0.tell(&BTreeMap::new());
        assert_eq!(*unread_since.borrow(), None);
    }

    #[test]
    fn each_refusal_of_services_or_their_endpoints_is_told_and_its_end() {
        let outages = Outages::new().expect("names are valid");
        let refused_at = outages.services_refused_at();
        outages.fails(Kind::Node, Cause::Forbidden, "no");
        outages.fails(Kind::Service, Cause::Unreachable, "no");
        assert_eq!(*refused_at.borrow(), None, "they may come");
        outages.fails(Kind::EndpointSlice, Cause::Forbidden, "no");
        let first = *refused_at.borrow();
        assert!(first.is_some());
        outages.fails(Kind::EndpointSlice, Cause::Forbidden, "no");
        assert!(*refused_at.borrow() > first, "it was asked for again");
        outages.works(Kind::EndpointSlice);
        assert_eq!(*refused_at.borrow(), None);
    }
}
