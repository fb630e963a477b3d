//! Capabilities: support for extensions of RFC 4271, advertised in OPEN.
//!
//! RFC 5492. Supported: multiprotocol (RFC 4760), route refresh (RFC 2918) and enhanced route refresh (RFC 7313),
//! four-octet AS numbers (RFC 6793), graceful restart (RFC 4724, with the N bit of RFC 8538) and the long-lived one (RFC 9494),
//! IPv4 NLRI with IPv6 next hops (RFC 8950), extended messages (RFC 8654). Unrecognized capabilities are kept unparsed, for display.

use super::address_family::{family_of, numbers_of};
use super::reader::Reader;
use crate::net::{Family, PerFamily};

const MULTIPROTOCOL: u8 = 1;
const ROUTE_REFRESH: u8 = 2;
const EXTENDED_NEXT_HOP: u8 = 5;
const EXTENDED_MESSAGE: u8 = 6;
const GRACEFUL_RESTART: u8 = 64;
const FOUR_OCTET_AS: u8 = 65;
const ENHANCED_REFRESH: u8 = 70;
const LONG_LIVED_RESTART: u8 = 71;

/// Graceful restart flags: the R bit (the sender has restarted) and the N bit (NOTIFICATIONs are covered, too).
const RESTARTING: u16 = 0x8000;
const NOTIFICATIONS: u16 = 0x4000;
const TIME: u16 = 0x0fff;
/// F bit of an address family in graceful restart: forwarding state was preserved.
const FORWARDING: u8 = 0x80;
const IPV4: u16 = 1;
const IPV6: u16 = 2;
const UNICAST: u16 = 1;

/// Capabilities of one speaker.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Capabilities {
    /// Advertised address families; a speaker that advertises none speaks IPv4 (RFC 4760 8).
    pub families: PerFamily<bool>,
    /// Advertised some address family, though perhaps none of ours.
    pub multiprotocol: bool,
    pub refresh: bool,
    pub enhanced_refresh: bool,
    /// Four-octet AS number.
    pub asn: Option<u32>,
    pub restart: Option<GracefulRestart>,
    /// Meaningless without `restart` (RFC 9494 3).
    pub long_lived: Option<LongLivedRestart>,
    /// IPv4 NLRI may have IPv6 next hops.
    pub extended_next_hop: bool,
    /// Messages of up to 65,535 bytes.
    pub extended_message: bool,
    /// Unrecognized capabilities: code and value.
    pub unknown: Vec<(u8, Box<[u8]>)>,
}

/// Graceful restart capability.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct GracefulRestart {
    /// R bit: the sender has restarted.
    pub restarting: bool,
    /// N bit: a NOTIFICATION or the expiry of the hold timer counts as a restart, too (RFC 8538).
    pub notifications: bool,
    /// Restart time, in seconds; at most 4,095.
    pub seconds: u16,
    /// Address families whose routes are retained, and whether forwarding state was preserved (the F bit).
    pub families: PerFamily<Option<bool>>,
}

/// Long-lived graceful restart capability.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct LongLivedRestart {
    /// Address families whose routes are retained after the restart time as well.
    pub families: PerFamily<Option<LongLivedFamily>>,
}

/// An address family in long-lived graceful restart.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct LongLivedFamily {
    /// Forwarding state was preserved (the F bit).
    pub forwarding: bool,
    /// Long-lived stale time, in seconds; at most [`LongLivedFamily::LONGEST`].
    pub seconds: u32,
}

impl Capabilities {
    /// Address families in use.
    pub fn spoken(&self) -> PerFamily<bool> {
        if self.multiprotocol { self.families } else { PerFamily { v4: true, v6: false } }
    }

    /// Parses the capabilities of one optional parameter; `None` when one of them is malformed.
    pub(super) fn read(&mut self, mut reader: Reader) -> Option<()> {
        while !reader.is_empty() {
            let (number, length) = (reader.u8()?, reader.u8()?);
            let value = reader.part(usize::from(length))?;
            self.read_one(number, value)?;
        }
        Some(())
    }

