//! Which Service is given which address.

use super::*;

fn asking(address: &str) -> BalancedService {
    let mut service = service();
    let address: std::net::IpAddr = address.parse().expect("an address");
    *service.request.addresses.of_mut(address.into()) = Some(address);
    service
}

fn dual(needs_all_families: bool) -> BalancedService {
    BalancedService { families: vec![Family::V6, Family::V4], needs_all_families, ..service() }
}

fn sharing(key: &str, port: u16) -> BalancedService {
    BalancedService { sharing_key: Some(key.into()), ports: vec![(Protocol::Tcp, port)], ..service() }
}

#[test]
fn services_are_given_the_first_free_addresses_and_events_say_so() {
    let mut bed = Bed::new(&["203.0.113.0/29"]);
    for text in ["a", "b", "other/c"] {
        bed.put(text, service());
    }
    bed.put("d", BalancedService { is_balancer: false, ..service() });
    bed.settle();
    let statuses = ["a", "b", "other/c", "d"].map(|text| bed.status(text));
    assert_eq!(statuses, ["203.0.113.1", "203.0.113.2", "203.0.113.3", ""]);
    assert_eq!((bed.writes, bed.reasons()), (3, vec!["LoadBalancerAddressGiven"; 3]));
}

#[test]
fn who_waits_for_a_free_address_gets_it_by_age() {
    let mut bed = Bed::new(&["203.0.113.0/31"]);
    for (text, created) in [("a", 1), ("b", 2), ("c", 4), ("d", 3)] {
        bed.put(text, BalancedService { created, ..service() });
    }
    bed.settle();
    assert_eq!(
        bed.reasons(),
        ["AddressPoolExhausted", "AddressPoolExhausted", "LoadBalancerAddressGiven", "LoadBalancerAddressGiven"]
    );
    assert_eq!(bed.allocator.wanting(), 2);
    bed.delete("a");
    bed.settle();
    assert_eq!(["b", "c", "d"].map(|text| bed.status(text)), ["203.0.113.1", "", "203.0.113.0"]);
    // The API of earlier versions leaves the status of a Service that is no load balancer any more.
    bed.change("b", |service| service.is_balancer = false);
    assert_eq!(bed.status("c"), "");
    bed.settle();
    assert_eq!(["b", "c", "d"].map(|text| bed.status(text)), ["", "203.0.113.1", "203.0.113.0"]);
    assert_eq!(bed.allocator.wanting(), 0);
}

#[test]
fn who_prefers_two_families_takes_one_and_who_requires_them_takes_both_or_none() {
    let mut bed = Bed::new(&["203.0.113.0/30", "2001:db8::/127"]);
    bed.put("a", dual(true));
    bed.put("b", dual(false));
    bed.put("c", dual(true));
    bed.put("d", dual(false));
    bed.settle();
    let statuses = ["a", "b", "c", "d"].map(|text| bed.status(text));
    assert_eq!(statuses, ["2001:db8:: 203.0.113.1", "2001:db8::1 203.0.113.2", "", ""]);
    bed.delete("b");
    bed.settle();
    assert_eq!((bed.status("c"), bed.status("d")), ("2001:db8::1 203.0.113.2".to_owned(), String::new()));
    let mut bed = Bed::new(&["203.0.113.0/30"]);
    bed.put("a", dual(true));
    bed.put("b", dual(false));
    bed.settle();
    assert_eq!((bed.status("a"), bed.status("b")), (String::new(), "203.0.113.1".to_owned()));
    assert_eq!(bed.reasons(), ["NoAddressPool", "LoadBalancerAddressGiven"], "who prefers is content");
}

