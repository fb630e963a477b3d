//! A node that was cut off comes back to routers outside when it has the routes of other nodes again.
//!
//! A link that is cut, or a switch that starts anew, ends all sessions of a node together: those with other nodes, by which it knows the ways to their pods, and
//! those with routers outside, which send it what is for Services. Afterwards they come back in any order, and a router would send packets at once to a node
//! that has no way yet to endpoints on other nodes. So addresses of Services are held back from routers outside from the end of the last session until the
//! nodes that were lost with it have sent their routes (End-of-RIB, RFC 4724 2) and the kernel has them. Addresses for which only endpoints of this node count
//! (policy `Local`) need no other node, and are not held back.
//!
//! ```text
//!              no session is left             a session is there               enough is sent, or time is over
//!  Connected ─────────────────────► CutOff ─────────────────────────► Returning ──────────────────────────────► Settling
//!      ▲                               ▲      no session is left          │                                        │
//!      │                               └──────────────────────────────────┴────────────────────────────────────────┤
//!      └──────────────────────────────── the kernel has the routes, or does not take them ─────────────────────────┘
//! ```
//!
//! A neighbour whose routes are kept without a session (RFC 4724, RFC 9494) counts as one with a session: it has taken nothing away, and a router that restarts keeps
//! ours. Nothing is held back while any node or router is left: what is withdrawn may be the only way. It begins at a look at all neighbours that finds
//! none, so nobody is there who would be told of a withdrawal. Where routes do not come from nodes, as with `--node-routes=api`, there is nothing to wait for.
//!
//! To be held back costs what the node could have served, so the wait is short: who is away for another reason is not waited for.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::net::{Family, PerFamily};

/// Input of the machine.
#[derive(Clone, Copy)]
pub enum Event<'a> {
    /// All neighbours were looked at.
    Look(Look<'a>),
    /// A node, or a router outside, has a session, in which these families are spoken.
    Up { peer: IpAddr, is_router: bool, families: PerFamily<bool> },
    /// A node has sent all its routes of a family.
    Complete(IpAddr, Family),
    /// Time has passed. `is_settled`: the kernel has all learned routes, as far as is known.
    Tick { is_settled: bool },
}

/// The neighbours that have a session, or whose routes are kept.
#[derive(Clone, Copy)]
pub struct Look<'a> {
    /// The nodes of them whose routes lead to pods, sorted.
    pub nodes: &'a [IpAddr],
    /// A router outside is among them.
    pub has_router: bool,
    /// Returns whether a node is to have a session.
    pub is_wanted: &'a dyn Fn(&IpAddr) -> bool,
}

/// The neighbours of this node, as far as they matter here.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct CutOff {
    /// The nodes at the last look.
    nodes: Vec<IpAddr>,
    /// Nodes that were lost lately, and when that was seen.
    lost: Vec<(Instant, IpAddr)>,
    /// When a router was there last.
    router_at: Option<Instant>,
    state: State,
}

/// Nodes of which routes are awaited, with the families in which End-of-RIB is missing.
type Awaited = BTreeMap<IpAddr, PerFamily<bool>>;

#[derive(Clone, PartialEq, Eq, Default, Debug)]
enum State {
    #[default]
    Connected,
    CutOff(Awaited),
    Returning {
        awaited: Awaited,
        /// Number of all that were awaited.
        all: usize,
        /// When a session was there first, and when something that is awaited came last.
        began: Instant,
        last: Instant,
    },
    Settling {
        /// The next look at the kernel.
        look: Instant,
        end: Instant,
    },
}

/// Maximum time between the loss of a node and that of the last neighbour, for it to count as lost together: some have BFD, others a hold time and a restart time behind it.
const TOGETHER: Duration = Duration::from_secs(200);
/// The same of routers, of which one that is away for longer waits for nothing.
const ROUTERS: Duration = Duration::from_secs(300);
/// Maximum wait after the last one that came where half of the nodes are back, or more.
const QUIET: Duration = Duration::from_secs(2);
/// The same where fewer are: sessions wait for BFD, and neighbours lost last are dialled every two seconds.
const ALONE: Duration = Duration::from_secs(8);
/// Maximum wait in all.
const MOST: Duration = Duration::from_secs(30);
/// Time between two looks at the kernel, and maximum time for all of them.
const LOOK: Duration = Duration::from_millis(10);
const SETTLING: Duration = Duration::from_secs(1);

