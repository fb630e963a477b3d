//! EndpointSlices by their Services.
//!
//! A slice may change hands, and a message that it is gone does not name its Service. Nearly every slice is called as the API
//! server calls those that it makes, by the Service's name, a hyphen and a suffix without one, so that its name says where it is; the
//! Services of the others are written down.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use compact_str::CompactString;

use super::Joined;
use crate::k8s::{Kind, ObjectId, SliceOf};
use crate::model::{EndpointSlice, Endpoints, ObjectName, Table};

/// The Services of slices whose names do not say them, under which they were last counted.
#[derive(Default)]
pub(super) struct SliceOwners(HashMap<ObjectName, CompactString>);

impl SliceOwners {
    /// Returns the Service that has this slice; `None` for a slice that is not known.
    pub(super) fn of(&self, slice: &ObjectName, endpoints: &Table<ObjectName, Endpoints>) -> Option<CompactString> {
        if let Some(service) = self.0.get(slice) {
            return Some(service.clone());
        }
        let service = ObjectName::new(&slice.namespace, said_by(&slice.name)?);
        let is_its = endpoints.get(&service)?.slices.get(&slice.name).is_some();
        is_its.then(|| service.name.to_compact())
    }

    /// Sets the Service of a slice, or removes what is known of it.
    fn set(&mut self, slice: &ObjectName, service: Option<&CompactString>) {
        match service.filter(|service| said_by(&slice.name) != Some(service.as_str())) {
            Some(service) => drop(self.0.insert(slice.clone(), service.clone())),
            None => drop(self.0.remove(slice)),
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Returns the Service that the name of a slice says.
fn said_by(slice: &str) -> Option<&str> {
    slice.rsplit_once('-').map(|(service, _)| service)
}

impl Joined {
    pub(super) fn remember_slices(
        &mut self,
        service: &ObjectName,
        endpoints: &Endpoints,
        named: Option<&HashSet<ObjectName>>,
    ) {
        for (slice_name, slice) in endpoints.slices.iter() {
            let id = ObjectName::of(service.namespace.clone(), slice_name);
            let is_unreadable = || self.unknown.contains(&ObjectId { kind: Kind::EndpointSlice, name: id.clone() });
            let is_open = named.is_none_or(|named| !named.contains(&id)) || is_unreadable();
            if is_open && !self.has_slice(&id) {
                self.put_slice(id, Some(SliceOf { service: service.name.to_compact(), slice: slice.clone() }));
            }
        }
    }

    /// Returns whether this slice is known.
    pub(super) fn has_slice(&self, name: &ObjectName) -> bool {
        self.slices.of(name, &self.cluster.endpoints).is_some()
    }

    /// Returns the names of all slices.
    pub(super) fn slice_names(&self) -> Vec<ObjectName> {
        let of_service = |(service, endpoints): (&ObjectName, &Arc<Endpoints>)| -> Vec<ObjectName> {
            let names = endpoints.slices.keys();
            names.map(|name| ObjectName::of(service.namespace.clone(), name)).collect()
        };
        self.cluster.endpoints.iter().flat_map(of_service).collect()
    }

    pub(super) fn put_slice(&mut self, name: ObjectName, slice: Option<SliceOf>) -> bool {
        let owner = slice.as_ref().map(|slice| slice.service.clone());
        let former = self.slices.of(&name, &self.cluster.endpoints);
        let mut changed = false;
        if let Some(former) = former.filter(|former| owner.as_ref() != Some(former)) {
            changed |= self.set_slice(&former, &name, None);
        }
        self.slices.set(&name, owner.as_ref());
        if let Some(SliceOf { service, slice }) = slice {
            changed |= self.set_slice(&service, &name, Some(slice));
        }
        changed
    }

    fn set_slice(&mut self, service: &CompactString, name: &ObjectName, slice: Option<Arc<EndpointSlice>>) -> bool {
        let own = &mut self.cluster;
        let key = ObjectName::of(name.namespace.clone(), service);
        // The names of a Service and of its endpoints are one in memory.
        let key = own.services.key(&key).cloned().unwrap_or(key);
        let known = own.endpoints.get(&key);
        let before = known.and_then(|endpoints| endpoints.slices.get(&name.name));
        if before == slice.as_ref() {
            return false;
        }
        let mut endpoints = known.map_or_else(Endpoints::default, |known| (**known).clone());
        match slice {
            Some(slice) => endpoints.slices.insert(name.name.to_compact(), slice),
            None => endpoints.slices.remove(&name.name),
        };
        if endpoints.slices.is_empty() {
            own.endpoints.remove(&key).is_some()
        } else {
            own.endpoints.insert(key, endpoints)
        }
    }
}
