//! Tunnels to other nodes, on a kernel with `ipip`, `ip6_tunnel`, `fou` and `fou6`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Barrier, Mutex};

use sluice::kernel::link::LinkName;
use sluice::kernel::tunnel::{ReceivePort, ReceivePorts, Tunnel, Tunnels};
use sluice::net::Family;
use sluice::reconcile::{Phase, Step, Target};

use crate::namespace::{self, attempt, run};

fn in_new(test: impl FnOnce() + Send) {
    namespace::in_new(|| {
        let (made, _, error) = attempt("ip link add probe type ipip local 192.0.2.1 remote 192.0.2.9");
        assert!(made, "this kernel has no module ipip; run this test in the guest of the lab: {error}");
        run("ip link delete probe");
        run("modprobe -a fou fou6");
        run("ip link add eth0 type dummy");
        run("ip link set eth0 up");
        run("ip address add 192.0.2.1/24 dev eth0");
        run("ip address add 2001:db8::1/64 dev eth0 nodad");
        test();
    });
}

fn is_ours(name: &str) -> bool {
    name.starts_with("tun-")
}

fn tunnel(local: &str, remote: &str, udp_port: Option<u16>) -> Tunnel {
    let end = |text: &str| text.parse().expect("an address");
    let (local, remote, mtu) = (end(local), end(remote), Some(1400));
    Tunnel { local, remote, udp_port, ttl: 0, mtu, up: true, has_options: true, is_numbered: true }
}

fn name(number: usize) -> LinkName {
    LinkName(format!("tun-{number:011x}").into())
}

fn only(tunnels: &mut Tunnels, key: &LinkName) -> Tunnel {
    let mut found = tunnels.read().expect("a reading");
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(key).expect("it is this one")
}

#[test]
fn a_tunnel_of_either_family_is_made_found_changed_and_deleted() {
    in_new(|| {
        run("ip link add tun-foreign type ipip local 192.0.2.1 remote 192.0.2.8");
        run("ip link add tun-00000000099 type dummy");
        let mut tunnels = Tunnels::open(|name| name.len() == 15 && is_ours(name), true).expect("a socket");
        for (number, (want, kind)) in [
            (tunnel("192.0.2.1", "192.0.2.2", None), "ipip"),
            (tunnel("192.0.2.1", "192.0.2.2", Some(5555)), "encap gue"),
            (tunnel("2001:db8::1", "2001:db8::2", None), "ip6tnl"),
            (tunnel("2001:db8::1", "2001:db8::2", Some(5555)), "encap gue"),
        ]
        .into_iter()
        .enumerate()
        {
            let key = name(number);
            let failures = tunnels.apply(Phase::Grow, &[Step { key: &key, have: None, want: Some(&want) }]);
            assert!(failures.is_empty(), "{failures:?}");
            assert_eq!(only(&mut tunnels, &key), want);
            let shown = run(&format!("ip -d link show {key} up"));
            assert!(shown.contains(kind) && shown.contains("mtu 1400"), "{shown}");

            run(&format!("ip link set {key} down mtu 1300"));
            let have = only(&mut tunnels, &key);
            assert_eq!(have, Tunnel { mtu: Some(1300), up: false, ..want });
            let number = || run(&format!("ip -o link show {key}")).split(':').next().map(str::to_owned);
            let before = number();
            let other = Tunnel { ttl: 64, ..want };
            assert!(
                tunnels.apply(Phase::Grow, &[Step { key: &key, have: Some(&have), want: Some(&other) }]).is_empty()
            );
            assert_eq!(only(&mut tunnels, &key), other);
            assert_eq!(number(), before, "it was made anew");

            assert!(tunnels.apply(Phase::Shrink, &[Step { key: &key, have: Some(&other), want: None }]).is_empty());
            assert!(tunnels.read().expect("a reading").is_empty());
        }
        assert!(run("ip link show tun-foreign").contains("tun-foreign"));
    });
}

