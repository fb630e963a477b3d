//! A containerd of the test's own, with sandboxes as a kubelet makes them: over CRI, with a network by CNI.
//!
//! Everything of it lies in a scratch directory and in a `/run` that only the test's thread and its programs see. It ends with the test.

use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use http::Uri;
use http::uri::PathAndQuery;
use rustix::process::{Pid, Signal, kill_process};
use sluice::container_runtime::client::Connection;
use sluice::container_runtime::hosts::Runtimes;
use sluice::container_runtime::{Sandbox, Sought};
use tonic_prost::ProstCodec;

use crate::namespace::{self, attempt, run, shell};

/// The socket, in the test's own `/run`.
pub const SOCKET: &str = "/run/containerd.sock";
/// The address that each sandbox gets, one after the other.
pub const ADDRESS: &str = "10.244.1.5";
const IMAGE: &str = "docker.io/sluice/pause:1";

pub struct Containerd {
    directory: tempfile::TempDir,
    process: Child,
}

/// The address of IPv6 of each sandbox, beside a containerd that gives both.
pub const ADDRESS_V6: &str = "fd00:10:244:1::5";

/// Runs `test` beside a containerd, in a new network namespace.
pub fn beside_containerd(test: impl FnOnce(&Containerd) + Send) {
    namespace::in_new(|| {
        namespace::own_run();
        test(&Containerd::start(&[range("10.244.1.0/24", ADDRESS, "10.244.1.1")]));
    });
}

/// The same, with sandboxes that have an address of each family.
pub fn beside_containerd_of_both_families(test: impl FnOnce(&Containerd) + Send) {
    beside_containerd_of([ADDRESS, ADDRESS_V6], test);
}

/// The same, with several sandboxes at a time: they have [`ADDRESS`] and [`ADDRESS_V6`] and those behind them, up to these.
pub fn beside_containerd_of([v4, v6]: [&str; 2], test: impl FnOnce(&Containerd) + Send) {
    let ranges = [
        range_to("10.244.1.0/24", [ADDRESS, v4], "10.244.1.1"),
        range_to("fd00:10:244:1::/64", [ADDRESS_V6, v6], "fd00:10:244:1::1"),
    ];
    namespace::in_new(|| {
        namespace::own_run();
        test(&Containerd::start(&ranges));
    });
}

/// A range of one address, for the plugin that gives them: a sandbox that is made anew has the former one's.
fn range(subnet: &str, address: &str, gateway: &str) -> String {
    range_to(subnet, [address, address], gateway)
}

