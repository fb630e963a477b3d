//! The source guard on the real kernel: the agent with its cluster from a directory, the plugin called as a container runtime calls it, and
//! a pod with a raw socket on the bridge of the others. Both packet filters of the firewall, both families.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is how a test says so")]
#![allow(clippy::indexing_slicing, reason = "a test that panics has failed, which is how a test says so")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::firewall_link_local::scope_of;
use super::frame::{self, BROADCAST, Frame, LinkAddress};
use super::places::inside;
use crate::namespace::{attempt, in_new, own_run, run};

/// The pod with a raw socket, and those that it would like to be.
const PODS: [&str; 3] = ["db", "web", "plain"];
const NETFILTERS: [&str; 2] = ["nftables", "iptables"];
const OUTSIDE: [&str; 2] = ["203.0.113.9", "2001:db8:113::9"];
const PORT: u16 = 9000;

/// A node with an agent, and pods on one bridge.
struct Node {
    directory: tempfile::TempDir,
    netfilter: &'static str,
    agent: Option<Child>,
}

fn number(pod: &str) -> u8 {
    2 + PODS.iter().position(|one| *one == pod).unwrap() as u8
}

fn v4(pod: &str) -> IpAddr {
    IpAddr::from([10, 244, 1, number(pod)])
}

fn v6(pod: &str) -> IpAddr {
    IpAddr::from([0xfd00, 0x10, 0x244, 1, 0, 0, 0, u16::from(number(pod))])
}

fn link_local(pod: &str) -> IpAddr {
    IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, u16::from(number(pod))])
}

fn mac(pod: &str) -> LinkAddress {
    [2, 0, 0, 0, 1, number(pod)]
}

fn spelled(address: LinkAddress) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

fn namespace(pod: &str) -> File {
    File::open(format!("/run/netns/{pod}")).unwrap()
}

fn with_each(test: impl Fn(&mut Node) + Send + Sync) {
    for netfilter in NETFILTERS {
        in_new(|| {
            own_run();
            test(&mut Node::new(netfilter));
        });
    }
}

impl Node {
    fn new(netfilter: &'static str) -> Node {
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        run("ip link add kube-bridge type bridge mcast_snooping 0");
        run("ip link set kube-bridge address 02:00:00:00:01:01 up");
        run("ip addr add 10.244.1.1/24 dev kube-bridge");
        run("ip -6 addr add fd00:10:244:1::1/64 dev kube-bridge nodad");
        PODS.iter().for_each(|pod| attach(pod));
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("manifests")).unwrap();
        symlink(env!("CARGO_BIN_EXE_sluice"), directory.path().join("sluice-cni")).unwrap();
        let node = Node { directory, netfilter, agent: None };
        let mut objects = "{apiVersion: v1, kind: Node, metadata: {name: node1}, \
             spec: {podCIDRs: [10.244.1.0/24, 'fd00:10:244:1::/64']}}\n\
             ---\n{apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n"
            .to_owned();
        for pod in PODS {
            objects.push_str(&format!(
                "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {pod}, namespace: shop, labels: {{app: {pod}}}}}, spec: \
                 {{nodeName: node1, containers: [{{name: c}}]}}, status: {{phase: Running, podIPs: [{{ip: {}}}, {{ip: '{}'}}]}}}}\n",
                v4(pod),
                v6(pod)
            ));
        }
        node.put("objects", &objects);
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Puts a file where the agent looks, all at once.
    fn put(&self, name: &str, text: &str) {
        fs::write(self.path("new"), text).unwrap();
        fs::rename(self.path("new"), self.path("manifests").join(format!("{name}.yaml"))).unwrap();
    }

    fn start_agent(&mut self, guard: bool) {
        let argument = |name: &str, file: &str| format!("--{name}={}", self.path(file).display());
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        let mut agent = Command::new(env!("CARGO_BIN_EXE_sluice"));
        agent
            .args(["--run-router=false", "--run-service-proxy=false", "--enable-ipv6", "--netpol-cni", "-v=3"])
            .args(["--hostname-override=node1", "--metrics-port=20241"])
            .arg(format!("--netfilter={}", self.netfilter))
            .args([
                argument("manifests", "manifests"),
                argument("state-dir", "state"),
                argument("socket", "sluice.sock"),
            ])
            .stdin(Stdio::null())
            .stderr(log);
        if guard {
            agent.arg("--netpol-source-guard");
        }
        self.agent = Some(agent.spawn().unwrap());
    }

