//! Writes that fail, are late, or are refused.

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
