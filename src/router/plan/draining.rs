//! The plan of a node that drains, or waits for the routes of other nodes: how the addresses of Services stand with routers outside.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Plan;
use crate::model::{ObjectName, Service, TrafficPolicy};
use crate::net::Family;
use crate::router::claims::Claims;
use crate::router::desired::RouterChanges;
use crate::router::drain::Stage;
use crate::router::identity::Identity;

impl Plan {
    /// Sets how the addresses of Services stand with routers outside.
    pub fn stand(&mut self, stage: Stage) -> RouterChanges {
        self.stage = stage;
        self.put_service_announcements()
    }

    /// Announces the addresses of Services that became known after BGP had begun without them: the service proxy serves them.
    pub fn announce_services(&mut self) -> RouterChanges {
        self.holds_services = false;
        self.put_service_announcements()
    }

    /// Holds the addresses of Services back whose endpoints may be on other nodes, or announces them again.
    pub fn hold_back(&mut self, holds_for_nodes: bool) -> RouterChanges {
        self.holds_for_nodes = holds_for_nodes;
        self.put_service_announcements()
    }

    /// Returns whether the address of a Service waits for the routes of other nodes. Where only endpoints of this node count it does not.
    pub(super) fn waits_for_nodes(&self, address: IpAddr) -> bool {
        let is_local = |service: &Service| {
            let policy = match service.cluster_ips.contains(&address) {
                true => service.internal_traffic_policy,
                false => service.external_traffic_policy,
            };
            policy == TrafficPolicy::Local || service.annotations.local
        };
        let needs_none = |name| self.known.services.get(name).is_some_and(|service| is_local(service));
        self.holds_for_nodes && !self.announced.owners(&address).all(needs_none)
    }

    fn put_service_announcements(&mut self) -> RouterChanges {
        let mut changed = RouterChanges::default();
        for address in self.announced.keys().copied().collect::<Vec<_>>() {
            self.put_announcement(Family::host_prefix(address), &mut changed);
        }
        self.settle(&mut changed);
        changed
    }

    /// Returns whether there are service addresses that this node announces, or would announce if it did not drain.
    pub fn has_service_addresses(&self) -> bool {
        self.announced.keys().any(|address| !self.refused_services.contains(address))
    }

    /// Returns whether an address is outside of the cluster: none of a node, of this host, or of pods.
    pub fn is_outside(&self, address: IpAddr) -> bool {
        let host = Family::host_prefix(address);
        let is_pod = self.wireguard.ranges.around(host).is_some()
            || self.own.all_pod_cidrs().any(|ours| ours.contains(&address));
        !(is_pod || address.is_loopback() || self.is_here(&address) || self.nodes.has(address))
    }

    /// Returns how the addresses of Services stand with routers outside, but for those that are held back.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Returns whether addresses of Services are held back until the routes of other nodes are there.
    pub fn holds_for_nodes(&self) -> bool {
        self.holds_for_nodes
    }
}

