mod failures;
mod listing;
mod relists;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use tokio::sync::mpsc::{Receiver, channel};

use self::api_server::{ApiServer, CLUSTER_POLICIES, Faults, NAMESPACES, NODES, PODS, POLICIES, SERVICES, SLICES};
use super::*;
use crate::k8s::client::{Access, client};
use crate::k8s::parse::service::ServiceObject;
use crate::k8s::request::Patience;
use crate::observe::health::Health;
use crate::observe::metrics::Registry;

pub(crate) mod api_server;

const TIMING: Timing = Timing {
    first: Duration::from_millis(2),
    last: Duration::from_millis(20),
    brief: Duration::from_millis(500),
    patience: Patience { beginning: Duration::from_millis(1500), piece: Duration::from_millis(1500) },
    silence: Duration::from_millis(1500),
    in_pages: Duration::from_secs(3600),
    spread: Duration::from_millis(10),
    first_look: Duration::from_millis(5),
    last_look: Duration::from_millis(40),
    last_refused: Duration::from_millis(80),
    gone: Duration::from_secs(2),
};

fn service(name: &str, address: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "default"}, "spec": {"clusterIP": address, "ports": [{"port": 80}]}})
}

fn slice(name: &str, service: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"port": 80}], "endpoints": [{"addresses": ["10.244.1.1"]}]})
}

fn pod(name: &str, address: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "labels": {"app": "web"},
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}]},
        "spec": {"nodeName": "node-1", "containers": [{"ports": [{"name": "http", "containerPort": 80}]}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}})
}

fn policy(name: &str, types: &[&str]) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop"}, "spec": {"podSelector": {}, "policyTypes": types}})
}

/// A reader of the followers' messages, which keeps the objects in force as the World would.
struct Reader {
    messages: Receiver<Message>,
    followers: JoinSet<()>,
    health: Health,
    in_force: BTreeMap<String, Object>,
    /// Objects ever named since this was last emptied.
    named: BTreeSet<String>,
    /// Warnings about objects, with the names of these.
    warnings: Vec<(ObjectId, Warning)>,
    listings: usize,
    outages: usize,
    withheld: usize,
    /// The names in the listing in progress.
    listing: Option<Vec<String>>,
    /// How many objects were in force after each listing.
    listed_as: Vec<usize>,
}

async fn read(server: &ApiServer, wanted: Vec<Wanted>) -> Reader {
    read_at_the_pace_of(TIMING, server, wanted).await
}

async fn read_at_the_pace_of(timing: Timing, server: &ApiServer, wanted: Vec<Wanted>) -> Reader {
    let access =
        Access { kubeconfig: None, master: Some(format!("http://{}", server.address).parse().expect("a URL")) };
    let client = client(&access).await.expect("nothing is needed");
    let (out, messages) = channel(8);
    let health = Health::default();
    let outages = Outages::register("API server", [], &Registry::new("1", "x"), &health).expect("the names are free");
    let mut followers = JoinSet::new();
    for wanted in wanted {
        let common = Common { out: out.clone(), outages: outages.clone(), timing };
        followers.spawn(follow(client.clone(), wanted, common));
    }
    Reader {
        messages,
        followers,
        health,
        in_force: BTreeMap::new(),
        named: BTreeSet::new(),
        warnings: Vec::new(),
        listings: 0,
        outages: 0,
        withheld: 0,
        listing: None,
        listed_as: Vec::new(),
    }
}

impl Reader {
    /// Reads until exactly these are in force.
    async fn until(&mut self, names: &[&str]) {
        while self.listing.is_some() || !self.in_force.keys().eq(names) {
            self.read_one(names).await;
        }
    }

