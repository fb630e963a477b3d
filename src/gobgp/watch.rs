//! Streams of changes, for as long as a client watches: `gobgp monitor`.
//!
//! The speaker is polled, and differences are sent. So it costs nothing without watchers, misses no lasting change, and
//! works alike for all tables; changes within the same second are sent as one, and a watcher of a large table makes the
//! speaker walk over it every time, in portions.
//!
//! Each watched table is kept in memory as it was last sent, so that one listener has few of them ([`Places`]): who may open a port
//! is not to have the agent's memory.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use ipnet::IpNet;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

use super::routes::{self, Lookup, Row, Shown, Which};
use super::service::{Many, Service, clock};
use super::version::Version;
use super::wire::messages::watch_event_response::{Event, PeerEvent, TableEvent};
use super::wire::messages::{Path, Peer, WatchEventRequest, WatchEventResponse};
use crate::net::Family;

/// Polling interval.
const PAUSE: Duration = Duration::from_secs(1);
/// Number of routes in one message.
const TOGETHER: usize = 500;

/// Maximum number of tables in one request. The clients of GoBGP ask for one.
const FILTERS: usize = 8;
/// Number of tables, and of lists of neighbours, that are watched by one listener at the same time.
const WATCHED: usize = 16;

/// Filters of a watched table.
const BEST: i32 = 0;
const ADJ_IN: i32 = 1;
/// Without routes rejected by import policy.
const POST_POLICY: i32 = 2;

/// Types of neighbour events.
const INITIAL: i32 = 1;
const END_OF_INITIAL: i32 = 2;
const STATE: i32 = 3;

/// State of a neighbour that is compared: its identity, and the state of its session.
type Standing = (i32, i32, u32, String);

/// Key of a watched route: its prefix, and its source.
type Key = (IpNet, Option<IpAddr>, Ipv4Addr);

/// Room for everything that is watched by one listener. Clones share it.
#[derive(Clone, Debug)]
pub struct Places(Arc<Semaphore>);

impl Default for Places {
    fn default() -> Places {
        Places(Arc::new(Semaphore::new(WATCHED)))
    }
}

impl Places {
    /// Takes room for so many tables and lists, as long as the permit lives.
    fn take(&self, count: usize) -> Result<OwnedSemaphorePermit, Status> {
        // A watch of nothing is a call that never ends, too.
        let count = u32::try_from(count.max(1)).unwrap_or(u32::MAX);
        self.0.clone().try_acquire_many_owned(count).map_err(|_| {
            Status::resource_exhausted(format!(
                "clients watch too much by this address already: {WATCHED} tables at the same time are served"
            ))
        })
    }
}

/// Everything that one client watches.
struct Watching {
    service: Service,
    version: Version,
    /// Given back with the stream, when the client goes.
    _places: OwnedSemaphorePermit,
    peers: Option<Option<BTreeMap<IpAddr, Standing>>>,
    tables: Vec<TableWatch>,
    waiting: VecDeque<WatchEventResponse>,
}

/// Watched table.
struct TableWatch {
    kind: i32,
    /// Restricts the watch to this neighbour.
    of: Option<IpAddr>,
    /// Sends present routes, too.
    initial: bool,
    /// `None` before the first poll.
    known: Option<BTreeMap<Key, Shown>>,
}

