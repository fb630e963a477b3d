//! Direct server return by two agents: one on the node that a client outside comes to, and one on the node of the pod, which is a sandbox of a real
//! containerd. A way of its own leads from the pod's node to the client, so an answer that passes the first node is seen there. Both run the firewall: a
//! pod on the first node is a client whose egress policies hold, and the pod's ingress policies hold for what comes through tunnels.

#![allow(clippy::indexing_slicing, reason = "a test that panics has failed, which is how a test says so")]

#[path = "direct_server_return/announced.rs"]
mod announced;
#[path = "direct_server_return/clients.rs"]
mod clients;
#[path = "direct_server_return/container.rs"]
mod container;
#[path = "direct_server_return/lines.rs"]
mod lines;
#[path = "direct_server_return/overlays.rs"]
mod overlays;
#[path = "direct_server_return/shortly.rs"]
mod shortly;
#[path = "direct_server_return/steps.rs"]
mod steps;
#[path = "direct_server_return/takeover.rs"]
mod takeover;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use rustix::net::sockopt;
use sluice::container_runtime::Sought;

use crate::containerd::{self, ADDRESS, ADDRESS_V6, Containerd, SOCKET, beside_containerd_of_both_families};
use crate::ipvs::in_use;
use crate::namespace::{attempt, run};
use crate::native::places::inside;

const SERVICES: [&str; 2] = ["203.0.113.7", "2001:db8:113::7"];
const PODS: [&str; 2] = [ADDRESS, ADDRESS_V6];
const PORT: u16 = 8080;
/// A pod of the client's node.
const CLIENT_POD: [&str; 2] = ["10.244.2.8", "fd00:10:244:2::8"];
/// Bytes of an answer, after the address at which the pod was asked.
const LONG: usize = 2 << 20;
const PATIENCE: Duration = Duration::from_secs(3);
/// While two agents start: they keep both processors of the emulator busy, and a packet that is lost in a queue is sent again after a second. What a
/// start takes away a [`Watch`] sees.
const MORE_PATIENCE: Duration = Duration::from_secs(20);

/// The node of the pod is the namespace of the calling thread; the other node and the client are two others.
fn ways() {
    for (name, here, there, far) in [
        ("director", ["192.0.2.1/24", "2001:db8:2::1/64"], ["192.0.2.2/24", "2001:db8:2::2/64"], "node"),
        ("client", ["198.51.101.1/24", "2001:db8:101::1/64"], ["198.51.101.10/24", "2001:db8:101::10/64"], "node"),
    ] {
        run(&format!("ip netns add {name}"));
        run(&format!("ip -n {name} link set lo up"));
        run(&format!("ip link add to-{name} type veth peer name {far} netns {name}"));
        run(&format!("ip link set to-{name} up"));
        run(&format!("ip -n {name} link set {far} up"));
        here.iter().for_each(|here| drop(run(&format!("ip address add {here} dev to-{name}{}", nodad(here)))));
        there
            .iter()
            .for_each(|there| drop(run(&format!("ip -n {name} address add {there} dev {far}{}", nodad(there)))));
    }
    run("ip -n director link add client type veth peer name director netns client");
    for (name, device, addresses) in [
        ("director", "client", ["198.51.100.2/24", "2001:db8:100::2/64"]),
        ("client", "director", ["198.51.100.10/24", "2001:db8:100::10/64"]),
    ] {
        run(&format!("ip -n {name} link set {device} up"));
        addresses
            .iter()
            .for_each(|one| drop(run(&format!("ip -n {name} address add {one} dev {device}{}", nodad(one)))));
    }
    // A pod of the client's node.
    run("ip netns add shut");
    run("ip -n shut link set lo up");
    run("ip -n director link add pods type veth peer name eth0 netns shut");
    for (name, device, addresses) in [
        ("director", "pods", ["10.244.2.1/24", "fd00:10:244:2::1/64"]),
        ("shut", "eth0", ["10.244.2.8/24", "fd00:10:244:2::8/64"]),
    ] {
        run(&format!("ip -n {name} link set {device} up"));
        addresses
            .iter()
            .for_each(|one| drop(run(&format!("ip -n {name} address add {one} dev {device}{}", nodad(one)))));
    }
    run("ip -n shut route add default via 10.244.2.1");
    run("ip -n shut -6 route add default via fd00:10:244:2::1");
    let settings = || {
        for (setting, value) in
            [("ipv4/ip_forward", "1"), ("ipv4/conf/all/rp_filter", "0"), ("ipv6/conf/all/forwarding", "1")]
        {
            fs::write(format!("/proc/sys/net/{setting}"), value).expect("a setting of the namespace");
        }
    };
    settings();
    ["director", "client", "shut"].iter().for_each(|name| inside(&there(name), settings));
    // The client comes to the director, and answers come by the other way.
    let [v4, v6] = SERVICES;
    run(&format!("ip -n client route add {v4} via 198.51.100.2"));
    run(&format!("ip -n client route add {v6} via 2001:db8:100::2"));
    run("ip -n director route add 10.244.1.0/24 via 192.0.2.1");
    run("ip -n director route add fd00:10:244:1::/64 via 2001:db8:2::1");
    run("ip route add 10.244.2.0/24 via 192.0.2.2");
    run("ip route add fd00:10:244:2::/64 via 2001:db8:2::2");
    run("ip route add default via 198.51.101.10");
    run("ip -6 route add default via 2001:db8:101::10");
}

