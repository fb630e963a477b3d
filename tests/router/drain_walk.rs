//! Nodes drain and come back by chance, for one reason or several, beside Services that come and go and agents that start anew.
//!
//! A router outside has a session with each of three nodes. After each act, and at each moment in between, it has from a node:
//!
//! - the pod ranges, whatever the node does;
//! - the service addresses as they are where nothing drains the node; with GRACEFUL_SHUTDOWN (RFC 8326) from the first reason on, before they
//!   go; and none once the delay is over, or the agent was started anew meanwhile;
//! - each of them in that order, never without the announcement while the node is to have it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use ipnet::IpNet;

use sluice::model::{Labels, ObjectName, Taint};

use crate::cluster::{Cluster, External, Heard, address, prefix};
use crate::support::random::{Random, for_many};
use crate::{OUTSIDE, service};

const NODES: [usize; 3] = [1, 2, 3];
const LINKS: [&str; 3] = ["192.0.2", "192.0.2", "192.0.2"];
const ACTS: usize = 60;
const DELAY: Duration = Duration::from_secs(200);
const LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// How service addresses of a node stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Standing {
    Announced,
    /// Since this time of the walk.
    Leaving(Duration),
    Withdrawn,
}

/// What drains a node, and what does not.
#[derive(Clone, Default, Debug)]
struct Signs {
    has_label: bool,
    has_taint: bool,
    is_cordoned: bool,
    kubelet: Kubelet,
}

/// What a kubelet says in the condition `Ready`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum Kubelet {
    #[default]
    Ready,
    ShuttingDown,
    /// It says nothing any more, and the node controller has written that.
    Silent,
}

struct Walk<'r> {
    random: &'r mut Random,
    cluster: Cluster,
    time: Duration,
    signs: BTreeMap<usize, Signs>,
    /// The agent has seen that the host shuts down, and nothing else from its kubelet since.
    shut_down: BTreeSet<usize>,
    standing: BTreeMap<usize, Standing>,
    services: BTreeSet<usize>,
    story: Vec<String>,
    counts: Counts,
}

/// How often what happened, so that a walk that shows nothing is seen to.
#[derive(Clone, Copy, Default, Debug)]
struct Counts {
    leaving: usize,
    withdrawn: usize,
    back: usize,
    back_before_the_delay: usize,
    restarts_in_a_drain: usize,
    services_in_a_drain: usize,
}

impl Counts {
    fn all(&self) -> [usize; 6] {
        let Counts { leaving, withdrawn, back, back_before_the_delay, restarts_in_a_drain, services_in_a_drain } =
            *self;
        [leaving, withdrawn, back, back_before_the_delay, restarts_in_a_drain, services_in_a_drain]
    }
}

#[test]
fn whatever_drains_nodes_a_router_outside_keeps_their_pods_and_is_told_before_service_addresses_go() {
    let sum = std::sync::Mutex::new([0; 6]);
    for_many(40, |random| {
        let mut walk = Walk::new(random);
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| walk.run()));
        if let Err(panic) = run {
            println!("What happened:\n  {}", walk.story.join("\n  "));
            std::panic::resume_unwind(panic);
        }
        let mut sum = sum.lock().expect("nobody panics with it");
        sum.iter_mut().zip(walk.counts.all()).for_each(|(sum, count)| *sum += count);
    });
    let sum = sum.into_inner().expect("nobody panicked with it");
    assert!(sum.iter().all(|count| *count > 0), "something never happened: {sum:?}");
}

