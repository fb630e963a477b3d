//! Tunnels that are taken down, those of an earlier run by sweeps through all sandboxes.

use super::*;

#[test]
fn nothing_is_taken_away_before_the_cluster_is_known_completely_and_what_an_earlier_run_left_goes_then() {
    let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
    node.start(POD);
    node.start("10.244.1.6");
    for inside in node.namespaces.values_mut() {
        inside.services = Some(addresses("203.0.113.9"));
    }
    machine.want(&wanted(&[(POD, "203.0.113.7")]), false, now);
    node.pass(&mut machine, &mut now, Duration::from_secs(300));
    assert_eq!(node.shown(), "10.244.1.5: 203.0.113.7 203.0.113.9; 10.244.1.6: 203.0.113.9");
    machine.want(&wanted(&[(POD, "203.0.113.7")]), true, now);
    node.pass(&mut machine, &mut now, MOMENT);
    assert_eq!(node.shown(), "10.244.1.5: 203.0.113.7; 10.244.1.6: none");
}

#[test]
fn a_sweep_that_could_not_ask_everybody_is_told_and_goes_on_until_it_could() {
    let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
    node.start(POD);
    node.start("10.244.1.9");
    let (_, mut inside) = node.namespaces.pop_last().expect("it was started");
    inside.services = Some(addresses("203.0.113.9"));
    node.namespaces.insert("/hidden/9".into(), inside);
    node.answers = false;
    machine.want(&wanted(&[(POD, "203.0.113.7")]), true, now);
    node.pass(&mut machine, &mut now, SELDOM - MOMENT);
    assert_eq!(machine.standing().unswept, None, "a runtime may start later than the agent");
    node.pass(&mut machine, &mut now, SELDOM);
    assert_eq!(machine.standing().unswept.as_deref(), Some("no container runtime"));
    node.pass(&mut machine, &mut now, Duration::from_secs(3600));
    assert!((8..15).contains(&node.surveys.len()), "{} in an hour", node.surveys.len());
    assert!(machine.standing().unswept.is_some(), "it is not over");
    node.answers = true;
    node.socket += 1;
    node.pass(&mut machine, &mut now, Duration::from_secs(2));
    assert_eq!(node.shown(), "10.244.1.5: 203.0.113.7; 10.244.1.9: none", "at once, when the runtime answers");
    assert_eq!(machine.standing().unswept, None);
    let count = node.surveys.len();
    node.pass(&mut machine, &mut now, Duration::from_secs(3600));
    assert_eq!(node.surveys.len(), count, "it is over");
}

#[test]
fn a_pod_that_an_earlier_run_set_up_and_this_one_never_found_is_taken_down_when_nothing_is_wanted_of_it() {
    let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
    node.start(POD);
    node.namespaces.values_mut().for_each(|inside| inside.services = Some(addresses("203.0.113.7")));
    node.answers = false;
    machine.want(&wanted(&[(POD, "203.0.113.7")]), true, now);
    node.pass(&mut machine, &mut now, Duration::from_secs(600));
    assert_eq!(node.shown(), "10.244.1.5: 203.0.113.7", "it is wanted, so no sweep takes it");
    machine.want(&WantedTunnels::new(), true, now);
    node.pass(&mut machine, &mut now, MOMENT);
    assert_eq!(node.shown(), "10.244.1.5: none");
}

#[test]
fn a_tunnel_that_cannot_be_taken_down_is_named_until_it_is() {
    let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
    node.start(POD);
    machine.want(&wanted(&[(POD, "203.0.113.7"), ("10.244.1.4", "203.0.113.7")]), true, now);
    node.pass(&mut machine, &mut now, Duration::from_secs(10));
    node.refuses = Some(address(POD));
    machine.want(&WantedTunnels::new(), true, now);
    assert!(machine.standing().not_taken_down.is_empty(), "nobody has tried yet");
    node.pass(&mut machine, &mut now, Duration::from_secs(10));
    let named: Vec<String> =
        machine.standing().not_taken_down.iter().map(|one| format!("{}: {}", one.pod, one.reason)).collect();
    assert_eq!(named, ["10.244.1.5: refused"]);
    assert!(machine.standing().left_out.is_empty());
    node.refuses = None;
    node.pass(&mut machine, &mut now, SELDOM);
    assert_eq!((node.shown().as_str(), machine.standing()), ("10.244.1.5: none", Standing::default()));
}

#[test]
fn a_place_that_is_gone_has_a_sweep_look_whether_the_tunnel_is() {
    let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
    node.start(POD);
    machine.want(&wanted(&[(POD, "203.0.113.7")]), true, now);
    node.pass(&mut machine, &mut now, Duration::from_secs(40));
    // The pause process is dead: its place leads nowhere, while a container has the namespace.
    let inside = node.namespaces.pop_first().expect("it runs").1;
    machine.want(&WantedTunnels::new(), true, now);
    match machine.next(now) {
        Next::Act(act @ Act::Bring { .. }) => node.act(&mut machine, act, now),
        other => panic!("{other:?}"),
    }
    node.namespaces.insert("/proc/7/ns/net".into(), inside);
    assert_eq!(node.shown(), "10.244.1.5: 203.0.113.7");
    node.pass(&mut machine, &mut now, SELDOM);
    assert_eq!(node.shown(), "10.244.1.5: none");
}

#[test]
fn pods_that_go_before_they_are_found_have_all_sandboxes_asked_for_once_in_a_while() {
    let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
    for _ in 0..100 {
        machine.want(&wanted(&[(POD, "203.0.113.7")]), true, now);
        node.pass(&mut machine, &mut now, Duration::from_millis(500));
        machine.want(&WantedTunnels::new(), true, now);
        node.pass(&mut machine, &mut now, Duration::from_millis(500));
    }
    assert!((2..=5).contains(&node.surveys.len()), "{} in 100 s", node.surveys.len());
    node.start(POD);
    node.namespaces.values_mut().for_each(|inside| inside.services = Some(addresses("203.0.113.7")));
    machine.want(&wanted(&[("10.244.1.6", "203.0.113.7")]), true, now);
    machine.want(&WantedTunnels::new(), true, now);
    node.pass(&mut machine, &mut now, SELDOM);
    assert_eq!(node.shown(), "10.244.1.5: none");
}

#[test]
fn the_runtime_is_not_asked_before_something_is_wanted() {
    let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
    node.start(POD);
    node.namespaces.values_mut().for_each(|inside| inside.services = Some(addresses("203.0.113.7")));
    machine.want(&WantedTunnels::new(), true, now);
    node.pass(&mut machine, &mut now, Duration::from_secs(600));
    assert_eq!((node.shown().as_str(), node.searches), ("10.244.1.5: none", 0));
    assert_eq!(node.surveys, [false]);
    for _ in 0..2 {
        machine.want(&wanted(&[(POD, "203.0.113.7")]), true, now);
        node.pass(&mut machine, &mut now, Duration::from_secs(600));
    }
    assert_eq!(node.surveys, [false, true]);
}
