//! Restarts of the agent, and the last known state: attachments that are restored.

use super::*;

#[test]
fn a_restart_loses_nothing_of_pods_that_are_there_and_keeps_nothing_of_those_that_are_gone() {
    let mut before = Node::default();
    before.told("web", Some(pod(&[])));
    before.call(add("a", "web", &BOTH));
    before.call(add("b", "gone", &["10.244.1.9"]));
    let kept = before.attachments.take_changed().expect("there is news");
    assert_eq!((kept.len(), before.attachments.take_changed()), (2, None));
    let mut node = Node::with(Attachments::restored(kept));
    node.told("web", Some(pod(&[])));
    assert_eq!(node.addresses("web"), BOTH);
    node.listed();
    assert_eq!((node.kept(), node.attachments.pods.len()), (1, 1));
    node.call(add("c", "late", &["10.244.1.10"]));
    node.listed();
    assert_eq!(node.kept(), 2, "a pod that is announced now may come after the listing");
}

#[test]
fn what_a_former_pod_of_a_name_had_takes_no_address_from_the_next_one_after_a_restart() {
    let [old, new] = [1, 2].map(PodUid::from_number);
    let mut before = Node::default();
    before.call(add_of(old, "a", "web-0", &BOTH));
    let kept = before.attachments.take_changed().expect("there is news");
    let mut node = Node::with(Attachments::restored(kept.clone()));
    node.told("web-0", Some(Pod { uid: new, ..pod(&BOTH) }));
    node.listed();
    assert_eq!((node.addresses("web-0").len(), node.kept()), (2, 0), "the sandbox of the former pod is gone");
    // What is announced to this run is no matter of the listing: the cluster may tell of its pod later.
    let mut node = Node::with(Attachments::restored(kept));
    node.told("web-0", Some(Pod { uid: old, ..pod(&[]) }));
    node.call(add_of(new, "b", "web-0", &BOTH));
    node.listed();
    assert_eq!((node.addresses("web-0").len(), node.kept()), (0, 1));
}

#[test]
fn a_pod_of_the_last_known_state_has_its_announced_address() {
    let mut node = Node::default();
    node.call(add("a", "web", &BOTH));
    node.pods.insert(name("web"), pod(&[]));
    for (name, pod) in node.attachments.recall(&node.pods.clone()) {
        node.publish(name, pod);
    }
    assert_eq!(node.addresses("web"), BOTH);
    node.told("web", Some(pod(&[])));
    assert_eq!(node.addresses("web"), BOTH);
}

#[test]
fn a_pod_that_is_deleted_by_force_after_a_restart_is_there_until_its_sandbox_is_detached() {
    let own = PodUid::from_number(1);
    let told = || Some(Pod { uid: own, ..pod(&BOTH) });
    let mut before = Node::default();
    before.call(add_of(own, "a", "web", &BOTH));
    before.told("web", told());
    let mut node = Node::with(Attachments::restored(before.attachments.take_changed().expect("there is news")));
    node.told("web", told());
    node.listed();
    node.told("web", None);
    assert_eq!(at(&node, BOTH[0]).len(), 1);
    node.call(AttachmentChange::Delete(id("a")));
    assert!(at(&node, BOTH[0]).is_empty());
    assert_eq!(node.attachments.take_changed(), Some(Vec::new()));
}

#[test]
fn a_pod_whose_end_was_missed_while_no_agent_ran_is_not_at_an_address_that_another_pod_has_since() {
    let [own, others] = [1, 2].map(PodUid::from_number);
    let mut before = Node::default();
    before.call(add_of(own, "a", "job", &BOTH));
    let all = before.attachments.take_changed().expect("there is news");
    for is_deleted in [false, true] {
        let mut node = Node::with(Attachments::restored(all.clone()));
        node.call(add_of(others, "b", "next", &BOTH));
        let told = Pod { uid: own, ..pod(&BOTH) };
        node.told("job", Some(told.clone()));
        node.told("next", Some(Pod { uid: others, ..pod(&BOTH) }));
        node.listed();
        node.told("job", (!is_deleted).then(|| Pod { finished: true, ..told }));
        let there: Vec<String> = at(&node, BOTH[0])
            .into_iter()
            .filter(|of| node.pods.get(&name(of)).is_some_and(|pod| pod.takes_part()))
            .collect();
        assert_eq!(there, ["next"], "deleted: {is_deleted}");
    }
}

#[test]
fn a_pod_that_was_gone_in_the_last_known_state_ends_with_its_sandbox_and_one_whose_sandbox_is_gone_is_left_out() {
    let own = PodUid::from_number(1);
    let mut before = Node::default();
    before.call(add_of(own, "a", "web", &BOTH));
    before.told("web", Some(Pod { uid: own, ..pod(&BOTH) }));
    before.told("web", None);
    let gone = at(&before, BOTH[0]);
    let start = |kept: Vec<Attachment>| {
        let mut node = Node::with(Attachments::restored(kept));
        // As it is on disk, without UIDs.
        node.pods.insert(name(&gone[0]), pod(&BOTH));
        for (name, pod) in node.attachments.recall(&node.pods.clone()) {
            node.publish(name, pod);
        }
        node
    };
    assert!(at(&start(Vec::new()), BOTH[0]).is_empty(), "nobody could end it");
    let kept = before.attachments.take_changed().expect("there is news");
    for end in [AttachmentChange::Delete(id("a")), add_of(PodUid::from_number(2), "b", "next", &BOTH)] {
        let mut node = start(kept.clone());
        node.listed();
        node.told(&gone[0], None);
        assert_eq!(at(&node, BOTH[0]), gone, "a listing does not name it, and it may send");
        node.call(end);
        assert!(at(&node, BOTH[0]).is_empty());
    }
}
