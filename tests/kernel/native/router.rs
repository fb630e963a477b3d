//! The whole program as a router: nodes on one link, in namespaces of their own, with their Nodes from a directory.

#![allow(clippy::indexing_slicing, reason = "a test that panics has failed, which is how a test says so")]

mod node_address;
pub mod overlay_guard;
mod source_dest_check;
mod way;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::namespace::{attempt, in_new, own_run, run};

/// Namespaces have names that no other test has; they go when the test ends, however it ends.
pub struct Cluster {
    prefix: String,
    directory: tempfile::TempDir,
    count: usize,
    agents: BTreeMap<usize, Child>,
    /// More flags for single nodes.
    pub flags: BTreeMap<usize, Vec<String>>,
    /// Agents find no programs.
    lacks_programs: bool,
    /// Variables of the agents' environment.
    environment: Vec<(String, String)>,
}

const FLAGS: &[&str] = &[
    "--run-service-proxy=false",
    "--run-firewall=false",
    "--enable-ipv6",
    "--enable-overlay=false",
    "--health-port=0",
    "--gobgp-admin-port=0",
    "-v=1",
];

impl Cluster {
    /// So many nodes, each with a pod that answers behind it. No agent runs yet.
    pub fn new(count: usize) -> Cluster {
        let prefix = format!("rt{}", std::process::id());
        let directory = tempfile::tempdir().expect("a directory");
        let cluster = Cluster {
            prefix,
            directory,
            count,
            agents: BTreeMap::new(),
            flags: BTreeMap::new(),
            lacks_programs: false,
            environment: Vec::new(),
        };
        own_run();
        fs::create_dir_all("/run/netns").expect("a directory of names");
        run("ip link add wire type bridge");
        run("ip link set wire up");
        for number in 1..=count {
            cluster.connect(number);
        }
        let nodes: Vec<String> = (1..=count).map(node).collect();
        cluster.write(&nodes);
        cluster
    }

    pub fn name(&self, number: usize) -> String {
        format!("{}n{number}", self.prefix)
    }

    fn connect(&self, number: usize) {
        let name = self.name(number);
        run(&format!("ip netns add {name}"));
        run(&format!("ip link add port{number} type veth peer name eth0 netns {name}"));
        run(&format!("ip link set port{number} master wire up"));
        // Nobody has the link-local addresses already, and asking for a second would lose the first packets.
        run(&format!("ip netns exec {name} sysctl -qw net.ipv6.conf.eth0.accept_dad=0"));
        for command in [
            "link set lo up".to_owned(),
            "link set eth0 up".to_owned(),
            format!("address add 192.0.2.{number}/24 dev eth0"),
            format!("address add 2001:db8::{number}/64 dev eth0 nodad"),
            // Stands in for a pod: it answers at an address out of the node's range.
            format!("address add 10.244.{number}.5/32 dev lo"),
            format!("address add fd00:10:244:{number}::5/128 dev lo"),
        ] {
            run(&format!("ip -n {name} {command}"));
        }
    }

    /// A pod on the bridge that the agent has made, as the CNI plugin would attach it. Its namespace.
    pub fn attach_pod(&self, number: usize) -> String {
        let (node, pod) = (self.name(number), format!("{}p{number}", self.prefix));
        run(&format!("ip netns add {pod}"));
        for setting in
            ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv6.conf.kube-bridge.accept_dad=0"]
        {
            run(&format!("ip netns exec {node} sysctl -qw {setting}"));
        }
        for command in [
            format!("link add pod type veth peer name eth0 netns {pod}"),
            "link set pod master kube-bridge up".to_owned(),
            format!("address add 10.244.{number}.1/24 dev kube-bridge"),
            format!("-6 address add fd00:10:244:{number}::1/64 dev kube-bridge nodad"),
        ] {
            run(&format!("ip -n {node} {command}"));
        }
        for command in [
            "link set eth0 up".to_owned(),
            format!("address add 10.244.{number}.9/24 dev eth0"),
            format!("-6 address add fd00:10:244:{number}::9/64 dev eth0 nodad"),
            format!("route add default via 10.244.{number}.1"),
            format!("-6 route add default via fd00:10:244:{number}::1"),
        ] {
            run(&format!("ip -n {pod} {command}"));
        }
        pod
    }

    pub fn write(&self, nodes: &[String]) {
        let manifests = self.directory.path().join("manifests");
        fs::create_dir_all(&manifests).expect("a directory");
        let new = self.directory.path().join("nodes.yaml");
        fs::write(&new, nodes.join("---\n")).expect("a file");
        fs::rename(new, manifests.join("nodes.yaml")).expect("its place");
    }

    /// The manifests that a node reads: its own ones, if it has any.
    fn manifests(&self, number: usize) -> PathBuf {
        let own = self.file("manifests", number);
        if own.exists() { own } else { self.directory.path().join("manifests") }
    }

    pub fn file(&self, kind: &str, number: usize) -> PathBuf {
        self.directory.path().join(format!("{kind}{number}"))
    }

