mod remembered;

use std::path::Path;

use serde_json::json;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use crate::k8s::client::{Access, client};
use crate::k8s::watch::tests::api_server::{self, ApiServer};
use crate::model::{Attachment, AttachmentId, Authority, Change, HostAddress, ObjectName, Pod, Report};
use crate::net::NodeAnnotations;
use crate::observe::given::logged;
use crate::observe::health::Health;

struct Rig {
    messages: mpsc::Sender<Message>,
    host: watch::Sender<Arc<Host>>,
    world: watch::Receiver<World>,
    report: watch::Receiver<Report>,
    clock: Arc<EventClock>,
    origin: Instant,
    stop: oneshot::Sender<()>,
    running: JoinHandle<()>,
    health: Health,
}

/// A World that is being published, from no messages yet; the runtime's clock stands still until waited for.
fn rig(state_dir: Option<&Path>) -> Rig {
    rig_wanting(vec![Wanted::Services], state_dir)
}

fn rig_wanting(wanted: Vec<Wanted>, state_dir: Option<&Path>) -> Rig {
    rig_attaching(wanted, state_dir, None)
}

fn rig_attaching(wanted: Vec<Wanted>, state_dir: Option<&Path>, attaching: Option<Attaching>) -> Rig {
    let (messages, receiver) = mpsc::channel(16);
    let (host, host_receiver) = watch::channel(Arc::new(Host { node_name: "node-1".into(), ..Host::default() }));
    let (out, world) = watch::channel(World::empty());
    let (report_out, report) = watch::channel(Report::default());
    let origin = Instant::now();
    let clock = Arc::new(EventClock::new(origin));
    let last_known = state_dir.map(LastKnown::new);
    let health = Health::default();
    let inputs = Inputs {
        messages: receiver,
        wanted,
        annotations: NodeAnnotations::default(),
        host: host_receiver,
        last_known,
        clocks: vec![clock.clone()],
        report: report_out,
        service_warnings: watch::channel(Default::default()).0,
        sync_timeout: Duration::from_secs(60),
        note: health.note("node"),
        age: health.note("last known state"),
        attaching,
    };
    let (stop, stopped) = oneshot::channel();
    let running = tokio::spawn(run(inputs, out, async move { drop(stopped.await) }));
    Rig { messages, host, world, report, clock, origin, stop, running, health }
}

impl Rig {
    async fn say(&self, milliseconds: u64, event: Event) {
        let seen = self.origin + Duration::from_millis(milliseconds);
        self.messages.send(Message { seen, event }).await.expect("the World is being built");
    }

    async fn put(&self, milliseconds: u64, name: &str, address: &str) {
        let yaml = format!("{{metadata: {{name: {name}}}, spec: {{clusterIP: {address}}}}}");
        let object = serde_saphyr::from_str(&yaml).expect("the test's YAML is sound");
        let (name, service, warnings) = crate::k8s::parse::service::service(&object);
        self.say(milliseconds, Event::Object(Object::Service(name, service.map(Arc::new)), warnings)).await;
    }

