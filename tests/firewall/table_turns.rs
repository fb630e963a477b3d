//! Packets that are under way at the moment of a transaction, with the nftables backend and a table in memory.
//!
//! Such a packet goes on by the rules as they were, and looks into each set and map as it is at the moment when it does: at first as it was, and then as it is. So after each
//! transaction packets are traced through the rules of before and the elements of afterwards, and once more with the maps that are asked first as they were.
//! Two Worlds take turns. What both refuse is refused at every moment, and what both allow passes.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice::firewall::frames::{self, FrameTable};
use sluice::firewall::nftables::apply::{Kernel, Mirrors, Refusing, Targets};
use sluice::firewall::nftables::desired;
use sluice::firewall::nftables::lowering::Lowering;
use sluice::firewall::nftables::names;
use sluice::firewall::plan::Plan;
use sluice::firewall::rules::Direction;
use sluice::firewall::verdict::{Packet, Traffic, verdict};
use sluice::kernel::nftables::{Chain, Content, Hook, Kind, Name, Object, transactions};
use sluice::model::{
    Action, Authority, ClusterNetworkPolicy, ClusterRule, Peer, PolicyPort, PolicyRule, Selector, Subject, Tier, World,
};
use sluice::net::{Family, Protocol};
use sluice::reconcile::{Failure, Moment, Optional, Phase, Step, Target};

use super::cases::{Case, HERE, block, pods, pods_in, port, rule};
use super::histories;
use super::lowered::{BOTH, config};
use super::support::chains::State;
use super::support::memory::{self, Memory, MemoryKernel};
use super::support::tables::{Table, refusal, rules_name};

type Contents = desired::Table;

/// A table in memory, and the states it was in.
#[derive(Clone, Default)]
struct Recorder {
    states: Rc<RefCell<Vec<Contents>>>,
    /// The chains that each transaction gave another name.
    renamed: Rc<RefCell<Vec<Renamed>>>,
    renames: bool,
}

/// Chains by their former names, with the ones that they have since.
type Renamed = Vec<(Name, Name)>;

impl Recorder {
    fn last(&self) -> Contents {
        self.states.borrow().last().cloned().unwrap_or_default()
    }
}

impl Target for Recorder {
    type Key = Object;
    type Value = Content;
    type Error = String;

    fn name(&self) -> &'static str {
        "rules"
    }

    fn read(&mut self) -> Result<BTreeMap<Object, Content>, String> {
        Ok(self.last().iter().map(|(object, content)| (object.clone(), content.clone())).collect())
    }

    fn apply(&mut self, _: Phase, steps: &[Step<'_, Object, Content>]) -> Vec<Failure<String>> {
        let mut table = self.last();
        let sets = table.iter().filter_map(|(object, content)| match (object, content) {
            (Object::Set(name), Content::Set(spec)) => Some((name.clone(), Some(*spec))),
            _ => None,
        });
        for turn in transactions(steps, &sets.collect(), self.renames).expect("elements are of sets") {
            for step in turn.steps.into_iter().map(|step| &steps[step]) {
                match step.want {
                    Some(want) => drop(table.insert(step.key.clone(), want.clone())),
                    None => drop(table.remove(step.key)),
                }
            }
            assert_eq!(refusal(&table), None, "the kernel takes what is asked of it");
            self.states.borrow_mut().push(table.clone());
            self.renamed.borrow_mut().push(turn.renamed);
        }
        Vec::new()
    }
}

impl Refusing for Recorder {
    fn take_refused(&mut self) -> BTreeMap<Object, String> {
        BTreeMap::new()
    }
}

struct Recorded;

impl Kernel for Recorded {
    type Settings = Memory<memory::Settings>;
    type Frames = FrameTable;
    type Table = Recorder;

    fn remove_abandoned(&mut self) -> Option<Vec<String>> {
        Some(Vec::new())
    }
}

