//! Neighbours and next hops on links: routers behind interfaces, as they are found, and next hops that are lost.
//!
//! The thread that looks for routers runs while external peers are configured by interface.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::time::Instant;

use compact_str::CompactString;
use tokio::sync::watch;
use tracing::warn;

use super::super::apply::Kernel;
use super::Driver;
use crate::bgp::speaker::Order;
use crate::link_neighbours::driver::{Handle, spawn};
use crate::link_neighbours::{Standings, WantedLinks};
use crate::reconcile::Moment;

/// Maximum number of lost next hops named in a log message.
const NAMED: usize = 5;

/// The thread, and what it looks for.
#[derive(Default)]
pub(super) struct LinkWatch {
    wanted: WantedLinks,
    /// The last neighbour by link, at first the router over which routes led when the link was wanted for the first time; no entry where the kernel could not be read.
    former: BTreeMap<CompactString, Option<Ipv6Addr>>,
    running: Option<(Handle, watch::Receiver<Standings>)>,
    /// It could not be started, which has been said.
    is_troubled: bool,
}

impl LinkWatch {
    /// Waits until something else is known; never returns without a thread. Cancel-safe.
    pub async fn next(&mut self) -> Standings {
        if let Some((_, standings)) = &mut self.running
            && standings.changed().await.is_ok()
        {
            return standings.borrow_and_update().clone();
        }
        // One that has died is started again by the next look around.
        if self.running.take().is_some() {
            warn!(
                "Looking for routers behind interfaces has ended; beginning anew, and peers behind interfaces are none meanwhile"
            );
            return Standings::new();
        }
        std::future::pending().await
    }

    /// Sets the links to look at; to be called every few seconds. Returns whether nothing is known of any link from now on.
    fn want(&mut self, wanted: WantedLinks) -> bool {
        if wanted.is_empty() {
            self.wanted.clear();
            return self.running.take().is_some();
        }
        if self.running.is_none() {
            match spawn() {
                Ok(running) => {
                    self.running = Some(running);
                    self.wanted.clear();
                    self.is_troubled = false;
                }
                Err(reason) if !std::mem::replace(&mut self.is_troubled, true) => {
                    warn!(%reason, "Starting the search for routers behind interfaces failed; retrying");
                }
                Err(_) => {}
            }
        }
        if let (Some((handle, _)), true) = (&self.running, self.wanted != wanted) {
            handle.want(wanted.clone());
            self.wanted = wanted;
        }
        false
    }

    /// Looks at the links again, if any are wanted.
    pub fn look(&self) {
        if let Some((handle, _)) = &self.running {
            handle.look();
        }
    }
}

impl<K: Kernel> Driver<K> {
    /// Looks for routers on the links that the plan wants, where those that have a session, or had one, are to stay.
    pub(super) async fn want_links(&mut self, at: Moment) {
        let wanted = self.plan.wanted_links();
        self.links.former.retain(|name, _| wanted.contains(name));
        let new: BTreeSet<CompactString> =
            wanted.into_iter().filter(|name| !self.links.former.contains_key(name)).collect();
        if !new.is_empty() {
            self.links.former.extend(self.mirrors.former_routers(&new, at));
        }
        self.links.former.extend(self.plan.routers_on_links().map(|(name, router)| (name.clone(), Some(router))));
        let former = self.links.former.iter().filter_map(|(name, former)| Some((name.clone(), (*former)?))).collect();
        if self.links.want(self.plan.watched_links(self.sessions.kept(), &former)) {
            self.take_links(Standings::new()).await;
        }
    }

    pub(super) async fn take_links(&mut self, standings: Standings) {
        let changed = self.plan.set_links(standings);
        self.told.links = self.plan.link_names();
        Box::pin(self.carry_out(&changed)).await;
    }

    /// Queries the kernel for next hops that are new or due, and tells the speaker which are lost.
    pub(super) async fn look_at_next_hops(&mut self, now: Instant) {
        for next_hop in self.reachable.take_due() {
            let lead = self.mirrors.leads_to(next_hop);
            self.reachable.note(next_hop, lead, self.plan.is_node(next_hop), now);
        }
        if let Some(lost) = self.reachable.settle(now) {
            let first: Vec<String> = lost.iter().take(NAMED).map(|next_hop| self.told.links.text(*next_hop)).collect();
            warn!(count = lost.len(), lost = first.join(" "), "Set of unreachable next hops changed");
            self.sessions.order(vec![Order::Unreachable(lost)]).await;
        }
    }
}
