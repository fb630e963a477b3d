//! Many policies over a fixed set of pods: after every change who reaches whom is tried with real packets, every way at
//! once, and compared with what the API means (`tests/firewall/oracle.rs`, which knows nothing of the compiler).
//!
//! Nine pods in three namespaces, `a`, `b` and `c` in each of `x`, `y` and `z`; those named `c` run on another node. All of
//! them answer on ports 80 and 81 over TCP, UDP and SCTP, in both families. Policies are made by chance from what cases of
//! conformance suites are made of; the kernel has up to four of them at a time, and up to three ClusterNetworkPolicies of both tiers.
//!
//! `CONFORMANCE_POLICIES` says how many policies each flavour is given, `PROPERTY_SEED` runs the same ones again.

#![allow(clippy::indexing_slicing, reason = "a test that panics has failed, which is how a test says so")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use compact_str::CompactString;
use sluice::firewall::plan::Plan;
use sluice::firewall::rules::Direction;
use sluice::kernel::iptables::Flavour;
use sluice::model::{
    Action, ClusterNetworkPolicy, ClusterRule, Host, Labels, NamedPort, Namespace, Namespaces, NetworkPolicy, Node,
    ObjectName, Operator, Peer, Peers, Pod, PolicyPort, PolicyRule, PortMatch, Ports, Requirement, Selector, Subject,
    Tier, World,
};
use sluice::net::Protocol;
use sluice::reconcile::Moment;

use super::enforcer::{Enforcer, Filter};
use super::firewall::{BOTH_FAMILIES, GATEWAY, PROTOCOLS, config, packet, told_ways, ways};
use super::moment;
use super::places::{Place, Places, Try};
use crate::namespace::{in_new, own_run};

#[path = "../../firewall/oracle.rs"]
mod oracle;
#[path = "../../support/random.rs"]
#[allow(dead_code, reason = "others use more of it")]
mod random;

use random::{Random, first_seed, number};

const NAMESPACES: [&str; 3] = ["x", "y", "z"];
const PODS: [&str; 3] = ["a", "b", "c"];
const AT_A_TIME: usize = 4;
const CLUSTER_POLICIES: [&str; 3] = ["first", "second", "third"];
const POLICIES: u64 = 60;

#[test]
fn policies_by_the_dozen_mean_what_the_api_says_with_legacy_tables() {
    play(Filter::Iptables(Flavour::Legacy));
}

#[test]
fn policies_by_the_dozen_mean_what_the_api_says_with_nf_tables() {
    play(Filter::Iptables(Flavour::NfTables));
}

#[test]
fn policies_by_the_dozen_mean_what_the_api_says_with_nftables() {
    play(Filter::Nftables);
}

fn play(filter: Filter) {
    let seed = number("PROPERTY_SEED").unwrap_or_else(first_seed);
    let mut random = Random::new(seed);
    in_new(|| {
        own_run();
        let mut game = Game::new(filter);
        let mut told = vec![format!("PROPERTY_SEED={seed} runs it again")];
        game.check(&told);
        for number in 0..number("CONFORMANCE_POLICIES").unwrap_or(POLICIES) {
            told.push(game.change(number as usize, &mut random));
            game.check(&told);
        }
        let outcomes = PROTOCOLS.into_iter().flat_map(|protocol| [(protocol, false), (protocol, true)]);
        assert_eq!(game.seen, outcomes.collect(), "each protocol has passed and has been refused");
    });
}

struct Game {
    places: Places,
    names: Vec<String>,
    world: World,
    plan: Plan,
    enforcer: Enforcer,
    /// Outcomes of the connection attempts, by protocol.
    seen: BTreeSet<(Protocol, bool)>,
}

impl Game {
    fn new(filter: Filter) -> Game {
        let mut world = World::empty();
        world.host = Arc::new(Host { node_name: "node1".into(), ..Host::default() });
        world.cluster.nodes.insert("node1".into(), Node::default());
        let mut places = Vec::new();
        for (at, namespace) in NAMESPACES.into_iter().enumerate() {
            let labels = [("ns", namespace), ("kubernetes.io/metadata.name", namespace)].into_iter().collect();
            world.cluster.namespaces.insert(namespace.into(), Namespace { labels, isolated: false });
            for (number, pod) in PODS.into_iter().enumerate() {
                let [v4, v6] = addresses(at, number);
                places.push(Place::new(&place(namespace, pod), &v4, &v6));
                world.cluster.pods.insert(ObjectName::new(namespace, pod), made(pod, [v4, v6]));
            }
        }
        let names = places.iter().map(|place| place.name().to_owned()).chain(["node".to_owned()]).collect();
        Game {
            places: Places::new(places, GATEWAY),
            names,
            world,
            plan: Plan::new(),
            enforcer: Enforcer::new(filter, config(false), BOTH_FAMILIES),
            seen: BTreeSet::new(),
        }
    }

