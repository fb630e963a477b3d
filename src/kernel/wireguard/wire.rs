//! The generic netlink family `wireguard`: messages to and from it.
//!
//! Kernel: include/uapi/linux/wireguard.h. Numbers are in native byte order, also the port; an endpoint is a `struct sockaddr_in` or
//! `sockaddr_in6`. The answer to a question about a device comes in pieces: what does not fit goes on in the next message, where a peer whose
//! allowed IPs were cut off is named again.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use crate::kernel::link::LinkName;
use crate::kernel::netlink::{Answer, Attributes, Messages};
use crate::net::{Family, PublicKey, Secret};

pub const FAMILY: &str = "wireguard";
const VERSION: u8 = 1;
const GET_DEVICE: u8 = 0;
const SET_DEVICE: u8 = 1;
/// Length of `struct genlmsghdr`.
const HEADER: usize = 4;

/// `WGDEVICE_A_*`.
mod device {
    pub const NAME: u16 = 2;
    pub const PRIVATE_KEY: u16 = 3;
    pub const PUBLIC_KEY: u16 = 4;
    pub const PORT: u16 = 6;
    pub const MARK: u16 = 7;
    pub const PEERS: u16 = 8;
}

/// `WGPEER_A_*`.
mod peer {
    pub const PUBLIC_KEY: u16 = 1;
    pub const PRESHARED_KEY: u16 = 2;
    pub const FLAGS: u16 = 3;
    pub const ENDPOINT: u16 = 4;
    pub const KEEPALIVE: u16 = 5;
    pub const LAST_HANDSHAKE: u16 = 6;
    pub const SENT: u16 = 8;
    pub const ALLOWED: u16 = 9;
}

/// `WGALLOWEDIP_A_*`.
mod allowed {
    pub const FAMILY: u16 = 1;
    pub const ADDRESS: u16 = 2;
    pub const LENGTH: u16 = 3;
}

/// `WGPEER_F_*`.
const REMOVE: u32 = 1;
const REPLACE_ALLOWED: u32 = 2;
/// An element of a list: the kernel does not look at its kind.
const ELEMENT: u16 = 0;
/// Allowed IPs in one message: with the largest of 36 bytes a message stays below the 64 KiB of an attribute.
const ALLOWED_AT_ONCE: usize = 1024;

/// A piece of what the kernel says of a device.
pub struct Piece {
    /// Of the first piece alone.
    pub head: Option<Head>,
    pub peers: Vec<FoundPeer>,
}

/// A device without its peers.
pub struct Head {
    pub private_key: [u8; 32],
    /// `None` of a device without a private key.
    pub public_key: Option<PublicKey>,
    pub port: u16,
    pub mark: u32,
}

/// A peer as the kernel has it, or a part of one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FoundPeer {
    pub key: PublicKey,
    pub endpoint: Option<SocketAddr>,
    pub allowed: Vec<IpNet>,
    pub keepalive: u16,
    pub is_plain: bool,
    /// When a packet of it was last authenticated by a handshake, since 1970; zero for never.
    pub last_handshake: Duration,
    /// Bytes that were sent to it, handshakes among them.
    pub sent: u64,
}

/// A peer as it is written.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub key: PublicKey,
    pub endpoint: Option<SocketAddr>,
    pub keepalive: u16,
    pub allowed: &'a [IpNet],
    /// It loses what else it may use. The kernel takes everything first and gives it back then, between which packets meet nobody.
    pub replaces: bool,
}

/// The question for everything of a device, which is asked as a dump.
pub fn get(name: &LinkName) -> Messages {
    let mut message = Messages::new();
    message.begin_generic(GET_DEVICE, VERSION, 0).text(device::NAME, &name.0);
    message
}

// wg set NAME listen-port PORT private-key FILE fwmark 0
pub fn configure(name: &LinkName, key: &Secret, port: u16) -> Messages {
    let mut message = Messages::new();
    message.begin_generic(SET_DEVICE, VERSION, 0).text(device::NAME, &name.0);
    message.attribute(device::PRIVATE_KEY, key.key()).u16(device::PORT, port).u32(device::MARK, 0);
    message
}

/// Appends the messages that make a peer what it shall be; returns how many there are.
// wg set NAME peer KEY endpoint ENDPOINT persistent-keepalive SECONDS allowed-ips LIST
pub fn set_peer(messages: &mut Messages, name: &LinkName, wanted: Wanted<'_>) -> usize {
    let (first, rest) = wanted.allowed.split_at(wanted.allowed.len().min(ALLOWED_AT_ONCE));
    begin_peer(messages, name, wanted.key);
    if wanted.replaces {
        messages.u32(peer::FLAGS, REPLACE_ALLOWED);
    }
    messages.attribute(peer::PRESHARED_KEY, &[0; 32]).u16(peer::KEEPALIVE, wanted.keepalive);
    if let Some(endpoint) = wanted.endpoint {
        messages.attribute(peer::ENDPOINT, &sockaddr(endpoint));
    }
    end_peer(messages, first);
    let mut count = 1;
    for more in rest.chunks(ALLOWED_AT_ONCE) {
        begin_peer(messages, name, wanted.key);
        end_peer(messages, more);
        count += 1;
    }
    count
}

