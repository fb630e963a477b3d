//! Whole tables of other programs, by their names: to find and to remove those that they left.
//!
//! Kernel: netlink subsystem `NFNL_SUBSYS_NFTABLES` (include/uapi/linux/netfilter/nf_tables.h). Changes stand between the
//! marks of a batch (include/uapi/linux/netfilter/nfnetlink.h) and are one transaction. Nothing here is ours: the
//! caller names the tables, and a table goes with everything in it.
//!
//! A kernel without nf_tables has no tables.
//!
//! [`DroppingChains`] reads which base chains of others drop what none of their rules accepts (`NFTA_CHAIN_POLICY`, or a last rule without a condition, as
//! firewalld has it): what a table of ours accepts they may still drop. Chains that are entered from there are not followed. The chains of legacy iptables
//! cannot be reached by netlink.

use std::collections::BTreeSet;
use std::fmt;

use rustix::io::Errno;

use super::passages::{self, Passing};
use super::wire::{HEADER, INET, TABLE, chain, data, message, rule};
use crate::kernel::netlink::{Answer, Attributes, Bus, Fault, Messages, Socket};
use crate::kernel::{Cause, Error};
use crate::net::Family;

/// A table of one family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Table<'a> {
    pub family: Family,
    pub name: &'a str,
}

/// A base chain of others that drops what none of its rules accepts.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DroppingChain {
    /// `ip`, `ip6` or `inet`.
    pub family: &'static str,
    pub table: String,
    pub chain: String,
    /// The chains that its rules enter.
    pub enters: BTreeSet<String>,
    /// The links from which its rules accept every packet, and to which too where it judges forwarded ones.
    pub opened: BTreeSet<String>,
}

impl fmt::Display for DroppingChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chain {} of table {} {}", self.chain, self.family, self.table)
    }
}

/// Tables of ours begin so.
const OURS: &str = "sluice_";

/// The families whose chains packets to pods and to this host meet.
const FAMILIES: [(u8, &str); 3] = [(INET, "inet"), (2, "ip"), (10, "ip6")];

/// `NF_INET_LOCAL_IN` and `NF_INET_FORWARD`.
const INPUT: u32 = 1;
const FORWARD: u32 = 2;

/// The errors of a kernel without nf_tables, or without such tables.
const ABSENT: [i32; 3] = [libc::EINVAL, libc::EOPNOTSUPP, libc::ENOENT];

/// `NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`.
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_CONTENT: u16 = 2;
/// `NFTA_IMMEDIATE_DATA`.
const IMMEDIATE_DATA: u16 = 2;
/// `NFTA_MATCH_NAME`, `NFTA_TARGET_NAME`.
const EXTENSION_NAME: u16 = 1;

/// The chains of others that drop, asked by one socket of the network namespace of the thread that asks first.
#[derive(Default)]
pub struct DroppingChains {
    socket: Option<Socket>,
}

impl DroppingChains {
    /// Returns the base chains of others at the hooks `input` and `forward` that drop what none of their rules accepts, sorted: by their policy
    /// or by a last rule that drops or rejects everything.
    ///
    /// # Errors
    /// The kernel refuses to say.
    pub fn read(&mut self) -> Result<Vec<DroppingChain>, Error> {
        let mut socket = match self.socket.take() {
            Some(socket) => socket,
            None => match Socket::open(Bus::Netfilter) {
                Ok(socket) => socket,
                Err(error) if error.is_unsupported() => return Ok(Vec::new()),
                Err(error) => return Err(error),
            },
        };
        let found = dropping_chains(&mut socket);
        // One that failed is not used again.
        self.socket = found.is_ok().then_some(socket);
        found
    }
}

fn dropping_chains(socket: &mut Socket) -> Result<Vec<DroppingChain>, Error> {
    let mut all = Vec::new();
    for of_family in FAMILIES {
        let failed = |fault: Fault| Error::new("list chains of tables", of_family.1, fault.into());
        let mut message = Messages::new();
        message.begin(message::GET_CHAIN, 0).header(&[of_family.0, 0, 0, 0]);
        let found = socket.dump(&mut message, |answer| base_chain(answer, of_family));
        for base in unless_absent(found).map_err(failed)? {
            let rules = unless_absent(rules(socket, &base)).map_err(failed)?;
            all.extend(base.dropping(rules));
        }
    }
    all.sort();
    Ok(all)
}

