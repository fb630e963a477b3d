//! Neighbours and prefixes as they are shown to who asks.

use super::*;

impl Bench {
    fn shown(&self, number: u8) -> NeighbourState {
        let all = self.speaker.neighbour_states(None, 100, self.now);
        all.into_iter().find(|one| one.address == address(number)).expect("it is wanted")
    }

    fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }
}

#[test]
fn a_neighbour_shows_since_when_it_is_up_and_why_it_is_down() {
    let mut bench = Bench::new(None);
    bench.want(wanted(2));
    bench.wait(7);
    let shown = bench.shown(2);
    assert_eq!((shown.state, shown.since.as_secs(), shown.has_been_up), (State::Active, 7, false));
    assert_eq!((shown.is_passive, &shown.last_failure), (true, &None));
    let link = bench.come(2, None);
    bench.wait(5);
    let shown = bench.shown(2);
    assert_eq!((shown.state, shown.since.as_secs(), shown.has_been_up), (State::Established, 5, true));
    assert_eq!((shown.asn, shown.is_internal, shown.families), (Some(65001), true, ALL));
    let said = Notification::with_text(Reason::SHUTDOWN, "maintenance");
    bench.receive(link, &message::notification(&said));
    bench.wait(3);
    let shown = bench.shown(2);
    assert_eq!((shown.since.as_secs(), shown.flops), (3, 1));
    let ended = FailureCause::Ended(Cause::Received(said));
    assert_eq!(shown.last_failure, Some((ended, Duration::from_secs(3))));
}

#[test]
fn a_dial_that_fails_shows_the_answer_of_the_system_and_the_next_one() {
    let mut bench = Bench::new(None);
    let mut active = wanted(2);
    active.settings.passive = false;
    bench.want(active);
    bench.speaker.note_failed_dial(address(2), "connect to 192.0.2.2:179: Connection refused", bench.now);
    bench.step(Input::DialFailed(address(2)));
    let shown = bench.shown(2);
    let refused = FailureCause::Dial("connect to 192.0.2.2:179: Connection refused".into());
    assert_eq!(shown.last_failure, Some((refused, Duration::ZERO)));
    assert!(shown.next_dial.is_some_and(|next| next > Duration::ZERO && next <= Duration::from_secs(1)));
}

#[test]
fn a_collision_is_no_failure() {
    let mut bench = Bench::new(None);
    bench.want(wanted(2));
    bench.step(Input::Accepted(address(2), LinkId(77)));
    bench.receive(LinkId(77), &message::notification(&Notification::new(Reason::COLLISION)));
    assert_eq!(bench.shown(2).last_failure, None);
    bench.step(Input::Accepted(address(2), LinkId(78)));
    bench.step(Input::Closed(LinkId(78)));
    assert_eq!(bench.shown(2).last_failure, Some((FailureCause::Ended(Cause::Closed), Duration::ZERO)));
}

#[test]
fn who_is_stopped_and_who_is_refused_for_its_routes_says_so() {
    let mut bench = Bench::new(None);
    bench.want(WantedNeighbour { most: PerFamily { v4: Some(1), v6: None }, ..wanted(2) });
    bench.want(wanted(3));
    let link = bench.come(2, None);
    bench.announce(link, 2, &prefixes(2));
    bench.wait(100);
    assert_eq!(bench.shown(2).idle, Some(Idle::Refused(FLOODED - Duration::from_secs(100))));
    let reason = match bench.shown(2).last_failure {
        Some((FailureCause::Ended(Cause::Sent(said)), _)) => said.reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(reason, Reason::MAXIMUM_PREFIXES);
    bench.step(Order::Stop(address(3), Notification::new(Reason::SHUTDOWN)));
    assert_eq!(bench.shown(3).idle, Some(Idle::Stopped));
}

#[test]
fn neighbours_and_prefixes_come_in_portions_and_none_twice() {
    let mut bench = Bench::new(None);
    (2..9).for_each(|number| bench.want(wanted(number)));
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let portion = bench.speaker.neighbour_states(after, 3, bench.now);
        after = portion.last().map(|last| last.address);
        let is_last = portion.len() < 3;
        all.extend(portion.into_iter().map(|one| one.address));
        if is_last {
            break;
        }
    }
    assert_eq!(all, (2..9).map(address).collect::<Vec<_>>());

    let four = ["10.0.0.0/8", "10.244.0.0/16", "10.244.1.0/24", "10.244.1.7/32", "10.244.2.0/24", "192.0.2.0/24"];
    let six = ["fd00::/8", "fd00:10:244::/48", "fd00:10:244:1::/64"];
    let prefixes: Vec<IpNet> = four.iter().chain(&six).map(|text| text.parse().unwrap()).collect();
    for prefix in &prefixes {
        let attributes = Attributes::local(address(1));
        bench.step(Order::Originate(*prefix, Box::new(attributes)));
    }
    let all = |selected| {
        let (mut all, mut from) = (Vec::new(), None);
        loop {
            let portion = bench.speaker.portion(selected, from, 2);
            all.extend(portion.prefixes);
            from = portion.next;
            if from.is_none() {
                return all;
            }
        }
    };
    assert_eq!(all(PrefixQuery::All), prefixes);
    assert_eq!(all(PrefixQuery::Inside(prefixes[1])), prefixes[1..5]);
    assert_eq!(all(PrefixQuery::Inside("fd00:10:244::/40".parse().unwrap())), prefixes[7..]);
    assert_eq!(all(PrefixQuery::Inside("198.51.100.0/24".parse().unwrap())), []);
    let around = |text: &str| bench.speaker.portion(PrefixQuery::Around(text.parse().unwrap()), None, 9).prefixes;
    assert_eq!(around("10.244.1.7"), [prefixes[3], prefixes[2], prefixes[1], prefixes[0]]);
    assert_eq!(around("fd00:10:244:1::5"), [prefixes[8], prefixes[7], prefixes[6]]);
    assert_eq!(around("203.0.113.1"), []);
}
