//! The iptables backend: the rule set as iptables chains and ipset sets.
//!
//! Reading order: [`names`]; [`policy_chain`], [`pod_chain`],
//! [`dispatch`] with [`exemptions`], [`link_local`], [`multicast`] and [`host_endpoints`] are the rules, [`lowering`] keeps them and the sets up to date
//! ([`desired`]); [`apply`] applies them to the kernel ([`linux`]), [`overlay`] leaves out what the kernel refuses,
//! [`order`] orders changes so that nothing opens in between, [`turning`] is one such order. [`enforced`] checks
//! whether the kernel enforces a verdict, [`pod_enforced`] whether it judges a pod as it must, [`new_address`] is what one that starts gets without a cluster, [`drops`] counts refused packets ([`serve`]).
//!
//! All of it is behind [`Backend`]: callers that know policies know nothing of chains.

pub mod names;
pub mod comment;
pub mod policy_chain;
pub mod pod_chain;
pub mod exemptions;
pub mod link_local;
pub mod multicast;
pub mod host_endpoints;
pub mod dispatch;
pub mod desired;
pub mod lowering;
pub mod overlay;
pub mod order;
pub mod turning;
pub mod apply;
pub mod linux;
pub mod enforced;
pub mod new_address;
pub mod pod_enforced;
pub mod drops;
pub mod serve;
#[cfg(test)]
mod given;

use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use tokio::sync::watch;

use crate::config::FirewallConfig;
use crate::kernel::iptables::Program;
use crate::model::{Authority, ObjectName, World};
use crate::net::{Family, PerFamily};
use crate::reconcile::{Found, Moment};

use self::apply::{Kernel, Mirrors, Targets};
use self::drops::Owners;
use self::enforced::enforced;
use self::lowering::Lowering;
use self::pod_enforced::pod_enforced;
use super::backend::{Backend, Consequence, Count, NewAddress, Refusal, RoundDurations};
use super::bridges::ClosedBridges;
use super::frames;
use super::host_endpoints::HostEndpoints;
use super::plan;
use super::rules::RuleSet;
use super::verdict::Verdict;

/// The backend with iptables rules and ipset sets.
pub struct Iptables<K: Kernel> {
    lowering: Lowering,
    mirrors: Mirrors<K>,
    /// The policies on whose behalf each pod's chain refuses, for the reader of counters.
    owners: watch::Sender<Arc<Owners>>,
}

impl<K: Kernel> Iptables<K> {
    pub fn new(
        config: Arc<FirewallConfig>,
        families: PerFamily<bool>,
        targets: Targets<K>,
        owners: watch::Sender<Arc<Owners>>,
    ) -> Iptables<K> {
        let (mirrors, lowering) = (Mirrors::new(targets), Lowering::new(config, families));
        let lowering = if mirrors.filters_ipv6() { lowering } else { lowering.without_ipv6() };
        Iptables { lowering, mirrors, owners }
    }
}

impl<K: Kernel> Backend for Iptables<K> {
    type Kinds = Mirrors<K>;

    fn kinds(&mut self) -> &mut Mirrors<K> {
        &mut self.mirrors
    }

    fn update(&mut self, rules: &RuleSet, world: &World, changed: &plan::RuleSetChanges) {
        let lowered = self.lowering.update(rules, world, changed);
        self.mirrors.mark(&lowered);
        if !changed.pods.is_empty() || !changed.cluster_policies.is_empty() {
            // Only a reader that is at work has the value besides: it keeps the one that it has.
            self.owners.send_modify(|owners| drops::update_owners(Arc::make_mut(owners), rules, changed));
        }
    }

    fn config(&self) -> &Arc<FirewallConfig> {
        self.lowering.config()
    }

    fn closed(&self) -> &[IpNet] {
        self.lowering.closed()
    }

    fn closed_bridges(&self) -> &ClosedBridges {
        self.lowering.closed_bridges()
    }

    fn host_endpoints(&self) -> &HostEndpoints {
        self.lowering.host_endpoints()
    }

    fn count(&self) -> Count {
        let desired = self.lowering.desired();
        Count { sets: desired.sets.len(), elements: desired.elements.len() }
    }

    fn pack(&mut self) {
        self.lowering.pack();
        self.mirrors.share(self.lowering.desired());
    }

    fn is_settled(&self) -> bool {
        self.mirrors.is_settled()
    }

    fn holds_refusals(&self) -> bool {
        self.mirrors.holds_refusals(self.lowering.desired())
    }

    fn has_work(&self, now: Instant) -> bool {
        !self.mirrors.is_settled() || self.mirrors.has_due_refusals(now)
    }

    fn round(&mut self, authority: Authority, at: Moment) -> RoundDurations {
        let round = self.mirrors.round(self.lowering.desired(), authority, at);
        let apply::IptablesRound { sets_took, elements_took, rules_took, timings, .. } = round;
        let of = |program| {
            let runs = timings.iter().filter(move |run| run.program == program);
            runs.map(|run| (run.family, run.took)).collect()
        };
        let (rules_read, rules_written) = (of(Program::Save), of(Program::Restore));
        RoundDurations { sets_took, elements_took, rules_took, rules_read, rules_written }
    }

    fn knows_services(&self) -> bool {
        self.lowering.desired().unsure.is_none()
    }

    fn has_abandoned(&mut self) -> bool {
        self.mirrors.has_abandoned()
    }

    fn remove_abandoned(&mut self) -> Option<Vec<String>> {
        Some(self.mirrors.remove_abandoned())
    }

    fn look_at_all(&mut self, at: Moment) -> Vec<Found> {
        self.mirrors.look_at_all(at)
    }

    fn enforced(&self, rules: &RuleSet, verdict: &Verdict, family: Family) -> Result<(), String> {
        enforced(rules, verdict, family, self.lowering.desired(), self.mirrors.seen())
    }

    fn pod_enforced(&self, rules: &RuleSet, pod: &ObjectName) -> Result<(), String> {
        pod_enforced(rules, pod, self.lowering.desired(), &self.mirrors.applied(self.lowering.desired()))?;
        if frames::concern(rules, pod) { self.mirrors.frames_enforced(self.lowering.desired()) } else { Ok(()) }
    }

    fn notes(&mut self) -> Vec<String> {
        self.mirrors.notes(self.lowering.desired())
    }

    fn gives_frames_up(&self) -> bool {
        self.mirrors.gives_frames_up(self.lowering.desired())
    }

    fn holds_newer_state(&self) -> bool {
        self.mirrors.leaves_memory()
    }

    fn add_address(&mut self, starting: &NewAddress<'_>, at: Moment) {
        self.mirrors.add_address(starting, self.lowering.desired(), at);
    }

    fn address_enforced(&self, starting: &NewAddress<'_>) -> Result<(), String> {
        let additions = new_address::additions(starting, self.lowering.desired(), self.mirrors.seen())?;
        let is_complete = additions.is_empty();
        is_complete.then_some(()).ok_or_else(|| format!("the rules of {} are not in the kernel yet", starting.address))
    }

    fn refused(&self) -> Vec<Refusal<'_>> {
        let all = self.mirrors.refusals().all().iter();
        all.map(|(piece, refused)| Refusal {
            object: piece.to_string(),
            reason: &refused.reason,
            consequence: Consequence::Lacks,
        })
        .collect()
    }

    fn retry_refused(&mut self, now: Instant) {
        self.mirrors.retry_refused(now);
    }

    fn retry_at(&self) -> Option<Instant> {
        self.mirrors.retry_at()
    }
}
