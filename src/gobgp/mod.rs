//! The API that clients of GoBGP speak with: `gobgp neighbor`, `gobgp global rib` and what else people know from kube-router.
//!
//! gRPC without encryption, on the addresses of `--gobgp-admin-address` and `--gobgp-admin-port` (by default the loopback), where nothing
//! can be changed without `--gobgp-admin-write`, and on a unix socket beside the one of `--socket`, that only root may open. The clients of GoBGP 3.x and 4.x call two different services; both
//! are on the same port, and behind them is one implementation. Nothing listens unless the router runs.
//!
//! ```text
//!  client ─► serve ─► stubs: one for each version ─► service ─► asks and orders ─► bgp::driver
//!                                                      │
//!                                                      └► neighbours, routes, policies, wishes: pure
//! ```
//!
//! - [`wire`]: messages and services, made of `proto/`; [`version`]: how the two versions differ.
//! - [`neighbours`], [`capabilities`], [`routes`], [`attributes`], [`policies`]: what the speaker knows, as messages.
//! - [`wishes`]: what clients want to have; `changes`: what the log says of it, and what is refused.
//! - [`watch`]: what changes, for as long as somebody looks.
//!
//! Passwords are read and never told. What is not served is answered with `UNIMPLEMENTED` and a sentence. A speaker takes the place
//! of another one when our own numbers change; what clients added is gone then, and what they stopped begins again.

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

/// A text of somebody else without what a terminal would take as an order.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
