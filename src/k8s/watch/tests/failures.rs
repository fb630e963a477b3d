//! Servers that fail, refuse or close at once: retries at a bounded pace, and what is told of it.

use super::*;

#[tokio::test]
async fn an_outage_of_all_kinds_is_reported_once_and_survived() {
    let mut server = ApiServer::start().await;
    server.put(SERVICES, service("a", "10.96.0.1"));
    server.put(SLICES, slice("a-1", "a"));
    server.stop();
    // Both followers fail at the start already.
    let mut reader = read(&server, vec![Wanted::Services, Wanted::EndpointSlices]).await;
    sleep(Duration::from_millis(100)).await;
    server.resume().await;
    let mut services = 0;
    while services < 2 {
        match reader.messages.recv().await.expect("the followers go on").event {
            Event::Unreachable => reader.outages += 1,
            Event::Listed(_) => services += 1,
            _ => {}
        }
    }
    assert_eq!(reader.outages, 1);
}

#[tokio::test]
async fn errors_of_the_server_are_retried() {
    for code in [401, 403, 404, 429, 500, 503] {
        let server = ApiServer::start().await;
        server.set_faults(Faults { fail: (3, code), ..Faults::default() });
        server.put(SERVICES, service("a", "10.96.0.1"));
        let mut reader = read(&server, vec![Wanted::Services]).await;
        reader.until(&["a"]).await;
        assert_eq!((reader.outages, server.take_requests().len()), (1, 4), "{code}");
    }
}

#[tokio::test]
async fn a_server_that_takes_long_to_fail_is_asked_ever_more_slowly() {
    let server = ApiServer::start().await;
    server.set_faults(Faults { silent: Some(SERVICES), ..Faults::default() });
    // Each request fails later than what counts as brief.
    let (first, last) = (Duration::from_millis(100), Duration::from_secs(60));
    let patience = Patience { beginning: Duration::from_millis(300), piece: Duration::from_millis(300) };
    let timing = Timing { first, last, brief: Duration::from_millis(1), patience, ..TIMING };
    let mut reader = read_at_the_pace_of(timing, &server, vec![Wanted::Services]).await;
    sleep(Duration::from_secs(4)).await;
    // Without growing delays there would be ten.
    let requests = server.take_requests().len();
    assert!((2..8).contains(&requests), "{requests}");
    reader.followers.abort_all();
}

#[tokio::test]
async fn a_server_that_closes_every_watch_at_once_is_asked_ever_more_slowly() {
    let server = ApiServer::start().await;
    server.set_faults(Faults { close_watches: true, ..Faults::default() });
    server.put(SERVICES, service("a", "10.96.0.1"));
    let mut reader = read(&server, vec![Wanted::Services]).await;
    reader.until(&["a"]).await;
    sleep(Duration::from_secs(1)).await;
    let requests = server.take_requests().iter().filter(|request| request.contains("watch=true")).count();
    assert!((3..150).contains(&requests), "{requests}");
}

#[tokio::test]
async fn lists_whose_watch_expires_at_once_are_requested_ever_more_slowly() {
    for refuse_streaming in [None, Some(422)] {
        let server = ApiServer::start().await;
        server.set_faults(Faults { expire_watches: true, refuse_streaming, ..Faults::default() });
        server.put(SERVICES, service("a", "10.96.0.1"));
        let timing = Timing { first: Duration::from_millis(100), last: Duration::from_secs(60), ..TIMING };
        let mut reader = read_at_the_pace_of(timing, &server, vec![Wanted::Services]).await;
        reader.until(&["a"]).await;
        let expired = async { while reader.messages.recv().await.is_some() {} };
        timeout(Duration::from_secs(3), expired).await.expect_err("it goes on");
        let requests = server.take_requests();
        let lists = requests.iter().filter(|it| it.contains("sendInitialEvents") || !it.contains("watch=")).count();
        // Without growing delays there would be thirty.
        assert!((2..14).contains(&lists), "{requests:?}");
    }
}

#[tokio::test]
async fn an_outage_lasts_until_a_list_is_complete() {
    let server = ApiServer::start().await;
    server.set_faults(Faults { fail: (1, 500), halt_streams: 1, ..Faults::default() });
    server.put(SERVICES, service("a", "10.96.0.1"));
    let mut reader = read(&server, vec![Wanted::Services]).await;
    while !matches!(reader.messages.recv().await.expect("it goes on").event, Event::Object(..)) {}
    assert_eq!(reader.health.notes().len(), 1, "the list has begun and not ended");
    while !matches!(reader.messages.recv().await.expect("it goes on").event, Event::Listed(_)) {}
    assert!(reader.health.notes().is_empty());
}

#[tokio::test]
async fn a_bookmark_without_a_version_is_no_place_in_history() {
    let server = ApiServer::start().await;
    server.put(SERVICES, service("a", "10.96.0.1"));
    let mut reader = read(&server, vec![Wanted::Services]).await;
    reader.until(&["a"]).await;
    server.say(SERVICES, r#"{"type": "BOOKMARK", "object": {"kind": "Service", "apiVersion": "v1", "metadata": {}}}"#);
    // Behind an event that is read, the bookmark has been read too.
    server.say(SERVICES, &json!({"type": "ADDED", "object": service("b", "10.96.0.2")}).to_string());
    reader.until(&["a", "b"]).await;
    server.cut();
    server.put(SERVICES, service("c", "10.96.0.3"));
    reader.until(&["a", "b", "c"]).await;
    assert_eq!(reader.listings, 1, "{:?}", server.take_requests());
}