/// What a packet meets that is under way when one table becomes another: the chains of before, with the elements of afterwards, but for those of these maps.
fn under_way(before: &Contents, after: &Contents, renamed: &[(Name, Name)], asked_before: &BTreeSet<Name>) -> Contents {
    let mut met = Contents::default();
    let is_asked = |object: &Object| matches!(object, Object::Element(set, _) if asked_before.contains(set));
    // A map that is gone has no element any more. A set that is gone keeps its own until no packet is in it: the kernel takes elements out only where they hold others.
    let stays = |object: &Object| {
        let Object::Element(set, _) = object else { return true };
        let set = Object::Set(set.clone());
        let is_plain = matches!(before.get(&set), Some(Content::Set(spec)) if spec.kind == Kind::Set);
        is_plain && !after.contains_key(&set)
    };
    for (object, content) in before.iter() {
        if stays(object) || is_asked(object) {
            met.insert(object.clone(), content.clone());
        }
    }
    for (object, content) in after.iter().filter(|(object, _)| !matches!(object, Object::Chain(_))) {
        if !is_asked(object) {
            met.insert(object.clone(), content.clone());
        }
    }
    // A chain with another name has the rules of before.
    for (from, to) in renamed {
        let content = before.get(&Object::Chain(from.clone())).expect("it exists");
        met.insert(Object::Chain(to.clone()), content.clone());
    }
    // A new chain has no rules for it.
    let is_new = |object: &Object| {
        let is_renamed = renamed.iter().any(|(_, to)| *object == Object::Chain(to.clone()));
        matches!(object, Object::Chain(_)) && !before.contains_key(object) && !is_renamed
    };
    for object in after.keys().filter(|object| is_new(object)) {
        let empty = Chain { base: None, rules: Vec::new() };
        met.insert(object.clone(), Content::Chain(Arc::new(empty)));
    }
    let named: BTreeSet<Object> = met
        .values()
        .filter_map(|content| match content {
            Content::Chain(chain) => Some(rules_name(chain).collect::<Vec<_>>()),
            _ => None,
        })
        .flatten()
        .collect();
    assert!(named.iter().all(|object| met.contains_key(object)));
    met
}

