//! Kernel settings under `/proc/sys`, written only where they differ.

use std::fmt;

use compact_str::CompactString;

/// A setting, as its path below `/proc/sys`: `net/ipv4/vs/conntrack`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Setting(pub CompactString);

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
