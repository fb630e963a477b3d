//! Events on Services: why an address is not served, a field has no effect, endpoints are left out; and on policies, of which something is not understood.
//!
//! All nodes find the same, and one tells it, so that a cluster of 5,000 nodes has one Event and not 5,000. Which node that is follows from the
//! name of the Service and the names of the nodes alone: nodes and Services lie on a ring, and of the nodes that follow a Service the first tells,
//! and two more in its place, minutes later. These ask the API server in vain where the first has told it, because an Event
//! about a state has one name on all nodes (`events::Name::Once`). So has what is told again after a restart.
//!
//! The nodes of the ring are all Nodes, where they are read; else those with ready endpoints of the Service. Of a Service without any those tell then that any endpoint in
//! the cluster names, which all nodes read.
//!
//! Nothing is told before the cluster is known completely, and nothing at all of what ends within seconds ([`ledger`]).

mod ledger;

use std::sync::Arc;
use std::time::{Duration, Instant};

use compact_str::CompactString;
use futures_util::future::select_all;
use tokio::sync::watch;
use tokio::time::sleep_until;

pub use self::ledger::SETTLE;
use self::ledger::{Key, Ledger, Rank, Verdict};
use super::events::{About, Events, Name, NewEvent, Outcome};
use crate::model::{
    Authority, Endpoints, Listed, Node, ObjectName, PolicyProblems, ServiceProblems, Table, Use, World, digest,
};

/// The objects that a task tells of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Subjects {
    Services,
    /// NetworkPolicies, and ClusterNetworkPolicies, whose names have no namespace.
    Policies,
}

/// Inputs of the task.
pub struct Inputs {
    pub of: Subjects,
    pub world: watch::Receiver<World>,
    /// The problems that each part of the program finds; what one calls by a cause and subject no other does.
    pub sources: Vec<watch::Receiver<ServiceProblems>>,
    /// The name of this Node.
    pub node: String,
    /// The World has all Nodes, and not this one alone.
    pub knows_nodes: bool,
    /// [`SETTLE`]; shorter in tests.
    pub settle: Duration,
}

/// The number of nodes that may tell one problem.
const TELLERS: usize = 3;
/// Nodes that find something each for itself are spread over so many times [`SETTLE`] at least, and over a tenth of it for each Node.
const SPREAD: u32 = 6;
/// Most problems of its own that a node tells in an hour: what it finds for itself may be the same on all nodes (a port that every node uses).
const MOST_OF_ONE_NODE: usize = 4;
const HOUR: Duration = Duration::from_secs(3600);
/// The time for which one that the server did not take counts among them.
const UNTOLD: Duration = Duration::from_secs(300);

/// State of the task.
struct Teller {
    ledger: Ledger,
    rings: Rings,
    /// Since when the cluster is known completely.
    known_since: Option<Instant>,
    own: OwnPlaces,
}

/// Problems of this node alone that were told lately, or tried and not told: when each makes room for another one, and which it is where it was not told.
#[derive(Default)]
struct OwnPlaces(Vec<(Instant, Option<Key>)>);

impl OwnPlaces {
    /// Notes what became of one. Where the server failed that makes room soon, and a server in trouble is not asked by all nodes at once. For what a namespace forbids the server
    /// is asked seldom, whoever finds it, so that takes no place.
    fn take(&mut self, key: &Key, outcome: &Outcome, now: Instant) {
        let place = match outcome {
            Outcome::Told => (now + HOUR, None),
            Outcome::Gone | Outcome::Failed => (now + UNTOLD, Some(key.clone())),
            Outcome::Forbidden(_) => return,
        };
        self.0.retain(|(_, other)| other.as_ref() != Some(key));
        self.0.push(place);
    }

    /// Returns until when there is no room for this one; `None` where there is. One that the server did not take has its place, and is tried again as the ledger says.
    fn full_until(&mut self, key: &Key, now: Instant) -> Option<Instant> {
        self.0.retain(|(until, _)| *until > now);
        let others = self.0.iter().filter(|(_, other)| other.as_ref() != Some(key));
        let (until, count) = (others.clone().map(|(until, _)| *until).min(), others.count());
        until.filter(|_| count >= MOST_OF_ONE_NODE)
    }
}

