//! Statuses that others write: their addresses stay, and what they undo is written again, less and less often.

use super::*;

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
