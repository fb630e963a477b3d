//! Paths to next hops, and the tunnels that some of them lead through.

use std::collections::BTreeSet;
use std::net::IpAddr;

use compact_str::CompactString;
use ipnet::IpNet;

use super::encapsulation::{is_distinct, through};
use super::{Place, Protection};
use crate::config::Reach;
use crate::net::{Family, PerFamily};

/// Reason for which there is no path to a next hop.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum NoWay {
    /// Its node has no usable address of the route's family.
    NodeWithoutAddress,
    /// The kernel cannot send packets of this IPv6 route to an IPv4 address.
    OtherFamily,
    /// It is a node on none of our links, and there are no tunnels.
    NodeWithoutTunnel,
    /// It is another router, and on none of our links.
    RouterElsewhere,
    /// A tunnel leads to it, and this node has no address of its family to begin at.
    NoOwnAddress,
    /// Packets between nodes are encrypted, and no Node with this address has the pods that the route is about, or nobody may have them, or
    /// several Nodes that are not one machine have the address.
    NotItsNode,
    /// Packets to these pods have to be encrypted, and it is on a link.
    Unencrypted,
    /// Packets between nodes are encrypted, and what others have is in the prefix.
    AroundOthers,
    /// It was behind an encrypted tunnel, and is no node any more.
    NodeIsGone,
    /// A tunnel leads to it, and the kernel could not tell that from the tunnel to another node.
    LikeAnother,
}

/// A path to a next hop.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Way {
    Gateway { link: CompactString, gateway: IpAddr },
    Tunnel(IpAddr),
}

pub(super) fn remote(way: &Way) -> Option<IpAddr> {
    match way {
        Way::Tunnel(remote) => Some(*remote),
        Way::Gateway { .. } => None,
    }
}

/// Returns the paths to a prefix, without duplicates, in the order of the next hops.
///
/// The kernel takes several paths of an IPv6 route only if each has a gateway. Tunnels have none, but for `vxlan`: the first is used. Those of
/// `wireguard` are one device, where a range belongs to one node: the first. `behind`: the next hops that were behind such a tunnel.
pub(super) fn ways(
    prefix: IpNet,
    next_hops: &[IpAddr],
    behind: Option<&BTreeSet<IpAddr>>,
    place: Place<'_>,
) -> Vec<Way> {
    let mut ways = Vec::with_capacity(next_hops.len());
    for way in next_hops.iter().filter_map(|next_hop| way_now(prefix, *next_hop, behind, place).ok()) {
        if !ways.contains(&way) {
            ways.push(way);
        }
    }
    if place.encrypts() {
        let mut is_first = true;
        ways.retain(|way| remote(way).is_none() || std::mem::take(&mut is_first));
    }
    let has_gateway = |remote| through(remote, place).gateway.is_some();
    if Family::from(prefix) == Family::V6 && ways.iter().filter_map(remote).any(|remote| !has_gateway(remote)) {
        ways.truncate(1);
    }
    ways
}

/// Returns whether an encrypted tunnel leads to a next hop.
pub(super) fn encrypted(prefix: IpNet, next_hop: IpAddr, place: Place<'_>) -> bool {
    place.encrypts() && matches!(way(prefix, next_hop, place), Ok(Way::Tunnel(_)))
}

/// Returns whether what was sent to a next hop through a tunnel can be sent to nobody: it is no node any more, or it is not known which one, or another
/// node came to have something inside of it.
pub(super) fn is_lost(prefix: IpNet, next_hop: IpAddr, place: Place<'_>) -> bool {
    (place.node)(next_hop).is_none()
        || matches!((place.protection)(prefix, next_hop), Protection::Contested)
        || matches!(way(prefix, next_hop, place), Err(NoWay::AroundOthers))
}

pub(super) fn way_now(
    prefix: IpNet,
    next_hop: IpAddr,
    behind: Option<&BTreeSet<IpAddr>>,
    place: Place<'_>,
) -> Result<Way, NoWay> {
    let was_behind = behind.is_some_and(|behind| behind.contains(&next_hop));
    if was_behind && (place.node)(next_hop).is_none() {
        return Err(NoWay::NodeIsGone);
    }
    way(prefix, next_hop, place)
}

fn way(prefix: IpNet, next_hop: IpAddr, place: Place<'_>) -> Result<Way, NoWay> {
    let protection = (place.protection)(prefix, next_hop);
    let node = match protection {
        Protection::Pods { node, .. } => Some(node.ok_or(NoWay::NotItsNode)?),
        Protection::Contested => return Err(NoWay::NotItsNode),
        Protection::None | Protection::Around => (place.node)(next_hop),
    };
    let way = way_to(Family::from(prefix), next_hop, node, place)?;
    match (protection, &way) {
        (Protection::Pods { encrypted: true, .. }, Way::Gateway { .. }) => Err(NoWay::Unencrypted),
        (Protection::Around, Way::Tunnel(_)) => Err(NoWay::AroundOthers),
        _ => Ok(way),
    }
}

/// Returns the path of packets of a family to a next hop, which is an address of this node if it is one of a node.
pub(super) fn way_to(
    family: Family,
    next_hop: IpAddr,
    node: Option<PerFamily<Option<IpAddr>>>,
    place: Place<'_>,
) -> Result<Way, NoWay> {
    // A node's address of the route's family is used, unless it is ours, too.
    let next_hop = match &node {
        Some(addresses) if Family::from(next_hop) != family => {
            let address = addresses.of(family).filter(|address| (place.node)(*address).is_some());
            address.ok_or(NoWay::NodeWithoutAddress)?
        }
        _ => next_hop,
    };
    if family == Family::V6 && next_hop.is_ipv4() {
        return Err(NoWay::OtherFamily);
    }
    let on_link = place.on_link.iter().filter(|network| network.prefix.contains(&next_hop));
    let link = on_link.max_by_key(|network| network.prefix.prefix_len()).map(|network| network.link.clone());
    let tunnelled = match place.config.overlay.map(|overlay| overlay.reach) {
        Some(Reach::Full) => node.is_some(),
        Some(Reach::Subnet) => node.is_some() && link.is_none(),
        None => false,
    };
    let ends = place.own.addresses.of(Family::from(next_hop)).is_some();
    match (tunnelled, link) {
        (true, _) if !ends => Err(NoWay::NoOwnAddress),
        (true, _) => {
            // A tunnel ends at one address of the node, whichever of its addresses is the next hop.
            let end = node.and_then(|addresses| *addresses.of(Family::from(next_hop)));
            let end = end.filter(|address| (place.node)(*address).is_some());
            let end = end.unwrap_or(next_hop);
            if is_distinct(end, place) { Ok(Way::Tunnel(end)) } else { Err(NoWay::LikeAnother) }
        }
        (false, Some(link)) => Ok(Way::Gateway { link, gateway: next_hop }),
        (false, None) if node.is_some() => Err(NoWay::NodeWithoutTunnel),
        (false, None) => Err(NoWay::RouterElsewhere),
    }
}
