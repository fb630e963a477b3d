//! Paths that fail: RFC 5882 with sessions, with graceful restart, and with neighbours that have no BFD.

use super::*;
use crate::bfd::{Diagnostic, Path, Settings as Times, State as Bfd, Status, Wanted};

fn watched(number: u8) -> WantedNeighbour {
    let time = Duration::from_millis(300);
    let settings = Times { multiplier: 3, send: time, receive: time };
    let liveness = Liveness { path: Path::SingleHop, wanted: Wanted { settings, port: 3784, hops: None } };
    WantedNeighbour { liveness: Some(liveness), ..wanted(number) }
}

const UP: Status = Status {
    state: Bfd::Up,
    diagnostic: Diagnostic::NONE,
    remote_state: Bfd::Up,
    remote_diagnostic: Diagnostic::NONE,
    independent: false,
    failures: 0,
    detection: Duration::from_millis(900),
    mine: 7,
    yours: 9,
};
const FAILED: Status =
    Status { state: Bfd::Down, diagnostic: Diagnostic::TIME_EXPIRED, remote_state: Bfd::Down, failures: 1, ..UP };

impl Bench {
    fn path(&mut self, number: u8, status: Status) {
        self.step(Input::Path(address(number), status));
    }

    fn routes_of(&self, number: u8) -> u32 {
        let id = self.speaker.neighbour(address(number)).unwrap().id();
        self.speaker.rib().table().count(id).v4.received
    }
}

/// A neighbour with a session, two routes, and a path that is up.
fn bench(restart: Option<bool>) -> (Bench, LinkId) {
    let mut bench = Bench::new(None);
    bench.want(watched(2));
    bench.path(2, UP);
    let link = bench.come(2, restart);
    bench.announce(link, 2, &prefixes(2));
    bench.said(link);
    assert_eq!(bench.routes_of(2), 2);
    (bench, link)
}

#[test]
fn a_path_that_fails_ends_the_session_and_nobody_keeps_routes() {
    for (restart, said) in [(None, "6/10 BFD down"), (Some(false), "6/9 hard reset (6/10 BFD down)")] {
        let (mut bench, link) = bench(restart);
        bench.path(2, FAILED);
        assert_eq!(bench.said(link), [said]);
        assert_eq!((bench.state(2), bench.routes_of(2)), (State::Idle, 0), "also with graceful restart");
        assert_eq!(bench.facts(|fact| matches!(fact, Fact::PathFailed(_))), 1);
        let none = PerFamily::default();
        assert_eq!(bench.facts(|fact| matches!(fact, Fact::Down { kept, .. } if *kept == none)), 1);
    }
}

#[test]
fn the_session_comes_back_with_the_path_or_after_a_while() {
    let (mut bench, _) = bench(None);
    bench.path(2, FAILED);
    bench.pass(Duration::from_secs(20));
    assert_eq!(bench.state(2), State::Idle);
    let shown = bench.speaker.neighbour_states(None, 1, bench.now);
    assert_eq!(shown[0].idle, Some(Idle::PathFailed(Duration::from_secs(10))));
    let path = shown[0].path.expect("it is watched");
    assert_eq!((path.status, path.failed), (Some(FAILED), Some(Duration::from_secs(20))));
    bench.path(2, Status { failures: 1, ..UP });
    assert_eq!(bench.state(2), State::Active);
    let link = bench.come(2, None);
    bench.path(2, Status { failures: 2, ..FAILED });
    assert_eq!((bench.said(link).last().unwrap().as_str(), bench.state(2)), ("6/10 BFD down", State::Idle));
    bench.pass(Duration::from_secs(31));
    assert_eq!(bench.state(2), State::Active, "its BFD may be gone for good");
    bench.come(2, None);
}

#[test]
fn a_failure_that_was_over_before_it_was_told_counts() {
    let (mut bench, _) = bench(None);
    bench.path(2, Status { failures: 1, ..UP });
    assert_eq!((bench.facts(|fact| matches!(fact, Fact::Down { .. })), bench.state(2)), (1, State::Active));
}

