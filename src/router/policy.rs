//! The import and export policy of this node, as values of `bgp::policy`: which routes are accepted and passed on.
//!
//! Names of policies, sets and statements are kube-router's, because users look for them with `gobgp policy`; sets that
//! it lacks are named in the same style. A statement is named after its prefix set and its neighbour set.
//!
//! The result:
//!
//! | route | to nodes | to external peers |
//! |---|---|---|
//! | our pods | yes | with `--advertise-pod-cidr` |
//! | addresses of Services | never | yes |
//! | what was learned | by a reflector | pods of other nodes by a reflector, with `--advertise-pod-cidr` |
//!
//! | route | from ordinary nodes | from reflectors | from external peers |
//! |---|---|---|---|
//! | pods of that node | taken | taken | taken |
//! | pods of another node | never | taken; of clients alone where we are neither client nor reflector | taken |
//! | anything else | never | taken where we are client or reflector | taken |
//!
//! A kubelet may write the annotations of its own Node. So `kube-router.io/rr.server` of another Node counts for nothing more than what cannot be had without it, as long
//! as our own Node has neither `rr.server` nor `rr.client`: in a full mesh no node makes itself believed. Of which Node a neighbour is says the address of the session
//! ([`Nodes::ranges_by_peering`]). A neighbour that is no Node's was added with the GoBGP client, which may add anybody.
//!
//! Towards external peers: `kube-router.io/path-prepend.*`, `node.bgp.communities`, `--override-nexthop`, and `nexthopself` in
//! `kube-router.io/peers`.
//!
//! Never taken, from anybody: a default route, also in parts ([`Family::narrowest_default`]), an address of a Service that we announce, our
//! own pods' ranges, addresses of nodes, the networks of our links, cluster addresses (`--service-cluster-ip-range`), what lies
//! inside of any of these or inside of another node's pod range, and what `kube-router.io/node.bgp.customimportreject` names. Another
//! node's pod range itself is taken, also where it lies in the network of a link (a node of 10.0.0.1/8) or in the range of cluster
//! addresses: a cluster whose flag says less than the truth goes on working. It is not where it contains an address of a third node
//! (`plan::Refusal`). It comes from nodes, as the second table says, and from external peers, which is where it comes from in a cluster whose nodes peer with routers
//! alone, and never from a neighbour or as a route added with the GoBGP client. With `--node-routes=api` it comes from nobody, and from
//! nodes nothing does.
//!
//! A route of an external peer with the community GRACEFUL_SHUTDOWN gets LOCAL_PREF 0: it loses to any other one (RFC 8326 4).
//!
//! A reflector has the same policies as all others. In GoBGP a set without neighbours holds for all of them; here it holds for
//! none, and its statements do not exist.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::bgp::message::Community;
use crate::bgp::policy::{
    Change, CommunitySet, Condition, Decision, Lengths, Matching, NeighbourSet, OwnPrefixes, Policy, PrefixSet,
    Statement,
};
use crate::bgp::rib::{PeerId, Policies};
use crate::config::{NodeRoutes, RouterConfig};
use crate::model::Reflection;
use crate::net::{Family, PerFamily};

use super::identity::Identity;
use super::nodes::Nodes;

/// Names of the sets of prefixes in IPv4; those in IPv6 end in `v6`.
const PODS: &str = "podcidrdefinedset";
const INSIDE_PODS: &str = "podcidrinsidedefinedset";
const SERVICES: &str = "servicevipsdefinedset";
const CLUSTER_IPS: &str = "serviceclusteripdefinedset";
const DEFAULT_ROUTE: &str = "defaultroutedefinedset";
const REJECTED: &str = "customimportrejectdefinedset";
const NODE_PODS: &str = "nodepodcidrdefinedset";
const NODE_ADDRESSES: &str = "nodeipdefinedset";
const LINKS: &str = "linkdefinedset";
const CLIENT_PODS: &str = "clientpodcidrdefinedset";
/// Beginning of the name of the statements that take nothing from nodes.
const UNHEARD: &str = "unheard";
/// Beginning of the name of the statements that take nothing but pod ranges from nodes.
const OTHERS: &str = "others";

