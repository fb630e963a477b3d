//! The chained CNI plugin on the real kernel: the agent with its cluster from a directory, the plugin called as a container runtime
//! calls it, and pods that send from their first millisecond on. Both families, both directions.
//!
//! All pods of a test are one namespace with a range of addresses, so that a new one costs nothing but its policies. Their status has no
//! address, as while the kubelet has not written it.
//!
//! `FIRST_PACKETS` says how many pods are started; figures are printed (`--nocapture`).

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is how a test says so")]
#![allow(clippy::indexing_slicing, reason = "a test that panics has failed, which is how a test says so")]

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::firewall::GATEWAY;
use super::places::{Place, Places, inside};
use crate::namespace::{in_new, own_run, run};

/// A node with one namespace for all its pods, and a host outside.
struct Node {
    directory: tempfile::TempDir,
    agent: Option<Child>,
    wires: Wires,
    _places: Places,
}

/// Whoever sends, and whoever counts what arrives.
struct Wires {
    /// Threads inside the pods' namespace and outside of it, that send at once when they are told so.
    pod: mpsc::Sender<Burst>,
    outside: mpsc::Sender<Burst>,
    /// Where packets of pods arrive, and where those to pods do.
    from_pods: UdpSocket,
    connections: TcpListener,
    to_pods: UdpSocket,
}

/// Sends for a millisecond from these addresses to those, one of each family, and tells when it is done.
struct Burst {
    from: [IpAddr; 2],
    to: [IpAddr; 2],
    done: mpsc::Sender<()>,
}

/// Packets that arrived, by family, IPv4 first: from the pod, and to it.
type Arrived = [[usize; 2]; 2];

const OUTSIDE: [&str; 2] = ["203.0.113.9", "2001:db8:113::9"];
const PORT: u16 = 9000;
/// Calls of the plugin at a time.
const TOGETHER: usize = 32;
const NOTHING: Arrived = [[0; 2]; 2];

/// The addresses of the pod of this number.
fn addresses(number: usize) -> [IpAddr; 2] {
    let (high, low) = (128 + number / 250, 1 + number % 250);
    [format!("10.244.{high}.{low}"), format!("fd00:10:244:80::{number:x}:1")].map(|text| text.parse().unwrap())
}

fn with_node(test: impl FnOnce(&mut Node) + Send) {
    in_new(|| {
        own_run();
        let all = [Place::new("job", "10.244.1.2", "fd00:10:244:1::2"), Place::new("outside", OUTSIDE[0], OUTSIDE[1])];
        let places = Places::new(all.into(), GATEWAY);
        run("ip route add 10.244.128.0/17 via 10.244.1.2 dev to-job onlink");
        run("ip -6 route add fd00:10:244:80::/64 via fd00:10:244:1::2 dev to-job onlink");
        run("ip -n job route add local 10.244.128.0/17 dev lo");
        run("ip -n job -6 route add local fd00:10:244:80::/64 dev lo");
        // Pods' addresses are on no device, and IPv6 has them used all the same only so.
        let job = File::open("/run/netns/job").unwrap();
        inside(&job, || fs::write("/proc/sys/net/ipv6/ip_nonlocal_bind", "1").unwrap());
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("manifests")).unwrap();
        symlink(env!("CARGO_BIN_EXE_sluice"), directory.path().join("sluice-cni")).unwrap();
        let mut node = Node { directory, agent: None, wires: Wires::new(), _places: places };
        node.put(
            "node",
            "{apiVersion: v1, kind: Node, metadata: {name: node1}, \
             spec: {podCIDRs: [10.244.0.0/16, 'fd00:10:244::/48']}}\n\
             ---\n{apiVersion: v1, kind: Namespace, metadata: {name: jobs}}\n\
             ---\n{apiVersion: v1, kind: Namespace, metadata: {name: open}}\n\
             ---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny-all, namespace: jobs}, \
             spec: {podSelector: {}, policyTypes: [Ingress, Egress]}}\n",
        );
        test(&mut node);
    });
}

