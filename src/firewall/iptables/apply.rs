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
//! Elements of sets that rules name already come and go in an order in which nothing opens between two acts (`order`,
//! `turning`). The families wait for nothing in each other, and what closes a path does not wait for rules that fail.
//!
//! The set of local pods stands apart once our tail is in the kernel: being in it opens an address, so an address comes
//! after its rules, and, where unknown addresses are closed (`--netpol-default-deny`), leaves before them. At a first
//! start it is filled first, so that the tail cuts nobody off.
//!
//! What the kernel refuses is left out, so that it does not hold up the rest (`overlay`).
//!
//! A remembered cluster is for a kernel that has nothing of ours, as after a boot. Where our dispatch chains are entered,
//! the kernel is the newer memory, and what it lacks was deleted after the file was written.

mod acts;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::kernel::ipset::{ElementKey, SetName, SetSpec};
use crate::kernel::iptables::{Piece, Refusal, Rules, Timing};
use crate::model::Authority;
use crate::net::{Family, PerFamily};
use crate::reconcile::{Found, Growth, Moment, Reflection, Target, audit};
use crate::subsystem::{Kinds, kinds};

use self::acts::{Given, pods_of};
use super::desired::{Changed, Desired};
use super::dispatch;
use super::enforced::Seen;
use super::lowering::elements_of;
use super::names::CHAIN_TAIL;
use super::overlay::{Overlay, Refusals};
use super::turning::AllRules;

/// The families of kernel objects that the firewall keeps. Implemented once on Linux (`linux`) and once in memory for
/// the simulation.
pub trait Kernel {
    type Sets: Target<Key = SetName, Value = SetSpec>;
    type Elements: Target<Key = ElementKey, Value = ()> + Timed;
    type Rules: Target<Key = Piece, Value = Rules> + Refusing;

    /// Brings about what lets the rules see all packets of pods. Called before the first round and after each audit.
    /// `pods_on_bridge`: a kernel that lacks the settings of bridges fails.
    fn keep_settings(&mut self, pods_on_bridge: bool, at: Moment) -> Result<(), String>;

    /// Whether the kernel speaks IPv6 at all. Asked once, at the start.
    fn has_ipv6(&self) -> bool {
        true
    }

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

    /// Whether the rules of this family could not be read the last time, while those of the other could.
    fn is_unreadable(&self, family: Family) -> bool;
}

/// A family that tells how long its changes took.
pub trait Timed {
    /// For each family of addresses, since this was asked the last time.
    fn take_took(&mut self) -> PerFamily<Duration>;
}

kinds! {
    /// What was last seen of the kernel, kind by kind, in the order of growing.
    pub struct Mirrors {
        sets: Sets,
        elements: Elements,
        rules: Rules after Rules,
    }
    with {
        refusals: Refusals,
        overlay: Overlay,
        /// Whether a remembered cluster is put in place: once it has been, all that there is comes from it.
        uses_memory: bool,
        /// Elements that were wanted and are no longer.
        left: BTreeSet<ElementKey>,
        untidy: Option<Untidy>,
    }
}

/// Something may be left that nobody enters any more.
#[derive(Clone, Copy)]
struct Untidy {
    since: Instant,
    until: Instant,
}

/// How long what nobody enters any more stays behind a change, so that removing it holds up none that follows; and how long
/// at most, while changes go on.
const TIDY: Duration = Duration::from_millis(200);
const TIDY_AT_LAST: Duration = Duration::from_secs(5);

/// What one round did.
#[derive(Default, Debug)]
pub struct Round {
    /// Steps in all families together.
    pub steps: u64,
    /// What the sets and their elements took, and what the rules took.
    pub sets_took: Duration,
    /// What changing the elements of each family took; zero where none changed.
    pub elements_took: PerFamily<Duration>,
    pub rules_took: Duration,
    /// The programs that were run for it.
    pub timings: Vec<Timing>,
    /// Chains that the kernel refuses, for the first time or again.
    pub refused: Vec<Refusal>,
    /// How many chains that had been refused are there now, or are not wanted any more.
    pub settled: usize,
}

