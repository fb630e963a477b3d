//! The transactions beside the one of a change: what is known and what is left when one of them is refused.

use std::sync::Arc;

use sluice::kernel::nftables::{
    BaseKind, Content, Fields, Hook, Key, Kind, Lookup, Match, Object, OwnTable, Rule, Verdict, rule::Side,
};
use sluice::net::Family;
use sluice::reconcile::{Growth, Phase, Reflection, Step, Target};

use super::moment;
use super::nftables::{Contents, TABLE, address, base, chain, mirror, name, prefix, set, settle};
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

/// The number of a chain in the kernel, as `nft` tells it; `None` where there is none of this name.
fn handle(chain: &str) -> Option<String> {
    let listed = shell("nft -a list ruleset");
    let line = listed.lines().find(|line| line.contains(&format!("chain {chain} {{")))?;
    line.split("# handle ").nth(1).map(|number| number.trim().to_owned())
}

/// A map that leads all packets of two addresses to a class, with a set that this class looks into.
fn judged_by(class: &str, verdict: Verdict) -> Contents {
    let lookup = Lookup::Address(Family::V4, Side::Source);
    let (map, blocks) = (name("judged_4"), name(&format!("{class}_blocks_4")));
    let to_class = || Content::Verdict(Arc::new(Verdict::Jump(name(class))));
    let in_blocks = Match::InSet { lookup, set: blocks.clone(), negated: false };
    let of = |text: &str| Object::Element(map.clone(), Key::Address(address(text)));
    let entered = vec![Rule::new([], Verdict::Map { lookup, map: map.clone() })];
    Contents::from([
        (Object::Chain(name("b_input")), chain(base(BaseKind::Filter, Hook::Input, 0), entered)),
        (Object::Chain(name(class)), chain(None, vec![Rule::new([in_blocks], verdict)])),
        (Object::Set(map.clone()), set(Fields::Address(Family::V4), Kind::Verdicts, false)),
        (Object::Set(blocks.clone()), set(Fields::Address(Family::V4), Kind::Set, true)),
        (Object::Element(blocks, Key::Prefix(prefix("192.0.2.0/24"))), Content::Element),
        (of("192.0.2.1"), to_class()),
        (of("192.0.2.2"), to_class()),
    ])
}

#[test]
fn a_chain_that_another_one_takes_the_place_of_gets_its_name_and_its_rules() {
    in_new(|| {
        let mut ours = mirror();
        settle(&mut ours, &judged_by("in_a", Verdict::Drop));
        let first = handle("in_a");
        assert!(first.is_some());
        for (class, verdict) in [("in_b", Verdict::Accept), ("in_a", Verdict::Drop), ("in_c", Verdict::Reject)] {
            let want = judged_by(class, verdict);
            settle(&mut ours, &want);
            assert_eq!(handle(class), first, "{}", shell("nft -a list ruleset"));
            let read = ours.target().view().expect("it can be read");
            assert_eq!(read, want, "{}", shell("nft list ruleset"));
        }
        // What leads there besides makes it another chain, and so does one that stays.
        let mut other = judged_by("in_d", Verdict::Drop);
        let third = Object::Element(name("judged_4"), Key::Address(address("192.0.2.3")));
        other.insert(third, Content::Verdict(Arc::new(Verdict::Jump(name("in_d")))));
        settle(&mut ours, &other);
        assert!(handle("in_d").is_some() && handle("in_d") != first && handle("in_c").is_none());
        assert_eq!(ours.target().view().expect("it can be read"), other);
    });
}

#[test]
fn a_chain_whose_new_rules_are_refused_keeps_its_own_and_gets_its_name_with_others() {
    in_new(|| {
        let mut ours = mirror();
        settle(&mut ours, &judged_by("in_a", Verdict::Drop));
        let before = ours.target().view().expect("it can be read");
        let refused = judged_by("in_b", Verdict::Jump(name("nowhere")));
        for _ in 0..3 {
            ours.mark_all();
            ours.try_at_once();
            ours.transact(&refused, Growth::Full, true, moment());
            assert!(ours.trouble().is_some(), "it is refused");
            let mut read = ours.target().view().expect("it can be read");
            // What comes before the change may be there.
            read.retain(|object, _| before.contains_key(object));
            assert_eq!(read, before);
        }
        for class in ["in_b", "in_a"] {
            let want = judged_by(class, Verdict::Accept);
            ours.try_at_once();
            settle(&mut ours, &want);
            assert_eq!(ours.target().view().expect("it can be read"), want);
        }
    });
}
