use std::net::Ipv4Addr;
use std::time::Duration;

use super::*;
use crate::net::{Bfd, RemoteAs};
use crate::router::given::{address, config, host, node};

const BOTH: PerFamily<bool> = PerFamily { v4: true, v6: true };

fn peer(text: &str, asn: u32) -> ExternalPeer {
    ExternalPeer::new(address(text), asn)
}

fn peer_with(peer: &ExternalPeer, own: &str, words: &[&str]) -> Result<WantedNeighbour, String> {
    let config = config(words);
    let own = Identity::new(&host("192.0.2.1/24"), Some(&node(own, "")), &config, BOTH);
    let local = Local { asn: 64512, identifier: Ipv4Addr::new(192, 0, 2, 1) };
    let located = located(peer, &Standings::new()).map_err(|problem| problem.text)?;
    let password = known(&peer.password, &config)?;
    peering(located, password, &own, &config, local).map_err(|problem| problem.text)
}

const DUAL: &str = "192.0.2.1 2001:db8::1";

#[test]
fn an_external_peer_is_one_hop_away_at_the_port_of_bgp() {
    let wanted = peer_with(&peer("203.0.113.1", 65001), DUAL, &["--bgp-port=1179"]).expect("a session");
    assert_eq!((wanted.transport.port, wanted.transport.time_to_live), (179, TimeToLive::Hops(1)));
    assert_eq!(wanted.transport.local, Some(address("192.0.2.1")));
    assert_eq!((wanted.settings.asn, wanted.settings.hold_time), (Some(65001), 90));
    assert_eq!(wanted.settings.families, BOTH, "by what the node has");
}

#[test]
fn external_peers_do_not_keep_routes_of_a_node_that_fell_silent_unless_that_is_asked_for() {
    let restart =
        |words: &[&str]| peer_with(&peer("203.0.113.1", 65001), DUAL, words).expect("a session").settings.restart;
    assert_eq!(restart(&[]), None);
    let graceful = restart(&["--bgp-graceful-restart"]).expect("it is on");
    assert!(!graceful.notifications, "RFC 8538 is about more than restarts");
    let asked = restart(&["--bgp-graceful-restart", "--bgp-graceful-restart-notification"]).expect("it is on");
    assert!(asked.notifications);
}

#[test]
fn hops_hold_time_and_port_are_as_they_are_configured() {
    let words = ["--peer-router-multihop-ttl=4", "--bgp-holdtime=9s"];
    let one = ExternalPeer { port: Some(1179), ..peer("203.0.113.1", 65001) };
    let wanted = peer_with(&one, DUAL, &words).expect("a session");
    assert_eq!((wanted.transport.port, wanted.transport.time_to_live), (1179, TimeToLive::Hops(4)));
    assert_eq!(wanted.settings.hold_time, 9);
    let internal = peer_with(&peer("203.0.113.1", 64512), DUAL, &words).expect("a session");
    assert_eq!(internal.transport.time_to_live, TimeToLive::System, "inside of our system it may be anywhere");
}

#[test]
fn a_session_starts_at_our_address_of_the_peers_family_or_at_the_named_one() {
    let to = |peer: &ExternalPeer| peer_with(peer, DUAL, &[]).map(|wanted| (wanted.transport.local, wanted.own));
    let v6 = to(&peer("2001:db8:113::1", 65001)).expect("a session");
    assert_eq!(v6.0, Some(address("2001:db8::1")));
    let named = ExternalPeer { local: Some(address("192.0.2.77")), ..peer("203.0.113.1", 65001) };
    let (local, own) = to(&named).expect("a session");
    assert_eq!(local, Some(address("192.0.2.77")));
    assert_eq!(own, PerFamily { v4: Some(address("192.0.2.77")), v6: Some(address("2001:db8::1")) });
}

#[test]
fn a_peer_that_cannot_be_one_says_why_and_leaves_the_others() {
    let why = |peer: ExternalPeer, own: &str| peer_with(&peer, own, &[]).expect_err("there is no session");
    let no_v6 = why(peer("2001:db8:113::1", 65001), "192.0.2.1");
    assert_eq!(no_v6, "this node has no IPv6 address to reach it from; there is no session");
    assert_eq!(why(peer("192.0.2.1", 65001), DUAL), "it is an address of this node; there is no session");
    let unknown = ExternalPeer { password: Password::Unknown, ..peer("203.0.113.1", 65001) };
    assert_eq!(why(unknown, DUAL), "its password is not known (yet); there is no session");
}

#[test]
fn a_password_goes_into_the_transport_and_shows_nowhere() {
    let secret = Secret::from_base64("cGFzcw==").expect("base64").expect("a secret");
    let one = ExternalPeer { password: Password::Key(secret), ..peer("203.0.113.1", 65001) };
    let wanted = peer_with(&one, DUAL, &[]).expect("a session");
    assert_eq!(wanted.transport.password, transport::Password::new("pass").ok());
    assert!(!format!("{wanted:?} {one:?}").contains("pass\""));
}