    fn read_one(&mut self, number: u8, mut value: Reader) -> Option<()> {
        match number {
            MULTIPROTOCOL => {
                let (afi, _, safi) = (value.u16()?, value.u8()?, value.u8()?);
                self.multiprotocol = true;
                if let Some(family) = family_of(afi, safi) {
                    *self.families.of_mut(family) = true;
                }
            }
            ROUTE_REFRESH => self.refresh = true,
            EXTENDED_NEXT_HOP => {
                while !value.is_empty() {
                    let all = (value.u16()?, value.u16()?, value.u16()?);
                    self.extended_next_hop |= all == (IPV4, UNICAST, IPV6);
                }
            }
            EXTENDED_MESSAGE => self.extended_message = true,
            // RFC 4724 3: the last of several instances applies.
            GRACEFUL_RESTART => self.restart = Some(GracefulRestart::decode(&mut value)?),
            LONG_LIVED_RESTART => self.long_lived = Some(LongLivedRestart::decode(&mut value)?),
            FOUR_OCTET_AS => self.asn = Some(value.u32()?),
            ENHANCED_REFRESH => self.enhanced_refresh = true,
            _ => {
                self.unknown.push((number, value.bytes(value.len())?.into()));
            }
        }
        value.is_empty().then_some(())
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        for (family, _) in self.families.iter().filter(|(_, spoken)| **spoken) {
            let (afi, safi) = numbers_of(family);
            push(out, MULTIPROTOCOL, &[0, afi as u8, 0, safi]);
        }
        for (number, has) in [
            (ROUTE_REFRESH, self.refresh),
            (EXTENDED_MESSAGE, self.extended_message),
            (ENHANCED_REFRESH, self.enhanced_refresh),
        ] {
            if has {
                push(out, number, &[]);
            }
        }
        if let Some(asn) = self.asn {
            push(out, FOUR_OCTET_AS, &asn.to_be_bytes());
        }
        if let Some(restart) = &self.restart {
            push(out, GRACEFUL_RESTART, &restart.encoded());
        }
        if let Some(long_lived) = &self.long_lived {
            push(out, LONG_LIVED_RESTART, &long_lived.encoded());
        }
        if self.extended_next_hop {
            push(out, EXTENDED_NEXT_HOP, &[0, 1, 0, 1, 0, 2]);
        }
        for (number, value) in &self.unknown {
            push(out, *number, value);
        }
    }
}

fn push(out: &mut Vec<u8>, number: u8, value: &[u8]) {
    out.extend_from_slice(&[number, value.len() as u8]);
    out.extend_from_slice(value);
}

impl GracefulRestart {
    fn decode(value: &mut Reader) -> Option<GracefulRestart> {
        let head = value.u16()?;
        let mut families = PerFamily::default();
        while !value.is_empty() {
            let (afi, safi, flags) = (value.u16()?, value.u8()?, value.u8()?);
            if let Some(family) = family_of(afi, safi) {
                *families.of_mut(family) = Some(flags & FORWARDING != 0);
            }
        }
        Some(GracefulRestart {
            restarting: head & RESTARTING != 0,
            notifications: head & NOTIFICATIONS != 0,
            seconds: head & TIME,
            families,
        })
    }

    fn encoded(&self) -> Vec<u8> {
        let bit = |set: bool, bit: u16| if set { bit } else { 0 };
        let head = bit(self.restarting, RESTARTING) | bit(self.notifications, NOTIFICATIONS) | self.seconds.min(TIME);
        let mut out = head.to_be_bytes().to_vec();
        for (family, forwarding) in Family::BOTH.map(|family| (family, *self.families.of(family))) {
            let Some(forwarding) = forwarding else { continue };
            let (afi, safi) = numbers_of(family);
            out.extend_from_slice(&afi.to_be_bytes());
            out.extend_from_slice(&[safi, if forwarding { FORWARDING } else { 0 }]);
        }
        out
    }
}

impl LongLivedFamily {
    /// Limit of the 24 bits on the wire, some 194 days.
    pub const LONGEST: u32 = (1 << 24) - 1;
}

impl LongLivedRestart {
    fn decode(value: &mut Reader) -> Option<LongLivedRestart> {
        let mut families = PerFamily::default();
        while !value.is_empty() {
            let (afi, safi, flags) = (value.u16()?, value.u8()?, value.u8()?);
            let (high, low) = (value.u8()?, value.u16()?);
            if let Some(family) = family_of(afi, safi) {
                let seconds = u32::from(high) << 16 | u32::from(low);
                *families.of_mut(family) = Some(LongLivedFamily { forwarding: flags & FORWARDING != 0, seconds });
            }
        }
        Some(LongLivedRestart { families })
    }

    fn encoded(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (family, long_lived) in Family::BOTH.map(|family| (family, *self.families.of(family))) {
            let Some(LongLivedFamily { forwarding, seconds }) = long_lived else { continue };
            let (afi, safi) = numbers_of(family);
            out.extend_from_slice(&afi.to_be_bytes());
            out.extend_from_slice(&[safi, if forwarding { FORWARDING } else { 0 }]);
            out.extend(seconds.min(LongLivedFamily::LONGEST).to_be_bytes().into_iter().skip(1));
        }
        out
    }
}