/// Tells of problems of Services until nobody finds any more: a part of the program that ends, or does not run, ends none of the others. Cancelling
/// it loses what is not told yet.
pub async fn run(mut inputs: Inputs, events: Events) {
    let mut open: Vec<usize> = (0..inputs.sources.len()).collect();
    let mut teller = Teller {
        ledger: Ledger::new(inputs.settle),
        rings: Rings::default(),
        known_since: None,
        own: OwnPlaces::default(),
    };
    loop {
        let now = Instant::now();
        for (number, source) in inputs.sources.iter_mut().enumerate() {
            let newest = source.borrow_and_update().clone();
            teller.ledger.follow(number, &newest, now);
        }
        if let Some(key) = teller.ledger.due(now).cloned() {
            teller.tell(&inputs, &events, key).await;
            continue;
        }
        let deadline = teller.ledger.deadline();
        let sources = inputs.sources.iter_mut().enumerate().filter(|(number, _)| open.contains(number));
        let changes = sources.map(|(number, source)| Box::pin(async move { (number, source.changed().await.is_ok()) }));
        tokio::select! {
            ((number, goes_on), _, _) = select_all(changes) => open.retain(|one| *one != number || goes_on),
            () = until(deadline) => {}
        }
        if open.is_empty() {
            return;
        }
    }
}

/// Starts a task that publishes the problems of policies of each World, until nobody reads them or there is no World any more.
pub fn of_policies(mut world: watch::Receiver<World>) -> watch::Receiver<PolicyProblems> {
    let (out, published) = watch::channel(PolicyProblems::default());
    tokio::spawn(async move {
        loop {
            let newest = world.borrow_and_update().policy_problems.clone();
            out.send_if_modified(|known| {
                let differs = newest.changes_since(known).next().is_some();
                *known = newest;
                differs
            });
            tokio::select! {
                changed = world.changed() => if changed.is_err() { return },
                () = out.closed() => return,
            }
        }
    });
    published
}

impl Teller {
    /// Decides about a problem that is due, and tells it where that is this node's to do.
    async fn tell(&mut self, inputs: &Inputs, events: &Events, key: Key) {
        let (now, (service, problem)) = (Instant::now(), &key);
        let is_own = problem.cause.is_of_one_node();
        if let Some(until) = self.waits(inputs, &key, now) {
            return self.ledger.postpone(&key, until);
        }
        let (rank, later) = place(&inputs.world.borrow(), inputs, &mut self.rings, service, is_own);
        if let Verdict::Later(until) = self.ledger.judge(&key, rank, later, now) {
            return self.ledger.postpone(&key, until);
        }
        let event = NewEvent {
            about: match inputs.of {
                Subjects::Services => About::Service(service.clone(), None),
                Subjects::Policies => About::Policy(service.clone()),
            },
            name: Name::Once(problem.subject.to_string()),
            is_warning: true,
            reason: problem.cause.reason(),
            message: problem.text.clone(),
            at: None,
        };
        let outcome = events.tell(event).await;
        if is_own {
            self.own.take(&key, &outcome, now);
        }
        match outcome {
            Outcome::Told | Outcome::Gone => self.ledger.told(&key, Instant::now()),
            Outcome::Forbidden(until) => self.ledger.postpone(&key, until),
            Outcome::Failed => self.ledger.failed(&key, Instant::now()),
        }
    }

