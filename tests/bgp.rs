//! Several BGP speakers in one process, on a network and a time of our own.
//!
//! A walk lets routes come and go, breaks connections, lets hosts die with and without notice and come back, parts the
//! network, changes policies, stops and starts neighbours, and lets packets of BFD be lost. When it has healed and settled, every speaker must have the
//! table that a direct computation gives, and every neighbour must have been told exactly what the speaker thinks it told.
//!
//! `BGP_SEED=n` runs one walk again; a failure names its seed. `BGP_WALKS=n` walks, each of `BGP_STEPS=n` steps.

#![allow(clippy::indexing_slicing, reason = "a test that panics has failed, which is how a test says so")]

#[path = "bgp/expected.rs"]
mod expected;
#[path = "bgp/network.rs"]
mod network;
#[path = "bgp/paths.rs"]
mod paths;
#[path = "support/random.rs"]
#[allow(dead_code, reason = "every test program uses its own part of this module")]
mod random;
#[path = "bgp/walk.rs"]
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use network::{Network, Plan};
use random::{Random, number, seeds};
use sluice::bgp::rib::NextHops;
use walk::Walk;

#[test]
fn whatever_happens_all_speakers_come_to_the_tables_that_a_direct_computation_gives() {
    let steps = number("BGP_STEPS").unwrap_or(40);
    let seeds = seeds("BGP_SEED", number("BGP_WALKS").unwrap_or(40));
    let (mut sessions, mut failures, mut noticed) = (0, 0, 0);
    let walks = seeds.len();
    for seed in seeds {
        let mut walk = Walk::new(seed);
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| walk.run(steps)));
        if run.is_err() {
            let told = walk.network.story.join("\n  ");
            panic!("a walk failed; BGP_SEED={seed} BGP_STEPS={steps} runs it again. What happened:\n  {told}");
        }
        sessions += walk.network.sessions;
        failures += walk.network.failures;
        noticed += walk.network.cuts.noticed;
    }
    eprintln!("{sessions} sessions, {failures} failures of paths, {noticed} cuts that both ends noticed in time");
    assert!(sessions > 10, "there were sessions");
    assert!(walks < 40 || failures > 10 && noticed > 0, "paths failed, and cuts were noticed");
}

/// Three hosts in a row, each in a system of its own, with a route of each family.
fn row(graceful: bool) -> Network {
    row_with(graceful, false)
}

/// The same, with BFD between all of them where they are `watched`.
fn row_with(graceful: bool, watched: bool) -> Network {
    let plans = (0..3_usize).map(|host| {
        let peers: &[usize] = [&[1][..], &[0, 2], &[1]][host];
        let origins = [format!("10.244.{host}.0/24"), format!("fd00:10:244:{host}::/64")];
        Plan {
            asn: 64512 + host as u32,
            peers: peers.iter().map(|peer| (*peer, false)).collect::<BTreeMap<usize, bool>>(),
            next_hops: NextHops::Usual,
            restarts_gracefully: graceful,
            origins: origins.iter().map(|text| text.parse().expect("a prefix")).collect(),
            blocked: BTreeSet::new(),
            stopped: BTreeSet::new(),
            watched: peers.iter().copied().filter(|_| watched).collect(),
        }
    });
    let mut network = Network::new(plans.collect(), Random::new(1));
    network.pass(Duration::from_secs(5));
    let all = network.hosts.iter().map(|host| host.kernel.len());
    assert_eq!(all.collect::<Vec<_>>(), [6, 6, 6], "all have heard of all");
    network
}

#[test]
fn a_speaker_that_restarts_gracefully_costs_its_neighbours_no_route() {
    let mut network = row(true);
    let before: Vec<_> = network.hosts.iter().map(|host| host.kernel.clone()).collect();
    network.kill(1, false);
    network.pass(Duration::from_secs(10));
    network.start(1, true);
    network.pass(Duration::from_millis(700));
    let after: Vec<_> = network.hosts.iter().map(|host| host.kernel.clone()).collect();
    assert_eq!(after, before, "in less than a second");
    network.pass(Duration::from_secs(300));
    assert!(network.hosts.iter().all(|host| host.removed == 0));
    assert!(network.hosts.iter().all(|host| host.kernel.len() == 6));
}

