//! The endpoints of one virtual service, each with the reason why it is in or out.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use crate::config::ProxyConfig;
use crate::kernel::ipvs::{Observed, Virtual};
use crate::model::{self, Endpoints, ServicePort, Shared, Use};
use crate::net::Family;

use super::super::endpoints::{DRAINING, of_port};
use super::super::local_node::LocalNode;
use super::super::{overlay_port, speaker_port};
use super::{EndpointState, MOST_ENDPOINTS};

/// Whether an endpoint is a destination of a virtual service.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Standing {
    /// It takes new connections.
    Serving,
    /// It is terminating and takes new connections, because no endpoint is ready.
    ServingWhileTerminating,
    /// It is terminating and keeps the connections that it has.
    Draining,
    /// It is not ready, or not serving while it terminates, and keeps the connections that it has.
    DrainingUnready,
    /// It is ready, this node's choice no longer (hints, a traffic policy), and keeps the connections that it has.
    DrainingUnchosen,
    /// It is no endpoint any more, and keeps the connections that it has.
    Leaving,
    /// Out: it is not ready, and not serving while it terminates.
    NotReady,
    /// Out: it is terminating while others are ready, and cannot drain (scheduler `dh`).
    Terminating,
    /// Out: the traffic policy is Local, and it is on another node.
    NotLocal,
    /// Out: the traffic policy is Local, and the slice does not say which node it is on.
    NodeUnknown,
    /// Out: hints keep it for other nodes or zones.
    Hinted,
    /// Out: its port is that of tunnels between nodes, which nothing else would keep closed.
    OverlayPort,
    /// Out: a speaker of BGP or BFD may be there, which knows its neighbours by their addresses.
    SpeakerPort,
    /// Out: it would get packets through tunnels, and none ends in it.
    Untunnelled,
    /// As before, and it keeps the connections that it has.
    DrainingUntunnelled,
    /// Out: the kernel refuses it as a destination.
    RefusedByKernel,
    /// In the kernel, and not desired.
    Unexpected,
}

/// The endpoints of one port in one family.
#[derive(Default)]
pub struct Listed {
    /// Sorted by address.
    pub states: Vec<EndpointState>,
    /// The number of those that are not named.
    pub left_off: usize,
    /// The number of addresses of this family that have no such port.
    pub without_port: usize,
}

/// The reasons of a virtual service for leaving out endpoints, besides their condition.
#[derive(Clone, Copy, Default)]
pub struct Choice<'a> {
    /// The name of this node where the traffic policy is Local.
    pub here: Option<&'a str>,
    /// The endpoints in which no tunnel ends, where packets go through tunnels.
    pub untunnelled: Option<&'a BTreeSet<IpAddr>>,
    /// The settings and this node, by which an endpoint may be at the port of tunnels between nodes, or at that of a speaker.
    pub config: Option<&'a ProxyConfig>,
    pub node: Option<&'a LocalNode>,
}

/// Returns the endpoints of one port in one family.
pub fn states(
    endpoints: &Endpoints,
    port: &ServicePort,
    family: Family,
    desired: &Virtual,
    choice: Choice<'_>,
) -> Listed {
    // An address in several slices counts in its best condition.
    let mut known: BTreeMap<SocketAddr, model::Listed<'_>> = BTreeMap::new();
    for (number, endpoint) in of_port(endpoints, port, family) {
        let place = known.entry(SocketAddr::new(endpoint.address, number)).or_insert(endpoint);
        if endpoint.conditions.use_of() > place.conditions.use_of() {
            *place = endpoint;
        }
    }
    let weights: BTreeMap<SocketAddr, u32> = desired.destinations.iter().map(|it| (it.address, it.weight)).collect();
    let state = |address: SocketAddr, node: Option<Shared<str>>, standing| EndpointState {
        address,
        node,
        standing,
        traffic: None,
    };
    let is_overlay_port =
        |at: &SocketAddr| choice.config.is_some_and(|config| overlay_port::is_it(config, port.protocol, at.port()));
    let beside_speakers = beside_speakers(endpoints, port, family, choice);
    let in_slices = known.iter().map(|(address, endpoint)| {
        let standing = match standing(*endpoint, weights.get(address).copied(), choice) {
            one if one.is_out() && is_overlay_port(address) => Standing::OverlayPort,
            one if one.is_out() && beside_speakers.as_ref().is_some_and(|left| !left.contains(address)) => {
                Standing::SpeakerPort
            }
            one => one,
        };
        state(*address, endpoint.node.cloned(), standing)
    });
    let left = weights.keys().filter(|address| !known.contains_key(address));
    let mut states: Vec<EndpointState> =
        in_slices.chain(left.map(|address| state(*address, None, Standing::Leaving))).collect();
    // Those that are in come first where not all can be named.
    let left_off = states.len().saturating_sub(MOST_ENDPOINTS);
    if left_off > 0 {
        states.sort_by_key(|state| (state.standing, state.address));
        states.truncate(MOST_ENDPOINTS);
    }
    states.sort_by_key(|state| state.address);
    let with_port: BTreeSet<IpAddr> = known.keys().map(SocketAddr::ip).collect();
    Listed { states, left_off, without_port: without_port(endpoints, family, &with_port) }
}

/// Returns the endpoints that are left where slices are left out because one of theirs is at the port of a speaker; `None` where none is.
fn beside_speakers(
    endpoints: &Endpoints,
    port: &ServicePort,
    family: Family,
    choice: Choice<'_>,
) -> Option<BTreeSet<SocketAddr>> {
    let (config, node) = choice.config.zip(choice.node)?;
    match speaker_port::without(Cow::Borrowed(endpoints), port, node, config) {
        Cow::Borrowed(_) => None,
        Cow::Owned(left) => {
            let left = of_port(&left, port, family);
            Some(left.map(|(number, endpoint)| SocketAddr::new(endpoint.address, number)).collect())
        }
    }
}

