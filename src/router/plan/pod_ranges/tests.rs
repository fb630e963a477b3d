use super::*;
use crate::bgp::rib::RouteChange;
use crate::model::{Node, World};
use crate::router::given::{host, node, prefix, world};
use crate::router::plan::tests::{at_first, learned, planned};

fn trouble(plan: &mut Plan) -> Option<String> {
    plan.unreached(at_first(), |_, _| false).trouble
}

fn put(world: &mut World, name: &str, addresses: &str, ranges: &str) {
    world.cluster.nodes.insert(name.into(), node(addresses, ranges));
}

#[test]
fn a_pod_range_that_two_nodes_have_is_trouble_until_one_of_them_has_another() {
    for (range, free, next_hop) in
        [("10.244.2.0/24", "10.244.3.0/24", "192.0.2.2"), ("fd00:10:244:2::/64", "fd00:10:244:3::/64", "2001:db8::2")]
    {
        let mut world = world(
            host("192.0.2.1/24 2001:db8::1/64"),
            &[
                ("node-1", node("192.0.2.1 2001:db8::1", "")),
                ("node-2", node("192.0.2.2 2001:db8::2", range)),
                ("node-3", node("192.0.2.3 2001:db8::3", free)),
            ],
        );
        let mut plan = planned(&[], &world);
        plan.learn(&[learned(range, next_hop)]);
        assert_eq!(trouble(&mut plan), None);
        put(&mut world, "node-3", "192.0.2.3 2001:db8::3", range);
        plan.update(&world);
        let shared = format!(
            "pods cannot be reached: {range} of Node node-2 (Node node-3 has it, too), \
             {range} of Node node-3 (Node node-2 has it, too)"
        );
        assert_eq!(trouble(&mut plan), Some(shared.clone()));
        // A machine that was renamed has two Nodes for a while.
        put(&mut world, "node-3", "192.0.2.2 2001:db8::2", range);
        plan.update(&world);
        assert_eq!(trouble(&mut plan), None);
        put(&mut world, "node-3", "192.0.2.3 2001:db8::3", range);
        plan.update(&world);
        assert_eq!(trouble(&mut plan), Some(shared));
        world.cluster.nodes.remove(&"node-3".into());
        plan.update(&world);
        assert_eq!(trouble(&mut plan), None);
    }
}

#[test]
fn pods_of_a_node_without_an_address_of_our_families_are_trouble_and_those_of_one_without_any_are_awaited() {
    for (own, (here, there), range) in [
        ("192.0.2.1/24", ("192.0.2.1", "192.0.2.2"), "10.244.2.0/24"),
        ("2001:db8::1/64", ("2001:db8::1", "2001:db8::2"), "fd00:10:244:2::/64"),
    ] {
        let other = if here.contains(':') { "192.0.2.2" } else { "2001:db8::2" };
        let mut world = world(host(own), &[("node-1", node(here, "")), ("node-2", node("", range))]);
        let mut plan = planned(&[], &world);
        assert_eq!((trouble(&mut plan), plan.unreached(at_first(), |_, _| false).count), (None, 1));
        put(&mut world, "node-2", other, range);
        plan.update(&world);
        let apart = format!(
            "pods cannot be reached: {range} of Node node-2 (it has no address of a family that this node uses)"
        );
        assert_eq!(trouble(&mut plan), Some(apart));
        put(&mut world, "node-2", &format!("{other} {there}"), range);
        plan.update(&world);
        assert_eq!(trouble(&mut plan), None);
    }
}

/// Two nodes; the other one is ready, or not, and has this range.
fn world_with(range: &str, is_ready: bool) -> World {
    let other = Node { should_announce: is_ready, ..node("192.0.2.2 2001:db8::2", range) };
    world(host("192.0.2.1/24 2001:db8::1/64"), &[("node-1", node("192.0.2.1 2001:db8::1", "")), ("node-2", other)])
}

/// The trouble and the note, this many seconds after the start of the test.
fn after(plan: &mut Plan, seconds: u64, nodes_are_read: bool) -> (Option<String>, Option<String>) {
    static BEGAN: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    let now = *BEGAN + Duration::from_secs(seconds);
    let found = plan.unreached(Circumstances { now, since: now, nodes_are_read }, |_, _| false);
    assert_eq!(found.count, usize::from(found.trouble.is_some()) + usize::from(found.missing.is_some()));
    assert_eq!(found.late, None, "of one node one is half");
    (found.trouble, found.missing)
}

