//! Hold timer, keepalive timer, dials and negotiated values.

use super::*;

#[test]
fn the_smaller_hold_time_counts_and_a_third_of_it_is_the_time_between_keepalives() {
    let mut bench = Bench::new(settings());
    bench.step(Event::Start);
    bench.step(Event::Dialled(OURS));
    bench.receive(OURS, &message::open(&Open { hold_time: 30, ..their_open() }));
    bench.keepalive(OURS);
    assert_eq!(bench.peer.agreement().map(|agreement| agreement.hold_time), Some(30));
    assert_eq!(words(&bench.pass(9.9)), "");
    assert_eq!(words(&bench.pass(0.2)), "KEEPALIVE on ours");
    bench.keepalive(OURS);
    let effects = bench.pass(31.0);
    assert!(words(&effects).contains("NOTIFICATION 4/0 hold timer expired on ours"), "{}", words(&effects));
}

#[test]
fn without_a_hold_time_there_are_no_keepalives_and_silence_is_no_fault() {
    let mut bench = Bench::new(Settings { hold_time: 0, ..settings() });
    bench.step(Event::Start);
    bench.step(Event::Dialled(OURS));
    bench.open(OURS);
    bench.keepalive(OURS);
    assert_eq!(words(&bench.pass(100_000.0)), "");
    assert_eq!(bench.peer.state(), State::Established);
}

#[test]
fn without_a_hold_time_the_first_keepalive_is_awaited_for_four_minutes_and_after_it_nothing() {
    for at_theirs in [false, true] {
        let mut bench = Bench::new(Settings { hold_time: 0, ..settings() });
        bench.step(Event::Start);
        let (link, side) = if at_theirs { (THEIRS, "theirs") } else { (OURS, "ours") };
        bench.step(if at_theirs { Event::Accepted(link) } else { Event::Dialled(link) });
        bench.pass(5.0);
        bench.open(link);
        assert_eq!(bench.peer.state(), State::OpenConfirm);
        let effects = bench.pass(239.0);
        assert!(!words(&effects).contains("NOTIFICATION"), "{}", words(&effects));
        let effects = bench.pass(1.1);
        let end = format!("NOTIFICATION 4/0 hold timer expired on {side}, close {side}");
        assert!(words(&effects).contains(&end), "{}", words(&effects));
    }
    let mut bench = Bench::new(Settings { hold_time: 0, ..settings() });
    bench.step(Event::Start);
    bench.step(Event::Dialled(OURS));
    bench.open(OURS);
    bench.pass(200.0);
    bench.keepalive(OURS);
    assert_eq!((bench.peer.state(), bench.peer.deadline()), (State::Established, None));
}

#[test]
fn without_a_hold_time_who_takes_the_place_of_a_session_has_to_confirm_it_as_well() {
    let mut bench = Bench::established(Settings { hold_time: 0, ..settings() });
    bench.step(Event::Accepted(THEIRS));
    bench.open(THEIRS);
    bench.step(Event::Closed(OURS));
    assert_eq!(bench.peer.state(), State::OpenConfirm);
    bench.now += Duration::from_secs(240);
    let effects = bench.step(Event::Tick);
    assert!(words(&effects).contains("NOTIFICATION 4/0 hold timer expired on theirs"), "{}", words(&effects));
}

#[test]
fn chance_shortens_times_by_a_quarter_at_the_most() {
    let now = Instant::now();
    let time = Duration::from_secs(1000);
    let shortest = Moment { now, jitter: 255 }.after(time);
    assert_eq!(Moment { now, jitter: 0 }.after(time), now + time);
    assert!(shortest >= now + time * 3 / 4 && shortest < now + time * 4 / 5);
}

#[test]
fn who_was_too_busy_to_listen_forgives_a_silence_once() {
    let mut bench = Bench::established(settings());
    bench.now += Duration::from_secs(120);
    assert_eq!(words(&bench.step(Event::Tick)), "KEEPALIVE on ours", "30 seconds late: the fault is ours");
    bench.keepalive(OURS);
    assert_eq!(bench.peer.state(), State::Established);
    bench.now += Duration::from_secs(120);
    bench.step(Event::Tick);
    let effects = bench.pass(3.0);
    assert!(words(&effects).contains("NOTIFICATION 4/0"), "but not for ever: {}", words(&effects));
}

#[test]
fn a_session_rests_only_where_a_keepalive_of_ours_comes_before_the_hold_timer_expires() {
    let mut bench = Bench::established(settings());
    bench.pass(10.0);
    bench.keepalive(OURS);
    let rests = |bench: &Bench| bench.peer.is_at_rest(OURS, bench.now);
    bench.pass(36.0);
    assert!(rests(&bench), "nothing for four tenths of the hold time");
    bench.pass(30.0);
    assert!(!rests(&bench), "nothing for more than seven");
    bench.keepalive(OURS);
    assert!(rests(&bench), "a KEEPALIVE");
}

#[test]
fn the_hold_timer_counts_from_the_arrival_of_what_was_read_later() {
    let mut bench = Bench::established(settings());
    bench.pass(20.0);
    bench.keepalive(OURS);
    bench.pass(25.0);
    let arrived = bench.now - Duration::from_secs(40);
    bench.peer.heard_last(THEIRS, bench.now - Duration::from_secs(80));
    bench.peer.heard_last(OURS, arrived);
    let effects = bench.pass(49.9);
    assert!(!words(&effects).contains("NOTIFICATION"), "{}", words(&effects));
    let effects = bench.pass(0.2);
    assert!(words(&effects).contains("NOTIFICATION 4/0 hold timer expired on ours"), "{}", words(&effects));
}

