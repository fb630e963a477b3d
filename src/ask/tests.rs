//! Questions to a program that listens on a socket of its own.

use std::path::PathBuf;
use std::thread;

use tokio::sync::mpsc;

use super::*;
use crate::observe::local::{self, Answer, AnswerFormat, Answerers, Question};

fn answered(question: &Question) -> Answer {
    let word = |key: &str| question.about.get(key).cloned().unwrap_or_default();
    match (word("from").as_str(), question.form) {
        ("nobody", _) => Err("There is no pod \"nobody\".".to_owned()),
        (from, AnswerFormat::Text) => Ok(format!("{from} to {}\n", word("to"))),
        (from, AnswerFormat::Json) => Ok(format!("{{\"from\":{from:?}}}")),
    }
}

/// A program that answers as `answered` on a socket of its own, for as long as the test runs.
fn program(directory: &Path, answers: bool) -> PathBuf {
    let path = directory.join("sockets").join("sluice.sock");
    let (ready, begun) = std::sync::mpsc::channel();
    let socket = path.clone();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (out, mut questions) = mpsc::channel::<Question>(1);
            let answerers: Answerers = if answers { [("/policy/explain", out)].into() } else { Answerers::new() };
            let listener = local::bind(&socket).expect("the socket is made");
            ready.send(()).expect("the test waits");
            tokio::spawn(local::serve(listener, answerers, 8));
            while let Some(question) = questions.recv().await {
                let answer = answered(&question);
                question.answer.send(answer).expect("the asker waits");
            }
            std::future::pending::<()>().await;
        });
    });
    begun.recv().expect("the program listens");
    path
}

#[test]
fn a_place_has_one_form_however_the_user_writes_it() {
    for (word, expected) in [
        (" 10.96.0.9\n", ("10.96.0.9", true)),
        ("::ffff:10.96.0.9", ("10.96.0.9", true)),
        ("[FD00:0::9]", ("fd00::9", true)),
        ("[[10.96.0.9", ("[[10.96.0.9", false)),
        (" shop/web ", ("shop/web", false)),
    ] {
        let (place, is_address) = place(word);
        assert_eq!((place.as_str(), is_address), expected);
    }
}

fn asked(from: &str, output: Output, socket: &Path) -> Result<String, String> {
    let (from, to) = (from.to_owned(), "shop/web:80".to_owned());
    let answered = run(&Ask::PolicyExplain { from, to, output, socket: socket.to_owned() });
    answered.map(|answered| answered.text).map_err(|error| format!("{error:#}"))
}

#[test]
fn a_question_is_answered_in_the_form_asked_for_or_refused_with_a_sentence() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = program(directory.path(), true);
    assert_eq!(asked("shop/db", Output::Text, &socket).as_deref(), Ok("shop/db to shop/web:80\n"));
    assert_eq!(asked("shop/db", Output::Json, &socket).as_deref(), Ok("{\"from\":\"shop/db\"}"));
    assert_eq!(asked("nobody", Output::Text, &socket), Err("There is no pod \"nobody\".".to_owned()));
}

#[test]
fn neither_an_answer_nor_a_refusal_brings_control_characters_to_a_terminal() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = program(directory.path(), true);
    let evil = "shop/\u{1b}[2J\u{9b}1m";
    let expected = "shop/\\u001b[2J\\u009b1m to shop/web:80\n";
    assert_eq!(asked(evil, Output::Text, &socket).as_deref(), Ok(expected));
    let refused = asked(evil, Output::Text, &directory.path().join("other\u{1b}.sock")).expect_err("nobody is there");
    assert!(refused.contains("other\\u001b.sock"), "{refused}");
}

#[test]
fn a_program_without_the_subsystem_says_so_and_an_absent_one_is_named_by_its_socket() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = program(directory.path(), false);
    let refused = asked("shop/db", Output::Text, &socket).expect_err("nobody can answer");
    assert!(refused.contains("does not run"), "{refused}");
    let refused = asked("shop/db", Output::Text, &directory.path().join("other.sock")).expect_err("nobody is there");
    assert!(refused.contains("other.sock") && refused.contains("--socket"), "{refused}");
}

