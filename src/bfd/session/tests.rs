//! One session: every transition, and the timers of RFC 5880 6.8.

use std::fmt::Write;

use proptest::prelude::*;

use super::*;

const SETTINGS: Settings =
    Settings { multiplier: 3, send: Duration::from_millis(300), receive: Duration::from_millis(200) };

/// A session and its time.
struct Bench {
    session: Session,
    now: Instant,
}

fn millis(time: u64) -> Duration {
    Duration::from_millis(time)
}

impl Bench {
    fn new(settings: Settings) -> Bench {
        let now = Instant::now();
        Bench { session: Session::new(settings, 7, Moment { now, jitter: 0 }), now }
    }

    /// In this state, with a neighbour that sends every 100 ms and wishes no more than one packet in 400 ms.
    fn in_state(state: State) -> Bench {
        let mut bench = Bench::new(SETTINGS);
        let before: &[State] = match state {
            State::Down => &[],
            State::Init => &[State::Down],
            State::Up => &[State::Down, State::Up],
            State::AdminDown => &[State::Down, State::Up],
        };
        before.iter().for_each(|theirs| drop(bench.hear(*theirs)));
        if state == State::AdminDown {
            bench.session.close(bench.at());
        }
        bench.packets();
        assert_eq!(bench.session.status().state, state);
        bench
    }

    fn at(&self) -> Moment {
        Moment { now: self.now, jitter: 0 }
    }

    fn packets(&mut self) -> Vec<Packet> {
        let at = self.at();
        std::iter::from_fn(|| self.session.packet(at)).collect()
    }

    fn take(&mut self, packet: Packet) -> Vec<Packet> {
        let at = self.at();
        self.session.receive(at, &packet);
        self.packets()
    }

    fn hear(&mut self, state: State) -> Vec<Packet> {
        self.take(theirs(state))
    }

    /// Lets time pass, and returns the packets with their times.
    fn pass(&mut self, time: Duration) -> Vec<(Duration, Packet)> {
        let (began, end) = (self.now, self.now + time);
        let mut all = Vec::new();
        while let Some(deadline) = self.session.deadline().filter(|deadline| *deadline <= end) {
            self.now = deadline.max(self.now);
            let at = self.at();
            self.session.tick(at);
            let packets = self.packets();
            let is_over = self.session.is_over(self.now);
            let does_something = !packets.is_empty() || self.session.deadline() != Some(deadline) || is_over;
            assert!(does_something, "a wake-up does something");
            all.extend(packets.into_iter().map(|packet| (self.now - began, packet)));
            if is_over {
                break;
            }
        }
        self.now = end;
        all
    }

    fn polled(&mut self) {
        self.take(Packet { is_final: true, ..theirs(State::Up) });
    }
}

fn theirs(state: State) -> Packet {
    Packet {
        diagnostic: Diagnostic::NONE,
        state,
        poll: false,
        is_final: false,
        independent: false,
        demand: false,
        multiplier: 5,
        mine: 9,
        yours: 7,
        send: 100_000,
        receive: 400_000,
        echo: 0,
    }
}

#[test]
fn every_state_and_every_event_have_one_outcome() {
    let mut table = String::new();
    for state in [State::Down, State::Init, State::Up, State::AdminDown] {
        for heard in [State::AdminDown, State::Down, State::Init, State::Up] {
            let mut bench = Bench::in_state(state);
            let said: Vec<State> = bench.hear(heard).iter().map(|packet| packet.state).collect();
            let status = bench.session.status();
            let (now, why, failures) = (status.state, status.diagnostic.number(), status.failures);
            writeln!(table, "{state} hears {heard}: {now} diag {why} failures {failures} says {said:?}").unwrap();
        }
        let mut bench = Bench::in_state(state);
        bench.pass(millis(1_200));
        let status = bench.session.status();
        let (now, why, failures) = (status.state, status.diagnostic.number(), status.failures);
        writeln!(table, "{state} hears nothing: {now} diag {why} failures {failures}").unwrap();
    }
    let expected = "\
Down hears AdminDown: Down diag 0 failures 0 says []
Down hears Down: Init diag 0 failures 0 says [Init]
Down hears Init: Up diag 0 failures 0 says [Up]
Down hears Up: Down diag 0 failures 0 says []
Down hears nothing: Down diag 0 failures 0
Init hears AdminDown: Down diag 3 failures 0 says [Down]
Init hears Down: Init diag 0 failures 0 says []
Init hears Init: Up diag 0 failures 0 says [Up]
Init hears Up: Up diag 0 failures 0 says [Up]
Init hears nothing: Down diag 1 failures 0
Up hears AdminDown: Down diag 3 failures 0 says [Down]
Up hears Down: Down diag 3 failures 1 says [Down]
Up hears Init: Up diag 0 failures 0 says []
Up hears Up: Up diag 0 failures 0 says []
Up hears nothing: Down diag 1 failures 1
AdminDown hears AdminDown: AdminDown diag 7 failures 0 says []
AdminDown hears Down: AdminDown diag 7 failures 0 says []
AdminDown hears Init: AdminDown diag 7 failures 0 says []
AdminDown hears Up: AdminDown diag 7 failures 0 says []
AdminDown hears nothing: AdminDown diag 7 failures 0
";
    assert_eq!(table, expected);
}

