//! Chains of iptables, of its nf_tables variant, removed without its programs.
//!
//! What `iptables-nft` writes is rules and chains of `table ip` and `table ip6` (`filter`, `nat`), of which this needs the names
//! alone: a chain that is ours by its name goes with its rules, and so does each rule that jumps to it. What the rules
//! match is not looked at. Where rules of others are spared ([`Jumps::Spared`]), a chain that one in a chain of others jumps to stays, with what it jumps to itself.
//! Tables of legacy iptables cannot be reached by netlink.
//!
//! Rules go by their numbers, which another rule has once somebody has made the table anew. So what is removed is bound to the generation of nf_tables in which it
//! was read (`NFTA_GEN_ID`): where anything has changed since, the kernel refuses all of it.
//!
//! Of rules that stand in a chain of the host alone, two kinds are read ([`remove_read`]). Those that masquerade what sets of ipset name, or what IPVS sends ([`host_masquerades`](super::host_masquerades)): their owner knows the ones by the names
//! of the sets, which the kernel tells by their numbers, and the others by their shape. And those about one service port ([`host_service_rules`](super::host_service_rules)), which their owner knows by the mark that they give.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use super::host_masquerades::HANDLE;
use super::listener::transaction;
use super::passages::jumps_to;
use super::read::Reader;
use super::wire::{self, HEADER, TABLE, batch, chain, message, rule};
use crate::kernel::netlink::{Answer, Attributes, Fault, Messages, Socket};
use crate::kernel::{Cause, Error};
use crate::net::Family;

/// So often what is removed is read again because others have changed something meanwhile.
const TRIES: usize = 6;
/// The pause after the first of these tries; each further one doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// The chains of iptables that the kernel enters.
const BUILT_IN: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

/// The errors of a kernel without nf_tables.
const ABSENT: [i32; 3] = [libc::EINVAL, libc::EOPNOTSUPP, libc::EAFNOSUPPORT];

/// A table of iptables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostTable<'a> {
    pub family: Family,
    /// `filter`, `nat` and so on.
    pub name: &'a str,
}

/// The state of nf_tables in which something was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Generation(u32);

/// Rules in chains of others that jump to a chain that is to go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Jumps {
    /// They go too.
    Removed,
    /// They stay, and so does the chain; those in the kernel's own chains (`INPUT`, `POSTROUTING`) go.
    Spared,
}

/// Chains that went, and that stayed.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Removed {
    /// Number of chains.
    pub chains: usize,
    /// The names of those that stay for rules of others.
    pub held: BTreeSet<String>,
}

/// Removes the chains of this table whose names are owned, with the jumps to them, in one transaction.
///
/// # Errors
/// The kernel refuses.
pub fn remove(
    socket: &mut Socket,
    table: HostTable<'_>,
    jumps: Jumps,
    is_ours: impl Fn(&str) -> bool,
) -> Result<Removed, Error> {
    let failed = |fault: Fault| Error::new("remove chains of iptables", table.name, Cause::from(fault));
    until_unchanged(|| remove_once(socket, table, jumps, &is_ours)).map_err(failed)
}

/// Returns whether tables of this family have a chain that is owned, by the names of table and chain. One dump, however many tables there are.
///
/// # Errors
/// The kernel refuses to say.
pub fn has_chain(socket: &mut Socket, family: Family, is_ours: impl Fn(&str, &str) -> bool) -> Result<bool, Error> {
    let mut message = Messages::new();
    message.begin(message::GET_CHAIN, 0).header(&[number_of(family), 0, 0, 0]);
    let found = socket.dump(&mut message, |answer| {
        let [number, ..] = *answer.header::<HEADER>()?;
        let attributes = answer.attributes(HEADER);
        let is_its = is_ours(attributes.get(TABLE)?.text()?, attributes.get(chain::NAME)?.text()?);
        (number == number_of(family) && is_its).then_some(())
    });
    let found = unless_absent(found).map_err(|fault| Error::new("list chains of iptables", "", Cause::from(fault)))?;
    Ok(found.is_some_and(|found| !found.is_empty()))
}

