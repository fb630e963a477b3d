//! Writes that fail, are late, are refused, or are undone by others.

use super::*;

#[test]
fn a_write_whose_outcome_is_unknown_keeps_its_address_in_use_until_it_cannot_take_effect_any_more() {
    let mut bed = Bed::new(&["203.0.113.0/31"]);
    bed.put("a", service());
    let write = bed.allocator.next_writes(bed.now, 9).pop().expect("a write");
    bed.allocator.finish(&write, Outcome::Unknown, bed.now);
    // It is to have none now, and the write may still bring one.
    bed.change("a", |service| service.families = vec![Family::V6]);
    bed.put("b", service());
    bed.settle();
    assert_eq!(bed.status("b"), "203.0.113.0", "for another version it has no effect");
    let mut bed = Bed::new(&["203.0.113.0/32"]);
    bed.put("a", service());
    let write = bed.allocator.next_writes(bed.now, 9).pop().expect("a write");
    bed.allocator.finish(&write, Outcome::Unknown, bed.now);
    bed.allocator.set_pools(
        Some(pools(
            &["203.0.113.0/32"],
            vec![AddressPool { namespaces: vec!["other".into()], ..pool("x", "203.0.113.0/32") }],
        )),
        bed.now,
    );
    bed.put("other/b", service());
    bed.settle();
    assert_eq!((bed.status("a"), bed.status("other/b")), (String::new(), String::new()));
    bed.pass(super::super::writes::LINGER);
    bed.settle();
    assert_eq!((bed.status("a"), bed.status("other/b")), (String::new(), "203.0.113.0".to_owned()));
}

#[test]
fn a_write_that_took_effect_without_an_answer_is_not_repeated() {
    let mut bed = Bed::new(&["203.0.113.0/29"]);
    bed.put("a", service());
    let write = bed.allocator.next_writes(bed.now, 9).pop().expect("a write");
    bed.apply(&write);
    bed.allocator.finish(&write, Outcome::Unknown, bed.now);
    bed.settle();
    assert_eq!(bed.writes, 1, "it is not tried again at once");
    bed.see("a");
    bed.pass(Duration::from_secs(600));
    bed.settle();
    assert_eq!((bed.writes, bed.reasons()), (1, vec!["LoadBalancerAddressGiven"]));
}

