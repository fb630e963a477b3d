//! The tables of the World and the rules by which a source's messages change them.
//!
//! Pure: messages in, tables out.
//!
//! A listing grows at once and shrinks at its end: what it does not name is removed only when it is over,
//! because until then absence proves nothing.
//!
//! Kinds that are known together are judged together: those that the service proxy needs, those that the firewall
//! needs, and all nodes, which the router needs. None waits for the others', and while nothing may be done with a kind
//! its changes are nobody's news.
//!
//! An object that cannot be parsed keeps its last good version. Where there is none its kinds are known in part
//! only, until they have been complete once: from then on it is a new object which never was in force. ClusterNetworkPolicies
//! are told apart ([`crate::model::UnreadPolicies`]): what one of them denied can be found in the kernel by its name alone, so all others go on
//! without it.

mod believed;
mod own_node;
mod policy_problems;
mod slices;
mod unread;

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use compact_str::CompactString;

use self::own_node::as_detected;
use self::slices::SliceOwners;
use super::attachments::Attachments;
use super::last_known::Known;
use crate::k8s::{Kind, Object, ObjectId, Wanted};
use crate::model::{
    Attachment, AttachmentChange, Authorities, Authority, Cluster, Host, Node, ObjectName, Pod, PolicyProblems, Table,
    World,
};
use crate::net::NodeAnnotations;

/// All known state, from all inputs.
pub struct Joined {
    cluster: Cluster,
    host: Arc<Host>,
    annotations: NodeAnnotations,
    /// Our own Node as the source has told it.
    own_node: Option<Arc<Node>>,
    slices: SliceOwners,
    /// Addresses of pods that their status does not have yet.
    attachments: Attachments,
    listings: Vec<Listing>,
    proxy: Part,
    firewall: Part,
    router: Part,
    /// The last known state has been asked for.
    has_asked: bool,
    shows_life: bool,
    /// The source cannot read something and cannot name it.
    unreadable: bool,
    /// Objects that cannot be parsed and of which no good version is known.
    unknown: HashSet<ObjectId>,
    /// Our own Node came with external peers that cannot be read, before any good version of it: the last known state may have them.
    lacks_peers: bool,
    policy_problems: PolicyProblems,
    unpublished: bool,
}

/// Kinds whose authority is decided together.
struct Part {
    kinds: &'static [Kind],
    is_wanted: bool,
    /// The last known state held these kinds in full.
    may_be_remembered: bool,
    was_complete: bool,
    now: Authority,
}

const PROXY_KINDS: [Kind; 4] = [Kind::Service, Kind::EndpointSlice, Kind::Node, Kind::ServiceCidr];
const FIREWALL_KINDS: [Kind; 6] =
    [Kind::Pod, Kind::Namespace, Kind::NetworkPolicy, Kind::ClusterNetworkPolicy, Kind::Node, Kind::ServiceCidr];
const ROUTER_KINDS: [Kind; 2] = [Kind::Node, Kind::ServiceCidr];

/// Progress of listing one kind.
struct Listing {
    kind: Kind,
    /// It has been listed in full at least once, or nobody is to wait for it.
    is_known: bool,
    /// Nobody waits for it, although it was never listed.
    is_withheld: bool,
    /// The last known state, in which this kind was known in full, has been put in place.
    is_remembered: bool,
    /// The names in the listing in progress so far.
    named: Option<HashSet<ObjectName>>,
}

impl Joined {
    pub fn new(wanted: &[Wanted]) -> Joined {
        let listing = |wanted: &Wanted| Listing {
            kind: wanted.kind(),
            is_known: false,
            is_withheld: false,
            is_remembered: false,
            named: None,
        };
        Joined {
            cluster: Cluster::default(),
            host: Arc::new(Host::default()),
            annotations: NodeAnnotations::default(),
            own_node: None,
            slices: SliceOwners::default(),
            attachments: Attachments::default(),
            listings: wanted.iter().map(listing).collect(),
            proxy: Part::new(&PROXY_KINDS, wanted.iter().any(|wanted| is_beside_nodes(wanted, &PROXY_KINDS))),
            firewall: Part::new(&FIREWALL_KINDS, wanted.iter().any(|wanted| is_beside_nodes(wanted, &FIREWALL_KINDS))),
            router: Part::new(&ROUTER_KINDS, wanted.contains(&Wanted::Nodes)),
            has_asked: false,
            shows_life: false,
            unreadable: false,
            unknown: HashSet::new(),
            lacks_peers: false,
            policy_problems: PolicyProblems::default(),
            unpublished: false,
        }
    }

