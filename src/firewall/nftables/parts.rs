//! The parts of the table: each becomes a few objects whose names follow from it alone, and needs other parts.
//!
//! A part exists while another one, or a root, needs it: a chain of peers serves every class that allows these peers, and a set
//! every rule that looks it up. What changes is lowered again and compared with its objects of before. So the result does not
//! depend on the way to it, and work follows the change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::kernel::nftables::{Chain, Content, Key, Name, Object, Rule, SetSpec, Verdict};
use crate::net::Family;

use super::super::host_endpoints::HostEndpoint;
use super::super::rules::{ClusterPolicyKey, RuleSet, SetKey};
use super::class::Class;
use super::names;
use super::peers::{Peers, Union};
use super::tiers::{EachTier, Judged, TierPolicies};

/// A part of the table.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Part {
    /// The base chains, and everything that depends neither on pods nor on policies.
    Base,
    /// An address of pods of this node: its elements in the sets and maps of `Base`.
    Address(IpAddr),
    /// The Services that a pod's address is refused.
    RefusedServices(IpAddr),
    Class(Arc<Class>),
    /// A class, asked on behalf of an address that several pods claim.
    Each(Arc<Class>),
    Tier(Arc<TierPolicies>),
    /// A tier, asked on behalf of an address that several pods claim.
    EachTier(Arc<EachTier>),
    /// The judges of an address that several pods claim; sorted, at least two.
    Shared(Box<[Judged]>),
    /// The packets that a ClusterNetworkPolicy denies.
    Denied(ClusterPolicyKey),
    /// The packets that one of the Admin tier passes on.
    Passed(ClusterPolicyKey),
    Counter(Arc<Class>),
    Peers(Arc<Peers>),
    Set(Arc<SetKey>, Family),
    Union(Arc<Union>),
    /// The addresses and ports of the Services of a host endpoint.
    Endpoint(HostEndpoint),
}

/// The objects that a part becomes.
#[derive(Default, Debug)]
pub struct Lowered {
    pub objects: BTreeMap<Object, Content>,
    pub needs: BTreeSet<Part>,
}

impl Part {
    /// Returns whether the part's sets and maps have no other elements than its own.
    pub fn fills_its_sets(&self) -> bool {
        match self {
            Part::Base | Part::Address(_) | Part::RefusedServices(_) => false,
            Part::Class(_) | Part::Each(_) | Part::Shared(_) | Part::Counter(_) => true,
            Part::Tier(_) | Part::EachTier(_) | Part::Denied(_) | Part::Passed(_) => true,
            Part::Peers(_) | Part::Set(..) | Part::Union(_) | Part::Endpoint(_) => true,
        }
    }
}

impl Lowered {
    /// Adds a chain that others jump to.
    pub fn chain(&mut self, name: Name, rules: Vec<Rule>) {
        self.objects.insert(Object::Chain(name), Content::Chain(Arc::new(Chain { base: None, rules })));
    }

    /// Adds a verdict map.
    pub fn map(&mut self, name: &Name, spec: SetSpec) {
        self.objects.insert(Object::Set(name.clone()), Content::Set(spec));
    }

    /// Adds the element that says whose an address is, where one pod has it alone.
    pub fn pod_id(&mut self, address: IpAddr, rules: &RuleSet) {
        let mut pods = rules.local_pods_at(address);
        if let (Some((pod, _)), None) = (pods.next(), pods.next()) {
            let element = Object::Element(names::pod_ids(Family::from(address)), Key::Address(address));
            self.objects.insert(element, Content::Mark(names::pod_id(pod)));
        }
    }

    /// Adds an element of a verdict map.
    pub fn verdict(&mut self, map: &Name, key: Key, verdict: Verdict) {
        self.objects.insert(Object::Element(map.clone(), key), Content::Verdict(Arc::new(verdict)));
    }
}
