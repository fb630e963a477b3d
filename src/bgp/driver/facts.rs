//! Facts about neighbours on their way to the owner of the speaker, and what of the driver follows from them.

use std::net::IpAddr;

use super::super::speaker::Fact;
use super::liveness::is_at_times;
use super::{Driver, Event, Subject};

impl Driver {
    /// Tells a fact about a neighbour.
    pub(super) fn tell(&mut self, address: IpAddr, fact: Fact) {
        // RFC 4271 4.4: without a hold time nobody would find out that the neighbour is gone.
        if matches!(&fact, Fact::Up(agreement) if agreement.hold_time == 0) {
            self.links.watch(address);
        }
        if matches!(fact, Fact::Up(_)) {
            if self.speaker.neighbour(address).is_some_and(is_at_times) {
                self.unexpected_came();
            }
            // However the session came about, the neighbour's trouble is over.
            if self.undialled.remove(&address) {
                self.news.push(Event::Trouble(Subject::Dialling(address), None));
            }
        }
        self.news.push(Event::Fact(address, fact));
    }
}
