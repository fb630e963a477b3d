//! Services that are observed late, or change before they are written.

use super::*;

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
