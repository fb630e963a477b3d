//! The messages of one transaction.
//!
//! Kernel: what stands between the marks of a batch takes effect together or not at all (include/uapi/linux/netfilter/nfnetlink.h).
//! An error names the message that it is about, and so the object.

use std::collections::BTreeSet;

use super::element::{self, Description};
use super::encode::expressions;
use super::expression::{ANONYMOUS, Expression, fib};
use super::object::{Base, BaseKind, Content, Hook, Key, Name, Object, SetSpec};
use super::rule::Rule;
use super::wire::{self, TableId, batch, chain, message, object, rule, set, table};
use crate::kernel::netlink::{Messages, Refusal, flag};

/// Messages about one table, between the marks.
pub(super) struct Batch<'a> {
    table: TableId<'a>,
    pub messages: Messages,
    about: Vec<About>,
    /// Number of sets that were made, by which others in this transaction may call them.
    sets: u32,
    /// Sets whose elements have a message each, so that a refusal names the element.
    pub one_by_one: BTreeSet<Name>,
}

/// The subject of a message.
struct About {
    /// The kind of the message.
    kind: u16,
    /// `None` for the marks and the table.
    object: Option<Object>,
    /// Packets may come from here to another chain: a rule, or an element with a verdict.
    leads_on: bool,
}

