//! `sluice preflight` on the real kernel: it finds what was planted in its network namespace, and changes nothing.
#![allow(clippy::indexing_slicing, reason = "a test that panics has failed, which is how a test says so")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::namespace::{in_new, run, shell};

/// Runs the program as an agent with these flags would be run here. Returns its report and exit code.
fn preflight(words: &[&str]) -> (Value, i32) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
    command.args(["preflight", "-o", "json", "--hostname-override=node-1"]).args(words);
    let output = command.env_remove("NODE_NAME").output().expect("the program starts");
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (report, output.status.code().expect("it ends by itself"))
}

/// The findings of a level, as text.
fn findings(report: &Value, level: &str) -> Vec<String> {
    let all = report["findings"].as_array().expect("a list");
    let of_level = all.iter().filter(|one| one["level"] == level);
    of_level.map(|one| format!("{}: {} / {}", one["subject"], one["what"], one["todo"]).replace('"', "")).collect()
}

#[track_caller]
fn has(found: &[String], words: &[&str]) {
    let is = found.iter().any(|text| words.iter().all(|word| text.contains(word)));
    assert!(is, "nothing says {words:?}: {found:#?}");
}

/// Everything that a look may change. Modules by name: how many use one depends on namespaces that go in their own time.
fn state(directory: &Path) -> String {
    let modules = shell("ls /sys/module");
    let network = shell(
        "nft list ruleset; ip -o link; ip -o address; ip route show table all; ip rule; sysctl -a 2>/dev/null | grep -E 'forward|rp_filter|bridge-nf'",
    );
    let files = shell(&format!("ls -lR --time-style=full-iso {}", directory.display()));
    format!("{modules}{network}{files}")
}

/// The state once nothing changes by itself any more: the kernel tells later that a bridge without ports has no carrier.
fn settled(directory: &Path) -> String {
    let mut before = state(directory);
    for _ in 0..50 {
        std::thread::sleep(Duration::from_millis(200));
        let now = state(directory);
        if now == before {
            return now;
        }
        before = now;
    }
    panic!("this network namespace changes by itself for ten seconds")
}

#[test]
fn planted_conflicts_are_found_and_nothing_is_changed() {
    in_new(|| {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        for name in ["cluster", "net.d", "state"] {
            std::fs::create_dir(path(name)).expect("writable");
        }
        std::fs::write(path("net.d/05-other.conflist"), r#"{"plugins":[{"type":"ptp"}]}"#).expect("writable");
        std::fs::write(path("file"), "").expect("writable");
        for (device, address) in [("eth0", "192.0.2.1/24"), ("eth1", "10.100.0.7/24"), ("flannel.1", "10.244.0.0/32")] {
            run(&format!("ip link add {device} type bridge"));
            run(&format!("ip address add {address} dev {device}"));
            // A link-local address would be tentative for a second or two.
            run(&format!("ip link set {device} addrgenmode none"));
            run(&format!("ip link set {device} up"));
        }
        run("ip route add 10.97.0.0/16 via 192.0.2.9");
        run("iptables-nft -t nat -N KUBE-SERVICES");
        run("iptables-nft -P FORWARD DROP");
        shell(
            "nft 'add table inet firewalld; add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; policy drop; }'",
        );
        let _taken = TcpListener::bind("0.0.0.0:20244").expect("nobody else is in this namespace");
        let words = [
            format!("--manifests={}", path("cluster").display()),
            format!("--state-dir={}", path("state").display()),
            format!("--socket={}", path("file/sluice.sock").display()),
        ];
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let before = settled(directory.path());
        let (report, exit_code) = preflight(&words);
        assert_eq!(state(directory.path()), before, "it changes nothing");
        assert_eq!((exit_code, &report["level"]), (2, &json!("fatal")));
        let (fatal, degraded, ok) =
            (findings(&report, "fatal"), findings(&report, "degraded"), findings(&report, "ok"));
        has(&fatal, &["port 20244", "--health-port"]);
        has(&degraded, &["kube-proxy: there are chain KUBE-SERVICES", "--run-service-proxy=false"]);
        has(&degraded, &["flannel", "device flannel.1"]);
        has(&degraded, &["filter_FORWARD of table inet firewalld", "zone=trusted"]);
        has(&degraded, &["10.96.0.0/12", "10.100.0.0/24 of the device eth1"]);
        has(&degraded, &["10.96.0.0/12", "a route of this host leads into it: 10.97.0.0/16"]);
        has(&degraded, &["file", "is no directory"]);
        has(&ok, &["chain FORWARD of table ip filter", "let packets of pods and Services pass"]);
        has(&ok, &["state", "it can be written"]);
        has(&ok, &["packet filter", "nftables"]);
        has(&ok, &["cluster", "manifests in"]);

        // What no subsystem that runs does is nobody's business here.
        let alone =
            [&words[..], &["--run-router=false", "--run-service-proxy=false", "--health-port=0", "--socket="]].concat();
        let (report, _) = preflight(&alone);
        let found = [findings(&report, "fatal"), findings(&report, "degraded")].concat();
        assert!(
            !found.iter().any(|text| text.contains("kube-proxy") || text.contains("10.96") || text.contains("flannel")),
            "{found:#?}"
        );
        has(&findings(&report, "ok"), &["kube-proxy", "no subsystem that runs here does the same"]);
    });
}

#[test]
fn legacy_rules_decide_for_iptables_and_are_read() {
    in_new(|| {
        crate::namespace::own_run();
        run("iptables-legacy -t nat -N KUBE-SERVICES");
        run("iptables-legacy -A INPUT -j ACCEPT");
        let directory = tempfile::tempdir().expect("a directory");
        let manifests = format!("--manifests={}", directory.path().display());
        let (report, _) = preflight(&[&manifests]);
        has(&findings(&report, "ok"), &["packet filter", "iptables", "legacy"]);
        has(&findings(&report, "degraded"), &["kube-proxy", "chain KUBE-SERVICES"]);
    });
}

/// An API server that knows `node-1` and a user who may read all but slices of endpoints.
fn serve(listener: TcpListener) {
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || answer(stream));
    }
}

