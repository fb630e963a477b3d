//! The annotations of a Node about BGP.
//!
//! Each annotation is apart: one that makes no sense counts as absent, a list loses the items that make none, and a warning
//! names what was lost; of external peers the last good ones stay ([`peers`](super::peers)). Items of lists may have blanks around them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::keys::{
    NODE_ASN, NODE_BGP_LOCAL_ADDRESSES, NODE_COMMUNITIES, NODE_IMPORT_REJECT, NODE_PREPEND_AS, NODE_PREPEND_REPEAT,
    NODE_REFLECTOR_CLIENT, NODE_REFLECTOR_SERVER,
};
use super::peers::peers;
use super::value::{address, system};
use crate::k8s::warning::Warnings;
use crate::model::{Prepend, Reflection, Routing};
use crate::net::go;

/// Parses the annotations of a Node about BGP.
pub fn routing(annotations: &BTreeMap<String, String>, warnings: &mut Warnings) -> Routing {
    let (peers, unread_peers) = peers(annotations, warnings);
    Routing {
        asn: asn(annotations, warnings),
        reflection: reflection(annotations, warnings),
        prepend: prepend(annotations, warnings),
        communities: communities(annotations, warnings),
        import_reject: import_reject(annotations, warnings),
        peers,
        unread_peers,
        local_addresses: local_addresses(annotations, warnings),
    }
}

fn asn(annotations: &BTreeMap<String, String>, warnings: &mut Warnings) -> Option<u32> {
    let text = annotations.get(NODE_ASN)?;
    let asn = system(text);
    if asn.is_none() {
        warnings.odd(NODE_ASN, format_args!("{text:?} is not an AS number; the node has none"));
    }
    asn
}

fn reflection(annotations: &BTreeMap<String, String>, warnings: &mut Warnings) -> Reflection {
    let mut cluster = |key: &'static str| {
        let text = annotations.get(key)?;
        // `42` is the cluster `0.0.0.42`; of `0` each reflector has its router identifier as cluster ID (RFC 4456 8).
        let number = || go::number(text.trim()).and_then(|number| u32::try_from(number).ok()).map(Ipv4Addr::from_bits);
        let id = text.trim().parse::<Ipv4Addr>().ok().or_else(number);
        if id.is_none() {
            warnings.odd(key, format_args!("{text:?} is neither a number nor an IPv4 address; it is ignored"));
        }
        id
    };
    let (server, client) = (cluster(NODE_REFLECTOR_SERVER), cluster(NODE_REFLECTOR_CLIENT));
    server.map(Reflection::Server).or(client.map(Reflection::Client)).unwrap_or_default()
}

fn prepend(annotations: &BTreeMap<String, String>, warnings: &mut Warnings) -> Option<Prepend> {
    let (asn, times) = (annotations.get(NODE_PREPEND_AS), annotations.get(NODE_PREPEND_REPEAT));
    let mut odd = |key: &'static str, why: String| {
        warnings.odd(key, format_args!("{why}; nothing is prepended"));
        None
    };
    let (asn, times) = match (asn, times) {
        (None, None) => return None,
        (Some(asn), Some(times)) => (asn, times),
        (Some(_), None) => return odd(NODE_PREPEND_AS, format!("{NODE_PREPEND_REPEAT} is absent")),
        (None, Some(_)) => return odd(NODE_PREPEND_REPEAT, format!("{NODE_PREPEND_AS} is absent")),
    };
    let Some(number) = system(asn) else { return odd(NODE_PREPEND_AS, format!("{asn:?} is not an AS number")) };
    let count = go::number(times.trim()).and_then(|count| u8::try_from(count).ok()).filter(|count| *count != 0);
    let Some(count) = count else { return odd(NODE_PREPEND_REPEAT, format!("{times:?} is not in 1-255")) };
    Some(Prepend { asn: number, times: count })
}

