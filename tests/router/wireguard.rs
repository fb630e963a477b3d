//! Peers of `wireguard` that an earlier run has left, on a kernel in memory where a range belongs to the peer that was given it last.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use sluice::kernel::address::AddressKey;
use sluice::kernel::link::LinkName;
use sluice::kernel::monitor::Notice;
use sluice::kernel::route::{NextHop, Route, RouteKey, RouteKind, TABLE_MAIN};
use sluice::kernel::wireguard::{Peer, PeerKey, Session};
use sluice::model::{Authority, Node, World};
use sluice::net::PublicKey;
use sluice::reconcile::Moment;
use sluice::router::apply::{Leave, Mirrors};
use sluice::router::names::{PROTOCOL, TUNNEL_TABLE, WIREGUARD, WIREGUARD_SECOND};
use sluice::router::plan::{OwnKeys, Plan};
use sluice::router::routes::wall;
use sluice::subsystem::Kinds;

use crate::cluster::{Cluster, address, prefix};
use crate::support::memory::{MemoryKernel, Object, State};

const ENCRYPTED: [&str; 3] = ["--enable-ipv6", "--overlay-type=full", "--overlay-encap=wireguard"];

fn key(number: usize) -> PeerKey {
    let number = u8::try_from(number).expect("a small one");
    PeerKey { link: LinkName(WIREGUARD.into()), key: PublicKey::new(&[number; 32]).expect("a key") }
}

fn peer(number: usize, ranges: &str) -> Peer {
    let hosts = format!("192.0.2.{number}/32 2001:db8:2::{number}/128 {ranges}");
    let mut allowed: Vec<IpNet> = hosts.split_whitespace().map(prefix).collect();
    allowed.sort_unstable();
    let endpoint = Some(SocketAddr::new([192, 0, 2, u8::try_from(number).expect("a small one")].into(), 51820));
    Peer { endpoint, allowed: Arc::from(allowed), keepalive: 0, is_plain: true }
}

fn ranges(number: usize) -> String {
    format!("10.244.{number}.0/24 fd00:10:244:{number}::/64")
}

/// Three nodes on one link with keys and these pod ranges, as the first one sees them.
fn seen_by_first(words: &[&str], of_second: &str, of_third: &str) -> (Cluster, World) {
    let mut cluster = Cluster::new(words);
    for (number, ranges) in [(1, &*ranges(1)), (2, of_second), (3, of_third)] {
        cluster.add_node(number, "192.0.2", "both", ranges);
    }
    let mut world = cluster.world(1);
    for number in 1..=3 {
        let name = format!("node-{number}").into();
        let mut node = (**world.cluster.nodes.get(&name).expect("it is there")).clone();
        node.wireguard_key = Some(key(number).key);
        world.cluster.nodes.insert(name, node);
    }
    (cluster, world)
}

struct Run {
    plan: Plan,
    mirrors: Mirrors<MemoryKernel>,
    kernel: MemoryKernel,
}

impl Run {
    fn new(words: &[&str], there: &[(usize, Peer)]) -> Run {
        let (config, families) = Cluster::new(words).config();
        let mut state = State::of_others();
        let plan = {
            let mut plan = Plan::new(config.clone(), families);
            plan.update(&seen_by_first(words, &ranges(2), &ranges(3)).1);
            plan
        };
        state.wireguard_devices.extend(plan.desired().wireguard_devices.clone());
        state.wireguard_peers.extend(there.iter().map(|(number, peer)| (key(*number), peer.clone())));
        let kernel = MemoryKernel::new(state);
        let mirrors = Mirrors::new(kernel.router_targets_of(config.backend));
        Run { plan: Plan::new(config, families), mirrors, kernel }
    }

    /// Another process goes on where this one was.
    fn restart(&mut self, words: &[&str]) {
        let (config, families) = Cluster::new(words).config();
        self.mirrors = Mirrors::new(self.kernel.router_targets_of(config.backend));
        self.plan = Plan::new(config, families);
    }

    fn take(&mut self, world: &World, authority: Authority, routes_are_complete: bool) {
        let changed = self.plan.update(world);
        self.mirrors.mark(&changed);
        let leave = Leave { authority, routes_are_complete };
        for _ in 0..4 {
            let at = Moment { now: Instant::now(), jitter: 0 };
            self.mirrors.round(self.plan.desired(), self.plan.routes(), leave, at);
        }
    }