// wg set NAME peer KEY remove
pub fn remove_peer(messages: &mut Messages, name: &LinkName, key: PublicKey) {
    begin_peer(messages, name, key);
    messages.u32(peer::FLAGS, REMOVE);
    messages.end().end();
}

fn begin_peer(messages: &mut Messages, name: &LinkName, key: PublicKey) {
    messages.begin_generic(SET_DEVICE, VERSION, 0).text(device::NAME, &name.0);
    messages.nest(device::PEERS).nest(ELEMENT).attribute(peer::PUBLIC_KEY, key.bytes());
}

fn end_peer(messages: &mut Messages, ranges: &[IpNet]) {
    messages.nest(peer::ALLOWED);
    for range in ranges {
        messages.nest(ELEMENT).u16(allowed::FAMILY, Family::from(*range).number().into());
        messages.address(allowed::ADDRESS, range.addr()).u8(allowed::LENGTH, range.prefix_len()).end();
    }
    messages.end().end().end();
}

/// `struct sockaddr_in` or `sockaddr_in6`.
fn sockaddr(endpoint: SocketAddr) -> Vec<u8> {
    let mut bytes = u16::from(Family::from(endpoint.ip()).number()).to_ne_bytes().to_vec();
    bytes.extend(endpoint.port().to_be_bytes());
    match endpoint.ip() {
        IpAddr::V4(address) => {
            bytes.extend(address.octets());
            bytes.extend([0; 8]);
        }
        IpAddr::V6(address) => {
            bytes.extend([0; 4]);
            bytes.extend(address.octets());
            bytes.extend([0; 4]);
        }
    }
    bytes
}

/// The piece of a device that an answer holds; `None` for an answer that is none.
pub fn piece(answer: &Answer<'_>) -> Option<Piece> {
    answer.header::<HEADER>()?;
    let attributes = answer.attributes(HEADER);
    let peers = attributes.get(device::PEERS).into_iter().flat_map(|list| list.attributes());
    Some(Piece { head: head(&attributes), peers: peers.filter_map(|one| found(&one.attributes())).collect() })
}

fn head(attributes: &Attributes<'_>) -> Option<Head> {
    let port = attributes.get(device::PORT)?.u16()?;
    let key = |kind| attributes.get(kind).map(|key| key.value);
    Some(Head {
        private_key: key(device::PRIVATE_KEY).and_then(|key| key.try_into().ok()).unwrap_or_default(),
        public_key: key(device::PUBLIC_KEY).and_then(PublicKey::new),
        port,
        mark: attributes.get(device::MARK).and_then(|mark| mark.u32()).unwrap_or_default(),
    })
}

/// A peer whose key is no key of ours to name is left out.
fn found(attributes: &Attributes<'_>) -> Option<FoundPeer> {
    let key = PublicKey::new(attributes.get(peer::PUBLIC_KEY)?.value)?;
    let allowed = attributes.get(peer::ALLOWED).into_iter().flat_map(|list| list.attributes());
    let is_zero = |kind| attributes.get(kind).is_none_or(|value| value.value.iter().all(|byte| *byte == 0));
    Some(FoundPeer {
        key,
        endpoint: attributes.get(peer::ENDPOINT).and_then(|endpoint| socket_address(endpoint.value)),
        allowed: allowed.filter_map(|one| range(&one.attributes())).collect(),
        keepalive: attributes.get(peer::KEEPALIVE).and_then(|seconds| seconds.u16()).unwrap_or_default(),
        is_plain: is_zero(peer::PRESHARED_KEY),
        last_handshake: attributes.get(peer::LAST_HANDSHAKE).map(|time| since_1970(time.value)).unwrap_or_default(),
        sent: attributes.get(peer::SENT).and_then(|sent| sent.u64()).unwrap_or_default(),
    })
}

fn range(attributes: &Attributes<'_>) -> Option<IpNet> {
    let address = attributes.get(allowed::ADDRESS)?.address()?;
    IpNet::new(address, attributes.get(allowed::LENGTH)?.u8()?).ok().map(|range| range.trunc())
}

fn socket_address(bytes: &[u8]) -> Option<SocketAddr> {
    let [f0, f1, p0, p1, rest @ ..] = bytes else { return None };
    let family = Family::from_number(u8::try_from(u16::from_ne_bytes([*f0, *f1])).ok()?)?;
    let port = u16::from_be_bytes([*p0, *p1]);
    let address = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from(*rest.first_chunk::<4>()?)),
        Family::V6 => IpAddr::V6(Ipv6Addr::from(*rest.get(4..)?.first_chunk::<16>()?)),
    };
    Some(SocketAddr::new(address, port))
}

