//! Devices of tunnels that cannot be made, or changed, for a while, on a kernel in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice::bgp::message::Attributes;
use sluice::bgp::rib::{Best, PeerId, RouteChange};
use sluice::config::Backend;
use sluice::kernel::address::AddressKey;
use sluice::kernel::link::LinkName;
use sluice::kernel::route::{RouteKey, TABLE_MAIN};
use sluice::kernel::sysctl::Setting;
use sluice::kernel::tunnel::Tunnel;
use sluice::kernel::vxlan::Vxlan;
use sluice::kernel::wireguard::Wireguard;
use sluice::model::Authority;
use sluice::net::Family;
use sluice::reconcile::Moment;
use sluice::router::apply::{Kernel, Leave, Mirrors};
use sluice::router::names::is_vxlan;
use sluice::router::overlay_guard::{guarded_ports, guarded_ports_of_table};
use sluice::router::plan::Plan;
use sluice::subsystem::Kinds;

use crate::cluster::{Cluster, prefix};
use crate::support::memory::{MemoryKernel, Object, State};

/// Takes rounds that are so far apart that everything is tried again.
fn rounds_apart<K: Kernel>(mirrors: &mut Mirrors<K>, plan: &Plan, now: &mut Instant) {
    let leave = Leave { authority: Authority::Complete, routes_are_complete: true };
    for _ in 0..4 {
        mirrors.round(plan.desired(), plan.routes(), leave, Moment { now: *now, jitter: 0 });
        *now += Duration::from_secs(600);
    }
}

/// Somebody's device has the number and the port of ours, for minutes.
#[test]
fn when_a_device_can_be_made_at_last_what_needs_it_comes_in_the_same_round() {
    for backend in ["iptables", "nftables"] {
        let netfilter = format!("--netfilter={backend}");
        let words = ["--enable-ipv6", "--node-routes=api", "--overlay-type=full", "--overlay-encap=vxlan", &netfilter];
        let mut cluster = Cluster::new(&words);
        for number in 1..=3 {
            cluster.add_node(number, "192.0.2", "both", &format!("10.244.{number}.0/24 fd00:10:244:{number}::/64"));
        }
        cluster.settle();
        let (config, families) = cluster.config();
        assert_eq!(config.backend == Backend::Nftables, backend == "nftables");
        let mut plan = Plan::new(config.clone(), families);
        let changed = plan.update(&cluster.world(1));
        let mut state = State::of_others();
        let own = |text: &str| AddressKey { link: LinkName("eth0".into()), address: prefix(text) };
        state.addresses.extend([(own("192.0.2.1/24"), ()), (own("2001:db8:2::1/64"), ())]);
        let taken = LinkName("of-others".into());
        let wanted = plan.desired().overlay_devices.values().find(|device| device.local.is_ipv4());
        state.overlay_devices.insert(taken.clone(), *wanted.expect("one is wanted"));
        let kernel = MemoryKernel::new(state);
        let mut mirrors = Mirrors::new(kernel.router_targets_of(config.backend));
        mirrors.mark(&changed);
        let leave = Leave { authority: Authority::Complete, routes_are_complete: true };
        let begun = Instant::now();
        let mut now = begun;
        let mut round = |now: Instant| {
            mirrors.round(plan.desired(), plan.routes(), leave, Moment { now, jitter: 0 });
            (mirrors.is_settled(), mirrors.retry_at())
        };
        while now - begun < Duration::from_secs(300) {
            let (settled, due) = round(now);
            assert!(
                !settled
                    && kernel
                        .with(|machine| !machine.state.overlay_devices.contains_key(&LinkName("sluice-vxlan4".into())))
            );
            now = due.expect("it is tried again");
        }
        kernel.with(|machine| machine.state.overlay_devices.remove(&taken));
        // The kinds are due one after the other: until the device is.
        while !kernel.with(|machine| machine.state.overlay_devices.contains_key(&LinkName("sluice-vxlan4".into()))) {
            now = round(now).1.unwrap_or(now);
        }
        kernel.with(|machine| {
            let ours = machine.state.overlay_entries.keys().filter(|entry| is_vxlan(&entry.link.0)).count();
            let all = |family: bool| {
                let main = plan.routes().routes().iter().filter(|(key, _)| key.table == TABLE_MAIN);
                main.filter(|(key, _)| key.destination.addr().is_ipv4() == family)
                    .all(|(key, route)| machine.state.routes.get(key) == Some(route))
            };
            assert_eq!((ours, all(true), all(false)), (4, true, true), "{backend}");
        });
    }
}

