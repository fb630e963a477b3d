//! Tunnels in pods of a real containerd, set up by the program's own thread: found over CRI, kept while sandboxes come and go.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sluice::container_runtime::Sought;
use sluice::kernel::namespace::Namespace;
use sluice::kernel::pod_tunnel::PodNetwork;
use sluice::net::Family;
use sluice::observe::health::Health;
use sluice::observe::metrics::Registry;
use sluice::pod_tunnels::compare::{WantedTunnel, changes};
use sluice::pod_tunnels::driver::{Inputs, Wanted, spawn};
use sluice::pod_tunnels::machine::Standing;
use sluice::pod_tunnels::metrics::Metrics;
use sluice::pod_tunnels::places::Announced;
use tokio::sync::{mpsc, watch};

use crate::containerd::{Containerd, SOCKET, address, beside_containerd, inside};
use crate::namespace::{attempt, run};

const SERVICES: [&str; 2] = ["203.0.113.7", "203.0.113.8"];

/// The part of the program that looks after tunnels in pods, at work.
struct Agent {
    wanted: watch::Sender<Arc<Wanted>>,
    _announce: mpsc::Sender<Announced>,
    standing: watch::Receiver<Arc<Standing>>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
    health: Health,
}

impl Agent {
    fn start(wanted: Wanted) -> Agent {
        let (wanted, wanted_in) = watch::channel(Arc::new(wanted));
        let (_announce, announced) = mpsc::channel(4);
        let (standing_out, standing) = watch::channel(Arc::default());
        let (stop, stopped) = watch::channel(false);
        let health = Health::default();
        let metrics = Metrics::register(&Registry::new("1", "1")).expect("the names are free");
        let pulse = health.register("direct server return", Duration::MAX, Instant::now());
        let note = health.note("direct server return");
        // The first socket is another runtime's, and nobody listens there.
        let sockets = vec![PathBuf::from("/run/docker.sock"), PathBuf::from(SOCKET)];
        let inputs = Inputs { sockets, wanted: wanted_in, announced, standing: standing_out, pulse, note, metrics };
        let thread = Some(spawn(inputs, stopped).expect("there is a thread"));
        Agent { wanted, _announce, standing, stop, thread, health }
    }

    fn want(&self, wanted: Wanted) {
        self.wanted.send_replace(Arc::new(wanted));
    }

    fn notes(&self) -> String {
        self.health.notes().iter().map(|note| note.text.clone()).collect::<Vec<_>>().join("; ")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        self.thread.take().expect("it was started").join().expect("it ends");
    }
}

fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
    texts.iter().map(|text| text.parse().expect("an address")).collect()
}

fn wanted(services: &[&str]) -> Wanted {
    let tunnels = if services.is_empty() { Default::default() } else { [(address(), addresses(services))].into() };
    Wanted { tunnels, complete: true, ..Wanted::default() }
}

/// What our device has inside the pod: `none`, or its addresses and its reverse path filter.
fn shown(place: &std::path::Path) -> String {
    let all = inside(place, "ip -o -4 address show");
    if !inside(place, "ip -o link show").contains("kube-tunnel-if") {
        return "none".to_owned();
    }
    let of =
        all.lines().filter(|line| line.contains("kube-tunnel-if")).filter_map(|line| line.split_whitespace().nth(3));
    let filter = inside(place, "sysctl -n net.ipv4.conf.kube-tunnel-if.rp_filter");
    format!("{} filter {}", of.collect::<Vec<_>>().join(" "), filter.trim())
}

const BOTH: &str = "203.0.113.7/32 203.0.113.8/32 filter 2";

/// Where the pod is.
fn place(runtime: &Containerd) -> PathBuf {
    let found = runtime.sandboxes(&Sought::All);
    let pod = found.iter().find(|one| one.addresses == [address()]).expect("it runs");
    pod.places.first().expect("it is somewhere").clone()
}

/// Waits until the pod is like this; returns how long that took.
fn until(runtime: &Containerd, place: &std::path::Path, expected: &str) -> Duration {
    let begun = Instant::now();
    runtime.wait(&format!("the pod has {expected}"), || shown(place) == expected);
    begun.elapsed()
}

