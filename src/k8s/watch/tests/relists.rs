//! Lists after the first: what they may not take away, and servers that were set back or have fallen silent.

use super::*;

#[tokio::test]
async fn an_object_that_makes_no_sense_keeps_its_last_good_version_and_the_stream_goes_on() {
    let odd = json!({"metadata": {"name": "odd", "namespace": "default"}, "spec": {"ports": "all"}});
    for (json_only, refuse_streaming) in [(true, None), (false, None), (true, Some(422)), (false, Some(422))] {
        let server = ApiServer::start().await;
        server.set_faults(Faults { json_only, refuse_streaming, ..Faults::default() });
        server.put(SERVICES, service("odd", "10.96.0.9"));
        let mut reader = read(&server, vec![Wanted::Services]).await;
        reader.until(&["odd"]).await;
        server.put(SERVICES, odd.clone());
        if json_only {
            server.say(SERVICES, "{\"type\": \"ADDED\", \"object\": {\"metadata\": 5}}");
            server.say(SERVICES, "not even JSON");
        }
        server.put(SERVICES, service("a", "10.96.0.1"));
        reader.until(&["a", "odd"]).await;
        // It is part of the next list as well.
        server.put(NODES, json!({"metadata": {"name": "other"}}));
        server.compact();
        server.cut();
        server.put(SERVICES, service("b", "10.96.0.2"));
        reader.until(&["a", "b", "odd"]).await;
        assert!(matches!(&reader.in_force["odd"], Object::Service(_, Some(_))), "its last good version");
        assert_eq!((reader.listings, reader.outages), (2, 0));
        server.delete(SERVICES, "default/odd");
        reader.until(&["a", "b"]).await;
    }
}

#[tokio::test]
async fn an_object_of_a_later_list_that_cannot_be_read_is_named_with_the_reason() {
    let odd = json!({"metadata": {"name": "odd", "namespace": "default"}, "spec": {"ports": "all"}});
    for refuse_streaming in [None, Some(422)] {
        let server = ApiServer::start().await;
        server.set_faults(Faults { json_only: true, refuse_streaming, ..Faults::default() });
        server.put(SERVICES, service("odd", "10.96.0.9"));
        let mut reader = read(&server, vec![Wanted::Services]).await;
        reader.until(&["odd"]).await;
        assert!(reader.warnings.is_empty(), "{:?}", reader.warnings);
        // Nobody hears of it before the next list has it.
        server.cut();
        server.put(SERVICES, odd.clone());
        server.put(SERVICES, service("a", "10.96.0.1"));
        server.compact();
        reader.until(&["a", "odd"]).await;
        assert_eq!(reader.listings, 2);
        let [(id, warning)] = &*reader.warnings else { panic!("{:?}", reader.warnings) };
        assert_eq!((id.kind, &id.name), (Kind::Service, &ObjectName::new("default", "odd")));
        assert_eq!(warning.field, "object");
        let reason = warning.text.strip_prefix("it cannot be read, its last good version stays in force: ");
        assert!(reason.is_some_and(|reason| !reason.is_empty()), "{warning}");
    }
}

#[tokio::test]
async fn a_list_with_an_object_that_has_not_even_a_name_removes_nothing() {
    let server = ApiServer::start().await;
    server.put(SERVICES, service("a", "10.96.0.1"));
    server.put(SERVICES, service("b", "10.96.0.2"));
    let mut reader = read(&server, vec![Wanted::Services]).await;
    reader.until(&["a", "b"]).await;
    server.set_faults(Faults { json_only: true, ..Faults::default() });
    server.delete(SERVICES, "default/a");
    server.put(SERVICES, json!({"metadata": {"labels": 5}}));
    server.compact();
    server.cut();
    server.put(SERVICES, service("c", "10.96.0.3"));
    reader.until(&["a", "b", "c"]).await;
    assert_eq!(reader.listings, 2);
}

