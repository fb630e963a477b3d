use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

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

#[test]
fn an_archive_that_is_not_finished_leaves_nothing_and_takes_nothing_of_another_one() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("b.tar");
    let there = || std::fs::read_dir(directory.path()).expect("there").count();
    let mut ended = archive::Archive::create(&file).expect("writable");
    ended.put("a", b"begun").expect("writable");
    // None where the file system has files without names, so that none is left where the process is killed either.
    assert!(there() <= 1);
    drop(ended);
    assert_eq!(there(), 0);
    std::fs::write(directory.path().join("b.tar.new"), "somebody else's").expect("writable");
    let bytes = archive::Archive::create(&file).expect("writable").finish().expect("writable");
    assert_eq!((there(), std::fs::metadata(&file).expect("it is there").len()), (2, bytes));
}

#[tokio::test]
async fn what_cannot_be_had_is_named_and_keeps_nothing_else_out() {
    let directory = tempfile::tempdir().expect("a directory");
    let (socket, file) = (directory.path().join("sluice.sock"), directory.path().join("b.tar"));
    program(&socket);
    std::fs::write(&file, "an older bundle").expect("writable");
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

/// The questions that a program was asked, in their order, and when.
type Asked = Arc<Mutex<Vec<(&'static str, Instant)>>>;

/// A program that answers every question, on this socket; that for all Services only when it is asked again.
fn recording(socket: &Path) -> Asked {
    let (ask, mut questions) = mpsc::channel::<Question>(1);
    let mut paths = vec![CONFIG, HOST, LOG, METRICS, PREFLIGHT, CLUSTER, "/svc", "/bgp/peers", "/bgp/routes"];
    paths.push("/policy/drops");
    paths.extend(SUBSYSTEMS.map(|(_, path)| path));
    let answerers: Answerers = paths.into_iter().map(|path| (path, ask.clone())).collect();
    tokio::spawn(local::serve(local::bind(socket).expect("the socket is made"), answerers, 8));
    let asked = Asked::default();
    let record = asked.clone();
    tokio::spawn(async move {
        while let Some(Question { path, answer, .. }) = questions.recv().await {
            let mut asked = record.lock().expect("nobody panics with it");
            let is_first = asked.iter().all(|(earlier, _)| *earlier != path);
            asked.push((path, Instant::now()));
            let answered = match path {
                "/svc" if is_first => Err(format!("somebody else asks{ASK_AGAIN}")),
                "/svc" => Ok("SERVICE\n".to_owned()),
                CLUSTER => Ok(format!("{}\n", json!({"world": 7, "node": "n", "kinds": [], "complete": true}))),
                _ => Ok(json!({ "next": 5 }).to_string()),
            };
            // Who asked may have gone away.
            let _ = answer.send(answered);
        }
    });
    asked
}

#[tokio::test]
async fn what_no_report_can_do_without_is_asked_first_refused_packets_at_one_go_and_the_cluster_last() {
    let directory = tempfile::tempdir().expect("a directory");
    let (socket, file) = (directory.path().join("sluice.sock"), directory.path().join("b.tar"));
    let asked = recording(&socket);
    make(Some(&file), &socket).await.expect("it can be written");
    let asked = asked.lock().expect("nobody panics with it").clone();
    let paths: Vec<&str> = asked.iter().map(|(path, _)| *path).collect();
    let place = |path: &str| paths.iter().position(|it| *it == path).expect("it is asked");
    assert_eq!(paths[..2], [CONFIG, LOG]);
    let drops = place("/policy/drops");
    assert_eq!((paths[drops + 1], paths.iter().filter(|path| **path == "/policy/drops").count()), (paths[drops], 2));
    assert!(asked[drops + 1].1 - asked[drops].1 < Duration::from_secs(5), "the program reads them still");
    let cluster = place(CLUSTER);
    assert!(cluster > drops && paths[cluster..].iter().all(|path| *path == CLUSTER), "{paths:?}");
    let last = SUBSYSTEMS.map(|(_, path)| place(path)).into_iter().max().expect("there are some");
    assert!(last < place(PREFLIGHT) && place(PREFLIGHT) < place("/svc"), "{paths:?}");
    let files = files(&file);
    let services = files.iter().find(|(name, _)| name == "services.txt").map(|(_, text)| text.as_str());
    assert_eq!(services, Some("SERVICE\n"), "it was asked for once more");
    assert_eq!(files.get(files.len() - 2).map(|(name, _)| name.as_str()), Some("cluster/complete.json"));
}

/// An output that takes its time.
struct Slow;

impl std::io::Write for Slow {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        std::thread::sleep(Duration::from_millis(50));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_time_that_the_output_takes_does_not_count_against_the_program() {
    let until = Instant::now();
    let agent = Agent { socket: Path::new("/nowhere"), until, is_stuck: false };
    let archive = Archive::as_it_comes(Box::new(Slow));
    let mut bundle = Bundle { archive, parts: Vec::new(), agent };
    // More than is kept back for one write.
    bundle.put("log.txt", Ok("x".repeat(1 << 20))).expect("it is taken");
    assert!(bundle.agent.until >= until + Duration::from_millis(50));
}

#[tokio::test(start_paused = true)]
async fn a_program_that_is_stuck_leaves_a_bundle_of_the_host_after_one_question() {
    let directory = tempfile::tempdir().expect("a directory");
    let (socket, file) = (directory.path().join("sluice.sock"), directory.path().join("b.tar"));
    // The kernel connects those who come, and nobody accepts them.
    let _stuck = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    let begun = tokio::time::Instant::now();
    let made = tokio::time::timeout(Duration::from_secs(600), make(Some(&file), &socket)).await;
    let Answered { text, exit_code } = made.expect("it ends").expect("it can be written");
    assert!(begun.elapsed() < ANSWER + Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(exit_code, 1);
    assert!(text.contains("status.json: there was no answer within 3"), "{text}");
    assert!(text.contains("agent: it does not answer") && !text.contains("config.txt"), "{text}");
    assert!(files(&file).iter().any(|(name, _)| name.starts_with("host/")), "this host was looked at");
}

#[tokio::test(start_paused = true)]
async fn after_a_question_without_an_answer_the_other_parts_are_named_and_not_asked_for() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("sluice.sock");
    let _stuck = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    let mut agent = Agent { socket: &socket, until: Instant::now() + PATIENCE, is_stuck: false };
    assert_eq!(agent.ask(LOG, &[], None).await, Err(failed("there was no answer within 35 s")));
    let begun = tokio::time::Instant::now();
    let not_asked = "not asked for: an earlier question was not answered in time";
    assert_eq!(agent.ask(CONFIG, &[], None).await, Err(failed(not_asked)));
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn a_name_that_is_no_regular_file_is_refused_and_stays() {
    let directory = tempfile::tempdir().expect("a directory");
    let (socket, target) = (directory.path().join("sluice.sock"), directory.path().join("target"));
    let (link, below) = (directory.path().join("link"), directory.path().join("below"));
    std::fs::write(&target, "stays").expect("writable");
    std::os::unix::fs::symlink(&target, &link).expect("a link");
    std::fs::create_dir(&below).expect("a directory");
    for name in [&link, &below, Path::new("/dev/null")] {
        let error = make(Some(name), &socket).await.expect_err("it is no regular file");
        assert!(format!("{error:#}").contains("is there and no regular file"), "{error:#}");
    }
    assert!(std::fs::symlink_metadata(&link).expect("it is there").is_symlink());
    assert_eq!(std::fs::read_to_string(&target).expect("it is there"), "stays");
    assert_eq!(std::fs::read_dir(directory.path()).expect("there").count(), 3);
    // An earlier bundle is replaced.
    make(Some(&target), &socket).await.expect("it can be written");
    assert!(files(&target).len() > 1);
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
