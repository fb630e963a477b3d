//! Cost of the firewall's inputs: 5,000 and 50,000 pods and 1,000 policies, parsed, kept, changed, written down and
//! read again.
//!
//! `cargo bench --bench pods` prints tables for `docs/benchmarks.md`. Pods are as a real server sends them, with all that
//! nobody reads; four of five belong to a template of twenty, the fifth to a stateful set, whose pods have labels of their
//! own. Every pod has addresses of both families.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a measurement may end with a crash")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sluice::k8s::client::{Access, client};
use sluice::k8s::outage::Outages;
use sluice::k8s::parse::{Pool, namespace_object, network_policy_object, pod_object};
use sluice::k8s::{Event, Kind, Message, Object, Wanted, Warning, watch as watch_api};
use sluice::model::{Authority, EventClock, Host, Report, World};
use sluice::observe::health::Health;
use sluice::world::{self, Inputs, Known, LastKnown};
use tokio::sync::{mpsc, watch};

#[path = "../../src/k8s/watch/tests/api_server/mod.rs"]
#[allow(dead_code, reason = "this needs no faults")]
mod api_server;
mod memory;

use api_server::{ApiServer, NAMESPACES, PODS, POLICIES};

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

const SIZES: [usize; 2] = [5_000, 50_000];
const POLICY_COUNT: usize = 1_000;
const NAMESPACE_COUNT: usize = 100;
const CHANGES: usize = 500;
const WANTED: [Wanted; 3] = [Wanted::Pods, Wanted::Namespaces, Wanted::NetworkPolicies];

fn pod(index: usize, label: usize, probe: usize) -> Value {
    let template = index / 20;
    let name = if index % 5 == 4 {
        format!("database-{}-{}", template, index % 20)
    } else {
        format!("application-{template:04}-7d9f8b6c5d-{:05x}", index * 7919 % (1 << 20))
    };
    let mut labels = json!({"app.kubernetes.io/name": format!("application-{template:04}"), "app.kubernetes.io/instance":
        "production", "app.kubernetes.io/component": "server", "pod-template-hash": "7d9f8b6c5d"});
    if index % 5 == 4 {
        labels["statefulset.kubernetes.io/pod-name"] = json!(name);
        labels["apps.kubernetes.io/pod-index"] = json!((index % 20).to_string());
    }
    if label > 0 {
        labels["version"] = json!(label.to_string());
    }
    let (v4, v6) = (
        format!("10.{}.{}.{}", 244 + index / 65_536, index / 256 % 256, index % 256),
        format!("fd00:10:244::{index:x}"),
    );
    let time = "2026-11-20T08:00:00Z";
    let probe = json!({"httpGet": {"path": "/healthz", "port": "http", "scheme": "HTTP"}, "initialDelaySeconds": 5,
        "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3 + probe});
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": format!("namespace-{:03}", template % NAMESPACE_COUNT),
            "generateName": format!("application-{template:04}-7d9f8b6c5d-"), "labels": labels,
            "uid": format!("00000000-0000-0000-0000-{index:012}"), "creationTimestamp": time,
            "annotations": {"checksum/config": "3b5d5c3712955042212316173ccf37be8001e3a6f0b1f1c1a9d8f6f2f0a1b2c3",
                "prometheus.io/scrape": "true", "prometheus.io/port": "9090"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": true,
                "name": format!("application-{template:04}-7d9f8b6c5d"), "uid": "00000000-0000-0000-0003-000000000000"}],
            "managedFields": [{"manager": "kubelet", "operation": "Update", "apiVersion": "v1", "time": time,
                "fieldsType": "FieldsV1", "subresource": "status", "fieldsV1": {"f:status": {"f:conditions": {
                    "k:{\"type\":\"ContainersReady\"}": {".": {}, "f:lastProbeTime": {}, "f:status": {}, "f:type": {}},
                    "k:{\"type\":\"Ready\"}": {".": {}, "f:lastProbeTime": {}, "f:status": {}, "f:type": {}}},
                    "f:containerStatuses": {}, "f:hostIP": {}, "f:phase": {}, "f:podIP": {}, "f:podIPs": {".": {},
                    "k:{\"ip\":\"10.244.1.1\"}": {".": {}, "f:ip": {}}}, "f:startTime": {}}}}]},
        "spec": {"nodeName": format!("node-{:04}", index / 110), "serviceAccountName": "default",
            "containers": [{"name": "server", "image": "registry.example/application:1.2.3", "args": ["--port=8080"],
                "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "LOG_LEVEL", "value": "info"}],
                "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"},
                    {"name": "metrics", "containerPort": 9090, "protocol": "TCP"}],
                "resources": {"limits": {"cpu": "1", "memory": "512Mi"}, "requests": {"cpu": "100m", "memory": "128Mi"}},
                "livenessProbe": probe, "readinessProbe": probe, "imagePullPolicy": "IfNotPresent",
                "volumeMounts": [{"name": "kube-api-access", "readOnly": true,
                    "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}]}],
            "volumes": [{"name": "kube-api-access", "projected": {"defaultMode": 420, "sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}}]}}],
            "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler",
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": 300}], "securityContext": {}, "terminationGracePeriodSeconds": 30},
        "status": {"phase": "Running", "hostIP": "192.0.2.1", "podIP": v4, "podIPs": [{"ip": v4}, {"ip": v6}],
            "startTime": time, "qosClass": "Burstable", "conditions": [
                {"type": "Initialized", "status": "True", "lastProbeTime": null, "lastTransitionTime": time},
                {"type": "Ready", "status": "True", "lastProbeTime": null, "lastTransitionTime": time},
                {"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": time}],
            "containerStatuses": [{"name": "server", "ready": true, "restartCount": 0, "started": true,
                "image": "registry.example/application:1.2.3", "state": {"running": {"startedAt": time}},
                "containerID": "containerd://0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"}]}})
}

fn policy(index: usize) -> Value {
    let application = |number: usize| json!({"app.kubernetes.io/name": format!("application-{number:04}")});
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": format!("policy-{index:04}"), "namespace": format!("namespace-{:03}", index % NAMESPACE_COUNT),
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{\"apiVersion\":\"networking.k8s.io/v1\"}"}},
        "spec": {"podSelector": {"matchLabels": application(index)}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": application(index + 1)}},
                {"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "In", "values": ["blue", "red"]}]}},
                {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}],
                "ports": [{"protocol": "TCP", "port": "http"}, {"protocol": "TCP", "port": 9090}]}],
            "egress": [{"to": [{"namespaceSelector": {}}], "ports": [{"protocol": "UDP", "port": 53}]}]}})
}