    /// Returns the authority of these tables.
    pub fn authority(&mut self) -> Authorities {
        let counts = |id: &&ObjectId| !matches!(id.kind, Kind::ClusterNetworkPolicy | Kind::ServiceCidr);
        let sound = |kind| !self.unreadable && !self.unknown.iter().filter(counts).any(|id| id.kind == kind);
        Authorities {
            proxy: self.proxy.authority(&self.listings, sound),
            firewall: self.firewall.authority(&self.listings, sound),
            router: self.router.authority(&self.listings, sound),
        }
    }

    /// Returns whether everything that is wanted was known in full at the last call of `authority`.
    pub fn is_complete(&self) -> bool {
        self.parts().all(|part| part.now == Authority::Complete || !part.is_wanted)
    }

    /// The kinds that have not been listed in full yet.
    pub fn unlisted(&self) -> impl Iterator<Item = Kind> {
        self.listings.iter().filter(|listing| !listing.is_known).map(|listing| listing.kind)
    }

    /// The World as of now.
    pub fn world(&self, authority: Authorities) -> World {
        let (cluster, host) = (self.cluster.clone(), self.host.clone());
        World {
            number: 0,
            cluster,
            host,
            authority,
            unread: self.unread(),
            policy_problems: self.policy_problems.clone(),
        }
    }

    fn parts(&self) -> impl Iterator<Item = &Part> {
        [&self.proxy, &self.firewall, &self.router].into_iter()
    }

    /// Returns whether the Node of this host is known.
    pub fn has_own_node(&self) -> bool {
        self.cluster.nodes.get(&self.host.node_name).is_some()
    }

    /// Returns whether Nodes have been listed without that of this host.
    pub fn lacks_own_node(&self) -> bool {
        let mut nodes = self.listings.iter().filter(|listing| listing.kind == Kind::Node);
        nodes.any(|listing| listing.is_known) && !self.has_own_node()
    }

    /// Returns whether anything changed since the last call.
    pub fn take_unpublished(&mut self) -> bool {
        std::mem::take(&mut self.unpublished)
    }

    /// Returns whether the source has sent nothing at all yet.
    pub fn waits_for_a_sign_of_life(&self) -> bool {
        !self.shows_life && self.may_remember()
    }

    /// Sets the facts of the host; returns whether they changed. Where the API server is asked stays as it was told last.
    pub fn set_host(&mut self, mut host: Arc<Host>) -> bool {
        if host.api_server != self.host.api_server {
            Arc::make_mut(&mut host).api_server.clone_from(&self.host.api_server);
        }
        let changed = *self.host != *host;
        self.attachments.set_node(host.node_name.clone());
        self.host = host;
        self.replace_own_node();
        self.unpublished |= changed;
        changed
    }

    /// Sets the addresses at which the API server is asked; returns whether they changed.
    pub fn set_api_server(&mut self, addresses: Vec<IpAddr>) -> bool {
        let changed = self.host.api_server != addresses;
        if changed {
            Arc::make_mut(&mut self.host).api_server = addresses;
        }
        self.unpublished |= changed;
        changed
    }

    /// Takes over the attachments that an earlier run announced.
    pub fn restore_attachments(&mut self, kept: Vec<Attachment>) {
        self.attachments = Attachments::restored(kept);
        self.attachments.set_node(self.host.node_name.clone());
    }

    /// Applies a call of the container runtime; returns whether a pod differs and somebody may act upon it.
    pub fn attach(&mut self, change: AttachmentChange) -> bool {
        let mut changed = false;
        for (name, pod) in self.attachments.apply(change, &self.cluster.pods) {
            changed |= set(&mut self.cluster.pods, name, pod);
        }
        let told = self.firewall.tells(Kind::Pod);
        self.unpublished |= changed && told;
        changed && told
    }

