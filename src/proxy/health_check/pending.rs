//! The Services that are not in place in the kernel, and whose health checks answer 503 for that reason.
//!
//! A Service is pending from its first health check on until the kernel was seen to serve it, and again when the kernel was seen not to, also because it refuses something of the Service. That something
//! cannot be read, or that a step for its route or its elements has failed, says nothing: what was in place stays so, because a load balancer that loses all its nodes at once serves nobody.
//! A Service of two families serves when one of those with endpoints here does.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::HealthCheck;
use crate::kernel::ipvs::Destination;
use crate::model::{Authority, Change, ObjectName, Table};
use crate::net::{Family, PerFamily};
use crate::proxy::apply::{Kernel, Mirrors};
use crate::proxy::endpoints::DRAINING;
use crate::proxy::part::Claim;
use crate::proxy::plan::Plan;

/// The pending Services.
#[derive(Default)]
pub struct Pending {
    services: Arc<BTreeSet<ObjectName>>,
    /// The health checks of the last look.
    known: Table<u16, HealthCheck>,
    /// When all may be judged again, where what is not settled does not say which are concerned.
    next: Option<Instant>,
    /// The last look judged nothing for that reason.
    waits: bool,
}

/// The pause between two judgements of all.
const PAUSE: Duration = Duration::from_millis(200);

impl Pending {
    pub fn services(&self) -> Arc<BTreeSet<ObjectName>> {
        self.services.clone()
    }

    /// Returns when to look again: what changed before that time came has not been judged.
    pub fn deadline(&self) -> Option<Instant> {
        self.next.filter(|_| self.waits)
    }

    /// Looks at what has changed and at what is not settled. Returns whether the pending Services are others.
    pub fn follow<K: Kernel>(&mut self, plan: &Plan, mirrors: &mut Mirrors<K>, now: Instant) -> bool {
        let checks = plan.health_checked();
        let known = std::mem::replace(&mut self.known, checks.clone());
        let mut changed = false;
        self.waits = false;
        for change in checks.changes_since(&known) {
            match change {
                Change::Added(_, check) => changed |= self.set(&check.service, true),
                Change::Removed(_, check) => changed |= self.set(&check.service, false),
                Change::Updated(_, before, after) if before.service != after.service => {
                    changed |= self.set(&before.service, false);
                    changed |= self.set(&after.service, true);
                }
                Change::Updated(..) => {}
            }
        }
        if checks.is_empty() {
            return changed;
        }
        let unsettled = mirrors.unsettled_virtuals(plan.desired());
        self.waits = unsettled.is_none() && self.next.is_some_and(|next| next > now);
        if self.waits {
            return changed;
        }
        self.next = unsettled.is_none().then(|| now + PAUSE);
        let named: BTreeSet<&ObjectName> = match &unsettled {
            Some(keys) => {
                let owners = keys.iter().filter_map(|key| plan.owner(key));
                // Most of those that wait for their turn in a large change may be of Services without a health check, and a look follows each of its rounds.
                let waits = |name: &&ObjectName| {
                    plan.claims_outside(name).any(|it| mirrors.waits_for_its_turn(plan.desired(), &it.key))
                };
                let any_waits = mirrors.goes_on();
                let waiting = checks.iter().map(|(_, check)| &check.service).filter(|name| any_waits && waits(name));
                // What the kernel refuses is settled without it, and may be all that would serve.
                let refused = mirrors.refused_parts(plan.desired()).filter_map(|(port, _)| plan.owner(&port));
                owners.chain(refused).filter(|name| plan.has_health_check(name)).chain(waiting).collect()
            }
            None => checks.iter().map(|(_, check)| &check.service).collect(),
        };
        let in_place: Vec<ObjectName> = self.services.iter().filter(|name| !named.contains(name)).cloned().collect();
        for name in in_place {
            changed |= self.set(&name, false);
        }
        for name in named {
            if let Some(serves) = serves(plan, mirrors, name) {
                changed |= self.set(name, !serves);
            }
        }
        changed
    }

    fn set(&mut self, name: &ObjectName, is_pending: bool) -> bool {
        if self.services.contains(name) == is_pending {
            return false;
        }
        let services = Arc::make_mut(&mut self.services);
        if is_pending { services.insert(name.clone()) } else { services.remove(name) }
    }
}

/// Returns whether clients outside are served at all addresses of a family that a Service has; `None` while that cannot be known.
fn serves<K: Kernel>(plan: &Plan, mirrors: &mut Mirrors<K>, name: &ObjectName) -> Option<bool> {
    let any_endpoint = plan.world().authority.proxy == Authority::Remembered;
    let mut families: PerFamily<Option<Option<bool>>> = PerFamily::default();
    for claim in plan.claims_outside(name).filter(|claim| is_for_others(claim)) {
        let serves = mirrors.serves(plan.desired(), &claim.key, &claim.wanted.clients, any_endpoint);
        let of_family = families.of_mut(claim.key.family());
        *of_family = Some(match (*of_family, serves) {
            (Some(Some(false)), _) | (_, Some(false)) => Some(false),
            (Some(None), _) | (_, None) => None,
            (_, Some(true)) => Some(true),
        });
    }
    let verdicts: Vec<Option<bool>> = Family::BOTH.into_iter().filter_map(|family| *families.of(family)).collect();
    match () {
        // There is nothing to serve.
        () if verdicts.is_empty() || verdicts.contains(&Some(true)) => Some(true),
        () if verdicts.contains(&None) => None,
        () => Some(false),
    }
}

/// Returns whether clients of other hosts are to be served: there is an endpoint here.
fn is_for_others(claim: &Claim) -> bool {
    let takes = |destination: Destination| destination.weight != DRAINING;
    !claim.wanted.clients.inside_only && claim.wanted.virtual_service.destinations.iter().any(takes)
}
