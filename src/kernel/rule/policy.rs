//! Rules that choose a table whatever the addresses are, by the packet's mark or for every packet, over netlink.
//!
//! ```text
//! ip rule add not fwmark 0/0x3fff lookup 78 priority 32764
//! ip rule add fwmark 13766 lookup 78 priority 32764
//! ip rule add from all lookup 79 priority 32765
//! ```
//!
//! Ours: every rule of this form of which the caller says so. The place alone would prove nothing, because the kernel gives the priorities 32765
//! and below to whoever names none. A rule that asks anything else of a packet is somebody else's.

use std::collections::BTreeMap;
use std::fmt;

use rustix::io::Errno;

use super::{BOOT, DELETE_RULE, GET_RULE, HEADER, NEW_RULE, PROTOCOL, TABLE, TO_TABLE};
use crate::kernel::Error;
use crate::kernel::error::Cause;
use crate::kernel::netlink::{Answer, Bus, Fault, Messages, Socket, flag};
use crate::net::Family;
use crate::reconcile::{Failure, Phase, Step, Target};

/// Key of a rule, which is all there is to it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PolicyRule {
    pub family: Family,
    pub place: Place,
    /// The packets that the rule is about.
    pub packets: Packets,
}

/// Where a rule stands, and the table that it leads to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Place {
    pub priority: u32,
    pub table: u32,
}

/// The packets that a rule is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Packets {
    /// Every packet.
    All,
    /// The bits of the mark under the mask equal the value.
    Marked { value: u32, mask: u32 },
    /// They do not.
    NotMarked { value: u32, mask: u32 },
}

/// The rules of one network namespace that are ours.
pub struct PolicyRules {
    socket: Socket,
    is_ours: fn(&PolicyRule) -> bool,
}

/// A rule that the kernel has.
struct Listed {
    place: Place,
    /// `None`: it is not of our form.
    rule: Option<PolicyRule>,
}

const PRIORITY: u16 = 6;
const MARK: u16 = 10;
const SUPPRESS_LENGTH: u16 = 14;
const MASK: u16 = 16;
/// Attributes that ask something else of a packet, or do something else with it: addresses, links, a rule to go to, realms, a tunnel's number, groups of
/// links, a VRF, users, protocol and ports, and what came later.
const OTHERS: [u16; 15] = [1, 2, 3, 4, 11, 12, 13, 17, 19, 20, 22, 23, 24, 25, 26];
/// `FIB_RULE_INVERT`.
const INVERT: u8 = 2;

impl PolicyRules {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub fn open(is_ours: fn(&PolicyRule) -> bool) -> Result<PolicyRules, Error> {
        Ok(PolicyRules { socket: Socket::open(Bus::Route)?, is_ours })
    }

    /// Returns whether there are rules of others that the kernel might delete in place of this one: what a request leaves unsaid it does not compare.
    fn others_like(&mut self, wanted: &PolicyRule) -> Result<bool, Error> {
        let listed = self.list(wanted.family)?;
        let others = listed.iter().filter(|listed| listed.place == wanted.place);
        let mut others = others.filter(|listed| listed.rule.is_none_or(|rule| !(self.is_ours)(&rule)));
        Ok(others.any(|listed| listed.rule.is_none() || wanted.packets == Packets::All))
    }

    fn delete(&mut self, key: &PolicyRule) -> Result<(), Error> {
        if self.others_like(key)? {
            let cause = "a rule of somebody else stands in the same place and might go in its stead; delete it by hand";
            let cause = Cause::Errno(Errno::BUSY, Some(cause.to_owned()));
            return Err(Error::new("delete rule of routing", key.to_string(), cause));
        }
        let done = self.send(DELETE_RULE, 0, key);
        done.map_err(|fault| Error::new("delete rule of routing", key.to_string(), fault.into()))
    }

    fn add(&mut self, key: &PolicyRule) -> Result<(), Error> {
        let done = self.send(NEW_RULE, flag::CREATE | flag::EXCLUSIVE, key);
        done.map_err(|fault| Error::new("add rule of routing", key.to_string(), fault.into()))
    }

    fn list(&mut self, family: Family) -> Result<Vec<Listed>, Error> {
        let mut message = Messages::new();
        message.begin(GET_RULE, 0).header(&header(family, 0, 0));
        match self.socket.dump(&mut message, |answer| rule(answer, family)) {
            Ok(listed) => Ok(listed),
            // A kernel without this family.
            Err(Fault::Refused(refusal)) if matches!(refusal.errno, libc::EAFNOSUPPORT | libc::EOPNOTSUPP) => {
                Ok(Vec::new())
            }
            Err(fault) => Err(Error::new("list rules of routing", family.to_string(), fault.into())),
        }
    }

