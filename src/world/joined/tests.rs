mod believed;
mod optional_kinds;
mod own_node;
mod peers;
mod remembered;

use super::*;
use crate::k8s::SliceOf;
use crate::model::{
    AttachmentId, ClusterNetworkPolicy, EndpointList, EndpointSlice, Namespace, NetworkPolicy, Node, Pod, Selector,
    Service, ServiceCidr, Subject, Tier, UnreadPolicies,
};
use crate::net::Family;

fn service(name: &str, address: &str) -> Object {
    let service = Service::new(vec![address.parse().expect("the test's address is sound")], vec![]);
    Object::Service(ObjectName::new("default", name), Some(Arc::new(service)))
}

fn slice(name: &str, service: &str) -> Object {
    let slice = EndpointSlice { family: Family::V4, ports: Default::default(), endpoints: EndpointList::default() };
    let of = SliceOf { service: service.into(), slice: Arc::new(slice) };
    Object::EndpointSlice(ObjectName::new("default", name), Some(Box::new(of)))
}

fn gone(object: &Object) -> Object {
    Object::gone(object.id())
}

fn pod(name: &str, address: &str) -> Object {
    let pod = Pod {
        uid: None,
        labels: [("app", name)].into_iter().collect(),
        addresses: [address.parse().expect("the test's address is sound")].into(),
        node: Some("node-1".into()),
        host_network: false,
        finished: false,
        ports: [].into(),
    };
    Object::Pod(ObjectName::new("default", name), Some(Arc::new(pod)))
}

fn namespace(name: &str) -> Object {
    Object::Namespace(name.into(), Some(Arc::new(Namespace::default())))
}

fn policy(name: &str, for_egress: bool) -> Object {
    let egress = for_egress.then(Box::default);
    let policy = NetworkPolicy { pods: Selector::everything(), ingress: Some(Box::default()), egress };
    Object::NetworkPolicy(ObjectName::new("default", name), Some(Arc::new(policy)))
}

fn unreadable(name: &str) -> Object {
    Object::Unreadable(policy(name, false).id())
}

const WANTED: [Wanted; 2] = [Wanted::Services, Wanted::EndpointSlices];

const ALL: [Wanted; 5] =
    [Wanted::Services, Wanted::EndpointSlices, Wanted::Pods, Wanted::Namespaces, Wanted::NetworkPolicies];

/// Tables of which all is known: nothing exists.
fn known(wanted: &[Wanted]) -> Joined {
    let mut joined = Joined::new(wanted);
    for wanted in wanted {
        list(&mut joined, wanted.kind(), vec![]);
    }
    joined.authority();
    joined
}

fn proxy(joined: &mut Joined) -> Authority {
    joined.authority().proxy
}

fn firewall(joined: &mut Joined) -> Authority {
    joined.authority().firewall
}

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
    let mut joined = known(&ALL);
    for object in [service("a", "10.96.0.1"), slice("a-1", "a"), pod("a", "10.244.1.5"), policy("p", false)] {
        assert!(joined.put(object.clone()));
        assert!(joined.take_unpublished());
        assert!(!joined.put(object));
        assert!(!joined.take_unpublished());
    }
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
    let mut joined = known(&WANTED);
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
fn a_slice_named_as_those_of_another_service_is_its_own_services_alone() {
    let mut joined = known(&WANTED);
    joined.put(slice("a-1", "a"));
    joined.put(slice("a-2", "b"));
    joined.put(slice("b-1", "a"));
    assert_eq!(names(&joined), ["a/a-1", "a/b-1", "b/a-2"]);
    assert!(joined.put(slice("a-1", "b")), "it changes hands");
    assert!(joined.put(slice("a-2", "a")));
    assert_eq!(names(&joined), ["a/a-2", "a/b-1", "b/a-1"]);
    assert!(joined.put(gone(&slice("a-1", ""))));
    assert!(joined.put(gone(&slice("b-1", ""))));
    assert_eq!(names(&joined), ["a/a-2"]);
    list(&mut joined, Kind::EndpointSlice, Vec::new());
    assert!(joined.cluster.endpoints.is_empty() && joined.slices.is_empty());
}

