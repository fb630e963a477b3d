//! The firewall walks at random between worlds, on a kernel in memory.
//!
//! A walk changes the cluster, lets time pass, starts the program anew (also with the last known state, or with a partial
//! one), damages what is ours behind its back, takes modules away, and lets steps and reads fail, before the act and
//! after it. After every single act no rule leads nowhere; what was refused before and shall be refused afterwards is
//! refused all the time, whatever changes at once, also when steps fail and modules are missing; and while only policies
//! change, or the labels of one pod, and no module is missing, what may pass passes all the time. A start with an older memory opens nothing. While unknown addresses are closed, an address that opens has its rules. When things have settled
//! the kernel does what the rules mean.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use sluice::config::{FirewallConfig, ServiceRanges};
use sluice::firewall::iptables::apply::Mirrors;
use sluice::firewall::iptables::desired::Elements;
use sluice::firewall::iptables::lowering::Lowering;
use sluice::firewall::iptables::{dispatch, names};
use sluice::firewall::plan::Plan;
use sluice::firewall::rules::RuleSet;
use sluice::firewall::verdict::{Packet, Traffic, verdict};
use sluice::firewall::{link_local, multicast};
use sluice::kernel::ipset::{ElementKey, Entry};
use sluice::kernel::iptables::{Piece, Rules};
use sluice::model::{
    Action, Authority, ClusterNetworkPolicy, ClusterRule, Labels, Node, Pod, Selector, Subject, Tier, World,
};
use sluice::net::{Family, PerFamily, icmp};
use sluice::reconcile::Moment;
use sluice::subsystem::Kinds;

use super::cases::{Case, ELSEWHERE, HERE, pods, pods_in, rule};
use super::support::chains::{Chains, State as Tracked, Traced};
use super::support::memory::{Faults, MemoryKernel, Object, State};
use super::support::random::{Random, for_many};
use super::{clusters, services};

const STEPS: usize = 60;
/// The ranges of this node's pods, which hold all pods of the clusters.
const RANGES: [&str; 2] = ["10.244.0.0/24", "fd00:10:244::/64"];

/// One run of the program.
struct Agent {
    plan: Plan,
    lowering: Lowering,
    mirrors: Mirrors<MemoryKernel>,
}

struct Walk<'r> {
    random: &'r mut Random,
    kernel: MemoryKernel,
    config: Arc<FirewallConfig>,
    world: World,
    agent: Agent,
    now: Instant,
    story: Vec<String>,
}

/// Invariant of every act: packets that must not pass, and packets that must.
#[derive(Clone, Default)]
struct Promise {
    never: Vec<Packet>,
    always: Vec<Packet>,
    /// Packets to Services that never pass INPUT.
    never_to_services: Vec<Packet>,
}

#[test]
fn whatever_happens_nothing_opens_and_in_the_end_the_kernel_does_what_the_rules_mean() {
    for_many(12, |random| Walk::new(random).run());
}

#[test]
fn a_family_whose_rules_cannot_be_changed_keeps_nothing_open_and_holds_nothing_up() {
    for_many(6, |random| Walk::new(random).run_without_a_family());
}

#[test]
fn what_is_seen_to_go_goes_also_while_only_a_part_is_known() {
    for_many(8, |random| Walk::new(random).run_on_a_part());
}

#[test]
fn a_namespace_with_other_labels_opens_nothing_between_pods_that_are_each_others_peers_by_them() {
    let worlds = ["team=blue", "team=red"].map(shop_that_names_its_own_namespace);
    stays_closed(&worlds.map(|world| (world, 9)), ("10.244.0.1", "10.244.0.2"));
}

#[test]
fn nothing_is_added_while_what_should_go_before_it_cannot_be_deleted() {
    let worlds = ["team=blue", "team=red"].map(shop_that_names_its_own_namespace);
    stays_closed_although_steps_fail(&worlds, ("10.244.0.1", "10.244.0.2"));
}

/// Unknown addresses are closed: one that no pod has any more, and one that a pod gets.
#[test]
fn no_address_opens_while_that_of_a_pod_that_is_gone_cannot_be_closed() {
    let worlds = ["10.244.0.6", "10.244.0.3"].map(|address| {
        let case = Case::new().namespace("shop", "").pod("shop/other", HERE, ["10.244.0.9", "", ""]);
        case.pod("shop/one", HERE, [address, "", ""]).0
    });
    stays_closed_although_steps_fail(&worlds, ("10.244.0.6", "10.244.0.3"));
    stays_closed_although_steps_fail(&worlds, ("10.244.0.3", "10.244.0.6"));
}

/// `a` may send to a red namespace only, `b` may be reached from a blue one only.
fn shop_that_names_its_own_namespace(color: &str) -> World {
    let case = Case::new().namespace("shop", color);
    let case = case.pod("shop/a", HERE, ["10.244.0.1", "app=a", ""]).pod("shop/b", HERE, ["10.244.0.2", "app=b", ""]);
    let case = case.policy("shop/out", "app=a", [None, Some(&[rule(&[pods_in("team=red", "")], &[])])]);
    case.policy("shop/in", "app=b", [Some(&[rule(&[pods_in("team=blue", "")], &[])]), None]).0
}

