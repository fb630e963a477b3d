//! Chains and jumps in the real kernel, in both flavours and families, beside rules of others.

use std::collections::BTreeMap;
use std::process::Command;

use sluice::kernel::Name;
use sluice::kernel::iptables::abandoned::OtherVariant;
use sluice::kernel::iptables::{Flavour, Leftovers, Ownership, Piece, Programs, Rules, Table, Tables, detect};
use sluice::net::{Family, PerFamily, Protocol};
use sluice::proxy::local_node::LocalNode;
use sluice::proxy::{guard, masquerade};
use sluice::reconcile::{Drift, Growth, Mirror, Reflection};

use super::moment;
use crate::namespace::{attempt, in_new, own_run, run, shell};

const BOTH: [Flavour; 2] = [Flavour::Legacy, Flavour::NfTables];
const SERVICES: &str = "KUBE-ROUTER-SERVICES";
const SNAT: &str = "KUBE-ROUTER-SNAT";

type Pieces = BTreeMap<Piece, Rules>;

/// Runs the test once for each flavour, each time in a new network namespace with the sets that the rules name.
fn with_each(test: impl Fn(Flavour) + Send + Sync) {
    for flavour in BOTH {
        in_new(|| {
            own_run();
            for (prefix, family) in [("", "inet"), ("inet6:", "inet6")] {
                run(&format!("ipset create {prefix}kube-router-svip hash:ip timeout 0 family {family}"));
                run(&format!("ipset create {prefix}kube-router-svip-prt hash:ip,port timeout 0 family {family}"));
                run(&format!("ipset create {prefix}kube-router-local-ips hash:ip timeout 0 family {family}"));
                run(&format!("ipset create {prefix}kube-router-hairpin hash:ip,port,net family {family}"));
            }
            test(flavour);
        });
    }
}

fn ours() -> Ownership {
    Ownership {
        chains: vec![(Table::Filter, Name::Exact(SERVICES.into())), (Table::Nat, Name::Exact(SNAT.into()))],
        leftovers: Leftovers::Proxy,
    }
}

fn tables(flavour: Flavour) -> Tables {
    Tables::new(PerFamily::from_fn(|_| Some(Programs { flavour, plain: false })), ours())
}

fn mirror(flavour: Flavour) -> Mirror<Tables> {
    Mirror::new(tables(flavour))
}

fn rules(texts: impl IntoIterator<Item = impl AsRef<str>>) -> Rules {
    Rules(texts.into_iter().map(|text| text.as_ref().into()).collect())
}

fn chain(family: Family, table: Table, chain: &str) -> Piece {
    Piece::Chain { family, table, chain: chain.into() }
}

fn jump(family: Family, table: Table, from: &str, to: &str) -> Piece {
    Piece::Jump { family, table, from: from.into(), to: to.into() }
}

/// Everything the service proxy writes, but for the match on IPVS, which this kernel may not have.
fn all() -> Pieces {
    let mut pieces = Pieces::new();
    for family in Family::BOTH {
        pieces.extend(guard::rules(family, &[(Protocol::Tcp, 179)]));
        pieces.extend(masquerade::rules(&node(), false, &[179], family));
        pieces.insert(
            jump(family, Table::Nat, "POSTROUTING", SNAT),
            rules([format!("-m mark --mark 0x1/0x1 -j {SNAT}")]),
        );
    }
    pieces
}

fn node() -> LocalNode {
    let parse = |text: &str| text.parse().expect("a prefix");
    LocalNode {
        address: PerFamily { v4: "192.0.2.1".parse().ok(), v6: "2001:db8::1".parse().ok() },
        pod_cidrs: PerFamily {
            v4: vec![parse("10.244.0.0/24")],
            v6: vec![parse("fd00:10:244::/64"), parse("fd00:10:244:1::/64")],
        },
        ..LocalNode::default()
    }
}

fn program(flavour: Flavour, family: Family, rest: &str) -> String {
    let six = if family == Family::V6 { "6" } else { "" };
    let flavour = if flavour == Flavour::Legacy { "legacy" } else { "nft" };
    format!("ip{six}tables-{flavour}{rest}")
}

