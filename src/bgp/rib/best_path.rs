//! Best-path selection among the routes to one prefix.
//!
//! RFC 4271 9.1.2.2, with RFC 4456 9 for reflected routes. In this order: without LLGR_STALE (RFC 9494 4.2, *least preferred*); higher LOCAL_PREF; locally originated;
//! shorter AS_PATH; lower ORIGIN; lower MED, among routes from the same neighbouring AS; EBGP before IBGP; lower BGP
//! identifier of the originator; shorter CLUSTER_LIST; lower address of the neighbour. Nothing depends on the time of
//! receipt, so that the same routes always yield the same table. Stale routes (graceful restart) take part like all
//! others (RFC 4724 4.2).
//!
//! The steps are in one place, [`left_after`]: it chooses the best route, those that share traffic with it, and says at
//! which step each other one lost.

use std::cmp::Ordering;
use std::net::{IpAddr, Ipv4Addr};

use super::super::message::{Attributes, Community};

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

/// Step of the decision, in the order in which they are taken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Step {
    /// Not kept as the last resort: without LLGR_STALE.
    LongLived,
    /// Higher LOCAL_PREF.
    LocalPref,
    /// Locally originated.
    Local,
    /// Shorter AS_PATH.
    AsPathLength,
    /// Lower ORIGIN.
    Origin,
    /// Lower MED, among routes from the same neighbouring AS.
    Med,
    /// EBGP before IBGP.
    External,
    /// Lower BGP identifier of the originator.
    Identifier,
    /// Shorter CLUSTER_LIST.
    ClusterList,
    /// Lower address of the neighbour.
    Address,
}

/// Defeat of a candidate: the step that decided against it, and the index of one that is better there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Defeat {
    pub step: Step,
    pub by: usize,
}

/// Index of the best candidate; `None` without candidates.
pub(super) fn best(candidates: &[Candidate]) -> Option<usize> {
    left_after(Step::Address, candidates, |_, _| {}).first().copied()
}

/// Defeat of each candidate, in their order; the best has none.
pub(super) fn defeats(candidates: &[Candidate]) -> Vec<Option<Defeat>> {
    let mut defeats = vec![None; candidates.len()];
    left_after(Step::Address, candidates, |place, defeat| {
        if let Some(known) = defeats.get_mut(place) {
            *known = Some(defeat);
        }
    });
    defeats
}

/// Indices of the candidates that tie with the best before the tie-breakers and are on the same side (EBGP or IBGP):
/// traffic may be shared among them (multipath).
pub(super) fn equals(candidates: &[Candidate]) -> Vec<usize> {
    left_after(Step::External, candidates, |_, _| {})
}

/// Takes the steps of the decision up to `last`; returns the indices of the candidates that are left, in their order.
/// `lost` is called for each of the others.
fn left_after(last: Step, candidates: &[Candidate], mut lost: impl FnMut(usize, Defeat)) -> Vec<usize> {
    let mut left: Vec<(usize, &Candidate)> = candidates.iter().enumerate().collect();
    for step in Step::ALL.into_iter().take_while(|step| *step <= last) {
        let Some((_, first)) = left.first().copied().filter(|_| left.len() > 1) else { break };
        if left.iter().all(|(_, candidate)| step.compare(candidate, first) == Ordering::Equal) {
            continue;
        }
        // The best of those that the step compares with each other: several for MED, one for each other step.
        let mut best: Vec<(usize, &Candidate)> = Vec::new();
        for (place, candidate) in &left {
            match best.iter_mut().find(|(_, other)| step.compares(candidate, other)) {
                Some(known) if step.compare(candidate, known.1) == Ordering::Less => *known = (*place, *candidate),
                Some(_) => {}
                None => best.push((*place, *candidate)),
            }
        }
        left.retain(|(place, candidate)| {
            let better = best.iter().find(|(_, other)| {
                step.compares(candidate, other) && step.compare(candidate, other) == Ordering::Greater
            });
            better.into_iter().for_each(|(by, _)| lost(*place, Defeat { step, by: *by }));
            better.is_none()
        });
    }
    left.into_iter().map(|(place, _)| place).collect()
}

impl Step {
    /// All steps, in their order.
    pub const ALL: [Step; 10] = [
        Step::LongLived,
        Step::LocalPref,
        Step::Local,
        Step::AsPathLength,
        Step::Origin,
        Step::Med,
        Step::External,
        Step::Identifier,
        Step::ClusterList,
        Step::Address,
    ];

    /// Returns whether the step compares two candidates at all (RFC 4271 9.1.2.2 c).
    fn compares(self, one: &Candidate, other: &Candidate) -> bool {
        self != Step::Med || one.neighbour() == other.neighbour()
    }