#[test]
fn whether_a_tunnel_is_inside_udp_changes_in_place_and_its_routes_stay() {
    in_new(|| {
        let mut tunnels = Tunnels::open(is_ours, true).expect("a socket");
        for (local, remote, range) in
            [("192.0.2.1", "192.0.2.2", "10.244.2.0/24"), ("2001:db8::1", "2001:db8::2", "fd00:10:244:2::/64")]
        {
            let (key, plain) = (name(1), tunnel(local, remote, None));
            let inside_udp = Tunnel { ttl: 225, mtu: Some(1380), ..tunnel(local, remote, Some(5555)) };
            assert!(tunnels.apply(Phase::Grow, &[Step { key: &key, have: None, want: Some(&plain) }]).is_empty());
            run(&format!("ip route add {range} dev {key}"));
            for (have, want) in [(plain, inside_udp), (inside_udp, plain), (plain, inside_udp)] {
                let failures = tunnels.apply(Phase::Grow, &[Step { key: &key, have: Some(&have), want: Some(&want) }]);
                assert!(failures.is_empty(), "{failures:?}");
                assert_eq!(only(&mut tunnels, &key), want);
                let shown = run(&format!("ip -d link show {key}"));
                assert_eq!(shown.contains("encap gue"), want.udp_port.is_some(), "{shown}");
                let family = if local.contains(':') { "-6" } else { "-4" };
                let routes = run(&format!("ip {family} route show {range}"));
                assert!(routes.contains(&*key.0), "the tunnel was made anew: {routes}");
            }
            assert!(
                tunnels.apply(Phase::Shrink, &[Step { key: &key, have: Some(&inside_udp), want: None }]).is_empty()
            );
        }
    });
}

#[test]
fn a_tunnel_that_kube_router_made_is_ours_and_kept() {
    in_new(|| {
        run("ip link add tun-e443169117a type ipip local 192.0.2.1 remote 10.0.0.1 ttl inherit pmtudisc");
        run("ip link set tun-e443169117a up");
        let mut tunnels = Tunnels::open(is_ours, false).expect("a socket");
        let want = Tunnel { mtu: None, is_numbered: false, ..tunnel("192.0.2.1", "10.0.0.1", None) };
        let key = LinkName("tun-e443169117a".into());
        let have = only(&mut tunnels, &key);
        assert_eq!(have, want);
        // It gets its address, and keeps its routes.
        run("ip route add 10.244.2.0/24 dev tun-e443169117a");
        let numbered = Tunnel { is_numbered: true, ..want };
        assert!(tunnels.apply(Phase::Grow, &[Step { key: &key, have: Some(&have), want: Some(&numbered) }]).is_empty());
        assert_eq!(only(&mut tunnels, &key), numbered);
        assert!(run("ip -4 -o address show dev tun-e443169117a").contains("127.0.0.8/32 scope host"));
        assert!(run("ip -4 route show 10.244.2.0/24").contains("tun-e443169117a"));
    });
}

#[test]
fn options_of_kube_routers_tunnels_become_ours_on_the_same_device_and_its_routes_stay() {
    in_new(|| {
        let mut tunnels = Tunnels::open(is_ours, false).expect("a socket");
        for (made, ends, range, option) in [
            // As kube-router 2.11 makes them.
            ("ipip ttl inherit nopmtudisc", ("192.0.2.1", "192.0.2.2"), "10.244.2.0/24", " pmtudisc"),
            ("ip6tnl mode any encaplimit 0", ("2001:db8::1", "2001:db8::2"), "fd00:10:244:2::/64", "encaplimit none"),
            // As `ip tunnel add` made them for earlier ones.
            ("ip6tnl mode ip6ip6 encaplimit 4", ("2001:db8::1", "2001:db8::3"), "fd00:10:244:3::/64", "ip6tnl any"),
            // As somebody has changed ours.
            ("ipip ttl inherit tos inherit pmtudisc", ("192.0.2.1", "192.0.2.4"), "10.244.4.0/24", " pmtudisc"),
            (
                "ip6tnl mode any encaplimit none tclass inherit flowlabel inherit",
                ("2001:db8::1", "2001:db8::4"),
                "fd00:10:244:4::/64",
                "encaplimit none",
            ),
        ] {
            let (key, want) = (name(1), Tunnel { mtu: None, ..tunnel(ends.0, ends.1, None) });
            run(&format!("ip link add {key} type {made} local {} remote {}", ends.0, ends.1));
            run(&format!("ip link set {key} up"));
            run(&format!("ip route add {range} dev {key}"));
            let have = only(&mut tunnels, &key);
            let is_over_ipv4 = want.local.is_ipv4();
            // `ip` gives those over IPv6 a hop limit of 64, which is changed with the options.
            assert_eq!(have, Tunnel { has_options: false, ttl: have.ttl, is_numbered: !is_over_ipv4, ..want });
            let number = || run(&format!("ip -o link show {key}")).split(':').next().map(str::to_owned);
            let before = number();
            let failures = tunnels.apply(Phase::Grow, &[Step { key: &key, have: Some(&have), want: Some(&want) }]);
            assert!(failures.is_empty(), "{failures:?}");
            assert_eq!(only(&mut tunnels, &key), want);
            assert_eq!(number(), before, "it was made anew");
            let shown = run(&format!("ip -d link show {key}"));
            assert!(shown.contains(option) && !shown.contains("nopmtudisc"), "{shown}");
            let family = if is_over_ipv4 { "-4" } else { "-6" };
            assert!(run(&format!("ip {family} route show {range}")).contains(&*key.0), "its route is gone");
            assert!(tunnels.apply(Phase::Shrink, &[Step { key: &key, have: Some(&want), want: None }]).is_empty());
        }
    });
}

