//! UPDATE: announced and withdrawn routes.
//!
//! RFC 4271 4.3 and 6.3 for the format, RFC 4760 for the multiprotocol attributes, RFC 4724 2 for End-of-RIB, and RFC
//! 7606 for error handling: the mildest treatment that keeps the tables correct. A message is accepted, or accepted
//! without some attribute, or treated as withdrawn, or its address family is disabled, or the session is reset. Only
//! the last is an error here; the others are [`Remark`]s beside the routes.

use std::net::IpAddr;

use ipnet::IpNet;

use super::attributes::Attributes;
use super::dialect::Dialect;
use super::notification::{Notification, Reason};
use super::path_attribute::{Block, Flaw, MP_REACH, MP_UNREACH, Reach};
use super::prefix;
use super::reader::Reader;
use super::treatment::Treatment;
use crate::net::Family;

/// Contents of an UPDATE. Withdrawals are applied first: a prefix in both lists is announced (RFC 4271 4.3).
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Update {
    pub withdrawn: Vec<IpNet>,
    /// At most one entry for the body and one for MP_REACH_NLRI: their next hops differ.
    pub announced: Vec<Announced>,
    /// End-of-RIB of an address family.
    pub end_of_rib: Option<Family>,
    /// Errors, at most one for each attribute.
    pub remarks: Vec<Remark>,
}

/// Routes with the same attributes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Announced {
    pub attributes: Attributes,
    pub prefixes: Vec<IpNet>,
}

/// Error that does not reset the session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Remark {
    /// Attribute type code; 0 for the message as a whole.
    pub attribute: u8,
    pub fault: &'static str,
    pub treatment: Treatment,
}

impl Update {
    /// Parses a body. RFC 7606 3 a: contradictory lengths and malformed prefixes reset the session, because the
    /// affected routes are unknown.
    pub(super) fn decode(body: &[u8], dialect: &Dialect) -> Result<Update, Notification> {
        let mut reader = Reader::new(body);
        let malformed = || Notification::new(Reason::MALFORMED_ATTRIBUTES);
        let mut field = || {
            let length = reader.u16()?;
            reader.bytes(usize::from(length))
        };
        let withdrawn = field().ok_or_else(malformed)?;
        let attributes = field().ok_or_else(malformed)?;
        let networks = reader.rest();
        if body.len() == 4 {
            return Ok(Update { end_of_rib: Some(Family::V4), ..Update::default() });
        }
        let invalid = || Notification::new(Reason::INVALID_NETWORK);
        let withdrawn = prefix::decode(Family::V4, withdrawn).ok_or_else(invalid)?;
        let networks = prefix::decode(Family::V4, networks).ok_or_else(invalid)?;
        let spoken = dialect.families.v4;
        let mut update = Update { withdrawn, ..Update::default() };
        let has_networks = !update.withdrawn.is_empty() || !networks.is_empty();
        if has_networks && !spoken {
            update.remark(0, "IPv4 prefixes, which this session does not speak", Treatment::DiscardAttribute);
            update.withdrawn.clear();
        }
        let mut block = Block::decode(attributes, dialect);
        block.require(spoken && !networks.is_empty());
        update.judge(&block, !networks.is_empty() || block.has_seen(MP_REACH))?;
        update.read(block, if spoken { networks } else { Vec::new() }, dialect);
        Ok(update)
    }

    /// Returns a NOTIFICATION for errors that require a session reset, and records the others. `reachable`: the message
    /// announces some route, readable or not.
    fn judge(&mut self, block: &Block, reachable: bool) -> Result<(), Notification> {
        let fatal = |flaw: &&Flaw| match flaw.treatment {
            Treatment::Reset => true,
            // RFC 7606 5.2: without announced routes there is nothing to withdraw, so that the affected routes are
            // unknown.
            Treatment::Withdraw => !reachable && flaw.attribute != MP_UNREACH,
            Treatment::DiscardAttribute | Treatment::DisableFamily(_) => false,
        };
        if let Some(flaw) = block.flaws.iter().find(fatal) {
            // RFC 4271 6.3: the data is the erroneous attribute, where the error lies in one attribute.
            let whole = flaw.reason == Reason::MALFORMED_ATTRIBUTES;
            let data = if whole { &[][..] } else { flaw.data.as_slice() };
            return Err(Notification::with(flaw.reason, data));
        }
        for flaw in &block.flaws {
            self.remark(flaw.attribute, flaw.fault, flaw.treatment);
        }
        Ok(())
    }

    /// Applies the parsed attributes.
    fn read(&mut self, mut block: Block, networks: Vec<IpNet>, dialect: &Dialect) {
        let reach = block.reach.take();
        let unreach = block.unreach.take();
        if networks.is_empty() && reach.is_none() && unreach.as_ref().is_some_and(|gone| gone.prefixes.is_empty()) {
            self.end_of_rib = unreach.as_ref().filter(|_| block.is_empty()).map(|unreach| unreach.family);
        }
        self.withdrawn.extend(unreach.into_iter().flat_map(|unreach| unreach.prefixes));
        let worst = block.flaws.iter().map(|flaw| flaw.treatment).max();
        if worst.is_some_and(|worst| worst >= Treatment::Withdraw) {
            self.withdrawn.extend(networks);
            self.withdrawn.extend(reach.into_iter().flat_map(|reach| reach.prefixes));
            return;
        }
        self.announce(block, networks, reach, dialect);
    }

    fn announce(&mut self, block: Block, networks: Vec<IpNet>, reach: Option<Reach>, dialect: &Dialect) {
        let next_hop = block.next_hop;
        let networks = self.unicast(networks);
        // The mandatory attributes are present where a route is announced; otherwise the set is not needed.
        let Some(attributes) = block.attributes(dialect) else { return };
        if let Some(next_hop) = next_hop.filter(|_| !networks.is_empty()) {
            let attributes = attributes.with_next_hop(IpAddr::V4(next_hop));
            self.announced.push(Announced { attributes, prefixes: networks });
        }
        if let Some(reach) = reach {
            let prefixes = self.unicast(reach.prefixes);
            let mut attributes = attributes.with_next_hop(reach.next_hop);
            if reach.link_local.is_some() {
                attributes.change_rare(|rare| rare.link_local = reach.link_local);
            }
            if !prefixes.is_empty() {
                self.announced.push(Announced { attributes, prefixes });
            }
        }
    }

    /// RFC 4271 6.3: prefixes invalid for unicast routes are ignored.
    fn unicast(&mut self, mut prefixes: Vec<IpNet>) -> Vec<IpNet> {
        let count = prefixes.len();
        prefixes.retain(|prefix| prefix::is_unicast(*prefix));
        if prefixes.len() < count {
            self.remark(0, "a prefix that no unicast route has", Treatment::DiscardAttribute);
        }
        prefixes
    }

    fn remark(&mut self, attribute: u8, fault: &'static str, treatment: Treatment) {
        self.remarks.push(Remark { attribute, fault, treatment });
    }

    /// Address families to disable.
    pub fn disabled(&self) -> impl Iterator<Item = Family> + '_ {
        self.remarks.iter().filter_map(|remark| match remark.treatment {
            Treatment::DisableFamily(family) => Some(family),
            Treatment::DiscardAttribute | Treatment::Withdraw | Treatment::Reset => None,
        })
    }
}