/// Returns the prefixes of Services that this node announces, or has withdrawn because it drains: nobody else's route to them is taken in
/// any stage. `refused` are those that are addresses of nodes.
pub(super) fn prefixes(
    own: &Identity,
    announced: &Claims<IpAddr, ObjectName, ()>,
    refused: &BTreeSet<IpAddr>,
) -> Vec<IpNet> {
    let is_capable = |address: &&IpAddr| own.addresses.of(Family::from(**address)).is_some();
    let addresses = announced.keys().filter(|address| !refused.contains(*address)).filter(is_capable);
    let is_ours = |prefix: &IpNet| own.pod_cidrs.of(Family::from(*prefix)).contains(prefix);
    addresses.map(|address| Family::host_prefix(*address)).filter(|prefix| !is_ours(prefix)).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::bgp::message::Community;
    use crate::model::{
        AnnounceAnnotations, Conditions, Endpoint, EndpointPort, EndpointSlice, Endpoints, ServicePort, World,
    };
    use crate::net::Protocol;
    use crate::router::given::{address, three_nodes};
    use crate::router::plan::tests::planned;

    /// Three nodes, and a Service whose cluster addresses of both families are announced.
    fn announcing() -> World {
        let mut world = three_nodes();
        let service = Service {
            announce: AnnounceAnnotations { cluster_ips: Some(true), ..AnnounceAnnotations::default() },
            ..Service::new(vec![address("10.96.0.9"), address("fd00:10:96::9")], vec![])
        };
        world.cluster.services.insert(ObjectName::new("default", "web"), service);
        world
    }

    /// The announced prefixes, and which of them are leaving.
    fn announced(plan: &Plan) -> Vec<String> {
        let line = |(prefix, attributes): (&ipnet::IpNet, &crate::bgp::message::Attributes)| {
            let is_leaving = attributes.has(Community::GRACEFUL_SHUTDOWN);
            assert_eq!(is_leaving, attributes.preference() == 0, "{prefix}");
            if is_leaving { format!("{prefix} leaving") } else { prefix.to_string() }
        };
        plan.desired().announcements.iter().map(line).collect()
    }

    const PODS: [&str; 2] = ["10.244.1.0/24", "fd00:10:244:1::/64"];
    const ALL: [&str; 4] = ["10.96.0.9/32", "10.244.1.0/24", "fd00:10:96::9/128", "fd00:10:244:1::/64"];
    const LEAVING: [&str; 4] =
        ["10.96.0.9/32 leaving", "10.244.1.0/24", "fd00:10:96::9/128 leaving", "fd00:10:244:1::/64"];

    #[test]
    fn only_service_addresses_leave_and_go_and_sessions_and_pods_stay() {
        let mut plan = planned(&[], &announcing());
        let peers = plan.desired().peers.clone();
        assert_eq!(announced(&plan), ALL);
        for (stage, expected) in
            [(Stage::Leaving, &LEAVING[..]), (Stage::Withdrawn, &PODS[..]), (Stage::Announced, &ALL[..])]
        {
            let changed = plan.stand(stage);
            assert_eq!(announced(&plan), expected);
            assert_eq!(changed.announcements.len(), 2, "{stage:?}");
            assert!(!changed.speaker && changed.peers.is_empty() && plan.desired().peers == peers);
        }
        assert_eq!(plan.stand(Stage::Announced).announcements.len(), 0, "nothing has changed");
    }

    #[test]
    fn the_addresses_of_services_are_refused_on_import_in_every_stage() {
        let announcing = announcing();
        let mut plan = planned(&[], &announcing);
        let policies = plan.desired().policies.clone();
        let without = planned(&[], &three_nodes()).desired().policies.clone();
        assert!(policies.is_some() && policies != without, "the policies name the Service");
        for stage in [Stage::Leaving, Stage::Withdrawn, Stage::Announced] {
            let changed = plan.stand(stage);
            assert!(!changed.policies && plan.desired().policies == policies, "{stage:?}");
        }
        plan.stand(Stage::Withdrawn);
        plan.update(&three_nodes());
        assert!(plan.desired().policies == without, "a Service that goes meanwhile is named no longer");
        plan.update(&announcing);
        assert!(plan.desired().policies == policies, "and one that comes is");
    }

    #[test]
    fn a_node_that_was_cut_off_announces_what_needs_no_other_node_alone() {
        let mut world = announcing();
        let mut local =
            (**world.cluster.services.get(&ObjectName::new("default", "web")).expect("it is there")).clone();
        (local.internal_traffic_policy, local.cluster_ips) = (TrafficPolicy::Local, vec![address("10.96.0.10")]);
        local.ports = vec![ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None }].into();
        let conditions = Conditions { ready: true, serving: true, terminating: false };
        let here = Endpoint { address: address("10.244.1.5"), conditions, node: Some("node-1".into()), hints: None };
        let slice = EndpointSlice {
            family: Family::V4,
            ports: [EndpointPort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }].into(),
            endpoints: [here].into_iter().collect(),
        };
        let name = ObjectName::new("default", "local");
        world.cluster.services.insert(name.clone(), local);
        world.cluster.endpoints.insert(name, Endpoints { slices: [("one".into(), Arc::new(slice))].into() });
        let mut plan = planned(&[], &world);
        let all = announced(&plan);
        assert_eq!(plan.hold_back(true).announcements.len(), 2);
        let held: Vec<String> = all.iter().filter(|it| !announced(&plan).contains(it)).cloned().collect();
        assert_eq!(held, ALL.iter().filter(|it| !PODS.contains(it)).copied().collect::<Vec<_>>());
        // It goes on draining meanwhile, and a Service that comes waits as well.
        plan.stand(Stage::Withdrawn);
        assert_eq!(announced(&plan), PODS);
        plan.stand(Stage::Announced);
        plan.update(&three_nodes());
        plan.update(&world);
        assert!(announced(&plan).len() < all.len());
        // The traffic policy changes meanwhile, there and back.
        let mut of_all = world.clone();
        let name = ObjectName::new("default", "local");
        let mut service = (**world.cluster.services.get(&name).expect("it is there")).clone();
        service.internal_traffic_policy = TrafficPolicy::Cluster;
        of_all.cluster.services.insert(name, service);
        plan.update(&of_all);
        assert_eq!(announced(&plan), PODS);
        plan.update(&world);
        assert_eq!(announced(&plan).len(), PODS.len() + 1);
        plan.hold_back(false);
        assert_eq!(announced(&plan), all);
    }

    #[test]
    fn pods_and_nodes_are_inside_and_all_others_are_outside() {
        let plan = planned(&[], &announcing());
        let inside = ["192.0.2.1", "10.0.0.3", "10.244.1.7", "10.244.3.7", "127.0.0.1"];
        for text in inside.into_iter().chain(["2001:db8::2", "fd00:10:244:1::7", "fd00:10:244:2::7", "::1"]) {
            assert!(!plan.is_outside(address(text)), "{text}");
        }
        for text in ["198.51.100.7", "192.0.2.77", "10.96.0.9", "2001:db8::77", "fd00:10:245::1"] {
            assert!(plan.is_outside(address(text)), "{text}");
        }
    }

    #[test]
    fn services_that_become_known_after_bgp_has_begun_wait_until_they_are_served() {
        let mut without = announcing();
        without.authority.proxy = crate::model::Authority::Nothing;
        let mut plan = planned(&[], &without);
        assert!(plan.desired().speaker.is_none());
        plan.go_without_services();
        assert!(plan.desired().speaker.is_some() && announced(&plan) == PODS);
        plan.update(&announcing());
        assert_eq!(announced(&plan), PODS, "nobody serves them yet");
        assert_eq!(plan.announce_services().announcements.len(), 2);
        assert_eq!(announced(&plan), ALL);
    }

    #[test]
    fn a_service_that_comes_while_the_node_drains_stands_as_the_others_do() {
        let mut plan = planned(&[], &three_nodes());
        plan.stand(Stage::Leaving);
        plan.update(&announcing());
        assert_eq!(announced(&plan), LEAVING);
        plan.stand(Stage::Withdrawn);
        plan.update(&three_nodes());
        plan.update(&announcing());
        assert_eq!(announced(&plan), PODS);
    }
}