/// Inputs of the policies. A set is only rebuilt when its contents have changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sets {
    /// `podcidrdefinedset`: our pod CIDRs, exactly.
    pods: PerFamily<Arc<PrefixSet>>,
    /// `podcidrinsidedefinedset`: the pod CIDRs of all nodes, and all more specific prefixes.
    inside_pods: PerFamily<Arc<PrefixSet>>,
    /// `servicevipsdefinedset`: the prefixes announced for Services, exactly.
    services: PerFamily<Arc<PrefixSet>>,
    /// `serviceclusteripdefinedset`: the cluster IP range, and all more specific prefixes.
    cluster_ips: PerFamily<Arc<PrefixSet>>,
    /// `defaultroutedefinedset`: the default route, and parts of it.
    default_route: PerFamily<Arc<PrefixSet>>,
    /// `customimportrejectdefinedset`: the prefixes in the annotation, and all more specific ones.
    rejected: PerFamily<Arc<PrefixSet>>,
    /// `nodepodcidrdefinedset`: the pod CIDRs of other nodes that are not refused, exactly.
    node_pods: PerFamily<Arc<PrefixSet>>,
    /// The pod CIDRs that a reflector may bring: those of `node_pods`, or of clients alone.
    reflected: PerFamily<Arc<PrefixSet>>,
    /// The pod CIDRs that each node has, by the address of the session with it.
    by_node: Arc<OwnPrefixes>,
    /// `nodeipdefinedset`: addresses of nodes.
    node_addresses: PerFamily<Arc<PrefixSet>>,
    /// `linkdefinedset`: the networks of our links, and all more specific prefixes.
    links: PerFamily<Arc<PrefixSet>>,
    /// `iBGPpeerset`: without external peers.
    nodes: PerFamily<Arc<NeighbourSet>>,
    /// `iBGPreflectorset`: those of them that are route reflectors.
    reflectors: PerFamily<Arc<NeighbourSet>>,
    /// `iBGPordinaryset`: those of them that bring pod CIDRs and nothing else.
    ordinary: PerFamily<Arc<NeighbourSet>>,
    /// `externalpeerset`.
    external: PerFamily<Arc<NeighbourSet>>,
    /// `nexthopselfpeerset`: external peers whose next hop is our address, where that is not the same for all of them.
    own_next_hop: PerFamily<Arc<NeighbourSet>>,
    /// `allpeerset`: any neighbour, including those added with the GoBGP client.
    all: PerFamily<Arc<NeighbourSet>>,
    /// `operatorset`: routes added with the GoBGP client. Service addresses may be among them.
    operator: PerFamily<Arc<NeighbourSet>>,
}

/// Changes since the sets were built.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Stale {
    /// Our own node, our external peers, or anything else that is not one of the three below.
    pub own: bool,
    pub services: bool,
    pub nodes: bool,
}

/// Contents of the sets.
#[derive(Clone, Copy)]
pub struct Contents<'a> {
    pub own: &'a Identity,
    pub config: &'a RouterConfig,
    /// The prefixes announced for Services.
    pub services: &'a dyn Fn() -> Vec<IpNet>,
    pub nodes: &'a Nodes,
    /// The pod CIDRs of other nodes for which no route is accepted.
    pub refused: &'a dyn Fn(&IpNet) -> bool,
    pub external: &'a [IpAddr],
    /// Those of them that get our address as the next hop of everything.
    pub own_next_hop: &'a [IpAddr],
    /// The networks of our links.
    pub on_link: &'a [IpNet],
}

impl Stale {
    pub const ALL: Stale = Stale { own: true, services: true, nodes: true };

    pub fn any(self) -> bool {
        self.own || self.services || self.nodes
    }
}

impl Sets {
    pub fn new(contents: Contents<'_>) -> Sets {
        let (prefixes, neighbours) = (|| per_family(|_| Arc::default()), || per_family(|_| Arc::default()));
        let mut sets = Sets {
            pods: prefixes(),
            inside_pods: prefixes(),
            services: prefixes(),
            cluster_ips: prefixes(),
            default_route: per_family(default_route),
            rejected: prefixes(),
            node_pods: prefixes(),
            reflected: prefixes(),
            by_node: Arc::default(),
            node_addresses: prefixes(),
            links: prefixes(),
            nodes: neighbours(),
            reflectors: neighbours(),
            ordinary: neighbours(),
            external: neighbours(),
            own_next_hop: neighbours(),
            all: per_family(|family| {
                let prefixes = BTreeSet::from([everything(family)]);
                Arc::new(NeighbourSet { name: name("allpeerset", family), prefixes })
            }),
            operator: per_family(|family| {
                neighbours_of("operatorset", std::iter::once(PeerId::OPERATOR_ADDRESS), family)
            }),
        };
        sets.update(Stale::ALL, contents);
        sets
    }

