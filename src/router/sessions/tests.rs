//! Whose routes are waited for after a start.

use std::sync::Arc;

use super::*;
use crate::bgp::speaker::WantedNeighbour;
use crate::observe::health::Health;
use crate::router::given::{config, three_nodes};
use crate::router::plan::Plan;

/// The nodes as neighbours.
fn nodes() -> Vec<Arc<WantedNeighbour>> {
    let mut plan = Plan::new(Arc::new(config(&["--enable-ipv6"])), PerFamily { v4: true, v6: true });
    plan.update(&three_nodes());
    plan.desired().peers.values().cloned().collect()
}

/// Sessions that wait for neighbours from now on.
fn waiting(now: Instant) -> Sessions {
    let pulse = Health::default().register("speaker", USUAL_RESTART, now);
    let mut sessions = Sessions::new(&config(&[]), pulse, watch::channel(None).0);
    sessions.until = Some(now + USUAL_RESTART);
    sessions
}

#[test]
fn nodes_whose_password_comes_late_are_awaited_as_others_and_not_for_ever() {
    let now = Instant::now();
    let mut sessions = waiting(now);
    assert!(sessions.nobody_is_awaited(now), "it has no neighbours");
    sessions.lacks_peers = true;
    assert!(!sessions.nobody_is_awaited(now));
    let orders: Vec<Order> = nodes().into_iter().map(Order::Want).collect();
    sessions.follow(&orders, now);
    sessions.lacks_peers = false;
    assert!(!sessions.nobody_is_awaited(now), "they have said nothing");
    for node in nodes() {
        for family in Family::BOTH {
            assert!(!sessions.nobody_is_awaited(now));
            sessions.note(&Event::Fact(node.address, Fact::Complete(family)));
        }
    }
    assert!(sessions.nobody_is_awaited(now));
    // One that changes later is not awaited once more.
    sessions.follow(&orders, now);
    assert!(sessions.nobody_is_awaited(now));
    sessions.lacks_peers = true;
    assert!(sessions.nobody_is_awaited(now + USUAL_RESTART), "a password that never comes");
}

#[test]
fn nodes_that_nobody_expects_are_not_awaited() {
    let now = Instant::now();
    let mut sessions = waiting(now);
    sessions.lacks_peers = true;
    let unexpected =
        |node: Arc<WantedNeighbour>| Arc::new(WantedNeighbour { expected: false, ..Arc::unwrap_or_clone(node) });
    let orders: Vec<Order> = nodes().into_iter().map(unexpected).map(Order::Want).collect();
    sessions.follow(&orders, now);
    sessions.lacks_peers = false;
    assert!(sessions.nobody_is_awaited(now));
}

#[test]
fn a_router_without_a_session_may_keep_what_an_earlier_speaker_has_announced_as_long_as_it_is_waited_for() {
    let now = Instant::now();
    let mut sessions = waiting(now);
    let peers = nodes().into_iter().map(|wanted| (wanted.address, wanted)).collect();
    let mut desired = Desired { peers, ..Desired::default() };
    let routers: Vec<IpAddr> = desired.peers.keys().copied().collect();
    assert!(!sessions.lack_router(&[], &desired, now), "other nodes are announced no addresses of Services");
    for router in &routers {
        assert!(sessions.lack_router(&routers, &desired, now));
        assert!(!sessions.lack_router(&routers, &desired, now + USUAL_RESTART), "nobody keeps them for longer");
        sessions.up.insert(*router, PerFamily::default());
    }
    assert!(!sessions.lack_router(&routers, &desired, now), "all have sessions");
    sessions.up.clear();
    assert!(sessions.lack_router(&routers, &desired, now));
    desired.peers.values_mut().for_each(|wanted| Arc::make_mut(wanted).settings.restart = None);
    assert!(!sessions.lack_router(&routers, &desired, now), "without graceful restart nothing is kept");
}

#[test]
fn a_router_whose_password_comes_after_the_wait_for_neighbours_is_awaited_from_then_on() {
    let now = Instant::now();
    let mut sessions = waiting(now);
    let wanted = nodes();
    let (late, other) = (wanted.first().expect("a neighbour"), wanted.last().expect("another one"));
    sessions.without_password = [late.address].into();
    let (later, order) = (now + 10 * USUAL_RESTART, |one: &Arc<WantedNeighbour>| [Order::Want(one.clone())]);
    assert!(sessions.nobody_is_awaited(later));
    sessions.follow(&order(other), later);
    assert!(sessions.nobody_is_awaited(later), "nobody has kept routes of one that is new");
    sessions.follow(&order(late), later);
    assert!(!sessions.nobody_is_awaited(later), "the cluster was away for that long");
    assert!(!sessions.nobody_is_awaited(later + USUAL_RESTART / 2));
    for family in Family::BOTH {
        sessions.note(&Event::Fact(late.address, Fact::Complete(family)));
    }
    assert!(sessions.nobody_is_awaited(later));
    sessions.follow(&order(late), later);
    assert!(!sessions.nobody_is_awaited(later) && sessions.nobody_is_awaited(later + USUAL_RESTART));
}
