//! The loop of the firewall: newest World → rule set → kernel.
//!
//! One task, on a thread of its own, owns the plan and the mirrors; kernel calls block it and nothing else. It has one
//! wait, for a newer World, rules that somebody changed, or the next deadline (a retry, the next portion of an audit).
//! Cancelling it between two turns loses nothing: what is programmed stays, and the next start adopts it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use crate::config::FirewallConfig;
use crate::kernel::iptables::Piece;
use crate::kernel::monitor::Changes;
use crate::model::{Authority, EventClock, World};
use crate::net::{Family, PerFamily};
use crate::observe::health::Pulse;
use crate::observe::local::{Answer, Form, Question};
use crate::reconcile::Moments;

use super::apply::{Kernel, Mirrors, Round, Targets};
use super::drops::{self, Owners};
use super::enforced::enforced;
use super::explain;
use super::lowering::Lowering;
use super::metrics::Metrics;
use super::plan::{self, Plan};

/// What the loop is fed with and whom it tells.
pub struct Surroundings {
    pub world: watch::Receiver<World>,
    pub clock: Arc<EventClock>,
    /// What others did to the kernel.
    pub disturbances: watch::Receiver<Changes>,
    /// Which policies each pod's chain refuses for, for whoever reads counters.
    pub owners: watch::Sender<Arc<Owners>>,
    /// What users ask on this host.
    pub questions: mpsc::Receiver<Question>,
    pub pulse: Pulse,
    pub metrics: Metrics,
}

/// How long the loop sleeps at most, so that its life can be seen.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// The pause between two portions of an audit, in which changes go first.
const BETWEEN_PORTIONS: Duration = Duration::from_millis(5);
/// How long rules that somebody changed are left alone before they are read: others change them in bursts, and reading
/// them starts programs.
const RULES_SETTLE: Duration = Duration::from_millis(500);

/// The firewall's state between two turns.
pub struct Driver<K: Kernel> {
    config: Arc<FirewallConfig>,
    families: PerFamily<bool>,
    plan: Plan,
    lowering: Lowering,
    mirrors: Mirrors<K>,
    around: Surroundings,
    authority: Authority,
    disturbed: Changes,
    rules_read_at: Option<Instant>,
    next_audit: Instant,
    audit_found: usize,
    told_refused: BTreeSet<Piece>,
    told_unclosed: PerFamily<bool>,
    /// What is closed by default is, or will be as soon as the kernel takes it, though pods are not known yet.
    closed_first: bool,
    moments: Moments,
    /// Steps performed since the start.
    steps: u64,
    /// Whether the kernel's settings are as they must be; `None` before they were looked at.
    settings: Option<Result<(), String>>,
    cleared: bool,
    synced: bool,
    started: Instant,
}

impl<K: Kernel> Driver<K> {
    pub fn new(
        config: Arc<FirewallConfig>,
        families: PerFamily<bool>,
        targets: Targets<K>,
        around: Surroundings,
    ) -> Driver<K> {
        let now = Instant::now();
        let disturbed = *around.disturbances.borrow();
        Driver {
            plan: Plan::new(),
            lowering: Lowering::new(config.clone(), families),
            mirrors: Mirrors::new(targets),
            authority: Authority::Nothing,
            disturbed,
            around,
            rules_read_at: None,
            next_audit: now + config.sync_period,
            audit_found: 0,
            told_refused: BTreeSet::new(),
            told_unclosed: PerFamily::default(),
            closed_first: false,
            moments: Moments::since(now),
            steps: 0,
            settings: None,
            cleared: false,
            synced: false,
            started: now,
            config,
            families,
        }
    }

