//! Tables of nf_tables: everything in one is changed by transactions.

use std::collections::BTreeMap;

use rustix::io::Errno;
use sluice::kernel::Error;
use sluice::kernel::nftables::{Content, Key, Kind, Match, Name, Object as InTable, Statement, Verdict};
use sluice::reconcile::{Failure, Step};

use super::kinds::Rows;
use super::{Fault, Machine, Object, State};

pub enum ProxyTable {}
pub enum RouterTable {}

type Objects = BTreeMap<InTable, Content>;

impl Rows for ProxyTable {
    type Key = InTable;
    type Value = Content;
    const NAME: &'static str = "nf_tables objects";

    fn rows(state: &mut State) -> &mut Objects {
        &mut state.proxy_table
    }

    fn object(key: &InTable) -> Object {
        Object::InTable(key.clone())
    }

    fn grown(have: &Content, want: &Content) -> Content {
        have.grown(want)
    }

    fn is_ours(_: &InTable, _: &Content) -> bool {
        true
    }

    fn perform(machine: &mut Machine, steps: &[Step<'_, InTable, Content>]) -> Vec<Failure<Error>> {
        transaction::<ProxyTable>(machine, steps)
    }
}

impl Rows for RouterTable {
    type Key = InTable;
    type Value = Content;
    const NAME: &'static str = "nf_tables objects";

    fn rows(state: &mut State) -> &mut Objects {
        &mut state.router_table
    }

    fn object(key: &InTable) -> Object {
        Object::InTable(key.clone())
    }

    fn is_ours(_: &InTable, _: &Content) -> bool {
        true
    }

    fn perform(machine: &mut Machine, steps: &[Step<'_, InTable, Content>]) -> Vec<Failure<Error>> {
        transaction::<RouterTable>(machine, steps)
    }
}

/// All steps or none, but for an element that the kernel refuses: the others do not wait for it.
fn transaction<F: Rows<Key = InTable, Value = Content>>(
    machine: &mut Machine,
    steps: &[Step<'_, InTable, Content>],
) -> Vec<Failure<Error>> {
    let is_refused = |step: &Step<'_, InTable, Content>| {
        let is_made = step.want.is_some() && matches!(step.key, InTable::Element(..));
        is_made && machine.broken_object.as_ref() == Some(&F::object(step.key))
    };
    let (refused, taken): (Vec<usize>, Vec<usize>) = (0..steps.len()).partition(|index| is_refused(&steps[*index]));
    if refused.is_empty() {
        return whole_transaction::<F>(machine, steps);
    }
    let without: Vec<Step<'_, InTable, Content>> =
        taken.iter().map(|index| &steps[*index]).map(|it| Step { key: it.key, have: it.have, want: it.want }).collect();
    let failed = whole_transaction::<F>(machine, &without).into_iter();
    let failed = failed.map(|failure| Failure { step: taken[failure.step], ..failure });
    let alone = |index: usize| {
        machine.refused.push(format!("{} {}: {}", F::NAME, steps[index].key, Errno::BUSY));
        Failure { step: index, error: Error::errno("change", steps[index].key.to_string(), Errno::BUSY) }
    };
    let mut all: Vec<Failure<Error>> = failed.collect();
    all.extend(refused.into_iter().map(alone));
    all
}

/// All steps or none. The table that comes of them must be one that the kernel would take.
fn whole_transaction<F: Rows<Key = InTable, Value = Content>>(
    machine: &mut Machine,
    steps: &[Step<'_, InTable, Content>],
) -> Vec<Failure<Error>> {
    let failed = |errno| {
        let failure = move |(step, it): (usize, &Step<'_, InTable, Content>)| Failure {
            step,
            error: Error::errno("change", it.key.to_string(), errno),
        };
        steps.iter().enumerate().map(failure).collect::<Vec<_>>()
    };
    let fault = machine.faults.of_step();
    if matches!(fault, Fault::Before | Fault::Lost) {
        return failed(Errno::INTR);
    }
    let mut table = F::rows(&mut machine.state).clone();
    let mut refusal = None;
    for step in steps {
        let was_there = match step.want {
            Some(want) => table.insert(step.key.clone(), want.clone()).is_some(),
            None => table.remove(step.key).is_some(),
        };
        if step.have.is_some() != was_there {
            refusal = Some(if was_there { Errno::EXIST } else { Errno::NOENT });
        }
    }
    let refusal = refusal.or_else(|| invalid(&table));
    if let Some(errno) = refusal {
        machine.refused.push(format!("{}: {errno}", F::NAME));
        return failed(errno);
    }
    *F::rows(&mut machine.state) = table;
    for step in steps {
        machine.acted(&F::object(step.key));
    }
    if fault == Fault::After { failed(Errno::INTR) } else { Vec::new() }
}

/// Why the kernel would not have a table: something in it names what is not there, or an element is not of its set's type.
fn invalid(table: &Objects) -> Option<Errno> {
    use sluice::kernel::nftables::Fields;
    let set = |name: &Name| match table.get(&InTable::Set(name.clone())) {
        Some(Content::Set(spec)) => Some(*spec),
        _ => None,
    };
    let fits = |name: &Name, key: &Key| {
        set(name).is_some_and(|spec| match (spec.fields, key) {
            (Fields::Address(family), Key::Address(address)) => !spec.intervals && family == (*address).into(),
            (Fields::Address(family), Key::Prefix(prefix)) => spec.intervals && family == (*prefix).into(),
            (Fields::Service(family), Key::Service(address, ..)) => family == (*address).into(),
            (Fields::ServiceSource(family), Key::ServiceSource(fields)) => family == fields.0.into(),
            (Fields::Mark, Key::Mark(_)) => true,
            _ => false,
        })
    };
    for (object, content) in table {
        let is_whole = match (object, content) {
            (InTable::Element(name, key), Content::Element) => fits(name, key),
            (InTable::Element(name, key), Content::Mark(_)) => {
                fits(name, key) && set(name).is_some_and(|spec| spec.kind == Kind::Marks)
            }
            (InTable::Chain(_), Content::Chain(chain)) => chain.rules.iter().all(|rule| {
                let of_matches = rule.matches().iter().all(|one| match one {
                    Match::InSet { set: name, .. } => set(name).is_some(),
                    _ => true,
                });
                let of_statements = rule.statements().iter().all(|one| match one {
                    Statement::Count(name) => table.contains_key(&InTable::Counter(name.clone())),
                    Statement::MarkFrom { map, .. } => set(map).is_some_and(|spec| spec.kind == Kind::Marks),
                    _ => true,
                });
                let of_verdict = match rule.verdict() {
                    Some(Verdict::Jump(name) | Verdict::Goto(name)) => {
                        table.contains_key(&InTable::Chain(name.clone()))
                    }
                    Some(Verdict::Map { map, .. }) => set(map).is_some(),
                    _ => true,
                };
                of_matches && of_statements && of_verdict
            }),
            (InTable::Set(_), Content::Set(_)) | (InTable::Counter(_), Content::Counter) => true,
            _ => false,
        };
        if !is_whole {
            return Some(Errno::NOENT);
        }
    }
    overlap(table)
}

/// Ranges of a set must be apart.
fn overlap(table: &Objects) -> Option<Errno> {
    let mut before: Option<(&Name, ipnet::IpNet)> = None;
    for object in table.keys() {
        let InTable::Element(name, Key::Prefix(prefix)) = object else { continue };
        if before.is_some_and(|(its, other)| its == name && other.contains(prefix)) {
            return Some(Errno::EXIST);
        }
        before = Some((name, *prefix));
    }
    None
}