fn shop_with_a_host_endpoint() -> World {
    let case = Case::new().namespace("shop", "").pod("shop/shut", HERE, ["10.244.0.1", "app=shut", ""]);
    let case = case.pod("shop/open", HERE, ["10.244.0.2", "", ""]);
    let mut world = case.policy("shop/out", "app=shut", [None, Some(&[])]).0;
    services::put(&mut world, "shop/api", ("10.96.0.1", 443), &["192.0.2.11:6443", "192.0.2.12:6443"]);
    world
}

fn to_service(source: &str) -> Packet {
    let [source, destination] = [source, "10.96.0.1"].map(|text| text.parse().expect("an address"));
    let traffic = Traffic::Port { protocol: sluice::net::Protocol::Tcp, port: 443 };
    Packet { source, destination, traffic, from_this_node: false }
}

/// Policies are often known before Services, and Services may stay unknown or known in part.
#[test]
fn a_start_before_services_are_known_opens_none_that_was_refused() {
    for authority in [Authority::Nothing, Authority::Remembered, Authority::Partial] {
        let mut random = Random::new(1);
        let mut walk = Walk::new(&mut random);
        let complete = World { host: walk.world.host.clone(), ..shop_with_a_host_endpoint() };
        walk.world = complete.clone();
        walk.agent.take_in(&walk.world);
        walk.rounds(9);
        let (shut, open) = (to_service("10.244.0.1"), to_service("10.244.0.2"));
        let state = walk.kernel.state();
        assert!(!reaches(&state, shut) && reaches(&state, open));
        watch(&walk.kernel, Some(Promise { never_to_services: vec![shut], ..Promise::default() }));
        walk.agent = Agent::start(&walk.kernel, &walk.config);
        let mut unknown = complete.clone();
        unknown.authority.proxy = authority;
        for name in complete.cluster.services.iter().map(|(name, _)| name) {
            unknown.cluster.services.remove(name);
            unknown.cluster.endpoints.remove(name);
        }
        walk.agent.take_in(&unknown);
        walk.rounds(9);
        walk.now += Duration::from_secs(60);
        walk.rounds(9);
        assert!(!reaches(&walk.kernel.state(), shut));
        walk.agent.take_in(&complete);
        walk.rounds(9);
        watch(&walk.kernel, None);
        walk.check_rest();
        // A pod that is isolated no longer keeps nothing, known or not.
        unknown.cluster.policies = Default::default();
        walk.agent.take_in(&unknown);
        walk.rounds(9);
        assert!(reaches(&walk.kernel.state(), shut));
        unknown.authority.proxy = Authority::Complete;
        walk.world = unknown;
        walk.agent.take_in(&walk.world.clone());
        walk.rounds(9);
        walk.now += Duration::from_secs(60);
        walk.rounds(9);
        walk.check_rest();
    }
}

/// The chain that refuses Services to a pod has a module of its own to lack: what is left of it refuses as much, and all
/// other rules are in force.
#[test]
fn a_refused_chain_of_refused_services_holds_nothing_up() {
    let mut random = Random::new(1);
    let mut walk = Walk::new(&mut random);
    let chain = names::refusal_chain(&super::cases::object("shop/shut"));
    walk.kernel.with(|machine| machine.unloadable.insert(chain));
    walk.world = World { host: walk.world.host.clone(), ..shop_with_a_host_endpoint() };
    walk.agent.take_in(&walk.world);
    walk.settle();
    assert!(!walk.agent.mirrors.refusals().all().is_empty());
    let [shut, open] = ["10.244.0.1", "10.244.0.2"].map(to_service);
    let state = walk.kernel.state();
    assert!(!reaches(&state, shut) && reaches(&state, open));
    walk.kernel.with(|machine| machine.unloadable.clear());
    walk.now += Duration::from_secs(60);
    walk.settle();
    walk.check_rest();
}

/// Where nothing ever says what Services there are, nothing keeps what an earlier run refused up to date.
#[test]
fn refusals_of_services_go_where_services_are_never_known() {
    let mut random = Random::new(1);
    let mut walk = Walk::new(&mut random);
    let complete = World { host: walk.world.host.clone(), ..shop_with_a_host_endpoint() };
    walk.agent.take_in(&complete);
    walk.rounds(9);
    let shut = to_service("10.244.0.1");
    assert!(!reaches(&walk.kernel.state(), shut));
    walk.config = Arc::new(FirewallConfig { knows_services: false, ..(*walk.config).clone() });
    walk.agent = Agent::start(&walk.kernel, &walk.config);
    let mut alone = complete;
    alone.authority.proxy = Authority::Nothing;
    alone.cluster.services = Default::default();
    alone.cluster.endpoints = Default::default();
    walk.agent.take_in(&alone);
    walk.rounds(9);
    walk.now += Duration::from_secs(60);
    walk.rounds(9);
    assert!(reaches(&walk.kernel.state(), shut));
    walk.world = alone;
    walk.check_rest();
}

