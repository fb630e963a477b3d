use super::*;
use crate::k8s::client::{Access, client};
use crate::k8s::watch::tests::api_server::{ApiServer, Faults, NODES};
use crate::observe::given::logged;

const KEY: &str = "kube-router.io/one";
const OTHER: &str = "kube-router.io/other";
const PATH: &str = "/api/v1/nodes/node-1";

const QUICK: Timing = Timing {
    patience: Duration::from_secs(2),
    first: Duration::from_millis(2),
    last: Duration::from_millis(20),
    without_right: Duration::from_secs(3600),
};

fn wish(wanted: Option<&str>, seen: Option<&str>) -> OwnAnnotation {
    OwnAnnotation { wanted: wanted.map(str::to_owned), seen: seen.map(str::to_owned) }
}

fn report(annotations: &[(&'static str, OwnAnnotation)]) -> Report {
    Report { annotations: annotations.iter().cloned().collect(), ..Report::default() }
}

async fn own_node(server: &ApiServer) -> OwnNode {
    let master = Some(format!("http://{}", server.address).parse().expect("a URL"));
    let client = client(&Access { kubeconfig: None, master }).await.expect("nothing is needed");
    server.put(NODES, json!({"metadata": {"name": "node-1", "annotations": {"of-others": "stays", OTHER: "old"}}}));
    OwnNode { client, name: "node-1".to_owned(), timing: QUICK }
}

fn annotations(server: &ApiServer) -> Value {
    server.get(NODES, "/node-1").expect("it is there")["metadata"]["annotations"].clone()
}

async fn until_written(server: &ApiServer, count: usize) {
    let mut written = Vec::new();
    for _ in 0..4000 {
        written.extend(server.take_written());
        if written.len() >= count {
            assert_eq!(written, vec![PATH; count]);
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{count} writes were expected, there were {written:?}")
}

#[tokio::test]
async fn what_differs_is_written_in_one_request_and_all_else_stays() {
    let server = ApiServer::start().await;
    let node = own_node(&server).await;
    let (out, reports) = watch::channel(report(&[(KEY, wish(Some("new"), None)), (OTHER, wish(None, Some("old")))]));
    let kept = tokio::spawn(keep(node, reports));
    until_written(&server, 1).await;
    assert_eq!(annotations(&server), json!({"of-others": "stays", KEY: "new"}));
    out.send_replace(report(&[(KEY, wish(Some("new"), Some("new"))), (OTHER, wish(None, None))]));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(server.take_requests(), [format!("{PATH}?")], "nothing is read, and what is seen is not written again");
    drop(out);
    kept.await.expect("it ends");
}

#[tokio::test]
async fn without_the_right_one_line_names_it_and_nothing_is_tried_for_a_while() {
    let (log, _guard) = logged();
    let server = ApiServer::start().await;
    let node = own_node(&server).await;
    server.set_faults(Faults { forbid: Some("/nodes/"), ..Faults::default() });
    let (out, reports) = watch::channel(report(&[(KEY, wish(Some("new"), None))]));
    let kept = tokio::spawn(keep(node, reports));
    until_written(&server, 1).await;
    out.send_replace(report(&[(KEY, wish(Some("newer"), None))]));
    tokio::time::sleep(QUICK.last * 10).await;
    assert_eq!(server.take_written(), Vec::<String>::new());
    let said = log.text();
    assert_eq!(log.lines_with("No permission to write to this node"), 1, "{said}");
    assert!(said.contains("resources [nodes], verbs [patch]"), "{said}");
    kept.abort();
}

#[tokio::test]
async fn a_right_that_is_given_later_is_used_within_five_minutes() {
    assert_eq!(TIMING.without_right, Duration::from_secs(300), "nobody reaches the node meanwhile");
    let server = ApiServer::start().await;
    let timing = Timing { without_right: Duration::from_millis(20), ..QUICK };
    let node = OwnNode { timing, ..own_node(&server).await };
    server.set_faults(Faults { forbid: Some("/nodes/"), ..Faults::default() });
    let (_out, reports) = watch::channel(report(&[(KEY, wish(Some("new"), None))]));
    let kept = tokio::spawn(keep(node, reports));
    until_written(&server, 1).await;
    server.set_faults(Faults::default());
    for _ in 0..400 {
        if annotations(&server)[KEY] == "new" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(annotations(&server)[KEY], "new");
    kept.abort();
}

#[tokio::test]
async fn a_server_that_fails_or_does_not_answer_is_told_again_until_it_takes_the_newest_value() {
    let server = ApiServer::start().await;
    let node = own_node(&server).await;
    server.set_faults(Faults { fail: (3, 500), ..Faults::default() });
    let (out, reports) = watch::channel(report(&[(KEY, wish(Some("new"), None))]));
    let kept = tokio::spawn(keep(node, reports));
    until_written(&server, 2).await;
    out.send_replace(report(&[(KEY, wish(Some("newest"), None))]));
    until_written(&server, 2).await;
    for _ in 0..400 {
        if annotations(&server)[KEY] == "newest" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(annotations(&server)[KEY], "newest");
    kept.abort();
}

#[test]
fn a_value_that_is_not_seen_is_written_again_later_and_later_and_another_one_soon() {
    let begun = Instant::now();
    let one = wish(Some("new"), None);
    let mut writes = Writes::default();
    assert_eq!(writes.due(KEY, &one, begun), Some(begun), "the first time at once");
    let (mut now, mut pauses, mut insisted) = (begun, Vec::new(), Vec::new());
    for _ in 0..8 {
        insisted.push(writes.note(KEY, &one, now));
        let due = writes.due(KEY, &one, now).expect("it is not seen");
        pauses.push((due - now).as_secs());
        now = due;
    }
    assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300]);
    assert_eq!(insisted.remove(0), Write::Changing);
    assert_eq!(insisted, [Write::Unseen; 7], "nobody changed what was not seen");
    let last = now - LONGEST_AGAIN;
    assert_eq!(writes.due(KEY, &wish(Some("newer"), None), now), Some(last + SPACING));
    assert_eq!(writes.due(KEY, &wish(Some("new"), Some("new")), now), None);
    now += LONGEST_AGAIN + LONGEST_AGAIN;
    assert_eq!(writes.note(KEY, &one, now), Write::Changing, "after a long silence it is no contradiction");
    assert_eq!(writes.due(KEY, &one, now), Some(now + FIRST_AGAIN));
}

#[tokio::test]
async fn an_annotation_that_the_server_does_not_take_keeps_no_other_from_being_written() {
    let server = ApiServer::start().await;
    let node = own_node(&server).await;
    server.set_faults(Faults { fail: (1, 422), ..Faults::default() });
    let (_out, reports) = watch::channel(report(&[(KEY, wish(Some("new"), None)), (OTHER, wish(None, Some("old")))]));
    let kept = tokio::spawn(keep(node, reports));
    // All together, and each by itself.
    until_written(&server, 3).await;
    assert_eq!(annotations(&server), json!({"of-others": "stays", KEY: "new"}));
    kept.abort();
}

#[test]
fn others_have_changed_a_value_that_was_seen_and_is_not_any_more() {
    let begun = Instant::now();
    let (one, seen) = (wish(Some("new"), None), wish(Some("new"), Some("new")));
    let mut writes = Writes::default();
    assert_eq!(writes.note(KEY, &one, begun), Write::Changing);
    writes.see(&[(KEY, one.clone())].into());
    assert_eq!(writes.note(KEY, &one, begun + FIRST_AGAIN), Write::Unseen);
    writes.see(&[(KEY, seen)].into());
    writes.see(&[(KEY, wish(Some("new"), Some("of others")))].into());
    assert_eq!(writes.note(KEY, &one, begun + FIRST_AGAIN * 3), Write::Insisting);
    writes.see(&[(KEY, one.clone())].into());
    assert_eq!(writes.note(KEY, &one, begun + FIRST_AGAIN * 7), Write::Unseen);
}
