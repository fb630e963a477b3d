//! `scripts/release --dry`: the files of a release but for the images, which need Debian's archive.

#![allow(clippy::indexing_slicing, reason = "a test that panics has failed, which is how a test says so")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// This tree's script with these words, in another language, time zone and order of hashes each time.
fn release(words: &[&str], variety: &str) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/release");
    let mut command = Command::new("python3");
    command.arg(script).args(words).env("PYTHONHASHSEED", variety).env("TZ", format!("UTC{variety}"));
    command.output().expect("python3 starts")
}

/// The program without what only a debugger reads: packing that takes most of the time.
fn stripped(directory: &Path) -> PathBuf {
    let program = directory.join("sluice");
    let mut strip = Command::new("strip");
    strip.arg("-o").arg(&program).arg(env!("CARGO_BIN_EXE_sluice"));
    assert!(strip.status().expect("strip comes with the compiler").success());
    program
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("it can be listed");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The paths in an archive.
fn files_of(archive: &Path) -> Vec<String> {
    let listed = Command::new("tar").arg("tzf").arg(archive).output().expect("tar starts");
    String::from_utf8(listed.stdout).expect("names").lines().map(str::to_owned).collect()
}

#[test]
fn two_runs_give_the_same_files_and_what_is_in_them_is_there() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let program = stripped(directory.path());
    let sums = ["3", "7"].map(|variety| {
        let folder = directory.path().join(variety);
        let words = ["--dry", "--binary", program.to_str().expect("text"), "--output", folder.to_str().expect("text")];
        let output = release(&words, variety);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(!release(&words, variety).status.success(), "a folder with files in it is not written to");
        (fs::read_to_string(folder.join("SHA256SUMS")).expect("it is there"), folder)
    });
    assert_eq!(sums[0].0, sums[1].0);
    let (text, folder) = &sums[0];
    let version = env!("CARGO_PKG_VERSION");
    let found = names(folder);
    let archive = found.iter().find(|name| name.ends_with(".tar.gz")).expect("an archive");
    assert!(archive.starts_with(&format!("sluice-{version}-linux-")), "{archive}");
    assert_eq!(found.len(), 5, "{found:?}");
    assert_eq!(text.lines().count(), 4, "all but itself: {text}");
    let checked = Command::new("sha256sum").args(["-c", "SHA256SUMS"]).current_dir(folder).output().expect("coreutils");
    assert!(checked.status.success());
    let listed = files_of(&folder.join(archive));
    let top = archive.trim_end_matches(".tar.gz");
    for file in [
        "sluice",
        "sluice-cni",
        "LICENCES",
        "README.md",
        "CHANGELOG.md",
        "docs/user-guide.md",
        "man/sluice.1",
        "man/sluice-bundle.1",
        "completion/_sluice",
    ] {
        assert!(listed.contains(&format!("{top}/{file}")), "{file}: {listed:?}");
    }
    let chart = files_of(&folder.join(format!("sluice-{version}.tgz")));
    assert!(
        ["Chart.yaml", "values.yaml", "templates/daemonset.yaml"]
            .iter()
            .all(|file| chart.contains(&format!("sluice/{file}"))),
        "{chart:?}"
    );
    let top = format!("sluice-{version}-manifests");
    let manifests = files_of(&folder.join(format!("{top}.tar.gz")));
    let files =
        ["daemonset/generic-kuberouter.yaml", "kustomize/base/kustomization.yaml", "docs/migration.md", "README.md"];
    assert!(files.iter().all(|file| manifests.contains(&format!("{top}/{file}"))), "{manifests:?}");
    let bill = found.iter().find(|name| name.ends_with(".spdx.json")).expect("an SBOM");
    let bill: serde_json::Value = serde_json::from_slice(&fs::read(folder.join(bill)).expect("there")).expect("JSON");
    let of = |name: &str| bill["packages"].as_array().expect("a list").iter().any(|package| package["name"] == name);
    assert!(of("tokio") && of("ring") && !of("proptest"), "the crates that are in the program");
}

/// It does not run here, and its version is looked for in its bytes; that a crate of it has the same one says nothing.
#[test]
fn an_older_program_for_another_processor_is_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (older, folder) = (directory.path().join("older"), directory.path().join("files"));
    let machine: u16 = if cfg!(target_arch = "aarch64") { 62 } else { 183 };
    let bytes = [
        &b"\x7fELF"[..],
        &[0; 14],
        &machine.to_le_bytes(),
        concat!("/slab-", env!("CARGO_PKG_VERSION"), "/src/lib.rs").as_bytes(),
    ];
    fs::write(&older, bytes.concat()).expect("it can be written");
    let here = env!("CARGO_BIN_EXE_sluice");
    let older = older.to_str().expect("text");
    let words = ["--dry", "--binary", here, "--binary", older, "--output", folder.to_str().expect("text")];
    let output = release(&words, "1");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains(&format!("{older} is not of version")), "{said}");
    assert!(!folder.exists(), "nothing is written then");
}

/// Each of them would be missed somewhere in the middle, some after minutes.
#[test]
fn programs_that_are_missing_are_named_at_the_start() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let tree = Path::new(env!("CARGO_MANIFEST_DIR"));
    for script in ["release", "image"] {
        let mut command = Command::new("/usr/bin/python3");
        command.arg(tree.join("scripts").join(script)).args(["--output", "/nowhere"]).env("PATH", directory.path());
        let output = command.output().expect("python3 starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{script}: {said}");
        assert!(said.contains("dpkg (dpkg)") && said.contains("apt-get (apt)"), "{script}: {said}");
        assert!(!said.contains("Traceback"), "{script}: {said}");
        assert!(script == "image" || !tree.join(".git").exists() || said.contains("git (git)"), "{said}");
    }
}

#[test]
fn a_tree_that_is_no_release_is_refused_with_all_reasons() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let changes = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("CHANGELOG.md")).expect("it is there");
    let heading = changes.lines().find(|line| line.starts_with("## ")).expect("a release").to_owned();
    let is_dated = heading.rsplit(", ").next().is_some_and(|day| day.len() == 10 && day.starts_with("20"));
    let output = release(&["--binary", "/nowhere", "--output", directory.path().to_str().expect("text")], "1");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert_eq!(said.contains("CHANGELOG.md gives"), !is_dated, "{said}");
    assert_eq!(names(directory.path()), [""; 0]);
}
