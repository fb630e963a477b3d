//! Behaviour of the whole speaker: local restarts, slow neighbours, changing settings.

mod inspection;
mod limits;
mod liveness;
mod many;
mod refreshes;
mod restarting;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::super::message::{
    self, AsPath, Capabilities, Community, Dialect, Framing, GracefulRestart, LongLivedFamily, LongLivedRestart,
    Message, Open, Packing, Refresh, RefreshKind,
};
use super::super::policy::{Decision, Policy};
use super::super::rib::{Bounds, NextHops, Own};
use super::super::session::{Local, Restart as Graceful, Settings, State};
use super::super::transport::{Password, Transport};
use super::excess::LONG_ATTRIBUTES;
use super::*;
use crate::net::Family;
use proptest::prelude::*;

const OWN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

fn address(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, number))
}

fn wanted(number: u8) -> WantedNeighbour {
    let restart = Graceful { seconds: 120, stale: Duration::from_secs(300), long_lived: 0, notifications: true };
    let settings = Settings {
        local: Local { asn: 65001, identifier: OWN },
        asn: Some(65001),
        is_external: false,
        passive: true,
        hold_time: 90,
        connect_retry: Duration::from_secs(60),
        mutual: false,
        families: ALL,
        restart: Some(restart),
    };
    let own = PerFamily { v4: Some(address(1)), v6: None };
    let most = PerFamily::default();
    let transport = Transport::default();
    let address = address(number);
    WantedNeighbour {
        address,
        settings,
        transport,
        client: true,
        own,
        next_hops: NextHops::Usual,
        expected: true,
        first_as: true,
        most,
        liveness: None,
    }
}

struct Bench {
    speaker: Speaker,
    now: Instant,
    outputs: Vec<Output>,
    next: u64,
    /// The neighbours as somebody knows them who follows the changes alone.
    shown: BTreeMap<IpAddr, (Arc<WantedNeighbour>, Summary)>,
    steps: usize,
}

impl Bench {
    fn new(restarting: Option<Restarting>) -> Bench {
        Bench::bounded(restarting, Bounds::default())
    }

    fn bounded(restarting: Option<Restarting>, bounds: Bounds) -> Bench {
        let now = Instant::now();
        let all = || Arc::new(Policy::all(Decision::Accept));
        let rules = Rules {
            own: Own { asn: 65001, identifier: OWN, cluster: OWN },
            policies: Policies { import: all(), export: all() },
            addresses: BTreeSet::from([address(1)]),
            sharing: 1,
            held: PerFamily::default(),
            bounds,
            seed: 1,
        };
        let speaker = Speaker::new(rules, restarting, now);
        Bench { speaker, now, outputs: Vec::new(), next: 0, shown: BTreeMap::new(), steps: 0 }
    }

    fn step(&mut self, input: impl Into<Input>) {
        let outputs = self.speaker.step(Moment { now: self.now, jitter: 0 }, input);
        self.outputs.extend(outputs);
        self.check_shown();
    }

    /// Checks that the changes tell everything that is shown of the neighbours.
    fn check_shown(&mut self) {
        let row = |one: &Neighbour| (one.wanted.clone(), one.summary());
        for address in self.speaker.take_changed() {
            self.shown.remove(&address);
            self.shown.extend(self.speaker.neighbour(address).map(|one| (address, row(one))));
        }
        self.steps += 1;
        // With thousands of neighbours not after each step: the comparison is all that takes time then.
        if self.steps.is_multiple_of(1 + self.shown.len() / 8) {
            let all = self.speaker.neighbours().map(|(address, one)| (address, row(one)));
            assert_eq!(self.shown, all.collect());
        }
    }

    fn receive(&mut self, link: LinkId, bytes: &[u8]) {
        let outputs = self.speaker.receive(Moment { now: self.now, jitter: 0 }, link, bytes);
        self.outputs.extend(outputs);
        self.check_shown();
    }

    fn want(&mut self, wanted: WantedNeighbour) {
        self.step(Order::Want(Arc::new(wanted)));
    }

