//! The desired state of the router, kept up to date at the cost of what changed.
//!
//! Inputs are the World ([`Plan::update`]), the routes learned by the speaker ([`Plan::learn`]) and the passwords in
//! files ([`Plan::set_passwords`], [`Plan::set_file_passwords`]). Every Node and every Service has a part; a change recomputes the parts that it
//! affects. A change of our own node recomputes all of them. After any history the plan equals the one computed at once
//! from the newest inputs and the tunnels that there are (`tunnel_names`); `tests/properties.rs` verifies that with random histories.
//!
//! Nothing is desired of an unknown kind of objects (`model::Authority::Nothing`): a half-known cluster would look like
//! one without nodes. No speaker runs before nodes and Services are known ([`Plan::go_without_services`]): its first announcements count as all.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use compact_str::CompactString;
use ipnet::IpNet;

use crate::bgp::message::Attributes;
use crate::bgp::rib::RouteChange;
use crate::bgp::session::Local;
use crate::bgp::speaker::WantedNeighbour;
use crate::config::{RouterConfig, ServiceRanges};
use crate::kernel::link::LinkName;
use crate::kernel::tunnel::Tunnel;
use crate::link_neighbours::Standings;
use crate::model::{Endpoints, ObjectName, OnLink, World};
use crate::net::{Family, Password, PerFamily};

use super::advertise::{Announcer, announced};
use super::claims::Claims;
use super::desired::{Desired, RouterChanges};
use super::drain::Stage;
use super::forward::AnswersBy;
use super::identity::Identity;
use super::names::Set;
use super::nodes::{Around, Nodes};
use super::password_files::FilePasswords;
use super::policy::{Contents, Sets, Stale};
use super::problem::{About, Problem};
use super::routes::Routes;
use super::{cni, drain, mesh, mtu};

mod draining;
mod external;
mod filter;
mod inspection;
mod known;
mod links;
mod node_routes;
mod overlay;
mod packing;
mod pod_ranges;
mod protection;
mod speaker;
mod way;
mod wireguard;

pub use inspection::PeerSource;
use known::Known;
pub use pod_ranges::{Circumstances, PATIENCE, Refusal, Unreached};
pub use way::{Masquerade, Owner, TunnelEnds};
pub use wireguard::OwnKeys;

/// The desired state, with what is needed to update it by parts.
pub struct Plan {
    config: Arc<RouterConfig>,
    /// The ranges of the flags.
    flags: ServiceRanges,
    families: PerFamily<bool>,
    answers_by: AnswersBy,
    /// Passwords from the password file, if there is one.
    passwords: Vec<Password>,
    /// Passwords from files with one each.
    file_passwords: FilePasswords,
    known: Known,
    goes_without_services: bool,
    /// Addresses of Services are not announced yet.
    holds_services: bool,
    /// This node waits for the routes of other nodes ([`cut_off`](super::cut_off)), with addresses whose traffic policy says so.
    holds_for_nodes: bool,
    own: Identity,
    /// The networks of the host's links, and the link-local ones of links with a router.
    on_link: Vec<OnLink>,
    links: Standings,
    desired: Desired,
    routes: Routes,
    nodes: Nodes,
    peers: Claims<IpAddr, PeerOwner, Arc<WantedNeighbour>>,
    /// The external peers that are claimed.
    external: Vec<IpAddr>,
    /// Those of them that get our address as the next hop of everything.
    own_next_hop: Vec<IpAddr>,
    /// External peers that are left out because their password is not known yet.
    without_password: BTreeSet<IpAddr>,
    external_problems: Vec<Problem>,
    /// Announced addresses of each Service.
    services: HashMap<ObjectName, Vec<IpAddr>>,
    announced: Claims<IpAddr, ObjectName, ()>,
    /// Service addresses that are node addresses.
    refused_services: BTreeSet<IpAddr>,
    /// How the addresses of Services stand with routers outside.
    stage: Stage,
    pod_ranges: pod_ranges::PodRanges,
    /// Prefixes whose next hops Node objects may give otherwise than at the last settling (`--node-routes=api`).
    given_otherwise: BTreeSet<IpNet>,
    kept: node_routes::Kept,
    wireguard: wireguard::Peers,
    /// The addresses of this host's links.
    here: BTreeSet<IpAddr>,
    sizes: BTreeMap<(Set, Family), usize>,
    sets: Option<Sets>,
    stale: Stale,
}