/// What failed meanwhile waits for its own time, up to half a minute later than the rules.
#[test]
fn when_the_guard_of_a_device_can_be_written_at_last_what_needs_the_device_comes_in_the_same_round() {
    let words = ["--enable-ipv6", "--node-routes=api", "--overlay-type=full", "--overlay-encap=vxlan"];
    let mut cluster = Cluster::new(&[&words[..], &["--netfilter=iptables"]].concat());
    for number in 1..=2 {
        cluster.add_node(number, "192.0.2", "both", &format!("10.244.{number}.0/24 fd00:10:244:{number}::/64"));
    }
    let (config, families) = cluster.config();
    let mut plan = Plan::new(config.clone(), families);
    let changed = plan.update(&cluster.world(1));
    let mut state = State::of_others();
    let own = |text: &str| AddressKey { link: LinkName("eth0".into()), address: prefix(text) };
    state.addresses.extend([(own("192.0.2.1/24"), ()), (own("2001:db8:2::1/64"), ())]);
    let kernel = MemoryKernel::new(state);
    kernel.with(|machine| machine.broken = Some(Family::V6));
    let mut mirrors = Mirrors::new(kernel.router_targets_of(config.backend));
    mirrors.mark(&changed);
    let leave = Leave { authority: Authority::Complete, routes_are_complete: true };
    let mut now = Instant::now();
    for _ in 0..12 {
        mirrors.round(plan.desired(), plan.routes(), leave, Moment { now, jitter: 0 });
        now = mirrors.retry_at().expect("it is tried again");
    }
    mirrors.round(plan.desired(), plan.routes(), leave, Moment { now, jitter: 0 });
    let device = LinkName("sluice-vxlan6".into());
    assert!(kernel.with(|machine| !machine.state.overlay_devices.contains_key(&device)));
    kernel.with(|machine| machine.broken = None);
    let now = now + Duration::from_millis(1);
    assert!(mirrors.retry_at().is_some_and(|due| due > now), "all of it waits");
    for kind in mirrors.kinds().into_iter().filter(|kind| kind.mirror.name() == "rules") {
        kind.mirror.retry_now();
    }
    mirrors.round(plan.desired(), plan.routes(), leave, Moment { now, jitter: 0 });
    let routes = plan.routes().routes().iter();
    let through: Vec<_> = routes.filter(|(_, route)| route.next_hops.iter().any(|hop| hop.link == device)).collect();
    kernel.with(|machine| {
        assert!(machine.state.overlay_devices.contains_key(&device));
        let entries = machine.state.overlay_entries.keys().filter(|entry| entry.link == device).count();
        let are_there = through.iter().all(|(key, route)| machine.state.routes.get(*key) == Some(*route));
        assert_eq!((entries, through.is_empty(), are_there), (1, false, true));
    });
}

