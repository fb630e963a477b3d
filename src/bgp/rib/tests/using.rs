//! Routes that are used and those that are kept only: loops, next hops, equals, and their age.

use super::*;

#[test]
fn loops_and_what_leads_to_ourselves_are_kept_and_not_used() {
    let mut own_originator = route(&[], 20);
    own_originator.change_rare(|rare| rare.originator = Some(OWN.identifier));
    let mut own_cluster = route(&[], 20);
    own_cluster.change_rare(|rare| rare.clusters = Box::from([Ipv4Addr::new(0, 0, 0, 1), OWN.cluster]));
    for (attributes, why) in [
        (route(&[64611, 65001], 20), "our number in the path"),
        (own_originator, "it began here"),
        (own_cluster, "it has passed here"),
        (route(&[], 1), "the next hop is ours"),
        (Attributes::local("0.0.0.0".parse().unwrap()), "no next hop"),
        (Attributes::local("224.0.0.1".parse().unwrap()), "a next hop of many"),
        (Attributes::local("255.255.255.255".parse().unwrap()), "a next hop of all"),
    ] {
        let mut bench = Bench::new();
        let (one, two) = (bench.join(11, Kind::Client), bench.join(12, Kind::Client));
        bench.announce(one, attributes, &net());
        assert_eq!((bench.has(two, NET), bench.routes.len()), (None, 0), "{why}");
        assert_eq!(bench.rib.table().count(one).v4, Count { received: 1, used: 0, stale: 0 });
    }
}

#[test]
fn a_path_has_to_begin_with_its_neighbour_where_that_is_asked_for() {
    let mut bench = Bench::new();
    let one = bench.join(11, Kind::External);
    let source = *bench.rib.table().source(one).unwrap();
    bench.rib.table.set_source(one, Source { first: Some(64611), ..source });
    bench.announce(one, route(&[64612, 64611], 11), &net());
    assert_eq!(bench.routes.len(), 0);
    bench.announce(one, route(&[64611, 64612], 11), &net());
    assert_eq!(bench.routes.len(), 1);
}

#[test]
fn a_route_whose_next_hop_is_lost_is_withdrawn_and_comes_back() {
    let mut bench = Bench::new();
    let [one, two, three] = [11, 12, 13].map(|number| bench.join(number, Kind::External));
    bench.announce(one, route(&[64611], 11), &net());
    bench.announce(two, route(&[64612, 1], 12), &net());
    bench.rib.set_unreachable(BTreeSet::from([address(11)]));
    bench.flush();
    assert_eq!(bench.has(three, NET).unwrap().as_path.to_string(), "65001 64612 1");
    assert_eq!(bench.routes[&prefix(NET)], [address(12)]);
    bench.check();
    bench.rib.set_unreachable(BTreeSet::from([address(11), address(12)]));
    bench.flush();
    assert_eq!((bench.has(three, NET), bench.routes.len()), (None, 0));
    bench.rib.set_unreachable(BTreeSet::from([address(12)]));
    bench.flush();
    assert_eq!(bench.routes[&prefix(NET)], [address(11)]);
    bench.check();
}

#[test]
fn traffic_is_shared_among_equals() {
    let mut bench = Bench::with(Bounds::default(), 2, PerFamily::default());
    let peers = [11, 12, 13].map(|number| bench.join(number, Kind::External));
    for (peer, number) in peers.into_iter().zip([11, 12, 13]) {
        bench.announce(peer, route(&[64600], number), &net());
    }
    assert_eq!(bench.routes[&prefix(NET)].len(), 2, "no more than are wanted");
    bench.withdraw(peers[1], &net());
    assert_eq!(bench.routes[&prefix(NET)], [address(11), address(13)]);
    bench.withdraw(peers[2], &net());
    assert_eq!(bench.routes[&prefix(NET)], [address(11)], "the best has stayed, and is alone now");
}

#[test]
fn a_route_is_as_old_as_it_is_without_a_change() {
    let now = Instant::now();
    let mut bench = Bench::new();
    bench.rib = Rib::new(bench.rib.rules.clone(), now);
    let one = bench.join(11, Kind::External);
    let age = |bench: &Bench| {
        let table = bench.rib.table();
        table.path(prefix(NET), one).map(|path| (table.age(path).as_secs(), path.is_stale()))
    };
    bench.rib.set_time(now + std::time::Duration::from_secs(10));
    bench.announce(one, route(&[64611], 11), &net());
    bench.rib.set_time(now + std::time::Duration::from_secs(30));
    bench.rib.leave(one, PerFamily { v4: true, v6: false });
    assert_eq!(age(&bench), Some((20, true)));
    bench.join(11, Kind::External);
    bench.announce(one, route(&[64611], 11), &net());
    assert_eq!(age(&bench), Some((20, false)), "it came again as it was");
    bench.announce(one, route(&[64611, 1], 11), &net());
    assert_eq!(age(&bench), Some((0, false)));
    assert_eq!(size_of::<Path>(), 24, "a table has many of them");
}

#[test]
fn a_next_hop_on_a_link_is_used_there_and_told_to_nobody() {
    let mut bench = Bench::new();
    let on_link = LinkLocal::new("fe80::2".parse().unwrap(), 7).unwrap().combined();
    let (outside, inner, kept) =
        (bench.join(11, Kind::External), bench.join(12, Kind::Internal), bench.join(13, Kind::External));
    bench.rib.originate(PeerId::LOCAL, prefix(NET), Attributes { next_hop: on_link, ..route(&[], 5) });
    bench.flush();
    for peer in [outside, inner, kept] {
        assert_eq!(bench.has(peer, NET).map(|told| told.next_hop), Some(address(1)), "{peer:?}");
    }
    bench.rib.originate(PeerId::OPERATOR, prefix("203.0.113.0/24"), Attributes { next_hop: on_link, ..route(&[], 5) });
    bench.flush();
    let unplaced = vec!["fe80::2".parse::<IpAddr>().unwrap()];
    assert_eq!(bench.routes.get(&prefix("203.0.113.0/24")), Some(&unplaced), "a client of gobgp knows no links");
}