    pub fn start(&mut self, number: usize) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.file("log", number)).expect("a log");
        let child = Command::new("ip")
            .args(["netns", "exec", &self.name(number), "env"])
            .args(self.lacks_programs.then_some("PATH=/nowhere"))
            .arg(env!("CARGO_BIN_EXE_sluice"))
            .args(FLAGS)
            .args(self.flags.get(&number).into_iter().flatten())
            .arg(format!("--hostname-override=node-{number}"))
            .arg(format!("--manifests={}", self.manifests(number).display()))
            .arg(format!("--state-dir={}", self.file("state", number).display()))
            .args(self.is_asked(number).is_none().then_some("--socket="))
            .envs(self.environment.iter().cloned())
            .env("KUBE_ROUTER_CNI_CONF_FILE", self.file("cni", number).with_extension("conflist"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log"))
            .stderr(log)
            .spawn()
            .expect("the program");
        self.agents.insert(number, child);
    }

    /// The flag by which users may ask a node, where it has one.
    fn is_asked(&self, number: usize) -> Option<&String> {
        self.flags.get(&number)?.iter().find(|flag| flag.starts_with("--socket="))
    }

    /// kill -9.
    pub fn kill(&mut self, number: usize) {
        let mut child = self.agents.remove(&number).expect("it runs");
        child.kill().expect("it runs");
        child.wait().expect("it has ended");
    }

    pub fn terminate(&mut self, number: usize) {
        let mut child = self.agents.remove(&number).expect("it runs");
        run(&format!("kill -TERM {}", child.id()));
        assert!(child.wait().expect("it has ended").success(), "{}", self.log(number));
    }

    /// Runs `--cleanup-config`; what it said.
    pub fn clean_up(&self, number: usize) -> String {
        let file = self.file("cni", number).with_extension("conflist");
        let file = format!("KUBE_ROUTER_CNI_CONF_FILE={}", file.display());
        let cleanup = format!("--cleanup-config --socket= --state-dir={}", self.file("state", number).display());
        let program = env!("CARGO_BIN_EXE_sluice");
        attempt(&format!("ip netns exec {} env {file} {program} {cleanup}", self.name(number))).2
    }

    pub fn log(&self, number: usize) -> String {
        fs::read_to_string(self.file("log", number)).unwrap_or_default()
    }

    /// The learned routes of a node, both families.
    fn routes(&self, number: usize) -> Vec<String> {
        let name = self.name(number);
        let of = |family: &str| run(&format!("ip -n {name} {family} route show proto 17"));
        let listed = of("-4") + &of("-6");
        listed.lines().filter_map(|line| Some(line.split_once(" dev ")?.0.to_owned())).collect()
    }

    /// Waits until a node has exactly these routes.
    pub fn until(&self, number: usize, wanted: &[&str]) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.routes(number) != wanted {
            assert!(
                Instant::now() < deadline,
                "node {number} has {:?}, not {wanted:?}\n{}",
                self.routes(number),
                self.log(number)
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until a node has said something so many times.
    pub fn until_said(&self, number: usize, words: &str, times: usize) {
        let deadline = Instant::now() + Duration::from_secs(120);
        while self.log(number).matches(words).count() < times {
            assert!(Instant::now() < deadline, "node {number} has not said {words:?}:\n{}", self.log(number));
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Packets from one node's pod to another's, of both families, all the time while something is done. None is lost.
    fn without_losing_a_packet(&mut self, from: usize, to: usize, what: impl FnOnce(&mut Cluster)) {
        self.without_losing_one_of([from, to], "0.01", what);
    }

    /// The same with another time between two packets, in seconds.
    pub fn without_losing_one_of(&mut self, [from, to]: [usize; 2], apart: &str, what: impl FnOnce(&mut Cluster)) {
        let stream = |address: String, source: String| {
            Command::new("ip")
                .args(["netns", "exec", &self.name(from), "ping", "-i", apart, "-W", "2", "-I", &source, &address])
                .stdout(Stdio::piped())
                .spawn()
                .expect("ping")
        };
        let streams = [
            stream(format!("10.244.{to}.5"), format!("10.244.{from}.5")),
            stream(format!("fd00:10:244:{to}::5"), format!("fd00:10:244:{from}::5")),
        ];
        // Who does not read lets ping wait when the pipe is full, and then nothing is sent.
        let streams = streams.map(|mut ping| {
            let mut output = ping.stdout.take().expect("a pipe");
            let reader = thread::spawn(move || {
                let mut said = Vec::new();
                std::io::Read::read_to_end(&mut output, &mut said).expect("it is read");
                said
            });
            (ping, reader)
        });
        thread::sleep(Duration::from_millis(200));
        what(self);
        // More packets than may be under way at the end.
        thread::sleep(Duration::from_secs(1));
        for (mut ping, reader) in streams {
            run(&format!("kill -INT {}", ping.id()));
            ping.wait().expect("ping has ended");
            let said = reader.join().expect("it has read");
            let said = String::from_utf8_lossy(&said).into_owned();
            let summary = said.lines().find(|line| line.contains("packets transmitted")).expect("a summary");
            println!("{summary}");
            let number = |word: usize| summary.split_whitespace().nth(word).and_then(|n| n.parse::<u32>().ok());
            let (sent, received) = (number(0).expect("a number"), number(3).expect("a number"));
            let numbers =
                said.lines().filter_map(|line| line.split_once("icmp_seq=")?.1.split(' ').next()?.parse().ok());
            let numbers: BTreeSet<u32> = numbers.collect();
            let last = numbers.last().copied();
            let missing: Vec<u32> = (1..last.unwrap_or_default()).filter(|number| !numbers.contains(number)).collect();
            // Some may be under way when ping is told to end, on a busy machine; before those none is missing.
            let is_whole = sent > 10 && last == Some(received) && sent - received < 50;
            assert!(is_whole, "{summary}, without {missing:?}\n{}\n{}", self.log(from), self.log(to));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.agents.values_mut() {
            drop(child.kill());
            drop(child.wait());
        }
        for number in 1..=self.count {
            drop(attempt(&format!("ip netns delete {}", self.name(number))));
        }
    }
}

fn node(number: usize) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: node-{number}}}\n\
         spec: {{podCIDRs: [10.244.{number}.0/24, 'fd00:10:244:{number}::/64']}}\n\
         status: {{addresses: [{{type: InternalIP, address: 192.0.2.{number}}}, \
         {{type: InternalIP, address: '2001:db8::{number}'}}]}}\n"
    )
}

const OF_1: [&str; 2] = ["10.244.1.0/24 via 192.0.2.1", "fd00:10:244:1::/64 via 2001:db8::1"];
const OF_2: [&str; 2] = ["10.244.2.0/24 via 192.0.2.2", "fd00:10:244:2::/64 via 2001:db8::2"];

#[test]
fn nodes_learn_the_way_to_each_others_pods_and_keep_it() {
    in_new(|| {
        let mut cluster = Cluster::new(2);
        cluster.start(1);
        cluster.start(2);
        cluster.until(1, &OF_2);
        cluster.until(2, &OF_1);
        let conf = fs::read_to_string(cluster.file("cni", 1).with_extension("conflist")).expect("the CNI file");
        assert!(
            conf.contains("10.244.1.0/24") && conf.contains("fd00:10:244:1::/64") && !conf.contains("10.244.2."),
            "{conf}"
        );
        cluster.until_said(1, "Routes to pods of other nodes programmed", 1);

        // Who restarts, however it ended, changes nothing in the kernel, and nobody loses a packet.
        cluster.without_losing_a_packet(2, 1, |cluster| {
            cluster.kill(1);
            thread::sleep(Duration::from_millis(300));
            cluster.start(1);
            cluster.until_said(1, "End-of-RIB received from the connected peers", 1);
            cluster.until_said(1, "Routes to pods of other nodes programmed", 2);
        });
        cluster.without_losing_a_packet(1, 2, |cluster| {
            cluster.terminate(1);
            thread::sleep(Duration::from_millis(300));
            cluster.start(1);
            cluster.until_said(1, "End-of-RIB received from the connected peers", 2);
        });
        let restarts = cluster.log(1);
        let restarts = restarts.lines().filter(|line| line.contains("First sync of the router finished")).skip(1);
        assert!(
            restarts.clone().count() == 2 && restarts.clone().all(|line| line.contains("steps=0")),
            "{}",
            cluster.log(1)
        );

        // Deleted routes, and those that vanish with their link, are restored.
        let name = cluster.name(1);
        run(&format!("ip -n {name} route delete 10.244.2.0/24"));
        run(&format!("ip -n {name} -6 route delete fd00:10:244:2::/64"));
        cluster.until(1, &OF_2);
        run(&format!("ip -n {name} link set eth0 down"));
        run(&format!("ip -n {name} link set eth0 up"));
        run(&format!("ip -n {name} address replace 2001:db8::1/64 dev eth0 nodad"));
        cluster.until(1, &OF_2);

        // Pods get the MTU of the link, also when that changes.
        let mtu = |wanted: &str| {
            let bridge = run(&format!("ip -n {name} link show kube-bridge"));
            let conf = fs::read_to_string(cluster.file("cni", 1).with_extension("conflist")).expect("the CNI file");
            bridge.contains(&format!("mtu {wanted} ")) && conf.contains(&format!("\"mtu\":{wanted},"))
        };
        assert!(mtu("1500"), "{}", cluster.log(1));
        run(&format!("ip -n {name} link set eth0 mtu 1400"));
        let deadline = Instant::now() + Duration::from_secs(30);
        while !mtu("1400") {
            assert!(Instant::now() < deadline, "{}", cluster.log(1));
            thread::sleep(Duration::from_millis(20));
        }
    });
}

/// Whether packets of this size pass, whole, between the stand-ins for pods of two nodes.
pub fn passes(cluster: &Cluster, family: &str, size: u32) -> bool {
    let (from, to, headers) = match family {
        "-4" => ("10.244.1.5", "10.244.2.5", 28),
        _ => ("fd00:10:244:1::5", "fd00:10:244:2::5", 48),
    };
    let packets = format!("-c 3 -i 0.2 -W 5 -M do -s {} -I {from} {to}", size - headers);
    attempt(&format!("ip netns exec {} ping {family} {packets}", cluster.name(1))).0
}

#[test]
fn pods_reach_each_other_through_vxlan_and_a_restart_a_deleted_device_and_a_cleanup_do_what_they_should() {
    for source in ["bgp", "api"] {
        in_new(|| {
            let mut cluster = Cluster::new(2);
            let flags = ["--enable-overlay", "--overlay-type=full", "--overlay-encap=vxlan"];
            for number in 1..=2 {
                let of_node = flags.into_iter().map(str::to_owned).chain([format!("--node-routes={source}")]);
                cluster.flags.insert(number, of_node.collect());
                let others = "link add vxlan.calico type vxlan id 4096 dstport 4789 local 192.0.2.9 nolearning";
                run(&format!("ip -n {} {others}", cluster.name(number)));
                cluster.start(number);
            }
            let via = |number: usize| {
                let gateway =
                    sluice::kernel::vxlan::gateway(format!("2001:db8::{number}").parse().expect("an address"));
                [
                    format!("10.244.{number}.0/24 via 192.0.2.{number}"),
                    format!("fd00:10:244:{number}::/64 via {gateway}"),
                ]
            };
            let until = |cluster: &Cluster, number: usize| {
                let wanted = via(3 - number);
                cluster.until(number, &wanted.each_ref().map(String::as_str));
            };
            until(&cluster, 1);
            until(&cluster, 2);
            let name = cluster.name(1);
            let routes = run(&format!("ip -n {name} route get 10.244.2.5"))
                + &run(&format!("ip -n {name} route get fd00:10:244:2::5"));
            assert!(routes.contains("sluice-vxlan4") && routes.contains("sluice-vxlan6"), "{routes}");
            for (family, largest) in [("-4", 1450), ("-6", 1430)] {
                assert!(passes(&cluster, family, largest), "{source} {family}\n{}", cluster.log(1));
                assert!(!passes(&cluster, family, largest + 1), "{source} {family}");
            }
            // The host itself and a pod of the other node.
            run(&format!("ip netns exec {name} ping -c 1 -W 5 10.244.2.5"));
            run(&format!("ip netns exec {name} ping -c 1 -W 5 fd00:10:244:2::5"));
            let bridge = run(&format!("ip -n {name} link show kube-bridge"));
            assert!(bridge.contains("mtu 1430 "), "{bridge}");

            let programmed = "Routes to pods of other nodes programmed";
            cluster.until_said(1, programmed, 1);
            cluster.without_losing_a_packet(2, 1, |cluster| {
                cluster.kill(1);
                thread::sleep(Duration::from_millis(300));
                cluster.start(1);
                cluster.until_said(1, programmed, 2);
            });
            let log = cluster.log(1);
            let mut syncs = log.lines().filter(|line| line.contains("First sync of the router finished")).skip(1);
            assert!(syncs.all(|line| line.contains("steps=0")), "{log}");

            for link in ["sluice-vxlan4", "sluice-vxlan6"] {
                run(&format!("ip -n {name} link delete {link}"));
            }
            until(&cluster, 1);
            let deadline = Instant::now() + Duration::from_secs(30);
            while !(passes(&cluster, "-4", 1450) && passes(&cluster, "-6", 1430)) {
                assert!(Instant::now() < deadline, "{}", cluster.log(1));
            }

            cluster.terminate(1);
            let said = cluster.clean_up(1);
            assert_eq!(cluster.routes(1), Vec::<String>::new(), "{said}");
            let links = run(&format!("ip -n {name} link show"));
            assert!(!links.contains("sluice-vxlan") && links.contains("vxlan.calico"), "{links}\n{said}");
        });
    }
}

/// As `systemd-networkd` takes them away when it starts (`ManageForeignRoutingPolicyRules=`).
#[test]
fn rules_of_routing_that_somebody_deletes_come_back_at_once() {
    in_new(|| {
        let mut cluster = Cluster::new(2);
        let flags = ["--enable-overlay", "--overlay-type=full", "--overlay-encap=vxlan"];
        cluster.flags.insert(1, flags.map(str::to_owned).into());
        cluster.start(1);
        let name = cluster.name(1);
        cluster.until_said(1, "First sync of the router finished", 1);
        // Devices of its own that come, and their addresses, are reasons to look at everything.
        thread::sleep(Duration::from_secs(5));
        for (family, source) in [("-4", "10.244.1.0/24"), ("-6", "fd00:10:244:1::/64")] {
            let rule = format!("from {source} lookup 77");
            let is_there = || run(&format!("ip -n {name} {family} rule")).contains(&rule);
            assert!(is_there(), "{}", cluster.log(1));
            run(&format!("ip -n {name} {family} rule delete {rule}"));
            until(is_there, "the rule is back");
        }
    });
}

#[test]
fn a_node_that_comes_is_learned_and_one_that_goes_is_forgotten() {
    in_new(|| {
        let mut cluster = Cluster::new(3);
        cluster.write(&[node(1), node(2)]);
        cluster.start(1);
        cluster.start(2);
        cluster.until(1, &OF_2);
        run(&format!("ip -n {} route add 10.1.0.0/24 via 192.0.2.2 proto 18", cluster.name(1)));
        cluster.without_losing_a_packet(1, 2, |cluster| {
            cluster.write(&[node(1), node(2), node(3)]);
            cluster.start(3);
            cluster.until(3, &[OF_1[0], OF_2[0], OF_1[1], OF_2[1]]);
            cluster.until(1, &[OF_2[0], "10.244.3.0/24 via 192.0.2.3", OF_2[1], "fd00:10:244:3::/64 via 2001:db8::3"]);
            cluster.write(&[node(1), node(2)]);
            cluster.until(1, &OF_2);
            cluster.until(2, &OF_1);
        });
        cluster.terminate(1);
        let (conf, state) = (cluster.file("cni", 1).with_extension("conflist"), cluster.file("state", 1));
        assert!(conf.exists());
        let (_, _, said) = attempt(&format!(
            "ip netns exec {} env KUBE_ROUTER_CNI_CONF_FILE={} {} --cleanup-config --socket= --state-dir={}",
            cluster.name(1),
            conf.display(),
            env!("CARGO_BIN_EXE_sluice"),
            state.display()
        ));
        assert_eq!(cluster.routes(1), Vec::<String>::new(), "{said}");
        assert!(!conf.exists() && !state.exists(), "{said}");
        assert!(run(&format!("ip -n {} route", cluster.name(1))).contains("10.1.0.0/24"), "of somebody else");
    });
}

/// A process that may open few files cannot open the kernel's sockets.
#[test]
fn a_cleanup_that_cannot_open_the_kernel_removes_the_files_and_names_what_it_could_not_do() {
    in_new(|| {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        fs::create_dir(path("state")).expect("a directory");
        fs::write(path("state/last-known"), "what was known").expect("a file");
        fs::write(path("10-kuberouter.conflist"), r#"{"plugins":[{"type":"bridge","bridge":"kube-bridge"}]}"#)
            .expect("a file");
        let cleanup = Command::new("sh")
            .arg("-c")
            .arg(format!(
                "ulimit -n 8; exec {} --cleanup-config --run-router=false --socket= --state-dir={}",
                env!("CARGO_BIN_EXE_sluice"),
                path("state").display()
            ))
            .env("KUBE_ROUTER_CNI_CONF_FILE", path("10-kuberouter.conflist"))
            .output()
            .expect("the program");
        let said = String::from_utf8_lossy(&cleanup.stderr).into_owned();
        assert!(!path("10-kuberouter.conflist").exists() && !path("state/last-known").exists(), "{said}");
        assert!(!cleanup.status.success());
        for subsystem in ["firewall: ", "service proxy: ", "router: "] {
            let names = |line: &str| line.starts_with(subsystem) && line.contains("Too many open files");
            assert!(said.lines().any(names), "{subsystem}{said}");
        }
    });
}

/// Routes that flannel, an administrator or another routing daemon left: to the pods of node 2, in its place and, in IPv6, before it.
const FOREIGN: [&str; 3] = [
    "route add 10.244.2.0/24 via 192.0.2.77 proto static",
    "-6 route add fd00:10:244:2::/64 via 2001:db8::77 proto static",
    "-6 route add fd00:10:244:2::/64 via 2001:db8::77 proto 100 metric 50",
];

#[test]
fn routes_of_others_to_pods_of_a_known_node_are_replaced_said_once_and_all_others_stay() {
    in_new(|| {
        let mut cluster = Cluster::new(2);
        let name = cluster.name(1);
        for route in FOREIGN {
            run(&format!("ip -n {name} {route}"));
        }
        // To pods of nobody, to a part of a range, and to what holds a range.
        let others = ["10.244.9.0/24", "10.244.2.128/25", "10.244.0.0/16"];
        for other in others {
            run(&format!("ip -n {name} route add {other} via 192.0.2.77 proto static"));
        }
        cluster.start(1);
        thread::sleep(Duration::from_secs(1));
        let foreign = || run(&format!("ip -n {name} -6 route")).matches("2001:db8::77").count();
        assert_eq!(foreign(), 2, "nothing is better known yet");
        cluster.start(2);
        cluster.until(1, &OF_2);
        // Each with all that puts it back.
        for route in [
            "10.244.2.0/24 proto 4 metric 0 via 192.0.2.77 dev eth0",
            "fd00:10:244:2::/64 proto 4 metric 1024 via 2001:db8::77 dev eth0",
            "fd00:10:244:2::/64 proto 100 metric 50 via 2001:db8::77 dev eth0",
        ] {
            cluster.until_said(1, route, 1);
        }
        cluster.until_said(1, "Foreign route to the pod CIDR of a Node replaced", 3);
        let deadline = Instant::now() + Duration::from_secs(10);
        while foreign() > 0 {
            assert!(Instant::now() < deadline, "{}", cluster.log(1));
            thread::sleep(Duration::from_millis(20));
        }
        let all = run(&format!("ip -n {name} route"));
        for other in others {
            assert!(all.contains(&format!("{other} via 192.0.2.77")), "{other}: {all}");
        }
        assert!(!all.contains("10.244.2.0/24 via 192.0.2.77"), "{all}");
        assert!(reaches(&name, "10.244.2.5") && reaches(&name, "fd00:10:244:2::5"), "{}", cluster.log(1));
        // Whoever made the route to a part of the range meant these pods; they cannot be reached, which is trouble. It
        // keeps no node that starts from becoming ready.
        cluster.until_said(1, "Routes to pods of other nodes programmed", 1);
        cluster.until_said(1, "10.244.2.128/25 proto 4 metric 0 via 192.0.2.77 dev eth0", 1);
        assert!(!cluster.log(1).contains("Kernel update failed"), "{}", cluster.log(1));
        run(&format!("ip -n {name} route delete 10.244.2.128/25"));
        cluster.until_said(1, "Router problem resolved", 1);
        // It comes back, and goes again with the next look; the log has said it.
        run(&format!("ip -n {name} {}", FOREIGN[2]));
        cluster.terminate(1);
        cluster.start(1);
        cluster.until_said(1, "Routes to pods of other nodes programmed", 2);
        let deadline = Instant::now() + Duration::from_secs(10);
        while foreign() > 0 {
            assert!(Instant::now() < deadline, "{}", cluster.log(1));
            thread::sleep(Duration::from_millis(20));
        }
    });
}

/// Routes of others that come while ours are in place, in every way that takes packets from ours.
const RIVALS: [&str; 6] = [
    "route replace 10.244.2.0/24 via 192.0.2.77",
    "route prepend 10.244.2.0/24 via 192.0.2.77 proto static",
    "route replace blackhole 10.244.2.0/24",
    "-6 route add unreachable fd00:10:244:2::/64 metric 50",
    "-6 route add blackhole fd00:10:244:2::/64 metric 51",
    "-6 route replace fd00:10:244:2::/64 via 2001:db8::77 metric 1024",
];

#[test]
fn a_route_of_others_that_comes_before_ours_to_pods_of_a_known_node_goes_at_once() {
    in_new(|| {
        let mut cluster = Cluster::new(2);
        // Only notifications can find them in time.
        cluster
            .flags
            .insert(1, ["--routes-sync-period=1h", "--injected-routes-sync-period=1h"].map(str::to_owned).into());
        cluster.start(1);
        cluster.start(2);
        cluster.until(1, &OF_2);
        cluster.until_said(1, "Routes to pods of other nodes programmed", 1);
        let name = cluster.name(1);
        let to_pods = || {
            let all = run(&format!("ip -n {name} route")) + &run(&format!("ip -n {name} -6 route"));
            let to_pods = all.lines().filter(|line| line.contains("10.244.2.") || line.contains("fd00:10:244:2:"));
            to_pods.filter(|line| !line.contains("proto 17")).map(str::to_owned).collect::<Vec<String>>()
        };
        let mut never_left = Vec::new();
        for rival in RIVALS {
            run(&format!("ip -n {name} {rival}"));
            let deadline = Instant::now() + Duration::from_secs(30);
            while (!to_pods().is_empty() || cluster.routes(1) != OF_2) && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(20));
            }
            if !to_pods().is_empty() || cluster.routes(1) != OF_2 {
                never_left.push(format!("{rival}: {:?} {:?}", to_pods(), cluster.routes(1)));
            }
        }
        assert!(never_left.is_empty(), "{never_left:#?}\n{}", cluster.log(1));
        assert!(reaches(&name, "10.244.2.5") && reaches(&name, "fd00:10:244:2::5"), "{}", cluster.log(1));
        assert_eq!(
            cluster.log(1).matches("Foreign route to the pod CIDR of a Node replaced").count(),
            RIVALS.len(),
            "once for each route\n{}",
            cluster.log(1)
        );
    });
}

