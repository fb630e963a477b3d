//! External peers in the plan: which of those that flags or annotations name are desired, and why others are not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::{PeerOwner, Plan};
use crate::bgp::speaker::WantedNeighbour;
use crate::net::{ExternalPeer, Family, Password};
use crate::router::desired::RouterChanges;
use crate::router::external_peers::{self, Located};
use crate::router::password_files::FilePasswords;
use crate::router::problem::{About, Problem};

impl Plan {
    /// Sets the passwords of files with one each, whose names are [`password_files::names`].
    pub fn set_file_passwords(&mut self, passwords: FilePasswords) -> RouterChanges {
        let mut changed = RouterChanges::default();
        let before = std::mem::replace(&mut self.file_passwords, passwords);
        self.update_external_peers(&mut changed);
        if before.mesh != self.file_passwords.mesh && self.config.mesh_password_file.is_some() {
            let known = self.known.clone();
            self.update_nodes(&known, true, &mut changed);
        }
        self.settle(&mut changed);
        changed
    }

    /// The password of sessions between nodes.
    pub(super) fn mesh_password(&self) -> &Password {
        match self.config.mesh_password_file {
            Some(_) => &self.file_passwords.mesh,
            None => &Password::None,
        }
    }

    /// Returns whether nodes or external peers that are expected are no peers because a password is not known.
    pub fn lacks_password(&self) -> bool {
        self.config.internal_peers && self.nodes.lack_password() || !self.without_password.is_empty()
    }

    /// Returns the external peers that are left out because their password is not known yet.
    pub fn routers_without_password(&self) -> &BTreeSet<IpAddr> {
        &self.without_password
    }

    /// Returns the external peers that are neighbours, by their addresses.
    pub fn routers(&self) -> &[IpAddr] {
        &self.external
    }

    /// Returns those of them that are no part of this node: neither the host nor a pod of it.
    pub fn routers_elsewhere(&self) -> impl Iterator<Item = &IpAddr> {
        let is_pod = |address: &IpAddr| self.own.all_pod_cidrs().any(|range| range.contains(address));
        self.external.iter().filter(move |address| !(address.is_loopback() || self.is_here(address) || is_pod(address)))
    }

    /// Returns the addresses at which our sessions begin: those for other nodes, then others for routers outside.
    pub(super) fn session_addresses(&self) -> Vec<IpAddr> {
        let routers =
            external_peers::external_peers(&self.config, &self.own).iter().filter(|peer| peer.local.is_none());
        let addresses = routers.filter_map(|peer| peer.remote.address());
        let towards = addresses.filter_map(|address| *self.own.towards(address).of(Family::from(address)));
        let mut all: Vec<IpAddr> = self.own.addresses.iter().filter_map(|(_, address)| *address).collect();
        for address in towards {
            if !all.contains(&address) {
                all.push(address);
            }
        }
        all
    }

    /// Returns the next hop of what we announce; `None` without an address of the family. Where routers outside may know this node by another address than
    /// other nodes it is unspecified: each neighbour is told the one that is meant for it ([`WantedNeighbour::own`]).
    pub(super) fn own_next_hop(&self, family: Family) -> Option<IpAddr> {
        let own = (*self.own.addresses.of(family))?;
        let unspecified = match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        Some(if self.own.is_detected || !self.wanted_links().is_empty() { unspecified } else { own })
    }

    pub(super) fn update_external_peers(&mut self, changed: &mut RouterChanges) {
        let mut wanted: BTreeMap<IpAddr, Arc<WantedNeighbour>> = BTreeMap::new();
        self.external_problems.clear();
        self.without_password.clear();
        let from_file = self.config.passwords_file.is_some() && !self.config.peers.is_empty();
        let peers: Vec<ExternalPeer> = external_peers::external_peers(&self.config, &self.own).to_vec();
        let mut at: BTreeMap<IpAddr, &ExternalPeer> = BTreeMap::new();
        for (place, peer) in peers.iter().enumerate() {
            let Some(local) = self.local() else { continue };
            let problem = |text: String| Problem::new(About::ExternalPeer(peer.remote.clone()), text);
            let read = self.passwords.get(place).unwrap_or(&Password::Unknown);
            // The file has passwords of addresses alone.
            let password = if from_file && peer.remote.address().is_some() { read } else { &peer.password };
            let password = self.file_passwords.known(password);
            let known = external_peers::known(password, &self.config);
            let peering = |located: Located<'_>| {
                let path = self.desired.peers.get(&located.address).and_then(|wanted| Some(wanted.liveness?.path));
                let (located, password) = (Located { path, ..located }, known.clone().unwrap_or_default());
                external_peers::peering(located, password, &self.own, &self.config, local)
            };
            match external_peers::located(peer, &self.links).and_then(peering) {
                // A session over link-local addresses needs no other address of IPv6.
                Ok(peering)
                    if peering.transport.link.is_none() && !*self.families.of(Family::from(peering.address)) =>
                {
                    let family = Family::from(peering.address);
                    self.external_problems.push(problem(format!("{family} is off; there is no session")));
                }
                Ok(peering) if wanted.contains_key(&peering.address) => {
                    self.external_problems.push(problem("it is named twice; the first one counts".to_owned()));
                }
                // Only who would be a neighbour with its password is waited for.
                Ok(peering) if let Err(text) = known => {
                    if external_peers::awaits_password(password, &self.config) {
                        self.without_password.insert(peering.address);
                    }
                    self.external_problems.push(problem(text.to_owned()));
                }
                Ok(peering) => {
                    self.external_problems.extend(external_peers::idle_setting(peer, &self.config));
                    self.external_problems.extend(external_peers::not_alone(peer, &self.links));
                    at.insert(peering.address, peer);
                    wanted.insert(peering.address, Arc::new(peering));
                }
                Err(problem) => self.external_problems.push(problem),
            }
        }
        self.without_password.retain(|address| !wanted.contains_key(address));
        let external: Vec<IpAddr> = wanted.keys().copied().collect();
        let first = |address: &&IpAddr| at.get(*address).copied();
        let gets_own = |peer: &ExternalPeer| external_peers::gets_own_next_hop(peer, &self.config);
        let own_next_hop = external.iter().filter(|address| first(address).is_some_and(gets_own)).copied().collect();
        self.stale.own |= self.own_next_hop != own_next_hop;
        self.own_next_hop = own_next_hop;
        let before = std::mem::replace(&mut self.external, external);
        for address in before.iter().chain(&self.external.clone()) {
            self.put_peer(*address, &PeerOwner::External, wanted.get(address).cloned(), changed);
        }
        self.stale.own |= before != self.external;
    }
}
