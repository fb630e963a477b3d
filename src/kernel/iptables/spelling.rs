//! Spelling of our rules by this machine's iptables.
//!
//! A rule that is printed in other words reads as another rule, so ours are written as `iptables-save` prints them. An
//! iptables of another version may print them in another way, and then a chain would differ for ever and be written again and again.
//! So what is written is read back once, and where the two differ the pair is remembered.
//!
//! To read back after every write would cost more than the write. Rules of one shape (the same options, other
//! values) are spelled alike: once one of a shape came back as it was written, those of that shape are trusted.

use std::collections::{BTreeMap, BTreeSet};

use super::rule::Rule;

/// Known spellings of one family's program.
#[derive(Clone, Default, Debug)]
pub(super) struct Spelling {
    /// Shapes that came back as they were written, every time.
    faithful: BTreeSet<Rule>,
    /// Our rules, by their printed form; only where the two differ.
    written: BTreeMap<Rule, Rule>,
    /// Our rules of these pairs.
    learned: BTreeSet<Rule>,
}

/// Most known pairs. Beyond it they are forgotten and learned anew: they may be of rules long gone.
const MOST_PAIRS: usize = 20_000;

impl Spelling {
    /// Returns whether the printed form of this rule is known.
    pub fn knows(&self, rule: &Rule) -> bool {
        self.learned.contains(rule) || self.faithful.contains(&rule.shape())
    }

    /// Compares the rules of a chain as written with what is printed of them. Learns nothing when somebody
    /// else changed the chain in between, as far as that shows.
    pub fn learn(&mut self, written: &[Rule], printed: &[Rule]) {
        let alike = written.len() == printed.len()
            && written.iter().zip(printed).all(|(written, printed)| written.target() == printed.target());
        if !alike {
            return;
        }
        if self.written.len() > MOST_PAIRS {
            *self = Spelling::default();
        }
        for (written, printed) in written.iter().zip(printed).filter(|(written, printed)| written == printed) {
            if !self.written.contains_key(printed) {
                self.faithful.insert(written.shape());
            }
        }
        for (written, printed) in written.iter().zip(printed).filter(|(written, printed)| written != printed) {
            self.faithful.remove(&written.shape());
            self.written.insert(printed.clone(), written.clone());
            self.learned.insert(written.clone());
        }
    }

    /// The rule in our spelling.
    pub fn as_written(&self, printed: &Rule) -> Rule {
        self.written.get(printed).unwrap_or(printed).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(texts: &[&str]) -> Vec<Rule> {
        texts.iter().map(|text| Rule::from(*text)).collect()
    }

    #[test]
    fn a_shape_that_came_back_once_is_trusted_for_all_values() {
        let mut spelling = Spelling::default();
        assert!(!spelling.knows(&"-s 10.244.0.0/24 -j RETURN".into()));
        let rule = rules(&["-s 10.244.0.0/24 -j RETURN"]);
        spelling.learn(&rule, &rule);
        assert!(spelling.knows(&"-s 10.244.7.0/24 -j RETURN".into()));
        assert!(!spelling.knows(&"-d 10.244.7.0/24 -j RETURN".into()));
        assert!(!spelling.knows(&"-s 10.244.7.0/24 -j ACCEPT".into()));
        let rule = rules(&["-m mark ! --mark 1/1 -j KUBE-NWPLCY-A"]);
        spelling.learn(&rule, &rule);
        assert!(
            spelling.knows(&"-m mark ! --mark 1/1 -j KUBE-NWPLCY-B".into())
                && !spelling.knows(&"-m mark ! --mark 1/1 -j DROP".into())
        );
    }

    #[test]
    fn another_spelling_is_read_as_ours_and_its_shape_is_not_trusted() {
        let mut spelling = Spelling::default();
        let same = rules(&["-s 10.244.0.0/24 -j RETURN"]);
        spelling.learn(&same, &same);
        let (written, printed) = (Rule::from("-s 10.244.0.1 -j RETURN"), Rule::from("-s 10.244.0.1/32 -j RETURN"));
        spelling.learn(std::slice::from_ref(&written), std::slice::from_ref(&printed));
        assert_eq!(spelling.as_written(&printed), written);
        assert_eq!(spelling.as_written(&"-s 10.244.0.0/24 -j RETURN".into()), "-s 10.244.0.0/24 -j RETURN".into());
        assert!(spelling.knows(&written));
        assert!(!spelling.knows(&"-s 10.244.0.2 -j RETURN".into()));
    }

    #[test]
    fn a_chain_that_somebody_changed_meanwhile_teaches_nothing() {
        let mut spelling = Spelling::default();
        let written = rules(&["-s 10.244.0.1/32 -j RETURN", "-j DROP"]);
        for printed in [&["-j DROP"][..], &["-j ACCEPT", "-j DROP"], &[]] {
            spelling.learn(&written, &rules(printed));
        }
        assert!(written.iter().all(|rule| !spelling.knows(rule)));
        assert_eq!(spelling.as_written(&"-j DROP".into()), "-j DROP".into());
    }
}
