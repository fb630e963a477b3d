//! Routes retained over the end of a session: RFC 4724 and RFC 8538.

use super::*;

const ALL: PerFamily<bool> = PerFamily { v4: true, v6: true };
const NONE: PerFamily<bool> = PerFamily { v4: false, v6: false };

fn kept(effects: &[Effect]) -> PerFamily<bool> {
    let down = effects.iter().find_map(|effect| match effect {
        Effect::Down { kept, .. } => Some(*kept),
        _ => None,
    });
    down.expect("the session has ended")
}

fn dropped(effects: &[Effect]) -> PerFamily<bool> {
    let mut all = NONE;
    for effect in effects {
        if let Effect::DropStale(families) = effect {
            all = PerFamily::from_fn(|family| *all.of(family) || *families.of(family));
        }
    }
    all
}

/// Establishes a session with a neighbour with this graceful restart capability.
fn with(restart: Option<GracefulRestart>) -> Bench {
    let mut bench = Bench::new(settings());
    bench.step(Event::Start);
    bench.step(Event::Dialled(OURS));
    come_back(&mut bench, OURS, restart);
    bench
}

fn come_back(bench: &mut Bench, link: LinkId, restart: Option<GracefulRestart>) -> Vec<Effect> {
    let mut open = their_open();
    open.capabilities.restart = restart;
    let mut effects = bench.receive(link, &message::open(&open));
    effects.extend(bench.keepalive(link));
    assert_eq!(bench.peer.state(), State::Established);
    effects
}

fn restart() -> GracefulRestart {
    GracefulRestart {
        restarting: false,
        notifications: false,
        seconds: 120,
        families: PerFamily { v4: Some(true), v6: Some(true) },
    }
}

#[test]
fn routes_outlive_a_connection_that_breaks_but_not_what_was_said() {
    assert_eq!(kept(&with(Some(restart())).step(Event::Closed(OURS))), ALL);
    assert_eq!(kept(&with(None).step(Event::Closed(OURS))), NONE);
    let cease = message::notification(&Notification::new(Reason::RESET));
    assert_eq!(kept(&with(Some(restart())).receive(OURS, &cease)), NONE, "RFC 4724");
    let both = GracefulRestart { notifications: true, ..restart() };
    assert_eq!(kept(&with(Some(both)).receive(OURS, &cease)), ALL, "RFC 8538");
    let hard = message::notification(&Notification::new(Reason::RESET).hardened());
    assert_eq!(kept(&with(Some(both)).receive(OURS, &hard)), NONE, "RFC 8538");
    let only_v4 = GracefulRestart { families: PerFamily { v4: Some(false), v6: None }, ..restart() };
    assert_eq!(kept(&with(Some(only_v4)).step(Event::Closed(OURS))), PerFamily { v4: true, v6: false });
}

#[test]
fn a_session_that_loses_against_another_connection_costs_no_route_even_in_the_middle_of_a_restart() {
    let collision = message::notification(&Notification::new(Reason::COLLISION));
    let mut bench = with(Some(restart()));
    assert_eq!(kept(&bench.receive(OURS, &collision)), ALL);
    // The same after it is back, before any route is received again.
    let mut bench = with(Some(restart()));
    bench.step(Event::Closed(OURS));
    bench.pass(2.0);
    bench.step(Event::Dialled(THIRD));
    come_back(&mut bench, THIRD, Some(restart()));
    bench.step(Event::Accepted(THEIRS));
    let effects = bench.receive(THIRD, &collision);
    assert_eq!((kept(&effects), dropped(&effects)), (ALL, NONE), "{}", words(&effects));
    assert_eq!(bench.peer.stale(), ALL);
}

#[test]
fn silence_counts_as_a_restart_only_where_that_was_agreed() {
    assert_eq!(kept(&with(Some(restart())).pass(200.0)), NONE);
    let both = GracefulRestart { notifications: true, ..restart() };
    assert_eq!(kept(&with(Some(both)).pass(95.0)), ALL);
}

