//! Events that are not delivered yet.
//!
//! The consumer may be slow: it takes a while to install a whole table in the kernel. Meanwhile only the prefixes with
//! changed routes are queued, and their routes are looked up at delivery: one portion at a time, so that the consumer
//! works on one portion while the speaker prepares the next. Facts are few. Without a consumer for long the oldest are folded: the state of
//! each neighbour's session is kept, and what is for the log alone is dropped (`folded`).
//!
//! The queue has two turns. What arrives while one turn is being delivered joins the next, so that a fact is delivered
//! after all routes that preceded it, and nothing is starved by routes that keep changing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::super::rib::RouteChange;
use super::super::speaker::Fact;
use super::folded::Folded;
use crate::bfd::sessions::Ignored;
use crate::kernel::Error;

/// Event for the owner of the speaker.
#[derive(Clone, Debug)]
pub enum Event {
    /// Changed best routes, each prefix once.
    Routes(Vec<RouteChange>),
    Fact(IpAddr, Fact),
    /// The local restart is over: the table is as complete as it gets.
    Complete,
    /// A subsystem fails, with the reason; `None` when it works again. Sent on changes, not on every retry.
    Trouble(Subject, Option<Error>),
    /// Packets of BFD that were ignored since the last such event, by reason.
    Ignored(BTreeMap<Ignored, u64>),
    /// Connections refused since the last such event, which is at least a minute ago.
    Refused(Vec<Refused>),
    /// Number of facts and troubles dropped because nobody consumed them: how the sessions of all neighbours stand, and what fails, is told all
    /// the same.
    Lost(u64),
}

/// Subject of a failure.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Subject {
    /// Listening on an address, or accepting connections on it.
    Listening(SocketAddr),
    Dialling(IpAddr),
    /// Receiving packets of BFD on an address.
    Bfd(SocketAddr),
    /// Sending packets of BFD to an address.
    BfdTo(SocketAddr),
    /// BFD as a whole: its thread does not start.
    BfdThread,
    /// The password of a neighbour cannot be set on the listening sockets; the neighbour is not admitted.
    Password(IpAddr),
}

/// Refused connections from one address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused {
    pub from: IpAddr,
    pub because: Refusal,
    pub times: u64,
}

/// Reason for closing a connection before any message.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Refusal {
    /// The source is no configured neighbour.
    Stranger,
    /// The destination is another local address than the one configured for the neighbour.
    OtherAddress,
    /// The neighbour has a password that the kernel has not accepted.
    NoPassword,
    /// The neighbour has too many connections already, most of which are closing.
    TooMany,
}

/// Queue of undelivered events.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Turn being delivered.
    turn: Turn,
    /// Following turn.
    next: Turn,
    refused: BTreeMap<(IpAddr, Refusal), u64>,
    /// Earliest time for the next report of refusals.
    refused_at: Option<Instant>,
}

/// Prefixes with changed routes, and the events after them.
#[derive(Debug, Default)]
struct Turn {
    routes: BTreeSet<IpNet>,
    /// Of the oldest events, which the queue had no room for.
    folded: Folded,
    rest: VecDeque<Event>,
    complete: bool,
}

/// Number of events that are queued one by one.
const MOST: usize = 4096;
/// Number of routes delivered at a time.
const PORTION: usize = 4096;
/// Number of addresses counted separately.
const MOST_REFUSED: usize = 64;
const BETWEEN_REFUSALS: Duration = Duration::from_secs(60);

impl News {
    /// Queues prefixes whose routes have changed.
    pub fn routes(&mut self, prefixes: impl IntoIterator<Item = IpNet>) {
        let told = &self.turn.routes;
        self.next.routes.extend(prefixes.into_iter().filter(|prefix| !told.contains(prefix)));
    }

    pub fn complete(&mut self) {
        self.next.complete = true;
    }

    pub fn push(&mut self, event: Event) {
        self.next.rest.push_back(event);
        if self.next.rest.len() > MOST
            && let Some(oldest) = self.next.rest.pop_front()
        {
            self.next.folded.add(oldest);
        }
    }

    /// Counts a refused connection.
    pub fn refused(&mut self, from: IpAddr, because: Refusal) {
        if self.refused.len() < MOST_REFUSED || self.refused.contains_key(&(from, because)) {
            *self.refused.entry((from, because)).or_default() += 1;
        }
    }