    fn kill_agent(&mut self) {
        let mut agent = self.agent.take().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    /// A call of the runtime for the pod on the link of this one.
    fn called(&self, command: &str, pod: (&str, &str), addresses: &[IpAddr]) {
        let (succeeded, said) = self.answered(command, pod, addresses, 25_000);
        assert!(succeeded, "{command}: {said}");
    }

    /// The same with a bound in milliseconds. Returns whether it succeeded, and what the plugin said.
    fn answered(
        &self,
        command: &str,
        (link, container): (&str, &str),
        addresses: &[IpAddr],
        bound: u32,
    ) -> (bool, String) {
        let ips: Vec<Value> = addresses.iter().map(|one| json!({"address": one.to_string(), "interface": 2})).collect();
        let input = json!({
            "cniVersion": "1.0.0", "name": "mynet", "type": "sluice-cni", "socket": self.path("cni.sock"), "timeoutMs": bound,
            "prevResult": {
                "cniVersion": "1.0.0",
                "interfaces": [
                    {"name": "kube-bridge", "mac": "02:00:00:00:01:01"},
                    {"name": format!("to-{link}"), "mac": "02:00:00:00:02:01"},
                    {"name": "eth0", "mac": spelled(mac(link)), "sandbox": format!("/run/netns/{link}")},
                ],
                "ips": ips,
            },
        });
        let mut plugin = Command::new(self.path("sluice-cni"))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", container)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", format!("/run/netns/{link}"))
            .env("CNI_PATH", "/opt/cni/bin")
            .env("CNI_ARGS", format!("K8S_POD_NAMESPACE=shop;K8S_POD_NAME={link}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        plugin.stdin.take().unwrap().write_all(input.to_string().as_bytes()).unwrap();
        let output = plugin.wait_with_output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn add(&self, pod: &str) {
        self.called("ADD", (pod, pod), &[v4(pod), v6(pod)]);
    }

    /// Returns the agent's answer on a port.
    fn asked(&self, port: u16, path: &str) -> String {
        let mut answer = String::new();
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let until = Instant::now() + Duration::from_secs(30);
        while !holds() {
            assert!(Instant::now() < until, "{what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            drop(agent.kill());
            drop(agent.wait());
        }
        if std::thread::panicking() {
            eprintln!("--- what the agent says\n{}", fs::read_to_string(self.path("log")).unwrap_or_default());
            eprintln!("{}", table());
        }
    }
}

/// Makes a pod's link to the bridge.
fn attach(pod: &str) {
    if !PathBuf::from(format!("/run/netns/{pod}")).exists() {
        run(&format!("ip netns add {pod}"));
        run(&format!("ip -n {pod} link set lo up"));
    }
    run(&format!("ip link add to-{pod} type veth peer name eth0 netns {pod}"));
    run(&format!("ip link set to-{pod} master kube-bridge up"));
    let within = |words: &str| run(&format!("ip -n {pod} {words}"));
    within(&format!("link set eth0 address {} up", spelled(mac(pod))));
    within(&format!("addr add {}/24 dev eth0", v4(pod)));
    within(&format!("-6 addr add {}/64 dev eth0 nodad", v6(pod)));
    within(&format!("-6 addr add {}/64 dev eth0 nodad", link_local(pod)));
    within("route add default via 10.244.1.1");
    within("-6 route add default via fd00:10:244:1::1");
}

/// Contents of the tables; empty without one.
fn table() -> String {
    ["bridge", "inet", "arp"].map(|family| attempt(&format!("nft -a list table {family} sluice_sources")).1).concat()
}

/// A packet of UDP from the pod with the raw socket to `web`.
fn udp(source: IpAddr) -> Frame {
    let to = if source.is_ipv4() { v4("web") } else { v6("web") };
    Frame {
        from: mac("db"),
        to: mac("web"),
        tags: Vec::new(),
        source: SocketAddr::new(source, 1024),
        destination: SocketAddr::new(to, PORT),
        payload: b"from db".to_vec(),
    }
}

/// An ARP message with this sender, about the address of `web`: an answer to `web` alone, or a request to everybody.
fn arp(is_answer: bool, ether: LinkAddress, sender: [u8; 4]) -> Vec<u8> {
    let to = if is_answer { mac("web") } else { BROADCAST };
    let mut bytes = [to, mac("db")].concat();
    bytes.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, if is_answer { 2 } else { 1 }]);
    bytes.extend(ether);
    bytes.extend(sender);
    bytes.extend(mac("web"));
    bytes.extend([10, 244, 1, number("web")]);
    bytes
}

/// A message of neighbour discovery with this source and target.
fn neighbor(kind: u8, source: IpAddr, target: IpAddr) -> Vec<u8> {
    let octets = |address: IpAddr| match address {
        IpAddr::V6(address) => address.octets(),
        IpAddr::V4(_) => panic!("{address} is of IPv4"),
    };
    let mut bytes = [mac("web"), mac("db")].concat();
    bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 24, 58, 255]);
    bytes.extend(octets(source));
    bytes.extend(octets(v6("web")));
    bytes.extend([kind, 0, 0, 0, 0x60, 0, 0, 0]);
    bytes.extend(octets(target));
    bytes
}

