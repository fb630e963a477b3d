//! Rules that choose a table by the source, over netlink.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::{BOOT, DELETE_RULE, GET_RULE, HEADER, NEW_RULE, PROTOCOL, RuleKey, TABLE, TO_TABLE};
use crate::kernel::Error;
use crate::kernel::netlink::{Answer, Bus, Fault, Messages, Socket, flag};
use crate::net::Family;
use crate::reconcile::{Failure, Phase, Step, Target};

/// The rules of one network namespace that lead from a source to one of our tables.
pub struct SourceRules {
    socket: Socket,
    tables: Vec<u32>,
}

const SOURCE: u16 = 2;
/// More equal rules than anybody makes.
const MOST_ALIKE: usize = 100;

impl SourceRules {
    /// Opens a socket in the network namespace of the calling thread. `tables`: those that are ours, by their numbers.
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub fn open(tables: impl IntoIterator<Item = u32>) -> Result<SourceRules, Error> {
        Ok(SourceRules { socket: Socket::open(Bus::Route)?, tables: tables.into_iter().collect() })
    }

    fn list(&mut self, family: Family) -> Result<Vec<RuleKey>, Error> {
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
}

impl Target for SourceRules {
    type Key = RuleKey;
    type Value = ();
    type Error = Error;

    fn name(&self) -> &'static str {
        "rules of routing"
    }

    fn read(&mut self) -> Result<BTreeMap<RuleKey, ()>, Error> {
        let mut found = BTreeMap::new();
        for family in Family::BOTH {
            let listed = self.list(family)?;
            found.extend(listed.into_iter().filter(|key| self.tables.contains(&key.table)).map(|key| (key, ())));
        }
        Ok(found)
    }

    fn apply(&mut self, _phase: Phase, steps: &[Step<'_, RuleKey, ()>]) -> Vec<Failure<Error>> {
        let perform = |(index, step): (usize, &Step<'_, RuleKey, ()>)| {
            let (operation, done) = match step.want {
                Some(()) => ("add rule of routing", self.add(*step.key)),
                None => ("delete rule of routing", self.delete(*step.key)),
            };
            let fault = done.err()?;
            Some(Failure { step: index, error: Error::new(operation, step.key.to_string(), fault.into()) })
        };
        steps.iter().enumerate().filter_map(perform).collect()
    }
}

impl SourceRules {
    // ip rule add from SOURCE lookup TABLE
    fn add(&mut self, key: RuleKey) -> Result<(), Fault> {
        self.send(NEW_RULE, flag::CREATE | flag::EXCLUSIVE, key)
    }

    /// The kernel takes the same rule several times, with another priority each.
    // ip rule delete from SOURCE lookup TABLE
    fn delete(&mut self, key: RuleKey) -> Result<(), Fault> {
        self.send(DELETE_RULE, 0, key)?;
        for _ in 0..MOST_ALIKE {
            match self.send(DELETE_RULE, 0, key) {
                Err(Fault::Refused(refusal)) if refusal.errno == libc::ENOENT => break,
                other => other?,
            }
        }
        Ok(())
    }

    fn send(&mut self, command: u16, flags: u16, RuleKey { source, table }: RuleKey) -> Result<(), Fault> {
        let mut message = Messages::new();
        message.begin(command, flags).header(&header(Family::from(source), source.prefix_len(), TO_TABLE));
        message.address(SOURCE, source.network()).u32(TABLE, table);
        if command == NEW_RULE {
            message.u8(PROTOCOL, BOOT);
        }
        match self.socket.batch(&mut message)?.into_iter().next() {
            Some(refusal) => Err(Fault::Refused(refusal)),
            None => Ok(()),
        }
    }
}

fn header(family: Family, length: u8, action: u8) -> [u8; HEADER] {
    // A table number that does not fit here is in the attribute alone.
    [family.number(), 0, length, 0, 0, 0, 0, action, 0, 0, 0, 0]
}

/// The rule that an answer describes; `None` where it has no source or does something else.
fn rule(answer: &Answer<'_>, family: Family) -> Option<RuleKey> {
    let [number, _, length, _, table, _, _, action, ..] = *answer.header::<HEADER>()?;
    if number != family.number() || action != TO_TABLE || length == 0 {
        return None;
    }
    let attributes = answer.attributes(HEADER);
    let source = IpNet::new(attributes.get(SOURCE)?.address()?, length).ok()?;
    let table = attributes.get(TABLE).and_then(|table| table.u32()).unwrap_or_else(|| table.into());
    Some(RuleKey { source: source.trunc(), table })
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