    /// One policy more, at times one less, or another label; what that is in words.
    fn change(&mut self, number: usize, random: &mut Random) -> String {
        let name = ObjectName::new(any(random, &NAMESPACES), &format!("policy-{}", number % AT_A_TIME));
        for namespace in NAMESPACES {
            self.world.cluster.policies.remove(&ObjectName::new(namespace, &name.name));
        }
        let policy = policy(random);
        let mut told = format!("{name} {policy:?}");
        self.world.cluster.policies.insert(name, policy);
        if random.chance(60) {
            told.push_str(&self.change_cluster_policies(random));
        }
        if random.chance(30) {
            let pod = ObjectName::new(any(random, &NAMESPACES), any(random, &PODS));
            let mut value = (**self.world.cluster.pods.get(&pod).expect("all of them stay")).clone();
            value.labels = labels(any(random, &PODS), random.chance(50));
            told.push_str(&format!("; {pod} has labels {:?}", value.labels));
            self.world.cluster.pods.insert(pod, value);
        }
        if random.chance(15) {
            let (namespace, like) = (any(random, &NAMESPACES), any(random, &NAMESPACES));
            let labels: Labels = [("ns", like), ("kubernetes.io/metadata.name", namespace)].into_iter().collect();
            told.push_str(&format!("; {namespace} has the label of {like}"));
            self.world.cluster.namespaces.insert(namespace.into(), Namespace { labels, isolated: random.chance(20) });
        }
        told
    }

    /// One ClusterNetworkPolicy more, another one, or one less.
    fn change_cluster_policies(&mut self, random: &mut Random) -> String {
        let name: CompactString = any(random, &CLUSTER_POLICIES).into();
        let policies = &mut self.world.cluster.cluster_policies;
        if random.chance(35) {
            policies.remove(&name);
            return format!("; cluster policy {name} goes");
        }
        let policy = cluster_policy(random);
        let told = format!("; cluster policy {name} {policy:?}");
        policies.insert(name, policy);
        told
    }

    fn check(&mut self, told: &[String]) {
        let changed = self.plan.update(&self.world);
        self.enforcer.update(self.plan.rules(), &self.world, &changed);
        self.enforcer.round(moment());
        // At times the leftovers of a change are removed before the next one, at times with it.
        if told.len().is_multiple_of(2) {
            let at = Moment { now: Instant::now() + Duration::from_secs(1), jitter: 0 };
            self.enforcer.round(at);
            assert!(self.enforcer.is_settled(), "{told:?}");
        }
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        let is_far = |name: &str| name.ends_with("-c");
        let here = |way: &Try<'_>| !(is_far(way.1) && (is_far(way.2) || way.2 == "node"));
        let tries: Vec<Try<'_>> = ways(&names, &PROTOCOLS).into_iter().filter(here).collect();
        let expected: Vec<Option<bool>> = tries.iter().map(|way| Some(self.means(*way))).collect();
        let wrong = told_ways(&self.places.wrong(&tries, &expected));
        let seen = tries.iter().zip(&expected).filter_map(|((.., protocol, _), open)| Some((*protocol, (*open)?)));
        self.seen.extend(seen);
        let troubles = self.enforcer.troubles();
        let filter = self.enforcer.filter;
        assert!(
            wrong.is_empty() && troubles.is_empty(),
            "{:?}:\n{wrong}\n{troubles:?}\n{}\n{}",
            filter,
            told.join("\n"),
            filter.saved()
        );
    }

    fn means(&self, way: Try<'_>) -> bool {
        let packet = packet(&self.places, way);
        Direction::BOTH.into_iter().all(|direction| oracle::passes(&self.world, &packet, direction))
    }
}

