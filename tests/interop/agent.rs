//! The whole agent, with its Node and Services from a directory, beside GoBGP: what the client of GoBGP shows of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Child;

use ipnet::IpNet;
use serde_json::Value;
use sluice::bgp::message::{AsPath, Attributes, Notification, Reason};
use sluice::bgp::speaker::Order;
use sluice::net::Family;

use crate::cell::{Cell, Daemon};
use crate::client::{Client, clients, debians, lines};
use crate::ground::{Host, Topology, eventually, look, with_hosts};
use crate::other::Other;
use crate::ours::{Ours, wanted};

/// An agent that runs on a host; it ends with the test.
pub struct Agent<'a> {
    host: &'a Host,
    running: Child,
}

const FLAGS: [&str; 11] = [
    "--run-service-proxy=false",
    "--run-firewall=false",
    "--enable-ipv6",
    "--enable-cni=false",
    "--enable-overlay=false",
    "--health-port=0",
    "--cluster-asn=65001",
    "--peer-router-ips=192.0.2.2",
    "--peer-router-asns=65002",
    "--advertise-cluster-ip",
    "--hostname-override=node-1",
];
const LOG: &str = "agent.log";

impl<'a> Agent<'a> {
    pub fn start(host: &'a Host, more: &[&str]) -> Agent<'a> {
        fs::create_dir(host.file("manifests")).expect("a directory");
        put(host, "node", &node(1, ""));
        service(host, "web", 9);
        Agent::run(host, &FLAGS, more)
    }

    /// Starts it with what is in the directory already. `more` come in place of the same flags of `flags`.
    pub fn run(host: &'a Host, flags: &[&str], more: &[&str]) -> Agent<'a> {
        let argument = |name: &str, file: &str| format!("--{name}={}", host.file(file).display());
        let places =
            [argument("manifests", "manifests"), argument("state-dir", "state"), argument("socket", "sluice.sock")];
        let command = [env!("CARGO_BIN_EXE_sluice")]
            .into_iter()
            .chain(flags.iter().copied().filter(|flag| !more.iter().any(|one| is_same_flag(one, flag))))
            .chain(more.iter().copied())
            .chain(places.iter().map(String::as_str));
        let words: Vec<&str> = command.collect();
        Agent { host, running: host.start(&words, LOG) }
    }
}

/// The Node of a host, by its number, with these labels.
pub fn node(number: usize, labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: node-{number}, labels: {{{labels}}}}}\n\
         spec: {{podCIDRs: [10.244.{number}.0/24, 'fd00:10:244:{number}::/64']}}\n\
         status: {{addresses: [{{type: InternalIP, address: 192.0.2.{number}}}, {{type: InternalIP, address: '2001:db8::{number}'}}]}}\n"
    )
}

fn is_same_flag(one: &str, other: &str) -> bool {
    one.split('=').next() == other.split('=').next()
}

impl Agent<'_> {
    /// Asks it to end, and waits until it has.
    pub fn end(&mut self) {
        let id = self.running.id().to_string();
        self.host.ask(&["kill", "-TERM", &id]).expect("it runs");
        self.running.wait().expect("it ends");
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- what the agent says\n{}", fs::read_to_string(self.host.file(LOG)).unwrap_or_default());
        }
        drop(self.running.kill());
        drop(self.running.wait());
    }
}

/// Puts a file where the agent looks, all at once.
pub fn put(host: &Host, name: &str, text: &str) {
    fs::write(host.file("new"), text).expect("a file");
    fs::rename(host.file("new"), host.file("manifests").join(format!("{name}.yaml"))).expect("its place");
}

/// A Service with the cluster addresses 10.96.0.N and fd00:10:96::N, and a pod behind it.
fn service(host: &Host, name: &str, number: u8) {
    let slice = |family: &str, pod: &str| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: {family}\n\
             metadata: {{name: {name}-{}, namespace: default, labels: {{kubernetes.io/service-name: {name}}}}}\n\
             ports: [{{port: 8080, protocol: TCP}}]\n\
             endpoints: [{{addresses: ['{pod}'], nodeName: node-1, conditions: {{ready: true}}}}]\n",
            family.to_lowercase()
        )
    };
    let text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\n\
         spec: {{type: ClusterIP, clusterIP: 10.96.0.{number}, clusterIPs: [10.96.0.{number}, 'fd00:10:96::{number}'], \
         ipFamilies: [IPv4, IPv6], ports: [{{port: 80, protocol: TCP, targetPort: 8080}}]}}\n{}{}",
        slice("IPv4", "10.244.1.5"),
        slice("IPv6", "fd00:10:244:1::5")
    );
    put(host, name, &text);
}

