//! Lists by streams and by pages, and how a cut connection is resumed.

use super::*;

#[tokio::test]
async fn a_kind_is_listed_by_a_stream_and_followed_on_the_same_connection() {
    let server = ApiServer::start().await;
    server.put(SERVICES, service("a", "10.96.0.1"));
    let mut reader = read(&server, vec![Wanted::Services]).await;
    reader.until(&["a"]).await;
    server.put(SERVICES, service("b", "10.96.0.2"));
    reader.until(&["a", "b"]).await;
    server.delete(SERVICES, "default/a");
    reader.until(&["b"]).await;
    let requests = server.take_requests();
    assert_eq!(requests.len(), 1, "{requests:?}");
    assert!(
        requests[0].contains("sendInitialEvents=true") && requests[0].contains("resourceVersion=0"),
        "{requests:?}"
    );
}

#[tokio::test]
async fn a_server_that_speaks_json_whatever_it_is_asked_for_is_understood() {
    for refuse_streaming in [None, Some(400)] {
        let server = ApiServer::start().await;
        server.set_faults(Faults { json_only: true, refuse_streaming, ..Faults::default() });
        server.put(SERVICES, service("a", "10.96.0.1"));
        let mut reader = read(&server, vec![Wanted::Services]).await;
        reader.until(&["a"]).await;
        server.put(SERVICES, service("b", "10.96.0.2"));
        reader.until(&["a", "b"]).await;
        server.cut();
        server.delete(SERVICES, "default/b");
        reader.until(&["a"]).await;
        assert_eq!(reader.listings, 1);
    }
}

#[tokio::test]
async fn a_server_that_refuses_or_ignores_streaming_is_listed_in_pages() {
    for faults in [
        Faults { refuse_streaming: Some(422), ..Faults::default() },
        Faults { refuse_streaming: Some(400), ..Faults::default() },
        Faults { ignore_streaming: true, ..Faults::default() },
    ] {
        let server = ApiServer::start().await;
        server.set_faults(faults);
        for index in 0..1200 {
            server.put(SERVICES, service(&format!("s{index:04}"), "10.96.0.1"));
        }
        let mut reader = read(&server, vec![Wanted::Services]).await;
        let names: Vec<String> = (0..1200).map(|index| format!("s{index:04}")).collect();
        let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
        reader.until(&names).await;
        server.put(SERVICES, service("t", "10.96.0.2"));
        names.push("t");
        reader.until(&names).await;
        let requests = server.take_requests();
        let lists = requests.iter().filter(|request| !request.contains("watch=true")).count();
        assert_eq!(lists, 3, "{requests:?}");
        assert_eq!(reader.outages, 0);
    }
}

#[tokio::test]
async fn a_cut_connection_is_resumed_where_it_was() {
    let server = ApiServer::start().await;
    server.put(SERVICES, service("a", "10.96.0.1"));
    let mut reader = read(&server, vec![Wanted::Services]).await;
    reader.until(&["a"]).await;
    for name in ["b", "c", "d"] {
        server.cut();
        server.put(SERVICES, service(name, "10.96.0.2"));
    }
    reader.until(&["a", "b", "c", "d"]).await;
    assert_eq!(reader.listings, 1);
}

#[tokio::test]
async fn whether_a_server_was_set_back_is_read_from_one_key() {
    let namespaced = (SERVICES, Wanted::Services, "/api/v1/namespaces/default/services?");
    for (kind, wanted, asked) in [namespaced, (NODES, Wanted::Nodes, "/api/v1/nodes?")] {
        let server = ApiServer::start().await;
        server.put(kind, service("a", "10.96.0.1"));
        let mut reader = read(&server, vec![wanted]).await;
        reader.until(&["a"]).await;
        server.cut();
        server.put(kind, service("b", "10.96.0.2"));
        reader.until(&["a", "b"]).await;
        let requests = server.take_requests();
        let lists: Vec<&String> = requests.iter().filter(|request| !request.contains("watch=true")).collect();
        let is_of_one_key = |list: &&String| list.starts_with(asked) && list.contains("fieldSelector=metadata.name");
        assert!(!lists.is_empty() && lists.iter().all(is_of_one_key), "{lists:?}");
    }
}

#[tokio::test]
async fn a_server_that_does_not_tell_its_revision_is_watched_all_the_same() {
    for code in [400, 403, 404] {
        let server = ApiServer::start().await;
        server.put(SERVICES, service("a", "10.96.0.1"));
        let mut reader = read(&server, vec![Wanted::Services]).await;
        reader.until(&["a"]).await;
        let forbid = Some("/namespaces/default/services");
        server.set_faults(Faults { forbid, forbid_as: Some(code), ..Faults::default() });
        server.cut();
        server.put(SERVICES, service("b", "10.96.0.2"));
        reader.until(&["a", "b"]).await;
    }
}

#[tokio::test]
async fn bookmarks_carry_the_place_to_resume_at_past_a_compaction() {
    let server = ApiServer::start().await;
    server.put(SERVICES, service("a", "10.96.0.1"));
    let mut reader = read(&server, vec![Wanted::Services]).await;
    reader.until(&["a"]).await;
    // History moves on elsewhere; only a bookmark tells this watch.
    server.put(NODES, json!({"metadata": {"name": "other"}}));
    server.bookmark(SERVICES);
    // Behind a change that is read, the bookmark has been read too.
    server.say(SERVICES, &json!({"type": "ADDED", "object": service("b", "10.96.0.2")}).to_string());
    reader.until(&["a", "b"]).await;
    server.compact();
    server.cut();
    server.put(SERVICES, service("c", "10.96.0.3"));
    reader.until(&["a", "b", "c"]).await;
    assert_eq!(reader.listings, 1);
}

#[tokio::test]
async fn a_forgotten_place_means_listing_anew_and_what_went_meanwhile_goes_at_its_end() {
    for gone_as_status in [false, true] {
        let mut server = ApiServer::start().await;
        server.set_faults(Faults { gone_as_status, ..Faults::default() });
        server.put(SERVICES, service("a", "10.96.0.1"));
        server.put(SERVICES, service("b", "10.96.0.2"));
        let mut reader = read(&server, vec![Wanted::Services]).await;
        reader.until(&["a", "b"]).await;
        server.stop();
        server.delete(SERVICES, "default/a");
        server.put(SERVICES, service("c", "10.96.0.3"));
        server.compact();
        server.resume().await;
        reader.until(&["b", "c"]).await;
        assert_eq!(reader.listings, 2);
    }
}

#[tokio::test]
async fn gone_in_the_middle_of_a_watch_means_listing_anew() {
    let server = ApiServer::start().await;
    server.put(SERVICES, service("a", "10.96.0.1"));
    let mut reader = read(&server, vec![Wanted::Services]).await;
    reader.until(&["a"]).await;
    let gone = json!({"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}});
    server.say(SERVICES, &gone.to_string());
    server.put(SERVICES, service("b", "10.96.0.2"));
    reader.until(&["a", "b"]).await;
    assert_eq!((reader.listings, reader.outages), (2, 0));
}
