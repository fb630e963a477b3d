//! Cost of reading a cluster of 10,000 Services with 10 endpoints each into the World, from the API and
//! from manifests, and how long one change of an endpoint takes on its way there.
//!
//! `cargo bench --bench sources` prints a table for `docs/benchmarks.md`. The API server is a scripted one in
//! the same process, on another thread, so the times from the API contain its work on the second core.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a measurement may end with a crash")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sluice::k8s::client::{Access, client};
use sluice::k8s::outage::Outages;
use sluice::k8s::{Message, Wanted, manifests, watch as watch_api};
use sluice::model::{Authority, EventClock, Host, Report, World};
use sluice::observe::health::Health;
use sluice::world::{self, Inputs, Known, LastKnown};
use tokio::sync::{mpsc, watch};

#[path = "../../src/k8s/watch/tests/api_server/mod.rs"]
#[allow(dead_code, reason = "this needs no faults")]
mod api_server;

mod memory;

use api_server::{ApiServer, Faults, SERVICES, SLICES};

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

const SIZES: [usize; 3] = [100, 1_000, 10_000];
const ENDPOINTS: usize = 10;
const CHANGES: usize = 200;

/// As a real server sends it: with the fields that nobody reads.
fn service(index: usize) -> Value {
    let address = format!("10.{}.{}.{}", 96 + index / 62_500, index / 250 % 250, 1 + index % 250);
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": format!("service-{index:05}"), "namespace": format!("namespace-{}", index % 50),
            "uid": format!("00000000-0000-0000-0000-{index:012}"), "creationTimestamp": "2026-11-20T08:00:00Z",
            "labels": {"app": format!("app-{index}")},
            "managedFields": [{"manager": "kubectl", "operation": "Update", "apiVersion": "v1",
                "time": "2026-11-20T08:00:00Z", "fieldsType": "FieldsV1",
                "fieldsV1": {"f:spec": {"f:internalTrafficPolicy": {}, "f:ports": {".": {},
                    "k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}, "f:protocol": {}, "f:targetPort": {}}},
                    "f:selector": {}, "f:sessionAffinity": {}, "f:type": {}}}}]},
        "spec": {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
            "internalTrafficPolicy": "Cluster", "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}],
            "selector": {"app": format!("app-{index}")}, "sessionAffinity": "None"},
        "status": {"loadBalancer": {}}})
}

fn slice(index: usize, version: usize) -> Value {
    let endpoint = |number: usize| {
        let host = (index * ENDPOINTS + number + version) % 62_500;
        json!({"addresses": [format!("10.244.{}.{}", host / 250, 1 + host % 250)],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": format!("node-{:03}", host % 500),
            "targetRef": {"kind": "Pod", "name": format!("service-{index:05}-{number}"),
                "namespace": format!("namespace-{}", index % 50), "uid": format!("00000000-0000-0000-0001-{host:012}")}})
    };
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": format!("service-{index:05}-abcde"), "namespace": format!("namespace-{}", index % 50),
            "generateName": format!("service-{index:05}-"), "uid": format!("00000000-0000-0000-0002-{index:012}"),
            "labels": {"endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": format!("service-{index:05}")}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": (0..ENDPOINTS).map(endpoint).collect::<Vec<_>>()})
}

const WANTED: [Wanted; 2] = [Wanted::Services, Wanted::EndpointSlices];

struct Reader {
    world: watch::Receiver<World>,
    clock: Arc<EventClock>,
    _host: watch::Sender<Arc<Host>>,
}

fn reader(messages: mpsc::Receiver<Message>) -> Reader {
    let (host, host_receiver) = watch::channel(Arc::new(Host::default()));
    let (out, world) = watch::channel(World::empty());
    let (report, _) = watch::channel(Report::default());
    let clock = Arc::new(EventClock::new(Instant::now()));
    let clocks = vec![clock.clone()];
    let note = Health::default().note("node");
    let inputs = Inputs {
        messages,
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
    Reader { world, clock, _host: host }
}

impl Reader {
    async fn complete(&mut self, services: usize) -> World {
        let is_complete = |world: &World| world.authority.proxy == Authority::Complete;
        let world = self.world.wait_for(is_complete).await.unwrap().clone();
        assert_eq!((world.cluster.services.len(), world.cluster.endpoints.len()), (services, services));
        self.clock.take();
        world
    }

    /// Makes changes one by one; returns how long each took from the call and from the source's first sight.
    async fn changes(&mut self, count: usize, mut make: impl FnMut(usize)) -> (Vec<Duration>, Vec<Duration>) {
        let (mut from_call, mut from_sight) = (Vec::new(), Vec::new());
        self.world.borrow_and_update();
        for version in 1..=count {
            let began = Instant::now();
            make(version);
            self.world.changed().await.unwrap();
            self.world.borrow_and_update();
            from_call.push(began.elapsed());
            from_sight.push(self.clock.take().unwrap().elapsed());
        }
        from_call.sort();
        from_sight.sort();
        (from_call, from_sight)
    }
}

fn print(name: &str, services: usize, read: Duration, memory: (isize, isize), changes: (Vec<Duration>, Vec<Duration>)) {
    let mib = |bytes: isize| bytes as f64 / f64::from(1 << 20);
    let at = |times: &[Duration], share: usize| times[times.len() * share / 100].as_secs_f64() * 1e3;
    println!(
        "| {name} | {services} | {:.0} | {:.2} / {:.2} | {:.2} / {:.2} | {:.1} | {:.1} |",
        read.as_secs_f64() * 1e3,
        at(&changes.0, 50),
        at(&changes.0, 99),
        at(&changes.1, 50),
        at(&changes.1, 99),
        mib(memory.0),
        mib(memory.1)
    );
}

/// The server on a thread of its own; calls go to it through the returned value, which is shared.
fn server(services: usize, streaming: bool) -> Arc<ApiServer> {
    let (out, server) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = Arc::new(ApiServer::start().await);
            for index in 0..services {
                server.put(SERVICES, service(index));
                server.put(SLICES, slice(index, 0));
            }
            let refuse_streaming = (!streaming).then_some(422);
            server.set_faults(Faults { refuse_streaming, ..Faults::default() });
            out.send(server).unwrap();
            std::future::pending::<()>().await;
        });
    });
    server.recv().unwrap()
}

