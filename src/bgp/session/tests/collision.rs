//! Connection collisions: RFC 4271 6.8, and our additions.

use super::*;

/// Effects of both OPENs and then of both KEEPALIVEs, each first on one connection and then on the other.
fn both_open(local: Ipv4Addr, first: LinkId, second: LinkId) -> (String, String) {
    let local = Local { identifier: local, ..LOCAL };
    let mut bench = Bench::new(Settings { local, ..settings() });
    bench.step(Event::Start);
    bench.step(Event::Dialled(OURS));
    bench.step(Event::Accepted(THEIRS));
    let opens: Vec<Effect> = [first, second].into_iter().flat_map(|link| bench.open(link)).collect();
    let keepalives: Vec<Effect> = [first, second].into_iter().flat_map(|link| bench.keepalive(link)).collect();
    (words(&opens), words(&keepalives))
}

#[test]
fn the_connection_stays_that_the_greater_identifier_dialled() {
    let (smaller, greater) = (Ipv4Addr::new(192, 0, 2, 10), Ipv4Addr::new(192, 0, 2, 30));
    for (first, second) in [(OURS, THEIRS), (THEIRS, OURS)] {
        for (local, loser, winner) in [(smaller, "ours", "theirs"), (greater, "theirs", "ours")] {
            let (opens, keepalives) = both_open(local, first, second);
            assert!(!opens.contains("NOTIFICATION"), "the peer may have the other one already: {opens}");
            assert_eq!(
                keepalives,
                format!(
                    "NOTIFICATION 6/7 connection collision resolution on {loser}, close {loser}, \
                     failed (sent 6/7 connection collision resolution), UP on {winner}"
                )
            );
        }
    }
}

#[test]
fn the_same_identifier_in_two_systems_is_decided_by_their_numbers() {
    let settings = Settings { asn: Some(65002), ..settings() };
    let mut bench = Bench::new(settings.clone());
    bench.step(Event::Start);
    bench.step(Event::Dialled(OURS));
    bench.step(Event::Accepted(THEIRS));
    let theirs = Settings { local: Local { asn: 65002, ..LOCAL }, ..settings };
    let open = message::open(&theirs.open(false, true));
    bench.receive(OURS, &open);
    bench.receive(THEIRS, &open);
    bench.keepalive(OURS);
    let effects = bench.keepalive(THEIRS);
    assert!(words(&effects).contains("close ours"), "RFC 6286 2.3: {}", words(&effects));
}

#[test]
fn a_session_that_its_neighbour_has_forgotten_is_replaced_as_soon_as_that_shows() {
    let mut bench = Bench::established(settings());
    bench.step(Event::Accepted(THEIRS));
    let effects = bench.open(THEIRS);
    assert_eq!(words(&effects), "KEEPALIVE on ours", "the session is tried");
    assert_eq!(words(&bench.keepalive(THEIRS)), "", "the new connection waits");
    let effects = bench.step(Event::Closed(OURS));
    assert_eq!(words(&effects), "close ours, DOWN keeping all (closed), KEEPALIVE on theirs, UP on theirs");
}

#[test]
fn a_session_that_lives_keeps_its_place() {
    let mut bench = Bench::established(settings());
    bench.step(Event::Accepted(THEIRS));
    bench.open(THEIRS);
    let effects = bench.pass(4.0);
    assert!(words(&effects).contains("NOTIFICATION 6/7"), "{}", words(&effects));
    assert_eq!(bench.peer.session().map(|(link, _)| link), Some(OURS));
}

#[test]
fn who_decides_for_the_other_connection_ends_the_session_and_is_followed() {
    let mut bench = Bench::new(settings());
    bench.step(Event::Start);
    bench.step(Event::Dialled(OURS));
    bench.open(OURS);
    bench.keepalive(OURS);
    assert_eq!(bench.peer.state(), State::Established);
    bench.step(Event::Accepted(THEIRS));
    let collision = message::notification(&Notification::new(Reason::COLLISION));
    bench.receive(OURS, &collision);
    bench.open(THEIRS);
    bench.keepalive(THEIRS);
    assert_eq!(bench.peer.session().map(|(link, _)| link), Some(THEIRS));
}

#[test]
fn a_silent_connection_does_not_keep_us_from_dialling_and_there_is_only_one() {
    let mut bench = Bench::new(settings());
    bench.step(Event::Start);
    bench.step(Event::DialFailed);
    bench.step(Event::Accepted(THEIRS));
    let effects = bench.step(Event::Accepted(THIRD));
    assert!(words(&effects).starts_with("close theirs"), "{}", words(&effects));
    assert!(words(&bench.pass(4.0)).contains("dial"));
    bench.step(Event::Dialled(OURS));
    bench.open(OURS);
    bench.keepalive(OURS);
    assert_eq!(bench.peer.state(), State::Established, "nor from a session");
}

