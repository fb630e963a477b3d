//! `--cleanup-config`: every subsystem reconciled to nothing.
//!
//! The same mirrors, the same order, the same rule of what is ours; only nothing is wanted. What belongs to
//! others stays. Kernel settings stay too: what they were before is nobody's knowledge.

use std::time::Instant;

use anyhow::bail;
use tracing::info;

use crate::firewall;
use crate::model::Authority;
use crate::proxy;
use crate::reconcile::{Moment, Reflection};
use crate::router;
use crate::subsystem::Kinds;

/// How often what fails at first is tried again at once: another program may hold a lock for a moment.
const TRIES: usize = 3;

/// What is to be done with any subsystem's mirrors.
trait Removable {
    /// One round in which nothing is wanted; how many objects went.
    fn remove(&mut self, at: Moment) -> u64;
    fn remove_abandoned(&mut self) -> Vec<String>;
    fn families(&self) -> Vec<&dyn Reflection>;
}

/// Takes everything of ours out of the kernel. `tunnel_port`: where packets of tunnels arrive inside UDP, if that is said.
///
/// # Errors
/// What could not be removed, a line for each family.
pub fn run(tunnel_port: Option<u16>) -> anyhow::Result<()> {
    let mut proxy = proxy::apply::Mirrors::new(proxy::linux::open_for_cleanup()?, Vec::new());
    let mut firewall = firewall::iptables::apply::Mirrors::new(firewall::iptables::linux::open_for_cleanup()?.0);
    let mut router = router::apply::Mirrors::new(router::linux::open_for_cleanup(tunnel_port)?);
    let mut removed = 0;
    let mut left = Vec::new();
    let subsystems: [&mut dyn Removable; 3] = [&mut firewall, &mut proxy, &mut router];
    for subsystem in subsystems {
        let (count, errors) = remove(subsystem);
        removed += count;
        left.extend(errors);
    }
    info!(removed, "Objects of ours were removed from the kernel");
    if !left.is_empty() {
        bail!("not everything could be removed:\n{}", left.join("\n"));
    }
    Ok(())
}

/// Removes everything of one subsystem. Returns how many objects went, and why others could not.
fn remove(subsystem: &mut dyn Removable) -> (u64, Vec<String>) {
    let mut removed = 0;
    for _ in 0..TRIES {
        removed += subsystem.remove(Moment { now: Instant::now(), jitter: 0 });
        let families = subsystem.families();
        if families.iter().all(|family| family.is_settled()) {
            break;
        }
        if let Some(at) = families.iter().filter_map(|family| family.retry_at()).min() {
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
        }
    }
    let mut left = subsystem.remove_abandoned();
    let families = subsystem.families();
    let failing = families.iter().filter_map(|family| Some((family.name(), family.trouble()?)));
    left.extend(failing.map(|(name, trouble)| format!("{name}: {}", trouble.error)));
    (removed, left)
}

impl<K: proxy::apply::Kernel> Removable for proxy::apply::Mirrors<K> {
    fn remove(&mut self, at: Moment) -> u64 {
        self.round(&proxy::desired::Desired::default(), Authority::Complete, at).steps
    }

    fn remove_abandoned(&mut self) -> Vec<String> {
        proxy::apply::Mirrors::remove_abandoned(self)
    }

    fn families(&self) -> Vec<&dyn Reflection> {
        self.reflections()
    }
}

impl<K: firewall::iptables::apply::Kernel> Removable for firewall::iptables::apply::Mirrors<K> {
    fn remove(&mut self, at: Moment) -> u64 {
        self.round(&firewall::iptables::desired::Desired::default(), Authority::Complete, at).steps
    }

    fn remove_abandoned(&mut self) -> Vec<String> {
        firewall::iptables::apply::Mirrors::remove_abandoned(self)
    }

    fn families(&self) -> Vec<&dyn Reflection> {
        self.reflections()
    }
}

impl<K: router::apply::Kernel> Removable for router::apply::Mirrors<K> {
    fn remove(&mut self, at: Moment) -> u64 {
        let leave = router::apply::Leave { authority: Authority::Complete, routes_are_complete: true };
        let nothing = (router::desired::Desired::default(), router::routes::Routes::default());
        let steps = self.round(&nothing.0, &nothing.1, leave, at).steps;
        self.remove_bridge(at);
        steps
    }

    fn remove_abandoned(&mut self) -> Vec<String> {
        router::apply::Mirrors::remove_abandoned(self)
    }

    fn families(&self) -> Vec<&dyn Reflection> {
        // A bridge that pods are on stays, and that is no failure.
        self.reflections().into_iter().filter(|family| family.name() != "bridges").collect()
    }
}
