//! OPEN: identity and capabilities of a speaker.
//!
//! RFC 4271 4.2 and 6.2. Optional parameters longer than 255 bytes are RFC 9072; AS 0 is rejected (RFC 7607), and the
//! four-octet AS number is used where there is one (RFC 6793). Checks that depend on local configuration (the expected
//! AS number, our own identifier) are made by the session.

use std::net::Ipv4Addr;

use super::as_path::AS_TRANS;
use super::capability::Capabilities;
use super::notification::{Notification, Reason};
use super::reader::Reader;

const VERSION: u8 = 4;
const CAPABILITIES: u8 = 2;
/// Marks the extended form, in place of the length and of a parameter type.
const EXTENDED: u8 = 255;
/// Minimum hold time other than zero, in seconds.
const SHORTEST_HOLD: u16 = 3;

/// An OPEN.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Open {
    /// AS number of the sender; never 0.
    pub asn: u32,
    /// Hold time in seconds; 0 for a session without KEEPALIVEs.
    pub hold_time: u16,
    /// BGP identifier; never 0.0.0.0.
    pub identifier: Ipv4Addr,
    pub capabilities: Capabilities,
}

impl Open {
    pub(super) fn decode(body: &[u8]) -> Result<Open, Notification> {
        let mut reader = Reader::new(body);
        let unspecific = || Notification::new(Reason::OPEN_UNSPECIFIC);
        let version = reader.u8().ok_or_else(unspecific)?;
        if version != VERSION {
            // The data is the largest supported version.
            let wanted = u16::from(VERSION).to_be_bytes();
            return Err(Notification::with(Reason::UNSUPPORTED_VERSION, wanted));
        }
        let (Some(short), Some(hold_time), Some(identifier)) = (reader.u16(), reader.u16(), reader.ipv4()) else {
            return Err(unspecific());
        };
        let capabilities = parameters(reader)?;
        let asn = capabilities.asn.unwrap_or(u32::from(short));
        // RFC 7607 2; RFC 6793 9: AS_TRANS (23456) is a placeholder and nobody's own number.
        if asn == 0 || short == 0 || asn == AS_TRANS {
            return Err(Notification::new(Reason::BAD_PEER_AS));
        }
        if identifier.is_unspecified() {
            return Err(Notification::new(Reason::BAD_IDENTIFIER));
        }
        if (1..SHORTEST_HOLD).contains(&hold_time) {
            return Err(Notification::new(Reason::UNACCEPTABLE_HOLD_TIME));
        }
        Ok(Open { asn, hold_time, identifier, capabilities })
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let short = u16::try_from(self.asn).unwrap_or(AS_TRANS as u16);
        out.push(VERSION);
        out.extend_from_slice(&short.to_be_bytes());
        out.extend_from_slice(&self.hold_time.to_be_bytes());
        out.extend_from_slice(&self.identifier.octets());
        let mut capabilities = Vec::new();
        self.capabilities.encode(&mut capabilities);
        // One parameter for all capabilities, as most speakers send them; the extended form only where it is required,
        // because old speakers do not support it.
        match (u8::try_from(capabilities.len()), u8::try_from(capabilities.len() + 2)) {
            (Ok(0), _) => out.push(0),
            (Ok(length), Ok(all)) if all < EXTENDED => out.extend_from_slice(&[all, CAPABILITIES, length]),
            _ => {
                out.extend_from_slice(&[EXTENDED, EXTENDED]);
                out.extend_from_slice(&(capabilities.len() as u16 + 3).to_be_bytes());
                out.push(CAPABILITIES);
                out.extend_from_slice(&(capabilities.len() as u16).to_be_bytes());
            }
        }
        out.extend_from_slice(&capabilities);
    }
}

/// Parses the optional parameters, in either form.
fn parameters(mut reader: Reader) -> Result<Capabilities, Notification> {
    let unspecific = || Notification::new(Reason::OPEN_UNSPECIFIC);
    let length = reader.u8().ok_or_else(unspecific)?;
    // RFC 9072 2: the parameter type decides; the length before it only has to be nonzero.
    let extended = length != 0 && reader.rest().first() == Some(&EXTENDED);
    let length = if extended {
        reader.u8();
        reader.u16().ok_or_else(unspecific)?
    } else {
        u16::from(length)
    };
    if reader.len() != usize::from(length) {
        return Err(unspecific());
    }
    let mut capabilities = Capabilities::default();
    while !reader.is_empty() {
        let kind = reader.u8().ok_or_else(unspecific)?;
        let length = if extended { reader.u16() } else { reader.u8().map(u16::from) };
        let value = length.and_then(|length| reader.part(usize::from(length))).ok_or_else(unspecific)?;
        if kind != CAPABILITIES {
            return Err(Notification::new(Reason::UNSUPPORTED_PARAMETER));
        }
        capabilities.read(value).ok_or_else(unspecific)?;
    }
    Ok(capabilities)
}