#[test]
fn a_service_and_its_endpoints_have_one_name_in_memory_whoever_comes_first() {
    let mut joined = known(&WANTED);
    joined.put(service("a", "10.96.0.1"));
    joined.put(slice("a-1", "a"));
    joined.put(slice("b-1", "b"));
    joined.put(service("b", "10.96.0.2"));
    for ((of_service, _), (of_endpoints, _)) in joined.cluster.services.iter().zip(joined.cluster.endpoints.iter()) {
        assert!(std::ptr::eq(&raw const **of_service, &raw const **of_endpoints), "{of_service}");
    }
}

#[test]
fn all_is_known_when_every_needed_kind_was_listed_and_stays_so() {
    let mut joined = Joined::new(&WANTED);
    assert_eq!(proxy(&mut joined), Authority::Nothing);
    list(&mut joined, Kind::Service, vec![]);
    assert_eq!(proxy(&mut joined), Authority::Nothing);
    list(&mut joined, Kind::EndpointSlice, vec![]);
    assert_eq!(proxy(&mut joined), Authority::Complete);
    joined.begin_listing(Kind::Service);
    joined.set_unreadable(true);
    assert_eq!(proxy(&mut joined), Authority::Complete);
    assert!(!joined.may_remember());
}

#[test]
fn what_cannot_be_read_at_the_start_keeps_everything_from_shrinking_until_it_can() {
    let mut joined = Joined::new(&WANTED);
    list(&mut joined, Kind::Service, vec![]);
    list(&mut joined, Kind::EndpointSlice, vec![]);
    joined.set_unreadable(true);
    assert_eq!(proxy(&mut joined), Authority::Partial);
    joined.set_unreadable(false);
    assert_eq!(proxy(&mut joined), Authority::Complete);
}

#[test]
fn neither_part_waits_for_the_other_and_a_kind_that_is_being_listed_is_no_news() {
    let mut joined = Joined::new(&ALL);
    joined.begin_listing(Kind::Pod);
    assert!(!joined.put(pod("a", "10.244.1.5")), "nobody may act upon it yet");
    list(&mut joined, Kind::Service, vec![]);
    list(&mut joined, Kind::EndpointSlice, vec![]);
    assert_eq!((proxy(&mut joined), firewall(&mut joined)), (Authority::Complete, Authority::Nothing));
    assert!(!joined.is_complete());
    joined.take_unpublished();
    assert!(!joined.put(pod("b", "10.244.1.6")));
    assert!(!joined.take_unpublished());
    joined.end_listing(Kind::Pod);
    list(&mut joined, Kind::Namespace, vec![namespace("default")]);
    assert_eq!(firewall(&mut joined), Authority::Nothing);
    list(&mut joined, Kind::NetworkPolicy, vec![policy("p", false)]);
    assert_eq!(firewall(&mut joined), Authority::Complete);
    assert!(joined.is_complete());
    assert_eq!((joined.cluster.pods.len(), joined.cluster.namespaces.len(), joined.cluster.policies.len()), (2, 1, 1));
    assert!(joined.put(pod("b", "10.244.1.7")));
}

#[test]
fn what_nobody_wants_is_not_known_and_keeps_nothing_from_being_complete() {
    let mut joined = known(&[Wanted::Services, Wanted::EndpointSlices, Wanted::Node("node-1".into())]);
    assert_eq!((proxy(&mut joined), firewall(&mut joined)), (Authority::Complete, Authority::Nothing));
    assert!(joined.is_complete());
    let mut joined = known(&[Wanted::Pods, Wanted::Namespaces, Wanted::NetworkPolicies]);
    assert_eq!((proxy(&mut joined), firewall(&mut joined)), (Authority::Nothing, Authority::Complete));
    assert!(joined.is_complete());
}

