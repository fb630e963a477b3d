//! The way that a packet takes from this node to an address, for who asks: whose the address is, which desired route leads there and from whom
//! it is, whether the kernel has it, the tunnel, what fits through, the source address, whether packets of pods are masqueraded; and
//! beside it the way that the kernel gives to such a packet now.
//!
//! `sluice route`. Nothing is decided here: the route, its tunnel, the MTUs and the sets are those of the plan that is being enforced, and
//! the reasons are those of the parts that decided. [`Way`] is put together in the router's loop ([`way`]); where the speaker's route comes from is
//! added by who asks ([`serve`](super::serve)); [`text`] and [`json`] are the forms. [`differences`] compares the plan with the kernel's lookup.

mod json;
#[cfg(test)]
mod tests;
mod text;

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::InKernel;
use crate::kernel::route::{Fate, NextHop, Route, RouteKey, TABLE_MAIN, Taken};
use crate::model::{Authority, ObjectName, Pod, Table};
use crate::net::{Family, PerFamily};
use crate::router::apply::{Kernel, Mirrors};
use crate::router::names::{PROTOCOL, TUNNEL_PROTOCOL, TUNNEL_TABLE};
pub(super) use crate::router::plan::Owner;
use crate::router::plan::{Masquerade, Plan, TunnelEnds};

pub use self::json::json;
pub use self::text::text;

/// `RTPROT_KERNEL`: routes to the networks of links.
const KERNEL: u8 = 2;

/// Destination that is asked for, as the user wrote it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Destination {
    Pod(ObjectName),
    Address(IpAddr),
}

/// Reason for which there is no answer, as a sentence without its end.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unanswerable {
    #[error("{0:?} must be NAMESPACE/POD or an address")]
    Unreadable(String),
    #[error("there is no pod {0}")]
    NoPod(ObjectName),
    #[error(
        "there is no pod {0} that this node knows: pods are known only where the firewall runs (--run-firewall); ask for its address"
    )]
    PodsUnknown(ObjectName),
    #[error("{0} has finished; its address may be another pod's by now")]
    Finished(ObjectName),
    #[error("{0} has no address yet")]
    NoAddress(ObjectName),
}

/// The pod that is asked for, where it is one, and the addresses.
type Addresses = (Option<(ObjectName, Arc<Pod>)>, Vec<IpAddr>);

/// The answer to one question.
#[derive(Debug)]
pub struct Ways {
    pub authority: Authority,
    /// The pod that was asked for, where it was one.
    pub pod: Option<(ObjectName, Arc<Pod>)>,
    /// One for each address.
    pub ways: Vec<(Way, Origin)>,
}

/// The way to one address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Way {
    pub address: IpAddr,
    pub owner: Owner,
    /// A Service is served at the address on this node: its packets are delivered here.
    pub is_served: bool,
    /// The desired route; `None` where no route of ours leads there.
    pub planned: Option<Planned>,
    /// That of packets of this node's pods, where it is another one.
    pub planned_of_pods: Option<Planned>,
    /// Why there is no route, where there should be one, or none but a wider one, as sentences without their ends.
    pub why_none: Vec<String>,
    /// A pod range of this node of the address's family.
    pub own_pods: Option<IpNet>,
    /// MTU of the link by which packets from this node's address of each family leave, and that of pods, where they follow from it.
    pub node_mtus: PerFamily<Option<u32>>,
    pub pods_mtu: Option<u32>,
    pub masquerade: Masquerade,
    /// The kernel's way of packets of this node, or why it could not be looked up.
    pub kernel: Result<Taken, String>,
    /// That of packets of its pods; `None` where they do not come by a link of this host, as before the first pod.
    pub kernel_of_pods: Result<Option<Taken>, String>,
}

/// A desired route.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Planned {
    pub key: RouteKey,
    pub route: Arc<Route>,
    /// The tunnel of each next hop, in their order; `None` of one on a link.
    pub tunnels: Vec<Option<Tunnel>>,
    pub kernel: InKernel,
}

/// A tunnel of a route.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tunnel {
    pub ends: TunnelEnds,
    /// The device was last seen as desired; `None` where that cannot be read.
    pub is_in_place: Option<bool>,
}

/// Origin of the route, as the speaker tells.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Origin {
    /// Of the route that is used: from whom it is and why it was chosen.
    pub used: Vec<String>,
    /// Routes around the address that are not used, with the reasons; where none is used, or a wider one.
    pub refused: Vec<String>,
}

