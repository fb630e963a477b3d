//! Pages that list what the program has are written from the program. `UPDATE=1` rewrites them.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{env, fs};

use sluice::firewall;
use sluice::k8s::outage::Outages;
use sluice::kernel::iptables::Families;
use sluice::observe::health::Health;
use sluice::observe::metrics::Registry;
use sluice::proxy;
use sluice::proxy::metrics::Metrics;
use sluice::proxy::owners::Owned;
use sluice::proxy::source_ranges::serve::OutsideSources;
use sluice::reconcile::Account;
use sluice::router;
use tokio::sync::watch;

#[test]
fn the_page_of_metrics_lists_every_family_and_no_other() {
    let registry = Registry::new("1.0.0", "rustc");
    Metrics::register(&registry).expect("the names are free");
    let (_owners, receiver) = watch::channel(Owned::default());
    proxy::serve::register(&registry, receiver).expect("the names are free");
    firewall::metrics::Metrics::register(&registry).expect("the names are free");
    let (_owners, receiver) = watch::channel(Arc::default());
    let refused =
        firewall::serve::Refused::new(firewall::iptables::serve::Counters::new(receiver, Families::default()))
            .expect("valid names");
    registry.register(Box::new(refused)).expect("the names are free");
    sluice::cni::metrics::Metrics::register(&registry).expect("the names are free");
    sluice::pod_tunnels::metrics::Metrics::register(&registry).expect("the names are free");
    sluice::source_guard::metrics::Metrics::register(&registry).expect("the names are free");
    let dropped = sluice::source_guard::serve::DroppedFrames::new().expect("valid names");
    registry.register(Box::new(dropped)).expect("the names are free");
    let outside = OutsideSources::new(watch::channel(Default::default()).1, Box::new(|_| Default::default()));
    registry.register(Box::new(outside.expect("valid names"))).expect("the names are free");
    router::metrics::Metrics::register(&registry).expect("the names are free");
    sluice::load_balancer::metrics::Metrics::register(&registry).expect("the names are free");
    Outages::register("API server", [], &registry, &Health::default()).expect("the names are free");
    for subsystem in ["proxy", "firewall", "router", "source_guard"] {
        Account::register(&registry, &format!("sluice_{subsystem}")).expect("the names are free");
    }
    let rows: Vec<String> = registry.families().iter().map(ToString::to_string).collect();
    let begin = "| name | kind | labels | meaning |\n|---|---|---|---|\n";
    let page = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let text = fs::read_to_string(&page).expect("the page exists");
    let (head, table) = text.split_once(begin).expect("the page has its table");
    let (found, rest) =
        table.split_once("\n\n").map_or((table.trim_end(), String::new()), |(f, r)| (f, format!("\n{r}")));
    if env::var_os("UPDATE").is_some() {
        fs::write(&page, format!("{head}{begin}{}\n{rest}", rows.join("\n"))).expect("the page can be written");
        return;
    }
    let found: Vec<&str> = found.lines().collect();
    assert_eq!(found, rows, "docs/metrics.md, and what the program has; UPDATE=1 rewrites the page");
}

/// Paths in `docs/architecture.md` begin at the project's top or in `src/`, in a row of a table also in the directories of the row's
/// first cell. A word without a slash is the name of some file.
#[test]
fn every_path_that_the_map_of_the_code_names_exists() {
    let top = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(top.join("docs/architecture.md")).expect("the page exists");
    let mut files = BTreeSet::new();
    for directory in ["src", "tests", "scripts", "docs", "proto", "image"] {
        names_below(&top.join(directory), &mut files);
    }
    let (mut wrong, mut seen) = (Vec::new(), 0);
    let mut is_figure = false;
    for line in text.lines() {
        is_figure ^= line.starts_with("```");
        let words = |text: &str| -> Vec<String> {
            let spans = text.split('`').skip(1).step_by(2).flat_map(str::split_whitespace);
            spans.map(|word| word.split('{').next().unwrap_or(word).to_owned()).filter(|word| is_path(word)).collect()
        };
        let row =
            line.strip_prefix("| ").and_then(|row| row.split_once(" |")).map_or_else(Vec::new, |row| words(row.0));
        let bases: Vec<PathBuf> =
            ["", "src"].iter().map(|base| top.join(base)).chain(row.iter().map(|base| top.join(base))).collect();
        for word in if is_figure { Vec::new() } else { words(line) } {
            seen += 1;
            let is_there = bases.iter().any(|base| base.join(&word).exists());
            if !is_there && (word.contains('/') || !files.contains(&word)) {
                wrong.push(word);
            }
        }
    }
    assert!(seen > 150, "{seen} paths: the page is read in another way than it is written");
    assert_eq!(wrong, [""; 0], "docs/architecture.md names what does not exist");
}