#[test]
fn pods_namespaces_and_policies_go_at_the_end_of_a_listing_that_does_not_name_them() {
    let mut joined = known(&ALL);
    for object in [pod("a", "10.244.1.5"), pod("b", "10.244.1.6"), namespace("x"), namespace("y"), policy("p", false)] {
        joined.put(object);
    }
    list(&mut joined, Kind::Pod, vec![pod("b", "10.244.1.6")]);
    list(&mut joined, Kind::Namespace, vec![namespace("y")]);
    list(&mut joined, Kind::NetworkPolicy, vec![]);
    assert!(joined.cluster.pods.iter().map(|(name, _)| name.name.as_str()).eq(["b"]));
    assert!(joined.cluster.namespaces.iter().map(|(name, _)| name.as_str()).eq(["y"]));
    assert!(joined.cluster.policies.is_empty());
    for object in [pod("b", "10.244.1.6"), namespace("y")] {
        assert!(joined.put(gone(&object)));
        assert!(!joined.put(gone(&object)));
    }
    assert!(joined.cluster.pods.is_empty() && joined.cluster.namespaces.is_empty());
}

#[test]
fn a_policy_that_cannot_be_understood_keeps_its_last_good_version() {
    let mut joined = known(&ALL);
    joined.put(policy("p", true));
    assert!(!joined.put(unreadable("p")));
    list(&mut joined, Kind::NetworkPolicy, vec![unreadable("p")]);
    let id = policy("p", true).id();
    assert!(joined.cluster.policies.get(&id.name).is_some_and(|policy| policy.egress.is_some()));
    assert!(!joined.lacks_good_versions());
    assert!(joined.put(policy("p", false)));
    assert!(joined.put(gone(&policy("p", false))));
    assert!(joined.cluster.policies.is_empty());
}

#[test]
fn a_listing_with_an_object_without_a_name_removes_nothing() {
    let mut joined = known(&ALL);
    list(&mut joined, Kind::NetworkPolicy, vec![policy("a", false), policy("b", false)]);
    list(
        &mut joined,
        Kind::NetworkPolicy,
        vec![
            policy("b", false),
            Object::Unreadable(ObjectId { kind: Kind::NetworkPolicy, name: ObjectName::new("", "") }),
        ],
    );
    assert_eq!(joined.names(Kind::NetworkPolicy).len(), 2);
    assert_eq!(firewall(&mut joined), Authority::Complete, "all was known once");
    list(&mut joined, Kind::NetworkPolicy, vec![policy("b", false)]);
    assert_eq!(joined.names(Kind::NetworkPolicy).len(), 1);
}

#[test]
fn a_policy_that_was_never_understood_makes_the_start_partial_until_it_is_mended_or_gone() {
    let start = || {
        let mut joined = Joined::new(&ALL);
        for kind in [Kind::Service, Kind::EndpointSlice, Kind::Pod, Kind::Namespace] {
            list(&mut joined, kind, vec![]);
        }
        list(&mut joined, Kind::NetworkPolicy, vec![policy("q", false), unreadable("p")]);
        assert_eq!((proxy(&mut joined), firewall(&mut joined)), (Authority::Complete, Authority::Partial));
        assert!(joined.lacks_good_versions() && !joined.is_complete());
        joined
    };
    let mut mended = start();
    assert!(mended.put(policy("p", false)));
    assert_eq!(firewall(&mut mended), Authority::Complete);
    let mut deleted = start();
    deleted.put(gone(&policy("p", false)));
    assert_eq!(firewall(&mut deleted), Authority::Complete);
    let mut not_listed = start();
    list(&mut not_listed, Kind::NetworkPolicy, vec![policy("q", false)]);
    assert_eq!(firewall(&mut not_listed), Authority::Complete);
    let mut recalled = start();
    let mut earlier = Joined::new(&ALL);
    for object in [policy("p", true), policy("q", true), policy("r", true)] {
        earlier.put(object);
    }
    assert!(recalled.recall(&earlier.cluster));
    assert_eq!(firewall(&mut recalled), Authority::Complete);
    let egress = recalled.cluster.policies.iter().map(|(name, policy)| (name.name.as_str(), policy.egress.is_some()));
    assert!(egress.eq([("p", true), ("q", false)]), "only what cannot be understood is taken from there");
    assert!(!recalled.recall(&earlier.cluster));
}

fn node(name: &str) -> Object {
    Object::Node(name.into(), Some(Arc::new(Node::default())))
}

