//! Answers questions about BGP, and about the way to an address, on the local socket.
//!
//! A task of its own asks the speaker and the router, each in its own loop and in portions, and has the answer formatted on a thread
//! for work that blocks. One answer is made at a time; who asks meanwhile waits. Neither loop waits for who asks: an [`Inquiry`]
//! that nobody wants any more is dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::routes::origin;
use super::way::{self, Destination, Origin, Way, Ways};
use super::{InKernel, Peers, PeersKnown, Question, Routes, peers_json, peers_text, routes_json, routes_text};
use crate::bgp::driver::{Access, Ended, Handle};
use crate::bgp::rib::{PeerId, PrefixState, Standing};
use crate::bgp::speaker::{NeighbourState, Position, PrefixQuery, Speaker};
use crate::model::{Authority, World};
use crate::net::{Family, PerFamily};
use crate::observe::local::{self, Answer, AnswerFormat};
use crate::router::apply::{Kernel, Mirrors};
use crate::router::drain::Outside;
use crate::router::plan::Plan;

/// The questions, by their paths on the local socket.
pub const PEERS: &str = "/bgp/peers";
pub const ROUTES: &str = "/bgp/routes";
pub const WAY: &str = "/route";

/// Question to the router's loop.
pub enum Inquiry {
    Peers(oneshot::Sender<PeersKnown>),
    /// The selected prefixes whose next hops Node objects give, in order.
    Given(PrefixQuery, oneshot::Sender<Vec<IpNet>>),
    /// One answer for each prefix, in their order.
    Routes(Vec<IpNet>, oneshot::Sender<Vec<InKernel>>),
    /// The way to an address. `true`: this node serves a Service there.
    Way(IpAddr, bool, oneshot::Sender<Way>),
}

/// Channels of the answering task.
pub struct Answering {
    pub questions: mpsc::Receiver<local::Question>,
    pub speaker: watch::Receiver<Option<Access>>,
    pub router: mpsc::Sender<Inquiry>,
    /// For the addresses of pods.
    pub world: watch::Receiver<World>,
}

/// The speaker's part of an answer about routes; nothing where none runs.
#[derive(Default)]
struct FromSpeaker {
    states: Vec<PrefixState>,
    /// Number of further prefixes.
    left_off: usize,
    addresses: BTreeMap<PeerId, IpAddr>,
    /// Number of all prefixes; `None` without a speaker.
    count: Option<usize>,
    is_restarting: bool,
}

/// Most prefixes in an answer without reasons, and with them.
const MOST: usize = 10_000;
const MOST_WITH_REASONS: usize = 1000;
/// Most routes to one prefix, and most neighbours that are named for one, likewise.
const PATHS: usize = 8;
const PATHS_WITH_REASONS: usize = 64;
/// Numbers of neighbours, and of prefixes, that the speaker is asked for at a time, and of prefixes that it counts or renders for all
/// its groups.
const NEIGHBOURS: usize = 512;
const PREFIXES: usize = 256;
const PREFIXES_WITH_REASONS: usize = 16;
const COUNTED: usize = 65_536;
const RENDERED: usize = 8192;
/// Number of prefixes that the router is asked for at a time.
const IN_KERNEL: usize = 1024;
/// Longest time for counting announced routes, and for an answer. A connection to the socket lasts for 30 s.
const COUNTING: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(20);

/// Answers until nobody can ask any more.
pub async fn run(mut answering: Answering) {
    while let Some(question) = answering.questions.recv().await {
        let local::Question { path, about, form, answer, .. } = question;
        let word = |key: &str| about.get(key).map_or("", String::as_str);
        let made = match (path, Question::parse(word("what"), word("why") == "true")) {
            (PEERS, _) => timeout(LONGEST, answering.peers(form)).await,
            (WAY, _) => timeout(LONGEST, answering.ways(word("what"), word("served") == "true", form)).await,
            (_, Ok(question)) => timeout(LONGEST, answering.routes(question, form)).await,
            (_, Err(why)) => Ok(Err(why.to_string())),
        };
        // The requester may have gone away.
        let _ = answer.send(made.unwrap_or_else(|_| Err("BGP has too much to do to answer now; ask again".to_owned())));
    }
}

