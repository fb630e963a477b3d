//! Best-path selection among the routes to one prefix.
//!
//! RFC 4271 9.1.2.2, with RFC 4456 9 for reflected routes. In this order: higher LOCAL_PREF; locally originated;
//! shorter AS_PATH; lower ORIGIN; lower MED, among routes from the same neighbouring AS; EBGP before IBGP; lower BGP
//! identifier of the originator; shorter CLUSTER_LIST; lower address of the neighbour. Nothing depends on the time of
//! receipt, so that the same routes always yield the same table. Stale routes (graceful restart) take part like all
//! others (RFC 4724 4.2).

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use super::super::message::{Attributes, Origin};

/// Type of the source or receiver of a route.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// Local.
    Local,
    /// EBGP neighbour.
    External,
    /// IBGP neighbour.
    Internal,
    /// IBGP neighbour that is our route reflector client.
    Client,
}

/// Properties of the source neighbour that affect its routes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Source {
    pub kind: Kind,
    pub identifier: Ipv4Addr,
    pub address: IpAddr,
    /// Required first AS of its paths: its own AS number, where that is enforced (RFC 4271 6.3).
    pub first: Option<u32>,
}

/// Route eligible for selection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<'a> {
    pub attributes: &'a Attributes,
    pub source: &'a Source,
}

/// Index of the best candidate; `None` without candidates.
pub(super) fn best(candidates: &[Candidate]) -> Option<usize> {
    if let [_] = candidates {
        return Some(0);
    }
    let equals = equally_good(candidates);
    equals.into_iter().min_by_key(|place| candidates.get(*place).map(Candidate::tie_breakers))
}

/// Indices of the candidates that tie with the best before the tie-breakers and are on the same side (EBGP or IBGP):
/// traffic may be shared among them (multipath).
pub(super) fn equals(candidates: &[Candidate], best: usize) -> Vec<usize> {
    let is_inside = candidates.get(best).map(Candidate::is_inside);
    let mut equals = equally_good(candidates);
    equals.retain(|place| candidates.get(*place).map(Candidate::is_inside) == is_inside);
    equals
}

/// Indices of the candidates left after the comparison of MED.
fn equally_good(candidates: &[Candidate]) -> Vec<usize> {
    let best = candidates.iter().map(Candidate::rank).min();
    let mut left: Vec<(usize, &Candidate)> =
        candidates.iter().enumerate().filter(|(_, candidate)| Some(candidate.rank()) == best).collect();
    let first = left.first().map(|(_, candidate)| candidate.med());
    if left.iter().any(|(_, candidate)| Some(candidate.med()) != first) {
        let mut lowest: BTreeMap<Option<u32>, u32> = BTreeMap::new();
        for (_, candidate) in &left {
            let lowest = lowest.entry(candidate.neighbour()).or_insert(u32::MAX);
            *lowest = candidate.med().min(*lowest);
        }
        left.retain(|(_, candidate)| lowest.get(&candidate.neighbour()) == Some(&candidate.med()));
    }
    left.into_iter().map(|(place, _)| place).collect()
}

