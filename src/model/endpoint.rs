//! Endpoints of Services.
//!
//! Kubernetes: `discovery.k8s.io/v1` EndpointSlice. A Service has any number of slices, each of one family.

use std::net::IpAddr;
use std::sync::Arc;

use compact_str::CompactString;

use super::endpoint_list::EndpointList;
use super::shared_value::Shared;
use crate::net::{Family, Protocol};

/// All slices of one Service, by the name of the slice.
///
/// An address may stand in several slices for a moment while the controller moves it; readers must
/// expect duplicates (`proxy::endpoints` merges them).
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Endpoints {
    pub slices: Slices,
}

/// Slices by name, sorted. The one that nearly every Service has stands in the value itself.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Slices(SlicesForm);

type NamedSlice = (CompactString, Arc<EndpointSlice>);

/// Slices of one number have one form, so that equal slices are equal forms.
#[derive(Clone, PartialEq, Eq, Debug)]
enum SlicesForm {
    One([NamedSlice; 1]),
    /// None, or more than one.
    Any(Box<[NamedSlice]>),
}

/// One slice. Slices of address type FQDN never become a value of this type.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointSlice {
    pub family: Family,
    /// The ports that every endpoint of this slice has. Entries without a number are left out at the door. Slices with the same ports
    /// share the list.
    pub ports: Shared<[EndpointPort]>,
    pub endpoints: EndpointList,
}

/// One entry of `ports[]`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct EndpointPort {
    /// Matches `ServicePort::name`; empty for the single unnamed port.
    pub name: CompactString,
    pub protocol: Protocol,
    pub port: u16,
}

/// One backend: the first entry of `endpoints[].addresses` (the API defines the others as interchangeable
/// names of the same backend, and connections must not be spread over them).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    pub address: IpAddr,
    /// `nodeName`; absent for backends outside the cluster.
    pub node: Option<Shared<str>>,
    pub conditions: Conditions,
    /// `hints`, where there are any that name a zone or a node.
    pub hints: Option<Arc<Hints>>,
}

/// `endpoints[].hints`: from where an endpoint is to be used. The control plane writes them for Services with
/// `spec.trafficDistribution` or the annotation `service.kubernetes.io/topology-mode`; a proxy reads them alone.
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug)]
pub struct Hints {
    /// `forZones[].name`; empty where it names none.
    pub zones: Box<[CompactString]>,
    /// `forNodes[].name`; empty where it names none.
    pub nodes: Box<[CompactString]>,
}

/// `endpoints[].conditions`, with the API's defaults applied: `ready` and `serving` absent mean true (until Kubernetes 1.32 the API had `serving` mean
/// what `ready` does), `terminating` absent means false.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Conditions {
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
}

/// How far an endpoint may be used. The better one sorts later.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Use {
    /// It is terminating and still serves: it gets new connections only where nobody else is left.
    Terminating,
    Ready,
}

impl Slices {
    pub fn get(&self, name: &str) -> Option<&Arc<EndpointSlice>> {
        self.all().get(self.place(name).ok()?).map(|(_, slice)| slice)
    }

    /// Puts a slice in place; returns the one of this name before.
    pub fn insert(&mut self, name: CompactString, slice: Arc<EndpointSlice>) -> Option<Arc<EndpointSlice>> {
        let place = self.place(&name);
        let mut all = self.take();
        let before = match place {
            Ok(place) => all.get_mut(place).map(|(_, known)| std::mem::replace(known, slice)),
            Err(place) => {
                all.insert(place, (name, slice));
                None
            }
        };
        self.0 = SlicesForm::from(all);
        before
    }

    pub fn remove(&mut self, name: &str) -> Option<Arc<EndpointSlice>> {
        let place = self.place(name).ok()?;
        let mut all = self.take();
        let (_, slice) = all.remove(place);
        self.0 = SlicesForm::from(all);
        Some(slice)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&CompactString, &Arc<EndpointSlice>)> {
        self.all().iter().map(|(name, slice)| (name, slice))
    }

    pub fn keys(&self) -> impl Iterator<Item = &CompactString> {
        self.iter().map(|(name, _)| name)
    }

    pub fn values(&self) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        self.iter().map(|(_, slice)| slice)
    }

    pub fn is_empty(&self) -> bool {
        self.all().is_empty()
    }

    fn all(&self) -> &[NamedSlice] {
        match &self.0 {
            SlicesForm::One(one) => one,
            SlicesForm::Any(all) => all,
        }
    }

    /// Takes out all slices, with room for one more.
    fn take(&mut self) -> Vec<NamedSlice> {
        let form = std::mem::take(&mut self.0);
        let mut all = Vec::with_capacity(match &form {
            SlicesForm::One(_) => 2,
            SlicesForm::Any(all) => all.len() + 1,
        });
        match form {
            SlicesForm::One(one) => all.extend(one),
            SlicesForm::Any(many) => all.extend(many),
        }
        all
    }

    fn place(&self, name: &str) -> Result<usize, usize> {
        self.all().binary_search_by(|(other, _)| other.as_str().cmp(name))
    }
}

impl Default for SlicesForm {
    fn default() -> Self {
        SlicesForm::Any(Box::default())
    }
}

impl From<Vec<NamedSlice>> for SlicesForm {
    fn from(all: Vec<NamedSlice>) -> SlicesForm {
        match <[NamedSlice; 1]>::try_from(all) {
            Ok(one) => SlicesForm::One(one),
            Err(all) => SlicesForm::Any(all.into()),
        }
    }
}

impl FromIterator<NamedSlice> for Slices {
    /// Of several slices of one name the last stays.
    fn from_iter<I: IntoIterator<Item = NamedSlice>>(slices: I) -> Slices {
        let mut sorted = Slices::default();
        for (name, slice) in slices {
            sorted.insert(name, slice);
        }
        sorted
    }
}

impl<const N: usize> From<[NamedSlice; N]> for Slices {
    fn from(slices: [NamedSlice; N]) -> Slices {
        slices.into_iter().collect()
    }
}

impl Endpoints {
    /// Returns whether any endpoint has a hint for zones.
    pub fn have_zone_hints(&self) -> bool {
        let mut endpoints = self.slices.values().flat_map(|slice| slice.endpoints.listed());
        endpoints.any(|endpoint| endpoint.hints.is_some_and(|hints| !hints.zones.is_empty()))
    }
}

impl Conditions {
    pub const READY: Conditions = Conditions { ready: true, serving: true, terminating: false };

    /// Returns how far an endpoint in this condition may be used; `None` for not at all.
    pub fn use_of(self) -> Option<Use> {
        if self.ready {
            Some(Use::Ready)
        } else if self.serving && self.terminating {
            Some(Use::Terminating)
        } else {
            None
        }
    }
}