    /// Connects a neighbour; with or without graceful restart, perhaps with the R bit set.
    fn come(&mut self, number: u8, restarting: Option<bool>) -> LinkId {
        self.next += 1;
        let link = LinkId(self.next);
        self.step(Input::Accepted(address(number), link));
        self.greet(link, number.into(), restarting);
        assert_eq!(self.state(number), State::Established);
        link
    }

    /// Sends OPEN and KEEPALIVE of a neighbour.
    fn greet(&mut self, link: LinkId, number: u32, restarting: Option<bool>) {
        let restart = restarting.map(|restarting| GracefulRestart {
            restarting,
            notifications: true,
            seconds: 120,
            families: PerFamily { v4: Some(true), v6: Some(true) },
        });
        let capabilities = Capabilities {
            families: ALL,
            multiprotocol: true,
            refresh: true,
            asn: Some(65001),
            restart,
            ..Capabilities::default()
        };
        let identifier = Ipv4Addr::from(0xc000_0200 + number);
        self.receive(link, &message::open(&Open { asn: 65001, hold_time: 90, identifier, capabilities }));
        self.receive(link, &message::keepalive());
    }

    fn state(&self, number: u8) -> State {
        self.speaker.neighbour(address(number)).unwrap().peer().state()
    }

    fn announce(&mut self, link: LinkId, next_hop: u8, prefixes: &[IpNet]) {
        self.receive(link, &announcement(next_hop, prefixes));
    }

    /// Advances the clock, and handles what is due.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.speaker.deadline().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            self.step(Input::Tick);
        }
        self.now = end;
    }

    fn ends(&mut self, link: LinkId) {
        for family in Family::BOTH {
            self.receive(link, &message::end_of_rib(family));
        }
    }

    /// Types of the messages sent on a connection since the last call: `open`, `update`, ….
    fn said(&mut self, to: LinkId) -> Vec<String> {
        let mut said = Vec::new();
        for output in &self.outputs {
            let Output::Send(link, bytes) = output else { continue };
            let mut framing = Framing::default();
            framing.push(bytes);
            while let Some(frame) = framing.next(true).unwrap().filter(|_| *link == to) {
                said.push(match message::decode(frame, None).unwrap() {
                    Message::Open(_) => "open".to_owned(),
                    Message::Update(_) => "update".to_owned(),
                    Message::Notification(notification) => notification.to_string(),
                    Message::Keepalive => "keepalive".to_owned(),
                    Message::Refresh(_) | Message::Ignored => "refresh".to_owned(),
                });
            }
        }
        self.outputs.retain(|output| !matches!(output, Output::Send(link, _) if *link == to));
        said
    }

    fn facts(&self, which: impl Fn(&Fact) -> bool) -> usize {
        self.outputs.iter().filter(|output| matches!(output, Output::Fact(_, fact) if which(fact))).count()
    }
}

/// Builds an UPDATE.
fn announcement(next_hop: u8, prefixes: &[IpNet]) -> Vec<u8> {
    let dialect =
        Dialect { internal: true, four_octets: true, families: ALL, extended_next_hop: false, extended_message: false };
    let mut attributes = Attributes::local(address(next_hop));
    attributes.as_path = AsPath::sequence(&[64999]);
    let mut packing = Packing::new(dialect);
    assert!(packing.announce(Family::V4, &attributes, prefixes));
    packing.finish().0
}

fn prefixes(count: u32) -> Vec<IpNet> {
    let net = |number: u32| IpNet::new(Ipv4Addr::from(0x0af4_0000 + (number << 8)).into(), 24).unwrap();
    (0..count).map(net).collect()
}

#[test]
fn strangers_are_not_let_in() {
    let mut bench = Bench::new(None);
    bench.step(Input::Accepted(address(9), LinkId(1)));
    assert_eq!(bench.outputs, [Output::Close(LinkId(1))]);
}

