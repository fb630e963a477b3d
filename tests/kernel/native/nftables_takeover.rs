//! A table of ours as others left it: with what we never make, and changed before it became ours.

use std::sync::Arc;

use sluice::kernel::nftables::rule::Side;
use sluice::kernel::nftables::{BaseKind, Content, Fields, Hook, Key, Kind, Lookup, Object, Rule, Statement, Verdict};
use sluice::net::Family;
use sluice::reconcile::{Growth, Mirror, Reflection, Target, glance};

use super::moment;
use super::nftables::{Contents, address, base, chain, end, mirror, name, set, settle};
use super::nftables_owner::small;
use crate::namespace::{in_new, run, shell};

/// A table without owner that holds what [`small`] holds.
const RESTORED: &str = "table inet sluice_test {
    set peers_4 { type ipv4_addr; elements = { 10.0.0.1 }; }
    chain b_input { type filter hook input priority 0; policy accept; ip saddr @peers_4 drop; }
}";

/// Commands after which the table holds something in a form that we never make.
const FOREIGN: [&str; 8] = [
    "nft 'add rule inet sluice_test b_input tcp dport 22 jump { accept; }'",
    "nft 'add rule inet sluice_test b_input tcp flags syn accept'",
    "nft 'add rule inet sluice_test b_input ip saddr { 10.9.0.1, 10.9.0.2 } accept'",
    "nft 'add set inet sluice_test theirs_1 { type ipv4_addr; timeout 1h; }
        add rule inet sluice_test b_input ip saddr @theirs_1 accept'",
    "nft 'add chain inet sluice_test theirs_1 { type filter hook input priority 5; policy drop; }'",
    "nft 'add chain inet sluice_test theirs_1 { type filter hook ingress device lo priority 5; }'",
    "nft 'add set inet sluice_test itself_4 { type ipv4_addr . ipv4_addr; elements = { 10.0.0.1 . 10.0.0.2 }; }'",
    "nft 'add set inet sluice_test peers_6 { type ipv6_addr; size 2; }
        add element inet sluice_test peers_6 { fd00::1, fd00::2 }'",
];

/// More than [`small`], with a set that is full where `FOREIGN` made it.
fn more() -> Contents {
    let mut more = small();
    more.insert(Object::Set(name("itself_4")), set(Fields::Addresses(Family::V4), Kind::Set, false));
    more.insert(Object::Set(name("peers_6")), set(Fields::Address(Family::V6), Kind::Set, false));
    for last in 1..=3_u16 {
        let pod = Key::Address(address(&format!("fd00::{last}")));
        more.insert(Object::Element(name("peers_6"), pod), Content::Element);
    }
    more
}

/// Sees that the table holds this and nothing else, also to somebody who has not seen it before.
fn check(mut ours: Mirror<sluice::kernel::nftables::OwnTable>, want: &Contents, why: &str) {
    settle(&mut ours, want);
    assert_eq!(ours.target().read().expect("it can be read"), *want, "{why}");
    settle(&mut ours, &Contents::new());
    assert_eq!(run("nft list ruleset"), "", "{why}");
}

#[test]
fn a_table_with_what_we_never_make_becomes_ours() {
    for command in FOREIGN {
        in_new(|| {
            shell(&format!("nft '{RESTORED}'"));
            shell(command);
            println!("{}", run("nft list ruleset"));
            check(mirror(), &more(), command);
        });
    }
}

#[test]
fn a_table_that_was_left_behind_and_got_what_we_never_make_becomes_ours() {
    for command in FOREIGN {
        in_new(|| {
            let mut first = mirror();
            settle(&mut first, &small());
            end(first);
            shell(command);
            println!("{}", run("nft list ruleset"));
            check(mirror(), &more(), command);
        });
    }
}

