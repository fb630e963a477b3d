//! Local restart: how long End-of-RIB is awaited before anything is advertised (RFC 4724 4.1). And neighbours whose own restart
//! takes long (RFC 9494).

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::super::session::Moment;
use super::{ALL, Fact, Output, Speaker};
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

/// Maximum wait for neighbours that are being looked for, from the start: routers behind interfaces are asked for three times, four seconds apart (RFC 4861 6.3.7), and
/// each may take three seconds to answer (6.2.6).
const SEARCH: Duration = Duration::from_secs(12);

/// A local restart until it is over, with the ends of its waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Restart {
    quiet: Duration,
    patience: Instant,
    deferral: Instant,
    search: Instant,
    /// Neighbours that are not configured yet are being looked for.
    pub expects_more: bool,
    /// Address families that are not advertised yet.
    held: PerFamily<bool>,
    /// The first end that is still to come.
    pub next: Instant,
}

impl Restart {
    pub fn begin(Restarting { patience, deferral }: Restarting, now: Instant) -> Restart {
        Restart {
            quiet: patience,
            patience: now + patience,
            deferral: now + deferral,
            search: now + SEARCH,
            expects_more: false,
            held: ALL,
            next: now + patience.min(deferral),
        }
    }

    /// Takes down that a neighbour is configured. One that was found has as long as others to connect.
    pub fn note_new(&mut self, now: Instant) {
        if self.is_searching(now) {
            self.patience = now + self.quiet;
        }
    }

    /// Takes down that a neighbour has connected for the first time.
    pub fn note_up(&mut self, now: Instant) {
        self.patience = now + self.quiet;
    }

    fn is_searching(&self, now: Instant) -> bool {
        self.expects_more && self.search > now
    }

    /// Returns the first end that is still to come; that of the whole wait where it is over.
    fn next(&self, now: Instant) -> Instant {
        let search = Some(self.search).filter(|_| self.expects_more);
        let ends = [Some(self.patience), search].into_iter().flatten().filter(|end| *end > now);
        ends.fold(self.deferral, Instant::min)
    }
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
        restart.next = restart.next(at.now);
        // Before the first neighbour is configured their number is unknown.
        let unknown = self.neighbours.is_empty() || self.neighbours.values().any(|neighbour| neighbour.is_missing());
        let missing = restart.patience > at.now && unknown || restart.is_searching(at.now);
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
