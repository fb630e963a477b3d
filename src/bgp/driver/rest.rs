//! Connections at rest: a KEEPALIVE alone does not wake the process, but is read after the next one of ours.
//!
//! The hold timer counts from the arrival of what is read (RFC 4271 6.5 ends a session only where nothing was received).

use std::time::Instant;

use super::super::message::SHORTEST;
use super::super::session::LinkId;
use super::Driver;

impl Driver {
    /// Reads a resting connection after a KEEPALIVE of ours. One that has received nothing since the last time wakes the
    /// process with anything from now on; one without a message on its way begins to rest, if the next KEEPALIVE of ours
    /// is sent before its hold timer expires.
    pub(super) fn look_at_rest(&mut self, link: LinkId) {
        let mut at = self.moment();
        if !self.links.is_resting(link) {
            self.links.set_resting(link, self.speaker.is_at_rest(link, at.now));
            return;
        }
        let Some((bytes, age)) = self.links.read_resting(link, &mut self.buffer) else {
            self.links.set_resting(link, false);
            return;
        };
        if bytes == SHORTEST {
            at.now = at.now.checked_sub(age).unwrap_or(at.now);
        }
        self.receive(at, link, bytes);
    }

    /// Reads the resting connections whose hold timer has expired, before the timer is handled: we may have been too busy to
    /// send a KEEPALIVE and to look.
    pub(super) fn read_silent(&mut self, now: Instant) {
        for link in self.speaker.silent_sessions(now) {
            if self.links.is_resting(link) {
                self.look_at_rest(link);
            }
        }
    }
}
