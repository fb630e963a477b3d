//! The elements of a set of pods at one address.
//!
//! Every element of such a set belongs to one address, and depends only on the pods that have the address (`claims`),
//! so a change of a pod is a change at its addresses and nowhere else.

use std::collections::BTreeSet;
use std::net::IpAddr;

use compact_str::CompactString;

use crate::model::{Namespace, Pod, Table};
use crate::net::Family;

use super::claims::Claimant;
use super::rules::{Contents, Element, PortOwners, Selection, SetKey};
use super::{named_port, selection};

/// Returns the elements at an address that exactly these pods have: those that each of them would have alone, or, of a set for
/// rules that deny, that any of them would have. Each is returned once.
///
/// A set of named ports of this node considers its pods only. A set of blocks does not depend on pods: empty.
pub fn elements_at<'a>(
    set: &'a SetKey,
    address: IpAddr,
    claimants: &'a [Claimant<'a>],
    namespaces: &'a Table<CompactString, Namespace>,
) -> impl Iterator<Item = Element> + 'a {
    let is_asked = |claimant: &&Claimant<'_>| claimant.is_local || !is_of_this_node(set);
    let mut others = claimants.iter().filter(is_asked);
    let first = others.next();
    let denied = match set {
        SetKey::Denied(set) => any_of(set, address, claimants, namespaces),
        SetKey::Pods(_) | SetKey::Blocks(_) | SetKey::NamedPort { .. } => BTreeSet::new(),
    };
    let candidates = first.into_iter().flat_map(move |first| candidates(set, first.pod, address));
    let shared = candidates.filter(move |element| {
        let mut all = first.into_iter().chain(others.clone());
        all.all(|claimant| belongs(set, claimant, false, namespaces, *element))
    });
    shared.chain(denied)
}

/// Returns the elements that any of these pods would have alone. One whose Namespace is not known may be any that a selector of
/// namespaces is about: nothing that is to be denied passes for that.
fn any_of(
    set: &SetKey,
    address: IpAddr,
    claimants: &[Claimant<'_>],
    namespaces: &Table<CompactString, Namespace>,
) -> BTreeSet<Element> {
    let asked = claimants.iter().filter(|claimant| claimant.is_local || !is_of_this_node(set));
    let alone = |claimant: &Claimant<'_>| {
        let elements = candidates(set, claimant.pod, address);
        elements.filter(|element| belongs(set, claimant, true, namespaces, *element)).collect::<Vec<_>>()
    };
    asked.flat_map(alone).collect()
}

/// Returns the elements that a set has at an address now.
pub fn elements_now(contents: &Contents, set: &SetKey, address: IpAddr) -> Vec<Element> {
    let elements = contents.elements.of(Family::from(address));
    let range = match set {
        SetKey::Pods(_) => Element::Address(address)..=Element::Address(address),
        SetKey::NamedPort { .. } => Element::Port(address, 0)..=Element::Port(address, u16::MAX),
        SetKey::Denied(set) => return elements_now(contents, set, address),
        SetKey::Blocks(_) => return Vec::new(),
    };
    elements.range(range).copied().collect()
}

/// Returns whether a set holds named ports of this node's pods only.
pub fn is_of_this_node(set: &SetKey) -> bool {
    match set {
        SetKey::NamedPort { pods, .. } => *pods == PortOwners::Local,
        SetKey::Denied(set) => is_of_this_node(set),
        SetKey::Pods(_) | SetKey::Blocks(_) => false,
    }
}

/// Returns the elements that a pod would have at an address if it belonged to the set.
fn candidates<'a>(set: &'a SetKey, pod: &'a Pod, address: IpAddr) -> impl Iterator<Item = Element> + 'a {
    let (whole, named) = match set {
        SetKey::Pods(_) => (Some(Element::Address(address)), None),
        SetKey::NamedPort { name, protocol, .. } => (None, Some(named_port::elements(pod, address, name, *protocol))),
        SetKey::Blocks(_) | SetKey::Denied(_) => (None, None),
    };
    whole.into_iter().chain(named.into_iter().flatten())
}

