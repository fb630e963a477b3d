//! Requests over loopback, byte for byte.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const START: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Serves the site on a free port of loopback and gives its address.
async fn served(site: Site) -> SocketAddr {
    let listener = bind("health", START).await.expect("loopback has a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    tokio::spawn(serve(listener, site, Places::new(CONNECTIONS)));
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

#[tokio::test]
async fn what_should_be_seen_to_is_named_and_does_not_make_unready() {
    let health = Health::default();
    let address = served(Site::Health(health.clone())).await;
    health.note("API server").set(vec!["Service cannot be read".to_owned()]);
    assert_eq!(page_at(address, "/readyz").await, answer("200 OK", "OK\nAPI server: Service cannot be read\n"));
    let _proxy = health.register("proxy", Duration::from_secs(3600), Instant::now());
    assert_eq!(
        page_at(address, "/readyz").await,
        answer(
            "503 Service Unavailable",
            "proxy: has not finished its first round\nAPI server: Service cannot be read\n"
        )
    );
    assert_eq!(page_at(address, "/healthz").await, answer("200 OK", "OK\n"));
}

#[tokio::test(start_paused = true)]
async fn a_probe_is_answered_at_once_whatever_connections_stand_idle() {
    let address = served(Site::Health(Health::default())).await;
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(TcpStream::connect(address).await.expect("the kernel accepts"));
    }
    // Time stands still while anything can be done: no connection may have to run into its timeout first.
    let begun = tokio::time::Instant::now();
    assert_eq!(page_at(address, "/healthz").await, answer("200 OK", "OK\n"));
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn a_connection_of_this_host_gives_its_place_to_no_other_and_takes_that_of_any() {
    let place = |is_local: bool, has_asked: bool| {
        let connection = tokio::spawn(std::future::pending::<()>()).abort_handle();
        Place { connection, is_local, has_asked: Arc::new(AtomicBool::new(has_asked)) }
    };
    // The occupants of all places but the first, that of the first, the newcomer, and whether the first gives way.
    for ((others, first), comes, gives_way) in [
        (((false, true), (false, false)), false, true),
        (((false, true), (false, true)), false, false),
        (((false, true), (false, true)), true, true),
        (((true, true), (true, false)), false, false),
        (((true, true), (true, false)), true, true),
        (((true, true), (true, true)), true, false),
        (((true, false), (false, true)), true, true),
    ] {
        let mut taken = Taken { most: CONNECTIONS, places: BTreeMap::new(), next: 0 };
        for index in 0..CONNECTIONS {
            let (is_local, has_asked) = if index == 0 { first } else { others };
            assert!(taken.make_room(is_local), "there is room");
            taken.places.insert(index as u64, place(is_local, has_asked));
        }
        let case = format!("{others:?} {first:?} {comes}");
        assert_eq!(taken.make_room(comes), gives_way, "{case}");
        assert_eq!(taken.places.contains_key(&0), !gives_way, "{case}");
    }
}

#[test]
fn only_where_kubelets_ask_does_a_client_of_this_host_come_first() {
    let health_check =
        Site::Answer(Arc::new(|| Answer { status: StatusCode::OK, headers: Vec::new(), text: String::new() }));
    assert!(!health_check.prefers_host(), "a load balancer asks there, and no program of the host keeps it out");
    assert!(Site::Health(Health::default()).prefers_host());
}

#[test]
fn connections_of_this_host_are_told_from_others() {
    let address = |text: &str| text.parse::<IpAddr>().expect("an address");
    let own = address("192.0.2.1");
    assert!(is_of_this_host(address("127.0.0.1"), own) && is_of_this_host(address("::1"), own));
    assert!(is_of_this_host(own, own) && is_of_this_host(address("::ffff:192.0.2.1"), own));
    assert!(!is_of_this_host(address("192.0.2.2"), own) && !is_of_this_host(address("2001:db8::1"), own));
}

#[tokio::test]
async fn the_listeners_answer_while_the_thread_that_made_them_is_busy() {
    let listener = bind("health", START).await.expect("loopback has a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    spawn(vec![(listener, Site::Health(Health::default()))], || {}, || {}).expect("there is a thread");
    // This thread, which is the runtime's only one, waits for the answer without ever letting the runtime work.
    let mut stream = std::net::TcpStream::connect(address).expect("the listener accepts");
    let patience = Some(Duration::from_secs(20));
    stream.set_read_timeout(patience).expect("a timeout can be set");
    std::io::Write::write_all(&mut stream, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").expect("it is sent");
    let mut text = String::new();
    std::io::Read::read_to_string(&mut stream, &mut text).expect("the answer ends");
    assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
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
async fn listeners_that_share_their_places_have_so_many_connections_together_and_all_go_on_answering() {
    let (places, mut addresses) = (Places::new(4), Vec::new());
    for _ in 0..3 {
        let listener = bind("health", START).await.expect("loopback has a free port");
        addresses.push(listener.local_addr().expect("a bound socket has an address"));
        tokio::spawn(serve(listener, Site::Health(Health::default()), places.clone()));
    }
    let mut silent = Vec::new();
    for address in addresses.iter().cycle().take(30) {
        silent.push(TcpStream::connect(*address).await.expect("the kernel accepts"));
        tokio::task::yield_now().await;
        assert!(places.taken().places.len() <= 4);
    }
    for address in addresses {
        assert_eq!(page_at(address, "/healthz").await, answer("200 OK", "OK\n"));
    }
    drop(silent);
    while !places.taken().places.is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn all_addresses_means_both_families() {
    let listener = bind("health", "[::]:0".parse().expect("an address")).await.expect("there is a free port");
    let port = listener.local_addr().expect("a bound socket has an address").port();
    tokio::spawn(serve(listener, Site::Health(Health::default()), Places::new(CONNECTIONS)));
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    assert_eq!(page_at(loopback, "/healthz").await, answer("200 OK", "OK\n"));
}
