//! Next hops that cannot be reached any more: what the kernel says of them, and what the whole program makes of it.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use sluice::kernel::route::{Leading, Lookup, sources_to};
use sluice::net::{LinkLocal, PerFamily};
use sluice::router::names::PROTOCOL;

use crate::namespace::{attempt, in_new, own_run, run, shell};

/// `can-reach`: the address of a node must not follow a route that was learned over sessions by that address.
#[test]
fn the_source_towards_an_address_is_that_of_the_best_route_that_was_not_learned() {
    in_new(|| {
        for (link, v4, v6) in
            [("one", "192.0.2.1/24", "2001:db8:1::1/64"), ("two", "198.51.100.1/24", "2001:db8:2::1/64")]
        {
            run(&format!("ip link add {link} type veth peer name far-{link}"));
            shell(&format!("ip link set {link} up; ip link set far-{link} up"));
            shell(&format!("ip address add {v4} dev {link}; ip address add {v6} dev {link} nodad"));
        }
        let to: [IpAddr; 2] = ["203.0.113.1", "2001:db8:113::1"].map(|text| text.parse().expect("an address"));
        let sources = || {
            let found =
                sources_to(PerFamily { v4: Some(to[0]), v6: Some(to[1]) }, PROTOCOL).expect("the kernel answers");
            [found.v4, found.v6].map(|source| source.map_or_else(|| "none".to_owned(), |source| source.to_string()))
        };
        let (one, two, none) = (["192.0.2.1", "2001:db8:1::1"], ["198.51.100.1", "2001:db8:2::1"], ["none", "none"]);
        assert_eq!(sources(), none);
        shell(
            "ip route add 203.0.113.0/24 via 198.51.100.9 proto 17; ip -6 route add 2001:db8:113::/64 via 2001:db8:2::9 proto 17",
        );
        assert_eq!(sources(), none, "nothing else leads there");
        shell("ip route add default via 192.0.2.9; ip -6 route add default via 2001:db8:1::9");
        shell(
            "ip route add default via 198.51.100.9 metric 2000; ip -6 route add default via 2001:db8:2::9 metric 2000",
        );
        assert_eq!(sources(), one, "a default route of others, of two the one that the kernel prefers");
        shell(
            "ip route add 203.0.113.0/25 via 198.51.100.9 proto static; ip -6 route add 2001:db8:113::/65 via 2001:db8:2::9 proto static",
        );
        assert_eq!(sources(), two, "a longer one of others");
        shell("ip route del 203.0.113.0/25; ip -6 route del 2001:db8:113::/65");
        shell("ip route del 203.0.113.0/24; ip -6 route del 2001:db8:113::/64");
        assert_eq!(sources(), one, "without any learned route");
    });
}