#[test]
fn a_route_of_others_makes_way_when_its_destination_turns_out_to_be_a_nodes_pods() {
    in_new(|| {
        let mut cluster = Cluster::new(2);
        let name = cluster.name(1);
        let foreign =
            ["10.244.2.0/24 via 192.0.2.77 proto static", "unreachable fd00:10:244:2::/64 metric 50 proto static"];
        foreign.iter().for_each(|route| drop(run(&format!("ip -n {name} route add {route}"))));
        let foreign = || {
            let all = run(&format!("ip -n {name} route")) + &run(&format!("ip -n {name} -6 route"));
            all.lines().filter(|line| line.contains("proto static")).count()
        };
        assert_eq!(foreign(), 2);
        // Node 1 knows node 2 without its pod ranges, which node 2 announces.
        let own = cluster.file("manifests", 1);
        fs::create_dir_all(&own).expect("a directory");
        let without = node(2).replace("podCIDRs: [10.244.2.0/24, 'fd00:10:244:2::/64']", "unschedulable: false");
        fs::write(own.join("nodes.yaml"), [node(1), without].join("---\n")).expect("a file");
        cluster
            .flags
            .insert(1, ["--routes-sync-period=1h", "--injected-routes-sync-period=1h"].map(str::to_owned).into());
        cluster.start(1);
        cluster.start(2);
        cluster.until_said(1, "End-of-RIB received", 2);
        assert_eq!((foreign(), cluster.routes(1)), (2, vec![]), "nothing says that these are pods");
        let new = cluster.directory.path().join("new");
        fs::write(&new, [node(1), node(2)].join("---\n")).expect("a file");
        fs::rename(new, own.join("nodes.yaml")).expect("its place");
        cluster.until(1, &OF_2);
        let deadline = Instant::now() + Duration::from_secs(30);
        while foreign() > 0 {
            assert!(Instant::now() < deadline, "{}", cluster.log(1));
            thread::sleep(Duration::from_millis(20));
        }
        assert!(reaches(&name, "10.244.2.5") && reaches(&name, "fd00:10:244:2::5"), "{}", cluster.log(1));
    });
}

