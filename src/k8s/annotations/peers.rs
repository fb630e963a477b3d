//! The external peers of a node, in both of their forms.
//!
//! ```yaml
//! kube-router.io/peers: |
//!   - remoteip: 203.0.113.1
//!     remoteasn: 65001
//!     localip: 192.0.2.1        # or absent: the node's own
//!     password: cGFzcw==        # base64, or absent
//!     password_unknown: true    # as bundles have it, which hold no passwords; or absent
//!     port: 179                 # or absent
//!     bfd:                      # or absent; all but `enabled` may be
//!       enabled: true
//!       port: 3784
//!       detection_multiplier: 3
//!       desired_min_tx_interval: 1000     # milliseconds
//!       required_min_rx_interval: 1000
//! ```
//!
//! or lists of equal length, `peer.ips` and `peer.asns`, with `peer.ports`, `peer.passwords` and `peer.localips` where they
//! are needed; blank items of these three stand for "absent". The first form wins where both are there.
//!
//! An invalid peer is left out and the others stay. Lists of different lengths cannot be matched, so that none of
//! them counts: a guess could talk to a neighbour without its password. Passwords appear in no warning, and neither does what
//! the YAML reader says, because it quotes.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde_json::Value;

use super::keys::{
    NODE_PEER_ASNS, NODE_PEER_IPS, NODE_PEER_LOCAL_IPS, NODE_PEER_PASSWORDS, NODE_PEER_PORTS, NODE_PEERS,
};
use super::value::{address, system};
use crate::k8s::warning::Warnings;
use crate::net::{Bfd, ExternalPeer, Family, Password, Secret, asn, go};

/// The external peers that the annotations of a Node name.
pub fn peers(annotations: &BTreeMap<String, String>, warnings: &mut Warnings) -> Vec<ExternalPeer> {
    let (key, written) = match annotations.get(NODE_PEERS) {
        Some(text) => (NODE_PEERS, from_yaml(text, warnings)),
        None => (NODE_PEER_IPS, from_lists(annotations, warnings)),
    };
    let mut peers: Vec<ExternalPeer> = Vec::new();
    for (place, written) in written.into_iter().enumerate() {
        let number = place + 1;
        match written.and_then(Written::peer) {
            Ok(peer) if peers.iter().any(|earlier| earlier.address == peer.address) => {
                let address = peer.address;
                warnings.odd(key, format_args!("peer {number}: {address} stands there twice; the first one counts"));
            }
            Ok(peer) => peers.push(peer),
            Err(why) => warnings.odd(key, format_args!("peer {number}: {why}; it is left out")),
        }
    }
    peers
}

/// One peer as it is written; what is blank counts as absent.
#[derive(Default)]
struct Written {
    address: String,
    asn: String,
    port: String,
    password: String,
    /// There is a password that is not told.
    has_unknown_password: bool,
    local: String,
    bfd: Option<Bfd>,
}

impl Written {
    fn peer(self) -> Result<ExternalPeer, String> {
        let Written { address: remote, asn, port, password, has_unknown_password, local, bfd } = self;
        if remote.is_empty() {
            return Err("remoteip is absent".to_owned());
        }
        if asn.is_empty() {
            return Err("remoteasn is absent".to_owned());
        }
        let remote = address(&remote).ok_or_else(|| format!("{remote:?} is not an address of a neighbour"))?;
        let number = system(&asn).filter(|number| asn::is_peer(*number));
        let number = number.ok_or_else(|| format!("the AS number {asn:?} is not in {}", asn::PEER_RANGES))?;
        let port = match port.as_str() {
            "" => None,
            text => Some(self::port(text).ok_or_else(|| format!("the port {text:?} is not in 1-65535"))?),
        };
        let local = match local.as_str() {
            "" => None,
            text => Some(address(text).ok_or_else(|| format!("localip {text:?} is not an address of a host"))?),
        };
        if let Some(local) = local.filter(|local| Family::from(*local) != Family::from(remote)) {
            return Err(format!("localip {local} is not of the family of {remote}"));
        }
        let password = match Secret::from_base64(&password) {
            _ if has_unknown_password => Password::Unknown,
            Ok(secret) => secret.map_or(Password::None, Password::Key),
            Err(why) => return Err(format!("its password, of length {}, is {why}", password.len())),
        };
        Ok(ExternalPeer { address: remote, asn: number, port, password, local, bfd })
    }
}

fn port(text: &str) -> Option<u16> {
    go::number(text).and_then(|number| u16::try_from(number).ok()).filter(|port| *port != 0)
}