/// A pod of this node, with the addresses of its number in its status or with none.
fn pod(namespace: &str, number: usize, has_status: bool) -> String {
    let [v4, v6] = addresses(number);
    let ips = if has_status { format!("{{ip: {v4}}}, {{ip: '{v6}'}}") } else { String::new() };
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: pod-{number}, namespace: {namespace}, labels: {{app: job}}}}, \
         spec: {{nodeName: node1, containers: [{{name: c}}]}}, status: {{phase: Pending, podIPs: [{ips}]}}}}\n"
    )
}

impl Node {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Puts a file where the agent looks, all at once.
    fn put(&self, name: &str, text: &str) {
        fs::write(self.path("new"), text).unwrap();
        fs::rename(self.path("new"), self.path("manifests").join(format!("{name}.yaml"))).unwrap();
    }

    fn start_agent(&mut self) {
        self.start_agent_with(&[self.argument("manifests", "manifests")]);
    }

    fn start_agent_on(&mut self, backend: &str) {
        self.start_agent_with(&[self.argument("manifests", "manifests"), format!("--netfilter={backend}")]);
    }

    /// With an API server that does not answer.
    fn start_agent_in_outage(&mut self, netfilter: &str) {
        // Nobody listens on this port.
        let server = "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
            contexts: [{name: c, context: {cluster: c, user: u}}]\n\
            clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\nusers: [{name: u, user: {}}]\n";
        fs::write(self.path("kubeconfig"), server).unwrap();
        self.start_agent_with(&[self.argument("kubeconfig", "kubeconfig"), netfilter.to_owned()]);
    }

    fn argument(&self, name: &str, file: &str) -> String {
        format!("--{name}={}", self.path(file).display())
    }

    fn start_agent_with(&mut self, more: &[String]) {
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        let agent = Command::new(env!("CARGO_BIN_EXE_sluice"))
            .args([
                "--run-router=false",
                "--run-service-proxy=false",
                "--enable-ipv6",
                "--netpol-cni",
                "--health-port=0",
            ])
            .args(["--hostname-override=node1", "-v=3"])
            .args([self.argument("state-dir", "state"), self.argument("socket", "sluice.sock")])
            .args(more)
            .stdin(Stdio::null())
            .stderr(log)
            .spawn();
        self.agent = Some(agent.unwrap());
    }

    fn kill_agent(&mut self) {
        let mut agent = self.agent.take().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    /// Ends the agent as a kubelet does.
    fn end_agent(&mut self) {
        let mut agent = self.agent.take().unwrap();
        run(&format!("kill -TERM {}", agent.id()));
        agent.wait().unwrap();
    }

    /// A call of the runtime that has begun.
    fn calling(&self, command: &str, namespace: &str, number: usize, more: Value) -> Child {
        let [v4, v6] = addresses(number);
        let mut input = json!({
            "cniVersion": "1.0.0", "name": "mynet", "type": "sluice-cni", "socket": self.path("cni.sock"),
            "prevResult": {
                "cniVersion": "1.0.0",
                "interfaces": [{"name": "eth0", "sandbox": "/run/netns/job"}],
                "ips": [{"address": format!("{v4}/24"), "interface": 0}, {"address": format!("{v6}/64"), "interface": 0}],
            },
        });
        input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let mut plugin = Command::new(self.path("sluice-cni"))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", format!("sandbox-{namespace}-{number}"))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", "/run/netns/job")
            .env("CNI_PATH", "/opt/cni/bin")
            .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=pod-{number}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        plugin.stdin.take().unwrap().write_all(input.to_string().as_bytes()).unwrap();
        plugin
    }

    /// Whether the call succeeded, and what it answered.
    fn called(&self, command: &str, namespace: &str, number: usize, more: Value) -> (bool, Value) {
        ended(self.calling(command, namespace, number, more))
    }

    fn starts(&self, namespace: &str, number: usize) {
        // The agent and its first rules may take longer on a busy machine than a runtime would wait.
        let (ok, answer) = self.called("ADD", namespace, number, json!({"timeoutMs": 25_000}));
        assert!(ok, "{answer}\n{}", fs::read_to_string(self.path("log")).unwrap_or_default());
    }

    fn ends(&self, namespace: &str, number: usize) {
        assert!(self.called("DEL", namespace, number, json!({})).0);
    }