/// Routes that prevail over ours to pods and that are not ours to delete: the network of a link of this host, and a more specific route.
const IN_THE_WAY: [(&str, &str, &str); 3] = [
    (
        "-6 address add fd00:10:244:2::77/64 dev other nodad",
        "-6 address delete fd00:10:244:2::77/64 dev other",
        "fd00:10:244:2::/64",
    ),
    ("route add 10.244.2.128/25 via 192.0.2.77", "route delete 10.244.2.128/25", "10.244.2.128/25"),
    (
        "-6 route add prohibit fd00:10:244:2::40/122",
        "-6 route delete prohibit fd00:10:244:2::40/122",
        "fd00:10:244:2::40/122",
    ),
];

#[test]
fn routes_that_take_pods_away_and_are_not_ours_to_delete_stay_and_are_trouble() {
    in_new(|| {
        let mut cluster = Cluster::new(2);
        let name = cluster.name(1);
        run(&format!("ip -n {name} link add other type veth peer name another"));
        run(&format!("ip -n {name} link set another up"));
        run(&format!("ip -n {name} link set other up"));
        cluster.start(1);
        cluster.start(2);
        cluster.until(1, &OF_2);
        cluster.until_said(1, "Routes to pods of other nodes programmed", 1);
        let mut recovered = 0;
        for (comes, goes, destination) in IN_THE_WAY {
            let troubles = || {
                let log = cluster.log(1);
                let lines = log.lines().filter(|line| line.contains("Router problem") && !line.contains("resolved"));
                lines.filter(|line| line.contains(&format!("{destination} "))).count()
            };
            let before = troubles();
            run(&format!("ip -n {name} {comes}"));
            let deadline = Instant::now() + Duration::from_secs(10);
            while troubles() == before {
                assert!(Instant::now() < deadline, "{comes}: nothing is said of it\n{}", cluster.log(1));
                thread::sleep(Duration::from_millis(20));
            }
            cluster.until(1, &OF_2);
            assert!(run(&format!("ip -n {name} -6 route")).contains("2001:db8::/64"));
            run(&format!("ip -n {name} {goes}"));
            recovered += 1;
            cluster.until_said(1, "Router problem resolved", recovered);
        }
        assert!(reaches(&name, "10.244.2.5") && reaches(&name, "fd00:10:244:2::5"), "{}", cluster.log(1));
    });
}

