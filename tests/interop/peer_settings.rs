//! Settings of single peers in the annotation `kube-router.io/peers`, as an agent follows them: each beside a speaker of ours
//! outside, over either family.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use sluice::bgp::message::{Attributes, Community, Reason};
use sluice::bgp::session::State;
use sluice::bgp::speaker::Order;
use sluice::net::Family;

use crate::agent::{Agent, put};
use crate::cell::{Cell, Daemon, Dials, Hops};
use crate::ground::{Host, Topology, eventually, with_hosts};
use crate::ours::{Ours, plain, received, wanted};

const FLAGS: [&str; 9] = [
    "--run-service-proxy=false",
    "--run-firewall=false",
    "--enable-ipv6",
    "--enable-cni=false",
    "--enable-overlay=false",
    "--health-port=0",
    "--gobgp-admin-port=0",
    "--cluster-asn=65001",
    "--hostname-override=node-1",
];

/// A Node with these annotations, each a key without its prefix and a value on one line.
fn put_node(host: &Host, number: u8, annotations: &[(&str, &str)]) {
    let annotations: String =
        annotations.iter().map(|(key, value)| format!("    kube-router.io/{key}: '{value}'\n")).collect();
    let annotations = if annotations.is_empty() { annotations } else { format!("  annotations:\n{annotations}") };
    let text = format!(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: node-{number}\n{annotations}\
         spec: {{podCIDRs: [10.244.{number}.0/24, \"fd00:10:244:{number}::/64\"]}}\n\
         status: {{addresses: [{{type: InternalIP, address: 192.0.2.{number}}}, {{type: InternalIP, address: \"2001:db8::{number}\"}}]}}\n"
    );
    put(host, &format!("node-{number}"), &text);
}

/// Puts the Node of the first host with one external peer in AS 65002 that has these settings.
fn put_peer(host: &Host, peer: IpAddr, settings: &str) {
    put_node(host, 1, &[("peers", &format!("[{{remoteip: \"{peer}\", remoteasn: 65002, {settings}}}]"))]);
}

/// An agent on the first host whose peer, on the second, has these settings.
fn agent<'a>(hosts: &'a [Host], over: Family, settings: &str, more: &[&str]) -> Agent<'a> {
    std::fs::create_dir(hosts[0].file("manifests")).expect("a directory");
    put_peer(&hosts[0], hosts[1].address(over), settings);
    Agent::run(&hosts[0], &FLAGS, more)
}

/// A speaker outside on the second host, and how it sees the agent.
fn outside(hosts: &[Host], cell: &Cell) -> Ours {
    let ours = Ours::start(&hosts[1], 65002, false);
    ours.want(wanted(cell, &hosts[1], &hosts[0]));
    ours
}

/// The cell of a session, seen from the speaker outside.
fn cell(over: Family) -> Cell {
    Cell { asns: [65002, 65001], over, ..Cell::with(Daemon::Bird) }
}

fn answer(host: &Host) -> Value {
    let socket = format!("--socket={}", host.file("sluice.sock").display());
    let text = host.ask(&[env!("CARGO_BIN_EXE_sluice"), "bgp", "peers", "-o", "json", &socket]).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// State of the only neighbour of an agent, and how many sessions with it have ended.
fn neighbour(host: &Host) -> (String, u64) {
    let one = answer(host)["neighbours"][0].clone();
    (one["state"].as_str().unwrap_or_default().to_owned(), one["sessionsEnded"].as_u64().unwrap_or_default())
}

fn over_both(test: impl Fn(&[Host], Family) + Send + Sync) {
    for over in Family::BOTH {
        with_hosts(2, Topology::Link, |hosts| test(hosts, over));
    }
}

#[test]
fn the_hold_time_of_a_peer_precedes_that_of_the_flag() {
    over_both(|hosts, over| {
        let _agent = agent(hosts, over, "holdtime: 9", &["--bgp-holdtime=60s"]);
        let ours = outside(hosts, &cell(over));
        let us = hosts[0].address(over);
        ours.is_up(us);
        let agreed = |neighbour: &sluice::bgp::speaker::Neighbour| neighbour.peer().agreement().map(|it| it.hold_time);
        assert_eq!(ours.of(us, agreed), Some(9));
        put_peer(&hosts[0], hosts[1].address(over), "port: 179");
        eventually("the flag's, when the annotation says nothing", &Some(60), || ours.of(us, agreed));
    });
}

#[test]
fn a_peer_with_ttl_security_is_spoken_with_if_it_is_as_near_as_that() {
    over_both(|hosts, over| {
        let _agent = agent(hosts, over, "ttlsecurity: 1", &[]);
        let us = hosts[0].address(over);
        let ours = outside(hosts, &Cell { hops: Hops::Secured(1), ..cell(over) });
        ours.is_up(us);
        // With any other TTL than 255 it is one that may be far away.
        ours.want(wanted(&Cell { hops: Hops::Multihop(64), ..cell(over) }, &hosts[1], &hosts[0]));
        let dropped = hosts[0].counter("TCPMinTTLDrop");
        eventually("that its packets are dropped", &true, || hosts[0].counter("TCPMinTTLDrop") > dropped);
        // The other end may count as established by itself: its OPEN may have waited with a connection that was not accepted yet, and is
        // answered. Its KEEPALIVE is dropped, so here there is no session.
        eventually("that the session ends", &true, || neighbour(&hosts[0]).0 != "Established");
        for _ in 0..20 {
            assert_ne!(neighbour(&hosts[0]).0, "Established");
            std::thread::sleep(Duration::from_millis(100));
        }
        ours.want(wanted(&Cell { hops: Hops::Secured(1), ..cell(over) }, &hosts[1], &hosts[0]));
        ours.is_up(us);
    });
}

#[test]
fn a_peer_behind_a_router_needs_multihop_of_its_own() {
    for over in Family::BOTH {
        with_hosts(2, Topology::Router, |hosts| {
            let _agent = agent(hosts, over, "multihop: 2", &[]);
            let ours = outside(hosts, &Cell { hops: Hops::Multihop(2), ..cell(over) });
            ours.is_up(hosts[0].address(over));
        });
    }
}

/// Orders by which a speaker announces so many prefixes of a family.
fn routes(host: &Host, family: Family, count: u8) -> Vec<Order> {
    let prefix = |number: u8| match family {
        Family::V4 => format!("203.0.113.{number}/32"),
        Family::V6 => format!("2001:db8:113::{number}/128"),
    };
    let one = |number: u8| {
        let attributes = Attributes::local(host.address(family));
        Order::Originate(prefix(number).parse().expect("a prefix"), Box::new(attributes))
    };
    (1..=count).map(one).collect()
}

#[test]
fn a_peer_with_more_prefixes_than_it_may_have_loses_its_session_until_that_is_mended() {
    for family in Family::BOTH {
        over_both(|hosts, over| {
            let name = if family == Family::V4 { "ipv4" } else { "ipv6" };
            let limit = |most: u8| format!("maxprefixes: {{{name}: {most}}}");
            let _agent = agent(hosts, over, &limit(3), &[]);
            let us = hosts[0].address(over);
            let ours = outside(hosts, &cell(over));
            ours.order(routes(&hosts[1], family, 3));
            ours.is_up(us);
            let accepted = || answer(&hosts[0])["neighbours"][0]["accepted"][name].as_u64();
            eventually("as many as it may have", &Some(3), accepted);
            ours.order(routes(&hosts[1], family, 4));
            let said = ours.learns("why the session ends", received);
            assert_eq!(said.reason, Reason::MAXIMUM_PREFIXES);
            eventually("that it stays away", &("Idle".to_owned(), 1), || neighbour(&hosts[0]));
            let reasons = answer(&hosts[0])["neighbours"][0]["reasons"].to_string();
            assert!(reasons.contains("maximum number of prefixes"), "{reasons}");
            put_peer(&hosts[0], hosts[1].address(over), &limit(4));
            eventually("all of them", &Some(4), accepted);
            put_peer(&hosts[0], hosts[1].address(over), &limit(2));
            eventually("a limit that is lower than what is there", &("Idle".to_owned(), 2), || neighbour(&hosts[0]));
        });
    }
}

/// `--bgp-mesh-max-prefixes`: what another node may tell, before it is looked at whose it is.
#[test]
fn a_node_that_tells_more_prefixes_than_nodes_may_loses_its_session() {
    over_both(|hosts, _| {
        std::fs::create_dir(hosts[0].file("manifests")).expect("a directory");
        (1..=2).for_each(|number| put_node(&hosts[0], number, &[]));
        let _agent = Agent::run(&hosts[0], &FLAGS, &["--bgp-mesh-max-prefixes=3"]);
        let node = Ours::start(&hosts[1], 65001, false);
        node.want(plain(&hosts[1], &hosts[0]));
        node.order(routes(&hosts[1], Family::V6, 3));
        node.is_up(hosts[0].address(Family::V4));
        node.order(routes(&hosts[1], Family::V4, 3));
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(neighbour(&hosts[0]), ("Established".to_owned(), 0), "three of each family");
        node.order(routes(&hosts[1], Family::V4, 4));
        let said = node.learns("why the session ends", received);
        assert_eq!(said.reason, Reason::MAXIMUM_PREFIXES);
        eventually("that it stays away", &("Idle".to_owned(), 1), || neighbour(&hosts[0]));
    });
}

/// RFC 8326 4.1: what a router announces with GRACEFUL_SHUTDOWN loses to any other way.
#[test]
fn packets_leave_a_router_that_says_it_leaves_before_it_is_gone_and_come_back_when_it_stays() {
    for over in Family::BOTH {
        with_hosts(3, Topology::Link, |hosts| {
            std::fs::create_dir(hosts[0].file("manifests")).expect("a directory");
            let peer = |host: &Host| format!("{{remoteip: \"{}\", remoteasn: 65002}}", host.address(over));
            let peers = format!("[{}, {}]", peer(&hosts[1]), peer(&hosts[2]));
            put_node(&hosts[0], 1, &[("peers", &peers)]);
            let _agent = Agent::run(&hosts[0], &FLAGS, &[]);
            let start = |host: &Host| {
                let router = Ours::start(host, 65002, false);
                router.want(wanted(&cell(over), host, &hosts[0]));
                router
            };
            let routers = [start(&hosts[1]), start(&hosts[2])];
            let announce = |number: usize, communities: &[Community]| {
                let mut attributes = Attributes::local(hosts[number].address(over));
                attributes.add_communities(communities);
                let prefix = destination(over).parse().expect("a prefix");
                routers[number - 1].order(vec![Order::Originate(prefix, Box::new(attributes))]);
            };
            let ways = || {
                let family = if over == Family::V4 { "-4" } else { "-6" };
                let shown = hosts[0].ask(&["ip", family, "route", "show", destination(over)]).unwrap_or_default();
                let gateways = shown.split("via ").skip(1).filter_map(|rest| rest.split_whitespace().next());
                gateways.map(str::to_owned).collect::<BTreeSet<String>>()
            };
            let through = |numbers: &[usize]| -> BTreeSet<String> {
                numbers.iter().map(|number| hosts[*number].address(over).to_string()).collect()
            };
            (1..=2).for_each(|number| announce(number, &[]));
            eventually("both ways", &through(&[1, 2]), ways);
            announce(1, &[Community::GRACEFUL_SHUTDOWN]);
            eventually("the way that stays", &through(&[2]), ways);
            announce(2, &[Community::GRACEFUL_SHUTDOWN]);
            eventually("both, as there is no better one", &through(&[1, 2]), ways);
            announce(1, &[]);
            eventually("the way that stays again", &through(&[1]), ways);
        });
    }
}

fn destination(family: Family) -> &'static str {
    if family == Family::V4 { "203.0.113.1/32" } else { "2001:db8:113::1/128" }
}

#[test]
fn a_peer_that_shares_the_link_with_the_nodes_may_be_told_their_own_next_hops() {
    with_hosts(3, Topology::Link, |hosts| {
        std::fs::create_dir(hosts[0].file("manifests")).expect("a directory");
        let put_first = |settings: &str| {
            let peers = format!("[{{remoteip: 192.0.2.2, remoteasn: 65002{settings}}}]");
            put_node(&hosts[0], 1, &[("rr.server", "42"), ("peers", &peers)]);
        };
        put_first("");
        put_node(&hosts[0], 3, &[]);
        let _agent = Agent::run(&hosts[0], &FLAGS, &[]);
        let router = outside(hosts, &cell(Family::V4));
        let node = Ours::start(&hosts[2], 65001, false);
        node.want(plain(&hosts[2], &hosts[0]));
        let pods = |text: &str, family: Family| {
            Order::Originate(text.parse().expect("a prefix"), Box::new(Attributes::local(hosts[2].address(family))))
        };
        node.order(vec![pods("10.244.3.0/24", Family::V4), pods("fd00:10:244:3::/64", Family::V6)]);
        let of_node = || {
            let routes = router.table().into_iter().filter(|line| line.contains("244.3.") || line.contains("244:3:"));
            routes.map(|line| line.split(" path").next().unwrap_or_default().to_owned()).collect::<Vec<_>>()
        };
        let via = |number: u8| {
            vec![format!("10.244.3.0/24 via 192.0.2.{number}"), format!("fd00:10:244:3::/64 via 2001:db8::{number}")]
        };
        eventually("as BGP does: by the reflector", &via(1), of_node);
        put_first(", nexthopself: false");
        eventually("by the node itself", &via(3), of_node);
        put_first(", nexthopself: true");
        eventually("by the reflector again", &via(1), of_node);
    });
}

#[test]
fn a_password_comes_from_the_file_that_is_named_and_from_no_other_place() {
    over_both(|hosts, over| {
        let passwords = hosts[0].file("passwords");
        std::fs::create_dir(&passwords).expect("a directory");
        std::fs::write(passwords.join("router"), "aHVzaA==\n").expect("a file");
        let flag = format!("--peer-router-passwords-dir={}", passwords.display());
        let _agent = agent(hosts, over, "passwordfile: router", &[&flag]);
        let us = hosts[0].address(over);
        let with = |password| Cell { passwords: [Some(password), None], ..cell(over) };
        let ours = outside(hosts, &with("hush"));
        ours.is_up(us);
        // One end after the other, and the session stays.
        std::fs::write(passwords.join("router"), "c2lsZW50").expect("a file");
        std::thread::sleep(Duration::from_secs(7));
        let accepted = || answer(&hosts[0])["neighbours"][0]["accepted"]["ipv4"].as_u64();
        ours.order(routes(&hosts[1], Family::V4, 1));
        std::thread::sleep(Duration::from_secs(2));
        assert_ne!(accepted(), Some(1), "what is said with the old password");
        ours.want(wanted(&with("silent"), &hosts[1], &hosts[0]));
        eventually("what is said with the new password", &Some(1), accepted);
        assert_eq!(neighbour(&hosts[0]), ("Established".to_owned(), 0));
        // From another file, and then from the annotation itself.
        std::fs::write(passwords.join("other"), "aHVzaA==").expect("a file");
        for (count, settings, password) in [
            (2, "passwordfile: other", "hush"),
            (3, "password: c2lsZW50", "silent"),
            (4, "passwordfile: other", "hush"),
        ] {
            put_peer(&hosts[0], hosts[1].address(over), settings);
            std::thread::sleep(Duration::from_secs(2));
            ours.order(routes(&hosts[1], Family::V4, count));
            std::thread::sleep(Duration::from_secs(1));
            assert_ne!(accepted(), Some(count.into()), "with the password of before: {settings}");
            ours.want(wanted(&with(password), &hosts[1], &hosts[0]));
            eventually(settings, &Some(count.into()), accepted);
            assert_eq!(neighbour(&hosts[0]), ("Established".to_owned(), 0), "{settings}");
        }
        // A file elsewhere is not read: the session stays with the password of before, and none is made where there was none.
        let elsewhere = "passwordfile: ../passwords/router";
        put_peer(&hosts[0], hosts[1].address(over), elsewhere);
        std::thread::sleep(Duration::from_secs(2));
        ours.order(routes(&hosts[1], Family::V4, 5));
        eventually(elsewhere, &Some(5), accepted);
        assert_eq!(neighbour(&hosts[0]), ("Established".to_owned(), 0));
        let nobody = if us.is_ipv4() { "203.0.113.9" } else { "2001:db8:9::9" };
        put_peer(&hosts[0], nobody.parse().expect("an address"), elsewhere);
        eventually("no neighbour", &Some(0), || answer(&hosts[0])["neighbours"].as_array().map(Vec::len));
    });
}

#[test]
fn nodes_take_a_new_password_one_after_the_other_and_keep_their_session() {
    with_hosts(2, Topology::Link, |hosts| {
        for host in &hosts[..2] {
            std::fs::create_dir(host.file("manifests")).expect("a directory");
            (1..=2).for_each(|number| put_node(host, number, &[]));
            std::fs::write(host.file("password"), "").expect("a file");
        }
        let start = |place: usize| {
            let (name, file) = (format!("--hostname-override=node-{}", place + 1), hosts[place].file("password"));
            Agent::run(&hosts[place], &FLAGS, &[&name, &format!("--bgp-mesh-password-file={}", file.display())])
        };
        let mut agents = vec![start(0), start(1)];
        let both = || [neighbour(&hosts[0]), neighbour(&hosts[1])];
        let up = ("Established".to_owned(), 0);
        eventually("a session without a password", &[up.clone(), up.clone()], both);
        for (number, password) in ["aHVzaA==", "c2lsZW50", ""].into_iter().enumerate() {
            std::fs::write(hosts[0].file("password"), password).expect("a file");
            // An empty file counts when it is so twice.
            std::thread::sleep(Duration::from_secs(if password.is_empty() { 12 } else { 7 }));
            // What one says with it the other does not hear, before it has it, too.
            let range = format!("10.245.{number}.0/24");
            let has_route = || {
                hosts[1]
                    .ask(&["ip", "-4", "route", "show", &range])
                    .is_some_and(|found| found.contains("via 192.0.2.1"))
            };
            hosts[..2].iter().for_each(|host| put_node(host, 1, &[("pod-cidrs", &range)]));
            std::thread::sleep(Duration::from_secs(2));
            assert!(!has_route(), "only one has {password:?}");
            std::fs::write(hosts[1].file("password"), password).expect("a file");
            eventually("what it has said", &true, has_route);
            assert_eq!(both(), [up.clone(), up.clone()], "with {password:?}");
        }
        std::fs::write(hosts[0].file("password"), "aHVzaA==").expect("a file");
        std::fs::write(hosts[1].file("password"), "aHVzaA==").expect("a file");
        std::thread::sleep(Duration::from_secs(7));
        // A node that starts has it, and one with another one is not spoken with.
        agents.pop().expect("the second").end();
        std::fs::write(hosts[1].file("password"), "c2lsZW50").expect("a file");
        let other = start(1);
        eventually("that it is gone", &false, || neighbour(&hosts[0]).0 == "Established");
        std::thread::sleep(Duration::from_secs(5));
        assert_ne!(neighbour(&hosts[0]).0, "Established");
        std::fs::write(hosts[1].file("password"), "aHVzaA==").expect("a file");
        eventually("a session", &"Established".to_owned(), || neighbour(&hosts[0]).0);
        drop(other);
    });
}

#[test]
fn nodes_with_ttl_security_speak_with_each_other_and_hear_no_node_without_it() {
    with_hosts(2, Topology::Link, |hosts| {
        for host in &hosts[..2] {
            std::fs::create_dir(host.file("manifests")).expect("a directory");
            (1..=2).for_each(|number| put_node(host, number, &[]));
        }
        let start = |place: usize, more: &[&str]| {
            let name = format!("--hostname-override=node-{}", place + 1);
            Agent::run(&hosts[place], &FLAGS, &[&[name.as_str()], more].concat())
        };
        let secured = ["--bgp-mesh-ttl-security=1", "--bgp-mesh-holdtime=9s"];
        let _one = start(0, &secured);
        let mut other = start(1, &secured);
        eventually("a session", &"Established".to_owned(), || neighbour(&hosts[0]).0);
        other.end();
        let _other = start(1, &[]);
        eventually("that the kernel drops it", &true, || hosts[0].counter("TCPMinTTLDrop") > 2);
        assert_ne!(neighbour(&hosts[0]).0, "Established");
    });
}

#[test]
fn a_connection_whose_dial_is_older_than_the_password_is_none_without_it() {
    over_both(|hosts, over| {
        let with = |password: Option<&'static str>, dials| Cell {
            passwords: [password; 2],
            over,
            dials,
            ..Cell::inside(Daemon::Bird)
        };
        let ours = |password| wanted(&with(password, Dials::We), &hosts[0], &hosts[1]);
        let theirs = |password| wanted(&with(password, Dials::They), &hosts[1], &hosts[0]);
        let (dialling, dialled) = (Ours::start(&hosts[0], 65001, false), Ours::start(&hosts[1], 65001, false));
        let dropped = hosts[1].counter("TCPMD5NotFound");
        dialled.want(theirs(Some("hush")));
        dialling.want(ours(None));
        eventually("a dial that nobody hears", &true, || hosts[1].counter("TCPMD5NotFound") > dropped);
        dialling.want(ours(Some("hush")));
        assert_ne!(dialling.state(hosts[1].address(over)), State::Established);
        dialled.want(theirs(None));
        for _ in 0..80 {
            assert_ne!(dialling.state(hosts[1].address(over)), State::Established, "without the password");
            std::thread::sleep(Duration::from_millis(100));
        }
        dialled.want(theirs(Some("hush")));
        dialling.is_up(hosts[1].address(over));
    });
}