    /// Rebuilds the sets whose contents have changed.
    pub fn update(&mut self, stale: Stale, contents: Contents<'_>) {
        let Contents { own, config, services, nodes, refused, external, own_next_hop, on_link } = contents;
        if stale.own {
            let rejected = &own.routing.import_reject;
            self.pods = per_family(|f| exactly(PODS, own.all_pod_cidrs(), f));
            self.cluster_ips = per_family(|f| inside(CLUSTER_IPS, config.ranges.cluster_ips.iter().copied(), f));
            self.rejected = per_family(|f| inside(REJECTED, rejected.iter().copied(), f));
            self.external = per_family(|f| neighbours_of("externalpeerset", external.iter().copied(), f));
            self.own_next_hop = per_family(|f| neighbours_of("nexthopselfpeerset", own_next_hop.iter().copied(), f));
        }
        if stale.services {
            let services = services();
            self.services = per_family(|f| exactly(SERVICES, services.iter().copied(), f));
        }
        if stale.nodes || stale.own {
            let (pods, addresses, peers) = (nodes.ranges(), nodes.addresses(), nodes.peering());
            let is_taken = |range: &&IpNet| !refused(range);
            self.node_pods = per_family(|f| exactly(NODE_PODS, pods.iter().filter(is_taken).copied(), f));
            self.by_node = Arc::new(nodes.ranges_by_peering().collect());
            let believes_reflectors = own.routing.reflection != Reflection::None;
            self.reflected = if believes_reflectors {
                self.node_pods.clone()
            } else {
                let clients = nodes.ranges_of_clients();
                per_family(|f| exactly(CLIENT_PODS, clients.iter().filter(is_taken).copied(), f))
            };
            let all_pods = || own.all_pod_cidrs().chain(pods.iter().copied());
            self.inside_pods = per_family(|f| inside(INSIDE_PODS, all_pods(), f));
            let hosts = || addresses.iter().map(|one| IpNet::from(*one));
            self.node_addresses = per_family(|f| exactly(NODE_ADDRESSES, hosts(), f));
            self.links = per_family(|f| inside(LINKS, on_link.iter().copied(), f));
            let has_sessions = config.internal_peers || config.answers_nodes;
            // A session with an address that is configured as an external peer's is that peer's, whichever Node lists the address as its own.
            let of_nodes = || peers.iter().filter(|peer| has_sessions && !external.contains(peer)).copied();
            self.nodes = per_family(|f| neighbours_of("iBGPpeerset", of_nodes(), f));
            let reflectors = || of_nodes().filter(|peer| nodes.is_reflector(peer));
            self.reflectors = per_family(|f| neighbours_of("iBGPreflectorset", reflectors(), f));
            let ordinary = || of_nodes().filter(|peer| !(believes_reflectors && nodes.is_reflector(peer)));
            self.ordinary = per_family(|f| neighbours_of("iBGPordinaryset", ordinary(), f));
        }
    }

    /// Returns both policies with these sets.
    pub fn policies(&self, own: &Identity, config: &RouterConfig) -> Policies {
        let (import, export) = (self.import(config), self.export(own, config));
        Policies { import: Arc::new(import), export: Arc::new(export) }
    }

