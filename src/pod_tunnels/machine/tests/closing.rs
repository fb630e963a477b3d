//! Pods that are to have no tunnel, because policies close them.

use super::*;

#[test]
fn a_pod_that_policies_close_loses_the_tunnel_of_an_earlier_run_also_where_not_all_services_are_known() {
    for is_late in [false, true] {
        let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
        node.start(POD);
        node.start("10.244.1.6");
        for inside in node.namespaces.values_mut() {
            inside.services = Some(addresses("203.0.113.9"));
        }
        machine.set_policies_known(!is_late, now);
        machine.want(&wanted(&[(POD, ""), ("10.244.1.6", "203.0.113.9")]), false, now);
        node.pass(&mut machine, &mut now, MOMENT);
        let before = if is_late { "203.0.113.9" } else { "none" };
        assert_eq!(node.shown(), format!("10.244.1.5: {before}; 10.244.1.6: 203.0.113.9"));
        machine.set_policies_known(true, now);
        node.pass(&mut machine, &mut now, MOMENT);
        assert_eq!(node.shown(), "10.244.1.5: none; 10.244.1.6: 203.0.113.9", "{is_late}");
    }
}

#[test]
fn a_pod_that_is_to_have_no_tunnel_loses_that_of_an_earlier_run_and_is_set_up_again_without_a_search() {
    let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
    // No sweep finds it.
    machine.want(&WantedTunnels::new(), true, now);
    node.pass(&mut machine, &mut now, Duration::from_secs(1));
    node.start(POD);
    node.namespaces.values_mut().for_each(|inside| inside.services = Some(addresses("203.0.113.7")));
    (machine.sweep, machine.has_wanted) = (Sweep::over(), true);
    machine.want(&wanted(&[(POD, "")]), true, now);
    node.pass(&mut machine, &mut now, MOMENT);
    assert_eq!((node.shown().as_str(), node.searches), ("10.244.1.5: none", 1));
    assert_eq!(machine.standing(), Standing::default(), "nothing is lacking");
    machine.want(&wanted(&[(POD, "203.0.113.7")]), true, now);
    node.pass(&mut machine, &mut now, MOMENT);
    assert_eq!((node.shown().as_str(), node.searches), ("10.244.1.5: 203.0.113.7", 1));
    machine.want(&wanted(&[(POD, "")]), true, now);
    node.pass(&mut machine, &mut now, MOMENT);
    assert_eq!((node.shown().as_str(), node.searches), ("10.244.1.5: none", 1));
    machine.want(&WantedTunnels::new(), true, now);
    node.pass(&mut machine, &mut now, Duration::from_secs(2));
    assert_eq!(machine.next(now), Next::Wait(None), "who has nothing to do sleeps");
}

#[test]
fn a_pod_that_is_to_have_no_tunnel_and_cannot_be_looked_into_is_named_until_it_was_or_is_gone() {
    let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
    node.start(POD);
    node.start("10.244.1.6");
    node.namespaces.values_mut().for_each(|inside| inside.services = Some(addresses("203.0.113.7")));
    node.refuses = Some(address(POD));
    machine.want(&wanted(&[(POD, ""), ("10.244.1.6", "")]), true, now);
    node.pass(&mut machine, &mut now, Duration::from_secs(2));
    assert_eq!(machine.standing(), Standing::default(), "a short failure is none");
    node.pass(&mut machine, &mut now, Duration::from_secs(10));
    let named = |machine: &Machine| -> Vec<String> {
        machine.standing().not_closed.iter().map(|one| format!("{}: {}", one.pod, one.reason)).collect()
    };
    assert_eq!(named(&machine), ["10.244.1.5: refused"]);
    assert_eq!((machine.standing().left_out.len(), machine.standing().set_up.len()), (0, 0));
    node.pass(&mut machine, &mut now, Duration::from_secs(600));
    assert_eq!(named(&machine).len(), 1, "it is still so");
    node.refuses = None;
    node.pass(&mut machine, &mut now, SELDOM);
    assert_eq!((named(&machine), node.shown().as_str()), (vec![], "10.244.1.5: none; 10.244.1.6: none"));
    // It goes before it could be looked into.
    node.answers = false;
    machine.want(&wanted(&[("10.244.1.7", "")]), true, now);
    node.pass(&mut machine, &mut now, Duration::from_secs(20));
    assert_eq!(named(&machine), ["10.244.1.7: no container runtime"]);
    machine.want(&WantedTunnels::new(), true, now);
    assert_eq!(machine.standing(), Standing::default());
}

#[test]
fn a_pod_that_is_to_have_no_tunnel_and_has_no_sandbox_has_nothing_that_could_answer() {
    let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
    machine.want(&wanted(&[(POD, "")]), true, now);
    node.pass(&mut machine, &mut now, Duration::from_secs(60));
    assert_eq!(machine.standing(), Standing::default());
    // The runtime is gone, and what it told is no longer true.
    node.answers = false;
    node.pass(&mut machine, &mut now, Duration::from_secs(60));
    let named: Vec<String> = machine.standing().not_closed.into_iter().map(|one| one.reason).collect();
    assert_eq!(named, ["no container runtime"]);
    node.answers = true;
    node.start(POD);
    node.namespaces.values_mut().for_each(|inside| inside.services = Some(addresses("203.0.113.7")));
    node.pass(&mut machine, &mut now, Duration::from_secs(60));
    assert_eq!((machine.standing(), node.shown().as_str()), (Standing::default(), "10.244.1.5: none"));
}

#[test]
fn a_runtime_that_does_not_answer_once_says_nothing_about_a_pod_that_has_no_sandbox_for_long() {
    let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
    machine.want(&wanted(&[(POD, "")]), true, now);
    node.pass(&mut machine, &mut now, Duration::from_secs(120));
    assert_eq!(machine.standing(), Standing::default());
    // The runtime starts again.
    let before = node.searches;
    node.answers = false;
    while node.searches == before {
        node.pass(&mut machine, &mut now, FIRST);
    }
    assert_eq!(machine.standing(), Standing::default(), "it is one search");
    node.answers = true;
    node.pass(&mut machine, &mut now, SEARCH);
    assert!(node.searches > before + 1, "it is searched again at once");
    node.pass(&mut machine, &mut now, Duration::from_secs(120));
    assert_eq!(machine.standing(), Standing::default());
    assert!(node.searches < before + 10, "and then seldom again");
}
