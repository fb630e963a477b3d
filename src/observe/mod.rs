//! Observing the program: the log, metrics, health, and the listeners that serve them.
//!
//! Everything here is handed around as a value: no global registry, no global health. The one exception is
//! the log, which `tracing` keeps per process.

#[cfg(test)]
pub mod given;
pub mod health;
pub mod http;
pub mod local;
pub mod local_socket;
pub mod logging;
pub mod metrics;
pub mod printable;
pub mod recent;
