//! Conditions on AS_PATH.
//!
//! The four forms in practical use, in the notation of routers: `^65001_` (received from that AS), `_65001$`
//! (originated there), `_65001_` (passed through it) and `^65001$` (originated there and received directly). A number
//! may be replaced by a range, `64512-65534`. Other regular expressions are not supported: they are rejected where they
//! are configured.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::super::message::AsPath;

/// Named set of patterns.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct AsPathSet {
    pub name: String,
    pub patterns: BTreeSet<AsPathPattern>,
}

/// AS path pattern.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AsPathPattern {
    /// The path begins with the number: the neighbouring AS.
    first: bool,
    /// The path ends with the number: the origin AS.
    last: bool,
    least: u32,
    most: u32,
}

/// Text in none of the four forms.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a pattern of AS paths is ^65001_, _65001$, _65001_ or ^65001$, with a number or a range like 64512-65534")]
pub struct NoPattern;

impl AsPathPattern {
    pub fn matches(&self, path: &AsPath) -> bool {
        let within = |number: u32| (self.least..=self.most).contains(&number);
        match (self.first, self.last) {
            (false, false) => path.numbers().any(within),
            (true, false) => path.neighbour().is_some_and(within),
            (false, true) => path.origin().is_some_and(within),
            (true, true) => path.numbers().count() == 1 && path.neighbour().is_some_and(within),
        }
    }
}

impl FromStr for AsPathPattern {
    type Err = NoPattern;

    fn from_str(text: &str) -> Result<AsPathPattern, NoPattern> {
        let (first, rest) = match (text.strip_prefix('^'), text.strip_prefix('_')) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => return Err(NoPattern),
        };
        let (last, middle) = match (rest.strip_suffix('$'), rest.strip_suffix('_')) {
            (Some(middle), _) => (true, middle),
            (_, Some(middle)) => (false, middle),
            _ => return Err(NoPattern),
        };
        let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
            true => text.parse::<u32>().map_err(|_| NoPattern),
            false => Err(NoPattern),
        };
        let (least, most) = match middle.split_once('-') {
            Some((least, most)) => (number(least)?, number(most)?),
            None => (number(middle)?, number(middle)?),
        };
        if least > most { Err(NoPattern) } else { Ok(AsPathPattern { first, last, least, most }) }
    }
}

impl fmt::Display for AsPathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.first { "^" } else { "_" })?;
        match self.least == self.most {
            true => write!(f, "{}", self.least)?,
            false => write!(f, "{}-{}", self.least, self.most)?,
        }
        f.write_str(if self.last { "$" } else { "_" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_says_where_in_the_path_a_number_stands() {
        let paths = [&[65001][..], &[65001, 65002], &[65002, 65001], &[65002, 65001, 65003], &[65002], &[]];
        let paths = paths.map(AsPath::sequence);
        for (text, expected) in [
            ("^65001_", [true, true, false, false, false, false]),
            ("_65001$", [true, false, true, false, false, false]),
            ("_65001_", [true, true, true, true, false, false]),
            ("^65001$", [true, false, false, false, false, false]),
            ("_65002-65003_", [false, true, true, true, true, false]),
            ("^65002-65009$", [false, false, false, false, true, false]),
        ] {
            let pattern: AsPathPattern = text.parse().expect("a pattern");
            assert_eq!(paths.each_ref().map(|path| pattern.matches(path)), expected, "{text}");
            assert_eq!(pattern.to_string(), text);
        }
    }

    #[test]
    fn other_expressions_are_refused() {
        for text in [
            "",
            "65001",
            "^65001",
            "65001$",
            "^65001.*",
            "_6500[1-3]_",
            "_65003-65001_",
            "_-1_",
            "_4294967296_",
            "_+1_",
        ] {
            assert_eq!(text.parse::<AsPathPattern>(), Err(NoPattern), "{text:?}");
        }
    }
}