/// The address of a Service gets another target at this node: it is refused before, meanwhile and afterwards.
#[test]
fn a_service_that_changes_its_target_is_not_open_in_between() {
    let mut random = Random::new(1);
    let mut walk = Walk::new(&mut random);
    let first = World { host: walk.world.host.clone(), ..shop_with_a_host_endpoint() };
    walk.agent.take_in(&first);
    walk.rounds(9);
    let shut = to_service("10.244.0.1");
    watch(&walk.kernel, Some(Promise { never_to_services: vec![shut], ..Promise::default() }));
    let mut second = first.clone();
    services::put(&mut second, "shop/api", ("10.96.0.1", 443), &["192.0.2.11:7443"]);
    // Rules cannot be written for a while.
    walk.kernel.with(|machine| machine.broken = Some(Family::V4));
    walk.agent.take_in(&second);
    walk.rounds(5);
    walk.now += Duration::from_secs(10);
    walk.rounds(5);
    walk.kernel.with(|machine| machine.broken = None);
    walk.now += Duration::from_secs(60);
    walk.rounds(9);
    watch(&walk.kernel, None);
    walk.world = second;
    walk.check_rest();
}

/// With the firewall alone Services are never known, and what a rule denies does not depend on them.
#[test]
fn who_is_denied_no_more_passes_also_where_services_are_not_known() {
    let mut random = Random::new(1);
    let mut walk = Walk::new(&mut random);
    let mut world = Case::new()
        .namespace("shop", "")
        .pod("shop/a", HERE, ["10.244.0.1", "app=a", ""])
        .pod("shop/b", HERE, ["10.244.0.2", "app=b", ""])
        .0;
    world.host = walk.world.host.clone();
    world.authority.proxy = Authority::Nothing;
    let everybody = Subject { namespaces: Selector::everything(), pods: Selector::everything() };
    let deny = ClusterRule { name: "".into(), action: Action::Deny, matches: rule(&[pods_in("", "app=b")], &[]) };
    let guard = ClusterNetworkPolicy {
        tier: Tier::Admin,
        priority: 0,
        subject: everybody,
        ingress: [].into(),
        egress: [deny].into(),
    };
    world.cluster.cluster_policies.insert("guard".into(), guard);
    let traffic = Traffic::Port { protocol: sluice::net::Protocol::Tcp, port: 80 };
    let [source, destination] = ["10.244.0.1", "10.244.0.2"].map(|text| text.parse().expect("an address"));
    let packet = Packet { source, destination, traffic, from_this_node: false };
    walk.agent.take_in(&world);
    walk.rounds(3);
    assert!(!passes(&walk.kernel.state(), packet));
    let world = Case(world).edit_pod("shop/b", |pod| pod.labels = Labels::default()).0;
    walk.agent.take_in(&world);
    walk.rounds(3);
    assert!(passes(&walk.kernel.state(), packet));
}

#[test]
fn a_policy_and_a_pods_labels_that_change_together_open_nothing() {
    let shop = |peers: &str, of: &str| {
        let case = Case::new().namespace("shop", "");
        let case = case.pod("shop/db", HERE, ["10.244.0.1", "app=db", ""]).pod(
            "shop/web",
            HERE,
            ["10.244.0.2", "app=web", ""],
        );
        let case = case.pod("shop/x", ELSEWHERE, ["10.244.0.3", of, ""]);
        let case = case.policy("shop/db", "app=db", [Some(&[rule(&[pods(peers)], &[])]), None]);
        case.policy("shop/web", "app=web", [Some(&[rule(&[pods("role=client")], &[])]), None]).0
    };
    let worlds = [(shop("role=client", ""), 9), (shop("role=admin", "role=client"), 9)];
    stays_closed(&worlds, ("10.244.0.3", "10.244.0.1"));
}

#[test]
fn a_policy_that_comes_back_does_not_name_what_it_left() {
    let shop = |has_policy: bool, of: &str| {
        let case = Case::new().namespace("shop", "");
        let case =
            case.pod("shop/db", HERE, ["10.244.0.1", "app=db", ""]).pod("shop/x", ELSEWHERE, ["10.244.0.3", of, ""]);
        let case = case.policy("shop/always", "app=db", [Some(&[]), None]);
        match has_policy {
            true => case.policy("shop/again", "app=db", [Some(&[rule(&[pods("role=client")], &[])]), None]).0,
            false => case.0,
        }
    };
    // The second program ends after its first round, before it removes what nobody enters any more.
    let worlds = [(shop(true, "role=client"), 9), (shop(false, ""), 1), (shop(true, ""), 9)];
    stays_closed(&worlds, ("10.244.0.3", "10.244.0.1"));
}

