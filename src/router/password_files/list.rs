//! The passwords of `--peer-router-passwords-file`, one for each router of the flags, while somebody writes the file.
//!
//! A file that is rewritten in place is empty, or half of it, for a moment. So a list that is in force stays where the text is empty or has
//! another number of items, and a password stays where its item makes no sense. An item that is blank takes the password of its router away
//! when it is so at two looks in a row: from then on whoever has the router's address needs none.

use std::collections::BTreeSet;

use crate::net::{ExternalPeer, Password};
use crate::router::external_peers::passwords;

/// The list in force; empty before the file was read.
#[derive(Debug, Default)]
pub struct PasswordList {
    in_force: Vec<Password>,
    /// The places whose item was blank at the last look, while their password is in force.
    blank: BTreeSet<usize>,
    said: Vec<String>,
}

impl PasswordList {
    /// Takes the text of the file for these peers. Returns the passwords if they have changed, and what is wrong unless the last look said the
    /// same.
    pub fn look(&mut self, text: &str, peers: &[ExternalPeer]) -> (Option<Vec<Password>>, Vec<String>) {
        let (read, mut sentences) = passwords(text, peers);
        let had = |place: usize| matches!(self.in_force.get(place), Some(Password::Key(_)));
        let is_emptied = text.trim().is_empty() && (0..read.len()).any(had);
        if is_emptied {
            sentences = vec!["the file is empty".to_owned()];
        }
        let blank_before = std::mem::take(&mut self.blank);
        let mut wanted = Vec::new();
        for (place, password) in read.into_iter().enumerate() {
            let known = self.in_force.get(place);
            let kept = match (&password, known) {
                _ if is_emptied => known,
                (Password::Unknown, known) => known,
                (Password::None, Some(Password::Key(_))) if blank_before.contains(&place) => {
                    sentences.push(format!("password {} of the file is gone: its router has none now", place + 1));
                    None
                }
                (Password::None, Some(Password::Key(_))) => {
                    self.blank.insert(place);
                    sentences.push(format!(
                        "password {} of the file is blank; if it still is at the next look it is gone",
                        place + 1
                    ));
                    known
                }
                _ => None,
            };
            wanted.push(kept.cloned().unwrap_or(password));
        }
        if !sentences.is_empty() && wanted.iter().any(|password| matches!(password, Password::Key(_))) {
            sentences.push("the last known passwords stay in force where the file has none".to_owned());
        }
        let has_changed = self.in_force != wanted;
        self.in_force = wanted;
        let is_new = self.said != sentences;
        self.said.clone_from(&sentences);
        (has_changed.then(|| self.in_force.clone()), if is_new { sentences } else { Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn peers(count: u8) -> Vec<ExternalPeer> {
        (1..=count).map(|number| ExternalPeer::new(IpAddr::from([203, 0, 113, number]), 65001)).collect()
    }

    fn shown(passwords: &[Password]) -> String {
        let word = |password: &Password| match password {
            Password::Key(secret) => String::from_utf8_lossy(secret.key()).into_owned(),
            other => format!("{other:?}"),
        };
        passwords.iter().map(word).collect::<Vec<_>>().join(" ")
    }

    /// Looks at these texts one after the other, and compares what changes at each.
    fn looks(count: u8, texts: &[(&str, Option<&str>)]) {
        let mut list = PasswordList::default();
        for (number, (text, expected)) in texts.iter().enumerate() {
            let (changed, _) = list.look(text, &peers(count));
            assert_eq!(changed.as_deref().map(shown).as_deref(), *expected, "look {number}: {text:?}");
        }
    }

    #[test]
    fn a_list_in_force_stays_while_its_file_is_empty_or_half_written() {
        looks(
            2,
            &[
                ("", Some("Unknown Unknown")),
                ("cGFzcw==,Zm9vYmE=\n", Some("pass fooba")),
                ("", None),
                ("cGFz", None),
                ("cGFzcw==,Zm9vY", None),
                ("", None),
                ("Zm9vYmE=,cGFzcw==", Some("fooba pass")),
                ("cGFzcw==,pass!", Some("pass pass")),
            ],
        );
        // One router: an empty text is one item that is blank.
        looks(1, &[("cGFzcw==", Some("pass")), ("", None), (" \n", None), ("", None), ("Zm9vYmE=", Some("fooba"))]);
        looks(1, &[("", Some("None")), ("cGFzcw==", Some("pass"))]);
    }

    #[test]
    fn a_password_is_given_up_when_its_item_is_blank_at_two_looks_in_a_row() {
        looks(
            2,
            &[
                ("cGFzcw==,Zm9vYmE=", Some("pass fooba")),
                ("cGFzcw==,", None),
                ("cGFzcw==,Zm9vYmE=", None),
                ("cGFzcw==,", None),
                ("", None),
                ("cGFzcw==,", None),
                ("cGFzcw==,", Some("pass None")),
                ("cGFzcw==,", None),
                ("cGFzcw==,Zm9vYmE=", Some("pass fooba")),
            ],
        );
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_once_and_without_its_text() {
        let mut list = PasswordList::default();
        let mut said = |text: &str| list.look(text, &peers(1)).1.join("; ");
        assert_eq!(said("cGFzcw=="), "");
        for (text, what) in [("secret!", "password 1"), ("", "is empty"), ("a,b", "must have one for each")] {
            let first = said(text);
            assert!(first.contains(what) && first.contains("stay in force"), "{text:?}: {first}");
            assert!(!first.contains("secret") && said(text).is_empty(), "{text:?}: {first}");
        }
    }
}
