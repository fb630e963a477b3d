//! iptables: our chains, and the jumps to them from the built-in chains.
//!
//! Kernel: the tables `filter`, `nat` and `mangle` of either flavour (legacy xtables or nf_tables), through the
//! flavour's own `iptables-save` and `iptables-restore --noflush --wait`. What a round changes in a family is
//! one run of the program with one transaction for each table.
//!
//! Ours, for a process without memory: the chains with the names that an [`Ownership`] lists; every rule in a
//! built-in chain that jumps to one of them; and, if the owner says so, the rules that kube-router left in
//! built-in chains ([`Piece::Leftover`]). Everything else is foreign: it is not returned, and it keeps its place
//! and its counters.
//!
//! Limits and surprises:
//! - Rules are compared as the text that `iptables-save` prints, and must be written in it (see [`quoted`] for
//!   comments). A difference in spelling costs one needless write after a start, see `spelling`.
//! - Legacy tables are rewritten whole by the kernel whatever changes, so fewer runs are better than small ones.
//! - Legacy tools exclude each other by a lock in a file, `/run/xtables.lock`: it has to be the host's.
//! - If the run for all tables fails, each table is tried alone, and then its changes in parts (`isolate`), so that
//!   what the kernel refuses does not hold up the rest. While another program holds the lock nothing is tried twice.
//! - A table that cannot be read while others can (a kernel without IPv6 address translation) reads as empty: what
//!   is wanted there is tried, fails and is reported, and the other tables are served.

mod counted;
mod flavour;
mod isolate;
mod leftover;
mod plan;
mod save;
mod slots;
mod spelling;
mod timing;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

use compact_str::CompactString;
use tracing::{debug, info, warn};

use self::leftover::is_leftover;
use self::plan::{Change, Plan, depends_on_table, plan};
use self::save::{Saved, SavedTable, parse, target};
use self::slots::Place;
use self::spelling::Spelling;
use self::timing::Timings;
use super::program::{Call, run};
use super::{Cause, Error, Name};
use crate::net::{Family, PerFamily};
use crate::reconcile::{Failure, Phase, Step, Target};

pub use self::counted::{Counted, counted};
pub use self::flavour::{Detected, Flavour, Programs, detect};
pub use self::save::quoted;
pub use self::timing::{Program, Timing};

/// The rules of one owner, as a family of kernel objects. Works in the network namespace of the calling thread.
#[derive(Debug)]
pub struct Tables {
    programs: PerFamily<Option<Programs>>,
    ours: Ownership,
    spelling: PerFamily<Spelling>,
    /// Tables that could not be read the last time.
    unreadable: BTreeSet<(Family, Table)>,
    /// What was printed a moment ago, for the first reading.
    printed: Option<(Instant, PerFamily<Option<String>>)>,
    refused: Vec<Refusal>,
    timings: Timings,
}

/// The programs of each family; `None` for one without rules.
pub type Families = PerFamily<Option<Programs>>;

/// A piece that the kernel refuses for its own sake, while it takes others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    pub piece: Piece,
    pub reason: String,
}

/// The tables in use, in the order in which a restore file names them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Table {
    Filter,
    Nat,
    Mangle,
}

/// Something of ours in the tables.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Piece {
    /// A chain of ours. Sorted before the jumps, which need it.
    Chain { family: Family, table: Table, chain: CompactString },
    /// A rule of ours in a built-in chain (`INPUT`, `POSTROUTING`, …) that jumps to a chain of ours. Its place
    /// among other jumps of ours is fixed by one list in `slots`; foreign rules keep their places. A jump
    /// that is not in its place reads as no rules at all.
    Jump { family: Family, table: Table, from: CompactString, to: CompactString },
    /// A rule that kube-router left in a built-in chain. It is never wanted, so taking over removes it.
    Leftover { family: Family, table: Table, from: CompactString, rule: CompactString },
}

/// The rules of a chain, or the one rule that is a jump; each in the canonical form in which `iptables-save`
/// prints it, without the leading `-A CHAIN`: `-p icmp -m icmp --icmp-type 8 -j ACCEPT`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rules(pub Vec<CompactString>);

/// What belongs to one owner, in both families.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Ownership {
    pub chains: Vec<(Table, Name)>,
    /// Whether kube-router's leftovers in the tables named above are this owner's to remove.
    pub leftovers: bool,
}

/// How long a program waits for another one that holds the lock of the tables, in seconds.
const LOCK_WAIT: &str = "5";
/// How long a program may take altogether.
const LIMIT: Duration = Duration::from_secs(30);
/// How long what was detected is good for the first reading.
const FRESH: Duration = Duration::from_secs(2);

