use proptest::prelude::*;

use super::super::slots::Place;
use super::*;
use crate::kernel::iptables::save;
use crate::net::Family;

fn chain(name: &str) -> Piece {
    Piece::Chain { family: Family::V4, table: Table::Filter, chain: name.into() }
}

fn jump(to: &str) -> Piece {
    Piece::Jump { family: Family::V4, table: Table::Filter, from: "INPUT".into(), to: to.into() }
}

fn rules(texts: &[&str]) -> Rules {
    Rules(texts.iter().map(|text| Rule::from(*text)).collect())
}

fn planned(current: &str, changes: &[(Piece, Option<Rules>)]) -> Plan {
    let saved = save::parse(current).expect("it is well formed");
    let nothing = SavedTable::default();
    let changes: Vec<Change<'_>> =
        changes.iter().enumerate().map(|(step, (piece, want))| Change { step, piece, want: want.as_ref() }).collect();
    plan(Table::Filter, saved.get("filter").unwrap_or(&nothing), &changes)
}

#[test]
fn chains_are_named_before_any_rule_and_jumps_come_last() {
    let changes = [
        (chain("KUBE-ROUTER-SERVICES"), Some(rules(&["-j A"]))),
        (chain("A"), Some(rules(&["-j ACCEPT", "-j DROP"]))),
        (jump("KUBE-ROUTER-SERVICES"), Some(rules(&["-j KUBE-ROUTER-SERVICES"]))),
    ];
    let plan = planned("*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j KUBE-ROUTER-INPUT\nCOMMIT\n", &changes);
    let script = "*filter
:KUBE-ROUTER-SERVICES - [0:0]
:A - [0:0]
-A KUBE-ROUTER-SERVICES -j A
-A A -j ACCEPT
-A A -j DROP
-I INPUT 2 -j KUBE-ROUTER-SERVICES
COMMIT
";
    assert_eq!(plan.script, script);
    assert!(plan.refused.is_empty());
}

