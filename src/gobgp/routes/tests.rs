#![allow(clippy::indexing_slicing, reason = "a test that panics has failed, which is how a test says so")]

use std::time::Instant;

use super::*;
use crate::bgp::policy::{Decision, Policy};
use crate::bgp::rib::{Bounds, Own, Policies, Rules};
use crate::bgp::session::Moment;
use crate::bgp::speaker::Order;
use crate::net::PerFamily;

/// Builds a speaker without neighbours that originates these prefixes.
pub fn speaker(announced: &[&str]) -> Speaker {
    let now = Instant::now();
    let identifier = Ipv4Addr::new(192, 0, 2, 1);
    let accept = || Arc::new(Policy::all(Decision::Accept));
    let rules = Rules {
        own: Own { asn: 65001, identifier, cluster: identifier },
        policies: Policies { import: accept(), export: accept() },
        addresses: [IpAddr::V4(identifier)].into(),
        sharing: 1,
        held: PerFamily::default(),
        bounds: Bounds::default(),
        seed: 1,
    };
    let mut speaker = Speaker::new(rules, None, now);
    let attributes = Box::new(Attributes::local(IpAddr::V4(identifier)));
    let originate = |text: &&str| Order::Originate(text.parse().unwrap(), attributes.clone());
    speaker.orders(Moment { now, jitter: 0 }, announced.iter().map(originate));
    speaker
}

const ANNOUNCED: [&str; 7] = [
    "10.0.0.0/8",
    "10.244.0.0/16",
    "10.244.1.0/24",
    "10.244.1.128/25",
    "10.244.2.0/24",
    "203.0.113.0/24",
    "fd00:10:244:1::/64",
];

/// Prefixes of an answer, requested in portions of `most`.
fn found(lookup: Lookup, family: Family, most: usize) -> Vec<String> {
    let mut speaker = speaker(&ANNOUNCED);
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let portion = portion(&mut speaker, Query { which: Which::Global, family, lookup }, after, most);
        all.extend(portion.rows.iter().map(|row| row.prefix.to_string()));
        match portion.next {
            Some(next) => after = Some(next),
            None => return all,
        }
    }
}

#[test]
fn a_request_asks_for_everything_or_for_a_bounded_number_of_prefixes() {
    let all = |count| {
        let wanted = TableLookupPrefix { prefix: "10.0.0.0/8".to_owned(), r#type: 0 };
        Lookup::all(Version::V3, &vec![wanted; count]).map(|lookups| lookups.len())
    };
    assert_eq!(Lookup::all(Version::V3, &[]), Ok(vec![Lookup::All]));
    assert_eq!((all(1), all(PREFIXES)), (Ok(1), Ok(PREFIXES)));
    assert!(all(PREFIXES + 1).is_err());
}

fn read(text: &str, place: i32) -> Lookup {
    let wanted = TableLookupPrefix { prefix: text.to_owned(), r#type: place };
    Lookup::read(Version::V3, &wanted).unwrap()
}

#[test]
fn an_answer_in_portions_is_the_whole_answer() {
    for most in [1, 2, 3, 7, 100] {
        assert_eq!(found(Lookup::All, Family::V4, most), ANNOUNCED[..6]);
        assert_eq!(found(Lookup::All, Family::V6, most), ANNOUNCED[6..]);
        assert_eq!(found(read("10.244.0.0/16", 1), Family::V4, most), ANNOUNCED[1..5]);
        assert_eq!(found(read("10.240.0.0/12", 1), Family::V4, most), ANNOUNCED[1..5], "though it is not there itself");
    }
}

#[test]
fn a_prefix_is_itself_what_is_inside_or_what_is_around() {
    let of = |text, place| found(read(text, place), Family::V4, 100);
    assert_eq!(of("10.244.1.0/24", 0), ["10.244.1.0/24"]);
    assert_eq!(of("10.244.3.0/24", 0), Vec::<String>::new());
    assert_eq!(of("10.244.1.130", 0), ["10.244.1.128/25"], "the longest around an address");
    assert_eq!(of("10.9.9.9", 0), ["10.0.0.0/8"]);
    assert_eq!(of("10.244.1.0/24", 1), ["10.244.1.0/24", "10.244.1.128/25"]);
    assert_eq!(of("10.244.1.0/24", 2), ["10.0.0.0/8", "10.244.0.0/16", "10.244.1.0/24"]);
    assert_eq!(of("192.0.2.1", 0), Vec::<String>::new());
}

#[test]
fn what_is_no_prefix_is_refused_and_host_bits_do_not_count() {
    let wanted = |prefix: &str, place| TableLookupPrefix { prefix: prefix.to_owned(), r#type: place };
    assert_eq!(Lookup::read(Version::V3, &wanted("here", 0)), Err("\"here\" is no prefix and no address".to_owned()));
    assert!(Lookup::read(Version::V3, &wanted("10.0.0.0/8", 7)).is_err());
    assert_eq!(read("10.244.1.9/24", 0), read("10.244.1.0/24", 0));
    // A client of 4.x omits the type for an exact match.
    assert_eq!(Lookup::read(Version::V4, &wanted("10.244.1.0/24", 0)), Ok(read("10.244.1.0/24", 0)));
    assert_eq!(Lookup::read(Version::V4, &wanted("10.244.1.0/24", 2)), Ok(read("10.244.1.0/24", 1)));
}

#[test]
fn a_route_of_our_own_comes_from_nobody_as_each_version_says_it() {
    let row = row(&mut speaker(&ANNOUNCED), Which::Global, "10.244.1.0/24".parse().unwrap()).unwrap();
    let clock = Clock { now: Instant::now(), since_1970: Duration::from_secs(1000) };
    let three = destination(Version::V3, clock, &row, false);
    assert_eq!((three.prefix.as_str(), three.paths.len()), ("10.244.1.0/24", 1));
    let path = &three.paths[0];
    assert!(path.best && !path.filtered && !path.stale);
    assert_eq!((path.neighbor_ip.as_str(), path.source_id.as_str(), path.source_asn), ("<nil>", "<nil>", 65001));
    assert_eq!(path.age.unwrap().seconds, 1000);
    let four = destination(Version::V4, clock, &row, false);
    assert_eq!(four.paths[0].neighbor_ip, "");
}

#[test]
fn a_table_is_as_large_as_the_routes_in_it() {
    let speaker = speaker(&ANNOUNCED);
    assert_eq!(sizes(&speaker, Which::Global, Family::V4), Sizes { prefixes: 6, routes: 6, used: 0 });
    let nobody = Which::In("192.0.2.9".parse().unwrap());
    assert_eq!(sizes(&speaker, nobody, Family::V4), Sizes::default());
}
