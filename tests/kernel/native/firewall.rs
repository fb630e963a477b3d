//! Network policies in the real kernel: who reaches whom, with real packets between namespaces, before and after each
//! change; both flavours of iptables and nftables, both families.
//!
//! Each test is a node: its pods, a pod of another node and a host outside are namespaces with a device each, and the
//! node routes between them.

#![allow(clippy::indexing_slicing, reason = "a test that panics has failed, which is how a test says so")]
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is how a test says so")]

use std::sync::Arc;
use std::time::Duration;

use sluice::config::{FirewallConfig, ServiceRanges};
use sluice::firewall::iptables::apply::IptablesRound;
use sluice::firewall::iptables::desired::Desired;
use sluice::firewall::nftables::names::TABLE;
use sluice::firewall::plan::Plan;
use sluice::firewall::rules::RuleSet;
use sluice::firewall::verdict::{Packet, Traffic, verdict};
use sluice::kernel::Name;
use sluice::kernel::iptables::{Families, Flavour, Program, Programs, Table, Timing, counted};
use sluice::kernel::monitor::Notice;
use sluice::kernel::netlink::{Bus, Messages, Socket, flag};
use sluice::model::{
    Authority, Host, Labels, NamedPort, Namespace, Namespaces, NetworkPolicy, Node, ObjectName, Operator, Peer, Peers,
    Pod, PolicyPort, PolicyRule, PortMatch, Ports, Requirement, Selector, World,
};
use sluice::net::{Family, PerFamily, Protocol};
use sluice::reconcile::Moment;
use sluice::subsystem::Kinds;

use super::enforcer::{Enforcer, Filter};
use super::moment;
use super::places::{Place, Places, Tally, Try};
use crate::namespace::{attempt, in_new, own_run, run, shell};

pub const BOTH: [Flavour; 2] = [Flavour::Legacy, Flavour::NfTables];
pub const PODS: [(&str, &str, &str); 4] = [
    ("web", "10.244.1.10", "fd00:10:244:1::10"),
    ("db", "10.244.1.11", "fd00:10:244:1::11"),
    ("far", "10.244.2.10", "fd00:10:244:2::10"),
    ("plain", "10.244.1.12", "fd00:10:244:1::12"),
];
const OUTSIDE: (&str, &str, &str) = ("outside", "203.0.113.9", "2001:db8:113::9");
/// Those of the node itself, which is also the pods' gateway.
pub const GATEWAY: (&str, &str, &str) = ("node", "10.244.1.1", "fd00:10:244:1::1");

/// A node with its firewall.
pub struct Machine {
    pub places: Arc<Places>,
    pub world: World,
    plan: Plan,
    pub enforcer: Enforcer,
}

/// A machine with each of the packet filters.
pub fn with_each(default_deny: bool, test: impl Fn(&mut Machine) + Send + Sync) {
    Filter::ALL.into_iter().for_each(|filter| with(filter, default_deny, &test));
}

/// A machine with each of the packet filters that ends connections which policies newly deny.
pub fn with_each_that_ends_connections(test: impl Fn(&mut Machine) + Send + Sync) {
    let config = Arc::new(FirewallConfig { flush_established: true, ..(*config(false)).clone() });
    for filter in Filter::ALL {
        in_new(|| {
            own_run();
            test(&mut Machine::with_config(filter, places(), config.clone()));
        });
    }
}

/// A machine with each flavour of iptables, for what is about its chains and sets.
pub fn with_each_flavour(default_deny: bool, test: impl Fn(&mut Machine, Flavour) + Send + Sync) {
    BOTH.into_iter()
        .for_each(|flavour| with(Filter::Iptables(flavour), default_deny, |machine| test(machine, flavour)));
}

/// A machine with this packet filter.
pub fn with(filter: Filter, default_deny: bool, test: impl Fn(&mut Machine) + Send + Sync) {
    in_new(|| {
        own_run();
        test(&mut Machine::new(filter, places(), default_deny));
    });
}

/// The pods and a host outside, in the namespace of the calling thread.
pub fn places() -> Places {
    let all = PODS.into_iter().chain([OUTSIDE]);
    Places::new(all.map(|(name, v4, v6)| Place::new(name, v4, v6)).collect(), GATEWAY)
}

impl Machine {
    fn new(filter: Filter, places: Places, default_deny: bool) -> Machine {
        Machine::with_config(filter, places, config(default_deny))
    }

    fn with_config(filter: Filter, places: Places, config: Arc<FirewallConfig>) -> Machine {
        let enforcer = Enforcer::new(filter, config, BOTH_FAMILIES);
        Machine { places: Arc::new(places), world: world(), plan: Plan::new(), enforcer }
    }

    /// Brings the world into the kernel. Returns how many steps that took.
    pub fn settle(&mut self) -> u64 {
        self.take_in();
        self.enforcer.settle()
    }

    /// Returns what the policies mean, as of the last World.
    pub fn rules(&self) -> &RuleSet {
        self.plan.rules()
    }

    pub fn take_in(&mut self) {
        let changed = self.plan.update(&self.world);
        self.enforcer.update(self.plan.rules(), &self.world, &changed);
    }

    /// One round at a time that a test may choose.
    pub fn round(&mut self, at: Moment) -> IptablesRound {
        self.enforcer.round_of_iptables(at)
    }

    /// The program ends and starts anew. Returns how many steps the new one takes.
    pub fn restart(&mut self) -> u64 {
        self.restart_with(self.enforcer.filter)
    }

    /// The same with another packet filter.
    pub fn restart_with(&mut self, filter: Filter) -> u64 {
        self.plan = Plan::new();
        self.enforcer.restart_with(filter);
        self.settle()
    }