fn unless_absent<T>(found: Result<Vec<T>, Fault>) -> Result<Vec<T>, Fault> {
    match found {
        Err(fault) if fault.errno().is_some_and(|errno| ABSENT.contains(&errno)) => Ok(Vec::new()),
        found => found,
    }
}

/// A base chain of others.
struct BaseChain {
    family: (u8, &'static str),
    table: String,
    chain: String,
    hook: u32,
    drops_by_policy: bool,
}

/// A rule of it, as far as it matters here.
struct HostRule {
    enters: Option<String>,
    passes: Option<Passing>,
    /// It drops or rejects every packet.
    drops_all: bool,
}

impl BaseChain {
    fn dropping(self, rules: Vec<HostRule>) -> Option<DroppingChain> {
        let drops = self.drops_by_policy || rules.last().is_some_and(|rule| rule.drops_all);
        let (mut from, mut to) = (BTreeSet::new(), BTreeSet::new());
        for passing in rules.iter().filter_map(|rule| rule.passes.as_ref()) {
            match passing {
                Passing::From(link) => from.insert(link.to_string()),
                Passing::To(link) => to.insert(link.to_string()),
                Passing::AnswersTo(_) | Passing::MarkedTo(..) | Passing::Marked(_) | Passing::Other => false,
            };
        }
        from.retain(|link| self.hook == INPUT || to.contains(link));
        let enters = rules.into_iter().filter_map(|rule| rule.enters).collect();
        let (table, chain, family) = (self.table, self.chain, self.family.1);
        drops.then_some(DroppingChain { family, table, chain, enters, opened: from })
    }
}

fn base_chain(answer: &Answer<'_>, family: (u8, &'static str)) -> Option<BaseChain> {
    let [its, ..] = *answer.header::<HEADER>()?;
    let attributes = answer.attributes(HEADER);
    let hook = attributes.get(chain::HOOK)?.attributes().get(chain::HOOK_NUMBER)?.u32_be()?;
    let drops_by_policy = attributes.get(chain::POLICY)?.u32_be()? == data::DROP as u32;
    let table = attributes.get(TABLE)?.text()?.to_owned();
    let concerns = its == family.0 && [INPUT, FORWARD].contains(&hook) && !table.starts_with(OURS);
    let chain = attributes.get(chain::NAME)?.text()?.to_owned();
    concerns.then_some(BaseChain { family, table, chain, hook, drops_by_policy })
}

/// Returns the rules of a chain in their order.
fn rules(socket: &mut Socket, of: &BaseChain) -> Result<Vec<HostRule>, Fault> {
    let mut message = Messages::new();
    message.begin(message::GET_RULE, 0).header(&[of.family.0, 0, 0, 0]);
    message.text(TABLE, &of.table).text(rule::CHAIN, &of.chain);
    socket.dump(&mut message, |answer| {
        let [its, ..] = *answer.header::<HEADER>()?;
        let rule = answer.attributes(HEADER);
        let is_of_chain = rule.get(TABLE)?.text()? == of.table && rule.get(rule::CHAIN)?.text()? == of.chain;
        let drops_all = drops_all(&rule).unwrap_or(false);
        let found = HostRule { enters: passages::jumps_to(&rule), passes: passages::passing(&rule), drops_all };
        (its == of.family.0 && is_of_chain).then_some(found)
    })
}

