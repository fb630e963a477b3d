use super::*;
use crate::net::{Distance, PerFamily};

fn parsed(annotations: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
    let (peers, _, warnings) = parsed_in_full(annotations);
    (peers, warnings)
}

/// The peers, those that cannot be read as `address@place` or `list`, and the warnings.
fn parsed_in_full(annotations: &[(&str, &str)]) -> (Vec<String>, Vec<String>, Vec<String>) {
    let annotations = annotations.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    let mut warnings = Warnings::default();
    let text = |peer: ExternalPeer| {
        let port = peer.port.map(|port| format!(":{port}")).unwrap_or_default();
        let key = match &peer.password {
            Password::Key(secret) => format!(" key {}", String::from_utf8_lossy(secret.key())),
            _ => String::new(),
        };
        let local = peer.local.map(|local| format!(" from {local}")).unwrap_or_default();
        let bfd = peer.bfd.map(|bfd| format!(" bfd {} {} {} {}", bfd.port, bfd.multiplier, bfd.send, bfd.receive));
        let asn = match peer.asn {
            RemoteAs::Number(number) => number.to_string(),
            RemoteAs::External => " external".to_owned(),
        };
        format!("{}{port} AS{asn}{key}{local}{}", peer.remote, bfd.unwrap_or_default())
    };
    let (peers, unread) = peers(&annotations, &mut warnings);
    let unread = match unread {
        UnreadPeers::None => Vec::new(),
        UnreadPeers::These(unread) => unread.iter().map(|one| format!("{}@{}", one.remote, one.behind)).collect(),
        UnreadPeers::List => vec!["list".to_owned()],
    };
    let warnings = warnings.take().into_iter().map(|warning| warning.to_string()).collect();
    (peers.into_iter().map(text).collect(), unread, warnings)
}

const NOTHING: [&str; 0] = [];

#[test]
fn a_yaml_list_names_peers_with_what_they_need() {
    let yaml = "- remoteip: 203.0.113.1\n  remoteasn: 65001\n\
                - remoteip: 2001:db8:113::1\n  remoteasn: 4200000001\n  localip: 2001:db8::1\n  port: 1179\n  password: cGFzcw==\n";
    let (peers, warnings) = parsed(&[(NODE_PEERS, yaml), (NODE_PEER_IPS, "203.0.113.9"), (NODE_PEER_ASNS, "1")]);
    assert_eq!(peers, ["203.0.113.1 AS65001", "2001:db8:113::1:1179 AS4200000001 key pass from 2001:db8::1"]);
    assert_eq!(warnings, NOTHING);
}

#[test]
fn a_slip_in_one_peer_takes_no_other_away() {
    let first = "- {remoteip: 203.0.113.1, remoteasn: 65001}\n";
    let said = "a key stands twice in one of its peers, of which the last counts, or a number is not finite";
    for (second, peers_of_both, left_out) in [
        ("- {remoteip: 203.0.113.2, remoteasn: 65002, maxprefixes: .inf}\n", 1, true),
        ("- {remoteip: 203.0.113.2, remoteasn: 1e999}\n", 1, true),
        ("- {remoteip: 203.0.113.2, remoteasn: 65002, holdtime: 30, holdtime: 60}\n", 2, false),
    ] {
        let (peers, warnings) = parsed(&[(NODE_PEERS, &format!("{first}{second}"))]);
        assert!(peers.len() == peers_of_both && peers[0] == "203.0.113.1 AS65001", "{second}: {peers:?}");
        assert!(warnings.iter().any(|warning| warning.contains(said)), "{second}: {warnings:?}");
        let of_second = |warning: &String| warning.contains("peer 2: ") && warning.contains("it is left out");
        assert_eq!(warnings.iter().any(of_second), left_out, "{second}: {warnings:?}");
    }
}

#[test]
fn an_address_of_a_link_is_none_of_a_session_by_address() {
    let (peers, warnings) = parsed(&[(NODE_PEERS, "- {remoteip: 2001:db8::1, remoteasn: 65001, localip: fe80::1}")]);
    assert_eq!(peers, NOTHING);
    assert!(warnings[0].contains("localip fe80::1 means nothing without a link"), "{warnings:?}");
}

