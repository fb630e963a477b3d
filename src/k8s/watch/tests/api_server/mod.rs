//! An API server for tests: lists and watches of whatever objects a test puts into it, on a loopback socket,
//! with the faults that a test asks for. It speaks the protocol of a real one: resource versions, pages,
//! streaming lists, bookmarks, 410 for versions that it has forgotten, JSON and protocol buffers.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

pub mod protobuf;
mod writes;

/// A running server. Dropping it closes everything.
pub struct ApiServer {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    running: JoinSet<()>,
}

/// The faults that are on.
#[derive(Clone, Default)]
pub struct Faults {
    /// Answer to streaming lists, as a server without them gives: a status, or an ordinary watch.
    pub refuse_streaming: Option<u16>,
    pub ignore_streaming: bool,
    /// The next so many requests are answered with this status.
    pub fail: (usize, u16),
    /// Watches are closed as soon as they have said what they have to say at once.
    pub close_watches: bool,
    /// The place of every watch has expired as soon as it has said what it has to say at once.
    pub expire_watches: bool,
    /// Speak JSON whatever is asked for, as a proxy in between might.
    pub json_only: bool,
    /// A forgotten version is refused by the status of the response, not within the stream.
    pub gone_as_status: bool,
    /// So many streaming lists fall silent before they say that they are complete.
    pub halt_streams: usize,
    /// Requests whose path holds this are answered with 403, or the other status.
    pub forbid: Option<&'static str>,
    pub forbid_as: Option<u16>,
    /// Lists and watches of other collections than these are answered with 403, as for an account that has no other rights.
    pub may_read: Option<BTreeSet<String>>,
    /// Requests whose path holds this are never answered.
    pub silent: Option<&'static str>,
    /// Requests whose path holds this are answered so much later than they take effect.
    pub late: Option<(&'static str, Duration)>,
    /// How long each piece of a list lets wait for itself; a list has ten.
    pub trickle: Option<Duration>,
}

/// Who watches a collection.
struct Watcher {
    path: String,
    /// It hears only of what is newer.
    from: u64,
    lines: UnboundedSender<String>,
}

type Objects = BTreeMap<String, BTreeMap<String, Value>>;

#[derive(Default)]
struct State {
    version: u64,
    /// Watches can be resumed at versions from here on.
    oldest: u64,
    /// Objects by path of the collection and `namespace/name`.
    objects: Objects,
    history: Vec<(u64, String, String)>,
    watches: Vec<Watcher>,
    faults: Faults,
    requests: Vec<String>,
    /// Paths of writes, whatever became of them.
    written: Vec<String>,
    /// Paths of reads for which the rights were missing.
    refused: Vec<String>,
    /// Older state with which `resourceVersion=0` is answered; `None` for the newest.
    cache: Option<(u64, Objects)>,
    connections: Vec<tokio::task::AbortHandle>,
}

pub const SERVICES: &str = "/api/v1/services";
pub const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
pub const NODES: &str = "/api/v1/nodes";
pub const PODS: &str = "/api/v1/pods";
pub const NAMESPACES: &str = "/api/v1/namespaces";
pub const POLICIES: &str = "/apis/networking.k8s.io/v1/networkpolicies";
#[allow(dead_code, reason = "not every test has custom resources")]
pub const CLUSTER_POLICIES: &str = "/apis/policy.networking.k8s.io/v1beta1/clusternetworkpolicies";

impl ApiServer {
    pub async fn start() -> ApiServer {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a loopback socket");
        let address = listener.local_addr().expect("it is bound");
        let state = Arc::new(Mutex::new(State { version: 100, ..State::default() }));
        let mut server = ApiServer { address, state, running: JoinSet::new() };
        server.accept(listener);
        server
    }

    /// Stops listening and cuts all connections; `resume` listens again on the same port.
    pub fn stop(&mut self) {
        self.running.abort_all();
        self.cut();
    }

    pub async fn resume(&mut self) {
        while self.running.join_next().await.is_some() {}
        let listener = TcpListener::bind(self.address).await.expect("the port is still free");
        self.accept(listener);
    }

    /// Cuts all connections.
    pub fn cut(&self) {
        let mut state = self.state();
        state.watches.clear();
        state.connections.drain(..).for_each(|connection| connection.abort());
    }

    /// Creates or replaces an object.
    pub fn put(&self, path: &str, object: Value) {
        let mut state = self.state();
        let name = name(&object);
        let known = state.objects.entry(path.to_owned()).or_default().contains_key(&name);
        state.change(path, name, object, if known { "MODIFIED" } else { "ADDED" });
    }

