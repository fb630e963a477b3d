//! The firewall in the loop of all subsystems: newest World → rule set → kernel.
//!
//! Besides the World, disturbances and retries it waits for questions of users on this host, and for pods that start
//! (`--netpol-cni`): each is answered at the end of the turn after which the kernel judges its packets as the rule set says.

mod refusals;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use crate::model::{Authority, World};
use crate::net::{Family, PerFamily};
use crate::observe::health::Note;
use crate::observe::local::{Answer, Question};
use crate::reconcile::{Account, Moment};
use crate::subsystem::{self, Context, FirstSync, Inputs, Kinds, LeftOut, Standing, Subsystem, Times};

use super::backend::{Backend, NewAddress, RoundDurations};
use super::diff::serve::{Comparing, Comparisons, PolicyReader};
use super::established::apply::{Established, Report};
use super::explain::circumstances::Circumstances;
use super::flows::Flows;
use super::judging::Judging;
use super::metrics::Metrics;
use super::plan::{self, Plan};
use super::refused::serve::RefusedPackets;
use super::starting::{self, Places};
use super::starting_pod::StartingPod;
use super::{established, explain, oversized_policies};

/// Inputs and outputs of the firewall besides those of every subsystem.
pub struct FirewallContext {
    /// Questions of users on this host.
    pub questions: mpsc::Receiver<Question>,
    /// Pods that wait for their rules.
    pub starting: mpsc::Receiver<StartingPod>,
    pub metrics: Metrics,
    /// Connections of this network namespace.
    pub flows: Arc<dyn Flows>,
    pub read_policies: PolicyReader,
    pub note: Note,
    pub judging: Judging,
    pub oversized: oversized_policies::OversizedPolicies,
}

/// Connections are judged for so long between two turns of the loop.
const JUDGED_AT_A_TIME: Duration = Duration::from_millis(1);

/// Events of the firewall besides changes of the World and of the kernel.
pub enum News {
    Asked(Question),
    Starting(StartingPod),
    Established(Report),
}

/// State of the firewall between two turns.
pub struct Driver<B: Backend> {
    families: PerFamily<bool>,
    plan: Plan,
    backend: B,
    context: FirewallContext,
    comparisons: Comparisons,
    refused_packets: RefusedPackets,
    established: Established,
    told_refused: BTreeSet<String>,
    told_unclosed: PerFamily<bool>,
    /// Pods start although frames that lead past their policies pass.
    told_given_up: bool,
    /// Default deny is in force, or will be once the kernel takes the rules, though pods are not known yet.
    closed_first: bool,
    /// Pods that wait for their rules.
    starting: Vec<StartingPod>,
    /// Addresses that were announced while the cluster is remembered.
    announced: BTreeSet<IpAddr>,
}

impl<B: Backend> Driver<B> {
    pub fn new(families: PerFamily<bool>, backend: B, context: FirewallContext) -> Driver<B> {
        Driver {
            plan: Plan::of(backend.config().backend),
            backend,
            context,
            comparisons: Comparisons::default(),
            refused_packets: RefusedPackets::default(),
            established: Established::default(),
            told_refused: BTreeSet::new(),
            told_unclosed: PerFamily::default(),
            told_given_up: false,
            closed_first: false,
            starting: Vec::new(),
            announced: BTreeSet::new(),
            families,
        }
    }

    /// Runs until `stop` becomes true or the World's publisher is gone.
    pub async fn run(self, inputs: Inputs, stop: watch::Receiver<bool>) {
        subsystem::run(self, inputs, stop).await;
    }

    /// Closes the ranges of `--netpol-default-deny` as soon as they are known: pods and policies may take time to load,
    /// and nothing may be open meanwhile. Like a remembered cluster this is only for a kernel without rules of ours:
    /// rules of an earlier run know the pods.
    fn close_first(&mut self, world: &World) {
        let node = world.cluster.nodes.get(&world.host.node_name);
        if self.closed_first || !self.backend.config().default_deny || node.is_none_or(|node| node.pod_cidrs.is_empty())
        {
            return;
        }
        self.closed_first = true;
        self.backend.update(self.plan.rules(), world, &plan::RuleSetChanges::default());
    }

