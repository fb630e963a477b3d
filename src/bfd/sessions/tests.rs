//! Many sessions: which packet is whose, and how often somebody wakes.

use super::super::{SINGLE_HOP, Settings, Wanted};
use super::*;

const SETTINGS: Settings =
    Settings { multiplier: 3, send: Duration::from_millis(300), receive: Duration::from_millis(300) };

fn key(last: u8, path: Path) -> Key {
    Key { remote: [192, 0, 2, last].into(), local: [192, 0, 2, 1].into(), path }
}

fn wanted(keys: impl IntoIterator<Item = Key>) -> BTreeMap<Key, Request> {
    let request = Request { wanted: Wanted { settings: SETTINGS, port: SINGLE_HOP, hops: None }, number: 1 };
    keys.into_iter().map(|key| (key, request)).collect()
}

/// A packet of a neighbour that knows our discriminator, or not yet.
fn said(state: State, yours: u32) -> [u8; 24] {
    let packet = Packet {
        diagnostic: Default::default(),
        state,
        poll: false,
        is_final: false,
        independent: false,
        demand: false,
        multiplier: 3,
        mine: 99,
        yours,
        send: 300_000,
        receive: 300_000,
        echo: 0,
    };
    packet.encode()
}

fn arrival<'a>(key: Key, ttl: u8, datagram: &'a [u8]) -> Arrival<'a> {
    Arrival { from: key.remote, to: key.local, path: key.path, ttl: Some(ttl), link: Some(LINK), datagram }
}

/// Index of the link to all neighbours.
const LINK: u32 = 2;

/// Sessions that are wanted, with what is known of the routes to their neighbours.
fn want(sessions: &mut Sessions, now: Instant, requests: &BTreeMap<Key, Request>) {
    sessions.want(now, requests);
    for key in requests.keys() {
        sessions.set_link(key, Some(LINK));
    }
}

fn sent(outputs: &[Output]) -> Vec<(u32, State)> {
    let packet = |output: &Output| match output {
        Output::Send(id, packet) => Some((*id, packet.state)),
        _ => None,
    };
    outputs.iter().filter_map(packet).collect()
}

fn status(sessions: &Sessions, key: Key) -> Status {
    sessions.all().find(|(one, _)| *one == key).expect("it is wanted").1
}

#[test]
fn packets_are_told_apart_by_discriminator_or_by_addresses() {
    let (now, mut sessions) = (Instant::now(), Sessions::new(1));
    let (near, far) = (key(2, Path::SingleHop), key(2, Path::Multihop));
    let other = key(3, Path::SingleHop);
    want(&mut sessions, now, &wanted([near, far, other]));
    let first = said(State::Down, 0);
    assert_eq!(sessions.receive(now, arrival(near, 255, &first)), Ok(()));
    let states = |sessions: &Sessions| [near, far, other].map(|key| status(sessions, key).state);
    assert_eq!(states(&sessions), [State::Init, State::Down, State::Down]);
    let mine = status(&sessions, near).mine;
    let moved = Arrival { from: [198, 51, 100, 7].into(), ..arrival(near, 255, &first) };
    assert_eq!(sessions.receive(now, moved), Err(Ignored::Unknown));
    let named = said(State::Init, mine);
    for elsewhere in [
        Arrival { from: [198, 51, 100, 7].into(), ..arrival(near, 255, &named) },
        Arrival { to: [192, 0, 2, 9].into(), ..arrival(near, 255, &named) },
        Arrival { path: Path::Multihop, ..arrival(near, 255, &named) },
        arrival(other, 255, &named),
    ] {
        assert_eq!(sessions.receive(now, elsewhere), Err(Ignored::Elsewhere), "who has seen the discriminator");
    }
    assert_eq!(states(&sessions), [State::Init, State::Down, State::Down]);
    assert_eq!(sessions.receive(now, arrival(near, 255, &named)), Ok(()));
    assert_eq!(states(&sessions), [State::Up, State::Down, State::Down]);
    let nobody = said(State::Up, mine.wrapping_add(1));
    assert_eq!(sessions.receive(now, arrival(near, 255, &nobody)), Err(Ignored::Unknown));
}