    /// Returns the attachments to be kept on disk, if they have changed since the last call.
    pub fn take_attachments(&mut self) -> Option<Vec<Attachment>> {
        self.attachments.take_changed()
    }

    /// Returns the pods that were gone and had to make room for others since the last call.
    pub fn take_displaced(&mut self) -> Vec<ObjectName> {
        self.attachments.take_displaced()
    }

    /// Notes that these could not be written: the next call returns them again.
    pub fn attachments_not_kept(&mut self) {
        self.attachments.not_kept();
    }

    pub fn set_unreadable(&mut self, unreadable: bool) {
        self.unreadable = unreadable;
    }

    /// Returns whether the last known state would be of use: it was not requested yet, and not all is known.
    pub fn may_remember(&self) -> bool {
        !self.has_asked && !self.listings.iter().all(|listing| listing.is_known && !listing.is_withheld)
    }

    /// Records that there is no last known state.
    pub fn remember_nothing(&mut self) {
        self.has_asked = true;
    }

    /// Puts the last known state in place where nothing is known. Whatever was received since the start
    /// counts more.
    pub fn remember(&mut self, remembered: Known) {
        self.has_asked = true;
        let Known { cluster, kinds, all_nodes } = self.remembered_as_believed(remembered);
        self.router.may_be_remembered = all_nodes;
        for kind in kinds {
            let is_missing = |listing: &Listing| listing.kind == kind && (!listing.is_known || listing.is_withheld);
            let Some(at) = self.listings.iter().position(is_missing) else { continue };
            let mut listing = self.listings.remove(at);
            listing.is_remembered = true;
            self.remember_kind(&listing, &cluster);
            self.listings.insert(at, listing);
        }
        self.unpublished = true;
    }

    /// Adds the rows of a kind that are not there. What its listing has named already is as the source says, also where that is
    /// nothing, unless it cannot be read.
    fn remember_kind(&mut self, listing: &Listing, remembered: &Cluster) {
        let (own, unknown, kind) = (&mut self.cluster, &self.unknown, listing.kind);
        let is_open = |name: &ObjectName| {
            let is_named = listing.named.as_ref().is_some_and(|named| named.contains(name));
            !is_named || unknown.contains(&ObjectId { kind, name: name.clone() })
        };
        let has_open_name = |name: &CompactString| is_open(&ObjectName::new("", name));
        match kind {
            Kind::Service => fill(&mut own.services, &remembered.services, is_open),
            Kind::Node => {
                fill(&mut own.nodes, &remembered.nodes, has_open_name);
                self.recall_peers(remembered);
                self.replace_own_node();
            }
            Kind::Pod => {
                fill(&mut own.pods, &remembered.pods, is_open);
                for (name, pod) in self.attachments.recall(&own.pods) {
                    set(&mut own.pods, name, pod);
                }
            }
            Kind::Namespace => fill(&mut own.namespaces, &remembered.namespaces, has_open_name),
            Kind::NetworkPolicy => {
                fill(&mut own.policies, &remembered.policies, is_open);
                self.unknown.retain(|id| id.kind != kind || own.policies.get(&id.name).is_none());
            }
            Kind::ClusterNetworkPolicy => {
                fill(&mut own.cluster_policies, &remembered.cluster_policies, has_open_name);
                self.unknown
                    .retain(|id| id.kind != kind || own.cluster_policies.get(&id.name.name.to_compact()).is_none());
            }
            Kind::ServiceCidr => fill(&mut own.service_cidrs, &remembered.service_cidrs, has_open_name),
            Kind::EndpointSlice => {
                let named = listing.named.as_ref();
                for (name, endpoints) in remembered.endpoints.iter() {
                    self.remember_slices(name, endpoints, named);
                }
            }
        }
    }

    pub fn begin_listing(&mut self, kind: Kind) {
        for listing in self.listings.iter_mut().filter(|listing| listing.kind == kind) {
            listing.named = Some(HashSet::new());
        }
    }

