//! Pauses between the tries of a write that fails.

use super::*;

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
