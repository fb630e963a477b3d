//! The problems of Services that the plan finds, as they come and go.

use ipnet::IpNet;
use sluice::model::{Cause, LoadBalancerAddress, ServiceProblems};

use super::*;

fn plan() -> Plan {
    let (config, families) = flags::proxy(&FLAGS);
    Plan::new(config, families, KERNEL)
}

fn name(name: &str) -> ObjectName {
    ObjectName::new("default", name)
}

/// The problems as `SERVICE: CAUSE SUBJECT`.
fn said(problems: &ServiceProblems) -> Vec<String> {
    let of = problems.iter().flat_map(|(name, all)| all.iter().map(move |it| (name, it)));
    of.map(|(name, it)| format!("{}: {:?} {}", name.name, it.cause, it.subject)).collect()
}

/// `served()` without anything that would be a problem by itself.
fn sound() -> World {
    let mut world = served();
    for of in ["one", "other"] {
        change(&mut world, of, |service| {
            (service.external_ips, service.load_balancer) = (Vec::new(), Vec::new());
            (service.source_ranges, service.health_check_node_port) = (None, None);
            service.external_traffic_policy = TrafficPolicy::Cluster;
            service.annotations = Default::default();
            service.created = 5;
        });
    }
    world
}

fn change(world: &mut World, of: &str, change: impl FnOnce(&mut Service)) {
    let mut service = (**world.cluster.services.get(&name(of)).expect("it is there")).clone();
    change(&mut service);
    world.cluster.services.insert(name(of), service);
}

fn change_endpoints(world: &mut World, of: &str, change: impl Fn(&mut EndpointSlice)) {
    let mut slice =
        (**world.cluster.endpoints.get(&name(of)).expect("it is there").slices.values().next().expect("one")).clone();
    change(&mut slice);
    world.cluster.endpoints.insert(name(of), Endpoints { slices: [("one".into(), Arc::new(slice))].into() });
}

#[test]
fn a_service_without_a_mistake_has_no_problem() {
    let mut plan = plan();
    assert!(!plan.update(&sound(), Instant::now()).problems);
    assert_eq!(said(plan.problems()), [""; 0]);
}

#[test]
fn who_loses_an_address_is_told_until_it_is_free_whoever_came_first() {
    let (mut plan, mut world) = (plan(), sound());
    let address: IpAddr = ADDRESS.parse().expect("an address");
    plan.update(&world, Instant::now());
    change(&mut world, "other", |service| service.cluster_ips.push(address));
    change(&mut world, "other", |service| service.created = 9);
    assert!(plan.update(&world, Instant::now()).problems);
    assert_eq!(said(plan.problems()), ["other: Conflict tcp 10.96.0.1:80"]);
    let text = plan.problems().get(&name("other")).expect("one")[0].to_string();
    assert_eq!(text, "tcp 10.96.0.1:80 is served for Service default/one, which is older");
    // The other one is the older one now.
    change(&mut world, "other", |service| service.created = 1);
    plan.update(&world, Instant::now());
    assert_eq!(said(plan.problems()), ["one: Conflict tcp 10.96.0.1:80"]);
    // A third comes before both, and goes.
    let third = Service { created: 0, ..(**world.cluster.services.get(&name("one")).expect("it is there")).clone() };
    world.cluster.services.insert(name("third"), third);
    plan.update(&world, Instant::now());
    let both = ["one: Conflict tcp 10.96.0.1:80", "other: Conflict tcp 10.96.0.1:80"];
    assert_eq!(said(plan.problems()), both);
    // Each is told who has the address now, also who had lost it to another one before.
    let owners = |plan: &Plan| ["one", "other"].map(|of| plan.problems().get(&name(of)).expect("one")[0].to_string());
    let by_third = "tcp 10.96.0.1:80 is served for Service default/third, which is older";
    assert_eq!(owners(&plan), [by_third; 2]);
    world.cluster.services.remove(&name("third"));
    plan.update(&world, Instant::now());
    assert_eq!(said(plan.problems()), both[..1]);
    let text = plan.problems().get(&name("one")).expect("one")[0].to_string();
    assert_eq!(text, "tcp 10.96.0.1:80 is served for Service default/other, which is older");
    world.cluster.services.remove(&name("other"));
    assert!(plan.update(&world, Instant::now()).problems);
    assert_eq!(said(plan.problems()), [""; 0]);
    assert!(!plan.update(&world, Instant::now()).problems, "nothing has changed");
}

