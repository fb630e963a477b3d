//! The phases of one round: elements before the rules, rules, elements after them.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::kernel::ipset::ElementKey;
use crate::kernel::iptables::{Piece, Rules};
use crate::model::Authority;
use crate::net::{Family, PerFamily};
use crate::reconcile::{Growth, Moment, Reflection, Trouble};

use super::super::desired::Desired;
use super::super::dispatch;
use super::super::names::{self, CHAIN_TAIL};
use super::super::order::{Order, OrderInputs};
use super::super::turning::AllRules;
use super::{IptablesRound, Kernel, Mirrors, Refusing};

/// Inputs of a round.
pub(super) struct RoundInputs<'a> {
    pub desired: &'a Desired,
    pub authority: Authority,
    pub at: Moment,
    /// Elements that are no longer desired.
    pub left: &'a BTreeSet<ElementKey>,
}

/// The rules of a round, for what comes behind them.
#[derive(Clone, Copy)]
pub(super) struct RoundRules<'a> {
    /// Those that are desired for now.
    pub want: &'a AllRules,
    /// The families whose rules stay unchanged for now.
    pub held: PerFamily<bool>,
}

/// Maximum wait of rules for sets and elements that fail, and of elements that close a path for rules that fail.
const PATIENCE: Duration = Duration::from_secs(2);

/// Number of tries of a chain in one round: whole, then reduced, then closed; and once more for what needs it.
const FORMS: usize = 3;

impl<K: Kernel> Mirrors<K> {
    /// Returns the order of changes of elements and rules.
    pub(super) fn order(&mut self, given: &RoundInputs<'_>) -> Order {
        let RoundInputs { desired, at, .. } = *given;
        if self.elements.is_settled() || !self.elements.learn(at) {
            return Order::default();
        }
        let want = self.rules_for_now(given);
        let differing = self.elements.differing(&desired.elements);
        let rules_stay = self.rules.is_settled();
        let unknown = PerFamily::from_fn(|family| {
            let in_doubt = self.rules.doubts().any(|piece| piece.family() == family);
            in_doubt || self.rules.seen().is_none() || self.rules.peek().is_unreadable(family)
        });
        let (nothing, want) = (AllRules::new(), want.as_ref().unwrap_or(&desired.rules));
        let seen = self.rules.seen().unwrap_or(&nothing);
        Order::between(OrderInputs { seen, want, desired, differing, unknown, rules_stay })
    }

    /// Deletes the elements that precede the rules, then adds those that precede them.
    pub(super) fn change_elements_before(&mut self, given: &RoundInputs<'_>, order: &Order) {
        let RoundInputs { desired, authority, at, .. } = *given;
        if authority != Authority::Remembered && !(order.early.is_empty() && order.unnamed.is_empty()) {
            let goes = |key: &ElementKey| order.unnamed.contains(key) || order.early.contains(key) && given.may_go(key);
            self.elements.shrink_where(&desired.elements, at, |key, _| goes(key));
        }
        let behind = PerFamily::from_fn(|family| self.is_behind(desired, family));
        let stuck = PerFamily::from_fn(|family| self.is_stuck(given, order, family));
        let waits = |key: &ElementKey| order.late.contains(key) || order.turning.elements.contains(key);
        self.elements.grow_where(&desired.elements, Growth::Full, at, |key| match (pods_of(key), key.entry.family()) {
            (Some(family), _) => !*behind.of(family),
            (None, family) => desired.closes(key) || !waits(key) && !*order.unknown.of(family) && !*stuck.of(family),
        });
    }

    /// Returns whether rules that may use sets or elements that have just failed are left unchanged: a set that lacks
    /// an address refuses allowed traffic. A lasting failure no longer delays the rules.
    pub(super) fn waits_for_sets(&self, given: &RoundInputs<'_>, order: &Order) -> bool {
        let RoundInputs { desired, at, .. } = *given;
        let lacks_set = || desired.sets.keys().any(|set| !self.sets.has(set));
        // Rules of a family that is stuck are held.
        let stuck = PerFamily::from_fn(|family| self.is_stuck(given, order, family));
        let waits = |key: &ElementKey| {
            let family = key.entry.family();
            let unordered = (*order.unknown.of(family) || *stuck.of(family)) && !desired.closes(key);
            unordered || pods_of(key).is_some() || order.late.contains(key) || order.turning.elements.contains(key)
        };
        let lacks_element = || desired.elements.keys().any(|key| !self.elements.has(key) && !waits(key));
        is_fresh(self.sets.trouble(), at) && lacks_set() || is_fresh(self.elements.trouble(), at) && lacks_element()
    }

