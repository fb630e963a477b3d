use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::service::service_fn;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tonic::{Request as Call, Response as Answer};

use super::super::wire::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use super::super::wire::v1::{
    Container, ContainerStatusResponse, LinuxPodSandboxStatus, ListContainersResponse, ListPodSandboxResponse,
    Namespace, NamespaceOption, PodIp, PodSandboxMetadata, PodSandboxNetworkStatus, PodSandboxStatusResponse,
};
use super::*;
use crate::container_runtime::hosts::{QUESTION, Runtimes};

/// A sandbox of the runtime in the tests.
#[derive(Clone, Default)]
struct Told {
    addresses: Vec<&'static str>,
    info: String,
    host_network: bool,
    state: i32,
    /// The `info` of its containers.
    containers: Vec<String>,
    /// Longer than a client waits.
    is_slow: bool,
}

#[derive(Clone, Default)]
struct Fake {
    sandboxes: BTreeMap<String, Told>,
    statuses: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
    /// Entries of all lists.
    listed: Arc<AtomicUsize>,
    /// As Docker's containerd.
    has_no_sandboxes_service: bool,
}

#[tonic::async_trait]
impl RuntimeService for Fake {
    async fn list_pod_sandbox(
        &self,
        call: Call<ListPodSandboxRequest>,
    ) -> Result<Answer<ListPodSandboxResponse>, Status> {
        if self.has_no_sandboxes_service {
            return Err(Status::unimplemented("unknown service runtime.v1.RuntimeService"));
        }
        let labels = call.into_inner().filter.unwrap_or_default().label_selector;
        let is_meant = |id: &String| match labels.get("io.kubernetes.pod.name") {
            Some(name) => name == id && labels["io.kubernetes.pod.namespace"] == "shop",
            None => true,
        };
        let item = |(id, told): (&String, &Told)| PodSandbox {
            id: id.clone(),
            metadata: Some(PodSandboxMetadata {
                name: id.clone(),
                uid: format!("uid-{id}"),
                namespace: "shop".to_owned(),
            }),
            state: told.state,
        };
        let items: Vec<PodSandbox> = self.sandboxes.iter().filter(|(id, _)| is_meant(id)).map(item).collect();
        self.listed.fetch_add(items.len(), Ordering::Relaxed);
        Ok(Answer::new(ListPodSandboxResponse { items }))
    }

    async fn pod_sandbox_status(
        &self,
        call: Call<PodSandboxStatusRequest>,
    ) -> Result<Answer<PodSandboxStatusResponse>, Status> {
        self.statuses.fetch_add(1, Ordering::Relaxed);
        let PodSandboxStatusRequest { pod_sandbox_id: id, verbose } = call.into_inner();
        assert!(verbose, "without it no place is told");
        let Some(told) = self.sandboxes.get(&id).filter(|told| told.info != "gone") else {
            return Err(Status::not_found("no such sandbox"));
        };
        if told.is_slow {
            tokio::time::sleep(CALL * 4).await;
        }
        let mut addresses = told.addresses.iter().map(ToString::to_string);
        let network = PodSandboxNetworkStatus {
            ip: addresses.next().unwrap_or_default(),
            additional_ips: addresses.map(|ip| PodIp { ip }).collect(),
        };
        let mode = if told.host_network { NamespaceMode::Node } else { NamespaceMode::Pod };
        let options = Some(NamespaceOption { network: mode.into() });
        let linux = Some(LinuxPodSandboxStatus { namespaces: Some(Namespace { options }) });
        let status = Some(PodSandboxStatus { id, state: told.state, network: Some(network), linux });
        let info = HashMap::from([("info".to_owned(), told.info.clone())]);
        Ok(Answer::new(PodSandboxStatusResponse { status, info }))
    }