/// An address of IPv6 is not to wait until it is known that nobody else has it.
fn nodad(address: &str) -> &'static str {
    if address.contains(':') { " nodad" } else { "" }
}

fn there(name: &str) -> File {
    File::open(format!("/run/netns/{name}")).expect("the namespace")
}

fn parsed(addresses: [&str; 2]) -> [IpAddr; 2] {
    addresses.map(|address| address.parse().expect("an address"))
}

/// Bytes that the director has received by a device.
fn received(device: &str) -> u64 {
    let text = inside(&there("director"), || fs::read_to_string("/proc/thread-self/net/dev").expect("it is there"));
    let line = text.lines().find_map(|line| line.trim().strip_prefix(&format!("{device}:"))).expect("the device");
    line.split_whitespace().next().and_then(|bytes| bytes.parse().ok()).expect("a number")
}

/// A program of the pod: it says at which address it was asked, and a lot behind that.
struct Server {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(place: &Path) -> Server {
        let pod = File::open(place).expect("the pod's namespace");
        // Of both families.
        let listener = inside(&pod, || TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).expect("the port is free"));
        listener.set_nonblocking(true).expect("a listener need not wait");
        let ends = Arc::new(AtomicBool::new(false));
        let is_over = ends.clone();
        let thread = std::thread::spawn(move || {
            let mut answering: Vec<(TcpStream, JoinHandle<()>)> = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                let Ok((mut stream, _)) = listener.accept() else {
                    sleep(Duration::from_millis(5));
                    continue;
                };
                answering.retain(|(_, thread)| !thread.is_finished());
                let same = stream.try_clone().expect("a descriptor");
                // A client may be gone, with its address: the next one does not wait for that.
                let thread = std::thread::spawn(move || {
                    stream.set_write_timeout(Some(MORE_PATIENCE)).expect("a time");
                    let here = stream.local_addr().expect("it is connected").ip().to_canonical();
                    let answer = format!("{here:<32}{}", "x".repeat(LONG));
                    let _ = stream.write_all(answer.as_bytes());
                    // The other descriptor stays open.
                    let _ = stream.shutdown(Shutdown::Write);
                });
                answering.push((same, thread));
            }
            // Whoever still waits for a client keeps the namespaces of this test, and their virtual services keep the module: so does a
            // connection that is closed with something left to send, but for one that is reset.
            for (stream, thread) in answering {
                let _ = sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
                let _ = stream.shutdown(Shutdown::Both);
                drop(stream);
                thread.join().expect("it ends");
            }
        });
        Server { ends, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.take().expect("it was started").join().expect("it ends");
    }
}

/// Has the client outside come to the pod's own node, or to the director.
fn comes_to(is_own: bool) {
    let gateways = if is_own { ["198.51.101.1", "2001:db8:101::1"] } else { ["198.51.100.2", "2001:db8:100::2"] };
    for (service, gateway) in SERVICES.iter().zip(gateways) {
        run(&format!("ip -n client route replace {service} via {gateway}"));
    }
}

/// The address at which the pod is asked when a client outside asks at an address of the Service, or why it has no whole answer.
fn asked(service: IpAddr, patience: Duration) -> Result<IpAddr, String> {
    asked_by("client", service, patience)
}

