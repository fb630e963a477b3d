//! kill -9 at every step of an apply, and a fresh start behind it, on the real kernel, both flavours of iptables and nftables, both
//! families.
//!
//! The process that dies is one of its own: this test program once more, with the kernel's families wrapped so that it
//! kills itself before its n-th step. A step is one set, one element, one run of `iptables-restore`, or one of the transactions of a change. For every n until
//! the process comes to its end: right after its death nothing is open that is closed before and after the change, and
//! nothing is closed that is open before and after; then a fresh start, with no memory, brings about what is wanted.
//!
//! The program that restores rules may die with us: it reads a whole script or none, from a file in memory, and commits it
//! at the end. What it does with a script that breaks off is tried as well.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is how a test says so")]
#![allow(clippy::indexing_slicing, reason = "a test that panics has failed, which is how a test says so")]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::process::{Signal, getpid, kill_process};
use sluice::firewall::frames::FrameTable;
use sluice::firewall::iptables::apply::{Kernel, Mirrors, Refusing, Targets, Timed};
use sluice::firewall::iptables::desired::Desired;
use sluice::firewall::iptables::linux::{self, Linux};
use sluice::firewall::iptables::lowering::Lowering;
use sluice::firewall::nftables;
use sluice::firewall::nftables::desired::Desired as DesiredTable;
use sluice::firewall::nftables::lowering::Lowering as TableLowering;
use sluice::firewall::plan::Plan;
use sluice::firewall::rules::RuleSet;
use sluice::firewall::verdict::verdict;
use sluice::kernel::ipset::{Elements, Sets};
use sluice::kernel::iptables::{Flavour, Refusal, Tables, Timing};
use sluice::kernel::nftables::{Content, Object, OwnTable, transactions};
use sluice::kernel::sysctl::Settings;
use sluice::model::{
    Authority, Namespace, Namespaces, ObjectName, Operator, Peer, Peers, Ports, Requirement, Selector, World,
};
use sluice::net::{Family, PerFamily};
use sluice::reconcile::{Failure, Moment, Phase, Step, Target};

use super::enforcer::{Filter, until_nobody_owns_the_table};
use super::firewall::{
    BOTH, BOTH_FAMILIES, PODS, PROTOCOLS, app, block, config, egress, from_app, ingress, packet, places, programs,
    put_pod, rule, told_ways, ways, world,
};
use super::moment;
use super::places::{Places, Try};
use crate::namespace::{in_new, own_run, shell};

/// A change that is interrupted.
struct Change {
    name: &'static str,
    default_deny: bool,
    /// Policies in force before the change, of which objects may be left.
    earlier: Option<World>,
    /// Several objects change at once: for pods that moved themselves, what is open before and afterwards may be closed
    /// meanwhile. Nothing is ever open.
    moves_several: bool,
    /// `None` where nothing of ours is in the kernel.
    before: Option<World>,
    after: Option<World>,
}

/// Environment variable with the order to the process that is killed: flavour, number of the change, number of the step.
const ORDER: &str = "SLUICE_TEST_DEATH";
/// In place of the number of a step: the process is killed from outside.
const FOR_EVER: &str = "for ever";
/// The change that is about most objects.
const MOST: &str = "other policies, labels and pods";
/// The changes that fill so large sets that they come in several transactions.
const LARGE: [&str; 2] = ["first policies of a large cluster", "a policy for a large cluster"];
/// Pods of other nodes, each with an address of both families, in sets of their own: more than one portion of elements.
const FAR_PODS: usize = 9000;
/// Transactions that fill such sets, before the one by which packets come to them.
const PORTIONS: u64 = 2;
/// More steps than any of the changes has.
const MANY: u64 = 400;

#[test]
fn a_first_start_may_die_at_any_step_with_legacy_tables() {
    every_death(Filter::Iptables(Flavour::Legacy), "first policies");
}

#[test]
fn a_first_start_may_die_at_any_step_with_nf_tables() {
    every_death(Filter::Iptables(Flavour::NfTables), "first policies");
}

#[test]
fn any_change_may_die_at_any_step_with_nftables() {
    let changes = changes();
    let small = changes.iter().filter(|change| !LARGE.contains(&change.name));
    small.for_each(|change| every_death(Filter::Nftables, change.name));
}

/// A pod comes under its policies in all directions and families at once, whatever stands half made beside it.
#[test]
fn a_large_change_may_die_between_its_transactions_with_nftables_and_no_pod_is_half_isolated() {
    LARGE.iter().for_each(|name| every_death(Filter::Nftables, name));
}

