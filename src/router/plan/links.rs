//! Links with external peers in the plan: which are wanted, and what follows from the routers that are found on them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use compact_str::CompactString;
use ipnet::IpNet;

use super::Plan;
use crate::link_neighbours::{Found, Standings, State, Wanted, WantedLinks};
use crate::model::OnLink;
use crate::net::link_local::to_socket;
use crate::net::{LinkLocal, LinkNames, PerFamily};
use crate::router::desired::RouterChanges;
use crate::router::external_peers::external_peers;
use crate::router::neighbour_limit;
use crate::router::problem::Problem;

/// `fe80::`, whose prefix of 64 bits has all link-local addresses of a link.
const NETWORK: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);
const NETWORK_LENGTH: u8 = 64;

impl Plan {
    /// Returns the links behind which external peers are configured.
    pub fn wanted_links(&self) -> BTreeSet<CompactString> {
        external_peers(&self.config, &self.own).iter().filter_map(|peer| peer.remote.link_name()).collect()
    }

    /// Returns the wanted links, with the routers on them that are among these neighbours, and those that were the last ones there (by link).
    pub fn watched_links(&self, kept: &BTreeSet<IpAddr>, former: &BTreeMap<CompactString, Ipv6Addr>) -> WantedLinks {
        let kept_on = |name: &CompactString| {
            let State::Found(found) = self.links.get(name)?.state else { return None };
            let neighbour = LinkLocal::new(found.neighbour, found.link)?;
            kept.contains(&neighbour.combined()).then(|| neighbour.address())
        };
        let claims = |name: &CompactString| Wanted { kept: kept_on(name), former: former.get(name).copied() };
        self.wanted_links().into_iter().map(|name| (name.clone(), claims(&name))).collect()
    }

    /// Returns whether a router may still be found on a wanted link that is up.
    pub fn awaits_routers(&self) -> bool {
        let state = |name: &CompactString| self.links.get(name).copied().unwrap_or_default().state;
        self.wanted_links()
            .iter()
            .any(|name| matches!(state(name), State::Unknown | State::WithoutAddress | State::Silent))
    }

    /// Sets what is known of the wanted links.
    pub fn set_links(&mut self, links: Standings) -> RouterChanges {
        let mut changed = RouterChanges::default();
        if self.links == links {
            return changed;
        }
        self.links = links;
        let on_link = with_links(&self.on_link, &self.links);
        if on_link != self.on_link {
            self.on_link = on_link;
            self.routes.look_at_all_again();
        }
        self.replace_speaker(&mut changed);
        self.update_external_peers(&mut changed);
        self.settle(&mut changed);
        changed
    }

    /// Returns the problems with more neighbours on links of this host than its kernel finds out, after the former ones. Each session keeps its neighbour in
    /// use, whoever has sessions with whom; nodes that pods alone speak with are in use at times, and are not counted.
    pub fn crowded(&self, limits: PerFamily<Option<usize>>, former: &[Problem]) -> Vec<Problem> {
        let least = limits.iter().filter_map(|(_, limit)| *limit).min();
        // Nearly every node has fewer neighbours than that, and they are not gone through.
        let few = |least| !neighbour_limit::are_too_many(self.desired.peers.len(), least, !former.is_empty());
        if least.is_none_or(few) {
            return Vec::new();
        }
        neighbour_limit::problems(neighbour_limit::on_links(self.desired.expected(), &self.on_link), limits, former)
    }

    /// Returns the names of links for texts.
    pub fn link_names(&self) -> LinkNames {
        LinkNames(found(&self.links).map(|(name, found)| (found.link, name.clone())).collect())
    }

    /// Returns the routers that have been found, by their links.
    pub fn routers_on_links(&self) -> impl Iterator<Item = (&CompactString, Ipv6Addr)> {
        found(&self.links).map(|(name, found)| (name, found.neighbour))
    }

    /// Returns our addresses on links with a router.
    pub(super) fn own_on_links(&self) -> impl Iterator<Item = IpAddr> {
        found(&self.links).filter_map(|(_, found)| Some(LinkLocal::new(found.own, found.link)?.combined()))
    }

    /// Returns where connections of routers on links are accepted: on these links alone.
    pub(super) fn listen_on_links(&self) -> impl Iterator<Item = SocketAddr> {
        self.own_on_links().map(|own| to_socket(own, self.config.port))
    }
}

fn found(links: &Standings) -> impl Iterator<Item = (&CompactString, Found)> {
    links.iter().filter_map(|(name, standing)| match standing.state {
        State::Found(found) => Some((name, found)),
        _ => None,
    })
}

/// Returns the networks of the host's links, and those of the link-local addresses on links with a router.
pub(super) fn with_links(on_link: &[OnLink], links: &Standings) -> Vec<OnLink> {
    let is_of_host = |network: &&OnLink| LinkLocal::within(network.prefix.network()).is_none();
    let network = |(name, found): (&CompactString, Found)| {
        let prefix = IpNet::new(LinkLocal::new(NETWORK, found.link)?.combined(), NETWORK_LENGTH).ok()?;
        Some(OnLink { link: name.clone(), prefix })
    };
    on_link.iter().filter(is_of_host).cloned().chain(found(links).filter_map(network)).collect()
}

#[cfg(test)]
mod tests;
