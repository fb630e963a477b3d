//! The parts of a rule in the kernel: expressions that load, compare and act on registers.
//!
//! Kernel: `NFTA_RULE_EXPRESSIONS` (include/uapi/linux/netfilter/nf_tables.h), each with a name and attributes of its own. There are
//! sixteen registers of 4 bytes; a value takes as many as it needs, and the next field of a concatenation begins with the
//! next register. Four of them together have a number of an earlier time, which the kernel prefers where it fits.

use crate::kernel::netlink::{Attributes, Messages};

use super::object::Name;
use super::wire::{ITEM, data, is_made_up};

pub(super) use super::numbers::{base, compare, connection, fib, meta, nat, reject, tcp};

/// One expression with all that matters of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Expression {
    /// Loads bytes of a header of the packet.
    Payload {
        base: u32,
        offset: u32,
        length: u32,
        to: u32,
    },
    /// Loads what the kernel knows of the packet.
    Meta {
        key: u32,
        to: u32,
    },
    SetMeta {
        key: u32,
        from: u32,
    },
    /// Loads what connection tracking knows; `direction` 0 is the original one.
    Connection {
        key: u32,
        direction: Option<u8>,
        to: u32,
    },
    /// Asks the routes.
    Fib {
        result: u32,
        flags: u32,
        to: u32,
    },
    /// Ends the rule where the comparison does not hold.
    Compare {
        from: u32,
        operation: u32,
        value: Data,
    },
    /// The register's value and `mask`, exclusive or `xor`.
    Bitwise {
        from: u32,
        to: u32,
        mask: Data,
        xor: Data,
    },
    /// Ends the rule where the set has no such element, or where it has one. With `to` the element's value is loaded; register 0
    /// is the verdict.
    Lookup {
        set: Name,
        from: u32,
        to: Option<u32>,
        inverted: bool,
    },
    /// A lookup in an anonymous set with the types broadcast and multicast, which comes and goes with the rule.
    LookupMany {
        from: u32,
    },
    Immediate {
        to: u32,
        value: Data,
    },
    Verdict {
        code: i32,
        chain: Option<Name>,
    },
    Limit {
        rate: u64,
        seconds: u64,
        burst: u32,
    },
    Log {
        group: u16,
        prefix: Box<str>,
    },
    Counter(Name),
    /// Writes the maximum segment size in the option of TCP, unless it becomes larger by that.
    SetMss {
        from: u32,
    },
    Reject {
        kind: u32,
        code: u8,
    },
    /// Keeps connection tracking from looking at the packet.
    Untrack,
    Masquerade {
        flags: u32,
    },
    SourceNat {
        family: u32,
        from: u32,
        flags: u32,
    },
    /// Anything that is never written here.
    Unknown,
}

/// A value of at most 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Data {
    bytes: [u8; 16],
    length: usize,
}

/// The number of the register that begins after so many words of 4 bytes.
pub(super) const fn register(word: u32) -> u32 {
    if word.is_multiple_of(4) { 1 + word / 4 } else { 8 + word }
}

/// The register that everything begins with.
pub(super) const FIRST: u32 = register(0);
/// The register of a verdict.
pub(super) const VERDICT: u32 = 0;

impl Data {
    /// Longer values are cut.
    pub fn new(value: &[u8]) -> Data {
        let mut bytes = [0; 16];
        let length = value.len().min(bytes.len());
        for (place, byte) in bytes.iter_mut().zip(value) {
            *place = *byte;
        }
        Data { bytes, length }
    }

    /// As many zeros.
    pub fn zero(length: usize) -> Data {
        Data { bytes: [0; 16], length: length.min(16) }
    }

    /// In the order of this machine.
    pub fn number(value: u32) -> Data {
        Data::new(&value.to_ne_bytes())
    }

    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    pub fn as_number(&self) -> Option<u32> {
        Some(u32::from_ne_bytes(self.bytes().try_into().ok()?))
    }

