//! Other nodes on `wireguard` devices, over generic netlink.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use ipnet::IpNet;

use super::endpoints::Endpoints;
use super::wire::{self, FAMILY, FoundPeer, Wanted};
use super::{Contact, Peer, PeerKey, Session};
use crate::kernel::Error;
use crate::kernel::link::{LinkName, Names, no_device};
use crate::kernel::netlink::{Bus, Fault, GenericSocket, Messages, Socket, failed_steps};
use crate::net::PublicKey;
use crate::reconcile::{Failure, Phase, Step, Target};

/// The peers of some devices of one network namespace.
pub struct Peers {
    links: Socket,
    wireguard: GenericSocket,
    devices: Vec<LinkName>,
    endpoints: Endpoints,
}

impl Peers {
    /// Opens sockets in the network namespace of the calling thread, for these devices.
    ///
    /// # Errors
    /// A socket cannot be opened.
    pub fn open(devices: impl IntoIterator<Item = LinkName>) -> Result<Peers, Error> {
        Ok(Peers {
            links: Socket::open(Bus::Route)?,
            wireguard: GenericSocket::open(FAMILY)?,
            devices: devices.into_iter().collect(),
            endpoints: Endpoints::default(),
        })
    }

    /// Returns the state of the sessions with the peers of the devices that there are, and how much was sent to them.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn contacts(&mut self) -> Result<BTreeMap<PeerKey, Contact>, Error> {
        let mut names = Names::default();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut found = BTreeMap::new();
        for link in self.devices.clone() {
            if names.number(&self.links, &link).is_none() {
                continue;
            }
            // A later piece of a peer has no time.
            for peer in self.list(&link)? {
                let handshake = peer.last_handshake;
                let contact = Contact { session: Session::at(handshake, now), handshake, sent: peer.sent };
                found.entry(PeerKey { link: link.clone(), key: peer.key }).or_insert(contact);
            }
        }
        Ok(found)
    }

    /// The peers of a device; none where it has gone, or is of another type.
    fn list(&mut self, link: &LinkName) -> Result<Vec<FoundPeer>, Error> {
        let pieces = self.wireguard.dump(&mut wire::get(link), |answer| Some(wire::piece(answer)?.peers));
        match pieces {
            Ok(pieces) => Ok(pieces.into_iter().flatten().collect()),
            Err(Fault::Refused(refusal)) if matches!(refusal.errno, libc::ENODEV | libc::EOPNOTSUPP) => Ok(Vec::new()),
            Err(fault) => Err(Error::new("list peers", link.to_string(), fault.into())),
        }
    }
}

impl Target for Peers {
    type Key = PeerKey;
    type Value = Peer;
    type Error = Error;