#[test]
fn a_change_may_die_at_any_step_with_legacy_tables() {
    every_death(Filter::Iptables(Flavour::Legacy), "other policies, labels and pods");
}

#[test]
fn a_change_may_die_at_any_step_with_nf_tables() {
    every_death(Filter::Iptables(Flavour::NfTables), "other policies, labels and pods");
}

#[test]
fn closing_by_default_may_die_at_any_step() {
    iptables().into_iter().for_each(|filter| every_death(filter, "closed by default from the start"));
}

#[test]
fn a_new_pod_where_addresses_are_closed_by_default_may_die_at_any_step() {
    iptables().into_iter().for_each(|filter| every_death(filter, "a pod comes and one goes, closed by default"));
}

#[test]
fn a_change_of_a_namespaces_labels_may_die_at_any_step() {
    iptables().into_iter().for_each(|filter| every_death(filter, "a namespace with other labels"));
}

#[test]
fn a_policy_that_comes_back_finds_what_it_left_and_may_die_at_any_step() {
    iptables().into_iter().for_each(|filter| every_death(filter, "a policy that comes back to what it left"));
}

#[test]
fn the_last_policies_and_a_cleanup_may_die_at_any_step() {
    for filter in iptables() {
        every_death(filter, "no policy any more");
        every_death(filter, "cleanup");
    }
}

#[test]
fn a_script_that_breaks_off_changes_nothing() {
    in_new(|| {
        own_run();
        for flavour in ["legacy", "nft"] {
            let whole = "*filter\n:OURS - [0:0]\n-A OURS -s 10.244.0.1/32 -j DROP\n-I FORWARD 1 -j OURS\nCOMMIT\n";
            let lines: Vec<&str> = whole.split_inclusive('\n').collect();
            for kept in 0..lines.len() {
                let part = lines[..kept].concat();
                shell(&format!("printf '{part}' | iptables-{flavour}-restore --noflush 2>&1; true"));
                assert!(!shell(&format!("iptables-{flavour}-save -t filter")).contains("OURS"), "{flavour}: {part}");
            }
            shell(&format!("printf '{whole}' | iptables-{flavour}-restore --noflush"));
            assert!(shell(&format!("iptables-{flavour}-save -t filter")).contains("-A FORWARD -j OURS"));
        }
    });
}

/// The process that dies. Without an order there is nothing for it to do.
#[test]
#[ignore = "the part of the other tests that is killed; they run it"]
fn a_process_that_dies() {
    let order = std::env::var(ORDER).expect("only the other tests run this");
    let words: Vec<&str> = order.split(',').collect();
    let change = changes().swap_remove(words[1].parse().unwrap());
    if words[2] == FOR_EVER {
        turns_for_ever([&change.after, &change.before].map(|world| world.as_ref().expect("a World")));
    }
    let left = Rc::new(Cell::new(words[2].parse().unwrap()));
    let filter = Filter::ALL.into_iter().find(|filter| word(*filter) == words[0]).expect("one of them");
    bring_about(filter, &change.after, change.default_deny, Some(left));
}

/// Changes the table from one World to another and back, until somebody ends it.
fn turns_for_ever(worlds: [&World; 2]) -> ! {
    let mut mirrors = nftables::apply::Mirrors::new(nftables::linux::open_for_cleanup().unwrap());
    let (mut plan, mut lowering) = (Plan::new(), TableLowering::new(config(false), BOTH_FAMILIES));
    loop {
        for world in worlds {
            let changed = plan.update(world);
            mirrors.mark(&lowering.update(plan.rules(), world, &changed));
            mirrors.round(lowering.desired(), Authority::Complete, moment());
            assert!(mirrors.is_settled(), "one round is enough");
        }
    }
}

