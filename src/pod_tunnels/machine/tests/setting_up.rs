//! Pods that are found and set up, also again, and those that cannot be.

use super::*;

#[test]
fn a_pod_is_found_set_up_and_taken_down_at_once() {
    let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
    node.start(POD);
    node.start(POD_V6);
    machine.want(&wanted(&[(POD, "203.0.113.7"), (POD_V6, "2001:db8:1::7")]), true, now);
    node.pass(&mut machine, &mut now, MOMENT);
    assert_eq!(node.shown(), "10.244.1.5: 203.0.113.7; fd00:10:244:1::5: 2001:db8:1::7");
    assert_eq!(machine.standing().set_up.len(), 2);
    machine.want(&wanted(&[(POD, "203.0.113.8")]), true, now);
    node.pass(&mut machine, &mut now, MOMENT);
    assert_eq!(node.shown(), "10.244.1.5: 203.0.113.8; fd00:10:244:1::5: none");
    machine.want(&WantedTunnels::new(), true, now);
    node.pass(&mut machine, &mut now, MOMENT);
    assert_eq!(node.shown(), "10.244.1.5: none; fd00:10:244:1::5: none");
    // One last look.
    node.pass(&mut machine, &mut now, LOOK);
    assert_eq!(machine.next(now), Next::Wait(None), "who has nothing to do sleeps");
    assert_eq!(machine.standing(), Standing::default());
}

#[test]
fn a_sandbox_that_is_made_anew_is_set_up_within_two_seconds() {
    let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
    node.start(POD);
    machine.want(&wanted(&[(POD, "203.0.113.7")]), true, now);
    node.pass(&mut machine, &mut now, Duration::from_secs(10));
    // At once.
    node.stop(POD);
    node.start(POD);
    node.pass(&mut machine, &mut now, Duration::from_secs(2));
    assert_eq!(node.shown(), "10.244.1.5: 203.0.113.7");
    // After a while without any.
    node.stop(POD);
    node.pass(&mut machine, &mut now, Duration::from_secs(20));
    assert_eq!(machine.standing().left_out.len(), 1);
    node.start(POD);
    node.pass(&mut machine, &mut now, Duration::from_secs(2));
    assert_eq!(node.shown(), "10.244.1.5: 203.0.113.7");
    // Announced, while no runtime answers.
    node.answers = false;
    node.stop(POD);
    node.pass(&mut machine, &mut now, Duration::from_secs(600));
    node.start(POD);
    machine.announced(address(POD), PathBuf::from(format!("/run/netns/{}", node.made)), now);
    node.pass(&mut machine, &mut now, MOMENT);
    assert_eq!(node.shown(), "10.244.1.5: 203.0.113.7");
}

#[test]
fn a_pod_whose_namespace_outlives_its_sandbox_is_set_up_in_the_new_one() {
    let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
    node.start(POD);
    machine.want(&wanted(&[(POD, "203.0.113.7")]), true, now);
    node.pass(&mut machine, &mut now, Duration::from_secs(10));
    node.leave(POD);
    node.start(POD);
    node.pass(&mut machine, &mut now, CHECK);
    assert_eq!(node.shown(), "10.244.1.5: 203.0.113.7; 10.244.1.5: 203.0.113.7", "the older one leads nowhere");
    assert_eq!((node.searches, machine.standing().left_out), (2, Vec::new()));
    // What is where it was is not searched for, and who does not answer says nothing.
    node.pass(&mut machine, &mut now, CHECK * 10);
    node.answers = false;
    node.pass(&mut machine, &mut now, CHECK * 10);
    assert_eq!((node.searches, machine.standing().set_up.len()), (2, 1));
}

#[test]
fn a_pod_that_cannot_be_set_up_is_named_and_holds_up_no_other() {
    let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
    node.start(POD);
    node.start("10.244.1.6");
    node.refuses = Some(address(POD));
    machine.want(
        &wanted(&[("10.244.1.4", "203.0.113.7"), (POD, "203.0.113.7"), ("10.244.1.6", "203.0.113.7")]),
        true,
        now,
    );
    node.pass(&mut machine, &mut now, MOMENT);
    assert_eq!(node.shown(), "10.244.1.5: none; 10.244.1.6: 203.0.113.7");
    let left_out: Vec<String> =
        machine.standing().left_out.iter().map(|one| format!("{}: {}", one.pod, one.reason)).collect();
    assert_eq!(left_out, ["10.244.1.4: no sandbox", "10.244.1.5: refused"]);
    (node.brings, node.searches) = (0, 0);
    node.pass(&mut machine, &mut now, Duration::from_secs(3600));
    assert!(node.brings < 250 && node.searches < 250, "{} {}: a bounded price", node.brings, node.searches);
    node.refuses = None;
    node.pass(&mut machine, &mut now, Duration::from_secs(31));
    assert_eq!(node.shown(), "10.244.1.5: 203.0.113.7; 10.244.1.6: 203.0.113.7");
}