/// Runs a test for each client, with an agent on the first host that has a session with GoBGP on the second.
fn with_agent(test: impl Fn(&Client, &Host, &Other) + Send + Sync) {
    with_agent_and(&[], test);
}

/// The same with more flags.
fn with_agent_and(more: &[&str], test: impl Fn(&Client, &Host, &Other) + Send + Sync) {
    for client in clients() {
        with_hosts(2, Topology::Link, |hosts| {
            let cell = Cell::with(Daemon::Gobgp);
            let _agent = Agent::start(&hosts[0], more);
            let other = Other::start(&cell, &hosts[1], vec![&hosts[0]]);
            look(|| hosts[0].ask(&["gobgp", "global"])).expect("the API answers");
            let routes = || found(&debians(), other.host, "global rib");
            let all = ["10.96.0.9/32", "10.244.1.0/24", "203.0.113.0/25", "203.0.113.128/25"];
            eventually("what GoBGP has", &all.map(str::to_owned).to_vec(), routes);
            test(&client, &hosts[0], &other);
        });
    }
}

/// The prefixes that the client lists.
fn found(client: &Client, host: &Host, command: &str) -> Vec<String> {
    let text = client.says(host, command);
    // It puts a mark or a number before each prefix.
    text.lines().skip(1).filter_map(|line| line.split(' ').nth(1)).map(str::to_owned).collect()
}

#[test]
fn the_clients_show_an_agents_neighbours_routes_and_policies() {
    with_agent(|client, host, other| {
        assert_eq!(lines(&client.says(host, "global"))[..2], ["AS: 65001", "Router-ID: 192.0.2.1"]);
        let all = "Peer AS Up/Down State |#Received Accepted\n192.0.2.2 65002 TIME Establ | 4 4";
        eventually("the neighbours", &all.to_owned(), || client.says(host, "neighbor"));
        let four = ["10.96.0.9/32", "10.244.1.0/24", "203.0.113.0/25", "203.0.113.128/25"];
        assert_eq!(found(client, host, "global rib"), four);
        let six = ["2001:db8:113::/64", "2001:db8:113:1::/64", "fd00:10:96::9/128", "fd00:10:244:1::/64"];
        assert_eq!(found(client, host, "global rib -a ipv6"), six);
        assert_eq!(found(client, host, "neighbor 192.0.2.2 adj-out"), four[..2]);
        assert_eq!(found(client, host, "neighbor 192.0.2.2 adj-in"), four[2..]);
        let sets = client.says(host, "policy prefix");
        for set in [
            "podcidrdefinedset 10.244.1.0/24 24..24",
            "servicevipsdefinedset 10.96.0.9/32 32..32",
            "servicevipsdefinedsetv6 fd00:10:96::9/128 128..128",
            "defaultroutedefinedset 0.0.0.0/0 0..7",
        ] {
            assert!(lines(&sets).contains(&set), "{set} is not in\n{sets}");
        }
        let neighbours = client.says(host, "policy neighbor");
        for set in ["allpeerset 0.0.0.0/0", "externalpeerset 192.0.2.2/32"] {
            assert!(lines(&neighbours).contains(&set), "{set} is not in\n{neighbours}");
        }
        let policies = client.says(host, "policy");
        assert!(policies.contains("Name kube_router_import1:") && policies.contains("Name kube_router_export1:"));
        debians().says(other.host, "global rib add 0.0.0.0/0 nexthop 192.0.2.2");
        debians().says(other.host, "global rib add 10.244.1.128/25 nexthop 192.0.2.2");
        let bad = || (found(client, host, "neighbor 192.0.2.2 adj-in").len(), found(client, host, "global rib").len());
        eventually("routes that came and are not used", &(4, 4), bad);
    });
}

#[test]
fn on_a_port_a_client_reads_and_changes_nothing_unless_a_flag_says_so() {
    with_agent(|client, host, _| {
        for command in
            ["global rib add 198.51.100.0/24", "neighbor add 192.0.2.66 as 65002", "neighbor 192.0.2.2 reset"]
        {
            let said = client.refuses(host, command);
            assert!(said.contains("use gobgp.sock") && said.contains("--gobgp-admin-write"), "{command}: {said}");
        }
        assert!(client.says(host, "neighbor").contains("192.0.2.2 65002"));
        assert_eq!(found(client, host, "global rib").len(), 4);
    });
}