impl Destination {
    /// Parses the user's word.
    ///
    /// # Errors
    /// It is neither an address nor `NAMESPACE/POD`.
    pub fn parse(word: &str) -> Result<Destination, Unanswerable> {
        let word = word.trim();
        let bare = word.strip_prefix('[').and_then(|word| word.strip_suffix(']')).unwrap_or(word);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(Destination::Address(address.to_canonical()));
        }
        match word.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Destination::Pod(ObjectName::new(namespace, name)))
            }
            _ => Err(Unanswerable::Unreadable(word.to_owned())),
        }
    }

    /// Returns the addresses, and the pod where one was asked for.
    ///
    /// # Errors
    /// There is no such pod, or it has no address.
    pub fn addresses(&self, pods: &Table<ObjectName, Pod>) -> Result<Addresses, Unanswerable> {
        let name = match self {
            Destination::Address(address) => return Ok((None, vec![*address])),
            Destination::Pod(name) => name,
        };
        match pods.get(name) {
            // Without the firewall no pod is asked for.
            None if pods.iter().next().is_none() => Err(Unanswerable::PodsUnknown(name.clone())),
            None => Err(Unanswerable::NoPod(name.clone())),
            Some(pod) if pod.finished => Err(Unanswerable::Finished(name.clone())),
            Some(pod) if pod.addresses.is_empty() => Err(Unanswerable::NoAddress(name.clone())),
            Some(pod) => Ok((Some((name.clone(), pod.clone())), pod.addresses.to_vec())),
        }
    }
}

/// Returns the way to an address. `is_served`: this node serves a Service there.
pub fn way<K: Kernel>(plan: &Plan, mirrors: &mut Mirrors<K>, address: IpAddr, is_served: bool) -> Way {
    let family = Family::from(address);
    let own_pods = plan.own_range(family);
    let kernel = mirrors.way_to(address, None);
    // The first address of a range is the bridge's, as a rule.
    let pod =
        |range: IpNet| range.hosts().find(|host| *host != range.addr() && *host != address && !is_first(range, *host));
    let kernel_of_pods = match own_pods.and_then(|range| Some((pod(range)?, range))) {
        Some(pod) => mirrors.way_to(address, Some(pod)),
        None => Ok(None),
    };
    let kernel = kernel.and_then(|taken| taken.ok_or_else(|| "it does not say".to_owned()));
    let owner = plan.owner_of(address);
    let route = plan.route_to(address, false);
    let of_pods = plan.route_to(address, true).filter(|other| Some(other) != route.as_ref());
    let planned = route.map(|route| planned(plan, mirrors, route));
    let why_none = why_none(plan, &owner, address, planned.as_ref());
    let (node_mtus, pods_mtu) = plan.mtus();
    Way {
        address,
        owner,
        is_served,
        planned,
        planned_of_pods: of_pods.map(|route| self::planned(plan, mirrors, route)),
        why_none,
        own_pods,
        node_mtus,
        pods_mtu,
        masquerade: plan.masquerade(address),
        kernel,
        kernel_of_pods,
    }
}

/// Returns whether an address is the first of a range behind the range's own.
fn is_first(range: IpNet, address: IpAddr) -> bool {
    range.hosts().find(|host| *host != range.addr()) == Some(address)
}

fn planned<K: Kernel>(plan: &Plan, mirrors: &Mirrors<K>, (key, route): (RouteKey, Arc<Route>)) -> Planned {
    let tunnel = |hop: &NextHop| {
        let ends = plan.tunnel_of(key.destination, hop)?;
        Some(Tunnel { ends, is_in_place: mirrors.tunnel_is_in_place(&hop.link, plan.desired(), plan.routes()) })
    };
    let kernel = InKernel {
        route: mirrors.route_in_kernel(&key, plan.routes()),
        next_hops: if key.table == TABLE_MAIN { plan.ways_to(key.destination) } else { Vec::new() },
        given_by: if key.table == TABLE_MAIN { plan.given_by(key.destination) } else { Vec::new() },
        in_the_way: mirrors.routes_in_the_way(&[key.destination]).into_iter().map(|(_, why)| why).collect(),
    };
    Planned { tunnels: route.next_hops.iter().map(tunnel).collect(), key, route, kernel }
}