#[test]
fn a_packet_that_passed_a_router_is_none_of_a_neighbour_on_our_link() {
    let (now, mut sessions) = (Instant::now(), Sessions::new(1));
    let (near, far) = (key(2, Path::SingleHop), key(3, Path::Multihop));
    want(&mut sessions, now, &wanted([near, far]));
    let first = said(State::Down, 0);
    assert_eq!(sessions.receive(now, arrival(near, 254, &first)), Err(Ignored::Distant));
    let untold = Arrival { ttl: None, ..arrival(near, 255, &first) };
    assert_eq!(sessions.receive(now, untold), Err(Ignored::Distant));
    assert_eq!(sessions.receive(now, arrival(far, 64, &first)), Ok(()));
    assert_eq!(sessions.receive(now, arrival(far, 64, &[])), Err(Ignored::Malformed(Discarded::Length)));
}

#[test]
fn a_packet_that_passed_more_routers_than_are_before_a_neighbour_is_none_of_it() {
    let (now, mut sessions) = (Instant::now(), Sessions::new(1));
    let (far, any) = (key(2, Path::Multihop), key(3, Path::Multihop));
    let with_hops = |hops| {
        let mut requests = wanted([far]);
        requests.values_mut().for_each(|request| request.wanted.hops = Some(hops));
        requests
    };
    let least = |sessions: &Sessions| sessions.listening()[&(far.local, far.path)].least_ttl;
    want(&mut sessions, now, &with_hops(1));
    assert_eq!(least(&sessions), Some(255));
    let first = said(State::Down, 0);
    for ttl in [Some(254), Some(1), None] {
        let arrival = Arrival { ttl, ..arrival(far, 255, &first) };
        assert_eq!(sessions.receive(now, arrival), Err(Ignored::Distant), "a pod of another node has sent it");
    }
    assert_eq!(sessions.receive(now, arrival(far, 255, &first)), Ok(()));
    let mine = status(&sessions, far).mine;
    let named = said(State::Init, mine);
    assert_eq!(sessions.receive(now, arrival(far, 254, &named)), Err(Ignored::Distant), "whatever it knows");
    // The flag changes with a restart alone, the neighbours of one socket do with any event.
    want(&mut sessions, now, &with_hops(2));
    assert_eq!((least(&sessions), status(&sessions, far).mine), (Some(254), mine));
    assert_eq!(sessions.receive(now, arrival(far, 254, &named)), Ok(()));
    want(&mut sessions, now, &with_hops(2).into_iter().chain(wanted([any])).collect());
    assert_eq!(least(&sessions), Some(0), "the kernel has to let through what is for the other one");
    want(&mut sessions, now, &wanted([any]));
    assert_eq!(sessions.receive(now, arrival(any, 1, &first)), Ok(()));
}

#[test]
fn a_packet_over_another_link_is_none_of_a_neighbour_on_our_link() {
    let (now, mut sessions) = (Instant::now(), Sessions::new(1));
    let (near, far) = (key(2, Path::SingleHop), key(3, Path::Multihop));
    want(&mut sessions, now, &wanted([near, far]));
    let mine = status(&sessions, near).mine;
    for packet in [said(State::Down, 0), said(State::Down, mine)] {
        for link in [Some(LINK + 1), None] {
            let arrival = Arrival { link, ..arrival(near, 255, &packet) };
            assert_eq!(sessions.receive(now, arrival), Err(Ignored::OtherLink), "a pod has sent it");
        }
    }
    let first = said(State::Down, 0);
    sessions.set_link(&near, None);
    assert_eq!(sessions.receive(now, arrival(near, 255, &first)), Err(Ignored::OtherLink), "there is no route");
    let unknown = Arrival { link: None, ..arrival(near, 255, &first) };
    assert_eq!(sessions.receive(now, unknown), Err(Ignored::OtherLink));
    sessions.set_link(&near, Some(LINK));
    assert_eq!(sessions.receive(now, arrival(near, 255, &first)), Ok(()));
    let over_any = Arrival { link: Some(LINK + 1), ..arrival(far, 64, &first) };
    assert_eq!(sessions.receive(now, over_any), Ok(()), "a network may be entered by any link");
}

#[test]
fn who_knows_no_discriminator_cannot_end_a_session_from_far_away() {
    for (path, outcome, state) in
        [(Path::Multihop, Err(Ignored::Unproven), State::Up), (Path::SingleHop, Ok(()), State::Down)]
    {
        let (mut now, mut sessions) = (Instant::now(), Sessions::new(1));
        let one = key(2, path);
        want(&mut sessions, now, &wanted([one]));
        let mine = status(&sessions, one).mine;
        sessions.receive(now, arrival(one, 255, &said(State::Down, 0))).expect("it is taken");
        sessions.receive(now, arrival(one, 255, &said(State::Init, mine))).expect("it is taken");
        assert_eq!(status(&sessions, one).state, State::Up);
        assert_eq!(sessions.receive(now, arrival(one, 255, &said(State::Down, 0))), outcome);
        assert_eq!(status(&sessions, one).state, state);
        // One that has begun anew says nothing else, and is heard when its silence is noticed.
        now += Duration::from_secs(1);
        sessions.tick(now);
        assert_eq!(sessions.receive(now, arrival(one, 255, &said(State::Down, 0))), Ok(()));
        assert_eq!(status(&sessions, one).state, State::Init);
    }
}