    /// Records that nobody is to wait for a kind, which may not be read: what is known of it stays.
    pub fn withhold(&mut self, kind: Kind) {
        self.shows_life = true;
        for listing in self.listings.iter_mut().filter(|listing| listing.kind == kind) {
            listing.is_withheld |= !listing.is_known;
            (listing.is_known, listing.named) = (true, None);
        }
        self.unpublished = true;
    }

    /// Removes what the listing did not name; returns whether that was anything.
    pub fn end_listing(&mut self, kind: Kind) -> bool {
        self.shows_life = true;
        let (mut named, mut was_withheld) = (None, false);
        for listing in self.listings.iter_mut().filter(|listing| listing.kind == kind) {
            named = listing.named.take();
            was_withheld |= listing.is_withheld;
            (listing.is_known, listing.is_withheld) = (true, false);
        }
        self.unpublished |= was_withheld;
        let Some(named) = named else { return false };
        // One of which not even the name could be read may be any of those that were not named.
        if named.contains(&ObjectName::new("", "")) {
            return false;
        }
        let mut changed = false;
        for name in self.names(kind).into_iter().filter(|name| !named.contains(name)) {
            changed |= self.put(Object::gone(ObjectId { kind, name }));
        }
        self.unknown.retain(|id| id.kind != kind || named.contains(&id.name));
        self.forget_problems(kind, &named);
        if kind == Kind::Pod {
            for (name, pod) in self.attachments.listed() {
                changed |= set(&mut self.cluster.pods, name, pod);
            }
        }
        changed
    }

    /// Puts one object in place; returns whether it differs from the known one and somebody may act upon it.
    pub fn put(&mut self, object: Object) -> bool {
        self.shows_life = true;
        let id = object.id();
        for listing in self.listings.iter_mut().filter(|listing| listing.kind == id.kind) {
            if let Some(named) = &mut listing.named {
                named.insert(id.name.clone());
            }
        }
        let kind = id.kind;
        if matches!(object, Object::Unreadable(_)) {
            if !self.is_held(&id) {
                self.unpublished |= self.unknown.insert(id);
            }
            return false;
        }
        self.unpublished |= self.unknown.remove(&id);
        let object = self.with_last_good_peers(object);
        let object = self.as_believed(object);
        let own = &mut self.cluster;
        let changed = match object {
            Object::Service(name, value) => {
                let name = own.endpoints.key(&name).cloned().unwrap_or(name);
                set(&mut own.services, name, value)
            }
            Object::EndpointSlice(name, slice) => self.put_slice(name, slice.map(|slice| *slice)),
            Object::Node(name, value) if name == self.host.node_name => {
                self.own_node.clone_from(&value);
                set(&mut own.nodes, name, value.map(|node| as_detected(node, &self.host)))
            }
            Object::Node(name, value) if self.host.node_name.is_empty() => set(&mut own.nodes, name, value),
            // Their passwords are nothing to this host, and a change of them is none to anybody.
            Object::Node(name, value) => set(&mut own.nodes, name, value.map(Node::without_external_peers)),
            Object::Pod(name, value) => {
                let shown = self.attachments.put(&name, value.map(|pod| of_node(pod, &self.host.node_name)));
                shown.into_iter().fold(false, |changed, (name, pod)| set(&mut own.pods, name, pod) | changed)
            }
            Object::Namespace(name, value) => set(&mut own.namespaces, name, value),
            Object::NetworkPolicy(name, value) => set(&mut own.policies, name, value),
            Object::ClusterNetworkPolicy(name, value) => set(&mut own.cluster_policies, name, value),
            Object::ServiceCidr(name, value) => set(&mut own.service_cidrs, name, value),
            Object::Unreadable(_) => false,
        };
        let told = self.parts().any(|part| part.tells(kind));
        self.unpublished |= changed && told;
        changed && told
    }

    /// Returns whether a good version of this object is known.
    fn is_held(&self, id: &ObjectId) -> bool {
        let own = &self.cluster;
        match id.kind {
            Kind::Service => own.services.get(&id.name).is_some(),
            Kind::EndpointSlice => self.has_slice(&id.name),
            Kind::Node => own.nodes.get(&id.name.name.to_compact()).is_some(),
            Kind::Pod => own.pods.get(&id.name).is_some(),
            Kind::Namespace => own.namespaces.get(&id.name.name.to_compact()).is_some(),
            Kind::NetworkPolicy => own.policies.get(&id.name).is_some(),
            Kind::ClusterNetworkPolicy => own.cluster_policies.get(&id.name.name.to_compact()).is_some(),
            Kind::ServiceCidr => own.service_cidrs.get(&id.name.name.to_compact()).is_some(),
        }
    }

