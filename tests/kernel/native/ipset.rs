//! Sets and their elements in the real kernel: written by us and read with `ipset`, and the reverse.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use sluice::kernel::Name;
use sluice::kernel::ipset::{ElementKey, Elements, Entry, IpPortNet, Ipset, SetKind, SetName, SetSpec, Sets};
use sluice::net::{Family, Protocol};
use sluice::reconcile::{Drift, Glance, Growth, Mirror, Reflection, Target};

use super::moment;
use crate::namespace::{attempt, in_new, run};

const TEMPORARY: &str = "sluice-test-temporary";

fn name(text: &str) -> SetName {
    SetName(text.into())
}

fn spec(kind: SetKind, family: Family) -> SetSpec {
    SetSpec { kind, family, max_elements: 65_536, timeout: true }
}

fn ours() -> Vec<Name> {
    vec![
        Name::Exact("kube-router-svip".into()),
        Name::Prefix("inet6:kube-router-".into()),
        Name::Prefix("KUBE-".into()),
    ]
}

fn sets() -> Mirror<Sets> {
    Mirror::new(Sets::open(ours(), name(TEMPORARY)).expect("a socket"))
}

fn elements() -> Mirror<Elements> {
    Mirror::new(Elements::open(ours()).expect("a socket"))
}

fn ip(text: &str) -> Entry {
    Entry::Ip(text.parse().expect("an address"))
}

fn port(text: &str, protocol: Protocol, port: u16) -> Entry {
    Entry::IpPort(text.parse().expect("an address"), protocol, port)
}

fn net(text: &str) -> Entry {
    Entry::Net(text.parse::<IpNet>().expect("a prefix"))
}

fn client(address: &str, protocol: Protocol, range: &str) -> Entry {
    let (address, range) = (address.parse().expect("an address"), range.parse().expect("a prefix"));
    Entry::IpPortNet(Box::new(IpPortNet { address, protocol, port: 80, range }))
}

fn keys(set: &str, entries: impl IntoIterator<Item = Entry>) -> BTreeMap<ElementKey, ()> {
    entries.into_iter().map(|entry| (ElementKey { set: name(set), entry }, ())).collect()
}

fn settle<T: sluice::reconcile::Target>(mirror: &mut Mirror<T>, want: &BTreeMap<T::Key, T::Value>) {
    mirror.mark_all();
    mirror.grow(want, Growth::Full, moment());
    mirror.shrink(want, moment());
    assert!(mirror.is_settled(), "{:?}", mirror.trouble());
}

/// Header and elements of `ipset save`, without the random `initval`.
fn saved(set: &str) -> (String, BTreeSet<String>) {
    let text = run(&format!("ipset save {set}"));
    let mut lines = text.lines();
    let create = lines.next().expect("the line that makes the set");
    let create = create.split(" initval").next().unwrap_or(create).to_owned();
    (create, lines.map(str::to_owned).collect())
}

#[test]
fn sets_are_made_as_kube_router_makes_them() {
    in_new(|| {
        let want = BTreeMap::from([
            (name("kube-router-svip"), spec(SetKind::HashIp, Family::V4)),
            (name("inet6:kube-router-svip"), spec(SetKind::HashIp, Family::V6)),
            (name("inet6:kube-router-svip-prt"), spec(SetKind::HashIpPort, Family::V6)),
            (name("KUBE-SRC-1"), SetSpec { timeout: false, ..spec(SetKind::HashNet, Family::V4) }),
        ]);
        settle(&mut sets(), &want);
        run("ipset create theirs hash:ip timeout 0");
        run("ipset create theirs6 hash:ip,port timeout 0 family inet6");
        let made = |set: &str| saved(set).0;
        assert_eq!(made("kube-router-svip"), made("theirs").replace("theirs", "kube-router-svip"));
        assert_eq!(
            made("inet6:kube-router-svip-prt"),
            made("theirs6").replace("theirs6", "inet6:kube-router-svip-prt")
        );
        assert!(
            made("kube-router-svip")
                .starts_with("create kube-router-svip hash:ip family inet hashsize 1024 maxelem 65536 timeout 0")
        );
        // kube-router asks for its sets like this, and is refused where they differ.
        run("ipset create -exist kube-router-svip hash:ip timeout 0");
        run("ipset create -exist inet6:kube-router-svip hash:ip timeout 0 family inet6");
        // A second process finds them as they are.
        let mut again = sets();
        settle(&mut again, &want);
        assert_eq!((again.seen(), again.steps_done()), (Some(&want), 0));
        settle(&mut again, &BTreeMap::new());
        assert_eq!(run("ipset list -n"), "theirs\ntheirs6\n");
    });
}

