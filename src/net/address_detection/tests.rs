use super::*;

const BOTH: PerFamily<bool> = PerFamily { v4: true, v6: true };

fn method(text: &str) -> AddressDetection {
    text.parse().unwrap_or_else(|why| panic!("{text}: {why}"))
}

fn at(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|_| panic!("{text} is no address"))
}

/// Addresses, each as `LINK ADDRESS [WORD…]`, separated by semicolons; links have their numbers by their first mention. Words are `down`, `local`,
/// `passing`, `duplicate`, or the kind of the link.
fn host(text: &str) -> Vec<Candidate> {
    let mut links: Vec<&str> = Vec::new();
    let mut all = Vec::new();
    for line in text.split(';').map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (link, address, rest) = (words[0], words[1], &words[2..]);
        if !links.contains(&link) {
            links.push(link);
        }
        let index = links.iter().position(|known| *known == link).expect("it is there");
        let states = ["down", "local", "passing", "duplicate"];
        all.push(Candidate {
            link: link.into(),
            index: u32::try_from(index).expect("few links"),
            kind: rest.iter().find(|word| !states.contains(word)).copied().unwrap_or_default().into(),
            up: !rest.contains(&"down"),
            address: address.parse().unwrap_or_else(|_| panic!("{address} is no address of a link")),
            global: !rest.contains(&"local"),
            lasting: !rest.contains(&"passing") && !rest.contains(&"duplicate"),
            duplicate: rest.contains(&"duplicate"),
        });
    }
    all
}

fn both(text: &str) -> PerFamily<Option<IpAddr>> {
    let mut all = PerFamily::default();
    for address in text.split_whitespace().map(at) {
        *all.of_mut(Family::from(address)) = Some(address);
    }
    all
}

/// The chosen addresses, and behind a sign `!` the families of which nothing is found.
fn said(choice: Choice) -> String {
    let found = choice.addresses.iter().filter_map(|(_, address)| address.map(|address| address.to_string()));
    let lacks = choice.lacks.iter().filter(|(_, lacks)| **lacks).map(|(family, _)| format!("!{family}"));
    found.chain(lacks).collect::<Vec<_>>().join(" ")
}

fn first(with: &str, addresses: &str) -> String {
    said(choose(&method(with), BOTH, &host(addresses), PerFamily::default(), PerFamily::default()))
}

fn again(with: &str, addresses: &str, former: &str) -> String {
    said(choose(&method(with), BOTH, &host(addresses), PerFamily::default(), both(former)))
}

fn reaching(addresses: &str, sources: &str) -> String {
    let with = method("can-reach=203.0.113.1,2001:db8:f::1");
    said(choose(&with, BOTH, &host(addresses), both(sources), PerFamily::default()))
}

const TWO_LINKS: &str = "lo 127.0.0.1/8 local; eth0 192.0.2.1/24; eth1 198.51.100.1/24; lo ::1/128 local; \
    eth0 2001:db8::1/64; eth0 fe80::1/64 local; eth1 2001:db8:1::1/64; eth1 fe80::2/64 local";

