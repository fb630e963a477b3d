//! What `iptables-save` prints, and the words of a rule.
//!
//! Text: `*TABLE`, then `:CHAIN POLICY [packets:bytes]` for each chain, where `-` as the policy says that the
//! chain is not built in, then `-A CHAIN RULE` for each rule, then `COMMIT`. A word that is not plain is
//! printed in double quotes, with a backslash before quotes and backslashes; a line break inside it is
//! printed as it is.
//!
//! A table of nf_tables that holds what iptables cannot express is not printed but remarked upon in a comment.
//! Nothing is known about such a table, so it is an error and not an empty one.

use std::collections::BTreeMap;

use compact_str::CompactString;

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
    pub rules: Vec<CompactString>,
}

/// Reads what `iptables-save` printed. Lines that belong to no known form are passed over: they are not ours.
pub(super) fn parse(text: &str) -> Result<Saved, &'static str> {
    let mut saved = Saved::new();
    let mut table: Option<&mut SavedTable> = None;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix('*') {
            table = Some(saved.entry(name.into()).or_default());
        } else if let Some(chain) = line.strip_prefix(':') {
            let table = table.as_deref_mut().ok_or("a chain outside of a table")?;
            let (name, policy) = chain.split_once(' ').ok_or("a chain without a policy")?;
            let builtin = !policy.starts_with('-');
            table.chains.insert(name.into(), SavedChain { builtin, rules: Vec::new() });
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let table = table.as_deref_mut().ok_or("a rule outside of a table")?;
            let (chain, rule) = rule.split_once(' ').unwrap_or((rule, ""));
            let chain = table.chains.get_mut(chain).ok_or("a rule of a chain that was not named before")?;
            chain.rules.push(whole(rule, &mut lines));
        } else if line.starts_with('#') && line.contains(" is incompatible, use 'nft' tool") {
            return Err("a table holds nf_tables rules that iptables cannot express");
        }
    }
    Ok(saved)
}

/// The rule with the lines into which a quoted line break has cut it.
fn whole<'a>(rule: &'a str, lines: &mut impl Iterator<Item = &'a str>) -> CompactString {
    let mut whole = CompactString::from(rule);
    while Words::of(&whole).ends_in_quotes() {
        let Some(line) = lines.next() else { break };
        whole.push('\n');
        whole.push_str(line);
    }
    whole
}

/// The chain or the verdict at which a rule ends: what `-j` or `-g` names.
pub(super) fn target(rule: &str) -> Option<CompactString> {
    let mut words = Words::of(rule);
    while let Some(word) = words.next() {
        match word.as_str() {
            "-j" | "-g" => return words.next(),
            // Their values are free text, which may look like anything.
            "--comment" | "--log-prefix" | "--nflog-prefix" => {
                words.next();
            }
            _ => {}
        }
    }
    None
}

/// The words of a rule, without their quotes.
#[derive(Clone, Debug)]
pub(super) struct Words<'a> {
    rest: std::str::Chars<'a>,
    in_quotes: bool,
}

impl<'a> Words<'a> {
    pub fn of(rule: &'a str) -> Words<'a> {
        Words { rest: rule.chars(), in_quotes: false }
    }

    /// Whether the text ends inside a quoted word.
    fn ends_in_quotes(mut self) -> bool {
        self.by_ref().for_each(drop);
        self.in_quotes
    }
}

impl Iterator for Words<'_> {
    type Item = CompactString;

    fn next(&mut self) -> Option<CompactString> {
        let mut word: Option<CompactString> = None;
        while let Some(letter) = self.rest.next() {
            match letter {
                '"' => {
                    self.in_quotes = !self.in_quotes;
                    word.get_or_insert_default();
                }
                '\\' if self.in_quotes => word.get_or_insert_default().extend(self.rest.next()),
                ' ' if !self.in_quotes => {
                    if word.is_some() {
                        break;
                    }
                }
                _ => word.get_or_insert_default().push(letter),
            }
        }
        word
    }
}

/// A word as `iptables-save` prints it: in quotes unless it is plain.
pub fn quoted(word: &str) -> CompactString {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-');
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.into();
    }
    let mut quoted = CompactString::from("\"");
    for letter in word.chars() {
        if matches!(letter, '"' | '\\' | '\'') {
            quoted.push('\\');
        }
        quoted.push(letter);
    }
    quoted.push('"');
    quoted
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
        let targets: Vec<Option<CompactString>> = input.rules.iter().map(|rule| target(rule)).collect();
        assert_eq!(targets, [Some("KUBE-ROUTER-SERVICES".into()), None]);
        let ours = filter.chains.get("KUBE-ROUTER-SERVICES").expect("the chain");
        assert!(!ours.builtin);
        assert_eq!(ours.rules.len(), 1, "{ours:?}");
        assert!(ours.rules.iter().all(|rule| rule.contains("two\n-A lines")));
    }

    #[test]
    fn a_table_that_cannot_be_printed_is_an_error() {
        assert!(parse("# Table `filter' is incompatible, use 'nft' tool.\n").is_err());
        assert_eq!(parse("# Warning: iptables-legacy tables present\n"), Ok(Saved::new()));
    }

    #[test]
    fn a_target_inside_a_comment_is_none() {
        let rule = |text| target(text).map(String::from);
        assert_eq!(rule("-m comment --comment \"-j A\" -j B"), Some("B".into()));
        assert_eq!(rule("-m comment --comment -j -g C"), Some("C".into()));
        assert_eq!(rule("-m comment --comment \"a \\\" -j A\" -j LOG --log-prefix \"-j D\""), Some("LOG".into()));
        assert_eq!(rule("-s 10.244.0.0/16"), None);
    }

    fn word() -> impl Strategy<Value = String> {
        prop_oneof!["[a-z0-9-]{1,8}", "[a-z \"\\\\'-]{0,12}", Just(String::new()), Just("-j\nCOMMIT".to_owned())]
    }

    fn rule() -> impl Strategy<Value = CompactString> {
        proptest::collection::vec(word(), 1..6)
            .prop_map(|words| words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ").into())
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
        fn quoted_words_read_back(words in proptest::collection::vec(word(), 0..6)) {
            let rule = words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
            let read: Vec<CompactString> = Words::of(&rule).collect();
            prop_assert_eq!(read, words);
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in "([*:#\"A-Z -]|-A |\\\\|\n){0,200}") {
            let _ = parse(&text);
            let _ = target(&text);
        }
    }
}
