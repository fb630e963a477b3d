//! Advertisement of a route: who is sent it, and with which attributes.

use super::*;

#[test]
fn a_route_goes_to_everybody_but_the_one_it_came_from() {
    let mut bench = Bench::new();
    let [one, two, three] = [11, 12, 13].map(|number| bench.join(number, Kind::External));
    bench.announce(one, route(&[64611], 11), &net());
    assert_eq!([one, two, three].map(|peer| bench.has(peer, NET).is_some()), [false, true, true]);
    let told = bench.has(two, NET).unwrap();
    assert_eq!((told.as_path.to_string().as_str(), told.next_hop), ("65001 64611", address(1)));
    // A better route from another neighbour: the first one is sent it, the other one a withdrawal.
    bench.announce(two, route(&[], 12), &net());
    assert!(bench.has(two, NET).is_some(), "a path from outside has to begin with a number");
    bench.announce(two, route(&[64612], 12), &net());
    bench.withdraw(one, &net());
    assert_eq!([one, two, three].map(|peer| bench.has(peer, NET).is_some()), [true, false, true]);
    bench.withdraw(two, &net());
    assert_eq!([one, two, three].map(|peer| bench.has(peer, NET).is_some()), [false; 3]);
    assert_eq!(bench.routes, BTreeMap::new());
    bench.check();
}

#[test]
fn neighbours_that_see_the_same_share_the_bytes() {
    let mut bench = Bench::new();
    let one = bench.join(11, Kind::External);
    for number in 12..60 {
        bench.join(number, Kind::External);
    }
    bench.parcels.clear();
    bench.announce(one, route(&[64611], 11), &prefixes(100));
    assert_eq!(bench.parcels.len(), 48);
    let first = bench.parcels[0].bytes.clone();
    assert!(bench.parcels.iter().all(|parcel| Arc::ptr_eq(&parcel.bytes, &first)));
    assert_eq!((bench.rib.groups(), bench.parcels[0].messages), (1, 1));
    bench.check();
}

#[test]
fn communities_keep_routes_where_they_belong() {
    for (community, outside, inside) in [
        (Community::NO_EXPORT, false, true),
        (Community::NO_EXPORT_SUBCONFED, false, true),
        (Community::NO_ADVERTISE, false, false),
        (Community(7), true, true),
    ] {
        let mut bench = Bench::new();
        let (from, out, inner) =
            (bench.join(11, Kind::External), bench.join(12, Kind::External), bench.join(13, Kind::Internal));
        let mut route = route(&[64611], 11);
        route.add_communities(&[community]);
        bench.announce(from, route, &net());
        assert_eq!((bench.has(out, NET).is_some(), bench.has(inner, NET).is_some()), (outside, inside), "{community}");
        assert!(bench.routes.contains_key(&prefix(NET)), "we use it ourselves");
    }
}

#[test]
fn what_has_no_meaning_outside_stays_inside() {
    let mut bench = Bench::new();
    let (inner, out) = (bench.join(11, Kind::Internal), bench.join(12, Kind::External));
    let mut attributes = Attributes { med: Some(5), local_pref: Some(300), ..route(&[64999], 50) };
    attributes.change_rare(|rare| {
        rare.originator = Some(Ipv4Addr::new(192, 0, 2, 77));
        rare.clusters = Box::from([Ipv4Addr::new(0, 0, 0, 9)]);
        rare.extended = Box::from([ExtendedCommunity(1), ExtendedCommunity(1 << 62)]);
        rare.link_local = Some("fe80::1".parse().unwrap());
    });
    bench.announce(inner, attributes, &net());
    let told = bench.has(out, NET).unwrap();
    assert_eq!((told.med, told.local_pref, told.next_hop), (None, None, address(1)));
    assert_eq!((told.rare().originator, told.rare().clusters.len()), (None, 0));
    assert_eq!(told.rare().extended.as_ref(), [ExtendedCommunity(1)]);
    bench.rib.originate(PeerId::LOCAL, prefix("10.244.2.0/24"), Attributes { med: Some(9), ..route(&[], 5) });
    bench.flush();
    let own = bench.has(out, "10.244.2.0/24").unwrap();
    assert_eq!((own.med, own.next_hop, own.as_path.to_string().as_str()), (Some(9), address(5), "65001"));
    let own = bench.has(inner, "10.244.2.0/24").unwrap();
    assert_eq!((own.local_pref, own.next_hop, own.as_path.is_empty()), (Some(100), address(5), true));
}

