//! Policies that take turns, in a table of nf_tables, under a stream of packets each of which is judged: what all of them allow is never lost, and what all
//! of them deny never passes, at no moment of a change.
//!
//! What a packet meets that is under way at the moment of a commit, `kernel/nftables/plan.rs` says. A connection meets it once in thousands of changes,
//! and these streams often.

#![allow(clippy::indexing_slicing, reason = "a test that panics has failed, which is how a test says so")]

use std::time::Duration;

use sluice::model::{
    Action, Authority, ClusterNetworkPolicy, ClusterRule, Namespaces, NetworkPolicy, ObjectName, Peer, Peers,
    PolicyRule, PortMatch, Ports, Selector, Subject, Tier,
};
use sluice::net::{Family, Protocol};

use super::enforcer::Filter;
use super::firewall::{Machine, PODS, app, block, egress, from_app, ingress, port, put_pod, rule, with};
use super::moment;
use super::places::Tally;

/// Number of changes.
const TURNS: usize = 300;
/// How often a stream is tried of which one packet fared otherwise than it should. A processor that stands still in the middle of a packet, as that of a virtual machine
/// whose host takes it away, has it meet the rules of one moment and the sets of a later one (`kernel/nftables/plan.rs`). One packet of 112,352 passed once; that this was why
/// was not shown. A change that is in a wrong order shows in each stream.
const TRIES: usize = 3;
/// A device hands a packet on at once. What has not come by then does not come.
const PATIENCE: Duration = Duration::from_millis(300);

/// Changes between two states, time and again, and tells how packets from `db` to `web` fared meanwhile. What is not known completely beside them is as
/// it was.
fn take_turns(
    (family, authority): (Family, Authority),
    patience: Duration,
    turn: impl Fn(&mut Machine, usize) + Send + Sync,
) -> Tally {
    let tally = std::sync::Mutex::new(Tally::default());
    with(Filter::Nftables, false, |machine| {
        turn(machine, 0);
        machine.settle();
        machine.enforcer.authority = authority;
        let places = machine.places.clone();
        let all = places.while_sending(family, ("db", "web"), patience, || {
            for number in 1..=TURNS {
                turn(machine, number);
                machine.take_in();
                machine.enforcer.round(moment());
            }
        });
        *tally.lock().expect("one thread alone writes") = all;
        machine.enforcer.authority = Authority::Complete;
        machine.check("after all of them");
    });
    tally.into_inner().expect("it is over")
}

fn assert_all_pass(said: &str, policies: [NetworkPolicy; 2]) {
    for authority in [Authority::Complete, Authority::Partial] {
        for family in Family::BOTH {
            let turn = |machine: &mut Machine, number: usize| machine.put_policy("turns", policies[number % 2].clone());
            let told = format!("{family}, {said}, {authority:?}");
            none_fare_otherwise(
                &told,
                |tally| tally.tried - tally.passed,
                || take_turns((family, authority), PATIENCE, turn),
            );
        }
    }
}

/// Asserts that no packet of a stream fares otherwise than it should, of which `wrong` is the number.
fn none_fare_otherwise(said: &str, wrong: impl Fn(&Tally) -> usize, stream: impl Fn() -> Tally) {
    for left in (0..TRIES).rev() {
        let tally @ Tally { tried, passed } = stream();
        assert!(tried > TURNS, "{said}: {tried} packets were sent");
        let wrong = wrong(&tally);
        if wrong == 0 {
            return;
        }
        assert!(wrong == 1 && left > 0, "{said}: {passed} of {tried} packets passed");
        eprintln!("{said}: {passed} of {tried} packets passed; the stream is tried again");
    }
}

/// Both states deny what `db` sends to `web`.
fn assert_none_pass(said: &str, authority: Authority, turn: impl Fn(&mut Machine, usize) + Send + Sync) {
    for family in Family::BOTH {
        let told = format!("{family}, {said}, {authority:?}");
        none_fare_otherwise(&told, |tally| tally.passed, || take_turns((family, authority), Duration::ZERO, &turn));
    }
}

fn to_web(peers: Peers, ports: Ports) -> NetworkPolicy {
    ingress(app("web"), &[rule(peers, ports)])
}

/// Around both pods in both families.
fn around(length4: u8, length6: u8) -> Peers {
    let (Peers::Of(v4), Peers::Of(v6)) =
        (block(&format!("10.244.0.0/{length4}"), &[]), block(&format!("fd00:10:244::/{length6}"), &[]))
    else {
        panic!("blocks are peers")
    };
    Peers::Of(v4.into_iter().chain(v6).collect())
}

fn udp(first: u16, last: u16) -> Ports {
    port(Protocol::Udp, PortMatch::Range { first, last })
}

#[test]
fn packets_that_two_policies_with_blocks_in_turn_allow_all_pass() {
    assert_all_pass("blocks", [to_web(around(16, 48), Ports::Any), to_web(around(15, 47), Ports::Any)]);
    assert_all_pass("pods and blocks", [to_web(from_app("db"), Ports::Any), to_web(around(16, 48), Ports::Any)]);
}

