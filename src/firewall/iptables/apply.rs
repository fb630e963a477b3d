//! Applies a `Desired` firewall to the kernel.
//!
//! Order of growing; each needs those before it:
//!
//! 1. settings, by which rules see all packets of pods;
//! 2. sets, then their elements: a rule only ever names a set that is complete;
//! 3. rules: for each family all changes are one transaction, so a packet meets either all of the old or all of the
//!    new, also when another program's rules are taken over.
//!
//! Shrinking goes the other way: chains that are no longer entered, elements, sets.
//!
//! Elements of sets that rules use already are added and deleted in an order that opens nothing in between (`order`,
//! `turning`). The families do not wait for each other, and what closes a path does not wait for rules that fail; what
//! opens one waits, for a while, for elements that cannot be deleted.
//!
//! The set of local pods is separate once our tail is in the kernel: membership opens an address, so an address is
//! added after its rules, and, where unknown addresses are closed (`--netpol-default-deny`), deleted before them. At a
//! first start it is filled first, so that the tail disconnects no pod.
//!
//! A chain that the kernel refuses is left out, so that it does not hold up the rest (`overlay`).
//!
//! A remembered cluster is only applied to a kernel without objects of ours, as after a boot. Where our dispatch chains
//! are entered, the kernel's state is newer, and what it lacks was deleted after the file was written.

mod acts;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::kernel::ipset::{ElementKey, SetName, SetSpec};
use crate::kernel::iptables::{Piece, Refusal, Rules, Timing};
use crate::kernel::sysctl::{self, Ruled};
use crate::model::Authority;
use crate::net::{Family, PerFamily};
use crate::packed::BlockMap;
use crate::reconcile::{Found, Growth, Moment, Reflection, Target, audit};
use crate::subsystem::{Kinds, kinds};

use self::acts::{RoundInputs, RoundRules, pods_of};
use super::super::backend::NewAddress;
use super::super::frames::{self, FrameRules};
use super::desired::{Desired, LoweredChanges};
use super::dispatch;
use super::enforced::Seen;
use super::lowering::elements_of;
use super::names::CHAIN_TAIL;
use super::new_address::{self, Additions};
use super::overlay::{Overlay, Refusals};
use super::pod_enforced::Applied;
use super::turning::AllRules;

/// The kinds of kernel objects that the firewall manages. Implemented on Linux (`linux`) and in memory for the
/// simulation.
pub trait Kernel {
    type Settings: Ruled;
    type Frames: FrameRules;
    type Sets: Target<Key = SetName, Value = SetSpec>;
    type Elements: Target<Key = ElementKey, Value = ()> + Timed;
    type Rules: Target<Key = Piece, Value = Rules> + Refusing;

    /// Returns whether the kernel has IPv6 and takes rules for it, as far as was seen at the start. Called once, then.
    fn filters_ipv6(&self) -> bool {
        true
    }

    /// Returns the chains of others that may drop what policies allow, each as a sentence without its end.
    fn dropping_chains(&mut self) -> Vec<String> {
        Vec::new()
    }

    /// Returns whether something of ours is where it no longer belongs. What cannot be read is not.
    fn has_abandoned(&mut self) -> bool {
        false
    }

    /// Removes objects of ours from where they no longer belong: rules in the tables of the iptables variant that the
    /// host has given up. Called once their replacements are in place. Returns why something could not be removed.
    fn remove_abandoned(&mut self) -> Vec<String>;
}

/// A kind that reports which of several failed objects were at fault.
pub trait Refusing {
    /// Takes the refusals for an object's own content since the last call.
    fn take_refused(&mut self) -> Vec<Refusal>;

    /// Takes the durations of program runs since the last call.
    fn take_timings(&mut self) -> Vec<Timing>;

    /// Returns whether the last reading of this family's rules failed, while that of the other succeeded.
    fn is_unreadable(&self, family: Family) -> bool;
}

/// A kind that reports the durations of its changes.
pub trait Timed {
    /// Takes the durations by address family, since the last call.
    fn take_took(&mut self) -> PerFamily<Duration>;
}

kinds! {
    /// Last seen state of the kernel, kind by kind, in the order of growing.
    pub struct Mirrors {
        settings: Settings,
        frames: Frames after Rules,
        groups: Frames after Rules,
        sets: Sets,
        elements: Elements in BlockMap,
        rules: Rules after Rules,
    }
    with {
        refusals: Refusals,
        overlay: Overlay,
        /// True if a remembered cluster is applied: once it has been, all existing objects come from it.
        uses_memory: bool,
        /// Elements that are no longer desired.
        left: BTreeSet<ElementKey>,
        untidy: Option<Untidy>,
        /// The last round was one in which absence proves nothing.
        keeps_surplus: bool,
        /// The last round left a remembered cluster alone: the kernel's state is newer.
        leaves_memory: bool,
    }
}