#[test]
fn a_process_may_be_killed_at_any_moment_with_nftables() {
    let (number, change) =
        changes().into_iter().enumerate().find(|(_, change)| change.name == MOST).expect("one of them");
    in_new(|| {
        own_run();
        let places = places();
        let rules = [&change.before, &change.after].map(|world| rules_of(world.as_ref()));
        bring_about(Filter::Nftables, &change.after, false, None);
        let wanted = saved(Filter::Nftables);
        for kill in 0..12 {
            let mut turning =
                dying(Filter::Nftables, number, FOR_EVER).spawn().expect("this program can be started again");
            std::thread::sleep(Duration::from_millis(150 + kill * 7));
            turning.kill().expect("it runs");
            let status = turning.wait().expect("it ends");
            assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "it ran until then");
            let told = format!("killed for the time {kill}");
            check(&places, &change, &rules, &told, &[0, 1]);
            bring_about(Filter::Nftables, &change.after, false, None);
            check(&places, &change, &rules, &format!("{told}, and a fresh start"), &[1]);
            assert_eq!(saved(Filter::Nftables), wanted, "{told}, and a fresh start");
        }
    });
}

fn iptables() -> [Filter; 2] {
    BOTH.map(Filter::Iptables)
}

fn word(filter: Filter) -> &'static str {
    match filter {
        Filter::Iptables(Flavour::Legacy) => "legacy",
        Filter::Iptables(Flavour::NfTables) => "iptables-nft",
        Filter::Nftables => "nftables",
    }
}

fn every_death(filter: Filter, name: &str) {
    let (number, change) =
        changes().into_iter().enumerate().find(|(_, change)| change.name == name).expect("one of them");
    in_new(|| {
        own_run();
        let places = places();
        let rules = [&change.before, &change.after].map(|world| rules_of(world.as_ref()));
        let wanted = {
            bring_about(filter, &change.after, change.default_deny, None);
            saved(filter)
        };
        for step in 0..MANY {
            if let Some(earlier) = &change.earlier {
                bring_about(filter, &Some(earlier.clone()), change.default_deny, None);
                one_round(filter, change.before.as_ref().expect("a World"), change.default_deny);
            } else {
                bring_about(filter, &change.before, change.default_deny, None);
            }
            let died = dies(filter, number, step);
            let told = format!("{filter:?}, {name}, dead before step {step}");
            if died && LARGE.contains(&name) {
                check_one_of_both(&places, &rules, &told);
            }
            check(&places, &change, &rules, &told, if died { &[0, 1] } else { &[1] });
            if !died {
                let least = match filter {
                    Filter::Nftables if LARGE.contains(&name) => PORTIONS + 1,
                    Filter::Nftables => 1,
                    Filter::Iptables(_) => 3,
                };
                assert!(step >= least, "{told}: there are hardly any steps");
                return;
            }
            bring_about(filter, &change.after, change.default_deny, None);
            check(&places, &change, &rules, &format!("{told}, and a fresh start"), &[1]);
            assert_eq!(saved(filter), wanted, "{told}, and a fresh start");
        }
        panic!("{name} has no end");
    });
}

/// Runs the process with the order to die before a step. False where it came to its end.
fn dies(filter: Filter, change: usize, step: u64) -> bool {
    let done = dying(filter, change, &step.to_string()).output().expect("this program can be started again");
    let killed = done.status.signal() == Some(Signal::KILL.as_raw());
    let said = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(killed || done.status.success() && said.contains("1 passed"), "{:?}: {said}", done.status);
    killed
}

/// The process with the order to die before a step.
fn dying(filter: Filter, change: usize, step: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["native::firewall_crash::a_process_that_dies", "--exact", "--ignored", "--nocapture"]);
    command.env(ORDER, format!("{},{change},{step}", word(filter))).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Brings a World, or nothing, into the kernel, with no memory of what was. `left`: how many steps there are before the end.
fn bring_about(filter: Filter, world: &Option<World>, default_deny: bool, left: Option<Rc<Cell<u64>>>) {
    let left = left.unwrap_or_else(|| Rc::new(Cell::new(u64::MAX)));
    let Filter::Iptables(flavour) = filter else {
        return bring_about_in_table(world, default_deny, left);
    };
    let mut mirrors = mortal(flavour, left);
    let mut lowering = Lowering::new(config(default_deny), BOTH_FAMILIES);
    if let Some(world) = world {
        let mut plan = Plan::new();
        let changed = plan.update(world);
        mirrors.mark(&lowering.update(plan.rules(), world, &changed));
    }
    let nothing = Desired::default();
    let desired = world.as_ref().map_or(&nothing, |_| lowering.desired());
    let mut at = moment();
    for _ in 0..10 {
        mirrors.round(desired, Authority::Complete, at);
        if mirrors.is_settled() {
            return;
        }
        at = Moment { now: mirrors.retry_at().unwrap_or_else(Instant::now) + Duration::from_millis(1), jitter: 0 };
    }
    panic!("it does not settle");
}