    fn import(&self, config: &RouterConfig) -> Policy {
        let refused = [&self.services, &self.default_route, &self.rejected, &self.pods, &self.node_addresses];
        let external = self.external.iter().map(|(_, set)| set).filter(|set| !set.prefixes.is_empty());
        let mut statements: Vec<Statement> = external.map(leaving).collect();
        // Where Node objects say it, nobody else does.
        let by_objects = config.node_routes == NodeRoutes::Api;
        for (_, nodes) in self.nodes.iter().filter(|(_, nodes)| by_objects && !nodes.prefixes.is_empty()) {
            let name = format!("{UNHEARD}{}", nodes.name);
            statements.push(Statement { name, neighbours: Some(any(nodes)), ..Outcome::reject().statement() });
        }
        for family in Family::BOTH {
            let all = self.all.of(family);
            for set in refused {
                statements.extend(statements_of(set, all, &Outcome::reject()));
            }
            if !by_objects {
                let accept = |ranges, neighbours| statements_of(ranges, neighbours, &Outcome::accept());
                let of_nodes = accept(&self.node_pods, self.nodes.of(family)).into_iter();
                let own_prefixes = || Some(Arc::clone(&self.by_node));
                statements.extend(of_nodes.map(|one| Statement { own_prefixes: own_prefixes(), ..one }));
                statements.extend(accept(&self.reflected, self.reflectors.of(family)));
                statements.extend(accept(&self.node_pods, self.external.of(family)));
            }
            for set in [&self.inside_pods, &self.links] {
                statements.extend(statements_of(set, all, &Outcome::reject()));
            }
            statements.extend(statements_of(&self.cluster_ips, self.operator.of(family), &Outcome::accept()));
            statements.extend(statements_of(&self.cluster_ips, all, &Outcome::reject()));
            // Behind those that say more exactly why a route is refused.
            let ordinary = self.ordinary.of(family);
            if !by_objects && !ordinary.prefixes.is_empty() {
                let name = format!("{OTHERS}{}", ordinary.name);
                statements.push(Statement { name, neighbours: Some(any(ordinary)), ..Outcome::reject().statement() });
            }
        }
        Policy { name: "kube_router_import1".to_owned(), statements, otherwise: Decision::Accept }
    }

    fn export(&self, own: &Identity, config: &RouterConfig) -> Policy {
        let mut statements = Vec::new();
        for family in Family::BOTH {
            let nodes = self.nodes.of(family);
            statements.extend(statements_of(&self.pods, nodes, &Outcome::accept()));
            if own.is_reflector() && !nodes.prefixes.is_empty() {
                statements.extend(statements_of(&self.services, nodes, &Outcome::reject()));
                statements.push(Statement {
                    name: format!("reflected{}", nodes.name),
                    neighbours: Some(any(nodes)),
                    ..Outcome::accept().statement()
                });
            }
        }
        for family in Family::BOTH {
            let external = self.external.of(family);
            let own_next_hop = self.own_next_hop.of(family);
            let are_alike = own_next_hop.prefixes == external.prefixes;
            let outwards = outwards(own, are_alike);
            if !are_alike && !own_next_hop.prefixes.is_empty() {
                statements.push(Statement {
                    name: format!("nexthopself{}", own_next_hop.name),
                    neighbours: Some(any(own_next_hop)),
                    changes: vec![Change::NextHopSelf],
                    ..Statement::default()
                });
            }
            statements.extend(statements_of(&self.services, external, &outwards));
            if config.advertise.pod_cidrs {
                statements.extend(statements_of(&self.pods, external, &outwards));
            }
            if config.advertise.pod_cidrs && own.is_reflector() {
                statements.extend(statements_of(&self.node_pods, external, &outwards));
            }
        }
        Policy { name: "kube_router_export1".to_owned(), statements, otherwise: Decision::Reject }
    }
}

/// Actions of a statement that matches.
struct Outcome {
    decision: Decision,
    changes: Vec<Change>,
}

impl Outcome {
    fn accept() -> Outcome {
        Outcome { decision: Decision::Accept, changes: Vec::new() }
    }

    fn reject() -> Outcome {
        Outcome { decision: Decision::Reject, changes: Vec::new() }
    }

    fn statement(&self) -> Statement {
        Statement { decision: Some(self.decision), changes: self.changes.clone(), ..Statement::default() }
    }
}

/// Returns the statement by which routes that external peers are about to withdraw lose to all others (RFC 8326 4).
fn leaving(external: &Arc<NeighbourSet>) -> Statement {
    let communities = BTreeSet::from([Community::GRACEFUL_SHUTDOWN]);
    let set = Arc::new(CommunitySet { name: "gracefulshutdownset".to_owned(), communities });
    Statement {
        name: format!("{}{}", set.name, external.name),
        neighbours: Some(any(external)),
        communities: Some(any(&set)),
        changes: vec![Change::LocalPref(0)],
        ..Statement::default()
    }
}

/// Returns the changes to all routes sent to external peers. `own_next_hop`: all of them get our address as the next hop.
fn outwards(own: &Identity, own_next_hop: bool) -> Outcome {
    let routing = &own.routing;
    let mut changes = Vec::new();
    changes.extend(routing.prepend.map(|prepend| Change::Prepend { asn: prepend.asn, times: prepend.times }));
    if own_next_hop {
        changes.push(Change::NextHopSelf);
    }
    if !routing.communities.is_empty() {
        changes.push(Change::AddCommunities(routing.communities.iter().copied().map(Community).collect()));
    }
    Outcome { changes, ..Outcome::accept() }
}