#[test]
fn a_service_with_one_family_gets_the_second_when_it_asks_for_it() {
    let mut bed = Bed::new(&["203.0.113.0/30", "2001:db8::/64"]);
    bed.put("a", service());
    bed.settle();
    bed.change("a", |service| (service.families, service.needs_all_families) = (vec![Family::V4, Family::V6], true));
    bed.settle();
    assert_eq!(bed.status("a"), "203.0.113.1 2001:db8::1");
    bed.change("a", |service| (service.families, service.needs_all_families) = (vec![Family::V6], false));
    bed.settle();
    assert_eq!((bed.status("a"), bed.writes), ("2001:db8::1".to_owned(), 3));
}

#[test]
fn an_address_that_is_asked_for_is_given_or_the_reason_is_told() {
    let mut bed = Bed::new(&["203.0.113.0/28"]);
    for (text, address, reason) in [
        ("a", "203.0.113.5", "LoadBalancerAddressGiven"),
        ("b", "203.0.113.5", "RequestedAddressTaken"),
        ("c", "198.51.100.1", "RequestedAddressNotInPool"),
        ("d", "203.0.113.0", "RequestedAddressNotInPool"),
        ("e", "203.0.113.15", "RequestedAddressNotInPool"),
    ] {
        bed.put(text, asking(address));
        bed.settle();
        assert_eq!(bed.reasons(), [reason], "{text}");
    }
    assert_eq!(["b", "c", "d", "e"].map(|text| bed.status(text)), ["", "", "", ""]);
    bed.change("a", |service| service.request = asking("203.0.113.6").request);
    bed.settle();
    assert_eq!((bed.status("a"), bed.status("b")), ("203.0.113.6".to_owned(), "203.0.113.5".to_owned()));
    bed.change("a", |service| service.request.mistake = Some("it makes no sense".to_owned()));
    bed.put(
        "f",
        BalancedService { request: AddressRequest { mistake: Some("no".into()), ..Default::default() }, ..service() },
    );
    bed.settle();
    assert_eq!(
        (bed.status("a"), bed.status("f")),
        ("203.0.113.6".to_owned(), String::new()),
        "a mistake moves nothing"
    );
}

#[test]
fn an_address_of_external_ips_is_not_given_and_takes_nothing_away() {
    let mut bed = Bed::new(&["203.0.113.0/29"]);
    let external = |text: &str| vec![text.parse().expect("an address")];
    bed.put("x", BalancedService { is_balancer: false, external_ips: external("203.0.113.1"), ..service() });
    bed.put("a", service());
    bed.settle();
    bed.put("y", BalancedService { is_balancer: false, external_ips: external("203.0.113.2"), ..service() });
    bed.put("b", asking("203.0.113.1"));
    bed.settle();
    assert_eq!((bed.status("a"), bed.status("b"), bed.writes), ("203.0.113.2".to_owned(), String::new(), 1));
    bed.delete("x");
    bed.settle();
    assert_eq!(bed.status("b"), "203.0.113.1");
}

#[test]
fn services_of_one_namespace_with_the_same_key_share_an_address_on_different_ports() {
    let mut bed = Bed::new(&["203.0.113.0/28"]);
    bed.put("a", sharing("web", 80));
    bed.put("b", sharing("web", 443));
    bed.put("c", sharing("web", 80));
    bed.put("d", sharing("other", 81));
    bed.put("elsewhere/e", sharing("web", 81));
    bed.put("f", service());
    bed.settle();
    let statuses = ["a", "b", "c", "d", "elsewhere/e", "f"].map(|text| bed.status(text));
    let [first, second, third, fourth, fifth] = [1, 2, 3, 4, 5].map(|host| format!("203.0.113.{host}"));
    assert_eq!(statuses, [&first, &first, &second, &third, &fourth, &fifth].map(Clone::clone));
    // The younger one of two that cannot share any longer moves, and nobody else.
    bed.change("a", |service| service.created = -1);
    bed.settle();
    let before = bed.writes;
    bed.change("b", |service| service.ports = vec![(Protocol::Tcp, 80)]);
    bed.settle();
    assert_eq!(bed.status("a"), first);
    assert_ne!(bed.status("b"), first);
    assert_eq!(bed.writes, before + 1);
    bed.put(
        "g",
        BalancedService { sharing_key: Some("web".into()), ports: vec![(Protocol::Udp, 80)], ..asking("203.0.113.1") },
    );
    bed.settle();
    assert_eq!(bed.status("g"), first, "by request too");
    bed.delete("a");
    bed.put("h", asking("203.0.113.1"));
    bed.settle();
    assert_eq!(bed.status("h"), "", "one of two is still there");
    bed.delete("g");
    bed.settle();
    assert_eq!(bed.status("h"), first);
}