    async fn list_containers(
        &self,
        call: Call<ListContainersRequest>,
    ) -> Result<Answer<ListContainersResponse>, Status> {
        let id = call.into_inner().filter.unwrap_or_default().pod_sandbox_id;
        let count = self.sandboxes.get(&id).map_or(0, |told| told.containers.len());
        let own = (0..count).map(|number| Container { id: format!("{id}/{number}"), pod_sandbox_id: id.clone() });
        // A runtime that does not apply the filter.
        let foreign = Container { id: "other/0".to_owned(), pod_sandbox_id: "other".to_owned() };
        Ok(Answer::new(ListContainersResponse { containers: std::iter::once(foreign).chain(own).collect() }))
    }

    async fn container_status(
        &self,
        call: Call<ContainerStatusRequest>,
    ) -> Result<Answer<ContainerStatusResponse>, Status> {
        let id = call.into_inner().container_id;
        let (sandbox, number) = id.split_once('/').expect("an id of ours");
        let told = self.sandboxes.get(sandbox).and_then(|told| told.containers.get(number.parse::<usize>().ok()?));
        let info = told.cloned().ok_or_else(|| Status::not_found("no such container"))?;
        Ok(Answer::new(ContainerStatusResponse { info: HashMap::from([("info".to_owned(), info)]) }))
    }
}

fn later() -> Instant {
    Instant::now() + CALL * 10
}

/// Everything that a runtime tells.
async fn all(runtime: &mut Runtime) -> Result<Vec<Sandbox>, Failure> {
    Ok(runtime.sandboxes(&Sought::All, later()).await?.sandboxes)
}

/// Serves it at a socket until the handle is aborted.
fn serve(fake: &Fake, socket: &Path) -> JoinHandle<()> {
    let listener = UnixListener::bind(socket).expect("a socket");
    let fake = fake.clone();
    tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            fake.connections.fetch_add(1, Ordering::Relaxed);
            let server = RuntimeServiceServer::new(fake.clone());
            let answer = service_fn(move |request| server.clone().call(request));
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            connections.spawn(builder.serve_connection(TokioIo::new(stream), answer));
        }
    })
}