#[test]
fn a_speaker_that_does_not_come_back_loses_its_routes_when_its_time_is_over() {
    let mut network = row(true);
    network.kill(1, false);
    network.pass(Duration::from_secs(139));
    assert_eq!(network.hosts[0].kernel.len(), 6, "for the restart time, and then as the last resort");
    network.pass(Duration::from_secs(2));
    assert_eq!(network.hosts[0].kernel.len(), 2);
}

#[test]
fn a_speaker_that_restarts_otherwise_loses_its_routes_at_once() {
    let mut network = row(false);
    network.kill(1, false);
    network.pass(Duration::from_millis(100));
    assert_eq!((network.hosts[0].kernel.len(), network.hosts[2].kernel.len()), (2, 2));
    network.start(1, false);
    network.pass(Duration::from_secs(5));
    assert_eq!((network.hosts[0].kernel.len(), network.hosts[2].kernel.len()), (6, 6));
}

#[test]
fn a_host_that_dies_without_notice_and_comes_back_replaces_its_dead_sessions_without_waiting_for_a_timer() {
    let mut network = row(true);
    network.kill(1, true);
    network.pass(Duration::from_secs(2));
    network.start(1, true);
    network.pass(Duration::from_secs(3));
    assert!(network.hosts.iter().all(|host| host.kernel.len() == 6));
    assert!(network.hosts.iter().all(|host| host.removed == 0));
}

#[test]
fn a_cut_is_noticed_within_the_detection_time_where_bfd_watches_and_with_the_hold_time_elsewhere() {
    for (watched, after) in [(true, paths::NOTICED), (false, Duration::from_secs(31))] {
        let mut network = row_with(true, watched);
        network.part(0, 1);
        network.pass(Duration::from_millis(3900));
        assert_eq!(network.hosts[2].kernel.len(), 6, "no packet of the last ones is late yet");
        network.pass(after - Duration::from_millis(3900));
        let (sessions, routes) = (network.hosts[1].speaker.as_ref(), network.hosts[2].kernel.len());
        let session = sessions.and_then(|speaker| speaker.neighbour(network::address(0))?.peer().session());
        assert!(session.is_none(), "watched: {watched}");
        assert_eq!(routes, if watched { 4 } else { 6 }, "graceful restart keeps what only silence has ended");
        network.cuts.heal();
        network.pass(Duration::from_secs(200));
        assert!(network.hosts.iter().all(|host| host.kernel.len() == 6));
    }
}

#[test]
fn a_speaker_with_bfd_that_restarts_gracefully_costs_its_neighbours_no_route() {
    // Back before its BFD is missed, and after that.
    for away in [1, 10] {
        let mut network = row_with(true, true);
        network.pass(Duration::from_secs(10));
        network.kill(1, false);
        network.pass(Duration::from_secs(away));
        network.start(1, true);
        network.pass(Duration::from_secs(300));
        assert!(network.hosts.iter().all(|host| host.removed == 0 && host.kernel.len() == 6), "away for {away} s");
    }
}

#[test]
fn a_host_that_dies_between_its_restart_and_its_next_bfd_is_noticed_before_the_hold_time() {
    let has_session = |network: &Network, host: usize| {
        let speaker = network.hosts[host].speaker.as_ref().expect("it lives");
        speaker.neighbour(network::address(1)).expect("it is wanted").peer().session().is_some()
    };
    let mut network = row_with(true, true);
    network.pass(Duration::from_secs(10));
    network.kill(1, false);
    network.pass(Duration::from_secs(1));
    network.start(1, true);
    network.pass(Duration::from_millis(700));
    assert!(has_session(&network, 0) && has_session(&network, 2));
    network.kill(1, true);
    network.pass(Duration::from_secs(10));
    assert!(has_session(&network, 0) && has_session(&network, 2), "BFD was with the process before");
    // Its BFD is missed after 6 s, and has 16 s to come back.
    network.pass(Duration::from_secs(13));
    for host in [0, 2] {
        assert_eq!((has_session(&network, host), network.hosts[host].kernel.len()), (false, 2), "{host}");
    }
}
