//! Pools of the flag and of the ConfigMap: whose an address is, and which ones are given.

use super::*;

fn ranges(allowed: &[&str]) -> ServiceRanges {
    ServiceRanges {
        strict: true,
        cluster_ips: vec!["10.96.0.0/12".parse().expect("a prefix")],
        load_balancer_ips: allowed.iter().map(|text| text.parse().expect("a prefix")).collect(),
        ..ServiceRanges::default()
    }
}

fn named(pools: &[(&str, &[&str])]) -> AddressPools {
    let pool = |name: &str, texts: &[&str]| AddressPool {
        name: name.into(),
        ranges: texts.iter().map(|text| AddressRange::parse(text).expect("a range")).collect(),
        namespaces: Vec::new(),
        selector: Selector::everything(),
        class: None,
        is_automatic: true,
    };
    let pools = pools.iter().map(|(name, texts)| ((*name).into(), pool(name, texts)));
    AddressPools { pools: pools.collect(), unreadable: BTreeMap::new() }
}

fn pool(pools: &Pools, address: &str) -> Option<String> {
    pools.pool_of(address.parse().expect("an address")).map(|id| pools.name(id).to_owned())
}

#[test]
fn the_default_pool_has_what_no_other_pool_has_and_no_edge_is_given() {
    let (mut pools, mistakes) = Pools::new(
        &ranges(&["203.0.113.0/29", "2001:db8::/64"]),
        &named(&[("gold", &["203.0.113.2-203.0.113.3"])]),
        &ReservedAddresses::default(),
    );
    assert_eq!(mistakes, [""; 0]);
    assert_eq!(pool(&pools, "203.0.113.2").as_deref(), Some("gold"));
    assert_eq!(pool(&pools, "203.0.113.4").as_deref(), Some("default"));
    assert_eq!(pool(&pools, "203.0.113.8"), None);
    let edges = ["203.0.113.0", "203.0.113.7", "2001:db8::"].map(|text| text.parse().expect("an address"));
    for edge in edges {
        assert!(pools.pool_of(edge).is_some() && !pools.may_give(edge), "{edge}");
    }
    let default = PoolId(1);
    let mut given = Vec::new();
    while let Some(address) = pools.first_free(default, Family::V4) {
        pools.take(address);
        given.push(address.to_string());
    }
    assert_eq!(given, ["203.0.113.1", "203.0.113.4", "203.0.113.5", "203.0.113.6"]);
    let first: IpAddr = "2001:db8::1".parse().expect("an address");
    assert_eq!(pools.first_free(default, Family::V6), Some(first));
    pools.put_back("203.0.113.5".parse().expect("an address"));
    assert_eq!(pools.first_free(default, Family::V4), "203.0.113.5".parse().ok());
    let uses: Vec<_> = pools.uses().map(|used| (used.pool, used.family, used.size, used.used)).collect();
    assert_eq!(uses[0], ("gold".into(), Family::V4, 2.0, 0));
    assert_eq!(uses[1], ("default".into(), Family::V4, 4.0, 3));
    assert_eq!(uses.len(), 3);
}

#[test]
fn ranges_that_overlap_or_that_nodes_would_not_serve_are_left_out_and_named() {
    let (allowed, nothing) = (ranges(&["203.0.113.0/24", "10.96.0.0/24"]), ReservedAddresses::default());
    let all = named(&[
        ("a", &["203.0.113.0/28", "198.51.100.0/24"]),
        ("b", &["203.0.113.8/29", "10.96.0.0/28", "203.0.113.16/28"]),
    ]);
    let (pools, mistakes) = Pools::new(&allowed, &all, &nothing);
    assert_eq!(
        mistakes,
        [
            "pool a: 198.51.100.0/24 is left out: it is not within a range of --loadbalancer-ip-range",
            "pool b: 203.0.113.8/29 is left out: it overlaps with 203.0.113.0/28 of pool a",
            "pool b: 10.96.0.0/28 is left out: it overlaps with a range of cluster IPs",
        ]
    );
    assert_eq!(pool(&pools, "203.0.113.20").as_deref(), Some("b"));
    assert_eq!(pool(&pools, "10.96.0.5"), None, "cluster IPs belong to no pool");
    assert_eq!(pool(&pools, "203.0.113.14").as_deref(), Some("a"));
    let two = named(&[("first", &["203.0.113.8/30"]), ("second", &["203.0.113.0/28"])]);
    let (both, _) = Pools::new(&allowed, &two, &nothing);
    assert_eq!(pool(&both, "203.0.113.2"), None, "what is left out of a pool is not everybody's");
    let loose = ServiceRanges { strict: false, ..allowed };
    assert_eq!(Pools::new(&loose, &all, &nothing).1.len(), 2);
}

