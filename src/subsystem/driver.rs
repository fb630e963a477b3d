//! The loop of every subsystem.
//!
//! It has one wait: for a newer World, news of the subsystem's own, a disturbance in the kernel, or the next deadline (a retry,
//! the next portion of an audit, whatever the subsystem requests). Whatever woke it, a turn processes everything that
//! is new.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::kernel::memory;
use crate::kernel::processor::thread_time;
use crate::model::Authority;
use crate::observe::local::Question;
use crate::reconcile::{Moment, Moments};

use super::abandoned::Abandoned;
use super::command_looks::{CommandLooks, OthersCommands};
use super::disturbances::Disturbances;
use super::inspection::{Inspection, NOTHING_KNOWN, Repairs};
use super::leftovers::Leftovers;
use super::patrol::{Look, Patrol};
use super::{Context, FirstSync, Inputs, Kinds, LookedAt, Standing, Subsystem, Times};

/// Longest sleep of the loop, so that it can be seen to be alive. Each one wakes the thread twice, because the runtime's clock
/// sorts what is far away again when it comes near; three times if it is longer than 4,096 ms.
const HEARTBEAT: Duration = Duration::from_secs(4);
/// The pause between two portions of an audit, in which changes go first.
const BETWEEN_PORTIONS: Duration = Duration::from_millis(5);

/// Runs a subsystem until `stop` becomes true or the World's publisher is gone. Returns it as it was then.
pub async fn run<S: Subsystem>(subsystem: S, inputs: Inputs, mut stop: watch::Receiver<bool>) -> S {
    let mut turning = Loop::new(subsystem, inputs, Instant::now());
    while turning.wait(&mut stop).await {
        turning.turn().await;
    }
    turning.subsystem
}

/// The state between two turns.
struct Loop<S> {
    subsystem: S,
    inputs: Inputs,
    authority: Authority,
    disturbances: Disturbances,
    next_audit: Instant,
    patrol: Patrol,
    command_looks: CommandLooks,
    /// The most that was known of the cluster in any round: with it looks began.
    looks_since: Authority,
    leftovers: Leftovers,
    inspection: Inspection,
    repairs: Repairs,
    /// The next portion of an audit is the first one.
    audit_begins: bool,
    audit_found: usize,
    moments: Moments,
    /// Steps performed since the start.
    steps: u64,
    /// Time spent since the start on calculating, and on comparing and changing the kernel.
    computing: Duration,
    programming: Duration,
    /// Time of the first World with any content.
    first_world: Option<Instant>,
    abandoned: Abandoned,
    synced: bool,
    started: Instant,
}

impl<S: Subsystem> Loop<S> {
    fn new(mut subsystem: S, inputs: Inputs, now: Instant) -> Loop<S> {
        let kinds = subsystem.mirrors().kinds();
        let notices: Vec<_> = kinds.into_iter().flat_map(|kind| kind.after).chain(S::NOTICES).copied().collect();
        let noted = *inputs.disturbances.borrow();
        Loop {
            authority: Authority::Nothing,
            disturbances: Disturbances::new(notices, noted),
            next_audit: now + subsystem.audit_period(),
            patrol: Patrol::new(now, 1 + S::CLOSE_LOOKS),
            command_looks: CommandLooks::new(now, S::COUNTED_LOOKS > 0),
            looks_since: Authority::Nothing,
            leftovers: Leftovers::new(now),
            inspection: Inspection::default(),
            repairs: Repairs::default(),
            audit_begins: true,
            audit_found: 0,
            moments: Moments::since(now),
            steps: 0,
            computing: Duration::ZERO,
            programming: Duration::ZERO,
            first_world: None,
            abandoned: Abandoned::new(),
            synced: false,
            started: now,
            subsystem,
            inputs,
        }
    }

