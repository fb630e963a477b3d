use super::super::super::message::{Capabilities, Dialect, Open};
use super::super::super::session::{Agreement, Cause};
use super::*;
use crate::net::{Family, PerFamily};

const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

fn prefix(number: u32) -> IpNet {
    ipnet::Ipv4Net::new((0x0af4_0000 + (number << 8)).into(), 24).unwrap().into()
}

fn came(prefix: IpNet) -> Changed {
    Changed { prefix, had: false, has: true }
}

fn changed(prefix: IpNet) -> Changed {
    Changed { prefix, had: true, has: true }
}

fn went(prefix: IpNet) -> Changed {
    Changed { prefix, had: true, has: false }
}

/// Returns a route whose next hop tells the time of its lookup.
fn looked_up(at: u8) -> impl Fn(IpNet) -> RouteChange {
    move |prefix| RouteChange { prefix, best: None, next_hops: vec![IpAddr::from([192, 0, 2, at])] }
}

fn told(news: &mut News, at: u8) -> (Vec<IpNet>, usize) {
    let events = news.take(Instant::now(), looked_up(at));
    let facts = events.iter().filter(|event| !matches!(event, Event::Routes(_))).count();
    let routes = events.into_iter().filter_map(|event| match event {
        Event::Routes(routes) => Some(routes),
        _ => None,
    });
    (routes.flatten().map(|change| change.prefix).collect(), facts)
}

#[test]
fn of_each_prefix_only_the_newest_route_is_told_and_before_the_facts() {
    let mut news = News::default();
    news.routes([came(prefix(1)), came(prefix(2))]);
    news.complete();
    news.push(Event::Trouble(Subject::Dialling(HERE), None));
    news.routes([changed(prefix(1))]);
    let events = news.take(Instant::now(), looked_up(9));
    let [Event::Routes(routes), Event::Trouble(..), Event::Complete] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(*routes, [looked_up(9)(prefix(1)), looked_up(9)(prefix(2))]);
    assert!(!news.is_due(Instant::now()));
}

#[test]
fn a_whole_table_is_told_in_portions_and_facts_after_what_came_before_them() {
    let mut news = News::default();
    news.routes((0..PORTION as u32 + 10).map(prefix).map(came));
    news.push(Event::Trouble(Subject::Dialling(HERE), None));
    assert_eq!(told(&mut news, 1), ((0..PORTION as u32).map(prefix).collect(), 0));
    // Changes in the meantime: a delivered prefix, a queued prefix, and a fact.
    news.routes([changed(prefix(3)), changed(prefix(PORTION as u32 + 3))]);
    news.complete();
    let left = (PORTION as u32..PORTION as u32 + 10).map(prefix).collect();
    assert_eq!(told(&mut news, 2), (left, 1));
    assert_eq!(told(&mut news, 3), (vec![prefix(3)], 1));
    assert!(!news.is_due(Instant::now()));
}

#[test]
fn what_changes_all_the_time_keeps_nothing_else_waiting() {
    let mut news = News::default();
    news.routes((0..2 * PORTION as u32).map(prefix).map(came));
    news.push(Event::Trouble(Subject::Dialling(HERE), None));
    let mut facts = 0;
    for turn in 0..2 {
        let (routes, said) = told(&mut news, turn);
        news.routes(routes.into_iter().map(changed));
        facts += said;
    }
    assert_eq!(facts, 1);
}

#[test]
fn a_prefix_that_came_and_went_before_it_was_told_is_not_queued_any_more_and_one_that_was_told_goes() {
    let mut news = News::default();
    news.routes([came(prefix(0))]);
    assert_eq!(told(&mut news, 1).0, [prefix(0)]);
    for number in 1..10_000 {
        news.routes([came(prefix(number)), changed(prefix(number)), went(prefix(number))]);
    }
    assert!(!news.is_due(Instant::now()));
    news.routes([went(prefix(0)), came(prefix(1))]);
    news.routes([came(prefix(0)), went(prefix(0))]);
    assert_eq!(told(&mut news, 2).0, [prefix(0), prefix(1)]);
    // The same within a turn of which a part is delivered.
    news.routes((2..PORTION as u32 + 10).map(prefix).map(came));
    assert_eq!(told(&mut news, 3).0.len(), PORTION);
    news.routes((PORTION as u32 + 2..PORTION as u32 + 10).map(prefix).map(went));
    news.routes([went(prefix(2))]);
    assert_eq!(told(&mut news, 4).0, [prefix(2)]);
    assert!(!news.is_due(Instant::now()));
}

#[test]
fn what_came_and_went_is_told_until_a_restart_is_over_because_the_speaker_before_may_have_told_it() {
    let mut news = News::of_successor();
    news.routes([came(prefix(1)), went(prefix(1))]);
    assert_eq!(told(&mut news, 1).0, [prefix(1)]);
    news.complete();
    assert_eq!(told(&mut news, 2), (Vec::new(), 1));
    news.routes([came(prefix(1)), went(prefix(1))]);
    assert!(!news.is_due(Instant::now()));
}

