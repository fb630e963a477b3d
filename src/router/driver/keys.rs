//! The public key of this node: from the kernel into the annotation of our own Node. And whether other nodes know it, and the addresses that were
//! detected here.

use std::time::Instant;

use tracing::info;

use super::{Driver, Kernel};
use crate::model::{
    NODE_ADDRESS_ANNOTATION as ADDRESS_ANNOTATION, OwnAnnotation, WIREGUARD_KEY_ANNOTATION as KEY_ANNOTATION,
    WIREGUARD_NEXT_KEY_ANNOTATION as NEXT_KEY_ANNOTATION,
};
use crate::net::PublicKey;
use crate::router::rotation::{Told, UNTOLD, next_to_tell};

/// Since when other nodes cannot know something; `None` where they do.
#[derive(Default, Debug)]
pub(super) struct Untold {
    key: Option<Instant>,
    addresses: Option<Instant>,
}

impl<K: Kernel> Driver<K> {
    /// Takes over the key that the kernel tells, and has it written where the Node has another one, or where none is used any more.
    pub(super) fn tell_key(&mut self, now: Instant) {
        let key = self.mirrors.own_keys().first.filter(|_| self.config.key_file.is_some());
        if let Some(key) = key.filter(|key| self.key_change.told_first != Some(*key)) {
            info!(%key, "Public key of this node for WireGuard");
            self.key_change.told_first = Some(key);
        }
        let next = self.mirrors.next_key().filter(|_| self.config.key_file.is_some());
        if let Some(key) = next.filter(|next| self.key_change.told_next != Some(*next)) {
            info!(%key, "Next public key of this node for WireGuard");
            self.key_change.told_next = Some(key);
        }
        self.follow_keys();
        // A Node that is not known may have the key already.
        if self.plan.own().primary.is_none() {
            return;
        }
        let seen = self.plan.key_in_node(&self.plan.own().name);
        let is_told = key.is_none() || key == seen;
        self.untold.key = if is_told { None } else { self.untold.key.or(Some(now)) };
        // Until the kernel has told it, what an earlier run has written is the best that is known.
        if self.config.key_file.is_some() && key.is_none() {
            return;
        }
        self.report(KEY_ANNOTATION, key, seen);
        let seen_next = self.plan.next_key_in_node(&self.plan.own().name);
        let told = Told { first: seen, next: seen_next };
        let wanted = || next_to_tell(self.mirrors.own_keys(), self.mirrors.next_key(), told);
        let wanted = self.config.key_file.as_ref().and_then(|_| wanted());
        self.report(NEXT_KEY_ANNOTATION, wanted, seen_next);
    }

    fn report(&self, annotation: &'static str, wanted: Option<PublicKey>, seen: Option<PublicKey>) {
        let text = |key: Option<PublicKey>| key.map(|key| key.to_string());
        let told = OwnAnnotation { wanted: text(wanted), seen: text(seen) };
        self.context.report.send_if_modified(|report| {
            let is_other = report.annotations.get(annotation).unwrap_or(&OwnAnnotation::default()) != &told;
            if is_other {
                report.annotations.insert(annotation, told.clone());
            }
            is_other
        });
    }

    /// Returns that other nodes do not know our key, where it has been so for a while.
    fn untold_key(&self, now: Instant) -> Option<String> {
        let since = self.untold.key?;
        (since + UNTOLD <= now).then(|| {
            format!(
                "other nodes send nothing to this one: the annotation {KEY_ANNOTATION} of its Node is not {}; the agent writes it where it \
                 has the right to patch nodes, and with --manifests whoever writes them",
                self.mirrors.own_keys().first.map(|key| key.to_string()).unwrap_or_default()
            )
        })
    }

    /// Returns that other nodes do not know our key, why no address of a family was detected, and that other nodes do not know what was, or go by what was
    /// before, each where it has been so for a while.
    pub(super) fn troubles_of_own_node(&mut self, now: Instant) -> Vec<String> {
        let mut troubles: Vec<String> = self.untold_key(now).into_iter().collect();
        troubles.extend(self.plan.own().undetected.iter().filter_map(|(_, problem)| problem.clone()));
        let node = &self.plan.own().name;
        let untold = self.context.report.borrow().annotations.get(ADDRESS_ANNOTATION).and_then(|one| untold(one, node));
        self.untold.addresses = untold.as_ref().and(self.untold.addresses.or(Some(now)));
        troubles.extend(untold.filter(|_| self.untold.addresses.is_some_and(|since| since + UNTOLD <= now)));
        troubles
    }
}

/// Returns that the addresses in the annotation of a Node are not those that were found here; `None` where they are.
fn untold(annotation: &OwnAnnotation, node: &str) -> Option<String> {
    let OwnAnnotation { wanted, seen } = annotation;
    match (wanted, seen) {
        (Some(wanted), _) if Some(wanted) != seen.as_ref() => Some(format!(
            "other nodes do not route to the addresses that were found here: the annotation {ADDRESS_ANNOTATION} of its Node is not {wanted}; \
             the agent writes it where it has the right to patch nodes, and with --manifests whoever writes them"
        )),
        (None, Some(seen)) => Some(format!(
            "other nodes route to {seen}, which is not to be any more: the annotation {ADDRESS_ANNOTATION} of its Node stays; the agent removes it where it \
             has the right to patch nodes, and with --manifests whoever writes them; by hand: kubectl annotate node {node} {ADDRESS_ANNOTATION}-"
        )),
        (Some(_), _) | (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_others_do_not_know_are_trouble_and_so_are_those_that_are_to_go_and_do_not() {
        let said = |wanted: &str, seen: &str| {
            let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            untold(&OwnAnnotation { wanted: text(wanted), seen: text(seen) }, "node-1").unwrap_or_default()
        };
        for address in ["198.51.100.1", "2001:db8:1::1", "198.51.100.1,2001:db8:1::1"] {
            let is_lacking = format!("its Node is not {address};");
            assert!(said(address, "").contains(&is_lacking) && said(address, "203.0.113.9").contains(&is_lacking));
            let stays = said("", address);
            assert!(
                stays.starts_with(&format!("other nodes route to {address}, which is not to be any more")),
                "{stays}"
            );
            assert!(stays.ends_with("kubectl annotate node node-1 kube-router.io/node-address-"), "{stays}");
            assert_eq!((said(address, address), said("", "")), (String::new(), String::new()));
        }
    }
}
