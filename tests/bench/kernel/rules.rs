//! Rules in chains, with either flavour of iptables.
//!
//! A process for each rule is not run for all of them: a hundred are added where half of the rules are there already,
//! because the legacy flavour takes the longer the more there are, and that is multiplied. `kernel::iptables` reads back
//! how rules of a new shape are printed, which is in the first round only.

use std::process::Command;

use compact_str::CompactString;
use sluice::kernel::Name;
use sluice::kernel::iptables::{Flavour, Leftovers, Ownership, Piece, Programs, Rules, Table, Tables};
use sluice::net::{Family, PerFamily};
use sluice::reconcile::{Phase, Step, Target};

use crate::namespace::{self, run};
use crate::race::{Way, fed, race, timed};

const CHAINS: usize = 500;
const RULES_IN_CHAIN: usize = 10;
const ALONE: usize = 100;
const ROUNDS: usize = 3;

pub fn measure() -> Result<(), String> {
    let mut result = Ok(());
    namespace::in_new(|| {
        namespace::own_run();
        result = [(Flavour::NfTables, "nft"), (Flavour::Legacy, "legacy")]
            .into_iter()
            .try_for_each(|(flavour, name)| with(flavour, name));
    });
    result
}

fn with(flavour: Flavour, name: &'static str) -> Result<(), String> {
    let (program, restore) = (format!("iptables-{name}"), format!("iptables-{name}-restore"));
    if !Command::new(&program).args(["-t", "mangle", "-S"]).output().is_ok_and(|output| output.status.success()) {
        return Err(format!("{program} does not work here"));
    }
    let chains: Vec<(Piece, Rules)> = (0..CHAINS).map(|index| (piece(index), rules(index))).collect();
    let steps: Vec<Step<'_, Piece, Rules>> =
        chains.iter().map(|(key, want)| Step { key, have: None, want: Some(want) }).collect();
    let directory = tempfile::tempdir().expect("a directory");
    let (all, half) = (directory.path().join("all"), directory.path().join("half"));
    std::fs::write(&all, script(CHAINS)).expect("a file");
    std::fs::write(&half, script(CHAINS / 2)).expect("a file");
    let programs = Programs { flavour, plain: false };
    let ours = Ownership { chains: vec![(Table::Mangle, Name::Prefix("BENCH-".into()))], leftovers: Leftovers::None };
    let mut tables = Tables::new(PerFamily { v4: Some(programs), v6: None }, ours);
    let arguments = ["--noflush", "--wait", "5"];
    let mut ways = [
        Way::new("a process for each (100 measured beside 2,500 rules, times 50)", || {
            fed(&restore, &arguments, &half);
            let took = timed(|| one_by_one(&program));
            check(&program, CHAINS * RULES_IN_CHAIN / 2 + ALONE);
            took * u32::try_from(CHAINS * RULES_IN_CHAIN / ALONE).expect("a small number")
        }),
        Way::new("iptables-restore", || {
            let took = fed(&restore, &arguments, &all);
            check(&program, CHAINS * RULES_IN_CHAIN);
            took
        }),
        Way::new("kernel::iptables, which runs it", || {
            let took = timed(|| assert!(tables.apply(Phase::Grow, &steps).is_empty(), "the program takes them"));
            check(&program, CHAINS * RULES_IN_CHAIN);
            took
        }),
    ];
    let version = run(&format!("{program} --version"));
    let title = format!("{} rules in {CHAINS} chains, {}", CHAINS * RULES_IN_CHAIN, version.trim());
    race(&title, ROUNDS, &mut ways, || {
        run(&format!("{program} -t mangle -F"));
        run(&format!("{program} -t mangle -X"));
    });
    Ok(())
}

fn one_by_one(program: &str) {
    let later = (CHAINS / 2..).take(ALONE / RULES_IN_CHAIN);
    for (chain, rule) in later.flat_map(|index| rules(index).0.into_iter().map(move |rule| (chain(index), rule))) {
        run(&format!("{program} -w 5 -t mangle -A {chain} {rule}"));
    }
}

fn chain(index: usize) -> CompactString {
    format!("BENCH-{index:03}").into()
}

fn piece(index: usize) -> Piece {
    Piece::Chain { family: Family::V4, table: Table::Mangle, chain: chain(index) }
}

fn rules(index: usize) -> Rules {
    let rule = |number: usize| {
        let count = index * RULES_IN_CHAIN + number;
        format!(
            "-s 10.244.{}.{}/32 -p tcp -m comment --comment rule-{count} -m tcp --dport 80 \
             -j MARK --set-xmark 0x4000/0x4000",
            count / 250,
            1 + count % 250
        )
        .into()
    };
    Rules((0..RULES_IN_CHAIN).map(rule).collect())
}

/// All chains, and the rules of so many of them, for `iptables-restore`.
fn script(filled: usize) -> String {
    let declared = (0..CHAINS).map(|index| format!(":{} - [0:0]\n", chain(index)));
    let lines = |index| rules(index).0.into_iter().map(move |rule| format!("-A {} {rule}\n", chain(index)));
    let filled = (0..filled).flat_map(lines);
    format!("*mangle\n{}{}COMMIT\n", declared.collect::<String>(), filled.collect::<String>())
}

fn check(program: &str, count: usize) {
    let shown = run(&format!("{program} -t mangle -S"));
    assert_eq!(shown.lines().filter(|line| line.starts_with("-A BENCH-")).count(), count);
}