/// A program whose list of refused packets has one more at each question but the first.
async fn refusing(directory: &Path) -> PathBuf {
    let socket = directory.join("sluice.sock");
    let (out, mut questions) = mpsc::channel::<Question>(1);
    let listener = local::bind(&socket).expect("the socket is made");
    tokio::spawn(local::serve(listener, [("/policy/drops", out)].into(), 8));
    tokio::spawn(async move {
        let mut next = 7;
        while let Some(question) = questions.recv().await {
            let since: Option<u64> = question.about.get("since").map(|number| number.parse().expect("a number"));
            next += u64::from(since.is_some());
            let packets: Vec<_> = (since.unwrap_or(next)..next)
                .map(|number| serde_json::json!({ "text": format!("packet\u{1b} {number}") }))
                .collect();
            let lost = if next < 9 { 0 } else { 5 };
            let doubt = (next < 9).then_some("this is as an earlier run remembered it");
            let cluster = if doubt.is_some() { "remembered" } else { "complete" };
            let text = serde_json::json!({
                "next": next, "missed": 0, "lost": lost, "cluster": cluster, "doubt": doubt, "packets": packets,
            })
            .to_string();
            question.answer.send(Ok(text)).expect("the asker waits");
        }
    });
    socket
}

#[tokio::test]
async fn refused_packets_are_printed_once_each_and_those_that_were_lost_are_counted() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = refusing(directory.path()).await;
    for (output, expected) in [
        (
            Output::Text,
            "cluster: this is as an earlier run remembered it\n\
             packet\\u001b 7\npacket\\u001b 8\n5 refused packets came too fast and are not shown\npacket\\u001b 9\n",
        ),
        (
            Output::Json,
            "{\"text\":\"packet\\u001b 10\"}\n{\"text\":\"packet\\u001b 11\"}\n{\"text\":\"packet\\u001b 12\"}\n",
        ),
    ] {
        let mut printed = Vec::new();
        let until = Some(Instant::now() + AGAIN * 5 / 2);
        drops(&socket, output, until, &mut printed).await.expect("it is answered");
        let printed = String::from_utf8(printed).expect("text");
        assert!(printed.starts_with(expected), "{printed}");
    }
}

#[tokio::test]
async fn an_audit_prints_what_differs_though_another_subsystem_does_not_answer() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("sluice.sock");
    let (out, mut questions) = mpsc::channel::<Question>(1);
    let listener = local::bind(&socket).expect("the socket is made");
    let answerers = [("/audit/proxy", out.clone()), ("/audit/router", out)].into();
    tokio::spawn(local::serve(listener, answerers, 8));
    tokio::spawn(async move {
        while let Some(question) = questions.recv().await {
            let difference =
                serde_json::json!({ "object": "a", "state": "missing", "desired": null, "seen": null, "error": null });
            let kind = serde_json::json!({
                "kind": "routes", "compared": 1, "waiting": 0, "unreadable": null, "differences": [difference], "more": 0,
            });
            let answer = match question.path {
                "/audit/proxy" => Ok(serde_json::json!({ "known": "complete", "kinds": [kind] }).to_string()),
                _ => Err("nothing is known of the cluster yet".to_owned()),
            };
            question.answer.send(answer).expect("the asker waits");
        }
    });
    let unanswered = "router: no answer: nothing is known of the cluster yet\n";
    for (repair, outcome) in [(false, ""), (true, "; still so after the repair")] {
        let audited = audited(&socket, repair).await.expect("one of them answers");
        let expected = format!("proxy: routes: a: missing{outcome}\n{unanswered}");
        assert_eq!((audit::printed(&audited, Output::Text), audited.exit_code()), (expected, 1));
        let json: Value = serde_json::from_str(&audit::printed(&audited, Output::Json)).expect("JSON");
        let word = |pointer: &str| json.pointer(pointer).and_then(Value::as_str);
        let last = if repair { "/afterRepair" } else { "/subsystems" };
        for (place, expected) in [
            ("/0/subsystem", "proxy"),
            ("/0/known", "complete"),
            ("/0/kinds/0/kind", "routes"),
            ("/0/kinds/0/differences/0/object", "a"),
            ("/0/kinds/0/differences/0/state", "missing"),
            ("/1/error", "nothing is known of the cluster yet"),
        ] {
            assert_eq!(word(&format!("{last}{place}")), Some(expected), "{place} of {json:#}");
        }
        assert_eq!(json.get("afterRepair").is_some(), repair, "{json:#}");
    }
}

