//! Peering with routers outside of the cluster.
//!
//! Flags `--peer-router-*`, and without them the annotations `kube-router.io/peers` or `peer.*` of our own Node;
//! `--bgp-holdtime`, `--peer-router-multihop-ttl`. TCP port 179 unless another one is given; `--bgp-port` is for nodes.
//! What `kube-router.io/peers` says of a peer precedes the flags.
//!
//! A peer in another AS has to be one hop away, or as many as the flag says; one in our AS may be anywhere. The
//! session's local address is the one configured for the peer, else our own of the peer's family, on the peer's link
//! where others route to an address that was detected ([`Identity::towards`]).
//!
//! The file of `--peer-router-passwords-file` is read by an effect file; [`passwords`] parses it. Those that
//! `passwordfile` names are in `password_files`.

use std::net::IpAddr;

use crate::bgp::rib::NextHops;
use crate::bgp::session::{Local, Restart, Settings};
use crate::bgp::speaker::WantedNeighbour;
use crate::bgp::transport::{self, PORT, TimeToLive, Transport};
use crate::config::RouterConfig;
use crate::net::{Distance, ExternalPeer, Family, Password, PerFamily, Secret};

use super::identity::Identity;
use super::liveness::{distance, liveness};
use super::mesh::{MOST, RETRY, restart};
use super::problem::{About, Problem};

/// Returns the configured external peers, from flags or annotations.
pub fn external_peers<'a>(config: &'a RouterConfig, own: &'a Identity) -> &'a [ExternalPeer] {
    if config.peers.is_empty() { &own.routing.peers } else { &config.peers }
}

/// Returns how we peer with one. `password` is the peer's own, or the one in the password file.
///
/// # Errors
/// There can be no session: it is an address of this node, its password is not known, or this node has no address of its
/// family.
pub fn peering(
    peer: &ExternalPeer,
    password: &Password,
    own: &Identity,
    config: &RouterConfig,
    local: Local,
) -> Result<WantedNeighbour, Problem> {
    let problem = |text: String| Problem::new(About::ExternalPeer(peer.address), text);
    let family = Family::from(peer.address);
    if own.all.contains(&peer.address) {
        return Err(problem("it is an address of this node; there is no session".to_owned()));
    }
    let password = match password {
        Password::None => None,
        Password::Key(secret) => transport::Password::new(secret.key()).ok(),
        Password::File(_) if config.passwords_dir.is_none() => {
            let text =
                "passwordfile needs --peer-router-passwords-dir, the directory of such files; there is no session";
            return Err(problem(text.to_owned()));
        }
        Password::File(_) | Password::Unknown => {
            return Err(problem("its password is not known (yet); there is no session".to_owned()));
        }
    };
    let addresses = own.towards(peer.address);
    let Some(here) = peer.local.or(*addresses.of(family)) else {
        return Err(problem(format!("this node has no {family} address to reach it from; there is no session")));
    };
    let external = peer.asn != local.asn;
    let time_to_live = time_to_live(peer.distance, external, config);
    // Without a network at our address (a link that is down, an address of host length) it may be on the link as well.
    let mut around = own.networks.iter().filter(|network| network.prefix.contains(&here)).peekable();
    let is_near = around.peek().is_none() || around.any(|network| network.prefix.contains(&peer.address));
    let is_on_link = match time_to_live {
        TimeToLive::System => is_near,
        TimeToLive::Hops(hops) | TimeToLive::Secured { hops } => hops == 1,
    };
    let with_here = |address: Option<IpAddr>, of: Family| if of == family { Some(here) } else { address };
    Ok(WantedNeighbour {
        address: peer.address,
        settings: Settings {
            local,
            asn: Some(peer.asn),
            passive: false,
            hold_time: peer.hold_time.unwrap_or(config.hold_time),
            connect_retry: RETRY,
            mutual: false,
            families: own.capable(),
            restart: config.graceful_restart.map(|graceful| {
                let long_lived = peer.long_lived.unwrap_or(graceful.long_lived);
                Restart { long_lived, ..restart(graceful) }
            }),
        },
        transport: Transport { port: peer.port.unwrap_or(PORT), local: Some(here), password, time_to_live },
        client: false,
        own: PerFamily::from_fn(|of| with_here(*addresses.of(of), of)),
        next_hops: if peer.next_hop_self == Some(false) { NextHops::Kept } else { NextHops::Usual },
        liveness: peer.bfd.map(|bfd| liveness(bfd, distance(bfd, is_on_link))),
        first_as: false,
        most: PerFamily::from_fn(|of| Some(peer.prefix_limits.of(of).unwrap_or(MOST))),
    })
}

/// Returns the problem of a setting that has no effect, although there is a session.
pub fn idle_setting(peer: &ExternalPeer, config: &RouterConfig) -> Option<Problem> {
    let is_idle = config.graceful_restart.is_none() && peer.long_lived.is_some_and(|seconds| seconds > 0);
    let text = "llgrtime goes on where graceful restart ends, so it needs --bgp-graceful-restart; it has no effect";
    is_idle.then(|| Problem::new(About::ExternalPeer(peer.address), text))
}

/// Returns whether what is announced to a peer gets our address as the next hop by policy.
pub fn gets_own_next_hop(peer: &ExternalPeer, config: &RouterConfig) -> bool {
    peer.next_hop_self.unwrap_or(config.override_next_hop)
}

fn time_to_live(distance: Distance, is_external: bool, config: &RouterConfig) -> TimeToLive {
    match distance {
        Distance::Multihop(hops) => TimeToLive::Hops(hops),
        Distance::Secured(hops) => TimeToLive::Secured { hops },
        Distance::Usual if is_external => TimeToLive::Hops(config.multihop.unwrap_or(1)),
        Distance::Usual => TimeToLive::System,
    }
}

/// Parses a password file: base64 separated by commas, one for each of so many peers, blank for none. White space
/// around one is ignored. An unreadable password is unknown, so that its peer waits; the sentences say which.
pub fn passwords(text: &str, peers: usize) -> (Vec<Password>, Vec<String>) {
    let items: Vec<&str> = text.trim().split(',').map(str::trim).collect();
    if items.len() != peers {
        let sentence = format!(
            "the file of passwords must have one for each of the {peers} addresses of --peer-router-ips; it has {}",
            items.len()
        );
        return (vec![Password::Unknown; peers], vec![sentence]);
    }
    let mut sentences = Vec::new();
    let mut password = |(place, item): (usize, &&str)| match Secret::from_base64(item) {
        Ok(secret) => secret.map_or(Password::None, Password::Key),
        Err(why) => {
            let length = item.len();
            sentences.push(format!("password {} of the file, of length {length}, is {why}", place + 1));
            Password::Unknown
        }
    };
    let passwords = items.iter().enumerate().map(&mut password).collect();
    (passwords, sentences)
}

#[cfg(test)]
mod tests;
