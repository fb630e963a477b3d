//! The comment of a rule, for readers of `iptables-save`.
//!
//! Kernel: a comment holds 255 bytes; with nf_tables 128. Names of objects can be longer, and objects from files may
//! have any name, so the text is truncated and sanitised. Nothing is ever recognised by it.

use crate::kernel::iptables::Match;

/// Maximum length of a comment, in bytes.
const MOST: usize = 120;

/// Returns the match that carries this comment.
pub fn comment(text: &str) -> Match {
    let mut said = String::new();
    let plain = text.chars().map(|letter| if letter.is_ascii_graphic() || letter == ' ' { letter } else { '?' });
    said.extend(plain.filter(|letter| !matches!(letter, '"' | '\'' | '\\')).take(MOST));
    Match::Comment(said.trim().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_comment_says_is_short_and_plain() {
        assert_eq!(comment("shop/web ingress 0"), Match::Comment("shop/web ingress 0".into()));
        assert_eq!(comment("a\"b\\c'd\n\u{e9}"), Match::Comment("abcd??".into()));
        assert_eq!(comment(&"x".repeat(300)), Match::Comment("x".repeat(120).into()));
    }
}