#[test]
fn packets_that_two_policies_with_ranges_of_ports_in_turn_allow_all_pass() {
    assert_all_pass("ranges", [to_web(from_app("db"), udp(70, 90)), to_web(from_app("db"), udp(75, 95))]);
    assert_all_pass(
        "a range, and all ports",
        [to_web(from_app("db"), udp(70, 90)), to_web(from_app("db"), Ports::Any)],
    );
}

#[test]
fn packets_that_two_policies_with_single_ports_in_turn_allow_all_pass() {
    let both = || {
        let (Peers::Of(one), Peers::Of(other)) = (from_app("db"), from_app("plain")) else {
            panic!("selectors are peers")
        };
        Peers::Of(one.into_iter().chain(other).collect())
    };
    assert_all_pass(
        "a single port, and a range with it",
        [to_web(from_app("db"), udp(80, 80)), to_web(from_app("db"), udp(80, 81))],
    );
    assert_all_pass("single ports", [to_web(from_app("db"), udp(80, 80)), to_web(both(), udp(80, 80))]);
}

#[test]
fn packets_that_two_policies_of_an_admin_tier_in_turn_deny_never_pass() {
    let put = |machine: &mut Machine, peers, ports| {
        machine.world.cluster.cluster_policies.insert("turns".into(), denies("db", peers, ports));
    };
    for authority in [Authority::Complete, Authority::Partial] {
        assert_none_pass("blocks", authority, |machine, number| {
            put(machine, if number.is_multiple_of(2) { around(16, 48) } else { around(15, 47) }, Ports::Any);
        });
        assert_none_pass("ranges", authority, |machine, number| {
            put(machine, from_app("web"), if number.is_multiple_of(2) { udp(80, 90) } else { udp(75, 95) });
        });
        assert_none_pass("a single port, and a range with it", authority, |machine, number| {
            put(machine, from_app("web"), if number.is_multiple_of(2) { udp(80, 80) } else { udp(80, 90) });
        });
    }
}

/// A pod with this label, in place of its own.
fn relabel(machine: &mut Machine, label: &str) {
    let (name, v4, v6) = PODS[1];
    put_pod(&mut machine.world, name, &[v4, v6], &[("app", label)]);
}

#[test]
fn packets_of_a_pod_that_is_denied_them_whatever_its_labels_are_never_pass() {
    assert_none_pass("one Admin tier and another", Authority::Complete, |machine, number| {
        for name in ["db", "other"] {
            let denying = denies(name, from_app("web"), Ports::Any);
            machine.world.cluster.cluster_policies.insert(name.into(), denying);
        }
        relabel(machine, ["db", "other"][number % 2]);
    });
}

#[test]
fn packets_of_a_pod_that_an_admin_tier_denies_or_a_network_policy_never_pass() {
    assert_none_pass("an Admin tier and a NetworkPolicy", Authority::Complete, |machine, number| {
        machine.world.cluster.cluster_policies.insert("db".into(), denies("db", from_app("web"), Ports::Any));
        machine.put_policy("other", egress(app("other"), &[]));
        relabel(machine, ["db", "other"][number % 2]);
    });
}

#[test]
fn packets_of_an_address_that_is_denied_them_never_pass_while_another_pod_claims_it_as_well() {
    assert_none_pass("one pod and two", Authority::Complete, |machine, number| {
        machine.put_policy("db", egress(app("db"), &[]));
        machine.put_policy("twin", egress(app("twin"), &[]));
        let (_, v4, v6) = PODS[1];
        match number % 2 {
            0 => put_pod(&mut machine.world, "twin", &[v4, v6], &[("app", "twin")]),
            _ => drop(machine.world.cluster.pods.remove(&ObjectName::new("shop", "twin"))),
        }
    });
}

/// What pods of this app send to these peers is denied, before any NetworkPolicy is asked.
fn denies(name: &str, peers: Peers, ports: Ports) -> ClusterNetworkPolicy {
    let peers = match peers {
        Peers::Of(peers) => Peers::Of(peers.into_vec().into_iter().map(anywhere).collect()),
        Peers::Any => Peers::Any,
    };
    let matches = PolicyRule { peers, ports };
    ClusterNetworkPolicy {
        tier: Tier::Admin,
        priority: 1,
        subject: Subject { namespaces: Selector::everything(), pods: app(name) },
        ingress: [].into(),
        egress: [ClusterRule { name: "turns".into(), action: Action::Deny, matches }].into(),
    }
}

/// A ClusterNetworkPolicy has no namespace of its own.
fn anywhere(peer: Peer) -> Peer {
    match peer {
        Peer::Pods { pods, .. } => Peer::Pods { namespaces: Namespaces::Selected(Selector::everything()), pods },
        peer => peer,
    }
}