impl<K: Kernel> Mirrors<K> {
    pub fn new(targets: Targets<K>) -> Mirrors<K> {
        Mirrors::of(targets)
    }

    /// Says what is wanted differently from now on.
    pub fn mark(&mut self, changed: &Changed) {
        changed.sets.iter().for_each(|key| self.sets.mark(key.clone()));
        changed.elements.iter().for_each(|key| self.elements.mark(key.clone()));
        changed.rules.iter().for_each(|key| self.rules.mark(key.clone()));
        self.left.extend(changed.left.iter().cloned());
        if !changed.rules.is_empty() {
            // What failed is tried again together with what is new.
            self.rules.try_at_once();
        }
    }

    /// One round: growing as far as `authority` allows, then shrinking where it is allowed.
    pub fn round(&mut self, desired: &Desired, authority: Authority, at: Moment) -> Round {
        let (before, begun) = (self.steps_done(), Instant::now());
        if authority == Authority::Nothing {
            return Round::default();
        }
        // What is in force already decides about the order below. What fails here shows with the rules.
        self.rules.learn(at);
        if authority == Authority::Remembered && !self.may_use_memory() {
            return Round::default();
        }
        let mut left = std::mem::take(&mut self.left);
        left.retain(|key| authority != Authority::Complete && !desired.elements.contains_key(key));
        let mut round = self.acts(&Given { desired, authority, at, left: &left }, begun);
        self.left = left;
        round.steps = self.steps_done() - before;
        round.elements_took = self.elements.target().take_took();
        round.timings = self.rules.target().take_timings();
        round
    }

    fn acts(&mut self, given: &Given<'_>, begun: Instant) -> Round {
        let Given { desired, authority, at, .. } = *given;
        let mut round = Round::default();
        match authority {
            Authority::Complete => self.shut_out_gone_pods(desired, at),
            _ => self.untidy = None,
        }
        self.grow_sets(desired, at);
        let order = self.order(given);
        self.change_elements_before(given, &order);
        let sets_are_there = Instant::now();
        round.sets_took = sets_are_there - begun;
        if self.waits_for_sets(desired, &order, at) {
            // All that is due meanwhile waits for the same, so that nobody comes back for it before.
            self.untidy = None;
            self.refusals.fall_due(at.now);
            return round;
        }
        let mut held = self.held(given, &order);
        self.turn(given, &order, &mut held, &mut round);
        let rules_before = self.rules.steps_done();
        let want = self.grow_rules(given, held, &mut round);
        let want = want.as_ref().unwrap_or(&desired.rules);
        round.rules_took = sets_are_there.elapsed();
        self.add_behind(given, want, |key, _| order.late.contains(key));
        // What closes a path goes before what nobody enters any more.
        let may_go = |key: &ElementKey| given.may_go(key) && !self.waits_for_rules(key, &order, held, at);
        let going: BTreeSet<ElementKey> =
            self.elements.differing(&desired.elements).surplus.into_iter().filter(may_go).collect();
        self.elements.shrink_where(&desired.elements, at, |key, _| going.contains(key));
        if authority == Authority::Complete && self.is_time_to_tidy(self.rules.steps_done() > rules_before, at) {
            // Where rules could not be changed, the old ones may still need what shall go.
            let stuck: BTreeSet<Family> = self.rules.failing_to_grow().map(Piece::family).collect();
            let may_go = |piece: &Piece| !stuck.contains(&piece.family()) && !*held.of(piece.family());
            self.rules.shrink_where(want, at, |piece, _| may_go(piece));
            self.shrink_sets(desired, at);
        }
        // Last of all: what an earlier pod with the same address might do has gone from the sets by now.
        self.add_behind(given, want, |key, behind| pods_of(key).is_some_and(|family| *behind.of(family)));
        if self.is_settled() {
            // What came last of all was all that was left.
            self.untidy = None;
        }
        round.settled = self.refusals.settle(&desired.rules, self.rules.seen());
        round
    }