fn namespace(index: usize) -> Value {
    let team = ["blue", "red", "green"][index % 3];
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": format!("namespace-{index:03}"),
        "labels": {"team": team}}, "status": {"phase": "Active"}})
}

type Parsed = (Object, Vec<Warning>);

fn parsed<T: serde::de::DeserializeOwned>(text: &str, object: fn(&T, &mut Pool) -> Parsed, pool: &mut Pool) -> Event {
    let (object, warnings) = object(&serde_json::from_str(text).unwrap(), pool);
    assert!(warnings.is_empty(), "{warnings:?}");
    Event::Object(object, warnings)
}

/// A World that is fed by hand.
struct Fed {
    messages: mpsc::Sender<Message>,
    world: watch::Receiver<World>,
    clock: Arc<EventClock>,
    _host: watch::Sender<Arc<Host>>,
}

fn fed() -> Fed {
    let (messages, receiver) = mpsc::channel(4096);
    let (host, host_receiver) = watch::channel(Arc::new(Host::default()));
    let (out, world) = watch::channel(World::empty());
    let (report, _) = watch::channel(Report::default());
    let clock = Arc::new(EventClock::new(Instant::now()));
    let clocks = vec![clock.clone()];
    let note = Health::default().note("node");
    let inputs = Inputs {
        messages: receiver,
        wanted: WANTED.to_vec(),
        annotations: sluice::net::NodeAnnotations::default(),
        host: host_receiver,
        last_known: None,
        clocks,
        report,
        service_warnings: watch::channel(Default::default()).0,
        sync_timeout: Duration::MAX,
        age: note.clone(),
        note,
        attaching: None,
    };
    tokio::spawn(world::run(inputs, out, std::future::pending()));
    Fed { messages, world, clock, _host: host }
}

impl Fed {
    async fn tell(&self, event: Event) {
        self.messages.send(Message { seen: Instant::now(), event }).await.unwrap();
    }

    async fn complete(&mut self, pods: usize) -> World {
        let is_complete = |world: &World| world.authority.firewall == Authority::Complete;
        let world = self.world.wait_for(is_complete).await.unwrap().clone();
        let counts = (world.cluster.pods.len(), world.cluster.policies.len());
        assert_eq!(counts, (pods, POLICY_COUNT));
        self.clock.take();
        world
    }
}

