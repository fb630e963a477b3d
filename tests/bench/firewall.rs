//! Cost of the firewall's calculation: all rules at once, one changed label, and the memory of it.
//!
//! `cargo bench --bench firewall [PODS...]`: native, no kernel is asked. 110 pods of this node, 1,000 policies, and so many
//! pods in the cluster (5,000 and 50,000 by default). `scripts/bench firewall` measures the whole.
//!
//! The cluster has 50 namespaces, 20 policies in each. Two of these select pods of this node: they allow the own
//! namespace's pods of one app at a port, all pods of another namespace at a named port, monitoring in any namespace, and
//! one block with a hole; egress to DNS by name, and to everything else by address.
//!
//! Memory is what is allocated and not freed, without what the allocator itself needs.
#![expect(unsafe_code, reason = "an allocator that counts bytes cannot be written without")]
#![expect(clippy::indexing_slicing, reason = "a measurement may end with a crash")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sluice::firewall::plan::{Plan, RuleSetChanges};
use sluice::model::{
    Authority, Host, Labels, NamedPort, Namespace, Namespaces, NetworkPolicy, ObjectName, Operator, Peer, Peers, Pod,
    PolicyPort, PolicyRule, PortMatch, Ports, Requirement, Selector, Shared, World,
};
use sluice::net::Protocol;

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; counting does not touch the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const LOCAL_PODS: usize = 110;
const POLICIES: usize = 1_000;
const NAMESPACES: usize = 50;
const APPS: usize = 20;
const NODE: &str = "node1";
const CHANGES: usize = 1_000;
const ROUNDS: usize = 5;

fn main() {
    let sizes: Vec<usize> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let sizes = if sizes.is_empty() { vec![5_000, 50_000] } else { sizes };
    println!("{LOCAL_PODS} pods of this node, {POLICIES} policies");
    for pods in sizes {
        measure(pods);
    }
}

fn measure(pods: usize) {
    let empty = live();
    let world = world(pods);
    let with_world = live();
    let mut plan = Plan::new();
    let mut all = Duration::MAX;
    let mut with_plan = 0;
    for round in 0..ROUNDS {
        let mut one = Plan::new();
        let begun = Instant::now();
        let changed = one.update(&world);
        all = all.min(begun.elapsed());
        black_box(changed);
        if round == 0 {
            with_plan = live();
            plan = one;
        }
    }
    let elements: usize = plan.rules().sets.values().map(sluice::firewall::rules::Contents::len).sum();
    println!(
        "{pods} pods: {} policies of {} rules, {} sets with {elements} elements",
        plan.rules().policies.len(),
        rules(&plan),
        plan.rules().sets.len()
    );
    println!("  all at once          {:>9.2} ms", all.as_secs_f64() * 1e3);
    println!("  World                {:>9.1} MiB", mebibytes(with_world.saturating_sub(empty)));
    println!("  plan                 {:>9.1} MiB", mebibytes(with_plan.saturating_sub(with_world)));
    let mut world = world;
    many("label of a peer", &mut plan, &mut world, |world, turn| {
        let index = (turn * 7919) % pods;
        relabel(world, index, &format!("app-{}", (turn + index) % APPS));
    });
    many("label of a local pod", &mut plan, &mut world, |world, turn| {
        relabel(world, turn % LOCAL_PODS, &format!("app-{}", turn / LOCAL_PODS % APPS));
    });
    many("pod replaced", &mut plan, &mut world, |world, turn| {
        let (name, pod) = pod(LOCAL_PODS + turn % (pods - LOCAL_PODS), &Templates::default());
        world.cluster.pods.remove(&name);
        let again = ObjectName::new(&name.namespace, &format!("{}-again-{turn}", name.name));
        world.cluster.pods.insert(again, pod);
    });
    many("rule of a policy", &mut plan, &mut world, |world, turn| {
        let index = turn % POLICIES;
        let (name, mut policy) = policy(index);
        let extra = PolicyRule { peers: Peers::Any, ports: Ports::Of(Box::new([tcp(1024 + turn as u16)])) };
        policy.ingress = policy.ingress.map(|rules| rules.iter().cloned().chain([extra]).collect());
        world.cluster.policies.insert(name, policy);
    });
    many("rule for all pods", &mut plan, &mut world, |world, turn| {
        let (name, mut policy) = policy(turn % POLICIES);
        let pods = is("pod-template-hash", &format!("{:010x}", turn % APPS * 7919));
        let everywhere = Namespaces::Selected(Selector::everything());
        let extra =
            PolicyRule { peers: Peers::Of(Box::new([Peer::Pods { namespaces: everywhere, pods }])), ports: Ports::Any };
        policy.ingress = Some(Box::new([extra]));
        world.cluster.policies.insert(name, policy);
    });
}