/// The moments between two tables, in words.
fn moments(before: &Contents, after: &Contents, renamed: &[(Name, Name)]) -> [(&'static str, Contents); 3] {
    let maps = |direction| Family::BOTH.map(|family| names::admin(direction, family));
    let first = Direction::BOTH.into_iter().flat_map(maps).collect();
    [
        ("under way", under_way(before, after, renamed, &BTreeSet::new())),
        ("between two lookups", under_way(before, after, renamed, &first)),
        ("behind it", after.clone()),
    ]
}

/// Changes from each of two Worlds to the other one, and tries packets meanwhile, where chains may get other names and where not. Returns how many do.
fn take_turns(said: &str, worlds: [&World; 2], authority: Authority) -> usize {
    [true, false].map(|renames| take_turns_by(said, worlds, authority, renames)).into_iter().sum()
}

fn take_turns_by(said: &str, worlds: [&World; 2], authority: Authority, renames: bool) -> usize {
    let rules = worlds.map(histories::rules);
    let packets = packets();
    let expected: Vec<Option<bool>> = packets
        .iter()
        .map(|packet| {
            let [one, other] = rules.each_ref().map(|rules| verdict(rules, packet).passes());
            (one == other).then_some(one)
        })
        .collect();
    assert!(expected.iter().any(|expected| expected.is_some()), "{said}: there is something to try");
    let recorder = Recorder { renames, ..Recorder::default() };
    let settings = MemoryKernel::new(memory::State::of_others());
    let (frames, groups) = (Optional::unused(frames::NAME), Optional::unused(frames::GROUPS_NAME));
    let targets =
        Targets { kernel: Recorded, settings: Memory::new(&settings), frames, groups, table: recorder.clone() };
    let (mut plan, mut lowering) = (Plan::new(), Lowering::new(config(false), BOTH));
    let mut mirrors: Mirrors<Recorded> = Mirrors::new(targets);
    let begun = Instant::now();
    let mut count = 0;
    for (number, turn) in [0, 1, 0, 1].into_iter().enumerate() {
        let world = worlds[turn];
        let changed = plan.update(world);
        mirrors.mark(&lowering.update(plan.rules(), world, &changed));
        let authority = if number == 0 { Authority::Complete } else { authority };
        let now = begun + Duration::from_secs(60 * number as u64);
        mirrors.round(lowering.desired(), authority, Moment { now, jitter: 0 });
        let (last, renamed) = (recorder.last(), recorder.renamed.take());
        let states = recorder.states.replace(vec![last]);
        if number == 0 {
            continue;
        }
        count += renamed.iter().map(Vec::len).sum::<usize>();
        for (place, pair) in states.windows(2).enumerate() {
            for (moment, table) in moments(&pair[0], &pair[1], &renamed[place]) {
                for (packet, expected) in packets.iter().zip(&expected) {
                    let passes =
                        Table { table: &table, local: &BTreeSet::new() }.passes(Hook::Forward, packet, State::New);
                    let told = format!("{said}, to the state {turn}, {authority:?}, transaction {place}, {moment}");
                    assert!(expected.is_none_or(|expected| expected == passes), "{told}: {packet:?} passes: {passes}");
                }
            }
        }
    }
    count
}

/// Returns how many chains got another name while everything was known.
fn take_turns_known_or_not(said: &str, worlds: [&World; 2]) -> usize {
    let [known, _] = [Authority::Complete, Authority::Partial].map(|authority| take_turns(said, worlds, authority));
    known
}

const ADDRESSES: [&str; 6] =
    ["10.244.0.1", "10.244.0.2", "203.0.113.9", "fd00:10:244::1", "fd00:10:244::2", "2001:db8:113::9"];

fn packets() -> Vec<Packet> {
    let addresses = ADDRESSES.map(|text| text.parse::<std::net::IpAddr>().expect("an address"));
    let pairs = addresses.iter().flat_map(|one| addresses.iter().map(move |other| (*one, *other)));
    let pairs = pairs.filter(|(one, other)| one != other && one.is_ipv4() == other.is_ipv4());
    let ports = [53, 75, 80, 81, 90, 443, 1000, 1016];
    let of = |(source, destination)| {
        ports.map(|port| {
            let traffic = Traffic::Port { protocol: Protocol::Tcp, port };
            Packet { source, destination, traffic, from_this_node: false }
        })
    };
    pairs.flat_map(of).collect()
}

/// `a` and `b` are pods of this node.
fn case(label: &str) -> Case {
    Case::new()
        .namespace("shop", "")
        .pod("shop/a", HERE, ["10.244.0.1 fd00:10:244::1", &format!("app={label}"), ""])
        .pod("shop/b", HERE, ["10.244.0.2 fd00:10:244::2", "app=b", ""])
}

/// Pods of an app are denied what comes to these ports from anywhere but what is asked first.
fn guard(tier: Tier, pods: &str, rules: &[(Action, &str)]) -> ClusterNetworkPolicy {
    let Peer::Pods { pods, .. } = pods_in("", pods) else { panic!("pods") };
    let ports = |text: &str| text.split_whitespace().map(port).collect::<Vec<PolicyPort>>();
    let rules = rules.iter().map(|(action, text)| {
        let matches: PolicyRule = rule(&[pods_in("", "app=b")], &ports(text));
        ClusterRule { name: "".into(), action: *action, matches }
    });
    let subject = Subject { namespaces: Selector::everything(), pods };
    ClusterNetworkPolicy { tier, priority: 1, subject, ingress: rules.collect(), egress: [].into() }
}

fn guarded(mut case: Case, name: &str, policy: ClusterNetworkPolicy) -> Case {
    case.0.cluster.cluster_policies.insert(name.into(), policy);
    case
}

fn ports(text: &str) -> Vec<PolicyPort> {
    text.split_whitespace().map(port).collect()
}

#[test]
fn policies_with_other_ports_or_peers_take_turns() {
    let many = |count: u16| (0..count).map(|number| format!("tcp/{}", 1000 + number)).collect::<Vec<_>>().join(" ");
    for (said, texts) in [
        ("a single port, and a range around it", ["tcp/53 tcp/80", "tcp/53 tcp/80-90"]),
        ("ranges", ["tcp/75-85", "tcp/80-90"]),
        ("single ports", ["tcp/80 tcp/81", "tcp/80 tcp/90"]),
        ("a range, and all ports", ["tcp/75-85", ""]),
        ("the seventeenth port with the same peers", [&*many(16), &*many(17)]),
    ] {
        let state = |text: &str| {
            let allowed = [rule(&[pods("app=b")], &ports(text))];
            case("a").policy("shop/in", "app=a", [Some(&allowed), None]).0
        };
        take_turns_known_or_not(said, [&state(texts[0]), &state(texts[1])]);
    }
    let peers = [vec![pods("app=b")], vec![block("10.244.0.0/16", &[]), block("fd00:10:244::/48", &[])]];
    let state = |peers: &[Peer]| {
        let allowed = [rule(peers, &ports("tcp/80 tcp/81-90"))];
        case("a").policy("shop/in", "app=a", [Some(&allowed), None]).0
    };
    take_turns_known_or_not("pods and blocks", [&state(&peers[0]), &state(&peers[1])]);
}

/// Two pods that come to a class of their own and back, with ports that both classes allow, that one does, and that none does.
fn of_class(label: &str, also: &str) -> World {
    let allows = |text: &str| [rule(&[pods("app=b")], &ports(text))];
    case(label)
        .pod("shop/also", HERE, ["10.244.0.3 fd00:10:244::3", &format!("app={also}"), ""])
        .policy("shop/a", "app=a", [Some(&allows("tcp/80 tcp/443")), None])
        .policy("shop/c", "app=c", [Some(&allows("tcp/80 tcp/1000")), None])
        .policy("shop/many", "app=many", [Some(&allows("tcp/53 tcp/75 tcp/80 tcp/81 tcp/90 tcp/1000 tcp/75-85")), None])
        .policy("shop/blocks", "app=blocks", [Some(&[rule(&[block("10.244.0.0/30", &[])], &ports("tcp/80"))]), None])
        .0
}

#[test]
fn pods_that_come_to_other_classes_take_turns() {
    let labels = ["a", "c", "many", "blocks", "free"];
    for (one, other) in labels.iter().flat_map(|one| labels.iter().map(move |other| (one, other))) {
        for (first, second) in [("free", "free"), ("free", "a"), ("c", "many"), ("a", "free")] {
            let said = format!("{one} and {other}, beside {first} and {second}");
            take_turns_known_or_not(&said, [&of_class(one, first), &of_class(other, second)]);
        }
    }
}

/// One policy more for all pods of two classes, with a new set, a new map and blocks.
#[test]
fn pods_that_come_under_a_policy_more_take_turns_by_another_name_for_their_chains() {
    let allows = |peers: &[Peer], text: &str| [rule(peers, &ports(text))];
    for (said, more) in [
        ("a port", allows(&[pods("app=b")], "tcp/1000")),
        ("ports", allows(&[pods("app=b")], "tcp/53 tcp/75 tcp/81 tcp/90 tcp/1000")),
        ("ranges", allows(&[pods("app=b")], "tcp/75-85 tcp/88-90 tcp/95-96 tcp/98-99 tcp/1000-1016")),
        ("blocks", allows(&[block("10.244.0.0/30", &[]), block("203.0.113.0/24", &[])], "tcp/1000")),
    ] {
        let before = of_class("a", "c");
        let after = Case(before.clone()).policy("shop/more", "", [Some(&more), None]).0;
        let count = take_turns_known_or_not(said, [&before, &after]);
        // Both classes, there and back and there.
        assert_eq!(count, 6, "{said}");
    }
}

#[test]
fn tiers_with_other_ports_take_turns() {
    let (accept, deny) = (Action::Accept, Action::Deny);
    for tier in [Tier::Admin, Tier::Baseline] {
        for (said, states) in [
            (
                "a single port, and a range around it",
                [vec![(deny, "tcp/80 tcp/443")], vec![(deny, "tcp/80-90 tcp/443")]],
            ),
            ("ranges", [vec![(deny, "tcp/80-90")], vec![(deny, "tcp/75-85")]]),
            (
                "a port that another rule comes before",
                [vec![(deny, "tcp/80")], vec![(accept, "tcp/443"), (deny, "tcp/80")]],
            ),
        ] {
            let state = |rules: &[(Action, &str)]| guarded(case("a"), "guard", guard(tier, "app=a", rules)).0;
            take_turns_known_or_not(said, [&state(&states[0]), &state(&states[1])]);
        }
    }
}

#[test]
fn policies_of_all_kinds_take_turns_by_labels() {
    let shut = [];
    let all = |label: &str| {
        let deny = [(Action::Deny, "")];
        let case = guarded(case(label), "admin", guard(Tier::Admin, "app=admin", &deny));
        let case =
            guarded(case, "more", guard(Tier::Admin, "app=more", &[(Action::Deny, "tcp/80"), (Action::Deny, "")]));
        let case = guarded(case, "floor", guard(Tier::Baseline, "app=floor", &deny));
        case.policy("shop/shut", "app=shut", [Some(&shut), None]).0
    };
    let labels = ["admin", "more", "floor", "shut", "free"];
    for (one, other) in labels.iter().flat_map(|one| labels.iter().map(move |other| (one, other))) {
        if one < other {
            take_turns_known_or_not(&format!("{one} and {other}"), [&all(one), &all(other)]);
        }
    }
}

#[test]
fn one_pod_with_an_address_and_two_take_turns() {
    let shut = [];
    for label in ["admin", "floor", "shut", "free"] {
        for twin in ["admin", "floor", "shut"] {
            let deny = [(Action::Deny, "")];
            let case = guarded(case(label), "admin", guard(Tier::Admin, "app=admin", &deny));
            let case = guarded(case, "floor", guard(Tier::Baseline, "app=floor", &deny));
            let alone = case.policy("shop/shut", "app=shut", [Some(&shut), None]);
            let addresses = "10.244.0.1 fd00:10:244::1";
            let both = Case(alone.0.clone()).pod("shop/twin", HERE, [addresses, &format!("app={twin}"), ""]);
            take_turns(&format!("{label} and {twin}"), [&alone.0, &both.0], Authority::Complete);
        }
    }
}

/// Policies that are known no longer leave what they denied in force to addresses of which nobody knows whose they are, whatever other pods come and go.
#[test]
fn a_tier_that_judges_an_unknown_pod_keeps_its_ports_when_the_last_known_pod_goes() {
    let both = guarded(case("a"), "guard", guard(Tier::Admin, "app=a", &[(Action::Deny, "tcp/80-90 tcp/443")]));
    let other = |case: Case| case.pod("shop/other", HERE, ["10.244.0.3 fd00:10:244::3", "app=a", ""]);
    let (known, both) = (other(Case(both.0.clone())), both);
    let mut part = known.0.clone();
    part.cluster.pods.remove(&sluice::model::ObjectName::new("shop", "a"));
    let mut none = part.clone();
    none.cluster.pods.remove(&sluice::model::ObjectName::new("shop", "other"));
    let recorder = Recorder::default();
    let settings = MemoryKernel::new(memory::State::of_others());
    let run = |worlds: &[(&World, Authority)]| {
        let (frames, groups) = (Optional::unused(frames::NAME), Optional::unused(frames::GROUPS_NAME));
        let table = recorder.clone();
        let targets = Targets { kernel: Recorded, settings: Memory::new(&settings), frames, groups, table };
        let (mut plan, mut lowering) = (Plan::new(), Lowering::new(config(false), BOTH));
        let mut mirrors: Mirrors<Recorded> = Mirrors::new(targets);
        for (world, authority) in worlds {
            let changed = plan.update(world);
            mirrors.mark(&lowering.update(plan.rules(), world, &changed));
            mirrors.round(lowering.desired(), *authority, Moment { now: Instant::now(), jitter: 0 });
        }
    };
    run(&[(&known.0, Authority::Complete)]);
    run(&[(&part, Authority::Partial), (&none, Authority::Partial)]);
    let rules = histories::rules(&both.0);
    for packet in packets().into_iter().filter(|packet| !verdict(&rules, packet).passes()) {
        let table = recorder.last();
        let passes = Table { table: &table, local: &BTreeSet::new() }.passes(Hook::Forward, &packet, State::New);
        assert!(!passes, "{packet:?} passes");
    }
}
