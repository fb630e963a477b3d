//! The clients of a virtual service: everybody, those in its source ranges (`source_ranges`), those on this node (`inside`).
//!
//! Each of the two has a set of the virtual services that it is about, in which one element closes a virtual service to others, and
//! rules of its own. Both exist only while any virtual service of the family is closed. What all of them share is here: the element
//! and the rules stand before the virtual service that they close, and go after it (`apply`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;

use crate::kernel::ipset::{Entry, IpPortNet};
use crate::kernel::iptables::Piece;
use crate::kernel::ipvs::ServiceKey;
use crate::kernel::nftables::Object;
use crate::net::{Family, PerFamily};

use super::marks::restriction;
use super::names::Set;
use super::source_ranges::Sources;
use super::{inside, source_ranges};

/// The only clients of one virtual service; those that both fields let in.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Clients {
    pub sources: Sources,
    /// Only pods of this node and the node itself.
    pub inside_only: bool,
}

/// The virtual services that are not open to everybody.
#[derive(Default)]
pub struct Restrictions {
    sources: BTreeMap<ServiceKey, Arc<[IpNet]>>,
    /// Number of ranges of each length.
    lengths: BTreeMap<(Family, u8), usize>,
    services: PerFamily<usize>,
    inside_only: BTreeSet<ServiceKey>,
    inside_services: PerFamily<usize>,
}

/// The part of the restrictions that the rules depend on.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Shape {
    /// The families of which any virtual service has source ranges.
    pub ranged: PerFamily<bool>,
    /// The lengths of prefixes of all source ranges.
    pub lengths: BTreeSet<(Family, u8)>,
    /// The families of which any virtual service is there for this node only.
    pub inside: PerFamily<bool>,
    /// The families of which any is in tunnel mode.
    pub tunnels: PerFamily<bool>,
}

impl Shape {
    /// Returns whether a set is used in a family.
    pub fn uses(&self, set: Set, family: Family) -> bool {
        match set {
            Set::Restricted | Set::AllowedSources => *self.ranged.of(family),
            Set::InsideOnly => *self.inside.of(family),
            Set::TunnelAddresses | Set::TunnelPorts => *self.tunnels.of(family),
            Set::LocalAddresses | Set::ServiceAddresses | Set::ServicePorts | Set::Hairpin => true,
        }
    }
}

impl Restrictions {
    /// Sets the clients of a virtual service. Returns the elements that come with that and those that go.
    pub fn set(&mut self, key: ServiceKey, clients: Clients) -> Vec<(Set, Entry, bool)> {
        let Some(service) = restriction(&key) else { return Vec::new() };
        let mut changed = self.set_inside_only(key, &service, clients.inside_only);
        let sources = clients.sources;
        let before = match &sources {
            Some(sources) => self.sources.insert(key, sources.clone()),
            None => self.sources.remove(&key),
        };
        if before == sources {
            return changed;
        }
        let family = service.family();
        if before.is_some() != sources.is_some() {
            count(self.services.of_mut(family), sources.is_some());
            changed.push((Set::Restricted, service, sources.is_some()));
        }
        let (before, after) = (before.as_deref().unwrap_or_default(), sources.as_deref().unwrap_or_default());
        for (range, is_there) in different(before, after) {
            let ranges = self.lengths.entry((family, range.prefix_len())).or_default();
            count(ranges, is_there);
            if *ranges == 0 {
                self.lengths.remove(&(family, range.prefix_len()));
            }
            changed.extend(source(&key, range).map(|entry| (Set::AllowedSources, entry, is_there)));
        }
        changed
    }

    fn set_inside_only(&mut self, key: ServiceKey, service: &Entry, is_inside_only: bool) -> Vec<(Set, Entry, bool)> {
        let differs = match is_inside_only {
            true => self.inside_only.insert(key),
            false => self.inside_only.remove(&key),
        };
        if !differs {
            return Vec::new();
        }
        count(self.inside_services.of_mut(service.family()), is_inside_only);
        vec![(Set::InsideOnly, service.clone(), is_inside_only)]
    }

    /// Returns whether a virtual service is there for this node only.
    pub fn is_inside_only(&self, key: &ServiceKey) -> bool {
        self.inside_only.contains(key)
    }

    pub fn shape(&self) -> Shape {
        let any = |counts: &PerFamily<usize>| PerFamily::from_fn(|family| *counts.of(family) > 0);
        Shape {
            ranged: any(&self.services),
            lengths: self.lengths.keys().copied().collect(),
            inside: any(&self.inside_services),
            tunnels: PerFamily::default(),
        }
    }
}

