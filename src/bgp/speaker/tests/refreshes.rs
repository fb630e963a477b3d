//! Route refreshes that a neighbour begins, and those that it asks for: its limit holds through them, and they come at a pace.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A speaker whose neighbour with number 2 may send so many prefixes of IPv4.
fn limited(most: u32) -> Bench {
    let mut bench = Bench::new(None);
    bench.want(limited_to(most));
    bench
}

fn limited_to(most: u32) -> WantedNeighbour {
    WantedNeighbour { most: PerFamily { v4: Some(most), v6: None }, ..wanted(2) }
}

fn mark(kind: RefreshKind) -> Vec<u8> {
    message::refresh(&Refresh { family: Family::V4, kind })
}

fn count(bench: &Bench) -> (u32, u32) {
    let id = bench.speaker.neighbour(address(2)).unwrap().id();
    let count = bench.speaker.rib().table().count(id).v4;
    (count.received, count.stale)
}

impl Bench {
    /// Connects the neighbour with number 2, with enhanced route refresh, and with graceful restart or without.
    fn come_with_marks(&mut self, restarts: bool) -> LinkId {
        self.next += 1;
        let link = LinkId(self.next);
        self.step(Input::Accepted(address(2), link));
        let families = PerFamily { v4: Some(true), v6: Some(true) };
        let restart = restarts.then_some(GracefulRestart { families, seconds: 120, ..GracefulRestart::default() });
        let capabilities = Capabilities {
            families: ALL,
            multiprotocol: true,
            refresh: true,
            enhanced_refresh: true,
            asn: Some(65001),
            restart,
            ..Capabilities::default()
        };
        let identifier = Ipv4Addr::new(192, 0, 2, 2);
        self.receive(link, &message::open(&Open { asn: 65001, hold_time: 90, identifier, capabilities }));
        self.receive(link, &message::keepalive());
        assert_eq!(self.state(2), State::Established);
        link
    }
}

#[test]
fn who_begins_one_refresh_after_the_other_with_other_prefixes_each_time_goes_no_further_than_twice_its_limit() {
    for wait in [Duration::ZERO, 2 * SECOND] {
        let mut bench = limited(10);
        let link = bench.come_with_marks(false);
        for round in 0..20 {
            bench.announce(link, 2, &prefixes(160)[8 * round..8 * round + 8]);
            bench.receive(link, &mark(RefreshKind::Begin));
            assert!(count(&bench).0 <= 20, "{round}: {:?}", count(&bench));
            bench.pass(wait);
        }
        assert_eq!((bench.state(2), count(&bench)), (State::Idle, (0, 0)));
        assert_eq!(bench.facts(|fact| matches!(fact, Fact::TooMany { family: Family::V4, most: 10 })), 1);
    }
}

#[test]
fn a_full_table_that_has_changed_is_sent_again_and_the_refresh_may_begin_anew() {
    let mut bench = limited(10);
    let link = bench.come_with_marks(false);
    bench.announce(link, 2, &prefixes(10));
    bench.receive(link, &mark(RefreshKind::Begin));
    bench.announce(link, 2, &prefixes(15)[5..13]);
    assert_eq!(count(&bench), (13, 5));
    bench.pass(2 * SECOND);
    // It was asked once more.
    bench.receive(link, &mark(RefreshKind::Begin));
    assert_eq!(count(&bench), (13, 13));
    bench.announce(link, 2, &prefixes(15)[5..]);
    assert_eq!((bench.state(2), count(&bench)), (State::Established, (15, 5)));
    bench.receive(link, &mark(RefreshKind::End));
    assert_eq!((bench.state(2), count(&bench)), (State::Established, (10, 0)));
}