const UNSPECIFIED: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
/// Types of messages: advertisement of a router, solicitation and advertisement of a neighbour, redirect.
const ROUTER: u8 = 134;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;

/// Frames that a pod may send.
fn sound() -> Vec<(&'static str, Vec<u8>)> {
    let [a, b, c, d] = [10, 244, 1, number("db")];
    let dhcp = Frame {
        to: BROADCAST,
        source: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 68),
        destination: SocketAddr::new(Ipv4Addr::BROADCAST.into(), 67),
        ..udp(v4("db"))
    };
    vec![
        ("IPv4", udp(v4("db")).bytes()),
        ("IPv6", udp(v6("db")).bytes()),
        ("IPv4 with a tag of VLAN 0", Frame { tags: vec![0], ..udp(v4("db")) }.bytes()),
        ("link-local", udp(link_local("db")).bytes()),
        ("another link-local address", udp("fe80::abc".parse().unwrap()).bytes()),
        ("DHCP", dhcp.bytes()),
        ("ARP request", arp(false, mac("db"), [a, b, c, d])),
        ("ARP probe", arp(false, mac("db"), [0; 4])),
        ("ARP answer", arp(true, mac("db"), [a, b, c, d])),
        ("duplicate address detection", neighbor(SOLICITATION, UNSPECIFIED, v6("db"))),
        ("the same, link-local", neighbor(SOLICITATION, UNSPECIFIED, link_local("db"))),
        ("neighbour solicitation", neighbor(SOLICITATION, v6("db"), v6("web"))),
        ("neighbour advertisement", neighbor(ADVERTISEMENT, v6("db"), v6("db"))),
        ("the same, link-local", neighbor(ADVERTISEMENT, link_local("db"), link_local("db"))),
    ]
}

