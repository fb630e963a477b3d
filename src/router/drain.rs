//! Leaving without loss: how service addresses are withdrawn from routers outside when this node drains.
//!
//! Kubernetes: the label `node.kubernetes.io/exclude-from-external-load-balancers` of the own Node, with any value, and its taints
//! that `--drain-taints` names. kubeadm and Talos put the label on every Node of the control plane for good, so there it counts only with
//! `--drain-label=always`. And the host's shutdown, of which the kubelet is told by systemd-logind (`shutdownGracePeriod`, off by default) and tells the API
//! server at once, in the condition `Ready`. Asking logind here as well would need the system's D-Bus inside of the container, and a lock that delays
//! the shutdown, for what a kubelet that is to wait for pods does anyway; where it does not wait there is no time for a drain. A cordon alone (`spec.unschedulable`) is no reason: pods stay where they are.
//!
//! ```text
//!             label or taint                 --drain-delay is over
//!  Announced ───────────────────► Leaving ──────────────────────────► Withdrawn
//!      ▲      GRACEFUL_SHUTDOWN      │         no announcement            │
//!      └─────────────────────────────┴────────────────────────────────────┘
//!                          label and taints are gone
//! ```
//!
//! RFC 8326: while a node is leaving, its addresses have the community GRACEFUL_SHUTDOWN, and LOCAL_PREF 0 for routers in its own AS, so
//! that routers move traffic to other nodes while this one still serves. Nothing else changes: pod ranges stay announced, sessions stay, and
//! the service proxy serves whatever still arrives.
//!
//! When routers have been told of the withdrawal and the service proxy runs in this process, connections of IPVS are looked through, at a bounded price, until none has a client
//! outside of the cluster: then nothing would notice that this node goes, and an Event says so. A host that shuts down drains until its node is `Ready` again.
//!
//! A start with the label in place announces nothing: neighbours that kept the routes of the run before lose them when they are told that all has been said (End-of-RIB, RFC 4724), or
//! when their time for that is over where they do not come back, and what has happened is told then. The delay does not run before anything is announced either.

mod outside;
mod reasons;

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use self::reasons::reason;
use crate::bgp::message::{Attributes, Community};
use crate::config::DrainConfig;
use crate::model::{News, Node};

pub use self::outside::{Outside, Stage};
pub use self::reasons::Reason;

/// Input of the machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The own Node was read: why it drains, if it does.
    Node(Option<Reason>),
    /// The own Node was read: nobody says that it is `Ready`, or that its host shuts down. Why it drains otherwise, if it does.
    NotReady(Option<Reason>),
    /// Clients outside of the cluster were looked for, which took this time.
    Clients(Clients, Duration),
    /// Whether the speaker announces how service addresses stand, or holds it back after a restart, so that routers have not seen it.
    Announcing(bool),
    /// Time has passed.
    Tick,
}

/// Output of the machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Service addresses stand like this from now on.
    Stand(Stage),
    /// Clients outside of the cluster are to be looked for.
    Look,
    /// News for the administrator, true once routers have been told of the effects before.
    Tell(News),
}

/// The drain of this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Drain {
    /// Time between the first announcement with GRACEFUL_SHUTDOWN and the withdrawal.
    delay: Duration,
    /// Clients are looked for.
    looks: bool,
    /// The host shuts down, as its kubelet said when it last said anything.
    is_shutdown: bool,
    state: State,
}

/// Result of a look for clients outside of the cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Clients {
    /// IPVS has no connection of one, as a whole search has found.
    None,
    /// It has one.
    Some,
    /// The look is not finished, or it failed.
    Unknown,
}

/// A search for connections of IPVS whose clients are outside of the cluster, as the function says of an address. `None`: it has found none yet, and is to go on.
pub type ClientSearch = Box<dyn FnMut(&dyn Fn(IpAddr) -> bool) -> io::Result<Option<bool>> + Send>;

/// Looks for clients outside of the cluster, by one search after the other.
pub struct ClientLook {
    begin: Box<dyn Fn() -> ClientSearch + Send>,
    /// The search in progress.
    search: Option<ClientSearch>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum State {
    /// The own Node has not been read yet.
    Unknown,
    Announced,
    Leaving {
        until: Instant,
        /// Routers have been sent the announcement with GRACEFUL_SHUTDOWN.
        is_seen: bool,
    },
    Withdrawn {
        /// The next look for clients.
        look: Option<Instant>,
    },
}

/// Time between two looks for clients that have found one.
const PACE: Duration = Duration::from_secs(5);
/// Time without a look, as a multiple of that which the last one took.
const PART: u32 = 100;
/// Least time between two looks of which the later one goes on with what the earlier one has read, and by which the delay is put off.
const SOON: Duration = Duration::from_millis(100);

impl ClientLook {
    pub fn new(begin: impl Fn() -> ClientSearch + Send + 'static) -> ClientLook {
        ClientLook { begin: Box::new(begin), search: None }
    }

    /// Goes on with the search in progress, or begins one. An answer ends it.
    ///
    /// # Errors
    /// Connections cannot be read; the next look begins anew.
    pub fn go_on(&mut self, is_outside: &dyn Fn(IpAddr) -> bool) -> io::Result<Option<bool>> {
        let mut search = self.search.take().unwrap_or_else(|| (self.begin)());
        let answer = search(is_outside)?;
        self.search = Some(search).filter(|_| answer.is_none());
        Ok(answer)
    }

