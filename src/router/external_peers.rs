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
//! A peer behind an interface is whichever router advertises itself there (`link_neighbours`): both ends of the session have their link-local addresses, and so have
//! the next hops of both families (RFC 8950).
//!
//! The file of `--peer-router-passwords-file` is read by an effect file; [`passwords`] parses it. Those that
//! `passwordfile` names are in `password_files`.

use std::net::IpAddr;

use crate::bfd::Path;
use crate::bgp::rib::NextHops;
use crate::bgp::session::{Local, Restart, Settings};
use crate::bgp::speaker::WantedNeighbour;
use crate::bgp::transport::{self, PORT, TimeToLive, Transport};
use crate::config::RouterConfig;
use crate::link_neighbours::{Standing, Standings, State};
use crate::model::{UnreadPeer, UnreadPeers};
use crate::net::{Distance, ExternalPeer, Family, LinkLocal, Password, PerFamily, Remote, RemoteAs, Secret};

use super::identity::Identity;
use super::liveness::{distance, liveness};
use super::mesh::{MOST, RETRY, restart};
use super::problem::{About, Problem};

/// Returns the configured external peers, from flags or annotations.
pub fn external_peers<'a>(config: &'a RouterConfig, own: &'a Identity) -> &'a [ExternalPeer] {
    if config.peers.is_empty() { &own.routing.peers } else { &config.peers }
}

const STAYS: &str = "what was read of it last stays in force";

/// Returns what is to be said where annotations about external peers cannot be read and decide.
pub fn unread(config: &RouterConfig, own: &Identity) -> Option<Problem> {
    let routing = &own.routing;
    let text = match &routing.unread_peers {
        UnreadPeers::These(unread) if config.peers.is_empty() => {
            let is_known = |one: &&UnreadPeer| routing.peers.iter().any(|peer| peer.remote == one.remote);
            let (known, unknown): (Vec<&UnreadPeer>, Vec<&UnreadPeer>) = unread.iter().partition(is_known);
            let said = |these: &[&UnreadPeer], outcome: &str| {
                let names: Vec<String> = these.iter().map(|one| one.remote.to_string()).collect();
                let names = names.join(" ");
                (!these.is_empty())
                    .then(|| format!("what the annotations of the Node say of {names} cannot be read; {outcome}"))
            };
            let texts =
                [said(&known, STAYS), said(&unknown, "nothing of it could ever be read, so there is no session")];
            texts.into_iter().flatten().collect::<Vec<_>>().join("; ")
        }
        UnreadPeers::List if config.peers.is_empty() => {
            let outcome = if routing.peers.is_empty() { "nothing of it could ever be read" } else { STAYS };
            format!("the list in the annotations of the Node cannot be read; {outcome}")
        }
        UnreadPeers::None | UnreadPeers::These(_) | UnreadPeers::List => return None,
    };
    let text = format!("{text} (the log says what is wrong)");
    Some(Problem::new(About::ExternalPeers, text))
}

/// An external peer at its address.
#[derive(Clone, Copy, Debug)]
pub struct Located<'a> {
    pub peer: &'a ExternalPeer,
    /// Link-local addresses are combined with their link.
    pub address: IpAddr,
    /// Our address on the link of a peer behind an interface.
    pub own: Option<IpAddr>,
    /// Kind of the BFD session that it has; `None` without one.
    pub path: Option<Path>,
}

/// Returns where an external peer is.
///
/// # Errors
/// It is behind an interface, and not found there.
pub fn located<'a>(peer: &'a ExternalPeer, links: &Standings) -> Result<Located<'a>, Problem> {
    let name = match &peer.remote {
        Remote::Address(address) => return Ok(Located { peer, address: *address, own: None, path: None }),
        Remote::Link(name) => name,
    };
    let text = match links.get(name).copied().unwrap_or_default().state {
        State::Found(found) => {
            let on_link = |address| LinkLocal::new(address, found.link).map(LinkLocal::combined);
            if let (Some(address), Some(own)) = (on_link(found.neighbour), on_link(found.own)) {
                return Ok(Located { peer, address, own: Some(own), path: None });
            }
            "its link-local address, or ours, is not within fe80::/64; there is no session"
        }
        State::Unknown => "it is being looked for; there is no session",
        State::Missing => "this host has no such interface; there is no session",
        State::Down => "the interface is down or has no carrier; there is no session",
        State::WithoutAddress => "this host has no link-local address there; there is no session",
        State::Silent => "no router has been found there by what routers advertise (RFC 4861); there is no session",
    };
    Err(Problem::new(About::ExternalPeer(peer.remote.clone()), text))
}

/// Returns the problem of an interface with more routers than one, although there is a session.
pub fn not_alone(peer: &ExternalPeer, links: &Standings) -> Option<Problem> {
    let Remote::Link(name) = &peer.remote else { return None };
    let Standing { state: State::Found(found), beside: Some(beside) } = *links.get(name)? else { return None };
    let neighbour = found.neighbour;
    let text =
        format!("the router {beside} advertises itself there as well; the session is with the first one, {neighbour}");
    Some(Problem::new(About::ExternalPeer(peer.remote.clone()), text))
}