/// Claimant of a neighbour. The administrator's configuration precedes what follows from a Node, and of two Nodes the older one comes first.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum PeerOwner {
    External,
    /// When the Node was created, in seconds since 1970, and its name.
    Node(i64, CompactString),
}

impl Plan {
    pub fn new(config: Arc<RouterConfig>, families: PerFamily<bool>) -> Plan {
        Plan {
            flags: config.ranges.clone(),
            config,
            families,
            answers_by: AnswersBy::default(),
            passwords: Vec::new(),
            file_passwords: FilePasswords::default(),
            known: Known::default(),
            goes_without_services: false,
            holds_services: false,
            holds_for_nodes: false,
            own: Identity::default(),
            on_link: Vec::new(),
            links: Standings::new(),
            desired: Desired::default(),
            routes: Routes::default(),
            nodes: Nodes::default(),
            peers: Claims::default(),
            external: Vec::new(),
            own_next_hop: Vec::new(),
            without_password: BTreeSet::new(),
            external_problems: Vec::new(),
            services: HashMap::new(),
            announced: Claims::default(),
            refused_services: BTreeSet::new(),
            stage: Stage::default(),
            pod_ranges: pod_ranges::PodRanges::default(),
            given_otherwise: BTreeSet::new(),
            kept: node_routes::Kept::new(),
            wireguard: wireguard::Peers::default(),
            here: BTreeSet::new(),
            sizes: BTreeMap::new(),
            sets: None,
            stale: Stale::default(),
        }
    }

    /// The same, with another way by which the host's own chain knows answers. To be called before the first World.
    pub fn with_answers_by(self, answers_by: AnswersBy) -> Plan {
        Plan { answers_by, ..self }
    }

    /// Gives tunnels the names that they have in the kernel.
    pub fn with_tunnels(mut self, found: BTreeMap<LinkName, Tunnel>) -> Plan {
        self.nodes.adopt_tunnels(found.into_iter().map(|(name, tunnel)| (name, tunnel.remote)).collect());
        self
    }

    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// Returns the desired routes and tunnels.
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    pub fn own(&self) -> &Identity {
        &self.own
    }

    /// Returns whether another node has this address.
    pub fn is_node(&self, address: IpAddr) -> bool {
        self.nodes.other(&self.own.name, address).is_some()
    }

    /// Updates the plan from a newer World; returns what changed.
    pub fn update(&mut self, world: &World) -> RouterChanges {
        let mut changed = RouterChanges::default();
        let older = std::mem::replace(&mut self.known, Known::of(world));
        let node = self.known.nodes.get(&world.host.node_name);
        let own = Identity::new(&world.host, node.map(|node| &**node), &self.config, self.families);
        let announces = |plan: &Plan| (plan.own.name.clone(), plan.own.addresses);
        let announced_before = announces(self);
        let knows_more = (older.has_nodes, older.has_services) != (self.known.has_nodes, self.known.has_services);
        let is_other = own != self.own || knows_more || self.sets.is_none();
        // An address of ours is no other node's, even if another Node lists it.
        let addresses = |known: &Known| known.nodes.get(&world.host.node_name).map(|node| node.addresses.clone());
        let on_link = links::with_links(&world.host.on_link, &self.links);
        let moved = on_link != self.on_link || addresses(&older) != addresses(&self.known);
        self.own = own;
        self.on_link = on_link;
        let ranges = self.flags.in_cluster(world.cluster.service_ranges());
        let ranges_move = RouterConfig::follow(&mut self.config, ranges);
        self.stale.own |= ranges_move;
        if is_other {
            self.replace_own(&mut changed);
        }
        self.note_host(&world.host);
        self.update_nodes(&older, is_other, &mut changed);
        self.update_services(&older, ranges_move || announces(self) != announced_before, &mut changed);
        if is_other || moved {
            self.stale = Stale::ALL;
            self.routes.look_at_all_again();
            self.mark_all_peers();
        }
        self.settle(&mut changed);
        changed
    }

