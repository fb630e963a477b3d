//! A Pod and a Namespace, as far as network policies speak of them.
//!
//! Kubernetes: `Pod.metadata.labels`, `spec.nodeName`, `spec.hostNetwork`, `spec.containers[].ports[]`,
//! `status.phase`, `status.podIPs[]`; `Namespace.metadata.labels`. A cluster has many pods, so what many of them have
//! in common (labels, ports, the node's name) is shared memory.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::ops::Deref;
use std::slice;

use compact_str::CompactString;

use super::selector::Labels;
use super::shared_value::Shared;
use crate::net::Protocol;

/// A Pod. One that has finished, or shares its node's network, or has no address yet is a value too, because its labels
/// and its place still explain why no policy applies to it: ask [`Pod::takes_part`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pod {
    /// `metadata.uid`, of pods of this node that run; the World leaves out those of others.
    pub uid: Option<PodUid>,
    pub labels: Labels,
    /// `status.podIPs` and `status.podIP`, without duplicates, in the API's order.
    pub addresses: PodAddresses,
    /// `spec.nodeName`; `None` until the pod is scheduled. Which pods are local is decided by it, never by addresses.
    pub node: Option<Shared<str>>,
    /// `spec.hostNetwork`: its addresses are the node's.
    pub host_network: bool,
    /// Phase Succeeded or Failed: its address may belong to another pod by now.
    pub finished: bool,
    /// Named ports of all containers that run while the pod runs, sorted.
    pub ports: Shared<[NamedPort]>,
}

/// A pod's UID in short: tells it from another pod of the same name, which has the same one by a chance of one in 2³².
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PodUid(NonZeroU32);

impl PodUid {
    /// Reads a UUID. `None` for any other text: a static pod has a hash for the kubelet, and its object in the API another UID.
    pub fn of(text: &str) -> Option<PodUid> {
        let is_uuid = text.len() == 36
            && text.bytes().enumerate().all(|(at, byte)| match at {
                8 | 13 | 18 | 23 => byte == b'-',
                _ => byte.is_ascii_hexdigit(),
            });
        let digits = text.bytes().filter_map(|byte| char::from(byte).to_digit(16));
        let folded = digits.enumerate().fold(0_u32, |sum, (at, digit)| sum ^ digit << (at % 8 * 4));
        is_uuid.then(|| PodUid(NonZeroU32::new(folded).unwrap_or(NonZeroU32::MIN)))
    }

    /// Returns the number that [`from_number`](PodUid::from_number) reads.
    pub fn number(self) -> u32 {
        self.0.get()
    }

    /// Reads the number of one; 0 is none.
    pub fn from_number(number: u32) -> Option<PodUid> {
        NonZeroU32::new(number).map(PodUid)
    }
}

/// Addresses of a pod, in order. The one or two that nearly every pod has stand in the value itself, without memory of their own.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct PodAddresses(Several);

#[derive(Clone, PartialEq, Eq, Debug)]
enum Several {
    One([IpAddr; 1]),
    Two([IpAddr; 2]),
    /// None, or more than two.
    Any(Box<[IpAddr]>),
}

/// One named entry of `containers[].ports[]` (or of an init container that keeps running).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NamedPort {
    pub name: CompactString,
    pub protocol: Protocol,
    pub number: u16,
}

/// A Namespace.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Namespace {
    pub labels: Labels,
    /// The annotation `net.beta.kubernetes.io/network-policy` asks for `DefaultDeny`: pods of this namespace accept
    /// only what a policy allows, although none may select them.
    pub isolated: bool,
}

impl Deref for PodAddresses {
    type Target = [IpAddr];

    fn deref(&self) -> &[IpAddr] {
        match &self.0 {
            Several::One(address) => address,
            Several::Two(addresses) => addresses,
            Several::Any(addresses) => addresses,
        }
    }
}

impl Default for Several {
    fn default() -> Self {
        Several::Any(Box::default())
    }
}

impl From<Vec<IpAddr>> for PodAddresses {
    fn from(addresses: Vec<IpAddr>) -> PodAddresses {
        PodAddresses(match *addresses {
            [only] => Several::One([only]),
            [first, second] => Several::Two([first, second]),
            _ => Several::Any(addresses.into()),
        })
    }
}

impl FromIterator<IpAddr> for PodAddresses {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> PodAddresses {
        PodAddresses::from(Vec::from_iter(addresses))
    }
}

impl<const N: usize> From<[IpAddr; N]> for PodAddresses {
    fn from(addresses: [IpAddr; N]) -> PodAddresses {
        addresses.into_iter().collect()
    }
}

impl<'a> IntoIterator for &'a PodAddresses {
    type Item = &'a IpAddr;
    type IntoIter = slice::Iter<'a, IpAddr>;

    fn into_iter(self) -> slice::Iter<'a, IpAddr> {
        self.iter()
    }
}

impl Pod {
    /// Returns whether policies concern this pod at all: it runs, has addresses, and they are its own.
    pub fn takes_part(&self) -> bool {
        !self.finished && !self.host_network && !self.addresses.is_empty()
    }

    /// The numbers that a port name stands for in this pod; usually one, none where the name is unknown.
    pub fn port_numbers<'a>(&'a self, name: &'a str, protocol: Protocol) -> impl Iterator<Item = u16> + 'a {
        let named = move |port: &&NamedPort| port.name == name && port.protocol == protocol;
        self.ports.iter().filter(named).map(|port| port.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_is_made_anew_has_another_uid_and_a_static_one_has_none() {
        let uids = ["1f0a3a52-55c4-4d3e-9b0a-0242ac120002", "1f0a3a52-55c4-4d3e-9b0a-0242ac120003"].map(PodUid::of);
        assert!(uids[0].is_some() && uids[1].is_some() && uids[0] != uids[1]);
        for uid in uids.into_iter().chain([PodUid::of("00000000-0000-0000-0000-000000000000")]) {
            assert_eq!(uid.and_then(|uid| PodUid::from_number(uid.number())), uid);
            assert!(uid.is_some());
        }
        for text in ["", "u", "0123456789abcdef0123456789abcdef", "1f0a3a52-55c4-4d3e-9b0a-0242ac12000g"] {
            assert_eq!(PodUid::of(text), None, "{text}");
        }
    }

    #[test]
    fn addresses_keep_their_order_whatever_their_number() {
        let all: Vec<IpAddr> =
            ["10.244.1.7", "fd00:10:244:1::7", "10.244.1.8"].map(|text| text.parse().unwrap()).into();
        for count in 0..=all.len() {
            let some = &all[..count];
            assert_eq!(&*PodAddresses::from(some.to_vec()), some);
            assert!(PodAddresses::from_iter(some.iter().copied()).into_iter().eq(some));
        }
    }
}
