//! The verdict on a packet with the effect of flags: by policies, on the bridges of pods, then by flags, then by the
//! endpoints of Services.

use compact_str::CompactString;

use crate::model::OnLink;

use super::super::bridges;
use super::super::host_endpoints::{HostEndpoints, is_denied};
use super::super::rules::RuleSet;
use super::super::service_addresses::Entrance;
use super::super::verdict::{Decision, Exemption, Packet, Traffic, Verdict, routed, verdict};
use super::{Known, is_this_node};

/// Returns this node's verdict on a packet: by policies, then by flags, then by the endpoints of Services; and the bridges
/// that the verdict is about.
pub fn judged(known: Known<'_>, packet: &Packet) -> (Verdict, Vec<CompactString>) {
    let Known { rules, world, config, closed, host_endpoints, .. } = known;
    let (mut verdict, bridges) = on_bridges(known, packet);
    let to_this_node = is_this_node(world, packet.destination);
    if let Traffic::Port { port, .. } = packet.traffic
        && verdict.egress.pod().is_some()
        && to_this_node
        && config.service_node_port_range.contains(&port)
    {
        verdict.egress = Decision::Exempt(Exemption::NodePort);
    }
    if let Some(refused) = denied_behind(rules, host_endpoints, packet) {
        verdict.egress = refused;
    }
    let is_closed = |address| closed.iter().any(|range| range.contains(&address));
    if verdict.egress == Decision::NotHere && !packet.from_this_node && is_closed(packet.source) {
        verdict.egress = Decision::Closed;
    }
    let is_sent_by_us = packet.from_this_node || to_this_node;
    if verdict.ingress == Decision::NotHere && !is_sent_by_us && is_closed(packet.destination) {
        verdict.ingress = Decision::Closed;
    }
    (verdict, bridges)
}

/// Returns the verdict by policies. Where the host has no bridge on which an address is closed, it is open.
fn on_bridges(known: Known<'_>, packet: &Packet) -> (Verdict, Vec<CompactString>) {
    let Known { rules, world, bridges, .. } = known;
    let mut verdict = verdict(rules, packet);
    let existing = |closed: &[CompactString]| bridges::existing(closed, world);
    let is_broadcast = |one: &&OnLink| one.prefix.broadcast() == packet.destination && packet.destination.is_ipv4();
    let closed = match (&verdict.egress, &verdict.ingress) {
        (Decision::LinkLocal, _) => existing(&bridges.link_local),
        (_, Decision::Multicast) => existing(&bridges.multicast),
        _ if packet.from_this_node => return (verdict, Vec::new()),
        _ => {
            let networks = world.host.on_link.iter().filter(is_broadcast).map(|one| one.link.clone());
            let closed = existing(&networks.filter(|link| bridges.multicast.contains(link)).collect::<Vec<_>>());
            if !closed.is_empty() {
                verdict.ingress = Decision::Multicast;
            }
            return (verdict, closed);
        }
    };
    if closed.is_empty() {
        verdict = routed(rules, packet);
    }
    (verdict, closed)
}

/// Returns the decision on a packet of a pod to a Service that is refused because of an endpoint on this node.
pub(super) fn denied_behind(rules: &RuleSet, host_endpoints: &HostEndpoints, packet: &Packet) -> Option<Decision> {
    let Traffic::Port { protocol, port } = packet.traffic else { return None };
    let entrance = Entrance { address: packet.destination, port };
    rules.local_pods_at(packet.source).find_map(|(name, pod)| {
        let mut behind = host_endpoints.behind(entrance, protocol);
        let endpoint = *behind.find(|endpoint| is_denied(rules, (name, pod), endpoint))?;
        Some(Decision::DeniedBehind { pod: name.clone(), endpoint })
    })
}
