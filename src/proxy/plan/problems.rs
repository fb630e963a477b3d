//! Problems of Services, kept up to date at the cost of what changes.

use std::collections::{BTreeMap, BTreeSet};

use super::{Plan, different_keys};
use crate::kernel::ipvs::ServiceKey;
use crate::model::{Endpoints, MOST_OF_A_SERVICE, ObjectName, Service, ServiceProblem, ServiceProblems, put_problems};
use crate::proxy::desired::ProxyChanges;
use crate::proxy::plan::address_of;
use crate::proxy::problems;

/// The problems of Services, with the claims that they lost.
#[derive(Default)]
pub struct Problems {
    all: ServiceProblems,
    /// The virtual services that each Service claims and another one has.
    lost: BTreeMap<ObjectName, BTreeSet<ServiceKey>>,
    /// Those that come of what the kernel refuses of them.
    refused_by_kernel: BTreeMap<ObjectName, Vec<ServiceProblem>>,
}

impl Problems {
    /// Notes that a Service claims what another one has, or no longer.
    fn set_lost(&mut self, name: &ObjectName, key: ServiceKey, is_lost: bool) {
        if is_lost {
            self.lost.entry(name.clone()).or_default().insert(key);
        } else if let Some(keys) = self.lost.get_mut(name) {
            keys.remove(&key);
            if keys.is_empty() {
                self.lost.remove(name);
            }
        }
    }

    /// Notes that the claim of one Service to a key has changed, and who had it before and has it now.
    pub(super) fn note_owner(
        &mut self,
        key: ServiceKey,
        name: &ObjectName,
        claims: bool,
        [before, owner]: [Option<&ObjectName>; 2],
    ) {
        self.set_lost(name, key, claims && owner != Some(name));
        if owner == before {
            return;
        }
        // Only this Service's claim has changed, so that of the former owner is still there, and so was that of the new one.
        if let Some(former) = before.filter(|other| *other != name) {
            self.set_lost(former, key, true);
        }
        if let Some(new) = owner.filter(|other| *other != name) {
            self.set_lost(new, key, false);
        }
    }
}

impl Plan {
    /// Returns the problems of Services; cheap to clone.
    pub fn problems(&self) -> &ServiceProblems {
        &self.problems.all
    }

    /// Returns what the kernel refuses of Services, as it was last told.
    pub fn refused_by_kernel(&self) -> &BTreeMap<ObjectName, Vec<ServiceProblem>> {
        &self.problems.refused_by_kernel
    }

    /// Takes what the kernel refuses of Services. Returns what it refused before, and what follows; `None` where that is the same.
    pub fn set_refused_by_kernel(
        &mut self,
        refused: BTreeMap<ObjectName, Vec<ServiceProblem>>,
    ) -> Option<(BTreeMap<ObjectName, Vec<ServiceProblem>>, ProxyChanges)> {
        if refused == self.problems.refused_by_kernel {
            return None;
        }
        let before = std::mem::replace(&mut self.problems.refused_by_kernel, refused);
        let mut changed = ProxyChanges::default();
        for name in different_keys(&before, &self.problems.refused_by_kernel) {
            self.find_problems(&name, &mut changed);
        }
        Some((before, changed))
    }

    /// Finds the problems of a Service anew.
    pub(super) fn find_problems(&mut self, name: &ObjectName, changed: &mut ProxyChanges) {
        let cluster = &self.world.cluster;
        let endpoints = || cluster.endpoints.get(name).map(|endpoints| &**endpoints);
        let problems = self.problems_of(name, cluster.services.get(name).map(|service| (&**service, endpoints())));
        self.put_problems(name, problems, changed);
    }

    /// Returns the problems of a Service with these endpoints; none if it does not exist.
    pub(super) fn problems_of(
        &self,
        name: &ObjectName,
        service: Option<(&Service, Option<&Endpoints>)>,
    ) -> Vec<ServiceProblem> {
        let Some((service, endpoints)) = service else { return Vec::new() };
        let none = Endpoints::default();
        let mut problems = problems::of_service(service, endpoints.unwrap_or(&none), self.inputs());
        problems.extend(self.lost(name));
        let by_kernel = self.problems.refused_by_kernel.get(name).into_iter().flatten();
        problems.extend(by_kernel.map(|problem| problem.clone().of(service.created)));
        problems.extend(self.unmarked(name).map(|it| problems::unmarked(&it).of(service.created)));
        problems
    }

    pub(super) fn put_problems(
        &mut self,
        name: &ObjectName,
        problems: Vec<ServiceProblem>,
        changed: &mut ProxyChanges,
    ) {
        changed.problems |= put_problems(&mut self.problems.all, name, problems);
    }

    fn lost(&self, name: &ObjectName) -> Vec<ServiceProblem> {
        let mut found: Vec<ServiceProblem> = Vec::new();
        for key in self.problems.lost.get(name).into_iter().flatten() {
            let owner = self.owners().get(key);
            let claim = self.parts.get(name).and_then(|part| part.claim(key));
            let (Some(owner), Some(claim)) = (owner, claim) else { continue };
            let is_own = address_of(key).is_some_and(|address| self.node.is_own(address));
            let created = self.parts.get(name).map_or(0, |part| part.created);
            let problem = problems::lost(key, owner, claim.rank, is_own).of(created);
            if !found.iter().any(|known| known.subject == problem.subject) {
                found.push(problem);
            }
            if found.len() >= MOST_OF_A_SERVICE {
                break;
            }
        }
        found
    }
}
