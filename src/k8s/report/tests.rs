use super::*;
use crate::k8s::client::{Access, client};
use crate::k8s::events::tests::events;
use crate::k8s::own_node::Timing;
use crate::k8s::watch::tests::api_server::{ApiServer, Faults, NODES};
use crate::model::News;
use crate::observe::given::logged;

#[test]
fn only_a_condition_that_exists_and_is_not_false_denies_the_network() {
    let node = |conditions: Value| json!({"status": {"conditions": conditions}});
    let one = |status: &str| node(json!([{"type": "Ready", "status": "True"}, {"type": CONDITION, "status": status}]));
    assert!(denies(&one("True")) && denies(&one("Unknown")) && !denies(&one("False")));
    for other in [node(json!([{"type": "Ready", "status": "True"}])), node(json!(null)), node(json!({})), json!({})] {
        assert!(!denies(&other), "{other}");
    }
    assert!(!denies(&condition(Timestamp::UNIX_EPOCH)), "what we write is what we look for");
}

#[test]
fn who_contradicts_is_answered_later_and_later_and_at_first_again_after_a_long_silence() {
    let begun = Instant::now();
    let mut corrections = Corrections::default();
    assert_eq!(corrections.due(), None, "the first time at once");
    let mut now = begun;
    let mut pauses = Vec::new();
    for _ in 0..8 {
        corrections.note(now);
        let due = corrections.due().expect("a pause");
        pauses.push((due - now).as_secs());
        now = due;
    }
    assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300]);
    now += LONGEST_CORRECTION + Duration::from_secs(1);
    corrections.note(now);
    assert_eq!(corrections.due(), Some(now + FIRST_CORRECTION));
}

const QUICK: Timing = Timing {
    patience: Duration::from_secs(2),
    first: Duration::from_millis(2),
    last: Duration::from_millis(20),
    without_right: Duration::from_secs(3600),
};

const EVENTS: &str = "/api/v1/namespaces/default/events?";
const LOOKS: &str = "/api/v1/nodes/node-1";
const CORRECTS: &str = "/api/v1/nodes/node-1/status?";

async fn listener(server: &ApiServer) -> Listener {
    let master = Some(format!("http://{}", server.address).parse().expect("a URL"));
    let client = client(&Access { kubeconfig: None, master }).await.expect("nothing is needed");
    let events = events(server, crate::k8s::events::tests::QUICK).await;
    Listener { node: OwnNode { client, name: "node-1".to_owned(), timing: QUICK }, events }
}

fn put(server: &ApiServer, status: &str) {
    let conditions = json!([{"type": CONDITION, "status": status}]);
    server.put(NODES, json!({"metadata": {"name": "node-1"}, "status": {"conditions": conditions}}));
}

fn denied() -> Report {
    Report {
        network_is_there: true,
        is_denied: true,
        mistakes: ["annotation: it makes no sense".to_owned()].into(),
        ..Report::default()
    }
}