    /// Waits for the file: a call is answered when the agent has taken it, a moment before it is written.
    fn until_announced(&self, pods: usize) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.announced() != pods {
            assert!(Instant::now() < deadline, "{} pods are announced, not {pods}", self.announced());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// The pods that are announced and not told by the cluster.
    fn announced(&self) -> usize {
        let text = fs::read_to_string(self.path("attachments.json")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap().as_array().unwrap().len()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            drop(agent.kill());
            drop(agent.wait());
        }
        if thread::panicking() {
            eprintln!("--- what the agent says\n{}", fs::read_to_string(self.path("log")).unwrap_or_default());
        }
    }
}

fn ended(plugin: Child) -> (bool, Value) {
    let output = plugin.wait_with_output().unwrap();
    let answer = String::from_utf8(output.stdout).unwrap();
    let answer = if answer.is_empty() { Value::Null } else { serde_json::from_str(&answer).unwrap() };
    (output.status.success(), answer)
}

impl Wires {
    fn new() -> Wires {
        let socket = |namespace: &str, port: u16| {
            let namespace = File::open(format!("/run/netns/{namespace}")).unwrap();
            let socket = inside(&namespace, || UdpSocket::bind(format!("[::]:{port}")).unwrap());
            socket.set_nonblocking(true).unwrap();
            socket
        };
        let outside = File::open("/run/netns/outside").unwrap();
        let connections = inside(&outside, || TcpListener::bind(format!("[::]:{PORT}")).unwrap());
        connections.set_nonblocking(true).unwrap();
        Wires {
            pod: sender("job"),
            outside: sender("outside"),
            from_pods: socket("outside", PORT),
            connections,
            to_pods: socket("job", PORT),
        }
    }

    /// The pod of this number begins, and does what it can in its first millisecond; so does somebody outside.
    fn begin(&self, number: usize) -> Arrived {
        let (pod, outside) = (addresses(number), OUTSIDE.map(|text| text.parse().unwrap()));
        let (done, is_done) = mpsc::channel();
        self.pod.send(Burst { from: pod, to: outside, done: done.clone() }).unwrap();
        self.outside.send(Burst { from: outside, to: pod, done }).unwrap();
        assert_eq!(is_done.iter().count(), 2);
        // Devices hand packets on at once.
        thread::sleep(Duration::from_millis(20));
        let mut arrived = [received(&self.from_pods), received(&self.to_pods)];
        while let Ok((_, from)) = self.connections.accept() {
            arrived[0][usize::from(from.ip().to_canonical().is_ipv6())] += 1;
        }
        arrived
    }