    pub fn delete(&self, path: &str, name: &str) {
        let mut state = self.state();
        let object = state.objects.get(path).and_then(|all| all.get(name)).cloned().expect("it is there");
        state.change(path, name.to_owned(), object, "DELETED");
    }

    /// Sends a raw line to everyone who watches a collection.
    pub fn say(&self, path: &str, line: &str) {
        self.state().tell(path, u64::MAX, line);
    }

    /// Tells everyone who watches a collection where in history they are.
    pub fn bookmark(&self, path: &str) {
        let mut state = self.state();
        let (version, line) = (state.version, bookmark(state.version, false));
        state.tell(path, version + 1, &line);
    }

    /// Forgets history, so that no watch can be resumed at a version before now.
    pub fn compact(&self) {
        let mut state = self.state();
        state.oldest = state.version;
        state.history.clear();
    }

    /// From now on `resourceVersion=0` is answered with the state of this moment, as by a server that lags behind.
    pub fn freeze_cache(&self) {
        let mut state = self.state();
        state.cache = Some((state.version, state.objects.clone()));
    }

    /// Sets the server back to an earlier version, without any objects, as when its store is restored.
    pub fn set_back(&self, version: u64) {
        let mut state = self.state();
        (state.version, state.oldest) = (version, version);
        state.objects.clear();
        state.history.clear();
    }

    pub fn set_faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// The paths of writes since the last call.
    #[allow(dead_code, reason = "not every test writes")]
    pub fn take_written(&self) -> Vec<String> {
        std::mem::take(&mut self.state().written)
    }

    /// The paths of reads since the last call for which the rights were missing ([`Faults::may_read`]).
    #[allow(dead_code, reason = "not every test takes rights away")]
    pub fn take_refused(&self) -> Vec<String> {
        std::mem::take(&mut self.state().refused)
    }

    /// One object of a collection, by `namespace/name`.
    #[allow(dead_code, reason = "not every test writes")]
    pub fn get(&self, path: &str, name: &str) -> Option<Value> {
        self.state().objects.get(path)?.get(name).cloned()
    }

    /// The requests since the last call, path and query.
    pub fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state().requests)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds the lock")
    }

    fn accept(&mut self, listener: TcpListener) {
        let state = self.state.clone();
        self.running.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let served = state.clone();
                let answer = service_fn(move |request: Request<Incoming>| {
                    let state = served.clone();
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                        let request = Request::from_parts(head, body);
                        let answer = answer(&state, &request);
                        let faults = state.lock().expect("no test panics while it holds the lock").faults.clone();
                        let is_for = |part: &str| request.uri().path().contains(part);
                        if faults.silent.is_some_and(is_for) {
                            std::future::pending::<()>().await;
                        }
                        if let Some((_, late)) = faults.late.filter(|(part, _)| is_for(part)) {
                            tokio::time::sleep(late).await;
                        }
                        Ok::<_, Infallible>(answer)
                    }
                });
                let connection =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), answer);
                let task = tokio::spawn(async move { drop(connection.await) });
                state.lock().expect("no test panics while it holds the lock").connections.push(task.abort_handle());
            }
        });
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.cut();
    }
}

/// Encoding of an answer.
#[derive(Clone, Copy, PartialEq)]
enum Encoding {
    Json,
    Protobuf,
}

impl Encoding {
    /// The first of those that the request accepts, as the API server chooses.
    fn wanted(request: &Request<Bytes>) -> Encoding {
        let accept = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match accept.starts_with("application/vnd.kubernetes.protobuf") {
            true => Encoding::Protobuf,
            false => Encoding::Json,
        }
    }

