//! Words of Nodes about themselves that are not believed.

use std::net::Ipv4Addr;

use super::*;
use crate::model::{Reflection, Routing};

/// A Node with a range of its spec, in place of which it names a wide one, and that says that it is a reflector.
fn claiming(name: &str) -> Object {
    let range = |text: &str| text.parse().expect("a range");
    let routing = Routing { reflection: Reflection::Server(Ipv4Addr::new(0, 0, 0, 42)), ..Routing::default() };
    Object::Node(
        name.into(),
        Some(Arc::new(Node {
            pod_cidrs: vec![range("10.0.0.0/8")],
            spec_pod_cidrs: Some([range("10.244.1.0/24")].into()),
            routing: Some(Box::new(routing)),
            ..Node::default()
        })),
    )
}

fn believing_little() -> Joined {
    let annotations = NodeAnnotations { pod_cidrs: false, reflectors: Some(["reflector".into()].into()) };
    Joined::new(&[Wanted::Nodes]).believing(annotations)
}

/// Ranges of a node, and whether it is a reflector.
fn known_of(joined: &Joined, name: &str) -> (Vec<String>, bool) {
    let node = joined.cluster.nodes.get(&name.into()).expect("it is known");
    let is_reflector = matches!(node.routing().reflection, Reflection::Server(_));
    (node.pod_cidrs.iter().map(ToString::to_string).collect(), is_reflector)
}

#[test]
fn neither_other_nodes_nor_our_own_nor_those_of_the_last_known_state_are_believed_more() {
    let given = vec!["10.244.1.0/24".to_owned()];
    let mut joined = believing_little();
    joined.set_host(Arc::new(Host { node_name: "own".into(), ..Host::default() }));
    list(&mut joined, Kind::Node, vec![claiming("own"), claiming("other"), claiming("reflector")]);
    assert_eq!(known_of(&joined, "own"), (given.clone(), false));
    assert_eq!(known_of(&joined, "other"), (given.clone(), false));
    assert_eq!(known_of(&joined, "reflector"), (given.clone(), true));
    assert!(!joined.put(claiming("other")), "a heartbeat is no news");

    let said = |name| joined.unbelieved(&claiming(name)).iter().map(ToString::to_string).collect::<Vec<_>>();
    let [ranges, reflector] = said("own").try_into().expect("both are said of our own Node");
    assert!(ranges.starts_with("kube-router.io/pod-cidrs: --node-pod-cidr-annotations=false takes"), "{ranges}");
    assert!(reflector.starts_with("kube-router.io/rr.server: --rr-server-nodes does not name"), "{reflector}");
    assert_eq!(said("other"), [""; 0], "its own agent says it");
    let mut ordinary = Joined::new(&[Wanted::Nodes]);
    ordinary.set_host(Arc::new(Host { node_name: "own".into(), ..Host::default() }));
    assert!(ordinary.unbelieved(&claiming("own")).is_empty());

    let mut earlier = Joined::new(&[Wanted::Nodes]);
    list(&mut earlier, Kind::Node, vec![claiming("other")]);
    assert_eq!(known_of(&earlier, "other"), (vec!["10.0.0.0/8".to_owned()], true));
    let mut remembering = believing_little();
    remembering.remember(Known { cluster: earlier.cluster, kinds: vec![Kind::Node], all_nodes: true });
    assert_eq!(known_of(&remembering, "other"), (given, false));
}
