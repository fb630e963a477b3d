//! The manifests of `daemonset/`: what their init container does to a node's folder of CNI files.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is how a test says so")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A manifest with an init container for CNI.
struct Installed {
    name: String,
    script: String,
    /// What its ConfigMap has for the folder of CNI files.
    conf: String,
}

/// The text of a YAML block (`|`) that follows a line with these words, without its indentation.
fn block(text: &str, words: &str) -> String {
    let mut lines = text.lines().skip_while(|line| !line.trim().ends_with(words)).skip(1).peekable();
    let depth = lines.peek().map_or(0, |line| line.len() - line.trim_start().len());
    let inside = lines.take_while(|line| line.trim().is_empty() || line.len() - line.trim_start().len() >= depth);
    inside.map(|line| line.get(depth..).unwrap_or_default().to_owned() + "\n").collect()
}

fn installed() -> Vec<Installed> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("daemonset");
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let texts = paths.iter().map(|path| (path.display().to_string(), fs::read_to_string(path).unwrap()));
    let with_cni = texts.filter(|(_, text)| text.contains("- name: install-cni"));
    let read = |(name, text): (String, String)| Installed {
        name,
        script: block(&text, "- |"),
        conf: block(&text, "cni-conf.json: |"),
    };
    with_cni.map(read).collect()
}

/// Runs the script on folders of the test in the place of the container's.
fn run(of: &Installed, node: &Path) {
    let folder = |name: &str| node.join(name).display().to_string();
    fs::create_dir_all(node.join("config")).unwrap();
    fs::write(node.join("config/cni-conf.json"), &of.conf).unwrap();
    let places = [
        ("/etc/cni/net.d", folder("net.d")),
        ("/etc/kube-router", folder("config")),
        ("/usr/local/bin", folder("bin")),
    ];
    let script = places.iter().fold(of.script.clone(), |script, (there, here)| script.replace(there, here));
    let done = Command::new("/bin/sh").args(["-ec", &script]).output().unwrap();
    assert!(done.status.success(), "{}: {}", of.name, String::from_utf8_lossy(&done.stderr));
}

/// The files of the folder, with what is in them.
fn files(node: &Path) -> Vec<(String, String)> {
    let entries = fs::read_dir(node.join("net.d")).unwrap().map(Result::unwrap);
    let mut files: Vec<_> = entries
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

fn node(there: &[(&str, &str)]) -> tempfile::TempDir {
    let node = tempfile::tempdir().unwrap();
    fs::create_dir(node.path().join("net.d")).unwrap();
    for (name, text) in there {
        fs::write(node.path().join("net.d").join(name), text).unwrap();
    }
    node
}

#[test]
fn the_first_start_on_a_node_puts_the_cni_file_there_and_takes_only_its_own_predecessor_away() {
    let all = installed();
    assert!(all.len() >= 4, "most manifests have it");
    for of in &all {
        let node = node(&[("10-kuberouter.conf", "of an older release"), ("99-loopback.conf", "of somebody else")]);
        run(of, node.path());
        let conf: serde_json::Value = serde_json::from_str(&of.conf).unwrap();
        assert_eq!(conf["plugins"][0]["type"], "bridge", "{}", of.name);
        let expected = [("10-kuberouter.conflist", of.conf.as_str()), ("99-loopback.conf", "of somebody else")];
        assert_eq!(files(node.path()), expected.map(|(name, text)| (name.to_owned(), text.to_owned())), "{}", of.name);
    }
}

#[test]
fn a_later_start_leaves_what_the_agent_wrote() {
    for of in &installed() {
        let there = [("10-kuberouter.conflist", "with the ranges of this node")];
        let node = node(&there);
        run(of, node.path());
        assert_eq!(files(node.path()), there.map(|(name, text)| (name.to_owned(), text.to_owned())), "{}", of.name);
    }
}

#[test]
fn plugins_are_installed_where_the_image_brings_them() {
    use std::os::unix::fs::PermissionsExt;
    for of in &installed() {
        let node = node(&[]);
        fs::create_dir(node.path().join("bin")).unwrap();
        let program = node.path().join("bin/cni-install");
        fs::write(&program, format!("#!/bin/sh\ntouch {}\n", node.path().join("installed").display())).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        run(of, node.path());
        assert!(node.path().join("installed").exists(), "{}", of.name);
    }
}