/// The same of a client elsewhere.
fn asked_by(client: &str, service: IpAddr, patience: Duration) -> Result<IpAddr, String> {
    let to = SocketAddr::new(service, PORT);
    let begun = Instant::now();
    let failed = |what: &str, error: std::io::Error| format!("{what} {to} after {:?}: {error}", begun.elapsed());
    let connected = inside(&there(client), || TcpStream::connect_timeout(&to, patience));
    let mut stream = connected.map_err(|error| failed("connecting to", error))?;
    stream.set_read_timeout(Some(patience)).expect("a time");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|error| failed("reading from", error))?;
    let is_whole = answer.len() == LONG + 32;
    let here = answer.get(..32).filter(|_| is_whole).and_then(|text| text.trim().parse().ok());
    here.ok_or_else(|| format!("an answer of {} bytes from {to}", answer.len()))
}

/// Sees what changes in the kernel: addresses, routes and rules of the pod and of both nodes, the pod's links, and the director's virtual services.
struct Watch {
    monitors: Vec<(&'static str, Child, File)>,
    ends: Arc<AtomicBool>,
    tables: Option<JoinHandle<BTreeSet<String>>>,
}

impl Watch {
    fn start(pod: &Path) -> Watch {
        let pod = format!("nsenter --net={}", pod.display());
        let monitor = |(name, there, what): (&'static str, &str, &str)| {
            let file = tempfile::tempfile().expect("a file");
            let mut words = there.split_whitespace().chain(what.split_whitespace());
            let mut command = Command::new(words.next().expect("a program"));
            let output = file.try_clone().expect("a file");
            let process = command.args(words).stdin(Stdio::null()).stdout(output).spawn().expect("it starts");
            (name, process, file)
        };
        let of_node = "ip monitor address route rule";
        let places = [
            ("pod", pod.as_str(), "ip monitor link address route rule"),
            ("pod's node", "", of_node),
            ("director", "ip netns exec director", of_node),
        ];
        let ends = Arc::new(AtomicBool::new(false));
        let is_over = ends.clone();
        let director = there("director");
        let tables = std::thread::spawn(move || {
            inside(&director, || {
                let mut seen = BTreeSet::new();
                while !is_over.load(Ordering::Relaxed) {
                    let table = fs::read_to_string("/proc/thread-self/net/ip_vs").expect("this kernel has IPVS");
                    // Of a destination its address, how it gets packets, and its weight: no numbers of connections.
                    let line = |line: &str| line.split_whitespace().take(4).collect::<Vec<_>>().join(" ");
                    seen.insert(table.lines().map(line).collect::<Vec<_>>().join("\n"));
                    sleep(Duration::from_millis(2));
                }
                seen
            })
        });
        let watch = Watch { monitors: places.into_iter().map(monitor).collect(), ends, tables: Some(tables) };
        // The monitors listen.
        sleep(Duration::from_secs(1));
        watch
    }

    /// Returns what was seen.
    fn end(mut self) -> Vec<String> {
        self.stop();
        let mut seen = Vec::new();
        for (name, _, file) in &mut self.monitors {
            let mut text = String::new();
            file.rewind().expect("a file");
            file.read_to_string(&mut text).expect("it is text");
            // The link-local address of the sandbox's device is in use once the kernel knows that nobody else has it, which is nothing that an agent does.
            let is_kernels_own = |line: &str| line.contains("fe80::") || line.trim_start().starts_with("valid_lft");
            seen.extend(text.lines().filter(|line| !is_kernels_own(line)).map(|line| format!("{name}: {line}")));
        }
        let tables = self.tables.take().expect("it was started").join().expect("it ends");
        if tables.len() != 1 {
            seen.extend(tables.into_iter().map(|table| format!("virtual services: {table}")));
        }
        seen
    }

