//! To whom a table belongs, what others can do to it, and how the next process takes it over.

use std::sync::Arc;

use sluice::kernel::nftables::rule::Side;
use sluice::kernel::nftables::{
    BaseKind, Content, Fields, Hook, Key, Kind, Lookup, Match, Object, OwnTable, Rule, Verdict, probe,
};
use sluice::net::Family;
use sluice::reconcile::{Growth, Reflection, glance};

use super::moment;
use super::nftables::{Contents, TABLE, address, base, chain, end, mirror, name, set, settle};
use crate::namespace::{attempt, in_new, run, shell};

/// A set with an element, and a chain whose rule looks into it.
pub fn small() -> Contents {
    let lookup = Lookup::Address(Family::V4, Side::Source);
    let rule = Rule::new([Match::InSet { lookup, set: name("peers_4"), negated: false }], Verdict::Drop);
    Contents::from([
        (Object::Set(name("peers_4")), set(Fields::Address(Family::V4), Kind::Set, false)),
        (Object::Element(name("peers_4"), Key::Address(address("10.0.0.1"))), Content::Element),
        (Object::Chain(name("b_input")), chain(base(BaseKind::Filter, Hook::Input, 0), vec![rule])),
    ])
}

/// A table like ours, as somebody makes it who knows nothing of owners.
const WITHOUT_OWNER: &str = "table inet sluice_test {
    set peers_4 { type ipv4_addr; elements = { 10.0.0.1, 10.0.0.2 }; }
    chain b_input { type filter hook input priority 0; policy accept; ip saddr @peers_4 drop; }
}";

/// Whether this kernel knows owners that leave their tables behind.
fn knows_owners() -> bool {
    let mut ours = mirror();
    settle(&mut ours, &small());
    let owned = ours.peek().is_owned();
    settle(&mut ours, &Contents::new());
    owned
}

#[test]
fn nobody_else_changes_a_table_of_ours_and_we_change_nobodys() {
    in_new(|| {
        if !knows_owners() {
            return println!("this kernel knows no owners that leave their tables behind");
        }
        shell("nft add table inet sluice_tests; nft add chain inet sluice_tests b_input; nft add table ip sluice_test");
        let mut ours = mirror();
        settle(&mut ours, &small());
        let before = run("nft list table inet sluice_test");
        for command in ["delete table inet sluice_test", "flush table inet sluice_test", "add chain inet sluice_test x"]
        {
            assert!(!attempt(&format!("nft {command}")).0, "{command}");
        }
        assert!(glance(&mut ours, moment()).is_empty());
        let theirs = "table inet sluice_tests {\n\tchain b_input {\n\t}\n}\ntable ip sluice_test {\n}\n";
        assert!(run("nft list ruleset").contains(theirs));
        run("nft flush ruleset");
        assert_eq!(run("nft list table inet sluice_test"), before);
        run("nft add table ip sluice_test");
        settle(&mut ours, &Contents::new());
        assert_eq!(run("nft list ruleset"), "table ip sluice_test {\n}\n");
    });
}

#[test]
fn a_table_outlives_its_process_and_the_next_one_claims_it() {
    in_new(|| {
        let mut first = mirror();
        settle(&mut first, &small());
        let before = run("nft list table inet sluice_test").replace("flags owner", "");
        let owned = first.peek().is_owned();
        let mut second = mirror();
        let mut more = small();
        more.insert(Object::Element(name("peers_4"), Key::Address(address("10.0.0.7"))), Content::Element);
        second.transact(&more, Growth::Full, true, moment());
        assert_eq!(second.is_settled(), !owned, "{:?}", second.trouble());
        if !owned {
            return println!("this kernel knows no owners that leave their tables behind");
        }
        let trouble = second.trouble().expect("it was refused").error.clone();
        assert!(trouble.contains("another process owns the table"), "{trouble}");
        assert!(second.target().take_refused().is_empty(), "no object is at fault");
        end(first);
        assert!(run("nft list table inet sluice_test").contains("10.0.0.1"), "{before}");
        // Its owner is gone: now it may be changed, by whom it is wanted of first.
        glance(&mut second, moment());
        second.try_at_once();
        settle(&mut second, &more);
        assert!(second.peek().is_owned());
        assert_eq!(second.steps_done(), 1);
        assert!(!attempt("nft delete table inet sluice_test").0);
        end(second);
        // Changes by others between the two owners are found by comparing.
        shell("nft delete element inet sluice_test peers_4 { 10.0.0.7 }; nft add rule inet sluice_test b_input accept");
        let mut third = mirror();
        settle(&mut third, &more);
        assert_eq!(third.steps_done(), 2);
        end(third);
        run("nft flush ruleset");
        let mut fourth = mirror();
        settle(&mut fourth, &more);
        assert_eq!(fourth.steps_done(), more.len() as u64);
    });
}

#[test]
fn a_table_that_somebody_restored_becomes_ours_without_being_missed() {
    in_new(|| {
        shell(&format!("nft '{WITHOUT_OWNER}'"));
        let mut ours = mirror();
        settle(&mut ours, &small());
        assert_eq!(ours.steps_done(), 1, "one address too many");
        let (deleted, ..) = attempt("nft delete table inet sluice_test");
        assert_eq!(deleted, !ours.peek().is_owned());
    });
}

