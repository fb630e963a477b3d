//! Thousands of neighbours: those that do not answer, and those at rest.

use super::*;

fn node(number: u32) -> IpAddr {
    IpAddr::V4((0xc612_0000 + number).into())
}

/// A neighbour that both sides dial.
fn dialled(number: u32, mutual: bool) -> WantedNeighbour {
    let settings = Settings { passive: false, mutual, connect_retry: Duration::from_secs(30), ..wanted(2).settings };
    WantedNeighbour { address: node(number), settings, ..wanted(2) }
}

impl Bench {
    /// Advances the clock; all dials fail at once. Returns how often each neighbour was dialled.
    fn pass_unanswered(&mut self, time: Duration) -> BTreeMap<IpAddr, u32> {
        let end = self.now + time;
        let mut dials = BTreeMap::new();
        loop {
            let fails = |output: &Output| if let Output::Dial(address) = output { Some(*address) } else { None };
            let failed: Vec<IpAddr> = self.outputs.drain(..).filter_map(|output| fails(&output)).collect();
            for address in failed {
                *dials.entry(address).or_default() += 1;
                self.step(Input::DialFailed(address));
            }
            let Some(next) = self.speaker.deadline().filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            self.step(Input::Tick);
        }
        self.now = end;
        dials
    }

    /// Advances the clock up to `end`, or until these neighbours all have sessions: dials to them succeed, all others fail.
    /// Returns whether they have.
    fn pass_answered_by(&mut self, alive: std::ops::Range<u32>, end: Instant) -> bool {
        loop {
            for output in std::mem::take(&mut self.outputs) {
                let Output::Dial(address) = output else { continue };
                match alive.clone().find(|number| node(*number) == address) {
                    Some(number) => {
                        self.next += 1;
                        let link = LinkId(self.next);
                        self.step(Input::Dialled(address, link));
                        self.greet(link, 10_000 + number, None);
                    }
                    None => self.step(Input::DialFailed(address)),
                }
            }
            let has_session = |number| self.speaker.neighbour(node(number)).unwrap().peer().session().is_some();
            if alive.clone().all(has_session) {
                return true;
            }
            if !self.outputs.is_empty() {
                continue;
            }
            let Some(next) = self.speaker.deadline().filter(|next| *next <= end) else { return false };
            self.now = self.now.max(next);
            self.step(Input::Tick);
        }
    }

    /// Ends the sessions of these neighbours.
    fn cut(&mut self, those: std::ops::Range<u32>) {
        for number in those {
            let (link, _) = self.speaker.neighbour(node(number)).unwrap().peer().session().unwrap();
            self.step(Input::Closed(link));
        }
    }

    fn dials(&mut self) -> Vec<IpAddr> {
        let dials = self.outputs.iter().filter_map(|output| match output {
            Output::Dial(address) => Some(*address),
            _ => None,
        });
        dials.collect()
    }
}

#[test]
fn thousands_that_do_not_answer_are_dialled_five_times_a_second_all_together() {
    let mut bench = Bench::new(None);
    (0..2000).for_each(|number| bench.want(dialled(number, true)));
    bench.want(dialled(9999, false));
    bench.pass_unanswered(Duration::from_secs(600));
    let dials = bench.pass_unanswered(Duration::from_secs(600));
    let alone = dials[&node(9999)];
    assert!((20..=21).contains(&alone), "who does not dial us is dialled every half a minute: {alone}");
    let others = dials.values().sum::<u32>() - alone;
    assert!((2900..=3200).contains(&others), "{others} in ten minutes");
    assert_eq!(dials.len(), 2001, "each has its turn");
    bench.want(dialled(5000, true));
    let first = bench.pass_unanswered(Duration::from_secs(20));
    assert_eq!(first[&node(5000)], 5, "a new one does not wait for the others");
}

#[test]
fn thousands_that_die_together_are_not_dialled_more_often_than_those_that_are_dead_for_long() {
    let mut bench = Bench::new(None);
    (0..2000).for_each(|number| bench.want(dialled(number, true)));
    // Until then they are dialled without regard to each other.
    bench.pass_unanswered(Duration::from_secs(40));
    for minute in 1..=10 {
        let dials = bench.pass_unanswered(Duration::from_secs(60)).values().sum::<u32>();
        assert!(dials <= 600, "{dials} in minute {minute}");
    }
}