    /// Returns the families whose rules stay unchanged for now: the current ones are unknown, or an element that had to
    /// be deleted before them has not been, or may not have been.
    pub(super) fn held(&self, given: &RoundInputs<'_>, order: &Order) -> PerFamily<bool> {
        let is_unread = is_fresh(self.elements.trouble(), given.at) && self.elements.seen().is_none();
        PerFamily::from_fn(|family| {
            let in_doubt = self.rules.doubts().any(|piece| piece.family() == family);
            in_doubt || is_unread && self.are_entered(family) || self.is_stuck(given, order, family)
        })
    }

    /// Returns whether the deletion of an element has failed that has to precede what opens a path: until it succeeds, or
    /// fails for too long, the rules of its family stay and no element is added that opens one.
    fn is_stuck(&self, given: &RoundInputs<'_>, order: &Order, family: Family) -> bool {
        let is_its = |key: &ElementKey| {
            key.entry.family() == family
                && !given.desired.closes(key)
                && !given.desired.elements.contains_key(key)
                && given.may_go(key)
        };
        is_fresh(self.elements.trouble(), given.at)
            && (self.elements.doubts().any(is_its)
                || order.early.iter().any(|key| is_its(key) && self.elements.has(key)))
    }

    /// Applies stricter pod chains, then the pods' set memberships. Until that has succeeded their chains must not
    /// become less strict, so all rules of their family are held.
    pub(super) fn turn(
        &mut self,
        given: &RoundInputs<'_>,
        order: &Order,
        held: &mut PerFamily<bool>,
        round: &mut IptablesRound,
    ) {
        let RoundInputs { desired, at, .. } = *given;
        let turning = &order.turning;
        let mut stand = PerFamily { v4: false, v6: false };
        for _ in 0..FORMS {
            if turning.elements.is_empty() {
                return;
            }
            let want = self.rules_for_now(given);
            let want = want.as_ref().unwrap_or(&desired.rules);
            let Some(seen) = self.rules.seen() else { break };
            let stricter = turning.stricter(seen, want, |piece| self.refusals.all().contains_key(piece));
            let concerned = |piece: &Piece| turning.concerns(piece.family()) && !*held.of(piece.family());
            self.rules.grow_among(&stricter, Growth::Full, at, concerned);
            let differing = stricter.iter().filter(|(piece, rules)| want.get(piece) != Some(rules));
            differing.for_each(|(piece, _)| self.rules.mark(piece.clone()));
            stand = PerFamily::from_fn(|family| !*held.of(family) && self.stand(&stricter, family));
            let refused = self.take_refused(at);
            if refused.is_empty() {
                break;
            }
            // Refused chains are retried at once in their fallback form.
            round.refused.extend(refused);
            self.rules.try_at_once();
        }
        let is_its = |key: &ElementKey| turning.elements.contains(key) && *stand.of(key.entry.family());
        self.elements.grow_where(&desired.elements, Growth::Full, at, is_its);
        let has_come = |key: &ElementKey| !desired.elements.contains_key(key) || self.elements.has(key);
        if turning.elements.iter().all(has_come) || !is_fresh(self.elements.trouble(), at) {
            let may_go: BTreeSet<&ElementKey> =
                turning.elements.iter().filter(|key| is_its(key) && given.may_go(key)).collect();
            self.elements.shrink_where(&desired.elements, at, |key, _| may_go.contains(key));
        }
        let is_open = |key: &&ElementKey| self.elements.has(key) != desired.elements.contains_key(*key);
        for key in turning.elements.iter().filter(is_open) {
            *held.of_mut(key.entry.family()) = true;
        }
    }

    /// Changes the rules of families that are not held; a refused chain is replaced at once by its fallback. Returns
    /// the rules desired for now, if they differ from `Desired`.
    pub(super) fn grow_rules(
        &mut self,
        given: &RoundInputs<'_>,
        held: PerFamily<bool>,
        round: &mut IptablesRound,
    ) -> Option<AllRules> {
        let mut want = self.rules_for_now(given);
        for _ in 0..=FORMS {
            let rules = want.as_ref().unwrap_or(&given.desired.rules);
            self.rules.grow_among(rules, Growth::Full, given.at, |piece| !*held.of(piece.family()));
            let refused = self.take_refused(given.at);
            let is_done = refused.is_empty() || self.rules.is_settled();
            round.refused.extend(refused);
            if is_done {
                break;
            }
            // Chains that were not refused are in force; the fallbacks of the rest must follow without delay.
            self.rules.try_at_once();
            want = self.rules_for_now(given);
        }
        want
    }

