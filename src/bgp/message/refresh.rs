//! ROUTE-REFRESH: a request for the Adj-RIB-Out of the peer.
//!
//! RFC 2918; the demarcations of the response are RFC 7313 (enhanced route refresh): between *BoRR* and *EoRR* the peer
//! sends its complete Adj-RIB-Out, and routes not sent again by then are removed.

use super::address_family::{family_of, numbers_of};
use super::header::HEADER;
use super::notification::{Notification, Reason};
use super::reader::Reader;
use crate::net::Family;

/// Subtype of a ROUTE-REFRESH.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum RefreshKind {
    /// Request for all routes.
    Request,
    /// Beginning of a route refresh (BoRR).
    Begin,
    /// End of a route refresh (EoRR).
    End,
}

/// ROUTE-REFRESH for one address family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refresh {
    pub family: Family,
    pub kind: RefreshKind,
}

const REQUEST: u8 = 0;
const BEGIN: u8 = 1;
const END: u8 = 2;
const LENGTH: usize = 4;

impl Refresh {
    /// Parses a body. `None` where it is to be ignored: an unsupported family, or an unknown subtype (RFC 7313 5).
    pub(super) fn decode(body: &[u8]) -> Result<Option<Refresh>, Notification> {
        let mut reader = Reader::new(body);
        let (Some(afi), Some(subtype)) = (reader.u16(), reader.u8()) else { return Err(wrong_length(body)) };
        let kind = match subtype {
            REQUEST => RefreshKind::Request,
            BEGIN => RefreshKind::Begin,
            END => RefreshKind::End,
            _ => return Ok(None),
        };
        let safi = reader.u8().unwrap_or_default();
        if body.len() != LENGTH {
            return Err(match kind {
                RefreshKind::Begin | RefreshKind::End => malformed(body),
                RefreshKind::Request => wrong_length(body),
            });
        }
        Ok(family_of(afi, safi).map(|family| Refresh { family, kind }))
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let (afi, safi) = numbers_of(self.family);
        let subtype = match self.kind {
            RefreshKind::Request => REQUEST,
            RefreshKind::Begin => BEGIN,
            RefreshKind::End => END,
        };
        out.extend_from_slice(&afi.to_be_bytes());
        out.extend_from_slice(&[subtype, safi]);
    }
}

/// RFC 7313 5: the data is the complete message.
fn malformed(body: &[u8]) -> Notification {
    Notification::with(Reason::REFRESH_LENGTH, super::framed(super::ROUTE_REFRESH, |out| out.extend_from_slice(body)))
}

fn wrong_length(body: &[u8]) -> Notification {
    let length = u16::try_from(HEADER + body.len()).unwrap_or(u16::MAX);
    Notification::with(Reason::BAD_MESSAGE_LENGTH, length.to_be_bytes())
}
