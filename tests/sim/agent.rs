//! The program, as far as the walk needs it: the turns of `proxy::driver`, with time and chance from outside.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice::config::ProxyConfig;
use sluice::kernel::ipvs::ServiceKey;
use sluice::model::{Authorities, Authority, World};
use sluice::net::PerFamily;
use sluice::proxy::apply::{Mirrors, ProxyRound};
use sluice::proxy::desired::{Desired, ProxyChanges};
use sluice::proxy::plan::Plan;
use sluice::proxy::unjudged::{DesiredTunnels, Unjudged, Waiting, Worlds};
use sluice::reconcile::{Found, Moment};

use crate::support::memory::MemoryKernel;

/// The same cluster, as it is known to the service proxy and to the router with this authority.
pub fn known(authority: Authority, world: &World) -> World {
    let authority = Authorities { proxy: authority, router: authority, ..Authorities::default() };
    World { authority, ..world.clone() }
}

/// One run of the program.
pub struct Agent {
    pub plan: Plan,
    pub mirrors: Mirrors<MemoryKernel>,
    pub authority: Authority,
    adopted: bool,
    adopts_marks: bool,
    cleared: bool,
    /// Endpoints behind tunnels that wait for the firewall.
    unjudged: Unjudged,
    /// The newest World's number, and that of the newest one that the firewall has judged. Both stay 0 where it is not to be waited for.
    worlds: Worlds,
    pub waits_for_firewall: bool,
    /// Commands about destinations that a round gives at most once everything was done; `None` for all.
    pub portion: Option<usize>,
    has_settled: bool,
}

impl Agent {
    pub fn start(kernel: &MemoryKernel, config: &Arc<ProxyConfig>, families: PerFamily<bool>) -> Agent {
        Agent {
            plan: Plan::new(config.clone(), families, (6, 1)),
            mirrors: Mirrors::new(kernel.targets_of(config.backend), config.excluded_cidrs.clone()),
            authority: Authority::Nothing,
            adopted: false,
            adopts_marks: config.tunnel_mode,
            cleared: false,
            unjudged: Unjudged::default(),
            worlds: Worlds { number: 0, judged: 0 },
            waits_for_firewall: false,
            portion: None,
            has_settled: false,
        }
    }

    pub fn take_world(&mut self, world: &World, now: Instant) {
        self.authority = world.authority.proxy;
        if self.authority == Authority::Nothing {
            return;
        }
        self.worlds.number += u64::from(self.waits_for_firewall);
        self.adopt_marks(Moment { now, jitter: 0 });
        let changed = self.plan.update(world, now);
        self.mark(&changed, now);
    }

    fn mark(&mut self, changed: &ProxyChanges, now: Instant) {
        self.mirrors.mark(changed);
        let may_serve = |port: &ServiceKey, destination| self.plan.may_serve(port, destination);
        let tunnels = DesiredTunnels { desired: self.plan.desired(), may_serve };
        self.unjudged.follow(tunnels, &changed.virtuals, self.worlds, now);
    }

    /// The firewall has judged a World: the newest one, or one that is so much older.
    pub fn judge(&mut self, older: u64) {
        self.worlds.judged = self.worlds.judged.max(self.worlds.number.saturating_sub(older));
        self.unjudged.judged(self.worlds.judged);
    }

    /// Returns the endpoints that have to wait at a moment.
    pub fn held_back(&mut self, now: Instant) -> Waiting {
        self.unjudged.expire(now, |port, destination| self.mirrors.use_of(self.plan.desired(), port, destination));
        self.unjudged.waiting()
    }

    /// Goes on with the marks that packets are given, as soon as they can be read.
    fn adopt_marks(&mut self, at: Moment) {
        if !self.adopts_marks {
            return;
        }
        if let Some(given) = self.mirrors.given_marks(at) {
            let changed = self.plan.adopt_marks(&given);
            self.mark(&changed, at.now);
            self.plan.keep_marks(self.mirrors.marks_elsewhere());
            self.adopts_marks = false;
        }
    }

    pub fn expire(&mut self, now: Instant) {
        let expired = self.plan.expire(now);
        self.mark(&expired, now);
    }

    /// Lets draining destinations go that have no connection left, and returns them.
    pub fn release_idle(&mut self, now: Instant) -> Vec<(ServiceKey, SocketAddr)> {
        let mut released = Vec::new();
        for key in self.plan.to_look_at(now) {
            let idle = self.mirrors.idle(self.plan.desired(), &key);
            let changed = self.plan.release(key, &idle);
            self.mark(&changed, now);
            let kernel_key = self.plan.desired().kernel_key(&key);
            released.extend(idle.into_iter().map(|destination| (kernel_key, destination)));
        }
        released
    }

    /// Takes over what an earlier run left, once everything is known.
    pub fn adopt(&mut self, at: Moment) {
        if self.authority != Authority::Complete || self.adopted {
            return;
        }
        if let Some(existing) = self.mirrors.existing_virtuals(self.plan.desired(), at) {
            let existing = existing.clone();
            let adopted = self.plan.adopt(&existing, at.now);
            self.mark(&adopted, at.now);
            self.adopted = true;
        }
    }

    pub fn round(&mut self, at: Moment) -> ProxyRound {
        if self.authority != Authority::Nothing {
            self.adopt_marks(at);
        }
        self.mirrors.hold_back(self.unjudged.waiting());
        self.mirrors.bound_rounds(self.portion.filter(|_| self.has_settled));
        let round = self.mirrors.round(self.plan.desired(), self.authority, at);
        self.has_settled |= self.mirrors.is_settled();
        let has_replaced = self.mirrors.has_replaced_abandoned(self.plan.desired());
        if self.authority == Authority::Complete && !self.cleared && has_replaced {
            self.cleared = true;
            self.mirrors.remove_abandoned();
            self.plan.keep_marks(false);
        }
        round
    }

    /// Audits everything, and returns what was found. Before it what is as desired comes to be in memory once, as in a quiet moment.
    pub fn audit(&mut self, at: Moment) -> Vec<Found> {
        self.plan.pack();
        self.mirrors.share(self.plan.desired());
        let mut found = Vec::new();
        // An audit may be in the middle of a pass: finish that one, then make a whole one.
        for _ in 0..2 {
            loop {
                let (portion, finished) = self.mirrors.audit(self.plan.desired(), at);
                found.extend(portion);
                if finished {
                    break;
                }
            }
        }
        found
    }

    pub fn desired(&self) -> &Desired {
        self.plan.desired()
    }
}

/// The clock of a walk.
#[derive(Clone, Copy)]
pub struct Clock {
    pub now: Instant,
}

impl Clock {
    pub fn new() -> Clock {
        Clock { now: Instant::now() }
    }

    pub fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    pub fn pass_until(&mut self, at: Option<Instant>) {
        self.now = at.map_or(self.now, |at| at.max(self.now));
    }
}
