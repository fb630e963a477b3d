//! Remains of an earlier run with iptables that the agent looks for when it starts with nftables, and the programs that it starts for that.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is how a test says so")]

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::namespace::{in_new, own_run, run};

/// Programs of iptables, each of which says that it was started before it does its work.
const PROGRAMS: [&str; 6] =
    ["iptables", "ip6tables", "iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"];

struct Node {
    directory: tempfile::TempDir,
    agent: Option<Child>,
}

impl Node {
    fn new() -> Node {
        let node = Node { directory: tempfile::tempdir().unwrap(), agent: None };
        for folder in ["front", "manifests"] {
            fs::create_dir(node.directory.path().join(folder)).unwrap();
        }
        let started = node.path("started");
        for program in PROGRAMS {
            for verb in ["", "-save", "-restore"] {
                let path = node.directory.path().join("front").join(format!("{program}{verb}"));
                let script = format!(
                    "#!/bin/sh\necho \"${{0##*/}} $*\" >> {started}\nPATH=${{PATH#*:}} exec \"${{0##*/}}\" \"$@\"\n"
                );
                fs::write(&path, script).unwrap();
                fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
            }
        }
        let manifest = "{apiVersion: v1, kind: Node, metadata: {name: node1}, spec: {podCIDRs: [10.244.0.0/16]}}\n";
        fs::write(node.directory.path().join("manifests/node.yaml"), manifest).unwrap();
        node
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn start(&mut self) {
        let log = File::create(self.path("log")).unwrap();
        let path = format!("{}:{}", self.path("front"), std::env::var("PATH").unwrap());
        let agent = Command::new(env!("CARGO_BIN_EXE_sluice"))
            .args(["--run-router=false", "--run-service-proxy=false", "--enable-ipv6", "--health-port=0", "-v=3"])
            .args(["--hostname-override=node1", "--netfilter=nftables", "--socket="])
            .arg(format!("--manifests={}", self.path("manifests")))
            .arg(format!("--state-dir={}", self.path("state")))
            .env("PATH", path)
            .stdin(Stdio::null())
            .stderr(log)
            .spawn();
        self.agent = Some(agent.unwrap());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn started(&self) -> String {
        fs::read_to_string(self.path("started")).unwrap_or_default()
    }

    fn wait(&self, what: impl Fn(&Node) -> bool) {
        let begun = Instant::now();
        while !what(self) {
            assert!(begun.elapsed() < Duration::from_secs(30), "{}\n{}", self.started(), self.log());
            sleep(Duration::from_millis(50));
        }
    }

    fn kill(&mut self) {
        let mut agent = self.agent.take().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

#[test]
fn a_start_with_nftables_runs_programs_of_iptables_only_where_something_is_ours() {
    in_new(|| {
        own_run();
        let mut node = Node::new();
        run("iptables-nft -N SOMEBODYS");
        run("iptables-nft -A FORWARD -j SOMEBODYS");
        node.start();
        node.wait(|node| node.log().contains("First sync of network policies finished"));
        // It looks as soon as all is in place.
        sleep(Duration::from_secs(3));
        assert_eq!(node.started(), "", "{}", node.log());
        node.kill();
        run("iptables-nft -N KUBE-NWPLCY-LEFT");
        run("iptables-nft -A FORWARD -j KUBE-NWPLCY-LEFT");
        node.start();
        node.wait(|_| !run("iptables-nft-save").contains("KUBE-NWPLCY-LEFT"));
        assert!(Path::new(&node.path("started")).exists(), "programs remove what they wrote: {}", node.log());
        assert!(run("iptables-nft-save").contains("-A FORWARD -j SOMEBODYS"));
        node.kill();
    });
}
