//! BGP as it stands, for who asks: neighbours, and every route with the rule or the step that decided about it; and the way to an address ([`way`]).
//!
//! `sluice bgp peers` and `sluice bgp routes`. Three know of it: the speaker (sessions, policies, selection, advertisement), the
//! router's plan (where a neighbour comes from, which way a packet takes) and its mirrors (the kernel). Each is asked in its own loop, in
//! portions ([`serve`]), and answers with values; [`peers_text`], [`routes_text`] and the functions for JSON make the answer elsewhere.
//!
//! Nothing is decided here: import, selection, export, and the path to a next hop are the functions that decided (`bgp::rib`,
//! `router::routes`), asked again.

mod json;
mod peers;
mod routes;
pub mod serve;
#[cfg(test)]
mod tests;
pub mod way;
mod words;

use std::collections::BTreeMap;
use std::net::IpAddr;

use compact_str::CompactString;
use ipnet::IpNet;

use crate::bgp::rib::{PeerId, PrefixState};
use crate::bgp::speaker::{NeighbourState, PrefixQuery, SpeakerState};
use crate::config::NodeRoutes;
use crate::model::Authority;
use crate::net::{LinkNames, PerFamily};

use super::apply::RouteInKernel;
use super::drain::Outside;
use super::plan::PeerSource;
use super::problem::Problem;
use super::routes::NoWay;

pub use self::json::{peers_json, routes_json};
pub use self::peers::peers_text;
pub use self::routes::routes_text;

/// The neighbours of this node.
#[derive(Debug)]
pub struct Peers {
    /// `None` where no speaker runs.
    pub speaker: Option<SpeakerState>,
    pub neighbours: Vec<NeighbourState>,
    /// Routes advertised to each neighbour with a session; `None` where counting them would have taken too long.
    pub announced: Option<BTreeMap<PeerId, PerFamily<u32>>>,
    pub known: PeersKnown,
}

/// Neighbours, as the router knows them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeersKnown {
    /// How far the cluster is known.
    pub authority: Authority,
    /// Where routes to pods of other nodes come from.
    pub node_routes: NodeRoutes,
    /// How service addresses stand with routers outside.
    pub outside: Outside,
    /// Origins of the desired neighbours. The speaker's others were added with the GoBGP client.
    pub sources: BTreeMap<IpAddr, PeerSource>,
    /// Names of links with neighbours.
    pub links: LinkNames,
    /// Why BGP does not run, or why there is no session with a neighbour.
    pub problems: Vec<Problem>,
}

/// The routes that a question is about.
#[derive(Debug)]
pub struct Routes {
    pub question: Question,
    pub is_restarting: bool,
    pub prefixes: Vec<(PrefixState, InKernel)>,
    /// Number of further prefixes.
    pub left_off: usize,
    pub addresses: BTreeMap<PeerId, IpAddr>,
    pub known: PeersKnown,
}

/// Kernel route of one prefix, and the paths to its next hops.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InKernel {
    pub route: RouteInKernel,
    /// Next hops of the learned route, with the reason where there is no path to one; none of a route that the router has not
    /// learned, as one of our own.
    pub next_hops: Vec<(IpAddr, Option<NoWay>)>,
    /// The Nodes whose objects give these next hops (`--node-routes=api`); then no neighbour does.
    pub given_by: Vec<CompactString>,
    /// Routes of others that take its packets away.
    pub in_the_way: Vec<String>,
}

/// Most bytes of an answer: prefixes that come when it is as long are counted alone. Attributes may have 64 KiB for each route.
const LONGEST: usize = 16 << 20;

/// The subject of a question about routes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Question {
    pub selected: PrefixQuery,
    /// With all reasons.
    pub why: bool,
}

/// A word that is neither a prefix nor an address.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is no prefix (10.244.1.0/24, fd00:10:244:1::/64) and no address")]
pub struct NoPrefix(String);

impl Question {
    /// Parses the words of a question. A prefix, or an address, is always answered with all reasons.
    ///
    /// # Errors
    /// The word is neither a prefix nor an address.
    pub fn parse(word: &str, why: bool) -> Result<Question, NoPrefix> {
        let word = word.trim();
        if word.is_empty() {
            return Ok(Question { selected: PrefixQuery::All, why });
        }
        let prefix = word.parse::<IpNet>().map(|prefix| PrefixQuery::Inside(prefix.trunc()));
        let selected =
            prefix.or_else(|_| word.parse::<IpAddr>().map(|address| PrefixQuery::Around(address.to_canonical())));
        let selected = selected.map_err(|_| NoPrefix(word.to_owned()))?;
        Ok(Question { selected, why: true })
    }
}

impl PeersKnown {
    /// Names a neighbour: by its Node where it is one.
    fn name(&self, address: IpAddr) -> String {
        match self.sources.get(&address) {
            Some(PeerSource::Node(node)) => format!("{address} (Node {node})"),
            Some(PeerSource::Flags | PeerSource::Annotation) | None => self.links.text(address),
        }
    }
}

impl Routes {
    /// Names the source of a route.
    fn source(&self, source: PeerId) -> String {
        match (source, self.addresses.get(&source)) {
            (PeerId::LOCAL, _) => "this node".to_owned(),
            (PeerId::OPERATOR, _) => "the gobgp client".to_owned(),
            (_, Some(address)) => self.known.name(*address),
            (_, None) => "a neighbour that has gone".to_owned(),
        }
    }
}
