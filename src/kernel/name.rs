//! Names that tell what is ours.

use compact_str::CompactString;

/// The name of an object of ours, or how the names of many begin.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Name {
    Exact(CompactString),
    Prefix(CompactString),
}

impl Name {
    /// Whether this is what an object is called.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Name::Exact(exact) => exact == name,
            Name::Prefix(prefix) => name.starts_with(prefix.as_str()),
        }
    }
}