/// The same with nftables.
fn bring_about_in_table(world: &Option<World>, default_deny: bool, left: Rc<Cell<u64>>) {
    // A process that was killed may own it for a moment.
    until_nobody_owns_the_table();
    let nftables::apply::Targets { kernel, settings, frames, groups, table } =
        nftables::linux::open_for_cleanup().unwrap();
    let (kernel, table) = (Mortal { inner: kernel, left: left.clone() }, Mortal { inner: table, left });
    let mut mirrors =
        nftables::apply::Mirrors::new(nftables::apply::Targets { kernel, settings, frames, groups, table });
    let mut lowering = TableLowering::new(config(default_deny), BOTH_FAMILIES);
    if let Some(world) = world {
        let mut plan = Plan::new();
        let changed = plan.update(world);
        mirrors.mark(&lowering.update(plan.rules(), world, &changed));
    }
    let nothing = DesiredTable::default();
    let desired = world.as_ref().map_or(&nothing, |_| lowering.desired());
    mirrors.round(desired, Authority::Complete, moment());
    assert!(mirrors.is_settled(), "one round is enough");
    drop(mirrors);
    until_nobody_owns_the_table();
}

/// The program ends before it removes what nobody enters any more. With nftables there is nothing of the kind.
fn one_round(filter: Filter, world: &World, default_deny: bool) {
    let Filter::Iptables(flavour) = filter else {
        return bring_about(filter, &Some(world.clone()), default_deny, None);
    };
    let mut mirrors = mortal(flavour, Rc::new(Cell::new(u64::MAX)));
    let mut lowering = Lowering::new(config(default_deny), BOTH_FAMILIES);
    let mut plan = Plan::new();
    let changed = plan.update(world);
    mirrors.mark(&lowering.update(plan.rules(), world, &changed));
    mirrors.round(lowering.desired(), Authority::Complete, moment());
    assert!(!mirrors.is_settled(), "something is left over");
}

fn mortal(flavour: Flavour, left: Rc<Cell<u64>>) -> Mirrors<Mortal<Linux>> {
    let Targets { settings, frames, groups, sets, elements, rules, kernel } =
        linux::open_with(programs(flavour)).expect("the kernel can be reached");
    Mirrors::new(Targets {
        kernel: Mortal { inner: kernel, left: left.clone() },
        settings,
        frames,
        groups,
        sets: Mortal { inner: sets, left: left.clone() },
        elements: Mortal { inner: elements, left: left.clone() },
        rules: Mortal { inner: rules, left },
    })
}

fn rules_of(world: Option<&World>) -> Option<RuleSet> {
    let mut plan = Plan::new();
    plan.update(world?);
    Some(plan.rules().clone())
}

/// Tries every way: it has to be as in one of these states, and where they agree, as in all of them.
fn check(places: &Places, change: &Change, rules: &[Option<RuleSet>; 2], told: &str, states: &[usize]) {
    let names: Vec<&str> = PODS.iter().map(|(name, ..)| *name).chain(["outside", "node"]).collect();
    let tries: Vec<Try<'_>> = ways(&names, &PROTOCOLS).into_iter().filter(|(.., port)| *port == 80).collect();
    let worlds = [&change.before, &change.after];
    let expected: Vec<Option<bool>> = tries
        .iter()
        .map(|way| {
            let opens = |state: &usize| {
                let known = worlds[*state].as_ref().zip(rules[*state].as_ref());
                known.is_none_or(|(world, rules)| is_open(places, world, rules, change.default_deny, *way))
            };
            let first = opens(&states[0]);
            let may_be_closed = change.moves_several && states.len() > 1 && first;
            (states.iter().all(|state| opens(state) == first) && !may_be_closed).then_some(first)
        })
        .collect();
    let wrong = told_ways(&places.wrong(&tries, &expected));
    assert!(
        wrong.is_empty(),
        "{told}:\n{wrong}\n{}",
        shell("iptables-save; ip6tables-save; ipset save; nft list ruleset")
    );
}

