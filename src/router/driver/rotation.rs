//! The change of this node's WireGuard key in the router's loop ([`rotation`](crate::router::rotation)): sessions are read, and steps are done.

use std::time::{Duration, Instant};

use tracing::warn;

use super::{Driver, Kernel};
use crate::model::Authority;
use crate::net::PublicKey;
use crate::reconcile::Moment;
use crate::router::rotation::{Rotation, Standing, Step, is_due};

/// Interval of looking at sessions while there is a second device, at least.
const LOOK: Duration = Duration::from_secs(1);
/// A look lists all peers. It takes a fiftieth of the time at most, however many they are and whatever other Nodes say of their keys for however long,
/// unless it takes longer than a fiftieth of the longest interval.
const SHARE: u32 = 50;
/// Longest interval of looks: a look that the kernel kept waiting once keeps a change of keys waiting no longer than this.
const RAREST_LOOK: Duration = Duration::from_secs(60);

/// State of the change between two turns.
#[derive(Default, Debug)]
pub(super) struct KeyChange {
    rotation: Rotation,
    /// The keys of this node that were logged last.
    pub told_first: Option<PublicKey>,
    pub told_next: Option<PublicKey>,
    /// When sessions were looked at last; `None` before the first World.
    looked_at: Option<Instant>,
    /// How long that took.
    look_took: Duration,
    /// The kernel has told them then.
    sees_sessions: bool,
    /// All nodes are known.
    knows_cluster: bool,
    /// Why the last look, and the last step, have failed.
    unseen: Option<String>,
    undone: Option<String>,
}

impl KeyChange {
    /// Returns what a change waits for, and what of it fails, in words for the administrator.
    pub(super) fn notes(&self) -> impl Iterator<Item = String> + '_ {
        let notes = [self.rotation.note(), self.unseen.as_deref(), self.undone.as_deref()];
        notes.into_iter().flatten().map(str::to_owned)
    }
}

/// Takes down why something fails, or that it does not any more; logs what was not said before.
fn note_failure(known: &mut Option<String>, failure: Option<String>) {
    if let Some(reason) = failure.as_ref().filter(|failure| known.as_ref() != Some(failure)) {
        warn!(reason, "The change of this node's WireGuard key is held up");
    }
    *known = failure;
}

impl<K: Kernel> Driver<K> {
    /// Returns when sessions are looked at next.
    pub(super) fn next_session_look(&self) -> Option<Instant> {
        let last = self.key_change.looked_at?;
        self.has_second().then(|| last + (self.key_change.look_took * SHARE).clamp(LOOK, RAREST_LOOK))
    }

    fn has_second(&self) -> bool {
        self.config.key_file.is_some() && (self.plan.wants_second() || self.mirrors.has_second())
    }

    /// Reads keys and sessions with the first World, before it is followed: routes go on by the device by which they are.
    pub(super) fn look_at_sessions_first(&mut self, at: Moment) {
        if self.config.key_file.is_some() && self.key_change.looked_at.is_none() && self.mirrors.learn_wireguard(at) {
            self.look_at_sessions(at);
        }
    }

    /// Reads sessions where their time has come.
    pub(super) fn look_at_sessions_if_due(&mut self, now: Instant) {
        if self.next_session_look().is_some_and(|due| due <= now) {
            let at = self.moments.at(now);
            self.look_at_sessions(at);
            self.step_rotation(at);
        }
    }

    fn look_at_sessions(&mut self, at: Moment) {
        self.key_change.looked_at = Some(at.now);
        self.follow_keys();
        if !self.has_second() {
            return;
        }
        let began = Instant::now();
        let contacts = self.mirrors.contacts();
        let sessions =
            contacts.map(|contacts| contacts.into_iter().map(|(key, contact)| (key, contact.session)).collect());
        self.key_change.sees_sessions = sessions.is_ok();
        let failure = sessions.as_ref().err().map(|error| format!("sessions of WireGuard cannot be read: {error}"));
        note_failure(&mut self.key_change.unseen, failure);
        if let Ok(sessions) = sessions {
            let changed = self.plan.set_sessions(sessions);
            self.mirrors.mark(&changed);
        }
        self.key_change.look_took = began.elapsed();
    }

    pub(super) fn follow_keys(&mut self) {
        let keys = self.config.key_file.as_ref().map(|_| self.mirrors.own_keys()).unwrap_or_default();
        let changed = self.plan.set_own_keys(keys);
        self.mirrors.mark(&changed);
    }

    /// Takes a World that the plan has followed: who is to be waited for is known when all nodes are. To be called before the second device is made for another node's change,
    /// because it keeps the key that it gets.
    pub(super) fn step_rotation_in(&mut self, authority: Authority, at: Moment) {
        self.key_change.knows_cluster = authority == Authority::Complete;
        self.step_rotation(at);
    }

    /// Does the next step of the change, where there is one.
    pub(super) fn step_rotation(&mut self, at: Moment) {
        let may_step = self.config.key_file.is_some() && self.key_change.knows_cluster;
        if !may_step || !self.mirrors.learn_wireguard(at) {
            return;
        }
        self.follow_keys();
        let standing = self.key_standing(at);
        let done = match self.key_change.rotation.step(&standing, at.now) {
            Some(Step::Make) => self.mirrors.make_next_key(),
            Some(Step::Take) => self.mirrors.take_next_key(),
            None => return note_failure(&mut self.key_change.undone, None),
        };
        let failure = done.err().map(|error| format!("the WireGuard key of this node cannot change: {error}"));
        note_failure(&mut self.key_change.undone, failure);
        if self.mirrors.learn_wireguard(at) {
            self.follow_keys();
        }
    }

    fn key_standing(&self, at: Moment) -> Standing {
        let keys = self.mirrors.own_keys();
        let node = &self.plan.own().name;
        let next = self.mirrors.next_key();
        let is_told = next.is_some()
            && self.plan.next_key_in_node(node) == next
            && self.plan.key_in_node(node).is_some_and(|key| Some(key) == keys.first);
        let others: Vec<_> = self.plan.others_change().cloned().collect();
        let period = self.config.key_period;
        let age = period.filter(|_| !keys.has_next).and_then(|_| self.mirrors.key_age());
        // All nodes are gone over only where it matters, because this is done with each World.
        let (by_first_key, disputed) = if keys.is_changing {
            let by_first_key = self.plan.by_first_key().map(|(node, has_next)| (node.clone(), has_next));
            (by_first_key.collect(), self.plan.disputed().cloned().collect())
        } else {
            Default::default()
        };
        Standing {
            // Without an address of our own there is no device.
            is_due: self.plan.own().primary.is_some() && is_due(age, period, !others.is_empty()),
            is_changing: keys.is_changing,
            is_held_up: keys.has_next && !keys.is_changing && self.mirrors.has_second(),
            is_told,
            untold: next.filter(|_| self.plan.next_key_in_node(node) != next),
            is_seen: self.key_change.sees_sessions && self.key_change.looked_at == Some(at.now),
            has_second: self.mirrors.has_second(),
            namesakes: self.plan.namesakes().cloned().collect(),
            by_first_key,
            disputed,
            others,
        }
    }
}