    pub fn as_byte(&self) -> Option<u8> {
        let [byte] = *self.bytes() else { return None };
        Some(byte)
    }

    pub fn as_port(&self) -> Option<u16> {
        Some(u16::from_be_bytes(self.bytes().try_into().ok()?))
    }
}

impl Expression {
    /// Appends the expression to the list that is open. `many` is the number of the anonymous set in this transaction.
    pub fn write(&self, messages: &mut Messages, many: u32) {
        messages.nest(ITEM).text(NAME, self.name()).nest(CONTENT);
        match self {
            Expression::Payload { .. }
            | Expression::Meta { .. }
            | Expression::Connection { .. }
            | Expression::Fib { .. } => {
                self.write_load(messages);
            }
            Expression::SetMeta { key, from } => {
                messages.u32_be(2, *key).u32_be(3, *from);
            }
            Expression::Compare { from, operation, value } => {
                messages.u32_be(1, *from).u32_be(2, *operation);
                write_value(messages, 3, value);
            }
            Expression::Bitwise { from, to, mask, xor } => {
                messages.u32_be(1, *from).u32_be(2, *to).u32_be(3, mask.length as u32);
                write_value(messages, 4, mask);
                write_value(messages, 5, xor);
            }
            Expression::Lookup { set, from, to, inverted } => {
                messages.text(1, set.as_str()).u32_be(2, *from);
                if let Some(to) = to {
                    messages.u32_be(3, *to);
                }
                if *inverted {
                    messages.u32_be(5, 1);
                }
            }
            Expression::LookupMany { from } => {
                messages.text(1, ANONYMOUS).u32_be(2, *from).u32_be(4, many);
            }
            Expression::Immediate { to, value } => {
                messages.u32_be(1, *to);
                write_value(messages, 2, value);
            }
            Expression::Verdict { code, chain } => {
                messages.u32_be(1, VERDICT);
                write_verdict(messages, 2, *code, chain.as_ref());
            }
            Expression::Limit { rate, seconds, burst } => {
                messages.u64_be(1, *rate).u64_be(2, *seconds).u32_be(3, *burst).u32_be(4, 0).u32_be(5, 0);
            }
            Expression::Log { group, prefix } => {
                messages.u16_be(1, *group).text(2, prefix);
            }
            Expression::Counter(name) => {
                messages.u32_be(1, COUNTER).text(2, name.as_str());
            }
            Expression::SetMss { from } => {
                messages.u8(2, tcp::MSS).u32_be(3, 2).u32_be(4, 2).u32_be(6, tcp::IN_OPTION).u32_be(7, *from);
            }
            Expression::Reject { kind, code } => {
                messages.u32_be(1, *kind).u8(2, *code);
            }
            Expression::Masquerade { flags: 0 } | Expression::Untrack | Expression::Unknown => {}
            Expression::Masquerade { flags } => {
                messages.u32_be(1, *flags);
            }
            Expression::SourceNat { family, from, flags } => {
                messages.u32_be(1, 0).u32_be(2, *family).u32_be(3, *from);
                if *flags != 0 {
                    messages.u32_be(7, *flags);
                }
            }
        }
        messages.end().end();
    }

