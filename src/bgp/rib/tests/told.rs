//! Routes that neighbours are told: by chance, with attributes that do not fit, and by those who read slowly.

use super::*;

#[test]
fn attributes_that_no_longer_fit_are_taken_as_gone() {
    let mut bench = Bench::new();
    let one = bench.join(11, Kind::External);
    let small = bench.join(12, Kind::External);
    let large = Dialect { extended_message: true, ..bench.told(small).dialect };
    let large = bench.join_speaking(13, Kind::External, large);
    bench.announce(one, route(&[64611], 11), &net());
    assert!(bench.has(small, NET).is_some() && bench.has(large, NET).is_some());
    let mut long = route(&[64611], 11);
    long.add_communities(&(1..1500).map(Community).collect::<Vec<_>>());
    bench.announce(one, long, &net());
    assert!(bench.has(small, NET).is_none() && bench.has(large, NET).is_some());
    let late = bench.join(14, Kind::External);
    assert_eq!((bench.has(late, NET), bench.told(late).marks.len()), (None, 2));
}

#[test]
fn who_reads_slowly_is_told_the_newest_state_and_its_backlog_has_a_bound() {
    let mut bench = Bench::with(Bounds { room: 2000, portion: 100, ..Bounds::default() }, 1, PerFamily::default());
    let (one, slow) = (bench.join(11, Kind::External), bench.join(12, Kind::External));
    bench.told.get_mut(&slow).unwrap().deaf = true;
    for round in 0..200 {
        let attributes = Attributes { origin: message::Origin::Egp, ..route(&[64611, 1 + round], 11) };
        bench.announce(one, attributes, &prefixes(20));
    }
    assert!(bench.rib.on_the_way(slow) < 4000, "{}", bench.rib.on_the_way(slow));
    let told = bench.told.get_mut(&slow).unwrap();
    told.deaf = false;
    let before = told.messages;
    bench.rib.taken(slow, usize::MAX);
    bench.flush();
    assert!(bench.told(slow).messages <= before + 1, "what was in between is not told");
    bench.check();
}

#[test]
fn whatever_comes_in_whatever_order_everybody_is_told_what_it_is_to_see() {
    for seed in 0..60_u64 {
        let mut next = chance(seed);
        let mut bench = Bench::with(
            Bounds { room: 1 + next(800), portion: 1 + next(9), ..Bounds::default() },
            1,
            PerFamily::default(),
        );
        let kinds = [Kind::External, Kind::External, Kind::Internal, Kind::Client, Kind::Client];
        for (number, kind) in kinds.into_iter().enumerate() {
            bench.join(11 + number as u8, kind);
        }
        for _ in 0..250 {
            let number = 11 + next(kinds.len()) as u8;
            let peer = PeerId(u32::from(number));
            let some: Vec<IpNet> = (0..1 + next(6)).map(|_| prefixes(30)[next(30)]).collect();
            match next(10) {
                0..4 => {
                    let path: Vec<u32> = (0..1 + next(3)).map(|_| 64600 + next(4) as u32).collect();
                    bench.announce(peer, route(&path, 20 + next(3) as u8), &some);
                }
                4 | 5 => bench.withdraw(peer, &some),
                6 => {
                    let told = bench.told.get_mut(&peer).unwrap();
                    told.deaf = !told.deaf;
                    if !told.deaf {
                        bench.rib.taken(peer, usize::MAX);
                        bench.flush();
                    }
                }
                7 => {
                    let blocked = without(&prefixes(30)[next(30)].to_string());
                    bench.rib.set_policies(Policies { export: blocked, ..policies() });
                    bench.flush();
                }
                8 => {
                    let away = (20..23).map(address).filter(|_| next(2) == 0).collect();
                    bench.rib.set_unreachable(away);
                    bench.flush();
                }
                _ => {
                    bench.rib.refresh(peer, Refresh { family: Family::V4, kind: RefreshKind::Request }, next(2) == 0);
                    bench.flush();
                }
            }
        }
        for peer in bench.told.keys().copied().collect::<Vec<_>>() {
            bench.told.get_mut(&peer).unwrap().deaf = false;
            bench.rib.taken(peer, usize::MAX);
        }
        bench.flush();
        bench.check();
    }
}