fn answer(mut stream: TcpStream) {
    let mut read = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") else {
            match stream.read(&mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(count) => read.extend_from_slice(&buffer[..count]),
            }
            continue;
        };
        let head = String::from_utf8_lossy(&read[..end]).into_owned();
        let length =
            head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        let body_end = end + 4 + length.unwrap_or(0);
        while read.len() < body_end {
            match stream.read(&mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(count) => read.extend_from_slice(&buffer[..count]),
            }
        }
        let asked: Value = serde_json::from_slice(&read[end + 4..body_end]).unwrap_or_default();
        let (status, body) = said(head.split(' ').nth(1).unwrap_or_default(), asked);
        read.drain(..body_end);
        let body = body.to_string();
        let text = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        if stream.write_all(text.as_bytes()).is_err() {
            return;
        }
    }
}

fn said(path: &str, mut asked: Value) -> (&'static str, Value) {
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}, "spec": {"podCIDRs": ["10.244.1.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
    });
    match path {
        "/version" => ("200 OK", json!({"gitVersion": "v1.36.1"})),
        "/api/v1/nodes/node-1" => ("200 OK", node),
        "/api/v1/namespaces/default/services/kubernetes" => ("200 OK", json!({"spec": {"clusterIPs": ["10.43.0.1"]}})),
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews" => {
            asked["status"] = json!({"allowed": is_allowed(&asked["spec"]["resourceAttributes"])});
            ("201 Created", asked)
        }
        _ => (
            "404 Not Found",
            json!({"kind": "Status", "status": "Failure", "message": "not found", "reason": "NotFound", "code": 404}),
        ),
    }
}

/// Rights as `daemonset/kube-router-load-balancer.yaml` has them, where it is about them: of leases and ConfigMaps single ones may be read and written.
fn is_allowed(right: &Value) -> bool {
    let of = |field: &str| right[field].as_str().unwrap_or_default();
    match (of("resource"), of("verb"), of("name")) {
        ("endpointslices" | "clusternetworkpolicies", ..) => false,
        ("nodes", "patch", _) => false,
        ("leases", "create", "") | ("leases", "get" | "update", "kube-router-lballoc") => {
            of("namespace") == "kube-system"
        }
        ("configmaps", "get" | "list" | "watch", "kube-router-lb-pools") => of("namespace") == "kube-system",
        ("leases" | "configmaps", ..) => false,
        _ => true,
    }
}

#[test]
fn the_api_server_is_asked_for_rights_node_and_ranges() {
    in_new(|| {
        run("ip link add eth0 type bridge");
        run("ip address add 192.0.2.1/24 dev eth0");
        run("ip link set eth0 up");
        run("ip link add eth1 type bridge");
        run("ip address add 10.244.1.7/16 dev eth1");
        let listener = TcpListener::bind("127.0.0.1:6443").expect("nobody else is in this namespace");
        std::thread::spawn(move || serve(listener));
        let (report, exit_code) = preflight(&["--master=http://127.0.0.1:6443"]);
        let (fatal, degraded, ok) =
            (findings(&report, "fatal"), findings(&report, "degraded"), findings(&report, "ok"));
        assert_eq!(exit_code, 2, "{report:#}");
        has(&fatal, &["right on endpointslices", "list, watch", "discovery.k8s.io"]);
        has(&fatal, &["pod range 10.244.1.0/24", "10.244.0.0/16 of the device eth1"]);
        has(&degraded, &["10.43.0.1, which is not in 10.96.0.0/12"]);
        has(&ok, &["API server", "version v1.36.1"]);
        has(&ok, &["Node node-1"]);
        let all = [&fatal[..], &degraded[..]].concat();
        assert!(
            !all.iter().any(|text| text.contains("clusternetworkpolicies")),
            "the server has no such objects: {all:#?}"
        );

        let balancer = ["--run-loadbalancer", "--loadbalancer-ip-range=203.0.113.0/24"];
        let (report, _) = preflight(&[&["--master=http://127.0.0.1:6443"][..], &balancer].concat());
        let all = [findings(&report, "fatal"), findings(&report, "degraded")].concat();
        for resource in ["leases", "configmaps", "nodes/status"] {
            assert!(!all.iter().any(|text| text.contains(resource)), "the shipped roles suffice: {all:#?}");
        }

        let (report, _) = preflight(&["--master=http://127.0.0.1:6443", "--hostname-override=node-2"]);
        has(&findings(&report, "fatal"), &["Node node-2", "no Node of this name"]);
        let (report, _) = preflight(&["--master=http://127.0.0.1:6444"]);
        has(&findings(&report, "degraded"), &["API server", "does not answer"]);
    });
}