#[test]
fn no_more_than_64_services_share_an_address() {
    let mut bed = Bed::new(&["203.0.113.0/28"]);
    for number in 0..65_u16 {
        let service = BalancedService { created: i64::from(number), ..sharing("web", 1000 + number) };
        bed.put(&format!("service-{number:02}"), service);
    }
    bed.settle();
    let statuses: Vec<String> = (0..65).map(|number| bed.status(&format!("service-{number:02}"))).collect();
    let on_first = statuses.iter().filter(|status| **status == "203.0.113.1").count();
    assert_eq!((on_first, statuses.iter().filter(|status| **status == "203.0.113.2").count()), (64, 1), "{statuses:?}");
}

#[test]
fn classes_of_others_are_left_alone_and_what_they_have_is_not_given() {
    let mut bed = Bed::new(&["203.0.113.0/29"]);
    let foreign = BalancedService { class: Some("metallb".into()), ..service() };
    bed.put("a", BalancedService { status: vec!["203.0.113.1".parse().expect("an address")], ..foreign.clone() });
    bed.put("b", foreign);
    for (text, class) in
        [("c", Some("kube-router")), ("d", Some("default")), ("e", None), ("f", Some("kube-router/own"))]
    {
        bed.put(text, BalancedService { class: class.map(Into::into), ..service() });
    }
    bed.settle();
    let statuses = ["a", "b", "c", "d", "e", "f"].map(|text| bed.status(text));
    assert_eq!(statuses, ["203.0.113.1", "", "203.0.113.2", "203.0.113.3", "203.0.113.4", ""]);
    assert_eq!(bed.writes, 3);
    bed.allocator = Allocator::new(false, externals());
    bed.allocator.set_pools(Some(pools(&["203.0.113.0/29"], Vec::new())), bed.now);
    bed.allocator.list(Vec::new(), "1", bed.now);
    bed.put("g", service());
    bed.put("h", BalancedService { class: Some("kube-router".into()), ..service() });
    bed.settle();
    assert_eq!((bed.status("g"), bed.status("h")), (String::new(), "203.0.113.1".to_owned()), "without the flag");
}

#[test]
fn pools_are_for_the_services_that_they_select() {
    let labelled = |value: &str| BalancedService { labels: [("tier", value)].into_iter().collect(), ..service() };
    let selector: Selector = [crate::model::Requirement {
        key: "tier".into(),
        operator: crate::model::Operator::In(Box::new(["front".into()])),
    }]
    .into_iter()
    .collect();
    let named = vec![
        AddressPool { namespaces: vec!["bank".into()], ..pool("bank", "203.0.113.8/29") },
        AddressPool { selector, ..pool("front", "203.0.113.16/29") },
        AddressPool { class: Some("kube-router/own".into()), ..pool("own", "203.0.113.24/29") },
        AddressPool { is_automatic: false, ..pool("reserved", "203.0.113.32/29") },
    ];
    let mut bed = Bed::with(pools(&["203.0.113.0/24"], named));
    bed.put("bank/a", service());
    bed.put("b", labelled("front"));
    bed.put("c", labelled("back"));
    bed.put("d", BalancedService { class: Some("kube-router/own".into()), ..service() });
    bed.put("e", asking("203.0.113.34"));
    bed.put("f", asking("203.0.113.9"));
    let from = |name: &str| AddressRequest { pool: Some(name.into()), ..AddressRequest::default() };
    bed.put("g", BalancedService { request: from("reserved"), ..service() });
    bed.put("h", BalancedService { request: from("bank"), ..service() });
    bed.put("i", BalancedService { request: from("misspelt"), ..service() });
    bed.settle();
    let all = ["bank/a", "b", "c", "d", "e", "f", "g", "h", "i"].map(|text| bed.status(text));
    let wanted =
        ["203.0.113.9", "203.0.113.17", "203.0.113.1", "203.0.113.25", "203.0.113.34", "", "203.0.113.33", "", ""];
    assert_eq!(all, wanted, "nobody takes of a pool that is for others, not by asking either");
    bed.notices.retain(|notice| matches!(notice.matter, Matter::Wanting(_)));
    let reasons: Vec<String> =
        bed.notices.iter().map(|notice| format!("{} {}", notice.service.name, notice.matter)).collect();
    assert_eq!(
        reasons,
        [
            "f 203.0.113.9 is asked for and in no pool for this Service",
            "h no pool for this Service has IPv4 addresses",
            "i pool misspelt is asked for and does not exist",
        ]
    );
}