fn from_yaml(text: &str, warnings: &mut Warnings) -> Vec<Result<Written, String>> {
    let Ok(Some(entries)) = serde_saphyr::from_str::<Option<Vec<Value>>>(text) else {
        if !text.trim().is_empty() {
            warnings.odd(NODE_PEERS, "it is not a YAML list of peers; it is ignored");
        }
        return Vec::new();
    };
    entries.iter().map(entry).collect()
}

fn entry(entry: &Value) -> Result<Written, String> {
    let Value::Object(fields) = entry else { return Err("it is not a mapping".to_owned()) };
    let text = |key: &str| match fields.get(key) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.trim().to_owned()),
        Some(Value::Number(number)) if number.is_u64() => Ok(number.to_string()),
        Some(_) => Err(format!("{key} is neither a text nor a number")),
    };
    Ok(Written {
        address: text("remoteip")?,
        asn: text("remoteasn")?,
        port: text("port")?,
        password: text("password")?,
        has_unknown_password: fields.get("password_unknown") == Some(&Value::Bool(true)),
        local: text("localip")?,
        bfd: bfd(fields.get("bfd"))?,
    })
}

/// Reads how the path to a peer is watched; ranges are checked also where it is not.
fn bfd(value: Option<&Value>) -> Result<Option<Bfd>, String> {
    let fields = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(fields)) => fields,
        Some(_) => return Err("bfd is not a mapping".to_owned()),
    };
    let number = |key: &str, usual: u64, range: RangeInclusive<u64>| {
        let number = match fields.get(key) {
            None | Some(Value::Null) => Some(usual),
            Some(Value::String(text)) => go::number(text.trim()),
            Some(value) => value.as_u64(),
        };
        let (first, last) = (*range.start(), *range.end());
        number.filter(|number| range.contains(number)).ok_or_else(|| format!("{key} of bfd is not in {first}-{last}"))
    };
    let usual = Bfd::default();
    let port = number("port", usual.port.into(), Bfd::PORTS)?;
    let multiplier = number("detection_multiplier", usual.multiplier.into(), Bfd::MULTIPLIERS)?;
    let send = number("desired_min_tx_interval", usual.send.into(), Bfd::MILLISECONDS)?;
    let receive = number("required_min_rx_interval", usual.receive.into(), Bfd::MILLISECONDS)?;
    let is_enabled = match fields.get("enabled") {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Bool(true)) => true,
        Some(_) => return Err("enabled of bfd is neither true nor false".to_owned()),
    };
    // All of them are in their ranges.
    let bfd = Bfd { port: port as u16, multiplier: multiplier as u8, send: send as u32, receive: receive as u32 };
    Ok(is_enabled.then_some(bfd))
}

