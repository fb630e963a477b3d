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
use super::ahead::Ahead;
use crate::net::Family;

/// Stretches that are remembered. Members that stand at many different places share none.
const MOST_KNOWN: usize = 16;

/// Extent of a walk: the prefixes that it is to leave out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Whole {
    /// Nothing: members may have routes to the prefixes that are to be withdrawn.
    Again,
    /// Prefixes whose routes go to no member.
    First,
    /// These, and those that are sent ahead.
    ButAhead,
}

/// Stretches for members with one view, while the table stays as it is.
pub(super) struct Stretches<'a> {
    view: &'a View,
    table: &'a Table,
    ahead: &'a Ahead,
    /// Number of prefixes that a stretch passes.
    most: usize,
    known: BTreeMap<(Family, Option<IpNet>, Whole), Stretch>,
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
    pub fn new(view: &'a View, table: &'a Table, ahead: &'a Ahead, most: usize) -> Stretches<'a> {
        Stretches { view, table, ahead, most, known: BTreeMap::new() }
    }

    /// Returns the stretch behind a place.
    pub fn behind(&mut self, after: Option<IpNet>, family: Family, whole: Whole) -> Stretch {
        if let Some(known) = self.known.get(&(family, after, whole)) {
            return known.clone();
        }
        let passed: Vec<(IpNet, &[Path])> = self.table.walk(family, after).take(self.most).collect();
        let end = passed.last().map(|(prefix, _)| *prefix).filter(|_| passed.len() == self.most);
        let is_kept = |prefix: &IpNet, paths: &[Path]| match whole {
            Whole::Again => true,
            Whole::First => self.may_go(paths),
            Whole::ButAhead => self.may_go(paths) && !self.ahead.contains(*prefix),
        };
        let kept = passed.into_iter().filter(|(prefix, paths)| is_kept(prefix, paths));
        let stretch = Stretch { prefixes: kept.map(|(prefix, _)| prefix).collect(), end };
        // The first ones stay: a member that is sent nothing walks to the end, and the next one begins where it began.
        if self.known.len() < MOST_KNOWN {
            self.known.insert((family, after, whole), stretch.clone());
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
            let peer = if *kind == Kind::Local { PeerId::LOCAL } else { PeerId(2 + number) };
            let address = IpAddr::V4(identifier);
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
    fn stretches(kind: Kind, table: &Table, most: usize, whole: Whole) -> Vec<Vec<u32>> {
        let (view, mut found, mut after) = (view(kind), Vec::new(), None);
        let mut ahead = Ahead::default();
        ahead.first(PerFamily { v4: true, v6: true }, table);
        let mut stretches = Stretches::new(&view, table, &ahead, most);
        loop {
            let stretch = stretches.behind(after, Family::V4, whole);
            assert!(
                Arc::ptr_eq(&stretches.behind(after, Family::V4, whole).prefixes, &stretch.prefixes),
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
        assert_eq!(stretches(Internal, &table, 2, Whole::First), [vec![], vec![3], vec![5], vec![6]]);
        assert_eq!(stretches(Internal, &table, 100, Whole::First), [[3, 5, 6]]);
        assert_eq!(stretches(Client, &table, 100, Whole::First), [[0, 1, 2, 3, 4, 5, 6]]);
        assert_eq!(stretches(External, &table, 4, Whole::First), [vec![0, 1, 2, 3], vec![4, 5, 6]]);
        // Our own routes have gone ahead.
        assert_eq!(stretches(Internal, &table, 2, Whole::ButAhead), [vec![], vec![], vec![5], vec![6]]);
    }

    #[test]
    fn of_a_table_with_more_stretches_than_are_remembered_the_first_ones_are_walked_over_once() {
        let table = table(&[Kind::Internal; MOST_KNOWN + 4]);
        let view = view(Kind::Internal);
        let ahead = Ahead::default();
        let mut stretches = Stretches::new(&view, &table, &ahead, 1);
        let mut walk = || {
            let first = stretches.behind(None, Family::V4, Whole::First);
            let mut after = first.end;
            while after.is_some() {
                after = stretches.behind(after, Family::V4, Whole::First).end;
            }
            first.prefixes
        };
        assert!(Arc::ptr_eq(&walk(), &walk()));
    }

    #[test]
    fn what_a_member_may_have_is_not_left_out() {
        let table = table(&[Kind::Internal; 4]);
        assert_eq!(stretches(Kind::Internal, &table, 3, Whole::Again), [vec![0, 1, 2], vec![3]]);
        assert_eq!(
            stretches(Kind::Internal, &table, 4, Whole::Again),
            [vec![0, 1, 2, 3], vec![]],
            "the end is seen behind it"
        );
    }
}
