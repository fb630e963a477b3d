//! Looking for changes by others: preparing what compares services, and commands that are counted.

use std::time::Instant;

use super::super::commands::Counted;
use super::super::wire::{self, Command};
use super::{Services, fresh};

impl Services {
    /// Reads the next portion of the file that lists all services, by which [`unlike`](Target::unlike) compares all IPv6 services the next time
    /// it is called. Returns whether that can be done now; `None` where there is no such file.
    pub fn list_some(&mut self) -> Option<bool> {
        let listing = self.listing.get_or_insert_default();
        let is_read = listing.read_some().ok();
        if is_read.is_none() {
            self.listing = None;
        }
        is_read
    }

    /// Returns whether others have given IPVS commands since the last call, in any network namespace.
    pub fn others_commands(&mut self, now: Instant) -> Counted {
        let Services { socket, messages, glancer, commands, .. } = self;
        commands.count(now, || {
            // It names no service, so it is refused.
            wire::name_service(fresh(messages), Command::SetDestination, None);
            let _ = socket.request(messages, |_| Some(()));
            glancer.knock();
        })
    }

    /// Returns whether the last glance could not see everything.
    pub fn has_missed(&self) -> bool {
        self.missed
    }

    /// Forgets what earlier looks found, so that the next glance and the next [`list_some`](Self::list_some) see what is there now.
    pub fn look_anew(&mut self) {
        self.glancer.forget();
        self.listing = None;
    }
}
