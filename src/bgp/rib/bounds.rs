//! Limits of the table.

/// Limits on concurrent work, and on memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// Number of unsent bytes from which on a neighbour is behind.
    pub room: usize,
    /// Number of prefixes processed at a time.
    pub portion: usize,
    /// Size in bytes of all sets of attributes together, above which the neighbour with the most is refused.
    pub attributes: usize,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds { room: 1 << 20, portion: 8192, attributes: 256 << 20 }
    }
}
