//! Parts of Services that the kernel refuses because of what is in them, for log, health, metrics and the Services' problems.

use std::collections::BTreeMap;

use tracing::{info, warn};

use super::refused_by_kernel;
use crate::kernel::ipvs::{ServiceKey, VIRTUAL_SERVICES};
use crate::model::{ObjectName, ServiceProblem};
use crate::proxy::apply::{Kernel, Mirrors};
use crate::proxy::driver::ProxyContext;
use crate::proxy::plan::Plan;
use crate::reconcile::{Difference, DifferenceState};
use crate::subsystem::LeftOut;

/// Maximum number of Services that are named at once in the log, and in the notes.
const NAMED: usize = 10;

/// Returns the same for who asks what differs from the kernel.
pub fn left_out<K: Kernel>(plan: &Plan, mirrors: &Mirrors<K>) -> Vec<LeftOut> {
    let difference = |port: &ServiceKey, problem: ServiceProblem| {
        let state = DifferenceState::Failed(problem.to_string());
        (
            VIRTUAL_SERVICES,
            Difference { object: format!("{port}, {}", problem.subject), state, desired: None, seen: None },
        )
    };
    let refused = mirrors.refused_parts(plan.desired());
    let of_port =
        |(port, refused)| refused_by_kernel(refused).into_iter().map(move |problem| difference(&port, problem));
    refused.flat_map(of_port).collect()
}

/// Tells whose Services the kernel refuses something of, where that has changed.
pub fn tell_refused<K: Kernel>(plan: &mut Plan, mirrors: &Mirrors<K>, context: &ProxyContext) {
    let mut found: BTreeMap<ObjectName, Vec<ServiceProblem>> = BTreeMap::new();
    let mut virtuals = 0;
    for (port, refused) in mirrors.refused_parts(plan.desired()) {
        virtuals += 1;
        let Some(owner) = plan.owner(&port) else { continue };
        let of_owner = found.entry(owner.clone()).or_default();
        for problem in refused_by_kernel(refused) {
            // One address stands for all of the Service.
            if !of_owner.contains(&problem) {
                of_owner.push(problem);
            }
        }
    }
    context.metrics.refused_by_kernel.set(virtuals);
    let Some((before, changed)) = plan.set_refused_by_kernel(found) else { return };
    if changed.problems {
        context.problems.send_replace(plan.problems().clone());
    }
    let now = plan.refused_by_kernel();
    let lines = |(service, its): (&ObjectName, &Vec<ServiceProblem>)| -> Vec<String> {
        its.iter().map(|problem| format!("Service {service}: {problem}")).collect()
    };
    let mut notes: Vec<String> = now.iter().take(NAMED).flat_map(lines).collect();
    notes.extend(now.len().checked_sub(NAMED + 1).map(|more| format!("{} more Services", more + 1)));
    let new = now.iter().filter(|(name, its)| before.get(*name) != Some(*its));
    for (service, problem) in new.flat_map(|(name, its)| its.iter().map(move |one| (name, one))).take(NAMED) {
        warn!(%service, reason = %problem, "The kernel refuses a part of a Service; retrying");
    }
    if now.is_empty() {
        info!("The kernel refuses no part of any Service any more");
    }
    context.health.note(VIRTUAL_SERVICES).set(notes);
}
