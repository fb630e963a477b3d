//! The programs of beds and scripts can be loaded: a mistake in one of their modules shows here, and not after an hour in the bed that uses it.

use std::path::Path;
use std::process::Command;

/// What `python3` prints with these words in this tree; it has to succeed.
fn said(words: &[&str]) -> String {
    let mut command = Command::new("python3");
    let output =
        command.current_dir(env!("CARGO_MANIFEST_DIR")).arg("-B").args(words).output().expect("python3 starts");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "python3 {}: {error}", words.join(" "));
    String::from_utf8(output.stdout).expect("words")
}

#[test]
fn every_module_of_the_end_to_end_tests_can_be_loaded_and_has_its_bed() {
    let listed = said(&["tests/e2e/run.py", "--list", "--long"]);
    for bed in [
        "manifests, nftables: ",
        "manifests, iptables: ",
        "forwarding, nftables: ",
        "routing, nftables: ",
        "api, nftables: ",
    ] {
        let tests = listed.lines().filter(|line| line.starts_with(bed)).count();
        assert!(tests > 0, "{bed}");
    }
    let daily = said(&["tests/e2e/run.py", "--list"]);
    assert!(daily.lines().count() > 150 && daily.lines().count() < listed.lines().count());
    assert!(daily.lines().all(|line| listed.contains(line)), "what runs each day runs with --long");
}

#[test]
fn what_is_started_by_itself_can_be_loaded() {
    for script in ["demo", "bench", "conformance", "image", "release", "manifests", "lab"] {
        said(&[&format!("scripts/{script}"), "--help"]);
    }
    for stage in ["kubelets", "charts"] {
        said(&[&format!("tests/{stage}/run.py"), "--help"]);
    }
    for (folder, module) in [("e2e", "bare"), ("image", "run")] {
        assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/{folder}/{module}.py")).exists());
        said(&["-c", &format!("import sys; sys.path.insert(0, 'tests/{folder}'); import {module}")]);
    }
}
