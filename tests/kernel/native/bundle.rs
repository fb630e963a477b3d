//! `sluice bundle` of a running agent: what is in it, what is not, and an agent elsewhere that starts from it.

#![allow(clippy::indexing_slicing, reason = "a test that panics has failed, which is how a test says so")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::namespace::{in_new, own_run, run, shell};

/// The words of a password, as flag and annotation have it, and of what else must not get out.
const SECRETS: [&str; 5] =
    ["c2VjcmV0LXdvcmQ=", "secret-word", "b3RoZXItd29yZA==", "other-word", "token-of-the-environment"];
/// Longer than anything takes on a machine that others keep busy.
const PATIENCE: Duration = Duration::from_secs(90);

const CLUSTER: &str = "\
apiVersion: v1
kind: Node
metadata:
  name: node1
  annotations:
    kube-router.io/peers: '[{remoteip: 192.0.2.200, remoteasn: 64600, password: c2VjcmV0LXdvcmQ=}]'
    example.com/private: other-word
spec: {podCIDRs: [10.244.1.0/24, 'fd00:10:244:1::/64']}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: InternalIP, address: '2001:db8::1'}]}
---
apiVersion: v1
kind: Node
metadata: {name: node2}
spec: {podCIDRs: [10.244.2.0/24, 'fd00:10:244:2::/64']}
status:
  addresses: [{type: InternalIP, address: 192.0.2.2}, {type: InternalIP, address: '2001:db8::2'}]
  conditions: [{type: Ready, status: 'True'}]
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: a}}
---
apiVersion: v1
kind: Secret
metadata: {name: login, namespace: shop}
data: {password: b3RoZXItd29yZA==}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: node1, containers: [{name: c, env: [{name: PASSWORD, value: other-word}], ports: [{name: http, containerPort: 8080}]}]}
status: {phase: Running, podIPs: [{ip: 10.244.1.10}, {ip: 'fd00:10:244:1::10'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {nodeName: node2}
status: {phase: Running, podIPs: [{ip: 10.244.2.10}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{podSelector: {matchLabels: {app: db}}}, {ipBlock: {cidr: 203.0.113.0/24, except: [203.0.113.7/32]}}], ports: [{port: http}]}]
  egress: [{to: [{namespaceSelector: {matchLabels: {team: a}}, podSelector: {}}], ports: [{protocol: UDP, port: 53}]}]
---
apiVersion: policy.networking.k8s.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: guard}
spec: {tier: Admin, priority: 7, subject: {namespaces: {}}, egress: [{action: Deny, to: [{networks: [198.51.100.0/24]}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.9, ports: [{name: http, port: 80}]}
";

/// A node, in the network namespace of the calling thread.
struct Node {
    directory: tempfile::TempDir,
    agent: Child,
}

impl Node {
    /// Starts an agent with these manifests and waits until its routes and policies are in force.
    fn start(manifests: &Path) -> Node {
        own_run();
        for command in [
            "ip link add eth0 type veth peer name wire",
            "ip link set eth0 addrgenmode none",
            "ip link set wire addrgenmode none",
            "ip link set wire up",
            "ip link set eth0 up",
            "ip link set lo up",
            "ip address add 192.0.2.1/24 dev eth0",
            "ip address add 2001:db8::1/64 dev eth0 nodad",
        ] {
            run(command);
        }
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let log = File::create(path("log")).expect("a file");
        let agent = Command::new(env!("CARGO_BIN_EXE_sluice"))
            .args(["--run-service-proxy=false", "--enable-ipv6", "--netfilter=nftables", "--node-routes=api"])
            .args(["--enable-overlay=false", "--health-port=0", "--gobgp-admin-port=0", "--hostname-override=node1"])
            .args(["--peer-router-ips=192.0.2.201", "--peer-router-asns=64601"])
            .arg("--peer-router-passwords=b3RoZXItd29yZA==")
            .arg(format!("--manifests={}", manifests.display()))
            .arg(format!("--state-dir={}", path("state").display()))
            .arg(format!("--socket={}", path("sluice.sock").display()))
            .env("TOKEN", "token-of-the-environment")
            .env("KUBE_ROUTER_CNI_CONF_FILE", path("net.d/10-kuberouter.conflist"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the program starts");
        let node = Node { directory, agent };
        let begun = Instant::now();
        while !node.is_there() {
            assert!(begun.elapsed() < PATIENCE, "{}", node.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn is_there(&self) -> bool {
        let log = self.log();
        let synced = ["First sync of network policies finished", "First sync of the router finished"];
        synced.iter().all(|text| log.contains(text)) && run("ip route").contains("10.244.2.0/24 via 192.0.2.2")
    }

    /// Makes a bundle of this node.
    fn bundle(&self, file: &Path) -> Output {
        let socket = format!("--socket={}", self.path("sluice.sock").display());
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
        command.args(["bundle", &socket, "-f"]).arg(file).env("TOKEN", "token-of-the-environment");
        command.output().expect("the program starts")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
        if std::thread::panicking() {
            eprintln!("--- what the agent says\n{}", self.log());
        }
    }
}

/// What an agent with router and firewall has brought into the kernel.
fn state() -> String {
    shell(
        "nft --stateless list table inet sluice_policy | grep -v 'flags owner\\|progname'; nft --stateless list table inet sluice_router | grep -v 'flags owner\\|progname'; \
         ip route; ip -6 route | grep -v '^fe80'; ip rule; ip -6 rule; ip -br link | awk '{print $1}' | sort",
    )
}

/// The files of a bundle.
fn files(bundle: &Path) -> BTreeMap<String, String> {
    let mut archive = tar::Archive::new(File::open(bundle).expect("it is there"));
    let mut files = BTreeMap::new();
    for entry in archive.entries().expect("a tar archive") {
        let mut entry = entry.expect("a whole one");
        let name = entry.path().expect("a path").to_string_lossy().into_owned();
        let mut text = String::new();
        entry.read_to_string(&mut text).expect("text");
        files.insert(name.strip_prefix("sluice-bundle/").expect("of a bundle").to_owned(), text);
    }
    files
}

fn is_without_secrets(bundle: &Path) {
    let bytes = fs::read(bundle).expect("it is there");
    for secret in SECRETS {
        assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "{secret} is in it");
    }
}

/// Returns the state of the node that the bundle is of.
fn bundle_of_a_node(file: &Path, manifests: &Path) -> String {
    let mut told = String::new();
    in_new(|| {
        let mut node = Node::start(manifests);
        let before = (state(), shell("nft --stateless list ruleset; ls /sys/module"));
        let output = node.bundle(file);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(0), "{said}{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!((state(), shell("nft --stateless list ruleset; ls /sys/module")), before, "it changes nothing");
        assert_eq!(fs::metadata(file).expect("it is there").permissions().mode() & 0o777, 0o600);
        is_without_secrets(file);
        let files = files(file);
        let parts: Value = serde_json::from_str(&files["parts.json"]).expect("JSON");
        for (part, word) in [
            ("config.txt", "192.0.2.201"),
            ("log.txt", "First sync of the router finished"),
            ("status.txt", "node1: "),
            ("metrics.txt", "kube_router_build_info"),
            ("bgp-peers.json", "192.0.2.201"),
            ("kernel/router.txt", "10.244.2.0/24"),
            ("kernel/firewall.txt", "in_shop_web_"),
            ("audit/firewall.json", "complete"),
            ("preflight.json", "findings"),
            ("policy-drops.json", "packets"),
            ("host/links.txt", "eth0"),
            ("host/routes.txt", "10.244.2.0/24"),
            ("cluster/complete.json", "\"complete\": true"),
        ] {
            let text = files.get(part).unwrap_or_else(|| panic!("{part} is missing: {parts:#}"));
            assert!(text.contains(word), "{word} in {part}: {text}");
        }
        let cluster: String =
            files.iter().filter(|(name, _)| name.starts_with("cluster/")).map(|(_, text)| &**text).collect();
        assert!(cluster.contains("\"password_unknown\\\":true") && !cluster.contains("example.com"), "{cluster}");
        told = before.0;

        node.agent.kill().expect("it runs");
        node.agent.wait().expect("it ends");
        let without = file.with_file_name("without.tar");
        let output = node.bundle(&without);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("agent: nobody answers on"), "{said}");
        assert!(self::files(&without)["host/links.txt"].contains("eth0"));
        assert!(!without.with_extension("tar.new").exists());
    });
    told
}

#[test]
fn an_agent_that_starts_from_a_bundle_brings_about_what_the_node_had() {
    let directory = tempfile::tempdir().expect("a directory");
    let (manifests, bundle) = (directory.path().join("manifests"), directory.path().join("bundle.tar"));
    fs::create_dir(&manifests).expect("writable");
    fs::write(manifests.join("cluster.yaml"), CLUSTER).expect("writable");
    let told = bundle_of_a_node(&bundle, &manifests);
    assert!(told.contains("10.244.1.10"), "{told}");
    in_new(|| {
        let node = Node::start(&bundle);
        let begun = Instant::now();
        while state() != told {
            assert!(begun.elapsed() < PATIENCE, "--- it was\n{told}\n--- and is\n{}", state());
            std::thread::sleep(Duration::from_millis(200));
        }
        let again = directory.path().join("again.tar");
        assert_eq!(node.bundle(&again).status.code(), Some(0));
        let cluster = |file: &Path| -> Vec<(String, String)> {
            let is_manifests = |name: &str| name.starts_with("cluster/") && !name.ends_with("complete.json");
            files(file).into_iter().filter(|(name, _)| is_manifests(name)).collect()
        };
        assert_eq!(cluster(&again), cluster(&bundle), "a bundle of the second one has the same cluster");
    });
}