    /// Waits until something is to be done; returns false when the loop has to end.
    async fn wait(&mut self, stop: &mut watch::Receiver<bool>) -> bool {
        let now = Instant::now();
        let due = self.deadline(now);
        let pause = async {
            match due > now {
                true => tokio::time::sleep_until(due.into()).await,
                // The clock's timers would take a millisecond.
                false => tokio::task::yield_now().await,
            }
        };
        let news = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return false,
            changed = self.inputs.world.changed() => {
                // The wait itself has marked the World as seen; the turn must find it new.
                self.inputs.world.mark_changed();
                return changed.is_ok();
            }
            news = self.subsystem.next() => news,
            Some(question) = self.inputs.audits.recv() => {
                self.take_question(question, Instant::now());
                return true;
            }
            Ok(()) = self.inputs.disturbances.changed() => {
                self.inputs.disturbances.mark_changed();
                return true;
            }
            () = pause => return true,
        };
        let Inputs { world, account, .. } = &self.inputs;
        let context = Context { world, authority: self.authority, account };
        self.subsystem.hear(news, self.moments.at(Instant::now()), &context).await;
        true
    }

    fn deadline(&self, now: Instant) -> Instant {
        let due = [
            self.subsystem.deadline(),
            self.disturbances.deadline(),
            Some(self.next_audit),
            Some(self.patrol.deadline()),
            self.command_looks.deadline(),
            self.abandoned.deadline(),
            self.inspection.deadline(),
            self.leftovers.deadline(),
        ];
        due.into_iter().flatten().fold(now + HEARTBEAT, Instant::min)
    }

    /// One turn: processes what is new and brings it into the kernel.
    async fn turn(&mut self) {
        let begun = Instant::now();
        let at = self.moments.at(begun);
        self.subsystem.look_around(begun).await;
        let seen = self.take_world(at).await;
        self.look_at_disturbances(at);
        self.subsystem.calculate(at).await;
        let computed = Instant::now();
        let (round, steps) = self.round(at);
        self.remove_abandoned(at.now);
        let done = Instant::now();
        if self.authority > self.looks_since {
            self.begin_looks(done);
        }
        self.computing += computed - begun;
        self.programming += done - computed;
        self.subsystem.count(round, steps, &Times { seen, begun, computed, done });
        if done >= self.next_audit {
            self.audit(self.moments.at(done));
        }
        if done >= self.patrol.deadline() {
            self.patrol(self.moments.at(done));
        }
        if self.command_looks.deadline().is_some_and(|due| due <= done) {
            self.look_after_commands(self.moments.at(done));
        }
        if self.inspection.deadline().is_some_and(|due| due <= done) {
            self.subsystem.prepare_to_read();
            if let Some(looked) = self.inspection.look(self.subsystem.mirrors(), done + BETWEEN_PORTIONS) {
                looked.answer(self.subsystem.left_out(), self.authority);
            }
        }
        self.tell(done);
        if self.leftovers.take_due(done) {
            self.subsystem.mirrors().kinds().into_iter().for_each(|kind| kind.mirror.pack());
            self.subsystem.pack().await;
            memory::give_back();
        }
    }

    /// Has looks for changes by others wait for their time after the first round, and after those that are the first to know a part of the cluster and
    /// all of it. Such a round reads or writes all that they look at, and may take longer than that time: then the next change of the cluster would wait
    /// behind the dearest of them, a glance at everything.
    fn begin_looks(&mut self, now: Instant) {
        self.looks_since = self.authority;
        self.patrol = Patrol::new(now, 1 + S::CLOSE_LOOKS);
        self.command_looks.begin_anew(now);
    }

    /// Processes the newest World; returns when the earliest event in it was seen.
    async fn take_world(&mut self, at: Moment) -> Option<Instant> {
        if !self.inputs.world.has_changed().unwrap_or(false) && self.authority != Authority::Nothing {
            return None;
        }
        let (world, seen) = {
            let borrowed = self.inputs.world.borrow_and_update();
            (borrowed.clone(), self.inputs.clock.take())
        };
        self.authority = self.subsystem.take_world(&world, at).await;
        if self.authority == Authority::Nothing {
            return None;
        }
        self.first_world.get_or_insert(at.now);
        seen
    }

    /// Compares what the kernel notified as changed by others, when they have had a moment to finish.
    fn look_at_disturbances(&mut self, at: Moment) {
        if self.inputs.disturbances.has_changed().unwrap_or(false) {
            let newest = *self.inputs.disturbances.borrow_and_update();
            self.disturbances.note(newest, at.now);
        }
        for notice in self.disturbances.take_due(at.now) {
            let found = self.subsystem.mirrors().audit_after(notice, at);
            self.inputs.account.found(&found);
            self.subsystem.disturbed(notice);
        }
    }

    /// Performs one round; also returns its number of steps.
    fn round(&mut self, at: Moment) -> (S::Round, u64) {
        let before = self.subsystem.mirrors().steps_done();
        let round = self.subsystem.round(self.authority, at);
        let steps = self.subsystem.mirrors().steps_done() - before;
        self.steps += steps;
        self.leftovers.worked(steps, at.now);
        (round, steps)
    }

    /// Removes what earlier runs left with another packet filter, where that is due and replaced.
    fn remove_abandoned(&mut self, now: Instant) {
        if !self.abandoned.is_due(now) {
            return;
        }
        // What is known of the cluster goes first.
        if self.authority != Authority::Nothing {
            let was_there = self.abandoned.is_there();
            self.abandoned.look(|| self.subsystem.has_abandoned());
            if self.abandoned.is_there() && !was_there {
                info!("Rules of an earlier run with another packet filter are there");
            }
        }
        if self.authority != Authority::Complete || !self.subsystem.replaces_abandoned() {
            return self.abandoned.postpone(Instant::now());
        }
        // A look has found nothing.
        if !self.abandoned.is_due(now) {
            return;
        }
        let was_there = self.abandoned.is_there();
        let Some(errors) = self.subsystem.remove_abandoned() else {
            return self.abandoned.goes_on(Instant::now() + BETWEEN_PORTIONS);
        };
        if self.abandoned.tried(errors, Instant::now()) {
            for error in self.abandoned.errors() {
                warn!(%error, "Removing rules of an earlier run with another packet filter failed; retrying");
            }
        }
        if was_there && self.abandoned.errors().is_empty() {
            info!("Rules of an earlier run with another packet filter are removed");
        }
    }

    /// Audits the next portion of the kernel, and repairs drift at once.
    fn audit(&mut self, at: Moment) {
        let period = self.subsystem.audit_period();
        if self.authority == Authority::Nothing {
            self.next_audit = at.now + period;
            return;
        }
        self.repairs.begin(self.audit_begins);
        let (found, finished) = self.subsystem.audit(at);
        self.audit_begins = finished;
        self.audit_found += found.len();
        self.inputs.account.found(&found);
        if !found.is_empty() {
            self.round(at);
        }
        self.next_audit = at.now + BETWEEN_PORTIONS;
        if finished {
            self.subsystem.audited(at);
            self.abandoned.look_again(|| self.subsystem.has_abandoned());
            self.leftovers.worked_on_all(at.now);
            debug!(found = self.audit_found, "Audit finished");
            self.audit_found = 0;
            self.next_audit = at.now + period;
        }
        if self.repairs.end(found.len(), finished) {
            self.next_audit = at.now;
        }
    }

    /// Queues a user's question for what differs from the kernel, or for an audit now.
    fn take_question(&mut self, question: Question, now: Instant) {
        if question.about.get("repair").is_none_or(|word| word != "true") {
            return self.inspection.ask(question, now);
        }
        if self.authority == Authority::Nothing {
            // The requester may have gone away.
            let _ = question.answer.send(Err(NOTHING_KNOWN.to_owned()));
            return;
        }
        info!("Audit requested by a user of this host");
        self.repairs.ask(question);
        self.subsystem.mirrors().kinds().into_iter().for_each(|kind| kind.mirror.retry_now());
        self.subsystem.retry_now(now);
        self.next_audit = self.next_audit.min(now);
    }

    /// Takes the next look for changes by others without notifications, and repairs them at once.
    fn patrol(&mut self, at: Moment) {
        let Some(course) = self.patrol.next(at.now) else { return };
        let begun = thread_time();
        let is_known = self.authority != Authority::Nothing;
        let (found, finished) = match course.checked_sub(1) {
            _ if !is_known => (Vec::new(), true),
            None => (self.subsystem.glance(self.command_looks.glances_rest(), at), true),
            Some(close_look) => self.subsystem.look_closely(close_look, at),
        };
        let took = thread_time().saturating_sub(begun);
        self.patrol.looked(course, at.now, Look { took, found_drift: !found.is_empty(), finished });
        self.inputs.account.found(&found);
        if !found.is_empty() {
            self.round(at);
        }
    }

    /// Reads the count of others' commands where that is due, and takes the next look for what they changed.
    fn look_after_commands(&mut self, at: Moment) {
        if self.command_looks.must_read(at.now) {
            let commands = self.subsystem.others_commands(at.now);
            self.command_looks.heard(at.now, commands);
            for course in 1..=S::COUNTED_LOOKS {
                self.patrol.rest(course, commands != OthersCommands::NotCounted);
            }
        }
        let Some(begins) = self.command_looks.next(at.now) else { return };
        let begun = thread_time();
        let LookedAt { found, finished, missed } = match self.authority {
            Authority::Nothing => LookedAt { found: Vec::new(), finished: true, missed: false },
            _ => self.subsystem.look_after_commands(begins, at),
        };
        let took = thread_time().saturating_sub(begun);
        if missed {
            self.command_looks.missed();
        }
        if finished {
            // It has read as much as an audit.
            self.leftovers.worked_on_all(at.now);
        }
        self.command_looks.looked(at.now, Look { took, found_drift: !found.is_empty(), finished });
        self.inputs.account.found(&found);
        if !found.is_empty() {
            self.round(at);
        }
    }

    /// Logs troubles that began or ended, and publishes the subsystem's state.
    fn tell(&mut self, now: Instant) {
        let mut standing = Standing { now, authority: self.authority, is_well: false, synced: self.synced };
        let mut troubles = self.subsystem.troubles(&mut self.inputs.account, &standing);
        troubles.extend(self.inputs.account.kinds(&self.subsystem.mirrors().reflections()));
        standing.is_well = self.authority != Authority::Nothing && troubles.is_empty();
        if standing.is_well && !self.synced && self.subsystem.is_equipped() {
            self.synced = true;
            standing.synced = true;
            self.leftovers.worked_on_all(now);
            self.subsystem.log_first_sync(&FirstSync {
                authority: self.authority,
                steps: self.steps,
                input: self.first_world.map(|at| at - self.started),
                took: now - self.started,
                computing: self.computing,
                programming: self.programming,
            });
        }
        let ready = self.subsystem.publish(&standing);
        // No reason to hold up the first sync: what was asked for is in force, beside what remains.
        troubles.extend(self.abandoned.trouble());
        let pulse = &self.inputs.pulse;
        if standing.is_well && self.subsystem.mirrors().is_as_wanted() {
            pulse.synced(now);
        }
        pulse.beat(now);
        pulse.ready(ready);
        pulse.trouble((!troubles.is_empty()).then(|| troubles.join("; ")));
    }
}

#[cfg(test)]
mod tests;