    fn peer(&self, number: usize) -> Option<Peer> {
        self.kernel.with(|machine| machine.state.wireguard_peers.get(&key(number)).cloned())
    }

    /// Returns the sources of packets that are led by the table of tunnels.
    fn sources(&self) -> Vec<String> {
        self.kernel.with(|machine| {
            let rules = machine.state.source_rules.keys().filter(|rule| rule.table == TUNNEL_TABLE);
            rules.map(|rule| rule.source.to_string()).collect()
        })
    }

    /// Returns the interval of the packets that keep the session by the first key of the second node alive.
    fn kept_alive(&self) -> Option<u16> {
        self.peer(2).map(|peer| peer.keepalive)
    }
}

#[test]
fn a_remembered_peer_takes_nothing_from_what_the_kernel_holds_and_all_is_right_when_the_cluster_is_known() {
    // It is remembered that the third node has the second one's range; the kernel, and the cluster, know better.
    let whole = peer(2, &ranges(2));
    let mut run = Run::new(&ENCRYPTED, &[(2, whole.clone())]);
    let (_cluster, remembered) = seen_by_first(&ENCRYPTED, "", &ranges(2));
    run.take(&remembered, Authority::Remembered, false);
    assert_eq!((run.peer(2), run.peer(3)), (Some(whole.clone()), None));
    let (_cluster, known) = seen_by_first(&ENCRYPTED, &ranges(2), &ranges(3));
    run.take(&known, Authority::Complete, true);
    assert_eq!((run.peer(2), run.peer(3)), (Some(whole), Some(peer(3, &ranges(3)))));
}

#[test]
fn a_range_that_the_kernel_takes_from_a_peer_is_not_taken_for_its_own_any_more() {
    // The second peer may not lose anything before learned routes are complete, and the range is the third one's.
    let mut run = Run::new(&ENCRYPTED, &[(2, peer(2, &ranges(2)))]);
    let (_cluster, moved) = seen_by_first(&ENCRYPTED, "", &ranges(2));
    run.take(&moved, Authority::Complete, false);
    assert_eq!(run.peer(3), Some(peer(3, &ranges(2))));
    // And back, in a moment at which nobody has read the kernel.
    let (_cluster, back) = seen_by_first(&ENCRYPTED, &ranges(2), "");
    run.take(&back, Authority::Complete, true);
    assert_eq!((run.peer(2), run.peer(3)), (Some(peer(2, &ranges(2))), Some(peer(3, ""))));
}

#[test]
fn what_node_objects_say_of_a_known_peer_counts_at_once_where_nothing_is_learned_and_additions_count_anyway() {
    let (_cluster, less) = seen_by_first(&ENCRYPTED, "10.244.2.0/24", &ranges(3));
    for (source, waits) in [("--node-routes=api", false), ("--node-routes=bgp", true)] {
        let words = [&ENCRYPTED[..], &[source]].concat();
        let there = [(2, peer(2, &ranges(2))), (3, peer(3, "10.244.3.0/24"))];
        let mut run = Run::new(&words, &there);
        run.take(&less, Authority::Complete, false);
        assert_eq!(run.peer(2) == Some(peer(2, "10.244.2.0/24")), !waits, "{source}: {:?}", run.peer(2));
        assert_eq!(run.peer(3), Some(peer(3, &ranges(3))), "{source}");
        run.take(&less, Authority::Complete, true);
        assert_eq!(run.peer(2), Some(peer(2, "10.244.2.0/24")), "{source}");
    }
}

