//! Settings of a peer in `kube-router.io/peers` that kube-router does not have, and keys that nobody knows.
//!
//! A key that is not known is named and ignored, as kube-router ignores it. One that differs from a key of ours, or from
//! `password`, in nothing but capitals and signs was meant to be that key: the peer is left out, because it would otherwise
//! be talked to without what protects the session.

use std::ops::RangeInclusive;

use compact_str::CompactString;
use serde_json::{Map, Value};

use crate::net::{Distance, PerFamily, go};

/// Settings of a peer besides its address and its AS number.
#[derive(Default)]
pub(super) struct Settings {
    pub password_file: Option<CompactString>,
    pub hold_time: Option<u16>,
    pub distance: Distance,
    pub long_lived: Option<u32>,
    pub prefix_limits: PerFamily<Option<u32>>,
    pub next_hop_self: Option<bool>,
    /// Keys that are not known.
    pub unknown: Vec<String>,
}

/// Keys that kube-router knows, too.
const KNOWN: [&str; 6] = ["remoteip", "remoteasn", "localip", "password", "port", "bfd"];
/// Keys of ours.
const OURS: [&str; 9] = [
    "interface",
    "passwordfile",
    "password_unknown",
    "holdtime",
    "multihop",
    "ttlsecurity",
    "maxprefixes",
    "nexthopself",
    "llgrtime",
];
const OF_BFD: [&str; 5] =
    ["enabled", "port", "detection_multiplier", "desired_min_tx_interval", "required_min_rx_interval"];
/// RFC 4271 4.2: 0, which means that nothing watches the session, cannot be chosen, as by the flag.
const HOLD_TIMES: RangeInclusive<u64> = 3..=65535;
const MULTIHOP: RangeInclusive<u64> = 1..=255;
/// With 255 any packet would do.
const HOPS: RangeInclusive<u64> = 1..=254;
/// RFC 9494 3: 24 bits of seconds; 0 switches it off.
const LLGR_TIMES: RangeInclusive<u64> = 0..=(1 << 24) - 1;
const PREFIXES: RangeInclusive<u64> = 1..=u32::MAX as u64;

/// Reads the settings of one peer.
///
/// # Errors
/// A value makes no sense, or a key is misspelt; as a sentence without the value of a password.
pub(super) fn settings(fields: &Map<String, Value>) -> Result<Settings, String> {
    let unknown = unknown(fields)?;
    let hold_time = number(fields, "holdtime", HOLD_TIMES)?;
    let distance = match (number(fields, "multihop", MULTIHOP)?, number(fields, "ttlsecurity", HOPS)?) {
        (None, None) => Distance::Usual,
        (Some(hops), None) => Distance::Multihop(hops as u8),
        (None, Some(hops)) => Distance::Secured(hops as u8),
        (Some(_), Some(_)) => return Err("multihop and ttlsecurity exclude each other".to_owned()),
    };
    Ok(Settings {
        password_file: password_file(fields)?,
        hold_time: hold_time.map(|seconds| seconds as u16),
        distance,
        long_lived: number(fields, "llgrtime", LLGR_TIMES)?.map(|seconds| seconds as u32),
        prefix_limits: prefix_limits(fields)?,
        next_hop_self: switch(fields, "nexthopself")?,
        unknown,
    })
}

/// Reads a number; `None` where it is absent. All ranges end within the type that the number goes into.
fn number(fields: &Map<String, Value>, key: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, String> {
    let number = match fields.get(key) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) => go::number(text.trim()),
        Some(value) => value.as_u64(),
    };
    let (first, last) = (*range.start(), *range.end());
    let number = number.filter(|number| range.contains(number));
    number.map(Some).ok_or_else(|| format!("{key} is not in {first}-{last}"))
}

fn switch(fields: &Map<String, Value>, key: &str) -> Result<Option<bool>, String> {
    match fields.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(on)) => Ok(Some(*on)),
        Some(_) => Err(format!("{key} is neither true nor false")),
    }
}

/// A name in one directory, which cannot lead out of it: no separator, and no name that the kubelet or the system uses for
/// itself.
fn password_file(fields: &Map<String, Value>) -> Result<Option<CompactString>, String> {
    let name = match fields.get("passwordfile") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(name)) => name,
        Some(_) => return Err("passwordfile is not a text".to_owned()),
    };
    if matches!(fields.get("password"), Some(value) if !value.is_null()) {
        return Err("password and passwordfile exclude each other".to_owned());
    }
    let is_plain = !name.is_empty() && name.len() <= 255 && !name.starts_with('.') && !name.contains(['/', '\0']);
    match is_plain {
        true => Ok(Some(name.into())),
        false => Err("passwordfile is not the name of a file: it has neither / nor a dot at its beginning".to_owned()),
    }
}

/// Either one number for each family, or a mapping with those of `ipv4` and `ipv6`.
fn prefix_limits(fields: &Map<String, Value>) -> Result<PerFamily<Option<u32>>, String> {
    let Some(Value::Object(limits)) = fields.get("maxprefixes") else {
        let both = number(fields, "maxprefixes", PREFIXES)?.map(|most| most as u32);
        return Ok(PerFamily { v4: both, v6: both });
    };
    if let Some((key, value)) = limits.iter().find(|(key, _)| !["ipv4", "ipv6"].contains(&key.as_str())) {
        return Err(format!("maxprefixes has {}, and not ipv4 or ipv6", shown(key, value)));
    }
    let of = |key: &str| {
        let limit = number(limits, key, PREFIXES).map_err(|why| format!("maxprefixes: {why}"));
        limit.map(|most| most.map(|most| most as u32))
    };
    Ok(PerFamily { v4: of("ipv4")?, v6: of("ipv6")? })
}

fn unknown(fields: &Map<String, Value>) -> Result<Vec<String>, String> {
    let mut unknown = Vec::new();
    let known = |key: &str| KNOWN.contains(&key) || OURS.contains(&key);
    for (key, value) in fields.iter().filter(|(key, _)| !known(key.as_str())) {
        let plain: String = key.chars().filter(|c| !matches!(c, '_' | '-')).collect::<String>().to_lowercase();
        if plain == "password" || OURS.contains(&plain.as_str()) {
            return Err(format!("{} must be written as {plain}", shown(key, value)));
        }
        unknown.push(shown(key, value));
    }
    if let Some(Value::Object(bfd)) = fields.get("bfd") {
        let others = bfd.iter().filter(|(key, _)| !OF_BFD.contains(&key.as_str()));
        unknown.extend(others.map(|(key, value)| format!("{} of bfd", shown(key, value))));
    }
    Ok(unknown)
}

/// The key itself, unless it may hold more than a name: with `{password:hush}` all of it is a key, and with `{password, hush}` the
/// second is one without a value.
fn shown(key: &str, value: &Value) -> String {
    let is_name = !value.is_null()
        && key.len() <= 32
        && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'));
    if is_name && !key.is_empty() { key.to_owned() } else { format!("a key of length {}", key.len()) }
}