/// Programs that put one World after the other into the kernel, each with so many rounds: from the second World on the
/// packet is refused after every single act.
fn stays_closed(worlds: &[(World, usize)], (source, destination): (&str, &str)) {
    let traffic = Traffic::Port { protocol: sluice::net::Protocol::Tcp, port: 80 };
    let [source, destination] = [source, destination].map(|text| text.parse().expect("an address"));
    let packet = Packet { source, destination, traffic, from_this_node: false };
    for goes_on in [false, true] {
        let mut random = Random::new(1);
        let mut walk = Walk::new(&mut random);
        for (number, (world, rounds)) in worlds.iter().enumerate() {
            if number > 1 || number == 1 && worlds.len() == 2 {
                assert!(!passes(&walk.kernel.state(), packet), "it is closed before");
                watch(&walk.kernel, Some(Promise { never: vec![packet], ..Promise::default() }));
            }
            if !goes_on || number == 0 {
                walk.agent = Agent::start(&walk.kernel, &walk.config);
            }
            walk.world = World { host: walk.world.host.clone(), ..world.clone() };
            walk.agent.take_in(&walk.world);
            walk.rounds(*rounds);
        }
        watch(&walk.kernel, None);
        assert!(!passes(&walk.kernel.state(), packet), "it is closed afterwards");
    }
}

/// The same of two Worlds, while many steps fail, with `--netpol-default-deny`. Rounds also come before failed steps are due again.
fn stays_closed_although_steps_fail([before, after]: &[World; 2], (source, destination): (&str, &str)) {
    let traffic = Traffic::Port { protocol: sluice::net::Protocol::Tcp, port: 80 };
    let [source, destination] = [source, destination].map(|text| text.parse().expect("an address"));
    let packet = Packet { source, destination, traffic, from_this_node: false };
    for seed in 0..60 {
        let mut random = Random::new(1);
        let mut walk = Walk::new(&mut random);
        walk.config = Arc::new(FirewallConfig { default_deny: true, ..(*walk.config).clone() });
        walk.agent = Agent::start(&walk.kernel, &walk.config);
        for (world, fails) in [(before, false), (after, true)] {
            let nodes = walk.world.cluster.nodes.clone();
            walk.world = World { host: walk.world.host.clone(), ..world.clone() };
            walk.world.cluster.nodes = nodes;
            walk.agent.take_in(&walk.world);
            if fails {
                assert!(!passes(&walk.kernel.state(), packet), "it is closed before");
                watch(&walk.kernel, Some(Promise { never: vec![packet], ..Promise::default() }));
                let random = Random::new(seed);
                walk.kernel.with(|machine| machine.faults = Faults { random, steps: 50, reads: 10, alive_for: None });
                let begun = walk.now;
                for number in 0..8 {
                    let at = walk.moment();
                    walk.agent.mirrors.round(walk.agent.lowering.desired(), Authority::Complete, at);
                    if let (true, Some(due)) = (number % 2 == 1, walk.agent.mirrors.retry_at()) {
                        // A step that has failed for two seconds no longer holds up others.
                        walk.now = due.min(begun + Duration::from_millis(1900));
                    }
                }
                walk.kernel.with(|machine| machine.faults = Faults::none());
            }
            walk.rounds(9);
        }
        watch(&walk.kernel, None);
        walk.check_rest();
        assert!(!passes(&walk.kernel.state(), packet), "it is closed afterwards");
    }
}

impl Agent {
    fn start(kernel: &MemoryKernel, config: &Arc<FirewallConfig>) -> Agent {
        Agent {
            plan: Plan::new(),
            lowering: Lowering::new(config.clone(), PerFamily { v4: true, v6: true }),
            mirrors: Mirrors::new(kernel.firewall_targets()),
        }
    }

    fn take_in(&mut self, world: &World) {
        let changed = self.plan.update(world);
        let lowered = self.lowering.update(self.plan.rules(), world, &changed);
        self.mirrors.mark(&lowered);
    }
}

