//! `trafficDistribution`: whether traffic that may go anywhere stays on this node or in its zone.
//!
//! Kubernetes: `hints` of the endpoints in EndpointSlices, and the label `topology.kubernetes.io/zone` of this node's Node. The
//! control plane writes hints for Services with `spec.trafficDistribution` (`PreferClose`, `PreferSameZone`, `PreferSameNode`) or
//! the annotation `service.kubernetes.io/topology-mode`; a proxy obeys the hints and reads neither field, as kube-proxy does.
//!
//! Hints are a preference, and must not leave anybody unserved. Only ready endpoints count, those of one port and family:
//! - if all of them have a hint for nodes, and one of them for this node: those that are for this node;
//! - else, if all of them have a hint for zones, and one of them for this node's zone: those that are for this zone;
//! - else all of them: while hints are being written, for a node without a zone, and in a zone that has no share.
//!
//! Where a policy is Local, hints say nothing. Terminating endpoints serve only where none is ready, and then wherever they are.

use crate::model::{Hints, Listed, Use};

/// Where this node is, in the words of hints.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place<'a> {
    pub node: &'a str,
    pub zone: Option<&'a str>,
}

/// The part of the ready endpoints that is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Preference<'a> {
    /// All of them.
    Everywhere,
    /// Those for the node of this name.
    Node(&'a str),
    /// Those for this zone.
    Zone(&'a str),
}

impl<'a> Preference<'a> {
    /// Decides by the hints of all endpoints of one port and family.
    pub fn of<'e>(endpoints: impl Iterator<Item = Listed<'e>>, place: Place<'a>) -> Preference<'a> {
        let (mut node, mut zone) = (Hinted::default(), Hinted::default());
        for endpoint in endpoints.filter(|endpoint| endpoint.conditions.use_of() == Some(Use::Ready)) {
            let Some(hints) = endpoint.hints else { return Preference::Everywhere };
            node.add(!hints.nodes.is_empty(), is_for_node(hints, place.node));
            zone.add(!hints.zones.is_empty(), place.zone.is_some_and(|zone| is_for_zone(hints, zone)));
        }
        match place.zone {
            _ if node.is_usable() => Preference::Node(place.node),
            Some(name) if zone.is_usable() => Preference::Zone(name),
            _ => Preference::Everywhere,
        }
    }

    /// Returns whether a ready endpoint is used.
    pub fn allows(self, endpoint: Listed<'_>) -> bool {
        let hints = endpoint.hints;
        match self {
            Preference::Everywhere => true,
            Preference::Node(name) => hints.is_some_and(|hints| is_for_node(hints, name)),
            Preference::Zone(name) => hints.is_some_and(|hints| is_for_zone(hints, name)),
        }
    }
}

/// The hints of one sort, over all ready endpoints.
#[derive(Default)]
struct Hinted {
    /// An endpoint has none.
    lacking: bool,
    /// An endpoint is for here.
    here: bool,
}

impl Hinted {
    fn add(&mut self, has_any: bool, is_for_here: bool) {
        self.lacking |= !has_any;
        self.here |= is_for_here;
    }

    fn is_usable(&self) -> bool {
        self.here && !self.lacking
    }
}

fn is_for_node(hints: &Hints, node: &str) -> bool {
    hints.nodes.iter().any(|name| name == node)
}

fn is_for_zone(hints: &Hints, zone: &str) -> bool {
    hints.zones.iter().any(|name| name == zone)
}
