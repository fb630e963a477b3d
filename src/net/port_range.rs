//! Ports that follow each other.

/// Ports from `first` to `last`, both included; equal for a single port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}