#[test]
fn those_of_flags_come_before_those_of_annotations() {
    let flags = ["--peer-router-ips=203.0.113.1", "--peer-router-asns=65001"];
    let own = Identity {
        routing: crate::model::Routing { peers: vec![peer("203.0.113.2", 65002)], ..Default::default() },
        ..Identity::default()
    };
    let of = |words: &[&str]| external_peers(&config(words), &own).iter().map(|peer| peer.asn).collect::<Vec<_>>();
    assert_eq!((of(&flags), of(&[])), (vec![RemoteAs::Number(65001)], vec![RemoteAs::Number(65002)]));
}

#[test]
fn a_file_of_passwords_has_one_for_each_peer_and_a_bad_one_stops_only_its_own() {
    let read = |text: &str, peers| {
        let peers: Vec<ExternalPeer> = (1..=peers).map(|number| peer(&format!("203.0.113.{number}"), 65001)).collect();
        let (passwords, sentences) = passwords(text, &peers);
        let shown = passwords.iter().map(|password| match password {
            Password::None => "-".to_owned(),
            Password::Key(secret) => String::from_utf8_lossy(secret.key()).into_owned(),
            Password::File(_) | Password::Unknown => "?".to_owned(),
        });
        (shown.collect::<Vec<_>>().join(" "), sentences)
    };
    assert_eq!(read("cGFzcw==,\n", 2), ("pass -".to_owned(), vec![]));
    assert_eq!(read("cGFzcw==, cGFzcw==\n", 2), ("pass pass".to_owned(), vec![]));
    let (shown, sentences) = read("secret!,cGFzcw==", 2);
    assert_eq!(shown, "? pass");
    assert_eq!(sentences, ["password 1 of the file, of length 7, is not base64"]);
    let (shown, sentences) = read("cGFzcw==", 2);
    assert_eq!((shown.as_str(), sentences.len()), ("? ?", 1));
    assert!(!sentences[0].contains("cGFz"));
}

#[test]
fn peers_behind_interfaces_have_no_passwords_in_the_file_and_take_none_from_the_others() {
    let addresses = ["--peer-router-ips=203.0.113.1,203.0.113.2", "--peer-router-asns=65001,65002"];
    let words = [&addresses[..], &["--peer-router-interfaces=eth1", "--peer-router-passwords-file=/p"]].concat();
    let peers = config(&words).peers;
    let (read, sentences) = passwords("cGFzcw==,cGFzcw==", &peers);
    assert_eq!((peers.len(), sentences), (3, vec![]));
    assert!(read.len() == 2 && read.iter().all(|password| matches!(password, Password::Key(_))), "{}", read.len());
}

#[test]
fn the_path_to_a_peer_is_watched_as_far_as_the_peer_may_be() {
    let with = |bfd: Option<Bfd>, words: &[&str]| {
        let wanted = peer_with(&ExternalPeer { bfd, ..peer("203.0.113.1", 65001) }, DUAL, words).expect("a session");
        wanted.liveness.map(|liveness| (liveness.path, liveness.wanted.port, liveness.wanted.settings))
    };
    let bfd = Bfd { multiplier: 5, send: 300, receive: 200, ..Bfd::default() };
    let times =
        crate::bfd::Settings { multiplier: 5, send: Duration::from_millis(300), receive: Duration::from_millis(200) };
    let multihop = ["--peer-router-multihop-ttl=4"];
    assert_eq!(with(None, &multihop), None);
    assert_eq!(with(Some(bfd), &[]), Some((Path::SingleHop, 3784, times)));
    assert_eq!(with(Some(bfd), &multihop), Some((Path::Multihop, 4784, times)));
    assert_eq!(with(Some(Bfd { port: 1234, ..bfd }), &multihop), Some((Path::Multihop, 1234, times)));
}

#[test]
fn the_kind_of_a_bfd_session_is_that_of_the_distance_of_its_peer() {
    let path = |text: &str, asn: u32, port: u16, words: &[&str]| {
        let bfd = Some(Bfd { port, ..Bfd::default() });
        let wanted = peer_with(&ExternalPeer { bfd, ..peer(text, asn) }, DUAL, words).expect("a session");
        let liveness = wanted.liveness.expect("it is watched");
        (liveness.path, liveness.wanted.port)
    };
    let multihop = ["--peer-router-multihop-ttl=4"];
    for words in [&[][..], &multihop] {
        let near = path("192.0.2.254", 64512, Bfd::PORT, words);
        assert_eq!(near, (Path::SingleHop, 3784), "in our AS, on our link: {words:?}");
        let far = path("203.0.113.1", 64512, Bfd::PORT, words);
        assert_eq!(far, (Path::Multihop, 4784), "in our AS, behind a router: {words:?}");
        for asn in [64512, 65001] {
            let by_port = path("192.0.2.254", asn, 4784, words);
            assert_eq!(by_port, (Path::Multihop, 4784), "the port says so: {words:?}");
        }
    }
    assert_eq!(path("192.0.2.254", 65001, Bfd::PORT, &multihop), (Path::Multihop, 4784), "as the flag says");
}

