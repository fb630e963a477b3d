//! iptables: our chains, and the jumps to them from the built-in chains.
//!
//! Kernel: the tables `filter`, `nat` and `mangle` of either flavour (legacy xtables or nf_tables), through the
//! flavour's own `iptables-save` and `iptables-restore --noflush --wait`. What a round changes in a family is
//! one run of the program with one transaction for each table.
//!
//! Ours, for a process without memory: the chains with the names that an [`Ownership`] lists; every rule in a
//! built-in chain that jumps to one of them; and, if the owner asks for it, the rules that kube-router left in
//! built-in chains ([`Piece::Leftover`]). Everything else is foreign: it is not returned, and it keeps its place
//! and its counters.
//!
//! Limits and surprises:
//! - Rules are values ([`rule`]), equal where `iptables-save` prints them alike, so they must be written as it does. A
//!   difference in spelling costs one needless write after a start, see `spelling`.
//! - Legacy tables are rewritten whole by the kernel whatever changes, so fewer runs are better than small ones.
//! - Legacy tools exclude each other by a lock in a file, `/run/xtables.lock`: it has to be the host's.
//! - If the run for all tables fails, each table is tried alone, and then its changes in parts (`isolate`), so that
//!   what the kernel refuses does not hold up the rest. While another program holds the lock nothing is tried twice.
//! - A table that cannot be read while others can (a kernel without IPv6 address translation) reads as empty: what
//!   is desired there is tried, fails and is reported, and the other tables are served.

pub mod abandoned;
mod counted;
mod extension;
mod flavour;
mod isolate;
mod leftover;
mod ownership;
mod piece;
mod plan;
pub mod rule;
mod running;
mod save;
mod slots;
mod spelling;
mod timing;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use self::plan::{Change, Plan, depends_on_table, plan, presumed};
use self::running::{begin_restore, end_restore, is_locked, printed, printed_all, restore};
use self::save::{SavedTable, parse};
use self::slots::Place;
use self::spelling::Spelling;
use self::timing::Timings;
use super::{Cause, Error, RULES};
use crate::net::{Family, PerFamily};
use crate::reconcile::{Failure, Phase, Step, Target};

pub use self::counted::{Counted, counted};
pub use self::flavour::{
    Detected, Flavour, Programs, detect, has_unreadable_tables, kernel_has_ipv6, legacy_chains, try_any, untold_tables,
    used, used_without_loading,
};
pub use self::leftover::Leftovers;
pub use self::ownership::Ownership;
pub use self::piece::{Piece, Rules, Table};
pub use self::rule::{Match, Rule, Verdict};
pub use self::timing::{Program, Timing};

/// The rules of one owner, as a kind of kernel objects. Works in the network namespace of the calling thread.
#[derive(Debug)]
pub struct Tables {
    programs: PerFamily<Option<Programs>>,
    ours: Ownership,
    spelling: PerFamily<Spelling>,
    /// Tables that could not be read the last time.
    unreadable: BTreeSet<(Family, Table)>,
    /// Recent output of the programs, for the first read.
    printed: Option<(Instant, PerFamily<Option<String>>)>,
    refused: Vec<Refusal>,
    timings: Timings,
    /// Whether the owner has something to put in the place of a refused piece.
    has_stand_in: fn(&Piece) -> bool,
}

/// The programs of each family; `None` for one without rules.
pub type Families = PerFamily<Option<Programs>>;

/// A piece that the kernel refuses itself, while it accepts others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    pub piece: Piece,
    pub reason: String,
}

/// Time for which the output from detection serves the first read.
const FRESH: Duration = Duration::from_secs(2);

impl Tables {
    /// Rules through these programs; a family without programs has none, and wanting some there fails.
    pub fn new(programs: PerFamily<Option<Programs>>, ours: Ownership) -> Tables {
        let spelling = PerFamily::default();
        let (unreadable, refused) = (BTreeSet::new(), Vec::new());
        let (timings, has_stand_in) = (Timings::default(), |_: &Piece| false);
        Tables { programs, ours, spelling, unreadable, printed: None, refused, timings, has_stand_in }
    }

