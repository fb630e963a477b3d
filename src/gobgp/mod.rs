//! The GoBGP API: `gobgp neighbor`, `gobgp global rib` and the other commands known from kube-router.
//!
//! gRPC without encryption, on the addresses of `--gobgp-admin-address` and `--gobgp-admin-port` (by default the
//! loopback), read-only without `--gobgp-admin-write`, and on a unix socket beside the one of `--socket`, which only
//! root may open. The clients of GoBGP 3.x and 4.x call two different services; both are on the same port, with one
//! implementation. Nothing listens unless the router runs.
//!
//! ```text
//!  client ─► serve ─► stubs: one for each version ─► service ─► asks and orders ─► bgp::driver
//!                                                      │
//!                                                      └► neighbours, routes, policies, wishes: pure
//! ```
//!
//! - [`wire`]: messages and services, generated from `proto/`; [`version`]: differences between the two versions.
//! - [`neighbours`], [`capabilities`], [`routes`], [`attributes`], [`policies`]: state of the speaker as messages.
//! - [`wishes`]: routes and neighbours that clients add; `changes`: their log text, and refusals.
//! - [`watch`]: streams of changes, for as long as a client watches.
//!
//! Passwords are read and never returned. Unsupported calls are answered with `UNIMPLEMENTED` and a sentence. A new
//! speaker replaces the old one when our AS number or identifier changes; additions by clients are lost then, and
//! neighbours that they stopped start again.

pub mod attributes;
pub mod capabilities;
mod changes;
pub mod clock;
pub mod neighbours;
pub mod policies;
pub mod routes;
pub mod serve;
pub mod service;
mod stubs;
pub mod version;
mod watch;
pub mod wire;
pub mod wishes;

/// Replaces the control characters of a received text, which a terminal would interpret.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