    async fn next(&mut self) -> World {
        self.world.changed().await.expect("the World is being built");
        self.world.borrow_and_update().clone()
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_published_before_anything_is_known() {
    let mut rig = rig(None);
    rig.say(1, Event::Listing(Kind::Service)).await;
    rig.put(2, "a", "10.96.0.1").await;
    assert!(tokio::time::timeout(Duration::from_secs(60), rig.world.changed()).await.is_err());
    rig.say(3, Event::Listed(Kind::Service)).await;
    let world = rig.next().await;
    assert_eq!((world.authority.proxy, world.cluster.services.len()), (Authority::Complete, 1));
    assert_eq!(world.host.node_name, "node-1");
}

#[tokio::test(start_paused = true)]
async fn mistakes_in_our_own_node_are_reported_for_as_long_as_they_are_there() {
    let mut rig = rig(None);
    let node = |name: &str, annotation: &str, network: &str| {
        let yaml = format!(
            "{{metadata: {{name: {name}, annotations: {{kube-router.io/node.asn: '{annotation}'}}}}, \
             status: {{conditions: [{{type: NetworkUnavailable, status: '{network}'}}]}}}}"
        );
        let object = serde_saphyr::from_str(&yaml).expect("the test's YAML is sound");
        let (object, warnings) = crate::k8s::parse::node_object(&object, &mut crate::k8s::parse::Pool::default());
        Event::Object(object, warnings)
    };
    rig.say(1, node("node-2", "none", "True")).await;
    rig.say(2, node("node-1", "many", "True")).await;
    rig.report.changed().await.expect("the World is being built");
    let report = rig.report.borrow_and_update().clone();
    let mistake = "kube-router.io/node.asn: \"many\" is not an AS number; the node has none";
    assert_eq!((report.is_denied, report.mistakes), (true, [mistake.to_owned()].into()), "of others nothing is said");
    rig.say(3, node("node-1", "65001", "False")).await;
    rig.report.changed().await.expect("the World is being built");
    assert_eq!(*rig.report.borrow_and_update(), Report::default());
}

#[tokio::test(start_paused = true)]
async fn the_earliest_event_of_all_that_a_consumer_slept_through_is_its_time() {
    let mut rig = rig(None);
    rig.say(1, Event::Listing(Kind::Service)).await;
    rig.say(2, Event::Listed(Kind::Service)).await;
    rig.next().await;
    rig.clock.take();
    rig.put(5, "a", "10.96.0.1").await;
    rig.put(4, "b", "10.96.0.2").await;
    rig.next().await;
    rig.put(6, "c", "10.96.0.3").await;
    rig.next().await;
    assert_eq!(rig.clock.take(), Some(rig.origin + Duration::from_millis(4)));
    rig.put(7, "c", "10.96.0.3").await;
    assert!(tokio::time::timeout(Duration::from_secs(60), rig.world.changed()).await.is_err(), "equal is no change");
    assert_eq!(rig.clock.take(), None);
}

#[tokio::test(start_paused = true)]
async fn objects_that_belong_together_are_published_together() {
    let mut rig = rig(None);
    rig.say(1, Event::Listing(Kind::Service)).await;
    rig.say(2, Event::Listed(Kind::Service)).await;
    rig.next().await;
    rig.clock.take();
    rig.say(4, Event::Together(true)).await;
    rig.put(5, "a", "10.96.0.1").await;
    assert!(tokio::time::timeout(Duration::from_secs(60), rig.world.changed()).await.is_err(), "one without the other");
    rig.put(6, "b", "10.96.0.2").await;
    rig.say(7, Event::Together(false)).await;
    assert_eq!(rig.next().await.cluster.services.len(), 2);
    assert_eq!(rig.clock.take(), Some(rig.origin + Duration::from_millis(5)));
}

#[tokio::test(start_paused = true)]
async fn a_new_address_of_the_host_is_a_new_world() {
    let mut rig = rig(None);
    rig.say(1, Event::Listing(Kind::Service)).await;
    rig.say(1, Event::Listed(Kind::Service)).await;
    rig.next().await;
    let address = HostAddress { address: "192.0.2.1".parse().expect("sound"), link: "eth0".into(), global: true };
    let host = Host { node_name: "node-1".into(), addresses: vec![address], ..Host::default() };
    rig.host.send_replace(Arc::new(host.clone()));
    assert_eq!(*rig.next().await.host, host);
    rig.host.send_replace(Arc::new(host));
    assert!(tokio::time::timeout(Duration::from_secs(60), rig.world.changed()).await.is_err());
}

/// A World of the cluster that a server holds.
fn from_api(client: crate::k8s::client::ApiClient, state_dir: &Path, wanted: &[Wanted]) -> Rig {
    let (messages, receiver) = mpsc::channel(256);
    let (host, host_receiver) = watch::channel(Arc::new(Host::default()));
    let (out, world) = watch::channel(World::empty());
    let (report_out, report) = watch::channel(Report::default());
    let origin = Instant::now();
    let clock = Arc::new(EventClock::new(origin));
    let wanted = wanted.to_vec();
    let outages = crate::k8s::outage::Outages::new().expect("valid names");
    tokio::spawn(crate::k8s::watch::run(client, wanted.clone(), outages, messages.clone()));
    let last_known = Some(LastKnown::new(state_dir));
    let health = Health::default();
    let inputs = Inputs {
        messages: receiver,
        wanted,
        annotations: NodeAnnotations::default(),
        host: host_receiver,
        last_known,
        clocks: vec![clock.clone()],
        report: report_out,
        service_warnings: watch::channel(Default::default()).0,
        sync_timeout: Duration::from_secs(60),
        note: health.note("node"),
        age: health.note("last known state"),
        attaching: None,
    };
    let (stop, stopped) = oneshot::channel();
    let running = tokio::spawn(run(inputs, out, async move { drop(stopped.await) }));
    Rig { messages, host, world, report, clock, origin, stop, running, health }
}

/// Ten thousand Services with ten endpoints each; a change; a restart while the server is away, and its return.
#[tokio::test]
async fn a_large_cluster_is_read_remembered_and_found_again() {
    const SERVICES: usize = 10_000;
    let mut server = ApiServer::start().await;
    let endpoints: Vec<_> = (0..10)
        .map(|last| json!({"addresses": [format!("10.244.1.{last}")], "nodeName": format!("node-{last}")}))
        .collect();
    let slice = |index: usize, endpoints: &[serde_json::Value]| {
        json!({"metadata": {"name": format!("s{index}-a"), "namespace": "default",
            "labels": {"kubernetes.io/service-name": format!("s{index}")}},
            "addressType": "IPv4", "ports": [{"port": 80}], "endpoints": endpoints})
    };
    for index in 0..SERVICES {
        let address = format!("10.96.{}.{}", index / 250, 1 + index % 250);
        server.put(
            api_server::SERVICES,
            json!({"metadata": {"name": format!("s{index}"), "namespace": "default"},
                "spec": {"clusterIP": address, "ports": [{"port": 80}]}}),
        );
        server.put(api_server::SLICES, slice(index, &endpoints));
    }
    let access =
        Access { kubeconfig: None, master: Some(format!("http://{}", server.address).parse().expect("a URL")) };
    let client = client(&access).await.expect("nothing is needed");
    let directory = tempfile::tempdir().expect("a temporary directory");

    let wanted = [Wanted::Services, Wanted::EndpointSlices];
    let mut rig = from_api(client.clone(), directory.path(), &wanted);
    let is = |authority| move |world: &World| world.authority.proxy == authority;
    let world = rig.world.wait_for(is(Authority::Complete)).await.expect("it is being built").clone();
    assert_eq!((world.cluster.services.len(), world.cluster.endpoints.len()), (SERVICES, SERVICES));
    let slices = world.cluster.endpoints.iter().flat_map(|(_, endpoints)| endpoints.slices.values());
    let nodes = slices.flat_map(|slice| slice.endpoints.iter().filter_map(|endpoint| endpoint.node));
    let names: std::collections::HashSet<*const u8> = nodes.map(|name| name.as_ptr()).collect();
    assert_eq!(names.len(), 10, "the name of a node is in memory once");
    server.put(api_server::SLICES, slice(77, &endpoints[1..]));
    let changed = rig.next().await;
    let changes: Vec<_> = changed.cluster.endpoints.changes_since(&world.cluster.endpoints).collect();
    assert_eq!(changes.len(), 1);
    assert_eq!(changed.cluster.services.changes_since(&world.cluster.services).count(), 0);
    rig.stop.send(()).expect("it goes on until now");
    rig.running.await.expect("it ends");

    server.stop();
    let mut rig = from_api(client, directory.path(), &wanted);
    let remembered = rig.world.wait_for(is(Authority::Remembered)).await.expect("it is being built").clone();
    assert_eq!(remembered.cluster.services.changes_since(&changed.cluster.services).count(), 0);
    assert_eq!(remembered.cluster.endpoints.changes_since(&changed.cluster.endpoints).count(), 0);
    server.delete(api_server::SERVICES, "default/s5");
    server.resume().await;
    let world = rig.world.wait_for(is(Authority::Complete)).await.expect("it is being built").clone();
    let changes: Vec<_> = world.cluster.services.changes_since(&remembered.cluster.services).collect();
    assert!(matches!(changes[..], [Change::Removed(name, _)] if name.name == "s5"), "{}", changes.len());
}

/// A policy and its pods are known; the program starts again while the server is away.
#[tokio::test]
async fn policies_are_in_force_again_before_the_server_is() {
    let mut server = ApiServer::start().await;
    let pod = |name: &str, address: &str, resource: usize| {
        json!({"metadata": {"name": name, "namespace": "shop", "labels": {"app": name}, "resourceVersion": resource},
            "spec": {"nodeName": "node-1"}, "status": {"phase": "Running", "podIP": address,
            "conditions": [{"type": "Ready", "lastProbeTime": format!("{resource}")}]}})
    };
    server.put(api_server::NAMESPACES, json!({"metadata": {"name": "shop"}}));
    server.put(api_server::PODS, pod("web", "10.244.1.5", 1));
    server.put(
        api_server::POLICIES,
        json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": {"podSelector": {"matchLabels": {"app": "web"}}}}),
    );
    let access =
        Access { kubeconfig: None, master: Some(format!("http://{}", server.address).parse().expect("a URL")) };
    let client = client(&access).await.expect("nothing is needed");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let wanted = [Wanted::Pods, Wanted::Namespaces, Wanted::NetworkPolicies];
    let is = |authority| move |world: &World| world.authority.firewall == authority;
    let rows = |world: &World| {
        let Cluster { pods, namespaces, policies, .. } = &world.cluster;
        (pods.len(), namespaces.len(), policies.len())
    };

    let mut rig = from_api(client.clone(), directory.path(), &wanted);
    let world = rig.world.wait_for(is(Authority::Complete)).await.expect("it is being built").clone();
    assert_eq!((rows(&world), world.authority.proxy), ((1, 1, 1), Authority::Nothing));
    rig.world.borrow_and_update();
    // The kubelet writes a pod's status often; only the second of these changes anything that is kept.
    server.put(api_server::PODS, pod("web", "10.244.1.5", 2));
    server.put(api_server::PODS, pod("web", "10.244.1.6", 3));
    let world = rig.next().await;
    let address = |pod: &Arc<Pod>| pod.addresses[0].to_string();
    assert!(world.cluster.pods.iter().map(|(_, pod)| address(pod)).eq(["10.244.1.6"]), "one World, not two");
    rig.stop.send(()).expect("it goes on until now");
    rig.running.await.expect("it ends");

    server.stop();
    let mut rig = from_api(client, directory.path(), &wanted);
    let remembered = rig.world.wait_for(is(Authority::Remembered)).await.expect("it is being built").clone();
    assert_eq!(rows(&remembered), (1, 1, 1));
    assert_eq!(remembered.cluster.pods.changes_since(&world.cluster.pods).count(), 0);
    assert_eq!(remembered.cluster.policies.changes_since(&world.cluster.policies).count(), 0);
    // The API has a new version of the policy, which cannot be understood: the good one stays in force.
    let sideways = json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": {"policyTypes": ["Sideways"]}});
    server.put(api_server::POLICIES, sideways.clone());
    server.resume().await;
    let world = rig.world.wait_for(is(Authority::Complete)).await.expect("it is being built").clone();
    assert_eq!(world.cluster.policies.changes_since(&remembered.cluster.policies).count(), 0);
    rig.stop.send(()).expect("it goes on until now");
    rig.running.await.expect("it ends");
    let access =
        Access { kubeconfig: None, master: Some(format!("http://{}", server.address).parse().expect("a URL")) };
    let client = crate::k8s::client::client(&access).await.expect("nothing is needed");
    let mut rig = from_api(client.clone(), directory.path(), &wanted);
    let world = rig.world.wait_for(is(Authority::Complete)).await.expect("it is being built").clone();
    assert_eq!(rows(&world), (1, 1, 1), "it is found on disk");
    let elsewhere = tempfile::tempdir().expect("a temporary directory");
    let mut rig = from_api(client, elsewhere.path(), &wanted);
    let world = rig.world.wait_for(is(Authority::Partial)).await.expect("it is being built").clone();
    assert_eq!(rows(&world), (1, 1, 0), "it was never known here");
}

#[test]
fn a_pod_is_small() {
    // One or two addresses included.
    assert!(size_of::<Pod>() <= 96, "{}", size_of::<Pod>());
}

#[test]
fn an_endpoint_is_small() {
    // Its hints, which few have, are elsewhere.
    assert!(size_of::<crate::model::Endpoint>() <= 48, "{}", size_of::<crate::model::Endpoint>());
}

#[tokio::test(start_paused = true)]
async fn a_cluster_that_is_not_known_in_time_is_said_to_be_so_once_and_waited_for() {
    for is_in_time in [true, false] {
        let (log, _guard) = logged();
        let mut rig = rig(None);
        rig.say(1, Event::Listing(Kind::Service)).await;
        if is_in_time {
            rig.say(2, Event::Listed(Kind::Service)).await;
        }
        tokio::time::sleep(Duration::from_secs(600)).await;
        let text = log.text();
        let count = text.matches("within --cache-sync-timeout").count();
        assert_eq!(count, usize::from(!is_in_time), "{text}");
        if !is_in_time {
            assert!(text.contains("missing=Service"), "{text}");
            rig.say(3, Event::Listed(Kind::Service)).await;
            assert_eq!(rig.next().await.authority.proxy, Authority::Complete);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_the_cluster_does_not_have_is_named_until_it_has_it() {
    let rig = rig_wanting(vec![Wanted::Node("node-1".into())], None);
    let node = |name: &str| {
        let object =
            serde_saphyr::from_str(&format!("{{metadata: {{name: {name}}}}}")).expect("the test's YAML is sound");
        let (object, warnings) = crate::k8s::parse::node_object(&object, &mut crate::k8s::parse::Pool::default());
        Event::Object(object, warnings)
    };
    let notes = async || {
        tokio::time::sleep(Duration::from_millis(1)).await;
        rig.health.notes().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    rig.say(1, Event::Listing(Kind::Node)).await;
    rig.say(2, node("node-2")).await;
    assert_eq!(notes().await, Vec::<String>::new(), "it may still come");
    rig.say(3, Event::Listed(Kind::Node)).await;
    let missing =
        "node: the cluster has no Node \"node-1\"; --hostname-override or NODE_NAME must name this host's Node";
    assert_eq!(notes().await, [missing]);
    rig.say(4, node("node-1")).await;
    assert_eq!(notes().await, Vec::<String>::new());
    rig.say(5, Event::Object(Object::Node("node-1".into(), None), Vec::new())).await;
    assert_eq!(notes().await, [missing]);
}

#[tokio::test(start_paused = true)]
async fn announced_pods_that_could_not_be_written_are_written_when_they_can_be() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = AttachmentsFile::beside(&directory.path().join("run/cni.sock"));
    let (calls, changes) = mpsc::channel(4);
    let attaching = Some(Attaching { changes, file: file.clone() });
    let _rig = rig_attaching(vec![Wanted::Pods], None, attaching);
    let attachment = Attachment {
        id: AttachmentId { container: "c1".into(), interface: "eth0".into() },
        network: "mynet".into(),
        pod: ObjectName::new("shop", "web"),
        uid: None,
        addresses: ["10.244.1.7".parse().expect("an address")].into(),
    };
    calls.send(AttachmentChange::Add(attachment.clone())).await.expect("the World is being built");
    tokio::time::sleep(Duration::from_millis(1)).await;
    std::fs::create_dir(directory.path().join("run")).expect("writable");
    assert_eq!(file.read().expect("no file is no mistake"), []);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(file.read().expect("it is there"), [attachment], "nothing has changed meanwhile");
}
