//! Local restart: how long End-of-RIB is awaited before anything is advertised (RFC 4724 4.1). And neighbours whose own restart
//! takes long (RFC 9494).

use std::net::IpAddr;
use std::time::Duration;

use super::super::session::Moment;
use super::{Fact, Output, Speaker};
use crate::net::{Family, PerFamily};

/// Parameters of a local restart.
#[derive(Clone, Copy, Debug)]
pub struct Restarting {
    /// Wait for neighbours that are not connected, counted from the last one that has connected.
    pub patience: Duration,
    /// Bound of the whole wait (RFC 4724, *Selection_Deferral_Timer*).
    pub deferral: Duration,
}

impl Restarting {
    /// Long enough for a neighbour that is up and whose first two packets are lost: TCP retransmits them after one
    /// second and after three (RFC 6298 2, 5.5).
    pub const PATIENCE: Duration = Duration::from_millis(3500);
}

impl Speaker {
    /// Keeps the stale routes of a neighbour that has not come back in time as the last resort (RFC 9494 4.2).
    pub(super) fn keep_long(&mut self, address: IpAddr, families: PerFamily<bool>, is_new: bool) {
        if let Some(neighbour) = self.neighbours.get(&address) {
            self.rib.keep_long(neighbour.id, families);
            if is_new {
                self.outputs.push(Output::Fact(address, Fact::LongLived(families)));
            }
        }
    }

    /// RFC 4724 4.1: an address family is advertised when all connected neighbours have sent its End-of-RIB.
    pub(super) fn end_restart(&mut self, at: Moment) {
        let Some(restart) = &mut self.restart else { return };
        let late = restart.deferral <= at.now;
        restart.next =
            if restart.patience > at.now { restart.patience.min(restart.deferral) } else { restart.deferral };
        // Before the first neighbour is configured their number is unknown.
        let unknown = self.neighbours.is_empty() || self.neighbours.values().any(|neighbour| neighbour.is_missing());
        let missing = restart.patience > at.now && unknown;
        let over = |family: Family| {
            late || !missing && self.neighbours.values().all(|neighbour| !neighbour.is_awaited(family))
        };
        let released = PerFamily::from_fn(|family| *restart.held.of(family) && over(family));
        restart.held = PerFamily::from_fn(|family| *restart.held.of(family) && !*released.of(family));
        self.rib.release(released);
        if restart.held == PerFamily::default() {
            self.restart = None;
            self.neighbours.values_mut().for_each(|neighbour| neighbour.peer.has_restarted());
            self.outputs.push(Output::Complete);
        }
    }
}