impl Answering {
    async fn peers(&self, form: AnswerFormat) -> Answer {
        let known = self.known().await?;
        let mut peers = Peers { speaker: None, neighbours: Vec::new(), announced: None, known };
        let access = self.speaker.borrow().clone();
        if let Some(Access { handle, .. }) = access {
            peers.speaker = Some(handle.ask(|speaker| speaker.state()).await.map_err(ended)?);
            peers.neighbours = neighbours(&handle).await.map_err(ended)?;
            peers.announced = timeout(COUNTING, announced(&handle)).await.ok().transpose().map_err(ended)?;
        }
        format(move || match form {
            AnswerFormat::Text => peers_text(&peers),
            AnswerFormat::Json => peers_json(&peers),
        })
        .await
    }

    async fn routes(&self, question: Question, form: AnswerFormat) -> Answer {
        let known = self.known().await?;
        let access = self.speaker.borrow().clone();
        let mut learned = match access {
            Some(Access { handle, .. }) => learned(&handle, question).await.map_err(ended)?,
            None => FromSpeaker::default(),
        };
        let given_left_off = self.add_given(question, &mut learned.states).await?;
        let FromSpeaker { states, left_off, addresses, count, is_restarting } = learned;
        // Without a speaker there are routes that Node objects give.
        if states.is_empty() && count.is_none() {
            let why = known.problems.first().map(|problem| format!(": {problem}")).unwrap_or_default();
            return Err(format!("BGP does not run on this node{why}"));
        }
        if states.is_empty() && question.selected != PrefixQuery::All {
            let count = count.unwrap_or_default();
            return Err(format!("BGP knows no such route; it knows {count} prefixes (sluice bgp routes)"));
        }
        let left_off = left_off + given_left_off;
        let kernel = self.in_kernel(states.iter().map(|state| state.prefix).collect()).await?;
        let prefixes = states.into_iter().zip(kernel).collect();
        let routes = Routes { question, is_restarting, prefixes, left_off, addresses, known };
        format(move || match form {
            AnswerFormat::Text => routes_text(&routes),
            AnswerFormat::Json => routes_json(&routes),
        })
        .await
    }

    async fn ways(&self, what: &str, is_served: bool, form: AnswerFormat) -> Answer {
        let known = self.known().await?;
        let pods = self.world.borrow().cluster.pods.clone();
        let destination = Destination::parse(what).map_err(|why| why.to_string())?;
        let (pod, addresses) = destination.addresses(&pods).map_err(|why| why.to_string())?;
        let mut ways = Ways { authority: known.authority, pod, ways: Vec::new() };
        for address in addresses {
            let (answer, answered) = oneshot::channel();
            self.router.send(Inquiry::Way(address, is_served, answer)).await.map_err(|_| NO_ROUTER)?;
            let way = answered.await.map_err(|_| NO_ROUTER)?;
            let origin = self.origin(&way, &known).await?;
            ways.ways.push((way, origin));
        }
        format(move || match form {
            AnswerFormat::Text => way::text(&ways),
            AnswerFormat::Json => way::json(&ways),
        })
        .await
    }

    /// Returns what the speaker knows of the routes around an address.
    async fn origin(&self, way: &Way, known: &PeersKnown) -> Result<Origin, String> {
        let access = self.speaker.borrow().clone();
        let Some(Access { handle, .. }) = access else { return Ok(Origin::default()) };
        let question = Question { selected: PrefixQuery::Around(way.address), why: true };
        let FromSpeaker { states, left_off, addresses, is_restarting, .. } =
            learned(&handle, question).await.map_err(ended)?;
        let routes =
            Routes { question, is_restarting, prefixes: Vec::new(), left_off, addresses, known: known.clone() };
        Ok(origin(&routes, &states, way))
    }