impl CutOff {
    /// Handles an event.
    pub fn step(&mut self, now: Instant, event: Event<'_>) {
        match event {
            Event::Look(look) => self.look(now, look),
            Event::Up { peer, is_router, families } => {
                self.begin_to_return(now);
                // It may be lost before the next look.
                if is_router {
                    self.router_at = Some(now);
                } else if let Err(place) = self.nodes.binary_search(&peer) {
                    self.nodes.insert(place, peer);
                }
                let left = |awaited: PerFamily<bool>| PerFamily::from_fn(|f| *awaited.of(f) && *families.of(f));
                self.hear(now, peer, left);
            }
            Event::Complete(peer, family) => self.hear(now, peer, |mut awaited| {
                *awaited.of_mut(family) = false;
                awaited
            }),
            Event::Tick { is_settled } => self.tick(now, is_settled),
        }
    }

    /// Returns whether addresses of Services are held back.
    pub fn holds_back(&self) -> bool {
        self.state != State::Connected
    }

    /// Returns when time is an event.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Connected | State::CutOff(_) => None,
            State::Returning { awaited, all, began, last } => Some(end(awaited.len(), *all, *began, *last)),
            State::Settling { look, end } => Some(*look.min(end)),
        }
    }

    fn look(&mut self, now: Instant, look: Look<'_>) {
        let Look { nodes, has_router, is_wanted } = look;
        let is_there = |node: &IpAddr| nodes.binary_search(node).is_ok();
        let gone = self.nodes.iter().filter(|node| !is_there(node)).map(|node| (now, *node));
        self.lost.extend(gone);
        let is_late = |at: Instant, most: Duration| now.saturating_duration_since(at) > most;
        self.lost.retain(|(at, node)| !is_late(*at, TOGETHER) && !is_there(node));
        self.nodes.clear();
        self.nodes.extend_from_slice(nodes);
        if has_router {
            self.router_at = Some(now);
        }
        let is_alone = !has_router && nodes.is_empty();
        let had_router = self.router_at.is_some_and(|at| !is_late(at, ROUTERS));
        let lost = || self.lost.iter().map(|(_, node)| (*node, PerFamily { v4: true, v6: true }));
        let awaited = match &mut self.state {
            State::Connected if !is_alone || !had_router => return,
            State::Settling { .. } if !is_alone => return,
            State::Connected | State::Settling { .. } => lost().collect(),
            State::CutOff(awaited) => std::mem::take(awaited),
            State::Returning { awaited, .. } if !is_alone => {
                awaited.retain(|node, _| is_wanted(node));
                return;
            }
            State::Returning { awaited, .. } => std::mem::take(awaited).into_iter().chain(lost()).collect(),
        };
        let awaited: Awaited = awaited.into_iter().filter(|(node, _)| is_wanted(node)).collect();
        self.state = if awaited.is_empty() { State::Connected } else { State::CutOff(awaited) };
        if !is_alone {
            self.begin_to_return(now);
        }
    }

    fn begin_to_return(&mut self, now: Instant) {
        if let State::CutOff(awaited) = &mut self.state {
            let awaited = std::mem::take(awaited);
            self.state = State::Returning { all: awaited.len(), awaited, began: now, last: now };
        }
    }

    /// A node has a session, or has sent something: what is still awaited of it is what `left` returns.
    fn hear(&mut self, now: Instant, node: IpAddr, left: impl FnOnce(PerFamily<bool>) -> PerFamily<bool>) {
        let State::Returning { awaited, last, .. } = &mut self.state else { return };
        let Some(families) = awaited.get_mut(&node) else { return };
        *last = now;
        *families = left(*families);
        if *families == PerFamily::default() {
            awaited.remove(&node);
        }
    }

    fn tick(&mut self, now: Instant, is_settled: bool) {
        match &mut self.state {
            State::Returning { awaited, all, began, last } if end(awaited.len(), *all, *began, *last) <= now => {
                self.state = State::Settling { look: now, end: now + SETTLING };
                self.tick(now, is_settled);
            }
            State::Settling { end, .. } if is_settled || *end <= now => self.state = State::Connected,
            State::Settling { look, .. } => *look = now + LOOK,
            State::Connected | State::CutOff(_) | State::Returning { .. } => {}
        }
    }
}