/// A run in which the key of the second node changes, the World that it has followed, and the session by the next key that begins then.
fn in_a_change_of_the_second_key() -> (Run, World, BTreeMap<PeerKey, Session>) {
    let words = [&ENCRYPTED[..], &["--node-routes=api"]].concat();
    let (_cluster, mut world) = seen_by_first(&words, &ranges(2), &ranges(3));
    let name = "node-2".into();
    let mut node = (**world.cluster.nodes.get(&name).expect("it is there")).clone();
    node.wireguard_next_key = Some(key(7).key);
    world.cluster.nodes.insert(name, node);
    let mut run = Run::new(&words, &[]);
    run.plan.set_own_keys(OwnKeys { first: Some(key(1).key), second: Some(key(1).key), ..OwnKeys::default() });
    run.take(&world, Authority::Complete, true);
    let of_next = PeerKey { link: LinkName(WIREGUARD_SECOND.into()), ..key(7) };
    assert_eq!(run.kept_alive(), Some(5), "the key changes");
    (run, world, [(of_next, Session::Live)].into())
}

/// Makes a round long after the tries that have failed; the session by the first key is not kept alive any more, and the route leads by the next one.
fn moves_by_the_next_key(run: &mut Run) {
    let at = Moment { now: Instant::now() + Duration::from_secs(3600), jitter: 0 };
    let leave = Leave { authority: Authority::Complete, routes_are_complete: true };
    run.mirrors.round(run.plan.desired(), run.plan.routes(), leave, at);
    assert_eq!(run.kept_alive(), Some(0));
    let route = RouteKey::new(TABLE_MAIN, prefix("10.244.2.0/24"));
    let led = run.kernel.with(|machine| machine.state.routes.get(&route).cloned()).expect("it is there");
    assert_eq!(led.next_hops.first().map(|hop| &*hop.link.0), Some(WIREGUARD_SECOND));
}

#[test]
fn a_session_is_kept_alive_until_the_route_that_leads_by_it_has_gone_to_the_other_one() {
    let (mut run, world, sessions) = in_a_change_of_the_second_key();
    let route = RouteKey::new(TABLE_MAIN, prefix("10.244.2.0/24"));
    run.kernel.with(|machine| machine.broken_object = Some(Object::Route(route)));
    let changed = run.plan.set_sessions(sessions);
    run.mirrors.mark(&changed);
    run.take(&world, Authority::Complete, true);
    assert_eq!(run.kept_alive(), Some(5), "packets are sent in it still");
    run.kernel.with(|machine| machine.broken_object = None);
    moves_by_the_next_key(&mut run);
}

#[test]
fn a_session_is_kept_alive_while_routes_cannot_be_read_and_so_do_not_go_to_the_other_one() {
    let (mut run, world, sessions) = in_a_change_of_the_second_key();
    run.kernel.with(|machine| machine.unreadable = Some("routes"));
    run.mirrors.audit_after(Notice::Routes, Moment { now: Instant::now(), jitter: 0 });
    let changed = run.plan.set_sessions(sessions);
    run.mirrors.mark(&changed);
    run.take(&world, Authority::Complete, true);
    assert_eq!(run.kept_alive(), Some(5), "packets are sent in it still");
    run.kernel.with(|machine| machine.unreadable = None);
    moves_by_the_next_key(&mut run);
}

#[test]
fn a_peer_whose_node_is_deleted_goes_at_once_and_all_stay_while_our_own_node_is_gone() {
    let there = [(2, peer(2, &ranges(2))), (3, peer(3, &ranges(3)))];
    let mut run = Run::new(&ENCRYPTED, &there);
    let (_cluster, mut world) = seen_by_first(&ENCRYPTED, &ranges(2), &ranges(3));
    run.take(&world, Authority::Complete, false);
    let own = world.cluster.nodes.remove(&"node-1".into()).expect("it is there");
    run.take(&world, Authority::Complete, false);
    assert_eq!([2, 3].map(|number| run.peer(number).is_some()), [true, true]);
    world.cluster.nodes.insert("node-1".into(), (*own).clone());
    world.cluster.nodes.remove(&"node-3".into());
    run.take(&world, Authority::Complete, false);
    assert_eq!([2, 3].map(|number| run.peer(number).is_some()), [true, false]);
}

