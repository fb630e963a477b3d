//! What the router wants: of the speaker, and of the kernel.
//!
//! Sorted maps in the words of `bgp` and of `kernel`, so that comparing needs no others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::bgp::message::{Attributes, Notification, Reason};
use crate::bgp::rib::{Own, Policies};
use crate::bgp::speaker::{Order, Wanted};
use crate::kernel::bridge::Bridge;
use crate::kernel::ipset::{ElementKey, SetName, SetSpec};
use crate::kernel::iptables::{Piece, Rules};
use crate::kernel::link::LinkName;
use crate::kernel::route::RouteKey;
use crate::kernel::rule::RuleKey;
use crate::kernel::sysctl::{Setting, Wanted as WantedSetting};
use crate::kernel::tunnel::ReceivePort;

use super::cni::Conf;
use super::problem::Problem;

/// Everything that is wanted, but for routes and tunnels, which are in `routes::Routes`.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Desired {
    /// Ourselves as a speaker; `None` while there can be none.
    pub speaker: Option<Speaker>,
    /// Neighbours, by their addresses; none without a speaker.
    pub peers: BTreeMap<IpAddr, Wanted>,
    /// What we announce.
    pub announcements: BTreeMap<IpNet, Attributes>,
    /// What is taken and passed on; `None` before anything is known.
    pub policies: Option<Policies>,
    pub sets: BTreeMap<SetName, SetSpec>,
    pub elements: BTreeMap<ElementKey, ()>,
    pub rules: BTreeMap<Piece, Rules>,
    /// Rules that choose a table by the source.
    pub source_rules: BTreeMap<RuleKey, ()>,
    pub receive_ports: BTreeMap<ReceivePort, ()>,
    pub settings: BTreeMap<Setting, WantedSetting>,
    pub bridge: Option<Bridge>,
    /// What the CNI file is to say; `None` to leave it alone.
    pub cni: Option<Conf>,
    pub problems: BTreeSet<Problem>,
}

/// Ourselves as a speaker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Speaker {
    /// When these numbers change, another speaker has to take its place.
    pub own: Own,
    /// Our addresses: routes that lead to ourselves are not used.
    pub addresses: BTreeSet<IpAddr>,
    /// Where it listens. Other addresses need no other speaker.
    pub listen: BTreeSet<SocketAddr>,
}

/// Among how many next hops traffic is shared at the most.
pub const SHARING: usize = 16;

/// What changed, by the keys of what changed; a switch where there are few.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Changed {
    /// The speaker's own numbers are other ones, or it comes or goes.
    pub speaker: bool,
    /// Only where it listens.
    pub listen: bool,
    /// Only which addresses are ours.
    pub addresses: bool,
    pub policies: bool,
    pub peers: BTreeSet<IpAddr>,
    pub announcements: BTreeSet<IpNet>,
    pub elements: Vec<ElementKey>,
    pub sets: Vec<SetName>,
    pub rules: Vec<Piece>,
    /// Pod ranges of other nodes that came, or went.
    pub pod_ranges: Vec<(IpNet, bool)>,
    pub routes: Vec<RouteKey>,
    pub tunnels: Vec<LinkName>,
    pub source_rules: Vec<RuleKey>,
    pub receive_ports: Vec<ReceivePort>,
    pub settings: bool,
    pub bridge: bool,
    pub cni: bool,
    pub problems: bool,
    /// How many Nodes were looked at.
    pub nodes_computed: usize,
    /// How many Services were looked at.
    pub services_computed: usize,
}

impl Desired {
    /// What a speaker is told that has been told nothing yet: first its policies and our routes, then its neighbours, so that no
    /// session begins before it is known what may pass.
    pub fn all_orders(&self) -> Vec<Order> {
        let everything = Changed {
            policies: true,
            peers: self.peers.keys().copied().collect(),
            announcements: self.announcements.keys().copied().collect(),
            ..Changed::default()
        };
        self.orders(&everything)
    }

    /// What a speaker is told of a change.
    pub fn orders(&self, changed: &Changed) -> Vec<Order> {
        let mut orders = Vec::new();
        let speaker = self.speaker.as_ref().filter(|_| changed.addresses);
        orders.extend(speaker.map(|speaker| Order::OwnAddresses(speaker.addresses.clone())));
        orders.extend(self.policies.clone().filter(|_| changed.policies).map(Order::Policies));
        for prefix in &changed.announcements {
            orders.push(match self.announcements.get(prefix) {
                Some(attributes) => Order::Originate(*prefix, Box::new(attributes.clone())),
                None => Order::Retract(*prefix),
            });
        }
        for address in &changed.peers {
            orders.push(match self.peers.get(address) {
                Some(wanted) => Order::Want(Box::new(wanted.clone())),
                None => Order::Remove(*address, Notification::new(Reason::DECONFIGURED)),
            });
        }
        orders
    }
}