    /// Metrics of refused packets in the exposition format.
    pub fn refused(&mut self) -> String {
        self.enforcer.refused(self.plan.rules())
    }

    /// Tries every path and compares with what the rules mean.
    pub fn check(&mut self, told: &str) {
        self.settle();
        self.check_paths(told);
    }

    /// Tries these paths from and to, which are open or closed, in both families.
    pub fn assert_paths(&self, told: &str, paths: &[((&str, &str), bool)]) {
        let tries: Vec<_> = paths
            .iter()
            .flat_map(|((from, to), _)| Family::BOTH.map(|family| (family, *from, *to, Protocol::Tcp, 80)))
            .collect();
        let expected: Vec<_> = paths.iter().flat_map(|(_, open)| [Some(*open); 2]).collect();
        let wrong = told_ways(&self.places.wrong(&tries, &expected));
        assert!(wrong.is_empty(), "{:?}, {told}:\n{wrong}", self.enforcer.filter);
    }

    pub fn check_paths(&self, told: &str) {
        let names: Vec<&str> = PODS.iter().map(|(name, ..)| *name).chain(["outside", "node"]).collect();
        let tries = ways(&names, &PROTOCOLS[..2]);
        let expected: Vec<Option<bool>> = tries.iter().map(|way| Some(self.expected(*way))).collect();
        let wrong = told_ways(&self.places.wrong(&tries, &expected));
        assert!(wrong.is_empty(), "{:?}, {told}:\n{wrong}\n{}", self.enforcer.filter, self.saved());
    }

    fn expected(&self, way: Try<'_>) -> bool {
        verdict(self.plan.rules(), &packet(&self.places, way)).passes()
    }

    pub fn saved(&self) -> String {
        self.enforcer.filter.saved()
    }

    pub fn put_policy(&mut self, name: &str, policy: NetworkPolicy) {
        self.world.cluster.policies.insert(ObjectName::new("shop", name), policy);
    }
}

pub fn config(default_deny: bool) -> Arc<FirewallConfig> {
    Arc::new(FirewallConfig {
        backend: sluice::config::Backend::default(),
        sync_period: Duration::from_secs(300),
        default_deny,
        flush_established: false,
        ranges: ServiceRanges {
            cluster_ips: vec!["10.96.0.0/12".parse().unwrap(), "fd00:10:96::/108".parse().unwrap()],
            ..ServiceRanges::default()
        },
        knows_services: true,
        tunnel_mode: false,
        service_node_port_range: 30000..=32767,
    })
}

/// A World with this node, a namespace, the pods, and no policy.
pub fn world() -> World {
    let mut world = World::empty();
    world.host = Arc::new(Host { node_name: "node1".into(), ..Host::default() });
    let pod_cidrs = ["10.244.1.0/24", "fd00:10:244:1::/64"].iter().map(|cidr| cidr.parse().unwrap()).collect();
    world.cluster.nodes.insert("node1".into(), Node { pod_cidrs, ..Node::default() });
    world.cluster.namespaces.insert("shop".into(), Namespace::default());
    for (name, v4, v6) in PODS {
        put_pod(&mut world, name, &[v4, v6], &[("app", name)]);
    }
    world
}

pub const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// All ways between these, but for those that never pass this node and say nothing.
pub fn ways<'a>(names: &[&'a str], protocols: &[Protocol]) -> Vec<Try<'a>> {
    let is_far = |name: &str| name.starts_with("far") || name == "outside";
    let mut ways = Vec::new();
    for (from, to) in names.iter().flat_map(|from| names.iter().map(move |to| (*from, *to))) {
        if from == to || is_far(from) && (is_far(to) || to == "node") {
            continue;
        }
        for (family, protocol) in Family::BOTH.into_iter().flat_map(|f| protocols.iter().map(move |p| (f, *p))) {
            ways.extend([80, 81].map(|port| (family, from, to, protocol, port)));
        }
    }
    ways
}

pub fn packet(places: &Places, (family, from, to, protocol, port): Try<'_>) -> Packet {
    Packet {
        source: places.address(from, family),
        destination: places.address(to, family),
        traffic: Traffic::Port { protocol, port },
        from_this_node: from == "node",
    }
}