    /// Adds the prefixes that Node objects give and the speaker does not know. Returns how many more there are.
    async fn add_given(&self, question: Question, states: &mut Vec<PrefixState>) -> Result<usize, String> {
        let (answer, answered) = oneshot::channel();
        self.router.send(Inquiry::Given(question.selected, answer)).await.map_err(|_| NO_ROUTER)?;
        let known: BTreeSet<IpNet> = states.iter().map(|state| state.prefix).collect();
        let mut given = answered.await.map_err(|_| NO_ROUTER)?;
        given.retain(|prefix| !known.contains(prefix));
        let room = (if question.why { MOST_WITH_REASONS } else { MOST }).saturating_sub(states.len());
        let left_off = given.len().saturating_sub(room);
        if given.is_empty() {
            return Ok(0);
        }
        states.extend(given.into_iter().take(room).map(PrefixState::without_paths));
        match question.selected {
            PrefixQuery::Around(_) => states.sort_by_key(|state| std::cmp::Reverse(state.prefix.prefix_len())),
            PrefixQuery::All | PrefixQuery::Inside(_) => states.sort_by_key(|state| state.prefix),
        }
        Ok(left_off)
    }

    async fn known(&self) -> Result<PeersKnown, String> {
        let (answer, answered) = oneshot::channel();
        self.router.send(Inquiry::Peers(answer)).await.map_err(|_| NO_ROUTER)?;
        Ok(answered.await.map_err(|_| NO_ROUTER)?)
    }

    async fn in_kernel(&self, prefixes: Vec<IpNet>) -> Result<Vec<InKernel>, String> {
        let mut all = Vec::with_capacity(prefixes.len());
        for portion in prefixes.chunks(IN_KERNEL) {
            let (answer, answered) = oneshot::channel();
            self.router.send(Inquiry::Routes(portion.to_vec(), answer)).await.map_err(|_| NO_ROUTER)?;
            all.extend(answered.await.map_err(|_| NO_ROUTER)?);
        }
        Ok(all)
    }
}

/// Why there is no answer while the program ends.
const NO_ROUTER: &str = "the router does not run any more";

fn ended(ended: Ended) -> String {
    ended.to_string()
}

async fn format(made: impl FnOnce() -> String + Send + 'static) -> Answer {
    tokio::task::spawn_blocking(made).await.map_err(|error| error.to_string())
}

async fn neighbours(handle: &Handle) -> Result<Vec<NeighbourState>, Ended> {
    let mut all: Vec<NeighbourState> = Vec::new();
    loop {
        let after = all.last().map(|last| last.address);
        let portion = handle.ask(move |speaker| speaker.neighbour_states(after, NEIGHBOURS, Instant::now())).await?;
        let is_last = portion.len() < NEIGHBOURS;
        all.extend(portion);
        if is_last {
            return Ok(all);
        }
    }
}

/// Counts the routes that each neighbour is sent.
async fn announced(handle: &Handle) -> Result<BTreeMap<PeerId, PerFamily<u32>>, Ended> {
    let mut all: BTreeMap<PeerId, PerFamily<u32>> = BTreeMap::new();
    let mut from: Option<Position> = None;
    loop {
        let (counts, next) = handle
            .ask(move |speaker| {
                let most = (RENDERED / speaker.rib().groups().max(1)).max(1);
                let portion = speaker.portion(PrefixQuery::All, from, most);
                (speaker.announced(&portion.prefixes), portion.next)
            })
            .await?;
        for (peer, count) in counts {
            let sum = all.entry(peer).or_default();
            *sum = PerFamily::from_fn(|family: Family| sum.of(family) + count.of(family));
        }
        from = next;
        if from.is_none() {
            return Ok(all);
        }
    }
}

/// Returns what the speaker knows of the selected prefixes.
async fn learned(handle: &Handle, question: Question) -> Result<FromSpeaker, Ended> {
    let speaker = handle.ask(|speaker| speaker.state()).await?;
    let (states, rest) = states(handle, question).await?;
    let left_off = match (question.selected, rest) {
        (_, None) => 0,
        (PrefixQuery::All, Some(_)) => speaker.prefixes.saturating_sub(states.len()),
        (selected, from) => count(handle, selected, from).await?,
    };
    let addresses = addresses(handle, &states).await?;
    let (count, is_restarting) = (Some(speaker.prefixes), speaker.is_restarting);
    Ok(FromSpeaker { states, left_off, addresses, count, is_restarting })
}