    /// Like `begin`, of a pod whose packets pass, on a machine that may have something else to do in that millisecond. Nothing is left under way.
    fn begin_until_all_arrive(&self, number: usize) -> Arrived {
        let all = |seen: &Arrived| seen.iter().flatten().all(|packets| *packets > 0);
        let begun = (0..50).fold(NOTHING, |seen, _| if all(&seen) { seen } else { sum(seen, self.begin(number)) });
        thread::sleep(Duration::from_millis(200));
        received(&self.from_pods);
        received(&self.to_pods);
        while self.connections.accept().is_ok() {}
        begun
    }
}

/// A thread in this namespace that sends when it is told so.
fn sender(namespace: &str) -> mpsc::Sender<Burst> {
    let namespace = File::open(format!("/run/netns/{namespace}")).unwrap();
    let (order, orders) = mpsc::channel::<Burst>();
    let (ready, is_ready) = mpsc::channel();
    thread::spawn(move || {
        inside(&namespace, || {
            ready.send(()).unwrap();
            for Burst { from, to, done } in orders {
                let sockets =
                    [0, 1].map(|one| (UdpSocket::bind((from[one], 0)).unwrap(), SocketAddr::new(to[one], PORT)));
                let until = Instant::now() + Duration::from_millis(1);
                while Instant::now() < until {
                    for (socket, to) in &sockets {
                        socket.send_to(b"first", to).unwrap();
                    }
                }
                // Refused at once or not at all.
                for (one, to) in [0, 1].map(|one| (from[one], SocketAddr::new(to[one], PORT))) {
                    drop(super::places::connecting(SocketAddr::new(one, 0), to));
                }
                done.send(()).unwrap();
            }
        });
    });
    is_ready.recv().unwrap();
    order
}

/// The packets that have come, by family.
fn received(socket: &UdpSocket) -> [usize; 2] {
    let mut count = [0; 2];
    while let Ok((_, from)) = socket.recv_from(&mut [0; 16]) {
        count[usize::from(from.ip().to_canonical().is_ipv6())] += 1;
    }
    count
}

fn sum(one: Arrived, other: Arrived) -> Arrived {
    [0, 1].map(|side| [0, 1].map(|family| one[side][family] + other[side][family]))
}

/// The middle of some durations, and the one that 99 of 100 do not exceed.
fn figures(mut took: Vec<Duration>) -> String {
    took.sort();
    let at = |part: usize| took[(took.len() - 1) * part / 100].as_secs_f64() * 1e3;
    format!("p50 {:.1} ms, p99 {:.1} ms of {}", at(50), at(99), took.len())
}

/// Starts these pods, each with its first millisecond, and ends them. Returns how long ADD took.
fn started(node: &Node, namespace: &str, numbers: std::ops::Range<usize>) -> (Arrived, Vec<Duration>) {
    let (mut arrived, mut took) = (NOTHING, Vec::new());
    for number in numbers {
        let begun = Instant::now();
        node.starts(namespace, number);
        took.push(begun.elapsed());
        arrived = sum(arrived, node.wires.begin(number));
        node.ends(namespace, number);
        // The removal of this pod must not delay the next ADD.
        thread::sleep(Duration::from_millis(100));
    }
    (arrived, took)
}

#[test]
fn a_pod_that_connects_in_its_first_millisecond_under_deny_all_gets_no_packet_through() {
    ["iptables", "nftables"].into_iter().for_each(pods_that_start_one_after_the_other);
}

fn pods_that_start_one_after_the_other(backend: &str) {
    let count = std::env::var("FIRST_PACKETS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    with_node(|node| {
        let pods = |namespace: &str, numbers: std::ops::Range<usize>| -> String {
            numbers.map(|number| format!("---\n{}", pod(namespace, number, false))).collect()
        };
        node.put("jobs", &pods("jobs", 10..10 + count));
        node.put("open", &pods("open", 2000..2020));
        (0..5).for_each(|number| node.put(&format!("late-{number}"), &pod("jobs", number, false)));
        node.start_agent_on(backend);
        // Until the agent has its first rules in the kernel.
        node.starts("open", 2000);

        // As it is without the plugin: the status comes when the pod runs.
        let mut late = NOTHING;
        for number in 0..5 {
            node.put(&format!("late-{number}"), &pod("jobs", number, true));
            late = sum(late, node.wires.begin(number));
        }
        assert!(late.iter().flatten().all(|packets| *packets > 0), "this test can fail: {late:?}");

        let (arrived, took) = started(node, "jobs", 10..10 + count);
        assert_eq!(arrived, NOTHING, "packets from and to {count} pods under deny-all");
        eprintln!("{backend}: without the plugin {late:?} packets of 5 pods, with it none of {count}");
        eprintln!("ADD of a pod under a policy, with the program's start: {}", figures(took));
        let (arrived, took) = started(node, "open", 2001..2020);
        assert!(arrived.iter().flatten().all(|packets| *packets >= 19), "no policy, no wait: {arrived:?}");
        eprintln!("ADD of a pod without a policy, with the program's start: {}", figures(took));
        let alone = (0..20).map(|_| {
            let begun = Instant::now();
            assert!(node.called("VERSION", "jobs", 10, json!({})).0);
            begun.elapsed()
        });
        eprintln!("VERSION, which asks nobody: {}", figures(alone.collect()));
        node.ends("open", 2000);
        node.until_announced(0);
    });
}

