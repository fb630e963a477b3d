//! The BGP speaker. It is independent of Kubernetes, and all but its driver does no I/O: bytes and the time are inputs,
//! bytes and facts are outputs.
//!
//! ```text
//!  bytes ──► message ──► session ──► rib ──► routes for the kernel
//!                           ▲         │
//!                           └─────────┴──► message ──► bytes
//! ```
//!
//! - [`message`]: messages as values; errors in them and their treatment.
//! - [`session`]: one neighbour, from the first dial to the established session.
//! - [`rib`]: all routes, best-path selection, and the Adj-RIB-Out of each neighbour; [`policy`]: route filters.
//! - [`speaker`]: the parts together; the owner of sockets and clock uses it alone.
//! - [`transport`]: the TCP connection to a neighbour; [`driver`]: sockets and clock, the only I/O.
//!
//! Supported: RFC 4271 (BGP-4) with 4760 (IPv6), 1997, 4360 and 8092 (communities), 2918 and 7313 (route refresh), 4456
//! (reflection), 4486 and 9003 (Cease subcodes and shutdown texts), 4724, 8538 and 9494 (graceful restart, also long-lived), 5492 and 9072
//! (capabilities), 6286 (identifiers), 6608 (unexpected messages), 6793 (four-octet AS numbers), 7606 and 7607 (error
//! handling), 8654 (extended messages), 8950 (IPv4 NLRI with IPv6 next hops), 9687 (send hold timer).
//!
//! Not supported: Add-Path, confederations, other address families.

pub mod driver;
pub mod message;
pub mod policy;
pub mod rib;
pub mod session;
pub mod speaker;
pub mod transport;