#[tokio::test]
async fn a_list_is_never_older_than_what_was_seen() {
    for refuse_streaming in [None, Some(422)] {
        let server = ApiServer::start().await;
        server.set_faults(Faults { refuse_streaming, ..Faults::default() });
        server.put(SERVICES, service("old", "10.96.0.1"));
        server.freeze_cache();
        let mut reader = read(&server, vec![Wanted::Services]).await;
        reader.until(&["old"]).await;
        server.put(SERVICES, service("new", "10.96.0.2"));
        server.delete(SERVICES, "default/old");
        reader.until(&["new"]).await;
        reader.named.clear();
        // Elsewhere history moves on, so that the place of this watch is forgotten.
        server.put(NODES, json!({"metadata": {"name": "other"}}));
        server.compact();
        server.cut();
        server.put(SERVICES, service("newer", "10.96.0.3"));
        reader.until(&["new", "newer"]).await;
        assert!(!reader.named.contains("old"), "what is gone came back: {:?}", server.take_requests());
    }
}

#[tokio::test]
async fn a_server_that_was_set_back_is_listed_as_it_is_now() {
    let server = ApiServer::start().await;
    server.put(SERVICES, service("a", "10.96.0.1"));
    let mut reader = read(&server, vec![Wanted::Services]).await;
    reader.until(&["a"]).await;
    server.set_back(50);
    server.cut();
    server.put(SERVICES, service("b", "10.96.0.2"));
    reader.until(&["b"]).await;
    server.put(SERVICES, service("c", "10.96.0.3"));
    reader.until(&["b", "c"]).await;
}

#[tokio::test]
async fn a_server_that_was_set_back_while_it_was_away_and_overtakes_later_is_listed_before() {
    let mut server = ApiServer::start().await;
    server.put(SERVICES, service("a", "10.96.0.1"));
    server.put(SERVICES, service("b", "10.96.0.2"));
    let mut reader = read(&server, vec![Wanted::Services]).await;
    reader.until(&["a", "b"]).await;
    server.stop();
    server.set_back(50);
    server.put(SERVICES, service("a", "10.96.0.1"));
    server.resume().await;
    reader.until(&["a"]).await;
    // The revisions overtake.
    (0..100).for_each(|_| server.put(NODES, json!({"metadata": {"name": "other"}})));
    server.put(SERVICES, service("c", "10.96.0.3"));
    reader.until(&["a", "c"]).await;
    assert_eq!(reader.listings, 2);
}

#[tokio::test]
async fn a_stream_that_fell_silent_means_pages_this_once() {
    let server = ApiServer::start().await;
    server.set_faults(Faults { halt_streams: 1, ..Faults::default() });
    server.put(SERVICES, service("a", "10.96.0.1"));
    let mut reader = read(&server, vec![Wanted::Services]).await;
    reader.until(&["a"]).await;
    server.put(NODES, json!({"metadata": {"name": "other"}}));
    server.compact();
    server.take_requests();
    server.cut();
    server.put(SERVICES, service("b", "10.96.0.2"));
    reader.until(&["a", "b"]).await;
    let requests = server.take_requests();
    let is_page = |request: &String| !request.contains("watch=true") && !request.ends_with("limit=1");
    assert!(!requests.iter().any(is_page), "{requests:?}");
    assert!(requests.iter().any(|request| request.contains("sendInitialEvents=true")), "{requests:?}");
}

#[tokio::test]
async fn a_server_that_ignores_streaming_and_is_never_silent_is_told_by_its_bookmarks() {
    let server = ApiServer::start().await;
    server.set_faults(Faults { ignore_streaming: true, ..Faults::default() });
    server.put(SERVICES, service("a", "10.96.0.1"));
    let mut reader = read(&server, vec![Wanted::Services]).await;
    let never_silent = async {
        loop {
            server.put(SERVICES, service("busy", "10.96.0.9"));
            server.bookmark(SERVICES);
            sleep(TIMING.patience.piece / 10).await;
        }
    };
    tokio::select! {
        () = reader.until(&["a", "busy"]) => {}
        () = never_silent => {}
    }
    let requests = server.take_requests();
    assert!(requests.iter().any(|request| !request.contains("watch=true")), "{requests:?}");
}

#[tokio::test]
async fn a_list_may_take_its_time_as_long_as_it_comes_on() {
    let server = ApiServer::start().await;
    let trickle = Some(TIMING.patience.piece / 5);
    server.set_faults(Faults { refuse_streaming: Some(422), trickle, ..Faults::default() });
    server.put(SERVICES, service("a", "10.96.0.1"));
    let mut reader = read(&server, vec![Wanted::Services]).await;
    reader.until(&["a"]).await;
    assert_eq!((reader.listings, reader.outages), (1, 0));
}