#[test]
fn a_pool_that_goes_moves_its_services_and_nobody_else() {
    let named = vec![pool("gold", "203.0.113.8-203.0.113.9")];
    let mut bed = Bed::with(pools(&["203.0.113.0/24"], named));
    for text in ["a", "b", "c"] {
        bed.put(text, BalancedService { class: Some("kube-router".into()), ..service() });
    }
    bed.settle();
    assert_eq!(["a", "b", "c"].map(|text| bed.status(text)), ["203.0.113.8", "203.0.113.9", "203.0.113.1"]);
    // Within the range of the flag they still fit.
    bed.allocator.set_pools(Some(pools(&["203.0.113.0/24"], Vec::new())), bed.now);
    bed.settle();
    assert_eq!((bed.writes, bed.status("a")), (3, "203.0.113.8".to_owned()));
    bed.allocator.set_pools(Some(pools(&["203.0.113.0/29"], Vec::new())), bed.now);
    bed.settle();
    assert_eq!(["a", "b", "c"].map(|text| bed.status(text)), ["203.0.113.2", "203.0.113.3", "203.0.113.1"]);
    assert_eq!(bed.writes, 5);
    bed.allocator.set_pools(None, bed.now);
    bed.put("d", service());
    bed.delete("a");
    bed.settle();
    assert_eq!((bed.writes, bed.status("d")), (5, String::new()), "nothing is decided while a pool is not known");
}

#[test]
fn a_misspelt_pool_takes_nothing_away() {
    let mut bed = Bed::new(&["203.0.113.0/29"]);
    bed.put("a", service());
    bed.settle();
    bed.reasons();
    bed.change("a", |service| service.request.pool = Some("misspelt".into()));
    bed.settle();
    assert_eq!((bed.status("a"), bed.writes), ("203.0.113.1".to_owned(), 1));
    assert_eq!(bed.reasons(), ["RequestedAddressNotInPool"]);
}

#[test]
fn external_ips_that_nodes_do_not_serve_take_no_address_out_of_a_pool() {
    let mut bed = Bed::new(&["203.0.113.16/29"]);
    let external_ips = (16..24).map(|host| format!("203.0.113.{host}").parse().expect("an address")).collect();
    bed.put("tenant/x", BalancedService { is_balancer: false, external_ips, ..service() });
    bed.put("a", service());
    bed.put("b", asking("203.0.113.20"));
    bed.settle();
    assert_eq!((bed.status("a"), bed.status("b")), ("203.0.113.17".to_owned(), "203.0.113.20".to_owned()));
}

#[test]
fn a_request_of_a_family_that_the_service_has_not_is_told() {
    let mut bed = Bed::new(&["203.0.113.0/29"]);
    bed.put("a", asking("2001:db8::1"));
    bed.settle();
    assert_eq!(bed.status("a"), "203.0.113.1");
    assert_eq!(bed.reasons(), ["InvalidAddressRequest", "LoadBalancerAddressGiven"]);
}

