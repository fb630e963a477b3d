//! Connections at rest: a KEEPALIVE alone does not wake the process, but is read after the next one of ours.
//!
//! The hold timer counts from the arrival of what is read (RFC 4271 6.5 ends a session only where nothing was received). When a KEEPALIVE arrived,
//! between the look before and this one, is asked where a later look finds nothing, in place of each time: that comes before the hold timer expires,
//! because looks are a third of the hold time apart at most.

use std::time::Instant;

use super::super::session::LinkId;
use super::Driver;

impl Driver {
    /// Reads a resting connection after a KEEPALIVE of ours. It rests on, or begins to rest, where no part of a message is received and half
    /// of the hold time is left, so that the next KEEPALIVE of ours comes before the hold timer expires; any other connection wakes
    /// the process with anything from now on. Neighbours may send KEEPALIVEs less often than we do: a look that finds nothing is no sign of silence.
    pub(super) fn look_at_rest(&mut self, link: LinkId) {
        let at = self.moment();
        if self.links.is_resting(link) {
            if let Some(bytes) = self.links.read_resting(link, &mut self.buffer) {
                return self.receive(at, link, bytes);
            }
            let age = self.links.since_received(link);
            if let Some(then) = age.and_then(|age| at.now.checked_sub(age)) {
                self.speaker.heard_last(link, then);
            }
        }
        self.links.set_resting(link, self.speaker.is_at_rest(link, at.now));
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
