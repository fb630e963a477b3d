//! The machine of a drain, step by step, and its searches for clients outside of the cluster.

use super::*;
use crate::config::DrainLabel;
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
    let leaving = |until: Instant, is_seen: bool| State::Leaving { until, is_seen };
    let (early, late, seen) = (leaving(now + DELAY, false), leaving(now, false), leaving(now, true));
    for (state, event, next, stand, word) in [
        (State::Unknown, Event::Node(None), State::Announced, None, None),
        (State::Unknown, drains(), gone(), Some(Stage::Withdrawn), Some("ServiceAddressesWithdrawn")),
        (State::Unknown, Event::Tick, State::Unknown, None, None),
        (State::Announced, Event::Node(None), State::Announced, None, None),
        (State::Announced, drains(), early.clone(), Some(Stage::Leaving), Some("ServiceAddressesLeaving")),
        (State::Announced, Event::Tick, State::Announced, None, None),
        (early.clone(), Event::Node(None), State::Announced, Some(Stage::Announced), Some("ServiceAddressesAnnounced")),
        (early.clone(), drains(), early.clone(), None, None),
        (early.clone(), Event::Tick, early.clone(), None, None),
        (late.clone(), Event::Announcing(false), early, None, None),
        (late.clone(), Event::Announcing(true), seen.clone(), None, None),
        (seen.clone(), Event::Announcing(false), seen.clone(), None, None),
        (seen, Event::Tick, gone(), Some(Stage::Withdrawn), Some("ServiceAddressesWithdrawn")),
        (gone(), Event::Announcing(false), gone(), None, None),
        (State::Announced, Event::Announcing(false), State::Announced, None, None),
        (State::Unknown, Event::Announcing(true), State::Unknown, None, None),
        (late, Event::Tick, gone(), Some(Stage::Withdrawn), Some("ServiceAddressesWithdrawn")),
        (gone(), Event::Node(None), State::Announced, Some(Stage::Announced), Some("ServiceAddressesAnnounced")),
        (gone(), drains(), gone(), None, None),
        (gone(), Event::Tick, gone(), None, None),
        (gone(), Event::Clients(Clients::None, Duration::ZERO), gone(), None, None),
        (gone(), Event::NotReady(None), State::Announced, Some(Stage::Announced), Some("ServiceAddressesAnnounced")),
        (gone(), Event::NotReady(Some(Reason::Label)), gone(), None, None),
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
fn a_shutdown_that_was_cancelled_on_a_node_with_the_label_is_over_when_that_is_ready_and_the_label_counts_alone() {
    let now = Instant::now();
    // What is said of the node: whether it is ready, whether its host shuts down, and whether it has the label.
    let read = |should_announce, is_shutting_down, has_label: bool| {
        let labels = has_label.then_some((reasons::LABEL, "")).into_iter().collect();
        event(&Node { should_announce, is_shutting_down, labels, ..Node::default() }, &DrainConfig::default())
    };
    let shut_down = || {
        let mut drain = Drain::new(DELAY);
        drain.step(now, read(true, false, false));
        assert_eq!(stands(&drain.step(now, read(false, true, true))), [Stage::Leaving]);
        assert_eq!(stands(&drain.step(now + DELAY, Event::Tick)), [Stage::Withdrawn]);
        // Its kubelet has ended.
        assert_eq!(drain.step(now, read(false, false, true)), []);
        drain
    };
    let mut drain = shut_down();
    assert_eq!(drain.step(now, read(false, false, false)), [], "the host goes on shutting down without the label");
    assert_eq!(stands(&drain.step(now, read(true, false, false))), [Stage::Announced]);
    let mut drain = shut_down();
    assert_eq!(drain.step(now, read(true, false, true)), [], "it was cancelled, and the label is there");
    assert_eq!(stands(&drain.step(now, read(false, false, false))), [Stage::Announced], "whether it is ready or not");
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
fn who_is_leaving_says_so_to_every_router_and_keeps_what_it_said() {
    for next_hop in ["192.0.2.1", "2001:db8::1"] {
        let left = leaving(Attributes::local(address(next_hop)));
        assert!(left.has(Community::GRACEFUL_SHUTDOWN));
        assert_eq!((left.preference(), left.next_hop), (0, address(next_hop)));
    }
}
