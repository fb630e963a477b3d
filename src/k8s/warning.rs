//! Warnings about what an object holds and is not understood.

use std::borrow::Cow;
use std::fmt;

/// The end of a warning about an object of the cluster that cannot be read.
pub const LAST_GOOD_STAYS: &str = ", so its last good version stays in force";

/// A warning about a field of an object.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Warning {
    /// The field as the API names it, or the key of an annotation.
    pub field: Cow<'static, str>,
    pub text: String,
}

/// The warnings of one object, collected while it is parsed.
#[derive(Default, Debug)]
pub struct Warnings(Vec<Warning>);

/// Number of warnings kept of one object. An object with a thousand bad ports is one mistake.
const WARNINGS_KEPT: usize = 8;

impl Warnings {
    /// Records that a field is invalid, and how it is treated.
    pub fn odd(&mut self, field: impl Into<Cow<'static, str>>, text: impl fmt::Display) {
        if self.0.len() < WARNINGS_KEPT {
            self.0.push(Warning { field: field.into(), text: text.to_string() });
        }
    }

    pub fn take(self) -> Vec<Warning> {
        self.0
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.text)
    }
}