    fn stop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        for (_, process, _) in &mut self.monitors {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What marks packets on the director, as both packet filters show it: sets, maps and rules, without counters.
fn marking() -> String {
    let of = |command: &str| attempt(&format!("ip netns exec director {command}")).1;
    let shown =
        ["nft -s list ruleset", "iptables-save -t mangle", "ip6tables-save -t mangle", "ipset save"].map(of).concat();
    // Times, numbers of packets, and which process owns a table.
    let is_state =
        |line: &&str| !line.starts_with(['#', ':']) && !line.contains("flags owner") && !line.contains("progname");
    let mut lines: Vec<&str> = shown.lines().filter(is_state).collect();
    lines.retain(|line| line.to_lowercase().contains("dsr") || line.contains("mark"));
    lines.join("\n")
}

/// Agents, each on its node.
struct Nodes {
    directory: tempfile::TempDir,
    agents: [Option<Child>; 3],
    filter: &'static str,
    /// What the agents are told of routes.
    routing: Vec<String>,
}

const POD_NODE: usize = 0;
const DIRECTOR: usize = 1;
/// Where there is a second one.
const SECOND: usize = 2;
const PROGRAM: &str = env!("CARGO_BIN_EXE_sluice");

impl Nodes {
    fn new(filter: &'static str) -> Nodes {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("manifests")).expect("writable");
        let routing = vec!["--run-router=false".to_owned()];
        let nodes = Nodes { directory, agents: [None, None, None], filter, routing };
        nodes.put_nodes(&[1, 2]);
        nodes.put_pods();
        nodes.put_service(true);
        nodes
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        fs::write(self.path("new"), text).expect("writable");
        fs::rename(self.path("new"), self.path("manifests").join(format!("{name}.yaml"))).expect("writable");
    }

    fn put_service(&self, dsr: bool) {
        let annotations = if dsr { "kube-router.io/service.dsr: tunnel" } else { "" };
        let slice = |(family, address): (&str, &str)| {
            format!(
                "---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: {family}, metadata: {{name: web-{family}, \
                 namespace: shop, labels: {{kubernetes.io/service-name: web}}}}, ports: [{{name: http, port: {PORT}}}], \
                 endpoints: [{{addresses: [\"{address}\"], nodeName: node1, conditions: {{ready: true}}}}]}}\n"
            )
        };
        let slices = [("IPv4", ADDRESS), ("IPv6", ADDRESS_V6)].map(slice).concat();
        let [v4, v6] = SERVICES;
        self.put(
            "service",
            &format!(
                "{{apiVersion: v1, kind: Service, metadata: {{name: web, namespace: shop, annotations: {{{annotations}}}}}, \
                 spec: {{clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, \"fd00:10:96::a\"], ipFamilies: [IPv4, IPv6], \
                 externalIPs: [{v4}, \"{v6}\"], ports: [{{name: http, port: {PORT}}}]}}}}\n{slices}"
            ),
        );
    }

    fn put_nodes(&self, numbers: &[usize]) {
        let node = |number: &usize| {
            let pods = format!("10.244.{number}.0/24, \"fd00:10:244:{number}::/64\"");
            let address = |address: String| format!("{{type: InternalIP, address: \"{address}\"}}");
            let addresses = [format!("192.0.2.{number}"), format!("2001:db8:2::{number}")].map(address).join(", ");
            format!(
                "---\n{{apiVersion: v1, kind: Node, metadata: {{name: node{number}}}, \
                 spec: {{podCIDR: 10.244.{number}.0/24, podCIDRs: [{pods}]}}, status: {{addresses: [{addresses}]}}}}\n"
            )
        };
        self.put("nodes", &numbers.iter().map(node).collect::<String>());
    }

    fn put_pods(&self) {
        self.put_these_pods(&[("web", "node1", PODS), ("shut", "node2", CLIENT_POD)]);
    }

    fn put_these_pods(&self, pods: &[(&str, &str, [&str; 2])]) {
        let pod = |(name, node, [v4, v6]): &(&str, &str, [&str; 2])| {
            let uid = format!("{:08x}-55c4-4d3e-9b0a-0242ac120002", name.len());
            format!(
                "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop, uid: {uid}, labels: {{app: {name}}}}}, \
                 spec: {{nodeName: {node}, containers: [{{name: main}}]}}, \
                 status: {{phase: Running, podIP: {v4}, podIPs: [{{ip: {v4}}}, {{ip: \"{v6}\"}}]}}}}\n"
            )
        };
        let pods: String = pods.iter().map(pod).collect();
        self.put("pods", &format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: shop}}}}\n{pods}"));
    }

