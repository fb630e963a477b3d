//! Addresses that leave a status: with a range, or with a Service that another allocator has from now on.

use super::*;

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
