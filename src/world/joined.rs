//! The tables of the World and the rules by which a source's words change them.
//!
//! Pure: words in, tables out.
//!
//! A listing grows at once and shrinks at its end: what it does not name is removed only when it is over,
//! because until then absence proves nothing.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use compact_str::CompactString;

use crate::k8s::{Kind, Object, ObjectId, SliceOf, Wanted};
use crate::model::{Authority, Cluster, Endpoints, Host, ObjectName, World};

/// Everything that is known, from all inputs.
pub struct Joined {
    cluster: Cluster,
    host: Arc<Host>,
    /// Which Service each slice was last counted under: a slice may change hands, and a word that it is
    /// gone does not say whose it was.
    slices: HashMap<ObjectName, CompactString>,
    listings: Vec<Listing>,
    remembers: Remembers,
    shows_life: bool,
    unreadable: bool,
    was_complete: bool,
    unpublished: bool,
}

/// What became of the last known state.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Remembers {
    /// Nobody has asked for it.
    NotYet,
    /// There is none, or it cannot be used.
    Nothing,
    Something,
}

/// How far one kind has been listed.
struct Listing {
    kind: Kind,
    /// It has been listed in full at least once.
    is_known: bool,
    /// What the listing that is under way has named so far.
    named: Option<HashSet<ObjectName>>,
}

impl Joined {
    pub fn new(wanted: &[Wanted]) -> Joined {
        let listing = |wanted: &Wanted| Listing { kind: wanted.kind(), is_known: false, named: None };
        Joined {
            cluster: Cluster::default(),
            host: Arc::new(Host::default()),
            slices: HashMap::new(),
            listings: wanted.iter().map(listing).collect(),
            remembers: Remembers::NotYet,
            shows_life: false,
            unreadable: false,
            was_complete: false,
            unpublished: false,
        }
    }

    /// What may be done on the word of these tables.
    pub fn authority(&mut self) -> Authority {
        let is_listed = self.listings.iter().all(|listing| listing.is_known);
        self.was_complete |= is_listed && !self.unreadable;
        match (self.was_complete, is_listed, self.remembers == Remembers::Something) {
            (true, _, _) => Authority::Complete,
            (false, true, _) => Authority::Partial,
            (false, false, true) => Authority::Remembered,
            (false, false, false) => Authority::Nothing,
        }
    }

    /// The World as of now.
    pub fn world(&self, authority: Authority) -> World {
        World { cluster: self.cluster.clone(), host: self.host.clone(), authority }
    }

    /// Whether anything changed since the last call.
    pub fn take_unpublished(&mut self) -> bool {
        std::mem::take(&mut self.unpublished)
    }

    /// True while nothing at all has been heard of the cluster.
    pub fn waits_for_a_sign_of_life(&self) -> bool {
        !self.shows_life && self.may_remember()
    }

    /// True if the facts of the host are new.
    pub fn set_host(&mut self, host: Arc<Host>) -> bool {
        let changed = *self.host != *host;
        self.host = host;
        self.unpublished |= changed;
        changed
    }

    pub fn set_unreadable(&mut self, unreadable: bool) {
        self.unreadable = unreadable;
    }

    /// Whether the last known state would be of use: it was not asked for yet, and not all is known.
    pub fn may_remember(&self) -> bool {
        self.remembers == Remembers::NotYet && !self.listings.iter().all(|listing| listing.is_known)
    }

    /// Notes that there is no last known state to put in place.
    pub fn remember_nothing(&mut self) {
        self.remembers = Remembers::Nothing;
    }

    /// Puts the last known state in place where nothing is known. What has been heard of since the start
    /// counts more.
    pub fn remember(&mut self, remembered: Cluster) {
        let missing = |kind| self.listings.iter().any(|listing| listing.kind == kind && !listing.is_known);
        let (services, slices, nodes) = (missing(Kind::Service), missing(Kind::EndpointSlice), missing(Kind::Node));
        for (name, service) in remembered.services.iter().filter(|_| services) {
            if self.cluster.services.get(name).is_none() {
                self.cluster.services.insert_shared(name.clone(), service.clone());
            }
        }
        for (name, endpoints) in remembered.endpoints.iter().filter(|_| slices) {
            for (slice_name, slice) in &endpoints.slices {
                let id = ObjectName { namespace: name.namespace.clone(), name: slice_name.clone() };
                if !self.slices.contains_key(&id) {
                    self.put_slice(id, Some(SliceOf { service: name.name.clone(), slice: slice.clone() }));
                }
            }
        }
        for (name, node) in remembered.nodes.iter().filter(|_| nodes) {
            if self.cluster.nodes.get(name).is_none() {
                self.cluster.nodes.insert_shared(name.clone(), node.clone());
            }
        }
        (self.remembers, self.unpublished) = (Remembers::Something, true);
    }

