//! The listeners for health and metrics, and for whoever else answers on a port.
//!
//! Health: `/healthz` (200 `OK`, or 500 `Unhealthy`: the kubelet kills the pod) and `/readyz` (200 `OK`, or 503
//! with one line per reason). Metrics: one path. Every other path is 404; the method does not matter.
//!
//! The listeners stand open to the network, so a stranger may cost little: one request per connection, five
//! seconds for its header, a minute for everything, and a bounded number of connections at a time. When all
//! places are taken, a new connection takes the place of the oldest one that has not asked anything yet. A connection
//! from this host, where the kubelet is, takes the place of any other and gives its own up to none of them: however
//! many connections others open, the kubelet's probes get through.
//!
//! The listeners have a thread of their own, so that a probe waits for nothing else that the program does.
//!
//! Limits: HTTP/1 in plain text, as kube-router has it. `[::]` listens on both families; where the kernel has no
//! IPv6 it means `0.0.0.0`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ::http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use ::http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tracing::{debug, error, warn};

use super::health::Health;
use super::metrics::Registry;

/// The pages that a listener serves.
#[derive(Clone)]
pub enum Site {
    /// `/healthz` and `/readyz`.
    Health(Health),
    /// Metrics at one path.
    Metrics { path: String, registry: Registry },
    /// One answer at every path, made anew for each request.
    Answer(Arc<dyn Fn() -> Answer + Send + Sync>),
}

impl Site {
    /// Returns whether clients on this host come first where places are few: kubelets ask there. Of a health check port they do not: load balancers elsewhere ask that, and any
    /// program of the host could keep them out.
    fn prefers_host(&self) -> bool {
        !matches!(self, Site::Answer(_))
    }
}

/// An answer of a [`Site::Answer`].
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub text: String,
}

/// Opens a listener. The error is a sentence that names the flags `--<name>-addr` and `--<name>-port`.
///
/// # Errors
/// The address is not of this host, or somebody else listens there.
pub async fn bind(name: &str, address: SocketAddr) -> Result<TcpListener, String> {
    listen(address).map_err(|error| {
        let fix = match error.kind() {
            io::ErrorKind::AddrInUse => "stop the program that listens there, or choose another port",
            io::ErrorKind::AddrNotAvailable => "choose an address of this host, or leave it empty for all",
            io::ErrorKind::PermissionDenied => "choose a port from 1024 on, or run as root",
            _ => "choose another address or port",
        };
        format!("--{name}-addr and --{name}-port: cannot listen on {address}, {error}: {fix}.")
    })
}

/// Opens a listener.
///
/// # Errors
/// The address is not of this host, or somebody else listens there.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match listener(address) {
        Err(error) if is_any_address(address) && has_no_ipv6(&error) => {
            listener(SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
        }
        bound => bound,
    }
}

fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if is_any_address(address) {
        // The host may have made "IPv6 alone" the default (sysctl net.ipv6.bindv6only).
        rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
    }
    // Without this a restart would have to wait until the connections of the last run have faded.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(1024)
}

/// Returns whether it is `[::]`, which stands for every address of both families.
fn is_any_address(address: SocketAddr) -> bool {
    address.is_ipv6() && address.ip().is_unspecified()
}

fn has_no_ipv6(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL))
}

/// Answers on these listeners, on a thread of their own, until the process ends. `prepare`: called on that thread first. `prepare_scrapes`: called first on
/// each of the threads that collect metrics, which that thread starts, because no probe may wait for them.
///
/// # Errors
/// There is no thread, or no runtime for it.
pub fn spawn(
    sites: Vec<(TcpListener, Site)>,
    prepare: impl FnOnce() + Send + 'static,
    prepare_scrapes: impl Fn() + Send + Sync + 'static,
) -> io::Result<()> {
    let sites = sites.into_iter().map(|(listener, site)| Ok((listener.into_std()?, site)));
    let sites = sites.collect::<io::Result<Vec<_>>>()?;
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().thread_name("scrapes").on_thread_start(prepare_scrapes).build()?;
    let serve_all = move || {
        prepare();
        runtime.block_on(async {
            let mut listeners = JoinSet::new();
            for (listener, site) in sites {
                match TcpListener::from_std(listener) {
                    Ok(listener) => drop(listeners.spawn(serve(listener, site, Places::new(CONNECTIONS)))),
                    Err(error) => error!(%error, "Serving a listener failed"),
                }
            }
            listeners.join_all().await;
        });
    };
    std::thread::Builder::new().name("listeners".to_owned()).spawn(serve_all).map(drop)
}

