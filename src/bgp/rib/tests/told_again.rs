//! Routes that neighbours are told late or again: after a deferral, on request (RFC 2918, RFC 7313), after a restart.

use super::*;

#[test]
fn who_comes_late_is_told_all_and_that_it_was_all() {
    let bounds = Bounds { portion: 7, ..Bounds::default() };
    let mut bench = Bench::with(bounds, 1, PerFamily::default());
    let one = bench.join(11, Kind::External);
    bench.announce(one, route(&[64611], 11), &prefixes(100));
    let six = Attributes { next_hop: "2001:db8:2::b".parse().unwrap(), ..route(&[64611], 11) };
    bench.announce(one, six, &[prefix("fd00:10:244::/64")]);
    let late = bench.join(12, Kind::External);
    assert_eq!(bench.told(late).routes.len(), 101);
    assert_eq!(bench.told(late).marks, ["end of IPv4", "end of IPv6"]);
    assert_eq!(bench.told(one).marks, ["end of IPv4", "end of IPv6"], "also with nothing to say");
    bench.check();
}

#[test]
fn what_is_held_is_told_when_it_is_released_family_by_family() {
    let mut bench = Bench::with(Bounds::default(), 1, PerFamily { v4: true, v6: true });
    let (one, two) = (bench.join(11, Kind::External), bench.join(12, Kind::External));
    bench.announce(one, route(&[64611], 11), &net());
    assert_eq!((bench.told(two).messages, bench.told(one).messages), (0, 0));
    bench.rib.release(PerFamily { v4: true, v6: false });
    bench.rib.refresh(two, Refresh { family: Family::V6, kind: RefreshKind::Request }, false);
    bench.flush();
    assert!(bench.has(two, NET).is_some());
    assert_eq!(bench.told(two).marks, ["end of IPv4"]);
    bench.rib.release(PerFamily { v4: false, v6: true });
    bench.rib.refresh(two, Refresh { family: Family::V6, kind: RefreshKind::Request }, false);
    bench.flush();
    assert_eq!(bench.told(two).marks, ["end of IPv4", "end of IPv6"]);
}

#[test]
fn who_asks_is_told_again_with_marks_if_it_knows_them() {
    let mut bench = Bench::new();
    let (one, two) = (bench.join(11, Kind::External), bench.join(12, Kind::External));
    bench.announce(one, route(&[64611], 11), &net());
    let request = Refresh { family: Family::V4, kind: RefreshKind::Request };
    for (marks, expected) in [(false, vec!["end of IPv4"]), (true, vec!["Begin IPv4", "End IPv4"])] {
        let told = bench.told.get_mut(&two).unwrap();
        told.marks.clear();
        told.routes.clear();
        bench.rib.refresh(two, request, marks);
        bench.flush();
        assert_eq!(bench.told(two).marks, expected);
        bench.check();
    }
}

#[test]
fn who_asks_again_during_the_first_answer_gets_its_end_all_the_same() {
    let mut bench = Bench::with(Bounds { room: 300, portion: 3, ..Bounds::default() }, 1, PerFamily::default());
    let one = bench.join(11, Kind::External);
    bench.announce(one, route(&[64611], 11), &prefixes(40));
    let two = bench.join_deaf(12, Kind::External);
    let request = Refresh { family: Family::V4, kind: RefreshKind::Request };
    for _ in 0..3 {
        bench.rib.refresh(two, request, true);
        bench.flush();
        bench.rib.taken(two, 300);
        bench.flush();
    }
    bench.listen(two);
    assert_eq!(bench.told(two).marks, ["end of IPv4", "end of IPv6"]);
    assert_eq!(bench.told(two).routes.len(), 40);
    bench.check();
}

#[test]
fn what_is_told_again_by_our_own_wish_in_between_ends_with_the_mark_that_it_began_with() {
    let mut bench = Bench::with(Bounds { room: 300, portion: 3, ..Bounds::default() }, 1, PerFamily::default());
    let (one, two) = (bench.join(11, Kind::External), bench.join(12, Kind::External));
    bench.announce(one, route(&[64611], 11), &prefixes(40));
    let told = bench.told.get_mut(&two).unwrap();
    (told.deaf, told.marks) = (true, vec![]);
    bench.rib.refresh(two, Refresh { family: Family::V4, kind: RefreshKind::Request }, true);
    bench.flush();
    bench.rib.resend(two, Family::V4);
    bench.listen(two);
    assert_eq!(bench.told(two).marks, ["Begin IPv4", "End IPv4"]);
}