/// As on a host without `ip6tables`.
#[test]
fn a_device_whose_guard_cannot_be_written_is_not_made_and_one_that_stands_without_is_named() {
    let words = ["--enable-ipv6", "--node-routes=api", "--overlay-type=full", "--overlay-encap=vxlan"];
    let mut cluster = Cluster::new(&[&words[..], &["--netfilter=iptables"]].concat());
    for number in 1..=2 {
        cluster.add_node(number, "192.0.2", "both", &format!("10.244.{number}.0/24 fd00:10:244:{number}::/64"));
    }
    let (config, families) = cluster.config();
    let mut plan = Plan::new(config.clone(), families);
    let changed = plan.update(&cluster.world(1));
    let device = LinkName("sluice-vxlan6".into());
    for is_there in [false, true] {
        let mut state = State::of_others();
        let stands = plan.desired().overlay_devices.get_key_value(&device).filter(|_| is_there);
        state.overlay_devices.extend(stands.map(|(name, one)| (name.clone(), *one)));
        let kernel = MemoryKernel::new(state);
        kernel.with(|machine| machine.broken = Some(Family::V6));
        let mut mirrors = Mirrors::new(kernel.router_targets_of(config.backend));
        mirrors.mark(&changed);
        let mut now = Instant::now();
        let mut told = || {
            rounds_apart(&mut mirrors, &plan, &mut now);
            mirrors.unguarded(plan.desired()).iter().map(ToString::to_string).collect::<Vec<String>>()
        };
        let outcome = if is_there { "takes packets of everybody" } else { "is not made" };
        let found = told();
        assert!(found.len() == 1 && found[0].contains(&format!("sluice-vxlan6 {outcome}")), "{found:?}");
        assert_eq!(kernel.with(|machine| machine.state.overlay_devices.contains_key(&device)), is_there);
        kernel.with(|machine| machine.broken = None);
        assert_eq!(told(), Vec::<String>::new());
        assert!(kernel.with(|machine| machine.state.overlay_devices.contains_key(&device)));
    }
}

/// A process that starts in between knows the port by the rules alone.
#[test]
fn a_port_of_fou_is_guarded_until_it_has_gone() {
    for backend in ["iptables", "nftables"] {
        let netfilter = format!("--netfilter={backend}");
        let with = |words: &[&str]| {
            let mut cluster =
                Cluster::new(&[&["--node-routes=bgp", "--overlay-type=full", &netfilter], words].concat());
            for number in 1..=2 {
                cluster.add_node(number, "192.0.2", "v4", &format!("10.244.{number}.0/24"));
            }
            let (config, families) = cluster.config();
            let mut plan = Plan::new(config, families);
            let changed = plan.update(&cluster.world(1));
            (plan, changed)
        };
        let (former, _) = with(&["--overlay-encap=ipip", "--overlay-encap-receive=fou"]);
        let mut state = State::of_others();
        let foreign_ports = state.receive_ports.len();
        state.receive_ports.extend(former.desired().receive_ports.clone());
        state.rules.extend(former.desired().rules.clone());
        state.router_table.extend(former.desired().table.clone());
        let kernel = MemoryKernel::new(state);
        let (plan, changed) = with(&["--overlay-encap=ipip"]);
        let backend_of = if backend == "iptables" { Backend::Iptables } else { Backend::Nftables };
        let mut mirrors = Mirrors::new(kernel.router_targets_of(backend_of));
        mirrors.mark(&changed);
        let mut there = |routes_are_complete| {
            for _ in 0..3 {
                let leave = Leave { authority: Authority::Complete, routes_are_complete };
                mirrors.round(plan.desired(), plan.routes(), leave, Moment { now: Instant::now(), jitter: 0 });
            }
            kernel.with(|machine| {
                let guards = guarded_ports(&machine.state.rules).len()
                    + guarded_ports_of_table(&machine.state.router_table).len();
                (machine.state.receive_ports.len() > foreign_ports, guards > 0)
            })
        };
        assert_eq!(there(false), (true, true), "{backend}");
        assert_eq!(there(true), (false, false), "{backend}");
    }
}

