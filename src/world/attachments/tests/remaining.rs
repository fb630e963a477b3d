//! Pods that are gone or finished for the cluster while their sandboxes remain.

use super::*;

#[test]
fn a_pod_whose_object_is_deleted_by_force_is_there_until_its_sandbox_is_detached() {
    let own = PodUid::from_number(1);
    for settled in [true, false] {
        for end in [AttachmentChange::Delete(id("a")), retain("mynet", &[]), add_of(own, "a", "next", &BOTH)] {
            let mut node = Node::default();
            let told = Pod { uid: own, ..pod(if settled { &BOTH } else { &[] }) };
            node.told("web", Some(Pod { uid: own, ..pod(&[]) }));
            node.call(add_of(own, "a", "web", &BOTH));
            node.told("web", Some(told.clone()));
            assert_eq!(at(&node, BOTH[0]), ["web"]);
            node.told("web", None);
            let remaining = at(&node, BOTH[0]);
            assert_eq!((remaining.len(), at(&node, BOTH[1]).len()), (1, 1), "settled: {settled}");
            let shown = node.pods.get(&name(&remaining[0])).expect("it is published");
            assert_eq!((&shown.labels, &shown.node), (&told.labels, &told.node), "policies select it as before");
            // A listing names it no more than any other that is gone.
            node.told(&remaining[0], None);
            assert_eq!(at(&node, BOTH[0]), remaining);
            node.call(end.clone());
            assert!(at(&node, BOTH[0]).is_empty(), "{end:?}, settled: {settled}");
        }
    }
}

#[test]
fn a_pod_that_is_made_anew_by_force_is_judged_beside_its_predecessor() {
    let [old, new] = [1, 2].map(PodUid::from_number);
    let mut node = Node::default();
    node.call(add_of(old, "a", "web", &BOTH));
    node.told("web", Some(Pod { uid: old, ..pod(&BOTH) }));
    node.told("web", Some(Pod { uid: new, ..pod(&[]) }));
    node.call(add_of(new, "b", "web", &["10.244.1.9"]));
    node.told("web", Some(Pod { uid: new, ..pod(&["10.244.1.9"]) }));
    assert_eq!((at(&node, BOTH[0]).len(), at(&node, "10.244.1.9")), (1, vec!["web".to_owned()]));
    node.told("web", Some(Pod { uid: new, labels: [("app", "evil")].into_iter().collect(), ..pod(&["10.244.1.9"]) }));
    let former = node.pods.get(&name(&at(&node, BOTH[0])[0])).expect("it is published");
    assert_eq!(former.labels, pod(&[]).labels);
    node.call(AttachmentChange::Delete(id("a")));
    assert_eq!((at(&node, BOTH[0]).len(), at(&node, "10.244.1.9").len()), (0, 1));
}

#[test]
fn a_pod_that_is_made_anew_by_force_on_another_node_leaves_its_predecessor_here() {
    let own = PodUid::from_number(1);
    let mut node = Node::default();
    node.call(add_of(own, "a", "web", &BOTH));
    node.told("web", Some(Pod { uid: own, ..pod(&BOTH) }));
    node.told("web", None);
    node.told("web", Some(Pod { node: Some("node-2".into()), ..pod(&["10.244.2.7"]) }));
    assert_eq!(at(&node, BOTH[0]).len(), 1);
    assert_eq!(at(&node, "10.244.2.7"), ["web"]);
}

#[test]
fn a_pod_that_has_no_known_uid_or_comes_back_is_not_there_twice() {
    let own = PodUid::from_number(1);
    let mut node = Node::default();
    let told = || Some(Pod { uid: own, ..pod(&BOTH) });
    node.call(add_of(own, "a", "web", &BOTH));
    node.told("web", told());
    node.told("web", None);
    node.told("web", told());
    assert_eq!(at(&node, BOTH[0]), ["web"]);
    node.call(AttachmentChange::Delete(id("a")));
    node.told("web", None);
    node.call(add("b", "static", &BOTH));
    node.told("static", Some(pod(&BOTH)));
    node.told("static", None);
    assert!(at(&node, BOTH[0]).is_empty(), "whose the sandbox is cannot be told");
}

#[test]
fn a_pod_that_is_finished_for_the_cluster_is_judged_until_its_sandbox_is_detached() {
    let own = PodUid::from_number(1);
    for settled in [true, false] {
        let told = Pod { uid: own, ..pod(if settled { &BOTH } else { &[] }) };
        let mut node = Node::default();
        node.told("web", Some(told.clone()));
        node.call(add_of(own, "a", "web", &BOTH));
        node.told("web", Some(told.clone()));
        // The garbage collection of pods, where a Node object was deleted: first the phase, then the pod.
        node.told("web", Some(Pod { finished: true, ..told.clone() }));
        let sends = |node: &Node| {
            let gone = at(node, BOTH[0]).into_iter().find(|name| name.contains('~'));
            gone.and_then(|of| node.pods.get(&name(&of)).map(|pod| pod.takes_part()))
        };
        assert_eq!(sends(&node), Some(true), "settled: {settled}");
        node.told("web", Some(Pod { finished: true, ..told }));
        assert_eq!(sends(&node), Some(true), "settled: {settled}");
        node.told("web", None);
        assert_eq!(sends(&node), Some(true), "settled: {settled}");
        node.call(AttachmentChange::Delete(id("a")));
        assert!(at(&node, BOTH[0]).is_empty());
    }
}

#[test]
fn a_pod_of_whose_end_is_told_late_keeps_its_address_when_the_next_of_its_name_is_announced() {
    let [old, new] = [1, 2].map(PodUid::from_number);
    let mut node = Node::default();
    node.told("web", Some(Pod { uid: old, ..pod(&[]) }));
    node.call(add_of(old, "a", "web", &BOTH));
    node.call(add_of(new, "b", "web", &["10.244.1.9"]));
    assert_eq!((at(&node, BOTH[0]), at(&node, "10.244.1.9").len()), (vec!["web".to_owned()], 0));
    node.told("web", Some(Pod { uid: new, ..pod(&[]) }));
    let former = at(&node, BOTH[0]);
    assert!(former.len() == 1 && former[0].contains('~'), "{former:?}");
    assert_eq!(at(&node, "10.244.1.9"), ["web"]);
    node.call(AttachmentChange::Delete(id("a")));
    assert!(at(&node, BOTH[0]).is_empty());
}

#[test]
fn when_there_are_too_many_the_pod_that_was_kept_first_of_those_that_are_gone_makes_room_and_is_named() {
    let own = PodUid::from_number(1);
    let mut node = Node::default();
    for number in 0..MOST {
        let (name, address) = (format!("web-{number}"), format!("fd00::{number:x}"));
        node.call(add_of(own, &number.to_string(), &name, &[&address]));
        node.told(&name, Some(Pod { uid: own, ..pod(&[&address]) }));
        if number + 1 < MOST {
            node.told(&name, None);
        }
    }
    assert!(node.attachments.take_displaced().is_empty());
    for round in 0..2 {
        let (next, address) = (format!("next-{round}"), format!("10.244.1.{round}"));
        node.told(&next, Some(Pod { uid: own, ..pod(&[]) }));
        node.call(add_of(own, &next, &next, &[&address]));
        let first = name(&format!("web-{round}~{round}~eth0"));
        assert_eq!(node.attachments.take_displaced(), std::slice::from_ref(&first));
        assert!(node.pods.get(&first).is_none());
        assert_eq!(at(&node, &address), [next], "it is taken in");
    }
}