impl Tables {
    /// Rules through these programs; a family without programs has none, and wanting some there fails.
    pub fn new(programs: PerFamily<Option<Programs>>, ours: Ownership) -> Tables {
        let spelling = PerFamily::default();
        let (unreadable, refused) = (BTreeSet::new(), Vec::new());
        Tables { programs, ours, spelling, unreadable, printed: None, refused, timings: Timings::default() }
    }

    /// How long the programs took since this was asked the last time.
    pub fn take_timings(&mut self) -> Vec<Timing> {
        self.timings.take()
    }

    /// Pieces that were refused for their own sake since this was asked the last time.
    pub fn take_refused(&mut self) -> Vec<Refusal> {
        std::mem::take(&mut self.refused)
    }

    /// Like [`new`](Tables::new), with what was detected just now: the first reading, if it comes at once, is
    /// spared.
    pub fn detected(detected: Detected, ours: Ownership) -> Tables {
        let printed = Some((Instant::now(), detected.printed));
        Tables { printed, ..Tables::new(detected.programs, ours) }
    }

    /// Whether rules of this family can be wanted.
    pub fn has(&self, family: Family) -> bool {
        self.programs.of(family).is_some()
    }

    /// What is ours in the tables that pass. Fails when none of them can be read.
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
                        self.recognise((family, table), &saved, &mut found);
                        readable += 1;
                        if self.unreadable.remove(&(family, table)) {
                            info!(%family, table = table.name(), "Rules can be read again");
                        }
                    }
                    Err(error) => {
                        if self.unreadable.insert((family, table)) {
                            warn!(%family, table = table.name(), %error, "Rules cannot be read");
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
    fn recognise(&self, (family, table): (Family, Table), saved: &SavedTable, found: &mut BTreeMap<Piece, Rules>) {
        let spelling = self.spelling.of(family);
        let spelled = |rules: &[CompactString]| Rules(rules.iter().map(|rule| spelling.as_written(rule)).collect());
        for (name, chain) in &saved.chains {
            if !chain.builtin {
                if self.ours.owns(table, name) {
                    found.insert(Piece::Chain { family, table, chain: name.clone() }, spelled(&chain.rules));
                }
                continue;
            }
            let place = Place { table, chain: name };
            for rule in &chain.rules {
                let to = target(rule).filter(|to| self.ours.owns(table, to));
                let from = name.clone();
                if let Some(to) = to {
                    let rules = if place.holds(&chain.rules, &to) { jumps(&chain.rules, &to) } else { Vec::new() };
                    found.insert(Piece::Jump { family, table, from, to }, spelled(&rules));
                } else if self.ours.leftovers && is_leftover(table, name, rule) {
                    let piece = Piece::Leftover { family, table, from, rule: rule.clone() };
                    found.insert(piece, Rules(vec![rule.clone()]));
                }
            }
        }
    }

    /// Performs the changes of one family, all tables at once and, if that fails, each table alone.
    fn apply_family(&mut self, family: Family, changes: &[Change<'_>]) -> Vec<Failure<Error>> {
        let Some(programs) = *self.programs.of(family) else {
            let cause = Cause::Program("this family has no usable iptables programs on this host".to_owned());
            return fail_all(changes, &Error::new("change rules", family.to_string(), cause));
        };
        let tables = by_table(changes);
        let error = match self.attempt(family, programs, &tables) {
            Ok(failures) => return failures,
            Err(error) => error,
        };
        if is_locked(&error) {
            return fail_all(changes, &error);
        }
        let mut failures = Vec::new();
        for (table, changes) in &tables {
            let alone = BTreeMap::from([(*table, changes.clone())]);
            let attempted = if tables.len() == 1 { Err(error.clone()) } else { self.attempt(family, programs, &alone) };
            match attempted {
                Ok(refused) => failures.extend(refused),
                Err(error) => failures.extend(self.in_parts((family, programs), *table, changes, error)),
            }
        }
        failures
    }

    /// Makes changes that failed together in parts, where it is the changes that fail and not the program.
    fn in_parts(
        &mut self,
        (family, programs): (Family, Programs),
        table: Table,
        changes: &[Change<'_>],
        error: Error,
    ) -> Vec<Failure<Error>> {
        let is_refusal = matches!(error.cause, Cause::Program(_));
        let current = printed(programs, family, table);
        let works = || restore(programs, family, &format!("*{}\nCOMMIT\n", table.name())).is_ok();
        let (true, Ok(current)) = (is_refusal && works(), current) else { return fail_all(changes, &error) };
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

    /// One run of the program. Fails as a whole, or answers with the steps that were left out.
    fn attempt(
        &mut self,
        family: Family,
        programs: Programs,
        tables: &BTreeMap<Table, Vec<Change<'_>>>,
    ) -> Result<Vec<Failure<Error>>, Error> {
        let mut script = String::new();
        let mut failures = Vec::new();
        // Places are numbers and deletions need their rule, so what stands there now decides.
        let depends = tables.iter().filter(|(_, changes)| changes.iter().any(depends_on_table));
        let depends: Vec<Table> = depends.map(|(table, _)| *table).collect();
        let mut current: BTreeMap<Table, _> = printed_all(programs, family, &depends, None).into_iter().collect();
        for (table, changes) in tables {
            let current = current.remove(table).unwrap_or_else(|| Ok(SavedTable::default()))?;
            let Plan { script: lines, refused } = plan(*table, &current, changes);
            script.push_str(&lines);
            failures.extend(refused.into_iter().map(|(step, reason)| {
                let piece = changes.iter().find(|change| change.step == step).map(|change| change.piece.to_string());
                let error = Error::new("change rules", piece.unwrap_or_default(), Cause::Program(reason.to_owned()));
                Failure { step, error }
            }));
        }
        if !script.is_empty() {
            let begun = Instant::now();
            let restored = restore(programs, family, &script);
            self.timings.note(family, Program::Restore, begun);
            restored?;
            self.learn(family, programs, tables);
        }
        Ok(failures)
    }

    /// Reads back what was written and may be printed in another spelling. What fails here shows elsewhere.
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
        "rules"
    }

    fn read(&mut self) -> Result<BTreeMap<Piece, Rules>, Error> {
        self.read_tables(|_, _| true)
    }

    fn read_some(&mut self, keys: &[Piece]) -> Result<BTreeMap<Piece, Rules>, Error> {
        let asked: BTreeSet<(Family, Table)> = keys.iter().map(|key| (key.family(), key.table())).collect();
        let mut all = self.read_tables(|family, table| asked.contains(&(family, table)))?;
        Ok(keys.iter().filter_map(|key| all.remove_entry(key)).collect())
    }

    fn apply(&mut self, _phase: Phase, steps: &[Step<'_, Piece, Rules>]) -> Vec<Failure<Error>> {
        let mut failures = Vec::new();
        self.refused.clear();
        for family in Family::BOTH {
            let changes: Vec<Change<'_>> = steps
                .iter()
                .enumerate()
                .filter(|(_, step)| step.key.family() == family)
                .map(|(index, step)| Change { step: index, piece: step.key, want: step.want })
                .collect();
            if !changes.is_empty() {
                failures.extend(self.apply_family(family, &changes));
            }
        }
        failures
    }
}

impl Ownership {
    /// The tables that have to be read.
    fn tables(&self) -> impl Iterator<Item = Table> {
        Table::ALL.into_iter().filter(|table| self.chains.iter().any(|(owned, _)| owned == table))
    }

    fn owns(&self, table: Table, chain: &str) -> bool {
        self.chains.iter().any(|(owned, name)| *owned == table && name.matches(chain))
    }

    /// As `owns`, for a table by its name.
    fn owns_in(&self, table: &str, chain: &str) -> bool {
        self.chains.iter().any(|(owned, name)| owned.name() == table && name.matches(chain))
    }
}

impl Table {
    pub const ALL: [Table; 3] = [Table::Filter, Table::Nat, Table::Mangle];

    pub fn name(self) -> &'static str {
        match self {
            Table::Filter => "filter",
            Table::Nat => "nat",
            Table::Mangle => "mangle",
        }
    }
}

impl Piece {
    pub fn family(&self) -> Family {
        match self {
            Piece::Chain { family, .. } | Piece::Jump { family, .. } | Piece::Leftover { family, .. } => *family,
        }
    }

    pub fn table(&self) -> Table {
        match self {
            Piece::Chain { table, .. } | Piece::Jump { table, .. } | Piece::Leftover { table, .. } => *table,
        }
    }
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Piece::Chain { family, table, chain } => write!(f, "{family} {} {chain}", table.name()),
            Piece::Jump { family, table, from, to } => write!(f, "{family} {} {from} to {to}", table.name()),
            Piece::Leftover { family, table, from, rule } => write!(f, "{family} {} {from} {rule}", table.name()),
        }
    }
}

/// The rules that jump to this chain.
fn jumps(rules: &[CompactString], to: &str) -> Vec<CompactString> {
    rules.iter().filter(|rule| target(rule).as_deref() == Some(to)).cloned().collect()
}

fn by_table<'a>(changes: &[Change<'a>]) -> BTreeMap<Table, Vec<Change<'a>>> {
    let mut tables: BTreeMap<Table, Vec<Change<'a>>> = BTreeMap::new();
    for change in changes {
        tables.entry(change.piece.table()).or_default().push(*change);
    }
    tables
}

