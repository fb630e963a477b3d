//! Route refresh (RFC 2918), asked for and answered, and inbound and outbound soft resets.

use std::net::IpAddr;

use super::super::message::{self, Refresh, RefreshKind};
use super::{Output, Speaker};
use crate::net::Family;

impl Speaker {
    pub(super) fn ask_again(&mut self, address: IpAddr) {
        let Some(neighbour) = self.neighbours.get_mut(&address) else { return };
        let Some((link, _)) = neighbour.peer.session() else { return };
        let Some(agreement) = neighbour.peer.agreement().filter(|agreement| agreement.refresh) else { return };
        let spoken = agreement.dialect.families;
        for family in Family::BOTH.into_iter().filter(|family| *spoken.of(*family)) {
            let request = message::refresh(&Refresh { family, kind: RefreshKind::Request });
            neighbour.has_sent(&request);
            self.outputs.push(Output::Send(link, request.into()));
        }
    }

    /// Handles a ROUTE-REFRESH of a neighbour.
    pub(super) fn refresh(&mut self, address: IpAddr, refresh: Refresh) {
        let Some(neighbour) = self.neighbours.get(&address) else { return };
        let marks = neighbour.peer.agreement().is_some_and(|agreement| agreement.enhanced_refresh);
        if neighbour.speaks(refresh.family) {
            self.rib.refresh(neighbour.id, refresh, marks);
        }
    }

    pub(super) fn tell_again(&mut self, address: IpAddr) {
        let Some(neighbour) = self.neighbours.get(&address) else { return };
        for family in Family::BOTH {
            if neighbour.speaks(family) {
                self.rib.resend(neighbour.id, family);
            }
        }
    }
}
