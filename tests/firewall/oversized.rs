//! Policies with more blocks than the kernel is given: what the oracle says of them, and that the compiled rules mean that.
//!
//! The bound is some hundred thousand; here it is a few, so that policies made by chance exceed it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use sluice::config::Backend;
use sluice::firewall::oversized::Bound;
use sluice::firewall::plan::Plan;
use sluice::model::{Action, Cluster, ObjectName, Peer, Peers, PolicyRule, Ports, World};

use super::cases::{Case, HERE, block, object, pods, port, rule};
use super::support::random::for_many;
use super::{clusters, histories, tiers};

/// The World in which policies above the bound say what they count as, for the oracle.
fn within(world: &World, backend: Backend, most: usize) -> World {
    let mut after = world.clone();
    let Cluster { policies, cluster_policies, .. } = &world.cluster;
    for (name, policy) in policies.iter() {
        let rules = policy.ingress.iter().chain(&policy.egress).flatten();
        if elements(rules, backend) > most {
            let mut policy = (**policy).clone();
            policy.ingress.iter_mut().chain(&mut policy.egress).flatten().for_each(|rule| {
                if let Peers::Of(peers) = &mut rule.peers {
                    *peers = peers.iter().filter(|peer| !is_block(peer)).cloned().collect();
                }
            });
            after.cluster.policies.insert(name.clone(), policy);
        }
    }
    for (name, policy) in cluster_policies.iter() {
        if elements(policy.ingress.iter().chain(&policy.egress).map(|rule| &rule.matches), backend) > most {
            let mut policy = (**policy).clone();
            for rule in policy.ingress.iter_mut().chain(&mut policy.egress) {
                if !matches!(&rule.matches.peers, Peers::Of(peers) if peers.iter().any(is_block)) {
                    continue;
                }
                let peers = if rule.action == Action::Accept { Peers::Of([].into()) } else { Peers::Any };
                rule.matches = PolicyRule { peers, ports: Ports::Any };
                if rule.action == Action::Pass {
                    rule.action = Action::Deny;
                }
            }
            after.cluster.cluster_policies.insert(name.clone(), policy);
        }
    }
    after
}

fn is_block(peer: &Peer) -> bool {
    matches!(peer, Peer::Block { .. })
}

/// The number of elements that the blocks of these rules are; those that are alike in two rules count once.
fn elements<'a>(rules: impl Iterator<Item = &'a PolicyRule>, backend: Backend) -> usize {
    let lists: BTreeSet<BTreeSet<(IpNet, BTreeSet<IpNet>)>> = rules
        .map(|rule| match &rule.peers {
            Peers::Of(peers) => peers.iter().filter_map(plain).collect(),
            Peers::Any => BTreeSet::new(),
        })
        .collect();
    let of_family = |list: &BTreeSet<(IpNet, BTreeSet<IpNet>)>, is_v4: bool| {
        let is_its = |net: &IpNet| net.addr().is_ipv4() == is_v4;
        let list: Vec<_> = list.iter().filter(|(cidr, _)| is_its(cidr)).collect();
        let has_holes = list.iter().any(|(_, holes)| !holes.is_empty());
        let holds = |address: IpAddr| {
            list.iter()
                .any(|(cidr, holes)| cidr.contains(&address) && !holes.iter().any(|hole| hole.contains(&address)))
        };
        // Nothing begins or ends anywhere else.
        let all = list.iter().flat_map(|(cidr, holes)| [cidr].into_iter().chain(holes));
        let edges: BTreeSet<IpAddr> =
            all.flat_map(|net| [Some(net.network()), next(net.broadcast())]).flatten().collect();
        let edges: Vec<IpAddr> = edges.into_iter().collect();
        let mut ranges: Vec<(IpAddr, IpAddr)> = Vec::new();
        for (place, first) in edges.iter().enumerate().filter(|(_, first)| holds(**first)) {
            let last = edges.get(place + 1).map_or(end(is_v4), |next| previous(*next));
            match ranges.last_mut() {
                Some(before) if next(before.1) == Some(*first) => before.1 = last,
                _ => ranges.push((*first, last)),
            }
        }
        match backend {
            Backend::Nftables if has_holes => ranges.len(),
            _ => ranges.into_iter().map(prefixes).sum(),
        }
    };
    lists.iter().map(|list| of_family(list, true) + of_family(list, false)).sum()
}

/// A block as it is told from others: without bits behind the prefix, and without exceptions that take nothing away.
fn plain(peer: &Peer) -> Option<(IpNet, BTreeSet<IpNet>)> {
    let Peer::Block { cidr, except } = peer else { return None };
    let cidr = cidr.trunc();
    let effect = |hole: &IpNet| match hole {
        hole if hole.contains(&cidr) => Some(cidr),
        hole => cidr.contains(hole).then(|| hole.trunc()),
    };
    Some((cidr, except.iter().filter_map(effect).collect()))
}

fn prefixes((first, last): (IpAddr, IpAddr)) -> usize {
    match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => Ipv4Subnets::new(first, last, 0).count(),
        (IpAddr::V6(first), IpAddr::V6(last)) => Ipv6Subnets::new(first, last, 0).count(),
        _ => panic!("two families"),
    }
}

fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => address.to_bits().checked_add(1).map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(address) => address.to_bits().checked_add(1).map(|bits| IpAddr::V6(bits.into())),
    }
}

fn previous(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => IpAddr::V4((address.to_bits() - 1).into()),
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() - 1).into()),
    }
}

fn end(is_v4: bool) -> IpAddr {
    if is_v4 { [255; 4].into() } else { [255; 16].into() }
}

#[test]
fn policies_above_the_bound_mean_what_they_count_as_whatever_happened_before() {
    let [exceeded, taken] = [(); 2].map(|()| AtomicUsize::new(0));
    for_many(120, |random| {
        let backend = *random.pick(&[Backend::Iptables, Backend::Nftables]);
        let most = *random.pick(&[0, 1, 2, 4, 20, 60]);
        let mut plan = Plan::with_bound(Bound::new(backend, most));
        let mut world = tiers::world(random, 30);
        for _ in 0..6 {
            clusters::change(&mut world, random);
            tiers::put(&mut world.cluster, random);
            plan.update(&world);
            let counts_as = within(&world, backend, most);
            let is_other = |name: &ObjectName| match name.namespace.is_empty() {
                true => {
                    let of = |world: &World| world.cluster.cluster_policies.get(&name.name.as_str().into()).cloned();
                    of(&world) != of(&counts_as)
                }
                false => world.cluster.policies.get(name) != counts_as.cluster.policies.get(name),
            };
            let found: BTreeSet<ObjectName> = plan.oversized().0.keys().cloned().collect();
            let policies = world.cluster.policies.iter().map(|(name, _)| name.clone());
            let of_cluster = world.cluster.cluster_policies.iter().map(|(name, _)| ObjectName::new("", name));
            let expected: BTreeSet<ObjectName> = policies.chain(of_cluster).filter(is_other).collect();
            assert_eq!(found, expected, "{backend:?} {most} {:#?}", world.cluster);
            exceeded.fetch_add(found.len(), Relaxed);
            let all = world.cluster.policies.iter().count() + world.cluster.cluster_policies.iter().count();
            taken.fetch_add(all - found.len(), Relaxed);
            let differs = histories::disagreement(plan.rules(), &counts_as, random, 150);
            assert!(differs.is_none(), "{differs:?} {backend:?} {most} {:#?}", world.cluster);
        }
    });
    let (exceeded, taken) = (exceeded.into_inner(), taken.into_inner());
    assert!(exceeded + taken < 100 || exceeded > 0 && taken > 0, "{exceeded} above, {taken} within");
}

#[test]
fn a_policy_is_back_in_force_when_it_has_become_smaller() {
    let holes = ["203.0.113.1/32", "203.0.113.3/32"];
    let policy = |holes: &[&str]| {
        let peers = [pods("app=b"), block("203.0.113.0/24", holes)];
        let case = Case::new().namespace("shop", "").pod("shop/a", HERE, ["10.244.0.1", "app=a", ""]);
        case.policy("shop/a", "app=a", [Some(&[rule(&peers, &[])]), None]).0
    };
    let mut plan = Plan::with_bound(Bound::new(Backend::Nftables, 2));
    plan.update(&policy(&holes));
    assert_eq!(plan.oversized().0.keys().collect::<Vec<_>>(), [&object("shop/a")]);
    assert_eq!(plan.rules().sets.len(), 1, "pods go on being peers");
    plan.update(&policy(&holes[..1]));
    assert!(plan.oversized().0.is_empty());
    assert_eq!(plan.rules().sets.len(), 2);
    plan.update(&policy(&holes));
    let mut gone = policy(&holes);
    gone.cluster.policies.remove(&object("shop/a"));
    plan.update(&gone);
    assert!(plan.oversized().0.is_empty());
}

#[test]
fn a_policy_with_too_many_peers_times_ports_lets_nothing_pass_and_makes_no_sets() {
    let names = |count: usize| (0..count).map(|number| port(&format!("tcp/a{number}"))).collect::<Vec<_>>();
    let with = |peers: usize, ports: usize| {
        let peers: Vec<Peer> = (0..peers).map(|number| pods(&format!("app=b{number}"))).collect();
        let case = Case::new().namespace("shop", "").pod("shop/a", HERE, ["10.244.0.1", "app=a", ""]);
        let rule = rule(&peers, &names(ports));
        case.policy("shop/a", "app=a", [Some(std::slice::from_ref(&rule)), Some(std::slice::from_ref(&rule))]).0
    };
    let mut plan = Plan::new();
    plan.update(&with(5_000, 5_000));
    assert_eq!(plan.oversized().0.keys().collect::<Vec<_>>(), [&object("shop/a")]);
    assert_eq!((plan.rules().policies.len(), plan.rules().sets.len()), (2, 0), "isolated in both directions");
    plan.update(&with(500, 2));
    assert!(plan.oversized().0.is_empty());
    assert_eq!(plan.rules().sets.len(), 500 + 2 + 2 * 500);
}
