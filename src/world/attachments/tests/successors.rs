//! Pods that follow another one: of its name, at its address, or as a new sandbox of it.

use super::*;

#[test]
fn a_pod_of_the_same_name_has_its_announced_address_although_the_end_of_the_former_is_told_later() {
    for end in [None, Some(Pod { finished: true, ..pod(&["10.244.1.3"]) })] {
        let mut node = Node::default();
        node.told("web-0", Some(pod(&["10.244.1.3"])));
        node.call(add("new", "web-0", &BOTH));
        node.told("web-0", end.clone());
        assert!(!node.addresses("web-0").contains(&BOTH[0].to_owned()), "{end:?}");
        node.told("web-0", None);
        node.told("web-0", Some(pod(&[])));
        assert_eq!(node.addresses("web-0"), BOTH, "{end:?}");
    }
}

#[test]
fn a_pod_that_is_made_anew_waits_for_its_own_object_and_takes_its_address_from_the_former_one() {
    let [old, new] = [1, 2].map(PodUid::from_number);
    for former in [&["10.244.1.3"][..], &BOTH] {
        let mut node = Node::default();
        node.told("web-0", Some(Pod { uid: old, ..pod(former) }));
        node.call(add_of(new, "b", "web-0", &BOTH));
        let kept: Vec<String> = former.iter().filter(|one| !BOTH.contains(one)).map(|one| (*one).to_owned()).collect();
        assert_eq!(node.addresses("web-0"), kept, "the labels are those of the former pod");
        // A late status of the former pod says nothing of the new one, and neither does its end.
        node.told("web-0", Some(Pod { uid: old, finished: true, ..pod(former) }));
        node.told("web-0", Some(Pod { uid: old, ..pod(former) }));
        assert_eq!((node.addresses("web-0"), node.kept()), (kept, 1));
        node.told("web-0", None);
        node.told("web-0", Some(Pod { uid: new, ..pod(&[]) }));
        assert_eq!(node.addresses("web-0"), BOTH);
        node.told("web-0", Some(Pod { uid: new, ..pod(&BOTH) }));
        assert_eq!((node.addresses("web-0").len(), node.kept()), (2, 0));
    }
}

#[test]
fn an_attachment_of_a_former_pod_counts_nothing_for_the_next_one() {
    let [old, new] = [1, 2].map(PodUid::from_number);
    let mut node = Node::default();
    node.told("web-0", Some(Pod { uid: old, ..pod(&[]) }));
    node.call(add_of(old, "a", "web-0", &BOTH));
    assert_eq!(node.addresses("web-0"), BOTH);
    node.told("web-0", Some(Pod { uid: new, ..pod(&[]) }));
    assert!(node.addresses("web-0").is_empty());
    node.call(add_of(new, "b", "web-0", &["10.244.1.9"]));
    assert_eq!((node.addresses("web-0"), node.kept()), (vec!["10.244.1.9".to_owned()], 1));
}

#[test]
fn an_address_that_passes_from_pod_to_pod_is_the_new_ones_although_the_old_one_is_detached_late() {
    let mut node = Node::default();
    node.told("old", Some(pod(&[])));
    node.told("new", Some(pod(&[])));
    node.call(add("a", "old", &BOTH));
    node.call(add("b", "new", &BOTH));
    node.call(AttachmentChange::Delete(id("a")));
    assert!(node.addresses("old").is_empty());
    assert_eq!(node.addresses("new"), BOTH);
}

#[test]
fn a_new_sandbox_of_a_pod_takes_the_place_of_the_former_and_a_second_interface_does_not() {
    let mut node = Node::default();
    node.told("web", Some(pod(&[])));
    node.call(add("a", "web", &BOTH[..1]));
    node.call(add("a", "web", &BOTH[..1]));
    let AttachmentChange::Add(mut second) = add("a", "web", &["10.9.9.9"]) else { return };
    second.id.interface = "net1".into();
    node.call(AttachmentChange::Add(second));
    assert_eq!(node.addresses("web"), [BOTH[0], "10.9.9.9"]);
    node.call(add("b", "web", &["10.244.1.8"]));
    assert_eq!(node.addresses("web"), ["10.9.9.9", "10.244.1.8"]);
    node.call(AttachmentChange::Delete(id("a")));
    assert_eq!(node.addresses("web").len(), 2, "a late call about the former sandbox says nothing of this one");
}