/// Ways and whether they are open, a line for each.
pub fn told_ways(ways: &[(Try<'_>, bool)]) -> String {
    let line = |((family, from, to, protocol, port), open): &(Try<'_>, bool)| {
        format!("{family} {from} to {to} {protocol} {port} is {}\n", if *open { "open" } else { "closed" })
    };
    ways.iter().map(line).collect()
}

pub const BOTH_FAMILIES: PerFamily<bool> = PerFamily { v4: true, v6: true };

pub fn programs(flavour: Flavour) -> Families {
    PerFamily::from_fn(|_| Some(Programs { flavour, plain: false }))
}

pub fn put_pod(world: &mut World, name: &str, addresses: &[&str], labels: &[(&str, &str)]) {
    let port = |name: &str, number| NamedPort { name: name.into(), protocol: Protocol::Tcp, number };
    let pod = Pod {
        uid: None,
        labels: labels.iter().copied().collect::<Labels>(),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        node: Some(if name.starts_with("far") { "node2" } else { "node1" }.into()),
        host_network: false,
        finished: false,
        ports: [port("http", 80), port("other", 81)].into(),
    };
    world.cluster.pods.insert(ObjectName::new("shop", name), pod);
}

pub fn app(name: &str) -> Selector {
    [Requirement { key: "app".into(), operator: Operator::In([name.into()].into()) }].into_iter().collect()
}

pub fn from_app(name: &str) -> Peers {
    Peers::Of([Peer::Pods { namespaces: Namespaces::Own, pods: app(name) }].into())
}

pub fn rule(peers: Peers, ports: Ports) -> PolicyRule {
    PolicyRule { peers, ports }
}

pub fn port(protocol: Protocol, number: PortMatch) -> Ports {
    Ports::Of([PolicyPort { protocol, number }].into())
}

pub fn ingress(pods: Selector, rules: &[PolicyRule]) -> NetworkPolicy {
    NetworkPolicy { pods, ingress: Some(rules.into()), egress: None }
}

pub fn egress(pods: Selector, rules: &[PolicyRule]) -> NetworkPolicy {
    NetworkPolicy { pods, ingress: None, egress: Some(rules.into()) }
}

pub fn block(cidr: &str, except: &[&str]) -> Peers {
    let except = except.iter().map(|hole| hole.parse().unwrap()).collect();
    Peers::Of([Peer::Block { cidr: cidr.parse().unwrap(), except }].into())
}

#[test]
fn who_reaches_whom_follows_the_policies_step_by_step() {
    with_each(false, |machine| {
        machine.check("without policies");
        machine.put_policy("deny", ingress(app("web"), &[]));
        machine.check("web accepts nothing");
        machine.put_policy("allow", ingress(app("web"), &[rule(from_app("db"), Ports::Any)]));
        machine.check("web accepts db");
        let http = port(Protocol::Tcp, PortMatch::Named("http".into()));
        machine.put_policy("allow", ingress(app("web"), &[rule(from_app("db"), http)]));
        machine.check("web accepts db at a named port");
        put_pod(&mut machine.world, "db", &[PODS[1].1, PODS[1].2], &[("app", "other")]);
        machine.check("db has other labels");
        put_pod(&mut machine.world, "db", &[PODS[1].1, PODS[1].2], &[("app", "db")]);
        machine.put_policy("out", egress(app("web"), &[rule(block("0.0.0.0/0", &["10.244.0.0/16"]), Ports::Any)]));
        machine.check("web sends outside only");
        let ports = port(Protocol::Udp, PortMatch::Range { first: 80, last: 81 });
        machine.put_policy("out", egress(app("web"), &[rule(block("::/0", &[]), ports)]));
        machine.check("web sends by IPv6 and UDP only");
        machine.put_policy(
            "both",
            NetworkPolicy {
                pods: Selector::everything(),
                ingress: Some([rule(from_app("web"), Ports::Any)].into()),
                egress: Some([].into()),
            },
        );
        machine.check("what one direction allows does not serve the other");
        for name in ["deny", "allow", "out", "both"] {
            machine.world.cluster.policies.remove(&ObjectName::new("shop", name));
        }
        machine.check("without policies again");
        let saved = machine.saved();
        let left = ["KUBE-POD-FW-", "KUBE-SRC-", "_shop_"].iter().filter(|word| saved.contains(**word)).count();
        assert_eq!(left, 0, "nothing is left over: {saved}");
    });
}

#[test]
fn a_restart_writes_nothing_and_a_label_changes_one_element() {
    with_each(false, |machine| {
        let numbers: Vec<PolicyPort> = (0..20)
            .map(|n| PolicyPort {
                protocol: Protocol::Sctp,
                number: PortMatch::Range { first: n * 10, last: n * 10 + n % 3 },
            })
            .collect();
        machine.put_policy(
            "many",
            ingress(
                app("web"),
                &[
                    rule(from_app("db"), Ports::Of(numbers.into())),
                    rule(block("0.0.0.0/0", &["203.0.113.0/24"]), Ports::Any),
                    rule(block("::/0", &[]), port(Protocol::Tcp, PortMatch::Named("http".into()))),
                    rule(Peers::Any, port(Protocol::Udp, PortMatch::Any)),
                ],
            ),
        );
        machine.put_policy(
            "out",
            egress(app("web"), &[rule(from_app("far"), port(Protocol::Tcp, PortMatch::Named("http".into())))]),
        );
        assert!(machine.settle() > 0);
        let before = machine.saved();
        assert_eq!(machine.restart(), 0, "{}", before);
        put_pod(&mut machine.world, "far", &[PODS[2].1], &[("app", "db")]);
        // It enters the set of peers of ingress and leaves both sets of egress, and one family goes.
        let steps = machine.settle();
        assert!(steps <= 4, "{steps}");
    });
}

#[test]
fn all_that_changed_of_the_rules_is_one_run_of_the_program_for_each_family() {
    with_each_flavour(false, |machine, _| {
        let restores = |round: &IptablesRound| {
            let of = |family| move |timing: &&Timing| timing.family == family && timing.program == Program::Restore;
            Family::BOTH.map(|family| round.timings.iter().filter(of(family)).count())
        };
        for number in 0..20 {
            machine.put_policy(&format!("p{number}"), ingress(app("web"), &[rule(from_app("db"), Ports::Any)]));
        }
        machine.take_in();
        assert_eq!(restores(&machine.round(moment())), [1, 1], "a first start");
        machine.enforcer.settle();
        for number in 5..15 {
            machine.put_policy(&format!("p{number}"), egress(app("plain"), &[rule(from_app("far"), Ports::Any)]));
        }
        machine.world.cluster.policies.remove(&ObjectName::new("shop", "p19"));
        machine.take_in();
        assert_eq!(restores(&machine.round(moment())), [1, 1], "ten policies and their pods change, and one goes");
        machine.enforcer.settle();
        put_pod(&mut machine.world, "far", &[PODS[2].1, PODS[2].2], &[("app", "db")]);
        machine.take_in();
        assert_eq!(restores(&machine.round(moment())), [0, 0], "a label changes sets alone");
        machine.check("afterwards");
    });
}

#[test]
fn cleanup_leaves_what_was_there_before() {
    with_each_flavour(false, |machine, flavour| {
        run("ipset create BLOCKLIST hash:ip");
        let six = |flavour| if flavour == Flavour::Legacy { "legacy" } else { "nft" };
        for program in ["iptables", "ip6tables"] {
            run(&format!("{program}-{} -A FORWARD -p tcp -m tcp --dport 9 -j DROP", six(flavour)));
        }
        let plain = |machine: &Machine| {
            machine.saved().lines().filter(|line| !line.starts_with(['#', ':'])).map(str::to_owned).collect::<Vec<_>>()
        };
        let before = plain(machine);
        machine.put_policy("deny", ingress(app("web"), &[rule(from_app("db"), Ports::Any)]));
        machine.settle();
        assert_ne!(plain(machine), before);
        machine.enforcer.restart_with(machine.enforcer.filter);
        machine.enforcer.iptables().round(&Desired::default(), Authority::Complete, moment());
        assert!(machine.enforcer.iptables().is_settled());
        assert_eq!(plain(machine), before);
    });
}

#[test]
fn what_somebody_flushes_is_found_and_comes_back() {
    with_each_flavour(false, |machine, flavour| {
        machine.put_policy("deny", ingress(app("web"), &[rule(from_app("db"), Ports::Any)]));
        machine.check("before");
        let flavour = if flavour == Flavour::Legacy { "legacy" } else { "nft" };
        for program in ["iptables", "ip6tables"] {
            run(&format!("{program}-{flavour} -F"));
        }
        assert!(!machine.enforcer.iptables().audit_after(Notice::Rules, moment()).is_empty());
        machine.enforcer.settle();
        machine.check("after the rules were flushed");
        let sets = shell("ipset list -n | grep KUBE-SRC");
        run(&format!("ipset flush {}", sets.lines().next().expect("there is a set")));
        while !machine.enforcer.iptables().audit_portion(moment()).1 {}
        machine.enforcer.settle();
        machine.check("after a set was flushed");
    });
}

#[test]
fn icmp_that_networks_need_reaches_and_leaves_closed_pods_and_no_other_does() {
    with_each(false, |machine| {
        let closed = NetworkPolicy { pods: app("web"), ingress: Some([].into()), egress: Some([].into()) };
        machine.put_policy("closed", closed);
        machine.settle();
        let kinds: [(Family, &[u8], &[u8]); 2] =
            [(Family::V4, &[3, 8, 11], &[5, 13]), (Family::V6, &[1, 2, 3, 128, 129, 135, 136], &[139, 200])];
        for (family, passing, others) in kinds {
            for path in [("db", "web"), ("outside", "web"), ("web", "db"), ("web", "outside")] {
                for kind in passing {
                    // The machine may be busy.
                    let arrived = (0..20).any(|_| machine.places.reaches_with_icmp(family, path, *kind));
                    assert!(arrived, "{:?} {family} {path:?}: kind {kind} is lost", machine.enforcer.filter);
                }
                for kind in others {
                    let arrived = machine.places.reaches_with_icmp(family, path, *kind);
                    assert!(!arrived, "{:?} {family} {path:?}: kind {kind} arrives", machine.enforcer.filter);
                }
            }
            let arrived = (0..20).any(|_| machine.places.reaches_with_icmp(family, ("db", "plain"), others[0]));
            assert!(arrived, "open pods get all of it");
        }
    });
}

#[test]
fn refused_packets_of_each_policy_and_direction_are_in_the_metrics() {
    with_each(false, |machine| {
        machine.put_policy("in", ingress(app("web"), &[]));
        machine.put_policy("too", ingress(app("web"), &[rule(from_app("far"), Ports::Any)]));
        machine.put_policy("out", egress(app("plain"), &[]));
        machine.settle();
        for _ in 0..3 {
            assert!(!machine.places.reaches(Family::V4, ("db", "web"), Protocol::Udp, 80));
        }
        assert!(!machine.places.reaches(Family::V6, ("outside", "web"), Protocol::Udp, 80));
        assert!(!machine.places.reaches(Family::V6, ("plain", "db"), Protocol::Udp, 80));
        let text = machine.refused();
        for (direction, policy, packets) in [("ingress", "in", 4), ("ingress", "too", 4), ("egress", "out", 1)] {
            let line = format!(
                "sluice_firewall_refused_packets_total{{direction=\"{direction}\",namespace=\"shop\",policy=\"{policy}\"}} {packets}"
            );
            assert!(text.contains(&line), "{line}: {text}");
        }
    });
}

#[test]
fn refused_packets_are_counted_by_chain() {
    with_each_flavour(false, |machine, flavour| {
        machine.put_policy("deny", ingress(app("web"), &[]));
        machine.settle();
        for _ in 0..3 {
            assert!(!machine.places.reaches(Family::V4, ("db", "web"), Protocol::Tcp, 80));
        }
        assert!(!machine.places.reaches(Family::V6, ("outside", "web"), Protocol::Tcp, 80));
        let of_pods = [Name::Prefix("KUBE-POD-FW-".into())];
        let refused = Family::BOTH.map(|family| {
            let programs = programs(flavour).of(family).expect("both families have programs");
            let counted = counted(programs, family, Table::Filter, &of_pods).expect("the rules are listed");
            let rejects = counted.iter().filter(|rule| rule.rule.to_string().contains("-j REJECT"));
            rejects.map(|rule| rule.packets).sum::<u64>()
        });
        assert_eq!(refused, [3, 1]);
    });
}

#[test]
fn a_pod_is_closed_until_it_is_known_and_the_node_reaches_it_all_the_same() {
    with_each(true, |machine| {
        let plain = ObjectName::new("shop", "plain");
        let pod = machine.world.cluster.pods.get(&plain).unwrap().clone();
        machine.world.cluster.pods.remove(&plain);
        machine.settle();
        let closed = [("plain", "outside"), ("outside", "plain"), ("db", "plain")].map(|path| (path, false));
        let open =
            [("node", "plain"), ("plain", "node"), ("db", "node"), ("db", "outside"), ("outside", "db"), ("db", "web")];
        machine.assert_paths("nobody knows it", &[closed.as_slice(), &open.map(|path| (path, true))].concat());
        machine.world.cluster.pods.insert(plain, (*pod).clone());
        machine.check("everybody is known");
        assert_eq!(machine.restart(), 0);
    });
}

#[test]
fn tables_that_kube_router_kept_in_nf_tables_go_when_our_rules_stand_and_others_stay() {
    in_new(|| {
        own_run();
        let mut machine = Machine::new(Filter::Iptables(Flavour::NfTables), places(), false);
        let there = |name: &str, family: u8| {
            let mut message = Messages::new();
            message.begin(GET_TABLE, 0).header(&[family, 0, 0, 0]).text(1, name);
            Socket::open(Bus::Netfilter).unwrap().request(&mut message, |_| Some(())).is_ok()
        };
        let tables = [("kube-router-filter-ipv4", 2), ("kube-router-filter-ipv6", 10), ("kube-router-filter", 2)];
        for (name, family) in tables {
            let mut messages = Messages::new();
            messages.begin(0x10, 0).header(&[0, 0, 0, 10]);
            messages.begin(NEW_TABLE, flag::CREATE).header(&[family, 0, 0, 0]).text(1, name);
            messages.begin(0x11, 0).header(&[0, 0, 0, 10]);
            Socket::open(Bus::Netfilter).unwrap().transaction(&mut messages).unwrap();
            assert!(there(name, family), "{name} is made");
        }
        machine.settle();
        assert_eq!(machine.enforcer.remove_abandoned(), Vec::<String>::new());
        assert_eq!(tables.map(|(name, family)| there(name, family)), [false, false, true]);
        assert_eq!(machine.enforcer.remove_abandoned(), Vec::<String>::new(), "there is nothing left to remove");
        machine.check("with our rules alone");
    });
}

#[test]
fn a_change_of_the_packet_filter_opens_and_closes_nothing_and_leaves_nothing() {
    for (default_deny, flavour) in [(false, BOTH[0]), (false, BOTH[1]), (true, BOTH[1])] {
        with(Filter::Iptables(flavour), default_deny, |machine| {
            machine.put_policy("web", ingress(app("web"), &[rule(from_app("db"), Ports::Any)]));
            machine.put_policy("db", egress(app("db"), &[rule(from_app("web"), Ports::Any)]));
            if default_deny {
                machine.world.cluster.pods.remove(&ObjectName::new("shop", "plain"));
            }
            machine.settle();
            changes_over(machine, Filter::Nftables, default_deny);
            changes_over(machine, Filter::Iptables(flavour), default_deny);
        });
    }
}

/// Goes on with another packet filter while connections are opened, by both families.
fn changes_over(machine: &mut Machine, to: Filter, default_deny: bool) {
    let from = machine.enforcer.filter;
    let others_stay = ["iptables-nft -N OTHERS", "iptables-legacy -N OTHERS", "nft add table inet others"];
    others_stay.into_iter().for_each(|command| drop(attempt(command)));
    let closed = if default_deny { ("db", "plain") } else { ("plain", "web") };
    let (places, paths) = (machine.places.clone(), (("db", "web"), closed));
    let mut six = None;
    let four = places.while_streaming(Family::V4, paths, || {
        six = Some(places.while_streaming(Family::V6, paths, || {
            std::thread::sleep(Duration::from_millis(100));
            assert!(machine.restart_with(to) > 0);
            std::thread::sleep(Duration::from_millis(100));
            for puts_back in [true, false] {
                assert!(machine.enforcer.has_abandoned(), "{from:?} to {to:?}");
                assert_eq!(machine.enforcer.remove_abandoned(), Vec::<String>::new());
                assert!(!machine.enforcer.has_abandoned(), "{from:?} to {to:?}");
                if puts_back {
                    an_agent_that_still_runs_puts_back(from);
                }
            }
            std::thread::sleep(Duration::from_millis(100));
        }));
    });
    for (allowed, refused) in [four, six.expect("it was tried")] {
        assert!(allowed.tried > 20 && allowed.passed == allowed.tried, "{from:?} to {to:?}, never closed: {allowed:?}");
        // A refusal by IPv6 may go unheard, and is waited for.
        assert!(refused.tried > 2 && refused.passed == 0, "{from:?} to {to:?}, never open: {refused:?}");
    }
    let left = from.saved();
    assert!(!left.contains("KUBE-") && !left.contains("sluice_policy"), "{from:?} to {to:?}: {left}");
    assert!(
        attempt("nft list table inet others").0 && shell("iptables-nft-save; iptables-legacy-save").contains("OTHERS")
    );
    if default_deny {
        let paths = [(("db", "web"), true), (("plain", "web"), false), (("db", "plain"), false)];
        machine.assert_paths("with another packet filter", &paths);
    } else {
        machine.check_paths("with another packet filter");
    }
    assert_eq!(machine.restart(), 0, "{to:?}");
}

/// An agent that runs with this packet filter beside its successor repairs some of what that one has removed.
fn an_agent_that_still_runs_puts_back(from: Filter) {
    let Filter::Iptables(flavour) = from else { return drop(shell(&format!("nft add table inet {TABLE}"))) };
    let flavour = if flavour == Flavour::Legacy { "legacy" } else { "nft" };
    shell(
        "ipset create KUBE-DST-JEB2RTBKBRKVDVXX hash:ip && ipset create inet6:KUBE-DST-JEB2RTBKBRKVDVXX hash:ip family inet6",
    );
    for (program, set) in [("iptables", "KUBE-DST-JEB2RTBKBRKVDVXX"), ("ip6tables", "inet6:KUBE-DST-JEB2RTBKBRKVDVXX")]
    {
        let program = format!("{program}-{flavour}");
        shell(&format!(
            "{program} -N KUBE-ROUTER-FORWARD && {program} -A FORWARD -j KUBE-ROUTER-FORWARD && \
             {program} -A KUBE-ROUTER-FORWARD -m set --match-set {set} dst -j ACCEPT"
        ));
    }
}

/// Messages of nf_tables.
const NEW_TABLE: u16 = 10 << 8;
const GET_TABLE: u16 = 10 << 8 | 1;

/// The rules that kube-router 2.11 writes, by hand and for IPv4: `web` accepts nothing but from `db`.
const KUBE_ROUTER: &str = "*filter
:KUBE-ROUTER-INPUT - [0:0]
:KUBE-ROUTER-FORWARD - [0:0]
:KUBE-ROUTER-OUTPUT - [0:0]
:KUBE-NWPLCY-DEFAULT - [0:0]
:KUBE-NWPLCY-COMMON - [0:0]
:KUBE-NWPLCY-TAIL - [0:0]
:KUBE-NWPLCY-VUOBX2QE27PMHWR4 - [0:0]
:KUBE-POD-FW-CQ4BS6KVJJ6GC7XE - [0:0]
-I INPUT 1 -m comment --comment \"kube-router netpol - 4IA2OSFRMVNDXBVV\" -j KUBE-ROUTER-INPUT
-I FORWARD 1 -m comment --comment \"kube-router netpol - TEMCG2JMHZYE7H7T\" -j KUBE-ROUTER-FORWARD
-I OUTPUT 1 -m comment --comment \"kube-router netpol - VEAAIY32XVBHCSCY\" -j KUBE-ROUTER-OUTPUT
-A KUBE-NWPLCY-DEFAULT -m comment --comment \"rule to mark traffic matching a network policy\" -j MARK --set-xmark 0x10000/0x10000
-A KUBE-NWPLCY-COMMON -m comment --comment \"\\\"rule to drop invalid state for pod\\\"\" -m conntrack --ctstate INVALID -j DROP
-A KUBE-NWPLCY-COMMON -m comment --comment \"\\\"rule for stateful firewall for pod\\\"\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-NWPLCY-TAIL -m mark --mark 0x20000/0x20000 -m comment --comment \"rule to explicitly ACCEPT traffic that comply to network policies\" -j ACCEPT
-A KUBE-NWPLCY-VUOBX2QE27PMHWR4 -m set --match-set KUBE-SRC-ZH7PMEL32QCTUMHX src -m set --match-set KUBE-DST-JEB2RTBKBRKVDVXX dst -j MARK --set-xmark 0x10000/0x10000
-A KUBE-NWPLCY-VUOBX2QE27PMHWR4 -m set --match-set KUBE-SRC-ZH7PMEL32QCTUMHX src -m set --match-set KUBE-DST-JEB2RTBKBRKVDVXX dst -m mark --mark 0x10000/0x10000 -j RETURN
-A KUBE-POD-FW-CQ4BS6KVJJ6GC7XE -j KUBE-NWPLCY-COMMON
-A KUBE-POD-FW-CQ4BS6KVJJ6GC7XE -d 10.244.1.10/32 -m addrtype --src-type LOCAL -j ACCEPT
-A KUBE-POD-FW-CQ4BS6KVJJ6GC7XE -s 10.244.1.10/32 -j KUBE-NWPLCY-DEFAULT
-A KUBE-POD-FW-CQ4BS6KVJJ6GC7XE -d 10.244.1.10/32 -j KUBE-NWPLCY-VUOBX2QE27PMHWR4
-A KUBE-POD-FW-CQ4BS6KVJJ6GC7XE -m mark ! --mark 0x10000/0x10000 -m limit --limit 10/min --limit-burst 10 -j NFLOG --nflog-group 100
-A KUBE-POD-FW-CQ4BS6KVJJ6GC7XE -m mark ! --mark 0x10000/0x10000 -j REJECT --reject-with icmp-port-unreachable
-A KUBE-POD-FW-CQ4BS6KVJJ6GC7XE -j MARK --set-xmark 0x0/0x10000
-A KUBE-POD-FW-CQ4BS6KVJJ6GC7XE -j MARK --set-xmark 0x20000/0x20000
-A KUBE-ROUTER-INPUT -s 10.244.1.10/32 -j KUBE-POD-FW-CQ4BS6KVJJ6GC7XE
-A KUBE-ROUTER-FORWARD -d 10.244.1.10/32 -j KUBE-POD-FW-CQ4BS6KVJJ6GC7XE
-A KUBE-ROUTER-FORWARD -s 10.244.1.10/32 -j KUBE-POD-FW-CQ4BS6KVJJ6GC7XE
-A KUBE-ROUTER-FORWARD -j KUBE-NWPLCY-TAIL
-A KUBE-ROUTER-OUTPUT -d 10.244.1.10/32 -j KUBE-POD-FW-CQ4BS6KVJJ6GC7XE
-A KUBE-ROUTER-OUTPUT -s 10.244.1.10/32 -j KUBE-POD-FW-CQ4BS6KVJJ6GC7XE
COMMIT
";

#[test]
fn a_running_kube_router_is_taken_over_and_no_path_opens_or_closes_in_between() {
    for closes in [false, true] {
        with_each(closes, |machine| {
            let is_legacy = machine.enforcer.filter == Filter::Iptables(Flavour::Legacy);
            restore_kube_router(if is_legacy { "legacy" } else { "nft" }, closes);
            taken_over(machine, closes);
        });
    }
}

/// `closes`: both programs run with `--netpol-default-deny`, and nobody knows the pod `plain`.
fn taken_over(machine: &mut Machine, closes: bool) {
    let is_legacy = machine.enforcer.filter == Filter::Iptables(Flavour::Legacy);
    let flavour = if is_legacy { "legacy" } else { "nft" };
    machine.put_policy("web", ingress(app("web"), &[rule(from_app("db"), Ports::Any)]));
    if closes {
        machine.world.cluster.pods.remove(&ObjectName::new("shop", "plain"));
    }
    let closed_path = if closes { ("db", "plain") } else { ("plain", "web") };
    let places = machine.places.clone();
    undisturbed(&places, closed_path, || {
        machine.settle();
        // Of the other flavour nothing is found, because nothing is there.
        assert_eq!(machine.enforcer.remove_abandoned(), Vec::<String>::new());
    });
    if closes {
        machine
            .assert_paths("taken over", &[(("db", "web"), true), (("plain", "web"), false), (("db", "plain"), false)]);
    } else {
        machine.check("taken over");
    }
    let saved = format!(
        "{}{}",
        machine.saved(),
        shell(&format!("iptables-{flavour}-save; ip6tables-{flavour}-save; ipset save"))
    );
    for theirs in ["VUOBX2QE27PMHWR4", "CQ4BS6KVJJ6GC7XE", "ZH7PMEL32QCTUMHX", "JEB2RTBKBRKVDVXX"] {
        assert!(!saved.contains(theirs), "{theirs} is left over: {saved}");
    }
}

/// What kube-router 2.11 keeps with `--use-nftables-for-netpol` for the same pod and policy.
const KUBE_ROUTER_TABLE: &str = "table ip kube-router-filter-ipv4 {
    set KUBE-SRC-ZH7PMEL32QCTUMHX { type ipv4_addr; elements = { 10.244.1.11 } }
    set KUBE-DST-JEB2RTBKBRKVDVXX { type ipv4_addr; elements = { 10.244.1.10 } }
    set kube-router-local-pods { type ipv4_addr; elements = { 10.244.1.10, 10.244.1.11 } }
    chain KUBE-NWPLCY-DEFAULT { counter meta mark set meta mark or 0x10000; }
    chain KUBE-NWPLCY-COMMON { ct state invalid counter drop; ct state established,related counter accept; }
    chain KUBE-NWPLCY-TAIL {
        GATE
        meta mark and 0x20000 == 0x20000 counter accept
    }
    chain KUBE-NWPLCY-VUOBX2QE27PMHWR4 {
        ip saddr @KUBE-SRC-ZH7PMEL32QCTUMHX ip daddr @KUBE-DST-JEB2RTBKBRKVDVXX counter meta mark set meta mark or 0x10000 return
    }
    chain KUBE-POD-FW-CQ4BS6KVJJ6GC7XE {
        jump KUBE-NWPLCY-COMMON
        ip daddr 10.244.1.10 fib saddr type local counter accept
        ip saddr 10.244.1.10 counter jump KUBE-NWPLCY-DEFAULT
        ip daddr 10.244.1.10 counter jump KUBE-NWPLCY-VUOBX2QE27PMHWR4
        meta mark and 0x10000 != 0x10000 limit rate 10/minute burst 10 packets log group 100
        meta mark and 0x10000 != 0x10000 counter reject
        meta mark set meta mark and 0xfffeffff
        meta mark set meta mark or 0x20000
    }
    chain KUBE-ROUTER-INPUT {
        type filter hook input priority filter; policy accept;
        ip saddr 10.244.1.10 counter jump KUBE-POD-FW-CQ4BS6KVJJ6GC7XE
    }
    chain KUBE-ROUTER-FORWARD {
        type filter hook forward priority filter; policy accept;
        ip daddr 10.244.1.10 counter jump KUBE-POD-FW-CQ4BS6KVJJ6GC7XE
        ip saddr 10.244.1.10 counter jump KUBE-POD-FW-CQ4BS6KVJJ6GC7XE
        jump KUBE-NWPLCY-TAIL
        meta mark and 0x20000 == 0x20000 counter accept
    }
    chain KUBE-ROUTER-OUTPUT {
        type filter hook output priority filter; policy accept;
        ip daddr 10.244.1.10 counter jump KUBE-POD-FW-CQ4BS6KVJJ6GC7XE
        ip saddr 10.244.1.10 counter jump KUBE-POD-FW-CQ4BS6KVJJ6GC7XE
    }
}
";

#[test]
fn a_running_kube_router_with_nftables_is_taken_over_and_no_path_opens_or_closes_in_between() {
    for closes in [false, true] {
        with_each(closes, |machine| {
            load_kube_router(closes);
            taken_over(machine, closes);
            let tables = run("nft list tables");
            assert!(!tables.contains("kube-router-filter"), "{tables}");
        });
    }
}

/// kube-router knows nothing of our tables, so both judge until they go.
#[test]
fn going_back_to_kube_router_opens_and_closes_nothing_where_our_tables_go_last() {
    for with_table in [false, true] {
        with(Filter::Nftables, false, |machine| {
            machine.put_policy("web", ingress(app("web"), &[rule(from_app("db"), Ports::Any)]));
            machine.check("before");
            let left_by_us = run("nft list tables");
            assert!(left_by_us.contains("sluice_policy") && left_by_us.contains("sluice_frames"), "{left_by_us}");
            let places = machine.places.clone();
            undisturbed(&places, ("plain", "web"), || {
                // The program ends, and nothing is written by this one.
                machine.enforcer.restart_with(Filter::Iptables(Flavour::NfTables));
                match with_table {
                    true => load_kube_router(false),
                    false => restore_kube_router("nft", false),
                }
            });
            machine.check_paths("both judge");
            let theirs = written_by_kube_router(with_table);
            undisturbed(&places, ("plain", "web"), || {
                run(&format!("{} --cleanup-nftables --socket=", env!("CARGO_BIN_EXE_sluice")));
            });
            assert_eq!(written_by_kube_router(with_table), theirs, "what kube-router has stays");
            machine.check_paths("kube-router alone judges");
            let tables = run("nft list tables");
            assert!(!tables.contains("sluice"), "{tables}");
        });
    }
}

/// Does something while `db` always reaches `web`, and this path is never open, in both families.
pub fn undisturbed(places: &Places, closed_path: (&str, &str), act: impl FnOnce()) {
    for (allowed, refused) in streaming(places, closed_path, act) {
        assert!(allowed.tried > 20 && allowed.passed == allowed.tried, "never closed: {allowed:?}");
        // A refusal by IPv6 may go unheard, and is waited for.
        assert!(refused.tried > 2 && refused.passed == 0, "never open: {refused:?}");
    }
}

/// Does something while connections are opened from `db` to `web` and on this path, in both families. Returns how they fared.
pub fn streaming(places: &Places, other_path: (&str, &str), act: impl FnOnce()) -> [(Tally, Tally); 2] {
    let paths = (("db", "web"), other_path);
    let mut six = None;
    let four = places.while_streaming(Family::V4, paths, || {
        six = Some(places.while_streaming(Family::V6, paths, || {
            std::thread::sleep(Duration::from_millis(200));
            act();
            std::thread::sleep(Duration::from_millis(200));
        }));
    });
    [four, six.unwrap()]
}

/// Rules of kube-router, without counters.
fn written_by_kube_router(with_table: bool) -> String {
    match with_table {
        true => run("nft --stateless list table ip kube-router-filter-ipv4"),
        false => shell(
            "iptables-nft-save -t filter | grep -v '^[#:]'; ip6tables-nft-save -t filter | grep -v '^[#:]'; ipset save",
        ),
    }
}

/// Puts the tables of kube-router into the kernel.
fn load_kube_router(closes: bool) {
    for (family, six) in [("ip", false), ("ip6", true)] {
        let range = if six { "fd00:10:244:1::/64" } else { "10.244.1.0/24" };
        let gate: String = ["saddr", "daddr"]
            .map(|side| format!("{family} {side} {range} {family} {side} != @kube-router-local-pods counter reject\n"))
            .concat();
        let mut text = KUBE_ROUTER_TABLE.replace("GATE", if closes { &gate } else { "" });
        if six {
            text = text
                .replace("ip saddr", "ip6 saddr")
                .replace("ip daddr", "ip6 daddr")
                .replace("ipv4_addr", "ipv6_addr");
            text = text.replace("table ip kube-router-filter-ipv4", "table ip6 kube-router-filter-ipv6");
            text = text.replace("10.244.1.1", "fd00:10:244:1::1");
        }
        shell(&format!("nft -f - <<'RULES'\n{text}RULES"));
    }
}

/// Puts the rules and sets of kube-router into the kernel.
fn restore_kube_router(flavour: &str, closes: bool) {
    let six = KUBE_ROUTER
        .replace("10.244.1.10/32", "fd00:10:244:1::10/128")
        .replace("icmp-port-unreachable", "icmp6-port-unreachable")
        .replace("KUBE-SRC-", "inet6:KUBE-SRC-")
        .replace("KUBE-DST-", "inet6:KUBE-DST-");
    let families = [
        ("iptables", "", "inet", 0, "10.244.1.0/24", KUBE_ROUTER.to_owned()),
        ("ip6tables", "inet6:", "inet6", 1, "fd00:10:244:1::/64", six),
    ];
    for (program, prefix, family, index, range, script) in families {
        let of = |pod: usize| [PODS[pod].1, PODS[pod].2][index];
        let sets = [
            ("KUBE-SRC-ZH7PMEL32QCTUMHX", vec![of(1)]),
            ("KUBE-DST-JEB2RTBKBRKVDVXX", vec![of(0)]),
            ("kube-router-local-pods", if closes { vec![of(0), of(1)] } else { Vec::new() }),
        ];
        for (set, addresses) in sets.into_iter().filter(|(set, _)| closes || set.starts_with("KUBE")) {
            run(&format!("ipset create {prefix}{set} hash:ip family {family} timeout 0"));
            for address in addresses {
                run(&format!("ipset add {prefix}{set} {address} timeout 0"));
            }
        }
        let mut script = script;
        if closes {
            let unreachable = if index == 0 { "icmp-port-unreachable" } else { "icmp6-port-unreachable" };
            let gate: String = [("-s", "src"), ("-d", "dst")]
                .map(|(option, side)| {
                    format!(
                        "-A KUBE-NWPLCY-TAIL {option} {range} -m set ! --match-set {prefix}kube-router-local-pods {side} \
                         -m comment --comment \"reject unprogrammed local pod (default-deny)\" -j REJECT --reject-with {unreachable}\n"
                    )
                })
                .concat();
            script = script.replacen("-A KUBE-NWPLCY-TAIL ", &format!("{gate}-A KUBE-NWPLCY-TAIL "), 1);
        }
        shell(&format!("{program}-{flavour}-restore --noflush <<'RULES'\n{script}RULES"));
    }
}
