//! Decisions about a route: import, selection and export, asked again.

use super::super::super::policy::Line;
use super::*;

const OTHER_NET: &str = "fd00:10:244::/64";

/// A route of either family.
fn routed(text: &str, path: &[u32], number: u8) -> Attributes {
    match prefix(text) {
        IpNet::V4(_) => route(path, number),
        IpNet::V6(_) => {
            Attributes { next_hop: format!("2001:db8:2::{number}").parse().unwrap(), ..route(path, number) }
        }
    }
}

fn standings(bench: &mut Bench, text: &str) -> Vec<(PeerId, Standing)> {
    let state = bench.rib.state(prefix(text), 64, false);
    state.paths.iter().map(|path| (path.source, path.standing)).collect()
}

/// Why a route is not sent to a neighbour; `None` where it is.
fn withheld(bench: &mut Bench, text: &str, peer: PeerId) -> Option<Withheld> {
    let told = bench.rib.state(prefix(text), 64, true).told.expect("it was asked");
    let (_, sent) = told.neighbours.into_iter().find(|(one, _)| *one == peer).expect("it has a session");
    sent.err()
}

#[test]
fn the_best_stands_first_and_others_say_where_they_lost() {
    for text in [NET, OTHER_NET] {
        let mut bench = Bench::new();
        let (one, two) = (bench.join(11, Kind::External), bench.join(12, Kind::External));
        bench.announce(one, routed(text, &[64611, 64700], 11), &[prefix(text)]);
        assert_eq!(standings(&mut bench, text), [(one, Standing::Best(Line::Default))]);
        bench.announce(two, routed(text, &[64612], 12), &[prefix(text)]);
        let lost = Standing::Lost { step: Step::AsPathLength, by: two };
        assert_eq!(standings(&mut bench, text), [(two, Standing::Best(Line::Default)), (one, lost)]);
        bench.rib.set_unreachable([routed(text, &[], 12).next_hop].into());
        bench.flush();
        let now = [(one, Standing::Best(Line::Default)), (two, Standing::Unreachable)];
        assert_eq!(standings(&mut bench, text), now);
    }
}

#[test]
fn routes_that_share_traffic_are_in_use_although_they_lost() {
    let mut bench = Bench::with(Bounds::default(), 2, PerFamily::default());
    let all = [11, 12, 13].map(|number| bench.join(number, Kind::External));
    for (peer, number) in all.into_iter().zip([11, 12, 13]) {
        bench.announce(peer, route(&[64600 + u32::from(number)], number), &net());
    }
    let state = bench.rib.state(prefix(NET), 64, false);
    let in_use: Vec<(PeerId, bool)> = state.paths.iter().map(|path| (path.source, path.is_in_use)).collect();
    assert_eq!(in_use, [(all[0], true), (all[1], true), (all[2], false)], "two share, and no more");
    assert_eq!(state.next_hops, [address(11), address(12)]);
}

#[test]
fn each_refusal_of_a_received_route_is_named() {
    for text in [NET, OTHER_NET] {
        let mut bench = Bench::new();
        let (outside, inside) = (bench.join(11, Kind::External), bench.join(12, Kind::Internal));
        let changed = |change: fn(&mut Attributes)| {
            let mut attributes = routed(text, &[64612], 12);
            change(&mut attributes);
            attributes
        };
        let own = prefix(text).addr().is_ipv4();
        let (here, nowhere): (IpAddr, IpAddr) = match own {
            true => (address(1), "224.0.0.1".parse().unwrap()),
            false => ("2001:db8:2::1".parse().unwrap(), "fe80::1".parse().unwrap()),
        };
        bench.rib.set_addresses([here].into());
        for (peer, attributes, refusal) in [
            (outside, routed(text, &[64611, OWN.asn], 11), Refusal::AsLoop(OWN.asn)),
            (
                inside,
                changed(|it| it.change_rare(|rare| rare.originator = Some(OWN.identifier))),
                Refusal::OriginatorLoop(OWN.identifier),
            ),
            (
                inside,
                changed(|it| it.change_rare(|rare| rare.clusters = [OWN.cluster].into())),
                Refusal::ClusterLoop(OWN.cluster),
            ),
            (inside, routed(text, &[64612], 12).with_next_hop(here), Refusal::OwnNextHop(here)),
            (inside, routed(text, &[64612], 12).with_next_hop(nowhere), Refusal::InvalidNextHop(nowhere)),
            (outside, routed(text, &[], 11), Refusal::FirstAs(None)),
        ] {
            bench.announce(peer, attributes, &[prefix(text)]);
            assert_eq!(standings(&mut bench, text), [(peer, Standing::Refused(refusal))]);
            bench.withdraw(peer, &[prefix(text)]);
        }
        let policies = Policies { import: without(text), ..policies() };
        bench.rib.set_policies(policies);
        bench.announce(outside, routed(text, &[64611], 11), &[prefix(text)]);
        let refusal = Refusal::Policy(Line::Statement(0));
        assert_eq!(standings(&mut bench, text), [(outside, Standing::Refused(refusal))]);
        bench.rib.originate(PeerId::LOCAL, prefix(text), routed(text, &[], 1));
        bench.rib.originate(PeerId::OPERATOR, prefix(text), routed(text, &[], 1));
        let all = standings(&mut bench, text);
        assert!(all.iter().all(|(_, standing)| *standing == Standing::Refused(refusal)), "{all:?}");
        assert_eq!(all.len(), 3);
    }
}

