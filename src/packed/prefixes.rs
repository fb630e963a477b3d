//! Ordered maps of prefixes: those of IPv4 first, as `IpNet` sorts them.
//!
//! A key with room for IPv6 takes 18 bytes, an IPv4 prefix 5. A whole table of learned routes, of which most are IPv4, stands in several
//! maps, so each family has a map of its own.

use std::ops::Bound;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::BlockMap;
use crate::net::Family;

/// A map of prefixes of both families.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PrefixMap<V> {
    v4: BlockMap<Ipv4Net, V>,
    v6: BlockMap<Ipv6Net, V>,
}

impl<V: Clone> PrefixMap<V> {
    pub fn insert(&mut self, prefix: IpNet, value: V) -> Option<V> {
        match prefix {
            IpNet::V4(prefix) => self.v4.insert(prefix, value),
            IpNet::V6(prefix) => self.v6.insert(prefix, value),
        }
    }

    pub fn remove(&mut self, prefix: &IpNet) -> Option<V> {
        match prefix {
            IpNet::V4(prefix) => self.v4.remove(prefix),
            IpNet::V6(prefix) => self.v6.remove(prefix),
        }
    }

    /// Returns the value of a prefix, which may be changed.
    pub fn value_mut(&mut self, prefix: &IpNet) -> Option<&mut V> {
        match prefix {
            IpNet::V4(prefix) => self.v4.value_mut(prefix),
            IpNet::V6(prefix) => self.v6.value_mut(prefix),
        }
    }

    /// Returns the value of a prefix, which is put in place if there is none; it is always there.
    pub fn or_default(&mut self, prefix: IpNet) -> Option<&mut V>
    where
        V: Default,
    {
        match prefix {
            IpNet::V4(prefix) => self.v4.or_default(prefix),
            IpNet::V6(prefix) => self.v6.or_default(prefix),
        }
    }

    /// Changes the values of a family, those for which `change` returns something else.
    pub fn update(&mut self, family: Family, change: impl FnMut(&V) -> Option<V>) {
        match family {
            Family::V4 => self.v4.update(.., change),
            Family::V6 => self.v6.update(.., change),
        }
    }

    /// Fills the blocks again if many prefixes came one by one.
    pub fn pack(&mut self) {
        self.v4.pack();
        self.v6.pack();
    }
}

impl<V> PrefixMap<V> {
    pub fn get(&self, prefix: &IpNet) -> Option<&V> {
        match prefix {
            IpNet::V4(prefix) => self.v4.get(prefix),
            IpNet::V6(prefix) => self.v6.get(prefix),
        }
    }

    /// Returns the prefixes of a family behind this one, or all of them, in order.
    pub fn of_family(&self, family: Family, after: Option<IpNet>) -> impl Iterator<Item = (IpNet, &V)> {
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.starting(family, after)
    }

    /// Returns this prefix, if it is there, and those of its family behind it, in order.
    pub fn at_and_behind(&self, first: IpNet) -> impl Iterator<Item = (IpNet, &V)> {
        self.starting(Family::from(first), Bound::Included(first))
    }

    fn starting(&self, family: Family, start: Bound<IpNet>) -> impl Iterator<Item = (IpNet, &V)> {
        // A prefix of the other family is before or behind all of this one.
        let of_v4 = match (family, start) {
            (Family::V6, _) | (Family::V4, Bound::Included(IpNet::V6(_)) | Bound::Excluded(IpNet::V6(_))) => None,
            (Family::V4, Bound::Included(IpNet::V4(first))) => Some(Bound::Included(first)),
            (Family::V4, Bound::Excluded(IpNet::V4(first))) => Some(Bound::Excluded(first)),
            (Family::V4, Bound::Unbounded) => Some(Bound::Unbounded),
        };
        let of_v6 = match (family, start) {
            (Family::V4, _) => None,
            (Family::V6, Bound::Included(IpNet::V6(first))) => Some(Bound::Included(first)),
            (Family::V6, Bound::Excluded(IpNet::V6(first))) => Some(Bound::Excluded(first)),
            (Family::V6, _) => Some(Bound::Unbounded),
        };
        let v4 = of_v4.into_iter().flat_map(|start| self.v4.range((start, Bound::Unbounded)));
        let v6 = of_v6.into_iter().flat_map(|start| self.v6.range((start, Bound::Unbounded)));
        let v4 = v4.map(|(prefix, value)| (IpNet::V4(*prefix), value));
        v4.chain(v6.map(|(prefix, value)| (IpNet::V6(*prefix), value)))
    }