    /// Gives the search in progress up: what it has looked through was looked through in another drain.
    pub fn give_up(&mut self) {
        self.search = None;
    }
}

/// Returns what a Node says about its drain.
pub fn event(node: &Node, config: &DrainConfig) -> Event {
    let reason = reason(node, config);
    // Of a remembered Node, and of one in a manifest, nobody says that it is ready.
    match node.should_announce || node.is_shutting_down {
        true => Event::Node(reason),
        false => Event::NotReady(reason),
    }
}

/// Returns the attributes of a service address that is leaving (RFC 8326 4.1, 4.3).
pub fn leaving(mut attributes: Attributes) -> Attributes {
    attributes.local_pref = Some(0);
    attributes.add_communities(&[Community::GRACEFUL_SHUTDOWN]);
    attributes
}

impl Drain {
    pub fn new(delay: Duration) -> Drain {
        Drain { delay, looks: false, is_shutdown: false, state: State::Unknown }
    }

    /// The same, where clients outside of the cluster can be looked for, or cannot.
    pub fn looking(self, looks: bool) -> Drain {
        Drain { looks, ..self }
    }

    /// Returns when time is an event.
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Leaving { until, .. } => Some(until),
            State::Withdrawn { look } => look,
            State::Unknown | State::Announced => None,
        }
    }

    /// Handles an event; returns what follows, in order.
    pub fn step(&mut self, now: Instant, event: Event) -> Vec<Effect> {
        // A kubelet that ended before this agent says nothing any more: the node controller writes `Unknown` over what it said. A shutdown that was
        // cancelled makes the node `Ready` again, whatever else it drains for.
        if let Event::Node(reason) = &event {
            self.is_shutdown = *reason == Some(Reason::Shutdown);
        }
        let event = match event {
            Event::NotReady(None) if self.is_shutdown => return Vec::new(),
            Event::NotReady(reason) => Event::Node(reason),
            event => event,
        };
        let withdrawn = State::Withdrawn { look: self.looks.then(|| now + PACE) };
        let (state, effects) = match (&self.state, event) {
            (State::Unknown, Event::Node(Some(why))) => (withdrawn, withdraw(&why.to_string())),
            (State::Announced, Event::Node(Some(why))) if self.delay.is_zero() => {
                (withdrawn, withdraw(&why.to_string()))
            }
            (State::Announced, Event::Node(Some(why))) => {
                (State::Leaving { until: now + self.delay, is_seen: false }, self.leave(&why))
            }
            (State::Leaving { until, .. }, Event::Tick) if *until <= now => {
                (withdrawn, withdraw(&format!("the drain of {:?} is over", self.delay)))
            }
            // The delay is for routers that see the announcement. Once it was seen, another speaker changes nothing: routers keep what they have.
            (State::Leaving { is_seen: false, .. }, Event::Announcing(false)) => {
                (State::Leaving { until: now + self.delay.max(SOON), is_seen: false }, Vec::new())
            }
            (State::Leaving { until, is_seen: false }, Event::Announcing(true)) => {
                (State::Leaving { until: *until, is_seen: true }, Vec::new())
            }
            (State::Withdrawn { look: Some(at) }, Event::Tick) if *at <= now => (withdrawn, vec![Effect::Look]),
            (State::Withdrawn { look: Some(_) }, Event::Clients(clients, took)) => looked(now, clients, took),
            (State::Unknown, Event::Node(None)) => (State::Announced, Vec::new()),
            (State::Leaving { .. } | State::Withdrawn { .. }, Event::Node(None)) => (State::Announced, announce()),
            (
                State::Unknown | State::Announced | State::Leaving { .. } | State::Withdrawn { .. },
                Event::Tick | Event::Announcing(_) | Event::Clients(..) | Event::NotReady(_),
            )
            | (State::Announced, Event::Node(None))
            | (State::Leaving { .. } | State::Withdrawn { .. }, Event::Node(Some(_))) => return Vec::new(),
        };
        self.state = state;
        effects
    }

    fn leave(&self, why: &Reason) -> Vec<Effect> {
        let text =
            format!("Service addresses are announced with GRACEFUL_SHUTDOWN and withdrawn in {:?}: {why}", self.delay);
        vec![Effect::Stand(Stage::Leaving), Effect::Tell(News { word: "ServiceAddressesLeaving", text })]
    }
}

fn withdraw(why: &str) -> Vec<Effect> {
    let text = format!("Service addresses are withdrawn from routers outside ({why}); pods and sessions stay");
    vec![Effect::Stand(Stage::Withdrawn), Effect::Tell(News { word: "ServiceAddressesWithdrawn", text })]
}

/// Returns what follows of a look for clients.
fn looked(now: Instant, clients: Clients, took: Duration) -> (State, Vec<Effect>) {
    let rest = took * PART;
    match clients {
        Clients::None => {
            let text = "IPVS has no connection of a client outside of the cluster any more".to_owned();
            let news = News { word: "NoConnectionsFromOutside", text };
            (State::Withdrawn { look: None }, vec![Effect::Tell(news)])
        }
        Clients::Some => (State::Withdrawn { look: Some(now + rest.max(PACE)) }, Vec::new()),
        Clients::Unknown => (State::Withdrawn { look: Some(now + rest.clamp(SOON, PACE)) }, Vec::new()),
    }
}

fn announce() -> Vec<Effect> {
    let text = "Service addresses are announced again: the Node drains no longer".to_owned();
    vec![Effect::Stand(Stage::Announced), Effect::Tell(News { word: "ServiceAddressesAnnounced", text })]
}

#[cfg(test)]
mod tests;
