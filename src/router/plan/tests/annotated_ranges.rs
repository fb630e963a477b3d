//! Pod ranges that Nodes name by annotation, and those that the control plane gave to others.

use super::*;
use crate::router::given::annotated;
use crate::router::problem::About;

/// Two other nodes of which the second one has what the spec says, in both families; the first one names these ranges by annotation.
fn claimed(ranges: &str, spec: &str) -> World {
    let mut world = three_nodes();
    world.cluster.nodes.insert("node-2".into(), annotated(node("192.0.2.2 2001:db8::2", ranges), spec));
    world
}

fn ranges(plan: &Plan, name: &str) -> String {
    plan.nodes.ranges_of(&name.into()).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn said(plan: &Plan) -> Vec<String> {
    problems(plan).into_iter().filter(|text| text.contains("kube-router.io/pod-cidrs")).collect()
}

#[test]
fn what_the_control_plane_gave_to_another_node_is_not_taken_by_an_annotation() {
    for (range, given) in [
        // Equal, half of it, and around it.
        ("10.244.3.0/24", "10.244.3.0/24"),
        ("10.244.3.128/25", "10.244.3.0/24"),
        ("10.244.2.0/23", "10.244.3.0/24"),
        ("fd00:10:244:3::/64", "fd00:10:244:3::/64"),
        ("fd00:10:244:3:8000::/65", "fd00:10:244:3::/64"),
        ("fd00:10:244:2::/63", "fd00:10:244:3::/64"),
        // Our own.
        ("10.244.1.128/25", "10.244.1.0/24"),
        ("fd00:10:244::/62", "fd00:10:244:1::/64"),
    ] {
        let to = if given.contains("244.1.") || given.contains("244:1:") { "node-1" } else { "node-3" };
        for words in [&["--node-routes=api"][..], &[]] {
            let plan = planned(words, &claimed(&format!("10.245.2.0/24 {range}"), "10.244.2.0/24"));
            assert_eq!(ranges(&plan, "node-2"), "10.245.2.0/24", "{range}");
            assert!(ranges(&plan, "node-3").starts_with("10.244.3.0/24"), "{range}");
            let text = format!(
                "Node node-2: its pod range {range}, of the annotation kube-router.io/pod-cidrs, overlaps {given}, which the control \
                 plane gave to Node {to}; routes to it are refused"
            );
            assert_eq!(said(&plan), [text]);
        }
    }
}

#[test]
fn with_routes_from_the_api_pods_stay_on_the_node_that_was_given_their_range() {
    for (range, whose) in [("10.244.3.0/24", "10.0.0.3"), ("fd00:10:244:3::/64", "2001:db8:3::3")] {
        let plan = planned(&["--node-routes=api", "--enable-overlay=false"], &claimed(range, ""));
        let hops: Vec<String> = plan.routes().next_hops_to(prefix(range)).iter().map(ToString::to_string).collect();
        assert_eq!(hops, [whose]);
    }
}

#[test]
fn a_range_that_nobody_uses_or_that_is_a_part_of_its_own_may_be_annotated() {
    // The third node uses others than it was given.
    let mut world = claimed("10.244.3.0/24", "10.244.2.0/24");
    let third = annotated(node("10.0.0.3", "10.244.9.0/24"), "10.244.3.0/24");
    world.cluster.nodes.insert("node-3".into(), third);
    let plan = planned(&[], &world);
    assert_eq!((ranges(&plan, "node-2"), ranges(&plan, "node-3")), ("10.244.3.0/24".into(), "10.244.9.0/24".into()));
    assert_eq!(said(&plan), [""; 0]);
    // Its own, narrower.
    let plan = planned(&[], &claimed("10.244.2.0/25", "10.244.2.0/24"));
    assert_eq!((ranges(&plan, "node-2"), said(&plan).len()), ("10.244.2.0/25".into(), 0));
    // A part of it was given to this node, and of that another one names a part.
    let mut world = claimed("10.244.2.0/25", "10.244.2.0/24");
    world.cluster.nodes.insert("node-3".into(), annotated(node("10.0.0.3", "10.244.2.64/26 10.244.2.128/25"), ""));
    let plan = planned(&[], &world);
    assert_eq!(ranges(&plan, "node-3"), "10.244.2.128/25");
}

#[test]
fn what_was_given_to_a_node_that_comes_or_goes_is_judged_anew() {
    let mut world = claimed("10.244.3.128/25", "");
    let third = world.cluster.nodes.remove(&"node-3".into());
    let mut plan = planned(&[], &world);
    for _ in 0..2 {
        assert_eq!((ranges(&plan, "node-2").as_str(), said(&plan).len()), ("10.244.3.128/25", 0));
        let node = third.clone().expect("it was there");
        world.cluster.nodes.insert("node-3".into(), (*node).clone());
        let changed = plan.update(&world);
        assert_eq!((ranges(&plan, "node-2").as_str(), said(&plan).len()), ("", 1));
        assert!(changed.pod_ranges.contains(&(prefix("10.244.3.128/25"), false)), "its routes are looked at again");
        world.cluster.nodes.remove(&"node-3".into());
        plan.update(&world);
    }
}

#[test]
fn a_node_whose_own_annotation_others_refuse_says_so_and_keeps_its_ranges() {
    let mut world = three_nodes();
    let own = annotated(node("192.0.2.1 2001:db8::1", "10.244.3.0/25 fd00:10:244:3::/80"), "10.244.1.0/24");
    world.cluster.nodes.insert("node-1".into(), own);
    let plan = planned(&[], &world);
    assert_eq!(plan.own().all_pod_cidrs().count(), 2);
    let problems = &plan.desired().problems;
    let about =
        |family| problems.iter().any(|one| one.about == About::Family(family) && one.text.contains("Node node-3"));
    assert!(about(Family::V4) && about(Family::V6), "{problems:?}");
}
