//! Output of `iptables-save`.
//!
//! Text: `*TABLE`, then `:CHAIN POLICY [packets:bytes]` for each chain, where `-` as the policy says that the
//! chain is not built in, then `-A CHAIN RULE` for each rule, then `COMMIT`. A line break inside of quotes is printed as
//! it is. With `-c` each rule has its counters before it: `[packets:bytes] -A CHAIN RULE`. Chains have many rules in common, so each text
//! is read once and its rule shared.
//!
//! A table of nf_tables that holds what iptables cannot express is not printed but remarked upon in a comment.
//! Nothing is known about such a table, so it is an error and not an empty one.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use compact_str::CompactString;

use super::rule::{Rule, ends_in_quotes};

/// Why nothing is known about a table that is not printed.
pub(super) const INCOMPATIBLE: &str = "a table holds nf_tables rules that iptables cannot express";

/// The printed tables, by name.
pub(super) type Saved = BTreeMap<CompactString, SavedTable>;

/// The chains of a table, by name.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct SavedTable {
    pub chains: BTreeMap<CompactString, SavedChain>,
}

/// A chain with its rules, without their leading `-A CHAIN`.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct SavedChain {
    /// Packets enter it by themselves, and it cannot be deleted.
    pub builtin: bool,
    pub rules: Vec<Rule>,
}

/// One statement of the output.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Line<'a> {
    /// The table of what follows.
    Table(&'a str),
    /// `policy`: `-` for a chain that is not built in; `None` where nothing is printed in its place.
    Chain { name: &'a str, policy: Option<&'a str> },
    /// A rule as it is printed, without `-A CHAIN`. `packets`: its counter, where counters are printed (`iptables-save -c`).
    Rule { chain: &'a str, rule: Cow<'a, str>, packets: Option<u64> },
    /// The table holds rules of nf_tables, and is not printed.
    Incompatible,
}

/// Reads what `iptables-save` printed, statement by statement. Lines of no known form are skipped: they are not ours.
pub(super) fn lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    let mut lines = text.lines();
    std::iter::from_fn(move || {
        loop {
            let line = lines.next()?;
            if let Some(name) = line.strip_prefix('*') {
                return Some(Line::Table(name));
            } else if let Some(chain) = line.strip_prefix(':') {
                let (name, policy) = chain.split_once(' ').map_or((chain, None), |(name, policy)| (name, Some(policy)));
                return Some(Line::Chain { name, policy });
            } else if let Some((packets, rule)) = counted(line) {
                let (chain, rule) = rule.split_once(' ').unwrap_or((rule, ""));
                return Some(Line::Rule { chain, rule: whole(rule, &mut lines), packets });
            } else if line.starts_with('#') && line.contains(" is incompatible, use 'nft' tool") {
                return Some(Line::Incompatible);
            }
        }
    })
}

/// Returns what follows `-A` in the line of a rule, and the counter of packets before it: `[12:840] -A CHAIN RULE`.
fn counted(line: &str) -> Option<(Option<u64>, &str)> {
    let Some(counters) = line.strip_prefix('[') else { return Some((None, line.strip_prefix("-A ")?)) };
    let (counters, rule) = counters.split_once("] -A ")?;
    let packets = counters.split_once(':').and_then(|(packets, _)| packets.parse().ok());
    Some((packets, rule))
}

/// Reads the tables that `iptables-save` printed.
pub(super) fn parse(text: &str) -> Result<Saved, &'static str> {
    let mut saved = Saved::new();
    let mut table: Option<&mut SavedTable> = None;
    let mut read: HashMap<Cow<'_, str>, Rule> = HashMap::new();
    for line in lines(text) {
        match line {
            Line::Table(name) => table = Some(saved.entry(name.into()).or_default()),
            Line::Chain { name, policy } => {
                let table = table.as_deref_mut().ok_or("a chain outside of a table")?;
                let builtin = !policy.ok_or("a chain without a policy")?.starts_with('-');
                table.chains.insert(name.into(), SavedChain { builtin, rules: Vec::new() });
            }
            Line::Rule { chain, rule, packets: _ } => {
                let table = table.as_deref_mut().ok_or("a rule outside of a table")?;
                let chain = table.chains.get_mut(chain).ok_or("a rule of a chain that was not named before")?;
                let known = read.get(&rule).cloned();
                chain.rules.push(known.unwrap_or_else(|| {
                    let new = Rule::from(&*rule);
                    read.insert(rule, new.clone());
                    new
                }));
            }
            Line::Incompatible => return Err(INCOMPATIBLE),
        }
    }
    Ok(saved)
}