/// Lines of `iptables-save`, without its comments, which name the time.
fn saved(flavour: Flavour, family: Family, options: &str) -> Vec<String> {
    let text = run(&program(flavour, family, &format!("-save {options}")));
    text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
}

/// The rules of a chain, without `-A CHAIN`.
fn chain_rules(flavour: Flavour, family: Family, table: &str, chain: &str) -> Vec<String> {
    let head = format!("-A {chain} ");
    let lines = saved(flavour, family, &format!("-t {table}"));
    lines.iter().filter_map(|line| line.strip_prefix(&head)).map(str::to_owned).collect()
}

fn settle(mirror: &mut Mirror<Tables>, want: &Pieces) {
    mirror.mark_all();
    mirror.grow(want, Growth::Full, moment());
    mirror.shrink(want, moment());
    assert!(mirror.is_settled(), "{:?}", mirror.trouble());
}

#[test]
fn every_rule_is_printed_as_it_was_written_so_a_restart_writes_nothing() {
    with_each(|flavour| {
        let want = all();
        settle(&mut mirror(flavour), &want);
        let mut again = mirror(flavour);
        again.grow(&want, Growth::Full, moment());
        assert_eq!(again.seen(), Some(&want), "{flavour}");
        settle(&mut again, &want);
        assert_eq!(again.steps_done(), 0, "{flavour}");
    });
}

#[test]
fn cleanup_leaves_what_was_there_before() {
    with_each(|flavour| {
        let mut mirror = mirror(flavour);
        for family in Family::BOTH {
            run(&program(flavour, family, " -t filter -A INPUT -p tcp -j ACCEPT"));
            run(&program(flavour, family, " -t nat -A POSTROUTING -o lo -j ACCEPT"));
        }
        let before = Family::BOTH.map(|family| saved(flavour, family, ""));
        settle(&mut mirror, &all());
        assert_ne!(Family::BOTH.map(|family| saved(flavour, family, "")), before);
        settle(&mut mirror, &Pieces::new());
        assert_eq!(Family::BOTH.map(|family| saved(flavour, family, "")), before, "{flavour}");
    });
}

#[test]
fn foreign_rules_keep_their_places_and_their_counters() {
    with_each(|flavour| {
        let foreign = "*filter\n:INPUT ACCEPT [0:0]\n:FOREIGN - [0:0]\n\
            [5:500] -A INPUT -s 203.0.113.1/32 -j DROP\n[6:600] -A INPUT -p tcp -j FOREIGN\n[7:700] -A FOREIGN -j RETURN\nCOMMIT\n";
        shell(&format!("printf '{foreign}' | {}", program(flavour, Family::V4, "-restore --noflush --counters")));
        let counted = || {
            let lines = saved(flavour, Family::V4, "-t filter -c");
            lines.into_iter().filter(|line| line.contains("] -A") && !line.contains(SERVICES)).collect::<Vec<_>>()
        };
        let before = counted();
        assert_eq!(before.len(), 3, "{before:?}");
        let mut mirror = mirror(flavour);
        settle(&mut mirror, &all());
        assert_eq!(counted(), before, "{flavour}");
        // A change, then the end.
        let mut fewer = all();
        fewer.insert(chain(Family::V4, Table::Filter, SERVICES), rules(["-j RETURN"]));
        settle(&mut mirror, &fewer);
        assert_eq!(counted(), before, "{flavour}");
        settle(&mut mirror, &Pieces::new());
        assert_eq!(counted(), before, "{flavour}");
    });
}

#[test]
fn the_jump_of_an_earlier_slot_stays_first_and_one_that_was_pushed_down_comes_back() {
    with_each(|flavour| {
        let input = || chain_rules(flavour, Family::V4, "filter", "INPUT");
        run(&program(flavour, Family::V4, " -N KUBE-ROUTER-INPUT"));
        run(&program(flavour, Family::V4, " -A INPUT -j KUBE-ROUTER-INPUT"));
        run(&program(flavour, Family::V4, " -A INPUT -s 203.0.113.1/32 -j DROP"));
        let want = all();
        let mut mirror = mirror(flavour);
        settle(&mut mirror, &want);
        let Some(Rules(guard)) = want.get(&jump(Family::V4, Table::Filter, "INPUT", SERVICES)) else {
            panic!("the jump is wanted")
        };
        let [guard] = guard.as_slice() else { panic!("a jump is one rule") };
        let guard = guard.to_string();
        let right = ["-j KUBE-ROUTER-INPUT", guard.as_str(), "-s 203.0.113.1/32 -j DROP"];
        assert_eq!(input(), right, "{flavour}");

        run(&program(flavour, Family::V4, " -I INPUT 2 -s 203.0.113.2/32 -j DROP"));
        let drift = mirror.audit(moment()).drift;
        assert!(matches!(drift.as_slice(), [Drift::Different(_)]), "{drift:?}");
        settle(&mut mirror, &want);
        let right = [right[0], right[1], "-s 203.0.113.2/32 -j DROP", right[2]];
        assert_eq!(input(), right, "{flavour}");
    });
}