/// All ways together have to be as before, or all as after: of what one of both means nothing may be missing.
fn check_one_of_both(places: &Places, rules: &[Option<RuleSet>; 2], told: &str) {
    let names: Vec<&str> = PODS.iter().map(|(name, ..)| *name).chain(["outside", "node"]).collect();
    let tries = ways(&names, &PROTOCOLS);
    let wrong = rules.each_ref().map(|rules| {
        let opens = |way: &Try<'_>| rules.as_ref().is_none_or(|rules| verdict(rules, &packet(places, *way)).passes());
        let expected: Vec<Option<bool>> = tries.iter().map(|way| Some(opens(way))).collect();
        told_ways(&places.wrong(&tries, &expected))
    });
    let [before, after] = &wrong;
    assert!(before.is_empty() || after.is_empty(), "{told}, not as before:\n{before}\nand not as after:\n{after}");
    assert!(!before.is_empty() || !after.is_empty(), "{told}: before and after are alike");
}

fn is_open(places: &Places, world: &World, rules: &RuleSet, default_deny: bool, way: Try<'_>) -> bool {
    let (_, from, to, ..) = way;
    let is_known = |name: &str| {
        let is_pod = PODS.iter().any(|(pod, ..)| *pod == name) && name != "far";
        !is_pod || world.cluster.pods.get(&ObjectName::new("shop", name)).is_some()
    };
    let closed = default_deny && from != "node" && to != "node" && !(is_known(from) && is_known(to));
    !closed && verdict(rules, &packet(places, way)).passes()
}

/// Rules and sets, without counters.
fn saved(filter: Filter) -> BTreeMap<&'static str, Vec<String>> {
    let Filter::Iptables(flavour) = filter else {
        let is_count = |line: &str| line.trim_start().starts_with("packets ") || line.starts_with("table ");
        let mut lines: Vec<String> = filter.saved().lines().filter(|line| !is_count(line)).map(str::to_owned).collect();
        // Elements, sets and chains are listed in the order in which they came.
        lines.sort();
        return BTreeMap::from([("table", lines)]);
    };
    let flavour = if flavour == Flavour::Legacy { "legacy" } else { "nft" };
    let of = |program: &str| {
        let text = shell(&format!("{program} | sed 's/\\[[0-9:]*\\]//'"));
        let mut lines: Vec<String> = text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
        if program.starts_with("ipset") {
            // Elements of a set are listed in no order, and its hash seed and memory size are random.
            lines = lines.iter().map(|line| line.split(" initval").next().unwrap().to_owned()).collect();
            lines.sort();
        }
        lines
    };
    BTreeMap::from([
        ("IPv4", of(&format!("iptables-{flavour}-save -t filter"))),
        ("IPv6", of(&format!("ip6tables-{flavour}-save -t filter"))),
        ("sets", of("ipset save")),
    ])
}

fn changes() -> Vec<Change> {
    let change = |name, default_deny, before, after| {
        let (earlier, moves_several) = (None, false);
        Change { name, default_deny, earlier, moves_several, before, after }
    };
    let (earlier, without_it, with_it) = a_policy_that_comes_back();
    let policies = some_policies();
    let mut without = policies.clone();
    for name in ["web", "out", "all"] {
        without.cluster.policies.remove(&ObjectName::new("shop", name));
    }
    let mut before_the_pod = policies.clone();
    before_the_pod.cluster.pods.remove(&ObjectName::new("shop", "plain"));
    let mut behind_it = policies.clone();
    behind_it.cluster.pods.remove(&ObjectName::new("shop", "db"));
    let (small, large) = (in_a_large_cluster(&policies, false), in_a_large_cluster(&policies, true));
    vec![
        change("first policies", false, None, Some(policies.clone())),
        change(LARGE[0], false, None, Some(large.clone())),
        change(LARGE[1], false, Some(small), Some(large)),
        change("other policies, labels and pods", false, Some(policies.clone()), Some(other_policies())),
        change("closed by default from the start", true, None, Some(policies.clone())),
        change("a pod comes and one goes, closed by default", true, Some(before_the_pod), Some(behind_it)),
        change("no policy any more", false, Some(policies.clone()), Some(without)),
        change("cleanup", false, Some(policies), None),
        Change {
            moves_several: true,
            ..change("a namespace with other labels", false, Some(in_color("blue")), Some(in_color("red")))
        },
        Change {
            earlier: Some(earlier),
            ..change("a policy that comes back to what it left", false, Some(without_it), Some(with_it))
        },
    ]
}