#[test]
fn routes_outlive_silence_and_notifications_only_where_both_sides_say_so() {
    let both = GracefulRestart { notifications: true, ..restart() };
    let mut settings = settings();
    settings.restart = settings.restart.map(|ours| Restart { notifications: false, ..ours });
    let open = Peer::new(settings.clone(), false).own_open();
    assert_eq!(open.capabilities.restart.map(|said| said.notifications), Some(false));
    let up = || {
        let mut bench = Bench::new(settings.clone());
        bench.step(Event::Start);
        bench.step(Event::Dialled(OURS));
        come_back(&mut bench, OURS, Some(both));
        bench
    };
    assert_eq!(kept(&up().pass(200.0)), NONE);
    assert_eq!(kept(&up().step(Event::Closed(OURS))), ALL, "RFC 4724");
}

#[test]
fn after_a_boot_nothing_is_said_to_be_forwarded_until_there_was_a_session() {
    let forwarding = |bench: &Bench| bench.peer.own_open().capabilities.restart.map(|said| said.families.v4);
    let mut bench = Bench::new(settings());
    assert_eq!(forwarding(&bench), Some(Some(true)), "an earlier run has left what it forwards by");
    bench.peer.begins_without_state();
    assert_eq!(forwarding(&bench), Some(Some(false)));
    bench.step(Event::Start);
    bench.step(Event::Dialled(OURS));
    come_back(&mut bench, OURS, Some(restart()));
    bench.step(Event::Closed(OURS));
    assert_eq!(forwarding(&bench), Some(Some(true)), "the session ended, and this host runs on");
}

#[test]
fn a_stop_is_said_so_that_nothing_is_kept() {
    let both = GracefulRestart { notifications: true, ..restart() };
    let effects = with(Some(both)).step(Event::Stop(Notification::with_text(Reason::SHUTDOWN, "bye")));
    assert!(words(&effects).starts_with("NOTIFICATION 6/9 hard reset on ours"), "{}", words(&effects));
    assert_eq!(kept(&effects), NONE);
    let effects = with(Some(restart())).step(Event::Stop(Notification::new(Reason::SHUTDOWN)));
    assert!(words(&effects).starts_with("NOTIFICATION 6/2 "), "{}", words(&effects));
}

#[test]
fn who_does_not_come_back_in_time_loses_its_routes() {
    let mut bench = with(Some(restart()));
    bench.step(Event::Closed(OURS));
    assert_eq!(bench.peer.stale(), ALL);
    assert_eq!(dropped(&bench.pass(119.0)), NONE);
    assert_eq!(dropped(&bench.pass(2.0)), ALL);
    assert_eq!(bench.peer.stale(), NONE);
}

#[test]
fn who_comes_back_keeps_what_it_still_forwards_until_it_has_said_all() {
    let mut bench = with(Some(restart()));
    bench.step(Event::Closed(OURS));
    bench.step(Event::Accepted(THEIRS));
    let back =
        GracefulRestart { restarting: true, families: PerFamily { v4: Some(true), v6: Some(false) }, ..restart() };
    let effects = come_back(&mut bench, THEIRS, Some(back));
    assert_eq!(dropped(&effects), PerFamily { v4: false, v6: true }, "it has forgotten how to forward IPv6");
    let effects = bench.receive(THEIRS, &message::end_of_rib(Family::V4));
    assert_eq!(dropped(&effects), PerFamily { v4: true, v6: false });
    assert!(matches!(effects.as_slice(), [Effect::Update(_), Effect::DropStale(_)]), "what came is taken first");
}

#[test]
fn who_comes_back_without_graceful_restart_begins_anew() {
    let mut bench = with(Some(restart()));
    bench.step(Event::Closed(OURS));
    bench.step(Event::Accepted(THEIRS));
    assert_eq!(dropped(&come_back(&mut bench, THEIRS, None)), ALL);
}

#[test]
fn who_comes_back_and_never_ends_is_waited_for_within_bounds() {
    let mut bench = with(Some(restart()));
    bench.step(Event::Closed(OURS));
    bench.step(Event::Accepted(THEIRS));
    come_back(&mut bench, THEIRS, Some(restart()));
    for _ in 0..4 {
        assert_eq!(dropped(&bench.pass(70.0)), NONE);
        bench.keepalive(THEIRS);
    }
    assert_eq!(dropped(&bench.pass(30.0)), ALL, "300 seconds");
}

