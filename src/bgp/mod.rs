//! Our own BGP speaker. It knows no Kubernetes, and it does no I/O: bytes and the time go in, bytes and facts come out.
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

pub mod message;
pub mod policy;
pub mod rib;
pub mod session;
pub mod speaker;
