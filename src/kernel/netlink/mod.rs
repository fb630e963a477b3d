//! The netlink wire: sockets, messages, attributes, batches, dumps.
//!
//! Synchronous and blocking: each subsystem works the kernel from its own thread, through its own sockets.
//! The kernel handles a request inside the `sendto` call of the sender, so there is nothing to wait for,
//! and a wake-up between threads would cost more than the request.
//!
//! Design:
//! - *Many messages per send, one acknowledgement.* An acknowledgement takes far more of the receive buffer
//!   than its 36 bytes; some hundreds of them fill it, and the kernel drops the rest silently. Errors are
//!   sent without being asked for, so only the last message of each send asks for an acknowledgement, and
//!   errors are matched by sequence number.
//! - *A batch is not a transaction.* A refused message does not stop those behind it.
//! - *Dumps have a socket of their own.* A socket runs one dump at a time (`EBUSY`), and one that was given
//!   up midway must not stand in the way of a write.
//! - *An interrupted dump looks complete* but for a flag; it is repeated.
//! - *Foreign bytes never panic.* What cannot be read is absent, or `Malformed`.
//!
//! Kernel: Documentation/userspace-api/netlink/intro.rst, include/uapi/linux/netlink.h, genetlink.h.

mod answer;
mod attribute;
mod bus;
mod fault;
mod filter;
mod generic;
mod group;
mod message;
mod namespace;
mod option;
mod receive_buffer;
mod socket;

pub use answer::{Answer, answers};
pub use attribute::{Attribute, Attributes};
pub use bus::Bus;
pub use fault::{Fault, Refusal, failed_steps};
pub use generic::GenericSocket;
pub use group::Group;
pub use message::{Messages, flag};
pub use namespace::in_namespace;
pub use socket::{DumpBounds, Listener, Socket};

#[cfg(test)]
mod tests;
