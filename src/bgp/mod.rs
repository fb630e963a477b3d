//! Our own BGP speaker. It knows no Kubernetes, and all but its driver does no I/O: bytes and the time go in, bytes and facts
//! come out.
//!
//! ```text
//!  bytes ──► message ──► session ──► rib ──► routes for the kernel
//!                           ▲         │
//!                           └─────────┴──► message ──► bytes
//! ```
//!
//! - [`message`]: messages as values; what is wrong with one and what is done about it.
//! - [`session`]: one neighbour, from the first dial to the established session.
//! - [`rib`]: all routes, the best of them, and what each neighbour is told; [`policy`]: what is taken and passed on.
//! - [`speaker`]: everything together. Whoever holds the sockets and the clock speaks to it alone.
//! - [`transport`]: how a neighbour is reached; [`driver`]: sockets and the clock, the one part with effects.
//!
//! What is spoken: RFC 4271 (BGP-4) with 4760 (IPv6), 1997, 4360 and 8092 (communities), 2918 and 7313 (route refresh), 4456
//! (reflection), 4486 and 9003 (why a session ends), 4724 and 8538 (graceful restart), 5492 and 9072 (capabilities), 6286
//! (identifiers), 6608 (unexpected messages), 6793 (four-octet numbers), 7606 and 7607 (errors), 8654 (long messages), 8950
//! (IPv4 routes with IPv6 next hops), 9687 (neighbours that take nothing).
//!
//! What is not: Add-Path, confederations, other families, BFD, long-lived graceful restart.

pub mod driver;
pub mod message;
pub mod policy;
pub mod rib;
pub mod session;
pub mod speaker;
pub mod transport;