/// More than a socket has room for where each has a key of its own.
const NODES: u32 = 2000;

#[test]
fn thousands_of_nodes_with_one_password_are_let_in_and_one_without_is_not_hindered() {
    use sluice::bgp::driver::{Event, Subject};
    over_both(|hosts, over| {
        let ours = Ours::start(&hosts[0], 65001, false);
        let with =
            |password: Option<&'static str>| Cell { passwords: [password; 2], over, ..Cell::inside(Daemon::Bird) };
        let mut orders = Vec::new();
        for number in 0..NODES {
            let mut one = wanted(&with(Some("hush")), &hosts[0], &hosts[1]);
            one.settings.passive = true;
            one.address = match over {
                Family::V4 => IpAddr::from((u32::from_be_bytes([198, 18, 0, 0]) + number).to_be_bytes()),
                Family::V6 => format!("2001:db8:2::{number:x}").parse().expect("an address"),
            };
            orders.push(Order::Want(Arc::new(one)));
        }
        ours.order(orders);
        let them = hosts[1].address(over);
        let mut passive = wanted(&with(Some("hush")), &hosts[0], &hosts[1]);
        passive.settings.passive = true;
        ours.want(passive);
        let other = Ours::start(&hosts[1], 65001, false);
        other.want(wanted(&with(Some("hush")), &hosts[1], &hosts[0]));
        ours.is_up(them);
        let refused = ours.heard().iter().any(|event| matches!(event, Event::Trouble(Subject::Password(_), Some(_))));
        assert!(!refused, "the kernel has room for the keys");
        // The same neighbour without a password, amid all the others.
        let mut open = wanted(&with(None), &hosts[0], &hosts[1]);
        open.settings.passive = true;
        ours.order(vec![Order::Remove(them, sluice::bgp::message::Notification::new(Reason::DECONFIGURED))]);
        // It hears of that by a signed message, which it would drop once it has no password.
        let us = hosts[0].address(over);
        eventually("that the session has ended there", &true, || other.state(us) != State::Established);
        ours.want(open);
        other.want(wanted(&with(None), &hosts[1], &hosts[0]));
        ours.is_up(them);
    });
}
