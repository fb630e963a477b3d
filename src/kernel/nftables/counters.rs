//! Counts of the named counters of a table.

use std::collections::BTreeMap;

use super::object::Name;
use super::read::{Count, Reader};
use super::wire::{ARP, BRIDGE, TableId};
use crate::kernel::Error;
use crate::kernel::netlink::{Bus, Socket};

/// Reads the named counters of one table, and nothing else of it: the table may be another process's.
#[derive(Debug)]
pub struct CounterReader {
    socket: Socket,
    table: TableId<'static>,
}

impl CounterReader {
    /// Opens a socket in the network namespace of the calling thread, where it stays.
    ///
    /// # Errors
    /// A socket cannot be opened.
    pub fn open(table: &'static str) -> Result<CounterReader, Error> {
        CounterReader::of(table.into())
    }

    /// Like [`open`](CounterReader::open), for a table of the family `bridge`.
    ///
    /// # Errors
    /// As [`open`](CounterReader::open).
    pub fn open_bridge(name: &'static str) -> Result<CounterReader, Error> {
        CounterReader::of(TableId { family: BRIDGE, name })
    }

    /// Like [`open`](CounterReader::open), for a table of the family `arp`.
    ///
    /// # Errors
    /// As [`open`](CounterReader::open).
    pub fn open_arp(name: &'static str) -> Result<CounterReader, Error> {
        CounterReader::of(TableId { family: ARP, name })
    }

    fn of(table: TableId<'static>) -> Result<CounterReader, Error> {
        Ok(CounterReader { socket: Socket::open(Bus::Netfilter)?, table })
    }

    /// Returns the counts of the named counters whose names begin so.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn counts(&mut self, prefix: &str) -> Result<BTreeMap<Name, Count>, Error> {
        let mut reader = Reader { socket: &mut self.socket, table: self.table };
        let counters = reader.counters();
        let mut counts =
            counters.map_err(|fault| Error::new("list counters of table", self.table.name, fault.into()))?;
        counts.retain(|name, _| name.as_str().starts_with(prefix));
        Ok(counts)
    }
}
