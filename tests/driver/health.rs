//! Health checks of Services: what the kernel has, and not what is wanted.

use std::collections::BTreeSet;

use sluice::model::{LoadBalancerAddress, Node, Scheduler};

use super::*;

const NODE: &str = "node1";
const OTHER_NODE: &str = "node2";

fn name() -> ObjectName {
    ObjectName::new("default", "one")
}

/// A Service with a node port, external policy Local and a health check, and one endpoint on each of these nodes.
fn balanced(nodes: &[&str]) -> World {
    let mut world = served();
    // The pods of this node are known: without them nobody is served where no endpoint is local.
    let pod_cidrs = vec!["10.244.1.0/24".parse().expect("a range")];
    world.cluster.nodes.insert(NODE.into(), Node { pod_cidrs, ..Node::default() });
    let service = (**world.cluster.services.get(&name()).expect("it is there")).clone();
    let ports = service.ports.iter().map(|port| ServicePort { node_port: Some(30_080), ..port.clone() }).collect();
    let service = Service {
        kind: ServiceType::LoadBalancer,
        ports,
        external_ips: Vec::new(),
        load_balancer: Vec::new(),
        source_ranges: None,
        external_traffic_policy: TrafficPolicy::Local,
        health_check_node_port: Some(30_777),
        annotations: Default::default(),
        ..service
    };
    world.cluster.services.insert(name(), service);
    let endpoints = nodes.iter().enumerate().map(|(number, node)| {
        let network = if *node == NODE { 1 } else { 2 };
        ready([10, 244, network, 10 + number as u8], Some(node))
    });
    world.cluster.endpoints.insert(name(), in_one_slice(8080, endpoints));
    world
}

impl Running {
    /// Waits until a health check is told with so many local endpoints, and these Services pending.
    async fn checked(&self, local: usize, pending: &[ObjectName]) {
        let pending: BTreeSet<ObjectName> = pending.iter().cloned().collect();
        let begun = Instant::now();
        let seen = || {
            let told = self.health_checks.borrow();
            (told.checks.get(&30_777).map(|check| check.local_endpoints), (*told.pending).clone())
        };
        while seen() != (Some(local), pending.clone()) {
            assert!(begun.elapsed() < Duration::from_secs(60), "it is {:?} and not {local} {pending:?}", seen());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The kernel takes no step, or lets nothing be read.
    fn refuses(&self, steps: bool, reads: bool) {
        self.kernel.with(|machine| {
            machine.faults.alive_for = steps.then_some(0);
            machine.faults.reads = if reads { 100 } else { 0 };
        });
    }

    /// Nothing becomes pending for a while.
    async fn stays_in_place(&self) {
        for _ in 0..150 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert!(self.health_checks.borrow().pending.is_empty(), "it is served all the same");
        }
    }
}

#[test]
fn a_service_that_the_kernel_has_not_got_is_pending_until_it_has() {
    with_running(async |running| {
        running.refuses(true, false);
        running.world.send_replace(balanced(&[NODE]));
        running.checked(1, &[name()]).await;
        running.refuses(false, false);
        running.checked(1, &[]).await;
        // One more endpoint that the kernel does not take: the other one serves.
        running.refuses(true, false);
        running.world.send_replace(balanced(&[NODE, NODE]));
        running.checked(2, &[]).await;
        running.stays_in_place().await;
        // None of those that are to serve is there.
        running.world.send_replace(balanced(&[OTHER_NODE, OTHER_NODE, NODE]));
        running.checked(1, &[name()]).await;
        running.refuses(false, false);
        running.checked(1, &[]).await;
    });
}

#[test]
fn a_service_whose_only_endpoint_here_the_kernel_refuses_is_pending_although_all_else_is_settled() {
    with_running(async |running| {
        running.world.send_replace(balanced(&[NODE]));
        running.checked(1, &[]).await;
        running.kernel.with(|machine| machine.refused_destinations = [([10, 244, 1, 11], 8080).into()].into());
        running.world.send_replace(balanced(&[OTHER_NODE, NODE]));
        running.checked(1, &[name()]).await;
        for _ in 0..150 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert!(running.health_checks.borrow().pending.contains(&name()), "nobody serves");
        }
        running.kernel.with(|machine| machine.refused_destinations.clear());
        running.checked(1, &[]).await;
    });
}

#[test]
fn a_kernel_that_cannot_be_read_at_the_start_has_nothing_and_one_that_could_be_read_before_keeps_what_it_had() {
    with_running(async |running| {
        running.refuses(false, true);
        running.world.send_replace(balanced(&[NODE]));
        running.checked(1, &[name()]).await;
        running.refuses(false, false);
        running.checked(1, &[]).await;
        running.refuses(false, true);
        for ours in 1..4 {
            running.changes.send_replace(Changes { ours, local_routes: ours, rules: ours, ..Changes::default() });
            running.stays_in_place().await;
        }
        running.refuses(false, false);
    });
}

/// The Service of [`balanced`] at a load balancer address that clients of one range alone may use.
fn restricted() -> World {
    let mut world = balanced(&[NODE]);
    let service = (**world.cluster.services.get(&name()).expect("it is there")).clone();
    let address = "203.0.113.20".parse().expect("an address");
    let service = Service {
        load_balancer: vec![LoadBalancerAddress { address, through_balancer: false }],
        source_ranges: Some(["198.51.100.0/24".parse().expect("a range")].into()),
        ..service
    };
    world.cluster.services.insert(name(), service);
    world
}