#[test]
fn elements_are_printed_by_ipset_as_they_are_called_here() {
    in_new(|| {
        run("ipset create kube-router-svip hash:ip timeout 0");
        run("ipset create inet6:kube-router-svip-prt hash:ip,port timeout 0 family inet6");
        run("ipset create KUBE-SRC-1 hash:net");
        let mut want = keys("kube-router-svip", [ip("10.96.0.1"), ip("10.96.0.2")]);
        want.extend(keys(
            "inet6:kube-router-svip-prt",
            Protocol::ALL.map(|protocol| port("fd00:10:96::1", protocol, 53)),
        ));
        want.extend(keys("KUBE-SRC-1", [net("10.244.0.0/16"), net("203.0.113.7/32")]));
        for (set, address, ranges) in [
            ("KUBE-CLIENTS-4", "203.0.113.20", ["198.51.100.0/24", "192.0.2.7/32"]),
            ("KUBE-CLIENTS-6", "2001:db8::20", ["2001:db8:100::/48", "2001:db8::7/128"]),
        ] {
            let family = if set.ends_with('6') { Family::V6 } else { Family::V4 };
            let kinds =
                BTreeMap::from([(name(set), SetSpec { timeout: false, ..spec(SetKind::HashIpPortNet, family) })]);
            let mut made = sets();
            made.grow(&kinds, Growth::Full, moment());
            let all =
                Protocol::ALL.into_iter().flat_map(|protocol| ranges.map(|range| client(address, protocol, range)));
            want.extend(keys(set, all));
        }
        let mut mirror = elements();
        settle(&mut mirror, &want);
        let mut again = elements();
        settle(&mut again, &want);
        assert_eq!((again.seen(), again.steps_done()), (Some(&want), 0), "a second process finds them as they are");
        let mut printed = BTreeSet::new();
        for set in ["kube-router-svip", "inet6:kube-router-svip-prt", "KUBE-SRC-1", "KUBE-CLIENTS-4", "KUBE-CLIENTS-6"]
        {
            printed.extend(saved(set).1);
        }
        let expected = want.keys().map(|key| {
            let timeout = if key.set.0.starts_with("KUBE") { "" } else { " timeout 0" };
            // A host prefix is printed as an address.
            format!("add {key}{timeout}").replace("/32", "").replace("/128", "")
        });
        assert_eq!(printed, expected.collect::<BTreeSet<String>>());
        settle(&mut mirror, &BTreeMap::new());
        for set in ["KUBE-SRC-1", "KUBE-CLIENTS-4", "KUBE-CLIENTS-6"] {
            assert!(saved(set).1.is_empty());
        }
    });
}

