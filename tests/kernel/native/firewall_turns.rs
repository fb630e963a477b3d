//! Policies that take turns, in a table of nf_tables, under a stream of packets each of which is judged: what all of them allow is never lost, and what all
//! of them deny never passes, at no moment of a change.
//!
//! What a packet meets that is under way at the moment of a commit, `kernel/nftables/plan.rs` says. A connection meets it once in thousands of changes,
//! and these streams often.

#![allow(clippy::indexing_slicing, reason = "a test that panics has failed, which is how a test says so")]

use std::time::Duration;

use sluice::model::{
    Action, ClusterNetworkPolicy, ClusterRule, Namespaces, NetworkPolicy, Peer, Peers, PolicyRule, PortMatch, Ports,
    Selector, Subject, Tier,
};
use sluice::net::{Family, Protocol};

use super::enforcer::Filter;
use super::firewall::{Machine, PODS, app, block, from_app, ingress, port, put_pod, rule, with};
use super::places::Tally;

/// Number of changes.
const TURNS: usize = 300;
/// A device hands a packet on at once. What has not come by then does not come.
const PATIENCE: Duration = Duration::from_millis(300);

/// Changes between two states, time and again, and tells how packets from `db` to `web` fared meanwhile.
fn take_turns(family: Family, patience: Duration, turn: impl Fn(&mut Machine, usize) + Send + Sync) -> Tally {
    let tally = std::sync::Mutex::new(Tally::default());
    with(Filter::Nftables, false, |machine| {
        turn(machine, 0);
        machine.settle();
        let places = machine.places.clone();
        let all = places.while_sending(family, ("db", "web"), patience, || {
            for number in 1..=TURNS {
                turn(machine, number);
                machine.settle();
            }
        });
        *tally.lock().expect("one thread alone writes") = all;
        machine.check_paths("after all of them");
    });
    tally.into_inner().expect("it is over")
}

fn assert_all_pass(said: &str, policies: [NetworkPolicy; 2]) {
    for family in Family::BOTH {
        let turn = |machine: &mut Machine, number: usize| machine.put_policy("turns", policies[number % 2].clone());
        let Tally { tried, passed } = take_turns(family, PATIENCE, turn);
        assert!(tried > TURNS && passed == tried, "{family}, {said}: {passed} of {tried} packets arrived");
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
    assert_all_pass("single ports", [to_web(from_app("db"), udp(80, 80)), to_web(both(), udp(80, 80))]);
}

#[test]
fn packets_that_two_policies_of_an_admin_tier_in_turn_deny_never_pass() {
    for family in Family::BOTH {
        let turn = |machine: &mut Machine, number: usize| {
            let peers = if number % 2 == 0 { around(16, 48) } else { around(15, 47) };
            machine.world.cluster.cluster_policies.insert("turns".into(), denies("db", peers));
        };
        let Tally { tried, passed } = take_turns(family, Duration::ZERO, turn);
        assert!(tried > TURNS && passed == 0, "{family}: {passed} of {tried} packets passed");
    }
}

#[test]
fn packets_of_a_pod_that_is_denied_them_whatever_its_labels_are_never_pass() {
    for family in Family::BOTH {
        let turn = |machine: &mut Machine, number: usize| {
            for name in ["db", "other"] {
                machine.world.cluster.cluster_policies.insert(name.into(), denies(name, from_app("web")));
            }
            let (name, v4, v6) = PODS[1];
            put_pod(&mut machine.world, name, &[v4, v6], &[("app", ["db", "other"][number % 2])]);
        };
        let Tally { tried, passed } = take_turns(family, Duration::ZERO, turn);
        assert!(tried > TURNS && passed == 0, "{family}: {passed} of {tried} packets passed");
    }
}

/// What pods of this app send to these peers is denied, before any NetworkPolicy is asked.
fn denies(name: &str, peers: Peers) -> ClusterNetworkPolicy {
    let peers = match peers {
        Peers::Of(peers) => Peers::Of(peers.into_vec().into_iter().map(anywhere).collect()),
        Peers::Any => Peers::Any,
    };
    let matches = PolicyRule { peers, ports: Ports::Any };
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