#[test]
fn a_restart_writes_nothing_and_keeps_what_an_earlier_allocator_gave() {
    let mut bed = Bed::new(&["203.0.113.0/29", "2001:db8::/64"]);
    for text in ["a", "b", "c", "d"] {
        bed.put(text, dual(false));
    }
    bed.settle();
    bed.delete("a");
    bed.delete("c");
    // kube-router gives the first address of a range too.
    bed.put("e", BalancedService { status: vec!["203.0.113.0".parse().expect("an address")], ..service() });
    bed.settle();
    let (writes, before) = (bed.writes, ["b", "d", "e"].map(|text| bed.status(text)));
    bed.begin(pools(&["203.0.113.0/29", "2001:db8::/64"], Vec::new()));
    bed.settle();
    assert_eq!((bed.writes, ["b", "d", "e"].map(|text| bed.status(text))), (writes, before));
    let used: usize = bed.allocator.pool_uses().iter().map(|used| used.used).sum();
    assert_eq!(used, 5);
}

#[test]
fn of_two_that_have_one_address_the_older_keeps_it_whoever_is_seen_first() {
    for order in [["a", "b"], ["b", "a"]] {
        let mut bed = Bed::new(&["203.0.113.0/29"]);
        let has = |created| BalancedService {
            created,
            status: vec!["203.0.113.3".parse().expect("an address")],
            ..service()
        };
        bed.put_unseen("a", has(2));
        bed.put_unseen("b", has(1));
        order.into_iter().for_each(|text| bed.see(text));
        bed.settle();
        assert_eq!((bed.status("a"), bed.status("b")), ("203.0.113.1".to_owned(), "203.0.113.3".to_owned()));
        assert_eq!(bed.writes, 1);
        bed.begin(pools(&["203.0.113.0/29"], Vec::new()));
        bed.settle();
        assert_eq!(bed.writes, 1);
    }
}

#[test]
fn ten_thousand_services_take_one_write_each() {
    let mut bed = Bed::new(&["10.0.0.0/8", "2001:db8::/32"]);
    for index in 0..10_000 {
        bed.put_unseen(&format!("s{index}"), dual(true));
    }
    bed.begin(pools(&["10.0.0.0/8", "2001:db8::/32"], Vec::new()));
    bed.settle();
    assert_eq!(bed.writes, 10_000);
    bed.delete("s17");
    bed.settle();
    bed.put("new", service());
    bed.settle();
    assert_eq!(bed.writes, 10_001);
}

#[test]
fn who_prefers_two_families_and_has_one_of_another_allocator_lacks_nothing() {
    let mut bed = Bed::new(&["203.0.113.0/30"]);
    let of_others = vec!["198.51.100.1".parse().expect("an address")];
    bed.put("a", BalancedService { status: of_others, ..dual(false) });
    bed.settle();
    assert_eq!((bed.status("a").as_str(), bed.writes, bed.allocator.wanting()), ("198.51.100.1", 0, 0));
    assert_eq!(bed.reasons(), [""; 0]);
}