    fn names(&self, kind: Kind) -> Vec<ObjectName> {
        let own = &self.cluster;
        match kind {
            Kind::Service => own.services.iter().map(|(name, _)| name.clone()).collect(),
            Kind::EndpointSlice => self.slice_names(),
            Kind::Node => own.nodes.iter().map(|(name, _)| ObjectName::new("", name)).collect(),
            Kind::Pod => own.pods.iter().map(|(name, _)| name.clone()).collect(),
            Kind::Namespace => own.namespaces.iter().map(|(name, _)| ObjectName::new("", name)).collect(),
            Kind::NetworkPolicy => own.policies.iter().map(|(name, _)| name.clone()).collect(),
            Kind::ClusterNetworkPolicy => {
                own.cluster_policies.iter().map(|(name, _)| ObjectName::new("", name)).collect()
            }
            Kind::ServiceCidr => own.service_cidrs.iter().map(|(name, _)| ObjectName::new("", name)).collect(),
        }
    }
}

/// The Node of this host and the ranges of cluster IPs are needed by several parts and make none.
fn is_beside_nodes(wanted: &Wanted, kinds: &[Kind]) -> bool {
    !matches!(wanted.kind(), Kind::Node | Kind::ServiceCidr) && kinds.contains(&wanted.kind())
}

impl Part {
    fn new(kinds: &'static [Kind], is_wanted: bool) -> Part {
        Part { kinds, is_wanted, may_be_remembered: true, was_complete: false, now: Authority::Nothing }
    }

    fn authority(&mut self, listings: &[Listing], sound: impl Fn(Kind) -> bool) -> Authority {
        let own = || listings.iter().filter(|listing| self.kinds.contains(&listing.kind));
        let is_listed = own().all(|listing| listing.is_known);
        let is_wanted = self.is_wanted;
        let complete = self.was_complete || is_listed && own().all(|listing| sound(listing.kind));
        let remembered = self.may_be_remembered && own().all(|listing| listing.is_known || listing.is_remembered);
        self.was_complete = is_wanted && complete;
        self.now = match (is_wanted, complete, is_listed, remembered) {
            (false, ..) => Authority::Nothing,
            (true, true, _, _) => Authority::Complete,
            (true, false, true, _) => Authority::Partial,
            (true, false, false, true) => Authority::Remembered,
            (true, false, false, false) => Authority::Nothing,
        };
        self.now
    }

    /// Returns whether a change of this kind is anybody's news.
    fn tells(&self, kind: Kind) -> bool {
        self.now > Authority::Nothing && self.kinds.contains(&kind)
    }
}

/// Leaves the UID of a pod out that does not run on this node: nothing depends on it, and one that is listed stays equal to the
/// one that is remembered.
fn of_node(mut pod: Arc<Pod>, node: &CompactString) -> Arc<Pod> {
    if pod.uid.is_some() && pod.node.as_ref().is_some_and(|of| **of != **node) {
        Arc::make_mut(&mut pod).uid = None;
    }
    pod
}

/// Sets or removes one row; returns whether that changed anything.
fn set<K: Ord + Clone, V: PartialEq>(table: &mut Table<K, V>, key: K, value: Option<Arc<V>>) -> bool {
    match value {
        Some(value) => table.insert_shared(key, value),
        None => table.remove(&key).is_some(),
    }
}

/// Adds the rows whose keys are not there and pass this test.
fn fill<K: Ord + Clone, V: PartialEq>(table: &mut Table<K, V>, from: &Table<K, V>, is_open: impl Fn(&K) -> bool) {
    for (key, value) in from.iter() {
        if table.get(key).is_none() && is_open(key) {
            table.insert_shared(key.clone(), value.clone());
        }
    }
}

#[cfg(test)]
mod tests;