/// A short job must not lose its first connection because nobody knows its address yet.
#[test]
fn with_default_deny_a_pod_that_no_policy_selects_reaches_others_from_its_first_millisecond_on() {
    for backend in ["iptables", "nftables"] {
        with_node(|node| {
            let pods: String = (2000..2010).map(|number| format!("---\n{}", pod("open", number, false))).collect();
            node.put("open", &pods);
            let more = [node.argument("manifests", "manifests"), format!("--netfilter={backend}")];
            node.start_agent_with(&[&more[..], &["--netpol-default-deny".to_owned()]].concat());
            node.starts("open", 2000);
            // Without the plugin nobody has told of this one.
            assert_eq!(node.wires.begin(2009), NOTHING, "{backend}: an unknown pod is not closed");
            let (arrived, _) = started(node, "open", 2001..2009);
            assert!(
                arrived.iter().flatten().all(|packets| *packets >= 8),
                "{backend}: first packets are lost: {arrived:?}"
            );
            node.ends("open", 2000);
        });
    }
}

/// A drained node's pods come to another one all at once, and a runtime makes several sandboxes at a time.
#[test]
fn pods_that_start_together_under_deny_all_get_no_packet_through() {
    ["iptables", "nftables"].into_iter().for_each(pods_that_start_together);
}

fn pods_that_start_together(backend: &str) {
    let count = std::env::var("FIRST_PACKETS").ok().and_then(|text| text.parse().ok()).unwrap_or(40);
    with_node(|node| {
        let pods: String = (10..10 + count).map(|number| format!("---\n{}", pod("jobs", number, false))).collect();
        node.put("jobs", &pods);
        node.put("open", &pod("open", 2000, false));
        node.start_agent_on(backend);
        node.starts("open", 2000);
        let open = node.wires.begin_until_all_arrive(2000);
        assert!(open.iter().flatten().all(|packets| *packets > 0), "packets of a pod without a policy count: {open:?}");

        let (mut numbers, mut calls, mut took) = (10..10 + count, VecDeque::new(), Vec::new());
        let mut arrived = NOTHING;
        let all_begun = Instant::now();
        loop {
            while calls.len() < TOGETHER
                && let Some(number) = numbers.next()
            {
                let plugin = node.calling("ADD", "jobs", number, json!({"timeoutMs": 25_000}));
                calls.push_back((number, Instant::now(), plugin));
            }
            let Some((number, begun, plugin)) = calls.pop_front() else { break };
            let (ok, answer) = ended(plugin);
            assert!(ok, "pod {number}: {answer}");
            took.push(begun.elapsed());
            arrived = sum(arrived, node.wires.begin(number));
        }
        assert_eq!(arrived, NOTHING, "packets from and to {count} pods under deny-all");
        eprintln!(
            "{backend}: {count} pods started in {:.1} s, {TOGETHER} at a time",
            all_begun.elapsed().as_secs_f64()
        );
        eprintln!("ADD of a pod under a policy, one of {TOGETHER} at a time: {}", figures(took));
        (10..10 + count).for_each(|number| node.ends("jobs", number));
        node.ends("open", 2000);
        node.until_announced(0);
    });
}

#[test]
fn what_was_announced_outlives_an_agent_that_is_killed() {
    with_node(|node| {
        let pods: String = (10..14).map(|number| format!("---\n{}", pod("jobs", number, false))).collect();
        node.put("jobs", &pods);
        node.start_agent();
        node.starts("jobs", 10);
        node.kill_agent();
        assert_eq!(node.wires.begin(10), NOTHING, "rules stay");
        // A pod that is announced while there is no agent, one that is not known yet, and an agent that dies over it.
        let waiting = node.calling("ADD", "jobs", 11, json!({"timeoutMs": 25_000}));
        let unknown = node.calling("ADD", "jobs", 20, json!({"timeoutMs": 25_000}));
        node.start_agent();
        let (ok, answer) = ended(waiting);
        assert!(ok, "{answer}");
        node.kill_agent();
        node.put("late", &pod("jobs", 20, false));
        node.start_agent();
        let (ok, answer) = ended(unknown);
        assert!(ok, "{answer}");
        for number in [10, 11, 20] {
            assert_eq!(node.wires.begin(number), NOTHING, "pod {number}");
        }
        node.until_announced(3);
        // The old pod's sandbox ends late, when its address is another pod's.
        let (ok, answer) = node.called("CHECK", "jobs", 10, json!({}));
        assert!(ok && answer.is_null(), "{answer}");
        node.put("jobs", &pods.replace("name: pod-10,", "name: pod-12,"));
        node.ends("jobs", 10);
        node.put("late", &pod("jobs", 20, true));
        node.until_announced(1);
        assert_eq!(node.wires.begin(20), NOTHING);
    });
}