#[test]
fn a_chain_that_is_still_jumped_to_stays_with_those_that_it_jumps_to_and_the_others_go() {
    let current = "*filter\n:INPUT ACCEPT [0:0]\n:A - [0:0]\n:B - [0:0]\n:C - [0:0]\n:FOREIGN - [0:0]\n\
            -A INPUT -j B\n-A INPUT -j A\n-A B -j A\n-A C -j B\n-A FOREIGN -j B\nCOMMIT\n";
    let all = [(chain("A"), None), (chain("B"), None), (chain("C"), None), (jump("A"), None), (jump("B"), None)];
    let plan = planned(current, &all);
    assert_eq!(plan.script, "*filter\n-D INPUT -j A\n-D INPUT -j B\n:C - [0:0]\n-X C\nCOMMIT\n");
    assert_eq!(plan.refused.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn what_is_gone_already_needs_no_lines() {
    let plan = planned("*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n", &[(chain("A"), None), (jump("A"), None)]);
    assert!(plan.script.is_empty() && plan.refused.is_empty(), "{plan:?}");
}

#[test]
fn a_jump_without_a_slot_is_refused() {
    let changes = [(jump("KUBE-ROUTER-ELSEWHERE"), Some(rules(&["-j KUBE-ROUTER-ELSEWHERE"])))];
    let plan = planned("*filter\n:INPUT ACCEPT [0:0]\n:KUBE-ROUTER-ELSEWHERE - [0:0]\nCOMMIT\n", &changes);
    assert!(plan.script.is_empty());
    assert_eq!(plan.refused.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [0]);
}

#[test]
fn a_rule_cannot_smuggle_in_another_line() {
    let changes = [(chain("A"), Some(rules(&["-j DROP\n-I INPUT -j ACCEPT"]))), (chain("B"), Some(rules(&[])))];
    let plan = planned("", &changes);
    assert_eq!(plan.script, "*filter\n:B - [0:0]\nCOMMIT\n");
    assert_eq!(plan.refused.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [0]);
}

#[test]
fn every_copy_of_a_leftover_goes() {
    let rule = "-m ipvs --vdir ORIGINAL --vmethod MASQ -m comment --comment \"\" -j MASQUERADE";
    let current =
        format!("*filter\n:INPUT ACCEPT [0:0]\n-A INPUT {rule}\n-A INPUT -j ACCEPT\n-A INPUT {rule}\nCOMMIT\n");
    let piece = Piece::Leftover { family: Family::V4, table: Table::Filter, from: "INPUT".into(), rule: rule.into() };
    let plan = planned(&current, &[(piece, None)]);
    assert_eq!(plan.script, format!("*filter\n-D INPUT {rule}\n-D INPUT {rule}\nCOMMIT\n"));
}

#[test]
fn every_leftover_of_a_chain_goes_and_not_the_first_one_alone() {
    let verdicts = ["MASQUERADE", "MASQUERADE --random-fully", "SNAT --to-source 192.0.2.1"];
    let all = verdicts
        .map(|verdict| format!("-m ipvs --vdir ORIGINAL --vmethod MASQ -m comment --comment \"\" -j {verdict}"));
    let of_verb = |verb: &str| all.iter().map(|rule| format!("{verb} INPUT {rule}\n")).collect::<String>();
    let current = format!("*filter\n:INPUT ACCEPT [0:0]\n{}-A INPUT -j ACCEPT\nCOMMIT\n", of_verb("-A"));
    let piece = |rule: &String| Piece::Leftover {
        family: Family::V4,
        table: Table::Filter,
        from: "INPUT".into(),
        rule: rule.as_str().into(),
    };
    let changes = all.each_ref().map(|rule| (piece(rule), None));
    assert_eq!(planned(&current, &changes).script, format!("*filter\n{}COMMIT\n", of_verb("-D")));
}

/// A table as the kernel keeps it, with the kernel's own refusals.
struct Kernel(SavedTable);

impl Kernel {
    fn restore(&mut self, script: &str) {
        for line in script.lines() {
            let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
            match verb {
                "*filter" | "COMMIT" => {}
                "-A" => self.append(rest),
                "-I" => self.insert(rest),
                "-D" => self.delete(rest),
                "-X" => self.drop_chain(rest),
                name => {
                    let name = name.strip_prefix(':').unwrap_or_else(|| panic!("an unknown line: {line}"));
                    assert!(!self.chain(name).builtin, "{name} is not ours to empty");
                    self.chain(name).rules.clear();
                }
            }
        }
    }

    fn chain(&mut self, name: &str) -> &mut save::SavedChain {
        self.0.chains.entry(name.into()).or_default()
    }

    fn check(&self, rule: &Rule) {
        if let Some(to) = rule.chain() {
            assert!(self.0.chains.contains_key(to), "a jump to nowhere: {rule}");
        }
    }

    fn append(&mut self, rest: &str) {
        let (chain, rule) = rest.split_once(' ').expect("a chain and a rule");
        let rule = Rule::from(rule);
        self.check(&rule);
        self.chain(chain).rules.push(rule);
    }

    fn insert(&mut self, rest: &str) {
        let mut words = rest.splitn(3, ' ');
        let (chain, at) = (words.next().expect("a chain"), words.next().expect("a number"));
        let rule = Rule::from(words.next().expect("a rule"));
        self.check(&rule);
        let at: usize = at.parse().expect("a number");
        self.chain(chain).rules.insert(at - 1, rule);
    }

    fn delete(&mut self, rest: &str) {
        let (chain, rule) = rest.split_once(' ').expect("a chain and a rule");
        assert!(delete_first(&mut self.chain(chain).rules, &rule.into()), "there is no such rule: {rest}");
    }

    fn drop_chain(&mut self, name: &str) {
        let gone = self.0.chains.remove(name).unwrap_or_else(|| panic!("there is no chain {name}"));
        assert!(gone.rules.is_empty() && !gone.builtin, "{name} is not empty");
        let in_use = self.0.chains.values().flat_map(|chain| &chain.rules).any(|rule| rule.jumps_to(name));
        assert!(!in_use, "{name} is in use");
    }
}

const OURS: [&str; 4] = ["KUBE-ROUTER-SERVICES", "KUBE-ROUTER-INPUT", "KUBE-A", "KUBE-B"];

fn is_ours(name: &str) -> bool {
    OURS.contains(&name)
}

type Pieces = BTreeMap<Piece, Rules>;

/// Rules that jump to some of these chains or end by themselves.
fn some_rules(chains: &'static [&'static str], most: usize) -> impl Strategy<Value = Vec<Rule>> {
    let jump = (0..chains.len(), 0_u8..3).prop_map(|(to, number)| (number, *chains.get(to).expect("an index")));
    let rule = prop_oneof![jump, (0_u8..3).prop_map(|number| (number, "DROP"))];
    let rule = rule.prop_map(|(number, to)| Rule::from(format!("-s 203.0.113.{number}/32 -j {to}")));
    proptest::collection::vec(rule, 0..most)
}

/// Any table in which every chain of ours and a foreign one exist, some of them used by the others.
fn any_table() -> impl Strategy<Value = SavedTable> {
    let all: &'static [&'static str] = &["KUBE-ROUTER-SERVICES", "KUBE-ROUTER-INPUT", "KUBE-A", "KUBE-B", "FOREIGN"];
    let builtin = [some_rules(all, 6), some_rules(all, 3)];
    let leaf: &'static [&'static str] = &["KUBE-A", "KUBE-B"];
    (builtin, some_rules(leaf, 3), some_rules(leaf, 3), some_rules(leaf, 2)).prop_map(
        |([input, forward], services, policy, foreign)| {
            let chain = |builtin, rules| save::SavedChain { builtin, rules };
            let chains = [
                ("INPUT", chain(true, input)),
                ("FORWARD", chain(true, forward)),
                ("KUBE-ROUTER-SERVICES", chain(false, services)),
                ("KUBE-ROUTER-INPUT", chain(false, policy)),
                ("KUBE-A", chain(false, vec!["-j DROP".into()])),
                ("KUBE-B", chain(false, Vec::new())),
                ("FOREIGN", chain(false, foreign)),
            ];
            SavedTable { chains: chains.into_iter().map(|(name, chain)| (name.into(), chain)).collect() }
        },
    )
}