/// Whether another program holds the lock of the tables.
fn is_locked(error: &Error) -> bool {
    matches!(&error.cause, Cause::Program(words) if words.contains("xtables lock"))
}

fn fail_all(changes: &[Change<'_>], error: &Error) -> Vec<Failure<Error>> {
    changes.iter().map(|change| Failure { step: change.step, error: error.clone() }).collect()
}

/// What these tables hold now, from what is known already or from one run of the program; where that fails, each
/// table is asked alone.
fn printed_all(
    programs: Programs,
    family: Family,
    tables: &[Table],
    known: Option<Saved>,
) -> Vec<(Table, Result<SavedTable, Error>)> {
    let whole = known.or_else(|| {
        let call = Call { program: programs.of(family).0, arguments: &[], input: b"", limit: LIMIT };
        if tables.len() > 1 { parse(&run(call).ok()?).ok() } else { None }
    });
    let Some(mut whole) = whole else {
        return tables.iter().map(|table| (*table, printed(programs, family, *table))).collect();
    };
    tables.iter().map(|table| (*table, Ok(whole.remove(table.name()).unwrap_or_default()))).collect()
}

/// What the table holds now.
fn printed(programs: Programs, family: Family, table: Table) -> Result<SavedTable, Error> {
    let (program, _) = programs.of(family);
    let arguments = ["-t", table.name()];
    let object = || format!("{family} {}", table.name());
    let text = run(Call { program, arguments: &arguments, input: b"", limit: LIMIT })
        .map_err(|fault| fault.of("list rules", &object(), program))?;
    let mut saved = parse(&text).map_err(|reason| Error::new("list rules", object(), Cause::Malformed(reason)))?;
    Ok(saved.remove(table.name()).unwrap_or_default())
}

fn restore(programs: Programs, family: Family, script: &str) -> Result<(), Error> {
    let (_, program) = programs.of(family);
    let arguments = ["--noflush", "--wait", LOCK_WAIT];
    let result = run(Call { program, arguments: &arguments, input: script.as_bytes(), limit: LIMIT });
    let Err(fault) = result else { return Ok(()) };
    debug!(%family, script, "These rules were refused");
    let mut error = fault.of("change rules", &family.to_string(), program);
    if let Cause::Program(words) = &mut error.cause {
        *words = with_line(words, script);
    }
    Err(error)
}

/// What the program said in one line, with the text of the line of the script that it complained about.
fn with_line(words: &str, script: &str) -> String {
    let said: Vec<&str> =
        words.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("Try `")).collect();
    let said = said.join("; ");
    let number = said.split("line").skip(1).find_map(|rest| {
        let digits = rest.trim_start_matches([' ', ':']);
        digits.split(|letter: char| !letter.is_ascii_digit()).next()?.parse::<usize>().ok()
    });
    let line = number.and_then(|number| script.lines().nth(number.checked_sub(1)?));
    line.map_or(said.clone(), |line| format!("{said}: {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_program_names_the_line() {
        let script = "*filter\n:A - [0:0]\n-A A -m set --match-set nope src -j ACCEPT\nCOMMIT\n";
        let words = "iptables-nft-restore v1.8.9 (nf_tables): Set nope doesn't exist.\n\nError occurred at line: 3\n\
            Try `iptables-nft-restore -h' or 'iptables-nft-restore --help' for more information.";
        assert_eq!(
            with_line(words, script),
            "iptables-nft-restore v1.8.9 (nf_tables): Set nope doesn't exist.; Error occurred at line: 3: \
             -A A -m set --match-set nope src -j ACCEPT"
        );
        assert_eq!(with_line("iptables-restore: line 4 failed", script), "iptables-restore: line 4 failed: COMMIT");
        assert_eq!(with_line("no number on any line", script), "no number on any line");
        assert_eq!(with_line("line 0; line 99", script), "line 0; line 99");
    }

    #[test]
    fn names_are_owned_in_their_table_only() {
        let ours = Ownership {
            chains: vec![
                (Table::Filter, Name::Exact("KUBE-ROUTER-SERVICES".into())),
                (Table::Nat, Name::Prefix("KUBE-NWPLCY-".into())),
            ],
            leftovers: false,
        };
        assert!(ours.owns(Table::Filter, "KUBE-ROUTER-SERVICES"));
        assert!(!ours.owns(Table::Nat, "KUBE-ROUTER-SERVICES"));
        assert!(!ours.owns(Table::Filter, "KUBE-ROUTER-SERVICES-2"));
        assert!(ours.owns(Table::Nat, "KUBE-NWPLCY-A"));
        assert!(ours.owns_in("nat", "KUBE-NWPLCY-A") && !ours.owns_in("mangle", "KUBE-NWPLCY-A"));
        assert_eq!(ours.tables().collect::<Vec<_>>(), [Table::Filter, Table::Nat]);
    }
}