#[test]
fn what_somebody_deletes_or_edits_or_adds_is_found_by_the_audit_and_repaired() {
    with_each(|flavour| {
        let want = all();
        let mut mirror = mirror(flavour);
        settle(&mut mirror, &want);
        assert_eq!(mirror.audit(moment()).drift, []);
        let right = Family::BOTH.map(|family| saved(flavour, family, ""));

        run(&program(flavour, Family::V4, " -F INPUT"));
        run(&program(flavour, Family::V6, &format!(" -D {SERVICES} 1")));
        run(&program(flavour, Family::V4, &format!(" -t nat -A {SNAT} -j ACCEPT")));
        run(&program(flavour, Family::V6, &format!(" -A FORWARD -j {SERVICES}")));
        let mut drift: Vec<String> = mirror.audit(moment()).drift.iter().map(|drift| format!("{drift:?}")).collect();
        drift.sort();
        assert_eq!(
            drift,
            [
                r#"Different("IPv4 nat KUBE-ROUTER-SNAT")"#,
                r#"Different("IPv6 filter KUBE-ROUTER-SERVICES")"#,
                r#"Missing("IPv4 filter INPUT to KUBE-ROUTER-SERVICES")"#,
                r#"Unexpected("IPv6 filter FORWARD to KUBE-ROUTER-SERVICES")"#,
            ]
        );
        settle(&mut mirror, &want);
        assert_eq!(Family::BOTH.map(|family| saved(flavour, family, "")), right, "{flavour}");
    });
}

#[test]
fn a_refused_rule_fails_its_table_and_says_why_and_the_other_table_is_served() {
    with_each(|flavour| {
        let mut want = all();
        let bad = rules(["-m set --match-set there-is-none dst -j ACCEPT"]);
        want.insert(chain(Family::V4, Table::Filter, SERVICES), bad);
        let mut mirror = mirror(flavour);
        mirror.grow(&want, Growth::Full, moment());
        let trouble = mirror.trouble().expect("the set does not exist");
        assert_eq!(trouble.objects, 2, "{trouble:?}");
        assert!(trouble.error.contains("there-is-none"), "{trouble:?}");
        assert_eq!(chain_rules(flavour, Family::V4, "filter", "INPUT"), [""; 0]);
        assert_eq!(chain_rules(flavour, Family::V4, "nat", "POSTROUTING").len(), 1);
        assert_eq!(chain_rules(flavour, Family::V6, "filter", "INPUT").len(), 1);
        // Once the set is there the next try brings it about.
        run("ipset create there-is-none hash:ip");
        let mut later = moment();
        later.now += std::time::Duration::from_secs(60);
        mirror.grow(&want, Growth::Full, later);
        assert!(mirror.is_settled(), "{:?}", mirror.trouble());
        assert_eq!(chain_rules(flavour, Family::V4, "filter", "INPUT").len(), 1);
    });
}

#[test]
fn a_chain_that_a_foreign_rule_jumps_to_stays_and_everything_else_goes() {
    with_each(|flavour| {
        let mut mirror = mirror(flavour);
        settle(&mut mirror, &all());
        run(&program(flavour, Family::V4, " -N FOREIGN"));
        run(&program(flavour, Family::V4, &format!(" -A FOREIGN -j {SERVICES}")));
        mirror.mark_all();
        mirror.shrink(&Pieces::new(), moment());
        let trouble = mirror.trouble().expect("the chain is in use");
        assert_eq!((trouble.objects, trouble.error.contains(SERVICES)), (1, true), "{trouble:?}");
        let left: Vec<String> = Family::BOTH
            .iter()
            .flat_map(|family| saved(flavour, *family, ""))
            .filter(|line| line.contains("KUBE-ROUTER"))
            .collect();
        assert!(left.iter().all(|line| !line.contains(SNAT) && !line.starts_with("-A INPUT")), "{left:?}");
    });
}

