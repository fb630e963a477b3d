//! Whole tables of other programs, by their names: to find and to remove those that they left.
//!
//! Kernel: netlink subsystem `NFNL_SUBSYS_NFTABLES` (include/uapi/linux/netfilter/nf_tables.h). Changes stand between the
//! marks of a batch (include/uapi/linux/netfilter/nfnetlink.h) and are one transaction. Nothing here is ours: the
//! caller names the tables, and a table goes with everything in it.
//!
//! A kernel without nf_tables has no tables.
//!
//! [`dropping_chains`] reads which base chains of others drop what none of their rules accepts (`NFTA_CHAIN_POLICY`): what a table of ours accepts they may still
//! drop. The chains of legacy iptables cannot be reached by netlink.

use std::fmt;

use rustix::io::Errno;

use super::wire::{BRIDGE, HEADER, INET, TABLE, chain, message};
use crate::kernel::netlink::{Answer, Bus, Fault, Messages, Socket};
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
const CONCERNED: [u32; 2] = [1, 2];
/// `NF_DROP`.
const DROP: u32 = 0;

/// Returns the base chains of others at the hooks `input` and `forward` that drop what none of their rules accepts, in the network namespace
/// of the calling thread, sorted.
///
/// # Errors
/// The kernel refuses to say.
pub fn dropping_chains() -> Result<Vec<DroppingChain>, Error> {
    let mut socket = match Socket::open(Bus::Netfilter) {
        Ok(socket) => socket,
        Err(error) if error.is_unsupported() => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut all = Vec::new();
    for (number, family) in FAMILIES {
        let mut message = Messages::new();
        message.begin(message::GET_CHAIN, 0).header(&[number, 0, 0, 0]);
        match socket.dump(&mut message, |answer| dropping(answer, number, family)) {
            Ok(found) => all.extend(found),
            Err(fault) if fault.errno().is_some_and(|errno| ABSENT.contains(&errno)) => {}
            Err(fault) => return Err(Error::new("list chains of tables", family, fault.into())),
        }
    }
    all.sort();
    Ok(all)
}

/// The errors of a kernel without nf_tables, or without such tables.
const ABSENT: [i32; 3] = [libc::EINVAL, libc::EOPNOTSUPP, libc::ENOENT];

fn dropping(answer: &Answer<'_>, number: u8, family: &'static str) -> Option<DroppingChain> {
    let [its, ..] = *answer.header::<HEADER>()?;
    let attributes = answer.attributes(HEADER);
    let hook = attributes.get(chain::HOOK)?.attributes().get(chain::HOOK_NUMBER)?.u32_be()?;
    let policy = attributes.get(chain::POLICY)?.u32_be()?;
    let table = attributes.get(TABLE)?.text()?;
    let concerns = its == number && CONCERNED.contains(&hook) && policy == DROP && !table.starts_with(OURS);
    let chain = attributes.get(chain::NAME)?.text()?;
    concerns.then(|| DroppingChain { family, table: table.to_owned(), chain: chain.to_owned() })
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

/// The same for the family `bridge`.
///
/// # Errors
/// The kernel refuses.
pub fn has_bridge_table(name: &str) -> Result<bool, Error> {
    has_table(BRIDGE, name)
}

/// The same for a family by its number.
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