/// Chains that are no longer entered may be left.
#[derive(Clone, Copy)]
struct Untidy {
    since: Instant,
    until: Instant,
}

/// Delay after a change before chains that are no longer entered are removed, so that removing them holds up no
/// following change; and the maximum delay while changes go on.
const TIDY: Duration = Duration::from_millis(200);
const TIDY_AT_LAST: Duration = Duration::from_secs(5);

/// Result of one round.
#[derive(Default, Debug)]
pub struct IptablesRound {
    /// Steps of all kinds together.
    pub steps: u64,
    /// Duration of the sets and their elements, and of the rules.
    pub sets_took: Duration,
    /// Duration of changing the elements of each family; zero if none changed.
    pub elements_took: PerFamily<Duration>,
    pub rules_took: Duration,
    /// The programs that were run.
    pub timings: Vec<Timing>,
    /// Chains that the kernel refuses, for the first time or again.
    pub refused: Vec<Refusal>,
    /// Number of refused chains that now exist or are no longer desired.
    pub settled: usize,
}

impl<K: Kernel> Mirrors<K> {
    pub fn new(targets: Targets<K>) -> Mirrors<K> {
        Mirrors::of(targets)
    }

    /// Marks desired objects as changed.
    pub fn mark(&mut self, changed: &LoweredChanges) {
        if changed.settings {
            self.settings.forget();
        }
        if changed.frames {
            self.frames.mark_all();
            self.groups.mark_all();
        }
        changed.sets.iter().for_each(|key| self.sets.mark(key.clone()));
        changed.elements.iter().for_each(|key| self.elements.mark(key.clone()));
        changed.rules.iter().for_each(|key| self.rules.mark(key.clone()));
        self.left.extend(changed.left.iter().cloned());
        if !changed.rules.is_empty() {
            // Failed steps are retried together with new ones.
            self.rules.try_at_once();
        }
    }

    /// As [`Backend::notes`](super::super::backend::Backend::notes).
    pub fn notes(&mut self, desired: &Desired) -> Vec<String> {
        let mut notes = self.kernel.dropping_chains();
        notes.extend(frames::note(&self.frames, &desired.frames.tags, frames::TAGS_PASS));
        notes.extend(frames::note(&self.groups, &desired.frames.groups, frames::GROUPS_PASS));
        notes
    }

    /// Returns whether pods start although a table of frames is refused.
    pub fn gives_frames_up(&self, desired: &Desired) -> bool {
        frames::is_given_up(&self.frames, &desired.frames.tags)
            || frames::is_given_up(&self.groups, &desired.frames.groups)
    }

    /// Returns what the kernel lacks of what drops frames that no rule sees, as a sentence without its end.
    ///
    /// # Errors
    /// That sentence.
    pub fn frames_enforced(&self, desired: &Desired) -> Result<(), String> {
        frames::enforced(&self.frames, &desired.frames.tags)?;
        frames::enforced(&self.groups, &desired.frames.groups)
    }

    /// Runs one round: grows as far as `authority` allows, then shrinks where that is allowed.
    pub fn round(&mut self, desired: &Desired, authority: Authority, at: Moment) -> IptablesRound {
        let (before, begun) = (self.steps_done(), Instant::now());
        if authority == Authority::Nothing {
            return IptablesRound::default();
        }
        self.keeps_surplus = authority != Authority::Complete;
        // They do not depend on how well the cluster is known.
        sysctl::keep(&mut self.settings, &desired.settings, at);
        // The rules in force determine the order below. A failure here shows with the rules.
        self.rules.learn(at);
        self.leaves_memory = authority == Authority::Remembered && !self.may_use_memory(desired);
        if self.leaves_memory {
            frames::add_missing(&mut self.frames, &desired.frames.tags, at);
            frames::add_missing(&mut self.groups, &desired.frames.groups, at);
            return IptablesRound::default();
        }
        frames::keep(&mut self.frames, &desired.frames.tags, authority, at);
        frames::keep(&mut self.groups, &desired.frames.groups, authority, at);
        let mut left = std::mem::take(&mut self.left);
        left.retain(|key| authority != Authority::Complete && !desired.elements.contains_key(key));
        let mut round = self.acts(&RoundInputs { desired, authority, at, left: &left }, begun);
        // What the kernel has lost has left it.
        if self.elements.seen().is_some() {
            left.retain(|key| self.elements.has(key) || self.elements.is_doubtful(key));
        }
        self.left = left;
        round.steps = self.steps_done() - before;
        round.elements_took = self.elements.target().take_took();
        round.timings = self.rules.target().take_timings();
        round
    }

    /// Returns whether a remembered cluster was left alone in the last round.
    pub fn leaves_memory(&self) -> bool {
        self.leaves_memory
    }