/// Communities that have a name (IANA, "BGP Well-known Communities").
const WELL_KNOWN: [(&str, u32); 14] = [
    ("internet", 0),
    ("planned-shut", 0xffff_0000),
    ("accept-own", 0xffff_0001),
    ("route-filter-translated-v4", 0xffff_0002),
    ("route-filter-v4", 0xffff_0003),
    ("route-filter-translated-v6", 0xffff_0004),
    ("route-filter-v6", 0xffff_0005),
    ("llgr-stale", 0xffff_0006),
    ("no-llgr", 0xffff_0007),
    ("blackhole", 0xffff_029a),
    ("no-export", 0xffff_ff01),
    ("no-advertise", 0xffff_ff02),
    ("no-export-subconfed", 0xffff_ff03),
    ("no-peer", 0xffff_ff04),
];

fn communities(annotations: &BTreeMap<String, String>, warnings: &mut Warnings) -> Vec<u32> {
    let mut communities = Vec::new();
    for item in items(annotations, NODE_COMMUNITIES) {
        match community(item) {
            Some(community) if communities.contains(&community) => {}
            Some(community) => communities.push(community),
            None => warnings.odd(NODE_COMMUNITIES, format_args!("{item:?} is not a community; it is left out")),
        }
    }
    communities
}

fn community(text: &str) -> Option<u32> {
    let decimal = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u32>().ok())?;
    if let Some((_, value)) = WELL_KNOWN.iter().find(|(name, _)| *name == text) {
        return Some(*value);
    }
    match text.split_once(':') {
        Some((high, low)) => {
            let (high, low) = (u16::try_from(decimal(high)?).ok()?, u16::try_from(decimal(low)?).ok()?);
            Some(u32::from(high) << 16 | u32::from(low))
        }
        None => decimal(text),
    }
}

fn import_reject(annotations: &BTreeMap<String, String>, warnings: &mut Warnings) -> Vec<IpNet> {
    let mut ranges = Vec::new();
    for item in items(annotations, NODE_IMPORT_REJECT) {
        match item.parse::<IpNet>().map(|range| range.trunc()) {
            Ok(range) if ranges.contains(&range) => {}
            Ok(range) => ranges.push(range),
            Err(_) => warnings.odd(NODE_IMPORT_REJECT, format_args!("{item:?} is not a CIDR; it is left out")),
        }
    }
    ranges
}

fn local_addresses(annotations: &BTreeMap<String, String>, warnings: &mut Warnings) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for item in items(annotations, NODE_BGP_LOCAL_ADDRESSES) {
        match address(item) {
            Some(address) if addresses.contains(&address) => {}
            Some(address) => addresses.push(address),
            None => warnings
                .odd(NODE_BGP_LOCAL_ADDRESSES, format_args!("{item:?} is not an address of a host; it is left out")),
        }
    }
    addresses
}

