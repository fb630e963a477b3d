//! An announced address, and what the status of its pod says of it.

use super::*;

#[test]
fn an_announced_address_counts_until_the_status_has_it() {
    let mut node = Node::default();
    node.told("web", Some(pod(&[])));
    node.call(add("a", "web", &BOTH));
    assert_eq!(node.addresses("web"), BOTH);
    // A change of something else, and a status that has one of two.
    node.told("web", Some(pod(&BOTH[..1])));
    assert_eq!((node.addresses("web").len(), node.kept()), (2, 1));
    node.told("web", Some(pod(&BOTH)));
    assert_eq!((node.addresses("web").len(), node.kept()), (2, 0));
    node.told("web", Some(pod(&["10.244.1.9"])));
    assert_eq!(node.addresses("web"), ["10.244.1.9"], "from now on the status alone tells");
}

#[test]
fn a_pod_that_is_announced_before_it_is_known_has_the_address_as_soon_as_it_is() {
    let mut node = Node::default();
    node.call(add("a", "web", &BOTH));
    node.told("web", None);
    assert!(node.addresses("web").is_empty() && node.kept() == 1);
    node.told("web", Some(pod(&[])));
    assert_eq!(node.addresses("web"), BOTH);
}

#[test]
fn what_was_announced_goes_with_its_sandbox_and_counts_for_no_pod_that_is_gone() {
    let mut node = Node::default();
    for gone in ["detached", "deleted", "finished", "collected"] {
        node.told("web", Some(pod(&[])));
        node.call(add("a", "web", &BOTH));
        match gone {
            "detached" => node.call(AttachmentChange::Delete(id("a"))),
            "deleted" => node.told("web", None),
            "collected" => node.call(retain("mynet", &["b"])),
            _ => node.told("web", Some(Pod { finished: true, ..pod(&[]) })),
        }
        assert!(node.addresses("web").is_empty(), "{gone}");
        node.call(AttachmentChange::Delete(id("a")));
        assert_eq!(node.pods.get(&name("web")).is_some(), gone != "deleted", "{gone}");
        assert!(node.kept() == 0 && node.attachments.pods.is_empty(), "{gone}");
    }
}

#[test]
fn a_collection_concerns_its_own_network_alone() {
    let mut node = Node::default();
    node.told("web", Some(pod(&[])));
    node.call(add("a", "web", &BOTH));
    node.call(retain("othernet", &[]));
    assert_eq!(node.addresses("web"), BOTH);
    node.call(retain("mynet", &["a"]));
    assert_eq!(node.addresses("web"), BOTH);
    node.call(retain("", &[]));
    assert!(node.addresses("web").is_empty(), "a plugin of an earlier release does not name the network");
}

#[test]
fn a_pod_of_the_same_name_on_another_node_has_nothing_of_what_was_announced_here() {
    let mut node = Node::default();
    node.call(add("a", "web-0", &BOTH));
    node.told("web-0", Some(Pod { node: Some("node-2".into()), ..pod(&[]) }));
    assert!(node.addresses("web-0").is_empty());
    node.told("web-0", Some(pod(&[])));
    assert_eq!(node.addresses("web-0"), BOTH);
}

#[test]
fn a_pod_with_the_address_in_its_status_already_keeps_it() {
    let mut node = Node::default();
    node.told("web", Some(pod(&BOTH)));
    node.call(add("a", "web", &BOTH));
    assert_eq!(node.addresses("web"), BOTH);
    node.call(AttachmentChange::Delete(id("a")));
    assert_eq!(node.addresses("web"), BOTH, "what the status says is the cluster's");
}

#[test]
fn however_many_are_announced_there_is_a_bound_and_known_pods_are_kept() {
    let mut node = Node::default();
    node.told("web", Some(pod(&[])));
    node.call(add("a", "web", &BOTH));
    for number in 0..MOST + 10 {
        let address = format!("fd00::{number:x}");
        node.call(add(&format!("unknown-{number}"), &format!("pod-{number}"), &[&address]));
    }
    assert_eq!((node.kept(), node.addresses("web").len()), (MOST, 2));
}