    /// Order of two candidates in this step; the smaller is better.
    fn compare(self, one: &Candidate, other: &Candidate) -> Ordering {
        let (ours, theirs) = (one.attributes, other.attributes);
        match self {
            Step::LongLived => ours.has(Community::LLGR_STALE).cmp(&theirs.has(Community::LLGR_STALE)),
            Step::LocalPref => theirs.preference().cmp(&ours.preference()),
            Step::Local => one.is_learned().cmp(&other.is_learned()),
            Step::AsPathLength => ours.as_path.length().cmp(&theirs.as_path.length()),
            Step::Origin => ours.origin.cmp(&theirs.origin),
            // A route without one has the lowest.
            Step::Med => ours.med.unwrap_or(0).cmp(&theirs.med.unwrap_or(0)),
            Step::External => one.is_inside().cmp(&other.is_inside()),
            Step::Identifier => one.began_at().cmp(&other.began_at()),
            Step::ClusterList => ours.rare().clusters.len().cmp(&theirs.rare().clusters.len()),
            Step::Address => one.source.address.cmp(&other.source.address),
        }
    }
}

impl Candidate<'_> {
    fn is_learned(&self) -> bool {
        self.source.kind != Kind::Local
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

    /// BGP identifier of the router that originated the route in this AS.
    fn began_at(&self) -> Ipv4Addr {
        self.attributes.rare().originator.unwrap_or(self.source.identifier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bgp::message::{AsPath, Origin};

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

    /// The step at which the second route loses to the first, whichever comes first.
    fn lost_at(one: (&Attributes, Source), other: (&Attributes, Source)) -> Step {
        assert!(better(one, other));
        let candidate = |(attributes, source)| Candidate { attributes, source };
        let (first, second) = ((one.0, &one.1), (other.0, &other.1));
        let forward = defeats(&[candidate(first), candidate(second)]);
        let backward = defeats(&[candidate(second), candidate(first)]);
        let [None, Some(Defeat { step, by: 0 })] = forward[..] else { panic!("{forward:?}") };
        assert_eq!(backward, [Some(Defeat { step, by: 1 }), None]);
        step
    }

    #[test]
    fn the_step_that_decides_is_named() {
        let (outside, inside) = (source(Kind::External, 9), source(Kind::Internal, 1));
        let with = |change: fn(&mut Attributes)| {
            let mut attributes = route(&[1]);
            change(&mut attributes);
            attributes
        };
        let plain = route(&[1]);
        let stale = with(|it| {
            it.local_pref = Some(300);
            it.add_communities(&[Community::LLGR_STALE]);
        });
        assert_eq!(lost_at((&plain, inside), (&stale, source(Kind::Local, 1))), Step::LongLived);
        let preferred = with(|it| it.local_pref = Some(200));
        assert_eq!(lost_at((&preferred, inside), (&plain, outside)), Step::LocalPref);
        assert_eq!(lost_at((&route(&[]), source(Kind::Local, 99)), (&route(&[]), inside)), Step::Local);
        assert_eq!(lost_at((&plain, inside), (&route(&[1, 2]), outside)), Step::AsPathLength);
        assert_eq!(lost_at((&plain, inside), (&with(|it| it.origin = Origin::Egp), outside)), Step::Origin);
        assert_eq!(lost_at((&plain, inside), (&with(|it| it.med = Some(1)), outside)), Step::Med);
        assert_eq!(lost_at((&plain, outside), (&plain, inside)), Step::External);
        assert_eq!(lost_at((&plain, inside), (&plain, source(Kind::Client, 2))), Step::Identifier);
        let reflected = with(|it| {
            it.change_rare(|rare| {
                rare.originator = Some(Ipv4Addr::new(192, 0, 2, 1));
                rare.clusters = [Ipv4Addr::new(0, 0, 0, 1)].into();
            });
        });
        assert_eq!(lost_at((&plain, inside), (&reflected, source(Kind::Internal, 2))), Step::ClusterList);
        for (one, other) in [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2"), ("192.0.2.9", "2001:db8::1")] {
            let at = |address: &str| Source { address: address.parse().unwrap(), ..inside };
            assert_eq!(lost_at((&plain, at(one)), (&plain, at(other))), Step::Address, "{one} and {other}");
        }
    }

    #[test]
    fn med_takes_a_route_out_by_one_of_its_own_neighbouring_as_that_may_lose_itself() {
        let a = Attributes { med: Some(10), ..route(&[1]) };
        let b = Attributes { med: Some(5), ..route(&[1]) };
        let c = Attributes { med: Some(7), ..route(&[2]) };
        let sources = [1, 3, 2].map(|number| source(Kind::External, number));
        let all = [&a, &b, &c];
        let candidates = [0, 1, 2].map(|place: usize| Candidate { attributes: all[place], source: &sources[place] });
        let defeat = |step, by| Some(Defeat { step, by });
        assert_eq!(defeats(&candidates), [defeat(Step::Med, 1), defeat(Step::Identifier, 2), None]);
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
        assert_eq!(equals(&candidates), [0, 1]);
        assert_eq!(best(&[]), None);
    }
}
