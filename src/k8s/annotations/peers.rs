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
//!     passwordfile: tor         # in place of password: a file in the directory of --peer-router-passwords-dir
//!     holdtime: 30              # seconds
//!     multihop: 4               # the TTL of what is sent
//!     ttlsecurity: 1            # in place of multihop: GTSM, so many hops at most
//!     maxprefixes: 1000         # of each family, or {ipv4: 1000, ipv6: 200}
//!     nexthopself: false
//!     llgrtime: 3600            # seconds
//!   - interface: eth1           # in place of remoteip: whichever router advertises itself there
//!     remoteasn: external       # or a number; external is any AS but ours
//! ```
//!
//! The keys behind `bfd` are ours (`settings`).
//!
//! or lists of equal length, `peer.ips` and `peer.asns`, with `peer.ports`, `peer.passwords` and `peer.localips` where they
//! are needed; blank items of these three stand for "absent". The first form wins where both are there.
//!
//! An invalid peer leaves the others as they are written. Lists of different lengths cannot be matched: a guess could talk to a neighbour without its
//! password. What cannot be read is told from what is gone ([`UnreadPeers`]): its last good version counts, the whole list where it is not clear which
//! peer is meant. Nothing of `peer.*` names a peer without `peer.ips`, whose end is the end of all of them. Passwords appear in no warning, and neither does
//! what the YAML reader says, because it quotes.

mod settings;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use serde_json::Value;

use self::settings::Settings;
use super::keys::{
    NODE_PEER_ASNS, NODE_PEER_IPS, NODE_PEER_LOCAL_IPS, NODE_PEER_PASSWORDS, NODE_PEER_PORTS, NODE_PEERS,
};
use super::value::{address, system};
use crate::k8s::warning::Warnings;
use crate::model::{UnreadPeer, UnreadPeers};
use crate::net::{Bfd, Distance, ExternalPeer, Family, Password, Remote, RemoteAs, Secret, asn, go};

/// The external peers that the annotations of a Node name, without those that cannot be read, and which these are.
pub fn peers(annotations: &BTreeMap<String, String>, warnings: &mut Warnings) -> (Vec<ExternalPeer>, UnreadPeers) {
    let (key, entries) = match annotations.get(NODE_PEERS) {
        Some(text) => (NODE_PEERS, from_yaml(text, warnings)),
        None => (NODE_PEER_IPS, from_lists(annotations, warnings)),
    };
    let Ok(entries) = entries else { return (Vec::new(), UnreadPeers::List) };
    let mut peers: Vec<ExternalPeer> = Vec::new();
    // A kubelet may write thousands of them, and each agent reads those of all Nodes.
    let mut named: BTreeSet<Remote> = BTreeSet::new();
    let mut unread: Vec<UnreadPeer> = Vec::new();
    let mut is_list_unread = false;
    for (place, Entry { remote, written }) in entries.into_iter().enumerate() {
        let number = place + 1;
        for unknown in written.iter().flat_map(|written| &written.settings.unknown) {
            warnings.odd(key, format_args!("peer {number}: {unknown} is not known; it is ignored"));
        }
        match (written.and_then(Written::peer), remote) {
            (Ok(peer), _) if !named.insert(peer.remote.clone()) => {
                let remote = peer.remote;
                warnings.odd(key, format_args!("peer {number}: {remote} stands there twice; the first one counts"));
            }
            (Ok(peer), _) => peers.push(peer),
            (Err(why), Some(remote)) => {
                warnings.odd(key, format_args!("peer {number}: {why}; {LAST_PEER}"));
                unread.push(UnreadPeer { remote, behind: peers.len() });
            }
            (Err(why), None) => {
                warnings.odd(key, format_args!("peer {number}: {why}; {LAST_LIST}"));
                is_list_unread = true;
            }
        }
    }
    unread.retain(|one| !named.contains(&one.remote));
    let unread = match (is_list_unread, unread.is_empty()) {
        (true, _) => UnreadPeers::List,
        (false, true) => UnreadPeers::None,
        (false, false) => UnreadPeers::These(unread),
    };
    (peers, unread)
}

/// The end of a warning about a peer of which is known which it is.
const LAST_PEER: &str = "its last good version counts; it is left out where none is known";
/// The end of a warning about what keeps the whole list from being understood.
const LAST_LIST: &str = "the last good list counts, if one is known";

/// One item of a list.
struct Entry {
    /// Which peer it is about, also where nothing else of it can be read.
    remote: Option<Remote>,
    written: Result<Written, String>,
}