/// Invalid annotations of a Node: name, value, and the warning.
const ODD: [(&str, &str, &str); 9] = [
    ("kube-router.io/node.asn", "many", "is not an AS number"),
    ("kube-router.io/rr.server", "first", "is neither a number nor an IPv4 address"),
    ("kube-router.io/path-prepend.as", "65000", "kube-router.io/path-prepend.repeat-n is absent"),
    ("kube-router.io/node.bgp.communities", "65001:1,nobody", "is not a community"),
    ("kube-router.io/node.bgp.customimportreject", "10.0.0.0/99", "is not a CIDR"),
    ("kube-router.io/peers", "[{remoteip: 192.0.2.300, remoteasn: 65001}]", "is not an address of a neighbour"),
    ("kube-router.io/bgp-local-addresses", "192.0.2.1,here", "is not an address of a host"),
    ("kube-router.io/pod-cidr", "10.244.1.0/99", "is not a CIDR"),
    ("kube-router.io/peer.ips", "192.0.2.9,192.0.2.10", ""),
];

fn annotated(number: usize, annotations: &[(&str, &str)]) -> String {
    let all: Vec<String> = annotations.iter().map(|(key, value)| format!("{key}: '{value}'")).collect();
    let from = format!("{{name: node-{number}}}");
    node(number).replace(&from, &format!("{{name: node-{number}, annotations: {{{}}}}}", all.join(", ")))
}

