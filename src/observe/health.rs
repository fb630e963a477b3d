//! Liveness and readiness of the program.
//!
//! `/healthz` answers the kubelet's liveness probe, which kills the pod when the answer is no. Only one thing is
//! mended by that: a loop that has stopped turning. So a component is alive as long as it beats within its
//! deadline, whatever its work runs into. An API server that cannot be reached or a kernel that refuses a write
//! would still be there after a restart; they are *trouble*, and trouble is never a reason to be killed.
//!
//! `/readyz` answers whether what was asked for has been done: every component has finished its first round
//! (`ready`), beats, and has no trouble. Its answer names each reason on a line of its own.
//!
//! A *note* is what somebody should see to and what makes nothing worse for now: the API server cannot be read, say,
//! while everything that is known is in force. It stands in the answer of `/readyz` and does not change its status.
//!
//! A component owes its first beat within the deadline after it registers. Time is passed in, so that all of
//! this is a calculation; the handle is shared between tasks and its lock is held for a few instructions only.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The health of the whole program. Clones are the same health.
#[derive(Clone, Default, Debug)]
pub struct Health {
    components: Arc<Mutex<Vec<Component>>>,
    notes: Arc<Mutex<BTreeMap<&'static str, Vec<String>>>>,
}

/// Handle by which one component sets its notes.
#[derive(Clone, Debug)]
pub struct Note {
    health: Health,
    component: &'static str,
}

/// Handle by which one component reports that it is alive and ready.
#[derive(Clone, Debug)]
pub struct Pulse {
    health: Health,
    index: usize,
}

#[derive(Debug)]
struct Component {
    name: &'static str,
    deadline: Duration,
    last_beat: Instant,
    ready: bool,
    trouble: Option<String>,
    synced: Option<Instant>,
}

/// State of one component.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ComponentState {
    pub name: &'static str,
    /// The reasons against its being ready.
    pub reasons: Vec<String>,
    /// Time since the kernel was last known to hold all that it is to hold; `None` where it never was, or where the component keeps nothing there.
    pub synced: Option<Duration>,
}

/// Why the program is not ready: one component, one reason.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reason {
    pub component: &'static str,
    pub text: String,
}

impl Health {
    /// Adds a component that promises to beat at least once in every `deadline`, from now on. It starts unready.
    pub fn register(&self, name: &'static str, deadline: Duration, now: Instant) -> Pulse {
        let mut components = self.components();
        components.push(Component { name, deadline, last_beat: now, ready: false, trouble: None, synced: None });
        Pulse { health: self.clone(), index: components.len() - 1 }
    }

    /// The components that have missed their deadline. Empty means alive.
    pub fn stuck(&self, now: Instant) -> Vec<Reason> {
        self.components().iter().filter_map(|component| component.stuck(now)).collect()
    }

    /// Returns the reasons against being ready, in the order of registration. Empty means ready.
    pub fn unready(&self, now: Instant) -> Vec<Reason> {
        self.components().iter().flat_map(|component| component.unready(now)).collect()
    }

    /// Returns the state of every component, in the order of registration.
    pub fn components_at(&self, now: Instant) -> Vec<ComponentState> {
        let state = |component: &Component| ComponentState {
            name: component.name,
            reasons: component.unready(now).map(|reason| reason.text).collect(),
            synced: component.synced.map(|at| now.saturating_duration_since(at)),
        };
        self.components().iter().map(state).collect()
    }

    /// A place for the notes of a component, which need not have been registered.
    pub fn note(&self, component: &'static str) -> Note {
        Note { health: self.clone(), component }
    }

    /// Returns the notes, which speak neither against being alive nor against being ready.
    pub fn notes(&self) -> Vec<Reason> {
        let notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |(component, texts): (&&'static str, &Vec<String>)| {
            let component = *component;
            texts.iter().map(|text| Reason { component, text: text.clone() }).collect::<Vec<_>>()
        };
        notes.iter().flat_map(of).collect()
    }

    fn components(&self) -> MutexGuard<'_, Vec<Component>> {
        // Each change is one assignment, so a thread that panicked here has left nothing half done.
        self.components.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pulse {
    /// Records that the loop is alive.
    pub fn beat(&self, now: Instant) {
        // A beat that was delayed on its way must not undo a later one.
        self.change(|component| component.last_beat = component.last_beat.max(now));
    }

    /// Sets whether this component has done what it is there for.
    pub fn ready(&self, ready: bool) {
        self.change(|component| component.ready = ready);
    }

    /// Records that the kernel holds all that this component is to bring into it.
    pub fn synced(&self, now: Instant) {
        self.change(|component| component.synced = Some(now));
    }

    /// Sets the present trouble, in a few words; `None` for none.
    pub fn trouble(&self, trouble: Option<String>) {
        self.change(|component| component.trouble = trouble);
    }

    fn change(&self, change: impl FnOnce(&mut Component)) {
        if let Some(component) = self.health.components().get_mut(self.index) {
            change(component);
        }
    }
}

impl Note {
    /// Replaces the notes of the component by these.
    pub fn set(&self, texts: Vec<String>) {
        let mut notes = self.health.notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.insert(self.component, texts);
    }
}

impl Component {
    fn stuck(&self, now: Instant) -> Option<Reason> {
        let silent = now.saturating_duration_since(self.last_beat);
        (silent > self.deadline).then(|| {
            self.reason(format!("has not moved for {} s, allowed are {} s", silent.as_secs(), self.deadline.as_secs()))
        })
    }