#[test]
fn a_second_end_before_all_was_said_drops_what_was_kept_before() {
    let mut bench = with(Some(restart()));
    bench.step(Event::Closed(OURS));
    bench.step(Event::Accepted(THEIRS));
    come_back(&mut bench, THEIRS, Some(restart()));
    let effects = bench.step(Event::Closed(THEIRS));
    assert_eq!((dropped(&effects), kept(&effects)), (ALL, ALL));
    let order = words(&effects);
    assert!(order.find("drop what is stale") < order.find("DOWN"), "{order}");
}

#[test]
fn who_says_that_it_has_restarted_replaces_its_session_at_once() {
    let mut bench = with(Some(restart()));
    bench.step(Event::Accepted(THEIRS));
    let back = GracefulRestart { restarting: true, ..restart() };
    let effects = come_back(&mut bench, THEIRS, Some(back));
    assert_eq!(words(&effects), "close ours, DOWN keeping all (replaced), KEEPALIVE on theirs, UP on theirs");
}

#[test]
fn a_second_connection_of_one_start_ends_no_session_and_drops_nothing_that_was_kept() {
    let back = Some(GracefulRestart { restarting: true, ..restart() });
    let mut bench = with(Some(restart()));
    bench.step(Event::Closed(OURS));
    bench.pass(2.0);
    // Dialled as soon as it was there again, while it dials itself.
    bench.step(Event::Dialled(THIRD));
    come_back(&mut bench, THIRD, back);
    bench.step(Event::Accepted(THEIRS));
    let mut open = their_open();
    open.capabilities.restart = back;
    let effects = bench.receive(THEIRS, &message::open(&open));
    assert_eq!(words(&effects), "KEEPALIVE on third", "the session is tried");
    assert_eq!(bench.peer.stale(), ALL);
    // Where it has lost that session this shows at once.
    let effects = bench.step(Event::Closed(THIRD));
    assert!(words(&effects).ends_with("KEEPALIVE on theirs"), "{}", words(&effects));
}

#[test]
fn who_restarts_once_more_replaces_its_session_at_once_however_that_began() {
    let back = Some(GracefulRestart { restarting: true, ..restart() });
    let after = |seconds: u8| {
        let mut bench = with(Some(restart()));
        bench.step(Event::Closed(OURS));
        bench.pass(2.0);
        bench.step(Event::Dialled(THIRD));
        come_back(&mut bench, THIRD, back);
        for _ in 0..seconds {
            bench.pass(1.0);
            bench.keepalive(THIRD);
        }
        bench.step(Event::Accepted(THEIRS));
        let mut open = their_open();
        open.capabilities.restart = back;
        words(&bench.receive(THEIRS, &message::open(&open)))
    };
    assert_eq!(after(9), "KEEPALIVE on third", "it may have been dialled before there was a session");
    let replaced = "close third, drop what is stale of all, DOWN keeping all (replaced), KEEPALIVE on theirs";
    for later in [11, 60] {
        assert_eq!(after(later), replaced, "{later} s");
    }
}

#[test]
fn a_neighbour_is_kept_while_it_has_a_session_or_its_routes_are() {
    let mut bench = with(Some(restart()));
    assert!(bench.peer.is_kept());
    bench.step(Event::Closed(OURS));
    bench.pass(119.0);
    assert!(bench.peer.is_kept(), "it may come back");
    bench.pass(2.0);
    assert!(!bench.peer.is_kept(), "its routes are gone");
    let mut bench = gone(130.0);
    assert!(bench.peer.is_kept(), "as the last resort");
    bench.step(Event::Stop(Notification::new(Reason::DECONFIGURED)));
    assert!(!bench.peer.is_kept());
}