    fn send(&mut self, command: u16, flags: u16, rule: &PolicyRule) -> Result<(), Fault> {
        let PolicyRule { family, place, packets } = *rule;
        let inverted = if matches!(packets, Packets::NotMarked { .. }) { INVERT } else { 0 };
        let mut message = Messages::new();
        message.begin(command, flags).header(&header(family, TO_TABLE, inverted));
        message.u32(PRIORITY, place.priority).u32(TABLE, place.table);
        if let Packets::Marked { value, mask } | Packets::NotMarked { value, mask } = packets {
            message.u32(MARK, value).u32(MASK, mask);
        }
        if command == NEW_RULE {
            message.u8(PROTOCOL, BOOT);
        }
        match self.socket.batch(&mut message)?.into_iter().next() {
            Some(refusal) => Err(Fault::Refused(refusal)),
            None => Ok(()),
        }
    }
}

impl Target for PolicyRules {
    type Key = PolicyRule;
    type Value = ();
    type Error = Error;

    fn name(&self) -> &'static str {
        "rules of routing"
    }

    fn read(&mut self) -> Result<BTreeMap<PolicyRule, ()>, Error> {
        let mut found = BTreeMap::new();
        for family in Family::BOTH {
            let listed = self.list(family)?;
            let ours = listed.into_iter().filter_map(|listed| listed.rule).filter(|rule| (self.is_ours)(rule));
            found.extend(ours.map(|rule| (rule, ())));
        }
        Ok(found)
    }

    /// A rule for all packets goes last: the kernel takes its description for that of any rule in the same place.
    fn apply(&mut self, _phase: Phase, steps: &[Step<'_, PolicyRule, ()>]) -> Vec<Failure<Error>> {
        let mut order: Vec<usize> = (0..steps.len()).collect();
        order.sort_by_key(|index| steps.get(*index).is_some_and(|step| step.key.packets == Packets::All));
        let mut failures = Vec::new();
        for index in order {
            let Some(step) = steps.get(index) else { continue };
            let done = if step.want.is_some() { self.add(step.key) } else { self.delete(step.key) };
            failures.extend(done.err().map(|error| Failure { step: index, error }));
        }
        failures
    }
}

fn header(family: Family, action: u8, flags: u8) -> [u8; HEADER] {
    // The table is in an attribute, and the flags are a number of 32 bits in the order of this machine.
    let [a, b, c, d] = u32::from(flags).to_ne_bytes();
    [family.number(), 0, 0, 0, 0, 0, 0, action, a, b, c, d]
}

/// Returns the rule of a family that an answer describes.
fn rule(answer: &Answer<'_>, family: Family) -> Option<Listed> {
    let [number, .., table, _, _, _, _, _, _, _] = *answer.header::<HEADER>()?;
    let attributes = answer.attributes(HEADER);
    let value_of = |kind| attributes.get(kind).and_then(|value| value.u32());
    let table = value_of(TABLE).unwrap_or_else(|| table.into());
    let place = Place { priority: value_of(PRIORITY).unwrap_or(0), table };
    let packets = || Some(PolicyRule { family, place, packets: packets(answer)? });
    (number == family.number()).then(|| Listed { place, rule: packets() })
}

/// Returns the packets that a rule of our form is about.
fn packets(answer: &Answer<'_>) -> Option<Packets> {
    let [_, to, from, tos, _, _, _, action, a, b, c, d] = *answer.header::<HEADER>()?;
    let flags = u32::from_ne_bytes([a, b, c, d]);
    if [to, from, tos] != [0; 3] || action != TO_TABLE || flags & !u32::from(INVERT) != 0 {
        return None;
    }
    let attributes = answer.attributes(HEADER);
    let value_of = |kind| attributes.get(kind).and_then(|value| value.u32());
    let asks_more = OTHERS.iter().any(|kind| attributes.get(*kind).is_some());
    // Minus one: nothing is suppressed.
    let suppresses = value_of(SUPPRESS_LENGTH).is_some_and(|length| length != u32::MAX);
    if asks_more || suppresses {
        return None;
    }
    let (value, mask) = (value_of(MARK).unwrap_or(0), value_of(MASK).unwrap_or(0));
    match (mask, flags) {
        (0, 0) => Some(Packets::All),
        (0, _) => None,
        (mask, 0) => Some(Packets::Marked { value, mask }),
        (mask, _) => Some(Packets::NotMarked { value, mask }),
    }
}

impl fmt::Display for PolicyRule {
    /// As `ip rule` prints it: `not from all fwmark 0x0/0x3fff lookup 78 priority 32764`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { priority, table } = self.place;
        match self.packets {
            Packets::All => f.write_str("from all")?,
            Packets::Marked { value, mask } => write!(f, "from all fwmark {value:#x}/{mask:#x}")?,
            Packets::NotMarked { value, mask } => write!(f, "not from all fwmark {value:#x}/{mask:#x}")?,
        }
        write!(f, " lookup {table} priority {priority} ({})", self.family)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            for family in Family::BOTH {
                let _ = rule(&Answer { kind: NEW_RULE, flags: 0, sequence: 0, port: 0, payload: &bytes }, family);
            }
        }
    }
}