fn awaited(range: &str) -> (Option<String>, Option<String>) {
    (None, Some(format!("no route yet to pods: {range} of Node node-2")))
}

fn overdue(range: &str) -> (Option<String>, Option<String>) {
    let text = format!("no route to pods for 90 s although their nodes are Ready: {range} of Node node-2");
    (Some(text), None)
}

const BOTH_FAMILIES: [(&str, &str); 2] = [("10.244.2.0/24", "192.0.2.2"), ("fd00:10:244:2::/64", "2001:db8::2")];

#[test]
fn a_ready_node_without_a_route_to_its_pods_is_trouble_after_90_s_until_the_route_comes() {
    for (range, next_hop) in BOTH_FAMILIES {
        let mut plan = planned(&[], &world_with(range, true));
        assert_eq!(after(&mut plan, 0, true), awaited(range));
        assert_eq!(after(&mut plan, 89, true), awaited(range));
        assert_eq!(after(&mut plan, 90, true), overdue(range), "nothing but the time has changed");
        plan.learn(&[learned(range, next_hop)]);
        assert_eq!(after(&mut plan, 100, true), (None, None));
        plan.learn(&[RouteChange { prefix: range.parse().expect("a range"), best: None, next_hops: Vec::new() }]);
        assert_eq!(after(&mut plan, 200, true), awaited(range), "a session that breaks off has its time, too");
        assert_eq!(after(&mut plan, 290, true), overdue(range));
    }
}

#[test]
fn a_node_that_is_not_ready_or_gone_is_no_trouble_and_has_its_time_when_it_is_back() {
    for (range, _) in BOTH_FAMILIES {
        let mut plan = planned(&[], &world_with(range, false));
        assert_eq!(after(&mut plan, 0, true), awaited(range));
        assert_eq!(after(&mut plan, 1000, true), awaited(range), "a dead node keeps nobody from being ready");
        plan.update(&world_with(range, true));
        assert_eq!(after(&mut plan, 1001, true), awaited(range), "a node that boots is ready before it has a session");
        assert_eq!(after(&mut plan, 1091, true), overdue(range));
        plan.update(&world_with(range, false));
        assert_eq!(after(&mut plan, 1092, true), awaited(range));
        plan.update(&world_with(range, true));
        assert_eq!(after(&mut plan, 1093, true), awaited(range));
        let mut gone = world_with(range, true);
        gone.cluster.nodes.remove(&"node-2".into());
        plan.update(&gone);
        assert_eq!(after(&mut plan, 2000, true), (None, None));
    }
}

#[test]
fn a_node_whose_death_is_not_known_yet_is_no_trouble() {
    let range = "10.244.2.0/24";
    let mut plan = planned(&[], &world_with(range, true));
    plan.learn(&[learned(range, "192.0.2.2")]);
    assert_eq!(after(&mut plan, 0, true), (None, None));
    plan.learn(&[RouteChange { prefix: range.parse().expect("a range"), best: None, next_hops: Vec::new() }]);
    assert_eq!(after(&mut plan, 1, true), awaited(range));
    assert_eq!(after(&mut plan, 60, true), awaited(range), "the longest grace period, and some more");
    plan.update(&world_with(range, false));
    assert_eq!(after(&mut plan, 61, true), awaited(range));
    assert_eq!(after(&mut plan, 1000, true), awaited(range));
}

#[test]
fn while_nodes_cannot_be_read_none_is_trouble_and_each_has_its_time_afterwards() {
    let range = "10.244.2.0/24";
    let mut plan = planned(&[], &world_with(range, true));
    assert_eq!(after(&mut plan, 0, false), awaited(range), "the node that died may be the one with the API server");
    assert_eq!(after(&mut plan, 1000, false), awaited(range));
    assert_eq!(after(&mut plan, 1001, true), awaited(range));
    assert_eq!(after(&mut plan, 1090, true), awaited(range), "the control plane has to find out who is dead");
    assert_eq!(after(&mut plan, 1091, true), overdue(range));
    assert_eq!(after(&mut plan, 1092, false), awaited(range));
}

