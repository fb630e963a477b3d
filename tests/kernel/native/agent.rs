//! A node whose agent is the program itself, with the firewall alone and nftables, and with a cluster from a directory.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is how a test says so")]

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice::firewall::frames;
use sluice::firewall::nftables::names::TABLE;

use super::firewall::{PODS, places};
use super::places::Places;
use crate::namespace::{attempt, in_new, own_run, run};

/// The node, in the namespace of the calling thread, with its pods and hosts around it.
pub struct Node {
    pub places: Arc<Places>,
    directory: tempfile::TempDir,
    agent: Option<Child>,
}

/// Longer than anything takes on a machine that others keep busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node where `web` takes connections from `db` alone, and whose agent runs.
pub fn with_agent(test: impl FnOnce(&mut Node) + Send) {
    in_new(|| {
        own_run();
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("manifests")).unwrap();
        let mut node = Node { places: Arc::new(places()), directory, agent: None };
        node.put(
            "node",
            "{apiVersion: v1, kind: Node, metadata: {name: node1}, \
             spec: {podCIDRs: [10.244.1.0/24, 'fd00:10:244:1::/64']}}\n\
             ---\n{apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n",
        );
        PODS.iter().for_each(|(name, ..)| node.put_pod(name, name));
        node.put_policy("web", "web", &["db"]);
        node.start();
        test(&mut node);
    });
}

impl Node {
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Puts a file where the agent looks, all at once.
    fn put(&self, name: &str, text: &str) {
        fs::write(self.path("new"), text).unwrap();
        fs::rename(self.path("new"), self.path("manifests").join(format!("{name}.yaml"))).unwrap();
    }

    /// One of the pods with the label `app`.
    pub fn put_pod(&self, name: &str, app: &str) {
        let (_, v4, v6) = PODS.into_iter().find(|(pod, ..)| *pod == name).expect("a pod");
        let node = if name == "far" { "node2" } else { "node1" };
        let text = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop, labels: {{app: {app}}}}}, \
             spec: {{nodeName: {node}, containers: [{{name: c}}]}}, \
             status: {{phase: Running, podIP: {v4}, podIPs: [{{ip: {v4}}}, {{ip: '{v6}'}}]}}}}\n"
        );
        self.put(&format!("pod-{name}"), &text);
    }

    /// A policy by which pods with one label take connections from those with one of the others.
    pub fn put_policy(&self, name: &str, app: &str, from: &[&str]) {
        let peers = from.iter().fold(String::new(), |mut text, peer| {
            write!(text, "{{podSelector: {{matchLabels: {{app: {peer}}}}}}}, ").unwrap();
            text
        });
        let text = format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}, namespace: shop}}, \
             spec: {{podSelector: {{matchLabels: {{app: {app}}}}}, policyTypes: [Ingress], ingress: [{{from: [{peers}]}}]}}}}\n"
        );
        self.put(&format!("policy-{name}"), &text);
    }

    pub fn delete_policy(&self, name: &str) {
        fs::remove_file(self.path("manifests").join(format!("policy-{name}.yaml"))).unwrap();
    }

    /// Starts the agent, and waits until its rules are in the kernel.
    pub fn start(&mut self) {
        let log = File::create(self.path("log")).unwrap();
        let arguments = [("manifests", "manifests"), ("state-dir", "state"), ("socket", "sluice.sock")];
        let agent = Command::new(env!("CARGO_BIN_EXE_sluice"))
            .args(["--run-router=false", "--run-service-proxy=false", "--enable-ipv6", "--netfilter=nftables"])
            .args(["--health-port=0", "--hostname-override=node1", "-v=3"])
            .args(arguments.map(|(name, file)| format!("--{name}={}", self.path(file).display())))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn();
        self.agent = Some(agent.unwrap());
        self.until("its first rules are there", |node| node.log().contains("First sync of network policies finished"));
    }

    /// kill -9.
    pub fn kill(&mut self) {
        let mut agent = self.agent.take().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    /// The number of the agent's process.
    pub fn pid(&self) -> u32 {
        self.agent.as_ref().unwrap().id()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Waits until something is so.
    pub fn until(&self, told: &str, is_so: impl Fn(&Node) -> bool) {
        let begun = Instant::now();
        while !is_so(self) {
            assert!(begun.elapsed() < PATIENCE, "waiting until {told}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The tables of the firewall with the numbers by which the kernel knows each object, without counts and without whose they are.
    pub fn tables(&self) -> String {
        let tables = [format!("inet {TABLE}"), format!("bridge {}", frames::TABLE), format!("inet {}", frames::TABLE)];
        let listed = tables.map(|table| attempt(&format!("nft -a --stateless list table {table}")).1);
        // Whose a table is stands behind its number and in flags of its own, which nft 1.0.6 leaves out where it does not know them.
        let is_owner = |line: &str| matches!(line.trim(), "flags owner" | "flags");
        let lines = listed.iter().flat_map(|table| table.lines()).filter(|line| !is_owner(line));
        lines.map(|line| format!("{}\n", line.split(" progname ").next().unwrap_or(line))).collect()
    }

    /// Whether the table of policies belongs to a process.
    pub fn is_owned(&self) -> bool {
        run(&format!("nft list table inet {TABLE}")).contains("flags owner")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.agent.is_some() {
            self.kill();
        }
        if std::thread::panicking() {
            eprintln!("--- what the agent says\n{}", self.log());
        }
    }
}
