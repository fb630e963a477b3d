//! Identity of a set of the rule set, for names derived from it: one text for each definition, and a different text for
//! every other definition.
//!
//! Kernel names are short, so they are derived from a digest of this text. Words of different length can be joined to
//! the same text (`a` and `bc`, `ab` and `c`), which once made different policies share a chain, so each word is
//! preceded by its length. The text is stable: a restarted program finds its sets by it.

use std::fmt::Write;

use ring::digest::{SHA256, digest};

use crate::model::{Operator, Selector};
use crate::net::Family;

use super::rules::{Block, PortOwners, Scope, Selection, SetKey};

/// Returns the text that identifies this set and no other.
pub fn identity(set: &SetKey) -> String {
    let mut text = String::new();
    match set {
        SetKey::Pods(selection) => {
            text.push_str("pods");
            add_selection(&mut text, selection);
        }
        SetKey::Blocks(blocks) => {
            text.push_str("blocks");
            add_blocks(&mut text, blocks);
        }
        SetKey::NamedPort { pods, name, protocol } => {
            text.push_str("port");
            add_word(&mut text, name);
            add_word(&mut text, &protocol.to_string());
            add_owners(&mut text, pods);
        }
        SetKey::Denied(set) => {
            text.push_str("denied ");
            text.push_str(&identity(set));
        }
    }
    text
}

/// Joins words so that no other words yield the same text.
pub fn joined(words: &[&str]) -> String {
    let mut text = String::new();
    words.iter().for_each(|word| add_word(&mut text, word));
    text
}

/// Returns the first 16 letters of the base32 form (RFC 4648) of the SHA-256: 80 bits, five for each.
pub fn letters(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let hash = digest(&SHA256, bytes);
    let first = hash.as_ref().iter().take(10).fold(0_u128, |number, byte| number << 8 | u128::from(*byte));
    let letter = |place: u32| ALPHABET.get((first >> (75 - 5 * place) & 31) as usize).map(|letter| char::from(*letter));
    (0..16).filter_map(letter).collect()
}

/// Returns the first 32 bits of the SHA-256.
pub fn number_of(bytes: &[u8]) -> u32 {
    digest(&SHA256, bytes).as_ref().iter().take(4).fold(0, |number, byte| number << 8 | u32::from(*byte))
}

fn add_owners(text: &mut String, pods: &PortOwners) {
    match pods {
        PortOwners::Local => text.push_str(" local"),
        PortOwners::All => text.push_str(" all"),
        PortOwners::Selected(selection) => {
            text.push_str(" selected");
            add_selection(text, selection);
        }
        PortOwners::Inside(ranges) => {
            text.push_str(" inside");
            for family in Family::BOTH {
                let ranges = ranges.of(family);
                add_count(text, ranges.len());
                for (first, last) in ranges.iter().map(|range| range.ends(family)) {
                    add_word(text, &first.to_string());
                    add_word(text, &last.to_string());
                }
            }
        }
    }
}

fn add_selection(text: &mut String, selection: &Selection) {
    match &selection.namespaces {
        Scope::Named(name) => {
            text.push_str(" of");
            add_word(text, name);
        }
        Scope::Selected(selector) => {
            text.push_str(" among");
            add_selector(text, selector);
        }
    }
    add_selector(text, &selection.pods);
}

fn add_selector(text: &mut String, selector: &Selector) {
    add_count(text, selector.requirements.len());
    for requirement in &selector.requirements {
        add_word(text, &requirement.key);
        let (word, values) = match &requirement.operator {
            Operator::In(values) => (" in", &**values),
            Operator::NotIn(values) => (" notin", &**values),
            Operator::Exists => (" exists", &[][..]),
            Operator::DoesNotExist => (" not", &[][..]),
        };
        text.push_str(word);
        add_count(text, values.len());
        values.iter().for_each(|value| add_word(text, value));
    }
}

