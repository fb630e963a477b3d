//! Listeners of the API, and the dispatch of calls to its two services.
//!
//! Calls on a port may only read: any process in the host's network can open it. Changes are accepted on the unix
//! socket, which only root may open, and on ports only with `--gobgp-admin-write`. Every listener has a connection
//! limit of its own, so that many connections to a port do not block the socket; and so is it with what is watched ([`Places`]).
//!
//! HTTP/2 without encryption and with prior knowledge, as gRPC clients begin. Listening that fails (a port in use, an
//! address that does not exist yet) is retried; the other listeners work meanwhile.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service as _;
use tonic::server::NamedService;
use tracing::{debug, error, info, warn};

use super::service::Service;
use super::stubs::{Four, Three};
use super::watch::Places;
use super::wire::api::go_bgp_service_server::GoBgpServiceServer;
use super::wire::apipb::gobgp_api_server::GobgpApiServer;
use crate::observe::local;

/// Listening address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    Port(SocketAddr),
    /// Accessible to its owner alone.
    Socket(PathBuf),
}

/// Connection limit of one listener.
const CONNECTIONS: usize = 16;
/// Limit of concurrent calls on one connection.
const CALLS: u32 = 32;
/// Limit of a request that reads, in bytes: what it names is short, and one that came in full becomes many times its size in memory.
const QUESTION: usize = 64 << 10;
/// Interval between retries.
const RETRY: Duration = Duration::from_secs(5);
/// Keepalive: idle time before a probe, and the time limit for its answer.
const QUIET: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(20);

/// Whether clients may make changes on a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ports {
    ReadOnly,
    Writable,
}

/// Serves in the background, for as long as the runtime lives.
pub fn spawn(service: Service, places: Vec<Place>, ports: Ports) {
    for place in places {
        tokio::spawn(listen(place, service.clone(), ports));
    }
}

enum Listener {
    Port(TcpListener),
    Socket(UnixListener),
}

enum Accepted {
    Port(TcpStream, SocketAddr),
    Socket(UnixStream),
}

impl Place {
    /// Returns the listener, and its name where others may take it.
    async fn bind(&self) -> io::Result<(Listener, Option<local::Name>)> {
        match self {
            Place::Port(address) => TcpListener::bind(address).await.map(|listener| (Listener::Port(listener), None)),
            Place::Socket(path) => {
                local::bind_named(path).map(|(listener, name)| (Listener::Socket(listener), Some(name)))
            }
        }
    }

    fn text(&self) -> String {
        match self {
            Place::Port(address) => address.to_string(),
            Place::Socket(path) => path.display().to_string(),
        }
    }
}

impl Listener {
    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Listener::Port(listener) => listener.accept().await.map(|(stream, from)| Accepted::Port(stream, from)),
            Listener::Socket(listener) => listener.accept().await.map(|(stream, _)| Accepted::Socket(stream)),
        }
    }
}

async fn listen(place: Place, service: Service, ports: Ports) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    let places = Places::default();
    loop {
        let (listener, name) = opened(&place).await;
        let limits = (&connections, &places, ports);
        let Some(name) = name else {
            return accept(&listener, &place, &service, limits).await;
        };
        tokio::select! {
            () = accept(&listener, &place, &service, limits) => return,
            () = name.lost() => {}
        }
        // Before others are looked for, of whom it would be taken for one.
        drop(listener);
        warn!(place = %place.text(), "gobgp API socket is gone from its path; opening it again when nobody else listens there");
        while name.is_taken() {
            tokio::time::sleep(local::LOOK).await;
        }
    }
}