/// Measures many changes of one kind, each on its own.
fn many(what: &str, plan: &mut Plan, world: &mut World, change: impl Fn(&mut World, usize)) {
    let mut took = Vec::with_capacity(CHANGES);
    let mut asked = 0;
    for turn in 0..CHANGES {
        change(world, turn);
        let begun = Instant::now();
        let changed: RuleSetChanges = plan.update(world);
        took.push(begun.elapsed());
        asked = asked.max(changed.pods_asked);
    }
    took.sort_unstable();
    let at = |percent: usize| took[(took.len() - 1) * percent / 100].as_secs_f64() * 1e6;
    let most = at(100);
    println!(
        "  {what:<20} {:>9.1} us p50 {:>9.1} us p99 {most:>9.1} us at most, {asked} pods asked at most",
        at(50),
        at(99)
    );
}

fn rules(plan: &Plan) -> usize {
    plan.rules().policies.values().map(|rules| rules.len()).sum()
}

fn world(pods: usize) -> World {
    let mut world = World::empty();
    world.authority.proxy = Authority::Complete;
    world.host = Arc::new(Host { node_name: NODE.into(), ..Host::default() });
    for index in 0..NAMESPACES {
        let name = namespace(index);
        let labels = labels(&[("kubernetes.io/metadata.name", &name), ("team", &format!("team-{}", index % 10))]);
        world.cluster.namespaces.insert(name.as_str().into(), Namespace { labels, isolated: false });
    }
    let templates = Templates::default();
    for index in 0..pods {
        let (name, pod) = pod(index, &templates);
        world.cluster.pods.insert(name, pod);
    }
    for index in 0..POLICIES {
        let (name, policy) = policy(index);
        world.cluster.policies.insert(name, policy);
    }
    world
}

type Template = (Labels, Shared<[NamedPort]>);

/// Labels and ports that pods of one template share, as parsing shares them.
#[derive(Default)]
struct Templates {
    known: RefCell<BTreeMap<(usize, usize), Template>>,
    nodes: RefCell<BTreeMap<usize, Shared<str>>>,
}

impl Templates {
    fn of(&self, namespace: usize, app: usize) -> Template {
        self.known.borrow_mut().entry((namespace, app)).or_insert_with(|| (app_labels(app), ports())).clone()
    }

    /// The node of a pod, by the pod's number.
    fn node(&self, index: usize) -> Shared<str> {
        let number = index / LOCAL_PODS;
        let name = || if number == 0 { NODE.into() } else { format!("node-{number:04}").as_str().into() };
        self.nodes.borrow_mut().entry(number).or_insert_with(name).clone()
    }
}

fn app_labels(app: usize) -> Labels {
    labels(&[
        ("app.kubernetes.io/name", &format!("app-{app}")),
        ("app.kubernetes.io/part-of", "shop"),
        ("app.kubernetes.io/instance", &format!("instance-{app}")),
        ("pod-template-hash", &format!("{:010x}", app * 7919)),
        ("tier", if app.is_multiple_of(2) { "front" } else { "back" }),
    ])
}

fn ports() -> Shared<[NamedPort]> {
    let port = |name: &str, number| NamedPort { name: name.into(), protocol: Protocol::Tcp, number };
    [port("http", 8080), port("metrics", 9090)].into()
}