#[test]
fn a_path_is_down_after_the_neighbours_multiplier_times_the_slower_of_both_intervals() {
    let mut bench = Bench::in_state(State::Up);
    // The neighbour sends every 100 ms, we can bear 200 ms, and it gives itself five packets.
    assert_eq!(bench.session.detection_time(), Some(millis(1_000)));
    bench.pass(millis(999));
    assert_eq!(bench.session.status().state, State::Up);
    let last = bench.pass(millis(1));
    let said = last.last().expect("it says so at once").1;
    assert_eq!((said.state, said.diagnostic, said.yours), (State::Down, Diagnostic::TIME_EXPIRED, 0));
    let mut bench = Bench::in_state(State::Up);
    bench.take(Packet { multiplier: 2, send: 700_000, ..theirs(State::Up) });
    assert_eq!(bench.session.detection_time(), Some(millis(1_400)));
}

#[test]
fn who_is_lost_and_comes_back_is_found_again() {
    let mut bench = Bench::in_state(State::Up);
    bench.pass(millis(5_000));
    assert_eq!(bench.session.status().state, State::Down);
    bench.hear(State::Down);
    let said = bench.hear(State::Init);
    assert_eq!(said.iter().map(|packet| (packet.state, packet.yours)).collect::<Vec<_>>(), [(State::Up, 9)]);
    assert_eq!(bench.session.status().failures, 1);
}

#[test]
fn below_up_one_packet_a_second_is_sent_and_after_it_what_both_bear() {
    let mut bench = Bench::new(SETTINGS);
    let after = |number: u32, interval| millis(interval) * 880 / 1024 * number; // without chance
    let times: Vec<Duration> = bench.pass(millis(2_900)).into_iter().map(|(time, _)| time).collect();
    assert_eq!(times, [0, 1, 2, 3].map(|number| after(number, 1_000)));
    assert!(bench.pass(millis(300)).iter().all(|(_, packet)| packet.send == 1_000_000));
    bench.hear(State::Down);
    bench.hear(State::Up);
    bench.polled();
    let sent = bench.pass(millis(950));
    let times: Vec<Duration> = sent.iter().map(|(time, _)| *time).collect();
    assert_eq!(times, [1, 2].map(|number| after(number, 400)), "it bears one packet in 400 ms");
    assert!(sent.iter().all(|(_, packet)| packet.send == 300_000 && !packet.poll));
}

#[test]
fn coming_up_begins_a_poll_that_ends_with_its_answer() {
    let mut bench = Bench::in_state(State::Init);
    let said = bench.hear(State::Up);
    assert!(said.iter().all(|packet| packet.poll && packet.send == 300_000), "{said:?}");
    assert!(bench.pass(millis(700)).iter().all(|(_, packet)| packet.poll));
    bench.polled();
    assert!(bench.pass(millis(700)).iter().all(|(_, packet)| !packet.poll));
    let slow = Settings { send: millis(2_000), ..SETTINGS };
    let mut bench = Bench::new(slow);
    bench.hear(State::Down);
    let said = bench.hear(State::Up);
    assert!(said.iter().all(|packet| !packet.poll), "the interval is as it was");
}

#[test]
fn a_poll_is_answered_at_once_and_its_answer_is_no_poll() {
    let mut bench = Bench::in_state(State::Up);
    let said = bench.take(Packet { poll: true, ..theirs(State::Up) });
    assert_eq!(said.iter().map(|packet| (packet.is_final, packet.poll)).collect::<Vec<_>>(), [(true, false)]);
    let mut bench = Bench::in_state(State::Down);
    let said = bench.take(Packet { poll: true, ..theirs(State::Down) });
    assert_eq!(said.iter().map(|packet| (packet.is_final, packet.state)).collect::<Vec<_>>(), [(true, State::Init)]);
}

