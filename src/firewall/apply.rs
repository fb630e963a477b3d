//! Puts a `Desired` firewall into the kernel.
//!
//! Order of growing; each needs those before it:
//!
//! 1. sets, then their elements: a rule only ever names a set that is complete;
//! 2. rules: for each family all that changed is one transaction, so a packet meets either all of the old or all of
//!    the new, also when another program's rules are taken over.
//!
//! Shrinking goes the other way: chains that nobody enters any more, elements, sets.
//!
//! The set of local pods stands apart while addresses are closed by default (`--netpol-default-deny`): being in it opens
//! an address, so an address comes after its rules and leaves before them. Otherwise it is a set like any other.
//!
//! What the kernel refuses is left out, so that it does not hold up the rest (`overlay`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::kernel::ipset::{ElementKey, SetName, SetSpec};
use crate::kernel::iptables::{Piece, Refusal, Rules, Timing};
use crate::model::Authority;
use crate::net::{Family, PerFamily};
use crate::reconcile::{Drift, Growth, Mirror, Moment, Reflection, Target, Trouble};

use super::desired::{Changed, Desired};
use super::dispatch;
use super::enforced::Seen;
use super::lowering::elements_of;
use super::names::{self, CHAIN_TAIL};
use super::overlay::{Overlay, Refusals};

/// The families of kernel objects that the firewall keeps. Implemented once on Linux (`linux`) and once in memory for
/// the simulation.
pub trait Kernel {
    type Sets: Target<Key = SetName, Value = SetSpec>;
    type Elements: Target<Key = ElementKey, Value = ()>;
    type Rules: Target<Key = Piece, Value = Rules> + Refusing;

    /// Brings about what lets the rules see all packets of pods. Called before the first round and after each audit.
    fn keep_settings(&mut self, at: Moment) -> Result<(), String>;

    /// Removes what is ours from where it no longer belongs: rules in the tables of the flavour that the host has given
    /// up. Called once what replaces them stands. Returns why something could not be removed.
    fn remove_abandoned(&mut self) -> Vec<String>;
}

/// A family that tells which of several failed objects were at fault.
pub trait Refusing {
    /// What was refused for its own sake since this was asked the last time.
    fn take_refused(&mut self) -> Vec<Refusal>;

    /// How long programs took since this was asked the last time.
    fn take_timings(&mut self) -> Vec<Timing>;
}

/// The targets of one kernel.
pub struct Targets<K: Kernel> {
    pub kernel: K,
    pub sets: K::Sets,
    pub elements: K::Elements,
    pub rules: K::Rules,
}

/// What was last seen of the kernel, family by family.
pub struct Mirrors<K: Kernel> {
    kernel: K,
    sets: Mirror<K::Sets>,
    elements: Mirror<K::Elements>,
    rules: Mirror<K::Rules>,
    refusals: Refusals,
    overlay: Overlay,
    audited: usize,
}

/// How long rules wait for sets and elements that fail.
const PATIENCE: Duration = Duration::from_secs(2);

/// In how many forms a chain is tried: whole, then reduced, then closed; and once more for what needs it.
const FORMS: usize = 3;

/// What one round did.
#[derive(Default, Debug)]
pub struct Round {
    /// Steps in all families together.
    pub steps: u64,
    /// What the sets and their elements took, and what the rules took.
    pub sets_took: Duration,
    pub rules_took: Duration,
    /// The programs that were run for it.
    pub timings: Vec<Timing>,
    /// Chains that the kernel refuses, for the first time or again.
    pub refused: Vec<Refusal>,
    /// How many chains that had been refused are there now, or are not wanted any more.
    pub settled: usize,
}

/// Something that an audit found amiss.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    pub family: &'static str,
    pub drift: Drift,
}

impl<K: Kernel> Mirrors<K> {
    pub fn new(targets: Targets<K>) -> Mirrors<K> {
        Mirrors {
            kernel: targets.kernel,
            sets: Mirror::new(targets.sets),
            elements: Mirror::new(targets.elements),
            rules: Mirror::new(targets.rules),
            refusals: Refusals::default(),
            overlay: Overlay::default(),
            audited: 0,
        }
    }

    /// Says what is wanted differently from now on.
    pub fn mark(&mut self, changed: &Changed) {
        changed.sets.iter().for_each(|key| self.sets.mark(key.clone()));
        changed.elements.iter().for_each(|key| self.elements.mark(key.clone()));
        changed.rules.iter().for_each(|key| self.rules.mark(key.clone()));
    }