    /// Answers from the rule set that is being enforced, and from the current state of the kernel.
    fn explained(&mut self, question: &Question, at: Moment, context: &Context<'_>) -> Answer {
        let about = |word: &str| question.about.get(word).map_or("", String::as_str);
        let asked = explain::Question::parse(about("from"), about("to"))?;
        let world = known_world(context)?;
        let mut explanation = explain::explanation(self.known(&world), &asked).map_err(|why| why.to_string())?;
        // The last audit may be minutes old. Drift found now is reported, and repaired in the following turn.
        context.account.found(&self.backend.look_at_all(at));
        let whole = explanation.served.iter_mut().filter_map(|served| served.refused.as_mut());
        for answer in whole.chain(&mut explanation.answers) {
            let family = Family::from(answer.packet.source);
            answer.enforced = Some(self.backend.enforced(self.plan.rules(), &answer.verdict, family));
        }
        let policies = explain::odd_policies(self.known(&world), &self.context.oversized.problems(), &explanation);
        let circumstances = Circumstances { authority: context.authority, policies, notes: self.backend.notes() };
        Ok(circumstances.answer(&explanation, question.form))
    }

    /// Answers the pods whose rules are in force, and tells the others what is missing.
    fn answer_starting(&mut self, authority: Authority) {
        let (rules, backend) = (self.plan.rules(), &self.backend);
        let by_memory = authority == Authority::Remembered && backend.holds_newer_state();
        let places = Places { plan: &self.plan, families: &self.families, announced: &self.announced };
        self.starting.retain(|pod| {
            if pod.outcome.is_closed() {
                return false;
            }
            let missing = starting::missing(&self.plan, authority, &pod.name, pod.uid, &pod.addresses);
            let enforced = || match by_memory {
                true => places.of(&pod.name, &pod.addresses).try_for_each(|(address, former)| {
                    if pod.runs && !self.announced.contains(&address) {
                        // It had the address before the restart, and nothing that judges it has changed since.
                        return Ok(());
                    }
                    backend.address_enforced(&NewAddress { pod: &pod.name, address, former: &former })
                }),
                false => backend.pod_enforced(rules, &pod.name),
            };
            let outcome = missing.map_or_else(enforced, Err);
            let waits = outcome.is_err();
            pod.outcome.send_if_modified(|told| {
                let differs = *told != outcome;
                *told = outcome;
                differs
            });
            waits
        });
    }

    /// Has the kernel judge pods that start as at their former addresses, where a remembered cluster is not applied.
    fn add_addresses(&mut self, at: Moment) {
        let places = Places { plan: &self.plan, families: &self.families, announced: &self.announced };
        for pod in self.starting.iter().filter(|pod| !pod.outcome.is_closed()) {
            if starting::missing(&self.plan, Authority::Remembered, &pod.name, pod.uid, &pod.addresses).is_some() {
                continue;
            }
            for (address, former) in places.of(&pod.name, &pod.addresses) {
                self.backend.add_address(&NewAddress { pod: &pod.name, address, former: &former }, at);
            }
        }
    }

    /// Answers with the packets that have been refused.
    fn dropped(&mut self, question: &Question, at: Moment, context: &Context<'_>) -> Answer {
        let world = known_world(context)?;
        let mut packets = std::mem::take(&mut self.refused_packets);
        let answer = packets.answer(self.known(&world), &*self.context.flows, question, at.now);
        self.refused_packets = packets;
        answer
    }

    /// Judges connections of pods that a change named, or takes the result of having ended some.
    fn judge_established(&mut self, report: Report, at: Moment, context: &Context<'_>) {
        match report {
            Report::Judge { connections, verdicts } => {
                let world = context.world.borrow().clone();
                let until = Instant::now() + JUDGED_AT_A_TIME;
                let mut some = Vec::with_capacity(connections.len());
                for refused in established::refused(self.plan.rules(), &world, self.backend.config(), &connections) {
                    some.push(refused);
                    if Instant::now() >= until {
                        break;
                    }
                }
                // The run may have waited too long.
                let _ = verdicts.send(some);
            }
            Report::Done { result, took } => {
                let ended = self.established.done(result, took, at.now);
                self.context.metrics.ended.inc_by(ended as u64);
            }
        }
    }

    /// Returns the inputs of an answer.
    fn known<'a>(&'a self, world: &'a World) -> explain::Known<'a> {
        explain::Known {
            rules: self.plan.rules(),
            world,
            config: self.backend.config(),
            closed: self.backend.closed(),
            bridges: self.backend.closed_bridges(),
            claims: self.plan.claims(),
            host_endpoints: self.backend.host_endpoints(),
        }
    }