    /// A policy for pods with this label: what it allows, as `ingress: […]` or `egress: […]`. Without a label there is none.
    fn put_policy(&self, app: &str, kind: &str, rules: &str) {
        let text = format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: only, namespace: shop}}, \
             spec: {{podSelector: {{matchLabels: {{app: {app}}}}}, policyTypes: [{kind}], {}: [{rules}]}}}}\n",
            kind.to_lowercase()
        );
        self.put("policy", if app.is_empty() { "" } else { &text });
    }

    /// Waits until a client is served at all addresses of the Service, or at none.
    fn until_served(&self, client: &str, what: &str, is_served: bool) {
        let begun = Instant::now();
        for service in parsed(SERVICES) {
            loop {
                let found = asked_by(client, service, PATIENCE);
                if found == Ok(service) && is_served || found.is_err() && !is_served {
                    println!("{}: {what}: {client} at {service}: {found:?}", self.filter);
                    break;
                }
                assert!(begun.elapsed() < Duration::from_secs(60), "{what}: {client}: {found:?}\n{}", self.shown());
                sleep(Duration::from_millis(100));
            }
        }
        // An answer that was on its way when the rules changed is none.
        let again: Vec<bool> = parsed(SERVICES).map(|one| asked_by(client, one, PATIENCE).is_ok()).into();
        assert_eq!(again, [is_served; 2], "{what}: {client}\n{}", self.shown());
    }

    /// Policies hold for who asks through a tunnel, and for who answers.
    fn policies_hold(&self) {
        self.until_served("shut", "without policies", true);
        self.put_policy("shut", "Egress", "");
        self.until_served("shut", "egress to nobody", false);
        self.until_served("client", "another pod's egress policy", true);
        self.put_policy("shut", "Egress", "{to: [{podSelector: {matchLabels: {app: web}}}]}");
        self.until_served("shut", "egress to the pod", true);
        self.put_policy("web", "Ingress", &format!("{{ports: [{{port: {PORT}}}]}}"));
        for is_own in [false, true] {
            comes_to(is_own);
            self.until_served("client", "ingress at the port, which no tunnel has", false);
        }
        let nodes = ["192.0.2.0/24", "10.244.1.1/32", "2001:db8:2::/64", "fd00:10:244:1::1/128"];
        let block = |cidr: &str| format!("{{ipBlock: {{cidr: \"{cidr}\"}}}}");
        self.put_policy("web", "Ingress", &format!("{{from: [{}]}}", nodes.map(block).join(", ")));
        for is_own in [true, false] {
            comes_to(is_own);
            self.until_served("client", "ingress of nodes", true);
        }
        self.put_policy("", "", "");
        self.put_cluster_policy("shut", "egress", "to: [{pods: {podSelector: {matchLabels: {app: web}}}}]");
        self.until_served("shut", "the cluster denies egress to the pod", false);
        self.until_served("client", "the cluster denies another pod's egress", true);
        self.put_cluster_policy("web", "ingress", "from: [{pods: {podSelector: {matchLabels: {app: nobody}}}}]");
        self.until_served("client", "the cluster denies ingress of pods, which may be in a tunnel", false);
        self.put("cluster-policy", "");
        self.until_served("shut", "without policies again", true);
        self.until_served("client", "without policies again", true);
    }

    /// A policy of the Admin tier that denies these peers something of pods with this label.
    fn put_cluster_policy(&self, app: &str, direction: &str, peers: &str) {
        let peers = peers.replace("{pods: {", "{pods: {namespaceSelector: {}, ");
        self.put(
            "cluster-policy",
            &format!(
                "{{apiVersion: policy.networking.k8s.io/v1beta1, kind: ClusterNetworkPolicy, metadata: {{name: only}}, spec: {{tier: Admin, priority: 1, \
                 subject: {{pods: {{namespaceSelector: {{}}, podSelector: {{matchLabels: {{app: {app}}}}}}}}}, {direction}: [{{action: Deny, {peers}}}]}}}}\n"
            ),
        );
    }

    fn start(&mut self, number: usize) {
        let log = File::options().create(true).append(true).open(self.log_of(number)).expect("writable");
        let mut command = match number {
            DIRECTOR | SECOND => {
                // Each node has a `/run/netns` of its own: the names in that of the other one are no pods of this one, whose start would take
                // their tunnels away.
                let mut command = Command::new("ip");
                let own = "mount -t tmpfs netns /run/netns && exec \"$0\" \"$@\"";
                let there = if number == SECOND { "second" } else { "director" };
                command.args(["netns", "exec", there, "sh", "-c", own, PROGRAM]);
                command
            }
            _ => Command::new(PROGRAM),
        };
        let agent =
            command.args(self.flags(number, SOCKET)).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        self.agents[number] = Some(agent.expect("it starts"));
    }

    fn log_of(&self, number: usize) -> PathBuf {
        self.path(&format!("node{}.log", number + 1))
    }

    /// The flags of an agent that finds the container runtime at this socket.
    fn flags(&self, number: usize, runtime: &str) -> Vec<String> {
        let name = format!("node{}", number + 1);
        let argument = |flag: &str, file: String| format!("--{flag}={}", self.path(&file).display());
        let mut flags = self.routing.clone();
        flags.extend(
            [
                "--service-external-ip-range=203.0.113.0/24,2001:db8:113::/64",
                "--enable-ipv6",
                "--health-port=0",
                "-v=3",
            ]
            .map(str::to_owned),
        );
        flags.extend([
            format!("--netfilter={}", self.filter),
            format!("--hostname-override={name}"),
            format!("--runtime-endpoint=unix://{runtime}"),
            "--enable-direct-server-return".to_owned(),
            argument("manifests", "manifests".to_owned()),
            argument("state-dir", format!("{name}-state")),
            argument("socket", format!("{name}.sock")),
        ]);
        flags
    }

    fn kill(&mut self, number: usize) {
        let mut agent = self.agents[number].take().expect("it was started");
        agent.kill().expect("it runs");
        agent.wait().expect("it ends");
        fs::remove_file(self.path(&format!("node{}.sock", number + 1))).expect("it answered there");
    }

    /// A process that ends when the agent of this node, counted from 1, is ready, or after so many seconds.
    fn waits_for(&self, node: usize, seconds: u64) -> Child {
        let socket = format!("--socket={}", self.path(&format!("node{node}.sock")).display());
        let mut command = Command::new(PROGRAM);
        command.args(["status", &format!("--wait={seconds}"), &socket]).stdin(Stdio::null()).stdout(Stdio::null());
        command.spawn().expect("it starts")
    }

    /// Waits until both agents are ready, which takes a minute with iptables and a router on a busy machine; returns how long that took.
    fn until_ready(&self) -> Duration {
        let begun = Instant::now();
        for node in [1, 2] {
            while !self.path(&format!("node{node}.sock")).exists() {
                assert!(begun.elapsed() < Duration::from_secs(120), "nobody answers: {}", self.shown());
                sleep(Duration::from_millis(100));
            }
            let status = self.waits_for(node, 180).wait().expect("it is ours");
            assert!(status.success(), "node {node} is not ready after {:?}: {}", begun.elapsed(), self.shown());
        }
        begun.elapsed()
    }

    /// Starts both agents; asks all the while, until both are ready. Nothing may change in the kernel.
    fn start_again(&mut self, pod: &Path) {
        let watch = Watch::start(pod);
        let before = marking();
        self.start(POD_NODE);
        self.start(DIRECTOR);
        let sockets = || [1, 2].iter().all(|node| self.path(&format!("node{node}.sock")).exists());
        let begun = Instant::now();
        let (mut waiting, mut times) = (Vec::new(), Vec::new());
        while waiting.is_empty()
            || waiting.iter_mut().any(|it: &mut Child| it.try_wait().expect("it is ours").is_none())
        {
            if waiting.is_empty() && sockets() {
                waiting = [1, 2].map(|node| self.waits_for(node, 180)).into();
            }
            for service in parsed(SERVICES) {
                let begun = Instant::now();
                assert_eq!(asked(service, MORE_PATIENCE), Ok(service), "while they start: {}", self.shown());
                times.push(begun.elapsed());
            }
            assert!(begun.elapsed() < Duration::from_secs(120), "they are not ready: {}", self.shown());
        }
        for process in &mut waiting {
            assert!(process.wait().expect("it is ours").success(), "not ready: {}", self.shown());
        }
        let seen = watch.end();
        assert_eq!(seen, [""; 0], "a start changes something: {}", self.shown());
        assert_eq!(marking(), before, "a start changes what marks packets");
        println!(
            "{}: {} times served while both started, at most after {:?}",
            self.filter,
            times.len(),
            times.iter().max()
        );
    }

    /// What the agents say, and the director's kernel.
    fn shown(&self) -> String {
        let log = |name: &str| fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default();
        let of = |command: &str| attempt(&format!("ip netns exec director {command}")).1;
        let commands =
            ["ipvsadm -Ln", "ip rule", "ip route show table 78", "ip -6 route show table 78", "nft list ruleset"];
        format!("{}\n{}\n{}", log("node1"), log("node2"), commands.map(of).join("\n"))
    }

    /// Waits until a client outside is served at these addresses of the pod; returns how long that took.
    fn until(&self, what: &str, expected: [&str; 2]) -> Duration {
        let begun = Instant::now();
        for (service, expected) in parsed(SERVICES).into_iter().zip(parsed(expected)) {
            loop {
                let found = asked(service, PATIENCE);
                if found == Ok(expected) {
                    break;
                }
                assert!(begun.elapsed() < Duration::from_secs(180), "{what}: {found:?}\n{}", self.shown());
                sleep(Duration::from_millis(100));
            }
        }
        begun.elapsed()
    }

    /// Answers do not pass the director.
    fn answers_pass_by(&self) {
        for service in parsed(SERVICES) {
            let before = ["node", "client"].map(received);
            assert_eq!(asked(service, PATIENCE), Ok(service));
            let after = ["node", "client"].map(received);
            let [answers, questions] = [0, 1].map(|index| after[index] - before[index]);
            println!(
                "{}: the director received {questions} bytes of the client and {answers} of the pod's node for an answer of {LONG}",
                self.filter
            );
            assert!(answers < 20_000, "{answers} bytes came from the pod's node: answers pass the director");
        }
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for agent in self.agents.iter_mut().flatten() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

/// A sandbox with a program in it: as a kubelet and the network's plugin make it.
fn start_pod(runtime: &Containerd) -> (String, PathBuf, Server) {
    let (id, place) = start_sandbox(runtime, "web", PODS);
    let server = Server::start(&place);
    (id, place, server)
}

fn start_sandbox(runtime: &Containerd, name: &str, addresses: [&str; 2]) -> (String, PathBuf) {
    let id = runtime.start_sandbox(name, false, "");
    let found = runtime.sandboxes(&Sought::All);
    let its = parsed(addresses);
    let pod = found.iter().find(|one| its.iter().all(|address| one.addresses.contains(address))).expect("it runs");
    let place = pod.places.first().expect("it is somewhere").clone();
    containerd::inside(&place, "ip route add default via 10.244.1.1");
    containerd::inside(&place, "ip -6 route add default via fd00:10:244:1::1");
    (id, place)
}

/// Agents and a containerd keep both processors of an emulator busy.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Loads the modules, and waits until no other of these tests runs.
fn alone() -> MutexGuard<'static, ()> {
    for module in ["ip_vs", "dummy", "ipip", "ip6_tunnel"] {
        let (loaded, _, error) = attempt(&format!("modprobe {module}"));
        assert!(loaded, "this kernel has no module {module}; run this test in the guest of the lab: {error}");
    }
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn a_pod_of_containerd_answers_a_client_of_another_node_past_that_node() {
    let _alone = alone();
    for filter in ["nftables", "iptables"] {
        let _in_use = in_use();
        beside_containerd_of_both_families(|runtime| {
            ways();
            let mut nodes = Nodes::new(filter);
            let (first, _, server) = start_pod(runtime);
            nodes.start(POD_NODE);
            nodes.start(DIRECTOR);
            println!("{filter}: served after {:?}", nodes.until("with direct server return", SERVICES));
            nodes.answers_pass_by();
            // A sandbox that is made anew, with the same addresses.
            drop(server);
            runtime.end_sandbox(&first);
            let (second, place, server) = start_pod(runtime);
            let took = nodes.until("with another sandbox", SERVICES);
            println!("{filter}: served again after {took:?}");
            assert!(took < Duration::from_secs(8), "2 s, and the emulator's share: {took:?}");
            // Neither agent is needed for what stands, and both find it as it is.
            nodes.kill(POD_NODE);
            nodes.kill(DIRECTOR);
            for service in parsed(SERVICES) {
                assert_eq!(asked(service, PATIENCE), Ok(service), "without agents");
            }
            nodes.start_again(&place);
            nodes.policies_hold();
            nodes.put_service(false);
            println!("{filter}: with NAT after {:?}", nodes.until("without the annotation", PODS));
            runtime.wait("the tunnels go", || !containerd::inside(&place, "ip -o link show").contains("kube-tunnel"));
            nodes.put_service(true);
            println!("{filter}: through the tunnel after {:?}", nodes.until("with the annotation", SERVICES));
            drop(server);
            runtime.end_sandbox(&second);
        });
    }
}
