//! External peers in the plan: which of those that flags or annotations name are desired, and why others are not.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::{PeerOwner, Plan};
use crate::bgp::speaker::WantedNeighbour;
use crate::net::{ExternalPeer, Family, Password};
use crate::router::desired::RouterChanges;
use crate::router::external_peers;
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

    /// Returns whether nodes are no peers because the password of sessions between nodes is not known.
    pub fn lacks_password(&self) -> bool {
        self.nodes.lack_password()
    }

    /// Returns the addresses at which our sessions begin: those for other nodes, then others for routers outside.
    pub(super) fn session_addresses(&self) -> Vec<IpAddr> {
        let routers =
            external_peers::external_peers(&self.config, &self.own).iter().filter(|peer| peer.local.is_none());
        let towards = routers.filter_map(|peer| *self.own.towards(peer.address).of(Family::from(peer.address)));
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
        Some(if self.own.is_detected { unspecified } else { own })
    }

    pub(super) fn update_external_peers(&mut self, changed: &mut RouterChanges) {
        let mut wanted: BTreeMap<IpAddr, Arc<WantedNeighbour>> = BTreeMap::new();
        self.external_problems.clear();
        let from_file = self.config.passwords_file.is_some() && !self.config.peers.is_empty();
        let peers: Vec<ExternalPeer> = external_peers::external_peers(&self.config, &self.own).to_vec();
        for (place, peer) in peers.iter().enumerate() {
            let Some(local) = self.local() else { continue };
            let read = self.passwords.get(place).unwrap_or(&Password::Unknown);
            let password = if from_file { read } else { &peer.password };
            let password = self.file_passwords.known(password);
            match external_peers::peering(peer, password, &self.own, &self.config, local) {
                Ok(_) if !*self.families.of(Family::from(peer.address)) => {
                    let text = format!("{} is off; there is no session", Family::from(peer.address));
                    self.external_problems.push(Problem::new(About::ExternalPeer(peer.address), text));
                }
                Ok(_) if wanted.contains_key(&peer.address) => {
                    let text = "it is named twice; the first one counts";
                    self.external_problems.push(Problem::new(About::ExternalPeer(peer.address), text));
                }
                Ok(peering) => {
                    self.external_problems.extend(external_peers::idle_setting(peer, &self.config));
                    wanted.insert(peer.address, Arc::new(peering));
                }
                Err(problem) => self.external_problems.push(problem),
            }
        }
        let external: Vec<IpAddr> = wanted.keys().copied().collect();
        let first = |address: &&IpAddr| peers.iter().find(|peer| peer.address == **address);
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