async fn from_api(name: &str, services: usize, streaming: bool) {
    let server = server(services, streaming);
    let master = format!("http://{}", server.address).parse().unwrap();
    let client = client(&Access { kubeconfig: None, master: Some(master) }).await.unwrap();
    let mark = memory::mark();
    let began = Instant::now();
    let (out, messages) = mpsc::channel(1024);
    let running = tokio::spawn(watch_api::run(client, WANTED.to_vec(), Outages::new().unwrap(), out));
    let mut reader = reader(messages);
    reader.complete(services).await;
    let read = began.elapsed();
    let memory = memory::since(mark);
    let changes = reader.changes(CHANGES, |version| server.put(SLICES, slice(version * 7 % services, version))).await;
    print(name, services, read, memory, changes);
    running.abort();
}

fn yaml(value: &Value) -> String {
    format!("---\n{}", serde_saphyr::to_string(value).unwrap())
}

async fn from_manifests(
    name: &str,
    services: usize,
    file_of: impl Fn(usize) -> String,
    text_of: impl Fn(&[Value]) -> String,
) {
    let directory = tempfile::tempdir().unwrap();
    let write = |file: &str, objects: &[Value]| replace(directory.path(), file, &text_of(objects));
    let mut files: std::collections::BTreeMap<String, Vec<Value>> = std::collections::BTreeMap::new();
    for index in 0..services {
        files.entry(file_of(index)).or_default().extend([service(index), slice(index, 0)]);
    }
    files.iter().for_each(|(file, objects)| write(file, objects));
    let mark = memory::mark();
    let began = Instant::now();
    let (out, messages) = mpsc::channel(1024);
    manifests::spawn(directory.path().to_owned(), WANTED.to_vec(), Outages::new().unwrap(), out).unwrap();
    let mut reader = reader(messages);
    let world = reader.complete(services).await;
    let read = began.elapsed();
    let memory = memory::since(mark);
    // Making the texts is no part of a change. A file with everything is large: fewer of them will do.
    let count = if files.len() == 1 { 20 } else { CHANGES };
    let texts: Vec<(String, String)> = (1..=count)
        .map(|version| {
            let (index, file) = (version * 7 % services, file_of(version * 7 % services));
            let changed = slice(index, version);
            let objects = files.get_mut(&file).unwrap();
            let place = objects.iter().position(|object| object["metadata"]["name"] == changed["metadata"]["name"]);
            objects[place.unwrap()] = changed;
            (file, text_of(objects))
        })
        .collect();
    let changes = reader.changes(count, |version| {
        let (file, text) = &texts[version - 1];
        replace(directory.path(), file, text);
    });
    print(name, services, read, memory, changes.await);
    if services == 10_000 && files.len() == services {
        last_known(&world);
    }
}

fn replace(directory: &Path, file: &str, text: &str) {
    std::fs::write(directory.join("new"), text).unwrap();
    std::fs::rename(directory.join("new"), directory.join(file)).unwrap();
}

/// The last known state of a World: how large, how long to write and to read.
fn last_known(world: &World) {
    let directory = tempfile::tempdir().unwrap();
    let file = LastKnown::new(directory.path());
    let began = Instant::now();
    let kinds = WANTED.iter().map(Wanted::kind).collect();
    file.write(&Known { cluster: world.cluster.clone(), kinds, all_nodes: false }).unwrap();
    let written = began.elapsed();
    let began = Instant::now();
    let read = file.read().unwrap().unwrap();
    println!(
        "last known state: {} Services, {} KiB, written in {:.0} ms, read in {:.0} ms",
        read.cluster.services.len(),
        std::fs::metadata(file.path()).unwrap().len() >> 10,
        written.as_secs_f64() * 1e3,
        began.elapsed().as_secs_f64() * 1e3
    );
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    println!("{ENDPOINTS} endpoints a Service; times in ms, memory in MiB");
    println!(
        "| source | Services | read whole | one change p50 / p99, from its making | from its being seen | kept | highest |"
    );
    println!("|---|---|---|---|---|---|---|");
    for services in SIZES {
        from_api("API, streaming list", services, true).await;
        from_api("API, pages", services, false).await;
        let all = |values: &[Value]| values.iter().map(yaml).collect::<String>();
        from_manifests("YAML, a file for each Service", services, |index| format!("service-{index:05}.yaml"), all)
            .await;
        from_manifests("YAML, one file", services, |_| "all.yaml".to_owned(), all).await;
        let list = |values: &[Value]| json!({"apiVersion": "v1", "kind": "List", "items": values}).to_string();
        from_manifests("JSON, one List", services, |_| "all.json".to_owned(), list).await;
    }
}