    fn name(&self) -> &'static str {
        "wireguard peers"
    }

    fn read(&mut self) -> Result<BTreeMap<PeerKey, Peer>, Error> {
        let mut names = Names::default();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut found: BTreeMap<PeerKey, (FoundPeer, Vec<ipnet::IpNet>)> = BTreeMap::new();
        for link in self.devices.clone() {
            // The family is asked only where there is a device: that would load the module.
            if names.number(&self.links, &link).is_none() {
                continue;
            }
            for peer in self.list(&link)? {
                let key = PeerKey { link: link.clone(), key: peer.key };
                let allowed = peer.allowed.clone();
                found.entry(key).or_insert_with(|| (peer, Vec::new())).1.extend(allowed);
            }
        }
        self.endpoints.retain(|key| found.contains_key(key));
        let peer = |(key, (peer, mut allowed)): (PeerKey, (FoundPeer, Vec<ipnet::IpNet>))| {
            allowed.sort_unstable();
            allowed.dedup();
            let endpoint = self.endpoints.counted(&key, &peer, now);
            (key, Peer { endpoint, allowed: Arc::from(allowed), keepalive: peer.keepalive, is_plain: peer.is_plain })
        };
        Ok(found.into_iter().map(peer).collect())
    }

    fn apply(&mut self, _phase: Phase, steps: &[Step<'_, PeerKey, Peer>]) -> Vec<Failure<Error>> {
        let (mut messages, mut owners, mut failures) = (Messages::new(), Vec::new(), Vec::new());
        let mut names = Names::default();
        for (index, step) in steps.iter().enumerate() {
            let PeerKey { link, key } = step.key;
            if names.number(&self.links, link).is_none() {
                // Peers go with their device.
                if step.want.is_some() {
                    let error = no_device(operation(step), step.key.to_string(), link);
                    failures.push(Failure { step: index, error });
                }
                continue;
            }
            match step.want {
                Some(want) => {
                    let count = wire::set_peer(&mut messages, link, written(*key, step.have, want));
                    owners.extend(std::iter::repeat_n(index, count));
                }
                None => {
                    wire::remove_peer(&mut messages, link, *key);
                    owners.push(index);
                }
            }
        }
        if messages.is_empty() {
            return failures;
        }
        let refused = self.wireguard.batch(&mut messages);
        failures.extend(failed_steps(refused, &owners, |index, cause| {
            let step = steps.get(index).expect("a failure belongs to a step");
            Error::new(operation(step), step.key.to_string(), cause)
        }));
        // What was refused is as it was, so the next reading has to see a difference.
        let failed: BTreeSet<usize> = failures.iter().map(|failure| failure.step).collect();
        for (_, step) in steps.iter().enumerate().filter(|(index, _)| !failed.contains(index)) {
            self.endpoints.taken(step.key, step.want.map(|want| want.endpoint));
        }
        failures
    }

    /// A session that is kept alive is kept so until what led by it leads elsewhere: to the other end it is what says that somebody may send in it.
    fn grown(have: &Peer, want: &Peer) -> Peer {
        Peer { keepalive: have.keepalive.max(want.keepalive), ..want.clone() }
    }
}

/// Returns how a peer is written, with all that it may use also where it has that already: somebody else may have removed it since it was read, and what it has
/// is no other for being given once more.
fn written<'a>(key: PublicKey, have: Option<&Peer>, want: &'a Peer) -> Wanted<'a> {
    let is_kept = |range: &IpNet| want.allowed.binary_search(range).is_ok();
    let replaces = !have.is_some_and(|have| have.allowed.iter().all(is_kept));
    Wanted { key, endpoint: want.endpoint, keepalive: want.keepalive, allowed: &want.allowed, replaces }
}

fn operation(step: &Step<'_, PeerKey, Peer>) -> &'static str {
    match (step.have, step.want) {
        (None, _) => "add peer",
        (_, None) => "remove peer",
        _ => "change peer",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_loses_nothing_keeps_what_it_has_and_one_that_somebody_has_removed_gets_all_of_it() {
        let peer = |text: &str| {
            let allowed = text.split_whitespace().map(|range| range.parse().expect("a prefix")).collect();
            Peer { endpoint: None, allowed, keepalive: 0, is_plain: true }
        };
        for (have, want, replaces) in [
            (Some("10.0.0.0/24 10.0.2.0/24"), "10.0.0.0/24 10.0.2.0/24", false),
            (Some("10.0.0.0/24 10.0.2.0/24"), "10.0.0.0/24 10.0.1.0/24 10.0.2.0/24", false),
            (Some(""), "10.0.0.0/24", false),
            (Some("10.0.0.0/24 10.0.2.0/24"), "10.0.2.0/24", true),
            (None, "10.0.2.0/24", true),
        ] {
            let (have, want) = (have.map(peer), peer(want));
            let key = PublicKey::new(&[1; 32]).expect("a key");
            let written = written(key, have.as_ref(), &want);
            assert_eq!((written.allowed, written.replaces), (&*want.allowed, replaces), "{have:?} -> {want:?}");
        }
    }
}
