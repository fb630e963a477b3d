//! What runs, in which order it starts, and how it ends.

use anyhow::bail;

use crate::config::Config;

/// Runs until the process is told to end.
pub fn run(_config: Config) -> anyhow::Result<()> {
    bail!("this build runs no subsystem yet")
}
