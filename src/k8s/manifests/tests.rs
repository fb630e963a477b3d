use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use tokio::sync::mpsc::{Receiver, channel};

use super::*;
use crate::k8s::Object;

fn watch(path: &Path) -> Receiver<Message> {
    let (out, messages) = channel(64);
    spawn(
        path.to_owned(),
        vec![Wanted::Services, Wanted::Node("node-1".into())],
        Outages::new().expect("valid names"),
        out,
    )
    .expect("a thread can be started");
    messages
}

fn service(name: &str, address: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  clusterIP: {address}\n---\n")
}

fn told(messages: &mut Receiver<Message>) -> String {
    let message = messages.blocking_recv().expect("the thread goes on while somebody listens");
    match message.event {
        Event::Listing(kind) => format!("listing {kind}"),
        Event::Listed(kind) => format!("listed {kind}"),
        Event::Unreachable => "unreachable".to_owned(),
        Event::Unreadable(unreadable) => format!("unreadable {unreadable}"),
        Event::AskedAt(addresses) => format!("asked at {addresses:?}"),
        Event::Together(together) => format!("together {together}"),
        Event::Object(Object::Service(name, Some(service)), _) => format!("{} {}", name.name, service.cluster_ips[0]),
        Event::Withheld(_) => panic!("a directory withholds nothing"),
        Event::Object(object, _) => format!("{} gone", object.id().name.name),
    }
}

/// All messages up to this one.
fn told_until(messages: &mut Receiver<Message>, last: &str) -> Vec<String> {
    let mut all = Vec::new();
    while all.last().is_none_or(|text| text != last) {
        all.push(told(messages));
    }
    all
}

const LISTED: &str = "listed Node";

#[test]
fn a_directory_is_listed_and_then_followed() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = |name: &str| directory.path().join(name);
    fs::write(file("a.yaml"), service("a", "10.96.0.1")).expect("writable");
    fs::write(file("b.json"), "{\"apiVersion\":\"v1\",\"kind\":\"Node\",\"metadata\":{\"name\":\"node-2\"}}")
        .expect("writable");
    fs::write(file("notes.txt"), service("no", "10.96.0.9")).expect("writable");
    let mut messages = watch(directory.path());
    assert_eq!(
        told_until(&mut messages, LISTED),
        ["listing Service", "listing Node", "a 10.96.0.1", "unreadable false", "listed Service", LISTED]
    );
    fs::write(file("c.yaml"), service("c", "10.96.0.3")).expect("writable");
    assert_eq!(told(&mut messages), "c 10.96.0.3");
    // Same size, same tick of the clock: every report is believed.
    for last in 1..20 {
        fs::write(file("c.yaml"), service("c", &format!("10.96.1.{last:02}"))).expect("writable");
    }
    told_until(&mut messages, "c 10.96.1.19");
    fs::write(file("new"), service("a", "10.96.0.7")).expect("writable");
    fs::rename(file("new"), file("a.yaml")).expect("same directory");
    assert_eq!(told(&mut messages), "a 10.96.0.7");
    fs::rename(file("c.yaml"), file("c.yaml.bak")).expect("same directory");
    assert_eq!(told(&mut messages), "c gone");
    fs::remove_file(file("a.yaml")).expect("it is there");
    assert_eq!(told(&mut messages), "a gone");
}

#[test]
fn what_one_file_changes_belongs_together() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("a.yaml");
    let both = |last: u8| service("a", &format!("10.96.0.{last}")) + &service("b", &format!("10.96.1.{last}"));
    fs::write(&file, both(1)).expect("writable");
    let mut messages = watch(directory.path());
    told_until(&mut messages, LISTED);
    fs::write(&file, both(2)).expect("writable");
    assert_eq!(
        told_until(&mut messages, "together false"),
        ["together true", "a 10.96.0.2", "b 10.96.1.2", "together false"]
    );
}

#[test]
fn a_file_that_is_moved_away_and_written_anew_was_never_gone() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("a.yaml");
    fs::write(&file, service("a", "10.96.0.1")).expect("writable");
    let mut messages = watch(directory.path());
    told_until(&mut messages, LISTED);
    for last in 2..6 {
        fs::rename(&file, directory.path().join("a.yaml~")).expect("same directory");
        std::thread::sleep(BURST);
        fs::write(&file, service("a", &format!("10.96.0.{last}"))).expect("writable");
        assert_eq!(told(&mut messages), format!("a 10.96.0.{last}"));
    }
}

#[test]
fn the_swap_of_links_of_a_configmap_mount_is_seen() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| directory.path().join(name);
    let version = |name: &str, address: &str| {
        fs::create_dir(path(name)).expect("writable");
        fs::write(path(name).join("a.yaml"), service("a", address)).expect("writable");
        symlink(name, path("..data_tmp")).expect("writable");
        fs::rename(path("..data_tmp"), path("..data")).expect("same directory");
    };
    version("..1", "10.96.0.1");
    symlink("..data/a.yaml", path("a.yaml")).expect("writable");
    let mut messages = watch(directory.path());
    assert!(told_until(&mut messages, LISTED).contains(&"a 10.96.0.1".to_owned()));
    version("..2", "10.96.0.2");
    assert_eq!(told(&mut messages), "a 10.96.0.2");
    symlink("..2/a.yaml", path("b.yaml")).expect("writable");
    fs::remove_file(path("a.yaml")).expect("it is there");
    // The order in which the two files are read decides whether the object goes and comes or just stays.
    fs::write(path("z.yaml"), service("z", "10.96.0.9")).expect("writable");
    told_until(&mut messages, "z 10.96.0.9");
}

#[test]
fn a_broken_document_is_told_at_the_start_and_when_it_is_mended() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("a.yaml");
    fs::write(&file, service("a", "10.96.0.1") + "kind: [\n").expect("writable");
    let mut messages = watch(directory.path());
    assert!(told_until(&mut messages, LISTED).contains(&"unreadable true".to_owned()));
    fs::write(&file, service("a", "10.96.0.2")).expect("writable");
    assert_eq!(told_until(&mut messages, "unreadable false"), ["a 10.96.0.2", "unreadable false"]);
}

#[test]
fn a_missing_directory_is_reported_once_and_waited_for_and_a_lost_one_keeps_its_word() {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let path = parent.path().join("manifests");
    let mut messages = watch(&path);
    assert_eq!(told(&mut messages), "unreachable");
    fs::create_dir(parent.path().join("new")).expect("writable");
    fs::write(parent.path().join("new/a.yaml"), service("a", "10.96.0.1")).expect("writable");
    fs::rename(parent.path().join("new"), &path).expect("same directory");
    assert!(told_until(&mut messages, LISTED).contains(&"a 10.96.0.1".to_owned()));
    fs::rename(&path, parent.path().join("away")).expect("same directory");
    assert_eq!(told(&mut messages), "unreachable");
    fs::write(parent.path().join("away/b.yaml"), service("b", "10.96.0.2")).expect("writable");
    fs::rename(parent.path().join("away"), &path).expect("same directory");
    assert_eq!(told(&mut messages), "b 10.96.0.2");
}