fn forged() -> Vec<(&'static str, Vec<u8>)> {
    let [a, b, c, d] = [10, 244, 1, number("plain")];
    let outside = OUTSIDE.map(|text| text.parse().unwrap());
    let with = |tags: &[u16]| Frame { tags: tags.into(), ..udp(v4("plain")) }.bytes();
    vec![
        ("another pod's IPv4 address", udp(v4("plain")).bytes()),
        ("another pod's IPv6 address", udp(v6("plain")).bytes()),
        ("an IPv4 address from outside", udp(outside[0]).bytes()),
        ("an IPv6 address from outside", udp(outside[1]).bytes()),
        ("another pod's link address", Frame { from: mac("plain"), ..udp(v4("db")) }.bytes()),
        ("nobody's link address", Frame { from: [2, 9, 9, 9, 9, 9], ..udp(v6("db")) }.bytes()),
        ("another pod's, behind a tag", with(&[0])),
        ("another pod's, behind two tags", with(&[0, 0])),
        ("ARP answer for another pod", arp(true, mac("db"), [a, b, c, d])),
        ("ARP request of another pod", arp(false, mac("db"), [a, b, c, d])),
        ("ARP answer with another link address", arp(true, mac("plain"), [a, b, c, number("db")])),
        ("advertisement for another pod", neighbor(ADVERTISEMENT, v6("db"), v6("plain"))),
        ("the same from a link-local address", neighbor(ADVERTISEMENT, link_local("db"), v6("plain"))),
        ("duplicate of another pod's address", neighbor(SOLICITATION, UNSPECIFIED, v6("plain"))),
        ("router advertisement", neighbor(ROUTER, link_local("db"), UNSPECIFIED)),
        ("redirect", neighbor(REDIRECT, link_local("db"), v6("plain"))),
    ]
}

/// The groups that a bridge does not forward (IEEE 802.1Q 8.6.3), by the last byte: of bridges while none speaks STP, of LACP, of other
/// protocols, of LLDP.
const GROUPS: [u8; 4] = [0, 2, 3, 0x0e];

fn group(last: u8) -> LinkAddress {
    [0x01, 0x80, 0xc2, 0, 0, last]
}

/// Returns whether the bridge takes `db` for the owner of another pod's link address when it sends with that to this group.
fn moves(last: u8) -> bool {
    let stolen = || {
        let all = run("bridge fdb show br kube-bridge");
        all.lines().any(|line| line.starts_with(&spelled(mac("plain"))) && line.contains("dev to-db"))
    };
    let own = Frame { from: mac("plain"), ..udp(v4("plain")) };
    inside(&namespace("plain"), || frame::send(scope_of("eth0"), &own.bytes()));
    let is_its_own = (0..1000).any(|_| {
        std::thread::sleep(Duration::from_millis(5));
        !stolen()
    });
    assert!(is_its_own, "the pod itself has sent last");
    let forged = Frame { from: mac("plain"), to: group(last), ..udp(v6("db")) };
    inside(&namespace("db"), || frame::send(scope_of("eth0"), &forged.bytes()));
    (0..6).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        stolen()
    })
}

/// Returns whether the host takes a packet with this source that `db` sends to this group.
fn taken_by_host(last: u8, source: IpAddr) -> bool {
    let host: IpAddr = if source.is_ipv4() { [10, 244, 1, 1].into() } else { "fd00:10:244:1::1".parse().unwrap() };
    let socket = UdpSocket::bind((host, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(30))).unwrap();
    let frame = Frame { to: group(last), destination: socket.local_addr().unwrap(), ..udp(source) };
    inside(&namespace("db"), || frame::send(scope_of("eth0"), &frame.bytes()));
    socket.recv(&mut [0; 64]).is_ok()
}

/// Returns whether the host takes the sender of an ARP request for its neighbour that `db` sends with another pod's address to this group.
fn remembered_by_host(last: u8) -> bool {
    run("ip neigh flush dev to-db");
    let mut request = arp(false, mac("db"), [10, 244, 1, number("plain")]);
    request[..6].copy_from_slice(&group(last));
    request[38..42].copy_from_slice(&[10, 244, 1, 1]);
    inside(&namespace("db"), || frame::send(scope_of("eth0"), &request));
    (0..6).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        run("ip neigh show dev to-db").contains(&v4("plain").to_string())
    })
}

/// Returns whether a frame that `db` sends arrives at `web`.
fn arrives(bytes: &[u8]) -> bool {
    let (from, at) = (namespace("db"), namespace("web"));
    let heard = inside(&at, frame::Capture::open);
    inside(&from, || frame::send(scope_of("eth0"), bytes));
    let begun = Instant::now();
    // Devices hand frames on at once.
    while begun.elapsed() < Duration::from_millis(60) {
        if heard.next().is_some_and(|heard| heard.get(14..).is_some_and(|heard| bytes.ends_with(heard))) {
            return true;
        }
    }
    false
}

