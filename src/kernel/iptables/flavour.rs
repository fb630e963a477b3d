//! Detection of the iptables flavour that this host uses.
//!
//! The same rules can be kept in two places of the kernel, each with programs of its own: legacy xtables and
//! nf_tables. Both are in force at the same time, but the order between them is nobody's decision, so ours
//! must stand where the host's own stand.
//!
//! The kubelet leaves a hint: empty chains `KUBE-IPTABLES-HINT` and `KUBE-KUBELET-CANARY` in the table `mangle`,
//! of the flavour that it uses (Kubernetes KEP 3178). Where only one flavour has them that decides. Where both or
//! none have them, the one with more rules wins, and where that is a draw, what plain `iptables` is.
//! A flavour whose programs are missing, or do not work on this kernel, loses to the other.
//!
//! Starting programs is what a start of ours would mostly wait for, so they run side by side, and those of the legacy
//! flavour only where the kernel has legacy tables (`/proc/net/ip_tables_names`) or nothing else works.

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::Ownership;
use super::save::{Line, lines, parse};
use crate::kernel::module::ModuleState;
use crate::kernel::program::{Call, Fault, Running, is_program, run, start};
use crate::net::{Family, PerFamily};

/// One of the two implementations.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Flavour {
    Legacy,
    NfTables,
}

/// The programs that are used for a family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Programs {
    pub flavour: Flavour,
    /// The program names carry no flavour: `iptables-save`, not `iptables-nft-save`. For hosts that have only one.
    pub plain: bool,
}

/// Result of the detection.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Detected {
    /// The programs to use; `None` for a family that cannot be used.
    pub programs: PerFamily<Option<Programs>>,
    /// The programs of the other flavour, where that holds chains of ours, left behind when the host changed
    /// its flavour. Reconciling a second target with these programs to nothing removes them.
    pub abandoned: PerFamily<Option<Programs>>,
    /// Output of the programs to use, a moment ago: all tables of a family.
    pub printed: PerFamily<Option<String>>,
    /// When it had been printed.
    pub printed_at: Option<Instant>,
    /// Reasons why families cannot be used, a sentence each.
    pub disabled: Vec<String>,
}

/// Findings about one flavour.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Seen {
    /// They are there and they work, for at least one family.
    usable: bool,
    /// The kubelet's chains are there.
    hint: bool,
    rules: usize,
}

/// Chains by which the kubelet says which flavour it uses.
const HINTS: [&str; 2] = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"];

type Printed = PerFamily<Result<String, Fault>>;

/// Listing tables takes long only where there are very many rules.
const LIMIT: Duration = Duration::from_secs(30);

impl Programs {
    /// The programs that print and restore the rules of a family.
    pub(super) fn of(self, family: Family) -> (&'static str, &'static str) {
        match (family, self.plain, self.flavour) {
            (Family::V4, true, _) => ("iptables-save", "iptables-restore"),
            (Family::V6, true, _) => ("ip6tables-save", "ip6tables-restore"),
            (Family::V4, false, Flavour::Legacy) => ("iptables-legacy-save", "iptables-legacy-restore"),
            (Family::V6, false, Flavour::Legacy) => ("ip6tables-legacy-save", "ip6tables-legacy-restore"),
            (Family::V4, false, Flavour::NfTables) => ("iptables-nft-save", "iptables-nft-restore"),
            (Family::V6, false, Flavour::NfTables) => ("ip6tables-nft-save", "ip6tables-nft-restore"),
        }
    }
}

/// Returns which flavour of iptables this host uses; `None` where it has no programs of any. Runs programs only where the
/// kernel has legacy tables.
pub fn used() -> Option<Flavour> {
    if !is_installed() {
        return None;
    }
    let is_legacy = || {
        let found = detect(&Ownership::default()).programs;
        found.iter().any(|(_, programs)| programs.is_some_and(|programs| programs.flavour == Flavour::Legacy))
    };
    Some(if has_legacy_tables() && is_legacy() { Flavour::Legacy } else { Flavour::NfTables })
}

/// Like [`used`], without having the kernel load nf_tables. `nf_tables` says how far it is from being there; [`ModuleState::Missing`] also where it does not come.
pub fn used_without_loading(nf_tables: ModuleState) -> Option<Flavour> {
    if nf_tables == ModuleState::Present || !has_legacy_tables() {
        return used();
    }
    if !is_installed() {
        return None;
    }
    let programs = Programs { flavour: Flavour::NfTables, plain: false };
    let are_installed = Family::BOTH.into_iter().any(|family| is_program(programs.of(family).0));
    let [legacy] = print_legacy();
    Some(before_nf_tables(seen(&legacy), are_installed && nf_tables != ModuleState::Missing, default_flavour))
}