#[test]
fn a_rule_in_another_spelling_is_written_once() {
    with_each(|flavour| {
        let odd =
            ["-s 10.244.0.1 -p tcp --dport 80 -j RETURN", "-p icmp --icmp-type echo-request -j ACCEPT", "-j RETURN"];
        let want = Pieces::from([(chain(Family::V4, Table::Filter, SERVICES), rules(odd))]);
        let mut mirror = mirror(flavour);
        settle(&mut mirror, &want);
        assert_ne!(chain_rules(flavour, Family::V4, "filter", SERVICES), odd);
        assert_eq!(mirror.audit(moment()).drift, [], "{flavour}");
        mirror.forget();
        settle(&mut mirror, &want);
        assert_eq!(mirror.steps_done(), 1, "{flavour}");
    });
}

#[test]
fn a_family_without_programs_fails_alone() {
    with_each(|flavour| {
        let programs = PerFamily { v4: Some(Programs { flavour, plain: false }), v6: None };
        let mut mirror = Mirror::new(Tables::new(programs, ours()));
        mirror.grow(&all(), Growth::Full, moment());
        let trouble = mirror.trouble().expect("IPv6 rules cannot be written");
        assert_eq!(trouble.objects, 4);
        assert_eq!(chain_rules(flavour, Family::V4, "filter", "INPUT").len(), 1);
    });
}

#[test]
fn a_table_that_iptables_cannot_print_is_not_taken_for_an_empty_one() {
    in_new(|| {
        run("iptables-nft -A INPUT -j ACCEPT");
        run("ip6tables-nft -A INPUT -j ACCEPT");
        run("nft add rule ip filter INPUT ip ttl 5 fib saddr oif 0 drop");
        run("nft add rule ip6 filter INPUT ip6 hoplimit 5 fib saddr oif 0 drop");
        let only_filter = Ownership { chains: ours().chains.into_iter().take(1).collect(), leftovers: Leftovers::None };
        let programs = PerFamily::from_fn(|_| Some(Programs { flavour: Flavour::NfTables, plain: false }));
        let mut mirror = Mirror::new(Tables::new(programs, only_filter));
        mirror.grow(&Pieces::new(), Growth::Full, moment());
        assert!(mirror.seen().is_none());
        let error = &mirror.trouble().expect("nothing is known about the table").error;
        assert!(error.contains("iptables cannot express"), "{error}");
    });
}

#[test]
fn the_lock_of_another_program_is_waited_for_and_not_for_ever() {
    in_new(|| {
        own_run();
        run("ipset create kube-router-hairpin hash:ip,port,net");
        let lock = std::fs::File::create("/run/xtables.lock").expect("a lock file");
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("the lock");
        let mut pieces = all();
        pieces.retain(|piece, _| matches!(piece, Piece::Chain { family: Family::V4, table: Table::Nat, .. }));
        let mut mirror = mirror(Flavour::Legacy);
        mirror.grow(&pieces, Growth::Full, moment());
        let error = &mirror.trouble().expect("the lock is held").error;
        assert!(error.contains("xtables lock"), "{error}");
        drop(lock);
        let mut later = moment();
        later.now += std::time::Duration::from_secs(60);
        mirror.grow(&pieces, Growth::Full, later);
        assert!(mirror.is_settled(), "{:?}", mirror.trouble());
    });
}