fn assert_guarded(said: &str) {
    for (what, bytes) in forged() {
        assert!(!arrives(&bytes), "{said}: {what}");
    }
    for (what, bytes) in sound() {
        // The machine may be busy.
        assert!((0..50).any(|_| arrives(&bytes)), "{said}: {what}");
    }
    for last in GROUPS {
        assert!(!moves(last), "{said}: another pod's link address in a frame to {:02x?}", group(last));
        assert!(!remembered_by_host(last), "{said}: an ARP request of another pod to {:02x?}", group(last));
        for source in [v4("plain"), v6("plain")] {
            assert!(!taken_by_host(last, source), "{said}: a packet of {source} in a frame to {:02x?}", group(last));
        }
    }
}

/// A connection between two pods that know nothing of each other.
fn connects(from: &str, to: &str) -> bool {
    for address in [v4(to), v6(to)] {
        let listener = inside(&namespace(to), || TcpListener::bind((address, 0)).unwrap());
        let port = listener.local_addr().unwrap().port();
        inside(&namespace(to), || run("ip neigh flush dev eth0"));
        let reached = inside(&namespace(from), || {
            run("ip neigh flush dev eth0");
            TcpStream::connect_timeout(&SocketAddr::new(address, port), Duration::from_secs(5)).is_ok()
        });
        drop(listener);
        if !reached {
            return false;
        }
    }
    true
}

#[test]
fn a_pod_sends_with_the_addresses_that_it_was_given_and_no_others() {
    with_each(|node| {
        for last in GROUPS {
            assert!(
                (0..50).any(|_| moves(last)),
                "without a guard, another pod's link address in a frame to {:02x?}",
                group(last)
            );
        }
        node.start_agent(true);
        node.add("web");
        node.add("plain");
        for (what, bytes) in sound().into_iter().chain(forged()) {
            assert!((0..50).any(|_| arrives(&bytes)), "without a guard of the port, {what}");
        }
        for last in GROUPS {
            let passes = [v4("plain"), v6("plain")].map(|source| (0..50).any(|_| taken_by_host(last, source)));
            assert_eq!(passes, [true, true], "without a guard of the port, {last}");
        }
        // A frame to the first group comes by the bridge, which does not speak STP.
        for last in &GROUPS[1..] {
            assert!((0..50).any(|_| remembered_by_host(*last)), "without a guard of the port, ARP to {last}");
        }
        node.until("the pod that is not guarded is told", || {
            node.asked(20241, "/metrics").contains("\nsluice_source_guard_unguarded_pods 1\n")
                && node.asked(20244, "/readyz").contains("1 pods of this node are not guarded")
        });
        node.add("db");
        assert_guarded("guarded");
        assert!(connects("db", "web") && connects("web", "db") && connects("plain", "db"));
        let metrics = node.asked(20241, "/metrics");
        for reason in ["link-address", "ipv4", "arp", "ipv6", "neighbor", "vlan-tags"] {
            let name = format!("sluice_source_guard_dropped_frames_total{{reason=\"{reason}\"}} ");
            let count =
                metrics.lines().find_map(|line| line.strip_prefix(&name)).and_then(|text| text.parse::<u64>().ok());
            assert!(count > Some(0), "{reason}: {metrics}");
        }
        assert!(metrics.contains("\nsluice_source_guard_ports 3\n"), "{metrics}");
        node.until("nobody is unguarded", || !node.asked(20244, "/readyz").contains("not guarded"));
    });
}