    fn content_type(self, is_watch: bool) -> HeaderValue {
        HeaderValue::from_static(match (self, is_watch) {
            (Encoding::Json, _) => "application/json",
            (Encoding::Protobuf, false) => "application/vnd.kubernetes.protobuf",
            (Encoding::Protobuf, true) => "application/vnd.kubernetes.protobuf;stream=watch",
        })
    }
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

fn answer(state: &Mutex<State>, request: &Request<Bytes>) -> Answer {
    let mut state = state.lock().expect("no test panics while it holds the lock");
    let query: BTreeMap<String, String> =
        request.uri().query().unwrap_or_default().split('&').filter_map(pair).collect();
    let path = request.uri().path().to_owned();
    state.requests.push(request.uri().to_string());
    if request.method() != Method::GET {
        state.written.push(path.clone());
    }
    let encoding = if state.faults.json_only { Encoding::Json } else { Encoding::wanted(request) };
    if state.faults.fail.0 > 0 {
        state.faults.fail.0 -= 1;
        return status(encoding, state.faults.fail.1, "as the test asked");
    }
    if state.faults.forbid.is_some_and(|part| path.contains(part)) {
        return status(Encoding::Json, state.faults.forbid_as.unwrap_or(403), "as the test asked");
    }
    // What a group and version have, everybody may ask.
    let is_of_a_collection = path.split('/').count() > if path.starts_with("/apis/") { 4 } else { 3 };
    if is_of_a_collection && state.faults.may_read.as_ref().is_some_and(|may| !may.contains(&path)) {
        state.refused.push(path);
        return status(Encoding::Json, 403, "the right to read it is missing");
    }
    if let Some((code, object)) = writes::written(&mut state, request.method(), &path, request.body()) {
        return full(Encoding::Json, code, object.to_string().into_bytes());
    }
    let is = |key: &str, value: &str| query.get(key).is_some_and(|it| it == value);
    if let Some(object) = state.one(&path) {
        return full(Encoding::Json, StatusCode::OK, object.to_string().into_bytes());
    }
    if path.contains("/leases/") || path.contains("/clusternetworkpolicies/") {
        let name = path.rsplit('/').next().unwrap_or_default();
        let missing = json!({"kind": "Status", "code": 404, "reason": "NotFound", "message": "there is no such object", "details": {"name": name}});
        return full(Encoding::Json, StatusCode::NOT_FOUND, missing.to_string().into_bytes());
    }
    if !is("watch", "true") {
        return list(&state, &path, &query, encoding);
    }
    let streaming = is("sendInitialEvents", "true");
    if let (true, Some(code)) = (streaming, state.faults.refuse_streaming) {
        return status(
            encoding,
            code,
            "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
        );
    }
    let from: u64 = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
    let streaming = streaming && !state.faults.ignore_streaming;
    let is_forgotten = !streaming && from != 0 && from < state.oldest;
    if is_forgotten && state.faults.gone_as_status {
        return status(encoding, 410, "too old resource version");
    }
    let lines = watch(&mut state, &path, &query, streaming);
    let frames = stream::unfold((lines, path), move |(mut lines, path)| async move {
        let line = lines.recv().await?;
        let bytes = match encoding {
            Encoding::Json => Bytes::from(line + "\n"),
            Encoding::Protobuf => Bytes::from(protobuf::event(&path, &line)),
        };
        Some((Ok::<_, Infallible>(Frame::data(bytes)), (lines, path)))
    });
    let mut answer = Response::new(BodyExt::boxed_unsync(StreamBody::new(frames)));
    answer.headers_mut().insert(CONTENT_TYPE, encoding.content_type(true));
    answer
}

/// Begins a watch: its events, as lines of JSON.
fn watch(
    state: &mut State,
    path: &str,
    query: &BTreeMap<String, String>,
    streaming: bool,
) -> UnboundedReceiver<String> {
    let (lines, body) = unbounded_channel();
    let say = |line: String| drop(lines.send(line));
    let asked = query.get("resourceVersion").map(String::as_str).unwrap_or_default();
    let from: u64 = asked.parse().unwrap_or(0);
    if streaming && from > state.version {
        say(too_large(from, state.version));
        return body;
    }
    if from == 0 || streaming {
        let newest = (state.version, &state.objects);
        let (version, objects) = match &state.cache {
            Some((version, objects)) if asked == "0" => (*version, objects),
            _ => newest,
        };
        for object in selected(objects, path, query) {
            say(json!({"type": "ADDED", "object": object}).to_string());
        }
        if streaming && state.faults.halt_streams > 0 {
            state.faults.halt_streams -= 1;
        } else if streaming {
            say(bookmark(version, true));
        }
    } else if from < state.oldest {
        say(GONE.to_owned());
    } else {
        for (_, _, line) in state.history.iter().filter(|(version, at, _)| *version > from && at == path) {
            say(line.clone());
        }
    }
    if state.faults.expire_watches {
        say(GONE.to_owned());
    } else if !state.faults.close_watches {
        // A place in the future is waited for in silence, which a real server does too.
        state.watches.push(Watcher { path: path.to_owned(), from, lines });
    }
    body
}

const GONE: &str =
    r#"{"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old resource version"}}"#;

/// The refusal of a list that would have to be newer than the server is.
fn too_large(from: u64, version: u64) -> String {
    let message = format!("Timeout: Too large resource version: {from}, current: {version}");
    let status = json!({"kind": "Status", "code": 504, "reason": "Timeout", "message": message});
    json!({"type": "ERROR", "object": status}).to_string()
}

fn list(state: &State, path: &str, query: &BTreeMap<String, String>, encoding: Encoding) -> Answer {
    let all = selected(&state.objects, path, query);
    let start: usize = query.get("continue").and_then(|token| token.parse().ok()).unwrap_or(0);
    let limit: usize = query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(all.len().max(1));
    let items: Vec<&Value> = all.iter().copied().skip(start).take(limit).collect();
    let mut metadata = json!({"resourceVersion": state.version.to_string()});
    if start + limit < all.len() {
        metadata["continue"] = json!((start + limit).to_string());
    }
    let body = match encoding {
        Encoding::Json => {
            json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items}).to_string().into_bytes()
        }
        Encoding::Protobuf => protobuf::list(path, &metadata, &items),
    };
    let Some(pause) = state.faults.trickle else { return full(encoding, StatusCode::OK, body) };
    let pieces: Vec<Bytes> = body.chunks(body.len().div_ceil(10)).map(Bytes::copy_from_slice).collect();
    let frames = stream::unfold(pieces.into_iter(), move |mut pieces| async move {
        tokio::time::sleep(pause).await;
        Some((Ok::<_, Infallible>(Frame::data(pieces.next()?)), pieces))
    });
    let mut answer = Response::new(BodyExt::boxed_unsync(StreamBody::new(frames)));
    answer.headers_mut().insert(CONTENT_TYPE, encoding.content_type(false));
    answer
}