#[test]
fn routes_from_inside_go_on_inside_only_by_reflection() {
    let mut bench = Bench::new();
    let [client, other] = [11, 12].map(|number| bench.join(number, Kind::Client));
    let [plain, second] = [13, 14].map(|number| bench.join(number, Kind::Internal));
    bench.announce(client, route(&[], 11), &net());
    assert_eq!([client, other, plain, second].map(|peer| bench.has(peer, NET).is_some()), [false, true, true, true]);
    let rare = bench.has(other, NET).unwrap().rare().clone();
    assert_eq!((rare.originator, rare.clusters.as_ref()), (Some(Ipv4Addr::new(192, 0, 2, 11)), &[OWN.cluster][..]));
    assert_eq!(bench.has(other, NET).unwrap().next_hop, address(11), "the next hop stays");
    bench.announce(plain, route(&[], 13), &prefixes(1));
    let of = |peer| bench.told(peer).routes.contains_key(&prefixes(1)[0]);
    assert_eq!([client, other, plain, second].map(of), [true, true, false, false]);
    bench.check();
}

#[test]
fn the_last_resort_loses_to_every_other_route_and_is_marked_for_who_knows_the_mark() {
    for text in ["10.244.7.0/24", "fd00:10:244:7::/64"] {
        let mut bench = Bench::new();
        let net = prefix(text);
        let hop = |number: u8| match Family::from(net) {
            Family::V4 => address(number),
            Family::V6 => format!("2001:db8::{number}").parse().unwrap(),
        };
        let lost = bench.join(2, Kind::External);
        let other = bench.join(3, Kind::External);
        let knows = bench.join(4, Kind::External);
        let outside = bench.join_plain(5, Kind::External);
        let inside = bench.join_plain(6, Kind::Internal);
        let route =
            |number: u8, path: &[u32]| Attributes { as_path: AsPath::sequence(path), ..Attributes::local(hop(number)) };
        bench.announce(lost, route(2, &[65002]), &[net]);
        let mut barred = route(2, &[65002]);
        barred.add_communities(&[Community::NO_LLGR]);
        let never = if Family::from(net) == Family::V4 { "10.244.8.0/24" } else { "fd00:10:244:8::/64" };
        bench.announce(lost, barred, &[prefix(never)]);
        bench.announce(other, route(3, &[65003, 65003, 65003, 65004]), &[net]);
        assert_eq!(bench.routes[&net], [hop(2)]);
        bench.told.remove(&lost);
        bench.rib.leave(lost, PerFamily { v4: true, v6: true });
        bench.flush();
        assert_eq!(bench.routes[&net], [hop(2)], "stale routes are as good as any");
        bench.rib.keep_long(lost, PerFamily { v4: true, v6: true });
        bench.flush();
        assert_eq!(bench.routes[&net], [hop(3)], "long-lived ones are not");
        assert!(!bench.routes.contains_key(&prefix(never)), "NO_LLGR");
        bench.withdraw(other, &[net]);
        assert_eq!(bench.routes[&net], [hop(2)], "better than none");
        assert!(bench.has(knows, text).expect("it is told").has(Community::LLGR_STALE));
        assert_eq!(bench.has(outside, text), None);
        let told = bench.has(inside, text).expect("it is told");
        assert!(
            told.has(Community::LLGR_STALE) && told.has(Community::NO_EXPORT) && told.local_pref == Some(0),
            "RFC 9494 4.6"
        );
        bench.check();
        bench.rib.drop_stale(lost, PerFamily { v4: true, v6: true });
        bench.flush();
        assert!(bench.routes.is_empty());
        bench.check();
    }
}
