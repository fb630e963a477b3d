//! Applies a `Desired` table to the kernel.
//!
//! Settings first, by which rules see all packets of pods. Then everything that differs in the table: all that has an effect on packets as one transaction,
//! with others beside it for packets that are under way ([`kernel::nftables`](crate::kernel::nftables)), so there is no order in which something could open or close in between,
//! and a process that is killed leaves what judges packets as it was or as it shall be. What the kernel refuses, it refuses as a whole; then something closed takes the
//! place of what was at fault ([`refused`](super::refused)).
//!
//! While the cluster is known in part only, absence proves nothing ([`kept`]). A remembered cluster is only applied to a kernel
//! without base chains of ours, as after a boot: else the kernel's state is newer, and what it lacks was deleted after the file was
//! written.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::kernel::nftables::{Content, Key, Object};
use crate::kernel::sysctl::{self, Ruled};
use crate::model::Authority;
use crate::net::Family;
use crate::packed::BlockMap;
use crate::reconcile::{Found, Growth, Moment, Reflection, Target, audit};
use crate::subsystem::{Kinds, kinds};

use super::super::backend::NewAddress;
use super::super::frames::{self, FrameRules};
use super::super::rules::Direction;
use super::desired::{Desired, LoweredChanges, Table, elements_of};
use super::enforced::Applied;
use super::kept::{self, Kept};
use super::refused::Refused;
use super::{names, new_address};

/// Number of attempts of one round at a transaction of which something is refused: one of what it names at a time is rare.
const ATTEMPTS: usize = 8;

/// The kinds of kernel objects that the firewall manages. Implemented on Linux (`linux`) and in memory for tests.
pub trait Kernel {
    type Settings: Ruled;
    type Frames: FrameRules;
    type Table: Target<Key = Object, Value = Content> + Refusing;

    /// Returns the chains of others that may drop what policies allow, each as a sentence without its end.
    fn dropping_chains(&mut self) -> Vec<String> {
        Vec::new()
    }

    /// Returns whether something is there that the iptables backend or kube-router left. What cannot be read is not.
    fn has_abandoned(&mut self) -> bool {
        false
    }

    /// Removes what the iptables backend left. Called once its replacement is in place. Returns why something could
    /// not be removed; `None` after a part of the removal: the next one is to follow soon, and what else there is to do goes first.
    fn remove_abandoned(&mut self) -> Option<Vec<String>>;
}

/// A table that reports which objects of a refused transaction were at fault.
pub trait Refusing {
    /// Takes the objects that the kernel named when it refused the last transaction, with the reasons.
    fn take_refused(&mut self) -> BTreeMap<Object, String>;
}

/// Desired state of a round.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    /// The desired table with what is kept.
    whole: &'a Table,
    desired: &'a Desired,
}