    /// Returns until when nothing is to be told: the cluster is not known, or was known only now, or this node has told enough of its own.
    fn waits(&mut self, inputs: &Inputs, key: &Key, now: Instant) -> Option<Instant> {
        let authority = inputs.world.borrow().authority;
        let authority = match inputs.of {
            Subjects::Services => authority.proxy,
            Subjects::Policies => authority.firewall,
        };
        if authority != Authority::Complete {
            return Some(now + inputs.settle);
        }
        let known = *self.known_since.get_or_insert(now);
        let full_until = if key.1.cause.is_of_one_node() { self.own.full_until(key, now) } else { None };
        let due = full_until.into_iter().chain([known + inputs.settle]).max();
        due.filter(|due| *due > now)
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Returns this node's place among those that tell of a Service, and how much later it does so than it might.
fn place(
    world: &World,
    inputs: &Inputs,
    rings: &mut Rings,
    service: &ObjectName,
    is_of_one_node: bool,
) -> (Rank, Duration) {
    let own = inputs.node.as_str();
    if is_of_one_node {
        let nodes = u32::try_from(world.cluster.nodes.len()).unwrap_or(u32::MAX).min(100_000);
        let share = u32::try_from(digest(&[own]) % 1000).unwrap_or(0);
        return (Some(0), inputs.settle * SPREAD.max(nodes / 10) / 1000 * share);
    }
    if inputs.knows_nodes {
        rings.of_nodes.follow(&world.cluster.nodes);
        return (rank(service, own, &rings.of_nodes.places), Duration::ZERO);
    }
    let ready = |endpoint: &Listed<'_>| endpoint.conditions.use_of() == Some(Use::Ready);
    let of_service = sorted(named(world.cluster.endpoints.get(service).into_iter(), ready));
    if !of_service.is_empty() {
        return (rank(service, own, &of_service), Duration::ZERO);
    }
    rings.of_endpoints.follow(&world.cluster.endpoints, Instant::now());
    (rank(service, own, &rings.of_endpoints.places), Duration::ZERO)
}

/// Returns the nodes that these endpoints name.
fn named<'a>(
    all: impl Iterator<Item = &'a Arc<Endpoints>>,
    counts: impl Fn(&Listed<'_>) -> bool,
) -> impl Iterator<Item = &'a str> {
    let slices = all.flat_map(|its| its.slices.values());
    slices.flat_map(|slice| slice.endpoints.listed()).filter(move |one| counts(one)).filter_map(Listed::node_name)
}

/// The rings of which one decides who tells.
#[derive(Default)]
struct Rings {
    of_nodes: Ring,
    of_endpoints: RingOfEndpoints,
}

/// The places of all nodes that any endpoint names.
#[derive(Default)]
struct RingOfEndpoints {
    read: Option<Instant>,
    places: Vec<u64>,
}

/// Looking through all endpoints takes milliseconds at 100,000 of them, and nodes come and go seldom: two that differ for so long tell one Event twice, which is one Event.
const LOOK_AT_ENDPOINTS: Duration = Duration::from_secs(60);

impl RingOfEndpoints {
    fn follow(&mut self, endpoints: &Table<ObjectName, Endpoints>, now: Instant) {
        if self.read.is_none_or(|read| read + LOOK_AT_ENDPOINTS <= now) {
            self.places = sorted(named(endpoints.iter().map(|(_, its)| its), |_| true));
            self.read = Some(now);
        }
    }
}

/// The places of all Nodes on the ring, sorted; made anew when Nodes have changed.
#[derive(Default)]
struct Ring {
    nodes: Table<CompactString, Node>,
    places: Vec<u64>,
}

impl Ring {
    fn follow(&mut self, nodes: &Table<CompactString, Node>) {
        if nodes.changes_since(&self.nodes).next().is_some() {
            self.places = sorted(nodes.iter().map(|(name, _)| name.as_str()));
        }
        self.nodes = nodes.clone();
    }
}

fn sorted<'a>(nodes: impl Iterator<Item = &'a str>) -> Vec<u64> {
    let mut places: Vec<u64> = nodes.map(|node| digest(&[node])).collect();
    places.sort_unstable();
    places.dedup();
    places
}

/// Returns the place of a node among the first [`TELLERS`] behind a Service on a ring; none where it is not one of its nodes.
fn rank(service: &ObjectName, own: &str, ring: &[u64]) -> Rank {
    let own = ring.binary_search(&digest(&[own])).ok()?;
    let begin = digest(&[&service.namespace, &service.name]);
    let first = ring.partition_point(|place| *place < begin);
    let passed = (own + ring.len() - first) % ring.len();
    u32::try_from(passed).ok().filter(|_| passed < TELLERS)
}

#[cfg(test)]
mod tests;