#[test]
fn what_is_for_the_log_alone_does_not_grow_where_nobody_takes_it() {
    let mut news = News::default();
    (0..MOST + 10).for_each(|_| news.push(Event::Fact(HERE, Fact::Failed(Cause::Closed))));
    let events = news.take(Instant::now(), looked_up(1));
    assert!(matches!(events.first(), Some(Event::Lost(10))));
    assert_eq!(events.len(), MOST + 1);
    assert!(!news.is_due(Instant::now()));
}

/// Fills the queue, so that all events before are folded.
fn fill(news: &mut News) {
    (0..MOST).for_each(|_| news.push(Event::Fact(HERE, Fact::Failed(Cause::Closed))));
}

/// Takes the events; returns their facts but for those that fill the queue, and the number of lost ones.
fn facts(news: &mut News) -> (Vec<(IpAddr, Fact)>, u64) {
    let (mut facts, mut dropped) = (Vec::new(), 0);
    for event in news.take(Instant::now(), looked_up(1)) {
        match event {
            Event::Fact(_, Fact::Failed(_)) => {}
            Event::Fact(peer, fact) => facts.push((peer, fact)),
            Event::Lost(number) => dropped += number,
            other => panic!("{other:?}"),
        }
    }
    (facts, dropped)
}

fn up(asn: u32) -> Fact {
    up_of(asn, PerFamily { v4: true, v6: true })
}

fn up_of(asn: u32, families: PerFamily<bool>) -> Fact {
    let dialect =
        Dialect { internal: false, four_octets: true, families, extended_next_hop: false, extended_message: false };
    let open = Open { asn, hold_time: 90, identifier: [192, 0, 2, 2].into(), capabilities: Capabilities::default() };
    let (refresh, enhanced_refresh, restart, long_lived) = (false, false, None, None);
    let agreement = Agreement { dialect, hold_time: 90, refresh, enhanced_refresh, restart, long_lived, open };
    Fact::Up(Box::new(agreement))
}

fn down(cause: Cause) -> Fact {
    Fact::Down { kept: PerFamily::default(), cause }
}

fn complete(family: Family) -> Fact {
    Fact::Complete(family)
}

/// An address of each family.
fn both(number: u16) -> [IpAddr; 2] {
    let [high, low] = number.to_be_bytes();
    [IpAddr::from([10, 0, high, low]), IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, number])]
}

#[test]
fn of_thousands_of_neighbours_whose_facts_nobody_took_each_session_and_each_end_of_routes_is_told() {
    let mut news = News::default();
    let neighbours: Vec<IpAddr> = (0..3000).flat_map(both).collect();
    let said = [up(65002), complete(Family::V4), complete(Family::V6)];
    for fact in &said {
        neighbours.iter().for_each(|peer| news.push(Event::Fact(*peer, fact.clone())));
    }
    let (told, dropped) = facts(&mut news);
    assert_eq!((told.len(), dropped), (3 * neighbours.len(), 0));
    for peer in neighbours {
        let of_peer: Vec<&Fact> = told.iter().filter(|(one, _)| *one == peer).map(|(_, fact)| fact).collect();
        assert_eq!(of_peer, said.iter().collect::<Vec<_>>(), "{peer}");
    }
    assert!(!news.is_due(Instant::now()));
}

#[test]
fn a_session_that_went_and_came_is_told_to_have_gone_first_and_those_between_are_not_told() {
    let mut news = News::default();
    for peer in both(7) {
        for asn in 65002..65010 {
            news.push(Event::Fact(peer, complete(Family::V4)));
            news.push(Event::Fact(peer, down(Cause::Replaced)));
            news.push(Event::Fact(peer, up(asn)));
        }
        news.push(Event::Fact(peer, complete(Family::V6)));
    }
    fill(&mut news);
    let sequence = [complete(Family::V4), down(Cause::Replaced), up(65009), complete(Family::V6)];
    let expected: Vec<(IpAddr, Fact)> =
        both(7).into_iter().flat_map(|peer| sequence.clone().map(|fact| (peer, fact))).collect();
    let (told, dropped) = facts(&mut news);
    assert_eq!(told, expected);
    assert_eq!(dropped, 2 * 25 - 8);
}

#[test]
fn of_a_session_that_is_over_its_end_is_told_and_before_it_that_all_routes_had_come() {
    let mut news = News::default();
    for peer in both(7) {
        let session = [up(65002), complete(Family::V6), down(Cause::Closed)];
        session.into_iter().for_each(|fact| news.push(Event::Fact(peer, fact)));
    }
    fill(&mut news);
    // Those are in the queue, and so behind what was folded.
    both(7).into_iter().for_each(|peer| news.push(Event::Fact(peer, up(65003))));
    let mut expected: Vec<(IpAddr, Fact)> = both(7)
        .into_iter()
        .flat_map(|peer| [complete(Family::V6), down(Cause::Closed)].map(|fact| (peer, fact)))
        .collect();
    expected.extend(both(7).map(|peer| (peer, up(65003))));
    assert_eq!(facts(&mut news).0, expected);
}