/// Two machines and the connections between them; messages wait until they are delivered.
struct Pair {
    peers: [Peer; 2],
    /// For each machine: its open connections, by the side that dialled them, and the messages queued on them.
    wires: Vec<Wire>,
    dials: [bool; 2],
    now: Instant,
}

type Act = Box<dyn FnOnce(&mut Pair)>;

struct Wire {
    dialled_by: usize,
    links: [LinkId; 2],
    waiting: [Vec<Vec<u8>>; 2],
    open: [bool; 2],
}

impl Pair {
    fn take(&mut self, of: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Dial => self.dials[of] = true,
                Effect::AbandonDial => self.dials[of] = false,
                Effect::Send(link, bytes) => self.wire(of, link).waiting[1 - of].push(bytes),
                Effect::Close(link) => self.wire(of, link).open[of] = false,
                _ => {}
            }
        }
    }

    fn wire(&mut self, of: usize, link: LinkId) -> &mut Wire {
        self.wires.iter_mut().find(|wire| wire.links[of] == link).expect("the link is a wire")
    }

    /// Performs one random action: completes a dial, delivers a message, or reports an end.
    fn act(&mut self, choice: usize, jitter: u8) -> bool {
        let at = Moment { now: self.now, jitter };
        let mut acts: Vec<Act> = Vec::new();
        for of in 0..2 {
            if self.dials[of] {
                acts.push(Box::new(move |pair| {
                    pair.dials[of] = false;
                    let number = pair.wires.len() as u64 * 2;
                    let links = [LinkId(number), LinkId(number + 1)];
                    let wire = Wire { dialled_by: of, links, waiting: [vec![], vec![]], open: [true; 2] };
                    pair.wires.push(wire);
                    let effects = pair.peers[of].step(at, Event::Dialled(links[of]));
                    pair.take(of, effects);
                    let effects = pair.peers[1 - of].step(at, Event::Accepted(links[1 - of]));
                    pair.take(1 - of, effects);
                }));
            }
        }
        for index in 0..self.wires.len() {
            for of in 0..2 {
                let wire = &self.wires[index];
                if !wire.open[of] {
                    continue;
                }
                if !wire.waiting[of].is_empty() {
                    acts.push(Box::new(move |pair| {
                        let link = pair.wires[index].links[of];
                        let bytes = pair.wires[index].waiting[of].remove(0);
                        let effects = pair.peers[of].receive(at, link, &bytes);
                        pair.take(of, effects);
                    }));
                } else if !wire.open[1 - of] {
                    acts.push(Box::new(move |pair| {
                        let link = pair.wires[index].links[of];
                        let effects = pair.peers[of].step(at, Event::Closed(link));
                        pair.take(of, effects);
                    }));
                }
            }
        }
        if acts.is_empty() {
            return false;
        }
        let choice = choice % acts.len();
        acts.swap_remove(choice)(self);
        true
    }
}

#[test]
fn two_that_dial_each_other_come_together_whatever_the_order() {
    let mut late = 0;
    for seed in 0..3000_u64 {
        let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut next = move || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        let now = Instant::now();
        let peers = [Peer::new(settings(), false), Peer::new(theirs(), false)];
        let mut pair = Pair { peers, wires: Vec::new(), dials: [false; 2], now };
        for of in 0..2 {
            let at = Moment { now, jitter: next() as u8 };
            let effects = pair.peers[of].step(at, Event::Start);
            pair.take(of, effects);
        }
        while pair.act(next() as usize, next() as u8) {}
        // Most connections come up together at once; a side that closed one waits for a timer.
        for _ in 0..20 {
            if pair.peers.iter().all(|peer| peer.state() == State::Established) {
                break;
            }
            late += 1;
            let deadline = pair.peers.iter().filter_map(Peer::deadline).min().expect("somebody waits");
            pair.now = pair.now.max(deadline);
            for of in 0..2 {
                let at = Moment { now: pair.now, jitter: next() as u8 };
                let effects = pair.peers[of].step(at, Event::Tick);
                pair.take(of, effects);
            }
            while pair.act(next() as usize, next() as u8) {}
        }
        let sessions: Vec<Option<LinkId>> =
            pair.peers.iter().map(|peer| peer.session().map(|(link, _)| link)).collect();
        let same = pair.wires.iter().any(|wire| wire.links.map(Some).as_slice() == sessions && wire.open == [true; 2]);
        assert!(
            same,
            "seed {seed}: {sessions:?}, dialled by {:?}",
            pair.wires.iter().map(|wire| wire.dialled_by).collect::<Vec<_>>()
        );
    }
    assert_eq!(late, 0, "nobody had to wait for a timer");
}