/// The table is made anew, while what is not desired has to stay.
#[test]
fn a_rule_that_is_not_understood_stays_in_force_while_nothing_may_go() {
    in_new(|| {
        shell(
            "nft 'table inet sluice_test {
                chain in_theirs { tcp flags syn drop; ip daddr 10.0.0.1 drop; udp length 100 drop comment \"odd one\"; }
                chain b_input { type filter hook input priority 0; policy accept; jump in_theirs; }
            }'",
        );
        let theirs = run("nft list chain inet sluice_test in_theirs");
        let rules = vec![Rule::new([], Verdict::Jump(name("in_theirs")))];
        let want =
            Contents::from([(Object::Chain(name("b_input")), chain(base(BaseKind::Filter, Hook::Input, 1), rules))]);
        let mut ours = mirror();
        ours.mark_all();
        ours.transact(&want, Growth::Full, false, moment());
        assert_eq!(ours.trouble(), None);
        assert!(run("nft list chain inet sluice_test b_input").contains("priority filter + 1"));
        assert_eq!(run("nft list chain inet sluice_test in_theirs"), theirs);
    });
}

/// Objects that we cannot write back unchanged must survive the takeover of the table.
#[test]
fn a_table_is_not_made_anew_without_what_is_not_understood_and_has_to_stay() {
    in_new(|| {
        shell(
            "nft 'table inet sluice_test {
                set theirs_1 { type ipv4_addr; timeout 1h; }
                chain in_theirs { ip saddr @theirs_1 drop; }
                chain b_input { type filter hook input priority 0; policy accept; jump in_theirs; }
            }'",
        );
        let before = run("nft list ruleset");
        let rules = vec![Rule::new([], Verdict::Jump(name("in_theirs")))];
        let want =
            Contents::from([(Object::Chain(name("b_input")), chain(base(BaseKind::Filter, Hook::Input, 1), rules))]);
        let mut ours = mirror();
        ours.mark_all();
        ours.transact(&want, Growth::Full, false, moment());
        let trouble = ours.trouble().expect("it cannot be done").error.clone();
        assert!(trouble.contains("set theirs_1"), "{trouble}");
        assert_eq!(run("nft list ruleset"), before);
        // As soon as everything may go, it does.
        glance(&mut ours, moment());
        ours.try_at_once();
        let want = small();
        check(ours, &want, "what is not understood");
    });
}

#[test]
fn what_happened_while_the_table_was_anothers_is_read_before_it_is_changed() {
    for between in [
        "nft flush ruleset",
        "nft delete table inet sluice_test",
        "nft add rule inet sluice_test b_input accept",
        "nft add element inet sluice_test peers_4 { 10.0.0.99 }",
        "nft flush chain inet sluice_test b_input",
    ] {
        in_new(|| {
            let mut first = mirror();
            settle(&mut first, &small());
            if !first.peek().is_owned() {
                return println!("this kernel knows no owners that leave their tables behind");
            }
            let mut second = mirror();
            settle(&mut second, &small());
            end(first);
            shell(between);
            let mut want = small();
            let drop = Rule::with([], [Statement::Log { group: 1, prefix: "x".into() }], Some(Verdict::Drop));
            want.insert(Object::Chain(name("in_1")), chain(None, vec![drop]));
            want.insert(Object::Element(name("peers_4"), Key::Address(address("10.0.0.7"))), Content::Element);
            second.mark_all();
            second.transact(&want, Growth::Full, true, moment());
            glance(&mut second, moment());
            second.try_at_once();
            second.transact(&want, Growth::Full, true, moment());
            assert!(second.is_settled(), "{between}: {:?}", second.trouble());
            assert!(second.peek().is_owned());
            check(second, &want, between);
        });
    }
}

/// An object that somebody made in the meantime is not taken for one that we made.
#[test]
fn a_chain_that_exists_already_does_not_get_our_rules_behind_its_own() {
    in_new(|| {
        let mut ours = mirror();
        settle(&mut ours, &Contents::new());
        shell(&format!("nft '{RESTORED}'"));
        let lookup = Lookup::Address(Family::V4, Side::Source);
        let map = (Object::Set(name("pods_4")), set(Fields::Address(Family::V4), Kind::Verdicts, false));
        let pod = Object::Element(name("pods_4"), Key::Address(address("10.0.0.1")));
        let rules = vec![Rule::new([], Verdict::Map { lookup, map: name("pods_4") })];
        let want = Contents::from([
            map,
            (pod, Content::Verdict(Arc::new(Verdict::Accept))),
            (Object::Chain(name("b_input")), chain(base(BaseKind::Filter, Hook::Input, 0), rules)),
        ]);
        ours.mark_all();
        ours.transact(&want, Growth::Full, true, moment());
        glance(&mut ours, moment());
        ours.try_at_once();
        check(ours, &want, "a chain that exists already");
    });
}