/// The first pods are this node's.
fn pod(index: usize, templates: &Templates) -> (ObjectName, Pod) {
    let (space, app) = (index % NAMESPACES, index / NAMESPACES % APPS);
    let (labels, ports) = templates.of(space, app);
    let number = u32::try_from(index).expect("few pods");
    let v4 = Ipv4Addr::from(0x0AF4_0000 + number);
    let v6 = Ipv6Addr::from(0xfd00_0010_0244_0000_0000_0000_0000_0000 + u128::from(number));
    let name = ObjectName::new(&namespace(space), &format!("app-{app}-{:010x}-{index:05x}", app * 7919));
    let pod = Pod {
        uid: None,
        labels,
        addresses: [IpAddr::V4(v4), IpAddr::V6(v6)].into(),
        node: Some(templates.node(index)),
        host_network: false,
        finished: false,
        ports,
    };
    (name, pod)
}

fn relabel(world: &mut World, index: usize, app: &str) {
    let (name, _) = pod(index, &Templates::default());
    let mut pod = (**world.cluster.pods.get(&name).expect("the pod is there")).clone();
    let kept: Vec<(String, String)> =
        pod.labels.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let all = kept.into_iter().filter(|(key, _)| key != "app.kubernetes.io/name");
    pod.labels = all.chain([("app.kubernetes.io/name".to_owned(), app.to_owned())]).collect();
    world.cluster.pods.insert(name, pod);
}

fn policy(index: usize) -> (ObjectName, NetworkPolicy) {
    let (space, app) = (index % NAMESPACES, index / NAMESPACES % APPS);
    let own = |key: &str, value: &str| Peer::Pods { namespaces: Namespaces::Own, pods: is(key, value) };
    let elsewhere =
        |namespaces: Selector, pods: Selector| Peer::Pods { namespaces: Namespaces::Selected(namespaces), pods };
    let named = |name: &str| PolicyPort { protocol: Protocol::Tcp, number: PortMatch::Named(name.into()) };
    let rule = |peers: Vec<Peer>, ports: Vec<PolicyPort>| PolicyRule {
        peers: if peers.is_empty() { Peers::Any } else { Peers::Of(peers.into()) },
        ports: if ports.is_empty() { Ports::Any } else { Ports::Of(ports.into()) },
    };
    let next = namespace((space + 1) % NAMESPACES);
    let block = Peer::Block {
        cidr: "203.0.113.0/24".parse().expect("a prefix"),
        except: Box::new([format!("203.0.113.{}/32", app).parse().expect("a prefix")]),
    };
    let ingress = [
        rule(vec![own("app.kubernetes.io/name", &format!("app-{}", (app + 1) % APPS))], vec![tcp(8080)]),
        rule(vec![elsewhere(is("kubernetes.io/metadata.name", &next), Selector::everything())], vec![named("http")]),
        rule(vec![elsewhere(Selector::everything(), is("app.kubernetes.io/name", "app-0"))], vec![named("metrics")]),
        rule(vec![block], vec![tcp(8080)]),
    ];
    let dns = elsewhere(Selector::everything(), is("app.kubernetes.io/name", "app-1"));
    let all = Peer::Block { cidr: "0.0.0.0/0".parse().expect("a prefix"), except: Box::new([]) };
    let egress = [rule(vec![dns], vec![named("http")]), rule(vec![all], vec![tcp(443)])];
    let policy = NetworkPolicy {
        pods: is("app.kubernetes.io/name", &format!("app-{app}")),
        ingress: Some(Box::new(ingress)),
        egress: Some(Box::new(egress)),
    };
    (ObjectName::new(&namespace(space), &format!("policy-{index:04}")), policy)
}

fn tcp(number: u16) -> PolicyPort {
    PolicyPort { protocol: Protocol::Tcp, number: PortMatch::Range { first: number, last: number } }
}

fn is(key: &str, value: &str) -> Selector {
    [Requirement { key: key.into(), operator: Operator::In(Box::new([value.into()])) }].into_iter().collect()
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().copied().collect()
}

fn namespace(index: usize) -> String {
    format!("namespace-{index:02}")
}

fn mebibytes(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn live() -> usize {
    LIVE.load(Ordering::Relaxed)
}