/// Builds a neighbour with the greater identifier. The connection that we dialled is confirmed by both; the one that it
/// dialled, which wins, has not received its OPEN yet.
fn confirmed_beside_the_winner() -> Bench {
    let mut bench = Bench::new(settings());
    bench.step(Event::Start);
    bench.step(Event::Dialled(OURS));
    bench.open(OURS);
    bench.step(Event::Accepted(THEIRS));
    assert_eq!(words(&bench.keepalive(OURS)), "", "it waits");
    assert_eq!(bench.peer.state(), State::OpenConfirm);
    bench
}

#[test]
fn no_session_begins_only_to_lose_against_a_connection_that_is_being_made() {
    let mut bench = confirmed_beside_the_winner();
    assert_eq!(words(&bench.open(THEIRS)), "KEEPALIVE on theirs");
    assert_eq!(
        words(&bench.keepalive(THEIRS)),
        "NOTIFICATION 6/7 connection collision resolution on ours, close ours, \
         failed (sent 6/7 connection collision resolution), UP on theirs"
    );
}

/// Our KEEPALIVE has established the loser at the peer before our OPEN came there on the winner, and an established session stays (RFC 4271 6.8).
#[test]
fn a_peer_that_has_established_the_loser_keeps_it() {
    let collision = message::notification(&Notification::new(Reason::COLLISION));
    let mut bench = confirmed_beside_the_winner();
    bench.open(THEIRS);
    let effects = bench.receive(THEIRS, &collision);
    assert_eq!(words(&effects), "close theirs, failed (received 6/7 connection collision resolution), UP on ours");

    let mut bench = Bench::new(settings());
    bench.step(Event::Start);
    bench.step(Event::Dialled(OURS));
    bench.step(Event::Accepted(THEIRS));
    bench.open(OURS);
    bench.open(THEIRS);
    assert_eq!(words(&bench.keepalive(OURS)), "", "it waits");
    bench.receive(THEIRS, &collision);
    assert_eq!(bench.peer.session().map(|(link, _)| link), Some(OURS));
}

#[test]
fn the_other_side_may_decide_first() {
    let mut bench = confirmed_beside_the_winner();
    let collision = message::notification(&Notification::new(Reason::COLLISION));
    let effects = bench.receive(OURS, &collision);
    assert_eq!(words(&effects), "close ours, failed (received 6/7 connection collision resolution)");
    bench.open(THEIRS);
    assert_eq!(words(&bench.keepalive(THEIRS)), "UP on theirs");
}

#[test]
fn what_waits_is_the_session_when_the_other_connection_ends() {
    let mut bench = confirmed_beside_the_winner();
    assert_eq!(words(&bench.step(Event::Closed(THEIRS))), "close theirs, failed (closed), UP on ours");
}

#[test]
fn what_waits_is_the_session_when_the_other_side_goes_on_with_it() {
    let mut bench = confirmed_beside_the_winner();
    let effects = bench.receive(OURS, &message::end_of_rib(Family::V6));
    assert_eq!(words(&effects), "UP on ours, take the update");
}

#[test]
fn what_waits_does_not_wait_for_long() {
    let mut bench = confirmed_beside_the_winner();
    assert_eq!(words(&bench.pass(2.9)), "");
    assert_eq!(words(&bench.pass(0.2)), "UP on ours");
}

#[test]
fn an_open_of_the_winner_renews_the_wait() {
    let mut bench = confirmed_beside_the_winner();
    bench.pass(2.9);
    bench.open(THEIRS);
    assert_eq!(words(&bench.pass(2.9)), "", "the peer's answer to our KEEPALIVE is on its way");
    assert_eq!(words(&bench.pass(0.2)), "UP on ours");
}

#[test]
fn what_waits_is_given_more_time_once_where_we_were_late() {
    let mut bench = confirmed_beside_the_winner();
    bench.now += Duration::from_secs(200);
    assert_eq!(
        words(&bench.step(Event::Tick)),
        "KEEPALIVE on ours",
        "what the peer has said meanwhile may not have been read"
    );
    assert_eq!(words(&bench.pass(2.1)), "UP on ours");
}

/// The peer may have established what we have confirmed, so that its routes come there next.
#[test]
fn a_peer_that_confirms_the_winner_late_is_followed_and_nothing_is_lost() {
    let mut bench = confirmed_beside_the_winner();
    bench.open(THEIRS);
    assert_eq!(words(&bench.pass(3.1)), "UP on ours");
    assert_eq!(
        words(&bench.keepalive(THEIRS)),
        "NOTIFICATION 6/7 connection collision resolution on ours, close ours, \
         DOWN keeping all (sent 6/7 connection collision resolution), UP on theirs"
    );
    let update = message::end_of_rib(Family::V4);
    assert_eq!(words(&bench.receive(THEIRS, &update)), "take the update, drop what is stale of IPv4");
}
