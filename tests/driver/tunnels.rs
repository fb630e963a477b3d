//! New endpoints behind tunnels and the firewall of the process: what waits for it, for how long, and that nobody else does.

use std::collections::BTreeSet;

use sluice::config::ProxyConfig;
use sluice::observe::health::Health;
use sluice::proxy::dsr::{TunnelEnds, Untunnelled};
use sluice::proxy::explain::{Place, Question as Asked, Role, Standing, explanation};
use sluice::proxy::names::DSR_TABLE;
use sluice::proxy::unjudged::PATIENCE;

use super::*;

const EXTERNAL: &str = "203.0.113.10";
const TUNNEL_FLAGS: [&str; 3] = [FLAGS[0], FLAGS[1], "--strict-external-ip-validation=false"];

/// Runs the loop with a firewall that says what the test has it say.
fn with_firewall(test: impl AsyncFnOnce(&Running, &watch::Sender<u64>)) {
    let (judge, judged) = watch::channel(0);
    let (config, families) = flags::proxy(&TUNNEL_FLAGS);
    let config = Arc::new(ProxyConfig { tunnel_mode: true, ..(*config).clone() });
    with_config((config, families), Some(judged), async |running| test(running, &judge).await);
}

/// `served()` with these endpoints of the Service `one`, which is served through tunnels at an external address.
fn tunnelled(number: u64, endpoints: &[u8]) -> World {
    let mut world = served();
    world.number = number;
    world.cluster.services = Default::default();
    for (name, address) in [("one", ADDRESS), ("other", OTHER)] {
        let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None };
        let mut service = Service::new(vec![address.parse().expect("an address")], vec![port]);
        if name == "one" {
            service.external_ips = vec![EXTERNAL.parse().expect("an address")];
            service.annotations.dsr = true;
        }
        world.cluster.services.insert(ObjectName::new("default", name), service);
    }
    let endpoints = endpoints.iter().map(|last| ready([10, 244, 1, *last], None));
    world.cluster.endpoints.insert(ObjectName::new("default", "one"), in_one_slice(80, endpoints));
    world
}

/// The last bytes of the endpoints that get packets through tunnels; `None` where nothing is in tunnel mode.
fn behind_tunnels(state: &State) -> Option<Vec<u8>> {
    let mut marked = state.virtuals.iter().filter(|(key, _)| matches!(key, ServiceKey::Mark { .. }));
    let (_, found) = marked.next()?;
    let last = |destination: Destination| match destination.address.ip() {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(_) => panic!("none has such an endpoint"),
    };
    Some(found.destinations.iter().map(last).collect())
}

/// Those of them that get new connections: one that is left out drains, as if it had been used.
fn taking_tunnels(state: &State) -> Option<Vec<u8>> {
    let mut state = state.clone();
    for (_, found) in state.virtuals.iter_mut() {
        found.destinations = found.destinations.iter().filter(|destination| destination.weight > 0).collect();
    }
    behind_tunnels(&state)
}

/// The last bytes of the endpoints that get packets with NAT at the external address.
fn with_nat(state: &State) -> Option<Vec<u8>> {
    let key = ServiceKey::Address { address: EXTERNAL.parse().ok()?, protocol: Protocol::Tcp, port: 80 };
    let last = |destination: Destination| match destination.address.ip() {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(_) => panic!("none has such an endpoint"),
    };
    Some(state.virtuals.get(&key)?.destinations.iter().map(last).collect())
}

fn notes(health: &Health) -> Vec<String> {
    health.notes().into_iter().map(|note| format!("{}: {}", note.component, note.text)).collect()
}

#[test]
fn packets_go_through_new_tunnels_when_the_firewall_has_judged_them_and_nobody_else_waits() {
    with_firewall(async |running, judge| {
        let begun = Instant::now();
        running.world.send_replace(tunnelled(1, &[5]));
        running.until("the other Service is served", |state| state.holds(OTHER)).await;
        assert_eq!(behind_tunnels(&running.kernel.state()), None);
        assert!(begun.elapsed() < PATIENCE, "the machine is too slow for this test");
        judge.send_replace(1);
        running.until("the tunnel is there", |state| behind_tunnels(state) == Some(vec![5])).await;
        // A rollout: the one that has gone is not waited for, and the new one is.
        running.world.send_replace(tunnelled(2, &[5, 6]));
        running.world.send_replace(tunnelled(3, &[6]));
        running.until("the old one is gone", |state| behind_tunnels(state) == Some(vec![])).await;
        // A firewall that has passed over Worlds has judged them.
        judge.send_replace(4);
        running.until("the new one is there", |state| behind_tunnels(state) == Some(vec![6])).await;
        running.world.send_replace(tunnelled(4, &[6, 7]));
        running.until("nobody waits for what is judged", |state| behind_tunnels(state) == Some(vec![6, 7])).await;
        assert!(begun.elapsed() < PATIENCE, "the machine is too slow for this test");
        assert_eq!(notes(&running.health), [""; 0]);
    });
}