/// Returns the set whose elements decide what a piece of rules of iptables drops; `None` for other rules.
pub fn set_of_rule(piece: &Piece) -> Option<Set> {
    let family = piece.family();
    let of_ranges = source_ranges::is_rule(piece, family).then_some(Set::Restricted);
    of_ranges.or_else(|| inside::is_rule(piece).then_some(Set::InsideOnly))
}

/// The same of a chain of our table of nf_tables. Also returns its family; `None` for one of both.
pub fn set_of_chain(object: &Object) -> Option<(Set, Option<Family>)> {
    let of_ranges = || source_ranges::is_chain(object).then(|| (Set::Restricted, source_ranges::family_of(object)));
    let of_inside = || inside::is_chain(object).then(|| (Set::InsideOnly, inside::family_of(object)));
    of_ranges().or_else(of_inside)
}

fn count(number: &mut usize, more: bool) {
    *number = if more { *number + 1 } else { number.saturating_sub(1) };
}

/// Returns the ranges of only one of two sorted lists, and whether it is the second.
fn different<'a>(before: &'a [IpNet], after: &'a [IpNet]) -> impl Iterator<Item = (IpNet, bool)> + 'a {
    let is_in = |list: &[IpNet], range: &IpNet| list.binary_search(range).is_ok();
    let added = after.iter().filter(move |range| !is_in(before, range)).map(|range| (*range, true));
    added.chain(before.iter().filter(move |range| !is_in(after, range)).map(|range| (*range, false)))
}

/// Returns the element by which the clients of one range reach a virtual service.
pub fn source(key: &ServiceKey, range: IpNet) -> Option<Entry> {
    let ServiceKey::Address { address, protocol, port } = *key else { return None };
    Some(Entry::IpPortNet(Box::new(IpPortNet { address, protocol, port, range })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Protocol;

    fn key() -> ServiceKey {
        ServiceKey::Address { address: [203, 0, 113, 20].into(), protocol: Protocol::Tcp, port: 80 }
    }

    fn said(changed: &[(Set, Entry, bool)]) -> Vec<String> {
        let one = |(_, entry, is_there): &(Set, Entry, bool)| format!("{}{entry}", if *is_there { "+" } else { "-" });
        changed.iter().map(one).collect()
    }

    #[test]
    fn a_change_of_ranges_names_what_differs_and_the_shape_follows() {
        let list = |ranges: &[&str]| Some(ranges.iter().map(|range| range.parse().expect("a range")).collect());
        let mut restrictions = Restrictions::default();
        let mut set = |sources: Sources| {
            let changed = restrictions.set(key(), Clients { sources, inside_only: false });
            let shape = restrictions.shape();
            let lengths: Vec<u8> = shape.lengths.iter().map(|(_, length)| *length).collect();
            (said(&changed), shape.ranged.v4, lengths)
        };
        let text = |texts: &[&str]| texts.iter().map(|text| text.to_string()).collect::<Vec<_>>();
        let (first, second) = ("203.0.113.20,tcp:80,10.0.0.0/8", "203.0.113.20,tcp:80,198.51.100.0/24");
        let plus = |one: &str| format!("+{one}");
        assert_eq!(set(list(&["10.0.0.0/8"])), (vec![plus("203.0.113.20,tcp:80"), plus(first)], true, vec![8]));
        assert_eq!(set(list(&["10.0.0.0/8"])), (Vec::new(), true, vec![8]));
        assert_eq!(set(list(&["198.51.100.0/24"])), (vec![plus(second), format!("-{first}")], true, vec![24]));
        assert_eq!(set(list(&[])), (text(&["-203.0.113.20,tcp:80,198.51.100.0/24"]), true, Vec::new()));
        assert_eq!(set(None), (text(&["-203.0.113.20,tcp:80"]), false, Vec::new()));
    }

    #[test]
    fn a_virtual_service_for_this_node_only_is_one_element_whatever_its_source_ranges_are() {
        let mut restrictions = Restrictions::default();
        let ranges: Sources = Some(["10.0.0.0/8".parse().expect("a range")].into());
        let both = Clients { sources: ranges.clone(), inside_only: true };
        assert_eq!(restrictions.set(key(), both.clone()).len(), 3, "one for each set");
        assert!(restrictions.is_inside_only(&key()) && restrictions.shape().inside.v4);
        assert_eq!(restrictions.set(key(), both), []);
        let opened = restrictions.set(key(), Clients { sources: ranges, inside_only: false });
        assert_eq!(said(&opened), ["-203.0.113.20,tcp:80"]);
        assert!(opened.iter().all(|(set, ..)| *set == Set::InsideOnly));
        assert_eq!((restrictions.shape().inside.v4, restrictions.shape().ranged.v4), (false, true));
    }
}
