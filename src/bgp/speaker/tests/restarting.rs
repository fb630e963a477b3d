//! Restarts of ours: who is waited for, and who is told what meanwhile.

use super::*;

const RESTARTING: Option<Restarting> =
    Some(Restarting { patience: Duration::from_millis(800), deferral: Duration::from_secs(60) });

#[test]
fn after_a_restart_of_ours_nobody_is_told_routes_of_others_until_all_have_said_what_they_have() {
    let mut bench = Bench::new(RESTARTING);
    bench.want(wanted(2));
    bench.want(wanted(3));
    let (one, two) = (bench.come(2, Some(false)), bench.come(3, Some(false)));
    assert_eq!(bench.said(one), ["open", "keepalive"]);
    bench.announce(one, 2, &prefixes(3));
    bench.ends(one);
    bench.pass(Duration::from_secs(10));
    assert!(bench.speaker.is_restarting());
    assert!(!bench.said(two).contains(&"update".to_owned()));
    bench.ends(two);
    assert_eq!(bench.said(two), ["update", "update", "update"], "the routes and two ends");
    assert_eq!(bench.outputs.iter().filter(|output| **output == Output::Complete).count(), 1);
}

#[test]
fn a_neighbour_that_is_not_there_delays_a_restart_by_a_moment_only() {
    let mut bench = Bench::new(RESTARTING);
    bench.want(wanted(2));
    bench.want(wanted(3));
    let one = bench.come(2, Some(false));
    bench.ends(one);
    bench.pass(Duration::from_millis(700));
    assert!(bench.speaker.is_restarting());
    bench.pass(Duration::from_millis(200));
    assert!(!bench.speaker.is_restarting());
}

#[test]
fn a_neighbour_that_nobody_expects_delays_no_restart_and_is_told_our_routes_when_it_comes() {
    let mut bench = Bench::new(RESTARTING);
    let unexpected = WantedNeighbour { expected: false, ..wanted(3) };
    bench.want(wanted(2));
    bench.want(WantedNeighbour { settings: Settings { passive: true, ..unexpected.settings.clone() }, ..unexpected });
    let one = bench.come(2, Some(false));
    bench.ends(one);
    assert!(!bench.speaker.is_restarting());
    let is_shown = |bench: &Bench| bench.speaker.neighbour(address(3)).expect("it is wanted").is_shown();
    assert!(!is_shown(&bench));
    let two = bench.come(3, Some(false));
    assert!(is_shown(&bench) && bench.said(two).contains(&"update".to_owned()));
}

#[test]
fn a_restart_waits_for_a_neighbour_whose_first_packets_are_lost() {
    let mut bench = Bench::new(Some(Restarting { patience: Restarting::PATIENCE, deferral: Duration::from_secs(60) }));
    bench.want(wanted(2));
    bench.want(wanted(3));
    let one = bench.come(2, Some(false));
    bench.ends(one);
    // The second retransmission of TCP.
    bench.pass(Duration::from_millis(3100));
    assert!(bench.speaker.is_restarting(), "nobody is told yet");
    let two = bench.come(3, Some(false));
    bench.pass(Duration::from_secs(1));
    assert!(!bench.said(one).contains(&"update".to_owned()), "its routes are waited for");
    bench.ends(two);
    assert!(!bench.speaker.is_restarting());
}

#[test]
fn neighbours_that_come_one_after_the_other_are_all_waited_for() {
    let mut bench = Bench::new(RESTARTING);
    (2..=5).for_each(|number| bench.want(wanted(number)));
    for number in 2..=4 {
        let link = bench.come(number, Some(false));
        bench.ends(link);
        bench.pass(Duration::from_millis(700));
        assert!(bench.speaker.is_restarting(), "others come still");
    }
    bench.pass(Duration::from_millis(200));
    assert!(!bench.speaker.is_restarting(), "the last one is away");
}

#[test]
fn a_neighbour_that_comes_and_goes_does_not_prolong_the_wait_for_one_that_is_away() {
    let mut bench = Bench::new(RESTARTING);
    bench.want(wanted(2));
    bench.want(wanted(3));
    for _ in 0..4 {
        let link = bench.come(2, Some(false));
        bench.ends(link);
        bench.pass(Duration::from_millis(190));
        assert!(bench.speaker.is_restarting(), "the other one may still come");
        bench.step(Input::Closed(link));
    }
    let link = bench.come(2, Some(false));
    bench.ends(link);
    bench.pass(Duration::from_millis(50));
    assert!(!bench.speaker.is_restarting(), "it has been away for as long as it is waited for");
}

#[test]
fn who_says_no_end_or_waits_for_ours_is_not_waited_for() {
    let mut bench = Bench::new(RESTARTING);
    bench.want(wanted(2));
    bench.want(wanted(3));
    bench.come(2, None);
    assert!(bench.speaker.is_restarting(), "the other one may still come");
    bench.come(3, Some(true));
    assert!(!bench.speaker.is_restarting());
}

#[test]
fn a_restart_is_not_over_before_the_neighbours_are_known() {
    let mut bench = Bench::new(RESTARTING);
    bench.step(Order::Originate(prefixes(1)[0], Box::new(Attributes::local(address(1)))));
    assert!(bench.speaker.is_restarting());
    bench.pass(Duration::from_secs(1));
    assert!(!bench.speaker.is_restarting(), "there are none");
}

