//! The plan of one node, for Worlds of a few nodes.

mod alike;
mod annotated_ranges;
mod detected;
mod ends;
mod host;
mod mistakes;
mod passwords;
mod pod_routes;
mod receiving;
mod services;
mod unread_peers;
mod sessions;

use std::sync::Arc as Shared;
use std::time::Instant;

use super::*;
use crate::bfd::Path;
use crate::bgp::rib::{Best, PeerId};
use crate::bgp::speaker::Order;
use crate::config::RouterConfig;
use crate::kernel::route::{RouteKey, TABLE_MAIN};
use crate::model::{Authority, Host, Node, Prepend, Reflection, Routing, Service};
use crate::net::{ExternalPeer, Secret};
use crate::router::given::{address, config, host, node, prefix, three_nodes, with, world};
use crate::router::password_files;

const BOTH: PerFamily<bool> = PerFamily { v4: true, v6: true };

fn plan(words: &[&str]) -> Plan {
    let config: RouterConfig = config(&[&["--enable-ipv6"], words].concat());
    Plan::new(Shared::new(config), BOTH)
}

pub(super) fn planned(words: &[&str], world: &World) -> Plan {
    let mut plan = plan(words);
    plan.update(world);
    plan
}

fn peers(plan: &Plan) -> Vec<String> {
    plan.desired().peers.keys().map(ToString::to_string).collect()
}

fn announcements(plan: &Plan) -> Vec<String> {
    let line = |(prefix, attributes): (&IpNet, &Attributes)| format!("{prefix} {}", attributes.next_hop);
    plan.desired().announcements.iter().map(line).collect()
}

fn elements(plan: &Plan) -> Vec<String> {
    plan.desired().elements.keys().map(ToString::to_string).collect()
}

fn problems(plan: &Plan) -> Vec<String> {
    plan.desired().problems.iter().map(|problem| format!("{}: {}", problem.about, problem.text)).collect()
}

fn change_node(world: &mut World, name: &str, change: impl FnOnce(&mut Routing)) {
    let node = (**world.cluster.nodes.get(&name.into()).expect("it is there")).clone();
    world.cluster.nodes.insert(name.into(), with(node, change));
}

pub(super) fn learned(text: &str, next_hop: &str) -> RouteChange {
    let next_hop = address(next_hop);
    let best = Best { source: PeerId(7), attributes: Shared::new(Attributes::local(next_hop)) };
    RouteChange { prefix: prefix(text), best: Some(best), next_hops: vec![next_hop] }
}

const NOTHING: [&str; 0] = [];

fn service(addresses: &[&str]) -> Service {
    Service::new(addresses.iter().map(|text| address(text)).collect(), vec![])
}

/// A first look at pod ranges.
pub(super) fn at_first() -> Circumstances {
    let now = Instant::now();
    Circumstances { now, since: now, nodes_are_read: true }
}