/// Decides as if nf_tables were there, in which there are no rules yet. `would_work`: its programs do, once they have had it loaded.
fn before_nf_tables(legacy: Seen, would_work: bool, default: impl Fn() -> Option<Flavour>) -> Flavour {
    let nf_tables = Seen { usable: would_work, ..Seen::default() };
    decide(legacy, nf_tables, &default).or_else(default).unwrap_or(Flavour::NfTables)
}

/// Returns whether there are chains of ours in tables of legacy iptables; not where no installed program reads them.
pub(super) fn legacy_holds(ours: &Ownership) -> bool {
    let [printed] = print_legacy();
    printed.iter().any(|(_, text)| text.as_ref().is_ok_and(|text| holds_ours(text, ours)))
}

/// Returns the output of programs of legacy iptables, where the kernel has tables of theirs.
fn print_legacy() -> [Printed; 1] {
    match has_legacy_tables() {
        true => print_all([Programs { flavour: Flavour::Legacy, plain: false }]),
        false => [PerFamily::from_fn(|_| Ok(String::new()))],
    }
}

/// Returns why the installed programs of a variant do not tell what is in tables of theirs, a sentence each without its end; none where they tell, where the kernel has no such
/// tables, and of programs that are not installed.
pub fn untold_tables(flavour: Flavour) -> Vec<String> {
    let programs = Programs { flavour, plain: false };
    let [printed] = match flavour {
        Flavour::Legacy => print_legacy(),
        Flavour::NfTables => print_all([programs]),
    };
    let why = |family| match printed.of(family) {
        _ if flavour == Flavour::Legacy && !has_legacy_tables_of(family) => None,
        Ok(text) if lines(text).any(|line| matches!(line, Line::Incompatible)) => {
            Some(format!("{} cannot read a table that holds more than rules of iptables", programs.of(family).0))
        }
        Ok(_) | Err(Fault::Missing) => None,
        Err(fault) => Some(fault.clone().of("list rules", "", programs.of(family).0).to_string()),
    };
    Family::BOTH.into_iter().filter_map(why).collect()
}

/// Returns the names of the chains in tables of legacy iptables, of both families; none where no installed program reads them.
pub fn legacy_chains() -> BTreeSet<String> {
    let [printed] = print_legacy();
    let chain = |line| match line {
        Line::Chain { name, .. } => Some(name.to_owned()),
        _ => None,
    };
    let texts = printed.iter().filter_map(|(_, text)| text.as_deref().ok());
    texts.flat_map(lines).filter_map(chain).collect()
}

/// Tries whether the kernel takes a table from any program that is installed, and changes no rule. For legacy programs, which are tried
/// behind those of nf_tables, the kernel makes its table `filter`.
///
/// # Errors
/// It takes none; what a program of each flavour says, for the middle of a sentence.
pub fn try_any() -> Result<(), String> {
    let all = [Flavour::NfTables, Flavour::Legacy].map(|flavour| Programs { flavour, plain: false });
    let plain = Programs { flavour: Flavour::NfTables, plain: true };
    let mut refusals = BTreeMap::new();
    for programs in all.into_iter().chain([plain]) {
        for family in Family::BOTH {
            let program = programs.of(family).1;
            match run(Call { program, arguments: &["--test", "--noflush"], input: b"*filter\nCOMMIT\n", limit: LIMIT })
            {
                Err(Fault::Missing) => {}
                // The other family's program says the same, and the plain one is that of a flavour, where there are such.
                Err(Fault::Failed(words)) => {
                    let said = words.lines().next().unwrap_or_default().trim_end_matches('.');
                    refusals.entry(programs.flavour).or_insert_with(|| format!("{program}: {said}"));
                }
                // One that waits for another program's lock has got beyond what the kernel may lack.
                Ok(_) | Err(Fault::Timeout | Fault::System(_)) => return Ok(()),
            }
        }
    }
    Err(refusals.into_values().collect::<Vec<String>>().join("; "))
}