/// Every directory and file of `src` has its place on the map.
#[test]
fn the_map_of_the_code_has_every_part_of_the_program_and_of_its_surroundings() {
    let top = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(top.join("docs/architecture.md")).expect("the page exists");
    let mut missing = Vec::new();
    for (directory, prefix) in [("src", "src/"), ("scripts", "")] {
        for entry in fs::read_dir(top.join(directory)).expect("it can be listed") {
            let entry = entry.expect("it can be listed");
            let name = entry.file_name().into_string().expect("names are text");
            let is_listed =
                [format!("`{prefix}{name}`"), format!("`{prefix}{name}/`")].iter().any(|it| text.contains(it));
            if !is_listed && !["lib.rs", "__pycache__"].contains(&name.as_str()) {
                missing.push(format!("{directory}/{name}"));
            }
        }
    }
    assert_eq!(missing, [""; 0], "docs/architecture.md does not name them");
}

fn is_path(word: &str) -> bool {
    let is_of_path = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
    let has_end = [".rs", ".txt", ".md", ".py"].iter().any(|end| word.ends_with(end)) || word.contains('/');
    has_end && word.chars().all(is_of_path) && !word.starts_with(['/', '-', '.'])
}

/// Collects the names of all files and directories below a directory.
/// The picture of README.md is made of a text.
#[test]
fn the_picture_is_what_its_text_makes() {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scripts/picture");
    let check = std::process::Command::new("python3").arg(script).arg("--check").status();
    assert!(
        check.expect("python3 starts").success(),
        "docs/picture.svg is older than docs/picture.txt: run scripts/picture"
    );
}

/// People copy these lines: with an earlier version they get that one, or no image at all.
#[test]
fn every_page_and_manifest_names_the_image_of_this_version() {
    let top = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<PathBuf> =
        ["README.md", "SECURITY.md", "image/Dockerfile"].iter().map(|file| top.join(file)).collect();
    for directory in ["docs", "daemonset", "kustomize", "charts"] {
        files_below(&top.join(directory), &mut files);
    }
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for file in files {
        let text = fs::read_to_string(&file).unwrap_or_default();
        for (number, line) in text.lines().enumerate() {
            for version in versions_of_the_image(line) {
                seen += 1;
                if version != env!("CARGO_PKG_VERSION") {
                    wrong.push(format!("{}:{} names {version}", file.display(), number + 1));
                }
            }
        }
    }
    assert!(seen > 30, "{seen} places: the pages are read in another way than they are written");
    assert_eq!(wrong, [""; 0], "Cargo.toml has version {}", env!("CARGO_PKG_VERSION"));
}

/// `REMOVE` is run as the page of moves has it, and copied from both.
#[test]
fn both_pages_have_the_same_command_of_removal() {
    let top = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let commands: Vec<String> = ["docs/migration.md", "docs/user-guide.md"]
        .into_iter()
        .map(|page| {
            let text = fs::read_to_string(top.join(page)).expect("it is there");
            let lines = text.lines().skip_while(|line| !line.starts_with("    mkdir -p /etc/cni/net.d"));
            lines.take_while(|line| line.starts_with("    ")).collect::<Vec<_>>().join("\n")
        })
        .collect();
    assert!(commands[0].contains("src=/run/xtables.lock") && commands[0].ends_with("--cleanup-config"), "{commands:?}");
    assert_eq!(commands[0], commands[1]);
}

