//! Stretches of walks over the table, for all members of a group that stand at the same place.
//!
//! A new session is sent the whole table, and after a restart of ours all sessions are, at once. Between the nodes of a mesh that is next to
//! nothing: routes of one node do not go on to another one (RFC 4456). So each stretch is walked once for a group, and what goes to none of its
//! members is left out by the source of the route alone. Its attributes lie elsewhere in memory, and 5,000 sessions that all look at those of 10,000
//! routes keep a processor busy for seconds.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

use super::super::export::View;
use super::super::table::{Path, Table};
use crate::net::Family;

/// Stretches that are remembered. Members that stand at many different places share none.
const MOST_KNOWN: usize = 16;

/// Stretches for members with one view, while the table stays as it is.
pub(super) struct Stretches<'a> {
    view: &'a View,
    table: &'a Table,
    /// Number of prefixes that a stretch passes.
    most: usize,
    known: BTreeMap<(Family, Option<IpNet>, bool), Stretch>,
}

/// Prefixes that follow a place in the table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Stretch {
    /// Those whose best route may go to members.
    pub prefixes: Arc<[IpNet]>,
    /// The place behind the stretch; `None` where the family ends with it.
    pub end: Option<IpNet>,
}

impl<'a> Stretches<'a> {
    pub fn new(view: &'a View, table: &'a Table, most: usize) -> Stretches<'a> {
        Stretches { view, table, most, known: BTreeMap::new() }
    }

    /// Returns the stretch behind a place. `again`: members may have routes to the prefixes that are to be withdrawn, so that none is left out.
    pub fn behind(&mut self, after: Option<IpNet>, family: Family, again: bool) -> Stretch {
        if let Some(known) = self.known.get(&(family, after, again)) {
            return known.clone();
        }
        let passed: Vec<(IpNet, &[Path])> = self.table.walk(family, after).take(self.most).collect();
        let end = passed.last().map(|(prefix, _)| *prefix).filter(|_| passed.len() == self.most);
        let kept = passed.into_iter().filter(|(_, paths)| again || self.may_go(paths));
        let stretch = Stretch { prefixes: kept.map(|(prefix, _)| prefix).collect(), end };
        // The first ones stay: a member that is sent nothing walks to the end, and the next one begins where it began.
        if self.known.len() < MOST_KNOWN {
            self.known.insert((family, after, again), stretch.clone());
        }
        stretch
    }

    /// Returns whether the best of these routes, which is the first, comes from where routes go to members from.
    fn may_go(&self, paths: &[Path]) -> bool {
        let source = paths.first().and_then(|path| self.table.source(path.source));
        source.is_some_and(|source| self.view.takes_from(source.kind))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::time::Instant;

    use super::super::super::best_path::{Kind, Source};
    use super::super::super::export::NextHops;
    use super::super::super::table::PeerId;
    use super::*;
    use crate::bgp::message::{Attributes, Dialect};
    use crate::bgp::policy::Applicable;
    use crate::net::PerFamily;

    /// Routes of these sources to 10.0.0.0/24, 10.0.1.0/24 and so on.
    fn table(sources: &[Kind]) -> Table {
        let mut table = Table::new(Instant::now());
        for (number, kind) in (0_u32..).zip(sources) {
            let identifier = Ipv4Addr::from(0xc000_0200 + number);
            let (peer, address) = (PeerId(2 + number), IpAddr::V4(identifier));
            table.set_source(peer, Source { kind: *kind, identifier, address, first: None });
            let attributes = Arc::new(Attributes::local(address));
            table.announce(prefix(number), peer, attributes.clone(), Some(attributes));
        }
        table
    }

    fn prefix(number: u32) -> IpNet {
        IpNet::new(Ipv4Addr::from(0x0a00_0000 + (number << 8)).into(), 24).unwrap()
    }

    fn view(kind: Kind) -> View {
        let families = PerFamily { v4: true, v6: true };
        let internal = kind != Kind::External;
        let dialect =
            Dialect { internal, four_octets: true, families, extended_next_hop: false, extended_message: false };
        let (next_hops, statements) = (NextHops::Usual, Applicable::default());
        View { kind, dialect, own: PerFamily::default(), next_hops, knows_long_lived: true, statements }
    }

    /// Numbers of the prefixes in each stretch.
    fn stretches(kind: Kind, table: &Table, most: usize, again: bool) -> Vec<Vec<u32>> {
        let (view, mut found, mut after) = (view(kind), Vec::new(), None);
        let mut stretches = Stretches::new(&view, table, most);
        loop {
            let stretch = stretches.behind(after, Family::V4, again);
            assert!(
                Arc::ptr_eq(&stretches.behind(after, Family::V4, again).prefixes, &stretch.prefixes),
                "once for all"
            );
            let number = |prefix: &IpNet| (0..99).find(|number| self::prefix(*number) == *prefix).unwrap();
            found.push(stretch.prefixes.iter().map(number).collect());
            after = stretch.end;
            if after.is_none() {
                return found;
            }
        }
    }

    #[test]
    fn what_goes_to_nobody_is_walked_over_once_and_left_out() {
        use Kind::{Client, External, Internal, Local};
        let table = table(&[Internal, Internal, Internal, Local, Internal, External, Client]);
        assert_eq!(stretches(Internal, &table, 2, false), [vec![], vec![3], vec![5], vec![6]]);
        assert_eq!(stretches(Internal, &table, 100, false), [[3, 5, 6]]);
        assert_eq!(stretches(Client, &table, 100, false), [[0, 1, 2, 3, 4, 5, 6]]);
        assert_eq!(stretches(External, &table, 4, false), [vec![0, 1, 2, 3], vec![4, 5, 6]]);
    }

    #[test]
    fn of_a_table_with_more_stretches_than_are_remembered_the_first_ones_are_walked_over_once() {
        let table = table(&[Kind::Internal; MOST_KNOWN + 4]);
        let view = view(Kind::Internal);
        let mut stretches = Stretches::new(&view, &table, 1);
        let mut walk = || {
            let first = stretches.behind(None, Family::V4, false);
            let mut after = first.end;
            while after.is_some() {
                after = stretches.behind(after, Family::V4, false).end;
            }
            first.prefixes
        };
        assert!(Arc::ptr_eq(&walk(), &walk()));
    }

    #[test]
    fn what_a_member_may_have_is_not_left_out() {
        let table = table(&[Kind::Internal; 4]);
        assert_eq!(stretches(Kind::Internal, &table, 3, true), [vec![0, 1, 2], vec![3]]);
        assert_eq!(stretches(Kind::Internal, &table, 4, true), [vec![0, 1, 2, 3], vec![]], "the end is seen behind it");
    }
}
