//! Our own ways of writing to the kernel compared with those that we do not use: the figures behind
//! `docs/dependencies.md`.
//!
//! `cargo bench --bench kernel [-- PART...]`, as root; parts: routes, elements, ten, rules, ipvs, memory, looks,
//! tables, inside. Each part works in a network namespace of its own. The ways of one part take turns, and the best of each
//! counts, so that whatever else the machine does hits all of them. A ratio says how many times as fast as the first
//! way of its part.
//!
//! A part that cannot run on this kernel says so in a line, and then the exit status is 1. IPVS runs in the lab's
//! guest: `scripts/lab run --share DIR -- DIR/PROGRAM ipvs`, with the program that `cargo bench --no-run` names.
#![expect(clippy::indexing_slicing, reason = "a measurement may end with a crash")]

#[path = "../kernel/namespace.rs"]
#[allow(dead_code, reason = "tests need more of it")]
mod namespace;

#[path = "kernel/elements.rs"]
mod elements;
#[path = "kernel/inside.rs"]
mod inside;
#[path = "kernel/ipvs.rs"]
mod ipvs;
#[path = "kernel/looks.rs"]
mod looks;
#[path = "kernel/memory.rs"]
mod memory;
#[path = "kernel/race.rs"]
mod race;
#[path = "kernel/routes.rs"]
mod routes;
#[path = "kernel/rules.rs"]
mod rules;
#[path = "kernel/tables.rs"]
mod tables;

use std::process::ExitCode;

/// A part's name and what it does; it fails with the reason why it cannot run here.
type Part = (&'static str, fn() -> Result<(), String>);

const PARTS: [Part; 9] = [
    ("routes", routes::measure),
    ("elements", elements::many),
    ("ten", elements::ten),
    ("rules", rules::measure),
    ("ipvs", ipvs::measure),
    ("memory", memory::measure),
    ("looks", looks::measure),
    ("tables", tables::measure),
    ("inside", inside::measure),
];

fn main() -> ExitCode {
    // cargo adds --bench.
    let asked: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    if let Some(unknown) = asked.iter().find(|asked| PARTS.iter().all(|(name, _)| name != asked)) {
        eprintln!("kernel: there is no part {unknown}");
        return ExitCode::from(2);
    }
    println!("{}", race::machine());
    let mut status = ExitCode::SUCCESS;
    for (name, measure) in PARTS.iter().filter(|(name, _)| asked.is_empty() || asked.iter().any(|asked| asked == name))
    {
        if let Err(reason) = measure() {
            println!("\n{name}: not measured: {reason}");
            status = ExitCode::FAILURE;
        }
    }
    println!("\n{}", race::machine());
    status
}
