//! State of a subsystem's kinds of kernel objects, for people: in the log once when a trouble begins, changes or ends,
//! in metrics all the time.

use std::collections::BTreeMap;

use prometheus::{IntCounterVec, IntGauge, IntGaugeVec, Opts};
use tracing::{info, warn};

use super::audits::Found;
use super::mirror::{Drift, Reflection};
use crate::observe::metrics::Registry;

/// Number of changed objects of a kind that are named in the log at once.
const NAMED: usize = 10;

/// Log and metrics of one subsystem's kinds.
pub struct Account {
    /// The troubles that were logged, by kind.
    told: BTreeMap<&'static str, String>,
    /// The kinds without trouble, with the steps that were last reported, in the order in which they come.
    quiet: Vec<Option<(&'static str, u64)>>,
    steps: ByKind,
    failing: ByKind,
    drift: IntCounterVec,
}

/// The gauges of a family, each looked up by its label once.
struct ByKind {
    family: IntGaugeVec,
    known: BTreeMap<&'static str, IntGauge>,
}

impl ByKind {
    fn new(options: Opts) -> Result<ByKind, prometheus::Error> {
        Ok(ByKind { family: IntGaugeVec::new(options, &["kind"])?, known: BTreeMap::new() })
    }

    fn set(&mut self, kind: &'static str, value: i64) {
        self.known.entry(kind).or_insert_with(|| self.family.with_label_values(&[kind])).set(value);
    }
}

impl Account {
    /// Makes the metrics, whose names begin with `prefix`, and registers them.
    ///
    /// # Errors
    /// A name is registered already.
    pub fn register(registry: &Registry, prefix: &str) -> Result<Account, prometheus::Error> {
        let options = |name: &str, help: &str| Opts::new(format!("{prefix}_{name}"), help);
        let account = Account {
            told: BTreeMap::new(),
            quiet: Vec::new(),
            steps: ByKind::new(options("steps", "Changes made in the kernel since the start, by kind of objects"))?,
            failing: ByKind::new(options(
                "failing",
                "1 while a kind of kernel objects differs from the desired state because of failures",
            ))?,
            drift: IntCounterVec::new(
                options("drift_total", "Objects that somebody else changed, found by audits"),
                &["kind", "drift"],
            )?,
        };
        registry.register(Box::new(account.steps.family.clone()))?;
        registry.register(Box::new(account.failing.family.clone()))?;
        registry.register(Box::new(account.drift.clone()))?;
        Ok(account)
    }

    /// Logs and counts the findings of an audit: of each kind the first ones by name, and how many others there are.
    pub fn found(&self, found: &[Found]) {
        let mut counts: BTreeMap<&'static str, usize> = BTreeMap::new();
        for Found { kind, drift } in found {
            let (drift, object) = match drift {
                Drift::Missing(object) => ("missing", object),
                Drift::Different(object) => ("different", object),
                Drift::Unexpected(object) => ("unexpected", object),
            };
            self.drift.with_label_values(&[*kind, drift]).inc();
            let count = counts.entry(*kind).or_default();
            *count += 1;
            if *count <= NAMED {
                warn!(kind, drift, object = %object, "Drift detected; repairing");
            }
        }
        for (kind, count) in counts.into_iter().filter(|(_, count)| *count > NAMED) {
            warn!(kind, objects = count - NAMED, "Drift detected in more objects; repairing");
        }
    }

    /// Reports the state of the kinds; returns the troubles, for health.
    pub fn kinds(&mut self, kinds: &[&dyn Reflection]) -> Vec<String> {
        let mut troubles = Vec::new();
        self.quiet.resize(kinds.len(), None);
        for (index, kind) in kinds.iter().enumerate() {
            let (name, trouble, steps) = (kind.name(), kind.trouble(), kind.steps_done());
            let now = trouble.is_none().then_some((name, steps));
            if let Some(before) = self.quiet.get_mut(index) {
                // Most turns concern one kind or two of a dozen.
                if std::mem::replace(before, now) == now && now.is_some() {
                    continue;
                }
            }
            self.steps.set(name, i64::try_from(steps).unwrap_or(i64::MAX));
            troubles.extend(self.trouble(name, trouble.map(|trouble| (trouble.objects, trouble.error.as_str()))));
        }
        troubles
    }

    /// Reports the state of something that is no kind: how many objects differ from desired, and why. Returns the
    /// trouble.
    pub fn trouble(&mut self, name: &'static str, trouble: Option<(usize, &str)>) -> Option<String> {
        self.failing.set(name, i64::from(trouble.is_some()));
        let Some((objects, error)) = trouble else {
            if self.told.remove(name).is_some() {
                info!(kind = name, "Kernel update recovered");
            }
            return None;
        };
        if self.told.get(name).map(String::as_str) != Some(error) {
            warn!(kind = name, objects, error, "Kernel update failed; retrying");
            self.told.insert(name, error.to_owned());
        }
        Some(format!("{name}: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// The log, as one text.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("nobody panics with it").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_flushed_set_is_ten_lines_and_a_number() {
        let account = Account::register(&Registry::new("test", "test"), "test").expect("names are registered once");
        let flushed =
            (0..50_000).map(|index| Found { kind: "elements", drift: Drift::Missing(format!("set {index}")) });
        let mut found: Vec<Found> = flushed.collect();
        found.push(Found { kind: "rules", drift: Drift::Missing("a rule".to_owned()) });
        let log = Log::default();
        let out = log.clone();
        let to_log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || out.clone()).finish();
        tracing::subscriber::with_default(to_log, || account.found(&found));
        let log = String::from_utf8(log.0.lock().expect("nobody panics with it").clone()).expect("text");
        assert_eq!(log.lines().count(), 12, "{} lines", log.lines().count());
        assert!(log.contains("a rule") && log.contains("49990"), "{log}");
        assert_eq!(account.drift.with_label_values(&["elements", "missing"]).get(), 50_000);
    }
}