#[test]
fn pods_are_led_to_the_tunnels_while_our_own_node_is_gone_or_has_no_ranges_and_by_no_former_one_afterwards() {
    for source in ["--node-routes=bgp", "--node-routes=api"] {
        let words = [&ENCRYPTED[..], &[source]].concat();
        let mut run = Run::new(&words, &[]);
        let (_cluster, mut world) = seen_by_first(&words, &ranges(2), &ranges(3));
        run.take(&world, Authority::Complete, true);
        let both = ["10.244.1.0/24", "fd00:10:244:1::/64"];
        assert_eq!(run.sources(), both, "{source}");
        let own = (*world.cluster.nodes.remove(&"node-1".into()).expect("it is there")).clone();
        run.take(&world, Authority::Complete, true);
        assert_eq!(run.sources(), both, "{source}: it was deleted");
        run.restart(&words);
        run.take(&world, Authority::Complete, true);
        assert_eq!(run.sources(), both, "{source}: a process that has never seen it");
        let with_ranges = |ranges: &str| Node {
            pod_cidrs: ranges.split_whitespace().map(prefix).collect(),
            spec_pod_cidrs: None,
            ..own.clone()
        };
        for (ranges, expected) in [
            ("", both),
            ("10.244.9.0/24", ["10.244.9.0/24", both[1]]),
            ("10.244.9.0/24 fd00:10:244:9::/64", ["10.244.9.0/24", "fd00:10:244:9::/64"]),
        ] {
            world.cluster.nodes.insert("node-1".into(), with_ranges(ranges));
            run.take(&world, Authority::Complete, true);
            assert_eq!(run.sources(), expected, "{source}: it is registered anew with {ranges:?}");
        }
    }
}

#[test]
fn a_peer_that_gains_and_loses_has_its_gain_and_its_endpoint_at_once_and_loses_when_all_is_learned() {
    let former = Peer {
        endpoint: Some(SocketAddr::new([192, 0, 2, 99].into(), 51820)),
        ..peer(2, "10.244.2.0/24 10.244.8.0/24 10.244.9.0/24 fd00:10:244:8::/64")
    };
    let mut run = Run::new(&ENCRYPTED, &[(2, former)]);
    // One of its former ranges is another node's by now.
    let of_third = "10.244.3.0/24 10.244.9.0/24";
    let (_cluster, known) = seen_by_first(&ENCRYPTED, &ranges(2), of_third);
    run.take(&known, Authority::Complete, false);
    let more = peer(2, "10.244.2.0/24 10.244.8.0/24 fd00:10:244:2::/64 fd00:10:244:8::/64");
    assert_eq!((run.peer(2), run.peer(3)), (Some(more), Some(peer(3, of_third))));
    run.take(&known, Authority::Complete, true);
    assert_eq!((run.peer(2), run.peer(3)), (Some(peer(2, &ranges(2))), Some(peer(3, of_third))));
}

#[test]
fn a_plain_route_that_a_run_with_other_flags_has_left_does_not_stay_in_front_of_a_wall() {
    for (source, authority) in [
        ("--node-routes=bgp", Authority::Complete),
        ("--node-routes=bgp", Authority::Remembered),
        ("--node-routes=api", Authority::Complete),
        ("--node-routes=api", Authority::Remembered),
    ] {
        let words = [&ENCRYPTED[..], &[source]].concat();
        let mut run = Run::new(&words, &[]);
        let plain = |gateway: &str| {
            let hop = NextHop { link: LinkName("eth0".into()), gateway: Some(address(gateway)), on_link: false };
            Arc::new(Route { kind: RouteKind::Unicast, protocol: PROTOCOL, source: None, next_hops: [hop].into() })
        };
        let left = [
            ("10.244.2.0/24", "192.0.2.2"),
            ("10.244.3.128/25", "192.0.2.3"),
            ("fd00:10:244:2::/64", "2001:db8:2::2"),
            ("198.51.100.0/24", "192.0.2.2"),
        ];
        run.kernel.with(|machine| {
            let own = |text: &str| AddressKey { link: LinkName("eth0".into()), address: prefix(text) };
            machine.state.addresses.extend([(own("192.0.2.1/24"), ()), (own("2001:db8:2::1/64"), ())]);
            for (range, gateway) in left {
                machine.state.routes.insert(RouteKey::new(TABLE_MAIN, prefix(range)), plain(gateway));
            }
        });
        let (_cluster, world) = seen_by_first(&words, &ranges(2), &ranges(3));
        run.take(&world, authority, false);
        let routes = run.kernel.with(|machine| machine.state.routes.clone());
        let leaves = |range: &str| {
            let route = routes.get(&RouteKey::new(TABLE_MAIN, prefix(range)));
            route.map(|route| route.next_hops.iter().map(|hop| hop.link.to_string()).collect::<String>())
        };
        let through_tunnel = (source == "--node-routes=api").then(|| WIREGUARD.to_owned());
        for range in ["10.244.2.0/24", "fd00:10:244:2::/64"] {
            assert_eq!(leaves(range), through_tunnel, "{source} {authority:?}: {range}");
            assert!(routes.contains_key(&wall(prefix(range))), "{source} {authority:?}: {range}");
        }
        assert_eq!(leaves("10.244.3.128/25"), None, "{source} {authority:?}: a part of what is refused");
        assert_eq!(leaves("198.51.100.0/24"), Some("eth0".to_owned()), "it may be learned again");
    }
}