    /// Reads one message, for want of these.
    async fn read_one(&mut self, names: &[&str]) {
        let message = timeout(Duration::from_secs(20), self.messages.recv()).await;
        let Ok(Some(message)) = message else {
            panic!("{names:?} was expected, {:?} is in force", self.in_force.keys())
        };
        match message.event {
            Event::Listing(_) => (self.listing, self.listings) = (Some(Vec::new()), self.listings + 1),
            Event::Object(object, warnings) => {
                self.warnings.extend(warnings.into_iter().map(|warning| (object.id(), warning)));
                let name = object.id().name.name.to_string();
                self.listing.iter_mut().for_each(|named| named.push(name.clone()));
                if object.is_gone() {
                    self.in_force.remove(&name);
                    return;
                }
                self.named.insert(name.clone());
                // The last good version of an object that cannot be read stays in force.
                if !matches!(object, Object::Unreadable(_)) || !name.is_empty() && !self.in_force.contains_key(&name) {
                    self.in_force.insert(name, object);
                }
            }
            Event::Listed(_) => {
                let named = self.listing.take().expect("a listing has begun");
                if !named.iter().any(String::is_empty) {
                    self.in_force.retain(|name, _| named.contains(name));
                }
                self.listed_as.push(self.in_force.len());
            }
            Event::Unreachable => self.outages += 1,
            Event::Withheld(_) => self.withheld += 1,
            Event::AskedAt(_) | Event::Unreadable(_) | Event::Together(_) => {
                panic!(
                    "only manifests can be unreadable in part, or belong together, and no follower tells where it asks"
                )
            }
        }
    }
}

#[tokio::test]
async fn rights_and_credentials_that_are_taken_away_are_named_until_they_are_back() {
    for status in [401, 403] {
        are_named_until_they_are_back(status).await;
    }
}

/// The server refuses for a while with this status.
async fn are_named_until_they_are_back(status: u16) {
    let server = ApiServer::start().await;
    server.put(SERVICES, service("a", "10.96.0.1"));
    let mut reader = read(&server, vec![Wanted::Services]).await;
    reader.until(&["a"]).await;
    assert!(reader.health.notes().is_empty());
    server.set_faults(Faults { fail: (usize::MAX, status), ..Faults::default() });
    server.cut();
    let noted = async || {
        for _ in 0..2000 {
            if let Some(note) = reader.health.notes().first() {
                return note.to_string();
            }
            sleep(Duration::from_millis(5)).await;
        }
        panic!("nothing is said");
    };
    let note = noted().await;
    assert!(
        note.starts_with("API server: Service not read since 2") && note.contains(&format!("({status})")),
        "{note}"
    );
    server.set_faults(Faults::default());
    server.put(SERVICES, service("b", "10.96.0.2"));
    reader.until(&["a", "b"]).await;
    assert!(reader.health.notes().is_empty());
}

/// A name says nothing, and the connection does.
#[tokio::test]
async fn where_the_api_server_is_asked_is_known_from_its_answers() {
    let server = ApiServer::start().await;
    server.put(SERVICES, service("a", "10.96.0.1"));
    let url = format!("http://localhost:{}", server.address.port());
    let client = client(&Access { kubeconfig: None, master: Some(url.parse().expect("a URL")) }).await.expect("sound");
    assert!(client.asked_at().addresses().is_empty());
    let page = Asking::<ServiceObject>::new(client.clone(), Kind::Service, TIMING.patience);
    assert!(page.newest(None).await.is_ok(), "the server answers");
    assert_eq!(client.asked_at().addresses(), [server.address.ip()]);
}

#[tokio::test]
async fn only_the_own_node_is_asked_for() {
    let server = ApiServer::start().await;
    for name in ["node-1", "node-2"] {
        server.put(NODES, json!({"metadata": {"name": name}, "status": {"addresses": []}}));
    }
    let mut reader = read(&server, vec![Wanted::Node("node-1".into())]).await;
    reader.until(&["node-1"]).await;
}

#[tokio::test]
async fn all_nodes_are_asked_for_where_they_are_needed() {
    let server = ApiServer::start().await;
    for name in ["node-1", "node-2"] {
        server.put(NODES, json!({"metadata": {"name": name}, "status": {"addresses": []}}));
    }
    let mut reader = read(&server, vec![Wanted::Nodes]).await;
    reader.until(&["node-1", "node-2"]).await;
}