#[test]
fn all_nodes_are_known_when_they_were_listed_and_wait_for_nothing_else() {
    let wanted = [Wanted::Nodes, Wanted::Services, Wanted::EndpointSlices];
    let mut joined = Joined::new(&wanted);
    list(&mut joined, Kind::Node, vec![node("node-1"), node("node-2")]);
    let router = |joined: &mut Joined| joined.authority().router;
    assert_eq!((router(&mut joined), proxy(&mut joined)), (Authority::Complete, Authority::Nothing));
    assert!(joined.put(node("node-3")), "it is news to the router");
    assert!(!joined.is_complete());
    let mut joined = known(&[Wanted::Node("node-1".into()), Wanted::Services, Wanted::EndpointSlices]);
    assert_eq!(router(&mut joined), Authority::Nothing, "our own node is not all nodes");
    assert!(joined.is_complete());
}

fn cluster_policy(name: &str) -> Object {
    let everybody = Subject { namespaces: Selector::everything(), pods: Selector::everything() };
    let (tier, ingress, egress) = (Tier::Admin, [].into(), [].into());
    let policy = ClusterNetworkPolicy { tier, priority: 1, subject: everybody, ingress, egress };
    Object::ClusterNetworkPolicy(name.into(), Some(Arc::new(policy)))
}

const FIREWALL: [Wanted; 4] =
    [Wanted::Pods, Wanted::Namespaces, Wanted::NetworkPolicies, Wanted::ClusterNetworkPolicies];

fn service_cidr(name: &str, ranges: &[&str]) -> Object {
    let ranges = ranges.iter().map(|text| text.parse().expect("a range")).collect();
    Object::ServiceCidr(name.into(), Some(Arc::new(ServiceCidr { ranges })))
}

fn service_ranges(joined: &Joined) -> Vec<String> {
    joined.cluster.service_ranges().map(|range| range.to_string()).collect()
}

#[test]
fn where_the_api_server_is_asked_outlasts_a_change_of_the_host() {
    let mut joined = Joined::new(&[Wanted::Services]);
    let asked_at = || vec!["192.0.2.10".parse().expect("an address")];
    assert!(joined.set_api_server(asked_at()) && !joined.set_api_server(asked_at()));
    assert!(joined.waits_for_a_sign_of_life(), "nobody has answered");
    assert!(joined.set_host(Arc::new(Host { node_name: "node-1".into(), ..Host::default() })));
    assert_eq!(joined.world(Authorities::default()).host.api_server, asked_at());
    assert!(!joined.set_host(Arc::new(Host { node_name: "node-1".into(), ..Host::default() })), "nothing differs");
}

#[test]
fn what_is_not_understood_of_policies_is_told_until_it_is_mended_or_the_policy_is_gone() {
    let mut joined = Joined::new(&[Wanted::NetworkPolicies, Wanted::ClusterNetworkPolicies]);
    let warning = |text: &str| crate::k8s::Warning { field: "spec".into(), text: text.to_owned() };
    let (web, guard) = (policy("web", false), Object::ClusterNetworkPolicy("guard".into(), None));
    let id = web.id();
    joined.begin_listing(Kind::NetworkPolicy);
    joined.set_warnings(&id, &[warning("is odd")]);
    joined.put(web);
    joined.end_listing(Kind::NetworkPolicy);
    joined.begin_listing(Kind::ClusterNetworkPolicy);
    joined.set_warnings(&guard.id(), &[warning("cannot be read")]);
    joined.put(Object::Unreadable(guard.id()));
    joined.end_listing(Kind::ClusterNetworkPolicy);
    let told = |joined: &mut Joined| -> Vec<String> {
        let authority = joined.authority();
        let problems = joined.world(authority).policy_problems;
        problems.iter().flat_map(|(name, all)| all.iter().map(move |one| format!("{name} {one}"))).collect()
    };
    assert_eq!(told(&mut joined).len(), 2);
    joined.take_unpublished();
    joined.set_warnings(&service("web", "10.96.0.1").id(), &[warning("of a Service")]);
    joined.set_warnings(&id, &[warning("is odd")]);
    assert!(!joined.take_unpublished(), "nothing is new");
    joined.set_warnings(&id, &[warning("is odder")]);
    assert!(joined.take_unpublished());
    joined.set_warnings(&id, &[]);
    assert!(joined.take_unpublished());
    assert_eq!(told(&mut joined).len(), 1);
    list(&mut joined, Kind::ClusterNetworkPolicy, vec![]);
    assert_eq!(told(&mut joined), [""; 0]);
}
