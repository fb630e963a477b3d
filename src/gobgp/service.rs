//! Implementation of the calls, for both versions.
//!
//! Each call queries the speaker that is present at that moment. Long answers query one portion at a time, after the
//! client has taken the previous one, so that neither the speaker nor our memory holds more of them than that.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Instant, SystemTime};

use futures_util::stream::{self, Stream, StreamExt, TryStreamExt};
use ipnet::IpNet;
use tokio::sync::watch;
use tonic::Status;
use tracing::info;

use super::changes;
use super::clock::Clock;
use super::neighbours::{self, RequestContext};
use super::policies;
use super::routes::{self, Lookup, Query, Sizes, Which};
use super::version::{Version, meant};
use super::wire::messages::{
    AddPathRequest, AddPathResponse, DeletePathRequest, GetBgpResponse, GetTableRequest, GetTableResponse, Global,
    ListDefinedSetResponse, ListPathRequest, ListPathResponse, ListPeerRequest, ListPeerResponse,
    ListPolicyAssignmentResponse, ListPolicyResponse, ListStatementResponse, Nothing, Peer, ResetPeerRequest,
};
use super::wishes::{self, ONLY_UNICAST};
use crate::bgp::driver::{Access, Handle};
use crate::bgp::message::{Notification, Reason};
use crate::bgp::rib::{PeerId, Policies};
use crate::bgp::speaker::{Order, Speaker, WantedNeighbour};
use crate::net::{Family, LinkNames};

/// Streaming answer, produced while it is consumed.
pub type Many<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Number of prefixes and of neighbours processed before the speaker may do other work.
const PREFIXES_AT_ONCE: usize = 1000;
const PEERS_AT_ONCE: usize = 100;
/// Number of changes of one call that the log names.
const NAMED: usize = 3;
/// Maximum length of a text sent to the peer.
const LONGEST_TEXT: usize = 128;
/// Name of all neighbours.
const ALL: &str = "all";

/// The implementation. Clones share its state.
#[derive(Clone)]
pub struct Service {
    access: watch::Receiver<Option<Access>>,
    added: Arc<Mutex<Added>>,
    /// Client in the log: an address, or the credentials of a process.
    client: Arc<str>,
}

/// Additions of clients to one speaker.
#[derive(Default)]
struct Added {
    speaker: Option<Handle>,
    routes: BTreeMap<IpNet, [u8; 16]>,
    /// As requested: the cluster may have configured one of them differently since.
    neighbours: BTreeMap<IpAddr, WantedNeighbour>,
    counter: u64,
}

/// Tables of the speaker.
const GLOBAL: i32 = 0;
const ADJ_IN: i32 = 2;
const ADJ_OUT: i32 = 3;
/// Directions of a soft reset.
const INWARDS: i32 = 0;
const OUTWARDS: i32 = 1;

impl Service {
    /// `access` is the current speaker.
    pub fn new(access: watch::Receiver<Option<Access>>) -> Service {
        Service { access, added: Arc::default(), client: "nobody".into() }
    }

    /// Returns a clone for one connection. `client` is its peer.
    pub(super) fn of_client(&self, client: String) -> Service {
        Service { client: client.into(), ..self.clone() }
    }

    fn handle(&self) -> Result<Handle, Status> {
        let access = self.access.borrow();
        let handle = access.as_ref().map(|access| access.handle.clone());
        handle.ok_or_else(|| Status::failed_precondition("BGP does not run (yet); the agent's log says why"))
    }

