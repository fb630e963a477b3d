//! Objects that the kernel refuses, and those that take their place meanwhile.
//!
//! The kernel refuses a transaction as a whole, and names the objects at fault. What reaches one of them is closed then: the chain of
//! a class, that of a tier, and the chain that refuses a pod Services, reject everything, and what cannot exist without a refused
//! object is left out. So pods whose policies need it are closed, and all others are judged exactly. An element that leads to such a
//! chain becomes one that drops.
//!
//! A chain is closed as a whole, whatever of it is refused: a rule of a tier that denies, passes packets on, or comes before one
//! that denies would open something if it were left out alone.
//!
//! Nothing takes the place of what all packets meet: the base chains, their sets and maps, and the chains that they jump to. If one of
//! those is refused, the table stays as it is.
//!
//! The table that this is about is the desired one with what stays for the time being ([`kept`](super::kept)).
//!
//! It is tried again after a while, ever later, and when a refused object is desired in another form.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::kernel::nftables::{Chain, Content, Object, Rule, Statement, Verdict};
use crate::reconcile::{Backoff, Moment};

use super::desired::{Table, elements_of};
use super::names;

/// The comment of the one rule of a closed chain, for who reads the table; nothing is decided by it.
const COMMENT: &str = "closed: the kernel refuses a part of it";

/// The objects that the kernel refuses, and what takes their place.
#[derive(Default, Debug)]
pub struct Refused {
    /// With the reasons.
    objects: BTreeMap<Object, String>,
    /// Objects whose closed form is refused as well: what takes their place drops, and needs nothing else.
    plain: BTreeSet<Object>,
    substitutes: Substitutes,
    /// The desired table is being tried again.
    lifted: bool,
    /// The kernel does not take what would take their place either.
    hopeless: bool,
    backoff: Backoff,
}

/// Objects that differ from the desired table: their contents, or nothing.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Substitutes {
    objects: BTreeMap<Object, Option<Content>>,
    /// The chains that are closed, and the elements that drop in their place.
    closed: BTreeSet<Object>,
}

/// Effect of the kernel's refusals on the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect<'a> {
    /// These chains reject everything in its place, and these elements drop it.
    Closes(&'a BTreeSet<Object>),
    /// The table stays as it is.
    KeepsAll,
}

impl Refused {
    pub fn objects(&self) -> &BTreeMap<Object, String> {
        &self.objects
    }

    pub fn substitutes(&self) -> &Substitutes {
        &self.substitutes
    }

    /// Returns what follows from the refusals.
    pub fn effect(&self) -> Effect<'_> {
        match self.substitutes.is_empty() {
            true => Effect::KeepsAll,
            false => Effect::Closes(&self.substitutes.closed),
        }
    }

    /// Notes what the kernel refused of the last transaction. Returns the objects that are now wanted in another form: none if
    /// nothing else can take their place.
    pub fn note(&mut self, refused: BTreeMap<Object, String>, desired: &Table) -> Vec<Object> {
        if std::mem::take(&mut self.lifted) {
            self.objects.clear();
            self.plain.clear();
            self.hopeless = false;
        }
        for (object, reason) in refused {
            if matches!(self.substitutes.get(&object), Some(Some(_))) {
                let is_plain = matches!(object, Object::Element(..)) || !self.plain.insert(object.clone());
                self.hopeless |= is_plain;
            }
            self.objects.insert(object, reason);
        }
        self.update(desired)
    }

    /// Finds anew what takes the place of what is refused; returns the objects that are now wanted in another form.
    pub fn update(&mut self, desired: &Table) -> Vec<Object> {
        if self.objects.is_empty() && self.substitutes.is_empty() {
            return Vec::new();
        }
        self.objects.retain(|object, _| desired.contains_key(object));
        self.plain.retain(|object| desired.contains_key(object));
        let substitutes = match self.lifted || self.hopeless {
            true => Substitutes::default(),
            false => Substitutes::of(&self.objects, &self.plain, desired),
        };
        let before = std::mem::replace(&mut self.substitutes, substitutes);
        let differs = |object: &&Object| before.get(object) != self.substitutes.get(object);
        before.objects.keys().chain(self.substitutes.objects.keys()).filter(differs).cloned().collect()
    }

    /// Forgets the refusal of an object that is desired in another form.
    pub fn turned(&mut self, object: &Object) {
        self.objects.remove(object);
        self.plain.remove(object);
    }

    /// Tries the desired table again, if it is time.
    pub fn lift(&mut self, now: Instant) {
        if self.is_due(now) {
            self.lifted = true;
            self.backoff.tried();
        }
    }

    /// Makes the next try due now.
    pub fn hasten(&mut self, now: Instant) {
        self.backoff.hasten(now);
    }

    /// Notes that a round ended with these refusals.
    pub fn failed(&mut self, at: Moment) {
        self.backoff.failed(at.now, at.jitter);
    }

    /// Notes that the kernel took all that was asked of it.
    pub fn taken(&mut self) {
        if self.substitutes.is_empty() {
            *self = Refused::default();
        }
    }

    /// Returns whether the desired table is to be tried again.
    pub fn has_work(&self, now: Instant) -> bool {
        self.lifted || self.is_due(now)
    }

    fn is_due(&self, now: Instant) -> bool {
        self.retry_at().is_some_and(|at| at <= now)
    }

    pub fn retry_at(&self) -> Option<Instant> {
        self.backoff.retry_at().filter(|_| !self.objects.is_empty() && !self.lifted)
    }
}

