//! Shared by several test programs: a kernel in memory, random clusters, packets.
//!
//! The address plan of all tests:
//!
//! | | IPv4 | IPv6 |
//! |---|---|---|
//! | pods | 10.244.0.0/16 | fd00:10:244::/56 |
//! | services | 10.96.0.0/12 | fd00:10:96::/108 |
//! | nodes | 192.0.2.0/24 | 2001:db8:2::/64 |
//! | outside | 203.0.113.0/24 | 2001:db8:113::/64 |
#![allow(clippy::indexing_slicing, reason = "a test that panics has failed, which is how a test says so")]
#![allow(dead_code, reason = "every test program uses its own part of this module")]

pub mod chains;
pub mod endpoints;
pub mod flags;
pub mod generate;
#[path = "../../src/observe/given.rs"]
pub mod logged;
pub mod memory;
pub mod packet;
pub mod random;
pub mod tables;
pub mod tables_text;