#[test]
fn who_shuts_bfd_down_keeps_the_session() {
    let (mut bench, link) = bench(None);
    let admin =
        Status { state: Bfd::Down, diagnostic: Diagnostic::NEIGHBOR_SIGNALED_DOWN, remote_state: Bfd::AdminDown, ..UP };
    bench.path(2, admin);
    bench.want(wanted(2));
    assert!(bench.said(link).is_empty() && bench.state(2) == State::Established);
    assert_eq!(bench.facts(|fact| matches!(fact, Fact::PathShut)), 1, "it is told");
    bench.path(2, FAILED);
    assert_eq!(bench.state(2), State::Established, "what comes late is of a session that is not wanted any more");
    let (mut bench, _) = self::bench(None);
    bench.path(2, FAILED);
    bench.path(2, Status { failures: 1, ..admin });
    assert_eq!(bench.state(2), State::Active, "RFC 5882 4.1");
}

#[test]
fn a_neighbour_without_bfd_is_not_harmed() {
    let mut bench = Bench::new(None);
    bench.want(watched(2));
    let link = bench.come(2, None);
    bench.said(link);
    bench.path(2, Status { failures: 0, yours: 0, ..FAILED });
    bench.pass(Duration::from_secs(20));
    assert_eq!(bench.state(2), State::Established);
}

#[test]
fn changing_bfd_keeps_the_session() {
    let (mut bench, link) = bench(None);
    let mut slower = watched(2);
    slower.liveness.as_mut().unwrap().wanted.settings.multiplier = 9;
    bench.want(slower);
    bench.want(wanted(2));
    bench.want(watched(2));
    assert!(bench.said(link).is_empty() && bench.state(2) == State::Established);
    bench.path(2, Status { mine: 8, ..UP });
    assert_eq!(bench.state(2), State::Established, "a new session of BFD has no failures");
}

#[test]
fn a_restarting_neighbour_keeps_its_routes_unless_its_bfd_outlives_it() {
    for (independent, routes) in [(false, 2), (true, 0)] {
        let (mut bench, link) = bench(Some(false));
        bench.path(2, Status { independent, ..UP });
        bench.step(Input::Closed(link));
        assert_eq!(bench.routes_of(2), 2, "stale");
        bench.path(2, Status { independent, ..FAILED });
        assert_eq!((bench.routes_of(2), bench.state(2)), (routes, State::Active), "C bit {independent}");
    }
}

/// A neighbour that has crashed, and is back: its stale routes, its new session, and BFD that is up on packets of the process before.
fn back(status: Status) -> (Bench, LinkId) {
    let (mut bench, link) = bench(Some(false));
    bench.path(2, status);
    bench.pass(Duration::from_secs(60));
    bench.step(Input::Closed(link));
    bench.pass(Duration::from_millis(200));
    let link = bench.come(2, Some(true));
    bench.said(link);
    (bench, link)
}

#[test]
fn a_neighbour_that_is_back_before_its_bfd_is_found_gone_keeps_its_session_and_its_routes() {
    let signalled = Status { diagnostic: Diagnostic::NEIGHBOR_SIGNALED_DOWN, ..FAILED };
    let over = Status { failures: 1, ..UP };
    for told in [FAILED, signalled, over] {
        let (mut bench, link) = back(UP);
        bench.pass(Duration::from_millis(700));
        bench.path(2, told);
        assert!(bench.said(link).is_empty(), "{told:?}");
        assert_eq!((bench.state(2), bench.routes_of(2)), (State::Established, 2));
        assert_eq!(bench.facts(|fact| matches!(fact, Fact::PathOutlived(_))), 1);
        assert_eq!(bench.facts(|fact| matches!(fact, Fact::PathFailed(_))), 0);
        // BFD is up again, with the new process: from now on a failure is one.
        bench.path(2, over);
        bench.path(2, Status { failures: 2, ..FAILED });
        assert_eq!((bench.state(2), bench.routes_of(2)), (State::Idle, 0));
    }
}

#[test]
fn a_neighbour_whose_bfd_is_found_gone_before_it_is_back_keeps_its_routes() {
    let (mut bench, link) = bench(Some(false));
    bench.step(Input::Closed(link));
    bench.path(2, FAILED);
    let link = bench.come(2, Some(true));
    bench.said(link);
    assert_eq!((bench.state(2), bench.routes_of(2)), (State::Established, 2));
    assert_eq!(
        bench.facts(|fact| matches!(fact, Fact::PathFailed(_))),
        0,
        "a process that ends is no failure of the path"
    );
    bench.path(2, Status { failures: 1, ..UP });
    bench.path(2, Status { failures: 2, ..FAILED });
    assert_eq!((bench.state(2), bench.routes_of(2)), (State::Idle, 0), "the path itself");
}