    /// Time at which refusals already counted are to be reported. Due events wait for their consumer, not for a time.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        self.refused_at.filter(|at| *at > now && !self.refused.is_empty())
    }

    /// Returns whether there are events to deliver.
    pub fn is_due(&self, now: Instant) -> bool {
        let refused = !self.refused.is_empty() && self.refused_at.is_none_or(|at| at <= now);
        refused || !self.turn.is_empty() || !self.next.is_empty()
    }

    /// Takes the next portion of events. `route` returns the current route to a prefix.
    pub fn take(&mut self, now: Instant, route: impl Fn(IpNet) -> RouteChange) -> Vec<Event> {
        if self.turn.is_empty() {
            self.turn = std::mem::take(&mut self.next);
        }
        let mut events = self.turn.take(route);
        if !self.refused.is_empty() && self.refused_at.is_none_or(|at| at <= now) {
            let refused = std::mem::take(&mut self.refused).into_iter();
            let refused = refused.map(|((from, because), times)| Refused { from, because, times });
            events.push(Event::Refused(refused.collect()));
            self.refused_at = Some(now + BETWEEN_REFUSALS);
        }
        events
    }
}

impl Turn {
    fn is_empty(&self) -> bool {
        self.routes.is_empty() && self.folded.is_empty() && self.rest.is_empty() && !self.complete
    }

    /// Takes a portion of the routes; the last one is followed by all other events.
    fn take(&mut self, route: impl Fn(IpNet) -> RouteChange) -> Vec<Event> {
        let mut events = Vec::new();
        let portion: Vec<RouteChange> =
            std::iter::from_fn(|| self.routes.pop_first()).take(PORTION).map(route).collect();
        if !portion.is_empty() {
            events.push(Event::Routes(portion));
        }
        if !self.routes.is_empty() {
            return events;
        }
        let (folded, lost) = self.folded.take();
        if lost > 0 {
            events.push(Event::Lost(lost));
        }
        events.extend(folded);
        events.extend(self.rest.drain(..));
        if std::mem::take(&mut self.complete) {
            events.push(Event::Complete);
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::message::{Capabilities, Dialect, Open};
    use super::super::super::session::{Agreement, Cause};
    use super::*;
    use crate::net::{Family, PerFamily};

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn prefix(number: u32) -> IpNet {
        ipnet::Ipv4Net::new((0x0af4_0000 + (number << 8)).into(), 24).unwrap().into()
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
        news.routes([prefix(1), prefix(2)]);
        news.complete();
        news.push(Event::Trouble(Subject::Dialling(HERE), None));
        news.routes([prefix(1)]);
        let events = news.take(Instant::now(), looked_up(9));
        let [Event::Routes(routes), Event::Trouble(..), Event::Complete] = events.as_slice() else {
            panic!("{events:?}")
        };
        assert_eq!(*routes, [looked_up(9)(prefix(1)), looked_up(9)(prefix(2))]);
        assert!(!news.is_due(Instant::now()));
    }

    #[test]
    fn a_whole_table_is_told_in_portions_and_facts_after_what_came_before_them() {
        let mut news = News::default();
        news.routes((0..PORTION as u32 + 10).map(prefix));
        news.push(Event::Trouble(Subject::Dialling(HERE), None));
        assert_eq!(told(&mut news, 1), ((0..PORTION as u32).map(prefix).collect(), 0));
        // Changes in the meantime: a delivered prefix, a queued prefix, and a fact.
        news.routes([prefix(3), prefix(PORTION as u32 + 3)]);
        news.complete();
        let left = (PORTION as u32..PORTION as u32 + 10).map(prefix).collect();
        assert_eq!(told(&mut news, 2), (left, 1));
        assert_eq!(told(&mut news, 3), (vec![prefix(3)], 1));
        assert!(!news.is_due(Instant::now()));
    }

    #[test]
    fn what_changes_all_the_time_keeps_nothing_else_waiting() {
        let mut news = News::default();
        news.routes((0..2 * PORTION as u32).map(prefix));
        news.push(Event::Trouble(Subject::Dialling(HERE), None));
        let mut facts = 0;
        for turn in 0..2 {
            let (routes, said) = told(&mut news, turn);
            news.routes(routes);
            facts += said;
        }
        assert_eq!(facts, 1);
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
        let open =
            Open { asn, hold_time: 90, identifier: [192, 0, 2, 2].into(), capabilities: Capabilities::default() };
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
}