    /// Queries the speaker.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Speaker) -> T + Send + 'static,
    ) -> Result<T, Status> {
        self.handle()?.ask(question).await.map_err(|ended| Status::unavailable(ended.to_string()))
    }

    /// Makes changes, and logs them with the client.
    async fn order(&self, orders: Vec<Order>) -> Result<(), Status> {
        let first: Vec<String> = orders.iter().take(NAMED).map(changes::text).collect();
        info!(client = %self.client, count = orders.len(), changes = first.join(", "), "gobgp API client changes the BGP configuration");
        self.handle()?.order(orders).await.map_err(|ended| Status::unavailable(ended.to_string()))
    }

    pub(super) async fn bgp(&self) -> Result<GetBgpResponse, Status> {
        let listen = self.access.borrow().as_ref().map(|access| access.listen.clone()).unwrap_or_default();
        // Before there is a speaker clients are to see that there is none.
        let own = self.ask(|speaker| *speaker.rib().own()).await.ok();
        let global = own.map(|own| Global {
            asn: own.asn,
            router_id: own.identifier.to_string(),
            listen_port: listen.first().map_or(-1, |first| first.port().into()),
            listen_addresses: listen.iter().map(|one| one.ip().to_string()).collect(),
            use_multiple_paths: true,
        });
        Ok(GetBgpResponse { global: Some(global.unwrap_or_default()) })
    }

    /// Refuses changes of settings that the cluster determines.
    pub(super) fn refused(&self, what: &str) -> Status {
        Status::failed_precondition(format!(
            "{what} cannot be done here: BGP is set up by the flags of the agent and the annotations of its Node"
        ))
    }

    // ---- Neighbours

    pub(super) async fn peers(
        &self,
        version: Version,
        request: ListPeerRequest,
    ) -> Result<Many<ListPeerResponse>, Status> {
        let ListPeerRequest { address, enable_advertised } = request;
        let response = |peer| ListPeerResponse { peer: Some(peer) };
        if !address.is_empty() {
            let address = self.address_of(&address).await?;
            let asked = asked(version);
            let peer = move |speaker: &mut Speaker| {
                speaker.neighbour(address).map(|neighbour| neighbours::peer(asked, speaker, address, neighbour))
            };
            // The client reports a missing neighbour itself.
            let Some(mut peer) = self.ask(peer).await? else { return Ok(many(Vec::new())) };
            if enable_advertised {
                self.count_advertised(address, &mut peer).await?;
            }
            return Ok(many(vec![response(peer)]));
        }
        let service = self.clone();
        let portions = stream::try_unfold(Some(None), move |after| {
            let service = service.clone();
            async move {
                let Some(after) = after else { return Ok(None) };
                let asked = asked(version);
                let question = move |speaker: &mut Speaker| neighbours::peers(asked, speaker, after, PEERS_AT_ONCE);
                let peers = service.ask(question).await?;
                let next = peers.last().map(|(address, _)| Some(*address)).filter(|_| peers.len() == PEERS_AT_ONCE);
                let peers: Vec<_> = peers.into_iter().map(|(_, peer)| Ok(response(peer))).collect();
                Ok::<_, Status>(Some((stream::iter(peers), next)))
            }
        });
        Ok(Box::pin(portions.try_flatten()))
    }

    async fn count_advertised(&self, address: IpAddr, peer: &mut Peer) -> Result<(), Status> {
        for state in peer.afi_safis.iter_mut().filter_map(|family| family.state.as_mut()) {
            if let Some(family) = meant(state.family.as_ref()) {
                state.advertised = self.size(Which::Out(address), family).await?.prefixes;
            }
        }
        Ok(())
    }

    /// Neighbours that a client names; all of them for `all`.
    async fn named(&self, name: &str) -> Result<Vec<IpAddr>, Status> {
        if name == ALL {
            return self.ask(|speaker| speaker.neighbours().map(|(address, _)| address).collect()).await;
        }
        Ok(vec![self.known(name).await?])
    }

    /// Address that a client writes, of a link-local one with the name or the index of its link.
    async fn address_of(&self, name: &str) -> Result<IpAddr, Status> {
        let names = match name.contains('%') {
            true => self.ask(|speaker| speaker.link_names()).await?,
            false => LinkNames::default(),
        };
        let address = names.address(name);
        address.ok_or_else(|| Status::invalid_argument(format!("{name:?} is no address of a neighbor")))
    }

    /// Address of an existing neighbour.
    async fn known(&self, name: &str) -> Result<IpAddr, Status> {
        let address = self.address_of(name).await?;
        match self.ask(move |speaker| speaker.neighbour(address).is_some()).await? {
            true => Ok(address),
            false => Err(Status::not_found(format!("there is no neighbor {name}"))),
        }
    }

    /// Sends orders for the neighbours that a client names.
    async fn for_each(&self, name: &str, orders: impl Fn(IpAddr) -> Vec<Order>) -> Result<Nothing, Status> {
        let named = self.named(name).await?;
        self.order(named.into_iter().flat_map(orders).collect()).await?;
        Ok(Nothing {})
    }

    pub(super) async fn reset(&self, version: Version, request: ResetPeerRequest) -> Result<Nothing, Status> {
        let ResetPeerRequest { address, communication, soft, direction } = request;
        if !soft {
            return self.end_sessions(&address, Reason::RESET, &communication).await;
        }
        let direction =
            version.place(direction).ok_or_else(|| Status::invalid_argument("the direction is not said"))?;
        let orders = |address| match direction {
            INWARDS => vec![Order::AskAgain(address)],
            OUTWARDS => vec![Order::TellAgain(address)],
            _ => vec![Order::AskAgain(address), Order::TellAgain(address)],
        };
        self.for_each(&address, orders).await
    }

    /// Resets sessions.
    pub(super) async fn end_sessions(&self, name: &str, reason: Reason, text: &str) -> Result<Nothing, Status> {
        let notification = said(reason, text)?;
        self.for_each(name, |address| vec![Order::Restart(address, notification.clone())]).await
    }

    pub(super) async fn disable(&self, name: &str, text: &str) -> Result<Nothing, Status> {
        let notification = said(Reason::SHUTDOWN, text)?;
        self.for_each(name, |address| vec![Order::Stop(address, notification.clone())]).await
    }

    pub(super) async fn enable(&self, name: &str) -> Result<Nothing, Status> {
        self.for_each(name, |address| vec![Order::Start(address)]).await
    }

    pub(super) async fn add_peer(&self, peer: Option<Peer>) -> Result<Nothing, Status> {
        let peer = peer.ok_or_else(|| Status::invalid_argument("the neighbor is missing"))?;
        let handle = self.handle()?;
        let wanted = self
            .ask(move |speaker| {
                let wanted = wishes::neighbour(&peer, speaker)?;
                let there = speaker.neighbour(wanted.address).is_some();
                Ok::<_, String>((wanted, there))
            })
            .await?;
        let (wanted, there) = wanted.map_err(Status::invalid_argument)?;
        if there {
            return Err(Status::already_exists(format!("there is a neighbor {} already", wanted.address)));
        }
        self.added_to(&handle).neighbours.insert(wanted.address, wanted.clone());
        self.order(vec![Order::Want(Arc::new(wanted))]).await?;
        Ok(Nothing {})
    }

    pub(super) async fn delete_peer(&self, name: &str) -> Result<Nothing, Status> {
        let handle = self.handle()?;
        let address = self.known(name).await?;
        let added = self.added_to(&handle).neighbours.remove(&address);
        let wanted = self.ask(move |speaker| speaker.neighbour(address).map(|one| one.wanted().clone())).await?;
        if added.is_none() || added != wanted {
            return Err(Status::failed_precondition(format!(
                "the cluster wants neighbor {address}; `neighbor {address} disable` stops it"
            )));
        }
        self.order(vec![Order::Remove(address, Notification::new(Reason::DECONFIGURED))]).await?;
        Ok(Nothing {})
    }

    /// Additions to this speaker. Another speaker has none of them.
    fn added_to(&self, speaker: &Handle) -> MutexGuard<'_, Added> {
        let mut added = self.added.lock().expect("nobody breaks off while holding it");
        if !added.speaker.as_ref().is_some_and(|known| known.is_same(speaker)) {
            let counter = added.counter;
            *added = Added { speaker: Some(speaker.clone()), counter, ..Added::default() };
        }
        added
    }

    // ---- Routes

    /// Requested table and address family.
    async fn which(&self, version: Version, table: i32, name: &str) -> Result<Which, Status> {
        match version.place(table) {
            Some(GLOBAL) => Ok(Which::Global),
            Some(ADJ_IN) => Ok(Which::In(self.known(name).await?)),
            Some(ADJ_OUT) => Ok(Which::Out(self.known(name).await?)),
            None => Err(Status::invalid_argument("the table is not said")),
            Some(_) => Err(Status::unimplemented("neighbors have no tables of their own here, and there are no VRFs")),
        }
    }

    pub(super) async fn paths(
        &self,
        version: Version,
        request: ListPathRequest,
    ) -> Result<Many<ListPathResponse>, Status> {
        // Before anything is waited for, so that what a client has sent is not kept meanwhile.
        let lookups = Lookup::all(version, &request.prefixes).map_err(Status::invalid_argument)?;
        let which = self.which(version, request.table_type, &request.name).await?;
        let family = meant(request.family.as_ref()).ok_or_else(|| Status::invalid_argument(ONLY_UNICAST))?;
        let marks = request.enable_filtered;
        let rows = self.rows(which, family, lookups);
        let response =
            move |row| ListPathResponse { destination: Some(routes::destination(version, clock(), &row, marks)) };
        Ok(Box::pin(rows.map_ok(response)))
    }

    /// Rows of an answer.
    pub(super) fn rows(&self, which: Which, family: Family, lookups: Vec<Lookup>) -> Many<routes::Row> {
        let service = self.clone();
        let lookups = stream::iter(lookups.into_iter().map(Ok::<_, Status>));
        let rows = lookups.map_ok(move |lookup| {
            let service = service.clone();
            stream::try_unfold(Some(None), move |after| {
                let service = service.clone();
                async move {
                    let Some(after) = after else { return Ok(None) };
                    let question = move |speaker: &mut Speaker| {
                        routes::portion(speaker, Query { which, family, lookup }, after, PREFIXES_AT_ONCE)
                    };
                    let portion = service.ask(question).await?;
                    let rows = portion.rows.into_iter().map(Ok);
                    Ok::<_, Status>(Some((stream::iter(rows), portion.next.map(Some))))
                }
            })
            .try_flatten()
        });
        Box::pin(rows.try_flatten())
    }

    async fn size(&self, which: Which, family: Family) -> Result<Sizes, Status> {
        if !matches!(which, Which::Out(_)) {
            return self.ask(move |speaker| routes::sizes(speaker, which, family)).await;
        }
        let mut rows = self.rows(which, family, vec![Lookup::All]);
        let mut sizes = Sizes::default();
        while let Some(row) = rows.next().await {
            sizes.prefixes += 1;
            sizes.routes += row?.routes.len() as u64;
        }
        Ok(sizes)
    }

    pub(super) async fn table(&self, version: Version, request: GetTableRequest) -> Result<GetTableResponse, Status> {
        let which = self.which(version, request.table_type, &request.name).await?;
        let family = meant(request.family.as_ref()).ok_or_else(|| Status::invalid_argument(ONLY_UNICAST))?;
        let sizes = self.size(which, family).await?;
        Ok(GetTableResponse { num_destination: sizes.prefixes, num_path: sizes.routes, num_accepted: sizes.used })
    }

    pub(super) async fn add_path(&self, version: Version, request: AddPathRequest) -> Result<AddPathResponse, Status> {
        only_global(version, request.table_type, &request.vrf_id)?;
        let handle = self.handle()?;
        let path = request.path.ok_or_else(|| Status::invalid_argument("the route is missing"))?;
        let (prefix, attributes) = wishes::route(version, &path).map_err(Status::invalid_argument)?;
        let wanted = attributes.clone();
        let question = move |speaker: &mut Speaker| {
            let is_ours = speaker.rib().table().path(prefix, PeerId::LOCAL).is_some();
            (is_ours, changes::is_refused(&speaker.rib().policies().import, prefix, &wanted))
        };
        let (is_ours, is_refused) = self.ask(question).await?;
        if is_ours {
            return Err(Status::already_exists(format!("the agent itself announces {prefix}")));
        }
        if is_refused {
            return Err(Status::failed_precondition(format!(
                "import policy refuses {prefix}: it is a pod range or an address of a node, lies in one or in the network of a link, or \
                 is a default route; `gobgp policy` shows the sets"
            )));
        }
        let uuid = {
            let mut added = self.added_to(&handle);
            added.counter += 1;
            let mut uuid = [0; 16];
            let (chance, count) = uuid.split_at_mut(8);
            chance.copy_from_slice(&RandomState::new().hash_one(added.counter).to_be_bytes());
            count.copy_from_slice(&added.counter.to_be_bytes());
            added.routes.insert(prefix, uuid);
            uuid
        };
        self.order(vec![Order::Add(prefix, Box::new(attributes))]).await?;
        Ok(AddPathResponse { uuid: uuid.to_vec() })
    }

    pub(super) async fn delete_path(&self, version: Version, request: DeletePathRequest) -> Result<Nothing, Status> {
        only_global(version, request.table_type, &request.vrf_id)?;
        let handle = self.handle()?;
        let prefix = request.path.as_ref().map(|path| wishes::prefix(version, path)).transpose();
        let prefix = prefix.map_err(Status::invalid_argument)?;
        let family = meant(request.family.as_ref()).ok_or_else(|| Status::invalid_argument(ONLY_UNICAST))?;
        let gone: Vec<IpNet> = {
            let mut added = self.added_to(&handle);
            let chosen = |(one, uuid): &(&IpNet, &[u8; 16])| match prefix {
                Some(prefix) => **one == prefix,
                None if request.uuid.is_empty() => Family::from(**one) == family,
                None => uuid.as_slice() == request.uuid,
            };
            let gone = added.routes.iter().filter(chosen).map(|(prefix, _)| *prefix).collect();
            added.routes.retain(|prefix, uuid| !chosen(&(prefix, uuid)));
            gone
        };
        if let (Some(prefix), true) = (prefix, gone.is_empty()) {
            return Err(Status::failed_precondition(format!("{prefix} was not added by a client")));
        }
        self.order(gone.into_iter().map(Order::Delete).collect()).await?;
        Ok(Nothing {})
    }

    // ---- Policies

    async fn in_force(&self) -> Result<Policies, Status> {
        self.ask(|speaker| speaker.rib().policies().clone()).await
    }

    pub(super) async fn policies(&self, version: Version, name: &str) -> Result<Many<ListPolicyResponse>, Status> {
        let all = policies::policies(version, &self.in_force().await?);
        let named = all.into_iter().filter(|policy| name.is_empty() || policy.name == name);
        Ok(many(named.map(|policy| ListPolicyResponse { policy: Some(policy) }).collect()))
    }

    pub(super) async fn statements(&self, version: Version, name: &str) -> Result<Many<ListStatementResponse>, Status> {
        let all = policies::statements(version, &self.in_force().await?);
        let named = all.into_values().filter(|statement| name.is_empty() || statement.name == name);
        Ok(many(named.map(|statement| ListStatementResponse { statement: Some(statement) }).collect()))
    }

    pub(super) async fn sets(
        &self,
        version: Version,
        kind: i32,
        name: &str,
    ) -> Result<Many<ListDefinedSetResponse>, Status> {
        let all = policies::sets(version, &self.in_force().await?, kind)
            .ok_or_else(|| Status::invalid_argument("there are no sets of this kind"))?;
        let named = all.into_values().filter(|set| name.is_empty() || set.name == name);
        Ok(many(named.map(|set| ListDefinedSetResponse { defined_set: Some(set) }).collect()))
    }

    pub(super) async fn assignments(
        &self,
        version: Version,
        name: &str,
        direction: i32,
    ) -> Result<Many<ListPolicyAssignmentResponse>, Status> {
        if !["", "global"].contains(&name) {
            return Err(Status::unimplemented("neighbors have no policies of their own here"));
        }
        let directions = if direction == 0 { vec![policies::IMPORT, policies::EXPORT] } else { vec![direction] };
        let in_force = self.in_force().await?;
        let all = directions.into_iter().filter_map(|one| policies::assignment(version, &in_force, one));
        Ok(many(all.map(|assignment| ListPolicyAssignmentResponse { assignment: Some(assignment) }).collect()))
    }

    /// All neighbours, for watchers.
    pub(super) async fn all_peers(&self, version: Version) -> Result<BTreeMap<IpAddr, Peer>, Status> {
        let asked = asked(version);
        let all = self.ask(move |speaker| neighbours::peers(asked, speaker, None, usize::MAX)).await?;
        Ok(all.into_iter().collect())
    }
}

fn only_global(version: Version, table: i32, vrf: &str) -> Result<(), Status> {
    match version.place(table) {
        Some(GLOBAL) if vrf.is_empty() => Ok(()),
        _ => Err(Status::unimplemented("routes are added to the global table and taken from there, and from no other")),
    }
}

fn said(reason: Reason, text: &str) -> Result<Notification, Status> {
    match text.len() {
        ..=LONGEST_TEXT => Ok(Notification::with_text(reason, text)),
        _ => Err(Status::invalid_argument(format!("the text may have {LONGEST_TEXT} bytes at the most"))),
    }
}

/// Streaming answer of values already present.
pub(super) fn many<T: Send + 'static>(all: Vec<T>) -> Many<T> {
    Box::pin(stream::iter(all.into_iter().map(Ok)))
}

/// Current time.
pub(super) fn clock() -> Clock {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Clock { now: Instant::now(), since_1970 }
}

fn asked(version: Version) -> RequestContext {
    RequestContext { version, clock: clock() }
}