    /// Runs until `stop` becomes true or the World's publisher is gone.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            let deadline = tokio::time::Instant::from_std(self.deadline(Instant::now()));
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                changed = self.around.world.changed() => match changed {
                    // The wait itself has marked the World as seen; the turn must find it new.
                    Ok(()) => self.around.world.mark_changed(),
                    Err(_) => return,
                },
                Ok(()) = self.around.disturbances.changed() => self.note_disturbances(),
                Some(question) = self.around.questions.recv() => self.answer(question),
                () = tokio::time::sleep_until(deadline) => {}
            }
            self.turn();
        }
    }

    fn deadline(&self, now: Instant) -> Instant {
        let due = [self.mirrors.retry_at(), self.rules_read_at, Some(self.next_audit)];
        due.into_iter().flatten().fold(now + HEARTBEAT, Instant::min)
    }

    /// One turn: takes in what is new and brings it into the kernel.
    fn turn(&mut self) {
        let begun = Instant::now();
        let seen = self.take_world();
        self.look_at_disturbances(begun);
        let computed = Instant::now();
        let round = self.round(begun);
        let done = Instant::now();
        self.steps += round.steps;
        let metrics = &self.around.metrics;
        metrics.observe_programs(&round.timings);
        metrics.observe_elements(round.elements_took);
        if round.steps > 0 {
            metrics.round.observe((done - begun).as_secs_f64());
            metrics.sets_round.observe(round.sets_took.as_secs_f64());
            metrics.rules.observe(round.rules_took.as_secs_f64());
            if let Some(seen) = seen {
                metrics.programming.observe((done - seen).as_secs_f64());
            }
            debug!(
                steps = round.steps,
                compute_us = (computed - begun).as_micros() as u64,
                sets_us = round.sets_took.as_micros() as u64,
                rules_us = round.rules_took.as_micros() as u64,
                since_seen_us = seen.map(|seen| (done - seen).as_micros() as u64),
                "Changes of policies are in the kernel"
            );
        }
        if done >= self.next_audit {
            self.audit(done);
        }
        self.tell(done);
    }

    /// Takes in the newest World. Returns when the earliest event in it was seen.
    fn take_world(&mut self) -> Option<Instant> {
        if !self.around.world.has_changed().unwrap_or(false) && self.authority != Authority::Nothing {
            return None;
        }
        let (world, seen) = {
            let borrowed = self.around.world.borrow_and_update();
            (borrowed.clone(), self.around.clock.take())
        };
        self.authority = world.policy_authority;
        if self.authority == Authority::Nothing {
            self.close_first(&world);
            return None;
        }
        let changed = self.plan.update(&world);
        self.around.metrics.asked.inc_by(changed.pods_asked as u64);
        let lowered = self.lowering.update(self.plan.rules(), &world, &changed);
        self.mirrors.mark(&lowered);
        if !changed.pods.is_empty() {
            self.around.owners.send_replace(Arc::new(drops::owners(self.plan.rules())));
        }
        self.tell_what_cannot_be_closed(&world);
        seen
    }

    /// Closes what `--netpol-default-deny` closes as soon as the ranges are known: pods and policies may take their time, and
    /// nothing is to be open meanwhile. As what is remembered this is for a kernel without rules of ours: those that an
    /// earlier run left know the pods.
    fn close_first(&mut self, world: &World) {
        let node = world.cluster.nodes.get(&world.host.node_name);
        if self.closed_first || !self.config.default_deny || node.is_none_or(|node| node.pod_cidrs.is_empty()) {
            return;
        }
        self.closed_first = true;
        let nothing = self.lowering.update(self.plan.rules(), world, &plan::Changed::default());
        self.mirrors.mark(&nothing);
    }

    fn round(&mut self, now: Instant) -> Round {
        let nothing_to_do = self.mirrors.is_settled() && !self.mirrors.has_due_refusals(now);
        let authority = match self.authority {
            Authority::Nothing if self.closed_first => Authority::Remembered,
            authority => authority,
        };
        if authority == Authority::Nothing || nothing_to_do {
            return Round::default();
        }
        if self.settings.is_none() {
            self.settings = Some(self.mirrors.keep_settings(self.moments.at(now)));
        }
        let round = self.mirrors.round(self.lowering.desired(), authority, self.moments.at(now));
        if self.authority == Authority::Complete && !self.cleared && self.mirrors.is_settled() {
            self.cleared = true;
            for error in self.mirrors.remove_abandoned() {
                warn!(%error, "What an earlier run left in the other tables could not be removed");
            }
        }
        round
    }

    /// Looks at the next portion of the kernel, and repairs at once what somebody changed.
    fn audit(&mut self, now: Instant) {
        if self.authority == Authority::Nothing {
            self.next_audit = now + self.config.sync_period;
            return;
        }
        let (found, finished) = self.mirrors.audit(self.moments.at(now));
        self.audit_found += found.len();
        self.around.metrics.families.found(&found);
        if !found.is_empty() {
            self.steps += self.round(now).steps;
        }
        self.next_audit = now + BETWEEN_PORTIONS;
        if finished {
            self.settings = Some(self.mirrors.keep_settings(self.moments.at(now)));
            debug!(found = self.audit_found, "All rules and sets of ours in the kernel have been compared");
            self.audit_found = 0;
            self.next_audit = now + self.config.sync_period;
        }
    }

    /// Answers from the rule set that the kernel is made equal to, and from what the kernel holds now.
    fn answer(&mut self, question: Question) {
        let text = self.explained(&question);
        // The asker may have gone away.
        let _ = question.answer.send(text);
    }

    fn explained(&mut self, question: &Question) -> Answer {
        let about = |word: &str| question.about.get(word).map_or("", String::as_str);
        let asked = explain::Question::parse(about("from"), about("to"))?;
        if self.authority == Authority::Nothing {
            return Err("nothing is known of the cluster yet".to_owned());
        }
        let world = self.around.world.borrow().clone();
        let (rules, closed) = (self.plan.rules(), self.lowering.closed());
        let known = explain::Known { rules, world: &world, config: &self.config, closed };
        let mut answers = explain::answers(known, &asked).map_err(|why| why.to_string())?;
        // What the last audit saw may be minutes old. What is amiss now is told, and repaired in the turn that follows.
        let found = self.mirrors.look_at_all(self.moments.at(Instant::now()));
        self.around.metrics.families.found(&found);
        let rules = self.plan.rules();
        for answer in &mut answers {
            let of = (&answer.verdict, Family::from(answer.packet.source));
            answer.enforced = Some(enforced(rules, of, self.lowering.desired(), self.mirrors.seen()));
        }
        Ok(match question.form {
            Form::Text => explain::text(&answers),
            Form::Json => format!("{:#}\n", explain::json(&answers)),
        })
    }

    fn note_disturbances(&mut self) {
        let newest = *self.around.disturbances.borrow_and_update();
        if newest.rules != self.disturbed.rules && self.rules_read_at.is_none() {
            self.rules_read_at = Some(Instant::now() + RULES_SETTLE);
        }
        self.disturbed = newest;
    }

    /// Compares what others say they changed, when they have had a moment to finish.
    fn look_at_disturbances(&mut self, now: Instant) {
        if self.rules_read_at.is_some_and(|due| due <= now) {
            self.rules_read_at = None;
            let found = self.mirrors.audit_rules(self.moments.at(now));
            self.around.metrics.families.found(&found);
        }
    }

    /// Says once, for each family, that nothing can be closed by default where no range of pods is known.
    fn tell_what_cannot_be_closed(&mut self, world: &World) {
        if !self.config.default_deny {
            return;
        }
        let node = world.cluster.nodes.get(&world.host.node_name);
        for family in Family::BOTH.into_iter().filter(|family| *self.families.of(*family)) {
            let mut ranges = node.into_iter().flat_map(|node| &node.pod_cidrs);
            let unclosed = !ranges.any(|range| Family::from(*range) == family);
            if unclosed && !*self.told_unclosed.of(family) {
                warn!(%family, "No range of this node's pods is known, so --netpol-default-deny closes nothing");
            }
            *self.told_unclosed.of_mut(family) = unclosed;
        }
    }

    /// Logs troubles that began or ended, and publishes how the firewall stands.
    fn tell(&mut self, now: Instant) {
        let mut troubles = self.tell_refusals();
        let account = &mut self.around.metrics.families;
        let settings = self.settings.as_ref().and_then(|settings| settings.as_ref().err());
        troubles.extend(account.trouble("settings", settings.map(|error| (1, error.as_str()))));
        troubles.extend(account.families(&self.mirrors.reflections()));
        self.publish(now, troubles);
    }

    /// Says of each chain that the kernel refuses once when that begins and once when it ends.
    fn tell_refusals(&mut self) -> Vec<String> {
        let refused = self.mirrors.refusals().all();
        let mut troubles = Vec::new();
        for (piece, refusal) in refused {
            troubles.push(format!("refused: {piece}: {}", refusal.reason));
            if self.told_refused.insert(piece.clone()) {
                warn!(chain = %piece, reason = %refusal.reason, "The kernel refuses a chain; what only it would allow is refused");
            }
        }
        self.told_refused.retain(|piece| {
            let stays = refused.contains_key(piece);
            if !stays {
                info!(chain = %piece, "A chain that the kernel refused is no longer missing");
            }
            stays
        });
        troubles
    }

    fn publish(&mut self, now: Instant, troubles: Vec<String>) {
        let metrics = &self.around.metrics;
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let desired = self.lowering.desired();
        metrics.sets.set(count(desired.sets.len()));
        let families = self.families.iter().filter(|(_, on)| **on).count();
        metrics.chains.set(count(self.plan.rules().policies.len() * families));
        metrics.refused.set(count(self.mirrors.refusals().all().len()));
        let is_well = self.authority != Authority::Nothing && troubles.is_empty();
        if is_well && self.mirrors.is_settled() {
            let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            metrics.last_success.set(i64::try_from(seconds).unwrap_or(i64::MAX));
        }
        if !self.synced && is_well {
            self.synced = true;
            info!(
                pods = self.plan.rules().pods.len(),
                policies = self.plan.rules().policies.len(),
                elements = desired.elements.len(),
                authority = ?self.authority,
                steps = self.steps,
                took_ms = (now - self.started).as_millis() as u64,
                "Network policies are in force"
            );
        }
        self.around.pulse.beat(now);
        self.around.pulse.ready(self.synced);
        self.around.pulse.trouble((!troubles.is_empty()).then(|| troubles.join("; ")));
    }
}
