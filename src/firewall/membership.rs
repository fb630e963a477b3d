//! What a set of pods holds at one address.
//!
//! Every element of such a set belongs to one address, and only the pods that have the address decide about it
//! (`claims`), so a change of a pod is a change at its addresses and nowhere else.

use std::net::IpAddr;
use std::sync::Arc;

use compact_str::CompactString;

use crate::model::{Namespace, Pod, Table};
use crate::net::Family;

use super::claims::Claimant;
use super::rules::{Contents, Element, PortOwners, SetKey};
use super::{named_port, selection};

/// The elements at an address that these pods, and no others, have: those that all of them would have alone.
///
/// A set of named ports of this node asks its pods only. A set of blocks does not depend on pods: the answer is nothing.
pub fn elements_at<'a>(
    set: &'a SetKey,
    address: IpAddr,
    claimants: &'a [Arc<Claimant>],
    namespaces: &'a Table<CompactString, Namespace>,
) -> impl Iterator<Item = Element> + 'a {
    let is_asked = |claimant: &&Arc<Claimant>| claimant.is_local || !is_of_this_node(set);
    let mut others = claimants.iter().filter(is_asked);
    let first = others.next();
    let candidates = first.into_iter().flat_map(move |first| candidates(set, &first.pod, address));
    candidates.filter(move |element| {
        let mut all = first.into_iter().chain(others.clone());
        all.all(|claimant| belongs(set, claimant, namespaces, *element))
    })
}

/// The elements that a set has at an address now.
pub fn elements_now(contents: &Contents, set: &SetKey, address: IpAddr) -> Vec<Element> {
    let elements = contents.elements.of(Family::from(address));
    let range = match set {
        SetKey::Pods(_) => Element::Address(address)..=Element::Address(address),
        SetKey::NamedPort { .. } => Element::Port(address, 0)..=Element::Port(address, u16::MAX),
        SetKey::Blocks(_) => return Vec::new(),
    };
    elements.range(range).copied().collect()
}

/// Whether a set holds named ports of this node's pods, and of no others.
pub fn is_of_this_node(set: &SetKey) -> bool {
    matches!(set, SetKey::NamedPort { pods: PortOwners::Local, .. })
}

/// The elements that a pod would have at an address if it belonged to the set.
fn candidates<'a>(set: &'a SetKey, pod: &'a Pod, address: IpAddr) -> impl Iterator<Item = Element> + 'a {
    let (whole, named) = match set {
        SetKey::Pods(_) => (Some(Element::Address(address)), None),
        SetKey::NamedPort { name, protocol, .. } => (None, Some(named_port::elements(pod, address, name, *protocol))),
        SetKey::Blocks(_) => (None, None),
    };
    whole.into_iter().chain(named.into_iter().flatten())
}

/// Whether an element at an address of this pod is what the set asks for.
fn belongs(set: &SetKey, claimant: &Claimant, namespaces: &Table<CompactString, Namespace>, element: Element) -> bool {
    let is_selected = |wanted: &_| {
        let namespace = namespaces.get(&claimant.name.namespace).map(|namespace| &namespace.labels);
        selection::selects(wanted, &claimant.name, &claimant.pod, namespace)
    };
    match (set, element) {
        (SetKey::Pods(wanted), Element::Address(_)) => is_selected(wanted),
        (SetKey::NamedPort { pods, name, protocol }, Element::Port(address, number)) => {
            let has_port = claimant.pod.port_numbers(name, *protocol).any(|other| other == number);
            has_port && named_port::is_among(pods, address, is_selected)
        }
        _ => false,
    }
}