#[test]
fn beginnings_that_follow_too_soon_change_nothing_and_neither_do_their_ends() {
    let mut bench = limited(10);
    let link = bench.come_with_marks(false);
    bench.announce(link, 2, &prefixes(3));
    bench.receive(link, &mark(RefreshKind::Begin));
    bench.announce(link, 2, &prefixes(1));
    bench.receive(link, &mark(RefreshKind::Begin).repeat(1000));
    assert_eq!(count(&bench), (3, 2), "the refresh in progress goes on");
    bench.receive(link, &mark(RefreshKind::End));
    assert_eq!(count(&bench), (1, 0));
    bench.announce(link, 2, &prefixes(3));
    bench.receive(link, &[mark(RefreshKind::Begin), mark(RefreshKind::End)].concat().repeat(300));
    assert_eq!(count(&bench), (3, 0));
    bench.pass(2 * SECOND);
    bench.receive(link, &mark(RefreshKind::Begin));
    assert_eq!(count(&bench), (3, 3));
    bench.receive(link, &mark(RefreshKind::End));
    assert_eq!(count(&bench), (0, 0));
}

#[test]
fn a_refresh_before_the_end_of_rib_of_a_neighbour_with_graceful_restart_is_none() {
    let mut bench = limited(10);
    let link = bench.come_with_marks(true);
    bench.announce(link, 2, &prefixes(3));
    bench.step(Input::Closed(link));
    let link = bench.come_with_marks(true);
    bench.announce(link, 2, &prefixes(1));
    bench.receive(link, &mark(RefreshKind::Begin));
    assert_eq!(count(&bench), (3, 2));
    bench.receive(link, &mark(RefreshKind::End));
    assert_eq!(count(&bench), (3, 2), "its restart goes on");
    bench.ends(link);
    assert_eq!(count(&bench), (1, 0));
    bench.receive(link, &mark(RefreshKind::Begin));
    assert_eq!(count(&bench), (1, 1));
}

#[test]
fn who_asks_without_end_is_told_at_a_pace_and_the_last_question_has_its_answer() {
    let mut bench = limited(10);
    bench.want(wanted(3));
    let other = bench.come(3, None);
    bench.step(Order::Originate("10.1.0.0/24".parse().unwrap(), Box::new(Attributes::local(address(1)))));
    let link = bench.come_with_marks(false);
    bench.said(link);
    // BoRR, the route, EoRR.
    let answer = ["refresh", "update", "refresh"];
    bench.receive(link, &mark(RefreshKind::Request));
    assert_eq!(bench.said(link), answer);
    for _ in 0..100 {
        bench.receive(link, &mark(RefreshKind::Request));
        assert_eq!(bench.said(link), [""; 0]);
    }
    bench.pass(2 * SECOND);
    assert_eq!(bench.said(link), answer, "one for all of them");
    bench.pass(10 * SECOND);
    assert_eq!(bench.said(link), [""; 0]);
    bench.receive(link, &mark(RefreshKind::Request));
    assert_eq!(bench.said(link), answer);
    // One that it has not been told yet is forgotten with its session.
    bench.receive(link, &mark(RefreshKind::Request));
    bench.step(Input::Closed(link));
    bench.pass(2 * SECOND);
    bench.receive(other, &message::keepalive());
    assert_eq!((bench.said(link).len(), bench.state(3)), (0, State::Established));
}

#[test]
fn what_is_kept_of_a_neighbour_that_is_away_or_just_back_goes_where_a_new_limit_is_below_it() {
    for is_back in [false, true] {
        let mut bench = limited(10);
        let link = bench.come_with_marks(true);
        bench.announce(link, 2, &prefixes(8));
        bench.step(Input::Closed(link));
        let back = is_back.then(|| bench.come_with_marks(true));
        bench.want(limited_to(3));
        assert_eq!(count(&bench), (0, 0));
        let link = back.unwrap_or_else(|| bench.come_with_marks(true));
        bench.announce(link, 2, &prefixes(3));
        assert_eq!((bench.state(2), count(&bench)), (State::Established, (3, 0)));
    }
}