/// Knowledge of a consumer about a neighbour: the ends of routes that have come in its session, if it has one, and the families of which all has come in any, or one
/// did not speak.
fn known<'a>(facts: impl Iterator<Item = &'a Fact>) -> (Option<PerFamily<bool>>, PerFamily<bool>) {
    let (mut session, mut ever) = (None, PerFamily { v4: false, v6: false });
    for fact in facts {
        match fact {
            Fact::Up(agreement) => {
                session = Some(PerFamily::default());
                let spoken = agreement.dialect.families;
                ever = PerFamily { v4: ever.v4 || !spoken.v4, v6: ever.v6 || !spoken.v6 };
            }
            Fact::Down { .. } => session = None,
            Fact::Complete(family) => {
                *ever.of_mut(*family) = true;
                session.iter_mut().for_each(|sent: &mut PerFamily<bool>| *sent.of_mut(*family) = true);
            }
            other => panic!("{other:?}"),
        }
    }
    (session, ever)
}

#[test]
fn who_takes_the_facts_late_knows_what_one_knows_who_took_each_of_them() {
    for number in 0..5_u32.pow(6) {
        let peer = HERE;
        // Each sequence of six facts that can follow each other, of which the last ones are in the queue.
        let (mut all, mut is_up) = (Vec::new(), false);
        for place in 0..6 {
            let fact = match number / 5_u32.pow(place) % 5 {
                0 if !is_up => up(65002 + place),
                1 if is_up => down(Cause::Closed),
                2 if is_up => complete(Family::V4),
                3 if is_up => complete(Family::V6),
                4 if !is_up => up_of(65002 + place, PerFamily { v4: true, v6: false }),
                _ => break,
            };
            is_up = !matches!(fact, Fact::Down { .. });
            all.push(fact);
        }
        let mut turn = Turn::default();
        for queued in 0..=all.len() {
            let folded = all.len() - queued;
            all.iter().take(folded).for_each(|fact| turn.folded.add(Event::Fact(peer, fact.clone())));
            turn.rest.extend(all.iter().skip(folded).map(|fact| Event::Fact(peer, fact.clone())));
            let told: Vec<Fact> = turn
                .take(looked_up(1))
                .into_iter()
                .filter_map(|event| match event {
                    Event::Fact(_, fact) => Some(fact),
                    _ => None,
                })
                .collect();
            assert_eq!(known(told.iter()), known(all.iter()), "{all:?}, of which {queued} in the queue");
            let ends = |facts: &[Fact]| facts.iter().any(|fact| matches!(fact, Fact::Down { .. }));
            assert_eq!(ends(&told), ends(&all), "that a session ended is told in any case");
        }
    }
}

#[test]
fn of_what_fails_the_newest_state_is_told_and_ignored_packets_are_counted_on() {
    let mut news = News::default();
    let refused = || Some(Error::errno("connect to", "192.0.2.1".to_owned(), rustix::io::Errno::CONNREFUSED));
    let [one, other] = both(7).map(Subject::Dialling);
    news.push(Event::Trouble(one, refused()));
    news.push(Event::Trouble(other, refused()));
    news.push(Event::Trouble(one, None));
    (0..3).for_each(|_| news.push(Event::Ignored([(Ignored::Distant, 2)].into())));
    fill(&mut news);
    let events = news.take(Instant::now(), looked_up(1));
    let [Event::Lost(1), Event::Trouble(first, None), Event::Trouble(second, Some(_)), Event::Ignored(counts)] =
        &events[..4]
    else {
        panic!("{:?}", &events[..4])
    };
    assert_eq!((*first, *second, counts), (one, other, &[(Ignored::Distant, 6)].into()));
}

#[test]
fn refusals_are_told_at_once_and_then_once_in_a_while() {
    let (mut news, now) = (News::default(), Instant::now());
    news.refused(HERE, Refusal::Stranger);
    assert_eq!(news.take(now, looked_up(1)).len(), 1);
    news.refused(HERE, Refusal::Stranger);
    news.refused(HERE, Refusal::Stranger);
    assert!(!news.is_due(now), "it was just said");
    let later = news.deadline(now).expect("it will be said");
    assert!(news.is_due(later) && news.deadline(later).is_none());
    let events = news.take(later, looked_up(1));
    let [Event::Refused(refused)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(*refused, [Refused { from: HERE, because: Refusal::Stranger, times: 2 }]);
}

#[test]
fn strangers_from_everywhere_are_counted_apart_up_to_a_bound() {
    let mut news = News::default();
    (0..1000_u32).for_each(|from| news.refused(IpAddr::V4(from.into()), Refusal::Stranger));
    let events = news.take(Instant::now(), looked_up(1));
    assert!(matches!(events.as_slice(), [Event::Refused(refused)] if refused.len() == MOST_REFUSED));
}