#[test]
fn who_takes_nothing_for_eight_minutes_is_let_go() {
    let mut bench = Bench::new(None);
    bench.want(wanted(2));
    bench.want(wanted(3));
    let (from, deaf) = (bench.come(2, None), bench.come(3, None));
    let own = bench.speaker.rib().on_the_way(bench.speaker.neighbour(address(2)).unwrap().id());
    bench.step(Input::Taken(from, own));
    bench.announce(from, 2, &prefixes(3));
    for _ in 0..16 {
        bench.pass(Duration::from_secs(29));
        [from, deaf].into_iter().for_each(|link| bench.receive(link, &message::keepalive()));
    }
    assert_eq!(bench.state(3), State::Established);
    bench.pass(Duration::from_secs(29));
    assert_eq!((bench.state(2), bench.state(3)), (State::Established, State::Active));
    assert!(bench.said(deaf).contains(&"8/0 send hold timer expired".to_owned()));
}

#[test]
fn another_address_of_ours_than_that_of_the_session_is_told_as_a_next_hop_and_ends_nothing() {
    let mut bench = Bench::new(None);
    let v6 = |number: u16| PerFamily {
        v4: Some(address(1)),
        v6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number).into()),
    };
    for number in [2, 3] {
        bench.want(WantedNeighbour { own: v6(1), ..wanted(number) });
    }
    let links = [bench.come(2, None), bench.come(3, None)];
    let pods: IpNet = "2001:db8:1::/64".parse().unwrap();
    bench.step(Order::Originate(pods, Box::new(Attributes::local("::".parse().unwrap()))));
    for link in links {
        bench.said(link);
    }
    bench.want(WantedNeighbour { own: v6(9), ..wanted(2) });
    assert_eq!((bench.said(links[0]), bench.said(links[1])), (vec!["update".to_owned()], vec![]));
    assert_eq!((bench.state(2), bench.state(3)), (State::Established, State::Established));
    let told = |bench: &mut Bench, number| bench.speaker.told(address(number), pods).unwrap().next_hop;
    assert_eq!((told(&mut bench, 2), told(&mut bench, 3)), (v6(9).v6.unwrap(), v6(1).v6.unwrap()));
    // The same again is no news, and one that is gone takes its routes with it.
    bench.want(WantedNeighbour { own: v6(9), ..wanted(2) });
    assert_eq!(bench.said(links[0]), [""; 0]);
    bench.want(wanted(2));
    assert_eq!((bench.said(links[0]), bench.state(2)), (vec!["update".to_owned()], State::Established));
}

#[test]
fn settings_that_concern_the_session_begin_a_new_one_and_others_do_not() {
    let mut bench = Bench::new(None);
    bench.want(wanted(2));
    bench.come(2, None);
    bench.want(wanted(2));
    bench.want(WantedNeighbour { most: PerFamily { v4: Some(1000), v6: None }, ..wanted(2) });
    let settings = Settings { connect_retry: Duration::from_secs(5), ..wanted(2).settings };
    bench.want(WantedNeighbour { settings, ..wanted(2) });
    let transport = Transport { password: Password::new("hush").ok(), ..wanted(2).transport };
    bench.want(WantedNeighbour { transport, ..wanted(2) });
    assert_eq!(bench.state(2), State::Established);
    let settings = Settings { hold_time: 30, ..wanted(2).settings };
    let link = LinkId(1);
    bench.said(link);
    bench.want(WantedNeighbour { settings, ..wanted(2) });
    assert_eq!(bench.said(link), ["6/6 other configuration change"]);
    let neighbour = bench.speaker.neighbour(address(2)).unwrap();
    assert_eq!((neighbour.peer().state(), neighbour.flops()), (State::Active, 1));
    assert_eq!((neighbour.began(), neighbour.ended()), (Some(bench.now), Some(bench.now)));
    assert_eq!(neighbour.peer().own_open().hold_time, 30);
}