#[tokio::test]
async fn a_watch_that_falls_silent_although_bookmarks_came_is_begun_anew() {
    let server = ApiServer::start().await;
    server.put(SERVICES, service("a", "10.96.0.1"));
    let mut reader = read(&server, vec![Wanted::Services]).await;
    reader.until(&["a"]).await;
    server.bookmark(SERVICES);
    sleep(TIMING.silence * 3).await;
    let requests = server.take_requests();
    assert!(requests.len() >= 2, "{requests:?}");
    server.put(SERVICES, service("b", "10.96.0.2"));
    reader.until(&["a", "b"]).await;
    assert_eq!((reader.listings, reader.outages), (1, 0));
}

#[tokio::test]
async fn followers_end_when_nobody_listens() {
    let mut server = ApiServer::start().await;
    server.put(SERVICES, service("a", "10.96.0.1"));
    let mut reader = read(&server, vec![Wanted::Services]).await;
    reader.until(&["a"]).await;
    drop(reader.messages);
    server.stop();
    timeout(Duration::from_secs(20), reader.followers.join_all()).await.expect("they end");
}

#[tokio::test]
async fn what_the_firewall_reads_is_listed_and_followed_across_the_whole_cluster() {
    for refuse_streaming in [None, Some(422)] {
        let server = ApiServer::start().await;
        server.set_faults(Faults { refuse_streaming, ..Faults::default() });
        server.put(NAMESPACES, json!({"metadata": {"name": "shop", "labels": {"team": "blue"}}}));
        server.put(PODS, pod("web-1", "10.244.1.5"));
        server.put(POLICIES, policy("closed", &["Ingress", "Egress"]));
        let mut namespaces = read(&server, vec![Wanted::Namespaces]).await;
        namespaces.until(&["shop"]).await;
        let Some(Object::Namespace(_, Some(shop))) = namespaces.in_force.get("shop") else { panic!("it is there") };
        assert_eq!(shop.labels.value("kubernetes.io/metadata.name"), Some("shop"));
        let mut pods = read(&server, vec![Wanted::Pods]).await;
        pods.until(&["web-1"]).await;
        server.put(PODS, pod("web-2", "10.244.1.6"));
        server.delete(PODS, "shop/web-1");
        pods.until(&["web-2"]).await;
        let Some(Object::Pod(_, Some(pod))) = pods.in_force.get("web-2") else { panic!("it is there") };
        assert!(pod.takes_part());
        let mut policies = read(&server, vec![Wanted::NetworkPolicies]).await;
        policies.until(&["closed"]).await;
        server.put(POLICIES, policy("odd", &["Sideways"]));
        policies.until(&["closed", "odd"]).await;
        assert!(matches!(policies.in_force["odd"], Object::Unreadable(_)));
        server.delete(POLICIES, "shop/odd");
        policies.until(&["closed"]).await;
        let requests = server.take_requests();
        assert!(requests.iter().all(|request| !request.contains("Selector")), "{requests:?}");
    }
}

fn cluster_policy(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}},
        "egress": [{"action": "Deny", "to": [{"networks": ["0.0.0.0/0"]}]}]}})
}

fn not_there() -> Faults {
    Faults { forbid: Some("clusternetworkpolicies"), forbid_as: Some(404), ..Faults::default() }
}

/// Only the newest version is there: a server answers 404 for those that it does not have.
fn newest_only() -> Faults {
    Faults { forbid: Some("v1alpha2/clusternetworkpolicies"), ..not_there() }
}

