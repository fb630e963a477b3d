//! Reading one table.

use std::collections::{BTreeMap, BTreeSet};

use super::batch::{HOOKS, TYPES, ask_for};
use super::decode;
use super::element::{self, Description, Found, Verdicts};
use super::expression::{Expression, fib};
use super::object::{Base, Content, Key, Kind, Name, SetSpec};
use super::rule::{Foreign, Rule};
use super::wire::{self, HEADER, ITEM, TABLE, TableId, chain, generation, message, object, rule, set, table};
use crate::kernel::netlink::{Answer, Attributes, Fault, Messages, Socket};

/// Reads the table of this name.
pub(super) struct Reader<'a> {
    pub socket: &'a mut Socket,
    pub table: TableId<'a>,
}

/// The table itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub flags: u32,
    /// The port of the socket to which it belongs.
    pub owner: Option<u32>,
}

/// The sets of a table.
#[derive(Default)]
pub(super) struct Sets {
    /// `None` for one that we never make.
    pub named: BTreeMap<Name, Option<SetSpec>>,
    /// Names of those that rules made which are for broadcasts and multicasts.
    pub many: BTreeSet<String>,
}

/// A chain, without its rules: `None` for one of a form that we never make.
pub(super) type Chains = BTreeMap<Name, Option<Option<Base>>>;

/// The number of changes that all tables of the socket's network namespace have seen.
///
/// # Errors
/// The kernel refuses the request, or an answer is malformed.
pub(super) fn generation(socket: &mut Socket) -> Result<u32, Fault> {
    let mut message = Messages::new();
    message.begin(message::GET_GENERATION, 0).header(&[0; HEADER]);
    let found = socket.request(&mut message, |answer| answer.attributes(HEADER).get(generation::ID)?.u32_be())?;
    found.into_iter().next().ok_or(Fault::Malformed("no generation"))
}

