//! The table for who asks: every route to a prefix with the rule or the step that decided about it, and to whom the best one is
//! advertised.
//!
//! What decides is asked again here, and not stored: import ([`unusable`], `Policy::verdict`), selection (`Table::selection`) and
//! export (`Renderer::rendered`) are the functions that decided. Nothing changes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::best_path::{Kind, Source, Step};
use super::exports::Advertisement;
use super::import::{Refusal, unusable};
use super::table::{Path, PeerId, Selection};
use super::{Policies, Rib, Rules};
use crate::bgp::message::Attributes;
use crate::bgp::policy::{Applicable, Decision, Line, Outcome, Policy};
use crate::net::PerFamily;

/// All routes to a prefix.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PrefixState {
    pub prefix: IpNet,
    /// The best is first if there is one.
    pub paths: Vec<PathState>,
    /// Number of further routes.
    pub paths_left_off: usize,
    /// Next hops in use, the best first.
    pub next_hops: Vec<IpAddr>,
    /// To whom the best is advertised; `None` where that was not asked.
    pub told: Option<Advertisement>,
    /// The policies whose lines are named.
    pub policies: Policies,
}

impl PrefixState {
    /// Returns the state of a prefix to which no route is known.
    pub fn without_paths(prefix: IpNet) -> PrefixState {
        let nothing = Arc::new(Policy::all(Decision::Reject));
        PrefixState {
            prefix,
            paths: Vec::new(),
            paths_left_off: 0,
            next_hops: Vec::new(),
            told: None,
            policies: Policies { import: nothing.clone(), export: nothing },
        }
    }
}

/// Route of one source.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PathState {
    pub source: PeerId,
    /// Attributes as received.
    pub received: Arc<Attributes>,
    /// Attributes after import policy; `None` when the route is not used.
    pub used: Option<Arc<Attributes>>,
    /// Since it was received, or last changed.
    pub age: Duration,
    pub is_stale: bool,
    pub standing: Standing,
    /// Its next hop is in use, as the best or beside it (multipath).
    pub is_in_use: bool,
}

/// Why a route is used, or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Import policy accepts it in this line, and it is the best.
    Best(Line),
    /// It lost at this step, against the route of this source.
    Lost {
        step: Step,
        by: PeerId,
    },
    /// Its next hop is unreachable.
    Unreachable,
    Refused(Refusal),
}

impl Rib {
    /// Routes to a prefix, `most` of them, and of neighbours that are `told` as many. Without routes the list is empty.
    pub fn state(&mut self, prefix: IpNet, most: usize, told: bool) -> PrefixState {
        let (all, selection) = (self.table.paths(prefix), self.table.selection(prefix));
        let next_hops = self.table.next_hops(prefix);
        let paths = all.iter().zip(selection).take(most).map(|(path, selected)| {
            let standing = self.standing(prefix, path, selected);
            let is_equal = match standing {
                Standing::Best(_) => true,
                Standing::Lost { step, .. } => step > Step::External,
                Standing::Unreachable | Standing::Refused(_) => false,
            };
            let is_used = |used: &Arc<Attributes>| next_hops.contains(&used.next_hop);
            PathState {
                source: path.source,
                received: path.received.clone(),
                used: path.used.clone(),
                age: self.table.age(path),
                is_stale: path.is_stale(),
                standing,
                is_in_use: is_equal && path.used.as_ref().is_some_and(is_used),
            }
        });
        let (paths, paths_left_off) = (paths.collect(), all.len().saturating_sub(most));
        let told = told.then(|| self.exports.told(prefix, &self.table, &mut self.interned, most));
        PrefixState { prefix, paths, paths_left_off, next_hops, told, policies: self.rules.policies.clone() }
    }

    /// Number of routes to some prefixes that are advertised to each neighbour with a session.
    pub fn announced(&mut self, prefixes: &[IpNet]) -> BTreeMap<PeerId, PerFamily<u32>> {
        self.exports.count(prefixes, &self.table, &mut self.interned)
    }

    fn standing(&self, prefix: IpNet, path: &Path, selected: Selection) -> Standing {
        match (selected, self.judged(prefix, path)) {
            (_, Err(refusal)) => Standing::Refused(refusal),
            (Selection::Best, Ok(line)) => Standing::Best(line),
            (Selection::Lost { step, by }, Ok(_)) => Standing::Lost { step, by },
            (Selection::Unreachable, Ok(_)) => Standing::Unreachable,
            // Policies are applied to all routes when they change, so a route that they accept is used.
            (Selection::Unused, Ok(line)) => Standing::Refused(Refusal::Policy(line)),
        }
    }

    /// Returns the line of import policy that accepts a route, or why it is refused.
    fn judged(&self, prefix: IpNet, path: &Path) -> Result<Line, Refusal> {
        let import = &self.rules.policies.import;
        let Some(source) = self.table.source(path.source) else { return Err(Refusal::Policy(Line::Default)) };
        let of_session = self.sessions.get(&path.source).map(|session| session.applicable.clone());
        let applicable = of_session.unwrap_or_else(|| import.applicable(neighbour(path.source, source)));
        judged(&self.rules, &applicable, source, (prefix, &path.received))
    }
}

/// Address of the neighbour that a source is for import policy; our own routes have none.
fn neighbour(peer: PeerId, source: &Source) -> Option<IpAddr> {
    (peer != PeerId::LOCAL).then_some(source.address)
}

fn judged(
    rules: &Rules,
    applicable: &Applicable,
    source: &Source,
    (prefix, received): (IpNet, &Arc<Attributes>),
) -> Result<Line, Refusal> {
    let refusal = unusable(rules, source, received).filter(|_| source.kind != Kind::Local);
    refusal.map_or(Ok(()), Err)?;
    match rules.policies.import.verdict(applicable, prefix, received, None) {
        (Outcome::Rejected, line) => Err(Refusal::Policy(line)),
        (_, line) => Ok(line),
    }
}
