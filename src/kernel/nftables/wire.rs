//! The numbers of nf_tables: messages and attributes.
//!
//! Kernel: include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h. Numbers inside attributes are in network order, without the
//! flag that says so; values in registers are as the packet or the kernel's variable has them.

use crate::kernel::netlink::Messages;

/// The header that every netfilter message has: family, version, resource.
pub(super) const HEADER: usize = 4;

/// The table that a message is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct TableId<'a> {
    /// `NFPROTO_INET`, `NFPROTO_ARP` or `NFPROTO_BRIDGE`.
    pub family: u8,
    pub name: &'a str,
}

/// `NFPROTO_INET`: a table for IPv4 and IPv6.
pub(super) const INET: u8 = 1;
/// `NFPROTO_ARP`: a table for the ARP messages of this host.
pub(super) const ARP: u8 = 3;
/// `NFPROTO_BRIDGE`: a table for the frames that ports of bridges receive.
pub(super) const BRIDGE: u8 = 7;

impl<'a> From<&'a str> for TableId<'a> {
    /// The table of the family `inet`.
    fn from(name: &'a str) -> TableId<'a> {
        TableId { family: INET, name }
    }
}

const SUBSYSTEM: u16 = 10;

/// Messages, as netlink message types.
pub(super) mod message {
    use super::SUBSYSTEM;

    pub const BATCH_BEGIN: u16 = 0x10;
    pub const BATCH_END: u16 = 0x11;
    pub const NEW_TABLE: u16 = SUBSYSTEM << 8;
    pub const GET_TABLE: u16 = SUBSYSTEM << 8 | 1;
    pub const DELETE_TABLE: u16 = SUBSYSTEM << 8 | 2;
    pub const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
    pub const GET_CHAIN: u16 = SUBSYSTEM << 8 | 4;
    pub const DELETE_CHAIN: u16 = SUBSYSTEM << 8 | 5;
    pub const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
    pub const GET_RULE: u16 = SUBSYSTEM << 8 | 7;
    pub const DELETE_RULE: u16 = SUBSYSTEM << 8 | 8;
    pub const NEW_SET: u16 = SUBSYSTEM << 8 | 9;
    pub const GET_SET: u16 = SUBSYSTEM << 8 | 10;
    pub const DELETE_SET: u16 = SUBSYSTEM << 8 | 11;
    pub const NEW_ELEMENT: u16 = SUBSYSTEM << 8 | 12;
    pub const GET_ELEMENT: u16 = SUBSYSTEM << 8 | 13;
    pub const DELETE_ELEMENT: u16 = SUBSYSTEM << 8 | 14;
    pub const GET_GENERATION: u16 = SUBSYSTEM << 8 | 16;
    pub const NEW_OBJECT: u16 = SUBSYSTEM << 8 | 18;
    pub const GET_OBJECT: u16 = SUBSYSTEM << 8 | 19;
    pub const DELETE_OBJECT: u16 = SUBSYSTEM << 8 | 20;
}

/// The name of the table, in every message that is about something in a table, and in that about the table itself.
pub(super) const TABLE: u16 = 1;

pub(super) mod batch {
    pub const GENERATION: u16 = 1;
}

pub(super) mod generation {
    pub const ID: u16 = 1;
}

pub(super) mod table {
    pub const FLAGS: u16 = 2;
    pub const OWNER: u16 = 7;
    /// Only the socket that made the table, or claimed it, may change it.
    pub const FLAG_OWNER: u32 = 2;
    /// The table stays when its owner goes.
    pub const FLAG_PERSIST: u32 = 4;
}