impl Entry {
    fn new(address_text: &str, link: &str, written: Result<Written, String>) -> Entry {
        let remote = match (address_text, link) {
            (text, "") => address(text).map(Remote::Address),
            ("", name) => Remote::link(name),
            (_, _) => None,
        };
        Entry { remote, written }
    }
}

/// The list cannot be read as a whole.
struct Unread;

/// One peer as it is written; what is blank counts as absent.
#[derive(Default)]
struct Written {
    address: String,
    link: String,
    asn: String,
    port: String,
    password: String,
    /// There is a password that is not told.
    has_unknown_password: bool,
    local: String,
    bfd: Option<Bfd>,
    settings: Settings,
}

impl Written {
    fn peer(self) -> Result<ExternalPeer, String> {
        let (remote, asn) = (self.remote()?, self.remote_as()?);
        let Written { port, password, has_unknown_password, local, bfd, settings, .. } = self;
        let port = match port.as_str() {
            "" => None,
            text => Some(self::port(text).ok_or_else(|| format!("the port {text:?} is not in 1-65535"))?),
        };
        let local = match local.as_str() {
            "" => None,
            text => Some(address(text).ok_or_else(|| format!("localip {text:?} is not an address of a host"))?),
        };
        if let Some(local) = local.filter(|local| is_link_local(*local)) {
            return Err(format!("localip {local} means nothing without a link; name that by interface"));
        }
        let is_of_other_family =
            |local: &IpAddr| remote.address().is_some_and(|remote| Family::from(remote) != Family::from(*local));
        if let Some(local) = local.filter(is_of_other_family) {
            return Err(format!("localip {local} is not of the family of {remote}"));
        }
        let password = match (Secret::from_base64(&password), settings.password_file) {
            _ if has_unknown_password => Password::Unknown,
            (_, Some(name)) => Password::File(name),
            (Ok(secret), None) => secret.map_or(Password::None, Password::Key),
            (Err(why), None) => return Err(format!("its password, of length {}, is {why}", password.len())),
        };
        Ok(ExternalPeer {
            remote,
            asn,
            port,
            password,
            local,
            bfd,
            hold_time: settings.hold_time,
            distance: settings.distance,
            long_lived: settings.long_lived,
            prefix_limits: settings.prefix_limits,
            next_hop_self: settings.next_hop_self,
        })
    }
}

impl Written {
    /// Reads how the peer is found. One behind an interface is on the link, and both ends of its session have link-local addresses.
    fn remote(&self) -> Result<Remote, String> {
        match (self.address.as_str(), self.link.as_str()) {
            ("", "") => Err("remoteip is absent".to_owned()),
            (text, "") => {
                let remote = address(text).ok_or_else(|| format!("{text:?} is not an address of a neighbour"))?;
                match remote {
                    remote if is_link_local(remote) => {
                        Err(format!("{text} means nothing without a link; name that by interface"))
                    }
                    remote => Ok(Remote::Address(remote)),
                }
            }
            ("", name) => {
                let remote = Remote::link(name).ok_or_else(|| format!("{name:?} is not a name of an interface"))?;
                if !self.local.is_empty() {
                    return Err(
                        "interface and localip exclude each other: the session has link-local addresses".to_owned()
                    );
                }
                match self.settings.distance {
                    Distance::Multihop(2..) | Distance::Secured(2..) => {
                        Err("a neighbour behind an interface is one hop away; multihop and ttlsecurity may be 1"
                            .to_owned())
                    }
                    Distance::Usual | Distance::Multihop(_) | Distance::Secured(_) => Ok(remote),
                }
            }
            (_, _) => Err("remoteip and interface exclude each other".to_owned()),
        }
    }