fn some_policies() -> World {
    let mut world = world();
    let mut put = |name: &str, policy| world.cluster.policies.insert(ObjectName::new("shop", name), policy);
    put("web", ingress(app("web"), &[rule(from_app("db"), Ports::Any)]));
    put("out", egress(app("web"), &[rule(block("10.244.0.0/16", &["10.244.2.0/24"]), Ports::Any)]));
    put("all", ingress(app("plain"), &[rule(from_app("web"), Ports::Any), rule(from_app("far"), Ports::Any)]));
    world
}

/// The same beside many pods of other nodes; `takes`: `db` accepts from these, and from `web`, and sends to `web` and to a block.
fn in_a_large_cluster(world: &World, takes: bool) -> World {
    let mut world = world.clone();
    for number in 0..FAR_PODS {
        let (high, low) = (number / 250, number % 250 + 1);
        let addresses = [format!("10.244.{}.{low}", 100 + high), format!("fd00:10:244:{:x}::{low:x}", 100 + high)];
        let addresses = addresses.each_ref().map(String::as_str);
        put_pod(&mut world, &format!("far-{number}"), &addresses, &[("app", "crowd")]);
    }
    if takes {
        let mut put = |name: &str, policy| world.cluster.policies.insert(ObjectName::new("shop", name), policy);
        put("crowd", ingress(app("db"), &[rule(from_app("crowd"), Ports::Any), rule(from_app("web"), Ports::Any)]));
        let block = block("10.244.0.0/16", &["10.244.1.12/32", "10.244.2.0/24"]);
        put("out-of-db", egress(app("db"), &[rule(from_app("web"), Ports::Any), rule(block, Ports::Any)]));
    }
    world
}

/// By its labels the namespace is its own peer: `web` may send to red pods only, `db` takes from blue ones only, so neither
/// before nor afterwards anything goes from one to the other.
fn in_color(color: &str) -> World {
    let mut world = world();
    let labels = [("color", color)].into_iter().collect();
    world.cluster.namespaces.insert("shop".into(), Namespace { labels, isolated: false });
    let of = |color: &str| {
        let color = Requirement { key: "color".into(), operator: Operator::In([color.into()].into()) };
        let namespaces = Namespaces::Selected([color].into_iter().collect());
        Peers::Of([Peer::Pods { namespaces, pods: Selector::everything() }].into())
    };
    let mut put = |name: &str, policy| world.cluster.policies.insert(ObjectName::new("shop", name), policy);
    put("out", egress(app("web"), &[rule(of("red"), Ports::Any)]));
    put("in", ingress(app("db"), &[rule(of("blue"), Ports::Any)]));
    world
}

/// `db` takes from `web` and, by a policy that goes and comes again, from pods that are called plain. Meanwhile the only
/// such pod is called something else, and what the policy left in the kernel still knows it.
fn a_policy_that_comes_back() -> (World, World, World) {
    let mut earlier = world();
    let mut put = |name: &str, policy| earlier.cluster.policies.insert(ObjectName::new("shop", name), policy);
    put("always", ingress(app("db"), &[rule(from_app("web"), Ports::Any)]));
    put("again", ingress(app("db"), &[rule(from_app("plain"), Ports::Any)]));
    let mut with_it = earlier.clone();
    let (name, v4, v6) = PODS[3];
    put_pod(&mut with_it, name, &[v4, v6], &[("app", "other")]);
    let mut without_it = with_it.clone();
    without_it.cluster.policies.remove(&ObjectName::new("shop", "again"));
    (earlier, without_it, with_it)
}

/// Each of the policies differs, one is new, one is gone; a label makes another pod the peer, and a pod has moved.
fn other_policies() -> World {
    let mut world = some_policies();
    world.cluster.policies.remove(&ObjectName::new("shop", "out"));
    let mut put = |name: &str, policy| world.cluster.policies.insert(ObjectName::new("shop", name), policy);
    put("web", ingress(app("web"), &[rule(from_app("far"), Ports::Any), rule(from_app("db"), Ports::Any)]));
    put("all", ingress(Selector::everything(), &[rule(from_app("web"), Ports::Any)]));
    put("far", egress(app("db"), &[rule(block("fd00:10:244::/56", &[]), Ports::Any)]));
    let (name, v4, v6) = PODS[3];
    put_pod(&mut world, name, &[v4, v6], &[("app", "db")]);
    world.cluster.pods.remove(&ObjectName::new("shop", "db"));
    put_pod(&mut world, "db-again", &[PODS[1].1, PODS[1].2], &[("app", "other")]);
    world
}

/// A family of kernel objects whose owner dies before one of its steps.
struct Mortal<T> {
    inner: T,
    left: Rc<Cell<u64>>,
}

