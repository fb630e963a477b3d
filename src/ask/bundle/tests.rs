use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;

use tokio::sync::mpsc;

use super::*;
use crate::observe::local::{self, Answerers, Question};

/// A program that knows few things, on this socket.
fn program(socket: &Path) {
    let (ask, mut questions) = mpsc::channel::<Question>(1);
    let answerers: Answerers =
        [CONFIG, LOG, CLUSTER, "/audit/proxy", "/policy/drops"].map(|path| (path, ask.clone())).into();
    tokio::spawn(local::serve(local::bind(socket).expect("the socket is made"), answerers, 8));
    tokio::spawn(async move {
        while let Some(Question { path, about, answer, .. }) = questions.recv().await {
            let word = |key: &str| about.get(key).cloned().unwrap_or_default();
            let answered = match path {
                CONFIG => Ok("Config {}\n".to_owned()),
                CLUSTER if word("kind") == "Pod" => Err("too busy".to_owned()),
                CLUSTER => Ok(format!(
                    "{}\n{{\"kind\":\"{}\",\"world\":{:?}}}\n",
                    json!({"world": 7, "node": "node-1", "kinds": ["Service"], "complete": true}),
                    word("kind"),
                    word("world"),
                )),
                "/policy/drops" => Ok(json!({"next": 5, "since": word("since")}).to_string()),
                _ if word("list") == "true" => Ok("== routes\n".to_owned()),
                "/audit/proxy" => Err("nothing is known".to_owned()),
                _ => continue,
            };
            // Who asked may have gone away.
            let _ = answer.send(answered);
        }
    });
}

fn files(file: &Path) -> Vec<(String, String)> {
    let mut archive = tar::Archive::new(File::open(file).expect("it is there"));
    let read = |entry: std::io::Result<tar::Entry<'_, File>>| {
        let mut entry = entry.expect("a whole one");
        let (name, mut text) = (entry.path().expect("a path").display().to_string(), String::new());
        entry.read_to_string(&mut text).expect("text");
        (name.replacen("sluice-bundle/", "", 1), text)
    };
    archive.entries().expect("an archive").map(read).collect()
}

#[tokio::test]
async fn what_cannot_be_had_is_named_and_keeps_nothing_else_out() {
    let directory = tempfile::tempdir().expect("a directory");
    let (socket, file) = (directory.path().join("sluice.sock"), directory.path().join("b.tar"));
    program(&socket);
    std::fs::write(directory.path().join("b.tar.new"), "left behind").expect("writable");
    let Answered { text, exit_code } = make(Some(&file), &socket).await.expect("it can be written");
    assert_eq!(exit_code, 1);
    assert!(text.contains("cluster: too busy\n") && text.contains("audit/proxy.json: nothing is known\n"), "{text}");
    assert!(text.contains("log.txt: There is no answer at the moment."), "{text}");
    assert!(!text.contains("router"), "nobody runs it: {text}");
    assert_eq!(std::fs::metadata(&file).expect("it is there").permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(directory.path()).expect("there").count(), 2, "the socket and the bundle");
    let files = files(&file);
    let text_of = |name: &str| files.iter().find(|(it, _)| it == name).map(|(_, text)| text.as_str());
    assert_eq!(files.first().map(|(name, _)| name.as_str()), Some("about.json"));
    assert_eq!(files.last().map(|(name, _)| name.as_str()), Some("parts.json"));
    assert_eq!(text_of("config.txt"), Some("Config {}\n"));
    assert_eq!(text_of("kernel/proxy.txt"), Some("== routes\n"));
    assert_eq!(text_of("policy-drops.json"), Some(r#"{"next":5,"since":"5"}"#), "those since the first question");
    assert_eq!(text_of("cluster/service-00000000.json"), Some("{\"kind\":\"Service\",\"world\":\"\"}\n"));
    assert_eq!(
        text_of("cluster/node-00000000.json"),
        Some("{\"kind\":\"Node\",\"world\":\"7\"}\n"),
        "of the same World"
    );
    assert_eq!(text_of("cluster/complete.json"), None, "it is not");
    let parts: Value = serde_json::from_str(text_of("parts.json").expect("it is there")).expect("JSON");
    let part =
        |name: &str| parts["parts"].as_array().expect("a list").iter().find(|part| part["part"] == name).cloned();
    assert_eq!(part("cluster"), Some(json!({"part": "cluster", "state": "failed", "why": "too busy"})));
    assert_eq!(part("audit/router.json").expect("it is named")["state"], "absent");
    assert_eq!(part("config.txt"), Some(json!({"part": "config.txt", "state": "written", "bytes": 10})));
}

#[tokio::test]
async fn an_archive_that_cannot_be_made_is_an_error_and_leaves_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("sluice.sock");
    let error = make(Some(&directory.path().join("no/b.tar")), &socket).await.expect_err("there is no directory");
    assert!(format!("{error:#}").contains("no/b.tar cannot be written"), "{error:#}");
    assert_eq!(std::fs::read_dir(directory.path()).expect("there").count(), 0);
}

#[test]
fn a_name_says_node_and_time_and_is_one_file() {
    let at = Timestamp::from_second(1_792_472_658).expect("a time");
    assert_eq!(default_name("node-1.example", at), Path::new("sluice-bundle-node-1.example-20261020T050418Z.tar"));
    assert_eq!(default_name("../x", at).components().count(), 1);
}