#[test]
fn a_neighbour_knows_the_last_resort_if_it_says_so_beside_graceful_restart() {
    let restart =
        Some(GracefulRestart { families: PerFamily { v4: Some(true), v6: None }, ..GracefulRestart::default() });
    let long_lived = Some(LongLivedRestart::default());
    for (restart, long_lived, knows) in
        [(restart, long_lived, true), (restart, None, false), (None, long_lived, false), (None, None, false)]
    {
        let mut bench = Bench::new(None);
        bench.want(wanted(2));
        let link = LinkId(1);
        bench.step(Input::Accepted(address(2), link));
        let capabilities = Capabilities {
            families: ALL,
            multiprotocol: true,
            asn: Some(65001),
            restart,
            long_lived,
            ..Capabilities::default()
        };
        let identifier = Ipv4Addr::new(192, 0, 2, 2);
        bench.receive(link, &message::open(&Open { asn: 65001, hold_time: 90, identifier, capabilities }));
        bench.receive(link, &message::keepalive());
        let neighbour = bench.speaker.neighbour(address(2)).unwrap();
        let agreement = neighbour.peer().agreement().expect("a session").clone();
        assert_eq!(neighbour.looks(&agreement).1.knows_long_lived, knows, "{restart:?} {long_lived:?}");
    }
}

#[test]
fn who_is_removed_leaves_nothing() {
    let mut bench = Bench::new(None);
    bench.want(wanted(2));
    let link = bench.come(2, Some(false));
    bench.announce(link, 2, &prefixes(3));
    bench.step(Order::Remove(address(2), Notification::new(Reason::DECONFIGURED)));
    assert!(bench.speaker.rib().table().is_empty());
    assert_eq!((bench.speaker.neighbours().count(), bench.speaker.deadline()), (0, None));
    bench.receive(link, &message::keepalive());
    bench.step(Input::Closed(link));
    bench.step(Input::Taken(link, 100));
}

#[test]
fn messages_are_counted() {
    let mut bench = Bench::new(None);
    bench.want(wanted(2));
    let link = bench.come(2, None);
    bench.announce(link, 2, &prefixes(3));
    bench.step(Order::AskAgain(address(2)));
    let neighbour = bench.speaker.neighbour(address(2)).unwrap();
    assert_eq!(neighbour.peer().received(), [0, 1, 1, 0, 1, 0]);
    assert_eq!(neighbour.sent(), [0, 1, 2, 0, 1, 2], "two ends, and a question for each family");
}

/// Number of cases, or `BGP_CASES` times as many for a longer search.
fn cases(usual: u32) -> ProptestConfig {
    let times = std::env::var("BGP_CASES").map_or(1, |text| text.parse().expect("BGP_CASES is a number"));
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(usual * times) }
}

proptest! {
    #![proptest_config(cases(1024))]

    #[test]
    fn rubbish_from_one_neighbour_breaks_nothing_and_leaves_the_other_one_alone(
        wrong in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        cut in 1..200_usize,
        internal in any::<bool>(),
    ) {
        let mut bench = Bench::new(None);
        bench.want(wanted(2));
        bench.want(wanted(3));
        let (odd, other) = (bench.come(2, Some(false)), bench.come(3, None));
        bench.announce(other, 3, &prefixes(2));
        let families = ALL;
        let dialect = Dialect { internal, four_octets: true, families, extended_next_hop: true, extended_message: false };
        let mut packing = Packing::new(dialect);
        let mut attributes = Attributes::local(address(2));
        attributes.as_path = AsPath::sequence(&[64999, 64998]);
        attributes.add_communities(&[message::Community(1), message::Community(2)]);
        attributes.change_rare(|rare| rare.originator = Some(Ipv4Addr::new(192, 0, 2, 7)));
        prop_assert!(packing.announce(Family::V4, &attributes, &prefixes(9)));
        let attributes = attributes.with_next_hop("2001:db8:2::2".parse().unwrap());
        prop_assert!(packing.announce(Family::V6, &attributes, &["fd00:10:244::/64".parse().unwrap()]));
        packing.withdraw(Family::V4, &prefixes(3));
        let mut stream = packing.finish().0;
        stream.extend(message::refresh(&Refresh { family: Family::V4, kind: RefreshKind::Begin }));
        stream.extend(message::end_of_rib(Family::V6));
        for (at, byte) in wrong {
            let at = at.index(stream.len());
            stream[at] = byte;
        }
        stream.chunks(cut).for_each(|piece| bench.receive(odd, piece));
        prop_assert_eq!(bench.state(3), State::Established);
        let id = bench.speaker.neighbour(address(3)).unwrap().id();
        prop_assert_eq!(bench.speaker.rib().table().count(id).v4.received, 2);
        bench.speaker.rib().table().check();
    }
}