#[test]
fn the_guard_outlives_the_agent_and_ends_with_the_pod() {
    with_each(|node| {
        node.start_agent(true);
        PODS.iter().for_each(|pod| node.add(pod));
        let elements = || -> Vec<String> {
            table().lines().filter(|line| line.contains("to-")).map(|line| line.trim().to_owned()).collect()
        };
        let handles = || table().lines().filter(|line| line.contains("chain")).map(str::to_owned).collect::<Vec<_>>();
        let before = (elements(), handles());
        let (own, another) = (udp(v4("db")).bytes(), udp(v4("plain")).bytes());
        let heard = inside(&namespace("web"), frame::Capture::open);
        let (from, mut sent, mut passed) = (namespace("db"), 0, 0);
        let mut stream = |duration: Duration| {
            let until = Instant::now() + duration;
            while Instant::now() < until {
                inside(&from, || [&own, &another].iter().for_each(|bytes| frame::send(scope_of("eth0"), bytes)));
                sent += 1;
                std::thread::sleep(Duration::from_millis(1));
                while let Some(heard) = heard.next() {
                    assert!(!another.ends_with(&heard[14..]), "another pod's address passed");
                    passed += usize::from(own.ends_with(&heard[14..]));
                }
            }
        };
        stream(Duration::from_millis(200));
        node.kill_agent();
        stream(Duration::from_millis(500));
        node.start_agent(true);
        stream(Duration::from_secs(2));
        node.until("the next run is ready", || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, 20244)).is_ok()
                && node.asked(20244, "/readyz").contains("\r\n\r\nOK")
        });
        stream(Duration::from_millis(200));
        // The last frames may be on their way, on a busy machine.
        let late = Instant::now() + Duration::from_secs(10);
        while passed < sent && Instant::now() < late {
            if let Some(heard) = heard.next() {
                assert!(!another.ends_with(&heard[14..]), "another pod's address passed");
                passed += usize::from(own.ends_with(&heard[14..]));
            }
        }
        assert_eq!((sent, (elements(), handles())), (passed, before), "no frame is lost, and nothing is made anew");
        assert_guarded("after kill -9");

        // Another pod has a link of the same name.
        node.called("DEL", ("db", "db"), &[]);
        node.until("what is gone is not guarded", || !table().contains("to-db"));
        let late = IpAddr::from([10, 244, 1, 99]);
        node.called("ADD", ("db", "late"), &[late]);
        assert!((0..50).any(|_| arrives(&udp(late).bytes())) && !arrives(&udp(v4("db")).bytes()));
        // A late call about the former sandbox.
        node.called("DEL", ("db", "db"), &[]);
        assert!(!arrives(&udp(v4("db")).bytes()), "it says nothing of this one");

        // A link that goes while no agent hears of it.
        node.kill_agent();
        run("ip link delete to-db");
        attach("db");
        // Kernels before 6.2 rename a link only while it is down.
        run("ip link set to-db down");
        run("ip link set to-db name to-other");
        run("ip link set to-other up");
        node.start_agent(true);
        node.until("elements of a missing link go", || !table().contains("to-db") && table().contains("to-web"));
        assert!((0..50).any(|_| arrives(&udp(v4("db")).bytes())), "a pod that was not announced is not guarded");

        node.kill_agent();
        node.start_agent(false);
        node.until("without the flag there is no table", || table().is_empty());
        node.until("and no file", || !node.path("guarded-ports.json").exists());
    });
}

#[test]
fn a_file_that_makes_no_sense_opens_no_port_that_the_kernel_guards() {
    with_each(|node| {
        node.start_agent(true);
        PODS.iter().for_each(|pod| node.add(pod));
        let file = node.path("guarded-ports.json");
        let whole = fs::read_to_string(&file).unwrap();
        let is_ready = |node: &Node| {
            TcpStream::connect((Ipv4Addr::LOCALHOST, 20244)).is_ok()
                && node.asked(20244, "/readyz").contains("\r\n\r\nOK")
        };
        let damaged = [Some(whole.replace(&spelled(mac("db")), "odd")), Some("[{".to_owned()), None];
        for damaged in damaged {
            node.kill_agent();
            match damaged {
                Some(damaged) => fs::write(&file, damaged).unwrap(),
                None => fs::remove_file(&file).unwrap(),
            }
            node.start_agent(true);
            node.until("the next run is ready", || is_ready(node));
            assert_guarded("by what the kernel has");
            assert!(node.asked(20241, "/metrics").contains("\nsluice_source_guard_ports 3\n"));
            let written: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
            assert_eq!(written.as_array().unwrap().len(), 3, "{written}");
        }
        // A new sandbox has the port; nothing else about it differs.
        node.called("ADD", ("db", "again"), &[v4("db"), v6("db")]);
        assert!(fs::read_to_string(&file).unwrap().contains("again"), "whose the port is has been written");
        node.called("DEL", ("db", "again"), &[]);
        node.until("a port of a known attachment ends with it", || !table().contains("to-db"));
        assert!(table().contains("to-web"), "others stay");
    });
}