#[test]
fn a_pod_of_containerd_gets_its_tunnel_again_with_each_sandbox_and_keeps_nothing_when_it_is_over() {
    beside_containerd(|runtime| {
        let (made, _, error) = attempt("ip link add probe type ipip local 192.0.2.1 remote 192.0.2.9");
        assert!(made, "this kernel has no module ipip; run this test in the guest of the lab: {error}");
        run("ip link delete probe");
        // The Service comes before the pod.
        let agent = Agent::start(wanted(&SERVICES));
        let beside = runtime.start_sandbox("agent", true, "");
        runtime.wait("the pod is missed", || agent.notes().contains("no sandbox with its address"));
        let first = runtime.start_sandbox("web", false, "");
        let pod = place(runtime);
        println!("the first sandbox: {:?}", until(runtime, &pod, BOTH));
        runtime.wait("it is told", || agent.standing.borrow().set_up.len() == 1 && agent.notes().is_empty());
        // A sandbox that is made anew, with the same address.
        runtime.end_sandbox(&first);
        let second = runtime.start_sandbox("web", false, "");
        let pod = place(runtime);
        let took = until(runtime, &pod, BOTH);
        println!("a sandbox made anew: {took:?}");
        assert!(
            took < Duration::from_secs(20),
            "2 s, and the share of a busy emulator; looks that come seldom are 30 s apart: {took:?}"
        );
        agent.want(wanted(&SERVICES[1..]));
        until(runtime, &pod, "203.0.113.8/32 filter 2");
        agent.want(wanted(&[]));
        until(runtime, &pod, "none");
        // A pod that is deleted with its Service.
        agent.want(wanted(&SERVICES));
        until(runtime, &pod, BOTH);
        runtime.end_sandbox(&second);
        agent.want(wanted(&[]));
        runtime.wait("nothing is left", || *agent.standing.borrow() == Arc::new(Standing::default()));
        assert!(!pod.exists(), "nobody holds the namespace");
        assert_eq!(agent.notes(), "");
        runtime.end_sandbox(&beside);
    });
}

#[test]
fn an_agent_that_ended_at_any_step_in_a_pod_of_containerd_is_finished_or_undone_by_the_next() {
    beside_containerd(|runtime| {
        let id = runtime.start_sandbox("web", false, "");
        let pod = place(runtime);
        // A device that is made here filters strictly: to loosen it is one of the steps.
        inside(&pod, "sysctl -qw net.ipv4.conf.default.rp_filter=1");
        let want = WantedTunnel { pod: address(), services: addresses(&SERVICES), shrinks: true };
        // The first changes of all that are to be made.
        let begin = |count: usize| {
            let made = Namespace::open(&pod).expect("it is there").run(|| {
                let mut network = PodNetwork::open(Family::V4).expect("a socket");
                let seen = network.read().expect("it answers");
                let all = changes(&seen, &want, |_| true).expect("nothing stands in the way");
                all.iter().take(count).for_each(|change| network.apply(change).expect("the kernel takes it"));
                all.len()
            });
            made.expect("root may enter it")
        };
        for count in 0..=begin(0) {
            begin(count);
            let agent = Agent::start(wanted(&SERVICES));
            until(runtime, &pod, BOTH);
            drop(agent);
            assert_eq!(shown(&pod), BOTH, "what is set up stays when the agent ends");
            // The Service went while no agent ran.
            let agent = Agent::start(wanted(&[]));
            until(runtime, &pod, "none");
            drop(agent);
            begin(count);
            let agent = Agent::start(wanted(&[]));
            until(runtime, &pod, "none");
            drop(agent);
        }
        runtime.end_sandbox(&id);
    });
}

#[test]
fn a_pod_is_found_without_a_container_runtime_by_its_address() {
    beside_containerd(|runtime| {
        let id = runtime.start_sandbox("web", false, "");
        let pod = place(runtime);
        run("mv /run/containerd.sock /run/away.sock");
        let agent = Agent::start(wanted(&SERVICES));
        until(runtime, &pod, BOTH);
        agent.want(wanted(&[]));
        until(runtime, &pod, "none");
        drop(agent);
        run("mv /run/away.sock /run/containerd.sock");
        runtime.end_sandbox(&id);
    });
}
