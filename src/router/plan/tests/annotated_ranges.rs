//! Pod ranges that Nodes name by annotation, and those that the control plane gave to others.

use super::*;
use crate::router::given::annotated;

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
    problems(plan).into_iter().filter(|text| text.contains("of an annotation")).collect()
}

#[test]
fn what_the_control_plane_gave_to_another_node_is_not_taken_by_an_annotation() {
    for (range, given) in [
        ("10.244.3.0/24", "10.244.3.0/24"),
        ("10.244.3.128/25", "10.244.3.0/24"),
        ("fd00:10:244:3::/64", "fd00:10:244:3::/64"),
        ("fd00:10:244:3:8000::/65", "fd00:10:244:3::/64"),
        // Our own.
        ("10.244.1.128/25", "10.244.1.0/24"),
        ("fd00:10:244:1::/64", "fd00:10:244:1::/64"),
    ] {
        let to = if given.contains("244.1.") || given.contains("244:1:") { "node-1" } else { "node-3" };
        for words in [&["--node-routes=api"][..], &[]] {
            let plan = planned(words, &claimed(&format!("10.245.2.0/24 {range}"), "10.244.2.0/24"));
            assert_eq!(ranges(&plan, "node-2"), "10.245.2.0/24", "{range}");
            assert!(ranges(&plan, "node-3").starts_with("10.244.3.0/24"), "{range}");
            let text = format!(
                "Node node-2: its pod range {range}, of an annotation, lies in {given}, which the control plane gave to Node {to}; it \
                 is not taken for that of this Node"
            );
            assert_eq!(said(&plan), [text]);
        }
    }
}

#[test]
fn a_wider_range_leaves_to_others_what_they_were_given_and_keeps_the_rest() {
    let wide = |words: &[&str]| planned(words, &claimed("10.244.2.0/23 fd00:10:244:2::/63", "10.244.2.0/24"));
    let plan = wide(&[]);
    assert_eq!((ranges(&plan, "node-2").as_str(), said(&plan).len()), ("10.244.2.0/23 fd00:10:244:2::/63", 0));
    // Encrypted packets go to one node alone, and nobody may send as pods of another one.
    let plan = wide(&["--overlay-encap=wireguard"]);
    for (range, is_refused) in
        [("10.244.2.0/23", true), ("10.244.3.0/24", false), ("fd00:10:244:2::/63", true), ("fd00:10:244:3::/64", false)]
    {
        assert_eq!(plan.pod_ranges.is_disputed(&prefix(range)), is_refused, "{range}");
    }
}

#[test]
fn a_given_range_that_is_used_as_a_part_of_a_wider_one_is_nobody_elses() {
    let mut world = three_nodes();
    let wide = annotated(
        node("192.0.2.2 2001:db8::2", "10.244.2.0/23 fd00:10:244:2::/63"),
        "10.244.2.0/24 fd00:10:244:2::/64",
    );
    world.cluster.nodes.insert("node-2".into(), wide);
    let mut plan = planned(&[], &world);
    for claimed in ["10.244.2.0/24", "10.244.2.128/25", "fd00:10:244:2::/64", "fd00:10:244:2:1::/80"] {
        world.cluster.nodes.insert("node-4".into(), annotated(node("192.0.2.4 2001:db8::4", claimed), ""));
        plan.update(&world);
        assert_eq!((ranges(&plan, "node-4").as_str(), said(&plan).len()), ("", 1), "{claimed}");
    }
    // What is in use and was not given may be named by others.
    world.cluster.nodes.insert("node-4".into(), annotated(node("192.0.2.4", "10.244.3.0/25"), ""));
    world.cluster.nodes.remove(&"node-3".into());
    plan.update(&world);
    assert_eq!((ranges(&plan, "node-4").as_str(), said(&plan).len()), ("10.244.3.0/25", 0));
}