#[test]
fn waiting_for_many_nodes_costs_nothing_until_the_time_is_over() {
    let mut world = world(host("192.0.2.1/24"), &[("node-1", node("192.0.2.1", ""))]);
    for number in 2..200 {
        let other = node(&format!("192.0.2.{number}"), &format!("10.244.{number}.0/24"));
        world.cluster.nodes.insert(format!("node-{number}").into(), Node { should_announce: true, ..other });
    }
    let mut plan = planned(&[], &world);
    let now = Instant::now();
    let looks = |plan: &mut Plan, seconds: u64| {
        let before = plan.pod_ranges_looked_at();
        let at = now + Duration::from_secs(seconds);
        plan.unreached(Circumstances { now: at, since: at, nodes_are_read: true }, |_, _| false);
        plan.pod_ranges_looked_at() - before
    };
    // The first look finds our own node, too.
    assert_eq!([0, 1, 89, 90, 91, 500].map(|seconds| looks(&mut plan, seconds)), [199, 0, 0, 198, 0, 0]);
}

#[test]
fn one_broken_node_of_three_is_a_note_and_two_are_trouble_because_then_it_is_this_node_that_is_cut_off() {
    let mut world = world(host("192.0.2.1/24"), &[("node-1", node("192.0.2.1", "10.244.1.0/24"))]);
    for number in 2..5 {
        let other = node(&format!("192.0.2.{number}"), &format!("10.244.{number}.0/24"));
        world.cluster.nodes.insert(format!("node-{number}").into(), Node { should_announce: true, ..other });
    }
    // Nodes that are not to announce anything to us do not count.
    put(&mut world, "node-5", "192.0.2.5", "10.244.5.0/24");
    let mut plan = planned(&[], &world);
    plan.learn(&[learned("10.244.3.0/24", "192.0.2.3"), learned("10.244.4.0/24", "192.0.2.4")]);
    plan.learn(&[learned("10.244.5.0/24", "192.0.2.5")]);
    let now = Instant::now();
    let after = |plan: &mut Plan, seconds: u64| {
        let at = now + Duration::from_secs(seconds);
        let found = plan.unreached(Circumstances { now: at, since: at, nodes_are_read: true }, |_, _| false);
        (found.trouble, found.late, found.count)
    };
    assert_eq!(after(&mut plan, 0), (None, None, 1));
    let late = |ranges: &str| Some(format!("no route to pods for 90 s although their nodes are Ready: {ranges}"));
    let one = late("10.244.2.0/24 of Node node-2");
    assert_eq!(
        after(&mut plan, 90),
        (None, one.clone(), 1),
        "an image that cannot be pulled there makes nobody else unready"
    );
    plan.learn(&[RouteChange { prefix: prefix("10.244.3.0/24"), best: None, next_hops: Vec::new() }]);
    assert_eq!(after(&mut plan, 100), (None, one.clone(), 2));
    let two = late("10.244.2.0/24 of Node node-2, 10.244.3.0/24 of Node node-3");
    assert_eq!(after(&mut plan, 190), (two, None, 2));
    plan.learn(&[learned("10.244.3.0/24", "192.0.2.3")]);
    assert_eq!(after(&mut plan, 191), (None, one, 1));
}

#[test]
fn what_a_wider_route_leads_to_is_not_late() {
    let mut plan = planned(&[], &world_with("10.244.2.0/24", true));
    plan.learn(&[learned("10.244.0.0/16", "192.0.2.2")]);
    assert_eq!(after(&mut plan, 0, true), awaited("10.244.2.0/24"));
    assert_eq!(after(&mut plan, 1000, true), awaited("10.244.2.0/24"));
}

#[test]
fn only_what_is_expected_at_the_first_look_has_waited_since_the_start_of_the_speaker() {
    let mut world = world_with("10.244.2.0/24", true);
    let mut plan = planned(&[], &world);
    let start = Instant::now();
    let at = |plan: &mut Plan, seconds: u64| {
        let now = start + Duration::from_secs(seconds);
        plan.unreached(Circumstances { now, since: start, nodes_are_read: true }, |_, _| false)
    };
    assert_eq!(at(&mut plan, 5).trouble, None);
    let other = node("192.0.2.3", "10.244.3.0/24");
    world.cluster.nodes.insert("node-3".into(), Node { should_announce: true, ..other });
    plan.update(&world);
    assert_eq!(at(&mut plan, 80).trouble, None);
    let found = at(&mut plan, 90);
    assert!(found.trouble.is_some_and(|text| text.contains("node-2") && !text.contains("node-3")));
    assert!(found.missing.is_some_and(|text| text.contains("node-3")));
}