#[test]
fn a_pod_does_not_start_while_its_port_cannot_be_written_down_and_cleanup_leaves_no_table() {
    with_each(|node| {
        node.put(
            "policy",
            "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: shut, namespace: shop}, \
             spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress]}}\n",
        );
        node.start_agent(true);
        node.add("web");
        // The new file cannot be made.
        fs::create_dir(node.path("guarded-ports.new")).unwrap();
        // Where the agent's word comes late, the plugin has another one for it.
        let asked = (0..10).map(|_| node.answered("ADD", ("db", "db"), &[v4("db"), v6("db")], 1500));
        let (succeeded, said) = asked
            .into_iter()
            .find(|(succeeded, said)| *succeeded || !said.contains("did not answer in time"))
            .expect("the agent answers");
        assert!(!succeeded && said.contains("guarded ports cannot be written"), "{said}");
        assert!(node.asked(20244, "/readyz").contains("guarded ports cannot be written"));
        fs::remove_dir(node.path("guarded-ports.new")).unwrap();
        node.add("db");
        node.until("it is no trouble any more", || !node.asked(20244, "/readyz").contains("cannot be written"));
        node.until("policies are in force", || attempt("nft list table inet sluice_frames").0);

        node.kill_agent();
        let argument = |name: &str, file: &str| format!("--{name}={}", node.path(file).display());
        let output = Command::new(env!("CARGO_BIN_EXE_sluice"))
            .env("KUBE_ROUTER_CNI_CONF_FILE", node.path("10-sluice.conflist"))
            .args(["--cleanup-config".to_owned(), argument("state-dir", "state"), argument("socket", "sluice.sock")])
            .output()
            .unwrap();
        let tables = run("nft list tables");
        assert!(!tables.contains("sluice"), "{tables}\n{}", String::from_utf8_lossy(&output.stderr));
        assert!(!node.path("guarded-ports.json").exists());
    });
}

/// Connection tracking takes a packet of a pod to itself, with another pod's address as source, for the beginning of a connection;
/// what the pod sends to that other one counts as its answer.
#[test]
fn a_pod_makes_no_connection_by_which_its_packets_would_pass_as_answers() {
    with_each(|node| {
        node.put(
            "policy",
            "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: shut, namespace: shop}, \
             spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}}\n",
        );
        node.start_agent(true);
        node.add("web");
        let ports = |source: u16, destination: u16, frame: Frame| Frame {
            source: SocketAddr::new(frame.source.ip(), source),
            destination: SocketAddr::new(frame.destination.ip(), destination),
            ..frame
        };
        let passes = |port: u16, is_v6: bool| {
            let (own, its) = if is_v6 { (v6("db"), v6("web")) } else { (v4("db"), v4("web")) };
            let to_itself = Frame { to: [2, 0, 0, 0, 1, 1], destination: SocketAddr::new(own, 0), ..udp(its) };
            let _listening = inside(&namespace("db"), || UdpSocket::bind((own, port)).unwrap());
            assert!(!arrives(&ports(port + 1, PORT, udp(own)).bytes()), "the policy is in force");
            inside(&namespace("db"), || frame::send(scope_of("eth0"), &ports(PORT, port, to_itself).bytes()));
            std::thread::sleep(Duration::from_millis(50));
            arrives(&ports(port, PORT, udp(own)).bytes())
        };
        let is_open = [false, true].map(|is_v6| (0..5).any(|attempt| passes(3000 + 2 * attempt, is_v6)));
        assert_eq!(is_open, [true, true], "without a guard of the port");
        node.add("db");
        let is_open = [false, true].map(|is_v6| (0..3).any(|attempt| passes(4000 + 2 * attempt, is_v6)));
        assert_eq!(is_open, [false, false], "guarded");
    });
}
