use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn check(map: &BlockMap<u16, u8>, model: &BTreeMap<u16, u8>) {
    assert!(map.iter().eq(model.iter()) && map.keys().eq(model.keys()) && map.values().eq(model.values()));
    assert_eq!((map.len(), map.is_empty()), (model.len(), model.is_empty()));
    assert_eq!(map.bounds.len(), map.blocks.len());
    for (at, block) in map.blocks.iter().enumerate() {
        assert!(!block.keys.is_empty() && block.keys.len() <= BLOCK && block.keys.len() == block.values.len());
        assert!(map.bounds[at] <= block.keys[0]);
        assert!(at == 0 || map.blocks[at - 1].keys.last() < Some(&map.bounds[at]));
    }
    for (first, last) in [(0, 0), (5, 700), (700, 701), (1999, 3000)] {
        assert!(map.range(first..last).eq(model.range(first..last)), "{first}..{last}");
        assert!(map.range(first..=last).eq(model.range(first..=last)), "{first}..={last}");
        let behind = (Bound::Excluded(first), Bound::Unbounded);
        assert!(map.range(behind).eq(model.range(behind)), "behind {first}");
    }
}

proptest! {
    #[test]
    fn a_map_in_blocks_is_the_map_that_a_tree_is(
        start in 0..1500u16,
        rounds in vec((any::<bool>(), vec((0..2000u16, proptest::option::weighted(0.4, 0..3u8)), 0..300)), 1..6),
    ) {
        let mut model: BTreeMap<u16, u8> = (0..start).map(|key| (key, 0)).collect();
        let mut map: BlockMap<u16, u8> = model.clone().into();
        for (packs, round) in rounds {
            let (before, copy) = (model.clone(), map.clone());
            for (key, value) in round {
                match value {
                    Some(0) => {
                        *map.or_default(key).unwrap() += 1;
                        *model.entry(key).or_default() += 1;
                    }
                    Some(1) => prop_assert_eq!(map.insert(key, 1), model.insert(key, 1)),
                    Some(value) => {
                        let expected = match model.insert(key, value) {
                            Some(before) if before == value => Put::Same,
                            Some(_) => Put::Changed,
                            None => Put::New,
                        };
                        prop_assert_eq!(map.set(key, value), expected);
                    }
                    None => prop_assert_eq!(map.remove(&key), model.remove(&key)),
                }
                prop_assert_eq!(map.get(&key), model.get(&key));
                // What was found last changes no answer, be the next key near to it or not.
                for next in [key, key.wrapping_add(1), key.wrapping_sub(1), key / 2] {
                    prop_assert_eq!(map.find(&next), map.search(&next));
                }
            }
            map.update(500..=900, |value| (*value == 1).then_some(7));
            model.range_mut(500..=900).filter(|(_, value)| **value == 1).for_each(|(_, value)| *value = 7);
            check(&map, &model);
            check(&copy, &before);
            prop_assert_eq!(map == copy, model == before);
            if packs {
                map.loose = FEW + map.len;
                map.pack();
                check(&map, &model);
            }
        }
    }
}

#[test]
fn keys_that_come_in_order_fill_their_blocks_wherever_that_is() {
    let mut map: BlockMap<u32, ()> = (100_000..110_000).map(|key| (key, ())).collect();
    map.extend((0..10_000).map(|key| (key, ())));
    let full = map.blocks.iter().filter(|block| block.keys.len() == BLOCK).count();
    assert!(full + 3 >= map.blocks.len(), "{full} of {}", map.blocks.len());
    let mut falling: BlockMap<u32, ()> = BlockMap::default();
    falling.extend((0..10_000).rev().map(|key| (key, ())));
    falling.pack();
    assert!(falling.blocks.len() <= 10_000 / (BLOCK - SPARSE) + 1, "{}", falling.blocks.len());
}

#[test]
fn equal_maps_share_their_memory_and_a_change_copies_one_block() {
    let mut wanted: BlockMap<u32, u32> = (0..10_000).map(|key| (key, key)).collect();
    let mut seen: BlockMap<u32, u32> = (0..10_000).rev().map(|key| (key, key)).collect();
    seen.share(&wanted);
    let shared = |one: &BlockMap<u32, u32>, other: &BlockMap<u32, u32>| {
        one.blocks.iter().zip(&other.blocks).filter(|(one, other)| Arc::ptr_eq(one, other)).count()
    };
    assert_eq!(shared(&seen, &wanted), wanted.blocks.len());
    wanted.insert(5_000, 0);
    assert_eq!(shared(&seen, &wanted), wanted.blocks.len() - 1);
    assert_eq!((seen.get(&5_000), wanted.get(&5_000)), (Some(&5_000), Some(&0)));
    seen.share(&wanted);
    assert_eq!(seen.get(&5_000), Some(&5_000), "what differs stays");
}
