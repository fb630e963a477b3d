//! The transactions beside the one of a change: what is known and what is left when one of them is refused.

use sluice::kernel::nftables::{
    BaseKind, Content, Fields, Hook, Key, Kind, Lookup, Match, Object, OwnTable, Rule, Verdict, rule::Side,
};
use sluice::net::Family;
use sluice::reconcile::{Growth, Phase, Reflection, Step, Target};

use super::moment;
use super::nftables::{Contents, TABLE, base, chain, mirror, name, prefix, set, settle};
use crate::namespace::{in_new, shell};

#[test]
fn a_change_is_done_although_what_goes_behind_it_is_refused() {
    in_new(|| {
        let mut table = OwnTable::open(TABLE).expect("a socket");
        table.read().expect("there is none");
        let (new, gone) = (Object::Set(name("new_4")), Object::Set(name("gone_4")));
        let spec = set(Fields::Address(Family::V4), Kind::Verdicts, false);
        let steps = [
            Step { key: &new, have: None, want: Some(&spec) },
            // It does not exist.
            Step { key: &gone, have: Some(&spec), want: None },
        ];
        let failures = table.apply(Phase::Whole, &steps);
        let failed: Vec<(usize, String)> =
            failures.into_iter().map(|failure| (failure.step, failure.error.to_string())).collect();
        assert!(matches!(&*failed, [(1, error)] if error.contains("gone_4")), "{failed:?}");
        assert!(shell("nft list ruleset").contains("new_4"));
    });
}

/// Each version of a policy has a set of blocks of its own, and each is refused in the chain that all packets meet.
#[test]
fn changes_that_are_refused_leave_no_more_behind_than_the_last_of_them() {
    in_new(|| {
        let jump = |to: &str| Rule::new([], Verdict::Jump(name(to)));
        let version = |number: usize, also: &[&str]| {
            let (blocks, class) = (format!("blocks_{number}_4"), format!("in_{number}"));
            let in_blocks =
                Match::InSet { lookup: Lookup::Address(Family::V4, Side::Source), set: name(&blocks), negated: false };
            let rules = [class.as_str()].iter().chain(also).map(|to| jump(to)).collect();
            Contents::from([
                (Object::Chain(name("b_input")), chain(base(BaseKind::Filter, Hook::Input, 0), rules)),
                (Object::Chain(name(&class)), chain(None, vec![Rule::new([in_blocks], Verdict::Drop)])),
                (Object::Set(name(&blocks)), set(Fields::Address(Family::V4), Kind::Set, true)),
                (Object::Element(name(&blocks), Key::Prefix(prefix("192.0.2.0/24"))), Content::Element),
            ])
        };
        let mut ours = mirror();
        settle(&mut ours, &version(0, &[]));
        let count = || shell("nft list ruleset").matches("set blocks_").count();
        for number in 1..=5 {
            let refused = version(number, &["nowhere"]);
            ours.mark_all();
            for _ in 0..2 {
                ours.try_at_once();
                ours.transact(&refused, Growth::Full, true, moment());
            }
            assert!(ours.trouble().is_some(), "it is refused");
            assert!(count() <= 2, "{number}: {}", shell("nft list ruleset"));
        }
        ours.try_at_once();
        settle(&mut ours, &version(6, &[]));
        assert_eq!(count(), 1);
    });
}
