use super::*;

const OWN: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const FIRST_ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
const SECOND_ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 3);
const SECOND: Duration = Duration::from_secs(1);

fn up() -> Option<Seen> {
    Some(Seen { link: 7, up: true, carrier: true, own: Some(OWN) })
}

fn seen(change: impl FnOnce(&mut Seen)) -> Option<Seen> {
    up().map(|mut seen| {
        change(&mut seen);
        seen
    })
}

fn found(neighbour: Ipv6Addr) -> State {
    State::Found(Found { link: 7, own: OWN, neighbour })
}

/// A link that is up, and on which a router has advertised itself long ago.
fn settled() -> (Link, Instant) {
    let (mut link, now) = (Link::default(), Instant::now());
    link.see(now, up());
    link.tick(now);
    link.advertised(now, FIRST_ROUTER);
    let later = now + 20 * SECOND;
    run(&mut link, now, later);
    link.advertised(later, FIRST_ROUTER);
    (link, later)
}

/// Lets time pass; returns the packets with the seconds at which they were sent.
fn run(link: &mut Link, from: Instant, until: Instant) -> Vec<(u64, Packet)> {
    let mut sent = Vec::new();
    while let Some(at) = link.deadline().filter(|at| *at <= until) {
        sent.extend(link.tick(at).into_iter().map(|packet| ((at - from).as_secs(), packet)));
        assert!(link.deadline().is_none_or(|next| next > at), "it comes back with nothing to do");
    }
    sent
}

#[test]
fn a_link_that_comes_up_is_advertised_on_and_asked_at_once_and_then_seldom() {
    let (mut link, now) = (Link::default(), Instant::now());
    assert_eq!((link.standing().state, link.deadline()), (State::Unknown, None));
    link.see(now, up());
    let sent = run(&mut link, now, now + 36 * SECOND);
    let at = |wanted: Packet| sent.iter().filter(|(_, one)| *one == wanted).map(|(at, _)| *at).collect::<Vec<_>>();
    assert_eq!(at(Packet::Solicitation), [0, 4, 8]);
    assert_eq!(at(Packet::Advertisement), [0, 3, 6, 16, 26, 36]);
    assert_eq!(link.standing().state, State::Silent);
}

#[test]
fn the_first_router_is_the_neighbour_and_silence_does_not_end_that() {
    let (mut link, now) = (Link::default(), Instant::now());
    link.see(now, up());
    link.tick(now);
    link.advertised(now + SECOND, OWN);
    assert_eq!(link.standing().state, State::Silent, "it is our own");
    link.advertised(now + SECOND, FIRST_ROUTER);
    assert_eq!(link.standing(), Standing { state: found(FIRST_ROUTER), beside: None });
    let sent = run(&mut link, now, now + 3600 * SECOND);
    assert!(sent.iter().all(|(_, packet)| *packet == Packet::Advertisement), "it has been found");
    assert_eq!(link.standing().state, found(FIRST_ROUTER));
}

#[test]
fn who_asks_is_answered_soon_and_not_more_often_than_every_three_seconds() {
    let (mut link, now) = settled();
    for tenth in 0..100 {
        link.solicited(now + tenth * SECOND / 10);
        run(&mut link, now, now + tenth * SECOND / 10);
    }
    let (mut link, now) = settled();
    link.solicited(now + 4 * SECOND);
    let sent = run(&mut link, now, now + 5 * SECOND);
    assert_eq!(sent, [(4, Packet::Advertisement)]);
    link.solicited(now + 5 * SECOND);
    link.solicited(now + 5 * SECOND);
    assert_eq!(run(&mut link, now, now + 9 * SECOND), [(7, Packet::Advertisement)]);
}

#[test]
fn a_second_router_is_told_and_changes_nothing_while_the_first_one_answers() {
    let (mut link, now) = settled();
    link.advertised(now, SECOND_ROUTER);
    assert_eq!(link.standing(), Standing { state: found(FIRST_ROUTER), beside: Some(SECOND_ROUTER) });
    assert_eq!(link.tick(now), [Packet::Solicitation]);
    link.advertised(now + SECOND, FIRST_ROUTER);
    // Both advertise themselves for an hour.
    for round in 1..360 {
        let at = now + round * PERIOD;
        let sent = run(&mut link, now, at);
        assert!(sent.iter().all(|(_, packet)| *packet == Packet::Advertisement), "{sent:?}");
        link.advertised(at, SECOND_ROUTER);
        link.advertised(at, FIRST_ROUTER);
        assert_eq!(link.standing(), Standing { state: found(FIRST_ROUTER), beside: Some(SECOND_ROUTER) });
    }
    run(&mut link, now, now + 360 * PERIOD + BESIDE);
    assert_eq!(link.standing(), Standing { state: found(FIRST_ROUTER), beside: None }, "it has gone");
}

