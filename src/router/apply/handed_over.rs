//! Link addresses of `vxlan` that come to be another node's (`router/link_addresses.rs`).
//!
//! The kernel has one forwarding entry for a link address, and one neighbour for the gateway that is made of it. An entry that went after another node's had come
//! there would take that one's neighbour with it, and until then the last seen state would have two where the kernel has one. So it goes before.

use std::collections::BTreeSet;

use super::{Kernel, Mirrors};
use crate::kernel::vxlan::{EntryKey, gateway};
use crate::reconcile::{Moment, Reflection};
use crate::router::routes::Routes;

impl<K: Kernel> Mirrors<K> {
    /// Deletes the entries of nodes whose link address another node has now, at the cost of the entries that differ from what is wanted.
    pub(super) fn clear_handed_over(&mut self, learned: &Routes, at: Moment) {
        if self.overlay_entries.is_settled() || !self.overlay_entries.learn(at) {
            return;
        }
        let (entries, wanted) = (&self.overlay_entries, learned.entries());
        // A gateway of IPv4 is the node's address.
        let is_ipv6 = |key: &&EntryKey| key.remote.is_ipv6();
        let differing: Vec<&EntryKey> = match entries.unsettled() {
            Some(keys) => keys.iter().chain(entries.postponed()).filter(is_ipv6).collect(),
            None => entries.known_keys().chain(wanted.keys()).filter(is_ipv6).collect(),
        };
        let place = |key: &EntryKey| (key.link.clone(), gateway(key.remote));
        let going = handed_over(&differing, |key| wanted.contains_key(key), place);
        if going.is_empty() {
            return;
        }
        for key in &going {
            self.overlay_entries.take_up(key);
        }
        self.overlay_entries.delete_among(wanted, at, |key| going.contains(key));
    }
}

/// Returns the keys, of those that may differ from what is wanted, that are not wanted and have their place in the kernel in common with one that is.
fn handed_over<P: Ord>(
    differing: &[&EntryKey],
    is_wanted: impl Fn(&EntryKey) -> bool,
    place: impl Fn(&EntryKey) -> P,
) -> BTreeSet<EntryKey> {
    let (coming, going): (Vec<&EntryKey>, Vec<&EntryKey>) = differing.iter().copied().partition(|key| is_wanted(key));
    if going.is_empty() {
        return BTreeSet::new();
    }
    let places: BTreeSet<P> = coming.into_iter().map(&place).collect();
    going.into_iter().filter(|key| places.contains(&place(key))).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Family;
    use crate::router::given::address;
    use crate::router::names::vxlan;

    #[test]
    fn what_goes_where_nothing_comes_is_not_handed_over() {
        let key = |text: &str| EntryKey { link: vxlan(Family::V6), remote: address(text) };
        let (first, second, third) = (key("2001:db8::1"), key("2001:db8::2"), key("2001:db8::3"));
        let all = [&first, &second, &third];
        // The first two have one link address.
        let place = |key: &EntryKey| *key == third;
        assert_eq!(handed_over(&all, |key| *key == first, place), BTreeSet::from([second.clone()]));
        assert_eq!(handed_over(&all, |key| *key == third, place), BTreeSet::new());
        assert_eq!(handed_over(&all, |_| true, place), BTreeSet::new());
        assert_eq!(handed_over(&all, |_| false, place), BTreeSet::new());
        let gateways = handed_over(&all, |key| *key == first, |key| gateway(key.remote));
        assert_eq!(gateways, BTreeSet::new(), "they are different ones");
    }
}
