//! Chains of iptables, of its nf_tables variant, removed without its programs.
//!
//! What `iptables-nft` writes is rules and chains of `table ip` and `table ip6` (`filter`, `nat`), of which this needs the names
//! alone: a chain that is ours by its name goes with its rules, and so does each rule that jumps to it. What the rules
//! match is not looked at. Tables of legacy iptables cannot be reached by netlink.

use std::collections::BTreeSet;

use super::forward::jumps_to;
use super::wire::{self, HEADER, TABLE, chain, message, rule};
use crate::kernel::netlink::{Answer, Bus, Fault, Messages, Socket};
use crate::kernel::{Cause, Error};
use crate::net::Family;

/// A table of iptables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostTable<'a> {
    pub family: Family,
    /// `filter`, `nat` and so on.
    pub name: &'a str,
}

/// `NFTA_RULE_HANDLE`.
const HANDLE: u16 = 3;

/// Removes the chains of this table whose names are owned, with the jumps to them, in one transaction. Returns their number.
///
/// # Errors
/// The kernel refuses.
pub fn remove(table: HostTable<'_>, is_ours: impl Fn(&str) -> bool) -> Result<usize, Error> {
    let failed = |fault: Fault| Error::new("remove chains of iptables", table.name, Cause::from(fault));
    let mut socket = Socket::open(Bus::Netfilter)?;
    let chains = match chains(&mut socket, table) {
        Ok(chains) => chains,
        // No nf_tables.
        Err(fault) if fault.errno().is_some_and(|errno| [libc::EINVAL, libc::EOPNOTSUPP].contains(&errno)) => {
            return Ok(0);
        }
        Err(fault) => return Err(failed(fault)),
    };
    let ours: BTreeSet<String> = chains.into_iter().filter(|name| is_ours(name)).collect();
    if ours.is_empty() {
        return Ok(0);
    }
    let jumps = jumps(&mut socket, table, &ours).map_err(failed)?;
    let mut messages = Messages::new();
    wire::mark(&mut messages, message::BATCH_BEGIN);
    for (from, handle) in jumps {
        about(&mut messages, message::DELETE_RULE, 0, table).text(rule::CHAIN, &from);
        messages.attribute(HANDLE, &handle.to_be_bytes());
    }
    // All rules of the chains before the chains: they may jump to each other.
    for name in &ours {
        about(&mut messages, message::DELETE_RULE, 0, table).text(rule::CHAIN, name);
    }
    for name in &ours {
        about(&mut messages, message::DELETE_CHAIN, 0, table).text(chain::NAME, name);
    }
    wire::mark(&mut messages, message::BATCH_END);
    socket.transaction(&mut messages).map_err(failed)?;
    Ok(ours.len())
}

fn chains(socket: &mut Socket, table: HostTable<'_>) -> Result<Vec<String>, Fault> {
    let mut message = Messages::new();
    about(&mut message, message::GET_CHAIN, 0, table);
    socket.dump(&mut message, |answer| of_table(answer, table, chain::NAME))
}

/// Returns the rules of other chains that jump to one of these: chain and handle.
fn jumps(socket: &mut Socket, table: HostTable<'_>, to: &BTreeSet<String>) -> Result<Vec<(String, u64)>, Fault> {
    let mut message = Messages::new();
    about(&mut message, message::GET_RULE, 0, table);
    socket.dump(&mut message, |answer| {
        let from = of_table(answer, table, rule::CHAIN)?;
        let attributes = answer.attributes(HEADER);
        let target = jumps_to(&attributes)?;
        (to.contains(&target) && !to.contains(&from)).then_some((from, attributes.get(HANDLE)?.u64_be()?))
    })
}

/// Returns this attribute of something in the table; `None` of something elsewhere: not every kernel obeys every filter.
fn of_table(answer: &Answer<'_>, table: HostTable<'_>, attribute: u16) -> Option<String> {
    let [number, ..] = *answer.header::<HEADER>()?;
    let attributes = answer.attributes(HEADER);
    let is_there = number == number_of(table.family) && attributes.get(TABLE)?.text()? == table.name;
    is_there.then(|| attributes.get(attribute)?.text().map(str::to_owned)).flatten()
}

fn about<'m>(messages: &'m mut Messages, kind: u16, flags: u16, table: HostTable<'_>) -> &'m mut Messages {
    messages.begin(kind, flags).header(&[number_of(table.family), 0, 0, 0]).text(TABLE, table.name)
}

fn number_of(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}