#[test]
fn what_is_wrong_is_said_once_and_everything_else_works() {
    in_new(|| {
        let mut cluster = Cluster::new(4);
        let odd: Vec<(&str, &str)> = ODD.iter().map(|(key, value, _)| (*key, *value)).collect();
        let without_pods = node(4).replace("podCIDRs: [10.244.4.0/24, 'fd00:10:244:4::/64']", "unschedulable: false");
        cluster.write(&[annotated(1, &odd), node(2), node(3), without_pods]);
        let missing = cluster.directory.path().join("no-passwords");
        let passwords = format!("--peer-router-passwords-file={}", missing.display());
        let peer = ["--peer-router-ips=192.0.2.200", "--peer-router-asns=65200"].map(str::to_owned);
        cluster.flags.insert(1, [[passwords].as_slice(), &peer].concat());
        cluster.flags.insert(2, vec!["--peer-router-ips=192.0.2.3".into(), "--peer-router-asns=65333".into()]);
        cluster.flags.insert(4, vec!["--router-id=192.0.2.2".into()]);
        (1..=4).for_each(|number| cluster.start(number));
        // Node 3 has the wrong number for node 2, and node 4 its identifier; both are neighbours of node 1.
        let all: Vec<String> = [
            "10.244.2.0/24 via 192.0.2.2",
            "10.244.3.0/24 via 192.0.2.3",
            "fd00:10:244:2::/64 via 2001:db8::2",
            "fd00:10:244:3::/64 via 2001:db8::3",
        ]
        .map(str::to_owned)
        .into();
        cluster.until(1, &all.iter().map(String::as_str).collect::<Vec<_>>());
        cluster.until(2, &OF_1);
        cluster.until(3, &OF_1);
        cluster.until(4, &[OF_1[0], all[1].as_str(), OF_1[1], all[3].as_str()]);
        let said = [
            (1, "Reading the peer passwords file failed", 1),
            (2, "it has another AS number than is configured for it", 1),
            (3, "it said 2/2 bad peer AS", 1),
            (2, "its BGP identifier is ours", 1),
            (4, "pods get no address of it", 2),
        ];
        said.iter().for_each(|(number, words, times)| cluster.until_said(*number, words, *times));
        // Long enough for several more tries.
        thread::sleep(Duration::from_secs(6));
        let log = cluster.log(1);
        for (key, _, why) in ODD.iter().filter(|(_, _, why)| !why.is_empty()) {
            let says = |line: &&str| {
                line.contains("Invalid field in an object")
                    && line.contains(&format!("field={key} "))
                    && line.contains(why)
            };
            assert_eq!(log.lines().filter(says).count(), 1, "{key}:\n{log}");
        }
        for (number, words, times) in said {
            let log = cluster.log(number);
            assert_eq!(log.lines().filter(|line| line.contains(words)).count(), times, "{words}:\n{log}");
        }
        // Annotations that make sense are taken at once.
        cluster.write(&[annotated(1, &[("kube-router.io/pod-cidrs", "10.244.1.0/25")]), node(2), node(3), node(4)]);
        cluster.until(2, &["10.244.1.0/25 via 192.0.2.1"]);
    });
}