/// Returns whether the programs of any flavour and family are installed. Runs none.
fn is_installed() -> bool {
    let plain = [Programs { flavour: Flavour::NfTables, plain: true }];
    let named = [Flavour::NfTables, Flavour::Legacy].map(|flavour| Programs { flavour, plain: false });
    let all = plain.into_iter().chain(named);
    all.flat_map(|programs| Family::BOTH.map(|family| programs.of(family).1)).any(is_program)
}

/// Detects the flavour that this host uses, in the network namespace of the calling thread. Runs a few
/// programs and changes nothing.
pub fn detect(ours: &Ownership) -> Detected {
    let named = |flavour| Programs { flavour, plain: false };
    let [mut legacy, nf_tables] = match has_legacy_tables() {
        true => print_all([named(Flavour::Legacy), named(Flavour::NfTables)]),
        false => {
            let [nf_tables] = print_all([named(Flavour::NfTables)]);
            [PerFamily::from_fn(|_| Ok(String::new())), nf_tables]
        }
    };
    let default = LazyCell::new(default_flavour);
    let decide = |legacy: &Printed| decide(seen(legacy), seen(&nf_tables), || *default);
    let mut decided = decide(&legacy);
    if decided == Some(Flavour::Legacy) && !has_legacy_tables() {
        // Nothing was asked yet, and the programs may not be there.
        [legacy] = print_all([named(Flavour::Legacy)]);
        decided = decide(&legacy);
    }
    let chosen = match decided {
        Some(flavour) => named(flavour),
        None => Programs { flavour: default.unwrap_or(Flavour::NfTables), plain: true },
    };
    let plain;
    let (printed, other) = match (chosen.plain, chosen.flavour) {
        (true, _) => {
            [plain] = print_all([chosen]);
            (&plain, None)
        }
        (false, Flavour::Legacy) => (&legacy, Some((named(Flavour::NfTables), &nf_tables))),
        (false, Flavour::NfTables) => (&nf_tables, Some((named(Flavour::Legacy), &legacy))),
    };
    let mut detected = Detected { printed_at: Some(Instant::now()), ..Detected::default() };
    for (family, printed) in printed.iter() {
        match why_disabled(family, chosen, printed) {
            Some(reason) => detected.disabled.push(reason),
            None => {
                *detected.programs.of_mut(family) = Some(chosen);
                *detected.printed.of_mut(family) = printed.as_ref().ok().cloned();
            }
        }
    }
    if let Some((other, printed)) = other {
        detected.abandoned =
            PerFamily::from_fn(|family| holding_ours(printed, family, other, ours).unwrap_or_default());
    }
    detected
}

/// Returns the programs of the variant that is not in use, of the families in whose tables it has chains of ours now.
///
/// # Errors
/// Its programs are installed and do not tell.
pub(super) fn left_beside(
    used: PerFamily<Option<Programs>>,
    ours: &Ownership,
) -> Result<PerFamily<Option<Programs>>, String> {
    let other = match used.iter().find_map(|(_, programs)| *programs) {
        Some(Programs { flavour: Flavour::NfTables, plain: false }) if has_legacy_tables() => Flavour::Legacy,
        Some(Programs { flavour: Flavour::Legacy, plain: false }) => Flavour::NfTables,
        // Of one variant alone there is no other.
        _ => return Ok(PerFamily::default()),
    };
    let other = Programs { flavour: other, plain: false };
    let [printed] = print_all([other]);
    let [v4, v6] = Family::BOTH.map(|family| holding_ours(&printed, family, other, ours));
    Ok(PerFamily { v4: v4?, v6: v6? })
}

/// Returns these programs if there are chains of ours in the tables of a family, as they printed them.
///
/// # Errors
/// They are installed and did not print it.
fn holding_ours(printed: &Printed, family: Family, by: Programs, ours: &Ownership) -> Result<Option<Programs>, String> {
    match printed.of(family) {
        Ok(text) => Ok(holds_ours(text, ours).then_some(by)),
        Err(Fault::Missing) => Ok(None),
        Err(fault) => Err(fault.clone().of("list rules", "", by.of(family).0).to_string()),
    }
}

/// Decides by the findings and the flavour of plain `iptables`; `None` where neither flavour works.
fn decide(legacy: Seen, nf_tables: Seen, default: impl FnOnce() -> Option<Flavour>) -> Option<Flavour> {
    match (legacy.usable, nf_tables.usable) {
        (false, false) => return None,
        (true, false) => return Some(Flavour::Legacy),
        (false, true) => return Some(Flavour::NfTables),
        (true, true) => {}
    }
    let key = |seen: Seen| (seen.hint, seen.rules);
    Some(match key(legacy).cmp(&key(nf_tables)) {
        std::cmp::Ordering::Greater => Flavour::Legacy,
        std::cmp::Ordering::Less => Flavour::NfTables,
        std::cmp::Ordering::Equal => default().unwrap_or(Flavour::NfTables),
    })
}