#[test]
fn ports_that_receive_packets_inside_udp_are_made_found_and_deleted_for_each_family() {
    in_new(|| {
        run("ip fou add port 7777 gue");
        let mut ports = ReceivePorts::open([5555].into()).expect("a socket");
        assert!(ports.read().expect("a reading").is_empty());
        let keys = Family::BOTH.map(|family| ReceivePort { family, port: 5555 });
        let make: Vec<_> = keys.iter().map(|key| Step { key, have: None, want: Some(&()) }).collect();
        assert!(ports.apply(Phase::Grow, &make).is_empty());
        assert!(run("ip fou show").contains("port 5555 gue"));
        assert!(run("ip -6 fou show").contains("port 5555 gue"));
        assert_eq!(ports.read().expect("a reading"), keys.iter().map(|key| (*key, ())).collect::<BTreeMap<_, _>>());
        let delete: Vec<_> = keys.iter().map(|key| Step { key, have: Some(&()), want: None }).collect();
        assert!(ports.apply(Phase::Shrink, &delete).is_empty());
        assert!(ports.read().expect("a reading").is_empty());
        assert!(run("ip fou show").contains("7777"));
    });
}

/// A node with one tunnel to the other, and a pod's address behind it.
fn node(number: u8, other: u8, udp_port: Option<u16>) {
    let mut tunnels = Tunnels::open(is_ours, true).expect("a socket");
    for (key, local, remote) in [
        (name(4), format!("192.0.2.{number}"), format!("192.0.2.{other}")),
        (name(6), format!("2001:db8::{number}"), format!("2001:db8::{other}")),
    ] {
        let want = tunnel(&local, &remote, udp_port);
        assert!(tunnels.apply(Phase::Grow, &[Step { key: &key, have: None, want: Some(&want) }]).is_empty());
    }
    if let Some(port) = udp_port {
        let mut ports = ReceivePorts::open([port].into()).expect("a socket");
        let keys = Family::BOTH.map(|family| ReceivePort { family, port });
        let make: Vec<_> = keys.iter().map(|key| Step { key, have: None, want: Some(&()) }).collect();
        assert!(ports.apply(Phase::Grow, &make).is_empty());
    }
    run(&format!("ip address add 10.244.{number}.1/32 dev lo"));
    run(&format!("ip address add fd00:10:244:{number}::1/128 dev lo"));
    run(&format!("ip route add 10.244.{other}.0/24 dev {} src 10.244.{number}.1", name(4)));
    run(&format!("ip route add fd00:10:244:{other}::/64 dev {} src fd00:10:244:{number}::1", name(6)));
}

/// The other node, in a namespace of its own on another thread: says where that is, and waits for its end of the wire.
fn other_node(udp_port: Option<u16>, made: &Mutex<Sender<PathBuf>>, wired: &Barrier) {
    namespace::in_new(|| {
        made.lock().expect("one thread").send(namespace::path()).expect("somebody waits");
        wired.wait();
        run("ip address add 192.0.2.2/24 dev eth0");
        run("ip address add 2001:db8::2/64 dev eth0 nodad");
        run("ip link set eth0 up");
        node(2, 1, udp_port);
        run("ping -c 2 -i 0.2 -W 5 10.244.1.1");
        run("ping -c 2 -i 0.2 -W 5 fd00:10:244:1::1");
    });
}

#[test]
fn packets_of_both_families_go_through_plain_tunnels_and_through_udp() {
    for udp_port in [None, Some(5555)] {
        in_new(|| {
            run("ip link delete eth0");
            run("ip link add wire type veth peer name eth0");
            let wired = Barrier::new(2);
            let (made, is_made) = channel();
            let made = Mutex::new(made);
            std::thread::scope(|scope| {
                let other = scope.spawn(|| other_node(udp_port, &made, &wired));
                let there = is_made.recv().expect("the other namespace is made");
                run(&format!("ip link set eth0 netns {}", there.display()));
                run("ip address add 192.0.2.1/24 dev wire");
                run("ip address add 2001:db8::1/64 dev wire nodad");
                run("ip link set wire up");
                node(1, 2, udp_port);
                wired.wait();
                other.join().expect("the other node reaches this one");
            });
        });
    }
}