/// Hosts that forward nothing by themselves, as Docker leaves them; the kubelet's chain says which tables count.
#[test]
fn pods_are_reached_where_the_host_forwards_nothing_with_either_kind_of_tables() {
    for (flavour, netfilter) in [("legacy", "iptables"), ("nft", "iptables"), ("nft", "nftables")] {
        in_new(|| {
            let mut cluster = Cluster::new(2);
            cluster.flags = (1..=2).map(|number| (number, vec![format!("--netfilter={netfilter}")])).collect();
            for (number, tool) in [(1, "iptables"), (1, "ip6tables"), (2, "iptables"), (2, "ip6tables")] {
                let within = format!("ip netns exec {} {tool}-{flavour} -w", cluster.name(number));
                run(&format!("{within} -t mangle -N KUBE-IPTABLES-HINT"));
                run(&format!("{within} -P FORWARD DROP"));
            }
            cluster.start(1);
            cluster.start(2);
            cluster.until(1, &OF_2);
            cluster.until(2, &OF_1);
            let pods = [1, 2].map(|number| cluster.attach_pod(number));
            run("ip netns add outside");
            run("ip link add to-outside type veth peer name eth0 netns outside");
            run("ip link set to-outside master wire up");
            run("ip -n outside link set eth0 up");
            run("ip -n outside address add 192.0.2.100/24 dev eth0");
            run("ip -n outside -6 address add 2001:db8::100/64 dev eth0 nodad");
            run("ip -n outside route add 203.0.113.0/24 via 192.0.2.1");
            for to in ["10.244.2.9", "fd00:10:244:2::9", "192.0.2.100", "2001:db8::100", "192.0.2.2", "2001:db8::2"] {
                assert!(reaches(&pods[0], to), "{flavour}: {to}\n{}", cluster.log(1));
            }
            assert!(reaches(&pods[1], "10.244.1.9") && reaches(&pods[1], "fd00:10:244:1::9"), "{flavour}");
            // Packets that neither come from a pod, go to one, nor answer one are not forwarded.
            run(&format!("ip -n {} address add 203.0.113.1/24 dev eth0", cluster.name(2)));
            run(&format!("ip -n {} route add 203.0.113.0/24 via 192.0.2.2", cluster.name(1)));
            assert!(!reaches("outside", "203.0.113.1"), "{flavour}: the node forwards for others");
            if netfilter == "nftables" {
                let within = format!("ip netns exec {}", cluster.name(1));
                let saved = run(&format!("{within} iptables-nft-save -t filter"));
                let rule =
                    "-A FORWARD -i kube-bridge -m comment --comment \"allow outbound traffic from pods\" -j ACCEPT";
                assert!(saved.contains(rule), "iptables shows what stands in its chain:\n{saved}");
                assert!(saved.contains("-m conntrack --ctstate RELATED,ESTABLISHED"), "{saved}");
                let listed = run(&format!("{within} nft list table inet sluice_router"));
                assert!(listed.contains("ip saddr @pods4 ip daddr != @pods4 ip daddr != @nodes4"), "{listed}");
                assert_eq!(of_iptables(&within), "", "nothing else is in iptables or ipset");
            }
        });
    }
}

/// The chains and sets of ours that iptables and ipset hold.
fn of_iptables(within: &str) -> String {
    let mut found = run(&format!("{within} iptables-nft-save")) + &run(&format!("{within} ip6tables-nft-save"));
    found += &run(&format!("{within} ipset list -name"));
    found.lines().filter(|line| line.contains("KUBE-ROUTER") || line.contains("kube-router")).collect()
}

/// From iptables to nftables and back, and `kill -9` in between, while pods of two nodes talk.
#[test]
fn the_packet_filter_changes_under_running_pods_and_leaves_nothing_behind() {
    in_new(|| {
        let mut cluster = Cluster::new(2);
        let within = format!("ip netns exec {}", cluster.name(1));
        for tool in ["iptables-nft", "ip6tables-nft"] {
            run(&format!("{within} {tool} -P FORWARD DROP"));
            run(&format!("{within} {tool} -A FORWARD -i of-others -j ACCEPT"));
        }
        cluster.flags.insert(1, vec!["--netfilter=iptables".to_owned()]);
        cluster.start(1);
        cluster.start(2);
        cluster.until(1, &OF_2);
        cluster.until(2, &OF_1);
        let foreign = |text: &str| text.matches("-i of-others -j ACCEPT").count();
        let table = format!("{within} nft -a list table inet sluice_router");
        assert!(of_iptables(&within).contains("KUBE-ROUTER-EGRESS"));
        cluster.without_losing_a_packet(1, 2, |cluster| {
            cluster.flags.insert(1, vec!["--netfilter=nftables".to_owned()]);
            cluster.kill(1);
            cluster.start(1);
            cluster.until_said(1, "First sync", 2);
            until(|| of_iptables(&within).is_empty(), "the rules and sets of iptables go");
        });
        let listed = run(&table);
        for word in ["pod_snat", "masquerade", "10.244.2.0/24", "fd00:10:244:2::/64", "192.0.2.2"] {
            assert!(listed.contains(word), "{word}: {listed}");
        }
        cluster.without_losing_a_packet(1, 2, |cluster| {
            cluster.kill(1);
            let contents = |text: &str| text.split_once("\tset ").map(|(_, contents)| contents.to_owned());
            assert_eq!(contents(&run(&table)), contents(&listed), "it stays in force");
            cluster.start(1);
            cluster.until_said(1, "First sync", 3);
        });
        let handles =
            |text: &str| text.lines().filter(|line| line.contains("# handle")).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(handles(&run(&table)), handles(&listed), "the next run adopts it without a step");
        let saved = run(&format!("{within} iptables-nft-save -t filter"));
        assert!(saved.contains("-i kube-bridge") && foreign(&saved) == 1, "{saved}");
        cluster.without_losing_a_packet(1, 2, |cluster| {
            cluster.flags.insert(1, vec!["--netfilter=iptables".to_owned()]);
            cluster.kill(1);
            cluster.start(1);
            cluster.until_said(1, "First sync", 4);
            until(|| !attempt(&table).0, "the table of nf_tables goes");
        });
        for tool in ["iptables-nft", "ip6tables-nft"] {
            let saved = run(&format!("{within} {tool}-save -t filter"));
            let direct = saved.lines().filter(|line| line.starts_with("-A FORWARD") && line.contains("kube-bridge"));
            assert_eq!((direct.count(), foreign(&saved)), (0, 1), "{saved}");
        }
        assert!(of_iptables(&within).contains("KUBE-ROUTER-EGRESS"));
    });
}

/// An image without programs of iptables, on a host where an earlier run has used them.
#[test]
fn what_iptables_left_goes_without_its_programs_or_is_named() {
    for flavour in ["nft", "legacy"] {
        in_new(|| {
            let mut cluster = Cluster::new(2);
            let within = format!("ip netns exec {}", cluster.name(1));
            for tool in ["iptables", "ip6tables"] {
                run(&format!("{within} {tool}-{flavour} -t mangle -N KUBE-IPTABLES-HINT"));
                run(&format!("{within} {tool}-{flavour} -A FORWARD -i of-others -j ACCEPT"));
            }
            cluster.flags.insert(1, vec!["--netfilter=iptables".to_owned()]);
            cluster.start(1);
            cluster.until_said(1, "First sync", 1);
            cluster.kill(1);
            put_masquerades(&within, flavour);
            cluster.flags.insert(1, vec!["--netfilter=nftables".to_owned()]);
            cluster.lacks_programs = true;
            cluster.start(1);
            cluster.until_said(1, "First sync", 2);
            if flavour == "legacy" {
                cluster.until_said(1, "rules of legacy iptables, whose programs are not installed", 1);
                cluster.lacks_programs = false;
                cluster.kill(1);
                cluster.start(1);
            }
            until(|| of_iptables(&within).is_empty(), "the rules and sets of iptables go");
            for tool in ["iptables", "ip6tables"] {
                let saved = run(&format!("{within} {tool}-{flavour}-save"));
                let is_there = |word: &str| saved.contains(word);
                assert!(is_there("-A FORWARD -i of-others -j ACCEPT") && is_there("KUBE-IPTABLES-HINT"), "{saved}");
                assert!(is_there("--match-set of-others"), "{saved}");
                assert!(!is_there("KUBE-ROUTER") && !is_there("kube-router-"), "{saved}");
            }
        });
    }
}