#[test]
fn what_a_client_adds_and_what_the_cluster_wants_stand_beside_each_other() {
    with_agent_and(&["--gobgp-admin-write"], |client, host, other| {
        for (prefix, why) in [("10.244.1.128/25", "import policy refuses"), ("192.0.2.0/25", "import policy refuses")] {
            let said = client.refuses(host, &format!("global rib add {prefix}"));
            assert!(said.contains(why), "{prefix}: {said}");
        }
        client.says(host, "global rib add 10.96.0.77/32");
        client.says(host, "global rib add 198.51.100.0/24");
        client.says(host, "neighbor add 192.0.2.66 as 65002");
        let log = fs::read_to_string(host.file(LOG)).unwrap_or_default();
        for change in ["global rib add 198.51.100.0/24 nexthop", "neighbor add 192.0.2.66 as 65002"] {
            let says = |line: &&str| {
                line.contains("changes the BGP configuration")
                    && line.contains(change)
                    && line.contains("client=127.0.0.1:")
            };
            assert_eq!(log.lines().filter(says).count(), 1, "{change}: {log}");
        }
        let theirs = || {
            let wanted = ["10.96.0.77/32", "198.51.100.0/24"];
            found(&debians(), other.host, "global rib")
                .into_iter()
                .filter(|one| wanted.contains(&one.as_str()))
                .collect()
        };
        // The policy of the agent says what leaves: what its Services have, and the pods.
        eventually("what they have", &Vec::<String>::new(), theirs);
        service(host, "more", 77);
        eventually("what they have", &vec!["10.96.0.77/32".to_owned()], theirs);
        client.says(host, "global rib del all");
        let ours = || found(client, host, "global rib");
        let all = ["10.96.0.9/32", "10.96.0.77/32", "10.244.1.0/24", "203.0.113.0/25", "203.0.113.128/25"];
        eventually("what we have", &all.map(str::to_owned).to_vec(), ours);
        assert_eq!(theirs(), ["10.96.0.77/32"], "the cluster wants it");
        assert!(client.refuses(host, "neighbor del 192.0.2.2").contains("the cluster wants neighbor 192.0.2.2"));
        client.says(host, "neighbor del 192.0.2.66");
        assert_eq!(lines(&client.says(host, "neighbor")).len(), 2);
        assert!(client.says(host, "neighbor 192.0.2.2").contains("192.0.2.2"));
    });
}

#[test]
fn the_newer_client_may_use_the_socket_of_the_agent() {
    with_agent(|client, host, _| {
        let target = format!("unix://{}", host.file("gobgp.sock").display());
        let command = format!("--target {target} global");
        if client.is_newer {
            assert_eq!(lines(&client.says(host, &command))[0], "AS: 65001");
        }
    });
}

/// Neighbours wait for what keeps a session, a kubelet for the answer to its probe, and packets for the routes that follow a lost neighbour.
#[test]
fn threads_that_others_wait_for_by_a_clock_have_better_nice_values_than_the_rest() {
    with_hosts(1, Topology::Link, |hosts| {
        let agent = Agent::start(&hosts[0], &["--enable-bfd=true", "--health-port=20244", "--metrics-port=20245"]);
        let prompt = [("bfd", -20), ("bgp", -10), ("listeners", -10), ("router", -10)];
        let expected = prompt.into_iter().chain([("manifests", 0), ("scrapes", 0), ("sluice", 0)]);
        let expected = expected.map(|(name, nice)| (name.to_owned(), nice)).collect();
        let names: BTreeSet<&String> = BTreeMap::keys(&expected).collect();
        eventually("nice values", &expected, || {
            // A thread that collects metrics lives on for seconds. There is no listener at first.
            let _ = hosts[0].inside(|| scrape(20245));
            let all = nice_values(agent.running.id());
            all.into_iter().filter(|(name, _)| names.contains(name)).collect()
        });
    });
}

/// Asks for the metrics on this port of the calling thread's host; returns the answer.
fn scrape(port: u16) -> io::Result<String> {
    let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    connection.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The nice value of each thread of a process, by the thread's name (`/proc/PID/task/TID/stat`: the 19th field; the second one, the name, is in brackets).
fn nice_values(process: u32) -> BTreeMap<String, i32> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).expect("it runs").flatten();
    let stats = threads.filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok());
    let nice = |stat: String| {
        let (name, fields) = stat.split_once('(')?.1.rsplit_once(") ")?;
        Some((name.to_owned(), fields.split(' ').nth(16)?.parse().ok()?))
    };
    stats.filter_map(nice).collect()
}

