//! Memory of the agent's process beyond what it asks for.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is how a test says so")]

use std::fs;

use super::agent::with_agent;

/// The kernel's setting is for all programs of a host, so a test leaves it as it is. Linux: `THP_enabled` of `/proc/pid/status`.
#[test]
fn no_huge_pages_take_the_place_of_memory_that_the_agent_gave_back() {
    with_agent(|node| {
        let status = fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
        assert!(status.contains("\nTHP_enabled:\t0\n"), "{status}");
    });
}