/// The destination of `can-reach` is on this host, as the address that servers of a control plane share is on one of them.
#[test]
fn a_destination_that_is_on_this_host_is_not_its_address_if_it_moves() {
    let with = "can-reach=192.0.2.9,2001:db8::9";
    let reaching = |addresses: &str, former: &str| {
        let all = format!("lo 127.0.0.1/8 local; {addresses}");
        let sources = both("192.0.2.9 2001:db8::9");
        said(choose(&method(with), BOTH, &host(&all), sources, both(former)))
    };
    for (addresses, former, chosen, why) in [
        (
            "eth0 192.0.2.1/24; eth0 192.0.2.9/32; eth0 2001:db8::9/128; eth0 2001:db8::1/64",
            "",
            "192.0.2.1 2001:db8::1",
            "it has no network",
        ),
        (
            "eth0 192.0.2.1/24; eth0 192.0.2.9/24; eth0 2001:db8::9/64; eth0 2001:db8::10/64",
            "",
            "192.0.2.1 2001:db8::10",
            "it is secondary, or there is another one",
        ),
        ("eth0 192.0.2.9/24; eth0 2001:db8::9/64", "", "192.0.2.9 2001:db8::9", "it is the node's own"),
        (
            "eth0 192.0.2.9/24; eth0 192.0.2.10/24; eth0 2001:db8::9/64; eth0 2001:db8::10/64",
            "192.0.2.9 2001:db8::9",
            "192.0.2.9 2001:db8::9",
            "so does the destination",
        ),
        (
            "eth0 192.0.2.9/24; eth0 192.0.2.10/24; eth0 2001:db8::9/64; eth0 2001:db8::a/64",
            "192.0.2.10 2001:db8::a",
            "192.0.2.10 2001:db8::a",
            "what is in use stays",
        ),
        ("eth0 192.0.2.9/32; eth0 2001:db8::9/128", "", "192.0.2.9 2001:db8::9", "there is no other"),
        (
            "eth0 198.51.100.1/24; eth0 192.0.2.9/32; eth0 2001:db8:1::1/64; eth0 2001:db8::9/128",
            "",
            "198.51.100.1 2001:db8:1::1",
            "another network of its link",
        ),
        (
            "eth0 192.0.2.1/24; lo 192.0.2.9/32; eth0 2001:db8::1/64; lo 2001:db8::9/128",
            "",
            "!IPv4 !IPv6",
            "its link leads nowhere",
        ),
        (
            "eth0 192.0.2.1/24; lo 192.0.2.9/32; eth0 2001:db8::1/64; lo 2001:db8::9/128",
            "192.0.2.1 2001:db8::1",
            "192.0.2.1 2001:db8::1 !IPv4 !IPv6",
            "what was found before stays",
        ),
        (
            "eth0 192.0.2.1/24; eth1 192.0.2.9/24; eth0 2001:db8::1/64; eth1 2001:db8::9/64",
            "",
            "192.0.2.9 2001:db8::9",
            "it is the only one of its link",
        ),
    ] {
        assert_eq!(reaching(addresses, former), chosen, "{why}: {addresses}");
    }
}

#[test]
fn every_method_chooses_in_both_families() {
    for (with, chosen) in [
        ("interface=eth1", "198.51.100.1 2001:db8:1::1"),
        ("interface=eth.*", "192.0.2.1 2001:db8::1"),
        ("interface=eth9,eth1,eth0", "198.51.100.1 2001:db8:1::1"),
        ("skip-interface=eth0", "198.51.100.1 2001:db8:1::1"),
        ("skip-interface=wlan", "192.0.2.1 2001:db8::1"),
        ("cidr=198.51.100.0/24,2001:db8:1::/48", "198.51.100.1 2001:db8:1::1"),
        ("cidr=203.0.113.0/24,192.0.2.0/24,2001:db8::/32", "192.0.2.1 2001:db8::1"),
        ("interface=^th", "!IPv4 !IPv6"),
        ("interface=th1", "198.51.100.1 2001:db8:1::1"),
        ("interface=eth9", "!IPv4 !IPv6"),
        ("skip-interface=eth", "!IPv4 !IPv6"),
        // A family that the list is not about is not looked for.
        ("cidr=198.51.100.0/24", "198.51.100.1"),
        ("cidr=203.0.113.0/24", "!IPv4"),
    ] {
        assert_eq!(first(with, TWO_LINKS), chosen, "{with}");
    }
    assert_eq!(reaching(TWO_LINKS, "198.51.100.1 2001:db8:1::1"), "198.51.100.1 2001:db8:1::1");
    assert_eq!(reaching(TWO_LINKS, "198.51.100.1"), "198.51.100.1 !IPv6", "there is no route");
    let alone = method("can-reach=203.0.113.1");
    let found = choose(&alone, BOTH, &host(TWO_LINKS), both("198.51.100.1 2001:db8::1"), PerFamily::default());
    assert_eq!(said(found), "198.51.100.1", "IPv6 is not looked for");
    let families = PerFamily { v4: false, v6: true };
    let found = choose(&method("interface=eth1"), families, &host(TWO_LINKS), both(""), PerFamily::default());
    assert_eq!(said(found), "2001:db8:1::1", "IPv4 is switched off");
}

