//! The matrix: every way in which a session can be set up, with every daemon.

use sluice::bgp::message::{AsPath, Attributes, Notification, Reason};
use sluice::bgp::session::State;
use sluice::bgp::speaker::{Fact, Order};
use sluice::net::{Family, PerFamily};

use crate::cell::{Cell, Daemon, Dials, Hops, Reflects};
use crate::ground::{Host, Topology, eventually, with_hosts};
use crate::namespace::run;
use crate::other::Other;
use crate::ours::{Ours, plain, received, wanted};

const V4: PerFamily<bool> = PerFamily { v4: true, v6: false };
const V6: PerFamily<bool> = PerFamily { v4: false, v6: true };
/// In the kinds of messages of RFC 4271 4.1.
const UPDATE: usize = 2;
const REFRESH: usize = 5;

/// A session of a cell: both sides run, are connected, and have announced their routes.
struct Pair<'a> {
    cell: Cell,
    hosts: &'a [Host],
    ours: Ours,
    other: Other<'a>,
}

impl<'a> Pair<'a> {
    fn begin(cell: &Cell, hosts: &'a [Host]) -> Pair<'a> {
        let ours = Ours::start(&hosts[0], cell.asns[0], false);
        ours.announce(cell, &hosts[0]);
        ours.want(wanted(cell, &hosts[0], &hosts[1]));
        let other = Other::start(cell, &hosts[1], vec![&hosts[0]]);
        Pair { cell: cell.clone(), hosts, ours, other }
    }

    /// All routes are on both sides, with everything that belongs to them.
    fn is_complete(&self) {
        eventually("what we have", &self.cell.we_have(&self.hosts[1]), || self.ours.table());
        eventually("what they have", &self.cell.they_have(&self.hosts[0]), || self.other.table());
    }

    fn them(&self) -> std::net::IpAddr {
        self.hosts[1].address(self.cell.over)
    }

    fn received(&self, kind: usize) -> u64 {
        self.ours.of(self.them(), move |neighbour| neighbour.peer().received()[kind])
    }
}

/// Sets up a cell and looks at the routes on both sides; then something happens.
fn check_and(cell: Cell, then: impl FnOnce(Pair) + Send) {
    with_hosts(2, cell.topology, |hosts| {
        let pair = Pair::begin(&cell, hosts);
        pair.is_complete();
        then(pair);
    });
}

fn check(cell: Cell) {
    check_and(cell, |_| {});
}

fn a_plain_session_outside(daemon: Daemon) {
    check_and(Cell { families: V4, ..Cell::with(daemon) }, |pair| {
        let prefix = "10.244.2.0/24".parse().expect("a prefix");
        pair.ours.order(vec![Order::Retract(prefix)]);
        let left = pair.cell.they_have(&pair.hosts[0]).into_iter().take(1).collect();
        eventually("what is left", &left, || pair.other.table());
    });
}

fn inside_routes_keep_their_preference(daemon: Daemon) {
    check(Cell::inside(daemon));
}

fn ipv6_alone(daemon: Daemon) {
    check(Cell { over: Family::V6, families: V6, ..Cell::with(daemon) });
}

fn both_families_over_ipv4(daemon: Daemon) {
    check(Cell::with(daemon));
}

fn both_families_over_ipv6(daemon: Daemon) {
    check(Cell { over: Family::V6, ..Cell::with(daemon) });
}

fn ipv6_routes_over_ipv4(daemon: Daemon) {
    check(Cell { families: V6, ..Cell::with(daemon) });
}

fn ipv4_routes_over_ipv6(daemon: Daemon) {
    check(Cell { over: Family::V6, families: V4, ..Cell::with(daemon) });
}

fn ipv4_routes_with_ipv6_next_hops(daemon: Daemon) {
    check(Cell { over: Family::V6, extended_next_hop: true, ..Cell::with(daemon) });
}

fn numbers_of_four_octets(daemon: Daemon) {
    check(Cell { asns: [4_200_000_001, 4_200_000_002], ..Cell::with(daemon) });
}

fn a_password_over_ipv4(daemon: Daemon) {
    check(Cell { passwords: [Some("sesame"); 2], ..Cell::with(daemon) });
}

fn a_password_over_ipv6_and_they_dial(daemon: Daemon) {
    let cell = Cell { over: Family::V6, dials: Dials::They, ..Cell::with(daemon) };
    check(Cell { passwords: [Some("sesame"); 2], ..cell });
}

fn a_wrong_password(daemon: Daemon) {
    let cell = Cell { passwords: [Some("sesame"), Some("simsim")], ..Cell::with(daemon) };
    with_hosts(2, cell.topology, |hosts| {
        let pair = Pair::begin(&cell, hosts);
        eventually("that the kernel drops it", &true, || hosts[0].counter("TCPMD5Failure") > 2);
        assert_ne!(pair.ours.state(pair.them()), State::Established);
        // The right one heals it, without anything else.
        pair.ours.want(wanted(&Cell { passwords: [Some("simsim"); 2], ..cell.clone() }, &hosts[0], &hosts[1]));
        pair.is_complete();
    });
}

fn a_router_in_between(daemon: Daemon) {
    check(Cell { topology: Topology::Router, hops: Hops::Multihop(2), ..Cell::with(daemon) });
}

fn hops_are_counted_on_a_link(daemon: Daemon) {
    check(Cell { hops: Hops::Secured(1), ..Cell::with(daemon) });
}

fn hops_are_counted_over_ipv6_and_they_dial(daemon: Daemon) {
    check(Cell { over: Family::V6, hops: Hops::Secured(1), dials: Dials::They, ..Cell::with(daemon) });
}

fn hops_are_counted_over_a_router(daemon: Daemon) {
    check(Cell { topology: Topology::Router, hops: Hops::Secured(2), ..Cell::with(daemon) });
}

fn they_dial(daemon: Daemon) {
    check(Cell { dials: Dials::They, ..Cell::with(daemon) });
}

fn we_dial(daemon: Daemon) {
    check(Cell { dials: Dials::We, ..Cell::with(daemon) });
}

fn we_reflect_to_them(daemon: Daemon) {
    let cell = Cell { reflects: Reflects::We, ..Cell::inside(daemon) };
    with_hosts(3, cell.topology, |hosts| {
        let [us, them, third] = hosts else { unreachable!("there are three") };
        let reflector = Ours::start(us, cell.asns[0], false);
        reflector.want(wanted(&cell, us, them));
        reflector.want(wanted(&cell, us, third));
        let client = Ours::start(third, cell.asns[0], false);
        client.want(plain(third, us));
        client.announce(&cell, third);
        let other = Other::start(&cell, them, vec![us]);
        let reflected = |line: String| line + " originator 192.0.2.3 cluster 192.0.2.1";
        let expected = cell.they_have(third).into_iter().map(reflected).collect();
        eventually("what they have of the other client", &expected, || other.table());
        let reflected = |line: String| line + " originator 192.0.2.2 cluster 192.0.2.1";
        let expected = cell.we_have(them).into_iter().map(reflected).collect();
        eventually("what the other client has of them", &expected, || client.table());
    });
}

fn they_reflect_to_us(daemon: Daemon) {
    let cell = Cell { reflects: Reflects::They, ..Cell::inside(daemon) };
    with_hosts(3, cell.topology, |hosts| {
        let [us, them, third] = hosts else { unreachable!("there are three") };
        let speakers = [us, third].map(|host| {
            let ours = Ours::start(host, cell.asns[0], false);
            ours.want(wanted(&cell, host, them));
            ours
        });
        let [ours, client] = &speakers;
        client.announce(&cell, third);
        let _other = Other::start(&cell, them, vec![us, third]);
        let reflected = |line: String| line + " originator 192.0.2.3 cluster 192.0.2.2";
        // GoBGP marks its own routes like those that it reflects.
        let marked = daemon.is_gobgp();
        let own = |line: String| if marked { line + " originator 192.0.2.2 cluster 192.0.2.2" } else { line };
        let mut expected: std::collections::BTreeSet<String> = cell.we_have(them).into_iter().map(own).collect();
        expected.extend(cell.they_have(third).into_iter().map(reflected));
        eventually("what we have of them and of the other client", &expected, || ours.table());
    });
}

fn they_restart(daemon: Daemon) {
    check_and(Cell { graceful: true, ..Cell::with(daemon) }, |mut pair| {
        let before = pair.ours.programmed();
        pair.other.kill();
        let kept = pair.ours.learns("that the session is down", |fact| match fact {
            Fact::Down { kept, .. } => Some(*kept),
            _ => None,
        });
        assert_eq!(kept, PerFamily { v4: true, v6: true });
        pair.ours.heard().retain(|event| !matches!(event, sluice::bgp::driver::Event::Fact(..)));
        // GoBGP is given its routes by hand. It would have none to tell if it were dialled at once.
        run("ip link set to-2 nomaster");
        pair.other.run(true);
        run("ip link set to-2 master br0");
        for family in Family::BOTH {
            pair.ours.learns("their End-of-RIB", |fact| (*fact == Fact::Complete(family)).then_some(()));
        }
        pair.is_complete();
        assert_eq!(pair.ours.programmed(), before);
        assert_eq!(pair.ours.withdrawals(), 0, "no route has been away");
    });
}

fn we_restart(daemon: Daemon) {
    check_and(Cell { graceful: true, ..Cell::with(daemon) }, |pair| {
        let Pair { cell, hosts, ours, other } = pair;
        ours.kill();
        let kept = cell.they_have(&hosts[0]);
        for _ in 0..5 {
            assert_eq!(other.table(), kept, "they keep what they have while we are away");
        }
        let ours = Ours::start(&hosts[0], cell.asns[0], true);
        ours.announce(&cell, &hosts[0]);
        ours.want(wanted(&cell, &hosts[0], &hosts[1]));
        ours.hears("that the restart is over", |event| {
            matches!(event, sluice::bgp::driver::Event::Complete).then_some(())
        });
        let pair = Pair { cell, hosts, ours, other };
        pair.is_complete();
    });
}

fn both_ask_for_routes_again(daemon: Daemon) {
    check_and(Cell::with(daemon), move |pair| {
        let updates = pair.received(UPDATE);
        pair.ours.order(vec![Order::AskAgain(pair.them())]);
        eventually("their answer", &true, || pair.received(UPDATE) > updates);
        if daemon.is_gobgp() {
            // It keeps what has come and never asks.
            return pair.is_complete();
        }
        let asked = pair.received(REFRESH);
        let (us, them) = (pair.them(), pair.them());
        let sent = pair.ours.of(us, |neighbour| neighbour.sent()[UPDATE]);
        pair.other.ask_again();
        eventually("that they ask", &true, || pair.received(REFRESH) > asked);
        eventually("our answer", &true, || pair.ours.of(them, |neighbour| neighbour.sent()[UPDATE]) > sent);
        pair.is_complete();
    });
}

fn we_take_only_so_many(daemon: Daemon) {
    let cell = Cell { families: V4, most: [Some(1), None], ..Cell::with(daemon) };
    with_hosts(2, cell.topology, |hosts| {
        let pair = Pair::begin(&cell, hosts);
        pair.ours.learns("that there are too many", |fact| {
            (*fact == Fact::TooMany { family: Family::V4, most: 1 }).then_some(())
        });
        eventually("that nothing is left", &(State::Idle, 0), || {
            (pair.ours.state(pair.them()), pair.ours.table().len())
        });
        pair.ours.want(wanted(&Cell { most: [Some(100), None], ..cell.clone() }, &hosts[0], &hosts[1]));
        pair.ours.order(vec![Order::Start(pair.them())]);
        pair.is_complete();
    });
}

fn they_take_only_so_many(daemon: Daemon) {
    let cell = Cell { families: V4, most: [None, Some(1)], ..Cell::with(daemon) };
    with_hosts(2, cell.topology, |hosts| {
        let pair = Pair::begin(&cell, hosts);
        // FRR looks at what it has when the next one comes.
        for number in 3..6 {
            let prefix = format!("10.244.{number}.0/24").parse().expect("a prefix");
            let attributes = Attributes::local(hosts[0].address(Family::V4));
            pair.ours.order(vec![Order::Originate(prefix, Box::new(attributes))]);
        }
        let said = pair.ours.learns("what they say", received);
        assert_eq!(said.reason, Reason::MAXIMUM_PREFIXES);
    });
}

fn both_say_why_they_shut_down(daemon: Daemon) {
    check_and(Cell::with(daemon), |pair| {
        let text = "maintenance until noon";
        pair.other.shut_down(text);
        let said = pair.ours.learns("what they say", received);
        assert_eq!((said.reason, said.text().as_deref()), (Reason::SHUTDOWN, Some(text)));
    });
    check_and(Cell::with(daemon), |pair| {
        let said = Notification::with_text(Reason::SHUTDOWN, "a new power supply");
        pair.ours.order(vec![Order::Stop(pair.them(), said)]);
        eventually("that they have no routes of us", &true, || pair.other.table().is_empty());
        eventually("what they log", &true, || pair.other.log().contains("a new power supply"));
        pair.ours.order(vec![Order::Start(pair.them())]);
        pair.is_complete();
    });
}

/// One test for each daemon. Of the newest GoBGP those of the first list run each day, and the others with `scripts/test --whole`.
macro_rules! with_all {
    ($($telling:ident),* $(,)?; $($rest:ident),* $(,)?) => {
        with_all!(@three $($telling,)* $($rest,)*);
        mod gobgp4 {
            $(#[test] fn $telling() { super::$telling(super::Daemon::Gobgp4); })*
            $(#[test] #[ignore = "runs with `scripts/test --whole`"] fn $rest() { super::$rest(super::Daemon::Gobgp4); })*
        }
    };
    (@three $($cell:ident),* $(,)?) => {
        mod gobgp { $(#[test] fn $cell() { super::$cell(super::Daemon::Gobgp); })* }
        mod bird { $(#[test] fn $cell() { super::$cell(super::Daemon::Bird); })* }
        mod frr { $(#[test] fn $cell() { super::$cell(super::Daemon::Frr); })* }
    };
}

with_all! {
    both_families_over_ipv4,
    ipv4_routes_with_ipv6_next_hops,
    a_password_over_ipv4,
    we_reflect_to_them,
    they_restart,
    we_restart,
    ;
    a_plain_session_outside,
    inside_routes_keep_their_preference,
    ipv6_alone,
    both_families_over_ipv6,
    ipv6_routes_over_ipv4,
    ipv4_routes_over_ipv6,
    numbers_of_four_octets,
    a_password_over_ipv6_and_they_dial,
    a_wrong_password,
    a_router_in_between,
    hops_are_counted_on_a_link,
    hops_are_counted_over_ipv6_and_they_dial,
    hops_are_counted_over_a_router,
    they_dial,
    we_dial,
    they_reflect_to_us,
    both_ask_for_routes_again,
    we_take_only_so_many,
    they_take_only_so_many,
    both_say_why_they_shut_down,
}

#[test]
fn a_neighbour_that_says_two_octets_has_longer_numbers_beside_the_path() {
    let cell = Cell { two_octets: true, ..Cell::with(Daemon::Bird) };
    check_and(cell, |pair| {
        let mut attributes = Attributes::local(pair.hosts[0].address(Family::V4));
        attributes.as_path = AsPath::sequence(&[4_200_000_009, 65009]);
        pair.ours.order(vec![Order::Originate("10.244.9.0/24".parse().expect("a prefix"), Box::new(attributes))]);
        // On the wire it is 65001 23456 65009, and the path that was meant is beside it (AS4_PATH).
        let line = "10.244.9.0/24 via 192.0.2.1 path 65001 4200000009 65009";
        let ninth = || pair.other.table().into_iter().find(|line| line.starts_with("10.244.9.")).unwrap_or_default();
        eventually("what they have", &line.to_owned(), ninth);
    });
}