impl<'r> Walk<'r> {
    fn new(random: &'r mut Random) -> Walk<'r> {
        let mut words = vec!["--enable-ipv6", "--drain-taints=example.com/leaving", "--drain-delay=200s"];
        words.extend(OUTSIDE);
        let mut cluster = Cluster::new(&words);
        for (number, link) in NODES.into_iter().zip(LINKS) {
            cluster.add_node(number, link, "both", &crate::ranges("both", number));
            cluster.change_node(number, |node| node.should_announce = true);
        }
        cluster.add_external(External { address: address("192.0.2.254"), asn: 65010, originates: vec![] });
        cluster.settle();
        cluster.take_heard();
        Walk {
            random,
            cluster,
            time: Duration::ZERO,
            signs: NODES.map(|number| (number, Signs::default())).into(),
            shut_down: BTreeSet::new(),
            standing: NODES.map(|number| (number, Standing::Announced)).into(),
            services: BTreeSet::new(),
            story: Vec::new(),
            counts: Counts::default(),
        }
    }

    fn run(&mut self) {
        for _ in 0..ACTS {
            let before = self.services.clone();
            let mut restarted = BTreeSet::new();
            for _ in 0..self.random.below(3) {
                self.act(&mut restarted);
            }
            let passes = Duration::from_secs(*self.random.pick(&[1, 30, 90, 150, 250]));
            self.settle(passes, &before, &restarted);
        }
        for number in NODES {
            self.signs.insert(number, Signs::default());
            self.show(number);
        }
        let before = self.services.clone();
        self.settle(DELAY, &before, &BTreeSet::new());
        assert!(self.standing.values().all(|standing| *standing == Standing::Announced), "{:?}", self.standing);
    }

    fn act(&mut self, restarted: &mut BTreeSet<usize>) {
        let number = *self.random.pick(&NODES);
        let signs = self.signs.get_mut(&number).expect("all nodes have some");
        match self.random.below(10) {
            0..=2 => signs.has_label = !signs.has_label,
            3..=4 => signs.has_taint = !signs.has_taint,
            5 => signs.is_cordoned = !signs.is_cordoned,
            6 => {
                let next = [Kubelet::Ready, Kubelet::ShuttingDown, Kubelet::Silent];
                signs.kubelet = *self.random.pick(&next);
            }
            7..=8 => return self.turn_service(),
            _ => {
                let is_draining = self.standing[&number] != Standing::Announced;
                self.counts.restarts_in_a_drain += usize::from(is_draining);
                self.story.push(format!("the agent of node {number} starts anew"));
                self.cluster.restart(number);
                restarted.insert(number);
                return;
            }
        }
        self.story.push(format!("node {number}: {signs:?}"));
        self.show(number);
    }

    fn turn_service(&mut self) {
        let which = self.random.below(4);
        let name = ObjectName::new("default", &format!("web-{which}"));
        if self.services.remove(&which) {
            self.cluster.remove_service(&name);
        } else {
            self.services.insert(which);
            self.cluster.put_service(name, service(&addresses(which).each_ref().map(String::as_str)));
        }
        self.story.push(format!("Services {:?}", self.services));
    }

    /// Writes the Node as its signs say.
    fn show(&mut self, number: usize) {
        let Signs { has_label, has_taint, is_cordoned, kubelet } = self.signs[&number];
        let taint = |text: &str| text.parse::<Taint>().expect("a taint");
        self.cluster.change_node(number, |node| {
            let label = has_label.then_some((LABEL, ""));
            node.labels = [("pool", "old")].into_iter().chain(label).collect::<Labels>();
            node.taints = Vec::new();
            node.taints.extend(is_cordoned.then(|| taint("node.kubernetes.io/unschedulable:NoSchedule")));
            node.taints.extend(has_taint.then(|| taint("example.com/leaving=now:NoExecute")));
            node.should_announce = kubelet == Kubelet::Ready;
            node.is_shutting_down = kubelet == Kubelet::ShuttingDown;
        });
    }

    /// Returns whether something drains a node, as its agent sees it.
    fn is_draining(&mut self, number: usize) -> bool {
        let Signs { has_label, has_taint, kubelet, .. } = self.signs[&number];
        match kubelet {
            Kubelet::Ready => drop(self.shut_down.remove(&number)),
            Kubelet::ShuttingDown => drop(self.shut_down.insert(number)),
            // What it said last counts.
            Kubelet::Silent => {}
        }
        has_label || has_taint || self.shut_down.contains(&number)
    }

    /// Lets time pass, and compares what the router outside had in it.
    fn settle(&mut self, passes: Duration, services_before: &BTreeSet<usize>, restarted: &BTreeSet<usize>) {
        let time = self.time..self.time + passes;
        self.time = time.end;
        self.cluster.settle_for(passes);
        let heard = self.cluster.take_heard();
        self.story.push(format!("{passes:?} pass"));
        for number in NODES {
            if restarted.contains(&number) {
                self.shut_down.remove(&number);
            }
            let drains = self.is_draining(number);
            let was = if restarted.contains(&number) { None } else { Some(self.standing[&number]) };
            let stands = self.stands(was, drains, time.clone());
            self.story.push(format!("node {number}: {was:?}, then {stands:?}"));
            self.standing.insert(number, *stands.last().expect("it stands somehow"));
            if restarted.contains(&number) {
                self.check_end(number, &heard);
                continue;
            }
            for range in crate::ranges("both", number).split(' ').map(prefix) {
                assert_eq!(states(&heard, number, range), [Some(false)], "node {number}, pods {range}");
            }
            for which in services_before.union(&self.services) {
                let had = services_before.contains(which);
                let has = self.services.contains(which);
                for address in service_prefixes(*which) {
                    let states = states(&heard, number, address);
                    if !has {
                        assert_eq!(states.last(), Some(&None), "node {number}, {address} of a Service that is gone");
                        continue;
                    }
                    let before = was.as_ref().filter(|_| had).and_then(shown);
                    let mut expected = vec![before];
                    expected.extend(stands.iter().map(shown));
                    expected.dedup();
                    assert_eq!(states, expected, "node {number}, {address}: {was:?}, {stands:?}");
                    self.counts.services_in_a_drain += usize::from(!had && stands[0] != Standing::Announced);
                }
            }
        }
    }

    /// Returns how service addresses of a node stand one after the other in this time, by how they stood before; a start has nothing before it.
    fn stands(&mut self, was: Option<Standing>, drains: bool, time: Range<Duration>) -> Vec<Standing> {
        let next = match (was, drains) {
            (_, false) => Standing::Announced,
            (None, true) => Standing::Withdrawn,
            (Some(Standing::Announced), true) => Standing::Leaving(time.start),
            (Some(was), true) => was,
        };
        if was != Some(next) {
            self.counts.leaving += usize::from(matches!(next, Standing::Leaving(_)));
            self.counts.back += usize::from(was == Some(Standing::Withdrawn));
            self.counts.back_before_the_delay += usize::from(matches!(was, Some(Standing::Leaving(_))));
        }
        let mut stands = vec![next];
        if let Standing::Leaving(since) = next
            && time.end - since >= DELAY
        {
            stands.push(Standing::Withdrawn);
            self.counts.withdrawn += 1;
        }
        stands
    }

    /// Compares what the router outside has in the end from a node whose sessions have ended meanwhile.
    fn check_end(&self, number: usize, heard: &[Heard]) {
        let last = |prefix| states(heard, number, prefix).pop().flatten();
        for range in crate::ranges("both", number).split(' ').map(prefix) {
            assert_eq!(last(range), Some(false), "node {number}, pods {range}");
        }
        for address in self.services.iter().flat_map(|which| service_prefixes(*which)) {
            assert_eq!(last(address), shown(&self.standing[&number]), "node {number}, {address}");
        }
    }
}

fn addresses(which: usize) -> [String; 2] {
    [format!("10.96.0.{}", 9 + which), format!("fd00:10:96::{}", 9 + which)]
}

fn service_prefixes(which: usize) -> Vec<IpNet> {
    addresses(which).iter().map(|text| IpNet::from(address(text))).collect()
}

/// Whether a service address has GRACEFUL_SHUTDOWN; `None` where it is not announced.
fn shown(standing: &Standing) -> Option<bool> {
    match standing {
        Standing::Announced => Some(false),
        Standing::Leaving(_) => Some(true),
        Standing::Withdrawn => None,
    }
}

/// The states of a route one after the other.
fn states(heard: &[Heard], number: usize, prefix: IpNet) -> Vec<Option<bool>> {
    let mut states: Vec<Option<bool>> = heard.iter().map(|heard| heard.get(&(number, prefix)).copied()).collect();
    states.dedup();
    states
}