#[tokio::test]
async fn a_kind_that_the_server_does_not_have_is_listed_as_empty_and_followed_once_it_comes() {
    let server = ApiServer::start().await;
    server.set_faults(not_there());
    let mut reader = read(&server, vec![Wanted::ClusterNetworkPolicies]).await;
    while reader.listed_as.is_empty() {
        reader.read_one(&[]).await;
    }
    assert_eq!((reader.outages, reader.withheld), (0, 1), "that is no failure, and nobody waits");
    server.put(CLUSTER_POLICIES, cluster_policy("a"));
    server.set_faults(newest_only());
    reader.until(&["a"]).await;
    server.put(CLUSTER_POLICIES, cluster_policy("b"));
    reader.until(&["a", "b"]).await;
}

#[tokio::test]
async fn a_server_with_the_earlier_version_only_is_read_in_that() {
    let server = ApiServer::start().await;
    server.set_faults(Faults { forbid: Some("v1beta1"), forbid_as: Some(404), ..Faults::default() });
    let (_, earlier) = Kind::ClusterNetworkPolicy.earlier().expect("there is one");
    server.put(earlier, cluster_policy("a"));
    let mut reader = read(&server, vec![Wanted::ClusterNetworkPolicies]).await;
    reader.until(&["a"]).await;
    server.cut();
    server.put(earlier, cluster_policy("b"));
    reader.until(&["a", "b"]).await;
    assert_eq!(reader.outages, 0);
}

#[tokio::test]
async fn a_kind_that_is_not_there_for_a_moment_is_not_gone_and_one_that_stays_away_is() {
    let server = ApiServer::start().await;
    server.put(CLUSTER_POLICIES, cluster_policy("a"));
    let mut reader = read(&server, vec![Wanted::ClusterNetworkPolicies]).await;
    reader.until(&["a"]).await;
    server.set_faults(not_there());
    server.cut();
    sleep(TIMING.gone / 3).await;
    server.set_faults(newest_only());
    server.put(CLUSTER_POLICIES, cluster_policy("b"));
    reader.until(&["a", "b"]).await;
    assert!(!reader.listed_as.contains(&0), "what was in force stayed so");
    server.set_faults(not_there());
    server.cut();
    reader.until(&[]).await;
}

#[tokio::test]
async fn a_kind_that_may_not_be_read_is_an_outage_where_it_is_there_and_absent_where_it_is_not() {
    let forbidden = Faults { forbid: Some("clusternetworkpolicies"), ..Faults::default() };
    let server = ApiServer::start().await;
    server.set_faults(forbidden.clone());
    let mut reader = read(&server, vec![Wanted::ClusterNetworkPolicies]).await;
    while reader.listed_as.is_empty() {
        reader.read_one(&[]).await;
    }
    assert_eq!((reader.outages, reader.withheld), (0, 1), "the server does not have it");

    let server = ApiServer::start().await;
    server.set_faults(forbidden);
    let resources = json!({"metadata": {"name": "v1beta1"}, "resources": [{"name": "clusternetworkpolicies"}]});
    server.put("/apis/policy.networking.k8s.io", resources);
    let mut reader = read(&server, vec![Wanted::ClusterNetworkPolicies]).await;
    while reader.withheld == 0 {
        reader.read_one(&[]).await;
    }
    assert_eq!((reader.outages, &reader.listed_as), (1, &vec![]));
    assert!(reader.health.notes()[0].text.contains("ClusterNetworkPolicy"), "{:?}", reader.health.notes());
    server.put(CLUSTER_POLICIES, cluster_policy("a"));
    server.set_faults(newest_only());
    reader.until(&["a"]).await;
}

#[tokio::test]
async fn a_kind_that_is_not_there_for_a_moment_at_the_start_is_not_listed_as_empty() {
    let server = ApiServer::start().await;
    server.put(CLUSTER_POLICIES, cluster_policy("a"));
    server.set_faults(not_there());
    let mut reader = read(&server, vec![Wanted::ClusterNetworkPolicies]).await;
    while reader.withheld == 0 {
        reader.read_one(&[]).await;
    }
    server.set_faults(newest_only());
    reader.until(&["a"]).await;
    assert!(!reader.listed_as.contains(&0), "what an earlier run put in force stays so");
}