#[test]
fn a_neighbour_with_another_address_is_found_again_within_seconds() {
    let (mut link, now) = settled();
    link.advertised(now, SECOND_ROUTER);
    let sent = run(&mut link, now, now + 11 * SECOND);
    assert_eq!(sent.iter().filter(|(_, packet)| *packet == Packet::Solicitation).count(), 3);
    assert_eq!(link.standing().state, found(FIRST_ROUTER));
    run(&mut link, now, now + 12 * SECOND);
    assert_eq!(link.standing(), Standing { state: found(SECOND_ROUTER), beside: None });
}

/// A link of which an earlier run had a neighbour.
fn restarted() -> (Link, Instant) {
    let (mut link, now) = (Link::default(), Instant::now());
    link.heed(Wanted { kept: None, former: Some(FIRST_ROUTER) });
    link.see(now, up());
    link.tick(now);
    (link, now)
}

#[test]
fn after_a_restart_the_router_of_before_has_its_place_where_another_one_is_heard_first() {
    let (mut link, now) = restarted();
    link.advertised(now + SECOND, SECOND_ROUTER);
    assert_eq!(link.standing(), Standing { state: State::Silent, beside: None }, "the other one may come");
    let sent = run(&mut link, now, now + 4 * SECOND);
    assert!(sent.iter().any(|(_, packet)| *packet == Packet::Solicitation), "it is asked for");
    link.advertised(now + 4 * SECOND, SECOND_ROUTER);
    link.advertised(now + 5 * SECOND, FIRST_ROUTER);
    for round in 1..30 {
        run(&mut link, now, now + round * PERIOD);
        link.advertised(now + round * PERIOD, SECOND_ROUTER);
        link.advertised(now + round * PERIOD, FIRST_ROUTER);
        assert_eq!(link.standing(), Standing { state: found(FIRST_ROUTER), beside: Some(SECOND_ROUTER) });
    }
}

#[test]
fn after_a_restart_another_router_gets_the_place_of_one_that_does_not_answer_twice() {
    let (mut link, now) = restarted();
    link.advertised(now, SECOND_ROUTER);
    link.advertised(now + SECOND, Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 4));
    let sent = run(&mut link, now, now + 7 * SECOND);
    assert_eq!(sent.iter().filter(|(_, packet)| *packet == Packet::Solicitation).count(), 2);
    assert_eq!(link.standing().state, State::Silent);
    run(&mut link, now, now + 8 * SECOND);
    assert_eq!(link.standing(), Standing { state: found(SECOND_ROUTER), beside: None });
}

#[test]
fn when_the_link_comes_back_the_last_neighbour_has_its_place_again() {
    let (mut link, now) = settled();
    link.see(now, seen(|seen| seen.up = false));
    link.see(now + SECOND, up());
    link.advertised(now + SECOND, SECOND_ROUTER);
    assert_eq!(link.standing().state, State::Silent);
    // What is wanted comes again and again, without a word about it.
    link.heed(Wanted::default());
    link.advertised(now + 2 * SECOND, FIRST_ROUTER);
    assert_eq!(link.standing(), Standing { state: found(FIRST_ROUTER), beside: Some(SECOND_ROUTER) });
}

#[test]
fn a_second_router_takes_over_from_a_first_one_that_has_gone() {
    let (mut link, now) = settled();
    link.advertised(now, SECOND_ROUTER);
    link.tick(now);
    link.advertised(now, FIRST_ROUTER);
    for round in 1..8 {
        run(&mut link, now, now + round * PERIOD);
        link.advertised(now + round * PERIOD, SECOND_ROUTER);
    }
    assert_eq!(link.standing().state, found(SECOND_ROUTER));
}