impl Candidate<'_> {
    /// Sort key before MED; the smaller is better.
    fn rank(&self) -> (Reverse<u32>, bool, usize, Origin) {
        let attributes = self.attributes;
        let learned = self.source.kind != Kind::Local;
        (Reverse(attributes.preference()), learned, attributes.as_path.length(), attributes.origin)
    }

    /// MED for comparison: a route without one has the lowest (RFC 4271 9.1.2.2 c).
    fn med(&self) -> u32 {
        self.attributes.med.unwrap_or(0)
    }

    /// Neighbouring AS, within which MEDs are comparable; `None` is ours.
    fn neighbour(&self) -> Option<u32> {
        self.attributes.as_path.neighbour()
    }

    fn is_inside(&self) -> bool {
        match self.source.kind {
            Kind::Local | Kind::External => false,
            Kind::Internal | Kind::Client => true,
        }
    }

    /// Sort key after MED; the smaller is better.
    fn tie_breakers(&self) -> (bool, Ipv4Addr, usize, IpAddr) {
        let rare = self.attributes.rare();
        let began_at = rare.originator.unwrap_or(self.source.identifier);
        (self.is_inside(), began_at, rare.clusters.len(), self.source.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bgp::message::AsPath;

    fn source(kind: Kind, number: u8) -> Source {
        let address = Ipv4Addr::new(192, 0, 2, number);
        Source { kind, identifier: address, address: IpAddr::V4(address), first: None }
    }

    fn route(path: &[u32]) -> Attributes {
        Attributes { as_path: AsPath::sequence(path), ..Attributes::local("203.0.113.1".parse().unwrap()) }
    }

    /// Compares two routes, in both orders.
    fn better(one: (&Attributes, Source), other: (&Attributes, Source)) -> bool {
        let candidate = |(attributes, source)| Candidate { attributes, source };
        let (first, second) = ((one.0, &one.1), (other.0, &other.1));
        let forward = best(&[candidate(first), candidate(second)]) == Some(0);
        let backward = best(&[candidate(second), candidate(first)]) == Some(1);
        assert_eq!(forward, backward, "the order does not count");
        forward
    }

    #[test]
    fn each_step_decides_only_when_those_before_it_do_not() {
        let (outside, inside) = (source(Kind::External, 9), source(Kind::Internal, 1));
        let preferred = Attributes { local_pref: Some(200), origin: Origin::Incomplete, ..route(&[1, 2, 3]) };
        assert!(better((&preferred, inside), (&route(&[1]), outside)), "local preference");
        let own = Attributes { origin: Origin::Incomplete, ..route(&[]) };
        assert!(better((&own, source(Kind::Local, 99)), (&route(&[]), inside)), "our own");
        let short = Attributes { origin: Origin::Incomplete, ..route(&[1]) };
        assert!(better((&short, inside), (&route(&[1, 2]), outside)), "the path");
        let igp = Attributes { med: Some(100), ..route(&[1]) };
        let egp = Attributes { origin: Origin::Egp, ..route(&[1]) };
        assert!(better((&igp, inside), (&egp, outside)), "the origin");
        let cheap = Attributes { med: Some(1), ..route(&[1]) };
        assert!(better((&cheap, inside), (&igp, outside)), "MED from the same neighbour");
        assert!(better((&route(&[1]), inside), (&cheap, outside)), "no MED is the lowest");
        let elsewhere = Attributes { med: Some(0), ..route(&[2]) };
        assert!(better((&igp, outside), (&elsewhere, inside)), "MED of different neighbours does not count");
        assert!(better((&route(&[1]), outside), (&route(&[1]), inside)), "from outside");
        assert!(better((&route(&[1]), source(Kind::External, 1)), (&route(&[1]), source(Kind::External, 2))));
    }

    #[test]
    fn a_reflected_route_is_known_by_where_it_began_and_by_how_many_reflectors_it_passed() {
        let mut far = route(&[1]);
        far.change_rare(|rare| rare.originator = Some("192.0.2.1".parse().unwrap()));
        assert!(better((&far, source(Kind::Internal, 9)), (&route(&[1]), source(Kind::Internal, 5))));
        let mut farther = far.clone();
        farther.change_rare(|rare| rare.clusters = Box::from(["0.0.0.1".parse().unwrap()]));
        assert!(better((&far, source(Kind::Internal, 9)), (&farther, source(Kind::Internal, 3))));
    }

    #[test]
    fn med_decides_the_same_in_every_order() {
        // The classic MED example, in which preference is not transitive: each beats one of the others.
        let a = Attributes { med: Some(10), ..route(&[1]) };
        let b = Attributes { med: Some(5), ..route(&[1]) };
        let c = Attributes { med: Some(7), ..route(&[2]) };
        let all = [(&a, source(Kind::External, 1)), (&b, source(Kind::External, 3)), (&c, source(Kind::External, 2))];
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let candidates = order.map(|place: usize| Candidate { attributes: all[place].0, source: &all[place].1 });
            let best = best(&candidates).map(|place| order[place]);
            assert_eq!(best, Some(2), "a falls to b by MED, and c has the lower identifier");
        }
    }

    #[test]
    fn equals_are_those_that_only_a_decision_tells_apart() {
        let (one, long) = (route(&[1]), route(&[1, 2]));
        let dear = Attributes { med: Some(5), ..route(&[1]) };
        let sources = [source(Kind::External, 1), source(Kind::External, 2), source(Kind::Internal, 3)];
        let candidate = |attributes, source: usize| Candidate { attributes, source: &sources[source] };
        let candidates =
            [candidate(&one, 0), candidate(&one, 1), candidate(&one, 2), candidate(&long, 1), candidate(&dear, 1)];
        assert_eq!(equals(&candidates, best(&candidates).unwrap()), [0, 1]);
        assert_eq!(best(&[]), None);
    }
}