/// As where a subsystem takes longer than the program waits for it.
#[tokio::test]
async fn an_audit_goes_on_where_a_connection_ends_without_an_answer() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("sluice.sock");
    let listener = tokio::net::UnixListener::bind(&socket).expect("the socket is made");
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("somebody asks");
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap_or_default();
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            let body = r#"{"known":"complete","kinds":[]}"#;
            let answer = match request.split(' ').nth(1) {
                Some("/audit/proxy") => continue,
                Some("/audit/router") => format!("200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
                _ => "404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned(),
            };
            let _ = stream.write_all(format!("HTTP/1.1 {answer}").as_bytes()).await;
        }
    });
    let audited = audited(&socket, false).await.expect("one of them answers");
    let text = audit::printed(&audited, Output::Text);
    assert!(text.starts_with("proxy: no answer: the question was not answered"), "{text}");
    assert_eq!((text.lines().count(), audited.exit_code(), audited.before.len()), (1, 2, 2), "{text}");
    let nobody = super::audited(&directory.path().join("other.sock"), false).await.expect_err("nobody listens");
    assert!(format!("{nobody:#}").contains("--socket"), "{nobody:#}");
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_cannot_be_opened_is_opened_as_soon_as_it_can() {
    let directory = tempfile::tempdir().expect("a directory");
    let parent = directory.path().join("run");
    std::fs::write(&parent, "a file where a directory should be").expect("written");
    let socket = parent.join("sluice.sock");
    let running = tokio::spawn(local::run(socket.clone(), Answerers::new(), 8));
    tokio::time::sleep(std::time::Duration::from_secs(300)).await;
    assert!(!running.is_finished(), "it goes on");
    std::fs::remove_file(&parent).expect("removed");
    tokio::time::sleep(std::time::Duration::from_secs(61)).await;
    assert!(UnixStream::connect(&socket).await.is_ok());
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn a_program_that_takes_the_question_and_says_nothing_is_not_waited_for_without_end() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("sluice.sock");
    let _listens = tokio::net::UnixListener::bind(&socket).expect("the socket is made");
    let begun = tokio::time::Instant::now();
    let answered = answer(&socket, STATUS, &BTreeMap::new(), Output::Text).await.map(drop);
    let mut outcomes = vec![answered];
    for wait in [None, Some(Duration::ZERO)] {
        outcomes.push(status(&socket, wait, Output::Text).await.map(drop));
    }
    assert!(begun.elapsed() <= 2 * ANSWER + 2 * LEAST, "{:?}", begun.elapsed());
    for outcome in outcomes {
        let said = format!("{:#}", outcome.expect_err("nobody answers"));
        assert!(said.contains("has not answered within") && said.contains("sluice.sock"), "{said}");
    }
}

#[test]
fn only_the_owner_may_open_the_socket_and_a_new_start_takes_the_name_over() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().expect("a directory");
    let socket = program(directory.path(), false);
    let again = program(directory.path(), true);
    assert_eq!(socket, again);
    let mode = std::fs::metadata(&socket).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(asked("shop/db", Output::Text, &socket).is_ok(), "the newer one answers");
}