fn seen(printed: &Printed) -> Seen {
    let mut seen = Seen::default();
    for text in printed.iter().filter_map(|(_, text)| text.as_deref().ok()) {
        seen.usable = true;
        let mut table = "";
        for line in lines(text) {
            match line {
                Line::Table(name) => table = name,
                Line::Chain { name, .. } => seen.hint |= table == "mangle" && HINTS.contains(&name),
                Line::Rule { .. } => seen.rules += 1,
                Line::Incompatible => {}
            }
        }
    }
    seen
}

/// Tables with what iptables cannot tell are not read: nobody could remove anything there by its programs.
fn holds_ours(text: &str, ours: &Ownership) -> bool {
    parse(text)
        .is_ok_and(|saved| saved.iter().any(|(name, table)| table.chains.keys().any(|chain| ours.owns_in(name, chain))))
}

/// Returns why a family is disabled. A program that fails is used all the same: its errors are retried and
/// visible. On a kernel without IPv6 some versions of the programs work all the same, to no effect.
fn why_disabled(family: Family, programs: Programs, printed: &Result<String, Fault>) -> Option<String> {
    let (save, _) = programs.of(family);
    match printed {
        Err(Fault::Missing) => Some(format!("no {family} rules: the program {save} is not installed")),
        _ if family == Family::V6 && !kernel_has_ipv6() => {
            Some("no IPv6 rules: this kernel has no IPv6, or it is switched off".to_owned())
        }
        _ => None,
    }
}

/// Returns whether the kernel speaks IPv6 in the network namespace of the calling thread.
pub fn kernel_has_ipv6() -> bool {
    Path::new("/proc/thread-self/net/if_inet6").exists()
}

/// Runs these programs at the same time and returns their output.
fn print_all<const N: usize>(programs: [Programs; N]) -> [Printed; N] {
    let begin = |program| start(Call { program, arguments: &[], input: b"", limit: LIMIT });
    let started = programs.map(|programs| Family::BOTH.map(|family| begin(programs.of(family).0)));
    started.map(|[v4, v6]| PerFamily { v4: v4.and_then(Running::finish), v6: v6.and_then(Running::finish) })
}

/// Returns whether the kernel has any legacy table in this network namespace; without one there is nothing to print.
fn has_legacy_tables() -> bool {
    Family::BOTH.into_iter().any(has_legacy_tables_of)
}

/// Returns whether the kernel has any legacy table of a family in the network namespace of the calling thread.
pub(super) fn has_legacy_tables_of(family: Family) -> bool {
    let path = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    std::fs::read(path).is_ok_and(|names| !names.is_empty())
}

/// Returns whether the kernel has legacy tables that no installed program can read.
pub fn has_unreadable_tables() -> bool {
    Family::BOTH.into_iter().any(|family| has_legacy_tables_of(family) && !has_program(Flavour::Legacy, family))
}

/// Returns whether a program is installed that changes the tables of this flavour.
pub(super) fn has_program(flavour: Flavour, family: Family) -> bool {
    let named = Programs { flavour, plain: false };
    let is_there = |programs: Programs| is_program(programs.of(family).1);
    is_there(named) || is_there(Programs { plain: true, ..named }) && default_flavour() == Some(flavour)
}