pub(super) mod chain {
    pub const HANDLE: u16 = 2;
    pub const NAME: u16 = 3;
    pub const HOOK: u16 = 4;
    pub const POLICY: u16 = 5;
    pub const TYPE: u16 = 7;
    pub const FLAGS: u16 = 10;
    /// Inside `HOOK`.
    pub const HOOK_NUMBER: u16 = 1;
    pub const HOOK_PRIORITY: u16 = 2;
    pub const HOOK_DEVICE: u16 = 3;
    pub const HOOK_DEVICES: u16 = 4;
    pub const ACCEPT: u32 = 1;
    /// A flag of every chain with a hook.
    pub const FLAG_BASE: u32 = 1;
    /// A flag of a chain without a name of its own, which comes and goes with the one rule that leads to it.
    pub const FLAG_BINDING: u32 = 4;
}

pub(super) mod rule {
    pub const CHAIN: u16 = 2;
    pub const EXPRESSIONS: u16 = 4;
    pub const USERDATA: u16 = 7;
    /// In the userdata, a comment.
    pub const COMMENT: u8 = 0;
}

pub(super) mod set {
    pub const NAME: u16 = 2;
    pub const FLAGS: u16 = 3;
    pub const KEY_TYPE: u16 = 4;
    pub const KEY_LENGTH: u16 = 5;
    pub const DATA_TYPE: u16 = 6;
    pub const DATA_LENGTH: u16 = 7;
    pub const DESCRIPTION: u16 = 9;
    pub const ID: u16 = 10;
    pub const USERDATA: u16 = 13;
    /// Inside `DESCRIPTION`: the number of elements.
    pub const SIZE: u16 = 1;

    pub const ANONYMOUS: u32 = 1;
    pub const CONSTANT: u32 = 2;
    pub const INTERVAL: u32 = 4;
    pub const MAP: u32 = 8;
    /// `DATA_TYPE` of verdicts.
    pub const VERDICTS: u32 = 0xffff_ff00;
}

pub(super) mod element {
    pub const SET: u16 = 2;
    pub const ELEMENTS: u16 = 3;
    pub const SET_ID: u16 = 4;
    /// Inside one of `ELEMENTS`.
    pub const KEY: u16 = 1;
    pub const DATA: u16 = 2;
    pub const FLAGS: u16 = 3;
    pub const EXPIRES: u16 = 4;
    pub const EXPRESSION: u16 = 7;
    pub const OBJECT: u16 = 9;
    pub const KEY_END: u16 = 10;
    pub const EXPRESSIONS: u16 = 11;

    pub const INTERVAL_END: u32 = 1;
}

pub(super) mod object {
    pub const NAME: u16 = 2;
    pub const TYPE: u16 = 3;
    pub const DATA: u16 = 4;
    pub const COUNTER: u32 = 1;
    /// Inside `DATA` of a counter.
    pub const BYTES: u16 = 1;
    pub const PACKETS: u16 = 2;
}

/// Returns whether the kernel made this name, for a set or chain that is part of one rule and cannot be named by another.
pub(super) fn is_made_up(name: &str) -> bool {
    name.starts_with("__")
}

/// A list of attributes has this number for each of them.
pub(super) const ITEM: u16 = 1;

/// A value, or a verdict.
pub(super) mod data {
    pub const VALUE: u16 = 1;
    pub const VERDICT: u16 = 2;
    /// Inside `VERDICT`.
    pub const CODE: u16 = 1;
    pub const CHAIN: u16 = 2;

    pub const DROP: i32 = 0;
    pub const ACCEPT: i32 = 1;
    pub const JUMP: i32 = -3;
    pub const GOTO: i32 = -4;
    pub const RETURN: i32 = -5;
}

/// Starts a message about a table, or about something in it.
pub(super) fn begin<'m>(messages: &'m mut Messages, kind: u16, flags: u16, table: TableId<'_>) -> &'m mut Messages {
    messages.begin(kind, flags).header(&[table.family, 0, 0, 0]).text(TABLE, table.name)
}

/// Starts the message that opens or closes a transaction.
pub(super) fn mark(messages: &mut Messages, kind: u16) -> &mut Messages {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    messages.begin(kind, 0).header(&[0, 0, high, low])
}
