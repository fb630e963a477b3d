//! Neighbours by link: the whole agent with an external peer that is configured by the name of an interface, beside FRR that has us the same way, and beside an agent of
//! ours. The link between the two hosts has link-local addresses alone.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Child;
use std::time::Duration;

use crate::agent::{Agent, node, put};
use crate::frr;
use crate::ground::{Host, Topology, eventually, look, with_hosts};
use crate::namespace::run;

/// What both hosts call the link between them.
const LINK: &str = "fabric";

const FLAGS: [&str; 7] = [
    "--run-service-proxy=false",
    "--run-firewall=false",
    "--enable-ipv6",
    "--enable-cni=false",
    "--enable-overlay=false",
    "--health-port=0",
    "--bgp-holdtime=9s",
];

/// FRR as a host runs it: the daemon that knows the kernel, and the one of BGP.
struct Frr<'a> {
    host: &'a Host,
    zebra: Child,
    bgpd: Child,
}

impl<'a> Frr<'a> {
    fn start(host: &'a Host) -> Frr<'a> {
        // Both give up root's rights, and have their sockets here.
        fs::set_permissions(host.directory(), fs::Permissions::from_mode(0o777)).expect("a directory of ours");
        let zebra = "hostname theirs\nlog stdout\n";
        let bgpd = format!(
            "hostname theirs\nlog stdout\nrouter bgp 65002\n bgp router-id 192.0.2.2\n no bgp ebgp-requires-policy\n no bgp network import-check\n \
             bgp log-neighbor-changes\n neighbor {LINK} interface remote-as external\n \
             address-family ipv4 unicast\n  network 203.0.113.0/24\n exit-address-family\n \
             address-family ipv6 unicast\n  network 2001:db8:113::/48\n  neighbor {LINK} activate\n exit-address-family\n"
        );
        fs::write(host.file("zebra.conf"), zebra).expect("a file of configuration");
        fs::write(host.file("bgpd.conf"), bgpd).expect("a file of configuration");
        let zebra = daemon(host, "zebra");
        assert!(look(|| host.file("zserv.api").exists().then_some(())).is_some(), "zebra does not answer");
        Frr { host, zebra, bgpd: daemon(host, "bgpd") }
    }

    /// Stops the daemon that advertises the router on its links, or lets it go on; that of BGP runs all the time.
    fn advertises(&self, does: bool) {
        let signal = if does { "-CONT" } else { "-STOP" };
        self.host.ask(&["kill", signal, &self.zebra.id().to_string()]).expect("it runs");
    }

    /// kill -9 of the daemon of BGP, and another one.
    fn restart(&mut self) {
        self.bgpd.kill().expect("it runs");
        self.bgpd.wait().expect("it ends");
        self.bgpd = daemon(self.host, "bgpd");
    }
}

impl Drop for Frr<'_> {
    fn drop(&mut self) {
        for child in [&mut self.bgpd, &mut self.zebra] {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- what FRR says\n{}", fs::read_to_string(self.host.file("log")).unwrap_or_default());
            eprintln!("{}", frr::ask(self.host, "show bgp neighbors").unwrap_or_default());
        }
    }
}

fn daemon(host: &Host, name: &str) -> Child {
    let program = format!("/usr/lib/frr/{name}");
    let file = |name: &str| host.file(name).display().to_string();
    let (config, pid, zebra) = (file(&format!("{name}.conf")), file(&format!("{name}.pid")), file("zserv.api"));
    let directory = host.directory().display().to_string();
    let words =
        [&program, "-P", "0", "--log", "stdout", "-f", &config, "-i", &pid, "-z", &zebra, "--vty_socket", &directory];
    host.start(&words, "log")
}

/// Two hosts with a link of their own between them, and an address of a pod on each.
fn with_link(test: impl Fn(&[Host]) + Send + Sync) {
    with_hosts(2, Topology::Link, |hosts| {
        run(&format!("ip -n host-1 link add {LINK} type veth peer name {LINK} netns host-2"));
        for (number, pods) in
            [(1, ["10.244.1.7/32", "fd00:10:244:1::7/128"]), (2, ["203.0.113.9/32", "2001:db8:113::9/128"])]
        {
            run(&format!("ip -n host-{number} link set {LINK} up"));
            pods.iter().for_each(|pod| drop(run(&format!("ip -n host-{number} address add {pod} dev lo"))));
            hosts[number - 1].inside(|| {
                fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").expect("a setting");
                fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("a setting");
            });
        }
        test(hosts);
    });
}