#[test]
fn addresses_that_no_node_serves_are_not_given_and_ranges_with_them_are_named() {
    let flag = ranges(&["0.0.0.0/0", "::/0"]);
    let all = named(&[
        ("a", &["169.254.0.0/16", "203.0.113.5/28", "126.0.0.0-128.0.0.1"]),
        ("b", &["fe80::/64", "2001:db8::5/120", "::/8"]),
    ]);
    let (pools, mistakes) = Pools::new(&flag, &all, &ReservedAddresses::default());
    assert_eq!(
        mistakes,
        [
            "pool a: 169.254.0.0/16 is left out: addresses of 169.254.0.0-169.254.255.255 are no host's, and no node serves them",
            "pool a: 203.0.113.5/28 is not the beginning of a prefix, and counts as 203.0.113.0/28",
            "pool a: 126.0.0.0-128.0.0.1 is left out: addresses of 127.0.0.0-127.255.255.255 are no host's, and no node serves them",
            "pool b: fe80::/64 is left out: addresses of fe80::-febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff are no host's, and no node serves them",
            "pool b: 2001:db8::5/120 is not the beginning of a prefix, and counts as 2001:db8::/120",
            "pool b: ::/8 is left out: addresses of ::-::ffff:ffff are no host's, and no node serves them",
        ]
    );
    let may_give = |text: &str| pools.may_give(text.parse().expect("an address"));
    for text in ["0.0.0.1", "127.0.0.1", "169.254.0.1", "126.0.0.1", "224.0.0.1", "::1", "fe80::1", "ff02::1"] {
        assert!(!may_give(text), "{text}");
    }
    for text in ["203.0.113.1", "203.0.113.14", "198.51.100.1", "2001:db8::1", "2001:db8:1::1"] {
        assert!(may_give(text), "{text}");
    }
    let default = PoolId(2);
    assert_eq!(pools.first_free(default, Family::V4), "1.0.0.0".parse().ok());
    let had: IpAddr = "169.254.0.1".parse().expect("an address");
    assert!(pools.name_address(had), "who has it keeps it");
}

#[test]
fn a_longer_range_of_a_pool_gives_no_edge_of_the_flags_network_and_a_short_one_what_it_says() {
    let flag = ranges(&["203.0.113.0/28", "2001:db8::/120"]);
    let all = named(&[
        ("long", &["203.0.113.0-203.0.113.5", "2001:db8::-2001:db8::5"]),
        ("short", &["203.0.113.14-203.0.113.15"]),
    ]);
    let (pools, mistakes) = Pools::new(&flag, &all, &ReservedAddresses::default());
    assert_eq!(mistakes, [""; 0]);
    let may_give = |text: &str| pools.may_give(text.parse().expect("an address"));
    assert!(!may_give("203.0.113.0") && !may_give("2001:db8::"), "the edges of the flag's networks");
    assert!(may_give("203.0.113.1") && may_give("203.0.113.5") && may_give("2001:db8::5"));
    assert!(may_give("203.0.113.14") && may_give("203.0.113.15"), "who writes two addresses means both");
    assert_eq!(pool(&pools, "203.0.113.0").as_deref(), Some("long"), "who has it keeps it");
    let sizes: Vec<_> = pools.uses().map(|used| (used.pool, used.size)).collect();
    assert_eq!(sizes[..2], [("long".into(), 5.0), ("long".into(), 5.0)]);
}

#[test]
fn addresses_of_nodes_are_not_given_and_ranges_that_the_cluster_names_belong_to_no_pool() {
    let nodes = ["192.0.2.1", "192.0.2.3", "192.0.2.14", "2001:db8::1", "2001:db8::ff"];
    let reserved = ReservedAddresses {
        nodes: nodes.iter().map(|text| text.parse().expect("an address")).collect(),
        cluster_ips: ["192.0.2.4/30".parse().expect("a range")].into(),
    };
    let flag = ranges(&["192.0.2.0/28", "2001:db8::/120"]);
    let named = named(&[("gold", &["192.0.2.12/30", "192.0.2.6-192.0.2.7"])]);
    let (mut pools, mistakes) = Pools::new(&flag, &named, &reserved);
    assert_eq!(mistakes, ["pool gold: 192.0.2.6-192.0.2.7 is left out: it overlaps with a range of cluster IPs"]);
    let mut given = Vec::new();
    for pool in [PoolId(0), PoolId(1)] {
        while let Some(address) = pools.first_free(pool, Family::V4) {
            pools.take(address);
            given.push(address.to_string());
        }
    }
    let wanted = [13, 2, 8, 9, 10, 11].map(|host| format!("192.0.2.{host}"));
    assert_eq!(given, wanted);
    assert_eq!(pools.first_free(PoolId(1), Family::V6), "2001:db8::2".parse().ok());
    let node: IpAddr = "192.0.2.3".parse().expect("an address");
    assert!(pools.is_of_node(node) && !pools.may_give(node));
    pools.take(node);
    pools.put_back(node);
    assert_eq!(pools.first_free(PoolId(1), Family::V4), None, "who had it lets it go, and nobody is given it");
    assert!(!pools.may_give("2001:db8::ff".parse().expect("an address")));
}
