//! The checks of the router's flags: BGP, routes, tunnels, BFD.
//!
//! Limits come from the wire formats: RFC 4271 (hold time: 16 bits of seconds, at least 3), RFC 4724 (restart
//! time: 12 bits), RFC 5880 (detection multiplier: 8 bits; intervals: 32 bits of microseconds), RFC 6996 (private
//! AS numbers), RFC 7607 and 7300 (AS numbers never used).

use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::flags::Flags;
use super::mistakes::Mistakes;

/// Adds what is wrong with the router's flags.
pub(super) fn check(flags: &Flags, mistakes: &mut Mistakes) {
    mistakes.longer_than_zero("routes-sync-period", flags.routes_sync_period, "5m");
    mistakes.longer_than_zero("injected-routes-sync-period", flags.injected_routes_sync_period, "1m");
    check_overlay(flags, mistakes);
    check_speaker(flags, mistakes);
    check_peers(flags, mistakes);
    check_bfd(flags, mistakes);
}

fn check_overlay(flags: &Flags, mistakes: &mut Mistakes) {
    mistakes.one_of("overlay-type", &flags.overlay_type, ("subnet", ()), ("full", ()));
    mistakes.one_of("overlay-encap", &flags.overlay_encap, ("ipip", ()), ("fou", ()));
    mistakes.number_within("overlay-encap-port", flags.overlay_encap_port.into(), 1024..=65535);
}

fn check_speaker(flags: &Flags, mistakes: &mut Mistakes) {
    let seconds = Duration::from_secs;
    let asn = flags.cluster_asn;
    if asn != 0 && !PRIVATE_ASNS.iter().any(|range| range.contains(&asn)) {
        mistakes.add(format!(
            "--cluster-asn must be a private AS number, 64512-65535 or 4200000000-4294967294, or 0; it is {asn}."
        ));
    }
    let router_id = flags.router_id.as_str();
    if !router_id.is_empty() && router_id != "generate" && router_id.parse::<Ipv4Addr>().is_err() {
        mistakes.add(format!(
            "--router-id must have the form of an IPv4 address, for example 192.0.2.10, or be \"generate\"; it is {router_id:?}."
        ));
    }
    mistakes.number_within("bgp-port", flags.bgp_port.into(), PORTS);
    mistakes.duration_within("bgp-holdtime", flags.bgp_holdtime, seconds(3)..=seconds(65535));
    let shortest = Duration::from_nanos(1);
    mistakes.duration_within("bgp-graceful-restart-time", flags.bgp_graceful_restart_time, shortest..=seconds(4095));
    mistakes.duration_within(
        "bgp-graceful-restart-deferral-time",
        flags.bgp_graceful_restart_deferral_time,
        shortest..=seconds(18 * 3600),
    );
    let admin = flags.gobgp_admin_address.as_str();
    if !admin.is_empty() && admin != "localhost" && admin.parse::<IpAddr>().is_err() {
        mistakes.add(format!("--gobgp-admin-address must be an IP address, for example 127.0.0.1; it is {admin:?}."));
    }
}

const PORTS: RangeInclusive<u64> = 1..=65535;
const PRIVATE_ASNS: [RangeInclusive<u64>; 2] = [64512..=65535, 4_200_000_000..=4_294_967_294];
/// Without 23456 (AS_TRANS), the documentation and reserved blocks, and the last number of either width.
const PEER_ASNS: [RangeInclusive<u64>; 4] = [1..=23455, 23457..=63999, 64512..=65534, 131_072..=4_294_967_294];

fn check_peers(flags: &Flags, mistakes: &mut Mistakes) {
    let peers = flags.peer_router_ips.iter().map(|list| list.0.len()).sum::<usize>();
    let asns: Vec<u64> = flags.peer_router_asns.iter().flat_map(|list| list.0.iter().copied()).collect();
    let ports: Vec<u64> = flags.peer_router_ports.iter().flat_map(|list| list.0.iter().copied()).collect();
    let passwords: Vec<&String> = flags.peer_router_passwords.iter().flat_map(|list| &list.0).collect();
    if asns.len() != peers {
        mistakes.add(format!(
            "--peer-router-asns must have one AS number for each of the {peers} addresses of --peer-router-ips; it has {}.",
            asns.len()
        ));
    }
    for (flag, count) in [("peer-router-ports", ports.len()), ("peer-router-passwords", passwords.len())] {
        if count != 0 && count != peers {
            mistakes.add(format!(
                "--{flag} must be empty or have one value for each of the {peers} addresses of --peer-router-ips; it has {count}."
            ));
        }
    }
    for asn in asns.iter().filter(|asn| !PEER_ASNS.iter().any(|range| range.contains(asn))) {
        mistakes.add(format!(
            "--peer-router-asns must be in 1-23455, 23457-63999, 64512-65534 or 131072-4294967294; {asn} is not."
        ));
    }
    for port in ports {
        mistakes.number_within("peer-router-ports", port, PORTS);
    }
    for (position, password) in passwords.iter().enumerate().filter(|(_, password)| !is_base64(password)) {
        // The password itself stays out of the sentence, because sentences end up in logs.
        let (number, length) = (position + 1, password.len());
        mistakes.add(format!("--peer-router-passwords must be base64; number {number}, of length {length}, is not."));
    }
}

/// True for base64 with padding (RFC 4648 section 4); the empty text is base64 of nothing.
fn is_base64(text: &str) -> bool {
    let digits = text.trim_end_matches('=');
    let padding = text.len() - digits.len();
    text.len().is_multiple_of(4)
        && padding <= 2
        && digits.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/')
}

fn check_bfd(flags: &Flags, mistakes: &mut Mistakes) {
    mistakes.number_within("bfd-port", flags.bfd_port.into(), PORTS);
    mistakes.number_within("bfd-detection-multiplier", flags.bfd_detection_multiplier.into(), 1..=255);
    let milliseconds = 1..=u64::from(u32::MAX) / 1000;
    let (send, receive) = (flags.bfd_desired_min_tx_interval, flags.bfd_required_min_rx_interval);
    mistakes.number_within("bfd-desired-min-tx-interval", send.into(), milliseconds.clone());
    mistakes.number_within("bfd-required-min-rx-interval", receive.into(), milliseconds);
}