fn agent<'a>(host: &'a Host, number: usize, more: &[&str]) -> Agent<'a> {
    fs::create_dir_all(host.file("manifests")).expect("a directory");
    put(host, "node", &node(number, ""));
    let name = format!("--hostname-override=node-{number}");
    let asn = format!("--cluster-asn={}", 65000 + number);
    let own = [name.as_str(), asn.as_str()];
    Agent::run(host, &FLAGS, &own.iter().copied().chain(more.iter().copied()).collect::<Vec<_>>())
}

/// The link-local address of a host on the link.
fn link_local(host: &Host) -> String {
    let listed = look(|| {
        let text = host.ask(&["ip", "-6", "-br", "address", "show", "dev", LINK, "scope", "link", "-tentative"])?;
        text.split_whitespace().find(|word| word.starts_with("fe80:"))?.split('/').next().map(str::to_owned)
    });
    listed.expect("an address")
}

/// The kernel's routes of a host to a prefix, without what changes by itself.
fn route(host: &Host, prefix: &str) -> String {
    let family = if prefix.contains(':') { "-6" } else { "-4" };
    let listed = host.ask(&["ip", family, "route", "show", prefix]).unwrap_or_default();
    listed.replace("pref medium", "").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Waits until a host has routes of ours to both families' prefixes by the router on the link, or none.
fn has_routes(host: &Host, prefixes: [&str; 2], by: Option<&str>) {
    let [four, six] = prefixes;
    let expected = match by {
        Some(by) => [
            format!("{four} via inet6 {by} dev {LINK} proto 17"),
            format!("{six} via {by} dev {LINK} proto 17 metric 1024"),
        ],
        None => [String::new(), String::new()],
    };
    eventually("routes in the kernel", &expected, || [route(host, four), route(host, six)]);
}

/// What `sluice bgp` says.
fn asked(host: &Host, words: &[&str]) -> String {
    let socket = format!("--socket={}", host.file("sluice.sock").display());
    let all: Vec<&str> =
        [env!("CARGO_BIN_EXE_sluice"), "bgp"].iter().chain(words).copied().chain([socket.as_str()]).collect();
    host.ask(&all).unwrap_or_default()
}

fn pings(host: &Host, from: &str, to: &str) {
    assert!(look(|| host.ask(&["ping", "-c", "1", "-W", "1", "-I", from, to])).is_some(), "{from} does not reach {to}");
}

const THEIRS: [&str; 2] = ["203.0.113.0/24", "2001:db8:113::/48"];
const OURS: [&str; 2] = ["10.244.1.0/24", "fd00:10:244:1::/64"];

/// Waits until FRR has our routes in its kernel by our address, or none.
fn frr_has_routes(host: &Host, by: Option<&str>) {
    let has = |prefix: &str, via: &str| {
        by.map_or_else(
            || route(host, prefix).is_empty(),
            |by| route(host, prefix).contains(&format!("{via}{by} dev {LINK}")),
        )
    };
    eventually("routes in FRR's kernel", &[true, true], || [has(OURS[0], "via inet6 "), has(OURS[1], "via ")]);
}

#[test]
fn frr_is_found_behind_an_interface_and_routes_of_both_families_go_both_ways() {
    with_link(|hosts| {
        let (us, them) = (&hosts[0], &hosts[1]);
        let flag = format!("--peer-router-interfaces={LINK}");
        let _agent = agent(us, 1, &[&flag]);
        let mut frr = Frr::start(them);
        let (our_address, their_address) = (link_local(us), link_local(them));
        has_routes(us, THEIRS, Some(&their_address));
        frr_has_routes(them, Some(&our_address));
        pings(us, "10.244.1.7", "203.0.113.9");
        pings(them, "203.0.113.9", "10.244.1.7");
        pings(them, "2001:db8:113::9", "fd00:10:244:1::7");
        let name = format!("{their_address}%{LINK}");
        let line = asked(us, &["peers"]).lines().find(|line| line.starts_with(&name)).unwrap_or_default().to_owned();
        assert!(line.contains("65002") && line.contains("Established"), "{}", asked(us, &["peers"]));
        assert!(asked(us, &["routes", THEIRS[0]]).contains(&name), "{}", asked(us, &["routes", THEIRS[0]]));
        // FRR makes a default route of no advertisement of ours: the host of it has none.
        assert_eq!(route(them, "default"), "");
        // The link goes, and comes back.
        run(&format!("ip -n host-2 link set {LINK} down"));
        has_routes(us, THEIRS, None);
        eventually("what is told of it", &true, || {
            asked(us, &["peers"]).contains("external peer fabric: the interface is down")
        });
        run(&format!("ip -n host-2 link set {LINK} up"));
        has_routes(us, THEIRS, Some(&link_local(them)));
        frr_has_routes(them, Some(&our_address));
        // FRR begins again.
        frr.restart();
        eventually("it has begun again", &true, || frr::ask(them, "show bgp summary json").is_some());
        frr_has_routes(them, Some(&our_address));
        has_routes(us, THEIRS, Some(&link_local(them)));
        pings(them, "203.0.113.9", "10.244.1.7");
    });
}

#[test]
fn after_a_kill_the_session_is_with_the_router_of_before_although_another_one_is_heard_first() {
    with_hosts(3, Topology::Link, |hosts| {
        // A switch in the second host, whose own port has the name of the link.
        run(&format!("ip -n host-2 link add {LINK} type bridge mcast_snooping 0"));
        for number in [1, 3] {
            run(&format!("ip -n host-{number} link add {LINK} type veth peer name port-{number} netns host-2"));
            run(&format!("ip -n host-{number} link set {LINK} up"));
            run(&format!("ip -n host-2 link set port-{number} master {LINK} up"));
        }
        run(&format!("ip -n host-2 link set {LINK} up"));
        let (us, them, third) = (&hosts[0], &hosts[1], &hosts[2]);
        let flag = format!("--peer-router-interfaces={LINK}");
        let frr = Frr::start(them);
        let killed = agent(us, 1, &[&flag]);
        let their_address = link_local(them);
        has_routes(us, THEIRS, Some(&their_address));
        drop(killed);
        frr.advertises(false);
        let other = agent(third, 3, &[&flag]);
        let _agent = agent(us, 1, &[&flag]);
        // The other one advertises itself at once, and again after three seconds.
        std::thread::sleep(Duration::from_secs(4));
        frr.advertises(true);
        let stranger = link_local(third);
        let told = format!(
            "the router {stranger} advertises itself there as well; the session is with the first one, {their_address}"
        );
        eventually("what is told of the router that was heard first", &true, || asked(us, &["peers"]).contains(&told));
        let has_session = |name: &str| {
            asked(us, &["peers"]).lines().any(|line| line.starts_with(name) && line.contains("Established"))
        };
        assert!(!has_session(&stranger), "{}", asked(us, &["peers"]));
        // FRR's neighbour on a link is whoever advertised itself last, so that it changes its mind as long as there are two.
        drop(other);
        let session = format!("{their_address}%{LINK}");
        eventually("a session with the one of before", &true, || has_session(&session));
        has_routes(us, THEIRS, Some(&their_address));
    });
}

#[test]
fn frr_that_gets_another_address_is_found_again() {
    with_link(|hosts| {
        let (us, them) = (&hosts[0], &hosts[1]);
        let flag = format!("--peer-router-interfaces={LINK}=65002");
        let _agent = agent(us, 1, &[&flag]);
        let _frr = Frr::start(them);
        let first = link_local(them);
        has_routes(us, THEIRS, Some(&first));
        run(&format!("ip -n host-2 address add fe80::77/64 dev {LINK} nodad"));
        run(&format!("ip -n host-2 address del {first}/64 dev {LINK}"));
        has_routes(us, THEIRS, Some("fe80::77"));
    });
}

#[test]
fn two_agents_of_ours_find_each_other_with_a_password_and_watch_the_path() {
    with_link(|hosts| {
        let peers = format!(
            "[{{interface: {LINK}, remoteasn: external, password: aHVzaA==, ttlsecurity: 1, bfd: {{enabled: true, desired_min_tx_interval: 100, required_min_rx_interval: 100}}}}]"
        );
        let agents = [0, 1].map(|place| {
            let host = &hosts[place];
            fs::create_dir_all(host.file("manifests")).expect("a directory");
            let agent = agent(host, place + 1, &[]);
            let with = node(place + 1, "")
                .replace("metadata: {", &format!("metadata: {{annotations: {{kube-router.io/peers: '{peers}'}}, "));
            put(host, "node", &with);
            agent
        });
        let addresses = [0, 1].map(|place| link_local(&hosts[place]));
        has_routes(&hosts[0], ["10.244.2.0/24", "fd00:10:244:2::/64"], Some(&addresses[1]));
        has_routes(&hosts[1], OURS, Some(&addresses[0]));
        let is_watched =
            || asked(&hosts[0], &["peers", "-o", "json"]).replace(char::is_whitespace, "").contains("\"state\":\"Up\"");
        eventually("the path is watched", &true, is_watched);
        drop(agents);
    });
}
