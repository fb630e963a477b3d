//! Objects that need a look of their own; that all of a cluster is carried, clusters made by chance say (`tests/properties/bundle.rs`).

use super::*;
use crate::k8s::manifests::document::{Format, Reader, documents};
use crate::k8s::object::Object;
use crate::model::{Node, Pod, PodUid, Routing};
use crate::net::{ExternalPeer, Password, Secret};

fn objects(cluster: &Cluster, kind: Kind) -> Vec<Object> {
    let page = page(cluster, kind, 0, usize::MAX);
    let mut reader = Reader::default();
    let content: Vec<_> = documents(Format::Json, &page.text).iter().map(|it| it.content(&mut reader)).collect();
    assert!(content.iter().all(|content| content.broken.is_empty() && content.skipped.is_empty()), "{}", page.text);
    content.into_iter().flat_map(|content| content.objects).map(|(object, _)| object).collect()
}

#[test]
fn a_password_is_written_as_one_that_is_not_known() {
    let mut cluster = Cluster::default();
    let secret = Secret::from_base64("c2VjcmV0LXdvcmQ=").expect("sound").expect("a secret");
    let mut peer = ExternalPeer::new("192.0.2.9".parse().expect("an address"), 64_600);
    peer.password = Password::Key(secret);
    let routing = Routing { peers: vec![peer.clone()], ..Routing::default() };
    cluster.nodes.insert("node-1".into(), Node { routing: Some(Box::new(routing)), ..Node::default() });
    let text = page(&cluster, Kind::Node, 0, usize::MAX).text;
    assert!(!text.contains("secret-word") && !text.contains("c2VjcmV0"), "{text}");
    peer.password = Password::Unknown;
    let [Object::Node(_, Some(node))] = &objects(&cluster, Kind::Node)[..] else { panic!("one Node") };
    assert_eq!(node.routing().peers, [peer]);
}

#[test]
fn a_uid_is_written_as_one_that_is_read_as_the_same() {
    let mut cluster = Cluster::default();
    for (index, number) in [1, 0xdead_beef, u32::MAX, 0x8000_0000, 0x1234_5678].into_iter().enumerate() {
        let pod = Pod {
            uid: PodUid::from_number(number),
            labels: Default::default(),
            addresses: Default::default(),
            node: None,
            host_network: false,
            finished: false,
            ports: Default::default(),
        };
        cluster.pods.insert(ObjectName::new("shop", &index.to_string()), pod);
    }
    for object in objects(&cluster, Kind::Pod) {
        let Object::Pod(name, Some(pod)) = object else { panic!("a Pod") };
        assert_eq!(cluster.pods.get(&name), Some(&pod));
    }
}

#[test]
fn pages_follow_each_other_without_a_gap_and_each_has_an_object() {
    let mut cluster = Cluster::default();
    for index in 0..10 {
        cluster.nodes.insert(format!("node-{index}").into(), Node::default());
    }
    let whole = page(&cluster, Kind::Node, 0, usize::MAX);
    assert_eq!((whole.text.lines().count(), whole.next), (10, None));
    for most in [1, 200, 500] {
        let (mut text, mut next) = (String::new(), Some(0));
        while let Some(from) = next {
            let page = page(&cluster, Kind::Node, from, most);
            assert!(!page.text.is_empty());
            text.push_str(&page.text);
            next = page.next;
        }
        assert_eq!(text, whole.text);
    }
    assert_eq!(page(&cluster, Kind::Node, 99, 1).text, "");
}
