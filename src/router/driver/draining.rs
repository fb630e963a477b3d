//! The drain of this node in the router's loop: what [`drain`](crate::router::drain) decides is announced, and told.

use std::time::Instant;

use tracing::info;

use super::Driver;
use crate::model::World;
use crate::router::apply::Kernel;
use crate::router::drain::{Effect, Event, Outside, reason};

impl<K: Kernel> Driver<K> {
    /// Follows the own Node. Called before its World is acted upon, so that a node that drains announces nothing at a start.
    pub(super) async fn look_at_own_node(&mut self, world: &World, now: Instant) {
        if let Some(node) = world.cluster.nodes.get(&world.host.node_name) {
            self.step_drain(Event::Node(reason(node, &self.config.drain)), now).await;
        }
    }

    /// Passes an event to the drain, and carries out what follows.
    pub(super) async fn step_drain(&mut self, event: Event, now: Instant) {
        for effect in self.drain.step(now, event) {
            match effect {
                Effect::Stand(stage) => {
                    let changed = self.plan.stand(stage);
                    self.carry_out(&changed).await;
                }
                Effect::Tell(news) => self.news = Some(news),
            }
        }
        self.tell_news();
    }

    /// Returns how service addresses stand with routers outside, as neighbours have been sent it.
    pub(super) fn outside(&self) -> Outside {
        Outside {
            stage: self.plan.stage(),
            is_sent: self.withdrawals.are_told(),
            has_addresses: self.plan.has_service_addresses(),
        }
    }

    /// Tells the newest news once neighbours have been sent what it is about.
    pub(super) fn tell_news(&mut self) {
        if !self.withdrawals.are_told() {
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