#[test]
fn when_one_is_back_after_a_long_time_some_others_are_dialled_at_once() {
    let mut bench = Bench::new(None);
    (0..2000).for_each(|number| bench.want(dialled(number, true)));
    bench.pass_unanswered(Duration::from_secs(600));
    bench.step(Input::Accepted(node(7), LinkId(1)));
    assert!(bench.dials().is_empty());
    bench.greet(LinkId(1), 200, None);
    let dialled = bench.dials();
    assert_eq!(dialled.iter().collect::<BTreeSet<_>>().len(), 16);
    bench.pass_unanswered(Duration::from_secs(2));
    bench.step(Input::Closed(LinkId(1)));
    bench.pass_unanswered(Duration::from_millis(100));
    bench.step(Input::Accepted(node(7), LinkId(2)));
    bench.greet(LinkId(2), 200, None);
    assert!(bench.dials().is_empty(), "it was away for a moment only");
}

#[test]
fn a_cut_heals_in_half_the_time_that_it_lasted_although_thousands_are_down_for_long() {
    for cut in [40, 90, 180].map(Duration::from_secs) {
        let mut bench = Bench::new(None);
        (0..2000).for_each(|number| bench.want(dialled(number, true)));
        bench.pass_unanswered(Duration::from_secs(600));
        (3000..3040).for_each(|number| bench.want(dialled(number, true)));
        let now = bench.now;
        assert!(bench.pass_answered_by(3000..3040, now), "their sessions begin");
        bench.cut(3000..3040);
        bench.pass_unanswered(cut);
        let bound = bench.now + (cut / 2).max(Duration::from_secs(30));
        assert!(bench.pass_answered_by(3000..3040, bound), "after a cut of {cut:?}");
    }
}

#[test]
fn when_one_is_back_those_with_addresses_near_to_it_follow_at_once() {
    let mut bench = Bench::new(None);
    (0..2000).for_each(|number| bench.want(dialled(number, true)));
    bench.pass_unanswered(Duration::from_secs(600));
    bench.next += 1;
    bench.step(Input::Accepted(node(1020), LinkId(bench.next)));
    bench.greet(LinkId(bench.next), 1020, None);
    let now = bench.now;
    assert!(bench.pass_answered_by(1000..1040, now), "all of the same rack");
    assert!(bench.dials().len() < 1000, "and few of the others are dialled");
}

#[test]
fn keepalives_to_a_thousand_neighbours_leave_in_one_wake_up_every_two_seconds() {
    let mut bench = Bench::new(None);
    let count = 1000;
    for number in 0..count {
        bench.want(WantedNeighbour { address: node(number), ..wanted(2) });
        let link = LinkId(u64::from(number));
        bench.step(Input::Accepted(node(number), link));
        bench.greet(link, 1000 + number, None);
        bench.pass(Duration::from_millis(29));
    }
    bench.outputs.clear();
    let (mut wakes, begin) = (0, bench.now);
    let mut last: BTreeMap<LinkId, Vec<Duration>> = BTreeMap::new();
    while bench.now < begin + Duration::from_secs(75) {
        bench.now = bench.speaker.deadline().unwrap();
        bench.step(Input::Tick);
        wakes += 1;
        for output in std::mem::take(&mut bench.outputs) {
            let Output::Send(link, _) = output else { panic!("{output:?}") };
            last.entry(link).or_default().push(bench.now - begin);
        }
        (0..count).for_each(|number| bench.receive(LinkId(u64::from(number)), &message::keepalive()));
    }
    assert!((30..=42).contains(&wakes), "{wakes} in 75 seconds");
    for times in last.values() {
        let gaps: Vec<f32> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f32()).collect();
        assert!(!gaps.is_empty() && gaps.iter().all(|gap| (27.9..=30.0).contains(gap)), "{gaps:?}");
    }
}

/// An UPDATE with attributes that no other has, of some hundred bytes.
fn unlike(number: u32) -> Vec<u8> {
    unlike_for(number, &[IpNet::new(Ipv4Addr::from(0x0a00_0000 + (number << 8)).into(), 24).unwrap()])
}

/// The same for these prefixes.
fn unlike_for(number: u32, prefixes: &[IpNet]) -> Vec<u8> {
    let dialect =
        Dialect { internal: true, four_octets: true, families: ALL, extended_next_hop: false, extended_message: false };
    let mut attributes = Attributes::local(address(2));
    attributes.as_path = AsPath::sequence(&[64999]);
    attributes.communities = (0..80).map(|community| Community(number << 8 | community)).collect();
    assert!(attributes.footprint() < 512, "short ones");
    let mut packing = Packing::new(dialect);
    assert!(packing.announce(Family::V4, &attributes, prefixes));
    packing.finish().0
}