#[test]
fn what_ipset_wrote_is_read_and_what_ends_or_excludes_or_is_foreign_is_not() {
    in_new(|| {
        run("ipset create kube-router-svip hash:ip timeout 0");
        run("ipset add kube-router-svip 10.96.0.1");
        run("ipset add kube-router-svip 10.96.0.2 timeout 1000");
        run("ipset create KUBE-SRC-1 hash:net");
        run("ipset add KUBE-SRC-1 10.244.0.0/16");
        run("ipset add KUBE-SRC-1 10.244.1.0/24 nomatch");
        run("ipset create KUBE-DST-1 hash:ip,port");
        run("ipset add KUBE-DST-1 10.96.0.1,sctp:9000");
        run("ipset add KUBE-DST-1 10.96.0.1,udplite:9000");
        run("ipset create foreign hash:ip");
        run("ipset add foreign 10.96.0.9");
        let mut want = keys("kube-router-svip", [ip("10.96.0.1")]);
        want.extend(keys("KUBE-SRC-1", [net("10.244.0.0/16")]));
        want.extend(keys("KUBE-DST-1", [port("10.96.0.1", Protocol::Sctp, 9000)]));
        let mut mirror = elements();
        settle(&mut mirror, &want);
        assert_eq!((mirror.seen(), mirror.steps_done()), (Some(&want), 0));
        // One that ends is written over by one that does not.
        want.extend(keys("kube-router-svip", [ip("10.96.0.2")]));
        settle(&mut mirror, &want);
        assert_eq!(
            saved("kube-router-svip").1.last().map(String::as_str),
            Some("add kube-router-svip 10.96.0.2 timeout 0")
        );
    });
}

/// So many IPv4 addresses.
fn addresses(count: u32) -> BTreeMap<ElementKey, ()> {
    keys("kube-router-svip", (1..=count).map(|number| Entry::Ip(IpAddr::V4(Ipv4Addr::from(0x0a60_0000 + number)))))
}

#[test]
fn fifty_thousand_elements_go_in_and_out() {
    in_new(|| {
        run("ipset create kube-router-svip hash:ip timeout 0");
        let want = addresses(50_000);
        let mut mirror = elements();
        mirror.grow(&want, Growth::Full, moment());
        assert_eq!(mirror.steps_done(), 50_000, "{:?}", mirror.trouble());
        assert_eq!(saved("kube-router-svip").1.len(), 50_000);
        let mut again = elements();
        again.grow(&want, Growth::Full, moment());
        assert_eq!((again.seen() == Some(&want), again.steps_done()), (true, 0));
        again.mark_all();
        again.shrink(&BTreeMap::new(), moment());
        assert_eq!(again.steps_done(), 50_000, "{:?}", again.trouble());
        assert!(saved("kube-router-svip").1.is_empty());
    });
}

#[test]
fn a_glance_finds_what_somebody_took_away_and_what_somebody_added() {
    in_new(|| {
        run("ipset create kube-router-svip hash:ip timeout 0");
        let want = addresses(1500);
        let mut mirror = elements();
        settle(&mut mirror, &want);
        assert_eq!(mirror.glance(moment()), []);
        run("ipset del kube-router-svip 10.96.3.232");
        assert_eq!(mirror.glance(moment()), [Drift::Missing("kube-router-svip 10.96.3.232".into())]);
        settle(&mut mirror, &want);
        run("ipset add kube-router-svip 203.0.113.1");
        assert_eq!(mirror.glance(moment()), [Drift::Unexpected("kube-router-svip 203.0.113.1".into())]);
        settle(&mut mirror, &want);
        run("ipset flush kube-router-svip");
        assert_eq!(mirror.glance(moment()).len(), 1500);
        settle(&mut mirror, &want);
        assert_eq!(mirror.glance(moment()), []);
        assert_eq!(saved("kube-router-svip").1.len(), 1500);
    });
}

#[test]
fn a_scan_finds_an_exchanged_element_that_a_glance_does_not_see() {
    in_new(|| {
        run("ipset create kube-router-svip hash:ip timeout 0");
        let want = addresses(1500);
        let mut mirror = elements();
        settle(&mut mirror, &want);
        assert_eq!(mirror.scan(moment()), []);
        run("ipset del kube-router-svip 10.96.3.232");
        run("ipset add kube-router-svip 203.0.113.1");
        assert_eq!(mirror.glance(moment()), [], "there are as many");
        let gone = Drift::Missing("kube-router-svip 10.96.3.232".into());
        let new = Drift::Unexpected("kube-router-svip 203.0.113.1".into());
        assert_eq!(mirror.scan(moment()), [gone, new]);
        settle(&mut mirror, &want);
        assert_eq!(mirror.scan(moment()), []);
        run("ipset flush kube-router-svip");
        assert_eq!(mirror.scan(moment()).len(), 1500);
    });
}