    /// Updates the plan from routes learned by the speaker.
    pub fn learn(&mut self, changes: &[RouteChange]) -> RouterChanges {
        let mut changed = RouterChanges::default();
        self.routes.learn(changes);
        self.settle_routes(&mut changed);
        changed
    }

    /// Marks learned routes as stale when the speaker is replaced: they stay until [`Plan::drop_stale_routes`].
    pub fn keep_routes_as_stale(&mut self) -> bool {
        self.routes.mark_stale()
    }

    pub fn has_stale_routes(&self) -> bool {
        self.routes.has_stale()
    }

    /// Drops stale routes: learned routes are complete.
    pub fn drop_stale_routes(&mut self) -> RouterChanges {
        let mut changed = RouterChanges::default();
        self.routes.drop_stale();
        self.settle_routes(&mut changed);
        changed
    }

    /// Sets the passwords of the password file (`external_peers::passwords`).
    pub fn set_passwords(&mut self, passwords: Vec<Password>) -> RouterChanges {
        let mut changed = RouterChanges::default();
        self.passwords = passwords;
        self.update_external_peers(&mut changed);
        self.settle(&mut changed);
        changed
    }

    /// Returns our BGP parameters; `None` while there can be no speaker.
    fn local(&self) -> Option<Local> {
        let local = Local { asn: self.own.asn?, identifier: self.own.router_id? };
        self.may_speak().then_some(local)
    }

    /// Updates what follows from our own node alone. Called when it has changed.
    fn replace_own(&mut self, changed: &mut RouterChanges) {
        self.replace_speaker(changed);
        self.replace_filter(changed);
        self.replace_overlay(changed);
        let families = self.own.capable();
        self.replace_settings(changed);
        let mtu = mtu::pods(self.own.mtus, &self.config, families);
        let bridge = self.known.has_nodes.then_some(crate::kernel::bridge::Bridge { mtu, up: true });
        changed.bridge |= std::mem::replace(&mut self.desired.bridge, bridge) != bridge;
        let is_kept = self.config.cni_file.is_some() && self.known.has_nodes;
        let conf = is_kept.then(|| cni::Conf::new(self.own.all_pod_cidrs().collect(), mtu, &self.config));
        changed.cni |= std::mem::replace(&mut self.desired.cni, conf.clone()) != conf;
        for range in self.own.all_pod_cidrs().collect::<Vec<_>>() {
            self.put_announcement(range, changed);
        }
        for prefix in self.desired.announcements.keys().copied().collect::<Vec<_>>() {
            self.put_announcement(prefix, changed);
        }
        self.update_external_peers(changed);
    }

    fn put_peer(
        &mut self,
        address: IpAddr,
        owner: &PeerOwner,
        wanted: Option<Arc<WantedNeighbour>>,
        changed: &mut RouterChanges,
    ) {
        if self.peers.put(&address, owner, wanted) {
            match self.peers.first(&address) {
                Some(wanted) => self.desired.peers.insert(address, Arc::clone(wanted)),
                None => self.desired.peers.remove(&address),
            };
            changed.peers.insert(address);
        }
    }

