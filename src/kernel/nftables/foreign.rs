//! Whole tables of other programs, by their names: to find and to remove those that they left.
//!
//! Kernel: netlink subsystem `NFNL_SUBSYS_NFTABLES` (include/uapi/linux/netfilter/nf_tables.h). Changes stand between the
//! marks of a batch (include/uapi/linux/netfilter/nfnetlink.h) and are one transaction. Nothing here is ours: the
//! caller names the tables, and a table goes with everything in it.
//!
//! A kernel without nf_tables has no tables.

use rustix::io::Errno;

use super::wire::{BRIDGE, INET};
use crate::kernel::netlink::{Bus, Fault, Messages, Socket};
use crate::kernel::{Cause, Error};
use crate::net::Family;

/// A table of one family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Table<'a> {
    pub family: Family,
    pub name: &'a str,
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

fn has_table(family: u8, name: &str) -> Result<bool, Error> {
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