#[test]
fn what_is_refused_is_tried_again_later_and_later_and_its_address_is_given_to_nobody_else() {
    let mut bed = Bed::new(&["203.0.113.0/31"]);
    bed.put("a", service());
    let mut pauses = Vec::new();
    for _ in 0..10 {
        let write = bed.allocator.next_writes(bed.now, 9).pop().expect("a write");
        bed.allocator.finish(&write, Outcome::Refused, bed.now);
        let next = bed.allocator.next_time().expect("a time");
        pauses.push((next - bed.now).as_secs());
        bed.now = next;
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
    bed.put("b", service());
    bed.settle();
    assert_eq!((bed.status("a"), bed.status("b")), ("203.0.113.0".to_owned(), "203.0.113.1".to_owned()));
}

#[test]
fn a_service_that_changed_meanwhile_is_decided_anew_from_the_newest_object() {
    let mut bed = Bed::new(&["203.0.113.0/29", "2001:db8::/64"]);
    bed.put("a", service());
    bed.put_unseen("a", BalancedService { families: vec![Family::V6], ..service() });
    bed.settle();
    assert_eq!((bed.status("a"), bed.writes), ("2001:db8::1".to_owned(), 1));
    bed.put("b", service());
    bed.services.remove(&name("b"));
    bed.settle();
    assert!(bed.allocator.next_time().is_some(), "that it is gone, the watch says");
    bed.delete("b");
    assert_eq!(bed.allocator.next_time(), None, "what is gone is forgotten");
}

#[test]
fn an_older_observation_changes_nothing() {
    let mut bed = Bed::new(&["203.0.113.0/29"]);
    bed.put("a", service());
    let old = bed.services.get(&name("a")).cloned().expect("it exists");
    bed.settle();
    bed.allocator.observe(name("a"), Arc::new(old.clone()), bed.now);
    bed.allocator.gone(&name("a"), &old.version, bed.now);
    bed.allocator.list(Vec::new(), &old.version, bed.now);
    bed.put("b", service());
    bed.settle();
    assert_eq!((bed.status("a"), bed.status("b")), ("203.0.113.1".to_owned(), "203.0.113.2".to_owned()));
    assert_eq!(bed.writes, 2);
}

#[test]
fn where_the_cause_of_a_move_is_gone_before_it_is_written_nothing_is_written() {
    let both = || pools(&["203.0.113.0/29", "198.51.100.0/29"], Vec::new());
    for is_another_tenure in [false, true] {
        let mut bed = Bed::with(both());
        bed.put("a", service());
        bed.settle();
        let before = bed.status("a");
        if is_another_tenure {
            bed.begin(both());
        }
        let other = if before.starts_with("203.") { "198.51.100.0/29" } else { "203.0.113.0/29" };
        bed.allocator.set_pools(Some(pools(&[other], Vec::new())), bed.now);
        assert!(bed.allocator.is_to_be_written(&name("a")), "it is to move");
        bed.allocator.set_pools(Some(both()), bed.now);
        bed.settle();
        assert_eq!((bed.status("a"), bed.writes), (before, 1), "{is_another_tenure}");
    }
}

#[test]
fn what_an_older_list_had_does_not_move_a_service_whose_status_is_right() {
    let address = |text: &str| vec![text.parse().expect("an address")];
    for older in [Vec::new(), address("203.0.113.5")] {
        for is_told_by_the_watch in [true, false] {
            let mut bed = Bed::new(&["203.0.113.0/29"]);
            bed.put("a", BalancedService { status: older.clone(), ..service() });
            // The list of a new tenure is of before that.
            let mut newest = bed.services.get(&name("a")).cloned().expect("it exists");
            newest.status = address("203.0.113.3");
            bed.put_unseen("a", newest);
            if is_told_by_the_watch {
                bed.see("a");
            }
            bed.settle();
            assert_eq!(
                (bed.status("a"), bed.writes),
                ("203.0.113.3".to_owned(), 0),
                "{older:?} {is_told_by_the_watch}"
            );
        }
    }
}

#[test]
fn what_others_undo_is_written_again_later_and_later() {
    let mut bed = Bed::new(&["203.0.113.0/29"]);
    bed.put("a", service());
    bed.settle();
    let mut pauses = Vec::new();
    for _ in 0..4 {
        bed.change("a", |service| service.status.clear());
        bed.settle();
        let at = bed.allocator.next_time().expect("it is tried again");
        pauses.push((at - bed.now).as_secs());
        bed.pass(at - bed.now);
        bed.settle();
        assert_eq!(bed.status("a"), "203.0.113.1");
    }
    assert_eq!(pauses, [1, 2, 4, 8]);
}

#[test]
fn addresses_of_others_stay_in_the_status_of_a_service_without_a_class() {
    let foreign = || vec!["198.51.100.1".parse().expect("an address")];
    let mut bed = Bed::new(&["203.0.113.0/29", "2001:db8::/64"]);
    bed.put("a", BalancedService { status: foreign(), ..service() });
    let both = vec![Family::V4, Family::V6];
    bed.put("b", BalancedService { status: foreign(), families: both, needs_all_families: true, ..service() });
    bed.put("c", BalancedService { status: foreign(), class: Some("kube-router".into()), ..service() });
    let asked: std::net::IpAddr = "203.0.113.6".parse().expect("an address");
    bed.put("d", BalancedService { status: foreign(), ..service() });
    bed.change("d", |service| service.request.addresses.v4 = Some(asked));
    bed.settle();
    assert_eq!(bed.status("a"), "198.51.100.1", "it stands for its family");
    assert_eq!(bed.status("b"), "2001:db8::1 198.51.100.1", "the other family is added");
    assert_eq!(bed.status("c"), "203.0.113.1", "a class of ours is nobody else's");
    assert_eq!(bed.status("d"), "203.0.113.6 198.51.100.1", "what is asked for is given beside it");
    bed.put("e", BalancedService { status: foreign(), families: vec![Family::V4, Family::V6], ..service() });
    bed.settle();
    assert_eq!(bed.status("e"), "2001:db8::2 198.51.100.1");
    assert_eq!((bed.writes, bed.allocator.wanting()), (4, 0));
    bed.change("b", |service| service.is_balancer = false);
    bed.settle();
    assert_eq!(bed.status("b"), "198.51.100.1");
}

#[test]
fn an_address_leaves_a_service_that_becomes_another_allocators_before_its_status_was_cleared() {
    let foreign = |service: &mut BalancedService| (service.is_balancer, service.class) = (true, Some("metallb".into()));
    for is_seen_between in [true, false] {
        let mut bed = Bed::new(&["203.0.113.0/31"]);
        bed.put("a", service());
        bed.settle();
        assert_eq!(bed.status("a"), "203.0.113.0");
        if is_seen_between {
            bed.change("a", |service| service.is_balancer = false);
        }
        bed.change("a", foreign);
        bed.settle();
        assert_eq!(bed.status("a"), "", "nobody would ever take it away");
        // What the other allocator gives afterwards is its own, also if it is the same.
        bed.change("a", |service| service.status = vec!["203.0.113.0".parse().expect("an address")]);
        bed.settle();
        assert_eq!(bed.status("a"), "203.0.113.0");
    }
}

#[test]
fn what_an_earlier_agent_wrote_leaves_a_service_that_went_to_another_allocator_meanwhile_and_what_others_wrote_stays() {
    for (is_balancer, class, others, after) in [
        (true, Some("metallb"), None, ""),
        (true, Some("metallb"), Some("198.51.100.7"), "203.0.113.0 198.51.100.7"),
        (false, None, None, ""),
        // Its class says no longer that it is ours, and not that it is anybody else's.
        (true, None, None, "203.0.113.0"),
    ] {
        let mut bed = Bed::new(&["203.0.113.0/31"]);
        bed.put("a", BalancedService { class: Some("kube-router".into()), ..service() });
        bed.settle();
        assert_eq!(bed.status("a"), "203.0.113.0");
        bed.change("a", |service| (service.is_balancer, service.class) = (is_balancer, class.map(Into::into)));
        let others: Option<std::net::IpAddr> = others.map(|text| text.parse().expect("an address"));
        bed.change("a", |service| service.status.extend(others));
        bed.begin(pools(&["192.0.2.0/31"], Vec::new()));
        if class.is_none() && is_balancer {
            bed.allocator = Allocator::new(false, externals());
            bed.allocator.set_pools(Some(pools(&["192.0.2.0/31"], Vec::new())), bed.now);
            let service = bed.services.iter().map(|(name, service)| (name.clone(), Arc::new(service.clone())));
            bed.allocator.list(service.collect(), &bed.version.to_string(), bed.now);
        }
        bed.settle();
        assert_eq!(bed.status("a"), after);
    }
}

#[test]
fn an_address_of_a_range_that_went_while_no_agent_gave_any_is_replaced_and_one_that_others_gave_stays() {
    let both = || BalancedService { families: vec![Family::V4, Family::V6], ..service() };
    let mut bed = Bed::new(&["203.0.113.0/31", "2001:db8::/64"]);
    bed.put("a", service());
    bed.put("b", BalancedService { status: vec!["198.51.100.7".parse().expect("an address")], ..both() });
    bed.settle();
    assert_eq!((bed.status("a"), bed.status("b")), ("203.0.113.0".to_owned(), "2001:db8::1 198.51.100.7".to_owned()));
    bed.begin(pools(&["203.0.113.8/31", "2001:db8::/64"], Vec::new()));
    bed.settle();
    assert_eq!(bed.status("a"), "203.0.113.8", "no node would serve the former one");
    assert_eq!((bed.status("b"), bed.writes), ("2001:db8::1 198.51.100.7".to_owned(), 3));
}

#[test]
fn what_another_allocator_gives_beside_an_address_that_is_to_leave_stays() {
    let mut bed = Bed::new(&["203.0.113.0/31"]);
    bed.put("a", service());
    bed.settle();
    bed.change("a", |service| service.is_balancer = false);
    let both = ["203.0.113.0", "198.51.100.7"].map(|text| text.parse().expect("an address"));
    bed.change("a", |service| {
        (service.is_balancer, service.class, service.status) = (true, Some("metallb".into()), both.to_vec());
    });
    bed.settle();
    assert_eq!(bed.status("a"), "198.51.100.7");
}

#[test]
fn an_address_of_a_range_that_goes_leaves_the_status_and_one_that_another_allocator_gave_stays() {
    for (others, after) in [(None, "203.0.113.8"), (Some("198.51.100.7"), "198.51.100.7")] {
        let mut bed = Bed::new(&["203.0.113.0/31", "203.0.113.8/31"]);
        bed.put("a", service());
        bed.settle();
        assert_eq!(bed.status("a"), "203.0.113.0");
        let others: Option<std::net::IpAddr> = others.map(|text| text.parse().expect("an address"));
        bed.change("a", |service| service.status.extend(others));
        bed.allocator.set_pools(Some(pools(&["203.0.113.8/31"], Vec::new())), bed.now);
        bed.settle();
        assert_eq!(bed.status("a"), after);
    }
}

#[test]
fn the_outcome_of_a_write_for_a_service_that_was_made_anew_says_nothing_of_the_new_one() {
    for outcome in [Outcome::Refused, Outcome::Unknown] {
        let mut bed = Bed::new(&["203.0.113.0/32"]);
        bed.put("a", service());
        let former = bed.allocator.next_writes(bed.now, 9).pop().expect("a write");
        bed.delete("a");
        bed.put("a", BalancedService { created: 1, ..service() });
        let write = bed.allocator.next_writes(bed.now, 9).pop().expect("a write for the new one");
        bed.allocator.finish(&former, outcome, bed.now);
        assert_eq!(bed.allocator.next_writes(bed.now, 9), [], "one is on its way");
        // It gets nothing any more, while its write may still take effect.
        let elsewhere = AddressPool { namespaces: vec!["other".into()], ..pool("x", "203.0.113.0/32") };
        bed.allocator.set_pools(Some(pools(&["203.0.113.0/32"], vec![elsewhere])), bed.now);
        bed.put("other/b", service());
        assert_eq!(bed.allocator.next_writes(bed.now, 9), [], "the address is in use until that write is over");
        let outcome = bed.apply(&write);
        bed.allocator.finish(&write, outcome, bed.now);
        bed.settle();
        assert_eq!((bed.status("a"), bed.status("other/b")), (String::new(), "203.0.113.0".to_owned()));
    }
}

#[test]
fn an_address_whose_write_had_no_answer_leaves_the_status_when_its_service_goes_to_another_allocator() {
    let mut bed = Bed::new(&["203.0.113.0/29"]);
    bed.put("a", service());
    let write = bed.allocator.next_writes(bed.now, 9).pop().expect("a write");
    bed.apply(&write);
    bed.allocator.finish(&write, Outcome::Unknown, bed.now);
    bed.change("a", |service| service.class = Some("other".into()));
    bed.pass(Duration::from_secs(2));
    bed.settle();
    assert_eq!(bed.status("a"), "");
}

#[test]
fn a_store_that_was_set_back_is_asked_again_only_after_a_pause() {
    let mut bed = Bed::new(&["203.0.113.0/29"]);
    bed.put("a", service());
    for pause in [1, 2, 4] {
        let write = bed.allocator.next_writes(bed.now, 9).pop().expect("a write");
        let older = BalancedService { version: "7".into(), ..service() };
        bed.allocator.finish(&write, Outcome::Newer(Arc::new(older)), bed.now);
        assert_eq!(bed.allocator.next_writes(bed.now, 9), []);
        bed.now += Duration::from_secs(pause);
        assert_eq!(bed.allocator.next_time(), Some(bed.now));
    }
}

#[test]
fn a_write_that_was_not_tried_keeps_no_address_in_use() {
    let mut bed = Bed::new(&["203.0.113.0/32"]);
    bed.put("a", service());
    let write = bed.allocator.next_writes(bed.now, 9).pop().expect("a write");
    let older = BalancedService { version: "7".into(), ..service() };
    bed.allocator.finish(&write, Outcome::Newer(Arc::new(older)), bed.now);
    let elsewhere = AddressPool { namespaces: vec!["other".into()], ..pool("x", "203.0.113.0/32") };
    bed.allocator.set_pools(Some(pools(&["203.0.113.0/32"], vec![elsewhere])), bed.now);
    bed.put("other/b", service());
    bed.settle();
    assert_eq!((bed.status("a"), bed.status("other/b")), (String::new(), "203.0.113.0".to_owned()));
}

#[test]
fn a_namespace_whose_statuses_may_not_be_written_holds_up_no_other() {
    let mut bed = Bed::new(&["203.0.113.0/29"]);
    for name in ["bank/a", "bank/b", "shop/c"] {
        bed.put(name, service());
    }
    let names = |writes: Vec<Write>| writes.iter().map(|write| write.service.to_string()).collect::<Vec<_>>();
    let write = bed.allocator.next_writes(bed.now, 1).pop().expect("a write");
    assert_eq!(write.service.to_string(), "bank/a");
    bed.allocator.finish(&write, Outcome::Forbidden, bed.now);
    assert_eq!(names(bed.allocator.next_writes(bed.now, 9)), ["shop/c"]);
    assert_eq!((bed.allocator.next_time(), bed.allocator.next_slow_time()), (None, Some(bed.now)));
    let write = bed.allocator.next_slow_write(bed.now).expect("bank is tried, too");
    assert_eq!(write.service.to_string(), "bank/b");
    let outcome = bed.apply(&write);
    bed.allocator.finish(&write, outcome, bed.now);
    assert_eq!(bed.allocator.next_slow_time(), None, "there are rights again");
    bed.now = bed.allocator.next_time().expect("what was refused is tried again");
    assert_eq!(names(bed.allocator.next_writes(bed.now, 9)), ["bank/a"]);
    assert!(bed.allocator.is_to_be_written(&name("bank/a")) && !bed.allocator.is_to_be_written(&name("bank/b")));
}

#[test]
fn a_service_that_was_seen_to_be_gone_does_not_come_back_with_a_late_answer_to_its_write() {
    let is_newer: [fn(BalancedService) -> Outcome; 2] =
        [|service| Outcome::Written(Arc::new(service)), |service| Outcome::Newer(Arc::new(service))];
    for outcome in is_newer {
        let mut bed = Bed::new(&["203.0.113.0/32"]);
        bed.put("a", service());
        let write = bed.allocator.next_writes(bed.now, 9).pop().expect("a write");
        bed.apply(&write);
        let written = bed.services.get(&name("a")).cloned().expect("it exists");
        bed.delete("a");
        bed.allocator.finish(&write, outcome(written), bed.now);
        bed.put("b", service());
        bed.settle();
        assert_eq!((bed.status("b").as_str(), bed.allocator.wanting()), ("203.0.113.0", 0));
    }
}

#[test]
fn a_service_whose_write_fails_is_tried_again_soon_after_it_was_mended() {
    let mends: [fn(&mut Bed); 2] = [
        |bed| bed.change("a", |service| service.labels = [("may", "be")].into_iter().collect()),
        |bed| bed.allocator.set_pools(Some(pools(&["203.0.113.8/29"], Vec::new())), bed.now),
    ];
    for mend in mends {
        let mut bed = Bed::new(&["203.0.113.0/29"]);
        bed.put("a", service());
        for _ in 0..8 {
            bed.now = bed.allocator.next_time().expect("a time");
            let write = bed.allocator.next_writes(bed.now, 9).pop().expect("a write");
            bed.allocator.finish(&write, Outcome::Refused, bed.now);
        }
        assert_eq!(bed.allocator.next_time(), Some(bed.now + Duration::from_secs(128)));
        mend(&mut bed);
        let soon = Some(bed.now + Duration::from_secs(256) / 16);
        assert_eq!(bed.allocator.next_time(), soon, "a part of the next pause after the last try");
        mend(&mut bed);
        assert_eq!(bed.allocator.next_time(), soon, "and no sooner where it changes again and again");
        bed.pass(Duration::from_secs(16));
        bed.settle();
        assert_eq!(bed.writes, 1);
    }
}

#[test]
fn a_service_that_changes_all_the_time_and_whose_write_fails_each_time_is_tried_less_and_less_often() {
    let mut bed = Bed::new(&["203.0.113.0/29"]);
    bed.put("a", service());
    let mut tries = 0;
    for second in 0..600 {
        for write in bed.allocator.next_writes(bed.now, 9) {
            bed.allocator.finish(&write, Outcome::Refused, bed.now);
            tries += 1;
        }
        bed.change("a", |service| service.labels = [("second", second.to_string().as_str())].into_iter().collect());
        bed.pass(Duration::from_secs(1));
    }
    assert!((30..=45).contains(&tries), "{tries}");
}

#[test]
fn the_pauses_of_what_others_undid_long_ago_are_over() {
    let mut bed = Bed::new(&["203.0.113.0/29"]);
    bed.put("a", service());
    bed.settle();
    for _ in 0..9 {
        bed.change("a", |service| service.status.clear());
        let at = bed.allocator.next_time().expect("it is tried again");
        bed.pass(at - bed.now);
        bed.settle();
    }
    for expected in [300, 1] {
        bed.change("a", |service| service.status.clear());
        let at = bed.allocator.next_time().expect("it is tried again");
        assert_eq!(at.saturating_duration_since(bed.now), Duration::from_secs(if expected == 300 { 300 } else { 0 }));
        bed.pass(at - bed.now);
        bed.settle();
        bed.pass(Duration::from_secs(3600));
    }
    bed.change("a", |service| service.status.clear());
    bed.settle();
    bed.change("a", |service| service.status.clear());
    assert_eq!(bed.allocator.next_time(), Some(bed.now + Duration::from_secs(1)), "an hour later they begin anew");
}

#[test]
fn a_failure_that_is_over_shortens_no_pause_of_what_others_undo() {
    let mut bed = Bed::new(&["203.0.113.0/29"]);
    bed.put("a", service());
    let write = bed.allocator.next_writes(bed.now, 9).pop().expect("a write");
    bed.allocator.finish(&write, Outcome::Refused, bed.now);
    bed.pass(Duration::from_secs(1));
    bed.settle();
    for _ in 0..5 {
        bed.change("a", |service| service.status.clear());
        let at = bed.allocator.next_time().expect("it is tried again");
        bed.pass(at - bed.now);
        bed.settle();
    }
    bed.change("a", |service| service.status.clear());
    assert_eq!(bed.allocator.next_time(), Some(bed.now + Duration::from_secs(32)));
}

#[test]
fn two_allocators_that_both_give_to_services_without_a_class_do_not_write_over_each_other_for_ever() {
    for (range, family, of_other) in
        [("203.0.113.0/29", Family::V4, "198.51.100.7"), ("2001:db8::/64", Family::V6, "2001:db8:1::7")]
    {
        let of_other: std::net::IpAddr = of_other.parse().expect("an address");
        let mut bed = Bed::new(&[range]);
        bed.put("a", BalancedService { families: vec![family], ..service() });
        bed.settle();
        // The other one writes its own address in place of all that is there, as often as it is not alone.
        for _ in 0..10 {
            if bed.status("a") != of_other.to_string() {
                bed.change("a", |service| service.status = vec![of_other]);
            }
            bed.settle();
            bed.pass(Duration::from_secs(600));
            bed.settle();
        }
        assert_eq!((bed.status("a"), bed.writes), (of_other.to_string(), 1));
        let used: usize = bed.allocator.pool_uses().iter().map(|used| used.used).sum();
        assert_eq!((used, bed.allocator.wanting()), (0, 0), "it stands for its family");
    }
}

#[test]
fn a_service_that_was_made_anew_in_the_same_second_is_another_one() {
    let mut bed = Bed::new(&["203.0.113.0/29"]);
    bed.put("a", BalancedService { uid: "1".into(), ..service() });
    for _ in 0..8 {
        bed.now = bed.allocator.next_time().expect("a time");
        let write = bed.allocator.next_writes(bed.now, 9).pop().expect("a write");
        bed.allocator.finish(&write, Outcome::Refused, bed.now);
    }
    // Its end was not seen.
    bed.put("a", BalancedService { uid: "2".into(), ..service() });
    assert_eq!(bed.allocator.next_time(), Some(bed.now), "what failed was the former one's");
    bed.settle();
    assert_eq!((bed.status("a").as_str(), bed.writes), ("203.0.113.1", 1));
}

#[test]
fn an_address_that_is_given_is_served_by_nodes_whatever_mode_others_have_written_and_theirs_stays() {
    let of_other: std::net::IpAddr = "198.51.100.7".parse().expect("an address");
    let mut bed = Bed::new(&["203.0.113.0/29", "2001:db8::/64"]);
    bed.put("a", BalancedService { families: vec![Family::V4, Family::V6], ..service() });
    bed.put("b", BalancedService { status: vec![of_other], not_served: vec![of_other], ..service() });
    bed.settle();
    assert_eq!((bed.writes, bed.status("b").as_str()), (1, "198.51.100.7"));
    bed.change("a", |service| service.not_served.clone_from(&service.status));
    bed.settle();
    bed.pass(Duration::from_secs(1));
    bed.settle();
    let service = bed.services.get(&name("a")).expect("it exists");
    assert_eq!((service.status.len(), service.not_served.as_slice(), bed.writes), (2, [].as_slice(), 2));
    bed.pass(Duration::from_secs(600));
    bed.settle();
    assert_eq!(bed.writes, 2);
}

#[test]
fn a_service_that_loses_an_address_is_told_why() {
    let both = || BalancedService { families: vec![Family::V4, Family::V6], ..service() };
    let of = |text: &str| text.parse().expect("an address");
    type Change = fn(&mut Bed);
    let loses: [(Change, &str); 5] = [
        (
            |bed| bed.change("a", |service| service.families = vec![Family::V6]),
            "ipFamilies of the Service has not its family",
        ),
        (
            |bed| bed.change("a", |service| service.request.addresses.v4 = "203.0.113.5".parse().ok()),
            "the Service asks for another one",
        ),
        (
            |bed| {
                let v6_alone = pools(&["203.0.113.8/29", "2001:db8::/64"], Vec::new());
                bed.allocator.set_pools(Some(v6_alone), bed.now);
            },
            "it is in no pool for this Service",
        ),
        (
            |bed| {
                bed.put(
                    "b",
                    BalancedService { created: -1, status: vec!["203.0.113.1".parse().expect("one")], ..service() },
                )
            },
            "another Service has it, which comes first and does not share it",
        ),
        (
            |bed| {
                let v4_alone = pools(&["203.0.113.0/29"], Vec::new());
                bed.allocator.set_pools(Some(v4_alone), bed.now);
            },
            "the Service requires both families, and there is no address of the other one",
        ),
    ];
    for (lose, why) in loses {
        let mut bed = Bed::new(&["203.0.113.0/29", "2001:db8::/64"]);
        bed.put("a", BalancedService { needs_all_families: why.contains("requires"), ..both() });
        bed.settle();
        assert_eq!(bed.status("a"), "203.0.113.1 2001:db8::1");
        bed.notices.clear();
        lose(&mut bed);
        bed.settle();
        let first: std::net::IpAddr = of("203.0.113.1");
        let told: Vec<String> =
            bed.notices.iter().filter(|it| it.service == name("a")).map(|it| it.matter.to_string()).collect();
        let wanted = format!("{first} is taken away, because {why}");
        assert_eq!(told.iter().filter(|text| **text == wanted).count(), 1, "{wanted}: {told:?}");
    }
}