/// The items of a list, without the blank ones.
fn items<'a>(annotations: &'a BTreeMap<String, String>, key: &str) -> impl Iterator<Item = &'a str> {
    let list = annotations.get(key).map(String::as_str).unwrap_or_default();
    list.split(',').map(str::trim).filter(|item| !item.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(annotations: &[(&str, &str)]) -> (Routing, Vec<String>) {
        let annotations = annotations.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        let mut warnings = Warnings::default();
        let routing = routing(&annotations, &mut warnings);
        (routing, warnings.take().into_iter().map(|warning| warning.to_string()).collect())
    }

    #[test]
    fn numbers_are_read_in_any_base_everywhere() {
        let (routing, warnings) =
            parsed(&[(NODE_ASN, "0xFDE9"), (NODE_PREPEND_AS, "0xFDE8"), (NODE_PREPEND_REPEAT, "3")]);
        assert_eq!(routing.asn, Some(65001));
        assert_eq!(routing.prepend, Some(Prepend { asn: 65000, times: 3 }));
        assert_eq!(warnings, [""; 0]);
    }

    #[test]
    fn a_cluster_is_a_number_or_an_address_and_a_server_is_no_client() {
        let of = |annotations: &[(&str, &str)]| parsed(annotations).0.reflection;
        assert_eq!(of(&[(NODE_REFLECTOR_SERVER, "42")]), Reflection::Server(Ipv4Addr::new(0, 0, 0, 42)));
        assert_eq!(of(&[(NODE_REFLECTOR_CLIENT, "10.0.0.1")]), Reflection::Client(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(of(&[(NODE_REFLECTOR_SERVER, "0")]), Reflection::Server(Ipv4Addr::UNSPECIFIED));
        let both = [(NODE_REFLECTOR_SERVER, "1"), (NODE_REFLECTOR_CLIENT, "1")];
        assert_eq!(of(&both), Reflection::Server(Ipv4Addr::new(0, 0, 0, 1)));
    }

    #[test]
    fn communities_are_numbers_pairs_and_names() {
        let (routing, warnings) = parsed(&[(NODE_COMMUNITIES, "no-export, 65001:7,7, ,65536:1,1:65536,+1,no-such")]);
        assert_eq!(routing.communities, [0xffff_ff01, 65001 << 16 | 7, 7]);
        assert_eq!(warnings.len(), 4, "{warnings:?}");
        let warning = "kube-router.io/node.bgp.communities: \"65536:1\" is not a community; it is left out";
        assert_eq!(warnings.first().map(String::as_str), Some(warning));
    }

    #[test]
    fn each_annotation_that_makes_no_sense_says_so_once_and_disables_itself_alone() {
        let good = [
            (NODE_ASN, "65001"),
            (NODE_REFLECTOR_SERVER, "1"),
            (NODE_PREPEND_AS, "65000"),
            (NODE_PREPEND_REPEAT, "2"),
            (NODE_COMMUNITIES, "65001:1"),
            (NODE_IMPORT_REJECT, "203.0.113.0/24, 2001:db8::/32"),
            (NODE_BGP_LOCAL_ADDRESSES, "192.0.2.1, 2001:db8::1"),
        ];
        let (all, warnings) = parsed(&good);
        assert_eq!(warnings, [""; 0]);
        assert_eq!((all.import_reject.len(), all.local_addresses.len()), (2, 2));
        type Disable = fn(&mut Routing);
        let cases: [(&str, &str, Disable); 8] = [
            (NODE_ASN, "none", |routing| routing.asn = None),
            (NODE_ASN, "0", |routing| routing.asn = None),
            (NODE_REFLECTOR_SERVER, "2001:db8::1", |routing| routing.reflection = Reflection::None),
            (NODE_PREPEND_AS, "AS65000", |routing| routing.prepend = None),
            (NODE_PREPEND_REPEAT, "256", |routing| routing.prepend = None),
            (NODE_COMMUNITIES, "x", |routing| routing.communities.clear()),
            (NODE_IMPORT_REJECT, "203.0.113.1", |routing| routing.import_reject.clear()),
            (NODE_BGP_LOCAL_ADDRESSES, "::", |routing| routing.local_addresses.clear()),
        ];
        for (key, value, disable) in cases {
            let with: Vec<_> = good.iter().map(|(k, v)| if *k == key { (key, value) } else { (*k, *v) }).collect();
            let (found, warnings) = parsed(&with);
            let mut expected = all.clone();
            disable(&mut expected);
            assert_eq!(found, expected, "{key}={value}");
            assert_eq!(warnings.len(), 1, "{warnings:?}");
            assert!(warnings[0].starts_with(key) && warnings[0].contains(value), "{warnings:?}");
        }
        for key in [NODE_PREPEND_AS, NODE_PREPEND_REPEAT] {
            let without: Vec<_> = good.iter().copied().filter(|(k, _)| *k != key).collect();
            let (found, warnings) = parsed(&without);
            assert_eq!((found.prepend, warnings.len()), (None, 1), "{warnings:?}");
        }
    }
}