    pub fn begin_listing(&mut self, kind: Kind) {
        for listing in self.listings.iter_mut().filter(|listing| listing.kind == kind) {
            listing.named = Some(HashSet::new());
        }
    }

    /// Removes what the listing did not name. True if that was anything.
    pub fn end_listing(&mut self, kind: Kind) -> bool {
        self.shows_life = true;
        let mut named = None;
        for listing in self.listings.iter_mut().filter(|listing| listing.kind == kind) {
            named = listing.named.take();
            listing.is_known = true;
        }
        let Some(named) = named else { return false };
        let mut changed = false;
        for name in self.names(kind).into_iter().filter(|name| !named.contains(name)) {
            changed |= self.put(Object::gone(ObjectId { kind, name }));
        }
        changed
    }

    /// Takes in one object. True if it differs from what was known.
    pub fn put(&mut self, object: Object) -> bool {
        self.shows_life = true;
        let id = object.id();
        for listing in self.listings.iter_mut().filter(|listing| listing.kind == id.kind) {
            if let Some(named) = &mut listing.named {
                named.insert(id.name.clone());
            }
        }
        let changed = match object {
            Object::Service(name, Some(service)) => self.cluster.services.insert_shared(name, service),
            Object::Service(name, None) => self.cluster.services.remove(&name).is_some(),
            Object::EndpointSlice(name, slice) => self.put_slice(name, slice),
            Object::Node(name, Some(node)) => self.cluster.nodes.insert_shared(name, node),
            Object::Node(name, None) => self.cluster.nodes.remove(&name).is_some(),
        };
        self.unpublished |= changed;
        changed
    }

    fn put_slice(&mut self, name: ObjectName, slice: Option<SliceOf>) -> bool {
        let owner = slice.as_ref().map(|slice| slice.service.clone());
        let mut changed = false;
        if self.slices.get(&name) != owner.as_ref() {
            if let Some(former) = self.slices.remove(&name) {
                changed |= self.set_slice(&former, &name, None);
            }
            if let Some(owner) = &owner {
                self.slices.insert(name.clone(), owner.clone());
            }
        }
        if let Some(SliceOf { service, slice }) = slice {
            changed |= self.set_slice(&service, &name, Some(slice));
        }
        changed
    }

    fn set_slice(
        &mut self,
        service: &CompactString,
        name: &ObjectName,
        slice: Option<Arc<crate::model::EndpointSlice>>,
    ) -> bool {
        let key = ObjectName { namespace: name.namespace.clone(), name: service.clone() };
        let known = self.cluster.endpoints.get(&key);
        let before = known.and_then(|endpoints| endpoints.slices.get(&name.name));
        if before == slice.as_ref() {
            return false;
        }
        let mut endpoints = known.map_or_else(Endpoints::default, |known| (**known).clone());
        match slice {
            Some(slice) => endpoints.slices.insert(name.name.clone(), slice),
            None => endpoints.slices.remove(&name.name),
        };
        if endpoints.slices.is_empty() {
            self.cluster.endpoints.remove(&key).is_some()
        } else {
            self.cluster.endpoints.insert(key, endpoints)
        }
    }

    fn names(&self, kind: Kind) -> Vec<ObjectName> {
        match kind {
            Kind::Service => self.cluster.services.iter().map(|(name, _)| name.clone()).collect(),
            Kind::EndpointSlice => self.slices.keys().cloned().collect(),
            Kind::Node => self.cluster.nodes.iter().map(|(name, _)| ObjectName::new("", name)).collect(),
        }
    }
}

#[cfg(test)]
#[path = "joined/tests.rs"]
mod tests;
