//! Stale routes: those of a neighbour whose session has ended and that are retained (RFC 4724 4.2, RFC 9494 4.2), and those that it has not sent again
//! yet since it began a refresh (RFC 7313 4.2).

use std::sync::Arc;

use ipnet::IpNet;

use super::super::super::message::Attributes;
use super::{Count, Path, PeerId, STALE, Table};
use crate::net::{Family, PerFamily};

impl Table {
    /// Marks all routes of a neighbour as stale.
    pub fn mark_stale(&mut self, source: PeerId, families: PerFamily<bool>) {
        for (family, marked) in Family::BOTH.map(|family| (family, *families.of(family))) {
            let Count { received, stale, .. } = *self.count(source).of(family);
            if marked && received > stale {
                self.counts.entry(source).or_default().of_mut(family).stale = received;
                self.paths.update(family, |paths| {
                    let is_of_source = |path: &Path| path.source == source;
                    paths.as_slice().iter().any(is_of_source).then(|| {
                        let mut paths = paths.clone();
                        let of_source = paths.as_mut_slice().iter_mut().filter(|path| is_of_source(path));
                        of_source.for_each(|path| path.arrival.0 |= STALE);
                        paths
                    })
                });
            }
        }
    }

    /// Replaces the attributes of the stale routes of a neighbour, as received and as used; they stay stale.
    pub fn change_stale(
        &mut self,
        source: PeerId,
        families: PerFamily<bool>,
        mut changed: impl FnMut(IpNet, &Arc<Attributes>) -> (Arc<Attributes>, Option<Arc<Attributes>>),
    ) {
        for prefix in self.prefixes_of(source, families, Path::is_stale) {
            let Some(path) = self.path(prefix, source).cloned() else { continue };
            let (received, used) = changed(prefix, &path.received);
            self.take_in(prefix, Path { received, used, ..path });
        }
    }
}
