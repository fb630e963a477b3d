//! Requests over loopback, byte for byte.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const START: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Serves the site on a free port of loopback and gives its address.
async fn served(site: Site) -> SocketAddr {
    let listener = bind("health", START).await.expect("loopback has a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    tokio::spawn(serve(listener, site));
    address
}

/// The status line and the body of the answer to one request.
async fn ask(address: SocketAddr, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.expect("the listener accepts");
    stream.write_all(request.as_bytes()).await.expect("the request is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("the answer ends");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
    (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
}

async fn page_at(address: SocketAddr, path: &str) -> (String, String) {
    ask(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await
}

fn answer(status: &str, body: &str) -> (String, String) {
    (format!("HTTP/1.1 {status}"), body.to_owned())
}

#[tokio::test]
async fn health_and_readiness_are_two_questions() {
    let health = Health::default();
    let address = served(Site::Health(health.clone())).await;
    let proxy = health.register("proxy", Duration::from_secs(3600), Instant::now());
    proxy.trouble(Some("the API server cannot be reached".to_owned()));
    assert_eq!(page_at(address, "/healthz").await, answer("200 OK", "OK\n"));
    assert_eq!(
        page_at(address, "/readyz").await,
        answer(
            "503 Service Unavailable",
            "proxy: has not finished its first round\nproxy: the API server cannot be reached\n"
        )
    );
    proxy.trouble(None);
    proxy.ready(true);
    assert_eq!(page_at(address, "/readyz").await, answer("200 OK", "OK\n"));
}

#[tokio::test]
async fn a_loop_that_stands_still_is_unhealthy() {
    let health = Health::default();
    let address = served(Site::Health(health.clone())).await;
    let long_ago = Instant::now().checked_sub(Duration::from_secs(2)).expect("the clock has run for two seconds");
    let _stuck = health.register("proxy", Duration::from_secs(1), long_ago);
    assert_eq!(page_at(address, "/healthz").await, answer("500 Internal Server Error", "Unhealthy"));
}

#[tokio::test]
async fn only_the_exact_paths_answer_and_any_method_will_do() {
    let address = served(Site::Health(Health::default())).await;
    for path in ["/", "/healthz/", "/healthz2", "/HEALTHZ", "//healthz", "/metrics"] {
        assert_eq!(page_at(address, path).await.0, "HTTP/1.1 404 Not Found", "{path}");
    }
    assert_eq!(page_at(address, "/healthz?verbose").await, answer("200 OK", "OK\n"));
    assert_eq!(ask(address, "POST /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await, answer("200 OK", "OK\n"));
    assert_eq!(ask(address, "HEAD /healthz HTTP/1.0\r\n\r\n").await, ("HTTP/1.0 200 OK".to_owned(), String::new()));
}

#[tokio::test]
async fn metrics_are_at_their_own_path_alone() {
    let registry = Registry::new("0.1.0", "rust");
    let address = served(Site::Metrics { path: "/mine".to_owned(), registry }).await;
    let (status, body) = page_at(address, "/mine").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert!(body.contains("\nkube_router_build_info{"), "{body}");
    assert_eq!(page_at(address, "/metrics").await.0, "HTTP/1.1 404 Not Found");
    assert_eq!(page_at(address, "/healthz").await.0, "HTTP/1.1 404 Not Found");
}

#[tokio::test]
async fn a_taken_port_is_told_with_the_flags_to_change() {
    let address = served(Site::Health(Health::default())).await;
    let sentence = bind("health", address).await.expect_err("the port is taken");
    assert!(
        sentence.starts_with(&format!("--health-addr and --health-port: cannot listen on {address}, ")),
        "{sentence}"
    );
    assert!(sentence.ends_with(": stop the program that listens there, or choose another port."), "{sentence}");
    let foreign = SocketAddr::from(([203, 0, 113, 1], 20244));
    let sentence = bind("metrics", foreign).await.expect_err("not an address of this host");
    assert!(sentence.ends_with(": choose an address of this host, or leave it empty for all."), "{sentence}");
}

#[tokio::test(start_paused = true)]
async fn silent_connections_keep_nobody_out_for_long() {
    let address = served(Site::Health(Health::default())).await;
    let mut silent = Vec::new();
    for _ in 0..2 * CONNECTIONS {
        silent.push(TcpStream::connect(address).await.expect("the kernel accepts"));
    }
    // Time stands still until every task waits, then jumps: the silent ones run into their timeout.
    let in_time = tokio::time::timeout(3 * HEADER_TIMEOUT, page_at(address, "/healthz")).await;
    assert_eq!(in_time, Ok(answer("200 OK", "OK\n")));
}

#[tokio::test]
async fn all_addresses_means_both_families() {
    let listener = bind("health", "[::]:0".parse().expect("an address")).await.expect("there is a free port");
    let port = listener.local_addr().expect("a bound socket has an address").port();
    tokio::spawn(serve(listener, Site::Health(Health::default())));
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    assert_eq!(page_at(loopback, "/healthz").await, answer("200 OK", "OK\n"));
}