#[test]
fn an_element_that_somebody_adds_to_an_empty_set_of_ours_is_found() {
    for family in Family::BOTH {
        in_new(|| {
            let (set, options, added) = match family {
                Family::V4 => ("kube-router-svip", "", "203.0.113.1"),
                Family::V6 => ("inet6:kube-router-svip", "family inet6", "2001:db8::1"),
            };
            run(&format!("ipset create {set} hash:ip {options} timeout 0"));
            run("ipset create foreign hash:ip timeout 0");
            run("ipset add foreign 203.0.113.1");
            let mut mirror = elements();
            settle(&mut mirror, &BTreeMap::new());
            assert_eq!((mirror.glance(moment()), mirror.scan(moment())), (Vec::new(), Vec::new()));
            run(&format!("ipset add {set} {added}"));
            assert_eq!(mirror.scan(moment()), [Drift::Unexpected(format!("{set} {added}"))]);
            settle(&mut mirror, &BTreeMap::new());
            assert!(saved(set).1.is_empty());
            run(&format!("ipset add {set} {added}"));
            assert_eq!(mirror.glance(moment()), [Drift::Unexpected(format!("{set} {added}"))]);
        });
    }
}

#[test]
fn a_glance_at_a_set_of_everything_finds_nothing() {
    in_new(|| {
        run("ipset create kube-router-svip hash:net timeout 0");
        let key =
            ElementKey { set: SetName("kube-router-svip".into()), entry: Entry::Net("0.0.0.0/0".parse().unwrap()) };
        let want = BTreeMap::from([(key, ())]);
        let mut mirror = elements();
        settle(&mut mirror, &want);
        let reads = mirror.target().glance(&want);
        assert_eq!(reads, Glance::Alike, "the kernel holds its two halves");
    });
}

#[test]
fn an_audit_in_portions_finds_what_somebody_took_away_and_what_somebody_added() {
    in_new(|| {
        run("ipset create kube-router-svip hash:ip timeout 0");
        let want = addresses(1500);
        let mut mirror = elements();
        settle(&mut mirror, &want);
        run("ipset del kube-router-svip 10.96.3.232");
        run("ipset add kube-router-svip 203.0.113.1");
        let mut drift = Vec::new();
        loop {
            let audited = mirror.audit(moment());
            drift.extend(audited.drift);
            if audited.finished {
                break;
            }
        }
        assert_eq!(
            drift,
            [
                Drift::Missing("kube-router-svip 10.96.3.232".into()),
                Drift::Unexpected("kube-router-svip 203.0.113.1".into())
            ]
        );
        settle(&mut mirror, &want);
        assert_eq!(saved("kube-router-svip").1.len(), 1500);
    });
}

#[test]
fn bad_elements_fail_alone() {
    in_new(|| {
        run("ipset create kube-router-svip hash:ip");
        let mut want = keys("kube-router-svip", (1..=250).map(|number| ip(&format!("10.96.0.{number}"))));
        let bad = [ip("fd00:10:96::1"), ip("0.0.0.0"), ip("fd00:10:96::2")];
        want.extend(keys("kube-router-svip", bad));
        want.extend(keys("KUBE-there-is-none", [ip("10.96.0.1"), ip("10.96.0.2")]));
        let mut mirror = elements();
        let done = mirror.grow(&want, Growth::Full, moment());
        assert_eq!(done.len(), 250);
        let trouble = mirror.trouble().expect("three elements are bad and one set is missing");
        assert_eq!(trouble.objects, 5, "{trouble:?}");
        assert_eq!(saved("kube-router-svip").1.len(), 250);
        // Elements whose change failed are read back and retried; all others stay known.
        let mut later = moment();
        later.now += std::time::Duration::from_secs(60);
        run("ipset create KUBE-there-is-none hash:ip");
        let done = mirror.grow(&want, Growth::Full, later);
        assert_eq!((done.len(), mirror.seen().map(BTreeMap::len)), (2, Some(252)));
        assert_eq!(mirror.trouble().map(|trouble| trouble.objects), Some(3));
    });
}

