//! Neighbours that exceed a limit on their routes.

use super::*;

#[test]
fn who_sends_too_long_attributes_is_let_go_and_others_go_on() {
    let mut bench = Bench::new(None);
    bench.want(wanted(2));
    bench.want(wanted(3));
    let (flooding, other) = (bench.come(2, Some(false)), bench.come(3, None));
    bench.announce(other, 3, &prefixes(20));
    let dialect =
        Dialect { internal: true, four_octets: true, families: ALL, extended_next_hop: false, extended_message: true };
    let each = 60 << 10;
    let mut attributes = Attributes::local(address(2));
    attributes.as_path = AsPath::sequence(&[64999]);
    // All routes may share one long set, however many they are.
    for (number, prefix) in (0..).zip(prefixes(2 * (LONG_ATTRIBUTES / each) as u32 - 10)) {
        let first = if number < LONG_ATTRIBUTES / each { 0 } else { number as u32 };
        attributes.communities = (first..first + each as u32 / 4).map(Community).collect();
        let mut packing = Packing::new(dialect);
        assert!(packing.announce(Family::V4, &attributes, &[prefix]));
        assert_eq!(bench.state(2), State::Established);
        bench.receive(flooding, &packing.finish().0);
        bench.outputs.retain(|output| matches!(output, Output::Fact(..)));
    }
    assert_eq!(bench.state(2), State::Established, "there is room for so much");
    for (number, prefix) in (0..20).zip(prefixes(20)) {
        attributes.communities = (number..number + each as u32 / 4).map(|one| Community(one << 8)).collect();
        let mut packing = Packing::new(dialect);
        assert!(packing.announce(Family::V4, &attributes, &[prefix]));
        bench.receive(flooding, &packing.finish().0);
    }
    assert_eq!((bench.state(2), bench.state(3)), (State::Idle, State::Established));
    assert_eq!(bench.facts(|fact| matches!(fact, Fact::TooLong { .. })), 1);
    let id = bench.speaker.neighbour(address(2)).unwrap().id();
    assert_eq!(bench.speaker.rib().table().long_attributes(id), 0);
}

#[test]
fn who_sends_too_many_prefixes_is_let_go_and_left_alone_for_a_while() {
    let mut bench = Bench::new(None);
    bench.want(WantedNeighbour { most: PerFamily { v4: Some(10), v6: None }, ..wanted(2) });
    bench.want(wanted(3));
    let (flooding, other) = (bench.come(2, Some(false)), bench.come(3, None));
    bench.announce(flooding, 2, &prefixes(10));
    bench.announce(other, 3, &prefixes(20));
    assert_eq!((bench.state(2), bench.speaker.rib().table().len()), (State::Established, 20));
    bench.said(flooding);
    bench.announce(flooding, 2, &prefixes(11));
    let said = bench.said(flooding);
    let expected = "6/9 hard reset (6/1 maximum number of prefixes reached)";
    assert_eq!(said.last().map(String::as_str), Some(expected));
    assert_eq!((bench.state(2), bench.state(3)), (State::Idle, State::Established));
    assert_eq!(bench.facts(|fact| matches!(fact, Fact::TooMany { family: Family::V4, most: 10 })), 1);
    let id = bench.speaker.neighbour(address(2)).unwrap().id();
    assert_eq!(bench.speaker.rib().table().count(id), PerFamily::default());
    bench.step(Input::Accepted(address(2), LinkId(99)));
    assert_eq!(bench.said(LinkId(99)), ["6/5 connection rejected"]);
    bench.pass(Duration::from_secs(60));
    bench.receive(other, &message::keepalive());
    bench.pass(Duration::from_secs(60));
    assert_eq!(bench.state(2), State::Idle);
}

#[test]
fn a_limit_that_changes_holds_at_once_and_lets_in_who_was_let_go_for_the_one_before() {
    let mut bench = Bench::new(None);
    let with = |most: u32| WantedNeighbour { most: PerFamily { v4: Some(most), v6: None }, ..wanted(2) };
    bench.want(with(10));
    let link = bench.come(2, Some(false));
    bench.announce(link, 2, &prefixes(8));
    bench.want(with(8));
    assert_eq!(bench.state(2), State::Established);
    bench.want(with(7));
    assert_eq!(bench.state(2), State::Idle);
    assert_eq!(bench.facts(|fact| matches!(fact, Fact::TooMany { family: Family::V4, most: 7 })), 1);
    bench.want(with(8));
    assert_ne!(bench.state(2), State::Idle);
    bench.come(2, Some(false));
    // Stopped by an operator it stays so.
    bench.step(Order::Stop(address(2), Notification::new(Reason::SHUTDOWN)));
    bench.want(with(9));
    assert_eq!(bench.state(2), State::Idle);
}