#[test]
fn a_restart_waits_for_neighbours_that_are_still_looked_for_and_then_for_their_sessions() {
    let begin = || {
        let mut bench = Bench::new(RESTARTING);
        bench.want(wanted(2));
        bench.step(Order::ExpectMore(true));
        let one = bench.come(2, Some(false));
        bench.ends(one);
        bench.pass(Duration::from_secs(5));
        assert!(bench.speaker.is_restarting(), "another one is expected");
        (bench, one)
    };
    let (mut bench, one) = begin();
    bench.want(wanted(3));
    bench.step(Order::ExpectMore(false));
    bench.pass(Duration::from_millis(700));
    assert!(bench.speaker.is_restarting(), "it has not had the time to connect");
    let two = bench.come(3, Some(false));
    assert!(!bench.said(one).contains(&"update".to_owned()), "its routes are waited for");
    bench.ends(two);
    assert!(!bench.speaker.is_restarting());
    // One that does not come once it is found, and one that is never found.
    let (mut bench, _) = begin();
    bench.want(wanted(3));
    bench.step(Order::ExpectMore(false));
    bench.pass(Duration::from_millis(900));
    assert!(!bench.speaker.is_restarting());
    let (mut bench, _) = begin();
    bench.step(Order::ExpectMore(false));
    assert!(!bench.speaker.is_restarting(), "nobody is looked for any more");
    let (mut bench, _) = begin();
    bench.pass(Duration::from_millis(6900));
    assert!(bench.speaker.is_restarting());
    bench.pass(Duration::from_millis(200));
    assert!(!bench.speaker.is_restarting(), "twelve seconds are enough");
}

#[test]
fn a_neighbour_that_never_ends_delays_a_restart_within_bounds() {
    let mut bench = Bench::new(RESTARTING);
    bench.want(wanted(2));
    bench.come(2, Some(false));
    bench.pass(Duration::from_secs(59));
    assert!(bench.speaker.is_restarting());
    bench.pass(Duration::from_secs(2));
    assert!(!bench.speaker.is_restarting());
}

/// Our own route to a prefix.
fn own(prefix: IpNet) -> Order {
    Order::Originate(prefix, Box::new(Attributes::local(address(1))))
}

#[test]
fn our_own_routes_are_told_at_once_after_a_restart_of_ours_also_to_who_may_have_kept_them() {
    let mut bench = Bench::new(RESTARTING);
    bench.want(wanted(2));
    bench.want(wanted(3));
    bench.want(wanted(4));
    let [first, second, learned] = prefixes(3)[..] else { panic!("three") };
    bench.step(own(first));
    // Without graceful restart, with it, and one that has restarted itself.
    let (plain, graceful, restarted) = (bench.come(2, None), bench.come(3, Some(false)), bench.come(4, Some(true)));
    for link in [plain, graceful, restarted] {
        assert_eq!(bench.said(link), ["open", "keepalive", "update"], "nobody says that it has lost our routes");
    }
    bench.announce(graceful, 3, &[learned]);
    assert_eq!(bench.said(plain), [""; 0], "others' routes wait for the end of the restart");
    bench.step(own(second));
    assert_eq!(bench.said(graceful), ["update"], "a route that comes later does not wait either");
    bench.step(Order::Retract(first));
    assert_eq!(bench.said(graceful), ["update"], "nor does its end");
    bench.said(plain);
    bench.ends(graceful);
    assert_eq!(bench.said(graceful), ["update", "update"], "two ends");
    assert_eq!(bench.said(plain), ["update", "update", "update"], "the route of the other one and two ends");
}

#[test]
fn who_has_lost_our_routes_without_a_restart_of_its_own_reaches_our_pods_while_another_one_is_awaited() {
    let mut bench = Bench::new(RESTARTING);
    (2..=3).for_each(|number| bench.want(wanted(number)));
    bench.step(own(prefixes(1)[0]));
    // This one never ends, and holds back all that others have said.
    let slow = bench.come(2, Some(false));
    // This one had a session with a process of ours that went before it had said anything, and so has nothing of us.
    let lost = bench.come(3, Some(false));
    bench.ends(lost);
    bench.pass(Duration::from_secs(30));
    assert!(bench.speaker.is_restarting());
    assert!(bench.speaker.told(address(3), prefixes(1)[0]).is_some());
    assert_eq!(bench.said(lost).iter().filter(|said| *said == "update").count(), 1);
    bench.ends(slow);
    assert!(!bench.speaker.is_restarting());
}

#[test]
fn a_route_told_ahead_of_the_others_follows_what_becomes_of_it() {
    let mut bench = Bench::new(RESTARTING);
    bench.want(wanted(2));
    bench.want(wanted(3));
    let prefix = prefixes(1)[0];
    bench.step(own(prefix));
    let (plain, graceful) = (bench.come(2, None), bench.come(3, Some(false)));
    bench.announce(graceful, 3, &[prefix]);
    bench.said(plain);
    bench.step(Order::Retract(prefix));
    assert_eq!(bench.said(plain), ["update"], "the other way");
    bench.receive(graceful, &withdrawal(&[prefix]));
    assert_eq!(bench.said(plain), ["update"], "no way any more");
    bench.ends(graceful);
    assert_eq!(bench.said(plain), ["update", "update"], "two ends");
}

/// Builds an UPDATE that withdraws.
fn withdrawal(prefixes: &[IpNet]) -> Vec<u8> {
    let dialect =
        Dialect { internal: true, four_octets: true, families: ALL, extended_next_hop: false, extended_message: false };
    let mut packing = Packing::new(dialect);
    packing.withdraw(Family::V4, prefixes);
    packing.finish().0
}