/// Answers on a listener for as long as it is polled. When it is dropped, open connections are closed. Each takes one of these places,
/// which several listeners may share.
pub async fn serve(listener: TcpListener, site: Site, places: Places) {
    let site = Arc::new(Served { site, scrape: Semaphore::new(1) });
    let mut connections = JoinSet::new();
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, peer)) => {
                failing = false;
                let is_of_host = stream.local_addr().is_ok_and(|own| is_of_this_host(peer.ip(), own.ip()));
                let is_local = is_of_host && site.site.prefers_host();
                let site = site.clone();
                let taken = places.take(is_local, |place, has_asked| {
                    connections.spawn(async move {
                        let _place = place;
                        answer(stream, peer, site, has_asked).await;
                    })
                });
                if !taken {
                    debug!(%peer, "Connection refused: too many connections");
                }
            }
            Err(error) => {
                // Out of file descriptors, for instance: it passes, and trying at once would only burn the CPU.
                if !failing {
                    warn!(%error, "Accepting connections failed");
                }
                failing = true;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Connections at a time, on the listener for health, and on that for metrics.
const CONNECTIONS: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// The places of connections, of which one or several listeners have so many; cheap to clone.
#[derive(Clone)]
pub struct Places(Arc<Mutex<Taken>>);

/// The connections that have places, by the order in which they came.
struct Taken {
    most: usize,
    places: BTreeMap<u64, Place>,
    next: u64,
}

/// The place of one connection, given back when it is dropped.
struct PlaceGuard {
    of: Places,
    number: u64,
}

struct Place {
    connection: AbortHandle,
    is_local: bool,
    has_asked: Arc<AtomicBool>,
}

impl Places {
    /// This number of places, of which none is taken.
    pub fn new(most: usize) -> Places {
        Places(Arc::new(Mutex::new(Taken { most, places: BTreeMap::new(), next: 0 })))
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a place to a connection, which `begin` starts; returns whether there was one.
    fn take(&self, is_local: bool, begin: impl FnOnce(PlaceGuard, Arc<AtomicBool>) -> AbortHandle) -> bool {
        let mut taken = self.taken();
        if !taken.make_room(is_local) {
            return false;
        }
        let (number, has_asked) = (taken.next, Arc::new(AtomicBool::new(false)));
        taken.next += 1;
        let connection = begin(PlaceGuard { of: self.clone(), number }, has_asked.clone());
        taken.places.insert(number, Place { connection, is_local, has_asked });
        true
    }
}

impl Drop for PlaceGuard {
    fn drop(&mut self) {
        self.of.taken().places.remove(&self.number);
    }
}

impl Taken {
    /// Returns whether there is a place for one more connection. Where all are taken, the one that has the least claim
    /// to its place is closed for it.
    fn make_room(&mut self, is_local: bool) -> bool {
        if self.places.len() < self.most {
            return true;
        }
        let claim = |place: &Place| (place.is_local, place.has_asked.load(Ordering::Relaxed));
        let Some((&number, least)) = self.places.iter().min_by_key(|(number, place)| (claim(place), **number)) else {
            return true;
        };
        let gives_way = match claim(least) {
            (false, false) => true,
            (false, true) | (true, false) => is_local,
            (true, true) => false,
        };
        if gives_way {
            least.connection.abort();
            self.places.remove(&number);
        }
        gives_way
    }
}

/// Returns whether a connection that came to the address `own` came from this host: the kernel gives such a connection
/// the address that it goes to as its source. A remote host gains nothing by using it, because the answer does not
/// leave this host. (Where the address is a secondary one, its primary is the source, and the connection counts as a
/// remote one.)
fn is_of_this_host(peer: IpAddr, own: IpAddr) -> bool {
    let peer = peer.to_canonical();
    peer.is_loopback() || peer == own.to_canonical()
}

struct Served {
    site: Site,
    /// Held while metrics are collected: collectors read the kernel, and once at a time is enough.
    scrape: Semaphore,
}

async fn answer(stream: TcpStream, peer: SocketAddr, served: Arc<Served>, has_asked: Arc<AtomicBool>) {
    let service = service_fn(|request: Request<Incoming>| {
        let served = &served;
        has_asked.store(true, Ordering::Relaxed);
        async move { Ok::<_, Infallible>(served.response(request.uri().path()).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%peer, %error, "Connection ended early"),
        Err(_) => debug!(%peer, "Connection took too long"),
    }
}

impl Served {
    async fn response(&self, path: &str) -> Response<Full<Bytes>> {
        match &self.site {
            Site::Health(health) => health_page(health, path, Instant::now()),
            Site::Metrics { path: served, registry } if path == served => self.metrics_page(registry).await,
            Site::Metrics { .. } => not_found(),
            Site::Answer(answer) => whole(answer()),
        }
    }

    async fn metrics_page(&self, registry: &Registry) -> Response<Full<Bytes>> {
        let _turn = self.scrape.acquire().await;
        let registry = registry.clone();
        match tokio::task::spawn_blocking(move || registry.text()).await {
            Ok(text) => page(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text),
            Err(error) => {
                warn!(%error, "Collecting metrics failed");
                page(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, "cannot collect metrics\n".to_owned())
            }
        }
    }
}

/// The answer of the health listener at this moment.
fn health_page(health: &Health, path: &str, now: Instant) -> Response<Full<Bytes>> {
    let (reasons, refusal) = match path {
        "/healthz" => (health.stuck(now), StatusCode::INTERNAL_SERVER_ERROR),
        "/readyz" => (health.unready(now), StatusCode::SERVICE_UNAVAILABLE),
        _ => return not_found(),
    };
    if path == "/healthz" {
        return match reasons.is_empty() {
            true => page(StatusCode::OK, PLAIN, "OK\n".to_owned()),
            false => page(refusal, PLAIN, "Unhealthy".to_owned()),
        };
    }
    let status = if reasons.is_empty() { StatusCode::OK } else { refusal };
    let first = reasons.is_empty().then(|| "OK\n".to_owned());
    let lines = reasons.iter().chain(&health.notes()).map(|reason| format!("{reason}\n")).collect::<Vec<_>>();
    page(status, PLAIN, first.into_iter().chain(lines).collect())
}

fn whole(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(answer.text)));
    *response.status_mut() = answer.status;
    response.headers_mut().extend(answer.headers);
    response
}

fn not_found() -> Response<Full<Bytes>> {
    page(StatusCode::NOT_FOUND, PLAIN, "404 page not found\n".to_owned())
}

const PLAIN: &str = "text/plain; charset=utf-8";

fn page(status: StatusCode, content_type: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests;