#[test]
fn the_kernel_says_where_an_address_leads() {
    in_new(|| {
        run("ip link add one type veth peer name far");
        for command in [
            "link set lo up",
            "link set one up",
            "link set far up",
            "address add 192.0.2.1/24 dev one",
            "address add 2001:db8::1/64 dev one nodad",
            "route add 203.0.113.0/25 via 192.0.2.9 proto 17",
            "route add blackhole 203.0.113.128/26",
            "route add unreachable 203.0.113.192/26",
            "-6 route add 2001:db8:113::/64 via 2001:db8::9 proto 17",
            "-6 route add blackhole 2001:db8:113:1::/64",
            "-6 route add unreachable 2001:db8:113:2::/64",
        ] {
            run(&format!("ip {command}"));
        }
        let mut lookup = Lookup::open().expect("a socket");
        // The kernel takes a moment to notice that there is a carrier, and that there is none.
        let mut until = |to: &str, expected: Leading| {
            let address: IpAddr = to.parse().expect("an address");
            let deadline = Instant::now() + Duration::from_secs(10);
            loop {
                let found = lookup.leading(address).expect("the kernel answers").expect("it says which");
                if found == expected {
                    return;
                }
                assert!(Instant::now() < deadline, "{to}: {found:?}, not {expected:?}");
                thread::sleep(Duration::from_millis(20));
            }
        };
        const KERNEL: u8 = 2;
        let direct = Leading::Somewhere { direct: true, protocol: KERNEL };
        for (to, expected) in [
            ("192.0.2.9", direct),
            ("2001:db8::9", direct),
            ("203.0.113.1", Leading::Somewhere { direct: false, protocol: 17 }),
            ("2001:db8:113::1", Leading::Somewhere { direct: false, protocol: 17 }),
            ("203.0.113.129", Leading::Nowhere),
            ("203.0.113.193", Leading::Nowhere),
            ("2001:db8:113:1::1", Leading::Nowhere),
            ("2001:db8:113:2::1", Leading::Nowhere),
            ("198.51.100.1", Leading::Nowhere),
            ("2001:db8:ffff::1", Leading::Nowhere),
        ] {
            until(to, expected);
        }
        // A neighbour with a link-local address is on its link, and on no other one.
        let listed = run("ip -o link show one");
        let index = listed.split(':').next().expect("a number").trim().parse().expect("a number");
        let on_one = LinkLocal::new("fe80::9".parse().expect("an address"), index).expect("a link");
        let neighbour = on_one.combined().to_string();
        until(&neighbour, direct);
        // The link is up and has no carrier: its routes stay, and lead nowhere.
        run("ip link set far down");
        until(&neighbour, Leading::Nowhere);
        for to in ["192.0.2.9", "2001:db8::9", "203.0.113.1", "2001:db8:113::1"] {
            until(to, Leading::Nowhere);
        }
    });
}

/// A node with two links to the outside, and a router at the end of each that knows the way to the same prefix.
struct Ground {
    prefix: String,
    directory: tempfile::TempDir,
    agents: Vec<Child>,
}

const FLAGS: &[&str] = &[
    "--run-service-proxy=false",
    "--run-firewall=false",
    "--enable-overlay=false",
    "--health-port=0",
    "--gobgp-admin-port=0",
    "--socket=",
    "-v=1",
];

const BEYOND: &str = "10.244.7.0/24";

impl Ground {
    fn new() -> Ground {
        own_run();
        fs::create_dir_all("/run/netns").expect("a directory of names");
        let prefix = format!("nh{}", std::process::id());
        let mut ground = Ground { prefix, directory: tempfile::tempdir().expect("a directory"), agents: Vec::new() };
        let us = ground.name("us");
        run(&format!("ip netns add {us}"));
        run(&format!("ip -n {us} link set lo up"));
        run(&format!("ip -n {us} link add eth0 type bridge"));
        run(&format!("ip -n {us} link set eth0 up"));
        run(&format!("ip -n {us} address add 192.0.2.1/24 dev eth0"));
        for number in 1..=2 {
            let peer = ground.name(&format!("peer{number}"));
            run(&format!("ip netns add {peer}"));
            run(&format!("ip link add eth{number} netns {us} type veth peer name eth0 netns {peer}"));
            run(&format!("ip -n {us} link set eth{number} up"));
            run(&format!("ip -n {us} address add 203.0.113.{}/26 dev eth{number}", number * 64 + 1));
            run(&format!("ip -n {peer} link set lo up"));
            run(&format!("ip -n {peer} address add 203.0.113.{}/26 dev eth0", number * 64 + 2));
            ground.plug(number);
        }
        ground.agent(
            "us",
            "192.0.2.1",
            "10.244.1.0/24",
            &["--peer-router-ips=203.0.113.66,203.0.113.130", "--peer-router-asns=65007,65007"],
        );
        for number in 1..=2 {
            let name = format!("peer{number}");
            let own = format!("203.0.113.{}", number * 64 + 2);
            let outside = ["--cluster-asn=65007", "--peer-router-ips=192.0.2.1", "--peer-router-asns=64512"];
            ground.agent(&name, &own, BEYOND, &outside);
        }
        ground
    }

    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The far end of a link carries something again.
    fn plug(&self, number: usize) {
        let peer = self.name(&format!("peer{number}"));
        run(&format!("ip -n {peer} link set eth0 up"));
        run(&format!("ip -n {peer} route replace 192.0.2.1 via 203.0.113.{}", number * 64 + 1));
    }