    fn unready(&self, now: Instant) -> impl Iterator<Item = Reason> {
        let not_yet = (!self.ready).then(|| self.reason("has not finished its first round".to_owned()));
        let trouble = self.trouble.as_ref().map(|text| self.reason(text.clone()));
        [self.stuck(now), not_yet, trouble].into_iter().flatten()
    }

    fn reason(&self, text: String) -> Reason {
        Reason { component: self.name, text }
    }
}

impl fmt::Display for Reason {
    /// One line that a terminal shows as it is, whatever the text holds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.component, self.text.replace(char::is_control, " "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    fn seconds(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    fn lines(reasons: &[Reason]) -> Vec<String> {
        reasons.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn without_components_all_is_well() {
        let (health, start) = (Health::default(), Instant::now());
        assert!(health.stuck(start).is_empty());
        assert!(health.unready(start).is_empty());
    }

    #[test]
    fn a_component_lives_from_beat_to_deadline() {
        let (health, start) = (Health::default(), Instant::now());
        let proxy = health.register("proxy", DEADLINE, start);
        assert!(health.stuck(seconds(start, 10)).is_empty(), "the first beat is due within the deadline");
        assert_eq!(lines(&health.stuck(seconds(start, 11))), ["proxy: has not moved for 11 s, allowed are 10 s"]);
        proxy.beat(seconds(start, 11));
        assert!(health.stuck(seconds(start, 21)).is_empty(), "a late beat brings it back");
        assert_eq!(health.stuck(seconds(start, 22)).len(), 1);
    }

    #[test]
    fn one_stuck_component_is_not_hidden_by_the_others() {
        let (health, start) = (Health::default(), Instant::now());
        let (watch, _proxy) = (health.register("watch", DEADLINE, start), health.register("proxy", DEADLINE, start));
        watch.beat(seconds(start, 60));
        let stuck = health.stuck(seconds(start, 60));
        assert_eq!(stuck.iter().map(|reason| reason.component).collect::<Vec<_>>(), ["proxy"]);
    }

    #[test]
    fn a_beat_from_the_past_takes_nothing_away() {
        let (health, start) = (Health::default(), Instant::now());
        let proxy = health.register("proxy", DEADLINE, start);
        proxy.beat(seconds(start, 20));
        proxy.beat(seconds(start, 5));
        assert!(health.stuck(seconds(start, 30)).is_empty());
        assert!(health.stuck(start).is_empty(), "a clock read earlier than the last beat is no trouble either");
    }

    #[test]
    fn trouble_makes_unready_and_never_dead() {
        let (health, start) = (Health::default(), Instant::now());
        let proxy = health.register("proxy", DEADLINE, start);
        assert_eq!(lines(&health.unready(start)), ["proxy: has not finished its first round"]);
        proxy.ready(true);
        assert!(health.unready(start).is_empty());
        proxy.trouble(Some("the kernel refuses\nvirtual\u{1b}services".to_owned()));
        assert_eq!(lines(&health.unready(start)), ["proxy: the kernel refuses virtual services"]);
        assert!(health.stuck(start).is_empty());
        proxy.trouble(None);
        assert!(health.unready(start).is_empty());
    }

    #[test]
    fn a_note_is_said_and_changes_nothing_else() {
        let (health, start) = (Health::default(), Instant::now());
        let note = health.note("API server");
        note.set(vec!["Pod: cannot be read".to_owned(), "Service: cannot be read".to_owned()]);
        assert_eq!(lines(&health.notes()), ["API server: Pod: cannot be read", "API server: Service: cannot be read"]);
        assert!(health.stuck(start).is_empty() && health.unready(start).is_empty());
        note.set(Vec::new());
        assert!(health.notes().is_empty());
    }

    #[test]
    fn a_stuck_component_is_not_ready_and_every_reason_is_named() {
        let (health, start) = (Health::default(), Instant::now());
        let proxy = health.register("proxy", DEADLINE, start);
        proxy.trouble(Some("no route".to_owned()));
        assert_eq!(
            lines(&health.unready(seconds(start, 11))),
            [
                "proxy: has not moved for 11 s, allowed are 10 s",
                "proxy: has not finished its first round",
                "proxy: no route"
            ]
        );
    }

    #[test]
    fn clones_speak_for_the_same_component() {
        let (health, start) = (Health::default(), Instant::now());
        let proxy = health.register("proxy", DEADLINE, start);
        proxy.clone().ready(true);
        assert!(health.clone().unready(start).is_empty());
    }
}