    fn write_load(&self, messages: &mut Messages) {
        match *self {
            Expression::Payload { base, offset, length, to } => {
                messages.u32_be(1, to).u32_be(2, base).u32_be(3, offset).u32_be(4, length);
            }
            Expression::Meta { key, to } => {
                messages.u32_be(2, key).u32_be(1, to);
            }
            Expression::Connection { key, direction, to } => {
                messages.u32_be(1, to).u32_be(2, key);
                if let Some(direction) = direction {
                    messages.u8(3, direction);
                }
            }
            Expression::Fib { result, flags, to } => {
                messages.u32_be(1, to).u32_be(2, result).u32_be(3, flags);
            }
            _ => {}
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Expression::Payload { .. } => "payload",
            Expression::Meta { .. } | Expression::SetMeta { .. } => "meta",
            Expression::Connection { .. } => "ct",
            Expression::Fib { .. } => "fib",
            Expression::Compare { .. } => "cmp",
            Expression::Bitwise { .. } => "bitwise",
            Expression::Lookup { .. } | Expression::LookupMany { .. } => "lookup",
            Expression::Immediate { .. } | Expression::Verdict { .. } => "immediate",
            Expression::Limit { .. } => "limit",
            Expression::Log { .. } => "log",
            Expression::Counter(_) => "objref",
            Expression::SetMss { .. } => "exthdr",
            Expression::Reject { .. } => "reject",
            Expression::Untrack => "notrack",
            Expression::Masquerade { .. } => "masq",
            Expression::SourceNat { .. } => "nat",
            Expression::Unknown => "",
        }
    }

    /// Reads one item of a rule's list. `is_many` tells whether the anonymous set of this name is that of [`Expression::LookupMany`].
    pub fn read(item: &Attributes<'_>, is_many: &dyn Fn(&str) -> bool) -> Expression {
        let read = || {
            let name = item.get(NAME)?.text()?;
            // An expression that needs nothing may come without a list.
            let content = item.get(CONTENT).map_or(Attributes::new(&[]), |content| content.attributes());
            let one = Reading(&content);
            match name {
                "lookup" => one.lookup(is_many),
                "payload" | "meta" | "ct" | "fib" => one.load(name),
                "cmp" | "bitwise" | "immediate" => one.calculation(name),
                _ => one.action(name),
            }
        };
        read().unwrap_or(Expression::Unknown)
    }
}

/// `NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`.
const NAME: u16 = 1;
const CONTENT: u16 = 2;
/// `NFT_OBJECT_COUNTER`.
const COUNTER: u32 = 1;
/// The pattern of which the kernel makes the name of an anonymous set.
pub(super) const ANONYMOUS: &str = "__set%d";

/// The attributes of one expression.
struct Reading<'a>(&'a Attributes<'a>);