fn from_lists(annotations: &BTreeMap<String, String>, warnings: &mut Warnings) -> Vec<Result<Written, String>> {
    let list = |key: &str| {
        annotations.get(key).map(|text| text.split(',').map(|item| item.trim().to_owned()).collect::<Vec<_>>())
    };
    let (addresses, asns) = match (list(NODE_PEER_IPS), list(NODE_PEER_ASNS)) {
        (Some(addresses), Some(asns)) => (addresses, asns),
        (None, None) => return Vec::new(),
        (Some(_), None) => {
            warnings.odd(NODE_PEER_IPS, format_args!("{NODE_PEER_ASNS} is absent; there are no external peers"));
            return Vec::new();
        }
        (None, Some(_)) => {
            warnings.odd(NODE_PEER_ASNS, format_args!("{NODE_PEER_IPS} is absent; there are no external peers"));
            return Vec::new();
        }
    };
    let count = addresses.len();
    let mut columns = vec![(NODE_PEER_ASNS, asns)];
    for key in [NODE_PEER_PORTS, NODE_PEER_PASSWORDS, NODE_PEER_LOCAL_IPS] {
        // An annotation that is there and empty is none.
        let given = list(key).filter(|items| count == 1 || items.iter().any(|item| !item.is_empty()));
        columns.push((key, given.unwrap_or_else(|| vec![String::new(); count])));
    }
    if let Some((key, items)) = columns.iter().find(|(_, items)| items.len() != count) {
        let given = items.len();
        let text =
            format_args!("it has {given} items for {count} addresses in {NODE_PEER_IPS}; none of the peers counts");
        warnings.odd(*key, text);
        return Vec::new();
    }
    let mut columns = columns.into_iter().map(|(_, items)| items.into_iter());
    let mut column = || columns.next().into_iter().flatten();
    let (mut asns, mut ports, mut passwords, mut locals) = (column(), column(), column(), column());
    let written = addresses.into_iter().map(|address| Written {
        address,
        asn: asns.next().unwrap_or_default(),
        port: ports.next().unwrap_or_default(),
        password: passwords.next().unwrap_or_default(),
        has_unknown_password: false,
        local: locals.next().unwrap_or_default(),
        bfd: None,
    });
    written.map(Ok).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(annotations: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
        let annotations = annotations.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        let mut warnings = Warnings::default();
        let text = |peer: ExternalPeer| {
            let port = peer.port.map(|port| format!(":{port}")).unwrap_or_default();
            let key = match &peer.password {
                Password::Key(secret) => format!(" key {}", String::from_utf8_lossy(secret.key())),
                _ => String::new(),
            };
            let local = peer.local.map(|local| format!(" from {local}")).unwrap_or_default();
            let bfd = peer.bfd.map(|bfd| format!(" bfd {} {} {} {}", bfd.port, bfd.multiplier, bfd.send, bfd.receive));
            format!("{}{port} AS{}{key}{local}{}", peer.address, peer.asn, bfd.unwrap_or_default())
        };
        let peers = peers(&annotations, &mut warnings).into_iter().map(text).collect();
        (peers, warnings.take().into_iter().map(|warning| warning.to_string()).collect())
    }

    const NOTHING: [&str; 0] = [];

    #[test]
    fn a_yaml_list_names_peers_with_what_they_need() {
        let yaml = "- remoteip: 203.0.113.1\n  remoteasn: 65001\n  more: 1\n\
                    - remoteip: 2001:db8:113::1\n  remoteasn: 4200000001\n  localip: 2001:db8::1\n  port: 1179\n  password: cGFzcw==\n";
        let (peers, warnings) = parsed(&[(NODE_PEERS, yaml), (NODE_PEER_IPS, "203.0.113.9"), (NODE_PEER_ASNS, "1")]);
        assert_eq!(peers, ["203.0.113.1 AS65001", "2001:db8:113::1:1179 AS4200000001 key pass from 2001:db8::1"]);
        assert_eq!(warnings, NOTHING);
    }

    #[test]
    fn the_older_lists_may_have_blanks_where_something_is_absent() {
        let (peers, warnings) = parsed(&[
            (NODE_PEER_IPS, "203.0.113.1, 203.0.113.2"),
            (NODE_PEER_ASNS, "65001,0xFDEA"),
            (NODE_PEER_PORTS, ",1179"),
            (NODE_PEER_PASSWORDS, "cGFzcw==,"),
            (NODE_PEER_LOCAL_IPS, " ,192.0.2.1"),
        ]);
        assert_eq!(peers, ["203.0.113.1 AS65001 key pass", "203.0.113.2:1179 AS65002 from 192.0.2.1"]);
        assert_eq!(warnings, NOTHING);
        let (peers, warnings) = parsed(&[(NODE_PEER_IPS, "203.0.113.1"), (NODE_PEER_ASNS, "1"), (NODE_PEER_PORTS, "")]);
        assert_eq!((peers.len(), warnings.len()), (1, 0));
    }

    #[test]
    fn one_peer_that_makes_no_sense_leaves_the_others() {
        let good = "- {remoteip: 203.0.113.1, remoteasn: 65001}\n";
        for (odd, why) in [
            ("{remoteasn: 65001}", "remoteip is absent"),
            ("{remoteip: 203.0.113.2}", "remoteasn is absent"),
            ("{remoteip: 203.0.113.256, remoteasn: 65001}", "\"203.0.113.256\" is not an address of a neighbour"),
            ("{remoteip: 0.0.0.0, remoteasn: 65001}", "\"0.0.0.0\" is not an address of a neighbour"),
            (
                "{remoteip: 203.0.113.2, remoteasn: 23456}",
                "the AS number \"23456\" is not in 1-23455, 23457-63999, 64512-65534 or 131072-4294967294",
            ),
            ("{remoteip: 203.0.113.2, remoteasn: 65001, port: 65536}", "the port \"65536\" is not in 1-65535"),
            ("{remoteip: 203.0.113.2, remoteasn: 65001, localip: x}", "localip \"x\" is not an address of a host"),
            (
                "{remoteip: 203.0.113.2, remoteasn: 65001, localip: '2001:db8::1'}",
                "localip 2001:db8::1 is not of the family of 203.0.113.2",
            ),
            (
                "{remoteip: 203.0.113.2, remoteasn: 65001, password: secret!}",
                "its password, of length 7, is not base64",
            ),
            ("{remoteip: 203.0.113.2, remoteasn: [1]}", "remoteasn is neither a text nor a number"),
            ("nonsense", "it is not a mapping"),
        ] {
            let (peers, warnings) = parsed(&[(NODE_PEERS, &format!("{good}- {odd}\n"))]);
            assert_eq!(peers, ["203.0.113.1 AS65001"], "{odd}");
            assert_eq!(warnings, [format!("kube-router.io/peers: peer 2: {why}; it is left out")]);
        }
        let (peers, warnings) = parsed(&[(NODE_PEERS, &good.repeat(2))]);
        assert_eq!(peers.len(), 1);
        let twice = "kube-router.io/peers: peer 2: 203.0.113.1 stands there twice; the first one counts";
        assert_eq!(warnings, [twice]);
    }

    #[test]
    fn a_peer_whose_path_is_watched_has_its_own_times() {
        let with =
            |bfd: &str| parsed(&[(NODE_PEERS, &format!("[{{remoteip: 203.0.113.1, remoteasn: 65001, bfd: {bfd}}}]"))]);
        for (bfd, expected) in [
            ("{enabled: true}", " bfd 3784 3 1000 1000"),
            ("{enabled: true, port: 4784, desired_min_tx_interval: 300}", " bfd 4784 3 300 1000"),
            (
                "{enabled: true, detection_multiplier: '5', required_min_rx_interval: 4294967}",
                " bfd 3784 5 1000 4294967",
            ),
            ("{enabled: false, port: 1}", ""),
            ("{}", ""),
            ("", ""),
        ] {
            assert_eq!(with(bfd), (vec![format!("203.0.113.1 AS65001{expected}")], vec![]), "{bfd}");
        }
        for (bfd, why) in [
            ("true", "bfd is not a mapping"),
            ("{enabled: maybe}", "enabled of bfd is neither true nor false"),
            ("{enabled: true, port: 0}", "port of bfd is not in 1-65535"),
            ("{detection_multiplier: 256}", "detection_multiplier of bfd is not in 1-255"),
            ("{enabled: true, desired_min_tx_interval: 4294968}", "desired_min_tx_interval of bfd is not in 1-4294967"),
            ("{enabled: true, required_min_rx_interval: -1}", "required_min_rx_interval of bfd is not in 1-4294967"),
        ] {
            let warning = format!("kube-router.io/peers: peer 1: {why}; it is left out");
            assert_eq!(with(bfd), (vec![], vec![warning]), "{bfd}");
        }
    }

    #[test]
    fn what_is_no_list_is_ignored_and_not_quoted() {
        for text in ["remoteip: 203.0.113.1", "- {password: 'hush", "{", "- &a [*a]", "hush"] {
            let (peers, warnings) = parsed(&[(NODE_PEERS, text)]);
            assert_eq!(peers, NOTHING, "{text}");
            assert_eq!(warnings.len(), 1, "{text}: {warnings:?}");
            assert!(!warnings[0].contains("hush"), "{warnings:?}");
        }
        assert_eq!(parsed(&[(NODE_PEERS, "")]), (vec![], vec![]));
        assert_eq!(parsed(&[(NODE_PEERS, "[]")]), (vec![], vec![]));
    }

    #[test]
    fn lists_that_do_not_match_make_no_peers() {
        let base = [(NODE_PEER_IPS, "203.0.113.1,203.0.113.2"), (NODE_PEER_ASNS, "65001,65002")];
        for (key, value) in [
            (NODE_PEER_ASNS, "65001"),
            (NODE_PEER_PORTS, "179"),
            (NODE_PEER_PASSWORDS, "cGFzcw=="),
            (NODE_PEER_LOCAL_IPS, "192.0.2.1,,"),
        ] {
            let with: Vec<_> = base.iter().copied().filter(|(k, _)| *k != key).chain([(key, value)]).collect();
            let (peers, warnings) = parsed(&with);
            assert_eq!((peers.len(), warnings.len()), (0, 1), "{key}: {warnings:?}");
            assert!(warnings[0].contains("none of the peers counts"), "{warnings:?}");
        }
        for one in base {
            let (peers, warnings) = parsed(&[one]);
            assert_eq!((peers.len(), warnings.len()), (0, 1), "{warnings:?}");
        }
        let (peers, warnings) = parsed(&[(NODE_PEER_IPS, "203.0.113.1,x"), (NODE_PEER_ASNS, "65001,65002")]);
        assert_eq!((peers.len(), warnings.len()), (1, 1), "one bad item is one peer less");
    }
}
