//! `--cleanup-config`: every subsystem reconciled to nothing.
//!
//! The same mirrors, the same order, the same rule of what is ours; only nothing is wanted. What belongs to
//! others stays. Kernel settings stay too: what they were before is nobody's knowledge.

use std::time::Instant;

use anyhow::bail;
use tracing::info;

use crate::model::Authority;
use crate::proxy::apply::Mirrors;
use crate::proxy::desired::Desired;
use crate::proxy::linux;
use crate::reconcile::Moment;

/// How often what fails at first is tried again at once: another program may hold a lock for a moment.
const TRIES: usize = 3;

/// Takes everything of ours out of the kernel.
///
/// # Errors
/// What could not be removed, a line for each family.
pub fn run() -> anyhow::Result<()> {
    let mut mirrors = Mirrors::new(linux::open_for_cleanup()?, Vec::new());
    let nothing = Desired::default();
    let mut removed = 0;
    for _ in 0..TRIES {
        removed += mirrors.round(&nothing, Authority::Complete, Moment { now: Instant::now(), jitter: 0 }).steps;
        if mirrors.is_settled() {
            break;
        }
        if let Some(at) = mirrors.retry_at() {
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
        }
    }
    let mut left: Vec<String> = mirrors.remove_abandoned();
    let failing = mirrors.reflections().into_iter().filter_map(|family| Some((family.name(), family.trouble()?)));
    left.extend(failing.map(|(name, trouble)| format!("{name}: {}", trouble.error)));
    info!(removed, "Objects of ours were removed from the kernel");
    if !left.is_empty() {
        bail!("not everything could be removed:\n{}", left.join("\n"));
    }
    Ok(())
}
