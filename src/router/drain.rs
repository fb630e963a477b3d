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
//! A start with the label in place announces nothing: neighbours that kept the routes of the run before lose them then.

use std::fmt;
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
    /// Time has passed.
    Tick,
}

/// Output of the machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Service addresses stand like this from now on.
    Stand(Stage),
    /// News for the administrator, true once routers have been told of the effects before.
    Tell(News),
}

/// The drain of this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Drain {
    /// Time between the first announcement with GRACEFUL_SHUTDOWN and the withdrawal.
    delay: Duration,
    state: State,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum State {
    /// The own Node has not been read yet.
    Unknown,
    Announced,
    Leaving {
        until: Instant,
    },
    Withdrawn,
}

/// The label of the own Node that starts a drain.
const LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// The labels of a Node of the control plane: today's, and the one of kubeadm before 1.24.
const CONTROL_PLANE: [&str; 2] = ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];

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

/// Returns the attributes of a service address that is leaving (RFC 8326 4.1, 4.3).
pub fn leaving(mut attributes: Attributes) -> Attributes {
    attributes.local_pref = Some(0);
    attributes.add_communities(&[Community::GRACEFUL_SHUTDOWN]);
    attributes
}

impl Drain {
    pub fn new(delay: Duration) -> Drain {
        Drain { delay, state: State::Unknown }
    }

    /// Returns when time is an event.
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Leaving { until } => Some(until),
            State::Unknown | State::Announced | State::Withdrawn => None,
        }
    }

    /// Handles an event; returns what follows, in order.
    pub fn step(&mut self, now: Instant, event: Event) -> Vec<Effect> {
        let (state, effects) = match (&self.state, event) {
            (State::Unknown, Event::Node(Some(why))) => (State::Withdrawn, withdraw(&why.to_string())),
            (State::Announced, Event::Node(Some(why))) if self.delay.is_zero() => {
                (State::Withdrawn, withdraw(&why.to_string()))
            }
            (State::Announced, Event::Node(Some(why))) => {
                (State::Leaving { until: now + self.delay }, self.leave(&why))
            }
            (State::Leaving { until }, Event::Tick) if *until <= now => {
                (State::Withdrawn, withdraw(&format!("the drain of {:?} is over", self.delay)))
            }
            (State::Unknown, Event::Node(None)) => (State::Announced, Vec::new()),
            (State::Leaving { .. } | State::Withdrawn, Event::Node(None)) => (State::Announced, announce()),
            (State::Unknown | State::Announced | State::Leaving { .. } | State::Withdrawn, Event::Tick)
            | (State::Announced, Event::Node(None))
            | (State::Leaving { .. } | State::Withdrawn, Event::Node(Some(_))) => return Vec::new(),
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
            Effect::Tell(_) => None,
        };
        effects.iter().filter_map(stand).collect()
    }

    fn told(effects: &[Effect]) -> Vec<&'static str> {
        let word = |effect: &Effect| match effect {
            Effect::Tell(news) => Some(news.word),
            Effect::Stand(_) => None,
        };
        effects.iter().filter_map(word).collect()
    }

    #[test]
    fn every_state_and_event_has_its_answer() {
        let now = Instant::now();
        let drains = || Event::Node(Some(Reason::Label));
        let at = |state: State| Drain { delay: DELAY, state };
        let (early, late) = (State::Leaving { until: now + DELAY }, State::Leaving { until: now });
        for (state, event, next, stand, word) in [
            (State::Unknown, Event::Node(None), State::Announced, None, None),
            (State::Unknown, drains(), State::Withdrawn, Some(Stage::Withdrawn), Some("ServiceAddressesWithdrawn")),
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
            (late, Event::Tick, State::Withdrawn, Some(Stage::Withdrawn), Some("ServiceAddressesWithdrawn")),
            (
                State::Withdrawn,
                Event::Node(None),
                State::Announced,
                Some(Stage::Announced),
                Some("ServiceAddressesAnnounced"),
            ),
            (State::Withdrawn, drains(), State::Withdrawn, None, None),
            (State::Withdrawn, Event::Tick, State::Withdrawn, None, None),
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