    /// Makes no change of a table while a piece for which this holds is refused: the owner is told and asks for something
    /// else in its place, so that packets meet all of the old or all of the new.
    pub fn waiting_for(self, has_stand_in: fn(&Piece) -> bool) -> Tables {
        Tables { has_stand_in, ..self }
    }

    /// Returns the program runs since the last call.
    pub fn take_timings(&mut self) -> Vec<Timing> {
        self.timings.take()
    }

    /// Returns the pieces that were refused themselves since the last call.
    pub fn take_refused(&mut self) -> Vec<Refusal> {
        std::mem::take(&mut self.refused)
    }

    /// Returns whether the last read of a table of this family failed.
    pub fn is_unreadable(&self, family: Family) -> bool {
        self.unreadable.iter().any(|(its, _)| *its == family)
    }

    /// Like [`new`](Tables::new), with the result of a detection just now, which saves the first read if it comes at
    /// once.
    pub fn detected(detected: Detected, ours: Ownership) -> Tables {
        let printed = detected.printed_at.map(|at| (at, detected.printed));
        Tables { printed, ..Tables::new(detected.programs, ours) }
    }

    /// Returns whether rules of this family can be desired.
    pub fn has(&self, family: Family) -> bool {
        self.programs.of(family).is_some()
    }

    /// Reads what is ours in the tables that pass. Fails when none of them can be read.
    fn read_tables(&mut self, pass: impl Fn(Family, Table) -> bool) -> Result<BTreeMap<Piece, Rules>, Error> {
        let mut found = BTreeMap::new();
        let mut readable = 0;
        let mut first_error = None;
        let mut known =
            self.printed.take().filter(|(at, _)| at.elapsed() < FRESH).map(|(_, text)| text).unwrap_or_default();
        for family in Family::BOTH {
            let Some(programs) = *self.programs.of(family) else { continue };
            let tables: Vec<Table> = self.ours.tables().filter(|table| pass(family, *table)).collect();
            let known = known.of_mut(family).take().and_then(|text| parse(&text).ok());
            let begun = Instant::now();
            let printed = printed_all(programs, family, &tables, known);
            self.timings.note(family, Program::Save, begun);
            for (table, saved) in printed {
                match saved {
                    Ok(saved) => {
                        self.recognise(family, table, &saved, &mut found);
                        readable += 1;
                        if self.unreadable.remove(&(family, table)) {
                            info!(%family, table = table.name(), "Reading iptables rules recovered");
                        }
                    }
                    Err(error) => {
                        if self.unreadable.insert((family, table)) {
                            warn!(%family, table = table.name(), %error, "Reading iptables rules failed");
                        }
                        first_error.get_or_insert(error);
                    }
                }
            }
        }
        match first_error {
            Some(error) if readable == 0 => Err(error),
            _ => Ok(found),
        }
    }

    /// Adds what is ours in one table of one family.
    fn recognise(&self, family: Family, table: Table, saved: &SavedTable, found: &mut BTreeMap<Piece, Rules>) {
        let spelling = self.spelling.of(family);
        let spelled = |rules: &[Rule]| Rules(rules.iter().map(|rule| spelling.as_written(rule)).collect());
        for (name, chain) in &saved.chains {
            if !chain.builtin {
                if self.ours.owns(table, name) {
                    found.insert(Piece::Chain { family, table, chain: name.clone() }, spelled(&chain.rules));
                }
                continue;
            }
            let place = Place { table, chain: name };
            for rule in &chain.rules {
                let to = rule.chain().filter(|to| self.ours.owns(table, to));
                let from = name.clone();
                if let Some(to) = to.cloned() {
                    let rules = if place.holds(&chain.rules, &to) { jumps(&chain.rules, &to) } else { Vec::new() };
                    found.insert(Piece::Jump { family, table, from, to }, spelled(&rules));
                } else if self.ours.leftovers.include(table, name, rule) {
                    let piece = Piece::Leftover { family, table, from, rule: rule.clone() };
                    found.insert(piece, Rules(vec![rule.clone()]));
                }
            }
        }
    }