#[test]
fn a_peer_may_be_behind_an_interface_in_place_of_having_an_address() {
    let yaml = "- {interface: eth1, remoteasn: external}\n- {interface: eth2, remoteasn: 65001, password: cGFzcw==, ttlsecurity: 1}\n";
    let (peers, warnings) = parsed(&[(NODE_PEERS, yaml)]);
    assert_eq!(
        (peers, warnings.as_slice()),
        (vec!["eth1 AS external".to_owned(), "eth2 AS65001 key pass".to_owned()], &[][..])
    );
    let one_hop = "a neighbour behind an interface is one hop away; multihop and ttlsecurity may be 1";
    for (odd, why) in [
        ("interface: eth1, remoteip: 203.0.113.1, remoteasn: 1", "remoteip and interface exclude each other"),
        ("interface: eth1", "remoteasn is absent"),
        (
            "interface: eth1, remoteasn: internal",
            "the AS number \"internal\" is not in 1-23455, 23457-63999, 64512-65534 or 131072-4294967294",
        ),
        ("interface: a/b, remoteasn: 1", "\"a/b\" is not a name of an interface"),
        ("interface: sixteen-letters-, remoteasn: 1", "\"sixteen-letters-\" is not a name of an interface"),
        (
            "interface: eth1, remoteasn: 1, localip: 192.0.2.1",
            "interface and localip exclude each other: the session has link-local addresses",
        ),
        ("interface: eth1, remoteasn: 1, multihop: 2", one_hop),
        ("interface: eth1, remoteasn: 1, ttlsecurity: 2", one_hop),
        ("Interface: eth1, remoteasn: 1", "Interface must be written as interface"),
        (
            "remoteip: 203.0.113.1, remoteasn: external",
            "remoteasn may be external with interface alone; else it is a number",
        ),
        ("remoteip: fe80::1, remoteasn: 1", "fe80::1 means nothing without a link; name that by interface"),
    ] {
        let (peers, unread, warnings) = parsed_in_full(&[(NODE_PEERS, &format!("[{{{odd}}}]"))]);
        let end = if unread == ["list"] { LAST_LIST } else { LAST_PEER };
        assert_eq!((peers.len(), warnings), (0, vec![format!("kube-router.io/peers: peer 1: {why}; {end}")]));
    }
    let twice = "[{interface: eth1, remoteasn: 1}, {interface: eth1, remoteasn: 2}]";
    let (peers, warnings) = parsed(&[(NODE_PEERS, twice)]);
    assert_eq!(peers, ["eth1 AS1"]);
    assert_eq!(warnings, ["kube-router.io/peers: peer 2: eth1 stands there twice; the first one counts"]);
}

#[test]
fn the_older_lists_may_have_blanks_where_something_is_absent() {
    let (peers, warnings) = parsed(&[
        (NODE_PEER_IPS, "203.0.113.1, 203.0.113.2"),
        (NODE_PEER_ASNS, "65001,0xFDEA"),
        (NODE_PEER_PORTS, ",1179"),
        (NODE_PEER_PASSWORDS, "cGFzcw==,"),
        (NODE_PEER_LOCAL_IPS, " ,192.0.2.1"),
    ]);
    assert_eq!(peers, ["203.0.113.1 AS65001 key pass", "203.0.113.2:1179 AS65002 from 192.0.2.1"]);
    assert_eq!(warnings, NOTHING);
    let (peers, warnings) = parsed(&[(NODE_PEER_IPS, "203.0.113.1"), (NODE_PEER_ASNS, "1"), (NODE_PEER_PORTS, "")]);
    assert_eq!((peers.len(), warnings.len()), (1, 0));
}