impl Substitutes {
    /// Returns what takes the place of these objects; nothing if all packets meet one of them.
    fn of(refused: &BTreeMap<Object, String>, plain: &BTreeSet<Object>, desired: &Table) -> Substitutes {
        if refused.is_empty() {
            return Substitutes::default();
        }
        let mut search = Search { refused, desired, known: BTreeMap::new() };
        let bases =
            desired.iter().filter(|(_, content)| matches!(content, Content::Chain(chain) if chain.base.is_some()));
        for (base, _) in bases {
            if search.reaches(base) {
                return Substitutes::default();
            }
        }
        let mut all = Substitutes::default();
        for map in names::entrances() {
            for (element, content) in elements_of(desired, &map) {
                let Some(chain) = leads_to(content) else { continue };
                if refused.contains_key(element) {
                    all.put(element, Some(Content::Verdict(Verdict::Drop.into())));
                    all.closed.insert(element.clone());
                }
                if search.reaches(&chain) {
                    all.close(chain, plain, &search);
                }
            }
        }
        all.leave_out(&search);
        all
    }

    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Returns what takes the place of an object, if anything does.
    pub fn get(&self, object: &Object) -> Option<Option<&Content>> {
        self.objects.get(object).map(Option::as_ref)
    }

    /// Puts what is desired back into a seen table, where it holds what takes its place.
    pub fn take_out_of(&self, seen: &mut Table, desired: &Table) {
        for (object, content) in &self.objects {
            if seen.get(object) == content.as_ref()
                && let Some(content) = desired.get(object)
            {
                seen.insert(object.clone(), content.clone());
            }
        }
    }

    /// Puts what takes the place of others into a table.
    pub fn put_into(&self, table: &mut Table) {
        for (object, content) in &self.objects {
            match content {
                Some(content) => drop(table.insert(object.clone(), content.clone())),
                None => drop(table.remove(object)),
            }
        }
    }

    fn put(&mut self, object: &Object, content: Option<Content>) {
        self.objects.insert(object.clone(), content);
    }

    /// Closes a chain.
    fn close(&mut self, chain: Object, plain: &BTreeSet<Object>, search: &Search<'_>) {
        let Object::Chain(name) = &chain else { return };
        let counter = Object::Counter(name.clone());
        let counts = search.desired.contains_key(&counter) && !search.refused.contains_key(&counter);
        let statements: Box<[Statement]> = counts.then(|| Statement::Count(name.clone())).into_iter().collect();
        let rule = match plain.contains(&chain) {
            true => Rule::new([], Verdict::Drop),
            false => Rule::with([], statements, Some(Verdict::Reject)),
        };
        let rules = vec![rule.commented(COMMENT)];
        self.closed.insert(chain.clone());
        self.objects.insert(chain, Some(Content::Chain(Chain { base: None, rules }.into())));
    }

    /// Leaves out what is refused and what cannot exist without it.
    fn leave_out(&mut self, search: &Search<'_>) {
        let reaching = search.known.iter().filter(|(_, reaches)| **reaches).map(|(object, _)| object);
        for object in reaching.chain(search.refused.keys()) {
            match object {
                Object::Set(set) => {
                    let is_refused = search.refused.contains_key(object);
                    if is_refused {
                        self.put(object, None);
                    }
                    for (element, content) in elements_of(search.desired, set) {
                        let leads_astray =
                            leads_to(content).is_some_and(|chain| search.known.get(&chain) == Some(&true));
                        if is_refused || leads_astray {
                            self.put(element, None);
                        }
                    }
                }
                object if self.objects.contains_key(object) => {}
                object => self.put(object, None),
            }
        }
    }
}

/// Which chains and sets reach something that is refused.
struct Search<'a> {
    refused: &'a BTreeMap<Object, String>,
    desired: &'a Table,
    known: BTreeMap<Object, bool>,
}

impl Search<'_> {
    fn reaches(&mut self, object: &Object) -> bool {
        if let Some(known) = self.known.get(object) {
            return *known;
        }
        let needs = self.needs(object);
        let reaches = needs || self.refused.contains_key(object);
        if matches!(object, Object::Chain(_) | Object::Set(_)) {
            self.known.insert(object.clone(), reaches);
        }
        reaches
    }

    /// Returns whether something that an object needs reaches something that is refused. All of it is searched: whatever reaches it
    /// has to be known.
    fn needs(&mut self, object: &Object) -> bool {
        let desired = self.desired;
        match (object, desired.get(object)) {
            (Object::Chain(_), Some(Content::Chain(chain))) => {
                let reaching = chain.rules.iter().flat_map(Object::named_by).filter(|named| self.reaches(named));
                reaching.count() > 0
            }
            // What leads to the chains of classes and tiers does not need them: they are closed.
            (Object::Set(set), _) if names::is_of_base(set) => false,
            (Object::Set(set), _) => {
                let has_refused = elements_of(self.refused, set).next().is_some();
                let to = elements_of(desired, set).filter_map(|(_, content)| leads_to(content));
                to.fold(has_refused, |reaches, to| self.reaches(&to) || reaches)
            }
            _ => false,
        }
    }
}

/// Returns whether this is the rule of a closed chain, of this run or an earlier one, where it stands in the chain of a tier, in one that several
/// pods with an address share, or in one that is kept: nothing else there refuses every packet by itself. Denials lead to chains of their policies.
pub fn is_closing(rule: &Rule) -> bool {
    rule.matches().is_empty() && matches!(rule.verdict(), Some(Verdict::Reject | Verdict::Drop))
}

/// Returns the chain that an element leads to.
fn leads_to(content: &Content) -> Option<Object> {
    match content {
        Content::Verdict(verdict) => Object::led_to(verdict),
        _ => None,
    }
}