#[test]
fn that_something_arrived_before_it_was_read_lengthens_no_hold_time_and_takes_back_no_patience() {
    let mut bench = Bench::established(settings());
    bench.pass(20.0);
    bench.peer.heard_last(OURS, bench.now);
    assert!(words(&bench.pass(70.1)).contains("NOTIFICATION 4/0"), "nothing was read");
    let mut bench = Bench::established(settings());
    let last = bench.now;
    bench.now += Duration::from_secs(120);
    assert_eq!(words(&bench.step(Event::Tick)), "KEEPALIVE on ours");
    bench.peer.heard_last(OURS, last);
    assert_eq!(words(&bench.step(Event::Tick)), "", "we were busy: a moment more");
    assert!(words(&bench.pass(3.0)).contains("NOTIFICATION 4/0"));
}

#[test]
fn keepalives_leave_after_a_third_of_the_hold_time_or_up_to_a_quarter_before_it() {
    for (hold_time, slack) in [(90, 2.0), (9, 0.2), (3, 1.0 / 15.0)] {
        for jitter in [0, 100, 255] {
            let mut bench = Bench::established(Settings { hold_time, ..settings() });
            let third = f64::from(hold_time) / 3.0;
            let said = bench.peer.deadline().expect("a keepalive");
            assert_eq!(words(&bench.peer.step(Moment { now: said, jitter }, Event::Tick)), "KEEPALIVE on ours");
            let [ready, at] = [bench.peer.ready(), bench.peer.deadline()]
                .map(|time| time.expect("a keepalive").saturating_duration_since(said).as_secs_f64());
            assert!(ready >= third * 0.75 - 1e-6 && at <= third + 1e-6, "{hold_time} {jitter}: {ready} {at}");
            assert!((at - ready - slack).abs() < 1e-3, "{hold_time} {jitter}: {ready} {at}");
        }
    }
}

#[test]
fn dials_are_further_and_further_apart() {
    let mut bench = Bench::new(settings());
    assert_eq!(words(&bench.step(Event::Start)), "dial", "at once");
    let mut waits = Vec::new();
    for _ in 0..9 {
        bench.step(Event::DialFailed);
        let before = bench.now;
        bench.now = bench.peer.deadline().unwrap();
        waits.push((bench.now - before).as_secs());
        assert_eq!(words(&bench.step(Event::Tick)), "dial");
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    assert!(words(&bench.pass(11.0)).starts_with("abandon the dial"), "a dial that takes too long");
}

#[test]
fn a_passive_one_never_dials() {
    let mut bench = Bench::new(Settings { passive: true, ..settings() });
    assert_eq!(words(&bench.step(Event::Start)), "");
    assert_eq!((bench.peer.state(), bench.peer.deadline()), (State::Active, None));
    bench.step(Event::Accepted(THEIRS));
    bench.step(Event::Closed(THEIRS));
    assert_eq!(bench.peer.deadline(), None);
}

#[test]
fn who_sends_rubbish_is_not_let_in_for_a_while_that_grows() {
    let mut bench = Bench::new(Settings { passive: true, ..settings() });
    bench.step(Event::Start);
    let mut waits = Vec::new();
    for _ in 0..4 {
        bench.step(Event::Accepted(THEIRS));
        bench.receive(THEIRS, &[1; 100]);
        assert_eq!(bench.peer.state(), State::Idle);
        let refusal = "NOTIFICATION 6/5 connection rejected on third, close third";
        assert_eq!(words(&bench.step(Event::Accepted(THIRD))), refusal);
        let before = bench.now;
        bench.now = bench.peer.deadline().unwrap();
        waits.push((bench.now - before).as_secs());
        bench.step(Event::Tick);
    }
    assert_eq!(waits, [1, 2, 4, 8]);
}

#[test]
fn families_numbers_and_sizes_are_what_both_can() {
    let agree = |change: fn(&mut Open)| {
        let mut open = their_open();
        change(&mut open);
        settings().agree(open)
    };
    let all = agree(|_| {}).unwrap();
    let expected = Dialect {
        internal: true,
        four_octets: true,
        families: PerFamily { v4: true, v6: true },
        extended_next_hop: true,
        extended_message: true,
    };
    assert_eq!(all.dialect, expected);
    let plain = agree(|open| open.capabilities = message::Capabilities::default()).unwrap();
    let families = PerFamily { v4: true, v6: false };
    let few = Dialect { four_octets: false, families, extended_next_hop: false, extended_message: false, ..expected };
    assert_eq!(plain.dialect, few);
    assert_eq!((plain.restart, plain.refresh), (None, false));
    let refused = |change: fn(&mut Open)| agree(change).map(drop).unwrap_err();
    assert_eq!(refused(|open| open.asn = 65002).reason, Reason::BAD_PEER_AS);
    assert_eq!(refused(|open| open.identifier = LOCAL.identifier).reason, Reason::BAD_IDENTIFIER);
    let none = refused(|open| open.capabilities.families = PerFamily::default());
    let wanted = vec![1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1];
    assert_eq!(none, Notification::with(Reason::UNSUPPORTED_CAPABILITY, wanted));
}

#[test]
fn whoever_may_come_where_no_number_is_expected() {
    let any = Settings { asn: None, ..settings() };
    let mut open = their_open();
    open.asn = 64999;
    open.identifier = LOCAL.identifier;
    let agreement = any.agree(open).unwrap();
    assert!(!agreement.dialect.internal, "and its identifier may be ours: RFC 6286");
}