#[test]
fn a_range_that_is_given_while_it_is_used_already_is_refused_no_more() {
    let of_second = |spec| annotated(node("192.0.2.2 2001:db8::2", "10.244.2.0/24"), spec);
    let mut world = three_nodes();
    world.cluster.nodes.insert("node-2".into(), of_second(""));
    world.cluster.nodes.insert("node-4".into(), annotated(node("192.0.2.4 2001:db8::4", "10.244.2.0/23"), ""));
    world.cluster.nodes.remove(&"node-3".into());
    let mut plan = planned(&["--overlay-encap=wireguard"], &world);
    assert!(plan.pod_ranges.is_disputed(&prefix("10.244.2.0/24")));
    world.cluster.nodes.insert("node-2".into(), of_second("10.244.2.0/24"));
    plan.update(&world);
    assert!(!plan.pod_ranges.is_disputed(&prefix("10.244.2.0/24")));
    assert!(plan.pod_ranges.is_disputed(&prefix("10.244.2.0/23")));
}

#[test]
fn our_own_agent_says_what_others_may_refuse_also_where_its_spec_has_nothing() {
    let mut world = three_nodes();
    world.cluster.nodes.insert("node-1".into(), annotated(node("192.0.2.1 2001:db8::1", "10.244.3.0/25"), ""));
    let said = said(&planned(&[], &world));
    assert!(said.len() == 1 && said[0].contains("of this node"), "{said:?}");
}

#[test]
fn where_the_control_plane_gives_no_ranges_a_spec_counts_for_no_more_than_an_annotation() {
    // Our own agent says what others may refuse.
    let said = |plan: &Plan| said(plan).into_iter().filter(|text| text.starts_with("Node ")).collect::<Vec<_>>();
    let mut world = three_nodes();
    let nodes =
        [("node-1", "192.0.2.1 2001:db8::1", "10.244.1.0/24"), ("node-2", "192.0.2.2 2001:db8::2", "10.244.2.0/24")];
    for (name, addresses, range) in nodes {
        world.cluster.nodes.insert(name.into(), annotated(node(addresses, range), ""));
    }
    // A kubelet wrote the spec of its own Node.
    for spec in ["10.244.2.0/24", "10.0.0.0/8"] {
        world.cluster.nodes.insert("node-3".into(), node("10.0.0.3", spec));
        let mut plan = planned(&[], &world);
        assert_eq!((ranges(&plan, "node-2").as_str(), said(&plan).len()), ("10.244.2.0/24", 0));
        // It gives some now, as our own Node says.
        let own = node("192.0.2.1 2001:db8::1", "10.244.1.0/24");
        world.cluster.nodes.insert("node-1".into(), own);
        plan.update(&world);
        assert_eq!((ranges(&plan, "node-2").as_str(), said(&plan).len()), ("", 1));
        let own = annotated(node("192.0.2.1 2001:db8::1", "10.244.1.0/24"), "");
        world.cluster.nodes.insert("node-1".into(), own);
        plan.update(&world);
        assert_eq!((ranges(&plan, "node-2").as_str(), said(&plan).len()), ("10.244.2.0/24", 0));
    }
}

#[test]
fn ten_nodes_are_named_ours_first_and_the_others_counted() {
    let mut world = three_nodes();
    let own = annotated(node("192.0.2.1 2001:db8::1", "10.244.3.0/25"), "10.244.1.0/24");
    world.cluster.nodes.insert("node-1".into(), own);
    for number in 10..25_u8 {
        let claims = annotated(node(&format!("192.0.2.{number}"), "10.244.3.0/25 10.244.3.128/25"), "");
        world.cluster.nodes.insert(format!("a-{number}").into(), claims);
    }
    let said = said(&planned(&[], &world));
    assert_eq!((said.len(), said[0].contains("of this node")), (11, true), "{said:?}");
    assert!(said[1].starts_with("Node a-10: its pod range 10.244.3.0/25 (and 1 more), of an annotation"), "{said:?}");
    let rest = "other nodes: 5 more have pod ranges of annotations that lie in those of others";
    assert!(problems(&planned(&[], &world)).contains(&rest.to_owned()));
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
    let said = said(&plan);
    let text = "IPv4: pod range 10.244.3.0/25 (and 1 more), of an annotation, lies in 10.244.3.0/24, which the control plane gave to Node \
                node-3; other nodes may not take it for that of this node";
    assert_eq!(said, [text]);
}