#[test]
fn the_hosts_flavour_is_found_by_the_kubelets_hint_and_the_other_ones_leftovers_too() {
    for flavour in BOTH {
        in_new(|| {
            own_run();
            let other = if flavour == Flavour::Legacy { Flavour::NfTables } else { Flavour::Legacy };
            for number in 0..3 {
                run(&program(other, Family::V4, &format!(" -A INPUT -s 203.0.113.{number} -j DROP")));
            }
            run(&program(other, Family::V4, &format!(" -t nat -N {SNAT}")));
            let before = detect(&ours());
            assert_eq!(before.programs.v4, Some(Programs { flavour: other, plain: false }), "more rules");
            assert_eq!(before.abandoned, PerFamily::default());

            run(&program(flavour, Family::V6, " -t mangle -N KUBE-IPTABLES-HINT"));
            let after = detect(&ours());
            assert_eq!(after.programs, PerFamily::from_fn(|_| Some(Programs { flavour, plain: false })), "the hint");
            assert_eq!(after.abandoned, PerFamily { v4: Some(Programs { flavour: other, plain: false }), v6: None });
            assert_eq!(after.disabled, [""; 0]);

            let mut left = OtherVariant::of(&after, ours());
            // An agent that still runs puts its rules back.
            for puts_back in [Some(Family::V6), Some(Family::V4), None] {
                assert!(left.is_there());
                assert_eq!(left.remove(), None);
                assert_eq!(detect(&ours()).abandoned, PerFamily::default());
                if let Some(family) = puts_back {
                    run(&program(other, family, &format!(" -t nat -N {SNAT}")));
                }
            }
            assert!(!left.is_there() && left.remove().is_none());
        });
    }
}

#[test]
fn detection_changes_nothing() {
    in_new(|| {
        let (_, before, _) = attempt("nft list ruleset");
        let detected = detect(&ours());
        assert!(detected.programs.v4.is_some() && detected.programs.v6.is_some(), "{detected:?}");
        assert_eq!(attempt("nft list ruleset").1, before);
        assert_eq!(std::fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default(), "");
    });
}

#[test]
fn what_kube_router_wrote_is_adopted_untouched() {
    with_each(|flavour| {
        let iptables = |rest: &str| {
            shell(&format!("{} {rest}", program(flavour, Family::V4, "")));
        };
        iptables(&format!("-N {SERVICES}"));
        for (kind, comment) in [
            ("echo-request", "allow icmp echo requests"),
            ("destination-unreachable", "allow icmp destination unreachable messages"),
            ("time-exceeded", "allow icmp time exceeded messages"),
        ] {
            iptables(&format!("-A {SERVICES} -m comment --comment '{comment}' -p icmp --icmp-type {kind} -j ACCEPT"));
        }
        iptables(&format!(
            "-A {SERVICES} -m comment --comment 'allow input traffic to ipvs services' \
             -m set --match-set kube-router-svip-prt dst,dst -j ACCEPT"
        ));
        iptables(&format!(
            "-A {SERVICES} -m comment --comment 'reject all unexpected traffic to service IPs' \
             -m set ! --match-set kube-router-local-ips dst -j REJECT --reject-with icmp-port-unreachable"
        ));
        iptables(&format!(
            "-I INPUT 1 -m comment --comment 'handle traffic to IPVS service IPs in custom chain' \
             -m set --match-set kube-router-svip dst -j {SERVICES}"
        ));
        let mut mirror = mirror(flavour);
        settle(&mut mirror, &guard::rules(Family::V4, &[]));
        assert_eq!(mirror.steps_done(), 0, "{flavour}: {:?}", mirror.seen());
        // The rules for speakers, which kube-router does not have, change the chain once, and the jump to it stays.
        settle(&mut mirror, &guard::rules(Family::V4, &[(Protocol::Tcp, 179)]));
        assert_eq!(mirror.steps_done(), 1, "{flavour}: {:?}", mirror.seen());
    });
}

#[test]
fn rules_settle_while_somebody_else_keeps_changing_the_same_tables() {
    with_each(|flavour| {
        let add = program(flavour, Family::V4, " -w 5 -I INPUT -s 203.0.113.1/32 -j DROP");
        let delete = program(flavour, Family::V4, " -w 5 -D INPUT -s 203.0.113.1/32 -j DROP");
        let script = format!("i=0; while [ $i -lt 60 ]; do {add} && {delete} || exit 1; i=$((i+1)); done");
        let mut other = Command::new("sh").arg("-c").arg(script).spawn().expect("start sh");
        let (all, none) = (all(), Pieces::new());
        let mut mirror = mirror(flavour);
        let mut at = moment();
        while other.try_wait().expect("it is our child").is_none() {
            for want in [&all, &none] {
                // A jump may land behind a rule that came in between; only its place is then wrong.
                at.now += std::time::Duration::from_secs(60);
                mirror.mark_all();
                mirror.grow(want, Growth::Full, at);
                mirror.shrink(want, at);
                assert!(mirror.is_settled(), "{flavour}: {:?}", mirror.trouble());
                mirror.audit(at);
            }
        }
        assert!(other.wait().expect("it is our child").success(), "a foreign change failed");
        settle(&mut mirror, &all);
        assert_eq!(mirror.audit(moment()).drift, [], "{flavour}");
        assert_eq!(chain_rules(flavour, Family::V4, "filter", "INPUT").len(), 1, "{flavour}");
    });
}

