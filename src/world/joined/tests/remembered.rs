//! The last known state: what it fills in, and what yields to it.

use super::*;

#[test]
fn the_last_known_state_fills_what_is_not_known_and_yields_to_what_is() {
    let mut earlier = Joined::new(&WANTED);
    for object in [service("a", "10.96.0.1"), service("old", "10.96.0.9"), slice("a-1", "a"), slice("old-1", "old")] {
        earlier.put(object);
    }
    earlier.cluster.nodes.insert("node-1".into(), Node::default());
    let mut joined = Joined::new(&WANTED);
    assert!(joined.waits_for_a_sign_of_life());
    joined.begin_listing(Kind::Service);
    joined.put(service("a", "10.96.0.2"));
    assert!(!joined.waits_for_a_sign_of_life());
    assert!(joined.may_remember());
    joined.remember(Known { cluster: earlier.cluster.clone(), kinds: Kind::ALL.to_vec(), all_nodes: true });
    assert!(!joined.may_remember());
    assert_eq!(proxy(&mut joined), Authority::Remembered);
    assert_eq!(names(&joined), ["a", "old", "a/a-1", "old/old-1"]);
    assert!(joined.cluster.nodes.is_empty(), "a kind that nobody wants is not remembered");
    let address = joined.cluster.services.get(&ObjectName::new("default", "a")).expect("it was put").cluster_ips[0];
    assert_eq!(address.to_string(), "10.96.0.2");
    joined.end_listing(Kind::Service);
    assert_eq!(proxy(&mut joined), Authority::Remembered);
    list(&mut joined, Kind::EndpointSlice, vec![slice("a-2", "a")]);
    assert_eq!(names(&joined), ["a", "a/a-2"]);
    assert_eq!(proxy(&mut joined), Authority::Complete);
}

#[test]
fn a_remembered_pod_keeps_its_announced_address_when_the_cluster_lists_it_without() {
    let without = |name: &str| match pod(name, "10.244.1.7") {
        Object::Pod(name, Some(pod)) => {
            Object::Pod(name, Some(Arc::new(Pod { addresses: [].into(), ..(*pod).clone() })))
        }
        other => other,
    };
    let on_node = || Arc::new(Host { node_name: "node-1".into(), ..Host::default() });
    let mut earlier = known(&ALL);
    earlier.set_host(on_node());
    earlier.put(without("web"));
    let id = AttachmentId { container: "c1".into(), interface: "eth0".into() };
    let address = "10.244.1.7".parse().expect("an address");
    let pod = ObjectName::new("default", "web");
    let attachment =
        Attachment { id, network: "mynet".into(), pod: pod.clone(), uid: None, addresses: [address].into() };
    earlier.attach(AttachmentChange::Add(attachment));
    let kept = earlier.take_attachments().expect("there is news");
    let mut joined = Joined::new(&ALL);
    joined.restore_attachments(kept);
    joined.set_host(on_node());
    joined.remember(Known { cluster: earlier.cluster.clone(), kinds: Kind::ALL.to_vec(), all_nodes: true });
    let addresses = |joined: &Joined| joined.cluster.pods.get(&pod).map(|pod| pod.addresses.to_vec());
    assert_eq!(addresses(&joined), Some(vec![address]));
    list(&mut joined, Kind::Pod, vec![without("web")]);
    assert_eq!(addresses(&joined), Some(vec![address]), "its status does not have the address yet");
    assert_eq!(joined.take_attachments(), None, "it stays on disk as well");
}

#[test]
fn what_a_listing_in_progress_has_named_is_not_taken_from_the_last_known_state() {
    let mut earlier = Joined::new(&ALL);
    for object in [
        service("a", "10.96.0.1"),
        service("b", "10.96.0.2"),
        slice("a-1", "a"),
        namespace("x"),
        policy("p", false),
        policy("q", false),
    ] {
        earlier.put(object);
    }
    let mut joined = Joined::new(&ALL);
    for (kind, object) in [
        (Kind::Service, gone(&service("a", "10.96.0.1"))),
        (Kind::EndpointSlice, gone(&slice("a-1", "a"))),
        (Kind::Namespace, gone(&namespace("x"))),
        (Kind::NetworkPolicy, gone(&policy("p", false))),
    ] {
        joined.begin_listing(kind);
        joined.put(object);
    }
    joined.put(unreadable("q"));
    joined.remember(Known { cluster: earlier.cluster, kinds: Kind::ALL.to_vec(), all_nodes: true });
    assert_eq!(names(&joined), ["b"]);
    assert!(joined.cluster.namespaces.is_empty());
    let policies: Vec<&str> = joined.cluster.policies.iter().map(|(name, _)| name.name.as_str()).collect();
    assert_eq!(policies, ["q"], "one that cannot be read has its last good version");
    for kind in [Kind::Service, Kind::NetworkPolicy] {
        joined.end_listing(kind);
    }
    assert_eq!(names(&joined), Vec::<String>::new());
    assert_eq!(joined.names(Kind::NetworkPolicy).len(), 1);
}

#[test]
fn only_kinds_that_were_known_in_full_are_remembered() {
    let mut earlier = Joined::new(&ALL);
    for object in [service("a", "10.96.0.1"), pod("a", "10.244.1.5"), policy("p", false), namespace("default")] {
        earlier.put(object);
    }
    let remembers = |kinds: &[Kind]| {
        let mut joined = Joined::new(&ALL);
        joined.put(unreadable("p"));
        joined.remember(Known { cluster: earlier.cluster.clone(), kinds: kinds.to_vec(), all_nodes: true });
        let lacks = joined.lacks_good_versions();
        (proxy(&mut joined), firewall(&mut joined), joined.cluster.pods.len(), lacks)
    };
    assert_eq!(remembers(&Kind::ALL), (Authority::Remembered, Authority::Remembered, 1, false));
    let without_policies = [Kind::Service, Kind::EndpointSlice, Kind::Node];
    assert_eq!(remembers(&without_policies), (Authority::Remembered, Authority::Nothing, 0, true));
    let of_firewall = [Kind::Pod, Kind::Namespace, Kind::NetworkPolicy, Kind::Node];
    assert_eq!(remembers(&of_firewall), (Authority::Nothing, Authority::Remembered, 1, false));
}

#[test]
fn one_remembered_node_is_not_all_nodes() {
    let remembers = |all_nodes| {
        let mut earlier = Joined::new(&[Wanted::Nodes]);
        earlier.put(node("node-1"));
        let mut joined = Joined::new(&[Wanted::Nodes, Wanted::Services, Wanted::EndpointSlices]);
        joined.remember(Known { cluster: earlier.cluster, kinds: Kind::ALL.to_vec(), all_nodes });
        (joined.authority().router, joined.authority().proxy)
    };
    assert_eq!(remembers(true), (Authority::Remembered, Authority::Remembered));
    assert_eq!(remembers(false), (Authority::Nothing, Authority::Remembered));
}