/// The requests until one of each of these has come.
async fn until_asked(server: &ApiServer, wanted: &[&str]) -> Vec<String> {
    let mut asked: Vec<String> = Vec::new();
    for _ in 0..4000 {
        asked.extend(server.take_requests());
        if wanted.iter().all(|wanted| asked.iter().any(|request| request == wanted)) {
            return asked;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{wanted:?} were expected, there were {asked:?}")
}

#[tokio::test]
async fn a_condition_is_corrected_only_where_the_node_denies_the_network() {
    let server = ApiServer::start().await;
    let listener = listener(&server).await;
    put(&server, "True");
    listener.correct(false).await.expect("the server answers");
    assert_eq!(server.take_requests(), [LOOKS, CORRECTS]);
    put(&server, "False");
    listener.correct(true).await.expect("the server answers");
    assert_eq!(server.take_requests(), [LOOKS], "it is right already, and the watch has not said so yet");
    server.put(NODES, json!({"metadata": {"name": "node-1"}, "status": {"conditions": []}}));
    listener.correct(true).await.expect("the server answers");
    assert_eq!(server.take_requests(), [LOOKS], "nobody asks for what is not there");
}

#[tokio::test]
async fn each_problem_becomes_one_event_while_it_lasts() {
    let server = ApiServer::start().await;
    let listener = listener(&server).await;
    let mut known = BTreeSet::new();
    for (why, report, asked) in [
        ("it is new", denied(), vec![EVENTS]),
        ("it was told", denied(), vec![]),
        ("it is gone", Report::default(), vec![]),
        ("it is back", denied(), vec![EVENTS]),
    ] {
        listener.tell_problems(&report, &mut known).await.expect("the server answers");
        assert_eq!(server.take_requests(), asked, "{why}");
    }
}

#[tokio::test]
async fn news_become_one_event_each_which_is_no_warning() {
    let server = ApiServer::start().await;
    let listener = listener(&server).await;
    let mut told = None;
    let news = |number, word| {
        let news = News { word, text: "Service addresses are withdrawn".to_owned() };
        Report { news: Some((number, news)), ..Report::default() }
    };
    for (why, report, asked) in [
        ("nothing has happened", Report::default(), vec![]),
        ("it is new", news(0, "ServiceAddressesWithdrawn"), vec![EVENTS]),
        ("it was told", news(0, "ServiceAddressesWithdrawn"), vec![]),
        ("something else has happened", news(1, "ServiceAddressesAnnounced"), vec![EVENTS]),
    ] {
        listener.tell_news(&report, &mut told).await.expect("the server answers");
        assert_eq!(server.take_requests(), asked, "{why}");
    }
}

#[tokio::test]
async fn who_denies_nothing_is_not_asked_about() {
    let server = ApiServer::start().await;
    let listener = listener(&server).await;
    put(&server, "True");
    let (report, reports) = watch::channel(Report { is_denied: false, ..denied() });
    let told = tokio::spawn(tell_condition(listener, reports));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(server.take_requests(), Vec::<String>::new());
    report.send_replace(denied());
    until_asked(&server, &[LOOKS, CORRECTS]).await;
    drop(report);
    told.await.expect("it ends");
}

#[tokio::test]
async fn without_the_right_to_write_the_condition_events_are_told_and_the_condition_is_left_for_an_hour() {
    let (log, _guard) = logged();
    let server = ApiServer::start().await;
    let listener = listener(&server).await;
    put(&server, "True");
    server.set_faults(Faults { forbid: Some("/status"), ..Faults::default() });
    let (report, reports) = watch::channel(denied());
    let both =
        async { tokio::join!(tell_condition(listener.clone(), reports.clone()), tell_events(listener, reports)) };
    let both = tokio::spawn(both);
    let mut asked = until_asked(&server, &[CORRECTS, EVENTS]).await;
    tokio::time::sleep(QUICK.last * 10).await;
    report.send_modify(|report| {
        report.problems.insert("another".to_owned());
    });
    asked.extend(until_asked(&server, &[EVENTS]).await);
    asked.sort();
    assert_eq!(asked, [EVENTS, EVENTS, LOOKS, CORRECTS]);
    let said = log.text();
    let (missing, rule) = ("No permission to write to this node", "rule=");
    assert!(
        log.lines_with(missing) == 1 && said.lines().any(|line| line.contains(missing) && line.contains(rule)),
        "{said}"
    );
    both.abort();
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_told_again_and_keeps_nothing_else_waiting() {
    let server = ApiServer::start().await;
    let listener = listener(&server).await;
    put(&server, "True");
    server.set_faults(Faults { silent: Some("/nodes/"), ..Faults::default() });
    let (_report, reports) = watch::channel(denied());
    let both =
        async { tokio::join!(tell_condition(listener.clone(), reports.clone()), tell_events(listener, reports)) };
    let both = tokio::spawn(both);
    until_asked(&server, &[LOOKS, EVENTS]).await;
    until_asked(&server, &[LOOKS]).await;
    server.set_faults(Faults::default());
    until_asked(&server, &[CORRECTS]).await;
    both.abort();
}

#[test]
fn times_are_written_as_the_api_wants_them() {
    assert_eq!(
        condition(Timestamp::UNIX_EPOCH)["status"]["conditions"][0]["lastTransitionTime"],
        "1970-01-01T00:00:00Z"
    );
}

#[test]
fn nothing_has_recovered_where_nothing_was_sent() {
    let mut attempts = Attempts::new("the node's condition", CONDITION_RULE, QUICK);
    for refused in [Refused::Failed("no answer".to_owned()), Refused::Forbidden("no right".to_owned())] {
        attempts.note(&Err(refused));
    }
    attempts.note(&Ok(Sent::Nothing));
    assert!(attempts.is_failing && attempts.lacks_right, "it is not known to work");
    attempts.note(&Ok(Sent::Answered));
    assert!(!attempts.is_failing && attempts.lacks_right, "the server answers; the right to write may be missing");
    assert_eq!(attempts.pause, QUICK.first);
    attempts.note(&Ok(Sent::Accepted));
    assert!(!attempts.is_failing && !attempts.lacks_right);
}