#[test]
fn a_session_that_is_not_wanted_any_more_says_so_and_goes() {
    let (mut now, mut sessions) = (Instant::now(), Sessions::new(1));
    let keys = [key(2, Path::SingleHop), key(3, Path::SingleHop)];
    want(&mut sessions, now, &wanted(keys));
    sessions.receive(now, arrival(keys[0], 255, &said(State::Down, 0))).expect("it is taken");
    let mine = status(&sessions, keys[0]).mine;
    sessions.outputs();
    want(&mut sessions, now, &BTreeMap::new());
    let outputs = sessions.outputs();
    assert_eq!(sent(&outputs), [(mine, State::AdminDown)], "the other one was never heard");
    assert_eq!((sessions.count(), sessions.all().count()), (1, 0));
    assert_eq!(sessions.listening().len(), 1);
    while let Some(deadline) = sessions.deadline() {
        now = deadline;
        sessions.tick(now);
    }
    assert!(sessions.outputs().contains(&Output::Ended(mine)));
    assert_eq!((sessions.count(), sessions.listening().len()), (0, 0));
}

#[test]
fn one_that_is_wanted_again_begins_anew() {
    let (now, mut sessions) = (Instant::now(), Sessions::new(1));
    let one = key(2, Path::SingleHop);
    want(&mut sessions, now, &wanted([one]));
    sessions.receive(now, arrival(one, 255, &said(State::Down, 0))).expect("it is taken");
    let before = status(&sessions, one).mine;
    want(&mut sessions, now, &BTreeMap::new());
    want(&mut sessions, now, &wanted([one]));
    let after = status(&sessions, one);
    assert!(after.mine != before && after.state == State::Down);
    sessions.outputs();
    sessions.receive(now, arrival(one, 255, &said(State::Down, 0))).expect("it is taken");
    assert!(sessions.outputs().iter().any(|output| matches!(output, Output::Changed(key, now)
        if *key == one && now.state == State::Init && now.mine == after.mine)));
}

#[test]
fn a_change_is_told_once_and_a_failure_counted() {
    let (mut now, mut sessions) = (Instant::now(), Sessions::new(1));
    let one = key(2, Path::SingleHop);
    want(&mut sessions, now, &wanted([one]));
    let mine = status(&sessions, one).mine;
    let mut told = Vec::new();
    let mut note = |sessions: &mut Sessions| {
        let changed = sessions.outputs().into_iter().filter_map(|output| match output {
            Output::Changed(_, status) => Some((status.state, status.failures)),
            _ => None,
        });
        told.extend(changed);
    };
    for state in [State::Down, State::Init, State::Up, State::Up, State::Up] {
        sessions.receive(now, arrival(one, 255, &said(state, mine))).expect("it is taken");
        note(&mut sessions);
        now += Duration::from_millis(200);
        sessions.tick(now);
        note(&mut sessions);
    }
    now += Duration::from_secs(1);
    sessions.tick(now);
    note(&mut sessions);
    let states: Vec<(State, u64)> = told;
    assert_eq!(
        states,
        [(State::Down, 0), (State::Init, 0), (State::Up, 0), (State::Up, 0), (State::Down, 1)],
        "Up twice: its state changed"
    );
}

/// Statuses that are told, in order.
fn changes(outputs: &[Output]) -> Vec<Status> {
    let status = |output: &Output| match output {
        Output::Changed(_, status) => Some(*status),
        _ => None,
    };
    outputs.iter().filter_map(status).collect()
}

