//! nf_tables: one table of ours for each subsystem, with its sets, maps, chains and rules.
//!
//! Kernel: netlink subsystem `NFNL_SUBSYS_NFTABLES` (include/uapi/linux/netfilter/nf_tables.h). Our tables are of the family
//! `inet`, so a chain serves IPv4 and IPv6, some of the family `bridge`, whose chains see frames, and one
//! of the family `arp`. Everything in a table of ours is
//! ours: a process without memory knows it by the table's name.
//!
//! [`object`] is what a table contains, [`rule`] what a rule is, both as values; [`table`] brings them into the kernel and reads them,
//! in transactions that [`plan`] orders; what one that failed left behind [`unreached`] finds. [`encode`] and [`decode`] translate between rules and the kernel's expressions.
//! [`listener`] hears of changes, and does not have large ones of our own described. [`probe`] tells what a kernel lacks, [`foreign`] removes tables of other programs, [`abandoned`] those of ours, [`dropping_chains`]
//! tells which chains of others drop what ours accept, [`forward`]
//! keeps rules in a chain of the host's own, [`host_chains`] removes chains of iptables where its programs are missing, and the rules that [`host_masquerades`] and [`host_service_rules`] read.

pub mod abandoned;
mod batch;
mod chain_names;
mod counters;
mod decode;
pub mod dropping_chains;
mod element;
mod encode;
mod expression;
pub mod foreign;
pub mod host_chains;
pub mod host_masquerades;
pub mod host_service_rules;
pub mod listener;
mod notified;
mod numbers;
pub mod object;
pub mod passages;
mod plan;
pub mod probe;
mod read;
pub mod rule;
mod table;
mod unreached;
mod wire;

pub use self::chain_names::{ChainNames, chain_names};
pub use self::counters::CounterReader;
pub use self::foreign::{Table, has_any, has_inet_table, remove};
pub use self::object::{Base, BaseKind, Chain, Content, Fields, Hook, Key, Kind, Name, Object, SetSpec};
pub use self::plan::{Transaction, transactions};
pub use self::probe::{Feature, Missing, probe, probe_arp, probe_bridge, probe_inet};
pub use self::read::Count;
pub use self::rule::{FrameField, Lookup, Match, Rule, Statement, Verdict};
pub use self::table::{OwnTable, TableFamily};

#[cfg(test)]
mod tests;