#[test]
fn a_full_set_says_so_and_keeps_what_fitted() {
    in_new(|| {
        run("ipset create kube-router-svip hash:ip maxelem 100");
        let want = keys("kube-router-svip", (1..=250).map(|number| ip(&format!("10.96.0.{number}"))));
        let mut mirror = elements();
        let done = mirror.grow(&want, Growth::Full, moment());
        assert_eq!(done.len(), 100);
        let error = &mirror.trouble().expect("it is full").error;
        assert!(error.starts_with("add element kube-router-svip 10.96.0."), "{error}");
        assert!(error.ends_with("the set is full (ipset error 4352)"), "{error}");
    });
}

#[test]
fn a_set_grows_under_a_rule_that_names_it_and_keeps_its_elements() {
    in_new(|| {
        let small = SetSpec { max_elements: 1024, ..spec(SetKind::HashIp, Family::V4) };
        let mut mirror = sets();
        settle(&mut mirror, &BTreeMap::from([(name("kube-router-svip"), small)]));
        settle(&mut elements(), &keys("kube-router-svip", [ip("10.96.0.1"), ip("10.96.0.2")]));
        run("iptables-nft -A INPUT -m set --match-set kube-router-svip dst -j ACCEPT");
        let want = BTreeMap::from([(name("kube-router-svip"), spec(SetKind::HashIp, Family::V4))]);
        settle(&mut mirror, &want);
        let (create, entries) = saved("kube-router-svip");
        assert!(create.contains("maxelem 65536"), "{create}");
        assert_eq!(entries.len(), 2);
        assert_eq!(run("ipset list -n"), "kube-router-svip\n");
        assert_eq!(mirror.target().take_emptied(), []);
    });
}

#[test]
fn a_set_of_another_type_is_made_anew_unless_a_rule_names_it() {
    in_new(|| {
        let want = BTreeMap::from([(name("kube-router-svip"), spec(SetKind::HashIp, Family::V4))]);
        for options in ["hash:net", "list:set", "hash:ip timeout 300", "hash:ip counters", "hash:ip family inet6"] {
            run(&format!("ipset create kube-router-svip {options}"));
            let mut mirror = sets();
            settle(&mut mirror, &want);
            assert_eq!(mirror.target().take_emptied(), [name("kube-router-svip")], "{options}");
            run("ipset create -exist kube-router-svip hash:ip timeout 0");
            run("ipset destroy kube-router-svip");
        }
        run("ipset create kube-router-svip hash:net");
        run("iptables-nft -A INPUT -m set --match-set kube-router-svip dst -j ACCEPT");
        let mut mirror = sets();
        mirror.grow(&want, Growth::Full, moment());
        let error = &mirror.trouble().expect("the set is in use").error;
        assert_eq!(error, "destroy set kube-router-svip: the set is in use (ipset error 4100)");
        assert_eq!(run("ipset list -n"), "kube-router-svip\n");
    });
}

#[test]
fn the_second_set_that_a_crash_left_behind_goes_and_is_not_in_the_way() {
    in_new(|| {
        run(&format!("ipset create {TEMPORARY} list:set"));
        run("ipset create kube-router-svip hash:ip maxelem 16 timeout 0");
        let want = BTreeMap::from([(name("kube-router-svip"), spec(SetKind::HashIp, Family::V4))]);
        settle(&mut sets(), &want);
        assert_eq!(run("ipset list -n"), "kube-router-svip\n");
        run(&format!("ipset create {TEMPORARY} list:set"));
        settle(&mut sets(), &want);
        assert_eq!(run("ipset list -n"), "kube-router-svip\n");
    });
}