/// Inside [`in_new`]: leaves only these programs of iptables on the machine, as links to where they really are.
fn only_these_programs(links: &[(&str, &str)]) {
    own_run();
    run("mkdir /run/real");
    run("mount --bind /usr/sbin /run/real");
    run("mount -t tmpfs programs /usr/sbin");
    for (name, program) in links {
        run(&format!("ln -s /run/real/{program} /usr/sbin/{name}"));
    }
}

#[test]
fn a_host_with_programs_of_one_flavour_uses_that() {
    in_new(|| {
        only_these_programs(&[("iptables-legacy-save", "xtables-legacy-multi"), ("iptables", "xtables-nft-multi")]);
        let detected = detect(&ours());
        let legacy = Programs { flavour: Flavour::Legacy, plain: false };
        assert_eq!(detected.programs, PerFamily { v4: Some(legacy), v6: None });
        assert_eq!(detected.disabled, ["no IPv6 rules: the program ip6tables-legacy-save is not installed"]);
    });
}

#[test]
fn a_host_with_plain_programs_uses_them() {
    in_new(|| {
        let all = ["iptables", "iptables-save", "iptables-restore", "ip6tables-save", "ip6tables-restore"];
        only_these_programs(&all.map(|name| (name, "xtables-nft-multi")));
        let detected = detect(&ours());
        let plain = Programs { flavour: Flavour::NfTables, plain: true };
        assert_eq!(detected.programs, PerFamily { v4: Some(plain), v6: Some(plain) });
        assert_eq!(detected.disabled, [""; 0]);
        let want: Pieces = masquerade::rules(&node(), true, &[179], Family::V6)
            .into_iter()
            .filter(|(piece, _)| matches!(piece, Piece::Chain { .. }))
            .collect();
        let mut mirror = Mirror::new(Tables::new(detected.programs, ours()));
        settle(&mut mirror, &want);
        assert!(run("/run/real/ip6tables-nft-save -t nat").contains(":KUBE-ROUTER-SNAT - "));
    });
}

#[test]
fn a_host_without_programs_says_so_once_for_each_family() {
    in_new(|| {
        only_these_programs(&[]);
        let detected = detect(&ours());
        assert_eq!(detected.programs, PerFamily::default());
        assert_eq!(
            detected.disabled,
            [
                "no IPv4 rules: the program iptables-save is not installed",
                "no IPv6 rules: the program ip6tables-save is not installed"
            ]
        );
    });
}

#[test]
fn a_match_that_the_kernel_lacks_is_told_by_its_module_and_where_to_get_it() {
    const RULE: &str = "-m ipvs --ipvs -j ACCEPT";
    with_each(|flavour| {
        let program = if flavour == Flavour::Legacy { "iptables-legacy" } else { "iptables-nft" };
        run(&format!("{program} -t nat -N PROBE"));
        let (kernel_has_it, ..) = attempt(&format!("{program} -t nat -A PROBE {RULE}"));
        let wanted = Pieces::from([(chain(Family::V4, Table::Nat, SNAT), rules([RULE]))]);
        let mut mirror = mirror(flavour);
        mirror.mark_all();
        mirror.grow(&wanted, Growth::Full, moment());
        let told = mirror.trouble().map(|trouble| trouble.error.clone()).unwrap_or_default();
        if kernel_has_it {
            assert_eq!(told, "");
        } else {
            let (_, rest) =
                told.split_once("the kernel has no xt_ipvs: ").unwrap_or_else(|| panic!("{flavour:?}: {told}"));
            assert!(rest.len() > 20, "{told}");
        }
    });
}