#[test]
fn one_peer_that_makes_no_sense_leaves_the_others() {
    let good = "- {remoteip: 203.0.113.1, remoteasn: 65001}\n";
    for (odd, why) in [
        ("{remoteasn: 65001}", "remoteip is absent"),
        ("{remoteip: 203.0.113.2}", "remoteasn is absent"),
        ("{remoteip: 203.0.113.256, remoteasn: 65001}", "\"203.0.113.256\" is not an address of a neighbour"),
        ("{remoteip: 0.0.0.0, remoteasn: 65001}", "\"0.0.0.0\" is not an address of a neighbour"),
        (
            "{remoteip: 203.0.113.2, remoteasn: 23456}",
            "the AS number \"23456\" is not in 1-23455, 23457-63999, 64512-65534 or 131072-4294967294",
        ),
        ("{remoteip: 203.0.113.2, remoteasn: 65001, port: 65536}", "the port \"65536\" is not in 1-65535"),
        ("{remoteip: 203.0.113.2, remoteasn: 65001, localip: x}", "localip \"x\" is not an address of a host"),
        (
            "{remoteip: 203.0.113.2, remoteasn: 65001, localip: '2001:db8::1'}",
            "localip 2001:db8::1 is not of the family of 203.0.113.2",
        ),
        ("{remoteip: 203.0.113.2, remoteasn: 65001, password: secret!}", "its password, of length 7, is not base64"),
        ("{remoteip: 203.0.113.2, remoteasn: [1]}", "remoteasn is neither a text nor a number"),
        ("nonsense", "it is not a mapping"),
    ] {
        let (peers, unread, warnings) = parsed_in_full(&[(NODE_PEERS, &format!("{good}- {odd}\n"))]);
        assert_eq!(peers, ["203.0.113.1 AS65001"], "{odd}");
        let is_known = odd.contains("remoteip: 203.0.113.2,") || odd.contains("remoteip: 203.0.113.2}");
        let (end, which) = if is_known { (LAST_PEER, "203.0.113.2@1") } else { (LAST_LIST, "list") };
        assert_eq!(unread, [which], "{odd}");
        assert_eq!(warnings, [format!("kube-router.io/peers: peer 2: {why}; {end}")]);
    }
    let (peers, warnings) = parsed(&[(NODE_PEERS, &good.repeat(2))]);
    assert_eq!(peers.len(), 1);
    let twice = "kube-router.io/peers: peer 2: 203.0.113.1 stands there twice; the first one counts";
    assert_eq!(warnings, [twice]);
}

#[test]
fn a_peer_whose_path_is_watched_has_its_own_times() {
    let with =
        |bfd: &str| parsed(&[(NODE_PEERS, &format!("[{{remoteip: 203.0.113.1, remoteasn: 65001, bfd: {bfd}}}]"))]);
    for (bfd, expected) in [
        ("{enabled: true}", " bfd 3784 3 1000 1000"),
        ("{enabled: true, port: 4784, desired_min_tx_interval: 300}", " bfd 4784 3 300 1000"),
        ("{enabled: true, detection_multiplier: '5', required_min_rx_interval: 4294967}", " bfd 3784 5 1000 4294967"),
        ("{enabled: false, port: 1}", ""),
        ("{}", ""),
        ("", ""),
    ] {
        assert_eq!(with(bfd), (vec![format!("203.0.113.1 AS65001{expected}")], vec![]), "{bfd}");
    }
    for (bfd, why) in [
        ("true", "bfd is not a mapping"),
        ("{enabled: maybe}", "enabled of bfd is neither true nor false"),
        ("{enabled: true, port: 0}", "port of bfd is not in 1-65535"),
        ("{detection_multiplier: 256}", "detection_multiplier of bfd is not in 1-255"),
        ("{enabled: true, desired_min_tx_interval: 4294968}", "desired_min_tx_interval of bfd is not in 1-4294967"),
        ("{enabled: true, required_min_rx_interval: -1}", "required_min_rx_interval of bfd is not in 1-4294967"),
    ] {
        let warning = format!("kube-router.io/peers: peer 1: {why}; {LAST_PEER}");
        assert_eq!(with(bfd), (vec![], vec![warning]), "{bfd}");
    }
}

#[test]
fn what_is_no_list_is_unread_and_not_quoted_and_one_without_peers_is_read() {
    for text in ["remoteip: 203.0.113.1", "- {password: 'hush", "{", "- &a [*a]", "hush"] {
        let (peers, unread, warnings) = parsed_in_full(&[(NODE_PEERS, text)]);
        assert_eq!(peers, NOTHING, "{text}");
        assert_eq!((unread, warnings.len()), (vec!["list".to_owned()], 1), "{text}: {warnings:?}");
        assert!(!warnings[0].contains("hush"), "{warnings:?}");
    }
    for text in ["", " \n", "[]", "~", "null", "# - {remoteip: 203.0.113.1, remoteasn: 65001}\n"] {
        assert_eq!(parsed_in_full(&[(NODE_PEERS, text)]), (vec![], vec![], vec![]), "{text}");
    }
}