#[test]
fn what_a_neighbour_says_again_while_the_path_is_up_only_puts_off_its_loss() {
    let up = || {
        let mut bench = Bench::in_state(State::Up);
        bench.polled();
        bench
    };
    let again = theirs(State::Up);
    let mut bench = up();
    let (silent, status) = (bench.session.silent_at().expect("it is heard"), bench.session.status());
    bench.now += millis(70);
    let at = bench.at();
    assert!(!bench.session.receive(at, &again), "nothing follows");
    assert_eq!((bench.packets(), bench.session.status()), (vec![], status));
    assert_eq!(bench.session.silent_at(), Some(silent + millis(70)));
    for other in [
        Packet { poll: true, ..again },
        Packet { is_final: true, ..again },
        Packet { state: State::Init, ..again },
        Packet { state: State::Down, ..again },
        Packet { diagnostic: Diagnostic::TIME_EXPIRED, ..again },
        Packet { demand: true, ..again },
        Packet { independent: true, ..again },
        Packet { multiplier: 6, ..again },
        Packet { mine: 10, ..again },
        Packet { send: 1_000_000, ..again },
        Packet { receive: 1_000_000, ..again },
    ] {
        let mut bench = up();
        let at = bench.at();
        assert!(bench.session.receive(at, &other), "{other:?}");
    }
    let mut down = Bench::in_state(State::Down);
    let at = down.at();
    assert!(down.session.receive(at, &theirs(State::Down)), "below Up what is said again may have another effect");
}

#[test]
fn a_longer_interval_of_ours_waits_until_the_neighbour_knows() {
    let mut bench = Bench::in_state(State::Up);
    bench.polled();
    bench.session.change(bench.at(), Settings { send: millis(5_000), receive: millis(50), ..SETTINGS });
    let said = bench.packets();
    assert_eq!((said[0].poll, said[0].send, said[0].receive), (true, 5_000_000, 50_000), "advertised at once");
    assert_eq!(bench.session.interval(), millis(400), "and not used yet");
    assert_eq!(bench.session.detection_time(), Some(millis(1_000)), "it may send as before");
    bench.polled();
    assert_eq!(bench.session.interval(), millis(5_000));
    assert_eq!(bench.session.detection_time(), Some(millis(500)));
}

#[test]
fn a_shorter_interval_of_ours_is_used_at_once() {
    let mut bench = Bench::in_state(State::Up);
    bench.take(Packet { receive: 1, is_final: true, ..theirs(State::Up) });
    bench.pass(millis(1));
    bench.session.change(bench.at(), Settings { send: millis(40), receive: millis(900), ..SETTINGS });
    assert_eq!(bench.session.interval(), millis(40));
    assert_eq!(bench.session.detection_time(), Some(millis(4_500)), "so that a slower neighbour is not lost");
    bench.packets();
    let next = bench.session.deadline().expect("a packet is due");
    assert!(next <= bench.now + millis(40));
}

#[test]
fn an_answer_to_an_earlier_poll_does_not_end_a_later_one() {
    let mut bench = Bench::in_state(State::Up);
    bench.polled();
    bench.session.change(bench.at(), Settings { send: millis(2_000), ..SETTINGS });
    bench.session.change(bench.at(), Settings { send: millis(3_000), ..SETTINGS });
    bench.polled();
    assert_eq!(bench.session.interval(), millis(400));
    bench.polled();
    assert_eq!(bench.session.interval(), millis(3_000));
}

#[test]
fn a_neighbour_that_asks_for_a_faster_pace_gets_it_from_the_last_packet_on() {
    let mut bench = Bench::in_state(State::Up);
    bench.polled();
    bench.take(Packet { receive: 10_000_000, ..theirs(State::Up) });
    bench.pass(millis(400));
    bench.take(Packet { receive: 1_000, ..theirs(State::Up) });
    let next = bench.session.deadline().expect("a packet is due");
    assert!(next <= bench.now + millis(225), "{:?}", next - bench.now);
}

#[test]
fn who_wishes_no_packets_gets_none_but_answers() {
    for quiet in
        [Packet { receive: 0, ..theirs(State::Up) }, Packet { demand: true, is_final: true, ..theirs(State::Up) }]
    {
        let mut bench = Bench::in_state(State::Up);
        bench.polled();
        bench.take(quiet);
        assert_eq!(bench.pass(millis(990)), []);
        let said = bench.take(Packet { poll: true, is_final: false, ..quiet });
        assert!(said.iter().all(|packet| packet.is_final) && said.len() == 1);
    }
}