/// Returns the end of the wait for `awaited` nodes of `all`.
fn end(awaited: usize, all: usize, began: Instant, last: Instant) -> Instant {
    let patience = match awaited {
        0 => return last,
        _ if awaited <= all / 2 => QUIET,
        _ => ALONE,
    };
    (last + patience).min(began + MOST)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const NODES: [IpAddr; 2] = [node(2), node(3)];
    const ROUTER: IpAddr = node(254);
    const BOTH: PerFamily<bool> = PerFamily { v4: true, v6: true };

    const fn node(last: u8) -> IpAddr {
        IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, last))
    }

    /// A machine with its clock, and the neighbours that have a session.
    struct Scene {
        cut_off: CutOff,
        now: Instant,
        up: BTreeSet<IpAddr>,
        unwanted: Option<IpAddr>,
    }

    impl Scene {
        /// Two nodes and a router have sessions.
        fn connected() -> Scene {
            let up = NODES.into_iter().chain([ROUTER]).collect();
            let mut scene = Scene { cut_off: CutOff::default(), now: Instant::now(), up, unwanted: None };
            assert!(!scene.looks() && !scene.passes(1000.0));
            scene
        }

        fn cut_off() -> Scene {
            let mut scene = Scene::connected();
            assert!(scene.loses(&[NODES[0], NODES[1], ROUTER]));
            scene
        }

        /// Looks at all neighbours; returns whether addresses are held back.
        fn looks(&mut self) -> bool {
            let nodes: Vec<IpAddr> = self.up.iter().copied().filter(|peer| *peer != ROUTER).collect();
            let is_wanted = |node: &IpAddr| Some(*node) != self.unwanted;
            let look = Look { nodes: &nodes, has_router: self.up.contains(&ROUTER), is_wanted: &is_wanted };
            self.cut_off.step(self.now, Event::Look(look));
            self.cut_off.holds_back()
        }

        fn loses(&mut self, peers: &[IpAddr]) -> bool {
            self.up.retain(|peer| !peers.contains(peer));
            self.looks()
        }

        fn comes(&mut self, peer: IpAddr) {
            self.up.insert(peer);
            self.cut_off.step(self.now, Event::Up { peer, is_router: peer == ROUTER, families: BOTH });
        }

        fn sends_all(&mut self, peer: IpAddr) {
            Family::BOTH.iter().for_each(|family| self.cut_off.step(self.now, Event::Complete(peer, *family)));
        }

        fn ticks(&mut self, is_settled: bool) -> bool {
            self.cut_off.step(self.now, Event::Tick { is_settled });
            self.cut_off.holds_back()
        }

        fn passes(&mut self, seconds: f64) -> bool {
            self.now += Duration::from_secs_f64(seconds);
            self.looks();
            self.ticks(true)
        }
    }

    #[test]
    fn a_node_that_was_cut_off_waits_for_the_routes_of_the_nodes_that_were_lost_and_for_the_kernel() {
        let mut scene = Scene::cut_off();
        assert!(scene.passes(3600.0) && scene.cut_off.deadline().is_none(), "nobody is there");
        scene.comes(ROUTER);
        scene.sends_all(ROUTER);
        assert!(scene.passes(1.0));
        scene.comes(NODES[0]);
        scene.sends_all(NODES[0]);
        assert!(scene.passes(1.0));
        scene.comes(NODES[1]);
        assert!(scene.ticks(true), "it has sent nothing yet");
        scene.sends_all(NODES[1]);
        assert!(scene.ticks(false), "the kernel has not got it yet");
        assert_eq!(scene.cut_off.deadline(), Some(scene.now + LOOK));
        assert!(!scene.ticks(true) && scene.cut_off.deadline().is_none());
    }

    #[test]
    fn who_stays_away_is_not_waited_for_for_long() {
        let mut scene = Scene::cut_off();
        scene.comes(ROUTER);
        assert!(scene.passes(7.9) && !scene.passes(0.1), "nobody comes");
        let mut scene = Scene::cut_off();
        scene.comes(ROUTER);
        assert!(scene.passes(7.0));
        scene.comes(NODES[0]);
        assert!(scene.passes(7.0), "one is there, and has sent nothing yet");
        scene.sends_all(NODES[0]);
        assert!(scene.passes(1.9) && !scene.passes(0.1), "half of them are back");
        // One whose sessions come and go all the time.
        let mut scene = Scene::cut_off();
        scene.comes(ROUTER);
        let begun = scene.now;
        while scene.passes(2.0) {
            scene.comes(NODES[0]);
        }
        assert_eq!(scene.now - begun, MOST);
    }

    #[test]
    fn a_kernel_that_does_not_take_a_route_holds_nothing_back_for_long() {
        let mut scene = Scene::cut_off();
        scene.comes(ROUTER);
        for peer in NODES {
            scene.comes(peer);
            scene.sends_all(peer);
        }
        let begun = scene.now;
        while scene.ticks(false) {
            scene.now = scene.cut_off.deadline().expect("it looks again");
        }
        assert_eq!(scene.now - begun, SETTLING);
    }

    #[test]
    fn sessions_that_no_look_has_seen_are_missed_all_the_same() {
        let mut scene = Scene { cut_off: CutOff::default(), now: Instant::now(), up: BTreeSet::new(), unwanted: None };
        assert!(!scene.looks());
        scene.comes(ROUTER);
        scene.comes(NODES[0]);
        assert!(scene.loses(&[ROUTER, NODES[0]]));
    }

    #[test]
    fn nothing_is_held_back_while_any_node_or_router_is_there() {
        for stays in [ROUTER, NODES[0]] {
            let mut scene = Scene::connected();
            let lost: Vec<IpAddr> = NODES.into_iter().chain([ROUTER]).filter(|peer| *peer != stays).collect();
            assert!(!scene.loses(&lost), "{stays}");
        }
    }

    #[test]
    fn who_has_lost_no_router_or_no_node_lately_is_not_cut_off() {
        let mut scene = Scene::connected();
        assert!(!scene.loses(&[ROUTER]) && !scene.passes(301.0));
        assert!(!scene.loses(&NODES), "the router has been away for long");
        let mut scene = Scene::connected();
        assert!(!scene.loses(&NODES) && !scene.passes(201.0));
        assert!(!scene.loses(&[ROUTER]), "the nodes have");
        let mut scene = Scene::connected();
        scene.loses(&[NODES[0]]);
        scene.passes(201.0);
        assert!(scene.loses(&[NODES[1], ROUTER]));
        scene.comes(ROUTER);
        scene.comes(NODES[1]);
        scene.sends_all(NODES[1]);
        assert!(!scene.ticks(true), "the first one is not awaited");
    }

    #[test]
    fn a_node_that_is_deleted_meanwhile_is_not_awaited() {
        let mut scene = Scene::cut_off();
        scene.unwanted = Some(NODES[1]);
        scene.comes(ROUTER);
        scene.comes(NODES[0]);
        scene.sends_all(NODES[0]);
        assert!(scene.ticks(true) && !scene.passes(0.1));
        let mut scene = Scene::connected();
        scene.unwanted = Some(NODES[1]);
        assert!(!scene.loses(&NODES) && scene.loses(&[ROUTER]), "one is to be there");
        let mut scene = Scene::connected();
        scene.loses(&[NODES[0]]);
        scene.passes(201.0);
        scene.unwanted = Some(NODES[1]);
        assert!(!scene.loses(&[NODES[1], ROUTER]), "nobody is");
    }

    #[test]
    fn a_link_that_flaps_awaits_again_who_is_lost_again() {
        let mut scene = Scene::cut_off();
        scene.comes(ROUTER);
        scene.comes(NODES[0]);
        scene.sends_all(NODES[0]);
        assert!(scene.passes(0.1));
        assert!(scene.loses(&[ROUTER, NODES[0]]) && scene.passes(100.0));
        scene.comes(ROUTER);
        scene.comes(NODES[1]);
        scene.sends_all(NODES[1]);
        assert!(scene.ticks(true), "the first one has been lost again");
        scene.comes(NODES[0]);
        scene.sends_all(NODES[0]);
        assert!(!scene.ticks(true));
    }

    #[test]
    fn a_node_that_speaks_one_family_is_awaited_in_that_one() {
        let mut scene = Scene::cut_off();
        for peer in NODES {
            let families = PerFamily { v4: true, v6: false };
            scene.cut_off.step(scene.now, Event::Up { peer, is_router: false, families });
            assert!(scene.ticks(true));
            scene.cut_off.step(scene.now, Event::Complete(peer, Family::V4));
        }
        assert!(!scene.ticks(true));
    }
}