#[test]
fn no_method_chooses_what_other_nodes_cannot_or_should_not_use() {
    for unusable in [
        "eth1 127.0.0.2/8",
        "eth1 169.254.1.1/16",
        "eth1 198.51.100.1/24 local",
        "eth1 198.51.100.1/24 passing",
        "eth1 198.51.100.1/24 down",
        "eth1 0.0.0.0/8",
        "eth1 fe80::1/64",
        "eth1 ::1/128",
        "eth1 ff02::1/128",
        "eth1 ::ffff:198.51.100.1/128",
        "eth1 2001:db8::1/64 passing",
        "kube-bridge 10.244.1.1/24",
        "kube-dummy-if 10.96.0.1/32",
        "kube-ipvs0 10.96.0.1/32",
        "nodelocaldns 10.96.0.10/32",
        "tun-1234 192.0.2.1/32",
        "sluice-wg0 192.0.2.1/32",
    ] {
        let address = host(unusable)[0].address.addr();
        for with in ["interface=.*", "skip-interface=none", "cidr=0.0.0.0/0,::/0"] {
            let found = first(with, unusable);
            assert_eq!(found, "!IPv4 !IPv6", "{with} {unusable}");
        }
        let found = reaching(unusable, &address.to_string());
        assert_eq!(found, "!IPv4 !IPv6", "can-reach {unusable}");
    }
}

#[test]
fn virtual_links_are_skipped_and_may_be_named() {
    for link in [
        "lo 192.0.2.1/32",
        "docker0 192.0.2.1/24 bridge",
        "br-0123456789ab 192.0.2.1/24 bridge",
        "cni0 192.0.2.1/24 bridge",
        "veth12ab 192.0.2.1/24 veth",
        "virbr0 192.0.2.1/24 bridge",
        "cali1234 192.0.2.1/32",
        "flannel.1 192.0.2.1/32 vxlan",
        "loop 192.0.2.1/32 dummy",
        "wg7 192.0.2.1/24 wireguard",
    ] {
        assert_eq!(first("skip-interface=none", link), "!IPv4 !IPv6", "{link}");
        assert_eq!(first("interface=.*", link), "192.0.2.1 !IPv6", "{link}");
        assert_eq!(first("cidr=192.0.2.0/24", link), "192.0.2.1", "{link}");
    }
    for link in ["br-lan 192.0.2.1/24 bridge", "bond0 192.0.2.1/24 bond", "eth0 192.0.2.1/24 veth"] {
        assert_eq!(first("skip-interface=none", link), "192.0.2.1 !IPv6", "{link}");
    }
}

#[test]
fn the_order_is_that_of_the_list_then_of_links_then_of_the_kernel_or_of_ipv6_addresses() {
    let several = "eth0 192.0.2.9/24; eth0 192.0.2.3/24; eth0 2001:db8::9/64; eth0 2001:db8::3/64; eth1 192.0.2.1/24";
    assert_eq!(first("interface=eth", several), "192.0.2.9 2001:db8::3");
    let reversed = "eth1 192.0.2.1/24; eth0 192.0.2.9/24";
    assert_eq!(first("interface=eth", reversed), "192.0.2.1 !IPv6", "its number is lower");
    assert_eq!(first("interface=eth0,eth", reversed), "192.0.2.9 !IPv6");
    assert_eq!(first("cidr=192.0.2.8/29,192.0.2.0/24", reversed), "192.0.2.9");
}