#[test]
fn a_firewall_that_fails_holds_up_new_endpoints_for_a_second_each_and_that_is_told() {
    with_firewall(async |running, judge| {
        let begun = Instant::now();
        running.world.send_replace(tunnelled(1, &[5]));
        running.until("the tunnel is there", |state| behind_tunnels(state) == Some(vec![5])).await;
        assert!(begun.elapsed() >= PATIENCE);
        running.until("it is told", |_| !notes(&running.health).is_empty()).await;
        let text = "tunnels: 1 endpoints behind tunnels are used although the firewall has not refused them yet to pods whose policies deny them";
        assert_eq!(notes(&running.health), [text]);
        let begun = Instant::now();
        running.world.send_replace(tunnelled(2, &[5, 6]));
        running.until("the next one is there", |state| behind_tunnels(state) == Some(vec![5, 6])).await;
        assert!(begun.elapsed() >= PATIENCE);
        judge.send_replace(1);
        running
            .until("one is judged", |_| notes(&running.health).first().is_some_and(|it| it.starts_with("tunnels: 1 ")))
            .await;
        judge.send_replace(2);
        running.until("all are judged", |_| notes(&running.health).is_empty()).await;
        assert!(running.registry.text().contains("sluice_proxy_unjudged_endpoints_total 2"));
    });
}

#[test]
fn a_pod_without_a_tunnel_gets_nothing_through_one_and_where_nobody_else_answers_clients_are_served_with_nat() {
    with_firewall(async |running, judge| {
        judge.send_replace(1);
        let lacking = |those: &[u8]| {
            let of = those.iter().map(|last| IpAddr::from([10, 244, 1, *last])).collect::<BTreeSet<IpAddr>>();
            let found =
                if of.is_empty() { Untunnelled::new() } else { [(ObjectName::new("default", "one"), of)].into() };
            running.tunnel_ends.send_replace(Arc::new(TunnelEnds { lacking: found, unproven: None }));
        };
        // It is told before anything is known of the cluster.
        lacking(&[6]);
        running.world.send_replace(tunnelled(1, &[5, 6, 7]));
        running.until("one is left out", |state| behind_tunnels(state) == Some(vec![5, 7])).await;
        assert!(running.registry.text().contains("sluice_proxy_untunnelled_endpoints 1\n"));
        lacking(&[5, 6, 7]);
        running.until("all have NAT", |state| with_nat(state) == Some(vec![5, 6, 7])).await;
        assert_eq!(behind_tunnels(&running.kernel.state()), None);
        lacking(&[5, 6]);
        running.until("one is set up", |state| behind_tunnels(state) == Some(vec![7])).await;
        lacking(&[]);
        running.until("all are", |state| behind_tunnels(state) == Some(vec![5, 6, 7])).await;
        assert_eq!(with_nat(&running.kernel.state()), None);
    });
}

