//! Memory used by the long attribute sets of one neighbour's routes.
//!
//! The prefix limit, and a bound on all sets together, bound short sets of attributes. A long one may have 64 KiB (RFC 8654), a different one for every
//! route, so they are counted by their bytes, each set once, however many routes share it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::message::Attributes;

/// Long attribute sets of one neighbour's routes, as received.
#[derive(Debug, Default)]
pub struct LongSets {
    /// Number of routes with each set, by its address: routes keep it allocated.
    routes: BTreeMap<usize, u32>,
    bytes: usize,
}

/// Size in bytes from which on a set is long.
const LONG: usize = 512;

impl LongSets {
    /// Counts a received route with this set.
    pub fn add(&mut self, set: &Arc<Attributes>) {
        let weight = set.weight();
        if weight < LONG {
            return;
        }
        let routes = self.routes.entry(place(set)).or_default();
        *routes += 1;
        if *routes == 1 {
            self.bytes += weight;
        }
    }

    /// Discounts a removed route, which still holds this set.
    pub fn remove(&mut self, set: &Arc<Attributes>) {
        let place = place(set);
        let Some(routes) = self.routes.get_mut(&place) else { return };
        *routes -= 1;
        if *routes == 0 {
            self.routes.remove(&place);
            self.bytes -= set.weight();
        }
    }

    /// Total size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }
}

fn place(set: &Arc<Attributes>) -> usize {
    Arc::as_ptr(set).addr()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bgp::message::Community;

    fn set(communities: u32) -> Arc<Attributes> {
        let mut attributes = Attributes::local([192, 0, 2, 1].into());
        attributes.communities = (0..communities).map(Community).collect();
        Arc::new(attributes)
    }

    #[test]
    fn a_long_set_counts_once_and_until_its_last_route_has_gone() {
        let (long, other, short) = (set(1000), set(2000), set(3));
        let mut sets = LongSets::default();
        [&long, &long, &other, &short].into_iter().for_each(|set| sets.add(set));
        assert_eq!(sets.bytes(), long.weight() + other.weight());
        sets.remove(&long);
        sets.remove(&short);
        assert_eq!(sets.bytes(), long.weight() + other.weight());
        sets.remove(&long);
        sets.remove(&other);
        assert!(sets.is_empty() && sets.bytes() == 0);
    }
}