kinds! {
    /// Last seen state of the kernel, kind by kind, in the order of growing.
    pub struct Mirrors {
        settings: Settings,
        frames: Frames after Rules,
        groups: Frames after Rules,
        table: Table in BlockMap after Rules,
    }
    with {
        /// True if a remembered cluster is applied: once it has been, all existing objects come from it.
        uses_memory: bool,
        /// Objects that stay although they are not desired.
        kept: Kept,
        /// Elements that are no longer desired.
        left: BTreeSet<Object>,
        refused: Refused,
        /// The last round was one in which absence proves nothing.
        keeps_surplus: bool,
        /// The last round left a remembered cluster alone: the kernel's state is newer.
        leaves_memory: bool,
    }
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
        for object in &changed.objects {
            self.table.mark(object.clone());
            self.refused.turned(object);
        }
        self.left.extend(changed.left.iter().cloned());
        if changed.kept {
            // What stays is found anew in each round; any object brings one about.
            self.table.mark(Object::Chain(names::FORWARD_EGRESS.into()));
        }
        if !changed.objects.is_empty() || changed.kept {
            // Failed steps are retried together with new ones.
            self.table.try_at_once();
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

    /// Runs one round: changes the table as far as `authority` allows. Returns how long that took.
    pub fn round(&mut self, desired: &Desired, authority: Authority, at: Moment) -> Duration {
        if authority == Authority::Nothing {
            return Duration::ZERO;
        }
        self.keeps_surplus = authority != Authority::Complete;
        self.refused.lift(at.now);
        // They do not depend on how well the cluster is known.
        sysctl::keep(&mut self.settings, &desired.settings, at);
        let begun = Instant::now();
        self.leaves_memory = false;
        if !self.table.learn(at) {
            return Duration::ZERO;
        }
        self.leaves_memory = authority == Authority::Remembered && !self.may_use_memory();
        if self.leaves_memory {
            frames::add_missing(&mut self.frames, &desired.frames.tags, at);
            frames::add_missing(&mut self.groups, &desired.frames.groups, at);
            return Duration::ZERO;
        }
        frames::keep(&mut self.frames, &desired.frames.tags, authority, at);
        frames::keep(&mut self.groups, &desired.frames.groups, authority, at);
        self.left.retain(|object| authority != Authority::Complete && !desired.table.contains_key(object));
        self.keep(desired, authority);
        let merged = (!self.kept.is_empty()).then(|| self.kept.over(&desired.table));
        let whole = merged.as_ref().unwrap_or(&desired.table);
        let turned = self.refused.update(whole);
        self.transact_until_taken(turned, Wanted { whole, desired }, authority, at);
        // What the kernel has lost has left it.
        if self.table.seen().is_some() {
            let table = &self.table;
            self.left.retain(|object| table.has(object) || table.is_doubtful(object));
        }
        begun.elapsed()
    }

    /// Performs the transaction, and again with what takes the place of what the kernel refuses. The first refusal may only come of
    /// what was not as it was seen; what was at fault has been read back when it is tried again.
    fn transact_until_taken(&mut self, mut turned: Vec<Object>, wanted: Wanted<'_>, authority: Authority, at: Moment) {
        for attempt in 0..ATTEMPTS {
            turned.drain(..).for_each(|object| self.table.mark(object));
            self.transact(wanted, authority, at);
            let refused = self.table.target().take_refused();
            if refused.is_empty() {
                if self.table.trouble().is_none() {
                    self.refused.taken();
                }
                return;
            }
            if attempt > 0 {
                turned = self.refused.note(refused, wanted.whole);
                self.refused.failed(at);
                if turned.is_empty() {
                    return;
                }
            }
            self.table.try_at_once();
        }
        // The next round tries them.
        turned.drain(..).for_each(|object| self.table.mark(object));
    }

    /// Performs what differs from the whole table, and from what takes its place for the time being, as one transaction; as two where an address passes from
    /// one map to another ([`passing`](Mirrors::passing)).
    fn transact(&mut self, wanted: Wanted<'_>, authority: Authority, at: Moment) {
        let Wanted { whole, desired } = wanted;
        let substitutes = self.refused.substitutes();
        let substituted = (!substitutes.is_empty()).then(|| {
            let mut table = whole.clone();
            substitutes.put_into(&mut table);
            table
        });
        let want = substituted.as_ref().unwrap_or(whole);
        let left = &self.left;
        let may_go = |object: &Object| match authority {
            Authority::Complete => true,
            Authority::Partial => {
                left.contains(object) && kept::may_leave(object, desired)
                    || kept::follows_from_policies(object, desired)
            }
            Authority::Remembered | Authority::Nothing => false,
        };
        let passing = if authority == Authority::Complete { self.passing(want) } else { BTreeMap::new() };
        if !passing.is_empty() {
            let mut with_passing = want.clone();
            with_passing.extend(passing.iter().map(|(element, verdict)| (element.clone(), verdict.clone())));
            self.table.transact_where(&with_passing, Growth::Full, at, may_go);
            passing.into_keys().for_each(|element| self.table.mark(element));
        }
        self.table.transact_where(want, Growth::Full, at, may_go);
    }

    /// Returns the elements of isolated addresses that go while the Admin tier, or all pods that claim the address, come to judge it, with these judges. They
    /// lead there for a transaction: a packet that is under way may have looked into the map that is asked first as it was, and would find nothing in
    /// the one behind it, as it is. To be judged twice by the same chain is to be judged once.
    fn passing(&self, want: &Table) -> BTreeMap<Object, Content> {
        let mut passing = BTreeMap::new();
        let Some(seen) = self.table.seen().filter(|_| !self.table.is_settled()) else { return passing };
        for (direction, family) in Direction::BOTH.into_iter().flat_map(|one| Family::BOTH.map(|family| (one, family)))
        {
            let (first, behind) = (names::admin(direction, family), names::isolated(direction, family));
            let mut note = |element: &Object| {
                let Object::Element(_, key) = element else { return };
                let judged_first = Object::Element(first.clone(), key.clone());
                if let Some(verdict) = want.get(&judged_first)
                    && seen.get(&judged_first) != Some(verdict)
                    && seen.contains_key(element)
                    && !want.contains_key(element)
                {
                    passing.insert(element.clone(), verdict.clone());
                }
            };
            match self.table.unsettled() {
                Some(objects) => {
                    let is_its = |object: &&Object| matches!(object, Object::Element(map, _) if *map == behind);
                    let from = Object::Element(behind.clone(), Key::Address(IpAddr::from([0; 4])));
                    objects.range(from..).take_while(is_its).for_each(&mut note);
                }
                None => elements_of(seen, &behind).for_each(|(element, _)| note(element)),
            }
        }
        passing
    }

    /// Keeps in memory once what is as desired.
    pub fn share(&mut self, desired: &Desired) {
        self.table.share(&desired.table);
    }

    /// Returns whether a remembered cluster was left alone in the last round.
    pub fn leaves_memory(&self) -> bool {
        self.leaves_memory
    }

    /// Adds what the kernel lacks of a new address, and nothing else.
    pub fn add_address(&mut self, starting: &NewAddress<'_>, desired: &Desired, at: Moment) {
        let Ok(additions) = new_address::additions(starting, &desired.table, self.table.seen()) else { return };
        if !additions.is_empty() {
            self.table.transact_where(&additions.into(), Growth::Full, at, |_| false);
            // Nothing takes the place of what is refused: the pod waits.
            let _ = self.table.target().take_refused();
            // Compared with these additions alone, everything else counts as settled.
            self.table.mark_all();
        }
    }

    /// Notes what stays although it is not desired.
    fn keep(&mut self, desired: &Desired, authority: Authority) {
        let kept = self.table.seen().map(|seen| self.kept_of(seen, desired, authority)).unwrap_or_default();
        if kept == self.kept {
            return;
        }
        let turned: Vec<Object> = kept.objects().chain(self.kept.objects()).cloned().collect();
        turned.into_iter().for_each(|object| self.table.mark(object));
        self.kept = kept;
    }

    /// Returns what stays of what was seen. What takes the place of refused objects says nothing of what was denied, so what was kept is
    /// remembered.
    fn kept_of(&self, seen: &Table, desired: &Desired, authority: Authority) -> Kept {
        let substitutes = self.refused.substitutes();
        if substitutes.is_empty() && self.kept.is_empty() || !Kept::is_needed(desired, authority) {
            return Kept::of(seen, desired, authority);
        }
        let mut seen = self.kept.over(seen);
        substitutes.take_out_of(&mut seen, &desired.table);
        Kept::of(&seen, desired, authority)
    }

    pub fn has_abandoned(&mut self) -> bool {
        self.kernel.has_abandoned()
    }

    /// Removes objects of earlier runs from where they no longer belong.
    pub fn remove_abandoned(&mut self) -> Option<Vec<String>> {
        self.kernel.remove_abandoned()
    }

    /// Audits everything at once, to answer a user's question about the kernel's state.
    pub fn look_at_all(&mut self, at: Moment) -> Vec<Found> {
        self.kinds().into_iter().flat_map(|kind| audit(kind.mirror, at).0).collect()
    }

    /// Returns what the kernel refuses, and what takes its place.
    pub fn refused(&self) -> &Refused {
        &self.refused
    }

    /// Has the next round try again what the kernel refuses.
    pub fn retry_refused(&mut self, now: Instant) {
        self.refused.hasten(now);
    }

    /// Returns the last seen state of the kernel.
    pub fn applied(&self) -> Applied<'_> {
        let Mirrors { table, kept, refused, keeps_surplus, .. } = self;
        let (seen, unsettled, doubts) = (table.seen(), table.unsettled(), table.doubts().collect());
        Applied { seen, unsettled, doubts, kept, refused, keeps_surplus: *keeps_surplus }
    }

    /// Returns when the next retry of a failed step is due.
    pub fn retry_at(&self) -> Option<Instant> {
        self.first_retry().into_iter().chain(self.refused.retry_at()).min()
    }

    /// Returns whether a round has work.
    pub fn has_work(&self, now: Instant) -> bool {
        !self.is_settled() || self.refused.has_work(now)
    }

    /// Returns whether all kinds are known to be as desired, except for what the kernel refuses.
    pub fn is_settled(&self) -> bool {
        self.reflections().into_iter().all(|kind| kind.is_settled())
    }

    /// As [`Backend::holds_refusals`](super::super::backend::Backend::holds_refusals). All of it changes in one transaction.
    pub fn holds_refusals(&self, desired: &Desired) -> bool {
        self.table.unsettled().is_some_and(|objects| !objects.iter().any(|object| desired.table.contains_key(object)))
    }

    fn may_use_memory(&mut self) -> bool {
        let is_base = |content: &Content| matches!(content, Content::Chain(chain) if chain.base.is_some());
        self.uses_memory |= self.table.seen().is_some_and(|seen| !seen.values().any(is_base));
        self.uses_memory
    }
}
