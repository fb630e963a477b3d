//! External peers: `--peer-router-*`.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::flags::Flags;
use super::mistakes::Mistakes;
use crate::net::{Bfd, ExternalPeer, NoSecret, Password, Remote, RemoteAs, Secret, asn};

const PORTS: RangeInclusive<u64> = 1..=65535;

/// Returns a port; one out of bounds is a mistake.
pub(super) fn port(flag: &str, typed: u64, mistakes: &mut Mistakes) -> u16 {
    mistakes.number_within(flag, typed, PORTS);
    u16::try_from(typed).unwrap_or_default()
}

/// Returns the peers of `--peer-router-ips`, and those behind interfaces.
pub(super) fn peers(flags: &Flags, bfd: Bfd, has_passwords_file: bool, mistakes: &mut Mistakes) -> Vec<ExternalPeer> {
    let addresses: Vec<IpAddr> = flags.peer_router_ips.iter().flat_map(|list| list.0.iter().copied()).collect();
    let asns: Vec<u64> = flags.peer_router_asns.iter().flat_map(|list| list.0.iter().copied()).collect();
    let ports: Vec<u64> = flags.peer_router_ports.iter().flat_map(|list| list.0.iter().copied()).collect();
    let passwords: Vec<&String> = flags.peer_router_passwords.iter().flat_map(|list| &list.0).collect();
    for address in &addresses {
        match address {
            IpAddr::V6(v6) if v6.is_unicast_link_local() => mistakes.add(format!(
                "--peer-router-ips must not have {address}, which means nothing without a link; name that by --peer-router-interfaces."
            )),
            _ if address.is_unspecified() || address.is_multicast() => {
                mistakes.add(format!("--peer-router-ips must be addresses of routers; {address} is none."));
            }
            _ => {}
        }
    }
    let count = addresses.len();
    if asns.len() != count {
        mistakes.add(format!(
            "--peer-router-asns must have one AS number for each of the {count} addresses of --peer-router-ips; it has {}.",
            asns.len()
        ));
    }
    for (flag, given) in [("peer-router-ports", ports.len()), ("peer-router-passwords", passwords.len())] {
        if given != 0 && given != count {
            mistakes.add(format!(
                "--{flag} must be empty or have one value for each of the {count} addresses of --peer-router-ips; it has {given}."
            ));
        }
    }
    for wrong in asns.iter().filter(|typed| !u32::try_from(**typed).is_ok_and(asn::is_peer)) {
        mistakes.add(format!("--peer-router-asns must be in {}; {wrong} is not.", asn::PEER_RANGES));
    }
    let ports: Vec<u16> = ports.into_iter().map(|typed| port("peer-router-ports", typed, mistakes)).collect();
    let passwords: Vec<Password> =
        passwords.into_iter().enumerate().map(|(place, typed)| password(place, typed, mistakes)).collect();
    let unsaid = if has_passwords_file { Password::Unknown } else { Password::None };
    let peer = |(place, (address, typed)): (usize, (IpAddr, u64))| ExternalPeer {
        port: ports.get(place).copied(),
        password: passwords.get(place).cloned().unwrap_or_else(|| unsaid.clone()),
        bfd: Some(bfd).filter(|_| flags.enable_bfd),
        ..ExternalPeer::new(address, u32::try_from(typed).unwrap_or_default())
    };
    let by_address = addresses.into_iter().zip(asns).enumerate().map(peer);
    by_address.chain(peers_by_link(flags, bfd, mistakes)).collect()
}

/// Peers behind interfaces. They have no passwords, ports and the like of their own: for those there is the annotation.
fn peers_by_link(flags: &Flags, bfd: Bfd, mistakes: &mut Mistakes) -> Vec<ExternalPeer> {
    let mut peers: Vec<ExternalPeer> = Vec::new();
    for typed in flags.peer_router_interfaces.iter().flat_map(|list| &list.0) {
        let (name, asn) = typed.split_once('=').unwrap_or((typed, "external"));
        let asn = match asn {
            "external" => Some(RemoteAs::External),
            number => number.parse().ok().filter(|number| asn::is_peer(*number)).map(RemoteAs::Number),
        };
        match (Remote::link(name), asn) {
            (Some(remote), Some(asn)) if peers.iter().all(|earlier| earlier.remote != remote) => {
                peers.push(ExternalPeer { bfd: Some(bfd).filter(|_| flags.enable_bfd), ..ExternalPeer::of(remote, asn) });
            }
            (Some(remote), Some(_)) => mistakes.add(format!("--peer-router-interfaces names {remote} twice.")),
            (_, _) => mistakes.add(format!(
                "--peer-router-interfaces must have the name of an interface, alone or with =external or = and an AS number in {}; {typed:?} is none.",
                asn::PEER_RANGES
            )),
        }
    }
    peers
}

fn password(place: usize, typed: &str, mistakes: &mut Mistakes) -> Password {
    match Secret::from_base64(typed) {
        Ok(secret) => secret.map_or(Password::None, Password::Key),
        Err(why) => {
            // The password itself stays out of the sentence, because sentences end up in logs.
            let (number, length) = (place + 1, typed.len());
            mistakes.add(match why {
                NoSecret::NotBase64 => {
                    format!("--peer-router-passwords must be base64; number {number}, of length {length}, is not.")
                }
                NoSecret::TooLong => {
                    format!("--peer-router-passwords must be of 80 bytes at most; number {number} is longer.")
                }
            });
            Password::Unknown
        }
    }
}