#[test]
fn each_reason_for_not_announcing_a_route_is_named() {
    for text in [NET, OTHER_NET] {
        let mut bench = Bench::new();
        let outside = bench.join(11, Kind::External);
        let (inside, other) = (bench.join(12, Kind::Internal), bench.join(13, Kind::Internal));
        assert_eq!(withheld(&mut bench, text, outside), Some(Withheld::NoRoute));
        bench.announce(outside, routed(text, &[64611], 11), &[prefix(text)]);
        assert_eq!(withheld(&mut bench, text, outside), Some(Withheld::Source));
        assert_eq!(withheld(&mut bench, text, inside), None);
        for (community, inwards) in [(Community::NO_EXPORT, None), (Community::NO_ADVERTISE, Some(()))] {
            let mut kept = routed(text, &[64612], 12);
            kept.add_communities(&[community]);
            kept.local_pref = Some(200);
            bench.announce(inside, kept, &[prefix(text)]);
            let why = Withheld::Community(community);
            assert_eq!(withheld(&mut bench, text, outside), Some(why));
            let reflected = if inwards.is_some() { why } else { Withheld::NotReflected };
            assert_eq!(withheld(&mut bench, text, other), Some(reflected));
        }
        bench.withdraw(inside, &[prefix(text)]);
        bench.rib.set_policies(Policies { export: without(text), ..policies() });
        bench.flush();
        assert_eq!(withheld(&mut bench, text, inside), Some(Withheld::Policy(Line::Statement(0))));
    }
}

#[test]
fn a_session_of_one_family_and_a_next_hop_of_the_other_are_named() {
    let dialect = |v4, v6| Dialect {
        internal: true,
        four_octets: true,
        families: PerFamily { v4, v6 },
        extended_next_hop: false,
        extended_message: false,
    };
    let mut bench = Bench::new();
    let outside = bench.join(11, Kind::External);
    let four = bench.join_speaking(12, Kind::Internal, dialect(true, false));
    let six = bench.join_speaking(13, Kind::Internal, dialect(false, true));
    let next_hop = "2001:db8:2::b".parse().unwrap();
    bench.announce(outside, route(&[64611], 11).with_next_hop(next_hop), &net());
    assert_eq!(withheld(&mut bench, NET, four), Some(Withheld::NextHop(next_hop)));
    assert_eq!(withheld(&mut bench, NET, six), Some(Withheld::Family));
    bench.announce(outside, routed(OTHER_NET, &[64611], 11), &[prefix(OTHER_NET)]);
    assert_eq!(withheld(&mut bench, OTHER_NET, four), Some(Withheld::Family));
    assert_eq!(withheld(&mut bench, OTHER_NET, six), None);
    let own = PerFamily { v4: Some(address(1)), v6: None };
    let source =
        Source { kind: Kind::External, identifier: Ipv4Addr::new(192, 0, 2, 14), address: address(14), first: None };
    let view = View {
        kind: Kind::External,
        dialect: Dialect { internal: false, ..dialect(true, true) },
        own,
        next_hops: NextHops::Usual,
        knows_long_lived: true,
        statements: Applicable::default(),
    };
    bench.rib.join(Joining { peer: PeerId(14), source, view });
    bench.rib.flush();
    assert_eq!(withheld(&mut bench, OTHER_NET, PeerId(14)), Some(Withheld::NoAddress));
}

#[test]
fn a_route_too_long_for_a_message_and_one_that_is_still_to_come_are_named() {
    let mut bench = Bench::with(Bounds { room: 1, portion: 1, ..Bounds::default() }, 1, PerFamily::default());
    let one = bench.join(11, Kind::External);
    let deaf = bench.join_deaf(12, Kind::External);
    let mut long = route(&[64611], 11);
    long.add_communities(&(0..1100).map(Community).collect::<Vec<_>>());
    for prefix in prefixes(3) {
        bench.announce(one, route(&[64611], 11), &[prefix]);
    }
    assert_eq!(withheld(&mut bench, "10.0.2.0/24", deaf), Some(Withheld::Behind));
    bench.listen(deaf);
    assert_eq!(withheld(&mut bench, "10.0.2.0/24", deaf), None);
    bench.announce(one, long, &net());
    assert_eq!(withheld(&mut bench, NET, deaf), Some(Withheld::Unfit));

    let mut held = Bench::with(Bounds::default(), 1, PerFamily { v4: true, v6: false });
    let (one, two) = (held.join(11, Kind::External), held.join(12, Kind::External));
    held.announce(one, route(&[64611], 11), &net());
    assert_eq!(withheld(&mut held, NET, two), Some(Withheld::Restarting));
    held.rib.release(PerFamily { v4: true, v6: true });
    held.flush();
    assert_eq!(withheld(&mut held, NET, two), None);
}

