//! External peers of our own Node whose annotations cannot be read.

use std::net::Ipv4Addr;

use super::*;
use crate::k8s::Warnings;
use crate::k8s::annotations::routing;
use crate::model::Reflection;
use crate::net::Password;

const GOOD: &str =
    "- {remoteip: 203.0.113.1, remoteasn: 65001, password: b25l}\n- {remoteip: 2001:db8::1, remoteasn: 65002}\n";

/// The Node of this name with these annotations.
fn node(name: &str, annotations: &[(&str, &str)]) -> Object {
    let key = |key: &str| format!("kube-router.io/{key}");
    let annotations = annotations.iter().map(|(name, value)| (key(name), (*value).to_owned())).collect();
    let routing = routing(&annotations, &mut Warnings::default());
    Object::Node(name.into(), Some(Arc::new(Node { routing: Some(Box::new(routing)), ..Node::default() })))
}

fn own(annotations: &[(&str, &str)]) -> Object {
    node("node-1", annotations)
}

/// The external peers of our own Node: address, system, and the key, `-` for none and `?` for one that is not known.
fn peers(joined: &Joined) -> Vec<String> {
    let node = joined.cluster.nodes.get(&"node-1".into()).expect("it is known");
    let peer = |peer: &crate::net::ExternalPeer| {
        let key = match &peer.password {
            Password::Key(secret) => String::from_utf8_lossy(secret.key()).into_owned(),
            Password::None => "-".to_owned(),
            Password::File(_) | Password::Unknown => "?".to_owned(),
        };
        format!("{} {} {key}", peer.remote, peer.asn.number().unwrap_or_default())
    };
    node.routing().peers.iter().map(peer).collect()
}

fn new() -> Joined {
    let mut joined = Joined::new(&[Wanted::Nodes]);
    joined.set_host(Arc::new(Host { node_name: "node-1".into(), ..Host::default() }));
    joined
}

fn started(annotations: &[(&str, &str)]) -> Joined {
    let mut joined = new();
    list(&mut joined, Kind::Node, vec![own(annotations)]);
    joined.authority();
    joined
}

#[test]
fn peers_stay_while_their_annotation_cannot_be_read_change_when_it_can_and_go_with_it() {
    let mut joined = started(&[("peers", GOOD)]);
    let both = ["203.0.113.1 65001 one", "2001:db8::1 65002 -"];
    assert_eq!(peers(&joined), both);
    for broken in ["- {remoteip: 203.0.113.1", "hush", "- {remoteip: 203.0.113.1, remoteasn: 1}\n- {remoteip: x}\n"] {
        joined.put(own(&[("peers", broken)]));
        assert_eq!(peers(&joined), both, "{broken}");
        assert!(!joined.put(own(&[("peers", broken)])), "a heartbeat is no news");
    }
    // Of one that is broken the others are as they are written now.
    joined.put(own(&[(
        "peers",
        "- {remoteip: 203.0.113.1, remoteasn: 65009, password: b25}\n- {remoteip: 2001:db8::1, remoteasn: 65003}\n",
    )]));
    assert_eq!(peers(&joined), ["203.0.113.1 65001 one", "2001:db8::1 65003 -"]);
    joined.put(own(&[("peers", "- {remoteip: 203.0.113.1, remoteasn: 65009, password: dHdv}\n")]));
    assert_eq!(peers(&joined), ["203.0.113.1 65009 two"]);
    joined.put(own(&[("peers", "{")]));
    assert_eq!(peers(&joined), ["203.0.113.1 65009 two"]);
    assert!(joined.put(own(&[])), "it is deleted");
    assert_eq!(peers(&joined), [""; 0]);
    joined.put(own(&[("peers", "{")]));
    assert_eq!(peers(&joined), [""; 0], "nothing is good by now");
}