    fn unplug(&self, number: usize) {
        run(&format!("ip -n {} link set eth0 down", self.name(&format!("peer{number}"))));
    }

    fn agent(&mut self, name: &str, address: &str, pods: &str, flags: &[&str]) {
        let directory = self.directory.path().join(name);
        fs::create_dir_all(directory.join("manifests")).expect("a directory");
        let node = format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nspec: {{podCIDRs: [{pods}]}}\n\
             status: {{addresses: [{{type: InternalIP, address: {address}}}]}}\n"
        );
        fs::write(directory.join("manifests/nodes.yaml"), node).expect("a file");
        let log = fs::File::create(directory.join("log")).expect("a log");
        let child = Command::new("ip")
            .args(["netns", "exec", &self.name(name), env!("CARGO_BIN_EXE_sluice")])
            .args(FLAGS)
            .args(flags)
            .arg(format!("--hostname-override={name}"))
            .arg(format!("--manifests={}", directory.join("manifests").display()))
            .arg(format!("--state-dir={}", directory.join("state").display()))
            .env("KUBE_ROUTER_CNI_CONF_FILE", directory.join("cni.conflist"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log"))
            .stderr(log)
            .spawn()
            .expect("the program");
        self.agents.push(child);
    }

    fn log(&self, name: &str) -> String {
        read(&self.directory.path().join(name).join("log"))
    }

    /// The next hops that our kernel has for the prefix beyond.
    fn next_hops(&self) -> Vec<String> {
        let listed = run(&format!("ip -n {} route show {BEYOND} proto 17", self.name("us")));
        let words: Vec<&str> = listed.split_whitespace().collect();
        let mut found: Vec<String> = words
            .iter()
            .zip(words.iter().skip(1))
            .filter(|(word, _)| **word == "via")
            .map(|(_, hop)| (*hop).to_owned())
            .collect();
        found.sort();
        found
    }

    fn until(&self, what: &str, right: impl Fn(&[String]) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !right(&self.next_hops()) {
            let [us, one, two] = ["us", "peer1", "peer2"].map(|name| self.log(name));
            assert!(Instant::now() < deadline, "{what}: {:?}\n{us}\n--\n{one}\n--\n{two}", self.next_hops());
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

impl Drop for Ground {
    fn drop(&mut self) {
        for child in &mut self.agents {
            drop(child.kill());
            drop(child.wait());
        }
        for name in ["us", "peer1", "peer2"] {
            drop(attempt(&format!("ip netns delete {}", self.name(name))));
        }
    }
}

const ONE: &str = "203.0.113.66";
const TWO: &str = "203.0.113.130";

#[test]
fn a_route_whose_next_hop_is_lost_gives_way_and_comes_back_long_before_the_session_ends() {
    in_new(|| {
        let ground = Ground::new();
        ground.until("the way by either", |hops| !hops.is_empty());
        let both = |ground: &Ground| ground.log("us").matches("BGP session is up").count() >= 2;
        ground.until("both sessions", |_| both(&ground));
        for (number, lost, left) in [(1, ONE, TWO), (2, TWO, ONE)] {
            ground.unplug(number);
            ground.until("the other way alone", |hops| hops == [left]);
            assert!(ground.log("us").contains(lost), "it is said");
            // Then nothing is reached at all: it may be us, and what is there stays.
            ground.unplug(3 - number);
            thread::sleep(Duration::from_secs(5));
            assert_eq!(ground.next_hops(), [left], "{}", ground.log("us"));
            ground.plug(3 - number);
            ground.plug(number);
            let reached = |ground: &Ground| ground.log("us").matches("count=0").count() >= number;
            ground.until("that it is reached again", |_| reached(&ground));
        }
        assert!(!ground.log("us").contains("BGP session is down"), "{}", ground.log("us"));
    });
}