#[test]
fn our_own_route_waits_for_the_neighbour_and_not_for_our_restart() {
    let mut held =
        Bench::with(Bounds { room: 1, portion: 1, ..Bounds::default() }, 1, PerFamily { v4: true, v6: false });
    let deaf = held.join_deaf(12, Kind::External);
    for prefix in prefixes(3) {
        held.rib.originate(PeerId::LOCAL, prefix, route(&[], 1));
        held.flush();
    }
    assert_eq!(withheld(&mut held, "10.0.2.0/24", deaf), Some(Withheld::Behind));
    held.listen(deaf);
    assert_eq!(withheld(&mut held, "10.0.2.0/24", deaf), None);
}

#[test]
fn announced_routes_are_counted_as_they_were_sent() {
    let mut bench = Bench::new();
    let (one, two) = (bench.join(11, Kind::External), bench.join(12, Kind::External));
    let inside = bench.join(13, Kind::Internal);
    bench.announce(one, route(&[64611], 11), &prefixes(30));
    bench.announce(two, route(&[64612], 12), &prefixes(50));
    bench.announce(two, routed(OTHER_NET, &[64612], 12), &[prefix(OTHER_NET)]);
    let mut kept = route(&[64613], 13);
    kept.add_communities(&[Community::NO_EXPORT]);
    bench.announce(inside, kept, &net());
    let all: Vec<IpNet> = Family::BOTH
        .into_iter()
        .flat_map(|family| bench.rib.table().walk(family, None).map(|(prefix, _)| prefix).collect::<Vec<_>>())
        .collect();
    let counts = bench.rib.announced(&all);
    for peer in [one, two, inside] {
        let told = &bench.told(peer).routes;
        let of = |family| told.keys().filter(|prefix| Family::from(**prefix) == family).count() as u32;
        assert_eq!(counts[&peer], PerFamily::from_fn(of), "{peer:?}");
    }
    assert!(counts[&one].v4 < counts[&inside].v4, "its own are not sent back");
}

#[test]
fn routes_that_are_held_back_after_a_restart_are_counted_once_they_are_sent() {
    let mut held = Bench::with(Bounds::default(), 1, PerFamily { v4: true, v6: false });
    for own in ["10.244.1.0/24", "10.244.9.0/24"] {
        held.rib.originate(PeerId::LOCAL, prefix(own), route(&[], 1));
    }
    let (one, two) = (held.join(11, Kind::External), held.join(12, Kind::External));
    held.announce(one, route(&[64611], 11), &prefixes(3));
    held.announce(one, routed(OTHER_NET, &[64611], 11), &[prefix(OTHER_NET)]);
    let mut all = prefixes(3);
    all.extend([prefix("10.244.1.0/24"), prefix("10.244.9.0/24"), prefix(OTHER_NET)]);
    let counts = held.rib.announced(&all);
    assert_eq!(counts[&one], PerFamily { v4: 2, v6: 0 }, "it has our own ones ahead of all others");
    assert_eq!(counts[&two], PerFamily { v4: 2, v6: 1 }, "IPv6 is not held back");
    held.rib.release(PerFamily { v4: true, v6: true });
    held.flush();
    let counts = held.rib.announced(&all);
    assert_eq!(counts[&one], PerFamily { v4: 2, v6: 0 });
    assert_eq!(counts[&two], PerFamily { v4: 5, v6: 1 });
}

#[test]
fn an_answer_is_bounded_and_says_how_much_is_left_out() {
    let mut bench = Bench::new();
    let peers: Vec<PeerId> = (11..=20).map(|number| bench.join(number, Kind::External)).collect();
    for (peer, number) in peers.iter().zip(11..) {
        bench.announce(*peer, route(&[64600 + u32::from(number)], number), &net());
    }
    let state = bench.rib.state(prefix(NET), 4, true);
    let told = state.told.expect("it was asked");
    assert_eq!((state.paths.len(), state.paths_left_off), (4, 6));
    assert_eq!((told.neighbours.len(), told.others.0 + told.others.1), (4, 6));
    assert_eq!(state.paths[0].source, peers[0]);
}
