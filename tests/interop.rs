//! Our speaker over real sockets, in network namespaces: with GoBGP, BIRD and FRR as Debian has them, with the newest GoBGP, and with itself.
//!
//! `matrix` is one table of cells for all of them: who, how the session is set up, what happens to it. Each looks at the routes
//! with all their attributes on both sides. `own` has sessions between speakers of ours alone, `load`
//! many neighbours and routes, `rubbish` neighbours that do what no speaker may do.
//!
//! Needs root and the Debian packages `gobgpd`, `bird2` and `frr`; a daemon that is missing fails its tests.
//!
//! Addresses: pods 10.244.0.0/16, nodes 192.0.2.0/24, outside 203.0.113.0/24, and their twins fd00:10:244::/56, 2001:db8::/32.

#![allow(clippy::indexing_slicing, reason = "a test that panics has failed, which is how a test says so")]

#[path = "interop/agent.rs"]
mod agent;
#[path = "interop/bfd.rs"]
mod bfd;
#[path = "interop/bird.rs"]
mod bird;
#[path = "interop/cell.rs"]
mod cell;
#[path = "interop/client.rs"]
mod client;
#[path = "interop/drain.rs"]
mod drain;
#[path = "interop/frr.rs"]
mod frr;
#[path = "interop/gobgp.rs"]
mod gobgp;
#[path = "interop/ground.rs"]
mod ground;
#[path = "interop/load.rs"]
mod load;
#[path = "interop/long_lived.rs"]
mod long_lived;
#[path = "interop/matrix.rs"]
mod matrix;
#[allow(dead_code, reason = "it has what the tests of the kernel need, too")]
#[path = "kernel/namespace.rs"]
mod namespace;
#[path = "interop/node_routes.rs"]
mod node_routes;
#[path = "interop/other.rs"]
mod other;
#[path = "interop/ours.rs"]
mod ours;
#[path = "interop/own.rs"]
mod own;
#[path = "interop/peer_settings.rs"]
mod peer_settings;
#[path = "interop/raw.rs"]
mod raw;
#[path = "interop/route.rs"]
mod route;
#[path = "interop/rubbish.rs"]
mod rubbish;
#[path = "interop/unnumbered.rs"]
mod unnumbered;