#[test]
fn an_empty_table_that_was_left_behind_goes() {
    in_new(|| {
        run("nft add table inet sluice_test");
        let mut ours = mirror();
        settle(&mut ours, &Contents::new());
        assert_eq!(run("nft list ruleset"), "");
    });
}

#[test]
fn what_others_do_to_a_table_without_owner_is_seen_at_a_glance_and_repaired() {
    in_new(|| {
        if knows_owners() {
            return println!("nobody else changes a table of ours here");
        }
        let mut ours = mirror();
        settle(&mut ours, &small());
        assert!(glance(&mut ours, moment()).is_empty());
        for (damage, found) in [
            ("nft add element inet sluice_test peers_4 { 10.0.0.9 }", 1),
            ("nft delete element inet sluice_test peers_4 { 10.0.0.1 }", 1),
            ("nft flush chain inet sluice_test b_input", 1),
            ("nft add rule inet sluice_test b_input tcp flags syn accept", 1),
            ("nft add chain inet sluice_test theirs", 1),
            ("nft add table ip other", 0),
            ("nft delete table inet sluice_test", 3),
        ] {
            shell(damage);
            let drift = glance(&mut ours, moment());
            assert_eq!(drift.len(), found, "{damage}: {drift:?}");
            ours.transact(&small(), Growth::Full, true, moment());
            assert!(ours.is_settled(), "{damage}: {:?}", ours.trouble());
            let mut fresh = sluice::reconcile::Mirror::new(OwnTable::open(TABLE).expect("a socket"));
            settle(&mut fresh, &small());
            assert_eq!(fresh.steps_done(), 0, "{damage}");
        }
    });
}

#[test]
fn this_kernel_can_do_all_and_nothing_is_left_of_the_trial() {
    in_new(|| {
        probe().expect("this kernel has everything");
        assert_eq!(run("nft list ruleset"), "");
    });
}

#[test]
fn an_object_at_fault_is_named_and_without_it_the_rest_is_taken() {
    in_new(|| {
        let mut want = small();
        let bad = Object::Chain(name("in_bad"));
        want.insert(bad.clone(), chain(None, vec![Rule::new([], Verdict::Jump(name("nowhere_1")))]));
        want.insert(Object::Chain(name("in_good")), chain(None, vec![Rule::new([], Verdict::Drop)]));
        let mut ours = mirror();
        ours.transact(&want, Growth::Full, true, moment());
        assert!(!ours.is_settled());
        assert_eq!(run("nft list ruleset"), "");
        let refused = ours.target().take_refused();
        assert_eq!(refused.keys().collect::<Vec<_>>(), [&bad]);
        let trouble = ours.trouble().expect("it was refused").error.clone();
        assert!(trouble.contains("chain in_bad"), "{trouble}");
        want.remove(&bad);
        ours.try_at_once();
        settle(&mut ours, &want);
        assert_eq!(ours.trouble(), None);
        assert!(run("nft list ruleset").contains("chain in_good"));
        // An element of a map can be at fault as well; of several in one message it would be their set that is named at first.
        want.insert(Object::Set(name("pods_4")), set(Fields::Address(Family::V4), Kind::Verdicts, false));
        let to = Content::Verdict(Arc::new(Verdict::Jump(name("nowhere_1"))));
        let element = Object::Element(name("pods_4"), Key::Address(address("10.0.0.1")));
        want.insert(element.clone(), to);
        ours.mark_all();
        ours.transact(&want, Growth::Full, true, moment());
        assert_eq!(ours.target().take_refused().into_keys().collect::<Vec<_>>(), [element]);
    });
}

/// The kernel finds the circle when it judges all rules, which it does with each one behind as well.
#[test]
fn chains_behind_a_circle_are_not_at_fault() {
    in_new(|| {
        let jump = |to: &str| vec![Rule::new([], Verdict::Jump(name(to)))];
        let mut want = small();
        want.insert(Object::Chain(name("b_output")), chain(base(BaseKind::Filter, Hook::Output, 0), jump("in_1")));
        want.insert(Object::Chain(name("in_1")), chain(None, jump("in_2")));
        want.insert(Object::Chain(name("in_2")), chain(None, jump("in_1")));
        want.insert(Object::Chain(name("in_good")), chain(None, vec![Rule::new([], Verdict::Drop)]));
        let mut ours = mirror();
        ours.transact(&want, Growth::Full, true, moment());
        assert_eq!(run("nft list ruleset"), "");
        let refused = ours.target().take_refused();
        assert_eq!(refused.len(), 1, "{refused:?}");
        let circle = [Object::Chain(name("in_1")), Object::Chain(name("in_2"))];
        assert!(refused.keys().all(|object| circle.contains(object)), "{refused:?}");
    });
}

#[test]
fn a_trial_that_fails_for_another_reason_does_not_leave_the_table_open_to_others() {
    in_new(|| {
        run("nft add table inet sluice_test_trial");
        let error = OwnTable::open(TABLE).expect_err("it does not tell").to_string();
        assert!(error.contains("sluice_test_trial"), "{error}");
        assert_eq!(run("nft list ruleset"), "table inet sluice_test_trial {\n}\n");
        run("nft delete table inet sluice_test_trial");
        OwnTable::open(TABLE).expect("now it does");
    });
}