impl<T> Mortal<T> {
    /// One step is done, or this is the end.
    fn step(&self) {
        let Some(left) = self.left.get().checked_sub(1) else {
            kill_process(getpid(), Signal::KILL).expect("everybody may end himself");
            unreachable!("nobody survives that");
        };
        self.left.set(left);
    }
}

fn copied<'a, K, V>(step: &Step<'a, K, V>) -> Step<'a, K, V> {
    Step { key: step.key, have: step.have, want: step.want }
}

/// How many of a round's steps are one act.
trait Acts: Target {
    fn acts(&mut self, steps: &[Step<'_, Self::Key, Self::Value>]) -> Vec<Vec<usize>> {
        (0..steps.len()).map(|step| vec![step]).collect()
    }
}

impl Acts for Sets {}
impl Acts for Elements {}
/// The transactions of one change.
impl Acts for OwnTable {
    fn acts(&mut self, steps: &[Step<'_, Self::Key, Self::Value>]) -> Vec<Vec<usize>> {
        let table = self.view().expect("it can be read");
        let sets = table.into_iter().filter_map(|(object, content)| match (object, content) {
            (Object::Set(name), Content::Set(spec)) => Some((name, Some(spec))),
            _ => None,
        });
        let all = transactions(steps, &sets.collect(), true).expect("elements are of sets");
        all.into_iter().map(|one| one.steps).collect()
    }
}

impl Acts for Tables {
    /// One run of the program for each family.
    fn acts(&mut self, steps: &[Step<'_, Self::Key, Self::Value>]) -> Vec<Vec<usize>> {
        let of = |family| (0..steps.len()).filter(|step| steps[*step].key.family() == family).collect();
        Family::BOTH.into_iter().map(of).filter(|steps: &Vec<usize>| !steps.is_empty()).collect()
    }
}

impl<T: Acts> Target for Mortal<T> {
    type Key = T::Key;
    type Value = T::Value;
    type Error = T::Error;

    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn read(&mut self) -> Result<BTreeMap<Self::Key, Self::Value>, Self::Error> {
        self.inner.read()
    }

    fn read_some(&mut self, keys: &[Self::Key]) -> Result<BTreeMap<Self::Key, Self::Value>, Self::Error> {
        self.inner.read_some(keys)
    }

    fn apply(&mut self, phase: Phase, steps: &[Step<'_, Self::Key, Self::Value>]) -> Vec<Failure<Self::Error>> {
        let mut failures = Vec::new();
        for act in self.inner.acts(steps) {
            self.step();
            let of_it: Vec<Step<'_, Self::Key, Self::Value>> = act.iter().map(|step| copied(&steps[*step])).collect();
            let failed = self.inner.apply(phase, &of_it);
            failures.extend(failed.into_iter().map(|failure| Failure { step: act[failure.step], ..failure }));
        }
        failures
    }

    fn grown(have: &Self::Value, want: &Self::Value) -> Self::Value {
        T::grown(have, want)
    }
}

impl Kernel for Mortal<Linux> {
    type Settings = Settings;
    type Frames = FrameTable;
    type Sets = Mortal<Sets>;
    type Elements = Mortal<Elements>;
    type Rules = Mortal<Tables>;

    fn remove_abandoned(&mut self) -> Vec<String> {
        self.inner.remove_abandoned()
    }
}

impl Timed for Mortal<Elements> {
    fn take_took(&mut self) -> PerFamily<Duration> {
        self.inner.take_took()
    }
}

impl Refusing for Mortal<Tables> {
    fn take_refused(&mut self) -> Vec<Refusal> {
        self.inner.take_refused()
    }

    fn take_timings(&mut self) -> Vec<Timing> {
        self.inner.take_timings()
    }

    fn is_unreadable(&self, family: Family) -> bool {
        self.inner.is_unreadable(family)
    }
}

impl nftables::apply::Kernel for Mortal<nftables::linux::Linux> {
    type Settings = Settings;
    type Frames = FrameTable;
    type Table = Mortal<OwnTable>;

    fn remove_abandoned(&mut self) -> Option<Vec<String>> {
        self.inner.remove_abandoned()
    }
}

impl nftables::apply::Refusing for Mortal<OwnTable> {
    fn take_refused(&mut self) -> BTreeMap<Object, String> {
        nftables::apply::Refusing::take_refused(&mut self.inner)
    }
}
