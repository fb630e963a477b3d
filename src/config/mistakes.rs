//! The mistakes found in a configuration, all of them, and the checks that many flags share.
//!
//! Each mistake is one sentence that names the flag, what it must be and what it is. They are collected and
//! shown together, one per line, so that a manifest is mended in one go.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;

use super::duration::GoDuration;
use super::value::prefix;

/// The mistakes in a configuration: one sentence each, in the order of the checks.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Mistakes(Vec<String>);

impl Mistakes {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn sentences(&self) -> &[String] {
        &self.0
    }

    pub(super) fn add(&mut self, sentence: String) {
        self.0.push(sentence);
    }

    /// A period or limit that must be longer than zero. A wrong one becomes zero and a mistake.
    pub(super) fn longer_than_zero(&mut self, flag: &str, typed: GoDuration, example: &str) -> Duration {
        match typed.positive_or_zero() {
            Some(duration) if !duration.is_zero() => duration,
            _ => {
                self.add(format!("--{flag} must be longer than 0s, for example {example}; it is {typed}."));
                Duration::ZERO
            }
        }
    }

    /// A duration between two bounds, both allowed, in the words of `range`.
    pub(super) fn duration_within(&mut self, flag: &str, typed: GoDuration, range: RangeInclusive<Duration>) {
        if !typed.positive_or_zero().is_some_and(|duration| range.contains(&duration)) {
            let (shortest, longest) = (GoDuration::from(*range.start()), GoDuration::from(*range.end()));
            self.add(format!("--{flag} must be from {shortest} to {longest}; it is {typed}."));
        }
    }

    /// A number between two bounds, both allowed.
    pub(super) fn number_within(&mut self, flag: &str, typed: u64, range: RangeInclusive<u64>) {
        if !range.contains(&typed) {
            self.add(format!("--{flag} must be a number from {} to {}; it is {typed}.", range.start(), range.end()));
        }
    }

    /// A word out of a few. The first one stands for a wrong one.
    pub(super) fn one_of<T: Copy>(&mut self, flag: &str, typed: &str, first: (&str, T), second: (&str, T)) -> T {
        if typed == second.0 {
            return second.1;
        }
        if typed != first.0 {
            self.add(format!("--{flag} must be {} or {}; it is {typed:?}.", first.0, second.0));
        }
        first.1
    }

    /// A list of prefixes, as networks: host bits are cut off. What is no prefix is left out and a mistake.
    pub(super) fn prefixes<'a>(&mut self, flag: &str, typed: impl Iterator<Item = &'a String>) -> Vec<IpNet> {
        let mut prefixes = Vec::new();
        for text in typed {
            match prefix(text) {
                Some(prefix) => prefixes.push(prefix),
                None => self.add(format!(
                    "--{flag} must be ranges like 10.0.0.0/8 or fd00::/64 with commas between them; {text:?} is none."
                )),
            }
        }
        prefixes
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Mistakes {}
