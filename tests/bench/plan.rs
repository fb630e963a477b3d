//! Cost of the service proxy's calculation: everything at once, and one endpoint changed.
//!
//! `cargo bench --bench plan [SERVICES...]`: native, no kernel is asked. `scripts/bench proxy` measures the whole.
#![expect(clippy::indexing_slicing, reason = "a measurement may end with a crash")]

#[path = "../support/flags.rs"]
mod flags;
#[path = "cluster.rs"]
mod cluster;

use std::hint::black_box;
use std::time::{Duration, Instant};

use sluice::model::World;
use sluice::proxy::plan::Plan;

const KERNEL: (u32, u32) = (6, 1);
const ENDPOINTS: usize = 10;
const CHANGES: usize = 200;
const ROUNDS: usize = 5;

fn main() {
    let sizes: Vec<usize> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let sizes = if sizes.is_empty() { vec![100, 1_000, 10_000] } else { sizes };
    println!("{:>9} {:>10} {:>14} {:>12}", "services", "all, ms", "one change, us", "memory, MiB");
    for services in sizes {
        let world = cluster::world(services, ENDPOINTS);
        let (all, memory) = all_at_once(&world);
        let one = one_change(&world, services);
        println!(
            "{services:>9} {:>10.2} {:>14.1} {:>12.1}",
            all.as_secs_f64() * 1e3,
            one.as_secs_f64() * 1e6,
            memory as f64 / f64::from(1 << 20)
        );
    }
}

fn plan() -> Plan {
    let (config, families) = flags::proxy(&[]);
    Plan::new(config, families, KERNEL)
}

/// The best of some tries, and what the plan of the first one occupies.
fn all_at_once(world: &World) -> (Duration, usize) {
    let mut best = Duration::MAX;
    let mut memory = 0;
    for round in 0..ROUNDS {
        let mut plan = plan();
        let before = resident();
        let begun = Instant::now();
        let changed = plan.update(world, begun);
        best = best.min(begun.elapsed());
        assert_eq!(plan.desired().virtuals.len(), changed.virtuals.len());
        if round == 0 {
            memory = resident().saturating_sub(before);
        }
        black_box((changed, plan));
    }
    (best, memory)
}

/// The median.
fn one_change(world: &World, services: usize) -> Duration {
    let mut world = world.clone();
    let mut plan = plan();
    plan.update(&world, Instant::now());
    let mut took: Vec<Duration> = (0..CHANGES)
        .map(|change| {
            cluster::change_endpoint(&mut world, change % services, change);
            let begun = Instant::now();
            let changed = plan.update(&world, begun);
            let took = begun.elapsed();
            assert_eq!((changed.parts_computed, changed.virtuals.len()), (1, 1));
            took
        })
        .collect();
    took.sort_unstable();
    took[took.len() / 2]
}

/// Resident memory of this process, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has /proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a process has memory");
    let kibibytes: usize = line.trim().trim_end_matches(" kB").parse().expect("a number of kB");
    kibibytes << 10
}