#[test]
fn who_asks_is_told_that_an_endpoint_is_out_because_no_tunnel_ends_in_it() {
    let (config, families) = flags::proxy(&TUNNEL_FLAGS);
    let (mut plan, now) =
        (Plan::new(Arc::new(ProxyConfig { tunnel_mode: true, ..(*config).clone() }), families, KERNEL), Instant::now());
    let service = ObjectName::new("default", "one");
    let without = |last: u8| [(service.clone(), BTreeSet::from([IpAddr::from([10, 244, 1, last])]))].into();
    let told = |plan: &Plan| -> Vec<String> {
        let explained = explanation(plan, &Asked::Service(service.clone()), Vec::new()).expect("it is known");
        let external = |place: &&Place| place.role == Role::ExternalIp;
        let places = explained.services[0].places.iter().filter(external);
        let endpoints = places.flat_map(|place| match &place.standing {
            Standing::Served(served) => served.endpoints.clone(),
            other => panic!("{other:?}"),
        });
        endpoints.map(|one| format!("{}: {}", one.address.ip(), one.standing.word())).collect()
    };
    plan.set_untunnelled(without(6), now);
    plan.update(&tunnelled(1, &[5, 6, 7]), now);
    assert_eq!(told(&plan), ["10.244.1.5: serving", "10.244.1.6: untunnelled", "10.244.1.7: serving"]);
    // One that has had connections keeps them.
    plan.set_untunnelled(without(7), now);
    assert_eq!(told(&plan), ["10.244.1.5: serving", "10.244.1.6: serving", "10.244.1.7: drainingUntunnelled"]);
    plan.set_untunnelled(Untunnelled::new(), now);
    assert_eq!(told(&plan), ["10.244.1.5: serving", "10.244.1.6: serving", "10.244.1.7: serving"]);
}

#[test]
fn what_an_earlier_run_left_serves_while_the_firewall_is_not_there() {
    let state = std::cell::RefCell::new(State::default());
    with_firewall(async |running, judge| {
        judge.send_replace(1);
        running.world.send_replace(tunnelled(1, &[5, 6]));
        running.until("the tunnel is there", |state| behind_tunnels(state) == Some(vec![5, 6])).await;
        state.replace(running.kernel.state());
    });
    with_firewall(async |running, _| {
        running.kernel.with(|machine| machine.state = state.take());
        running.world.send_replace(tunnelled(1, &[6, 7]));
        running.until("what has gone is gone", |state| behind_tunnels(state) == Some(vec![6])).await;
        running.until("the new one had to wait", |state| behind_tunnels(state) == Some(vec![6, 7])).await;
    });
}

/// The Service's only endpoint, in which no tunnel ends.
fn without_tunnel() -> Untunnelled {
    [(ObjectName::new("default", "one"), [IpAddr::from([10, 244, 1, 5])].into())].into()
}

/// A kernel in which an earlier run serves this endpoint with NAT.
fn served_with_nat() -> State {
    let state = std::cell::RefCell::new(State::default());
    with_firewall(async |running, judge| {
        judge.send_replace(1);
        let ends = TunnelEnds { lacking: without_tunnel(), unproven: Some(without_tunnel()) };
        running.tunnel_ends.send_replace(Arc::new(ends));
        running.world.send_replace(tunnelled(1, &[5]));
        running.until("it has NAT", |state| with_nat(state) == Some(vec![5])).await;
        running.until("the other Service is served", |state| state.holds(OTHER)).await;
        state.replace(running.kernel.state());
    });
    state.take()
}

#[test]
fn an_endpoint_that_comes_while_no_tunnel_is_proven_is_served_with_nat_as_the_others_are() {
    let state = std::cell::RefCell::new(served_with_nat());
    with_firewall(async |running, judge| {
        running.kernel.with(|machine| machine.state = state.take());
        judge.send_replace(9);
        running.tunnel_ends.send_replace(Arc::new(TunnelEnds { lacking: Untunnelled::new(), unproven: None }));
        running.world.send_replace(tunnelled(1, &[5]));
        running.until("it goes on with NAT", |state| with_nat(state) == Some(vec![5])).await;
        running.world.send_replace(tunnelled(2, &[5, 6]));
        running
            .until("the new one is served", |state| {
                assert_eq!(behind_tunnels(state), None, "the mode stays");
                with_nat(state) == Some(vec![5, 6])
            })
            .await;
    });
}