    /// Performs the changes of one family again that failed all at once: with what the tables hold now, then each table
    /// alone, then in parts.
    fn apply_again(&mut self, family: Family, changes: &[Change<'_>], error: Error) -> Vec<Failure<Error>> {
        let Some(programs) = *self.programs.of(family) else { return fail_all(changes, &error) };
        if is_locked(&error) {
            return fail_all(changes, &error);
        }
        let tables = by_table(changes);
        let mut error = error;
        // The presumed state of chains to delete may have been wrong.
        if changes.iter().any(|change| change.want.is_none()) {
            match self.attempt(family, programs, &tables) {
                Ok(failures) => return failures,
                Err(newer) => error = newer,
            }
        }
        let mut failures = Vec::new();
        for (table, changes) in &tables {
            let alone = BTreeMap::from([(*table, changes.clone())]);
            let attempted = if tables.len() == 1 { Err(error.clone()) } else { self.attempt(family, programs, &alone) };
            match attempted {
                Ok(refused) => failures.extend(refused),
                Err(error) => failures.extend(self.in_parts(family, *table, changes, error)),
            }
        }
        failures
    }

    /// Makes changes that failed together in parts, where it is the changes that fail and not the program.
    fn in_parts(&mut self, family: Family, table: Table, changes: &[Change<'_>], error: Error) -> Vec<Failure<Error>> {
        let Some(programs) = *self.programs.of(family) else { return fail_all(changes, &error) };
        let is_refusal = matches!(error.cause, Cause::Program(_));
        let current = printed(programs, family, table);
        let works = || restore(programs, family, &format!("*{}\nCOMMIT\n", table.name())).is_ok();
        let (true, Ok(current)) = (is_refusal && works(), current) else { return fail_all(changes, &error) };
        let replaceable: Vec<Change<'_>> = changes
            .iter()
            .filter(|change| change.want.is_some() && (self.has_stand_in)(change.piece))
            .copied()
            .collect();
        let is_ours = |to: &str| self.ours.owns_in(table.name(), to);
        let refused = isolate::on_trial(table, &replaceable, &is_ours, &mut |script| restore(programs, family, script));
        if !refused.is_empty() {
            return self.wait_for_stand_ins(family, changes, refused);
        }
        let existing = current.chains.into_keys().collect();
        let needs = Cause::Program("it needs a chain that the kernel refuses".to_owned());
        let dependent = Error::new("change rules", family.to_string(), needs);
        let mut refused = Vec::new();
        let parted = isolate::in_parts(changes, &existing, &dependent, &mut |part| {
            let tables = BTreeMap::from([(table, part.to_vec())]);
            refused.extend(self.attempt(family, programs, &tables)?);
            Ok(())
        });
        for step in parted.refused {
            let piece = changes.iter().find(|change| change.step == step && change.want.is_some());
            let reason = parted.failed.iter().find(|(failed, _)| *failed == step).map(|(_, error)| error.to_string());
            let refusal = piece.zip(reason).map(|(change, reason)| Refusal { piece: change.piece.clone(), reason });
            self.refused.extend(refusal);
        }
        refused.extend(parted.failed.into_iter().map(|(step, error)| Failure { step, error }));
        refused
    }

    /// Reports the refusals to the owner and changes nothing.
    fn wait_for_stand_ins(
        &mut self,
        family: Family,
        changes: &[Change<'_>],
        refused: Vec<(usize, Error)>,
    ) -> Vec<Failure<Error>> {
        let waits = Cause::Program("it waits for what is put in the place of a refused chain".to_owned());
        let waits = Error::new("change rules", family.to_string(), waits);
        let mut refused: BTreeMap<usize, Error> = refused.into_iter().collect();
        for change in changes {
            let reason = refused.get(&change.step).map(ToString::to_string);
            self.refused.extend(reason.map(|reason| Refusal { piece: change.piece.clone(), reason }));
        }
        let failure = |change: &Change<'_>| {
            let error = refused.remove(&change.step).unwrap_or_else(|| waits.clone());
            Failure { step: change.step, error }
        };
        changes.iter().map(failure).collect()
    }

    /// One run of the program. Fails as a whole, or answers with the steps that were left out.
    fn attempt(
        &mut self,
        family: Family,
        programs: Programs,
        tables: &BTreeMap<Table, Vec<Change<'_>>>,
    ) -> Result<Vec<Failure<Error>>, Error> {
        let is_filled = |change: &Change<'_>| change.want.is_some() && !depends_on_table(change);
        let to_read = tables.iter().filter(|(_, changes)| !changes.iter().all(is_filled));
        let to_read: Vec<Table> = to_read.map(|(table, _)| *table).collect();
        let script = written(tables, printed_all(programs, family, &to_read, None))?;
        let sent = Sent { family, programs, tables, script, begun: Instant::now() };
        self.finish(sent, |script| restore(programs, family, script))
    }

    /// Waits for a run of the program with a script, and records its outcome. An empty script needs no run.
    fn finish(
        &mut self,
        sent: Sent<'_>,
        run: impl FnOnce(&str) -> Result<(), Error>,
    ) -> Result<Vec<Failure<Error>>, Error> {
        let Sent { family, programs, tables, script: Script { text, failures }, begun } = sent;
        if !text.is_empty() {
            let restored = run(&text);
            self.timings.note(family, Program::Restore, begun);
            restored?;
            self.learn(family, programs, tables);
        }
        Ok(failures)
    }

    /// Applies the changes of both families, with one program for each at the same time.
    fn apply_all(&mut self, changes: &PerFamily<Vec<Change<'_>>>) -> Vec<Failure<Error>> {
        let mut failures = Vec::new();
        let mut begun = Vec::new();
        for (family, changes) in changes.iter().filter(|(_, changes)| !changes.is_empty()) {
            let Some(programs) = *self.programs.of(family) else {
                let cause = Cause::Program("this family has no usable iptables programs on this host".to_owned());
                failures.extend(fail_all(changes, &Error::new("change rules", family.to_string(), cause)));
                continue;
            };
            let tables = by_table(changes);
            // Positions are numbers and deletions need their rule, so for them the present table decides.
            let depends = |changes: &[Change<'_>]| changes.iter().any(depends_on_table);
            let (to_read, known): (Vec<_>, Vec<_>) = tables.iter().partition(|(_, changes)| depends(changes));
            let to_read: Vec<Table> = to_read.into_iter().map(|(table, _)| *table).collect();
            let mut current = printed_all(programs, family, &to_read, None);
            current.extend(known.into_iter().map(|(table, changes)| (*table, Ok(presumed(changes)))));
            match written(&tables, current) {
                Ok(script) => {
                    let running = (!script.text.is_empty()).then(|| begin_restore(programs, family, &script.text));
                    begun.push((family, programs, tables, script, running, Instant::now()));
                }
                Err(error) => failures.extend(fail_all(changes, &error)),
            }
        }
        for (family, programs, tables, script, running, at) in begun {
            let end = |text: &str| running.map_or(Ok(()), |running| end_restore(programs, family, text, running));
            let sent = Sent { family, programs, tables: &tables, script, begun: at };
            failures.extend(match self.finish(sent, end) {
                Ok(failures) => failures,
                Err(error) => self.apply_again(family, changes.of(family), error),
            });
        }
        failures
    }

    /// Reads back written rules that may be printed in another spelling. Failures here show elsewhere.
    fn learn(&mut self, family: Family, programs: Programs, tables: &BTreeMap<Table, Vec<Change<'_>>>) {
        let spelling = self.spelling.of_mut(family);
        let written = |table: &Table| {
            let changes = tables.get(table).into_iter().flatten();
            changes.filter_map(|change| Some((change.piece, change.want?)))
        };
        let knows = |rules: &Rules| rules.0.iter().all(|rule| spelling.knows(rule));
        let new = tables.keys().filter(|table| !written(table).all(|(_, rules)| knows(rules)));
        let new: Vec<Table> = new.copied().collect();
        for (table, saved) in printed_all(programs, family, &new, None) {
            let Ok(saved) = saved else { continue };
            for (piece, rules) in written(&table) {
                match piece {
                    Piece::Chain { chain, .. } => {
                        if let Some(found) = saved.chains.get(chain) {
                            spelling.learn(&rules.0, &found.rules);
                        }
                    }
                    Piece::Jump { from, to, .. } => {
                        if let Some(found) = saved.chains.get(from) {
                            spelling.learn(&rules.0, &jumps(&found.rules, to));
                        }
                    }
                    Piece::Leftover { .. } => {}
                }
            }
        }
    }
}

impl Target for Tables {
    type Key = Piece;
    type Value = Rules;
    type Error = Error;

    fn name(&self) -> &'static str {
        RULES
    }

    fn read(&mut self) -> Result<BTreeMap<Piece, Rules>, Error> {
        self.read_tables(|_, _| true)
    }

    fn read_some(&mut self, keys: &[Piece]) -> Result<BTreeMap<Piece, Rules>, Error> {
        let asked: BTreeSet<(Family, Table)> = keys.iter().map(|key| (key.family(), key.table())).collect();
        let mut all = self.read_tables(|family, table| asked.contains(&(family, table)))?;
        Ok(keys.iter().filter_map(|key| all.remove_entry(key)).collect())
    }

    fn grown(have: &Rules, want: &Rules) -> Rules {
        have.grown(want)
    }

    fn describe(value: &Rules) -> String {
        let rules: Vec<String> = value.0.iter().map(ToString::to_string).collect();
        if rules.is_empty() { "no rule".to_owned() } else { rules.join("; ") }
    }

    fn apply<'a>(&mut self, _phase: Phase, steps: &[Step<'a, Piece, Rules>]) -> Vec<Failure<Error>> {
        self.refused.clear();
        let change =
            |(index, step): (usize, &Step<'a, Piece, Rules>)| Change { step: index, piece: step.key, want: step.want };
        let of = |family| steps.iter().enumerate().filter(move |(_, step)| step.key.family() == family);
        self.apply_all(&PerFamily::from_fn(|family| of(family).map(change).collect()))
    }
}

/// The rules that jump to this chain.
fn jumps(rules: &[Rule], to: &str) -> Vec<Rule> {
    rules.iter().filter(|rule| rule.jumps_to(to)).cloned().collect()
}

/// Input of the program, and the steps left out of it.
struct Script {
    text: String,
    failures: Vec<Failure<Error>>,
}

/// A script with which a program runs or is to run.
struct Sent<'a> {
    family: Family,
    programs: Programs,
    tables: &'a BTreeMap<Table, Vec<Change<'a>>>,
    script: Script,
    begun: Instant,
}