    /// Returns the inputs of the comparison that a question is for.
    fn comparing(&self, question: &Question, context: &Context<'_>) -> Result<Comparing, String> {
        Ok(Comparing {
            world: known_world(context)?,
            config: self.backend.config().clone(),
            file: question.about.get("file").cloned().unwrap_or_default(),
            read: self.context.read_policies,
            deleted: question.about.get("delete").is_some_and(|word| word == "true"),
            flows: self.context.flows.clone(),
        })
    }

    /// Says when starting pods are no longer held up for a table of frames that the kernel refuses, and when they are again: it has taken the table, or it
    /// cannot be read.
    fn tell_of_frames(&mut self) {
        let is_given_up = self.backend.gives_frames_up();
        if std::mem::replace(&mut self.told_given_up, is_given_up) == is_given_up {
            return;
        }
        if is_given_up {
            warn!("The kernel goes on refusing a table that drops frames; pods start without it, see /readyz");
        } else {
            info!("Starting pods wait for the tables that drop frames again");
        }
        self.context.note.set(self.backend.notes());
    }

    /// Logs once for each family that default deny has no effect, because no pod CIDR is known.
    fn tell_what_cannot_be_closed(&mut self, world: &World) {
        if !self.backend.config().default_deny {
            return;
        }
        let node = world.cluster.nodes.get(&world.host.node_name);
        for family in Family::BOTH.into_iter().filter(|family| *self.families.of(*family)) {
            let mut ranges = node.into_iter().flat_map(|node| &node.pod_cidrs);
            let unclosed = !ranges.any(|range| Family::from(*range) == family);
            if unclosed && !*self.told_unclosed.of(family) {
                warn!(%family, "Node has no pod CIDR of this family; --netpol-default-deny has no effect");
            }
            *self.told_unclosed.of_mut(family) = unclosed;
        }
    }
}

impl<B: Backend> Subsystem for Driver<B> {
    type Mirrors = B::Kinds;
    type News = News;
    type Round = RoundDurations;

    fn mirrors(&mut self) -> &mut B::Kinds {
        self.backend.kinds()
    }

    fn audit_period(&self) -> Duration {
        self.backend.config().sync_period
    }

    async fn next(&mut self) -> News {
        let Driver { context, established, .. } = self;
        tokio::select! {
            Some(pod) = context.starting.recv() => News::Starting(pod),
            Some(question) = context.questions.recv() => News::Asked(question),
            report = established.report() => News::Established(report),
        }
    }

    async fn hear(&mut self, news: News, at: Moment, context: &Context<'_>) {
        let question = match news {
            News::Asked(question) => question,
            News::Starting(pod) => {
                self.starting.push(pod);
                // Those that come together are looked at together.
                while let Ok(more) = self.context.starting.try_recv() {
                    self.starting.push(more);
                }
                let starting = self.starting.iter().filter(|pod| !pod.runs);
                let announced = starting.flat_map(|pod| pod.addresses.iter().copied());
                self.announced.extend(announced.filter(|_| context.authority < Authority::Partial));
                return;
            }
            News::Established(report) => return self.judge_established(report, at, context),
        };
        let answer = match question.path {
            explain::DIFF => match self.comparing(&question, context) {
                Ok(inputs) => return self.comparisons.start(inputs, question),
                Err(why) => Err(why),
            },
            explain::DROPS => self.dropped(&question, at, context),
            explain::ISOLATION => {
                known_world(context).and_then(|world| explain::isolated(self.known(&world), &question))
            }
            _ => self.explained(&question, at, context),
        };
        // The requester may have gone away.
        let _ = question.answer.send(answer);
    }

    fn deadline(&self) -> Option<Instant> {
        let due = [self.backend.retry_at(), self.refused_packets.deadline(), self.established.deadline()];
        due.into_iter().flatten().min()
    }

    async fn take_world(&mut self, world: &World, _at: Moment) -> Authority {
        if world.authority.firewall == Authority::Nothing {
            self.close_first(world);
            return Authority::Nothing;
        }
        let changed = self.plan.update(world);
        self.context.metrics.asked.inc_by(changed.pods_asked as u64);
        if self.backend.config().flush_established {
            self.established.note(&self.plan, &changed, world.authority.firewall);
        }
        self.backend.update(self.plan.rules(), world, &changed);
        if world.authority.firewall != Authority::Remembered {
            self.announced.clear();
        }
        self.tell_what_cannot_be_closed(world);
        self.context.judging.note(world.number);
        world.authority.firewall
    }

