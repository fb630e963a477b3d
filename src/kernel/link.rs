//! Network devices.
//!
//! Kernel: rtnetlink `RTM_*LINK` (include/uapi/linux/if_link.h). Ours: the devices whose names the owner of a
//! [`Links`] target lists; the names are a contract with running nodes.

use std::fmt;

use compact_str::CompactString;

/// The name of a device: at most 15 bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LinkName(pub CompactString);

/// What we decide about a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    pub kind: LinkKind,
    pub up: bool,
}

/// Device types that we create.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LinkKind {
    Dummy,
    /// A device that exists under our name with a type that we never make, named as the kernel names it.
    /// It is read so that it can be reported; it is never deleted.
    Other(CompactString),
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