/// Returns whether there is any rule in a chain of a table.
///
/// # Errors
/// The kernel refuses to say.
pub fn has_rule(socket: &mut Socket, table: HostTable<'_>, of: &str) -> Result<bool, Error> {
    let mut message = Messages::new();
    about(&mut message, message::GET_RULE, 0, table).text(rule::CHAIN, of);
    let found = socket.dump(&mut message, |answer| (of_table(answer, table, rule::CHAIN)? == of).then_some(()));
    let found = unless_absent(found).map_err(|fault| Error::new("list rules of iptables", of, Cause::from(fault)))?;
    Ok(found.is_some_and(|found| !found.is_empty()))
}

fn remove_once(
    socket: &mut Socket,
    table: HostTable<'_>,
    whose: Jumps,
    is_ours: impl Fn(&str) -> bool,
) -> Result<Removed, Fault> {
    let Some(generation) = unless_absent(generation(socket))? else { return Ok(Removed::default()) };
    let Some(chains) = unless_absent(chains(socket, table))? else { return Ok(Removed::default()) };
    let mut ours: BTreeSet<String> = chains.into_iter().filter(|name| is_ours(name)).collect();
    if ours.is_empty() {
        return Ok(Removed::default());
    }
    let jumps = jumps(socket, table, &ours)?;
    let held = match whose {
        Jumps::Removed => BTreeSet::new(),
        Jumps::Spared => held(&jumps, &ours),
    };
    ours.retain(|name| !held.contains(name));
    let mut messages = begun(generation);
    let mut is_any = !ours.is_empty();
    for Jump { from, to, handle } in &jumps {
        // Those in the chains themselves go with these.
        let leads_in = ours.contains(to) && !ours.contains(from);
        if leads_in || held.contains(to) && BUILT_IN.contains(&from.as_str()) {
            is_any = true;
            about(&mut messages, message::DELETE_RULE, 0, table).text(rule::CHAIN, from);
            messages.attribute(HANDLE, &handle.to_be_bytes());
        }
    }
    // All rules of the chains before the chains: they may jump to each other.
    for name in &ours {
        about(&mut messages, message::DELETE_RULE, 0, table).text(rule::CHAIN, name);
    }
    for name in &ours {
        about(&mut messages, message::DELETE_CHAIN, 0, table).text(chain::NAME, name);
    }
    wire::mark(&mut messages, message::BATCH_END);
    if is_any {
        transaction(socket, &mut messages)?;
    }
    Ok(Removed { chains: ours.len(), held })
}

/// Returns those of our chains that stay because rules in chains of others jump to them, or to one that jumps to them.
fn held(jumps: &[Jump], ours: &BTreeSet<String>) -> BTreeSet<String> {
    let is_of_others = |from: &str| !ours.contains(from) && !BUILT_IN.contains(&from);
    let mut held: BTreeSet<String> =
        jumps.iter().filter(|jump| is_of_others(&jump.from)).map(|jump| jump.to.clone()).collect();
    loop {
        let more = jumps.iter().filter(|jump| held.contains(&jump.from) && !held.contains(&jump.to));
        let more: Vec<String> = more.map(|jump| jump.to.clone()).collect();
        if more.is_empty() {
            return held;
        }
        held.extend(more);
    }
}