    fn update_nodes(&mut self, older: &Known, all: bool, changed: &mut RouterChanges) {
        let known = self.known.nodes.clone();
        let mut names: BTreeSet<CompactString> = match all {
            true => known.iter().chain(older.nodes.iter()).map(|(name, _)| name.clone()).collect(),
            false => known.changes_since(&older.nodes).map(|change| change.key().clone()).collect(),
        };
        let local = self.local();
        let password = &self.mesh_password().clone();
        let mut again = BTreeSet::new();
        while let Some(name) = &names.pop_first().or_else(|| again.pop_first()) {
            changed.nodes_computed += 1;
            self.pod_ranges.mark(name, &self.nodes);
            self.mark_given(name);
            self.mark_peer(name);
            let around = Around { own: &self.own, config: &self.config, local, password };
            let news = self.nodes.update(name, known.get(name).map(|node| &**node), around);
            self.mark_given(name);
            self.mark_peer(name);
            self.pod_ranges.mark(name, &self.nodes);
            self.stale.nodes |= news.policies;
            again.extend(news.again);
            self.wireguard.note_ranges(&news.ranges);
            changed.pod_ranges.extend(news.ranges);
            let address = news.wanted.as_ref().map(|wanted| wanted.address);
            let created = known.get(name).map_or(0, |node| node.created);
            let owner = PeerOwner::Node(created, name.clone());
            if let Some((before, at)) = news.before.filter(|before| (Some(before.0), before.1) != (address, created)) {
                self.put_peer(before, &PeerOwner::Node(at, name.clone()), None, changed);
            }
            if let Some(wanted) = news.wanted {
                self.put_peer(wanted.address, &owner, Some(wanted), changed);
            }
            for key in news.elements {
                self.put_element(key, changed);
            }
            news.ends.into_iter().for_each(|end| self.routes.look_again(end));
            for address in news.addresses {
                self.routes.look_again(address);
                self.given_otherwise.insert(Family::host_prefix(address));
                self.put_announcement(Family::host_prefix(address), changed);
            }
        }
    }

    fn update_services(&mut self, older: &Known, all: bool, changed: &mut RouterChanges) {
        let known = self.known.clone();
        let (services, endpoints) = (&known.services, &known.endpoints);
        let names: BTreeSet<&ObjectName> = match all {
            true => services.iter().chain(older.services.iter()).map(|(name, _)| name).collect(),
            false => {
                let of_services = services.changes_since(&older.services).map(|change| change.key());
                let of_endpoints = endpoints.changes_since(&older.endpoints).map(|change| change.key());
                of_services.chain(of_endpoints).collect()
            }
        };
        let none = Endpoints::default();
        for name in names {
            changed.services_computed += 1;
            let announcer = Announcer { name: &self.own.name, families: self.own.capable() };
            let its = endpoints.get(name).map_or(&none, |endpoints| &**endpoints);
            let service = services.get(name);
            let new = service.map(|service| announced(service, its, announcer, &self.config)).unwrap_or_default();
            let old = match new.is_empty() {
                true => self.services.remove(name),
                false => self.services.insert(name.clone(), new.clone()),
            };
            let old = old.unwrap_or_default();
            for address in old.iter().chain(&new).copied().collect::<BTreeSet<_>>() {
                let wanted = new.contains(&address).then_some(());
                let is_new = self.announced.put(&address, name, wanted);
                self.stale.services |= is_new;
                if is_new || self.holds_for_nodes {
                    self.put_announcement(Family::host_prefix(address), changed);
                }
            }
        }
    }

    /// Updates one announcement: of our pods, or of a Service.
    fn put_announcement(&mut self, prefix: IpNet, changed: &mut RouterChanges) {
        let (family, address) = (Family::from(prefix), prefix.addr());
        let is_service = prefix.prefix_len() == family.host_bits() && self.announced.contains(&address);
        // Announcing a node's own address would divert that node's traffic.
        let is_node = is_service && self.nodes.has(address);
        let all = &mut self.refused_services;
        let refused = if is_node { all.insert(address) } else { all.remove(&address) };
        let is_ours = self.own.pod_cidrs.of(family).contains(&prefix);
        let wanted = (is_ours || is_service && !is_node).then(|| self.own_next_hop(family)).flatten();
        let wanted = wanted.map(Attributes::local).and_then(|wanted| match self.stage {
            _ if !is_ours && (self.holds_services || self.waits_for_nodes(address)) => None,
            Stage::Leaving if !is_ours => Some(drain::leaving(wanted)),
            Stage::Withdrawn if !is_ours => None,
            Stage::Announced | Stage::Leaving | Stage::Withdrawn => Some(wanted),
        });
        changed.problems |= refused;
        self.stale.services |= refused;
        if self.desired.announcements.get(&prefix) == wanted.as_ref() {
            return;
        }
        match wanted {
            Some(wanted) => self.desired.announcements.insert(prefix, wanted),
            None => self.desired.announcements.remove(&prefix),
        };
        changed.announcements.insert(prefix);
        self.given_otherwise.insert(prefix);
    }