    /// Adds what the kernel lacks of a new address, and nothing else: what judges it before what others allow it.
    pub fn add_address(&mut self, starting: &NewAddress<'_>, desired: &Desired, at: Moment) {
        if !self.rules.learn(at) || !self.elements.learn(at) {
            return;
        }
        let Ok(Additions { rules, elements }) = new_address::additions(starting, desired, self.seen()) else { return };
        if !rules.is_empty() {
            self.rules.grow(&rules, Growth::Full, at);
        }
        let stand = self.rules.seen().is_some_and(|seen| rules.iter().all(|(piece, all)| seen.get(piece) == Some(all)));
        if stand && !elements.is_empty() {
            self.elements.grow(&elements.into(), Growth::Full, at);
        }
        // Compared with these additions alone, everything else counts as settled.
        self.rules.mark_all();
        self.elements.mark_all();
    }

    fn acts(&mut self, given: &RoundInputs<'_>, begun: Instant) -> IptablesRound {
        let RoundInputs { desired, authority, at, .. } = *given;
        let mut round = IptablesRound::default();
        match authority {
            Authority::Complete => self.shut_out_gone_pods(desired, at),
            _ => self.untidy = None,
        }
        self.grow_sets(desired, at);
        let order = self.order(given);
        self.change_elements_before(given, &order);
        let sets_are_there = Instant::now();
        round.sets_took = sets_are_there - begun;
        if self.waits_for_sets(given, &order) {
            // All that is due meanwhile waits for the same, so there is no earlier deadline.
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
        self.add_behind(given, &order, want, |key, _| order.late.contains(key));
        // Elements that close a path are deleted before chains that are no longer entered.
        let goes = |key: &ElementKey| self.goes(key, given, &order, RoundRules { want, held });
        let going: BTreeSet<ElementKey> =
            self.elements.differing(&desired.elements).surplus.into_iter().filter(goes).collect();
        self.elements.shrink_where(&desired.elements, at, |key, _| going.contains(key));
        if authority == Authority::Complete && self.is_time_to_tidy(self.rules.steps_done() > rules_before, at) {
            // Where rules could not be changed, the old ones may still need elements that are to be deleted.
            let stuck: BTreeSet<Family> = self.rules.failing_to_grow().map(Piece::family).collect();
            let may_go = |piece: &Piece| !stuck.contains(&piece.family()) && !*held.of(piece.family());
            self.rules.shrink_where(want, at, |piece, _| may_go(piece));
            self.shrink_sets(desired, at);
        }
        // Last of all: permissions of an earlier pod with the same address have left the sets by now.
        self.add_behind(given, &order, want, |key, behind| pods_of(key).is_some_and(|family| *behind.of(family)));
        if self.is_settled() {
            // Nothing was left but these additions.
            self.untidy = None;
        }
        round.settled = self.refusals.settle(&desired.rules, self.rules.seen());
        round
    }

    /// Returns whether the kernel has IPv6 and takes rules for it.
    pub fn filters_ipv6(&self) -> bool {
        self.kernel.filters_ipv6()
    }

    pub fn has_abandoned(&mut self) -> bool {
        self.kernel.has_abandoned()
    }

    /// Removes objects of earlier runs from where they no longer belong.
    pub fn remove_abandoned(&mut self) -> Vec<String> {
        self.kernel.remove_abandoned()
    }

    /// Audits everything at once, to answer a user's question about the kernel's state.
    pub fn look_at_all(&mut self, at: Moment) -> Vec<Found> {
        self.kinds().into_iter().flat_map(|kind| audit(kind.mirror, at).0).collect()
    }

    /// Returns the chains that the kernel currently refuses.
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Returns the last seen state of the kernel.
    pub fn seen(&self) -> Seen<'_> {
        Seen { rules: self.rules.seen(), elements: self.elements.seen(), refusals: &self.refusals }
    }