/// Removes rules of a chain, of those that `read` understands, in one transaction: those whose numbers `ours` returns. It is asked again
/// where something has changed meanwhile, and not where there are none. Returns how many were removed.
///
/// # Errors
/// The kernel refuses.
pub fn remove_read<R>(
    socket: &mut Socket,
    table: HostTable<'_>,
    chain: &str,
    read: fn(&Attributes<'_>) -> Option<R>,
    mut ours: impl FnMut(&mut Socket, &[R]) -> Vec<u64>,
) -> Result<usize, Error> {
    let failed = |fault: Fault| Error::new("remove rules of iptables", table.name, Cause::from(fault));
    until_unchanged(|| {
        let Some((generation, found)) = rules(socket, table, chain, read)? else { return Ok(0) };
        let handles = ours(socket, &found);
        if handles.is_empty() {
            return Ok(0);
        }
        let mut messages = begun(generation);
        for handle in &handles {
            about(&mut messages, message::DELETE_RULE, 0, table).text(rule::CHAIN, chain);
            messages.attribute(HANDLE, &handle.to_be_bytes());
        }
        wire::mark(&mut messages, message::BATCH_END);
        transaction(socket, &mut messages)?;
        Ok(handles.len())
    })
    .map_err(failed)
}

/// Returns the rules of a chain that `read` understands, and when they were read; `None` where there is none.
fn rules<R>(
    socket: &mut Socket,
    table: HostTable<'_>,
    chain: &str,
    read: fn(&Attributes<'_>) -> Option<R>,
) -> Result<Option<(Generation, Vec<R>)>, Fault> {
    let Some(generation) = unless_absent(generation(socket))? else { return Ok(None) };
    let mut message = Messages::new();
    about(&mut message, message::GET_RULE, 0, table);
    let found = socket.dump(&mut message, |answer| {
        (of_table(answer, table, rule::CHAIN)? == chain).then(|| read(&answer.attributes(HEADER))).flatten()
    });
    Ok(unless_absent(found)?.filter(|found| !found.is_empty()).map(|found| (generation, found)))
}

/// Returns `None` where the kernel has no nf_tables.
fn unless_absent<T>(answer: Result<T, Fault>) -> Result<Option<T>, Fault> {
    match answer {
        Err(fault) if fault.errno().is_some_and(|errno| ABSENT.contains(&errno)) => Ok(None),
        answer => answer.map(Some),
    }
}

/// Reads and removes again, after a pause, as long as the kernel refuses because something has changed in between.
fn until_unchanged<T>(mut attempt: impl FnMut() -> Result<T, Fault>) -> Result<T, Fault> {
    let mut pause = FIRST_PAUSE;
    for _ in 1..TRIES {
        match attempt() {
            Err(fault) if fault.errno() == Some(libc::ERESTART) => thread::sleep(pause),
            outcome => return outcome,
        }
        pause *= 2;
    }
    attempt()
}

fn generation(socket: &mut Socket) -> Result<Generation, Fault> {
    Reader { socket, table: "filter".into() }.generation().map(Generation)
}

/// Begins a transaction that the kernel refuses if anything has changed since this generation.
fn begun(Generation(generation): Generation) -> Messages {
    let mut messages = Messages::new();
    wire::mark(&mut messages, message::BATCH_BEGIN);
    messages.u32_be(batch::GENERATION, generation);
    messages
}

fn chains(socket: &mut Socket, table: HostTable<'_>) -> Result<Vec<String>, Fault> {
    let mut message = Messages::new();
    about(&mut message, message::GET_CHAIN, 0, table);
    socket.dump(&mut message, |answer| of_table(answer, table, chain::NAME))
}

/// A rule that jumps.
#[derive(Debug)]
struct Jump {
    from: String,
    to: String,
    handle: u64,
}

/// Returns the rules that jump to one of these chains.
fn jumps(socket: &mut Socket, table: HostTable<'_>, to: &BTreeSet<String>) -> Result<Vec<Jump>, Fault> {
    let mut message = Messages::new();
    about(&mut message, message::GET_RULE, 0, table);
    socket.dump(&mut message, |answer| {
        let from = of_table(answer, table, rule::CHAIN)?;
        let attributes = answer.attributes(HEADER);
        let target = jumps_to(&attributes)?;
        to.contains(&target).then_some(Jump { from, to: target, handle: attributes.get(HANDLE)?.u64_be()? })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netlink::Bus;
    use crate::kernel::nftables::host_masquerades::masquerade;

    /// Of messages of nf_tables rtnetlink says what netfilter says where the kernel has no nf_tables: that it knows none.
    #[test]
    fn a_kernel_without_nf_tables_has_nothing_to_remove() {
        let table = HostTable { family: Family::V4, name: "filter" };
        let mut socket = Socket::open(Bus::Route).expect("any kernel has rtnetlink");
        assert_eq!(generation(&mut socket).expect_err("rtnetlink has no generation").errno(), Some(libc::EOPNOTSUPP));
        let removed = remove_once(&mut socket, table, Jumps::Removed, |_| true);
        assert_eq!(removed.expect("that is no failure"), Removed::default());
        assert_eq!(rules(&mut socket, table, "POSTROUTING", masquerade).expect("that is no failure"), None);
        assert!(!has_chain(&mut socket, Family::V4, |_, _| true).expect("that is no failure"));
        assert!(!has_rule(&mut socket, table, "FORWARD").expect("that is no failure"));
    }
}
