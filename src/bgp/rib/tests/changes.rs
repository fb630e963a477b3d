//! Changed policies, announcements and addresses: what follows for routes that are there.

use super::super::super::policy::Outcome;
use super::*;

#[test]
fn policies_hold_for_what_is_there_and_only_the_difference_is_told() {
    let mut bench = Bench::new();
    let (one, two) = (bench.join(11, Kind::External), bench.join(12, Kind::External));
    bench.announce(one, route(&[64611], 11), &prefixes(50));
    let before = bench.told(two).messages;
    let export = without("10.0.7.0/24");
    bench.rib.set_policies(Policies { export: export.clone(), ..policies() });
    bench.flush();
    assert_eq!((bench.told(two).routes.len(), bench.told(two).messages), (49, before + 1));
    bench.check();
    bench.rib.set_policies(Policies { import: without("10.0.9.0/24"), export });
    bench.flush();
    assert_eq!((bench.told(two).routes.len(), bench.routes.len()), (48, 49));
    assert_eq!(bench.rib.table().count(one).v4, Count { received: 50, used: 49, stale: 0 });
    bench.rib.set_policies(policies());
    bench.flush();
    assert_eq!((bench.told(two).routes.len(), bench.routes.len()), (50, 50), "all is still there");
    bench.check();
}

#[test]
fn a_changed_set_of_prefixes_is_heeded_by_every_route_inside_for_every_neighbour() {
    let texts = ["10.0.0.0/16", "10.0.3.0/24", "10.0.4.0/22", "10.0.7.0/24", "10.0.0.0/8"];
    let policy = |texts: &[&str], neighbours: &[u8]| {
        let mut set = PrefixSet::new("set");
        texts.iter().for_each(|text| set.insert(prefix(text), Lengths { least: 0, most: 32 }));
        let neighbours = neighbours.iter().map(|number| IpNet::from(address(*number))).collect();
        let neighbours = NeighbourSet { name: "neighbours".into(), prefixes: neighbours };
        let statement = Statement {
            prefixes: Some(Condition { set: Arc::new(set), matching: Matching::Any }),
            neighbours: Some(Condition { set: Arc::new(neighbours), matching: Matching::Any }),
            decision: Some(Decision::Reject),
            ..Statement::default()
        };
        Arc::new(Policy { name: "policy".into(), statements: vec![statement], otherwise: Decision::Accept })
    };
    let mut bench = Bench::new();
    let (one, two) = (bench.join(11, Kind::External), bench.join(12, Kind::External));
    bench.announce(one, route(&[64611], 11), &prefixes(20));
    bench.announce(two, route(&[64612, 64612], 12), &prefixes(20));
    let neighbours = [&[][..], &[11], &[12], &[11, 12]];
    let mut state = 7_u64;
    let mut next = move |end: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % end
    };
    for _ in 0..200 {
        let some = |next: &mut dyn FnMut(usize) -> usize| -> Vec<&str> {
            texts.into_iter().filter(|_| next(3) == 0).collect()
        };
        let import = policy(&some(&mut next), neighbours[next(4)]);
        let export = policy(&some(&mut next), neighbours[next(4)]);
        bench.rib.set_policies(Policies { import: import.clone(), export });
        bench.flush();
        bench.check();
        for (number, peer) in [(11, one), (12, two)] {
            let applicable = import.applicable(Some(address(number)));
            for prefix in prefixes(20) {
                let path = bench.rib.table().path(prefix, peer).unwrap();
                let taken = import.outcome(&applicable, prefix, &path.received, None) != Outcome::Rejected;
                assert_eq!(path.used.is_some(), taken, "{prefix} from {number}");
            }
        }
    }
}

