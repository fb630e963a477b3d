//! The firewall's rules against the meaning of NetworkPolicies, packet by packet.
//!
//! [`oracle`] says what the API means, written without the compiler. Clusters made by chance ([`clusters`], with [`tiers`]) are compiled
//! and changed step by step; after each step packets between all kinds of addresses are judged by both. [`mistakes`] puts
//! known mistakes back and shows that the comparison finds each of them; [`defects`] are the same as hand-written cases.
//! [`lowered`] and [`tables`] do it once more with the rules in the words of each backend, and [`walk`] and [`table_walk`] with a kernel in memory that fails,
//! refuses, and is damaged by others.
//!
//! `PROPERTY_SEED` runs one history again; without it `PROPERTY_RUNS` histories are run (by default as many as fit into
//! some seconds; `PROPERTY_PERCENT` of that), with seeds from `FIRST_SEED` on or of the day's clock. A failure
//! names its seed.

#![allow(clippy::indexing_slicing, reason = "a test that panics has failed, which is how a test says so")]

#[path = "support/mod.rs"]
mod support;

#[path = "firewall/cases.rs"]
mod cases;
#[path = "firewall/cluster_conformance.rs"]
mod cluster_conformance;
#[path = "firewall/clusters.rs"]
mod clusters;
#[path = "firewall/defects.rs"]
mod defects;
#[path = "firewall/driver.rs"]
mod driver;
#[path = "firewall/histories.rs"]
mod histories;
#[path = "firewall/lowered.rs"]
mod lowered;
#[path = "firewall/mistakes.rs"]
mod mistakes;
#[path = "firewall/oracle.rs"]
mod oracle;
#[path = "firewall/oversized.rs"]
mod oversized;
#[path = "firewall/rendered.rs"]
mod rendered;
#[path = "firewall/services.rs"]
mod services;
#[path = "firewall/table_turns.rs"]
mod table_turns;
#[path = "firewall/table_walk.rs"]
mod table_walk;
#[path = "firewall/tables.rs"]
mod tables;
#[path = "firewall/tiers.rs"]
mod tiers;
#[path = "firewall/walk.rs"]
mod walk;
