//! Our own routes while those of others are held back after a restart of ours.

use super::*;

const HELD: PerFamily<bool> = PerFamily { v4: true, v6: true };
const NET6: &str = "fd00:10:244:1::/64";

/// Our own pod ranges, in both families.
fn originate(bench: &mut Bench) {
    let six = Attributes { next_hop: "2001:db8:2::1".parse().unwrap(), ..route(&[], 1) };
    bench.rib.originate(PeerId::LOCAL, prefix(NET), route(&[], 1));
    bench.rib.originate(PeerId::LOCAL, prefix(NET6), six);
    bench.flush();
}

#[test]
fn our_own_routes_are_told_at_once_and_the_end_of_routes_with_those_of_others() {
    let mut bench = Bench::with(Bounds::default(), 1, HELD);
    let early = bench.join(11, Kind::External);
    originate(&mut bench);
    let late = bench.join(12, Kind::Internal);
    bench.announce(early, route(&[64611], 11), &prefixes(3));
    for peer in [early, late] {
        assert_eq!(bench.told(peer).routes.keys().collect::<Vec<_>>(), [&prefix(NET), &prefix(NET6)], "{peer:?}");
        assert_eq!(bench.told(peer).marks, [""; 0], "more may follow, and what was retained stays");
    }
    let before = [early, late].map(|peer| bench.told(peer).messages);
    bench.rib.release(HELD);
    bench.flush();
    for (peer, before, routes) in [(early, before[0], 2), (late, before[1], 5)] {
        assert_eq!(bench.told(peer).marks, ["end of IPv4", "end of IPv6"]);
        assert_eq!(bench.told(peer).routes.len(), routes);
        // The ends, and one message with the routes of others.
        assert_eq!(bench.told(peer).messages - before, if routes == 2 { 2 } else { 3 }, "ours are not told again");
    }
    bench.check();
}

#[test]
fn who_asks_while_routes_are_held_back_is_told_our_own_ones_again() {
    let mut bench = Bench::with(Bounds::default(), 1, HELD);
    originate(&mut bench);
    let one = bench.join(11, Kind::External);
    for family in Family::BOTH {
        bench.told.get_mut(&one).unwrap().routes.clear();
        bench.rib.refresh(one, Refresh { family, kind: RefreshKind::Request }, false);
        bench.flush();
        let expected = if family == Family::V4 { prefix(NET) } else { prefix(NET6) };
        assert_eq!(bench.told(one).routes.keys().collect::<Vec<_>>(), [&expected]);
    }
    assert_eq!(bench.told(one).marks, [""; 0]);
}

#[test]
fn what_is_ours_no_more_is_withdrawn_also_while_routes_are_held_back() {
    let mut bench = Bench::with(Bounds::default(), 1, HELD);
    originate(&mut bench);
    let one = bench.join(11, Kind::External);
    for text in [NET, NET6] {
        assert!(bench.has(one, text).is_some());
        bench.rib.retract(PeerId::LOCAL, prefix(text));
        bench.flush();
        assert_eq!(bench.has(one, text), None);
    }
    bench.rib.release(HELD);
    bench.flush();
    bench.check();
}

/// Lets all sockets accept output from now on.
fn listen_all(bench: &mut Bench) {
    for peer in bench.told.keys().copied().collect::<Vec<_>>() {
        bench.listen(peer);
    }
}

#[test]
fn whatever_comes_while_routes_are_held_back_everybody_has_what_it_is_to_have_afterwards() {
    for seed in 0..60_u64 {
        let mut next = chance(seed);
        let bounds = Bounds { room: 1 + next(800), portion: 1 + next(9), ..Bounds::default() };
        let mut bench = Bench::with(bounds, 1, PerFamily { v4: true, v6: next(2) == 0 });
        let kinds = [Kind::External, Kind::External, Kind::Internal, Kind::Client, Kind::Client];
        let mut were_own = BTreeSet::new();
        let release_at = 40 + next(100);
        for turn in 0..200 {
            let number = 11 + next(kinds.len()) as u8;
            let peer = PeerId(u32::from(number));
            let some = prefixes(12)[next(12)];
            if !bench.told.contains_key(&peer) {
                bench.join(number, kinds[usize::from(number) - 11]);
            }
            match next(9) {
                0 | 1 => bench.announce(peer, route(&[64600 + next(4) as u32], 20 + next(3) as u8), &[some]),
                2 => bench.withdraw(peer, &[some]),
                3 => {
                    were_own.insert(some);
                    bench.rib.originate(PeerId::LOCAL, some, route(&[], 1));
                }
                4 => bench.rib.retract(PeerId::LOCAL, some),
                5 => {
                    let told = bench.told.get_mut(&peer).unwrap();
                    told.deaf = !told.deaf;
                    if !told.deaf {
                        bench.rib.taken(peer, usize::MAX);
                    }
                }
                6 => {
                    let blocked = without(&prefixes(12)[next(12)].to_string());
                    bench.rib.set_policies(Policies { export: blocked, ..policies() });
                }
                7 => bench.rib.refresh(peer, Refresh { family: Family::V4, kind: RefreshKind::Request }, next(2) == 0),
                _ => {
                    // It has another session.
                    bench.rib.leave(peer, PerFamily::default());
                    bench.flush();
                    bench.join(number, kinds[usize::from(number) - 11]);
                }
            }
            bench.flush();
            if turn < release_at {
                let mut told = bench.told.values().flat_map(|told| told.routes.keys());
                assert_eq!(told.find(|prefix| !were_own.contains(*prefix)), None, "{seed}, {turn}");
            }
            if turn == release_at {
                listen_all(&mut bench);
                bench.check_answers();
                bench.rib.release(HELD);
                bench.flush();
            }
        }
        listen_all(&mut bench);
        bench.check();
        for told in bench.told.values() {
            // Who asks without marks is sent the end of IPv4 again.
            let ends = |family: &str| told.marks.iter().filter(|mark| **mark == format!("end of {family}")).count();
            assert!(ends("IPv4") >= 1 && ends("IPv6") == 1, "{seed}: {:?}", told.marks);
        }
    }
}