#[test]
fn what_the_annotation_says_of_a_peer_precedes_the_flags() {
    let words = ["--peer-router-multihop-ttl=4", "--bgp-holdtime=60s"];
    let with = |change: fn(&mut ExternalPeer)| {
        let mut one = peer("203.0.113.1", 65001);
        change(&mut one);
        peer_with(&one, DUAL, &words).expect("a session")
    };
    let plain = with(|_| {});
    assert_eq!((plain.settings.hold_time, plain.transport.time_to_live), (60, TimeToLive::Hops(4)));
    assert_eq!((plain.most.v4, plain.next_hops), (Some(MOST), NextHops::Usual));
    assert_eq!(with(|one| one.hold_time = Some(9)).settings.hold_time, 9);
    let near = with(|one| one.distance = Distance::Multihop(2));
    assert_eq!(near.transport.time_to_live, TimeToLive::Hops(2));
    let secured = with(|one| one.distance = Distance::Secured(1));
    assert_eq!(secured.transport.time_to_live, TimeToLive::Secured { hops: 1 });
    let limited = with(|one| one.prefix_limits.v6 = Some(7));
    assert_eq!(limited.most, PerFamily { v4: Some(MOST), v6: Some(7) });
    assert_eq!(with(|one| one.next_hop_self = Some(false)).next_hops, NextHops::Kept);
    assert_eq!(with(|one| one.next_hop_self = Some(true)).next_hops, NextHops::Usual, "by policy");
    let inside = ExternalPeer { distance: Distance::Secured(2), ..peer("203.0.113.1", 64512) };
    let inside = peer_with(&inside, DUAL, &words).expect("a session");
    assert_eq!(inside.transport.time_to_live, TimeToLive::Secured { hops: 2 }, "in our system as well");
}

#[test]
fn the_distance_of_one_peer_is_also_that_of_its_bfd_session() {
    let path = |distance| {
        let one = ExternalPeer { distance, bfd: Some(Bfd::default()), ..peer("203.0.113.1", 65001) };
        peer_with(&one, DUAL, &[]).expect("a session").liveness.expect("it is watched").path
    };
    assert_eq!(path(Distance::Usual), Path::SingleHop);
    assert_eq!((path(Distance::Secured(1)), path(Distance::Secured(2))), (Path::SingleHop, Path::Multihop));
    assert_eq!((path(Distance::Multihop(1)), path(Distance::Multihop(2))), (Path::SingleHop, Path::Multihop));
}

#[test]
fn a_file_with_a_password_is_in_the_directory_of_the_flag_or_nowhere() {
    let one = ExternalPeer { password: Password::File("tor".into()), ..peer("203.0.113.1", 65001) };
    let why = |words: &[&str]| peer_with(&one, DUAL, words).expect_err("there is no session");
    let text = "passwordfile needs --peer-router-passwords-dir, the directory of such files; there is no session";
    assert_eq!(why(&[]), text);
    let dir = ["--peer-router-passwords-dir=/etc/peers"];
    assert_eq!(why(&dir), "its password is not known (yet); there is no session");
}

#[test]
fn routes_are_kept_for_longer_where_the_flag_or_the_peer_says_so() {
    let time = |long_lived: Option<u32>, words: &[&str]| {
        let one = ExternalPeer { long_lived, ..peer("203.0.113.1", 65001) };
        peer_with(&one, DUAL, words).expect("a session").settings.restart.map(|restart| restart.long_lived)
    };
    let on = ["--bgp-graceful-restart", "--bgp-llgr-time=1h"];
    assert_eq!((time(None, &on), time(Some(60), &on), time(Some(0), &on)), (Some(3600), Some(60), Some(0)));
    assert_eq!((time(None, &on[..1]), time(Some(60), &on[..1]), time(Some(60), &[])), (Some(0), Some(60), None));
    let idle = |long_lived, words: &[&str]| {
        let one = ExternalPeer { long_lived, ..peer("203.0.113.1", 65001) };
        idle_setting(&one, &config(words)).map(|problem| problem.to_string())
    };
    let sentence = "external peer 203.0.113.1: llgrtime goes on where graceful restart ends, so it needs --bgp-graceful-restart; \
                    it has no effect";
    assert_eq!(idle(Some(60), &[]).as_deref(), Some(sentence));
    assert!(idle(Some(60), &on).is_none() && idle(Some(0), &[]).is_none() && idle(None, &[]).is_none());
}