#[test]
fn the_end_of_a_session_is_told_for_as_long_as_it_takes_to_notice() {
    let mut bench = Bench::in_state(State::Up);
    bench.session.close(bench.at());
    let said = bench.packets();
    assert_eq!(
        said.iter().map(|packet| (packet.state, packet.diagnostic)).collect::<Vec<_>>(),
        [(State::AdminDown, Diagnostic::ADMINISTRATIVELY_DOWN)]
    );
    let again = bench.pass(millis(20_000));
    assert!((2..=4).contains(&again.len()) && again.iter().all(|(_, packet)| packet.state == State::AdminDown));
    assert!(bench.session.is_over(bench.now));
    let mut never_heard = Bench::new(SETTINGS);
    never_heard.session.close(never_heard.at());
    assert!(never_heard.session.is_over(never_heard.now));
}

#[test]
fn what_is_said_of_a_neighbours_control_plane_outlives_its_silence() {
    let mut bench = Bench::in_state(State::Up);
    bench.take(Packet { independent: true, ..theirs(State::Up) });
    bench.pass(millis(5_000));
    let status = bench.session.status();
    assert_eq!((status.state, status.independent, status.yours), (State::Down, true, 0));
}

fn settings() -> impl Strategy<Value = Settings> {
    (1..=u8::MAX, 10..2_000_u64, 10..2_000_u64).prop_map(|(multiplier, send, receive)| Settings {
        multiplier,
        send: millis(send),
        receive: millis(receive),
    })
}

proptest! {
    #[test]
    fn periodic_packets_keep_to_the_jitter_that_is_allowed(settings in settings(), jitter in any::<u8>(), bears in any::<u32>()) {
        let now = Instant::now();
        let at = Moment { now, jitter };
        let mut session = Session::new(settings, 7, at);
        session.receive(at, &Packet { receive: bears.max(1), ..theirs(State::Init) });
        while session.packet(at).is_some() {}
        let (interval, time) = (session.interval(), session.next - now);
        let most = if settings.multiplier == 1 { 0.9 } else { 1.0 };
        prop_assert!(time.as_secs_f64() >= 0.7499 * interval.as_secs_f64());
        // A wake-up may be late by a 16th of the interval, or a millisecond.
        prop_assert!(time.as_secs_f64() <= (most - 1.0 / 16.0) * interval.as_secs_f64() + 1e-6);
    }

    /// Two sessions over a path that loses and delays packets by chance find each other once it is whole, and agree.
    #[test]
    fn two_sessions_find_each_other_over_a_path_that_has_lost_whatever_it_wanted(
        both in [settings(), settings()], chance in any::<[u8; 32]>()
    ) {
        let mut now = Instant::now();
        let mut sessions = [
            Session::new(both[0], 1, Moment { now, jitter: 0 }),
            Session::new(both[1], 2, Moment { now, jitter: 255 }),
        ];
        let mut lost = chance.iter().cycle().take(400);
        let mut jitter = chance.iter().cycle().copied();
        let mut quiet = 0;
        for _ in 0..20_000 {
            let next = sessions.iter().filter_map(Session::deadline).min();
            now = next.expect("somebody sends").max(now);
            let mut sent: Vec<(usize, Packet)> = Vec::new();
            for (index, session) in sessions.iter_mut().enumerate() {
                let at = Moment { now, jitter: jitter.next().unwrap_or_default() };
                session.tick(at);
                sent.extend(std::iter::from_fn(|| session.packet(at)).map(|packet| (1 - index, packet)));
            }
            while let Some((to, packet)) = sent.pop() {
                if lost.next().is_some_and(|lost| lost % 3 != 0) {
                    continue;
                }
                let at = Moment { now, jitter: jitter.next().unwrap_or_default() };
                sessions[to].receive(at, &packet);
                let session = &mut sessions[to];
                sent.extend(std::iter::from_fn(|| session.packet(at)).map(|packet| (1 - to, packet)));
                prop_assert!(sent.len() < 8, "no packet brings forth ever more");
            }
            let is_settled = sessions.iter().all(|session| {
                session.state == State::Up && session.remote.state == State::Up && session.poll == Poll::None
            });
            quiet = if is_settled && lost.size_hint().0 == 0 { quiet + 1 } else { 0 };
            if quiet > 50 {
                break;
            }
        }
        prop_assert!(quiet > 50, "{sessions:?}");
        for (one, other) in [(0, 1), (1, 0)] {
            let [one, other] = [&sessions[one], &sessions[other]];
            prop_assert_eq!(one.interval(), other.receive.max(one.send));
            prop_assert_eq!(other.detection_time(), Some(one.interval() * u32::from(one.settings.multiplier)));
        }
    }
}
