//! Addresses for Services of type LoadBalancer (`--run-loadbalancer`).
//!
//! One agent of the cluster gives them, the holder of a Lease; the others only look at the Lease. It reads all Services anew, from the
//! API server's newest state, decides who has which address, and writes the statuses. What a status says is served and announced by what
//! every node does anyway: nothing of that is known here.
//!
//! Reading order: `pools.rs` (over `free.rs`) knows which addresses there are, `decide.rs` which of them one Service is to have,
//! `allocator.rs` keeps all decisions up to date (`waiting.rs` those of Services that lack an address), `writes.rs` brings them into the statuses, `election.rs` says who may. All that is
//! without I/O, as is `known_pools.rs`, which knows how long the ConfigMap's pools are in force; `driver.rs` has the clock and the API server.
//!
//! # Why no address has two owners
//!
//! Writes go to different objects, so no condition on a write alone keeps two agents with old views from giving one address to two
//! Services. These together do:
//!
//! 1. *Within one agent* an address is in use from the decision on, until neither a decision, nor a status that was seen, nor a write
//!    whose outcome is not known has it. A write is for one resourceVersion of a Service; when another version is seen, it can have
//!    no effect any more. So the new owner's write begins after the old owner's status was seen without the address.
//! 2. *Between two agents* time separates their writes. The holder begins a write only for 10 s from before it sent the last renewal
//!    that was taken, which leaves for the API server 1 s later at the latest; the API server gives it up after the 3 s that it names
//!    (`timeout`); who gives the Lease up waits for that after a write without an answer; and nobody else takes the Lease before
//!    it has seen it unchanged for 15 s. Each counts durations by its own monotonic clock. A new holder lists all Services from the
//!    newest state after it has taken the Lease, and decides nothing before: everything that any earlier holder wrote is in that list. A
//!    holder whose time ran out, and that renews the Lease after all, begins anew too, and only when its own writes have come to their end.
//! 3. *If that was not enough* (a write that was held up on its way to the API server for longer than that, a clock that stood still
//!    while a machine was suspended after the look at it, a store that was set back, statuses written by hand), two statuses have one
//!    address. Whoever holds the Lease sees it with the next event or audit, and the loser, which is the same for every agent (`decide.rs`),
//!    gets another address at once. Where both agents see it, both write the same, and the second write has no effect, because it is
//!    for a version that is gone.
//!
//! # What outlives the agent
//!
//! Only statuses. With `--manifests` there is nothing to write to: `in_memory.rs` decides anew from all files whenever one changes, and its driver
//! puts the addresses into the Services on their way to the rest of the program.
//! An address in a status that still fits is kept, so a restart, an upgrade and another leader write nothing.

pub mod allocator;
pub mod decide;
pub mod driver;
pub mod election;
pub mod failures;
pub mod in_memory;
pub mod known_pools;
pub mod metrics;
pub mod notice;
pub mod outbox;
pub mod pace;
pub mod pools;
pub mod queue;
pub mod tenure;
pub mod waiting;
pub mod writes;

mod free;

#[cfg(test)]
mod tests;
