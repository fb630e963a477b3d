//! The listeners for health and metrics.
//!
//! Health: `/healthz` (200 `OK`, or 500 `Unhealthy`: the kubelet kills the pod) and `/readyz` (200 `OK`, or 503
//! with one line per reason). Metrics: one path. Every other path is 404; the method does not matter.
//!
//! The listeners stand open to the network, so a stranger may cost little: one request per connection, five
//! seconds for its header, a minute for everything, and a bounded number of connections at a time. When all
//! places are taken new connections wait in the kernel; none can hold a place longer than that minute.
//!
//! Limits: HTTP/1 in plain text, as kube-router has it. `[::]` listens on both families; where the kernel has no
//! IPv6 it means `0.0.0.0`.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::http::header::{CONTENT_TYPE, HeaderValue};
use ::http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::health::Health;
use super::metrics::Registry;

/// What a listener answers.
#[derive(Clone)]
pub enum Site {
    /// `/healthz` and `/readyz`.
    Health(Health),
    /// Metrics at one path.
    Metrics { path: String, registry: Registry },
}

/// Opens a listener. The error is a sentence that names the flags `--<name>-addr` and `--<name>-port`.
pub async fn bind(name: &str, address: SocketAddr) -> Result<TcpListener, String> {
    let bound = match listener(address) {
        Err(error) if is_any_address(address) && has_no_ipv6(&error) => {
            listener(SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
        }
        bound => bound,
    };
    bound.map_err(|error| {
        let fix = match error.kind() {
            io::ErrorKind::AddrInUse => "stop the program that listens there, or choose another port",
            io::ErrorKind::AddrNotAvailable => "choose an address of this host, or leave it empty for all",
            io::ErrorKind::PermissionDenied => "choose a port from 1024 on, or run as root",
            _ => "choose another address or port",
        };
        format!("--{name}-addr and --{name}-port: cannot listen on {address}, {error}: {fix}.")
    })
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
    socket.listen(128)
}

/// True for `[::]`, which stands for every address of both families.
fn is_any_address(address: SocketAddr) -> bool {
    address.is_ipv6() && address.ip().is_unspecified()
}

fn has_no_ipv6(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL))
}

/// Answers on a listener for as long as it is polled. When it is dropped, open connections are closed.
pub async fn serve(listener: TcpListener, site: Site) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let site = Arc::new(Served { site, scrape: Semaphore::new(1) });
    let mut connections = JoinSet::new();
    let mut failing = false;
    loop {
        while connections.try_join_next().is_some() {}
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, peer)) => {
                failing = false;
                let site = site.clone();
                connections.spawn(async move {
                    answer(stream, peer, site).await;
                    drop(place);
                });
            }
            Err(error) => {
                // Out of file descriptors, for instance: it passes, and trying at once would only burn the CPU.
                if !failing {
                    warn!(%error, "cannot accept connections");
                }
                failing = true;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Connections at a time, on one listener.
const CONNECTIONS: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

struct Served {
    site: Site,
    /// Held while metrics are collected: collectors read the kernel, and once at a time is enough.
    scrape: Semaphore,
}

async fn answer(stream: TcpStream, peer: SocketAddr, served: Arc<Served>) {
    let service = service_fn(|request: Request<Incoming>| {
        let served = &served;
        async move { Ok::<_, Infallible>(served.response(request.uri().path()).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%peer, %error, "connection ended early"),
        Err(_) => debug!(%peer, "connection took too long"),
    }
}

impl Served {
    async fn response(&self, path: &str) -> Response<Full<Bytes>> {
        match &self.site {
            Site::Health(health) => health_page(health, path, Instant::now()),
            Site::Metrics { path: served, registry } if path == served => self.metrics_page(registry).await,
            Site::Metrics { .. } => not_found(),
        }
    }

    async fn metrics_page(&self, registry: &Registry) -> Response<Full<Bytes>> {
        let _turn = self.scrape.acquire().await;
        let registry = registry.clone();
        match tokio::task::spawn_blocking(move || registry.text()).await {
            Ok(text) => page(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text),
            Err(error) => {
                warn!(%error, "cannot collect metrics");
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
    if reasons.is_empty() {
        page(StatusCode::OK, PLAIN, "OK\n".to_owned())
    } else if path == "/healthz" {
        page(refusal, PLAIN, "Unhealthy".to_owned())
    } else {
        page(refusal, PLAIN, reasons.iter().map(|reason| format!("{reason}\n")).collect())
    }
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
