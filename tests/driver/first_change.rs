//! The first change after a cold start: what has to be read before it is programmed.

use std::collections::BTreeMap;

use sluice::kernel::monitor::Changes;

use super::large_change::all_of;
use super::support::memory::State;
use super::{Running, with_running};

impl Running {
    /// How many objects were read so far, by the names of their kinds.
    fn read(&self) -> BTreeMap<&'static str, usize> {
        self.kernel.with(|machine| machine.read.clone())
    }
}

#[test]
fn the_first_change_after_a_cold_start_waits_for_no_comparison_of_all_local_routes() {
    with_running(async |running| {
        running.kernel.with(|machine| machine.state.addresses = State::of_others().addresses);
        let mut world = all_of(0);
        running.world.send_replace(world.clone());
        running.settles(&world).await;
        assert!(running.kernel.state().routes.len() > 100, "there is much to compare");
        let before = running.read();
        // What is told of the device that this start has made, and of the address on it (`kernel::monitor`).
        running.changes.send_replace(Changes { ours: 2, ..Changes::default() });
        let has_looked = || running.read().get("links") > before.get("links");
        running.until("the device was compared", |_| has_looked()).await;
        let first = world.cluster.endpoints.iter().next().expect("some have endpoints").0.clone();
        world.cluster.endpoints.remove(&first);
        running.world.send_replace(world.clone());
        running.settles(&world).await;
        let after = running.read();
        let more = |kind: &str| after.get(kind).copied().unwrap_or(0) - before.get(kind).copied().unwrap_or(0);
        let read: BTreeMap<&str, usize> = after.keys().map(|kind| (*kind, more(kind))).filter(|it| it.1 > 0).collect();
        assert_eq!(read, BTreeMap::from([("addresses", 1), ("links", 1)]), "the device and its address");
    });
}