fn told(addresses: &[&'static str], info: &str) -> Told {
    Told { addresses: addresses.to_vec(), info: info.to_owned(), ..Told::default() }
}

fn fake<const N: usize>(sandboxes: [(&str, Told); N]) -> Fake {
    Fake { sandboxes: sandboxes.map(|(id, told)| (id.to_owned(), told)).into(), ..Fake::default() }
}

/// Sandboxes as lines: id, addresses, places.
fn lines(sandboxes: &[Sandbox]) -> Vec<String> {
    let line = |one: &Sandbox| {
        let addresses: Vec<String> = one.addresses.iter().map(ToString::to_string).collect();
        let places: Vec<String> = one.places.iter().map(|path| path.display().to_string()).collect();
        let host = if one.host_network { " host" } else { "" };
        let PodName { namespace, name } = &one.pod;
        format!("{} {namespace}/{name} {}: {} at {}{host}", one.id, one.uid, addresses.join(" "), places.join(" "))
    };
    sandboxes.iter().map(line).collect()
}

#[tokio::test]
async fn sandboxes_are_found_with_their_addresses_and_places_and_asked_for_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("runtime.sock");
    let spec = r#"{"linux": {"namespaces": [{"type": "network", "path": "/run/netns/cni-a"}]}}"#;
    let fake = fake([
        ("a", told(&["10.244.1.5", "fd00:10:244:1::5"], &format!(r#"{{"pid": 11, "runtimeSpec": {spec}}}"#))),
        ("b", told(&["fd00:10:244:1::6"], r#"{"pid": 12}"#)),
        ("c", Told { containers: vec!["{".to_owned(), r#"{"pid": 13}"#.to_owned()], ..told(&["10.244.1.7"], "{}") }),
        ("d", Told { host_network: true, ..told(&[], r#"{"pid": 14}"#) }),
        ("e", Told { state: PodSandboxState::SandboxNotready.into(), ..told(&["10.244.1.8"], r#"{"pid": 15}"#) }),
        ("f", told(&["10.244.1.9"], "garbage")),
        ("g", told(&[], r#"{"pid": 16}"#)),
        ("h", told(&["nonsense"], r#"{"pid": 17}"#)),
        ("i", told(&["10.244.1.10"], "gone")),
    ]);
    let _server = serve(&fake, &socket);
    let mut runtime = Runtime::new(socket);
    let expected = [
        "a shop/a uid-a: 10.244.1.5 fd00:10:244:1::5 at /run/netns/cni-a /proc/11/ns/net",
        "b shop/b uid-b: fd00:10:244:1::6 at /proc/12/ns/net",
        "c shop/c uid-c: 10.244.1.7 at /proc/13/ns/net",
        "d shop/d uid-d:  at /proc/14/ns/net host",
    ];
    assert_eq!(lines(&all(&mut runtime).await.expect("it answers")), expected);
    let first = fake.statuses.swap(0, Ordering::Relaxed);
    assert_eq!(first, 8, "all that are ready");
    assert_eq!(lines(&all(&mut runtime).await.expect("it answers")), expected);
    // Those of which nothing usable was told are asked for again.
    assert_eq!(fake.statuses.swap(0, Ordering::Relaxed), 4);
    runtime.forget(&["fd00:10:244:1::5".parse().expect("an address")].into());
    assert_eq!(lines(&all(&mut runtime).await.expect("it answers")), expected);
    assert_eq!(fake.statuses.load(Ordering::Relaxed), 5);
    assert_eq!(fake.connections.load(Ordering::Relaxed), 1, "one connection is enough");
}

/// CRI-O makes no process for most sandboxes; what it says of these differs between its versions.
#[tokio::test]
async fn a_sandbox_of_cri_o_is_found_with_a_process_of_its_own_and_without_one() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("crio.sock");
    let spec = |name: &str| {
        format!(
            r#"{{"ociVersion": "1.2.0", "linux": {{"namespaces": [{{"type": "pid"}},
                {{"type": "network", "path": "/var/run/netns/{name}"}}, {{"type": "ipc", "path": "/var/run/ipcns/{name}"}}]}}}}"#
        )
    };
    let with_process = format!(r#"{{"image": "pause:3.10", "pid": 21, "runtimeSpec": {}}}"#, spec("a"));
    let container =
        |pid: u32| format!(r#"{{"sandboxID": "c", "pid": {pid}, "runtimeSpec": {}, "privileged": false}}"#, spec("c"));
    let fake = fake([
        ("a", told(&["10.244.1.5", "fd00:10:244:1::5"], &with_process)),
        ("b", told(&["10.244.1.6"], &format!(r#"{{"runtimeSpec": {}}}"#, spec("b")))),
        // As earlier versions said it.
        ("c", Told { containers: vec![container(0), container(23)], ..told(&["10.244.1.7"], "{}") }),
    ]);
    let _server = serve(&fake, &socket);
    let expected = [
        "a shop/a uid-a: 10.244.1.5 fd00:10:244:1::5 at /var/run/netns/a /proc/21/ns/net",
        "b shop/b uid-b: 10.244.1.6 at /var/run/netns/b",
        "c shop/c uid-c: 10.244.1.7 at /var/run/netns/c",
    ];
    let found = lines(&all(&mut Runtime::new(socket)).await.expect("it answers"));
    assert_eq!(found[..2], expected[..2]);
    assert!(found[2].starts_with(expected[2]), "{found:?}");
}

#[tokio::test]
async fn a_sandbox_that_is_ready_and_tells_no_address_or_place_is_not_taken_for_none() {
    let directory = tempfile::tempdir().expect("a directory");
    let ended = Told { state: PodSandboxState::SandboxNotready.into(), ..told(&["10.244.1.5"], "") };
    let cases = [
        ("without info", told(&["10.244.1.5"], ""), true),
        ("without the address", told(&[], r#"{"pid": 11}"#), true),
        ("of the node's network", Told { host_network: true, ..told(&[], "") }, false),
        ("no longer ready", ended, false),
    ];
    for (name, told, is_lacking) in cases {
        let socket = directory.path().join(name);
        let _server = serve(&fake([("a", told)]), &socket);
        let found = Runtime::new(socket).sandboxes(&Sought::All, later()).await.expect("it lists them");
        assert_eq!(found.lacking.is_some(), is_lacking, "{name}: {:?}", found.lacking);
    }
}

#[tokio::test]
async fn a_runtime_that_starts_again_is_connected_to_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("runtime.sock");
    let fake = fake([("a", told(&["10.244.1.5"], r#"{"pid": 11}"#))]);
    let mut runtime = Runtime::new(socket.clone());
    let failure = all(&mut runtime).await.expect_err("nobody listens");
    assert!(matches!(&failure, Failure::Unreachable(_)), "{failure}");
    let server = serve(&fake, &socket);
    assert_eq!(all(&mut runtime).await.expect("it answers").len(), 1);
    server.abort();
    let _ = server.await;
    std::fs::remove_file(&socket).expect("it is there");
    let failure = all(&mut runtime).await.expect_err("nobody answers");
    assert!(matches!(failure, Failure::Refused(_) | Failure::Unreachable(_)), "{failure}");
    let _server = serve(&fake, &socket);
    assert_eq!(all(&mut runtime).await.expect("it answers").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_does_not_answer_is_given_up_and_one_slow_sandbox_hides_no_other() {
    let directory = tempfile::tempdir().expect("a directory");
    let silent = directory.path().join("silent.sock");
    // It takes connections, and says nothing.
    let _listener = std::os::unix::net::UnixListener::bind(&silent).expect("a socket");
    let mut runtime = Runtime::new(silent);
    assert_eq!(all(&mut runtime).await, Err(Failure::Slow));

    let socket = directory.path().join("slow.sock");
    let slow = || Told { is_slow: true, ..told(&["10.244.1.6"], r#"{"pid": 12}"#) };
    let quick = |id| told(&["10.244.1.5"], id);
    let fake = fake([
        ("a", quick(r#"{"pid": 11}"#)),
        ("b", slow()),
        ("c", quick(r#"{"pid": 13}"#)),
        ("d", slow()),
        ("e", slow()),
        ("f", slow()),
        ("g", quick(r#"{"pid": 14}"#)),
    ]);
    let _server = serve(&fake, &socket);
    let mut runtime = Runtime::new(socket);
    let begun = Instant::now();
    let found = runtime.sandboxes(&Sought::All, begun + QUESTION).await.expect("it lists them");
    assert_eq!(begun.elapsed(), QUESTION, "there is a limit to the whole");
    let ids = |found: &Found| found.sandboxes.iter().map(|one| one.id.to_string()).collect::<Vec<_>>().join(" ");
    assert_eq!((ids(&found).as_str(), found.lacking.as_deref()), ("a c", Some("no answer in time")));
    // What was told before is kept, and those behind the slow ones have their turn.
    let found = runtime.sandboxes(&Sought::All, Instant::now() + QUESTION).await.expect("it lists them");
    assert_eq!((ids(&found).as_str(), found.lacking.is_some()), ("a c g", true));
}

#[tokio::test]
async fn sandboxes_of_named_pods_are_listed_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("runtime.sock");
    let one = || told(&["10.244.1.5"], r#"{"pid": 11}"#);
    let fake = fake([("a", one()), ("b", one()), ("c", one()), ("d", one())]);
    let _server = serve(&fake, &socket);
    let mut runtime = Runtime::new(socket);
    let name = |name: &str| PodName { namespace: "shop".into(), name: name.into() };
    let other = PodName { namespace: "other".into(), name: "c".into() };
    let sought = Sought::Of([name("a"), name("d"), other].into());
    let found = runtime.sandboxes(&sought, later()).await.expect("it answers");
    let ids: Vec<&str> = found.sandboxes.iter().map(|one| one.id.as_str()).collect();
    assert_eq!((ids, fake.listed.swap(0, Ordering::Relaxed)), (vec!["a", "d"], 2));
    let many = (0..=MOST_BY_NAME).map(|number| name(&number.to_string()));
    let sought = Sought::Of(many.chain([name("a")]).collect());
    assert_eq!(runtime.sandboxes(&sought, later()).await.expect("it answers").sandboxes.len(), 4);
    assert_eq!(fake.listed.load(Ordering::Relaxed), 4, "one list instead of very many questions");
}

#[tokio::test]
async fn a_list_as_long_as_the_annotations_of_many_pods_is_read() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("runtime.sock");
    // The reader does not know annotations; a UID is as long here as they would be.
    let long = "x".repeat(4 << 20);
    let fake = fake([("a", told(&["10.244.1.5"], r#"{"pid": 11}"#)), (long.as_str(), told(&[], ""))]);
    let _server = serve(&fake, &socket);
    let found = Runtime::new(socket).sandboxes(&Sought::All, later()).await.expect("it is not too long");
    assert_eq!(found.sandboxes.len(), 1);
}

#[tokio::test]
async fn a_socket_of_another_runtime_does_not_hide_that_of_the_kubelet() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = |name: &str| directory.path().join(name);
    let one = || told(&["10.244.1.5"], r#"{"pid": 11}"#);
    let dockers = Fake { has_no_sandboxes_service: true, ..Fake::default() };
    let (empty, kubelets) = (Fake::default(), fake([("a", one())]));
    let _servers = [
        serve(&dockers, &socket("docker.sock")),
        serve(&empty, &socket("empty.sock")),
        serve(&kubelets, &socket("kubelet.sock")),
    ];
    std::os::unix::fs::symlink(socket("kubelet.sock"), socket("link.sock")).expect("writable");
    let all = ["nobody.sock", "docker.sock", "empty.sock", "link.sock", "kubelet.sock"].map(socket);
    let mut runtimes = Runtimes::new(all.to_vec());
    let found = runtimes.sandboxes(&Sought::All).await.expect("one has them");
    assert_eq!(found.sandboxes.len(), 1, "and once alone");
    let lacking = found.lacking.expect("it may have had more");
    assert!(lacking.contains("docker.sock: ") && lacking.contains("unknown service"), "{lacking}");
    assert!(!lacking.contains("nobody.sock"), "{lacking}");
    let failure = Runtimes::new(vec![socket("nobody.sock"), socket("docker.sock")]).sandboxes(&Sought::All).await;
    let failure = failure.expect_err("none answers");
    assert!(failure.contains("nobody.sock: ") && failure.contains("docker.sock: "), "{failure}");
}

#[tokio::test]
async fn an_answer_that_is_too_large_and_words_that_are_not_http_are_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("runtime.sock");
    let huge = fake([("a", told(&["10.244.1.5"], &format!(r#"{{"pid": 11, "x": "{}"}}"#, "y".repeat(MOST_BYTES))))]);
    let _server = serve(&huge, &socket);
    let mut runtime = Runtime::new(socket);
    // Its own sandbox is left out; the call itself was one among others.
    assert_eq!(all(&mut runtime).await, Ok(Vec::new()));

    let odd = directory.path().join("odd.sock");
    let listener = UnixListener::bind(&odd).expect("a socket");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"220 mail.example ESMTP\r\n").await;
        }
    });
    let failure = all(&mut Runtime::new(odd)).await.expect_err("it speaks something else");
    assert!(matches!(failure, Failure::Refused(_) | Failure::Unreachable(_)), "{failure}");
}

#[tokio::test]
async fn a_socket_that_may_not_be_opened_is_named_with_the_reason() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("file");
    std::fs::write(&file, "no socket").expect("writable");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
    let failure = Runtimes::new(vec![file]).sandboxes(&Sought::All).await.expect_err("it is no socket");
    assert!(failure.contains("/file: "), "{failure}");
}
