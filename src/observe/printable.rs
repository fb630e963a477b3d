//! Texts for a terminal, whose words are those of others.
//!
//! Names that an API server has checked hold no control characters. Those of manifests and bundles, and labels of whomever, nobody has checked, and a terminal
//! obeys what it finds in them.

use std::fmt::Write as _;

/// Returns a text whose control characters, except line breaks and tabs, are written as in JSON (`\u001b`). So an answer in JSON says the same as before.
pub fn printable(text: String) -> String {
    let is_obeyed = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(is_obeyed) {
        return text;
    }
    let mut printable = String::with_capacity(text.len());
    for c in text.chars() {
        if is_obeyed(c) {
            // Writing to a `String` cannot fail.
            let _ = write!(printable, "\\u{:04x}", u32::from(c));
        } else {
            printable.push(c);
        }
    }
    printable
}

/// Returns a text of so many characters at most, with a sign where something was left off.
pub fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_left_and_lines_stay_lines() {
        let evil = "web\u{1b}[2J\u{9b}1m\r\u{7f}\n\tä\n";
        assert_eq!(printable(evil.to_owned()), "web\\u001b[2J\\u009b1m\\u000d\\u007f\n\tä\n");
        assert_eq!(printable("Service shop/web\n".to_owned()), "Service shop/web\n");
    }

    #[test]
    fn an_answer_in_json_says_the_same() {
        let value = serde_json::json!({ "name": "a\u{1b}b\u{9b}c\nd\u{7f}" });
        let text = printable(serde_json::to_string_pretty(&value).expect("JSON"));
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).expect("JSON"), value);
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!((shortened("äöü", 3), shortened("äöü", 2)), ("äöü".to_owned(), "äö…".to_owned()));
    }
}
