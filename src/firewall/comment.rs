//! The comment of a rule, for people who read `iptables-save`.
//!
//! Kernel: a comment holds 255 bytes; with nf_tables 128. Names of objects can be longer, and objects that come from
//! files may be called anything, so what is said is cut and cleaned. Nothing is ever recognised by it.

use compact_str::{CompactString, format_compact};

use crate::kernel::iptables::quoted;

/// How much is said, in bytes.
const MOST: usize = 120;

/// The words of a rule that say this.
pub fn comment(text: &str) -> CompactString {
    let mut said = String::new();
    let plain = text.chars().map(|letter| if letter.is_ascii_graphic() || letter == ' ' { letter } else { '?' });
    said.extend(plain.filter(|letter| !matches!(letter, '"' | '\'' | '\\')).take(MOST));
    format_compact!("-m comment --comment {}", quoted(said.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_comment_says_is_short_and_plain() {
        assert_eq!(comment("shop/web ingress 0"), "-m comment --comment \"shop/web ingress 0\"");
        assert_eq!(comment("a\"b\\c'd\n\u{e9}"), "-m comment --comment \"abcd??\"");
        assert_eq!(comment(&"x".repeat(300)).len(), "-m comment --comment ".len() + 120);
    }
}