    /// Returns the same, with what is currently not applied.
    pub fn applied(&self, desired: &Desired) -> Applied<'_> {
        let failing = self.elements.failing_to_grow().collect();
        let differing = self.elements.differing(&desired.elements);
        let (doubts, keeps_surplus) = (self.elements.doubts().collect(), self.keeps_surplus);
        Applied { seen: self.seen(), overlay: &self.overlay, differing, failing, doubts, keeps_surplus }
    }

    /// Returns when the next retry of a failed step is due.
    pub fn retry_at(&self) -> Option<Instant> {
        let families = self.reflections().into_iter().filter_map(|family| family.retry_at());
        families.chain(self.refusals.retry_at()).chain(self.untidy.map(|untidy| untidy.until)).min()
    }

    /// Returns whether all kinds are known to be as desired, except for what the kernel refuses.
    pub fn is_settled(&self) -> bool {
        self.reflections().into_iter().all(|family| family.is_settled())
    }

    /// As [`Backend::holds_refusals`](super::super::backend::Backend::holds_refusals).
    pub fn holds_refusals(&self, desired: &Desired) -> bool {
        let missing = |key: &ElementKey| desired.closes(key) && desired.elements.contains_key(key);
        let sets = self.sets.unsettled().is_some_and(|sets| !sets.iter().any(|set| desired.sets.contains_key(set)));
        let elements = self.elements.unsettled().is_some_and(|keys| !keys.iter().any(missing));
        let rules =
            self.rules.unsettled().is_some_and(|all| !all.iter().any(|piece| desired.rules.contains_key(piece)));
        sets && elements && rules
    }

    /// Has the next round try again the chains that the kernel refuses.
    pub fn retry_refused(&mut self, now: Instant) {
        self.refusals.hasten(now);
    }

    /// Returns whether a retry of a refused chain is due.
    pub fn has_due_refusals(&self, now: Instant) -> bool {
        self.refusals.retry_at().is_some_and(|at| at <= now)
    }

    /// Returns whether a remembered cluster is applied: no chain of ours in the kernel is entered. A family for which
    /// nothing is desired need not be readable.
    /// Keeps in memory once what is as desired.
    pub fn share(&mut self, desired: &Desired) {
        self.elements.share(&desired.elements);
    }

    fn may_use_memory(&mut self, desired: &Desired) -> bool {
        let is_desired = |family: &Family| desired.rules.keys().any(|piece| piece.family() == *family);
        let mut families = Family::BOTH.into_iter().filter(is_desired);
        let is_read = families.all(|family| !self.rules.peek().is_unreadable(family));
        let are_entered = || Family::BOTH.into_iter().any(|family| self.are_entered(family));
        self.uses_memory |= is_read && self.rules.seen().is_some() && !are_entered();
        self.uses_memory
    }

    fn grow_sets(&mut self, desired: &Desired, at: Moment) {
        let made = self.sets.grow(&desired.sets, Growth::Full, at);
        // A created set has no elements, whatever was known of an older one of the same name.
        if made.iter().any(|set| !self.elements.lacks(elements_of(set))) {
            self.elements.forget();
        }
    }

    /// Removes the addresses of deleted pods from the set before their rules, where membership opens an address.
    fn shut_out_gone_pods(&mut self, desired: &Desired, at: Moment) {
        let closes = Family::BOTH
            .into_iter()
            .any(|family| desired.rules.get(&dispatch::chain(family, CHAIN_TAIL)).is_some_and(dispatch::closes));
        if closes && !self.elements.is_settled() {
            self.elements.shrink_where(&desired.elements, at, |key, _| pods_of(key).is_some());
        }
    }

    /// Returns the rules desired for now, if they differ from `Desired`.
    fn rules_for_now(&mut self, given: &RoundInputs<'_>) -> Option<AllRules> {
        let RoundInputs { desired, authority, at, .. } = *given;
        let mut overlay = self.refusals.overlay(at.now);
        if let (true, Some(seen)) = (self.sets.trouble().is_some(), self.sets.seen()) {
            let missing: BTreeSet<SetName> =
                desired.sets.keys().filter(|set| !seen.contains_key(*set)).cloned().collect();
            overlay.omit_those_naming(&missing, desired);
        }
        if authority == Authority::Partial && self.rules.learn(at) {
            let seen = self.rules.seen().expect("it was learned");
            overlay.keep_jumps(&desired.rules, seen);
            overlay.keep_cluster_policies(None, &desired.rules, seen);
        } else if let (Some(lost), true) = (&desired.lost, self.rules.learn(at)) {
            let seen = self.rules.seen().expect("it was learned");
            overlay.keep_cluster_policies(Some(lost), &desired.rules, seen);
        }
        if let (Some(unsure), true) = (&desired.unsure, self.rules.learn(at)) {
            let seen = self.rules.seen().expect("it was learned");
            overlay.keep_refusals(unsure, &desired.rules, seen);
        }
        if overlay != self.overlay {
            self.rules.mark_all();
            self.overlay = overlay;
        }
        (!self.overlay.is_empty()).then(|| self.overlay.over(&desired.rules))
    }

    /// Returns whether chains that are no longer entered are to be removed.
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

    /// Deletes elements once no rule uses their set; deletes sets once they are empty.
    fn shrink_sets(&mut self, desired: &Desired, at: Moment) {
        let rules_are_settled = self.rules.is_settled();
        let kept = self.overlay.sets_of_kept();
        let is_left = |set: &SetName| rules_are_settled && !desired.sets.contains_key(set) && !kept.contains(set);
        self.elements.shrink_where(&desired.elements, at, |key, _| is_left(&key.set));
        let elements = &self.elements;
        self.sets.shrink_where(&desired.sets, at, |set, _| is_left(set) && elements.lacks(elements_of(set)));
    }
}
