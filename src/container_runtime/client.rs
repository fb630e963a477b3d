//! Asks the container runtime, over one connection to its unix socket.
//!
//! HTTP/2 without encryption. A call that takes longer than its limit, and any failure of the connection, ends the connection;
//! the next question opens another one. Dropping a question in between ends its calls and leaves nothing behind.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use compact_str::CompactString;
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;

use super::wire::v1::runtime_service_client::RuntimeServiceClient;
use super::wire::v1::{
    ContainerFilter, ContainerState, ContainerStateValue, ContainerStatusRequest, ListContainersRequest,
    ListPodSandboxRequest, NamespaceMode, PodSandbox, PodSandboxFilter, PodSandboxMetadata, PodSandboxState,
    PodSandboxStateValue, PodSandboxStatus, PodSandboxStatusRequest,
};
use super::{Found, PodName, Sandbox, Sought, info};

/// Time limit of one call. Runtimes answer within milliseconds; one that starts many pods at once may need longer.
const CALL: Duration = Duration::from_secs(2);
/// Largest answer: what the kubelet takes and containerd sends at most. A list has the annotations of all its pods, each up to 256 KiB.
const MOST_BYTES: usize = 16 << 20;
/// A node has fewer sandboxes that are ready; more are not looked at.
const MOST_SANDBOXES: usize = 2048;
/// Pods whose sandboxes are asked for by name; of more the list of all is shorter.
const MOST_BY_NAME: usize = 32;
/// Containers of one sandbox that are asked for their process, where the sandbox does not tell of one.
const MOST_CONTAINERS: usize = 4;

/// Why the runtime gave no answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failure {
    /// Its socket takes no connection.
    Unreachable(String),
    /// It did not answer in time.
    Slow,
    /// It refused, broke off, or its answer is not understood.
    Refused(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Unreachable(text) | Failure::Refused(text) => f.write_str(text),
            Failure::Slow => f.write_str("no answer in time"),
        }
    }
}

/// Asks one runtime.
pub struct Runtime {
    socket: PathBuf,
    client: Option<RuntimeServiceClient<Connection>>,
    /// Sandboxes that were asked for. What a sandbox has does not change while it is ready.
    known: HashMap<CompactString, Sandbox>,
    /// The sandbox that was asked for last.
    asked: CompactString,
}

impl Runtime {
    pub fn new(socket: PathBuf) -> Runtime {
        Runtime { socket, client: None, known: HashMap::new(), asked: CompactString::default() }
    }

    /// Returns the sandboxes that are ready, as far as they can be asked for until then. What is known stays known, and the next
    /// question begins behind the sandbox at which this one ended: some that do not answer hide no others for long.
    ///
    /// # Errors
    /// The runtime does not tell which there are.
    pub async fn sandboxes(&mut self, sought: &Sought, until: Instant) -> Result<Found, Failure> {
        let mut listed = self.listed(sought, until).await?;
        if *sought == Sought::All {
            let ids: HashSet<&str> = listed.iter().map(|one| one.id.as_str()).collect();
            self.known.retain(|id, _| ids.contains(id.as_str()));
        } else if self.known.len() >= MOST_SANDBOXES {
            // Those that are gone are known only where all are listed.
            self.known.clear();
        }
        let mut found = Found::default();
        let mut lacking = None;
        if listed.len() > MOST_SANDBOXES {
            lacking.get_or_insert(format!("it has more than {MOST_SANDBOXES} sandboxes"));
            listed.truncate(MOST_SANDBOXES);
        }
        listed.sort_unstable_by(|one, other| one.id.cmp(&other.id));
        let before = listed.partition_point(|one| one.id.as_str() <= self.asked.as_str());
        listed.rotate_left(before);
        for one in listed {
            let id = CompactString::from(one.id.as_str());
            if !self.known.contains_key(&id) && Instant::now() >= until {
                lacking.get_or_insert("its sandboxes could not all be looked at in time".to_owned());
            } else if !self.known.contains_key(&id) {
                self.asked = id.clone();
                match self.sandbox(&one, until).await {
                    Ok(Some(sandbox)) => drop(self.known.insert(id.clone(), sandbox)),
                    Ok(None) => {}
                    Err(failure) => drop(lacking.replace(failure.to_string())),
                }
            }
            found.sandboxes.extend(self.known.get(&id).cloned());
        }
        found.lacking = lacking;
        found.sandboxes.sort_unstable_by(|one, other| one.id.cmp(&other.id));
        Ok(found)
    }

    /// Forgets the sandboxes with any of these addresses: they are asked for again. Their places may be those of processes that
    /// have ended.
    pub fn forget(&mut self, addresses: &BTreeSet<IpAddr>) {
        self.known.retain(|_, sandbox| !sandbox.addresses.iter().any(|address| addresses.contains(address)));
    }

    /// Lists the sandboxes of a few pods one pod after the other: with annotations, the list of all of them may be long.
    async fn listed(&mut self, sought: &Sought, until: Instant) -> Result<Vec<PodSandbox>, Failure> {
        let pods = match sought {
            Sought::Of(pods) if pods.len() <= MOST_BY_NAME => pods,
            _ => return self.list(HashMap::new(), until).await,
        };
        let mut listed = Vec::new();
        for PodName { namespace, name } in pods {
            let labels = [("io.kubernetes.pod.namespace", namespace), ("io.kubernetes.pod.name", name)];
            let labels = labels.map(|(label, value)| (label.to_owned(), value.to_string()));
            listed.extend(self.list(labels.into(), until).await?);
        }
        Ok(listed)
    }