    /// One round: growing as far as `authority` allows, then shrinking where it is allowed.
    pub fn round(&mut self, desired: &Desired, authority: Authority, at: Moment) -> Round {
        let growth = match authority {
            Authority::Nothing => return Round::default(),
            Authority::Remembered => Growth::OnlyMissing,
            Authority::Partial | Authority::Complete => Growth::Full,
        };
        let before = self.steps_done();
        let begun = Instant::now();
        // Whether addresses are closed already decides about the order below. What fails here shows with the rules.
        self.rules.learn(at);
        if authority == Authority::Complete {
            self.shut_out_gone_pods(desired, at);
        }
        self.grow_sets(desired, growth, at);
        let sets_are_there = Instant::now();
        let mut want = self.rules_for_now(desired, authority, at);
        if self.waits_for_sets(desired, at) {
            return Round { steps: self.steps_done() - before, sets_took: sets_are_there - begun, ..Round::default() };
        }
        self.rules.grow(want.as_ref().unwrap_or(&desired.rules), growth, at);
        let mut refused = self.take_refused(at);
        for _ in 0..FORMS {
            // What was not refused is in force; what stands in for the rest must not come later than it can.
            if refused.is_empty() || self.rules.is_settled() {
                break;
            }
            self.rules.try_at_once();
            want = self.rules_for_now(desired, authority, at);
            self.rules.grow(want.as_ref().unwrap_or(&desired.rules), growth, at);
            refused.extend(self.take_refused(at));
        }
        let want = want.as_ref().unwrap_or(&desired.rules);
        let rules_are_there = Instant::now();
        if authority == Authority::Complete {
            self.rules.shrink(want, at);
            self.shrink_sets(desired, at);
        }
        // Last of all: what an earlier pod with the same address might do has gone from the sets by now.
        self.let_in_pods(desired, want, growth, at);
        let settled = self.refusals.settle(&desired.rules, self.rules.seen());
        Round {
            steps: self.steps_done() - before,
            sets_took: sets_are_there - begun,
            rules_took: rules_are_there - sets_are_there,
            timings: self.rules.target().take_timings(),
            refused,
            settled,
        }
    }

    /// Brings about what lets the rules see all packets of pods, or says why that failed.
    pub fn keep_settings(&mut self, at: Moment) -> Result<(), String> {
        self.kernel.keep_settings(at)
    }

    /// Removes what earlier runs left where it no longer belongs.
    pub fn remove_abandoned(&mut self) -> Vec<String> {
        self.kernel.remove_abandoned()
    }

    /// Looks at the next portion of what should be in the kernel. Returns what was found amiss and whether the audit of
    /// all families is finished.
    pub fn audit(&mut self, at: Moment) -> (Vec<Found>, bool) {
        let index = self.audited;
        let mut families: [&mut dyn Reflection; 3] = [&mut self.sets, &mut self.elements, &mut self.rules];
        let count = families.len();
        let Some(family) = families.get_mut(index) else { return (Vec::new(), true) };
        let (found, finished) = audit_one(*family, at);
        if finished {
            self.audited = (index + 1) % count;
        }
        (found, finished && self.audited == 0)
    }

    /// Looks at the rules at once: somebody else changed some.
    pub fn audit_rules(&mut self, at: Moment) -> Vec<Found> {
        audit_one(&mut self.rules, at).0
    }

    /// Every family, for questions that concern all of them.
    pub fn reflections(&self) -> [&dyn Reflection; 3] {
        [&self.sets, &self.elements, &self.rules]
    }