#[test]
fn millions_of_short_attributes_are_too_many_and_the_neighbour_with_the_most_is_let_go() {
    let bounds = Bounds { attributes: 1 << 20, ..Bounds::default() };
    let mut bench = Bench::bounded(None, bounds);
    (2..=4).for_each(|number| bench.want(wanted(number)));
    let [flooding, small, late] = [2, 3, 4].map(|number| bench.come(number, None));
    (0..2000).for_each(|number| bench.receive(flooding, &unlike(number)));
    (2000..2010).for_each(|number| bench.receive(small, &unlike(number)));
    // The same attributes once more cost nothing.
    (0..2000).for_each(|number| bench.receive(small, &unlike(number)));
    assert_eq!([2, 3, 4].map(|number| bench.state(number)), [State::Established; 3], "there is room for so much");
    bench.said(small);
    for number in 3000..3400 {
        bench.receive(flooding, &unlike(number));
        bench.outputs.retain(|output| matches!(output, Output::Fact(..)));
    }
    // Whoever comes last, the one with the most goes.
    (4000..4400).for_each(|number| bench.receive(late, &unlike(number)));
    assert_eq!([2, 3, 4].map(|number| bench.state(number)), [State::Idle, State::Established, State::Established]);
    assert_eq!(bench.facts(|fact| matches!(fact, Fact::TooLong { most: 0x10_0000 })), 1);
    let id = bench.speaker.neighbour(address(2)).unwrap().id();
    assert_eq!(bench.speaker.rib().table().count(id), PerFamily::default());
    assert_eq!(bench.speaker.rib().table().len(), 2010 + 400);
}

/// A neighbour announces routes that all have attributes of their own.
fn flood(bench: &mut Bench, link: LinkId, numbers: std::ops::Range<u32>) {
    numbers.for_each(|number| bench.receive(link, &unlike(number)));
}

#[test]
fn routes_of_an_operator_use_room_and_no_neighbour_answers_for_them() {
    let bounds = Bounds { attributes: 1 << 20, ..Bounds::default() };
    let mut bench = Bench::bounded(None, bounds);
    (2..=3).for_each(|number| bench.want(wanted(number)));
    let [flooding, small] = [2, 3].map(|number| bench.come(number, None));
    let add = |bench: &mut Bench, numbers: std::ops::Range<u32>| {
        for number in numbers {
            let mut attributes = Attributes::local(address(1));
            attributes.communities = (0..80).map(|community| Community(number << 8 | community)).collect();
            let prefix = IpNet::new(Ipv4Addr::from(0xc000_0000 + (number << 8)).into(), 24).unwrap();
            bench.step(Order::Add(prefix, Box::new(attributes)));
            bench.outputs.retain(|output| matches!(output, Output::Fact(..)));
        }
    };
    add(&mut bench, 0..1400);
    flood(&mut bench, flooding, 10_000..10_300);
    flood(&mut bench, small, 20_000..20_010);
    assert_eq!([2, 3].map(|number| bench.state(number)), [State::Established; 2], "there is room for so much");
    flood(&mut bench, flooding, 10_300..11_500);
    let states = [State::Idle, State::Established];
    assert_eq!(
        [2, 3].map(|number| bench.state(number)),
        states,
        "the neighbour with the most, which has less than the operator"
    );
    add(&mut bench, 1400..3500);
    flood(&mut bench, small, 20_010..20_020);
    assert_eq!(
        [2, 3].map(|number| bench.state(number)),
        states,
        "too much by the operator alone is no neighbour's fault"
    );
    assert_eq!(bench.facts(|fact| matches!(fact, Fact::TooLong { .. })), 1);
}

#[test]
fn who_has_many_routes_with_the_same_attributes_weighs_no_more_than_these() {
    let bounds = Bounds { attributes: 1 << 20, ..Bounds::default() };
    let mut bench = Bench::bounded(None, bounds);
    (2..=3).for_each(|number| bench.want(wanted(number)));
    let [flooding, honest] = [2, 3].map(|number| bench.come(number, None));
    // Fewer sets than the other one has in the end, each for many prefixes.
    for number in 0..1100 {
        let nets: Vec<IpNet> = (0..20)
            .map(|net| IpNet::new(Ipv4Addr::from(0xb000_0000 + ((number * 20 + net) << 8)).into(), 24).unwrap())
            .collect();
        bench.receive(honest, &unlike_for(50_000 + number, &nets));
    }
    flood(&mut bench, flooding, 0..1200);
    assert_eq!([2, 3].map(|number| bench.state(number)), [State::Established; 2], "there is room for so much");
    flood(&mut bench, flooding, 1200..2400);
    assert_eq!([2, 3].map(|number| bench.state(number)), [State::Idle, State::Established]);
}