#[test]
fn a_set_goes_right_after_the_rule_that_named_it() {
    in_new(|| {
        let mut ipset = Ipset::open().expect("a socket");
        for round in 0..5 {
            ipset.create(&name("kube-router-svip"), spec(SetKind::HashIp, Family::V4)).expect("it is made");
            run("iptables-nft -A INPUT -m set --match-set kube-router-svip dst -j ACCEPT");
            run("iptables-nft -F INPUT");
            ipset.destroy(&name("kube-router-svip")).unwrap_or_else(|error| panic!("round {round}: {error}"));
        }
        assert!(ipset.names().expect("sets are listed").is_empty());
    });
}

#[test]
fn everything_is_written_as_two_halves_and_read_as_one() {
    in_new(|| {
        run("ipset create KUBE-SRC-1 hash:net");
        run("ipset create KUBE-SRC-2 hash:net family inet6");
        let mut want = keys("KUBE-SRC-1", [net("0.0.0.0/0"), net("10.244.0.0/16")]);
        want.extend(keys("KUBE-SRC-2", [net("::/0")]));
        settle(&mut elements(), &want);
        assert!(saved("KUBE-SRC-2").1.contains("add KUBE-SRC-2 8000::/1"));
        let mut again = elements();
        settle(&mut again, &want);
        assert_eq!((again.seen(), again.steps_done()), (Some(&want), 0));
        // Half of everything is not everything.
        run("ipset del KUBE-SRC-1 0.0.0.0/1");
        let audited = again.audit(moment());
        assert_eq!(
            audited.drift,
            [Drift::Missing("KUBE-SRC-1 0.0.0.0/0".into()), Drift::Unexpected("KUBE-SRC-1 128.0.0.0/1".into())]
        );
        settle(&mut again, &want);
        settle(&mut again, &BTreeMap::new());
        assert!(saved("KUBE-SRC-1").1.is_empty());
    });
}

#[test]
fn foreign_sets_stay_as_they_are() {
    in_new(|| {
        run("ipset create foreign hash:ip counters");
        run("ipset add foreign 10.96.0.1");
        run("ipset create kube-router-pod-subnets hash:net timeout 0");
        let before = (saved("foreign"), saved("kube-router-pod-subnets"));
        let mut sets = sets();
        settle(&mut sets, &BTreeMap::from([(name("kube-router-svip"), spec(SetKind::HashIp, Family::V4))]));
        let mut elements = elements();
        settle(&mut elements, &keys("kube-router-svip", [ip("10.96.0.1")]));
        settle(&mut elements, &BTreeMap::new());
        settle(&mut sets, &BTreeMap::new());
        assert_eq!((saved("foreign"), saved("kube-router-pod-subnets")), before);
        assert!(!attempt("ipset list kube-router-svip").0);
    });
}

#[test]
fn swapped_sets_have_each_others_elements() {
    in_new(|| {
        let mut ipset = Ipset::open().expect("a socket");
        for set in ["one", "other"] {
            ipset.create(&name(set), spec(SetKind::HashNet, Family::V6)).expect("it is made");
        }
        run("ipset add one fd00:10:244::/56");
        ipset.swap(&name("one"), &name("other")).expect("they are of one type");
        assert_eq!(ipset.entries(&name("other")).expect("it is there"), [net("fd00:10:244::/56")]);
        assert_eq!(ipset.entries(&name("one")).expect("it is there"), []);
        let error = ipset.swap(&name("one"), &name("missing")).expect_err("there is no such set");
        assert_eq!(error.to_string(), "swap set one: a set with the second name exists already (ipset error 4101)");
    });
}
