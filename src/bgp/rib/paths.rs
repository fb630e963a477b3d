//! The routes to one prefix: one or two of them without memory of their own, as most prefixes have no more.

use std::mem;

use super::table::{Path, PeerId};

/// Routes to a prefix, at most one of each source; the best is first if there is one.
#[derive(Clone, Debug)]
pub(super) enum Paths {
    One([Path; 1]),
    Two([Path; 2]),
    /// None, or more than two.
    Others(Vec<Path>),
}

impl Paths {
    pub fn as_slice(&self) -> &[Path] {
        match self {
            Paths::One(paths) => paths,
            Paths::Two(paths) => paths,
            Paths::Others(paths) => paths,
        }
    }

    pub fn as_mut_slice(&mut self) -> &mut [Path] {
        match self {
            Paths::One(paths) => paths,
            Paths::Two(paths) => paths,
            Paths::Others(paths) => paths,
        }
    }

    /// Adds a route behind the others, or replaces the one of the same source.
    pub fn put(&mut self, path: Path) {
        if let Some(known) = self.as_mut_slice().iter_mut().find(|known| known.source == path.source) {
            *known = path;
            return;
        }
        *self = match mem::take(self) {
            Paths::One([first]) => Paths::Two([first, path]),
            Paths::Two([first, second]) => Paths::Others(vec![first, second, path]),
            Paths::Others(paths) if paths.is_empty() => Paths::One([path]),
            Paths::Others(mut paths) => {
                paths.reserve_exact(1);
                paths.push(path);
                Paths::Others(paths)
            }
        };
    }

    /// Removes the route of a source. The others keep their order.
    pub fn remove(&mut self, source: PeerId) {
        let mut left: Vec<Path> = match mem::take(self) {
            Paths::One([path]) if path.source != source => return *self = Paths::One([path]),
            Paths::One(_) => return,
            Paths::Two(paths) => paths.into(),
            Paths::Others(paths) => paths,
        };
        left.retain(|path| path.source != source);
        *self = match <[Path; 1]>::try_from(left) {
            Ok(one) => Paths::One(one),
            Err(more) => <[Path; 2]>::try_from(more).map_or_else(Paths::Others, Paths::Two),
        };
    }
}

impl Default for Paths {
    fn default() -> Self {
        Paths::Others(Vec::new())
    }
}