impl<'a> Batch<'a> {
    /// Starts a transaction; the kernel refuses it if its rules are not of this generation.
    pub fn new(table: impl Into<TableId<'a>>, generation: Option<u32>) -> Batch<'a> {
        let mut messages = Messages::new();
        wire::mark(&mut messages, message::BATCH_BEGIN);
        if let Some(generation) = generation {
            messages.u32_be(batch::GENERATION, generation);
        }
        let table = table.into();
        let about = vec![About { kind: message::BATCH_BEGIN, object: None, leads_on: false }];
        Batch { table, messages, about, sets: 0, one_by_one: BTreeSet::new() }
    }

    /// Ends the transaction.
    pub fn close(&mut self) {
        wire::mark(&mut self.messages, message::BATCH_END);
        self.about.push(About { kind: message::BATCH_END, object: None, leads_on: false });
    }

    /// Returns whether there is nothing but the beginning.
    pub fn is_empty(&self) -> bool {
        self.about.len() == 1
    }

    /// Returns the set if a message is about several elements of it.
    pub fn elements_of(&self, message: usize) -> Option<&Name> {
        match self.about.get(message)? {
            About { kind: message::NEW_ELEMENT | message::DELETE_ELEMENT, object: Some(Object::Set(set)), .. } => {
                Some(set)
            }
            _ => None,
        }
    }

    /// Returns what a message is about.
    pub fn about(&self, message: usize) -> Option<&Object> {
        self.about.get(message)?.object.as_ref()
    }

    /// Returns the refusals of what is at fault. A rule, or an element with a verdict, that is refused only together with others (it closes a circle, or comes
    /// from a hook where it may not stand) has every rule and element behind it refused as well. An element without a verdict leads nowhere, so what is
    /// refused behind one is at fault itself.
    pub fn at_fault(&self, mut refusals: Vec<Refusal>) -> Vec<Refusal> {
        // What names an object that was refused does not find it.
        let is_missing = |refusal: &Refusal| refusal.errno == libc::ENOENT;
        if let Some(cause) = refusals.iter().position(|refusal| !is_missing(refusal)) {
            let mut place = 0;
            refusals.retain(|refusal| {
                place += 1;
                place <= cause || !is_missing(refusal)
            });
        }
        let Some(first) = refusals.first() else { return refusals };
        if self.about.get(first.message).is_some_and(|about| !about.leads_on) {
            return refusals;
        }
        let judged = |message: usize| {
            let kind = self.about.get(message).map(|about| about.kind);
            message > first.message && matches!(kind, Some(message::NEW_RULE | message::NEW_ELEMENT))
        };
        let followers = refusals.iter().filter(|one| one.errno == first.errno && judged(one.message)).count();
        if followers > 0 && followers == (0..self.about.len()).filter(|message| judged(*message)).count() {
            refusals.truncate(1);
        }
        refusals
    }

    fn begin(&mut self, kind: u16, flags: u16, about: Option<Object>) -> &mut Messages {
        self.about.push(About { kind, object: about, leads_on: kind == message::NEW_RULE });
        wire::begin(&mut self.messages, kind, flags, self.table)
    }

    /// Makes the table, or claims it.
    pub fn make_table(&mut self, flags: u32) {
        self.begin(message::NEW_TABLE, flag::CREATE, None).u32_be(table::FLAGS, flags);
    }

    /// Makes the table, which must not exist.
    pub fn make_new_table(&mut self, flags: u32) {
        self.begin(message::NEW_TABLE, flag::CREATE | flag::EXCLUSIVE, None).u32_be(table::FLAGS, flags);
    }

    pub fn delete_table(&mut self) {
        self.begin(message::DELETE_TABLE, 0, None);
    }

    pub fn make_counter(&mut self, name: &Name) {
        self.begin(message::NEW_OBJECT, flag::CREATE, Some(Object::Counter(name.clone())))
            .text(object::NAME, name.as_str())
            .u32_be(object::TYPE, object::COUNTER)
            .nest(object::DATA)
            .u64_be(object::BYTES, 0)
            .u64_be(object::PACKETS, 0)
            .end();
    }

    pub fn delete_counter(&mut self, name: &Name) {
        self.begin(message::DELETE_OBJECT, 0, Some(Object::Counter(name.clone())))
            .text(object::NAME, name.as_str())
            .u32_be(object::TYPE, object::COUNTER);
    }

    pub fn make_set(&mut self, name: &Name, spec: SetSpec) {
        self.describe_set(name.as_str(), &Description::of(spec), Some(Object::Set(name.clone())));
    }

    fn describe_set(&mut self, name: &str, description: &Description, about: Option<Object>) -> &mut Messages {
        self.sets += 1;
        let number = self.sets;
        let messages = self.begin(message::NEW_SET, flag::CREATE | flag::EXCLUSIVE, about);
        messages
            .text(set::NAME, name)
            .u32_be(set::FLAGS, description.flags)
            .u32_be(set::KEY_TYPE, description.key_type)
            .u32_be(set::KEY_LENGTH, description.key_length);
        if let Some((kind, length)) = description.data {
            messages.u32_be(set::DATA_TYPE, kind).u32_be(set::DATA_LENGTH, length);
        }
        if let Some(size) = description.size {
            messages.nest(set::DESCRIPTION).u32_be(set::SIZE, size).end();
        }
        messages.u32_be(set::ID, number).attribute(set::USERDATA, &description.userdata())
    }

    pub fn delete_set(&mut self, name: &Name) {
        self.begin(message::DELETE_SET, 0, Some(Object::Set(name.clone()))).text(set::NAME, name.as_str());
    }

    pub fn make_chain(&mut self, name: &Name, base: Option<Base>) {
        let flags = flag::CREATE | flag::EXCLUSIVE;
        let messages = self.begin(message::NEW_CHAIN, flags, Some(Object::Chain(name.clone())));
        messages.text(chain::NAME, name.as_str());
        if let Some(Base { kind, hook, priority }) = base {
            messages
                .text(chain::TYPE, type_name(kind))
                .nest(chain::HOOK)
                .u32_be(chain::HOOK_NUMBER, hook_number(hook))
                .u32_be(chain::HOOK_PRIORITY, priority as u32)
                .end()
                .u32_be(chain::POLICY, chain::ACCEPT);
        }
    }

    /// Gives the chain with this handle another name when the transaction is done.
    pub fn rename_chain(&mut self, handle: u64, name: &Name) {
        let messages = self.begin(message::NEW_CHAIN, 0, Some(Object::Chain(name.clone())));
        messages.u64_be(chain::HANDLE, handle).text(chain::NAME, name.as_str());
    }

    pub fn delete_chain(&mut self, name: &Name) {
        self.begin(message::DELETE_CHAIN, 0, Some(Object::Chain(name.clone()))).text(chain::NAME, name.as_str());
    }

    /// Removes all rules of a chain.
    pub fn empty_chain(&mut self, name: &Name) {
        self.begin(message::DELETE_RULE, 0, Some(Object::Chain(name.clone()))).text(rule::CHAIN, name.as_str());
    }

    /// Adds a rule at the end of a chain. One that is not understood is added as it was read: the kernel refuses it where it
    /// leads to what is not there any more.
    pub fn add_rule(&mut self, chain: &Name, one: &Rule) {
        self.add_rule_of(chain, chain, one);
    }

    /// The same for a rule of one chain, which is another one's until the transaction is done.
    pub fn add_rule_of(&mut self, of: &Name, chain: &Name, one: &Rule) {
        let about = Object::Chain(of.clone());
        if let Some(foreign) = one.foreign() {
            let messages = self.begin(message::NEW_RULE, flag::CREATE | flag::APPEND, Some(about));
            messages.text(rule::CHAIN, chain.as_str()).attribute(rule::EXPRESSIONS, &foreign.expressions);
            if let Some(userdata) = &foreign.userdata {
                messages.attribute(rule::USERDATA, userdata);
            }
            return;
        }
        let expressions = expressions(one);
        let mut many = 0;
        if expressions.iter().any(|expression| matches!(expression, Expression::LookupMany { .. })) {
            many = self.make_many(about.clone());
        }
        let messages = self.begin(message::NEW_RULE, flag::CREATE | flag::APPEND, Some(about));
        messages.text(rule::CHAIN, chain.as_str()).nest(rule::EXPRESSIONS);
        expressions.iter().for_each(|expression| expression.write(messages, many));
        messages.end();
        if let Some(comment) = one.comment() {
            let mut userdata = vec![rule::COMMENT, (comment.len() + 1) as u8];
            userdata.extend_from_slice(comment.as_bytes());
            userdata.push(0);
            messages.attribute(rule::USERDATA, &userdata);
        }
    }

    /// Makes the anonymous set that a rule looks into, and returns its number.
    fn make_many(&mut self, about: Object) -> u32 {
        let types = [fib::BROADCAST, fib::MULTICAST];
        self.describe_set(ANONYMOUS, &Description::many(), Some(about.clone()));
        let number = self.sets;
        let messages = self.begin(message::NEW_ELEMENT, flag::CREATE, Some(about));
        messages
            .text(wire::element::SET, ANONYMOUS)
            .u32_be(wire::element::SET_ID, number)
            .nest(wire::element::ELEMENTS);
        element::write_many(messages, &types);
        messages.end();
        number
    }

    /// Adds elements to a set. Returns those whose keys are none of this set.
    pub fn add_elements<'e>(
        &mut self,
        set: &Name,
        spec: SetSpec,
        elements: impl Iterator<Item = (&'e Key, &'e Content)>,
    ) -> Vec<&'e Key> {
        self.elements(message::NEW_ELEMENT, set, spec, elements.map(|(key, content)| (key, Some(content))))
    }

    /// Deletes elements of a set.
    pub fn delete_elements<'e>(
        &mut self,
        set: &Name,
        spec: SetSpec,
        keys: impl Iterator<Item = &'e Key>,
    ) -> Vec<&'e Key> {
        self.elements(message::DELETE_ELEMENT, set, spec, keys.map(|key| (key, None)))
    }

    /// Deletes all elements of a set.
    pub fn empty_set(&mut self, set: &Name) {
        self.begin(message::DELETE_ELEMENT, 0, Some(Object::Set(set.clone()))).text(wire::element::SET, set.as_str());
    }

    fn elements<'e>(
        &mut self,
        kind: u16,
        set: &Name,
        spec: SetSpec,
        elements: impl Iterator<Item = (&'e Key, Option<&'e Content>)>,
    ) -> Vec<&'e Key> {
        let flags = if kind == message::NEW_ELEMENT { flag::CREATE } else { 0 };
        let one_by_one = self.one_by_one.contains(set);
        let mut odd = Vec::new();
        let mut is_open = false;
        for (key, content) in elements {
            if is_open && (one_by_one || self.messages.room() < element::LARGEST) {
                self.messages.end();
                is_open = false;
            }
            if is_open {
                if let Some(About { object, .. }) = self.about.last_mut() {
                    *object = Some(Object::Set(set.clone()));
                }
            } else {
                self.begin(kind, flags, Some(Object::Element(set.clone(), key.clone())))
                    .text(wire::element::SET, set.as_str())
                    .nest(wire::element::ELEMENTS);
                is_open = true;
            }
            if let Some(about) = self.about.last_mut() {
                about.leads_on |= matches!(content, Some(Content::Verdict(_)));
            }
            if !element::write(&mut self.messages, spec, key, content) {
                odd.push(key);
            }
        }
        if is_open {
            self.messages.end();
        }
        odd
    }
}

/// Appends a list with one element that is asked for.
pub(super) fn ask_for(messages: &mut Messages, set: &Name, spec: SetSpec, key: &Key) -> bool {
    messages.text(wire::element::SET, set.as_str()).nest(wire::element::ELEMENTS);
    let is_of_set = element::write(messages, spec, key, None);
    messages.end();
    is_of_set
}

pub(super) const TYPES: [(BaseKind, &str); 3] =
    [(BaseKind::Filter, "filter"), (BaseKind::Nat, "nat"), (BaseKind::Route, "route")];

/// The hooks by their numbers.
pub(super) const HOOKS: [Hook; 5] = [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting];

fn type_name(kind: BaseKind) -> &'static str {
    TYPES.iter().find(|(one, _)| *one == kind).map_or("filter", |(_, name)| name)
}

fn hook_number(hook: Hook) -> u32 {
    HOOKS.iter().zip(0..).find(|(one, _)| **one == hook).map_or(0, |(_, number)| number)
}