/// Some chains and jumps to them, none to a chain that is not wanted.
fn any_wanted() -> impl Strategy<Value = Pieces> {
    let leaf: &'static [&'static str] = &["KUBE-A"];
    (some_rules(leaf, 3), some_rules(leaf, 3), any::<[bool; 3]>()).prop_map(
        |(services, policy, [has_services, has_policy, has_jumps])| {
            let mut wanted = Pieces::from([(chain("KUBE-A"), rules(&["-j ACCEPT"]))]);
            for (is_wanted, name, content) in
                [(has_services, "KUBE-ROUTER-SERVICES", services), (has_policy, "KUBE-ROUTER-INPUT", policy)]
            {
                if !is_wanted {
                    continue;
                }
                wanted.insert(chain(name), Rules(content));
                if has_jumps {
                    wanted.insert(jump(name), rules(&[&format!("-p tcp -j {name}")]));
                }
            }
            wanted
        },
    )
}

/// The pieces of ours that a table holds, without their rules.
fn pieces_of(table: &SavedTable) -> BTreeSet<Piece> {
    let mut pieces = BTreeSet::new();
    for (name, found) in &table.chains {
        if is_ours(name) {
            pieces.insert(chain(name));
        }
        for to in found.rules.iter().filter(|_| found.builtin).filter_map(Rule::chain) {
            if is_ours(to) {
                let (from, to) = (name.clone(), to.clone());
                pieces.insert(Piece::Jump { family: Family::V4, table: Table::Filter, from, to });
            }
        }
    }
    pieces
}

/// The foreign chains and rules of a table, in its order.
fn foreign(table: &SavedTable) -> Vec<(CompactString, Vec<Rule>)> {
    let chains = table.chains.iter().filter(|(name, _)| !is_ours(name));
    chains
        .map(|(name, chain)| {
            let is_foreign = |rule: &&Rule| !chain.builtin || !rule.chain().is_some_and(|to| is_ours(to));
            (name.clone(), chain.rules.iter().filter(is_foreign).cloned().collect())
        })
        .collect()
}

fn apply(kernel: &mut Kernel, steps: &[(&Piece, Option<&Rules>)]) -> Vec<(usize, &'static str)> {
    let changes: Vec<Change<'_>> =
        steps.iter().enumerate().map(|(step, (piece, want))| Change { step, piece, want: *want }).collect();
    let planned = plan(Table::Filter, &kernel.0, &changes);
    kernel.restore(&planned.script);
    planned.refused
}

proptest! {
    #[test]
    fn any_table_is_brought_to_what_is_wanted_and_what_is_foreign_stays(
        before in any_table(),
        wanted in any_wanted(),
    ) {
        let mut kernel = Kernel(before.clone());
        let grow: Vec<(&Piece, Option<&Rules>)> = wanted.iter().map(|(piece, rules)| (piece, Some(rules))).collect();
        prop_assert_eq!(apply(&mut kernel, &grow), []);
        let existing = pieces_of(&kernel.0);
        let shrink: Vec<(&Piece, Option<&Rules>)> =
            existing.iter().filter(|piece| !wanted.contains_key(piece)).map(|piece| (piece, None)).collect();
        let refused = apply(&mut kernel, &shrink);

        prop_assert_eq!(foreign(&kernel.0), foreign(&before));
        for (piece, rules) in &wanted {
            match piece {
                Piece::Chain { chain, .. } => prop_assert_eq!(&kernel.chain(chain).rules, &rules.0),
                Piece::Jump { from, to, .. } => {
                    let found = kernel.chain(from).rules.clone();
                    let jumps: Vec<_> = found.iter().filter(|rule| rule.jumps_to(to)).cloned().collect();
                    prop_assert_eq!(&jumps, &rules.0);
                    let place = Place { table: Table::Filter, chain: from };
                    prop_assert!(place.holds(&found, to));
                }
                Piece::Leftover { .. } => prop_assert!(false, "nobody wants leftovers"),
            }
        }
        // Undesired pieces are gone, but for the chains that a foreign rule still jumps to, or one of these.
        let held: Vec<Piece> = refused.iter().filter_map(|(step, _)| Some(shrink.get(*step)?.0.clone())).collect();
        let left: Vec<Piece> = pieces_of(&kernel.0).into_iter().filter(|piece| !wanted.contains_key(piece)).collect();
        prop_assert_eq!(left, held.clone());
        let mut reached: BTreeSet<CompactString> = foreign(&before).iter().flat_map(|(_, rules)| rules).filter_map(|rule| rule.chain().cloned()).collect();
        for _ in &kernel.0.chains {
            let further = kernel.0.chains.iter().filter(|(name, _)| reached.contains(*name)).flat_map(|(_, chain)| &chain.rules);
            let further: Vec<CompactString> = further.filter_map(|rule| rule.chain().cloned()).collect();
            reached.extend(further);
        }
        for piece in held {
            let Piece::Chain { chain, .. } = piece else { return Err(TestCaseError::fail("a jump can always go")) };
            prop_assert!(reached.contains(&chain));
        }
    }
}