/// A route of a speaker of ours outside, whose path goes on with these AS numbers.
fn routed(host: &Host, text: &str, path: &[u32]) -> Order {
    let prefix: IpNet = text.parse().expect("a prefix");
    let mut attributes = Attributes::local(host.address(Family::from(prefix)));
    attributes.as_path = AsPath::sequence(path);
    Order::Originate(prefix, Box::new(attributes))
}

/// Asks the agent on a host; `None` where it refuses.
fn asked(host: &Host, words: &[&str]) -> Option<String> {
    let socket = format!("--socket={}", host.file("sluice.sock").display());
    host.ask(&[&[env!("CARGO_BIN_EXE_sluice"), "bgp"], words, &[&socket]].concat())
}

/// The answer in JSON.
fn asked_json(host: &Host, words: &[&str]) -> Value {
    let text = asked(host, &[words, &["-o", "json"]].concat()).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// A prefix, and the AS numbers behind the first of its path.
type Announced<'a> = (&'a str, &'a [u32]);

/// Routers outside on the hosts behind the first, each in an AS of its own, that announce these prefixes with these paths to it.
fn routers(hosts: &[Host], announced: &[(u32, &[Announced<'_>])]) -> Vec<Ours> {
    let router = |(host, (asn, routes)): (&Host, &(u32, &[Announced<'_>]))| {
        let ours = Ours::start(host, *asn, false);
        let cell = Cell { asns: [*asn, 65001], ..Cell::with(Daemon::Bird) };
        ours.want(wanted(&cell, host, &hosts[0]));
        ours.order(routes.iter().map(|(prefix, path)| routed(host, prefix, path)).collect());
        ours
    };
    hosts.iter().skip(1).zip(announced).map(router).collect()
}

/// State of a neighbour by its place in the list, and the routes of each family that are received, accepted and announced.
fn neighbour(host: &Host, place: usize) -> (Value, [[u64; 2]; 3]) {
    let one = asked_json(host, &["peers"])["neighbours"][place].clone();
    let counts = |of: &str| ["ipv4", "ipv6"].map(|family| one[of][family].as_u64().unwrap_or_default());
    (one["state"].clone(), ["received", "accepted", "announced"].map(counts))
}

#[test]
fn an_agent_says_how_its_neighbours_stand_and_why_one_is_not_there() {
    with_hosts(3, Topology::Link, |hosts| {
        let flags = ["--peer-router-ips=192.0.2.2,192.0.2.3", "--peer-router-asns=65002,65003"];
        let agent = Agent::start(&hosts[0], &flags);
        let absent = "apiVersion: v1\nkind: Node\nmetadata: {name: node-9}\nspec: {podCIDRs: [10.244.9.0/24]}\n\
                      status: {addresses: [{type: InternalIP, address: 192.0.2.9}]}\n";
        put(agent.host, "absent", absent);
        let near = [("203.0.113.0/24", &[][..]), ("2001:db8:113::/64", &[]), ("10.96.0.9/32", &[])];
        let far = [("203.0.113.0/24", &[64700][..]), ("fd00:10:96::9/128", &[64700])];
        let _outside = routers(hosts, &[(65002, &near[..]), (65003, &far[..])]);
        // The pods and the Service are announced to both, in both families; what is announced for the Service is not taken.
        let up = |received, accepted| (Value::from("Established"), [received, accepted, [2, 2]]);
        eventually("the first", &up([2, 1], [1, 1]), || neighbour(&hosts[0], 0));
        eventually("the second", &up([1, 1], [1, 0]), || neighbour(&hosts[0], 1));
        let peers = || asked(&hosts[0], &["peers"]).unwrap_or_default();
        let line = |start: &str| peers().lines().find(|line| line.starts_with(start)).unwrap_or_default().to_owned();
        assert!(line("192.0.2.2 ").ends_with("--peer-router-ips"), "{}", peers());
        assert!(line("192.0.2.9 ").ends_with("Node node-9"), "{}", peers());
        let reason = || line("192.0.2.9: ").starts_with("192.0.2.9: not established: last dial failed");
        eventually("why there is no session", &true, reason);
    });
}

#[test]
fn an_agent_says_why_each_route_is_used_or_not() {
    with_hosts(3, Topology::Link, |hosts| {
        let flags = ["--peer-router-ips=192.0.2.2,192.0.2.3", "--peer-router-asns=65002,65003"];
        let _agent = Agent::start(&hosts[0], &flags);
        let near = [
            ("203.0.113.0/24", &[][..]),
            ("2001:db8:113::/64", &[]),
            ("198.51.100.0/24", &[65001]),
            ("2001:db8:51::/64", &[65001]),
            ("10.96.0.9/32", &[]),
            ("fd00:10:96::9/128", &[]),
            ("10.244.1.128/25", &[]),
        ];
        let far = [("203.0.113.0/24", &[64700][..]), ("2001:db8:113::/64", &[64700])];
        let _outside = routers(hosts, &[(65002, &near[..]), (65003, &far[..])]);
        let says = |word: &str| asked(&hosts[0], &["routes", word]).unwrap_or_default();
        let vip = "the prefix is an address of a Service that this node announces";
        for (prefix, parts) in [
            ("203.0.113.0/24", ["kernel: in place: via 192.0.2.2 dev eth0", "at AS_PATH length: 2, not 1"]),
            ("2001:db8:113::/64", ["kernel: in place: via 2001:db8::2 dev eth0", "at AS_PATH length: 2, not 1"]),
            ("203.0.113.7", ["best; accepted by import policy", "not announced: rejected by export policy"]),
            (
                "198.51.100.0/24",
                ["refused: a loop: its AS path contains our AS number 65001", "no route: none is used"],
            ),
            (
                "2001:db8:51::/64",
                ["refused: a loop: its AS path contains our AS number 65001", "no route: none is used"],
            ),
            ("10.96.0.9/32", [vip, "announced with next hop 192.0.2.1, AS path 65001"]),
            ("fd00:10:96::9/128", [vip, "announced with next hop 2001:db8::1, AS path 65001"]),
            ("10.244.1.128/25", ["the prefix is inside of a node's pod range", "no route: none is used"]),
        ] {
            eventually(prefix, &true, || parts.iter().all(|part| says(prefix).contains(part)));
        }
        assert_eq!(asked(&hosts[0], &["routes", "100.64.0.1"]), None, "nobody knows it");
        let all = asked_json(&hosts[0], &["routes"]);
        assert_eq!((all["prefixes"].as_array().map(Vec::len), all["prefixesLeftOff"].as_u64()), (Some(9), Some(0)));
    });
}

#[test]
fn an_agent_that_was_cut_off_announces_services_when_the_nodes_that_it_lost_are_back() {
    with_hosts(3, Topology::Link, |hosts| {
        let agent = Agent::start(&hosts[0], &[]);
        put(agent.host, "other", &node(3, ""));
        // A router outside, and the speaker of another node.
        let speaker = |host: &Host, asn: u32, routes: &[&str]| {
            let ours = Ours::start(host, asn, false);
            ours.want(wanted(&Cell { asns: [asn, 65001], ..Cell::with(Daemon::Bird) }, host, &hosts[0]));
            ours.order(routes.iter().map(|prefix| routed(host, prefix, &[])).collect());
            ours
        };
        let router = speaker(&hosts[1], 65002, &[]);
        let pods = ["10.244.3.0/24", "fd00:10:244:3::/64"];
        let other = speaker(&hosts[2], 65001, &pods);
        let has = |prefix: &str| router.table().iter().any(|route| route.starts_with(prefix));
        let services = || ["10.96.0.9/32", "fd00:10:96::9/128"].map(has);
        let route = |(family, pods)| hosts[0].ask(&["ip", family, "route", "show", pods]).unwrap_or_default();
        let reaches = || [("-4", pods[0]), ("-6", pods[1])].map(|one| !route(one).is_empty());
        eventually("the addresses of the Service, and the routes to pods", &([true; 2], [true; 2]), || {
            (services(), reaches())
        });
        let ours = Family::BOTH.map(|family| hosts[0].address(family));
        for one in [&router, &other] {
            one.order(ours.map(|address| Order::Stop(address, Notification::new(Reason::DECONFIGURED))).into());
        }
        let peers = || asked(&hosts[0], &["peers"]).unwrap_or_default();
        eventually("that it was cut off", &true, || peers().contains("this node was cut off from all neighbours"));
        assert_eq!(asked_json(&hosts[0], &["peers"])["serviceAddresses"], "held");
        router.order(ours.map(Order::Start).into());
        eventually("the pods of the node alone", &(true, [false; 2]), || (has("10.244.1.0/24"), services()));
        other.order(ours.map(Order::Start).into());
        eventually("the addresses of the Service again", &[true; 2], services);
        assert_eq!(reaches(), [true; 2], "the router has them although the node has no routes to pods");
        assert!(!peers().contains("cut off"), "{}", peers());
    });
}