#[test]
fn the_older_lists_change_one_by_one_and_no_session_has_another_ones_password_or_system() {
    let first =
        [("peer.ips", "203.0.113.1,2001:db8::1"), ("peer.asns", "65001,65002"), ("peer.passwords", "b25l,dHdv")];
    let mut joined = started(&first);
    let before = ["203.0.113.1 65001 one", "2001:db8::1 65002 two"];
    assert_eq!(peers(&joined), before);
    let ips = ("peer.ips", "198.51.100.7,203.0.113.1,2001:db8::1");
    let asns = ("peer.asns", "65007,65001,65002");
    joined.put(own(&[ips, first[1], first[2]]));
    assert_eq!(peers(&joined), before);
    joined.put(own(&[ips, asns, first[2]]));
    assert_eq!(peers(&joined), before);
    joined.put(own(&[ips, asns, ("peer.passwords", "c2V2ZW4=,b25l,dHdv")]));
    assert_eq!(peers(&joined), ["198.51.100.7 65007 seven", before[0], before[1]]);
    // The systems go first, and then the addresses.
    joined.put(own(&[ips]));
    assert_eq!(peers(&joined).len(), 3);
    joined.put(own(&[]));
    assert_eq!(peers(&joined), [""; 0]);
    let mut joined = started(&first);
    joined.put(own(&[first[1], first[2]]));
    assert_eq!(peers(&joined), [""; 0], "no address names anybody");
}

#[test]
fn at_a_start_the_disk_has_the_peers_that_cannot_be_read_but_not_their_passwords() {
    let mut earlier = started(&[("peers", GOOD)]).cluster;
    let mut kept = (**earlier.nodes.get(&"node-1".into()).expect("it is known")).clone();
    let routing = kept.routing.as_mut().expect("it has annotations");
    routing.peers[0].password = Password::Unknown;
    earlier.nodes.insert("node-1".into(), kept);
    let known = || Known { cluster: earlier.clone(), kinds: Kind::ALL.to_vec(), all_nodes: true };
    let remembered = ["203.0.113.1 65001 ?", "2001:db8::1 65002 -"];
    // The Node is read before anything is asked of the disk, or while the disk is all there is.
    let mut joined = started(&[("peers", "{")]);
    assert!(joined.lacks_good_versions() && peers(&joined).is_empty());
    assert!(joined.recall(&earlier));
    assert_eq!(peers(&joined), remembered);
    assert!(!joined.lacks_good_versions());
    assert!(!joined.put(own(&[("peers", "{")])));
    assert_eq!(peers(&joined), remembered);
    let mut late = new();
    late.remember(known());
    list(&mut late, Kind::Node, vec![own(&[("peers", "{")])]);
    assert_eq!(peers(&late), remembered);
    let mut between = new();
    between.begin_listing(Kind::Node);
    between.put(own(&[("peers", "{")]));
    between.remember(known());
    assert_eq!(peers(&between), remembered);
    // One that can be read has its password.
    let readable = "- {remoteip: 203.0.113.1, remoteasn: 65001, password: b25l}\n- {remoteip: x}\n";
    let mut joined = started(&[("peers", readable)]);
    joined.recall(&earlier);
    assert_eq!(peers(&joined), ["203.0.113.1 65001 one", remembered[1]]);
    // A good list, or none, asks nothing of the disk; nor does a mistake of later on.
    for good in [&[][..], &[("peers", "- {remoteip: 203.0.113.9, remoteasn: 65001}")]] {
        let mut joined = started(good);
        let read = peers(&joined);
        joined.recall(&earlier);
        assert_eq!(peers(&joined), read);
        joined.put(own(&[("peers", "{")]));
        assert!(!joined.lacks_good_versions());
        assert_eq!(peers(&joined), read);
    }
    // Without a file there is nothing to be had, and it is not asked again.
    let mut joined = started(&[("peers", "{")]);
    assert!(!joined.recall(&Cluster::default()) && !joined.lacks_good_versions());
}

#[test]
fn external_peers_of_other_nodes_and_their_passwords_are_not_kept_and_a_change_of_them_is_no_news() {
    let mut joined = started(&[("peers", GOOD)]);
    let reflector = ("rr.client", "42");
    joined.put(node("node-2", &[("peers", GOOD), reflector]));
    let routing = |joined: &Joined, name: &str| {
        joined.cluster.nodes.get(&name.into()).expect("it is known").routing.as_deref().cloned()
    };
    let of_other = routing(&joined, "node-2").expect("it is a client");
    assert_eq!((of_other.peers.len(), of_other.reflection), (0, Reflection::Client(Ipv4Addr::new(0, 0, 0, 42))));
    for text in ["- {remoteip: 198.51.100.1, remoteasn: 65009, password: dHdv}", "{", ""] {
        assert!(!joined.put(node("node-2", &[("peers", text), reflector])), "{text}");
    }
    joined.put(node("node-3", &[("peers", "{")]));
    assert_eq!(routing(&joined, "node-3"), None);
    assert_eq!(peers(&joined).len(), 2, "our own stay");
}
