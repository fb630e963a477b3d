//! Sessions at rest: what their neighbours send may lie unread for a while.

use std::time::Instant;

use super::super::session::LinkId;
use super::Speaker;

impl Speaker {
    /// Returns whether a KEEPALIVE received on a connection may stay unread until the next one of ours: an established
    /// session, no part of a message received, and a hold timer that expires later.
    pub fn is_at_rest(&self, link: LinkId, now: Instant) -> bool {
        let neighbour = self.links.get(&link).and_then(|address| self.neighbours.get(address));
        neighbour.is_some_and(|neighbour| neighbour.peer.is_at_rest(link, now))
    }

    /// Takes the time at which the last bytes of a session came, of which all have been received: they may have lain unread for a while.
    pub fn heard_last(&mut self, link: LinkId, then: Instant) {
        let Some(address) = self.links.get(&link).copied() else { return };
        if let Some(neighbour) = self.neighbours.get_mut(&address) {
            neighbour.peer.heard_last(link, then);
            self.settle(address);
        }
    }

    /// Connections of the sessions that the next [`Input::Tick`](super::Input::Tick) ends because of an expired hold timer,
    /// unless something is received before.
    pub fn silent_sessions(&self, now: Instant) -> Vec<LinkId> {
        let due = self.timers.iter().take_while(|(at, _)| *at <= now);
        due.filter_map(|(_, address)| self.neighbours.get(address)?.peer.silent_session(now)).collect()
    }
}