#[test]
fn a_route_that_came_before_it_was_known_as_its_neighbours_own_is_used_once_that_is_known() {
    let policy = |own: &[(u8, &str)]| {
        let own = own.iter().map(|(number, text)| (address(*number), prefix(text))).collect();
        let accept =
            Statement { own_prefixes: Some(Arc::new(own)), decision: Some(Decision::Accept), ..Statement::default() };
        Arc::new(Policy { name: "policy".into(), statements: vec![accept], otherwise: Decision::Reject })
    };
    let mut bench = Bench::new();
    let both = [(11, bench.join(11, Kind::Internal)), (12, bench.join(12, Kind::Internal))];
    let announced = [prefix("10.0.1.0/24"), prefix("10.0.2.0/24"), prefix("2001:db8:1::/64")];
    for (number, peer) in both {
        bench.announce(peer, route(&[], number), &announced);
    }
    for own in [
        &[][..],
        &[(11, "10.0.1.0/24")],
        &[(12, "10.0.1.0/24"), (11, "10.0.2.0/24")],
        &[(11, "10.0.1.0/24"), (12, "10.0.2.0/24"), (12, "2001:db8:1::/64"), (11, "2001:db8:1::/64")],
        &[(12, "10.0.1.0/24")],
    ] {
        bench.rib.set_policies(Policies { import: policy(own), ..policies() });
        bench.flush();
        bench.check();
        for (number, peer) in both {
            for one in announced {
                let is_own = own.iter().any(|(whose, text)| *whose == number && prefix(text) == one);
                let used = bench.rib.table().path(one, peer).expect("it came").used.is_some();
                assert_eq!(used, is_own, "{one} of {number}, of {own:?}");
            }
        }
    }
}

#[test]
fn what_we_and_an_operator_announce_stays_when_one_of_both_wants_it_no_more() {
    for (first, last) in [(PeerId::LOCAL, PeerId::OPERATOR), (PeerId::OPERATOR, PeerId::LOCAL)] {
        let mut bench = Bench::new();
        let one = bench.join(11, Kind::External);
        for whose in [first, last] {
            bench.rib.originate(whose, prefix(NET), Attributes::local(address(1)));
            bench.flush();
            assert_eq!(bench.rib.table().best(prefix(NET)).unwrap().source, first.min(whose), "ours is chosen");
        }
        bench.rib.retract(first, prefix(NET));
        bench.flush();
        assert!(bench.has(one, NET).is_some());
        bench.rib.retract(last, prefix(NET));
        bench.flush();
        assert!(bench.has(one, NET).is_none());
        bench.check();
    }
}

#[test]
fn routes_to_an_address_that_is_ours_are_not_used_as_long_as_it_is() {
    let mut bench = Bench::new();
    let one = bench.join(11, Kind::External);
    bench.announce(one, route(&[64611], 50), &net());
    for (ours, used) in [(address(50), false), (address(1), true)] {
        bench.rib.set_addresses(BTreeSet::from([ours]));
        bench.flush();
        assert_eq!(bench.routes.contains_key(&prefix(NET)), used, "{ours} is ours");
        bench.check();
    }
}

#[test]
fn import_changes_what_is_used_and_not_what_came() {
    let mut bench = Bench::new();
    let changes = vec![Change::LocalPref(50), Change::AddCommunities(vec![Community(7)])];
    let statement = Statement { changes, ..Statement::default() };
    let import = Policy { name: "import".into(), statements: vec![statement], otherwise: Decision::Accept };
    bench.rib.set_policies(Policies { import: Arc::new(import), ..policies() });
    let one = bench.join(11, Kind::External);
    bench.announce(one, route(&[64611], 11), &net());
    let path = bench.rib.table().path(prefix(NET), one).unwrap().clone();
    assert_eq!((path.received.local_pref, path.used.unwrap().local_pref), (None, Some(50)));
}

#[test]
fn next_hops_of_another_family_go_only_where_they_are_understood() {
    let mut bench = Bench::new();
    let one = bench.join(11, Kind::Internal);
    let plain = bench.join(12, Kind::Client);
    let dialect = Dialect { extended_next_hop: true, ..bench.told(plain).dialect };
    let knows = bench.join_speaking(13, Kind::Client, dialect);
    let six = Attributes { next_hop: "2001:db8:2::b".parse().unwrap(), ..route(&[], 11) };
    bench.announce(one, six, &net());
    assert_eq!((bench.has(plain, NET).is_some(), bench.has(knows, NET).is_some()), (false, true));
    bench.check();
}