/// The result of the plugin before ours: these addresses, in place of those of the pod's number.
fn at(place: usize, timeout: Duration) -> Value {
    let [v4, v6] = addresses(place);
    json!({
        "timeoutMs": timeout.as_millis() as u64,
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "eth0", "sandbox": "/run/netns/job"}],
            "ips": [{"address": format!("{v4}/24"), "interface": 0}, {"address": format!("{v6}/64"), "interface": 0}],
        },
    })
}

#[test]
fn a_pod_gets_a_new_sandbox_after_a_restart_while_the_api_server_is_away() {
    for backend in ["iptables", "nftables"] {
        with_node(|node| {
            let backend = format!("--netfilter={backend}");
            let patient = Duration::from_secs(25);
            node.put("jobs", &format!("{}---\n{}", pod("jobs", 10, true), pod("jobs", 11, false)));
            node.put("open", &pod("open", 2000, true));
            node.start_agent_with(&[node.argument("manifests", "manifests"), backend.clone()]);
            node.starts("jobs", 10);
            node.starts("open", 2000);
            node.end_agent();

            node.start_agent_in_outage(&backend);
            for (namespace, number) in [("jobs", 10), ("open", 2000)] {
                let (ok, answer) = node.called("CHECK", namespace, number, at(number, patient));
                assert!(ok, "nothing about a pod that runs has changed: {answer}");
            }
            let (ok, answer) = node.called("ADD", "jobs", 10, at(60, patient));
            assert!(ok, "{answer}");
            let (ok, answer) = node.called("CHECK", "jobs", 10, at(60, patient));
            assert!(ok, "{answer}");
            assert_eq!(node.wires.begin(60), NOTHING, "the pod is isolated at its new address");
            assert_eq!(node.wires.begin(10), NOTHING, "and at its former one");
            let (ok, answer) = node.called("ADD", "open", 2000, at(2060, patient));
            assert!(ok, "{answer}");
            let open = node.wires.begin_until_all_arrive(2060);
            assert!(open.iter().flatten().all(|packets| *packets > 0), "no policy: {open:?}");
            // The kernel has never judged this one, so it may be older than what the kernel holds.
            assert_waits(node, ("jobs", 11), 61, "at no former address");

            // The cluster is back, and tells the new addresses.
            node.kill_agent();
            let told = |namespace, number, place| {
                let [[old4, old6], [new4, new6]] = [number, place].map(addresses);
                pod(namespace, number, true)
                    .replace(&old4.to_string(), &new4.to_string())
                    .replace(&old6.to_string(), &new6.to_string())
            };
            node.put("jobs", &format!("{}---\n{}", told("jobs", 10, 60), pod("jobs", 11, false)));
            node.put("open", &told("open", 2000, 2060));
            node.start_agent();
            let (ok, answer) = node.called("ADD", "jobs", 11, at(61, patient));
            assert!(ok, "{answer}");
            assert_eq!([60, 61].map(|place| node.wires.begin(place)), [NOTHING; 2]);
        });
    }
}

/// Asserts that ADD of this pod at another place is refused with these words.
fn assert_waits(node: &Node, (namespace, number): (&str, usize), place: usize, words: &str) {
    // Where the agent's word comes late, the plugin has another one for it.
    let (ok, answer) = (0..5)
        .map(|_| node.called("ADD", namespace, number, at(place, Duration::from_secs(2))))
        .find(|(ok, answer)| *ok || !answer.to_string().contains("did not answer in time"))
        .expect("the agent answers");
    assert!(!ok && answer["details"].as_str().unwrap().contains(words), "{answer}");
}