/// Resident memory of this process, in bytes.
fn resident() -> isize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<isize>().unwrap() * 4096
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Parses and keeps everything, one object at a time, as they come from a socket.
async fn parse_and_keep(pods: usize) {
    let mut pool = Pool::default();
    let text = pod(0, 0, 0).to_string();
    let first = parsed(&text, pod_object, &mut pool);
    let (allocated, before) = (memory::mark(), resident());
    let mut fed = fed();
    let mut parsing = Duration::ZERO;
    for (kind, count) in [(Kind::Namespace, NAMESPACE_COUNT), (Kind::NetworkPolicy, POLICY_COUNT), (Kind::Pod, pods)] {
        fed.tell(Event::Listing(kind)).await;
        for index in 0..count {
            let text = match kind {
                Kind::Pod => pod(index, 0, 0).to_string(),
                Kind::NetworkPolicy => policy(index).to_string(),
                _ => namespace(index).to_string(),
            };
            let began = Instant::now();
            let event = match kind {
                Kind::Pod => parsed(&text, pod_object, &mut pool),
                Kind::NetworkPolicy => parsed(&text, network_policy_object, &mut pool),
                _ => parsed(&text, namespace_object, &mut pool),
            };
            parsing += began.elapsed();
            fed.tell(event).await;
        }
        fed.tell(Event::Listed(kind)).await;
    }
    let world = fed.complete(pods).await;
    let (live, peak) = memory::since(allocated);
    let grown = resident() - before;
    let each = |bytes: isize| bytes / pods as isize;
    println!(
        "| {pods} | {} | {:.0} | {:.1} | {} | {} | {} |",
        text.len(),
        milliseconds(parsing),
        parsing.as_secs_f64() * 1e6 / (pods + POLICY_COUNT) as f64,
        each(live),
        each(peak),
        each(grown),
    );
    drop(first);
    change(&mut fed, &mut pool, pods).await;
    last_known(&world);
}

/// One label of one pod, and then a status that nobody reads.
async fn change(fed: &mut Fed, pool: &mut Pool, pods: usize) {
    let mut times = Vec::new();
    fed.world.borrow_and_update();
    for turn in 1..=CHANGES {
        let text = pod(turn * 7919 % pods, turn, 0).to_string();
        let began = Instant::now();
        fed.tell(parsed(&text, pod_object, pool)).await;
        fed.world.changed().await.unwrap();
        fed.world.borrow_and_update();
        times.push(began.elapsed());
        fed.clock.take();
    }
    times.sort();
    for turn in 1..=CHANGES {
        let text = pod(turn * 7919 % pods, turn, 1).to_string();
        fed.tell(parsed(&text, pod_object, pool)).await;
    }
    fed.messages.reserve_many(4096).await.map(drop).unwrap();
    tokio::task::yield_now().await;
    assert!(!fed.world.has_changed().unwrap(), "a status that nobody reads made a World");
    let at = |share: usize| times[times.len() * share / 100].as_secs_f64() * 1e6;
    println!("    one label of one pod, from its text to the World: p50 {:.0} µs, p99 {:.0} µs", at(50), at(99));
}

fn last_known(world: &World) {
    let directory = tempfile::tempdir().unwrap();
    let file = LastKnown::new(directory.path());
    let known =
        Known { cluster: world.cluster.clone(), kinds: WANTED.iter().map(Wanted::kind).collect(), all_nodes: false };
    let mark = memory::mark();
    let began = Instant::now();
    file.write(&known).unwrap();
    let (written, (_, peak)) = (began.elapsed(), memory::since(mark));
    let began = Instant::now();
    let read = file.read().unwrap().unwrap();
    println!(
        "    last known state: {} pods, {} KiB, written in {:.0} ms with {:.1} MiB at most, read in {:.0} ms",
        read.cluster.pods.len(),
        std::fs::metadata(file.path()).unwrap().len() >> 10,
        milliseconds(written),
        peak as f64 / f64::from(1 << 20),
        milliseconds(began.elapsed())
    );
}

/// The same from a server, which is on another thread.
async fn from_api(pods: usize) {
    let (out, server) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = Arc::new(ApiServer::start().await);
            (0..pods).for_each(|index| server.put(PODS, pod(index, 0, 0)));
            (0..POLICY_COUNT).for_each(|index| server.put(POLICIES, policy(index)));
            (0..NAMESPACE_COUNT).for_each(|index| server.put(NAMESPACES, namespace(index)));
            out.send(server).unwrap();
            std::future::pending::<()>().await;
        });
    });
    let server = server.recv().unwrap();
    let master = format!("http://{}", server.address).parse().unwrap();
    let client = client(&Access { kubeconfig: None, master: Some(master) }).await.unwrap();
    let mut fed = fed();
    let began = Instant::now();
    let running = tokio::spawn(watch_api::run(client, WANTED.to_vec(), Outages::new().unwrap(), fed.messages.clone()));
    fed.complete(pods).await;
    println!("    from an API server, as a streaming list: {:.1} s", began.elapsed().as_secs_f64());
    running.abort();
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    println!("{POLICY_COUNT} policies, {NAMESPACE_COUNT} namespaces");
    println!("| pods | bytes of one, as JSON | parsed in ms | µs each | bytes kept, a pod | highest | resident |");
    println!("|---|---|---|---|---|---|---|");
    for pods in SIZES {
        parse_and_keep(pods).await;
    }
    for pods in SIZES {
        from_api(pods).await;
    }
}
