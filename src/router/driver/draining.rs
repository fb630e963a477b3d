//! The drain of this node in the router's loop: what [`drain`](crate::router::drain) decides is announced, and told.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use tracing::{debug, info};

use super::Driver;
use crate::model::World;
use crate::router::apply::Kernel;
use crate::router::drain::{self, Clients, Effect, Event, Outside};

/// Maximum time of one look for clients outside of the cluster, after the portion of the file that is being read then.
const LOOK: Duration = Duration::from_millis(20);

impl<K: Kernel> Driver<K> {
    /// Follows the own Node. Called before its World is acted upon, so that a node that drains announces nothing at a start.
    pub(super) async fn look_at_own_node(&mut self, world: &World, now: Instant) {
        if let Some(node) = world.cluster.nodes.get(&world.host.node_name) {
            self.step_drain(drain::event(node, &self.config.drain), now).await;
        }
    }

    /// Tells the drain whether its announcement can be seen.
    pub(super) async fn note_announcing(&mut self, now: Instant) {
        let announces = !self.holds_back();
        self.step_drain(Event::Announcing(announces), now).await;
    }

    /// Returns whether announcements are held back: the speaker has restarted, or is to run and does not yet.
    pub(super) fn holds_back(&self) -> bool {
        self.plan.may_speak_later() || self.sessions.hold_back(self.plan.desired())
    }

    /// Returns whether neighbours have been sent how service addresses stand.
    fn neighbours_are_told(&self) -> bool {
        self.withdrawals.are_told() && !self.holds_back()
    }

    /// Passes an event to the drain, and carries out what follows.
    pub(super) async fn step_drain(&mut self, event: Event, now: Instant) {
        let mut effects = self.drain.step(now, event);
        if effects.contains(&Effect::Look) {
            let (clients, took) = self.look_for_clients();
            effects.extend(self.drain.step(now, Event::Clients(clients, took)));
        }
        for effect in effects {
            match effect {
                Effect::Stand(stage) => {
                    if let Some(look) = &mut self.context.clients {
                        look.give_up();
                    }
                    let changed = self.plan.stand(stage);
                    self.carry_out(&changed).await;
                }
                Effect::Look => {}
                Effect::Tell(news) => {
                    if let Some(earlier) = self.news.replace(news) {
                        info!(
                            change = earlier.word,
                            text = earlier.text,
                            "The drain of this node has changed, and again before neighbours knew"
                        );
                    }
                }
            }
        }
    }

    /// Looks for a while whether a client outside of the cluster has a connection of IPVS; returns the processor time that it took as well.
    fn look_for_clients(&mut self) -> (Clients, Duration) {
        let are_told = self.neighbours_are_told();
        let Some(look) = self.context.clients.as_mut().filter(|_| are_told) else {
            return (Clients::Unknown, LOOK);
        };
        let begun = Instant::now();
        let plan = &self.plan;
        let is_outside = |client: IpAddr| plan.is_outside(client);
        loop {
            match look.go_on(&is_outside) {
                Ok(Some(has_client)) => {
                    let clients = if has_client { Clients::Some } else { Clients::None };
                    return (clients, begun.elapsed());
                }
                Ok(None) if begun.elapsed() < LOOK => {}
                Ok(None) => return (Clients::Unknown, begun.elapsed()),
                Err(error) => {
                    debug!(%error, "Connections of IPVS cannot be read");
                    return (Clients::Unknown, begun.elapsed().max(LOOK));
                }
            }
        }
    }

    /// Returns how service addresses stand with routers outside, as neighbours have been sent it.
    pub(super) fn outside(&self) -> Outside {
        Outside {
            stage: self.plan.stage(),
            is_sent: self.neighbours_are_told(),
            has_addresses: self.plan.has_service_addresses(),
            holds_for_nodes: self.plan.holds_for_nodes(),
        }
    }

    /// Tells the newest news once neighbours have been sent what it is about. Called at the end of each turn: a World says whether a speaker is to run.
    pub(super) fn tell_news(&mut self) {
        if !self.neighbours_are_told() {
            return;
        }
        if let Some(news) = self.news.take() {
            info!(change = news.word, text = news.text, "The drain of this node has changed");
            self.context.report.send_modify(|report| {
                let number = report.news.as_ref().map_or(0, |(number, _)| number + 1);
                report.news = Some((number, news));
            });
        }
    }
}