fn range_to(subnet: &str, [first, last]: [&str; 2], gateway: &str) -> String {
    format!(r#"[{{"subnet": "{subnet}", "rangeStart": "{first}", "rangeEnd": "{last}", "gateway": "{gateway}"}}]"#)
}

impl Containerd {
    fn start(ranges: &[String]) -> Containerd {
        for program in ["containerd", "runc", "busybox"] {
            assert!(attempt(&format!("which {program}")).0, "{program} is not installed; scripts/test installs it");
        }
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        fs::create_dir(path("net.d")).expect("writable");
        let network = format!(
            r#"{{"cniVersion": "0.4.0", "name": "pods", "plugins": [{{"type": "bridge", "bridge": "pods", "isGateway": true,
            "ipam": {{"type": "host-local", "dataDir": "{}", "ranges": [{}]}}}}]}}"#,
            path("ipam").display(),
            ranges.join(", ")
        );
        fs::write(path("net.d/10-pods.conflist"), network).expect("writable");
        // Snapshots are copied, because not every file system can lie below another; and a container may have fewer rights than the machine's root.
        let config = format!(
            r#"version = 2
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{IMAGE}"
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{}"
"#,
            path("net.d").display()
        );
        fs::write(path("config.toml"), config).expect("writable");
        let log = fs::File::create(path("log")).expect("writable");
        let process = Command::new("containerd")
            .arg("--config")
            .arg(path("config.toml"))
            .arg("--root")
            .arg(path("root"))
            .args(["--state", "/run/state", "--address", SOCKET])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .spawn()
            .expect("containerd starts");
        let runtime = Containerd { directory, process };
        runtime.wait("it answers", || Path::new(SOCKET).exists() && ctr("version").0);
        runtime.import_image();
        runtime
    }

    /// An image with nothing but a program that waits, and not for ever.
    fn import_image(&self) {
        let config = r#"{"architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/busybox", "sleep", "900"]},
            "rootfs": {"type": "layers", "diff_ids": ["sha256:DIGEST"]}}"#;
        let manifest = format!(r#"[{{"Config": "config.json", "RepoTags": ["{IMAGE}"], "Layers": ["layer.tar"]}}]"#);
        let at = self.directory.path().join("image");
        fs::create_dir(&at).expect("writable");
        fs::write(at.join("config.json"), config).expect("writable");
        fs::write(at.join("manifest.json"), manifest).expect("writable");
        shell(&format!(
            "cd {} && tar -C $(dirname $(realpath $(which busybox))) -cf layer.tar busybox && \
             sed -i s/DIGEST/$(sha256sum layer.tar | cut -d' ' -f1)/ config.json && tar -cf ../image.tar .",
            at.display()
        ));
        let (imported, out, error) =
            ctr(&format!("images import {}", self.directory.path().join("image.tar").display()));
        assert!(imported, "{out} {error}");
    }

    /// Waits until `is_so`; fails with the log of containerd where that takes too long.
    pub fn wait(&self, what: &str, is_so: impl Fn() -> bool) {
        let begun = Instant::now();
        while !is_so() {
            if begun.elapsed() > Duration::from_secs(60) {
                let log = fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(30).collect();
                panic!("{what}: not in time; containerd, the newest first:\n{}", last.join("\n"));
            }
            sleep(Duration::from_millis(50));
        }
    }

    /// Starts the sandbox of a pod, as a kubelet does; returns its id.
    pub fn start_sandbox(&self, pod: &str, host_network: bool, annotation: &str) -> String {
        let label = |(name, value): (&str, &str)| (format!("io.kubernetes.pod.{name}"), value.to_owned());
        let uid = format!("{:08x}-55c4-4d3e-9b0a-0242ac120002", pod.len());
        let config = SandboxConfig {
            metadata: Some(Metadata { name: pod.to_owned(), uid: uid.clone(), namespace: "shop".to_owned() }),
            log_directory: self.directory.path().join("logs").display().to_string(),
            labels: [("name", pod), ("namespace", "shop"), ("uid", &uid)].map(label).into(),
            annotations: [("note".to_owned(), annotation.to_owned())].into(),
            linux: Some(LinuxConfig {
                security_context: Some(SecurityContext {
                    namespaces: Some(NamespaceOptions { network: if host_network { 2 } else { 0 } }),
                }),
            }),
        };
        let begun = Instant::now();
        loop {
            // The image may have been imported only now.
            match call("RunPodSandbox", RunRequest { config: Some(config.clone()) }) {
                Ok(Id { id }) => return id,
                Err(status) if begun.elapsed() < Duration::from_secs(30) => drop(status),
                Err(status) => panic!("no sandbox: {status}"),
            }
            sleep(Duration::from_millis(200));
        }
    }

    pub fn end_sandbox(&self, id: &str) {
        let its = || Id { id: id.to_owned() };
        call("StopPodSandbox", its()).map(|_: Nothing| ()).expect("it stops");
        call("RemovePodSandbox", its()).map(|_: Nothing| ()).expect("it goes");
    }

    /// What our client is told.
    pub fn sandboxes(&self, sought: &Sought) -> Vec<Sandbox> {
        let found = block_on(async { Runtimes::new(vec![PathBuf::from(SOCKET)]).sandboxes(sought).await });
        let found = found.expect("it answers");
        assert_eq!(found.lacking, None);
        found.sandboxes
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        for id in ctr("task ls -q").1.lines() {
            let _ = ctr(&format!("task rm -f {id}"));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
        // A shim that outlives its containerd keeps this `/run`, and with it the network namespaces that are named there.
        for process in in_this_mount_namespace() {
            let _ = kill_process(process, Signal::KILL);
        }
        let _ = attempt("umount -R --lazy /run");
    }
}

/// The processes that see what the calling thread mounted: those that it started, and theirs.
fn in_this_mount_namespace() -> Vec<Pid> {
    let ours = fs::read_link("/proc/thread-self/ns/mnt").expect("it is there");
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter_map(Pid::from_raw);
    let is_here = |process: &Pid| {
        fs::read_link(format!("/proc/{}/ns/mnt", process.as_raw_nonzero())).is_ok_and(|its| its == ours)
    };
    processes.filter(is_here).collect()
}

pub fn ctr(words: &str) -> (bool, String, String) {
    attempt(&format!("ctr --address {SOCKET} --namespace k8s.io {words}"))
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

/// A call that only a kubelet makes: our client has none that changes anything.
fn call<Q, A>(name: &'static str, request: Q) -> Result<A, tonic::Status>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    block_on(async {
        let connection = Connection::open(Path::new(SOCKET)).await.map_err(tonic::Status::unavailable)?;
        let mut client = tonic::client::Grpc::with_origin(connection, Uri::from_static("http://localhost"));
        client.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        let path = format!("/runtime.v1.RuntimeService/{name}").parse::<PathAndQuery>().expect("a path");
        let answer = client.unary(tonic::Request::new(request), path, ProstCodec::<Q, A>::default()).await?;
        Ok(answer.into_inner())
    })
}

/// Returns what a command prints inside the sandbox with [`ADDRESS`].
pub fn inside(place: &Path, command: &str) -> String {
    run(&format!("nsenter --net={} {command}", place.display()))
}

pub fn address() -> IpAddr {
    ADDRESS.parse().expect("an address")
}

#[derive(Clone, PartialEq, prost::Message)]
struct RunRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<SandboxConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SandboxConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Metadata>,
    #[prost(string, tag = "3")]
    log_directory: String,
    #[prost(map = "string, string", tag = "6")]
    labels: HashMap<String, String>,
    #[prost(map = "string, string", tag = "7")]
    annotations: HashMap<String, String>,
    #[prost(message, optional, tag = "8")]
    linux: Option<LinuxConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Metadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LinuxConfig {
    #[prost(message, optional, tag = "2")]
    security_context: Option<SecurityContext>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SecurityContext {
    #[prost(message, optional, tag = "1")]
    namespaces: Option<NamespaceOptions>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct NamespaceOptions {
    #[prost(int32, tag = "1")]
    network: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Nothing {}