#[test]
fn a_start_sends_nothing_to_an_endpoint_that_tunnels_were_not_used_for_until_one_ends_there() {
    let (state, one) = (std::cell::RefCell::new(State::default()), ObjectName::new("default", "one"));
    let pods = |those: &[u8]| -> Untunnelled {
        let of: BTreeSet<IpAddr> = those.iter().map(|last| IpAddr::from([10, 244, 1, *last])).collect();
        [(one.clone(), of)].into_iter().filter(|(_, of)| !of.is_empty()).collect()
    };
    let tell = |running: &Running, lacking: &[u8], unproven: Option<&[u8]>| {
        let ends = TunnelEnds { lacking: pods(lacking), unproven: unproven.map(pods) };
        running.tunnel_ends.send_replace(Arc::new(ends));
    };
    with_firewall(async |running, judge| {
        judge.send_replace(9);
        tell(running, &[6], Some(&[6]));
        running.world.send_replace(on_this_node(tunnelled(1, &[5, 6])));
        running.until("one is left out", |state| behind_tunnels(state) == Some(vec![5])).await;
        running.until("the other Service is served", |state| state.holds(OTHER)).await;
        state.replace(running.kernel.state());
    });
    for unproven in [None, Some(&[5, 6][..])] {
        with_firewall(async |running, judge| {
            running.kernel.with(|machine| machine.state = state.borrow().clone());
            judge.send_replace(9);
            tell(running, &[], unproven);
            for (number, address) in [(1, "10.96.0.21"), (2, "10.96.0.22")] {
                let mut world = on_this_node(tunnelled(number, &[5, 6]));
                let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None };
                let service = Service::new(vec![address.parse().expect("an address")], vec![port]);
                world.cluster.services.insert(ObjectName::new("default", "new"), service);
                running.world.send_replace(world);
                running.until("a new Service is served", |state| state.holds(address)).await;
                assert_eq!(taking_tunnels(&running.kernel.state()), Some(vec![5]), "{unproven:?}");
            }
            tell(running, &[], Some(&[]));
            running.until("it is set up", |state| taking_tunnels(state) == Some(vec![5, 6])).await;
            // From then on it is as any other: what is not known to fail is used.
            tell(running, &[], Some(&[6]));
            running.world.send_replace(on_this_node(tunnelled(3, &[5, 6, 7])));
            running.until("nobody is left out", |state| taking_tunnels(state) == Some(vec![5, 6, 7])).await;
        });
    }
    // Where nobody else is left it is used, because NAT would end what goes through tunnels.
    with_firewall(async |running, judge| {
        running.kernel.with(|machine| machine.state = state.borrow().clone());
        judge.send_replace(9);
        tell(running, &[], Some(&[6]));
        running.world.send_replace(on_this_node(tunnelled(1, &[6])));
        running.until("it is used", |state| taking_tunnels(state) == Some(vec![6])).await;
        assert_eq!(with_nat(&running.kernel.state()), None);
    });
}

/// The same World, in which all endpoints say that they are on this node.
fn on_this_node(mut world: World) -> World {
    let (name, here) = (ObjectName::new("default", "one"), world.host.node_name.clone());
    let mut endpoints = (**world.cluster.endpoints.get(&name).expect("it has some")).clone();
    let mut slice = (**endpoints.slices.values().next().expect("one slice")).clone();
    let on_node = |endpoint| Endpoint { node: Some(here.as_str().into()), ..endpoint };
    slice.endpoints = slice.endpoints.iter().map(on_node).collect();
    endpoints.slices.insert("one".into(), Arc::new(slice));
    world.cluster.endpoints.insert(name, endpoints);
    world
}

#[test]
fn a_start_goes_on_with_nat_until_it_is_known_that_a_tunnel_ends_in_the_endpoint() {
    let it = without_tunnel();
    let state = std::cell::RefCell::new(served_with_nat());
    with_firewall(async |running, judge| {
        running.kernel.with(|machine| machine.state = state.take());
        judge.send_replace(9);
        let stays = |state: &State| assert_eq!((with_nat(state), behind_tunnels(state)), (Some(vec![5]), None));
        let mut world = tunnelled(1, &[5]);
        for (number, unproven, address) in [(1, None, "10.96.0.21"), (2, Some(it.clone()), "10.96.0.22")] {
            running.tunnel_ends.send_replace(Arc::new(TunnelEnds { lacking: Untunnelled::new(), unproven }));
            let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None };
            let service = Service::new(vec![address.parse().expect("an address")], vec![port]);
            world.cluster.services.insert(ObjectName::new("default", address), service);
            world.number = number;
            running.world.send_replace(world.clone());
            running.until("a new Service is served", |state| state.holds(address)).await;
            stays(&running.kernel.state());
        }
        let unproven = Some(Untunnelled::new());
        running.tunnel_ends.send_replace(Arc::new(TunnelEnds { lacking: Untunnelled::new(), unproven }));
        let is_tunnelled = |state: &State| behind_tunnels(state) == Some(vec![5]) && with_nat(state).is_none();
        running.until("it is set up", is_tunnelled).await;
        // From then on it is as any other: what is not known to fail is used.
        running.tunnel_ends.send_replace(Arc::new(TunnelEnds { lacking: Untunnelled::new(), unproven: Some(it) }));
        world.number = 3;
        world.cluster.services.remove(&ObjectName::new("default", "10.96.0.21"));
        running.world.send_replace(world);
        running.until("that Service has gone", |state| !state.holds("10.96.0.21")).await;
        assert_eq!(behind_tunnels(&running.kernel.state()), Some(vec![5]));
    });
}