impl<'r> Walk<'r> {
    fn new(random: &'r mut Random) -> Walk<'r> {
        let default_deny = random.chance(50);
        let config = Arc::new(FirewallConfig {
            backend: sluice::config::Backend::default(),
            sync_period: Duration::from_secs(300),
            default_deny,
            flush_established: false,
            ranges: ServiceRanges {
                cluster_ips: ["10.96.0.0/12", "fd00:10:96::/108"].map(|range| range.parse().expect("a range")).into(),
                external_ips: vec!["203.0.113.128/25".parse().expect("a range")],
                ..ServiceRanges::default()
            },
            knows_services: true,
            tunnel_mode: true,
            service_node_port_range: 30000..=32767,
        });
        let kernel = MemoryKernel::new(State::of_others());
        let mut world = clusters::empty_world();
        let pod_cidrs = RANGES.iter().map(|range| range.parse().expect("a range")).collect();
        world.cluster.nodes.insert("node1".into(), Node { pod_cidrs, ..Node::default() });
        let mut agent = Agent::start(&kernel, &config);
        agent.take_in(&world);
        Walk { random, kernel, config, world, agent, now: Instant::now(), story: Vec::new() }
    }

    fn run(mut self) {
        for _ in 0..STEPS {
            let told = match self.random.below(20) {
                0..=9 => self.change_anything(),
                10..=12 => self.change_policies_only(),
                13 => self.change_labels_of_one_pod(),
                14 => self.restart(),
                15 => self.restart_with_what_was_remembered(),
                16 => self.see_only_a_part(),
                17 => self.damage(),
                18 => self.lose_modules(),
                _ => {
                    self.now += Duration::from_secs(40);
                    "time passes".to_owned()
                }
            };
            self.story.push(told);
            if self.random.chance(40) {
                self.settle();
            }
        }
        self.kernel.with(|machine| machine.unloadable.clear());
        self.now += Duration::from_secs(60);
        self.settle();
        self.check_rest();
        self.agent = Agent::start(&self.kernel, &self.config);
        self.agent.take_in(&self.world);
        let acts = self.kernel.with(|machine| machine.acts);
        self.settle();
        assert_eq!(self.kernel.with(|machine| machine.acts), acts, "a restart writes nothing");
        let foreign = self.kernel.with(|machine| machine.foreign_damage());
        assert!(foreign.is_empty(), "{foreign:?}");
    }

    /// The rules of IPv6 cannot be changed: IPv4 goes on as ever, and whoever shall be no peer any more is none.
    fn run_without_a_family(mut self) {
        for _ in 0..20 {
            self.change_some(1);
        }
        self.settle();
        self.kernel.with(|machine| machine.broken = Some(Family::V6));
        for _ in 0..30 {
            let count = 1 + self.random.below(4);
            let told = self.change_some(count);
            self.story.push(told);
            self.rounds(3);
            self.now += Duration::from_secs(3);
            self.rounds(3);
            let (state, desired) = (self.kernel.state(), self.agent.lowering.desired());
            let surplus: Vec<&ElementKey> = state
                .elements
                .keys()
                .filter(|key| desired.sets.contains_key(&key.set) && !desired.elements.contains_key(key))
                // An element whose removal opens a path may wait for rules.
                .filter(|key| !desired.closes(key))
                .collect();
            assert!(surplus.is_empty(), "{surplus:?} are left, after {:#?}", self.story);
            for _ in 0..20 {
                let packet = Packet { from_this_node: false, ..clusters::packet(self.random) };
                if packet.source.is_ipv4() {
                    let expected = self.expected(self.agent.plan.rules(), &packet);
                    assert_eq!(passes(&state, packet), expected, "{packet:?}, after {:#?}", self.story);
                }
            }
        }
        self.kernel.with(|machine| machine.broken = None);
        self.now += Duration::from_secs(60);
        self.settle();
        self.check_rest();
    }

    /// A start at which one object could not be read, and changes behind it.
    fn run_on_a_part(mut self) {
        for _ in 0..20 {
            self.change_some(1);
        }
        self.settle();
        self.agent = Agent::start(&self.kernel, &self.config);
        self.agent.take_in(&self.world);
        self.rounds_of(3, Authority::Partial);
        for _ in 0..30 {
            let told = self.change_some(1);
            self.story.push(told);
            self.rounds_of(4, Authority::Partial);
            let state = self.kernel.state();
            for _ in 0..30 {
                let packet = Packet { from_this_node: false, ..clusters::packet(self.random) };
                let expected = self.expected(self.agent.plan.rules(), &packet);
                assert!(expected || !passes(&state, packet), "{packet:?} is open, after {:#?}", self.story);
            }
        }
    }

    fn change_some(&mut self, count: usize) -> String {
        let node = self.world.host.clone();
        let told: Vec<String> = (0..count).map(|_| clusters::change(&mut self.world, self.random)).collect();
        // The name of a running host does not change.
        self.world.host = node;
        self.agent.take_in(&self.world);
        told.join("; ")
    }

    fn change_anything(&mut self) -> String {
        let count = *self.random.pick(&[1, 1, 8]);
        if self.random.chance(30) {
            let told = self.change_some(count);
            watch_entering(&self.kernel, self.agent.plan.rules().clone());
            self.rounds(3);
            watch(&self.kernel, None);
            return told;
        }
        self.settle();
        let (before, older) = (self.agent.plan.rules().clone(), self.world.clone());
        let told = self.change_some(count);
        let never_to_services = self.refused_services(&[&older, &self.world.clone()]);
        let promise = Promise { always: Vec::new(), never_to_services, ..self.promise(&before) };
        watch(&self.kernel, Some(promise));
        self.fail_at_times();
        self.rounds(5);
        self.kernel.with(|machine| machine.faults = Faults::none());
        watch(&self.kernel, None);
        told
    }

    fn fail_at_times(&mut self) -> bool {
        let faults = self.random.chance(50);
        if faults {
            let random = Random::new(self.random.next());
            self.kernel.with(|machine| machine.faults = Faults { random, steps: 20, reads: 10, alive_for: None });
        }
        faults
    }

    /// Only here a packet's fate is known at every moment: sets and rules change together.
    fn change_policies_only(&mut self) -> String {
        self.settle();
        let before = self.agent.plan.rules().clone();
        let older = self.world.cluster.clone();
        for _ in 0..20 {
            let node = self.world.host.clone();
            clusters::change(&mut self.world, self.random);
            self.world.host = node;
        }
        let changed = &self.world.cluster;
        let (policies, cluster_policies) = (changed.policies.clone(), changed.cluster_policies.clone());
        self.world.cluster = sluice::model::Cluster { policies, cluster_policies, ..older };
        self.agent.take_in(&self.world);
        let promise = self.promise(&before);
        watch(&self.kernel, Some(promise));
        let faults = self.fail_at_times();
        // Before rules have waited too long for sets that fail again and again.
        self.rounds(5);
        self.kernel.with(|machine| machine.faults = Faults::none());
        watch(&self.kernel, None);
        format!("policies change, with faults: {faults}")
    }

    /// The change of one object takes effect at one moment, also where the kernel needs several steps for it.
    fn change_labels_of_one_pod(&mut self) -> String {
        self.settle();
        let before = self.agent.plan.rules().clone();
        let is_here = |pod: &Pod| pod.node.as_deref() == Some("node1") && pod.takes_part();
        let here = self.world.cluster.pods.iter().filter(|(_, pod)| is_here(pod)).map(|(name, _)| name.clone());
        let Some(name) = self.random.pick_from(here) else { return "no pod is here".to_owned() };
        let other = clusters::world(self.random, 8);
        let labels = other.cluster.pods.iter().next().map(|(_, pod)| pod.labels.clone()).unwrap_or_default();
        let mut pod = (**self.world.cluster.pods.get(&name).expect("it was picked")).clone();
        pod.labels = labels;
        let told = format!("{name} gets the labels {:?}", pod.labels);
        self.world.cluster.pods.insert(name, pod);
        self.agent.take_in(&self.world);
        let mut promise = self.promise(&before);
        if !self.world.cluster.cluster_policies.is_empty() {
            // Denials of a pod are in the kernel before the new permissions.
            promise.always.clear();
        }
        watch(&self.kernel, Some(promise));
        self.fail_at_times();
        self.rounds(5);
        self.kernel.with(|machine| machine.faults = Faults::none());
        watch(&self.kernel, None);
        told
    }

    fn promise(&mut self, before: &RuleSet) -> Promise {
        let lacks_nothing = self.kernel.with(|machine| machine.unloadable.is_empty());
        let well = lacks_nothing && self.agent.mirrors.refusals().all().is_empty();
        let after = self.agent.plan.rules().clone();
        let mut promise = Promise::default();
        for _ in 0..60 {
            let packet = Packet { from_this_node: false, ..clusters::packet(self.random) };
            match (self.expected(before, &packet), self.expected(&after, &packet)) {
                (false, false) => promise.never.push(packet),
                // The replacement for a refused chain allows less.
                (true, true) if well => promise.always.push(packet),
                _ => {}
            }
        }
        promise
    }

    /// Packets to Services that INPUT has to refuse in each of these worlds.
    fn refused_services(&mut self, worlds: &[&World]) -> Vec<Packet> {
        let (addresses, world) = (clusters::addresses(), self.world.clone());
        let packets = (0..200).map(|_| services::packet(self.random, &world, &addresses));
        packets.filter(|packet| worlds.iter().all(|world| services::is_refused(world, packet))).collect()
    }

    fn restart(&mut self) -> String {
        self.agent = Agent::start(&self.kernel, &self.config);
        self.agent.take_in(&self.world);
        self.rounds(2);
        "a restart".to_owned()
    }

    /// A remembered cluster may be older than the kernel: nothing that exists changes.
    fn restart_with_what_was_remembered(&mut self) -> String {
        let mut remembered = self.world.clone();
        for _ in 0..5 {
            clusters::change(&mut remembered, self.random);
        }
        remembered.host = self.world.host.clone();
        self.agent = Agent::start(&self.kernel, &self.config);
        self.agent.take_in(&remembered);
        let before = self.kernel.state();
        let mut promise = Promise::default();
        for _ in 0..60 {
            let packet = Packet { from_this_node: false, ..clusters::packet(self.random) };
            promise.never.extend((!passes(&before, packet)).then_some(packet));
        }
        watch(&self.kernel, Some(promise));
        self.rounds_of(2, Authority::Remembered);
        watch(&self.kernel, None);
        let after = self.kernel.state();
        let kept = before.rules.iter().all(|(piece, rules)| after.rules.get(piece) == Some(rules))
            && before.sets.iter().all(|(set, spec)| after.sets.get(set) == Some(spec))
            && before.elements.keys().all(|element| after.elements.contains_key(element));
        assert!(kept, "nothing that existed has changed, after {:#?}", self.story);
        self.agent.take_in(&self.world);
        self.rounds(1);
        "a restart with what was remembered".to_owned()
    }

    /// Absence proves nothing: whoever was judged is judged still.
    fn see_only_a_part(&mut self) -> String {
        self.settle();
        let mut part = self.world.clone();
        let gone: Vec<_> = part.cluster.pods.iter().map(|(name, _)| name.clone()).collect();
        for name in gone.iter().filter(|_| self.random.chance(50)) {
            part.cluster.pods.remove(name);
        }
        let gone: Vec<_> = part.cluster.policies.iter().map(|(name, _)| name.clone()).collect();
        for name in gone.iter().filter(|_| self.random.chance(50)) {
            part.cluster.policies.remove(name);
        }
        let before = self.kernel.state();
        self.agent = Agent::start(&self.kernel, &self.config);
        self.agent.take_in(&part);
        self.agent.mirrors.round(self.agent.lowering.desired(), Authority::Partial, self.moment());
        let after = self.kernel.state();
        for (piece, rules) in &before.rules {
            let is_dispatch = matches!(piece, Piece::Chain { chain, .. } if chain.starts_with("KUBE-ROUTER-"));
            let jumps = rules.0.iter().filter(|rule| rule.to_string().contains(names::POD_CHAINS));
            for jump in jumps.filter(|_| is_dispatch) {
                let now = after.rules.get(piece).expect("a dispatch chain never goes");
                assert!(now.0.contains(jump), "{jump} is gone from {piece}, after {:#?}", self.story);
            }
        }
        self.agent.take_in(&self.world);
        self.rounds(1);
        "only a part is seen".to_owned()
    }

    /// Somebody takes away, or changes, something of ours; an audit finds it.
    fn damage(&mut self) -> String {
        let chance = self.random.next();
        let kernel = self.kernel.clone();
        let told = kernel.with(|machine| {
            let mut random = Random::new(chance);
            let ours = |piece: &Piece| piece.to_string().contains("KUBE-");
            match random.below(3) {
                0 => {
                    let chains = machine.state.rules.keys().filter(|piece| ours(piece));
                    let Some(piece) = random.pick_from(chains.cloned()) else { return "no damage".to_owned() };
                    machine.state.rules.insert(piece.clone(), Rules(Vec::new()));
                    format!("{piece} is flushed")
                }
                1 => {
                    let elements = machine.state.elements.keys().filter(|key| key.set.0.contains("KUBE-"));
                    let Some(key) = random.pick_from(elements.cloned()) else { return "no damage".to_owned() };
                    machine.state.elements.remove(&key);
                    format!("{key} is gone")
                }
                _ => {
                    machine.state.rules.retain(|piece, _| !ours(piece));
                    "all rules are gone".to_owned()
                }
            }
        });
        while !self.agent.mirrors.audit_portion(self.moment()).1 {}
        self.rounds(2);
        told
    }

    /// Some chains can no longer be written, or all can again.
    fn lose_modules(&mut self) -> String {
        let lost: BTreeSet<_> = match self.random.chance(50) {
            true => BTreeSet::new(),
            false => {
                let rules = self.agent.lowering.desired().rules.keys();
                let chains = rules.filter_map(|piece| match piece {
                    Piece::Chain { chain, .. } => Some(chain.clone()),
                    _ => None,
                });
                // A kernel that refuses one of the first three refuses all of them, which have the same match and target.
                let fixed = [
                    names::CHAIN_DEFAULT,
                    names::CHAIN_DENY,
                    names::CHAIN_PASS,
                    names::CHAIN_COMMON,
                    names::CHAIN_LINK_LOCAL,
                    names::CHAIN_MULTICAST,
                    names::CHAIN_HOST_ENDPOINTS,
                    names::CHAIN_TAIL,
                ];
                let of_one = |chain: &compact_str::CompactString| {
                    !fixed.contains(&chain.as_str()) && !chain.starts_with("KUBE-ROUTER-")
                };
                chains.filter(of_one).filter(|_| self.random.chance(20)).collect()
            }
        };
        let told = format!("lost: {lost:?}");
        self.kernel.with(|machine| machine.unloadable = lost);
        told
    }

    fn rounds(&mut self, rounds: usize) {
        self.rounds_of(rounds, Authority::Complete);
    }

    fn rounds_of(&mut self, rounds: usize, authority: Authority) {
        for _ in 0..rounds {
            let at = self.moment();
            self.agent.mirrors.round(self.agent.lowering.desired(), authority, at);
            let mirrors = &self.agent.mirrors;
            if mirrors.is_settled() {
                assert_eq!(mirrors.retry_at(), mirrors.refusals().retry_at(), "what is settled is done");
            }
            let Some(due) = mirrors.retry_at() else { continue };
            let families: Vec<_> = (mirrors.reflections().into_iter())
                .map(|family| (family.name(), family.retry_at(), family.trouble().cloned()))
                .collect();
            assert!(due > self.now, "nothing is left for the same moment: {families:?}, after {:#?}", self.story);
            self.now = due;
        }
    }

    fn settle(&mut self) {
        for _ in 0..30 {
            self.rounds(1);
            if self.agent.mirrors.is_settled() {
                break;
            }
        }
        let families = self.agent.mirrors.reflections();
        let open: Vec<_> = (families.into_iter())
            .map(|family| (family.name(), family.is_settled(), family.trouble().cloned()))
            .collect();
        assert!(self.agent.mirrors.is_settled(), "it settles: {open:?}, after {:#?}", self.story);
        self.check_packets();
    }

    /// The kernel does what the rules mean; where it lacks modules it refuses more.
    fn check_packets(&mut self) {
        let state = self.kernel.state();
        let lacks = !self.agent.mirrors.refusals().all().is_empty();
        for _ in 0..40 {
            let packet = Packet { from_this_node: false, ..clusters::packet(self.random) };
            let expected = self.expected(self.agent.plan.rules(), &packet);
            let found = passes(&state, packet);
            assert!(found == expected || (lacks && expected), "{packet:?}: {found}, after {:#?}", self.story);
        }
        let world = self.world.clone();
        for packet in self.refused_services(&[&world]) {
            assert!(!reaches(&state, packet), "{packet:?}, after {:#?}", self.story);
        }
    }

    /// Expected verdict on a packet in the settled state.
    fn expected(&self, rules: &RuleSet, packet: &Packet) -> bool {
        let is_known = |address| rules.local_pods_at(address).next().is_some();
        let is_closed = |address: IpAddr| {
            let in_range = RANGES.iter().any(|range| range.parse::<IpNet>().expect("a range").contains(&address));
            self.config.default_deny && in_range && !is_known(address)
        };
        if let Traffic::Icmp { kind } = packet.traffic
            && let family = Family::from(packet.source)
            && icmp::always_pass(family).iter().any(|one| one.number(family) == kind)
            && (is_known(packet.source) || is_known(packet.destination))
            && !(link_local::refuses(packet) && link_local::is_closed(rules))
            && !(multicast::refuses(packet) && multicast::is_closed(rules))
        {
            return true;
        }
        verdict(rules, packet).passes() && !is_closed(packet.source) && !is_closed(packet.destination)
    }

    fn check_rest(&mut self) {
        let desired = self.agent.lowering.desired().clone();
        let state = self.kernel.state();
        assert_eq!(ours(&state), desired.rules, "after {:#?}", self.story);
        let is_ours = |set: &sluice::kernel::ipset::SetName| set.0.contains("KUBE-") || set.0.contains("kube-");
        let sets: BTreeMap<_, _> = state.sets.into_iter().filter(|(set, _)| is_ours(set)).collect();
        let elements: Elements = state.elements.into_iter().filter(|(key, ())| is_ours(&key.set)).collect();
        assert_eq!(sets, desired.sets, "after {:#?}", self.story);
        assert_eq!(elements, desired.elements, "after {:#?}", self.story);
        assert!(self.agent.mirrors.refusals().all().is_empty());
    }

    fn moment(&self) -> Moment {
        Moment { now: self.now, jitter: 0 }
    }
}

/// Looks at every act.
fn watch(kernel: &MemoryKernel, promise: Option<Promise>) {
    let Some(promise) = promise else {
        kernel.with(|machine| machine.observer = None);
        return;
    };
    let last: Rc<RefCell<Option<String>>> = Rc::default();
    let observer = move |state: &State, object: &Object| {
        let told = object.to_string();
        for packet in &promise.never {
            assert!(!passes(state, *packet), "{packet:?} passes after {told}, and {:?} before", last.borrow());
        }
        for packet in &promise.never_to_services {
            assert!(!reaches(state, *packet), "{packet:?} passes after {told}, and {:?} before", last.borrow());
        }
        for packet in &promise.always {
            assert!(passes(state, *packet), "{packet:?} is refused after {told}, and {:?} before", last.borrow());
        }
        *last.borrow_mut() = Some(told);
    };
    kernel.with(|machine| machine.observer = Some(Box::new(observer)));
}

/// Looks at every address that enters the set of local pods while unknown ones are closed: its rules are there.
fn watch_entering(kernel: &MemoryKernel, rules: RuleSet) {
    let mut random = Random::new(1);
    let observer = move |state: &State, object: &Object| {
        let Object::Element(ElementKey { set, entry: Entry::Ip(address) }) = object else { return };
        let family = Family::from(*address);
        let tail = state.rules.get(&dispatch::chain(family, names::CHAIN_TAIL));
        let entered = state.elements.keys().any(|key| key.set == *set && key.entry == Entry::Ip(*address));
        if set != names::local_pods(family) || !entered || !tail.is_some_and(dispatch::closes) {
            return;
        }
        for _ in 0..30 {
            let packet = Packet { from_this_node: false, ..clusters::packet(&mut random) };
            if Family::from(packet.source) != family {
                continue;
            }
            for packet in [Packet { source: *address, ..packet }, Packet { destination: *address, ..packet }] {
                let allowed = verdict(&rules, &packet).passes();
                assert!(allowed || !passes(state, packet), "{packet:?} passes when {address} enters");
            }
        }
    };
    kernel.with(|machine| machine.observer = Some(Box::new(observer)));
}

fn passes(state: &State, packet: Packet) -> bool {
    let rules = ours(state);
    let local = BTreeSet::new();
    let chains = Chains { rules: &rules, elements: &state.elements, local: &local };
    chains.fate("FORWARD", Traced { packet, state: Tracked::New, mark: 0 }).0.passes()
}

/// Whether a packet to a Service passes INPUT.
fn reaches(state: &State, packet: Packet) -> bool {
    let rules = ours(state);
    let local = ["192.0.2.11", "2001:db8:2::11"].map(|text| text.parse().expect("an address")).into();
    let chains = Chains { rules: &rules, elements: &state.elements, local: &local };
    chains.fate("INPUT", Traced { packet, state: Tracked::New, mark: 0 }).0.passes()
}

fn ours(state: &State) -> BTreeMap<Piece, Rules> {
    let ours = state.rules.iter().filter(|(piece, _)| piece.to_string().contains("KUBE-"));
    ours.map(|(piece, rules)| (piece.clone(), rules.clone())).collect()
}