/// A change of `--overlay-encap-port` that is cut off before routes are complete, after which neither flags nor tunnels name the former port.
#[test]
fn a_former_port_of_fou_is_guarded_beside_the_new_one_and_known_to_whoever_starts_until_it_has_gone() {
    for backend in ["iptables", "nftables"] {
        let netfilter = format!("--netfilter={backend}");
        let with = |words: &[&str]| {
            let words =
                [&["--node-routes=bgp", "--overlay-type=full", "--overlay-encap=fou", &netfilter], words].concat();
            let mut cluster = Cluster::new(&words);
            for number in 1..=2 {
                cluster.add_node(number, "192.0.2", "v4", &format!("10.244.{number}.0/24"));
            }
            let (config, families) = cluster.config();
            let mut plan = Plan::new(config.clone(), families);
            let changed = plan.update(&cluster.world(1));
            (plan, changed, config.backend)
        };
        let (former, ..) = with(&["--overlay-encap-port=7000"]);
        let mut state = State::of_others();
        let of_others: BTreeSet<u16> = state.receive_ports.keys().map(|port| port.port).collect();
        state.receive_ports.extend(former.desired().receive_ports.clone());
        state.rules.extend(former.desired().rules.clone());
        state.router_table.extend(former.desired().table.clone());
        let kernel = MemoryKernel::new(state);
        // The ports that are there, and those that are guarded, after the rounds of a new process.
        let run = |routes_are_complete: bool, unreadable: Option<&'static str>| {
            let (plan, changed, backend) = with(&[]);
            let mut mirrors = Mirrors::new(kernel.router_targets_of(backend));
            mirrors.mark(&changed);
            let leave = Leave { authority: Authority::Complete, routes_are_complete };
            kernel.with(|machine| machine.unreadable = unreadable);
            for later in 0..3 {
                let at = Moment { now: Instant::now() + Duration::from_secs(60 * later), jitter: 0 };
                mirrors.round(plan.desired(), plan.routes(), leave, at);
            }
            let state = kernel.with(|machine| {
                machine.unreadable = None;
                machine.state.clone()
            });
            let there = state.receive_ports.keys().map(|port| port.port);
            let there: BTreeSet<u16> = there.filter(|port| !of_others.contains(port)).collect();
            let guarded = guarded_ports(&state.rules).into_iter().chain(guarded_ports_of_table(&state.router_table));
            (there, guarded.collect::<BTreeSet<u16>>(), mirrors.is_settled())
        };
        let ports = |numbers: &[u16]| numbers.iter().copied().collect::<BTreeSet<u16>>();
        assert_eq!(run(true, Some("receiving ports")), (ports(&[7000]), ports(&[5555, 7000]), false), "{backend}");
        for _ in 0..2 {
            assert_eq!(run(false, None), (ports(&[5555, 7000]), ports(&[5555, 7000]), false), "{backend}");
        }
        assert_eq!(run(true, None), (ports(&[5555]), ports(&[5555]), true), "{backend}");
    }
}