#[test]
fn refused_addresses_are_problems_with_their_reason() {
    let (mut plan, mut world) = (plan(), sound());
    change(&mut world, "one", |service| service.external_ips = vec!["203.0.113.9".parse().expect("an address")]);
    plan.update(&world, Instant::now());
    let [problem] = &plan.problems().get(&name("one")).expect("one")[..] else { panic!("one problem") };
    assert_eq!(problem.cause, Cause::Refused);
    assert!(problem.text.starts_with("the external address 203.0.113.9 is not served: "), "{problem}");
    change(&mut world, "one", |service| service.external_ips = Vec::new());
    assert!(plan.update(&world, Instant::now()).problems);
    assert_eq!(said(plan.problems()), [""; 0]);
}

#[test]
fn source_ranges_that_are_more_than_the_kernel_is_given_are_a_problem() {
    let (mut plan, mut world) = (plan(), sound());
    let at = LoadBalancerAddress { address: "203.0.113.80".parse().expect("an address"), through_balancer: false };
    // So many /32 of 10.0.0.0/8, and an IPv6 range, which says nothing of an IPv4 address.
    let ranges = |count: u32| {
        let of_ipv4 = (0..count).map(|n| IpNet::from(IpAddr::from((0x0a00_0000 + n).to_be_bytes())));
        of_ipv4.chain(["2001:db8::/32".parse().expect("a range")]).collect()
    };
    for (count, ports, expected) in
        [(5_000, 1, None), (5_001, 1, Some(5_001)), (2_501, 2, Some(5_002)), (2_500, 2, None)]
    {
        change(&mut world, "one", |service| {
            service.kind = ServiceType::LoadBalancer;
            (service.load_balancer, service.source_ranges) = (vec![at], Some(ranges(count)));
            let first = service.ports[0].clone();
            let port = |n: u16| ServicePort { name: format!("p{n}").into(), port: 80 + n, ..first.clone() };
            service.ports = (0..ports).map(port).collect();
        });
        plan.update(&world, Instant::now());
        let of_ranges = |text: &String| text.starts_with("one: SourceRanges");
        let number = usize::from(expected.is_some());
        assert_eq!(said(plan.problems()).iter().filter(|text| of_ranges(text)).count(), number, "{count} × {ports}");
        let Some(elements) = expected else { continue };
        let its = plan.problems().get(&name("one")).expect("some");
        let problem = its.iter().find(|it| it.cause == Cause::SourceRanges).expect("one");
        assert_eq!(problem.cause.reason(), "TooManySourceRanges");
        assert!(problem.text.starts_with(&format!("the source ranges take {elements} elements ")), "{problem}");
        assert!(problem.text.ends_with("closed to everybody"), "{problem}");
    }
}

#[test]
fn a_local_policy_is_a_problem_where_no_ready_endpoint_names_its_node() {
    let (mut plan, mut world) = (plan(), sound());
    change(&mut world, "one", |service| service.internal_traffic_policy = TrafficPolicy::Local);
    plan.update(&world, Instant::now());
    assert_eq!(said(plan.problems()), ["one: NoLocalEndpoint internalTrafficPolicy"], "its endpoint names none");
    change_endpoints(&mut world, "one", |slice| {
        let there = |endpoint| Endpoint { node: Some("node2".into()), ..endpoint };
        slice.endpoints = slice.endpoints.iter().map(there).collect();
    });
    plan.update(&world, Instant::now());
    assert_eq!(said(plan.problems()), [""; 0], "another node has it");
    change_endpoints(&mut world, "one", |slice| {
        let conditions = Conditions { ready: false, serving: false, terminating: false };
        slice.endpoints = slice.endpoints.iter().map(|it| Endpoint { node: None, conditions, ..it }).collect();
    });
    plan.update(&world, Instant::now());
    assert_eq!(said(plan.problems()), [""; 0], "nothing is ready, as after scaling to zero");
}

#[test]
fn a_port_that_no_endpoint_has_is_a_problem() {
    let (mut plan, mut world) = (plan(), sound());
    change_endpoints(&mut world, "one", |slice| {
        slice.ports = slice.ports.iter().map(|port| EndpointPort { name: "web".into(), ..port.clone() }).collect();
    });
    plan.update(&world, Instant::now());
    assert_eq!(said(plan.problems()), ["one: NoEndpointPort tcp 80 "]);
    world.cluster.endpoints.remove(&name("one"));
    plan.update(&world, Instant::now());
    assert_eq!(said(plan.problems()), [""; 0], "there is no endpoint at all");
}
