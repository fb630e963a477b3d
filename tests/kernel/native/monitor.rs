//! Notifications of the kernel: changes by others are reported, our own are not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use sluice::kernel::Name;
use sluice::kernel::address::{AddressKey, Addresses, KEEPER};
use sluice::kernel::iptables::{Flavour, Leftovers, Ownership as RuleOwnership, Piece, Programs, Rules, Table, Tables};
use sluice::kernel::link::{self, LinkName};
use sluice::kernel::monitor::{Changes, Monitor, Watched, start};
use sluice::kernel::netlink::{Bus, Listener, Messages, Socket, flag};
use sluice::kernel::route::{
    NextHop, Ownership, Protocol, Route, RouteKey, RouteKind, Routes, TABLE_LOCAL, TABLE_MAIN,
};
use sluice::kernel::rule::PolicyRules;
use sluice::net::{Family, PerFamily, Prefixes};
use sluice::proxy::dsr::rules::policy_rule;
use sluice::proxy::marks::is_rule_of_ours;
use sluice::reconcile::{Growth, Mirror, Phase, Step, Target};
use tokio::sync::watch;

use super::moment;
use crate::namespace::{in_new, own_run, run};

/// Two devices, the first of which is ours, and a monitor that has heard of nothing yet.
fn monitor() -> watch::Receiver<Changes> {
    run("ip link add ours type veth peer name theirs");
    for device in ["ours", "theirs"] {
        // Link-local addresses come some seconds later, and would be told.
        run(&format!("ip link set {device} addrgenmode none"));
        run(&format!("ip link set {device} up"));
    }
    let changes = start(watched()).expect("a monitor");
    quiet(&changes);
    changes
}

fn watched() -> Watched {
    let routes = vec![Protocol { table: TABLE_MAIN, protocol: 17 }];
    Watched { ours: vec![LinkName("ours".into())], routes, ..Watched::default() }
}

/// Waits until nothing has been told for a while.
fn quiet(changes: &watch::Receiver<Changes>) -> Changes {
    let mut before = *changes.borrow();
    for _ in 0..100 {
        thread::sleep(Duration::from_secs(1));
        let now = *changes.borrow();
        if now == before {
            return now;
        }
        before = now;
    }
    panic!("it never gets quiet");
}

