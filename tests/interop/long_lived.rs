//! Long-lived graceful restart (RFC 9494) with every daemon: a speaker that dies and does not come back within its restart time leaves its
//! routes as the last resort, and then takes them with it.

use std::time::{Duration, Instant};

use sluice::net::Family;

use crate::cell::{Cell, Daemon};
use crate::ground::{Topology, eventually, with_hosts};
use crate::other::Other;
use crate::ours::{Ours, wanted};

/// Long enough to be seen.
const STALE: u32 = 8;

fn cell(daemon: Daemon, over: Family) -> Cell {
    Cell { graceful: true, long_lived: Some(STALE), over, ..Cell::with(daemon) }
}

fn they_die(daemon: Daemon) {
    for over in Family::BOTH {
        with_hosts(2, Topology::Link, |hosts| {
            let cell = cell(daemon, over);
            let ours = Ours::start(&hosts[0], cell.asns[0], false);
            ours.want(wanted(&cell, &hosts[0], &hosts[1]));
            let mut other = Other::start(&cell, &hosts[1], vec![&hosts[0]]);
            eventually("what we have", &cell.we_have(&hosts[1]), || ours.table());
            let since = Instant::now();
            other.kill();
            let marked = || ours.table().iter().filter(|line| line.contains("community 65535:6")).count();
            eventually("the last resort", &4, marked);
            eventually("nothing", &0, || ours.table().len());
            assert!(since.elapsed() > Duration::from_secs(STALE.into()), "not before its time");
        });
    }
}

fn we_die(daemon: Daemon) {
    for over in Family::BOTH {
        with_hosts(2, Topology::Link, |hosts| {
            let cell = cell(daemon, over);
            let ours = Ours::start(&hosts[0], cell.asns[0], false);
            ours.announce(&cell, &hosts[0]);
            ours.want(wanted(&cell, &hosts[0], &hosts[1]));
            let other = Other::start(&cell, &hosts[1], vec![&hosts[0]]);
            eventually("what they have", &cell.they_have(&hosts[0]), || other.table());
            let since = Instant::now();
            ours.kill();
            // Each has a word of its own for the community.
            let is_mark = |word: &String| word.contains("65535:6") || word.to_lowercase().contains("llgr");
            let marked = || other.routes().iter().filter(|route| route.communities.iter().any(is_mark)).count();
            eventually("the last resort", &4, marked);
            eventually("nothing", &0, || other.table().len());
            assert!(since.elapsed() > Duration::from_secs(STALE.into()), "not before its time");
        });
    }
}

#[test]
fn gobgp_dies_for_long() {
    they_die(Daemon::Gobgp);
}

#[test]
fn bird_dies_for_long() {
    they_die(Daemon::Bird);
}

#[test]
fn frr_dies_for_long() {
    they_die(Daemon::Frr);
}

#[test]
fn gobgp_keeps_our_routes_for_long() {
    we_die(Daemon::Gobgp);
}

#[test]
fn bird_keeps_our_routes_for_long() {
    we_die(Daemon::Bird);
}

#[test]
fn frr_keeps_our_routes_for_long() {
    we_die(Daemon::Frr);
}

#[test]
fn a_newer_gobgp_dies_for_long() {
    they_die(Daemon::Gobgp4);
}

#[test]
fn a_newer_gobgp_keeps_our_routes_for_long() {
    we_die(Daemon::Gobgp4);
}