#[test]
fn who_asks_without_end_and_reads_nothing_is_owed_no_more_for_that() {
    let mut bench = Bench::with(Bounds { room: 300, portion: 3, ..Bounds::default() }, 1, PerFamily::default());
    let (one, two) = (bench.join(11, Kind::External), bench.join(12, Kind::External));
    bench.announce(one, route(&[64611], 11), &prefixes(40));
    bench.told.get_mut(&two).unwrap().deaf = true;
    for _ in 0..1000 {
        bench.rib.refresh(two, Refresh { family: Family::V4, kind: RefreshKind::Request }, true);
        bench.flush();
    }
    assert!(bench.rib.on_the_way(two) < 1000, "{}", bench.rib.on_the_way(two));
    bench.listen(two);
    bench.check();
}

#[test]
fn who_asks_while_we_restart_is_told_nothing_before_its_time() {
    let mut bench = Bench::with(Bounds::default(), 1, PerFamily { v4: true, v6: true });
    let (one, two) = (bench.join(11, Kind::External), bench.join(12, Kind::External));
    bench.announce(one, route(&[64611], 11), &net());
    bench.rib.refresh(two, Refresh { family: Family::V4, kind: RefreshKind::Request }, true);
    bench.flush();
    bench.announce(one, route(&[64612], 11), &prefixes(3));
    bench.withdraw(one, &net());
    assert_eq!(bench.told(two).messages, 0);
    bench.rib.release(PerFamily { v4: true, v6: true });
    bench.flush();
    assert_eq!(bench.told(two).marks, ["end of IPv4", "end of IPv6"]);
    bench.check();
}

#[test]
fn another_policy_is_no_sign_of_life_of_a_neighbour_that_has_gone() {
    let v4 = PerFamily { v4: true, v6: false };
    for everywhere in [false, true] {
        let mut bench = Bench::new();
        let one = bench.join(11, Kind::External);
        bench.announce(one, route(&[64611], 11), &prefixes(3));
        bench.rib.leave(one, v4);
        bench.told.remove(&one);
        bench.flush();
        assert_eq!(bench.routes.len(), 3, "they are kept");
        let mut import = Policy::clone(&without("10.0.1.0/24"));
        import.statements.extend(everywhere.then(Statement::default));
        let import = Arc::new(import);
        bench.rib.set_policies(Policies { import, ..policies() });
        bench.flush();
        bench.rib.drop_stale(one, v4);
        bench.flush();
        assert_eq!(bench.routes.len(), 0);
    }
}

#[test]
fn what_does_not_come_again_between_the_marks_is_gone() {
    let mut bench = Bench::new();
    let one = bench.join(11, Kind::External);
    bench.announce(one, route(&[64611], 11), &prefixes(3));
    let mark = |kind| Refresh { family: Family::V4, kind };
    bench.rib.refresh(one, mark(RefreshKind::End), true);
    bench.flush();
    assert_eq!(bench.routes.len(), 3, "an end without a beginning");
    bench.rib.refresh(one, mark(RefreshKind::Begin), true);
    bench.announce(one, route(&[64611], 11), &prefixes(2));
    assert_eq!(bench.routes.len(), 3);
    bench.rib.refresh(one, mark(RefreshKind::End), true);
    bench.flush();
    assert_eq!(bench.routes.len(), 2);
}

#[test]
fn a_family_that_is_given_up_is_ignored_and_the_other_one_stays() {
    let mut bench = Bench::new();
    let one = bench.join(11, Kind::External);
    let six = [prefix("fd00:10:244::/64")];
    let route_v6 = Attributes { next_hop: "2001:db8:2::b".parse().unwrap(), ..route(&[64611], 11) };
    bench.announce(one, route(&[64611], 11), &net());
    bench.announce(one, route_v6.clone(), &six);
    assert_eq!(bench.routes.len(), 2);
    let fault = "for a test";
    let remark = message::Remark { attribute: 14, fault, treatment: message::Treatment::DisableFamily(Family::V6) };
    bench.rib.receive(one, Update { remarks: vec![remark], ..Update::default() });
    bench.announce(one, route_v6, &six);
    assert_eq!(bench.routes.keys().copied().collect::<Vec<_>>(), net());
}

#[test]
fn routes_that_are_kept_over_a_restart_stay_until_they_come_again_or_are_dropped() {
    let mut bench = Bench::new();
    let (one, two) = (bench.join(11, Kind::External), bench.join(12, Kind::External));
    bench.announce(one, route(&[64611], 11), &prefixes(3));
    bench.told.remove(&one);
    bench.rib.leave(one, PerFamily { v4: true, v6: false });
    bench.flush();
    assert_eq!((bench.told(two).routes.len(), bench.told(two).messages), (3, 3), "nobody is told");
    bench.join(11, Kind::External);
    bench.announce(one, route(&[64611], 11), &prefixes(1));
    bench.rib.drop_stale(one, PerFamily { v4: true, v6: true });
    bench.flush();
    assert_eq!(bench.routes.keys().copied().collect::<Vec<_>>(), prefixes(1));
    bench.check();
    bench.told.remove(&one);
    bench.rib.leave(one, PerFamily::default());
    bench.flush();
    assert_eq!((bench.routes.len(), bench.told(two).routes.len()), (0, 0));
}