/// Returns whether a rule drops or rejects every packet; `None` if it asks something.
fn drops_all(of_rule: &Attributes<'_>) -> Option<bool> {
    let mut drops = false;
    for item in of_rule.get(rule::EXPRESSIONS)?.attributes() {
        let item = item.attributes();
        let content = item.get(EXPRESSION_CONTENT).map_or(Attributes::new(&[]), |content| content.attributes());
        match item.get(EXPRESSION_NAME)?.text()? {
            "counter" | "log" => {}
            "match" if content.get(EXTENSION_NAME)?.text()? == "comment" => {}
            "target" => drops |= ["DROP", "REJECT"].contains(&content.get(EXTENSION_NAME)?.text()?),
            "reject" => drops = true,
            "immediate" => {
                let verdict = content.get(IMMEDIATE_DATA)?.attributes().get(data::VERDICT)?.attributes();
                drops |= verdict.get(data::CODE)?.u32_be()? == data::DROP as u32;
            }
            _ => return None,
        }
    }
    Some(drops)
}

const SUBSYSTEM: u8 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const GET_TABLE: u16 = (SUBSYSTEM as u16) << 8 | 1;
const DELETE_TABLE: u16 = (SUBSYSTEM as u16) << 8 | 2;
/// The attribute of a table with its name.
const NAME: u16 = 1;

/// Removes those of the tables that exist, in the network namespace of the calling thread; returns them.
///
/// # Errors
/// The kernel refuses.
pub fn remove<'a>(tables: &[Table<'a>]) -> Result<Vec<Table<'a>>, Error> {
    let mut socket = Socket::open(Bus::Netfilter)?;
    let mut removed = Vec::new();
    for table in tables {
        if !exists(&mut socket, *table)? {
            continue;
        }
        let mut messages = Messages::new();
        messages.begin(BATCH_BEGIN, 0).header(&[0, 0, 0, SUBSYSTEM]);
        about(&mut messages, DELETE_TABLE, *table);
        messages.begin(BATCH_END, 0).header(&[0, 0, 0, SUBSYSTEM]);
        match socket.transaction(&mut messages) {
            Ok(()) => removed.push(*table),
            // Somebody else was faster.
            Err(fault) if fault.errno() == Some(Errno::NOENT.raw_os_error()) => {}
            Err(fault) => return Err(Error::new("remove table", table.name, fault.into())),
        }
    }
    Ok(removed)
}

/// Returns whether there is a table of the family `inet` with this name. Makes nothing and needs nothing of the kernel: one without
/// nf_tables or netfilter sockets has none.
///
/// # Errors
/// The kernel refuses to say.
pub fn has_inet_table(name: &str) -> Result<bool, Error> {
    has_table(INET, name)
}

/// The same for a family by its number.
///
/// # Errors
/// As [`has_inet_table`].
pub(super) fn has_table(family: u8, name: &str) -> Result<bool, Error> {
    let mut message = Messages::new();
    message.begin(GET_TABLE, 0).header(&[family, 0, 0, 0]).text(NAME, name);
    match Socket::open(Bus::Netfilter) {
        Ok(mut socket) => is_there(&mut socket, message, name),
        Err(error) if error.is_unsupported() => Ok(false),
        Err(error) => Err(error),
    }
}

fn exists(socket: &mut Socket, table: Table<'_>) -> Result<bool, Error> {
    let mut message = Messages::new();
    about(&mut message, GET_TABLE, table);
    is_there(socket, message, table.name)
}

fn is_there(socket: &mut Socket, mut message: Messages, name: &str) -> Result<bool, Error> {
    match socket.request(&mut message, |_| Some(())) {
        Ok(_) => Ok(true),
        Err(Fault::Refused(refusal)) if is_absent(refusal.errno) => Ok(false),
        Err(fault) => Err(Error::new("look for table", name, Cause::from(fault))),
    }
}

/// The table is not there, or the kernel knows no tables.
fn is_absent(errno: i32) -> bool {
    [Errno::NOENT, Errno::INVAL, Errno::OPNOTSUPP].iter().any(|known| known.raw_os_error() == errno)
}

fn about(messages: &mut Messages, kind: u16, table: Table<'_>) {
    let family = match table.family {
        Family::V4 => 2,
        Family::V6 => 10,
    };
    messages.begin(kind, 0).header(&[family, 0, 0, 0]).text(NAME, table.name);
}