/// The rule with the lines into which a quoted line break has cut it.
fn whole<'a>(rule: &'a str, lines: &mut impl Iterator<Item = &'a str>) -> Cow<'a, str> {
    let mut whole = Cow::Borrowed(rule);
    while ends_in_quotes(&whole) {
        let Some(line) = lines.next() else { break };
        whole = Cow::Owned(format!("{whole}\n{line}"));
    }
    whole
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PRINTED: &str = "# Generated by iptables-nft-save v1.8.9 (nf_tables) on Fri Nov 20 09:58:34 2026
*filter
:INPUT ACCEPT [12:840]
:KUBE-ROUTER-SERVICES - [0:0]
-A INPUT -m comment --comment \"handle traffic\" -m set --match-set kube-router-svip dst -j KUBE-ROUTER-SERVICES
-A INPUT
-A KUBE-ROUTER-SERVICES -p icmp -m comment --comment \"two
-A lines\" -m icmp --icmp-type 8 -j ACCEPT
COMMIT
# Completed on Fri Nov 20 09:58:34 2026
";

    /// As `iptables-save` prints it.
    fn render(saved: &Saved) -> String {
        let mut text = String::from("# Generated\n");
        for (name, table) in saved {
            text.push_str(&format!("*{name}\n"));
            for (name, chain) in &table.chains {
                let policy = if chain.builtin { "ACCEPT" } else { "-" };
                text.push_str(&format!(":{name} {policy} [0:0]\n"));
            }
            for (name, chain) in &table.chains {
                for rule in &chain.rules {
                    text.push_str(&format!("-A {name} {rule}\n"));
                }
            }
            text.push_str("COMMIT\n# Completed\n");
        }
        text
    }

    #[test]
    fn tables_chains_and_rules_are_found() {
        let saved = parse(PRINTED).expect("it is well formed");
        let filter = saved.get("filter").expect("the table");
        let input = filter.chains.get("INPUT").expect("the chain");
        assert!(input.builtin);
        let targets: Vec<Option<&str>> = input.rules.iter().map(|rule| rule.chain().map(|chain| &**chain)).collect();
        assert_eq!(targets, [Some("KUBE-ROUTER-SERVICES"), None]);
        let ours = filter.chains.get("KUBE-ROUTER-SERVICES").expect("the chain");
        assert!(!ours.builtin);
        assert_eq!(ours.rules.len(), 1, "{ours:?}");
        assert!(ours.rules.iter().all(|rule| rule.to_string().contains("two\n-A lines")));
    }

    #[test]
    fn counters_stand_before_a_rule_that_a_line_break_cuts() {
        let printed = "*filter\n[7:420] -A INPUT -m comment --comment \"two\n[1:2] -A lines\" -j DROP\n[x:1] -A INPUT\n-A INPUT\n";
        let of = |packets, rule: &'static str| Line::Rule { chain: "INPUT", rule: rule.into(), packets };
        let cut = "-m comment --comment \"two\n[1:2] -A lines\" -j DROP";
        let found: Vec<Line<'_>> = lines(printed).collect();
        assert_eq!(found, [Line::Table("filter"), of(Some(7), cut), of(None, ""), of(None, "")]);
    }

    #[test]
    fn a_table_that_cannot_be_printed_is_an_error() {
        assert!(parse("# Table `filter' is incompatible, use 'nft' tool.\n").is_err());
        assert_eq!(parse("# Warning: iptables-legacy tables present\n"), Ok(Saved::new()));
    }

    fn word() -> impl Strategy<Value = String> {
        prop_oneof!["[a-z0-9-]{1,8}", "[a-z \"\\\\'-]{0,12}", Just(String::new()), Just("-j\nCOMMIT".to_owned())]
    }

    fn rule() -> impl Strategy<Value = Rule> {
        proptest::collection::vec(word(), 1..6).prop_map(|words| {
            let quoted = words.iter().map(|word| format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\"")));
            Rule::from(quoted.collect::<Vec<_>>().join(" "))
        })
    }

    fn chain() -> impl Strategy<Value = SavedChain> {
        (any::<bool>(), proptest::collection::vec(rule(), 0..5))
            .prop_map(|(builtin, rules)| SavedChain { builtin, rules })
    }

    fn table() -> impl Strategy<Value = SavedTable> {
        proptest::collection::btree_map("[A-Z-]{1,12}".prop_map(CompactString::from), chain(), 0..6)
            .prop_map(|chains| SavedTable { chains })
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(
            saved in proptest::collection::btree_map("[a-z]{1,6}".prop_map(CompactString::from), table(), 0..4)
        ) {
            prop_assert_eq!(parse(&render(&saved)), Ok(saved));
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in "([*:#\"A-Z -]|-A |\\\\|\n){0,200}") {
            let _ = parse(&text);
            let _ = Rule::from(text);
        }
    }
}
