//! Our own Node has the addresses that were detected here.

use super::*;
use crate::model::{DetectedAddresses, NODE_ADDRESS_ANNOTATION, NodeAddress, NodeAddressKind, OwnAnnotation, Report};
use crate::net::PerFamily;

fn at(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The addresses of both families in a list.
fn both(list: &str) -> PerFamily<Option<IpAddr>> {
    let mut all = PerFamily::default();
    for address in list.split(',').filter(|text| !text.is_empty()).map(at) {
        *all.of_mut(Family::from(address)) = Some(address);
    }
    all
}

/// The facts of `node-1`, on which these were detected; `None` without the flag.
fn host(detected: Option<&str>) -> Arc<Host> {
    let detected = detected.map(|list| DetectedAddresses { addresses: both(list), ..DetectedAddresses::default() });
    Arc::new(Host { node_name: "node-1".into(), detected, ..Host::default() })
}

/// A Node with this InternalIP and this list in its annotation.
fn node(name: &str, internal: &str, annotation: &str) -> Object {
    let addresses = vec![NodeAddress { kind: NodeAddressKind::Internal, address: at(internal) }];
    let mut node = Node { addresses, ..Node::default() };
    node.set_detected(both(annotation));
    Object::Node(name.into(), Some(Arc::new(node)))
}

fn routed(joined: &Joined, name: &str) -> String {
    let node = joined.cluster.nodes.get(&name.into()).expect("it is known");
    let addresses = Family::BOTH.into_iter().filter_map(|family| node.routing_address(family));
    addresses.map(|address| address.to_string()).collect::<Vec<_>>().join(" ")
}

/// The annotation as the report has it: wanted, and seen.
fn told(joined: &Joined) -> Option<(String, String)> {
    let mut report = Report::default();
    if !joined.tell_own_annotation(&mut report) {
        return None;
    }
    let OwnAnnotation { wanted, seen } = report.annotations[NODE_ADDRESS_ANNOTATION].clone();
    assert!(!joined.tell_own_annotation(&mut report), "it is told");
    Some((wanted.unwrap_or_default(), seen.unwrap_or_default()))
}

fn words(wanted: &str, seen: &str) -> Option<(String, String)> {
    Some((wanted.to_owned(), seen.to_owned()))
}

#[test]
fn what_is_detected_is_in_use_at_once_and_told_until_it_is_seen() {
    let mut joined = Joined::new(&[Wanted::Nodes]);
    joined.set_host(host(Some("198.51.100.1,2001:db8:1::1")));
    assert_eq!(told(&joined), None, "the Node is not known");
    list(&mut joined, Kind::Node, vec![node("node-1", "192.0.2.1", ""), node("node-2", "192.0.2.2", "198.51.100.2")]);
    joined.authority();
    assert_eq!(routed(&joined, "node-1"), "198.51.100.1 2001:db8:1::1");
    assert_eq!(routed(&joined, "node-2"), "198.51.100.2");
    assert_eq!(told(&joined), words("198.51.100.1,2001:db8:1::1", ""));
    assert!(!joined.put(node("node-1", "192.0.2.1", "198.51.100.1,2001:db8:1::1")), "nothing follows from its return");
    assert_eq!(told(&joined), words("198.51.100.1,2001:db8:1::1", "198.51.100.1,2001:db8:1::1"));
    // Another address comes, and one goes.
    assert!(joined.set_host(host(Some("198.51.100.7"))));
    assert_eq!(routed(&joined, "node-1"), "198.51.100.7");
    assert_eq!(told(&joined), words("198.51.100.7", "198.51.100.1,2001:db8:1::1"));
    // Somebody else writes another one: it is written again, and not used here.
    assert!(!joined.put(node("node-1", "192.0.2.1", "203.0.113.9")));
    assert_eq!(
        (routed(&joined, "node-1"), told(&joined)),
        ("198.51.100.7".to_owned(), words("198.51.100.7", "203.0.113.9"))
    );
    // Nothing is found any more.
    assert!(joined.set_host(host(Some(""))));
    assert_eq!((routed(&joined, "node-1"), told(&joined)), ("192.0.2.1".to_owned(), words("", "203.0.113.9")));
    joined.put(Object::Node("node-1".into(), None));
    assert_eq!(told(&joined), None, "there is nothing to be written to");
}

#[test]
fn without_the_flag_an_annotation_of_an_earlier_run_holds_until_it_is_gone() {
    let mut joined = Joined::new(&[Wanted::Nodes]);
    joined.set_host(host(None));
    list(&mut joined, Kind::Node, vec![node("node-1", "192.0.2.1", "198.51.100.1")]);
    assert_eq!(routed(&joined, "node-1"), "198.51.100.1", "as other nodes have it");
    assert_eq!(told(&joined), words("", "198.51.100.1"));
    joined.put(node("node-1", "192.0.2.1", ""));
    assert_eq!((routed(&joined, "node-1"), told(&joined)), ("192.0.2.1".to_owned(), None));
}

#[test]
fn a_remembered_node_gets_what_is_detected_now() {
    let mut earlier = Joined::new(&[Wanted::Nodes]);
    earlier.set_host(host(Some("198.51.100.1")));
    list(&mut earlier, Kind::Node, vec![node("node-1", "192.0.2.1", ""), node("node-2", "192.0.2.2", "198.51.100.2")]);
    let authority = earlier.authority();
    let cluster = earlier.world(authority).cluster;
    let mut joined = Joined::new(&[Wanted::Nodes]);
    joined.set_host(host(Some("198.51.100.7")));
    joined.remember(Known { cluster, kinds: vec![Kind::Node], all_nodes: true });
    assert_eq!((routed(&joined, "node-1"), routed(&joined, "node-2")), ("198.51.100.7".into(), "198.51.100.2".into()));
    assert_eq!(told(&joined), None, "the server's view is not known");
}