    /// The chains that the kernel refuses at the moment.
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// What was last seen of the kernel.
    pub fn seen(&self) -> Seen<'_> {
        Seen { rules: self.rules.seen(), elements: self.elements.seen(), refusals: &self.refusals }
    }

    /// When the next retry of a failed step is due.
    pub fn retry_at(&self) -> Option<Instant> {
        let families = self.reflections().into_iter().filter_map(|family| family.retry_at());
        families.chain(self.refusals.retry_at()).min()
    }

    /// True when every family is known to be as wanted, as far as the kernel takes it.
    pub fn is_settled(&self) -> bool {
        self.reflections().into_iter().all(|family| family.is_settled())
    }

    /// True when a chain that was refused is to be tried again.
    pub fn has_due_refusals(&self, now: Instant) -> bool {
        self.refusals.retry_at().is_some_and(|at| at <= now)
    }

    fn steps_done(&self) -> u64 {
        self.reflections().into_iter().map(|family| family.steps_done()).sum()
    }

    /// While sets or elements have just failed to come, rules that may name them are left as they are: a set that lacks
    /// an address refuses what is allowed. What goes on failing delays the rules no longer.
    fn waits_for_sets(&self, desired: &Desired, at: Moment) -> bool {
        fn lacks<T: Target>(mirror: &Mirror<T>, mut wanted: impl Iterator<Item = T::Key>, at: Moment) -> bool {
            let is_fresh = |trouble: &Trouble| at.now.saturating_duration_since(trouble.since) < PATIENCE;
            mirror.trouble().is_some_and(is_fresh) && wanted.any(|key| !mirror.has(&key))
        }
        let elements = desired.elements.keys().filter(|key| pods_of(key).is_none());
        lacks(&self.sets, desired.sets.keys().cloned(), at) || lacks(&self.elements, elements.cloned(), at)
    }

    fn grow_sets(&mut self, desired: &Desired, growth: Growth, at: Moment) {
        let made = self.sets.grow(&desired.sets, growth, at);
        // A set that is made has no elements, whatever was known of an older one of the same name.
        if made.iter().any(|set| !self.elements.lacks(elements_of(set))) {
            self.elements.forget();
        }
        let open = PerFamily::from_fn(|family| !self.is_closed(desired, family));
        self.elements
            .grow_where(&desired.elements, growth, at, |key| pods_of(key).is_none_or(|family| *open.of(family)));
    }

    /// Lets the addresses of pods in whose rules are all there, where being known opens an address.
    fn let_in_pods(&mut self, desired: &Desired, want: &BTreeMap<Piece, Rules>, growth: Growth, at: Moment) {
        if self.elements.is_settled() || !Family::BOTH.into_iter().any(|family| self.is_closed(desired, family)) {
            return;
        }
        let seen = self.rules.seen();
        let stand = PerFamily::from_fn(|family| {
            let mut chains = want.iter().filter(|(piece, _)| piece.family() == family);
            seen.is_some_and(|seen| chains.all(|(piece, rules)| seen.get(piece) == Some(rules)))
        });
        self.elements
            .grow_where(&desired.elements, growth, at, |key| pods_of(key).is_none_or(|family| *stand.of(family)));
    }

    /// Takes the addresses of pods that have gone out of the set before their rules go, where it opens them.
    fn shut_out_gone_pods(&mut self, desired: &Desired, at: Moment) {
        let closes = Family::BOTH
            .into_iter()
            .any(|family| desired.rules.get(&dispatch::chain(family, CHAIN_TAIL)).is_some_and(dispatch::closes));
        if closes && !self.elements.is_settled() {
            self.elements.shrink_where(&desired.elements, at, |key, _| pods_of(key).is_some());
        }
    }

    /// Whether addresses that are not known are closed already. Before that, those of running pods come first, so that
    /// closing cuts none of them.
    fn is_closed(&self, desired: &Desired, family: Family) -> bool {
        let tail = dispatch::chain(family, CHAIN_TAIL);
        let closes = |rules: Option<&Rules>| rules.is_some_and(dispatch::closes);
        let seen = self.rules.seen();
        // While nothing is known of the rules, the tail that an earlier run wrote may be there.
        closes(desired.rules.get(&tail)) && seen.is_none_or(|seen| closes(seen.get(&tail)))
    }

    /// The rules that are wanted for now, where that is not simply what is desired.
    fn rules_for_now(&mut self, desired: &Desired, authority: Authority, at: Moment) -> Option<BTreeMap<Piece, Rules>> {
        let mut overlay = self.refusals.overlay(at.now);
        if let (true, Some(seen)) = (self.sets.trouble().is_some(), self.sets.seen()) {
            let missing: BTreeSet<SetName> =
                desired.sets.keys().filter(|set| !seen.contains_key(*set)).cloned().collect();
            overlay.omit_those_naming(&missing, &desired.rules);
        }
        if authority == Authority::Partial && self.rules.learn(at) {
            let seen = self.rules.seen().expect("it was learned");
            overlay.keep_jumps(&desired.rules, seen);
        }
        if overlay != self.overlay {
            self.rules.mark_all();
            self.overlay = overlay;
        }
        (!self.overlay.is_empty()).then(|| self.overlay.over(&desired.rules))
    }

    fn take_refused(&mut self, at: Moment) -> Vec<Refusal> {
        let mut refused = self.rules.target().take_refused();
        refused.retain(|refusal| self.refusals.note(&refusal.piece, refusal.reason.clone(), at));
        refused
    }

    /// Elements go when no rule names their set any more, or the set stays; sets go when they are empty.
    fn shrink_sets(&mut self, desired: &Desired, at: Moment) {
        let rules_are_settled = self.rules.is_settled();
        self.elements
            .shrink_where(&desired.elements, at, |key, _| rules_are_settled || desired.sets.contains_key(&key.set));
        let elements = &self.elements;
        self.sets.shrink_where(&desired.sets, at, |set, _| rules_are_settled && elements.lacks(elements_of(set)));
    }
}

/// The family of the set of local pods that an element belongs to, if it belongs to one.
fn pods_of(key: &ElementKey) -> Option<Family> {
    Family::BOTH.into_iter().find(|family| key.set == *names::local_pods(*family))
}

fn audit_one(family: &mut dyn Reflection, at: Moment) -> (Vec<Found>, bool) {
    let name = family.name();
    let audited = family.audit(at);
    (audited.drift.into_iter().map(|drift| Found { family: name, drift }).collect(), audited.finished)
}