/// Time from the failure of BFD with a process that is gone until BFD with the next one has to be up.
const BACK: Duration = Duration::from_millis(10_900);

#[test]
fn a_neighbour_that_dies_before_its_bfd_is_back_from_a_restart_is_found_gone_long_before_the_hold_time() {
    let instant = Duration::from_millis(1);
    let heard = Status { state: Bfd::Init, remote_state: Bfd::Down, failures: 1, yours: 11, ..UP };
    // It dies before its BFD has begun, or just afterwards.
    for told in [None, Some(heard)] {
        let (mut bench, link) = back(UP);
        bench.pass(Duration::from_millis(700));
        bench.path(2, FAILED);
        told.into_iter().for_each(|status| bench.path(2, status));
        bench.pass(BACK - instant);
        assert_eq!((bench.state(2), bench.routes_of(2)), (State::Established, 2), "{told:?}");
        bench.pass(instant);
        let said = bench.said(link);
        assert_eq!(said.last().map(String::as_str), Some("6/9 hard reset (6/10 BFD down)"), "{told:?}");
        assert_eq!((bench.state(2), bench.routes_of(2)), (State::Idle, 0), "{told:?}");
        assert_eq!(bench.facts(|fact| matches!(fact, Fact::PathFailed(_))), 1);
        // Its BFD may be gone for good, and the next session is not harmed by that.
        bench.pass(Duration::from_secs(31));
        bench.come(2, Some(true));
        bench.pass(2 * BACK);
        assert_eq!(bench.state(2), State::Established);
    }
}

#[test]
fn a_neighbour_that_dies_after_its_return_is_found_gone_where_its_bfd_was_missed_while_it_was_away() {
    let (mut bench, link) = bench(Some(false));
    bench.step(Input::Closed(link));
    bench.path(2, FAILED);
    bench.pass(Duration::from_secs(60));
    assert_eq!((bench.state(2), bench.routes_of(2)), (State::Active, 2), "it is not back yet");
    bench.come(2, Some(true));
    bench.pass(BACK);
    assert_eq!((bench.state(2), bench.routes_of(2)), (State::Idle, 0));
}

#[test]
fn a_neighbour_whose_next_process_begins_with_bfd_is_found_gone_where_it_dies_before_that_is_up() {
    let heard = Status { state: Bfd::Init, remote_state: Bfd::Down, failures: 1, yours: 11, ..UP };
    let silent = Status { state: Bfd::Down, yours: 0, ..heard };
    // The next process, or the one after it.
    for ends_once_more in [false, true] {
        let (mut bench, link) = bench(Some(false));
        bench.step(Input::Closed(link));
        bench.path(2, FAILED);
        bench.path(2, heard);
        let link = bench.come(2, Some(true));
        if ends_once_more {
            bench.step(Input::Closed(link));
            bench.path(2, silent);
            bench.path(2, heard);
            bench.come(2, Some(true));
        }
        bench.path(2, silent);
        bench.pass(BACK - Duration::from_millis(1));
        assert_eq!(bench.state(2), State::Established, "{ends_once_more}");
        bench.pass(Duration::from_millis(1));
        assert_eq!((bench.state(2), bench.routes_of(2)), (State::Idle, 0), "{ends_once_more}");
    }
}

#[test]
fn a_neighbour_whose_bfd_comes_back_or_is_shut_after_a_restart_keeps_its_session() {
    let up = Status { failures: 1, ..UP };
    let shut = Status { remote_state: Bfd::AdminDown, failures: 1, ..FAILED };
    for told in [up, shut] {
        let (mut bench, _) = back(UP);
        bench.path(2, FAILED);
        bench.pass(BACK - Duration::from_millis(1));
        bench.path(2, told);
        bench.pass(2 * BACK);
        assert_eq!((bench.state(2), bench.routes_of(2)), (State::Established, 2), "{told:?}");
    }
    // Nor where the next process sends slowly until BFD is up.
    let (mut bench, _) = back(UP);
    bench.path(2, FAILED);
    bench.pass(BACK - Duration::from_millis(1));
    let detection = Duration::from_secs(30);
    bench.path(2, Status { state: Bfd::Init, remote_state: Bfd::Down, failures: 1, yours: 11, detection, ..UP });
    bench.pass(detection);
    bench.path(2, up);
    bench.pass(2 * BACK);
    assert_eq!((bench.state(2), bench.routes_of(2)), (State::Established, 2));
    // Nor is it lost with what is known of all paths, or where nobody watches any more.
    for forgets in [true, false] {
        let (mut bench, _) = back(UP);
        bench.path(2, FAILED);
        match forgets {
            true => bench.step(Input::PathsUnknown),
            false => bench.want(wanted(2)),
        }
        bench.pass(2 * BACK);
        assert_eq!((bench.state(2), bench.routes_of(2)), (State::Established, 2));
    }
}