#[test]
fn who_asks_anew_is_told_how_a_session_stands_and_who_asks_for_another_one_that_it_is_down() {
    let (now, mut sessions) = (Instant::now(), Sessions::new(1));
    let one = key(2, Path::SingleHop);
    want(&mut sessions, now, &wanted([one]));
    let mine = status(&sessions, one).mine;
    assert_eq!(changes(&sessions.outputs()), [status(&sessions, one)], "it begins down");
    sessions.receive(now, arrival(one, 255, &said(State::Down, 0))).expect("it is taken");
    sessions.receive(now, arrival(one, 255, &said(State::Init, mine))).expect("it is taken");
    sessions.outputs();
    want(&mut sessions, now, &wanted([one]));
    assert_eq!(changes(&sessions.outputs()), [], "the same request");
    let again = wanted([one]).into_iter().map(|(key, request)| (key, Request { number: 2, ..request })).collect();
    want(&mut sessions, now, &again);
    let told = changes(&sessions.outputs());
    assert_eq!((told.as_slice(), told[0].state), ([status(&sessions, one)].as_slice(), State::Up));
    let far = Key { path: Path::Multihop, ..one };
    want(&mut sessions, now, &wanted([far]));
    let told = changes(&sessions.outputs());
    assert_eq!(told.iter().map(|status| status.state).collect::<Vec<_>>(), [State::Down]);
}

#[test]
fn one_that_is_wanted_again_during_its_farewell_comes_up_once_and_stays_up() {
    let begin = Instant::now();
    let mut both = [Sessions::new(1), Sessions::new(2)];
    let one = key(2, Path::SingleHop);
    let keys = [one, Key { remote: one.local, local: one.remote, ..one }];
    let mut states = [Vec::new(), Vec::new()];
    let mut time = 0;
    let mut pass = |both: &mut [Sessions; 2], until: u64| {
        while time < until {
            time += 5;
            let now = begin + Duration::from_millis(time);
            for one in 0..2 {
                both[one].tick(now);
                let outputs = both[one].outputs();
                states[one].extend(changes(&outputs).iter().map(|status| (status.state, status.failures)));
                for output in outputs {
                    let Output::Send(id, packet) = output else { continue };
                    if both[one].destination(id).is_some() {
                        // What is for a session that is gone is ignored.
                        let _ = both[1 - one].receive(now, arrival(keys[1 - one], 255, &packet.encode()));
                    }
                }
            }
        }
        states.each_mut().map(std::mem::take)
    };
    want(&mut both[0], begin, &wanted([keys[0]]));
    want(&mut both[1], begin, &wanted([keys[1]]));
    pass(&mut both, 10_000);
    assert!(both.iter().all(|sessions| sessions.all().all(|(_, status)| status.state == State::Up)));
    want(&mut both[0], begin + Duration::from_secs(10), &BTreeMap::new());
    pass(&mut both, 10_100);
    want(&mut both[0], begin + Duration::from_millis(10_100), &wanted([keys[0]]));
    let states = pass(&mut both, 30_000);
    for (one, states) in states.iter().enumerate() {
        let ups = states.iter().position(|(state, _)| *state == State::Up).expect("it comes up");
        assert!(states[ups..].iter().all(|(state, _)| *state == State::Up), "{one}: {states:?}");
        assert!(states.iter().all(|(_, failures)| *failures == 0), "{one}: {states:?}");
    }
    assert_eq!([both[0].count(), both[1].count()], [1, 1]);
}

/// Outputs but packets and changes of the status.
fn rest(outputs: Vec<Output>) -> Vec<Output> {
    outputs.into_iter().filter(|output| !matches!(output, Output::Send(..) | Output::Changed(..))).collect()
}

/// Brings a session up whose neighbour says nothing else from then on.
fn up(sessions: &mut Sessions, now: Instant, one: Key) {
    let mine = status(sessions, one).mine;
    for (state, yours) in [(State::Down, 0), (State::Init, mine), (State::Up, mine)] {
        sessions.receive(now, arrival(one, 255, &said(state, yours))).expect("it is taken");
    }
    assert_eq!(status(sessions, one).state, State::Up);
}

#[test]
fn a_session_that_comes_up_says_that_its_interval_is_another_one() {
    let (now, mut sessions) = (Instant::now(), Sessions::new(1));
    let one = key(2, Path::SingleHop);
    want(&mut sessions, now, &wanted([one]));
    assert!(sessions.outputs().contains(&Output::OtherInterval), "there was none");
    assert_eq!(sessions.pause(), LONGEST_PAUSE);
    up(&mut sessions, now, one);
    assert_eq!(rest(sessions.outputs()), [Output::OtherInterval], "300 ms in place of a second");
    assert!(sessions.pause() < LONGEST_PAUSE);
    sessions.receive(now, arrival(one, 255, &said(State::Up, status(&sessions, one).mine))).expect("it is taken");
    assert_eq!(rest(sessions.outputs()), []);
}