/// The script for these changes on tables that hold `current`.
fn written(
    tables: &BTreeMap<Table, Vec<Change<'_>>>,
    current: Vec<(Table, Result<SavedTable, Error>)>,
) -> Result<Script, Error> {
    let mut script = Script { text: String::new(), failures: Vec::new() };
    let mut current: BTreeMap<Table, _> = current.into_iter().collect();
    for (table, changes) in tables {
        let current = current.remove(table).unwrap_or_else(|| Ok(SavedTable::default()))?;
        let Plan { script: lines, refused } = plan(*table, &current, changes);
        script.text.push_str(&lines);
        script.failures.extend(refused.into_iter().map(|(step, reason)| {
            let piece = changes.iter().find(|change| change.step == step).map(|change| change.piece.to_string());
            let error = Error::new("change rules", piece.unwrap_or_default(), Cause::Program(reason.to_owned()));
            Failure { step, error }
        }));
    }
    Ok(script)
}

fn by_table<'a>(changes: &[Change<'a>]) -> BTreeMap<Table, Vec<Change<'a>>> {
    let mut tables: BTreeMap<Table, Vec<Change<'a>>> = BTreeMap::new();
    for change in changes {
        tables.entry(change.piece.table()).or_default().push(*change);
    }
    tables
}

fn fail_all(changes: &[Change<'_>], error: &Error) -> Vec<Failure<Error>> {
    changes.iter().map(|change| Failure { step: change.step, error: error.clone() }).collect()
}