#[test]
fn our_own_restart_is_said_until_it_is_over() {
    let said = |peer: &mut Peer| {
        let at = Moment { now: Instant::now(), jitter: 0 };
        let effects = peer.step(at, Event::Accepted(THEIRS));
        let [Effect::Send(_, bytes)] = effects.as_slice() else { panic!("{}", words(&effects)) };
        let mut framing = message::Framing::default();
        framing.push(bytes);
        let Ok(Message::Open(open)) = message::decode(framing.next(false).unwrap().unwrap(), None) else { panic!() };
        peer.step(at, Event::Closed(THEIRS));
        open.capabilities.restart.unwrap()
    };
    let mut peer = Peer::new(settings(), true);
    peer.step(Moment { now: Instant::now(), jitter: 0 }, Event::Start);
    let restart = said(&mut peer);
    assert!(restart.restarting && restart.families.v4 == Some(true), "{restart:?}");
    peer.has_restarted();
    assert!(!said(&mut peer).restarting);
}

/// Long-lived graceful restart of the neighbour, with these times of both families; `None` for a family that is not in it.
fn long_lived(v4: Option<u32>, v6: Option<u32>) -> Option<LongLivedRestart> {
    let of = |seconds: Option<u32>| seconds.map(|seconds| LongLivedFamily { forwarding: true, seconds });
    Some(LongLivedRestart { families: PerFamily { v4: of(v4), v6: of(v6) } })
}

fn come_back_with(bench: &mut Bench, link: LinkId, long_lived: Option<LongLivedRestart>) -> Vec<Effect> {
    let mut open = their_open();
    (open.capabilities.restart, open.capabilities.long_lived) = (Some(restart()), long_lived);
    let mut effects = bench.receive(link, &message::open(&open));
    effects.extend(bench.keepalive(link));
    assert_eq!(bench.peer.state(), State::Established);
    effects
}

/// Settings by which we keep routes for so many seconds at most.
fn keeping(long_lived: u32) -> Settings {
    let mut settings = settings();
    settings.restart = settings.restart.map(|ours| Restart { long_lived, ..ours });
    settings
}

/// A session where we keep routes for an hour at most.
fn with_long(long_lived: Option<LongLivedRestart>) -> Bench {
    let mut bench = Bench::new(keeping(3600));
    bench.step(Event::Start);
    bench.step(Event::Dialled(OURS));
    come_back_with(&mut bench, OURS, long_lived);
    bench
}

/// Such a session that ended so many seconds ago, and that kept routes of both families for 1000 s as the last resort.
fn gone(seconds: f32) -> Bench {
    let mut bench = with_long(long_lived(Some(1000), Some(1000)));
    bench.step(Event::Closed(OURS));
    bench.pass(seconds);
    bench
}

/// The same, and the neighbour dials again.
fn dialling(seconds: f32) -> Bench {
    let mut bench = gone(seconds);
    bench.step(Event::Accepted(THEIRS));
    bench
}

#[test]
fn after_the_restart_time_routes_are_the_last_resort_for_the_shorter_time_of_both_sides() {
    let mut bench = with_long(long_lived(Some(1000), Some(10_000)));
    bench.step(Event::Closed(OURS));
    assert_eq!((bench.peer.stale(), bench.peer.long_lived()), (ALL, NONE));
    assert_eq!((dropped(&bench.pass(119.0)), bench.peer.stale(), bench.peer.long_lived()), (NONE, ALL, NONE));
    let effects = bench.pass(2.0);
    assert!(words(&effects).contains("keep all as the last resort"), "{}", words(&effects));
    assert_eq!((dropped(&effects), bench.peer.long_lived()), (NONE, ALL));
    assert_eq!(dropped(&bench.pass(998.0)), NONE);
    assert_eq!(dropped(&bench.pass(2.0)), PerFamily { v4: true, v6: false }, "1000 s, as the neighbour asks");
    assert_eq!(dropped(&bench.pass(2597.0)), NONE);
    assert_eq!(dropped(&bench.pass(2.0)), PerFamily { v4: false, v6: true }, "an hour, as we allow");
    assert_eq!(bench.peer.stale(), NONE);
}

