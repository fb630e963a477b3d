use super::*;
use crate::model::{EndpointSlice, Node, ProxyAnnotations, Service, ServiceType, TrafficPolicy};
use crate::net::Family;

fn service(name: &str, address: &str) -> Object {
    let service = Service {
        kind: ServiceType::ClusterIp,
        cluster_ips: vec![address.parse().expect("the test's address is sound")],
        external_ips: vec![],
        load_balancer: vec![],
        ports: vec![],
        affinity_seconds: None,
        internal_traffic_policy: TrafficPolicy::Cluster,
        external_traffic_policy: TrafficPolicy::Cluster,
        health_check_node_port: None,
        annotations: ProxyAnnotations::default(),
        created: 0,
    };
    Object::Service(ObjectName::new("default", name), Some(Arc::new(service)))
}

fn slice(name: &str, service: &str) -> Object {
    let slice = EndpointSlice { family: Family::V4, ports: vec![], endpoints: Box::default() };
    let of = SliceOf { service: service.into(), slice: Arc::new(slice) };
    Object::EndpointSlice(ObjectName::new("default", name), Some(of))
}

fn gone(object: &Object) -> Object {
    Object::gone(object.id())
}

const WANTED: [Wanted; 2] = [Wanted::Services, Wanted::EndpointSlices];

fn list(joined: &mut Joined, kind: Kind, objects: Vec<Object>) {
    joined.begin_listing(kind);
    for object in objects {
        joined.put(object);
    }
    joined.end_listing(kind);
}

/// The names of all Services, and of all slices as `service/slice`.
fn names(joined: &Joined) -> Vec<String> {
    let services = joined.cluster.services.iter().map(|(name, _)| name.name.to_string());
    let slices = joined
        .cluster
        .endpoints
        .iter()
        .flat_map(|(name, endpoints)| endpoints.slices.keys().map(move |slice| format!("{}/{slice}", name.name)));
    services.chain(slices).collect()
}

#[test]
fn an_equal_object_is_no_change() {
    let mut joined = Joined::new(&WANTED);
    assert!(joined.put(service("a", "10.96.0.1")));
    assert!(!joined.put(service("a", "10.96.0.1")));
    assert!(joined.put(slice("a-1", "a")));
    assert!(!joined.put(slice("a-1", "a")));
    assert!(joined.take_unpublished() && !joined.take_unpublished());
}

#[test]
fn a_listing_shrinks_only_at_its_end() {
    let mut joined = Joined::new(&WANTED);
    list(&mut joined, Kind::Service, vec![service("a", "10.96.0.1"), service("b", "10.96.0.2")]);
    list(&mut joined, Kind::EndpointSlice, vec![slice("a-1", "a"), slice("b-1", "b")]);
    joined.begin_listing(Kind::Service);
    joined.put(service("c", "10.96.0.3"));
    assert_eq!(names(&joined), ["a", "b", "c", "a/a-1", "b/b-1"]);
    joined.end_listing(Kind::Service);
    assert_eq!(names(&joined), ["c", "a/a-1", "b/b-1"]);
    list(&mut joined, Kind::EndpointSlice, vec![slice("b-1", "b")]);
    assert_eq!(names(&joined), ["c", "b/b-1"]);
}

#[test]
fn a_listing_that_begins_again_forgets_what_it_named() {
    let mut joined = Joined::new(&WANTED);
    list(&mut joined, Kind::Service, vec![service("a", "10.96.0.1"), service("b", "10.96.0.2")]);
    joined.begin_listing(Kind::Service);
    joined.put(service("a", "10.96.0.1"));
    list(&mut joined, Kind::Service, vec![service("b", "10.96.0.2")]);
    assert_eq!(names(&joined), ["b"]);
}

#[test]
fn a_slice_may_change_hands_and_go_without_saying_whose_it_was() {
    let mut joined = Joined::new(&WANTED);
    joined.put(slice("s", "a"));
    joined.put(slice("t", "a"));
    assert!(joined.put(slice("s", "b")));
    assert_eq!(names(&joined), ["a/t", "b/s"]);
    assert!(joined.put(gone(&slice("s", ""))));
    assert!(joined.put(gone(&slice("t", ""))));
    assert!(!joined.put(gone(&slice("t", ""))));
    assert!(joined.cluster.endpoints.is_empty() && joined.slices.is_empty());
}

#[test]
fn all_is_known_when_every_needed_kind_was_listed_and_stays_so() {
    let mut joined = Joined::new(&WANTED);
    assert_eq!(joined.authority(), Authority::Nothing);
    list(&mut joined, Kind::Service, vec![]);
    assert_eq!(joined.authority(), Authority::Nothing);
    list(&mut joined, Kind::EndpointSlice, vec![]);
    assert_eq!(joined.authority(), Authority::Complete);
    joined.begin_listing(Kind::Service);
    joined.set_unreadable(true);
    assert_eq!(joined.authority(), Authority::Complete);
    assert!(!joined.may_remember());
}

#[test]
fn what_cannot_be_read_at_the_start_keeps_everything_from_shrinking_until_it_can() {
    let mut joined = Joined::new(&WANTED);
    list(&mut joined, Kind::Service, vec![]);
    list(&mut joined, Kind::EndpointSlice, vec![]);
    joined.set_unreadable(true);
    assert_eq!(joined.authority(), Authority::Partial);
    joined.set_unreadable(false);
    assert_eq!(joined.authority(), Authority::Complete);
}

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
    joined.remember(earlier.cluster.clone());
    assert!(!joined.may_remember());
    assert_eq!(joined.authority(), Authority::Remembered);
    assert_eq!(names(&joined), ["a", "old", "a/a-1", "old/old-1"]);
    assert!(joined.cluster.nodes.is_empty(), "a kind that nobody wants is not remembered");
    let address = joined.cluster.services.get(&ObjectName::new("default", "a")).expect("it was put").cluster_ips[0];
    assert_eq!(address.to_string(), "10.96.0.2");
    joined.end_listing(Kind::Service);
    assert_eq!(joined.authority(), Authority::Remembered);
    list(&mut joined, Kind::EndpointSlice, vec![slice("a-2", "a")]);
    assert_eq!(names(&joined), ["a", "a/a-2"]);
    assert_eq!(joined.authority(), Authority::Complete);
}
