//! Router Solicitations and Router Advertisements, as bytes.
//!
//! RFC 4861 4.1 and 4.2, and the checks of 6.1.1 and 6.1.2. The kernel has checked the checksum, and writes it.

use std::net::{IpAddr, Ipv6Addr};

use crate::net::LinkLocal;

/// Types of ICMPv6.
pub const SOLICITATION: u8 = 133;
pub const ADVERTISEMENT: u8 = 134;

/// Length of a solicitation and of an advertisement without options.
const SOLICITATION_LENGTH: usize = 8;
const ADVERTISEMENT_LENGTH: usize = 16;
/// Hop limit of a packet that no router has passed on.
const UNTOUCHED: u8 = 255;

/// A packet to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Packet {
    /// To all routers: `ff02::2`.
    Solicitation,
    /// To all nodes: `ff02::1`.
    Advertisement,
}

/// A valid packet of somebody else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Heard {
    Solicitation,
    /// With the link-local address of its router.
    Advertisement(Ipv6Addr),
}

impl Packet {
    pub fn encode(self) -> Vec<u8> {
        match self {
            Packet::Solicitation => {
                let mut bytes = vec![0; SOLICITATION_LENGTH];
                bytes.splice(..1, [SOLICITATION]);
                bytes
            }
            // No limit of hops, no flags, a router lifetime of 0, no times, no options.
            Packet::Advertisement => {
                let mut bytes = vec![0; ADVERTISEMENT_LENGTH];
                bytes.splice(..1, [ADVERTISEMENT]);
                bytes
            }
        }
    }

    /// The multicast group it goes to.
    pub fn destination(self) -> Ipv6Addr {
        let last = match self {
            Packet::Solicitation => 2,
            Packet::Advertisement => 1,
        };
        Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, last)
    }
}

/// Reads a packet as it was received, at most its first bytes; `None` of one that has to be ignored. `hops`: the hop limit with which it came.
pub fn read(from: IpAddr, hops: Option<u8>, bytes: &[u8]) -> Option<Heard> {
    let [kind, 0, ..] = bytes else { return None };
    if hops != Some(UNTOUCHED) {
        return None;
    }
    match *kind {
        SOLICITATION => has_sound_options(bytes.get(SOLICITATION_LENGTH..)?).then_some(Heard::Solicitation),
        ADVERTISEMENT => {
            let router = LinkLocal::within(from)?.address();
            has_sound_options(bytes.get(ADVERTISEMENT_LENGTH..)?).then_some(Heard::Advertisement(router))
        }
        _ => None,
    }
}

/// Returns whether every option that is there has a length, which is in units of eight bytes. The last one may be cut off.
fn has_sound_options(mut options: &[u8]) -> bool {
    while let [_, length, ..] = options {
        if *length == 0 {
            return false;
        }
        options = options.get(usize::from(*length) * 8..).unwrap_or_default();
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn router() -> IpAddr {
        LinkLocal::new("fe80::2".parse().unwrap(), 7).unwrap().combined()
    }

    #[test]
    fn what_we_send_is_understood_and_makes_nobody_a_default_router() {
        let advertisement = Packet::Advertisement.encode();
        assert_eq!(advertisement, [134, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let heard = Heard::Advertisement("fe80::2".parse().unwrap());
        assert_eq!(read(router(), Some(255), &advertisement), Some(heard));
        assert_eq!(read(router(), Some(255), &Packet::Solicitation.encode()), Some(Heard::Solicitation));
        assert_eq!(Packet::Solicitation.destination().to_string(), "ff02::2");
    }

    #[test]
    fn who_has_no_address_yet_may_ask_and_may_not_advertise() {
        let nobody = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        assert_eq!(read(nobody, Some(255), &Packet::Solicitation.encode()), Some(Heard::Solicitation));
        for from in ["::", "2001:db8::1", "fe80::2", "192.0.2.1"] {
            assert_eq!(read(from.parse().unwrap(), Some(255), &Packet::Advertisement.encode()), None, "{from}");
        }
    }

    #[test]
    fn what_came_from_afar_or_is_malformed_is_ignored() {
        let sound = Packet::Advertisement.encode();
        let with = |at: usize, byte: u8| {
            let mut bytes = sound.clone();
            bytes[at] = byte;
            bytes
        };
        assert_eq!(read(router(), Some(254), &sound), None, "it has passed a router");
        assert_eq!(read(router(), None, &sound), None);
        assert_eq!(read(router(), Some(255), &with(1, 1)), None, "a code");
        assert_eq!(read(router(), Some(255), &with(0, 135)), None, "another type");
        assert_eq!(read(router(), Some(255), &sound[..15]), None, "too short");
        assert_eq!(read(router(), Some(255), &[]), None);
        let option = |length: u8| [sound.as_slice(), &[1, length, 0, 0, 0, 0, 0, 0]].concat();
        assert_eq!(read(router(), Some(255), &option(0)), None, "an option without a length");
        assert!(read(router(), Some(255), &option(1)).is_some() && read(router(), Some(255), &option(9)).is_some());
    }
}