#[test]
fn only_what_both_sides_have_switched_on_is_long_lived() {
    let drops = |bench: &mut Bench| {
        bench.step(Event::Closed(OURS));
        let effects = bench.pass(121.0);
        (dropped(&effects), bench.peer.long_lived())
    };
    assert_eq!(drops(&mut with_long(None)), (ALL, NONE));
    assert_eq!(drops(&mut with_long(long_lived(Some(0), None))), (ALL, NONE), "0 is off");
    let (v4, v6) = (PerFamily { v4: true, v6: false }, PerFamily { v4: false, v6: true });
    assert_eq!(drops(&mut with_long(long_lived(None, Some(60)))), (v4, v6));
    let mut off = Bench::new(settings());
    off.step(Event::Start);
    off.step(Event::Dialled(OURS));
    come_back_with(&mut off, OURS, long_lived(Some(60), Some(60)));
    assert_eq!(drops(&mut off), (ALL, NONE));
    assert_eq!(off.peer.own_open().capabilities.long_lived, None);
    let said = with_long(None).peer.own_open().capabilities.long_lived;
    assert_eq!(said, long_lived(Some(3600), Some(3600)));
}

#[test]
fn who_comes_back_keeps_its_last_resort_only_where_it_still_forwards_and_until_it_has_said_all() {
    let gone = || dialling(200.0);
    assert_eq!(dropped(&come_back_with(&mut gone(), THEIRS, None)), ALL);
    let v6 = PerFamily { v4: false, v6: true };
    assert_eq!(dropped(&come_back_with(&mut gone(), THEIRS, long_lived(Some(5), None))), v6);
    let lost = LongLivedFamily { forwarding: false, seconds: 1000 };
    let forgotten = LongLivedRestart { families: PerFamily { v4: Some(lost), v6: Some(lost) } };
    assert_eq!(dropped(&come_back_with(&mut gone(), THEIRS, Some(forgotten))), ALL);
    let mut bench = gone();
    assert_eq!(dropped(&come_back_with(&mut bench, THEIRS, long_lived(Some(1000), Some(1000)))), NONE);
    let effects = bench.receive(THEIRS, &message::end_of_rib(Family::V6));
    assert_eq!((dropped(&effects), bench.peer.long_lived()), (v6, PerFamily { v4: true, v6: false }));
}

#[test]
fn who_is_not_done_when_the_last_resort_ends_is_not_kept_once_more() {
    let mut bench = dialling(1100.0);
    assert_eq!(dropped(&come_back_with(&mut bench, THEIRS, long_lived(Some(1000), Some(1000)))), NONE);
    bench.receive(THEIRS, &message::end_of_rib(Family::V6));
    assert_eq!(dropped(&bench.pass(21.0)), PerFamily { v4: true, v6: false });
    assert_eq!(kept(&bench.step(Event::Closed(THEIRS))), PerFamily { v4: false, v6: true }, "RFC 9494 4.2");
}

#[test]
fn who_never_reaches_an_end_has_nothing_kept_any_more_once_the_last_resort_is_over_however_often_it_comes_back() {
    // Over in a session, and without one.
    for gone_for in [1100.0, 1130.0] {
        let mut bench = gone(gone_for);
        for (link, passes) in [(LinkId(11), 21.0), (LinkId(12), 1.0), (LinkId(13), 1.0)] {
            bench.step(Event::Accepted(link));
            come_back_with(&mut bench, link, long_lived(Some(1000), Some(1000)));
            bench.pass(passes);
            let effects = bench.step(Event::Closed(link));
            assert_eq!(kept(&effects), NONE, "{gone_for} {link:?}: {}", words(&effects));
        }
        bench.step(Event::Accepted(THEIRS));
        come_back_with(&mut bench, THEIRS, long_lived(Some(1000), Some(1000)));
        bench.receive(THEIRS, &message::end_of_rib(Family::V4));
        assert_eq!(kept(&bench.step(Event::Closed(THEIRS))), PerFamily { v4: true, v6: false }, "it has said all");
    }
}