#[test]
fn lists_that_do_not_match_make_no_peers() {
    let base = [(NODE_PEER_IPS, "203.0.113.1,203.0.113.2"), (NODE_PEER_ASNS, "65001,65002")];
    for (key, value) in [
        (NODE_PEER_ASNS, "65001"),
        (NODE_PEER_PORTS, "179"),
        (NODE_PEER_PASSWORDS, "cGFzcw=="),
        (NODE_PEER_LOCAL_IPS, "192.0.2.1,,"),
    ] {
        let with: Vec<_> = base.iter().copied().filter(|(k, _)| *k != key).chain([(key, value)]).collect();
        let (peers, unread, warnings) = parsed_in_full(&with);
        assert_eq!((peers.len(), unread, warnings.len()), (0, vec!["list".to_owned()], 1), "{key}: {warnings:?}");
        assert!(warnings[0].ends_with(LAST_LIST), "{warnings:?}");
    }
    let (peers, unread, warnings) =
        parsed_in_full(&[(NODE_PEER_IPS, "203.0.113.1,x"), (NODE_PEER_ASNS, "65001,65002")]);
    assert_eq!((peers.len(), unread, warnings.len()), (1, vec!["list".to_owned()], 1), "nobody knows whom x is about");
    let broken = [
        (NODE_PEER_IPS, "203.0.113.1,2001:db8::1"),
        (NODE_PEER_ASNS, "65001,65002"),
        (NODE_PEER_PASSWORDS, "cGFzcw=,"),
    ];
    let (peers, unread, warnings) = parsed_in_full(&broken);
    assert_eq!((peers, unread), (vec!["2001:db8::1 AS65002".to_owned()], vec!["203.0.113.1@0".to_owned()]));
    let why = "peer 1: its password, of length 7, is not base64";
    assert_eq!(warnings, [format!("kube-router.io/peer.ips: {why}; {LAST_PEER}")]);
}

#[test]
fn without_addresses_the_older_lists_name_nobody_and_without_systems_they_are_half_of_a_change() {
    let (addresses, asns) = ((NODE_PEER_IPS, "203.0.113.1"), (NODE_PEER_ASNS, "65001"));
    let (peers, unread, warnings) = parsed_in_full(&[addresses]);
    assert_eq!((peers.len(), unread), (0, vec!["list".to_owned()]));
    assert_eq!(warnings, [format!("kube-router.io/peer.ips: kube-router.io/peer.asns is absent; {LAST_LIST}")]);
    for gone in [vec![asns], vec![(NODE_PEER_IPS, ""), asns]] {
        let (peers, unread, warnings) = parsed_in_full(&gone);
        assert_eq!((peers.len(), unread, warnings.len()), (0, vec![], 1), "{warnings:?}");
        assert!(
            warnings[0].ends_with("kube-router.io/peer.ips is absent; there are no external peers"),
            "{warnings:?}"
        );
    }
    let rest = [(NODE_PEER_PORTS, "179,179"), (NODE_PEER_PASSWORDS, "cGFzcw=="), (NODE_PEER_ASNS, "")];
    assert_eq!(parsed_in_full(&rest), (vec![], vec![], vec![]), "what is left of a deletion");
}

#[test]
fn a_peer_that_can_be_read_elsewhere_in_the_list_is_not_unread() {
    let bad = "- {remoteip: 203.0.113.1, remoteasn: 65001, password: secret!}\n";
    let good = "- {remoteip: 203.0.113.1, remoteasn: 65001}\n- {remoteip: 2001:db8::1, remoteasn: 65002}\n";
    let (peers, unread, _) = parsed_in_full(&[(NODE_PEERS, &format!("{bad}{good}"))]);
    assert_eq!((peers.len(), unread), (2, vec![]));
    let eth1 = "- {interface: eth1, remoteasn: none}\n";
    let (peers, unread, _) = parsed_in_full(&[(NODE_PEERS, &format!("{good}{eth1}"))]);
    assert_eq!((peers.len(), unread), (2, vec!["eth1@2".to_owned()]));
}