impl Reading<'_> {
    fn number(&self, kind: u16) -> Option<u32> {
        self.0.get(kind)?.u32_be()
    }

    fn has(&self, kind: u16) -> bool {
        self.0.get(kind).is_some()
    }

    fn value(&self, kind: u16) -> Option<Data> {
        let value = self.0.get(kind)?.attributes().get(data::VALUE)?.value;
        (value.len() <= 16).then(|| Data::new(value))
    }

    fn lookup(&self, is_many: &dyn Fn(&str) -> bool) -> Option<Expression> {
        let (set, from, to) = (self.0.get(1)?.text()?, self.number(2)?, self.number(3));
        let inverted = match self.number(5).unwrap_or_default() {
            0 => false,
            1 => true,
            _ => return None,
        };
        if is_many(set) && to.is_none() && !inverted {
            return Some(Expression::LookupMany { from });
        }
        if is_made_up(set) {
            return None;
        }
        Some(Expression::Lookup { set: set.into(), from, to, inverted })
    }

    fn load(&self, name: &str) -> Option<Expression> {
        Some(match name {
            "payload" => Expression::Payload {
                to: self.number(1)?,
                base: self.number(2)?,
                offset: self.number(3)?,
                length: self.number(4)?,
            },
            "meta" => match (self.number(1), self.number(3)) {
                (Some(to), None) => Expression::Meta { key: self.number(2)?, to },
                (None, Some(from)) => Expression::SetMeta { key: self.number(2)?, from },
                _ => return None,
            },
            "ct" => Expression::Connection {
                to: self.number(1)?,
                key: self.number(2)?,
                direction: self.0.get(3).and_then(|direction| direction.u8()),
            },
            _ => Expression::Fib { to: self.number(1)?, result: self.number(2)?, flags: self.number(3)? },
        })
    }

    fn calculation(&self, name: &str) -> Option<Expression> {
        Some(match name {
            "cmp" => Expression::Compare { from: self.number(1)?, operation: self.number(2)?, value: self.value(3)? },
            "bitwise" if self.number(6).unwrap_or_default() == 0 => Expression::Bitwise {
                from: self.number(1)?,
                to: self.number(2)?,
                mask: self.value(4)?,
                xor: self.value(5)?,
            },
            "immediate" if self.number(1)? == VERDICT => {
                let (code, chain) = read_verdict(&self.0.get(2)?.attributes())?;
                Expression::Verdict { code, chain: chain.map(Name::from) }
            }
            "immediate" => Expression::Immediate { to: self.number(1)?, value: self.value(2)? },
            _ => return None,
        })
    }

    fn action(&self, name: &str) -> Option<Expression> {
        Some(match name {
            "limit" if self.number(4).unwrap_or_default() == 0 && self.number(5).unwrap_or_default() == 0 => {
                Expression::Limit {
                    rate: self.0.get(1)?.u64_be()?,
                    seconds: self.0.get(2)?.u64_be()?,
                    burst: self.number(3)?,
                }
            }
            "log" => self.log()?,
            "objref" if self.number(1)? == COUNTER => Expression::Counter(self.0.get(2)?.text()?.into()),
            "exthdr"
                if self.0.get(2)?.u8()? == tcp::MSS && [3, 4, 6].map(|kind| self.number(kind)) == tcp::MSS_PLACE =>
            {
                Expression::SetMss { from: self.number(7)? }
            }
            "reject" => {
                Expression::Reject { kind: self.number(1)?, code: self.0.get(2).map_or(Some(0), |code| code.u8())? }
            }
            "notrack" => Expression::Untrack,
            "masq" if !self.has(2) => Expression::Masquerade { flags: self.number(1).unwrap_or_default() },
            "nat"
                if self.number(1)? == 0
                    && !self.has(5)
                    && self.number(4).is_none_or(|to| Some(to) == self.number(3)) =>
            {
                let flags = self.number(7).unwrap_or_default() & !nat::ADDRESSES;
                Expression::SourceNat { family: self.number(2)?, from: self.number(3)?, flags }
            }
            _ => return None,
        })
    }
}

impl Reading<'_> {
    /// A level and flags belong to the log of the kernel; a copy of ours is whole, and goes at once.
    fn log(&self) -> Option<Expression> {
        let waits_for = self.0.get(4).and_then(|packets| packets.u16_be()).unwrap_or_default();
        if self.number(3).unwrap_or_default() != 0 || waits_for != 0 || self.has(5) || self.has(6) {
            return None;
        }
        let prefix = self.0.get(2).map_or(Some(""), |prefix| prefix.text())?;
        Some(Expression::Log { group: self.0.get(1)?.u16_be()?, prefix: prefix.into() })
    }
}

fn write_value(messages: &mut Messages, kind: u16, value: &Data) {
    messages.nest(kind).attribute(data::VALUE, value.bytes()).end();
}

/// Appends a verdict as a value of this kind.
pub(super) fn write_verdict(messages: &mut Messages, kind: u16, code: i32, chain: Option<&Name>) {
    messages.nest(kind).nest(data::VERDICT).u32_be(data::CODE, code as u32);
    if let Some(chain) = chain {
        messages.text(data::CHAIN, chain.as_str());
    }
    messages.end().end();
}

/// The code of a verdict, and the chain that it names.
pub(super) fn read_verdict<'a>(value: &Attributes<'a>) -> Option<(i32, Option<&'a str>)> {
    let verdict = value.get(data::VERDICT)?.attributes();
    let code = verdict.get(data::CODE)?.u32_be()? as i32;
    let chain = match verdict.get(data::CHAIN) {
        Some(chain) => Some(chain.text()?),
        None => None,
    };
    Some((code, chain))
}
