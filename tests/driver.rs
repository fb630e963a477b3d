//! The loop of the service proxy, from a World to a kernel in memory, with the real channels between.

#[path = "support/mod.rs"]
mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice::kernel::monitor::Changes;
use sluice::model::{EventClock, Table, World};
use sluice::observe::health::Health;
use sluice::observe::metrics::Registry;
use sluice::proxy::driver::{Driver, Surroundings};
use sluice::proxy::metrics::Metrics;
use sluice::proxy::plan::Plan;
use tokio::sync::watch;
use tokio::task::LocalSet;

use support::memory::{MemoryKernel, State};
use support::random::Random;
use support::{flags, generate};

const KERNEL: (u32, u32) = (6, 1);

/// A running loop: what it is fed with, and the kernel that it works on.
struct Running {
    kernel: MemoryKernel,
    world: watch::Sender<World>,
    changes: watch::Sender<Changes>,
    stop: watch::Sender<bool>,
}

#[test]
fn every_world_reaches_the_kernel_and_not_only_the_first() {
    with_running(async |running| {
        let mut random = Random::new(7);
        let mut world = generate::empty_world();
        for _ in 0..30 {
            generate::change(&mut world, &mut random);
            running.world.send_replace(world.clone());
            running.settles(&world).await;
        }
    });
}

#[test]
fn what_somebody_takes_away_comes_back_when_the_kernel_tells_of_it() {
    with_running(async |running| {
        let world = generate::world(&mut Random::new(11), 60);
        running.world.send_replace(world.clone());
        running.settles(&world).await;
        let before = running.kernel.state();
        running.kernel.with(|machine| {
            machine.state.links.clear();
            machine.state.addresses.clear();
            machine.state.routes.clear();
        });
        running.changes.send_replace(Changes { ours: 1, ..Changes::default() });
        running.until("the device and its routes are back", |state| state.routes == before.routes).await;
    });
}

/// Runs the loop on an empty kernel for as long as the test does.
fn with_running(test: impl AsyncFnOnce(&Running)) {
    let kernel = MemoryKernel::new(State::default());
    let (world, world_in) = watch::channel(World::empty());
    let (changes, disturbances) = watch::channel(Changes::default());
    let (stop, stopped) = watch::channel(false);
    let (owners, _owners_in) = watch::channel(Table::default());
    let around = Surroundings {
        world: world_in,
        clock: Arc::new(EventClock::new(Instant::now())),
        disturbances,
        owners,
        pulse: Health::default().register("service proxy", Duration::from_secs(60), Instant::now()),
        metrics: Metrics::register(&Registry::new("test", "test")).expect("names are registered once"),
    };
    let (config, families) = flags::proxy(&[]);
    let driver = Driver::new(config, families, KERNEL, kernel.targets(), around);
    let running = Running { kernel, world, changes, stop };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        let task = tokio::task::spawn_local(driver.run(stopped));
        test(&running).await;
        running.stop.send_replace(true);
        task.await.expect("the loop ends when it is told to");
    });
}

impl Running {
    /// Waits until the kernel has exactly the virtual services that a fresh start would make of this World.
    async fn settles(&self, world: &World) {
        let (config, families) = flags::proxy(&[]);
        let mut plan = Plan::new(config, families, KERNEL);
        plan.update(world, Instant::now());
        let wanted = &plan.desired().virtuals;
        self.until("the kernel holds the newest World", |state| state.virtuals == *wanted).await;
    }

    async fn until(&self, what: &str, holds: impl Fn(&State) -> bool) {
        for _ in 0..2000 {
            if holds(&self.kernel.state()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("never: {what}");
    }
}
