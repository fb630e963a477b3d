//! When cluster IPs that no Service has begin to be refused, and when no longer.

use super::{Kernel, Mirrors};
use crate::kernel::iptables::Piece;
use crate::kernel::nftables::Object;
use crate::model::Authority;
use crate::proxy::desired::Desired;
use crate::proxy::names::Set;
use crate::proxy::unallocated::{is_chain, is_rule, narrowed, narrowed_chain};
use crate::reconcile::{Growth, MayGrow, Moment, Reflection};

impl<K: Kernel> Mirrors<K> {
    /// Has the free addresses of the desired ranges refused where all Services are known and the kernel has the addresses of all of them: what may be a
    /// Service's is not refused. Until then nothing comes to be refused, and what is not to be refused any more ceases to be. That is so for a remembered
    /// cluster as well: who has addresses in a range (this host, another network) may be cut off by it.
    pub(super) fn refuse_unallocated(&mut self, desired: &Desired, authority: Authority, at: Moment) {
        if self.rules.is_settled() && self.table.is_settled() {
            return;
        }
        if authority == Authority::Complete && self.has_all_addresses(desired) {
            self.rules.grow_among(&desired.rules, Growth::Full, at, is_rule);
            self.table.grow_among(&desired.table, Growth::Full, at, is_chain);
            return;
        }
        self.narrow_rules(desired, at);
        self.narrow_table(desired, at);
    }

    /// Returns whether the rules that refuse free cluster IPs were last seen in the kernel as desired, and there are some.
    pub fn refuses_unallocated(&self, desired: &Desired) -> bool {
        let rules: Vec<bool> = desired
            .rules
            .iter()
            .filter(|(piece, _)| is_rule(piece))
            .map(|(piece, rules)| self.rules.seen().is_some_and(|seen| seen.get(piece) == Some(rules)))
            .collect();
        let chains = desired
            .table
            .iter()
            .filter(|(object, _)| is_chain(object))
            .map(|(object, content)| self.table.seen().is_some_and(|seen| seen.get(object) == Some(content)));
        let all: Vec<bool> = rules.into_iter().chain(chains).collect();
        !all.is_empty() && all.into_iter().all(|is_there| is_there)
    }

    /// Returns whether the guard knows the addresses of all Services.
    fn has_all_addresses(&self, desired: &Desired) -> bool {
        let is_address = |set: Set| set == Set::ServiceAddresses;
        let in_sets = |key: &_| Set::of_element(key).is_some_and(|(set, _)| is_address(set));
        let in_table = |object: &Object| Set::of_object(object).is_some_and(|(set, _)| is_address(set));
        self.elements.missing(&desired.elements, in_sets) + self.table.missing(&desired.table, in_table) == 0
    }

    fn narrow_rules(&mut self, desired: &Desired, at: Moment) {
        let seen = self.rules.seen().into_iter().flat_map(|seen| seen.iter()).filter(|(piece, _)| is_rule(piece));
        let mut kept = Vec::new();
        let mut differing: Vec<Piece> = Vec::new();
        for (piece, rules) in seen {
            let now = narrowed(rules, desired.rules.get(piece));
            differing.extend((now.as_ref() != Some(rules)).then(|| piece.clone()));
            kept.extend(now.map(|now| (piece.clone(), now)));
        }
        if differing.is_empty() {
            // A deletion that was done and reported as failed has nothing left to do; elsewhere that ends with a round that may shrink.
            self.rules.delete_among(&desired.rules, at, |_| false);
            return;
        }
        let mut want = desired.rules.clone();
        want.retain(|piece, _| !is_rule(piece));
        want.extend(kept);
        self.rules.grow_among(&want, Growth::Full, at, is_rule);
        // The jumps go before what they lead to.
        self.rules.delete_among(&want, at, |piece| is_rule(piece) && matches!(piece, Piece::Jump { .. }));
        desired
            .rules
            .keys()
            .filter(|piece| is_rule(piece))
            .cloned()
            .chain(differing)
            .for_each(|piece| self.rules.mark(piece));
    }

    fn narrow_table(&mut self, desired: &Desired, at: Moment) {
        let seen = self.table.seen().into_iter().flat_map(|seen| seen.iter());
        // Chains come before all elements.
        let seen = seen.take_while(|(object, _)| !matches!(object, Object::Element(..)));
        let mut want = desired.table.clone();
        let mut differing: Vec<Object> = Vec::new();
        for (object, content) in seen.filter(|(object, _)| is_chain(object)) {
            let now = narrowed_chain(content, desired.table.get(object));
            differing.extend((now.as_ref() != Some(content)).then(|| object.clone()));
            match now {
                Some(now) => drop(want.insert(object.clone(), now)),
                None => drop(want.remove(object)),
            }
        }
        if differing.is_empty() {
            self.table.delete_among(&desired.table, at, |_| false);
            return;
        }
        self.table.grow_those(&want, Growth::Full, at, MayGrow { come: |_: &Object| false, change: is_chain });
        self.table.delete_among(&want, at, is_chain);
        let desired_chains = desired.table.keys().take_while(|object| !matches!(object, Object::Element(..)));
        desired_chains
            .filter(|object| is_chain(object))
            .cloned()
            .chain(differing)
            .for_each(|object| self.table.mark(object));
    }
}