/// The version before gave them none. Loose filtering of a device without an address drops what another device leads back to.
#[test]
fn a_device_that_is_there_filters_loosely_only_once_it_has_an_address() {
    for (words, broken) in [
        (["--overlay-encap=ipip", "--overlay-encap-receive=wireguard,vxlan"], "sluice-wg0"),
        (["--overlay-encap=wireguard", "--overlay-encap-receive=vxlan,ipip"], "sluice-vxlan4"),
    ] {
        let mut cluster = Cluster::new(&[&["--node-routes=api", "--overlay-type=full"], &words[..]].concat());
        for number in 1..=2 {
            cluster.add_node(number, "192.0.2", "v4", &format!("10.244.{number}.0/24"));
        }
        let (config, families) = cluster.config();
        let mut plan = Plan::new(config.clone(), families);
        let changed = plan.update(&cluster.world(1));
        let desired = plan.desired();
        let of_device = |setting: &Setting| {
            let name = setting.0.strip_prefix("net/ipv4/conf/").and_then(|rest| rest.strip_suffix("/rp_filter"));
            name.map(|name| LinkName(name.into()))
        };
        let loose: BTreeMap<LinkName, Setting> =
            desired.settings.keys().filter_map(|setting| Some((of_device(setting)?, setting.clone()))).collect();
        assert_eq!(loose.len(), 2, "{loose:?}");
        let mut state = State::of_others();
        state.settings.extend(loose.values().map(|setting| (setting.clone(), "0".into())));
        let devices = desired.overlay_devices.iter();
        state.overlay_devices.extend(devices.map(|(name, one)| (name.clone(), Vxlan { is_numbered: false, ..*one })));
        let devices = desired.wireguard_devices.iter();
        let without = |(name, one): (&LinkName, &Wireguard)| (name.clone(), Wireguard { is_numbered: false, ..*one });
        state.wireguard_devices.extend(devices.map(without));
        let tunnels = plan.routes().tunnels().iter();
        state.tunnels.extend(tunnels.map(|(name, one)| (name.clone(), Tunnel { is_numbered: false, ..*one })));
        let kernel = MemoryKernel::new(state);
        let is_numbered = |state: &State, name: &LinkName| {
            let tunnel = state.tunnels.get(name).map(|one| one.is_numbered);
            let overlay = || state.overlay_devices.get(name).map(|one| one.is_numbered);
            tunnel.or_else(overlay).or_else(|| state.wireguard_devices.get(name).map(|one| one.is_numbered))
        };
        kernel.with(|machine| {
            let name = LinkName(broken.into());
            let is_vxlan = is_vxlan(broken);
            let object = if is_vxlan { Object::OverlayDevice(name) } else { Object::WireguardDevice(name) };
            machine.broken_object = Some(object);
            machine.observer = Some(Box::new(move |state, object| {
                let Object::Setting(setting) = object else { return };
                let device = of_device(setting);
                assert!(device.is_none_or(|device| is_numbered(state, &device) == Some(true)), "{setting}");
            }));
        });
        let mut mirrors = Mirrors::new(kernel.router_targets_of(config.backend));
        mirrors.mark(&changed);
        let mut now = Instant::now();
        let mut rounds = || {
            rounds_apart(&mut mirrors, &plan, &mut now);
            let value = |setting: &Setting| kernel.with(|machine| machine.state.settings.get(setting).cloned());
            loose.iter().map(|(name, setting)| (name.0.to_string(), value(setting))).collect::<BTreeMap<_, _>>()
        };
        let (loosened, same): (BTreeMap<_, _>, _) =
            rounds().into_iter().partition(|(_, value)| value.as_deref() == Some("2"));
        assert_eq!((loosened.len(), same), (1, BTreeMap::from([(broken.to_owned(), Some("0".into()))])));
        kernel.with(|machine| machine.broken_object = None);
        assert!(rounds().values().all(|value| value.as_deref() == Some("2")));
        assert!(mirrors.is_settled());
    }
}

/// Each for itself: the tunnel of a node that is gone, and with `vxlan` its entry.
#[test]
fn a_route_that_fails_for_good_keeps_no_tunnel_but_those_that_it_may_use() {
    for encap in ["ipip", "vxlan"] {
        let encap = format!("--overlay-encap={encap}");
        let mut cluster = Cluster::new(&["--node-routes=api", "--overlay-type=full", &encap]);
        for number in 1..=4 {
            cluster.add_node(number, "192.0.2", "v4", &format!("10.244.{number}.0/24"));
        }
        let (config, families) = cluster.config();
        let mut plan = Plan::new(config.clone(), families);
        let kernel = MemoryKernel::new(State::of_others());
        let mut mirrors = Mirrors::new(kernel.router_targets_of(config.backend));
        let mut now = Instant::now();
        mirrors.mark(&plan.update(&cluster.world(1)));
        rounds_apart(&mut mirrors, &plan, &mut now);
        let ways = || kernel.with(|machine| machine.state.tunnels.len() + machine.state.overlay_entries.len());
        let all = ways();
        assert!(mirrors.is_settled() && all >= 3);
        // Nodes 2 and 3 go. The route to the pods of node 2 is to become one to node 4, which is refused for good.
        let route = RouteKey::new(TABLE_MAIN, prefix("10.244.2.0/24"));
        kernel.with(|machine| machine.broken_object = Some(Object::Route(route.clone())));
        cluster.remove_node(2);
        cluster.change_node(4, |node| node.pod_cidrs = vec![prefix("10.244.2.0/24")]);
        cluster.remove_node(3);
        mirrors.mark(&plan.update(&cluster.world(1)));
        rounds_apart(&mut mirrors, &plan, &mut now);
        assert!(!mirrors.is_settled());
        assert_eq!(ways(), all - 1, "{encap}: that of node 3 alone is gone, through that of node 2 a route leads");
        kernel.with(|machine| machine.broken_object = None);
        rounds_apart(&mut mirrors, &plan, &mut now);
        assert!(mirrors.is_settled());
        assert_eq!(ways(), all - 2, "{encap}");
    }
}

