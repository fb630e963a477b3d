//! Services that share an address, and those that come to share one.

use super::*;

const BOTH: [(&str, &str, Family); 2] =
    [("203.0.113.0/32", "203.0.113.0", Family::V4), ("2001:db8::5/128", "2001:db8::5", Family::V6)];

fn sharing(family: Family, key: &str, port: u16) -> BalancedService {
    let ports = vec![(Protocol::Tcp, port)];
    BalancedService { families: vec![family], sharing_key: Some(key.into()), ports, ..service() }
}

#[test]
fn all_who_wait_with_one_key_share_the_only_address_when_it_comes_free() {
    for (range, only, family) in BOTH {
        let mut bed = Bed::new(&[range]);
        bed.put("z", BalancedService { families: vec![family], ..service() });
        bed.settle();
        for (text, port) in [("a", 80), ("b", 443), ("c", 80)] {
            bed.put(text, sharing(family, "web", port));
        }
        bed.put("elsewhere/d", BalancedService { created: 1, ..sharing(family, "web", 444) });
        bed.settle();
        bed.delete("z");
        bed.settle();
        let statuses = ["a", "b", "c", "elsewhere/d"].map(|text| bed.status(text));
        assert_eq!(statuses, [only, only, "", ""]);
    }
}

#[test]
fn who_waits_comes_to_share_an_address_when_its_owner_agrees_later() {
    let agrees: [fn(&mut BalancedService); 4] = [
        |owner| owner.sharing_key = Some("web".into()),
        |owner| owner.ports = vec![(Protocol::Udp, 80)],
        |owner| owner.clients = ClientPolicy::Cluster,
        |owner| owner.class = None,
    ];
    for (range, only, family) in BOTH {
        let owners = [
            BalancedService { sharing_key: None, ..sharing(family, "", 443) },
            sharing(family, "web", 80),
            BalancedService { clients: ClientPolicy::Local("app=web".into()), ..sharing(family, "web", 443) },
            BalancedService {
                class: Some("other".into()),
                status: vec![only.parse().expect("an address")],
                ..sharing(family, "web", 443)
            },
        ];
        for (owner, agree) in owners.into_iter().zip(agrees) {
            let mut bed = Bed::new(&[range]);
            bed.put("a", owner);
            bed.put("b", sharing(family, "web", 80));
            bed.settle();
            assert_eq!(["a", "b"].map(|text| bed.status(text)), [only, ""]);
            bed.change("a", agree);
            bed.settle();
            assert_eq!(["a", "b"].map(|text| bed.status(text)), [only, only]);
            assert_eq!(bed.allocator.wanting(), 0);
        }
    }
}

#[test]
fn who_is_decided_about_before_the_owner_of_the_only_address_comes_to_share_it_after_a_restart() {
    let mut bed = Bed::new(&["203.0.113.0/32"]);
    bed.put("b", BalancedService { created: 2, ..sharing(Family::V4, "web", 80) });
    bed.settle();
    bed.put_unseen("a", BalancedService { created: 1, ..sharing(Family::V4, "web", 443) });
    bed.begin(pools(&["203.0.113.0/32"], Vec::new()));
    bed.settle();
    assert_eq!(["a", "b"].map(|text| bed.status(text)), ["203.0.113.0", "203.0.113.0"]);
}

#[test]
fn very_many_who_wait_with_one_key_and_cannot_share_are_not_decided_about_with_each_change_of_an_owner() {
    let mut bed = Bed::new(&["203.0.113.0/32"]);
    for number in 0..300 {
        bed.put(&format!("s{number:04}"), sharing(Family::V4, "web", 80));
    }
    bed.settle();
    let before = bed.allocator.decisions.get();
    for number in 0..20 {
        bed.change("s0000", |service| service.labels = [("n", format!("{number}").as_str())].into_iter().collect());
    }
    let decisions = bed.allocator.decisions.get() - before;
    assert!(decisions <= 40, "{decisions} decisions for 20 changes");
    bed.put("s0300", sharing(Family::V4, "web", 443));
    bed.settle();
    assert_eq!(bed.status("s0300"), "203.0.113.0");
}

#[test]
fn whoever_waits_with_a_key_comes_to_share_any_of_very_many_addresses_with_it() {
    let mut bed = Bed::new(&["203.0.113.0/25"]);
    // Each has an address of its own, as all have one port; those with a name behind the first 64 have the last addresses.
    for number in 0..126 {
        bed.put(&format!("s{number:04}"), sharing(Family::V4, "web", 80));
    }
    bed.put("waits", sharing(Family::V4, "web", 80));
    bed.settle();
    assert_eq!((bed.status("s0125"), bed.status("waits")), ("203.0.113.126".to_owned(), String::new()));
    bed.change("s0125", |service| service.ports = vec![(Protocol::Tcp, 443)]);
    bed.settle();
    assert_eq!(bed.status("waits"), "203.0.113.126");
}

#[test]
fn nobody_comes_to_share_an_edge_or_an_address_of_a_pool_that_is_only_for_those_who_name_it() {
    let reserved = || vec![AddressPool { is_automatic: false, ..pool("reserved", "203.0.113.8/29") }];
    let mut bed = Bed::with(pools(&["203.0.113.0/28", "2001:db8::/64"], reserved()));
    let mut asking = sharing(Family::V4, "web", 80);
    asking.request.addresses.v4 = "203.0.113.9".parse().ok();
    bed.put("a", asking);
    bed.put("b", sharing(Family::V4, "web", 443));
    // Of kube-router, which gives the first address of a range too.
    for (text, edge) in [("c", "203.0.113.0"), ("e", "2001:db8::")] {
        let edge: std::net::IpAddr = edge.parse().expect("an address");
        bed.put(text, BalancedService { status: vec![edge], ..sharing(edge.into(), text, 80) });
    }
    bed.put("d", sharing(Family::V4, "c", 443));
    bed.put("f", sharing(Family::V6, "e", 443));
    let mut naming = sharing(Family::V4, "web", 444);
    naming.request.pool = Some("reserved".into());
    bed.put("g", naming);
    bed.settle();
    let statuses = ["a", "b", "c", "d", "e", "f", "g"].map(|text| bed.status(text));
    let wanted =
        ["203.0.113.9", "203.0.113.1", "203.0.113.0", "203.0.113.2", "2001:db8::", "2001:db8::1", "203.0.113.9"];
    assert_eq!(statuses, wanted);
}

#[test]
fn who_may_not_share_an_address_because_it_is_a_nodes_is_told_so() {
    for (range, only, family) in BOTH {
        let mut bed = Bed::new(&[range]);
        bed.put("a", sharing(family, "web", 80));
        bed.settle();
        bed.allocator.set_pools(Some(pools_beside(&[range], Vec::new(), &[only])), bed.now);
        bed.settle();
        bed.reasons();
        bed.put("b", sharing(family, "web", 443));
        // It could not have it in any case.
        bed.put("c", sharing(family, "web", 80));
        bed.settle();
        let of = |text: &str, bed: &Bed| -> Vec<String> {
            let its = bed.notices.iter().filter(|notice| notice.service == name(text));
            its.map(|notice| notice.matter.to_string()).collect()
        };
        assert!(of("b", &bed).iter().any(|text| text.contains(only) && text.contains("is an address of a Node")));
        assert!(!of("c", &bed).iter().any(|text| text.contains("is an address of a Node")));
        assert_eq!(bed.allocator.wanting(), 2);
    }
}
