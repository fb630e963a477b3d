use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::model::Node;
use crate::observe::given::logged;

fn known(nodes: usize) -> Known {
    let mut cluster = Cluster::default();
    for index in 0..nodes {
        cluster.nodes.insert(format!("node-{index}").into(), Node::default());
    }
    Known { cluster, kinds: vec![Kind::Node], all_nodes: false }
}

#[test]
fn what_is_written_is_read_and_only_by_its_owner() {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let last_known = LastKnown::new(&parent.path().join("state/sluice"));
    assert!(last_known.read().expect("no file is no error").is_none());
    assert!(last_known.write(&known(3)).expect("writable") != Written::Same);
    assert_eq!(last_known.write(&known(3)).expect("writable"), Written::Same);
    let written = last_known.write(&known(2)).expect("writable");
    let read = last_known.read().expect("sound").expect("there");
    assert_eq!((read.cluster.nodes.len(), read.kinds), (2, vec![Kind::Node, Kind::ServiceCidr]));
    let file = fs::metadata(last_known.path()).expect("there");
    assert_eq!(written, Written::Anew(file.len()));
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(&last_known.directory).expect("there").count(), 1, "nothing is left behind");
}

#[test]
fn a_file_that_cannot_be_used_is_said_to_be_so_and_replaced() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let last_known = LastKnown::new(directory.path());
    for (bytes, reason) in [
        (&b"#!/bin/sh\nexit 1 # far longer than any header\n"[..], "it is not a file of this program"),
        (b"", "it is damaged: it is too short"),
        (b"sluice\n\x1a\x01", "it is damaged: it is too short"),
        (
            b"sluice\n\x1a\x05\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            "it was written in form 5, and this program knows forms up to 4",
        ),
    ] {
        fs::write(last_known.path(), bytes).expect("writable");
        fs::write(directory.path().join(NEW_NAME), "left behind").expect("writable");
        assert_eq!(last_known.read().expect_err("it cannot be used").to_string(), reason);
        assert!(last_known.write(&known(1)).expect("writable") != Written::Same);
        assert!(last_known.read().is_ok());
    }
}

#[test]
fn a_directory_that_cannot_be_written_to_is_an_error_and_the_file_stays() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let last_known = LastKnown::new(&directory.path().join("state"));
    fs::write(directory.path().join("state"), "a file where a directory should be").expect("writable");
    assert!(last_known.write(&known(1)).is_err());
    assert!(last_known.read().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_written_once_and_writes_are_minutes_apart() {
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    let mut schedule = Schedule::default();
    assert_eq!(schedule.due(), None);
    schedule.changed(after(1));
    schedule.changed(after(20));
    assert_eq!(schedule.due(), Some(after(31)));
    schedule.written(after(31));
    assert_eq!(schedule.due(), None);
    schedule.changed(after(40));
    assert_eq!(schedule.due(), Some(after(331)));
    schedule.written(after(331));
    schedule.changed(after(1000));
    assert_eq!(schedule.due(), Some(after(1030)));
}

#[tokio::test(start_paused = true)]
async fn a_large_file_is_written_more_seldom() {
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    let mut schedule = Schedule { size: 3_000_000, ..Schedule::default() };
    schedule.written(after(0));
    schedule.changed(after(1));
    assert_eq!(schedule.due(), Some(after(300)));
    schedule.size = 6_000_000;
    assert_eq!(schedule.due(), Some(after(600)));
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_cannot_be_made_is_said_once_and_the_file_is_written_when_it_can_be() {
    let (log, _guard) = logged();
    let place = tempfile::tempdir().expect("a temporary directory");
    let directory = place.path().join("state");
    fs::write(&directory, "a file where a directory should be").expect("writable");
    let last_known = LastKnown::new(&directory);
    let mut keeper = Keeper::new(last_known.clone(), &[Wanted::Nodes]);
    keeper.changed();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3600) {
        keeper.next(|| known(3).cluster).await;
    }
    assert_eq!(log.lines_with("Writing the last known state failed"), 1, "{}", log.text());
    fs::remove_file(&directory).expect("it is there");
    while last_known.written_at().is_none() || keeper.fails {
        keeper.next(|| known(3).cluster).await;
    }
    assert_eq!(last_known.read().expect("it can be read").map(|known| known.cluster.nodes.len()), Some(3));
    assert_eq!(log.lines_with("Writing the last known state"), 2, "{}", log.text());
    assert_eq!(log.lines_with("Writing the last known state recovered"), 1, "{}", log.text());
}

/// The kernel says it in another way too: by the mount that a directory is on.
#[test]
fn a_directory_on_the_layers_of_an_image_is_known() {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("every process has them");
    let mounts: Vec<Vec<&str>> = mounts.lines().map(|line| line.split(' ').collect()).collect();
    // Those that nobody takes away meanwhile; the last one at a place is the one that is seen.
    for place in ["/", "/proc", "/sys"] {
        let seen = mounts.iter().rev().find(|words| words[1] == place).map(|words| words[2] == "overlay");
        assert_eq!(Some(is_on_layers(Path::new(place))), seen, "{place}");
    }
    assert!(!is_on_layers(Path::new("/nowhere")));
}