/// The objects of a collection, as far as a field selector by name wants them.
fn selected<'a>(objects: &'a Objects, path: &str, query: &BTreeMap<String, String>) -> Vec<&'a Value> {
    let wanted = query.get("fieldSelector").and_then(|selector| selector.strip_prefix("metadata.name="));
    let all = objects.get(path).into_iter().flatten();
    all.filter(|(_, object)| wanted.is_none_or(|name| object["metadata"]["name"] == *name)).map(|(_, it)| it).collect()
}

impl State {
    fn change(&mut self, path: &str, name: String, mut object: Value, what: &str) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let line = json!({"type": what, "object": object}).to_string();
        let all = self.objects.entry(path.to_owned()).or_default();
        if what == "DELETED" {
            all.remove(&name);
        } else {
            all.insert(name, object);
        }
        self.history.push((self.version, path.to_owned(), line.clone()));
        self.tell(path, self.version, &line);
    }

    /// Tells those who watch a collection from before this version.
    fn tell(&mut self, path: &str, version: u64, line: &str) {
        let is_for = |watch: &Watcher| watch.path == path && watch.from < version;
        self.watches.retain(|watch| !is_for(watch) || watch.lines.send(line.to_owned()).is_ok());
    }

    /// An object without a namespace, by the path of its own.
    fn one(&self, path: &str) -> Option<&Value> {
        let (collection, name) = path.rsplit_once('/')?;
        let of_all = || {
            let (collection, name) = writes::place(path)?;
            self.objects.get(&collection)?.get(&name)
        };
        self.objects.get(collection).and_then(|all| all.get(&format!("/{name}"))).or_else(of_all)
    }
}

fn bookmark(version: u64, ends_initial_events: bool) -> String {
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if ends_initial_events {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    json!({"type": "BOOKMARK", "object": {"kind": "Any", "apiVersion": "v1", "metadata": metadata}}).to_string()
}

fn name(object: &Value) -> String {
    let part = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
    format!("{}/{}", part("namespace"), part("name"))
}

fn pair(text: &str) -> Option<(String, String)> {
    let (key, value) = text.split_once('=')?;
    Some((key.to_owned(), value.replace("%3D", "=")))
}

fn status(encoding: Encoding, code: u16, message: &str) -> Answer {
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message});
    let bytes = match encoding {
        Encoding::Json => body.to_string().into_bytes(),
        Encoding::Protobuf => protobuf::status(&body),
    };
    full(encoding, StatusCode::from_u16(code).expect("the test's status is one"), bytes)
}

fn full(encoding: Encoding, code: StatusCode, body: Vec<u8>) -> Answer {
    let mut answer = Response::new(BodyExt::boxed_unsync(Full::new(Bytes::from(body))));
    answer.headers_mut().insert(CONTENT_TYPE, encoding.content_type(false));
    *answer.status_mut() = code;
    answer
}