    async fn calculate(&mut self, at: Moment) {
        self.refused_packets.release_idle(at.now);
    }

    fn round(&mut self, authority: Authority, at: Moment) -> RoundDurations {
        let is_remembered = authority == Authority::Remembered;
        let authority = match authority {
            Authority::Nothing if self.closed_first => Authority::Remembered,
            authority => authority,
        };
        if authority == Authority::Nothing || !self.backend.has_work(at.now) {
            return RoundDurations::default();
        }
        let round = self.backend.round(authority, at);
        if is_remembered && self.backend.holds_newer_state() {
            self.add_addresses(at);
        }
        round
    }

    fn replaces_abandoned(&mut self) -> bool {
        self.backend.knows_services() && self.mirrors().replaces_abandoned()
    }

    fn has_abandoned(&mut self) -> bool {
        self.backend.has_abandoned()
    }

    fn remove_abandoned(&mut self) -> Option<Vec<String>> {
        self.backend.remove_abandoned()
    }

    fn count(&mut self, round: RoundDurations, steps: u64, times: &Times) {
        let metrics = &self.context.metrics;
        metrics.observe_rules(&round.rules_read, &round.rules_written);
        metrics.observe_elements(round.elements_took);
        if steps == 0 {
            return;
        }
        let Times { seen, begun, computed, done } = *times;
        metrics.round.observe((done - begun).as_secs_f64());
        metrics.sets_round.observe(round.sets_took.as_secs_f64());
        metrics.rules.observe(round.rules_took.as_secs_f64());
        if let Some(seen) = seen {
            metrics.programming.observe((done - seen).as_secs_f64());
        }
        debug!(
            steps,
            compute_us = (computed - begun).as_micros() as u64,
            sets_us = round.sets_took.as_micros() as u64,
            rules_us = round.rules_took.as_micros() as u64,
            since_seen_us = seen.map(|seen| (done - seen).as_micros() as u64),
            "Network policy changes programmed"
        );
    }

    fn retry_now(&mut self, now: Instant) {
        self.backend.retry_refused(now);
    }

    fn left_out(&mut self) -> Vec<LeftOut> {
        self.refusals_left_out()
    }

    async fn pack(&mut self) {
        self.plan.pack();
        self.backend.pack();
    }

    fn troubles(&mut self, _account: &mut Account, _standing: &Standing) -> Vec<String> {
        self.tell_refusals()
    }

    fn audited(&mut self, _at: Moment) {
        self.context.note.set(self.backend.notes());
    }

    fn log_first_sync(&mut self, sync: &FirstSync) {
        info!(
            pods = self.plan.rules().pods.len(),
            policies = self.plan.rules().policies.len(),
            cluster_policies = self.plan.rules().cluster_policies.len(),
            elements = self.backend.count().elements,
            authority = ?sync.authority,
            steps = sync.steps,
            took_ms = sync.took.as_millis() as u64,
            "First sync of network policies finished"
        );
        self.context.note.set(self.backend.notes());
    }

    fn publish(&mut self, standing: &Standing) -> bool {
        self.tell_of_frames();
        if !self.starting.is_empty() {
            self.answer_starting(standing.authority);
        }
        self.context.judging.tell(self.backend.holds_refusals());
        self.context.oversized.tell(self.plan.oversized(), &self.context.metrics.oversized);
        let metrics = &self.context.metrics;
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        metrics.sets.set(count(self.backend.count().sets));
        let families = self.families.iter().filter(|(_, on)| **on).count();
        let rules = self.plan.rules();
        metrics.chains.set(count((rules.policies.len() + rules.cluster_policies.len()) * families));
        metrics.refused.set(count(self.backend.refused().len()));
        let are_in_place = standing.authority == Authority::Complete && self.backend.is_settled();
        self.established.start_due(&self.context.flows, are_in_place, standing.now);
        if standing.is_well && self.backend.is_settled() {
            let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            metrics.last_success.set(i64::try_from(seconds).unwrap_or(i64::MAX));
        }
        standing.synced
    }
}

/// Returns the newest World, if anything is known of the cluster.
fn known_world(context: &Context<'_>) -> Result<World, String> {
    let is_known = context.authority != Authority::Nothing;
    is_known.then(|| context.world.borrow().clone()).ok_or_else(|| "nothing is known of the cluster yet".to_owned())
}