fn without_port(endpoints: &Endpoints, family: Family, with_port: &BTreeSet<IpAddr>) -> usize {
    let of_family = endpoints.slices.values().filter(|slice| slice.family == family);
    let addresses = of_family.flat_map(|slice| slice.endpoints.listed()).map(|endpoint| endpoint.address);
    addresses.filter(|address| !with_port.contains(address)).collect::<BTreeSet<IpAddr>>().len()
}

fn standing(endpoint: model::Listed<'_>, weight: Option<u32>, choice: Choice<'_>) -> Standing {
    let is_elsewhere = choice.here.is_some_and(|here| endpoint.node_name() != Some(here));
    let is_untunnelled = choice.untunnelled.is_some_and(|those| those.contains(&endpoint.address));
    match (weight, endpoint.conditions.use_of()) {
        (None, Some(_)) if is_untunnelled => Standing::Untunnelled,
        (Some(DRAINING), Some(Use::Ready)) if is_untunnelled => Standing::DrainingUntunnelled,
        (Some(DRAINING), Some(Use::Terminating)) => Standing::Draining,
        (Some(DRAINING), None) => Standing::DrainingUnready,
        (Some(DRAINING), Some(Use::Ready)) => Standing::DrainingUnchosen,
        (Some(_), Some(Use::Terminating)) => Standing::ServingWhileTerminating,
        (Some(_), _) => Standing::Serving,
        (None, None) => Standing::NotReady,
        (None, Some(_)) if is_elsewhere && endpoint.node.is_none() => Standing::NodeUnknown,
        (None, Some(_)) if is_elsewhere => Standing::NotLocal,
        (None, Some(Use::Terminating)) => Standing::Terminating,
        (None, Some(Use::Ready)) => Standing::Hinted,
    }
}

/// Adds the connections and counters of the kernel's destinations, and the destinations that are not desired.
pub fn observe(states: &mut Vec<EndpointState>, observed: &Observed) {
    for found in &observed.destinations {
        let (address, traffic) = (found.destination.address, Some((found.connections, found.stats)));
        if let Some(state) = states.iter_mut().find(|state| state.address == address) {
            state.traffic = traffic;
            if state.standing.is_out() {
                state.standing = Standing::Unexpected;
            }
        } else if states.len() < MOST_ENDPOINTS {
            states.push(EndpointState { address, node: None, standing: Standing::Unexpected, traffic });
        }
    }
}

impl Standing {
    /// Returns whether the endpoint is no destination.
    pub fn is_out(self) -> bool {
        match self {
            Standing::NotReady | Standing::Terminating | Standing::NotLocal => true,
            Standing::NodeUnknown | Standing::Hinted | Standing::OverlayPort | Standing::Untunnelled => true,
            Standing::SpeakerPort | Standing::RefusedByKernel => true,
            Standing::Serving | Standing::ServingWhileTerminating => false,
            Standing::Draining | Standing::DrainingUnready | Standing::DrainingUnchosen => false,
            Standing::DrainingUntunnelled | Standing::Leaving | Standing::Unexpected => false,
        }
    }

    /// One word for programs.
    pub fn word(self) -> &'static str {
        match self {
            Standing::Serving => "serving",
            Standing::ServingWhileTerminating => "servingWhileTerminating",
            Standing::Draining => "draining",
            Standing::DrainingUnready => "drainingUnready",
            Standing::DrainingUnchosen => "drainingUnchosen",
            Standing::Leaving => "leaving",
            Standing::NotReady => "notReady",
            Standing::Terminating => "terminating",
            Standing::NotLocal => "notLocal",
            Standing::NodeUnknown => "nodeUnknown",
            Standing::Hinted => "hinted",
            Standing::OverlayPort => "overlayPort",
            Standing::SpeakerPort => "speakerPort",
            Standing::Untunnelled => "untunnelled",
            Standing::DrainingUntunnelled => "drainingUntunnelled",
            Standing::RefusedByKernel => "refusedByKernel",
            Standing::Unexpected => "unexpected",
        }
    }

    /// In or out, and why.
    pub fn reason(self) -> &'static str {
        match self {
            Standing::Serving => "in",
            Standing::ServingWhileTerminating => "in: terminating, and no endpoint is ready",
            Standing::Draining => "draining: terminating, takes no new connections",
            Standing::DrainingUnready => "draining: not ready, takes no new connections",
            Standing::DrainingUnchosen => {
                "draining: hints or the traffic policy choose others, takes no new connections"
            }
            Standing::Leaving => "draining: no longer an endpoint of this address, takes no new connections",
            Standing::NotReady => "out: not ready",
            Standing::Terminating => "out: terminating while others are ready, and it cannot drain",
            Standing::NotLocal => "out: on another node, and the traffic policy is Local",
            Standing::NodeUnknown => "out: its slice names no node, and the traffic policy is Local",
            Standing::Hinted => "out: its hints are for other nodes or zones",
            Standing::OverlayPort => {
                "out: its port is that of tunnels between nodes (--overlay-encap=vxlan with iptables)"
            }
            Standing::SpeakerPort => {
                "out: nodes speak BGP or BFD with each other at its port, or at that of another endpoint of its slice"
            }
            Standing::Untunnelled => {
                "out: its pod does not answer what comes through a tunnel; the Service's problems say why"
            }
            Standing::DrainingUntunnelled => {
                "draining: its pod does not answer what comes through a tunnel, takes no new connections"
            }
            Standing::RefusedByKernel => "out: the kernel refuses it; the Service's problems say why",
            Standing::Unexpected => "in the kernel, and not desired",
        }
    }
}