#[test]
fn routes_that_a_neighbour_leaves_when_it_says_that_bfd_is_down_go_when_ours_says_so_too() {
    let (mut bench, link) = bench(Some(false));
    bench.receive(link, &message::notification(&Notification::new(Reason::BFD_DOWN)));
    assert_eq!((bench.state(2), bench.routes_of(2)), (State::Active, 2), "RFC 8538 4: it was no hard reset");
    bench.path(2, Status { diagnostic: Diagnostic::NEIGHBOR_SIGNALED_DOWN, ..FAILED });
    assert_eq!((bench.state(2), bench.routes_of(2)), (State::Active, 0), "both ends say so");
    assert_eq!(bench.facts(|fact| matches!(fact, Fact::PathFailed(_))), 1);
    // One that says something else has no process that is gone either, but its path may be as good as it was.
    let (mut bench, link) = self::bench(Some(false));
    bench.receive(link, &message::notification(&Notification::new(Reason::RESET)));
    bench.path(2, FAILED);
    assert_eq!((bench.state(2), bench.routes_of(2)), (State::Active, 2), "it begins anew, and its BFD with it");
}

#[test]
fn only_the_failure_of_a_process_that_is_gone_is_let_pass() {
    let (mut bench, _) = back(UP);
    bench.pass(Duration::from_secs(3));
    bench.path(2, FAILED);
    assert_eq!(bench.state(2), State::Idle, "its silence would have been noticed earlier");
    let independent = Status { independent: true, ..UP };
    let (mut bench, _) = back(independent);
    bench.path(2, Status { independent: true, ..FAILED });
    assert_eq!(bench.state(2), State::Idle, "its BFD does not end with a process");
    // A path that comes and goes ends each session, however young, as BFD came up after the one before.
    let (mut bench, _) = self::bench(None);
    for failures in 1..4 {
        bench.path(2, Status { failures, ..FAILED });
        assert_eq!(bench.state(2), State::Idle);
        bench.path(2, Status { failures, ..UP });
        bench.pass(Duration::from_secs(31));
        bench.come(2, None);
    }
}

#[test]
fn a_session_that_was_reset_has_the_same_process_behind_it() {
    let hardened = [Reason::RESET, Reason::CONFIGURATION_CHANGE, Reason::COLLISION, Reason::MALFORMED_ATTRIBUTES]
        .map(|reason| Notification::new(reason).hardened());
    for said in [Notification::new(Reason::RESET)].into_iter().chain(hardened) {
        let (mut bench, link) = bench(Some(false));
        bench.pass(Duration::from_secs(60));
        bench.receive(link, &message::notification(&said));
        bench.pass(Duration::from_secs(31));
        bench.come(2, Some(false));
        bench.path(2, FAILED);
        let failures = bench.facts(|fact| matches!(fact, Fact::PathFailed(_)));
        assert_eq!(failures, 1, "its BFD has never been another one: {said:?}");
        assert_eq!(bench.state(2), State::Idle);
    }
}

#[test]
fn a_neighbour_that_is_not_watched_any_more_is_kept_from_nothing_and_wakes_nobody() {
    let (mut bench, _) = bench(None);
    for failures in 1..3 {
        bench.path(2, Status { failures, ..FAILED });
        bench.path(2, Status { failures, ..UP });
        if failures == 1 {
            bench.come(2, None);
        }
    }
    assert_eq!(bench.state(2), State::Idle, "it has to be up for a second");
    bench.want(wanted(2));
    assert_eq!(bench.state(2), State::Active);
    bench.now += Duration::from_secs(2);
    bench.step(Input::Tick);
    assert!(bench.speaker.deadline().is_none_or(|deadline| deadline > bench.now));
}