    /// Updates what follows from everything together.
    fn settle(&mut self, changed: &mut RouterChanges) {
        self.settle_policies(changed);
        self.settle_routes(changed);
        self.resize_sets(changed);
        self.settle_problems(changed);
    }

    fn settle_problems(&mut self, changed: &mut RouterChanges) {
        let mut problems: BTreeSet<Problem> = BTreeSet::new();
        if self.known.has_nodes {
            problems.extend(self.own.problems(&self.config));
            problems.extend(self.nodes.problems(&self.own));
            problems.extend(self.problems_of_ranges());
            problems.extend(self.problems_of_walls());
            if self.nodes.lack_password() {
                problems.insert(Problem::new(About::OtherNodes, mesh::NO_PASSWORD));
            }
            problems.extend(self.external_problems.iter().cloned());
            problems.extend(self.refused_services.iter().map(|address| {
                Problem::new(About::ServiceAddress(*address), "it is an address of a node; it is not announced")
            }));
        }
        changed.problems |= problems != self.desired.problems;
        self.desired.problems = problems;
    }

    fn settle_policies(&mut self, changed: &mut RouterChanges) {
        let stale = std::mem::take(&mut self.stale);
        if !stale.any() {
            return;
        }
        if stale.nodes || stale.own {
            let differs = self.pod_ranges.refuse(&self.own, &self.nodes, self.config.overlay);
            self.mark_ranges(&differs);
            self.given_otherwise.extend(differs);
        }
        let services = || draining::prefixes(&self.own, &self.announced, &self.refused_services);
        let on_link: Vec<IpNet> = self.own.networks.iter().map(|network| network.prefix).collect();
        let contents = Contents {
            own: &self.own,
            config: &self.config,
            services: &services,
            nodes: &self.nodes,
            refused: &|range| self.pod_ranges.is_refused(range),
            external: &self.external,
            own_next_hop: &self.own_next_hop,
            on_link: &on_link,
        };
        let mut sets = self.sets.take();
        match &mut sets {
            Some(sets) => sets.update(stale, contents),
            None => sets = Some(Sets::new(contents)),
        }
        let policies = sets.as_ref().map(|sets| sets.policies(&self.own, &self.config));
        self.sets = sets;
        changed.policies |= policies != self.desired.policies;
        self.desired.policies = policies;
    }

    fn settle_routes(&mut self, changed: &mut RouterChanges) {
        self.settle_given();
        self.settle_second(changed);
        self.pod_ranges.mark_routes(self.routes.dirty(), &self.nodes);
        self.mark_peers_of_routes();
        let mut routes = std::mem::take(&mut self.routes);
        let mut settled = self.in_place(|place| routes.settle(place));
        self.routes = routes;
        self.mark_peers_at(&settled.remotes);
        self.mark_peers_with(&settled.moved);
        if self.settle_walls(&mut settled) {
            self.settle_problems(changed);
        }
        self.settle_peers(changed);
        self.settle_settings(&settled.tunnels, changed);
        changed.routes.extend(settled.routes);
        self.keep_some(settled.withdrawn, changed);
        changed.tunnels.extend(settled.tunnels);
        changed.overlay_entries.extend(settled.entries);
    }
}

/// Replaces a map; returns the keys in which the two differ.
fn replace<K: Ord + Clone, V: PartialEq>(map: &mut BTreeMap<K, V>, new: BTreeMap<K, V>) -> Vec<K> {
    let old = std::mem::replace(map, new);
    let differs = |key: &&K| old.get(*key) != map.get(*key);
    old.keys().chain(map.keys()).filter(differs).cloned().collect::<BTreeSet<_>>().into_iter().collect()
}

#[cfg(test)]
mod tests;