/// Returns the meaning of a set of prefixes, by its name: the words that complete *the prefix is*.
pub fn meaning(set: &str) -> Option<&'static str> {
    Some(match set.strip_suffix("v6").unwrap_or(set) {
        PODS => "a pod range of this node",
        INSIDE_PODS => "inside of a node's pod range",
        SERVICES => "an address of a Service that this node announces",
        CLUSTER_IPS => "inside of the range of cluster IPs",
        DEFAULT_ROUTE => "a default route or a part of one",
        REJECTED => "named by kube-router.io/node.bgp.customimportreject of this Node",
        NODE_PODS => "the pod range of another node",
        CLIENT_PODS => "the pod range of a client of a reflector",
        NODE_ADDRESSES => "an address of a node",
        LINKS => "inside of the network of a link of this host",
        _ => return None,
    })
}

/// Returns the meaning of a statement about all prefixes of some neighbours, by its name.
pub fn meaning_for_neighbours(statement: &str) -> Option<&'static str> {
    [(UNHEARD, "nothing is taken from nodes"), (OTHERS, "a node brings its own pod ranges and nothing else")]
        .into_iter()
        .find_map(|(beginning, meaning)| statement.starts_with(beginning).then_some(meaning))
}

/// Returns one statement for each family of prefixes in which both sets are not empty.
fn statements_of(
    prefixes: &PerFamily<Arc<PrefixSet>>,
    neighbours: &Arc<NeighbourSet>,
    outcome: &Outcome,
) -> Vec<Statement> {
    let sets = prefixes.iter().filter(|(_, set)| !set.is_empty() && !neighbours.prefixes.is_empty());
    let statement = |(_, set): (Family, &Arc<PrefixSet>)| Statement {
        name: format!("{}{}", set.name, neighbours.name),
        prefixes: Some(any(set)),
        neighbours: Some(any(neighbours)),
        ..outcome.statement()
    };
    sets.map(statement).collect()
}

fn any<S>(set: &Arc<S>) -> Condition<S> {
    Condition { set: set.clone(), matching: Matching::Any }
}

fn per_family<T>(make: impl FnMut(Family) -> T) -> PerFamily<T> {
    PerFamily::from_fn(make)
}

/// Returns the default route, whole and in parts.
fn default_route(family: Family) -> Arc<PrefixSet> {
    let mut set = PrefixSet::new(&name(DEFAULT_ROUTE, family));
    set.insert(everything(family), Lengths { least: 0, most: family.narrowest_default() - 1 });
    Arc::new(set)
}

fn everything(family: Family) -> IpNet {
    let first = match family {
        Family::V4 => IpAddr::from([0; 4]),
        Family::V6 => IpAddr::from([0; 16]),
    };
    IpNet::new(first, 0).expect("0 is a prefix length of both families")
}

/// Returns the name of a set in one family.
fn name(base: &str, family: Family) -> String {
    match family {
        Family::V4 => base.to_owned(),
        Family::V6 => format!("{base}v6"),
    }
}

fn exactly(base: &str, prefixes: impl Iterator<Item = IpNet>, family: Family) -> Arc<PrefixSet> {
    let mut set = PrefixSet::new(&name(base, family));
    prefixes.filter(|prefix| Family::from(*prefix) == family).for_each(|prefix| set.insert_exactly(prefix));
    Arc::new(set)
}

fn inside(base: &str, prefixes: impl Iterator<Item = IpNet>, family: Family) -> Arc<PrefixSet> {
    let mut set = PrefixSet::new(&name(base, family));
    for prefix in prefixes.filter(|prefix| Family::from(*prefix) == family) {
        set.insert(prefix, Lengths { least: prefix.prefix_len(), most: family.host_bits() });
    }
    Arc::new(set)
}

fn neighbours_of(base: &str, addresses: impl Iterator<Item = IpAddr>, family: Family) -> Arc<NeighbourSet> {
    let of_family = addresses.filter(|address| Family::from(*address) == family);
    let prefixes: BTreeSet<IpNet> = of_family.map(IpNet::from).collect();
    Arc::new(NeighbourSet { name: name(base, family), prefixes })
}

#[cfg(test)]
mod tests;
