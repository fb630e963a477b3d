//! The nftables backend: the rule set as one table, `inet sluice_policy`.
//!
//! ```text
//! base chain ──► map of isolated addresses ──► chain of a class ──► map of ports ──► chain of peers ──► sets
//! ```
//!
//! Reading order: [`names`]; [`base`] are the chains that the kernel enters, [`class`] is the chain of pods with the same
//! policies, with [`permissions`] (ports), [`peers`] and [`sets`]; [`host_endpoints`] refuses Services. [`lowering`] keeps all of it
//! up to date ([`desired`]), part by part ([`parts`]). [`drops`] counts refused packets.
//!
//! All changes of an update are one transaction of the kernel, so no packet meets a part of them, and no order of changes
//! has to be found. A packet costs the same whatever the number of policies: it is looked up, not asked.

pub mod names;
pub mod parts;
pub mod base;
pub mod class;
pub mod permissions;
pub mod peers;
pub mod sets;
pub mod host_endpoints;
pub mod desired;
pub mod lowering;
pub mod drops;