#[test]
fn a_neighbour_that_an_operator_has_stopped_stays_so() {
    let (mut bench, _) = bench(None);
    bench.path(2, FAILED);
    bench.step(Order::Stop(address(2), Notification::new(Reason::SHUTDOWN)));
    bench.path(2, Status { failures: 1, ..UP });
    bench.pass(Duration::from_secs(60));
    assert_eq!(bench.state(2), State::Idle);
    // Also where nobody watches the path any more.
    let (mut bench, _) = self::bench(None);
    bench.path(2, FAILED);
    bench.step(Order::Stop(address(2), Notification::new(Reason::SHUTDOWN)));
    bench.want(wanted(2));
    bench.pass(Duration::from_secs(60));
    assert_eq!(bench.state(2), State::Idle);
}

#[test]
fn what_failed_before_a_neighbour_was_known_does_not_end_its_session() {
    let mut bench = Bench::new(None);
    bench.want(watched(2));
    let link = bench.come(2, None);
    bench.said(link);
    // BFD goes on while the neighbour is removed and added, and tells how it stands.
    bench.path(2, Status { failures: 3, ..UP });
    assert!(bench.said(link).is_empty() && bench.state(2) == State::Established);
    assert_eq!(bench.facts(|fact| matches!(fact, Fact::PathUp)), 1);
    bench.path(2, Status { failures: 4, ..FAILED });
    assert_eq!(bench.state(2), State::Idle);
}

#[test]
fn what_was_told_of_one_session_of_bfd_is_not_said_of_another() {
    let is_up = |bench: &Bench| bench.speaker.neighbour(address(2)).unwrap().summary().path_is_up;
    let (mut bench, _) = bench(None);
    assert_eq!(is_up(&bench), Some(true));
    let mut farther = watched(2);
    farther.liveness.as_mut().unwrap().path = Path::Multihop;
    bench.want(farther);
    assert_eq!((is_up(&bench), bench.state(2)), (Some(false), State::Established));
    let (mut bench, _) = self::bench(None);
    bench.step(Input::PathsUnknown);
    assert_eq!((is_up(&bench), bench.state(2)), (Some(false), State::Established), "BFD has died");
    bench.path(2, Status { mine: 8, ..UP });
    assert_eq!(is_up(&bench), Some(true));
}

#[test]
fn a_path_that_is_back_does_not_lift_what_another_limit_has_imposed() {
    let mut bench = Bench::new(None);
    let most = PerFamily { v4: Some(2), v6: None };
    bench.want(WantedNeighbour { most, ..watched(2) });
    bench.path(2, UP);
    bench.come(2, None);
    bench.path(2, FAILED);
    // BFD stays down, as where only its port is shut, and the session is made after a while.
    bench.pass(Duration::from_secs(31));
    let link = bench.come(2, None);
    bench.announce(link, 2, &prefixes(3));
    assert_eq!(bench.state(2), State::Idle, "too many routes");
    bench.path(2, Status { failures: 1, ..UP });
    bench.pass(Duration::from_secs(200));
    assert_eq!(bench.state(2), State::Idle, "for its five minutes");
}

#[test]
fn the_more_often_a_path_fails_the_longer_it_has_to_be_up() {
    let (mut bench, _) = bench(None);
    let mut waits = Vec::new();
    for failures in 1..8 {
        bench.path(2, Status { failures, ..FAILED });
        bench.pass(Duration::from_millis(500));
        bench.path(2, Status { failures, ..UP });
        let since = bench.now;
        while bench.state(2) == State::Idle {
            bench.pass(Duration::from_millis(500));
        }
        waits.push((bench.now - since).as_secs());
        bench.come(2, None);
    }
    assert_eq!(waits, [0, 1, 2, 4, 8, 16, 29], "the seventh has been without a session for 30 s");
    // It is forgotten after a minute without a failure.
    bench.pass(Duration::from_secs(61));
    bench.path(2, Status { failures: 8, ..FAILED });
    bench.path(2, Status { failures: 8, ..UP });
    assert_eq!(bench.state(2), State::Active);
    // And up means up all the time.
    bench.come(2, None);
    bench.path(2, Status { failures: 9, ..FAILED });
    bench.path(2, Status { failures: 9, ..UP });
    bench.pass(Duration::from_millis(700));
    bench.path(2, Status { failures: 10, ..FAILED });
    bench.pass(Duration::from_millis(700));
    assert_eq!(bench.state(2), State::Idle);
}