/// The three numbers behind the name of the image or of its archive, behind `version:` in k0s' configuration, and behind the image's label.
fn versions_of_the_image(line: &str) -> Vec<&str> {
    let follows = ["sluice:", "sluice-", "`version: ", "image.version="];
    let behind = follows.into_iter().flat_map(|word| line.split(word).skip(1));
    let numbers = behind.filter_map(|rest| {
        let numbers = rest.split(|c: char| !c.is_ascii_digit() && c != '.').next()?.trim_end_matches('.');
        // Of a version before the release: 0.2.0-rc.1.
        let before = rest
            .get(numbers.len()..)
            .filter(|rest| ["-alpha", "-beta", "-rc"].iter().any(|word| rest.starts_with(word)));
        let end = before.map_or(0, |rest| {
            rest.find(|c: char| !c.is_ascii_alphanumeric() && !"-.".contains(c)).unwrap_or(rest.len())
        });
        (numbers.split('.').filter(|part| !part.is_empty()).count() == 3)
            .then(|| rest.get(..numbers.len() + end))
            .flatten()
    });
    numbers.map(|number| number.trim_end_matches('.')).collect()
}

fn files_below(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("it can be listed") {
        let path = entry.expect("it can be listed").path();
        match path.is_dir() {
            true => files_below(&path, files),
            false => files.push(path),
        }
    }
}

fn names_below(directory: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).expect("it can be listed") {
        let path = entry.expect("it can be listed").path();
        names.extend(path.file_name().and_then(|name| name.to_str()).map(str::to_owned));
        if path.is_dir() {
            names_below(&path, names);
        }
    }
}

/// Numbers of the weak spots that concern what exists here.
const WEAK_SPOTS: RangeInclusive<u32> = 1..=60;

#[test]
fn each_weak_spot_of_kube_routers_service_proxy_has_tests_that_exist() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/service-proxy-tests.md")).expect("the page exists");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| W")?.split_once(" |"));
    let rows: Vec<(u32, &str)> = rows.map(|(number, rest)| (number.parse().expect("a number"), rest)).collect();
    assert_eq!(rows.iter().map(|(number, _)| *number).collect::<Vec<_>>(), WEAK_SPOTS.collect::<Vec<_>>());
    let existing = names_of_tests(&root);
    for (number, row) in rows {
        let tests = row.rsplit('|').nth(1).expect("a row has a last column");
        let named: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "W{number} has no test");
        let missing: Vec<&&str> = named.iter().filter(|name| !existing.contains(**name)).collect();
        assert!(missing.is_empty(), "W{number}: there are no tests {missing:?}");
    }
}

/// The names of test functions in Rust, of end-to-end tests, and of scenarios of the service proxy.
fn names_of_tests(root: &Path) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut folders: Vec<PathBuf> = ["src", "tests"].iter().map(|folder| root.join(folder)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the project") {
            let path = entry.expect("it can be listed").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap_or_default();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("rs") => names.extend(rust_tests(&text)),
                Some("py") => names.extend(text.lines().filter_map(|line| name_after(line, "def "))),
                Some("txt") if folder.ends_with("scenarios/proxy") => {
                    names.extend(path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned));
                }
                _ => {}
            }
        }
    }
    names
}

/// The functions below an attribute that makes them tests.
fn rust_tests(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let is_attribute = |line: &&&str| line.starts_with("#[test]") || line.starts_with("#[tokio::test");
    let named = |at: usize| {
        let below = lines.iter().skip(at + 1).find(|line| !line.starts_with('#'))?;
        name_after(below, "fn ").or_else(|| name_after(below, "async fn "))
    };
    (0..lines.len()).filter(|at| lines.get(*at).as_ref().is_some_and(is_attribute)).filter_map(named).collect()
}

fn name_after(line: &str, word: &str) -> Option<String> {
    line.strip_prefix(word)?.split_once('(').map(|(name, _)| name.to_owned())
}