/// `tunnelled()` with this endpoint on this node, of a load balancer's Service with the policy Local and a health check; served with NAT without the annotation.
fn health_checked(number: u64, last: u8, dsr: bool) -> World {
    let mut world = on_this_node(tunnelled(number, &[last]));
    let name = ObjectName::new("default", "one");
    let service = (**world.cluster.services.get(&name).expect("it is there")).clone();
    let mut service = Service {
        kind: ServiceType::LoadBalancer,
        external_traffic_policy: TrafficPolicy::Local,
        health_check_node_port: Some(30_777),
        ..service
    };
    service.annotations.dsr = dsr;
    world.cluster.services.insert(name, service);
    world
}

#[test]
fn a_health_check_answers_on_while_what_served_before_serves() {
    with_firewall(async |running, judge| {
        // The node's, which is the source of routes.
        running.kernel.with(|machine| machine.state.addresses = State::of_others().addresses);
        judge.send_replace(1);
        running.world.send_replace(health_checked(1, 5, false));
        let is_told = || running.health_checks.borrow().checks.get(&30_777).is_some();
        let is_pending = || !running.health_checks.borrow().pending.is_empty();
        running.until("it has NAT", |state| with_nat(state) == Some(vec![5]) && is_told() && !is_pending()).await;
        // The firewall has not judged the tunnel yet, and NAT goes on, to new endpoints as well.
        for (number, endpoint) in [(2, 5), (3, 6)] {
            let begun = Instant::now();
            running.world.send_replace(health_checked(number, endpoint, true));
            while begun.elapsed() < PATIENCE / 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
                let state = running.kernel.state();
                assert!(
                    behind_tunnels(&state).is_none() || begun.elapsed() > PATIENCE / 2,
                    "the firewall is waited for"
                );
                assert!(!is_pending(), "{:?} serves clients", with_nat(&state));
            }
            judge.send_replace(number - 1);
        }
        judge.send_replace(3);
        running
            .until("the tunnel is there", |state| {
                assert!(!is_pending(), "it is served all the while");
                behind_tunnels(state) == Some(vec![6]) && with_nat(state).is_none()
            })
            .await;
        // And back: the kernel takes no virtual service with NAT for a while.
        running.kernel.with(|machine| machine.faults.alive_for = Some(0));
        running.world.send_replace(health_checked(4, 6, false));
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert!(!is_pending(), "the tunnel serves");
        }
        running.kernel.with(|machine| machine.faults.alive_for = None);
        running
            .until("it has NAT again", |state| {
                assert!(!is_pending(), "it is served all the while");
                behind_tunnels(state).is_none() && with_nat(state) == Some(vec![6])
            })
            .await;
    });
}

#[test]
fn a_rule_of_routing_and_routes_that_somebody_deletes_are_back_when_the_kernel_tells_of_it() {
    with_firewall(async |running, judge| {
        judge.send_replace(1);
        running.world.send_replace(tunnelled(1, &[5]));
        running.until("the tunnel is there", |state| behind_tunnels(state) == Some(vec![5])).await;
        running.until("packets are led to it", |state| !state.policy_rules.is_empty()).await;
        let before = running.kernel.state();
        running.kernel.with(|machine| machine.state.policy_rules.clear());
        let mut told = Changes { routing_rules: 1, ..Changes::default() };
        running.changes.send_replace(told);
        running.until("the rule is back", |state| state.policy_rules == before.policy_rules).await;
        running.kernel.with(|machine| machine.state.routes.retain(|key, _| key.table != DSR_TABLE.table));
        told.ours = 1;
        running.changes.send_replace(told);
        running.until("the routes are back", |state| state.routes == before.routes).await;
    });
}
