//! Parts of the rules that the kernel refuses, for the log, health and who asks what differs.

use tracing::{info, warn};

use super::Driver;
use crate::firewall::backend::{Backend, Consequence, Refusal};
use crate::kernel::RULES;
use crate::reconcile::{Difference, DifferenceState};
use crate::subsystem::LeftOut;

impl<B: Backend> Driver<B> {
    /// Logs for each chain that the kernel refuses once when that begins and once when it ends.
    pub(super) fn tell_refusals(&mut self) -> Vec<String> {
        let refused = self.backend.refused();
        let mut troubles = Vec::new();
        for refusal in &refused {
            let Refusal { object, reason, consequence } = refusal;
            let is_new = self.told_refused.insert(object.clone());
            let trouble = format!("refused: {object}: {reason}");
            match consequence {
                Consequence::Lacks => {
                    troubles.push(trouble);
                    if is_new {
                        warn!(chain = %object, %reason, "Kernel rejected a chain; traffic that only this chain allows is denied");
                    }
                }
                Consequence::Closes { count, first } => {
                    let closed = match count.saturating_sub(first.len()) {
                        _ if first.is_empty() => "nothing".to_owned(),
                        0 => first.join(", "),
                        more => format!("{} and {more} more", first.join(", ")),
                    };
                    troubles.push(format!("{trouble}; closed in its place: {closed}"));
                    if is_new {
                        warn!(%object, %reason, %closed, "Kernel rejected an object of nf_tables; pods whose policies need it are closed");
                    }
                }
                Consequence::KeepsAll => {
                    troubles.push(format!("{trouble}; no change of network policies is in force"));
                    if is_new {
                        warn!(%object, %reason, "Kernel rejected an object of nf_tables that all pods need; no change of network policies is in force");
                    }
                }
            }
        }
        self.told_refused.retain(|object| {
            let stays = refused.iter().any(|refusal| refusal.object == *object);
            if !stays {
                info!(%object, "Object is no longer rejected by the kernel");
            }
            stays
        });
        troubles
    }

    /// Returns what is left out of the rules. While nothing takes the place of what is refused it is desired still, and the comparison finds it.
    pub(super) fn refusals_left_out(&self) -> Vec<LeftOut> {
        let refused = self.backend.refused().into_iter().filter(|refusal| refusal.consequence != Consequence::KeepsAll);
        let difference = |Refusal { object, reason, .. }: Refusal<'_>| {
            let state = DifferenceState::Failed(reason.to_owned());
            (RULES, Difference { object, state, desired: None, seen: None })
        };
        refused.map(difference).collect()
    }
}
