//! Very many Services that want the same.

use super::*;

fn asking(port: u16, key: Option<&str>) -> BalancedService {
    let mut service = service();
    service.request.addresses.v4 = "203.0.113.1".parse().ok();
    BalancedService { ports: vec![(Protocol::Tcp, port)], sharing_key: key.map(Into::into), ..service }
}

#[test]
fn very_many_who_ask_for_an_address_that_is_not_to_be_had_are_not_looked_at_again_with_each_change_of_its_owners() {
    for (owners, key) in [(1, None), (64, Some("dns"))] {
        let mut bed = Bed::new(&["203.0.113.0/29"]);
        for number in 0..owners + 300 {
            bed.put(&format!("s{number:04}"), asking(number + 1, key));
        }
        bed.settle();
        assert_eq!(bed.status(&format!("s{:04}", owners - 1)), "203.0.113.1");
        assert_eq!(bed.status(&format!("s{owners:04}")), "", "it is taken");
        let before = bed.allocator.decisions.get();
        for number in 0..20 {
            bed.change("s0000", |service| service.labels = [("n", format!("{number}").as_str())].into_iter().collect());
        }
        let decisions = bed.allocator.decisions.get() - before;
        assert!(decisions <= 20 * 2 * usize::from(owners), "{owners} have it: {decisions} decisions for 20 changes");
        // The first of those that wait has it when there is room.
        bed.delete("s0000");
        bed.settle();
        let next = format!("s{owners:04}");
        assert_eq!((bed.status(&next), bed.status(&format!("s{:04}", owners + 1))), ("203.0.113.1".into(), "".into()));
        let last = bed.notices.last().expect("there is something to tell").matter.to_string();
        assert!(last.contains("203.0.113.1 of pool default"), "{last}");
    }
}

#[test]
fn very_many_who_ask_for_an_address_that_others_share_with_each_other_are_not_decided_about_with_each_change_of_these()
{
    let mut bed = Bed::new(&["203.0.113.0/29"]);
    bed.put("s0000", asking(1, Some("dns")));
    for number in 1..300 {
        bed.put(&format!("s{number:04}"), asking(number + 1, Some("web")));
    }
    bed.settle();
    let before = bed.allocator.decisions.get();
    for number in 0..20 {
        bed.change("s0000", |service| service.labels = [("n", format!("{number}").as_str())].into_iter().collect());
    }
    let decisions = bed.allocator.decisions.get() - before;
    assert!(decisions <= 40, "{decisions} decisions for 20 changes");
    bed.change("s0000", |service| service.sharing_key = Some("web".into()));
    bed.settle();
    assert_eq!(bed.status("s0001"), "203.0.113.1", "the owner has their key now");
}

#[test]
fn who_asks_for_an_address_that_as_many_share_as_may_is_told_so() {
    let mut bed = Bed::new(&["203.0.113.0/29"]);
    for number in 0..65 {
        bed.put(&format!("s{number:04}"), asking(number + 1, Some("dns")));
    }
    bed.settle();
    let problems: Vec<String> =
        bed.notices.iter().filter(|it| it.matter.is_warning()).map(|it| it.matter.to_string()).collect();
    assert_eq!(problems, ["203.0.113.1 is asked for and shared by 64 Services already, which is the most"]);
}

#[test]
fn an_annotation_that_is_misspelt_is_told_once_and_costs_no_address() {
    let mut bed = Bed::new(&["203.0.113.0/29"]);
    let misspelt = vec!["metallb.io/loadBalancerIP: may be meant".to_owned()];
    bed.put("a", BalancedService { misspelt: misspelt.clone(), ..service() });
    bed.put("other", BalancedService { misspelt, class: Some("other".into()), ..service() });
    bed.settle();
    assert_eq!((bed.status("a"), bed.allocator.wanting()), ("203.0.113.1".to_owned(), 0));
    assert_eq!(
        bed.reasons(),
        ["UnknownAnnotation", "LoadBalancerAddressGiven"],
        "others' Services are no concern of ours"
    );
    bed.change("a", |service| service.labels = [("n", "2")].into_iter().collect());
    bed.settle();
    assert!(bed.reasons().is_empty());
    bed.change("a", |service| service.misspelt = vec!["another".to_owned()]);
    bed.settle();
    assert_eq!(bed.reasons(), ["UnknownAnnotation"]);
}

#[test]
fn a_change_of_a_service_with_the_external_ips_of_many_others_concerns_none_of_them() {
    for (prefix, asked) in [("203.0.113.", "203.0.113.3"), ("2001:db8::", "2001:db8::3")] {
        let asked: std::net::IpAddr = asked.parse().expect("an address");
        let external_ips: Vec<_> = (1..5).map(|host| format!("{prefix}{host}").parse().expect("an address")).collect();
        let ranges = ServiceRanges {
            external_ips: vec!["203.0.113.0/29".parse().expect("a prefix"), "2001:db8::/120".parse().expect("one")],
            ..ranges(&[])
        };
        let mut bed = Bed::new(&[]);
        bed.allocator = Allocator::new(true, ranges);
        bed.allocator.set_pools(Some(pools(&["203.0.113.0/29", "2001:db8::/120"], Vec::new())), bed.now);
        bed.allocator.list(Vec::new(), "1", bed.now);
        let mut asking =
            BalancedService { families: vec![asked.into()], external_ips: external_ips.clone(), ..service() };
        *asking.request.addresses.of_mut(asked.into()) = Some(asked);
        for number in 0..300 {
            bed.put(&format!("s{number:04}"), asking.clone());
        }
        bed.settle();
        let before = bed.allocator.decisions.get();
        for number in 0..10 {
            bed.change("s0000", |service| service.labels = [("n", format!("{number}").as_str())].into_iter().collect());
            // One of them goes, and comes again.
            bed.change("s0000", |service| service.external_ips.truncate(number % 4));
            bed.change("s0000", |service| service.external_ips.clone_from(&external_ips));
        }
        let decisions = bed.allocator.decisions.get() - before;
        assert!(decisions <= 60, "{decisions} decisions for 30 changes");
        // Whoever waits has it when the others are gone.
        (1..300).for_each(|number| bed.delete(&format!("s{number:04}")));
        bed.settle();
        assert_eq!(bed.status("s0000"), asked.to_string());
    }
}