impl Reader<'_> {
    fn ask(&self, kind: u16) -> Messages {
        let mut messages = Messages::new();
        wire::begin(&mut messages, kind, 0, self.table);
        messages
    }

    /// As the function [`generation`].
    ///
    /// # Errors
    /// The kernel refuses the request, or an answer is malformed.
    pub fn generation(&mut self) -> Result<u32, Fault> {
        generation(self.socket)
    }

    /// The table itself; `None` where there is none.
    ///
    /// # Errors
    /// The kernel refuses the request, or an answer is malformed.
    pub fn header(&mut self) -> Result<Option<Header>, Fault> {
        let mut message = self.ask(message::GET_TABLE);
        let header = |answer: &Answer<'_>| {
            let attributes = answer.attributes(HEADER);
            let flags = attributes.get(table::FLAGS)?.u32_be()?;
            let owner = attributes.get(table::OWNER).and_then(|owner| owner.u32_be());
            Some(Header { flags, owner })
        };
        match self.socket.request(&mut message, header) {
            Ok(found) => Ok(found.into_iter().next()),
            Err(fault) if fault.errno() == Some(libc::ENOENT) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// The counters.
    ///
    /// # Errors
    /// The kernel refuses the request, or an answer is malformed.
    pub fn counters(&mut self) -> Result<BTreeMap<Name, Count>, Fault> {
        let mut message = self.ask(message::GET_OBJECT);
        message.u32_be(object::TYPE, object::COUNTER);
        let table = self.table;
        let found = self.socket.dump(&mut message, |answer| {
            let attributes = of_table(answer, table)?;
            let kind = attributes.get(object::TYPE)?.u32_be()?;
            let value = attributes.get(object::DATA)?.attributes();
            let number = |kind: u16| value.get(kind)?.u64_be();
            let count = Count { packets: number(object::PACKETS)?, bytes: number(object::BYTES)? };
            (kind == object::COUNTER).then_some((attributes.get(object::NAME)?.text()?.into(), count))
        })?;
        Ok(found.into_iter().collect())
    }

    /// The sets and maps.
    ///
    /// # Errors
    /// The kernel refuses the request, or an answer is malformed.
    pub fn sets(&mut self) -> Result<Sets, Fault> {
        let mut message = self.ask(message::GET_SET);
        let table = self.table;
        let found = self.socket.dump(&mut message, |answer| described_set(&of_table(answer, table)?))?;
        let mut sets = Sets::default();
        for (name, description) in found {
            if description.flags & set::ANONYMOUS == 0 {
                sets.named.insert(name.into(), description.spec());
            } else if description == Description::many() && self.is_many(&name)? {
                sets.many.insert(name);
            }
        }
        Ok(sets)
    }

    /// Returns whether these are the types of addresses that a rule for broadcasts and multicasts looks for.
    fn is_many(&mut self, name: &str) -> Result<bool, Fault> {
        let mut message = self.ask(message::GET_ELEMENT);
        message.text(wire::element::SET, name);
        let found = self.socket.dump(&mut message, |answer| {
            let items = answer.attributes(HEADER).get(wire::element::ELEMENTS)?.attributes();
            let value = |item: Attributes<'_>| item.get(wire::element::KEY)?.attributes().get(wire::data::VALUE)?.u32();
            Some(items.map(|item| value(item.attributes())).collect::<Vec<Option<u32>>>())
        })?;
        let types: BTreeSet<Option<u32>> = found.into_iter().flatten().collect();
        Ok(types == BTreeSet::from([Some(fib::BROADCAST), Some(fib::MULTICAST)]))
    }

    /// The elements of a set.
    ///
    /// # Errors
    /// The kernel refuses the request, or an answer is malformed.
    pub fn elements(&mut self, name: &Name, spec: SetSpec) -> Result<Vec<(Key, Content)>, Fault> {
        let mut message = self.ask(message::GET_ELEMENT);
        message.text(wire::element::SET, name.as_str());
        let mut verdicts = Verdicts::default();
        let found = self.socket.dump(&mut message, |answer| Some(found_elements(answer, spec.kind, &mut verdicts)))?;
        Ok(element::elements(spec, found.into_iter().flatten().collect()))
    }

    /// One element of a set without ranges, if it is there.
    ///
    /// # Errors
    /// The kernel refuses the request, or an answer is malformed.
    pub fn element(&mut self, name: &Name, spec: SetSpec, key: &Key) -> Result<Option<Content>, Fault> {
        let mut message = self.ask(message::GET_ELEMENT);
        if !ask_for(&mut message, name, spec, key) {
            return Ok(None);
        }
        let mut verdicts = Verdicts::default();
        match self.socket.request(&mut message, |answer| Some(found_elements(answer, spec.kind, &mut verdicts))) {
            Ok(found) => {
                let elements = element::elements(spec, found.into_iter().flatten().collect());
                Ok(elements.into_iter().find(|(one, _)| one == key).map(|(_, content)| content))
            }
            Err(fault) if fault.errno() == Some(libc::ENOENT) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// The chains, but for those that are part of a rule: they go with it.
    ///
    /// # Errors
    /// The kernel refuses the request, or an answer is malformed.
    pub fn chains(&mut self) -> Result<Chains, Fault> {
        let mut message = self.ask(message::GET_CHAIN);
        let table = self.table;
        let found = self.socket.dump(&mut message, |answer| {
            let attributes = of_table(answer, table)?;
            let is_of_rule = flags(&attributes) & chain::FLAG_BINDING != 0;
            (!is_of_rule).then_some((attributes.get(chain::NAME)?.text()?.into(), base(&attributes)))
        })?;
        Ok(found.into_iter().collect())
    }

    /// The kernel's number of a chain, if it is there.
    ///
    /// # Errors
    /// The kernel refuses the request, or an answer is malformed.
    pub fn chain_handle(&mut self, name: &Name) -> Result<Option<u64>, Fault> {
        let mut message = self.ask(message::GET_CHAIN);
        message.text(chain::NAME, name.as_str());
        match self.socket.request(&mut message, |answer| answer.attributes(HEADER).get(chain::HANDLE)?.u64_be()) {
            Ok(found) => Ok(found.into_iter().next()),
            Err(fault) if fault.errno() == Some(libc::ENOENT) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// The rules of all chains, or of one, in their order.
    ///
    /// # Errors
    /// The kernel refuses the request, or an answer is malformed.
    pub fn rules(&mut self, of: Option<&Name>, sets: &Sets) -> Result<BTreeMap<Name, Vec<Rule>>, Fault> {
        let mut message = self.ask(message::GET_RULE);
        if let Some(chain) = of {
            message.text(rule::CHAIN, chain.as_str());
        }
        let table = self.table;
        let found = self.socket.dump(&mut message, |answer| {
            let attributes = of_table(answer, table)?;
            let name = attributes.get(rule::CHAIN)?.text()?;
            if of.is_some_and(|chain| chain.as_str() != name) {
                return None;
            }
            Some((Name::from(name), read_rule(&attributes, sets)))
        })?;
        let mut rules: BTreeMap<Name, Vec<Rule>> = BTreeMap::new();
        for (chain, one) in found {
            rules.entry(chain).or_default().push(one);
        }
        Ok(rules)
    }
}

/// The packets and bytes that a named counter has counted since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

/// The attributes of an answer about this table: not every kernel obeys every filter.
fn of_table<'a>(answer: &Answer<'a>, table: TableId<'_>) -> Option<Attributes<'a>> {
    let [family, ..] = *answer.header::<HEADER>()?;
    let attributes = answer.attributes(HEADER);
    (family == table.family && attributes.get(TABLE)?.text()? == table.name).then_some(attributes)
}

fn described_set(attributes: &Attributes<'_>) -> Option<(String, Description)> {
    let number = |kind: u16| attributes.get(kind).and_then(|number| number.u32_be());
    let data = number(set::DATA_TYPE).map(|kind| {
        // Verdicts have a length of their own in each kernel.
        let length = if kind == set::VERDICTS { 0 } else { number(set::DATA_LENGTH).unwrap_or_default() };
        (kind, length)
    });
    let description = Description {
        flags: number(set::FLAGS).unwrap_or_default(),
        key_type: number(set::KEY_TYPE).unwrap_or_default(),
        key_length: number(set::KEY_LENGTH).unwrap_or_default(),
        data,
        size: attributes.get(set::DESCRIPTION).and_then(|inside| inside.attributes().get(set::SIZE)?.u32_be()),
    };
    Some((attributes.get(set::NAME)?.text()?.to_owned(), description))
}

fn found_elements(answer: &Answer<'_>, kind: Kind, verdicts: &mut Verdicts) -> Vec<Found> {
    let items = answer.attributes(HEADER).get(wire::element::ELEMENTS).map(|items| items.attributes());
    let items = items.into_iter().flatten().filter(|item| item.kind == ITEM);
    items.filter_map(|item| element::read(&item.attributes(), kind, verdicts)).collect()
}

fn flags(chain: &Attributes<'_>) -> u32 {
    chain.get(chain::FLAGS).and_then(|flags| flags.u32_be()).unwrap_or_default()
}

/// The place of a base chain; `None` for a chain that we never make.
fn base(attributes: &Attributes<'_>) -> Option<Option<Base>> {
    let flags = flags(attributes);
    let Some(hook) = attributes.get(chain::HOOK) else { return (flags == 0).then_some(None) };
    let hook = hook.attributes();
    let kind = attributes.get(chain::TYPE)?.text()?;
    let kind = TYPES.iter().find(|(_, name)| *name == kind).map(|(kind, _)| *kind)?;
    let number = usize::try_from(hook.get(chain::HOOK_NUMBER)?.u32_be()?).ok()?;
    let priority = hook.get(chain::HOOK_PRIORITY)?.u32_be()? as i32;
    let has_device = hook.get(chain::HOOK_DEVICE).or_else(|| hook.get(chain::HOOK_DEVICES)).is_some();
    let accepts = attributes.get(chain::POLICY).and_then(|policy| policy.u32_be()) == Some(chain::ACCEPT);
    let is_plain = accepts && !has_device && flags & !chain::FLAG_BASE == 0;
    is_plain.then_some(Some(Base { kind, hook: *HOOKS.get(number)?, priority }))
}

pub(super) fn read_rule(attributes: &Attributes<'_>, sets: &Sets) -> Rule {
    let read = attributes.get(rule::EXPRESSIONS);
    let items = read.map(|items| items.attributes());
    let is_many = |name: &str| sets.many.contains(name);
    let expressions: Vec<Expression> =
        items.into_iter().flatten().map(|item| Expression::read(&item.attributes(), &is_many)).collect();
    let userdata = attributes.get(rule::USERDATA).map(|userdata| userdata.value);
    let understood = match userdata.map(comment) {
        None => decode::rule(&expressions, None),
        Some(Some(comment)) => decode::rule(&expressions, Some(comment)),
        Some(None) => None,
    };
    understood.unwrap_or_else(|| {
        let expressions = read.map_or(&[][..], |read| read.value).into();
        Rule::of_others(Foreign { expressions, userdata: userdata.map(Into::into) })
    })
}

/// The comment that is all of a rule's userdata.
fn comment(userdata: &[u8]) -> Option<&str> {
    let [rule::COMMENT, length, text @ ..] = userdata else { return None };
    let [text @ .., 0] = text else { return None };
    if usize::from(*length) != text.len() + 1 {
        return None;
    }
    std::str::from_utf8(text).ok()
}