/// Waits until enough has been told; panics where it is not within ten seconds.
fn until(changes: &watch::Receiver<Changes>, enough: impl Fn(&Changes) -> bool) -> Changes {
    for _ in 0..1000 {
        let now = *changes.borrow();
        if enough(&now) {
            return now;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("not told: {:?}", *changes.borrow());
}

#[test]
fn routes_of_others_within_watched_prefixes_are_told_and_those_beside_them_are_not() {
    in_new(|| {
        let (prefixes, watched_prefixes) = watch::channel(Prefixes::default());
        run("ip link add other type veth peer name theirs");
        for device in ["other", "theirs"] {
            run(&format!("ip link set {device} addrgenmode none"));
            run(&format!("ip link set {device} up"));
        }
        run("ip route add 10.244.2.0/24 dev other proto 17");
        let changes = start(Watched { prefixes: Some(watched_prefixes), ..watched() }).expect("a monitor");
        quiet(&changes);
        let routes_told = |command: &str, told: u64| {
            let before = changes.borrow().routes;
            run(command);
            until(&changes, |now| now.routes >= before + told);
            quiet(&changes).routes - before
        };
        assert_eq!(routes_told("ip route add 10.244.2.128/25 dev other", 0), 0, "nothing is known of pods there");
        prefixes.send_modify(|prefixes| {
            for prefix in ["10.244.2.0/24", "fd00:10:244:2::/64"] {
                prefixes.insert(prefix.parse().expect("a prefix"));
            }
        });
        for (command, told) in [
            ("ip route delete 10.244.2.128/25 dev other", 1),
            ("ip route replace 10.244.2.0/24 dev other", 1),
            ("ip -6 route add unreachable fd00:10:244:2::/64 metric 50", 1),
            ("ip -6 route add prohibit fd00:10:244:2::7/128", 1),
            ("ip route add 10.244.0.0/16 dev other", 0),
            ("ip route add 10.244.3.0/24 dev other", 0),
            ("ip route add 10.244.2.0/24 dev other table 78", 0),
        ] {
            assert_eq!(routes_told(command, told), told, "{command}");
        }
    });
}

#[test]
fn rules_that_lead_to_a_table_of_ours_and_routes_in_one_are_told_in_both_families() {
    in_new(|| {
        run("ip link add ours type bridge");
        run("ip link add other type bridge");
        for device in ["ours", "other"] {
            run(&format!("ip link set {device} addrgenmode none"));
            run(&format!("ip link set {device} up"));
        }
        let of_table = Watched { tables: vec![78], led_to: vec![77, 78], ..watched() };
        let mut monitor = Monitor::open(of_table).expect("a monitor");
        let mut told = |command: &str| {
            let before = monitor.hear();
            run(command);
            let now = monitor.hear();
            (now.routing_rules - before.routing_rules, now.local_routes - before.local_routes)
        };
        for (family, pods, service) in
            [("-4", "10.244.1.0/24", "203.0.113.7"), ("-6", "fd00:10:244:1::/64", "2001:db8:113::7")]
        {
            for (command, expected) in [
                ("rule add not fwmark 0/0x3fff lookup 78 priority 32764".to_owned(), (1, 0)),
                ("rule delete not fwmark 0/0x3fff lookup 78 priority 32764".to_owned(), (1, 0)),
                (format!("rule add from {pods} lookup 77"), (1, 0)),
                (format!("rule delete from {pods} lookup 77"), (1, 0)),
                (format!("rule add from {pods} lookup 100"), (0, 0)),
                ("rule delete lookup 100".to_owned(), (0, 0)),
                (format!("route add local {service} dev ours table 78"), (0, 1)),
                (format!("route replace local {service} dev other table 78"), (0, 1)),
                ("route add local default dev lo table 78".to_owned(), (0, 1)),
                ("route flush table 78".to_owned(), (0, 2)),
                (format!("route add {pods} dev other table 79"), (0, 0)),
            ] {
                assert_eq!(told(&format!("ip {family} {command}")), expected, "{family} {command}");
            }
        }
        let keys = Family::BOTH.map(policy_rule);
        let mut rules = PolicyRules::open(is_rule_of_ours).expect("a socket");
        let make: Vec<_> = keys.iter().map(|key| Step { key, have: None, want: Some(&()) }).collect();
        assert!(rules.apply(Phase::Grow, &make).is_empty());
        assert_eq!(told("ip rule add from 10.244.2.0/24 lookup 100"), (0, 0), "our own are not told");
    });
}

#[test]
fn changes_of_our_device_its_addresses_and_its_local_routes_are_told() {
    in_new(|| {
        let changes = monitor();
        let mut before = quiet(&changes);
        // Whether the device is told of, and whether its local routes are.
        for (command, ours, local_routes) in [
            ("ip route add local 10.96.0.1 dev ours table local", false, true),
            ("ip -6 route add local fd00:10:96::1 dev ours table local", false, true),
            ("ip route del local 10.96.0.1 dev ours table local", false, true),
            ("ip -6 route del local fd00:10:96::1 dev ours table local", false, true),
            ("ip address add 10.96.0.2/32 dev ours", true, true),
            ("ip address del 10.96.0.2/32 dev ours", true, true),
            ("ip address add fd00:10:96::2/128 dev ours nodad", true, true),
            ("ip link set ours down", true, true),
            ("ip link set ours name away", true, true),
            ("ip link set away name ours", true, true),
            ("ip link set ours up", true, false),
            ("ip link del ours", true, true),
        ] {
            run(command);
            until(&changes, |now| now.ours + now.local_routes > before.ours + before.local_routes);
            let now = quiet(&changes);
            let told = (now.ours > before.ours, now.local_routes > before.local_routes, now.rules);
            assert_eq!(told, (ours, local_routes, before.rules), "{command}");
            before = now;
        }
    });
}

#[test]
fn our_device_that_comes_with_its_address_gives_no_reason_to_compare_local_routes_and_what_is_done_to_it_then_does() {
    in_new(|| {
        let changes = start(watched()).expect("a monitor");
        let before = quiet(&changes);
        run("ip link add ours type veth peer name theirs");
        for device in ["ours", "theirs"] {
            run(&format!("ip link set {device} addrgenmode none"));
            run(&format!("ip link set {device} up"));
        }
        let mut addresses = Mirror::<Addresses>::new(Addresses::open([LinkName("ours".into())]).expect("sockets"));
        let keeper = AddressKey { link: LinkName("ours".into()), address: KEEPER };
        assert_eq!(addresses.grow(&BTreeMap::from([(keeper, ())]), Growth::Full, moment()).len(), 1);
        assert_eq!(quiet(&changes).local_routes, before.local_routes);
        run("ip link set ours down");
        until(&changes, |now| now.local_routes > before.local_routes && now.ours > before.ours);
    });
}

#[test]
fn changes_of_other_devices_are_told_as_the_hosts() {
    in_new(|| {
        let changes = monitor();
        for command in [
            "ip address add 192.0.2.1/24 dev theirs",
            "ip address add 2001:db8::1/64 dev theirs nodad",
            "ip address del 192.0.2.1/24 dev theirs",
            "ip link add more type bridge",
            "ip link del more",
        ] {
            let before = quiet(&changes);
            run(command);
            let now = until(&changes, |now| now.host > before.host);
            assert_eq!((now.ours, now.rules), (before.ours, before.rules), "{command}");
        }
        let before = quiet(&changes);
        run("ip route add 10.244.1.0/24 dev ours");
        run("ip route add local 10.96.0.1 dev theirs table local");
        assert_eq!(quiet(&changes), before, "routes elsewhere concern nobody");
    });
}

#[test]
fn what_may_lead_elsewhere_is_told_and_what_leads_to_pods_is_not() {
    in_new(|| {
        let changes = monitor();
        run("ip link add wire type veth peer name far");
        run("ip link add port type bridge");
        run("ip address add 192.0.2.1/24 dev theirs");
        run("ip link set wire up");
        let mut before = quiet(&changes);
        for command in [
            "ip route add 203.0.113.0/24 dev theirs",
            "ip route delete 203.0.113.0/24 dev theirs",
            "ip route add unreachable 203.0.113.0/24",
            "ip link set far up",
            "ip link set far down",
            "ip address delete 192.0.2.1/24 dev theirs",
        ] {
            run(command);
            before = until(&changes, |now| now.ways > before.ways);
        }
        run("ip link set wire master port");
        run("ip link set far master port");
        before = quiet(&changes);
        run("ip link set far up");
        run("ip route add 10.244.1.5 dev wire");
        run("ip route add 10.244.1.0/24 dev theirs proto 17");
        assert_eq!(quiet(&changes).ways, before.ways);
    });
}

#[test]
fn routes_that_are_watched_and_devices_that_may_carry_them_are_told() {
    in_new(|| {
        let changes = monitor();
        run("ip link add wire type bridge");
        run("ip link set wire addrgenmode none");
        run("ip link set wire up");
        let mut before = quiet(&changes);
        run("ip route add 10.244.1.0/24 dev theirs proto 18");
        run("ip route add 10.244.1.0/24 dev theirs proto 17 table 100");
        run("ip link add pod type veth peer name eth0");
        run("ip link delete pod");
        let elsewhere = quiet(&changes);
        assert_eq!(elsewhere.routes, before.routes, "neither these routes nor devices of pods");
        for command in [
            "ip route add 10.244.2.0/24 dev wire proto 17",
            "ip route delete 10.244.2.0/24",
            "ip address add 192.0.2.1/24 dev wire",
            "ip address delete 192.0.2.1/24 dev wire",
            "ip link set wire down",
            "ip link delete wire",
        ] {
            run(command);
            before = until(&changes, |now| now.routes > before.routes);
        }
    });
}

#[test]
fn our_own_changes_are_not_told() {
    in_new(|| {
        let changes = monitor();
        let before = quiet(&changes);
        let rule = Ownership::Device { table: TABLE_LOCAL, link: LinkName("ours".into()) };
        let mut routes = Routes::open(rule).expect("sockets");
        let wanted: BTreeMap<RouteKey, Arc<Route>> = (1..3000)
            .flat_map(|n: u32| [format!("10.96.{}.{}/32", n / 256, n % 256), format!("fd00:10:96::{n:x}/128")])
            .map(|destination| {
                let route = Route {
                    kind: RouteKind::Local,
                    protocol: 2,
                    source: None,
                    next_hops: [NextHop { link: LinkName("ours".into()), gateway: None, on_link: false }].into(),
                };
                (RouteKey::new(TABLE_LOCAL, destination.parse().expect("a prefix")), Arc::new(route))
            })
            .collect();
        let add: Vec<_> = wanted.iter().map(|(key, want)| Step { key, have: None, want: Some(want) }).collect();
        assert!(routes.apply(Phase::Grow, &add).is_empty());
        let delete: Vec<_> = wanted.iter().map(|(key, have)| Step { key, have: Some(have), want: None }).collect();
        assert!(routes.apply(Phase::Shrink, &delete).is_empty());
        run("ip route add local 10.97.0.1 dev ours table local");
        let now = until(&changes, |now| now.local_routes > before.local_routes);
        assert_eq!(now, Changes { local_routes: before.local_routes + 1, ..before });
    });
}

#[test]
fn what_a_listener_ignores_is_not_received_and_the_same_of_others_is() {
    in_new(|| {
        run("ip link add ours type veth peer name theirs");
        run("ip link set ours up");
        let device = link::named(&LinkName("ours".into())).expect("a listing").expect("it is there").index;
        let mut sockets = [(); 2].map(|()| Socket::open(Bus::Route).expect("sockets"));
        // IPv4 routes.
        let mut listener = Listener::open(Bus::Route, &[7]).expect("a listener");
        let ports = [sockets[0].port(), sockets[1].port()];
        for ignored in [&[][..], &ports[..1], &ports[1..], &ports] {
            listener.ignore(&[24, 25], ignored).expect("the kernel takes the filter");
            for socket in &mut sockets {
                // ip route add 10.1.0.0/16 dev ours proto 17; ip route delete
                for (kind, flags) in [(24, flag::CREATE | flag::EXCLUSIVE), (25, 0)] {
                    let mut messages = Messages::new();
                    messages.begin(kind, flags).header(&[2, 16, 0, 0, 254, 17, 253, 1, 0, 0, 0, 0]);
                    messages.address(1, [10, 1, 0, 0].into()).u32(4, device);
                    assert_eq!(socket.batch(&mut messages).expect("the kernel answers"), []);
                }
            }
            run("ip route add 10.2.0.0/16 dev ours");
            run("ip route delete 10.2.0.0/16 dev ours");
            let mut heard = Vec::new();
            listener.receive(|answer| heard.push((answer.kind, answer.port))).expect("nothing is lost");
            let expected =
                ports.iter().filter(|port| !ignored.contains(port)).flat_map(|port| [(24, *port), (25, *port)]);
            let of_ours = heard.iter().copied().filter(|(_, port)| ports.contains(port));
            assert!(of_ours.eq(expected), "{heard:?}");
            assert_eq!(heard.iter().filter(|(_, port)| !ports.contains(port)).count(), 2, "{heard:?}");
        }
    });
}

#[test]
fn a_link_that_comes_to_a_bridge_or_leaves_it_and_a_bridge_that_comes_or_goes_are_told() {
    in_new(|| {
        let mut monitor = Monitor::open(Watched::default()).expect("a monitor");
        let mut told = |command: &str| {
            let before = monitor.hear().ports;
            run(command);
            monitor.hear().ports - before
        };
        assert_eq!(told("ip link add port type veth peer name pod"), 0, "on no bridge");
        assert_eq!(told("ip link set port up"), 0);
        for command in [
            "ip link add br0 type bridge",
            "ip link set port master br0",
            "ip link set port nomaster",
            "ip link set port master br0",
            "ip link delete br0",
        ] {
            assert!(told(command) > 0, "{command}");
        }
        assert_eq!(told("ip link set port down"), 0);
        assert_eq!(told("ip link delete port"), 0);
    });
}

#[test]
fn rules_of_others_are_told_and_ours_are_not() {
    in_new(|| {
        own_run();
        let changes = monitor();
        let before = quiet(&changes);
        let ownership =
            RuleOwnership { chains: vec![(Table::Filter, Name::Exact("OURS".into()))], leftovers: Leftovers::None };
        let programs = PerFamily::from_fn(|family| {
            (family == Family::V4).then_some(Programs { flavour: Flavour::NfTables, plain: false })
        });
        let mut rules = Mirror::new(Tables::new(programs, ownership));
        let chain = Piece::Chain { family: Family::V4, table: Table::Filter, chain: "OURS".into() };
        let want = BTreeMap::from([(chain, Rules(vec!["-s 10.244.0.0/16 -j ACCEPT".into()]))]);
        assert_eq!(rules.grow(&want, Growth::Full, moment()).len(), 1);
        assert_eq!(quiet(&changes), before, "our own rules are not told");
        run("iptables-nft -A OURS -j DROP");
        let now = until(&changes, |now| now.rules > before.rules);
        assert_eq!((now.ours, now.host), (before.ours, before.host));
        run("iptables-nft -F OURS");
        until(&changes, |later| later.rules > now.rules);
    });
}

#[test]
fn after_an_overrun_everything_is_told() {
    in_new(|| {
        let mut monitor = Monitor::open(Watched::default()).expect("a monitor");
        let mut socket = Socket::open(Bus::Route).expect("a socket");
        let mut messages = Messages::new();
        for n in 0..60_000_u16 {
            let [high, low] = n.to_be_bytes();
            let header = [2, 32, 0, 0, 254, 4, 0, 6, 0, 0, 0, 0];
            messages.begin(24, flag::CREATE).header(&header).attribute(1, &[10, 100, high, low]);
        }
        assert_eq!(socket.batch(&mut messages).expect("the batch is answered"), []);
        let all =
            Changes { ours: 1, local_routes: 1, host: 1, rules: 0, routes: 1, routing_rules: 1, ways: 1, ports: 1 };
        assert_eq!(monitor.hear(), all);
        run("ip link add more type bridge");
        assert!(
            monitor.hear().host > 1,
            "what comes once everything was told is not lost: the kernel drops until the socket is empty"
        );
        let last = monitor.hear();
        assert_eq!(monitor.hear(), last);
    });
}

#[test]
fn the_monitor_ends_when_nobody_listens() {
    in_new(|| {
        let threads = || {
            let names = std::fs::read_dir("/proc/self/task").expect("threads").flatten();
            let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            names.map(name).filter(|name| name.trim() == "monitor").count()
        };
        let many: Vec<_> = (0..20).map(|_| start(Watched::default()).expect("a monitor")).collect();
        // Threads get their names a moment after they have begun.
        assert!((0..3000).any(|_| {
            thread::sleep(Duration::from_millis(10));
            threads() >= 20
        }));
        drop(many);
        assert!((0..600).any(|_| {
            thread::sleep(Duration::from_millis(100));
            threads() < 10
        }));
    });
}