/// Starts to watch.
///
/// # Errors
/// An unsupported or unknown table is requested, or more than there is room for.
pub fn watch(
    service: Service,
    version: Version,
    places: &Places,
    request: WatchEventRequest,
) -> Result<Many<WatchEventResponse>, Status> {
    let filters = request.table.map(|table| table.filters).unwrap_or_default();
    if filters.len() > FILTERS {
        return Err(Status::invalid_argument(format!("one request may watch {FILTERS} tables at the most")));
    }
    let watches_peers = request.peer.is_some();
    let mut tables = Vec::new();
    for filter in filters {
        let kind = version.place(filter.r#type).filter(|kind| (BEST..=POST_POLICY).contains(kind));
        let kind =
            kind.ok_or_else(|| Status::unimplemented("best, adj-in and post-policy can be watched, nothing else"))?;
        let of = match filter.peer_address.as_str() {
            "" => None,
            name => Some(name.parse().map_err(|_| Status::invalid_argument(format!("{name:?} is no address")))?),
        };
        tables.push(TableWatch { kind, of, initial: filter.init, known: None });
    }
    let _places = places.take(tables.len() + usize::from(watches_peers))?;
    let peers = watches_peers.then_some(None);
    let watching = Watching { service, version, _places, peers, tables, waiting: VecDeque::new() };
    let events = stream::try_unfold((watching, true), |(mut watching, mut at_once)| async move {
        loop {
            if let Some(event) = watching.waiting.pop_front() {
                return Ok(Some((event, (watching, at_once))));
            }
            if !std::mem::take(&mut at_once) {
                tokio::time::sleep(PAUSE).await;
            }
            watching.look().await?;
        }
    });
    Ok(Box::pin(events))
}

impl Watching {
    async fn look(&mut self) -> Result<(), Status> {
        if let Some(known) = &mut self.peers {
            let all = self.service.all_peers(self.version).await?;
            self.waiting.extend(peer_events(known, all));
        }
        for table in &mut self.tables {
            let mut paths = table.look(&self.service, self.version).await?.into_iter().peekable();
            while paths.peek().is_some() {
                let paths = paths.by_ref().take(TOGETHER).collect();
                self.waiting.push_back(response(Event::Table(TableEvent { paths })));
            }
        }
        Ok(())
    }
}

fn response(event: Event) -> WatchEventResponse {
    WatchEventResponse { event: Some(event) }
}

/// Neighbour events, from the known states to the current ones.
fn peer_events(known: &mut Option<BTreeMap<IpAddr, Standing>>, all: BTreeMap<IpAddr, Peer>) -> Vec<WatchEventResponse> {
    let event = |kind, peer| response(Event::Peer(PeerEvent { r#type: kind, peer }));
    let standing = |peer: &Peer| {
        let state = peer.state.clone().unwrap_or_default();
        (state.session_state, state.admin_state, state.flops, state.router_id)
    };
    let newest = all.iter().map(|(address, peer)| (*address, standing(peer))).collect();
    let before = known.replace(newest);
    let is_first = before.is_none();
    let before = before.unwrap_or_default();
    let kind = if is_first { INITIAL } else { STATE };
    let changed = all.into_iter().filter(|(address, peer)| before.get(address) != Some(&standing(peer)));
    let mut events: Vec<_> = changed.map(|(_, peer)| event(kind, Some(peer))).collect();
    if is_first {
        // Clients read the neighbour of every event.
        let nobody = Peer { conf: Some(Default::default()), state: Some(Default::default()), ..Peer::default() };
        events.push(event(END_OF_INITIAL, Some(nobody)));
    }
    events
}

impl TableWatch {
    /// Changes since the last poll.
    async fn look(&mut self, service: &Service, version: Version) -> Result<Vec<Path>, Status> {
        let mut newest = BTreeMap::new();
        for which in self.whiches(service, version).await? {
            for family in Family::BOTH {
                let mut rows = service.rows(which, family, vec![Lookup::All]);
                while let Some(row) = rows.next().await {
                    self.take(row?, &mut newest);
                }
            }
        }
        let before = self.known.take();
        let silent = before.is_none() && !self.initial;
        let before = before.unwrap_or_default();
        let clock = clock();
        let gone = before.iter().filter(|(key, _)| !newest.contains_key(*key));
        let gone = gone.map(|((prefix, ..), shown)| routes::withdrawal(version, clock, *prefix, shown));
        let differs = |(key, shown): &(&Key, &Shown)| {
            before.get(*key).is_none_or(|known| known.attributes != shown.attributes || known.source != shown.source)
        };
        let there = newest.iter().filter(differs);
        let there = there.map(|((prefix, ..), shown)| routes::path(version, clock, *prefix, shown));
        let paths = if silent { Vec::new() } else { gone.chain(there).collect() };
        self.known = Some(newest);
        Ok(paths)
    }

    /// Tables that make up this one.
    async fn whiches(&self, service: &Service, version: Version) -> Result<Vec<Which>, Status> {
        if self.kind == BEST {
            return Ok(vec![Which::Global]);
        }
        let neighbours = match self.of {
            Some(address) => vec![address],
            None => service.all_peers(version).await?.into_keys().collect(),
        };
        Ok(neighbours.into_iter().map(Which::In).collect())
    }

    fn take(&self, row: Row, newest: &mut BTreeMap<Key, Shown>) {
        for shown in row.routes {
            let counts = match self.kind {
                BEST => shown.best,
                ADJ_IN => true,
                _ => !shown.unused,
            };
            if counts {
                // There is one best route to each prefix, whatever its source.
                let of = if self.kind == BEST {
                    (None, Ipv4Addr::UNSPECIFIED)
                } else {
                    (shown.source.address, shown.source.identifier)
                };
                newest.insert((row.prefix, of.0, of.1), shown);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch as channel;

    use super::*;
    use crate::gobgp::wire::messages::watch_event_request::{Peer as PeerFilters, Table, table::Filter};

    fn request(tables: usize, peers: bool) -> WatchEventRequest {
        let filters = vec![Filter::default(); tables];
        WatchEventRequest { peer: peers.then(PeerFilters::default), table: Some(Table { filters }) }
    }

    #[test]
    fn one_request_watches_few_tables_and_all_of_a_listener_together_not_many_more() {
        let service = Service::new(channel::channel(None).1);
        let places = Places::default();
        let ask = |request| watch(service.clone(), Version::V3, &places, request).map_err(|status| status.code());
        // The messages of a request of 4 MiB would be two million.
        assert_eq!(ask(request(FILTERS + 1, false)).err(), Some(tonic::Code::InvalidArgument));
        let first = ask(request(FILTERS, false)).expect("there is room");
        let second = ask(request(FILTERS - 1, true)).expect("there is room");
        for (tables, peers) in [(1, false), (0, true), (0, false)] {
            assert_eq!(ask(request(tables, peers)).err(), Some(tonic::Code::ResourceExhausted), "{tables} {peers}");
        }
        assert!(watch(service.clone(), Version::V3, &Places::default(), request(1, false)).is_ok(), "another listener");
        drop(first);
        let nothing: Vec<_> = (0..FILTERS).map(|_| ask(request(0, false)).expect("there is room again")).collect();
        assert_eq!(ask(request(0, false)).err(), Some(tonic::Code::ResourceExhausted));
        drop((second, nothing));
        assert!(ask(request(FILTERS, true)).is_ok());
    }
}