#[test]
fn nothing_is_kept_of_who_sends_too_many_prefixes_and_ends_the_session_with_the_same_bytes() {
    let mut bench = Bench::new(None);
    bench.want(WantedNeighbour { most: PerFamily { v4: Some(10), v6: None }, ..wanted(2) });
    let flooding = bench.come(2, Some(false));
    bench.announce(flooding, 2, &prefixes(3));
    let end = message::notification(&Notification::new(Reason::CONFIGURATION_CHANGE));
    bench.receive(flooding, &[announcement(2, &prefixes(11)), end].concat());
    assert_eq!(bench.state(2), State::Idle);
    assert_eq!(bench.speaker.rib().table().len(), 0);
}

#[test]
fn routes_kept_over_a_restart_of_a_neighbour_do_not_count_towards_its_limit() {
    let mut bench = Bench::new(None);
    bench.want(WantedNeighbour { most: PerFamily { v4: Some(10), v6: None }, ..wanted(2) });
    let link = bench.come(2, Some(false));
    bench.announce(link, 2, &prefixes(8));
    bench.step(Input::Closed(link));
    let count = |bench: &Bench| bench.speaker.rib().table().count(bench.speaker.neighbour(address(2)).unwrap().id()).v4;
    assert_eq!((count(&bench).received, count(&bench).stale), (8, 8));
    let link = bench.come(2, Some(true));
    // Two of before, one of them as it was, and eight others.
    bench.announce(link, 2, &prefixes(1));
    bench.announce(link, 3, &prefixes(2)[1..]);
    bench.announce(link, 2, &prefixes(16)[8..]);
    assert_eq!(bench.state(2), State::Established);
    assert_eq!((count(&bench).received, count(&bench).stale), (16, 6));
    bench.ends(link);
    assert_eq!((count(&bench).received, count(&bench).stale), (10, 0));
    bench.announce(link, 2, &prefixes(17)[16..]);
    assert_eq!(bench.state(2), State::Idle);
    assert_eq!(bench.speaker.rib().table().len(), 0);
}

#[test]
fn one_that_restarts_with_more_than_its_limit_is_let_go() {
    let mut bench = Bench::new(None);
    bench.want(WantedNeighbour { most: PerFamily { v4: Some(10), v6: None }, ..wanted(2) });
    let link = bench.come(2, Some(false));
    bench.announce(link, 2, &prefixes(8));
    bench.step(Input::Closed(link));
    let link = bench.come(2, Some(true));
    bench.announce(link, 2, &prefixes(11));
    assert_eq!(bench.state(2), State::Idle);
}

#[test]
fn a_router_that_comes_and_goes_with_other_prefixes_each_time_has_no_more_kept_than_its_limit() {
    let mut bench = Bench::new(None);
    let mut limited = WantedNeighbour { most: PerFamily { v4: Some(10), v6: None }, ..wanted(2) };
    limited.settings.restart = limited.settings.restart.map(|ours| Graceful { long_lived: 3600, ..ours });
    bench.want(limited);
    let count = |bench: &Bench| bench.speaker.rib().table().count(bench.speaker.neighbour(address(2)).unwrap().id()).v4;
    let both = |forwarding| PerFamily { v4: Some(forwarding), v6: Some(forwarding) };
    let long = LongLivedFamily { forwarding: true, seconds: 1000 };
    let capabilities = Capabilities {
        families: ALL,
        multiprotocol: true,
        asn: Some(65001),
        restart: Some(GracefulRestart { restarting: false, notifications: false, seconds: 0, families: both(true) }),
        long_lived: Some(LongLivedRestart { families: PerFamily { v4: Some(long), v6: Some(long) } }),
        ..Capabilities::default()
    };
    let identifier = Ipv4Addr::new(192, 0, 2, 2);
    let open = message::open(&Open { asn: 65001, hold_time: 90, identifier, capabilities });
    for round in 0..20 {
        let link = LinkId(100 + round);
        bench.step(Input::Accepted(address(2), link));
        bench.receive(link, &open);
        bench.receive(link, &message::keepalive());
        let first = 6 * round as usize;
        bench.announce(link, 2, &prefixes(120)[first..first + 6]);
        assert_eq!(bench.state(2), State::Established, "each session has sent less than its limit");
        bench.step(Input::Closed(link));
        bench.pass(Duration::from_secs(1));
        assert_eq!((count(&bench).received, count(&bench).stale), (6, 6), "{round}: those of the last session");
    }
}