async fn opened(place: &Place) -> (Listener, Option<local::Name>) {
    let mut has_failed = false;
    loop {
        match place.bind().await {
            Ok(opened) => {
                if has_failed {
                    info!(place = %place.text(), "gobgp API listening");
                }
                return opened;
            }
            Err(reason) if !std::mem::replace(&mut has_failed, true) => {
                error!(place = %place.text(), %reason, "gobgp API listen failed; retrying");
            }
            Err(_) => {}
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Connections of one listener: how many there may be, those that watch, and whether ports may make changes.
type Limits<'a> = (&'a Arc<Semaphore>, &'a Places, Ports);

/// Serves for as long as it is polled.
async fn accept(listener: &Listener, place: &Place, service: &Service, (connections, places, ports): Limits<'_>) {
    loop {
        let permit = connections.clone().acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok(Accepted::Port(stream, from)) => {
                let services = Services::new(service.of_client(from.to_string()), places, ports == Ports::Writable);
                drop(tokio::spawn(connection(TokioIo::new(stream), services, permit)));
            }
            Ok(Accepted::Socket(stream)) => {
                let services = Services::new(service.of_client(credentials(&stream)), places, true);
                drop(tokio::spawn(connection(TokioIo::new(stream), services, permit)));
            }
            Err(error) => {
                warn!(place = %place.text(), %error, "gobgp API accept failed");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// Credentials of the peer of a unix socket, by `SO_PEERCRED`.
fn credentials(stream: &UnixStream) -> String {
    match stream.peer_cred() {
        Ok(found) => format!("uid={} pid={}", found.uid(), found.pid().unwrap_or_default()),
        Err(_) => "unknown".to_owned(),
    }
}

async fn connection(
    stream: impl Read + Write + Unpin + Send + 'static,
    services: Services,
    permit: OwnedSemaphorePermit,
) {
    let served = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(CALLS)
        .keep_alive_interval(QUIET)
        .keep_alive_timeout(PATIENCE)
        .serve_connection(stream, service_fn(move |request| services.clone().call(request)));
    if let Err(error) = served.await {
        debug!(%error, "gobgp API connection closed with an error");
    }
    drop(permit);
}

#[derive(Clone)]
struct Services {
    three: GobgpApiServer<Three>,
    four: GoBgpServiceServer<Four>,
    /// Calls that make changes are served.
    writes: bool,
}

impl Services {
    fn new(service: Service, places: &Places, writes: bool) -> Services {
        let three = GobgpApiServer::new(Three(service.clone(), places.clone()));
        Services { three, four: GoBgpServiceServer::new(Four(service, places.clone())), writes }
    }

    async fn call(mut self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let path = request.uri().path().to_owned();
        if only_reads(&path) {
            self.three = self.three.max_decoding_message_size(QUESTION);
            self.four = self.four.max_decoding_message_size(QUESTION);
        } else if !self.writes {
            return Ok(refused(&path));
        }
        let called = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        let response = match called {
            GobgpApiServer::<Three>::NAME => self.three.call(request).await?,
            GoBgpServiceServer::<Four>::NAME => self.four.call(request).await?,
            _ => return Ok(unimplemented(&path)),
        };
        // The stubs give no reason for unknown procedures.
        let is = |name, value: &str| response.headers().get(name).is_some_and(|one| one.as_bytes() == value.as_bytes());
        let is_unknown = is("grpc-status", "12") && !response.headers().contains_key("grpc-message");
        Ok(if is_unknown { unimplemented(&path) } else { response })
    }
}

/// Returns whether a procedure of either version is read-only, by its name.
fn only_reads(path: &str) -> bool {
    ["Get", "List", "Watch"].iter().any(|verb| procedure(path).starts_with(verb))
}

fn procedure(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

fn refused(path: &str) -> Response<Body> {
    let name = procedure(path);
    let why = format!(
        "{name} is not served on a port, where any process of this host could call it: use gobgp.sock beside --socket, as in `gobgp \
         --target unix:///run/sluice/gobgp.sock`, or start the agent with --gobgp-admin-write"
    );
    Status::permission_denied(why).into_http()
}

fn unimplemented(path: &str) -> Response<Body> {
    let name = procedure(path);
    Status::unimplemented(format!("this agent does not serve {name}")).into_http()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use http_body_util::{BodyExt, Empty, Full};
    use hyper::body::Bytes;
    use hyper::client::conn::http2::handshake;
    use tokio::sync::watch;
    use tokio::time::{sleep, timeout};

    use super::*;

    #[tokio::test]
    async fn whoever_takes_all_places_of_the_port_takes_none_of_the_socket() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let socket = directory.path().join("gobgp.sock");
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = free.expect("loopback has a free port");
        let (_access, access) = watch::channel(None);
        spawn(Service::new(access), vec![Place::Port(port), Place::Socket(socket.clone())], Ports::ReadOnly);
        let mut taken = Vec::new();
        let until = Instant::now() + PATIENCE;
        // More than there are places; the last ones wait in the kernel.
        while taken.len() < 2 * CONNECTIONS && Instant::now() < until {
            match TcpStream::connect(port).await {
                Ok(stream) => taken.push(stream),
                Err(_) => sleep(Duration::from_millis(10)).await,
            }
        }
        assert_eq!(taken.len(), 2 * CONNECTIONS);
        sleep(Duration::from_millis(50)).await;
        let asked = async || {
            let stream = UnixStream::connect(&socket).await.expect("the socket is there");
            let (mut sender, connection) =
                handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("it speaks HTTP/2");
            tokio::spawn(connection);
            let request = Request::post("http://localhost/api.GoBgpService/Nothing").body(Empty::<Bytes>::new());
            let answer = sender.send_request(request.expect("a request")).await.expect("an answer");
            let status = answer.headers().get("grpc-status").cloned();
            drop(answer.into_body().collect().await);
            status
        };
        for _ in 0..3 {
            let status = timeout(Duration::from_secs(10), asked()).await.expect("root is served meanwhile");
            assert_eq!(status.expect("a status").as_bytes(), b"12", "a procedure that is not there");
        }
    }

    #[tokio::test]
    async fn a_request_that_only_reads_may_not_be_long() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let socket = directory.path().join("gobgp.sock");
        let (_access, access) = watch::channel(None);
        spawn(Service::new(access), vec![Place::Socket(socket.clone())], Ports::ReadOnly);
        let until = Instant::now() + PATIENCE;
        while !socket.exists() && Instant::now() < until {
            sleep(Duration::from_millis(10)).await;
        }
        let asked = async |call: &str, length: usize| {
            let stream = UnixStream::connect(&socket).await.expect("the socket is there");
            let (mut sender, connection) =
                handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("it speaks HTTP/2");
            tokio::spawn(connection);
            // A message of gRPC: not compressed, its length, and one field that nobody knows, with bytes.
            let field = length.checked_sub(4).expect("room for the field's head");
            let head = [0, 0, (length >> 16) as u8, (length >> 8) as u8, length as u8];
            let head =
                head.into_iter().chain([0x7a, field as u8 | 0x80, (field >> 7) as u8 | 0x80, (field >> 14) as u8]);
            let body = Full::new(head.chain(std::iter::repeat_n(0, field)).collect::<Bytes>());
            let request = Request::post(format!("http://localhost/{call}")).body(body).expect("a request");
            let answer = sender.send_request(request).await.expect("an answer");
            // Behind an answer that is a stream.
            let first = answer.headers().get("grpc-status").cloned();
            let last = answer.into_body().collect().await.expect("an answer").trailers().cloned();
            let status = first.or_else(|| last?.get("grpc-status").cloned()).expect("a status");
            tonic::Code::from_bytes(status.as_bytes())
        };
        for (call, length, code) in [
            ("apipb.GobgpApi/ListPath", QUESTION, tonic::Code::FailedPrecondition),
            ("apipb.GobgpApi/ListPath", QUESTION + 1, tonic::Code::OutOfRange),
            ("apipb.GobgpApi/WatchEvent", QUESTION + 1, tonic::Code::OutOfRange),
            ("api.GoBgpService/WatchEvent", QUESTION + 1, tonic::Code::OutOfRange),
            ("api.GoBgpService/GetTable", QUESTION + 1, tonic::Code::OutOfRange),
            // It says no table, which is found out where the request was read.
            ("api.GoBgpService/DeletePath", QUESTION + 1, tonic::Code::Unimplemented),
        ] {
            let found = timeout(Duration::from_secs(10), asked(call, length)).await.expect("an answer");
            assert_eq!(found, code, "{call} with {length} bytes");
        }
    }

    #[test]
    fn what_changes_nothing_is_told_by_its_name_and_anything_else_may_change_something() {
        for (path, reads) in [
            ("/apipb.GobgpApi/ListPeer", true),
            ("/api.GoBgpService/GetBgp", true),
            ("/api.GoBgpService/WatchEvent", true),
            ("/apipb.GobgpApi/AddPath", false),
            ("/api.GoBgpService/AddPeer", false),
            ("/api.GoBgpService/ResetPeer", false),
            ("/api.GoBgpService/SetLogLevel", false),
            ("/api.GoBgpService/ListPeer/AddPath", false),
            ("", false),
        ] {
            assert_eq!(only_reads(path), reads, "{path}");
        }
    }
}