#[test]
fn an_address_that_may_be_on_several_hosts_or_move_between_them_is_behind_those_of_this_host_alone() {
    let anycast = "lo 192.0.2.100/32; lo 2001:db8::1/128; eth0 192.0.2.7/24; eth0 2001:db8::7/64";
    let dummy = "loop 192.0.2.100/32 dummy; loop 2001:db8::1/128 dummy; eth0 192.0.2.7/24; eth0 2001:db8::7/64";
    let wide = "dummy0 192.0.2.100/24; dummy0 2001:db8::1/64; eth0 192.0.2.7/24; eth0 2001:db8::7/64";
    let moving = "eth0 192.0.2.100/32; eth0 192.0.2.7/24; eth0 2001:db8::1/128; eth0 2001:db8::7/64";
    let behind = "eth0 192.0.2.100/32; eth0 2001:db8::1/128; eth1 192.0.2.7/24; eth1 2001:db8::7/64";
    let (own, shared) = ("192.0.2.7 2001:db8::7", "192.0.2.100 2001:db8::1");
    for (with, addresses, chosen) in [
        ("cidr=192.0.2.0/24,2001:db8::/32", anycast, own),
        ("interface=.*", anycast, own),
        ("interface=lo,eth0", anycast, shared),
        ("cidr=192.0.2.100/32,192.0.2.0/24,2001:db8::1/128,2001:db8::/32", anycast, shared),
        ("cidr=192.0.2.0/24,2001:db8::/32", dummy, own),
        ("interface=.*", dummy, own),
        ("interface=.*", wide, own),
        ("cidr=192.0.2.0/24,2001:db8::/32", moving, own),
        ("interface=eth0", moving, own),
        ("skip-interface=none", moving, own),
        ("cidr=192.0.2.0/24,2001:db8::/32", behind, own),
        // Hosts of clouds, and of DHCPv6, have addresses of this length alone on their first link.
        ("interface=eth", behind, shared),
        ("skip-interface=none", behind, shared),
    ] {
        assert_eq!(first(with, addresses), chosen, "{with} {addresses}");
        assert_eq!(again(with, addresses, shared), chosen, "{with} {addresses}: it was alone before");
    }
    let nothing_else = "lo 192.0.2.100/32; eth0 2001:db8::1/128";
    assert_eq!(first("interface=.*", nothing_else), shared);
    assert_eq!(first("cidr=192.0.2.0/24,2001:db8::/32", nothing_else), shared);
    assert_eq!(reaching(anycast, shared), shared, "the kernel's answer counts");
}

#[test]
fn the_present_address_stays_while_it_is_as_good_as_the_best() {
    let many = "eth0 192.0.2.9/24; eth0 192.0.2.3/24; eth1 192.0.2.1/24";
    assert_eq!(again("interface=eth", many, "192.0.2.1"), "192.0.2.1 !IPv6");
    assert_eq!(again("interface=eth0,eth1", many, "192.0.2.3"), "192.0.2.3 !IPv6");
    assert_eq!(again("interface=eth0,eth1", many, "192.0.2.1"), "192.0.2.9 !IPv6", "a better link is there");
    assert_eq!(again("cidr=192.0.2.8/29,192.0.2.0/24", many, "192.0.2.1"), "192.0.2.9");
    assert_eq!(again("skip-interface=eth1", many, "192.0.2.1"), "192.0.2.9 !IPv6");
    assert_eq!(again("interface=eth", many, "192.0.2.77"), "192.0.2.9 !IPv6", "it is gone");
}

