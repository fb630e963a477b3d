//! Additions by clients: routes of our own, and neighbours.
//!
//! They are not the cluster's: they last until they are removed, or until a new speaker starts. Routes and neighbours
//! that the agent itself configures for the cluster can neither be replaced nor removed by clients.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::attributes;
use super::version::{Version, meant};
use super::wire::messages::{Path, Peer};
use crate::bgp::message::Attributes;
use crate::bgp::rib::NextHops;
use crate::bgp::session::{Local, Restart, Settings};
use crate::bgp::speaker::{Speaker, WantedNeighbour};
use crate::bgp::transport::{PORT, Password, TimeToLive, Transport};
use crate::net::{Family, LinkLocal, PerFamily};

/// Reads the prefix of a route.
///
/// # Errors
/// It has no prefix of IPv4 or IPv6 unicast, or not one of the named family, as a sentence for the client.
pub fn prefix(version: Version, path: &Path) -> Result<IpNet, String> {
    let family = meant(path.family.as_ref()).ok_or(ONLY_UNICAST)?;
    let prefix = version.read_nlri(&path.nlri).ok_or("the route has no prefix of IPv4 or IPv6")?;
    if path.family.is_some() && Family::from(prefix) != family {
        return Err(format!("{prefix} is no {family} prefix"));
    }
    Ok(prefix)
}

pub const ONLY_UNICAST: &str = "only unicast routes of IPv4 and IPv6 are spoken here";

/// Reads a route to originate. An unspecified next hop is our own address towards each neighbour.
///
/// # Errors
/// As for [`prefix`] and [`attributes::read`], as a sentence for the client.
pub fn route(version: Version, path: &Path) -> Result<(IpNet, Attributes), String> {
    let prefix = prefix(version, path)?;
    Ok((prefix, attributes::read(version, Family::from(prefix), &path.pattrs)?))
}

/// Returns the trimmed text unless it is empty.
fn unless_empty(text: &str) -> Option<&str> {
    Some(text.trim()).filter(|text| !text.is_empty())
}

fn address(text: &str, what: &str) -> Result<IpAddr, String> {
    let address = text.trim().parse().ok().filter(|address| LinkLocal::within(*address).is_none());
    address.ok_or_else(|| format!("{text:?} is no address of {what}"))
}

/// Reads a neighbour to add.
///
/// # Errors
/// It has no address, a malformed setting, or one that is not supported here, as a sentence for the client.
pub fn neighbour(peer: &Peer, speaker: &Speaker) -> Result<WantedNeighbour, String> {
    const HOLD_TIME: u64 = 90;
    const RETRY: u64 = 120;
    let conf = peer.conf.as_ref().ok_or("the neighbour has no settings")?;
    if unless_empty(&conf.vrf).is_some() || unless_empty(&conf.neighbor_interface).is_some() {
        return Err("neighbours are reached by their addresses, and there are no VRFs".to_owned());
    }
    let there = address(&conf.neighbor_address, "a neighbour")?;
    let family = Family::from(there);
    let own = speaker.rib().own();
    let local = Local { asn: own.asn, identifier: own.identifier };
    if conf.local_asn != 0 && conf.local_asn != own.asn {
        return Err(format!("our number is {}, for all neighbours", own.asn));
    }
    let transport = peer.transport.clone().unwrap_or_default();
    let here = unless_empty(&transport.local_address).map(|text| address(text, "ours")).transpose()?;
    let here = here.filter(|here| !here.is_unspecified());
    let timers = peer.timers.and_then(|timers| timers.config).unwrap_or_default();
    let or = |value: u64, usual: u64| if value == 0 { usual } else { value };
    let hold_time = or(timers.hold_time, HOLD_TIME).max(3);
    let mut families = PerFamily::from_fn(|one| one == family);
    if !peer.afi_safis.is_empty() {
        families = PerFamily::default();
        for said in &peer.afi_safis {
            let said = said.config.as_ref().and_then(|config| config.family.as_ref());
            *families.of_mut(meant(said).ok_or(ONLY_UNICAST)?) = true;
        }
    }
    let restart = peer.graceful_restart.filter(|restart| restart.enabled).map(|restart| Restart {
        seconds: u16::try_from(restart.restart_time).unwrap_or(u16::MAX).clamp(1, 4095),
        stale: Duration::from_secs(or(restart.stale_routes_time.into(), 360)),
        long_lived: 0,
        notifications: restart.notification_enabled,
    });
    // Without a local address, the one known to other neighbours is used.
    let known = speaker.neighbours().map(|(_, one)| one.wanted().own).find(|own| own.of(family).is_some());
    let known = known.unwrap_or_default();
    Ok(WantedNeighbour {
        address: there,
        settings: Settings {
            local,
            asn: (conf.peer_asn != 0).then_some(conf.peer_asn),
            is_external: false,
            passive: transport.passive_mode,
            hold_time: u16::try_from(hold_time).unwrap_or(u16::MAX),
            connect_retry: Duration::from_secs(or(timers.connect_retry, RETRY)),
            mutual: false,
            families,
            restart,
        },
        transport: Transport {
            port: u16::try_from(transport.remote_port).ok().filter(|port| *port != 0).unwrap_or(PORT),
            local: here,
            password: password(&conf.auth_password)?,
            time_to_live: time_to_live(peer, conf.peer_asn != own.asn),
            link: None,
        },
        client: peer.route_reflector.as_ref().is_some_and(|reflector| reflector.route_reflector_client),
        own: PerFamily::from_fn(|of| here.filter(|_| of == family).or(*known.of(of))),
        next_hops: NextHops::Usual,
        liveness: None,
        expected: true,
        first_as: false,
        most: PerFamily::from_fn(|of| most(peer, of)),
    })
}

fn password(text: &str) -> Result<Option<Password>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    Password::new(text).map(Some).map_err(|unfit| unfit.to_string())
}

fn time_to_live(peer: &Peer, is_outside: bool) -> TimeToLive {
    if let Some(secured) = peer.ttl_security.filter(|secured| secured.enabled) {
        let least = u8::try_from(secured.ttl_min).unwrap_or(u8::MAX).max(1);
        return TimeToLive::Secured { hops: u8::MAX - least + 1 };
    }
    let hops = peer.ebgp_multihop.filter(|multihop| multihop.enabled).map_or(1, |multihop| multihop.multihop_ttl);
    match is_outside {
        true => TimeToLive::Hops(u8::try_from(hops).unwrap_or(u8::MAX).max(1)),
        false => TimeToLive::System,
    }
}

fn most(peer: &Peer, family: Family) -> Option<u32> {
    let said = peer.afi_safis.iter().filter_map(|one| one.prefix_limits.as_ref());
    let mut said = said.filter(|limit| meant(limit.family.as_ref()) == Some(family));
    said.next().map(|limit| limit.max_prefixes).filter(|most| *most > 0)
}

#[cfg(test)]
mod tests;
