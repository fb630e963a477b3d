//! The plan's answers about single Services, for users who ask.

use super::Plan;
use crate::kernel::ipvs::ServiceKey;
use crate::model::{ObjectName, World};
use crate::proxy::part::{Claim, PartInputs, Rank};

impl Plan {
    /// Returns the World that is planned for.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Returns the inputs of every part, besides its Service.
    pub fn part_inputs(&self) -> PartInputs<'_> {
        self.inputs()
    }

    /// Returns the claims of a Service, sorted by key, whether it has what it claims or not.
    pub fn claims_of(&self, name: &ObjectName) -> &[Claim] {
        self.parts.get(name).map_or(&[], |part| &part.claims)
    }

    /// Returns the claims of a Service to node ports, external and load balancer addresses, where it has what it claims.
    pub fn claims_outside<'a>(&'a self, name: &'a ObjectName) -> impl Iterator<Item = &'a Claim> {
        let claims = self.claims_of(name).iter().filter(|claim| claim.rank != Rank::Cluster);
        claims.filter(move |claim| self.owner(&claim.key) == Some(name))
    }

    /// Returns whether a virtual service stays as it is until routers have been told that it goes.
    pub fn is_closing_for(&self, key: &ServiceKey) -> bool {
        self.closing.contains(key)
    }
}