#[test]
fn a_neighbour_with_a_session_or_retained_routes_keeps_its_place_however_silent_it_is() {
    let (mut link, now) = settled();
    link.heed(Wanted { kept: Some(FIRST_ROUTER), former: None });
    link.advertised(now, SECOND_ROUTER);
    for round in 1..30 {
        run(&mut link, now, now + round * PERIOD);
        link.advertised(now + round * PERIOD, SECOND_ROUTER);
        assert_eq!(link.standing(), Standing { state: found(FIRST_ROUTER), beside: Some(SECOND_ROUTER) });
    }
    let later = now + 29 * PERIOD;
    link.heed(Wanted::default());
    run(&mut link, later, later + ASK);
    assert_eq!(link.standing(), Standing { state: found(SECOND_ROUTER), beside: None }, "its routes are gone");
    // One that has come back is asked as before, and another one that has gone meanwhile takes no place.
    let (mut link, now) = settled();
    link.heed(Wanted { kept: Some(FIRST_ROUTER), former: None });
    link.advertised(now, SECOND_ROUTER);
    run(&mut link, now, now + 20 * SECOND);
    link.advertised(now + 20 * SECOND, FIRST_ROUTER);
    link.heed(Wanted::default());
    run(&mut link, now, now + 30 * SECOND);
    assert_eq!(link.standing(), Standing { state: found(FIRST_ROUTER), beside: Some(SECOND_ROUTER) });
    let (mut link, now) = settled();
    link.heed(Wanted { kept: Some(FIRST_ROUTER), former: None });
    link.advertised(now, SECOND_ROUTER);
    run(&mut link, now, now + BESIDE + ASK);
    link.heed(Wanted::default());
    run(&mut link, now, now + 2 * BESIDE);
    assert_eq!(link.standing(), Standing { state: found(FIRST_ROUTER), beside: None });
    // That of another one, which had the link before, keeps nobody.
    let (mut link, now) = settled();
    link.heed(Wanted { kept: Some(OWN), former: None });
    link.advertised(now, SECOND_ROUTER);
    run(&mut link, now, now + 12 * SECOND);
    assert_eq!(link.standing().state, found(SECOND_ROUTER));
}

#[test]
fn many_routers_on_a_link_are_two_in_memory() {
    let (mut link, now) = settled();
    for number in 3..1000 {
        link.advertised(now, Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, number));
    }
    assert_eq!(link.standing(), Standing { state: found(FIRST_ROUTER), beside: Some(SECOND_ROUTER) });
}

#[test]
fn a_link_that_goes_takes_its_neighbour_along() {
    for gone in [None, seen(|seen| seen.up = false)] {
        let (mut link, now) = settled();
        link.see(now, gone);
        assert!(matches!(link.standing().state, State::Missing | State::Down));
        assert_eq!(link.deadline(), None, "who has nothing to do sleeps");
        link.advertised(now, FIRST_ROUTER);
        link.solicited(now);
        assert!(link.tick(now).is_empty() && !link.is_ready());
        link.see(now + SECOND, up());
        assert_eq!(link.standing().state, State::Silent);
        assert_eq!(link.tick(now + SECOND), [Packet::Solicitation, Packet::Advertisement]);
    }
    let (mut link, now) = settled();
    link.see(now, seen(|seen| seen.link = 8));
    assert_eq!(link.standing().state, State::Silent, "it is another link of the same name");
}

#[test]
fn a_carrier_may_be_lost_for_three_seconds() {
    let cut = || seen(|seen| seen.carrier = false);
    let (mut link, now) = settled();
    link.see(now, cut());
    run(&mut link, now, now + 2 * SECOND);
    assert_eq!(link.standing().state, found(FIRST_ROUTER));
    link.see(now + 2 * SECOND, up());
    assert_eq!(link.tick(now + 2 * SECOND), [Packet::Solicitation, Packet::Advertisement]);
    // When it comes back the kernel looks for duplicates of our address first.
    link.see(now + 3 * SECOND, cut());
    link.see(now + 5 * SECOND, seen(|seen| seen.own = None));
    run(&mut link, now, now + 7 * SECOND);
    assert_eq!((link.standing().state, link.is_ready()), (found(FIRST_ROUTER), false));
    link.see(now + 7 * SECOND, up());
    link.tick(now + 7 * SECOND);
    link.see(now + 8 * SECOND, cut());
    link.see(now + 9 * SECOND, cut());
    run(&mut link, now, now + 11 * SECOND);
    assert_eq!((link.standing().state, link.deadline()), (State::Down, None));
}

#[test]
fn without_an_address_of_ours_nothing_is_sent_and_a_new_one_is_told_at_once() {
    let (mut link, now) = (Link::default(), Instant::now());
    link.see(now, seen(|seen| seen.own = None));
    assert_eq!((link.standing().state, link.deadline()), (State::WithoutAddress, None));
    let (mut link, now) = settled();
    link.see(now + 4 * SECOND, seen(|seen| seen.own = Some(SECOND_ROUTER)));
    assert_eq!(link.tick(now + 4 * SECOND), [Packet::Advertisement]);
    let state = State::Found(Found { link: 7, own: SECOND_ROUTER, neighbour: FIRST_ROUTER });
    assert_eq!(link.standing().state, state);
}