fn add_blocks(text: &mut String, blocks: &[Block]) {
    add_count(text, blocks.len());
    for block in blocks {
        add_word(text, &block.cidr.to_string());
        add_count(text, block.except.len());
        block.except.iter().for_each(|hole| add_word(text, &hole.to_string()));
    }
}

fn add_word(text: &mut String, word: &str) {
    write!(text, " {}:{word}", word.len()).expect("a text takes in any text");
}

fn add_count(text: &mut String, count: usize) {
    write!(text, " [{count}]").expect("a text takes in any text");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::given::selector;
    use super::super::{ip_block, named_port};
    use super::*;
    use crate::net::Protocol;

    #[test]
    fn words_that_run_together_stay_apart() {
        assert_ne!(joined(&["a", "bc"]), joined(&["ab", "c"]));
        assert_ne!(joined(&["a 1:b"]), joined(&["a", "b"]));
        assert_ne!(joined(&["a", ""]), joined(&["a"]));
    }

    #[test]
    fn each_question_has_a_text_of_its_own() {
        let selectors = ["", "a", "!a", "a=b", "a=b,c", "a!=b", "a=b c=d", "ab=c", "a=bc"].map(selector);
        let mut scopes = vec![Scope::Named("a".into()), Scope::Named("ab".into())];
        scopes.extend(selectors.iter().cloned().map(Scope::Selected));
        let mut questions = Vec::new();
        for (namespaces, pods) in scopes.iter().flat_map(|scope| selectors.iter().map(move |pods| (scope, pods))) {
            let selection = Selection { namespaces: namespaces.clone(), pods: pods.clone() };
            questions.push(SetKey::Pods(selection.clone()));
            questions.push(http("http", Protocol::Tcp, PortOwners::Selected(selection)));
        }
        let net = |text: &str| text.parse().unwrap();
        let (small, large, other) = (net("10.0.0.0/16"), net("10.0.0.0/8"), net("2001:db8::/32"));
        for blocks in [vec![(large, vec![])], vec![(large, vec![small])], vec![(large, vec![]), (other, vec![])]] {
            let blocks: Box<[Block]> = blocks.iter().map(|(cidr, except)| ip_block::block(*cidr, except)).collect();
            questions.push(SetKey::Blocks(blocks.clone()));
            questions.push(http("http", Protocol::Tcp, named_port::inside(&blocks)));
        }
        for (name, protocol) in [("http", Protocol::Tcp), ("http", Protocol::Udp), ("dns", Protocol::Udp)] {
            questions.push(http(name, protocol, PortOwners::Local));
            questions.push(http(name, protocol, PortOwners::All));
        }
        let denied: Vec<SetKey> = questions.iter().cloned().map(|set| SetKey::Denied(Box::new(set))).collect();
        questions.extend(denied);
        let texts: BTreeMap<String, &SetKey> = questions.iter().map(|set| (identity(set), set)).collect();
        assert_eq!(texts.len(), questions.len());
    }

    fn http(name: &str, protocol: Protocol, pods: PortOwners) -> SetKey {
        SetKey::NamedPort { pods, name: name.into(), protocol }
    }

    #[test]
    fn the_text_is_stable() {
        let selection = Selection { namespaces: Scope::Named("shop".into()), pods: selector("app=web !old") };
        let text = "pods of 4:shop [2] 3:app in [1] 3:web 3:old not [0]";
        assert_eq!(identity(&SetKey::Pods(selection.clone())), text);
        let named = http("http", Protocol::Tcp, PortOwners::Selected(selection));
        assert_eq!(identity(&named), "port 4:http 3:tcp selected of 4:shop [2] 3:app in [1] 3:web 3:old not [0]");
        let blocks = [ip_block::block("10.0.0.0/8".parse().unwrap(), &["10.1.0.0/16".parse().unwrap()])];
        assert_eq!(identity(&SetKey::Blocks(blocks.into())), "blocks [1] 10:10.0.0.0/8 [1] 11:10.1.0.0/16");
    }
}
