//! Waiting for the firewall of this process, in the loop of the service proxy: what it has judged is read here, and log, metric and note are told of what it has not.

use std::net::SocketAddr;
use std::time::Instant;

use prometheus::IntCounter;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::kernel::ipvs::ServiceKey;
use crate::observe::health::Note;

use super::{DesiredTunnels, Unjudged, Use, Waiting, Worlds};
use crate::proxy::plan::Plan;

/// The endpoints behind tunnels that wait for the firewall, and how far it has come.
pub struct FirewallWaits {
    /// The number of the newest World for which the firewall has its refusals in the kernel; `None` where no firewall runs in this process, or nothing goes through tunnels.
    judged: Option<watch::Receiver<u64>>,
    /// Says which endpoints are used before the firewall has judged them.
    note: Note,
    /// The number of the World that is desired.
    world: u64,
    unjudged: Unjudged,
    /// The number of endpoints that the note has.
    told: usize,
}

impl FirewallWaits {
    pub fn new(judged: Option<watch::Receiver<u64>>, note: Note) -> FirewallWaits {
        FirewallWaits { judged, note, world: 0, unjudged: Unjudged::default(), told: 0 }
    }

    /// Notes the number of the World that is desired from now on.
    pub fn take_world(&mut self, number: u64) {
        self.world = number;
    }

    /// Takes virtual services that have changed.
    pub fn follow(&mut self, plan: &Plan, changed: &[ServiceKey], now: Instant) {
        if let Some(judged) = &self.judged {
            let judged = *judged.borrow();
            let may_serve = |port: &ServiceKey, destination| plan.may_serve(port, destination);
            let tunnels = DesiredTunnels { desired: plan.desired(), may_serve };
            self.unjudged.follow(tunnels, changed, Worlds { number: self.world, judged }, now);
        }
    }

    /// Waits until the firewall has come further, where anything waits for it. Loses nothing when the wait is cancelled.
    pub async fn changed(&mut self) {
        if let Some(judged) = self.judged.as_mut().filter(|_| self.unjudged.is_any())
            && judged.changed().await.is_ok()
        {
            return;
        }
        // One that has ended tells nothing more.
        std::future::pending().await
    }

    /// Reads how far the firewall has come, where anything waits for it. It may have judged a newer World than the one that is desired, but that is published by then: to be called before the
    /// newest World is taken in the same turn.
    pub fn look(&mut self) {
        if let Some(judged) = self.judged.as_mut().filter(|_| self.unjudged.is_any()) {
            self.unjudged.judged(*judged.borrow_and_update());
        }
    }

    /// Ends the waits that have been long enough, and tells of them.
    pub fn expire(&mut self, now: Instant, use_of: impl Fn(&ServiceKey, SocketAddr) -> Use, counter: &IntCounter) {
        counter.inc_by(self.unjudged.expire(now, use_of) as u64);
        let early = self.unjudged.early();
        let told = std::mem::replace(&mut self.told, early);
        if early == told {
            return;
        }
        if told == 0 {
            warn!(endpoints = early, "Endpoints behind tunnels are used before network policies for them are in place");
        } else if early == 0 {
            info!("Network policies for all endpoints behind tunnels are in place");
        }
        let text = || {
            format!(
                "{early} endpoints behind tunnels are used although the firewall has not refused them yet to pods whose policies deny them"
            )
        };
        self.note.set((early > 0).then(text).into_iter().collect());
    }

    /// Returns when a wait is over.
    pub fn deadline(&self) -> Option<Instant> {
        self.unjudged.deadline()
    }

    /// Returns the destinations that have to wait.
    pub fn waiting(&self) -> Waiting {
        self.unjudged.waiting()
    }
}