fn any(random: &mut Random, names: &[&'static str]) -> &'static str {
    names[random.below(names.len())]
}

fn place(namespace: &str, pod: &str) -> String {
    format!("{namespace}-{pod}")
}

fn addresses(namespace: usize, pod: usize) -> [String; 2] {
    let number = 16 + namespace * 4 + pod;
    [format!("10.244.1.{number}"), format!("fd00:10:244:1::{number:x}")]
}

fn labels(pod: &str, front: bool) -> Labels {
    let tier = front.then_some(("tier", "front"));
    [("pod", pod)].into_iter().chain(tier).collect()
}

/// Names of ports mean different numbers in different pods, and one of them nothing at all in some.
fn made(pod: &str, addresses: [String; 2]) -> Pod {
    let port = |name: &str, protocol, number| NamedPort { name: name.into(), protocol, number };
    let (http, other) = if pod == "b" { (81, 80) } else { (80, 81) };
    let mut ports = vec![port("http", Protocol::Tcp, http), port("dns", Protocol::Udp, other)];
    ports.extend((pod != "a").then(|| port("signal", Protocol::Sctp, 80)));
    ports.sort();
    Pod {
        uid: None,
        labels: labels(pod, pod == "a"),
        addresses: addresses.iter().map(|address| address.parse().expect("an address")).collect(),
        node: Some(if pod == "c" { "node2" } else { "node1" }.into()),
        host_network: false,
        finished: false,
        ports: ports.into(),
    }
}

fn policy(random: &mut Random) -> NetworkPolicy {
    let sides = *random.pick(&[(true, false), (true, false), (false, true), (true, true)]);
    let rules = |random: &mut Random| -> Box<[PolicyRule]> {
        let count = *random.pick(&[0, 1, 1, 1, 2, 3]);
        (0..count).map(|_| PolicyRule { peers: peers(random), ports: ports(random) }).collect()
    };
    NetworkPolicy {
        pods: of_pods(random),
        ingress: sides.0.then(|| rules(random)),
        egress: sides.1.then(|| rules(random)),
    }
}

fn cluster_policy(random: &mut Random) -> ClusterNetworkPolicy {
    let rules = |random: &mut Random| -> Box<[ClusterRule]> {
        let rule = |random: &mut Random| ClusterRule {
            name: "rule".into(),
            action: *random.pick(&[Action::Accept, Action::Deny, Action::Pass]),
            matches: PolicyRule { peers: cluster_peers(random), ports: ports(random) },
        };
        (0..random.below(4)).map(|_| rule(random)).collect()
    };
    let namespaces = if random.chance(50) {
        Selector::everything()
    } else {
        requirement("ns", Operator::In([any(random, &NAMESPACES).into()].into()))
    };
    ClusterNetworkPolicy {
        tier: *random.pick(&[Tier::Admin, Tier::Admin, Tier::Baseline]),
        priority: *random.pick(&[0, 7, 7, 1000]),
        subject: Subject { namespaces, pods: of_pods(random) },
        ingress: rules(random),
        egress: rules(random),
    }
}

/// Peers of a policy that belongs to no namespace.
fn cluster_peers(random: &mut Random) -> Peers {
    let Peers::Of(mut peers) = peers(random) else { return Peers::Any };
    for peer in &mut peers {
        if let Peer::Pods { namespaces: namespaces @ Namespaces::Own, .. } = peer {
            *namespaces =
                Namespaces::Selected(requirement("ns", Operator::In([any(random, &NAMESPACES).into()].into())));
        }
    }
    Peers::Of(peers)
}

fn of_pods(random: &mut Random) -> Selector {
    let values = |random: &mut Random| -> Box<[CompactString]> {
        let all: Vec<CompactString> = PODS.iter().filter(|_| random.chance(50)).map(|pod| (*pod).into()).collect();
        if all.is_empty() { [any(random, &PODS).into()].into() } else { all.into() }
    };
    match random.below(6) {
        0 => Selector::everything(),
        1 => requirement("tier", Operator::Exists),
        2 => requirement("tier", Operator::DoesNotExist),
        3 => requirement("pod", Operator::NotIn(values(random))),
        _ => requirement("pod", Operator::In(values(random))),
    }
}

fn requirement(key: &str, operator: Operator) -> Selector {
    [Requirement { key: key.into(), operator }].into_iter().collect()
}

fn peers(random: &mut Random) -> Peers {
    if random.chance(20) {
        return Peers::Any;
    }
    let peer = |random: &mut Random| {
        let of_name = |random: &mut Random| Operator::In([any(random, &NAMESPACES).into()].into());
        let namespaces = match random.below(5) {
            0 | 1 => Namespaces::Own,
            2 => Namespaces::Selected(Selector::everything()),
            3 => Namespaces::Selected(requirement("ns", Operator::NotIn([any(random, &NAMESPACES).into()].into()))),
            _ => Namespaces::Selected(requirement("ns", of_name(random))),
        };
        if random.chance(65) { Peer::Pods { namespaces, pods: of_pods(random) } } else { block(random) }
    };
    Peers::Of((0..=random.below(2)).map(|_| peer(random)).collect())
}

/// A range of pods, of everybody or of one, at times with holes.
fn block(random: &mut Random) -> Peer {
    let wide =
        ["0.0.0.0/0", "::/0", "10.244.1.16/28", "fd00:10:244:1::10/124", "10.244.1.16/30", "fd00:10:244:1::14/126"];
    let one = |random: &mut Random| {
        let [v4, v6] = addresses(random.below(3), random.below(3));
        if random.chance(50) { format!("{v4}/32") } else { format!("{v6}/128") }
    };
    let cidr = if random.chance(75) { (*random.pick(&wide)).to_owned() } else { one(random) };
    let holes = (0..random.below(3)).map(|_| one(random)).filter(|hole| hole.contains(':') == cidr.contains(':'));
    let except = holes.map(|hole| hole.parse().expect("a prefix")).collect();
    Peer::Block { cidr: cidr.parse().expect("a prefix"), except }
}

fn ports(random: &mut Random) -> Ports {
    if random.chance(35) {
        return Ports::Any;
    }
    let port = |random: &mut Random| PolicyPort {
        protocol: *random.pick(&PROTOCOLS),
        number: match random.below(6) {
            0 => PortMatch::Any,
            1 | 2 => PortMatch::Named((*random.pick(&["http", "dns", "signal"])).into()),
            3 => PortMatch::Range { first: *random.pick(&[1, 80, 81]), last: *random.pick(&[81, 1000]) },
            _ => {
                let number = *random.pick(&[80, 81]);
                PortMatch::Range { first: number, last: number }
            }
        },
    };
    Ports::Of((0..=random.below(2)).map(|_| port(random)).collect())
}