    /// Brings about what lets the rules see all packets of pods, or says why that failed.
    pub fn keep_settings(&mut self, pods_on_bridge: bool, at: Moment) -> Result<(), String> {
        self.kernel.keep_settings(pods_on_bridge, at)
    }

    /// Whether the kernel speaks IPv6 at all.
    pub fn has_ipv6(&self) -> bool {
        self.kernel.has_ipv6()
    }

    /// Removes what earlier runs left where it no longer belongs.
    pub fn remove_abandoned(&mut self) -> Vec<String> {
        self.kernel.remove_abandoned()
    }

    /// Looks at everything at once: somebody asks what the kernel holds.
    pub fn look_at_all(&mut self, at: Moment) -> Vec<Found> {
        self.kinds().into_iter().flat_map(|kind| audit(kind.mirror, at).0).collect()
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
        families.chain(self.refusals.retry_at()).chain(self.untidy.map(|untidy| untidy.until)).min()
    }

    /// True when every family is known to be as wanted, as far as the kernel takes it.
    pub fn is_settled(&self) -> bool {
        self.reflections().into_iter().all(|family| family.is_settled())
    }

    /// True when a chain that was refused is to be tried again.
    pub fn has_due_refusals(&self, now: Instant) -> bool {
        self.refusals.retry_at().is_some_and(|at| at <= now)
    }

    /// Whether what is remembered is put in place: the kernel is known to have nothing of ours that anything enters.
    fn may_use_memory(&mut self) -> bool {
        let is_read = Family::BOTH.into_iter().all(|family| !self.rules.peek().is_unreadable(family));
        let are_entered = || Family::BOTH.into_iter().any(|family| self.are_entered(family));
        self.uses_memory |= is_read && self.rules.seen().is_some() && !are_entered();
        self.uses_memory
    }

    fn grow_sets(&mut self, desired: &Desired, at: Moment) {
        let made = self.sets.grow(&desired.sets, Growth::Full, at);
        // A set that is made has no elements, whatever was known of an older one of the same name.
        if made.iter().any(|set| !self.elements.lacks(elements_of(set))) {
            self.elements.forget();
        }
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

    /// The rules that are wanted for now, where that is not simply what is desired.
    fn rules_for_now(&mut self, given: &Given<'_>) -> Option<AllRules> {
        let Given { desired, authority, at, .. } = *given;
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

    /// Whether to remove what nobody enters any more.
    fn is_time_to_tidy(&mut self, has_changed: bool, at: Moment) -> bool {
        if has_changed && !self.is_settled() {
            let since = self.untidy.map_or(at.now, |untidy| untidy.since);
            self.untidy = Some(Untidy { since, until: (at.now + TIDY).min(since + TIDY_AT_LAST) });
        }
        self.untidy = self.untidy.filter(|untidy| at.now < untidy.until);
        self.untidy.is_none()
    }

    fn take_refused(&mut self, at: Moment) -> Vec<Refusal> {
        let mut refused = self.rules.target().take_refused();
        refused.retain(|refusal| self.refusals.note(&refusal.piece, refusal.reason.clone(), at));
        refused
    }

    /// Elements go when no rule names their set any more; sets go when they are empty.
    fn shrink_sets(&mut self, desired: &Desired, at: Moment) {
        let rules_are_settled = self.rules.is_settled();
        self.elements
            .shrink_where(&desired.elements, at, |key, _| rules_are_settled && !desired.sets.contains_key(&key.set));
        let elements = &self.elements;
        self.sets.shrink_where(&desired.sets, at, |set, _| rules_are_settled && elements.lacks(elements_of(set)));
    }
}
