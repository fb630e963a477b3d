//! Announced addresses of pods that come, go, and are told late.

use super::*;

use crate::model::PodUid;

const BOTH: [&str; 2] = ["10.244.1.7", "fd00:10:244:1::7"];

fn name(pod: &str) -> ObjectName {
    ObjectName::new("shop", pod)
}

fn pod(addresses: &[&str]) -> Pod {
    Pod {
        uid: None,
        labels: [("app", "web")].into_iter().collect(),
        addresses: addresses.iter().map(|text| text.parse().expect("an address")).collect(),
        node: Some("node-1".into()),
        host_network: false,
        finished: false,
        ports: [].into(),
    }
}

fn id(container: &str) -> AttachmentId {
    AttachmentId { container: container.into(), interface: "eth0".into() }
}

fn add(container: &str, pod: &str, addresses: &[&str]) -> AttachmentChange {
    add_of(None, container, pod, addresses)
}

fn add_of(uid: Option<PodUid>, container: &str, pod: &str, addresses: &[&str]) -> AttachmentChange {
    let addresses = addresses.iter().map(|text| text.parse().expect("an address")).collect();
    AttachmentChange::Add(Attachment { id: id(container), network: "mynet".into(), pod: name(pod), uid, addresses })
}

fn retain(network: &str, containers: &[&str]) -> AttachmentChange {
    AttachmentChange::Retain { network: network.into(), ids: containers.iter().map(|one| id(one)).collect() }
}

/// The tables of one node: calls and messages of the cluster go in.
struct Node {
    attachments: Attachments,
    pods: Table<ObjectName, Pod>,
}

impl Default for Node {
    fn default() -> Node {
        Node::with(Attachments::default())
    }
}

impl Node {
    fn with(mut attachments: Attachments) -> Node {
        attachments.set_node("node-1".into());
        Node { attachments, pods: Table::default() }
    }

    fn call(&mut self, change: AttachmentChange) {
        for (name, pod) in self.attachments.apply(change, &self.pods) {
            self.publish(name, pod);
        }
    }

    fn told(&mut self, of: &str, pod: Option<Pod>) {
        for (name, pod) in self.attachments.put(&name(of), pod.map(Arc::new)) {
            self.publish(name, pod);
        }
    }

    fn listed(&mut self) {
        for (name, pod) in self.attachments.listed() {
            self.publish(name, pod);
        }
    }

    fn publish(&mut self, name: ObjectName, pod: Option<Arc<Pod>>) {
        match pod {
            Some(pod) => drop(self.pods.insert_shared(name, pod)),
            None => drop(self.pods.remove(&name)),
        }
    }

    fn addresses(&self, of: &str) -> Vec<String> {
        let pod = self.pods.get(&name(of));
        pod.into_iter().flat_map(|pod| pod.addresses.iter().map(ToString::to_string)).collect()
    }

    fn kept(&self) -> usize {
        self.attachments.all.len()
    }
}

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

/// The names of the pods at an address.
fn at(node: &Node, address: &str) -> Vec<String> {
    let address = address.parse().expect("an address");
    node.pods
        .iter()
        .filter(|(_, pod)| pod.addresses.contains(&address))
        .map(|(name, _)| name.name.to_string())
        .collect()
}

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
