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
//! A start with the label in place announces nothing: neighbours that kept the routes of the run before lose them then.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::bgp::message::{Attributes, Community};
use crate::config::{DrainConfig, DrainLabel};
use crate::model::{News, Node, Taint};

/// How service addresses stand with routers outside.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Stage {
    #[default]
    Announced,
    /// Announced with GRACEFUL_SHUTDOWN.
    Leaving,
    Withdrawn,
}

/// How service addresses stand with routers outside, for who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outside {
    pub stage: Stage,
    /// Neighbours have been sent the withdrawals that have been decided.
    pub is_sent: bool,
    /// There are service addresses that this node announces, or would announce if it did not drain.
    pub has_addresses: bool,
}

/// Reason for which a node drains.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reason {
    /// The label that keeps a node out of external load balancers.
    Label,
    Taint(Taint),
    /// The host shuts down.
    Shutdown,
}

/// Input of the machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The own Node was read: why it drains, if it does.
    Node(Option<Reason>),
    /// The own Node was read: it has no reason to drain, and nobody says that it is `Ready`.
    NotReady,
    /// Clients outside of the cluster were looked for, which took this time.
    Clients(Clients, Duration),
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
    /// The host shuts down.
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
/// Least time between two looks of which the later one goes on with what the earlier one has read.
const SOON: Duration = Duration::from_millis(100);

/// The label of the own Node that starts a drain.
const LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// The labels of a Node of the control plane: today's, and the one of kubeadm before 1.24.
const CONTROL_PLANE: [&str; 2] = ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];

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

impl Outside {
    /// Returns the stage that neighbours know of: a withdrawal that has not been sent to all of them is none yet.
    fn known(self) -> Stage {
        match self.stage {
            Stage::Withdrawn if !self.is_sent => Stage::Leaving,
            stage => stage,
        }
    }

    /// Returns the stage as the metric has it.
    pub fn number(self) -> i64 {
        match self.known() {
            Stage::Announced => 0,
            Stage::Leaving => 1,
            Stage::Withdrawn => 2,
        }
    }

    /// Returns the stage as a word for programs.
    pub fn word(self) -> &'static str {
        match self.known() {
            Stage::Announced => "announced",
            Stage::Leaving => "leaving",
            Stage::Withdrawn => "withdrawn",
        }
    }

    /// Returns a sentence for who asks; `None` where nothing is special.
    pub fn note(self) -> Option<String> {
        let text = match self.stage {
            Stage::Announced => return None,
            Stage::Leaving | Stage::Withdrawn if !self.has_addresses => {
                "this node drains: it has no service addresses to announce"
            }
            Stage::Leaving => {
                "this node drains: service addresses are announced with GRACEFUL_SHUTDOWN and about to be withdrawn"
            }
            Stage::Withdrawn if !self.is_sent => {
                "this node drains: the withdrawal of service addresses has not been sent to all neighbours yet"
            }
            Stage::Withdrawn => "this node drains: service addresses are withdrawn from routers outside",
        };
        Some(text.to_owned())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Label => write!(f, "the Node has the label {LABEL}"),
            Reason::Taint(taint) => write!(f, "the Node has the taint {taint}"),
            Reason::Shutdown => f.write_str("the host shuts down, says its kubelet"),
        }
    }
}

/// Returns why a node drains; `None` where it does not.
pub fn reason(node: &Node, config: &DrainConfig) -> Option<Reason> {
    if node.is_shutting_down {
        return Some(Reason::Shutdown);
    }
    let has = |label: &str| node.labels.value(label).is_some();
    let label_counts = match config.label {
        DrainLabel::Auto => !CONTROL_PLANE.into_iter().any(has),
        DrainLabel::Always => true,
        DrainLabel::Never => false,
    };
    if label_counts && has(LABEL) {
        return Some(Reason::Label);
    }
    let names =
        |taint: &&Taint| config.taints.iter().any(|pattern| pattern.names(&taint.key, &taint.value, &taint.effect));
    node.taints.iter().find(names).cloned().map(Reason::Taint)
}