/// Returns the flavour that plain `iptables` reports: `iptables v1.8.9 (nf_tables)`. Versions before 1.8 report none
/// and are legacy.
fn default_flavour() -> Option<Flavour> {
    let version = run(Call { program: "iptables", arguments: &["--version"], input: b"", limit: LIMIT }).ok()?;
    Some(if version.contains("nf_tables") { Flavour::NfTables } else { Flavour::Legacy })
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Flavour::Legacy => "legacy",
            Flavour::NfTables => "nf_tables",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HINT: &str = "*mangle\n:PREROUTING ACCEPT [0:0]\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n";
    const CANARY: &str = "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n";
    const RULE: &str = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j ACCEPT\nCOMMIT\n";

    fn printed(v4: &str, v6: &str) -> Printed {
        PerFamily { v4: Ok(v4.to_owned()), v6: Ok(v6.to_owned()) }
    }

    fn missing() -> Printed {
        PerFamily::from_fn(|_| Err(Fault::Missing))
    }

    fn decided(legacy: &Printed, nf_tables: &Printed) -> Option<Flavour> {
        decide(seen(legacy), seen(nf_tables), || Some(Flavour::Legacy))
    }

    #[test]
    fn the_kubelets_hint_decides_against_any_number_of_rules() {
        let many = RULE.repeat(100);
        assert_eq!(decided(&printed(&many, ""), &printed(HINT, "")), Some(Flavour::NfTables));
        assert_eq!(decided(&printed("", CANARY), &printed(&many, &many)), Some(Flavour::Legacy));
        // The same chain in another table is not the hint.
        let elsewhere = CANARY.replace("mangle", "nat");
        assert_eq!(decided(&printed(RULE, ""), &printed(&elsewhere, "")), Some(Flavour::Legacy));
    }

    #[test]
    fn without_a_hint_or_with_two_the_one_with_more_rules_wins() {
        assert_eq!(decided(&printed("", ""), &printed("", RULE)), Some(Flavour::NfTables));
        let both = format!("{HINT}{RULE}");
        assert_eq!(decided(&printed(HINT, ""), &printed(&both, "")), Some(Flavour::NfTables));
        assert_eq!(decided(&printed(&both, ""), &printed(HINT, "")), Some(Flavour::Legacy));
    }

    #[test]
    fn a_line_of_a_comment_is_no_rule() {
        let cut =
            "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -m comment --comment \"of\n-A two\n-A three\" -j ACCEPT\nCOMMIT\n";
        let two = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j ACCEPT\n-A INPUT -j DROP\nCOMMIT\n";
        assert_eq!(decided(&printed(cut, ""), &printed(two, "")), Some(Flavour::NfTables));
    }

    #[test]
    fn a_draw_is_decided_by_what_plain_iptables_is() {
        let nothing = seen(&printed("", ""));
        assert_eq!(decide(nothing, nothing, || Some(Flavour::Legacy)), Some(Flavour::Legacy));
        assert_eq!(decide(nothing, nothing, || None), Some(Flavour::NfTables));
    }

    #[test]
    fn a_flavour_without_programs_loses_to_the_other() {
        assert_eq!(decided(&missing(), &printed("", "")), Some(Flavour::NfTables));
        assert_eq!(decided(&printed("", ""), &missing()), Some(Flavour::Legacy));
        assert_eq!(decided(&missing(), &missing()), None);
        let only_ipv4 = PerFamily { v4: Ok(String::new()), v6: Err(Fault::Missing) };
        assert_eq!(decided(&only_ipv4, &missing()), Some(Flavour::Legacy));
    }

    #[test]
    fn before_nf_tables_is_loaded_it_wins_where_it_would_once_it_is() {
        let nft = || Some(Flavour::NfTables);
        let before = |legacy: &Printed, would_work| before_nf_tables(seen(legacy), would_work, nft);
        let empty = "*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n";
        assert_eq!(before(&printed(empty, ""), true), Flavour::NfTables, "a draw");
        assert_eq!(before(&missing(), true), Flavour::NfTables, "nobody reads the legacy tables");
        assert_eq!(before(&printed(RULE, ""), true), Flavour::Legacy);
        assert_eq!(before(&printed(HINT, ""), true), Flavour::Legacy);
        assert_eq!(before(&printed(empty, ""), false), Flavour::Legacy);
        // A host whose programs have the plain names alone.
        assert_eq!(before(&missing(), false), Flavour::NfTables);
        let nothing = seen(&missing());
        assert_eq!(before_nf_tables(nothing, false, || Some(Flavour::Legacy)), Flavour::Legacy);
        assert_eq!(before_nf_tables(nothing, false, || None), Flavour::NfTables);
    }

    #[test]
    fn a_missing_program_disables_its_family_with_one_sentence() {
        let programs = Programs { flavour: Flavour::NfTables, plain: false };
        let why = why_disabled(Family::V6, programs, &Err(Fault::Missing));
        assert_eq!(why.as_deref(), Some("no IPv6 rules: the program ip6tables-nft-save is not installed"));
        assert_eq!(why_disabled(Family::V4, programs, &Err(Fault::Timeout)), None);
        assert_eq!(why_disabled(Family::V6, programs, &Ok(String::new())), None);
    }
}