#[test]
fn a_second_end_within_the_restart_time_drops_nothing_that_may_become_the_last_resort_and_gives_it_no_more_time() {
    // 60 s after the first end; 120 s are the restart time and 1000 s the long-lived one.
    let mut bench = dialling(60.0);
    assert_eq!(dropped(&come_back_with(&mut bench, THEIRS, long_lived(Some(1000), Some(1000)))), NONE);
    let effects = bench.step(Event::Closed(THEIRS));
    assert_eq!((dropped(&effects), kept(&effects)), (NONE, ALL), "{}", words(&effects));
    assert_eq!((dropped(&bench.pass(119.0)), bench.peer.long_lived()), (NONE, NONE), "it may come back again");
    bench.pass(2.0);
    assert_eq!(bench.peer.long_lived(), ALL);
    assert_eq!(dropped(&bench.pass(1120.0 - 60.0 - 121.0 - 1.0)), NONE);
    assert_eq!(dropped(&bench.pass(2.0)), ALL, "1120 s after the first end");
    // Without the last resort in the second session they go as ever.
    let mut bench = dialling(60.0);
    come_back_with(&mut bench, THEIRS, None);
    let effects = bench.step(Event::Closed(THEIRS));
    assert_eq!((dropped(&effects), kept(&effects)), (ALL, ALL), "{}", words(&effects));
}

#[test]
fn changed_settings_keep_the_last_resort_as_far_as_they_have_one() {
    let mut bench = gone(200.0);
    let changed = |bench: &mut Bench, settings: Settings| {
        bench.peer.change(settings);
        dropped(&bench.step(Event::Renew(Notification::new(Reason::CONFIGURATION_CHANGE))))
    };
    assert_eq!(changed(&mut bench, Settings { hold_time: 30, ..keeping(3600) }), NONE);
    assert_eq!(bench.peer.long_lived(), ALL);
    let v6 = PerFamily { v4: false, v6: true };
    assert_eq!(changed(&mut bench, Settings { families: PerFamily { v4: true, v6: false }, ..keeping(3600) }), v6);
    assert_eq!(changed(&mut bench, keeping(0)), PerFamily { v4: true, v6: false });
    let mut up = with_long(long_lived(Some(1000), Some(1000)));
    assert_eq!(kept(&up.step(Event::Renew(Notification::new(Reason::CONFIGURATION_CHANGE)))), NONE);
}

#[test]
fn a_shorter_time_for_the_last_resort_counts_for_a_neighbour_that_is_gone_already() {
    let drops_after = |gone_for, time, seconds: f32| {
        let mut bench = gone(gone_for);
        bench.peer.change(keeping(time));
        let at_once = dropped(&bench.step(Event::Renew(Notification::new(Reason::CONFIGURATION_CHANGE))));
        assert_eq!((at_once, dropped(&bench.pass(seconds - 2.0))), (NONE, NONE), "{gone_for} {time}");
        dropped(&bench.pass(4.0))
    };
    // Within the restart time of 120 s, and behind it.
    assert_eq!(drops_after(60.0, 0, 60.0), ALL);
    assert_eq!(drops_after(60.0, 30, 90.0), ALL);
    assert_eq!(drops_after(200.0, 30, 30.0), ALL);
    assert_eq!(drops_after(200.0, 3600, 920.0), ALL, "a longer one gives no more");
}

#[test]
fn a_session_that_comes_and_goes_without_an_end_gives_the_last_resort_no_more_time() {
    let mut bench = dialling(620.0);
    come_back_with(&mut bench, THEIRS, long_lived(Some(1000), Some(1000)));
    let effects = bench.step(Event::Closed(THEIRS));
    assert_eq!((dropped(&effects), kept(&effects)), (NONE, ALL), "{}", words(&effects));
    assert!(words(&effects).ends_with("keep all as the last resort"), "what came meanwhile, too: {}", words(&effects));
    assert!(effects.contains(&Effect::LongLived { families: ALL, is_new: false }), "which is no news: {effects:?}");
    assert_eq!(dropped(&bench.pass(499.0)), NONE);
    assert_eq!(dropped(&bench.pass(2.0)), ALL);
}
