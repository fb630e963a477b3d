//! Names by which our objects are recognised.

use compact_str::CompactString;

/// The name of an object of ours, or the prefix of the names of many.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Name {
    Exact(CompactString),
    Prefix(CompactString),
}

impl Name {
    /// Returns whether an object of this name is meant.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Name::Exact(exact) => exact == name,
            Name::Prefix(prefix) => name.starts_with(prefix.as_str()),
        }
    }
}
