//! Histories made by chance, with restarts: what is wanted at their end is there.

use super::*;
use crate::pod_tunnels::compare;

#[test]
fn what_happens_in_any_order_ends_as_wanted_also_over_restarts() {
    for seed in 0..400_u64 {
        walk(seed);
    }
}

fn walk(seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut chance = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let pods = ["10.244.1.4", POD, "10.244.1.6", POD_V6];
    let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
    let mut want = WantedTunnels::new();
    for _ in 0..40 {
        let pod = pods.get(usize::try_from(chance(4)).expect("it is small")).expect("one of them");
        match chance(8) {
            0 => {
                node.stop(pod);
                node.start(pod);
            }
            1 => node.stop(pod),
            2 => {
                let last = chance(3) + 7;
                want.insert(address(pod), addresses(&format!("203.0.113.{last} 203.0.113.20")));
            }
            3 => drop(want.remove(&address(pod))),
            7 => drop(want.insert(address(pod), BTreeSet::new())),
            4 => node.answers = chance(2) == 0,
            5 => node.refuses = (chance(2) == 0).then(|| address(pod)),
            _ => machine = Machine::default(),
        }
        machine.want(&want, chance(4) > 0, now);
        // It may end in the middle of its acts.
        for _ in 0..chance(6) {
            match machine.next(now) {
                Next::Act(act) => node.act(&mut machine, act, now),
                Next::Wait(_) => break,
            }
        }
        node.pass(&mut machine, &mut now, Duration::from_millis(chance(3000)));
    }
    (node.answers, node.refuses) = (true, None);
    machine.want(&want, true, now);
    node.pass(&mut machine, &mut now, Duration::from_secs(62));
    for inside in node.namespaces.values() {
        let expected = want.get(&inside.pod).filter(|services| !services.is_empty()).cloned();
        assert_eq!(inside.services, expected, "seed {seed}: {} {:?}", inside.pod, machine.standing());
    }
    let left_out: BTreeSet<IpAddr> = machine.standing().left_out.iter().map(|one| one.pod).collect();
    let is_there = |pod: &IpAddr| node.namespaces.values().any(|inside| inside.pod == *pod);
    let lacks = |(pod, services): &(&IpAddr, &BTreeSet<IpAddr>)| !services.is_empty() && !is_there(pod);
    let missing: BTreeSet<IpAddr> = want.iter().filter(lacks).map(|(pod, _)| *pod).collect();
    assert_eq!(left_out, missing, "seed {seed}");
    assert_eq!(compare::device_of(address(POD)), "kube-tunnel-if");
}
