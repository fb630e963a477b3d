//! The nftables backend: the rule set as one table, `inet sluice_policy`.
//!
//! ```text
//! base chain ──► map of isolated addresses ──► chain of a class ──► map of ports ──► chain of peers ──► sets
//!            └─► before that: map of addresses under the Admin tier ──► chain of the tier, which looks up likewise
//! ```
//!
//! Reading order: [`names`]; [`base`] are the chains that the kernel enters, [`class`] is the chain of pods with the same
//! policies, with [`permissions`] (ports), [`peers`] and [`sets`], [`tiers`] are ClusterNetworkPolicies around it; [`host_endpoints`] refuses Services. [`lowering`] keeps all of it
//! up to date ([`desired`]), part by part ([`parts`]), and knows the [`left_addresses`]. [`apply`] applies it to the kernel ([`linux`]), [`kept`] says what stays while
//! not everything is known, [`new_address`] what comes all the same, [`refused`] what takes the place of what the kernel refuses. [`enforced`] checks whether the kernel enforces a verdict, and whether it judges a pod as it must, [`drops`] counts refused packets ([`serve`]).
//!
//! All changes of an update take effect in one transaction of the kernel, so no packet meets a part of them, and no order of changes
//! has to be found. What no packet comes to yet, or any more, may have transactions of its own ([`kernel::nftables`](crate::kernel::nftables) says why). A packet costs the same whatever the number of policies: it is looked up, not asked.

pub mod names;
pub mod parts;
pub mod base;
pub mod class;
pub mod tiers;
pub mod permissions;
pub mod peers;
pub mod sets;
pub mod host_endpoints;
pub mod desired;
pub mod left_addresses;
pub mod lowering;
pub mod kept;
pub mod refused;
pub mod new_address;
pub mod apply;
pub mod linux;
pub mod enforced;
pub mod drops;
pub mod serve;

use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use tokio::sync::watch;

use crate::config::FirewallConfig;
use crate::kernel::nftables::Object;
use crate::model::{Authority, ObjectName, World};
use crate::net::{Family, PerFamily};
use crate::reconcile::{Found, Moment};

use self::apply::{Kernel, Mirrors, Targets};
use self::drops::Owners;
use self::lowering::Lowering;
use self::refused::Effect;
use super::backend::{Backend, Consequence, Count, NewAddress, Refusal, RoundDurations};
use super::bridges::ClosedBridges;
use super::frames;
use super::host_endpoints::HostEndpoints;
use super::plan;
use super::rules::RuleSet;
use super::verdict::Verdict;

/// The backend with one table of nf_tables.
pub struct Nftables<K: Kernel> {
    lowering: Lowering,
    mirrors: Mirrors<K>,
    /// The policies on whose behalf each class refuses, for the reader of counters.
    owners: watch::Sender<Arc<Owners>>,
}

impl<K: Kernel> Nftables<K> {
    pub fn new(
        config: Arc<FirewallConfig>,
        families: PerFamily<bool>,
        targets: Targets<K>,
        owners: watch::Sender<Arc<Owners>>,
    ) -> Nftables<K> {
        Nftables { lowering: Lowering::new(config, families), mirrors: Mirrors::new(targets), owners }
    }
}

impl<K: Kernel> Backend for Nftables<K> {
    type Kinds = Mirrors<K>;

    fn kinds(&mut self) -> &mut Mirrors<K> {
        &mut self.mirrors
    }

    fn update(&mut self, rules: &RuleSet, world: &World, changed: &plan::RuleSetChanges) {
        let lowered = self.lowering.update(rules, world, changed);
        self.mirrors.mark(&lowered);
        if !lowered.classes.is_empty() || !changed.cluster_policies.is_empty() {
            let classes = lowered.classes.iter().map(|class| (&**class, self.lowering.has_class(class)));
            let policies = changed.cluster_policies.iter();
            let policies = policies.map(|key| (key, rules.cluster_policies.contains_key(key)));
            // Only a reader that is at work has the value besides: it keeps the one that it has.
            self.owners.send_modify(|owners| drops::update_owners(Arc::make_mut(owners), classes, policies));
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
        Count { sets: desired.sets, elements: desired.elements }
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
        self.mirrors.has_work(now)
    }

    fn round(&mut self, authority: Authority, at: Moment) -> RoundDurations {
        let rules_took = self.mirrors.round(self.lowering.desired(), authority, at);
        RoundDurations { rules_took, ..RoundDurations::default() }
    }

    fn knows_services(&self) -> bool {
        self.lowering.desired().unsure.is_none()
    }

    fn has_abandoned(&mut self) -> bool {
        self.mirrors.has_abandoned()
    }

    fn remove_abandoned(&mut self) -> Option<Vec<String>> {
        self.mirrors.remove_abandoned()
    }

    fn look_at_all(&mut self, at: Moment) -> Vec<Found> {
        self.mirrors.look_at_all(at)
    }

    fn enforced(&self, rules: &RuleSet, verdict: &Verdict, family: Family) -> Result<(), String> {
        enforced::enforced(rules, verdict, family, &self.lowering, &self.mirrors.applied())
    }

    fn pod_enforced(&self, rules: &RuleSet, pod: &ObjectName) -> Result<(), String> {
        enforced::pod_enforced(rules, pod, &self.lowering, &self.mirrors.applied())?;
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
        let desired = &self.lowering.desired().table;
        let additions = new_address::additions(starting, desired, self.mirrors.applied().seen)?;
        let first = additions.keys().next();
        first.map_or(Ok(()), |object| Err(format!("{object} is not in the kernel yet")))
    }

    fn refused(&self) -> Vec<Refusal<'_>> {
        let refused = self.mirrors.refused();
        let consequence = match refused.effect() {
            Effect::Closes(objects) => {
                let shown = |object: &Object| match object {
                    Object::Chain(name) => name.as_str().to_owned(),
                    object => object.to_string(),
                };
                Consequence::Closes { count: objects.len(), first: objects.iter().take(10).map(shown).collect() }
            }
            Effect::KeepsAll => Consequence::KeepsAll,
        };
        let all = refused.objects().iter();
        all.map(|(object, reason)| Refusal { object: object.to_string(), reason, consequence: consequence.clone() })
            .collect()
    }

    fn retry_refused(&mut self, now: Instant) {
        self.mirrors.retry_refused(now);
    }

    fn retry_at(&self) -> Option<Instant> {
        self.mirrors.retry_at()
    }
}