/// The kernel is newer than what the agent remembers.
#[test]
fn a_pod_that_policies_isolate_since_the_last_known_state_was_written_does_not_start_as_an_open_one() {
    for (backend, words) in [("iptables", "than were remembered"), ("nftables", "is not what was remembered")] {
        with_node(|node| {
            let netfilter = format!("--netfilter={backend}");
            node.put("open", &pod("open", 2000, true));
            node.start_agent_on(backend);
            node.starts("open", 2000);
            let open = node.wires.begin_until_all_arrive(2000);
            assert!(open.iter().flatten().all(|packets| *packets > 0), "no policy: {open:?}");
            node.end_agent();
            run(&format!("cp -a {} {}", node.path("state").display(), node.path("older").display()));
            node.put(
                "policy",
                "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny-all, namespace: open}, \
                 spec: {podSelector: {}, policyTypes: [Ingress, Egress]}}\n",
            );
            node.start_agent_on(backend);
            node.starts("open", 2000);
            assert_eq!(node.wires.begin(2000), NOTHING, "it is isolated");
            node.end_agent();
            fs::remove_dir_all(node.path("state")).unwrap();
            fs::rename(node.path("older"), node.path("state")).unwrap();
            node.start_agent_in_outage(&netfilter);
            assert_waits(node, ("open", 2000), 2060, words);
            assert_eq!(node.wires.begin(2000), NOTHING, "it stays isolated");
        });
    }
}

#[test]
fn by_a_table_of_an_earlier_version_a_pod_that_no_policy_selects_waits_in_an_outage_and_others_do_not() {
    with_node(|node| {
        node.put("jobs", &pod("jobs", 10, true));
        node.put("open", &pod("open", 2000, true));
        node.start_agent_on("nftables");
        node.starts("jobs", 10);
        node.starts("open", 2000);
        node.end_agent();
        for map in ["pod_ids4", "pod_ids6"] {
            run(&format!("nft delete map inet sluice_policy {map}"));
        }
        node.start_agent_in_outage("--netfilter=nftables");
        let (ok, answer) = node.called("ADD", "jobs", 10, at(60, Duration::from_secs(25)));
        assert!(ok, "{answer}");
        assert_eq!(node.wires.begin(60), NOTHING, "the pod is isolated at its new address");
        assert_waits(node, ("open", 2000), 2060, "which proves nothing");
        // The cluster is back.
        node.kill_agent();
        node.start_agent_on("nftables");
        let (ok, answer) = node.called("ADD", "open", 2000, at(2060, Duration::from_secs(25)));
        assert!(ok, "{answer}");
        assert!(run("nft list map inet sluice_policy pod_ids4").contains(&addresses(2060)[0].to_string()));
    });
}

#[test]
fn without_an_agent_the_runtime_is_to_try_again_later_and_a_pod_may_go() {
    with_node(|node| {
        node.put("jobs", &pod("jobs", 10, false));
        let soon = |more: Value| {
            let mut entry = json!({"timeoutMs": 100});
            entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            entry
        };
        let (ok, answer) = node.called("ADD", "jobs", 10, soon(json!({})));
        assert_eq!((ok, &answer["code"]), (false, &json!(11)), "{answer}");
        assert!(answer["details"].as_str().unwrap().contains("cni.sock"), "{answer}");
        let (ok, answer) = node.called("ADD", "jobs", 10, soon(json!({"whenUnreachable": "allow"})));
        assert_eq!((ok, &answer["ips"][0]["address"]), (true, &json!("10.244.128.11/24")), "{answer}");
        for command in ["DEL", "GC", "STATUS"] {
            let (ok, answer) = node.called(command, "jobs", 10, json!({"cni.dev/valid-attachments": []}));
            assert!(ok && answer.is_null(), "{command}: {answer}");
        }
        let (ok, answer) = node.called("VERSION", "jobs", 10, json!({}));
        assert!(ok && answer["supportedVersions"].as_array().unwrap().contains(&json!("1.1.0")), "{answer}");
        node.start_agent();
        node.starts("jobs", 10);
        // `whenUnreachable` does not override a refusal by the agent.
        // It does where the agent's word comes late.
        let (ok, answer) = (0..10)
            .map(|_| node.called("ADD", "jobs", 11, soon(json!({"whenUnreachable": "allow"}))))
            .find(|(ok, _)| !ok)
            .expect("a refusal is not overridden");
        assert_eq!((ok, &answer["code"]), (false, &json!(11)), "{answer}");
        assert!(answer["details"].as_str().unwrap().contains("jobs/pod-11 runs on this node"), "{answer}");
        node.ends("jobs", 10);
    });
}
