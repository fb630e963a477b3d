//! Clusters written down, and what the kernel shall hold for them.
//!
//! One text file below `tests/scenarios/proxy` for each: what it is about, `flags` as a user types them, `host` (the
//! addresses of this host, where they matter), `objects` as YAML, and then what is expected, of which each file has what it
//! is about: `virtuals`, `sets`, `rules`, `routes`, `settings`, `counts`, and `trace`, which follows connections through a
//! kernel in memory that was brought to the desired state. `warnings` and `notes` are never left out where
//! there are any.
//!
//! `UPDATE=1` writes what was found in place of what was expected; read the difference before keeping it.
//! A line of `objects` that ends with `# for n in A..B` stands there once for each number, in place of `$n`.

#[path = "support/mod.rs"]
mod support;

#[path = "scenarios/objects.rs"]
mod objects;
#[path = "scenarios/sections.rs"]
mod sections;

use std::path::{Path, PathBuf};
use std::time::Instant;
use std::{env, fs};

use sluice::model::Authority;
use sluice::proxy::apply::Mirrors;
use sluice::proxy::desired::Changed;
use sluice::proxy::plan::Plan;
use sluice::reconcile::Moment;

use sections::{File, Found};
use support::flags;
use support::memory::{MemoryKernel, State};

#[test]
fn every_cluster_gets_the_kernel_state_that_its_scenario_says() {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios/proxy");
    let mut files: Vec<PathBuf> = fs::read_dir(&directory)
        .expect("the scenarios are in a directory")
        .map(|entry| entry.expect("a directory can be listed").path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "there are scenarios");
    let failures: Vec<String> = files.iter().filter_map(|file| check(file).err()).collect();
    assert!(failures.is_empty(), "{} of {} fail:\n{}", failures.len(), files.len(), failures.join("\n"));
}

fn check(path: &Path) -> Result<(), String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let expected = File::parse(&text).map_err(|error| format!("{name}: {error}"))?;
    let found = expected.with(&found(&expected)).to_string();
    if env::var_os("UPDATE").is_some() {
        return fs::write(path, found).map_err(|error| format!("{name}: {error}"));
    }
    let differs = text.lines().zip(found.lines()).position(|(expected, found)| expected != found);
    let line = differs.unwrap_or_else(|| text.lines().count().min(found.lines().count()));
    let at = |text: &str| text.lines().nth(line).unwrap_or("(the end)").to_owned();
    if text == found {
        return Ok(());
    }
    Err(format!("{name}:{}: expected\n    {}\n  and found\n    {}", line + 1, at(&text), at(&found)))
}

/// What the program makes of a scenario.
fn found(file: &File) -> Found {
    let words: Vec<&str> = file.lines("flags").collect();
    let (config, families) = flags::proxy(&words);
    let (world, warnings) = objects::world(file.text("objects"), file.lines("host"));
    let mut plan = Plan::new(config, families, (6, 1));
    let now = Instant::now();
    let Changed { notes, .. } = plan.update(&world, now);
    let desired = plan.desired().clone();

    let kernel = MemoryKernel::new(State::of_others());
    let mut mirrors = Mirrors::new(kernel.targets(), Vec::new());
    mirrors.round(&desired, Authority::Complete, Moment { now, jitter: 0 });
    let refused = kernel.with(|machine| machine.refused.clone());
    assert!(
        refused.is_empty() && mirrors.is_settled(),
        "one round is enough, and the kernel refuses nothing: {refused:?}"
    );
    Found { desired, notes, warnings, kernel: kernel.state() }
}