#[test]
fn the_link_of_a_neighbour_is_asked_for_again_while_its_packets_are_missing_and_before_it_is_lost() {
    let (begin, mut sessions) = (Instant::now(), Sessions::new(1));
    let (near, far) = (key(2, Path::SingleHop), key(3, Path::Multihop));
    want(&mut sessions, begin, &wanted([near, far]));
    [near, far].into_iter().for_each(|one| up(&mut sessions, begin, one));
    sessions.outputs();
    let mut asked = Vec::new();
    for time in (0..900).step_by(10) {
        sessions.tick(begin + Duration::from_millis(time));
        if rest(sessions.outputs()).contains(&Output::Overdue(near)) {
            asked.push(time);
        }
    }
    assert_eq!(status(&sessions, near).state, State::Up);
    assert!(asked.len() >= 2 && asked[0] > 300 && asked[0] <= 600, "two of three packets are missing: {asked:?}");
    sessions.tick(begin + Duration::from_secs(1));
    assert_eq!(status(&sessions, near).state, State::Down);
    sessions.outputs();
    let outputs: Vec<Output> = (1..4)
        .flat_map(|second| {
            sessions.tick(begin + Duration::from_secs(1 + second));
            rest(sessions.outputs())
        })
        .collect();
    assert_eq!(outputs, [Output::Overdue(near); 3], "once a second, and none for one that may be anywhere");
}

#[test]
fn packets_are_expected_from_neighbours_and_over_the_links_to_those_on_our_link() {
    let (now, mut sessions) = (Instant::now(), Sessions::new(1));
    let keys = [key(2, Path::SingleHop), key(3, Path::SingleHop), key(4, Path::Multihop)];
    sessions.want(now, &wanted(keys));
    assert!(sessions.set_link(&keys[0], Some(LINK)) && !sessions.set_link(&keys[0], Some(LINK)));
    let expected = |last: &[u8], links: &[u32]| Neighbours {
        remotes: last.iter().map(|last| key(*last, Path::SingleHop).remote).collect(),
        links: links.iter().copied().collect(),
        least_ttl: None,
    };
    let all = |near: Neighbours| {
        let of = |at: Key, neighbours| ((at.local, at.path), neighbours);
        BTreeMap::from([of(keys[0], near), of(keys[2], expected(&[4], &[]))])
    };
    assert_eq!(sessions.listening(), all(expected(&[2, 3], &[LINK])));
    assert!(sessions.set_link(&keys[0], Some(7)), "the link was made anew");
    assert!(sessions.set_link(&keys[1], Some(LINK)));
    assert_eq!(sessions.listening(), all(expected(&[2, 3], &[LINK, 7])));
    assert!(sessions.set_link(&keys[0], None), "the route has gone");
    assert_eq!(sessions.listening(), all(expected(&[2, 3], &[LINK])));
}

/// Two machines with so many sessions between them, woken as seldom as they allow; returns the wake-ups and packets of one.
fn between(count: u8, time: Duration) -> (usize, usize) {
    let begin = Instant::now();
    let (mut now, mut wakes, mut packets) = (begin, 0, 0);
    let mut both = [Sessions::new(1), Sessions::new(2)];
    let turned = |key: Key| Key { remote: key.local, local: key.remote, path: key.path };
    let keys: Vec<Key> = (2..2 + count).map(|last| key(last, Path::SingleHop)).collect();
    want(&mut both[0], now, &wanted(keys.iter().copied()));
    want(&mut both[1], now, &wanted(keys.iter().copied().map(turned)));
    while now < begin + time {
        for one in 0..2 {
            both[one].tick(now);
            let outputs = both[one].outputs();
            for output in outputs {
                let Output::Send(id, packet) = output else { continue };
                let (key, _) = both[one].destination(id).expect("it is there");
                packets += usize::from(one == 0);
                both[1 - one].receive(now, arrival(turned(key), 255, &packet.encode())).expect("it is taken");
            }
        }
        wakes += 1;
        now += both[0].pause();
    }
    assert!(both.iter().all(|sessions| sessions.all().all(|(_, now)| now.state == State::Up && now.failures == 0)));
    (wakes, packets)
}

#[test]
fn a_hundred_sessions_wake_no_more_often_than_a_few() {
    let (few, _) = between(3, Duration::from_secs(30));
    let (many, packets) = between(100, Duration::from_secs(30));
    assert!(many <= few + 10 && many < 30 * 110, "{few} {many}");
    // Every session sends in each 300 ms once, or a little more.
    assert!((100 * 100..100 * 140).contains(&packets), "{packets}");
}