/// What is sent by routes of an earlier run goes on by its encapsulation until the routes of this one are known; what takes nothing is set up at once.
#[test]
fn a_device_by_which_packets_are_only_taken_stays_as_an_earlier_run_left_it_until_routes_are_known() {
    let planned = |words: &[&str]| {
        let mut cluster = Cluster::new(&[&["--netfilter=nftables", "--overlay-type=full"], words].concat());
        for number in 1..=6 {
            cluster.add_node(number, "192.0.2", "v4", &format!("10.244.{number}.0/24"));
        }
        let (config, families) = cluster.config();
        let mut plan = Plan::new(config, families);
        let changed = plan.update(&cluster.world(1));
        (plan, changed)
    };
    let (former, _) = planned(&["--node-routes=api", "--overlay-encap=fou", "--overlay-encap-receive=ipip"]);
    let (mut plan, changed) = planned(&["--overlay-encap=ipip", "--overlay-encap-receive=fou"]);
    let of = |plan: &Plan, number: u8| {
        let is_its = |(_, one): &(&LinkName, &Tunnel)| one.remote == IpAddr::from([192, 0, 2, number]);
        plan.routes().tunnels().iter().find(is_its).map(|(name, one)| (name.clone(), *one)).expect("a tunnel")
    };
    let before = |number| of(&former, number);
    let mut state = State::of_others();
    let other_end = Tunnel { local: IpAddr::from([192, 0, 2, 99]), ..before(6).1 };
    let without_address = Tunnel { is_numbered: false, ..before(5).1 };
    state.tunnels.extend([before(2), before(3), (before(5).0, without_address), (before(6).0, other_end)]);
    let key = RouteKey::new(TABLE_MAIN, prefix("10.244.2.0/24"));
    state.routes.insert(key.clone(), former.routes().routes().get(&key).expect("a route").clone());
    let kernel = MemoryKernel::new(state);
    let mut mirrors = Mirrors::new(kernel.router_targets_of(Backend::Nftables));
    mirrors.mark(&changed);
    let next_hop = IpAddr::from([192, 0, 2, 3]);
    let best = Best { source: PeerId(7), attributes: Arc::new(Attributes::local(next_hop)) };
    let route = RouteChange { prefix: prefix("10.244.3.0/24"), best: Some(best), next_hops: vec![next_hop] };
    mirrors.mark(&plan.learn(&[route]));
    let mut there = |authority, routes_are_complete| {
        for _ in 0..3 {
            let leave = Leave { authority, routes_are_complete };
            mirrors.round(plan.desired(), plan.routes(), leave, Moment { now: Instant::now(), jitter: 0 });
        }
        let state = kernel.with(|machine| machine.state.clone());
        let is_changed = |number: u8| {
            let (name, wanted) = of(&plan, number);
            state.tunnels.get(&name).map(|one| *one == wanted)
        };
        ([2, 3, 4, 5, 6].map(is_changed), state.routes.contains_key(&key))
    };
    let [kept, changed] = [false, true].map(Some);
    for (authority, complete) in [(Authority::Complete, false), (Authority::Remembered, true)] {
        let found = there(authority, complete);
        let wanted = [kept, changed, changed, changed, changed];
        assert_eq!(found, (wanted, true), "one that is led through, missing, without an address, of another end");
    }
    assert_eq!(there(Authority::Complete, true), ([changed; 5], false), "nobody announces the route");
}
