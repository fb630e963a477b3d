//! Clusters written down, and what the kernel shall hold for them.
//!
//! One text file below `tests/scenarios/proxy`, `firewall` and `router` for each: what it is about, `flags` as a user types
//! them, `host` (the addresses of this host, where they matter), `objects` as YAML, and then what is expected, of which each
//! file has what it is about. Each subsystem's module names its sections; `warnings` and the like are never left out where
//! there are any. A `trace` follows packets through what the kernel is to hold.
//!
//! `UPDATE=1` writes what was found in place of what was expected; read the difference before keeping it.
//! A line of `objects` that ends with `# for n in A..B` stands there once for each number, in place of `$n`.

#[path = "support/mod.rs"]
mod support;

#[path = "scenarios/file.rs"]
mod file;
#[path = "scenarios/firewall.rs"]
mod firewall;
#[path = "scenarios/objects.rs"]
mod objects;
#[path = "scenarios/proxy.rs"]
mod proxy;
#[path = "scenarios/router.rs"]
mod router;

use std::path::{Path, PathBuf};
use std::{env, fs};

use file::{File, Known};

#[test]
fn every_cluster_gets_the_services_that_its_scenario_says() {
    check_all("proxy", proxy::KNOWN, proxy::check);
}

#[test]
fn every_cluster_gets_the_policies_that_its_scenario_says() {
    check_all("firewall", firewall::KNOWN, firewall::check);
}

#[test]
fn every_cluster_gets_the_routing_that_its_scenario_says() {
    check_all("router", router::KNOWN, router::check);
}

fn check_all(subsystem: &str, known: Known, found: fn(&File) -> File) {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios").join(subsystem);
    let mut files: Vec<PathBuf> = fs::read_dir(&directory)
        .expect("the scenarios are in a directory")
        .map(|entry| entry.expect("a directory can be listed").path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "there are scenarios");
    let failures: Vec<String> = files.iter().filter_map(|file| check(file, known, found).err()).collect();
    assert!(failures.is_empty(), "{} of {} fail:\n{}", failures.len(), files.len(), failures.join("\n"));
}

fn check(path: &Path, known: Known, found: fn(&File) -> File) -> Result<(), String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let expected = File::parse(&text, known).map_err(|error| format!("{name}: {error}"))?;
    let found = found(&expected).to_string();
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