    /// Returns all prefixes, in order.
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, &V)> {
        let v4 = self.v4.iter().map(|(prefix, value)| (IpNet::V4(*prefix), value));
        v4.chain(self.v6.iter().map(|(prefix, value)| (IpNet::V6(*prefix), value)))
    }

    pub fn keys(&self) -> impl Iterator<Item = IpNet> {
        self.iter().map(|(prefix, _)| prefix)
    }

    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.v4.values().chain(self.v6.values())
    }

    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

impl<V> Default for PrefixMap<V> {
    fn default() -> Self {
        PrefixMap { v4: BlockMap::default(), v6: BlockMap::default() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn prefix() -> impl Strategy<Value = IpNet> {
        let v4 = (0..40_u8, 8..=32_u8).prop_map(|(host, length)| (format!("10.{host}.0.0"), length));
        let v6 = (0..40_u8, 16..=128_u8).prop_map(|(host, length)| (format!("fd00:{host:x}::"), length));
        prop_oneof![v4, v6].prop_map(|(address, length)| format!("{address}/{length}").parse().expect("a prefix"))
    }

    fn of(family: Family) -> impl Fn(&(&IpNet, &u8)) -> bool {
        move |(prefix, _)| Family::from(**prefix) == family
    }

    proptest! {
        #[test]
        fn a_map_of_prefixes_is_the_map_that_a_tree_is(
            events in vec((prefix(), proptest::option::weighted(0.7, 0..9_u8)), 0..200),
            asked in prefix(),
        ) {
            let mut model: BTreeMap<IpNet, u8> = BTreeMap::new();
            let mut map: PrefixMap<u8> = PrefixMap::default();
            for (prefix, value) in events {
                match value {
                    Some(0) => {
                        *map.or_default(prefix).expect("it is there") += 1;
                        *model.entry(prefix).or_default() += 1;
                    }
                    Some(value) => prop_assert_eq!(map.insert(prefix, value), model.insert(prefix, value)),
                    None => prop_assert_eq!(map.remove(&prefix), model.remove(&prefix)),
                }
                prop_assert_eq!(map.get(&prefix), model.get(&prefix));
                prop_assert_eq!(map.value_mut(&prefix).copied(), model.get(&prefix).copied());
            }
            map.update(Family::from(asked), |value| (*value == 3).then_some(7));
            model.iter_mut().filter(|(prefix, value)| Family::from(**prefix) == Family::from(asked) && **value == 3)
                .for_each(|(_, value)| *value = 7);
            map.pack();
            prop_assert!(map.iter().eq(model.iter().map(|(prefix, value)| (*prefix, value))));
            prop_assert!(map.keys().eq(model.keys().copied()) && map.values().eq(model.values()));
            prop_assert_eq!((map.len(), map.is_empty()), (model.len(), model.is_empty()));
            for family in Family::BOTH {
                let all = model.iter().filter(of(family)).map(|(prefix, value)| (*prefix, value));
                prop_assert!(map.of_family(family, None).eq(all));
            }
            let own = Family::from(asked);
            let behind = (Bound::Excluded(asked), Bound::Unbounded);
            let behind = model.range(behind).filter(of(own)).map(|(prefix, value)| (*prefix, value));
            prop_assert!(map.of_family(own, Some(asked)).eq(behind));
            let from = model.range(asked..).filter(of(own)).map(|(prefix, value)| (*prefix, value));
            prop_assert!(map.at_and_behind(asked).eq(from));
        }
    }
}