    async fn list(&mut self, labels: HashMap<String, String>, until: Instant) -> Result<Vec<PodSandbox>, Failure> {
        let state = Some(PodSandboxStateValue { state: PodSandboxState::SandboxReady.into() });
        let filter = Some(PodSandboxFilter { state, label_selector: labels });
        let request = ListPodSandboxRequest { filter };
        let answer = self.call(until, async |mut client| client.list_pod_sandbox(request).await).await?;
        let is_ready = |one: &PodSandbox| one.state() == PodSandboxState::SandboxReady && !one.id.is_empty();
        Ok(answer.items.into_iter().filter(is_ready).collect())
    }

    /// `None` if it is no longer ready. One that is and tells no address or no place may be any pod's: it is as one that could not be asked.
    async fn sandbox(&mut self, listed: &PodSandbox, until: Instant) -> Result<Option<Sandbox>, Failure> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: listed.id.clone(), verbose: true };
        let answer = self.call(until, async |mut client| client.pod_sandbox_status(request).await).await?;
        let status = answer.status.unwrap_or_default();
        let host_network = shares_nodes_network(&status);
        let addresses = addresses(&status);
        if status.state() != PodSandboxState::SandboxReady {
            return Ok(None);
        }
        if addresses.is_empty() && !host_network {
            return Err(Failure::Refused("a sandbox that is ready has no address".to_owned()));
        }
        let mut places = info::places(&answer.info);
        if places.is_empty() && !host_network {
            places = self.places_of_containers(&listed.id, until).await?;
            if places.is_empty() {
                return Err(Failure::Refused("it tells no network namespace of a sandbox that is ready".to_owned()));
            }
        }
        let PodSandboxMetadata { name, uid, namespace } = listed.metadata.clone().unwrap_or_default();
        let (id, uid) = (listed.id.as_str().into(), uid.into());
        let pod = PodName { namespace: namespace.into(), name: name.into() };
        Ok(Some(Sandbox { id, pod, uid, addresses, host_network, places }))
    }

    async fn places_of_containers(&mut self, sandbox: &str, until: Instant) -> Result<Vec<PathBuf>, Failure> {
        let state = Some(ContainerStateValue { state: ContainerState::ContainerRunning.into() });
        let filter = Some(ContainerFilter { state, pod_sandbox_id: sandbox.to_owned() });
        let request = ListContainersRequest { filter };
        let listed = self.call(until, async |mut client| client.list_containers(request).await).await?;
        let mut places = Vec::new();
        // The filter is the runtime's to apply; a container of another pod would lead into that one's network.
        let own = listed.containers.into_iter().filter(|one| one.pod_sandbox_id == sandbox);
        for container in own.take(MOST_CONTAINERS) {
            let request = ContainerStatusRequest { container_id: container.id, verbose: true };
            match self.call(until, async |mut client| client.container_status(request).await).await {
                Ok(answer) => places.extend(info::places(&answer.info)),
                Err(Failure::Refused(_)) => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(places)
    }

    async fn call<T>(
        &mut self,
        until: Instant,
        call: impl AsyncFnOnce(RuntimeServiceClient<Connection>) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, Failure> {
        let client = match self.client.take() {
            Some(client) => client,
            None => connect(&self.socket, until).await?,
        };
        match timeout_at(until.min(Instant::now() + CALL), call(client.clone())).await {
            Err(_) => Err(Failure::Slow),
            Ok(Ok(response)) => {
                self.client = Some(client);
                Ok(response.into_inner())
            }
            Ok(Err(status)) => {
                // An answer of the runtime itself leaves the connection as it is.
                if matches!(status.code(), tonic::Code::NotFound | tonic::Code::Unimplemented) {
                    self.client = Some(client);
                }
                Err(Failure::Refused(refusal(&status)))
            }
        }
    }
}

/// The first words of what it says: some runtimes put whole configurations into their messages.
fn refusal(status: &Status) -> String {
    let message: String = status.message().chars().filter(|c| !c.is_control()).take(200).collect();
    format!("{}: {message}", status.code())
}

fn shares_nodes_network(status: &PodSandboxStatus) -> bool {
    let options = status.linux.as_ref().and_then(|linux| linux.namespaces.as_ref()?.options.as_ref());
    options.is_some_and(|options| options.network() == NamespaceMode::Node)
}

fn addresses(status: &PodSandboxStatus) -> Vec<IpAddr> {
    let Some(network) = &status.network else { return Vec::new() };
    let texts = std::iter::once(&network.ip).chain(network.additional_ips.iter().map(|one| &one.ip));
    texts.filter_map(|text| text.parse::<IpAddr>().ok()).map(|address| address.to_canonical()).collect()
}

async fn connect(socket: &Path, until: Instant) -> Result<RuntimeServiceClient<Connection>, Failure> {
    match timeout_at(until.min(Instant::now() + CALL), Connection::open(socket)).await {
        Ok(Ok(connection)) => {
            let client = RuntimeServiceClient::with_origin(connection, Uri::from_static("http://localhost"));
            Ok(client.max_decoding_message_size(MOST_BYTES))
        }
        Ok(Err(reason)) => Err(Failure::Unreachable(reason)),
        Err(_) => Err(Failure::Slow),
    }
}

/// A connection. Clones share it; it ends with the last of them.
#[derive(Clone)]
pub struct Connection(SendRequest<Body>);

impl Connection {
    /// Opens a connection to a socket.
    ///
    /// # Errors
    /// Why there is none, as a sentence without its end.
    pub async fn open(socket: &Path) -> Result<Connection, String> {
        let stream = UnixStream::connect(socket).await.map_err(|error| error.to_string())?;
        let opened = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (sender, connection) = opened.map_err(|error| error.to_string())?;
        // It ends when its senders are gone, or with an error that the calls on it see too.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Connection(sender))
    }
}

impl Service<Request<Body>> for Connection {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Incoming>, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

#[cfg(test)]
mod tests;