#[tokio::test]
async fn nobody_waits_for_ever_for_a_kind_that_may_be_absent_and_whose_list_fails() {
    let server = ApiServer::start().await;
    server.put(CLUSTER_POLICIES, cluster_policy("a"));
    server.set_faults(Faults { forbid: Some("clusternetworkpolicies"), forbid_as: Some(500), ..Faults::default() });
    let begun = Instant::now();
    let mut reader = read(&server, vec![Wanted::ClusterNetworkPolicies]).await;
    while reader.withheld == 0 {
        reader.read_one(&[]).await;
    }
    assert!(begun.elapsed() >= TIMING.gone && reader.listed_as.is_empty());
    assert_eq!(reader.outages, 1);
    server.set_faults(Faults::default());
    reader.until(&["a"]).await;
}

#[tokio::test]
async fn nobody_waits_for_ever_for_a_kind_that_may_not_be_read_while_discovery_fails() {
    let server = ApiServer::start().await;
    server.put(CLUSTER_POLICIES, cluster_policy("a"));
    // Discovery is refused as well.
    server.set_faults(Faults { forbid: Some("policy.networking.k8s.io"), ..Faults::default() });
    let begun = Instant::now();
    let mut reader = read(&server, vec![Wanted::ClusterNetworkPolicies]).await;
    while reader.withheld == 0 {
        reader.read_one(&[]).await;
    }
    assert!(begun.elapsed() >= TIMING.gone && reader.listed_as.is_empty());
    server.set_faults(Faults::default());
    reader.until(&["a"]).await;
}

/// Servers that start may answer 404 before they know their custom resources; before and behind that they are not there.
#[tokio::test]
async fn a_kind_whose_absence_was_not_answered_all_the_time_is_not_gone() {
    let failing = [
        Faults { forbid: Some("clusternetworkpolicies"), forbid_as: Some(503), ..Faults::default() },
        // Nor may discovery be read.
        Faults { forbid: Some("policy.networking.k8s.io"), ..Faults::default() },
    ];
    for failing in failing {
        let server = ApiServer::start().await;
        server.put(CLUSTER_POLICIES, cluster_policy("a"));
        let mut reader = read(&server, vec![Wanted::ClusterNetworkPolicies]).await;
        reader.until(&["a"]).await;
        server.set_faults(not_there());
        server.cut();
        sleep(TIMING.gone / 4).await;
        server.set_faults(failing);
        sleep(TIMING.gone * 2).await;
        server.set_faults(not_there());
        sleep(TIMING.gone / 4).await;
        server.set_faults(newest_only());
        server.put(CLUSTER_POLICIES, cluster_policy("b"));
        reader.until(&["a", "b"]).await;
        assert!(!reader.listed_as.contains(&0), "what was in force stayed so");
    }
}

#[tokio::test]
async fn service_cidrs_are_followed_where_the_server_has_them() {
    let server = ApiServer::start().await;
    server.set_faults(Faults { forbid: Some("servicecidrs"), forbid_as: Some(404), ..Faults::default() });
    let mut reader = read(&server, vec![Wanted::ServiceCidrs]).await;
    while reader.listed_as.is_empty() {
        reader.read_one(&[]).await;
    }
    assert_eq!((reader.outages, reader.withheld), (0, 1), "an older server has none, and nobody waits");
    let cidr = |name: &str| json!({"metadata": {"name": name}, "spec": {"cidrs": ["10.96.0.0/12"]}});
    server.put(Kind::ServiceCidr.path(), cidr("kubernetes"));
    server.set_faults(newest_only());
    reader.until(&["kubernetes"]).await;
    server.put(Kind::ServiceCidr.path(), cidr("more"));
    reader.until(&["kubernetes", "more"]).await;
    server.delete(Kind::ServiceCidr.path(), "/more");
    reader.until(&["kubernetes"]).await;
}
