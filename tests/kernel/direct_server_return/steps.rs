//! The agent of the pod's node is killed, or the pod is deleted, behind each change that it makes in the pod.

use rustix::process::{Pid, Signal, kill_process};

use super::*;

/// More changes than setting a pod up takes.
const MOST: usize = 20;

/// What a tunnel consists of, in the namespace of the calling thread: devices, addresses, and filters of reverse paths.
fn state() -> Vec<String> {
    let read = |file: &str| fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
    let is_ours = |name: &str| name.starts_with("kube-tunnel");
    let mut found = Vec::new();
    for line in read("dev").lines() {
        let Some((name, _)) = line.trim().split_once(':').filter(|(name, _)| is_ours(name)) else { continue };
        let filter = fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter")).unwrap_or_default();
        found.push(format!("{name} rp_filter {}", filter.trim()));
    }
    // An address of each line, and its device at the end.
    for line in read("if_inet6").lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [address, .., device] = words[..]
            && is_ours(device)
            && !address.starts_with("fe80")
        {
            found.push(format!("{device} {address}"));
        }
    }
    let v4 = read("fib_trie");
    found.extend(v4.contains(SERVICES[0]).then(|| format!("an address {}", SERVICES[0])));
    found.sort();
    found
}

/// Begins something, and acts when so many changes were seen in the pod; returns what was there then, or `None` where there were not so many within this time.
fn behind(
    place: &Path,
    (changes, patience): (usize, Duration),
    begin: impl FnOnce() + Send,
    act: impl FnOnce() + Send,
) -> Option<Vec<String>> {
    let pod = File::open(place).expect("the pod's namespace");
    inside(&pod, || {
        let (begun, mut last, mut seen) = (Instant::now(), state(), 0);
        begin();
        while begun.elapsed() < patience {
            let now = state();
            if now != last {
                (last, seen) = (now, seen + 1);
            }
            if seen == changes {
                act();
                return Some(state());
            }
        }
        None
    })
}

/// What the pod has when it changes no more.
fn settled(place: &Path) -> Vec<String> {
    loop {
        let before = state_of(place);
        sleep(Duration::from_secs(2));
        if state_of(place) == before {
            return before;
        }
    }
}

fn state_of(place: &Path) -> Vec<String> {
    inside(&File::open(place).expect("the pod's namespace"), state)
}

/// Waits until the pod is like this.
fn until(nodes: &Nodes, place: &Path, what: &str, expected: &[String]) {
    let begun = Instant::now();
    while state_of(place) != expected {
        let found = state_of(place);
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{what}: {found:?}, and not {expected:?}\n{}",
            nodes.shown()
        );
        sleep(Duration::from_millis(50));
    }
}

/// Kills the agent behind each change, and has the next one finish what was begun, or undo it where it is not wanted any more.
fn killed_at_each_step(nodes: &mut Nodes, place: &Path, (from, to): (bool, bool)) -> usize {
    let complete = |is_there: bool| if is_there { SERVICES } else { PODS };
    nodes.put_service(from);
    nodes.until("before", complete(from));
    let mut states = [Vec::new(), Vec::new()];
    for (is_there, state) in [(!from, 1), (from, 0)] {
        nodes.put_service(is_there);
        nodes.until("both states", complete(is_there));
        states[state] = settled(place);
    }
    let [before, after] = states;
    assert_ne!(before, after);
    for changes in 1..MOST {
        let wanted = changes % 2 == 1;
        let agent = Pid::from_child(nodes.agents[POD_NODE].as_ref().expect("it runs"));
        let begin = || nodes.put_service(to);
        let kill = || kill_process(agent, Signal::KILL).expect("it runs");
        let found = behind(place, (changes, Duration::from_secs(10)), begin, kill);
        let Some(found) = found else {
            until(nodes, place, "all changes were made", &after);
            return changes - 1;
        };
        nodes.kill(POD_NODE);
        println!("{}: killed behind change {changes}: {found:?}", nodes.filter);
        // What was begun is still wanted, or no longer.
        nodes.put_service(if wanted { to } else { from });
        nodes.start(POD_NODE);
        until(nodes, place, "the next run", if wanted { &after } else { &before });
        nodes.until("the next run", complete(if wanted { to } else { from }));
        nodes.put_service(from);
        until(nodes, place, "back", &before);
        nodes.until("back", complete(from));
    }
    panic!("more than {MOST} changes: {}", nodes.shown());
}

#[test]
fn an_agent_that_is_killed_behind_any_change_in_a_pod_is_finished_or_undone_by_the_next() {
    let _alone = alone();
    let _in_use = in_use();
    beside_containerd_of_both_families(|runtime| {
        ways();
        let mut nodes = Nodes::new("nftables");
        let (id, place, server) = start_pod(runtime);
        nodes.start(POD_NODE);
        nodes.start(DIRECTOR);
        nodes.until("with direct server return", SERVICES);
        let set_up = killed_at_each_step(&mut nodes, &place, (false, true));
        let taken_down = killed_at_each_step(&mut nodes, &place, (true, false));
        println!("killed behind {set_up} changes of setting up, and {taken_down} of taking down");
        assert!(set_up >= 3 && taken_down >= 1, "{set_up} and {taken_down}");
        drop(server);
        runtime.end_sandbox(&id);
    });
}

#[test]
fn a_pod_that_is_deleted_while_it_is_set_up_leaves_nothing_behind_and_the_next_one_serves() {
    let _alone = alone();
    let _in_use = in_use();
    beside_containerd_of_both_families(|runtime| {
        ways();
        let mut nodes = Nodes::new("nftables");
        let (mut id, mut place, mut server) = start_pod(runtime);
        nodes.start(POD_NODE);
        nodes.start(DIRECTOR);
        nodes.until("with direct server return", SERVICES);
        for changes in 1..=4 {
            // The pod is looked at time and again: on a busy machine two changes may be seen as one.
            let found = (0..5).find_map(|_| {
                nodes.put_service(false);
                nodes.until("with NAT", PODS);
                until(&nodes, &place, "no tunnel", &[]);
                behind(&place, (changes, Duration::from_secs(20)), || nodes.put_service(true), || {})
            });
            assert!(found.is_some(), "there are never {changes} changes: {}", nodes.shown());
            drop(server);
            runtime.end_sandbox(&id);
            println!("deleted behind change {changes}: {found:?}");
            (id, place, server) = start_pod(runtime);
            println!("served again after {:?}", nodes.until("by the next sandbox", SERVICES));
        }
        for agent in nodes.agents.iter_mut().flatten() {
            assert!(agent.try_wait().expect("it is ours").is_none(), "an agent has ended");
        }
        drop(server);
        runtime.end_sandbox(&id);
    });
}
