//! Our own speaker in the plan: its numbers, its addresses, and where it listens.

use std::net::{IpAddr, SocketAddr};

use super::Plan;
use crate::bgp::rib::Own;
use crate::bgp::session::Local;
use crate::model::Reflection;
use crate::net::Family;
use crate::router::desired::{RouterChanges, Speaker};

impl Plan {
    /// Updates the parameters of the speaker.
    pub(super) fn replace_speaker(&mut self, changed: &mut RouterChanges) {
        let speaker = self.local().map(|local| self.speaker(local));
        let before = self.desired.speaker.as_ref();
        changed.speaker |= speaker.as_ref().map(|one| one.own) != before.map(|one| one.own);
        changed.listen |= speaker.as_ref().map(|one| &one.listen) != before.map(|one| &one.listen);
        changed.addresses |= speaker.as_ref().map(|one| &one.addresses) != before.map(|one| &one.addresses);
        self.desired.speaker = speaker;
    }

    fn speaker(&self, local: Local) -> Speaker {
        let own = &self.own;
        let cluster = match own.routing.reflection {
            Reflection::Server(cluster) if !cluster.is_unspecified() => cluster,
            Reflection::Server(_) | Reflection::None | Reflection::Client(_) => local.identifier,
        };
        let enabled = |address: &&IpAddr| *own.families.of(Family::from(**address));
        let named: Vec<IpAddr> = own.routing.local_addresses.iter().filter(enabled).copied().collect();
        let listen = if named.is_empty() { self.session_addresses() } else { named };
        Speaker {
            own: Own { asn: local.asn, identifier: local.identifier, cluster },
            addresses: own.all.iter().copied().chain(self.own_on_links()).collect(),
            listen: listen
                .into_iter()
                .map(|address| SocketAddr::new(address, self.config.port))
                .chain(self.listen_on_links())
                .collect(),
        }
    }
}