/// Returns why no route of ours leads to an address, or none but one that is wider than the pod range; nothing where none should.
fn why_none(plan: &Plan, owner: &Owner, address: IpAddr, planned: Option<&Planned>) -> Vec<String> {
    let length = planned.map(|planned| planned.key.destination.prefix_len());
    let is_narrower = |prefix: IpNet| length.is_none_or(|length| length < prefix.prefix_len());
    match owner {
        Owner::PodsOf { range, .. } if is_narrower(*range) => {}
        _ if planned.is_none() => {}
        _ => return Vec::new(),
    }
    let mut reasons = Vec::new();
    if let Owner::PodsOf { node, range } = owner {
        reasons.extend(plan.why_unreached(node, *range).map(|why| format!("{range} of Node {node}: {why}")));
    }
    if let Some(prefix) = plan.pathless_to(address).filter(|prefix| is_narrower(*prefix)) {
        let (links, without) = (plan.link_names(), plan.ways_to(prefix).into_iter());
        let without = without.filter_map(|(next_hop, why)| Some(super::words::no_way(next_hop, why?, &links)));
        reasons.extend(without.map(|why| format!("{prefix} was learned and is not used: {why}")));
    }
    if reasons.is_empty() && matches!(owner, Owner::PodsOf { .. }) {
        let speaker = plan.unreached_without_speaker().trouble;
        reasons.push(speaker.unwrap_or_else(|| "no neighbour has announced it, so far".to_owned()));
    }
    reasons
}

/// Returns in what the kernel's way differs from the desired one, as sentences without their ends.
pub fn differences(way: &Way) -> Vec<String> {
    let of_node = way.kernel.as_ref().ok().map(|taken| ("packets of this node", way.planned.as_ref(), taken));
    let of_pods = way.kernel_of_pods.as_ref().ok().and_then(Option::as_ref);
    let planned_of_pods = way.planned_of_pods.as_ref().or(way.planned.as_ref());
    let of_pods = of_pods.map(|taken| ("packets of pods", planned_of_pods, taken));
    let is_local = way.is_served || way.owner == Owner::ThisNode;
    let mut differences = Vec::new();
    for (whose, planned, taken) in of_node.into_iter().chain(of_pods) {
        let difference = match planned {
            _ if is_local && taken.fate != Fate::Local => {
                Some("they are not delivered here, as they are to be".to_owned())
            }
            _ if is_local => None,
            None => None,
            Some(planned) if is_on_link(&way.owner, planned, taken) => None,
            Some(planned) => difference(planned, taken),
        };
        differences.extend(difference.map(|what| format!("{whose}: {what}")));
    }
    if let (Some(planned), Ok(taken)) = (&way.planned, &way.kernel)
        && let Some(source) = planned.route.source
        && !is_local
        && taken.source.is_some_and(|taken| taken != source)
    {
        let taken = taken.source.map(|source| source.to_string()).unwrap_or_default();
        differences.push(format!("packets of this node: their source address is {taken}, and not {source}"));
    }
    differences
}

/// Returns whether a network of a link decides, which is narrower than a desired route around it: that leads to the rest. Pods of another
/// node are on no link of this one.
fn is_on_link(owner: &Owner, planned: &Planned, taken: &Taken) -> bool {
    let wider = planned.key.destination;
    let is_inside = |prefix: &IpNet| wider.contains(prefix) && wider.prefix_len() < prefix.prefix_len();
    let by_link = taken.decided_by.as_ref().is_some_and(|(key, by)| *by == KERNEL && is_inside(&key.destination));
    by_link && taken.gateway.is_none() && taken.fate == Fate::Forwarded && !matches!(owner, Owner::PodsOf { .. })
}

/// Returns in what one way differs from a desired route.
fn difference(planned: &Planned, taken: &Taken) -> Option<String> {
    let protocol = if planned.key.table == TUNNEL_TABLE { TUNNEL_PROTOCOL } else { PROTOCOL };
    match (&taken.decided_by, taken.fate) {
        (_, Fate::Refused | Fate::RefusedOrMartian) => return Some("the kernel refuses them".to_owned()),
        (_, Fate::Local) => return Some("the kernel delivers them here".to_owned()),
        (Some((key, by)), _) if (key, *by) != (&planned.key, protocol) => {
            let origin = if *by == protocol { String::new() } else { format!(" of {}", text::protocol(*by)) };
            return Some(format!(
                "the route {}{origin} decides, and not {}",
                text::named(key),
                text::named(&planned.key)
            ));
        }
        _ => {}
    }
    let is_taken = |hop: &NextHop| Some(&hop.link) == taken.link.as_ref() && hop.gateway == taken.gateway;
    let hop = || match (&taken.gateway, &taken.link) {
        (Some(gateway), Some(link)) => format!("via {gateway} dev {link}"),
        (None, Some(link)) => format!("dev {link}"),
        (_, None) => "nowhere".to_owned(),
    };
    let is_planned = planned.route.next_hops.iter().any(is_taken);
    (!is_planned).then(|| format!("they go {}, and not {}", hop(), super::routes::describe(&planned.route)))
}