#[test]
fn a_range_that_comes_to_overlap_with_another_pool_takes_no_address_away_and_gives_none() {
    let flag = ["203.0.113.0/24"];
    let mut bed = Bed::with(pools(&flag, vec![pool("gold", "203.0.113.16/28")]));
    let of_ours = || BalancedService { class: Some("kube-router".into()), ..service() };
    let from_gold = || {
        let mut service = of_ours();
        service.request.pool = Some("gold".into());
        service
    };
    bed.put("a", from_gold());
    bed.put("b", from_gold());
    bed.settle();
    assert_eq!((bed.status("a").as_str(), bed.status("b").as_str()), ("203.0.113.17", "203.0.113.18"));
    let named = ["bronze", "gold"].map(|name| (name.into(), pool(name, "203.0.113.16/28")));
    let named = AddressPools { pools: named.into_iter().collect(), unreadable: BTreeMap::new() };
    let (both, mistakes) = Pools::new(&ranges(&flag), &named, &ReservedAddresses::default());
    assert_eq!(mistakes, ["pool gold: 203.0.113.16/28 is left out: it overlaps with 203.0.113.16/28 of pool bronze"]);
    bed.allocator.set_pools(Some(both.clone()), bed.now);
    bed.put("c", from_gold());
    bed.settle();
    assert_eq!(["a", "b", "c"].map(|text| bed.status(text)), ["203.0.113.17", "203.0.113.18", ""]);
    bed.begin(both);
    bed.change("b", |service| service.is_balancer = false);
    bed.settle();
    assert_eq!(["a", "b", "c"].map(|text| bed.status(text)), ["203.0.113.17", "", ""]);
}

#[test]
fn nobody_comes_to_share_an_address_that_a_node_has_come_to_have() {
    for (flag, of_node, free) in
        [("192.0.2.0/28", "192.0.2.1", "192.0.2.2"), ("2001:db8::/120", "2001:db8::1", "2001:db8::2")]
    {
        let of_family = |service| BalancedService {
            families: vec![Family::from(of_node.parse::<std::net::IpAddr>().expect("an address"))],
            ..service
        };
        let mut bed = Bed::new(&[flag]);
        bed.put("a", of_family(sharing("web", 80)));
        bed.settle();
        assert_eq!(bed.status("a"), of_node);
        bed.allocator.set_pools(Some(pools_beside(&[flag], Vec::new(), &[of_node])), bed.now);
        bed.put("b", of_family(sharing("web", 443)));
        bed.settle();
        assert_eq!((bed.status("a").as_str(), bed.status("b").as_str()), (of_node, free));
    }
}

#[test]
fn no_service_is_given_an_address_of_a_node_and_who_has_one_when_the_node_comes_keeps_it() {
    let flag = ["192.0.2.0/28", "2001:db8::/64"];
    let mut bed = Bed::with(pools_beside(&flag, Vec::new(), &["192.0.2.1", "192.0.2.2", "2001:db8::1"]));
    bed.put("a", dual(true));
    bed.put("b", asking("192.0.2.2"));
    bed.settle();
    assert_eq!((bed.status("a").as_str(), bed.status("b").as_str()), ("2001:db8::2 192.0.2.3", ""));
    let told: Vec<String> = bed.notices.drain(..).map(|notice| notice.matter.to_string()).collect();
    assert!(told.iter().any(|text| text.contains("192.0.2.2 is asked for and is an address of a Node")), "{told:?}");
    // A Node comes with the address of a Service, and another one goes.
    let now = pools_beside(&flag, Vec::new(), &["192.0.2.1", "192.0.2.3", "2001:db8::1"]);
    bed.allocator.set_pools(Some(now), bed.now);
    bed.put("c", service());
    bed.settle();
    let statuses = ["a", "b", "c"].map(|text| bed.status(text));
    assert_eq!(statuses, ["2001:db8::2 192.0.2.3", "192.0.2.2", "192.0.2.4"]);
    let its = |bed: &mut Bed| -> Vec<&'static str> {
        let of_a = bed.notices.drain(..).filter(|notice| notice.service == name("a"));
        of_a.map(|notice| notice.matter.reason()).collect()
    };
    assert_eq!(its(&mut bed), ["AddressOfNode"], "somebody says that no other node serves it");
    assert_eq!(bed.allocator.wanting(), 0, "it lacks nothing");
    // The Node goes, and comes again.
    for (nodes, told) in [(vec![], vec![]), (vec!["192.0.2.3"], vec!["AddressOfNode"])] {
        bed.allocator.set_pools(Some(pools_beside(&flag, Vec::new(), &nodes)), bed.now);
        bed.settle();
        assert_eq!(its(&mut bed), told, "{nodes:?}");
    }
}