/// Returns whether a pod with this address belongs to the set, or may: `may` counts what the labels of a Namespace say that is
/// not known.
fn belongs(
    set: &SetKey,
    claimant: &Claimant<'_>,
    may: bool,
    namespaces: &Table<CompactString, Namespace>,
    element: Element,
) -> bool {
    let is_selected = |wanted: &Selection| {
        let namespace = namespaces.get(&claimant.name.namespace).map(|namespace| &namespace.labels);
        let may = may && namespace.is_none() && selection::may_look_into(&wanted.namespaces);
        may && wanted.pods.selects(&claimant.pod.labels)
            || selection::selects(wanted, claimant.name, claimant.pod, namespace)
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

#[cfg(test)]
mod tests {
    use super::super::given::{address, labels, object, pod, selector};
    use super::super::rules::Scope;
    use super::*;
    use crate::model::ObjectName;
    use crate::net::Protocol;

    const ADDRESS: &str = "10.244.1.1";

    /// `pods` are names with labels and ports; those named `local…` are of this node.
    fn check(set: &SetKey, pods: &[(&str, &str, &str)], expected: &[Element]) {
        let mut namespaces = Table::default();
        namespaces.insert("shop".into(), Namespace { labels: labels("team=red"), isolated: false });
        let pods: Vec<(ObjectName, Pod)> =
            pods.iter().map(|(name, of, ports)| (object(name), pod(ADDRESS, of, ports))).collect();
        let claimant = |(name, pod)| Claimant { name, pod, is_local: name.name.starts_with("local") };
        let claimants: Vec<Claimant<'_>> = pods.iter().map(|(name, pod)| claimant((name, pod))).collect();
        let found: Vec<Element> = elements_at(set, address(ADDRESS), &claimants, &namespaces).collect();
        assert_eq!(found, expected);
    }

    fn of_red(of: &str) -> Selection {
        Selection { namespaces: Scope::Selected(selector("team=red")), pods: selector(of) }
    }

    fn http(pods: PortOwners) -> SetKey {
        SetKey::NamedPort { pods, name: "http".into(), protocol: Protocol::Tcp }
    }

    fn at(number: u16) -> Element {
        Element::Port(address(ADDRESS), number)
    }

    #[test]
    fn the_address_of_a_selected_pod_is_in_the_set() {
        let set = SetKey::Pods(of_red("app=web"));
        check(&set, &[("shop/a", "app=web", "")], &[Element::Address(address(ADDRESS))]);
        check(&set, &[("shop/a", "app=db", "")], &[]);
        check(&set, &[("unknown/a", "app=web", "")], &[]);
        check(&set, &[], &[]);
    }

    #[test]
    fn all_pods_of_an_address_have_to_belong_to_the_set() {
        let set = SetKey::Pods(of_red("app=web"));
        check(&set, &[("shop/a", "app=web", ""), ("shop/b", "app=web", "")], &[Element::Address(address(ADDRESS))]);
        check(&set, &[("shop/a", "app=web", ""), ("shop/b", "app=db", "")], &[]);
        check(&set, &[("shop/a", "app=db", ""), ("shop/b", "app=web", "")], &[]);
    }

    #[test]
    fn a_name_stands_for_the_numbers_that_all_pods_of_the_address_agree_on() {
        let set = http(PortOwners::All);
        check(&set, &[("shop/a", "", "http/tcp/80 http/tcp/8080 dns/udp/53")], &[at(80), at(8080)]);
        let other = ("shop/b", "", "http/tcp/8080 http/udp/80");
        check(&set, &[("shop/a", "", "http/tcp/80 http/tcp/8080"), other], &[at(8080)]);
        check(&set, &[("shop/a", "", "http/tcp/80"), other], &[]);
        check(&http(PortOwners::Selected(of_red("app=web"))), &[("shop/a", "app=web", "http/tcp/80")], &[at(80)]);
        check(&http(PortOwners::Selected(of_red("app=web"))), &[("shop/a", "app=db", "http/tcp/80")], &[]);
    }

    #[test]
    fn a_set_of_this_node_s_ports_asks_the_pods_of_this_node() {
        let set = http(PortOwners::Local);
        check(&set, &[("shop/other", "", "http/tcp/80")], &[]);
        check(&set, &[("shop/local", "", "http/tcp/80"), ("shop/other", "", "http/tcp/81")], &[at(80)]);
        check(&set, &[("shop/local", "", "http/tcp/80"), ("shop/local-too", "", "")], &[]);
    }

    #[test]
    fn a_set_of_what_is_denied_has_what_any_pod_of_the_address_has() {
        let denied = |set| SetKey::Denied(Box::new(set));
        let web = denied(SetKey::Pods(of_red("app=web")));
        let here = [Element::Address(address(ADDRESS))];
        check(&web, &[("shop/a", "app=web", ""), ("shop/b", "app=web", "")], &here);
        check(&web, &[("shop/a", "app=db", ""), ("shop/b", "app=web", "")], &here);
        check(&web, &[("shop/a", "app=db", "")], &[]);
        let both = [("shop/local", "", "http/tcp/80"), ("shop/other", "", "http/tcp/81")];
        check(&denied(http(PortOwners::All)), &both, &[at(80), at(81)]);
        check(&denied(http(PortOwners::Local)), &both, &[at(80)]);
    }

    #[test]
    fn a_pod_of_a_namespace_that_is_not_known_is_denied_what_its_labels_may_be_denied() {
        let denied = |set| SetKey::Denied(Box::new(set));
        let everywhere = Selection { namespaces: Scope::Selected(selector("")), pods: selector("app=web") };
        for selection in [of_red("app=web"), everywhere] {
            let set = denied(SetKey::Pods(selection));
            check(&set, &[("unknown/a", "app=web", "")], &[Element::Address(address(ADDRESS))]);
            check(&set, &[("unknown/a", "app=db", "")], &[]);
        }
        let named = Selection { namespaces: Scope::Named("shop".into()), pods: selector("") };
        check(&denied(SetKey::Pods(named)), &[("unknown/a", "app=web", "")], &[]);
    }

    #[test]
    fn a_set_of_blocks_asks_nobody() {
        let blocks = [super::super::ip_block::block("10.0.0.0/8".parse().unwrap(), &[])];
        check(&SetKey::Blocks(blocks.clone().into()), &[("shop/a", "", "http/tcp/80")], &[]);
        check(&http(named_port::inside(&blocks)), &[("shop/a", "", "http/tcp/80")], &[at(80)]);
    }
}