#[test]
fn what_was_found_stays_while_the_host_has_it_and_nothing_better_is_found() {
    let with = "interface=eth1";
    for (addresses, chosen) in [
        ("eth1 198.51.100.1/24 down", "198.51.100.1 !IPv4 !IPv6"),
        ("eth1 198.51.100.1/24 passing", "198.51.100.1 !IPv4 !IPv6"),
        ("eth2 198.51.100.1/24", "198.51.100.1 !IPv4 !IPv6"),
        ("eth0 192.0.2.1/24", "!IPv4 !IPv6"),
        ("eth1 198.51.100.1/24 duplicate", "!IPv4 !IPv6"),
        ("kube-dummy-if 198.51.100.1/32", "!IPv4 !IPv6"),
        ("sluice-wg0 198.51.100.1/32", "!IPv4 !IPv6"),
        ("", "!IPv4 !IPv6"),
    ] {
        assert_eq!(again(with, addresses, "198.51.100.1"), chosen, "{addresses}");
    }
    assert_eq!(again(with, "eth1 2001:db8:1::1/64 passing", "2001:db8:1::1"), "2001:db8:1::1 !IPv4 !IPv6");
    assert_eq!(again(with, "eth1 2001:db8:1::1/64 duplicate", "2001:db8:1::1"), "!IPv4 !IPv6", "it is another host's");
    let found = choose(&method(with), BOTH, &host("eth1 198.51.100.1/24 down"), both(""), both("198.51.100.1"));
    let problems = found.problems(&method(with));
    assert_eq!(
        problems.v4.as_deref(),
        Some(
            "--node-ip-autodetect=interface=eth1 finds no IPv4 address of this host; 198.51.100.1, which it found before, stays in use while the host has it"
        )
    );
    assert_eq!(
        problems.v6.as_deref(),
        Some(
            "--node-ip-autodetect=interface=eth1 finds no IPv6 address of this host; other nodes route to the InternalIP of its Node"
        )
    );
}

#[test]
fn the_lasting_address_beside_a_temporary_source_is_meant() {
    let addresses = "eth0 2001:db8::aaaa/64 passing; eth0 2001:db8::1/64; eth0 2001:db8:7::1/64; eth1 2001:db8:1::1/64";
    assert_eq!(reaching(addresses, "2001:db8::aaaa"), "2001:db8::1 !IPv4");
    assert_eq!(reaching(addresses, "2001:db8:1::1"), "2001:db8:1::1 !IPv4");
    assert_eq!(reaching(addresses, "2001:db8:9::1"), "!IPv4 !IPv6", "it is not of this host");
}

#[test]
fn a_method_is_read_as_it_is_written() {
    for text in [
        "can-reach=203.0.113.1",
        "can-reach=2001:db8::1",
        "can-reach=203.0.113.1,2001:db8::1",
        "interface=eth.*,^bond[0-9]+$",
        "skip-interface=docker.*",
        "cidr=192.0.2.0/24,2001:db8::/32",
    ] {
        assert_eq!(method(text).to_string(), text);
        assert_eq!(method(&method(text).to_string()), method(text));
    }
    assert_eq!(method("cidr = 192.0.2.7/24 ,").to_string(), "cidr=192.0.2.0/24");
    assert_ne!(method("interface=eth0"), method("interface=eth1"));
    for (text, why) in [
        (
            "first-found",
            "must be can-reach=ADDRESS, interface=REGEX, skip-interface=REGEX or cidr=LIST; it is \"first-found\"",
        ),
        ("interface", "interface needs a regular expression behind the sign =; it is \"interface\""),
        ("cidr=", "cidr needs a network behind the sign =; it is \"cidr=\""),
        ("can-reach= ,", "can-reach needs an address behind the sign =; it is \"can-reach= ,\""),
        ("cidr=192.0.2.0", "cidr needs networks such as 192.0.2.0/24; \"192.0.2.0\" is none"),
        ("can-reach=192.0.2.1,192.0.2.2", "can-reach takes one address of each family; it has two of IPv4"),
        ("can-reach=127.0.0.1", "can-reach needs a unicast address beyond this host's links; it has 127.0.0.1"),
        ("can-reach=fe80::1", "can-reach needs a unicast address beyond this host's links; it has fe80::1"),
        (
            "can-reach=gateway.example",
            "can-reach needs an IP address, not a name, for which DNS would have to answer before the network is up; it has \"gateway.example\"",
        ),
    ] {
        assert_eq!(text.parse::<AddressDetection>().map_err(|error| error.to_string()), Err(why.to_owned()));
    }
    let why = "interface=eth(".parse::<AddressDetection>().expect_err("no expression").to_string();
    assert!(why.starts_with("needs regular expressions, separated by commas; \"eth(\" is none: "), "{why}");
    assert!(!why.contains('\n'), "{why}");
}
