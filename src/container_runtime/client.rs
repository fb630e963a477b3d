//! Asks the container runtime, over one connection to its unix socket.
//!
//! HTTP/2 without encryption. A call that takes longer than its limit, and any failure of the connection, ends the connection;
//! the next question opens another one. Dropping a question in between ends its calls and leaves nothing behind.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use compact_str::{CompactString, format_compact};
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;

use super::wire::v1::runtime_service_client::RuntimeServiceClient;
use super::wire::v1::{
    ContainerFilter, ContainerState, ContainerStateValue, ContainerStatusRequest, ListContainersRequest,
    ListPodSandboxRequest, NamespaceMode, PodSandbox, PodSandboxFilter, PodSandboxState, PodSandboxStateValue,
    PodSandboxStatus, PodSandboxStatusRequest,
};
use super::{Sandbox, info};

/// Time limit of one call. Runtimes answer within milliseconds; one that starts many pods at once may need longer.
const CALL: Duration = Duration::from_secs(2);
/// Largest answer: a list of some thousand sandboxes.
const MOST_BYTES: usize = 4 << 20;
/// A node has fewer sandboxes that are ready; more are not looked at.
const MOST_SANDBOXES: usize = 2048;
/// Containers of one sandbox that are asked for their process, where the sandbox does not tell of one.
const MOST_CONTAINERS: usize = 4;

/// Why the runtime gave no answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failure {
    /// No socket of a runtime takes a connection: each with the reason.
    Unreachable(String),
    /// It did not answer in time.
    Slow,
    /// It refused, broke off, or its answer is not understood.
    Refused(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Unreachable(text) => write!(f, "no container runtime can be reached: {text}"),
            Failure::Slow => write!(f, "the container runtime has not answered within {} s", CALL.as_secs()),
            Failure::Refused(text) => write!(f, "the container runtime: {text}"),
        }
    }
}

/// Asks one runtime.
pub struct Runtime {
    sockets: Vec<PathBuf>,
    client: Option<RuntimeServiceClient<Connection>>,
    /// Sandboxes that were asked for. What a sandbox has does not change while it is ready.
    known: HashMap<CompactString, Sandbox>,
}

impl Runtime {
    /// `sockets`: tried in this order.
    pub fn new(sockets: Vec<PathBuf>) -> Runtime {
        Runtime { sockets, client: None, known: HashMap::new() }
    }

    /// Returns the sandboxes that are ready. One that cannot be asked for is left out and asked for again the next time.
    ///
    /// # Errors
    /// No runtime answers.
    pub async fn sandboxes(&mut self) -> Result<Vec<Sandbox>, Failure> {
        let listed = self.list().await?;
        let mut known = HashMap::with_capacity(listed.len());
        for one in listed.into_iter().take(MOST_SANDBOXES) {
            let id = CompactString::from(one.id.as_str());
            let sandbox = match self.known.remove(&id) {
                Some(sandbox) => Some(sandbox),
                None => match self.sandbox(&one).await {
                    Ok(sandbox) => sandbox,
                    // It may have gone meanwhile; the others are asked for all the same.
                    Err(Failure::Refused(_)) => None,
                    Err(failure) => {
                        self.known = known;
                        return Err(failure);
                    }
                },
            };
            known.extend(sandbox.map(|sandbox| (id, sandbox)));
        }
        self.known = known;
        let mut found: Vec<Sandbox> = self.known.values().cloned().collect();
        found.sort_unstable_by(|one, other| one.id.cmp(&other.id));
        Ok(found)
    }

    /// Forgets the sandboxes with any of these addresses: they are asked for again. Their places may be those of processes that
    /// have ended.
    pub fn forget(&mut self, addresses: &BTreeSet<IpAddr>) {
        self.known.retain(|_, sandbox| !sandbox.addresses.iter().any(|address| addresses.contains(address)));
    }

    async fn list(&mut self) -> Result<Vec<PodSandbox>, Failure> {
        let state = Some(PodSandboxStateValue { state: PodSandboxState::SandboxReady.into() });
        let request = ListPodSandboxRequest { filter: Some(PodSandboxFilter { state }) };
        let answer = self.call(async |mut client| client.list_pod_sandbox(request).await).await?;
        let is_ready = |one: &PodSandbox| one.state() == PodSandboxState::SandboxReady && !one.id.is_empty();
        Ok(answer.items.into_iter().filter(is_ready).collect())
    }

    /// `None` while its addresses are not known, which the pod may get in the next moment.
    async fn sandbox(&mut self, listed: &PodSandbox) -> Result<Option<Sandbox>, Failure> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: listed.id.clone(), verbose: true };
        let answer = self.call(async |mut client| client.pod_sandbox_status(request).await).await?;
        let status = answer.status.unwrap_or_default();
        let host_network = shares_nodes_network(&status);
        let addresses = addresses(&status);
        if status.state() != PodSandboxState::SandboxReady || (addresses.is_empty() && !host_network) {
            return Ok(None);
        }
        let mut places = info::places(&answer.info);
        if places.is_empty() && !host_network {
            places = self.places_of_containers(&listed.id).await?;
            if places.is_empty() {
                return Ok(None);
            }
        }
        let metadata = listed.metadata.clone().unwrap_or_default();
        let pod = format_compact!("{}/{}", metadata.namespace, metadata.name);
        Ok(Some(Sandbox { id: listed.id.as_str().into(), pod, addresses, host_network, places }))
    }

    async fn places_of_containers(&mut self, sandbox: &str) -> Result<Vec<PathBuf>, Failure> {
        let state = Some(ContainerStateValue { state: ContainerState::ContainerRunning.into() });
        let filter = Some(ContainerFilter { state, pod_sandbox_id: sandbox.to_owned() });
        let request = ListContainersRequest { filter };
        let listed = self.call(async |mut client| client.list_containers(request).await).await?;
        let mut places = Vec::new();
        // The filter is the runtime's to apply; a container of another pod would lead into that one's network.
        let own = listed.containers.into_iter().filter(|one| one.pod_sandbox_id == sandbox);
        for container in own.take(MOST_CONTAINERS) {
            let request = ContainerStatusRequest { container_id: container.id, verbose: true };
            match self.call(async |mut client| client.container_status(request).await).await {
                Ok(answer) => places.extend(info::places(&answer.info)),
                Err(Failure::Refused(_)) => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(places)
    }

    async fn call<T>(
        &mut self,
        call: impl AsyncFnOnce(RuntimeServiceClient<Connection>) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, Failure> {
        let client = match self.client.take() {
            Some(client) => client,
            None => connect(&self.sockets).await?,
        };
        match timeout(CALL, call(client.clone())).await {
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

async fn connect(sockets: &[PathBuf]) -> Result<RuntimeServiceClient<Connection>, Failure> {
    let mut reasons = Vec::new();
    for socket in sockets {
        match timeout(CALL, Connection::open(socket)).await {
            Ok(Ok(connection)) => {
                let origin = Uri::from_static("http://localhost");
                let client = RuntimeServiceClient::with_origin(connection, origin);
                return Ok(client.max_decoding_message_size(MOST_BYTES));
            }
            Ok(Err(reason)) => reasons.push(format!("{}: {reason}", socket.display())),
            Err(_) => reasons.push(format!("{}: no answer", socket.display())),
        }
    }
    Err(Failure::Unreachable(reasons.join("; ")))
}

/// A connection. Clones share it; it ends with the last of them.
#[derive(Clone)]
struct Connection(SendRequest<Body>);

impl Connection {
    async fn open(socket: &Path) -> Result<Connection, String> {
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
