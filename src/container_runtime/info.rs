//! Where a sandbox's network namespace is, as a runtime's verbose status tells it.
//!
//! `PodSandboxStatus` and `ContainerStatus` with `verbose` have a map `info` of no fixed form. containerd and CRI-O have the key
//! `info` with an object of JSON: `pid` is the process of the sandbox (the pause container) or of the container, and
//! `runtimeSpec.linux.namespaces[]` has an entry of type `network` whose `path` was given to the process.
//!
//! Limits and surprises:
//! - CRI-O may run no process for a sandbox: `pid` is 0 or missing, and the path is there.
//! - A path leads nowhere inside a container that does not have the host's `/run/netns`; a process is found only with the
//!   host's processes (`hostPID`). Either is enough.

use std::collections::HashMap;
use std::path::PathBuf;

use serde::Deserialize;

/// Longer JSON is not read.
const MOST_BYTES: usize = 1 << 20;
/// The longest path that the kernel takes.
const LONGEST_PATH: usize = 4096;

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Info {
    pid: Option<serde_json::Value>,
    runtime_spec: Option<RuntimeSpec>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RuntimeSpec {
    linux: Option<Linux>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Linux {
    namespaces: Option<Vec<Namespace>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    path: String,
}

/// Returns the files that stand for the network namespace: first the one that the process was given, then the process's own.
/// Text that makes no sense tells of none.
pub fn places(info: &HashMap<String, String>) -> Vec<PathBuf> {
    let text = info.get("info").map(String::as_str).filter(|text| text.len() <= MOST_BYTES);
    let Some(Ok(info)) = text.map(serde_json::from_str::<Info>) else { return Vec::new() };
    let namespaces =
        info.runtime_spec.and_then(|spec| spec.linux).and_then(|linux| linux.namespaces).unwrap_or_default();
    let given = namespaces.into_iter().filter(|one| one.kind == "network").map(|one| one.path);
    let given = given.filter(|path| path.starts_with('/') && path.len() <= LONGEST_PATH);
    // Process 1 is the host's first one, or our own container's: never a pod's.
    let pid = info.pid.as_ref().and_then(serde_json::Value::as_u64).filter(|pid| (2..=1 << 22).contains(pid));
    given.take(1).map(PathBuf::from).chain(pid.map(|pid| PathBuf::from(format!("/proc/{pid}/ns/net")))).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, expected: &[&str]) {
        let info = HashMap::from([("info".to_owned(), text.to_owned())]);
        let expected: Vec<PathBuf> = expected.iter().map(PathBuf::from).collect();
        assert_eq!(places(&info), expected, "{}", text.get(..200).unwrap_or(text));
    }

    #[test]
    fn the_path_comes_before_the_process() {
        let spec =
            r#"{"linux": {"namespaces": [{"type": "pid"}, {"type": "network", "path": "/var/run/netns/cni-1"}]}}"#;
        check(
            &format!(r#"{{"pid": 4711, "processStatus": "running", "runtimeSpec": {spec}}}"#),
            &["/var/run/netns/cni-1", "/proc/4711/ns/net"],
        );
        check(&format!(r#"{{"image": "pause", "pid": 0, "runtimeSpec": {spec}}}"#), &["/var/run/netns/cni-1"]);
        check(
            r#"{"pid": 4711, "runtimeSpec": {"linux": {"namespaces": [{"type": "network"}]}}}"#,
            &["/proc/4711/ns/net"],
        );
        check(r#"{"pid": 4711, "runtimeSpec": null}"#, &["/proc/4711/ns/net"]);
    }

    #[test]
    fn text_that_makes_no_sense_tells_of_no_place() {
        for text in [
            "",
            "{",
            "[]",
            "null",
            r#"{"pid": "4711"}"#,
            r#"{"pid": -1}"#,
            r#"{"pid": 1}"#,
            r#"{"pid": 99999999999}"#,
            r#"{"runtimeSpec": {"linux": {"namespaces": [{"type": "network", "path": "run/netns/x"}]}}}"#,
            r#"{"runtimeSpec": {"linux": {"namespaces": {"type": "network"}}}}"#,
        ] {
            check(text, &[]);
        }
        check(&format!(r#"{{"pid": 4711, "x": "{}"}}"#, "y".repeat(MOST_BYTES)), &[]);
        let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
        check(&format!(r#"{{"pid": {deep}}}"#), &[]);
        assert!(places(&HashMap::new()).is_empty());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in ".{0,200}") {
            let _ = places(&HashMap::from([("info".to_owned(), text)]));
        }
    }
}