/// The states of the selected prefixes, as many as an answer may hold, and where the others begin.
async fn states(handle: &Handle, question: Question) -> Result<(Vec<PrefixState>, Option<Position>), Ended> {
    let Question { selected, why } = question;
    let (most, at_once, paths) = match why {
        true => (MOST_WITH_REASONS, PREFIXES_WITH_REASONS, PATHS_WITH_REASONS),
        false => (MOST, PREFIXES, PATHS),
    };
    let (mut all, mut from): (Vec<PrefixState>, Option<Position>) = (Vec::new(), None);
    loop {
        let room = at_once.min(most - all.len());
        // Of an address all prefixes around it are one portion: there are 129 at most.
        let room = if matches!(selected, PrefixQuery::Around(_)) { most } else { room };
        let (portion, next) = handle
            .ask(move |speaker| {
                let portion = speaker.portion(selected, from, room);
                (speaker.prefix_states(&portion.prefixes, paths, why), portion.next)
            })
            .await?;
        all.extend(portion);
        from = next;
        if from.is_none() || all.len() >= most {
            return Ok((all, from));
        }
    }
}

/// Counts the selected prefixes from a place on.
async fn count(handle: &Handle, selected: PrefixQuery, mut from: Option<Position>) -> Result<usize, Ended> {
    let mut count = 0;
    while from.is_some() {
        let counted = move |speaker: &mut Speaker| {
            let portion = speaker.portion(selected, from, COUNTED);
            (portion.prefixes.len(), portion.next)
        };
        let (more, next) = handle.ask(counted).await?;
        (count, from) = (count + more, next);
    }
    Ok(count)
}

/// Addresses of the neighbours that the answer names.
async fn addresses(handle: &Handle, states: &[PrefixState]) -> Result<BTreeMap<PeerId, IpAddr>, Ended> {
    let sources = states.iter().flat_map(|state| &state.paths).map(|path| path.source);
    let told = states.iter().filter_map(|state| state.told.as_ref()).flat_map(|told| &told.neighbours);
    let lost_to = states.iter().flat_map(|state| &state.paths).filter_map(|path| match path.standing {
        Standing::Lost { by, .. } => Some(by),
        Standing::Best(_) | Standing::Unreachable | Standing::Refused(_) => None,
    });
    let ids: BTreeSet<PeerId> = sources.chain(told.map(|(peer, _)| *peer)).chain(lost_to).collect();
    handle.ask(move |speaker| speaker.addresses(ids)).await
}

impl Inquiry {
    /// Answers, in the router's loop.
    pub fn answer<K: Kernel>(self, plan: &Plan, mirrors: &mut Mirrors<K>, authority: Authority, outside: Outside) {
        // The requester may have gone away.
        match self {
            Inquiry::Peers(answer) => {
                let (sources, problems) = (plan.peer_sources(), plan.peer_problems());
                let node_routes = plan.node_routes();
                let _ = answer.send(PeersKnown {
                    authority,
                    node_routes,
                    outside,
                    sources,
                    links: plan.link_names(),
                    problems,
                });
            }
            Inquiry::Given(selected, answer) => {
                let is_selected = |prefix: &IpNet| match selected {
                    PrefixQuery::All => true,
                    PrefixQuery::Around(address) => prefix.contains(&address),
                    PrefixQuery::Inside(outer) => outer.contains(prefix),
                };
                let _ = answer.send(plan.routes().given().filter(is_selected).collect());
            }
            Inquiry::Routes(prefixes, answer) => {
                let in_the_way = mirrors.routes_in_the_way(&prefixes);
                let routes = mirrors.routes_in_kernel(&prefixes, plan.routes());
                let states = prefixes.iter().zip(routes).map(|(prefix, route)| InKernel {
                    route,
                    next_hops: plan.ways_to(*prefix),
                    given_by: plan.given_by(*prefix),
                    in_the_way: in_the_way.iter().filter(|(of, _)| of == prefix).map(|(_, why)| why.clone()).collect(),
                });
                let _ = answer.send(states.collect());
            }
            Inquiry::Way(address, is_served, answer) => {
                let _ = answer.send(way::way(plan, mirrors, address, is_served));
            }
        }
    }
}
