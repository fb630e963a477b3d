//! The last known state: when it is written, and when it is used.

use super::*;

/// A state directory in which one Service is known.
async fn state_dir() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut rig = rig(Some(directory.path()));
    rig.say(1, Event::Listing(Kind::Service)).await;
    rig.put(1, "old", "10.96.0.9").await;
    rig.say(1, Event::Listed(Kind::Service)).await;
    rig.next().await;
    rig.stop.send(()).expect("it goes on until now");
    rig.running.await.expect("it ends");
    directory
}

#[tokio::test(start_paused = true)]
async fn what_is_known_is_written_down_after_a_while_and_at_the_end() {
    let directory = state_dir().await;
    let file = LastKnown::new(directory.path());
    let names = || {
        let known = file.read().expect("sound").expect("there");
        known.cluster.services.iter().map(|(name, _)| name.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(), ["old"]);
    let mut rig = rig(Some(directory.path()));
    rig.say(1, Event::Listing(Kind::Service)).await;
    rig.put(1, "a", "10.96.0.1").await;
    rig.say(1, Event::Listed(Kind::Service)).await;
    rig.next().await;
    tokio::time::sleep(Duration::from_secs(29)).await;
    assert_eq!(names(), ["old"]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    rig.put(2, "b", "10.96.0.2").await;
    rig.next().await;
    assert_eq!(names(), ["a"]);
    rig.stop.send(()).expect("it goes on until now");
    rig.running.await.expect("it ends");
    assert_eq!(names(), ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn a_listing_that_was_not_finished_is_not_written_down() {
    let directory = state_dir().await;
    let rig = rig(Some(directory.path()));
    rig.say(1, Event::Listing(Kind::Service)).await;
    rig.put(1, "a", "10.96.0.1").await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    rig.stop.send(()).expect("it goes on until now");
    rig.running.await.expect("it ends");
    let known = LastKnown::new(directory.path()).read().expect("sound").expect("there");
    assert!(known.cluster.services.get(&ObjectName::new("default", "a")).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_damaged_file_is_ignored() {
    let directory = state_dir().await;
    std::fs::write(LastKnown::new(directory.path()).path(), "something else").expect("writable");
    let mut rig = rig(Some(directory.path()));
    rig.say(1, Event::Unreachable).await;
    assert!(tokio::time::timeout(Duration::from_secs(60), rig.world.changed()).await.is_err());
    rig.say(2, Event::Listing(Kind::Service)).await;
    rig.say(2, Event::Listed(Kind::Service)).await;
    assert_eq!(rig.next().await.authority.proxy, Authority::Complete);
}

#[tokio::test(start_paused = true)]
async fn silence_for_three_seconds_brings_back_the_last_known_state() {
    let directory = state_dir().await;
    let mut rig = rig(Some(directory.path()));
    let before = tokio::time::Instant::now();
    let world = rig.next().await;
    assert_eq!(before.elapsed().as_secs(), 3);
    assert_eq!((world.authority.proxy, world.cluster.services.len()), (Authority::Remembered, 1));
    rig.say(9000, Event::Listing(Kind::Service)).await;
    rig.put(9000, "new", "10.96.0.1").await;
    rig.say(9000, Event::Listed(Kind::Service)).await;
    let world = rig.next().await;
    assert_eq!(world.authority.proxy, Authority::Complete);
    assert!(world.cluster.services.get(&ObjectName::new("default", "old")).is_none());
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_source_brings_it_back_at_once_and_after_that_an_outage_is_nothing() {
    let directory = state_dir().await;
    let mut rig = rig(Some(directory.path()));
    let before = tokio::time::Instant::now();
    rig.say(1, Event::Unreachable).await;
    assert_eq!(rig.next().await.authority.proxy, Authority::Remembered);
    assert_eq!(before.elapsed().as_secs(), 0);
    rig.say(2, Event::Listing(Kind::Service)).await;
    rig.say(2, Event::Listed(Kind::Service)).await;
    assert_eq!(rig.next().await.authority.proxy, Authority::Complete);
    rig.say(3, Event::Unreachable).await;
    assert!(tokio::time::timeout(Duration::from_secs(60), rig.world.changed()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn the_last_known_state_is_used_without_a_guess_at_the_cause() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (log, _guard) = logged();
    let rig = rig(Some(directory.path()));
    // For a missing right, say.
    rig.say(1, Event::Unreachable).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let text = log.text();
    assert!(text.contains("no last known state") && !text.contains("unreachable"), "{text}");
}

#[tokio::test]
async fn a_last_known_state_that_takes_its_time_holds_up_nobody_else() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = LastKnown::new(directory.path()).path();
    // Whoever opens it waits until somebody writes to it.
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).expect("a pipe can be made");
    let rig = rig(Some(directory.path()));
    rig.say(1, Event::Unreachable).await;
    // This thread is the only one of the runtime: it comes here while the file is read, or never.
    tokio::time::sleep(Duration::from_millis(50)).await;
    std::fs::write(&path, "no such state").expect("somebody reads it");
    rig.say(2, Event::Listing(Kind::Service)).await;
    rig.stop.send(()).expect("the World is being built");
    rig.running.await.expect("it ends");
}
