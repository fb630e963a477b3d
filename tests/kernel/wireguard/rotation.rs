//! A key that changes on two nodes, with agents that are killed at each step, while pods of both send to each other.

use std::time::SystemTime;

use super::*;

/// Nodes as the agents want to have them told, and what is in the manifests.
struct Manifests {
    written: Vec<String>,
}

/// The last key that an agent has said with these words.
fn said(cluster: &Cluster, number: usize, words: &str) -> Option<String> {
    let log = cluster.log(number);
    let line = log.lines().rfind(|line| line.contains(words))?;
    Some(line.split("key=").nth(1)?.trim().trim_matches('"').to_owned())
}

impl Manifests {
    /// Writes what the agents of both nodes have said last; a next key that is the first one goes with the writing after that.
    fn follow(&mut self, cluster: &Cluster) {
        let nodes: Vec<String> = (1..=2).map(|number| self.node(cluster, number)).collect();
        if nodes != self.written {
            cluster.write(&nodes);
            self.written = nodes;
        }
    }

    fn node(&self, cluster: &Cluster, number: usize) -> String {
        let first = said(cluster, number, "Public key of this node for WireGuard").expect("it has one");
        let next = said(cluster, number, "Next public key of this node for WireGuard");
        let annotation = format!("kube-router.io/wireguard-public-key: '{first}'");
        let is_known = self.written.get(number - 1).is_some_and(|node| node.contains(&annotation));
        let next = next.filter(|next| *next != first || !is_known);
        let told = next.map(|next| format!(", kube-router.io/wireguard-next-public-key: '{next}'")).unwrap_or_default();
        node(cluster, number).replace(&annotation, &format!("{annotation}{told}"))
    }
}

fn keys(cluster: &Cluster, number: usize) -> (Option<String>, Option<String>) {
    let read = |name: &str| std::fs::read_to_string(cluster.file("state", number).join(name)).ok();
    (read("wireguard.key"), read("wireguard.key.next"))
}

fn links(cluster: &Cluster, number: usize) -> String {
    run(&format!("ip -n {} -br link show type wireguard", cluster.name(number)))
}

fn route(cluster: &Cluster, number: usize) -> String {
    let routes = run(&format!("ip -n {} route show 10.244.{}.0/24 proto 17", cluster.name(number), 3 - number));
    routes.lines().filter(|line| !line.contains("unreachable")).collect()
}

/// Keeps the manifests up to date until something is so; kills an agent then, and starts it again.
fn killed_when(
    what: &str,
    cluster: &mut Cluster,
    manifests: &mut Manifests,
    victim: usize,
    is_so: impl Fn(&Cluster) -> bool,
) {
    until_told(what, cluster, manifests, is_so);
    cluster.kill(victim);
    thread::sleep(Duration::from_millis(300));
    cluster.start(victim);
}

fn until_told(what: &str, cluster: &Cluster, manifests: &mut Manifests, is_so: impl Fn(&Cluster) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(600);
    while !is_so(cluster) {
        let links = || format!("{}\n{}", links(cluster, 1), links(cluster, 2));
        assert!(Instant::now() < deadline, "{what}\n{}\n{}\n{}", links(), cluster.log(1), cluster.log(2));
        manifests.follow(cluster);
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn keys_of_two_nodes_change_without_a_lost_packet_and_each_step_may_be_the_last_of_a_process() {
    in_new(|| {
        let mut cluster = started("api");
        for number in 1..=2 {
            cluster.kill(number);
            let flags = cluster.flags.get_mut(&number).expect("it has some");
            flags.push("--overlay-wireguard-rotate-key=1h".to_owned());
            // Strict where a distribution has it so.
            let name = cluster.name(number);
            run(&format!("ip netns exec {name} sysctl -qw net.ipv4.conf.default.rp_filter=1"));
            cluster.start(number);
        }
        let mut manifests = Manifests { written: Vec::new() };
        until_told("pods", &cluster, &mut manifests, |cluster| {
            passes(cluster, "-4", 1420) && passes(cluster, "-6", 1420)
        });
        let before: Vec<_> = (1..=2).map(|number| keys(&cluster, number).0).collect();
        cluster.without_losing_one_of([2, 1], "0.02", |cluster| {
            for number in 1..=2 {
                let (began, old) = (Instant::now(), keys(cluster, number).0);
                let file =
                    std::fs::File::options().write(true).open(cluster.file("state", number).join("wireguard.key"));
                file.and_then(|file| file.set_modified(SystemTime::UNIX_EPOCH)).expect("its time is set");
                let other = 3 - number;
                killed_when("a next key", cluster, &mut manifests, number, |cluster| keys(cluster, number).1.is_some());
                killed_when("the device", cluster, &mut manifests, number, |cluster| {
                    links(cluster, number).contains("sluice-wg1")
                });
                killed_when("the other's device", cluster, &mut manifests, other, |cluster| {
                    links(cluster, other).contains("sluice-wg1")
                });
                killed_when("a route", cluster, &mut manifests, number, |cluster| {
                    route(cluster, number).contains("sluice-wg1")
                });
                killed_when("the other's route", cluster, &mut manifests, other, |cluster| {
                    route(cluster, other).contains("sluice-wg1")
                });
                println!("node {number}: both send by the next key after {:?}", began.elapsed());
                killed_when("the key", cluster, &mut manifests, number, |cluster| keys(cluster, number).0 != old);
                println!("node {number}: the next key is the first after {:?}", began.elapsed());
                killed_when("the way back", cluster, &mut manifests, number, |cluster| {
                    (1..=2).all(|number| route(cluster, number).contains(LINK))
                });
                until_told("the end", cluster, &mut manifests, |cluster| {
                    (1..=2).all(|number| !links(cluster, number).contains("sluice-wg1"))
                });
                println!("node {number}: all is done after {:?}", began.elapsed());
            }
        });
        for number in 1..=2 {
            let (first, next) = keys(&cluster, number);
            assert!(first != before[number - 1] && first.is_some() && next.is_none(), "node {number}");
            let log = cluster.log(number);
            let secrets = before.iter().chain([&first]).flatten();
            assert!(secrets.into_iter().all(|secret| !log.contains(secret.trim())), "a private key is in a log");
        }
        assert!(passes(&cluster, "-4", 1420) && passes(&cluster, "-6", 1420));
    });
}