/// Runs with load balancer addresses.
fn with_addresses(test: impl AsyncFnOnce(&Running)) {
    let [first, second] = FLAGS;
    with_flags(&[first, second, "--loadbalancer-ip-range=203.0.113.0/24"], async |running| {
        running.kernel.with(|machine| machine.state.addresses = State::of_others().addresses);
        running.world.send_replace(restricted());
        running.checked(1, &[]).await;
        assert!(running.kernel.state().holds("203.0.113.20"), "it is about an address with source ranges");
        test(running).await;
    });
}

#[test]
fn a_service_with_source_ranges_is_in_place_although_the_rules_cannot_be_read() {
    with_addresses(async |running| {
        running.refuses(false, true);
        for rules in 1..4 {
            running.changes.send_replace(Changes { rules, ..Changes::default() });
            running.stays_in_place().await;
        }
        running.refuses(false, false);
    });
}

#[test]
fn source_ranges_that_stay_in_the_kernel_while_the_cluster_is_known_in_part_take_no_node_out() {
    with_addresses(async |running| {
        let mut open = restricted();
        let service = (**open.cluster.services.get(&name()).expect("it is there")).clone();
        open.cluster.services.insert(name(), Service { source_ranges: None, ..service });
        open.authority.proxy = Authority::Partial;
        running.world.send_replace(open.clone());
        running.stays_in_place().await;
        // Other ranges come meanwhile, which the kernel does not take.
        running.refuses(true, false);
        let service = (**open.cluster.services.get(&name()).expect("it is there")).clone();
        let source_ranges = Some(["192.0.2.0/25".parse().expect("a range")].into());
        open.cluster.services.insert(name(), Service { source_ranges, ..service });
        running.world.send_replace(open);
        running.stays_in_place().await;
        running.refuses(false, false);
    });
}

#[test]
fn a_service_whose_scheduler_the_kernel_has_not_got_is_served_with_the_former_one() {
    with_running(async |running| {
        let mut world = balanced(&[NODE]);
        running.world.send_replace(world.clone());
        running.checked(1, &[]).await;
        running.refuses(true, false);
        let mut service = (**world.cluster.services.get(&name()).expect("it is there")).clone();
        service.annotations.scheduler = Scheduler::Mh;
        world.cluster.services.insert(name(), service);
        running.world.send_replace(world);
        running.stays_in_place().await;
        running.refuses(false, false);
    });
}

#[test]
fn one_family_that_serves_is_enough() {
    with_running(async |running| {
        let mut world = balanced(&[NODE]);
        let service = (**world.cluster.services.get(&name()).expect("it is there")).clone();
        let mut cluster_ips = service.cluster_ips.clone();
        cluster_ips.push("fd00:10:96::77".parse().expect("an address"));
        world.cluster.services.insert(name(), Service { cluster_ips, ..service });
        let mut endpoints = (**world.cluster.endpoints.get(&name()).expect("it is there")).clone();
        let four = (**endpoints.slices.values().next().expect("one")).clone();
        let six = Endpoint {
            address: "fd00:10:244:1::7".parse().expect("an address"),
            ..four.endpoints.iter().next().expect("one")
        };
        let six = EndpointSlice { family: Family::V6, endpoints: vec![six].into(), ..four };
        endpoints.slices.insert("six".into(), Arc::new(six));
        world.cluster.endpoints.insert(name(), endpoints);
        running.world.send_replace(world.clone());
        running.settles(&world).await;
        running.checked(1, &[]).await;
        // IPv6 is lost, and cannot be put back.
        running.kernel.with(|machine| {
            machine.state.virtuals.retain(|key, _| key.family() == Family::V4);
            machine.faults.alive_for = Some(0);
        });
        tokio::time::sleep(Duration::from_secs(8)).await;
        running.stays_in_place().await;
        running.refuses(false, false);
    });
}

#[test]
fn what_a_remembered_cluster_leaves_as_it_is_serves() {
    let mut kernel = None;
    with_running(async |running| {
        let world = balanced(&[NODE]);
        running.world.send_replace(world.clone());
        running.settles(&world).await;
        kernel = Some(running.kernel.state());
    });
    with_running(async |running| {
        running.kernel.with(|machine| machine.state = kernel.take().expect("it was kept"));
        // The pod has another address since that memory.
        let mut remembered = balanced(&[OTHER_NODE, NODE]);
        remembered.authority.proxy = Authority::Remembered;
        running.world.send_replace(remembered);
        running.checked(1, &[]).await;
    });
}

#[test]
fn a_health_check_on_another_port_is_judged_within_a_second_although_something_else_is_not_settled() {
    with_running(async |running| {
        let mut world = balanced(&[NODE]);
        running.world.send_replace(world.clone());
        running.settles(&world).await;
        running.checked(1, &[]).await;
        // While the cluster is known in part nothing of a Service that is gone goes, and nothing says which others that concerns.
        let names: Vec<ObjectName> = world.cluster.services.iter().map(|(name, _)| name.clone()).collect();
        names.iter().filter(|other| **other != name()).for_each(|other| drop(world.cluster.services.remove(other)));
        world.authority.proxy = Authority::Partial;
        running.world.send_replace(world.clone());
        running.stays_in_place().await;
        for ports in [[30_778, 30_777], [30_779, 30_777]] {
            let begun = Instant::now();
            for port in ports {
                let service = (**world.cluster.services.get(&name()).expect("it is there")).clone();
                world.cluster.services.insert(name(), Service { health_check_node_port: Some(port), ..service });
                running.world.send_replace(world.clone());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            running.checked(1, &[]).await;
            assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
        }
    });
}