/// `struct __kernel_timespec`: seconds and nanoseconds, 64 bits each.
fn since_1970(bytes: &[u8]) -> Duration {
    let seconds = bytes.first_chunk::<8>().map(|seconds| i64::from_ne_bytes(*seconds)).unwrap_or_default();
    Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netlink::answers;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = piece(&Answer { kind: 0x20, flags: 0, sequence: 0, port: 0, payload: &bytes });
            let _ = socket_address(&bytes);
        }
    }

    fn key(byte: u8) -> PublicKey {
        PublicKey::new(&[byte; 32]).expect("a key")
    }

    fn ranges(text: &str) -> Vec<IpNet> {
        text.split_whitespace().map(|range| range.parse().expect("a prefix")).collect()
    }

    fn name() -> LinkName {
        LinkName("wg0".into())
    }

    /// The peers in messages that were written; what is not told about one is not known of it.
    fn read(messages: &Messages) -> Vec<FoundPeer> {
        let bytes = messages.bytes().to_vec();
        answers(&bytes).filter_map(|answer| piece(&answer)).flat_map(|piece| piece.peers).collect()
    }

    /// Written by hand from include/uapi/linux/wireguard.h, in the byte order of this machine's numbers.
    #[test]
    fn a_peer_is_written_as_the_kernel_wants_it() {
        let mut messages = Messages::new();
        let (endpoint, allowed) = (Some("192.0.2.2:51820".parse().expect("an endpoint")), ranges("10.244.2.0/24"));
        set_peer(
            &mut messages,
            &name(),
            Wanted { key: key(7), endpoint, keepalive: 5, allowed: &allowed, replaces: true },
        );
        let attribute = |kind: u16, value: &[u8]| {
            let length = u16::try_from(value.len() + 4).expect("it is short");
            let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let range = [attribute(1, &2_u16.to_ne_bytes()), attribute(2, &[10, 244, 2, 0]), attribute(3, &[24])].concat();
        let mut address = 2_u16.to_ne_bytes().to_vec();
        address.extend([0xca, 0x6c, 192, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0]);
        let peer = [
            attribute(1, &[7; 32]),
            attribute(3, &2_u32.to_ne_bytes()),
            attribute(2, &[0; 32]),
            attribute(5, &5_u16.to_ne_bytes()),
            attribute(4, &address),
            attribute(0x8009, &attribute(0x8000, &range)),
        ]
        .concat();
        let body = [attribute(2, b"wg0\0"), attribute(0x8008, &attribute(0x8000, &peer))].concat();
        let written = messages.bytes();
        assert_eq!(written[16..20], [1, 1, 0, 0], "SET_DEVICE, version 1");
        assert_eq!(written[20..], body);
    }

    #[test]
    fn a_device_is_configured_with_its_key_port_and_no_mark() {
        let secret = Secret::private_key([8; 32]);
        let messages = configure(&name(), &secret, 51820);
        let bytes = messages.bytes().to_vec();
        let heads: Vec<Head> = answers(&bytes).filter_map(|answer| piece(&answer)?.head).collect();
        let [head] = heads.as_slice() else { panic!("one device") };
        assert_eq!((&head.private_key[..], head.port, head.mark), (secret.key(), 51820, 0));
        assert_eq!(head.public_key, None, "the kernel makes it");
    }

    #[test]
    fn peers_read_back_as_they_were_written_in_both_families() {
        for endpoint in ["192.0.2.2:51820", "[2001:db8::2]:51821"] {
            let endpoint = Some(endpoint.parse().expect("an endpoint"));
            let allowed = ranges("10.244.2.0/24 192.0.2.2/32 2001:db8::2/128 fd00:10:244:2::/64");
            let mut messages = Messages::new();
            let wanted = Wanted { key: key(1), endpoint, keepalive: 25, allowed: &allowed, replaces: true };
            assert_eq!(set_peer(&mut messages, &name(), wanted), 1);
            let last_handshake = Duration::ZERO;
            assert_eq!(
                read(&messages),
                [FoundPeer { key: key(1), endpoint, allowed, keepalive: 25, is_plain: true, last_handshake, sent: 0 }]
            );
        }
    }

    #[test]
    fn many_allowed_ips_are_split_and_only_the_first_message_replaces_them() {
        let range = |number: u16| IpNet::from(IpAddr::from([10, (number >> 8) as u8, number as u8, 0])).trunc();
        let allowed: Vec<IpNet> = (0..2500).map(range).collect();
        let mut messages = Messages::new();
        let wanted = Wanted { key: key(1), endpoint: None, keepalive: 0, allowed: &allowed, replaces: true };
        assert_eq!(set_peer(&mut messages, &name(), wanted), 3);
        assert_eq!(messages.len(), 3);
        let parts = read(&messages);
        assert_eq!(parts.iter().flat_map(|part| part.allowed.clone()).collect::<Vec<_>>(), allowed);
        let flags = |index| messages.range(index, index + 1).windows(8).any(|bytes| bytes == [8, 0, 3, 0, 2, 0, 0, 0]);
        if cfg!(target_endian = "little") {
            assert_eq!([flags(0), flags(1), flags(2)], [true, false, false]);
        }
        let mut messages = Messages::new();
        set_peer(&mut messages, &name(), Wanted { replaces: false, allowed: &[], ..wanted });
        assert!(
            !messages.range(0, 1).windows(8).any(|bytes| bytes == [8, 0, 3, 0, 2, 0, 0, 0]),
            "it keeps what it has"
        );
    }
}
