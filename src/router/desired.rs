//! Desired state of the router: of the speaker, and of the kernel.
//!
//! Sorted maps with the types of `bgp` and of `kernel`, so that comparing needs no others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::bgp::message::{Attributes, Notification, Reason};
use crate::bgp::rib::{Own, Policies};
use crate::bgp::speaker::{Order, WantedNeighbour};
use crate::kernel::bridge::Bridge;
use crate::kernel::ipset::{ElementKey, SetName, SetSpec};
use crate::kernel::iptables::{Piece, Rules};
use crate::kernel::link::LinkName;
use crate::kernel::nftables::passages::{Passage, Passing};
use crate::kernel::nftables::{Content, Object};
use crate::kernel::route::RouteKey;
use crate::kernel::rule::RuleKey;
use crate::kernel::sysctl::{Setting, WantedSetting};
use crate::kernel::tunnel::ReceivePort;
use crate::kernel::vxlan::{EntryKey, Vxlan};
use crate::kernel::wireguard::{Peer, PeerKey, Wireguard};
use crate::net::PerFamily;

use super::cni::Conf;
use super::problem::Problem;

/// The whole desired state, except for routes and tunnels, which are in `routes::Routes`.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Desired {
    /// Our own speaker; `None` while there can be none.
    pub speaker: Option<Speaker>,
    /// Desired neighbours, by address; none without a speaker.
    pub peers: BTreeMap<IpAddr, Arc<WantedNeighbour>>,
    /// Announced prefixes, with their attributes.
    pub announcements: BTreeMap<IpNet, Attributes>,
    /// Import and export policies; `None` before anything is known.
    pub policies: Option<Policies>,
    /// Sets, elements and rules of iptables; empty where `table` is not.
    pub sets: BTreeMap<SetName, SetSpec>,
    pub elements: BTreeMap<ElementKey, ()>,
    pub rules: BTreeMap<Piece, Rules>,
    /// Everything in our table of nf_tables.
    pub table: BTreeMap<Object, Content>,
    /// Rules in the host's own chains that let packets of pods pass, where it has these chains. With nftables only.
    pub passages: BTreeMap<Passage, Passing>,
    /// Rules that select a table by source address.
    pub source_rules: BTreeMap<RuleKey, ()>,
    /// The families of which such rules stay that are in the kernel, whatever their source: where packets are encrypted, and our own Node is gone or has no pod range
    /// of the family yet. Pods run on meanwhile, and what they send to other nodes would leave by the main table, unencrypted. A rule of a former range does no harm.
    pub keeps_source_rules: PerFamily<bool>,
    pub receive_ports: BTreeMap<ReceivePort, ()>,
    /// Packets are received by devices for single nodes (`ipip`, `fou`), whether or not a route leads through one yet.
    pub has_tunnels: bool,
    /// The devices of `vxlan`, which receive whether or not routes lead through them.
    pub overlay_devices: BTreeMap<LinkName, Vxlan>,
    /// The device of `wireguard`, and the other nodes on it.
    pub wireguard_devices: BTreeMap<LinkName, Wireguard>,
    pub wireguard_peers: BTreeMap<PeerKey, Peer>,
    pub settings: BTreeMap<Setting, WantedSetting>,
    pub bridge: Option<Bridge>,
    /// Desired content of the CNI file; `None` to leave it alone.
    pub cni: Option<Conf>,
    pub problems: BTreeSet<Problem>,
}

/// Parameters of our own speaker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Speaker {
    /// A change of these requires another speaker.
    pub own: Own,
    /// Our addresses: routes via ourselves are not used.
    pub addresses: BTreeSet<IpAddr>,
    /// Listening addresses. A change does not require another speaker.
    pub listen: BTreeSet<SocketAddr>,
}

/// Maximum number of next hops of a multipath route.
pub const SHARING: usize = 16;

/// Changes, by the keys of what changed; a flag where there are few.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct RouterChanges {
    /// The speaker's own parameters changed, or the speaker was added or removed.
    pub speaker: bool,
    /// Only the listening addresses changed.
    pub listen: bool,
    /// Only our own addresses changed.
    pub addresses: bool,
    pub policies: bool,
    pub peers: BTreeSet<IpAddr>,
    pub announcements: BTreeSet<IpNet>,
    pub elements: Vec<ElementKey>,
    pub sets: Vec<SetName>,
    pub rules: Vec<Piece>,
    pub table: Vec<Object>,
    pub passages: Vec<Passage>,
    /// Pod CIDRs of other nodes that were added or removed.
    pub pod_ranges: Vec<(IpNet, bool)>,
    pub routes: Vec<RouteKey>,
    /// The routes among them that this run has learned and that are not desired any more.
    pub withdrawn: Vec<RouteKey>,
    pub tunnels: Vec<LinkName>,
    pub overlay_devices: Vec<LinkName>,
    pub overlay_entries: Vec<EntryKey>,
    pub wireguard_devices: Vec<LinkName>,
    pub wireguard_peers: Vec<PeerKey>,
    pub source_rules: Vec<RuleKey>,
    pub receive_ports: Vec<ReceivePort>,
    pub settings: bool,
    pub bridge: bool,
    pub cni: bool,
    pub problems: bool,
    /// Number of Nodes recomputed.
    pub nodes_computed: usize,
    /// Number of Services recomputed.
    pub services_computed: usize,
}

impl Desired {
    /// Returns all orders for a new speaker: first its policies and our routes, then its neighbours, so that no session
    /// begins before it is known what may pass.
    pub fn all_orders(&self) -> Vec<Order> {
        let everything = RouterChanges {
            policies: true,
            peers: self.peers.keys().copied().collect(),
            announcements: self.announcements.keys().copied().collect(),
            ..RouterChanges::default()
        };
        self.orders(&everything)
    }

    /// Returns the neighbours with which sessions are expected.
    pub fn expected(&self) -> impl Iterator<Item = IpAddr> {
        self.peers.iter().filter(|(_, wanted)| wanted.expected).map(|(address, _)| *address)
    }

    /// Returns the speaker's orders for a change.
    pub fn orders(&self, changed: &RouterChanges) -> Vec<Order> {
        let mut orders = Vec::new();
        let speaker = self.speaker.as_ref().filter(|_| changed.addresses);
        orders.extend(speaker.map(|speaker| Order::OwnAddresses(speaker.addresses.clone())));
        // Before the policies, which do not name a neighbour any more that goes: they would take what was refused from it, and a reflector would pass it on for a moment.
        let gone = changed.peers.iter().filter(|address| !self.peers.contains_key(*address));
        orders.extend(gone.map(|address| Order::Remove(*address, Notification::new(Reason::DECONFIGURED))));
        orders.extend(self.policies.clone().filter(|_| changed.policies).map(Order::Policies));
        for prefix in &changed.announcements {
            orders.push(match self.announcements.get(prefix) {
                Some(attributes) => Order::Originate(*prefix, Box::new(attributes.clone())),
                None => Order::Retract(*prefix),
            });
        }
        let wanted = changed.peers.iter().filter_map(|address| self.peers.get(address));
        orders.extend(wanted.map(|wanted| Order::Want(Arc::clone(wanted))));
        orders
    }
}