    fn remote_as(&self) -> Result<RemoteAs, String> {
        match self.asn.as_str() {
            "" => Err("remoteasn is absent".to_owned()),
            "external" if self.link.is_empty() => {
                Err("remoteasn may be external with interface alone; else it is a number".to_owned())
            }
            "external" => Ok(RemoteAs::External),
            text => {
                let number = system(text).filter(|number| asn::is_peer(*number)).map(RemoteAs::Number);
                number.ok_or_else(|| format!("the AS number {text:?} is not in {}", asn::PEER_RANGES))
            }
        }
    }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

fn port(text: &str) -> Option<u16> {
    go::number(text).and_then(|number| u16::try_from(number).ok()).filter(|port| *port != 0)
}

fn from_yaml(text: &str, warnings: &mut Warnings) -> Result<Vec<Entry>, Unread> {
    let read = serde_saphyr::from_str::<Option<Vec<Value>>>(text).or_else(|_| {
        // A slip in one peer takes no other peer away.
        let read = serde_saphyr::from_str_with_options::<Option<Vec<Value>>>(text, tolerant());
        if read.is_ok() {
            warnings.odd(
                NODE_PEERS,
                "a key stands twice in one of its peers, of which the last counts, or a number is not finite",
            );
        }
        read
    });
    match read {
        Ok(Some(entries)) => Ok(entries.iter().map(entry).collect()),
        // A text without any value: all peers are taken away, be it by signs of a comment.
        Ok(None) => Ok(Vec::new()),
        Err(_) if text.trim().is_empty() => Ok(Vec::new()),
        Err(_) => {
            warnings.odd(NODE_PEERS, format_args!("it is not a YAML list of peers; {LAST_LIST}"));
            Err(Unread)
        }
    }
}

/// As other readers of YAML are: of a key that stands twice the last value counts, and what is no number is judged where it stands.
fn tolerant() -> serde_saphyr::Options {
    serde_saphyr::options! {
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
        non_finite_float_policy: serde_saphyr::NonFiniteFloatPolicy::AsString,
    }
}

fn entry(entry: &Value) -> Entry {
    let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default().trim();
    Entry::new(text("remoteip"), text("interface"), written(entry))
}

fn written(entry: &Value) -> Result<Written, String> {
    let Value::Object(fields) = entry else { return Err("it is not a mapping".to_owned()) };
    let text = |key: &str| match fields.get(key) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.trim().to_owned()),
        Some(Value::Number(number)) if number.is_u64() => Ok(number.to_string()),
        Some(_) => Err(format!("{key} is neither a text nor a number")),
    };
    Ok(Written {
        address: text("remoteip")?,
        link: text("interface")?,
        asn: text("remoteasn")?,
        port: text("port")?,
        password: text("password")?,
        has_unknown_password: fields.get("password_unknown") == Some(&Value::Bool(true)),
        local: text("localip")?,
        bfd: bfd(fields.get("bfd"))?,
        settings: settings::settings(fields)?,
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

fn from_lists(annotations: &BTreeMap<String, String>, warnings: &mut Warnings) -> Result<Vec<Entry>, Unread> {
    let list = |key: &str| {
        let items = annotations.get(key)?.split(',').map(|item| item.trim().to_owned()).collect::<Vec<_>>();
        Some(items)
    };
    // An annotation that is there and empty is none.
    let is_given = |items: &Vec<String>| items.iter().any(|item| !item.is_empty());
    let (addresses, asns) = match (list(NODE_PEER_IPS).filter(is_given), list(NODE_PEER_ASNS).filter(is_given)) {
        (Some(addresses), Some(asns)) => (addresses, asns),
        (None, None) => return Ok(Vec::new()),
        // Between two commands.
        (Some(_), None) => {
            warnings.odd(NODE_PEER_IPS, format_args!("{NODE_PEER_ASNS} is absent; {LAST_LIST}"));
            return Err(Unread);
        }
        // Nothing names a peer any more.
        (None, Some(_)) => {
            warnings.odd(NODE_PEER_ASNS, format_args!("{NODE_PEER_IPS} is absent; there are no external peers"));
            return Ok(Vec::new());
        }
    };
    let count = addresses.len();
    let mut columns = vec![(NODE_PEER_ASNS, asns)];
    for key in [NODE_PEER_PORTS, NODE_PEER_PASSWORDS, NODE_PEER_LOCAL_IPS] {
        let given = list(key).filter(|items| count == 1 || is_given(items));
        columns.push((key, given.unwrap_or_else(|| vec![String::new(); count])));
    }
    if let Some((key, items)) = columns.iter().find(|(_, items)| items.len() != count) {
        let given = items.len();
        let text = format_args!("it has {given} items for {count} addresses in {NODE_PEER_IPS}; {LAST_LIST}");
        warnings.odd(*key, text);
        return Err(Unread);
    }
    let mut columns = columns.into_iter().map(|(_, items)| items.into_iter());
    let mut column = || columns.next().into_iter().flatten();
    let (mut asns, mut ports, mut passwords, mut locals) = (column(), column(), column(), column());
    let entries = addresses.into_iter().map(|address| {
        let written = Written {
            address: address.clone(),
            asn: asns.next().unwrap_or_default(),
            port: ports.next().unwrap_or_default(),
            password: passwords.next().unwrap_or_default(),
            local: locals.next().unwrap_or_default(),
            ..Written::default()
        };
        Entry::new(&address, "", Ok(written))
    });
    Ok(entries.collect())
}

#[cfg(test)]
mod tests;