/// Returns how we peer with one. `password` is the peer's own, or the one in the password file ([`known`]).
///
/// # Errors
/// There can be no session: it is an address of this node, or this node has no address of its family.
pub fn peering(
    Located { peer, address, own: own_on_link, path }: Located<'_>,
    password: Option<transport::Password>,
    own: &Identity,
    config: &RouterConfig,
    local: Local,
) -> Result<WantedNeighbour, Problem> {
    let problem = |text: String| Problem::new(About::ExternalPeer(peer.remote.clone()), text);
    let family = Family::from(address);
    if own.all.contains(&address) {
        return Err(problem("it is an address of this node; there is no session".to_owned()));
    }
    // On a link of its own a peer may know no other address of ours.
    let addresses = match own_on_link {
        Some(own) => PerFamily { v4: None, v6: Some(own) },
        None => own.towards(address),
    };
    let Some(here) = peer.local.or(*addresses.of(family)) else {
        return Err(problem(format!("this node has no {family} address to reach it from; there is no session")));
    };
    let external = peer.asn != RemoteAs::Number(local.asn);
    let time_to_live = time_to_live(peer.distance, external, config);
    // Without a network at our address (a link that is down, an address of host length) it may be on the link as well. A session that is there keeps its
    // kind then: it is there to notice that the link is down, and a link that is back soon must not find another one.
    let mut around = own.networks.iter().filter(|network| network.prefix.contains(&here)).peekable();
    let is_near = match around.peek() {
        None => path.is_none_or(|path| path == Path::SingleHop),
        Some(_) => around.any(|network| network.prefix.contains(&address)),
    };
    let is_on_link = own_on_link.is_some() || is_on_link(time_to_live, is_near);
    let with_here = |address: Option<IpAddr>, of: Family| if of == family { Some(here) } else { address };
    Ok(WantedNeighbour {
        address,
        settings: Settings {
            local,
            asn: peer.asn.number(),
            is_external: peer.asn == RemoteAs::External,
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
        transport: Transport {
            port: peer.port.unwrap_or(PORT),
            local: Some(here),
            password,
            time_to_live,
            link: peer.remote.link_name(),
        },
        client: false,
        own: PerFamily::from_fn(|of| with_here(*addresses.of(of), of)),
        next_hops: if peer.next_hop_self == Some(false) { NextHops::Kept } else { NextHops::Usual },
        liveness: peer.bfd.map(|bfd| liveness(bfd, distance(bfd, is_on_link), None)),
        expected: true,
        first_as: false,
        most: PerFamily::from_fn(|of| Some(peer.prefix_limits.of(of).unwrap_or(MOST))),
    })
}

/// Returns the password of a session.
///
/// # Errors
/// There is one that is not known.
pub fn known(password: &Password, config: &RouterConfig) -> Result<Option<transport::Password>, &'static str> {
    match password {
        Password::None => Ok(None),
        Password::Key(secret) => Ok(transport::Password::new(secret.key()).ok()),
        Password::File(_) if config.passwords_dir.is_none() => {
            Err("passwordfile needs --peer-router-passwords-dir, the directory of such files; there is no session")
        }
        Password::File(_) | Password::Unknown => Err("its password is not known (yet); there is no session"),
    }
}

/// Returns whether a session has a password that is not known, and may become known.
pub fn awaits_password(password: &Password, config: &RouterConfig) -> bool {
    match password {
        Password::None | Password::Key(_) => false,
        Password::File(_) => config.passwords_dir.is_some(),
        Password::Unknown => true,
    }
}

/// Returns the problem of a setting that has no effect, although there is a session.
pub fn idle_setting(peer: &ExternalPeer, config: &RouterConfig) -> Option<Problem> {
    let is_idle = config.graceful_restart.is_none() && peer.long_lived.is_some_and(|seconds| seconds > 0);
    let text = "llgrtime goes on where graceful restart ends, so it needs --bgp-graceful-restart; it has no effect";
    is_idle.then(|| Problem::new(About::ExternalPeer(peer.remote.clone()), text))
}

/// Returns whether what is announced to a peer gets our address as the next hop by policy.
pub fn gets_own_next_hop(peer: &ExternalPeer, config: &RouterConfig) -> bool {
    peer.next_hop_self.unwrap_or(config.override_next_hop)
}

/// Returns by which kind of session of BFD the path to a peer is watched, if it is; `is_near`: its address is in a network on a link of ours; `asn`: ours, where
/// it is known.
pub fn watched_path(peer: &ExternalPeer, is_near: bool, asn: Option<u32>, config: &RouterConfig) -> Option<Path> {
    let time_to_live = time_to_live(peer.distance, asn.is_none_or(|asn| peer.asn != RemoteAs::Number(asn)), config);
    let is_on_link = peer.remote.address().is_none() || is_on_link(time_to_live, is_near);
    peer.bfd.map(|bfd| distance(bfd, is_on_link))
}

/// Peers in our AS alone are judged by where their address is.
fn is_on_link(time_to_live: TimeToLive, is_near: bool) -> bool {
    match time_to_live {
        TimeToLive::System => is_near,
        TimeToLive::Hops(hops) | TimeToLive::Secured { hops } => hops == 1,
    }
}

fn time_to_live(distance: Distance, is_external: bool, config: &RouterConfig) -> TimeToLive {
    match distance {
        Distance::Multihop(hops) => TimeToLive::Hops(hops),
        Distance::Secured(hops) => TimeToLive::Secured { hops },
        Distance::Usual if is_external => TimeToLive::Hops(config.multihop.unwrap_or(1)),
        Distance::Usual => TimeToLive::System,
    }
}

/// Parses a password file: base64 separated by commas, one for each of these peers that has an address, blank for none. Peers behind interfaces have none in it, and
/// stand behind the others. White space around one is ignored. An unreadable password is unknown, so that its peer waits; the sentences say which.
pub fn passwords(text: &str, peers: &[ExternalPeer]) -> (Vec<Password>, Vec<String>) {
    let items: Vec<&str> = text.trim().split(',').map(str::trim).collect();
    let peers = peers.iter().filter(|peer| peer.remote.address().is_some()).count();
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