#[test]
fn a_pod_whose_namespace_refuses_is_tried_no_more_often_however_often_its_services_change() {
    for pod in [POD, POD_V6] {
        let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
        let service = |last: u64| if pod == POD { format!("203.0.113.{last}") } else { format!("2001:db8:1::{last}") };
        node.start(pod);
        node.refuses = Some(address(pod));
        machine.want(&wanted(&[(pod, &service(1))]), true, now);
        node.pass(&mut machine, &mut now, Duration::from_secs(600));
        node.brings = 0;
        for second in 0..600 {
            machine.want(&wanted(&[(pod, &service(second % 2 + 1))]), true, now);
            node.pass(&mut machine, &mut now, Duration::from_secs(1));
        }
        assert!(node.brings <= 21, "{} tries in ten minutes", node.brings);
        // Closing it is tried at once.
        machine.want(&wanted(&[(pod, "")]), true, now);
        node.brings = 0;
        node.pass(&mut machine, &mut now, MOMENT);
        assert_eq!(node.brings, 1);
        node.refuses = None;
        machine.want(&wanted(&[(pod, &service(3))]), true, now);
        node.pass(&mut machine, &mut now, SELDOM);
        assert_eq!(node.shown(), format!("{pod}: {}", service(3)));
    }
}

#[test]
fn the_second_address_of_a_pod_has_the_tunnel_as_soon_as_the_first_gives_it_up() {
    for (first, second) in [(POD, "10.244.1.6"), (POD_V6, "fd00:10:244:1::6")] {
        for (left, is_over) in
            [(vec![(first, ""), (second, "203.0.113.8")], false), (vec![(second, "203.0.113.8")], true)]
        {
            let (mut machine, mut now) = (Machine::default(), Instant::now());
            machine.want(&wanted(&[(first, "203.0.113.7"), (second, "203.0.113.8")]), true, now);
            [first, second].iter().for_each(|pod| machine.announced(address(pod), "/run/netns/1".into(), now));
            let mut has_first = true;
            let mut turn = |machine: &mut Machine, now| {
                let mut tried = Vec::new();
                while let Next::Act(act) = machine.next(now) {
                    let want = match act {
                        Act::Bring { want, .. } => want,
                        Act::Survey { .. } => {
                            machine.surveyed(BTreeSet::new(), None);
                            continue;
                        }
                        _ => continue,
                    };
                    let is_first = want.pod == address(first);
                    has_first = if is_first { !want.services.is_empty() } else { has_first };
                    let done = Done { place: "/run/netns/1".into(), namespace: id(1), changes: 1 };
                    let taken = Err(("taken".to_owned(), Hindrance::Taken));
                    machine.brought(&want, if !is_first && has_first { taken } else { Ok(done) }, now);
                    tried.push(want.pod);
                }
                tried
            };
            for _ in 0..100 {
                turn(&mut machine, now);
                now += SELDOM;
            }
            turn(&mut machine, now);
            now += MOMENT;
            assert_eq!(machine.standing().left_out.len(), 1, "the other address has it");
            machine.want(&wanted(&left), true, now);
            assert_eq!(turn(&mut machine, now), [address(first), address(second)], "over: {is_over}");
            assert_eq!(machine.standing().set_up.keys().copied().collect::<Vec<_>>(), [address(second)]);
        }
    }
}

#[test]
fn a_runtime_that_is_back_after_minutes_is_asked_within_two_seconds() {
    for has_new_socket in [true, false] {
        let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
        node.answers = false;
        machine.want(&wanted(&[(POD, "203.0.113.7"), ("10.244.1.6", "203.0.113.7")]), true, now);
        node.pass(&mut machine, &mut now, Duration::from_secs(600));
        node.searches = 0;
        node.pass(&mut machine, &mut now, Duration::from_secs(600));
        assert!(node.searches < 50, "{} in 10 minutes without it", node.searches);
        node.answers = true;
        node.start(POD);
        node.start("10.244.1.6");
        if has_new_socket {
            node.socket += 1;
        } else {
            // Another pod has it asked.
            machine.want(
                &wanted(&[(POD, "203.0.113.7"), ("10.244.1.6", "203.0.113.7"), ("10.244.1.7", "203.0.113.7")]),
                true,
                now,
            );
        }
        node.pass(&mut machine, &mut now, Duration::from_secs(2));
        assert_eq!(node.shown(), "10.244.1.5: 203.0.113.7; 10.244.1.6: 203.0.113.7", "{has_new_socket}");
    }
}