    /// Adds elements whose family has the rules desired for now and is not stuck; `which` also gets the families whose
    /// pod addresses are added after the rules.
    pub(super) fn add_behind(
        &mut self,
        given: &RoundInputs<'_>,
        order: &Order,
        want: &AllRules,
        which: impl Fn(&ElementKey, &PerFamily<bool>) -> bool,
    ) {
        let RoundInputs { desired, at, .. } = *given;
        if self.elements.is_settled() {
            return;
        }
        let behind = PerFamily::from_fn(|family| self.is_behind(desired, family));
        let missing = self.elements.differing(&desired.elements).missing;
        let late: BTreeSet<ElementKey> = missing.into_iter().filter(|key| which(key, &behind)).collect();
        if late.is_empty() {
            return;
        }
        let stand = PerFamily::from_fn(|family| {
            let is_concerned = late.iter().any(|key| key.entry.family() == family);
            is_concerned && !self.is_stuck(given, order, family) && self.stand(want, family)
        });
        self.elements
            .grow_where(&desired.elements, Growth::Full, at, |key| late.contains(key) && *stand.of(key.entry.family()));
    }

    /// Returns whether the rules of this family are known to be these.
    pub(super) fn stand(&self, rules: &AllRules, family: Family) -> bool {
        let mut rules = rules.iter().filter(|(piece, _)| piece.family() == family);
        self.rules.seen().is_some_and(|seen| rules.all(|(piece, rules)| seen.get(piece) == Some(rules)))
    }

    /// Returns whether packets enter rules of ours, as far as is known.
    pub(super) fn are_entered(&self, family: Family) -> bool {
        let is_jump = |piece: &Piece| matches!(piece, Piece::Jump { .. }) && piece.family() == family;
        self.rules.seen().is_some_and(|seen| seen.keys().any(is_jump))
    }

    /// Returns whether an element to be deleted stays for now, because rules that must become stricter first fail. They
    /// may delay it for a while only: what closes a path does not wait for ever.
    pub(super) fn waits_for_rules(&self, key: &ElementKey, order: &Order, held: PerFamily<bool>, at: Moment) -> bool {
        let family = key.entry.family();
        let waits = *order.unknown.of(family) || *held.of(family) && order.turning.elements.contains(key);
        waits && (is_fresh(self.rules.trouble(), at) || is_fresh(self.elements.trouble(), at))
    }

    /// Returns whether an element that is no longer desired goes at the end of a round.
    pub(super) fn goes(&self, key: &ElementKey, given: &RoundInputs<'_>, order: &Order, rules: RoundRules<'_>) -> bool {
        let desired = given.desired;
        if !desired.closes(key) {
            return given.may_go(key) && !self.waits_for_rules(key, order, rules.held, given.at);
        }
        // Deleting it opens a path: what closes the path otherwise has to be in place.
        given.may_go(key) && !desired.is_unsure(key) && self.stand(rules.want, key.entry.family())
    }

    /// Returns whether pod addresses are added after their rules: our tail is in the kernel. Before that, those of
    /// running pods are added first, so that the tail disconnects none of them.
    pub(super) fn is_behind(&self, desired: &Desired, family: Family) -> bool {
        let tail = dispatch::chain(family, CHAIN_TAIL);
        let closes = |rules: Option<&Rules>| rules.is_some_and(dispatch::closes);
        match self.rules.seen() {
            Some(seen) if !self.rules.peek().is_unreadable(family) => {
                let (seen, wanted) = (seen.get(&tail), desired.rules.get(&tail));
                seen.is_some() && seen == wanted || closes(wanted) && closes(seen)
            }
            // While the rules are unknown, the tail of an earlier run may be there.
            _ => closes(desired.rules.get(&tail)),
        }
    }
}

impl RoundInputs<'_> {
    /// Returns whether the removal of an element from a remaining set is certain: the cluster is known in full, or the
    /// change was seen. Absence alone does not prove it if only a part is known.
    pub(super) fn may_go(&self, key: &ElementKey) -> bool {
        let says = match self.authority {
            Authority::Nothing | Authority::Remembered => false,
            Authority::Partial => self.left.contains(key),
            Authority::Complete => true,
        };
        says && self.desired.sets.contains_key(&key.set)
    }
}

/// Returns whether this failure is so recent that others wait for it.
fn is_fresh(trouble: Option<&Trouble>, at: Moment) -> bool {
    trouble.is_some_and(|trouble| at.now.saturating_duration_since(trouble.since) < PATIENCE)
}

/// Returns the family of the set of local pods that an element belongs to, if it does.
pub(super) fn pods_of(key: &ElementKey) -> Option<Family> {
    Family::BOTH.into_iter().find(|family| key.set == *names::local_pods(*family))
}