/// Returns what a Node says about its drain.
pub fn event(node: &Node, config: &DrainConfig) -> Event {
    match reason(node, config) {
        // Of a remembered Node, and of one in a manifest, nobody says that it is ready.
        None if !node.should_announce => Event::NotReady,
        reason => Event::Node(reason),
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
            State::Leaving { until } => Some(until),
            State::Withdrawn { look } => look,
            State::Unknown | State::Announced => None,
        }
    }

    /// Handles an event; returns what follows, in order.
    pub fn step(&mut self, now: Instant, event: Event) -> Vec<Effect> {
        let event = match event {
            // A kubelet that ended before this agent says nothing any more: the node controller writes `Unknown` over what it said. A shutdown that was
            // cancelled makes the node `Ready` again.
            Event::NotReady if self.is_shutdown => return Vec::new(),
            Event::NotReady => Event::Node(None),
            event => event,
        };
        match &event {
            Event::Node(None) => self.is_shutdown = false,
            Event::Node(Some(Reason::Shutdown)) => self.is_shutdown = true,
            _ => {}
        }
        let withdrawn = State::Withdrawn { look: self.looks.then(|| now + PACE) };
        let (state, effects) = match (&self.state, event) {
            (State::Unknown, Event::Node(Some(why))) => (withdrawn, withdraw(&why.to_string())),
            (State::Announced, Event::Node(Some(why))) if self.delay.is_zero() => {
                (withdrawn, withdraw(&why.to_string()))
            }
            (State::Announced, Event::Node(Some(why))) => {
                (State::Leaving { until: now + self.delay }, self.leave(&why))
            }
            (State::Leaving { until }, Event::Tick) if *until <= now => {
                (withdrawn, withdraw(&format!("the drain of {:?} is over", self.delay)))
            }
            (State::Withdrawn { look: Some(at) }, Event::Tick) if *at <= now => (withdrawn, vec![Effect::Look]),
            (State::Withdrawn { look: Some(_) }, Event::Clients(clients, took)) => looked(now, clients, took),
            (State::Unknown, Event::Node(None)) => (State::Announced, Vec::new()),
            (State::Leaving { .. } | State::Withdrawn { .. }, Event::Node(None)) => (State::Announced, announce()),
            (
                State::Unknown | State::Announced | State::Leaving { .. } | State::Withdrawn { .. },
                Event::Tick | Event::Clients(..) | Event::NotReady,
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
mod tests {
    use super::*;
    use crate::config::TaintPattern;
    use crate::router::given::address;

    const DELAY: Duration = Duration::from_secs(10);

    fn stands(effects: &[Effect]) -> Vec<Stage> {
        let stand = |effect: &Effect| match effect {
            Effect::Stand(stage) => Some(*stage),
            Effect::Tell(_) | Effect::Look => None,
        };
        effects.iter().filter_map(stand).collect()
    }

    fn told(effects: &[Effect]) -> Vec<&'static str> {
        let word = |effect: &Effect| match effect {
            Effect::Tell(news) => Some(news.word),
            Effect::Stand(_) | Effect::Look => None,
        };
        effects.iter().filter_map(word).collect()
    }

    #[test]
    fn every_state_and_event_has_its_answer() {
        let now = Instant::now();
        let drains = || Event::Node(Some(Reason::Label));
        let at = |state: State| Drain { state, ..Drain::new(DELAY) };
        let gone = || State::Withdrawn { look: None };
        let (early, late) = (State::Leaving { until: now + DELAY }, State::Leaving { until: now });
        for (state, event, next, stand, word) in [
            (State::Unknown, Event::Node(None), State::Announced, None, None),
            (State::Unknown, drains(), gone(), Some(Stage::Withdrawn), Some("ServiceAddressesWithdrawn")),
            (State::Unknown, Event::Tick, State::Unknown, None, None),
            (State::Announced, Event::Node(None), State::Announced, None, None),
            (State::Announced, drains(), early.clone(), Some(Stage::Leaving), Some("ServiceAddressesLeaving")),
            (State::Announced, Event::Tick, State::Announced, None, None),
            (
                early.clone(),
                Event::Node(None),
                State::Announced,
                Some(Stage::Announced),
                Some("ServiceAddressesAnnounced"),
            ),
            (early.clone(), drains(), early.clone(), None, None),
            (early.clone(), Event::Tick, early, None, None),
            (late, Event::Tick, gone(), Some(Stage::Withdrawn), Some("ServiceAddressesWithdrawn")),
            (gone(), Event::Node(None), State::Announced, Some(Stage::Announced), Some("ServiceAddressesAnnounced")),
            (gone(), drains(), gone(), None, None),
            (gone(), Event::Tick, gone(), None, None),
            (gone(), Event::Clients(Clients::None, Duration::ZERO), gone(), None, None),
            (gone(), Event::NotReady, State::Announced, Some(Stage::Announced), Some("ServiceAddressesAnnounced")),
        ] {
            let mut drain = at(state.clone());
            let effects = drain.step(now, event.clone());
            assert_eq!(drain.state, next, "{state:?} {event:?}");
            assert_eq!(
                (stands(&effects), told(&effects)),
                (Vec::from_iter(stand), Vec::from_iter(word)),
                "{state:?} {event:?}"
            );
        }
    }

    #[test]
    fn nobody_is_told_that_addresses_are_withdrawn_before_neighbours_have_been_sent_it_or_that_none_are() {
        use Stage::{Announced, Leaving, Withdrawn};
        for (stage, is_sent, has_addresses, number, word, note) in [
            (Announced, true, true, 0, "announced", None),
            (Announced, true, false, 0, "announced", None),
            (Leaving, true, true, 1, "leaving", Some("about to be withdrawn")),
            (Leaving, true, false, 1, "leaving", Some("it has no service addresses to announce")),
            (Withdrawn, false, true, 1, "leaving", Some("has not been sent to all neighbours yet")),
            (Withdrawn, true, true, 2, "withdrawn", Some("are withdrawn from routers outside")),
            (Withdrawn, true, false, 2, "withdrawn", Some("it has no service addresses to announce")),
        ] {
            let outside = Outside { stage, is_sent, has_addresses };
            assert_eq!((outside.number(), outside.word()), (number, word), "{outside:?}");
            let text = outside.note();
            assert_eq!(text.is_some(), note.is_some(), "{outside:?}");
            assert!(text.unwrap_or_default().contains(note.unwrap_or_default()), "{outside:?}");
        }
    }

    #[test]
    fn the_withdrawal_comes_when_the_delay_is_over_and_not_before() {
        let now = Instant::now();
        let mut drain = Drain::new(DELAY);
        assert_eq!(drain.step(now, Event::Node(None)), []);
        assert_eq!(stands(&drain.step(now, Event::Node(Some(Reason::Label)))), [Stage::Leaving]);
        assert_eq!(drain.deadline(), Some(now + DELAY));
        assert_eq!(drain.step(now + DELAY - Duration::from_millis(1), Event::Tick), []);
        assert_eq!(stands(&drain.step(now + DELAY, Event::Tick)), [Stage::Withdrawn]);
        assert_eq!(drain.deadline(), None, "who has nothing to do sleeps");
    }

    #[test]
    fn without_a_delay_addresses_are_withdrawn_at_once() {
        let now = Instant::now();
        let mut drain = Drain::new(Duration::ZERO);
        drain.step(now, Event::Node(None));
        assert_eq!(stands(&drain.step(now, Event::Node(Some(Reason::Label)))), [Stage::Withdrawn]);
    }

    #[test]
    fn the_label_and_the_named_taints_are_reasons_and_a_cordon_is_none() {
        let taint = |text: &str| text.parse::<Taint>().expect("a taint");
        let pattern = |text: &str| TaintPattern::parse(text).expect("a pattern");
        let node = |labels: &[(&str, &str)], taints: &[&str]| Node {
            labels: labels.iter().copied().collect(),
            taints: taints.iter().map(|text| taint(text)).collect(),
            ..Node::default()
        };
        let naming = |taints: &[TaintPattern]| DrainConfig { taints: taints.to_vec(), ..DrainConfig::default() };
        let none = naming(&[]);
        let named = naming(&[pattern("example.com/leaving:NoExecute"), pattern("pool=old")]);
        let cordon = "node.kubernetes.io/unschedulable:NoSchedule";
        let all = [(LABEL, "")];
        assert_eq!(reason(&node(&all, &[]), &none), Some(Reason::Label));
        assert_eq!(reason(&node(&[("pool", "old")], &[cordon]), &named), None);
        for (taints, drains) in [
            (["example.com/leaving=now:NoExecute"], true),
            (["example.com/leaving:NoExecute"], true),
            (["example.com/leaving:NoSchedule"], false),
            (["pool=old:NoSchedule"], true),
            (["pool=new:NoSchedule"], false),
        ] {
            assert_eq!(reason(&node(&[], &taints), &named).is_some(), drains, "{taints:?}");
            assert_eq!(reason(&node(&[], &taints), &none), None, "no taint is named by default");
        }
    }

    #[test]
    fn a_host_that_shuts_down_drains_whatever_the_flags_say_and_no_longer_where_that_was_cancelled() {
        let node = |is_shutting_down| Node { is_shutting_down, ..Node::default() };
        for label in [DrainLabel::Auto, DrainLabel::Always, DrainLabel::Never] {
            let config = DrainConfig { label, ..DrainConfig::default() };
            assert_eq!(reason(&node(true), &config), Some(Reason::Shutdown));
            assert_eq!(reason(&node(false), &config), None);
        }
        let now = Instant::now();
        let mut drain = Drain::new(DELAY);
        drain.step(now, Event::Node(None));
        let effects = drain.step(now, Event::Node(Some(Reason::Shutdown)));
        assert_eq!(stands(&effects), [Stage::Leaving]);
        let said = "Service addresses are announced with GRACEFUL_SHUTDOWN and withdrawn in 10s: the host shuts down, says its kubelet";
        assert!(effects.iter().any(|effect| matches!(effect, Effect::Tell(news) if news.text == said)), "{effects:?}");
        assert_eq!(stands(&drain.step(now, Event::Node(None))), [Stage::Announced]);
    }

    #[test]
    fn a_host_that_shuts_down_drains_until_it_is_ready_also_where_its_kubelet_says_nothing_any_more() {
        let now = Instant::now();
        let read = |node: &Node| event(node, &DrainConfig::default());
        let says = |should_announce, is_shutting_down| Node { should_announce, is_shutting_down, ..Node::default() };
        let mut drain = Drain::new(DELAY);
        drain.step(now, read(&says(true, false)));
        assert_eq!(stands(&drain.step(now, read(&says(false, true)))), [Stage::Leaving]);
        // The kubelet has ended, and the node controller writes `Unknown`.
        assert_eq!(drain.step(now, read(&says(false, false))), []);
        assert_eq!(stands(&drain.step(now + DELAY, Event::Tick)), [Stage::Withdrawn]);
        assert_eq!(drain.step(now, read(&says(false, false))), []);
        assert_eq!(stands(&drain.step(now, read(&says(true, false)))), [Stage::Announced], "it was cancelled");
        assert_eq!(drain.step(now, read(&says(false, false))), [], "a node that is not ready for another reason");
        // A label is no shutdown, whatever the node is.
        drain.step(now, Event::Node(Some(Reason::Label)));
        assert_eq!(stands(&drain.step(now, read(&says(false, false)))), [Stage::Announced]);
    }

    #[test]
    fn an_event_says_once_that_no_client_outside_has_a_connection_and_looks_rest_longer_than_they_take() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let looks = |effects: &[Effect]| effects.contains(&Effect::Look);
        let mut drain = Drain::new(Duration::ZERO).looking(true);
        drain.step(now, Event::Node(None));
        assert_eq!(drain.deadline(), None);
        drain.step(now, Event::Node(Some(Reason::Label)));
        assert!(!looks(&drain.step(now + PACE - second, Event::Tick)) && drain.deadline() == Some(now + PACE));
        let mut at = now + PACE;
        for (clients, took, next) in [
            (Clients::Some, Duration::from_millis(1), PACE),
            (Clients::Some, second, 100 * second),
            (Clients::Unknown, Duration::from_millis(20), 2 * second),
            (Clients::Unknown, Duration::ZERO, SOON),
            (Clients::Unknown, second, PACE),
        ] {
            assert!(looks(&drain.step(at, Event::Tick)), "{clients:?}");
            assert_eq!(drain.step(at, Event::Clients(clients, took)), []);
            assert_eq!(drain.deadline(), Some(at + next), "{clients:?} {took:?}");
            at += next;
        }
        assert!(looks(&drain.step(at, Event::Tick)));
        let effects = drain.step(at, Event::Clients(Clients::None, second));
        assert_eq!((stands(&effects), told(&effects)), (vec![], vec!["NoConnectionsFromOutside"]));
        assert_eq!((drain.deadline(), drain.step(at + 100 * PACE, Event::Tick)), (None, vec![]));
    }

    #[test]
    fn a_search_for_clients_goes_on_until_it_has_an_answer_and_is_not_that_of_another_drain() {
        // Each search has found nobody after three looks.
        let mut look = ClientLook::new(|| {
            let mut looks = 0;
            Box::new(move |_| {
                looks += 1;
                if looks == 4 { Err(io::ErrorKind::InvalidData.into()) } else { Ok((looks == 3).then_some(false)) }
            })
        });
        let mut go_on = |is_another_drain: bool| {
            if is_another_drain {
                look.give_up();
            }
            look.go_on(&|_| true).expect("no search goes on behind its end")
        };
        let answers = [false, false, false, false, false, true, false, false].map(&mut go_on);
        assert_eq!(answers, [None, None, Some(false), None, None, None, None, Some(false)]);
    }

    #[test]
    fn the_label_that_installers_put_on_every_control_plane_node_counts_there_only_where_the_flag_says_so() {
        use DrainLabel::{Always, Auto, Never};
        let [today, of_old] = CONTROL_PLANE;
        for (labels, draining) in [
            (&[][..], &[][..]),
            (&[today], &[]),
            (&[LABEL], &[Auto, Always]),
            (&[LABEL, today], &[Always]),
            (&[LABEL, of_old], &[Always]),
            (&[LABEL, today, of_old], &[Always]),
        ] {
            let labels = labels.iter().map(|label| (*label, "")).collect();
            let taints = vec!["pool=old:NoSchedule".parse::<Taint>().expect("a taint")];
            let (plain, tainted) = (Node { labels, ..Node::default() }, Node { taints, ..Node::default() });
            let tainted = Node { labels: plain.labels.clone(), ..tainted };
            for label in [Auto, Always, Never] {
                let config = DrainConfig { label, ..DrainConfig::default() };
                let expected = draining.contains(&label).then_some(Reason::Label);
                assert_eq!(reason(&plain, &config), expected, "{:?} with {label:?}", plain.labels);
                let named = TaintPattern::parse("pool").expect("a pattern");
                let config = DrainConfig { taints: vec![named], ..config };
                assert!(reason(&tainted, &config).is_some(), "a taint counts on every node");
            }
        }
    }

    #[test]
    fn who_is_leaving_says_so_to_every_router_and_keeps_what_it_said() {
        for next_hop in ["192.0.2.1", "2001:db8::1"] {
            let left = leaving(Attributes::local(address(next_hop)));
            assert!(left.has(Community::GRACEFUL_SHUTDOWN));
            assert_eq!((left.preference(), left.next_hop), (0, address(next_hop)));
        }
    }
}