#[test]
fn a_peer_has_settings_of_its_own() {
    let with = |more: &str| {
        let annotations =
            BTreeMap::from([(NODE_PEERS.to_owned(), format!("[{{remoteip: 203.0.113.1, remoteasn: 65001, {more}}}]"))]);
        let mut warnings = Warnings::default();
        let (peers, _) = peers(&annotations, &mut warnings);
        (peers, warnings.take().into_iter().map(|warning| warning.text).collect::<Vec<_>>())
    };
    let plain = ExternalPeer::new("203.0.113.1".parse().unwrap(), 65001);
    let limits = |v4, v6| PerFamily { v4, v6 };
    for (more, expected) in [
        ("holdtime: 9", ExternalPeer { hold_time: Some(9), ..plain.clone() }),
        ("holdtime: '65535'", ExternalPeer { hold_time: Some(65535), ..plain.clone() }),
        ("multihop: 4", ExternalPeer { distance: Distance::Multihop(4), ..plain.clone() }),
        ("ttlsecurity: 254", ExternalPeer { distance: Distance::Secured(254), ..plain.clone() }),
        ("maxprefixes: 100", ExternalPeer { prefix_limits: limits(Some(100), Some(100)), ..plain.clone() }),
        ("maxprefixes: {ipv6: 7}", ExternalPeer { prefix_limits: limits(None, Some(7)), ..plain.clone() }),
        ("llgrtime: 16777215", ExternalPeer { long_lived: Some(16_777_215), ..plain.clone() }),
        ("llgrtime: 0", ExternalPeer { long_lived: Some(0), ..plain.clone() }),
        ("nexthopself: false", ExternalPeer { next_hop_self: Some(false), ..plain.clone() }),
        ("passwordfile: tor.key", ExternalPeer { password: Password::File("tor.key".into()), ..plain.clone() }),
        ("passwordfile: null, holdtime: null", plain.clone()),
    ] {
        assert_eq!(with(more), (vec![expected], vec![]), "{more}");
    }
    for (more, why) in [
        ("holdtime: 2", "holdtime is not in 3-65535"),
        ("holdtime: 30s", "holdtime is not in 3-65535"),
        ("multihop: 0", "multihop is not in 1-255"),
        ("ttlsecurity: 255", "ttlsecurity is not in 1-254"),
        ("ttlsecurity: true", "ttlsecurity is not in 1-254"),
        ("multihop: 2, ttlsecurity: 1", "multihop and ttlsecurity exclude each other"),
        ("maxprefixes: 0", "maxprefixes is not in 1-4294967295"),
        ("maxprefixes: {ipv4: -1}", "maxprefixes: ipv4 is not in 1-4294967295"),
        ("maxprefixes: {v4: 1}", "maxprefixes has v4, and not ipv4 or ipv6"),
        ("llgrtime: 16777216", "llgrtime is not in 0-16777215"),
        ("nexthopself: maybe", "nexthopself is neither true nor false"),
        ("passwordfile: 7", "passwordfile is not a text"),
        ("password: cGFzcw==, passwordfile: tor", "password and passwordfile exclude each other"),
        ("ttlSecurity: 1", "ttlSecurity must be written as ttlsecurity"),
        ("password_file: tor", "password_file must be written as passwordfile"),
        ("Password: cGFzcw==", "Password must be written as password"),
    ] {
        assert_eq!(with(more), (vec![], vec![format!("peer 1: {why}; {LAST_PEER}")]), "{more}");
    }
    let escapes = ["../../etc/shadow", "/etc/shadow", "a/b", "..", ".", "..data", "", ".hidden"];
    for name in escapes {
        let why = "passwordfile is not the name of a file: it has neither / nor a dot at its beginning";
        assert_eq!(with(&format!("passwordfile: '{name}'")).1, [format!("peer 1: {why}; {LAST_PEER}")], "{name}");
    }
}

#[test]
fn a_key_that_nobody_knows_is_named_and_the_peer_stays() {
    let with = |more: &str| parsed(&[(NODE_PEERS, &format!("[{{remoteip: 203.0.113.1, remoteasn: 65001, {more}}}]"))]);
    for (more, named) in [
        ("more: 1", "more"),
        ("localIP: 192.0.2.1", "localIP"),
        ("bfd: {enabled: false, multiplier: 5}", "multiplier of bfd"),
        ("password:hush: null", "a key of length 13"),
        ("password, c2VjcmV0", "a key of length 8"),
        ("bfd: {enabled: false, c2VjcmV0}", "a key of length 8 of bfd"),
    ] {
        let warning = format!("kube-router.io/peers: peer 1: {named} is not known; it is ignored");
        assert_eq!(with(more), (vec!["203.0.113.1 AS65001".to_owned()], vec![warning]), "{more}");
    }
}