/// Puts rules that masquerade by sets into `POSTROUTING`: those of kube-router, as it writes them, and one of somebody else.
fn put_masquerades(within: &str, flavour: &str) {
    for (tool, head, family) in [("iptables", "", "inet"), ("ip6tables", "inet6:", "inet6")] {
        let others = format!("of-others-{family}");
        run(&format!("{within} ipset create {others} hash:net family {family}"));
        for (pods, nodes) in [
            (format!("{head}kube-router-pod-subnets"), format!("{head}kube-router-node-ips")),
            (others.clone(), others.clone()),
        ] {
            run(&format!(
                "{within} {tool}-{flavour} -t nat -A POSTROUTING -m set --match-set {pods} src -m set ! --match-set {pods} dst \
                 -m set ! --match-set {nodes} dst -j MASQUERADE --random-fully"
            ));
        }
    }
}

/// An image without programs of iptables removes all the same what they wrote into nf_tables.
#[test]
fn a_cleanup_without_programs_leaves_no_chain_of_ours_in_nf_tables() {
    in_new(|| {
        let mut cluster = Cluster::new(2);
        let within = format!("ip netns exec {}", cluster.name(1));
        for tool in ["iptables", "ip6tables"] {
            run(&format!("{within} {tool}-nft -t mangle -N KUBE-IPTABLES-HINT"));
        }
        cluster.flags.insert(1, vec!["--netfilter=iptables".to_owned()]);
        cluster.start(1);
        cluster.until_said(1, "First sync", 1);
        cluster.kill(1);
        put_masquerades(&within, "nft");
        assert!(!of_iptables(&within).is_empty());
        let (succeeded, _, said) = attempt(&format!(
            "{within} env PATH=/nowhere {} --cleanup-config --socket= --state-dir={}",
            env!("CARGO_BIN_EXE_sluice"),
            cluster.file("state", 1).display()
        ));
        assert_eq!(of_iptables(&within), "", "{said}");
        assert!(succeeded, "{said}");
        let saved = run(&format!("{within} iptables-nft-save"));
        assert!(saved.contains("--match-set of-others") && saved.contains("KUBE-IPTABLES-HINT"), "{saved}");
    });
}

/// Rules of nftables in the host's `FORWARD` go although the agent now writes rules of legacy iptables.
#[test]
fn the_hosts_chain_has_no_rule_of_ours_after_a_change_to_legacy_iptables() {
    in_new(|| {
        let mut cluster = Cluster::new(2);
        let within = format!("ip netns exec {}", cluster.name(1));
        run(&format!("{within} iptables-nft -P FORWARD DROP"));
        cluster.flags.insert(1, vec!["--netfilter=nftables".to_owned()]);
        cluster.start(1);
        let saved = || run(&format!("{within} iptables-nft-save -t filter"));
        until(|| saved().contains("-i kube-bridge"), "the rules in FORWARD come");
        cluster.kill(1);
        for tool in ["iptables", "ip6tables"] {
            run(&format!("{within} {tool}-legacy -t mangle -N KUBE-IPTABLES-HINT"));
        }
        cluster.flags.insert(1, vec!["--netfilter=iptables".to_owned()]);
        cluster.start(1);
        until(|| !saved().contains("kube-bridge"), "the rules in FORWARD go");
        assert!(run(&format!("{within} iptables-legacy-save -t filter")).contains("KUBE-ROUTER-PODS"));
    });
}

/// Waits for something that comes to be.
fn until(is_so: impl Fn() -> bool, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Whether ping is answered, tried for a while: neighbours have to be found first.
fn reaches(from: &str, to: &str) -> bool {
    (0..3).any(|_| attempt(&format!("ip netns exec {from} ping -c 1 -W 1 {to}")).0)
}

#[test]
fn neighbours_that_cannot_be_spoken_with_are_told_once_and_the_others_are_spoken_with() {
    in_new(|| {
        let mut cluster = Cluster::new(3);
        // Node 2 knows no password; nobody has the other address.
        let flags = [
            "--peer-router-ips=192.0.2.2,192.0.2.200",
            "--peer-router-asns=64512,65200",
            "--peer-router-passwords=c2VzYW1l,",
        ];
        cluster.flags.insert(1, flags.map(str::to_owned).into());
        let namespace = fs::File::open(format!("/run/netns/{}", cluster.name(1))).expect("the namespace of node 1");
        let occupant = thread::spawn(move || {
            let network = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(namespace.as_fd(), network).expect("root may move");
            TcpListener::bind("0.0.0.0:179").expect("it is free")
        });
        let occupant = occupant.join().expect("it listens");
        (1..=3).for_each(|number| cluster.start(number));
        let of_3 = ["10.244.3.0/24 via 192.0.2.3", "fd00:10:244:3::/64 via 2001:db8::3"];
        cluster.until(1, &of_3);
        cluster.until(2, &of_3);
        cluster.until(3, &[OF_1[0], OF_2[0], OF_1[1], OF_2[1]]);
        let troubles = ["Listening(192.0.2.1:179)", "Dialling(192.0.2.2)", "Dialling(192.0.2.200)"];
        for subject in troubles {
            cluster.until_said(1, subject, 1);
        }
        // Long enough for several more tries.
        thread::sleep(Duration::from_secs(6));
        let log = cluster.log(1);
        for subject in troubles {
            assert_eq!(log.matches(subject).count(), 1, "{subject}:\n{log}");
        }
        assert!(!log.contains("sesame") && !log.contains("c2VzYW1l"), "{log}");
        drop(occupant);
        cluster.until_said(1, troubles[0], 2);
        cluster.until_said(1, "BGP operation recovered", 1);
    });
}
