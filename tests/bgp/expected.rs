//! The tables that all hosts must come to, computed at once and without messages.
//!
//! Every host takes the best of what its neighbours show it, again and again, until nothing changes. This is written
//! from the rules (RFC 4271 9.1, RFC 4456), without the speaker's code.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use sluice::bgp::rib::NextHops;

use crate::network::{Host, address, address_v6, identifier};

/// A route as a host has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    pub path: Vec<u32>,
    pub next_hop: IpAddr,
    /// The host that it came from; itself for its own.
    from: usize,
    originator: Option<Ipv4Addr>,
    clusters: Vec<Ipv4Addr>,
}

pub type Tables = Vec<BTreeMap<IpNet, Route>>;

pub fn tables(hosts: &[Host]) -> Tables {
    let prefixes: BTreeSet<IpNet> = hosts.iter().flat_map(|host| host.plan.origins.iter().copied()).collect();
    let mut tables: Tables = vec![BTreeMap::new(); hosts.len()];
    for _ in 0..200 {
        let mut changed = false;
        for host in 0..hosts.len() {
            for prefix in &prefixes {
                let best = best(hosts, &tables, host, *prefix);
                if tables[host].get(prefix) != best.as_ref() {
                    changed = true;
                    match best {
                        Some(best) => tables[host].insert(*prefix, best),
                        None => tables[host].remove(prefix),
                    };
                }
            }
        }
        if !changed {
            return tables;
        }
    }
    panic!("the hosts never agree");
}

fn best(hosts: &[Host], tables: &Tables, host: usize, prefix: IpNet) -> Option<Route> {
    let plan = &hosts[host].plan;
    let own = plan.origins.contains(&prefix).then(|| Route {
        path: Vec::new(),
        next_hop: if matches!(prefix, IpNet::V4(_)) { address(host) } else { address_v6(host) },
        from: host,
        originator: None,
        clusters: Vec::new(),
    });
    let heard = plan.peers.keys().filter_map(|peer| shown(hosts, tables, *peer, host, prefix));
    let rank = |route: &Route| {
        let inside = route.from != host && hosts[route.from].plan.asn == plan.asn;
        let began = route.originator.unwrap_or(identifier(route.from));
        (Reverse(route.from == host), route.path.len(), inside, began, route.clusters.len(), address(route.from))
    };
    own.into_iter().chain(heard).min_by_key(rank)
}

/// Route that a host announces to a neighbour for its best path, if the neighbour accepts it.
pub fn shown(hosts: &[Host], tables: &Tables, from: usize, to: usize, prefix: IpNet) -> Option<Route> {
    let (sender, receiver) = (&hosts[from].plan, &hosts[to].plan);
    let route = tables[from].get(&prefix)?;
    let stopped = sender.stopped.contains(&to) || receiver.stopped.contains(&from);
    if stopped || sender.blocked.contains(&prefix) || route.from == to {
        return None;
    }
    let own_address = if matches!(prefix, IpNet::V4(_)) { address(from) } else { address_v6(from) };
    let learned_inside = route.from != from && hosts[route.from].plan.asn == sender.asn;
    let mut route = Route { from, ..route.clone() };
    let source = tables[from][&prefix].from;
    if sender.asn == receiver.asn {
        if learned_inside {
            if !(sender.peers[&source] || sender.peers[&to]) {
                return None;
            }
            route.originator = route.originator.or(Some(identifier(source)));
            route.clusters.insert(0, identifier(from));
        } else if source != from && sender.next_hops == NextHops::Ours {
            route.next_hop = own_address;
        }
    } else {
        route.path.insert(0, sender.asn);
        route.originator = None;
        route.clusters.clear();
        if source == from || sender.next_hops != NextHops::Kept {
            route.next_hop = own_address;
        }
    }
    let looped = route.path.contains(&receiver.asn)
        || route.originator == Some(identifier(to))
        || route.clusters.contains(&identifier(to))
        || [address(to), address_v6(to)].contains(&route.next_hop);
    (!looped).then_some(route)
}