#[test]
fn in_a_change_to_encryption_the_tunnels_of_before_serve_until_all_routes_are_learned_and_plain_routes_over_a_link_do_not()
 {
    for (before, device) in [("ipip", "tun-"), ("fou", "tun-"), ("vxlan", "sluice-vxlan4")] {
        let former = ["--overlay-type=full", &format!("--overlay-encap={before}"), "--overlay-encap-receive=wireguard"];
        let receives = format!("--overlay-encap-receive={before}");
        let words = ["--overlay-type=full", "--overlay-encap=wireguard", &receives];
        let mut run = Run::new(&words, &[]);
        let (config, families) = Cluster::new(&[&former[..], &["--node-routes=api"]].concat()).config();
        let (_cluster, world) = seen_by_first(&former, "10.244.2.0/24", "10.244.3.0/24");
        let mut plan = Plan::new(config, families);
        plan.update(&world);
        let over_link = RouteKey::new(TABLE_MAIN, prefix("10.244.3.0/24"));
        run.kernel.with(|machine| {
            let own = AddressKey { link: LinkName("eth0".into()), address: prefix("192.0.2.1/24") };
            machine.state.addresses.insert(own, ());
            machine.state.tunnels.extend(plan.routes().tunnels().clone());
            machine.state.overlay_devices.extend(plan.desired().overlay_devices.clone());
            machine.state.overlay_entries.extend(plan.routes().entries().clone());
            machine.state.router_table.extend(plan.desired().table.clone());
            machine.state.rules.extend(plan.desired().rules.clone());
            machine.state.routes.extend(plan.routes().routes().iter().map(|(key, route)| (key.clone(), route.clone())));
            let hop = NextHop { link: LinkName("eth0".into()), gateway: Some(address("192.0.2.3")), on_link: false };
            let route = Route { kind: RouteKind::Unicast, protocol: PROTOCOL, source: None, next_hops: [hop].into() };
            machine.state.routes.insert(over_link.clone(), Arc::new(route));
        });
        let through_tunnel = RouteKey::new(TABLE_MAIN, prefix("10.244.2.0/24"));
        let leads = |run: &Run, key: &RouteKey| {
            let route = run.kernel.with(|machine| machine.state.routes.get(key).cloned())?;
            Some(route.next_hops.iter().map(|hop| hop.link.to_string()).collect::<String>())
        };
        assert!(leads(&run, &through_tunnel).is_some_and(|link| link.starts_with(device)), "{before}");
        let (_cluster, world) = seen_by_first(&words, "10.244.2.0/24", "10.244.3.0/24");
        for authority in [Authority::Remembered, Authority::Complete] {
            run.take(&world, authority, false);
            let served = leads(&run, &through_tunnel);
            assert!(served.as_ref().is_some_and(|link| link.starts_with(device)), "{before} {authority:?}: {served:?}");
            assert_eq!(leads(&run, &over_link), None, "{before} {authority:?}: it is no tunnel of nodes");
            let walls = run.kernel.with(|machine| machine.state.routes.contains_key(&wall(prefix("10.244.2.0/24"))));
            assert!(walls, "{before} {authority:?}: behind it, already");
        }
        run.take(&world, Authority::Complete, true);
        assert_eq!(leads(&run, &through_tunnel), None, "{before}: nobody has announced it");
    }
}
